"""Stores that people wrote by themselves, or wrapped, with one thing wrong."""

from __future__ import annotations

import asyncio
import copy
import json
import unicodedata
from typing import Any

import msgspec
from kode_conformance.values import samples

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.batch import DocKind, ListKind
from kode_core.engines import scan
from kode_core.errors import InvalidArgumentError, KodeError
from kode_core.layers import Layer
from kode_core.model import Bookmark, Message, ToolUseBlock
from kode_core.query import Page
from kode_core.store import kinds

T0 = samples.T0


class Discreet(Wrapper):
    """A wrapper whose own calls are not among those that the store counts (OPS-3)."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.own = {"saves": 0, "loads": 0, "queries": 0, "deletes": 0}

    async def get_metrics(self) -> Any:
        found = await self.inner.get_metrics()
        counts = {name: getattr(found.operations, name) - count for name, count in self.own.items()}
        return msgspec.structs.replace(found, operations=msgspec.structs.replace(found.operations, **counts))


# --- values -----------------------------------------------------------------------------------------------------------


@fault(
    "VAL-1",
    "MED-1",
    source="a port from Node: JSON.parse gives doubles, exact up to 2**53 only",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media().replace(size_bytes=2**53 + 1)]),
        lambda s: s.load_media_cache("a"),
    ),
)
class SizesAsDoubles(Wrapper):
    """Rounds the sizes of media to what a double can hold."""

    async def load_media_cache(self, agent_id: str) -> Any:
        found = await self.inner.load_media_cache(agent_id)
        most = 2**63 - 1
        return [media.replace(size_bytes=min(int(float(media.size_bytes)), most)) for media in found]


@fault(
    "VAL-2",
    "HIS-2",
    source="SQLite turns a bound NaN into NULL, and the column says DEFAULT 0",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered().replace(mtime=float("nan"))),
        lambda s: s.load_recovered_files("a"),
    ),
)
class NanIsNull(Wrapper):
    """Stores the modification time 0 for a recovered file whose time is NaN, where it must be refused."""

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        mtime = getattr(file, "mtime", None)
        if type(mtime) is float and mtime != mtime:
            file = file.replace(mtime=0)
        await self.inner.save_recovered_file(agent_id, file, fence=fence)


@fault(
    "VAL-3",
    "VAL-1",
    "TC-3",
    source="`record.error or None` in the UPSERT's parameters, where the INSERT takes the value as it is",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(error="", duration_ms=0)]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class FalsyIsNullInUpserts(Wrapper):
    """Drops an empty error and a duration of 0 from upserted tool call records."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)):
            records = [
                r.replace(
                    error=None if r.error == "" else r.error,
                    duration_ms=None if r.duration_ms == 0 and type(r.duration_ms) is not bool else r.duration_ms,
                )
                if hasattr(r, "error")
                else r
                for r in records
            ]
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)


# --- identity ---------------------------------------------------------------------------------------------------------


@fault(
    "ID-4",
    "HIS-1",
    source="a file for each window on a file system that normalises names (HFS+, or ZFS with normalization=formC)",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("caf\u00e9")),
        lambda s: s.save_history_window("a", samples.window("cafe\u0301")),
        lambda s: s.load_history_windows("a"),
    ),
)
class NormalisesWindowNames(MemoryLayer):
    """Lets a history window replace another whose id is the same once both are normalised."""

    async def commit(self, batches: Any) -> Any:
        outcomes = await self.inner.commit(batches)
        for batch in batches:
            for write in batch.docs:
                state = self.space.states.get(batch.agent_id)
                if write.kind != DocKind.WINDOWS or write.doc is None or state is None:
                    continue
                name = unicodedata.normalize("NFC", write.key)
                for kind, key in list(state.docs):
                    if kind == write.kind and key != write.key and unicodedata.normalize("NFC", key) == name:
                        del state.docs[kind, key]
        return outcomes


@fault(
    "ID-3",
    source="a tenancy wrapper that stamps its own key on what it writes, so as not to trust the caller",
    witness=seen(lambda s: s.save_turn("a", info=samples.info("b")), lambda s: s.load_info("a")),
)
class TurnsStampTheKey(Wrapper):
    """Accepts an info of another agent in a turn, and puts its id right."""

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        info = parts.get("info")
        if info is not None and hasattr(info, "agent_id"):
            parts["info"] = info.replace(agent_id=agent_id)
        await self.inner.save_turn(agent_id, **parts)


# --- messages, tool calls, turns --------------------------------------------------------------------------------------


async def _times(ctx: Any) -> object:
    early = await ctx.another(clock=lambda: T0 + 60_000)
    await early.append_messages("a", talk("one"))
    late = await ctx.another(clock=lambda: T0)
    await late.append_messages("a", talk("two"))
    return await the("created_at", late.query_messages(order="asc"))


@fault(
    "MSG-4",
    source="a monotonic clock kept in the process, as in ULID generators: a new process begins again at the wall clock",
    witness=_times,
)
class ClockOfTheProcess(MemoryLayer):
    """Lets an appended message be older than those before it, when another instance wrote these before the clock
    stepped back."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.last: dict[str, int] = {}

    async def commit(self, batches: Any) -> Any:
        outcomes = await self.inner.commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            write = batch.messages
            if write is None or not hasattr(outcome, "offsets"):
                continue
            if write.is_blind:
                rows = self.space.states[batch.agent_id].lists[ListKind.MESSAGES].rows
                for i, row in enumerate(write.append, len(rows) - len(write.append)):
                    time = max(row.created_at, self.last.get(batch.agent_id, row.created_at))
                    rows[i] = msgspec.structs.replace(rows[i], created_at=time)
            self.last[batch.agent_id] = max([*write.times(), self.last.get(batch.agent_id, 0)])
        return outcomes


async def _turns_at_once(ctx: Any) -> object:
    other = await ctx.another()
    for i in range(5):
        await asyncio.gather(*(s.save_turn("a", append=talk(f"{i}")) for s in (ctx.store, other, ctx.store, other)))
    return len(await ctx.store.load_messages("a"))


@fault(
    "MSG-3",
    "TURN-1",
    source="a port of a store with saveMessages only: append is read, push, write",
    witness=_turns_at_once,
)
class TurnsReadAndWriteBack(Discreet):
    """Loses messages when turns are saved for one agent at the same time, as each writes back the list it read."""

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        append = parts.get("append")
        if append and parts.get("messages") is None and isinstance(append, (list, tuple)):
            parts.pop("append")
            parts["messages"] = [*await self.inner.load_messages(agent_id), *append]
            self.own["loads"] += 1
        await self.inner.save_turn(agent_id, **parts)


@fault(
    "TC-3",
    source="PostgreSQL's 'ON CONFLICT DO UPDATE command cannot affect row a second time', and DISTINCT ON against it",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(state="PENDING"), samples.tool_call()]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class FirstOfACallStays(Wrapper):
    """Keeps the first of two records with one id in one upsert, and not the later."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and all(type(getattr(r, "id", None)) is str for r in records):
            firsts: dict[str, Any] = {}
            records = [firsts.setdefault(record.id, record) for record in records]
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)


@fault(
    "TURN-1",
    "TC-1",
    "VAL-3",
    source="`if tool_calls:` where `if tool_calls is not None:` is meant",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call()]),
        lambda s: s.save_turn("a", tool_calls=[], append=talk("x")),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class EmptyIsNotGiven(Wrapper):
    """Leaves the stored tool calls as they are when a turn replaces them by none."""

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        if parts.get("tool_calls") in ([], ()):
            del parts["tool_calls"]
        await self.inner.save_turn(agent_id, **parts)


@fault(
    "TURN-1",
    "VAL-2",
    source="an outbox: the events go out once the turn is committed, in a transaction of their own",
    witness=seen(
        lambda s: s.save_turn("a", append=talk("x"), events=[samples.event(1, delta=float("nan"))]),
        lambda s: s.load_messages("a"),
    ),
)
class EventsAfterTheTurn(Discreet):
    """Commits the events of a turn after the rest of it, so that the rest stays when they fail."""

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        events = parts.pop("events", ())
        await self.inner.save_turn(agent_id, **parts)
        if events:
            await self.inner.append_events(agent_id, events, fence=parts.get("fence"))
            self.own["saves"] += 1


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    "EVT-1",
    "VAL-1",
    source="`==` between records in Python, where 1 == 1.0 == True",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, step=1)),
        lambda s: s.append_event("a", samples.event(1, step=True)),
        lambda s: s.read_events("a"),
    ),
)
class EqualEventsAreOne(Discreet):
    """Takes an event for one that is stored when they differ only in 1, 1.0 and True, and drops it."""

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> Any:
        seq = getattr(getattr(timeline, "bookmark", None), "seq", None)
        if fence is None and type(seq) is int and -(2**63) < seq < 2**63:
            self.own["loads"] += 1
            async for old in self.inner.read_events(agent_id, since=Bookmark(seq - 1, 0)):
                if old.bookmark.seq != seq:
                    break
                if (old.cursor, old.bookmark, old.event) == (timeline.cursor, timeline.bookmark, timeline.event):
                    return old.offset
        return await self.inner.append_event(agent_id, timeline, fence=fence)


def _at(seq: int, time: int) -> Any:
    return samples.event(seq).replace(bookmark=Bookmark(seq, time))


@fault(
    "EVT-5",
    source="a port that compares bookmarks as tuples: (seq, timestamp) > (?, ?)",
    witness=seen(
        lambda s: s.append_events("a", [_at(1, T0), _at(1, T0 + 9), _at(2, T0)]),
        lambda s: s.read_events("a", since=Bookmark(1, T0)),
    ),
)
class SinceComparesTimes(Wrapper):
    """Yields events with the seq of `since` again, when their timestamps are later."""

    async def read_events(self, agent_id: str, *, since: Any = None, **more: Any) -> Any:
        known = type(since) is Bookmark and type(since.seq) is int and since.seq > -(2**63)
        before = Bookmark(since.seq - 1, since.timestamp) if known else since
        async for event in self.inner.read_events(agent_id, since=before, **more):
            if not known or (event.bookmark.seq, event.bookmark.timestamp) > (since.seq, since.timestamp):
                yield event


async def _followed(ctx: Any) -> object:
    await ctx.store.append_events("a", samples.events(3))
    found = []
    async for event in ctx.store.follow_events("a", since=Bookmark(1, T0)):
        found.append(event.bookmark.seq)
        if len(found) == 1:
            await ctx.store.append_events("a", [_at(0, T0 + 5), _at(5, T0)])
        if event.bookmark.seq == 5:
            return found
    return found


@fault(
    "EVT-7",
    source="a feed made of a filtered query and then LISTEN/NOTIFY: the filter is not applied to what comes live",
    witness=_followed,
)
class LiveIgnoresSince(Discreet):
    """Follows with `since` for what is stored only, and yields whatever is appended later."""

    async def follow_events(
        self, agent_id: str, *, since: Any = None, after_offset: Any = 0, channel: Any = None
    ) -> Any:
        last = after_offset
        if type(since) is Bookmark:
            self.own["loads"] += 1
            async for event in self.inner.read_events(agent_id, after_offset=after_offset):
                last = event.offset
                if event.bookmark.seq > since.seq and channel in (None, event.event.channel):
                    yield event
            since = None
        async for event in self.inner.follow_events(agent_id, since=since, after_offset=last, channel=channel):
            yield event


# --- the other kinds --------------------------------------------------------------------------------------------------


@fault(
    "TODO-1",
    source="optimistic locking: UPDATE … WHERE version < ?, and nobody looks at the number of rows",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x", "y")),
        lambda s: s.save_todos("a", samples.todos("x")),
        lambda s: s.load_todos("a"),
    ),
)
class NewerTodosOnly(Discreet):
    """Does not replace todos by a snapshot with a lower version."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        stored = await self.inner.load_todos(agent_id)
        self.own["loads"] += 1
        version = getattr(snapshot, "version", None)
        if stored is not None and type(version) is int and version < stored.version:
            snapshot = stored
        await self.inner.save_todos(agent_id, snapshot, fence=fence)


@fault(
    "HIS-1",
    source="COLLATE NOCASE, or a MySQL default collation, in ORDER BY timestamp, id",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("b")),
        lambda s: s.save_compression_record("a", samples.compression("C")),
        lambda s: s.load_compression_records("a"),
    ),
)
class CompressionsWithoutCase(Wrapper):
    """Orders compression records of one timestamp by their ids without regard to case."""

    async def load_compression_records(self, agent_id: str) -> Any:
        found = await self.inner.load_compression_records(agent_id)
        return sorted(found, key=lambda record: (record.timestamp, record.id.casefold()))


@fault(
    "HIS-2",
    source="a DATETIME column of MySQL in the key, which holds whole seconds",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=T0)),
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=T0 + 1)),
        lambda s: s.load_recovered_files("a"),
    ),
)
class RecoveredBySecond(MemoryLayer):
    """Keeps one recovered file of a path for each second, and not for each timestamp."""

    async def commit(self, batches: Any) -> Any:
        outcomes = await self.inner.commit(batches)
        for batch in batches:
            state = self.space.states.get(batch.agent_id)
            for write in batch.docs if state is not None else ():
                if write.kind != DocKind.RECOVERED or write.doc is None:
                    continue
                path, time = json.loads(write.key)
                for kind, key in list(state.docs):
                    if kind == write.kind and key != write.key:
                        other, then = json.loads(key)
                        if other == path and then // 1000 == time // 1000:
                            del state.docs[kind, key]
        return outcomes


@fault(
    "MED-1",
    source="boto3's batch_writer(overwrite_by_pkeys=…), which keeps the last of equal keys in each buffer of 25",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("k"), samples.media("l"), samples.media("k")]),
        lambda s: s.load_media_cache("a"),
    ),
)
class MediaInBuffers(Wrapper):
    """Keeps only the last of media with one key that stand within 25 of a list."""

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        kept = records
        if isinstance(records, (list, tuple)) and all(hasattr(r, "key") for r in records):
            kept, buffer = [], []
            for record in records:
                buffer = [*(other for other in buffer if other.key != record.key), record]
                if len(buffer) == 25:
                    kept += buffer
                    buffer = []
            kept += buffer
        await self.inner.save_media_cache(agent_id, kept, fence=fence)


@fault(
    "SNAP-1",
    source="sorted(…, key=(created_at, id), reverse=True), which reverses the second key as well",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("x")),
        lambda s: s.save_snapshot("a", samples.snapshot("y")),
        lambda s: s.list_snapshots("a"),
    ),
)
class ReversesIdsToo(Wrapper):
    """Lists snapshots of one time by descending id."""

    async def list_snapshots(self, agent_id: str) -> Any:
        found = await self.inner.list_snapshots(agent_id)
        return sorted(found, key=lambda snapshot: (snapshot.created_at, snapshot.id), reverse=True)


@fault(
    "INFO-1",
    "VAL-1",
    source="metadata = metadata || excluded.metadata in an upsert (PostgreSQL), or json_patch (SQLite)",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_info("a", samples.info("a", metadata={"plan": "free"})),
        lambda s: s.load_info("a"),
    ),
)
class MergesMetadata(Discreet):
    """Keeps the metadata keys of the info that is replaced, where the new one has them no more."""

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        old = await self.inner.load_info(agent_id)
        self.own["loads"] += 1
        if old is not None and type(getattr(info, "metadata", None)) is dict:
            gone = {key: value for key, value in old.metadata.items() if key not in info.metadata}
            info = info.replace(metadata={**info.metadata, **gone})
        await self.inner.save_info(agent_id, info, fence=fence)


# --- lifecycle and queries --------------------------------------------------------------------------------------------


@fault(
    "LIFE-2",
    source="Firestore's idiom for prefixes: startAt(prefix), endAt(prefix + '\\uf8ff')",
    witness=seen(
        lambda s: s.save_info("a\U0001f600", samples.info("a\U0001f600")),
        lambda s: s.list("a"),
    ),
)
class PrefixRange(Wrapper):
    """Does not list ids whose prefix is followed by an emoji or another character beyond U+F8FF."""

    async def list(self, prefix: str = "") -> Any:
        found = await self.inner.list(prefix)
        return [agent_id for agent_id in found if agent_id <= prefix + "\uf8ff"] if prefix else found


@fault(
    "LIFE-3",
    "LIFE-4",
    source="`if not await exists(id): return` at the head of delete, to make it idempotent",
    witness=seen(
        lambda s: s.save_messages("a", talk("x")),
        lambda s: s.delete("a"),
        lambda s: s.load_messages("a"),
    ),
)
class DeletesWhatExists(Wrapper):
    """Deletes nothing of an agent whose info was never saved."""

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        if await self.inner.exists(agent_id):
            await self.inner.delete(agent_id, fence=fence)


async def _many_deleted(ctx: Any) -> object:
    for i in range(101):
        await ctx.store.save_info(f"a{i}", samples.info(f"a{i}"))
    return await ctx.store.delete_many(template_id="assistant"), await ctx.store.list()


@fault(
    "LIFE-5",
    source="a loop over the first page of a list call, as with S3, whose default size nobody remembers",
    witness=_many_deleted,
)
class DeletesAPage(Discreet):
    """Deletes no more than the 100 sessions of a first page."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        if not filters or progress is not None or {"limit", "offset", "cursor", "order", "sort_by"} & filters.keys():
            return await self.inner.delete_many(progress=progress, **filters)
        found = await self.inner.query_sessions(**filters)
        self.own["queries"] += 1
        self.own["deletes"] += max(len(found) - 1, 0)
        count = 0
        for session in found:
            count += await self.inner.delete_many(**{**filters, "agent_id": session.agent_id})
        return count


@fault(
    "QRY-2",
    source="json_extract of SQLite, which gives 1 and 0 for true and false",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"beta": True})),
        lambda s: s.query_sessions(metadata={"beta": 1}),
    ),
)
class TrueIsOne(MemoryLayer):
    """Finds sessions whose metadata have true or false when 1 or 0 is asked for, and the reverse."""

    async def find_sessions(self, query: Any) -> Any:
        def lenient(pairs: Any) -> Any:
            return tuple((key, {"true": "1", "false": "0"}.get(value, value)) for key, value in pairs)

        if not any(value in ("true", "false", "1", "0") for _, value in query.metadata):
            return await self.inner.find_sessions(query)
        states = []
        for state in self.space.states.values():
            other = copy.copy(state)
            if other.info is not None:
                other.info = msgspec.structs.replace(other.info, metadata=lenient(other.info.metadata))
            states.append(other)
        return scan.find_sessions(states, msgspec.structs.replace(query, metadata=lenient(query.metadata)))


async def _paged(ctx: Any) -> object:
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i) for i in range(4)])
    page = await ctx.store.query_tool_calls(limit=2)
    first = [call.id for call in page]
    await ctx.store.upsert_tool_call_records("a", [samples.tool_call(9)])
    return first + [call.id for call in await ctx.store.query_tool_calls(limit=2, cursor=page.next_cursor)]


@fault(
    "QRY-5",
    source="LIMIT … OFFSET … behind an opaque cursor",
    witness=_paged,
)
class CursorsAreOffsets(Wrapper):
    """Gives a tool call again on the next page when a newer one was saved between the pages."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        cursor = filters.get("cursor")
        offset = filters.get("offset", 0)
        if cursor is not None:
            if type(cursor) is not str or not cursor.startswith("row-") or not cursor[4:].isdecimal() or offset:
                raise InvalidArgumentError("this is no cursor that a store gave")
            offset = filters["offset"] = int(cursor[4:])
        filters.pop("cursor", None)
        page = await self.inner.query_tool_calls(**filters)
        after = None if page.next_cursor is None else f"row-{offset + len(page)}"
        return Page(page, after, page.left_out)


@fault(
    "QRY-7",
    source="GROUP BY name with a collation that ignores case (SQL Server's and MySQL's default)",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(1), samples.tool_call(2, name="Search")]),
        lambda s: s.aggregate_stats("a"),
    ),
)
class GroupsWithoutCase(Wrapper):
    """Counts tools whose names differ in case only as one."""

    async def aggregate_stats(self, agent_id: str) -> Any:
        stats = await self.inner.aggregate_stats(agent_id)
        names: dict[str, str] = {}
        counts: dict[str, int] = {}
        for name, count in stats.tool_calls_by_name.items():
            name = names.setdefault(name.casefold(), name)
            counts[name] = counts.get(name, 0) + count
        return msgspec.structs.replace(stats, tool_calls_by_name=counts)


@fault(
    "QRY-8",
    "SNAP-1",
    source="a cache of 'immutable' blobs in the process (lru_cache), of which other processes know nothing",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_snapshot("a", samples.snapshot(count=1)),
        lambda s, t: t.load_snapshot("a", "sfp-1"),
        lambda s, t: s.save_snapshot("a", samples.snapshot(count=3)),
        lambda s, t: t.load_snapshot("a", "sfp-1"),
    ),
)
class SnapshotsAreImmutable(Wrapper):
    """Gives out a snapshot as this instance loaded it first, also after another instance replaced it."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.cache: dict[tuple[str, str], Any] = {}

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        found = await self.inner.load_snapshot(agent_id, snapshot_id)
        if found is None:
            return None
        cached = self.cache.setdefault((agent_id, snapshot_id), copy.deepcopy(found))
        if len(self.cache) > 128:
            self.cache.pop(next(iter(self.cache)))
        return copy.deepcopy(cached)

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)
        self.cache.pop((agent_id, snapshot.id), None)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        self.cache = {key: found for key, found in self.cache.items() if key[0] != agent_id}

    async def delete_many(self, **filters: Any) -> int:
        self.cache.clear()
        try:
            return await self.inner.delete_many(**filters)
        finally:
            self.cache.clear()


# --- operations -------------------------------------------------------------------------------------------------------


async def _orphans(ctx: Any) -> object:
    use = Message("assistant", [ToolUseBlock("c", "search", {})])
    await ctx.store.save_messages("a", [use, *talk("x")])
    return [issue.code for issue in (await ctx.store.check_consistency()).issues]


@fault(
    "OPS-2",
    source="a nightly job over the table of sessions, which joins the messages to them",
    witness=_orphans,
)
class ChecksSessions(Wrapper):
    """Finds nothing wrong in agents without info when all are checked."""

    async def check_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        found = await self.inner.check_consistency(agent_id, progress=progress)
        if agent_id is not None:
            return found
        known = {*await self.inner.list(), ""}
        issues = tuple(issue for issue in found.issues if issue.agent_id in known)
        return msgspec.structs.replace(found, issues=issues, consistent=not issues, agents_checked=len(known) - 1)


@fault(
    "OPS-5",
    "ID-1",
    "LOCK-5",
    source="`if not rows: return`, since drivers refuse an empty executemany",
    witness=seen(
        lambda s: s.append_events("a", []),
        lambda s: s.append_events("", []),
        lambda s: s.close(),
        lambda s: s.append_events("a", []),
    ),
)
class NothingIsEasy(Wrapper):
    """Returns at once from an append of no events, also when the store is closed or the id is wrong."""

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        if timelines in ([], ()):
            return []
        return await self.inner.append_events(agent_id, timelines, fence=fence)


async def _cancelled(ctx: Any) -> object:
    await ctx.store.save_todos("a", samples.todos("x"))
    save = asyncio.create_task(ctx.store.save_todos("a", samples.todos("y")))
    await asyncio.sleep(0.005)
    save.cancel()
    await asyncio.gather(save, return_exceptions=True)
    first = await ctx.store.load_todos("a")
    await asyncio.sleep(0.2)
    return first == await ctx.store.load_todos("a")


@fault(
    "OPS-9",
    "LIFE-3",
    source="a batching window before the write (DataLoader, Kafka's linger.ms), with asyncio.shield around it",
    witness=_cancelled,
)
class LingersAfterCancel(Wrapper):
    """Lets the todos of a cancelled call be written later, when other calls for the agent have begun and ended."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.tasks: set[Any] = set()

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        async def later() -> None:
            await asyncio.sleep(0.02)
            await self.inner.save_todos(agent_id, snapshot, fence=fence)

        task = asyncio.create_task(later())
        self.tasks.add(task)
        task.add_done_callback(lambda done: (self.tasks.discard(done), done.cancelled() or done.exception()))
        await asyncio.shield(task)

    async def close(self) -> None:
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.inner.close()


# --- locks, forks, durability -----------------------------------------------------------------------------------------


@fault(
    "LOCK-1",
    "LIFE-3",
    "LOCK-5",
    source="a table of locks with REFERENCES agents ON DELETE CASCADE",
    witness=seen(
        lambda s, t: s.acquire_agent_lock("a"),
        lambda s, t: t.delete("a"),
        lambda s, t: t.acquire_agent_lock("a"),
    ),
)
class LocksGoWithTheAgent(MemoryLayer):
    """Frees the lock of an agent that is deleted, while somebody holds it."""

    async def commit(self, batches: Any) -> Any:
        outcomes = await self.inner.commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete and hasattr(outcome, "offsets"):
                self.space.leases.pop(batch.agent_id, None)
        return outcomes


async def _late(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=50)
    await asyncio.sleep(0.2)
    calls = [
        lambda s: s.save_messages("a", talk("x"), fence=lease),
        lambda s: s.save_snapshot("a", samples.snapshot(), fence=lease),
        lambda s: s.list_snapshots("a"),
    ]
    return await seen(*calls)(ctx)


@fault(
    "LOCK-5",
    source="documents in an object store beside the database, whose PUT knows nothing of the lock table",
    witness=_late,
)
class DocumentsWithoutFence(Layer):
    """Writes snapshots, windows, files, media and todos without a look at their fence."""

    async def commit(self, batches: Any) -> Any:
        unfenced = [
            msgspec.structs.replace(batch, fence=None)
            if batch.docs and not batch.is_touching and not batch.events and not batch.delete
            else batch
            for batch in batches
        ]
        return await self.inner.commit(unfenced)


async def _renewed(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=200)
    await lease.renew()
    await asyncio.sleep(0.5)
    return await seen(lambda s: lease.renew(), lambda s: s.save_todos("a", samples.todos("x"), fence=lease))(ctx)


@fault(
    "LOCK-3",
    source="redis-py's Lock.reacquire beside extend: renewal with the default time of the client, not the lock's own",
    witness=_renewed,
)
class RenewsForTheDefault(Layer):
    """Prolongs every lease by 30 s when it is renewed, whatever time it was taken for."""

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        return await self.inner.renew_lease(agent_id, fence, 30_000)


async def _forked(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_messages("a", talk("x"))
    await asyncio.sleep(0.05)
    [child] = await ctx.store.batch_fork("a", 1)
    times = [(await ctx.store.query_messages(agent_id=agent_id))[0].created_at for agent_id in ("a", child)]
    return times[0] == times[1]


@fault(
    "FORK-1",
    "MSG-4",
    source="INSERT INTO messages (…) SELECT … without created_at, which is DEFAULT CURRENT_TIMESTAMP",
    witness=_forked,
)
class ForksAreNew(MemoryLayer):
    """Gives the messages of a fork the time of the fork."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await self.inner.fork(agent_id, children, expect, now)
        for child in children if done else ():
            found = self.space.states[child.agent_id].lists[ListKind.MESSAGES]
            found.rows = [msgspec.structs.replace(row, created_at=now) for row in found.rows]
        return done


async def _siblings(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_tool_call_records("a", [samples.tool_call()])
    one, two = await ctx.store.batch_fork("a", 2)
    await ctx.store.upsert_tool_call_records(one, [samples.tool_call(1)])
    return [len(await ctx.store.load_tool_call_records(agent_id)) for agent_id in ("a", one, two)]


@fault(
    "FORK-2",
    "MSG-8",
    source="[copy] * count: one copy of the parent for all forks of a call",
    witness=_siblings,
)
class ForksShareACopy(MemoryLayer):
    """Lets the forks of one call share a list of tool calls: what one appends is in the others."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await self.inner.fork(agent_id, children, expect, now)
        if done and children:
            lists = [self.space.states[child.agent_id].lists for child in children]
            for other in lists[1:]:
                other[ListKind.TOOL_CALLS] = lists[0][ListKind.TOOL_CALLS]
        return done


@fault(
    "DUR-1",
    "QRY-8",
    "LOCK-5",
    source="write-behind, as caches offer it: the write is acknowledged when it is in the queue",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_compression_record("a", samples.compression()),
        lambda s, t: t.load_compression_records("a"),
        lambda s, t: s.load_compression_records("a"),
    ),
)
class CompressionsBehind(Discreet):
    """Acknowledges a compression record before it is written: it is in the database when somebody reads it in this
    instance, deletes or closes."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.queue: list[tuple[str, Any]] = []

    async def _flush(self) -> None:
        while self.queue:
            agent_id, record = self.queue.pop(0)
            await self.inner.save_compression_record(agent_id, record)

    async def save_compression_record(self, agent_id: str, record: Any, *, fence: Any = None) -> None:
        if fence is None:
            try:
                await kinds.COMPRESSIONS.write(record)
                await self.inner.exists(agent_id)
            except KodeError:
                pass  # it is refused below
            else:
                self.own["loads"] += 1
                self.queue.append((agent_id, copy.deepcopy(record)))
                return
        await self._flush()
        await self.inner.save_compression_record(agent_id, record, fence=fence)

    async def load_compression_records(self, agent_id: str) -> Any:
        await self._flush()
        return await self.inner.load_compression_records(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._flush()
        await self.inner.delete(agent_id, fence=fence)

    async def delete_many(self, **filters: Any) -> int:
        await self._flush()
        return await self.inner.delete_many(**filters)

    async def get_metrics(self) -> Any:
        await self._flush()
        return await super().get_metrics()

    async def check_consistency(self, *args: Any, **more: Any) -> Any:
        await self._flush()
        return await self.inner.check_consistency(*args, **more)

    async def close(self) -> None:
        try:
            await self._flush()
        finally:
            await self.inner.close()


async def _half(ctx: Any) -> object:
    other = await ctx.another()
    save = asyncio.create_task(ctx.store.save_messages("a", samples.messages(2000)))
    sizes = set()
    while not save.done():
        sizes.add(len(await other.load_messages("a")))
        await asyncio.sleep(0)
    await save
    return bool(sizes - {0, 2000})


@fault(
    "DUR-3",
    "MSG-1",
    source="a bulk import in chunks of 500, each in a transaction of its own (the limit of Firestore's batches)",
    on=OnSqlite,
    witness=_half,
)
class ImportsInChunks(Discreet):
    """Saves a first list of more than 500 messages in chunks, which others, and a crash, see one by one."""

    async def save_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if isinstance(messages, (list, tuple)) and len(messages) > 500 and await self._is_first(agent_id):
            self.own["saves"] += (len(messages) - 1) // 500
            await self.inner.save_messages(agent_id, messages[:500], fence=fence)
            for start in range(500, len(messages), 500):
                await self.inner.append_messages(agent_id, messages[start : start + 500], fence=fence)
            return
        await self.inner.save_messages(agent_id, messages, fence=fence)

    async def _is_first(self, agent_id: str) -> bool:
        self.own["loads"] += 1
        return not await self.inner.load_messages(agent_id)
