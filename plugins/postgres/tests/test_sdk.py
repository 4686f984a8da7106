"""A database that the KODE SDK's ``PostgresStore`` wrote is read whole, and not changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from kode_core import ConfigurationError, StorageError, create_extended_store
from kode_core.formats.kode_sdk import import_agents, open_source
from tests.sdk_stores import CALL, CREATED, MESSAGES, agent_files, info, rows, snapshot, write

TABLES: Final = """
    CREATE TABLE agents (agent_id TEXT PRIMARY KEY, template_id TEXT NOT NULL, created_at TIMESTAMP NOT NULL,
        config_version TEXT NOT NULL, lineage JSONB NOT NULL, message_count INTEGER NOT NULL DEFAULT 0,
        last_sfp_index INTEGER NOT NULL DEFAULT -1, last_bookmark JSONB, breakpoint TEXT, metadata JSONB NOT NULL);
    CREATE TABLE messages (id TEXT PRIMARY KEY, agent_id TEXT NOT NULL REFERENCES agents, role TEXT NOT NULL,
        content JSONB NOT NULL, seq INTEGER NOT NULL, metadata JSONB, created_at BIGINT NOT NULL);
    CREATE TABLE tool_calls (id TEXT PRIMARY KEY, agent_id TEXT NOT NULL REFERENCES agents, name TEXT NOT NULL,
        input JSONB NOT NULL, state TEXT NOT NULL, approval JSONB NOT NULL, result JSONB, error TEXT,
        is_error BOOLEAN DEFAULT FALSE, started_at BIGINT, completed_at BIGINT, duration_ms INTEGER,
        created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, audit_trail JSONB NOT NULL);
    CREATE TABLE snapshots (agent_id TEXT NOT NULL REFERENCES agents, snapshot_id TEXT NOT NULL,
        messages JSONB NOT NULL, last_sfp_index INTEGER NOT NULL, last_bookmark JSONB NOT NULL,
        created_at TIMESTAMP NOT NULL, metadata JSONB, PRIMARY KEY (agent_id, snapshot_id));
"""
"""As the SDK 2.7 makes them."""
JSONB: Final[list[dict[str, Any]]] = [
    {"role": "user", "content": [{"type": "text", "text": "Where is my bag?"}]},
    MESSAGES[1],
]
"""Messages that JSONB can hold: it refuses halves of characters."""


async def fill(con: Any, count: int) -> None:
    await con.execute(TABLES)
    for n in range(count):
        agent_id = f"agt-{n}"
        tables = {
            "agents": [info(agent_id)],
            "messages": JSONB,
            "tool_calls": [CALL, {**CALL, "id": "c-0", "isError": None}],
            "snapshots": [snapshot("sfp-1", JSONB)],
        }
        for table, records in tables.items():
            _, values = rows(table, agent_id, records, str)
            kinds = await con.fetch(
                "SELECT data_type FROM information_schema.columns WHERE table_name = $1 AND table_schema ="
                " current_schema() ORDER BY ordinal_position",
                table,
            )
            marks = ", ".join(f"${i}::text::{kind[0]}" for i, kind in enumerate(kinds, 1))
            texts = [[None if value is None else str(value) for value in row] for row in values]
            await con.executemany(f"INSERT INTO {table} VALUES ({marks})", texts)


async def test_each_kind_of_a_database(database: str, tmp_path: Path) -> None:
    con = await asyncpg.connect(database)
    await con.execute("SET timezone = 'America/New_York'")
    await fill(con, 3)
    for n in range(3):
        files = agent_files(f"agt-{n}")
        kept = {
            name: files[name] for name in files if not name.startswith(("meta", "snapshots", "runtime/m", "runtime/to"))
        }
        write(tmp_path / f"files/agt-{n}", kept)
    written = await con.fetchval("SELECT pg_current_wal_insert_lsn()::text")
    async with create_extended_store("memory:") as store:
        async with open_source(database, tmp_path / "files") as source:
            found = [one async for one in import_agents(source, store)]
        assert [(one.agent_id, one.outcome) for one in found] == [(f"agt-{n}", "imported") for n in range(3)]
        whole = await store.load_agent("agt-1")
        async with open_source(database, tmp_path / "files") as source:
            assert {one.outcome async for one in import_agents(source, store)} == {"known"}
    assert whole is not None and whole.info is not None
    assert whole.info.created_at == whole.snapshots[0].created_at == CREATED
    assert [(call.id, call.is_error, call.created_at) for call in whole.tool_calls] == [
        ("agt-1-c-1", True, CREATED + 3_000),
        ("agt-1-c-0", None, CREATED + 3_000),
    ]
    assert (whole.tool_calls[0].input, whole.tool_calls[0].duration_ms) == ({"n": 1.5}, 1000)
    assert whole.message_times == (CREATED + 8_000,) * 2
    assert len(whole.events) == 4 and len(whole.recovered_files) == 1
    assert await con.fetchval("SELECT pg_current_wal_insert_lsn()::text") == written
    await con.close()


async def test_a_schema_of_its_own(database: str) -> None:
    con = await asyncpg.connect(database)
    await con.execute("CREATE SCHEMA old_one; SET search_path TO old_one")
    await fill(con, 1)
    await con.close()
    url = f"{database}{'&' if '?' in database else '?'}schema=old_one"
    with pytest.raises(ConfigurationError, match=r"name their schema with \?schema=NAME"):
        async with open_source(database):
            pass
    with pytest.raises(ConfigurationError, match="name it with --files DIR"):
        async with open_source(url):
            pass
    async with open_source(url, without_files=True) as source:
        assert [one.outcome async for one in import_agents(source, None)] == ["importable"]
        assert list(source.remarks) == ["without files: events, todos, history and media are not brought"]


async def test_databases_without_the_tables_are_refused(database: str) -> None:
    with pytest.raises(ConfigurationError, match="has not the tables of the KODE SDK"):
        async with open_source(database, without_files=True):
            pass
    with pytest.raises(StorageError):
        async with open_source("postgres://127.0.0.1:1/nowhere?connect_timeout=1", without_files=True):
            pass
