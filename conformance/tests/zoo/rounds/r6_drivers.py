"""Stores on databases, queues, search engines and object stores, each with one thing wrong that comes from these."""

from __future__ import annotations

import asyncio
import posixpath
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, seen, talk, the
from kode_core.batch import Applied, Batch, DocKind, DocWrite, ListKind
from kode_core.errors import InvalidArgumentError
from kode_core.layers import Layer
from kode_core.model import AgentInfo, Bookmark, TodoSnapshot, ToolCallRecord

T0 = samples.T0


async def tried(call: Any) -> object:
    try:
        return await call
    except Exception as exc:
        return type(exc).__name__


def are_lists(*values: object) -> bool:
    return all(isinstance(value, (list, tuple)) for value in values)


# --- VAL --------------------------------------------------------------------------------------------------------------


def _through_lua(value: Any) -> Any:
    if type(value) is list:
        return [_through_lua(item) for item in value] or {}
    if type(value) is dict:
        return {key: _through_lua(item) for key, item in value.items()}
    return value


@fault(
    "VAL-1",
    "TC-3",
    source="Redis: a script that merges records with cjson, for which an empty Lua table is an object",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(result={"rows": [], "n": [[1], []]})]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class MergesWithCjson(Wrapper):
    """Makes empty lists in the results of tool calls that are upserted, not of those that are saved, empty objects."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if are_lists(records) and all(type(record) is ToolCallRecord for record in records):
            with suppress(RecursionError):
                records = [record.replace(result=_through_lua(record.result)) for record in records]
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)


def _bson_dates(filters: dict[str, Any]) -> dict[str, Any]:
    def milliseconds(value: Any) -> Any:
        if isinstance(value, datetime) and value.utcoffset() is not None:
            return (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
        return value

    return {key: milliseconds(value) for key, value in filters.items()}


def _moment(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=T0, microseconds=microseconds)


@fault(
    "VAL-5",
    "QRY-2",
    source="MongoDB: PyMongo cuts datetimes to the milliseconds that a BSON date has",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1)]),
        lambda s: the("id", s.query_tool_calls(created_after=_moment(500))),
        lambda s: the("id", s.query_tool_calls(created_before=_moment(1500))),
    ),
)
class CutsFiltersToMilliseconds(Wrapper):
    """Cuts the microseconds off the datetimes of filters of tool calls, so that after 0.5 ms finds what is at 0."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await self.inner.query_tool_calls(**_bson_dates(filters))

    def iter_tool_calls(self, **filters: Any) -> Any:
        return self.inner.iter_tool_calls(**_bson_dates(filters))


# --- ID ---------------------------------------------------------------------------------------------------------------


@fault(
    "ID-2",
    "LOCK-1",
    "OPS-13",
    source="MySQL: the names of GET_LOCK do not tell upper from lower case",
    errors=True,
    witness=seen(
        lambda s: s.acquire_agent_lock("Agent-A"),
        lambda s: s.acquire_agent_lock("agent-a"),
    ),
)
class LocksWithoutCase(MemoryLayer):
    """Refuses the lock of an agent while an agent is locked whose id differs only in case."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        now = time.monotonic()
        for other, (_, until) in self.space.leases.items():
            if other != agent_id and other.lower() == agent_id.lower() and until > now:
                return None
        return await super().acquire_lease(agent_id, owner, ttl_ms)


@fault(
    "ID-4",
    "HIS-1",
    source="MySQL: a unique index on the first 768 characters of a long key, and REPLACE INTO",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("c" * 1000 + "1")),
        lambda s: s.save_compression_record("a", samples.compression("c" * 1000 + "2")),
        lambda s: the("id", s.load_compression_records("a")),
    ),
)
class IndexesPrefixesOfIds(Layer):
    """Replaces the compression record whose id has the same first 768 characters."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        changed = []
        for batch in batches:
            gone = []
            for write in batch.docs:
                if write.kind is DocKind.COMPRESSIONS and write.doc is not None and len(write.key) > 768:
                    for doc in await self.inner.docs(batch.agent_id, DocKind.COMPRESSIONS):
                        if doc.key[:768] == write.key[:768] and doc.key != write.key:
                            gone.append(DocWrite(DocKind.COMPRESSIONS, doc.key, None))
            changed.append(replace(batch, docs=(*gone, *batch.docs)) if gone else batch)
        return await super().commit(changed)


# --- MSG --------------------------------------------------------------------------------------------------------------


async def _bulk(ctx: Context) -> object:
    store = ctx.store
    await store.save_messages("a", samples.messages(3))
    first = await store.query_messages(agent_id="a", order="asc", limit=1)
    await asyncio.sleep(0.02)
    await store.save_messages("a", samples.messages(1500))
    again = await store.query_messages(agent_id="a", order="asc", limit=1)
    return first[0].created_at == again[0].created_at


@fault(
    "MSG-4",
    source="SQL Server: more than 1,000 rows do not fit one VALUES, and go through a bulk load into a new table",
    witness=_bulk,
)
class StampsWhatItLoadsInBulk(MemoryLayer):
    """Gives all messages of the list the present time when more than 1,000 of them are written at once."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            write = batch.messages
            if write is None or not isinstance(outcome, Applied) or len(write.put) + len(write.append) <= 1000:
                continue
            rows = self.space.state(batch.agent_id).lists[ListKind.MESSAGES]
            latest = max(row.created_at for row in rows.rows)
            rows.rows = [replace(row, created_at=latest) for row in rows.rows]
        return outcomes


@fault(
    "MSG-6",
    source="Elasticsearch: hits.total stops at 10,000 without track_total_hits",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.append_messages("a", samples.messages(10_001)),
        lambda s: s.load_info("a"),
    ),
)
class CountsTenThousandHits(Wrapper):
    """Gives 10,000 as the number of messages in the info of an agent that has more."""

    async def load_info(self, agent_id: str) -> Any:
        info = await self.inner.load_info(agent_id)
        return None if info is None else info.replace(message_count=min(info.message_count, 10_000))


# --- TC, TURN ---------------------------------------------------------------------------------------------------------


@fault(
    "TC-3",
    source="PostgreSQL: ON CONFLICT cannot change a row twice, so the rows of a statement are made distinct before",
    witness=seen(
        lambda s: s.save_turn(
            "a", upsert_tool_calls=[samples.tool_call(0, state="PENDING"), samples.tool_call(0, state="COMPLETED")]
        ),
        lambda s: the("state", s.load_tool_call_records("a")),
    ),
)
class UpsertsDistinctRows(Wrapper):
    """Keeps the earlier of two records with one id that a turn upserts."""

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        records = given.get("upsert_tool_calls", ())
        if are_lists(records) and all(type(r) is ToolCallRecord and type(r.id) is str for r in records):
            first: dict[str, Any] = {}
            for record in records:
                first.setdefault(record.id, record)
            given["upsert_tool_calls"] = list(first.values())
        await self.inner.save_turn(agent_id, **given)


@fault(
    "TURN-1",
    "DUR-3",
    "VAL-2",
    source="DynamoDB: TransactWriteItems takes 100 items",
    witness=seen(
        lambda s: s.save_turn("a", append=samples.messages(100), events=[samples.event(1, x=float("nan"))]),
        lambda s: s.load_messages("a"),
    ),
)
class CommitsAHundredItems(Wrapper):
    """Writes the events of a turn in a transaction of their own when the turn has more than 100 records."""

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        kinds = ("append", "messages", "tool_calls", "upsert_tool_calls", "events")
        parts = [given[kind] for kind in kinds if given.get(kind) is not None]
        events = given.get("events", ())
        if are_lists(*parts, events) and events and sum(map(len, parts)) > 100 and len(parts) > 1:
            await self.inner.save_turn(agent_id, **{**given, "events": ()})
            await self.inner.append_events(agent_id, events, fence=given.get("fence"))
        else:
            await self.inner.save_turn(agent_id, **given)


@fault(
    "DUR-3",
    "TC-3",
    "VAL-2",
    source="psycopg2: execute_values sends pages of 100 rows, and the connection is on autocommit",
    witness=seen(
        lambda s: s.upsert_tool_call_records(
            "a", [*map(samples.tool_call, range(100)), samples.tool_call(100, result=float("inf"))]
        ),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class UpsertsInPages(Wrapper):
    """Upserts more than 100 tool call records in pages that are committed one by one."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        pages = [records]
        if are_lists(records) and len(records) > 100:
            pages = [records[i : i + 100] for i in range(0, len(records), 100)]
        for page in pages:
            await self.inner.upsert_tool_call_records(agent_id, page, fence=fence)


# --- EVT --------------------------------------------------------------------------------------------------------------


async def _offsets(ctx: Context) -> object:
    first = await ctx.store.append_events("a", happened(1, 2, 3))
    await ctx.store.delete("a")
    store = await ctx.reopen()
    return await store.append_event("a", samples.event(4)) > max(first)


@fault(
    "EVT-2",
    "LIFE-3",
    source="MySQL before 8.0: InnoDB sets AUTO_INCREMENT to the highest value that is left when the server restarts",
    witness=_offsets,
)
class ForgetsOffsetsAtRestart(MemoryLayer):
    """Gives out the offsets of a deleted agent again once the store was closed and opened."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        space: Any = self.space
        space.counter = max(space.counter, getattr(space, "tokens", 0))
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        if token is not None:
            space.tokens = token
        return token

    async def close(self) -> None:
        self.space.counter = 0
        await super().close()


@fault(
    "EVT-5",
    source="DynamoDB: a FilterExpression filters after the page was read, and an empty page is taken for the end",
    witness=seen(
        lambda s: s.append_events("a", samples.events(2500)),
        lambda s: s.append_event("a", samples.event(9999, "control")),
        lambda s: s.read_events("a", channel="control"),
    ),
)
class StopsAtAnEmptyPage(Wrapper):
    """Stops reading the events of a channel where none of the next 1,000 events is of that channel."""

    async def read_events(
        self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None
    ) -> Any:
        if channel not in ("progress", "control", "monitor"):
            async for event in self.inner.read_events(
                agent_id, since=since, after_offset=after_offset, channel=channel
            ):
                yield event
            return
        read = found = 0
        async for event in self.inner.read_events(agent_id, since=since, after_offset=after_offset):
            if event.event.channel == channel:
                found += 1
                yield event
            read += 1
            if read % 1000 == 0:
                if not found:
                    return
                found = 0


async def _followed(ctx: Context) -> object:
    store = ctx.store
    await store.append_events("a", happened(1, 2, 6))
    got = []

    async def follow() -> None:
        async for event in store.follow_events("a", since=Bookmark(5, T0)):
            got.append(event.bookmark.seq)
            if event.bookmark.seq == 7:
                return

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.2)
    await store.append_events("a", happened(3, 7))
    await asyncio.wait_for(task, 4)
    return got


@fault(
    "EVT-7",
    source="MongoDB: the query for what is stored has the filter, the pipeline of the change stream does not",
    witness=_followed,
)
class FollowsWithoutSince(Wrapper):
    """Applies ``since`` of a follower to the events that were stored at its start, and not to those that come later."""

    async def follow_events(
        self, agent_id: str, *, since: Any = None, after_offset: int = 0, channel: Any = None
    ) -> Any:
        if not isinstance(since, Bookmark):
            async for event in self.inner.follow_events(
                agent_id, since=since, after_offset=after_offset, channel=channel
            ):
                yield event
            return
        stored = 0
        async for event in self.inner.read_events(agent_id, after_offset=after_offset):
            stored = event.offset
        async for event in self.inner.follow_events(agent_id, after_offset=after_offset, channel=channel):
            if event.offset > stored or event.bookmark.seq > since.seq:
                yield event


# --- TODO, HIS --------------------------------------------------------------------------------------------------------


@fault(
    "TODO-1",
    "TURN-1",
    "VAL-3",
    source="DynamoDB: no empty set can be stored, so attributes that are empty are left out of the item",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x")),
        lambda s: s.save_turn("a", append=talk("done"), todos=samples.todos()),
        lambda s: s.load_todos("a"),
    ),
)
class TurnsLeaveEmptyTodosOut(Wrapper):
    """Keeps the old todos when a turn brings an empty list of todos."""

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        todos = given.get("todos")
        if type(todos) is TodoSnapshot and are_lists(todos.todos) and not todos.todos:
            given["todos"] = None
        await self.inner.save_turn(agent_id, **given)


@fault(
    "HIS-1",
    source="PostgreSQL: ORDER BY a text column of a database with the collation en_US.UTF-8",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("win-B")),
        lambda s: s.save_history_window("a", samples.window("win-a")),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class CollatesWindows(Wrapper):
    """Orders history windows with one timestamp by id without regard to case."""

    async def load_history_windows(self, agent_id: str) -> Any:
        found = await self.inner.load_history_windows(agent_id)
        return sorted(found, key=lambda window: (window.timestamp, window.id.lower(), window.id))


@fault(
    "HIS-2",
    "ID-4",
    "ID-1",
    source="MinIO: object names are paths, in which // is / and ./ is nothing",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("x//y.md")),
        lambda s: s.save_recovered_file("a", samples.recovered("x/y.md")),
        lambda s: s.load_recovered_files("a"),
    ),
)
class CleansPaths(Wrapper):
    """Gives only one of the recovered files of a time whose paths are the same once they are cleaned."""

    async def load_recovered_files(self, agent_id: str) -> Any:
        found = {}
        for file in await self.inner.load_recovered_files(agent_id):
            found[posixpath.normpath(file.path), file.timestamp] = file
        return list(found.values())


# --- MED, SNAP, INFO --------------------------------------------------------------------------------------------------


@fault(
    "MED-1",
    "VAL-4",
    source="S3: ListObjectsV2 gives 1,000 keys, and IsTruncated is not looked at",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media(str(i)) for i in range(1001)]),
        lambda s: s.load_media_cache("a"),
    ),
)
class ListsAThousandMedia(Wrapper):
    """Gives the first 1,000 records of a media cache."""

    async def load_media_cache(self, agent_id: str) -> Any:
        return (await self.inner.load_media_cache(agent_id))[:1000]


@fault(
    "SNAP-1",
    "INFO-3",
    "ID-4",
    source="S3: the first object of a listing with the prefix agent/snapshot-id",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("sfp-10")),
        lambda s: s.load_snapshot("a", "sfp-1"),
    ),
)
class FindsSnapshotsByPrefix(Wrapper):
    """Gives for a snapshot that is not there one whose id begins with the id that was asked for."""

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        found = await self.inner.load_snapshot(agent_id, snapshot_id)
        if found is None:
            others = await self.inner.list_snapshots(agent_id)
            found = min((o for o in others if o.id.startswith(snapshot_id)), key=lambda o: o.id, default=None)
        return found


async def _touched(ctx: Context) -> object:
    store = ctx.store
    await store.save_info("a", samples.info("a"))
    before = await the("updated_at", store.query_sessions())
    await asyncio.sleep(0.01)
    await store.save_snapshot("a", samples.snapshot())
    return before == await the("updated_at", store.query_sessions())


@fault(
    "INFO-2",
    "MSG-8",
    source="Rails: belongs_to :agent, touch: true",
    witness=_touched,
)
class SnapshotsTouchSessions(MemoryLayer):
    """Moves ``updated_at`` of the session forward with each save of a snapshot, too."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            is_saved = any(write.kind is DocKind.SNAPSHOTS and write.doc is not None for write in batch.docs)
            state = self.space.state(batch.agent_id)
            if is_saved and isinstance(outcome, Applied) and not batch.is_touching and state.info is not None:
                state.updated_at = max(batch.now, state.updated_at + 1)
        return outcomes


@fault(
    "INFO-1",
    "VAL-3",
    source="PostgreSQL: ON CONFLICT DO UPDATE SET breakpoint = COALESCE(EXCLUDED.breakpoint, agents.breakpoint)",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_info("a", samples.info("a", breakpoint=None)),
        lambda s: s.load_info("a"),
    ),
)
class CoalescesInfo(Wrapper):
    """Keeps the old breakpoint when an info without one is saved."""

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        if type(info) is AgentInfo and info.breakpoint is None and info.agent_id == agent_id:
            with suppress(InvalidArgumentError):
                old = await self.inner.load_info(agent_id)
                if old is not None:
                    info = info.replace(breakpoint=old.breakpoint)
        await self.inner.save_info(agent_id, info, fence=fence)


# --- LIFE -------------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-2",
    "ID-1",
    source="Firestore: the idiom startAt(prefix), endAt(prefix + '\\uf8ff')",
    witness=seen(
        lambda s: s.save_info("team-\U0001f600", samples.info("team-\U0001f600")),
        lambda s: s.save_info("team-x", samples.info("team-x")),
        lambda s: s.list("team-"),
    ),
)
class ListsToThePrivateUseArea(Wrapper):
    """Leaves out of the ids with a prefix those that go on with a character beyond U+F8FF, as an emoji."""

    async def list(self, prefix: str = "") -> Any:
        found = await self.inner.list(prefix)
        return [agent_id for agent_id in found if agent_id <= prefix + "\uf8ff"] if prefix else found


async def _many_snapshots(ctx: Context) -> object:
    for i in range(1005):
        await ctx.store.save_snapshot("a", samples.snapshot(f"sfp-{i:04}", count=1))
    await ctx.store.delete("a")
    return [snapshot.id for snapshot in await ctx.store.list_snapshots("a")]


@fault(
    "LIFE-3",
    "LIFE-4",
    source="S3: DeleteObjects takes 1,000 keys, and is called once",
    witness=_many_snapshots,
)
class DeletesAThousandKeys(MemoryLayer):
    """Leaves what an agent has beyond 1,000 snapshots, windows, files and other documents when it is deleted."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        space = self.space
        kept = {b.agent_id: dict(list(space.state(b.agent_id).docs.items())[1000:]) for b in batches if b.delete}
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete and isinstance(outcome, Applied) and kept[batch.agent_id]:
                state = space.state(batch.agent_id)
                state.docs.update(kept[batch.agent_id])
                space.states[batch.agent_id] = state
        return outcomes


# --- QRY --------------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    "QRY-6",
    source="Elasticsearch: a keyword field with the usual ignore_above of 256",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(name="n" * 300)]),
        lambda s: s.query_tool_calls(tool_name="n" * 300),
    ),
)
class IgnoresAbove256(Layer):
    """Finds no tool call by the name of its tool when the name is longer than 256 characters."""

    async def find_rows(self, query: Any) -> Any:
        if any(column == "tool_name" and len(str(value)) > 256 for column, value in query.where):
            return []
        return await super().find_rows(query)


@fault(
    "QRY-4",
    source="Elasticsearch: index.max_result_window, from + size must be at most 10,000",
    errors=True,
    witness=seen(
        lambda s: s.save_messages("a", talk("x")),
        lambda s: s.query_messages(agent_id="a", limit=100, offset=9_901),
        lambda s: s.query_messages(agent_id="a", limit=100, offset=9_900),
    ),
)
class HasAResultWindow(Wrapper):
    """Refuses queries of messages whose offset and limit are more than 10,000 together."""

    async def query_messages(self, **filters: Any) -> Any:
        limit, offset = filters.get("limit", 100), filters.get("offset", 0)
        if type(limit) is int and type(offset) is int and 0 <= limit <= 10_000 < limit + offset:
            raise InvalidArgumentError("result window is too large: offset and limit must be at most 10000 together")
        return await self.inner.query_messages(**filters)


# --- OPS --------------------------------------------------------------------------------------------------------------


async def _counted(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("x"))
    first = (await ctx.store.get_metrics()).operations.saves
    await ctx.store.save_messages("a", talk("x", "y"))
    return first, (await ctx.store.get_metrics()).operations.saves


@fault("OPS-3", source="StatsD: counters are set back to zero each time they are flushed", witness=_counted)
class FlushesCounters(Wrapper):
    """Counts in the metrics what happened since they were last asked for."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.flushed: dict[str, int] = {}

    async def get_metrics(self) -> Any:
        metrics = await self.inner.get_metrics()
        names = ("saves", "loads", "queries", "deletes", "errors")
        now = {name: getattr(metrics.operations, name) for name in names}
        since = {name: count - self.flushed.get(name, 0) for name, count in now.items()}
        self.flushed = now
        return replace(metrics, operations=replace(metrics.operations, **since))


async def _after_close(ctx: Context) -> object:
    store = await ctx.another()
    await store.save_messages("a", talk("x"))
    await store.close()

    async def read() -> object:
        return [message async for message in store.iter_messages()]

    return await tried(read())


@fault(
    "OPS-5",
    source="aiomysql: a server-side cursor of a closed connection fetches nothing more",
    witness=_after_close,
)
class IteratesOverAClosedStore(Wrapper):
    """Gives nothing instead of an error when messages or tool calls are iterated over after the store was closed."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.is_closed = False

    async def close(self) -> None:
        self.is_closed = True
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def iter_messages(self, **filters: Any) -> Any:
        if not self.is_closed:
            async for message in self.inner.iter_messages(**filters):
                yield message

    async def iter_tool_calls(self, **filters: Any) -> Any:
        if not self.is_closed:
            async for call in self.inner.iter_tool_calls(**filters):
                yield call


# --- LOCK -------------------------------------------------------------------------------------------------------------


async def _waits(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    waiting = asyncio.create_task(tried(_token(ctx.store.acquire_agent_lock("a", wait_ms=900))))
    await asyncio.sleep(0.2)
    await lease.release()
    return await waiting


async def _token(lock: Any) -> object:
    lease = await lock
    await lease.release()
    return "taken"


@fault(
    "LOCK-2",
    source="MySQL: the timeout of GET_LOCK is given in whole seconds",
    errors=True,
    witness=_waits,
)
class WaitsWholeSeconds(Wrapper):
    """Waits for a lock for the whole seconds in ``wait_ms``, with less than one not at all."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        if type(wait_ms) is int and wait_ms > 0:
            wait_ms = wait_ms // 1000 * 1000
        return self.inner.acquire_agent_lock(agent_id, ttl_ms, wait_ms)


async def _renewed_late(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=50)
    await asyncio.sleep(0.15)
    return await tried(lease.renew())


@fault(
    "LOCK-3",
    "LOCK-5",
    source="PostgreSQL: UPDATE locks SET expires = ... WHERE agent = $1 AND owner = $2, as the row is still there",
    witness=_renewed_late,
)
class RenewsWhatHasExpired(MemoryLayer):
    """Renews a lease whose time has passed when nobody else took the lock."""

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        held = self.space.leases.get(agent_id)
        if held is not None and held[0] == fence:
            self.space.leases[agent_id] = (fence, time.monotonic() + ttl_ms / 1000)
            return True
        return False


# --- FORK, DUR --------------------------------------------------------------------------------------------------------


async def _forked(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_messages("a", samples.messages(3))
    await asyncio.sleep(0.02)
    (fork,) = await ctx.store.batch_fork("a", 1)
    times = [await the("created_at", ctx.store.query_messages(agent_id=name)) for name in ("a", fork)]
    return times[0] == times[1]


@fault(
    "FORK-1",
    source="PostgreSQL: INSERT ... SELECT that leaves out created_at, which has DEFAULT now()",
    witness=_forked,
)
class ForksWithNewTimes(MemoryLayer):
    """Gives the messages of a fork the time of the fork."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await super().fork(agent_id, children, expect, now)
        if done:
            for child in children:
                rows = self.space.state(child.agent_id).lists[ListKind.MESSAGES]
                rows.rows = [replace(row, created_at=now) for row in rows.rows]
        return done


async def _fork_without_parent(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_snapshot("a", samples.snapshot())
    (fork,) = await ctx.store.batch_fork("a", 1)
    await ctx.store.delete("a")
    return await the("id", ctx.store.list_snapshots(fork))


@fault(
    "FORK-2",
    "LIFE-3",
    "DUR-1",
    source="SQLAlchemy: snapshots of forks have a parent_id with ON DELETE CASCADE",
    witness=_fork_without_parent,
)
class CascadesToForks(MemoryLayer):
    """Deletes the snapshots that a fork was made with when its parent is deleted."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await super().fork(agent_id, children, expect, now)
        if done:
            space: Any = self.space
            space.__dict__.setdefault("forks", {}).setdefault(agent_id, []).extend(c.agent_id for c in children)
        return done

    async def commit(self, batches: Sequence[Batch]) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete and isinstance(outcome, Applied):
                for child in self.space.__dict__.get("forks", {}).pop(batch.agent_id, ()):
                    docs = self.space.state(child).docs
                    for key in [key for key in docs if key[0] is DocKind.SNAPSHOTS]:
                        del docs[key]
        return outcomes


@fault(
    "DUR-1",
    "QRY-8",
    source="MySQL: INSERT DELAYED, or MongoDB with w=0: the driver has the document, the server not yet",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_recovered_file("a", samples.recovered()),
        lambda s, t: t.load_recovered_files("a"),
        lambda s, t: s.load_recovered_files("a"),
    ),
)
class InsertsDelayed(Layer):
    """Acknowledges recovered files before they are written, a quarter of a second later or with the next call."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.pending: list[Batch] = []
        self.lock = asyncio.Lock()
        self.timer: Any = None

    async def around(self, verb: str, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        await self._flush()
        return await super().around(verb, call, *args, **kwargs)

    async def _flush(self) -> None:
        async with self.lock:
            batches, self.pending = self.pending, []
            if batches:
                await self.inner.commit(batches)

    async def _later(self) -> None:
        await asyncio.sleep(0.25)
        await self._flush()

    async def commit(self, batches: Sequence[Batch]) -> Any:
        if not all(_is_delayed(batch) for batch in batches):
            return await super().commit(batches)
        self.pending.extend(batches)
        if self.timer is None or self.timer.done():
            self.timer = asyncio.create_task(self._later())
        return [Applied() for _ in batches]

    async def close(self) -> None:
        await self._flush()
        if self.timer is not None:
            self.timer.cancel()
        await super().close()


def _is_delayed(batch: Batch) -> bool:
    if batch.fence is not None or batch.delete or batch.is_touching or batch.events or not batch.docs:
        return False
    return all(write.kind is DocKind.RECOVERED for write in batch.docs)
