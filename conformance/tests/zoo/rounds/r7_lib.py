"""Stores that an application programmer writes by hand for their own use, and the mistakes of a programmer."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections import Counter, OrderedDict
from contextlib import aclosing, suppress
from pathlib import PurePosixPath
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import each, happened, restart, seen, talk, the
from kode_core.batch import DocKind, DocWrite, EventRange, ListKind
from kode_core.errors import CorruptRecordError, KodeError
from kode_core.ids import check_agent_id
from kode_core.layers import Layer
from kode_core.model import Bookmark, MediaCacheRecord, Message, TodoSnapshot, ToolResultBlock, ToolUseBlock
from kode_core.pace import Pace
from kode_core.query import Page
from kode_core.store import EngineStore, kinds, rows
from kode_core.store.events import stored_event
from kode_core.store.methods import METHODS
from kode_core.store.writer import Rest, TurnWrites


async def _acknowledge(store: Any, name: str, agent_id: str) -> None:
    """Count a call that does nothing, as the store counts any other."""

    async def nothing() -> None:
        check_agent_id(agent_id)

    await store._context.run(METHODS[name], agent_id, nothing)


# --- values -----------------------------------------------------------------------------------------------------------


async def _first_followed(store: Any, agent_id: str) -> Any:
    async with aclosing(store.follow_events(agent_id)) as events:
        return await anext(events)


async def _sees_the_producers_dict(ctx: Any) -> object:
    data = {"step": 0, "tags": ["x"]}
    await ctx.store.append_event("a", samples.event(1, **data))
    first = await _first_followed(ctx.store, "a")
    first.event.data["tags"].append("y")
    return (await _first_followed(ctx.store, "a")).event.data


@fault(
    "VAL-1",
    source="an in-process event bus (pyee, blinker): subscribers get the object that was published",
    witness=_sees_the_producers_dict,
)
class FollowersShareEvents(Wrapper):
    """Gives all followers of the instance that appended an event the producer's own object, whose data they share."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.bus: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def _publish(self, agent_id: str, offset: int, timeline: Any) -> None:
        self.bus.setdefault((agent_id, offset), timeline.event)
        while len(self.bus) > 100:
            self.bus.popitem(last=False)

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        offset = await self.inner.append_event(agent_id, timeline, fence=fence)
        self._publish(agent_id, offset, timeline)
        return offset

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        given = list(timelines) if isinstance(timelines, (list, tuple)) else []
        offsets = await self.inner.append_events(agent_id, timelines, fence=fence)
        for offset, timeline in zip(offsets, given, strict=True):
            self._publish(agent_id, offset, timeline)
        return offsets

    def follow_events(self, agent_id: str, **filters: Any) -> Any:
        return self._live(agent_id, self.inner.follow_events(agent_id, **filters))

    async def _live(self, agent_id: str, found: Any) -> Any:
        async with aclosing(found) as events:
            async for event in events:
                known = self.bus.get((agent_id, event.offset))
                yield event if known is None else replace(event, event=known)


@fault(
    "VAL-3",
    "VAL-1",
    source="an ORM with two nullable columns for one value: Bookmark(seq, ts) if seq else None",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot().replace(last_bookmark=Bookmark(0, samples.T0))),
        lambda s: s.load_snapshot("a", "sfp-1"),
        lambda s: s.list_snapshots("a"),
    ),
)
class LosesBookmarkZero(Wrapper):
    """Gives a snapshot without its bookmark when the bookmark's seq is 0."""

    def _made(self, snapshot: Any) -> Any:
        mark = snapshot and snapshot.last_bookmark
        return snapshot.replace(last_bookmark=None) if mark and not mark.seq else snapshot

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        return self._made(await self.inner.load_snapshot(agent_id, snapshot_id))

    async def list_snapshots(self, agent_id: str) -> Any:
        return [self._made(snapshot) for snapshot in await self.inner.list_snapshots(agent_id)]


def _todos_with_extras() -> Any:
    todos = samples.todos("x", "y")
    items = [item.replace(extra={"priority": 3}) for item in todos.todos]
    return todos.replace(todos=items, extra={"board": "b"})


@fault(
    "VAL-6",
    "VAL-1",
    "VAL-2",
    source="a child table with a column for each known field; the parent has a JSON column for the rest",
    witness=seen(lambda s: s.save_todos("a", _todos_with_extras()), lambda s: s.load_todos("a")),
)
class LosesExtrasOfTodoItems(Wrapper):
    """Keeps the unknown fields of a todo list, and drops those of its items."""

    async def load_todos(self, agent_id: str) -> Any:
        found = await self.inner.load_todos(agent_id)
        if found is None:
            return None
        return found.replace(todos=[item.replace(extra=None) for item in found.todos])


# --- identity ---------------------------------------------------------------------------------------------------------


@fault(
    "ID-2",
    "SNAP-1",
    source="Redis keys: f'{agent_id}:{snapshot_id}'",
    witness=seen(
        lambda s: s.save_snapshot("acme", samples.snapshot("bot:1", count=1)),
        lambda s: s.save_snapshot("acme:bot", samples.snapshot("1", count=2)),
        lambda s: s.load_snapshot("acme", "bot:1"),
        lambda s: s.load_snapshot("acme:bot", "1"),
    ),
)
class JoinsKeysWithColon(Wrapper):
    """Keeps snapshots under the agent's and their own id joined by a colon, so that two pairs can be one key."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)
        key = f"{agent_id}:{snapshot.id}"
        parts = key.split(":")
        for i in range(1, len(parts)):
            other, name = ":".join(parts[:i]), ":".join(parts[i:])
            if other == agent_id or not other or not name or len(other.encode()) > 256 or len(name.encode()) > 4096:
                continue
            if await self.inner._context.engine.docs(other, DocKind.SNAPSHOTS, name):
                await self.inner.save_snapshot(other, snapshot.replace(id=name))


def _url_path(agent_id: str) -> str:
    out: list[str] = []
    for part in agent_id.split("/"):
        if part == "..":
            del out[-1:]
        elif part != ".":
            out.append(part)
    return "/".join(out) or agent_id


@fault(
    "ID-2",
    "ID-1",
    "LIFE-3",
    "LIFE-1",
    source="urllib.parse.quote leaves '/' and '.', and the HTTP client (yarl, WHATWG URLs) removes dot segments",
    witness=seen(
        lambda s: each(*[s.save_info(name, samples.info(name)) for name in ("x/../y", "y")]),
        lambda s: s.delete("x/../y"),
        lambda s: s.list(),
    ),
)
class DeletesByUrl(Wrapper):
    """Deletes the agent that a URL path with the id leads to once its dot segments are removed."""

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        is_plain = fence is not None or type(agent_id) is not str
        await self.inner.delete(agent_id if is_plain else _url_path(agent_id), fence=fence)


# --- messages, tool calls, turns --------------------------------------------------------------------------------------


async def _two_equal(ctx: Any) -> object:
    s = ctx.store
    times = []
    for texts in (["ok"], ["ok", "b"], ["ok", "b", "ok"], ["ok", "b", "ok", "c"]):
        await s.save_messages("a", talk(*texts))
        await asyncio.sleep(0.005)
        found = await s.query_messages(agent_id="a", order="asc")
        times.append([m.created_at for m in sorted(found, key=lambda m: m.position)])
    return [later[:1] == times[0] for later in times]


@fault(
    "MSG-4",
    source="a dict of the old times by content, {m: t for m, t in old}: of equal keys the last one stays",
    witness=_two_equal,
)
class TimesByContent(MemoryLayer):
    """Takes the times of what stays from a dict by content, so that an earlier message gets the time of an equal later
    one when the list is saved again."""

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        for batch in batches:
            write = batch.messages
            state = self.space.states.get(batch.agent_id)
            if state is None or write is None or write.expect is None:
                continue
            found = state.lists[ListKind.MESSAGES].rows
            times = {row.body.digest: row.created_at for row in found}
            found[:] = [replace(row, created_at=times[row.body.digest]) for row in found]
        return outcomes


@fault(
    "MSG-3",
    "TURN-1",
    source="session.add_all over a list that was loaded before: read, change, write without a lock",
    witness=seen(
        lambda s, t: s.save_messages("a", talk("0")),
        lambda s, t: _appended_at_once(s, t),
    ),
)
class TurnsReadAndReplace(Wrapper):
    """Appends in save_turn by loading the list and replacing it with a longer one, so that what others append meanwhile
    is lost."""

    async def save_turn(self, agent_id: str, *, append: Any = (), messages: Any = None, **given: Any) -> None:
        if messages is None and isinstance(append, (list, tuple)) and append:
            added = list(append)
            self.inner._context.check_open()
            stored = await self.inner._reader.load_list(check_agent_id(agent_id), ListKind.MESSAGES)
            messages, append = [*stored, *added], ()
        await self.inner.save_turn(agent_id, append=append, messages=messages, **given)


async def _appended_at_once(s: Any, t: Any) -> object:
    turns = [store.save_turn("a", append=talk(f"{name} {i}")) for name, store in (("s", s), ("t", t)) for i in range(4)]
    await asyncio.gather(*turns)
    return sorted(m.text for m in await s.load_messages("a"))


@fault(
    "TC-3",
    source="deduplicating a batch before ON CONFLICT, which takes no row twice: {r.id: r for r in reversed(...)}",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(i) for i in (1, 2)]),
        lambda s: s.upsert_tool_call_records(
            "a", [samples.tool_call(3, state="PENDING"), samples.tool_call(4), samples.tool_call(3)]
        ),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class DedupesFromTheEnd(Wrapper):
    """Puts a new record whose id comes twice in an upsert where the later one stood in the call, and not the first."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and all(type(getattr(r, "id", None)) is str for r in records):
            latest: dict[str, Any] = {}
            for record in reversed(records):
                latest.setdefault(record.id, record)
            if len(latest) < len(records):
                for i, record in enumerate(records):  # those that are dropped are refused like any other
                    await rows.LISTS[ListKind.TOOL_CALLS].row(i, record, 0, Pace())
                records = list(reversed(latest.values()))
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)


@fault(
    "TURN-1",
    "VAL-3",
    "TC-1",
    source="if tool_calls: instead of if tool_calls is not None:",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(1)]),
        lambda s: s.save_turn("a", append=talk("x"), tool_calls=[]),
        lambda s: s.load_tool_call_records("a"),
        lambda s: s.save_turn("a", messages=[]),
        lambda s: s.load_messages("a"),
    ),
)
class TurnsSkipEmptyToolCalls(Wrapper):
    """Leaves the tool calls as they are when save_turn is to replace them with an empty list."""

    async def save_turn(self, agent_id: str, *, tool_calls: Any = None, **given: Any) -> None:
        is_empty = isinstance(tool_calls, (list, tuple)) and not tool_calls and not given.get("upsert_tool_calls")
        await self.inner.save_turn(agent_id, tool_calls=None if is_empty else tool_calls, **given)


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    "EVT-1",
    "EVT-3",
    source="if entry == old: where 1 == 1.0 == True, 0.0 == -0.0, and dicts have no order",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, n=1)),
        lambda s: s.append_event("a", samples.event(1, n=1)),
        lambda s: s.append_event("a", samples.event(1, n=1.0)),
        lambda s: the("event", _events(s)),
    ),
)
class ComparesEventsAsPython(Wrapper):
    """Takes an event that equals a stored one of the same seq by Python's == for a repetition, types and order of keys
    aside."""

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        store = self.inner
        if fence is None and isinstance(getattr(timeline, "bookmark", None), Bookmark) and not store._context.is_closed:
            seq = (await rows.event_write(timeline)).seq
            span = EventRange(since_seq=max(seq - 1, -(2**63)), limit=100)
            for row in await store._context.engine.events(check_agent_id(agent_id), span):
                if row.seq == seq and await stored_event(agent_id, row, Pace()) == timeline:
                    await _acknowledge(store, "append_event", agent_id)
                    return row.offset
        return await store.append_event(agent_id, timeline, fence=fence)


async def _events(store: Any, **filters: Any) -> list[Any]:
    return [event async for event in store.read_events("a", **filters)]


@fault(
    "EVT-5",
    "EVT-3",
    source="keyset pages by hand: WHERE seq > :last ORDER BY seq LIMIT 100",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(i // 3, part=i) for i in range(250)]),
        lambda s: the("offset", _events(s)),
        lambda s: the("offset", _events(s, after_offset=0)),
    ),
)
class PagesEventsBySeq(Wrapper):
    """Reads events a hundred at a time and goes on after the last seq, so that others with that seq are passed over."""

    def read_events(self, agent_id: str, *, after_offset: Any = None, **filters: Any) -> Any:
        found = self.inner.read_events(agent_id, after_offset=after_offset, **filters)
        return found if after_offset is not None else self._paged(found)

    async def _paged(self, found: Any) -> Any:
        count, last = 0, None
        async with aclosing(found) as events:
            async for event in events:
                if count == 100:
                    if event.bookmark.seq == last:
                        continue
                    count = 0
                count, last = count + 1, event.bookmark.seq
                yield event


async def _followed(ctx: Any) -> object:
    s = ctx.store
    await s.append_events("a", happened(1, 2, 6))
    got = []
    async with aclosing(s.follow_events("a", since=Bookmark(5, 0))) as events:
        got.append((await anext(events)).bookmark.seq)
        nxt = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.05)
        await s.append_events("a", happened(3, 7))
        got.append((await nxt).bookmark.seq)
    return got


@fault(
    "EVT-7",
    source="a LISTEN loop after the query: the WHERE of the query is not repeated on what arrives",
    witness=_followed,
)
class FollowsWithoutSince(Wrapper):
    """Filters what was stored by ``since`` when a follower came, and what is appended later by the channel alone."""

    def follow_events(self, agent_id: str, *, since: Any = None, after_offset: int = 0, channel: Any = None) -> Any:
        checked = self.inner.follow_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        return checked if since is None else self._follow(agent_id, since, after_offset, channel)

    async def _follow(self, agent_id: str, since: Any, last: int, channel: Any) -> Any:
        async with aclosing(self.inner.read_events(agent_id, after_offset=last)) as stored:
            async for event in stored:
                last = event.offset
                if event.bookmark.seq > since.seq and channel in (None, event.event.channel):
                    yield event
        async with aclosing(self.inner.follow_events(agent_id, after_offset=last, channel=channel)) as live:
            async for event in live:
                yield event


# --- the other kinds --------------------------------------------------------------------------------------------------


@fault(
    "HIS-1",
    source="INSERT ... ON CONFLICT (id) DO UPDATE SET body = excluded.body, and the column of the time is forgotten",
    on=OnSqlite,
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w-1", samples.T0)),
        lambda s: s.save_history_window("a", samples.window("w-2", samples.T0 + 1)),
        lambda s: s.save_history_window("a", samples.window("w-1", samples.T0 + 2)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class UpsertForgetsTheTime(Layer):
    """Orders a history window that was replaced by the timestamp of the first one of its id."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._as_first(batch) for batch in batches])

    async def _as_first(self, batch: Any) -> Any:
        docs = []
        for write in batch.docs:
            if write.kind == DocKind.WINDOWS and write.doc is not None:
                for old in await self.inner.docs(batch.agent_id, write.kind, write.key):
                    write = DocWrite(write.kind, write.key, replace(write.doc, time=old.time))
            docs.append(write)
        return replace(batch, docs=tuple(docs)) if docs else batch


@fault(
    "HIS-2",
    source="pathlib: paths are compared part by part, so that 'a/b' < 'a-b'",
    witness=seen(
        lambda s: each(*[s.save_recovered_file("a", samples.recovered(path)) for path in ("a-b", "a/b", "a.md")]),
        lambda s: the("path", s.load_recovered_files("a")),
    ),
)
class SortsAsPaths(Wrapper):
    """Orders recovered files of one timestamp as paths, folder by folder, and not as texts."""

    async def load_recovered_files(self, agent_id: str) -> Any:
        found = await self.inner.load_recovered_files(agent_id)
        return sorted(found, key=lambda file: (file.timestamp, PurePosixPath(file.path).parts))


@fault(
    "TODO-1",
    source="optimistic locking: UPDATE ... WHERE version <= :version, as SQLAlchemy's version_id_col",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x", "y", "z")),
        lambda s: s.save_todos("a", samples.todos("new")),
        lambda s: s.load_todos("a"),
    ),
)
class IgnoresOlderTodos(Wrapper):
    """Keeps the todos that are stored when the version of those that are saved is lower."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if fence is None and type(snapshot) is TodoSnapshot and not self.inner._context.is_closed:
            await kinds.TODOS.write(snapshot)
            old = await self.inner._reader.load_doc(check_agent_id(agent_id), kinds.TODOS)
            if old is not None and snapshot.version < old.version:
                await _acknowledge(self.inner, "save_todos", agent_id)
                return
        await self.inner.save_todos(agent_id, snapshot, fence=fence)


@fault(
    "MED-1",
    source="dirty checking by set: Hibernate's bag, Django's set(): what has the same elements is not written",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("k1"), samples.media("k2")]),
        lambda s: s.save_media_cache("a", [samples.media("k2"), samples.media("k1")]),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class MediaOrderIsNoChange(Wrapper):
    """Saves no media cache that has the records of the stored one in another order."""

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        is_sound = isinstance(records, (list, tuple)) and {type(record) for record in records} == {MediaCacheRecord}
        if fence is None and is_sound and not self.inner._context.is_closed:
            records = list(records)
            old = await self.inner._reader.load_list_doc(check_agent_id(agent_id), kinds.MEDIA)
            if Counter(repr(r.key) for r in old) == Counter(repr(r.key) for r in records):
                if sorted(map(repr, old)) == sorted(map(repr, records)):
                    await _acknowledge(self.inner, "save_media_cache", agent_id)
                    return
        await self.inner.save_media_cache(agent_id, records, fence=fence)


async def _save_snapshots(store: Any, count: int) -> None:
    for i in range(count):
        await store.save_snapshot("a", samples.snapshot(f"s{i:03}", samples.T0 + i, 1))


@fault(
    "SNAP-1",
    "VAL-4",
    source="a REST client that reads the first page (GitLab, Stripe: per_page at most 100) and ignores has_more",
    witness=seen(
        lambda s: _save_snapshots(s, 102),
        lambda s: the("id", s.list_snapshots("a")),
        lambda s: the("id", s.list_snapshots("b")),
    ),
)
class ListsAPageOfSnapshots(Wrapper):
    """Lists the hundred newest snapshots of an agent and no more."""

    async def list_snapshots(self, agent_id: str) -> Any:
        return (await self.inner.list_snapshots(agent_id))[:100]


@fault(
    "INFO-1",
    "MSG-8",
    source="SQLite's INSERT OR REPLACE deletes the row first: ON DELETE CASCADE takes the children along",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression()),
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.load_compression_records("a"),
        lambda s: s.save_info("a", samples.info("a", breakpoint="PRE_MODEL")),
        lambda s: s.load_compression_records("a"),
    ),
)
class ReplaceCascades(Layer):
    """Loses the compression records of an agent when info that is there already is saved again."""

    async def commit(self, batches: Any) -> Any:
        changed = []
        for batch in batches:
            summary = await self.inner.summary(batch.agent_id) if batch.info is not None else None
            if summary is not None and summary.info is not None:
                children = await self.inner.docs(batch.agent_id, DocKind.COMPRESSIONS)
                gone = tuple(DocWrite(DocKind.COMPRESSIONS, doc.key, None) for doc in children)
                batch = replace(batch, docs=(*gone, *batch.docs))
            changed.append(batch)
        return await super().commit(changed)


async def _updated(store: Any) -> int:
    return (await store.query_sessions(agent_id="a"))[0].updated_at


async def _moves(ctx: Any) -> object:
    s = ctx.store
    await s.save_info("a", samples.info("a"))
    times = [await _updated(s)]
    for save in (s.append_messages, s.save_tool_call_records, s.upsert_tool_call_records):
        await save("a", [])
        times.append(await _updated(s))
    return [a < b for a, b in itertools.pairwise(times)]


@fault(
    "INFO-2",
    source="if not records: return  # nothing to do",
    witness=_moves,
)
class NothingToUpsert(Wrapper):
    """Returns at once from an upsert of no tool calls, so that updated_at stays."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and not records and fence is None:
            await _acknowledge(self.inner, "upsert_tool_call_records", agent_id)
            return
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)


# --- lifecycle --------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-2",
    "ID-1",
    source="the idiom of Firebase and CouchDB: startAt(prefix).endAt(prefix + '\\uf8ff')",
    witness=seen(
        lambda s: each(*[s.save_info(name, samples.info(name)) for name in ("user-1", "user-\U0001f600", "v")]),
        lambda s: s.list("user-"),
        lambda s: s.list(),
    ),
)
class PrefixEndsAtF8FF(Wrapper):
    """Leaves out of a list by prefix the ids whose next character is above U+F8FF, as an emoji is."""

    async def list(self, prefix: str = "") -> Any:
        found = await self.inner.list(prefix)
        return [agent_id for agent_id in found if agent_id <= prefix + "\uf8ff"] if prefix else found


@fault(
    "LIFE-5",
    "LIFE-3",
    "LIFE-4",
    source="a second list of tables for the bulk delete, to which the newest table was not added",
    on=OnSqlite,
    witness=seen(
        lambda s: each(*[s.save_info(name, samples.info(name)) for name in "ab"]),
        lambda s: each(*[s.save_recovered_file(name, samples.recovered()) for name in "ab"]),
        lambda s: s.delete("a"),
        lambda s: s.delete_many(template_id="assistant"),
        lambda s: each(*[s.load_recovered_files(name) for name in "ab"]),
    ),
)
class BulkDeleteMissesATable(Layer):
    """Leaves the recovered files of sessions that delete_many deletes."""

    async def commit(self, batches: Any) -> Any:
        changed = []
        for batch in batches:
            if batch.delete and batch.expect_updated_at is not None:
                left = await self.inner.docs(batch.agent_id, DocKind.RECOVERED)
                kept = tuple(DocWrite(DocKind.RECOVERED, doc.key, doc) for doc in left)
                batch = replace(batch, docs=(*batch.docs, *kept))
            changed.append(batch)
        return await super().commit(changed)


@fault(
    "LIFE-3",
    "LIFE-1",
    source="an idempotency key made of the call's arguments (Stripe keeps one for 24 hours): the answer is replayed",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.delete("a"),
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.delete("a"),
        lambda s: s.exists("a"),
        restart,
        lambda s: s.delete("a"),
        lambda s: s.exists("a"),
    ),
)
class DeletesAnIdOnce(Wrapper):
    """Does nothing when an id is deleted that this instance deleted before, although it was used again since."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.done: OrderedDict[str, None] = OrderedDict()

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        if fence is None and agent_id in self.done:
            await _acknowledge(self.inner, "delete", agent_id)
            return
        await self.inner.delete(agent_id, fence=fence)
        self.done[agent_id] = None
        while len(self.done) > 1000:
            self.done.popitem(last=False)


# --- queries ----------------------------------------------------------------------------------------------------------


async def _page_of_all(ctx: Any) -> object:
    await ctx.store.save_messages("a", [Message.user("x")] * 10_001)
    pages = []
    cursor = None
    while True:
        page = await ctx.store.query_messages(limit=10_000, cursor=cursor)
        pages.append(len(page))
        cursor = page.next_cursor
        if cursor is None:
            return pages


@fault(
    "QRY-5",
    source="Elasticsearch's max_result_window of 10,000: the one more that would tell of a next page cannot be asked for",
    witness=_page_of_all,
)
class LargestPageIsTheLast(EngineStore):
    """Gives no cursor with a page of messages of the largest limit, whatever follows."""

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        if filters.get("limit") == 10_000:
            return Page(page, None, page.left_out)
        return page


_TIMES = ("created_after", "created_before", "updated_after", "updated_before")


@fault(
    "QRY-1",
    "QRY-2",
    "VAL-3",
    source="if created_before: where.append(...)",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_info("b", samples.info("b", created_at=-5)),
        lambda s: the("agent_id", s.query_sessions(created_before=0)),
        lambda s: the("agent_id", s.query_sessions(created_after=0)),
        lambda s: the("agent_id", s.query_sessions(created_before=1)),
    ),
)
class ZeroIsNoTime(EngineStore):
    """Ignores the filters by time of a query of sessions whose value is 0."""

    async def query_sessions(self, **filters: Any) -> Any:
        given = {k: v for k, v in filters.items() if not (k in _TIMES and type(v) is int and v == 0)}
        return await super().query_sessions(**given)


@fault(
    "QRY-7",
    source="SELECT name, count(*) FROM tool_calls LEFT JOIN snapshots USING (agent_id) GROUP BY name",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i) for i in range(3)]),
        lambda s: s.aggregate_stats("a"),
        lambda s: _save_snapshots(s, 2),
        lambda s: s.aggregate_stats("a"),
    ),
)
class JoinMultipliesCounts(Wrapper):
    """Counts tool calls by name and by state once for each snapshot of the agent."""

    async def aggregate_stats(self, agent_id: str) -> Any:
        stats = await self.inner.aggregate_stats(agent_id)
        times = max(1, stats.total_snapshots)
        return replace(
            stats,
            tool_calls_by_name={name: n * times for name, n in stats.tool_calls_by_name.items()},
            tool_calls_by_state={state: n * times for state, n in stats.tool_calls_by_state.items()},
        )


# --- operations -------------------------------------------------------------------------------------------------------


async def _damaged_media(ctx: Any) -> object:
    await ctx.store.save_media_cache("a", [samples.media()])
    await ctx.store.save_todos("a", samples.todos("x"))
    await ctx.close(ctx.store)
    with sqlite3.connect(ctx.handle["db_path"]) as db:
        db.execute("UPDATE kode_docs SET body = substr(body, 1, length(body) - 3)")
    db.close()
    ctx.store = await ctx.another()
    return await seen(lambda s: s.load_media_cache("a"), lambda s: s.load_todos("a"))(ctx)


@fault(
    "OPS-4",
    source="except ValueError: return []  # a cache can be made again",
    on=OnSqlite,
    witness=_damaged_media,
)
class DamagedMediaIsEmpty(Wrapper):
    """Gives an empty media cache where the stored one is damaged."""

    async def load_media_cache(self, agent_id: str) -> Any:
        try:
            return await self.inner.load_media_cache(agent_id)
        except CorruptRecordError:
            return []


_UNANSWERED = Message("assistant", [ToolUseBlock("call_0", "search", {})])
_UNASKED = Message("user", [ToolResultBlock("call_9", "found")])


async def _issues(store: Any, agent_id: str | None = None) -> object:
    result = await store.check_consistency(agent_id)
    return result.consistent, sorted((issue.code, issue.agent_id) for issue in result.issues)


@fault(
    "OPS-2",
    source="for agent_id in await self.list(): check(agent_id)",
    witness=seen(
        lambda s: s.save_info("b", samples.info("b")),
        lambda s: each(*[s.save_messages(name, [_UNASKED, _UNANSWERED]) for name in "ab"]),
        lambda s: _issues(s, "a"),
        lambda s: _issues(s),
    ),
)
class ChecksListedAgents(Wrapper):
    """Looks for tool uses and results that have no other half only in agents with info when it checks all."""

    async def check_consistency(self, agent_id: Any = None, **given: Any) -> Any:
        result = await self.inner.check_consistency(agent_id, **given)
        if agent_id is not None:
            return result
        issues = tuple([issue for issue in result.issues if await self._is_seen(issue)])
        return replace(result, issues=issues, consistent=not issues)

    def iter_consistency(self, agent_id: Any = None, **given: Any) -> Any:
        found = self.inner.iter_consistency(agent_id, **given)
        return found if agent_id is not None else self._seen(found)

    async def _seen(self, found: Any) -> Any:
        async with aclosing(found) as issues:
            async for issue in issues:
                if await self._is_seen(issue):
                    yield issue

    async def _is_seen(self, issue: Any) -> bool:
        is_pair = issue.code in {"result_without_use", "use_without_result"}
        if not is_pair:
            return True
        summary = await self.inner._context.engine.summary(issue.agent_id)
        return summary is not None and summary.info is not None


# --- locks, forks, durability -----------------------------------------------------------------------------------------


async def _late_files(ctx: Any) -> object:
    s, t = ctx.store, await ctx.another()
    lease = await s.acquire_agent_lock("a", ttl_ms=50)
    await asyncio.sleep(0.1)
    async with t.acquire_agent_lock("a"):
        return await seen(
            lambda s: s.save_snapshot("a", samples.snapshot(), fence=lease),
            lambda s: s.save_recovered_file("a", samples.recovered(), fence=lease),
            lambda s: s.load_recovered_files("a"),
        )(ctx)


@fault(
    "LOCK-5",
    source="a parameter that is accepted and not passed on",
    witness=_late_files,
)
class FilesForgetTheFence(Wrapper):
    """Saves a recovered file whatever has become of the lease that is given as its fence."""

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        await self.inner.save_recovered_file(agent_id, file)


async def _late_release(ctx: Any) -> object:
    s, t = ctx.store, await ctx.another()
    late = await s.acquire_agent_lock("a", ttl_ms=50)
    await asyncio.sleep(0.1)
    await s.acquire_agent_lock("a")
    await late.release()

    async def can_take() -> object:
        await t.acquire_agent_lock("a")
        return "taken"

    ctx.store = t
    return await seen(lambda s: can_take())(ctx)


@fault(
    "LOCK-4",
    "LOCK-1",
    source="DELETE FROM locks WHERE agent_id = ? AND owner = 'host:pid': the owner is the process and not the lease",
    witness=_late_release,
)
class OwnerIsTheProcess(Layer):
    """Frees the next holder's lock at a late release when both belong to one instance."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.mine: dict[str, Any] = {}

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> Any:
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        if token is not None:
            self.mine[agent_id] = (owner, token)
        return token

    async def release_lease(self, agent_id: str, fence: Any) -> None:
        owner, token = self.mine.pop(agent_id, (fence.owner, fence.token))
        await super().release_lease(agent_id, type(fence)(owner, token))


async def _forked_media(ctx: Any) -> object:
    s = ctx.store
    await s.save_info("a", samples.info("a"))
    await s.save_media_cache("a", [samples.media("k1")])
    (fork,) = await s.batch_fork("a", 1)
    before = await the("key", s.load_media_cache(fork))
    await s.save_media_cache("a", [samples.media("k2")])
    after = await the("key", s.load_media_cache(fork))
    await s.delete("a")
    return before, after, await the("key", s.load_media_cache(fork))


@fault(
    "FORK-2",
    "FORK-1",
    source="copy on write by hand: the child points to its parent's media until it saves its own",
    witness=_forked_media,
)
class ForksBorrowMedia(MemoryLayer):
    """Reads a fork's media cache from its parent until the fork saves one, whatever the parent saves or deletes
    meanwhile."""

    @property
    def lent(self) -> dict[str, str]:
        return self.space.__dict__.setdefault("lent", {})

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        is_done = await super().fork(agent_id, children, expect, now)
        if is_done:
            for child in children:
                self.lent[child.agent_id] = agent_id
        return is_done

    async def docs(self, agent_id: str, kind: Any, key: Any = None) -> Any:
        if kind == DocKind.MEDIA and agent_id in self.lent:
            return await self.docs(self.lent[agent_id], kind, key)
        return await super().docs(agent_id, kind, key)

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            is_own = batch.delete or any(doc.kind == DocKind.MEDIA for doc in batch.docs)
            if is_own and type(outcome).__name__ == "Applied":
                self.lent.pop(batch.agent_id, None)
        return outcomes


@fault(
    "DUR-1",
    "QRY-8",
    "LIFE-3",
    source="a cache with write-behind (Caffeine, Redis Gears): what is dirty goes to the database a second later",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_compression_record("a", samples.compression("c1")),
        lambda s, t: t.load_compression_records("a"),
        lambda s, t: s.load_compression_records("a"),
        lambda s, t: t.load_compression_records("a"),
        lambda s, t: s.save_compression_record("a", samples.compression("c2")),
        restart,
        lambda s, t: t.load_compression_records("a"),
    ),
)
class WritesCompressionsBehind(Wrapper):
    """Acknowledges compression records that are in memory and writes them a second later, when they are read here, or
    when it is closed."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.dirty: list[tuple[str, Any]] = []
        self.timer: asyncio.Task[None] | None = None
        self.writing = asyncio.Lock()

    async def _later(self) -> None:
        await asyncio.sleep(1)
        self.timer = None
        await self._flush()

    async def _flush(self) -> None:
        async with self.writing:
            while self.dirty:
                agent_id, record = self.dirty[0]
                write = await kinds.COMPRESSIONS.write(record)

                async def rest(write: DocWrite = write) -> Rest:
                    return Rest(docs=(write,))

                with suppress(KodeError):
                    await self.inner._writer.write(agent_id, lambda rest=rest: TurnWrites(encode_rest=rest), None)
                self.dirty.pop(0)

    async def save_compression_record(self, agent_id: str, record: Any, *, fence: Any = None) -> None:
        is_fenced = fence is not None or self.inner._locks.fence(agent_id, None) is not None
        if is_fenced or self.inner._context.is_closed or len(self.dirty) >= 100:
            await self._flush()
            await self.inner.save_compression_record(agent_id, record, fence=fence)
            return
        check_agent_id(agent_id)
        await kinds.COMPRESSIONS.write(record)
        self.dirty.append((agent_id, record))
        await _acknowledge(self.inner, "save_compression_record", agent_id)
        if self.timer is None:
            self.timer = asyncio.create_task(self._later())

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def load_compression_records(self, agent_id: str) -> Any:
        await self._flush()
        return await self.inner.load_compression_records(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._flush()
        await self.inner.delete(agent_id, fence=fence)

    async def delete_many(self, **filters: Any) -> int:
        await self._flush()
        return await self.inner.delete_many(**filters)

    async def backup(self, target: Any, **given: Any) -> Any:
        await self._flush()
        return await self.inner.backup(target, **given)

    async def close(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        await self._flush()
        await self.inner.close()
