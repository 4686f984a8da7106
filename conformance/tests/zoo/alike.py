"""Stores that tell records apart by their contents, or by a part of them, where their identity matters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.lists import Writes
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.batch import Batch, FoundRow, ListWrite, Outcome, Row
from kode_core.layers import Layer
from kode_core.model import Bookmark
from kode_core.query import RowQuery
from kode_core.store import EngineStore

_LAST = samples.event(4, cursor=1).replace(bookmark=Bookmark(4, samples.T0))


async def _three_times(ctx: Context) -> object:
    """True if the second of two equal messages has a later time than the first."""
    await ctx.store.save_messages("a", talk("yes"))
    await asyncio.sleep(0.01)
    await ctx.store.append_messages("a", talk("no", "yes"))
    found = await ctx.store.query_messages(order="asc")
    times = {message.position: message.created_at for message in found}
    return times[0] < times[2]


@mutant("MSG-4", killed_by="equal_messages_keep_each_their_time", source="times by a hash of it", witness=_three_times)
class TimesByContent(Writes):
    """Gives every message the time at which a message of these contents came first."""

    _first: dict[bytes, int] = {}  # noqa: RUF012 - of all instances

    def changed(self, write: ListWrite) -> ListWrite:
        put = tuple((i, self._timed(row)) for i, row in write.put)
        return replace(write, put=put, append=tuple(map(self._timed, write.append)))

    def _timed(self, row: Row) -> Row:
        first = self._first.setdefault(row.body.digest, row.created_at)
        fresh = row.created_at - first < 10_000
        if not fresh:
            self._first[row.body.digest] = row.created_at
        return replace(row, created_at=first if fresh else row.created_at)

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        known = await self.inner.agent_ids("", None, 1), await self.inner.stored_ids(None, 1)
        if not any(known):
            self._first.clear()
        return await super().commit(batches)


@mutant(
    "MSG-3",
    killed_by="MSG-1.equal_records_are_all_kept",
    source="a guard against repeats",
    witness=seen(
        lambda s: s.append_messages("a", talk("yes")),
        lambda s: s.append_messages("a", talk("yes")),
        lambda s: s.load_messages("a"),
    ),
)
class TakesEqualsForRepeats(EngineStore):
    """Takes a message that equals the last one for a repeat, and does not append it."""

    async def append_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        if type(messages) is list and len(messages) == 2 and messages[0] == messages[1]:
            last = (await self.load_messages(agent_id))[-1:]
            messages = [message for message in messages if [message] != last]
        elif type(messages) is list and len(messages) == 1:
            messages = [] if (await self.load_messages(agent_id))[-1:] == messages else messages
        await super().append_messages(agent_id, messages, fence=fence)


@mutant(
    "TC-2",
    killed_by="equal_calls_are_found_each",
    source="`SELECT DISTINCT`",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call()] * 3),
        lambda s: the("position", s.query_tool_calls()),
    ),
)
class FindsDistinctCalls(Layer):
    """Finds one of the tool calls of an agent that are equal."""

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        found = await super().find_rows(query)
        if query.kind == "messages":
            return found
        return list({(row.agent_id, row.body.digest): row for row in found}.values())


@mutant(
    "EVT-4",
    killed_by="almost_equal_events_are_all_kept",
    source="an id that is made of some fields",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, cursor=1)),
        lambda s: s.append_event("a", samples.event(1, cursor=2)),
        lambda s: s.read_events("a"),
    ),
)
class ForgetsTheCursor(EngineStore):
    """Takes an event for a repeat whose cursor alone is another."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._told: dict[str, int] = {}

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        name = repr((agent_id, getattr(timeline, "bookmark", None), getattr(timeline, "event", timeline)))
        if name in self._told and [event async for event in self.read_events(agent_id)]:
            return self._told[name]
        self._told[name] = await super().append_event(agent_id, timeline, fence=fence)
        return self._told[name]


async def _by_time(ctx: Context) -> object:
    for agent in ("B", "b"):
        await ctx.store.save_messages(agent, talk("1"))
        await asyncio.sleep(0.005)
    return await the("agent_id", ctx.store.query_messages(order="asc"))


@mutant(
    "QRY-3",
    killed_by="messages_of_one_time_over_agents",
    source="a collation that knows no case, and times in seconds",
    witness=_by_time,
)
class CollatesAgents(Layer):
    """Sorts messages of one day by agents, in whatever case these are written, and the upper case behind."""

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        found = await super().find_rows(query)
        if query.kind == "tool_calls" or query.after is not None:
            return found
        return sorted(
            found,
            key=lambda row: (row.created_at // 10**8, row.agent_id.lower(), row.agent_id.swapcase(), row.position),
            reverse=query.descending,
        )


@mutant(
    "HIS-1",
    killed_by="the_same_keys_in_every_agent_and_kind",
    source="a primary key without the agent",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("k", 1)),
        lambda s: s.save_compression_record("b", samples.compression("k", 2)),
        lambda s: s.load_compression_records("a"),
    ),
)
class CompressionsAreShared(EngineStore):
    """Replaces the compression record of that id in the first agent that has one, too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._of: dict[str, str] = {}

    async def save_compression_record(self, agent_id: str, record: Any, *, fence: Any = None) -> None:
        await super().save_compression_record(agent_id, record, fence=fence)
        first = self._of.setdefault(record.id, agent_id)
        if first != agent_id:
            await super().save_compression_record(first, record)


@mutant(
    "EVT-6",
    killed_by="the_last_bookmark_of_equal_seqs",
    source="max() of Python, which gives the first of the greatest",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(4, cursor=0), _LAST]),
        lambda s: s.last_bookmark("a"),
    ),
)
class FirstOfTheHighest(EngineStore):
    """Gives the bookmark of the first of several events with the highest seq."""

    async def last_bookmark(self, agent_id: str) -> Any:
        last = await super().last_bookmark(agent_id)
        async for event in self.read_events(agent_id, since=last and last.replace(seq=last.seq - 1)):
            return event.bookmark
        return last


@mutant(
    "EVT-6",
    killed_by="the_last_bookmark_of_equal_seqs",
    source="the last one of a turn's events, as they are in order anyway",
    witness=seen(
        lambda s: s.save_turn("a", events=[samples.event(9), samples.event(2)]),
        lambda s: s.last_bookmark("a"),
    ),
)
class LastOfTheTurn(EngineStore):
    """Gives the bookmark of the last event of a turn, also if one before it has a higher seq."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._last: dict[str, tuple[Any, Any]] = {}

    async def save_turn(self, agent_id: str, **parts: Any) -> Any:
        before = await super().last_bookmark(agent_id)
        offsets = await super().save_turn(agent_id, **parts)
        after = await super().last_bookmark(agent_id)
        if before is None and after is not None:
            self._last[agent_id] = after, parts["events"][-1].bookmark
        return offsets

    async def last_bookmark(self, agent_id: str) -> Any:
        found = await super().last_bookmark(agent_id)
        after, last = self._last.get(agent_id, (None, None))
        return last if found is not None and found == after else found
