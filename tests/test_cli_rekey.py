"""``kode rekey`` as its users run it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

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
