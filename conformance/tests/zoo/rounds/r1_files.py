"""Stores on files, search engines and HTTP services; caches and wrappers around other stores; clocks and leases."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnJson, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import each, happened, restart, seen, talk, the
from kode_core.batch import Applied, Batch, DocKind, DocWrite, EventRange, EventWrite, Fence, ListKind, Outcome
from kode_core.codec import digest, encode, to_dict
from kode_core.errors import CorruptRecordError, InvalidArgumentError, PayloadTooLargeError, StorageError
from kode_core.ids import check_agent_id
from kode_core.layers import Layer
from kode_core.model import AgentInfo, Bookmark, TodoItem, TodoSnapshot
from kode_core.store import EngineStore, kinds

_log = logging.getLogger("zoo")


# --- files ------------------------------------------------------------------------------------------------------------


@fault(
    "VAL-1",
    "HIS-1",
    source="JSON lines written with ensure_ascii=False and read with str.splitlines(), which also splits at U+0085, "
    "U+2028 and U+2029; lines that are no JSON are skipped (bytedance/deer-flow #5423)",
    on=OnJson,
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("c-1")),
        lambda s: s.save_compression_record("a", samples.compression("c-2").replace(summary="one\u2028two")),
        lambda s: the("id", s.load_compression_records("a")),
    ),
)
class SplitsLinesInsideRecords(Wrapper):
    """Leaves out compression records with a line separator of Unicode in one of their strings."""

    async def load_compression_records(self, agent_id: str) -> Any:
        found = await self.inner.load_compression_records(agent_id)
        return [r for r in found if len(json.dumps(to_dict(r), ensure_ascii=False).splitlines()) == 1]


@fault(
    "VAL-3",
    "VAL-1",
    source="a CSV file: csv.reader tells no empty string from no value, so the reader makes None of both",
    on=OnJson,
    witness=seen(
        lambda s: s.save_todos("a", TodoSnapshot(todos=[TodoItem(id="t", title="", assignee="", notes="x")])),
        lambda s: _assignees(s),
    ),
)
class EmptyCellsAreNone(Wrapper):
    """Gives None for an empty assignee or empty notes of a todo item."""

    async def load_todos(self, agent_id: str) -> Any:
        found = await self.inner.load_todos(agent_id)
        if found is None:
            return None
        items = [item.replace(assignee=item.assignee or None, notes=item.notes or None) for item in found.todos]
        return found.replace(todos=tuple(items))


async def _assignees(store: Any) -> list[Any]:
    return [(item.assignee, item.notes) for item in (await store.load_todos("a")).todos]


@fault(
    "SNAP-1",
    "ID-4",
    source="a file for each snapshot, on a file system that ignores case (APFS, NTFS)",
    on=OnJson,
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("Before")),
        lambda s: s.save_snapshot("a", samples.snapshot("before")),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class SnapshotFilesIgnoreCase(Layer):
    """Replaces a snapshot by another one whose id differs only in upper and lower case."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([await self._over(batch) for batch in batches])

    async def _over(self, batch: Batch) -> Batch:
        written = {w.key for w in batch.docs if w.kind == DocKind.SNAPSHOTS and w.doc is not None}
        if not written:
            return batch
        names = {key.casefold() for key in written}
        try:
            there = [doc.key for doc in await self.inner.docs(batch.agent_id, DocKind.SNAPSHOTS)]
        except StorageError:
            return batch  # the commit fails in the same way, and no other batch with it
        gone = [key for key in there if key.casefold() in names and key not in written]
        return replace(batch, docs=(*(DocWrite(DocKind.SNAPSHOTS, key, None) for key in gone), *batch.docs))


@fault(
    "HIS-1",
    source="files that are sorted by their modification time, which HFS+ and ext3 keep in whole seconds",
    on=OnJson,
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w-2", samples.T0 + 10)),
        lambda s: s.save_history_window("a", samples.window("w-1", samples.T0 + 500)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class SortsByWholeSeconds(Wrapper):
    """Gives history windows of one second in the order of their ids, whatever their milliseconds."""

    async def load_history_windows(self, agent_id: str) -> Any:
        found = await self.inner.load_history_windows(agent_id)
        return sorted(found, key=lambda window: (window.timestamp // 1000, window.id))


# --- search engines ---------------------------------------------------------------------------------------------------


def _info(agent_id: str, **metadata: Any) -> AgentInfo:
    return samples.info(agent_id, metadata=metadata)


@fault(
    "QRY-2",
    source="Elasticsearch: keyword fields of a dynamic mapping have ignore_above: 256",
    witness=seen(
        lambda s: s.save_info("a", _info("a", place="x" * 256)),
        lambda s: s.save_info("b", _info("b", place="y" * 257)),
        lambda s: the("agent_id", s.query_sessions(metadata={"place": "x" * 256})),
        lambda s: the("agent_id", s.query_sessions(metadata={"place": "y" * 257})),
    ),
)
class IgnoresLongKeywords(Layer):
    """Does not find sessions by strings of their metadata that are longer than 256 characters."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([self._indexed(batch) for batch in batches])

    def _indexed(self, batch: Batch) -> Batch:
        if batch.info is None:
            return batch
        pairs = tuple((k, v) for k, v in batch.info.metadata if not (v.startswith('"') and len(v) > 258))
        return replace(batch, info=replace(batch.info, metadata=pairs))


@fault(
    "QRY-4",
    source="Elasticsearch: index.max_result_window, from + size is at most 10,000",
    errors=True,
    witness=seen(
        lambda s: s.save_messages("a", talk("x")),
        lambda s: s.query_messages(offset=9_900),
        lambda s: s.query_messages(offset=9_901),
    ),
)
class HasAResultWindow(Wrapper):
    """Refuses queries for messages whose offset and limit together are over 10,000."""

    async def query_messages(self, **filters: Any) -> Any:
        offset, limit = filters.get("offset", 0), filters.get("limit", 100)
        if type(offset) is int and type(limit) is int and 0 <= limit <= 10_000 < offset + limit:
            raise InvalidArgumentError(
                f"Result window is too large, from + size must be <= 10000, got {offset + limit}"
            )
        return await self.inner.query_messages(**filters)


# --- HTTP services ----------------------------------------------------------------------------------------------------


def _calls(first: int, count: int) -> list[Any]:
    return [samples.tool_call(i) for i in range(first, first + count)]


async def _read_while_others_append(store: Any) -> list[int]:
    seen_calls: list[str] = []
    async for call in store.iter_tool_calls():
        seen_calls.append(call.id)
        if len(seen_calls) == 10:
            await store.upsert_tool_call_records("a", _calls(1_000, 5))
    return sorted(Counter(seen_calls).values())[-1:]


@fault(
    "QRY-5",
    "QRY-6",
    source="clients of REST services that go through pages by ?limit=100&offset=…",
    witness=seen(lambda s: s.save_tool_call_records("a", _calls(0, 250)), _read_while_others_append),
)
class IteratesByOffset(Wrapper):
    """Repeats and skips tool calls when others are written or deleted while all are read by an iterator."""

    async def iter_tool_calls(self, **filters: Any) -> AsyncIterator[Any]:
        if filters.keys() & {"limit", "offset", "cursor"}:
            async for call in self.inner.iter_tool_calls(**filters):  # raises
                yield call
        offset = 0
        while True:
            page = await self.inner.query_tool_calls(**filters, limit=100, offset=offset)
            for name in page.left_out:
                _log.error("%s is damaged and was left out", name)
            for call in page:
                yield call
            if page.next_cursor is None:
                return
            offset += 100


async def _append_two_at_once(store: Any) -> list[int]:
    await asyncio.gather(store.append_messages("a", talk(*["x"] * 600)), store.append_messages("a", talk(*["y"] * 600)))
    texts = [message.text for message in await store.load_messages("a")]
    return [len(run[0]) for run in re.findall(r"((.)\2*)", "".join(texts))]


@fault(
    "MSG-3",
    "DUR-3",
    "VAL-2",
    source="bulk endpoints that take 500 items a request, such as Firestore's batched writes",
    witness=seen(_append_two_at_once),
)
class AppendsInRequests(Wrapper):
    """Appends more than 500 messages in several writes, between which others come."""

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if not isinstance(messages, (list, tuple)) or len(messages) <= 500:
            await self.inner.append_messages(agent_id, messages, fence=fence)
            return
        taken = tuple(messages)
        for i in range(0, len(taken), 500):
            await self.inner.append_messages(agent_id, taken[i : i + 500], fence=fence)


@fault(
    "TURN-1",
    "VAL-2",
    "DUR-3",
    source="a service with an endpoint of its own for events, which the client calls first",
    witness=seen(
        lambda s: s.save_turn("a", append=talk("x"), info=samples.info("b"), events=happened(1)),
        lambda s: s.load_messages("a"),
        lambda s: s.read_events("a"),
    ),
)
class PostsEventsFirst(Wrapper):
    """Writes the events of a turn before the rest, and leaves them there when the rest is refused."""

    async def save_turn(self, agent_id: str, *, events: Any = (), fence: Any = None, **parts: Any) -> None:
        if events:
            await self.inner.append_events(agent_id, events, fence=fence)
            events = ()
        await self.inner.save_turn(agent_id, **parts, events=events, fence=fence)


async def _recover_large_files(store: Any) -> list[int]:
    for i in range(5):
        await store.save_recovered_file("a", samples.recovered(f"f{i}", content="x" * 1_000_000))
    return [len(file.content) for file in await store.load_recovered_files("a")]


@fault(
    "VAL-4",
    source="gRPC: received message larger than max (4194304) for an answer, however small each record in it is",
    errors=True,
    witness=seen(_recover_large_files, lambda s: the("path", s.load_recovered_files("a"))),
)
class AnswersInOneMessage(Wrapper):
    """Does not load the recovered files of an agent when together they take more than 4 MiB."""

    async def load_recovered_files(self, agent_id: str) -> Any:
        files = await self.inner.load_recovered_files(agent_id)
        size = sum(len(file.content.encode(errors="surrogatepass")) for file in files)
        if size > 4 << 20:
            raise PayloadTooLargeError(f"received message larger than max ({size} vs. {4 << 20})")
        return files


@fault(
    "ID-4",
    "SNAP-1",
    source="a path of a URL that the server unquotes once more after its framework did (WSGI's PATH_INFO)",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("100%")),
        lambda s: s.save_snapshot("a", samples.snapshot("x%2Fy")),
        lambda s: each(*(s.load_snapshot("a", name) for name in ("100%", "x%2Fy"))),
    ),
)
class UnquotesIdsTwice(Wrapper):
    """Looks for the snapshot x/y where x%2Fy is asked for."""

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        name = unquote(snapshot_id) if type(snapshot_id) is str else snapshot_id
        return await self.inner.load_snapshot(agent_id, name)


@fault(
    "EVT-5",
    "EVT-3",
    source="search_after, or ?since= of a service, with the sort key alone and nothing that breaks ties",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(1, cursor=i) for i in range(100)] + happened(2)),
        lambda s: _cursors(s),
    ),
)
class PagesBySeqAlone(Layer):
    """Skips the rest of the events that share a seq when a page ends among them."""

    async def events(self, agent_id: str, span: EventRange) -> Any:
        if span.order == "seq" and span.after is not None:
            span = replace(span, after=None, since_seq=span.after[0])
        return await super().events(agent_id, span)


async def _cursors(store: Any) -> list[int]:
    return [event.cursor async for event in store.read_events("a")]


# --- caches -----------------------------------------------------------------------------------------------------------


async def _edit_what_was_loaded(store: Any) -> Any:
    (await store.load_info("a")).metadata["draft"] = True
    return (await store.load_info("a")).metadata


@fault(
    "QRY-8",
    "VAL-1",
    source="an ETag cache, or an identity map as of an ORM, that gives its own object out again when nothing changed",
    on=OnSqlite,
    witness=seen(lambda s: s.save_info("a", samples.info("a")), _edit_what_was_loaded),
)
class GivesOutItsCachedInfo(Wrapper):
    """Shows what a caller changed in the metadata of a loaded info to all who load it later, though it was not saved."""

    __slots__ = ("kept",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.kept: OrderedDict[str, tuple[bytes, AgentInfo]] = OrderedDict()

    async def load_info(self, agent_id: str) -> Any:
        found = await self.inner.load_info(agent_id)
        if found is None:
            return None
        tag = encode(AgentInfo, found, "info").digest
        kept_tag, kept = self.kept.pop(agent_id, (b"", found))
        self.kept[agent_id] = (tag, kept if kept_tag == tag else found)
        if len(self.kept) > 128:
            self.kept.popitem(last=False)
        return self.kept[agent_id][1]


@fault(
    "DUR-1",
    "QRY-8",
    "LOCK-5",
    source="a throttled autosave: the first save goes through, the last of those within half a second after it",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_todos("a", samples.todos("x")),
        lambda s, t: s.save_todos("a", samples.todos("x", "y")),
        lambda s, t: t.load_todos("a"),
        lambda s, t: s.load_todos("a"),
    ),
)
class ThrottlesTodos(Wrapper):
    """Acknowledges todos that are saved soon after others, and writes them up to half a second later."""

    __slots__ = ("busy", "pending")

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.pending: dict[str, Any] = {}
        self.busy: dict[str, asyncio.Task[None]] = {}

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if agent_id in self.busy and fence is None:
            await kinds.TODOS.write(snapshot)
            self.pending[agent_id] = snapshot
            return
        self.pending.pop(agent_id, None)
        await self.inner.save_todos(agent_id, snapshot, fence=fence)
        if agent_id not in self.busy:
            self.busy[agent_id] = asyncio.ensure_future(self._later(agent_id))

    async def _later(self, agent_id: str) -> None:
        await asyncio.sleep(0.5)
        self.busy.pop(agent_id, None)
        await self._try_to_flush(agent_id)

    async def _try_to_flush(self, agent_id: str) -> None:
        try:
            await self._flush(agent_id)
        except Exception as exc:
            _log.error("todos of %r were not written: %s", agent_id, exc)

    async def _flush(self, agent_id: str) -> None:
        snapshot = self.pending.pop(agent_id, None)
        if snapshot is not None:
            await self.inner.save_todos(agent_id, snapshot)

    async def load_todos(self, agent_id: str) -> Any:
        await self._flush(agent_id)
        return await self.inner.load_todos(agent_id)

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        await self._flush(agent_id)
        await self.inner.save_turn(agent_id, **parts)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._flush(agent_id)
        await self.inner.delete(agent_id, fence=fence)

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        await self._flush(agent_id)
        return await self.inner.batch_fork(agent_id, count)

    async def delete_many(self, **filters: Any) -> int:
        await self._flush_all()
        return await self.inner.delete_many(**filters)

    async def backup(self, target: Any, **options: Any) -> Any:
        await self._flush_all()
        return await self.inner.backup(target, **options)

    async def _flush_all(self) -> None:
        for agent_id in list(self.pending):
            await self._try_to_flush(agent_id)

    async def close(self) -> None:
        await self._flush_all()
        for task in self.busy.values():
            task.cancel()
        self.busy.clear()
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@fault(
    "LIFE-1",
    "QRY-8",
    source="a read-through cache that keeps negative answers too, and is told only of the writes it knows to be theirs",
    on=OnSqlite,
    witness=seen(
        lambda s: s.exists("a"),
        lambda s: s.save_turn("a", append=talk("x"), info=samples.info("a")),
        lambda s: s.exists("a"),
        restart,
        lambda s: s.exists("a"),
    ),
)
class RemembersAbsence(Wrapper):
    """Says that an agent does not exist, once it did not, until save_info is called on the same instance."""

    __slots__ = ("absent",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.absent: set[str] = set()

    async def exists(self, agent_id: str) -> bool:
        if agent_id in self.absent:
            return False
        found: bool = await self.inner.exists(agent_id)
        if not found:
            if len(self.absent) >= 10_000:
                self.absent.clear()
            self.absent.add(agent_id)
        return found

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        await self.inner.save_info(agent_id, info, fence=fence)
        self.absent.discard(agent_id)

    async def close(self) -> None:
        self.absent.clear()
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@fault(
    "LIFE-4",
    "EVT-6",
    "LIFE-3",
    source="a high-water mark that is kept beside the log, and that no delete resets",
    witness=seen(
        lambda s: s.append_events("a", happened(1, 7)),
        lambda s: s.delete("a"),
        lambda s: s.append_event("a", samples.event(2)),
        lambda s: s.last_bookmark("a"),
    ),
)
class KeepsTheHighestSeq(Wrapper):
    """Gives the last bookmark of what was appended before the agent was deleted."""

    __slots__ = ("highest",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.highest: OrderedDict[str, Bookmark] = OrderedDict()

    def _saw(self, agent_id: str, timelines: Sequence[Any]) -> None:
        for timeline in timelines:
            known = self.highest.get(agent_id)
            if known is None or timeline.bookmark.seq > known.seq:
                self.highest[agent_id] = timeline.bookmark
        if len(self.highest) > 10_000:
            self.highest.popitem(last=False)

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        offset: int = await self.inner.append_event(agent_id, timeline, fence=fence)
        self._saw(agent_id, [timeline])
        return offset

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        taken = tuple(timelines) if isinstance(timelines, list) else timelines
        offsets = await self.inner.append_events(agent_id, taken, fence=fence)
        self._saw(agent_id, taken)
        return offsets

    async def last_bookmark(self, agent_id: str) -> Any:
        found, known = await self.inner.last_bookmark(agent_id), self.highest.get(agent_id)
        return known if known is not None and (found is None or known.seq > found.seq) else found


async def _follow_slowly(store: Any) -> list[int]:
    seqs: list[int] = []
    await store.append_events("a", happened(0))
    async with aclosing(store.follow_events("a")) as events:
        async for event in events:
            seqs.append(event.bookmark.seq)
            if event.bookmark.seq == 0:
                await store.append_events("a", happened(*range(1, 1_501)))
                await asyncio.sleep(1)
            if event.bookmark.seq == 1_500:
                break
    return seqs


@fault(
    "EVT-7",
    "OPS-14",
    source="a buffer for each subscriber that drops the oldest when it is full, collections.deque(maxlen=1000)",
    witness=seen(_follow_slowly),
)
class DropsForSlowFollowers(Wrapper):
    """Skips events for a follower that is more than 1,000 behind those who append."""

    def follow_events(self, agent_id: str, **options: Any) -> AsyncIterator[Any]:
        return _buffered(self.inner.follow_events(agent_id, **options))


async def _buffered(events: Any) -> AsyncIterator[Any]:
    kept: deque[Any] = deque(maxlen=1000)
    more = asyncio.Event()

    async def pump() -> None:
        async for event in events:
            kept.append(event)
            more.set()
            await asyncio.sleep(0)

    task = asyncio.ensure_future(pump())
    task.add_done_callback(lambda _: more.set())
    try:
        while True:
            while kept:
                yield kept.popleft()
            if task.done():
                task.result()
                return
            more.clear()
            await more.wait()
    finally:
        task.cancel()
        await asyncio.wait([task])
        await events.aclose()


@fault(
    "EVT-4",
    "EVT-1",
    "VAL-1",
    source="Python: 1 == 1.0 == True, so that what is looked up by == or in a set of tuples is there already",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, done=1)),
        lambda s: s.append_event("a", samples.event(1, done=True)),
        lambda s: _types(s),
    ),
)
class TakesOneForTrue(EngineStore):
    """Takes an event for the repetition of one that Python calls equal: with 1 or 1.0 for True, or its keys in another
    order."""

    async def _append(self, agent_id: str, events: Sequence[EventWrite], fence: Any) -> Sequence[int]:
        if len(events) == 1 and self._locks.fence(check_agent_id(agent_id), fence) is None:
            event = json.loads(events[0].body.text)
            span = EventRange(since_seq=max(events[0].seq - 1, -(2**63)), limit=64)
            for row in await self._context.engine.events(agent_id, span):
                is_sound = digest(row.body.text.encode(errors="replace")) == row.body.digest
                if row.seq == events[0].seq and is_sound and json.loads(row.body.text) == event:
                    return (row.offset,)
        return await super()._append(agent_id, events, fence)


async def _types(store: Any) -> list[str]:
    return [repr(event.event.data["done"]) async for event in store.read_events("a")]


# --- wrappers ---------------------------------------------------------------------------------------------------------


@fault(
    "OPS-3",
    source="a decorator that counts in its finally block",
    witness=seen(
        lambda s: s.query_messages(role="user"),
        lambda s: s.query_messages(limit=-1),
        lambda s: _counts(s),
    ),
)
class CountsWhatFailed(Wrapper):
    """Counts a query that fails as a query as well as an error."""

    __slots__ = ("failed",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.failed = 0

    async def _counted(self, query: Any, filters: Any) -> Any:
        try:
            return await query(**filters)
        except Exception:
            self.failed += 1
            raise

    async def query_sessions(self, **filters: Any) -> Any:
        return await self._counted(self.inner.query_sessions, filters)

    async def query_messages(self, **filters: Any) -> Any:
        return await self._counted(self.inner.query_messages, filters)

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await self._counted(self.inner.query_tool_calls, filters)

    async def get_metrics(self) -> Any:
        metrics = await self.inner.get_metrics()
        counts = metrics.operations
        return replace(metrics, operations=replace(counts, queries=counts.queries + self.failed))


async def _counts(store: Any) -> Any:
    return (await store.get_metrics()).operations


async def _write_after_release(store: Any) -> None:
    lease = await store.acquire_agent_lock("a")
    await lease.release()
    await store.upsert_tool_call_records("a", [samples.tool_call()], fence=lease)


@fault(
    "LOCK-5",
    source="a logging wrapper that forwards the arguments it knew when it was written",
    witness=seen(_write_after_release, lambda s: the("id", s.load_tool_call_records("a"))),
)
class ForwardsNoFence(Wrapper):
    """Forgets the fence that was given to upsert_tool_call_records."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        _log.debug("upsert_tool_call_records %r", agent_id)
        await self.inner.upsert_tool_call_records(agent_id, records)


async def _fork_with_snapshots(store: Any) -> int:
    await store.save_info("a", samples.info("a"))
    for i in range(101):
        await store.save_snapshot("a", samples.snapshot(f"s-{i:03}", samples.T0 + i, count=1))
    (fork,) = await store.batch_fork("a", 1)
    return len(await store.list_snapshots(fork))


@fault(
    "FORK-1",
    source="a fork that is made through the API, whose lists have pages of 100, of which it reads the first",
    witness=seen(_fork_with_snapshots),
)
class ForksAPageOfSnapshots(MemoryLayer):
    """Takes only the newest 100 snapshots along into a fork."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await super().fork(agent_id, children, expect, now)
        for child in children if done else ():
            docs = self.space.states[child.agent_id].docs
            listed = sorted((-doc.time, key) for key, doc in docs.items() if key[0] == DocKind.SNAPSHOTS)
            for _, key in listed[100:]:
                del docs[key]
        return done


async def _what_the_error_says(ctx: Any) -> object:
    await ctx.store.save_messages("a", samples.messages(2))
    await ctx.close(ctx.store)
    await ctx.harness.corrupt(ctx.handle, "a")
    ctx.store = await ctx.another()
    try:
        await ctx.store.load_messages("a")
    except CorruptRecordError as exc:
        return exc.record, "message !" in str(exc)
    return None


@fault(
    "OPS-4",
    source="pydantic's errors and json.JSONDecodeError.doc, which bring the input along (input_value=…)",
    on=OnJson,
    witness=_what_the_error_says,
)
class QuotesWhatIsDamaged(EngineStore):
    """Quotes the damaged message in the error that names it."""

    async def load_messages(self, agent_id: str) -> Any:
        try:
            return await super().load_messages(agent_id)
        except CorruptRecordError as exc:
            for body, _ in (await self._context.engine.rows(agent_id, ListKind.MESSAGES)).rows:
                if digest(body.text.encode(errors="replace")) != body.digest:
                    problem = f"the stored text does not match its checksum, input_value={body.text[:200]!r}"
                    raise CorruptRecordError(exc.record, problem) from None
            raise


# --- clocks and leases ------------------------------------------------------------------------------------------------


@fault(
    "VAL-5",
    "QRY-2",
    source="datetime.replace(tzinfo=UTC) where astimezone(UTC) is meant, before the time goes into a document",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: the("agent_id", s.query_sessions(created_before=datetime(2026, 1, 1, 10, tzinfo=UTC))),
        lambda s: the("agent_id", s.query_sessions(created_after=datetime.fromisoformat("2026-01-01T10:00:00+01:00"))),
        lambda s: the("agent_id", s.query_sessions(created_before=datetime.fromisoformat("2026-01-01T04:30:00-05:00"))),
    ),
)
class TakesTheHourAsUtc(Wrapper):
    """Takes the wall time of a datetime in a filter of sessions as UTC, whatever its time zone."""

    async def query_sessions(self, **filters: Any) -> Any:
        for name, value in filters.items():
            if isinstance(value, datetime) and value.utcoffset() is not None:
                filters[name] = value.replace(tzinfo=UTC)
        return await self.inner.query_sessions(**filters)


async def _token(store: Any) -> int:
    lease = await store.acquire_agent_lock("a")
    await lease.release()
    return lease.token  # type: ignore[no-any-return]


async def _tokens(store: Any) -> list[bool]:
    tokens = [await _token(store), await _token(store)]
    await store.save_messages("a", talk("x"))
    await store.delete("a")
    tokens.append(await _token(store))
    return [a < b for a, b in itertools.pairwise(tokens)]


@fault(
    "LOCK-5",
    source="a counter of leases that is a field of the agent's own document, and goes with it",
    witness=seen(_tokens),
)
class TokensGoWithTheAgent(MemoryLayer):
    """Begins the tokens of an agent's leases at 1 again after the agent was deleted."""

    @property
    def tokens(self) -> dict[str, int]:
        return vars(self.space).setdefault("tokens", {})  # type: ignore[no-any-return]

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        if await super().acquire_lease(agent_id, owner, ttl_ms) is None:
            return None
        token = self.tokens[agent_id] = self.tokens.get(agent_id, 0) + 1
        self.space.leases[agent_id] = (Fence(owner, token), self.space.leases[agent_id][1])
        return token

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete and isinstance(outcome, Applied):
                self.tokens.pop(batch.agent_id, None)
        return outcomes


async def _renew_too_late(store: Any) -> None:
    lease = await store.acquire_agent_lock("a", ttl_ms=50)
    await asyncio.sleep(0.2)
    await lease.renew()


@fault(
    "LOCK-3",
    "LOCK-5",
    source="a lease document whose renewal compares the owner and not the time (… where _id = ? and owner = ?)",
    witness=seen(_renew_too_late, lambda s: s.save_messages("a", talk("x"))),
)
class RenewsWhatHasEnded(MemoryLayer):
    """Renews a lease that has ended, as long as nobody else has taken the lock."""

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        held = self.space.leases.get(agent_id)
        if held is None or held[0] != fence:
            return False
        self.space.leases[agent_id] = (fence, time.monotonic() + ttl_ms / 1000)
        return True
