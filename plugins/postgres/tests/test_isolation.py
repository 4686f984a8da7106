"""What is locked, slow, abandoned or refused holds nobody else up, and ends on the server, too."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from kode_conformance.servers.faults import FaultProxy, Faults
from kode_conformance.values import samples
from kode_postgres import PostgresStore
from kode_postgres.doubts import Never
from kode_postgres.engine import PostgresEngine
from kode_postgres.schema import KEPT_OPS
from kode_postgres.testing.servers import LocalServer, Server

from kode_core import StorageError, StoreBusyError, StoreTimeoutError, StoreUnavailableError
from kode_core.batch import Applied, Batch, EventWrite, ListWrite, MessageIndex, Row
from kode_core.codec import Body, digest
from plugins.postgres.tests.bouncer import Bouncer


def engine_of(store: PostgresStore) -> PostgresEngine:
    engine = store._context.engine
    assert isinstance(engine, PostgresEngine)
    return engine


async def eventually(question: Callable[[], Awaitable[bool]]) -> bool:
    """Whether it becomes true within a while."""
    for _ in range(200):
        if await question():
            return True
        await asyncio.sleep(0.05)
    return False


# --- Locked agents ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def locked(server: Server, table: str, agents: list[str]) -> AsyncIterator[None]:
    """Rows of these agents are locked by a session that is not the store's."""
    con = await asyncpg.connect(server.dsn)
    try:
        async with con.transaction():
            rows = await con.fetch(f"SELECT 1 FROM {table} WHERE agent_id = ANY ($1) FOR UPDATE", agents)
            assert len(rows) == len(agents)
            yield
    finally:
        await con.close()


WRITES: dict[str, Callable[[PostgresStore, str], Awaitable[Any]]] = {
    "append_messages": lambda store, agent: store.append_messages(agent, samples.messages(1)),
    "append_event": lambda store, agent: store.append_event(agent, samples.event(1)),
    "save_todos": lambda store, agent: store.save_todos(agent, samples.todos("a")),
    "delete": lambda store, agent: store.delete(agent),
}


@pytest.mark.parametrize("most", [1, 2, 10])
@pytest.mark.parametrize("name", WRITES)
async def test_locked_agents_hold_up_no_others(server: Server, schema: str, most: int, name: str) -> None:
    """A dozen agents are locked by somebody's own session, and each is written: all others are written meanwhile, in
    groups with them or not, over however few connections; and what was held up is written when the locks are gone.
    """
    write = WRITES[name]
    async with PostgresStore(server.dsn, schema=schema, max=most) as store:
        held, free = [f"held-{n}" for n in range(12)], [f"free-{n}" for n in range(30)]
        await asyncio.gather(*(store.append_events(agent, samples.events(1, 50)) for agent in held + free))
        async with locked(server, engine_of(store).tables.agents, held):
            waiting = [asyncio.ensure_future(write(store, agent)) for agent in held]
            for _ in range(3):
                async with asyncio.timeout(20):
                    await asyncio.gather(*(write(store, agent) for agent in free))
                    await asyncio.gather(*(store.load_messages(agent) for agent in free))
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)


async def test_any_error_about_a_doubt_reaches_the_caller(server: Server, schema: str) -> None:
    """A write ends also when its agent's doubt cannot be resolved for a reason that is no error of this library."""
    batch = Batch(agent_id="a", op_id="op", now=1, messages=ListWrite())
    async with PostgresStore(server.dsn, schema=schema) as store:
        await store.append_messages("a", samples.messages(1))
        engine = engine_of(store)
        no_text: Any = None
        engine._doubts.add("a", Never(no_text, ()))
        async with asyncio.timeout(20):
            with pytest.raises((TypeError, AttributeError)):
                await engine.commit([batch])
        engine._doubts._open.clear()


async def test_an_agent_that_stays_locked_is_told_so(server: Server, schema: str) -> None:
    """The writes of an agent that is locked for too long fail, nothing of them is written, and the others succeed."""
    async with PostgresStore(server.dsn, schema=schema, command_timeout_millis=1000) as store:
        agents = [f"a{n}" for n in range(6)]
        await asyncio.gather(*(store.append_events(agent, samples.events(1)) for agent in agents))
        async with locked(server, engine_of(store).tables.agents, ["a0", "a3"]):
            calls = [store.append_messages(agent, samples.messages(1)) for agent in agents]
            ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [StoreBusyError, *[type(None)] * 2, StoreBusyError, *[type(None)] * 2]
        assert "kept the agent locked" in str(ends[0])
        assert [len(await store.load_messages(agent)) for agent in agents] == [0, 1, 1, 0, 1, 1]


async def test_a_table_that_is_locked(server: Server, schema: str) -> None:
    """Somebody changes a table for longer than the store waits: each call says that nothing was written, reads too, and
    all is well afterwards.
    """
    async with PostgresStore(server.dsn, schema=schema, command_timeout_millis=2000) as store:
        await asyncio.gather(*(store.append_messages(f"a{n}", samples.messages(1)) for n in range(12)))
        con = await asyncpg.connect(server.dsn)
        async with con.transaction():
            await con.execute(f"LOCK TABLE {engine_of(store).tables.agents} IN ACCESS EXCLUSIVE MODE")
            calls = [store.append_messages(f"a{n}", samples.messages(1, 1)) for n in range(12)]
            calls += [store.load_messages("a1"), store.acquire_agent_lock("a1")._acquire(), store.delete("a2")]
            ends = await asyncio.gather(*calls, return_exceptions=True)
        await con.close()
        assert [type(end) for end in ends[:13]] == [StoreBusyError] * 13
        assert isinstance(ends[14], StoreBusyError)
        assert [len(await store.load_messages(f"a{n}")) for n in range(12)] == [1] * 12


async def test_locked_leases_hold_up_no_others(server: Server, schema: str) -> None:
    """While the rows of a dozen leases are locked, other locks are taken and given back."""
    async with PostgresStore(server.dsn, schema=schema, max=2) as store:
        held = [f"held-{n}" for n in range(12)]
        for agent in held:
            await (await store.acquire_agent_lock(agent)).release()
        async with locked(server, engine_of(store).tables.leases, held):
            waiting = [asyncio.ensure_future(take(store, agent)) for agent in held]
            async with asyncio.timeout(20):
                for n in range(10):
                    await take(store, f"free-{n}")
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)


async def take(store: PostgresStore, agent: str) -> None:
    await (await store.acquire_agent_lock(agent)).release()


async def test_a_writer_that_is_far_away_gets_its_turn(
    server: Server, schema: str, proxied: Callable[..., FaultProxy]
) -> None:
    """While one of its writes is on its way to the server, those near it write more than a head remembers."""
    proxy = proxied(server)
    parts = urlsplit(server.dsn)
    far_dsn = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}").geturl()
    async with PostgresStore(far_dsn, schema=schema) as far, PostgresStore(server.dsn, schema=schema) as near:
        await far.append_event("a", samples.event(0))
        proxy.faults = Faults(delay=1.0, delay_seconds=(0.1, 0.1))
        written = 0

        async def hurry() -> None:
            nonlocal written
            while not others.done():
                await near.append_event("a", samples.event(1000 + written))
                written += 1

        async def write() -> None:
            for n in range(1, 4):
                await far.append_event("a", samples.event(n))
                await far.append_messages("a", samples.messages(1))

        others = asyncio.ensure_future(write())
        await asyncio.gather(hurry(), others)
        proxy.faults = Faults()
        assert written > 10 * KEPT_OPS
        found = [event.bookmark.seq async for event in far.read_events("a")]
        assert found == [0, 1, 2, 3, *range(1000, 1000 + written)]
        assert len(await near.load_messages("a")) == 3


# --- Writes that fail -------------------------------------------------------------------------------------------------


def append(agent: str, text: str) -> Batch:
    row = Row(Body(text, digest(text.encode())), 1, MessageIndex("user", ("text",)))
    return Batch(agent_id=agent, op_id=agent, now=1, messages=ListWrite(append=(row,)))


def event(agent: str, text: str, seq: int = 1) -> Batch:
    body = Body(text, digest(text.encode(errors="replace")))
    return Batch(agent_id=agent, op_id=agent, now=1, events=(EventWrite(seq, "progress", body),))


BAD = {
    "not JSON": event("bad", "{"),
    "an integer that is too large": event("bad", "{}", seq=2**70),
    "a lone surrogate": event("bad", '"\ud800"'),
    "a type that is another one": event("bad", "{}", seq="one"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("at_once", [True, False], ids=["one call", "many calls"])
async def test_a_write_that_fails_fails_alone(server: Server, schema: str, what: str, at_once: bool) -> None:
    """Of writes in one statement, the one that the driver or the server refuses fails, and nothing else."""
    async with PostgresStore(server.dsn, schema=schema) as store:
        engine = engine_of(store)
        batches = [event("one", "{}"), append("two", "{}"), BAD[what], event("three", "[]"), append("four", "[]")]
        if at_once:
            outcomes = list(await engine.commit(batches))
        else:
            calls = (engine.commit([batch]) for batch in batches)
            outcomes = [outcome for [outcome] in await asyncio.gather(*calls)]
        assert [type(outcome) for outcome in outcomes if isinstance(outcome, Applied)] == [Applied] * 4
        assert isinstance(outcomes[2], StorageError)
        assert await engine.last_event("bad") is None
        assert [(await engine.last_event(agent)) is not None for agent in ("one", "three")] == [True, True]


# --- Calls that nobody waits for any more -----------------------------------------------------------------------------

SLOW = "SELECT nextval('sent'), pg_sleep(300)"


async def sleep_there(session: Any) -> Any:
    return await session.fetch(SLOW)


@pytest.fixture
def newest() -> LocalServer:
    with LocalServer() as server:
        yield server


async def asleep(server: Server) -> list[Any]:
    """The sessions that still do what somebody gave up."""
    return await server.execute(
        "SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_sleep(300)%' AND state = 'active'"
        " AND pid <> pg_backend_pid()"
    )


async def test_a_read_that_is_not_answered_ends_on_the_server(newest: LocalServer) -> None:
    """It is an error after the time that it may take, was sent once, and leaves nothing behind; its connection too."""
    await newest.execute("CREATE SEQUENCE sent")
    async with PostgresStore(newest.dsn, max=4, command_timeout_millis=300) as store:
        read = engine_of(store).connections.read
        for _ in range(3):
            ends = await asyncio.gather(*(read(sleep_there) for _ in range(4)), return_exceptions=True)
            assert [type(end) for end in ends] == [StoreTimeoutError] * 4
            assert "command_timeout_millis (300)" in str(ends[0])
        assert await eventually(lambda: nobody(newest))
        assert (await newest.execute("SELECT last_value FROM sent"))[0][0] == 12
        assert await store.load_messages("a") == []
        rows = await newest.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'kode'")
        assert len(rows) <= 4


async def nobody(server: Server) -> bool:
    return not await asleep(server)


async def test_a_read_that_is_cancelled_ends_on_the_server(newest: LocalServer) -> None:
    """A web framework gives up call after call: the server is busy with none of them, and the store goes on."""
    await newest.execute("CREATE SEQUENCE sent")
    async with PostgresStore(newest.dsn, max=4) as store:
        read = engine_of(store).connections.read
        for _ in range(12):
            with suppress(TimeoutError):
                await asyncio.wait_for(read(sleep_there), 0.05)
        assert await eventually(lambda: nobody(newest))
        async with asyncio.timeout(20):
            await asyncio.gather(*(store.load_messages("a") for _ in range(20)))
        tasks = [asyncio.ensure_future(read(sleep_there)) for _ in range(4)]
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
    assert await eventually(lambda: nobody(newest))


async def test_behind_pgbouncer_a_call_that_is_given_up_ends_on_the_server(
    own_server: LocalServer, bouncer: Bouncer
) -> None:
    """Four servers behind the bouncer are not kept busy by calls that nobody waits for."""
    await own_server.execute("CREATE SEQUENCE sent")
    async with PostgresStore(bouncer.dsn, max=8) as store:
        read = engine_of(store).connections.read
        for _ in range(12):
            with suppress(TimeoutError):
                await asyncio.wait_for(read(sleep_there), 0.1)
        assert await eventually(lambda: nobody(own_server))
        async with asyncio.timeout(20):
            await asyncio.gather(*(store.append_messages(f"a{n}", samples.messages(1)) for n in range(20)))


KILLED = """
import asyncio, sys
from kode_postgres import PostgresStore
async def main():
    store = PostgresStore(sys.argv[1])
    await store.open()
    print("ready", flush=True)
    await store._context.engine.connections.read(lambda session: session.fetch(sys.argv[2]))
asyncio.run(main())
"""


async def test_the_calls_of_a_process_that_is_killed_end_on_the_server(newest: LocalServer) -> None:
    """The server looks whether its client is there still; without that it would go on until it has an answer."""
    await newest.execute("CREATE SEQUENCE sent")
    process = subprocess.Popen([sys.executable, "-c", KILLED, newest.dsn, SLOW], stdout=subprocess.PIPE)
    try:

        async def begun() -> bool:
            return bool(await asleep(newest))

        assert await eventually(begun)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert await eventually(lambda: nobody(newest))


# --- Connections ------------------------------------------------------------------------------------------------------


async def test_calls_get_connections_in_their_order(server: Server, schema: str) -> None:
    """Two hundred calls over ten connections all succeed, and come in the order in which they asked."""
    async with PostgresStore(server.dsn, schema=schema, max=10) as store:
        asked: list[tuple[int, int]] = []
        begun: list[tuple[int, int]] = []

        async def call(n: int) -> None:
            for turn in range(3):

                async def work(session: Any, name: tuple[int, int] = (n, turn)) -> None:
                    begun.append(name)
                    await session.fetch("SELECT pg_sleep(0.01)")

                asked.append((n, turn))
                await engine_of(store).connections.read(work)

        await asyncio.gather(*(store.load_messages("a") for _ in range(10)))  # opens the connections
        await asyncio.gather(*(call(n) for n in range(200)))
        assert len(begun) == 600
        places = {name: place for place, name in enumerate(asked)}
        assert max(abs(places[name] - place) for place, name in enumerate(begun)) <= 10


async def test_many_turns_at_once_all_succeed(server: Server, schema: str) -> None:
    """Sixty-four agents save their turns at the same time, again and again."""
    async with PostgresStore(server.dsn, schema=schema, max=4) as store:

        async def work(agent: str) -> None:
            for n in range(5):
                await store.save_turn(agent, append=samples.messages(2, n), info=samples.info(agent))
                await store.load_messages(agent)

        await asyncio.gather(*(work(f"a{n}") for n in range(64)))
        assert len(await store.list()) == 64


async def test_no_connection_is_free_for_too_long(server: Server, schema: str) -> None:
    """Only when all were busy all the time a call is told so."""
    options: dict[str, Any] = {"max": 2, "command_timeout_millis": 500, "connection_timeout_millis": 500}
    async with PostgresStore(server.dsn, schema=schema, **options) as store:
        read = engine_of(store).connections.read
        long = [asyncio.ensure_future(read(lambda s: s.fetch("SELECT pg_sleep(3)"), seconds=20)) for _ in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(StoreBusyError, match=r"all 2 connections were in use for 0\.5 s; raise max"):
            await store.load_messages("a")
        await asyncio.gather(*long)
        assert await store.load_messages("a") == []


async def test_a_server_that_hangs_is_not_told_as_busy(newest: LocalServer) -> None:
    """Calls that wait for connections that no answer comes back on hear of the server, and not of too few of them."""
    options: dict[str, Any] = {"max": 2, "command_timeout_millis": 1000, "connection_timeout_millis": 500}
    async with PostgresStore(newest.dsn, **options) as store:
        await store.save_messages("a", samples.messages(1))
        newest._process.pause()
        try:
            ends = await asyncio.gather(*(store.load_messages("a") for _ in range(12)), return_exceptions=True)
        finally:
            newest._process.resume()
        assert {type(end) for end in ends} <= {StoreTimeoutError, StoreUnavailableError}
        assert any("the server answered on none" in str(end) for end in ends)
        async with asyncio.timeout(30):
            while True:
                with suppress(StoreUnavailableError, StoreTimeoutError):
                    assert await store.load_messages("a") == samples.messages(1)
                    return


async def test_a_user_whose_transactions_are_serializable(database: str) -> None:
    """The isolation that a user has by default is of no account: appends to one agent do not get into conflict."""
    name = database.rpartition("/")[2]
    await Server(database).execute(f'ALTER DATABASE "{name}" SET default_transaction_isolation = serializable')
    async with PostgresStore(database) as one, PostgresStore(database) as two:
        await asyncio.gather(
            *(store.append_messages("a", samples.messages(1, n)) for n in range(60) for store in (one, two))
        )
        assert len(await one.load_messages("a")) == 120
