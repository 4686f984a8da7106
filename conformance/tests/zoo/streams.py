"""Stores whose logs are right while they are short and quiet (EVT clauses)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnSqlite, mutant
from conformance.tests.zoo.events import Events, again
from kode_core.batch import Batch, EventRange, EventRow, EventWrite
from kode_core.errors import AgentDeletedError
from kode_core.layers import Layer
from kode_core.model import Bookmark
from kode_core.store import EngineStore

# --- reading ----------------------------------------------------------------------------------------------------------


def _of_one_seq(count: int, seq: int = 1) -> list[Any]:
    return [samples.event(seq, cursor=i) for i in range(count)]


async def _read(ctx: Context, **how: Any) -> list[int]:
    return [event.cursor async for event in ctx.store.read_events("a", **how)]


async def _crowd(ctx: Context) -> object:
    await ctx.store.append_events("a", _of_one_seq(100))
    return await _read(ctx)


@mutant("EVT-5", killed_by="hundreds_of_one_seq", source="`WHERE seq > ?` for the next page", witness=_crowd)
class PagesBySeqOnly(Layer):
    """Goes on behind the seq of a page's last event, and loses the others of that seq."""

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        if span.order == "seq" and span.after is not None:
            span = replace(span, after=(span.after[0], 2**62))
        return await super().events(agent_id, span)


async def _turn(ctx: Context) -> object:
    await ctx.store.save_turn("a", events=_of_one_seq(80))
    return await _read(ctx)


@mutant("EVT-1", killed_by="EVT-5.logs_of_any_length", source="a transaction of a few statements", witness=_turn)
class TurnsHaveFewEvents(EngineStore):
    """Writes the first fifty events of a turn."""

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        events = parts.get("events")
        if type(events) is list:
            parts["events"] = events[:50]
        await super().save_turn(agent_id, **parts)


async def _repeat(ctx: Context) -> object:
    events = _of_one_seq(700)
    await ctx.store.append_events("a", events)
    await ctx.store.append_event("a", events[0])
    return len(await _read(ctx))


@mutant("EVT-4", killed_by="repeats_far_apart", source="a set of the newest entries", witness=_repeat)
class KnowsTheNewestEntries(Events):
    """Knows the last five hundred entries again, and stores older ones twice."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._known: dict[bytes, int] = {}

    def written(self, batch: Batch) -> Sequence[EventWrite]:
        written = []
        for event in batch.events:
            place = self._known.get(event.body.digest)
            written.append(event if place is None or place > len(self._known) - 500 else again(event))
            self._known.setdefault(event.body.digest, len(self._known))
        return written


async def _amid_appends(ctx: Context) -> object:
    await ctx.store.append_events("a", [samples.event(i, cursor=i) for i in range(150)])
    found = []
    async for event in ctx.store.read_events("a"):
        found.append(event.cursor)
        if len(found) == 10:
            await ctx.store.append_event("a", samples.event(-1, cursor=999))
    return found


@mutant(
    "EVT-5",
    killed_by="events_that_come_while_a_log_is_read",
    source="pages by offset and limit",
    witness=_amid_appends,
)
class PagesByNumber(EngineStore):
    """Counts how many events it gave, and goes on behind as many."""

    def read_events(self, agent_id: str, **how: Any) -> Any:
        super().read_events(agent_id, **how)
        return self._pages(agent_id, how)

    async def _pages(self, agent_id: str, how: dict[str, Any]) -> AsyncIterator[Any]:
        given = 0
        while True:
            page = [event async for event in super().read_events(agent_id, **how)][given : given + 100]
            for event in page:
                yield event
            given += len(page)
            if len(page) < 100:
                return


# --- following --------------------------------------------------------------------------------------------------------


async def _followed(ctx: Context, count: int, **how: Any) -> list[int]:
    seen: list[int] = []
    try:
        async with asyncio.timeout(1):
            async for event in ctx.store.follow_events("a", **how):
                seen.append(event.bookmark.seq)
                if len(seen) == count:
                    break
    except TimeoutError:
        pass
    return seen


async def _of_a_channel(ctx: Context) -> object:
    await ctx.store.append_events("a", [samples.event(seq, "control") for seq in (1, 9)])
    return await _followed(ctx, 1, since=Bookmark(5, 0), channel="control")


@mutant("EVT-7", killed_by="every_follower_gets_every_event", source="one filter too few", witness=_of_a_channel)
class FollowersForgetSince(EngineStore):
    """Forgets since when a follower wants a channel."""

    def follow_events(self, agent_id: str, **how: Any) -> Any:
        super().follow_events(agent_id, **how)
        if how.get("channel") is not None:
            how.pop("since", None)
        return super().follow_events(agent_id, **how)


async def _over_a_delete(ctx: Context) -> object:
    seen: list[int] = []

    async def follow() -> None:
        try:
            async for event in ctx.store.follow_events("a"):
                seen.append(event.bookmark.seq)
        except AgentDeletedError:
            seen.append(-1)

    following = asyncio.ensure_future(follow())
    await ctx.store.append_event("a", samples.event(1))
    await asyncio.sleep(0.3)
    await ctx.store.delete("a")
    await ctx.store.append_event("a", samples.event(2))
    await asyncio.sleep(0.3)
    following.cancel()
    return seen


@mutant("EVT-10", killed_by="following_ends_at_a_delete", source="a stream's end", witness=_over_a_delete)
class DeletesEndFollowers(EngineStore):
    """Ends the followers of an agent that is deleted without an error, as if they had been stopped."""

    def follow_events(self, agent_id: str, **how: Any) -> Any:
        return self._followed(super().follow_events(agent_id, **how))

    async def _followed(self, events: Any) -> AsyncIterator[Any]:
        with suppress(AgentDeletedError):
            async for event in events:
                yield event


async def _silence(ctx: Context) -> object:
    seen: list[int] = []

    async def follow() -> None:
        async for event in ctx.store.follow_events("a"):
            seen.append(event.bookmark.seq)

    following = asyncio.ensure_future(follow())
    await asyncio.sleep(0.6)
    await ctx.store.append_event("a", samples.event(1))
    await asyncio.sleep(0.3)
    following.cancel()
    return seen


@mutant(
    "EVT-7",
    killed_by="following_through_silence",
    source="a blocking read with a timeout, whose end is taken for the end of the stream",
    witness=_silence,
)
class FollowersTire(EngineStore):
    """Ends a stream of events that nothing came in for 0.4 s."""

    def follow_events(self, agent_id: str, **how: Any) -> Any:
        return self._followed(super().follow_events(agent_id, **how))

    async def _followed(self, events: Any) -> AsyncIterator[Any]:
        while True:
            try:
                async with asyncio.timeout(0.4):
                    event = await anext(events)
            except (TimeoutError, StopAsyncIteration):
                return
            yield event


async def _goes_on(ctx: Context) -> object:
    offsets = await ctx.store.append_events("a", [samples.event(seq) for seq in (1, 2, 3)])
    return await _followed(ctx, 1, after_offset=offsets[1])


@mutant(
    "EVT-7",
    killed_by="a_follower_that_left_goes_on_where_it_was",
    source="a change stream that is resumed at a token",
    witness=_goes_on,
)
class FollowersRepeat(EngineStore):
    """Gives the last event again to a follower that goes on after it."""

    def follow_events(self, agent_id: str, **how: Any) -> Any:
        super().follow_events(agent_id, **how)
        if how.get("after_offset"):
            how["after_offset"] -= 1
        return super().follow_events(agent_id, **how)


async def _burst(ctx: Context) -> object:
    await ctx.store.append_events("a", _of_one_seq(300))
    return len(await _read(ctx, after_offset=0))


@mutant(
    "EVT-7",
    killed_by="following_bursts_of_processes",
    on=OnSqlite,
    source="queues of a fixed size",
    witness=_burst,
    slow=True,
)
class BurstsOverflow(Layer):
    """Loses an event of a burst of more than sixty that is read by offset."""

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        found = await super().events(agent_id, span)
        return [*found[:20], *found[21:]] if span.order == "offset" and len(found) > 60 else found
