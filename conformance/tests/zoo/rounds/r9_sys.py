"""Stores on what systems give: key-value engines, logs, object stores, file systems, PostgreSQL and SQLite."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import unicodedata
from typing import Any

from kode_conformance.values import samples
from kode_sqlite.engine import SqliteEngine
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, restart, seen, talk, the
from kode_core.batch import Applied, Batch, DocKind, DocWrite, EventRange
from kode_core.codec import decode_list
from kode_core.engine import unwatched
from kode_core.errors import InvalidArgumentError, InvalidValueError, PayloadTooLargeError
from kode_core.ids import check_agent_id
from kode_core.layers import Layer
from kode_core.model import (
    Bookmark,
    MediaCacheRecord,
    Timeline,
    TodoItem,
    TodoSnapshot,
    ToolCallAuditEntry,
    ToolCallRecord,
)
from kode_core.pace import Pace
from kode_core.query import Page
from kode_core.store import EngineStore, kinds
from kode_core.store.events import stored_event
from kode_core.store.locks import ENTERED
from kode_core.store.steps import checked_progress as _told

# --- values -----------------------------------------------------------------------------------------------------------


@fault(
    "VAL-1",
    "HIS-2",
    source="SQLite: a column of NUMERIC affinity stores 5.0 as the integer 5",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered().replace(mtime=5.0)),
        lambda s: s.load_recovered_files("a"),
    ),
)
class MtimeIsNumeric(EngineStore):
    """Gives the mtime of a recovered file as an int when it was a float without a fraction."""

    async def load_recovered_files(self, agent_id: str) -> Any:
        found = await super().load_recovered_files(agent_id)
        return [
            f.replace(mtime=int(f.mtime))
            if type(f.mtime) is float and f.mtime.is_integer() and abs(f.mtime) < 2**63
            else f
            for f in found
        ]


@fault(
    "VAL-4",
    "MED-1",
    source="ZooKeeper: jute.maxbuffer, 0xfffff bytes for a znode",
    errors=True,
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media(f"k{i}").replace(file_uri="u" * 2000) for i in range(600)]),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class MediaInAZnode(Layer):
    """Refuses a media cache that takes more than one MiB as a whole."""

    async def commit(self, batches: Any) -> Any:
        outcomes = []
        for batch in batches:
            if any(w.kind == DocKind.MEDIA and w.doc and len(w.doc.body.text.encode()) > 0xFFFFF for w in batch.docs):
                outcomes.append(PayloadTooLargeError("the media cache is larger than a node may be: 1,048,575 bytes"))
            else:
                outcomes.extend(await self.inner.commit([batch]))
        return outcomes


@fault(
    "VAL-6",
    "VAL-1",
    source="a child table with a column for each field that is known",
    witness=seen(
        lambda s: s.save_tool_call_records(
            "a", [samples.tool_call(audit_trail=[ToolCallAuditEntry("PENDING", samples.T0, "n", extra={"by": "bob"})])]
        ),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class AuditTrailHasColumns(EngineStore):
    """Drops the fields of audit trail entries that this version does not know."""

    def _plain(self, call: Any) -> Any:
        if all(entry.extra is None for entry in call.audit_trail):
            return call
        return replace(call, audit_trail=tuple(entry.replace(extra=None) for entry in call.audit_trail))

    async def load_tool_call_records(self, agent_id: str) -> Any:
        return [self._plain(call) for call in await super().load_tool_call_records(agent_id)]

    async def query_tool_calls(self, **filters: Any) -> Any:
        page = await super().query_tool_calls(**filters)
        page[:] = [self._plain(call) for call in page]
        return page


# --- identity ---------------------------------------------------------------------------------------------------------


@fault(
    "ID-4",
    "HIS-1",
    source="MySQL: InnoDB indexes 3,072 bytes, so UNIQUE (agent_id, id(768)) and ON DUPLICATE KEY UPDATE",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("x" * 800 + "1")),
        lambda s: s.save_compression_record("a", samples.compression("x" * 800 + "2")),
        lambda s: the("id", s.load_compression_records("a")),
    ),
)
class CompressionKeysHaveAPrefixIndex(Layer):
    """Replaces a compression record by another one whose id has the same first 768 characters."""

    async def commit(self, batches: Any) -> Any:
        def cut(write: DocWrite) -> DocWrite:
            if write.kind != DocKind.COMPRESSIONS or write.doc is None or len(write.key) <= 768:
                return write
            return DocWrite(write.kind, write.key[:768], replace(write.doc, key=write.key[:768]))

        return await self.inner.commit([replace(b, docs=tuple(map(cut, b.docs))) if b.docs else b for b in batches])


@fault(
    "ID-2",
    "LOCK-1",
    source="lock files on HFS+, which decomposes the names of files",
    errors=True,
    witness=seen(
        lambda s: s.acquire_agent_lock("caf\u00e9", wait_ms=0).__aenter__(),
        lambda s: _token_is_new(s, "cafe\u0301"),
    ),
)
class LeasesOnHfs(MemoryLayer):
    """Has one lease for two agents whose ids differ in nothing but the Unicode normalization."""

    def _also(self, agent_id: str) -> str:
        return unicodedata.normalize("NFD", agent_id)

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> Any:
        file = self._also(agent_id)
        token = await self.inner.acquire_lease(file, owner, ttl_ms)
        if token is not None:
            self.space.leases[agent_id] = self.space.leases[file]
        return token

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        is_held = await self.inner.renew_lease(self._also(agent_id), fence, ttl_ms)
        if is_held:
            self.space.leases[agent_id] = self.space.leases[self._also(agent_id)]
        return is_held

    async def release_lease(self, agent_id: str, fence: Any) -> None:
        await self.inner.release_lease(self._also(agent_id), fence)
        await self.inner.release_lease(agent_id, fence)


async def _token_is_new(store: Any, agent_id: str) -> bool:
    lease = await store.acquire_agent_lock(agent_id, ttl_ms=2000)
    await lease.release()
    return lease.token > 0


# --- messages ---------------------------------------------------------------------------------------------------------


async def _last_time_stays(store: Any) -> list[bool]:
    stays = []
    for at in (1, 2):
        await store.save_messages("a", talk("x", "y", "z"))
        before = [m.created_at for m in await store.query_messages(agent_id="a", order="asc")]
        await asyncio.sleep(0.01)
        texts = ["x", "y", "z"]
        texts[at] = "edited"
        await store.save_messages("a", talk(*texts))
        stays.append(before == [m.created_at for m in await store.query_messages(agent_id="a", order="asc")])
    return stays


@fault(
    "MSG-4",
    source="a streamed answer that is popped off the end of the log and pushed again, as RPOP and RPUSH do",
    witness=seen(_last_time_stays),
)
class RestampsTheLastMessage(Layer):
    """Gives the last message of a list a new time when it is replaced in its place."""

    async def commit(self, batches: Any) -> Any:
        return await self.inner.commit([await self._restamped(batch) for batch in batches])

    async def _restamped(self, batch: Batch) -> Batch:
        write = batch.messages
        if write is None or not write.put or write.append or write.length is not None:
            return batch
        summary = await self.inner.summary(batch.agent_id)
        position, row = write.put[-1]
        if summary is None or position != summary.messages.count - 1:
            return batch
        put = (*write.put[:-1], (position, replace(row, created_at=max(row.created_at, batch.now))))
        return replace(batch, messages=replace(write, put=put))


async def _counts(store: Any) -> Any:
    await store.save_info("a", samples.info("a"))
    await store.save_messages("a", talk(*map(str, range(32_769))))
    return (await store.load_info("a")).message_count, await the("message_count", store.query_sessions())


@fault(
    "MSG-6",
    "VAL-4",
    source="MySQL without strict mode clamps to the range of the column, here a SMALLINT",
    witness=seen(_counts),
)
class CountsInASmallint(EngineStore):
    """Counts no more than 32,767 messages of an agent."""

    async def load_info(self, agent_id: str) -> Any:
        info = await super().load_info(agent_id)
        return info and info.replace(message_count=min(info.message_count, 32_767))

    async def query_sessions(self, **filters: Any) -> Any:
        page = await super().query_sessions(**filters)
        page[:] = [replace(s, message_count=min(s.message_count, 32_767)) for s in page]
        return page


# --- tool calls and turns ---------------------------------------------------------------------------------------------


def _called(*pairs: tuple[int, str]) -> list[ToolCallRecord]:
    return [samples.tool_call(i, result=result) for i, result in pairs]


@fault(
    "TC-3",
    source="PostgreSQL: 'ON CONFLICT DO UPDATE command cannot affect row a second time', so repeats are dropped before",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", _called((1, "one"), (2, "two"), (1, "last"))),
        lambda s: the("result", s.load_tool_call_records("a")),
        lambda s: s.save_turn("b", upsert_tool_calls=_called((1, "one"), (2, "two"), (1, "last"))),
        lambda s: the("result", s.load_tool_call_records("b")),
    ),
)
class UpsertsTheLastOfEachId(Wrapper):
    """Puts a new record whose id comes twice in one call where the later one stood in the call, not the first."""

    __slots__ = ()

    def _single(self, records: Any) -> Any:
        if not isinstance(records, (list, tuple)):
            return records
        if not all(isinstance(r, ToolCallRecord) and type(r.id) is str for r in records):
            return records
        last = {record.id: i for i, record in enumerate(records)}
        return [record for i, record in enumerate(records) if last[record.id] == i]

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.upsert_tool_call_records(agent_id, self._single(records), fence=fence)

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Any = (), **rest: Any) -> None:
        await self.inner.save_turn(agent_id, upsert_tool_calls=self._single(upsert_tool_calls), **rest)


async def _states_of_a_turn(store: Any, other: Any) -> Any:
    turn = asyncio.create_task(
        store.save_turn("a", append=talk("hi"), events=samples.events(200), todos=samples.todos("x"))
    )
    states = set()
    while not turn.done():
        messages = len(await other.load_messages("a"))  # in this order: the second is never older than the first
        states.add((messages, (await other.load_todos("a")) is not None))
        await asyncio.sleep(0)
    await turn
    return (1, False) in states


@fault(
    "TURN-1",
    "DUR-3",
    source="etcd: --max-txn-ops is 128, and what is more is sent as a second transaction",
    witness=seen(_states_of_a_turn),
)
class SplitsTurnsAtMaxTxnOps(Layer):
    """Writes the lists of a turn of more than 128 records first, and its events, todos and info afterwards."""

    async def commit(self, batches: Any) -> Any:
        outcomes: list[Any] = []
        for batch in batches:
            count = sum(len(w.put) + len(w.append) for w in batch.lists.values()) + len(batch.docs) + len(batch.events)
            has_rest = bool(batch.docs or batch.events or batch.info)
            if count <= 128 or not batch.lists or not has_rest or batch.delete:
                outcomes.extend(await self.inner.commit([batch]))
                continue
            (first,) = await self.inner.commit([replace(batch, docs=(), events=(), info=None)])
            if isinstance(first, Applied):
                rest = replace(batch, op_id=f"{batch.op_id}/2", messages=None, tool_calls=None)
                await asyncio.sleep(0)
                (second,) = await self.inner.commit([rest])
                first = replace(first, offsets=second.offsets) if isinstance(second, Applied) else second
            outcomes.append(first)
        return outcomes


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-1",
    "VAL-2",
    source="Firestore and others: at most 500 writes in one batch, so larger calls are sent in pieces",
    witness=seen(
        lambda s: s.append_events("a", [*samples.events(600), samples.event(600, x=float("nan"))]),
        lambda s: the("bookmark", _listed(s.read_events("a"))),
    ),
)
class AppendsInPiecesOf500(Wrapper):
    """Appends more than 500 events of one call in pieces, each by itself, so that a refused one leaves those before."""

    __slots__ = ()

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        if not isinstance(timelines, (list, tuple)) or len(timelines) <= 500:
            return await self.inner.append_events(agent_id, timelines, fence=fence)
        offsets: list[int] = []
        for i in range(0, len(timelines), 500):
            offsets += await self.inner.append_events(agent_id, timelines[i : i + 500], fence=fence)
        return offsets


async def _listed(stream: Any) -> list[Any]:
    return [item async for item in stream]


@fault(
    "EVT-4",
    "VAL-1",
    source="PostgreSQL: jsonb that differs in the order of keys or as 1 and 1.0 is equal; so it is with == in Python",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, step=1, rest={"x": 1, "y": 2})),
        lambda s: s.append_event("a", samples.event(1, step=1, rest={"y": 2, "x": 1})),
        lambda s: s.append_events("a", [samples.event(1, step=1.0, rest={"x": 1, "y": 2})]),
        lambda s: s.read_events("a"),
    ),
)
class KnowsRepeatsByJsonb(EngineStore):
    """Takes an event for a repeated one, and drops it, that differs from a stored one in the order of keys or as 1.0
    from 1.
    """

    async def _known(self, agent_id: Any, timeline: Any) -> int | None:
        seq = timeline.bookmark.seq if isinstance(timeline, Timeline) else None
        if type(seq) is not int or not -(2**63) < seq < 2**63 or type(agent_id) is not str or ENTERED.get():
            return None
        self._context.check_open()
        for row in await self._context.engine.events(agent_id, EventRange(since_seq=seq - 1, limit=100)):
            if row.seq == seq and await stored_event(agent_id, row, Pace()) == timeline:
                return row.offset
        return None

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        known = await self._known(agent_id, timeline) if fence is None else None
        return await super().append_event(agent_id, timeline, fence=fence) if known is None else known

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        if isinstance(timelines, (list, tuple)) and len(timelines) == 1 and fence is None:
            known = await self._known(agent_id, timelines[0])
            if known is not None:
                return [known]
        return await super().append_events(agent_id, timelines, fence=fence)


async def _followed(store: Any) -> list[int]:
    await store.append_events("a", happened(1, 5))
    stream, found = store.follow_events("a", since=Bookmark(3, 0)), []
    async with asyncio.timeout(4):
        found.append((await anext(stream)).bookmark.seq)
        step = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        await store.append_events("a", happened(2, 6))
        found.append((await step).bookmark.seq)
    await stream.aclose()
    return found


@fault(
    "EVT-7",
    source="a log that is read with the filter, and a channel of notifications (LISTEN, Redis Pub/Sub) that has none",
    witness=seen(_followed),
)
class FollowsWithoutSince(Wrapper):
    """Filters by ``since`` what is stored when a follower begins, and not what is appended later."""

    __slots__ = ()

    def follow_events(self, agent_id: str, *, since: Any = None, after_offset: int = 0, channel: Any = None) -> Any:
        stream = self.inner.follow_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        return stream if since is None else self._follow(agent_id, since, after_offset, channel)

    async def _follow(self, agent_id: str, since: Any, after_offset: int, channel: Any) -> Any:
        async for event in self.inner.read_events(agent_id, after_offset=after_offset, channel=channel):
            after_offset = event.offset
            if event.bookmark.seq > since.seq:
                yield event
        async for event in self.inner.follow_events(agent_id, after_offset=after_offset, channel=channel):
            yield event


@fault(
    "EVT-4",
    "EVT-2",
    source="INSERT OR IGNORE, then last_insert_rowid() less the number of rows, for the ids of a statement of many rows",
    witness=seen(
        lambda s: s.append_events("a", happened(1, 2, 3)),
        lambda s: s.append_events("a", happened(1, 4)),
        lambda s: the("offset", _listed(s.read_events("a"))),
    ),
)
class CountsOffsetsBackFromTheLast(Wrapper):
    """Returns offsets that run up to the highest one of the call, also when some of its events were stored before."""

    __slots__ = ()

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        offsets = await self.inner.append_events(agent_id, timelines, fence=fence)
        last = max(offsets, default=0)
        return [last - i for i in reversed(range(len(offsets)))]


# --- todos, history, snapshots ----------------------------------------------------------------------------------------


def _with_todos(*ids: str) -> TodoSnapshot:
    items = [TodoItem(id=x, title=f"title {i}", created_at=samples.T0, updated_at=1) for i, x in enumerate(ids)]
    return TodoSnapshot(todos=items, version=3, updated_at=samples.T0)


@fault(
    "TODO-1",
    "VAL-1",
    source="a table of todos with PRIMARY KEY (agent_id, id), written with INSERT OR REPLACE",
    witness=seen(
        lambda s: s.save_todos("a", _with_todos("x", "y", "x")),
        lambda s: s.load_todos("a"),
        lambda s: s.save_turn("b", todos=_with_todos("x", "x")),
        lambda s: s.load_todos("b"),
    ),
)
class TodosHaveAPrimaryKey(Wrapper):
    """Keeps one of two todos of a list that have the same id."""

    __slots__ = ()

    def _single(self, snapshot: Any) -> Any:
        if not isinstance(snapshot, TodoSnapshot) or not isinstance(snapshot.todos, (list, tuple)):
            return snapshot
        if not all(isinstance(t, TodoItem) and type(t.id) is str for t in snapshot.todos):
            return snapshot
        items = {item.id: item for item in snapshot.todos}
        return snapshot if len(items) == len(snapshot.todos) else snapshot.replace(todos=tuple(items.values()))

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await self.inner.save_todos(agent_id, self._single(snapshot), fence=fence)

    async def save_turn(self, agent_id: str, *, todos: Any = None, **rest: Any) -> None:
        await self.inner.save_turn(agent_id, todos=self._single(todos), **rest)


@fault(
    "HIS-1",
    source="LevelDB, RocksDB, LMDB: keys of eight bytes, big-endian, in which a negative number sorts last",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("late", 5)),
        lambda s: s.save_compression_record("a", samples.compression("early", -5)),
        lambda s: s.save_compression_record("a", samples.compression("zero", 0)),
        lambda s: the("timestamp", s.load_compression_records("a")),
    ),
)
class TimesAreUnsignedKeys(EngineStore):
    """Gives compression records of before 1970 after all others."""

    async def load_compression_records(self, agent_id: str) -> Any:
        found = await super().load_compression_records(agent_id)
        return sorted(found, key=lambda r: (r.timestamp % 2**64, r.id))


@fault(
    "HIS-2",
    source="Windows, Java and JavaScript sort by UTF-16 code units, in which U+1F600 is less than U+FF5E",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("\uff5e.md")),
        lambda s: s.save_recovered_file("a", samples.recovered("\U0001f600.md")),
        lambda s: the("path", s.load_recovered_files("a")),
    ),
)
class PathsInUtf16Order(EngineStore):
    """Orders recovered files of one timestamp by the UTF-16 code units of their paths."""

    async def load_recovered_files(self, agent_id: str) -> Any:
        found = await super().load_recovered_files(agent_id)
        return sorted(found, key=lambda f: (f.timestamp, f.path.encode("utf-16-be")))


@fault(
    "SNAP-1",
    "VAL-1",
    source="Redis: the score of a sorted set is a double, exact up to 2**53",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("a", 2**53)),
        lambda s: s.save_snapshot("a", samples.snapshot("b", 2**53 + 1)),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class SnapshotsByScore(EngineStore):
    """Lists snapshots by their time as a double, so that large times that differ by one are taken for equal."""

    async def list_snapshots(self, agent_id: str) -> Any:
        return sorted(await super().list_snapshots(agent_id), key=lambda s: (-float(s.created_at), s.id))


# --- info and lifecycle -----------------------------------------------------------------------------------------------


async def _same_info_moves(store: Any) -> Any:
    moved = []
    await store.save_info("a", samples.info("a"))
    for _ in range(2):
        (before,) = await store.query_sessions(agent_id="a")
        await store.save_info("a", samples.info("a"))
        (after,) = await store.query_sessions(agent_id="a")
        moved.append(after.updated_at > before.updated_at)
    return moved


@fault(
    "INFO-2",
    source="MySQL: ON UPDATE CURRENT_TIMESTAMP leaves the time of a row that is set to the values that it has",
    witness=seen(_same_info_moves),
)
class SameInfoIsNoUpdate(Layer):
    """Leaves ``updated_at`` when the info that is saved is the one that is stored."""

    async def commit(self, batches: Any) -> Any:
        return await self.inner.commit([await self._changes(batch) for batch in batches])

    async def _changes(self, batch: Batch) -> Batch:
        if batch.info is None or batch.delete:
            return batch
        summary = await self.inner.summary(batch.agent_id)
        is_same = summary is not None and summary.info == batch.info
        return replace(batch, info=None) if is_same else batch


async def _files_after_delete(store: Any) -> Any:
    for i in range(1_005):
        await store.save_recovered_file("a", samples.recovered(f"{i:05}.md"))
    await store.delete("a")
    return await the("path", store.load_recovered_files("a"))


@fault(
    "LIFE-3",
    "LIFE-4",
    source="S3: ListObjectsV2 gives 1,000 keys and IsTruncated, DeleteObjects takes 1,000",
    witness=seen(_files_after_delete),
)
class DeletesOnePageOfObjects(Layer):
    """Deletes no more than a thousand of an agent's windows, compressions, recovered files and snapshots together."""

    async def commit(self, batches: Any) -> Any:
        outcomes: list[Any] = []
        for batch in batches:
            left = await self._behind_the_page(batch.agent_id) if batch.delete else []
            outcomes.extend(await self.inner.commit([batch]))
            if left and isinstance(outcomes[-1], Applied):
                rest = Batch(agent_id=batch.agent_id, op_id=f"{batch.op_id}/2", now=batch.now, docs=tuple(left))
                await self.inner.commit([rest])
        return outcomes

    async def _behind_the_page(self, agent_id: str) -> list[DocWrite]:
        keyed = (DocKind.COMPRESSIONS, DocKind.RECOVERED, DocKind.SNAPSHOTS, DocKind.WINDOWS)
        found = [DocWrite(kind, doc.key, doc) for kind in keyed for doc in await self.inner.docs(agent_id, kind)]
        return sorted(found, key=lambda write: (write.kind.value, write.key))[1000:]


async def _prefixed(store: Any) -> Any:
    for agent_id in ("a", "a\uffee", "a\U0001f600", "b"):
        await store.save_info(agent_id, samples.info(agent_id))
    return [await store.list(), await store.list("a")]


@fault(
    "LIFE-2",
    source="LevelDB, CouchDB and PouchDB: the range from prefix to prefix + '\\uffff'",
    witness=seen(_prefixed),
)
class PrefixEndsAtFfff(Wrapper):
    """Leaves out of ``list`` with a prefix the ids that go on after it with a character beyond U+FFFF."""

    __slots__ = ()

    async def list(self, prefix: str = "") -> Any:
        ids = await self.inner.list(prefix)
        return [agent_id for agent_id in ids if not prefix or agent_id < prefix + "\uffff"]


async def _deleted_many(store: Any) -> Any:
    for i in range(250):
        await store.save_info(f"a{i}", samples.info(f"a{i}"))
    return await store.delete_many(template_id="assistant"), len(await store.list())


@fault(
    "LIFE-5",
    source="a loop of SELECT … LIMIT 200 OFFSET n and DELETE, in which what was deleted moves the offset",
    witness=seen(_deleted_many),
)
class DeletesManyByOffset(EngineStore):
    """Skips as many sessions as it deleted before it deletes the next page of them."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        passed = 0

        async def by_offset(asked: Any) -> Any:
            nonlocal passed
            if asked["cursor"] is None:
                passed = 0
            page = await self._search.sessions({**asked, "cursor": None, "offset": passed})
            passed += len(page)
            return page

        async def delete() -> int:
            told = unwatched if progress is None else _told(progress)
            return await self._deletions.delete_many(by_offset, filters, told)

        return await self._run("delete_many", delete)


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-4",
    source="Elasticsearch: index.max_result_window, 10,000 for from + size",
    errors=True,
    witness=seen(
        lambda s: s.query_sessions(offset=9_950),
        lambda s: s.query_messages(offset=9_999, limit=2),
        lambda s: s.query_tool_calls(offset=10_000),
    ),
)
class HasAResultWindow(EngineStore):
    """Refuses an offset that together with the limit is over 10,000."""

    def _check(self, filters: Any) -> None:
        offset, limit = filters.get("offset", 0), filters.get("limit", 100)
        if type(offset) is int and type(limit) is int and offset > 0 and offset + limit > 10_000 >= limit:
            raise InvalidArgumentError("offset and limit together are at most 10,000; follow next_cursor for more")

    async def query_sessions(self, **filters: Any) -> Any:
        self._check(filters)
        return await super().query_sessions(**filters)

    async def query_messages(self, **filters: Any) -> Any:
        self._check(filters)
        return await super().query_messages(**filters)

    async def query_tool_calls(self, **filters: Any) -> Any:
        self._check(filters)
        return await super().query_tool_calls(**filters)


def _is_in(have: Any, want: Any, *, is_top: bool = False) -> bool:
    """Whether PostgreSQL's ``have @> want`` holds."""
    if isinstance(want, dict):
        return isinstance(have, dict) and all(k in have and _is_in(have[k], v) for k, v in want.items())
    if isinstance(want, list):
        return isinstance(have, list) and all(any(_is_in(h, w) for h in have) for w in want)
    if isinstance(have, list):
        return is_top and any(_is_in(h, want) for h in have)
    return type(have) is type(want) and have == want


async def _contained(store: Any) -> Any:
    for i, value in enumerate((["x", "y"], ["x"], {"k": 1, "l": 2}, {"k": 1}, "x")):
        await store.save_info(f"a{i}", samples.info(f"a{i}", metadata={"v": value}))
    return [await the("agent_id", store.query_sessions(metadata={"v": v}, order="asc")) for v in (["x"], {"k": 1}, "x")]


@fault(
    "QRY-2",
    source="PostgreSQL: metadata @> '{…}', which is containment at every level",
    witness=seen(_contained),
)
class MetadataIsContained(MemoryLayer):
    """Finds sessions whose metadata has a list or an object that only contains the one that the filter names."""

    async def find_sessions(self, query: Any) -> Any:
        if not query.metadata:
            return await self.inner.find_sessions(query)
        found = await self.inner.find_sessions(replace(query, metadata=(), offset=0, limit=10**9))
        kept = [row for row in found if self._has(row.agent_id, query.metadata)]
        return kept[query.offset : query.offset + query.limit]

    def _has(self, agent_id: str, wanted: Any) -> bool:
        info = self.space.state(agent_id).info
        stored = dict(info.metadata) if info is not None else {}
        return all(key in stored and self._matches(stored[key], value) for key, value in wanted)

    def _matches(self, have: str, want: str) -> bool:
        try:
            return have == want or _is_in(json.loads(have), json.loads(want), is_top=True)
        except ValueError:  # a long one, of which the index has a digest
            return False


@fault(
    "QRY-1",
    "OPS-5",
    source="a guard at the top of the function: with a limit of 0 there is nothing to ask the database",
    witness=seen(
        lambda s: s.query_messages(limit=0),
        lambda s: s.query_messages(limit=0, rol="user"),
        lambda s: s.query_tool_calls(limit=0, is_error="no"),
        lambda s: s.query_sessions(limit=0, created_after=None),
    ),
)
class NothingIsAskedForNothing(EngineStore):
    """Answers a query with a limit of 0 before it looks at the filters, or whether the store is open."""

    async def query_sessions(self, **filters: Any) -> Any:
        return await super().query_sessions(**filters) if filters.get("limit", 1) != 0 else Page()

    async def query_messages(self, **filters: Any) -> Any:
        return await super().query_messages(**filters) if filters.get("limit", 1) != 0 else Page()

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await super().query_tool_calls(**filters) if filters.get("limit", 1) != 0 else Page()


# --- operations -------------------------------------------------------------------------------------------------------


async def _issues(store: Any) -> Any:
    for i in range(120):
        await store.save_messages(f"a{i:03}", samples.rich_messages()[:6][4:5])
    found = await store.check_consistency()
    return found.consistent, len(found.issues), len(await _listed(store.iter_consistency()))


@fault(
    "OPS-2",
    source="SQLite: PRAGMA integrity_check stops after 100 errors unless it is told otherwise",
    witness=seen(_issues),
)
class ChecksUpToAHundredIssues(EngineStore):
    """Tells of the first hundred issues that a check of consistency finds, and not of the others."""

    async def check_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        found = await super().check_consistency(agent_id, progress=progress)
        return replace(found, issues=found.issues[:100])

    def iter_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        return self._first(super().iter_consistency(agent_id, progress=progress))

    async def _first(self, issues: Any) -> Any:
        count = 0
        async for issue in issues:
            if count < 100:
                yield issue
            count += 1


async def _tokens_in_a_copy(ctx: Any) -> Any:
    last = 0
    for _ in range(3):
        lease = await ctx.store.acquire_agent_lock("a")
        last = lease.token
        await lease.release()
    await ctx.store.save_info("a", samples.info("a"))
    copy = await ctx.restored(await ctx.store.backup(ctx.folder / "copy.db"))
    lease = await copy.acquire_agent_lock("a")
    await lease.release()
    return await copy.list(), lease.token > last


@fault(
    "OPS-16",
    "LOCK-5",
    source="ZooKeeper, Consul and etcd: leases and sessions are not part of what is exported; pg_dump --exclude-table",
    on=OnSqlite,
    witness=_tokens_in_a_copy,
)
class BackupHasNoTokens(SqliteEngine):
    """Leaves the leases out of a backup, and with them the number that the tokens have reached."""

    async def backup(self, target: Any, progress: Any = unwatched) -> Any:
        made = await super().backup(target, progress)
        db = sqlite3.connect(made[0])
        try:
            db.execute("DELETE FROM kode_leases")
            db.execute("DELETE FROM kode_meta WHERE key = 'last_token'")
            db.commit()
        finally:
            db.close()
        return made


async def _told_of_a_refused_file(store: Any) -> Any:
    try:
        await store.save_recovered_file("a", samples.recovered(content="Geheimnis").replace(mtime=float("inf")))
    except InvalidValueError as exc:
        return "Geheimnis" in str(exc)
    return None


@fault(
    "OPS-12",
    source="PostgreSQL: 'DETAIL: Failing row contains (…)', with 64 bytes of each column",
    witness=seen(_told_of_a_refused_file),
)
class FailingRowContains(Wrapper):
    """Quotes the beginning of a recovered file's content in the error that refuses the file."""

    __slots__ = ()

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.save_recovered_file(agent_id, file, fence=fence)
        except InvalidValueError as exc:
            told = str(exc).removeprefix(f"{exc.record}: {exc.path}: ")
            detail = f"{told}. DETAIL: Failing row contains ({file.path!a:.64}, {file.content!a:.64})."
            raise InvalidValueError(exc.record, exc.path, detail) from None


# --- locks ------------------------------------------------------------------------------------------------------------


async def _short_lease(store: Any) -> Any:
    await store.acquire_agent_lock("a", ttl_ms=150)
    await asyncio.sleep(0.4)
    lease = await store.acquire_agent_lock("a", ttl_ms=150)
    return lease.token > 0


@fault(
    "LOCK-3",
    source="etcd, Consul and Redis' EXPIRE: the time of a lease is in seconds",
    errors=True,
    witness=seen(_short_lease),
)
class LeasesInSeconds(Layer):
    """Holds a lease for whole seconds, rounded up, when nobody renews it."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> Any:
        return await self.inner.acquire_lease(agent_id, owner, -(-ttl_ms // 1000) * 1000)

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        return await self.inner.renew_lease(agent_id, fence, -(-ttl_ms // 1000) * 1000)


async def _renewed_after_release(store: Any) -> Any:
    lease = await store.acquire_agent_lock("a", ttl_ms=2000)
    await lease.release()
    await lease.renew()


@fault(
    "LOCK-3",
    "LOCK-5",
    source="Redis: SET key owner PX ttl without XX, after a look that only asks whether somebody else is there",
    witness=seen(
        _renewed_after_release,
        lambda s: _token_is_new(s, "a"),
    ),
)
class RenewsWhatWasReleased(MemoryLayer):
    """Renews a lease that was released, when nobody holds the lock."""

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        if agent_id not in self.space.leases:
            self.space.leases[agent_id] = (fence, asyncio.get_running_loop().time() + ttl_ms / 1000)
        return await self.inner.renew_lease(agent_id, fence, ttl_ms)


# --- forks and durability ---------------------------------------------------------------------------------------------


async def _forks_of_an_instant(store: Any) -> Any:
    await store.save_info("a", samples.info("a"))
    forking = asyncio.create_task(store.batch_fork("a", 250))
    while not forking.done():
        await store.append_messages("a", talk("more"))
        await asyncio.sleep(0)
    counts = {len(await store.load_messages(fork)) for fork in await forking}
    return len(await forking), len(counts)


@fault(
    "FORK-1",
    "FORK-3",
    source="DynamoDB: TransactWriteItems takes 100 actions",
    witness=seen(_forks_of_an_instant),
)
class ForksAHundredAtATime(EngineStore):
    """Makes the forks of one call a hundred at a time, each hundred of an instant of its own."""

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        async def fork(agent_id: str, count: int) -> list[str]:
            if type(count) is not int or not 100 < count <= 10_000:
                return await self._forks.fork(agent_id, count)
            ids: list[str] = []
            for start in range(0, count, 100):
                ids += await self._forks.fork(agent_id, min(100, count - start))
                await asyncio.sleep(0)
            return ids

        return await self._load("batch_fork", agent_id, fork, count)


@fault(
    "DUR-1",
    "QRY-8",
    "MED-1",
    source="Redis' appendfsync everysec, and write-behind caches such as Hazelcast's MapStore",
    witness=seen(
        lambda s, t: s.save_media_cache("a", [samples.media("k")]),
        lambda s, t: s.load_media_cache("a"),
        lambda s, t: t.load_media_cache("a"),
        restart,
        lambda s, t: t.load_media_cache("a"),
    ),
)
class WritesMediaBehind(EngineStore):
    """Acknowledges a media cache that is still in memory, and writes it a quarter of a second later or at the end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.unwritten: dict[str, Any] = {}
        self.timers: dict[str, asyncio.Task[None]] = {}

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if fence is not None or ENTERED.get() or self._context.is_closed:
            await self._flush(agent_id)
            return await super().save_media_cache(agent_id, records, fence=fence)
        check_agent_id(agent_id)
        self.unwritten[agent_id] = (await kinds.MEDIA.write(records)).doc.body
        if agent_id not in self.timers:
            self.timers[agent_id] = asyncio.create_task(self._later(agent_id))

    async def _later(self, agent_id: str) -> None:
        await asyncio.sleep(0.25)
        self.timers.pop(agent_id, None)
        await self._flush(agent_id)

    async def _flush(self, *agent_ids: str) -> None:
        for agent_id in agent_ids or [*self.unwritten]:
            if type(agent_id) is not str:
                continue  # the call that comes next refuses it
            if agent_id in self.timers:
                self.timers.pop(agent_id).cancel()
            body = self.unwritten.pop(agent_id, None)
            if body is not None:
                await super().save_media_cache(agent_id, decode_list(MediaCacheRecord, body, "media cache"))

    async def load_media_cache(self, agent_id: str) -> Any:
        stored = await super().load_media_cache(agent_id)
        body = self.unwritten.get(agent_id)
        return stored if body is None else decode_list(MediaCacheRecord, body, "media cache")

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._flush(agent_id)
        await super().delete(agent_id, fence=fence)

    async def delete_many(self, **filters: Any) -> int:
        await self._flush()
        return await super().delete_many(**filters)

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        await self._flush(agent_id)
        return await super().batch_fork(agent_id, count)

    async def close(self) -> None:
        await self._flush()
        await super().close()
