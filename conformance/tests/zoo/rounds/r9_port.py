"""Storage of other agent frameworks and chat backends, ported to this contract with the habits left in."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import posixpath
import secrets
import sqlite3
import unicodedata
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.batch import Applied, Batch, DocKind, DocWrite, EventRange, Fence, ListKind
from kode_core.codec import encode
from kode_core.errors import (
    CorruptRecordError,
    InvalidArgumentError,
    InvalidValueError,
    KodeError,
    LockLostError,
    StorageError,
)
from kode_core.ids import check_agent_id
from kode_core.layers import Layer
from kode_core.model import (
    Bookmark,
    CompressionRecord,
    HistoryWindow,
    Message,
    RecoveredFile,
    Snapshot,
    TodoItem,
    TodoSnapshot,
    ToolCallApproval,
)
from kode_core.store import EngineStore, kinds, rows


async def _stored(store: Any, agent_id: str, load: Any) -> Any:
    """The stored records, read within the call, so that the metrics count no call of its own."""
    try:
        store._context.check_open()
        check_agent_id(agent_id)
    except KodeError:
        return None  # the call itself says so
    return await load(store._reader)


MS = timedelta(milliseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# --- values -----------------------------------------------------------------------------------------------------------


async def _changes_a_loaded_window(ctx: Any) -> object:
    window = samples.window().replace(messages=(Message("user", "hi", {"tags": ["a"]}),))
    await ctx.store.save_history_window("a", window)
    (loaded,) = await ctx.store.load_history_windows("a")
    loaded.messages[0].metadata["tags"].append("b")
    return [w.messages[0].metadata for w in await ctx.store.load_history_windows("a")]


@fault(
    "VAL-1",
    source="SQLAlchemy's identity map: a session gives the same object for the same row, unflushed changes and all",
    witness=_changes_a_loaded_window,
)
class GivesTheSameWindowObject(Wrapper):
    """Gives the very object of a history window that it gave before, with what its caller changed in it, as long as the
    stored row is the same."""

    __slots__ = ("identity",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.identity: OrderedDict[tuple[str, str], tuple[str, HistoryWindow]] = OrderedDict()

    async def load_history_windows(self, agent_id: str) -> Any:
        return [self._known(agent_id, window) for window in await self.inner.load_history_windows(agent_id)]

    def _known(self, agent_id: str, window: HistoryWindow) -> HistoryWindow:
        key, text = (agent_id, window.id), encode(HistoryWindow, window, "window").text
        known = self.identity.get(key)
        if known is not None and known[0] == text:
            return known[1]
        if len(text) < 100_000:
            self.identity[key] = (text, window)
            if len(self.identity) > 16:
                self.identity.popitem(last=False)
        return window


class _Status(StrEnum):
    OPEN = "pending"


def _enum_todos() -> TodoSnapshot:
    return TodoSnapshot(
        todos=[TodoItem(id="t", title="x", status=_Status.OPEN, created_at=1, updated_at=1)], updated_at=1
    )


@fault(
    "VAL-2",
    source="FastAPI's jsonable_encoder and pydantic's model_dump(mode='json') write the value of an Enum",
    witness=seen(lambda s: s.save_todos("a", _enum_todos()), lambda s: s.load_todos("a")),
)
class WritesTheValueOfAnEnum(Wrapper):
    """Takes a member of an Enum as the status of a todo, and stores its value."""

    __slots__ = ()

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await self.inner.save_todos(agent_id, _plain(snapshot), fence=fence)

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        await self.inner.save_turn(agent_id, **{**given, "todos": _plain(given.get("todos"))})


def _plain(snapshot: Any) -> Any:
    if not isinstance(snapshot, TodoSnapshot) or not isinstance(snapshot.todos, (list, tuple)):
        return snapshot
    items = [
        item.replace(status=item.status.value) if isinstance(item, TodoItem) and isinstance(item.status, Enum) else item
        for item in snapshot.todos
    ]
    return snapshot.replace(todos=items)


@fault(
    "VAL-3",
    "VAL-1",
    source='Go: a service that maps the record to a struct whose fields are tagged `json:",omitempty"`',
    witness=seen(
        lambda s: s.save_tool_call_records(
            "a",
            [
                samples.tool_call(
                    approval=ToolCallApproval(required=True, decided_by="", decided_at=0, note="", meta={})
                )
            ],
        ),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class OmitsEmptyFieldsOfAnApproval(Wrapper):
    """Takes the empty string, 0 and {} in the optional fields of an approval for absent."""

    __slots__ = ()

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.save_tool_call_records(agent_id, _omitted(records), fence=fence)

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.upsert_tool_call_records(agent_id, _omitted(records), fence=fence)

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        calls = {k: _omitted(given[k]) for k in ("tool_calls", "upsert_tool_calls") if k in given}
        await self.inner.save_turn(agent_id, **{**given, **calls})


def _omitted(records: Any) -> Any:
    return [_omit(r) for r in records] if isinstance(records, (list, tuple)) else records


def _omit(record: Any) -> Any:
    approval = getattr(record, "approval", None)
    if not isinstance(approval, ToolCallApproval):
        return record
    names = ("decision", "decided_by", "decided_at", "note", "meta")
    empty = {n: None for n in names if type(v := getattr(approval, n)) in (str, int, dict) and not v}
    return record.replace(approval=approval.replace(**empty)) if empty else record


def _between() -> datetime:
    return EPOCH + samples.T0 * MS + timedelta(microseconds=500)


@fault(
    "VAL-5",
    "QRY-2",
    source="int(when.timestamp() * 1000), as chat backends turn a datetime into milliseconds",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0)]),
        lambda s: s.query_tool_calls(created_after=_between()),
        lambda s: s.query_tool_calls(created_before=_between()),
    ),
)
class CutsADatetimeToMilliseconds(Wrapper):
    """Cuts off what a datetime in a filter has below the millisecond."""

    __slots__ = ()

    async def query_sessions(self, **filters: Any) -> Any:
        return await self.inner.query_sessions(**_cut(filters))

    async def query_messages(self, **filters: Any) -> Any:
        return await self.inner.query_messages(**_cut(filters))

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await self.inner.query_tool_calls(**_cut(filters))

    def iter_sessions(self, **filters: Any) -> Any:
        return self.inner.iter_sessions(**_cut(filters))

    def iter_messages(self, **filters: Any) -> Any:
        return self.inner.iter_messages(**_cut(filters))

    def iter_tool_calls(self, **filters: Any) -> Any:
        return self.inner.iter_tool_calls(**_cut(filters))

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        return await self.inner.delete_many(progress=progress, **_cut(filters))


def _cut(filters: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (value - EPOCH) // MS if isinstance(value, datetime) and value.utcoffset() is not None else value
        for name, value in filters.items()
    }


# --- identity ---------------------------------------------------------------------------------------------------------


@fault(
    "ID-4",
    "ID-1",
    "SNAP-1",
    source="Go's ServeMux and path.Clean, nginx's merge_slashes: the id of a snapshot is a part of the URL's path",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("x//y", count=1)),
        lambda s: s.save_snapshot("a", samples.snapshot("x/y", count=2)),
        lambda s: s.load_snapshot("a", "x//y"),
        lambda s: s.list_snapshots("a"),
    ),
)
class CleansThePathOfASnapshot(Layer):
    """Takes the ids of two snapshots for one when they are the same path, as `x//y`, `x/./y` and `x/y`."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([replace(batch, docs=tuple(map(_cleaned, batch.docs))) for batch in batches])

    async def docs(self, agent_id: str, kind: Any, key: str | None = None) -> Any:
        if kind == DocKind.SNAPSHOTS and key is not None:
            key = _clean(key)
        return await super().docs(agent_id, kind, key)


def _clean(key: str) -> str:
    return posixpath.normpath(key) if "/" in key else key


def _cleaned(write: DocWrite) -> DocWrite:
    if write.kind != DocKind.SNAPSHOTS:
        return write
    key = _clean(write.key)
    return replace(write, key=key, doc=None if write.doc is None else replace(write.doc, key=key))


async def _locks_alike(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("tenant-" * 10 + "a")
    try:
        other = await ctx.store.acquire_agent_lock("tenant-" * 10 + "b")
    except Exception as exc:
        return type(exc).__name__
    await other.release()
    await lease.release()
    return "both"


@fault(
    "ID-2",
    "LOCK-1",
    "OPS-13",
    source="MySQL's GET_LOCK: names have at most 64 characters, so the port cuts them",
    witness=_locks_alike,
    errors=True,
)
class CutsTheNameOfALock(Layer):
    """Locks by the first 64 characters of the id, so that agents whose longer ids begin alike share a lock."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.named: dict[str, Fence] = {}

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        if len(agent_id) <= 64:
            return await super().acquire_lease(agent_id, owner, ttl_ms)
        token = await super().acquire_lease(agent_id[:64], owner, ttl_ms)
        if token is None:
            return None
        taken = await super().acquire_lease(agent_id, owner, ttl_ms)
        if taken is None:
            await super().release_lease(agent_id[:64], Fence(owner, token))
        else:
            self.named[owner] = Fence(owner, token)
        return taken

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        if fence.owner in self.named:
            await super().renew_lease(agent_id[:64], self.named[fence.owner], ttl_ms)
        return await super().renew_lease(agent_id, fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        named = self.named.pop(fence.owner, None)
        if named is not None:
            await super().release_lease(agent_id[:64], named)
        await super().release_lease(agent_id, fence)


# --- messages, tool calls, turns --------------------------------------------------------------------------------------


async def _regenerates(ctx: Any) -> object:
    await ctx.store.save_messages("a", talk("q", "draft"))
    before = [m.created_at for m in await ctx.store.query_messages(order="asc")]
    await asyncio.sleep(0.02)
    await ctx.store.save_messages("a", talk("q", "answer"))
    return before == [m.created_at for m in await ctx.store.query_messages(order="asc")]


@fault(
    "MSG-4",
    source="LangGraph and chat UIs: regenerating the last answer deletes its row and inserts one with server_default=now()",
    witness=_regenerates,
)
class RestampsARegeneratedAnswer(Layer):
    """Gives the last message a new time when it alone is replaced."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._restamped(batch) for batch in batches])

    async def _restamped(self, batch: Batch) -> Batch:
        write = batch.messages
        if write is None or len(write.put) != 1 or write.length is not None or write.append:
            return batch
        summary = await self.inner.summary(batch.agent_id)
        ((position, row),) = write.put
        if summary is None or position != summary.messages.count - 1:
            return batch
        newer = replace(row, created_at=max(row.created_at, batch.now))
        return replace(batch, messages=replace(write, put=((position, newer),)))


@fault(
    "MSG-3",
    "MSG-2",
    source="a client that retries POST /messages: the server takes the same body at the end of the thread for a retry",
    witness=seen(
        lambda s: s.append_messages("a", talk("go on")),
        lambda s: s.append_messages("a", talk("go on")),
        lambda s: s.load_messages("a"),
    ),
)
class TakesARepeatedMessageForARetry(Wrapper):
    """Stores nothing when messages are appended that are the same as the last ones of the list."""

    __slots__ = ()

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if isinstance(messages, (list, tuple)) and 0 < len(messages) <= 100:
            texts = _texts(messages)
            if texts is not None and texts == await _stored(
                self.inner, agent_id, lambda _: self._last(agent_id, texts)
            ):
                messages = []
        await self.inner.append_messages(agent_id, messages, fence=fence)

    async def _last(self, agent_id: str, texts: Any) -> Any:
        engine = self.inner._context.engine
        summary = await engine.summary(agent_id)
        if summary is None or summary.messages.count < len(texts):
            return None
        found = await engine.rows_at(agent_id, ListKind.MESSAGES, summary.messages.count - len(texts), len(texts))
        return [body.text for body, _ in found.rows]


def _texts(messages: Any) -> Any:
    try:
        return [encode(Message, message, "message").text for message in messages]
    except InvalidArgumentError:
        return None


@fault(
    "MSG-8",
    "INFO-2",
    source="LangGraph checkpointers: writing a checkpoint moves the thread's pointer to the latest one",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_snapshot("a", samples.snapshot(count=9)),
        lambda s: s.load_info("a"),
    ),
)
class MovesTheInfoWithASnapshot(Wrapper):
    """Sets `last_sfp_index` and `last_bookmark` of the agent's info to those of a snapshot that is saved."""

    __slots__ = ()

    async def save_snapshot(self, agent_id: str, snapshot: Snapshot, *, fence: Any = None) -> None:
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)
        info = await _stored(self.inner, agent_id, lambda reader: reader.load_info(agent_id))
        if info is not None:
            moved = info.replace(last_sfp_index=snapshot.last_sfp_index, last_bookmark=snapshot.last_bookmark)
            context, held = self.inner._context, self.inner._locks.fence(agent_id, fence)
            await context.commit(context.batch(agent_id, fence=held, info=await rows.info_of(agent_id, moved)))


@fault(
    "TC-3",
    "TC-2",
    source="PostgreSQL: ON CONFLICT DO UPDATE command cannot affect row a second time",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(0, state="PENDING"), samples.tool_call(0)]),
        lambda s: the("state", s.load_tool_call_records("a")),
    ),
    errors=True,
)
class CannotAffectARowTwice(Wrapper):
    """Refuses an upsert in which two records have one id."""

    __slots__ = ()

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        _once(records)
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        _once(given.get("upsert_tool_calls", ()))
        await self.inner.save_turn(agent_id, **given)


def _once(records: Any) -> None:
    ids = [repr(getattr(r, "id", r)) for r in records] if isinstance(records, (list, tuple)) else []
    if len(set(ids)) < len(ids):
        raise StorageError("ON CONFLICT DO UPDATE command cannot affect row a second time")


@fault(
    "TURN-1",
    "VAL-2",
    source="Django's transaction.on_commit: events are published after the rows were committed",
    on=OnSqlite,
    witness=seen(
        lambda s: s.save_turn("a", append=talk("x"), events=[samples.event(1, data=float("nan"))]),
        lambda s: s.load_messages("a"),
    ),
)
class PublishesEventsAfterTheCommit(Wrapper):
    """Appends the events of a turn by a second commit, after that of the rest."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, events: Any = (), fence: Any = None, **rest: Any) -> None:
        if not isinstance(events, (list, tuple)) or not events or not any(rest.values()):
            await self.inner.save_turn(agent_id, events=events, fence=fence, **rest)
            return
        await self.inner.save_turn(agent_id, fence=fence, **rest)
        await self.inner.append_events(agent_id, events, fence=fence)


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-3",
    "EVT-1",
    "EVT-4",
    source="PostgreSQL: a column of type json has no equality operator, so the unique key of the event table leaves it out",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, delta="one")),
        lambda s: s.append_event("a", samples.event(1, delta="two")),
        lambda s: s.read_events("a"),
    ),
)
class TellsEventsApartWithoutTheirData(MemoryLayer):
    """Takes two events for one when they differ in nothing but their data."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([replace(b, events=self._known(b)) if b.events else b for b in batches])

    def _known(self, batch: Batch) -> Any:
        log, first, known = self.space.state(batch.agent_id).log, {}, []
        for event in batch.events:
            key = _columns(event.body.text)
            if key not in first:
                found, limit = [], 1  # most often no event has this seq
                while len(found) == limit - 1 and all(row.seq == event.seq for row in found):
                    limit *= 4
                    found = log.read(EventRange(since_seq=event.seq - 1, limit=limit - 1))
                same = (row.body for row in found if row.seq == event.seq and _columns(row.body.text) == key)
                first[key] = next(same, event.body)
            known.append(replace(event, body=first[key]))
        return tuple(known)


def _columns(text: str) -> tuple[Any, ...]:
    wire = json.loads(text)
    mark, event = wire["bookmark"], wire["event"]
    return wire["cursor"], mark["seq"], mark["timestamp"], event["channel"], event["type"]


async def _many_of_one_seq(ctx: Any) -> object:
    await ctx.store.append_events("a", [samples.event(7, step=i) for i in range(600)])
    return len([e async for e in ctx.store.read_events("a")])


@fault(
    "EVT-5",
    "EVT-3",
    source="keyset pagination by one column: WHERE seq > :last ORDER BY seq LIMIT n",
    witness=_many_of_one_seq,
)
class GoesOnAfterTheSeqOfAPage(Layer):
    """Leaves out what has the seq of the last event of a page when it reads the next one."""

    async def events(self, agent_id: str, span: EventRange) -> Any:
        if span.order == "seq" and span.after is not None:
            span = replace(span, after=(span.after[0], 2**63 - 1))
        return await super().events(agent_id, span)


@fault(
    "EVT-6",
    source="Django's latest('seq', 'timestamp'): ties are decided by the time in the row",
    witness=seen(
        lambda s: s.append_event("a", samples.event(3).replace(bookmark=Bookmark(3, 2000))),
        lambda s: s.append_event("a", samples.event(3).replace(bookmark=Bookmark(3, 1000))),
        lambda s: s.last_bookmark("a"),
    ),
)
class TakesTheLatestBookmarkByTime(Wrapper):
    """Gives, of several bookmarks with the highest seq, the one with the latest time and not the one appended last."""

    __slots__ = ()

    async def last_bookmark(self, agent_id: str) -> Any:
        last = await self.inner.last_bookmark(agent_id)
        if last is None or last.seq == -(2**63):
            return last
        span = EventRange(since_seq=last.seq - 1, limit=2**31)
        for row in await self.inner._context.engine.events(agent_id, span):
            mark = json.loads(row.body.text)["bookmark"]
            if mark["timestamp"] > last.timestamp:
                last = Bookmark(mark["seq"], mark["timestamp"])
        return last


# --- the other kinds --------------------------------------------------------------------------------------------------


@fault(
    "TODO-1",
    source="JPA's @Version, SQLAlchemy's version_id_col: UPDATE ... WHERE version <= :version changes no row",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x", "y", "z")),
        lambda s: s.save_todos("a", samples.todos("w")),
        lambda s: s.load_todos("a"),
    ),
)
class KeepsTheTodosOfAHigherVersion(Wrapper):
    """Keeps the todos that it has when those that are saved have a lower version."""

    __slots__ = ()

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        old = await _stored(self.inner, agent_id, lambda reader: reader.load_doc(agent_id, kinds.TODOS))
        if old is not None and type(getattr(snapshot, "version", None)) is int and snapshot.version < old.version:
            snapshot = old
        await self.inner.save_todos(agent_id, snapshot, fence=fence)


@fault(
    "HIS-1",
    "VAL-1",
    "VAL-3",
    source="pydantic: an update writes model_dump(exclude_defaults=True)",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression()),
        lambda s: s.save_compression_record("a", samples.compression().replace(recovered_files=(), summary="")),
        lambda s: s.load_compression_records("a"),
    ),
)
class UpdatesACompressionPartly(Wrapper):
    """Keeps the old value of a field when a compression record is replaced by one that has the field's default."""

    __slots__ = ()

    async def save_compression_record(self, agent_id: str, record: Any, *, fence: Any = None) -> None:
        stored = await _stored(self.inner, agent_id, lambda reader: reader.load_docs(agent_id, kinds.COMPRESSIONS))
        old = next((r for r in stored or () if isinstance(record, CompressionRecord) and r.id == record.id), None)
        if old is not None:
            plain = CompressionRecord(id="", window_id="")
            for name in ("config", "summary", "ratio", "recovered_files"):
                given, default = getattr(record, name), getattr(plain, name)
                if type(given) is type(default) and given == default:
                    record = record.replace(**{name: getattr(old, name)})
        await self.inner.save_compression_record(agent_id, record, fence=fence)


@fault(
    "HIS-2",
    source="MySQL: DATETIME without a precision, in the primary key, keeps whole seconds",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=samples.T0 + 100, content="1")),
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=samples.T0 + 300, content="2")),
        lambda s: s.load_recovered_files("a"),
    ),
)
class KeysRecoveredFilesBySecond(Layer):
    """Replaces a recovered file by one of the same path that was recovered within the same second."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([replace(batch, docs=tuple(map(_by_second, batch.docs))) for batch in batches])


def _by_second(write: DocWrite) -> DocWrite:
    if write.kind != DocKind.RECOVERED or write.doc is None:
        return write
    path, timestamp = json.loads(write.key)
    key = json.dumps([path, timestamp // 1000 * 1000])
    return replace(write, key=key, doc=replace(write.doc, key=key))


@fault(
    "MED-1",
    "VAL-3",
    source="a table of attachments with WHERE file_id IS NOT NULL, so that uploads that failed are not shown",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("x"), samples.media("y").replace(file_id=None, file_uri="u")]),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class HidesMediaWithoutAFileId(Wrapper):
    """Leaves out the media cache records that have no file id, only a URI, when it loads."""

    __slots__ = ()

    async def load_media_cache(self, agent_id: str) -> Any:
        return [r for r in await self.inner.load_media_cache(agent_id) if r.file_id is not None]


@fault(
    "SNAP-1",
    source="LangGraph's checkpointers: list() is ORDER BY checkpoint_id DESC, newest first because the ids grow",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("x", 5)),
        lambda s: s.save_snapshot("a", samples.snapshot("y", 5)),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class ListsSnapshotsOfOneTimeBackwards(Wrapper):
    """Lists snapshots of one `created_at` by descending id."""

    __slots__ = ()

    async def list_snapshots(self, agent_id: str) -> Any:
        found = await self.inner.list_snapshots(agent_id)
        return sorted(found, key=lambda snapshot: (snapshot.created_at, snapshot.id), reverse=True)


async def _saves_the_same_info(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    (before,) = await ctx.store.query_sessions()
    await ctx.store.save_info("a", samples.info("a"))
    (after,) = await ctx.store.query_sessions()
    return after.updated_at > before.updated_at


@fault(
    "INFO-2",
    source="SQLAlchemy: an object that is not dirty gets no UPDATE, so onupdate=now() does not run",
    witness=_saves_the_same_info,
)
class SkipsAnInfoThatIsNotDirty(Layer):
    """Does not move `updated_at` when an info is saved that is as the stored one."""

    async def commit(self, batches: Any) -> Any:
        return [await self._one(batch) for batch in batches]

    async def _one(self, batch: Batch) -> Any:
        if batch.info is not None and batch == Batch(
            agent_id=batch.agent_id, op_id=batch.op_id, now=batch.now, info=batch.info
        ):
            summary = await self.inner.summary(batch.agent_id)
            if summary is not None and summary.info is not None and summary.info.body == batch.info.body:
                return Applied(summary.messages, summary.tool_calls)
        (outcome,) = await super().commit([batch])
        return outcome


# --- lifecycle --------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-2",
    source="Firestore: a prefix is the range from p to p + '\\uf8ff', as its users write it",
    witness=seen(
        lambda s: s.save_info("a:x", samples.info("a:x")),
        lambda s: s.save_info("a:\U0001f600", samples.info("a:\U0001f600")),
        lambda s: s.list("a:"),
        lambda s: s.list(),
    ),
)
class EndsAPrefixAtThePrivateUseArea(Layer):
    """Leaves out of `list(prefix)` the ids that go on with U+F8FF or a higher code point, emoji among them."""

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Any:
        found = await super().agent_ids(prefix, after, limit)
        return [a for a in found if a < f"{prefix}\uf8ff"] if prefix else found


@fault(
    "LIFE-4",
    "LIFE-3",
    source="soft deletes (Hibernate's @SQLDelete with @Where, django-safedelete): the children hang on the parent's flag",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_recovered_file("a", samples.recovered()),
        lambda s: s.delete("a"),
        lambda s: s.load_recovered_files("a"),
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.load_recovered_files("a"),
    ),
)
class UndeletesWithTheInfo(MemoryLayer):
    """Shows the recovered files of a deleted agent again when an info is saved under its id."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._soft(batch) for batch in batches])

    async def _soft(self, batch: Batch) -> Batch:
        trash = vars(self.space).setdefault("trash", {})
        if batch.delete:
            if docs := await self.inner.docs(batch.agent_id, DocKind.RECOVERED):
                trash[batch.agent_id] = docs
            return batch
        if batch.info is None or batch.agent_id not in trash:
            return batch
        back = [DocWrite(DocKind.RECOVERED, doc.key, doc) for doc in trash.pop(batch.agent_id)]
        return replace(batch, docs=(*back, *batch.docs))


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    source="Django: UsernameField and normalize_username bring names into NFKC",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"userId": "Jose\u0301"})),
        lambda s: the("agent_id", s.query_sessions(user_id="Jose\u0301")),
        lambda s: the("agent_id", s.query_sessions(metadata={"userId": "Jose\u0301"})),
    ),
)
class NormalizesTheUserOfAFilter(Wrapper):
    """Brings the filter `user_id` into NFKC, so that users who were saved under another form are not found."""

    __slots__ = ()

    async def query_sessions(self, **filters: Any) -> Any:
        return await self.inner.query_sessions(**_nfkc(filters))

    def iter_sessions(self, **filters: Any) -> Any:
        return self.inner.iter_sessions(**_nfkc(filters))

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        return await self.inner.delete_many(progress=progress, **_nfkc(filters))


def _nfkc(filters: dict[str, Any]) -> dict[str, Any]:
    user = filters.get("user_id")
    return {**filters, "user_id": unicodedata.normalize("NFKC", user)} if type(user) is str else filters


@fault(
    "QRY-4",
    source="Elasticsearch and OpenSearch: index.max_result_window, from + size must be at most 10,000",
    witness=seen(
        lambda s: s.save_messages("a", talk("x")),
        lambda s: s.query_messages(offset=9_950),
        lambda s: s.query_messages(offset=1, limit=10_000),
    ),
    errors=True,
)
class RefusesLargeOffsets(Wrapper):
    """Refuses a query whose offset and limit are more than 10,000 together."""

    __slots__ = ()

    async def query_sessions(self, **filters: Any) -> Any:
        return await self.inner.query_sessions(**_in_window(filters))

    async def query_messages(self, **filters: Any) -> Any:
        return await self.inner.query_messages(**_in_window(filters))

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await self.inner.query_tool_calls(**_in_window(filters))


def _in_window(filters: dict[str, Any]) -> dict[str, Any]:
    start, size = filters.get("offset", 0), filters.get("limit", 100)
    if type(start) is int and type(size) is int and start + size > 10_000:
        raise InvalidArgumentError(f"result window is too large, from + size must be at most 10000, got {start + size}")
    return filters


@fault(
    "QRY-5",
    source="itsdangerous tokens in a FastAPI service whose secret key is os.urandom() at its start",
    witness=seen(
        lambda s, t: s.save_messages("a", talk("x", "y", "z")),
        lambda s, t: _second_page(s, s),
        lambda s, t: _second_page(s, t),
    ),
    errors=True,
)
class SignsCursorsForItself(Wrapper):
    """Refuses the cursors that another instance gave, as each signs them with a key of its own."""

    __slots__ = ("key",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.key = secrets.token_bytes(16)

    async def query_sessions(self, **filters: Any) -> Any:
        return self._signed(await self.inner.query_sessions(**self._checked(filters)))

    async def query_messages(self, **filters: Any) -> Any:
        return self._signed(await self.inner.query_messages(**self._checked(filters)))

    async def query_tool_calls(self, **filters: Any) -> Any:
        return self._signed(await self.inner.query_tool_calls(**self._checked(filters)))

    def _signature(self, cursor: str) -> str:
        return hmac.new(self.key, cursor.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:16]

    def _signed(self, page: Any) -> Any:
        if page.next_cursor is not None:
            page.next_cursor += f".{self._signature(page.next_cursor)}"
        return page

    def _checked(self, filters: dict[str, Any]) -> dict[str, Any]:
        if type(filters.get("cursor")) is not str:
            return filters
        cursor, _, signature = filters["cursor"].rpartition(".")
        if signature != self._signature(cursor):
            return filters  # to be refused: as a whole it is no cursor of the store inside
        return {**filters, "cursor": cursor}


async def _second_page(one: Any, other: Any) -> Any:
    page = await one.query_messages(limit=2)
    return await the("text", other.query_messages(limit=2, cursor=page.next_cursor))


# --- operations -------------------------------------------------------------------------------------------------------


async def _loads_damage(ctx: Any) -> object:
    await ctx.store.save_snapshot("a", samples.snapshot())
    await ctx.close(ctx.store)
    db = sqlite3.connect(ctx.handle["db_path"])
    with db:
        db.execute("UPDATE kode_docs SET body = substr(body, 1, 40) WHERE kind = 'snapshots'")
    db.close()
    ctx.store = await ctx.another()
    try:
        return await ctx.store.load_snapshot("a", "sfp-1")
    except Exception as exc:
        return type(exc).__name__


@fault(
    "OPS-4",
    source="checkpointers and session backends (Django's SessionBase.decode): what cannot be decoded counts as not there",
    on=OnSqlite,
    witness=_loads_damage,
)
class TakesADamagedSnapshotForAbsent(Wrapper):
    """Gives None for a snapshot whose stored record is corrupt, when it is loaded by its id."""

    __slots__ = ()

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        try:
            return await self.inner.load_snapshot(agent_id, snapshot_id)
        except CorruptRecordError:
            return None


async def _tells_contents(ctx: Any) -> object:
    try:
        await ctx.store.save_tool_call_records(
            "a", [samples.tool_call(result={"iban": "DE-0815", "sum": float("nan")})]
        )
    except InvalidValueError as exc:
        return "DE-0815" in f"{exc} {exc!r} {exc.args}"
    return "saved"


@fault(
    "OPS-12",
    source="pydantic's ValidationError: [type=..., input_value={'iban': ...}, input_type=dict]",
    witness=_tells_contents,
)
class QuotesTheRefusedInput(Wrapper):
    """Quotes the beginning of the result or input of a tool call in the error that refuses it."""

    __slots__ = ()

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.save_tool_call_records(agent_id, records, fence=fence)
        except InvalidValueError as exc:
            field, place = (
                exc.path.removeprefix("$.").partition(".")[0].partition("[")[0],
                exc.record.rpartition(" ")[2],
            )
            if field not in ("input", "result") or not place.isdecimal() or int(place) >= len(records):
                raise
            value = repr(getattr(records[int(place)], field))[:50]
            problem = str(exc).removeprefix(f"{exc.record}: {exc.path}: ")
            raise InvalidValueError(exc.record, exc.path, f"{problem} [input_value={value}]") from None


async def _writes_after_a_lost_lease(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    told = []
    for agent_id, fence in (("a", lease), ("b", None), ("b", None)):
        try:
            await ctx.store.save_messages(agent_id, talk("x"), fence=fence)
            told.append("saved")
        except Exception as exc:
            told.append(type(exc).__name__)
    return told


@fault(
    "OPS-13",
    source="SQLAlchemy's PendingRollbackError: a session that is kept after a flush failed refuses its next statement",
    witness=_writes_after_a_lost_lease,
    errors=True,
)
class KeepsAFailedSession(EngineStore):
    """Fails the save that follows one whose lease had ended, whatever agent it is for."""

    _is_failed = False

    async def _save(self, name: str, agent_id: str, fence: Any, build: Any) -> None:
        if self._is_failed:
            self._is_failed = False
            raise StorageError(
                "this session's transaction has been rolled back due to a previous exception during flush"
            )
        try:
            await super()._save(name, agent_id, fence, build)
        except LockLostError:
            self._is_failed = True
            raise


# --- locks, forks, durability -----------------------------------------------------------------------------------------


async def _waits_for_a_moment(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    other = await ctx.another()
    waiting = asyncio.ensure_future(_acquired(other))
    await asyncio.sleep(0.2)
    await lease.release()
    return await waiting


async def _acquired(store: Any) -> str:
    try:
        lease = await store.acquire_agent_lock("a", wait_ms=900)
    except Exception as exc:
        return type(exc).__name__
    await lease.release()
    return "acquired"


@fault(
    "LOCK-2",
    source="MySQL's GET_LOCK and JDBC's setQueryTimeout: a timeout in whole seconds, so the port divides by 1000",
    witness=_waits_for_a_moment,
    errors=True,
)
class WaitsWholeSecondsForALock(Wrapper):
    """Waits for a lock as many whole seconds as are in `wait_ms`, and not at all for less than one."""

    __slots__ = ()

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        if type(wait_ms) is int and wait_ms > 0:
            wait_ms = wait_ms // 1000 * 1000
        return self.inner.acquire_agent_lock(agent_id, ttl_ms, wait_ms)


async def _deletes_a_parent(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_snapshot("a", samples.snapshot())
    (fork,) = await ctx.store.batch_fork("a", 1)
    before = len(await ctx.store.list_snapshots(fork))
    await ctx.store.delete("a")
    return before, len(await ctx.store.list_snapshots(fork))


@fault(
    "FORK-2",
    "ID-2",
    source="copy on write by reference: forks point to the parent's snapshot rows, whose key has ON DELETE CASCADE",
    witness=_deletes_a_parent,
)
class DeletesTheForksSnapshots(MemoryLayer):
    """Deletes the snapshots that a fork took along when its parent is deleted."""

    async def commit(self, batches: Any) -> Any:
        for batch in batches:
            if batch.delete:
                own = [id(doc) for doc in await self.inner.docs(batch.agent_id, DocKind.SNAPSHOTS)]
                shared = {
                    (agent_id, key)
                    for agent_id, state in self.space.states.items()
                    if own and agent_id != batch.agent_id
                    for key, doc in state.docs.items()
                    if id(doc) in own
                }
                for agent_id, key in shared:
                    del self.space.states[agent_id].docs[key]
        return await super().commit(batches)


@fault(
    "DUR-1",
    "QRY-8",
    source="FastAPI's BackgroundTasks: the answer is sent first, and the row is written after it",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_recovered_file("a", samples.recovered()),
        lambda s, t: t.load_recovered_files("a"),
    ),
)
class WritesRecoveredFilesInTheBackground(EngineStore):
    """Acknowledges a recovered file a moment before it is written, which only its own instance waits for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._late: dict[str, asyncio.Task[None]] = {}

    async def save_recovered_file(self, agent_id: str, file: RecoveredFile, *, fence: Any = None) -> None:
        try:
            self._context.check_open()
            check_agent_id(agent_id)
            await kinds.RECOVERED.write(file)
            is_plain = self._locks.fence(agent_id, fence) is None
        except KodeError:
            is_plain = False  # to be refused
        if not is_plain:
            if type(agent_id) is str:
                await self._settle(agent_id)
            await super().save_recovered_file(agent_id, file, fence=fence)
            return
        self._late[agent_id] = asyncio.create_task(self._write(agent_id, file, self._late.get(agent_id)))

    async def _write(self, agent_id: str, file: RecoveredFile, previous: asyncio.Task[None] | None) -> None:
        await asyncio.sleep(0.2)
        if previous is not None:
            await asyncio.wait([previous])
        try:
            await super().save_recovered_file(agent_id, file)
        except KodeError:
            pass  # nobody is left to be told
        finally:
            if self._late.get(agent_id) is asyncio.current_task():
                del self._late[agent_id]

    async def _settle(self, *agent_ids: str) -> None:
        late = [self._late[a] for a in agent_ids or list(self._late) if a in self._late]
        if late:
            await asyncio.wait(late)

    async def load_recovered_files(self, agent_id: str) -> Any:
        await self._settle(agent_id)
        return await super().load_recovered_files(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._settle(agent_id)
        await super().delete(agent_id, fence=fence)

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        await self._settle()
        return await super().delete_many(progress=progress, **filters)

    async def check_consistency(self, agent_id: str | None = None, *, progress: Any = None) -> Any:
        await self._settle()
        return await super().check_consistency(agent_id, progress=progress)

    async def get_metrics(self) -> Any:
        await self._settle()
        return await super().get_metrics()

    async def backup(self, target: Any, *, progress: Any = None) -> Any:
        await self._settle()
        return await super().backup(target, progress=progress)

    async def close(self) -> None:
        await self._settle()
        await super().close()
