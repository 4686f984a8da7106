"""Networks and servers fail: nothing acknowledged is lost, nothing is written twice, and every call ends in time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from kode_conformance.servers.faults import FaultProxy, Faults
from kode_conformance.servers.load import AppendLog, give_up
from kode_conformance.suite.network_tests import NEW, Link, NetworkTests
from kode_conformance.values import samples
from kode_postgres.testing.servers import LocalServer, Server

from kode_core import ExtendedStore, create_extended_store
from kode_core.errors import KodeError
from kode_core.model import Message

Opener = Callable[..., Awaitable[ExtendedStore]]
Proxied = Callable[..., FaultProxy]


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    """Opens stores, which are closed after the test."""
    stores: list[ExtendedStore] = []

    async def open_store(server: Server | str, **options: Any) -> ExtendedStore:
        dsn = server if isinstance(server, str) else server.dsn
        store = await create_extended_store(type="postgres", dsn=dsn, **{"max": 4, **options})
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        await store.close()


def through(server: Server, proxy: FaultProxy) -> str:
    """The address of the server by way of the proxy."""
    parts = urlsplit(server.dsn)
    return parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}").geturl()


# --- The server goes away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [False, True], ids=["in order", "at once"])
async def test_nobody_sees_that_the_server_was_restarted(
    own_server: LocalServer, opened: Opener, at_once: bool
) -> None:
    """Reads and writes under load succeed as if nothing had happened (F21)."""
    log = AppendLog(await opened(own_server))
    async with log.load():
        for _ in range(2):
            await asyncio.to_thread(own_server.restart, at_once=at_once)
            await log.more(20)
    assert log.errors == []
    assert await log.problems(log.store) == []


async def test_nobody_sees_that_connections_were_ended(own_server: LocalServer, opened: Opener) -> None:
    """The administrator ends every connection, again and again."""
    ended = 0
    log = AppendLog(await opened(own_server))
    async with log.load():
        for _ in range(10):
            rows = await own_server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'kode'"
            )
            ended += len(rows)
            await log.more(5)
    assert ended >= 10
    assert log.errors == []
    assert await log.problems(log.store) == []


CARELESS = {"synchronous_commit": "off", "wal_writer_delay": "10s"}
"""Settings of a server with which commits are lost that a store does not insist on."""


async def test_what_was_acknowledged_survives_kills_of_the_server(
    opened: Opener, request: pytest.FixtureRequest
) -> None:
    """SIGKILL to all its processes under load, again and again, of a server that is careless by default."""
    rounds = {"quick": 3, "standard": 10, "thorough": 25}[request.config.getoption("kode_tier")]
    rng = random.Random(1)
    with LocalServer(settings=CARELESS) as server:
        log = AppendLog(await opened(server))
        async with log.load():
            for _ in range(rounds):
                await asyncio.sleep(rng.uniform(0, 0.05))
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                await log.more(20)
        assert server.log.count("not properly shut down") == rounds
        assert await log.problems(log.store) == []


async def test_a_kill_takes_what_a_fast_store_acknowledged(opened: Opener) -> None:
    """The control: with ``durability="fast"`` the same kills lose writes, and the log says so."""
    with LocalServer(settings=CARELESS) as server:
        await (await opened(server)).append_messages("log", [NEW])
        log = AppendLog(await opened(server, durability="fast"), "fast")
        async with log.load(readers=0):
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        found = await log.problems(log.store)
        assert len(found) > 10
        assert {problem.partition(":")[0] for problem in found} == {"acknowledged and lost"}


async def test_followers_miss_nothing_while_servers_come_and_go(own_server: LocalServer, opened: Opener) -> None:
    """Those in the store that appends and in another one get every event once and in order."""
    store, other = await opened(own_server), await opened(own_server)
    heard: dict[str, list[int]] = {"here": [], "there": []}

    async def follow(name: str, where: ExtendedStore) -> None:
        async for event in where.follow_events("a"):
            heard[name].append(event.event.data["n"])
            if event.event.data["n"] == 80:
                return

    followers = [asyncio.ensure_future(follow("here", store)), asyncio.ensure_future(follow("there", other))]
    for number in range(81):
        await store.append_event("a", samples.event(number, n=number))
        if number in (20, 50):
            await asyncio.to_thread(own_server.restart, at_once=number == 50)
        if number == 65:
            await own_server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'kode'"
            )
    async with asyncio.timeout(60):
        await asyncio.gather(*followers)
    assert heard == {"here": list(range(81)), "there": list(range(81))}


async def test_a_closed_store_leaves_no_connection(own_server: LocalServer, opened: Opener) -> None:
    """Though somebody was following when it was closed, and calls were under way."""
    store = await opened(own_server)
    await store.append_event("a", samples.event(1))
    begun = asyncio.Event()

    async def follow() -> None:
        async for _ in store.follow_events("a"):
            begun.set()

    follower = asyncio.ensure_future(follow())
    await begun.wait()
    await asyncio.sleep(0.3)
    calls = [asyncio.ensure_future(store.append_messages(f"a{n}", [NEW])) for n in range(20)]
    await asyncio.sleep(0)
    await store.close()
    ends = await asyncio.gather(follower, *calls, return_exceptions=True)
    assert all(end is None or isinstance(end, KodeError) for end in ends), ends
    for _ in range(100):
        rows = await own_server.execute("SELECT state, query FROM pg_stat_activity WHERE application_name = 'kode'")
        if not rows:
            break
        await asyncio.sleep(0.05)
    assert rows == []


async def test_a_server_that_ends_idle_sessions_is_no_trouble(opened: Opener) -> None:
    """Connections of the pool that the server has ended meanwhile are not noticed by callers."""
    with LocalServer(settings={"idle_session_timeout": "100ms"}) as server:
        store = await opened(server)
        for number in range(3):
            await asyncio.gather(*(store.append_messages(f"a{n}", [NEW]) for n in range(4)))
            assert len(await store.load_messages("a0")) == number + 1
            await asyncio.sleep(0.3)
        assert "idle-session timeout" in server.log


async def test_a_store_does_with_fewer_connections_than_it_may_have(opened: Opener) -> None:
    """Where the server has none left, calls wait for one of the store's own (53300)."""
    with LocalServer(settings={"max_connections": 6, "superuser_reserved_connections": 0}) as server:
        log = AppendLog(await opened(server, max=20))
        other = AppendLog(await opened(server, max=20), "other")
        await asyncio.gather(*(log.write(n, 10) for n in range(10)), *(other.write(n, 10) for n in range(10)))
        await asyncio.gather(*(log.read() for _ in range(30)), *(other.read() for _ in range(30)))
        for one in (log, other):
            assert one.errors == []
            assert await one.problems(one.store) == []


# --- The network fails ------------------------------------------------------------------------------------------------


class TestNetwork(NetworkTests):
    """What holds of every store that has a server."""

    @pytest.fixture
    async def link(self, server: Server, proxied: Proxied, schema: str) -> AsyncIterator[Link]:
        proxy = proxied(server, seed=5)

        def opener(dsn: str) -> Callable[..., Awaitable[ExtendedStore]]:
            return lambda **how: create_extended_store(type="postgres", dsn=dsn, schema=schema, **{"max": 4, **how})

        link = Link(proxy, opener(server.dsn), opener(through(server, proxy)))
        yield link
        await link.close()


class Naive:
    """Appends with a statement that it repeats until it is answered."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def _asked(self, statement: str, *args: object) -> Any:
        while True:
            try:
                connection = await asyncpg.connect(self._address, timeout=5)
                try:
                    return await connection.fetch(statement, *args)
                finally:
                    connection.terminate()
            except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError):
                continue

    async def append_messages(self, agent_id: str, messages: list[Message]) -> None:
        await self._asked("INSERT INTO naive (agent_id, text) VALUES ($1, $2)", agent_id, messages[0].text)

    async def load_messages(self, agent_id: str) -> list[Message]:
        rows = await self._asked("SELECT text FROM naive WHERE agent_id = $1 ORDER BY n", agent_id)
        return [samples.message(text=row[0]) for row in rows]


async def test_a_bad_network_makes_a_naive_writer_write_twice(server: Server, proxied: Proxied, database: str) -> None:
    """The control: the same network, a writer that just tries again, and the log says so."""
    await Server(database).execute("CREATE TABLE naive (n bigserial, agent_id text, text text)")
    proxy = proxied(server, seed=5)
    log = AppendLog(Naive(through(Server(database), proxy)))
    proxy.faults = Faults(cut_request=0.05, cut_reply=0.05)
    await asyncio.gather(*(log.write(writer, 25) for writer in range(4)))
    found = await log.problems(Naive(database))
    assert any(problem.startswith("there 2 times") for problem in found)
    assert not any("lost" in problem for problem in found)


# --- Cancelled calls --------------------------------------------------------------------------------------------------


async def test_cancelled_calls_leave_nothing_on_the_server(own_server: LocalServer, opened: Opener) -> None:
    """300 calls that are given up at random: no open transaction, no connection too many, none stuck (F20)."""
    rng = random.Random(4)
    store = await opened(own_server)
    await give_up(store, rng, 300)
    await asyncio.gather(*(store.load_messages("a") for _ in range(20)))
    for _ in range(100):  # what was accepted is written to its end
        rows = await own_server.execute("SELECT state FROM pg_stat_activity WHERE application_name = 'kode'")
        if {row[0] for row in rows} == {"idle"}:
            break
        await asyncio.sleep(0.05)
    assert [row[0] for row in rows] == ["idle"] * len(rows)
    assert 0 < len(rows) <= 4
    assert await own_server.execute("SELECT * FROM pg_locks WHERE locktype = 'advisory'") == []
