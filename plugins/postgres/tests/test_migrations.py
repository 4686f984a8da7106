"""Tables that version 1 of the schema wrote become the present ones, whatever comes in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec
import pytest
from kode_conformance.kills.writes import portrait
from kode_conformance.values import samples
from kode_postgres import PostgresStore, schema
from kode_postgres.migrations import version_of
from kode_postgres.options import PostgresOptions
from kode_postgres.schema import SCHEMA_VERSION, Step, Tables, script, steps
from kode_postgres.testing.servers import Server

from kode_core import SchemaVersionError, StorageError, StoreClosedError, StoreReadOnlyError, StoreUnavailableError

DATA: Final = Path(__file__).parent / "data"
"""A store as version 1 wrote it, and what it was read as then. Never made anew."""
TABLES: Final = Tables(PostgresOptions())
INDEXES: Final = [step.makes for step in steps(TABLES, 1) if step.makes]
OPEN: Final = """
import asyncio, sys
from kode_postgres import PostgresStore

async def main():
    async with PostgresStore(sys.argv[1], timeout_ms=4000) as store:
        print(len(await store.load_messages("agent-00")))

asyncio.run(main())
"""
"""A process that opens the store and reads."""


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[Any]:
    con = await asyncpg.connect(address)
    try:
        yield con
    finally:
        await con.close()


@pytest.fixture
async def old(database: str) -> str:
    """The address of a database with tables of version 1."""
    async with connected(database) as con:
        await con.execute((DATA / "version_1.sql").read_text())
        assert await version_of(con, TABLES) == 1
    return database


def plain(value: Any) -> Any:
    """A value as JSON, without what is absent."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if one is not None and key != "__extra__"}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


async def see_all(address: str, **options: Any) -> None:
    """See that all that version 1 wrote is read, found and written on by this one, and fits together."""
    then = json.loads((DATA / "version_1.json").read_text())
    async with PostgresStore(address, **options) as store:
        for agent_id, found in then["agents"].items():
            assert plain(msgspec.to_builtins(await portrait(store, agent_id))) == found | {"documents": []}
        assert [one.agent_id for one in await store.query_sessions(limit=1000)] == then["sessions"]
        assert len(await store.query_messages(limit=10_000)) == then["messages"]
        assert len(await store.query_tool_calls(limit=10_000)) == then["calls"]
        assert len(await store.query_messages(role="system")) == 1
        assert len(await store.query_messages(content_type="image")) == 1
        assert {call.agent_id for call in await store.query_tool_calls(has_approval=True)} == {"rich é/'quoted'\\"}
        assert len(await store.query_tool_calls(state="FAILED")) == 14
        counts = [one.message_count for one in await store.query_sessions(sort_by="message_count", limit=3)]
        assert counts == [15, 14, 13]
        storage = (await store.get_metrics()).storage
        assert (storage.total_agents, storage.total_messages) == (len(then["sessions"]), then["messages"])
        assert (await store.check_consistency()).consistent
        await store.append_messages("agent-05", samples.messages(1))
        await store.append_event("gone-3", samples.event(1))
        offsets = [event.offset async for event in store.read_events("gone-3")]
        assert offsets == [7]  # and not one of those that were given before the agent was deleted
        async with store.acquire_agent_lock("gone-1") as lease:
            assert lease.token == 2
    async with connected(address) as con:
        assert await version_of(con, TABLES) == SCHEMA_VERSION


async def test_a_store_of_version_1(old: str) -> None:
    """All that version 1 wrote is read as it was read then, and written on; a second opening changes nothing."""
    await see_all(old)
    async with PostgresStore(old) as store:
        assert await store.load_messages("agent-05")


async def test_the_tables_are_those_of_a_new_store(old: str, server: Server) -> None:
    """Tables that were brought to this version have the same columns and indexes as new ones."""
    look = (
        "SELECT array_agg(format('%s %s %s', table_name, column_name, data_type) ORDER BY 1)::text FROM"
        " (SELECT * FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2, 3, 4) c UNION ALL"
        " SELECT array_agg(indexdef ORDER BY indexdef)::text FROM pg_indexes WHERE schemaname = 'public'"
    )
    found = []
    async with server.database() as name:
        for address in (old, server.url(name)):
            async with PostgresStore(address):
                pass
            async with connected(address) as con:
                found.append(await con.fetch(look))
    assert found[0] == found[1]


async def test_the_printed_steps(old: str) -> None:
    """``kode schema postgres --from 1 --print`` prints SQL that brings the tables to this version."""
    async with connected(old) as con:
        await con.execute(script(PostgresOptions(), 1))
    await see_all(old, create=False)
    assert script(PostgresOptions(), SCHEMA_VERSION) == ""


async def test_a_store_that_may_not_change_tables(old: str) -> None:
    """Without the permission of its options a store names the command, and leaves the tables as they are."""
    with pytest.raises(StoreUnavailableError, match=r"version 1 and create is off; .*postgres --from 1 --print"):
        await PostgresStore(old, create=False).open()
    async with connected(old) as con:
        assert await version_of(con, TABLES) == 1


async def test_a_user_who_may_not_change_tables(old: str, server: Server) -> None:
    """A user who does not own the tables is told which command somebody else has to run, and then works."""
    name = f"limited_{old.rpartition('_')[2]}"
    mine = old.replace(server.dsn.split("//")[1].split("@")[0], f"{name}:pw")
    async with connected(old) as con:
        await con.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'pw'")
        await con.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}")
    with pytest.raises(StoreReadOnlyError, match="of version 1, .* lacks the right.* 'kode schema postgres --from 1"):
        await PostgresStore(mine).open()
    async with connected(old) as con:
        assert await version_of(con, TABLES) == 1
        await con.execute(script(PostgresOptions(), 1))
    async with PostgresStore(mine) as store:
        await store.append_messages("agent-01", samples.messages(1))
    async with connected(old) as con:
        await con.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_a_newer_version_is_refused(old: str) -> None:
    """Tables of a newer version are refused, with what to upgrade, and stay as they are."""
    async with connected(old) as con:
        await con.execute("UPDATE kode_meta SET value = 99")
    with pytest.raises(SchemaVersionError, match=f"has schema 99, and this kode-postgres knows up to {SCHEMA_VERSION}"):
        await PostgresStore(old).open()


@contextlib.asynccontextmanager
async def halted(address: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """A transaction that writes tool calls, so that a migration stops in its middle.

    What is yielded waits until it does, and returns the number of the session that migrates.
    """
    async with connected(address) as writer, connected(address) as looker, writer.transaction():
        await writer.execute("LOCK TABLE kode_tool_calls IN ROW EXCLUSIVE MODE")

        async def wait() -> int:
            for _ in range(1000):
                found: int | None = await looker.fetchval(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                    " AND query LIKE 'CREATE INDEX%'"
                )
                if found is not None:
                    return found
                await asyncio.sleep(0.02)
            raise AssertionError("nobody migrates")

        yield wait


async def made(address: str) -> dict[str, int]:
    """The indexes of later versions that there are, and which they are."""
    async with connected(address) as con:
        found = await con.fetch("SELECT n, to_regclass(n)::oid FROM unnest($1::text[]) n", INDEXES)
    return {name: oid for name, oid in found if oid is not None}


async def test_no_deadline_ends_it(old: str) -> None:
    """Opening lasts longer than the deadlines of calls and the server's limit for statements, and then is done."""
    async with connected(old) as con:
        await con.execute(f"ALTER DATABASE {old.rpartition('/')[2]} SET statement_timeout = '500ms'")
        await con.execute(f"ALTER DATABASE {old.rpartition('/')[2]} SET lock_timeout = '100ms'")
    store = PostgresStore(old, timeout_ms=4000, command_timeout_millis=500, connection_timeout_millis=500)
    async with halted(old) as wait:
        opening = asyncio.ensure_future(store.open())
        await wait()
        reading = asyncio.ensure_future(store.load_messages("agent-00"))
        await asyncio.sleep(1.5)
        await wait()
        assert not opening.done()
    await opening
    assert len(await reading) == 4
    await store.close()


async def test_closing_ends_it(old: str) -> None:
    """A store that is closed while it brings tables to this version ends that, and the next one goes on."""
    store = PostgresStore(old, timeout_ms=4000)
    async with halted(old) as wait:
        opening = asyncio.ensure_future(store.open())
        await wait()
        await store.close()
        with pytest.raises(StoreClosedError):
            await opening
    assert 0 < len(await made(old)) < len(INDEXES)
    await see_all(old)


async def test_a_session_that_is_killed(old: str) -> None:
    """Where the server ends the session in the middle, another one goes on, and makes no step twice."""
    async with halted(old) as wait:
        opening = asyncio.ensure_future(PostgresStore(old, connection_timeout_millis=60_000).open())
        killed = await wait()
        before = await made(old)
        async with connected(old) as con:
            await con.execute("SELECT pg_terminate_backend($1)", killed)
        while await wait() == killed:
            assert not opening.done(), opening
            await asyncio.sleep(0.02)
    store = await opening
    assert before
    assert before.items() <= (await made(old)).items()
    await store.close()
    await see_all(old)


async def test_a_process_that_is_killed(old: str) -> None:
    """Where the process is killed in the middle, the next one goes on, and makes no step twice."""
    async with halted(old) as wait:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", OPEN, old)
        await wait()
        before = await made(old)
        process.kill()
        await process.wait()
    assert before
    await see_all(old)
    assert before.items() <= (await made(old)).items()


async def test_processes_at_once(old: str) -> None:
    """Processes that open a store while another one migrates wait for it, beyond their deadlines, and go on."""
    async with halted(old) as wait:
        processes = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", OPEN, old, stdout=asyncio.subprocess.PIPE)
            for _ in range(3)
        ]
        await wait()
        await asyncio.sleep(4.5)
        assert all(process.returncode is None for process in processes)
    answers = await asyncio.gather(*(process.communicate() for process in processes))
    assert [out for out, _ in answers] == [b"4\n"] * 3
    await see_all(old)


async def test_an_index_that_was_made_beforehand(old: str) -> None:
    """An index that somebody made is used as it is; one that was not made to its end is named, with the way out."""
    (step,) = [step for step in steps(TABLES, 1) if step.makes == '"kode_messages_roles"']
    concurrently = step.statements[0].replace("INDEX", "INDEX CONCURRENTLY", 1)
    async with connected(old) as con:
        await con.execute(concurrently)
        await con.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'kode_messages_roles'::regclass")
        with pytest.raises(StorageError, match='"kode_messages_roles" was not made to its end, .* DROP INDEX "kode_me'):
            await PostgresStore(old).open()
        await con.execute('DROP INDEX "kode_messages_roles"')
        await con.execute(concurrently)
    before = await made(old)
    await see_all(old)
    assert before.items() <= (await made(old)).items()


async def test_a_step_that_fails_changes_nothing(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is all or nothing: after one that failed the steps before it stay, and the older version still works."""

    def broken(tables: Tables, partitions: int) -> list[Step]:
        return [
            Step([f"ALTER TABLE {tables.agents} ADD COLUMN colour text", "UPDATE nonsense SET x = 1"]),
        ]

    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(StorageError, match="nonsense"):
            await PostgresStore(old).open()
    await see_all(old)


async def test_a_step_that_makes_no_index_is_done_once(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose work cannot be seen is done in the transaction that notes the version, and after the indexes."""

    def sixth(tables: Tables, partitions: int) -> list[Step]:
        index = 'CREATE INDEX IF NOT EXISTS "kode_docs_extra" ON kode_docs (time)'
        return [Step(["CREATE TABLE kode_marks (n integer)"]), Step([index], '"kode_docs_extra"')]

    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, sixth))
        for _ in range(2):
            async with PostgresStore(old) as store:
                assert len(await store.load_messages("agent-00")) == 4
        async with connected(old) as con:
            assert await version_of(con, TABLES) == SCHEMA_VERSION + 1
            assert await con.fetchval("SELECT to_regclass('kode_docs_extra')::text") == "kode_docs_extra"


STATISTICS: Final = (
    "SELECT array_agg(DISTINCT attstattarget::int) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
    " WHERE attname = 'metadata' AND relname ~ '^kode_infos(_[0-9]+)?$' AND relkind IN ('r', 'p')"
)


async def test_the_statistics_of_metadata_are_fine(old: str) -> None:
    """Tables that were brought to this version have the statistics of new ones."""
    await see_all(old)
    async with connected(old) as con:
        assert await con.fetchval(STATISTICS) == [1000]


async def test_tables_in_partitions(database: str) -> None:
    """Tables in partitions are brought to this version in place, too."""
    async with connected(database) as con:
        for statement in schema.MIGRATIONS[0](TABLES, 3)[0].statements:
            await con.execute(statement)
        await con.execute("INSERT INTO kode_meta VALUES ('schema_version', 1)")
    async with PostgresStore(database) as store:
        for number in range(9):
            await store.save_turn(f"a{number}", messages=samples.rich_messages(), info=samples.info(f"a{number}"))
        assert len(await store.query_messages(content_type="image")) == 9
        assert len(await store.query_sessions(sort_by="message_count")) == 9
        assert (await store.get_metrics()).storage.total_messages == 63
    assert len(await made(database)) == len(INDEXES)
    async with connected(database) as con:
        assert await con.fetchval(STATISTICS) == [1000]


async def test_many_at_once(old: str) -> None:
    """Ten stores that open tables of an older version at once all succeed, and each step is made once."""
    stores = [PostgresStore(old, max=2) for _ in range(10)]
    await asyncio.gather(*(store.open() for store in stores))
    await asyncio.gather(*(store.append_messages("new", samples.messages(1)) for store in stores))
    await asyncio.gather(*(store.close() for store in stores))
    async with PostgresStore(old) as store:
        assert len(await store.load_messages("new")) == 10
        assert (await store.check_consistency()).consistent


async def test_a_store_that_is_open_goes_on(old: str) -> None:
    """Between two steps others write, also stores of version 1: the steps hold no lock together."""
    async with connected(old) as con:
        for step in steps(TABLES, 1)[:-1]:
            async with con.transaction():
                for statement in step.statements:
                    await con.execute(statement)
            await con.execute(
                "INSERT INTO kode_messages VALUES ('other', (SELECT count(*) FROM kode_messages WHERE"
                """ agent_id = 'other'), 1, 'user', E'\\ntext\\n', decode('00', 'hex'), '{}')"""
            )
        assert (
            await con.fetchval("SELECT count(*) FROM kode_messages WHERE agent_id = 'other'")
            == len(steps(TABLES, 1)) - 1
        )
