"""Stores that were ported to SQL, documents, key-value, files and caches, each with one point lost on the way."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, seen, talk, the
from kode_core.batch import DocKind, ListKind, MessageIndex, ToolCallIndex
from kode_core.codec import encode
from kode_core.engines import scan
from kode_core.errors import InvalidArgumentError, InvalidValueError, KodeError
from kode_core.layers import Layer
from kode_core.model import (
    AgentInfo,
    Bookmark,
    MediaCacheRecord,
    Message,
    Snapshot,
    Timeline,
    TodoItem,
    TodoSnapshot,
    ToolCallRecord,
    ToolResultBlock,
)
from kode_core.model.runtime import CHANNELS
from kode_core.query import Page
from kode_core.store import EngineStore

# --- values -----------------------------------------------------------------------------------------------------------


def _affine(records: Any) -> Any:
    if not isinstance(records, (list, tuple)):
        return records
    return [
        replace(r, duration_ms=int(r.duration_ms))
        if isinstance(r, ToolCallRecord) and type(r.duration_ms) is float and r.duration_ms.is_integer()
        else r
        for r in records
    ]


@fault(
    "VAL-1",
    "VAL-2",
    source="a column of INTEGER or NUMERIC affinity in SQLite: 5.0 is stored as the integer 5",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(duration_ms=5.0)]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class PloDurationAffinity(Wrapper):
    """Gives a tool call's ``duration_ms`` of 5.0 back as the integer 5."""

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.save_tool_call_records(agent_id, _affine(records), fence=fence)

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.upsert_tool_call_records(agent_id, _affine(records), fence=fence)

    async def save_turn(
        self, agent_id: str, *, tool_calls: Any = None, upsert_tool_calls: Any = (), **given: Any
    ) -> None:
        await self.inner.save_turn(
            agent_id, tool_calls=_affine(tool_calls), upsert_tool_calls=_affine(upsert_tool_calls), **given
        )


async def _scribble(s: Any) -> Any:
    await s.save_snapshot("a", samples.snapshot())
    (await s.load_snapshot("a", "sfp-1")).metadata["mine"] = True
    return (await s.load_snapshot("a", "sfp-1")).metadata


@fault(
    "VAL-1",
    "QRY-8",
    source="a read-through cache that asks the server for the ETag and then hands out the object it has parsed before",
    witness=seen(_scribble),
)
class PloSharedSnapshot(Wrapper):
    """Gives two callers of ``load_snapshot`` the same object, so that what one changes in its metadata the other
    gets."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.cache: dict[tuple[str, str], tuple[bytes, Any]] = {}

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        fresh = await self.inner.load_snapshot(agent_id, snapshot_id)
        if fresh is None:
            return None
        body = encode(Snapshot, fresh, "snapshot")
        tag, known = self.cache.get((agent_id, snapshot_id), (b"", None))
        if tag == body.digest:
            return known
        if len(body.text) < 65_536:
            if len(self.cache) >= 100:
                self.cache.clear()
            self.cache[agent_id, snapshot_id] = (body.digest, fresh)
        return fresh


def _plain_items(todos: Any) -> Any:
    if not isinstance(todos, TodoSnapshot):
        return todos
    return replace(todos, todos=tuple(replace(t, extra=None) if isinstance(t, TodoItem) else t for t in todos.todos))


@fault(
    "VAL-6",
    "VAL-2",
    source="pydantic: the outer model has extra='allow', the nested one has the default extra='ignore'",
    witness=seen(
        lambda s: s.save_todos(
            "a",
            TodoSnapshot(
                todos=[TodoItem(id="t", title="x", created_at=1, updated_at=1, extra={"due": 3})], updated_at=1
            ),
        ),
        lambda s: s.load_todos("a"),
    ),
)
class PloTodoExtras(Wrapper):
    """Drops the fields that it does not know of the items of a todo list, not those of the list."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await self.inner.save_todos(agent_id, _plain_items(snapshot), fence=fence)

    async def save_turn(self, agent_id: str, *, todos: Any = None, **given: Any) -> None:
        await self.inner.save_turn(agent_id, todos=_plain_items(todos), **given)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _in_ms(filters: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (value - _EPOCH) // timedelta(milliseconds=1)
        if isinstance(value, datetime) and value.utcoffset() is not None
        else value
        for name, value in filters.items()
    }


@fault(
    "VAL-5",
    "QRY-2",
    source="BSON dates and JavaScript's Date have milliseconds: drivers cut the microseconds of a datetime off",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: the(
            "agent_id",
            s.query_sessions(created_before=_EPOCH + timedelta(milliseconds=samples.T0, microseconds=400)),
        ),
    ),
)
class PloDatetimeMs(Wrapper):
    """Cuts the microseconds off the datetimes in the filters of sessions."""

    async def query_sessions(self, **filters: Any) -> Any:
        return await self.inner.query_sessions(**_in_ms(filters))

    def iter_sessions(self, **filters: Any) -> Any:
        return self.inner.iter_sessions(**_in_ms(filters))


# --- identity and keys ------------------------------------------------------------------------------------------------


@fault(
    "ID-3",
    "TURN-1",
    source="an ORM's merge: the primary key is set from the route, over what the body says",
    witness=seen(lambda s: s.save_turn("a", info=samples.info("b")), lambda s: s.load_info("a")),
)
class PloTurnInfoId(Wrapper):
    """Takes an info of another agent in ``save_turn``, under the id of the call; ``save_info`` refuses it."""

    async def save_turn(self, agent_id: str, *, info: Any = None, **given: Any) -> None:
        if isinstance(info, AgentInfo) and type(agent_id) is str:
            info = replace(info, agent_id=agent_id)
        await self.inner.save_turn(agent_id, info=info, **given)


class _Keys(Layer):
    kind = DocKind.SNAPSHOTS

    def key(self, key: str) -> str:
        raise NotImplementedError

    async def commit(self, batches: Any) -> Any:
        def doc(write: Any) -> Any:
            if write.kind != self.kind:
                return write
            key = self.key(write.key)
            return replace(write, key=key, doc=None if write.doc is None else replace(write.doc, key=key))

        return await super().commit([replace(b, docs=tuple(map(doc, b.docs))) for b in batches])

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Any:
        return await super().docs(agent_id, kind, self.key(key) if key is not None and kind == self.kind else key)


@fault(
    "SNAP-1",
    "ID-4",
    "ID-2",
    source="a file for each snapshot on HFS+ or APFS, which takes composed and decomposed names for one",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("caf\u00e9")),
        lambda s: s.save_snapshot("a", samples.snapshot("cafe\u0301", count=3)),
        lambda s: s.list_snapshots("a"),
    ),
)
class PloSnapshotsNfc(_Keys):
    """Keeps one snapshot of two whose ids differ only in their Unicode normal form."""

    def key(self, key: str) -> str:
        return unicodedata.normalize("NFC", key)


@fault(
    "HIS-1",
    "ID-4",
    source="MySQL's PAD SPACE collations: 'x' = 'x ' in a unique key",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("c")),
        lambda s: s.save_compression_record("a", samples.compression("c ", samples.T0 + 1)),
        lambda s: s.load_compression_records("a"),
    ),
)
class PloCompressionsPadSpace(_Keys):
    """Replaces a compression record by one whose id has spaces at its end more."""

    kind = DocKind.COMPRESSIONS

    def key(self, key: str) -> str:
        return key.rstrip(" ")


# --- messages and turns -----------------------------------------------------------------------------------------------


async def _times(s: Any) -> Any:
    await s.save_messages("a", talk("one", "two", "three"))
    before = [m.created_at for m in await s.query_messages(order="asc")]
    await asyncio.sleep(0.03)
    await s.save_messages("a", [*talk("one"), Message.assistant("2"), *talk("three")])
    return before == [m.created_at for m in await s.query_messages(order="asc")]


@fault(
    "MSG-4",
    source="a table partitioned by role: an update of the partition key is a delete and an insert, with DEFAULT now()",
    witness=seen(_times),
)
class PloRestampsRoleChange(MemoryLayer):
    """Gives a message that is replaced by one of another role a new time."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._stamped(batch) for batch in batches])

    def _stamped(self, batch: Any) -> Any:
        if batch.messages is None or not batch.messages.put:
            return batch
        rows = self.space.state(batch.agent_id).lists[ListKind.MESSAGES].rows

        def role(index: Any) -> str:
            return index.role if isinstance(index, MessageIndex) else ""

        put = tuple(
            (i, replace(row, created_at=batch.now) if i < len(rows) and role(rows[i].index) != role(row.index) else row)
            for i, row in batch.messages.put
        )
        return replace(batch, messages=replace(batch.messages, put=put))


@fault(
    "TURN-1",
    "VAL-2",
    "MSG-8",
    source="todos in a key-value store beside the database: they are put there before the transaction commits",
    witness=seen(
        lambda s: s.save_turn("a", todos=samples.todos("x"), append=[Message("user", "x", {"n": float("nan")})]),
        lambda s: s.load_todos("a"),
    ),
)
class PloTurnTodosFirst(Wrapper):
    """Writes the todos of a turn before the rest of it, so that they stay when the rest is refused."""

    async def save_turn(self, agent_id: str, *, todos: Any = None, fence: Any = None, **given: Any) -> None:
        if todos is not None:
            await self.inner.save_todos(agent_id, todos, fence=fence)
        await self.inner.save_turn(agent_id, fence=fence, **given)


async def _updated(s: Any) -> Any:
    await s.save_info("a", samples.info("a"))
    before = (await s.query_sessions())[0].updated_at
    await asyncio.sleep(0.01)
    await s.save_turn("a", todos=samples.todos("x"), events=happened(1))
    return (await s.query_sessions())[0].updated_at == before


@fault(
    "INFO-2",
    "MSG-8",
    source="an ORM's onupdate=now() on the parent row, which each unit of work locks and touches",
    witness=seen(_updated),
)
class PloTurnTouches(Wrapper):
    """Moves ``updated_at`` with a turn that brings only todos or events."""

    async def save_turn(self, agent_id: str, *, fence: Any = None, **given: Any) -> None:
        await self.inner.save_turn(agent_id, fence=fence, **given)
        lists = given.get("messages") is not None or given.get("tool_calls") is not None or given.get("info")
        if lists or given.get("append") or given.get("upsert_tool_calls"):
            return
        if (given.get("todos") is not None or given.get("events")) and await self.inner.exists(agent_id):
            await self.inner.append_messages(agent_id, [], fence=fence)


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-1",
    "EVT-4",
    "VAL-2",
    "VAL-4",
    source="Firestore: a batch holds 500 writes, so longer ones are sent in several",
    witness=seen(
        lambda s: s.append_events("a", [*samples.events(501), samples.event(0)]),
        lambda s: s.read_events("a"),
    ),
)
class PloEventChunks(Wrapper):
    """Appends more than 500 events of one call in pieces, each checked and committed by itself."""

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        if not isinstance(timelines, (list, tuple)) or len(timelines) <= 500:
            return await self.inner.append_events(agent_id, timelines, fence=fence)
        offsets: list[int] = []
        for i in range(0, len(timelines), 500):
            offsets += await self.inner.append_events(agent_id, timelines[i : i + 500], fence=fence)
        return offsets


@fault(
    "EVT-6",
    source="ORDER BY seq DESC, timestamp DESC LIMIT 1",
    witness=seen(
        lambda s: s.append_event("a", Timeline(1, Bookmark(5, 900), samples.event(1).event)),
        lambda s: s.append_event("a", Timeline(2, Bookmark(5, 300), samples.event(2).event)),
        lambda s: s.last_bookmark("a"),
    ),
)
class PloBookmarkByTime(Wrapper):
    """Gives of several bookmarks with the highest seq the one with the latest timestamp."""

    async def last_bookmark(self, agent_id: str) -> Any:
        best = await self.inner.last_bookmark(agent_id)
        if best is None or best.seq <= -(2**63):
            return best
        async for event in self.inner.read_events(agent_id, since=Bookmark(best.seq - 1, 0)):
            if event.bookmark.seq == best.seq and event.bookmark.timestamp > best.timestamp:
                best = event.bookmark
        return best


@fault(
    "EVT-4",
    "EVT-1",
    "VAL-1",
    source="PostgreSQL: a jsonb in the key of ON CONFLICT compares 1 and 1.0, and objects without the order of keys",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, n=1)),
        lambda s: s.append_event("a", samples.event(1, n=1.0)),
        lambda s: s.read_events("a"),
    ),
)
class PloEventsLooseEqual(Wrapper):
    """Takes an event for the repetition of one whose numbers are equal by value but of another type, or whose keys
    stand in another order."""

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        try:
            body = encode(Timeline, timeline, "event")
        except KodeError:
            return await self.inner.append_event(agent_id, timeline, fence=fence)
        seq = timeline.bookmark.seq
        since = Bookmark(seq - 1, 0) if seq > -(2**63) else None
        async with aclosing(self.inner.read_events(agent_id, since=since)) as stream:
            async for stored in stream:
                if stored.bookmark.seq > seq:
                    break
                given = Timeline(stored.cursor, stored.bookmark, stored.event, extra=stored.extra)
                if given == timeline and encode(Timeline, given, "event") != body:
                    await self.inner.append_events(agent_id, [], fence=fence)
                    return stored.offset
        return await self.inner.append_event(agent_id, timeline, fence=fence)


@fault(
    "EVT-5",
    source="a query with a filter expression in Cosmos DB or DynamoDB: an empty page is taken for the end",
    witness=seen(
        lambda s: s.append_events("a", [*samples.events(1001), samples.event(2000, "control")]),
        lambda s: s.read_events("a", channel="control"),
    ),
)
class PloChannelStops(Wrapper):
    """Ends a read of one channel at the first page of 1,000 events that has none of that channel."""

    def read_events(
        self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None
    ) -> AsyncIterator[Any]:
        if channel not in CHANNELS:
            return self.inner.read_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        return self._read(self.inner.read_events(agent_id, since=since, after_offset=after_offset), channel)

    async def _read(self, source: Any, channel: str) -> AsyncIterator[Any]:
        async with aclosing(source) as stream:
            looked = hits = 0
            async for event in stream:
                if event.event.channel == channel:
                    hits += 1
                    yield event
                looked += 1
                if looked % 1000 == 0:
                    if not hits:
                        return
                    hits = 0


async def _followed(s: Any) -> Any:
    await s.append_events("a", happened(1, 2, 3))
    got = []
    async with aclosing(s.follow_events("a", since=Bookmark(2, 0))) as stream:
        async for event in stream:
            got.append(event.bookmark.seq)
            if event.bookmark.seq == 3:
                await s.append_event("a", samples.event(1, cursor=50))
                await s.append_event("a", samples.event(9))
            if event.bookmark.seq == 9:
                break
    return got


@fault(
    "EVT-7",
    source="a change stream or LISTEN/NOTIFY whose filter is made for the channel, and the catch-up query for both",
    witness=seen(_followed),
)
class PloFollowForgetsSince(Wrapper):
    """Follows with ``since`` only through what was stored at the beginning: of what comes later it yields every seq."""

    def follow_events(self, agent_id: str, *, since: Any = None, after_offset: Any = 0, channel: Any = None) -> Any:
        if not isinstance(since, Bookmark):
            return self.inner.follow_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        follow = self.inner.follow_events(agent_id, after_offset=after_offset, channel=channel)
        return self._follow(agent_id, follow, since, after_offset)

    async def _follow(self, agent_id: str, follow: Any, since: Bookmark, after: int) -> AsyncIterator[Any]:
        last = after
        async for event in self.inner.read_events(agent_id, after_offset=after):
            last = event.offset
        async with aclosing(follow) as stream:
            async for event in stream:
                if event.offset > last or event.bookmark.seq > since.seq:
                    yield event


@fault(
    "EVT-4",
    "LIFE-4",
    "LIFE-5",
    "EVT-1",
    source="an idempotency cache in the process that the bulk delete does not know",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: s.delete_many(agent_id="a"),
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: s.read_events("a"),
    ),
)
class PloDedupeSurvives(Wrapper):
    """Remembers the events of agents that ``delete_many`` removed, and does not store them when they come again;
    ``delete`` makes it forget them."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.known: dict[tuple[str, bytes], int] = {}

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        try:
            key = (agent_id, encode(Timeline, timeline, "event").digest)
            offset = self.known.get(key)
        except (KodeError, TypeError):
            return await self.inner.append_event(agent_id, timeline, fence=fence)
        if offset is not None:
            await self.inner.append_events(agent_id, [], fence=fence)
            return offset
        offset = await self.inner.append_event(agent_id, timeline, fence=fence)
        if len(self.known) >= 10_000:
            self.known.clear()
        self.known[key] = offset
        return offset

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        self.known = {key: offset for key, offset in self.known.items() if key[0] != agent_id}
        await self.inner.delete(agent_id, fence=fence)


async def _together(s: Any) -> Any:
    bad = samples.event(2, n=float("nan"))
    calls = [s.append_event("a", event) for event in (samples.event(1), bad, samples.event(3))]
    return [type(r).__name__ for r in await asyncio.gather(*calls, return_exceptions=True)]


@fault(
    "OPS-13",
    "EVT-1",
    "EVT-4",
    source="a DataLoader: calls of one tick become one request, and its error is the error of each",
    witness=seen(_together),
)
class PloMicroBatches(Wrapper):
    """Writes the events that arrive for an agent in one tick together, so that one that is refused fails all."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.waiting: dict[str, list[tuple[Any, asyncio.Future[int]]]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        from kode_core.store.locks import ENTERED

        if fence is not None or ENTERED.get() or type(agent_id) is not str:
            return await self.inner.append_event(agent_id, timeline, fence=fence)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(agent_id, []).append((timeline, future))
        if len(self.waiting[agent_id]) == 1:
            task = asyncio.create_task(self._flush(agent_id))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return await future

    async def _flush(self, agent_id: str) -> None:
        entries = [entry for entry in self.waiting.pop(agent_id) if not entry[1].done()]
        if not entries:
            return
        try:
            offsets = await self.inner.append_events(agent_id, [timeline for timeline, _ in entries])
        except BaseException as exc:
            for _, future in entries:
                if not future.done():
                    future.set_exception(exc)
        else:
            for (_, future), offset in zip(entries, offsets, strict=True):
                if not future.done():
                    future.set_result(offset)

    async def close(self) -> None:
        if self.tasks:
            await asyncio.wait(list(self.tasks))
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


# --- the other kinds, lifecycle ---------------------------------------------------------------------------------------


@fault(
    "MED-1",
    "VAL-2",
    source="SELECT DISTINCT, or a set of rows: those that are equal in every column become one",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("k"), samples.media("j"), samples.media("k")]),
        lambda s: s.load_media_cache("a"),
    ),
)
class PloMediaDistinct(Wrapper):
    """Keeps of media cache records that are equal in every field only the first; those with one key and other fields
    it keeps all."""

    async def save_media_cache(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and all(isinstance(r, MediaCacheRecord) for r in records):
            first: dict[bytes, Any] = {}
            try:
                for record in records:
                    first.setdefault(encode(MediaCacheRecord, record, "media").digest, record)
            except KodeError:  # it is refused below
                pass
            else:
                records = [*first.values()]
        await self.inner.save_media_cache(agent_id, records, fence=fence)


@fault(
    "LIFE-2",
    source="Firestore's idiom of a prefix query: >= prefix and < prefix + '\\uf8ff'",
    witness=seen(
        lambda s: s.save_info("user-1", samples.info("user-1")),
        lambda s: s.save_info("user-\U0001f600", samples.info("user-\U0001f600")),
        lambda s: s.list("user-"),
    ),
)
class PloPrefixRange(Wrapper):
    """Does not list, with a prefix, the ids that go on with a character above U+F8FF, as an emoji."""

    async def list(self, prefix: str = "") -> Any:
        ids = await self.inner.list(prefix)
        return [i for i in ids if i < f"{prefix}\uf8ff"] if prefix else ids


async def _many_snapshots(s: Any) -> Any:
    for i in range(1001):
        await s.save_snapshot("a", samples.snapshot(f"s{i}", samples.T0 + i, 1))
    await s.delete("a")
    return len(await s.list_snapshots("a"))


@fault(
    "LIFE-3",
    "LIFE-4",
    source="S3: a list and a DeleteObjects have at most 1,000 keys; the rest is on a page nobody asks for",
    witness=seen(_many_snapshots),
)
class PloDeletes1000(Wrapper):
    """Deletes the newest 1,000 snapshots of an agent, and leaves the others."""

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        rest = (await self.inner.list_snapshots(agent_id))[1000:]
        await self.inner.delete(agent_id, fence=fence)
        for snapshot in rest:
            await self.inner.save_snapshot(agent_id, snapshot, fence=fence)


# --- queries ----------------------------------------------------------------------------------------------------------


def _column(call: Any) -> Any:
    return replace(call, tool_name=call.tool_name[:255]) if isinstance(call, ToolCallIndex) else call


_LONG = "mcp__" + "x" * 250


@fault(
    "QRY-2",
    "QRY-7",
    source="MySQL without strict mode: a VARCHAR(255) keeps the first 255 characters of what is written or compared",
    witness=seen(
        lambda s: s.save_tool_call_records(
            "a", [samples.tool_call(0, name=f"{_LONG}a"), samples.tool_call(1, name=f"{_LONG}b")]
        ),
        lambda s: s.query_tool_calls(tool_name=f"{_LONG}a"),
    ),
)
class PloToolNameColumn(Layer):
    """Finds and counts tool calls by the first 255 characters of their names."""

    async def commit(self, batches: Any) -> Any:
        def calls(write: Any) -> Any:
            if write is None:
                return None
            put = tuple((i, replace(row, index=_column(row.index))) for i, row in write.put)
            return replace(write, put=put, append=tuple(replace(row, index=_column(row.index)) for row in write.append))

        return await super().commit([replace(b, tool_calls=calls(b.tool_calls)) for b in batches])

    async def find_rows(self, query: Any) -> Any:
        where = tuple((k, v[:255] if k == "tool_name" and isinstance(v, str) else v) for k, v in query.where)
        return await super().find_rows(replace(query, where=where))


async def _positions(s: Any) -> Any:
    await s.save_tool_call_records("a", [samples.tool_call(i, created_at=samples.T0) for i in range(4)])
    return [[c.position for c in await s.query_tool_calls(order=order)] for order in ("asc", "desc")]


@fault(
    "QRY-3",
    source="ORDER BY created_at DESC, agent_id DESC, position: DESC holds for one column, not for the list",
    witness=seen(_positions),
)
class PloTiesAscending(MemoryLayer):
    """Gives tool calls of one agent and one time in ascending order of position also in the descending order."""

    async def find_rows(self, query: Any) -> Any:
        if query.kind != "tool_calls" or not query.descending:
            return await super().find_rows(query)
        everything = replace(query, after=None, offset=0, limit=10**9)
        rows = scan.find_rows(self.space.states.values(), everything)
        rows.sort(key=lambda row: row.position)
        rows.sort(key=lambda row: (row.created_at, row.agent_id), reverse=True)
        if query.after is not None:
            time, agent, position = query.after
            rows = [
                r
                for r in rows
                if (r.created_at, r.agent_id) < (time, agent)
                or ((r.created_at, r.agent_id) == (time, agent) and r.position > position)
            ]
        return rows[query.offset : query.offset + query.limit]


async def _by_count(s: Any) -> Any:
    for name in "abcd":
        await s.save_info(name, samples.info(name))
    page = await s.query_sessions(sort_by="message_count", limit=2)
    more = await s.query_sessions(sort_by="message_count", limit=2, cursor=page.next_cursor)
    return [x.agent_id for x in [*page, *more]]


@fault(
    "QRY-5",
    "QRY-3",
    "QRY-6",
    source="keyset pages written for times, which hardly ever tie: WHERE sort_value < :last, used for counts too",
    witness=seen(_by_count),
)
class PloCountCursor(Layer):
    """Goes on after a page of sessions by ``message_count`` with the next count, leaving out those with the same."""

    async def find_sessions(self, query: Any) -> Any:
        if query.sort_by == "message_count" and query.after is not None:
            end = "" if query.descending else "\U0010ffff" * 64
            query = replace(query, after=(query.after[0], end))
        return await super().find_sessions(query)


async def _large_page(s: Any) -> Any:
    await s.save_tool_call_records("a", [samples.tool_call(i) for i in range(1200)])
    page = await s.query_tool_calls(limit=1100)
    return len(page), page.next_cursor is None


@fault(
    "QRY-5",
    "QRY-4",
    source="servers with a largest page, as PostgREST's max-rows of 1,000: asked for more, they give that",
    witness=seen(_large_page),
)
class PloPageCap(Wrapper):
    """Gives at most 1,000 tool calls in a page, with a cursor, whatever larger limit was asked for."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        limit = filters.get("limit")
        if type(limit) is int and 1000 < limit <= 10_000:
            filters["limit"] = 1000
        return await self.inner.query_tool_calls(**filters)


@fault(
    "QRY-1",
    "OPS-5",
    "QRY-2",
    source="a guard at the top of a repository: if limit == 0: return []",
    witness=seen(
        lambda s: s.query_messages(limit=0, rôle="user"),
        lambda s: s.query_messages(limit=0, role=None),
        lambda s: s.query_sessions(limit=0, sort_by="size"),
    ),
)
class PloLimitZero(Wrapper):
    """Answers queries with ``limit=0`` before it looks at anything else: unknown filters, wrong types, a closed
    store."""

    async def query_sessions(self, **filters: Any) -> Any:
        return Page() if _is_zero(filters) else await self.inner.query_sessions(**filters)

    async def query_messages(self, **filters: Any) -> Any:
        return Page() if _is_zero(filters) else await self.inner.query_messages(**filters)

    async def query_tool_calls(self, **filters: Any) -> Any:
        return Page() if _is_zero(filters) else await self.inner.query_tool_calls(**filters)


def _is_zero(filters: dict[str, Any]) -> bool:
    return type(filters.get("limit")) is int and filters["limit"] == 0


# --- operations, locks, forks -----------------------------------------------------------------------------------------


async def _errors(s: Any) -> Any:
    for call in (lambda: s.query_sessions(limit=-1), lambda: s.load_messages(""), lambda: s.save_messages("a", [1])):
        with suppress(InvalidArgumentError):
            await call()
    return (await s.get_metrics()).operations.errors


@fault(
    "OPS-3",
    source="a metrics middleware around the driver: what the validation before it refuses never gets there",
    witness=seen(_errors),
)
class PloErrorsUncounted(EngineStore):
    """Does not count calls that were refused for their arguments as errors."""

    refused = 0

    async def _save(self, *args: Any) -> Any:
        return await self._noted(super()._save(*args))

    async def _load(self, *args: Any) -> Any:
        return await self._noted(super()._load(*args))

    async def _query(self, *args: Any) -> Any:
        return await self._noted(super()._query(*args))

    async def _noted(self, call: Any) -> Any:
        try:
            return await call
        except InvalidArgumentError:
            self.refused += 1
            raise

    async def get_metrics(self) -> Any:
        found = await super().get_metrics()
        errors = max(0, found.operations.errors - self.refused)
        return replace(found, operations=replace(found.operations, errors=errors))


@fault(
    "OPS-2",
    source="a checker that walks the table of sessions and joins the rest to it",
    witness=seen(
        lambda s: s.save_messages("a", [Message("user", [ToolResultBlock(tool_use_id="c", content="x")])]),
        lambda s: _codes(s),
    ),
)
class PloChecksListed(Wrapper):
    """Checks, when no agent is named, only the agents with info."""

    async def check_consistency(self, agent_id: str | None = None, *, progress: Any = None) -> Any:
        result = await self.inner.check_consistency(agent_id, progress=progress)
        if agent_id is not None:
            return result
        issues = tuple([issue for issue in result.issues if await self._is_listed(issue)])
        return replace(result, issues=issues, consistent=not issues)

    def iter_consistency(self, agent_id: str | None = None, *, progress: Any = None) -> Any:
        issues = self.inner.iter_consistency(agent_id, progress=progress)
        return issues if agent_id is not None else self._listed(issues)

    async def _listed(self, issues: Any) -> AsyncIterator[Any]:
        async with aclosing(issues) as stream:
            async for issue in stream:
                if await self._is_listed(issue):
                    yield issue

    async def _is_listed(self, issue: Any) -> bool:
        try:
            return bool(await self.inner.exists(issue.agent_id))
        except InvalidArgumentError:
            return True


async def _codes(s: Any) -> Any:
    return [issue.code for issue in (await s.check_consistency()).issues]


async def _refusal(s: Any) -> Any:
    try:
        await s.save_tool_call_records("a", [samples.tool_call(input={"key": "s3cret", "n": float("nan")})])
    except InvalidValueError as exc:
        return "s3cret" in str(exc)


@fault(
    "OPS-12",
    "VAL-2",
    source="pydantic's ValidationError, which quotes the input_value",
    witness=seen(_refusal),
)
class PloQuotesRefused(Wrapper):
    """Quotes the tool call in the error that refuses it."""

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.save_tool_call_records(agent_id, records, fence=fence)
        except InvalidValueError as exc:
            problem = f"{exc} [input_value={[getattr(r, 'input', r) for r in records]!r:.500}]"
            raise InvalidValueError(exc.record, exc.path, problem) from None


async def _late_delete(s: Any) -> Any:
    await s.save_info("a", samples.info("a"))
    lease = await s.acquire_agent_lock("a", ttl_ms=5000)
    await lease.release()
    try:
        await s.delete("a", fence=lease)
    except KodeError as exc:
        return type(exc).__name__, await s.exists("a")
    return await s.exists("a")


@fault(
    "LOCK-5",
    "LOCK-7",
    source="object stores whose conditional writes cover PUT, and DELETE takes no If-Match",
    witness=seen(_late_delete),
)
class PloDeleteUnfenced(Layer):
    """Deletes an agent under a lease that has ended; all other writes are fenced."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([replace(b, fence=None) if b.delete else b for b in batches])


async def _renewed(s: Any, t: Any) -> Any:
    lease = await s.acquire_agent_lock("a", ttl_ms=300)
    await lease.renew()
    await asyncio.sleep(0.8)
    await t.acquire_agent_lock("a", ttl_ms=300)
    return "free"


@fault(
    "LOCK-3",
    source="Redisson's watchdog: whatever time a lock was taken for, it is prolonged to lockWatchdogTimeout, 30 s",
    witness=seen(_renewed),
)
class PloRenewDefaultTtl(Layer):
    """Prolongs a lease to 30 seconds, the default, when it is renewed, not by the time it was taken for."""

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        return await super().renew_lease(agent_id, fence, max(ttl_ms, 30_000))


async def _forked(s: Any) -> Any:
    await s.save_info("a", samples.info("a"))
    await s.save_snapshot("a", samples.snapshot())
    [child] = await s.batch_fork("a", 1)
    return await s.list_snapshots(child)


@fault(
    "FORK-1",
    "VAL-1",
    source="a copy by a recursive walk that blanks every field called lastBookmark",
    witness=seen(_forked),
)
class PloForkSnapshotBookmarks(Wrapper):
    """Takes the bookmarks out of a fork's snapshots as well as out of its info."""

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        children = await self.inner.batch_fork(agent_id, count)
        for child in children:
            for snapshot in await self.inner.list_snapshots(child):
                if snapshot.last_bookmark is not None:
                    await self.inner.save_snapshot(child, replace(snapshot, last_bookmark=None))
        return children
