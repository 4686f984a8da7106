"""The floor: the same rows in the same tables in the same commits, by the bare driver, with bodies made beforehand.

A floor has the tables of a backend and none of its code: no encoding, no digests, no checks of what is there, no locks,
no retries. A store cannot be much faster than this, only write the same with fewer commits or fewer round trips.
"""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiosqlite
from kode_sqlite.migrations import sql

__all__ = ["Commit", "Floor", "SqliteFloor"]


@dataclass
class Commit:
    """What one transaction writes for one agent: bodies, and how much of each kind is there before."""

    agent: str
    version: int
    message_count: int = 0
    call_count: int = 0
    event_count: int = 0
    messages: Sequence[str] = ()
    calls: Sequence[str] = ()
    info: str | None = None
    events: Sequence[str] = ()

    @property
    def is_events_only(self) -> bool:
        """Whether nothing is written but events."""
        return not self.messages and not self.calls and self.info is None

    def digests(self) -> list[bytes]:
        """What tells the events apart."""
        return [(self.event_count + i).to_bytes(16, "big") for i in range(len(self.events))]


class Floor(ABC):
    """A database with the tables of a backend."""

    @abstractmethod
    async def commit(self, commit: Commit) -> None:
        """One transaction, at the durability that the store has by default."""

    @abstractmethod
    async def load(self, agent: str) -> list[Any]:
        """All messages of an agent, as ``json.loads`` makes them of their bodies."""

    @abstractmethod
    async def fork(self, agent: str, children: Sequence[str]) -> None:
        """Copy an agent's head, info, messages and tool calls to each child, in one transaction."""


_MESSAGE = "INSERT INTO kode_messages VALUES (?, ?, ?, ?, ?, ?, ?)"
_CALL = "INSERT INTO kode_tool_calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_EVENT = "INSERT INTO kode_events (agent_id, seq, channel, body, digest) VALUES (?, ?, ?, ?, ?)"
_HEAD = (
    "INSERT INTO kode_agents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (agent_id) DO UPDATE SET"
    " message_count = excluded.message_count, tool_call_count = excluded.tool_call_count,"
    " updated_at = excluded.updated_at, last_op = excluded.last_op"
)
_INFO = "INSERT INTO kode_infos VALUES (?, ?, ?) ON CONFLICT (agent_id) DO UPDATE SET body = excluded.body"
_METADATA = (
    "INSERT INTO kode_metadata (agent_id, key, value) VALUES (?, ?, ?) ON CONFLICT (agent_id, key)"
    " DO UPDATE SET value = excluded.value"
)
_COPIES = {
    "kode_agents": "message_version, message_count, tool_call_version, tool_call_count, updated_at, last_op,"
    " template_id, created_at",
    "kode_infos": "body, digest",
    "kode_metadata": "key, value",
    "kode_messages": "position, created_at, role, content_types, body, digest",
    "kode_tool_calls": "position, created_at, call_id, tool_name, state, is_error, has_approval, body, digest",
}


class SqliteFloor(Floor):
    """By bare aiosqlite: one connection, each table's rows with ``executemany``."""

    def __init__(self, db: aiosqlite.Connection) -> None:
        self._db = db
        self._lock = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator[Self]:
        """A new file."""
        async with aiosqlite.connect(path, isolation_level=None) as db:
            for pragma in (
                "busy_timeout = 10000",
                "journal_mode = WAL",
                "synchronous = FULL",
                "wal_autocheckpoint = 4000",
                "cache_size = -16000",
            ):
                await db.execute(f"PRAGMA {pragma}")
            if not await (await db.execute("SELECT 1 FROM sqlite_master WHERE name = 'kode_agents'")).fetchone():
                for statement in sql():
                    await db.execute(statement)
            yield cls(db)

    async def commit(self, commit: Commit) -> None:
        await self._write([(statement, rows) for statement, rows in _rows(commit).items() if rows])

    async def load(self, agent: str) -> list[Any]:
        found = await self._db.execute_fetchall(
            "SELECT body FROM kode_messages WHERE agent_id = ? ORDER BY position", (agent,)
        )
        return [json.loads(body) for (body,) in found]

    async def fork(self, agent: str, children: Sequence[str]) -> None:
        await self._write(
            [
                (
                    f"INSERT INTO {table} (agent_id, {columns}) SELECT ?, {columns} FROM {table} WHERE agent_id = ?",
                    [(child, agent) for child in children],
                )
                for table, columns in _COPIES.items()
            ]
        )

    async def _write(self, statements: Sequence[tuple[str, Sequence[Sequence[Any]]]]) -> None:
        async with self._lock:
            await self._db.execute("BEGIN IMMEDIATE")
            for statement, rows in statements:
                await self._db.executemany(statement, rows)
            await self._db.execute("COMMIT")


def _rows(c: Commit) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of each statement."""
    now, nothing = int(time.time() * 1000), bytes(16)
    rows: dict[str, list[tuple[Any, ...]]] = {
        _MESSAGE: [
            (c.agent, c.message_count + i, now, "user", "\ntext\n", body, nothing) for i, body in enumerate(c.messages)
        ],
        _CALL: [
            (c.agent, i, now, f"call-{i}", "bash", "COMPLETED", 0, 0, body, nothing)
            for i, body in enumerate(c.calls, c.call_count)
        ],
        _EVENT: [
            (c.agent, i, "progress", body, digest)
            for i, (body, digest) in enumerate(zip(c.events, c.digests(), strict=True), c.event_count)
        ],
    }
    if c.info is not None:
        rows[_INFO] = [(c.agent, c.info, nothing)]
        rows[_METADATA] = [(c.agent, "updatedAt", str(c.version))]
    if not c.is_events_only:
        counts = (1, c.message_count + len(c.messages), 1, c.call_count + len(c.calls))
        rows[_HEAD] = [(c.agent, *counts, now, f"op-{c.version}", "assistant", 1)]
    return rows
