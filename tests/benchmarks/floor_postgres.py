"""The floor: the same rows in the same tables in the same commits, with bare asyncpg and bodies made beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import asyncpg
from kode_postgres.options import PostgresOptions
from kode_postgres.schema import Tables, statements

__all__ = ["PostgresFloor"]

_T = Tables(PostgresOptions())
MESSAGE = f"INSERT INTO {_T.messages} VALUES ($1, $2, $3, $4, $5, $6, $7)"
CALL = f"INSERT INTO {_T.tool_calls} VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
EVENT = f"INSERT INTO {_T.events} VALUES ($1, $2, $3, $4, $5, $6)"
HEAD = (
    f"INSERT INTO {_T.agents} VALUES ($1, 1, $2, 1, $3, $4, $4, '{{}}', '{{}}', 'assistant', 1) ON CONFLICT (agent_id)"
    " DO UPDATE SET message_count = excluded.message_count, updated_at = excluded.updated_at,"
    " last_offset = excluded.last_offset"
)
INFO = (
    f"INSERT INTO {_T.infos} VALUES ($1, $2, $3, $4) ON CONFLICT (agent_id)"
    " DO UPDATE SET metadata = excluded.metadata, body = excluded.body"
)
_Statement = tuple[str, Sequence[Sequence[Any]]]


class PostgresFloor:
    """See :class:`tests.benchmarks.beds.Floor`: a database with the tables of kode-postgres, over a pool.

    A transaction is a round trip for each of its statements, as people write it; many rows of one table are one.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._pool = pool
        self._counts: dict[str, int] = {}
        self._seq = 0

    @classmethod
    async def open(cls, dsn: str, connections: int = 10) -> Self:
        pool = await asyncpg.create_pool(dsn, min_size=1, max_size=connections)
        for statement in statements(_T):
            await pool.execute(statement)
        return cls(pool)

    async def close(self) -> None:
        await self._pool.close()

    async def write(self, *work: _Statement) -> None:
        """One transaction."""
        async with self._pool.acquire() as con, con.transaction():
            for statement, rows in work:
                if len(rows) == 1:
                    await con.execute(statement, *rows[0])
                else:
                    await con.executemany(statement, rows)

    def _messages(self, agent: str, bodies: Sequence[str]) -> _Statement:
        first = self._counts.get(agent, 0)
        self._counts[agent] = first + len(bodies)
        return MESSAGE, [(agent, n, n, "user", "\ntext\n", bytes(16), body) for n, body in enumerate(bodies, first)]

    def _head(self, agent: str) -> _Statement:
        self._seq += 1
        return HEAD, [(agent, self._counts.get(agent, 0), 0, self._seq)]

    def _call(self, agent: str, position: int, body: str) -> _Statement:
        name = f"call-{position}"
        return CALL, [(agent, position, position, name, "bash", "COMPLETED", False, False, bytes(16), body)]

    def _events(self, agent: str, bodies: Sequence[str]) -> _Statement:
        first = self._seq + 1
        self._seq += len(bodies)
        rows = [(agent, n, n, "progress", n.to_bytes(16, "big"), body) for n, body in enumerate(bodies, first)]
        return EVENT, rows

    async def messages(self, agent: str, bodies: Sequence[str]) -> None:
        await self.write(self._messages(agent, bodies), self._head(agent))

    async def call(self, agent: str, position: int, body: str) -> None:
        await self.write(self._call(agent, position, body), self._head(agent))

    async def info(self, agent: str, body: str, metadata: Sequence[tuple[str, str]]) -> None:
        await self.write((INFO, [(agent, "{}", bytes(16), body)]), self._head(agent))

    async def events(self, agent: str, bodies: Sequence[str]) -> None:
        await self.write(self._events(agent, bodies), self._head(agent))

    async def turn(
        self, agent: str, messages: Sequence[str], call: tuple[int, str], info: str, events: Sequence[str]
    ) -> None:
        await self.write(
            self._messages(agent, messages),
            self._call(agent, *call),
            (INFO, [(agent, "{}", bytes(16), info)]),
            self._events(agent, events),
            self._head(agent),
        )
