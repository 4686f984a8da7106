"""Stores as people port them to Redis, Cassandra, MySQL, S3, Elasticsearch and RocksDB, and run them with caches."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnJson, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.backends.json_files.folder import Folder
from kode_core.batch import Applied, Doc, DocKind, DocWrite, Fence, ListKind, ListRows
from kode_core.codec import decode, digest, encode
from kode_core.errors import InvalidArgumentError, InvalidValueError, StoreClosedError
from kode_core.jsonvalue import decode_json, encode_json
from kode_core.layers import Layer
from kode_core.metadata import _canonical
from kode_core.model import AgentInfo, Bookmark, Message, ToolCallRecord, ToolResultBlock
from kode_core.store import EngineStore

# --- values ---------------------------------------------------------------------------------------------------------


def _no_empty_arrays(value: Any) -> Any:
    if type(value) is list:
        return [_no_empty_arrays(item) for item in value] if value else {}
    if type(value) is dict:
        return {key: _no_empty_arrays(item) for key, item in value.items()}
    return value


@fault(
    "VAL-1",
    "VAL-2",
    "TC-3",
    source="Redis: cjson in a Lua script decodes [] to an empty table and encodes it as {}",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0, result={"rows": []})]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(1, result={"rows": []})]),
        lambda s: the("result", s.load_tool_call_records("a")),
    ),
)
class UpsertsThroughLuaCjson(Wrapper):
    """Stores the empty arrays in the result of an upserted tool call as empty objects."""

    __slots__ = ()

    @staticmethod
    def _scripted(records: Any) -> Any:
        if not isinstance(records, (list, tuple)):
            return records
        return [r.replace(result=_no_empty_arrays(r.result)) if type(r) is ToolCallRecord else r for r in records]

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.upsert_tool_call_records(agent_id, self._scripted(records), fence=fence)

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Any = (), **parts: Any) -> None:
        await self.inner.save_turn(agent_id, upsert_tool_calls=self._scripted(upsert_tool_calls), **parts)


@fault(
    "VAL-3",
    "VAL-1",
    "VAL-2",
    source="Cassandra: an empty collection that is not frozen is stored as null",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot().replace(metadata={})),
        lambda s: s.load_snapshot("a", "sfp-1"),
    ),
)
class EmptyMapIsNull(Wrapper):
    """Gives a snapshot that was saved with empty metadata back with none."""

    __slots__ = ()

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if type(getattr(snapshot, "metadata", None)) is dict and not snapshot.metadata:
            snapshot = snapshot.replace(metadata=None)
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)


# --- identity -------------------------------------------------------------------------------------------------------


@fault(
    "ID-2",
    "SNAP-1",
    "ID-4",
    source="MySQL: collations before utf8mb4_0900 are PAD SPACE, so that 'x' = 'x ' in a unique key",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("s", count=1)),
        lambda s: s.save_snapshot("a", samples.snapshot("s ", count=3)),
        lambda s: the("id", s.list_snapshots("a")),
        lambda s: s.load_snapshot("a", "s"),
    ),
)
class SnapshotIdsPadSpace(Layer):
    """Takes two snapshot ids that differ only in spaces at the end for one, so that the later replaces the other."""

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        if kind is DocKind.SNAPSHOTS and key is not None:
            key = key.rstrip(" ")
        return await super().docs(agent_id, kind, key)

    async def commit(self, batches: Any) -> Any:
        return await super().commit([replace(b, docs=tuple(map(self._padded, b.docs))) for b in batches])

    @staticmethod
    def _padded(write: DocWrite) -> DocWrite:
        if write.kind is not DocKind.SNAPSHOTS:
            return write
        key = write.key.rstrip(" ")
        return replace(write, key=key, doc=write.doc and replace(write.doc, key=key))


@fault(
    "ID-2",
    "OPS-13",
    source="MariaDB: the names of GET_LOCK() are case insensitive",
    witness=seen(
        lambda s: _token(s.acquire_agent_lock("Worker")),
        lambda s: _token(s.acquire_agent_lock("other")),
        lambda s: _token(s.acquire_agent_lock("worker")),
    ),
    errors=True,
)
class LockNamesIgnoreCase(MemoryLayer):
    """Refuses the lock of an agent while that of another is held whose id differs only in case."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        now = time.monotonic()
        name = agent_id.casefold()
        if any(other.casefold() == name and held[1] > now for other, held in self.space.leases.items()):
            return None
        return await super().acquire_lease(agent_id, owner, ttl_ms)


async def _token(lock: Any) -> bool:
    return (await lock).token > 0


# --- messages -------------------------------------------------------------------------------------------------------


async def _torn_reads(ctx: Any) -> object:
    """True if a load during a save returned a mixture of two lists."""
    lists = [talk(*["old"] * 4500), talk(*["new"] * 4500)]
    torn = 0

    async def load(delay: float) -> bool:
        await asyncio.sleep(delay)
        return len({m.text for m in await ctx.store.load_messages("a")}) != 1

    await ctx.store.save_messages("a", lists[0])
    for i in range(1, 4):
        save = asyncio.ensure_future(ctx.store.save_messages("a", lists[i % 2]))
        while not save.done():
            torn += await load(0)
        await save
    return torn > 0


@fault(
    "MSG-1",
    "MSG-2",
    source="Redis LRANGE, or a Cassandra driver's fetch_size: a long list is read in pages, each as the list is then",
    witness=_torn_reads,
)
class LoadsMessagesInPages(Layer):
    """Reads a message list of more than a thousand in pages, between which a save may replace the list."""

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        if kind is not ListKind.MESSAGES:
            return await super().rows(agent_id, kind)
        first = page = await self.inner.rows_at(agent_id, kind, 0, 1000)
        rows = list(page.rows)
        while len(page.rows) == 1000:
            await asyncio.sleep(0.001)  # the way to the server and back
            page = await self.inner.rows_at(agent_id, kind, len(rows), 1000)
            rows.extend(page.rows)
        return ListRows(first.version, rows)


async def _pieces(ctx: Any) -> object:
    calls = [ctx.store.append_messages("a", talk(*[who] * 250)) for who in "xyz"]
    await asyncio.gather(*calls)
    texts = [m.text for m in await ctx.store.load_messages("a")]
    changes = sum(a != b for a, b in itertools.pairwise(texts))
    return len(texts), changes


@fault(
    "MSG-3",
    "VAL-2",
    "DUR-3",
    source="Redis: RPUSH in pipelines of a hundred, as a long argument list blocks the server",
    witness=_pieces,
)
class AppendsInHundreds(Wrapper):
    """Appends more than a hundred messages in several writes, so that those of another call come in between."""

    __slots__ = ()

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if not isinstance(messages, (list, tuple)) or len(messages) <= 100:
            await self.inner.append_messages(agent_id, messages, fence=fence)
            return
        for i in range(0, len(messages), 100):
            await self.inner.append_messages(agent_id, messages[i : i + 100], fence=fence)


@fault(
    "MSG-8",
    "INFO-1",
    source="MySQL: REPLACE INTO deletes the row and inserts it again, and ON DELETE CASCADE follows",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_media_cache("a", [samples.media()]),
        lambda s: s.save_info("a", samples.info("a", breakpoint="PRE_MODEL")),
        lambda s: s.load_media_cache("a"),
    ),
)
class ReplaceIntoCascades(Layer):
    """Empties the media cache of an agent whose info is saved again."""

    async def commit(self, batches: Any) -> Any:
        done = []
        for batch in batches:
            if batch.info is not None and not batch.delete and all(d.kind is not DocKind.MEDIA for d in batch.docs):
                summary = await self.inner.summary(batch.agent_id)
                if summary is not None and summary.info is not None:
                    batch = replace(batch, docs=(*batch.docs, DocWrite(DocKind.MEDIA, "", None)))
            done.append(batch)
        return await super().commit(done)


# --- tool calls and turns -------------------------------------------------------------------------------------------


def _written() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


async def _cost_of_one_call(ctx: Any) -> object:
    calls = [samples.tool_call(i) for i in range(3000)]
    await ctx.store.save_tool_call_records("a", calls)
    before = _written()
    await ctx.store.save_tool_call_records("a", [*calls, samples.tool_call(3000)])
    return _written() - before > 200_000


@fault(
    "TC-1",
    "MSG-5",
    source="S3: an object cannot be appended to, it is put again as a whole",
    on=OnJson,
    witness=_cost_of_one_call,
)
class PutsTheWholeObject(Folder):
    """Writes all that an agent has anew with each save of tool calls."""

    def _apply(self, stripe: Any, journal: Any, batch: Any) -> Any:
        outcome = super()._apply(stripe, journal, batch)
        if batch.tool_calls is not None and os.path.exists(journal.path):
            journal.compact(durable=self.durable)
        return outcome


@fault(
    "TC-3",
    source="Cassandra: the statements of a BATCH share one timestamp, and of two writes with it the greater value wins",
    witness=seen(
        lambda s: s.upsert_tool_call_records(
            "a", [samples.tool_call(1, state="PENDING"), samples.tool_call(1, state="COMPLETED")]
        ),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class BatchTieTakesTheGreater(Wrapper):
    """Keeps of two records with one id in one upsert the one whose text is greater, not the later."""

    __slots__ = ()

    @staticmethod
    def _tied(records: Any) -> Any:
        if not isinstance(records, (list, tuple)) or any(type(r) is not ToolCallRecord for r in records):
            return records
        if len({r.id for r in records if type(r.id) is str}) == len(records):
            return records
        try:
            texts = {id(r): encode(ToolCallRecord, r, "").text for r in records}
        except InvalidValueError:
            return records
        kept: dict[str, ToolCallRecord] = {}
        for record in records:
            other = kept.get(record.id)
            if other is None or texts[id(record)] > texts[id(other)]:
                kept[record.id] = record
        return list(kept.values())

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.upsert_tool_call_records(agent_id, self._tied(records), fence=fence)

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Any = (), **parts: Any) -> None:
        await self.inner.save_turn(agent_id, upsert_tool_calls=self._tied(upsert_tool_calls), **parts)


@fault(
    "TURN-1",
    "TC-1",
    "VAL-3",
    source="the habit of `if tool_calls:` before the DEL and RPUSH of a Redis transaction",
    witness=seen(
        lambda s: s.save_turn("a", tool_calls=[samples.tool_call(1)]),
        lambda s: s.save_turn("a", tool_calls=[], append=talk("x")),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class TurnTakesNoToolCallsForNone(Wrapper):
    """Leaves the tool calls as they are when a turn replaces them by an empty list."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, tool_calls: Any = None, **parts: Any) -> None:
        if isinstance(tool_calls, (list, tuple)) and not tool_calls:
            tool_calls = None
        await self.inner.save_turn(agent_id, tool_calls=tool_calls, **parts)


@fault(
    "TURN-1",
    "VAL-2",
    source="Redis Cluster: keys of two slots cannot be in one MULTI (CROSSSLOT), so one of them is set before",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("old")),
        lambda s: s.save_turn("a", todos=samples.todos("new"), append=[Message("user", (), {"x": float("nan")})]),
        lambda s: s.load_todos("a"),
    ),
)
class TurnSetsTodosBefore(Wrapper):
    """Writes the todos of a turn by themselves before the rest, and keeps them when the rest is refused."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, todos: Any = None, fence: Any = None, **parts: Any) -> None:
        if todos is not None:
            await self.inner.save_todos(agent_id, todos, fence=fence)
        await self.inner.save_turn(agent_id, fence=fence, **parts)


# --- events ---------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    "EVT-1",
    "VAL-1",
    source="MySQL: equal JSON values are equal rows, and 1 is 1.0 there and the order of keys does not count",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, n=1)),
        lambda s: s.append_event("a", samples.event(1, n=1)),
        lambda s: s.append_event("a", samples.event(1, n=1.0)),
        lambda s: s.read_events("a"),
    ),
)
class RepeatsByValue(MemoryLayer):
    """Takes an event for a repetition of one that is equal by value, as 1 is to 1.0, and does not store it."""

    @property
    def firsts(self) -> dict[str, dict[Any, Any]]:
        found: dict[str, dict[Any, Any]] = self.space.__dict__.setdefault("firsts", {})
        return found

    def _first(self, agent_id: str, event: Any) -> Any:
        if len(event.body.text) > 65_536:
            return event
        key = digest(encode_json(_canonical(decode_json(event.body.text)), "event").encode("utf-8", "surrogatepass"))
        return self.firsts.setdefault(agent_id, {}).setdefault((event.seq, key), event)

    async def commit(self, batches: Any) -> Any:
        outcomes = []
        for batch in batches:
            if batch.delete:
                (outcome,) = await super().commit([batch])
                if type(outcome) is Applied:
                    self.firsts.pop(batch.agent_id, None)
            else:
                events = tuple([self._first(batch.agent_id, event) for event in batch.events])
                (outcome,) = await super().commit([replace(batch, events=events)])
            outcomes.append(outcome)
        return outcomes


@fault(
    "EVT-5",
    source="Redis SCAN with MATCH and DynamoDB's FilterExpression: the filter comes after the page, an empty one is no end",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(0, "control"), *samples.events(250, 1)]),
        lambda s: s.append_event("a", samples.event(251, "control")),
        lambda s: the_seqs(s.read_events("a", channel="control")),
    ),
)
class EmptyPageIsTheEnd(Wrapper):
    """Ends a reading of one channel where a hundred events in a row are all of others."""

    __slots__ = ()

    def read_events(self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None) -> Any:
        checked = self.inner.read_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        if channel is None:
            return checked
        return self._filtered(self.inner.read_events(agent_id, since=since, after_offset=after_offset), channel)

    @staticmethod
    async def _filtered(events: Any, channel: str) -> Any:
        passed = is_empty = 0
        async with aclosing(events):
            async for event in events:
                if event.event.channel == channel:
                    is_empty = 1
                    yield event
                passed += 1
                if passed == 100:
                    if not is_empty:
                        return
                    passed = is_empty = 0


async def the_seqs(events: Any) -> list[int]:
    return [event.bookmark.seq async for event in events]


async def _followed_since(ctx: Any) -> object:
    await ctx.store.append_events("a", samples.events(3))
    found = []

    async def follow() -> None:
        async for event in ctx.store.follow_events("a", since=Bookmark(1, 0)):
            found.append(event.bookmark.seq)
            if event.bookmark.seq == 9:
                return

    task = asyncio.ensure_future(follow())
    await asyncio.sleep(0.3)
    await ctx.store.append_event("a", samples.event(0, late=True))
    await ctx.store.append_event("a", samples.event(9))
    await asyncio.wait_for(task, 4)
    return found


@fault(
    "EVT-7",
    source="Redis: XRANGE filters what is there, and the subscription that goes on from it does not",
    witness=_followed_since,
)
class FollowForgetsSince(Wrapper):
    """Filters by ``since`` only the events that are stored when following begins, and gives every later one."""

    __slots__ = ()

    def follow_events(self, agent_id: str, *, since: Any = None, after_offset: Any = 0, channel: Any = None) -> Any:
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


# --- the other kinds ------------------------------------------------------------------------------------------------


@fault(
    "HIS-2",
    source="MySQL: DATETIME has whole seconds unless a precision is given, and so has the primary key on it",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=samples.T0 + 1)),
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=samples.T0 + 900)),
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=samples.T0 + 1900)),
        lambda s: the("timestamp", s.load_recovered_files("a")),
    ),
)
class RecoveredBySecond(Layer):
    """Replaces a recovered file by one of the same path that was recovered within the same second."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([replace(b, docs=tuple(map(self._by_second, b.docs))) for b in batches])

    @staticmethod
    def _by_second(write: DocWrite) -> DocWrite:
        if write.kind is not DocKind.RECOVERED or write.doc is None:
            return write
        path, timestamp = decode_json(write.key)
        key = encode_json([path, timestamp // 1000], "key")
        return replace(write, key=key, doc=replace(write.doc, key=key))


async def _compressions(ctx: Any) -> object:
    for i in range(12):
        await ctx.store.save_compression_record("a", samples.compression(f"c{i:02}", samples.T0 + i))
    return await the("id", ctx.store.load_compression_records("a"))


@fault(
    "HIS-1",
    source="Elasticsearch: a search without size returns ten hits",
    witness=_compressions,
)
class TenHits(EngineStore):
    """Loads the first ten compression records of an agent and no more."""

    async def load_compression_records(self, agent_id: str) -> Any:
        return (await super().load_compression_records(agent_id))[:10]


async def _snapshots(ctx: Any) -> object:
    for i in range(1002):
        await ctx.store.save_snapshot("a", samples.snapshot(f"s{i:04}", samples.T0 + i, count=0))
    found = await ctx.store.list_snapshots("a")
    return len(found), found[0].id, found[-1].id


@fault(
    "SNAP-1",
    source="S3: ListObjectsV2 returns a thousand keys, in their order, and IsTruncated",
    witness=_snapshots,
)
class ListsAThousandSnapshots(EngineStore):
    """Lists of an agent's snapshots those with the first thousand ids."""

    async def list_snapshots(self, agent_id: str) -> Any:
        found = await super().list_snapshots(agent_id)
        if len(found) <= 1000:
            return found
        keys = {s.id for s in sorted(found, key=lambda s: s.id)[:1000]}
        return [s for s in found if s.id in keys]


# --- lifecycle ------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-3",
    "LIFE-4",
    source="the habit of `if not await store.exists(id): return` at the head of a delete",
    witness=seen(
        lambda s: s.append_messages("a", talk("x")),
        lambda s: s.save_todos("a", samples.todos("y")),
        lambda s: s.delete("a"),
        lambda s: s.load_messages("a"),
        lambda s: s.load_todos("a"),
    ),
)
class DeletesOnlyWhatExists(Wrapper):
    """Leaves everything of an agent in place whose info was never saved."""

    __slots__ = ()

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        if await self.inner.exists(agent_id):
            await self.inner.delete(agent_id, fence=fence)


async def _delete_a_crowd(ctx: Any) -> object:
    for i in range(103):
        await ctx.store.save_info(f"x{i:03}", samples.info(f"x{i:03}", template_id="old"))
    await ctx.store.save_info("y", samples.info("y"))
    return await ctx.store.delete_many(template_id="old"), await ctx.store.list()


@fault(
    "LIFE-5",
    source="a bulk delete by the ids of a search, whose default limit nobody thought of",
    witness=_delete_a_crowd,
)
class DeletesOnePage(Wrapper):
    """Deletes at most a hundred of the sessions that the filter of ``delete_many`` matches."""

    __slots__ = ()

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        paging = {"limit", "offset", "cursor", "order", "sort_by"}
        if not filters or paging & filters.keys() or (progress is not None and not callable(progress)):
            return int(await self.inner.delete_many(progress=progress, **filters))
        page = await self.inner.query_sessions(**filters)
        if page.next_cursor is None:
            return int(await self.inner.delete_many(progress=progress, **filters))
        for done, session in enumerate(page, 1):
            await self.inner.delete(session.agent_id)
            if progress is not None:
                progress(done, None)
        return len(page)


# --- queries --------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    "QRY-6",
    "LIFE-5",
    source="Elasticsearch: dynamic mapping makes keywords with ignore_above 256, and does not index longer ones",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"topic": "t" * 256})),
        lambda s: s.save_info("b", samples.info("b", metadata={"topic": "t" * 257})),
        lambda s: the("agent_id", s.query_sessions(metadata={"topic": "t" * 256})),
        lambda s: the("agent_id", s.query_sessions(metadata={"topic": "t" * 257})),
    ),
)
class IgnoreAbove256(Layer):
    """Finds no session by a text in its metadata that is longer than 256 characters."""

    async def find_sessions(self, query: Any) -> Any:
        if any(value.startswith('"') and len(value) > 256 + 2 for _, value in query.metadata):
            return []
        return await super().find_sessions(query)


@fault(
    "QRY-4",
    source="Elasticsearch: from + size must not be beyond index.max_result_window, which is 10,000",
    witness=seen(
        lambda s: s.query_messages(offset=9_900),
        lambda s: s.query_messages(offset=9_901),
        lambda s: s.query_messages(limit=10_000),
        lambda s: s.query_messages(limit=10_000, offset=1),
    ),
    errors=True,
)
class ResultWindow(EngineStore):
    """Refuses a query of messages whose offset and limit together are more than 10,000."""

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        if filters.get("offset", 0) + filters.get("limit", 100) > 10_000:
            raise InvalidArgumentError("result window is too large: offset + limit must be at most 10000")
        return page


@fault(
    "QRY-7",
    source="Elasticsearch: hits.total is counted up to 10,000 unless track_total_hits is set",
    witness=seen(
        lambda s: s.append_messages("a", talk(*["x"] * 10_000)),
        lambda s: s.aggregate_stats("a"),
        lambda s: s.append_messages("a", talk("x", "y")),
        lambda s: s.aggregate_stats("a"),
    ),
)
class CountsTo10000(EngineStore):
    """Says of an agent with more than 10,000 messages that it has 10,000."""

    async def aggregate_stats(self, agent_id: str) -> Any:
        stats = await super().aggregate_stats(agent_id)
        return replace(stats, total_messages=min(stats.total_messages, 10_000))


# --- operations -----------------------------------------------------------------------------------------------------


async def _sizes(ctx: Any) -> object:
    sizes = []
    for i in range(3):
        await ctx.store.save_info(f"a{i}", samples.info(f"a{i}"))
        await ctx.store.append_messages(f"a{i}", talk("x"))
        storage = (await ctx.store.get_metrics()).storage
        sizes.append((storage.total_agents, storage.total_messages))
    return sizes


@fault(
    "OPS-3",
    "QRY-8",
    source="MySQL 8: information_schema gives cached statistics for a day (information_schema_stats_expiry = 86400)",
    witness=_sizes,
)
class StatisticsExpireLate(Wrapper):
    """Gives in every metrics the size that the store had when this instance was asked first."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.storage: Any = None

    async def get_metrics(self) -> Any:
        metrics = await self.inner.get_metrics()
        if self.storage is None:
            self.storage = metrics.storage
        return replace(metrics, storage=self.storage)


@fault(
    "OPS-2",
    source="a nightly job that goes over the ids of the agents table, as `list` gives them",
    witness=seen(
        lambda s: s.append_messages("a", [Message("user", [ToolResultBlock("call_0", "x")])]),
        lambda s: s.save_info("b", samples.info("b")),
        lambda s: s.append_messages("b", [Message("user", [ToolResultBlock("call_0", "x")])]),
        lambda s: the("agent_id", _issues(s)),
        lambda s: s.iter_consistency(),
    ),
)
class ChecksOnlyTheListed(EngineStore):
    """Finds in a check of all agents nothing wrong with those that have no info."""

    async def check_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        result = await super().check_consistency(agent_id, progress=progress)
        if agent_id is not None:
            return result
        issues = tuple([issue for issue in result.issues if await self._is_listed(issue)])
        return replace(result, issues=issues, consistent=not issues)

    def iter_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        found = super().iter_consistency(agent_id, progress=progress)
        return found if agent_id is not None else self._listed(found)

    async def _listed(self, issues: Any) -> Any:
        async with aclosing(issues):
            async for issue in issues:
                if await self._is_listed(issue):
                    yield issue

    async def _is_listed(self, issue: Any) -> bool:
        if not issue.agent_id:
            return True
        summary = await self._context.engine.summary(issue.agent_id)
        return summary is not None and summary.info is not None


async def _issues(store: Any) -> Any:
    return (await store.check_consistency()).issues


async def _follow_over_a_close(ctx: Any) -> object:
    store = await ctx.another()
    await store.append_events("a", samples.events(2))

    async def follow() -> str:
        try:
            async for _ in store.follow_events("a"):
                pass
        except Exception as exc:
            return type(exc).__name__
        return "ended"

    task = asyncio.ensure_future(follow())
    await asyncio.sleep(0.2)
    await ctx.close(store)
    return await asyncio.wait_for(task, 4)


@fault(
    "OPS-5",
    "EVT-7",
    source="redis-py: PubSub.listen() just ends once the connection was closed",
    witness=_follow_over_a_close,
)
class FollowEndsWithTheStore(Wrapper):
    """Ends a following as if the caller had stopped it when the store is closed, and raises nothing."""

    __slots__ = ()

    def follow_events(self, agent_id: str, **places: Any) -> Any:
        return self._follow(self.inner.follow_events(agent_id, **places))

    @staticmethod
    async def _follow(events: Any) -> Any:
        async with aclosing(events):
            try:
                async for event in events:
                    yield event
            except StoreClosedError:
                return


async def _refused_text(ctx: Any) -> object:
    record = samples.compression().replace(summary="my-secret-summary", ratio=float("nan"))
    try:
        await ctx.store.save_compression_record("a", record)
    except InvalidValueError as exc:
        return "my-secret-summary" in str(exc)
    return None


@fault(
    "OPS-12",
    source="MySQL: error 1366 quotes the row's value: Incorrect string value: '...' for column 'summary' at row 1",
    witness=_refused_text,
)
class QuotesTheRefused(Wrapper):
    """Quotes a compression record that is refused in the message of the error."""

    __slots__ = ()

    async def save_compression_record(self, agent_id: str, record: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.save_compression_record(agent_id, record, fence=fence)
        except InvalidValueError as exc:
            exc.args = (f"{exc}: {record!r:.500}", *exc.args[1:])
            raise


# --- locks ----------------------------------------------------------------------------------------------------------


async def _wait_for_expiry(ctx: Any) -> object:
    results = []
    for agent_id, released in (("a", True), ("b", False)):
        lease = await ctx.store.acquire_agent_lock(agent_id, ttl_ms=500 if not released else 30_000)
        waiter = asyncio.ensure_future(_outcome_of(ctx.store.acquire_agent_lock(agent_id, wait_ms=2000)))
        await asyncio.sleep(0.1)
        if released:
            await lease.release()
        results.append(await waiter)
    return results


async def _outcome_of(lock: Any) -> str:
    try:
        return type(await lock).__name__
    except Exception as exc:
        return type(exc).__name__


@fault(
    "LOCK-3",
    "LOCK-2",
    source="Redis: a waiter that is woken by keyspace notifications of DEL; those of expired keys have another name",
    witness=_wait_for_expiry,
    errors=True,
)
class WaiterMissesTheExpiry(MemoryLayer):
    """Lets one who waits for a lock wait on when the lease before it ran out and was not released."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.waiting: dict[str, Fence] = {}

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        held = self.space.leases.get(agent_id)
        if held is not None and self.waiting.get(owner) == held[0]:
            return None
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        self.waiting.pop(owner, None)
        if token is None and held is not None:
            self.waiting[owner] = held[0]
            while len(self.waiting) > 1000:
                del self.waiting[next(iter(self.waiting))]
        return token


async def _tokens_over_deletes(ctx: Any) -> object:
    tokens = []
    for how in ("", "delete", "delete_many"):
        if how == "delete":
            await ctx.store.delete("a")
        elif how:
            await ctx.store.delete_many(template_id="assistant")
        await ctx.store.save_info("a", samples.info("a"))
        for _ in range(3):
            lease = await ctx.store.acquire_agent_lock("a")
            tokens.append(lease.token)
            await lease.release()
    return [a < b for a, b in itertools.pairwise(tokens)]


@fault(
    "LOCK-5",
    "LIFE-3",
    "LIFE-5",
    source="Redis: a bulk delete that unlinks all that SCAN MATCH agent:ID:* finds, the counter of INCR too",
    witness=_tokens_over_deletes,
)
class TokensRestartAfterDeleteMany(MemoryLayer):
    """Begins again with the tokens of an agent that ``delete_many`` deleted."""

    @property
    def tokens(self) -> dict[str, int]:
        found: dict[str, int] = self.space.__dict__.setdefault("tokens", {})
        return found

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        if await super().acquire_lease(agent_id, owner, ttl_ms) is None:
            return None
        token = self.tokens[agent_id] = self.tokens.get(agent_id, 0) + 1
        self.space.leases[agent_id] = (Fence(owner, token), self.space.leases[agent_id][1])
        return token

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete and batch.expect_updated_at is not None and type(outcome) is Applied:
                self.tokens.pop(batch.agent_id, None)
        return outcomes


# --- forks and durability -------------------------------------------------------------------------------------------


async def _media_of_a_fork(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_media_cache("a", [samples.media("one")])
    (fork,) = await ctx.store.batch_fork("a", 1)
    found = [await the("key", ctx.store.load_media_cache(fork))]
    await ctx.store.save_media_cache("a", [samples.media("two")])
    found.append(await the("key", ctx.store.load_media_cache(fork)))
    await ctx.store.delete("a")
    found.append(await the("key", ctx.store.load_media_cache(fork)))
    return found


@fault(
    "FORK-2",
    "FORK-1",
    source="S3: a fork that refers to the parent's object, as copying it costs a request each",
    witness=_media_of_a_fork,
)
class ForksShareMedia(MemoryLayer):
    """Reads the media cache of a fork from its parent until the fork saves one of its own."""

    @property
    def parents(self) -> dict[str, str]:
        found: dict[str, str] = self.space.__dict__.setdefault("parents", {})
        return found

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await super().fork(agent_id, children, expect, now)
        if done:
            self.parents.update({child.agent_id: agent_id for child in children})
        return done

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        while kind is DocKind.MEDIA and agent_id in self.parents:
            agent_id = self.parents[agent_id]
        return await super().docs(agent_id, kind, key)

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            is_its_own = batch.delete or any(write.kind is DocKind.MEDIA for write in batch.docs)
            if is_its_own and type(outcome) is Applied:
                self.parents.pop(batch.agent_id, None)
        return outcomes


async def _lineage(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    ids, found = ["a"], []
    for _ in range(3):
        (child,) = await ctx.store.batch_fork(ids[-1], 1)
        lineage = (await ctx.store.load_info(child)).lineage
        found.append([ids.index(one) for one in lineage])
        ids.append(child)
    return found


@fault(
    "FORK-1",
    source="a column parent_id of which the lineage is made by one self join, not a recursive query",
    witness=_lineage,
)
class LineageOfOne(Layer):
    """Gives a fork of a fork only its parent as its lineage."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        return await super().fork(agent_id, [self._of(agent_id, child) for child in children], expect, now)

    @staticmethod
    def _of(parent: str, child: Any) -> Any:
        info = decode(AgentInfo, child.info.body, "info").replace(lineage=(parent,))
        return replace(child, info=replace(child.info, body=encode(AgentInfo, info, "info")))


async def _media_after_a_crash(ctx: Any) -> object:
    found = []
    for key in ("one", "two"):
        await ctx.store.save_media_cache("a", [samples.media(key)])
        survivor = await ctx.another()  # it sees what a crash of the other would leave
        found.append(await the("key", survivor.load_media_cache("a")))
        await ctx.close(survivor)
    return found


@fault(
    "DUR-1",
    "QRY-8",
    "MED-1",
    source="RocksDB: a column family that is written with disableWAL, so that what is in the memtable goes with the process",
    on=OnSqlite,
    witness=_media_after_a_crash,
)
class MediaWithoutWal(Layer):
    """Keeps a saved media cache in memory until the store is closed, and loses it with the process."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.memtable: dict[str, Any] = {}

    async def commit(self, batches: Any) -> Any:
        outcomes: list[Any] = [None] * len(batches)
        others = []
        for i, batch in enumerate(batches):
            is_media = [write.kind is DocKind.MEDIA for write in batch.docs] == [True]
            if is_media and not (batch.is_touching or batch.events or batch.delete or batch.fence):
                self.memtable[batch.agent_id] = batch
                outcomes[i] = Applied()
            else:
                others.append(i)
                if batch.delete or any(write.kind is DocKind.MEDIA for write in batch.docs):
                    await self.flush(batch.agent_id)
        if others:
            for i, outcome in zip(others, await super().commit([batches[i] for i in others]), strict=True):
                outcomes[i] = outcome
        return outcomes

    async def flush(self, *agent_ids: str) -> None:
        batches = [self.memtable.pop(a) for a in agent_ids or list(self.memtable) if a in self.memtable]
        if batches:
            await self.inner.commit(batches)

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        batch = self.memtable.get(agent_id)
        if kind is DocKind.MEDIA and batch is not None:
            return [batch.docs[0].doc]
        return await super().docs(agent_id, kind, key)

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        await self.flush()
        return await super().stored_ids(after, limit)

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        await self.flush(agent_id)
        return await super().fork(agent_id, children, expect, now)

    async def backup(self, *args: Any, **kwargs: Any) -> Any:
        await self.flush()
        return await super().backup(*args, **kwargs)

    async def close(self) -> None:
        await self.flush()
        await super().close()
