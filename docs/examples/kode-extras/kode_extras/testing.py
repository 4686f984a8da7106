"""Encrypted stores as the conformance suite sees them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from kode_conformance import Handle
from kode_conformance.builtin import MemoryHarness
from kode_sqlite.testing.harness import SqliteHarness

from kode_core import Store
from kode_core.plugins import EngineLayer
from kode_extras.encryption import Keys, encrypted

KEYS = Keys(b"d" * 32, {"k": b"k" * 32})


class EncryptedMemory(MemoryHarness):
    """The memory store, with encrypted records."""

    name = "memory, encrypted"

    async def open_with(self, handle: Handle, *, layers: Sequence[EngineLayer] = (), **options: Any) -> Store:
        return await super().open_with(handle, layers=_around(layers), **options)


class EncryptedSqlite(SqliteHarness):
    """The SQLite store, with encrypted records."""

    name = "sqlite, encrypted"

    async def open_with(self, handle: Handle, *, layers: Sequence[EngineLayer] = (), **options: Any) -> Store:
        return await super().open_with(handle, layers=_around(layers), **options)

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        """Change a character in the middle of the first message's encrypted text."""
        with closing(sqlite3.connect(handle["db_path"])) as db:
            where = "WHERE agent_id = ? AND position = 0"
            (body,) = db.execute(f"SELECT body FROM kode_messages {where}", (agent_id,)).fetchone()
            place = len(body) // 2
            changed = body[:place] + ("A" if body[place] != "A" else "B") + body[place + 1 :]
            db.execute(f"UPDATE kode_messages SET body = ? {where}", (changed, agent_id))
            db.commit()


def _around(layers: Any) -> Any:
    """The layers, with the encryption as the innermost; the store refuses a value that is no list."""
    return [encrypted(KEYS), *layers] if isinstance(layers, (list, tuple)) else layers
