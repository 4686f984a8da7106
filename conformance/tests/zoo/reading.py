"""Stores that read and follow the event log wrongly (EVT-5 to EVT-7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnSqlite, mutant
from conformance.tests.zoo.witnesses import happened, seen
from kode_core.batch import EventRange, EventRow
from kode_core.layers import Layer
from kode_core.model import CHANNELS, Bookmark, StoredEvent
from kode_core.store import EngineStore

# --- reading ----------------------------------------------------------------------------------------------------------

_CHANNELS = [samples.event(0, "monitor"), samples.event(1, "progress"), samples.event(2, "control")]


@mutant(
    "EVT-5",
    killed_by="channels_are_merged_by_seq",
    source="KODE SDK JSONStore: first all of progress, then control, then monitor",
    witness=seen(lambda s: s.append_events("a", _CHANNELS), lambda s: s.read_events("a")),
)
class ChannelByChannel(Layer):
    """Gives all events of one channel before those of the next."""

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        found = await super().events(agent_id, span)
        return sorted(found, key=lambda row: next(i for i, c in enumerate(CHANNELS) if f'"{c}"' in row.body.text))


@mutant(
    "EVT-5",
    killed_by="long_logs_are_in_order",
    source="a page that goes on behind an offset where the order is that of seq",
    witness=seen(
        lambda s: s.append_events("a", happened(*range(1199, -1, -1))),
        lambda s: s.read_events("a"),
    ),
)
class PagesByOffset(Layer):
    """Begins the next page by seq behind the offset of the last event."""

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        rows = await super().events(agent_id, span)
        if span.order == "offset" or span.after is None:
            return rows
        return [row for row in rows if row.offset > span.after[1]]


@mutant(
    "EVT-5",
    killed_by="since_is_exclusive_on_seq",
    source="WHERE seq >= ?",
    witness=seen(
        lambda s: s.append_events("a", happened(0, 1, 2)),
        lambda s: s.read_events("a", since=Bookmark(1, 0)),
    ),
)
class InclusiveSince(Layer):
    """Gives the event at the bookmark again."""

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        since = None if span.since_seq is None else span.since_seq - 1
        return await super().events(agent_id, replace(span, since_seq=since))


@mutant(
    "EVT-5",
    killed_by="after_offset_is_by_commit",
    source="one index for both orders",
    witness=seen(
        lambda s: s.append_events("a", happened(5, 1, 4)),
        lambda s: s.read_events("a", after_offset=0),
    ),
)
class AlwaysBySeq(Layer):
    """Gives events by seq where they are asked for by offset."""

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        return sorted(await super().events(agent_id, span), key=lambda row: row.seq)


@mutant(
    "EVT-5",
    killed_by="long_logs_stream",
    source="DynamoDB: a query ends after 1 MB, and goes on only if one asks",
    witness=seen(lambda s: s.append_events("a", happened(*range(600))), lambda s: s.read_events("a")),
)
class ReadsOnePage(Layer):
    """Ends a long log after 300 events."""

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        return (await super().events(agent_id, span))[:300]


@mutant(
    "EVT-5",
    killed_by="long_logs_are_in_order",
    source="sorting what a page happens to hold",
    witness=seen(
        lambda s: s.append_events("a", happened(*range(600, 0, -1))),
        lambda s: s.read_events("a"),
    ),
)
class SortsEachPage(Layer):
    """Reads the first page of a log by offset, and sorts it by seq."""

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        if span.order == "offset" or span.after is not None:
            return await super().events(agent_id, span)
        found = await super().events(agent_id, replace(span, order="offset"))
        return sorted(found, key=lambda row: row.seq)


@mutant(
    "EVT-5",
    killed_by="bad_arguments_of_reading_are_refused",
    source="KODE SDK: unknown values of filters are ignored",
    witness=seen(lambda s: s.append_events("a", happened(0)), lambda s: s.read_events("a", channel="progres")),
)
class TakesAnyChannel(EngineStore):
    """Gives all channels where one is asked for that does not exist."""

    def read_events(self, agent_id: str, **how: Any) -> AsyncIterator[StoredEvent]:
        if how.get("channel") not in CHANNELS:
            how.pop("channel", None)
        return super().read_events(agent_id, **how)


@mutant(
    "EVT-6",
    killed_by="the_last_bookmark",
    source="KODE SDK: lastBookmark is the one of the last `done`, behind which events were stored",
    witness=seen(lambda s: s.append_events("a", happened(8, 5)), lambda s: s.last_bookmark("a")),
)
class LastIsLatest(Layer):
    """Takes the event that came last for the one with the highest seq."""

    async def last_event(self, agent_id: str) -> EventRow | None:
        rows = await self.inner.events(agent_id, EventRange(order="offset", limit=10**6))
        return rows[-1] if rows else None


# --- following --------------------------------------------------------------------------------------------------------


async def _follow(ctx: Context) -> object:
    seqs = []
    await ctx.store.append_events("a", happened(0, 1, 2, 3))
    async for event in ctx.store.follow_events("a", after_offset=1):
        seqs.append(event.bookmark.seq)
        if len(seqs) == 3:
            return seqs
    return seqs


@mutant(
    "EVT-7",
    killed_by="following_gives_what_is_there_and_what_comes",
    source="KODE SDK: subscribe adds the live subscriber first and replays the history beside it",
    witness=_follow,
)
class FollowsWithRepeats(EngineStore):
    """Gives every second event twice to those who follow."""

    async def follow_events(self, agent_id: str, **how: Any) -> AsyncIterator[StoredEvent]:
        async for event in super().follow_events(agent_id, **how):
            yield event
            if event.bookmark.seq % 2:
                yield event


@mutant(
    "EVT-7",
    killed_by="following_another_process",
    on=OnSqlite,
    source="cursors that are not passed on",
    witness=_follow,
)
class FollowsFromTheStart(EngineStore):
    """Follows from the beginning, whatever place was asked for."""

    def follow_events(self, agent_id: str, **how: Any) -> AsyncIterator[StoredEvent]:
        return super().follow_events(agent_id, **{**how, "after_offset": 0})


async def _follow_another(ctx: Context) -> object:
    writer = await ctx.another()
    seen_: list[int] = []

    async def follow() -> None:
        async for event in ctx.store.follow_events("a"):
            seen_.append(event.bookmark.seq)

    task = asyncio.ensure_future(follow())
    await asyncio.sleep(0.01)
    await writer.append_event("a", samples.event(0))
    await asyncio.sleep(0.3)
    task.cancel()
    return seen_


@mutant(
    "EVT-7",
    killed_by="following_gives_what_is_there_and_what_comes",
    source="KODE SDK: subscribers hear of what their own process appends",
    witness=_follow_another,
    slow=True,
)
class FollowsItselfOnly(EngineStore):
    """Looks for new events only when it appended some itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "follow_poll_ms": 3_600_000})


@mutant(
    "EVT-1",
    killed_by="OPS-9.cancelled_appends_do_no_harm",
    source="one task that all wait for without a shield",
    witness=lambda ctx: _cancel_one(ctx),
)
class OneCancelsAll(EngineStore):
    """Gathers appends in one task, which is cancelled when one of the callers is."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._group: list[tuple[str, Any]] = []
        self._task: asyncio.Task[list[int]] | None = None

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        place = len(self._group)
        self._group.append((agent_id, timeline))
        if self._task is None:
            self._task = asyncio.ensure_future(self._flush())
        return (await self._task)[place]

    async def _flush(self) -> list[int]:
        await asyncio.sleep(0)
        group, self._group, self._task = self._group, [], None
        return [(await self.append_events(agent_id, [timeline]))[0] for agent_id, timeline in group]


async def _cancel_one(ctx: Context) -> object:
    tasks = [asyncio.ensure_future(ctx.store.append_event("a", samples.event(i))) for i in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [isinstance(result, BaseException) for result in results[1:]]
