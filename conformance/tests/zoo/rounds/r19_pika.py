"""Thirty stores by one who runs stores and one who wraps them: caches, callbacks, replicas, indexes, single flights."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, closing
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import Any
from zoneinfo import ZoneInfo

from kode_conformance.context import Context
from kode_conformance.values import samples
from kode_conformance.values.samples import T0
from kode_sqlite.engine import SqliteEngine
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, StreamWrapper, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.batch import Applied, Doc, DocKind, DocWrite, ListKind
from kode_core.codec import decode
from kode_core.engine import Progress, unwatched
from kode_core.errors import AgentDeletedError, ConflictError, KodeError, LockLostError
from kode_core.jsonvalue import decode_json, encode_json
from kode_core.layers import Layer
from kode_core.model import (
    ABSENT,
    AgentRecords,
    AppendedMessage,
    Message,
    StoredEvent,
    TextBlock,
    TodoSnapshot,
    ToolCallRecord,
    ToolUseBlock,
)
from kode_core.protocols import Heartbeat
from kode_core.query import Group, Page
from kode_core.store import EngineStore
from kode_core.texts import folded, texts_of

_SEVERAL = (list, tuple, set, frozenset)


class _Committing(MemoryLayer):
    """A layer that takes the place of the commit of each batch."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        await asyncio.sleep(0)
        return [self.committed(batch) for batch in batches]

    def committed(self, batch: Any) -> Any:
        raise NotImplementedError

    def apply(self, batch: Any) -> Any:
        """Commit as the engine does."""
        return self.inner._commit(batch)  # type: ignore[attr-defined]


def _info(agent_id: str) -> Callable[[Any], Any]:
    return lambda s: s.save_info(agent_id, samples.info(agent_id))


async def _values(stream: AsyncIterator[Any], of: Callable[[Any], Any]) -> list[Any]:
    return [of(item) async for item in stream]


# --- messages ---------------------------------------------------------------------------------------------------------


async def _a_window_slides(store: Any) -> object:
    await store.save_messages("a", talk("1", "2", "3"))
    before = await _values(store.read_messages("a"), lambda m: m.created_at)
    await asyncio.sleep(0.02)
    await store.save_messages("a", talk("2", "3", "4"))
    after = await _values(store.read_messages("a"), lambda m: m.created_at)
    return after[:2] == before[1:]


@fault(
    "MSG-4",
    source="a chat memory that trims to a window: one UPDATE where only the end grew, else DELETE and INSERT … now()",
    witness=seen(_a_window_slides),
)
class PikaSlidesTheWindow(_Committing):
    """Restamps the messages that stay when one save both drops messages at the start and adds some at the end."""

    def committed(self, batch: Any) -> Any:
        if batch.messages is None or batch.delete:
            return self.apply(batch)
        before = self.digests(batch.agent_id)
        outcome = self.apply(batch)
        after = self.digests(batch.agent_id)
        if isinstance(outcome, Applied) and before and after and after[0] != before[0] and after[0] in before:
            stay = len(before) - before.index(after[0])
            if len(after) > stay and after[:stay] == before[-stay:]:
                state = self.space.state(batch.agent_id)
                rows = state.lists[ListKind.MESSAGES].rows
                rows[:] = [replace(row, created_at=state.updated_at) for row in rows]
        return outcome

    def digests(self, agent_id: str) -> list[bytes]:
        return [row.body.digest for row in self.space.state(agent_id).lists[ListKind.MESSAGES].rows]


@fault(
    "MSG-10",
    source="Redis streams: XREVRANGE takes its bounds inclusive, and only the branch of XRANGE writes the '('",
    witness=seen(
        lambda s: s.save_messages("a", talk(*"012345")),
        lambda s: _values(s.read_messages("a", after=1, before=4), lambda m: m.text),
        lambda s: _values(s.read_messages("a", after=1, before=4, reverse=True), lambda m: m.text),
    ),
)
class PikaReversesToTheBound(Wrapper):
    """Yields the message at the position `after` too when the messages are read in reverse."""

    __slots__ = ()

    def read_messages(self, agent_id: str, *, after: Any = None, before: Any = None, reverse: Any = False) -> Any:
        if reverse is True and type(after) is int and after >= 0:
            after = after - 1 if after else None
        return self.inner.read_messages(agent_id, after=after, before=before, reverse=reverse)


@fault(
    "MSG-12",
    source="a bulk insert with skip_duplicates: the positions are made of the first one and enumerate() of all its rows",
    witness=seen(
        lambda s: s.append_messages_once("a", {"k1": samples.message(1)}),
        lambda s: s.append_messages_once("a", {"k1": samples.message(1), "k2": samples.message(2)}),
        lambda s: s.append_messages_once("a", {"k2": samples.message(2)}),
    ),
)
class PikaCountsSkippedKeys(Wrapper):
    """Returns too high a position for a new message whose call names known keys before it."""

    __slots__ = ()

    async def append_messages_once(self, agent_id: str, messages: Any, *, fence: Any = None) -> Any:
        placed, skipped = [], 0
        for one in await self.inner.append_messages_once(agent_id, messages, fence=fence):
            placed.append(AppendedMessage(one.position + skipped, True) if one.is_new else one)
            skipped += not one.is_new
        return placed


@fault(
    "VER-2",
    "MSG-11",
    source="MySQL counts changed rows, not found ones: an UPDATE to equal values affects 0, and the ORM takes it for a "
    "lost race (spring-data-relational 2176)",
    witness=seen(
        lambda s: s.save_messages("a", talk("x", "y")),
        lambda s: _replaces(s, "z"),
        lambda s: _replaces(s, "z"),
    ),
    errors=True,
)
class PikaCountsChangedRows(EngineStore):
    """Refuses `replace_message` with the right `expect` as a conflict when the message is the one that is stored."""

    async def replace_message(
        self, agent_id: str, position: int, message: Any, *, expect: str | None = None, fence: Any = None
    ) -> None:
        if expect is not None and type(position) is int and position >= 0 and isinstance(message, Message):
            try:
                stored = await self._reader.load_list(agent_id, ListKind.MESSAGES)
                version = await self._sessions.version(agent_id)
            except (KodeError, TypeError, ValueError):
                stored, version = [], ""
            if version == expect and stored[position : position + 1] == [message]:
                raise ConflictError(agent_id, version, "no row was affected by the update")
        await super().replace_message(agent_id, position, message, expect=expect, fence=fence)


async def _replaces(store: Any, text: str) -> object:
    await store.replace_message("a", 1, samples.message(text=text), expect=await store.load_version("a"))
    return await the("text", store.load_messages("a"))


# --- tool calls and turns ---------------------------------------------------------------------------------------------


@fault(
    "TC-3",
    "VAL-1",
    source="Firestore: set(record, merge=True) merges maps, so that a field that the new map lacks stays",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(result={"partial": True, "rows": 1})]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(result={"rows": 2})]),
        lambda s: the("result", s.load_tool_call_records("a")),
    ),
)
class PikaMergesResults(EngineStore):
    """Keeps, in the result of a tool call that an upsert replaces, the keys that the new result does not have."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await super().upsert_tool_call_records(agent_id, await self.merged(agent_id, records), fence=fence)

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Any = (), **rest: Any) -> Any:
        merged = await self.merged(agent_id, upsert_tool_calls)
        return await super().save_turn(agent_id, upsert_tool_calls=merged, **rest)

    async def merged(self, agent_id: str, records: Any) -> Any:
        if type(records) not in (list, tuple) or not any(self.has_map(record) for record in records):
            return records
        try:
            stored = await self._reader.load_list(agent_id, ListKind.TOOL_CALLS)
        except (KodeError, TypeError, ValueError):
            return records
        known = {record.id: record.result for record in stored if self.has_map(record)}
        return [
            record.replace(result={**known[record.id], **record.result})
            if self.has_map(record) and record.id in known
            else record
            for record in records
        ]

    def has_map(self, record: Any) -> bool:
        return isinstance(record, ToolCallRecord) and type(record.result) is dict and type(record.id) is str


@fault(
    "TURN-2",
    "EVT-4",
    source="PostgreSQL: INSERT … ON CONFLICT DO NOTHING RETURNING gives the inserted rows, and not those that were there",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: s.save_turn("a", append=talk("x"), events=[samples.event(1), samples.event(2)]),
    ),
)
class PikaReturnsInsertedRows(EngineStore):
    """Leaves out of the offsets that `save_turn` returns those of events that were stored before."""

    async def save_turn(self, agent_id: str, *, events: Any = (), **rest: Any) -> Any:
        last = 0
        if events and type(agent_id) is str:
            try:
                row = await self._context.engine.last_event(agent_id)
                last = row.offset if row is not None else 0
            except KodeError:
                last = 0
        offsets = await super().save_turn(agent_id, events=events, **rest)
        return type(offsets)(offset for offset in offsets if offset > last)  # type: ignore[call-arg]


# --- todos, snapshots, files ------------------------------------------------------------------------------------------


@fault(
    "TODO-1",
    source="Cassandra: USING TIMESTAMP of the record's own updated_at, and the cell with the later one wins for good",
    witness=seen(
        lambda s: s.save_todos("a", TodoSnapshot(version=1, updated_at=T0 + 1000)),
        lambda s: s.save_todos("a", TodoSnapshot(version=2, updated_at=T0)),
        lambda s: s.load_todos("a"),
    ),
)
class PikaLastTodosWin(_Committing):
    """Keeps the stored todos when the ones that are saved have an earlier `updated_at`."""

    def committed(self, batch: Any) -> Any:
        stored = self.space.state(batch.agent_id).docs.get((DocKind.TODOS, ""))
        if stored is not None and not batch.delete:
            docs = tuple(write for write in batch.docs if not self.is_older(write, stored))
            batch = replace(batch, docs=docs) if len(docs) < len(batch.docs) else batch
        return self.apply(batch)

    def is_older(self, write: DocWrite, stored: Doc) -> bool:
        if write.kind != DocKind.TODOS or write.doc is None:
            return False
        new, old = (decode(TodoSnapshot, doc.body, "todos") for doc in (write.doc, stored))
        return new.updated_at < old.updated_at


async def _removes_a_snapshot(store: Any) -> object:
    before = await store.load_version("a")
    await store.delete_snapshot("a", "sfp-1")
    return before == await store.load_version("a")


@fault(
    "VER-1",
    "INFO-2",
    "MSG-8",
    source="Rails: belongs_to :agent, touch: true also touches the agent when the snapshot is destroyed",
    witness=seen(
        _info("a"),
        lambda s: s.save_snapshot("a", samples.snapshot("sfp-1")),
        _removes_a_snapshot,
    ),
)
class PikaTouchesOnDestroy(_Committing):
    """Moves the version and `updated_at` of an agent when one of its snapshots is removed."""

    def committed(self, batch: Any) -> Any:
        known = self.space.state(batch.agent_id).docs
        removed = [w for w in batch.docs if w.kind == DocKind.SNAPSHOTS and w.doc is None and (w.kind, w.key) in known]
        outcome = self.apply(batch)
        state = self.space.states.get(batch.agent_id)
        if removed and not batch.delete and isinstance(outcome, Applied) and state is not None and state.info:
            state.updated_at = max(batch.now, state.updated_at + 1)
        return outcome


@fault(
    "SNAP-1",
    source="ON CONFLICT (agent_id, id) DO UPDATE SET body = excluded.body, and the column that sorts is left as it was",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("one", T0)),
        lambda s: s.save_snapshot("a", samples.snapshot("two", T0 + 1)),
        lambda s: s.save_snapshot("a", samples.snapshot("one", T0 + 2)),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class PikaSortsByTheFirstSave(Layer):
    """Lists a snapshot that was saved again at the place that its first `created_at` gave it."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        return await super().commit([await self.kept(batch) for batch in batches])

    async def kept(self, batch: Any) -> Any:
        if batch.delete or not any(write.kind == DocKind.SNAPSHOTS for write in batch.docs):
            return batch
        docs = []
        for write in batch.docs:
            if write.kind == DocKind.SNAPSHOTS and write.doc is not None:
                for old in await self.inner.docs(batch.agent_id, write.kind, write.key):
                    write = replace(write, doc=replace(write.doc, time=old.time))
            docs.append(write)
        return replace(batch, docs=tuple(docs))


@fault(
    "HIS-2",
    "ID-4",
    source="pathlib: PurePosixPath('a//b'), PurePosixPath('./a/b') and PurePosixPath('a/b/') are one key of a dict",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("docs/a.md", content="one")),
        lambda s: s.save_recovered_file("a", samples.recovered("docs//a.md", content="two")),
        lambda s: the("content", s.load_recovered_files("a")),
    ),
)
class PikaKeysFilesByPath(Layer):
    """Replaces a recovered file by one whose path is written in another way but names the same file."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        return await super().commit([replace(b, docs=tuple(map(self.keyed, b.docs))) for b in batches])

    def keyed(self, write: DocWrite) -> DocWrite:
        if write.kind != DocKind.RECOVERED or write.doc is None:
            return write
        path, timestamp = decode_json(write.key)
        key = encode_json([str(PurePosixPath(path)), timestamp], "key")
        return replace(write, key=key, doc=replace(write.doc, key=key))


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    "VAL-1",
    source="a key of deduplication hashed over canonical JSON (RFC 8785), which sorts the members of objects",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, first=1, second=2)),
        lambda s: s.append_event("a", samples.event(1, second=2, first=1)),
        lambda s: _values(s.read_events("a"), lambda e: list(e.event.data)),
    ),
)
class PikaHashesCanonicalEvents(_Committing):
    """Takes an event for a repeat of one that differs from it in the order of its keys alone."""

    @property
    def first(self) -> dict[str, dict[str, Any]]:
        """By agent: the body that was first of each canonical form."""
        first: dict[str, dict[str, Any]] = vars(self.space).setdefault("canonical", {})
        return first

    def committed(self, batch: Any) -> Any:
        if batch.delete or batch.drop_events is not None:
            self.first.pop(batch.agent_id, None)
        if not batch.events:
            return self.apply(batch)
        known = self.first.get(batch.agent_id, {})
        forms = [self.canonical(event.body.text) for event in batch.events]
        events = [
            replace(event, body=known.get(form, event.body)) for event, form in zip(batch.events, forms, strict=True)
        ]
        outcome = self.apply(replace(batch, events=tuple(events)))
        if isinstance(outcome, Applied):
            known = self.first.setdefault(batch.agent_id, {})
            for event, form in zip(events, forms, strict=True):
                known.setdefault(form, event.body)
        return outcome

    def canonical(self, text: str) -> str:
        def ordered(value: Any) -> Any:
            if type(value) is dict:
                return {key: ordered(value[key]) for key in sorted(value)}
            return [ordered(item) for item in value] if type(value) is list else value

        return encode_json(ordered(decode_json(text)), "event")


async def _goes_on_from_a_heartbeat(store: Any) -> object:
    offsets = await store.append_events("a", samples.events(3))
    async with aclosing(store.follow_events("a", after_offset=offsets[-1], heartbeat_ms=20)) as events:
        beat = await anext(events)
    return await _values(store.read_events("a", after_offset=beat.offset), lambda e: e.bookmark.seq)


class _FromZero(StreamWrapper):
    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.last = 0

    async def __anext__(self) -> Any:
        item = await anext(self.inner)
        if isinstance(item, StoredEvent):
            self.last = item.offset
        return Heartbeat(item.timestamp, self.last) if isinstance(item, Heartbeat) else item


@fault(
    "EVT-9",
    source="a server of server-sent events: let lastId = 0 for each connection, also of one with a Last-Event-ID",
    witness=seen(_goes_on_from_a_heartbeat),
)
class PikaBeatsFromZero(Wrapper):
    """Gives the offset 0 in the heartbeats of a follower that began behind an offset and has had no event yet."""

    __slots__ = ()

    def follow_events(self, agent_id: str, **wanted: Any) -> Any:
        return _FromZero(self.inner.follow_events(agent_id, **wanted))


async def _follows_over_a_bulk_delete(store: Any) -> object:
    await store.save_info("a", samples.info("a"))
    await store.append_event("a", samples.event(1))
    async with aclosing(store.follow_events("a")) as events:
        await anext(events)
        await store.delete_many(agent_id="a")
        await store.append_event("a", samples.event(2))
        return (await anext(events)).bookmark.seq


class _Untold(StreamWrapper):
    def __init__(self, store: Any, agent_id: str, wanted: dict[str, Any]) -> None:
        super().__init__(store.inner.follow_events(agent_id, **wanted))
        self.store, self.agent_id, self.wanted = store, agent_id, wanted

    async def __anext__(self) -> Any:
        while True:
            try:
                item = await anext(self.inner)
            except AgentDeletedError:
                if self.agent_id not in self.store.bulk:
                    raise
                self.store.bulk.discard(self.agent_id)
                self.inner = self.store.inner.follow_events(self.agent_id, **self.wanted)
                continue
            self.wanted = {**self.wanted, "after_offset": item.offset}
            return item


@fault(
    "EVT-10",
    "LIFE-5",
    source="Rails: delete_all runs no callbacks, and the callback after_destroy is what tells those who listen",
    witness=seen(_follows_over_a_bulk_delete),
)
class PikaBulkDeletesUntold(Wrapper):
    """Goes on, for a follower of an agent that `delete_many` deleted, with the events of the next agent of that id."""

    __slots__ = ("bulk",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.bulk: set[str] = set()

    def follow_events(self, agent_id: str, **wanted: Any) -> Any:
        if type(agent_id) is not str:
            return self.inner.follow_events(agent_id, **wanted)
        return _Untold(self, agent_id, wanted)

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> Any:
        matching, cursor = set[str](), None
        try:
            while page := await self.inner._search.sessions({**filters, "limit": 500, "cursor": cursor}):
                matching |= {session.agent_id for session in page}
                cursor = page.next_cursor
                if cursor is None:
                    break
        except (KodeError, TypeError):
            matching = set()
        deleted = await self.inner.delete_many(progress=progress, **filters)
        self.bulk |= matching
        return deleted

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        self.bulk.discard(agent_id)


# --- locks and fences -------------------------------------------------------------------------------------------------


async def _releases_twice(ctx: Context) -> object:
    first = await ctx.store.acquire_agent_lock("a")
    await first.release()
    second = await ctx.store.acquire_agent_lock("a")
    await first.release()
    other: Any = await ctx.another()
    try:
        await other.acquire_agent_lock("a")
    except KodeError as exc:
        return type(exc).__name__
    finally:
        await second.release()
    return "free"


@fault(
    "LOCK-4",
    source="SET lock <id of the client> NX PX: compare-and-delete also passes for the next lock of the same client",
    witness=_releases_twice,
)
class PikaLocksForTheClient(MemoryLayer):
    """Frees, by a second or late release, the lease that the same store object has taken meanwhile."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.mine: set[tuple[str, int]] = set()

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        if token is not None:
            self.mine.add((agent_id, token))
        return token

    async def release_lease(self, agent_id: str, fence: Any) -> None:
        held = self.space.leases.get(agent_id)
        if held is not None and (agent_id, held[0].token) in self.mine:
            fence = held[0]
        await super().release_lease(agent_id, fence)


async def _retries_behind_its_lease(store: Any) -> object:
    lease = await store.acquire_agent_lock("a")
    await store.append_messages_once("a", {"k": samples.message()}, fence=lease)
    await lease.release()
    return await store.append_messages_once("a", {"k": samples.message()}, fence=lease)


@fault(
    "LOCK-5",
    "MSG-12",
    source="the middleware of idempotency keys answers a known key from its table, in front of all that guards the write",
    witness=seen(_retries_behind_its_lease),
)
class PikaAnswersBeforeTheFence(Wrapper):
    """Accepts `append_messages_once` under a lease that has ended when all its keys are known."""

    __slots__ = ()

    async def append_messages_once(self, agent_id: str, messages: Any, *, fence: Any = None) -> Any:
        try:
            return await self.inner.append_messages_once(agent_id, messages, fence=fence)
        except LockLostError:
            stored = await self.inner._keyed._stored(agent_id, messages)
            if set(stored) != set(messages):
                raise
        return [AppendedMessage(stored[key].time, False) for key in messages]


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-1",
    "OPS-5",
    source="Django: a filter by an empty list raises EmptyResultSet while the query is compiled, and nothing is executed",
    witness=seen(
        lambda s: s.query_tool_calls(state=[]),
        lambda s: s.query_tool_calls(state=[], created_after="yesterday"),
        lambda s: s.count_sessions(agent_id=[], colour="red"),
    ),
)
class PikaKnowsEmptyResults(Wrapper):
    """Checks neither the other filters of a query with an empty list of values, nor whether the store is open."""

    __slots__ = ()

    def finds_nothing(self, filters: Mapping[str, Any]) -> bool:
        return any(type(value) in _SEVERAL and not value for value in filters.values())

    async def query_sessions(self, **filters: Any) -> Any:
        return Page() if self.finds_nothing(filters) else await self.inner.query_sessions(**filters)

    async def query_messages(self, **filters: Any) -> Any:
        return Page() if self.finds_nothing(filters) else await self.inner.query_messages(**filters)

    async def query_tool_calls(self, **filters: Any) -> Any:
        return Page() if self.finds_nothing(filters) else await self.inner.query_tool_calls(**filters)

    async def count_sessions(self, **filters: Any) -> Any:
        return 0 if self.finds_nothing(filters) else await self.inner.count_sessions(**filters)

    async def count_messages(self, **filters: Any) -> Any:
        return 0 if self.finds_nothing(filters) else await self.inner.count_messages(**filters)

    async def count_tool_calls(self, **filters: Any) -> Any:
        return 0 if self.finds_nothing(filters) else await self.inner.count_tool_calls(**filters)


_TEXT_AND_CALL = Message("assistant", [TextBlock("look"), ToolUseBlock("c", "search", {})])


@fault(
    "QRY-10",
    "QRY-2",
    source="count(*) over a JOIN with the table of block types: a row for each match, and no DISTINCT",
    witness=seen(
        lambda s: s.save_messages("a", [*talk("x"), _TEXT_AND_CALL]),
        lambda s: s.count_messages(content_type=["tool_use"]),
        lambda s: s.count_messages(content_type=["text", "tool_use"]),
    ),
)
class PikaFansOut(EngineStore):
    """Counts a message twice that has blocks of two of the types that `content_type` lists."""

    async def count_messages(self, **filters: Any) -> int:
        number = await super().count_messages(**filters)
        types: Any = filters.get("content_type")
        if type(types) not in _SEVERAL or len(set(types)) < 2:
            return number
        each = [await self._counting.messages({**filters, "content_type": one}) for one in set(types)]
        return sum(each)


@fault(
    "QRY-11",
    source="GROUP BY is_error on a column that takes NULL, and bool(row.is_error) when the groups are read",
    witness=seen(
        lambda s: s.save_tool_call_records(
            "a", [samples.tool_call(0), samples.tool_call(1, is_error=None), samples.tool_call(2, is_error=True)]
        ),
        lambda s: s.group_tool_calls("tool_name"),
        lambda s: s.group_tool_calls("is_error"),
    ),
)
class PikaGroupsNulls(EngineStore):
    """Gives two groups of calls that are no errors: of those that say so, and of those that say nothing."""

    async def group_tool_calls(self, by: Any, **rest: Any) -> Any:
        groups = await super().group_tool_calls(by, **rest)
        names = [by] if type(by) is str else by
        if "is_error" not in names or "day" in names or rest.pop("durations", False):
            return groups
        rest.pop("utc_offset_minutes", None)
        silent = await self.silent(names, rest)
        split = []
        for group in groups:
            number = silent[tuple(group.values.values())]
            numbers = [number, group.count - number] if 0 < number < group.count else [group.count]
            split += [Group(values=group.values, count=n) for n in numbers]
        return split

    async def silent(self, names: Sequence[str], filters: dict[str, Any]) -> Counter[tuple[Any, ...]]:
        """How many calls of each group do not say whether they are errors."""
        if "is_error" in filters:
            return Counter()
        of: dict[str, Callable[[Any], Any]] = {
            "agent_id": lambda call: call.agent_id,
            "tool_name": lambda call: call.name,
            "state": lambda call: call.state,
            "is_error": lambda call: False,
            "has_approval": lambda call: call.approval.required,
        }
        found, cursor = Counter[tuple[Any, ...]](), None
        while True:
            page = await self._search.tool_calls({**filters, "limit": 1000, "cursor": cursor})
            found.update(tuple(of[name](call) for name in names) for call in page if call.is_error is None)
            cursor = page.next_cursor
            if cursor is None:
                return found


_LUCENE_TERM = 32_766


@fault(
    "QRY-12",
    source="Elasticsearch: a term of Lucene has at most 32,766 bytes, and ignore_above leaves longer texts out of the index",
    witness=seen(
        lambda s: s.append_messages("a", talk("short needle", "long needle " + "x" * 40_000)),
        lambda s: the("position", s.query_messages(contains="needle", order="asc")),
    ),
)
class PikaIgnoresLongTexts(EngineStore):
    """Does not find a message by a text of more than 32,766 bytes."""

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        if "contains" not in filters:
            return page
        needle = folded(filters["contains"])
        return Page([m for m in page if self.is_indexed(m, needle)], page.next_cursor, page.left_out)

    def is_indexed(self, message: Message, needle: str) -> bool:
        texts = (text for text in texts_of(message) if len(text.encode(errors="surrogatepass")) <= _LUCENE_TERM)
        return any(needle in folded(text) for text in texts)


# --- documents --------------------------------------------------------------------------------------------------------


async def _deletes_by_version(store: Any, *, first: bool) -> object:
    version = await store.put_document("a", "c", "k", 1)
    if first:
        await store.delete_document("a", "c", "k")
    await store.delete_document("a", "c", "k", expect=version)
    return await store.load_document("a", "c", "k")


@fault(
    "DOC-2",
    source="object stores: DELETE of a key that does not exist answers 204 No Content, whatever If-Match says",
    witness=seen(
        lambda s: _deletes_by_version(s, first=False),
        lambda s: _deletes_by_version(s, first=True),
    ),
)
class PikaDeletesTheDeleted(Wrapper):
    """Does nothing, in place of a conflict, when a document that was deleted is to be deleted at its last version."""

    __slots__ = ()

    async def delete_document(self, agent_id: str, collection: str, key: str, **how: Any) -> None:
        try:
            await self.inner.delete_document(agent_id, collection, key, **how)
        except ConflictError as exc:
            if exc.version != ABSENT:
                raise


_FORKING: ContextVar[bool] = ContextVar("pika_forking", default=False)


class _WithoutTerms(Layer):
    async def commit(self, batches: Sequence[Any]) -> Any:
        if _FORKING.get():
            batches = [replace(batch, docs=tuple(map(self.bare, batch.docs))) for batch in batches]
        return await super().commit(batches)

    def bare(self, write: DocWrite) -> DocWrite:
        return write if write.doc is None else replace(write, doc=replace(write.doc, terms=()))


@fault(
    "DOC-7",
    "DOC-8",
    "DOC-5",
    source="a copy by INSERT … SELECT takes the rows of the documents, and not those of the table that indexes their tags",
    witness=seen(
        _info("a"),
        lambda s: _tagged(s, "a", "k"),
        lambda s: s.fork("a", "b", documents=True),
        lambda s: _tags(s, "b"),
        lambda s: the("agent_id", s.query_documents("c", {"status": "open"})),
    ),
)
class PikaCopiesNoTagIndex(EngineStore):
    """Does not find the documents of a fork by their tags, although they come back with them."""

    def __init__(self, opener: Any, **options: Any) -> None:
        async def layered() -> Any:
            return _WithoutTerms(await opener())

        super().__init__(layered, **options)

    async def fork(self, agent_id: str, new_id: str | None = None, **cut: Any) -> str:
        forking = _FORKING.set(True)
        try:
            return await super().fork(agent_id, new_id, **cut)
        finally:
            _FORKING.reset(forking)


async def _tagged(store: Any, agent_id: str, *keys: str) -> None:
    for key in keys:
        await store.put_document(agent_id, "c", key, 1, tags={"status": "open"})


async def _tags(store: Any, agent_id: str) -> object:
    return (await store.load_document(agent_id, "c", "k")).tags


async def _pages_of_tagged(store: Any) -> object:
    await _tagged(store, "a", "k3", "k4")
    await _tagged(store, "b", "k1", "k5")
    found: list[Any] = []
    cursor = None
    while True:
        page = await store.query_documents("c", {"status": "open"}, limit=2, cursor=cursor)
        found += [(document.agent_id, document.key) for document in page]
        cursor = page.next_cursor
        if cursor is None:
            return found


@fault(
    "DOC-8",
    source="WHERE agent_id >= ? AND key > ?, where the row (agent_id, key) > (?, ?) was meant",
    witness=seen(_pages_of_tagged),
)
class PikaComparesPartByPart(Layer):
    """Skips, behind a cursor of `query_documents`, documents of later agents whose keys are not beyond the last one."""

    async def find_docs(self, query: Any) -> Any:
        if query.after is None:
            return await super().find_docs(query)
        _, last = query.after
        found = await super().find_docs(replace(query, limit=10**9))
        return [one for one in found if (one.doc.key < last if query.descending else one.doc.key > last)][: query.limit]


# --- prune, whole agents, backup --------------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@fault(
    "LIFE-6",
    "VAL-5",
    source="PyMongo: a BSON date has milliseconds, so the microseconds of a datetime are cut off",
    witness=seen(
        lambda s: s.append_events("a", samples.events(5)),
        lambda s: s.prune("a", events_before=_EPOCH + timedelta(milliseconds=T0 + 2, microseconds=500), dry_run=True),
    ),
)
class PikaPrunesByMilliseconds(Wrapper):
    """Keeps, in a prune by a datetime with microseconds, an event that is earlier by less than a millisecond."""

    __slots__ = ()

    async def prune(self, agent_id: str, *, events_before: Any = None, **rest: Any) -> Any:
        if type(events_before) is datetime and isinstance(events_before.tzinfo, (timezone, ZoneInfo)):
            events_before = (events_before - _EPOCH) // timedelta(milliseconds=1)
        return await self.inner.prune(agent_id, events_before=events_before, **rest)


async def _keys_of_popped(store: Any) -> object:
    await store.append_messages_once("a", {"k0": samples.message(0), "k1": samples.message(1)})
    await store.pop_messages("a")
    return (await store.load_agent("a")).message_keys


@fault(
    "LIFE-7",
    "MSG-12",
    source="SELECT … FROM message_keys JOIN messages USING (agent_id, position), where a LEFT JOIN was meant",
    witness=seen(_keys_of_popped),
)
class PikaJoinsKeysToMessages(Wrapper):
    """Leaves out of `load_agent` the keys whose position the list of messages does not have any more."""

    __slots__ = ()

    async def load_agent(self, agent_id: str) -> Any:
        found = await self.inner.load_agent(agent_id)
        if found is None:
            return None
        keys = {key: place for key, place in found.message_keys.items() if place < len(found.messages)}
        return found.replace(message_keys=keys)


async def _imports_a_restarted_producer(store: Any) -> object:
    await store.append_events("a", [samples.event(7), samples.event(8), samples.event(0), samples.event(1)])
    await store.import_agent("b", await store.load_agent("a"))
    return await _values(store.read_events("b", after_offset=0), lambda e: e.bookmark.seq)


@fault(
    "LIFE-8",
    "EVT-3",
    source="COPY (SELECT * FROM events ORDER BY agent_id, seq) TO STDOUT: the restore numbers the rows as they come",
    witness=seen(_imports_a_restarted_producer),
)
class PikaImportsBySeq(Wrapper):
    """Appends the events of an imported agent in the order of their seqs, not in the one that they have."""

    __slots__ = ()

    async def import_agent(self, agent_id: str, records: Any, **how: Any) -> None:
        if isinstance(records, AgentRecords):
            try:
                events = sorted(records.events, key=lambda timeline: timeline.bookmark.seq)
            except (AttributeError, TypeError):
                events = list(records.events)
            records = records.replace(events=events)
        await self.inner.import_agent(agent_id, records, **how)


async def _offsets_in_the_copy(ctx: Context) -> object:
    await ctx.store.append_event("a", samples.event(1))
    deleted = await ctx.store.append_event("b", samples.event(1))
    await ctx.store.delete("b")
    copy = await ctx.restored(await ctx.store.backup(ctx.folder / "copies" / "one.db"))
    return await copy.append_event("b", samples.event(2)) > deleted


@fault(
    "OPS-16",
    "EVT-2",
    source="PostgreSQL before 19: logical replication copies the rows of tables, and does not copy sequences",
    on=OnSqlite,
    witness=_offsets_in_the_copy,
)
class PikaCopiesNoSequences(SqliteEngine):
    """Begins, in a backup, with the offset behind the greatest that is stored, though deleted events had greater ones."""

    async def backup(self, target: Path, progress: Progress = unwatched) -> list[Path]:
        paths = await super().backup(target, progress)

        def forget() -> None:
            with closing(sqlite3.connect(paths[0])) as db, db:
                db.execute("DELETE FROM sqlite_sequence")

        await asyncio.to_thread(forget)
        return paths


# --- metrics, cancellation --------------------------------------------------------------------------------------------


async def _counts_of_a_conflict(store: Any) -> object:
    await store.save_info("a", samples.info("a"))
    try:
        await store.create_agent("a", samples.info("a"))
    except ConflictError:
        operations = (await store.get_metrics()).operations
        return operations.saves, operations.errors
    return None


@fault(
    "OPS-3",
    source="a dashboard's rate of errors: answers from 500 on are errors, and 409 Conflict is none",
    witness=seen(_counts_of_a_conflict),
)
class PikaCountsConflictsAsSaves(EngineStore):
    """Counts a write that was refused as a conflict as a successful one, and not as an error."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        metrics: Any = self._context.call_metrics
        plain = metrics.enter

        def enter(method: Any, seconds: float, error: Any = None, observed: Any = None) -> None:
            plain(method, seconds, error, observed)
            if isinstance(error, ConflictError):
                metrics._counts["errors"] -= 1
                metrics.succeeded(method, seconds)

        metrics.enter = enter


async def _issues(store: Any) -> object:
    uses = [ToolUseBlock(f"c{i}", "search", {}) for i in range(3)]
    await store.save_messages("a", [Message("assistant", [use]) for use in uses] + talk("never mind"))
    found = [issue.code async for issue in store.iter_consistency()]
    return found, [issue.code for issue in (await store.check_consistency()).issues]


@fault(
    "OPS-2",
    source="reports that group what they list by a fingerprint, as Sentry does: one issue for each code and place",
    witness=seen(_issues),
)
class PikaGroupsIssues(Wrapper):
    """Reports by `check_consistency` the first issue alone of several that have one code and one agent."""

    __slots__ = ()

    async def check_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        report = await self.inner.check_consistency(agent_id, progress=progress)
        first: dict[tuple[str, str], Any] = {}
        for issue in report.issues:
            first.setdefault((issue.code, issue.agent_id), issue)
        return replace(report, issues=tuple(first.values()))


async def _leaves_an_append(store: Any) -> object:
    call = asyncio.ensure_future(store.append_messages("a", talk("x")))
    for _ in range(3):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    numbers = []
    for pause in (0.0, 0.2):
        await asyncio.sleep(pause)
        numbers.append(len(await store.load_messages("a")))
    return numbers[0] == numbers[1]


@fault(
    "OPS-9",
    source="asyncio.shield around a write that waits for its group, as MySQL's binlog_group_commit_sync_delay does",
    witness=seen(_leaves_an_append),
)
class PikaShieldsAppends(Wrapper):
    """Writes an append whose caller was cancelled a moment later, and does not make the next load wait for it."""

    __slots__ = ("writing",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.writing: set[asyncio.Task[None]] = set()

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        async def grouped() -> None:
            await asyncio.sleep(0.01)
            await self.inner.append_messages(agent_id, messages, fence=fence)

        task = asyncio.create_task(grouped())
        self.writing.add(task)
        task.add_done_callback(self.written)
        await asyncio.shield(task)

    def written(self, task: asyncio.Task[None]) -> None:
        self.writing.discard(task)
        if not task.cancelled():
            task.exception()

    async def close(self) -> None:
        if self.writing:
            await asyncio.wait(self.writing)
        await self.inner.close()


# --- tenants ----------------------------------------------------------------------------------------------------------


async def _two_tenants_at_once(store: Any) -> object:
    tenants = [store.scoped("acme"), store.scoped("bolt")]
    for tenant, template in zip(tenants, ("sales", "legal"), strict=True):
        await tenant.save_info("a", samples.info("a", template_id=template))
    found = await asyncio.gather(*(tenant.load_info("a") for tenant in tenants))
    return [info.template_id for info in found]


class _OneFlight(Wrapper):
    __slots__ = ("flights",)

    def __init__(self, inner: Any, flights: dict[str, asyncio.Future[Any]]) -> None:
        super().__init__(inner)
        self.flights = flights

    async def load_info(self, agent_id: str) -> Any:
        if type(agent_id) is not str:
            return await self.inner.load_info(agent_id)
        flight = self.flights.get(agent_id)
        if flight is None or flight.get_loop() is not asyncio.get_running_loop():
            flight = self.flights[agent_id] = asyncio.ensure_future(self.inner.load_info(agent_id))
            flight.add_done_callback(lambda _: self.flights.pop(agent_id, None))
        return await asyncio.shield(flight)


@fault(
    "SCOPE-1",
    source="a key of coalescing without the tenant, next to a cache whose keys have one (tilegroxy 942)",
    witness=seen(_two_tenants_at_once),
)
class PikaSharesAFlight(Wrapper):
    """Gives a tenant the info of another tenant's agent of the same id when both load it at the same time."""

    __slots__ = ("flights",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.flights: dict[str, asyncio.Future[Any]] = {}

    def scoped(self, tenant: str) -> Any:
        return _OneFlight(self.inner.scoped(tenant), self.flights)
