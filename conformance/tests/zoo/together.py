"""Stores that are right for one call at a time: streams read half, turns at once, whole lists, and odd zones."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta, timezone
from itertools import groupby
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.settings import Tier
from kode_conformance.values import samples

from conformance.tests.zoo.base import Wrapper, mutant
from conformance.tests.zoo.witnesses import seen, the
from kode_core.batch import Doc, DocKind
from kode_core.layers import Layer
from kode_core.store import EngineStore


async def _while_streaming(ctx: Context) -> object:
    """The todos that are loaded while messages are streamed."""
    other = await ctx.another()
    await ctx.store.save_messages("a", samples.messages(2))
    await ctx.store.save_todos("a", samples.todos("old"))
    stream: Any = ctx.store.iter_messages(agent_id="a")
    async with aclosing(stream):
        await anext(stream)
        await other.save_todos("a", samples.todos("new"))
        return await ctx.store.load_todos("a")


@mutant(
    "QRY-8",
    killed_by="streams_that_are_read_half_hide_nothing",
    source="a connection for each store, whose open cursor keeps the snapshot of its transaction",
    witness=_while_streaming,
)
class PinsTodosWhileStreaming(Wrapper):
    """Loads todos as they were when a stream of messages began, for as long as that is under way."""

    __slots__ = ("pinned",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.pinned: dict[str, list[Any]] = {}

    async def iter_messages(self, **filters: Any) -> AsyncIterator[Any]:
        agent_id = filters.get("agent_id", "")
        async with aclosing(self.inner.iter_messages(**filters)) as messages:
            async for message in messages:
                if agent_id not in self.pinned:
                    self.pinned[agent_id] = [await self.inner.load_todos(message.agent_id)]
                try:
                    yield message
                except GeneratorExit:
                    self.pinned.pop(agent_id, None)
                    raise
        self.pinned.pop(agent_id, None)

    async def load_todos(self, agent_id: str) -> Any:
        now = await self.inner.load_todos(agent_id)
        return self.pinned[agent_id][0] if agent_id in self.pinned else now


_UNDER_WAY: Final = Counter[str]()


async def _turns_at_once(ctx: Context) -> object:
    """The lengths of the runs of events from one turn, in the order of commit, after four turns at once."""
    turns = (ctx.store.save_turn("a", events=samples.events(3, 10 * i)) for i in range(4))
    await asyncio.gather(*turns)
    order = [event.bookmark.seq // 10 async for event in ctx.store.read_events("a", after_offset=0)]
    return [len(list(piece)) for _, piece in groupby(order)]


@mutant(
    "TURN-1",
    killed_by="turns_at_once_lose_nothing",
    source="a retry after a conflict that goes on where the first attempt was",
    witness=_turns_at_once,
)
class SplitsTurnsThatMeet(Wrapper):
    """Appends the last event of a turn by itself when another turn of the agent is under way."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        events = parts.get("events", ())
        if type(agent_id) is not str or type(events) is not list or len(events) < 2:
            await self.inner.save_turn(agent_id, **parts)
            return
        meets = _UNDER_WAY[agent_id]
        _UNDER_WAY[agent_id] += 1
        try:
            await self.inner.save_turn(agent_id, **{**parts, "events": events[:-1] if meets else events})
            if meets:
                await self.inner.append_events(agent_id, events[-1:], fence=parts.get("fence"))
        finally:
            _UNDER_WAY[agent_id] -= 1


@mutant(
    "TC-3",
    killed_by="upserts_of_all_that_is_there",
    source="an upsert of everything that takes the way of a save",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i) for i in range(101)]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(i) for i in range(101)][::-1]),
        lambda s: the("id", s.load_tool_call_records("a")),
    ),
)
class SavesUpsertsOfAll(EngineStore):
    """Saves an upsert of all of a long list as a new list, in the order of the upsert."""

    async def upsert_tool_call_records(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        if type(records) is list and len(records) > 100:
            stored = await self.load_tool_call_records(agent_id)
            if {record.id for record in stored} == {record.id for record in records}:
                return await self.save_tool_call_records(agent_id, records, fence=fence)
        await super().upsert_tool_call_records(agent_id, records, fence=fence)


_NEPAL: Final = timezone(timedelta(hours=5, minutes=45))


@mutant(
    "VAL-5",
    killed_by="filters_take_times_of_every_zone",
    source='the first two digits of `strftime("%z")`',
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(1)),
        lambda s: the("position", s.query_messages(created_before=datetime.now(UTC) + timedelta(minutes=5))),
        lambda s: the("position", s.query_messages(created_before=datetime.now(_NEPAL) - timedelta(minutes=5))),
    ),
)
class ZonesOfWholeHours(Wrapper):
    """Takes the zone of a datetime in a filter of messages for one of whole hours."""

    __slots__ = ()

    async def query_messages(self, **filters: Any) -> Any:
        return await self.inner.query_messages(**_in_whole_hours(filters))

    def iter_messages(self, **filters: Any) -> AsyncIterator[Any]:
        return self.inner.iter_messages(**_in_whole_hours(filters))  # type: ignore[no-any-return]


def _in_whole_hours(filters: dict[str, Any]) -> dict[str, Any]:
    """The filters with the minutes left out of zones."""

    def of(value: Any) -> Any:
        offset = value.utcoffset() if type(value) is datetime else None
        return (
            value if offset is None else value.replace(tzinfo=timezone(timedelta(hours=offset // timedelta(hours=1))))
        )

    return {name: of(value) for name, value in filters.items()}


# --- reads that are shared --------------------------------------------------------------------------------------------


async def _next_to_an_older(ctx: Context) -> object:
    """The todos that are loaded after a save, while an older load is under way."""
    other = await ctx.another()
    await ctx.store.save_todos("a", samples.todos("old"))
    older = asyncio.ensure_future(other.load_todos("a"))
    for _ in range(5):
        await asyncio.sleep(0)
    await ctx.store.save_todos("a", samples.todos("new"))
    found = await other.load_todos("a")
    await older
    return found


@mutant(
    "QRY-8",
    killed_by="a_read_gives_what_was_written_before_it_began",
    source="Go's singleflight: one load for all who ask meanwhile",
    witness=_next_to_an_older,
)
class JoinsTheLoadUnderWay(EngineStore):
    """Gives to a load of todos what a load that began earlier has read, if that is still under way."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._loads: dict[str, asyncio.Task[Any]] = {}

    async def load_todos(self, agent_id: str) -> Any:
        load = self._loads.get(agent_id)
        if load is None:
            load = self._loads[agent_id] = asyncio.ensure_future(self._load_todos(agent_id))
            load.add_done_callback(lambda _: self._loads.pop(agent_id))
        return copy.deepcopy(await asyncio.shield(load))

    async def _load_todos(self, agent_id: str) -> Any:
        found = await super().load_todos(agent_id)
        await asyncio.sleep(0.02)  # the answer is on its way
        return found


@mutant(
    "QRY-8",
    killed_by="a_read_among_many_gives_what_was_written_before",
    source="requests to a server that are put together by their address",
    witness=_next_to_an_older,
    tier=Tier.STANDARD,
    slow=True,
)
class JoinsTheRequestUnderWay(Layer):
    """Sends no request for documents of a kind while the same one is under way, and gives its answer."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._requests: dict[Any, asyncio.Task[Any]] = {}

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        asked = (agent_id, kind, key)
        request = self._requests.get(asked)
        if request is None:
            request = self._requests[asked] = asyncio.ensure_future(self._ask(*asked))
            request.add_done_callback(lambda _: self._requests.pop(asked))
        return await asyncio.shield(request)

    async def _ask(self, agent_id: str, kind: DocKind, key: str | None) -> Sequence[Doc]:
        found = await super().docs(agent_id, kind, key)
        await asyncio.sleep(0.005)  # the answer is on its way
        return found
