"""Stores that write or hold more than they should: MSG-5, TC-1, TURN-1, EVT-5, QRY-6."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
from kode_conformance.context import Context
from kode_conformance.instruments.costs import counted
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, OnSqlite, mutant
from conformance.tests.zoo.witnesses import talk
from kode_core.batch import Batch, Doc, DocKind, DocWrite, ListKind, Outcome
from kode_core.codec import Body, digest
from kode_core.layers import Layer
from kode_core.model import StoredEvent, StoredToolCall
from kode_core.query import SessionInfo
from kode_core.report import ConsistencyCheckResult
from kode_core.store import EngineStore

# --- written records --------------------------------------------------------------------------------------------------


async def _size_after(ctx: Context, *calls: Callable[[Any], Awaitable[object]]) -> bool:
    """True if the files grew by more than a quarter of the list by calls that change little."""
    await ctx.store.save_messages("a", talk(*(f"{i}" + "x" * 2000 for i in range(300))))
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i, result="x" * 2000) for i in range(300)])
    before = len(await ctx.harness.raw_dump(ctx.handle))
    for call in calls:
        await call(await ctx.another())
    return len(await ctx.harness.raw_dump(ctx.handle)) > before + 150_000


class _Copies(Layer):
    """Writes a copy of the stored list next to each change, as a document that no read returns."""

    async def copied(self, batch: Batch, kind: ListKind) -> Batch:
        found = await self.inner.rows(batch.agent_id, kind)
        text = json.dumps([row.text for row, _ in found.rows])
        body = Body(text, digest(text.encode()))
        return replace(batch, docs=(*batch.docs, DocWrite(DocKind.LAYER, "copy", Doc("copy", 0, body))))

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([await self.changed(batch) for batch in batches])

    async def changed(self, batch: Batch) -> Batch:
        raise NotImplementedError


async def _upsert(store: Any) -> None:
    await store.upsert_tool_call_records("a", [samples.tool_call(299)])


@mutant(
    "TC-1",
    killed_by="MSG-5.saving_costs_what_changed",
    on=OnJson,
    source="an upsert that loads the list, changes it and saves it",
    witness=lambda ctx: _size_after(ctx, _upsert),
)
class UpsertsWriteTheList(_Copies):
    """Writes all tool calls when one of them changes in its place, though not when one is added."""

    async def changed(self, batch: Batch) -> Batch:
        write = batch.tool_calls
        return await self.copied(batch, ListKind.TOOL_CALLS) if write is not None and write.put else batch


async def _saved_by_another(store: Any) -> None:
    await store.save_messages("a", talk(*(f"{i}" + "x" * 2000 for i in range(301))))


@mutant(
    "MSG-5",
    killed_by="saving_costs_what_changed",
    on=OnJson,
    source="a cache of what was saved last: whose turn it is next has no cache, and writes everything",
    witness=lambda ctx: _size_after(ctx, _saved_by_another),
)
class WritesAllWithoutItsCache(_Copies):
    """Writes a whole list when another instance was the last to save it."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._versions: dict[str, int] = {}

    async def changed(self, batch: Batch) -> Batch:
        write = batch.messages
        if write is None:
            return batch
        known = self._versions.get(batch.agent_id)
        return batch if known == write.expect else await self.copied(batch, ListKind.MESSAGES)

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        for batch in batches:
            summary = await self.inner.summary(batch.agent_id)
            if summary is not None and batch.messages is not None:
                self._versions[batch.agent_id] = summary.messages.version
        return outcomes


async def _one_after_large(ctx: Context) -> bool:
    await ctx.store.save_messages("a", talk(*("x" * 50_000 for _ in range(10))))
    before = len(await ctx.harness.raw_dump(ctx.handle))
    await ctx.store.append_messages("a", talk("1"))
    return len(await ctx.harness.raw_dump(ctx.handle)) > before + 250_000


@mutant(
    "MSG-5",
    killed_by="saving_costs_what_changed_next_to_large_records",
    on=OnJson,
    source="large texts in a file of their own, which each save writes anew",
    witness=_one_after_large,
)
class WritesLargeRecordsAgain(_Copies):
    """Writes the list again when there is a large message in it."""

    async def changed(self, batch: Batch) -> Batch:
        if batch.messages is None:
            return batch
        found = await self.inner.rows(batch.agent_id, ListKind.MESSAGES)
        is_large = any(len(body.text) > 20_000 for body, _ in found.rows)
        return await self.copied(batch, ListKind.MESSAGES) if is_large else batch


@mutant(
    "MSG-8",
    killed_by="MSG-5.what_is_saved_beside_long_lists_costs_the_same",
    on=OnJson,
    source="one document for an agent, which every save replaces",
    witness=lambda ctx: _size_after(ctx, lambda s: s.save_todos("a", samples.todos("x"))),
)
class TodosWriteTheMessages(_Copies):
    """Writes the messages again with each list of todos."""

    async def changed(self, batch: Batch) -> Batch:
        is_todos = any(write.kind is DocKind.TODOS for write in batch.docs)
        return await self.copied(batch, ListKind.MESSAGES) if is_todos else batch


async def _taken_by_an_append(ctx: Context) -> bool:
    await ctx.store.save_messages("a", talk(*(f"{i}" + "x" * 2000 for i in range(300))))
    tracemalloc.start()
    try:
        await ctx.store.append_messages("a", talk("1"))
        return tracemalloc.get_traced_memory()[1] > 500_000
    finally:
        tracemalloc.stop()


@mutant(
    "MSG-5",
    killed_by="what_is_saved_beside_long_lists_costs_the_same",
    source="a client in memory that keeps a text for each key, as SET and GET do",
    witness=_taken_by_an_append,
)
class AppendsToOneText(EngineStore):
    """Keeps the messages as one text in memory, and writes it anew for each append."""

    _text = ""

    async def append_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        await super().append_messages(agent_id, messages, fence=fence)
        self._text = json.dumps(msgspec.to_builtins(await self.load_messages(agent_id)))


async def _commits(ctx: Context) -> object:
    store, layer = await counted(ctx)
    await store.save_turn("a", append=samples.messages(200), events=samples.events(200))
    return layer and layer.commits["a"]


@mutant(
    "TURN-1",
    killed_by="a_turn_is_one_commit",
    source="a limit of statements in a transaction",
    witness=_commits,
)
class LargeTurnsInTwo(EngineStore):
    """Writes the events of a turn by themselves when there are a hundred or more."""

    async def save_turn(self, agent_id: str, *, events: Sequence[Any] = (), **parts: Any) -> None:
        is_large = len(events) >= 100
        await super().save_turn(agent_id, events=() if is_large else events, **parts)
        if is_large:
            await self.append_events(agent_id, events, fence=parts.get("fence"))


# --- what streams hold ------------------------------------------------------------------------------------------------


async def _peak(stream: AsyncIterator[Any]) -> bool:
    """True if more than 2 MB are held at the first record."""
    tracemalloc.start()
    try:
        async for _ in stream:
            break
        return tracemalloc.get_traced_memory()[1] > 2_000_000
    finally:
        tracemalloc.stop()


async def _channel(ctx: Context) -> bool:
    await ctx.store.append_events("a", [samples.event(i, text="x" * 500) for i in range(5000)])
    return await _peak((await ctx.another()).read_events("a", channel="progress"))


@mutant(
    "EVT-5",
    killed_by="a_log_is_streamed_whatever_is_asked_of_it",
    on=OnSqlite,
    source="a filter in the program, over a list of all events",
    witness=_channel,
)
class ListsAChannel(EngineStore):
    """Reads all events before it gives the first of a channel."""

    async def read_events(self, agent_id: str, *, channel: Any = None, **how: Any) -> AsyncIterator[StoredEvent]:
        if channel is None:
            async for event in super().read_events(agent_id, **how):
                yield event
            return
        for event in [event async for event in super().read_events(agent_id, channel=channel, **how)]:
            yield event


async def _held_behind(ctx: Context) -> bool:
    """True if following 5,000 events leaves more than 300 KB once they went by."""
    await ctx.store.append_events("a", samples.events(5000))
    taken = 0
    tracemalloc.start()
    try:
        async for _ in ctx.store.follow_events("a"):
            taken += 1
            if taken == 5000:
                return tracemalloc.get_traced_memory()[0] > 1_500_000
        return False
    finally:
        tracemalloc.stop()


@mutant(
    "EVT-7",
    killed_by="EVT-5.a_log_is_streamed_whatever_is_asked_of_it",
    source="a set of what was seen, so that nothing comes twice",
    witness=_held_behind,
)
class FollowersRememberAll(EngineStore):
    """Remembers every event that it gave to a follower."""

    async def follow_events(self, agent_id: str, **how: Any) -> AsyncIterator[StoredEvent]:
        seen: dict[int, str] = {}
        async for event in super().follow_events(agent_id, **how):
            if event.offset not in seen:
                seen[event.offset] = str(event) + "x" * 200
                yield event


async def _all_calls(ctx: Context) -> bool:
    for i in range(4):
        await ctx.store.save_tool_call_records(f"a{i}", [samples.tool_call(i, result="x" * 500) for i in range(1000)])
    return await _peak((await ctx.another()).iter_tool_calls(order="asc"))


@mutant(
    "QRY-6",
    killed_by="lists_are_streamed_whatever_is_asked_of_them",
    on=OnSqlite,
    source="reversed(list(…)) for the other order",
    witness=_all_calls,
)
class ReversesAList(EngineStore):
    """Reads all tool calls before it gives the first, when the oldest is wanted first."""

    async def iter_tool_calls(self, **filters: Any) -> AsyncIterator[StoredToolCall]:  # type: ignore[override]
        if filters.get("order") != "asc":
            async for call in super().iter_tool_calls(**filters):
                yield call
            return
        for call in [call async for call in super().iter_tool_calls(**filters)]:
            yield call


async def _all_sessions(ctx: Context) -> bool:
    for i in range(1500):
        await ctx.store.save_info(f"a{i}", samples.info(f"a{i}", metadata={"text": "x" * 2000}))
    return await _peak(ctx.store.iter_sessions(sort_by="message_count"))


@mutant(
    "QRY-6",
    killed_by="sessions_are_streamed",
    on=OnSqlite,
    source="sorted() in the program, for an order without an index",
    witness=_all_sessions,
    slow=True,
)
class SortsSessionsItself(EngineStore):
    """Reads all sessions before it gives the first, when they are wanted by message_count."""

    async def iter_sessions(self, **filters: Any) -> AsyncIterator[SessionInfo]:  # type: ignore[override]
        if filters.get("sort_by") != "message_count":
            async for session in super().iter_sessions(**filters):
                yield session
            return
        for session in [session async for session in super().iter_sessions(**filters)]:
            yield session


# --- what waits and what goes through everything ----------------------------------------------------------------------


async def _held_by_a_follower(ctx: Context) -> bool:
    """True if a follower that takes nothing holds more than 1 MB of 2 MB."""
    await ctx.store.append_event("a", samples.event(0))
    follower = ctx.store.follow_events("a")
    await anext(follower)
    tracemalloc.start()
    try:
        for i in range(1, 1001):
            await ctx.store.append_event("a", samples.event(i, text=f"{i}" + "x" * 2000))
        await asyncio.sleep(0.05)
        return tracemalloc.get_traced_memory()[0] > 1_000_000
    finally:
        tracemalloc.stop()


@mutant(
    "OPS-14",
    killed_by="a_slow_follower_holds_a_page",
    on=OnSqlite,
    source="a queue for each subscriber, without a limit",
    witness=_held_by_a_follower,
)
class FollowersHaveQueues(EngineStore):
    """Puts events into a queue for each follower as they come."""

    async def follow_events(self, agent_id: str, **how: Any) -> AsyncIterator[StoredEvent]:
        queue: asyncio.Queue[Any] = asyncio.Queue()

        async def pump() -> None:
            try:
                async for event in EngineStore.follow_events(self, agent_id, **how):
                    queue.put_nowait(event)
            except Exception as exc:
                queue.put_nowait(exc)

        pumping = asyncio.ensure_future(pump())
        try:
            while True:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            pumping.cancel()


async def _held_by_a_check(ctx: Context) -> bool:
    for i in range(8):
        await ctx.store.save_turn(f"a{i}", messages=talk("x" * 500_000), info=samples.info(f"a{i}"))
    store = await ctx.another()
    tracemalloc.start()
    try:
        await store.check_consistency()
        return tracemalloc.get_traced_memory()[1] > 3_000_000
    finally:
        tracemalloc.stop()


@mutant(
    "OPS-16",
    killed_by="OPS-14.maintenance_holds_a_part",
    on=OnSqlite,
    source="a check in the program, over everything that was read",
    witness=_held_by_a_check,
)
class ChecksItAllAtOnce(EngineStore):
    """Reads the messages of all agents before it checks any."""

    async def check_consistency(self, agent_id: str | None = None) -> ConsistencyCheckResult:
        ids = await self.list() if agent_id is None else [agent_id]
        everything = [await self.load_messages(agent_id) for agent_id in ids]
        found = await super().check_consistency(agent_id)
        everything.clear()
        return found
