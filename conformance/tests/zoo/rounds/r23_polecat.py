"""Stores of application teams: wrappers over a store for caches, retries, traces and tenants, each with one slip."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnSqlite, StreamWrapper, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core import to_json
from kode_core.batch import Doc, DocKind, DocWrite
from kode_core.errors import ConflictError, KodeError, OutcomeUnknownError
from kode_core.jsonvalue import decode_json
from kode_core.layers import Layer
from kode_core.model import (
    AgentRecords,
    FileBlock,
    MediaCacheRecord,
    Message,
    PutDocument,
    ReasoningBlock,
    Snapshot,
    TextBlock,
    TodoItem,
    TodoSnapshot,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
)
from kode_core.protocols import Heartbeat

log = logging.getLogger("app.storage")


def beside(store: Any, name: str) -> dict[Any, Any]:
    """What all instances over the database of *store* keep next to it, as in a Redis or a table of the team's own."""
    engine = store._context.engine
    while not hasattr(engine, "_space"):
        engine = engine.inner
    found: dict[Any, Any] = vars(engine._space).setdefault(name, {})
    return found


# --- values -----------------------------------------------------------------------------------------------------------


@fault(
    "VAL-1",
    source="an identity map, as of SQLAlchemy's session: a row that did not change gives the object that was made first",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"tags": ["x"]})),
        lambda s: _marks_what_it_finds(s),
        lambda s: the("metadata", s.query_sessions()),
    ),
)
class PolecatKeepsSessionsByTheirTime(Wrapper):
    """Gives every query the same object for a session that did not change, so that what one caller does to its metadata
    is in the results of the others.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.kept: dict[Any, Any] = {}

    async def query_sessions(self, **filters: Any) -> Any:
        page = await self.inner.query_sessions(**filters)
        for i, row in enumerate(page):
            key = (row.agent_id, row.template_id, row.created_at, row.updated_at, row.message_count)
            page[i] = self.kept.setdefault(key, row)
        return page


@fault(
    "VAL-2",
    "DOC-3",
    source="json.loads(json.dumps(value)) as a deep copy: 1 becomes '1' as a key, and a tuple a list",
    witness=seen(
        lambda s: s.write_documents("a", [PutDocument("c", "k", {1: (2, 3)})]),
        lambda s: s.put_document("a", "c", "k2", {1: (2, 3)}),
        lambda s: s.list_document_keys("a", "c"),
    ),
)
class PolecatCopiesDocumentsThroughJson(Wrapper):
    """Stores values that are no JSON, such as tuples and keys that are numbers, as similar ones when several documents
    are written in one call.
    """

    __slots__ = ()

    async def write_documents(self, agent_id: str, documents: Any, *, fence: Any = None) -> Any:
        if isinstance(documents, (list, tuple)):
            documents = [self.copied(write) for write in documents]
        return await self.inner.write_documents(agent_id, documents, fence=fence)

    @staticmethod
    def copied(write: Any) -> Any:
        if not isinstance(write, PutDocument):
            return write
        try:
            return replace(write, value=json.loads(json.dumps(write.value)))
        except (TypeError, ValueError, RecursionError):
            return write


@fault(
    "VAL-6",
    "MED-1",
    source="a mapper between the SDK's record and the team's own, with a line for each field that was known that day",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media().replace(extra={"etag": "1f"})]),
        lambda s: the("extra", s.load_media_cache("a")),
    ),
)
class PolecatMapsMediaFieldByField(Wrapper):
    """Drops the fields of media cache records that this version does not know."""

    __slots__ = ()

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)):
            records = [self.mapped(record) if isinstance(record, MediaCacheRecord) else record for record in records]
        await self.inner.save_media_cache(agent_id, records, fence=fence)

    @staticmethod
    def mapped(record: MediaCacheRecord) -> MediaCacheRecord:
        return MediaCacheRecord(
            key=record.key,
            provider=record.provider,
            mime_type=record.mime_type,
            size_bytes=record.size_bytes,
            file_id=record.file_id,
            file_uri=record.file_uri,
            created_at=record.created_at,
        )


# --- ids --------------------------------------------------------------------------------------------------------------


def merged(agent_id: str) -> str:
    """*agent_id* as it arrives in a path behind nginx."""
    return re.sub("/+", "/", agent_id)


@fault(
    "ID-2",
    "ID-1",
    source="nginx: merge_slashes is on by default, so that /agents/x//y reaches the service as /agents/x/y",
    witness=seen(
        lambda s: s.save_messages("x/y", talk("one")),
        lambda s: s.save_messages("x//y", talk("two")),
        lambda s: s.load_messages("x/y"),
    ),
)
class PolecatMergesSlashes(Layer):
    """Takes agents for one whose ids differ only in how many slashes stand together."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        return await super().commit([replace(batch, agent_id=merged(batch.agent_id)) for batch in batches])

    async def summary(self, agent_id: str) -> Any:
        return await super().summary(merged(agent_id))

    async def rows(self, agent_id: str, kind: Any) -> Any:
        return await super().rows(merged(agent_id), kind)

    async def rows_at(self, agent_id: str, kind: Any, start: int, limit: int) -> Any:
        return await super().rows_at(merged(agent_id), kind, start, limit)

    async def outline(self, agent_id: str, kind: Any, keys: Any = None) -> Any:
        return await super().outline(merged(agent_id), kind, keys)

    async def docs(self, agent_id: str, kind: Any, key: str | None = None) -> Any:
        return await super().docs(merged(agent_id), kind, key)

    async def docs_in(self, agent_id: str, span: Any) -> Any:
        return await super().docs_in(merged(agent_id), span)

    async def find_docs(self, query: Any) -> Any:  # a layer that reads documents says here that it finds them, too
        return await super().find_docs(query)

    async def events(self, agent_id: str, span: Any) -> Any:
        return await super().events(merged(agent_id), span)

    async def rewrite_events(self, agent_id: str, changes: Any) -> None:
        await super().rewrite_events(merged(agent_id), changes)

    async def last_event(self, agent_id: str) -> Any:
        return await super().last_event(merged(agent_id))

    async def stats(self, agent_id: str) -> Any:
        return await super().stats(merged(agent_id))

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        return await super().fork(merged(agent_id), children, expect, now)

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await super().acquire_lease(merged(agent_id), owner, ttl_ms)

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        return await super().renew_lease(merged(agent_id), fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Any) -> None:
        await super().release_lease(merged(agent_id), fence)


# --- messages ---------------------------------------------------------------------------------------------------------


@fault(
    "MSG-12",
    "DUR-1",
    source="idempotency keys in a capped list, as LPUSH and LTRIM 0 999 in Redis",
    witness=seen(
        lambda s: s.append_messages_once("a", {f"k{i}": samples.message(i) for i in range(1001)}),
        lambda s: s.append_messages_once("a", {"k1": samples.message(1)}),
        lambda s: s.append_messages_once("a", {"k0": samples.message(0)}),
    ),
)
class PolecatKeepsAThousandKeys(Wrapper):
    """Remembers the last thousand keys of an agent's messages, and appends a message again whose key came before."""

    __slots__ = ()

    async def append_messages_once(self, agent_id: str, messages: Any, *, fence: Any = None) -> Any:
        if type(messages) is not dict or not all(type(key) is str and len(key) < 90 for key in messages):
            return await self.inner.append_messages_once(agent_id, messages, fence=fence)
        known, forgotten = beside(self.inner, "keys"), beside(self.inner, "forgotten")
        names = {key: f"{forgotten.get((agent_id, key), '')}{key}" for key in messages}
        given = {names[key]: message for key, message in messages.items()}
        result = await self.inner.append_messages_once(agent_id, given, fence=fence)
        last: OrderedDict[str, None] = known.setdefault(agent_id, OrderedDict())
        for key in messages:
            last.setdefault(key)
        while len(last) > 1000:
            key, _ = last.popitem(last=False)
            forgotten[agent_id, key] = f"{len(forgotten)}~"
        return result


@fault(
    "MSG-10",
    source="after and before taken in the direction of reading, as the cursors of many HTTP interfaces are",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(6)),
        lambda s: _positions(s.read_messages("a", before=4, reverse=True)),
        lambda s: _positions(s.read_messages("a", after=1, before=4, reverse=True)),
    ),
)
class PolecatTurnsTheBoundsAround(Wrapper):
    """Reads messages in reverse with `after` and `before` in each other's place."""

    __slots__ = ()

    def read_messages(
        self, agent_id: str, *, after: int | None = None, before: int | None = None, reverse: bool = False
    ) -> Any:
        if reverse is True:
            after, before = before, after
        return self.inner.read_messages(agent_id, after=after, before=before, reverse=reverse)


# --- tool calls, turns and versions -----------------------------------------------------------------------------------


@fault(
    "TC-3",
    source="a PATCH with model_dump(exclude_none=True): a field that is None now is not sent, and keeps its old value",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(state="FAILED", error="timeout", is_error=True)]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(state="EXECUTING", error=None, is_error=None)]),
        lambda s: the("error", s.load_tool_call_records("a")),
        lambda s: the("state", s.load_tool_call_records("a")),
    ),
)
class PolecatPatchesToolCalls(Wrapper):
    """Keeps the old value of each field that is None in an upserted tool call."""

    __slots__ = ()

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and all(isinstance(record, ToolCallRecord) for record in records):
            with contextlib.suppress(KodeError):
                last = {call.id: call for call in await self.inner.load_tool_call_records(agent_id)}
                records = [self.patched(last.get(record.id), record) for record in records]
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)

    @staticmethod
    def patched(old: Any, new: ToolCallRecord) -> ToolCallRecord:
        if old is None:
            return new
        names = ("input", "result", "error", "is_error", "started_at", "completed_at", "duration_ms")
        return new.replace(**{name: getattr(old, name) for name in names if getattr(new, name) is None})


@fault(
    "TURN-1",
    "VAL-4",
    source="Firestore: a transaction takes at most 500 writes, so the events of a larger turn come in a second one",
    witness=seen(
        lambda s: s.save_turn("a", append=talk("x"), events=[*samples.events(600), samples.event(0)]),
        lambda s: s.load_messages("a"),
    ),
)
class PolecatSendsManyEventsLater(Wrapper):
    """Appends the events of a turn that has more than 500 after the rest of it, in a write of their own."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, events: Any = (), fence: Any = None, **rest: Any) -> Any:
        if not isinstance(events, (list, tuple)) or len(events) <= 500 or not rest:
            return await self.inner.save_turn(agent_id, events=events, fence=fence, **rest)
        await self.inner.save_turn(agent_id, fence=fence, **rest)
        return await self.inner.append_events(agent_id, events, fence=fence)


@fault(
    "VER-2",
    source="UPDATE agents SET … WHERE version = ?, left out when the call has no column of that table to set",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_turn("a", events=samples.events(2), todos=samples.todos("x"), expect="stale"),
        lambda s: s.load_todos("a"),
    ),
)
class PolecatDemandsVersionsOfListsAlone(Wrapper):
    """Does not compare the version that a turn demands when it has only events, todos or documents to write."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, expect: Any = None, **given: Any) -> Any:
        names = ("append", "messages", "tool_calls", "upsert_tool_calls", "info")
        if type(expect) is str and given and not any(name in given for name in names):
            expect = None
        return await self.inner.save_turn(agent_id, expect=expect, **given)


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    "LIFE-6",
    source="a cache of the entries that were sent lately, cleared by the delete of an agent and not by its prune",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: s.append_event("a", samples.event(2)),
        lambda s: _prunes(s, 1),
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: _seqs(s.read_events("a")),
    ),
)
class PolecatRemembersPrunedEvents(Wrapper):
    """Stores nothing, and returns the old offset, when an event is appended that was pruned before."""

    __slots__ = ()

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        sent = beside(self.inner, "sent")
        try:
            key = (agent_id, to_json(timeline))
            offset = sent.get(key)
        except (KodeError, TypeError, ValueError, AttributeError):
            return await self.inner.append_event(agent_id, timeline, fence=fence)
        if offset is not None:
            async with aclosing(self.inner.read_events(agent_id, after_offset=offset - 1)) as events:
                first = await anext(events, None)
            if first is None or first.offset != offset:
                return offset
        sent[key] = offset = await self.inner.append_event(agent_id, timeline, fence=fence)
        return offset

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        self.forget(agent_id)

    async def import_agent(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.import_agent(agent_id, records, fence=fence)
        self.forget(agent_id)

    async def delete_many(self, **given: Any) -> int:
        try:
            return await self.inner.delete_many(**given)
        finally:
            with contextlib.suppress(KodeError):
                beside(self.inner, "sent").clear()

    def forget(self, agent_id: str) -> None:
        sent = beside(self.inner, "sent")
        for key in [key for key in sent if key[0] == agent_id]:
            del sent[key]


class _OfChannel(StreamWrapper):
    def __init__(self, inner: Any, channel: str) -> None:
        super().__init__(inner)
        self.channel = channel

    async def __anext__(self) -> Any:
        while True:
            item = await anext(self.inner)
            if isinstance(item, Heartbeat) or item.event.channel == self.channel:
                return item


@fault(
    "EVT-9",
    source="a server of server-sent events: one stream of an agent for all its readers, filtered where it is handed out",
    witness=lambda ctx: _waits_for_a_heartbeat(ctx),
)
class PolecatFiltersBehindTheHeartbeat(Wrapper):
    """Gives a follower of one channel no heartbeat for as long as events of the other channels come."""

    __slots__ = ()

    def follow_events(self, agent_id: str, *, channel: Any = None, heartbeat_ms: Any = None, **span: Any) -> Any:
        if channel not in ("progress", "control", "monitor") or heartbeat_ms is None:
            return self.inner.follow_events(agent_id, channel=channel, heartbeat_ms=heartbeat_ms, **span)
        return _OfChannel(self.inner.follow_events(agent_id, heartbeat_ms=heartbeat_ms, **span), channel)


@fault(
    "EVT-8",
    "OPS-10",
    source="tenacity: @retry(retry=retry_if_exception_type(StorageError)) on every method, also on methods that give numbers",
    witness=lambda ctx: _emits_once(ctx),
)
class PolecatEmitsAgain(Wrapper):
    """Emits an event again, under a new number, when it is not known whether the first one was stored."""

    __slots__ = ()

    async def emit(self, agent_id: str, type: Any, data: Any = None, **given: Any) -> Any:  # noqa: A002
        try:
            return await self.inner.emit(agent_id, type, data, **given)
        except OutcomeUnknownError:
            return await self.inner.emit(agent_id, type, data, **given)


# --- todos ------------------------------------------------------------------------------------------------------------


@fault(
    "TODO-1",
    "VAL-2",
    source="a write-through cache that is set before the write, so that readers need not wait for the database",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("one")),
        lambda s: s.save_todos("a", TodoSnapshot(todos=[TodoItem(id="1", title="\ud83d\ude00")])),
        lambda s: _titles(s.load_todos("a")),
    ),
)
class PolecatCachesBeforeItWrites(Wrapper):
    """Loads todos that were refused, until others are saved."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.early: dict[str, Any] = {}

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if type(agent_id) is str and isinstance(snapshot, TodoSnapshot):
            self.early[agent_id] = snapshot
        await self.inner.save_todos(agent_id, snapshot, fence=fence)
        self.early.pop(agent_id, None)

    async def save_turn(self, agent_id: str, *, todos: Any = None, **given: Any) -> Any:
        offsets = await self.inner.save_turn(agent_id, todos=todos, **given)
        if todos is not None:
            self.early.pop(agent_id, None)
        return offsets

    async def load_todos(self, agent_id: str) -> Any:
        stored = await self.inner.load_todos(agent_id)
        return self.early.get(agent_id, stored)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        self.early.pop(agent_id, None)


@fault(
    "OPS-10",
    "TODO-1",
    "LIFE-3",
    source="a journal in front of the database that is replayed when the store opens, and not cut when it closes",
    witness=lambda ctx: _reopens(ctx),
)
class PolecatReplaysItsJournal(Wrapper):
    """Writes the todos that an instance saved last again when the next one opens, over what others have saved since."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.journal: dict[str, Any] = {}
        self.is_ready = False

    async def ready(self) -> None:
        if not self.is_ready:
            self.is_ready = True
            left = beside(self.inner, "journals")
            for name in [*left]:
                for agent_id, snapshot in left.pop(name, {}).items():
                    await self.inner.save_todos(agent_id, snapshot)
                    self.journal[agent_id] = snapshot

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await self.ready()
        await self.inner.save_todos(agent_id, snapshot, fence=fence)
        self.journal[agent_id] = snapshot

    async def save_turn(self, agent_id: str, *, todos: Any = None, **given: Any) -> Any:
        await self.ready()
        offsets = await self.inner.save_turn(agent_id, todos=todos, **given)
        if todos is not None:
            self.journal[agent_id] = todos
        return offsets

    async def load_todos(self, agent_id: str) -> Any:
        await self.ready()
        return await self.inner.load_todos(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        self.journal.pop(agent_id, None)

    async def close(self) -> None:
        with contextlib.suppress(KodeError):
            if self.journal:
                beside(self.inner, "journals")[id(self)] = self.journal
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


# --- history and snapshots --------------------------------------------------------------------------------------------


@fault(
    "HIS-1",
    source="DynamoDB takes items of 400 KB, so that larger ones go to S3 and their list is put behind the other one",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w1", samples.T0).replace(messages=talk("x" * 450_000))),
        lambda s: s.save_history_window("a", samples.window("w2", samples.T0 + 1)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class PolecatListsLargeWindowsLast(Wrapper):
    """Loads history windows of more than 400 KB behind all smaller ones, whatever their timestamps."""

    __slots__ = ()

    async def load_history_windows(self, agent_id: str) -> Any:
        found = await self.inner.load_history_windows(agent_id)
        return sorted(found, key=lambda window: len(to_json(window)) > 400 * 1024)


@fault(
    "HIS-1",
    source="files in folders as the records refer to each other: windows/w1/compressions/c1.json",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("c1").replace(window_id="w1")),
        lambda s: s.save_compression_record("a", samples.compression("c1").replace(window_id="w2")),
        lambda s: the("window_id", s.load_compression_records("a")),
    ),
)
class PolecatFilesCompressionsUnderTheirWindows(Layer):
    """Keeps two compression records of one id when they are of different windows."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        return await super().commit([replace(b, docs=tuple(map(self.filed, b.docs))) for b in batches])

    @staticmethod
    def filed(write: DocWrite) -> DocWrite:
        if write.kind != DocKind.COMPRESSIONS or write.doc is None:
            return write
        key = f"{write.key}/{decode_json(write.doc.body.text)['windowId']}"
        return replace(write, key=key, doc=Doc(key, write.doc.time, write.doc.body))


@fault(
    "SNAP-1",
    "MSG-8",
    source="a snapshot is a prefix of the conversation, so its length is all that is kept of it",
    witness=seen(
        lambda s: s.save_messages("a", talk("x", "y", "z")),
        lambda s: s.save_snapshot("a", Snapshot(id="s", messages=talk("x", "y"), created_at=samples.T0)),
        lambda s: s.replace_message("a", 1, samples.message(text="edited")),
        lambda s: s.load_snapshot("a", "s"),
    ),
)
class PolecatKeepsSnapshotsAsLengths(Wrapper):
    """Gives a snapshot of the beginning of the agent's messages with what these are by now."""

    __slots__ = ()

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)
        with contextlib.suppress(KodeError):
            length = len(snapshot.messages)
            stored = await self.inner.load_messages(agent_id, before=length)
            lengths = beside(self.inner, "lengths")
            lengths.pop((agent_id, snapshot.id), None)
            if length and to_json(stored) == to_json([*snapshot.messages]):
                lengths[agent_id, snapshot.id] = length

    async def import_agent(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.import_agent(agent_id, records, fence=fence)
        lengths = beside(self.inner, "lengths")
        for key in [key for key in lengths if key[0] == agent_id]:
            del lengths[key]

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        found = await self.inner.load_snapshot(agent_id, snapshot_id)
        return None if found is None else await self.whole(agent_id, found)

    async def list_snapshots(self, agent_id: str) -> Any:
        return [await self.whole(agent_id, found) for found in await self.inner.list_snapshots(agent_id)]

    async def whole(self, agent_id: str, found: Any) -> Any:
        length = beside(self.inner, "lengths").get((agent_id, found.id))
        return (
            found if length is None else found.replace(messages=await self.inner.load_messages(agent_id, before=length))
        )


# --- info -------------------------------------------------------------------------------------------------------------


@fault(
    "INFO-4",
    source="a create that may be repeated: 409 is taken for success when the stored record equals the sent one",
    witness=seen(
        lambda s: s.create_agent("a", samples.info("a")),
        lambda _, t: t.create_agent("a", samples.info("a")),
    ),
)
class PolecatTakesAnEqualInfoForItsOwn(Wrapper):
    """Lets every caller create an agent who gives the info that it has."""

    __slots__ = ()

    async def create_agent(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.create_agent(agent_id, info, fence=fence)
        except ConflictError:
            stored = await self.inner.load_info(agent_id)
            if stored is None or stored.replace(message_count=0) != info.replace(message_count=0):
                raise


@fault(
    "OPS-13",
    "INFO-5",
    source="a data loader: the calls of one turn of the event loop become one, and all get its error",
    errors=True,
    witness=lambda ctx: _updates_at_once(ctx),
)
class PolecatMergesUpdatesOfOneMoment(Wrapper):
    """Refuses a sound `update_info` when another one for the agent, made at the same moment, is refused."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.waiting: dict[str, list[Any]] = {}

    async def update_info(self, agent_id: str, metadata: Any, *, remove: Any = (), fence: Any = None) -> Any:
        is_plain = type(metadata) is dict and isinstance(remove, (list, tuple)) and type(agent_id) is str
        if not is_plain or fence is not None or not all(type(key) is str for key in (*metadata, *remove)):
            return await self.inner.update_info(agent_id, metadata, remove=remove, fence=fence)
        if any(key in metadata for key in remove):
            return await self.inner.update_info(agent_id, metadata, remove=remove)
        joined = self.waiting.get(agent_id)
        if joined is not None:
            done = asyncio.get_running_loop().create_future()
            joined.append((metadata, remove, done))
            return copy.deepcopy(await done)
        joined = self.waiting[agent_id] = [(metadata, remove, None)]
        try:
            await asyncio.sleep(0)
        finally:
            del self.waiting[agent_id]
        return await self.write(agent_id, joined)

    async def write(self, agent_id: str, joined: list[Any]) -> Any:
        sets: dict[str, Any] = {}
        removes: dict[str, None] = {}
        for metadata, remove, _ in joined:
            for key in remove:
                sets.pop(key, None)
                removes[key] = None
            for key, value in metadata.items():
                removes.pop(key, None)
                sets[key] = value
        waiters = [done for _, _, done in joined if done is not None]
        try:
            info = await self.inner.update_info(agent_id, sets, remove=[*removes])
        except BaseException as exc:
            for done in waiters:
                if not done.done():
                    done.set_exception(exc) if isinstance(exc, Exception) else done.cancel()
            raise
        for done in waiters:
            if not done.done():
                done.set_result(info)
        return info


# --- lifecycle --------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-5",
    source="a delete in chunks of an IN list, with the number of each chunk where the number of all was meant",
    witness=lambda ctx: _stops_deleting(ctx),
)
class PolecatCountsTheLastHundred(Wrapper):
    """Says, when `delete_many` ends early, how many of the last hundred sessions it deleted, and not how many in all."""

    __slots__ = ()

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        others = {"agent_id", "limit", "offset", "cursor", "order", "sort_by"}
        if filters in ({}, {"metadata": {}}) or others & {*filters}:
            return await self.inner.delete_many(progress=progress, **filters)
        found = [row.agent_id async for row in self.inner.iter_sessions(**filters)]
        if len(found) <= 100:
            return await self.inner.delete_many(progress=progress, **filters)
        total = 0
        for i in range(0, len(found), 100):
            before = total

            def told(done: int, of: int | None, before: int = before) -> None:
                if progress is not None:
                    progress(before + done, None)

            total += await self.inner.delete_many(progress=told, agent_id=found[i : i + 100], **filters)
        return total


@fault(
    "LIFE-8",
    "MSG-12",
    source="a foreign key: a row of message_keys needs its message, so that the others are left out of an import",
    witness=seen(
        lambda s: s.append_messages_once("a", {"k1": samples.message(1), "k2": samples.message(2)}),
        lambda s: s.pop_messages("a"),
        lambda s: _moves_to(s, "a", "b"),
        lambda s: s.append_messages_once("b", {"k2": samples.message(2)}),
    ),
)
class PolecatDropsTheKeysOfGoneMessages(Wrapper):
    """Imports an agent without the keys of messages whose positions the list no longer has."""

    __slots__ = ()

    async def import_agent(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, AgentRecords) and type(records.message_keys) is dict:
            count = len(records.messages)
            keys = {key: p for key, p in records.message_keys.items() if type(p) is not int or p < count}
            records = records.replace(message_keys=keys)
        await self.inner.import_agent(agent_id, records, fence=fence)


# --- queries ----------------------------------------------------------------------------------------------------------


def texts_of(value: Any) -> Iterator[str]:
    """Every string that is a value in *value*."""
    if type(value) is str:
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_of(item)


def searched(message: Message) -> Iterator[str]:
    """The texts of a message."""
    for block in message.content:
        match block:
            case TextBlock(text=text) | ReasoningBlock(reasoning=text):
                yield text
            case FileBlock(filename=str(text)):
                yield text
            case ToolUseBlock(input=value) | ToolResultBlock(content=value):
                yield from texts_of(value)
            case UnknownBlock(data=data):
                yield from texts_of({key: value for key, value in data.items() if key != "type"})


@fault(
    "QRY-12",
    "QRY-10",
    source="SELECT count(*) … WHERE text LIKE '%' || ? || '%', where the query itself escapes % and _",
    witness=seen(
        lambda s: s.save_messages("a", talk("get 50% off", "get 5,000 off", "snake_case")),
        lambda s: the("text", s.query_messages(contains="50% off")),
        lambda s: s.count_messages(contains="5% off"),
        lambda s: s.count_messages(contains="e_c"),
        lambda s: s.count_messages(contains="t_5"),
    ),
)
class PolecatCountsWithLike(Wrapper):
    """Counts messages with `%` and `_` in `contains` as wildcards, though it finds them with both as they are."""

    __slots__ = ()

    async def count_messages(self, **filters: Any) -> int:
        contains = filters.get("contains")
        if type(contains) is not str or len(contains) > 10_000 or not {"%", "_"} & {*contains}:
            return await self.inner.count_messages(**filters)
        del filters["contains"]
        if {"limit", "offset", "cursor", "order"} & {*filters}:
            return await self.inner.count_messages(**filters)
        wild = {"%": ".*", "_": "."}
        pattern = re.compile("".join(wild.get(c) or re.escape(c) for c in contains.casefold()), re.DOTALL)
        found = 0
        async with aclosing(self.inner.iter_messages(**filters)) as messages:
            async for message in messages:
                found += any(pattern.search(text.casefold()) for text in searched(message))
        return found


# --- documents --------------------------------------------------------------------------------------------------------


@fault(
    "DOC-4",
    source="Firebase's idiom for a prefix: startAt(prefix).endAt(prefix + '\\uf8ff')",
    witness=seen(
        lambda s: _all(
            *(s.put_document("a", "c", f"user:{name}", 1) for name in ("anna", "山田", "ｙａｍａｄａ", "😀"))
        ),
        lambda s: s.list_document_keys("a", "c", prefix="user:"),
    ),
)
class PolecatEndsPrefixesAtThePrivateUse(Wrapper):
    """Leaves documents out of a prefix whose keys go on, behind it, with a character beyond U+F8FF, such as an emoji."""

    __slots__ = ()

    @staticmethod
    def ended(span: dict[str, Any]) -> dict[str, Any]:
        prefix, stop = span.get("prefix"), span.get("stop")
        if type(prefix) is not str or not prefix or len(prefix) > 90 or not isinstance(stop, str | None):
            return span
        end = f"{prefix}\uf8ff"
        return {**span, "stop": end if stop is None else min(stop, end)}

    async def list_documents(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.inner.list_documents(agent_id, collection, **self.ended(span))

    async def list_document_keys(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.inner.list_document_keys(agent_id, collection, **self.ended(span))

    def iter_documents(self, agent_id: str, collection: str, **span: Any) -> Any:
        return self.inner.iter_documents(agent_id, collection, **self.ended(span))


# --- operations -------------------------------------------------------------------------------------------------------


@fault(
    "OPS-12",
    source="a warning that helps to find lost updates later: the new value, and the stored one",
    witness=lambda ctx: _reads_the_log(ctx),
)
class PolecatLogsWhatLost(Wrapper):
    """Writes the value of a document into the log when its put is refused because of its version."""

    __slots__ = ()

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **given: Any) -> str:
        try:
            return await self.inner.put_document(agent_id, collection, key, value, **given)
        except ConflictError as exc:
            log.warning("%s/%s of %s is at %s, not written: %.200r", collection, key, agent_id, exc.version, value)
            raise


@fault(
    "OPS-5",
    source="if self._closed: return, and self._closed = True in front of the await",
    witness=lambda ctx: _closes_twice(ctx),
)
class PolecatClosesOnceAndReturns(Wrapper):
    """Returns from a second `close` at once, while the first still waits for accepted writes."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.is_closing = False

    async def close(self) -> None:
        if not self.is_closing:
            self.is_closing = True
            await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@fault(
    "OPS-13",
    "OPS-9",
    source="a cache without stampedes: later callers await the first caller's own future, and are cancelled with it",
    errors=True,
    on=OnSqlite,
    witness=lambda ctx: _asks_twice(ctx),
)
class PolecatCancelsThoseWhoJoined(Wrapper):
    """Cancels a `load_session` that was made while another one for the agent was under way when that one is."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.flights: dict[str, asyncio.Future[Any]] = {}

    async def load_session(self, agent_id: str) -> Any:
        if type(agent_id) is not str:
            return await self.inner.load_session(agent_id)
        flight = self.flights.get(agent_id)
        if flight is not None:
            return copy.deepcopy(await asyncio.shield(flight))
        flight = self.flights[agent_id] = asyncio.get_running_loop().create_future()
        try:
            found = await self.inner.load_session(agent_id)
        except asyncio.CancelledError:
            flight.cancel()
            raise
        except Exception as exc:
            flight.set_exception(exc)
            flight.exception()  # there may be no one to look at it
            raise
        else:
            flight.set_result(found)
            return found
        finally:
            del self.flights[agent_id]


# --- locks and forks --------------------------------------------------------------------------------------------------


@fault(
    "LOCK-7",
    "LOCK-5",
    source="a queue and one worker that writes, started by the first append: a task has the context in which it was made",
    errors=True,
    witness=lambda ctx: _appends_inside_and_after(ctx),
)
class PolecatAppendsInAWorker(Wrapper):
    """Appends messages in a task of its own, which has the fences of the first appender, and not the fences of the
    caller.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.worker: asyncio.Task[None] | None = None
        self.is_closed = False

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if self.is_closed:
            await self.inner.append_messages(agent_id, messages, fence=fence)
            return
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self.work())
        done = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((agent_id, messages, fence, done))
        await done

    async def work(self) -> None:
        while (job := await self.queue.get()) is not None:
            agent_id, messages, fence, done = job
            if done.done():
                continue
            try:
                await self.inner.append_messages(agent_id, messages, fence=fence)
            except Exception as exc:
                if not done.done():
                    done.set_exception(exc)
            else:
                if not done.done():
                    done.set_result(None)

    async def close(self) -> None:
        self.is_closed = True
        if self.worker is not None and not self.worker.done():
            self.queue.put_nowait(None)
            await asyncio.wait([self.worker])
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _KeptLock:
    def __init__(self, inner: Any, seconds: float, tasks: set[Any]) -> None:
        self.inner = inner
        self.seconds = seconds
        self.tasks = tasks

    def __await__(self) -> Any:
        return self.take().__await__()

    async def take(self) -> Any:
        lease = await self.inner
        task = asyncio.create_task(self.keep(lease))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        release = lease.release

        async def release_and_stop() -> None:
            task.cancel()
            await release()

        lease.release = release_and_stop
        return lease

    async def keep(self, lease: Any) -> None:
        with contextlib.suppress(KodeError):
            while True:
                await asyncio.sleep(self.seconds / 3)
                await lease.renew()

    async def __aenter__(self) -> Any:
        return await self.inner.__aenter__()

    async def __aexit__(self, *exc: Any) -> Any:
        return await self.inner.__aexit__(*exc)


@fault(
    "LOCK-3",
    source="Redisson's watchdog, which renews a lock until it is unlocked, however it was taken",
    witness=lambda ctx: _lets_a_lease_run_out(ctx),
)
class PolecatRenewsAwaitedLeases(Wrapper):
    """Renews a lease that was awaited, and not entered, so that it never ends by its time."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.tasks: set[Any] = set()

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        return _KeptLock(self.inner.acquire_agent_lock(agent_id, ttl_ms, wait_ms), ttl_ms / 1000, self.tasks)

    async def close(self) -> None:
        for task in [*self.tasks]:
            task.cancel()
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@fault(
    "FORK-4",
    "TC-2",
    source="{call.id: call for call in calls}, to find the call of each tool use that the fork has",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_messages("a", [Message("assistant", [ToolUseBlock(id="c", name="n", input={})]), *talk("x")]),
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0, id="c"), samples.tool_call(1, id="c")]),
        lambda s: s.fork("a", "b", length=1),
        lambda s: _count(s.load_tool_call_records("b")),
    ),
)
class PolecatForksOneCallForEachId(Wrapper):
    """Takes, into a fork from an earlier point, the last one only of several tool calls with the same id."""

    __slots__ = ()

    async def fork(self, agent_id: str, new_id: str | None = None, **given: Any) -> str:
        child: str = await self.inner.fork(agent_id, new_id, **given)
        if given.get("length") is not None or given.get("snapshot_id") is not None:
            calls = await self.inner.load_tool_call_records(child)
            last = {call.id: i for i, call in enumerate(calls)}
            if len(last) < len(calls):
                kept = [call for i, call in enumerate(calls) if last[call.id] == i]
                await self.inner.save_tool_call_records(child, kept)
        return child


# --- tenants ----------------------------------------------------------------------------------------------------------


@fault(
    "SCOPE-1",
    "ID-2",
    source="Go's singleflight and its like: calls of one key share a result, and the key is the id without its tenant",
    on=OnSqlite,
    witness=lambda ctx: _asks_for_two_tenants(ctx),
)
class PolecatSharesFlightsBetweenTenants(Wrapper):
    """Gives the todos of another tenant's agent when both are loaded at the same moment and have the same id."""

    def __init__(self, inner: Any, flights: dict[str, asyncio.Future[Any]] | None = None) -> None:
        super().__init__(inner)
        self.flights: dict[str, asyncio.Future[Any]] = {} if flights is None else flights

    def scoped(self, tenant: str) -> Any:
        return type(self)(self.inner.scoped(tenant), self.flights)

    async def load_todos(self, agent_id: str) -> Any:
        if type(agent_id) is not str:
            return await self.inner.load_todos(agent_id)
        flight = self.flights.get(agent_id)
        if flight is not None:
            with contextlib.suppress(LookupError):
                return copy.deepcopy(await asyncio.shield(flight))
            return await self.inner.load_todos(agent_id)
        flight = self.flights[agent_id] = asyncio.get_running_loop().create_future()
        try:
            found = await self.inner.load_todos(agent_id)
        except BaseException:
            flight.set_exception(LookupError(agent_id))
            flight.exception()
            raise
        else:
            flight.set_result(found)
            return found
        finally:
            del self.flights[agent_id]


# --- witnesses --------------------------------------------------------------------------------------------------------


async def _count(records: Any) -> int:
    return len(await records)


async def _all(*calls: Any) -> None:
    for call in calls:
        await call


async def _seqs(events: Any) -> list[int]:
    return [event.bookmark.seq async for event in events]


async def _positions(messages: Any) -> list[int]:
    return [message.position async for message in messages]


async def _titles(todos: Any) -> list[str]:
    return [item.title for item in (await todos).todos]


async def _marks_what_it_finds(store: Any) -> None:
    for row in await store.query_sessions():
        row.metadata["tags"].append("seen")


async def _prunes(store: Any, seq: int) -> int:
    offsets = [event.offset async for event in store.read_events("a") if event.bookmark.seq == seq]
    result = await store.prune("a", events_before_offset=offsets[0] + 1)
    return int(result.events)


async def _moves_to(store: Any, old: str, new: str) -> None:
    await store.import_agent(new, await store.load_agent(old))


async def _name_of(call: Any) -> object:
    """The result of a call, or the name of its error."""
    try:
        return await call
    except Exception as exc:
        return type(exc).__name__


async def _waits_for_a_heartbeat(ctx: Context) -> object:
    store = ctx.store

    async def speak() -> None:
        for i in range(60):
            await store.append_event("a", samples.event(i))
            await asyncio.sleep(0.03)
        await store.append_event("a", samples.event(100, "control"))

    speaking = asyncio.create_task(speak())
    try:
        async with aclosing(store.follow_events("a", channel="control", heartbeat_ms=600)) as items:
            async for item in items:
                return type(item).__name__
    finally:
        await speaking
    return None


class _LosesAnAnswer(Layer):
    """Loses the answer to the first write of events."""

    is_done = False

    async def commit(self, batches: Sequence[Any]) -> Any:
        outcomes = await super().commit(batches)
        if self.is_done or not any(batch.events for batch in batches):
            return outcomes
        self.is_done = True
        return [OutcomeUnknownError("the answer was lost") for _ in batches]


async def _emits_once(ctx: Context) -> object:
    store: Any = await ctx.another(layers=[_LosesAnAnswer])
    said = await _name_of(store.emit("a", "done"))
    return said if isinstance(said, str) else "stored", len(await _seqs(ctx.store.read_events("a")))


async def _reopens(ctx: Context) -> object:
    one: Any = await ctx.another()
    other: Any = await ctx.another()
    await one.save_todos("a", samples.todos("first"))
    await other.save_todos("a", samples.todos("second"))
    await ctx.close(one)
    again: Any = await ctx.another()
    return await _titles(again.load_todos("a"))


async def _updates_at_once(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    store: Any = ctx.store
    results = await asyncio.gather(
        _name_of(store.update_info("a", {"x": float("nan")})), _name_of(store.update_info("a", {"y": 1}))
    )
    return [result if isinstance(result, str) else "updated" for result in results]


async def _stops_deleting(ctx: Context) -> object:
    store: Any = ctx.store
    for i in range(250):
        await store.save_info(f"a{i:03}", samples.info(f"a{i:03}", template_id="t"))

    def stop(done: int, total: int | None) -> None:
        if done >= 130:
            raise RuntimeError("enough")

    try:
        await store.delete_many(template_id="t", progress=stop)
    except RuntimeError as exc:
        said = " ".join([str(exc), *getattr(exc, "__notes__", ())])
        return str(250 - await store.count_sessions(template_id="t")) in re.findall(r"\d+", said)
    return "not stopped"


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


async def _reads_the_log(ctx: Context) -> object:
    handler = _Lines()
    logging.getLogger().addHandler(handler)
    store: Any = ctx.store
    stale = await store.put_document("a", "c", "k", 1)
    await store.put_document("a", "c", "k", 2)
    try:
        said = await _name_of(store.put_document("a", "c", "k", {"card": "4111-1111"}, expect=stale))
    finally:
        logging.getLogger().removeHandler(handler)
    return said, any("4111-1111" in line for line in handler.lines)


class _Slow(Layer):
    async def commit(self, batches: Sequence[Any]) -> Any:
        await asyncio.sleep(0.4)
        return await super().commit(batches)

    async def summary(self, agent_id: str) -> Any:
        await asyncio.sleep(0.2)
        return await super().summary(agent_id)


async def _closes_twice(ctx: Context) -> object:
    store: Any = await ctx.another(layers=[_Slow])
    writing = asyncio.create_task(store.save_todos("a", samples.todos("x")))
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0.05)
    await store.close()
    was_done = writing.done()
    await asyncio.gather(writing, closing)
    return was_done


async def _asks_twice(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    store: Any = await ctx.another(layers=[_Slow])
    first = asyncio.create_task(store.load_session("a"))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(store.load_session("a"))
    await asyncio.sleep(0.05)
    first.cancel()
    results = await asyncio.gather(first, second, return_exceptions=True)
    return [type(result).__name__ for result in results]


async def _appends_inside_and_after(ctx: Context) -> object:
    store: Any = ctx.store
    async with store.acquire_agent_lock("a"):
        inside = await _name_of(store.append_messages("a", talk("x")))
    return inside, await _name_of(store.append_messages("a", talk("y")))


async def _lets_a_lease_run_out(ctx: Context) -> object:
    other: Any = await ctx.another()
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=200)
    await asyncio.sleep(0.8)
    next_one = await _name_of(other.acquire_agent_lock("a"))
    await lease.release()
    return next_one if isinstance(next_one, str) else "taken"


async def _asks_for_two_tenants(ctx: Context) -> object:
    store: Any = ctx.store
    acme, beta = store.scoped("acme"), store.scoped("beta")
    await acme.save_todos("a", samples.todos("of acme"))
    await beta.save_todos("a", samples.todos("of beta"))
    return await asyncio.gather(_titles(acme.load_todos("a")), _titles(beta.load_todos("a")))
