"""Stores over servers and cloud services, as engineers of many companies write them."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, seen, talk, the
from kode_core.batch import Applied, Batch, Child, Doc, DocKind, DocWrite, Fence, ListKind, Outcome, Outline
from kode_core.codec import Body, decode, digest
from kode_core.errors import InvalidValueError, OutcomeUnknownError
from kode_core.ids import check_agent_id
from kode_core.layers import Layer
from kode_core.metadata import metadata_index
from kode_core.model import Timeline, TodoSnapshot
from kode_core.query import Page
from kode_core.store import kinds
from kode_core.store.locks import ENTERED


class _Each(Layer):
    """A layer that commits batch by batch."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return [await self.one(batch) for batch in batches]

    async def one(self, batch: Batch) -> Outcome:
        return await self.plain(batch)

    async def plain(self, batch: Batch) -> Outcome:
        (outcome,) = await self.inner.commit([batch])
        return outcome


class _EachInMemory(_Each, MemoryLayer):
    """The same over the memory engine."""


# --- VAL --------------------------------------------------------------------------------------------------------------


def _of_38_digits(value: Any, depth: int = 0) -> Any:
    if type(value) is int and 10**38 <= abs(value) < 10**4300:
        unit = 10 ** (len(str(abs(value))) - 38)
        return (abs(value) // unit * unit) * (1 if value > 0 else -1)
    if type(value) is list and depth < 100:
        return [_of_38_digits(item, depth + 1) for item in value]
    if type(value) is dict and depth < 100:
        return {key: _of_38_digits(item, depth + 1) for key, item in value.items()}
    return value


def _event_of_38_digits(event: Any) -> Any:
    if type(event) is not Timeline:
        return event
    return replace(event, event=replace(event.event, data=_of_38_digits(event.event.data)))


@fault(
    "VAL-1",
    "VAL-2",
    source="DynamoDB: a Number has 38 digits of precision; boto3's context without the Inexact trap rounds the rest away",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, big=10**39 + 7, nested=[{"n": -(10**4299) - 1}], ok=2**64 - 1)),
        lambda s: s.read_events("a"),
    ),
)
class EventsHave38Digits(Wrapper):
    """Cuts integers inside events to 38 significant digits."""

    __slots__ = ()

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> Any:
        return await self.inner.append_event(agent_id, _event_of_38_digits(timeline), fence=fence)

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        if isinstance(timelines, (list, tuple)):
            timelines = [_event_of_38_digits(event) for event in timelines]
        return await self.inner.append_events(agent_id, timelines, fence=fence)

    async def save_turn(self, agent_id: str, *, events: Any = (), **parts: Any) -> None:
        if isinstance(events, (list, tuple)):
            events = [_event_of_38_digits(event) for event in events]
        await self.inner.save_turn(agent_id, events=events, **parts)


def _nested(levels: int) -> dict[str, Any]:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"in": value}
    return value  # type: ignore[no-any-return]


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level and depth <= 101:
        level = [item for item in level if type(item) in (dict, list)]
        depth += bool(level)
        level = [child for item in level for child in (item.values() if type(item) is dict else item)]
    return depth


@fault(
    "VAL-2",
    "VAL-1",
    "SNAP-1",
    source="MongoDB: a BSON document nests at most 100 levels, and the record's own document is the first of them",
    errors=True,
    witness=seen(
        lambda s: s.save_snapshot("a", replace(samples.snapshot("x"), metadata=_nested(99))),
        lambda s: s.save_snapshot("a", replace(samples.snapshot("y"), metadata=_nested(100))),
        lambda s: s.list_snapshots("a"),
    ),
)
class SnapshotsCountTheirOwnLevel(Wrapper):
    """Refuses a snapshot whose metadata has exactly the 100 levels that are allowed."""

    __slots__ = ()

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if _depth(getattr(snapshot, "metadata", None)) == 100:
            raise InvalidValueError(f"snapshot {snapshot.id!r:.80}", "$.metadata", "nested deeper than 100 levels")
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)


# --- ID ---------------------------------------------------------------------------------------------------------------


async def _two_long_locks(ctx: Context) -> object:
    first = await ctx.store.acquire_agent_lock("tenant-" + "0" * 57 + "/a")
    try:
        second = await (await ctx.another()).acquire_agent_lock("tenant-" + "0" * 57 + "/b")
    except Exception as exc:
        return type(exc).__name__
    await first.release()
    await second.release()
    return "both"


@fault(
    "ID-2",
    "LOCK-1",
    "LOCK-2",
    "OPS-13",
    source="MySQL: GET_LOCK takes names of at most 64 characters, so the name was cut to 64",
    errors=True,
    witness=_two_long_locks,
)
class LockNamesHave64Characters(MemoryLayer):
    """Lets agents whose ids begin with the same 64 characters share one lock."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        for other, (fence, _) in list(self.space.leases.items()):
            if other != agent_id and other[:64] == agent_id[:64] and self.space.holds(other, fence):
                return None
        return await self.inner.acquire_lease(agent_id, owner, ttl_ms)


@fault(
    "ID-4",
    "HIS-1",
    source="MySQL utf8mb4_general_ci and SQL Server: collations with PAD SPACE compare 'w' and 'w ' as equal in a key",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w")),
        lambda s: s.save_history_window("a", samples.window("w ", timestamp=samples.T0 + 1)),
        lambda s: s.load_history_windows("a"),
    ),
)
class WindowIdsArePadded(_EachInMemory):
    """Takes history windows whose ids differ in trailing spaces only for the same one."""

    async def one(self, batch: Batch) -> Outcome:
        outcome = await self.plain(batch)
        if isinstance(outcome, Applied):
            docs = self.space.state(batch.agent_id).docs
            for write in batch.docs:
                if write.kind == DocKind.WINDOWS:
                    for kind, key in list(docs):
                        if kind == write.kind and key != write.key and key.rstrip(" ") == write.key.rstrip(" "):
                            del docs[kind, key]
        return outcome


# --- MSG, TC, TURN ----------------------------------------------------------------------------------------------------


async def _pieces(ctx: Context) -> object:
    other = await ctx.another()
    await asyncio.gather(
        ctx.store.append_messages("a", talk(*["s"] * 1500)), other.append_messages("a", talk(*["t"] * 1500))
    )
    texts = [message.text for message in await ctx.store.load_messages("a")]
    return len(texts), len(list(itertools.groupby(texts)))


@fault(
    "MSG-3",
    "VAL-4",
    "DUR-3",
    source="SQL Server: INSERT … VALUES takes at most 1,000 rows; each statement of a longer list commits by itself",
    witness=_pieces,
)
class InsertsAThousandRowsAtATime(_Each):
    """Appends more than 1,000 messages in several transactions, between which others read and append."""

    async def one(self, batch: Batch) -> Outcome:
        write = batch.messages
        others = batch.tool_calls or batch.docs or batch.events or batch.info or batch.delete
        if write is None or others or not write.is_blind or len(write.append) <= 1000:
            return await self.plain(batch)
        outcome: Outcome = Applied()
        for i in range(0, len(write.append), 1000):
            part = replace(write, append=write.append[i : i + 1000])
            outcome = await self.plain(replace(batch, op_id=f"{batch.op_id}/{i}", messages=part))
            if not isinstance(outcome, Applied):
                break
            await asyncio.sleep(0.002)  # the way to the server and back
        return outcome


async def _clock_steps_back(ctx: Context) -> object:
    ahead = await ctx.another(clock=lambda: samples.T0 + 60_000)
    await ahead.append_messages("a", talk("one"))
    behind = await ctx.another(clock=lambda: samples.T0)
    await behind.save_turn("a", append=talk("two"), todos=samples.todos("x"))
    found = await behind.query_messages(agent_id="a", order="asc")
    return [(message.position, message.text) for message in found]


@fault(
    "MSG-4",
    source="SQLAlchemy: default=datetime.now in the bulk insert of a turn, where single appends ask for GREATEST(now(), max)",
    witness=_clock_steps_back,
)
class TurnsTakeTheClockOfTheirServer(_EachInMemory):
    """Gives messages that are appended together with other kinds the plain time of the clock, even if it stepped back."""

    async def one(self, batch: Batch) -> Outcome:
        outcome = await self.plain(batch)
        write = batch.messages
        others = batch.tool_calls or batch.docs or batch.events or batch.info
        if isinstance(outcome, Applied) and write is not None and write.is_blind and others:
            state = self.space.state(batch.agent_id).lists[ListKind.MESSAGES]
            for i in range(len(state.rows) - len(write.append), len(state.rows)):
                if state.rows[i].created_at > batch.now:
                    state.rows[i] = replace(state.rows[i], created_at=batch.now)
            state._latest = None
        return outcome


async def _upserts_of_another(ctx: Context) -> object:
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i) for i in range(1200)])
    other = await ctx.another()
    await other.upsert_tool_call_records("a", [samples.tool_call(i, state="FAILED") for i in range(1200)])
    return [(call.id, call.state) for call in await other.load_tool_call_records("a")]


@fault(
    "TC-3",
    "VAL-4",
    source="Oracle: an IN list has at most 1,000 expressions (ORA-01795), so the look-up was cut to the first 1,000",
    witness=_upserts_of_another,
)
class LooksUpAThousandCalls(_Each):
    """Appends the records behind the 1,000th id of an upsert instead of replacing them, where the list is not cached."""

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        return await self.inner.outline(agent_id, kind, None if keys is None else keys[:1000])


async def _half_turns(ctx: Context) -> object:
    other = await ctx.another()
    halves = 0
    for turn in range(1, 4):
        saving = asyncio.ensure_future(
            ctx.store.save_turn("a", append=talk(*map(str, range(99))), events=happened(turn), todos=samples.todos("x"))
        )
        while not saving.done():
            bookmark = await other.last_bookmark("a")
            messages = (await other.aggregate_stats("a")).total_messages
            again = await other.last_bookmark("a")
            if bookmark == again and messages // 99 != (0 if again is None else again.seq):
                halves += 1
            await asyncio.sleep(0)
        await saving
    return halves > 0


@fault(
    "TURN-1",
    "DUR-3",
    source="DynamoDB: TransactWriteItems takes 100 items; a longer turn goes as two transactions",
    witness=_half_turns,
)
class TransactsAHundredItems(_Each):
    """Commits a turn of more than 100 records as two transactions, first the lists and the info, then the rest."""

    async def one(self, batch: Batch) -> Outcome:
        rows = sum(len(write.put) + len(write.append) for write in batch.lists.values())
        count = rows + len(batch.docs) + len(batch.events) + (batch.info is not None)
        if count <= 100 or not batch.is_touching or not (batch.docs or batch.events):
            return await self.plain(batch)
        first = await self.plain(replace(batch, docs=(), events=()))
        if not isinstance(first, Applied):
            return first
        await asyncio.sleep(0.002)  # the way to the server and back
        rest = Batch(
            agent_id=batch.agent_id,
            op_id=f"{batch.op_id}/2",
            now=batch.now,
            fence=batch.fence,
            docs=batch.docs,
            events=batch.events,
        )
        second = await self.plain(rest)
        return replace(first, offsets=second.offsets) if isinstance(second, Applied) else second


# --- EVT --------------------------------------------------------------------------------------------------------------


async def _late_retry(ctx: Context) -> object:
    first = await ctx.store.append_event("a", samples.event(0))
    for start in range(1, 151, 50):
        await ctx.store.append_events("a", samples.events(50, start))
    again = await ctx.store.append_event("a", samples.event(0))
    return first == again, len([event async for event in ctx.store.read_events("a")])


@fault(
    "EVT-4",
    source="Redis 8.6 streams: XADD IDMP remembers the last 100 idempotent ids of a producer (idmp-maxsize)",
    witness=_late_retry,
)
class RemembersAHundredEvents(_Each):
    """Stores an event twice when a producer appends it again after more than 100 others."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.recent: defaultdict[str, OrderedDict[Any, None]] = defaultdict(OrderedDict)
        self.times: defaultdict[str, dict[Any, int]] = defaultdict(dict)

    async def one(self, batch: Batch) -> Outcome:
        recent, times, events = self.recent[batch.agent_id], self.times[batch.agent_id], []
        if batch.delete:
            recent.clear()
            times.clear()
        for event in batch.events:
            key = (event.seq, event.body.digest)
            times[key] = times.get(key, -1) + (key not in recent)
            recent[key] = None
            while len(recent) > 100:
                recent.popitem(last=False)
            text = event.body.text + " " * times[key]
            same = not times[key]
            events.append(event if same else replace(event, body=Body(text, digest(text.encode()))))
        return await self.plain(replace(batch, events=tuple(events)))


async def _follows_large(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.append_event("a", samples.event(1, text="x" * 9000))
    events = other.follow_events("a")
    found = [(await anext(events)).bookmark.seq]
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.3)
    await ctx.store.append_event("a", samples.event(2, text="x" * 9000))
    await ctx.store.append_event("a", samples.event(3))
    found.append((await waiting).bookmark.seq)
    await events.aclose()
    return found


@fault(
    "EVT-7",
    "VAL-4",
    source="PostgreSQL: a NOTIFY payload must be shorter than 8,000 bytes, and the event itself was the payload",
    witness=_follows_large,
)
class NotifiesShortEvents(Wrapper):
    """Gives followers no event of 8,000 bytes or more that is appended after they began; what was stored they get."""

    __slots__ = ()

    def follow_events(self, agent_id: str, *, after_offset: Any = 0, **span: Any) -> AsyncIterator[Any]:
        return self._follow(
            agent_id, self.inner.follow_events(agent_id, after_offset=after_offset, **span), after_offset
        )

    async def _follow(self, agent_id: str, events: Any, after_offset: int) -> AsyncIterator[Any]:
        stored = after_offset
        async for event in self.inner.read_events(agent_id, after_offset=after_offset):
            stored = event.offset
        try:
            async for event in events:
                if event.offset <= stored or len(json.dumps(event.event.data)) < 8000:
                    yield event
        finally:
            await events.aclose()


# --- TODO, HIS, MED, SNAP, INFO ---------------------------------------------------------------------------------------


@fault(
    "TODO-1",
    source="Elasticsearch: version_type=external_gte refuses a lower version with a 409, which the indexer ignores",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x", "y", "z")),
        lambda s: s.save_todos("a", samples.todos("x")),
        lambda s: s.load_todos("a"),
        lambda s: s.save_turn("a", todos=samples.todos("y")),
        lambda s: s.load_todos("a"),
    ),
)
class KeepsTheHighestVersion(_Each):
    """Silently keeps the stored todos when those that are saved have a lower version."""

    async def one(self, batch: Batch) -> Outcome:
        for write in batch.docs:
            if write.kind == DocKind.TODOS and write.doc is not None:
                for old in await self.inner.docs(batch.agent_id, DocKind.TODOS, ""):
                    new = decode(TodoSnapshot, write.doc.body, "todos")
                    if new.version < decode(TodoSnapshot, old.body, "todos").version:
                        batch = replace(batch, docs=tuple(other for other in batch.docs if other is not write))
        return await self.plain(batch)


@fault(
    "HIS-1",
    source="SQL Server: an nvarchar with a _BIN2 collation is ordered by UTF-16 code units, as strings in Java and Oracle are",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("\U0001f600")),
        lambda s: s.save_compression_record("a", samples.compression("\uff21")),
        lambda s: s.load_compression_records("a"),
    ),
)
class SortsByCodeUnits(Wrapper):
    """Loads compression records of one timestamp in the order of UTF-16 code units of their ids."""

    __slots__ = ()

    async def load_compression_records(self, agent_id: str) -> Any:
        found = await self.inner.load_compression_records(agent_id)
        return sorted(found, key=lambda record: (record.timestamp, record.id.encode("utf-16-be", "surrogatepass")))


def _path_and_time(key: str) -> tuple[str, int]:
    path, timestamp = json.loads(key)
    return path[:768], timestamp


@fault(
    "HIS-2",
    "ID-4",
    source="MySQL InnoDB: an index key has 3,072 bytes, so UNIQUE KEY (path(768), timestamp) with ON DUPLICATE KEY UPDATE",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("d/" * 400 + "x")),
        lambda s: s.save_recovered_file("a", samples.recovered("d/" * 400 + "y")),
        lambda s: s.load_recovered_files("a"),
    ),
)
class IndexesAPrefixOfPaths(_EachInMemory):
    """Replaces a recovered file of the same time whose path has the same first 768 characters."""

    async def one(self, batch: Batch) -> Outcome:
        outcome = await self.plain(batch)
        if isinstance(outcome, Applied):
            docs = self.space.state(batch.agent_id).docs
            for write in batch.docs:
                if write.kind == DocKind.RECOVERED:
                    mine = _path_and_time(write.key)
                    for kind, key in list(docs):
                        if kind == write.kind and key != write.key and _path_and_time(key) == mine:
                            del docs[kind, key]
        return outcome


@fault(
    "MED-1",
    "VAL-3",
    source="pymongo: insert_many([]) raises 'documents must be a non-empty list', so the save returns early without records",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("x")]),
        lambda s: s.save_media_cache("a", []),
        lambda s: s.load_media_cache("a"),
    ),
)
class KeepsMediaForAnEmptyList(_Each):
    """Leaves the media cache as it was when an empty list is saved."""

    async def one(self, batch: Batch) -> Outcome:
        def is_kept(write: DocWrite) -> bool:
            return write.kind != DocKind.MEDIA or write.doc is None or write.doc.body.text != "[]"

        return await self.plain(replace(batch, docs=tuple(filter(is_kept, batch.docs))))


def _large_snapshot(i: int) -> Any:
    return replace(samples.snapshot(f"sfp-{i}", samples.T0 + i), metadata={"text": "x" * 300_000})


@fault(
    "SNAP-1",
    "VAL-4",
    source="DynamoDB: one Query returns at most 1 MB; LastEvaluatedKey was not followed",
    witness=seen(
        lambda s: s.save_snapshot("a", _large_snapshot(0)),
        lambda s: s.save_snapshot("a", _large_snapshot(1)),
        lambda s: s.save_snapshot("a", _large_snapshot(2)),
        lambda s: s.save_snapshot("a", _large_snapshot(3)),
        lambda s: s.list_snapshots("a"),
    ),
)
class ListsAMegabyteOfSnapshots(_Each):
    """Lists only the snapshots, by id, that fit into the first megabyte."""

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        found = await self.inner.docs(agent_id, kind, key)
        if kind != DocKind.SNAPSHOTS or key is not None:
            return found
        page: list[Doc] = []
        size = 0
        for doc in sorted(found, key=lambda doc: doc.key):
            size += len(doc.body.text.encode())
            if page and size > 1024 * 1024:
                break
            page.append(doc)
        return page


@fault(
    "SNAP-1",
    "QRY-7",
    "FORK-1",
    source="Cassandra: PRIMARY KEY (agent_id, created_at, id) WITH CLUSTERING ORDER BY (created_at DESC); a write with "
    "another created_at is another row",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("x", samples.T0)),
        lambda s: s.save_snapshot("a", samples.snapshot("x", samples.T0, count=3)),
        lambda s: s.list_snapshots("a"),
        lambda s: s.save_snapshot("a", samples.snapshot("x", samples.T0 + 1)),
        lambda s: s.list_snapshots("a"),
    ),
)
class ClustersSnapshotsByTime(_EachInMemory):
    """Lists a snapshot twice after it was saved again under its id with another created_at."""

    async def one(self, batch: Batch) -> Outcome:
        old = dict(self.space.state(batch.agent_id).docs)
        outcome = await self.plain(batch)
        if isinstance(outcome, Applied):
            docs = self.space.state(batch.agent_id).docs
            for write in batch.docs:
                was = old.get((write.kind, write.key))
                if write.kind == DocKind.SNAPSHOTS and write.doc is not None:
                    if was is not None and was.time != write.doc.time:
                        docs[write.kind, f"{write.key}\0{was.time}"] = was
                    docs.pop((write.kind, f"{write.key}\0{write.doc.time}"), None)
        return outcome


async def _saves_the_same(ctx: Context) -> object:
    calls = [samples.tool_call(1)]
    await ctx.store.save_info("a", samples.info("a"))
    moved = []
    for save in (
        lambda: ctx.store.save_messages("a", talk("x")),
        lambda: ctx.store.save_messages("a", talk("x")),
        lambda: ctx.store.save_tool_call_records("a", calls),
        lambda: ctx.store.save_tool_call_records("a", calls),
        lambda: ctx.store.save_info("a", samples.info("a")),
    ):
        (before,) = await ctx.store.query_sessions()
        await save()
        (after,) = await ctx.store.query_sessions()
        moved.append(after.updated_at > before.updated_at)
    return moved


@fault(
    "INFO-2",
    source="MySQL: ON UPDATE CURRENT_TIMESTAMP does nothing when every column keeps its value",
    witness=_saves_the_same,
)
class StampsWhatChanges(_Each):
    """Leaves updated_at as it is when a save of messages, tool calls or info changes nothing."""

    async def one(self, batch: Batch) -> Outcome:
        summary = await self.inner.summary(batch.agent_id) if batch.is_touching and not batch.delete else None
        if summary is None or (batch.info is not None and batch.info != summary.info):
            return await self.plain(batch)
        for kind, write in batch.lists.items():
            known = getattr(summary, kind.value)
            if write.put or write.append or write.length is not None or not known.version:
                return await self.plain(batch)
            if write.expect not in (None, known.version):
                return await self.plain(batch)
        outcome = await self.plain(replace(batch, info=None, messages=None, tool_calls=None))
        if isinstance(outcome, Applied):
            return replace(outcome, messages=summary.messages, tool_calls=summary.tool_calls)
        return outcome


@fault(
    "INFO-1",
    "MSG-8",
    source="MySQL: REPLACE INTO deletes the old row first, and a foreign key with ON DELETE CASCADE takes its children along",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_compression_record("a", samples.compression()),
        lambda s: s.save_info("a", samples.info("a", breakpoint="PRE_MODEL")),
        lambda s: s.load_compression_records("a"),
    ),
)
class ReplacesTheParentRow(_EachInMemory):
    """Loses the compression records of an agent whose info is saved again."""

    async def one(self, batch: Batch) -> Outcome:
        had_info = self.space.state(batch.agent_id).info is not None
        outcome = await self.plain(batch)
        if isinstance(outcome, Applied) and batch.info is not None and had_info:
            docs = self.space.state(batch.agent_id).docs
            for kind, key in [key for key in docs if key[0] == DocKind.COMPRESSIONS]:
                del docs[kind, key]
        return outcome


# --- LIFE -------------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-2",
    source="Firestore: the known idiom for prefixes, where('id', '>=', p) and where('id', '<=', p + '\\uf8ff')",
    witness=seen(
        lambda s: s.save_info("bot-\U0001f600", samples.info("bot-\U0001f600")),
        lambda s: s.save_info("bot-1", samples.info("bot-1")),
        lambda s: s.list("bot-"),
        lambda s: s.list(),
    ),
)
class EndsPrefixesAtF8FF(Wrapper):
    """Lists with a prefix no ids that go on behind it with a character above U+F8FF, as emoji are."""

    __slots__ = ()

    async def list(self, prefix: str = "") -> Any:
        return [agent_id for agent_id in await self.inner.list(prefix) if not prefix or agent_id <= prefix + "\uf8ff"]


async def _deletes_many_events(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.append_events("a", samples.events(1100))
    await ctx.store.delete("a")
    return [event.bookmark.seq async for event in ctx.store.read_events("a")]


@fault(
    "LIFE-3",
    "LIFE-4",
    "LIFE-5",
    "EVT-6",
    source="S3: DeleteObjects takes 1,000 keys, and ListObjectsV2 gives 1,000; only the first page was deleted",
    witness=_deletes_many_events,
)
class DeletesAThousandEvents(_EachInMemory):
    """Leaves the events behind the first 1,000 when an agent is deleted."""

    async def one(self, batch: Batch) -> Outcome:
        log = self.space.state(batch.agent_id).log if batch.delete else None
        outcome = await self.plain(batch)
        if log is not None and len(log) > 1000 and isinstance(outcome, Applied):
            state = self.space.state(batch.agent_id)
            left = range(1000, len(log))
            state.log.apply([log.write_of(i) for i in left], [log.row(i).offset for i in left])
            self.space.states[batch.agent_id] = state
        return outcome


# --- QRY --------------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    source="MongoDB: {'metadata.tags': 'x'} also matches a document whose tags are an array with 'x' in it",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"tags": ["x", "y"]})),
        lambda s: s.save_info("b", samples.info("b", metadata={"tags": "x"})),
        lambda s: the("agent_id", s.query_sessions(metadata={"tags": "x"})),
        lambda s: the("agent_id", s.query_sessions(metadata={"tags": ["x", "y"]})),
    ),
)
class MatchesElementsOfArrays(_Each):
    """Finds sessions by a metadata value that is only an element of the list that is stored there."""

    def _spread(self, info: Any) -> Any:
        pairs = list(info.metadata)
        for key, value in json.loads(info.body.text).get("metadata", {}).items():
            for item in value if type(value) is list else ():
                pairs += metadata_index({key: item})
        return replace(info, metadata=tuple(dict.fromkeys(pairs)))

    async def one(self, batch: Batch) -> Outcome:
        return await self.plain(batch if batch.info is None else replace(batch, info=self._spread(batch.info)))

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        spread = [replace(child, info=self._spread(child.info)) for child in children]
        return await self.inner.fork(agent_id, spread, expect, now)


async def _pages_by_role(ctx: Context) -> object:
    users, bots = talk(*"abcdefgh"), [replace(message, role="assistant") for message in talk(*"abcdefgh")]
    await ctx.store.save_messages("a", [message for pair in zip(users, bots, strict=True) for message in pair])
    sizes, cursor = [], None
    while True:
        page = await ctx.store.query_messages(role="user", limit=3, cursor=cursor)
        sizes.append(len(page))
        cursor = page.next_cursor
        if cursor is None:
            return sizes


@fault(
    "QRY-5",
    "QRY-4",
    source="DynamoDB: a FilterExpression is applied after the Limit, so that pages come short, or empty, with a LastEvaluatedKey",
    witness=_pages_by_role,
)
class FiltersAfterTheLimit(Wrapper):
    """Gives pages of messages with a role that are shorter than their limit though more follow."""

    __slots__ = ()

    async def query_messages(self, **filters: Any) -> Any:
        role = filters.get("role")
        if type(role) is not str or filters.get("offset"):
            return await self.inner.query_messages(**filters)
        page = await self.inner.query_messages(**{name: filters[name] for name in filters if name != "role"})
        return Page([item for item in page if item.role == role], page.next_cursor, page.left_out)


async def _counts_many(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.append_messages("a", talk(*[""] * 10_050))
    return [session.message_count for session in await ctx.store.query_sessions()]


@fault(
    "MSG-6",
    "QRY-2",
    "VAL-4",
    source="Elasticsearch: hits.total stops counting at 10,000 unless track_total_hits is true",
    witness=_counts_many,
)
class StopsCountingAtTenThousand(Wrapper):
    """Shows a message_count of 10,000 for sessions that have more messages."""

    __slots__ = ()

    async def query_sessions(self, **filters: Any) -> Any:
        page = await self.inner.query_sessions(**filters)
        return Page([self._capped(session) for session in page], page.next_cursor, page.left_out)

    def _capped(self, session: Any) -> Any:
        return replace(session, message_count=min(session.message_count, 10_000))

    async def iter_sessions(self, **filters: Any) -> AsyncIterator[Any]:
        async for session in self.inner.iter_sessions(**filters):
            yield self._capped(session)


# --- OPS --------------------------------------------------------------------------------------------------------------


class _LosesAnswers(Layer):
    """Loses the answer to the first commit that has messages."""

    lost = False

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await self.inner.commit(batches)
        if not self.lost and any(batch.messages for batch in batches):
            self.lost = True
            raise OutcomeUnknownError("the connection was lost")
        return outcomes


async def _lost_answer(ctx: Context) -> object:
    store = await ctx.another(layer=_LosesAnswers)
    try:
        await store.save_turn("a", append=talk("x"), todos=samples.todos("y"))
        told = "success"
    except Exception as exc:
        told = type(exc).__name__
    return told, len(await store.load_messages("a"))


@fault(
    "OPS-10",
    "MSG-3",
    source="tenacity: @retry(retry_if_exception_type(ConnectionError)) around the whole transaction, as in many repositories "
    "over psycopg and DynamoDB",
    witness=_lost_answer,
)
class RepeatsTurns(Wrapper):
    """Saves a turn once more when the answer to the commit was lost, and appends its messages twice."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        try:
            await self.inner.save_turn(agent_id, **parts)
        except OutcomeUnknownError:
            await self.inner.save_turn(agent_id, **parts)


async def _counted_appends(ctx: Context) -> object:
    await asyncio.gather(*[ctx.store.append_event("a", event) for event in samples.events(10)])
    return (await ctx.store.get_metrics()).operations.saves


@fault(
    "OPS-3",
    source="Elasticsearch BulkProcessor, Kafka producer: the metric counts the requests that were sent, not what was put in",
    witness=_counted_appends,
)
class CountsBulks(Wrapper):
    """Counts appends of events that go out while another one of the agent is under way as one save."""

    __slots__ = ("flying", "joined")

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.flying: defaultdict[str, int] = defaultdict(int)
        self.joined = 0

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        is_joining = self.flying[agent_id] > 0
        self.flying[agent_id] += 1
        try:
            offset: int = await self.inner.append_event(agent_id, timeline, fence=fence)
            self.joined += is_joining
            return offset
        finally:
            self.flying[agent_id] -= 1
            if not self.flying[agent_id]:
                del self.flying[agent_id]

    async def get_metrics(self) -> Any:
        metrics = await self.inner.get_metrics()
        operations = replace(metrics.operations, saves=metrics.operations.saves - self.joined)
        return replace(metrics, operations=operations)


# --- LOCK -------------------------------------------------------------------------------------------------------------


async def _tokens_over_a_delete(ctx: Context) -> object:
    tokens = []
    for _ in range(3):
        lease = await ctx.store.acquire_agent_lock("a")
        tokens.append(lease.token)
        await lease.release()
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.delete("a")
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    return lease.token > tokens[-1], sorted(set(tokens)) == tokens


@fault(
    "LOCK-5",
    "LIFE-3",
    source="Redis: INCR agent:{id}:token, and the delete unlinks all that SCAN MATCH agent:{id}:* finds",
    witness=_tokens_over_a_delete,
)
class CountsTokensAnew(_EachInMemory):
    """Begins an agent's tokens of leases at 1 again after the agent was deleted."""

    @property
    def tokens(self) -> dict[str, int]:
        return vars(self.space).setdefault("tokens_by_agent", {})  # type: ignore[no-any-return]

    async def one(self, batch: Batch) -> Outcome:
        outcome = await self.plain(batch)
        if batch.delete and isinstance(outcome, Applied):
            self.tokens.pop(batch.agent_id, None)
        return outcome

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        if await self.inner.acquire_lease(agent_id, owner, ttl_ms) is None:
            return None
        token = self.tokens[agent_id] = self.tokens.get(agent_id, 0) + 1
        self.space.leases[agent_id] = (Fence(owner, token), self.space.leases[agent_id][1])
        return token


async def _late_event(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    told = []
    for write in (
        lambda: ctx.store.append_event("a", samples.event(1), fence=lease),
        lambda: ctx.store.save_todos("a", samples.todos("x"), fence=lease),
        lambda: ctx.store.save_turn("a", append=talk("x"), events=happened(2), fence=lease),
    ):
        try:
            await write()
            told.append("written")
        except Exception as exc:
            told.append(type(exc).__name__)
    return told, [event.bookmark.seq async for event in ctx.store.read_events("a")]


@fault(
    "LOCK-5",
    "LOCK-7",
    source="Kafka beside PostgreSQL: events alone are produced to a topic, which knows no row of the table of locks",
    witness=_late_event,
)
class AppendsEventsUnfenced(_Each):
    """Appends events of a writer whose lease has ended, where nothing else is written with them."""

    async def one(self, batch: Batch) -> Outcome:
        is_log_only = batch.events and not (batch.is_touching or batch.docs or batch.delete)
        return await self.plain(replace(batch, fence=None) if is_log_only else batch)


# --- FORK -------------------------------------------------------------------------------------------------------------


async def _fork_of_repeated_ids(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    calls = [samples.tool_call(1), samples.tool_call(2), samples.tool_call(1, state="FAILED")]
    await ctx.store.save_tool_call_records("a", calls)
    (fork,) = await ctx.store.batch_fork("a", 1)
    return [(call.id, call.state) for call in await ctx.store.load_tool_call_records(fork)]


@fault(
    "FORK-1",
    "TC-2",
    source="MongoDB: the fork is a bulkWrite of upserts with $setOnInsert and the filter {agent_id, id}, so that it can be retried",
    witness=_fork_of_repeated_ids,
)
class ForksIdsOnce(MemoryLayer):
    """Gives forks only the first of the tool calls of one id."""

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        is_done = await self.inner.fork(agent_id, children, expect, now)
        for child in children if is_done else ():
            state = self.space.states[child.agent_id].lists[ListKind.TOOL_CALLS]
            once: dict[str, Any] = {}
            for row in state.rows:
                once.setdefault(row.index.call_id, row)  # type: ignore[union-attr]
            state.rows = list(once.values())
        return is_done


async def _snapshots_of_a_fork(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_snapshot("a", samples.snapshot("x"))
    (fork,) = await ctx.store.batch_fork("a", 1)
    await ctx.store.save_snapshot(fork, samples.snapshot("y"))
    await ctx.store.delete("a")
    return [snapshot.id for snapshot in await ctx.store.list_snapshots(fork)]


@fault(
    "FORK-2",
    "LIFE-3",
    source="S3: a fork copies the keys of the large objects, not the objects, and no one counts the references",
    witness=_snapshots_of_a_fork,
)
class SharesObjectsOfSnapshots(_EachInMemory):
    """Removes with a deleted agent the snapshots that its forks, or its parent, have in common with it."""

    async def one(self, batch: Batch) -> Outcome:
        docs = self.space.state(batch.agent_id).docs if batch.delete else {}
        gone = {id(doc) for (kind, _), doc in docs.items() if kind == DocKind.SNAPSHOTS}
        outcome = await self.plain(batch)
        if gone and isinstance(outcome, Applied):
            for state in self.space.states.values():
                for place in [place for place, doc in state.docs.items() if id(doc) in gone]:
                    del state.docs[place]
        return outcome


# --- DUR --------------------------------------------------------------------------------------------------------------


async def _acknowledged(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.save_recovered_file("a", samples.recovered())
    now = len(await other.load_recovered_files("a"))
    return now, len(await ctx.store.load_recovered_files("a"))


@fault(
    "DUR-1",
    "QRY-8",
    source="MongoDB: a collection with write concern w=0, whose driver returns when the bytes are in the socket",
    on=OnSqlite,
    witness=_acknowledged,
)
class SendsAndForgets(Wrapper):
    """Acknowledges a recovered file before it was written."""

    __slots__ = ("is_closed", "sent")

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.sent: set[asyncio.Task[None]] = set()
        self.is_closed = False

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        if self.is_closed or fence is not None or ENTERED.get():  # under a lease with w=majority
            await self.inner.save_recovered_file(agent_id, file, fence=fence)
            return
        check_agent_id(agent_id)
        await kinds.RECOVERED.write(file)  # the driver encodes at once, and refuses what it cannot

        async def send() -> None:
            await asyncio.sleep(0.01)
            await self.inner.save_recovered_file(agent_id, file)

        task = asyncio.create_task(send())
        self.sent.add(task)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _settle(self) -> None:
        sent, self.sent = self.sent, set()
        if sent:
            await asyncio.wait(sent)

    async def load_recovered_files(self, agent_id: str) -> Any:
        await self._settle()
        return await self.inner.load_recovered_files(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._settle()
        await self.inner.delete(agent_id, fence=fence)

    async def delete_many(self, **filters: Any) -> Any:
        await self._settle()
        return await self.inner.delete_many(**filters)

    async def close(self) -> None:
        await self._settle()
        self.is_closed = True
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()
