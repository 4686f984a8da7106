"""``kode rekey`` as its users run it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kode_core import Message, create_extended_store
from kode_core.layers.encryption import new_key
from tests.test_cli import kode

OLD, NEW = f"old:{new_key()}", f"new:{new_key()}"


def test_keys_are_rotated(tmp_path: Path) -> None:
    """Plain records and records under the old key are put under the new one; the command says what is left."""

    async def fill() -> None:
        async with create_extended_store("sqlite:///agents.db") as store:
            await store.append_messages("plain", [Message.user("hi"), Message.user("ho")])

    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    asyncio.run(fill())
    url = "sqlite:///agents.db?encryption_key_file=keys"
    _, err = kode("rekey", "--store", "sqlite:///agents.db", code=2)
    assert "this store is not encrypted" in err
    keys.write_text(OLD)
    _, err = kode("rekey", "--store", url, code=2)
    assert "has records as plain text, and keys were given: open it with encryption_plaintext='read'" in err
    out, _ = kode("rekey", "--store", f"{url}&encryption_plaintext=read", "--dry-run")
    assert out == (
        "1 agent: 2 records would be put under the first key, 2 of them from plain text\n2 records are plain text\n"
    )
    out, _ = kode("rekey", "--store", f"{url}&encryption_plaintext=read")
    assert out == "1 agent: 2 records were put under the first key, 2 of them from plain text\n"
    _, err = kode("messages", "plain", "--store", "sqlite:///agents.db", code=2)
    assert "is encrypted: give its keys, as encryption_key_file" in err
    keys.write_text(f"{NEW}\n{OLD}")
    out, _ = kode("rekey", "--store", url, "--json")
    assert json.loads(out) == {"agents": 1, "records": 2, "plain": 0, "left": {}, "unreadable": []}
    keys.write_text(NEW)
    assert "ho" in kode("messages", "plain", "--store", url)[0]
    keys.write_text(OLD)
    out, err = kode("messages", "plain", "--store", url, code=2)
    assert "encrypted under the key 'new', which is not among the given keys" in err
    assert OLD.partition(":")[2] not in out + err


@pytest.mark.skipif(sys.platform == "win32", reason="the block is for a shell of POSIX")
def test_the_rotation_of_the_guide_runs() -> None:
    """The block is copied as it is: everything is under the new key then, and the old one can go."""
    page = (Path(__file__).parents[1] / "docs" / "guides" / "encryption.md").read_text()
    (block,) = re.findall(r"```sh\n(.*?)```", page.partition("## Rotating keys")[2], flags=re.DOTALL)

    async def fill() -> None:
        async with create_extended_store("sqlite:///agents.db?encryption_key_file=keys") as store:
            await store.append_messages("agt-1", [Message.user("The safe opens at noon")])

    Path("keys").touch(mode=0o600)
    Path("keys").write_text(f"{OLD}\n")
    asyncio.run(fill())
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}
    done = subprocess.run(["sh", "-e", "-c", block], env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 agent: 1 record was put under the first key" in done.stdout
    assert "writes under the key 2027-01, and reads with 1 more key, by encryption_key_file" in done.stdout
    new, old = Path("keys").read_text().splitlines()
    assert new.startswith("2027-01:") and old == OLD and Path("keys").stat().st_mode & 0o077 == 0
    Path("keys").write_text(new)
    assert "noon" in kode("messages", "agt-1", "--store", "sqlite:///agents.db?encryption_key_file=keys")[0]


def test_doctor_says_how_a_store_keeps_its_records() -> None:
    """The key that writes, the size from which bodies are compressed, and the options; no key itself."""
    Path("keys").touch(mode=0o600)
    Path("keys").write_text(f"{NEW}\n{OLD}\n")
    url = "json:///store?encryption_key_file=keys&encryption_blind=true&encryption_plaintext=read"

    async def fill() -> None:
        async with create_extended_store(f"{url}&compression_min_bytes=2000") as store:
            await store.append_messages("a", [Message.user("word " * 2_000)])

    asyncio.run(fill())
    out, _ = kode("doctor", "--store", f"{url}&compression_min_bytes=2000")
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    found = {name: text for name, text in lines if name in ("encryption", "compression")}
    assert found == {
        "encryption": "writes under the key new, and reads with 1 more key, by encryption_key_file, "
        "encryption_plaintext, encryption_blind; records as plain text are read, too",
        "compression": "of bodies from 2,000 bytes on, by compression_min_bytes",
    }
    out, _ = kode("doctor", "--json", "--store", f"{url}&compression_min_bytes=2000")
    report = json.loads(out)
    assert report["encryption"] == {
        "keys": ["new", "old"],
        "plaintext": "read",
        "blind": True,
        "options": ["encryption_key_file", "encryption_plaintext", "encryption_blind"],
    }
    assert report["compression"] == {"minBytes": 2000, "options": ["compression_min_bytes"]}
    assert OLD.partition(":")[2] not in out and NEW.partition(":")[2] not in out
    _, err = kode("doctor", "--store", "json:///store", code=2)
    assert "is encrypted: give its keys, as encryption_key_file" in err
    _, err = kode("doctor", "--store", url, code=2)
    assert "has compressed records: give compression_min_bytes" in err
    asyncio.run(plain())
    out, _ = kode("doctor", "--store", "json:///plain")
    assert "encryption   none\n" in out and "compression  none\n" in out
    report = json.loads(kode("doctor", "--json", "--store", "json:///plain")[0])
    assert report["encryption"] is None and report["compression"] is None


async def plain() -> None:
    async with create_extended_store("json:///plain") as store:
        await store.append_messages("a", [Message.user("x")])


def test_an_index_of_texts_is_named_before_it_begins(tmp_path: Path) -> None:
    """The command warns of an index of texts, which is not encrypted; without one it says nothing."""

    async def fill() -> None:
        async with create_extended_store(f"sqlite:///{tmp_path}/agents.db", text_index=True) as store:
            await store.append_messages("plain", [Message.user("hi")])

    asyncio.run(fill())
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text(OLD)
    url = f"sqlite:///{tmp_path}/agents.db?encryption_key_file={keys}&encryption_plaintext=read"
    done = subprocess.run(
        [sys.executable, "-m", "kode_core.cli", "rekey", "--store", url], capture_output=True, text=True, check=True
    )
    assert "has an index of texts" in done.stderr
    assert "kode text-index drop removes it" in done.stderr
    kode("text-index", "drop", "--store", f"sqlite:///{tmp_path}/agents.db")
    done = subprocess.run(
        [sys.executable, "-m", "kode_core.cli", "rekey", "--store", url], capture_output=True, text=True, check=True
    )
    assert "index of texts" not in done.stderr
