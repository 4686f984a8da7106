"""Commits that a crash or a failover takes back, commits that a standby lacks, and a server's clock that steps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
import pytest
from kode_conformance.kills.writes import FORK, WRITES, seed
from kode_conformance.servers import had
from kode_conformance.values import samples
from kode_postgres import engine
from kode_postgres.engine import PostgresEngine
from kode_postgres.testing.servers import LocalServer, Server

from kode_core import ExtendedStore, create_extended_store
from kode_core.batch import Batch, ListWrite
from kode_core.errors import OutcomeUnknownError, StorageError, StoreBusyError, StoreTimeoutError


def engine_of(store: Any) -> PostgresEngine:
    engine = store._context.engine
    assert isinstance(engine, PostgresEngine)
    return engine


# --- Commits that are gone --------------------------------------------------------------------------------------------

MESSAGES: Final = samples.messages(5)
CALLS: Final = [samples.tool_call(i) for i in range(5)]


async def test_a_save_after_a_crash_that_took_writes_back_stores_all_it_was_given() -> None:
    """With ``durability="fast"`` the server lost a write, and another store wrote as much since: the store that
    remembers its lost write saves its lists, and they are stored as they are.
    """
    settings = {"wal_writer_delay": "10s", "wal_writer_flush_after": "100MB"}
    with had(lambda: LocalServer(settings=settings)) as server:
        options: dict[str, Any] = {"type": "postgres", "dsn": server.dsn, "durability": "fast", "max": 2}
        async with await create_extended_store(**options) as one, await create_extended_store(**options) as two:
            for agent_id in ("a", "u"):
                await one.save_turn(agent_id, messages=MESSAGES[:1], tool_calls=CALLS[:1])
            await server.execute("CHECKPOINT")
            for agent_id in ("a", "u"):
                await one.append_messages(agent_id, MESSAGES[1:2])
                await one.upsert_tool_call_records(agent_id, CALLS[1:2])
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            for agent_id in ("a", "u"):
                assert await two.load_messages(agent_id) == MESSAGES[:1]
                await two.append_messages(agent_id, MESSAGES[3:4])
                await two.upsert_tool_call_records(agent_id, CALLS[3:4])
            await one.save_messages("a", MESSAGES[:3])
            await one.save_tool_call_records("a", CALLS[:3])
            assert await two.load_messages("a") == await one.load_messages("a") == MESSAGES[:3]
            assert await two.load_tool_call_records("a") == CALLS[:3]
            await one.append_messages("u", MESSAGES[4:])
            await one.upsert_tool_call_records("u", [CALLS[3], CALLS[1]])
            assert await one.load_messages("u") == [MESSAGES[0], *MESSAGES[3:]]
            assert await one.load_tool_call_records("u") == [CALLS[0], CALLS[3], CALLS[1]]


# --- Commits that wait ------------------------------------------------------------------------------------------------

KINDS: Final = ("append_messages", "save_turn", "append_event", "save_todos", "delete")


async def test_a_write_that_its_standby_lacks_is_never_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server commits on its own disk what it waited for in vain, and finds it there when it is asked again: neither
    that nor what the store looks up later is told as written before the standby has it.
    """
    monkeypatch.setattr(engine, "_FORK_SECONDS", 0.8)  # forks have a time of their own
    settings = {"synchronous_standby_names": "*", "synchronous_commit": "local"}
    with had(lambda: LocalServer(settings=settings)) as primary, await asyncio.to_thread(primary.standby) as other:
        async with asyncio.timeout(30):
            while not await primary.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):
                await asyncio.sleep(0.02)
        options = {"command_timeout_millis": 700, "connection_timeout_millis": 700, "max": 10}
        async with await create_extended_store(type="postgres", dsn=primary.dsn, **options) as store:
            writes = (*(write for write in WRITES if write.name in KINDS), FORK)
            for write in writes:
                await seed(store, write.name)
            await asyncio.to_thread(other.kill)

            async def acknowledged(call: Awaitable[Any]) -> bool:
                try:
                    await call
                except StorageError:
                    return False
                return True

            calls: dict[str, Callable[[], Awaitable[Any]]] = {w.name: lambda w=w: w.act(store, w.name) for w in writes}
            calls |= {
                "new": lambda: store.append_event("new", samples.event(1)),
                "lease": lambda: store.acquire_agent_lock("lease"),
            }
            done = await asyncio.gather(*(acknowledged(call()) for call in calls.values()))
            assert [name for name, is_done in zip(calls, done, strict=True) if is_done] == []
            # The writes are there, and who looks is not told so as long as the primary alone has them.
            assert not await acknowledged(store.load_messages("append_messages"))
            await asyncio.to_thread(other.start)
            async with asyncio.timeout(30):
                while not await acknowledged(store.load_messages("append_messages")):
                    await asyncio.sleep(0.1)
            await store.append_messages("append_messages", MESSAGES[4:])
            expected = await store.load_messages("append_messages")
            await asyncio.to_thread(primary.kill)
        await other.execute("SELECT pg_promote()")
        async with await create_extended_store(type="postgres", dsn=other.dsn) as store:
            assert await store.load_messages("append_messages") == expected


# --- The server's clock -----------------------------------------------------------------------------------------------


async def _store(server: Server, schema: str, **options: Any) -> ExtendedStore:
    return await create_extended_store(type="postgres", dsn=server.dsn, schema=schema, max=3, **options)


@pytest.mark.parametrize("hours", [1, -1])
async def test_new_agents_are_written_when_the_servers_clock_has_stepped(
    server: Server, schema: str, hours: int
) -> None:
    """Another server took over, and its clock is ahead or behind: every first write of an agent finds that out."""
    async with await _store(server, schema) as store:
        used = engine_of(store)
        await seed(store, "parent")

        def step() -> None:
            used.connections.clock._ahead -= hours * 3_600_000

        for write in WRITES:
            step()
            await write.act(store, write.name)
        assert len(await store.load_messages("save_messages")) > 0
        assert len([event async for event in store.read_events("append_event")]) == 1
        step()
        await FORK.act(store, "parent")
        step()
        await store.acquire_agent_lock("lease")


async def test_a_clock_that_is_never_right_is_told_as_any_store_is_told(
    server: Server, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every statement comes too late, as far as the server can tell: the error is one of the library's own classes."""
    async with await _store(server, schema, lock_wait_millis=200) as store:
        await seed(store, "parent")
        clock = engine_of(store).connections.clock
        monkeypatch.setattr(clock, "heard", lambda now: None)
        clock._ahead -= 3_600_000
        calls = (
            store.append_event("new", samples.event(1)),
            store.save_messages("parent", MESSAGES),
            store.acquire_agent_lock("lease"),
            FORK.act(store, "parent"),
        )
        for end in await asyncio.gather(*calls, return_exceptions=True):
            assert type(end) is StoreBusyError, repr(end)


async def test_a_list_replaced_whole_of_an_agent_that_is_new(server: Server, schema: str) -> None:
    """It is written under a lock, which a new agent has none of; the clock is heard all the same."""
    async with await _store(server, schema) as store:
        used = engine_of(store)
        used.connections.clock._ahead -= 3_600_000
        batch = Batch(agent_id="a", op_id="1", now=1, messages=ListWrite(length=0))
        (outcome,) = await used.commit([batch])
        assert not isinstance(outcome, Exception)


# --- Limits of the administrator's ------------------------------------------------------------------------------------


async def test_a_transaction_timeout_is_told_by_its_name(server: Server, schema: str) -> None:
    """The server ends a read, a write and a fork that take longer: the error says which setting did that, nothing is
    sent again and again, and the store goes on.
    """
    if int((await server.execute("SHOW server_version_num"))[0][0]) < 170_000:
        pytest.skip("the server has no transaction_timeout")
    con = await asyncpg.connect(server.dsn)
    async with await _store(server, schema, server_settings={"transaction_timeout": "300ms"}) as store:
        await seed(store, "a")
        expected = await store.load_messages("a")
        connections, table = engine_of(store).connections, engine_of(store).tables.messages
        before = connections.retries
        async with con.transaction():
            await con.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreTimeoutError, match="see its transaction_timeout"):
                await store.load_messages("a")
        sleep = "BEGIN PERFORM pg_sleep(2); RETURN NEW; END"
        await con.execute(f"CREATE FUNCTION {schema}.slow() RETURNS trigger LANGUAGE plpgsql AS '{sleep}'")
        await con.execute(f"CREATE TRIGGER slow BEFORE INSERT ON {table} EXECUTE FUNCTION {schema}.slow()")
        for call, kind in (
            (FORK.act(store, "a"), StoreTimeoutError),
            (store.append_messages("b", MESSAGES), OutcomeUnknownError),
        ):
            with pytest.raises(kind, match="see its transaction_timeout"):
                await call
        assert connections.retries - before <= 3
        await con.execute(f"DROP TRIGGER slow ON {table}")
        assert await store.load_messages("b") == []
        await store.append_messages("b", MESSAGES)
        assert await store.load_messages("b") == MESSAGES
        assert await store.load_messages("a") == expected
    await con.close()
