"""The tables: made once, upgraded in place, refused when newer, and good for partitions and other schemas."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from kode_conformance.values import samples
from kode_postgres import PostgresStore
from kode_postgres.options import PostgresOptions
from kode_postgres.schema import Tables, script, statements
from kode_postgres.testing.servers import Server

from kode_core import CorruptRecordError, StoreReadOnlyError, StoreUnavailableError

DATA: Final = Path(__file__).parent / "data"


@contextlib.asynccontextmanager
async def connected(address: str):
    con = await asyncpg.connect(address)
    try:
        yield con
    finally:
        await con.close()


async def test_twenty_first_starts_at_once(database: str) -> None:
    """Twenty stores that open an empty database at once all succeed (OPS-7)."""
    stores = [PostgresStore(database, schema="fresh", max=1) for _ in range(20)]
    await asyncio.gather(*(store.open() for store in stores))
    await asyncio.gather(*(store.append_messages("a", samples.messages(1)) for store in stores))
    assert len(await stores[0].load_messages("a")) == 20
    await asyncio.gather(*(store.close() for store in stores))


async def test_a_schema_that_is_named_and_one_that_is_found_are_one(database: str) -> None:
    """Stores with ``schema="public"`` and without a schema open an empty database at once, and wake each other."""
    stores = [PostgresStore(database, schema=name, max=2) for name in (None, "public") * 5]
    await asyncio.gather(*(store.open() for store in stores))
    assert {store._context.engine.tables.identity for store in stores} == {"public.kode_"}  # type: ignore[attr-defined]
    await stores[0].append_messages("a", samples.messages(1))
    assert len(await stores[1].load_messages("a")) == 1
    await asyncio.gather(*(store.close() for store in stores))


async def test_the_schema_of_the_search_path_is_found(database: str) -> None:
    """Also one whose name has to be quoted, and also when the tables are there already."""
    name = database.rpartition("/")[2]
    await Server(database).execute(
        'CREATE SCHEMA "We ird"', f'ALTER DATABASE "{name}" SET search_path = "We ird", public'
    )
    for _ in range(2):
        async with PostgresStore(database) as store:
            await store.append_messages("a", samples.messages(1))
            assert store._context.engine.tables.identity == "We ird.kode_"  # type: ignore[attr-defined]


async def test_the_printed_schema_is_the_one_that_is_made(database: str) -> None:
    """What ``kode schema`` prints makes the tables; a store that may not make any opens them, and else says so."""
    with pytest.raises(StoreUnavailableError, match="no tables of kode and create is off; run what 'kode schema post"):
        await PostgresStore(database, create=False, schema="bots").open()
    async with connected(database) as con:
        await con.execute(script(PostgresOptions(schema="bots")))
    async with PostgresStore(database, create=False, schema="bots") as store:
        await store.save_turn("a", messages=samples.messages(3), info=samples.info("a"), events=samples.events(3))
        assert await store.load_messages("a") == samples.messages(3)
    async with PostgresStore(database, create=False, schema="bots") as store:
        assert await store.list() == ["a"]


@pytest.mark.parametrize("table", ["agents", "doc_terms", "leases"])
async def test_a_table_that_was_dropped(database: str, table: str) -> None:
    """An open store says what to do when a call needs it, or its health is asked for, and no store opens without it, or
    makes another one.
    """
    said = f'"bots"."kode_{table}" is missing, which "bots"."kode_meta" says were made: put back a backup; '
    async with PostgresStore(database, schema="bots") as store:
        await store.save_turn("a", messages=samples.messages(2), info=samples.info("a"))
        async with connected(database) as con:
            await con.execute(f"DROP TABLE bots.kode_{table} CASCADE")
        health = await store.health_check()
        assert not health.healthy and health.database is not None and said in str(health.database.problem)
        with pytest.raises(StoreUnavailableError, match="a table of kode is missing: if it was dropped, put back a"):
            await store.save_turn("b", messages=samples.messages(1), info=samples.info("b"))
            await store.acquire_agent_lock("a")
            await store.query_documents("notes", tags={"run": "r1"})
    for create in (True, False):
        with pytest.raises(StoreUnavailableError) as info:
            await PostgresStore(database, schema="bots", create=create).open()
        assert said in str(info.value)
        assert "drop the other tables and run what 'kode schema postgres --schema bots --print' prints" in str(
            info.value
        )


async def test_all_tables_were_dropped(database: str) -> None:
    """The store that was open says so; the next one makes them anew, unless it may not, and then says what to run."""
    async with PostgresStore(database, schema="bots") as store:
        await store.save_turn("a", messages=samples.messages(2), info=samples.info("a"))
        async with connected(database) as con:
            await con.execute("DROP SCHEMA bots CASCADE")
        assert "put back a backup" in str((await store.health_check()).database)
        for call in (store.list(), store.save_info("a", samples.info("a")), store.check_consistency()):
            with pytest.raises(StoreUnavailableError, match="run what 'kode schema postgres --print' prints"):
                await call
    with pytest.raises(StoreUnavailableError, match="run what 'kode schema postgres --schema bots --print' prints"):
        await PostgresStore(database, schema="bots", create=False).open()
    async with PostgresStore(database, schema="bots") as store:
        assert await store.list() == []
        async with connected(database) as con:
            await con.execute("DROP TABLE bots.kode_meta")
    with pytest.raises(
        StoreUnavailableError, match="tables of these names exist, and no kode_meta tells their version"
    ):
        await PostgresStore(database, schema="bots").open()


@pytest.mark.parametrize("table", ["leases", "messages"])
async def test_an_old_store_without_a_table_is_not_migrated(database: str, table: str) -> None:
    """It is refused before its first step, and stays as it is for the version that made it."""
    async with connected(database) as con:
        await con.execute((DATA / "version_1.sql").read_text())
        await con.execute(f"DROP TABLE kode_{table}")
    with pytest.raises(StoreUnavailableError, match=f'"kode_{table}" is missing, which "kode_meta" says were made'):
        await PostgresStore(database).open()
    async with connected(database) as con:
        assert await con.fetchval("SELECT value FROM kode_meta WHERE key = 'schema_version'") == 1
        assert await con.fetchval("SELECT to_regclass('kode_doc_terms')") is None
        await con.execute("UPDATE kode_meta SET value = -1 WHERE key = 'schema_version'")
    with pytest.raises(CorruptRecordError, match="its schema_version is -1; put back a backup"):
        await PostgresStore(database).open()


DROPPED = [("texts",), ("text_index",), ("texts", "text_index")]


@pytest.mark.parametrize("action", ["drop", "rebuild"])
@pytest.mark.parametrize("tables", DROPPED, ids="+".join)
async def test_an_index_of_texts_without_a_table(database: str, tables: tuple[str, ...], action: str) -> None:
    """The health names the table and the commands that mend the index, and no opening removes anything."""
    names = [f'"bots"."kode_{table}"' for table in tables]
    said = f"{' and '.join(names)} of the index of texts {'is' if len(names) == 1 else 'are'} missing"
    async with PostgresStore(database, schema="bots", text_index=True) as store:
        await store.append_messages("a", samples.messages(2))
        async with connected(database) as con:
            await con.execute(f"DROP TABLE {', '.join(names)} CASCADE")
        for one in (store, PostgresStore(database, schema="bots")):
            health = await one.health_check()
            assert not health.healthy and said in str(health.database)
            if "texts" in tables:
                with pytest.raises(StoreUnavailableError, match="run kode text-index drop, or rebuild"):
                    await one.append_messages("a", samples.messages(1))
            assert await one.load_messages("a") == samples.messages(2)
            await one.close()
    with pytest.raises(StoreUnavailableError, match="let the tables' owner run kode text-index drop, or rebuild"):
        await PostgresStore(database, schema="bots", text_index=True).open()
    url = f"{database}?schema=bots"
    command = [sys.executable, "-m", "kode_core.cli", "text-index", action, "--store", url]
    run = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    async with PostgresStore(database, schema="bots") as store:
        assert (await store.health_check()).healthy
        await store.append_messages("a", [samples.message(text="rare words")])
        assert len(await store.query_messages(contains="rare words")) == 1
        assert ((await store.get_metrics()).storage.texts_waiting is not None) == (action == "rebuild")


async def test_a_table_of_another_program_with_a_name_of_the_index(database: str) -> None:
    """It is left alone, and the store is healthy."""
    async with PostgresStore(database, schema="bots") as store:
        async with connected(database) as con:
            await con.execute("CREATE TABLE bots.kode_texts (mine text)")
            await con.execute("INSERT INTO bots.kode_texts VALUES ('precious')")
        assert (await store.health_check()).healthy
        await store.append_messages("a", samples.messages(1))
    async with PostgresStore(database, schema="bots"), connected(database) as con:
        assert await con.fetchval("SELECT mine FROM bots.kode_texts") == "precious"


async def test_many_make_one_index_of_texts(database: str) -> None:
    """Stores that are opened at once, and want an index, all open (OPS-7)."""
    async with PostgresStore(database) as store:
        await store.append_messages("a", samples.messages(3))
    for _ in range(3):
        stores = [PostgresStore(database, text_index=True, max=2) for _ in range(6)]
        await asyncio.gather(*(one.open() for one in stores))
        await asyncio.gather(*(one.close() for one in stores))
        async with connected(database) as con:
            assert await con.fetchval("SELECT count(*) FROM kode_text_index") == 1
            await con.execute("DROP TABLE kode_text_index, kode_texts CASCADE; DROP FUNCTION kode_texts_note CASCADE")


async def test_a_user_who_may_not_make_tables(server: Server, database: str) -> None:
    """A user without the right to make tables is told which right, and works with those that are there."""
    async with connected(database) as con:
        name = f"limited_{database.rpartition('_')[2]}"
        await con.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'pw'")
    limited = database.replace(server.dsn.split("//")[1].split("@")[0], f"{name}:pw")
    with pytest.raises(
        StoreReadOnlyError, match="the user lacks a right; see GRANT, or 'kode schema postgres --print'"
    ):
        await PostgresStore(limited).open()
    async with PostgresStore(database) as store:
        await store.save_messages("a", samples.messages(1))
    async with connected(database) as con:
        await con.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}")
    async with PostgresStore(limited) as store:
        await store.append_messages("a", samples.messages(1, 1))
        assert await store.load_messages("a") == samples.messages(2)
    async with connected(database) as con:
        await con.execute(f"DROP OWNED BY {name}")
        await con.execute(f"DROP ROLE {name}")


async def test_a_user_who_may_make_tables_and_no_schemas(server: Server, database: str) -> None:
    """A schema that is there is used without the right to make one; where it is missing, the right is."""
    name = f"owner_{database.rpartition('_')[2]}"
    mine = database.replace(server.dsn.split("//")[1].split("@")[0], f"{name}:pw")
    async with connected(database) as con:
        await con.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'pw'; CREATE SCHEMA bots AUTHORIZATION {name}")
    async with PostgresStore(mine, schema="bots") as store:
        await store.append_messages("a", samples.messages(1))
        assert store._context.engine.tables.identity == "bots.kode_"  # type: ignore[attr-defined]
    with pytest.raises(StoreReadOnlyError, match="the user lacks a right"):
        await PostgresStore(mine, schema="others").open()
    async with connected(database) as con:
        await con.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_stores_beside_each_other(database: str) -> None:
    """Schemas and prefixes keep stores apart in one database, and leave the tables of others alone."""
    async with connected(database) as con:
        await con.execute("CREATE TABLE messages (x int); INSERT INTO messages VALUES (1)")
    kinds = [{}, {"schema": "s"}, {"table_prefix": "bot_"}, {"schema": "s", "table_prefix": "Bot_"}]
    stores = [PostgresStore(database, **how) for how in kinds]
    for i, store in enumerate(stores):
        await store.save_messages("a", samples.messages(i + 1))
    assert [len(await store.load_messages("a")) for store in stores] == [1, 2, 3, 4]
    for store in stores:
        await store.close()
    async with connected(database) as con:
        assert await con.fetchval("SELECT sum(x) FROM messages") == 1


async def test_tables_in_partitions(database: str) -> None:
    """Every key begins with the agent, so that the tables can be partitioned by it, and all works as before."""
    tables = Tables(PostgresOptions())
    async with connected(database) as con:
        for statement in statements(tables, partitions=4):
            await con.execute(statement)
    async with PostgresStore(database) as store:
        for agent in ("a", "b", "c", "d"):
            await store.save_turn(
                agent,
                messages=samples.messages(3),
                tool_calls=[samples.tool_call(1)],
                todos=samples.todos("t"),
                info=samples.info(agent, metadata={"userId": agent}),
                events=samples.events(4),
            )
            await store.append_messages(agent, samples.messages(1, 3))
            await store.save_messages(agent, samples.messages(2))
        forks = await store.batch_fork("a", 3)
        assert [s.agent_id for s in await store.query_sessions(user_id="b")] == ["b"]
        assert len(await store.query_messages(limit=100)) == 2 * (4 + len(forks))
        async with store.acquire_agent_lock("a"):
            await store.delete("a")
        assert (await store.check_consistency()).consistent
        metrics = await store.get_metrics()
        assert metrics.storage.db_size_bytes
        assert metrics.storage.db_size_bytes > 100_000
        for number in range(40):  # so many agents have a row in each partition
            await store.save_info(f"agent-{number}", samples.info(f"agent-{number}"))
    async with connected(database) as con:
        used = [await con.fetchval(f"SELECT count(*) FROM kode_agents_{part}") for part in range(4)]
        assert all(used)


async def test_values_that_no_index_can_hold(database: str) -> None:
    """Keys of any legal length and form are found again: no index refuses them."""
    rng = random.Random(1)
    agent = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(85))
    key = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(1365))
    name = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(340))
    async with PostgresStore(database) as store:
        await store.save_snapshot(agent, samples.snapshot(key))
        call = samples.tool_call(1).replace(id=key, name=name * 4, state="FAILED")
        await store.save_turn(
            agent, tool_calls=[call], info=samples.info(agent, template_id=key * 3, metadata={key: key * 20})
        )
        await store.save_recovered_file(agent, samples.recovered(path=key))
        assert (await store.load_snapshot(agent, key)) == samples.snapshot(key)
        await store.upsert_tool_call_records(agent, [call.replace(result="done")])
        assert len(await store.query_tool_calls(tool_name=name * 4)) == 1
        assert len(await store.query_sessions(template_id=key * 3, metadata={key: key * 20})) == 1
