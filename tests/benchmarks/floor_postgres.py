"""The floor of PostgreSQL: bare asyncpg."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache, lru_cache
from typing import Any, NamedTuple, Self

import asyncpg
from kode_postgres.options import PostgresOptions
from kode_postgres.schema import KEPT_OPS, Tables, statements

from tests.benchmarks.floor import Commit, Floor

__all__ = ["PostgresFloor"]

_Rows = Sequence[Sequence[Any]]


class _Table(NamedTuple):
    """A table's columns with their types, and what to do with a row that is there."""

    columns: Mapping[str, str]
    conflict: str = ""


_HEAD = ("message_version", "message_count", "tool_call_version", "tool_call_count", "updated_at", "last_offset")
_LISTED = {"agent_id": "text", "position": "bigint", "created_at": "bigint"}
_BODY = {"digest": "bytea", "body": "json"}
_TABLES = {
    "agents": _Table(
        {"agent_id": "text", **dict.fromkeys(_HEAD, "bigint")},
        # The ids and times of the last writes are rows of the store, too: as long as there, and changed as there.
        "ON CONFLICT (agent_id) DO UPDATE SET (message_count, tool_call_count, updated_at, last_offset, ops, op_times)"
        " = (excluded.message_count, excluded.tool_call_count, excluded.updated_at, excluded.last_offset,"
        f" (array_prepend(excluded.updated_at, a.ops))[1:{KEPT_OPS}],"
        f" (array_prepend(excluded.updated_at, a.op_times))[1:{KEPT_OPS}])",
    ),
    "offsets": _Table(
        {"agent_id": "text", "last_offset": "bigint"},
        "ON CONFLICT (agent_id) DO UPDATE SET last_offset = excluded.last_offset",
    ),
    "infos": _Table(
        {"agent_id": "text", "metadata": "jsonb", **_BODY},
        "ON CONFLICT (agent_id) DO UPDATE SET (metadata, digest, body)"
        " = (excluded.metadata, excluded.digest, excluded.body)",
    ),
    "messages": _Table({**_LISTED, "role": "text", "content_types": "text", **_BODY}),
    "tool_calls": _Table(
        {
            **_LISTED,
            **dict.fromkeys(("call_id", "tool_name", "state"), "text"),
            **dict.fromkeys(("is_error", "has_approval"), "boolean"),
            **_BODY,
        }
    ),
    "events": _Table({"agent_id": "text", '"offset"': "bigint", "seq": "bigint", "channel": "text", **_BODY}),
}
_COPIES = {
    "agents": f"{', '.join(_HEAD)}, ops, op_times, template_id, created_at",
    "infos": "metadata, digest, body",
    "messages": ", ".join([*_TABLES["messages"].columns][1:]),
    "tool_calls": ", ".join([*_TABLES["tool_calls"].columns][1:]),
}


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """Without the round trip that resets a session when it is given back to the pool."""

    def get_reset_query(self) -> str:
        return ""


class PostgresFloor(Floor):
    """By bare asyncpg, in one of two ways.

    As fast as it goes: each commit is one statement, one round trip; rows come as arrays. Or, with *usual*, as the
    manual of asyncpg has it: ``async with pool.acquire() as con, con.transaction()`` and ``executemany``.
    """

    def __init__(self, pool: Any, schema: str, *, usual: bool) -> None:
        self._pool = pool
        self._tables = Tables(PostgresOptions(schema=schema))
        self._usual = usual
        self._together = cache(self._make_together)
        self._one = cache(self._make_one)

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, schema: str, *, most: int, usual: bool = False) -> AsyncIterator[Self]:
        """The tables, made unless they are there, and a pool of *most* connections."""
        async with asyncpg.create_pool(
            dsn,
            min_size=0,
            max_size=most,
            connection_class=asyncpg.Connection if usual else _Connection,
            server_settings={"synchronous_commit": "on"},
        ) as pool:
            floor = cls(pool, schema, usual=usual)
            async with pool.acquire() as con, con.transaction():
                if await con.fetchval("SELECT to_regclass($1)", floor._tables.meta) is None:
                    for statement in statements(floor._tables):
                        await con.execute(statement)
                    await con.execute(_DEFAULTS.format(floor._tables.agents))
            yield floor

    async def commit(self, commit: Commit) -> None:
        rows = _rows(commit)
        async with self._pool.acquire() as con:
            if not self._usual:
                columns = [list(column) for table in rows.values() for column in zip(*table, strict=True)]
                await con.fetch(self._together(tuple(rows)), *columns)
                return
            async with con.transaction():
                for name, table in rows.items():
                    await con.executemany(self._one(name), table)

    async def load(self, agent: str) -> list[Any]:
        statement = f"SELECT body FROM {self._tables.messages} WHERE agent_id = $1 ORDER BY position"
        async with self._pool.acquire() as con:
            return [json.loads(body) for (body,) in await con.fetch(statement, agent)]

    async def fork(self, agent: str, children: Sequence[str]) -> None:
        copies = [
            f"INSERT INTO {getattr(self._tables, table)} (agent_id, {columns}) SELECT c, {columns}"
            f" FROM {getattr(self._tables, table)}, unnest($2::text[]) c WHERE agent_id = $1"
            for table, columns in _COPIES.items()
        ]
        async with self._pool.acquire() as con, con.transaction():
            for statement in copies:
                await con.execute(statement, agent, children)

    # --- statements

    def _insert(self, name: str) -> str:
        table = getattr(self._tables, "agents" if name == "offsets" else name)
        return f"INSERT INTO {table} AS a ({', '.join(_TABLES[name].columns)})"

    def _make_together(self, names: Sequence[str]) -> str:
        """One statement for rows of all these tables."""
        parts, number = [], 0
        for name in names:
            columns, arrays, values = _TABLES[name].columns, [], []
            for column, kind in columns.items():
                number += 1
                is_json = kind.startswith("json")
                arrays.append(f"${number}::{'text' if is_json else kind}[]")
                values.append(f"r.{column}::{kind}" if is_json else f"r.{column}")
            source = f"unnest({', '.join(arrays)}) AS r ({', '.join(columns)})"
            parts.append(f"{self._insert(name)} SELECT {', '.join(values)} FROM {source} {_TABLES[name].conflict}")
        first = ", ".join(f"w{i} AS ({part})" for i, part in enumerate(parts[:-1]))
        return f"WITH {first} {parts[-1]}" if first else parts[-1]

    def _make_one(self, name: str) -> str:
        """A statement for one row of a table."""
        columns = _TABLES[name].columns
        marks = ", ".join(f"${i}" for i in range(1, len(columns) + 1))
        return f"{self._insert(name)} VALUES ({marks}) {_TABLES[name].conflict}"


_DEFAULTS = "ALTER TABLE {} " + ", ".join(
    f"ALTER {column} SET DEFAULT {value}"
    for column, value in {
        **dict.fromkeys(("ops", "op_times"), "'{{}}'"),
        **dict.fromkeys(_HEAD, 0),
        "template_id": "'assistant'",
        "created_at": 1,
    }.items()
)


@lru_cache(1000)
def _metadata(info: str) -> str:
    """What is kept beside the body for queries; made beforehand, too."""
    return json.dumps(json.loads(info)["metadata"])


def _rows(c: Commit) -> dict[str, _Rows]:
    """The rows of each table, which has some; every commit changes the agent's head."""
    now, nothing = int(time.time() * 1000), bytes(16)
    last = c.event_count + len(c.events)
    rows: dict[str, _Rows] = {}
    if c.is_events_only:
        rows["offsets"] = [(c.agent, last)]
    else:
        counts = (1, c.message_count + len(c.messages), 1, c.call_count + len(c.calls))
        rows["agents"] = [(c.agent, *counts, now, last)]
    if c.messages:
        rows["messages"] = [
            (c.agent, i, now, "user", "\ntext\n", nothing, body) for i, body in enumerate(c.messages, c.message_count)
        ]
    if c.calls:
        rows["tool_calls"] = [
            (c.agent, i, now, f"call-{i}", "bash", "COMPLETED", False, False, nothing, body)
            for i, body in enumerate(c.calls, c.call_count)
        ]
    if c.info is not None:
        rows["infos"] = [(c.agent, _metadata(c.info), nothing, c.info)]
    if c.events:
        digests = c.digests()
        rows["events"] = [
            (c.agent, c.event_count + i + 1, c.event_count + i, "progress", digests[i], body)
            for i, body in enumerate(c.events)
        ]
    return rows
