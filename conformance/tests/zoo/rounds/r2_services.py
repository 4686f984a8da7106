"""Stores that people run as a service or in the cloud, and ports of stores from other languages."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import json
import posixpath
import re
import time
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, restart, seen, talk, the
from kode_core.batch import Applied, Batch, DocKind, DocWrite, EventRange, Fence, ListKind
from kode_core.codec import Body, decode, digest, encode
from kode_core.errors import (
    InvalidArgumentError,
    InvalidValueError,
    KodeError,
    OutcomeUnknownError,
    PayloadTooLargeError,
)
from kode_core.ids import check_agent_id, index_text
from kode_core.layers import Layer
from kode_core.model import AgentInfo, HistoryWindow, Message, Snapshot, Timeline
from kode_core.store import EngineStore, kinds


def nested(levels: int) -> Any:
    """A list in a list in a list …"""
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def levels_of(value: Any) -> int:
    """How deep lists and objects nest; 101 for deeper ones."""
    depth, level = 0, [value]
    while level and depth <= 100:
        level = [
            inner
            for outer in level
            if type(outer) in (list, dict)
            for inner in (outer.values() if type(outer) is dict else outer)
        ]
        depth += bool(level)
    return depth


async def outcome(call: Any) -> Any:
    """What a call returns, or the class of its error."""
    try:
        return await call
    except Exception as exc:
        return type(exc).__name__


# --- values


@fault(
    "VAL-2",
    "VAL-1",
    source="DynamoDB: attribute values nest at most 32 levels deep, deeper ones are a ValidationException",
    errors=True,
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(result=nested(32))]),
        lambda s: s.save_tool_call_records("a", [samples.tool_call(result=nested(33))]),
        lambda s: s.save_tool_call_records("a", [samples.tool_call(result=nested(90))]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class NestsThirtyTwoLevels(Wrapper):
    """Refuses results of tool calls that nest deeper than 32 levels, and not only those deeper than 100."""

    __slots__ = ()

    @staticmethod
    def _check(records: Any) -> None:
        for i, record in enumerate(records if isinstance(records, (list, tuple)) else ()):
            if 32 < levels_of(getattr(record, "result", None)) <= 100:
                raise InvalidValueError(f"tool call record {i}", "$.result", "nests deeper than 32 levels")

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        self._check(records)
        await self.inner.save_tool_call_records(agent_id, records, fence=fence)

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        self._check(records)
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        self._check(given.get("tool_calls"))
        self._check(given.get("upsert_tool_calls"))
        await self.inner.save_turn(agent_id, **given)


@fault(
    "VAL-4",
    "EVT-1",
    source="SQS SendMessageBatch and EventBridge PutEvents: all entries of a request together have at most 256 KiB",
    errors=True,
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, text="x" * 300_000)),
        lambda s: s.append_events("a", [samples.event(i, text="x" * 100_000) for i in range(2, 6)]),
        lambda s: the("offset", _listed(s.read_events("a"))),
    ),
)
class LimitsTheBytesOfABatchOfEvents(Wrapper):
    """Refuses to append several events at once that have more than 256 KiB together."""

    __slots__ = ()

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        if isinstance(timelines, (list, tuple)) and len(timelines) > 1:
            size = 0
            for timeline in timelines:
                try:
                    size += len(encode(Timeline, timeline, "event").text)
                except Exception:
                    break  # the store says what is wrong with it
                if size > 256 * 1024:
                    raise PayloadTooLargeError("a batch of events has at most 262144 bytes")
        return await self.inner.append_events(agent_id, timelines, fence=fence)


async def _listed(records: AsyncIterator[Any]) -> list[Any]:
    return [record async for record in records]


# --- identity


_LONG = "x" * 250


@fault(
    "ID-2",
    "LOCK-1",
    "OPS-13",
    source="Memcached: a key has at most 250 bytes, and clients cut longer ones (the lock's has the prefix lock:)",
    errors=True,
    witness=seen(
        lambda s: s.acquire_agent_lock(f"{_LONG}a"),
        lambda s: s.acquire_agent_lock(f"{_LONG}b"),
    ),
)
class CutsTheKeysOfLocks(MemoryLayer):
    """Has one lock for all agents whose ids agree in the first 245 bytes."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        key, now = agent_id.encode()[:245], time.monotonic()
        if len(key) == 245:
            for other, (_, until) in self.space.leases.items():
                if other != agent_id and until > now and other.encode()[:245] == key:
                    return None
        return await super().acquire_lease(agent_id, owner, ttl_ms)


@fault(
    "HIS-2",
    "ID-4",
    "ID-1",
    source="MinIO and Go's path.Join clean object names: a//b, ./a/b and a/x/../b are a/b",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("docs/a.md")),
        lambda s: s.save_recovered_file("a", samples.recovered("docs//a.md")),
        lambda s: s.save_recovered_file("a", samples.recovered("./docs/a.md")),
        lambda s: s.load_recovered_files("a"),
    ),
)
class CleansPaths(MemoryLayer):
    """Takes two recovered files of one time for the same when their paths are the same after cleaning."""

    @staticmethod
    def _cleaned(key: str) -> Any:
        path, timestamp = json.loads(key)
        return posixpath.normpath(path), timestamp

    def _replacing(self, batch: Batch) -> Batch:
        gone = []
        for write in batch.docs:
            if write.kind == DocKind.RECOVERED and write.doc is not None:
                for kind, key in self.space.state(batch.agent_id).docs:
                    if kind == write.kind and key != write.key and self._cleaned(key) == self._cleaned(write.key):
                        gone.append(DocWrite(kind, key, None))
        return replace(batch, docs=(*gone, *batch.docs)) if gone else batch

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([self._replacing(batch) for batch in batches])


# --- messages


async def _two_long_appends(ctx: Context) -> object:
    other = await ctx.another()
    await asyncio.gather(
        ctx.store.append_messages("a", talk(*["one"] * 60)), other.append_messages("a", talk(*["two"] * 60))
    )
    texts = [message.text for message in await ctx.store.load_messages("a")]
    return len(texts), sum(a != b for a, b in itertools.pairwise(texts))


@fault(
    "MSG-3",
    "OPS-9",
    "DUR-3",
    source="DynamoDB: BatchWriteItem takes 25 items, so that clients write long lists in chunks",
    witness=_two_long_appends,
)
class AppendsInChunks(Wrapper):
    """Appends more than 25 messages in several commits, between which others append."""

    __slots__ = ()

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if not isinstance(messages, (list, tuple)) or len(messages) <= 25:
            return await self.inner.append_messages(agent_id, messages, fence=fence)
        taken = list(messages)
        for i, message in enumerate(taken):
            if type(message) is not Message:
                return await self.inner.append_messages(agent_id, taken, fence=fence)  # which refuses it
            encode(Message, message, f"message {i}")
        for i in range(0, len(taken), 25):
            await self.inner.append_messages(agent_id, taken[i : i + 25], fence=fence)
        return None


async def _counts_of_long_lists(ctx: Context) -> object:
    s = ctx.store
    for agent_id, count in (("a", 9_999), ("b", 10_001)):
        await s.save_info(agent_id, samples.info(agent_id))
        await s.save_messages(agent_id, talk(*["hello"] * count))
    found = await the("message_count", s.query_sessions(order="asc"))
    return found, [session.message_count async for session in s.iter_sessions(order="asc")]


@fault(
    "MSG-6",
    source="Elasticsearch: hits.total is 10,000 for everything above, unless track_total_hits is set",
    witness=_counts_of_long_lists,
)
class CountsToTenThousand(Wrapper):
    """Shows a session with more than 10,000 messages as one with 10,000."""

    __slots__ = ()

    @staticmethod
    def _shown(session: Any) -> Any:
        return session if session.message_count <= 10_000 else replace(session, message_count=10_000)

    async def query_sessions(self, **filters: Any) -> Any:
        page = await self.inner.query_sessions(**filters)
        page[:] = map(self._shown, page)
        return page

    async def iter_sessions(self, **filters: Any) -> AsyncIterator[Any]:
        async for session in self.inner.iter_sessions(**filters):
            yield self._shown(session)


# --- tool calls


@fault(
    "TC-3",
    "VAL-1",
    source="Redis: cjson in Lua scripts writes an empty array as {} (redis/redis#856)",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(result={"rows": [], "next": [[]]})]),
        lambda s: s.load_tool_call_records("a"),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(result={"rows": [], "next": [[]]})]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class MergesInLua(Wrapper):
    """Stores an empty list in the result of a tool call as an object when an upsert replaces a record."""

    __slots__ = ()

    @classmethod
    def _through_lua(cls, value: Any) -> Any:
        if type(value) is list:
            return [*map(cls._through_lua, value)] if value else {}
        if type(value) is dict:
            return {key: cls._through_lua(inner) for key, inner in value.items()}
        return value

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        try:
            keys = [index_text(record.id) for record in records]
            outline = await self.inner._context.engine.outline(agent_id, ListKind.TOOL_CALLS, keys)
            known = {row[3] for row in outline.rows}
            records = [
                record.replace(result=self._through_lua(record.result))
                if key in known and levels_of(record.result) <= 100
                else record
                for key, record in zip(keys, records, strict=True)
            ]
        except Exception:
            pass  # the store says what is wrong
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)


# --- turns


class _CommitsOf(Layer):
    """Counts the commits of an agent."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.count = 0

    async def commit(self, batches: Sequence[Batch]) -> Any:
        self.count += sum(batch.agent_id == "a" for batch in batches)
        return await super().commit(batches)


async def _commits_of_a_long_turn(ctx: Context) -> object:
    layers: list[_CommitsOf] = []

    def layer(engine: Any) -> Any:
        layers.append(_CommitsOf(engine))
        return layers[-1]

    store = await ctx.another(layer)
    counts = []
    for messages in (50, 120):
        await store.save_turn("a", append=samples.messages(messages), events=samples.events(messages), info=None)
        counts.append(layers[-1].count)
    return counts


@fault(
    "TURN-1",
    "DUR-3",
    "VAL-2",
    source="DynamoDB: TransactWriteItems takes 100 items, so that clients make two transactions of what has more",
    witness=_commits_of_a_long_turn,
)
class SplitsLongTurns(Wrapper):
    """Commits the messages of a turn before the rest when the turn has more than 100 records."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        lists = ("append", "messages", "tool_calls", "upsert_tool_calls", "events")
        try:
            count = sum(len(given.get(name) or ()) for name in lists)
        except TypeError:
            count = 0
        count += sum(given.get(name) is not None for name in ("todos", "info"))
        if count <= 100 or (given.get("append") and given.get("messages") is not None):
            return await self.inner.save_turn(agent_id, **given)
        first = {name: given[name] for name in ("append", "messages", "fence") if name in given}
        rest = {name: value for name, value in given.items() if name not in first or name == "fence"}
        if any(name != "fence" for name in first):
            await self.inner.save_turn(agent_id, **first)
        if any(name != "fence" for name in rest):
            await self.inner.save_turn(agent_id, **rest)
        return None


async def _times_after_a_turn(ctx: Context) -> object:
    now = [1_000]
    store = await ctx.another(clock=lambda: now[0])
    await store.save_messages("a", talk("x", "y", "z"))
    now[0] = 2_000
    await store.save_messages("a", talk("x", "y", "z2"))
    now[0] = 3_000
    await store.save_turn("a", messages=talk("x", "y2", "z2"), todos=samples.todos("t"))
    return await the("created_at", store.query_messages(agent_id="a", order="asc"))


@fault(
    "MSG-4",
    source="Cassandra and Cosmos DB: every item of a batch gets the one timestamp of the batch",
    witness=_times_after_a_turn,
)
class StampsTheBatch(Layer):
    """Gives a message that is replaced at its position a new time, when it is saved in one turn with other kinds."""

    @staticmethod
    def _stamped(batch: Batch) -> Batch:
        write = batch.messages
        if write is None or not write.put or not (batch.tool_calls or batch.docs or batch.info or batch.events):
            return batch
        put = tuple((i, replace(row, created_at=batch.now)) for i, row in write.put)
        return replace(batch, messages=replace(write, put=put))

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([*map(self._stamped, batches)])


# --- events


async def _a_late_retry(ctx: Context) -> object:
    s = ctx.store
    first = await s.append_event("a", samples.event(0))
    await s.append_events("a", happened(*range(1, 10_001)))
    await s.append_event("a", samples.event(9_000))
    again = await s.append_event("a", samples.event(0))
    return again == first, len(await _listed(s.read_events("a")))


@fault(
    "EVT-4",
    source="Redis, NATS JetStream and SQS find duplicates in a window only, here the last 10,000 ids",
    witness=_a_late_retry,
)
class ForgetsWhatWasAppended(MemoryLayer):
    """Stores an event a second time when more than 10,000 others were appended since the first."""

    def _forgetful(self, batch: Batch) -> Batch:
        log = self.space.state(batch.agent_id).log
        if not batch.events or len(log) <= 10_000:
            return batch
        events = []
        for event in batch.events:
            body = event.body
            while (found := log.find(event.seq, body.digest)) is not None:
                if len(log) - bisect_left(log._offsets, found) <= 10_000:
                    break
                text = body.text + " "
                body = Body(text, digest(text.encode()))
            events.append(replace(event, body=body))
        return replace(batch, events=tuple(events))

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([*map(self._forgetful, batches)])


@fault(
    "EVT-5",
    "EVT-3",
    source="Keyset pages by a sort key that is not unique: the next page begins after the last seq of the one before",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(i // 3, n=i) for i in range(2_000)]),
        lambda s: the("cursor", _listed(s.read_events("a"))),
        lambda s: the("cursor", _listed(s.read_events("a", after_offset=0))),
    ),
)
class PagesEventsBySeq(Layer):
    """Skips events that have the seq of the last one of a page when they stand on the next page."""

    async def events(self, agent_id: str, span: EventRange) -> Any:
        if span.order == "seq" and span.after is not None:
            since = span.after[0] if span.since_seq is None else max(span.after[0], span.since_seq)
            span = replace(span, after=None, since_seq=since)
        return await super().events(agent_id, span)


async def _follow_a_restarted_producer(ctx: Context) -> object:
    s = ctx.store
    await s.append_events("a", [samples.event(1, t="a"), samples.event(2, t="b")])
    found: list[Any] = []

    async def follow() -> None:
        async for event in s.follow_events("a"):
            found.append(event.event.data)

    task = asyncio.ensure_future(follow())
    await asyncio.sleep(0.2)
    await s.append_events("a", [samples.event(1, t="c"), samples.event(2, t="d"), samples.event(3, t="e")])
    await asyncio.sleep(0.8)
    task.cancel()
    await asyncio.wait([task])
    return found


@fault(
    "EVT-7",
    "EVT-3",
    source="Clients of server-sent events and of brokers that drop what has an id that is not above the last one",
    witness=_follow_a_restarted_producer,
)
class FollowsRisingSeqs(Wrapper):
    """Drops from followed events those with a seq that is not above all seen before, as after a producer's restart."""

    __slots__ = ()

    def follow_events(self, agent_id: str, **given: Any) -> AsyncIterator[Any]:
        return self._follow(self.inner.follow_events(agent_id, **given))

    @staticmethod
    async def _follow(events: Any) -> AsyncIterator[Any]:
        highest: int | None = None
        try:
            async for event in events:
                if highest is None or event.bookmark.seq > highest:
                    highest = event.bookmark.seq
                    yield event
        finally:
            await events.aclose()


# --- todos, history, media


@fault(
    "TODO-1",
    "DUR-1",
    source="Last write wins by the record's own updated_at: Cassandra's USING TIMESTAMP, offline clients that sync",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("new")),
        lambda s: s.save_todos("a", samples.todos("old").replace(updated_at=samples.T0 - 1)),
        lambda s: s.load_todos("a"),
    ),
)
class KeepsTheLatestTodos(MemoryLayer):
    """Drops todos whose own updated_at is before that of the stored ones."""

    def _latest(self, batch: Batch) -> Batch:
        stored = self.space.state(batch.agent_id).docs.get((DocKind.TODOS, ""))
        if stored is None or batch.delete:
            return batch
        time_ = json.loads(stored.body.text)["updatedAt"]
        docs = tuple(
            write
            for write in batch.docs
            if write.kind != DocKind.TODOS or write.doc is None or json.loads(write.doc.body.text)["updatedAt"] >= time_
        )
        return batch if len(docs) == len(batch.docs) else replace(batch, docs=docs)

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([*map(self._latest, batches)])


@fault(
    "HIS-1",
    source="DynamoDB: a composite sort key such as 1700000000000#id is compared as text",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w1", 1_000)),
        lambda s: s.save_history_window("a", samples.window("w2", 999)),
        lambda s: s.save_history_window("a", samples.window("w3", 5)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class SortsWindowsByText(Wrapper):
    """Orders history windows by their timestamps as text, so that 999 comes after 1000."""

    __slots__ = ()

    async def load_history_windows(self, agent_id: str) -> Any:
        found = await self.inner.load_history_windows(agent_id)
        return sorted(found, key=lambda window: str(window.timestamp))


async def _media_after_the_lease(ctx: Context) -> object:
    s = ctx.store
    seen_: list[Any] = []
    lease = await s.acquire_agent_lock("a", ttl_ms=1_000)
    seen_.append(await outcome(s.save_media_cache("a", [samples.media("k1")], fence=lease)))
    await lease.release()
    seen_.append(await outcome(s.save_media_cache("a", [samples.media("k2")], fence=lease)))
    seen_.append(await outcome(s.save_todos("a", samples.todos("x"), fence=lease)))
    return seen_, await s.load_media_cache("a")


@fault(
    "LOCK-5",
    source="Media metadata that goes to an object store or a cache of its own, which knows nothing of the lock table",
    witness=_media_after_the_lease,
)
class DoesNotFenceMedia(Wrapper):
    """Saves the media cache without the fence, so that a holder whose lease has ended still replaces it."""

    __slots__ = ()

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        call = self.inner.save_media_cache(agent_id, records)
        await asyncio.get_running_loop().create_task(call, context=contextvars.Context())


@fault(
    "MED-1",
    "VAL-3",
    source="AWS SDK for JavaScript: DocumentClient with convertEmptyValues stores an empty string as NULL",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media().replace(file_id="", file_uri=""), samples.media("k")]),
        lambda s: s.load_media_cache("a"),
    ),
)
class ConvertsEmptyValues(Wrapper):
    """Stores an empty file_id or file_uri in the media cache as None."""

    __slots__ = ()

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)):
            records = [
                record
                if "" not in (getattr(record, "file_id", None), getattr(record, "file_uri", None))
                else record.replace(
                    file_id=None if record.file_id == "" else record.file_id,
                    file_uri=None if record.file_uri == "" else record.file_uri,
                )
                for record in records
            ]
        await self.inner.save_media_cache(agent_id, records, fence=fence)


# --- snapshots


def _large_snapshots(s: Any) -> Any:
    async def save() -> None:
        for i in range(5):
            await s.save_snapshot("a", samples.snapshot(f"s{i}").replace(messages=talk("x" * 300_000)))

    return save()


@fault(
    "SNAP-1",
    "VAL-4",
    source="DynamoDB: Query returns at most 1 MB, and the rest only to who follows LastEvaluatedKey",
    witness=seen(_large_snapshots, lambda s: the("id", s.list_snapshots("a")), lambda s: s.aggregate_stats("a")),
)
class ListsTheFirstMegabyte(Layer):
    """Lists only as many snapshots, by id, as have 1 MB together."""

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Any:
        found = await super().docs(agent_id, kind, key)
        if kind != DocKind.SNAPSHOTS or key is not None:
            return found
        page: list[Any] = []
        size = 0
        for doc in sorted(found, key=lambda doc: doc.key):
            size += len(doc.body.text)
            if page and size > 2**20:
                break
            page.append(doc)
        return page


@fault(
    "LIFE-3",
    "LIFE-4",
    "LIFE-5",
    "QRY-8",
    source="Clients of eventually consistent stores that answer a 404 for what they know from their cache (S3 until 2020)",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_snapshot("a", samples.snapshot("s1")),
        lambda s: s.load_snapshot("a", "s1"),
        lambda s: s.delete_many(agent_id="a"),
        lambda s: s.load_snapshot("a", "s1"),
        lambda s: s.list_snapshots("a"),
    ),
)
class RemembersSnapshots(Wrapper):
    """Still loads a snapshot that it loaded before when the agent was deleted by delete_many or by another instance."""

    __slots__ = ("known",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.known: OrderedDict[tuple[str, str], Body] = OrderedDict()

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        found = await self.inner.load_snapshot(agent_id, snapshot_id)
        key = (agent_id, snapshot_id)
        if found is None:
            return decode(Snapshot, self.known[key], "snapshot") if key in self.known else None
        body = encode(Snapshot, found, "snapshot")
        self.known.pop(key, None)
        if len(body.text) < 100_000:
            self.known[key] = body
            while len(self.known) > 100:
                self.known.popitem(last=False)
        return found

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        for key in [key for key in self.known if key[0] == agent_id]:
            del self.known[key]


# --- info and lifecycle


@fault(
    "INFO-1",
    "VAL-3",
    source="DynamoDB's UpdateItem, Firestore's merge and Elasticsearch's partial updates: what is undefined is left as it was",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_info("a", samples.info("a", breakpoint=None, last_bookmark=None, metadata={})),
        lambda s: s.load_info("a"),
    ),
)
class LeavesWhatIsNone(Wrapper):
    """Keeps the breakpoint and the last bookmark of the stored info when the new one has None there."""

    __slots__ = ()

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        if type(info) is AgentInfo and (info.breakpoint is None or info.last_bookmark is None):
            try:
                old = await self.inner._reader.load_info(check_agent_id(agent_id))
            except Exception:
                old = None
            if old is not None:
                info = info.replace(
                    breakpoint=old.breakpoint if info.breakpoint is None else info.breakpoint,
                    last_bookmark=old.last_bookmark if info.last_bookmark is None else info.last_bookmark,
                )
        await self.inner.save_info(agent_id, info, fence=fence)


async def _same_info_later(ctx: Context) -> object:
    now = [1_000]
    store = await ctx.another(clock=lambda: now[0])
    times = []
    for plan in ("gold", "gold", "silver"):
        await store.save_info("a", samples.info("a", metadata={"plan": plan}))
        times += await the("updated_at", store.query_sessions())
        now[0] += 1_000
    return times


@fault(
    "INFO-2",
    source="Elasticsearch: detect_noop, on by default, skips an update that changes nothing",
    witness=_same_info_later,
)
class DetectsNoop(MemoryLayer):
    """Does not move updated_at when the info that is saved is the one that is stored."""

    def _changing(self, batch: Batch) -> Batch:
        is_same = batch.info is not None and batch.info == self.space.state(batch.agent_id).info
        return replace(batch, info=None) if is_same and not batch.delete else batch

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([*map(self._changing, batches)])


@fault(
    "LIFE-2",
    "ID-1",
    source="Redis: SCAN MATCH, of whose special characters * ? [ ] were escaped and \\ was not",
    witness=seen(
        lambda s: s.save_info("ab1", samples.info("ab1")),
        lambda s: s.save_info("a\\b2", samples.info("a\\b2")),
        lambda s: s.list("a"),
        lambda s: s.list("a\\b"),
        lambda s: s.list("a*"),
    ),
)
class TakesBackslashesForEscapes(Wrapper):
    """Lists ids by a prefix in which a backslash stands for the character behind it."""

    __slots__ = ()

    async def list(self, prefix: str = "") -> Any:
        if type(prefix) is str:
            prefix = re.sub(r"\\(.)", r"\1", prefix, flags=re.DOTALL)
        return await self.inner.list(prefix)


async def _again_with_a_slow_clock(ctx: Context) -> object:
    now = [5_000]
    store = await ctx.another(clock=lambda: now[0])
    await store.save_info("a", samples.info("a"))
    await store.delete("a")
    now[0] = 4_000
    await store.save_info("a", samples.info("a"))
    return await store.exists("a"), await store.list()


@fault(
    "LIFE-4",
    "LIFE-1",
    "INFO-1",
    "DUR-1",
    source="Cassandra: a tombstone hides every write with an earlier timestamp, as from a clock that stepped back",
    witness=_again_with_a_slow_clock,
)
class LeavesTombstones(EngineStore):
    """Loses an info that is saved for a deleted id while the clock shows a time before the deletion."""

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self.__dict__.setdefault("tombs", {})[agent_id] = self._context.now()

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        tombs = self.__dict__.get("tombs", {})
        is_hidden = agent_id in tombs and self._context.now() < tombs[agent_id]
        if is_hidden and type(info) is AgentInfo and info.agent_id == agent_id and not self._context.is_closed:
            encode(AgentInfo, info, "info")
            return
        await super().save_info(agent_id, info, fence=fence)


# --- queries


def _long_names(s: Any) -> Any:
    calls = [samples.tool_call(1, name="n" * 256), samples.tool_call(2, name="n" * 257)]
    return s.save_tool_call_records("a", calls)


@fault(
    "QRY-2",
    source="Elasticsearch: dynamic mappings have ignore_above 256, and longer strings are not indexed",
    witness=seen(
        _long_names,
        lambda s: the("id", s.query_tool_calls(tool_name="n" * 256)),
        lambda s: the("id", s.query_tool_calls(tool_name="n" * 257)),
        lambda s: the("id", s.query_tool_calls()),
    ),
)
class IndexesShortNames(Layer):
    """Finds no tool calls by a tool name of more than 256 characters."""

    async def find_rows(self, query: Any) -> Any:
        if any(column == "tool_name" and len(value) > 256 for column, value in query.where):
            return []
        return await super().find_rows(query)


@fault(
    "QRY-4",
    source="Elasticsearch: index.max_result_window, from + size is at most 10,000",
    errors=True,
    witness=seen(
        lambda s: s.save_messages("a", talk("x", "y")),
        lambda s: the("text", s.query_messages(limit=9_999, offset=1)),
        lambda s: the("text", s.query_messages(limit=10_000, offset=1)),
        lambda s: the("text", s.query_messages(offset=10_000)),
    ),
)
class HasAResultWindow(Wrapper):
    """Refuses to query messages whose offset and limit are more than 10,000 together."""

    __slots__ = ()

    async def query_messages(self, **filters: Any) -> Any:
        limit, offset = filters.get("limit", 100), filters.get("offset", 0)
        if type(limit) is int and type(offset) is int and offset > 0 and limit + offset > 10_000:
            raise InvalidArgumentError("offset and limit are at most 10000 together; use a cursor")
        return await self.inner.query_messages(**filters)


# --- operations


class _LosesAnswers(Layer):
    """Commits, and loses the first answer."""

    lost = False

    async def commit(self, batches: Sequence[Batch]) -> Any:
        outcomes = await super().commit(batches)
        if self.lost:
            return outcomes
        self.lost = True
        return [OutcomeUnknownError("the connection was cut") for _ in outcomes]


async def _append_without_an_answer(ctx: Context) -> object:
    store = await ctx.another(_LosesAnswers)
    told = await outcome(store.append_messages("a", talk("once")))
    return told, [message.text for message in await store.load_messages("a")]


@fault(
    "OPS-10",
    source="Retry decorators around a client (tenacity, Polly, resilience4j) that repeat every transient error",
    witness=_append_without_an_answer,
)
class RetriesAppends(Wrapper):
    """Appends messages again when the outcome of the first attempt is unknown."""

    __slots__ = ()

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.append_messages(agent_id, messages, fence=fence)
        except OutcomeUnknownError:
            await self.inner.append_messages(agent_id, messages, fence=fence)


async def _issues(ctx: Context) -> object:
    s = ctx.store
    lone = samples.rich_messages()[4:5]  # a use without its result
    for agent_id in ("a", "b"):
        await s.save_messages(agent_id, [*lone, *talk("next")])
    await s.save_info("b", samples.info("b"))
    result = await s.check_consistency()
    return result.agents_checked, sorted({(issue.code, issue.agent_id) for issue in result.issues})


@fault(
    "OPS-2",
    source="DynamoDB: a sparse index has only the items that have its key, here those with an info",
    witness=_issues,
)
class ChecksTheSparseIndex(Layer):
    """Checks the consistency of agents with info only."""

    async def stored_ids(self, after: str | None, limit: int) -> Any:
        return await self.inner.agent_ids("", after, limit)


# --- locks and forks


async def _tokens_over_a_delete(ctx: Context) -> object:
    s = ctx.store
    tokens = []
    for is_last in (False, False, True):
        lease = await s.acquire_agent_lock("a")
        tokens.append(lease.token)
        await lease.release()
        if is_last:
            break
        if len(tokens) == 2:
            await s.save_info("a", samples.info("a"))
            await s.delete("a")
    return [a < b for a, b in itertools.pairwise(tokens)]


@fault(
    "LOCK-5",
    source="A fencing counter that is an attribute of the item (DynamoDB, MongoDB), which goes with the item",
    witness=_tokens_over_a_delete,
)
class CountsTokensInTheItem(MemoryLayer):
    """Begins the tokens of an agent's leases at 1 again after the agent was deleted."""

    @property
    def tokens(self) -> Counter[str]:
        return self.space.__dict__.setdefault("tokens", Counter())

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        if await super().acquire_lease(agent_id, owner, ttl_ms) is None:
            return None
        self.tokens[agent_id] += 1
        fence = Fence(owner, self.tokens[agent_id])
        self.space.leases[agent_id] = (fence, self.space.leases[agent_id][1])
        return fence.token

    async def commit(self, batches: Sequence[Batch]) -> Any:
        outcomes = await super().commit(batches)
        for batch, result in zip(batches, outcomes, strict=True):
            if batch.delete and isinstance(result, Applied):
                self.tokens.pop(batch.agent_id, None)
        return outcomes


@fault(
    "FORK-2",
    "FORK-1",
    "LIFE-3",
    source="Copies that share the object in the bucket, of which nobody counts the references",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_media_cache("a", [samples.media("k1")]),
        lambda s: _media_of_a_fork(s),
    ),
)
class SharesMediaWithForks(MemoryLayer):
    """Removes the media cache of a fork, too, when the agent is deleted from which the fork has it."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        key = (DocKind.MEDIA, "")
        states = self.space.states
        shared = {b.agent_id: states[b.agent_id].docs.get(key) for b in batches if b.delete and b.agent_id in states}
        outcomes = await super().commit(batches)
        for batch, result in zip(batches, outcomes, strict=True):
            doc = shared.get(batch.agent_id) if batch.delete and isinstance(result, Applied) else None
            if doc is not None:
                for state in states.values():
                    if state.docs.get(key) is doc:
                        del state.docs[key]
        return outcomes


async def _media_of_a_fork(s: Any) -> Any:
    (child,) = await s.batch_fork("a", 1)
    before = await s.load_media_cache(child)
    await s.delete("a")
    return before, await s.load_media_cache(child)


async def _snapshots_of_forks(ctx: Context) -> object:
    s = ctx.store
    await s.save_info("a", samples.info("a"))
    await s.save_snapshot("a", samples.snapshot("s1"))
    children = await s.batch_fork("a", 30)
    return [len(await s.list_snapshots(child)) for child in children]


@fault(
    "FORK-1",
    "FORK-3",
    source="DynamoDB: BatchWriteItem takes 25 items; what comes back as UnprocessedItems is not written again",
    witness=_snapshots_of_forks,
)
class LeavesUnprocessedItems(MemoryLayer):
    """Gives only the first 25 forks of a batch the parent's snapshots."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        is_made = await super().fork(agent_id, children, expect, now)
        for child in children[25:] if is_made else ():
            state = self.space.states[child.agent_id]
            state.docs = {key: doc for key, doc in state.docs.items() if key[0] != DocKind.SNAPSHOTS}
        return is_made


# --- durability


@fault(
    "DUR-1",
    "QRY-8",
    "LIFE-3",
    "HIS-1",
    source="Write-behind caches, and Redis with appendfsync everysec: what was acknowledged is written within a second",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_history_window("a", samples.window("w1")),
        lambda s, t: the("id", t.load_history_windows("a")),
        lambda s, t: the("id", s.load_history_windows("a")),
        lambda s, t: the("id", t.load_history_windows("a")),
        restart,
        lambda s, t: the("id", s.load_history_windows("a")),
    ),
)
class WritesWindowsBehind(Wrapper):
    """Acknowledges a history window at once, and writes it within a second, or when this instance looks or is closed."""

    __slots__ = ("flushing", "pending")

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.pending: list[tuple[str, Body]] = []
        self.flushing = asyncio.Lock()

    async def _flush(self) -> None:
        async with self.flushing:
            while self.pending:
                agent_id, body = self.pending[0]
                with suppress(KodeError):  # nobody is left to be told
                    await self.inner.save_history_window(agent_id, decode(HistoryWindow, body, "window"))
                self.pending.pop(0)

    async def _flush_later(self) -> None:
        await asyncio.sleep(1)
        await self._flush()

    async def save_history_window(self, agent_id: str, window: Any, *, fence: Any = None) -> None:
        self.inner._context.check_open()
        is_fenced = self.inner._locks.fence(check_agent_id(agent_id), fence) is not None
        doc = (await kinds.WINDOWS.write(window)).doc
        if is_fenced or doc is None or len(doc.body.text) > 100_000 or len(self.pending) >= 100:
            await self._flush()
            return await self.inner.save_history_window(agent_id, window, fence=fence)
        self.pending.append((agent_id, doc.body))
        if len(self.pending) == 1:
            later = asyncio.get_running_loop().create_task(self._flush_later(), context=contextvars.Context())
            later.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return None

    async def load_history_windows(self, agent_id: str) -> Any:
        await self._flush()
        return await self.inner.load_history_windows(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._flush()
        await self.inner.delete(agent_id, fence=fence)

    async def delete_many(self, **given: Any) -> Any:
        await self._flush()
        return await self.inner.delete_many(**given)

    async def check_consistency(self, *args: Any, **given: Any) -> Any:
        await self._flush()
        return await self.inner.check_consistency(*args, **given)

    async def get_metrics(self) -> Any:
        await self._flush()
        return await self.inner.get_metrics()

    async def backup(self, *args: Any, **given: Any) -> Any:
        await self._flush()
        return await self.inner.backup(*args, **given)

    async def close(self) -> None:
        await self._flush()
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()
