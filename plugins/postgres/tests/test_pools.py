"""Pools: their counts, pools of the caller's, and connections that lead to a server that takes no writes any more."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from kode_conformance.servers import had
from kode_conformance.values import samples
from kode_postgres import PostgresStore, connection
from kode_postgres.connection import Connections
from kode_postgres.engine import PostgresEngine
from kode_postgres.testing.servers import LocalServer, Server

from kode_core import ConfigurationError, StoreReadOnlyError, StoreUnavailableError
from kode_core.report import ConnectionUse
from plugins.postgres.tests.bouncer import Bouncer


def connections_of(store: PostgresStore) -> Connections:
    engine = store._context.engine
    assert isinstance(engine, PostgresEngine)
    return engine.connections


async def use_of(store: PostgresStore) -> ConnectionUse:
    found = (await store.get_metrics()).connections
    assert found is not None
    return found


# --- What get_metrics counts ------------------------------------------------------------------------------------------


async def test_calls_that_wait_are_counted(server: Server, schema: str, tmp_path: Any) -> None:
    """The metrics say how many connections there are, how many are used, and how many calls wait for one; also with
    files next to the database.
    """
    async with PostgresStore(server.dsn, str(tmp_path / "files"), schema=schema, max=3) as store:
        engine = store._context.engine.inner  # type: ignore[attr-defined]
        read = engine.connections.read
        begun = 0

        async def hold(session: Any) -> None:
            nonlocal begun
            begun += 1
            await free.wait()

        free = asyncio.Event()
        calls = [asyncio.ensure_future(read(hold, seconds=20)) for _ in range(2)]
        async with asyncio.timeout(20):
            while begun < 2:
                await asyncio.sleep(0.01)
        assert await use_of(store) == ConnectionUse(most=3, open=3, busy=2, waiting=0, retries=0)
        calls += [asyncio.ensure_future(read(hold, seconds=20)) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert engine.connection_use() == ConnectionUse(most=3, open=3, busy=3, waiting=4, retries=0)
        calls.pop().cancel()
        await asyncio.sleep(0.05)
        assert engine.connection_use().waiting == 3
        free.set()
        await asyncio.gather(*calls)
        assert await use_of(store) == ConnectionUse(most=3, open=3, busy=0, waiting=0, retries=0)


async def test_attempts_that_are_made_again_are_counted(own_server: LocalServer) -> None:
    """After connections were ended, and while somebody keeps an agent locked; a quiet store counts none."""
    async with PostgresStore(own_server.dsn, max=1) as store:
        await store.append_messages("a", samples.messages(1))
        assert (await use_of(store)).retries == 0
        end = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE '%pg_sleep(1)%' AND pid <> pg_backend_pid()"
        )
        slow = asyncio.ensure_future(connections_of(store).read(lambda s: s.fetch("SELECT pg_sleep(1)")))
        while not await own_server.execute(end):
            await asyncio.sleep(0.01)
        await slow
        lost = (await use_of(store)).retries
        assert lost == 1
        con = await asyncpg.connect(own_server.dsn)
        async with con.transaction():
            await con.execute("SELECT 1 FROM kode_agents FOR UPDATE")
            call = asyncio.ensure_future(store.append_messages("a", samples.messages(1, 1)))
            async with asyncio.timeout(20):
                while (await use_of(store)).retries < lost + 3:
                    await asyncio.sleep(0.05)
            assert not call.done()
        await con.close()
        await call
        assert await store.load_messages("a") == samples.messages(2)


# --- A server that takes no writes any more ---------------------------------------------------------------------------


async def test_connections_to_a_server_that_takes_no_writes_are_replaced(own_server: LocalServer) -> None:
    """Sessions were opened while the server was read-only, as before it took over, or when another stood at its
    address: writes leave them for new ones, all at once and unseen.
    """
    await own_server.execute("CREATE DATABASE agents")
    async with PostgresStore(own_server.url("agents"), max=4) as store:
        await store.append_messages("a", samples.messages(1))
        await own_server.execute("ALTER DATABASE agents SET default_transaction_read_only = on")
        await connections_of(store).pool.expire_connections()
        for _ in range(2):
            await asyncio.gather(*(store.load_messages(f"a{n}") for n in range(8)))
        with pytest.raises(StoreReadOnlyError, match="connect to the primary"):
            await store.append_messages("a", samples.messages(1))
        connections_of(store)._renewed_at -= connection._RENEWED_AGAIN_S
        await own_server.execute("ALTER DATABASE agents RESET default_transaction_read_only")
        await asyncio.gather(
            *(store.append_messages(f"a{n}", samples.messages(1)) for n in range(20)),
            store.acquire_agent_lock("a"),
            store.delete("a"),
        )
        assert (await store.health_check()).healthy
        assert [len(await store.load_messages(f"a{n}")) for n in range(20)] == [1] * 20


async def test_a_server_that_takes_no_writes_is_not_connected_to_for_each(own_server: LocalServer) -> None:
    """Writes to a standby are refused, one after the other, over the connections that there are."""
    async with PostgresStore(own_server.dsn, max=2) as store:
        await store.append_messages("a", samples.messages(1))
    await own_server.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    await asyncio.sleep(0.3)
    async with PostgresStore(own_server.dsn, max=2) as store:
        processes = set()
        for n in range(12):
            with pytest.raises(StoreReadOnlyError):
                await store.append_messages("a", samples.messages(1))
            processes.add((await connections_of(store).read(lambda s: s.fetch("SELECT pg_backend_pid()")))[0][0])
            assert len(processes) <= 3, f"after {n + 1} writes"


# --- Pools of the caller's --------------------------------------------------------------------------------------------


async def test_a_pool_whose_statements_a_pooler_mixes_up_is_refused(bouncer: Bouncer) -> None:
    """When the store is opened, before anything fails at random; the pool goes on to be the caller's."""
    async with asyncpg.create_pool(bouncer.dsn, min_size=1, max_size=4) as pool:
        with pytest.raises(ConfigurationError, match="make the pool with statement_cache_size=0"):
            await PostgresStore(pool=pool).open()
        assert pool.get_size() - pool.get_idle_size() == 0
    with pytest.raises(ConfigurationError, match="make the pool with statement_cache_size=0"):
        await PostgresStore(bouncer.dsn, statement_cache_size=100).open()
    async with (
        asyncpg.create_pool(bouncer.dsn, min_size=1, max_size=8, statement_cache_size=0) as pool,
        PostgresStore(pool=pool) as store,
    ):
        await asyncio.gather(*(store.append_messages(f"a{n % 9}", samples.messages(1)) for n in range(90)))
        assert sum([len(await store.load_messages(f"a{n}")) for n in range(9)]) == 90


async def test_a_pooler_that_keeps_sessions_apart_is_none_to_refuse(own_server: LocalServer) -> None:
    """In session mode a pool may prepare statements."""
    with had(lambda: Bouncer(own_server, 8, "session"), optional=True) as bouncer:
        async with (
            asyncpg.create_pool(bouncer.dsn, min_size=1, max_size=4) as pool,
            PostgresStore(pool=pool) as store,
        ):
            await asyncio.gather(*(store.append_messages(f"a{n % 9}", samples.messages(1)) for n in range(90)))
            assert sum([len(await store.load_messages(f"a{n}")) for n in range(9)]) == 90
        async with PostgresStore(bouncer.dsn, statement_cache_size=100) as store:
            assert len(await store.load_messages("a1")) == 10
        async with PostgresStore(bouncer.dsn) as store:
            assert connections_of(store).pooled
            assert len(await store.load_messages("a1")) == 10


async def test_settings_that_a_pooler_does_not_pass_on(bouncer: Bouncer) -> None:
    """They are an error with the pooler's words, and nothing is opened without them."""
    with pytest.raises(StoreUnavailableError, match="unsupported startup parameter: work_mem"):
        await PostgresStore(bouncer.dsn, server_settings={"work_mem": "8MB"}).open()
    async with PostgresStore(bouncer.dsn, application_name="passed on") as store:
        assert (await connections_of(store).read(lambda s: s.fetch("SHOW application_name")))[0][0] == "passed on"


async def test_a_statement_that_is_not_found_says_why(bouncer: Bouncer) -> None:
    """A pool of one connection cannot be seen through: its first statement that another session gets is the error."""
    async with asyncpg.create_pool(bouncer.dsn, min_size=1, max_size=1) as pool, PostgresStore(pool=pool) as store:
        await store.load_messages("a")
        con = await asyncpg.connect(bouncer.dsn, statement_cache_size=0)
        async with con.transaction():
            await con.execute("SELECT 1")  # has the session in which the statement was prepared
            with pytest.raises(ConfigurationError, match="a pooler in front of the server gives each transaction"):
                await store.load_messages("a")
        await con.close()


async def test_a_pool_whose_transactions_are_serializable(database: str) -> None:
    """Sessions of a pool of the caller's stay as they are, and appends to one agent do not get into conflict."""
    settings = {"default_transaction_isolation": "serializable"}
    async with (
        asyncpg.create_pool(database, min_size=1, max_size=8, server_settings=settings) as pool,
        PostgresStore(pool=pool) as one,
        PostgresStore(database) as two,
    ):
        await asyncio.gather(
            *(store.append_messages("a", samples.messages(1, n)) for n in range(60) for store in (one, two))
        )
        assert len(await one.load_messages("a")) == 120
        assert await pool.fetchval("SHOW default_transaction_isolation") == "serializable"
        isolations = await connections_of(one).read(lambda s: s.fetch("SHOW transaction_isolation"))
        assert isolations[0][0] == "read committed"
