"""Stores by someone who comes from relational databases, ORMs, connection pools, caches and web services."""

from __future__ import annotations

import asyncio
import copy
import inspect
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, ClassVar, Final
from urllib.parse import unquote

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import CommittingLayer, MemoryLayer, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.authoring.matching import page
from kode_core.batch import Applied, DocKind, DocWrite, ListKind
from kode_core.codec import decode, encode
from kode_core.errors import KodeError
from kode_core.jsonvalue import encode_json
from kode_core.layers import Layer
from kode_core.model import (
    AgentEvent,
    AgentRecords,
    Document,
    MediaCacheRecord,
    Message,
    PutDocument,
    TodoItem,
    TodoSnapshot,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
)
from kode_core.model.documents import StoredDocument
from kode_core.store import EngineStore
from kode_core.store.kinds import TODOS
from kode_core.store.steps import checked_progress

ALL = 10**9


def space_of(engine: Any) -> Any:
    """The contents that all instances share."""
    while not hasattr(engine, "_space"):
        engine = engine.inner
    return engine._space


def shared(store: Any, name: str) -> dict[Any, Any]:
    """A table that all instances of the store share, beside its contents."""
    found: dict[Any, Any] = vars(space_of(store._context._bare)).setdefault(name, {})
    return found


class Layered(EngineStore):
    """A store with a layer around its engine."""

    layer: ClassVar[type[Layer]] = Layer

    def __init__(self, opener: Any, **options: Any) -> None:
        async def layered() -> Any:
            return self.layer(await opener())

        super().__init__(layered, **options)


# --- values -----------------------------------------------------------------------------------------------------------


@fault(
    "VAL-1",
    "DOC-1",
    source="SQLAlchemy and Django compare the new value of an attribute with == and leave it alone when nothing changed",
    witness=seen(
        lambda s: _put(s, "a", "c", "k", {"n": 1}),
        lambda s: _put(s, "a", "c", "k", {"n": True}),
        lambda s: _value(s, "a", "c", "k"),
        lambda s: _put(s, "a", "c", "k", {"n": 2.0}),
        lambda s: _value(s, "a", "c", "k"),
    ),
)
class OspreyComparesDocumentsAsTheOrm(EngineStore):
    """Keeps the stored value of a document when the new one is equal in Python, as `1`, `1.0` and `True` are."""

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **rest: Any) -> str:
        try:
            encode_json(value, "value")
            docs = await self._context.engine.docs(agent_id, DocKind.DOCUMENTS, f"{collection}/{key}")
            old = decode(StoredDocument, docs[0].body, "document").value if docs else None
            if docs and old == value:
                value = old
        except (KodeError, TypeError, ValueError, AssertionError, RecursionError):
            pass
        return await super().put_document(agent_id, collection, key, value, **rest)


@fault(
    "VAL-5",
    "LIFE-6",
    source="int(moment.timestamp() * 1000), as if the parameter of a statement were in whole milliseconds",
    witness=seen(
        lambda s: s.append_events("a", samples.events(4)),
        lambda s: s.prune("a", events_before=_moment(samples.T0 + 1, 500)),
        lambda s: the("offset", _all(s.read_events("a"))),
    ),
)
class OspreyPrunesByWholeMilliseconds(Wrapper):
    """Drops the microseconds of a `datetime` that is given to `prune`, and keeps an event that is older than it."""

    __slots__ = ()

    async def prune(self, agent_id: str, *, events_before: Any = None, **rest: Any) -> Any:
        if type(events_before) is datetime:
            events_before = events_before.replace(microsecond=events_before.microsecond // 1000 * 1000)
        return await self.inner.prune(agent_id, events_before=events_before, **rest)


# --- ids --------------------------------------------------------------------------------------------------------------


@fault(
    "ID-2",
    "ID-1",
    source="unquote() of a path that WSGI and ASGI have decoded already: %252F becomes %2F, and then a slash",
    witness=seen(
        lambda s: s.save_snapshot("team/ann", samples.snapshot("sfp-1")),
        lambda s: s.save_snapshot("team%2Fann", samples.snapshot("sfp-2")),
        lambda s: the("id", s.list_snapshots("team/ann")),
        lambda s: the("id", s.list_snapshots("team%2Fann")),
    ),
)
class OspreyDecodesIdsTwice(Wrapper):
    """Lists, for an agent whose id has the form of an escaped text, the snapshots of the agent of the decoded id."""

    __slots__ = ()

    async def list_snapshots(self, agent_id: str) -> Any:
        if type(agent_id) is str and "%" in agent_id:
            decoded = unquote(agent_id)
            agent_id = agent_id if not decoded or "\0" in decoded or "\ufffd" in decoded else decoded
        return await self.inner.list_snapshots(agent_id)


# --- messages ---------------------------------------------------------------------------------------------------------


@fault(
    "MSG-11",
    source="PostgreSQL: DELETE … RETURNING gives rows as they lie in the heap, and an UPDATE puts its row at the end",
    witness=seen(
        lambda s: s.save_messages("a", talk("0", "1", "2", "3")),
        lambda s: s.replace_message("a", 2, samples.message(text="two")),
        lambda s: the("text", s.pop_messages("a", 3)),
    ),
)
class OspreyReturnsRowsAsTheyLie(EngineStore):
    """Returns popped messages in the order of the list, except that those which were replaced before come last."""

    async def replace_message(self, agent_id: str, position: int, message: Any, **rest: Any) -> None:
        await super().replace_message(agent_id, position, message, **rest)
        moved = shared(self, "moved").setdefault(agent_id, {})
        moved.pop(position, None)
        moved[position] = None

    async def pop_messages(self, agent_id: str, count: int = 1, *, fence: Any = None) -> Any:
        popped = await super().pop_messages(agent_id, count, fence=fence)
        moved = shared(self, "moved").get(agent_id)
        if not moved:
            return popped
        summary = await self._context.engine.summary(agent_id)
        first = 0 if summary is None else summary.messages.count
        late = {position - first: None for position in moved if position >= first}
        for at in late:
            del moved[at + first]
        late = {at: None for at in late if at < len(popped)}
        return [message for i, message in enumerate(popped) if i not in late] + [popped[i] for i in late]

    async def truncate_messages(self, agent_id: str, length: int, **rest: Any) -> int:
        removed = await super().truncate_messages(agent_id, length, **rest)
        moved = shared(self, "moved").get(agent_id, {})
        for position in [position for position in moved if position >= length]:
            del moved[position]
        return removed

    async def save_messages(self, agent_id: str, messages: Any, **rest: Any) -> None:
        await super().save_messages(agent_id, messages, **rest)
        shared(self, "moved").pop(agent_id, None)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        shared(self, "moved").pop(agent_id, None)


@fault(
    "MSG-10",
    source="ORDER BY position DESC LIMIT 100 OFFSET n: a row that is inserted between two pages moves all of them by one",
    witness=lambda ctx: _backwards_while_appending(ctx),
)
class OspreyReadsBackwardsByOffset(EngineStore):
    """Yields messages twice from `read_messages` with `reverse` when others are appended between its pages."""

    def read_messages(
        self, agent_id: str, *, after: Any = None, before: Any = None, reverse: Any = False
    ) -> AsyncIterator[Any]:
        found = super().read_messages(agent_id, after=after, before=before, reverse=reverse)
        return self._pages(agent_id, after, found) if reverse is True and before is None else found

    async def _pages(self, agent_id: str, after: Any, found: Any) -> AsyncIterator[Any]:
        offset = 0
        while True:
            got = 0
            async with aclosing(found) as messages:
                async for message in messages:
                    got += 1
                    yield message
                    if got == 100:
                        break
            offset += got
            summary = await self._context.engine.summary(agent_id) if got == 100 else None
            before = 0 if summary is None else summary.messages.count - offset
            if before <= 0:
                return
            found = super().read_messages(agent_id, after=after, before=before, reverse=True)


# --- tool calls and turns ---------------------------------------------------------------------------------------------


@fault(
    "TC-3",
    "VAL-3",
    source="ON CONFLICT (id) DO UPDATE SET error = COALESCE(excluded.error, error), so that no update loses it",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(0, state="FAILED", error="timed out")]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(0, state="COMPLETED", error=None)]),
        lambda s: the("error", s.load_tool_call_records("a")),
    ),
)
class OspreyCoalescesErrors(EngineStore):
    """Keeps the error of a tool call when an upsert replaces it by one without an error, as after a retry."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        records = await self._coalesced(agent_id, records)
        await super().upsert_tool_call_records(agent_id, records, fence=fence)

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Any = (), **rest: Any) -> Any:
        upsert_tool_calls = await self._coalesced(agent_id, upsert_tool_calls)
        return await super().save_turn(agent_id, upsert_tool_calls=upsert_tool_calls, **rest)

    async def _coalesced(self, agent_id: str, records: Any) -> Any:
        if type(agent_id) is not str or not isinstance(records, (list, tuple)):
            return records
        if any(type(one) is not ToolCallRecord for one in records):
            return records
        failed = shared(self, "failed").setdefault(agent_id, set())
        again = [one.id for one in records if one.error is None and type(one.id) is str and one.id in failed]
        failed |= {one.id for one in records if type(one.error) is str and type(one.id) is str}
        if not again:
            return records
        errors = {one.id: one.error for one in await self._reader.load_list(agent_id, ListKind.TOOL_CALLS)}
        return [one.replace(error=errors.get(one.id)) if one.error is None else one for one in records]


@fault(
    "MSG-9",
    source="ORDER BY created_at DESC LIMIT n for the last rows, and reversed in the application",
    witness=seen(
        lambda s: s.save_tool_call_records(
            "a", [samples.tool_call(i, created_at=samples.T0 + t) for i, t in enumerate((5, 9, 1, 7))]
        ),
        lambda s: the("id", s.load_tool_call_records("a", last=2)),
    ),
)
class OspreyTakesTheNewestCalls(EngineStore):
    """Gives, for the `last` tool call records, those that were created last, in place of the last of the list."""

    async def load_tool_call_records(
        self, agent_id: str, *, last: Any = None, after: Any = None, before: Any = None, **rest: Any
    ) -> Any:
        span = (agent_id, last, after, before)
        places = self._newest(*span) if type(last) is int and not rest else None
        if places is None:
            found = super().load_tool_call_records
            return await found(agent_id, last=last, after=after, before=before, **rest)
        load = super().load_tool_call_records
        found_calls: list[Any] = []
        for place in places:
            found_calls += await load(agent_id, after=place - 1 if place else None, before=place + 1)
        return found_calls

    def _newest(self, agent_id: str, last: int, after: Any, before: Any) -> list[int] | None:
        """The positions of the newest calls, unless they are the last ones."""
        if last < 1 or any(type(one) not in (int, type(None)) for one in (after, before)) or self._context.is_closed:
            return None
        if type(agent_id) is not str or any(one is not None and one < 0 for one in (after, before)):
            return None
        rows = space_of(self._context._bare).state(agent_id).lists[ListKind.TOOL_CALLS].rows
        start = 0 if after is None else after + 1
        stop = len(rows) if before is None else min(before, len(rows))
        places = sorted(range(start, stop), key=lambda i: (rows[i].created_at, i))[-last:]
        return None if places == list(range(stop - len(places), stop)) else places


@fault(
    "TURN-1",
    source="COPY for many rows and INSERT for few: the bulk goes through a connection of its own, and commits by itself",
    witness=seen(
        lambda s: _put(s, "a", "c", "k", 1),
        lambda s: s.save_turn(
            "a",
            append=samples.messages(300),
            documents=[PutDocument("c", "k", 2, expect="0")],
            todos=samples.todos("t"),
        ),
        lambda s: _count(s.load_messages("a")),
        lambda s: s.load_todos("a"),
    ),
)
class OspreyCopiesLargeTurns(Wrapper):
    """Stores the messages of a turn that appends more than 250 of them although the rest of the turn is refused."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, append: Any = (), **rest: Any) -> Any:
        others = {name for name, given in rest.items() if given is not None and name != "fence"}
        if not isinstance(append, (list, tuple)) or len(append) <= 250 or not others or others & {"expect", "messages"}:
            return await self.inner.save_turn(agent_id, append=append, **rest)
        await self.inner.append_messages(agent_id, append, fence=rest.get("fence"))
        return await self.inner.save_turn(agent_id, **rest)


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    "LIFE-6",
    source="a table of idempotency keys beside the log, which the job that prunes the log does not know",
    witness=seen(
        lambda s: s.append_events("a", samples.events(3)),
        lambda s: s.prune("a", events_before_offset=ALL),
        lambda s: s.append_event("a", samples.event(0)),
        lambda s: the("offset", _all(s.read_events("a"))),
    ),
)
class OspreyRemembersPrunedEvents(CommittingLayer):
    """Stores nothing, and returns the old offset, when an event is appended that was pruned."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        table: dict[Any, Any] = vars(self.space).setdefault("seen_events", {})
        log, seen_here = self.space.state(batch.agent_id).log, table.setdefault(batch.agent_id, {})
        keys = [(event.seq, event.body.digest) for event in batch.events]
        known = {i: seen_here[key] for i, key in enumerate(keys) if key in seen_here and log.find(*key) is None}
        if batch.delete or not known:
            outcome = commit(batch)
        else:
            left = tuple(event for i, event in enumerate(batch.events) if i not in known)
            outcome = commit(replace(batch, events=left))
        if not isinstance(outcome, Applied):
            return outcome
        if batch.delete:
            known, seen_here = {}, table.setdefault(batch.agent_id, {})
            seen_here.clear()
        fresh = iter(outcome.offsets)
        offsets = tuple(known[i] if i in known else next(fresh) for i in range(len(keys)))
        seen_here.update(zip(keys, offsets, strict=True))
        return replace(outcome, offsets=offsets)


@fault(
    "EVT-8",
    source="Hibernate's pooled optimizer: each node takes fifty numbers of the sequence at a time, and uses them up",
    witness=lambda ctx: _emits_in_turns(ctx),
)
class OspreyTakesSeqsInBlocks(EngineStore):
    """Numbers emitted events from a block of fifty that each instance takes for itself, also under the agent's lock."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        emitter: Any = self._emitter
        self._blocks: dict[str, tuple[int, int]] = {}
        numbered, context = emitter._numbered, self._context

        async def next_seq(agent_id: str, number: Any, fence: Any) -> int:
            at, end = self._blocks.get(agent_id, (0, 0))
            if at >= end:
                last = await context.engine.last_event(agent_id)
                at = 0 if last is None else max(0, (last.seq // 50 + 1) * 50)
                self._blocks[agent_id] = at, at + 50
            return at

        async def numbering(agent_id: str, events: Any, *rest: Any) -> Any:
            entries = await numbered(agent_id, events, *rest)
            if entries:
                self._blocks[agent_id] = entries[-1].bookmark.seq + 1, self._blocks[agent_id][1]
            return entries

        emitter._next_seq, emitter._numbered = next_seq, numbering

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self._blocks.pop(agent_id, None)


# --- todos, history, media, snapshots ---------------------------------------------------------------------------------


@fault(
    "TODO-1",
    "VAL-1",
    source="a relationship of an ORM without order_by: items are rows with a key, and the unit of work updates them there",
    witness=seen(
        lambda s: s.save_todos("a", _todos("x", "y", "z")),
        lambda s: s.save_todos("a", _todos("z", "x", "w")),
        lambda s: _titles(s.load_todos("a")),
    ),
)
class OspreyForgetsTheOrderOfTodos(EngineStore):
    """Leaves todos that were in the list before in their old order when the list is saved in another one."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await super().save_todos(agent_id, await self._merged(agent_id, snapshot), fence=fence)

    async def save_turn(self, agent_id: str, *, todos: Any = None, **rest: Any) -> Any:
        return await super().save_turn(agent_id, todos=await self._merged(agent_id, todos), **rest)

    async def _merged(self, agent_id: str, snapshot: Any) -> Any:
        if type(snapshot) is not TodoSnapshot or not isinstance(snapshot.todos, tuple):
            return snapshot
        if any(type(item) is not TodoItem for item in snapshot.todos):
            return snapshot
        try:
            old = await self._reader.load_doc(agent_id, TODOS)
            items = {item.id: item for item in snapshot.todos}
            if old is None or len(items) < len(snapshot.todos):
                return snapshot
            rows = [items.pop(item.id) for item in old.todos if item.id in items]
            return snapshot.replace(todos=(*rows, *items.values()))
        except (KodeError, TypeError, AssertionError):
            return snapshot


@fault(
    "HIS-1",
    source="on_conflict_do_update(set_={'body': …}): the column of the timestamp is missing in the list of columns",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w1", samples.T0)),
        lambda s: s.save_history_window("a", samples.window("w2", samples.T0 + 1)),
        lambda s: s.save_history_window("a", samples.window("w1", samples.T0 + 2)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class OspreyUpdatesWindowsWithoutTheirTime(CommittingLayer):
    """Orders a history window that replaced another one by the timestamp of the first."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        docs = {} if batch.delete else self.space.state(batch.agent_id).docs

        def updated(write: DocWrite) -> DocWrite:
            old = docs.get((write.kind, write.key))
            if write.kind != DocKind.WINDOWS or write.doc is None or old is None:
                return write
            return replace(write, doc=replace(write.doc, time=old.time))

        return commit(replace(batch, docs=tuple(map(updated, batch.docs))))


@fault(
    "MED-1",
    source="SELECT DISTINCT, which an ORM adds to a query with a join, or UNION where UNION ALL was meant",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("x"), samples.media("y"), samples.media("x")]),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class OspreySelectsDistinctMedia(Wrapper):
    """Gives a record of the media cache once when the list has it twice."""

    __slots__ = ()

    async def load_media_cache(self, agent_id: str) -> Any:
        records = await self.inner.load_media_cache(agent_id)
        return list({encode(MediaCacheRecord, record, "media").text: record for record in records}.values())


@fault(
    "LIFE-6",
    "SNAP-1",
    source="a cache of Redis before the table: save and delete invalidate it, and prune came a year later",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("sfp-1", samples.T0)),
        lambda s: s.save_snapshot("a", samples.snapshot("sfp-2", samples.T0 + 1)),
        lambda s: s.load_snapshot("a", "sfp-1"),
        lambda s: s.prune("a", keep_snapshots=1),
        lambda s: s.load_snapshot("a", "sfp-1"),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class OspreyServesPrunedSnapshots(EngineStore):
    """Goes on to load a snapshot that was pruned, if it was loaded before."""

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        found, cache = await super().load_snapshot(agent_id, snapshot_id), shared(self, "snapshot_cache")
        if found is None:
            return copy.deepcopy(cache.get((agent_id, snapshot_id)))
        cache[agent_id, snapshot_id] = copy.deepcopy(found)
        return found

    def _drop(self, agent_id: Any, snapshot_id: Any = None) -> None:
        cache = shared(self, "snapshot_cache")
        for key in [key for key in cache if key[0] == agent_id and snapshot_id in (None, key[1])]:
            del cache[key]

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await super().save_snapshot(agent_id, snapshot, fence=fence)
        self._drop(agent_id, snapshot.id)

    async def delete_snapshot(self, agent_id: str, snapshot_id: str, *, fence: Any = None) -> None:
        await super().delete_snapshot(agent_id, snapshot_id, fence=fence)
        self._drop(agent_id, snapshot_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self._drop(agent_id)

    async def delete_many(self, **filters: Any) -> int:
        try:
            return await super().delete_many(**filters)
        finally:
            shared(self, "snapshot_cache").clear()


# --- info and sessions ------------------------------------------------------------------------------------------------


@fault(
    "INFO-5",
    "MSG-6",
    source="UPDATE … RETURNING body: the number of messages is no part of the body, load_info takes it from a subquery",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.append_messages("a", talk("x", "y")),
        lambda s: s.update_info("a", {"plan": "silver"}),
        lambda s: s.load_info("a"),
    ),
)
class OspreyReturnsTheBodyOfTheInfo(Wrapper):
    """Returns, from `update_info`, an info that has no messages."""

    __slots__ = ()

    async def update_info(self, agent_id: str, metadata: Any, **rest: Any) -> Any:
        return (await self.inner.update_info(agent_id, metadata, **rest)).replace(message_count=0)


class _Counted(Layer):
    async def commit(self, batches: Sequence[Any]) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete and isinstance(outcome, Applied):
                self.drift.pop(batch.agent_id, None)
        return outcomes

    @property
    def drift(self) -> dict[str, int]:
        found: dict[str, int] = vars(space_of(self)).setdefault("drift", {})
        return found

    async def find_sessions(self, query: Any) -> Any:
        if not self.drift:
            return await super().find_sessions(query)
        found = await super().find_sessions(replace(query, limit=ALL, offset=0, after=None))
        rows = [replace(row, message_count=row.message_count + self.drift.get(row.agent_id, 0)) for row in found]
        return page((((getattr(row, query.sort_by), row.agent_id), row) for row in rows), query)


@fault(
    "MSG-6",
    source="Rails: a counter_cache is kept by callbacks, and delete_all runs none",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.append_messages("a", samples.messages(5)),
        lambda s: s.truncate_messages("a", 2),
        lambda s: the("message_count", s.query_sessions()),
        lambda s: s.load_info("a"),
    ),
)
class OspreyTruncatesWithoutCallbacks(Layered):
    """Counts, in sessions that a query finds, the messages that `truncate_messages` removed."""

    layer = _Counted

    async def truncate_messages(self, agent_id: str, length: int, **rest: Any) -> int:
        removed = await super().truncate_messages(agent_id, length, **rest)
        if removed:
            drift = shared(self, "drift")
            drift[agent_id] = drift.get(agent_id, 0) + removed
        return removed


@fault(
    "VER-2",
    "VER-1",
    source="version_id_col of SQLAlchemy, @Version of JPA: each table has a version of its own, and an UPDATE compares it",
    witness=lambda ctx: _edits_what_changed(ctx),
)
class OspreyVersionsEachTable(EngineStore):
    """Accepts a save of messages that demands an old version when only tool calls or info changed since."""

    async def load_version(self, agent_id: str) -> str:
        version = await super().load_version(agent_id)
        summary = await self._context.engine.summary(agent_id)
        if summary is not None and await self._sessions.version(agent_id) == version:
            shared(self, "row_versions")[agent_id, version] = summary.messages.version
        return version

    async def save_messages(self, agent_id: str, messages: Any, *, expect: Any = None, fence: Any = None) -> None:
        known = None
        if type(expect) is str and type(agent_id) is str:
            known = shared(self, "row_versions").get((agent_id, expect))
        if known is not None:
            summary = await self._context.engine.summary(agent_id)
            if summary is not None and summary.messages.version == known:
                expect = await self._sessions.version(agent_id)
        await super().save_messages(agent_id, messages, expect=expect, fence=fence)


# --- lifecycle --------------------------------------------------------------------------------------------------------


def _like(prefix: str) -> re.Pattern[str]:
    """What LIKE makes of a prefix of which only the wildcards were escaped."""
    pattern = re.sub(r"[%_]", r"\\\g<0>", prefix) + "%"
    parts, i = [], 0
    while i < len(pattern):
        if pattern[i] == "\\" and i + 1 < len(pattern):
            i += 1
            parts.append(re.escape(pattern[i]))
        else:
            parts.append({"%": ".*", "_": "."}.get(pattern[i], re.escape(pattern[i])))
        i += 1
    return re.compile("".join(parts), re.DOTALL)


@fault(
    "LIFE-2",
    source="LIKE in PostgreSQL and MySQL: the backslash escapes by default, so it has to be escaped as % and _ are",
    witness=seen(
        lambda s: s.save_info("corp\\ann", samples.info("corp\\ann")),
        lambda s: s.save_info("corp%", samples.info("corp%")),
        lambda s: s.list("corp\\"),
        lambda s: s.list("corp\\a"),
        lambda s: s.list("corp%"),
    ),
)
class OspreyDoesNotEscapeTheEscape(Wrapper):
    """Takes a backslash in the prefix of `list` for the mark that the next character is literal."""

    __slots__ = ()

    async def list(self, prefix: Any = "", **rest: Any) -> Any:
        if type(prefix) is not str or "\\" not in prefix:
            return await self.inner.list(prefix, **rest)
        begin = _like(prefix)
        return [agent_id for agent_id in await self.inner.list("", **rest) if begin.fullmatch(agent_id)]


@fault(
    "LIFE-5",
    source="Django's Paginator over a queryset that shrinks: page 2 of what is left after page 1 was deleted",
    witness=seen(
        lambda s: _saves_agents(s, 230),
        lambda s: s.delete_many(template_id="assistant"),
        lambda s: s.count_sessions(),
    ),
)
class OspreyDeletesByOffset(EngineStore):
    """Skips a hundred sessions for each hundred that `delete_many` deletes."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        offset = 0

        async def find(given: Any) -> Any:
            nonlocal offset
            if given["cursor"] is None:
                offset = 0
            found = await self._search.sessions({**filters, "limit": 100, "offset": offset})
            offset += 100
            found.next_cursor = "more" if len(found) == 100 else None
            return found

        if filters.keys() & {"limit", "offset", "cursor", "order", "sort_by"}:
            return await super().delete_many(progress=progress, **filters)

        async def delete() -> int:
            return await self._deletions.delete_many(find, filters, checked_progress(progress))

        return await self._run("delete_many", delete)


@fault(
    "LIFE-8",
    source="Django's auto_now=True: save() sets the field to the present time, whatever value it was given",
    witness=lambda ctx: _imports_documents(ctx),
)
class OspreyStampsImportedDocuments(EngineStore):
    """Gives the documents of an imported agent the time of the import."""

    async def import_agent(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        documents = records.documents if type(records) is AgentRecords else None
        if isinstance(documents, tuple) and all(type(one) is Document for one in documents):
            now = self._context.now()
            records = records.replace(documents=[replace(one, updated_at=now) for one in documents])
        await super().import_agent(agent_id, records, fence=fence)


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-3",
    source="Firestore's `in` takes 30 values and Oracle's 1,000: the list is cut into chunks, and the results are joined",
    witness=seen(
        lambda s: _saves_agents(s, 40),
        lambda s: the("agent_id", s.query_sessions(agent_id=[f"a{i:03}" for i in range(40)])),
    ),
)
class OspreyJoinsChunks(Wrapper):
    """Gives the sessions of more than 30 agents not in one order but thirty agents after thirty."""

    __slots__ = ()

    async def query_sessions(self, **filters: Any) -> Any:
        found, given = await self.inner.query_sessions(**filters), filters.get("agent_id")
        if isinstance(given, (list, tuple, set, frozenset)) and len(found) > 1 and found.next_cursor is None:
            ids = sorted(set(given))
            if len(ids) > 30 and filters.get("cursor") is None:
                chunk = {agent_id: i // 30 for i, agent_id in enumerate(ids)}
                found[:] = sorted(found, key=lambda session: chunk[session.agent_id])
        return found


@fault(
    "QRY-8",
    source="request coalescing, as singleflight in Go: a read that is under way answers those that begin meanwhile",
    witness=lambda ctx: _reads_its_own_write(ctx),
)
class OspreyCoalescesReads(EngineStore):
    """Gives an info that was read before a save to a load that began after it, if an earlier load is not done yet."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._flights: dict[str, asyncio.Future[Any]] = {}

    async def load_info(self, agent_id: str) -> Any:
        found, flight = await super().load_info(agent_id), self._flights.get(agent_id)
        if flight is not None:
            early = await asyncio.shield(flight)
            return copy.deepcopy(found if early is None else early)
        flight = self._flights[agent_id] = asyncio.get_running_loop().create_future()
        try:
            await asyncio.sleep(0.005)  # the answer is on its way
            flight.set_result(found)
            return copy.deepcopy(found)
        finally:
            if not flight.done():
                flight.set_result(None)
            del self._flights[agent_id]


# --- documents --------------------------------------------------------------------------------------------------------


@fault(
    "DOC-8",
    source="tags as rows: WHERE name IN (…) AND value IN (…) GROUP BY document HAVING count(*) = 2",
    witness=seen(
        lambda s: _put(s, "a", "mail", "1", "x", tags={"from": "ann", "to": "bob"}),
        lambda s: _put(s, "a", "mail", "2", "y", tags={"from": "bob", "to": "ann"}),
        lambda s: the("key", s.query_documents("mail", {"from": "ann", "to": "bob"})),
    ),
)
class OspreyCrossesTags(Wrapper):
    """Finds documents by two tags also if one of them has the value that was asked for of the other."""

    __slots__ = ()

    async def query_documents(self, collection: str, tags: Any, **rest: Any) -> Any:
        try:
            given = [{value} if type(value) is str else set(value) for value in tags.values()]
            values = sorted(set().union(*given))
            if len(given) > 1 and all(given) and len(values) ** len(given) <= 100:
                tags = dict.fromkeys(tags, values)
        except (AttributeError, TypeError):
            pass
        return await self.inner.query_documents(collection, tags, **rest)


@fault(
    "DOC-4",
    source=r"Firebase: endAt(prefix + '\uf8ff') for “begins with”, which is far up, and below every emoji",
    witness=seen(
        lambda s: _put(s, "a", "c", "tag/plain", 1),
        lambda s: _put(s, "a", "c", "tag/\U0001f389", 2),
        lambda s: s.list_document_keys("a", "c"),
        lambda s: s.list_document_keys("a", "c", prefix="tag/"),
        lambda s: the("key", _all(s.iter_documents("a", "c", prefix="tag/"))),
    ),
)
class OspreyEndsPrefixesInThePrivateArea(Wrapper):
    """Leaves documents out whose key goes on after the prefix with an emoji."""

    __slots__ = ()

    @staticmethod
    def _ended(span: dict[str, Any]) -> dict[str, Any]:
        prefix, stop = span.get("prefix", ""), span.get("stop")
        if type(prefix) is not str or not prefix or len(prefix) > 90 or type(stop) not in (str, type(None)):
            return span
        end = f"{prefix}\uf8ff"
        return {**span, "stop": end if stop is None else min(stop, end)}

    async def list_documents(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.inner.list_documents(agent_id, collection, **self._ended(span))

    async def list_document_keys(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.inner.list_document_keys(agent_id, collection, **self._ended(span))

    def iter_documents(self, agent_id: str, collection: str, **span: Any) -> Any:
        return self.inner.iter_documents(agent_id, collection, **self._ended(span))


_FORKS: Final[ContextVar[str]] = ContextVar("FORKS", default="")
"""What kind of fork goes on: ``cut``, ``documents`` or both."""


class _ForksWithoutTags(Layer):
    async def commit(self, batches: Sequence[Any]) -> Any:
        def untagged(write: DocWrite) -> DocWrite:
            return write if write.doc is None else replace(write, doc=replace(write.doc, terms=()))

        if "documents" in _FORKS.get():
            batches = [replace(batch, docs=tuple(map(untagged, batch.docs))) for batch in batches]
        return await super().commit(batches)


@fault(
    "DOC-7",
    "DOC-5",
    source="INSERT … SELECT of the documents of a fork, without the table of tags that refers to them",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: _put(s, "a", "c", "k", 1, tags={"t": "x"}),
        lambda s: s.fork("a", "b", documents=True),
        lambda s: the("agent_id", s.query_documents("c", {"t": "x"})),
        lambda s: _value(s, "b", "c", "k"),
    ),
)
class OspreyForgetsTheTagsOfForks(Layered):
    """Does not find the documents of a fork by the tags that they have."""

    layer = _ForksWithoutTags

    async def fork(self, agent_id: str, new_id: Any = None, **rest: Any) -> str:
        mark = _FORKS.set("documents" if rest.get("documents") is True else "")
        try:
            return await super().fork(agent_id, new_id, **rest)
        finally:
            _FORKS.reset(mark)


# --- forks ------------------------------------------------------------------------------------------------------------


class _ForksWithDistinctCalls(Layer):
    async def commit(self, batches: Sequence[Any]) -> Any:
        def distinct(batch: Any) -> Any:
            if batch.tool_calls is None:
                return batch
            rows = {row.index.call_id: row for row in batch.tool_calls.append}
            return replace(batch, tool_calls=replace(batch.tool_calls, append=tuple(rows.values())))

        return await super().commit([distinct(batch) for batch in batches] if "cut" in _FORKS.get() else batches)


@fault(
    "FORK-4",
    "TC-2",
    source="SELECT DISTINCT ON (call_id) … WHERE call_id = ANY(used): a join that finds each call once",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_messages("a", [*_asks("call_0"), *_asks("call_0"), *_asks("call_1")]),
        lambda s: s.save_tool_call_records(
            "a", [samples.tool_call(0), samples.tool_call(0, result="again"), samples.tool_call(1)]
        ),
        lambda s: s.fork("a", "b", length=4),
        lambda s: the("result", s.load_tool_call_records("b")),
    ),
)
class OspreyForksOneCallForEachId(Layered):
    """Takes, into a fork of a part of the messages, only one of the tool calls that have the same id."""

    layer = _ForksWithDistinctCalls

    async def fork(self, agent_id: str, new_id: Any = None, **rest: Any) -> str:
        is_cut = rest.get("length") is not None or rest.get("snapshot_id") is not None
        mark = _FORKS.set("cut" if is_cut else "")
        try:
            return await super().fork(agent_id, new_id, **rest)
        finally:
            _FORKS.reset(mark)


# --- operations -------------------------------------------------------------------------------------------------------


class _WaitsInPool:
    """A lock whose callers hold a connection while they wait."""

    def __init__(self, pool: asyncio.Semaphore, lock: Any) -> None:
        self.pool = pool
        self.lock = lock

    async def _taken(self) -> Any:
        async with self.pool:
            return await self.lock

    def __await__(self) -> Any:
        return self._taken().__await__()

    async def __aenter__(self) -> Any:
        async with self.pool:
            return await self.lock.__aenter__()

    async def __aexit__(self, *error: Any) -> Any:
        return await self.lock.__aexit__(*error)


@fault(
    "OPS-13",
    "LOCK-2",
    source="SET lock_timeout; SELECT pg_advisory_lock(…): each caller that waits has one of the ten connections of the pool",
    witness=lambda ctx: _works_while_others_wait(ctx),
)
class OspreyWaitsWithAConnection(Wrapper):
    """Lets every call wait while ten callers wait for the lock of an agent."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.pool = asyncio.Semaphore(10)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        is_quick = name.startswith("_") or name in ("open", "close", "health_check")
        if is_quick or not inspect.iscoroutinefunction(found):
            return found

        async def with_connection(*given: Any, **named: Any) -> Any:
            async with self.pool:
                return await found(*given, **named)

        return with_connection

    def acquire_agent_lock(self, agent_id: str, ttl_ms: Any = 30_000, wait_ms: Any = 0) -> Any:
        lock = self.inner.acquire_agent_lock(agent_id, ttl_ms, wait_ms)
        return _WaitsInPool(self.pool, lock) if wait_ms else lock


# --- locks and tenants ------------------------------------------------------------------------------------------------


@fault(
    "LOCK-3",
    source="Redis: SET … PX when the lock is taken, and EXPIRE, whose time is in whole seconds, when it is renewed",
    witness=lambda ctx: _renews_a_short_lease(ctx),
)
class OspreyRenewsByWholeSeconds(Layer):
    """Renews a lease for its time in whole seconds, so that one of 900 ms ends when it is renewed."""

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        return await super().renew_lease(agent_id, fence, ttl_ms // 1000 * 1000)


@fault(
    "SCOPE-1",
    "ID-2",
    source="the key of the lock is `lock:{agent_id}`, with the id of the request, which has no tenant in it",
    witness=lambda ctx: _locks_in_two_tenants(ctx),
)
class OspreyLocksAcrossTenants(MemoryLayer):
    """Refuses the lock of an agent while another tenant has that of an agent of the same id."""

    @staticmethod
    def local(agent_id: str) -> str:
        tenant, slash, rest = agent_id.partition("/")
        return rest if slash and tenant.startswith("@") else agent_id

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        now, name = time.monotonic(), self.local(agent_id)
        for other, (_, expires) in self.space.leases.items():
            if other != agent_id and self.local(other) == name and expires > now:
                return None
        return await super().acquire_lease(agent_id, owner, ttl_ms)


# --- durability -------------------------------------------------------------------------------------------------------

_DAY_MS = 24 * 3_600_000


@fault(
    "DUR-1",
    "MSG-12",
    source="idempotency keys in Redis with EX 86400, as Stripe removes its keys after 24 hours",
    witness=lambda ctx: _repeats_after_two_days(ctx),
)
class OspreyForgetsKeysAfterADay(EngineStore):
    """Appends a message again when its key is 24 hours old."""

    async def append_messages_once(self, agent_id: str, messages: Any, *, fence: Any = None) -> Any:
        times, now = shared(self, "key_times"), self._context.now()
        keys = list(messages) if isinstance(messages, dict) and type(agent_id) is str else []
        for key in keys:
            if now - times.get((agent_id, key), now) > _DAY_MS:
                del times[agent_id, key]
                name = f"~messages/{key}"
                space_of(self._context._bare).state(agent_id)._apply_doc(DocWrite(DocKind.DOCUMENTS, name, None))
        placed = await super().append_messages_once(agent_id, messages, fence=fence)
        times |= {(agent_id, key): now for key, one in zip(keys, placed, strict=False) if one.is_new}
        return placed


# --- witnesses --------------------------------------------------------------------------------------------------------


async def _all(records: Any) -> list[Any]:
    return [record async for record in records]


async def _count(records: Any) -> int:
    return len(await records)


async def _put(store: Any, *document: Any, **tags: Any) -> None:
    await store.put_document(*document, **tags)


async def _value(store: Any, *place: str) -> str:
    document = await store.load_document(*place)
    return repr((document.value, document.tags))


def _moment(time_ms: int, microseconds: int) -> datetime:
    return datetime.fromtimestamp(time_ms // 1000, UTC).replace(microsecond=time_ms % 1000 * 1000 + microseconds)


def _todos(*titles: str) -> TodoSnapshot:
    items = [TodoItem(id=title, title=title, created_at=samples.T0, updated_at=samples.T0) for title in titles]
    return TodoSnapshot(todos=items, updated_at=samples.T0)


async def _titles(todos: Any) -> list[str]:
    return [item.title for item in (await todos).todos]


def _asks(call_id: str) -> list[Message]:
    return [Message("assistant", [ToolUseBlock(call_id, "search", {})]), _answer(call_id)]


def _answer(call_id: str) -> Message:
    return Message("user", [ToolResultBlock(call_id, "found")])


async def _saves_agents(store: Any, count: int) -> None:
    for i in range(count):
        await store.save_info(f"a{i:03}", samples.info(f"a{i:03}", created_at=samples.T0 + i))


async def _backwards_while_appending(ctx: Context) -> object:
    await ctx.store.append_messages("a", samples.messages(250))
    positions = []
    async for message in ctx.store.read_messages("a", reverse=True):
        positions.append(message.position)
        if len(positions) == 50:
            await ctx.store.append_messages("a", samples.messages(5))
    return len(positions), len(set(positions))


async def _emits_in_turns(ctx: Context) -> object:
    stores, seqs = [ctx.store, await ctx.another()], []
    for i in range(4):
        async with stores[i % 2].acquire_agent_lock("a"):
            seqs.append((await stores[i % 2].emit("a", "step")).bookmark.seq)
            (event,) = await stores[i % 2].emit_many("a", [AgentEvent("monitor", "step", {})])
            seqs.append(event.bookmark.seq)
    return [a < b for a, b in pairwise(seqs)]


async def _edits_what_changed(ctx: Context) -> object:
    store = ctx.store
    await store.save_messages("a", talk("x"))
    version = await store.load_version("a")
    await store.save_tool_call_records("a", [samples.tool_call()])
    try:
        await store.save_messages("a", talk("y"), expect=version)
    except KodeError as exc:
        return type(exc).__name__
    return await the("text", store.load_messages("a"))


async def _imports_documents(ctx: Context) -> object:
    old: Any = await ctx.another(clock=lambda: samples.T0)
    new: Any = await ctx.another(clock=lambda: samples.T0 + 5_000)
    await old.put_document("a", "c", "k", 1)
    await new.import_agent("b", await old.load_agent("a"))
    return (await ctx.store.load_document("b", "c", "k")).updated_at - samples.T0


async def _reads_its_own_write(ctx: Context) -> object:
    store = ctx.store
    await store.save_info("a", samples.info("a", breakpoint="READY"))
    early = asyncio.ensure_future(store.load_info("a"))
    await asyncio.sleep(0.002)
    await store.save_info("a", samples.info("a", breakpoint="PRE_MODEL"))
    late = (await store.load_info("a")).breakpoint  # type: ignore[union-attr]
    await early
    return late


async def _works_while_others_wait(ctx: Context) -> object:
    store = ctx.store
    lease = await store.acquire_agent_lock("a")

    async def wait() -> None:
        async with store.acquire_agent_lock("a", wait_ms=5_000):
            pass

    waiting = [asyncio.ensure_future(wait()) for _ in range(10)]
    await asyncio.sleep(0.05)
    call = asyncio.ensure_future(store.save_info("b", samples.info("b")))
    done, _ = await asyncio.wait([call], timeout=1)
    await lease.release()
    await asyncio.wait([call, *waiting])
    return bool(done)


async def _renews_a_short_lease(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=900)
    other: Any = await ctx.another()
    await lease.renew()
    try:
        await (await other.acquire_agent_lock("a")).release()
    except KodeError as exc:
        return type(exc).__name__
    return "taken"


async def _locks_in_two_tenants(ctx: Context) -> object:
    store: Any = ctx.store
    async with store.scoped("acme").acquire_agent_lock("alice"):
        try:
            await (await store.scoped("globex").acquire_agent_lock("alice")).release()
        except KodeError as exc:
            return type(exc).__name__
    return "taken"


async def _repeats_after_two_days(ctx: Context) -> object:
    now = [samples.T0]
    store: Any = await ctx.another(clock=lambda: now[0])
    found = await store.append_messages_once("a", {"k": samples.message(1)})
    now[0] += 2 * _DAY_MS
    found += await store.append_messages_once("a", {"k": samples.message(1)})
    return [one.is_new for one in found], await the("text", store.load_messages("a"))
