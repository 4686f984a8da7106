"""Thirty stores that are right in the small: past a boundary, on one path, or for one sort of value they are wrong."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Any, Final

from kode_conformance.values import samples
from kode_conformance.values.samples import T0
from msgspec.structs import replace

from conformance.tests.zoo.base import CommittingLayer, MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import each, happened, seen, talk, the
from kode_core.batch import (
    ABSENT_DOC,
    CORE_KEYS,
    Applied,
    DocKind,
    DocQuery,
    DocWrite,
    EventRange,
    Found,
    FoundDoc,
    ListKind,
    Outline,
)
from kode_core.codec import decode
from kode_core.layers import Layer
from kode_core.model import (
    AgentEvent,
    AgentRecords,
    Bookmark,
    DeleteDocument,
    Message,
    PutDocument,
    TextBlock,
    ToolUseBlock,
)
from kode_core.model.documents import StoredDocument
from kode_core.query import Grouping, Page, RowQuery, SessionQuery, values_of
from kode_core.store import EngineStore
from kode_core.store.edits import MessageEdits
from kode_core.store.forks import ForkCut, Forks
from kode_core.store.kinds import SNAPSHOTS
from kode_core.store.parts import Span
from kode_core.store.pruning import PruneArguments, Pruning
from kode_core.store.steps import checked_progress
from kode_core.store.versions import check_version, head_of
from kode_core.texts import texts_of

Commit = Callable[[Any], Any]

_MESSAGE_KEYS: Final = f"{CORE_KEYS}messages/"


# --- documents and tags -----------------------------------------------------------------------------------------------


async def _page_after_delete(store: Any) -> object:
    for i in range(4):
        await store.put_document("a", "jobs", f"k{i}", i, tags={"state": "open"})
    page = await store.query_documents("jobs", {"state": "open"}, limit=2)
    await store.delete_document("a", "jobs", "k1")
    return await the("key", store.query_documents("jobs", {"state": "open"}, limit=2, cursor=page.next_cursor))


@fault(
    "DOC-8",
    source="bisect in a sorted list: the place of the last key plus one, also when that key is gone since",
    witness=seen(_page_after_delete),
)
class TernSkipsBehindTheGone(Layer):
    """Begins a page of tagged documents one document too late if the last one of the page before was deleted."""

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        after = query.after
        if after is None or not after[1] or after[1].endswith("\x01"):
            return await super().find_docs(query)
        if await self.inner.docs(after[0], DocKind.DOCUMENTS, after[1]):
            return await super().find_docs(query)
        found = await super().find_docs(replace(query, limit=query.limit + 1))
        return Found(found[1:], found.left_out if isinstance(found, Found) else ())


@fault(
    "DOC-7",
    "DOC-8",
    source="CREATE TRIGGER ... WHEN (OLD.value IS DISTINCT FROM NEW.value), which a new column, tags, was not added to",
    witness=seen(
        lambda s: _quiet(s.put_document("a", "jobs", "k", {"n": 1}, tags={"state": "open"})),
        lambda s: _quiet(s.put_document("a", "jobs", "k", {"n": 1}, tags={"state": "done"})),
        lambda s: the("key", s.query_documents("jobs", {"state": "open"})),
        lambda s: the("key", s.query_documents("jobs", {"state": "done"})),
    ),
)
class TernTriggerOnTheValue(CommittingLayer):
    """Finds a document by its former tags after a put that changed its tags and not its value."""

    def committing(self, batch: Any, commit: Commit) -> Any:
        stored = self.space.state(batch.agent_id).docs
        return commit(replace(batch, docs=tuple(self._indexed(write, stored) for write in batch.docs)))

    def _indexed(self, write: DocWrite, stored: Mapping[Any, Any]) -> DocWrite:
        old = stored.get((write.kind, write.key))
        if write.kind is not DocKind.DOCUMENTS or write.doc is None or old is None or old.terms == write.doc.terms:
            return write
        before, now = (json.dumps(decode(StoredDocument, doc.body, "document").value) for doc in (old, write.doc))
        return replace(write, doc=replace(write.doc, terms=old.terms)) if before == now else write


async def _quiet(call: Any) -> None:
    """Await a call whose result differs each time."""
    await call


async def _deletes_the_gone(store: Any) -> object:
    version = await store.put_document("a", "jobs", "k", 1)
    await store.delete_document("a", "jobs", "k")
    writes = [DeleteDocument("jobs", "k", expect=version), PutDocument("jobs", "log", "deleted")]
    return len(await store.write_documents("a", writes))


@fault(
    "DOC-2",
    "DOC-3",
    source="DELETE ... WHERE key = ? AND version = ?: no row was deleted, and for a delete that is as good as done",
    witness=seen(_deletes_the_gone, lambda s: s.list_document_keys("a", "jobs")),
)
class TernDeletesTheGone(CommittingLayer):
    """Lets a delete that demands a version succeed when the document does not exist any more."""

    def committing(self, batch: Any, commit: Commit) -> Any:
        stored = self.space.state(batch.agent_id).docs
        return commit(replace(batch, docs=tuple(self._lenient(write, stored) for write in batch.docs)))

    def _lenient(self, write: DocWrite, stored: Mapping[Any, Any]) -> DocWrite:
        is_removal = write.kind is DocKind.DOCUMENTS and write.doc is None
        if not is_removal or write.expect in (None, ABSENT_DOC) or (write.kind, write.key) in stored:
            return write
        return replace(write, expect=None)


def _many_puts() -> list[Any]:
    puts = [PutDocument("jobs", f"k{i:03}", i) for i in range(120)]
    return [*puts[:-1], PutDocument("jobs", "k119", 119, expect="f" * 32)]


@fault(
    "DOC-3",
    source="DynamoDB's TransactWriteItems takes 100 items; a helper that cuts longer lists into several transactions",
    witness=seen(
        lambda s: s.write_documents("a", _many_puts()),
        lambda s: s.list_document_keys("a", "jobs", limit=1000),
    ),
)
class TernTransactionsOfHundred(Wrapper):
    """Writes more than a hundred documents of one call in several transactions."""

    __slots__ = ()

    async def write_documents(self, agent_id: str, documents: Any, *, fence: Any = None) -> Any:
        if type(documents) not in (list, tuple) or len(documents) <= 100:
            return await self.inner.write_documents(agent_id, documents, fence=fence)
        versions: list[str] = []
        for i in range(0, len(documents), 100):
            versions += await self.inner.write_documents(agent_id, documents[i : i + 100], fence=fence)
        return versions


@fault(
    "DOC-1",
    "QRY-8",
    on=OnSqlite,
    source="a read-through cache that keeps misses, too, against penetration, and drops them at its own writes alone",
    witness=seen(
        lambda s, t: s.load_document("a", "jobs", "k"),
        lambda s, t: _quiet(t.put_document("a", "jobs", "k", 1)),
        lambda s, t: _value(s.load_document("a", "jobs", "k")),
    ),
)
class TernCachesAbsence(EngineStore):
    """Says for two seconds that a document does not exist, though another instance has put it since."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._absent: dict[tuple[str, str, str], float] = {}

    async def load_document(self, agent_id: str, collection: str, key: str) -> Any:
        return await self._load("load_document", agent_id, self._cached, collection, key)

    async def _cached(self, agent_id: str, collection: str, key: str) -> Any:
        if type(collection) is not str or type(key) is not str:
            return await self._documents.load(agent_id, collection, key)
        name = (agent_id, collection, key)
        if time.monotonic() < self._absent.get(name, 0.0):
            return None
        found = await self._documents.load(agent_id, collection, key)
        if found is None:
            if len(self._absent) >= 10_000:
                self._absent.clear()
            self._absent[name] = time.monotonic() + 2.0
        return found

    async def _save(self, *args: Any) -> Any:
        try:
            return await super()._save(*args)
        finally:
            self._absent.clear()

    async def _fenced(self, *args: Any, **named: Any) -> Any:
        try:
            return await super()._fenced(*args, **named)
        finally:
            self._absent.clear()

    async def fork(self, agent_id: str, new_id: str | None = None, **cut: Any) -> str:
        try:
            return await super().fork(agent_id, new_id, **cut)
        finally:
            self._absent.clear()


async def _value(found: Any) -> object:
    document = await found
    return None if document is None else document.value


# --- conditional writes -----------------------------------------------------------------------------------------------


async def _cuts_nothing(store: Any) -> object:
    await store.append_messages("a", talk("x"))
    version = await store.load_version("a")
    await store.append_messages("a", talk("y"))
    return await store.truncate_messages("a", 2, expect=version)


@fault(
    "VER-2",
    "MSG-11",
    source="an early return for the case that there is nothing to do, above the comparison of the versions",
    witness=seen(_cuts_nothing),
)
class TernNothingToCut(EngineStore):
    """Does not compare the demanded version when ``truncate_messages`` has nothing to remove."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._edits = _EarlyReturn(self._context, self._reader, self._writer)


class _EarlyReturn(MessageEdits):
    async def truncate(self, agent_id: str, fence: Any, length: int, expect: str | None) -> int:
        check_version(expect)
        if expect is not None and type(length) is int:
            summary = await self._context.engine.summary(agent_id)
            if head_of(summary, ListKind.MESSAGES).count <= length:
                expect = None
        return await super().truncate(agent_id, fence, length, expect)


# --- messages that are found by their contents ------------------------------------------------------------------------

_BUFFER: Final = 32_767


def _long(text: str, start: int) -> Any:
    return samples.message(text="-" * start + text + "-" * 100)


@fault(
    "QRY-12",
    source="Oracle: a CLOB is read in buffers of 32,767 characters, each of which is searched by itself",
    witness=seen(
        lambda s: s.save_messages("a", [_long("needle", 32_750), _long("needle", 32_764), _long("needle", 40_000)]),
        lambda s: the("position", s.query_messages(contains="NEEDLE", order="asc")),
    ),
)
class TernBetweenBuffers(EngineStore):
    """Does not find a text that lies across a multiple of 32,767 characters of a long one."""

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        wanted = filters.get("contains")
        if type(wanted) is str:
            page[:] = [message for message in page if self._is_in(message, wanted.casefold())]
        return page

    def _is_in(self, message: Message, wanted: str) -> bool:
        return any(
            wanted in text[start : start + _BUFFER].casefold()
            for text in texts_of(message)
            for start in range(0, len(text), _BUFFER)
        )


def _conversation() -> list[Any]:
    return [
        Message("user", [TextBlock("a refund, please")]),
        Message("assistant", [TextBlock("no")]),
        Message("assistant", [TextBlock("a refund is on its way")]),
        Message("user", [TextBlock("thanks")]),
    ]


@fault(
    "QRY-12",
    "QRY-10",
    source="SQL that is put together as text: role = ? OR role = ? AND folded LIKE ?, without parentheses",
    witness=seen(
        lambda s: s.save_messages("a", _conversation()),
        lambda s: s.count_messages(role="user", contains="refund"),
        lambda s: s.count_messages(role=["user", "assistant"], contains="refund"),
    ),
)
class TernOrWithoutParentheses(EngineStore):
    """Counts, of several roles, all messages of each but the last one, whether they contain the text or not."""

    async def count_messages(self, **filters: Any) -> int:
        return await self._query("count_messages", self._counted, filters)

    async def _counted(self, filters: Any) -> int:
        roles = filters.get("role")
        is_list = isinstance(roles, (list, tuple, set, frozenset)) and all(type(role) is str for role in roles)
        if not is_list or not 1 < len(set(roles)) <= 100 or "contains" not in filters:
            return await self._counting.messages(filters)
        *some, last = sorted(set(roles))
        count = await self._counting.messages({**filters, "role": last})
        rest = {name: value for name, value in filters.items() if name != "contains"}
        return count + await self._counting.messages({**rest, "role": some})


_NONE: Final = object()


def _contains(whole: Any, part: Any) -> bool:
    """As PostgreSQL's ``whole @> part``."""
    if type(part) is dict:
        return type(whole) is dict and all(_contains(whole.get(key, _NONE), part[key]) for key in part)
    if type(part) is list:
        return type(whole) is list and all(any(_contains(one, wanted) for one in whole) for wanted in part)
    return (type(whole) is bool) == (type(part) is bool) and bool(whole == part)


@fault(
    "QRY-13",
    "QRY-2",
    source="PostgreSQL: metadata @> '{...}'::jsonb, which a GIN index serves, is containment at every depth",
    witness=seen(
        lambda s: s.save_messages(
            "a",
            [
                Message("user", [TextBlock("x")], metadata={"via": {"app": "web"}}),
                Message("user", [TextBlock("y")], metadata={"via": {"app": "web", "lang": "de"}}),
            ],
        ),
        lambda s: the("position", s.query_messages(metadata={"via": {"app": "web"}})),
    ),
)
class TernContainsMetadata(EngineStore):
    """Finds messages whose metadata has more in a nested object or list than the filter says."""

    async def query_messages(self, **filters: Any) -> Any:
        return await self._query("query_messages", self._found, filters)

    async def _found(self, filters: Any) -> Any:
        wanted = filters.get("metadata")
        nested = {}
        if type(wanted) is dict:
            nested = {key: value for key, value in wanted.items() if type(value) in (dict, list) and value}
        if not nested or filters.get("offset"):
            return await self._search.messages(filters)
        await self._search.messages({**filters, "limit": 0, "cursor": None})  # refuses what is wrong
        scalars = {key: value for key, value in wanted.items() if key not in nested}
        page = await self._search.messages({**filters, "metadata": scalars})
        page[:] = [message for message in page if _contains(message.metadata or {}, nested)]
        return page


# --- groups -----------------------------------------------------------------------------------------------------------


class _Truncated(Grouping, frozen=True, kw_only=True):
    def day(self, time: int) -> int:
        return int((time + self.offset_ms) / 86_400_000)


@fault(
    "QRY-11",
    source="`/` of integers in SQL, C and Go rounds towards zero, and Python's // does not",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i, created_at=t) for i, t in enumerate((5, -5))]),
        lambda s: s.group_tool_calls("day"),
        lambda s: s.group_tool_calls("day", utc_offset_minutes=60),
    ),
)
class TernDaysTowardsZero(Layer):
    """Groups the last day before 1970 together with the first day of 1970."""

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> Any:
        days = _Truncated(by=grouping.by, offset_ms=grouping.offset_ms, limit=grouping.limit)
        return await super().group(query, days)


# --- keys of messages -------------------------------------------------------------------------------------------------


async def _once(store: Any, key: str, text: str) -> list[tuple[int, bool]]:
    found = await store.append_messages_once("a", {key: samples.message(text=text)})
    return [(one.position, one.is_new) for one in found]


@fault(
    "MSG-12",
    source="SQLite: INSERT OR REPLACE deletes the old row, and ON DELETE CASCADE takes along what refers to it",
    witness=seen(
        lambda s: _once(s, "k0", "x"),
        lambda s: _once(s, "k1", "y"),
        lambda s: s.replace_message("a", 0, samples.message(text="edited")),
        lambda s: _once(s, "k1", "y"),
        lambda s: _once(s, "k0", "x"),
    ),
)
class TernReplaceCascades(CommittingLayer):
    """Forgets the key of a message that is replaced at its position."""

    def committing(self, batch: Any, commit: Commit) -> Any:
        outcome = commit(batch)
        state = self.space.states.get(batch.agent_id)
        if isinstance(outcome, Applied) and state is not None and batch.messages is not None:
            replaced = {position for position, _ in batch.messages.put}
            for (kind, key), doc in [*state.docs.items()] if replaced else ():
                if kind is DocKind.DOCUMENTS and key.startswith(_MESSAGE_KEYS) and doc.time in replaced:
                    state._apply_doc(DocWrite(kind, key, None))
        return outcome


# --- edits of lists ---------------------------------------------------------------------------------------------------


@fault(
    "MSG-11",
    "QRY-2",
    source="UPDATE messages SET body = ? WHERE agent_id = ? AND position = ?: the columns that queries use stay",
    witness=seen(
        lambda s: s.save_messages("a", talk("x", "y", "z")),
        lambda s: s.replace_message("a", 1, Message("assistant", [ToolUseBlock("call_1", "search", {})])),
        lambda s: the("position", s.query_messages(role="user", order="asc")),
        lambda s: s.group_messages("role"),
        lambda s: the("position", s.query_messages(content_type="tool_use")),
    ),
)
class TernReplacesBodiesAlone(CommittingLayer):
    """Finds a message that was replaced by the role and the content types of the one before."""

    def committing(self, batch: Any, commit: Commit) -> Any:
        write = batch.messages
        if write is not None and write.put:
            rows = self.space.state(batch.agent_id).lists[ListKind.MESSAGES].rows
            put = (
                (position, replace(row, index=rows[position].index) if position < len(rows) else row)
                for position, row in write.put
            )
            batch = replace(batch, messages=replace(write, put=tuple(put)))
        return commit(batch)


@fault(
    "MSG-9",
    source="a LIMIT in the subquery that turns the order round, and the other conditions outside of it",
    witness=seen(
        lambda s: s.save_messages("a", talk(*"uvwxyz")),
        lambda s: s.load_messages("a", last=3),
        lambda s: s.load_messages("a", last=3, before=5),
        lambda s: s.load_tool_call_records("a", last=2, before=1),
    ),
)
class TernLastBeforeBefore(EngineStore):
    """Takes the last records of the whole list, and then leaves out the records that are not ``before``."""

    async def _list(self, agent_id: str, kind: ListKind, last: Any, after: Any, before: Any, on_corrupt: Any) -> Any:
        Span.of(after, before, last)
        if last is None or before is None or on_corrupt != "raise":
            return await super()._list(agent_id, kind, last, after, before, on_corrupt)
        count = head_of(await self._context.engine.summary(agent_id), kind).count
        found = await super()._list(agent_id, kind, last, after, None, on_corrupt)
        return found[: max(0, len(found) - max(0, count - before))]


_NEAR_THE_END: Final = 200


async def _upserts_the_first(store: Any, other: Any) -> object:
    await store.save_tool_call_records("a", [samples.tool_call(i, state="PENDING") for i in range(250)])
    await other.upsert_tool_call_records("a", [samples.tool_call(i, state="FAILED") for i in (240, 3)])
    records = await store.load_tool_call_records("a")
    return len(records), [(i, record.id) for i, record in enumerate(records) if record.state == "FAILED"]


@fault(
    "TC-3",
    source="a search backwards from the end for the record to replace, with a bound, since calls end soon after they began",
    witness=seen(_upserts_the_first),
)
class TernUpsertsNearTheEnd(Layer):
    """Appends a record whose id stands more than 200 places before the end of the list, instead of replacing it."""

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        found = await super().outline(agent_id, kind, keys)
        if keys is None:
            return found
        return replace(found, rows=[row for row in found.rows if row[0] >= found.count - _NEAR_THE_END])


@fault(
    "TURN-2",
    "EVT-4",
    source="SELECT offset FROM events WHERE op_id = ? OR digest = ANY(?) ORDER BY offset, after the insert",
    witness=seen(
        lambda s: s.append_events("a", happened(1, 2)),
        lambda s: _ranks(s, [*happened(5, 1, 6, 2)]),
    ),
)
class TernOffsetsAscending(Wrapper):
    """Gives the offsets of a turn's events in ascending order, also when one of them is a repeat of an older one."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, **parts: Any) -> Any:
        return tuple(sorted(await self.inner.save_turn(agent_id, **parts)))


async def _ranks(store: Any, events: list[Any]) -> list[int]:
    """For each event of a turn, the number of offsets below the one that it got."""
    offsets = await store.save_turn("a", append=talk("x"), events=events)
    return [sum(other < offset for other in offsets) for offset in offsets]


# --- events -----------------------------------------------------------------------------------------------------------


async def _in_one_piece(store: Any) -> object:
    many = [[AgentEvent("progress", "step", {"list": n, "i": i}) for i in range(1200)] for n in range(2)]
    await asyncio.gather(*(store.emit_many("a", events) for events in many))
    lists = [event.event.data["list"] async for event in store.read_events("a", after_offset=0)]
    return sum(a != b for a, b in pairwise(lists))


@fault(
    "EVT-8",
    source="a producer that flushes its buffer of 500 records, and lets others flush theirs in between",
    witness=seen(_in_one_piece),
)
class TernEmitsInChunks(EngineStore):
    """Emits a list of more than 500 events in several pieces."""

    async def emit_many(self, agent_id: str, events: Any, *, fence: Any = None) -> Any:
        if type(events) not in (list, tuple) or len(events) <= 500:
            return await super().emit_many(agent_id, events, fence=fence)
        stored: list[Any] = []
        for i in range(0, len(events), 500):
            stored += await super().emit_many(agent_id, events[i : i + 500], fence=fence)
        return stored


async def _late_seqs(store: Any) -> list[int]:
    await store.append_events("a", [samples.event(0, delta=str(i)) for i in range(300)])
    await store.append_events("a", happened(7, 8, 9))
    read = store.read_events("a", since=Bookmark(7, T0), after_offset=0)
    return [event.bookmark.seq async for event in read]


@fault(
    "EVT-5",
    "EVT-7",
    source="DynamoDB: a FilterExpression is applied after the Limit, so a page may be short and not be the last",
    witness=seen(_late_seqs),
)
class TernFiltersAfterTheLimit(Layer):
    """Ends an order by offset at the first page that has an event which is not after ``since``."""

    async def events(self, agent_id: str, span: EventRange) -> Any:
        least = span.since_seq
        if span.order != "offset" or least is None:
            return await super().events(agent_id, span)
        found = await super().events(agent_id, replace(span, since_seq=None))
        return [row for row in found if row.seq > least]


async def _beats(store: Any) -> str:
    async with aclosing(store.follow_events("a", heartbeat_ms=1900)) as events:
        began = time.monotonic()
        beat = await asyncio.wait_for(anext(events), 10)
        return f"{type(beat).__name__} {'on time' if time.monotonic() - began > 1.7 else 'early'}"


@fault(
    "EVT-9",
    source="EventSource and proxies count in seconds: heartbeat_ms // 1000, and at least one",
    witness=seen(_beats),
)
class TernBeatsInSeconds(Wrapper):
    """Gives heartbeats after whole seconds: of 1,900 ms after one, and of 200 ms after one, too."""

    __slots__ = ()

    def follow_events(self, agent_id: str, *, heartbeat_ms: Any = None, **given: Any) -> Any:
        if type(heartbeat_ms) is int and 0 < heartbeat_ms <= 86_400_000:
            heartbeat_ms = max(1, heartbeat_ms // 1000) * 1000
        return self.inner.follow_events(agent_id, heartbeat_ms=heartbeat_ms, **given)


# --- the other kinds --------------------------------------------------------------------------------------------------


@fault(
    "MED-1",
    source="a list under keys of text, media/0, media/1, ..., in the order of these: media/10 comes before media/2",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media(f"m{i}") for i in range(12)]),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class TernPositionsAsText(Wrapper):
    """Gives a media cache of more than ten records in the order of their positions as texts."""

    __slots__ = ()

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if type(records) in (list, tuple):
            records = [records[i] for i in sorted(range(len(records)), key=str)]
        await self.inner.save_media_cache(agent_id, records, fence=fence)


def _natural(text: str) -> list[tuple[bool, int | str]]:
    parts = re.split("([0-9]{1,300})", text)
    return [(i % 2 == 1, int(part) if i % 2 else part) for i, part in enumerate(parts)]


@fault(
    "SNAP-1",
    source="PostgreSQL with ICU: COLLATE natural (locale = 'und-u-kn-true'), in which sfp-9 comes before sfp-10",
    witness=seen(
        lambda s: each(*(s.save_snapshot("a", samples.snapshot(f"sfp-{i}")) for i in (9, 10, 11))),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class TernNumericCollation(EngineStore):
    """Lists snapshots of one time by the numbers in their ids."""

    async def list_snapshots(self, agent_id: str) -> Any:
        found = await super().list_snapshots(agent_id)
        return sorted(found, key=lambda snapshot: (-snapshot.created_at, _natural(snapshot.id), snapshot.id))


_OTHER: Final = {DocKind.WINDOWS: DocKind.COMPRESSIONS, DocKind.COMPRESSIONS: DocKind.WINDOWS}


@fault(
    "HIS-1",
    "MSG-8",
    source="one table for both kinds of history, with the primary key (agent_id, id) and the kind as a column",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("h-1")),
        lambda s: s.save_compression_record("a", samples.compression("h-2")),
        lambda s: s.save_compression_record("a", samples.compression("h-1")),
        lambda s: the("id", s.load_history_windows("a")),
        lambda s: the("id", s.load_compression_records("a")),
    ),
)
class TernOneTableOfHistory(Layer):
    """Replaces a history window by a compression record with the same id, and the reverse."""

    async def commit(self, batches: Sequence[Any]) -> Sequence[Any]:
        return await super().commit([replace(batch, docs=tuple(self._docs(batch))) for batch in batches])

    def _docs(self, batch: Any) -> list[DocWrite]:
        docs = []
        for write in batch.docs:
            if write.kind in _OTHER and write.doc is not None:
                docs.append(DocWrite(_OTHER[write.kind], write.key, None))
            docs.append(write)
        return docs


@fault(
    "INFO-5",
    "VAL-3",
    source="JSON Merge Patch (RFC 7396), MySQL's JSON_MERGE_PATCH and SQLite's json_patch: null removes the key",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"plan": "gold", "until": 5})),
        lambda s: s.update_info("a", {"until": None, "plan": "free"}),
        lambda s: s.load_info("a"),
    ),
)
class TernMergePatch(Wrapper):
    """Removes a key of the metadata that ``update_info`` sets to None."""

    __slots__ = ()

    async def update_info(self, agent_id: str, metadata: Any, *, remove: Any = (), fence: Any = None) -> Any:
        if type(metadata) is dict and type(remove) in (list, tuple):
            gone = [key for key, value in metadata.items() if value is None and type(key) is str]
            if gone:
                metadata = {key: value for key, value in metadata.items() if key not in gone}
                remove = [*remove, *gone]
        return await self.inner.update_info(agent_id, metadata, remove=remove, fence=fence)


# --- lifecycle and forks ----------------------------------------------------------------------------------------------


@fault(
    "LIFE-5",
    source="LIMIT 50 OFFSET n over rows that the loop itself deletes: every second page is passed over",
    witness=seen(
        lambda s: each(*(s.save_info(f"a{i:03}", samples.info(f"a{i:03}")) for i in range(120))),
        lambda s: s.delete_many(template_id="assistant"),
        lambda s: s.list(),
    ),
)
class TernSkipsWhileDeleting(EngineStore):
    """Passes over fifty sessions after each fifty that ``delete_many`` deletes."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        async def delete() -> int:
            return await self._deletions.delete_many(self._by_offset, filters, checked_progress(progress))

        return await self._run("delete_many", delete)

    async def _by_offset(self, filters: Any) -> Page[Any]:
        start = int(filters["cursor"] or 0)
        page = await self._search.sessions({**filters, "cursor": None, "limit": 50, "offset": start})
        page.next_cursor = str(start + 50) if len(page) == 50 else None
        return page


@fault(
    "FORK-4",
    source="a checkpoint that is kept as the number of messages, as in tools that rewind a conversation",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_messages("a", samples.messages(3)),
        lambda s: s.save_snapshot("a", samples.snapshot("sfp-1", count=2)),
        lambda s: s.replace_message("a", 1, samples.message(text="edited since")),
        lambda s: s.fork("a", "b", snapshot_id="sfp-1"),
        lambda s: s.load_messages("b"),
    ),
)
class TernSnapshotIsAPosition(EngineStore):
    """Gives a fork of a snapshot as many of the present messages as the snapshot has, also if they were edited."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._forks = _ByPosition(self._context, self._reader, self._memory, self._appender)


class _ByPosition(Forks):
    async def _messages(self, agent_id: str, summary: Any, cut: ForkCut, snapshots: Any) -> Any:
        if cut.snapshot_id is not None:
            snapshot = await self._reader.decoded_doc(agent_id, SNAPSHOTS, snapshots, cut.snapshot_id)
            if snapshot is not None and len(snapshot.messages) <= summary.messages.count:
                cut = cut._replace(snapshot_id=None, length=len(snapshot.messages))
        return await super()._messages(agent_id, summary, cut, snapshots)


@fault(
    "LIFE-6",
    source="DELETE ... WHERE created_at < (SELECT created_at ... LIMIT 1 OFFSET n - 1): RANK() instead of ROW_NUMBER()",
    witness=seen(
        lambda s: each(
            *(s.save_snapshot("a", samples.snapshot(f"s{i}", created_at=T0 + t)) for i, t in enumerate((0, 1, 1, 1, 2)))
        ),
        lambda s: s.prune("a", keep_snapshots=2),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class TernTiesStay(EngineStore):
    """Keeps in a prune, besides the newest records of a kind, all that are as old as the oldest of these."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pruning = _Ranked(self._context, self._appender, self._writer)


class _Ranked(Pruning):
    async def prune(self, agent_id: str, fence: Any, wanted: PruneArguments, progress: Any) -> Any:
        keep = {name: await self._with_ties(agent_id, name, number) for name, number in wanted.keep.items()}
        return await super().prune(agent_id, fence, replace(wanted, keep=keep), progress)

    async def _with_ties(self, agent_id: str, name: str, number: int) -> int:
        kinds = {"snapshots": DocKind.SNAPSHOTS, "history_windows": DocKind.WINDOWS}
        if name not in kinds or not number:
            return number
        times = sorted([doc.time for doc in await self._context.engine.docs(agent_id, kinds[name])], reverse=True)
        return number if number >= len(times) else sum(time >= times[number - 1] for time in times)


async def _keys_of_whole(store: Any) -> object:
    await store.append_messages_once("a", {f"k{i}": samples.message(i) for i in range(3)})
    await store.pop_messages("a")
    return (await store.load_agent("a")).message_keys


@fault(
    "LIFE-7",
    "MSG-12",
    source="SELECT ... FROM message_keys JOIN messages USING (agent_id, position): an inner join",
    witness=seen(_keys_of_whole),
)
class TernKeysByInnerJoin(EngineStore):
    """Leaves out of ``load_agent`` the keys of messages at whose position there is none any more."""

    async def load_agent(self, agent_id: str) -> Any:
        records = await super().load_agent(agent_id)
        if records is None:
            return None
        count = len(records.messages)
        return records.replace(message_keys={k: place for k, place in records.message_keys.items() if place < count})


def _of_three() -> AgentRecords:
    return AgentRecords(agent_id="b", messages=samples.messages(3), message_times=[T0] * 3)


@fault(
    "LIFE-8",
    "MSG-12",
    source="a table of idempotency keys without a foreign key, which the import of an agent does not clear",
    witness=seen(
        lambda s: _once(s, "k", "x"),
        lambda s: s.truncate_messages("a", 0),
        lambda s: s.load_agent("a"),
        lambda s: s.import_agent("a", _of_three()),
        lambda s: _once(s, "k", "y"),
    ),
)
class TernImportKeepsOldKeys(CommittingLayer):
    """Still knows, after an import, the keys that the id had when all of its messages had been removed."""

    def committing(self, batch: Any, commit: Commit) -> Any:
        stored = self.space.state(batch.agent_id).docs if batch.expect_nothing and batch.delete else {}
        old = [(key, doc) for (_, key), doc in stored.items() if key.startswith(_MESSAGE_KEYS)]
        outcome = commit(batch)
        if old and isinstance(outcome, Applied):
            state = self.space.states[batch.agent_id]
            for key, doc in old:
                if (DocKind.DOCUMENTS, key) not in state.docs:
                    state._apply_doc(DocWrite(DocKind.DOCUMENTS, key, doc))
        return outcome


# --- queries ----------------------------------------------------------------------------------------------------------


class _Asking(Layer):
    """A layer that asks something else."""

    def asked(self, query: Any) -> Any:
        raise NotImplementedError

    async def find_sessions(self, query: SessionQuery) -> Any:
        return await super().find_sessions(self.asked(query))

    async def find_rows(self, query: RowQuery) -> Any:
        return await super().find_rows(self.asked(query))

    async def count(self, query: SessionQuery | RowQuery) -> int:
        return await super().count(self.asked(query))

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> Any:
        return await super().group(self.asked(query), grouping)


@fault(
    "QRY-2",
    source="created_at BETWEEN ? AND ?, for queries that have both bounds, and two conditions for the others",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i) for i in range(4)]),
        lambda s: the("id", s.query_tool_calls(created_before=T0 + 2)),
        lambda s: the("id", s.query_tool_calls(created_after=T0 + 1, created_before=T0 + 2)),
    ),
)
class TernBetweenIsInclusive(_Asking):
    """Takes *before* as inclusive where a query has *after*, too."""

    def asked(self, query: Any) -> Any:
        spans = {name: getattr(query, name) for name in ("created", "updated") if hasattr(query, name)}
        both = {name: span for name, span in spans.items() if span.start is not None and span.end is not None}
        return replace(query, **{name: replace(span, end=span.end + 1) for name, span in both.items()})


def _as_double(text: str) -> str:
    """The text of an integer of more than 64 bits as a double's; others as they are."""
    if re.fullmatch("-?[0-9]{19,300}", text) and not -(2**63) <= int(text) < 2**63:
        return str(int(float(text)))
    return text


@fault(
    "QRY-2",
    source="SQLite's JSON functions: an integer that does not fit 64 bits comes out as a REAL",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"order": 2**64})),
        lambda s: s.save_info("b", samples.info("b", metadata={"order": 2**64 + 1})),
        lambda s: the("agent_id", s.query_sessions(metadata={"order": 2**64})),
        lambda s: s.count_sessions(metadata={"order": 2**64 + 1}),
    ),
)
class TernBigIntegersAsDoubles(_Asking):
    """Takes two integers of more than 64 bits in the metadata of sessions for one if they are one as doubles."""

    def asked(self, query: Any) -> Any:
        if not isinstance(query, SessionQuery) or not query.metadata:
            return query
        pairs = ((key, tuple(sorted({*map(_as_double, values_of(value))}))) for key, value in query.metadata)
        single = ((key, values[0] if len(values) == 1 else values) for key, values in pairs)
        return replace(query, metadata=tuple(single))

    async def commit(self, batches: Sequence[Any]) -> Sequence[Any]:
        return await super().commit(
            [b if b.info is None else replace(b, info=self._extracted(b.info)) for b in batches]
        )

    async def fork(self, agent_id: str, children: Sequence[Any], expect: Any, now: int) -> bool:
        children = [replace(child, info=self._extracted(child.info)) for child in children]
        return await super().fork(agent_id, children, expect, now)

    def _extracted(self, info: Any) -> Any:
        return replace(info, metadata=tuple((key, _as_double(text)) for key, text in info.metadata))


# --- tenants ----------------------------------------------------------------------------------------------------------


def _own_part(agent_id: str) -> str:
    """The id without the tenant."""
    return agent_id.partition("/")[2] or agent_id if agent_id.startswith("@") else agent_id


async def _locks_of_tenants(store: Any) -> object:
    lease = await store.scoped("acme").acquire_agent_lock("alice")
    other = await store.scoped("globex").acquire_agent_lock("alice")
    await other.release()
    await lease.release()
    return "both"


@fault(
    "SCOPE-1",
    "LOCK-1",
    errors=True,
    source="SET lock:alice NX: the prefix of the tenant is put in front of the keys of data, and not of locks",
    witness=seen(_locks_of_tenants),
)
class TernLocksWithoutTenant(MemoryLayer):
    """Lets the agents of different tenants that have one id share a lock."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        name, now = _own_part(agent_id), time.monotonic()
        for other, (_, until) in self.space.leases.items():
            if other != agent_id and until > now and _own_part(other) == name:
                return None
        return await super().acquire_lease(agent_id, owner, ttl_ms)
