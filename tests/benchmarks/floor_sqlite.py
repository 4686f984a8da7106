"""The floor: the same rows in the same tables in the same commits, with bare aiosqlite and bodies made beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import aiosqlite
from kode_sqlite.schema import sql

__all__ = ["SqliteFloor"]

MESSAGE = "INSERT INTO kode_messages VALUES (?, ?, ?, ?, ?, ?, ?)"
CALL = "INSERT INTO kode_tool_calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
EVENT = "INSERT INTO kode_events (agent_id, seq, channel, body, digest) VALUES (?, ?, ?, ?, ?)"
HEAD = (
    "INSERT INTO kode_agents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (agent_id) DO UPDATE SET"
    " message_count = excluded.message_count, updated_at = excluded.updated_at, last_op = excluded.last_op"
)
INFO = "INSERT INTO kode_infos VALUES (?, ?, ?) ON CONFLICT (agent_id) DO UPDATE SET body = excluded.body"
METADATA = "INSERT INTO kode_metadata VALUES (?, ?, ?) ON CONFLICT (agent_id, key) DO UPDATE SET value = excluded.value"


class SqliteFloor:
    """See :class:`tests.benchmarks.beds.Floor`: a database with the tables of kode-sqlite, at the same durability."""

    def __init__(self, db: aiosqlite.Connection) -> None:
        self._db = db
        self._turn = asyncio.Lock()  # one transaction at a time on one connection
        self._count = 0
        self._seq = 0

    @classmethod
    async def open(cls, path: Path) -> Self:
        db = await aiosqlite.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 4000", "cache_size = -16000"):
            await db.execute(f"PRAGMA {pragma}")
        for statement in sql():
            await db.execute(statement)
        return cls(db)

    async def close(self) -> None:
        await self._db.close()

    async def write(self, *statements: tuple[str, Sequence[Any]]) -> None:
        """One transaction."""
        async with self._turn:
            await self._db.execute("BEGIN IMMEDIATE")
            for statement, values in statements:
                await self._db.execute(statement, values)
            await self._db.execute("COMMIT")

    def _head(self, agent: str) -> tuple[str, Sequence[Any]]:
        return HEAD, (agent, 1, self._count, 0, 0, self._seq, f"op-{self._seq}", "assistant", 1)

    async def messages(self, agent: str, bodies: Sequence[str]) -> None:
        """Append messages and update the head."""
        rows = []
        for body in bodies:
            rows.append((MESSAGE, (agent, self._count, self._count, "user", "\ntext\n", body, bytes(16))))
            self._count += 1
        self._seq += 1
        await self.write(*rows, self._head(agent))

    async def call(self, agent: str, position: int, body: str) -> None:
        """Append a tool call and update the head."""
        self._seq += 1
        row = (agent, position, position, f"call-{position}", "bash", "COMPLETED", 0, 0, body, bytes(16))
        await self.write((CALL, row), self._head(agent))

    async def info(self, agent: str, body: str, metadata: Sequence[tuple[str, str]]) -> None:
        """Replace the info and the metadata that changes."""
        self._seq += 1
        changed = [(METADATA, (agent, key, value)) for key, value in metadata]
        await self.write((INFO, (agent, body, bytes(16))), *changed, self._head(agent))

    async def events(self, agent: str, bodies: Sequence[str]) -> None:
        """Append events in one transaction."""
        rows = []
        for body in bodies:
            self._seq += 1
            rows.append((agent, self._seq, "progress", body, self._seq.to_bytes(16, "big")))
        async with self._turn:
            await self._db.execute("BEGIN IMMEDIATE")
            await self._db.executemany(EVENT, rows)
            await self._db.execute("COMMIT")

    async def turn(
        self, agent: str, messages: Sequence[str], call: tuple[int, str], info: str, events: Sequence[str]
    ) -> None:
        """A whole turn in one transaction."""
        rows: list[tuple[str, Sequence[Any]]] = []
        for body in messages:
            rows.append((MESSAGE, (agent, self._count, self._count, "user", "\ntext\n", body, bytes(16))))
            self._count += 1
        position, body = call
        rows.append((CALL, (agent, position, position, f"c-{position}", "bash", "COMPLETED", 0, 0, body, bytes(16))))
        rows.append((INFO, (agent, info, bytes(16))))
        rows.append((METADATA, (agent, "updatedAt", str(self._seq))))
        for body in events:
            self._seq += 1
            rows.append((EVENT, (agent, self._seq, "progress", body, self._seq.to_bytes(16, "big"))))
        await self.write(*rows, self._head(agent))
