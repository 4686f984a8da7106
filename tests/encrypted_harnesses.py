"""Harnesses of the local backends with encryption and compression, which the options of the store ask for.

Those of the servers are in ``encrypted_servers``: other processes import this module, and need no driver.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from kode_conformance import Handle, Space, StoreHarness
from kode_conformance.builtin import JsonHarness, MemoryHarness
from kode_sqlite.testing.harness import HybridHarness, SqliteHarness

from kode_core.batch import ListKind
from kode_core.layers.bodies import Place
from kode_core.layers.encryption import KeyRing, new_key
from kode_core.layers.encryption.ciphers import Sealer, parsed

VARIABLE: Final = "TEST_AGENTS_KEYS"
os.environ.setdefault(VARIABLE, f"new:{new_key()},old:{new_key()}")  # other processes get it from this one

OPTIONS: Final = {"encryption_key_variable": VARIABLE, "encryption_blind": True, "compression_min_bytes": 256}
"""The options of the layers: every record is encrypted, and the large ones are compressed."""
_SEALED: Final = re.compile(rb'"kode:[^"]*"')


def damaged(text: str) -> str:
    """A sealed text with another character in the middle of its base64."""
    place = len(text) // 2
    return text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]


class Encrypted(StoreHarness):
    """What the harnesses have in common. Deleted data cannot be searched for in what is encrypted."""

    raw_dump = StoreHarness.raw_dump

    async def provision(self, space: Space) -> Handle:
        return {**await super().provision(space), **OPTIONS}  # type: ignore[safe-super]

    async def restored(self, handle: Handle, paths: Sequence[Path]) -> Handle:
        return {**await super().restored(handle, paths), **OPTIONS}


class EncryptedMemory(Encrypted, MemoryHarness):
    name = "memory, encrypted"
    restored = StoreHarness.restored


class EncryptedJson(Encrypted, JsonHarness):
    name = "json, encrypted"

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        path, sealer = Path(handle["base_dir"]) / f"{agent_id}.jsonl", Sealer(KeyRing.from_environment(VARIABLE))
        raw = path.read_bytes()
        for found in _SEALED.finditer(raw):
            text = found[0].decode()
            sealed = parsed(text)
            opened = sealer.open(Place(agent_id, ListKind.MESSAGES), sealed) if sealed else None
            if opened is not None and '"message 0"' in opened:
                path.write_bytes(raw.replace(found[0], damaged(text).encode(), 1))
                return
        raise AssertionError("there is no such message")


class EncryptedSqlite(Encrypted, SqliteHarness):
    name = "sqlite, encrypted"

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        with closing(sqlite3.connect(handle["db_path"])) as db, db:
            where = "WHERE agent_id = ? AND position = 0"
            (body,) = db.execute(f"SELECT body FROM kode_messages {where}", (agent_id,)).fetchone()
            db.execute(f"UPDATE kode_messages SET body = ? {where}", (damaged(body), agent_id))


class EncryptedHybrid(EncryptedSqlite, HybridHarness):
    name = "sqlite-hybrid, encrypted"
    raw_dump = StoreHarness.raw_dump


ENCRYPTED: Final[dict[str, Callable[[], StoreHarness]]] = {"memory": EncryptedMemory, "sqlite": EncryptedSqlite}
