"""The reads of followers, and the deadline of a store that is opened."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from kode_conformance.values import samples

from kode_core import AgentEvent, Bookmark, Timeline, create_extended_store
from kode_core.authoring.opening import without_deadline
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import EventRange, EventRow
from kode_core.engine import Engine
from kode_core.errors import InvalidArgumentError, StoreClosedError, StoreTimeoutError
from kode_core.layers.base import Layer
from kode_core.store.facade import EngineStore


class Counting(Layer):
    """Counts the events that are read, and the looks."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.rows = self.looks = 0

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        found = await super().events(agent_id, span)
        self.rows += len(found)
        self.looks += 1
        return found


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
        engine.rows = 0
        waiting = asyncio.ensure_future(anext(following))
        looks = engine.looks
        while engine.looks < looks + 3:
            await asyncio.sleep(0.01)
        for seq in (4000, 4001):
            await store.append_events("a", [event(seq, "monitor")])
            assert (await waiting).bookmark.seq == seq
            waiting = asyncio.ensure_future(anext(following))
        assert engine.rows == 2
        waiting.cancel()
        await asyncio.wait([waiting])
        await following.aclose()  # type: ignore[attr-defined]


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
        assert engine.rows == 6
        await following.aclose()  # type: ignore[attr-defined]


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
