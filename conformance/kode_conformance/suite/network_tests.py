"""Tests of a store over a network that fails, for stores that have a server.

.. code-block:: python

    class TestNetwork(NetworkTests):
        @pytest.fixture
        async def link(self) -> AsyncIterator[Link]:
            with FaultProxy("127.0.0.1", server.port) as proxy:
                link = Link(proxy, open_directly, open_by_the_proxy)
                yield link
                await link.close()

Nothing acknowledged may be lost, nothing may be written twice, and every call ends in time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, ClassVar, Final, TypeAlias

import pytest

from kode_conformance.servers.faults import FaultProxy, Faults, Mode
from kode_conformance.servers.load import AppendLog
from kode_conformance.values import samples
from kode_core.errors import OutcomeUnknownError, StorageError, StoreTimeoutError, StoreUnavailableError
from kode_core.protocols import ExtendedStore

__all__ = ["NEW", "Link", "NetworkTests"]

Opener: TypeAlias = Callable[..., Awaitable[ExtendedStore]]

PATIENCE: Final = 1.5 + 4.0
"""The deadline of an impatient store, and a margin for a busy machine."""


class Link:
    """A place for data that can be opened directly and by way of a proxy; both take the store's options."""

    def __init__(self, proxy: FaultProxy, directly: Opener, by_the_proxy: Opener) -> None:
        self.proxy = proxy
        self._openers = directly, by_the_proxy
        self._stores: list[ExtendedStore] = []

    async def directly(self, **options: Any) -> ExtendedStore:
        """A store whose network never fails."""
        return await self._opened(self._openers[0], options)

    async def by_the_proxy(self, **options: Any) -> ExtendedStore:
        """A store whose network the proxy is."""
        return await self._opened(self._openers[1], options)

    async def by_the_proxy_alone(self, **options: Any) -> ExtendedStore:
        """A store whose network the proxy is; the caller closes it, in an event loop of its own."""
        return await self._openers[1](**options)

    async def _opened(self, opener: Opener, options: dict[str, Any]) -> ExtendedStore:
        store = await opener(**options)
        self._stores.append(store)
        return store

    async def close(self) -> None:
        """Close the opened stores."""
        self.proxy.cut_at()
        self.proxy.faults, self.proxy.mode = Faults(), Mode.FORWARD
        for store in self._stores:
            await store.close()


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


_Write: TypeAlias = Callable[[ExtendedStore, str], Awaitable[Any]]

NEW: Final = samples.message(text="new")
WRITES: Final[dict[str, tuple[_Write, _Write, Any]]] = {
    "append_messages": (lambda s, a: s.append_messages(a, [NEW]), _messages, ["old", "new"]),
    "save_messages": (lambda s, a: s.save_messages(a, [NEW]), _messages, ["new"]),
    "append_event": (lambda s, a: s.append_event(a, samples.event(7)), _events, [1, 2]),
    "save_turn": (
        lambda s, a: s.save_turn(a, append=[NEW], tool_calls=[samples.tool_call(1)], events=[samples.event(7)]),
        _turn,
        [["old", "new"], [samples.tool_call(1).id], [1, 2]],
    ),
    "save_todos": (
        lambda s, a: s.save_todos(a, samples.todos("new")),
        lambda s, a: s.load_todos(a),
        samples.todos("new"),
    ),
    "save_snapshot": (
        lambda s, a: s.save_snapshot(a, samples.snapshot("s")),
        lambda s, a: s.load_snapshot(a, "s"),
        samples.snapshot("s"),
    ),
    "batch_fork": (lambda s, a: s.batch_fork(a, 3), _forks, 3),
    "delete": (lambda s, a: s.delete(a), lambda s, a: s.exists(a), False),
    "lock": (_lock, _messages, ["old", "new"]),
}


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


class NetworkTests:
    """Subclass it, and give it the fixture ``link``.

    Attributes:
        impatient: options with which every call ends within 1.5 s.
        appends: how many writes to make over a bad network; fewer where a driver takes its time to connect again.
    """

    impatient: ClassVar[dict[str, Any]] = {
        "timeout_ms": 1500,
        "command_timeout_millis": 400,
        "connection_timeout_millis": 400,
    }
    appends: ClassVar[int] = 400

    async def test_of_many_appends_over_a_bad_network_each_is_there_once(self, link: Link) -> None:
        """One in twenty requests and replies is cut: every call with an unknown outcome says so (F29, OPS-10)."""
        store = await link.by_the_proxy()
        logs = [AppendLog(store, "one"), AppendLog(store, "two")]
        link.proxy.faults = Faults(cut_request=0.05, cut_reply=0.05)
        work = [log.write(writer, self.appends // 4) for log in logs for writer in range(2)]
        await asyncio.gather(*work, *(log.read() for log in logs for _ in range(3)))
        link.proxy.faults = Faults()
        direct = await link.directly()
        assert link.proxy.counts.cut_request > self.appends // 40
        assert link.proxy.counts.cut_reply > self.appends // 40
        assert sum(len(log.done) for log in logs) > self.appends * 3 // 4
        for log in logs:
            assert len(log.done) + len(log.in_doubt) + len(log.refused) == self.appends // 2
            assert await log.problems(direct) == []

    async def test_a_network_that_is_slow_and_crumbles_changes_nothing(self, link: Link) -> None:
        """Replies that come late and in small parts are replies."""
        log = AppendLog(await link.by_the_proxy())
        link.proxy.faults = Faults(delay=0.2, trickle=0.2, delay_seconds=(0, 0.02))
        await asyncio.gather(*(log.write(n, 20) for n in range(4)), *(log.read() for _ in range(4)))
        assert link.proxy.counts.trickle > 10
        assert log.errors == []
        assert await log.problems(log.store) == []

    @pytest.mark.parametrize("part", ["request", "reply"])
    @pytest.mark.parametrize("name", WRITES)
    async def test_a_write_is_done_once_whichever_piece_of_it_is_cut(self, link: Link, name: str, part: str) -> None:
        """Each request and each reply of a write is lost with its connection, in turn: the write succeeds."""
        write, look, expected = WRITES[name]
        proxy = link.proxy
        store, direct = await link.by_the_proxy(max=2), await link.directly()
        for skip in range(40):
            agent_id = f"agent-{skip}"
            old = [samples.message(text="old")]
            await direct.save_turn(agent_id, messages=old, info=samples.info(agent_id), events=[samples.event(1)])
            await store.exists(agent_id)
            piece: Any = {part: b""}
            proxy.cut_at(**piece, skip=skip)
            await write(store, agent_id)
            proxy.cut_at()
            assert await look(direct, agent_id) == expected, f"{part} {skip} of {name} was cut"
            if proxy.counts.cut_at == skip:
                break
        assert 0 < proxy.counts.cut_at < 40

    async def impatient_store(self, link: Link, **options: Any) -> ExtendedStore:
        """A store by the proxy with a short deadline, within which a busy machine may need some attempts to open it."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return await link.by_the_proxy(**self.impatient, **options)
            except StorageError:
                if time.monotonic() > until:
                    raise

    @pytest.mark.parametrize("mode", [Mode.BLACK_HOLE, Mode.STALL, Mode.REFUSE], ids=lambda mode: mode.value)
    async def test_every_call_ends_by_its_deadline(self, link: Link, mode: Mode) -> None:
        """The server does not answer, on open connections and on new ones (F23): each call raises an error of this
        library, and the store is well again when the network is.
        """
        store = await self.impatient_store(link)
        await store.save_turn("a", messages=[NEW], info=samples.info("a"), events=[samples.event(1)])
        await asyncio.gather(*(store.load_messages("a") for _ in range(8)))
        calls = _calls(store, lambda: link.by_the_proxy(**self.impatient))
        link.proxy.mode = mode

        async def outcome(name: str, call: Awaitable[Any]) -> tuple[str, float, Any]:
            start = time.monotonic()
            try:
                async with asyncio.timeout(60):
                    return name, time.monotonic() - start, await call
            except Exception as exc:  # noqa: BLE001 - the error is judged below
                return name, time.monotonic() - start, exc

        ends = await asyncio.gather(*(outcome(name, call) for name, call in calls.items()))
        status = await asyncio.wait_for(store.health_check(), PATIENCE)
        link.proxy.mode = Mode.FORWARD

        assert {name: repr(end) for name, _, end in ends if not isinstance(end, StorageError)} == {}
        assert {name: seconds for name, seconds, _ in ends if seconds > PATIENCE} == {}
        assert not status.healthy
        async with asyncio.timeout(10):
            while not (await store.health_check()).healthy:
                await asyncio.sleep(0.1)
        await store.append_messages("a", [samples.message(text="afterwards")])
        assert (await _messages(store, "a"))[-1] == "afterwards"

    async def test_a_request_that_arrives_late_was_not_called_refused(self, link: Link) -> None:
        """A write that was given up while the network stood still reaches the server afterwards: the store could not
        know.
        """
        log = AppendLog(await self.impatient_store(link))
        await log.write(0, 5)
        for number in range(1, 3):
            link.proxy.mode = Mode.STALL
            await asyncio.gather(*(log.append(f"{number}{writer}:0") for writer in range(3)))
            link.proxy.mode = Mode.FORWARD
            await asyncio.sleep(0.3)
            await log.write(number * 100, 2)
        assert len(log.errors) >= 6
        assert {type(error) for error in log.errors} <= {OutcomeUnknownError, StoreUnavailableError, StoreTimeoutError}
        assert await log.problems(await link.directly()) == []

    async def test_a_store_closes_though_nobody_answers(self, link: Link) -> None:
        """Closing does not wait for ever for a farewell, nor for a write under way."""
        store = await self.impatient_store(link)
        await asyncio.gather(*(store.append_messages(f"a{n}", [NEW]) for n in range(8)))
        link.proxy.mode = Mode.BLACK_HOLE
        writes = [asyncio.ensure_future(store.append_messages(f"a{n}", [NEW])) for n in range(3)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(20):
            await store.close()
        ends = await asyncio.gather(*writes, return_exceptions=True)
        assert all(isinstance(end, StorageError) for end in ends), ends

    async def test_connections_end_with_the_event_loop(self, link: Link) -> None:
        """The close of a store gives up a write that gets no answer, and the loop ends: no connection is left open."""

        async def work() -> None:
            store = await link.by_the_proxy_alone(timeout_ms=2_000, command_timeout_millis=8_000)
            await store.append_messages("a", [NEW])
            link.proxy.mode = Mode.BLACK_HOLE
            writing = asyncio.ensure_future(store.append_messages("a", [NEW]))
            await asyncio.sleep(0.05)
            await store.close()
            await asyncio.gather(writing, return_exceptions=True)

        await asyncio.to_thread(asyncio.run, work())
        link.proxy.mode = Mode.FORWARD
        async with asyncio.timeout(20):
            while link.proxy.connections:
                await asyncio.sleep(0.1)

    async def test_what_was_given_up_and_is_read_as_absent_does_not_appear_later(self, link: Link) -> None:
        """A write is given up while the network stands still, and delivered afterwards: the first read of the same
        store that is answered sees how it ends, so that a caller who repeats a missing write has written it once
        (OPS-9, OPS-10).
        """
        store = await self.impatient_store(link)
        for number in range(4):
            agent_id = f"given-up-{number}"
            await store.append_messages(agent_id, [samples.message(text="old")])
            link.proxy.mode = Mode.STALL
            call = asyncio.ensure_future(store.append_messages(agent_id, [NEW]))
            if number % 2:
                await asyncio.sleep(0.1)
                call.cancel()
            (end,) = await asyncio.gather(call, return_exceptions=True)
            assert isinstance(end, (StorageError, asyncio.CancelledError)), end
            link.proxy.mode = Mode.FORWARD
            found = await _first_answer(store, agent_id)
            async with asyncio.timeout(30):
                while await _first_answer(store, agent_id) == ["old"]:
                    with suppress(StorageError):  # a write that was given up may hold the agent: look again
                        await store.append_messages(agent_id, [NEW])
            await asyncio.sleep(0.5)
            assert await _messages(store, agent_id) == ["old", "new"], f"{end!r}, then {found}"

    @pytest.mark.parametrize("name", ["save_messages", "save_turn", "save_todos", "save_snapshot", "append_event"])
    async def test_a_write_whose_answer_was_lost_overwrites_nothing(self, link: Link, name: str) -> None:
        """A write was done, its answer is lost, and another store deletes the agent before the first can ask: the
        deleted records do not come back, however the first store goes on (OPS-10).
        """
        write, look, expected = WRITES[name]
        store, direct = await link.by_the_proxy(max=2), await link.directly()
        deleted_in_between = not_cut = first = 0
        for attempt in range(240):
            skip, agent_id = (
                (attempt - first) // 2,
                f"lost-{attempt}",
            )  # twice each: a new connection says more at first
            old = [samples.message(text="old")]
            await direct.save_turn(agent_id, messages=old, info=samples.info(agent_id), events=[samples.event(1)])
            await store.exists(agent_id)
            await write(store, f"warm-{skip}")  # a driver may have its statement prepared first, which is a reply, too
            cuts = link.proxy.counts.cut_at
            link.proxy.cut_at(reply=b"", skip=skip, then=Mode.REFUSE)
            call = asyncio.ensure_future(write(store, agent_id))
            while link.proxy.counts.cut_at == cuts and not call.done():
                await asyncio.sleep(0.001)
            was_done = await look(direct, agent_id) == expected
            if was_done:
                await direct.delete(agent_id)
            was_cut = link.proxy.counts.cut_at > cuts
            link.proxy.cut_at()
            link.proxy.mode = Mode.FORWARD
            ends: Any = await asyncio.gather(call, return_exceptions=True)
            assert not isinstance(ends[0], BaseException) or isinstance(ends[0], StorageError), ends
            if was_done and was_cut:
                deleted_in_between += 1
                await asyncio.sleep(0.1)
                assert not await direct.exists(agent_id), f"reply {skip} of {name} was lost"
                assert await _turn(direct, agent_id) == [[], [], []], f"reply {skip} of {name} was lost: it came back"
                assert await direct.load_todos(agent_id) is None, f"reply {skip} of {name} was lost: it came back"
                assert await direct.list_snapshots(agent_id) == [], f"reply {skip} of {name} was lost: it came back"
            not_cut = 0 if was_cut else not_cut + 1
            if not_cut == 3 and deleted_in_between:
                break
            if not_cut == 3:  # on a busy machine each write may have ended before the look: once more
                first, not_cut = attempt + 1, 0
        assert deleted_in_between > 0


async def _first_answer(store: ExtendedStore, agent_id: str) -> list[str]:
    """The first answer; reads have a deadline as well."""
    for _ in range(30):
        try:
            return await _messages(store, agent_id)
        except StorageError:
            await asyncio.sleep(0.1)
    raise AssertionError(f"{agent_id} cannot be read")
