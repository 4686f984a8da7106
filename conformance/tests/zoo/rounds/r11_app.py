"""Faults of application teams that wrap a working store."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import itertools
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, OnMemory, OnSqlite, Wrapper  # noqa: F401
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import restart, seen, talk
from kode_core.errors import InvalidArgumentError, StoreClosedError
from kode_core.model import Bookmark
from kode_core.query import Page

NAN = float("nan")


# --- VAL --------------------------------------------------------------------------------------------------------------


@fault(
    "VAL-1",
    "VAL-2",
    source="a compression wrapper with a size threshold: text.encode('utf-8', 'replace') before zlib",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered(content="x" * 4096 + "\ud800")),
        lambda s: s.load_recovered_files("a"),
    ),
)
class ApZipsRecoveredText(Wrapper):
    """Turns lone surrogates into question marks in the contents of recovered files that are long enough to be compressed."""

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        content = getattr(file, "content", None)
        if type(content) is str and len(content) > 1024 and not _has_pair(content):
            packed = zlib.compress(content.encode("utf-8", "replace"), 1)
            file = replace(file, content=zlib.decompress(packed).decode())
        await self.inner.save_recovered_file(agent_id, file, fence=fence)


def _has_pair(text: str) -> bool:
    return any("\ud800" <= a <= "\udbff" and "\udc00" <= b <= "\udfff" for a, b in itertools.pairwise(text))


async def _cached_snapshot(ctx: Any) -> object:
    s = ctx.store
    await s.save_snapshot("a", samples.snapshot())
    await s.load_snapshot("a", "sfp-1")
    (await s.load_snapshot("a", "sfp-1")).metadata["reason"] = "mine"
    return (await s.load_snapshot("a", "sfp-1")).metadata, [x.metadata for x in await s.list_snapshots("a")]


@fault(
    "VAL-1",
    source="a parsed-object cache (lru_cache over the bytes of a row) whose objects are handed out without a copy",
    witness=_cached_snapshot,
)
class ApSharesParsedSnapshots(Wrapper):
    """Hands out one and the same object for two loads of a snapshot that has not changed in between."""

    __slots__ = ("parsed",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.parsed: dict[Any, Any] = {}

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        found = await self.inner.load_snapshot(agent_id, snapshot_id)
        if found is None:
            return None
        key = hashlib.sha256(ascii((agent_id, found)).encode()).digest()
        if len(self.parsed) > 128:
            self.parsed.clear()
        return self.parsed.setdefault(key, found)


def _at(ms: int, micros: int = 0) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms, microseconds=micros)


@fault(
    "VAL-5",
    "QRY-2",
    source="int(dt.timestamp() * 1000), as every team converts a datetime to milliseconds",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i) for i in range(3)]),
        lambda s: s.query_tool_calls(created_after=_at(samples.T0 + 1, 1)),
        lambda s: s.query_tool_calls(created_before=_at(samples.T0 + 1, 1)),
    ),
)
class ApMillisecondFilters(Wrapper):
    """Cuts datetimes of filters of tool calls to the millisecond, so that bounds between two milliseconds are one too low."""

    @staticmethod
    def _cut(filters: dict[str, Any]) -> dict[str, Any]:
        def cut(value: Any) -> Any:
            if type(value) is datetime and value.tzinfo is not None:
                return value.replace(microsecond=value.microsecond // 1000 * 1000)
            return value

        return {name: cut(value) for name, value in filters.items()}

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await self.inner.query_tool_calls(**self._cut(filters))

    def iter_tool_calls(self, **filters: Any) -> Any:
        return self.inner.iter_tool_calls(**self._cut(filters))


# --- ID ---------------------------------------------------------------------------------------------------------------


@fault(
    "ID-2",
    "SNAP-1",
    source="a cache key made by joining parts: f'{agent_id}:{snapshot_id}' (Redis, memcached)",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("b:c", count=1)),
        lambda s: s.save_snapshot("a:b", samples.snapshot("c", count=3)),
        lambda s: s.load_snapshot("a", "b:c"),
        lambda s: s.load_snapshot("a:b", "c"),
    ),
)
class ApColonCacheKeys(Wrapper):
    """Looks up where a snapshot is by agent and id joined by a colon, so that `a` with `b:c` finds what `a:b` saved as `c`."""

    __slots__ = ("cache",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.cache: dict[str, tuple[str, str]] = {}

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)
        self.cache[f"{agent_id}:{snapshot.id}"] = (agent_id, snapshot.id)

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        where = self.cache.get(f"{agent_id}:{snapshot_id}", (agent_id, snapshot_id))
        return await self.inner.load_snapshot(*where)


@fault(
    "ID-4",
    "HIS-2",
    source="S3: object keys have at most 1,024 bytes",
    errors=True,
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("d/" * 1000)),
        lambda s: s.load_recovered_files("a"),
    ),
)
class ApObjectKeyLimit(Wrapper):
    """Refuses recovered files whose path has more than 1,024 bytes."""

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        path = getattr(file, "path", "")
        if type(path) is str and len(path.encode("utf-8", "surrogatepass")) > 1024:
            raise InvalidArgumentError("the path is longer than an object key can be")
        await self.inner.save_recovered_file(agent_id, file, fence=fence)


# --- MSG --------------------------------------------------------------------------------------------------------------


@fault(
    "MSG-3",
    "VAL-2",
    "DUR-3",
    source="batching: MongoDB's and SQLAlchemy's bulk inserts, split by the application into 500 rows each",
    witness=seen(
        lambda s: s.append_messages("a", [*samples.messages(600), samples.Message("user", "x", {"n": NAN})]),
        lambda s: _count(s.load_messages("a")),
    ),
)
class ApAppendsInBatches(Wrapper):
    """Writes an append of more than 500 messages as several appends, so that others get between and a refusal leaves half."""

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if not isinstance(messages, (list, tuple)) or len(messages) <= 500:
            return await self.inner.append_messages(agent_id, messages, fence=fence)
        for start in range(0, len(messages), 500):
            await self.inner.append_messages(agent_id, messages[start : start + 500], fence=fence)


async def _count(found: Any) -> int:
    return len(await found)


@fault(
    "MSG-1",
    "MSG-2",
    "QRY-8",
    source="a dirty check in the application: Hibernate skips the flush of what it believes unchanged",
    witness=seen(
        lambda s, t: s.save_messages("a", talk("x")),
        lambda s, t: t.save_messages("a", talk("y")),
        lambda s, t: s.save_messages("a", talk("x")),
        lambda s, t: t.load_messages("a"),
    ),
)
class ApDirtyCheck(Wrapper):
    """Writes no list of messages that equals the one this instance wrote last, whatever others wrote since."""

    __slots__ = ("last",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.last: dict[str, bytes] = {}

    async def save_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        digest = hashlib.sha256(ascii(messages).encode()).digest()
        if self.last.get(agent_id) == digest:
            return await self.inner.append_messages(agent_id, [], fence=fence)
        self.last.pop(agent_id, None)
        await self.inner.save_messages(agent_id, messages, fence=fence)
        self.last[agent_id] = digest

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        self.last.pop(agent_id, None)
        await self.inner.append_messages(agent_id, messages, fence=fence)

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        self.last.pop(agent_id, None)
        await self.inner.save_turn(agent_id, **parts)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        self.last.pop(agent_id, None)
        await self.inner.delete(agent_id, fence=fence)

    async def delete_many(self, **filters: Any) -> int:
        self.last.clear()
        return await self.inner.delete_many(**filters)


# --- TC, TURN ---------------------------------------------------------------------------------------------------------


@fault(
    "TC-3",
    "VAL-3",
    source="PATCH semantics of an ORM: update(exclude_none=True)",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(error="boom", is_error=True)]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(state="EXECUTING", completed_at=None)]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class ApPatchesCalls(Wrapper):
    """Keeps the error and the end of the record before when an upserted one has none."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and records:
            old = {call.id: call for call in await self.inner.load_tool_call_records(agent_id)}
            records = [self._patched(old.get(getattr(call, "id", None)), call) for call in records]
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)

    @staticmethod
    def _patched(old: Any, new: Any) -> Any:
        if old is None:
            return new
        names = ("error", "completed_at", "duration_ms")
        return replace(new, **{name: getattr(old, name) for name in names if getattr(new, name) is None})


@fault(
    "TURN-1",
    "VAL-2",
    source="a session row that is written first, in its own transaction, because of a foreign key",
    witness=seen(
        lambda s: s.save_turn("a", info=samples.info("a"), append=[samples.Message("user", "x", {"n": NAN})]),
        lambda s: s.exists("a"),
    ),
)
class ApInfoBeforeTheTurn(Wrapper):
    """Writes the info of a turn by itself before the rest."""

    async def save_turn(self, agent_id: str, *, info: Any = None, fence: Any = None, **rest: Any) -> None:
        if info is not None:
            await self.inner.save_info(agent_id, info, fence=fence)
        await self.inner.save_turn(agent_id, fence=fence, **rest)


# --- EVT --------------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    "EVT-3",
    "EVT-1",
    source="an idempotency key of (cursor, seq, timestamp), as of an outbox table, without the content",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: s.append_event("a", samples.event(1, "monitor")),
        lambda s: s.append_event("a", samples.event(1, delta="other")),
        lambda s: _count(_all(s.read_events("a"))),
    ),
)
class ApOutboxKeys(Wrapper):
    """Takes an event with the cursor, seq and timestamp of one appended shortly before for the same event, whatever it says."""

    __slots__ = ("keys",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.keys: dict[Any, int] = {}

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        mark = getattr(timeline, "bookmark", None)
        key = (
            agent_id,
            getattr(timeline, "cursor", None),
            getattr(mark, "seq", None),
            getattr(mark, "timestamp", None),
        )
        if key in self.keys:
            return self.keys[key]
        offset = await self.inner.append_event(agent_id, timeline, fence=fence)
        if len(self.keys) > 1000:
            self.keys.pop(next(iter(self.keys)))
        self.keys[key] = offset
        return offset

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        self.keys.clear()

    async def delete_many(self, **filters: Any) -> int:
        try:
            return await self.inner.delete_many(**filters)
        finally:
            self.keys.clear()


async def _all(found: Any) -> list[Any]:
    return [item async for item in found]


async def _seqs(found: Any) -> list[int]:
    return [item.bookmark.seq async for item in found]


@fault(
    "EVT-5",
    source="`if after_offset:` in Python, where 0 is no offset",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(seq) for seq in (5, 3, 9, 1)]),
        lambda s: _seqs(s.read_events("a", after_offset=0)),
    ),
)
class ApOffsetZeroIsNone(Wrapper):
    """Reads events in the order of seq when they are asked for after offset 0."""

    def read_events(self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None) -> Any:
        if type(after_offset) is int and not after_offset:
            after_offset = None
        return self.inner.read_events(agent_id, since=since, after_offset=after_offset, channel=channel)


def _with_mark(seq: int, timestamp: int) -> Any:
    return replace(samples.event(seq), bookmark=Bookmark(seq, timestamp))


@fault(
    "EVT-6",
    source="a high-water mark in memory that moves on `>`, as of a Kafka consumer's offset table",
    witness=seen(
        lambda s: s.append_event("a", _with_mark(7, samples.T0)),
        lambda s: s.append_event("a", _with_mark(7, samples.T0 + 50)),
        lambda s: s.last_bookmark("a"),
        restart,
        lambda s: s.last_bookmark("a"),
    ),
)
class ApHighWaterMark(Wrapper):
    """Gives the bookmark that this instance appended first of several with the highest seq."""

    __slots__ = ("marks",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.marks: dict[str, Any] = {}

    def _note(self, agent_id: str, mark: Any) -> None:
        old = self.marks.get(agent_id)
        if old is None or mark.seq > old.seq:
            self.marks[agent_id] = mark

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        offset = await self.inner.append_event(agent_id, timeline, fence=fence)
        self._note(agent_id, timeline.bookmark)
        return offset

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        offsets = await self.inner.append_events(agent_id, timelines, fence=fence)
        for timeline in timelines:
            self._note(agent_id, timeline.bookmark)
        return offsets

    async def last_bookmark(self, agent_id: str) -> Any:
        stored = await self.inner.last_bookmark(agent_id)
        mark = self.marks.get(agent_id)
        return mark if stored is not None and mark is not None and mark.seq == stored.seq else stored

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        self.marks.pop(agent_id, None)


# --- the other kinds --------------------------------------------------------------------------------------------------


@fault(
    "TODO-1",
    source="optimistic concurrency: UPDATE ... WHERE version <= :version (JPA's @Version), whose row count nobody looks at",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x", "y", "z")),
        lambda s: s.save_todos("a", samples.todos("x")),
        lambda s: s.load_todos("a"),
    ),
)
class ApTodoVersions(Wrapper):
    """Keeps the stored todos when the version of those to save is lower."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        stored = await self.inner.load_todos(agent_id)
        if stored is not None and getattr(snapshot, "version", 0) < stored.version:
            snapshot = stored
        await self.inner.save_todos(agent_id, snapshot, fence=fence)


@fault(
    "HIS-2",
    source="content-addressed storage: a blob that is there already is not stored again",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=samples.T0)),
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=samples.T0 + 1)),
        lambda s: s.load_recovered_files("a"),
    ),
)
class ApDedupesFiles(Wrapper):
    """Does not keep a recovered file again that was recovered before with the same path and content, at another time."""

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        for old in await self.inner.load_recovered_files(agent_id):
            if isinstance(file, type(old)) and (old.path, old.content, old.mtime) == (
                file.path,
                file.content,
                file.mtime,
            ):
                file = old if old.timestamp != file.timestamp else file
                break
        await self.inner.save_recovered_file(agent_id, file, fence=fence)


@fault(
    "MED-1",
    source="a cache partitioned by provider: GROUP BY provider, partitions read one after the other",
    witness=seen(
        lambda s: s.save_media_cache(
            "a", [replace(samples.media(f"k{i}"), provider=p) for i, p in enumerate(["openai", "anthropic", "openai"])]
        ),
        lambda s: s.load_media_cache("a"),
    ),
)
class ApMediaByProvider(Wrapper):
    """Gives media records provider by provider."""

    async def load_media_cache(self, agent_id: str) -> Any:
        groups: dict[str, list[Any]] = {}
        for record in await self.inner.load_media_cache(agent_id):
            groups.setdefault(record.provider, []).append(record)
        return [record for group in groups.values() for record in group]


@fault(
    "SNAP-1",
    "MSG-8",
    "VAL-1",
    source="snapshots as references into the log (a git tag, a Delta table version) whose log is rewritten afterwards",
    witness=seen(
        lambda s: s.save_messages("a", talk("x", "y", "z")),
        lambda s: s.save_snapshot("a", replace(samples.snapshot(), messages=talk("x", "y"))),
        lambda s: s.save_messages("a", talk("x", "changed", "z")),
        lambda s: s.load_snapshot("a", "sfp-1"),
        lambda s: s.list_snapshots("a"),
    ),
)
class ApSnapshotIsAPrefix(Wrapper):
    """Stores of a snapshot only its length when it is the beginning of the messages, which are edited afterwards."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)
        count = len(snapshot.messages)
        stored = await self.inner.load_messages(agent_id) if count else []
        if count and ascii(tuple(stored[:count])) == ascii(tuple(snapshot.messages)):
            short = replace(snapshot, messages=(), extra={**(snapshot.extra or {}), "_prefix": count})
            await self.inner.save_snapshot(agent_id, short, fence=fence)

    async def _whole(self, agent_id: str, snapshot: Any) -> Any:
        if snapshot is None or "_prefix" not in (snapshot.extra or {}):
            return snapshot
        extra = dict(snapshot.extra)
        count = extra.pop("_prefix")
        return replace(snapshot, messages=(await self.inner.load_messages(agent_id))[:count], extra=extra)

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        return await self._whole(agent_id, await self.inner.load_snapshot(agent_id, snapshot_id))

    async def list_snapshots(self, agent_id: str) -> Any:
        return [await self._whole(agent_id, snapshot) for snapshot in await self.inner.list_snapshots(agent_id)]


def _is_same(old: Any, new: Any) -> bool:
    names = type(old).__struct_fields__ if old is not None and type(old) is type(new) else ()
    same = [ascii(getattr(old, name) or None) == ascii(getattr(new, name) or None) for name in names if name == "extra"]
    same += [ascii(getattr(old, name)) == ascii(getattr(new, name)) for name in names if name != "extra"]
    return bool(same) and all(same)


async def _is_touched(ctx: Any) -> object:
    s = ctx.store
    await s.save_info("a", samples.info("a"))
    await s.save_tool_call_records("a", [samples.tool_call()])
    (before,) = await s.query_sessions(agent_id="a")
    await s.upsert_tool_call_records("a", [samples.tool_call()])
    (after,) = await s.query_sessions(agent_id="a")
    return after.updated_at > before.updated_at


@fault(
    "INFO-2",
    source="MySQL's ON UPDATE CURRENT_TIMESTAMP, and ORMs, which leave a row alone that did not change",
    witness=_is_touched,
)
class ApUpsertsChangesOnly(Wrapper):
    """Leaves `updated_at` as it is when the upserted tool calls are stored already as they are."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if fence is None and isinstance(records, (list, tuple)) and records:
            last = {call.id: call for call in await self.inner.load_tool_call_records(agent_id)}
            same = [_is_same(last.get(getattr(call, "id", None)), call) for call in records]
            if all(same):
                return
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)


# --- LIFE -------------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-5",
    "LIFE-3",
    "LIFE-4",
    source="retention: a purge of old sessions that keeps the event log for the auditors",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.append_events("a", samples.events(3)),
        lambda s: s.delete_many(template_id="assistant"),
        lambda s: _seqs(s.read_events("a")),
    ),
)
class ApPurgeKeepsEvents(Wrapper):
    """Keeps the events of the sessions that `delete_many` deletes."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        kept: dict[str, list[Any]] = {}
        if filters and not {"limit", "offset", "cursor"} & filters.keys():
            async for session in self.inner.iter_sessions(**filters):
                kept[session.agent_id] = [
                    event async for event in self.inner.read_events(session.agent_id, after_offset=0)
                ]
        deleted = await self.inner.delete_many(progress=progress, **filters)
        for agent_id, events in kept.items():
            plain = [samples.Timeline(e.cursor, e.bookmark, e.event, extra=e.extra) for e in events]
            if plain and not await self.inner.exists(agent_id):
                await self.inner.append_events(agent_id, plain)
        return deleted


@fault(
    "LIFE-2",
    source="Firestore's prefix search: from prefix to prefix + '\\uf8ff'",
    witness=seen(
        lambda s: s.save_info("run-\U0001f680", samples.info("run-\U0001f680")),
        lambda s: s.save_info("run-1", samples.info("run-1")),
        lambda s: s.list("run-"),
    ),
)
class ApPrivateUseBound(Wrapper):
    """Leaves out of a list by prefix the ids that go on after it with a character above U+F8FF, such as an emoji."""

    async def list(self, prefix: str = "") -> Any:
        found = await self.inner.list(prefix)
        return [name for name in found if name <= prefix + "\uf8ff"] if prefix else found


@fault(
    "LIFE-1",
    "QRY-8",
    source="a negative cache (Rails.cache of nil, DNS) that one of the ways to write does not empty",
    witness=seen(
        lambda s: s.exists("a"),
        lambda s: s.save_turn("a", append=talk("x"), info=samples.info("a")),
        lambda s: s.exists("a"),
    ),
)
class ApRemembersAbsence(Wrapper):
    """Says that an agent does not exist which was asked for before it was made by `save_turn`, until its info is saved or loaded."""

    __slots__ = ("absent",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.absent: set[str] = set()

    async def exists(self, agent_id: str) -> bool:
        found = await self.inner.exists(agent_id)
        if not found:
            self.absent.add(agent_id)
        return found and agent_id not in self.absent

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        await self.inner.save_info(agent_id, info, fence=fence)
        self.absent.discard(agent_id)

    async def load_info(self, agent_id: str) -> Any:
        found = await self.inner.load_info(agent_id)
        if found is not None:
            self.absent.discard(agent_id)
        return found


# --- QRY --------------------------------------------------------------------------------------------------------------


async def _pages(ctx: Any) -> object:
    s = ctx.store
    await s.save_tool_call_records("a", [samples.tool_call(i) for i in range(6)])
    page = await s.query_tool_calls(limit=3)
    found = [call.id for call in page]
    await s.upsert_tool_call_records("a", [samples.tool_call(9)])
    while page.next_cursor:
        page = await s.query_tool_calls(limit=3, cursor=page.next_cursor)
        found += [call.id for call in page]
    return found


@fault(
    "QRY-5",
    source="cursors that are a page's offset in base64 (GraphQL's arrayconnection:N)",
    witness=_pages,
)
class ApArrayConnection(Wrapper):
    """Gives cursors of tool calls that are an offset, so that what comes in at the front shows records twice."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        cursor = filters.pop("cursor", None)
        start = filters.pop("offset", 0)
        if type(start) is not int:
            return await self.inner.query_tool_calls(offset=start, **filters)
        if cursor is not None:
            kind, _, number = cursor.partition(":") if type(cursor) is str else ("", "", "")
            if kind != "arrayconnection" or not number.isdecimal():
                raise InvalidArgumentError("the cursor is none that a store gave")
            start = int(number)
        page = await self.inner.query_tool_calls(offset=start, **filters)
        following = None if page.next_cursor is None else f"arrayconnection:{start + len(page) + len(page.left_out)}"
        return Page(page, following, page.left_out)


@fault(
    "QRY-7",
    "QRY-8",
    source="an ETag of updated_at: HTTP's conditional requests, Django's condition decorator",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.aggregate_stats("a"),
        lambda s: s.save_snapshot("a", samples.snapshot()),
        lambda s: s.aggregate_stats("a"),
    ),
)
class ApStatsByEtag(Wrapper):
    """Gives the statistics of before as long as `updated_at` is the same, which a saved snapshot does not move."""

    __slots__ = ("known",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.known: dict[str, Any] = {}

    async def aggregate_stats(self, agent_id: str) -> Any:
        found = await self.inner.aggregate_stats(agent_id)
        sessions = await self.inner.query_sessions(agent_id=agent_id, limit=1)
        if not sessions:
            return found
        etag, old = self.known.get(agent_id, (None, None))
        if etag == sessions[0].updated_at:
            return replace(old, tool_calls_by_name={**old.tool_calls_by_name})
        if len(self.known) >= 1000:
            self.known.clear()
        self.known[agent_id] = (sessions[0].updated_at, found)
        return found


@fault(
    "QRY-6",
    source="Elasticsearch's max_result_window of 10,000, behind an iterator",
    witness=seen(
        lambda s: s.append_messages("a", samples.messages(10_005)),
        lambda s: _count(_all(s.iter_messages(agent_id="a"))),
    ),
)
class ApResultWindow(Wrapper):
    """Ends the iteration over messages after 10,000."""

    def iter_messages(self, **filters: Any) -> Any:
        return self._first(self.inner.iter_messages(**filters))

    @staticmethod
    async def _first(found: Any) -> Any:
        count = 0
        async for item in found:
            yield item
            count += 1
            if count == 10_000:
                return


# --- OPS --------------------------------------------------------------------------------------------------------------


async def _errors(ctx: Any) -> object:
    s = ctx.store
    with contextlib.suppress(InvalidArgumentError):
        await s.load_snapshot("a", "")
    return (await s.get_metrics()).operations.errors


@fault(
    "OPS-3",
    source="tenacity's @retry(stop=stop_after_attempt(3)), which retries on every exception",
    witness=_errors,
)
class ApRetriesSnapshotLoads(Wrapper):
    """Counts three errors for a load of a snapshot that fails once for its caller."""

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        for attempt in range(3):
            try:
                return await self.inner.load_snapshot(agent_id, snapshot_id)
            except StoreClosedError:
                raise
            except Exception:
                if attempt == 2:
                    raise


async def _after_close(ctx: Any) -> object:
    s = await ctx.another()
    await s.append_event("a", samples.event(1))
    await s.close()
    try:
        return await s.last_bookmark("a")
    except Exception as exc:
        return type(exc).__name__


@fault(
    "OPS-5",
    "EVT-6",
    source="a circuit breaker with a fallback value (Hystrix, resilience4j)",
    witness=_after_close,
)
class ApBookmarkFallback(Wrapper):
    """Gives None as the last bookmark of a closed store."""

    async def last_bookmark(self, agent_id: str) -> Any:
        try:
            return await self.inner.last_bookmark(agent_id)
        except StoreClosedError:
            return None


async def _told(ctx: Any) -> object:
    record = replace(samples.compression(), summary="SECRET", ratio=NAN)
    try:
        await ctx.store.save_compression_record("a", record)
    except Exception as exc:
        return "SECRET" in str(getattr(exc, "__notes__", "")) + str(exc)
    return "saved"


@fault(
    "OPS-12",
    source="tracing that attaches the arguments to the exception: Sentry's locals, exc.add_note(repr(args))",
    witness=_told,
)
class ApNotesTheArguments(Wrapper):
    """Quotes a refused compression record in a note of the error."""

    async def save_compression_record(self, agent_id: str, record: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.save_compression_record(agent_id, record, fence=fence)
        except Exception as exc:
            exc.add_note(f"in save_compression_record({agent_id!r}, {record!r})")
            raise


# --- LOCK -------------------------------------------------------------------------------------------------------------


async def _late_media(ctx: Any) -> object:
    s = ctx.store
    result = "written"
    async with s.acquire_agent_lock("a") as lease:
        await lease.release()
        try:
            await s.save_media_cache("a", [samples.media()])
        except Exception as exc:
            result = type(exc).__name__
    return result, await s.load_media_cache("a")


@fault(
    "LOCK-5",
    "LOCK-7",
    source="a worker queue that does the uploads: context variables do not travel to a thread or worker",
    witness=_late_media,
)
class ApUploadsInAWorker(Wrapper):
    """Does not fence the saving of a media cache inside a block whose lease has ended, unless it is given `fence`."""

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        call = self.inner.save_media_cache(agent_id, records, fence=fence)
        await asyncio.get_running_loop().create_task(call, context=contextvars.Context())


async def _taken_over(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=300)
    await asyncio.sleep(1.2)
    other = await ctx.another()
    try:
        await (await other.acquire_agent_lock("a")).release()
    except Exception as exc:
        return type(exc).__name__
    finally:
        await lease.release()
    return "taken"


class _Watched:
    def __init__(self, lock: Any, ttl_ms: int, tasks: set[Any]) -> None:
        self.lock, self.ttl_ms, self.tasks = lock, ttl_ms, tasks

    def __await__(self) -> Any:
        return self._take().__await__()

    async def _take(self) -> Any:
        lease = await self.lock
        task = asyncio.get_running_loop().create_task(self._keep(lease))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return lease

    async def _keep(self, lease: Any) -> None:
        try:
            while not lease.is_released and not lease.is_lost:
                await asyncio.sleep(self.ttl_ms / 3000)
                if not lease.is_released and not lease.is_lost:
                    await lease.renew()
        except Exception:
            return

    async def __aenter__(self) -> Any:
        return await self.lock.__aenter__()

    async def __aexit__(self, *exc: Any) -> Any:
        return await self.lock.__aexit__(*exc)


@fault(
    "LOCK-3",
    source="Redisson's lock watchdog, which renews every lock as long as the client lives",
    witness=_taken_over,
)
class ApWatchdogLease(Wrapper):
    """Renews a lease that was awaited without `async with`, so that it does not end when its time passes."""

    __slots__ = ("tasks",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.tasks: set[Any] = set()

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        return _Watched(self.inner.acquire_agent_lock(agent_id, ttl_ms, wait_ms), ttl_ms, self.tasks)

    async def close(self) -> None:
        for task in [*self.tasks]:
            task.cancel()
        await self.inner.close()


# --- FORK -------------------------------------------------------------------------------------------------------------


@fault(
    "FORK-2",
    "FORK-1",
    "INFO-3",
    "ID-2",
    source="copy on write: a fork reads through to its parent what it has not itself (btrfs, qcow2's backing file)",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: _fork_then(s, lambda: s.save_snapshot("a", samples.snapshot("later"))),
    ),
)
class ApForkReadsThrough(Wrapper):
    """Finds in a fork the snapshots that its parent made after the fork."""

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        found = await self.inner.load_snapshot(agent_id, snapshot_id)
        if found is None and agent_id.startswith("agt-"):
            info = await self.inner.load_info(agent_id)
            if info is not None and info.lineage:
                return await self.inner.load_snapshot(info.lineage[-1], snapshot_id)
        return found


async def _fork_then(s: Any, then: Any) -> object:
    (fork,) = await s.batch_fork("a", 1)
    await then()
    return await s.load_snapshot(fork, "later")


async def _forked_while_written(ctx: Any) -> object:
    s = ctx.store
    await s.save_info("a", samples.info("a"))
    forking = asyncio.ensure_future(s.batch_fork("a", 150))
    while not forking.done():
        await s.append_messages("a", talk("x"))
        await asyncio.sleep(0)
    return len({len(await s.load_messages(fork)) for fork in forking.result()})


@fault(
    "FORK-1",
    "FORK-3",
    source="DynamoDB: TransactWriteItems takes at most 100 items",
    witness=_forked_while_written,
)
class ApForksByTheHundred(Wrapper):
    """Makes more than 100 forks in several transactions, each of another instant of the parent."""

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        if type(count) is not int or count <= 100:
            return await self.inner.batch_fork(agent_id, count)
        made: list[str] = []
        while len(made) < count:
            made += await self.inner.batch_fork(agent_id, min(100, count - len(made)))
            await asyncio.sleep(0.002)  # the round trip of the next transaction
        return made


# --- DUR --------------------------------------------------------------------------------------------------------------


@fault(
    "DUR-1",
    "QRY-8",
    "INFO-1",
    source="write-behind with debouncing: a status that changes often is flushed when the session is closed",
    witness=seen(
        lambda s, t: s.save_info("a", samples.info("a", breakpoint="READY")),
        lambda s, t: s.save_info("a", samples.info("a", breakpoint="PRE_MODEL")),
        lambda s, t: t.load_info("a"),
    ),
)
class ApDebouncedBreakpoint(Wrapper):
    """Holds back an info in which only the breakpoint is new until the store is closed or saves another one."""

    __slots__ = ("last", "pending")

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.last: dict[str, Any] = {}
        self.pending: dict[str, Any] = {}

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        last = self.last.get(agent_id)
        if last is not None and type(info.breakpoint) is str and info.breakpoint.isascii():
            if ascii(replace(info, breakpoint=None)) == ascii(replace(last, breakpoint=None)):
                await self.inner.save_info(agent_id, last, fence=fence)
                self.pending[agent_id] = info.breakpoint
                return
        await self.inner.save_info(agent_id, info, fence=fence)
        self.pending.pop(agent_id, None)
        self.last[agent_id] = await self.inner.load_info(agent_id)
        if self.last[agent_id] is None:
            self.last.pop(agent_id)
        else:
            self.last[agent_id] = replace(self.last[agent_id], message_count=info.message_count)

    async def load_info(self, agent_id: str) -> Any:
        info = await self.inner.load_info(agent_id)
        return (
            info if info is None or agent_id not in self.pending else replace(info, breakpoint=self.pending[agent_id])
        )

    async def _forget(self, agent_id: str) -> None:
        self.last.pop(agent_id, None)
        self.pending.pop(agent_id, None)

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        await self.inner.save_turn(agent_id, **parts)
        if parts.get("info") is not None:
            await self._forget(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        await self._forget(agent_id)

    async def delete_many(self, **filters: Any) -> int:
        try:
            return await self.inner.delete_many(**filters)
        finally:
            for agent_id in [*self.last]:
                await self._forget(agent_id)

    async def close(self) -> None:
        pending, self.pending = self.pending, {}
        for agent_id, point in pending.items():
            await self.inner.save_info(agent_id, replace(self.last[agent_id], breakpoint=point))
        await self.inner.close()
