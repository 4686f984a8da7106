"""Additions around a working store, or inside it: each forgot one method, one kind, one page or one instance."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sqlite3
import time
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

from kode_conformance.values import samples
from kode_sqlite.engine import SqliteEngine
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnJson, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import each, restart, seen, talk, the
from kode_core.batch import Applied, DocKind, DocWrite, ListKind
from kode_core.codec import encode
from kode_core.errors import InvalidValueError, KodeError, LockUnavailableError, OutcomeUnknownError
from kode_core.ids import check_agent_id
from kode_core.layers import Layer
from kode_core.model import (
    HistoryWindow,
    MediaCacheRecord,
    Snapshot,
    Timeline,
    TodoItem,
    TodoSnapshot,
    ToolCallApproval,
    ToolCallRecord,
)
from kode_core.store import EngineStore, kinds
from kode_core.store.lists import Replace
from kode_core.store.locks import ENTERED, Locks
from kode_core.store.rows import LISTS
from kode_core.store.writer import Writer


def _is_fenced(fence: Any) -> bool:
    """True if a write is made under a lease: the additions leave such writes alone."""
    return fence is not None or bool(ENTERED.get())


# --- values -----------------------------------------------------------------------------------------------------------


@fault(
    "VAL-1",
    source="interning of repeated column values through a Python dict, where 1, 1.0 and True are one key",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(i, n=n) for i, n in enumerate([1, 1.0, True, 0.0, -0.0])]),
        lambda s: s.read_events("a"),
    ),
)
class InternsEventData(Wrapper):
    """Shares equal numbers in the data of the events that one read yields, so that ``1.0`` and ``True`` come back as
    the ``1`` of an earlier event."""

    def read_events(self, agent_id: str, **span: Any) -> Any:
        return self._interned(self.inner.read_events(agent_id, **span))

    async def _interned(self, found: Any) -> Any:
        pool: dict[Any, Any] = {}
        async with contextlib.aclosing(found):
            async for event in found:
                if len(pool) > 1000:
                    pool.clear()
                data = {
                    name: pool.setdefault(value, value) if type(value) in (bool, int, float, str) else value
                    for name, value in event.event.data.items()
                }
                yield replace(event, event=replace(event.event, data=data))


async def _changed_window(ctx: Any) -> object:
    window = samples.window()
    window = window.replace(messages=[replace(m, metadata={"n": 1}) for m in window.messages])
    await ctx.store.save_history_window("a", window)
    (first,) = await ctx.store.load_history_windows("a")
    first.messages[0].metadata["n"] = 2
    return await ctx.store.load_history_windows("a")


@fault(
    "VAL-1",
    source="a decode cache keyed by the digest of the stored bytes (functools.lru_cache around json.loads)",
    witness=_changed_window,
)
class DecodesWindowsOnce(Wrapper):
    """Gives the same decoded history window to everybody who loads these bytes, with the dicts that callers changed."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.decoded: OrderedDict[bytes, Any] = OrderedDict()

    __slots__ = ("decoded",)

    async def load_history_windows(self, agent_id: str) -> Any:
        found = await self.inner.load_history_windows(agent_id)
        windows = []
        for window in found:
            body = encode(HistoryWindow, window, "window")
            if len(body.text) > 65_536:  # too large to keep
                windows.append(window)
                continue
            windows.append(self.decoded.setdefault(body.digest, window))
            self.decoded.move_to_end(body.digest)
        while len(self.decoded) > 128:
            self.decoded.popitem(last=False)
        return windows


def _empty_notes() -> TodoSnapshot:
    item = TodoItem(id="1", title="t", notes="", assignee="", created_at=samples.T0, updated_at=samples.T0)
    return TodoSnapshot(todos=[item], updated_at=samples.T0)


@fault(
    "VAL-3",
    "VAL-1",
    "TODO-1",
    source="Go's omitempty, and `value or None` in a mapper",
    witness=seen(
        lambda s: s.save_todos("a", _empty_notes()),
        lambda s: s.load_todos("a"),
    ),
)
class OmitsEmptyNotes(Wrapper):
    """Stores the empty notes of a todo as none at all."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        todos = snapshot.todos if type(snapshot) is TodoSnapshot else None
        if type(todos) is tuple and all(type(item) is TodoItem for item in todos):
            snapshot = snapshot.replace(todos=[item.replace(notes=item.notes or None) for item in todos])
        await self.inner.save_todos(agent_id, snapshot, fence=fence)


# --- identity ---------------------------------------------------------------------------------------------------------


class _Leases(dict[str, Any]):
    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name[:64])

    def __setitem__(self, name: str, lease: Any) -> None:
        super().__setitem__(name[:64], lease)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name[:64])

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name[:64], default)


_LONG = "tenant-0001/project-0001/environment-production/assistant/session-"


@fault(
    "ID-2",
    "LOCK-1",
    "LOCK-2",
    source="GET_LOCK of MySQL 5.7.5 takes 64 characters, and liquibase-sessionlock cuts its names to that",
    errors=True,
    witness=seen(
        lambda s: the("agent_id", each(s.acquire_agent_lock(_LONG + "1"))),
        lambda s: the("agent_id", each(s.acquire_agent_lock(_LONG + "2"))),
    ),
)
class LocksBySixtyFour(MemoryLayer):
    """Keeps locks under the first 64 characters of the agent id, so that the locks of two agents are one."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        if not isinstance(self.space.leases, _Leases):
            self.space.leases = _Leases()


@fault(
    "ID-4",
    "HIS-1",
    "VAL-2",
    source="a migration to VARCHAR(255) with MySQL's sql_mode not strict",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("c" * 255 + "1")),
        lambda s: s.save_compression_record("a", samples.compression("c" * 255 + "2")),
        lambda s: the("id", s.load_compression_records("a")),
    ),
)
class CutsCompressionKeys(Layer):
    """Keeps compression records under the first 255 characters of their ids, where one replaces another."""

    async def commit(self, batches: Any) -> Any:
        def cut(write: DocWrite) -> DocWrite:
            if write.kind is not DocKind.COMPRESSIONS or len(write.key) <= 255:
                return write
            key = write.key[:255]
            return DocWrite(write.kind, key, None if write.doc is None else replace(write.doc, key=key))

        return await self.inner.commit([replace(batch, docs=tuple(map(cut, batch.docs))) for batch in batches])


# --- messages ---------------------------------------------------------------------------------------------------------


async def _edited_elsewhere(ctx: Any) -> object:
    while time.time_ns() // 1_000_000 % 1000 < 100:
        await asyncio.sleep(0.05)
    await ctx.store.save_messages("a", talk("1", "2", "3"))
    before = await ctx.store.query_messages(order="asc")
    other = await ctx.another()
    await other.save_messages("a", talk("1", "two", "3"))
    after = await ctx.store.query_messages(agent_id="a", order="asc")
    return [(b.created_at == a.created_at, a.position) for b, a in zip(before, after, strict=True)]


@fault(
    "MSG-4",
    source="a MySQL DATETIME without fractional seconds in the index that comparisons are made from",
    witness=_edited_elsewhere,
)
class OutlinesInSeconds(Layer):
    """Reads the times of a list that it does not remember in whole seconds, so that a message edited by a second
    instance or after a restart becomes older than it was."""

    async def outline(self, agent_id: str, kind: ListKind, keys: Any = None) -> Any:
        found = await self.inner.outline(agent_id, kind, keys)
        if kind is not ListKind.MESSAGES:
            return found
        return replace(found, rows=[(i, digest, at // 1000 * 1000, key) for i, digest, at, key in found.rows])


class _Rewriter(Writer):
    async def _change(self, agent_id: str, kind: ListKind, edit: Any, *, whole: bool) -> Any:
        known = self._memory.get(agent_id, kind)
        if edit.how is Replace and known is not None and len(edit.records) < len(known):
            return await Replace.whole(LISTS[kind], known, edit.records, self._context.now())
        return await super()._change(agent_id, kind, edit, whole=whole)


async def _growth_of_cuts(ctx: Any) -> object:
    folder = Path(ctx.handle["base_dir"])
    messages = samples.messages(3000)
    await ctx.store.save_messages("a", messages)
    grown = []
    for _ in range(3):
        before = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        messages = messages[:-1]
        await ctx.store.save_messages("a", messages)
        grown.append(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) - before > 50_000)
    return any(grown)


@fault(
    "MSG-5",
    "TC-1",
    source="the delete-all-and-insert of ORMs when an element of a bag is removed (Hibernate)",
    on=OnJson,
    witness=_growth_of_cuts,
)
class RewritesShorterLists(EngineStore):
    """Writes the whole list again when one was saved that is shorter than before."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._writer.__class__ = _Rewriter


@fault(
    "MSG-7",
    "DUR-1",
    source="a job at start-up that removes rows without a parent, written for a schema with foreign keys",
    on=OnSqlite,
    witness=seen(
        lambda s: s.save_messages("a", talk("1")),
        lambda s: s.save_todos("b", samples.todos("t")),
        restart,
        lambda s: s.load_messages("a"),
        lambda s: s.load_todos("b"),
    ),
)
class SweepsOrphansWhenOpened(EngineStore):
    """Removes, when it is opened, what was saved for agents that have no info yet."""

    _is_swept = False

    async def open(self) -> Any:
        await super().open()
        if not self._is_swept:
            self._is_swept = True
            engine = self._context.engine
            for agent_id in await engine.stored_ids(None, 10_000):
                with contextlib.suppress(KodeError):  # damaged ones are left for the repair
                    summary = await engine.summary(agent_id)
                    if summary is None or summary.info is None:
                        await engine.commit([self._context.batch(agent_id, delete=True)])
        return self


# --- tool calls, turns ------------------------------------------------------------------------------------------------


async def _upserted_elsewhere(ctx: Any) -> object:
    calls = [samples.tool_call(i) for i in range(501)]
    await ctx.store.save_tool_call_records("a", calls)
    other = await ctx.another()
    await other.upsert_tool_call_records("a", [replace(call, state="FAILED") for call in calls])
    found = await other.load_tool_call_records("a")
    return len(found), {call.state for call in found}


@fault(
    "TC-3",
    "VAL-4",
    source="bulk_batch_size of Django, which is 500 for one column on SQLite: what looks rows up goes in chunks",
    witness=_upserted_elsewhere,
)
class LooksUpFiveHundredIds(Layer):
    """Looks up the places of 500 call ids at a time and keeps the last answer only, so that a larger upsert into a
    list that it does not remember appends records that are there already."""

    async def outline(self, agent_id: str, kind: ListKind, keys: Any = None) -> Any:
        if keys is None or len(keys) <= 500:
            return await self.inner.outline(agent_id, kind, keys)
        for i in range(0, len(keys), 500):
            found = await self.inner.outline(agent_id, kind, keys[i : i + 500])
        return found


@fault(
    "TC-2",
    "TC-1",
    "TURN-1",
    source="ON CONFLICT DO UPDATE cannot affect a row a second time (PostgreSQL), so the rows are made unique before",
    witness=seen(
        lambda s: s.save_turn("a", tool_calls=[samples.tool_call(1), samples.tool_call(2), samples.tool_call(1)]),
        lambda s: the("id", s.load_tool_call_records("a")),
    ),
)
class MakesCallsOfATurnUnique(Wrapper):
    """Keeps of the tool calls that ``save_turn`` gives as a whole list only the last with each id."""

    async def save_turn(self, agent_id: str, *, tool_calls: Any = None, **rest: Any) -> None:
        if type(tool_calls) in (list, tuple) and all(type(call) is ToolCallRecord for call in tool_calls):
            tool_calls = list({str(call.id): call for call in tool_calls}.values())
        await self.inner.save_turn(agent_id, tool_calls=tool_calls, **rest)


@fault(
    "TURN-1",
    "VAL-2",
    "DUR-3",
    source="an event bus with group commit of its own, to which everything was moved that is an event",
    witness=seen(
        lambda s: s.save_turn("a", append=talk("1"), events=[samples.event(1, n=float("nan"))]),
        lambda s: s.load_messages("a"),
    ),
)
class SendsEventsAfterTheTurn(Wrapper):
    """Writes the events of a turn by a call of their own once the rest was written."""

    async def save_turn(self, agent_id: str, *, events: Any = (), fence: Any = None, **rest: Any) -> None:
        await self.inner.save_turn(agent_id, fence=fence, **rest)
        if events:
            await self.inner.append_events(agent_id, events, fence=fence)


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    "EVT-1",
    "LIFE-4",
    "LIFE-5",
    source="idempotency keys that are kept apart from the data, and dropped by one of two ways to delete",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: s.delete_many(agent_id="a"),
        lambda s: _appended(s),
        lambda s: the("bookmark", _read(s)),
    ),
)
class RemembersKeysOverDeleteMany(Wrapper):
    """Takes an event for a repetition of one that ``delete_many`` has removed since, and does not store it."""

    __slots__ = ("keys",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.keys: OrderedDict[tuple[str, bytes], int] = OrderedDict()

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        try:
            key = (str(agent_id), encode(Timeline, timeline, "event").digest)
        except InvalidValueError:
            return await self.inner.append_event(agent_id, timeline, fence=fence)
        if key in self.keys and not _is_fenced(fence) and not self.inner._context.is_closed:
            return self.keys[key]
        offset = await self.inner.append_event(agent_id, timeline, fence=fence)
        self.keys[key] = offset
        if len(self.keys) > 10_000:
            self.keys.popitem(last=False)
        return offset

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        try:
            await self.inner.delete(agent_id, fence=fence)
        finally:
            for key in [key for key in self.keys if key[0] == agent_id]:
                del self.keys[key]


async def _appended(store: Any) -> bool:
    return await store.append_event("a", samples.event(1)) > 0


@fault(
    "EVT-5",
    "EVT-3",
    "EVT-1",
    source="keyset pagination by a column that is not unique: WHERE seq > :last ORDER BY seq, offset LIMIT :n",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(7, n=i) for i in range(600)]),
        lambda s: the("offset", _read(s)),
    ),
)
class PagesEventsBySeq(Layer):
    """Goes on after a page of events with the next seq, and leaves out the others that share the last one's."""

    async def events(self, agent_id: str, span: Any) -> Any:
        if span.order == "seq" and span.after is not None:
            span = replace(span, after=(span.after[0], 2**63 - 1))
        return await self.inner.events(agent_id, span)


async def _read(store: Any) -> list[Any]:
    return [event async for event in store.read_events("a")]


async def _slow_follower(ctx: Any) -> object:
    for start in range(0, 1500, 500):
        await ctx.store.append_events("a", samples.events(500, start))
    seqs = []
    async with contextlib.aclosing(ctx.store.follow_events("a")) as following:
        async for event in following:
            seqs.append(event.bookmark.seq)
            if len(seqs) == 1:
                await asyncio.sleep(1)  # a model is asked
            if event.bookmark.seq == 1499:
                return seqs == list(range(1500))


@fault(
    "EVT-7",
    source="client-output-buffer-limit of Redis, and collections.deque(maxlen=1000) between a reader and its client",
    witness=_slow_follower,
)
class DropsForSlowFollowers(Wrapper):
    """Prefetches what a follower is to get into a buffer of 1,000, and drops the oldest when the follower is slow."""

    def follow_events(self, agent_id: str, **span: Any) -> Any:
        return self._buffered(self.inner.follow_events(agent_id, **span))

    async def _buffered(self, following: Any) -> Any:
        buffer: deque[Any] = deque(maxlen=1000)
        is_new = asyncio.Event()

        async def fill() -> None:
            try:
                async for event in following:
                    buffer.append(event)
                    is_new.set()
            finally:
                is_new.set()

        filling = asyncio.ensure_future(fill())
        try:
            while True:
                while buffer:
                    yield buffer.popleft()
                if filling.done():
                    await filling
                    return
                is_new.clear()
                await is_new.wait()
        finally:
            filling.cancel()
            await asyncio.wait([filling])
            if not filling.cancelled():
                filling.exception()
            await following.aclose()


# --- the other kinds --------------------------------------------------------------------------------------------------


async def _many_files(ctx: Any) -> object:
    for i in range(130):
        await ctx.store.save_recovered_file("a", samples.recovered(f"src/{i:03}.py"))
    await ctx.store.save_recovered_file("a", samples.recovered("later.md", samples.T0 + 1))
    return await the("path", ctx.store.load_recovered_files("a"))


@fault(
    "HIS-2",
    "VAL-4",
    source="pages of 100 by WHERE timestamp > :last, for files that one compression recovers all at one time",
    witness=_many_files,
)
class PagesFilesByTime(Wrapper):
    """Loads recovered files in pages of 100, each from the next timestamp on, and leaves out the rest of those that
    have one timestamp."""

    async def load_recovered_files(self, agent_id: str) -> Any:
        files = await self.inner.load_recovered_files(agent_id)
        found: list[Any] = []
        i = 0
        while i < len(files):
            found += files[i : i + 100]
            i += 100
            while i < len(files) and files[i].timestamp == found[-1].timestamp:
                i += 1
        return found


@fault(
    "HIS-1",
    source="ON CONFLICT DO UPDATE SET body = excluded.body, where the column that ORDER BY uses was forgotten",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w1", samples.T0)),
        lambda s: s.save_history_window("a", samples.window("w2", samples.T0 + 1)),
        lambda s: s.save_history_window("a", samples.window("w1", samples.T0 + 2)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class OrdersWindowsByFirstTime(MemoryLayer):
    """Orders history windows by the timestamps that they had before they were replaced."""

    async def commit(self, batches: Any) -> Any:
        return await self.inner.commit([self._kept(batch) for batch in batches])

    def _kept(self, batch: Any) -> Any:
        stored = {} if batch.delete else self.space.state(batch.agent_id).docs

        def kept(write: DocWrite) -> DocWrite:
            old = stored.get((write.kind, write.key))
            if write.kind is not DocKind.WINDOWS or write.doc is None or old is None:
                return write
            return replace(write, doc=replace(write.doc, time=old.time))

        return replace(batch, docs=tuple(map(kept, batch.docs)))


@fault(
    "TODO-1",
    "DUR-1",
    source="the dirty check of an ORM session, against what this session wrote and not against the row",
    witness=seen(
        lambda s, t: s.save_todos("a", samples.todos("x")),
        lambda s, t: t.save_todos("a", samples.todos("y")),
        lambda s, t: s.save_todos("a", samples.todos("x")),
        lambda s, t: t.load_todos("a"),
    ),
)
class SkipsTodosThatItWrote(Wrapper):
    """Does not write todos that equal those it wrote last, whatever another instance wrote or deleted since."""

    __slots__ = ("wrote",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.wrote: dict[str, bytes] = {}

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if _is_fenced(fence) or type(agent_id) is not str:
            self.wrote.pop(str(agent_id), None)
            await self.inner.save_todos(agent_id, snapshot, fence=fence)
            return
        try:
            digest = encode(TodoSnapshot, snapshot, "todos").digest
        except InvalidValueError:
            digest = b""
        if digest and self.wrote.get(agent_id) == digest:
            await self.inner.exists(agent_id)
            return
        self.wrote.pop(agent_id, None)
        await self.inner.save_todos(agent_id, snapshot)
        self.wrote[agent_id] = digest

    async def save_turn(self, agent_id: str, **contents: Any) -> None:
        self.wrote.pop(agent_id, None)
        await self.inner.save_turn(agent_id, **contents)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        self.wrote.pop(agent_id, None)
        await self.inner.delete(agent_id, fence=fence)

    async def delete_many(self, **filters: Any) -> int:
        self.wrote.clear()
        return await self.inner.delete_many(**filters)


@fault(
    "MED-1",
    source="content-addressed storage, where what is equal is there once",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("k"), samples.media("l"), samples.media("k")]),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class KeepsEqualMediaOnce(Wrapper):
    """Stores a media cache record that equals another of the list only once."""

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if type(records) in (list, tuple):
            with contextlib.suppress(InvalidValueError):  # it is refused below
                once = {encode(MediaCacheRecord, record, "media").digest: record for record in records}
                records = list(once.values())
        await self.inner.save_media_cache(agent_id, records, fence=fence)


def _large_snapshot(i: int) -> Snapshot:
    return replace(samples.snapshot(f"s{i}", samples.T0 + i), messages=talk("x" * 400_000))


@fault(
    "SNAP-1",
    "VAL-4",
    source="a Query of DynamoDB ends after 1 MB, and its LastEvaluatedKey was not followed",
    witness=seen(
        lambda s: s.save_snapshot("a", _large_snapshot(1)),
        lambda s: s.save_snapshot("a", _large_snapshot(2)),
        lambda s: s.save_snapshot("a", _large_snapshot(3)),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class ListsAMegabyteOfSnapshots(Wrapper):
    """Lists the snapshots of the first megabyte and no others."""

    async def list_snapshots(self, agent_id: str) -> Any:
        found, size = [], 0
        for snapshot in await self.inner.list_snapshots(agent_id):
            size += len(encode(Snapshot, snapshot, "snapshot").text)
            if found and size > 2**20:
                break
            found.append(snapshot)
        return found


@fault(
    "INFO-2",
    source="the dirty check of Hibernate and Django, which send no UPDATE, and fire no trigger, where nothing changed",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: _moved(s),
    ),
)
class SkipsCleanInfo(Layer):
    """Does not write an info that equals the stored one, so that ``updated_at`` stays where it is."""

    async def commit(self, batches: Any) -> Any:
        return [await self._commit(batch) for batch in batches]

    async def _commit(self, batch: Any) -> Any:
        more = batch.messages or batch.tool_calls or batch.docs or batch.events
        if batch.info is not None and not (more or batch.delete or batch.fence or batch.expect_updated_at):
            with contextlib.suppress(KodeError):
                summary = await self.inner.summary(batch.agent_id)
                if summary is not None and summary.info is not None and summary.info.body == batch.info.body:
                    return Applied(summary.messages, summary.tool_calls)
        return (await self.inner.commit([batch]))[0]


async def _moved(store: Any) -> bool:
    (before,) = await store.query_sessions()
    await store.save_info("a", samples.info("a"))
    (after,) = await store.query_sessions()
    return after.updated_at > before.updated_at


# --- lifecycle --------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-2",
    "ID-1",
    source="the prefix search of Firestore: startAt(prefix).endAt(prefix + '\\uf8ff')",
    witness=seen(
        lambda s: s.save_info("team-z", samples.info("team-z")),
        lambda s: s.save_info("team-\U0001f600", samples.info("team-\U0001f600")),
        lambda s: s.list("team-"),
    ),
)
class ListsUpToTheLastPrivateCharacter(Wrapper):
    """Lists with a prefix no id that goes on with a character beyond U+F8FF, such as an emoji."""

    async def list(self, prefix: str = "") -> Any:
        found = await self.inner.list(prefix)
        return [agent_id for agent_id in found if agent_id <= prefix + "\uf8ff"] if prefix else found


@fault(
    "LIFE-5",
    "LIFE-3",
    "LIFE-4",
    source="a table that was added later, to the list of tables of one of two ways to delete",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_recovered_file("a", samples.recovered()),
        lambda s: s.delete_many(template_id="assistant"),
        lambda s: s.load_recovered_files("a"),
    ),
)
class DeletesManyButTheirFiles(Layer):
    """Leaves the recovered files of the agents that ``delete_many`` deletes."""

    async def commit(self, batches: Any) -> Any:
        return await self.inner.commit([await self._kept(batch) for batch in batches])

    async def _kept(self, batch: Any) -> Any:
        if not batch.delete or batch.expect_updated_at is None:
            return batch
        try:
            files = await self.inner.docs(batch.agent_id, DocKind.RECOVERED)
        except KodeError:
            return batch
        return replace(batch, docs=tuple(DocWrite(DocKind.RECOVERED, doc.key, doc) for doc in files))


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    "INFO-1",
    source="UPDATE … SET user_id = COALESCE(:user_id, user_id), the partial update of many mappers",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"userId": "u-1"})),
        lambda s: s.save_info("a", samples.info("a", metadata={"plan": "free"})),
        lambda s: the("agent_id", s.query_sessions(user_id="u-1")),
    ),
)
class CoalescesTheUser(MemoryLayer):
    """Finds a session by the user that its info no longer names."""

    async def commit(self, batches: Any) -> Any:
        return await self.inner.commit([self._coalesced(batch) for batch in batches])

    def _coalesced(self, batch: Any) -> Any:
        old = None if batch.delete else self.space.state(batch.agent_id).info
        if batch.info is None or old is None or "userId" in dict(batch.info.metadata):
            return batch
        kept = tuple(pair for pair in old.metadata if pair[0] == "userId")
        return replace(batch, info=replace(batch.info, metadata=batch.info.metadata + kept))


@fault(
    "QRY-2",
    source="an UPSERT whose list of columns was written before the column was added",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(1)]),
        lambda s: s.upsert_tool_call_records(
            "a", [samples.tool_call(1, approval=ToolCallApproval(required=True), state="APPROVAL_REQUIRED")]
        ),
        lambda s: the("id", s.query_tool_calls(has_approval=True)),
        lambda s: the("id", s.query_tool_calls(has_approval=False)),
    ),
)
class UpsertsWithoutTheApproval(MemoryLayer):
    """Finds a tool call that was replaced where it stands by whether the one before it needed an approval."""

    async def commit(self, batches: Any) -> Any:
        return await self.inner.commit([self._kept(batch) for batch in batches])

    def _kept(self, batch: Any) -> Any:
        write = batch.tool_calls
        if write is None or batch.delete:
            return batch
        rows = self.space.state(batch.agent_id).lists[ListKind.TOOL_CALLS].rows

        def kept(place: int, row: Any) -> Any:
            if place >= len(rows):
                return place, row
            return place, replace(row, index=replace(row.index, has_approval=rows[place].index.has_approval))

        return replace(batch, tool_calls=replace(write, put=tuple(kept(*one) for one in write.put)))


@fault(
    "QRY-7",
    source="a counter that is incremented by each save, as Firestore's FieldValue.increment beside a set()",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("s1")),
        lambda s: s.save_snapshot("a", samples.snapshot("s1", samples.T0 + 1)),
        lambda s: s.aggregate_stats("a"),
    ),
)
class CountsSavesOfSnapshots(MemoryLayer):
    """Counts a snapshot that was saved again under its id twice."""

    @property
    def again(self) -> dict[str, int]:
        counts: dict[str, int] = self.space.__dict__.setdefault("again", {})
        return counts

    async def commit(self, batches: Any) -> Any:
        outcomes = []
        for batch in batches:
            docs = {} if batch.delete else self.space.state(batch.agent_id).docs
            again = sum(
                w.kind is DocKind.SNAPSHOTS and w.doc is not None and (w.kind, w.key) in docs for w in batch.docs
            )
            outcomes += await self.inner.commit([batch])
            if isinstance(outcomes[-1], Applied):
                if batch.delete:
                    self.again.pop(batch.agent_id, None)
                if again:
                    self.again[batch.agent_id] = self.again.get(batch.agent_id, 0) + again
        return outcomes

    async def stats(self, agent_id: str) -> Any:
        found = await self.inner.stats(agent_id)
        return replace(found, total_snapshots=found.total_snapshots + self.again.get(agent_id, 0))


# --- operations -------------------------------------------------------------------------------------------------------


async def _sound_beside_bad(ctx: Any) -> object:
    bad = replace(samples.message(), metadata={"x": float("nan")})
    calls = (ctx.store.append_messages("a", m) for m in (talk("1"), [bad], talk("2")))
    ended = await asyncio.gather(*calls, return_exceptions=True)
    return [type(end).__name__ for end in ended], await ctx.store.load_messages("a")


@fault(
    "OPS-13",
    source="DataLoader and other batchers: calls of one tick of the event loop become one, and fail as one",
    errors=True,
    witness=_sound_beside_bad,
)
class AppendsOnceForEachTick(Wrapper):
    """Makes one append of those that are begun for an agent at the same time, so that one that is refused fails the
    others."""

    __slots__ = ("gathered",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.gathered: dict[str, tuple[list[Any], Any]] = {}

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if _is_fenced(fence) or type(agent_id) is not str or type(messages) not in (list, tuple):
            await self.inner.append_messages(agent_id, messages, fence=fence)
            return
        if agent_id not in self.gathered:
            self.gathered[agent_id] = ([], asyncio.ensure_future(self._flush(agent_id)))
        gathered, flushing = self.gathered[agent_id]
        gathered.extend(messages)
        try:
            await asyncio.shield(flushing)
        except asyncio.CancelledError:
            await asyncio.wait([flushing])  # it goes on to its end, and every later call relies on that
            raise

    async def _flush(self, agent_id: str) -> None:
        messages, _ = self.gathered.pop(agent_id)
        await self.inner.append_messages(agent_id, messages)


class _LosesAnAnswer(Layer):
    lost = False

    async def commit(self, batches: Any) -> Any:
        outcomes = await self.inner.commit(batches)
        if not self.lost and batches[0].messages is not None:
            self.lost = True
            return [OutcomeUnknownError("the connection was lost before the answer came") for _ in outcomes]
        return outcomes


async def _after_a_lost_answer(ctx: Any) -> object:
    store = await ctx.another(_LosesAnAnswer)
    with contextlib.suppress(OutcomeUnknownError):
        await store.append_messages("a", talk("1", "2"))
    return await store.load_messages("a")


@fault(
    "OPS-10",
    "MSG-3",
    source="tenacity's @retry(stop=stop_after_attempt(3)) on every method of a repository",
    witness=_after_a_lost_answer,
)
class RetriesAppends(Wrapper):
    """Appends messages again when it is not known whether they were appended."""

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.append_messages(agent_id, messages, fence=fence)
        except OutcomeUnknownError:
            await self.inner.append_messages(agent_id, messages, fence=fence)


@fault(
    "OPS-5",
    "ID-1",
    "INFO-2",
    "LOCK-5",
    source="the guard `if not records: return`, which saves a round trip to the database",
    witness=seen(
        lambda s: s.upsert_tool_call_records("", []),
        lambda s: s.close(),
        lambda s: s.upsert_tool_call_records("a", []),
    ),
)
class ReturnsEarlyWithoutRecords(Wrapper):
    """Does nothing at all for an upsert of no records: a closed store, an illegal id and a lost lease go unseen, and
    ``updated_at`` stays."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if type(records) in (list, tuple) and not records:
            return
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)


async def _tokens_of_a_copy(ctx: Any) -> object:
    for _ in range(3):
        lease = await ctx.store.acquire_agent_lock("a")
        await lease.release()
    made = await ctx.store.backup(ctx.folder / "copy")
    copy = await ctx.restored(made)
    return (await copy.acquire_agent_lock("a")).token > lease.token


@fault(
    "OPS-16",
    "LOCK-5",
    source="a dump of the data without the sequences (pg_dump -t, logical replication of PostgreSQL)",
    on=OnSqlite,
    witness=_tokens_of_a_copy,
)
class BackupWithoutTokens(SqliteEngine):
    """Leaves the count of the leases' tokens out of a backup, so that in the copy they begin at 1 again."""

    async def backup(self, target: Path, *args: Any) -> Any:
        made = await super().backup(target, *args)
        with contextlib.closing(sqlite3.connect(made[0])) as db, db:
            db.execute("DELETE FROM kode_meta WHERE key = 'last_token'")
        return made


# --- locks, forks, durability -----------------------------------------------------------------------------------------


async def _late_in_the_block(ctx: Any) -> object:
    async with ctx.store.acquire_agent_lock("a") as lease:
        await lease.release()
        try:
            await ctx.store.save_history_window("a", samples.window())
        except KodeError as exc:
            return type(exc).__name__
    return await ctx.store.load_history_windows("a")


@fault(
    "LOCK-5",
    "LOCK-7",
    source="loop.run_in_executor and worker tasks, which do not take the context variables of the caller along",
    witness=_late_in_the_block,
)
class SavesWindowsInAWorker(Wrapper):
    """Saves history windows in a task that does not know whose block its caller is in, so that they are not fenced."""

    async def save_history_window(self, agent_id: str, window: Any, *, fence: Any = None) -> None:
        save = self.inner.save_history_window(agent_id, window, fence=fence)
        await asyncio.get_running_loop().create_task(save, context=contextvars.Context())


class _PatientLocks(Locks):
    async def _acquire(self, agent_id: str, ttl_ms: int, wait_ms: int) -> Any:
        began = time.monotonic()
        try:
            return await super()._acquire(agent_id, ttl_ms, wait_ms)
        except LockUnavailableError:
            await self._pause(max(0.0, began + wait_ms / 1000 - time.monotonic()))
            raise


async def _asks_again(ctx: Any) -> object:
    async with ctx.store.acquire_agent_lock("a"):
        began = time.monotonic()
        with contextlib.suppress(LockUnavailableError):
            await ctx.store.acquire_agent_lock("a", wait_ms=2_000)
        return time.monotonic() - began > 1.5


@fault(
    "LOCK-7",
    source="an asyncio.Lock of the process in front of the lock of the database, which knows no owner",
    witness=_asks_again,
)
class WaitsForItself(EngineStore):
    """Lets a task that asks again for a lock that it holds wait as long as everybody else."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._locks.__class__ = _PatientLocks


async def _media_of_a_fork(ctx: Any) -> object:
    store = ctx.store
    await store.save_info("a", samples.info("a"))
    await store.save_media_cache("a", [samples.media("k")])
    (fork,) = await store.batch_fork("a", 1)
    await store.save_media_cache("a", [samples.media("l")])
    return await the("key", store.load_media_cache(fork))


@fault(
    "FORK-2",
    "FORK-1",
    source="copy on write as in overlay file systems, with a lower layer that is still written",
    witness=_media_of_a_fork,
)
class SharesMediaWithForks(MemoryLayer):
    """Reads a fork's media cache through to its parent until the fork saves one, whatever becomes of the parent's."""

    @property
    def parents(self) -> dict[str, str]:
        parents: dict[str, str] = self.space.__dict__.setdefault("parents", {})
        return parents

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        is_done = await self.inner.fork(agent_id, children, expect, now)
        for child in children if is_done else ():
            self.space.states[child.agent_id].docs.pop((DocKind.MEDIA, ""), None)
            self.parents[child.agent_id] = agent_id
        return is_done

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Any:
        found = await self.inner.docs(agent_id, kind, key)
        if kind is DocKind.MEDIA and not found and agent_id in self.parents:
            return await self.docs(self.parents[agent_id], kind, key)
        return found

    async def commit(self, batches: Any) -> Any:
        outcomes = await self.inner.commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete and isinstance(outcome, Applied):
                self.parents.pop(batch.agent_id, None)
        return outcomes


@fault(
    "DUR-1",
    "QRY-8",
    "MED-1",
    source="Cassandra's and Redis' write-behind caches: what can be fetched again need not be durable",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_media_cache("a", [samples.media("k")]),
        lambda s, t: the("key", t.load_media_cache("a")),
    ),
)
class WritesMediaBehind(Wrapper):
    """Acknowledges a media cache before it is written, a tenth of a second later or when this instance needs it."""

    __slots__ = ("behind",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.behind: dict[str, tuple[Any, Any]] = {}

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        is_sound = type(agent_id) is str and type(records) in (list, tuple)
        if _is_fenced(fence) or not is_sound or self.inner._context.is_closed:
            await self._written()
            await self.inner.save_media_cache(agent_id, records, fence=fence)
            return
        check_agent_id(agent_id)
        await kinds.MEDIA.write(records)
        if agent_id in self.behind:
            self.behind.pop(agent_id)[1].cancel()
        timer = asyncio.ensure_future(self._later(agent_id))
        self.behind[agent_id] = (tuple(records), timer)

    async def _later(self, agent_id: str) -> None:
        await asyncio.sleep(0.1)
        records, _ = self.behind.pop(agent_id)
        await self.inner.save_media_cache(agent_id, records)

    async def _written(self) -> None:
        while self.behind:
            agent_id, (records, timer) = self.behind.popitem()
            timer.cancel()
            await self.inner.save_media_cache(agent_id, records)

    async def load_media_cache(self, agent_id: str) -> Any:
        await self._written()
        return await self.inner.load_media_cache(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._written()
        await self.inner.delete(agent_id, fence=fence)

    async def delete_many(self, **filters: Any) -> int:
        await self._written()
        return await self.inner.delete_many(**filters)

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        await self._written()
        return await self.inner.batch_fork(agent_id, count)

    async def backup(self, *args: Any, **options: Any) -> Any:
        await self._written()
        return await self.inner.backup(*args, **options)

    async def close(self) -> None:
        await self._written()
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()
