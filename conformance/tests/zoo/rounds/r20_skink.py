"""Thirty stores whose authors run several instances, caches and odd backends, and each overlooked one sentence."""

from __future__ import annotations

import asyncio
import math
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from kode_conformance.values import samples
from kode_conformance.values.samples import T0
from msgspec.structs import replace

from conformance.tests.zoo.base import CommittingLayer, MemoryLayer, OnSqlite, StreamWrapper, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, talk, the
from kode_core.batch import CORE_KEYS, Applied, DocKind, DocWrite, EventRange, ListKind
from kode_core.codec import decode
from kode_core.errors import (
    AgentDeletedError,
    ConflictError,
    InvalidValueError,
    KodeError,
    LockLostError,
    LockUnavailableError,
    StoreClosedError,
)
from kode_core.ids import check_agent_id
from kode_core.layers import Layer
from kode_core.model import (
    FileBlock,
    Message,
    PutDocument,
    ReasoningBlock,
    TextBlock,
    TodoSnapshot,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
)
from kode_core.model.documents import StoredDocument
from kode_core.protocols import Heartbeat
from kode_core.query import Page, SessionQuery
from kode_core.store import EngineStore, rows
from kode_core.store.deletions import Deletions
from kode_core.store.documents import stored_documents
from kode_core.store.emitting import Emitter
from kode_core.store.forks import Forks
from kode_core.store.kinds import SNAPSHOTS
from kode_core.store.methods import METHODS
from kode_core.store.reader import every
from kode_core.store.versions import version_of
from kode_core.store.writer import Writer
from kode_core.tenants import check_tenant
from kode_core.texts import folded

_KEYS: Final = f"{CORE_KEYS}messages/"
"""The keys of messages begin so."""


_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")


async def _all(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


def _found(search: Callable[[Any], Any], filters: Any) -> AsyncIterator[Any]:
    """Everything that matches, past the counters of calls."""

    async def page(**given: Any) -> Any:
        return await search(given)

    return every(page, filters)


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**60


# --- values -----------------------------------------------------------------------------------------------------------


async def _update_with_halves(ctx: Any) -> bool:
    await ctx.store.save_info("a", samples.info("a"))
    with suppress(InvalidValueError):
        await ctx.store.update_info("a", {"mood": "\ud83d\ude00"})
        return True
    return False


@fault(
    "VAL-2",
    "INFO-5",
    source="a JSON merge patch, sent as text: two escaped halves of a character are one character to whoever reads it",
    witness=_update_with_halves,
)
class SkinkPatchesJoinHalves(EngineStore):
    """Joins two code points that form a surrogate pair, in the metadata that ``update_info`` sets, and refuses nothing."""

    async def update_info(self, agent_id: str, metadata: Any, *, remove: Any = (), fence: Any = None) -> Any:
        return await super().update_info(agent_id, _joined(metadata), remove=remove, fence=fence)


def _joined(value: Any) -> Any:
    if type(value) is str:
        return _PAIR.sub(lambda found: found[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le"), value)
    if type(value) is list:
        return [_joined(one) for one in value]
    if type(value) is dict:
        return {_joined(key): _joined(one) for key, one in value.items()}
    return value


# --- messages and tool calls ------------------------------------------------------------------------------------------


async def _pop_many(ctx: Any) -> bool:
    await ctx.store.save_messages("a", samples.messages(1_205))
    popped = await ctx.store.pop_messages("a", 1_200)
    left = await ctx.store.load_messages("a")
    return len(left) == 5 and len(popped) != 1_200


@fault(
    "MSG-11",
    "VAL-4",
    source="PostgREST: max-rows=1000 cut the rows that a write returns, and not those it writes (PostgREST #2155)",
    witness=_pop_many,
)
class SkinkPopsAThousand(EngineStore):
    """Returns only the last 1,000 of the messages that it pops, and removes all of them."""

    async def pop_messages(self, agent_id: str, count: int = 1, *, fence: Any = None) -> Any:
        return (await super().pop_messages(agent_id, count, fence=fence))[-1_000:]


async def _last_before_beyond(ctx: Any) -> bool:
    await ctx.store.save_messages("a", talk("x", "y", "z"))
    plain = await the("text", ctx.store.load_messages("a", last=2))
    before = await the("text", ctx.store.load_messages("a", last=2, before=10))
    return plain == ["y", "z"] and before != plain


@fault(
    "MSG-9",
    source="where position >= ? - ? and position < ?: the window is counted back from the bound, not from the last row",
    witness=_last_before_beyond,
)
class SkinkLastFromTheBound(EngineStore):
    """Counts ``last`` back from ``before``, also where the list ends before that position."""

    async def _list(
        self, agent_id: str, kind: ListKind, last: Any, after: Any, before: Any, on_corrupt: Any
    ) -> list[Any]:
        if _is_number(last) and _is_number(before) and (after is None or _is_number(after)):
            least = before - last - 1
            if least >= 0:
                after = least if after is None else max(after, least)
        return await super()._list(agent_id, kind, last, after, before, on_corrupt)


async def _key_in_a_fork(ctx: Any) -> bool:
    store = ctx.store
    await store.save_info("a", samples.info("a"))
    await store.append_messages_once("a", {"k": samples.message()})
    await store.put_document("a", "notes", "n", 1)
    child = await store.fork("a", documents=True)
    (appended,) = await store.append_messages_once(child, {"k": samples.message()})
    return not appended.is_new


@fault(
    "MSG-12",
    "DOC-5",
    source="insert into docs select ?, kind, key, body from docs where agent_id = ?: the keys are rows of that table",
    witness=_key_in_a_fork,
)
class SkinkForksWithKeys(EngineStore):
    """Gives the keys of messages to a fork that takes the documents along."""

    async def fork(self, agent_id: str, new_id: Any = None, **options: Any) -> str:
        child = await super().fork(agent_id, new_id, **options)
        if options.get("documents") is True:
            context = self._context
            keys = [doc async for doc in stored_documents(context.engine, agent_id, of_core=True)]
            writes = [DocWrite(DocKind.DOCUMENTS, doc.key, doc) for doc in keys if doc.key.startswith(_KEYS)]
            if writes:
                await context.commit(context.batch(child, docs=tuple(writes)))
        return child


async def _upsert_an_old_call(ctx: Any) -> bool:
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i) for i in range(600)])
    other = await ctx.another()
    await other.upsert_tool_call_records("a", [samples.tool_call(3, state="FAILED")])
    return len(await other.load_tool_call_records("a")) != 600


@fault(
    "TC-3",
    source="a list of Redis, in which the record to replace is looked for from the right: LPOS … RANK -1 MAXLEN 500",
    witness=_upsert_an_old_call,
)
class SkinkLooksBack500(MemoryLayer):
    """Appends an upserted tool call, in an instance that has not read the list, if its record is not one of the last
    500.
    """

    async def outline(self, agent_id: str, kind: ListKind, keys: Any = None) -> Any:
        found = await super().outline(agent_id, kind, keys)
        if keys is None:
            return found
        return replace(found, rows=[row for row in found.rows if row[0] >= found.count - 500])


class _OneDemandWriter(Writer):
    """Demands the version of the agent only where no document has a demand of its own."""

    async def _attempt(self, agent_id: str, turn: Any, rest: Any, *given: Any) -> Any:
        if any(write.expect is not None for write in rest.docs):
            turn = turn._replace(expect=None)
        return await super()._attempt(agent_id, turn, rest, *given)


async def _demand_both(ctx: Any) -> bool:
    store = ctx.store
    await store.save_messages("a", talk("x"))
    stale = await store.load_version("a")
    put = await store.put_document("a", "notes", "n", 1)
    await store.append_messages("a", talk("y"))
    with suppress(ConflictError):
        await store.save_turn("a", append=talk("z"), documents=[PutDocument("notes", "n", 2, expect=put)], expect=stale)
        return True
    return False


@fault(
    "VER-2",
    "DOC-3",
    source="DynamoDB: a ConditionExpression for each item of a transaction; the head is only put if it was not checked",
    witness=_demand_both,
)
class SkinkOneDemandIsEnough(EngineStore):
    """Forgets the version that a turn demands of the agent if a document of the turn has a demand of its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        plain, self._writer = self._writer, _OneDemandWriter(self._context, self._memory, self._appender)
        self._writer._locks = plain._locks


# --- events -----------------------------------------------------------------------------------------------------------


async def _append_2500(ctx: Any) -> bool:
    store, other = ctx.store, await ctx.another()
    await other.append_event("a", samples.event(100_000))
    call = asyncio.ensure_future(store.append_events("a", happened(*range(2_500))))
    for i in range(2_000):
        if call.done():
            break
        await other.append_event("a", samples.event(100_001 + i))
        await asyncio.sleep(0.001)
    await call
    seqs = [event.bookmark.seq async for event in store.read_events("a", after_offset=0)]
    places = [place for place, seq in enumerate(seqs) if seq < 2_500]
    return places[-1] - places[0] != 2_499


@fault(
    "EVT-1",
    "DUR-3",
    source="itertools.batched(events, 1000) around executemany, or BatchWriteItem and bulk requests with their limits",
    witness=_append_2500,
)
class SkinkAppendsAThousandAtOnce(EngineStore):
    """Appends more than 1,000 events in several pieces, between which other writers' events come."""

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Sequence[int]:
        if not isinstance(timelines, (list, tuple)) or len(timelines) <= 1_000:
            return await super().append_events(agent_id, timelines, fence=fence)
        return await self._context.run(METHODS["append_events"], agent_id, self._in_pieces, agent_id, timelines, fence)

    async def _in_pieces(self, agent_id: str, timelines: Any, fence: Any) -> Sequence[int]:
        events = await rows.event_writes(timelines)
        offsets: list[int] = []
        for i in range(0, len(events), 1_000):
            offsets += await self._append(agent_id, events[i : i + 1_000], fence)
        return tuple(offsets)


async def _append_after_a_prune(ctx: Any) -> bool:
    given = await ctx.store.append_events("a", happened(9, 1, 2))
    await ctx.store.prune("a", events_before_offset=given[-1] + 1)
    return await ctx.store.append_event("a", samples.event(10)) in given


@fault(
    "EVT-2",
    "LIFE-6",
    source="coalesce(max(event_offset), 0) + 1, of which one says that no last event is ever pruned: by seq, that is",
    witness=_append_after_a_prune,
)
class SkinkOffsetsFromTheLastRow(CommittingLayer):
    """Gives the offsets of pruned events again where the event with the highest seq, which stays, was not the last."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        outcome = commit(batch)
        if isinstance(outcome, Applied) and batch.drop_events is not None:
            log = self.space.states[batch.agent_id].log
            if len(log):
                log.next_offset = log._offsets[-1] + 1
        return outcome


async def _retry_after_anothers_prune(ctx: Any) -> bool:
    store, other = ctx.store, await ctx.another()
    first = await store.append_event("a", samples.event(1))
    await store.append_event("a", samples.event(2))
    await other.prune("a", events_before_offset=first + 1)
    again = await store.append_event("a", samples.event(1))
    seqs = [event.bookmark.seq async for event in store.read_events("a")]
    return bool(again == first and seqs != [1, 2])


@fault(
    "EVT-4",
    "LIFE-6",
    source="NATS, Kafka and SQS FIFO have a window of message ids in the memory of the producer's side, or the broker's",
    witness=_retry_after_anothers_prune,
)
class SkinkRemembersWhatItSent(EngineStore):
    """Answers the append of an event that it appended before from its memory, though another instance has pruned it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sent: dict[tuple[str, bytes], int] = {}

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        name = None
        with suppress(Exception):
            name = (check_agent_id(agent_id), (await rows.event_write(timeline)).body.digest)
        is_free = fence is None and not self._context.is_closed
        if is_free and name in self._sent and self._locks.fence(agent_id, None) is None:
            offset = await self._context.run(METHODS["append_event"], agent_id, self._known, agent_id, name)
            if offset is not None:
                return offset
        offset = await super().append_event(agent_id, timeline, fence=fence)
        if name is not None:
            self._sent[name] = offset
            if len(self._sent) > 1_000:
                del self._sent[next(iter(self._sent))]
        return offset

    async def _known(self, agent_id: str, name: Any) -> int | None:
        if await self._context.engine.last_event(agent_id) is None:
            self._sent.clear()
        return self._sent.get(name)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self._sent.clear()

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        try:
            return await super().delete_many(progress=progress, **filters)
        finally:
            self._sent.clear()

    async def prune(self, agent_id: str, **options: Any) -> Any:
        try:
            return await super().prune(agent_id, **options)
        finally:
            self._sent.clear()


class _CalmInAll(StreamWrapper):
    """Leaves out a heartbeat if there was any event, wanted or not, since the last one."""

    def __init__(self, inner: Any, store: Any, agent_id: str) -> None:
        super().__init__(inner)
        self._store = store
        self._agent_id = agent_id
        self._seen: int | None = None

    async def __anext__(self) -> Any:
        if self._seen is None:
            self._seen = await self._newest(0)
        while True:
            item = await self.inner.__anext__()
            if not isinstance(item, Heartbeat):
                return item
            newest = await self._newest(self._seen)
            if newest == self._seen:
                return item
            self._seen = newest

    async def _newest(self, offset: int) -> int:
        await self._store.open()
        while True:
            span = EventRange(order="offset", after=(0, offset), limit=1_000)
            found = await self._store._context.engine.events(self._agent_id, span)
            if not found:
                return offset
            offset = found[-1].offset


async def _beat_beside_others(ctx: Any) -> bool:
    async def progress() -> None:
        for i in range(60):
            await ctx.store.append_event("a", samples.event(i))
            await asyncio.sleep(0.025)

    busy = asyncio.ensure_future(progress())
    try:
        async with aclosing(ctx.store.follow_events("a", channel="monitor", heartbeat_ms=120)) as stream:
            try:
                async with asyncio.timeout(1.0):
                    await anext(stream)
            except TimeoutError:
                return True
            return False
    finally:
        busy.cancel()


@fault(
    "EVT-9",
    source="XREAD BLOCK of one stream for all channels: the pause is measured in front of the filter, so a busy "
    "channel keeps a quiet one without a ping",
    witness=_beat_beside_others,
)
class SkinkBeatsOnlyInSilence(Wrapper):
    """Gives no heartbeat to the follower of one channel as long as events of other channels come."""

    __slots__ = ()

    def follow_events(self, agent_id: str, **options: Any) -> Any:
        stream = self.inner.follow_events(agent_id, **options)
        if options.get("channel") is None or options.get("heartbeat_ms") is None:
            return stream
        return _CalmInAll(stream, self.inner, agent_id)


_IN_HAND: Final[ContextVar[bool]] = ContextVar("_IN_HAND", default=False)


class _BlockOnlyEmitter(Emitter):
    """Reads the highest seq anew for the block of a lease, and not for a lease that is given."""

    async def _emit(self, agent_id: str, events: Any, fence: Any, writes: Any) -> Any:
        token = _IN_HAND.set(fence is not None)
        try:
            return await super()._emit(agent_id, events, fence, writes)
        finally:
            _IN_HAND.reset(token)

    async def _next_seq(self, agent_id: str, number: Any, fence: Any) -> int:
        return await super()._next_seq(agent_id, number, None if _IN_HAND.get() else fence)


async def _emit_with_a_lease(ctx: Any) -> bool:
    store, other = ctx.store, await ctx.another()
    await store.emit("a", "started")
    await other.append_event("a", samples.event(100))
    lease = await store.acquire_agent_lock("a")
    return bool((await store.emit("a", "went_on", fence=lease)).bookmark.seq <= 100)


@fault(
    "EVT-8",
    "LOCK-5",
    source="a counter that is dropped by the __aenter__ of the lock, and not by the call that only hands a lease over",
    witness=_emit_with_a_lease,
)
class SkinkNumbersWithoutTheGivenLease(EngineStore):
    """Emits with ``fence=lease`` under a seq that it knew before the lock was taken."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._emitter = _BlockOnlyEmitter(self._context, self._appender, self._locks)


class _Quiet:
    """An appender that wakes no follower of a deleted agent."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def deleted(self, agent_id: str) -> None:
        self.inner.numbers.forget(agent_id)


async def _follow_a_mass_delete(ctx: Any) -> bool:
    store = ctx.store
    await store.save_info("a", samples.info("a"))
    await store.append_event("a", samples.event(1))
    async with aclosing(store.follow_events("a")) as stream:
        await anext(stream)
        end = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.6)
        await store.delete_many(template_id="assistant")
        done, _ = await asyncio.wait([end], timeout=1.0)
        if done:
            return not isinstance(end.exception(), AgentDeletedError)
        end.cancel()
        await asyncio.wait([end])
        return True


@fault(
    "EVT-10",
    "LIFE-5",
    source="Django and Rails: delete_all and QuerySet.delete of many rows in one statement send no signal of each row",
    witness=_follow_a_mass_delete,
)
class SkinkMassDeletesAreSilent(EngineStore):
    """Tells the followers of an agent that its own ``delete_many`` deleted only when they look by themselves."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        quiet: Any = _Quiet(self._appender)
        self._deletions = Deletions(self._context, self._memory, quiet, self._locks)


# --- the other kinds, documents ---------------------------------------------------------------------------------------


async def _save_older_todos(ctx: Any) -> bool:
    await ctx.store.save_todos("a", samples.todos("x").replace(updated_at=T0 + 10))
    await ctx.store.save_todos("a", samples.todos("y", "z"))
    found = await ctx.store.load_todos("a")
    return [todo.title for todo in found.todos] == ["x"]


@fault(
    "TODO-1",
    source="Cassandra: the write with the greatest timestamp wins, and USING TIMESTAMP takes the record's own",
    witness=_save_older_todos,
)
class SkinkNewestTodosWin(CommittingLayer):
    """Keeps the stored todos if those that are saved have an earlier ``updated_at``."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        state = self.space.states.get(batch.agent_id)
        old = None if state is None else state.docs.get((DocKind.TODOS, ""))
        if old is not None and not batch.delete:
            batch = replace(batch, docs=tuple(write for write in batch.docs if not _is_late(write, old.body)))
        return commit(batch)


def _is_late(write: DocWrite, stored: Any) -> bool:
    if write.kind is not DocKind.TODOS or write.doc is None:
        return False
    with suppress(KodeError):
        return _updated_at(write.doc.body) < _updated_at(stored)
    return False


def _updated_at(body: Any) -> int:
    return int(decode(TodoSnapshot, body, "todos").updated_at)


async def _replace_anothers_snapshot(ctx: Any) -> bool:
    store, other = ctx.store, await ctx.another()
    await store.save_snapshot("a", samples.snapshot("s", count=1))
    await store.list_snapshots("a")
    await other.save_snapshot("a", samples.snapshot("s", count=3))
    (found,) = await store.list_snapshots("a")
    return len(found.messages) == 1


@fault(
    "QRY-8",
    "SNAP-1",
    source="an ETag of a listing from the number of its objects and the head's version, as proxies of S3 make it",
    witness=_replace_anothers_snapshot,
)
class SkinkListsAsManyAsBefore(EngineStore):
    """Lists the snapshots that it listed before if another instance has replaced one and their number is the same."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._listed: dict[str, tuple[Any, Any]] = {}

    async def list_snapshots(self, agent_id: str) -> Any:
        return await self._load("list_snapshots", agent_id, self._snapshots)

    async def _snapshots(self, agent_id: str) -> Any:
        engine = self._context.engine
        count = (await engine.stats(agent_id)).total_snapshots
        state = (version_of(await engine.summary(agent_id)), count)
        known = self._listed.get(agent_id)
        if known is None or known[0] != state or not count:
            known = (state, await engine.docs(agent_id, DocKind.SNAPSHOTS))
            self._listed[agent_id] = known
            if len(self._listed) > 8:
                del self._listed[next(iter(self._listed))]
        return await self._reader.decoded_docs(agent_id, SNAPSHOTS, known[1])

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        try:
            await super().save_snapshot(agent_id, snapshot, fence=fence)
        finally:
            self._listed.clear()


async def _iterate_backwards(ctx: Any) -> bool:
    await ctx.store.write_documents("a", [PutDocument("notes", f"k{i:03}", i) for i in range(200)])
    found = await _all(ctx.store.iter_documents("a", "notes", start="k100", reverse=True))
    few = await _all(ctx.store.iter_documents("a", "notes", start="k150", reverse=True))
    return len(few) == 50 and found[-1].key != "k100"


@fault(
    "DOC-4",
    source="Firestore and DynamoDB: startAfter(last) replaces the bound of the query, which was an end at first",
    witness=_iterate_backwards,
)
class SkinkForgetsTheEnd(EngineStore):
    """Goes on below ``start`` when more than a page of documents is iterated in reverse."""

    def iter_documents(self, agent_id: str, collection: str, **options: Any) -> Any:
        plain = super().iter_documents(agent_id, collection, **options)
        if options.get("start") is None or options.get("reverse") is not True:
            return plain
        return self._pages(plain, agent_id, collection, options)

    async def _pages(self, page: Any, agent_id: str, collection: str, options: Any) -> AsyncIterator[Any]:
        count, last = 0, None
        async for document in page:
            yield document
            count, last = count + 1, document
            if count == 64:
                break
        if count == 64 and last is not None:
            rest = {**options, "start": None, "stop": last.key}
            async for document in super().iter_documents(agent_id, collection, **rest):
                yield document


async def _put_without_tags(ctx: Any) -> bool:
    await ctx.store.put_document("a", "users", "u", 1, tags={"plan": "gold"})
    await ctx.store.save_turn("a", append=talk("x"), documents=[PutDocument("users", "u", 2)])
    found = await ctx.store.query_documents("users", {"plan": "gold"})
    return [one.value for one in found] == [2]


@fault(
    "DOC-7",
    "DOC-8",
    source="a table of tags that is written with the rows that a turn inserts, and cleared only by the endpoint of put",
    witness=_put_without_tags,
)
class SkinkTurnsLeaveTags(CommittingLayer):
    """Finds a document by the tags that it had before a turn with messages or info put it without tags."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        state = self.space.states.get(batch.agent_id)
        if state is None or not batch.is_touching or batch.delete:
            return commit(batch)

        def tagged(write: DocWrite) -> DocWrite:
            old = state.docs.get((write.kind, write.key))
            if write.kind is not DocKind.DOCUMENTS or write.doc is None or old is None or write.doc.terms:
                return write
            return replace(write, doc=replace(write.doc, terms=old.terms))

        return commit(replace(batch, docs=tuple(map(tagged, batch.docs))))


# --- locks ------------------------------------------------------------------------------------------------------------


async def _lock_long_names(ctx: Any) -> bool:
    base = "tenant/" + "x" * 60
    await ctx.store.acquire_agent_lock(f"{base}/first")
    try:
        await ctx.store.acquire_agent_lock(f"{base}/second")
    except LockUnavailableError:
        return True
    return False


@fault(
    "ID-2",
    "LOCK-1",
    source="GET_LOCK of MySQL takes names of at most 64 characters, to which libraries cut the names of their locks",
    witness=_lock_long_names,
)
class SkinkLockNamesOf64(MemoryLayer):
    """Has one lock for all agents whose ids begin with the same 64 characters."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        if len(agent_id) > 64:
            with self.space.lock:
                held = [name for name in self.space.leases if name[:64] == agent_id[:64] and name != agent_id]
                if any(self.space.holds(name, self.space.leases[name][0]) for name in held):
                    return None
        return await super().acquire_lease(agent_id, owner, ttl_ms)


class _Unfenced:
    """Locks that fence nothing."""

    def fencing(self, agent_id: str, lease: Any) -> AbstractContextManager[None]:
        return nullcontext()


async def _delete_after_the_lease(ctx: Any) -> bool:
    await ctx.store.save_info("a", samples.info("a"))
    async with ctx.store.acquire_agent_lock("a") as lease:
        await lease.release()
        with suppress(LockLostError):
            return bool(await ctx.store.delete_many(agent_id="a") == 1)
    return False


@fault(
    "LOCK-5",
    "LIFE-5",
    source="a bulk statement that was written for administrators, past the repository that adds the fence to writes",
    witness=_delete_after_the_lease,
)
class SkinkMassDeletesAreUnfenced(EngineStore):
    """Deletes an agent by ``delete_many`` inside the block of its lock, though the lease has ended."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        unfenced: Any = _Unfenced()
        self._deletions = Deletions(self._context, self._memory, self._appender, unfenced)


# --- forks, whole agents ----------------------------------------------------------------------------------------------


class _OneCallForks(Forks):
    """Takes one call of each id along."""

    async def _copied(self, agent_id: str, summary: Any, cut: Any) -> Any:
        found = await super()._copied(agent_id, summary, cut)
        if found is not None and not cut.is_whole and found["tool_calls"] is not None:
            write = found["tool_calls"]
            last = {row.index.call_id: row for row in write.append}
            found["tool_calls"] = replace(write, append=tuple(last.values()))
        return found


async def _fork_with_one_id(ctx: Any) -> bool:
    store = ctx.store
    use = Message("assistant", [ToolUseBlock("call_0", "search", {})])
    await store.save_info("a", samples.info("a"))
    await store.save_messages("a", [use, *talk("x"), use, *talk("y")])
    await store.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(0, result="again")])
    child = await store.fork("a", length=3)
    return len(await store.load_tool_call_records(child)) != 2


@fault(
    "FORK-4",
    "TC-2",
    source="{call.id: call for call in calls}, to look up the calls of the messages that a branch takes",
    witness=_fork_with_one_id,
)
class SkinkForksOneCallOfAnId(EngineStore):
    """Gives a fork of a part of the messages only the last of several tool calls with one id."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._forks = _OneCallForks(self._context, self._reader, self._memory, self._appender)


async def _import_a_document(ctx: Any) -> bool:
    store = ctx.store
    version = await store.put_document("a", "notes", "n", 1)
    await store.import_agent("b", await store.load_agent("a"))
    return bool((await store.load_document("b", "notes", "n")).version == version)


@fault(
    "LIFE-8",
    "DOC-2",
    source="pg_dump and insert … select copy the column of the version, or its xmin's stand-in, with the row",
    witness=_import_a_document,
)
class SkinkImportsTheVersions(EngineStore):
    """Gives imported documents without tags the versions that they had, if the same instance has loaded them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bodies: dict[str, Any] = {}

    async def load_agent(self, agent_id: str) -> Any:
        found = await super().load_agent(agent_id)
        self._bodies.clear()
        if found is not None and found.documents:
            async for doc in stored_documents(self._context.engine, agent_id):
                self._bodies[doc.body.digest.hex()] = doc.body
        return found

    async def import_agent(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await super().import_agent(agent_id, records, fence=fence)
        given = {f"{one.collection}/{one.key}": one for one in records.documents}
        writes = []
        async for doc in stored_documents(self._context.engine, agent_id):
            body = self._bodies.get(given[doc.key].version) if doc.key in given else None
            if body is not None and not given[doc.key].tags and _contents(body) == _contents(doc.body):
                put = replace(doc, body=body)
                writes.append(DocWrite(DocKind.DOCUMENTS, doc.key, put, doc.body))
        if writes:
            await self._context.commit(self._context.batch(agent_id, docs=tuple(writes)))


def _contents(body: Any) -> str:
    stored = decode(StoredDocument, body, "document")
    return repr((stored.value, stored.tags))


# --- queries ----------------------------------------------------------------------------------------------------------


async def _page_before_1970(ctx: Any) -> bool:
    calls = [samples.tool_call(i, created_at=-1_000 * i) for i in range(6)]
    await ctx.store.save_tool_call_records("a", calls)
    found: list[str] = []
    cursor = None
    for _ in range(6):
        page = await ctx.store.query_tool_calls(limit=2, cursor=cursor)
        found += [call.id for call in page]
        cursor = page.next_cursor
        if cursor is None:
            break
    return len(found) != 6


@fault(
    "QRY-5",
    "VAL-5",
    source="a cursor of texts such as 1767258000000-a-7, which is taken apart at its first hyphens",
    witness=_page_before_1970,
)
class SkinkNoPageBefore1970(MemoryLayer):
    """Ends a query for tool calls, as if there were no more, behind a page whose last call is from before 1970."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        plain = inner.find_rows

        async def find_rows(query: Any) -> Any:
            if query.kind == "tool_calls" and query.after is not None and query.after[0] < 0:
                return []
            return await plain(query)

        inner.find_rows = find_rows


async def _sum_large_and_small(ctx: Any) -> bool:
    calls = [samples.tool_call(i, duration_ms=ms) for i, ms in enumerate((2**53 + 1, 2**53 + 1, 0.5))]
    await ctx.store.save_tool_call_records("a", calls)
    (group,) = await ctx.store.group_tool_calls("tool_name", durations=True)
    return bool(group.durations.total_ms != 2.0**54 + 4)


_SHOWN: Final[dict[str, Callable[[Any], Any]]] = {
    "agent_id": lambda call: call.agent_id,
    "tool_name": lambda call: call.name,
    "state": lambda call: call.state,
    "is_error": lambda call: bool(call.is_error),
    "has_approval": lambda call: call.approval is not None and bool(call.approval.required),
}


@fault(
    "QRY-11",
    source="math.fsum, or sum() over a column of doubles: every addend is rounded to one before the exact addition",
    witness=_sum_large_and_small,
)
class SkinkSumsOfFloats(EngineStore):
    """Rounds whole durations beyond 2 ** 53 before it adds them to fractional ones, and then once more."""

    async def group_tool_calls(self, by: Any, *, durations: bool = False, **options: Any) -> Any:
        groups = await super().group_tool_calls(by, durations=durations, **options)
        names = [by] if isinstance(by, str) else list(by)
        if "day" in names or not any(one.durations and type(one.durations.total_ms) is float for one in groups):
            return groups
        filters = {name: value for name, value in options.items() if name != "utc_offset_minutes"}
        times: dict[Any, list[float]] = {}
        async for call in _found(self._search.tool_calls, filters):
            if call.duration_ms is not None:
                with suppress(OverflowError):
                    key = tuple([_SHOWN[name](call) for name in names])
                    times.setdefault(key, []).append(float(call.duration_ms))
        return [_summed(one, times.get(tuple(one.values.values()))) for one in groups]


def _summed(group: Any, times: Sequence[float] | None) -> Any:
    found = group.durations
    if found is None or type(found.total_ms) is not float or times is None or len(times) != found.count:
        return group
    with suppress(OverflowError):
        return replace(group, durations=replace(found, total_ms=math.fsum(times)))
    return group


async def _find_a_type(ctx: Any) -> bool:
    use = Message("assistant", [ToolUseBlock("call_0", "draw", {"shape": {"type": "Hexagon", "sides": 6}})])
    await ctx.store.save_messages("a", [use, *talk("hexagon")])
    return len(await ctx.store.query_messages(contains="hexagon")) != 2


def _plain_texts(message: Message) -> Iterator[str]:
    """The texts of a message, without what stands under a key ``type`` in the input of a tool or an unknown block."""
    for block in message.content:
        if isinstance(block, TextBlock):
            yield block.text
        elif isinstance(block, ReasoningBlock):
            yield block.reasoning
        elif isinstance(block, ToolUseBlock):
            yield from _strings(block.input, but="type")
        elif isinstance(block, ToolResultBlock):
            yield from _strings(block.content)
        elif isinstance(block, FileBlock):
            yield from _strings(block.filename)
        elif isinstance(block, UnknownBlock):
            yield from _strings(block.data, but="type")


def _strings(value: Any, but: str | None = None) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _strings(one, but)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key != but:
                yield from _strings(one, but)


def _has(message: Any, needle: str) -> bool:
    return any(needle in folded(text) for text in _plain_texts(message))


@fault(
    "QRY-12",
    source="a walk over the JSON of blocks that leaves out the key type, by which blocks inside blocks are told apart",
    witness=_find_a_type,
)
class SkinkLooksIntoNoType(EngineStore):
    """Finds no text under a key ``type`` inside the input of a tool use, or deeper in a block of an unknown type."""

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        if "contains" not in filters:
            return page
        needle = folded(filters["contains"])
        return Page((one for one in page if _has(one, needle)), page.next_cursor, page.left_out)

    async def count_messages(self, **filters: Any) -> int:
        count = await super().count_messages(**filters)
        if "contains" not in filters or not count:
            return count
        needle = folded(filters["contains"])
        found = [one async for one in _found(self._search.messages, filters) if not _has(one, needle)]
        return count - len(found)


# --- operations -------------------------------------------------------------------------------------------------------


async def _issues_of_all(ctx: Any) -> bool:
    await ctx.store.save_messages("a", [Message("user", [ToolResultBlock("call_0", "found")])])
    found = (await ctx.store.check_consistency()).issues
    return len(found) == 1 and not await _all(ctx.store.iter_consistency())


@fault(
    "OPS-2",
    source="a generator that was added later, and goes over the sessions that the list of the store gives",
    witness=_issues_of_all,
)
class SkinkStreamsIssuesOfSessions(EngineStore):
    """Leaves out the issues of agents without info when the issues of all agents are iterated."""

    def iter_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        plain = super().iter_consistency(agent_id, progress=progress)
        return self._of_sessions(plain) if agent_id is None else plain

    async def _of_sessions(self, issues: Any) -> AsyncIterator[Any]:
        async for issue in issues:
            with suppress(KodeError):
                summary = await self._context.engine.summary(issue.agent_id)
                if summary is None or summary.info is None:
                    continue
            yield issue


class _ViewOfSessions(EngineStore):
    """A view whose size is that of its sessions."""

    async def get_metrics(self) -> Any:
        found = await super().get_metrics()
        messages = 0
        for row in await self._context.engine.find_sessions(SessionQuery(limit=2**31 - 1)):
            messages += row.message_count
        return replace(found, storage=replace(found.storage, total_messages=messages))


async def _size_of_a_view(ctx: Any) -> bool:
    view = ctx.store.scoped("acme")
    await view.save_messages("a", talk("x", "y"))
    await view.save_info("b", samples.info("b"))
    await view.append_messages("b", talk("z"))
    whole, part = await ctx.store.get_metrics(), await view.get_metrics()
    return bool(whole.storage.total_messages == 3 and part.storage.total_messages == 1)


@fault(
    "OPS-3",
    "SCOPE-1",
    source="select sum(message_count) from sessions where tenant = ?, as only the whole store has a table of totals",
    witness=_size_of_a_view,
)
class SkinkViewsSumTheirSessions(EngineStore):
    """Counts, in the size of a tenant's view, only the messages of agents with info."""

    def scoped(self, tenant: str) -> EngineStore:
        super().scoped(tenant)
        return _ViewOfSessions(self._context.open_for_view, tenant=tenant, parent=self, **self._settings)


async def _close_while_reading(ctx: Any) -> bool:
    store = await ctx.another()
    await store.save_messages("a", samples.messages(300))
    stream = store.read_messages("a")
    await anext(stream)
    await store.close()
    with suppress(StoreClosedError):
        return len(await _all(stream)) < 299
    return False


@fault(
    "OPS-5",
    "MSG-10",
    source="async generators over a channel that a shutdown closes: the loop over it ends as at the end of the rows",
    witness=_close_while_reading,
)
class SkinkStreamsEndQuietly(EngineStore):
    """Ends the reading of messages, as if the list had ended, when the store is closed in the middle of it."""

    def read_messages(self, agent_id: str, **options: Any) -> Any:
        return self._until_closed(super().read_messages(agent_id, **options))

    async def _until_closed(self, stream: Any) -> AsyncIterator[Any]:
        has_begun = False
        try:
            async for message in stream:
                yield message
                has_begun = True
        except StoreClosedError:
            if not has_begun:
                raise


class _Slow(Layer):
    """Commits after a third of a second."""

    async def commit(self, batches: Any) -> Any:
        await asyncio.sleep(0.3)
        return await super().commit(batches)


async def _load_after_a_cancelled_put(ctx: Any) -> bool:
    store = await ctx.another(layer=_Slow)
    call = asyncio.ensure_future(store.put_document("a", "notes", "n", 1))
    await asyncio.sleep(0.1)
    call.cancel()
    await asyncio.wait([call])
    first = await store.load_document("a", "notes", "n")
    await asyncio.sleep(0.5)
    last = await store.load_document("a", "notes", "n")
    return first is None and last is not None


@fault(
    "OPS-9",
    "DOC-1",
    source="a second pool for reads by key, so that they never wait for the queue of writes",
    witness=_load_after_a_cancelled_put,
)
class SkinkReadsPastTheQueue(EngineStore):
    """Loads a document without waiting for the put of a cancelled caller, which is still under way."""

    async def load_document(self, agent_id: str, collection: str, key: str) -> Any:
        if self._context.is_closed or not self._context.underway.is_any_left:
            return await super().load_document(agent_id, collection, key)
        return await self._documents.load(check_agent_id(agent_id), collection, key)


async def _conflict_over_a_secret(ctx: Any) -> bool:
    version = await ctx.store.put_document("a", "keys", "k", "first")
    await ctx.store.put_document("a", "keys", "k", {"token": "sk-5f2d0c9b"})
    try:
        await ctx.store.put_document("a", "keys", "k", "third", expect=version)
    except ConflictError as exc:
        return "sk-5f2d0c9b" in "".join([str(exc), *getattr(exc, "__notes__", ())])
    return False


@fault(
    "OPS-12",
    source="exc.add_note(f'current: {row}'), for those who debug: tracebacks and error reports print notes",
    witness=_conflict_over_a_secret,
)
class SkinkNotesTheOtherValue(EngineStore):
    """Adds a note with the present value to the conflict of a put that demands a version."""

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **options: Any) -> str:
        try:
            return await super().put_document(agent_id, collection, key, value, **options)
        except ConflictError as exc:
            with suppress(KodeError):
                found = await self._documents.load(agent_id, collection, key)
                if found is not None:
                    exc.add_note(f"the document is now {found.value!r:.200}")
            raise


async def _append_to_a_copy(ctx: Any) -> bool:
    store = ctx.store
    await store.append_event("b", samples.event(1))
    given = await store.append_events("a", happened(1, 2))
    await store.delete("a")
    copy = await ctx.restored(await store.backup(ctx.folder / "copy"))
    return await copy.append_event("a", samples.event(3)) in given


@fault(
    "OPS-16",
    "EVT-2",
    source="a dump of the tables without their sequences, as .dump with a pattern of names, or pg_dump --table, makes it",
    on=OnSqlite,
    witness=_append_to_a_copy,
)
class SkinkCopiesNoSequence(Wrapper):
    """Makes backups in which the offsets of the last events are given again, if those were deleted before."""

    __slots__ = ()

    async def backup(self, target: Any, *, progress: Any = None) -> Any:
        paths = await self.inner.backup(target, progress=progress)
        for path in paths:
            if Path(path).is_file():
                with suppress(sqlite3.Error):
                    db = sqlite3.connect(path)
                    try:
                        with db:
                            db.execute("DELETE FROM sqlite_sequence WHERE name = 'kode_events'")
                    finally:
                        db.close()
        return paths


async def _close_one_of_two_views(ctx: Any) -> bool:
    first, second = ctx.store.scoped("acme"), ctx.store.scoped("acme")
    await first.save_todos("a", samples.todos("x"))
    await first.close()
    try:
        await second.load_todos("a")
    except StoreClosedError:
        return True
    return False


@fault(
    "SCOPE-5",
    source="functools.cache on the factory of views, with which a service makes one for each request and closes it",
    witness=_close_one_of_two_views,
)
class SkinkOneViewOfATenant(EngineStore):
    """Closes all views of a tenant when one of them is closed, since they are one object."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._by_tenant: WeakValueDictionary[str, EngineStore] = WeakValueDictionary()

    def scoped(self, tenant: str) -> EngineStore:
        known = self._by_tenant.get(check_tenant(tenant))
        if known is None or known._context.is_closed or self._context.is_closed:
            known = super().scoped(tenant)
            self._by_tenant[tenant] = known
        return known
