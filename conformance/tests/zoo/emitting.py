"""Stores that number events wrongly, and streams of events that end wrongly (EVT-8, EVT-9, EVT-10, TURN-2)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import StreamWrapper, Wrapper, mutant
from kode_core.errors import AgentDeletedError
from kode_core.model import AgentEvent, StoredEvent, Timeline
from kode_core.protocols import Heartbeat
from kode_core.store import EngineStore

# --- numbers ----------------------------------------------------------------------------------------------------------


async def _at_once(ctx: Context) -> object:
    return sorted([e.bookmark.seq for e in await asyncio.gather(*(ctx.store.emit("a", "x") for _ in range(9)))])


@mutant("EVT-8", killed_by="emitted_events_are_numbered", source="`last_bookmark() + 1`", witness=_at_once)
class EmitsByReadAndWrite(EngineStore):
    """Reads the last seq for each emit, and appends: emits at once get one seq."""

    async def emit(self, agent_id: str, type: str, data: Any = None, **how: Any) -> StoredEvent:  # noqa: A002
        sound = await super().emit(agent_id, type, data, **how) if how.get("fence") or not agent_id else None
        if sound is not None:
            return sound
        entry = Timeline.after(await self.last_bookmark(agent_id), AgentEvent("progress", type, data or {}))
        offset = await self.append_event(agent_id, entry)
        return StoredEvent(entry.cursor, entry.bookmark, entry.event, offset=offset)


async def _after_a_refusal(ctx: Context) -> object:
    with suppress(Exception):
        await ctx.store.emit("a", "x", {"x": float("nan")})
    return (await ctx.store.emit("a", "x")).bookmark.seq


@mutant(
    "EVT-8", killed_by="refused_emits_write_nothing", source="a counter before validation", witness=_after_a_refusal
)
class RefusalsUseNumbers(EngineStore):
    """Gives the next seq to a call before it is refused."""

    async def emit(self, agent_id: str, *args: Any, **how: Any) -> StoredEvent:
        try:
            return await super().emit(agent_id, *args, **how)
        except Exception:
            with suppress(Exception), self._appender.numbers.using(agent_id) as number:
                number.next = (number.next or 0) + 1
            raise


async def _alike(ctx: Context) -> object:
    other = await ctx.another()
    for _ in range(40):
        await asyncio.gather(ctx.store.emit("a", "tick"), other.emit("a", "tick"))
    return len([event async for event in ctx.store.read_events("a")])


@mutant("EVT-8", killed_by="equal_emits_are_all_kept", source="cursor = seq, as in the KODE SDK", witness=_alike)
class CursorsFromNought(EngineStore):
    """Counts the cursors of every instance from 0, so that two instances make identical entries."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._emitter._cursors = itertools.count()


async def _in_turn(ctx: Context) -> object:
    stores = (ctx.store, await ctx.another())
    for turn in range(4):
        async with stores[turn % 2].acquire_agent_lock("a", wait_ms=5_000):
            await stores[turn % 2].emit("a", "x")
    return [event.bookmark.seq async for event in ctx.store.read_events("a")]


@mutant(
    "EVT-8",
    killed_by="emitters_under_the_lock_go_on_after_one_another",
    source="a counter that outlives the lease",
    witness=_in_turn,
)
class CountsOverLeases(EngineStore):
    """Trusts for a second in the seq that it knows, also under a new lease."""

    async def emit(self, agent_id: str, *args: Any, **how: Any) -> StoredEvent:
        with self._locks.fencing(agent_id, how.get("fence")) as held, self._appender.numbers.using(agent_id) as number:
            number.fence = held
            return await super().emit(agent_id, *args, **how)


async def _later(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.emit("a", "x")
    await other.append_event("a", samples.event(900))
    await asyncio.sleep(1.2)
    return (await ctx.store.emit("a", "x")).bookmark.seq


@mutant(
    "EVT-8",
    killed_by="an_emitter_sees_what_others_stored_before",
    source="a counter that is read once, when the process starts",
    witness=_later,
)
class CountsForEver(EngineStore):
    """Never reads the last seq again once it knows one, except under a lease."""

    async def emit(self, agent_id: str, *args: Any, **how: Any) -> StoredEvent:
        if not agent_id:
            return await super().emit(agent_id, *args, **how)
        with self._appender.numbers.using(agent_id) as number:
            number.read_at = asyncio.get_running_loop().time()
            return await super().emit(agent_id, *args, **how)


async def _of_a_turn(ctx: Context) -> object:
    found = await ctx.store.save_turn("a", events=[samples.event(2), samples.event(1)])
    again = await ctx.store.save_turn("a", events=[samples.event(1), samples.event(2)])
    return list(found) == list(again)[::-1]


@mutant(
    "TURN-2",
    killed_by="a_turn_returns_the_offsets_of_its_events",
    source="INSERT … RETURNING, whose rows come in any order",
    witness=_of_a_turn,
)
class TurnsSortOffsets(EngineStore):
    """Returns the offsets of a turn's events in ascending order."""

    async def save_turn(self, agent_id: str, **parts: Any) -> Sequence[int]:
        return sorted(await super().save_turn(agent_id, **parts))


# --- streams ----------------------------------------------------------------------------------------------------------


async def _beats(ctx: Context) -> object:
    await ctx.store.append_event("a", samples.event(0))
    stream: Any = ctx.store.follow_events("a", heartbeat_ms=30)
    try:
        items = [await anext(stream), await anext(stream)]
        return [isinstance(item, Heartbeat) and item.offset == items[0].offset for item in items]
    finally:
        await stream.aclose()


@mutant("EVT-9", killed_by="heartbeats_come_in_silence", source="a heartbeat without an id", witness=_beats)
class BeatsAtNought(EngineStore):
    """Gives heartbeats the offset at which the follower began."""

    def follow_events(self, agent_id: str, **how: Any) -> Any:
        return _Nought(super().follow_events(agent_id, **how), how.get("after_offset", 0))


class _Nought(StreamWrapper):
    def __init__(self, stream: Any, begun: int) -> None:
        super().__init__(stream)
        self._begun = begun

    async def __anext__(self) -> Any:
        item = await anext(self.inner)
        return Heartbeat(item.timestamp, self._begun) if isinstance(item, Heartbeat) else item


async def _timeouts(ctx: Context) -> object:
    stream: Any = ctx.store.follow_events("a")
    with suppress(TimeoutError):
        await asyncio.wait_for(anext(stream), 0.05)
    await ctx.store.append_event("a", samples.event(0))
    item = await anext(stream, None)
    await stream.aclose()
    return item is not None


@mutant("EVT-9", killed_by="a_cancelled_anext_loses_nothing", source="an async generator", witness=_timeouts)
class FollowsByGenerator(Wrapper):
    """Follows in an async generator, which a cancelled anext ends."""

    def follow_events(self, agent_id: str, **how: Any) -> Any:
        return self._follow(self.inner.follow_events(agent_id, **how))

    @staticmethod
    async def _follow(stream: Any) -> AsyncIterator[Any]:
        try:
            async for item in stream:
                yield item
        finally:
            await stream.aclose()


async def _ended(ctx: Context) -> object:
    await ctx.store.append_event("a", samples.event(0))
    stream: Any = ctx.store.follow_events("a")
    await anext(stream)
    await (await ctx.another()).delete("a")
    await ctx.store.append_event("a", samples.event(1))
    try:
        return (await anext(stream)).bookmark.seq
    except AgentDeletedError:
        return "deleted"
    finally:
        await stream.aclose()


@mutant("EVT-10", killed_by="following_ends_at_a_delete", source="a watermark, and nothing else", witness=_ended)
class FollowsTheNextAgent(EngineStore):
    """Goes on with the events of the next agent of the id when the agent was deleted."""

    def follow_events(self, agent_id: str, **how: Any) -> Any:
        return _GoesOn(super().follow_events, agent_id, how)


class _GoesOn(StreamWrapper):
    def __init__(self, follow: Any, agent_id: str, how: dict[str, Any]) -> None:
        super().__init__(follow(agent_id, **how))
        self._again = lambda: follow(agent_id, **how)

    async def __anext__(self) -> Any:
        while True:
            try:
                return await anext(self.inner)
            except AgentDeletedError:
                await self.inner.aclose()
                self.inner = self._again()


async def _silent(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    stream: Any = ctx.store.follow_events("a")
    waiting = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0.3)
    await (await ctx.another()).delete("a")
    await asyncio.wait([waiting], timeout=5)
    ended = waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await stream.aclose()
    return ended


@mutant(
    "EVT-10",
    killed_by="followers_in_silence_end_at_a_delete",
    source="a look at the last event that was read, which an agent without events does not have",
    witness=_silent,
)
class WaitsForTheFirstEvent(EngineStore):
    """Does not notice the delete of an agent of which a follower has read no event."""

    def follow_events(self, agent_id: str, **how: Any) -> Any:
        stream: Any = super().follow_events(agent_id, **how)

        async def is_there() -> bool:
            return False

        stream._agent_is_there = is_there
        return stream
