"""The reads of followers, and the deadline of a store that is opened."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from kode_conformance.values import samples

from kode_core import AgentEvent, Bookmark, Heartbeat, StoredEvent, Timeline, create_extended_store
from kode_core.authoring.opening import without_deadline
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import AgentSummary, EventRange, EventRow
from kode_core.engine import Engine
from kode_core.errors import (
    AgentDeletedError,
    AgentNotFoundError,
    CorruptRecordError,
    InvalidArgumentError,
    StoreClosedError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from kode_core.layers.base import Layer
from kode_core.store.facade import EngineStore


class Counting(Layer):
    """Counts the looks, the events that are read, and those that are read again.

    A follower may read the last event that it knows again, to see that the agent is still the same (EVT-10).
    """

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.fresh = self.again = self.looks = self.summaries = 0
        self.seen: set[int] = set()

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        found = await super().events(agent_id, span)
        offsets = {row.offset for row in found}
        self.fresh += len(offsets - self.seen)
        self.again += len(offsets & self.seen)
        self.seen |= offsets
        self.looks += 1
        return found

    async def last_event(self, agent_id: str) -> EventRow | None:
        found = await super().last_event(agent_id)
        if found is not None and found.offset not in self.seen:
            self.fresh += 1
            self.seen.add(found.offset)
        return found

    async def summary(self, agent_id: str) -> AgentSummary | None:
        self.summaries += 1
        return await super().summary(agent_id)


def event(seq: int, channel: Any) -> Timeline:
    return Timeline(cursor=seq, bookmark=Bookmark(seq, 1), event=AgentEvent(channel, "e", {"n": seq}))


@pytest.mark.parametrize(
    ("filters", "first"),
    [
        ({"channel": "monitor"}, 1),
        ({"since": Bookmark(3000, 1)}, 3001),
        ({"channel": "monitor", "since": Bookmark(0, 1)}, 1),
    ],
    ids=["channel", "since", "both"],
)
async def test_a_follower_looks_at_no_event_twice(filters: Any, first: int) -> None:
    """A follower that is woken does not read again what its filter left out, and misses nothing."""
    engine = Counting(MemoryEngine())

    async def opener() -> Engine:
        return engine

    async with EngineStore(opener, follow_poll_ms=10) as store:
        await store.append_events("a", [event(0, "progress"), event(1, "monitor")])
        for start in range(2, 3002, 500):
            await store.append_events("a", [event(i, "progress") for i in range(start, start + 500)])
        following = store.follow_events("a", after_offset=0, **filters)
        assert (await anext(following)).bookmark.seq == first
        engine.fresh = engine.again = engine.looks = 0
        waiting = asyncio.ensure_future(anext(following))
        looks = engine.looks
        while engine.looks < looks + 3:
            await asyncio.sleep(0.01)
        for seq in (4000, 4001):
            await store.append_events("a", [event(seq, "monitor")])
            assert (await waiting).bookmark.seq == seq
            waiting = asyncio.ensure_future(anext(following))
        assert engine.fresh == 2
        assert engine.again <= engine.looks
        waiting.cancel()
        await asyncio.wait([waiting])
        await following.aclose()


@pytest.mark.parametrize("seq", ["3", 3.0, True, None])
async def test_a_bookmark_without_an_int_is_named(seq: Any) -> None:
    """The error is of the seq, not of the Bookmark, which is one."""
    async with create_extended_store("memory:") as store:
        for read in (store.read_events, store.follow_events):
            with pytest.raises(InvalidArgumentError, match=f"a Bookmark whose seq is an int, got {type(seq).__name__}"):
                read("a", since=Bookmark(seq, 0))


async def test_a_follower_misses_nothing_behind_a_large_seq() -> None:
    """An event whose seq is the highest may have a lower offset than others."""
    engine = Counting(MemoryEngine())

    async def opener() -> Engine:
        return engine

    async with EngineStore(opener, follow_poll_ms=10) as store:
        await store.append_events("a", [event(900, "progress"), *(event(i, "progress") for i in range(5))])
        following = store.follow_events("a", after_offset=0, channel="control")
        waiting = asyncio.ensure_future(anext(following))
        while engine.looks < 3:
            await asyncio.sleep(0.01)
        await store.append_events("a", [event(5, "control")])
        assert (await waiting).bookmark.seq == 5
        assert engine.fresh == 7  # all, and the one that last_event gave
        await following.aclose()


async def test_an_opening_that_migrates_has_no_deadline() -> None:
    """The deadline rests while what is stored is migrated, for the opening and for calls; then it begins anew."""
    begun = asyncio.Event()

    async def opener() -> Engine:
        with without_deadline():
            begun.set()
            await asyncio.sleep(0.5)
        return MemoryEngine()

    async with EngineStore(opener, timeout_ms=100) as store:
        assert await store.load_messages("a") == []
    store = EngineStore(opener, timeout_ms=100)
    begun.clear()
    first = asyncio.ensure_future(store.append_messages("a", samples.messages(1)))
    await begun.wait()
    assert await store.load_messages("b") == []  # a call that comes while it is opened
    await first
    await store.close()


async def test_an_opening_has_a_deadline_after_its_migration() -> None:
    """Only the migration has none."""

    async def opener() -> Engine:
        with without_deadline():
            await asyncio.sleep(0.01)
        await asyncio.sleep(60)
        return MemoryEngine()

    with pytest.raises(StoreTimeoutError, match="not open after 0.1 s"):
        await EngineStore(opener, timeout_ms=100).open()


async def test_to_close_a_store_ends_a_migration() -> None:
    """Calls that wait for the opening raise that the store was closed."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def opener() -> Engine:
        try:
            with without_deadline():
                begun.set()
                await asyncio.sleep(60)
        finally:
            ended.set()
        return MemoryEngine()

    store = EngineStore(opener)
    calls = [asyncio.ensure_future(store.load_messages("a")), asyncio.ensure_future(store.open())]
    await begun.wait()
    await store.close()
    assert ended.is_set()
    for call in calls:
        with pytest.raises(StoreClosedError):
            await call


# --- heartbeats, timeouts and the end ---------------------------------------------------------------------------------


def counted(engine: Engine, **options: Any) -> EngineStore:
    async def opener() -> Engine:
        return engine

    return EngineStore(opener, **options)


async def test_an_idle_follower_costs_what_it_did() -> None:
    """One look in ten reads the last event again, and nothing else is read; nothing is asked of an agent not there."""
    engine = Counting(MemoryEngine())
    async with counted(engine, follow_poll_ms=10) as store:
        await store.append_events("a", [event(0, "progress")])
        following, nobody = store.follow_events("a"), store.follow_events("nobody")
        await anext(following)
        waiting = [asyncio.ensure_future(anext(stream)) for stream in (following, nobody)]
        await asyncio.sleep(0.1)
        engine.fresh = engine.again = engine.looks = engine.summaries = 0
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with asyncio.timeout(60):
            while engine.looks <= 200 or not engine.again:
                await asyncio.sleep(0.05)
        assert engine.again <= 1 + (loop.time() - begun) / 2
        assert engine.fresh == engine.summaries == 0
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def test_a_slow_look_is_not_begun_anew_by_timeouts() -> None:
    """Timeouts that are shorter than a look do not keep a follower from its events."""

    class Slow(Counting):
        async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
            await asyncio.sleep(0.2)
            return await super().events(agent_id, span)

    engine = Slow(MemoryEngine())
    async with counted(engine) as store:
        await store.append_events("a", [event(i, "progress") for i in range(3)])
        following = store.follow_events("a")
        seen: list[int] = []
        for _ in range(40):
            with suppress(TimeoutError):
                seen.append((await asyncio.wait_for(anext(following), 0.02)).bookmark.seq)
        assert seen == [0, 1, 2]
        assert engine.looks <= 5
        await following.aclose()


async def test_heartbeats_come_while_a_look_hangs() -> None:
    """A database that does not answer keeps no heartbeat back; the caller hears of it when the look fails."""

    class Hanging(Counting):
        async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
            await asyncio.sleep(60)
            return []

    async with counted(Hanging(MemoryEngine()), timeout_ms=500) as store:
        following = store.follow_events("a", after_offset=7, heartbeat_ms=50)
        for _ in range(5):
            beat = await anext(following)
            assert isinstance(beat, Heartbeat)
            assert beat.offset == 7
        with pytest.raises(StoreTimeoutError):
            for _ in range(20):
                await anext(following)
        await following.aclose()


async def test_a_follower_that_failed_goes_on() -> None:
    """After an outage the same stream gives the events, each once."""

    class Failing(Counting):
        fails = False

        async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
            if self.fails:
                raise StoreUnavailableError("the server is away")
            return await super().events(agent_id, span)

    engine = Failing(MemoryEngine())
    async with counted(engine, follow_poll_ms=10) as store:
        await store.append_event("a", event(0, "progress"))
        following = store.follow_events("a")
        assert (await anext(following)).bookmark.seq == 0
        engine.fails = True
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                await anext(following)
        engine.fails = False
        await store.append_event("a", event(1, "progress"))
        assert (await anext(following)).bookmark.seq == 1
        await following.aclose()


async def test_damage_of_an_event_that_was_read_ends_no_follower() -> None:
    """The anchor is damaged after it was read: later events still come, and nobody takes it for a delete."""

    class Damaged(Counting):
        bad = 0

        async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
            found = await super().events(agent_id, span)
            if any(row.offset == self.bad for row in found):
                raise CorruptRecordError(f"event {self.bad} of agent {agent_id!r}", "its digest differs")
            return found

    engine = Damaged(MemoryEngine())
    async with counted(engine, follow_poll_ms=10) as store:
        await store.append_event("a", event(0, "progress"))
        following = store.follow_events("a")
        engine.bad = (await anext(following)).offset
        await store.append_event("a", event(1, "progress"))
        assert (await anext(following)).bookmark.seq == 1
        later = store.follow_events("a", after_offset=engine.bad)
        assert (await anext(later)).bookmark.seq == 1
        for stream in (following, later):
            await stream.aclose()


@pytest.mark.parametrize("filters", [{}, {"channel": "control"}, {"since": Bookmark(100, 0)}], ids=str)
async def test_a_deleted_agent_ends_every_follower(filters: Any) -> None:
    """One that filters, and saw nothing it wants, ends as well: by delete, delete_many, and in an instant."""
    for deletes in ("delete", "delete_many"):
        async with counted(MemoryEngine(), follow_poll_ms=60_000) as store:
            await store.save_info("a", samples.info("a"))
            await store.append_events("a", [event(i, "progress") for i in range(3)])
            following = store.follow_events("a", **filters)
            if not filters:
                for _ in range(3):
                    await anext(following)
            waiting = asyncio.ensure_future(anext(following))
            await asyncio.sleep(0.05)
            await (store.delete("a") if deletes == "delete" else store.delete_many(agent_id="a"))
            with pytest.raises(
                AgentDeletedError, match="agent 'a' was deleted while its events were followed"
            ) as caught:
                await asyncio.wait_for(waiting, 30)
            assert caught.value.agent_id == "a"
            assert isinstance(caught.value, AgentNotFoundError)
            with pytest.raises(AgentDeletedError):
                await anext(following)
            await following.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(following)


@pytest.mark.parametrize("by", ["store", "view", "another view"])
@pytest.mark.parametrize("follows", ["store", "view"])
@pytest.mark.parametrize("call", ["delete", "delete_many"])
async def test_a_store_and_its_views_wake_the_followers_of_each_other(by: str, follows: str, call: str) -> None:
    """They look long before they would by themselves, when there is an event and when the agent is gone."""
    async with create_extended_store("memory:", follow_poll_ms=60_000) as store:
        stores: dict[str, Any] = {"store": store, "view": store.scoped("t"), "another view": store.scoped("t")}
        names = {"store": "@t/a", "view": "a", "another view": "a"}
        writer, reader = stores[by], stores[follows]
        await writer.save_info(names[by], samples.info(names[by]))
        stream = reader.follow_events(names[follows])
        for n in range(2):
            looking = asyncio.ensure_future(anext(stream))
            for _ in range(10):
                await asyncio.sleep(0)
            await writer.append_event(names[by], event(n, "progress"))
            assert (await asyncio.wait_for(looking, 30)).bookmark.seq == n
        looking = asyncio.ensure_future(anext(stream))
        for _ in range(10):
            await asyncio.sleep(0)
        if call == "delete":
            await writer.delete(names[by])
        else:
            await writer.delete_many(agent_id=names[by])
        with pytest.raises(AgentDeletedError):
            await asyncio.wait_for(looking, 30)


async def test_what_was_read_before_a_delete_comes_before_the_error() -> None:
    """A slow caller gets the page that was read, and then the error, and no event of the next agent."""
    async with counted(MemoryEngine()) as store:
        await store.append_events("a", [event(i, "progress") for i in range(100)])
        following = store.follow_events("a")
        seen = [(await anext(following)).bookmark.seq]
        await store.delete("a")
        await store.append_events("a", [event(i, "progress") for i in range(500, 600)])
        with pytest.raises(AgentDeletedError):
            while True:
                seen.append((await anext(following)).bookmark.seq)
        assert seen == list(range(len(seen)))
        assert len(seen) < 100
        await following.aclose()


async def test_100_000_events_are_followed_in_bounded_memory() -> None:
    """A follower holds a page, with heartbeats too."""
    async with counted(MemoryEngine()) as store:
        for start in range(0, 100_000, 1_000):
            await store.append_events("a", [event(i, "progress") for i in range(start, start + 1_000)])
        following = store.follow_events("a", heartbeat_ms=1_000)
        count = most = 0
        async for item in following:
            assert isinstance(item, StoredEvent)
            assert item.bookmark.seq == count
            count += 1
            most = max(most, len(following._rows))  # type: ignore[attr-defined]
            if count == 100_000:
                break
        assert most <= 500
        await following.aclose()


async def test_a_stream_that_is_dropped_leaves_nothing() -> None:
    """The store forgets a follower that was not closed."""
    async with counted(MemoryEngine()) as store:
        await store.append_event("a", event(0, "progress"))
        for _ in range(20):
            following = store.follow_events("a")
            await anext(following)
            del following
        await asyncio.sleep(0)
        gc.collect()
        assert not store._appender.followers
