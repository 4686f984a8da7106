"""Files that users write with editors and shells of Windows: a byte order mark is no part of the text."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path

import pytest

from kode_core import ArchiveError, ConfigurationError, Message, create_extended_store
from kode_core.cli.importing_archive import is_archive
from kode_core.config import configure
from kode_core.errors import InvalidArgumentError
from kode_core.formats.openai_chat import read_conversations
from kode_core.layers.encryption import KeyRing, new_key
from kode_core.moving import export_archive, import_archive
from kode_core.plugins import registry

UTF_16 = [codecs.BOM_UTF16_LE + "{}".encode("utf-16-le"), codecs.BOM_UTF16_BE]


def a_file(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    path.chmod(0o600)
    return path


def test_a_file_of_keys(tmp_path: Path) -> None:
    """A mark of UTF-8 is passed over; UTF-16, as a redirection of PowerShell writes, is named."""
    key = new_key()
    ring = KeyRing.from_file(a_file(tmp_path / "keys", codecs.BOM_UTF8 + f"# für später\r\nk:{key}\r\n".encode()))
    assert [*ring] == ["k"]
    for text in (f"k:{key}\r\n".encode("utf-16"), codecs.BOM_UTF16_BE):
        with pytest.raises(ConfigurationError, match="it is UTF-16; save it as UTF-8") as caught:
            KeyRing.from_file(a_file(tmp_path / "keys", text))
        assert key[:8] not in str(caught.value)
    with pytest.raises(ConfigurationError, match="it is not UTF-8"):
        KeyRing.from_file(a_file(tmp_path / "keys", b"k:\xe9\n"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("kode.toml", "[stores.default]\r\ntype = 'json'\r\n"),
        ("pyproject.toml", "[tool.kode.stores.default]\r\ntype = 'json'\r\n"),
    ],
)
def test_a_file_of_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    a_file(tmp_path / name, codecs.BOM_UTF8 + text.encode())
    assert configure(None, {}, registry.backend, {}).backend.name == "json"
    if name == "kode.toml":
        a_file(tmp_path / name, text.encode("utf-16"))
        with pytest.raises(ConfigurationError, match="is not TOML: it is UTF-16; save it as UTF-8"):
            configure(None, {}, registry.backend, {})


async def test_a_file_of_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password with a mark is the password."""
    monkeypatch.setenv("KODE_STORE_URL_FILE", str(a_file(tmp_path / "url", codecs.BOM_UTF8 + b"memory:\r\n")))
    async with create_extended_store() as store:
        assert await store.list() == []
    a_file(tmp_path / "url", "memory:".encode("utf-16"))
    with pytest.raises(ConfigurationError, match="with the value: it is UTF-16; save it as UTF-8"):
        await create_extended_store()
    for name in ("a\ud800b", "a\0b"):
        with pytest.raises(ConfigurationError, match="KODE_STORE_URL_FILE has to be the path .* its name is no path"):
            configure(None, {}, registry.backend, {"KODE_STORE_URL_FILE": name})


async def test_an_archive(tmp_path: Path) -> None:
    """A shell may put a mark before the output of ``kode export -``, or write UTF-16, which is named."""
    path = tmp_path / "a.jsonl"
    async with create_extended_store("memory:") as store, create_extended_store("memory:") as other:
        await store.append_messages("a", [Message.user("é")])
        await export_archive(store, path)
        raw = path.read_bytes()
        assert is_archive(str(a_file(path, gzip.compress(codecs.BOM_UTF8 + raw))))
        assert is_archive(str(a_file(path, codecs.BOM_UTF8 * 2 + raw)))
        assert (await import_archive(other, path)).is_whole
        assert await other.list(include_without_info=True) == ["a"]
        a_file(path, raw.decode().encode("utf-16"))
        with pytest.raises(ArchiveError, match="line 1 of the archive: it is UTF-16; save it as UTF-8"):
            await import_archive(other, path)


@pytest.mark.parametrize("raw", UTF_16)
def test_a_file_of_conversations(tmp_path: Path, raw: bytes) -> None:
    """UTF-16 is named; texts with a mark of UTF-8 are read."""
    path = a_file(tmp_path / "chat.json", raw)
    with pytest.raises(InvalidArgumentError, match=r"chat.json cannot be read: it is UTF-16; save it as UTF-8"):
        list(read_conversations(path))
    a_file(path, codecs.BOM_UTF8 + json.dumps([{"role": "user", "content": "x"}]).encode())
    assert len(list(read_conversations(path))) == 1
