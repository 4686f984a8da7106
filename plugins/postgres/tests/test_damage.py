"""What becomes of a store in PostgreSQL whose rows were changed by hand."""

from __future__ import annotations

from typing import Final

import asyncpg
import pytest
from kode_conformance.values import samples
from kode_postgres import PostgresStore
from kode_postgres.testing.servers import Server

from kode_core import CorruptRecordError
from tests.damaged import ALL, Case, fill, judge

HUGE: Final = "9223372036854775807"


def one(*names: str) -> frozenset[str]:
    return frozenset(names)


def row(table: str, column: str, value: str, reads: str, where: str) -> Case:
    statement = f"UPDATE kode_{table} SET {column} = {value} WHERE agent_id = 'a' AND {where}"
    return Case(statement, one(*reads.split()), one(reads) if table in ("messages", "tool_calls") else one())


def head(column: str, value: str, fails: frozenset[str], left_out: frozenset[str] = frozenset()) -> Case:
    return Case(f"UPDATE kode_agents SET {column} = {value} WHERE agent_id = 'a'", fails, left_out)


EVENTS: Final = "events events_by_offset"
CASES: Final = [
    *(row(t, "body", "'null'", t, "position = 1") for t in ("messages", "tool_calls")),
    *(row(t, "digest", "''", t, "position = 1") for t in ("messages", "tool_calls")),
    *(row("messages", "position", v, "messages", "position = 1")._replace(left_out=one()) for v in ("-7", "17", HUGE)),
    row("docs", "body", "'{}'", "todos", "kind = 'todos'"),
    row("docs", "digest", "''", "todos", "kind = 'todos'"),
    row("docs", "kind", "'zzz'", "", "kind = 'todos'")._replace(changes=one("todos")),
    row("docs", "time", "-5", "", "kind = 'todos'"),
    row("events", "body", "'5'", EVENTS, "seq = 2"),
    row("events", "seq", "-5", "", "seq = 2")._replace(changes=one("events")),
    Case("UPDATE kode_infos SET body = '{}' WHERE agent_id = 'a'", one("info"), one("sessions")),
    head("message_version", HUGE, ALL - {"tool_calls", "stats"}),
    head("message_version", "-7", ALL - {"tool_calls", "stats"}),
    head("message_count", HUGE, ALL - {"tool_calls"}, one("sessions")),
    head("message_count", "-7", ALL - {"tool_calls"}, one("sessions")),
    head("tool_call_count", "-7", ALL - {"messages"}),
    head("updated_at", HUGE, one("info", "exists")),
    head("last_offset", "0", one()),
    head("template_id", "NULL", one("info", "exists")),
    head("created_at", "NULL", one("info", "exists")),
    Case("DELETE FROM kode_agents WHERE agent_id = 'a'", ALL),
    Case("DELETE FROM kode_infos WHERE agent_id = 'a'", one("info", "exists"), one("sessions")),
    Case("DELETE FROM kode_messages WHERE agent_id = 'a'", one("messages")),
    *(Case(f"DELETE FROM kode_messages WHERE agent_id = 'a' AND position = {n}", one("messages")) for n in (0, 2, 4)),
    Case("DELETE FROM kode_tool_calls WHERE agent_id = 'a' AND position = 0", one("tool_calls", "stats")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.statement)
async def test_damage_of_a_row(server: Server, schema: str, case: Case) -> None:
    """Calls that need the row fail by its name, searches leave it out and name it; nothing else is any different."""
    con = await asyncpg.connect(server.dsn, server_settings={"search_path": schema})
    async with PostgresStore(server.dsn, schema=schema) as store:
        await fill(store)

    async def damage() -> None:
        assert not (await con.execute(case.statement)).endswith(" 0")

    try:
        await judge(lambda: PostgresStore(server.dsn, schema=schema), damage, case)
    finally:
        await con.close()


async def test_an_append_replaces_nothing_that_a_head_does_not_know(server: Server, schema: str) -> None:
    """Where the head is gone, or counts too little, the rows that are there stay, and the write names the agent."""
    con = await asyncpg.connect(server.dsn, server_settings={"search_path": schema})
    rows = "SELECT agent_id, position, body::text FROM kode_messages ORDER BY agent_id, position"
    async with PostgresStore(server.dsn, schema=schema) as store:
        await fill(store)
        await con.execute("UPDATE kode_agents SET message_count = 3 WHERE agent_id = 'a'")
        await con.execute("DELETE FROM kode_agents WHERE agent_id = 'b'")
        before = await con.fetch(rows)
        for agent_id in ("a", "b"):
            with pytest.raises(CorruptRecordError, match="a row stands where its head says that there is none") as info:
                await store.append_messages(agent_id, samples.messages(1))
            assert info.value.record == f"agent {agent_id!r}"
        assert await con.fetch(rows) == before
    await con.close()
