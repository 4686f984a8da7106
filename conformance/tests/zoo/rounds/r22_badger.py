"""Stores on document and key-value databases, object stores, queues and files, each with one fault of that world."""

from __future__ import annotations

import asyncio
import copy
import heapq
import itertools
import posixpath
import re
import sqlite3
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, closing, suppress
from typing import Any, ClassVar
from urllib.parse import unquote

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import CommittingLayer, MemoryLayer, OnSqlite, StreamWrapper, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, seen, talk, the
from kode_core import to_json
from kode_core.batch import Applied, Doc, DocKind, DocWrite, ListKind
from kode_core.engines.event_log import EventLog
from kode_core.errors import KodeError
from kode_core.jsonvalue import decode_json, encode_json
from kode_core.layers import Layer
from kode_core.model import (
    CHANNELS,
    AgentRecords,
    Bookmark,
    PutDocument,
    TextBlock,
    TodoSnapshot,
    ToolCallRecord,
)
from kode_core.protocols import Heartbeat
from kode_core.query import Page

# --- values and ids ---------------------------------------------------------------------------------------------------


@fault(
    "VAL-1",
    "DOC-1",
    source="an LRU cache of decoded blobs by version: objects of 64 KB and more are parsed once, and handed out as they are",
    witness=lambda ctx: _changes_what_it_loaded(ctx),
)
class BadgerCachesDecodedBlobs(Wrapper):
    """Hands out one and the same value at every load of a document of 64 KB or more, so that a caller who changes what
    it loaded changes what the next one gets."""

    __slots__ = ("decoded",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.decoded: dict[tuple[str, str], Any] = {}

    async def load_document(self, agent_id: str, collection: str, key: str) -> Any:
        found = await self.inner.load_document(agent_id, collection, key)
        name = agent_id, "" if found is None else found.version
        if name in self.decoded:
            return replace(found, value=self.decoded[name])
        if found is not None and len(to_json(found)) >= 2**16:
            self.decoded[name] = found.value
        return found


@fault(
    "VAL-6",
    "FORK-1",
    source="Mongoose with strict schemas: new Model(parent.toObject()) drops the paths that the schema does not have",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", extra={"region": "eu"})),
        lambda s: _fork_and_show(s),
    ),
)
class BadgerForksKnownFields(Wrapper):
    """Leaves the info's fields that this version does not know out of forks."""

    __slots__ = ()

    async def rebuilt(self, child: str) -> str:
        info = await self.inner.load_info(child)
        if info is not None and info.extra:
            await self.inner.save_info(child, info.replace(extra=None))
        return child

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        return [await self.rebuilt(child) for child in await self.inner.batch_fork(agent_id, count)]

    async def fork(self, agent_id: str, new_id: str | None = None, **cut: Any) -> str:
        return await self.rebuilt(await self.inner.fork(agent_id, new_id, **cut))


@fault(
    "ID-2",
    "LIFE-3",
    source="content-addressed blobs in one bucket, and a delete that removes the blobs without a count of references",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("win-1")),
        lambda s: s.save_history_window("b", samples.window("win-1")),
        lambda s: s.delete("a"),
        lambda s: the("id", s.load_history_windows("b")),
    ),
)
class BadgerSweepsSharedBlobs(CommittingLayer):
    """Removes, when an agent is deleted, the history windows of other agents that have the same contents."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        blobs = {
            doc.body.digest
            for (kind, _), doc in self.space.state(batch.agent_id).docs.items()
            if batch.delete and kind == DocKind.WINDOWS
        }
        outcome = commit(batch)
        if blobs and isinstance(outcome, Applied):
            for state in self.space.states.values():
                for name, doc in list(state.docs.items()):
                    if name[0] == DocKind.WINDOWS and doc.body.digest in blobs:
                        del state.docs[name]
        return outcome


# --- messages, tool calls, turns --------------------------------------------------------------------------------------


@fault(
    "MSG-4",
    source="a map from the hash of a message to its time, made before a list is replaced, to give the times back after it",
    witness=lambda ctx: _saves_at(ctx),
)
class BadgerKeysTimesByContent(CommittingLayer):
    """Gives all equal messages the time of the last one of them when a list is saved again."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        before = self.space.state(batch.agent_id).lists[ListKind.MESSAGES].rows
        times = {row.body.digest: row.created_at for row in before}
        outcome = commit(batch)
        if isinstance(outcome, Applied) and batch.messages is not None and batch.messages.expect is not None:
            rows = self.space.state(batch.agent_id).lists[ListKind.MESSAGES]
            rows.rows[:] = [replace(row, created_at=times.get(row.body.digest, row.created_at)) for row in rows.rows]
            rows._latest = None
        return outcome


@fault(
    "MSG-10",
    source="Redis: LRANGE key -200 -101 counts back from the end that the list has by now",
    witness=lambda ctx: _reads_backwards(ctx),
)
class BadgerPagesBackwardsByOffset(Wrapper):
    """Yields messages twice in `read_messages(reverse=True)` when others append between two pages of 100."""

    __slots__ = ()

    async def read_messages(
        self, agent_id: str, *, after: int | None = None, before: int | None = None, reverse: bool = False
    ) -> AsyncIterator[Any]:
        if not reverse or before is not None or after is not None:
            async with aclosing(
                self.inner.read_messages(agent_id, after=after, before=before, reverse=reverse)
            ) as found:
                async for message in found:
                    yield message
            return
        for taken in itertools.count(0, 100):
            end = await self.inner.count_messages(agent_id=agent_id) - taken
            if end <= 0:
                return
            span = {"before": end, "after": end - 101 if end > 100 else None}
            async with aclosing(self.inner.read_messages(agent_id, reverse=True, **span)) as found:
                async for message in found:
                    yield message


@fault(
    "MSG-12",
    source="DynamoDB: BatchGetItem takes 100 keys; the keys are cut to fit",
    witness=seen(
        lambda s: _length(s.append_messages_once("a", {f"k{i}": samples.message(i) for i in range(120)})),
        lambda s: _new_ones(s.append_messages_once("a", {f"k{i}": samples.message(i) for i in range(120)})),
        lambda s: _length(s.load_messages("a")),
    ),
)
class BadgerGetsAHundredKeysAtOnce(Wrapper):
    """Appends the messages of known keys again when they are behind the hundredth key of a call."""

    __slots__ = ()

    async def append_messages_once(self, agent_id: str, messages: Any, *, fence: Any = None) -> Any:
        if isinstance(messages, dict) and len(messages) > 100:
            with suppress(KodeError):
                whole = await self.inner.load_agent(agent_id)
                known = {} if whole is None else whole.message_keys
                messages = {
                    f"again-{uuid.uuid4()}" if i >= 100 and key in known else key: message
                    for i, (key, message) in enumerate(messages.items())
                }
        return await self.inner.append_messages_once(agent_id, messages, fence=fence)


_OMITTED = ("result", "error", "is_error", "started_at", "completed_at", "duration_ms")


@fault(
    "TC-3",
    "VAL-3",
    source="MongoDB drivers with ignoreUndefined, and Prisma: fields without a value are not in the $set of an upsert",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(state="FAILED", error="timeout", is_error=True)]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(state="COMPLETED", error=None)]),
        lambda s: the("error", s.load_tool_call_records("a")),
    ),
)
class BadgerMergesUpserts(Wrapper):
    """Keeps the old value of fields, such as `error`, that the record of an upsert leaves absent."""

    __slots__ = ()

    async def merged(self, agent_id: str, records: Any) -> Any:
        if not isinstance(records, (list, tuple)) or not all(isinstance(one, ToolCallRecord) for one in records):
            return records
        if not any(getattr(one, name) is None for one in records for name in _OMITTED):
            return records
        try:
            stored = {one.id: one for one in await self.inner.load_tool_call_records(agent_id)}
        except KodeError:
            return records
        return [self.over(stored.get(one.id), one) for one in records]

    @staticmethod
    def over(old: Any, new: Any) -> Any:
        absent = [] if old is None else [name for name in _OMITTED if getattr(new, name) is None]
        kept = {name: getattr(old, name) for name in absent if getattr(old, name) is not None}
        return new.replace(**kept) if kept else new

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.upsert_tool_call_records(agent_id, await self.merged(agent_id, records), fence=fence)

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Any = (), **rest: Any) -> Any:
        if upsert_tool_calls:
            upsert_tool_calls = await self.merged(agent_id, upsert_tool_calls)
        return await self.inner.save_turn(agent_id, upsert_tool_calls=upsert_tool_calls, **rest)


@fault(
    "TURN-2",
    "EVT-4",
    source="INSERT … ON CONFLICT DO NOTHING RETURNING: a row that was there before returns nothing",
    witness=seen(
        lambda s: s.save_turn("a", append=talk("x"), events=happened(0, 1)),
        lambda s: s.save_turn("a", append=talk("y"), events=happened(1, 2)),
    ),
)
class BadgerReturnsOnlyTheInserted(Wrapper):
    """Returns from a turn no offsets of the events that were stored before, so that the others stand at wrong places."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, events: Any = (), **rest: Any) -> Any:
        stored: set[int] = set()
        with suppress(KodeError, AttributeError, TypeError, ValueError):
            if events:
                since = Bookmark(min(event.bookmark.seq for event in events) - 1, 0)
                async with aclosing(self.inner.read_events(agent_id, since=since)) as found:
                    stored = {event.offset async for event in found}
        offsets = await self.inner.save_turn(agent_id, events=events, **rest)
        return tuple(offset for offset in offsets if offset not in stored)


@fault(
    "TURN-1",
    "DOC-3",
    source="DynamoDB: a transaction had at most 25 items; what does not fit goes into a second request",
    witness=seen(
        lambda s: _done(s.put_document("a", "notes", "k7", 0)),
        lambda s: s.save_turn(
            "a", append=talk("x"), documents=[PutDocument("notes", f"k{i}", i, expect="0") for i in range(30)]
        ),
        lambda s: s.load_messages("a"),
    ),
)
class BadgerSplitsBigTurns(Wrapper):
    """Stores a turn's messages, and all else of it, before its documents if these are more than 25, and keeps them when
    a document's demand fails."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, documents: Any = (), fence: Any = None, **rest: Any) -> Any:
        if not isinstance(documents, (list, tuple)) or len(documents) <= 25:
            return await self.inner.save_turn(agent_id, documents=documents, fence=fence, **rest)
        offsets = await self.inner.save_turn(agent_id, fence=fence, **rest)
        await self.inner.write_documents(agent_id, documents, fence=fence)
        return offsets


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-5",
    source="a query builder whose cursor condition takes the place of the first page's condition in the second page",
    witness=lambda ctx: _reads_on(ctx),
)
class BadgerForgetsSinceOnTheSecondPage(Wrapper):
    """Yields events at or below `since` behind the first 500 events when `after_offset` is given, too."""

    __slots__ = ()

    async def read_events(
        self, agent_id: str, *, since: Any = None, after_offset: int | None = None, channel: Any = None
    ) -> AsyncIterator[Any]:
        count = 0
        async with aclosing(
            self.inner.read_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        ) as first:
            async for event in first:
                yield event
                count += 1
                if count == 500 and since is not None and after_offset is not None:
                    break
            else:
                return
        async with aclosing(self.inner.read_events(agent_id, after_offset=event.offset, channel=channel)) as rest:
            async for event in rest:
                yield event


class _Sifted(StreamWrapper):
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
    source="a consumer that restarts its idle timer with each message of the topic, and filters by header afterwards",
    witness=lambda ctx: _waits_for_heartbeats(ctx),
)
class BadgerHeartsOnlySilence(Wrapper):
    """Gives a follower of one channel no heartbeat while events of other channels come."""

    __slots__ = ()

    def follow_events(self, agent_id: str, *, channel: Any = None, heartbeat_ms: Any = None, **span: Any) -> Any:
        if heartbeat_ms is None or channel not in CHANNELS:
            return self.inner.follow_events(agent_id, channel=channel, heartbeat_ms=heartbeat_ms, **span)
        return _Sifted(self.inner.follow_events(agent_id, heartbeat_ms=heartbeat_ms, **span), channel)


class _Windowed(EventLog):
    __slots__ = ()
    stale: ClassVar[set[int]] = set()

    def find(self, seq: int, digest: bytes) -> int | None:
        found = super().find(seq, digest)
        return None if found in self.stale else found


@fault(
    "EVT-4",
    "DUR-1",
    source="NATS JetStream: duplicate_window, two minutes unless configured; SQS FIFO: five minutes",
    witness=lambda ctx: _appends_again_later(ctx),
)
class BadgerDeduplicatesForTwoMinutes(CommittingLayer):
    """Stores an event again that is appended a second time more than two minutes after the first."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        times: dict[int, int] = vars(self.space).setdefault("appended", {}).setdefault(batch.agent_id, {})
        state = self.space.states.get(batch.agent_id)
        if state is not None and batch.events:
            state.log.__class__ = _Windowed
            known = [state.log.find(event.seq, event.body.digest) for event in batch.events]
            _Windowed.stale = {n for n in known if n is not None and batch.now - times.get(n, batch.now) > 120_000}
        try:
            outcome = commit(batch)
        finally:
            _Windowed.stale = set()
        if isinstance(outcome, Applied):
            for offset in outcome.offsets:
                times.setdefault(offset, batch.now)
        return outcome


# --- todos, history, media, snapshots, info ---------------------------------------------------------------------------


def _by_id(snapshot: Any) -> Any:
    if not isinstance(snapshot, TodoSnapshot):
        return snapshot
    try:
        items = list({item.id: item for item in snapshot.todos}.values())
    except (AttributeError, TypeError):
        return snapshot
    return snapshot if len(items) == len(snapshot.todos) else snapshot.replace(todos=items)


@fault(
    "TODO-1",
    "VAL-1",
    source="Redis: HSET todos:a t1 {…}, a hash field for each todo, by its id",
    witness=lambda ctx: _saves_todos(ctx),
)
class BadgerKeysTodosById(Wrapper):
    """Keeps only the last of the todos of a list that have one id."""

    __slots__ = ()

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await self.inner.save_todos(agent_id, _by_id(snapshot), fence=fence)

    async def save_turn(self, agent_id: str, *, todos: Any = None, **rest: Any) -> Any:
        return await self.inner.save_turn(agent_id, todos=_by_id(todos), **rest)


@fault(
    "HIS-2",
    "ID-4",
    source="pathlib and os.path.normpath: ./policy/a.md and policy//a.md become policy/a.md",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("./policy/a.md", content="one")),
        lambda s: s.save_recovered_file("a", samples.recovered("policy/a.md", content="two")),
        lambda s: the("content", s.load_recovered_files("a")),
    ),
)
class BadgerNormalisesPaths(Layer):
    """Replaces a recovered file by one of the same time whose path names the same file in another way."""

    @staticmethod
    def put(write: Any) -> Any:
        if write.kind != DocKind.RECOVERED:
            return write
        path, timestamp = decode_json(write.key)
        key = encode_json([posixpath.normpath(path), timestamp], "key")
        return DocWrite(write.kind, key, None if write.doc is None else Doc(key, write.doc.time, write.doc.body))

    async def commit(self, batches: Sequence[Any]) -> Any:
        return await super().commit([replace(batch, docs=tuple(map(self.put, batch.docs))) for batch in batches])


@fault(
    "MED-1",
    source="a dirty check that compares the records as sets, to save a write",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("m1"), samples.media("m2")]),
        lambda s: s.save_media_cache("a", [samples.media("m2"), samples.media("m1")]),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class BadgerComparesMediaAsSets(Wrapper):
    """Keeps the old order of the media cache when the same records are saved in another order."""

    __slots__ = ()

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        with suppress(KodeError, TypeError, ValueError):
            stored = await self.inner.load_media_cache(agent_id)
            if Counter(map(to_json, stored)) == Counter(map(to_json, records)):
                records = stored
        await self.inner.save_media_cache(agent_id, records, fence=fence)


@fault(
    "SNAP-1",
    "LIFE-6",
    source="a read-through cache of objects that never change, cleared by each method that removes one, but for the newest",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("sfp-1")),
        lambda s: s.load_snapshot("a", "sfp-1"),
        lambda s: s.prune("a", keep_snapshots=0),
        lambda s: s.load_snapshot("a", "sfp-1"),
    ),
)
class BadgerLoadsPrunedSnapshots(Wrapper):
    """Goes on to load a snapshot that was pruned, in the instance that had loaded it before."""

    __slots__ = ("loaded", "pruned")

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.loaded: dict[tuple[str, str], Any] = {}
        self.pruned: set[tuple[str, str]] = set()

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        found = await self.inner.load_snapshot(agent_id, snapshot_id)
        name = agent_id, snapshot_id
        if found is not None:
            self.loaded[name] = copy.deepcopy(found)
            self.pruned.discard(name)
        elif name in self.pruned:
            return copy.deepcopy(self.loaded[name])
        return found

    async def prune(self, agent_id: str, **what: Any) -> Any:
        before = await the("id", self.inner.list_snapshots(agent_id)) if what.get("keep_snapshots") is not None else []
        result = await self.inner.prune(agent_id, **what)
        if before:
            left = await the("id", self.inner.list_snapshots(agent_id))
            gone = {(agent_id, one) for one in before if one not in left}
            self.pruned |= gone & set(self.loaded)
        return result

    async def delete_snapshot(self, agent_id: str, snapshot_id: str, *, fence: Any = None) -> None:
        await self.inner.delete_snapshot(agent_id, snapshot_id, fence=fence)
        self.pruned.discard((agent_id, snapshot_id))

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        self.pruned = {name for name in self.pruned if name[0] != agent_id}


def _by_cjson(value: Any) -> Any:
    if type(value) is dict:
        return {key: _by_cjson(item) for key, item in value.items()}
    if type(value) is list:
        return [_by_cjson(item) for item in value] if value else {}
    return value


@fault(
    "INFO-5",
    "VAL-1",
    source="Redis: cjson.encode(cjson.decode('[]')) is {}, as an empty Lua table is no array",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"tags": [], "plan": "gold"})),
        lambda s: s.update_info("a", {"plan": "free"}),
        lambda s: s.load_info("a"),
    ),
)
class BadgerUpdatesInfoInLua(Wrapper):
    """Turns the empty lists of an info's metadata into empty objects in `update_info`, also under keys that the call does
    not name."""

    __slots__ = ()

    async def update_info(self, agent_id: str, metadata: Any, *, remove: Any = (), fence: Any = None) -> Any:
        info = await self.inner.update_info(agent_id, metadata, remove=remove, fence=fence)
        made = {key: (value, _by_cjson(value)) for key, value in info.metadata.items()}
        changed = {key: new for key, (old, new) in made.items() if to_json(old) != to_json(new)}
        return await self.inner.update_info(agent_id, changed, fence=fence) if changed else info


# --- versions, lifecycle ----------------------------------------------------------------------------------------------


@fault(
    "VER-2",
    source="a ConditionExpression on the item of the agent, which a transaction has only when it writes that item",
    witness=seen(
        lambda s: s.append_messages("a", talk("x")),
        lambda s: s.save_turn("a", todos=samples.todos("t"), expect="0"),
        lambda s: s.load_todos("a"),
    ),
)
class BadgerDemandsOnlyWhatItTouches(Wrapper):
    """Ignores `expect` in a turn without messages, tool calls and info."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, expect: str | None = None, **rest: Any) -> Any:
        is_touching = any(rest.get(name) is not None for name in ("messages", "tool_calls", "info"))
        is_touching = is_touching or any(rest.get(name) for name in ("append", "upsert_tool_calls"))
        return await self.inner.save_turn(agent_id, expect=expect if is_touching else None, **rest)


@fault(
    "LIFE-8",
    "EVT-2",
    source="RocksDB: a file for IngestExternalFile must be written in the order of its keys, so a bulk load sorts first",
    witness=lambda ctx: _imports(ctx),
)
class BadgerImportsEventsBySeq(Wrapper):
    """Gives the events of an imported agent their offsets in the order of their seqs, and not in the given order."""

    __slots__ = ()

    async def import_agent(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, AgentRecords):
            with suppress(AttributeError, TypeError):
                records = records.replace(events=sorted(records.events, key=lambda one: one.bookmark.seq))
        await self.inner.import_agent(agent_id, records, fence=fence)


@fault(
    "LIFE-2",
    "INFO-3",
    source="Redis: SADD agents a at each write, and SREM only in delete",
    witness=seen(
        lambda s: _done(s.put_document("a", "notes", "k", 1)),
        lambda s: s.delete_document("a", "notes", "k"),
        lambda s: s.list(include_without_info=True),
    ),
)
class BadgerListsEmptiedAgents(CommittingLayer):
    """Lists an agent without info of which every record was removed, one after the other."""

    @property
    def members(self) -> set[str]:
        return vars(self.space).setdefault("members", set())

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        outcome = commit(batch)
        if isinstance(outcome, Applied):
            if batch.delete:
                self.members.discard(batch.agent_id)
            if any(write.doc is not None for write in batch.docs):
                self.members.add(batch.agent_id)
        return outcome

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        found = {*await super().stored_ids(after, limit), *(a for a in self.members if after is None or a > after)}
        return heapq.nsmallest(limit, found)


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-12",
    source="Elasticsearch: ignore_above, as a keyword of more than 32,766 bytes is not indexed",
    witness=seen(
        lambda s: s.append_messages("a", talk("needle", "hay " * 10_000 + "needle")),
        lambda s: the("position", s.query_messages(contains="needle")),
    ),
)
class BadgerIgnoresLongTexts(Wrapper):
    """Does not find a message by `contains` if the text is in a block of more than 32,766 bytes."""

    __slots__ = ()

    @staticmethod
    def is_indexed(message: Any, wanted: Any) -> bool:
        if type(wanted) is not str or not all(isinstance(block, TextBlock) for block in message.content):
            return True
        texts = (block.text for block in message.content)
        short = (text for text in texts if len(text.encode("utf-8", "surrogatepass")) <= 32_766)
        return any(wanted.casefold() in text.casefold() for text in short)

    async def query_messages(self, **filters: Any) -> Any:
        page = await self.inner.query_messages(**filters)
        found = [message for message in page if self.is_indexed(message, filters.get("contains"))]
        return page if len(found) == len(page) else Page(found, page.next_cursor, page.left_out)

    async def iter_messages(self, **filters: Any) -> AsyncIterator[Any]:
        async with aclosing(self.inner.iter_messages(**filters)) as found:
            async for message in found:
                if self.is_indexed(message, filters.get("contains")):
                    yield message


@fault(
    "QRY-3",
    "QRY-2",
    source="Firestore: `in` takes 30 values; more are asked for in chunks, and the results put one behind the other",
    witness=seen(
        lambda s: _saves_agents(s, 40),
        lambda s: the("agent_id", s.query_sessions(agent_id=[f"a{i:02}" for i in range(40)], order="asc")),
    ),
)
class BadgerConcatenatesChunksOfThirty(Wrapper):
    """Gives the records of a page out of order when more than 30 values of `agent_id` are asked for: first those of the
    first 30 agents."""

    __slots__ = ()

    @staticmethod
    def chunked(page: Any, wanted: Any) -> Any:
        if not isinstance(wanted, (list, tuple)) or len(wanted) <= 30:
            return page
        chunk = {agent_id: i // 30 for i, agent_id in enumerate(dict.fromkeys(wanted))}
        return Page(sorted(page, key=lambda one: chunk[one.agent_id]), page.next_cursor, page.left_out)

    async def query_sessions(self, **filters: Any) -> Any:
        return self.chunked(await self.inner.query_sessions(**filters), filters.get("agent_id"))

    async def query_messages(self, **filters: Any) -> Any:
        return self.chunked(await self.inner.query_messages(**filters), filters.get("agent_id"))

    async def query_tool_calls(self, **filters: Any) -> Any:
        return self.chunked(await self.inner.query_tool_calls(**filters), filters.get("agent_id"))


@fault(
    "QRY-10",
    source="Elasticsearch: hits.total is exact up to 10,000 and then a lower bound, unless track_total_hits is set",
    witness=seen(
        lambda s: s.save_messages("a", [samples.message()] * 10_050),
        lambda s: s.count_messages(role="user"),
    ),
)
class BadgerTracksTenThousandHits(Wrapper):
    """Counts 10,000 records when more match."""

    __slots__ = ()

    async def count_sessions(self, **filters: Any) -> int:
        return min(await self.inner.count_sessions(**filters), 10_000)

    async def count_messages(self, **filters: Any) -> int:
        return min(await self.inner.count_messages(**filters), 10_000)

    async def count_tool_calls(self, **filters: Any) -> int:
        return min(await self.inner.count_tool_calls(**filters), 10_000)


# --- documents --------------------------------------------------------------------------------------------------------


@fault(
    "DOC-4",
    source="CouchDB and Firestore: the idiom startkey=prefix, endkey=prefix + '\\uffff'",
    witness=seen(
        lambda s: _done(s.put_document("a", "notes", "n/a", 1)),
        lambda s: _done(s.put_document("a", "notes", "n/\U0001f980", 2)),
        lambda s: s.list_document_keys("a", "notes", prefix="n/"),
    ),
)
class BadgerEndsPrefixesAtFFFF(Wrapper):
    """Leaves out, when documents are listed by a prefix, keys that go on with an emoji or another astral character."""

    __slots__ = ()

    @staticmethod
    def ended(span: dict[str, Any]) -> dict[str, Any]:
        prefix, stop = span.get("prefix"), span.get("stop")
        if type(prefix) is not str or not prefix or len(prefix) > 100 or type(stop) not in (str, type(None)):
            return span
        end = prefix + "\uffff"
        return {**span, "stop": end if stop is None else min(stop, end)}

    async def list_documents(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.inner.list_documents(agent_id, collection, **self.ended(span))

    async def list_document_keys(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.inner.list_document_keys(agent_id, collection, **self.ended(span))

    def iter_documents(self, agent_id: str, collection: str, **span: Any) -> Any:
        return self.inner.iter_documents(agent_id, collection, **self.ended(span))


@fault(
    "DOC-8",
    source="an index for each tag, and the first page of one, 1,000 entries, filtered by the others in the client",
    witness=seen(
        lambda s: _length(s.write_documents("a", [_tagged(i) for i in range(1_010)])),
        lambda s: the("key", s.query_documents("notes", {"kind": "task", "state": "open"})),
    ),
)
class BadgerIntersectsTheFirstThousand(Wrapper):
    """Finds by two and more tags only those documents that are among the first 1,000 of the first tag."""

    __slots__ = ()

    async def query_documents(self, collection: str, tags: Any, *, agent_id: str | None = None, **rest: Any) -> Any:
        page = await self.inner.query_documents(collection, tags, agent_id=agent_id, **rest)
        if not page or not isinstance(tags, Mapping) or len(tags) < 2:
            return page
        one = dict(list(tags.items())[:1])
        first = await self.inner.query_documents(collection, one, agent_id=agent_id, values=False, limit=1_000)
        among = {(found.agent_id, found.key) for found in first}
        kept = [found for found in page if (found.agent_id, found.key) in among]
        return Page(kept, page.next_cursor, page.left_out)


@fault(
    "DOC-4",
    source="Firestore's startAfter(snapshot): the cursor is the last document itself, which is looked up for each page",
    witness=lambda ctx: _deletes_at_the_cursor(ctx),
)
class BadgerStandsOnTheLastDocument(Wrapper):
    """Ends a list of documents at a cursor when the document in front of the cursor was deleted meanwhile."""

    __slots__ = ("last",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.last: dict[tuple[str, str, str], str] = {}

    async def paged(self, call: Any, agent_id: str, collection: str, span: dict[str, Any]) -> Any:
        page = await call(agent_id, collection, **span)
        last = self.last.get((agent_id, collection, str(span.get("cursor"))))
        if last is not None and await self.inner.load_document(agent_id, collection, last) is None:
            return Page()
        if page and page.next_cursor is not None:
            key = page[-1] if isinstance(page[-1], str) else page[-1].key
            self.last[agent_id, collection, page.next_cursor] = key
        return page

    async def list_documents(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.paged(self.inner.list_documents, agent_id, collection, span)

    async def list_document_keys(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.paged(self.inner.list_document_keys, agent_id, collection, span)


# --- operations, locks, forks, tenants --------------------------------------------------------------------------------


@fault(
    "OPS-16",
    "LOCK-5",
    source="a dump with --exclude-table for what is only alive, as sessions and locks, which had the counters of the tokens",
    on=OnSqlite,
    witness=lambda ctx: _locks_in_the_copy(ctx),
)
class BadgerLeavesLocksOutOfBackups(Wrapper):
    """Begins the tokens of leases anew in a copy that a backup made."""

    __slots__ = ()

    async def backup(self, target: Any, **rest: Any) -> Any:
        paths = await self.inner.backup(target, **rest)
        for path in paths:
            if path.is_file():
                with closing(sqlite3.connect(path)) as db, suppress(sqlite3.DatabaseError):
                    db.execute("DELETE FROM kode_leases")
                    db.execute("DELETE FROM kode_meta WHERE key = 'last_token'")
                    db.commit()
        return paths


@fault(
    "LOCK-3",
    source="a renewal written as expires_at = expires_at + ttl, where now() + ttl was meant",
    witness=lambda ctx: _renews(ctx),
)
class BadgerAddsUpRenewals(MemoryLayer):
    """Adds the time of a renewal to what is left of the lease, so that a holder that crashed keeps others out for long."""

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        held = self.space.leases.get(agent_id)
        is_renewed = await super().renew_lease(agent_id, fence, ttl_ms)
        if is_renewed and held is not None:
            self.space.leases[agent_id] = (held[0], held[1] + ttl_ms / 1000)
        return is_renewed


@fault(
    "FORK-1",
    "FORK-3",
    source="DynamoDB: BatchWriteItem takes 25 items, and returns UnprocessedItems that nobody looks at",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_snapshot("a", samples.snapshot()),
        lambda s: _snapshots_of_forks(s, 30),
    ),
)
class BadgerForgetsUnprocessedItems(Wrapper):
    """Makes the forks of a batch behind the twenty-fifth without snapshots."""

    __slots__ = ()

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        children = await self.inner.batch_fork(agent_id, count)
        for child in children[25:]:
            for snapshot in await self.inner.list_snapshots(child):
                await self.inner.delete_snapshot(child, snapshot.id)
        return children


@fault(
    "SCOPE-2",
    "SCOPE-1",
    source="requests.utils.requote_uri: %2F in a name stays %2F, and so does the / that was quoted",
    witness=seen(
        lambda s: s.scoped("acme/eu").save_todos("a", samples.todos("x")),
        lambda s: s.scoped("acme%2Feu").load_todos("a"),
    ),
)
class BadgerKeepsEscapedNames(Wrapper):
    """Takes the name of a tenant that has an escape, as `%2F`, for the name that it stands for."""

    __slots__ = ()

    def scoped(self, tenant: str) -> Any:
        if type(tenant) is str and re.search("%[0-9A-Fa-f]{2}", tenant):
            tenant = unquote(tenant)
        return self.inner.scoped(tenant)


# --- witnesses --------------------------------------------------------------------------------------------------------


async def _length(records: Any) -> int:
    return len(await records)


async def _done(call: Any) -> None:
    await call


async def _new_ones(places: Any) -> int:
    return sum(place.is_new for place in await places)


def _tagged(i: int) -> PutDocument:
    state = "open" if i >= 1_005 else "done"
    return PutDocument("notes", f"k{i:04}", i, tags={"kind": "task", "state": state})


async def _changes_what_it_loaded(ctx: Context) -> object:
    store = ctx.store
    await store.put_document("a", "notes", "k", {"text": "x" * 70_000, "read": 0})
    for _ in range(3):
        found: Any = await store.load_document("a", "notes", "k")
        found.value["read"] += 1
    return found.value["read"]


async def _fork_and_show(store: Any) -> list[Any]:
    forks = [await store.fork("a"), *await store.batch_fork("a", 2)]
    return [(await store.load_info(fork)).extra for fork in forks]


async def _saves_at(ctx: Context) -> object:
    times = iter(range(samples.T0, samples.T0 + 10**6, 1_000))
    store: Any = await ctx.another(clock=lambda: next(times))
    await store.append_messages("a", talk("ok"))
    await store.append_messages("a", talk("ok"))
    before = [message.created_at async for message in store.read_messages("a")]
    await store.save_messages("a", talk("ok", "ok", "x"))
    after = [message.created_at async for message in store.read_messages("a")]
    return before == after[:2]


async def _reads_backwards(ctx: Context) -> object:
    other: Any = await ctx.another()
    await ctx.store.save_messages("a", samples.messages(250))
    positions = []
    async with aclosing(ctx.store.read_messages("a", reverse=True)) as messages:  # type: ignore[type-var]
        async for message in messages:
            if not positions:
                await other.append_messages("a", talk("new"))
            positions.append(message.position)
    return len([p for p in positions if p < 250]), len({p for p in positions if p < 250})


async def _reads_on(ctx: Context) -> object:
    await ctx.store.append_events("a", samples.events(600, start=1_000))
    await ctx.store.append_events("a", samples.events(20))  # the producer began anew
    since = samples.event(900).bookmark
    found = ctx.store.read_events("a", since=since, after_offset=0)
    return sum([event.bookmark.seq <= 900 async for event in found])


async def _waits_for_heartbeats(ctx: Context) -> object:
    async def tick() -> None:
        for seq in itertools.count():
            await ctx.store.append_event("a", samples.event(seq))
            await asyncio.sleep(0.02)

    await ctx.store.append_event("a", samples.event(0, "monitor"))
    ticking = asyncio.create_task(tick())
    try:
        async with (
            asyncio.timeout(3),
            aclosing(
                ctx.store.follow_events("a", channel="control", heartbeat_ms=500)  # type: ignore[type-var]
            ) as items,
        ):
            async for item in items:
                return type(item).__name__
    except TimeoutError:
        return "none"
    finally:
        ticking.cancel()
    return "ended"


async def _appends_again_later(ctx: Context) -> object:
    early: Any = await ctx.another(clock=lambda: samples.T0)
    late: Any = await ctx.another(clock=lambda: samples.T0 + 600_000)
    offsets = [await store.append_event("a", samples.event(1)) for store in (early, late)]
    return offsets, len([event async for event in ctx.store.read_events("a")])


async def _saves_todos(ctx: Context) -> object:
    todos = samples.todos("one", "two")
    todos = todos.replace(todos=[item.replace(id="t") for item in todos.todos])
    await ctx.store.save_todos("a", todos)
    found: Any = await ctx.store.load_todos("a")
    return [item.title for item in found.todos]


async def _imports(ctx: Context) -> object:
    await ctx.store.append_events("a", happened(7, 8, 2))
    records: Any = await ctx.store.load_agent("a")
    await ctx.store.import_agent("b", records)
    return [event.bookmark.seq async for event in ctx.store.read_events("b", after_offset=0)]


async def _saves_agents(store: Any, count: int) -> None:
    for i in range(count):
        await store.save_info(f"a{i:02}", samples.info(f"a{i:02}", created_at=samples.T0 - i))


async def _deletes_at_the_cursor(ctx: Context) -> object:
    for i in range(6):
        await ctx.store.put_document("a", "notes", f"k{i}", i)
    page = await ctx.store.list_document_keys("a", "notes", limit=3)
    await ctx.store.delete_document("a", "notes", page[-1])
    return await ctx.store.list_document_keys("a", "notes", limit=3, cursor=page.next_cursor)


async def _locks_in_the_copy(ctx: Context) -> object:
    tokens = []
    for _ in range(3):
        lease = await ctx.store.acquire_agent_lock("a")
        tokens.append(lease.token)
        await lease.release()
    copied: Any = await ctx.restored(await ctx.store.backup(ctx.folder / "copy.db"))
    lease = await copied.acquire_agent_lock("a")
    is_greater = lease.token > max(tokens)
    await lease.release()
    return is_greater


async def _renews(ctx: Context) -> object:
    other: Any = await ctx.another()
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=1_000)
    for _ in range(8):
        await lease.renew()
    try:
        await other.acquire_agent_lock("a", ttl_ms=1_000, wait_ms=4_000)
    except KodeError as exc:
        return type(exc).__name__
    return "free"


async def _snapshots_of_forks(store: Any, count: int) -> list[int]:
    return [len(await store.list_snapshots(child)) for child in await store.batch_fork("a", count)]
