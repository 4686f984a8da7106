"""Stores on real databases and services, each with one thing wrong that its database, driver or limit really does."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from zlib import crc32

from kode_conformance.values import samples
from kode_sqlite.engine import SqliteEngine
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, seen, talk, the
from kode_core.batch import Applied, Batch, DocKind, DocWrite, Fence, ListKind
from kode_core.codec import Body, decode, digest, encode
from kode_core.errors import InvalidArgumentError, StorageError
from kode_core.ids import check_agent_id
from kode_core.layers import Layer
from kode_core.model import AgentInfo
from kode_core.store import EngineStore, kinds
from kode_core.store.methods import METHODS

T0 = samples.T0


class EachBatch(Layer):
    """Commits batches one by one."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return [await self.one(batch) for batch in batches]

    async def one(self, batch: Batch) -> Any:
        raise NotImplementedError

    async def pass_on(self, batch: Batch) -> Any:
        (outcome,) = await self.inner.commit([batch])
        return outcome


class OneRowForEqualKeys(EachBatch):
    """Lets a document of *kind* replace another one whose key is the same in its short form."""

    kind: DocKind

    def short(self, key: str) -> Any:
        raise NotImplementedError

    async def one(self, batch: Batch) -> Any:
        gone = []
        for write in batch.docs:
            if write.kind == self.kind and write.doc is not None:
                stored = await self.inner.docs(batch.agent_id, self.kind)
                others = [doc.key for doc in stored if doc.key != write.key]
                gone += [DocWrite(self.kind, key, None) for key in others if self.short(key) == self.short(write.key)]
        return await self.pass_on(replace(batch, docs=(*gone, *batch.docs)) if gone else batch)


class EachBatchInMemory(MemoryLayer, EachBatch):
    """The same, with a view of the memory engine's space."""


async def while_running(call: Any, look: Any) -> Any:
    """What *look* gives while *call* runs, without repeats, and at the end."""
    task, views = asyncio.ensure_future(call), []
    while True:
        is_done = task.done()
        view = await look()
        if view not in views:
            views.append(view)
        if is_done:
            await task
            return views
        await asyncio.sleep(0)


# --- VAL --------------------------------------------------------------------------------------------------------------


def _jsonb(value: Any) -> Any:
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode("utf-8", "surrogatepass")), key))
        return {key: _jsonb(value[key]) for key in keys}
    return [_jsonb(item) for item in value] if isinstance(value, list) else value


def _jsonb_meta(call: Any) -> Any:
    if call.approval.meta is None:
        return call
    return replace(call, approval=replace(call.approval, meta=_jsonb(call.approval.meta)))


@fault(
    "VAL-1",
    "TC-1",
    "QRY-2",
    source="PostgreSQL jsonb, in which keys are ordered by length and then by bytes; the other columns are json",
    witness=lambda ctx: _approval_keys(ctx),
)
class KeepsApprovalsInJsonb(Wrapper):
    """Gives the keys of an approval's meta by length and then by bytes, and not in the order in which they were
    saved.
    """

    async def load_tool_call_records(self, agent_id: str) -> Any:
        return [_jsonb_meta(call) for call in await self.inner.load_tool_call_records(agent_id)]

    async def query_tool_calls(self, **filters: Any) -> Any:
        page = await self.inner.query_tool_calls(**filters)
        page[:] = [_jsonb_meta(call) for call in page]
        return page

    async def iter_tool_calls(self, **filters: Any) -> Any:
        async for call in self.inner.iter_tool_calls(**filters):
            yield _jsonb_meta(call)


async def _approval_keys(ctx: Any) -> Any:
    approval = replace(samples.approved_call().approval, meta={"rule": 1, "by": {"zz": 1, "b": 2}})
    await ctx.store.save_tool_call_records("a", [samples.tool_call(approval=approval)])
    calls = [*await ctx.store.load_tool_call_records("a"), *await ctx.store.query_tool_calls()]
    return [json.dumps(call.approval.meta) for call in calls]


@fault(
    "VAL-1",
    "MED-1",
    source="a number field mapped as double, as Firestore's web client, Lua in Redis and Elasticsearch's double have it",
    witness=seen(
        lambda s: s.save_media_cache("a", [replace(samples.media(), size_bytes=2**53 + 1)]),
        lambda s: s.load_media_cache("a"),
    ),
)
class KeepsSizesAsDoubles(Wrapper):
    """Gives the size of a cached medium rounded to a double, which differs above 2**53."""

    async def load_media_cache(self, agent_id: str) -> Any:
        found = await self.inner.load_media_cache(agent_id)
        return [replace(record, size_bytes=int(float(record.size_bytes))) for record in found]


# --- ID ---------------------------------------------------------------------------------------------------------------


@fault(
    "ID-2",
    "LOCK-1",
    "LOCK-2",
    "OPS-13",
    source="MySQL GET_LOCK, whose names have at most 64 characters: the name is cut so that it is not refused",
    witness=seen(
        lambda s: _token_type(s.acquire_agent_lock("x" * 64 + "1")),
        lambda s: _token_type(s.acquire_agent_lock("x" * 64 + "2")),
    ),
)
class LocksTheFirst64Characters(MemoryLayer):
    """Has one lock for all agents whose ids agree in the first 64 characters."""

    def _cuts(self) -> dict[str, Fence]:
        return self.space.__dict__.setdefault("cuts", {})

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> Any:
        if len(agent_id) <= 64:
            return await self.inner.acquire_lease(agent_id, owner, ttl_ms)
        cut = await self.inner.acquire_lease(agent_id[:64], owner, ttl_ms)
        if cut is None:
            return None
        token = await self.inner.acquire_lease(agent_id, owner, ttl_ms)
        if token is None:
            await self.inner.release_lease(agent_id[:64], Fence(owner, cut))
        else:
            self._cuts()[owner] = Fence(owner, cut)
        return token

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        if fence.owner in self._cuts():
            await self.inner.renew_lease(agent_id[:64], self._cuts()[fence.owner], ttl_ms)
        return await self.inner.renew_lease(agent_id, fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self.inner.release_lease(agent_id, fence)
        cut = self._cuts().pop(fence.owner, None)
        if cut is not None:
            await self.inner.release_lease(agent_id[:64], cut)


async def _token_type(lock: Any) -> Any:
    return type((await lock).token)


@fault(
    "ID-4",
    "HIS-1",
    "ID-2",
    source="InnoDB: an index holds 3,072 bytes, so that the unique key is KEY (id(768)) in utf8mb4",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("c" * 768 + "1")),
        lambda s: s.save_compression_record("a", samples.compression("c" * 768 + "2")),
        lambda s: the("id", s.load_compression_records("a")),
    ),
)
class KeysCompressionsBy768Characters(OneRowForEqualKeys):
    """Takes two compression records for one when their ids agree in the first 768 characters."""

    kind = DocKind.COMPRESSIONS

    def short(self, key: str) -> Any:
        return key[:768]


# --- MSG --------------------------------------------------------------------------------------------------------------


async def _clock_behind(ctx: Any) -> Any:
    ahead = await ctx.another(clock=lambda: T0 + 60_000)
    behind = await ctx.another(clock=lambda: T0)
    await ahead.append_messages("a", talk("first"))
    await behind.append_messages("a", talk("second"))
    return [(m.position, m.created_at) for m in await ctx.store.query_messages(agent_id="a", order="asc")]


@fault(
    "MSG-4",
    source="ids of the Snowflake kind, whose guard against a clock that steps back is the last time of this process",
    witness=_clock_behind,
)
class GuardsTimesInThisProcessOnly(EachBatch):
    """Gives an appended message a time before that of the messages before it, when another instance with a clock that
    is ahead wrote those.
    """

    async def one(self, batch: Batch) -> Any:
        if batch.messages is not None and batch.messages.is_blind:
            summary = await self.inner.summary(batch.agent_id)
            if summary is not None and summary.messages.version:
                batch = replace(batch, messages=replace(batch.messages, expect=summary.messages.version))
        return await self.pass_on(batch)


@fault(
    "MSG-6",
    "VAL-4",
    "QRY-2",
    source="MySQL SMALLINT without strict mode: a counter that is too large is stored as 32,767",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.append_messages("a", talk("x") * 32_768),
        lambda s: s.load_info("a"),
    ),
)
class CountsMessagesInASmallint(Wrapper):
    """Says that an agent with more than 32,767 messages has 32,767."""

    async def load_info(self, agent_id: str) -> Any:
        info = await self.inner.load_info(agent_id)
        return info and replace(info, message_count=min(info.message_count, 32_767))

    async def query_sessions(self, **filters: Any) -> Any:
        page = await self.inner.query_sessions(**filters)
        page[:] = [replace(session, message_count=min(session.message_count, 32_767)) for session in page]
        return page

    async def iter_sessions(self, **filters: Any) -> Any:
        async for session in self.inner.iter_sessions(**filters):
            yield replace(session, message_count=min(session.message_count, 32_767))


# --- TC ---------------------------------------------------------------------------------------------------------------


@fault(
    "TC-3",
    "ID-4",
    "ID-2",
    "TC-2",
    source="MySQL's default collation utf8mb4_0900_ai_ci, in which call_a equals CALL_A",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(id="call_a")]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(id="CALL_A", name="other")]),
        lambda s: the("id", s.load_tool_call_records("a")),
    ),
)
class ComparesCallIdsWithoutCase(EngineStore):
    """Lets an upsert replace a tool call whose id differs in upper and lower case only."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        try:
            ids = {record.id.casefold(): record.id for record in records}
            engine = await self._context.open()
            outline = await engine.outline(check_agent_id(agent_id), ListKind.TOOL_CALLS)
        except Exception:
            ids, outline = {}, None
        stored = [] if outline is None else [key for *_, key in outline.rows]
        if any(ids.get(key.casefold(), key) != key for key in stored):
            calls = await self.load_tool_call_records(agent_id)
            for record in records:
                key = record.id.casefold()
                places = [i for i, call in enumerate(calls) if call.id.casefold() == key]
                if places:
                    calls[places[-1]] = record
                else:
                    calls.append(record)
            await self.save_tool_call_records(agent_id, calls, fence=fence)
            return
        await super().upsert_tool_call_records(agent_id, records, fence=fence)


async def _shorter_list(ctx: Any) -> Any:
    calls = [samples.tool_call(i) for i in range(6)]
    await ctx.store.save_tool_call_records("a", calls[:3])
    other = await ctx.another()
    return await while_running(
        ctx.store.save_tool_call_records("a", calls[3:5]), lambda: the("id", other.load_tool_call_records("a"))
    )


@fault(
    "TC-1",
    "MSG-1",
    "DUR-3",
    source="a driver in autocommit, as mysqlclient's pools and psycopg set it: DELETE and UPDATE are two transactions",
    witness=_shorter_list,
)
class CutsToolCallsFirst(EachBatch):
    """Replaces a list of tool calls by a shorter one in two commits: the end is cut off, then the rest is replaced."""

    async def one(self, batch: Batch) -> Any:
        write = batch.tool_calls
        summary = await self.inner.summary(batch.agent_id) if write is not None else None
        if write is None or summary is None or write.length in (None, 0) or not (write.put or write.append):
            return await self.pass_on(batch)
        if write.length >= summary.tool_calls.count or batch.delete:
            return await self.pass_on(batch)
        cut = Batch(
            agent_id=batch.agent_id,
            op_id=f"{batch.op_id}-cut",
            now=batch.now,
            fence=batch.fence,
            tool_calls=replace(write, put=(), append=()),
        )
        outcome = await self.pass_on(cut)
        if not isinstance(outcome, Applied):
            return outcome
        rest = replace(write, length=None, expect=outcome.tool_calls.version)
        return await self.pass_on(replace(batch, tool_calls=rest))


# --- TURN -------------------------------------------------------------------------------------------------------------


async def _large_turn(ctx: Any) -> Any:
    other = await ctx.another()

    async def look() -> Any:
        return (len(await other.load_messages("a")) > 0, await other.last_bookmark("a") is not None)

    turn = {"append": talk(*map(str, range(60))), "events": happened(*range(60))}
    return [view for view in await while_running(ctx.store.save_turn("a", **turn), look) if view[0] != view[1]]


@fault(
    "TURN-1",
    "DUR-3",
    source="DynamoDB TransactWriteItems: at most 100 actions in one transaction, so that larger turns are two",
    witness=_large_turn,
)
class SplitsTurnsOfMoreThanAHundred(EachBatch):
    """Commits a turn of more than 100 records in two steps, lists and info before documents and events."""

    async def one(self, batch: Batch) -> Any:
        lists = [write for write in (batch.messages, batch.tool_calls) if write is not None]
        count = sum(len(write.put) + len(write.append) for write in lists) + len(batch.docs) + len(batch.events)
        if count + (batch.info is not None) <= 100 or not batch.is_touching or not (batch.docs or batch.events):
            return await self.pass_on(batch)
        first = await self.pass_on(replace(batch, docs=(), events=()))
        if not isinstance(first, Applied):
            return first
        rest = Batch(
            agent_id=batch.agent_id,
            op_id=f"{batch.op_id}-2",
            now=batch.now,
            fence=batch.fence,
            docs=batch.docs,
            events=batch.events,
        )
        second = await self.pass_on(rest)
        return replace(first, offsets=second.offsets) if isinstance(second, Applied) else second


@fault(
    "TC-3",
    "TURN-1",
    source="PostgreSQL: ON CONFLICT DO UPDATE command cannot affect row a second time; the single call loops",
    errors=True,
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(state=x) for x in ("PENDING", "COMPLETED")]),
        lambda s: s.save_turn("b", upsert_tool_calls=[samples.tool_call(state=x) for x in ("PENDING", "COMPLETED")]),
        lambda s: the("state", s.load_tool_call_records("b")),
    ),
)
class RefusesAnIdTwiceInATurn(EngineStore):
    """Fails a turn that upserts two tool calls with the same id."""

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Any = (), **rest: Any) -> None:
        ids = [getattr(call, "id", None) for call in upsert_tool_calls] if upsert_tool_calls else []
        if len(ids) > len(set(ids)):

            async def fail() -> None:
                raise StorageError("the database refused the write: a row would be changed twice; nothing was written")

            await self._context.run(METHODS["save_turn"], agent_id, fail)
        await super().save_turn(agent_id, upsert_tool_calls=upsert_tool_calls, **rest)


# --- EVT --------------------------------------------------------------------------------------------------------------


async def _offsets_after_restart(ctx: Any) -> Any:
    before = await ctx.store.append_events("a", happened(1, 2, 3))
    await ctx.store.delete("a")
    await ctx.reopen()
    after = await ctx.store.append_events("a", happened(4))
    return min(after) > max(before)


@fault(
    "EVT-2",
    "LIFE-3",
    source="InnoDB before MySQL 8.0: AUTO_INCREMENT begins after a restart at the highest id that is left",
    on=OnSqlite,
    witness=_offsets_after_restart,
)
class BeginsOffsetsAtTheHighestLeft(SqliteEngine):
    """Gives offsets of deleted events again after the store was opened anew."""

    @classmethod
    async def open(cls, options: Any) -> Any:
        engine = await super().open(options)

        def reset(db: Any) -> None:
            with suppress(sqlite3.Error):  # it is busy: so it was not restarted
                db.execute(
                    'UPDATE sqlite_sequence SET seq = (SELECT coalesce(max("offset"), 0) FROM kode_events)'
                    " WHERE name = 'kode_events'"
                )

        await engine._writer.run(reset)
        return engine


async def _repeated_late(ctx: Any) -> Any:
    first = await ctx.store.append_event("a", samples.event(1))
    for i in range(2, 10):
        await ctx.store.append_event("a", samples.event(i))
    again = await ctx.store.append_event("a", samples.event(1))
    return again == first, [e.bookmark.seq async for e in ctx.store.read_events("a")]


@fault(
    "EVT-4",
    "OPS-10",
    source="Kafka's idempotent producer: a broker knows the last five batches of a producer",
    witness=_repeated_late,
)
class KnowsTheLastFiveAppends(EachBatch):
    """Stores an event a second time when it comes again after more than five other appends."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.recent: defaultdict[str, deque[Any]] = defaultdict(lambda: deque(maxlen=5))
        self.forms: dict[Any, int] = {}

    async def one(self, batch: Batch) -> Any:
        if batch.delete:
            self.recent.pop(batch.agent_id, None)
            self.forms = {key: n for key, n in self.forms.items() if key[0] != batch.agent_id}
        if not batch.events:
            return await self.pass_on(batch)
        known = {key for keys in self.recent[batch.agent_id] for key in keys}
        keys = [(batch.agent_id, event.seq, event.body.digest) for event in batch.events]
        forms = {key: self.forms[key] + (key not in known) if key in self.forms else 0 for key in keys}
        events = tuple(
            replace(event, body=_padded(event.body, forms[key])) for event, key in zip(batch.events, keys, strict=True)
        )
        outcome = await self.pass_on(replace(batch, events=events))
        if isinstance(outcome, Applied):
            self.forms.update(forms)
            self.recent[batch.agent_id].append(frozenset(keys))
        return outcome


def _padded(body: Body, spaces: int) -> Body:
    text = body.text + " " * spaces
    return Body(text, digest(text.encode())) if spaces else body


# --- TODO, HIS, MED, SNAP ---------------------------------------------------------------------------------------------


@fault(
    "TODO-1",
    "TURN-1",
    "DUR-1",
    source="Elasticsearch version_type=external_gte: a document with a lower version is a conflict, which is passed over",
    witness=seen(
        lambda s: s.save_todos("a", replace(samples.todos("x"), version=3)),
        lambda s: s.save_todos("a", replace(samples.todos("y"), version=2)),
        lambda s: s.load_todos("a"),
    ),
)
class KeepsTodosOfAHigherVersion(EachBatch):
    """Drops todos whose own version is lower than that of the todos that are stored."""

    async def one(self, batch: Batch) -> Any:
        kept = [write for write in batch.docs if batch.delete or not await self._is_older(batch.agent_id, write)]
        return await self.pass_on(replace(batch, docs=tuple(kept)))

    async def _is_older(self, agent_id: str, write: DocWrite) -> bool:
        if write.kind != DocKind.TODOS or write.doc is None:
            return False
        stored = await self.inner.docs(agent_id, DocKind.TODOS, "")
        new, *old = (json.loads(doc.body.text).get("version", 1) for doc in (write.doc, *stored))
        return bool(old) and new < old[0]


@fault(
    "HIS-2",
    "VAL-5",
    source="MySQL DATETIME without a precision: seconds, in a primary key (agent, path, recovered_at)",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=T0 + 1, content="x")),
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=T0 + 2, content="y")),
        lambda s: the("content", s.load_recovered_files("a")),
    ),
)
class KeysRecoveredFilesBySeconds(OneRowForEqualKeys):
    """Replaces a recovered file by one of the same path and the same second."""

    kind = DocKind.RECOVERED

    def short(self, key: str) -> Any:
        path, timestamp = json.loads(key)
        return path, timestamp // 1000


@fault(
    "HIS-1",
    "VAL-4",
    source="DynamoDB Query: a page ends after 1 MB, and LastEvaluatedKey is not followed",
    witness=seen(
        lambda s: _save_windows(s, 4),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class LoadsAMegabyteOfWindows(Layer):
    """Gives no further history windows once those before took a megabyte."""

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Any:
        found = await self.inner.docs(agent_id, kind, key)
        if kind != DocKind.WINDOWS or key is not None:
            return found
        size, page = 0, []
        for doc in sorted(found, key=lambda doc: doc.key):
            if size >= 1 << 20:
                break
            page.append(doc)
            size += len(doc.body.text)
        return page


async def _save_windows(store: Any, count: int) -> None:
    for i in range(count):
        await store.save_history_window("a", replace(samples.window(f"w{i}"), messages=talk("x" * 600_000)))


@fault(
    "MED-1",
    "VAL-4",
    source="a Redis hash: HGETALL gives the order of insertion up to 512 fields (hash-max-listpack-entries), then any",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media(f"k{i}") for i in range(513)]),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class KeepsMediaInARedisHash(Wrapper):
    """Gives a media cache of more than 512 records in the order of a hash table."""

    async def load_media_cache(self, agent_id: str) -> Any:
        found = await self.inner.load_media_cache(agent_id)
        if len(found) <= 512:
            return found
        return [record for _, record in sorted(enumerate(found), key=lambda pair: crc32(str(pair[0]).encode()))]


@fault(
    "SNAP-1",
    source="a sort key of DynamoDB or a key of LevelDB: the time as text, filled with zeros to 13 digits",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("new", T0)),
        lambda s: s.save_snapshot("a", samples.snapshot("far", 10**13)),
        lambda s: s.save_snapshot("a", samples.snapshot("early", -2_000)),
        lambda s: s.save_snapshot("a", samples.snapshot("earlier", -10_000)),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class SortsSnapshotsByPaddedText(EngineStore):
    """Lists snapshots by their time as text of 13 digits, which is another order for times before 1970 and for longer
    ones.
    """

    async def list_snapshots(self, agent_id: str) -> Any:
        found = sorted(await super().list_snapshots(agent_id), key=lambda snapshot: snapshot.id)
        return sorted(found, key=lambda snapshot: f"{snapshot.created_at:013d}", reverse=True)


# --- INFO -------------------------------------------------------------------------------------------------------------


async def _updated_by_todos(ctx: Any) -> Any:
    async def updated() -> int:
        return (await ctx.store.query_sessions())[0].updated_at

    await ctx.store.save_info("a", samples.info("a"))
    times = [await updated()]
    for title in ("x", "y"):
        await ctx.store.save_todos("a", samples.todos(title))
        times.append(await updated())
    return [time == times[0] for time in times]


@fault(
    "INFO-2",
    "MSG-8",
    source="a trigger AFTER UPDATE on the table of todos, which an INSERT does not fire",
    witness=_updated_by_todos,
)
class TouchesTheSessionWithTodos(EachBatchInMemory):
    """Moves a session's updated_at when todos are replaced, though not when they are saved for the first time."""

    async def one(self, batch: Batch) -> Any:
        todos = any(write.kind == DocKind.TODOS for write in batch.docs)
        before = self.space.states.get(batch.agent_id)
        is_update = todos and before is not None and (DocKind.TODOS, "") in before.docs
        outcome = await self.pass_on(batch)
        state = self.space.states.get(batch.agent_id)
        if is_update and state is not None and isinstance(outcome, Applied) and not batch.is_touching:
            state.updated_at = max(state.updated_at + 1, batch.now)
        return outcome


@fault(
    "INFO-1",
    "VAL-3",
    "TURN-1",
    source="INSERT … ON CONFLICT DO UPDATE SET breakpoint = COALESCE(excluded.breakpoint, breakpoint)",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", breakpoint="PRE_MODEL")),
        lambda s: s.save_info("a", samples.info("a", breakpoint=None)),
        lambda s: s.load_info("a"),
    ),
)
class CoalescesTheBreakpoint(EachBatch):
    """Keeps the breakpoint that was saved before when an info without one is saved."""

    async def one(self, batch: Batch) -> Any:
        summary = await self.inner.summary(batch.agent_id) if batch.info is not None and not batch.delete else None
        if summary is not None and summary.info is not None:
            old, new = (decode(AgentInfo, info.body, "info") for info in (summary.info, batch.info))
            if new.breakpoint is None and old.breakpoint is not None:
                body = encode(AgentInfo, replace(new, breakpoint=old.breakpoint), "info")
                batch = replace(batch, info=replace(batch.info, body=body))
        return await self.pass_on(batch)


# --- LIFE -------------------------------------------------------------------------------------------------------------


async def _saved_by_a_slow_clock(ctx: Any) -> Any:
    ahead = await ctx.another(clock=lambda: T0 + 60_000)
    behind = await ctx.another(clock=lambda: T0)
    await ahead.save_todos("a", samples.todos("x"))
    await ahead.delete("a")
    await behind.save_todos("a", samples.todos("y"))
    return await behind.load_todos("a")


@fault(
    "LIFE-4",
    "DUR-1",
    "TODO-1",
    "VAL-5",
    source="Cassandra: a tombstone hides every write with an earlier timestamp, and the client gives the timestamps",
    witness=_saved_by_a_slow_clock,
)
class HidesWritesBehindATombstone(EachBatchInMemory):
    """Loses documents that are saved after a delete by a writer whose clock is behind that of the deleter."""

    async def one(self, batch: Batch) -> Any:
        tombstones = self.space.__dict__.setdefault("tombstones", {})
        if batch.docs and batch.now < tombstones.get(batch.agent_id, batch.now):
            batch = replace(batch, docs=())
        outcome = await self.pass_on(batch)
        if batch.delete and isinstance(outcome, Applied):
            tombstones[batch.agent_id] = max(batch.now, tombstones.get(batch.agent_id, batch.now))
        return outcome


class _Between(Layer):
    """Changes a session right after it was found."""

    change: Any = None

    async def find_sessions(self, query: Any) -> Any:
        found = await self.inner.find_sessions(query)
        if self.change is not None:
            change, self.change = self.change, None
            await change()
        return found


async def _changed_before_it_is_deleted(ctx: Any) -> Any:
    layers: list[_Between] = []

    def layer(inner: Any) -> Any:
        layers.append(_Between(inner))
        return layers[-1]

    await ctx.store.save_info("a", samples.info("a", template_id="old"))
    await ctx.store.save_info("b", samples.info("b", template_id="old"))
    deleting = await ctx.another(layer)
    layers[-1].change = lambda: ctx.store.save_info("a", samples.info("a", template_id="new"))
    return await deleting.delete_many(template_id="old"), await ctx.store.list()


@fault(
    "LIFE-5",
    source="a bulk delete by the ids that a search found, as Elasticsearch's without if_seq_no",
    witness=_changed_before_it_is_deleted,
)
class DeletesWhatWasFound(EachBatch):
    """Deletes a session that delete_many found, though it changed since and does not match any more."""

    async def one(self, batch: Batch) -> Any:
        return await self.pass_on(replace(batch, expect_updated_at=None) if batch.delete else batch)


# --- QRY --------------------------------------------------------------------------------------------------------------


@fault(
    "QRY-4",
    "QRY-5",
    source="Elasticsearch's index.max_result_window: from + size must be at most 10,000",
    errors=True,
    witness=seen(
        lambda s: s.append_messages("a", talk("x")),
        lambda s: s.query_messages(offset=9_900, limit=100),
        lambda s: s.query_messages(offset=9_901, limit=100),
    ),
)
class LooksNoFurtherThanTenThousand(EngineStore):
    """Refuses a page that ends beyond the 10,000th result."""

    async def _query(self, name: str, search: Any, filters: Any) -> Any:
        async def windowed(filters: Any) -> Any:
            page = await search(filters)
            if filters.get("offset", 0) + filters.get("limit", 100) > 10_000:
                raise InvalidArgumentError("the result window is too large: offset + limit must be at most 10000")
            return page

        return await super()._query(name, windowed, filters)


@fault(
    "QRY-7",
    source="Elasticsearch's terms aggregation, which gives ten buckets unless it is told a size",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i, name=f"tool {i}") for i in range(11)]),
        lambda s: s.aggregate_stats("a"),
    ),
)
class CountsTheTopTenNames(EngineStore):
    """Counts tool calls by name for the ten most frequent names only."""

    async def aggregate_stats(self, agent_id: str) -> Any:
        stats = await super().aggregate_stats(agent_id)
        top = sorted(stats.tool_calls_by_name.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
        return replace(stats, tool_calls_by_name=dict(sorted(top)))


# --- OPS --------------------------------------------------------------------------------------------------------------


async def _one_bad_of_two(ctx: Any) -> Any:
    bad = replace(samples.snapshot("bad"), metadata={"x": float("nan")})
    results = await asyncio.gather(
        ctx.store.save_snapshot("a", bad),
        ctx.store.save_snapshot("b", samples.snapshot("good")),
        return_exceptions=True,
    )
    return [type(result).__name__ for result in results], await the("id", ctx.store.list_snapshots("b"))


@fault(
    "OPS-13",
    "SNAP-1",
    "VAL-2",
    source="MongoDB's insert_many and bulk_write: ordered unless told otherwise, and an ordered bulk ends at an error",
    errors=True,
    witness=_one_bad_of_two,
)
class SavesSnapshotsInAnOrderedBulk(Wrapper):
    """Fails a snapshot's save that was made while another one, which fails, was under way."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.last: Any = None

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        before, mine = self.last, asyncio.get_running_loop().create_future()
        self.last = mine
        failed = None
        try:
            await asyncio.sleep(0)  # others may join the bulk
            failed = None if before is None else await asyncio.shield(before)
            if failed is not None:
                raise failed
            await self.inner.save_snapshot(agent_id, snapshot, fence=fence)
        except Exception as exc:
            failed = exc
            raise
        finally:
            is_last = self.last is mine
            if is_last:
                self.last = None
            mine.set_result(None if is_last else failed)


@fault(
    "OPS-2",
    source="an INNER JOIN with the table of agents, to which nothing has a foreign key",
    witness=seen(
        lambda s: s.append_messages("a", samples.rich_messages()[4:5]),
        lambda s: the("code", _issues(s, "a")),
        lambda s: the("code", _issues(s, None)),
    ),
)
class ChecksAgentsWithInfo(Layer):
    """Passes over agents without info when the whole store is checked."""

    async def stored_ids(self, after: str | None, limit: int) -> Any:
        return await self.inner.agent_ids("", after, limit)


async def _issues(store: Any, agent_id: str | None) -> Any:
    return (await store.check_consistency(agent_id)).issues


# --- LOCK -------------------------------------------------------------------------------------------------------------


async def _token_after_expiry(ctx: Any) -> Any:
    first = await ctx.store.acquire_agent_lock("a", ttl_ms=1_000)
    await first.release()
    second = await ctx.store.acquire_agent_lock("a", ttl_ms=1_000)
    await asyncio.sleep(1.1)
    third = await ctx.store.acquire_agent_lock("a", ttl_ms=1_000)
    return first.token < second.token, second.token < third.token


@fault(
    "LOCK-5",
    source="a Redis hash of owner and token with PEXPIRE: with the lease that runs out goes the count of tokens",
    witness=_token_after_expiry,
)
class ForgetsTokensWithALeaseThatRunsOut(EachBatchInMemory):
    """Begins an agent's tokens at 1 again after a lease ran out without having been released."""

    def _shared(self, name: str) -> dict[Any, Any]:
        return self.space.__dict__.setdefault(name, {})

    def _real(self, fence: Fence) -> Fence:
        shown, real = self._shared("tokens").get(fence.owner, (fence.token, fence.token))
        return Fence(fence.owner, real) if shown == fence.token else fence

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> Any:
        ran_out = agent_id in self.space.leases
        token = await self.inner.acquire_lease(agent_id, owner, ttl_ms)
        if token is None:
            return None
        counts = self._shared("counts")
        counts[agent_id] = 1 if ran_out else counts.get(agent_id, 0) + 1
        self._shared("tokens")[owner] = (counts[agent_id], token)
        return counts[agent_id]

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await self.inner.renew_lease(agent_id, self._real(fence), ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self.inner.release_lease(agent_id, self._real(fence))
        self._shared("tokens").pop(fence.owner, None)

    async def one(self, batch: Batch) -> Any:
        return await self.pass_on(batch if batch.fence is None else replace(batch, fence=self._real(batch.fence)))


async def _event_after_the_lease(ctx: Any) -> Any:
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    results = await asyncio.gather(
        ctx.store.save_todos("a", samples.todos("x"), fence=lease),
        ctx.store.append_event("a", samples.event(1), fence=lease),
        return_exceptions=True,
    )
    return [type(result).__name__ for result in results], [e.bookmark.seq async for e in ctx.store.read_events("a")]


@fault(
    "LOCK-5",
    "LOCK-7",
    source="events in a stream (Kafka, Redis XADD) apart from the database in whose transactions the fence is checked",
    witness=_event_after_the_lease,
)
class AppendsEventsUnfenced(EachBatch):
    """Appends events under a lease that has ended, where every other write is refused."""

    async def one(self, batch: Batch) -> Any:
        is_stream = bool(batch.events) and not batch.is_touching and not batch.docs and not batch.delete
        return await self.pass_on(replace(batch, fence=None) if is_stream else batch)


# --- FORK -------------------------------------------------------------------------------------------------------------


async def _lineage_after_delete(ctx: Any) -> Any:
    await ctx.store.save_info("a", samples.info("a"))
    (child,) = await ctx.store.batch_fork("a", 1)
    await ctx.store.delete("a")
    return (await ctx.store.load_info(child)).lineage


@fault(
    "FORK-2",
    "FORK-1",
    "MSG-8",
    "INFO-2",
    source="a foreign key parent_id … ON DELETE SET NULL",
    witness=_lineage_after_delete,
)
class TakesADeletedParentOutOfTheLineage(Wrapper):
    """Takes an agent out of the lineage of its forks when it is deleted."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.children: defaultdict[str, list[str]] = defaultdict(list)

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        ids = await self.inner.batch_fork(agent_id, count)
        self.children[agent_id] += ids
        return ids

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        for child in self.children.pop(agent_id, ()):
            info = await self.inner.load_info(child)
            if info is not None:
                lineage = tuple(other for other in info.lineage if other != agent_id)
                await self.inner.save_info(child, replace(info, lineage=lineage))


async def _forked_snapshots(ctx: Any) -> Any:
    await ctx.store.save_info("a", samples.info("a"))
    for i in range(11):
        await ctx.store.save_snapshot("a", samples.snapshot(f"s{i:02}"))
    (child,) = await ctx.store.batch_fork("a", 1)
    return await the("id", ctx.store.list_snapshots(child))


@fault(
    "FORK-1",
    "FORK-3",
    source="Elasticsearch and OpenSearch: a search without a size gives ten hits, and those are copied",
    witness=_forked_snapshots,
)
class ForksTenSnapshots(Layer):
    """Copies no more than ten snapshots to a fork."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        is_done = await self.inner.fork(agent_id, children, expect, now)
        for child in children if is_done else ():
            docs = sorted(await self.inner.docs(child.agent_id, DocKind.SNAPSHOTS), key=lambda doc: doc.key)
            if len(docs) > 10:
                gone = tuple(DocWrite(DocKind.SNAPSHOTS, doc.key, None) for doc in docs[10:])
                await self.inner.commit(
                    [Batch(agent_id=child.agent_id, op_id=f"fork-{child.agent_id}", now=now, docs=gone)]
                )
        return is_done


# --- DUR --------------------------------------------------------------------------------------------------------------


async def _seen_by_another(ctx: Any) -> Any:
    other = await ctx.another()
    await ctx.store.save_compression_record("a", samples.compression())
    return await the("id", other.load_compression_records("a")), await the(
        "id", ctx.store.load_compression_records("a")
    )


@fault(
    "DUR-1",
    "QRY-8",
    "HIS-1",
    "DUR-2",
    source="MongoDB with w=0, Redis' appendfsync everysec, InfluxDB's batching client: acknowledged, written a second later",
    on=OnSqlite,
    witness=_seen_by_another,
)
class WritesCompressionsBehind(Wrapper):
    """Acknowledges a compression record that is only in this process, for a second or until it is loaded here."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.behind: list[tuple[str, Any]] = []

    async def save_compression_record(self, agent_id: str, record: Any, *, fence: Any = None) -> None:
        self.inner._context.check_open()
        if fence is not None or self.inner._locks.fence(check_agent_id(agent_id), None) is not None:
            await self._flush()
            await self.inner.save_compression_record(agent_id, record, fence=fence)
            return
        await kinds.COMPRESSIONS.write(record)
        self.behind.append((agent_id, record))
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, lambda: loop.create_task(self._flush()))

    async def _flush(self) -> None:
        while self.behind:
            await self.inner.save_compression_record(*self.behind.pop(0))

    async def load_compression_records(self, agent_id: str) -> Any:
        await self._flush()
        return await self.inner.load_compression_records(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._flush()
        await self.inner.delete(agent_id, fence=fence)

    async def close(self) -> None:
        await self._flush()
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()
