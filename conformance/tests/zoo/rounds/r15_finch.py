"""Faults of a student, a contractor, a data engineer, a DBA and a mobile developer, who each wrote a store."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import unicodedata
from contextlib import aclosing, suppress
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import seen, talk
from kode_core.batch import Applied, Batch, DocKind, DocWrite, EventRange, ListKind
from kode_core.codec import decode
from kode_core.errors import (
    InvalidArgumentError,
    InvalidValueError,
    KodeError,
    LockLostError,
    StorageError,
    StoreClosedError,
)
from kode_core.ids import check_agent_id, is_shortened
from kode_core.layers import Layer
from kode_core.model import AgentInfo, MediaCacheRecord, Message, ToolResultBlock, ToolUseBlock
from kode_core.store import EngineStore
from kode_core.store.locks import HeldLease, Locks
from kode_core.store.rows import info_of

_log = logging.getLogger("kode_core")

# --- the student ------------------------------------------------------------------------------------------------------


async def _changes_what_it_read(ctx: Any) -> object:
    await ctx.store.append_event("a", samples.event(1, step=[1]))
    (first,) = [e async for e in ctx.store.read_events("a")]
    first.event.data["step"].append(2)
    return [e.event.data async for e in ctx.store.read_events("a")]


@fault("VAL-1", source="functools.lru_cache over json.loads of a column", witness=_changes_what_it_read)
class FinDecodesOnce(EngineStore):
    """Gives every reader the same dict for the data of an event, so that who changes it changes what others read."""

    def read_events(self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None) -> Any:
        return self._decoded(super().read_events(agent_id, since=since, after_offset=after_offset, channel=channel))

    async def _decoded(self, stream: Any) -> Any:
        known = self.__dict__.setdefault("known", {})
        async with aclosing(stream):
            async for one in stream:
                text = json.dumps(one.event.data)
                if len(text) > 1000:
                    yield one
                    continue
                if len(known) >= 128 and text not in known:
                    known.pop(next(iter(known)))
                data = known.setdefault(text, one.event.data)
                yield one.replace(event=replace(one.event, data=data))


@fault(
    "EVT-5",
    source="Python habit: `if after_offset:` for an optional int",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(9), samples.event(3)]),
        lambda s: s.read_events("a", after_offset=0),
    ),
)
class FinZeroIsNoOffset(EngineStore):
    """Takes an after_offset of 0 for one that was not given, and yields by seq."""

    def read_events(self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None) -> Any:
        if type(after_offset) is int and after_offset == 0:
            after_offset = None
        return super().read_events(agent_id, since=since, after_offset=after_offset, channel=channel)


async def _deletes_while_it_iterates(ctx: Any) -> object:
    for i in range(150):
        await ctx.store.save_info(f"a{i:03}", samples.info(f"a{i:03}"))
    async for session in ctx.store.iter_sessions():
        await ctx.store.delete(session.agent_id)
    return await ctx.store.list()


@fault(
    "QRY-6",
    "QRY-5",
    source="LIMIT 100 OFFSET n in a loop, as in every tutorial (Django's Paginator while rows are deleted)",
    witness=_deletes_while_it_iterates,
)
class FinIteratesByOffset(EngineStore):
    """Pages through iter_sessions with LIMIT and OFFSET, so that those that come after deleted ones are passed over."""

    def iter_sessions(self, **filters: Any) -> Any:
        return self._by_offset(filters)

    async def _by_offset(self, filters: Any) -> Any:
        for name in ("limit", "offset", "cursor"):
            if name in filters:
                raise InvalidArgumentError(f"an iterator gives everything that matches and takes no {name}")
        offset = 0
        while True:
            page = await self.query_sessions(**filters, limit=100, offset=offset)
            for name in page.left_out:
                _log.error("%s is damaged and was left out", name)
            for session in page:
                yield session
            if page.next_cursor is None:
                return
            offset += 100


async def _notes(ctx: Any) -> object:
    try:
        await ctx.store.save_recovered_file("a", samples.recovered(content="a secret").replace(mtime=float("nan")))
    except InvalidValueError as exc:
        return "a secret" in f"{exc} {getattr(exc, '__notes__', '')}"
    return None


@fault("OPS-12", source="exc.add_note(f'while saving {record!r}'), the habit of PEP 678", witness=_notes)
class FinNotesTheRecord(Wrapper):
    """Adds the whole recovered file to the error that refuses it, as a note."""

    __slots__ = ()

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.save_recovered_file(agent_id, file, fence=fence)
        except InvalidValueError as exc:
            with suppress(Exception):
                exc.add_note(f"while saving {file!r}")
            raise


@fault(
    "EVT-6",
    source="a 'last bookmark' field that is set from events[-1], instead of MAX(seq)",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(1), samples.event(7), samples.event(4)]),
        lambda s: s.last_bookmark("a"),
    ),
)
class FinMarksTheLastOfABatch(Wrapper):
    """Gives the bookmark of the last event of a batch whose highest seq stands further ahead in it."""

    __slots__ = ("marks",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.marks: dict[str, Any] = {}

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        offsets = await self.inner.append_events(agent_id, timelines, fence=fence)
        marks = [timeline.bookmark for timeline in timelines]
        self.marks.pop(agent_id, None)
        if marks:
            self.marks[agent_id] = (max(reversed(marks), key=lambda mark: mark.seq), marks[-1])
        return offsets

    async def last_bookmark(self, agent_id: str) -> Any:
        found = await self.inner.last_bookmark(agent_id)
        highest, last = self.marks.get(agent_id, (None, None))
        return last if found is not None and found == highest else found


@fault(
    "HIS-1",
    source="files named <timestamp>-<id>.json that are loaded in the order of sorted(os.listdir())",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("x", 1_000_000_000_000)),
        lambda s: s.save_compression_record("a", samples.compression("y", 999_999_999_999)),
        lambda s: s.load_compression_records("a"),
    ),
)
class FinSortsTimesAsText(EngineStore):
    """Orders compression records by their timestamps as text, so that one with fewer digits may come too late."""

    async def load_compression_records(self, agent_id: str) -> Any:
        found = await super().load_compression_records(agent_id)
        return sorted(found, key=lambda record: (str(record.timestamp), record.id))


# --- the contractor ---------------------------------------------------------------------------------------------------


@fault(
    "LIFE-1",
    "QRY-8",
    source="a negative cache (memcached, Caffeine) whose invalidation is in save_info alone",
    witness=seen(
        lambda s: s.exists("a"),
        lambda s: s.save_turn("a", append=talk("x"), info=samples.info("a")),
        lambda s: s.exists("a"),
    ),
)
class FinRemembersAbsence(Wrapper):
    """Says that an agent does not exist, after it was asked for it once, when its info came with a turn."""

    __slots__ = ("absent", "missed")

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.absent: set[str] = set()
        self.missed: set[str] = set()

    async def exists(self, agent_id: str) -> bool:
        found = bool(await self.inner.exists(agent_id))
        if not found:
            self.absent.add(agent_id)
            self.missed.discard(agent_id)
        elif agent_id not in self.missed:
            self.absent.discard(agent_id)
        return found and agent_id not in self.missed

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        await self.inner.save_turn(agent_id, **parts)
        if parts.get("info") is not None and agent_id in self.absent:
            self.missed.add(agent_id)

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        await self.inner.save_info(agent_id, info, fence=fence)
        self.absent.discard(agent_id)
        self.missed.discard(agent_id)


async def _edits_and_adds(ctx: Any) -> object:
    async def times() -> list[int]:
        return [m.created_at for m in await ctx.store.query_messages(agent_id="a", order="asc")]

    await ctx.store.save_messages("a", talk("x", "y"))
    before = await times()
    await asyncio.sleep(0.02)
    await ctx.store.save_messages("a", talk("X", "y", "z"))
    return (await ctx.store.load_messages("a")), before == (await times())[:2]


@fault(
    "MSG-4",
    "QRY-2",
    source="INSERT ... ON CONFLICT (agent, position) DO UPDATE SET body = ..., created_at = excluded.created_at",
    witness=_edits_and_adds,
)
class FinRestampsTheEdited(Layer):
    """Gives a message that is replaced at its position the time of now, when the same save adds others at the end."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._restamped(batch) for batch in batches])

    def _restamped(self, batch: Batch) -> Batch:
        write = batch.messages
        if write is None or not write.put or not write.append or write.length is not None:
            return batch
        now = write.append[0].created_at
        put = tuple((i, replace(row, created_at=max(row.created_at, now))) for i, row in write.put)
        return replace(batch, messages=replace(write, put=put))


async def _saves_the_same_too_late(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await ctx.store.save_messages("a", talk("x"), fence=lease)
    await lease.release()
    results = []
    for text in ("x", "y"):
        try:
            results.append(await ctx.store.save_messages("a", talk(text), fence=lease))
        except LockLostError:
            results.append("lost")
    return results


@fault(
    "LOCK-5",
    source="dirty checking (Hibernate, SQLAlchemy): what did not change makes no UPDATE ... WHERE token = ?",
    witness=_saves_the_same_too_late,
)
class FinUnchangedIsUnfenced(Wrapper):
    """Lets a save of the messages that are stored already succeed though its lease has ended."""

    __slots__ = ()

    async def save_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.save_messages(agent_id, messages, fence=fence)
        except LockLostError:
            if await self.inner.load_messages(agent_id) != list(messages):
                raise


class _OwnTaskLocks(Locks):
    async def acquire(self, agent_id: str, ttl_ms: int, wait_ms: int) -> HeldLease:
        lease: Any = await super().acquire(agent_id, ttl_ms, wait_ms)
        lease.task = asyncio.current_task()
        return lease  # type: ignore[no-any-return]

    def _inside(self, agent_id: str) -> HeldLease | None:
        lease: Any = super()._inside(agent_id)
        return lease if lease is not None and lease.task is asyncio.current_task() else None


async def _child_writes_too_late(ctx: Any) -> object:
    go = asyncio.Event()

    async def child() -> object:
        await go.wait()
        try:
            return await ctx.store.save_todos("a", samples.todos("late"))
        except LockLostError:
            return "lost"

    async with ctx.store.acquire_agent_lock("a"):
        task = asyncio.create_task(child())
        await asyncio.sleep(0)
    go.set()
    return await task, await ctx.store.load_todos("a")


@fault(
    "LOCK-5",
    "LOCK-7",
    source="a dict of leases by asyncio.current_task(), as ports of threading.local make it",
    witness=_child_writes_too_late,
)
class FinFencesOneTask(EngineStore):
    """Does not fence the writes of tasks that were started inside the block of a lease."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._locks.__class__ = _OwnTaskLocks


async def _is_closed_under_a_follower(ctx: Any) -> object:
    store = await ctx.another()
    await store.append_event("a", samples.event(1))
    found: list[Any] = []

    async def follow() -> None:
        async for one in store.follow_events("a"):
            found.append(one.bookmark.seq)

    task = asyncio.create_task(follow())
    while not found and not task.done():
        await asyncio.sleep(0.01)
    await ctx.close(store)
    try:
        await asyncio.wait_for(task, 4)
    except StoreClosedError:
        return found, "closed"
    return found, "ended"


@fault(
    "OPS-5",
    "EVT-7",
    source="except ConnectionClosed: return, as async iterators of websockets and aioredis do",
    witness=_is_closed_under_a_follower,
)
class FinFollowsToAQuietEnd(Wrapper):
    """Ends follow_events as if there were nothing more, instead of with an error, once the store was closed."""

    __slots__ = ()

    def follow_events(self, agent_id: str, **where: Any) -> Any:
        return self._quiet(self.inner.follow_events(agent_id, **where))

    async def _quiet(self, stream: Any) -> Any:
        try:
            async with aclosing(stream):
                async for one in stream:
                    yield one
        except StoreClosedError:
            return


async def _looks_while_turns_are_saved(ctx: Any) -> object:
    other, has_ended, torn = await ctx.another(), False, False

    async def look() -> None:
        nonlocal torn
        while not has_ended:
            await asyncio.sleep(0)
            messages = await other.load_messages("a")
            events = [e async for e in other.read_events("a")]
            torn = torn or len(messages) > len(events)

    task = asyncio.create_task(look())
    for i in range(60):
        await ctx.store.save_turn("a", append=talk(f"{i}"), events=[samples.event(i)])
    has_ended = True
    await task
    return torn


@fault(
    "TURN-1",
    "DUR-3",
    source="SQLite: with WAL a transaction over ATTACHed databases is atomic in each file only",
    on=OnSqlite,
    witness=_looks_while_turns_are_saved,
)
class FinKeepsEventsElsewhere(Layer):
    """Commits the events of a turn after its messages, in a transaction of their own."""

    async def commit(self, batches: Any) -> Any:
        parts = [bool(b.events and (b.is_touching or b.docs) and not b.delete) for b in batches]
        outcomes = list(
            await super().commit([replace(b, events=()) if p else b for b, p in zip(batches, parts, strict=True)])
        )
        later = [i for i, p in enumerate(parts) if p and isinstance(outcomes[i], Applied)]
        if later:
            rest = [
                Batch(
                    agent_id=batches[i].agent_id,
                    op_id=f"{batches[i].op_id}-events",
                    now=batches[i].now,
                    events=batches[i].events,
                )
                for i in later
            ]
            for i, outcome in zip(later, await super().commit(rest), strict=True):
                whole = isinstance(outcome, Applied)
                outcomes[i] = replace(outcomes[i], offsets=outcome.offsets) if whole else outcome
        return outcomes


# --- the data engineer ------------------------------------------------------------------------------------------------


@fault(
    "QRY-4",
    source="Elasticsearch: index.max_result_window, from + size must be at most 10,000",
    errors=True,
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(1)]),
        lambda s: s.query_tool_calls(offset=9_900),
        lambda s: s.query_tool_calls(offset=9_901),
    ),
)
class FinHasAResultWindow(Wrapper):
    """Refuses a query of tool calls whose offset and limit are more than 10,000 together."""

    __slots__ = ()

    async def query_tool_calls(self, **filters: Any) -> Any:
        limit, offset = filters.get("limit", 100), filters.get("offset", 0)
        if type(limit) is int and type(offset) is int and 0 <= limit <= 10_000 < limit + offset:
            raise InvalidArgumentError("the result window is too large: offset + limit must be at most 10000")
        return await self.inner.query_tool_calls(**filters)


@fault(
    "EVT-4",
    "EVT-3",
    "EVT-1",
    "VAL-1",
    source="PostgreSQL: ON CONFLICT DO NOTHING over a jsonb column, for which the order of keys is no difference",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, x=1, y=2)),
        lambda s: s.append_event("a", samples.event(1, y=2, x=1)),
        lambda s: s.read_events("a"),
    ),
)
class FinComparesEventsAsJsonb(Layer):
    """Takes an event for a repetition of a stored one from which it differs in nothing but the order of keys."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._folded(batch) for batch in batches])

    async def _folded(self, batch: Batch) -> Batch:
        events = []
        for event in batch.events:
            since = event.seq - 1 if event.seq > -(2**63) else None
            for row in await self.inner.events(batch.agent_id, EventRange(since_seq=since, limit=16)):
                if row.seq != event.seq:
                    break
                if _is_same_jsonb(row.body.text, event.body.text):
                    event = replace(event, body=row.body)
                    break
            events.append(event)
        return replace(batch, events=tuple(events))


def _is_same_jsonb(one: str, other: str) -> bool:
    if len(one) != len(other) or one == other:
        return one == other
    return json.dumps(json.loads(one), sort_keys=True) == json.dumps(json.loads(other), sort_keys=True)


@fault(
    "QRY-7",
    "QRY-8",
    source="a summary table or ETag cache that is keyed by the session's updated_at",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.aggregate_stats("a"),
        lambda s: s.save_snapshot("a", samples.snapshot()),
        lambda s: s.aggregate_stats("a"),
    ),
)
class FinStatsByUpdatedAt(EngineStore):
    """Gives the statistics that it counted last as long as the agent's updated_at, which snapshots do not move, stays."""

    async def aggregate_stats(self, agent_id: str) -> Any:
        await self.open()
        summary = await self._context.engine.summary(check_agent_id(agent_id))
        found = await super().aggregate_stats(agent_id)
        if summary is None:
            return found
        counted = self.__dict__.setdefault("counted", {})
        if counted.get(agent_id, (None,))[0] != summary.updated_at:
            if len(counted) >= 1000:
                counted.clear()
            counted[agent_id] = (summary.updated_at, found)
        return counted[agent_id][1]


@fault(
    "HIS-1",
    source="Cassandra: INSERT ... USING TIMESTAMP with the record's own time, the last writer by that time wins",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w", 2_000)),
        lambda s: s.save_history_window("a", samples.window("w", 1_000)),
        lambda s: s.load_history_windows("a"),
    ),
)
class FinNewestWindowWins(Layer):
    """Ignores a history window when one with the same id and a later timestamp is stored."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._newer(batch) for batch in batches])

    async def _newer(self, batch: Batch) -> Batch:
        docs = []
        for write in batch.docs:
            if write.kind == DocKind.WINDOWS and write.doc is not None:
                stored = await self.inner.docs(batch.agent_id, DocKind.WINDOWS, write.key)
                if any(doc.time > write.doc.time for doc in stored):
                    continue
            docs.append(write)
        return replace(batch, docs=tuple(docs))


@fault(
    "MED-1",
    source="SQL: UNION where UNION ALL was meant; dropDuplicates() of Spark",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("k"), samples.media("l"), samples.media("k")]),
        lambda s: s.load_media_cache("a"),
    ),
)
class FinDropsEqualMedia(Wrapper):
    """Keeps of media cache records that are equal in every field the first only."""

    __slots__ = ()

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if type(records) in (list, tuple) and all(type(record) is MediaCacheRecord for record in records):
            with suppress(Exception):
                distinct: dict[str, Any] = {}
                for record in records:
                    distinct.setdefault(repr(record), record)
                records = list(distinct.values())
        await self.inner.save_media_cache(agent_id, records, fence=fence)


def _uses(*ids: str) -> Any:
    return Message("assistant", [ToolUseBlock(id=i, name="f", input={}) for i in ids])


def _results(*ids: str) -> Any:
    return Message("user", [ToolResultBlock(tool_use_id=i, content="x") for i in ids])


@fault(
    "OPS-2",
    source="an anti-join (LEFT JOIN ... WHERE r.id IS NULL) over ids that repeat",
    witness=seen(
        lambda s: s.save_messages("a", [_uses("c"), _results("c"), _uses("c")]),
        lambda s: _codes(s),
    ),
)
class FinPairsBySets(Wrapper):
    """Finds a tool use without its result only when no result with that id is anywhere, and the reverse."""

    __slots__ = ()

    async def check_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        found = await self.inner.check_consistency(agent_id, progress=progress)
        issues = tuple([issue for issue in found.issues if not await self._is_paired(issue)])
        return replace(found, consistent=not issues, issues=issues)

    def iter_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        return self._unpaired(self.inner.iter_consistency(agent_id, progress=progress))

    async def _unpaired(self, stream: Any) -> Any:
        async with aclosing(stream):
            async for issue in stream:
                if not await self._is_paired(issue):
                    yield issue

    async def _is_paired(self, issue: Any) -> bool:
        if issue.code not in ("use_without_result", "result_without_use"):
            return False
        try:
            messages = await self.inner.load_messages(issue.agent_id)
        except KodeError:
            return False
        blocks = [block for message in messages for block in message.content]
        uses = {block.id for block in blocks if isinstance(block, ToolUseBlock)}
        results = {block.tool_use_id for block in blocks if isinstance(block, ToolResultBlock)}
        return any(repr(call_id) in issue.message for call_id in uses & results)


async def _codes(store: Any) -> object:
    return [issue.code for issue in (await store.check_consistency("a")).issues]


@fault(
    "OPS-3",
    source="a row counter that triggers on INSERT and on DELETE of the agent, but not on DELETE of rows, keep",
    witness=seen(
        lambda s: s.save_messages("a", talk("x", "y", "z")),
        lambda s: s.save_messages("a", talk("x")),
        lambda s: _total(s),
    ),
)
class FinTotalsNeverShrink(Layer):
    """Counts in the metrics' total of messages those that a save of a shorter list has removed."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.gone: dict[str, int] = {}

    async def commit(self, batches: Any) -> Any:
        heads = {b.op_id: await self.inner.summary(b.agent_id) for b in batches if b.messages and b.messages.is_editing}
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            head = heads.get(batch.op_id)
            if not isinstance(outcome, Applied):
                continue
            if batch.delete:
                self.gone.pop(batch.agent_id, None)
            elif head is not None and head.messages.count > outcome.messages.count:
                gone = head.messages.count - outcome.messages.count
                self.gone[batch.agent_id] = self.gone.get(batch.agent_id, 0) + gone
        return outcomes

    async def totals(self) -> Any:
        found = await super().totals()
        return replace(found, messages=found.messages + sum(self.gone.values()))


async def _total(store: Any) -> object:
    return (await store.get_metrics()).storage.total_messages


# --- the DBA ----------------------------------------------------------------------------------------------------------


@fault(
    "HIS-2",
    "ID-4",
    source="SQL Server and MySQL before 8.0: PAD SPACE, trailing spaces make no difference in a unique index",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("notes.md", 5, "one")),
        lambda s: s.save_recovered_file("a", samples.recovered("notes.md ", 5, "two")),
        lambda s: s.load_recovered_files("a"),
    ),
)
class FinPadsPaths(Layer):
    """Replaces a recovered file by one of the same timestamp whose path differs in trailing spaces only."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._padded(batch) for batch in batches])

    async def _padded(self, batch: Batch) -> Batch:
        docs: list[DocWrite] = []
        for write in batch.docs:
            if write.kind == DocKind.RECOVERED and write.doc is not None:
                path, time = json.loads(write.key)
                for doc in await self.inner.docs(batch.agent_id, DocKind.RECOVERED):
                    if (
                        doc.time == time
                        and doc.key != write.key
                        and json.loads(doc.key)[0].rstrip(" ") == path.rstrip(" ")
                    ):
                        docs.append(DocWrite(DocKind.RECOVERED, doc.key, None))
            docs.append(write)
        return replace(batch, docs=tuple(docs))


@fault(
    "LIFE-5",
    "LIFE-3",
    "LIFE-4",
    source="a bulk DELETE FROM sessions WHERE ... with a foreign key that was made without ON DELETE CASCADE",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_compression_record("a", samples.compression()),
        lambda s: s.delete_many(template_id="assistant"),
        lambda s: s.load_compression_records("a"),
    ),
)
class FinDeletesManyWithoutCascade(Layer):
    """Leaves the compression records of the agents that delete_many deletes."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._kept(batch) for batch in batches])

    async def _kept(self, batch: Batch) -> Batch:
        if not batch.delete or batch.expect_updated_at is None:
            return batch
        docs = await self.inner.docs(batch.agent_id, DocKind.COMPRESSIONS)
        return replace(batch, docs=tuple(DocWrite(DocKind.COMPRESSIONS, doc.key, doc) for doc in docs))


async def _forks_unknown_fields(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a", extra={"tenant": "t-1"}))
    (fork,) = await ctx.store.batch_fork("a", 1)
    return (await ctx.store.load_info("a")).extra, (await ctx.store.load_info(fork)).extra


@fault(
    "FORK-1",
    "VAL-6",
    source="INSERT INTO agents (...) SELECT ... with a list of columns that is older than the overflow column",
    witness=_forks_unknown_fields,
)
class FinForksKnownColumns(Layer):
    """Leaves out of the info of a fork the fields that this version does not know."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        made = []
        for child in children:
            info = decode(AgentInfo, child.info.body, "info").replace(extra=None)
            made.append(replace(child, info=await info_of(child.agent_id, info)))
        return await super().fork(agent_id, made, expect, now)


@fault(
    "QRY-2",
    source="WHERE tool_name LIKE ? without escaping, as Django's and Rails' hand-written filters do",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i, name=n) for i, n in enumerate(_NAMES)]),
        lambda s: s.query_tool_calls(tool_name="read_file"),
    ),
)
class FinToolNamesAreLike(MemoryLayer):
    """Takes ``_`` and ``%`` in the tool_name of a query for wildcards."""

    async def find_rows(self, query: Any) -> Any:
        name = dict(query.where).get("tool_name")
        if name is None or is_shortened(name):
            return await super().find_rows(query)
        pattern = re.compile("".join({"_": ".", "%": ".*"}.get(c, re.escape(c)) for c in name), re.DOTALL)
        where = tuple(pair for pair in query.where if pair[0] != "tool_name")
        found = await super().find_rows(replace(query, where=where, limit=2**40, offset=0))
        like = []
        for row in found:
            index: Any = self.space.state(row.agent_id).lists[ListKind.TOOL_CALLS].rows[row.position].index
            if pattern.fullmatch(index.tool_name):
                like.append(row)
        return like[query.offset : query.offset + query.limit]


_NAMES = ("read_file", "read-file", "read_files")


class _BlockLease(HeldLease):
    shown = 0

    @property
    def token(self) -> int:
        return self.shown


class _BlockLocks(Locks):
    async def acquire(self, agent_id: str, ttl_ms: int, wait_ms: int) -> HeldLease:
        lease: Any = await super().acquire(agent_id, ttl_ms, wait_ms)
        block: list[int] = self.__dict__.setdefault("block", [])
        if not block:
            block.extend(range(lease.fence.token * 20, lease.fence.token * 20 + 20))
        lease.__class__ = _BlockLease
        lease.shown = block.pop(0)
        return lease  # type: ignore[no-any-return]


async def _takes_turns(ctx: Any) -> object:
    tokens = []
    other = await ctx.another()
    for store in (ctx.store, other, ctx.store, other):
        async with store.acquire_agent_lock("a") as lease:
            tokens.append(lease.token)
    return tokens == sorted(set(tokens))


@fault(
    "LOCK-5",
    source="Oracle RAC and PostgreSQL: CREATE SEQUENCE ... CACHE 20, each instance gives out numbers of its own block",
    witness=_takes_turns,
)
class FinTokensInBlocks(EngineStore):
    """Takes the tokens of leases from a block of 20 for each instance, so that they do not grow over instances."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._locks.__class__ = _BlockLocks


async def _pages_upward(ctx: Any) -> object:
    await ctx.store.save_messages("a", talk(*map(str, range(7))))
    found, cursor = [], None
    while True:
        page = await ctx.store.query_messages(agent_id="a", order="asc", limit=3, cursor=cursor)
        found += [m.text for m in page]
        cursor = page.next_cursor
        if cursor is None:
            return found


@fault(
    "QRY-5",
    "QRY-6",
    "QRY-3",
    source="SQL Server has no row values: WHERE t > ? OR (t = ? AND agent > ?), the last branch was forgotten",
    witness=_pages_upward,
)
class FinForgetsThePositionUpward(Layer):
    """Leaves out, after a cursor of messages in ascending order, the others of the same time and agent."""

    async def find_rows(self, query: Any) -> Any:
        if query.after is not None and not query.descending and query.kind == "messages":
            query = replace(query, after=(*query.after[:2], 2**63 - 1))
        return await super().find_rows(query)


# --- the mobile developer ---------------------------------------------------------------------------------------------


@fault(
    "LIFE-2",
    source="Swift: String.hasPrefix compares characters, and 'e' followed by U+0301 is another character than 'e'",
    witness=seen(
        lambda s: s.save_info("cafe\u0301", samples.info("cafe\u0301")),
        lambda s: s.save_info("cafe", samples.info("cafe")),
        lambda s: s.list("cafe"),
    ),
)
class FinPrefixOfCharacters(EngineStore):
    """Leaves out of a list those ids in which the prefix ends in the middle of a character with its accents."""

    async def list(self, prefix: str = "") -> Any:
        found = await super().list(prefix)
        return [i for i in found if not (prefix and _goes_on(i[len(prefix) : len(prefix) + 1]))]


def _goes_on(char: str) -> bool:
    """Whether it belongs to the character before it."""
    return bool(char) and (
        unicodedata.category(char) in ("Mn", "Mc", "Me") or char == "\u200d" or "\U0001f3fb" <= char <= "\U0001f3ff"
    )


async def _counts_many(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    for start in range(0, 33_000, 11_000):
        await ctx.store.append_messages("a", samples.messages(11_000, start))
    return (await ctx.store.load_info("a")).message_count


@fault("MSG-6", "VAL-4", source="Core Data: an Integer 16 attribute wraps at 32,768", witness=_counts_many)
class FinCountsIn16Bits(EngineStore):
    """Gives a negative message_count once there are 32,768 messages."""

    async def load_info(self, agent_id: str) -> Any:
        found = await super().load_info(agent_id)
        return found and found.replace(message_count=_int16(found.message_count))

    async def query_sessions(self, **filters: Any) -> Any:
        page = await super().query_sessions(**filters)
        page[:] = [replace(session, message_count=_int16(session.message_count)) for session in page]
        return page


def _int16(count: int) -> int:
    return (count + 2**15) % 2**16 - 2**15


async def _saves_much_media(ctx: Any) -> object:
    records = [replace(samples.media(f"k{i}"), file_uri="u" * 5_000) for i in range(1_000)]
    await ctx.store.save_media_cache("a", records)
    try:
        return len(await ctx.store.load_media_cache("a"))
    except StorageError as exc:
        return type(exc).__name__


@fault(
    "VAL-4",
    "MED-1",
    source="Android: SQLiteBlobTooBigException, a row of more than 2 MB does not fit into a CursorWindow",
    errors=True,
    witness=_saves_much_media,
)
class FinReadsThroughAWindow(EngineStore):
    """Cannot load a media cache of more than 2 MB, which it has saved."""

    async def load_media_cache(self, agent_id: str) -> Any:
        found = await super().load_media_cache(agent_id)
        for doc in await self._context.engine.docs(agent_id, DocKind.MEDIA, ""):
            if len(doc.body.text) > 2 * 2**20:
                raise StorageError("row too big to fit into CursorWindow")
        return found


async def _upserts_a_thousand(ctx: Any) -> object:
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i, state="EXECUTING") for i in range(1_000)])
    other = await ctx.another()
    await other.upsert_tool_call_records("a", [samples.tool_call(i) for i in range(1_000)])
    return len(await ctx.store.load_tool_call_records("a"))


@fault(
    "TC-3",
    "VAL-4",
    source="SQLite: SQLITE_MAX_VARIABLE_NUMBER is 999 on older Android and iOS; the list of ids was cut to fit",
    witness=_upserts_a_thousand,
)
class FinLooksFor999(Layer):
    """Looks for the first 999 ids of an upsert only, if it does not know the list, and appends the others again."""

    async def outline(self, agent_id: str, kind: Any, keys: Any = None) -> Any:
        return await super().outline(agent_id, kind, None if keys is None else keys[:999])


@fault(
    "VAL-2",
    "VAL-1",
    source="Kotlin, Java and JavaScript strings: two surrogates in a row are one character",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"\ud83d\ude00": 1})),
        lambda s: s.load_info("a"),
    ),
)
class FinMergesPairsInKeys(Wrapper):
    """Makes one character of a surrogate pair in a key of an info's metadata, and stores it."""

    __slots__ = ()

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        await self.inner.save_info(agent_id, _merged(info), fence=fence)

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        if parts.get("info") is not None:
            parts["info"] = _merged(parts["info"])
        await self.inner.save_turn(agent_id, **parts)


def _merged(info: Any) -> Any:
    if type(info) is not AgentInfo or type(info.metadata) is not dict:
        return info
    keys = [_one(key) for key in info.metadata]
    if keys == list(info.metadata):
        return info
    return info.replace(metadata=dict(zip(keys, info.metadata.values(), strict=True)))


def _one(key: Any) -> Any:
    if type(key) is not str:
        return key
    return key.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


async def _follows_a_turn(ctx: Any) -> object:
    found: list[int] = []

    async def follow() -> None:
        async for one in ctx.store.follow_events("a"):
            found.append(one.bookmark.seq)

    await ctx.store.append_event("a", samples.event(1))
    task = asyncio.create_task(follow())
    while not found:
        await asyncio.sleep(0.01)
    await ctx.store.save_turn("a", events=[samples.event(2)])
    await asyncio.sleep(1.5)
    seen_first = list(found)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return seen_first


@fault(
    "EVT-7",
    source="Room's InvalidationTracker and LiveData: a write that goes around the DAO tells no observer",
    witness=_follows_a_turn,
)
class FinTurnsTellNobody(Wrapper):
    """Keeps the events of a turn from those of the same store who follow already until another event is appended."""

    __slots__ = ("followers",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.followers: dict[str, list[list[Any]]] = {}

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        events, followers = parts.get("events"), [*self.followers.get(agent_id, ())]
        events = [*events] if type(events) in (list, tuple) else []
        for follower in followers:
            follower.extend(events)
        try:
            await self.inner.save_turn(agent_id, **parts)
        except BaseException:
            for follower in followers:
                follower[:] = [one for one in follower if not any(one is event for event in events)]
            raise

    def follow_events(self, agent_id: str, **where: Any) -> Any:
        return self._told(agent_id, self.inner.follow_events(agent_id, **where))

    async def _told(self, agent_id: str, stream: Any) -> Any:
        untold: list[Any] = []
        self.followers.setdefault(agent_id, []).append(untold)
        waiting: list[Any] = []
        try:
            async with aclosing(stream):
                async for one in stream:
                    waiting.append(one)
                    if any(one == event for event in untold):
                        untold.remove(next(event for event in untold if one == event))
                        continue
                    while waiting:
                        yield waiting.pop(0)
        finally:
            self.followers[agent_id] = [each for each in self.followers[agent_id] if each is not untold]
            if not self.followers[agent_id]:
                del self.followers[agent_id]
