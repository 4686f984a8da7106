"""Networks and servers fail: nothing acknowledged is lost, nothing is written twice, and every call ends in time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from kode_conformance import samples
from kode_conformance.faults import FaultProxy, Faults, Mode
from kode_postgres.servers import LocalServer, Server

from kode_core import ExtendedStore, create_extended_store
from kode_core.errors import KodeError, OutcomeUnknownError, StorageError, StoreUnavailableError
from kode_core.model import Message
from plugins.postgres.tests.load import AppendLog

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


async def test_of_400_appends_over_a_bad_network_each_is_there_once(
    server: Server, proxied: Proxied, opened: Opener, schema: str
) -> None:
    """One in twenty requests and replies is cut: what is in doubt says so (F29, OPS-10)."""
    proxy = proxied(server, seed=5)
    store = await opened(through(server, proxy), schema=schema)
    logs = [AppendLog(store, "one"), AppendLog(store, "two")]
    proxy.faults = Faults(cut_request=0.05, cut_reply=0.05)
    work = [log.write(writer, 100) for log in logs for writer in range(2)]
    await asyncio.gather(*work, *(log.read() for log in logs for _ in range(3)))
    proxy.faults = Faults()
    direct = await opened(server, schema=schema)
    assert proxy.counts.cut_request > 10
    assert proxy.counts.cut_reply > 10
    assert sum(len(log.done) for log in logs) > 300
    for log in logs:
        assert len(log.done) + len(log.in_doubt) + len(log.refused) == 200
        assert await log.problems(direct) == []


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


async def test_a_network_that_is_slow_and_crumbles_changes_nothing(
    server: Server, proxied: Proxied, opened: Opener, schema: str
) -> None:
    """Replies that come late and in small parts are replies."""
    proxy = proxied(server, seed=6)
    log = AppendLog(await opened(through(server, proxy), schema=schema))
    proxy.faults = Faults(delay=0.2, trickle=0.2, delay_seconds=(0, 0.02))
    await asyncio.gather(*(log.write(n, 20) for n in range(4)), *(log.read() for _ in range(4)))
    assert proxy.counts.trickle > 10
    assert log.errors == []
    assert await log.problems(log.store) == []


async def _forks(store: ExtendedStore, agent_id: str) -> int:
    return len([session async for session in store.iter_sessions() if agent_id in session.lineage])


async def _lock(store: ExtendedStore, agent_id: str) -> None:
    lease = await store.acquire_agent_lock(agent_id)
    await store.append_messages(agent_id, [samples.message(text="new")], fence=lease)
    await lease.release()


async def _messages(store: ExtendedStore, agent_id: str) -> list[str]:
    return [message.text for message in await store.load_messages(agent_id)]


async def _turn(store: ExtendedStore, agent_id: str) -> list[object]:
    calls = [call.id for call in await store.load_tool_call_records(agent_id)]
    return [await _messages(store, agent_id), calls, await _events(store, agent_id)]


async def _events(store: ExtendedStore, agent_id: str) -> list[int]:
    return [event.offset async for event in store.read_events(agent_id)]


NEW = samples.message(text="new")
WRITES: dict[str, tuple[Callable[[ExtendedStore, str], Awaitable[Any]], Callable[..., Awaitable[Any]], Any]] = {
    "append_messages": (lambda s, a: s.append_messages(a, [NEW]), _messages, ["old", "new"]),
    "save_messages": (lambda s, a: s.save_messages(a, [NEW]), _messages, ["new"]),
    "append_event": (lambda s, a: s.append_event(a, samples.event(7)), _events, [1, 2]),
    "save_turn": (
        lambda s, a: s.save_turn(a, append=[NEW], tool_calls=[samples.tool_call(1)], events=[samples.event(7)]),
        _turn,
        [["old", "new"], [samples.tool_call(1).id], [1, 2]],
    ),
    "save_todos": (lambda s, a: s.save_todos(a, samples.todos("new")), lambda s, a: s.load_todos(a), None),
    "save_snapshot": (
        lambda s, a: s.save_snapshot(a, samples.snapshot("s")),
        lambda s, a: s.load_snapshot(a, "s"),
        None,
    ),
    "batch_fork": (lambda s, a: s.batch_fork(a, 3), _forks, 3),
    "delete": (lambda s, a: s.delete(a), lambda s, a: s.exists(a), False),
    "lock": (_lock, _messages, ["old", "new"]),
}
EXPECTED = {"save_todos": samples.todos("new"), "save_snapshot": samples.snapshot("s")}


@pytest.mark.parametrize("part", ["request", "reply"])
@pytest.mark.parametrize("name", WRITES)
async def test_a_write_is_done_once_whichever_piece_of_it_is_cut(
    server: Server, proxied: Proxied, opened: Opener, schema: str, name: str, part: str
) -> None:
    """Of every write, each request and each reply in turn is lost with its connection: it succeeds all the same."""
    write, look, expected = WRITES[name]
    proxy = proxied(server)
    store, direct = await opened(through(server, proxy), schema=schema, max=2), await opened(server, schema=schema)
    for skip in range(40):
        agent_id = f"agent-{skip}"
        await direct.save_turn(
            agent_id, messages=[samples.message(text="old")], info=samples.info(agent_id), events=[samples.event(1)]
        )
        proxy.cut_at(**{part: b""}, skip=skip)
        await write(store, agent_id)
        proxy.cut_at()
        assert await look(direct, agent_id) == EXPECTED.get(name, expected), f"{part} {skip} of {name} was cut"
        if proxy.counts.cut_at == skip:
            break
    assert 0 < proxy.counts.cut_at < 40


def _calls(store: ExtendedStore, another: Callable[[], Awaitable[ExtendedStore]]) -> dict[str, Awaitable[Any]]:
    async def opening() -> None:
        await (await another()).exists("a")

    async def taken(lock: Awaitable[Any]) -> None:
        await lock

    async def all_of(found: Any) -> None:
        async for _ in found:
            pass

    return {
        "append_messages": store.append_messages("a", [NEW]),
        "save_messages": store.save_messages("a", [NEW]),
        "load_messages": store.load_messages("a"),
        "save_turn": store.save_turn("b", append=[NEW], events=[samples.event(3)]),
        "append_event": store.append_event("a", samples.event(2)),
        "read_events": all_of(store.read_events("a")),
        "save_info": store.save_info("a", samples.info("a")),
        "load_info": store.load_info("a"),
        "list": all_of(store.iter_sessions()),
        "query_messages": store.query_messages(agent_id="a"),
        "delete": store.delete("c"),
        "batch_fork": store.batch_fork("a", 2),
        "acquire_agent_lock": taken(store.acquire_agent_lock("a")),
        "aggregate_stats": store.aggregate_stats("a"),
        "check_consistency": store.check_consistency(),
        "opening another": opening(),
    }


IMPATIENT = {"timeout_ms": 1500, "command_timeout_millis": 400, "connection_timeout_millis": 400}
PATIENCE = 1.5 + 4.0
"""The deadline, and what a busy machine may add."""


@pytest.mark.parametrize("mode", [Mode.BLACK_HOLE, Mode.STALL, Mode.REFUSE], ids=lambda mode: mode.value)
async def test_every_call_ends_by_its_deadline(
    server: Server, proxied: Proxied, opened: Opener, schema: str, mode: Mode
) -> None:
    """Nobody answers, on connections that were open and on new ones (F23): each call raises an error of this library,
    and the store is well again when the network is.
    """
    proxy = proxied(server)
    store = await opened(through(server, proxy), schema=schema, **IMPATIENT)
    await store.save_turn("a", messages=[NEW], info=samples.info("a"), events=[samples.event(1)])
    await asyncio.gather(*(store.load_messages("a") for _ in range(8)))
    calls = _calls(store, lambda: opened(through(server, proxy), schema=schema, **IMPATIENT))
    proxy.mode = mode

    async def outcome(name: str, call: Awaitable[Any]) -> tuple[str, float, Any]:
        start = time.monotonic()
        try:
            async with asyncio.timeout(60):
                return name, time.monotonic() - start, await call
        except Exception as exc:
            return name, time.monotonic() - start, exc

    ends = await asyncio.gather(*(outcome(name, call) for name, call in calls.items()))
    status = await asyncio.wait_for(store.health_check(), PATIENCE)
    proxy.mode = Mode.FORWARD

    assert {name: repr(end) for name, _, end in ends if not isinstance(end, StorageError)} == {}
    assert {name: seconds for name, seconds, _ in ends if seconds > PATIENCE} == {}
    assert not status.healthy
    await asyncio.sleep(0.2)
    assert (await store.health_check()).healthy
    await store.append_messages("a", [samples.message(text="afterwards")])
    assert (await _messages(store, "a"))[-1] == "afterwards"


async def test_a_request_that_arrives_late_was_not_called_refused(
    server: Server, proxied: Proxied, opened: Opener, schema: str
) -> None:
    """A write that was given up while the network stood still reaches the server afterwards: nobody could know."""
    proxy = proxied(server)
    log = AppendLog(await opened(through(server, proxy), schema=schema, **IMPATIENT))
    await log.write(0, 5)
    for number in range(1, 3):
        proxy.mode = Mode.STALL
        await asyncio.gather(*(log.append(f"{number}{writer}:0") for writer in range(3)))
        proxy.mode = Mode.FORWARD
        await asyncio.sleep(0.3)
        await log.write(number * 100, 2)
    assert len(log.errors) == 6
    assert {type(error) for error in log.errors} <= {OutcomeUnknownError, StoreUnavailableError}
    assert await log.problems(await opened(server, schema=schema)) == []


async def test_a_store_closes_though_nobody_answers(
    server: Server, proxied: Proxied, opened: Opener, schema: str
) -> None:
    """Closing does not wait for ever for a farewell, nor for a write under way."""
    proxy = proxied(server)
    store = await opened(through(server, proxy), schema=schema, **IMPATIENT)
    await asyncio.gather(*(store.append_messages(f"a{n}", [NEW]) for n in range(8)))
    proxy.mode = Mode.BLACK_HOLE
    writes = [asyncio.ensure_future(store.append_messages(f"a{n}", [NEW])) for n in range(3)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(20):
        await store.close()
    ends = await asyncio.gather(*writes, return_exceptions=True)
    assert all(isinstance(end, StorageError) for end in ends), ends


# --- Cancelled calls --------------------------------------------------------------------------------------------------


async def test_cancelled_calls_leave_nothing_on_the_server(own_server: LocalServer, opened: Opener) -> None:
    """300 calls that are given up at random: no open transaction, no connection too many, none stuck (F20)."""
    rng = random.Random(4)
    store = await opened(own_server)
    await store.save_turn("a", messages=[NEW], info=samples.info("a"))

    async def one(number: int) -> None:
        call = rng.choice(
            [
                lambda: store.append_messages(f"a{number % 7}", [NEW]),
                lambda: store.save_messages(f"a{number % 7}", [NEW]),
                lambda: store.load_messages("a"),
                lambda: store.append_event("a", samples.event(number)),
                lambda: store.delete(f"a{number % 7}"),
                lambda: store.batch_fork("a", 2),
            ]
        )()
        task = asyncio.ensure_future(call)
        await asyncio.sleep(rng.uniform(0, 0.01))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for start in range(0, 300, 10):
        await asyncio.gather(*(one(number) for number in range(start, start + 10)))
    await asyncio.gather(*(store.load_messages("a") for _ in range(20)))
    for _ in range(100):  # what was accepted is written to its end
        rows = await own_server.execute("SELECT state FROM pg_stat_activity WHERE application_name = 'kode'")
        if {row[0] for row in rows} == {"idle"}:
            break
        await asyncio.sleep(0.05)
    assert [row[0] for row in rows] == ["idle"] * len(rows)
    assert 0 < len(rows) <= 4
    assert await own_server.execute("SELECT * FROM pg_locks WHERE locktype = 'advisory'") == []
