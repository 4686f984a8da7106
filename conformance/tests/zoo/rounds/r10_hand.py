"""A first store by a careful programmer: one thing wrong in each."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import posixpath
from datetime import UTC, datetime, timedelta
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, seen, talk
from kode_core.errors import InvalidArgumentError, StoreClosedError

T0 = samples.T0


# --- values


@fault(
    "VAL-3",
    "VAL-1",
    "TC-3",
    source="`record.result or None` in the one branch that builds the UPDATE",
    on=OnSqlite,
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(result=0), samples.tool_call(1, result=[])]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class HandFalsyUpsertResult(Wrapper):
    """Stores a falsy result of an upserted tool call as none."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        changed = [replace(r, result=r.result or None) for r in records]
        await self.inner.upsert_tool_call_records(agent_id, changed, fence=fence)


async def _mutates(ctx: Any) -> object:
    await ctx.store.save_snapshot("a", samples.snapshot())
    first = await ctx.store.load_snapshot("a", "sfp-1")
    first.metadata["reason"] = "changed"
    return await ctx.store.load_snapshot("a", "sfp-1")


@fault("VAL-1", source="an identity map as in an ORM's session: one object for one row", witness=_mutates)
class HandSharedSnapshot(Wrapper):
    """Gives one object of a snapshot to everybody who loads it unchanged, so that what a caller does to it is seen."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.known: dict[Any, Any] = {}

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        found = await self.inner.load_snapshot(agent_id, snapshot_id)
        if found is None:
            return None
        text = repr(found)
        old = self.known.get((agent_id, snapshot_id))
        if old is None or old[0] != text:
            old = self.known[agent_id, snapshot_id] = (text, found)
        return old[1]


@fault(
    "VAL-2",
    source="json.dumps takes a tuple for a list",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(input=("x", 1))]),
        lambda s: s.load_tool_call_records("a"),
        lambda s: s.save_tool_call_records("a", [samples.tool_call(result=("x", 1))]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class HandTupleInput(Wrapper):
    """Stores a tuple as the input of a tool call as a list."""

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        changed = [replace(r, input=list(r.input)) if type(r.input) is tuple else r for r in records]
        await self.inner.save_tool_call_records(agent_id, changed, fence=fence)


_HALF = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=T0, microseconds=500)


@fault(
    "VAL-5",
    "QRY-2",
    source="int(when.timestamp() * 1000) as the bound of every comparison",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1)]),
        lambda s: s.query_tool_calls(created_before=_HALF),
        lambda s: s.query_tool_calls(created_after=_HALF),
    ),
)
class HandCutsMicroseconds(Wrapper):
    """Cuts the bounds of a query of tool calls to whole milliseconds, downwards."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        for name in ("created_after", "created_before"):
            when = filters.get(name)
            if isinstance(when, datetime) and when.tzinfo is not None:
                filters[name] = when.replace(microsecond=when.microsecond // 1000 * 1000)
        return await self.inner.query_tool_calls(**filters)


# --- identity


@fault(
    "ID-1",
    source="len(agent_id) > 256 where the column is in bytes; the check stands in one helper for reads",
    witness=seen(lambda s: s.exists("é" * 129), lambda s: s.exists("e" * 257), lambda s: s.exists("é" * 128)),
)
class HandCountsCharacters(Wrapper):
    """Measures ids in characters in `exists`: one of 129 letters with accents is just not there."""

    async def exists(self, agent_id: str) -> bool:
        try:
            return bool(await self.inner.exists(agent_id))
        except InvalidArgumentError:
            if (
                isinstance(agent_id, str)
                and 0 < len(agent_id) <= 256
                and len(agent_id.encode("utf-8", "replace")) > 256
            ):
                return False
            raise


@fault(
    "ID-3",
    source="the check is in save_info, and save_turn writes its row itself",
    on=OnSqlite,
    witness=seen(
        lambda s: s.save_info("a", samples.info("b")),
        lambda s: s.save_turn("a", append=talk("x"), info=samples.info("b")),
        lambda s: s.load_messages("a"),
        lambda s: s.load_info("a"),
    ),
)
class HandTurnRenamesInfo(Wrapper):
    """Saves the info of another agent in a turn under the agent of the turn, without a word."""

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        info = parts.get("info")
        if info is not None and info.agent_id != agent_id:
            parts["info"] = replace(info, agent_id=agent_id)
        await self.inner.save_turn(agent_id, **parts)


@fault(
    "ID-4",
    source="a file's name that cannot be is a file that is not there",
    on=OnJson,
    witness=seen(
        lambda s: s.load_snapshot("a", ""), lambda s: s.load_snapshot("a", "x\0y"), lambda s: s.load_snapshot("a", "x")
    ),
)
class HandNoSuchSnapshotName(Wrapper):
    """Says that a snapshot is absent when its id is not one that a snapshot can have."""

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        try:
            return await self.inner.load_snapshot(agent_id, snapshot_id)
        except InvalidArgumentError:
            await self.inner.load_snapshot(agent_id, "x")
            if isinstance(snapshot_id, str):
                return None
            raise


# --- messages and tool calls


@fault(
    "MSG-6",
    "QRY-8",
    source="a cached row that save_messages and append_messages empty, and save_turn forgets to",
    witness=seen(
        lambda s: s.save_turn("a", append=talk("x"), info=samples.info("a")),
        lambda s: s.load_info("a"),
        lambda s: s.save_turn("a", append=talk("y")),
        lambda s: s.load_info("a"),
        lambda s: s.append_messages("a", talk("z")),
        lambda s: s.load_info("a"),
    ),
)
class HandTurnKeepsCachedInfo(Wrapper):
    """Gives an info that was loaded before a turn without info once more after it, with the old count."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.loaded: dict[str, Any] = {}
        self.stale: dict[str, Any] = {}

    async def load_info(self, agent_id: str) -> Any:
        if agent_id in self.stale:
            return self.stale[agent_id]
        found = await self.inner.load_info(agent_id)
        if found is not None:
            self.loaded[agent_id] = found
        return found

    def _forget(self, agent_id: str) -> None:
        self.loaded.pop(agent_id, None)
        self.stale.pop(agent_id, None)

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        await self.inner.save_turn(agent_id, **parts)
        if parts.get("info") is not None:
            self._forget(agent_id)
        elif agent_id in self.loaded:
            self.stale[agent_id] = self.loaded[agent_id]

    async def save_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        await self.inner.save_messages(agent_id, messages, fence=fence)
        self._forget(agent_id)

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        await self.inner.append_messages(agent_id, messages, fence=fence)
        self._forget(agent_id)

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        await self.inner.save_info(agent_id, info, fence=fence)
        self._forget(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        self._forget(agent_id)

    async def delete_many(self, **filters: Any) -> int:
        self.loaded.clear()
        self.stale.clear()
        return int(await self.inner.delete_many(**filters))


@fault(
    "MSG-8",
    "MED-1",
    source="an empty list is kept by removing the folder, in which another kind has its file",
    on=OnJson,
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media()]),
        lambda s: s.save_tool_call_records("a", [samples.tool_call()]),
        lambda s: s.load_media_cache("a"),
        lambda s: s.save_tool_call_records("a", []),
        lambda s: s.load_media_cache("a"),
    ),
)
class HandEmptyCallsTakeMedia(Wrapper):
    """Empties the media cache when an empty list of tool calls is saved."""

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.save_tool_call_records(agent_id, records, fence=fence)
        if not records:
            await self.inner.save_media_cache(agent_id, [], fence=fence)


@fault(
    "TC-3",
    source="a batch is made unique before the upsert, as PostgreSQL's ON CONFLICT wants; setdefault keeps the first",
    on=OnSqlite,
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(), samples.tool_call(state="FAILED")]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class HandFirstOfBatchStays(Wrapper):
    """Keeps the earlier of two records of one id in a call of upsert."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        unique: dict[Any, Any] = {}
        for record in records:
            unique.setdefault(record.id, record)
        await self.inner.upsert_tool_call_records(agent_id, list(unique.values()), fence=fence)


@fault(
    "TC-3",
    "TC-2",
    source="next(i for i, r in enumerate(rows) if r.id == id): the first of several",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(), samples.tool_call(1), samples.tool_call()]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(state="FAILED")]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class HandReplacesFirstTwin(Wrapper):
    """Replaces the first of the stored records of an id, when one record is upserted and its id is stored twice."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if len(records) == 1:
            stored = await self.inner.load_tool_call_records(agent_id)
            places = [i for i, r in enumerate(stored) if r.id == records[0].id]
            if len(places) > 1:
                stored[places[0]] = records[0]
                await self.inner.save_tool_call_records(agent_id, stored, fence=fence)
                return
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)


# --- events


@fault(
    "EVT-4",
    "EVT-1",
    "VAL-1",
    source="Python's ==, to which 1 and True and 1.0 are one",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, n=1)),
        lambda s: s.append_event("a", samples.event(1, n=True)),
        lambda s: s.append_event("a", samples.event(1, n=1.0)),
        lambda s: s.read_events("a"),
    ),
)
class HandEqualIsIdentical(Wrapper):
    """Takes an event for a repetition when its data only equal those of a stored one, as 1 and True do."""

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        try:
            async for old in self.inner.read_events(agent_id):
                if old == timeline:
                    timeline = replace(timeline, event=old.event)
                    break
        except AttributeError:
            pass
        return int(await self.inner.append_event(agent_id, timeline, fence=fence))


@fault(
    "EVT-5",
    source="`if after_offset:` where 0 is a value",
    witness=seen(
        lambda s: s.append_events("a", happened(5, 3, 4)),
        lambda s: s.read_events("a", after_offset=0),
        lambda s: s.read_events("a", after_offset=1),
    ),
)
class HandZeroOffsetIsNone(Wrapper):
    """Reads by seq after offset 0."""

    def read_events(self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None) -> Any:
        if type(after_offset) is int:
            after_offset = after_offset or None
        return self.inner.read_events(agent_id, since=since, after_offset=after_offset, channel=channel)


async def _follows(ctx: Any) -> object:
    s, found = ctx.store, []
    await s.append_event("a", samples.event(1))

    async def read() -> None:
        async for event in s.follow_events("a", channel="progress"):
            found.append(event.bookmark.seq)
            if event.bookmark.seq == 3:
                return

    task = asyncio.create_task(read())
    await asyncio.sleep(0.3)
    await s.append_events("a", [samples.event(2, "control"), samples.event(3)])
    await asyncio.wait_for(task, 4)
    return found


@fault("EVT-7", source="the filter is in the SELECT of the backlog, and not in the handler of NOTIFY", witness=_follows)
class HandLiveUnfiltered(Wrapper):
    """Follows every channel once what was stored at the beginning has been given."""

    def follow_events(self, agent_id: str, *, since: Any = None, after_offset: int = 0, channel: Any = None) -> Any:
        if channel not in ("progress", "control", "monitor"):
            return self.inner.follow_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        return self._follow(agent_id, since, after_offset, channel)

    async def _follow(self, agent_id: str, since: Any, after_offset: int, channel: Any) -> Any:
        last = after_offset
        async for event in self.inner.read_events(agent_id, after_offset=after_offset):
            last = event.offset
        async for event in self.inner.follow_events(agent_id, since=since, after_offset=after_offset):
            if event.offset > last or event.event.channel == channel:
                yield event


# --- the other kinds


@fault(
    "HIS-1",
    source="COLLATE NOCASE on the id's column",
    on=OnSqlite,
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("b")),
        lambda s: s.save_compression_record("a", samples.compression("C")),
        lambda s: s.load_compression_records("a"),
    ),
)
class HandCompressionCollation(Wrapper):
    """Orders compression records of one timestamp without regard to case."""

    async def load_compression_records(self, agent_id: str) -> Any:
        found = await self.inner.load_compression_records(agent_id)
        return sorted(found, key=lambda r: (r.timestamp, r.id.lower()))


@fault(
    "HIS-2",
    "ID-4",
    "VAL-1",
    source="posixpath.normpath, so that no path leaves the folder",
    on=OnJson,
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("x//y", content="1")),
        lambda s: s.save_recovered_file("a", samples.recovered("x/y", content="2")),
        lambda s: s.load_recovered_files("a"),
    ),
)
class HandNormalisesPath(Wrapper):
    """Normalises the path of a recovered file, so that two spellings are one file."""

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        if isinstance(file.path, str) and file.path:
            file = replace(file, path=posixpath.normpath(file.path))
        await self.inner.save_recovered_file(agent_id, file, fence=fence)


@fault(
    "MED-1",
    source="ORDER BY created_at, as there is no column of positions",
    on=OnSqlite,
    witness=seen(
        lambda s: s.save_media_cache("a", [replace(samples.media("y"), created_at=T0 + 1), samples.media("x")]),
        lambda s: s.load_media_cache("a"),
    ),
)
class HandMediaByTime(Wrapper):
    """Gives the media cache in the order of the records' own times."""

    async def load_media_cache(self, agent_id: str) -> Any:
        return sorted(await self.inner.load_media_cache(agent_id), key=lambda r: r.created_at or 0)


@fault(
    "SNAP-1",
    source="sorted(key=(created_at, id), reverse=True)",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("p")),
        lambda s: s.save_snapshot("a", samples.snapshot("q")),
        lambda s: s.list_snapshots("a"),
    ),
)
class HandSnapshotsBothDescend(Wrapper):
    """Lists snapshots of one time by id descending."""

    async def list_snapshots(self, agent_id: str) -> Any:
        return sorted(await self.inner.list_snapshots(agent_id), key=lambda r: (r.created_at, r.id), reverse=True)


async def _touches(ctx: Any) -> object:
    s, times = ctx.store, []
    await s.save_info("a", samples.info("a"))
    for _ in range(3):
        await s.save_tool_call_records("a", [samples.tool_call()])
        times.append((await s.query_sessions(agent_id="a"))[0].updated_at)
        await asyncio.sleep(0.02)
    return [a < b for a, b in itertools.pairwise(times)]


@fault("INFO-2", source="a comparison with the stored list that spares an unneeded write", witness=_touches)
class HandSameCallsNoTouch(Wrapper):
    """Does nothing when the saved tool calls are the stored ones, so that `updated_at` stays."""

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if fence is None and records and await self.inner.load_tool_call_records(agent_id) == list(records):
            return
        await self.inner.save_tool_call_records(agent_id, records, fence=fence)


# --- lifecycle


@fault(
    "LIFE-2",
    "ID-1",
    source="the range prefix <= id < prefix + '\\uffff', beyond which the astral characters are",
    on=OnSqlite,
    witness=seen(
        lambda s: s.save_info("a\U0001f600", samples.info("a\U0001f600")),
        lambda s: s.save_info("ab", samples.info("ab")),
        lambda s: s.list("a"),
        lambda s: s.list(),
    ),
)
class HandPrefixUpperBound(Wrapper):
    """Leaves out of a list with a prefix the ids that go on with an astral character."""

    async def list(self, prefix: str = "") -> Any:
        found = await self.inner.list(prefix)
        return [i for i in found if i < prefix + "\uffff"] if prefix else found


@fault(
    "LIFE-3",
    "LIFE-4",
    source="`if not await self.exists(id): return` as the first line of delete",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x")),
        lambda s: s.save_messages("a", talk("x")),
        lambda s: s.delete("a"),
        lambda s: s.load_todos("a"),
        lambda s: s.load_messages("a"),
    ),
)
class HandDeletesKnownOnly(Wrapper):
    """Deletes nothing of an agent that has no info."""

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        if await self.inner.exists(agent_id):
            await self.inner.delete(agent_id, fence=fence)


async def _purges(ctx: Any) -> object:
    s = ctx.store
    for i in range(101):
        await s.save_info(f"a{i}", samples.info(f"a{i}"))
    return [await s.delete_many(template_id="assistant"), len(await s.list())]


@fault("LIFE-5", source="the sessions are found with query_sessions, whose limit is 100", witness=_purges)
class HandDeletesFirstPage(Wrapper):
    """Deletes the first hundred of the sessions that match."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        found = await self.inner.query_sessions(**filters) if filters else ()
        if len(found) < 100 or found.next_cursor is None:
            return int(await self.inner.delete_many(progress=progress, **filters))
        for done, session in enumerate(found, 1):
            await self.inner.delete(session.agent_id)
            if progress is not None:
                progress(done, len(found))
        return len(found)


# --- queries


@fault(
    "QRY-2",
    "QRY-6",
    source="is_error = 0 in SQL, which NULL is not",
    on=OnSqlite,
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(), samples.tool_call(1, is_error=None)]),
        lambda s: s.iter_tool_calls(is_error=False),
        lambda s: s.query_tool_calls(is_error=False),
    ),
)
class HandNullIsNotFalse(Wrapper):
    """Leaves tool calls without `is_error` out of the iteration over those that are no errors."""

    def iter_tool_calls(self, **filters: Any) -> Any:
        found = self.inner.iter_tool_calls(**filters)
        if filters.get("is_error") is not False:
            return found
        return (call async for call in found if call.is_error is not None)


@fault(
    "QRY-3",
    "QRY-6",
    source="an iterator that pages by its own order and forgets the caller's",
    witness=seen(
        lambda s: s.save_messages("a", talk("x", "y", "z")),
        lambda s: s_texts(s.iter_messages(order="asc")),
        lambda s: s_texts(s.iter_messages()),
    ),
)
class HandIterForgetsOrder(Wrapper):
    """Iterates over messages newest first, whatever order is asked for."""

    def iter_messages(self, **filters: Any) -> Any:
        if filters.get("order") == "asc":
            del filters["order"]
        return self.inner.iter_messages(**filters)


async def s_texts(found: Any) -> list[str]:
    return [m.text async for m in found]


@fault(
    "QRY-7",
    "TC-2",
    source="COUNT(DISTINCT id)",
    on=OnSqlite,
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(), samples.tool_call()]),
        lambda s: s.aggregate_stats("a"),
    ),
)
class HandCountsDistinctIds(Wrapper):
    """Counts in the total of tool calls each id once."""

    async def aggregate_stats(self, agent_id: str) -> Any:
        stats = await self.inner.aggregate_stats(agent_id)
        ids = {r.id for r in await self.inner.load_tool_call_records(agent_id)}
        return replace(stats, total_tool_calls=len(ids))


# --- operations, locks, forks


async def _counts(ctx: Any) -> object:
    s = ctx.store
    await s.save_todos("a", samples.todos("x"))
    with contextlib.suppress(InvalidArgumentError):
        await s.save_messages("", [])
    found = (await s.get_metrics()).operations
    return [found.saves, found.errors]


@fault("OPS-3", source="a `finally` that counts the call, and an `except` that counts the error", witness=_counts)
class HandCountsFailuresTwice(Wrapper):
    """Counts a save that was refused or failed as an error and as a save."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.failed = 0

    async def save_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.save_messages(agent_id, messages, fence=fence)
        except Exception:
            self.failed += 1
            raise

    async def get_metrics(self) -> Any:
        found = await self.inner.get_metrics()
        operations = replace(found.operations, saves=found.operations.saves + self.failed)
        return replace(found, operations=operations)


@fault(
    "OPS-5",
    source="a reader that takes every failure to read the last row for an empty log",
    witness=seen(
        lambda s: s.append_events("a", happened(1)),
        lambda s: s.close(),
        lambda s: s.last_bookmark("a"),
        lambda s: s.list(),
    ),
)
class HandClosedHasNoBookmark(Wrapper):
    """Gives no bookmark, and no error, after the store was closed."""

    async def last_bookmark(self, agent_id: str) -> Any:
        try:
            return await self.inner.last_bookmark(agent_id)
        except StoreClosedError:
            return None


async def _closed_health(ctx: Any) -> object:
    await ctx.store.close()
    try:
        return (await ctx.store.health_check()).healthy
    except Exception as exc:
        return type(exc).__name__


@fault(
    "OPS-1",
    "OPS-5",
    source="a decorator for `closed` on every public method",
    witness=_closed_health,
    errors=True,
)
class HandHealthOfClosedRaises(Wrapper):
    """Raises StoreClosedError from the health check of a closed store."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.closed = False

    async def close(self) -> None:
        self.closed = True
        await self.inner.close()

    async def health_check(self) -> Any:
        if self.closed:
            raise StoreClosedError("the store is closed")
        return await self.inner.health_check()


async def _waits(ctx: Any) -> object:
    first = await ctx.store.acquire_agent_lock("a")

    async def ask() -> str:
        try:
            lease = await ctx.store.acquire_agent_lock("a", 30_000, 3_000)
        except Exception as exc:
            return type(exc).__name__
        await lease.release()
        return "held"

    task = asyncio.create_task(ask())
    await asyncio.sleep(0.2)
    await first.release()
    return await task


@fault("LOCK-2", source="an argument that is not passed on", witness=_waits)
class HandNeverWaitsForLock(Wrapper):
    """Refuses a lock that is held at once, however long the caller would wait."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        if type(wait_ms) is int and wait_ms > 0:
            wait_ms = 0
        return self.inner.acquire_agent_lock(agent_id, ttl_ms, wait_ms)


async def _fenced(ctx: Any) -> object:
    s = ctx.store
    lease = await s.acquire_agent_lock("a")
    await lease.release()
    try:
        await s.save_history_window("a", samples.window(), fence=lease)
    except Exception as exc:
        return [type(exc).__name__, await s.load_history_windows("a")]
    return [await s.load_history_windows("a")]


@fault("LOCK-5", source="a keyword argument that one of a dozen methods alike does not pass on", witness=_fenced)
class HandWindowUnfenced(Wrapper):
    """Saves a history window whatever became of the lease that was given."""

    async def save_history_window(self, agent_id: str, window: Any, *, fence: Any = None) -> None:
        await self.inner.save_history_window(agent_id, window)


async def _forks(ctx: Any) -> object:
    s = ctx.store
    await s.save_info("a", samples.info("a"))
    await s.save_media_cache("a", [samples.media()])
    ids = await s.batch_fork("a", 2)
    return [await s.load_media_cache(i) for i in ids]


@fault("FORK-1", source="a list of tables to copy that is older than one of the tables", witness=_forks)
class HandForkWithoutMedia(Wrapper):
    """Forks an agent without its media cache."""

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        ids = await self.inner.batch_fork(agent_id, count)
        for new in ids:
            await self.inner.save_media_cache(new, [])
        return ids
