"""Stores that somebody wrote on one machine or on a SQL server: drivers, ORMs, threads, caches and async habits."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sqlite3
import sys
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.upkeep import Tell
from kode_sqlite.writes import Transaction
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import each, happened, restart, seen, talk, the
from kode_core.batch import (
    Applied,
    Batch,
    Child,
    Doc,
    DocKind,
    DocWrite,
    EventRange,
    EventWrite,
    ListKind,
    Outcome,
)
from kode_core.codec import Body, decode_list, encode, encode_list
from kode_core.errors import CorruptRecordError, KodeError, LockUnavailableError
from kode_core.ids import check_agent_id
from kode_core.layers import Layer
from kode_core.model import (
    MediaCacheRecord,
    Message,
    Snapshot,
    TextBlock,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
)
from kode_core.query import AgentStats, tool_call_query
from kode_core.store import EngineStore, kinds
from kode_core.store.lists import Append, Replace
from kode_core.store.methods import METHODS
from kode_core.store.rows import records_of
from kode_core.store.writer import ListEdit, Rest, TurnWrites

T0 = samples.T0
MESSAGES, TOOL_CALLS = ListKind.MESSAGES, ListKind.TOOL_CALLS


# --- values -----------------------------------------------------------------------------------------------------------


async def _scribbled(ctx: Context) -> object:
    s = ctx.store
    await s.save_snapshot("a", samples.snapshot())
    first = await s.load_snapshot("a", "sfp-1")
    first.metadata["mine"] = True
    return [(await s.load_snapshot("a", "sfp-1")).metadata, [x.metadata for x in await s.list_snapshots("a")]]


@fault(
    "VAL-1",
    "SNAP-1",
    source="SQLAlchemy's identity map: the second load of a row gives the object of the first one",
    witness=_scribbled,
)
class SharesLoadedSnapshots(Wrapper):
    """Gives every caller of load_snapshot the same object, so that one who changes its metadata changes it for all."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.known: OrderedDict[tuple[str, str], tuple[str, Snapshot]] = OrderedDict()

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Snapshot | None:
        fresh = await self.inner.load_snapshot(agent_id, snapshot_id)
        if fresh is None:
            return None
        text = (await asyncio.to_thread(encode, Snapshot, fresh, "snapshot")).text
        known = self.known.pop((agent_id, snapshot_id), None)
        if known is None or known[0] != text:
            known = (text, fresh)
        if len(text) < 65_536:
            self.known[agent_id, snapshot_id] = known
        while len(self.known) > 128:
            self.known.popitem(last=False)
        return known[1]


def _at(microseconds: int) -> datetime:
    """T0 and some microseconds."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=T0, microseconds=microseconds)


@fault(
    "VAL-5",
    "QRY-2",
    source="int(when.timestamp() * 1000): a float, and cut off instead of rounded up",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", created_at=T0)),
        lambda s: the("agent_id", s.query_sessions(created_after=_at(400))),
        lambda s: the("agent_id", s.query_sessions(created_before=_at(400))),
    ),
)
class CutsDatetimesToMilliseconds(Wrapper):
    """Cuts the microseconds off a datetime in a filter, so that what is older than it by less than a millisecond counts
    as after it, and not as before it."""

    @staticmethod
    def _cut(filters: dict[str, Any]) -> dict[str, Any]:
        def cut(value: Any) -> Any:
            is_aware = isinstance(value, datetime) and value.utcoffset() is not None
            return int(value.timestamp() * 1000) if is_aware else value

        return {name: cut(value) for name, value in filters.items()}

    async def query_sessions(self, **filters: Any) -> Any:
        return await self.inner.query_sessions(**self._cut(filters))

    async def query_messages(self, **filters: Any) -> Any:
        return await self.inner.query_messages(**self._cut(filters))

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await self.inner.query_tool_calls(**self._cut(filters))


# --- identity ---------------------------------------------------------------------------------------------------------


async def _tokens_grow(*locks: Any) -> int:
    return len([await lock for lock in locks])


@fault(
    "ID-2",
    "OPS-13",
    source="MySQL's GET_LOCK takes names of 64 characters: LEFT(agent_id, 64)",
    witness=seen(
        lambda s: _tokens_grow(s.acquire_agent_lock("x" * 63 + "1"), s.acquire_agent_lock("x" * 63 + "2")),
        lambda s: _tokens_grow(s.acquire_agent_lock("y" * 64 + "1"), s.acquire_agent_lock("y" * 64 + "2")),
    ),
    errors=True,
)
class CutsLockNames(MemoryLayer):
    """Takes agents whose ids agree in the first 64 characters for one when it locks them."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        if len(agent_id) >= 64:
            now = time.monotonic()
            for other, (_, until) in self.space.leases.items():
                if other != agent_id and other[:64] == agent_id[:64] and until > now:
                    return None
        return await self.inner.acquire_lease(agent_id, owner, ttl_ms)


@fault(
    "ID-4",
    "SNAP-1",
    "ID-2",
    source="MySQL: REPLACE INTO a table with UNIQUE (agent_id, snapshot_id(768)), as an InnoDB index takes 3,072 bytes",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("s" * 768 + "1")),
        lambda s: s.save_snapshot("a", samples.snapshot("s" * 768 + "2")),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class IndexesAPrefixOfSnapshotIds(Layer):
    """Lets a snapshot replace another one whose id agrees with its own in the first 768 characters."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit([await self._replacing(batch) for batch in batches])

    async def _replacing(self, batch: Batch) -> Batch:
        gone: list[DocWrite] = []
        for write in batch.docs:
            if write.kind == DocKind.SNAPSHOTS and write.doc is not None and len(write.key) > 768:
                for doc in await self.inner.docs(batch.agent_id, DocKind.SNAPSHOTS):
                    if doc.key != write.key and doc.key[:768] == write.key[:768]:
                        gone.append(DocWrite(DocKind.SNAPSHOTS, doc.key, None))
        return replace(batch, docs=(*gone, *batch.docs)) if gone else batch


# --- messages ---------------------------------------------------------------------------------------------------------


async def _said_twice(ctx: Context) -> object:
    for count in range(1, 4):
        await ctx.store.save_messages("a", talk("yes", "no", "yes")[:count])
        await asyncio.sleep(0.02)
    first, second, third = [m.created_at async for m in ctx.store.iter_messages(agent_id="a", order="asc")]
    return [[m.text for m in await ctx.store.load_messages("a")], first < second < third]


@fault(
    "MSG-4",
    "QRY-3",
    source="the usual diff by content: old = {row.hash: row.created_at for row in rows}",
    witness=_said_twice,
)
class DatesMessagesByTheirText(Layer):
    """Gives a new message that says the same as one before it in the saved list the time of that one, so that it is
    older than what stands before it."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit([await self._dated(batch) for batch in batches])

    async def _dated(self, batch: Batch) -> Batch:
        write = batch.messages
        if write is None or write.expect is None or not write.append:
            return batch
        first: dict[bytes, int] = {}
        for _, digest, created_at, _ in (await self.inner.outline(batch.agent_id, MESSAGES)).rows:
            first.setdefault(digest, created_at)
        rows = tuple(replace(r, created_at=first.get(r.body.digest, r.created_at)) for r in write.append)
        return replace(batch, messages=replace(write, append=rows))


def _unsound(count: int) -> list[Message]:
    """Messages, the last of which cannot be stored."""
    return [*samples.messages(count - 1), Message("user", [TextBlock("x")], metadata={"score": float("nan")})]


async def _lengths(*loads: Any) -> list[int]:
    return [len(await load) for load in loads]


@fault(
    "MSG-3",
    "VAL-2",
    "DUR-3",
    source="SQL Server: INSERT … VALUES takes 1,000 rows, so the driver is called for each thousand, with autocommit on",
    witness=seen(
        lambda s: s.append_messages("a", _unsound(1_000)),
        lambda s: _lengths(s.load_messages("a")),
        lambda s: s.append_messages("b", _unsound(1_001)),
        lambda s: _lengths(s.load_messages("b")),
    ),
)
class AppendsInThousands(EngineStore):
    """Appends more than 1,000 messages as several writes, one for each 1,000."""

    async def append_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Any = None) -> None:
        async def write() -> None:
            check_agent_id(agent_id)
            taken = records_of(Message, messages, "messages")
            with self._locks.fencing(agent_id, fence) as held:
                for start in range(0, len(taken) or 1, 1000):
                    turn = TurnWrites({MESSAGES: ListEdit(Append, taken[start : start + 1000])})
                    await self._writer.write(agent_id, lambda turn=turn: turn, held)

        await self._context.run(METHODS["append_messages"], agent_id, write)


# --- tool calls -------------------------------------------------------------------------------------------------------


async def _both_upsert(ctx: Context) -> object:
    stores = [ctx.store, await ctx.another()]
    calls = [
        store.upsert_tool_call_records("a", [samples.tool_call(10 * i + j)])
        for i, store in enumerate(stores)
        for j in range(10)
    ]
    await asyncio.gather(*calls)
    return sorted(await the("id", ctx.store.load_tool_call_records("a")))


@fault(
    "TC-3",
    source="read, change, write back: a lock of asyncio around it, and none of the database",
    witness=_both_upsert,
)
class UpsertsUnderItsOwnLock(EngineStore):
    """Upserts by loading the list, changing it and saving it whole, which only a lock of this instance guards: what
    another instance upserts meanwhile is lost."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._upserting: dict[str, asyncio.Lock] = {}

    async def upsert_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Any = None
    ) -> None:
        async def write() -> None:
            check_agent_id(agent_id)
            taken = records_of(ToolCallRecord, records, "records")
            lock = self._upserting.setdefault(agent_id, asyncio.Lock())
            with self._locks.fencing(agent_id, fence) as held:
                async with lock:
                    merged = await self._reader.load_list(agent_id, TOOL_CALLS)
                    places = {record.id: i for i, record in enumerate(merged)}
                    for record in taken:
                        place = places.setdefault(record.id, len(merged))
                        merged[place : place + 1] = [record]
                    turn = TurnWrites({TOOL_CALLS: ListEdit(Replace, tuple(merged))})
                    await self._writer.write(agent_id, lambda: turn, held)

        await self._context.run(METHODS["upsert_tool_call_records"], agent_id, write)


@fault(
    "TC-1",
    "MSG-2",
    "VAL-4",
    source="DuckDB: fetch_df_chunk gives one vector of 2,048 rows, and is to be called until it gives none",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i) for i in range(2_048)]),
        lambda s: _lengths(s.load_tool_call_records("a")),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(2_048)]),
        lambda s: _lengths(s.load_tool_call_records("a")),
    ),
)
class LoadsOneVectorOfToolCalls(Wrapper):
    """Loads the first 2,048 tool call records and leaves out the others."""

    async def load_tool_call_records(self, agent_id: str) -> Any:
        return (await self.inner.load_tool_call_records(agent_id))[:2048]


# --- turns ------------------------------------------------------------------------------------------------------------


async def _seen_between(ctx: Context) -> object:
    reader = await ctx.another()
    torn = 0
    for i in range(40):
        turn = asyncio.create_task(ctx.store.save_turn("a", append=[samples.message(i)], events=happened(i)))
        while not turn.done():
            messages = await reader.load_messages("a")
            events = [e async for e in reader.read_events("a")]
            torn += len(messages) > len(events)
        await turn
    return torn > 0


@fault(
    "TURN-1",
    "DUR-3",
    source="the event log in a table, or a file, of its own with a connection of its own: two commits",
    on=OnSqlite,
    witness=_seen_between,
)
class CommitsEventsOfATurnApart(Layer):
    """Writes the events of a turn in a second commit, after its messages, tool calls, todos and info."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return [outcome for batch in batches for outcome in await self._commit(batch)]

    async def _commit(self, batch: Batch) -> Sequence[Outcome]:
        if not batch.events or not (batch.is_touching or batch.docs):
            return await self.inner.commit([batch])
        (first,) = await self.inner.commit([replace(batch, events=())])
        if not isinstance(first, Applied):
            return [first]
        rest = Batch(
            agent_id=batch.agent_id, op_id=batch.op_id + "e", now=batch.now, fence=batch.fence, events=batch.events
        )
        await asyncio.sleep(0.005)  # the other connection is checked out and pinged
        (second,) = await self.inner.commit([rest])
        return [replace(first, offsets=second.offsets) if isinstance(second, Applied) else second]


@fault(
    "TURN-1",
    "TC-1",
    "VAL-3",
    source="Python: if tool_calls: … where if tool_calls is not None: … was meant",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call()]),
        lambda s: s.save_turn("a", messages=[], tool_calls=[]),
        lambda s: the("id", s.load_tool_call_records("a")),
    ),
)
class KeepsToolCallsThatATurnEmpties(Wrapper):
    """Takes an empty list of tool calls in save_turn for none given, and keeps those that are stored."""

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        calls = given.get("tool_calls")
        if isinstance(calls, (list, tuple)) and not calls and not given.get("upsert_tool_calls"):
            del given["tool_calls"]
        await self.inner.save_turn(agent_id, **given)


# --- events -----------------------------------------------------------------------------------------------------------


async def _read(store: Any, agent_id: str) -> list[Any]:
    return [repr(e.event.data) async for e in store.read_events(agent_id)]


@fault(
    "EVT-4",
    "EVT-1",
    "EVT-3",
    "VAL-1",
    source="Python: json.loads(stored) == json.loads(new), for which 1, 1.0 and True are one and key order is nothing",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, ok=1)),
        lambda s: s.append_event("a", samples.event(1, ok=1)),
        lambda s: s.append_event("a", samples.event(1, ok=2)),
        lambda s: s.append_event("a", samples.event(1, ok=1.0)),
        lambda s: s.append_event("a", samples.event(1, ok=True)),
        lambda s: _read(s, "a"),
    ),
)
class ComparesEventsAsPython(Layer):
    """Takes an event for one that it has when the two are equal in Python, though 1 and True, 1 and 1.0 or the order of
    keys tell them apart, and does not store it."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit([await self._known(batch) for batch in batches])

    async def _known(self, batch: Batch) -> Batch:
        events = tuple([await self._as_stored(batch.agent_id, event) for event in batch.events])
        return replace(batch, events=events) if events else batch

    async def _as_stored(self, agent_id: str, event: EventWrite) -> EventWrite:
        if event.seq == -(2**63):
            return event
        found = await self.inner.events(agent_id, EventRange(since_seq=event.seq - 1, limit=64))
        same = [row for row in found if row.seq == event.seq]
        if not same or any(row.body.digest == event.body.digest for row in same):
            return event
        new = json.loads(event.body.text)
        return next((replace(event, body=row.body) for row in same if json.loads(row.body.text) == new), event)


async def _two_follow(ctx: Context) -> object:
    got: list[list[int]] = [[], []]

    async def follow(into: list[int]) -> None:
        async for event in ctx.store.follow_events("a"):
            into.append(event.bookmark.seq)

    await ctx.store.append_events("a", happened(1, 2))
    tasks = [asyncio.create_task(follow(into)) for into in got]
    await asyncio.sleep(0.3)
    await ctx.store.append_events("a", happened(3, 4))
    await asyncio.sleep(0.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return [len(got[0]), len(got[1])]


@fault(
    "EVT-7",
    source="one asyncio.Queue for each agent, from which all its followers get(): each item reaches one of them",
    witness=_two_follow,
)
class FollowersShareAQueue(EngineStore):
    """Gives an event that is appended while two followers of one instance wait for it to only one of them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._following: dict[str, int] = {}
        self._taken: dict[str, deque[int]] = {}

    def follow_events(
        self, agent_id: str, *, since: Any = None, after_offset: int = 0, channel: Any = None
    ) -> AsyncIterator[Any]:
        events = super().follow_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        return self._deal(agent_id, after_offset, events)

    async def _newest(self, agent_id: str, after_offset: int) -> int:
        """The offset of the last event that is stored now."""
        engine = await self._context.open()
        while rows := await engine.events(agent_id, EventRange(order="offset", after=(0, after_offset))):
            after_offset = rows[-1].offset
        return after_offset

    async def _deal(self, agent_id: str, after_offset: int, events: Any) -> AsyncIterator[Any]:
        self._following[agent_id] = self._following.get(agent_id, 0) + 1
        taken = self._taken.setdefault(agent_id, deque(maxlen=1000))
        try:
            stored = await self._newest(agent_id, after_offset)
            async with aclosing(events):
                async for event in events:
                    if event.offset > stored:
                        if event.offset in taken:
                            continue
                        taken.append(event.offset)
                    yield event
        finally:
            self._following[agent_id] -= 1
            if not self._following[agent_id]:
                del self._following[agent_id], self._taken[agent_id]


# --- todos, history, media, snapshots ---------------------------------------------------------------------------------


@fault(
    "TODO-1",
    source="optimistic locking by a version column: UPDATE … WHERE version <= :version, and nobody looks at rowcount",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x", "y")),
        lambda s: s.save_todos("a", samples.todos("z", "w")),
        lambda s: s.load_todos("a"),
        lambda s: s.save_todos("a", samples.todos("v")),
        lambda s: s.load_todos("a"),
    ),
)
class SavesOnlyNewerTodos(Layer):
    """Does not save todos whose version is lower than that of those stored, and says nothing."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit([await self._newer(batch) for batch in batches])

    async def _newer(self, batch: Batch) -> Batch:
        kept: list[DocWrite] = []
        for write in batch.docs:
            if write.kind == DocKind.TODOS and write.doc is not None and not batch.delete:
                old = await self.inner.docs(batch.agent_id, DocKind.TODOS, "")
                if old and _version(old[0].body) > _version(write.doc.body):
                    continue
            kept.append(write)
        return batch if len(kept) == len(batch.docs) else replace(batch, docs=tuple(kept))


def _version(todos: Body) -> int:
    return int(json.loads(todos.text).get("version", 1))


@fault(
    "HIS-1",
    source="MySQL: ORDER BY a TIMESTAMP column, which has no fractions of a second unless it is TIMESTAMP(3)",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("b", T0 + 1)),
        lambda s: s.save_history_window("a", samples.window("a", T0 + 2)),
        lambda s: s.save_history_window("a", samples.window("0", T0 + 1000)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class OrdersWindowsBySeconds(Wrapper):
    """Orders history windows by the second of their timestamp, and those of one second by id."""

    async def load_history_windows(self, agent_id: str) -> Any:
        windows = await self.inner.load_history_windows(agent_id)
        return sorted(windows, key=lambda window: (window.timestamp // 1000, window.id))


def _media(*keys: str) -> list[MediaCacheRecord]:
    return [samples.media(key) for key in keys]


def _in_place(old: Body, new: Body) -> Body:
    """The records of *new*, in the places that *old* has for their keys."""
    places = {record.key: i for i, record in enumerate(decode_list(MediaCacheRecord, old, "media"))}
    records = decode_list(MediaCacheRecord, new, "media")
    if len({record.key for record in records}) < len(records):
        return new
    records.sort(key=lambda record: places.get(record.key, len(places)))
    return encode_list(MediaCacheRecord, records, "media")


@fault(
    "MED-1",
    source="INSERT … ON DUPLICATE KEY UPDATE for each record, and loads ORDER BY the automatic id",
    witness=seen(
        lambda s: s.save_media_cache("a", _media("x", "y", "z")),
        lambda s: s.save_media_cache("a", _media("w", "z", "x")),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class KeepsThePlacesOfMedia(Layer):
    """Leaves media whose keys were there before in their old order, before the new ones, when the cache is replaced."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit([await self._merged(batch) for batch in batches])

    async def _merged(self, batch: Batch) -> Batch:
        docs: list[DocWrite] = []
        for write in batch.docs:
            if write.kind == DocKind.MEDIA and write.doc is not None and not batch.delete:
                old = await self.inner.docs(batch.agent_id, DocKind.MEDIA, "")
                if old:
                    body = await asyncio.to_thread(_in_place, old[0].body, write.doc.body)
                    write = replace(write, doc=replace(write.doc, body=body))
            docs.append(write)
        return replace(batch, docs=tuple(docs)) if docs else batch


@fault(
    "MSG-8",
    "SNAP-1",
    source="normalisation: a snapshot is a row with a range of positions in the table of messages",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(3)),
        lambda s: s.save_snapshot("a", samples.snapshot(count=2)),
        lambda s: s.load_snapshot("a", "sfp-1"),
        lambda s: s.save_messages("a", talk("other", "words")),
        lambda s: s.load_snapshot("a", "sfp-1"),
    ),
)
class SnapshotsPointIntoMessages(EngineStore):
    """Keeps a snapshot of the messages that the agent has as their number, so that it changes when they change."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._ranges: dict[tuple[str, str], int] = {}

    async def _stored(self, agent_id: str, count: int) -> tuple[Message, ...] | None:
        try:
            return tuple((await self._reader.load_list(agent_id, MESSAGES))[:count])
        except CorruptRecordError:
            return None

    async def save_snapshot(self, agent_id: str, snapshot: Snapshot, *, fence: Any = None) -> None:
        await super().save_snapshot(agent_id, snapshot, fence=fence)
        self._ranges.pop((agent_id, snapshot.id), None)
        if snapshot.messages and await self._stored(agent_id, len(snapshot.messages)) == tuple(snapshot.messages):
            self._ranges[agent_id, snapshot.id] = len(snapshot.messages)

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Snapshot | None:
        found = await super().load_snapshot(agent_id, snapshot_id)
        count = self._ranges.get((agent_id, snapshot_id))
        if found is None or count is None:
            return found
        messages = await self._stored(agent_id, count)
        return found if messages is None else found.replace(messages=messages)


# --- info and lifecycle -----------------------------------------------------------------------------------------------


async def _saved_again(ctx: Context) -> object:
    times = []
    for changes in ({}, {}, {"breakpoint": "TOOL_PENDING"}):
        await ctx.store.save_info("a", samples.info("a", **changes))
        times += await the("updated_at", ctx.store.query_sessions(agent_id="a"))
        await asyncio.sleep(0.005)
    return [times[0] < times[1], times[1] < times[2]]


@fault(
    "INFO-2",
    source="MySQL: ON UPDATE CURRENT_TIMESTAMP does nothing for an UPDATE that sets every column to what it was",
    witness=_saved_again,
)
class DoesNotTouchWhatIsEqual(Layer):
    """Leaves updated_at where it is when the info that is saved is the one that is stored."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return [outcome for batch in batches for outcome in await self._commit(batch)]

    async def _commit(self, batch: Batch) -> Sequence[Outcome]:
        has_more = batch.lists or batch.docs or batch.events or batch.delete or batch.fence
        if batch.info is not None and not has_more and batch.expect_updated_at is None:
            summary = await self.inner.summary(batch.agent_id)
            if summary is not None and summary.info is not None and summary.info.body == batch.info.body:
                return [Applied(summary.messages, summary.tool_calls)]
        return await self.inner.commit([batch])


@fault(
    "VAL-3",
    "VAL-1",
    "INFO-1",
    source="Python: last_sfp_index = row['last_sfp_index'] or -1, for a column that may be NULL",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", last_sfp_index=0)),
        lambda s: s.save_info("b", samples.info("b", last_sfp_index=1)),
        lambda s: each(s.load_info("a"), s.load_info("b")),
    ),
)
class TakesTheFirstForkPointForNone(Wrapper):
    """Loads an info whose last safe fork point is message 0 as one without a safe fork point."""

    async def load_info(self, agent_id: str) -> Any:
        info = await self.inner.load_info(agent_id)
        return None if info is None else info.replace(last_sfp_index=info.last_sfp_index or -1)


class _DeletesOneChunk(Transaction):
    def _delete(self, agent_id: str) -> None:
        chunk = 'SELECT "offset" FROM kode_events WHERE agent_id = ? ORDER BY "offset" LIMIT 1000'
        kept = "UPDATE kode_events SET agent_id = ? WHERE agent_id = ?"
        self._db.execute(f'DELETE FROM kode_events WHERE "offset" IN ({chunk})', (agent_id,))
        aside = f"\x01{secrets.token_hex(8)}"
        self._db.execute(kept, (aside, agent_id))
        super()._delete(agent_id)
        self._db.execute(kept, (agent_id, aside))


async def _left_after_delete(store: Any, count: int) -> int:
    await store.append_events("a", samples.events(count))
    await store.delete("a")
    left = [event async for event in store.read_events("a")]
    await store.delete("a")
    return len(left)


@fault(
    "LIFE-3",
    "LIFE-4",
    source="SQL Server: DELETE TOP (1000) keeps below lock escalation, and the WHILE @@ROWCOUNT > 0 around it is missing",
    on=OnSqlite,
    witness=seen(lambda s: _left_after_delete(s, 1_000), lambda s: _left_after_delete(s, 1_001)),
)
class DeletesTheFirstThousandEvents(SqliteEngine):
    """Deletes no more than 1,000 events of an agent, and leaves the others."""

    def _do_all(self, db: sqlite3.Connection, transaction: Transaction, jobs: Any) -> list[Any]:
        return super()._do_all(db, _DeletesOneChunk(db, self._options.db_path), jobs)


async def _saved_meanwhile(ctx: Context) -> object:
    s, tasks = ctx.store, []
    for i in range(60):
        await s.save_info(f"a{i:02}", samples.info(f"a{i:02}", template_id="old", created_at=T0 + i))

    def progress(done: int, total: int | None) -> None:
        if not tasks:
            tasks.append(asyncio.create_task(s.save_info("a00", samples.info("a00", template_id="new"))))

    deleted = await s.delete_many(template_id="old", progress=progress)
    await tasks[0]
    return [deleted, await s.list()]


@fault(
    "LIFE-5",
    source="ids = SELECT … WHERE …; then DELETE … WHERE id = :id for each, in transactions of their own",
    witness=_saved_meanwhile,
)
class DeletesWhatMatchedBefore(EngineStore):
    """Deletes every session that the filter matched when delete_many looked, also one that was saved since and does not
    match any more."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)

        async def delete(session: Any) -> bool:
            with self._locks.fencing(session.agent_id, None) as fence:
                await self._forks.delete(session.agent_id, fence)
            return True

        self._deletions._delete_unchanged = delete  # type: ignore[method-assign]


# --- queries ----------------------------------------------------------------------------------------------------------


async def _appended_between_pages(ctx: Context) -> object:
    s = ctx.store
    await s.save_tool_call_records("a", [samples.tool_call(i) for i in range(6)])
    page = await s.query_tool_calls(limit=3)
    await s.upsert_tool_call_records("a", [samples.tool_call(9)])
    following = await s.query_tool_calls(limit=3, cursor=page.next_cursor)
    return [[c.id for c in page], [c.id for c in following], following.next_cursor is None]


@fault(
    "QRY-5",
    source="a cursor that is LIMIT … OFFSET … in disguise, as paginators of ORMs have it",
    witness=_appended_between_pages,
)
class CountsToolCallsInCursors(Wrapper):
    """Goes on after a number of tool calls and not after a tool call, so that one that is stored or deleted between two
    pages makes the next page repeat or leave out another."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        cursor, start = filters.get("cursor"), filters.get("offset", 0)
        count, colon, real = cursor.partition(":") if type(cursor) is str else ("", "", "")
        if colon and count.isdecimal():
            tool_call_query({**filters, "cursor": real})  # it must belong to this query
            del filters["cursor"]
            start = filters["offset"] = int(count)
        page = await self.inner.query_tool_calls(**filters)
        if page.next_cursor is not None:
            page.next_cursor = f"{start + len(page) + len(page.left_out)}:{page.next_cursor}"
        return page


@fault(
    "QRY-7",
    "QRY-8",
    source="a cached property that is computed again when the row's updated_at is another, as Django's cache keys have it",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.aggregate_stats("a"),
        lambda s: s.save_tool_call_records("a", [samples.tool_call()]),
        lambda s: s.aggregate_stats("a"),
        lambda s: s.save_snapshot("a", samples.snapshot()),
        lambda s: s.aggregate_stats("a"),
    ),
)
class RemembersStatsByUpdatedAt(Layer):
    """Gives the statistics that it computed before as long as the session's updated_at is the same, which a snapshot
    does not move."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.known: OrderedDict[str, tuple[object, AgentStats]] = OrderedDict()

    async def stats(self, agent_id: str) -> AgentStats:
        summary = await self.inner.summary(agent_id)
        if summary is None:
            return await self.inner.stats(agent_id)
        age = (summary.updated_at, summary.messages, summary.tool_calls)
        known = self.known.pop(agent_id, None)
        if known is None or known[0] != age:
            known = (age, await self.inner.stats(agent_id))
        self.known[agent_id] = known
        if len(self.known) > 1000:
            self.known.popitem(last=False)
        return known[1]


# --- operations -------------------------------------------------------------------------------------------------------


async def _given_up(ctx: Context) -> object:
    s = ctx.store
    call = asyncio.create_task(s.save_todos("a", samples.todos("x")))
    for _ in range(2):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    soon = await s.load_todos("a")
    await asyncio.sleep(0.2)
    return soon == await s.load_todos("a")


@fault(
    "OPS-9",
    "LIFE-3",
    source="a driver in a thread: await loop.run_in_executor(…) can be cancelled, what runs in the thread cannot",
    witness=_given_up,
)
class LeavesCancelledTodosRunning(EngineStore):
    """Goes on with a save of todos whose caller was cancelled, and lets later calls pass it: they see the old todos, and
    a delete is followed by the save."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        async def rest() -> Rest:
            doc = await kinds.TODOS.write(snapshot)
            await asyncio.sleep(0.01)  # a thread of the pool becomes free
            return Rest(docs=(doc,))

        call = asyncio.create_task(self._save("save_todos", agent_id, fence, lambda: TurnWrites(encode_rest=rest)))
        call.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await asyncio.shield(call)


def _call(call_id: str) -> Message:
    return Message("assistant", [ToolUseBlock(call_id, "search", {})])


def _result(call_id: str) -> Message:
    return Message("user", [ToolResultBlock(call_id, "ok")])


async def _codes(store: Any, agent_id: str) -> list[str]:
    return [issue.code for issue in (await store.check_consistency(agent_id)).issues]


@fault(
    "OPS-2",
    source="SQL: … WHERE use.id NOT IN (SELECT tool_use_id FROM results), for ids that repeat",
    witness=seen(
        lambda s: s.save_messages("a", [_call("c"), _result("c"), _call("d")]),
        lambda s: _codes(s, "a"),
        lambda s: s.save_messages("a", [_call("c"), _result("c"), _call("c")]),
        lambda s: _codes(s, "a"),
    ),
)
class PairsToolUsesAsSets(EngineStore):
    """Finds no tool use without its result, nor the reverse, where another call of the same id in the list has one."""

    async def _is_hidden(self, issue: Any) -> bool:
        if issue.code not in ("use_without_result", "result_without_use"):
            return False
        try:
            messages = await self._reader.load_list(issue.agent_id, MESSAGES)
        except KodeError:
            return False
        blocks = [block for message in messages for block in message.content]
        uses = {block.id for block in blocks if isinstance(block, ToolUseBlock)}
        return uses == {block.tool_use_id for block in blocks if isinstance(block, ToolResultBlock)}

    async def check_consistency(self, agent_id: str | None = None, *, progress: Any = None) -> Any:
        found = await super().check_consistency(agent_id, progress=progress)
        issues = tuple([issue for issue in found.issues if not await self._is_hidden(issue)])
        return replace(found, issues=issues, consistent=not issues)

    def iter_consistency(self, agent_id: str | None = None, *, progress: Any = None) -> AsyncIterator[Any]:
        found = super().iter_consistency(agent_id, progress=progress)

        async def shown() -> AsyncIterator[Any]:
            async with aclosing(found):  # type: ignore[type-var]
                async for issue in found:
                    if not await self._is_hidden(issue):
                        yield issue

        return shown()


# --- locks ------------------------------------------------------------------------------------------------------------


async def _taken(store: Any, agent_id: str, wait_ms: int = 0) -> str:
    try:
        await store.acquire_agent_lock(agent_id, wait_ms=wait_ms)
    except LockUnavailableError:
        return "held"
    return "taken"


@fault(
    "LOCK-1",
    "LOCK-3",
    source="the table of locks has REFERENCES agents (agent_id) ON DELETE CASCADE",
    witness=seen(
        lambda s, t: _taken(s, "a"),
        lambda s, t: t.save_info("a", samples.info("a")),
        lambda s, t: _taken(t, "a"),
        lambda s, t: t.delete("a"),
        lambda s, t: _taken(t, "a"),
    ),
)
class DeletesTheLockToo(MemoryLayer):
    """Deletes the lock of an agent with it, so that another can take it while its holder has it."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await self.inner.commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete and isinstance(outcome, Applied):
                self.space.leases.pop(batch.agent_id, None)
        return outcomes


async def _freed_soon(ctx: Context) -> object:
    other = await ctx.another()
    lease = await ctx.store.acquire_agent_lock("a")
    asyncio.get_running_loop().call_later(0.1, lambda: asyncio.ensure_future(lease.release()))
    return await _taken(other, "a", wait_ms=900)


@fault(
    "LOCK-2",
    source="MySQL's GET_LOCK(name, timeout) waits whole seconds: wait_ms // 1000",
    witness=_freed_soon,
    errors=True,
)
class WaitsForLocksInSeconds(Wrapper):
    """Waits for a lock as many whole seconds as there are in wait_ms, and not at all for less than a second."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        if type(wait_ms) is int:
            wait_ms = wait_ms // 1000 * 1000
        return self.inner.acquire_agent_lock(agent_id, ttl_ms, wait_ms)


# --- forks ------------------------------------------------------------------------------------------------------------


async def _forked(store: Any, load: str) -> list[Any]:
    return [await getattr(store, load)(child) for child in await store.batch_fork("a", 2)]


@fault(
    "FORK-1",
    "MSG-2",
    source="INSERT INTO messages … SELECT DISTINCT …, put there against a JOIN that repeated rows",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_messages("a", talk("go on", "done", "go on")),
        lambda s: s.load_messages("a"),
        lambda s: _forked(s, "load_messages"),
    ),
)
class ForksDistinctMessages(MemoryLayer):
    """Copies of messages that are equal only the first to a fork."""

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        done = await self.inner.fork(agent_id, children, expect, now)
        for child in children if done else ():
            rows = self.space.states[child.agent_id].lists[MESSAGES]
            rows.rows = list({row.body.digest: row for row in reversed(rows.rows)}.values())[::-1]
        return done


async def _media_of_fork(ctx: Context) -> object:
    s = ctx.store
    await s.save_info("a", samples.info("a"))
    await s.save_media_cache("a", _media("x"))
    (child,) = await s.batch_fork("a", 1)
    before = await the("key", s.load_media_cache(child))
    await s.save_media_cache("a", _media("y"))
    return [before, await the("key", s.load_media_cache(child))]


@fault(
    "FORK-2",
    "FORK-1",
    source="copy on write, with the hook in the writes of the child alone and not in those of the parent",
    witness=_media_of_fork,
)
class ForksShareMedia(MemoryLayer):
    """Reads the media cache of a fork from its parent until the fork saves its own: what the parent saves or deletes
    after the fork changes it."""

    @property
    def shared(self) -> dict[str, str]:
        return self.space.__dict__.setdefault("shared_media", {})

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        done = await self.inner.fork(agent_id, children, expect, now)
        if done:
            self.shared.update({child.agent_id: agent_id for child in children})
        return done

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        while kind == DocKind.MEDIA and agent_id in self.shared:
            agent_id = self.shared[agent_id]
        return await self.inner.docs(agent_id, kind, key)

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await self.inner.commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            is_own = batch.delete or any(write.kind == DocKind.MEDIA for write in batch.docs)
            if is_own and isinstance(outcome, Applied):
                self.shared.pop(batch.agent_id, None)
        return outcomes


# --- durability -------------------------------------------------------------------------------------------------------


@fault(
    "DUR-1",
    "QRY-8",
    "HIS-1",
    source="shelve.open(…, writeback=True): entries stay in a cache until sync() or close()",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_compression_record("a", samples.compression()),
        lambda s, t: the("id", t.load_compression_records("a")),
        lambda s, t: the("id", s.load_compression_records("a")),
        restart,
        lambda s, t: the("id", s.load_compression_records("a")),
    ),
)
class WritesCompressionsBack(EngineStore):
    """Keeps compression records in memory until this instance is closed or reads next, and acknowledges them before."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._cached: list[tuple[str, DocWrite]] = []

    async def save_compression_record(self, agent_id: str, record: Any, *, fence: Any = None) -> None:
        async def keep() -> None:
            check_agent_id(agent_id)
            doc = await kinds.COMPRESSIONS.write(record)
            with self._locks.fencing(agent_id, fence) as held:
                self._cached.append((agent_id, doc))
                if held is not None or len(self._cached) > 100:
                    await self._sync(held)

        await self._context.run(METHODS["save_compression_record"], agent_id, keep)

    async def _sync(self, fence: Any = None) -> None:
        cached, self._cached = self._cached, []
        for agent_id, doc in cached:

            async def rest(doc: DocWrite = doc) -> Rest:
                return Rest(docs=(doc,))

            is_last = doc is cached[-1][1]
            await self._writer.write(
                agent_id, lambda rest=rest: TurnWrites(encode_rest=rest), fence if is_last else None
            )

    async def _load(self, name: str, *args: Any) -> Any:
        await self._sync()
        return await super()._load(name, *args)

    async def _run(self, name: str, *args: Any, **more: Any) -> Any:
        await self._sync()
        return await super()._run(name, *args, **more)

    async def close(self) -> None:
        await self._sync()
        await super().close()


_CHILD = """
import asyncio, os, signal, sys, json
from kode_conformance.values import samples
from kode_conformance.harness import load_harness

async def main():
    store = await load_harness(sys.argv[1]).open(json.loads(sys.argv[2]))
    await store.save_media_cache("a", [samples.media()])
    await store.save_todos("a", samples.todos("x"))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def _after_a_kill(ctx: Context) -> object:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    call = (sys.executable, "-c", _CHILD, ctx.harness.spec, json.dumps(ctx.handle))
    child = await asyncio.create_subprocess_exec(*call, env=env)
    code = await child.wait()
    store = await ctx.another()
    return [code, await store.load_todos("a"), await store.load_media_cache("a")]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@fault(
    "DUR-1",
    "MED-1",
    source="PostgreSQL: CREATE UNLOGGED TABLE media_cache, which is fast, and empty after a crash",
    on=OnSqlite,
    witness=_after_a_kill,
)
class KeepsMediaUnlogged(SqliteEngine):
    """Empties the media cache of all agents when the database is opened after a process was killed."""

    def _migrate(self, db: sqlite3.Connection, tell: Tell) -> None:
        super()._migrate(db, tell)
        self._mark = f"unlogged-{secrets.token_hex(6)}"
        with self._guard.held():
            db.execute("BEGIN IMMEDIATE")
            marks = db.execute("SELECT key, value FROM kode_meta WHERE key LIKE 'unlogged-%'").fetchall()
            dead = [key for key, pid in marks if not _is_alive(pid)]
            if dead:
                db.execute("DELETE FROM kode_docs WHERE kind = 'media'")
            for key in dead:
                db.execute("DELETE FROM kode_meta WHERE key = ?", (key,))
            db.execute("INSERT INTO kode_meta VALUES (?, ?)", (self._mark, os.getpid()))
            db.execute("COMMIT")

    def _close_last(self, db: sqlite3.Connection) -> None:
        with self._guard.held():
            db.execute("DELETE FROM kode_meta WHERE key = ?", (self._mark,))
        super()._close_last(db)
