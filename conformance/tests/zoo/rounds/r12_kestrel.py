"""Round 12, kestrel: habits of drivers, searches and caches that meet the edges of a sentence."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

from kode_conformance.values import samples
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnJson, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import restart, seen, talk, the
from kode_core.batch import (
    Applied,
    Batch,
    Doc,
    DocKind,
    EventRange,
    EventWrite,
    ListKind,
    ListRows,
    ListWrite,
    with_bodies,
)
from kode_core.codec import Body, decode, digest
from kode_core.engine import unwatched
from kode_core.engines import scan
from kode_core.engines.state import AgentState
from kode_core.errors import InvalidArgumentError, KodeError, LockLostError
from kode_core.ids import is_shortened, plain_text
from kode_core.layers import Layer
from kode_core.metadata import metadata_index
from kode_core.model import (
    Bookmark,
    ImageBlock,
    Message,
    TextBlock,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    now_ms,
)
from kode_core.pace import Pace
from kode_core.query import Page
from kode_core.store import EngineStore
from kode_core.store.rows import LISTS


def _body(value: Any) -> Body:
    text = json.dumps(value, separators=(",", ":"))
    return Body(text, digest(text.encode()))


async def _all(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


# --- messages ---------------------------------------------------------------------------------------------------------


async def _turn_times(ctx: Any) -> object:
    s = ctx.store
    await s.save_messages("a", talk("x", "y", "z"))
    before = {m.position: m.created_at for m in await s.query_messages(agent_id="a")}
    await asyncio.sleep(0.02)
    await s.save_turn("a", messages=talk("x", "Y", "z"), todos=samples.todos("t"))
    after = {m.position: m.created_at for m in await s.query_messages(agent_id="a")}
    return before == after


@fault(
    "MSG-4",
    source="REPLACE INTO messages with created_at DEFAULT CURRENT_TIMESTAMP, in the one statement list of the turn",
    witness=_turn_times,
)
class KesRestampsTurnReplacements(Layer):
    """Gives a message that is replaced at its position a new time when a turn that writes other kinds replaces it."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await self.inner.commit([self._stamped(batch) for batch in batches])

    def _stamped(self, batch: Batch) -> Batch:
        others = batch.info or batch.docs or batch.events or batch.tool_calls
        if batch.messages is None or not batch.messages.put or not others:
            return batch
        put = tuple((i, replace(row, created_at=max(row.created_at, batch.now))) for i, row in batch.messages.put)
        return replace(batch, messages=replace(batch.messages, put=put))


async def _mixed(ctx: Any) -> object:
    s, t = ctx.store, await ctx.another()
    lists = [[samples.message(text=f"{letter} {i}") for i in range(1100)] for letter in "ab"]
    await s.save_messages("a", lists[0])
    done, mixed = asyncio.Event(), []

    async def read() -> None:
        while not done.is_set():
            mixed.append(len({m.text[0] for m in await t.load_messages("a")}) > 1)

    readers = [asyncio.ensure_future(read()) for _ in range(3)]
    for i in range(1, 7):
        await s.save_messages("a", lists[i % 2])
    done.set()
    await asyncio.gather(*readers)
    return any(mixed)


@fault(
    "MSG-1",
    "TC-1",
    source="keyset paging with a fetch size of 1,000 outside of a transaction (READ COMMITTED: each page its snapshot)",
    witness=_mixed,
)
class KesLoadsInPages(Layer):
    """Loads a list of more than 1,000 records page by page, so that a save in between gives the front of the old list
    and the rest of the new one."""

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        page = await self.inner.rows_at(agent_id, kind, 0, 1000)
        version, rows = page.version, list(page.rows)
        while len(page.rows) == 1000:
            await asyncio.sleep(0.001)
            page = await self.inner.rows_at(agent_id, kind, len(rows), 1000)
            rows.extend(page.rows)
        return ListRows(version, rows)


_FILE_ID = re.compile(r'"file_?[iI]d":("(?:[^"\\]|\\.)*")')


@fault(
    "MSG-8",
    "MED-1",
    source="garbage collection of attachments: Active Storage purges blobs that nothing refers to any more",
    witness=seen(
        lambda s: s.save_messages("a", [Message("user", [ImageBlock(file_id="file-1")])]),
        lambda s: s.save_media_cache("a", [samples.media()]),
        lambda s: s.save_messages("a", talk("no image")),
        lambda s: s.load_media_cache("a"),
    ),
)
class KesPurgesMedia(MemoryLayer):
    """Drops the media cache record of a file when the last message that refers to it is replaced or removed."""

    def _files(self, agent_id: str) -> set[str]:
        state = self.space.state(agent_id)
        if (DocKind.MEDIA, "") not in state.docs:
            return set()
        texts = (row.body.text for row in state.lists[ListKind.MESSAGES].rows if '"file' in row.body.text)
        return {json.loads(name) for text in texts for name in _FILE_ID.findall(text)}

    async def commit(self, batches: Sequence[Batch]) -> Any:
        outcomes = []
        for batch in batches:
            is_editing = batch.messages is not None and batch.messages.is_editing and not batch.delete
            before = self._files(batch.agent_id) if is_editing else set()
            outcomes += await self.inner.commit([batch])
            gone = before - self._files(batch.agent_id)
            if gone:
                docs = self.space.state(batch.agent_id).docs
                kept = [r for r in json.loads(docs[DocKind.MEDIA, ""].body.text) if r.get("fileId") not in gone]
                docs[DocKind.MEDIA, ""] = Doc("", 0, _body(kept))
        return outcomes


# --- tool calls -------------------------------------------------------------------------------------------------------


async def _growth(ctx: Any) -> object:
    calls = [samples.tool_call(i, result={"text": "r" * 100}) for i in range(1000)]
    await ctx.store.save_tool_call_records("a", calls)
    before = (await ctx.store.get_metrics()).storage.db_size_bytes
    calls[3] = calls[3].replace(state="FAILED")
    await ctx.store.save_tool_call_records("a", calls)
    return (await ctx.store.get_metrics()).storage.db_size_bytes - before < 20_000


@fault(
    "TC-1",
    "MSG-5",
    source="formsets and ordered lists of ORMs: delete from the first difference on, and insert the rest again",
    on=OnJson,
    witness=_growth,
)
class KesRewritesTheRest(Layer):
    """Writes all tool call records behind the first one that changed again, in a save of the list."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await self.inner.commit([await self._longer(batch) for batch in batches])

    async def _longer(self, batch: Batch) -> Batch:
        write, kind = batch.tool_calls, ListKind.TOOL_CALLS
        if write is None or not write.put or write.expect is None or batch.delete:
            return batch
        rows = await self.inner.rows(batch.agent_id, kind)
        if rows.version != write.expect:
            return batch
        put, end = dict(write.put), len(rows.rows) if write.length is None else write.length
        for i in range(min(put), end):
            if i not in put:
                record = decode(ToolCallRecord, rows.rows[i][0], "tool call")
                put[i] = (await LISTS[kind].row(i, record, batch.now, Pace())).row
        return replace(batch, tool_calls=replace(write, put=tuple(sorted(put.items(), key=lambda pair: pair[0]))))


_upserting: ContextVar[bool] = ContextVar("kes_upserting", default=False)


@fault(
    "TC-3",
    source="INSERT OR REPLACE, which deletes the row and gives the new one a new rowid at the end",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i) for i in range(3)]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(0, state="FAILED")]),
        lambda s: the("id", s.load_tool_call_records("a")),
        lambda s: s.save_turn("a", upsert_tool_calls=[samples.tool_call(1, state="FAILED")]),
        lambda s: the("id", s.load_tool_call_records("a")),
    ),
)
class KesTurnMovesUpserts(EngineStore):
    """Moves a tool call record that ``save_turn`` upserts to the end of the list; the method for it alone does not."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        commit = self._context.commit

        async def moving(batch: Batch) -> Any:
            write, kind = batch.tool_calls, ListKind.TOOL_CALLS
            if not _upserting.get() or write is None or not write.put or batch.delete:
                return await commit(batch)
            state, put = self._context.engine._space.state(batch.agent_id), dict(write.put)
            stay = [row for i, row in enumerate(state.lists[kind].rows) if i not in put]
            append = (*stay, *put.values(), *write.append)
            outcome = await commit(
                replace(batch, tool_calls=ListWrite(expect=state.lists[kind].version, length=0, append=append))
            )
            if isinstance(outcome, Applied):
                state.lists[kind].version += 1  # what this store remembers of the list is not so
            return outcome

        self._context.commit = moving  # type: ignore[method-assign]

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Any = (), **rest: Any) -> None:
        token = _upserting.set(bool(upsert_tool_calls))
        try:
            await super().save_turn(agent_id, upsert_tool_calls=upsert_tool_calls, **rest)
        finally:
            _upserting.reset(token)


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-2",
    source="InnoDB before MySQL 8.0: AUTO_INCREMENT lives in memory, and starts at max + 1 after a restart",
    witness=seen(
        lambda s: s.append_events("a", samples.events(3)),
        lambda s: s.delete("a"),
        restart,
        lambda s: s.append_event("a", samples.event(9)),
    ),
)
class KesOffsetsOfARestart(MemoryLayer):
    """Forgets which offsets the events of a deleted agent had when all instances were closed, and gives them again."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.known = vars(self.space).setdefault("kes_known", {"open": 0, "next": 1})
        if not self.known["open"]:
            self.known["next"] = 1
        self.known["open"] += 1

    async def commit(self, batches: Sequence[Batch]) -> Any:
        outcomes, states = [], self.space.states
        for batch in batches:
            if batch.delete and batch.agent_id in states:
                self.known["next"] = max(self.known["next"], states[batch.agent_id].log.next_offset)
            elif not batch.delete and batch.agent_id not in states:
                states[batch.agent_id] = AgentState(batch.agent_id, self.known["next"])
            outcomes += await self.inner.commit([batch])
            if batch.agent_id in states and states[batch.agent_id].is_empty:
                del states[batch.agent_id]
        return outcomes

    async def close(self) -> None:
        self.known["open"] -= 1
        await self.inner.close()


def _as_jsonb(text: str) -> str:
    """Numbers by value, and objects whatever the order of their keys."""
    return json.dumps(
        json.loads(text, parse_float=lambda n: int(float(n)) if float(n).is_integer() else float(n)), sort_keys=True
    )


@fault(
    "EVT-4",
    "VAL-1",
    "EVT-1",
    source="a unique index on a jsonb column in PostgreSQL, for which 1 = 1.0 and {a, b} = {b, a}",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, n=1)),
        lambda s: s.append_event("a", samples.event(1, n=1.0)),
        lambda s: s.append_event("a", samples.event(2, x=0, y=0)),
        lambda s: s.append_event("a", samples.event(2, y=0, x=0)),
        lambda s: s.read_events("a"),
    ),
)
class KesComparesEventsAsJsonb(Layer):
    """Takes an event for one that is there already when it only differs in the order of keys or in 1 beside 1.0."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await self.inner.commit([await self._known(batch) for batch in batches])

    async def _known(self, batch: Batch) -> Batch:
        known: dict[int, dict[str, Body]] = {}
        events: list[EventWrite] = []
        for event in batch.events:
            if event.seq not in known:
                span = EventRange(since_seq=event.seq - 1, limit=100)
                rows = [] if batch.delete else await self.inner.events(batch.agent_id, span)
                known[event.seq] = {}
                for row in rows:
                    if row.seq == event.seq:
                        known[event.seq].setdefault(_as_jsonb(row.body.text), row.body)
            body = known[event.seq].setdefault(_as_jsonb(event.body.text), event.body)
            events.append(replace(event, body=body))
        return replace(batch, events=tuple(events)) if events else batch


def _marked(seq: int, time: int, text: str) -> Any:
    return samples.event(seq, delta=text).replace(bookmark=Bookmark(seq, time))


@fault(
    "EVT-6",
    source="SELECT … ORDER BY seq DESC, timestamp DESC LIMIT 1: a tie-break by the time of the producer's clock",
    witness=seen(
        lambda s: s.append_event("a", _marked(5, samples.T0, "before the restart")),
        lambda s: s.append_event("a", _marked(5, samples.T0 - 1000, "after it")),
        lambda s: s.last_bookmark("a"),
    ),
)
class KesLastBookmarkByTime(Wrapper):
    """Gives, of several bookmarks with the highest seq, the one with the latest timestamp and not the one that was
    appended last."""

    __slots__ = ()

    async def last_bookmark(self, agent_id: str) -> Any:
        last = await self.inner.last_bookmark(agent_id)
        if last is None:
            return None
        async for event in self.inner.read_events(agent_id, since=Bookmark(last.seq - 1, 0)):
            last = max(last, event.bookmark, key=lambda mark: (mark.seq, mark.timestamp))
        return last


@fault(
    "EVT-5",
    source="DynamoDB Query: the filter runs after the page of 1 MB or Limit was read, and an empty page is no end",
    witness=seen(
        lambda s: s.append_events("a", [*samples.events(1001), samples.event(2000, "control")]),
        lambda s: s.read_events("a", channel="control"),
    ),
)
class KesStopsAtAnEmptyPage(Wrapper):
    """Ends a ``read_events`` of one channel where a page of 1,000 events has none of that channel."""

    __slots__ = ()

    def read_events(self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None) -> Any:
        if channel is None:
            return self.inner.read_events(agent_id, since=since, after_offset=after_offset)
        self.inner.read_events(agent_id, channel=channel)  # raises what a wrong channel raises
        return self._pages(self.inner.read_events(agent_id, since=since, after_offset=after_offset), channel)

    async def _pages(self, events: Any, channel: str) -> Any:
        read = found = 0
        async for event in events:
            read += 1
            if event.event.channel == channel:
                found += 1
                yield event
            if read == 1000:
                if not found:
                    return
                read = found = 0


async def _slow_follower(ctx: Any) -> object:
    s = ctx.store
    await s.append_event("a", samples.event(0))
    stream, seqs = s.follow_events("a"), []
    seqs.append((await anext(stream)).bookmark.seq)
    pending = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.1)
    await s.append_event("a", samples.event(1))
    seqs.append((await pending).bookmark.seq)
    for start in range(2, 1502, 500):
        await s.append_events("a", samples.events(500, start))
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.2)
    with suppress(TimeoutError):
        while len(seqs) < 1502:
            seqs.append((await asyncio.wait_for(anext(stream), 1.0)).bookmark.seq)
    await stream.aclose()
    return seqs == list(range(1502))


@fault(
    "EVT-7",
    "OPS-14",
    source="a ring buffer of 1,000 between the subscription and a slow consumer (Akka's dropHead, ZeroMQ's HWM of 1,000)",
    witness=_slow_follower,
)
class KesDropsForSlowFollowers(Wrapper):
    """Drops the oldest events when more than 1,000 came while the caller of ``follow_events`` was busy with one."""

    __slots__ = ()

    def follow_events(self, agent_id: str, *, since: Any = None, after_offset: Any = 0, channel: Any = None) -> Any:
        self.inner.follow_events(agent_id, since=since, after_offset=after_offset, channel=channel)  # checks arguments
        return self._follow(agent_id, since, after_offset, channel)

    async def _follow(self, agent_id: str, since: Any, after: int, channel: Any) -> Any:
        async for event in self.inner.read_events(agent_id, since=since, after_offset=after, channel=channel):
            after = event.offset
            yield event
        buffer: deque[Any] = deque(maxlen=1000)
        came, errors = asyncio.Event(), []

        async def pump() -> None:
            live = self.inner.follow_events(agent_id, since=since, after_offset=after, channel=channel)
            try:
                async for event in live:
                    buffer.append(event)
                    came.set()
            except Exception as exc:
                errors.append(exc)
            finally:
                came.set()

        task = asyncio.ensure_future(pump())
        try:
            while True:
                while buffer:
                    yield buffer.popleft()
                if errors:
                    raise errors[0]
                if task.done():
                    return
                came.clear()
                await came.wait()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


# --- infos and sessions -----------------------------------------------------------------------------------------------


async def _moves(ctx: Any) -> object:
    s, moved = ctx.store, []

    async def time() -> int:
        return (await s.query_sessions(agent_id="a"))[0].updated_at

    await s.save_info("a", samples.info("a"))
    for write in (
        lambda: s.append_messages("a", []),
        lambda: s.save_tool_call_records("a", []),
        lambda: s.upsert_tool_call_records("a", []),
    ):
        before = await time()
        await write()
        moved.append(await time() > before)
    return moved


@fault(
    "INFO-2",
    source="`if not records: return` before executemany(), which drivers refuse without rows",
    witness=_moves,
)
class KesSkipsEmptyUpserts(Wrapper):
    """Lets ``updated_at`` stay where it is when ``upsert_tool_call_records`` is given an empty list."""

    __slots__ = ()

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and not records:
            await self.inner.save_turn(agent_id, fence=fence)  # checks the id and the fence, and writes nothing
        else:
            await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)


async def _locked_time(ctx: Any) -> object:
    s = ctx.store
    await s.save_info("a", samples.info("a"))
    before = (await s.query_sessions())[0].updated_at
    async with s.acquire_agent_lock("a"):
        return (await s.query_sessions())[0].updated_at == before


@fault(
    "INFO-2",
    source="locked_until in the row of the session, which has updated_at … ON UPDATE CURRENT_TIMESTAMP",
    witness=_locked_time,
)
class KesLockTouchesSession(MemoryLayer):
    """Moves ``updated_at`` of a session when its lock is taken."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        token = await self.inner.acquire_lease(agent_id, owner, ttl_ms)
        state = self.space.states.get(agent_id)
        if token is not None and state is not None and state.summary() is not None:
            state.updated_at = max(state.updated_at + 1, now_ms())
        return token


# --- snapshots, todos, media ------------------------------------------------------------------------------------------


@fault(
    "SNAP-1",
    source="times as IEEE doubles (JavaScript's Number, a ZSET score of Redis): 2**53 and 2**53 + 1 are one",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("a", 2**53)),
        lambda s: s.save_snapshot("a", samples.snapshot("b", 2**53 + 1)),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class KesSnapshotsByDoubles(Wrapper):
    """Lists snapshots by ``created_at`` as a double, so that times beyond 53 bits that differ count as equal."""

    __slots__ = ()

    async def list_snapshots(self, agent_id: str) -> Any:
        found = await self.inner.list_snapshots(agent_id)
        return sorted(found, key=lambda snapshot: (-float(snapshot.created_at), snapshot.id))


@fault(
    "TODO-1",
    source="Cassandra's INSERT … USING TIMESTAMP with the time of the client's record: the last one by that time wins",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x")),
        lambda s: s.save_todos("a", samples.todos("y").replace(updated_at=samples.T0 - 1)),
        lambda s: s.load_todos("a"),
    ),
)
class KesTodosByTheirOwnTime(MemoryLayer):
    """Keeps the todos that are stored when those that are saved have an older ``updated_at``."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        outcomes = []
        for batch in batches:
            docs = tuple(write for write in batch.docs if not self._is_older(batch, write))
            outcomes += await self.inner.commit([replace(batch, docs=docs)])
        return outcomes

    def _is_older(self, batch: Batch, write: Any) -> bool:
        stored = self.space.state(batch.agent_id).docs.get((DocKind.TODOS, ""))
        if write.kind != DocKind.TODOS or write.doc is None or stored is None or batch.delete:
            return False
        new, old = (json.loads(doc.body.text)["updatedAt"] for doc in (write.doc, stored))
        return bool(new < old)


async def _partial_media(ctx: Any) -> object:
    s, t, counts, done = ctx.store, await ctx.another(), set(), asyncio.Event()
    await s.save_media_cache("a", [samples.media(f"old {i}") for i in range(30)])

    async def read() -> None:
        while not done.is_set():
            counts.add(len(await t.load_media_cache("a")))
            await asyncio.sleep(0)

    reader = asyncio.ensure_future(read())
    for n in range(20):
        await s.save_media_cache("a", [samples.media(f"new {n} {i}") for i in range(30)])
    done.set()
    await reader
    return counts


@fault(
    "MED-1",
    "DUR-3",
    source="DynamoDB BatchWriteItem: at most 25 items in a call, and no transaction over the calls",
    on=OnSqlite,
    witness=_partial_media,
)
class KesMediaInBatchesOf25(Layer):
    """Writes a media cache of more than 25 records in two steps, and shows the first 25 alone in between."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        outcomes = []
        for batch in batches:
            media = [w for w in batch.docs if w.kind == DocKind.MEDIA and w.doc is not None]
            records = json.loads(media[0].doc.body.text) if media else []
            if len(records) > 25:
                first = replace(media[0], doc=Doc("", 0, _body(records[:25])))
                step = Batch(
                    agent_id=batch.agent_id, op_id=f"{batch.op_id}/25", now=batch.now, fence=batch.fence, docs=(first,)
                )
                await self.inner.commit([step])
                await asyncio.sleep(0.002)
            outcomes += await self.inner.commit([batch])
        return outcomes


# --- values -----------------------------------------------------------------------------------------------------------

_INTEGER_KEY = re.compile(r'"(?:0|[1-9]\d{0,9})":')
_ARRAY_INDEX = re.compile(r"0|[1-9]\d{0,9}")


def _as_v8(value: Any) -> Any:
    """The order of keys of a JavaScript object: array indexes first, ascending."""
    if isinstance(value, list):
        return [_as_v8(item) for item in value]
    if not isinstance(value, dict):
        return value
    first = sorted((k for k in value if _ARRAY_INDEX.fullmatch(k) and int(k) < 2**32 - 1), key=int)
    return {key: _as_v8(value[key]) for key in dict.fromkeys([*first, *value])}


@fault(
    "VAL-1",
    source="a proxy in Node.js: JSON.parse and JSON.stringify put keys that are array indexes first",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(input={"b": 1, "10": 2, "9": {"x": 0, "0": 1}})]),
        lambda s: the("input", s.load_tool_call_records("a")),
    ),
)
class KesIntegerKeysFirst(Layer):
    """Gives back the keys of an object that are integers before the others and in ascending order."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await self.inner.commit([with_bodies(batch, self._through_node) for batch in batches])

    def _through_node(self, body: Body) -> Body:
        if _INTEGER_KEY.search(body.text) is None:
            return body
        value = json.loads(body.text)
        ordered = _as_v8(value)
        return body if json.dumps(value) == json.dumps(ordered) else _body(ordered)


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    source="MongoDB: {tags: 'x'} also matches a document whose tags is an array with 'x' in it",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"tags": ["x", "y"]})),
        lambda s: s.save_info("b", samples.info("b", metadata={"tags": "x"})),
        lambda s: the("agent_id", s.query_sessions(metadata={"tags": "x"})),
    ),
)
class KesMatchesArrayElements(MemoryLayer):
    """Finds sessions whose metadata has a list with the value that was asked for in it."""

    async def find_sessions(self, query: Any) -> Any:
        if not query.metadata:
            return await self.inner.find_sessions(query)
        wanted = set(query.metadata)
        states = [s for s in self.space.states.values() if s.info and wanted <= self._pairs(s.info.metadata)]
        return scan.find_sessions(states, replace(query, metadata=()))

    def _pairs(self, metadata: Any) -> set[tuple[str, str]]:
        pairs = set(metadata)
        for key, value in metadata:
            if value.startswith("[") and not is_shortened(value):
                for item in json.loads(plain_text(value)):
                    pairs.add((key, metadata_index({"item": item})[0][1]))
        return pairs


async def _pages(ctx: Any) -> object:
    for agent_id in "abcde":
        await ctx.store.save_info(agent_id, samples.info(agent_id))
        await ctx.store.save_messages(agent_id, samples.messages(1 + (agent_id == "c")))
    found, cursor = [], None
    while True:
        page = await ctx.store.query_sessions(sort_by="message_count", limit=2, cursor=cursor)
        found += [session.agent_id for session in page]
        cursor = page.next_cursor
        if cursor is None:
            return found


@fault(
    "QRY-5",
    "QRY-3",
    "QRY-6",
    source="keyset paging by WHERE message_count < ?, without the key that breaks ties",
    witness=_pages,
)
class KesCountsAsCursor(Layer):
    """Passes over the sessions that have as many messages as the last one of a page, when sorted by
    ``message_count``."""

    async def find_sessions(self, query: Any) -> Any:
        if query.sort_by == "message_count" and query.after is not None:
            query = replace(query, after=(query.after[0], "" if query.descending else "\U0010ffff" * 65))
        return await self.inner.find_sessions(query)


def _in_window(filters: dict[str, Any]) -> None:
    limit, offset = filters.get("limit", 100), filters.get("offset", 0)
    if type(limit) is int and type(offset) is int and 0 <= limit <= 10_000 and offset > 0 and limit + offset > 10_000:
        raise InvalidArgumentError("the result window is too large: offset + limit must be at most 10,000")


@fault(
    "QRY-4",
    source="Elasticsearch: index.max_result_window, from + size must be at most 10,000",
    errors=True,
    witness=seen(
        lambda s: s.save_messages("a", talk("x", "y")),
        lambda s: the("text", s.query_messages(offset=1, limit=10_000)),
    ),
)
class KesResultWindow(Wrapper):
    """Refuses a query whose offset and limit are more than 10,000 together."""

    __slots__ = ()

    async def query_sessions(self, **filters: Any) -> Any:
        _in_window(filters)
        return await self.inner.query_sessions(**filters)

    async def query_messages(self, **filters: Any) -> Any:
        _in_window(filters)
        return await self.inner.query_messages(**filters)

    async def query_tool_calls(self, **filters: Any) -> Any:
        _in_window(filters)
        return await self.inner.query_tool_calls(**filters)


def _is_nothing(filters: dict[str, Any]) -> bool:
    return type(filters.get("limit")) is int and filters["limit"] == 0


async def _limit_zero(ctx: Any) -> object:
    async def ended(call: Any) -> str:
        try:
            return repr(list(await call))
        except KodeError as exc:
            return type(exc).__name__

    wrong = await ended(ctx.store.query_messages(limit=0, rol="user"))
    await ctx.close(ctx.store)
    closed = await ended(ctx.store.query_messages(limit=0))
    ctx.store = await ctx.another()
    return [wrong, closed]


@fault(
    "QRY-1",
    "OPS-5",
    "OPS-3",
    source="Django and others: a slice of no length is an empty result set, for which nothing is compiled or asked",
    witness=_limit_zero,
)
class KesAnswersLimitZeroUnseen(Wrapper):
    """Gives an empty page for ``limit=0`` without a look at the other filters, or at whether the store is open."""

    __slots__ = ()

    async def query_sessions(self, **filters: Any) -> Any:
        return Page() if _is_nothing(filters) else await self.inner.query_sessions(**filters)

    async def query_messages(self, **filters: Any) -> Any:
        return Page() if _is_nothing(filters) else await self.inner.query_messages(**filters)

    async def query_tool_calls(self, **filters: Any) -> Any:
        return Page() if _is_nothing(filters) else await self.inner.query_tool_calls(**filters)


@fault(
    "QRY-7",
    source="Elasticsearch: a terms aggregation gives the top ten buckets unless it has a size",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i, name=f"tool {i}") for i in range(11)]),
        lambda s: s.aggregate_stats("a"),
    ),
)
class KesTopTenTools(Wrapper):
    """Counts only the ten most frequent names of tools in ``aggregate_stats``."""

    __slots__ = ()

    async def aggregate_stats(self, agent_id: str) -> Any:
        stats = await self.inner.aggregate_stats(agent_id)
        return replace(stats, tool_calls_by_name=dict(Counter(stats.tool_calls_by_name).most_common(10)))


# --- forks and leases -------------------------------------------------------------------------------------------------


async def _forked_snapshots(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    for i in range(101):
        await ctx.store.save_snapshot("a", samples.snapshot(f"s{i:03}"))
    (fork,) = await ctx.store.batch_fork("a", 1)
    return len(await ctx.store.list_snapshots(fork)), (await ctx.store.aggregate_stats(fork)).total_snapshots


@fault(
    "FORK-1",
    source="a copy by way of the listing call, whose page is 100 unless one asks for more (Stripe, GitHub, Azure …)",
    witness=_forked_snapshots,
)
class KesForksAPageOfSnapshots(MemoryLayer):
    """Takes only the first 100 snapshots of the parent along into a fork."""

    async def fork(self, agent_id: str, children: Any, expect: Body, now: int) -> bool:
        is_done = await self.inner.fork(agent_id, children, expect, now)
        for child in children if is_done else ():
            docs = self.space.states[child.agent_id].docs
            for key in sorted(key for key in docs if key[0] == DocKind.SNAPSHOTS)[100:]:
                del docs[key]
        return is_done


async def _after_renewal(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=300)
    await lease.renew()
    await asyncio.sleep(1.0)
    try:
        await lease.renew()
        first = "renewed"
    except LockLostError:
        first = "lost"
    try:
        await ctx.store.acquire_agent_lock("a")
    except KodeError as exc:
        return first, type(exc).__name__
    return first, "taken"


@fault(
    "LOCK-3",
    "LOCK-1",
    source="lock libraries whose extend() takes a default of its own when it is not told the ttl again (30 s)",
    witness=_after_renewal,
)
class KesRenewsForTheDefault(Layer):
    """Holds a lease for 30 s from its first renewal on, whatever its ``ttl_ms`` is."""

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        return await self.inner.renew_lease(agent_id, fence, 30_000)


async def _repeat_without_lease(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    offset = await ctx.store.append_event("a", samples.event(1), fence=lease)
    await lease.release()
    try:
        return await ctx.store.append_event("a", samples.event(1), fence=lease) == offset
    except LockLostError:
        return "lost"


@fault(
    "LOCK-5",
    source="an idempotency key that is looked up first, in front of the transaction with the check of the fence",
    witness=_repeat_without_lease,
)
class KesRepeatsBeforeFences(MemoryLayer):
    """Answers the append of events that are all stored already without a look at the fence, whose lease has ended."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return [self._repeated(batch) or (await self.inner.commit([batch]))[0] for batch in batches]

    def _repeated(self, batch: Batch) -> Applied | None:
        if batch.fence is None or batch.delete or batch.is_touching or batch.docs or not batch.events:
            return None
        log = self.space.state(batch.agent_id).log
        offsets = tuple(log.find(event.seq, event.body.digest) for event in batch.events)
        return None if None in offsets else Applied(offsets=offsets)  # type: ignore[arg-type]


async def _two_locks(ctx: Any) -> object:
    s = ctx.store
    held = await s.acquire_agent_lock("a")

    async def wait() -> None:
        with suppress(KodeError):
            await s.acquire_agent_lock("a", wait_ms=2500)

    waiting = asyncio.ensure_future(wait())
    await asyncio.sleep(0.1)
    try:
        await asyncio.wait_for(s.acquire_agent_lock("b"), 1.5)
        return "taken"
    except TimeoutError:
        return "waits"
    finally:
        await held.release()
        await waiting


@fault(
    "OPS-13",
    "LOCK-2",
    source="pg_advisory_lock over one dedicated connection: a session that waits for a lock does nothing else",
    witness=_two_locks,
)
class KesWaitsOnOneConnection(EngineStore):
    """Lets every lock of an instance wait as long as one of its tasks waits for the lock of another agent."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        acquire, connection = self._locks.acquire, asyncio.Lock()

        async def one_by_one(agent_id: str, ttl_ms: int, wait_ms: int) -> Any:
            async with connection:
                return await acquire(agent_id, ttl_ms, wait_ms)

        self._locks.acquire = one_by_one  # type: ignore[method-assign]


# --- deletion and lifecycle -------------------------------------------------------------------------------------------


@fault(
    "LIFE-3",
    "LIFE-4",
    source="ON DELETE CASCADE from the row of the agent: where there is no such row, nothing is deleted",
    witness=seen(
        lambda s: s.append_messages("a", talk("x")),
        lambda s: s.save_todos("a", samples.todos("t")),
        lambda s: s.delete("a"),
        lambda s: s.load_messages("a"),
        lambda s: s.load_todos("a"),
    ),
)
class KesDeletesWhatHasInfo(MemoryLayer):
    """Deletes nothing of an agent whose info was never saved."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        outcomes = []
        for batch in batches:
            if batch.delete and self.space.state(batch.agent_id).info is None:
                batch = replace(batch, delete=False)
            outcomes += await self.inner.commit([batch])
        return outcomes


async def _deleted(ctx: Any) -> object:
    for i in range(250):
        await ctx.store.save_info(f"a{i:03}", samples.info(f"a{i:03}", template_id="old"))
    count = await ctx.store.delete_many(template_id="old")
    return count, len(await ctx.store.list())


@fault(
    "LIFE-5",
    source="LIMIT 200 OFFSET n over rows that the loop itself deletes",
    witness=_deleted,
)
class KesDeletesByOffset(EngineStore):
    """Leaves some of the sessions that match when ``delete_many`` finds more than a page of 200, since each page
    begins behind as many as are gone already."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        if progress is not None and not callable(progress):
            raise InvalidArgumentError(f"progress must be a function, got {type(progress).__name__}")

        async def by_offset(asked: Any) -> Any:
            asked = dict(asked)
            offset = int(asked.pop("cursor") or 0)
            page = await self._search.sessions({**asked, "offset": offset})
            page.next_cursor = page.next_cursor and str(offset + asked["limit"])
            return page

        async def delete() -> int:
            return await self._deletions.delete_many(by_offset, filters, progress or unwatched)

        return await self._run("delete_many", delete)


@fault(
    "LIFE-2",
    source="JavaScript's sort, Java's compareTo, Oracle's CESU-8: texts by their UTF-16 units",
    witness=seen(
        lambda s: s.save_info("x\uff5e", samples.info("x\uff5e")),
        lambda s: s.save_info("x\U0001f600", samples.info("x\U0001f600")),
        lambda s: s.list("x"),
    ),
)
class KesListsByUtf16(Wrapper):
    """Lists ids in the order of UTF-16 units, in which an emoji comes before U+FF5E."""

    __slots__ = ()

    async def list(self, prefix: str = "") -> Any:
        return sorted(await self.inner.list(prefix), key=lambda agent_id: agent_id.encode("utf-16-be"))


# --- operations -------------------------------------------------------------------------------------------------------


@fault(
    "OPS-3",
    source="StatsD, and delta temporality in OpenTelemetry: counters begin at zero after each flush",
    witness=seen(
        lambda s: s.save_messages("a", talk("x")),
        lambda s: s.save_messages("a", talk("y")),
        lambda s: _saves(s),
        lambda s: s.save_messages("a", talk("z")),
        lambda s: _saves(s),
    ),
)
class KesMetricsSinceTheLast(Wrapper):
    """Counts what happened since ``get_metrics`` was called last, and not since the store was opened."""

    last: Any = None

    async def get_metrics(self) -> Any:
        metrics = await self.inner.get_metrics()
        now, before = metrics.operations, self.last
        self.last = now
        if before is None:
            return metrics
        since = {name: getattr(now, name) - getattr(before, name) for name in now.__struct_fields__}
        return replace(metrics, operations=replace(now, **since))


async def _saves(store: Any) -> int:
    return int((await store.get_metrics()).operations.saves)


async def _issue_codes(ctx: Any) -> object:
    s = ctx.store
    use = Message("assistant", [TextBlock("again"), ToolUseBlock("call_0", "search", {"q": 1})])
    result = Message("user", [ToolResultBlock("call_0", "found")])
    await s.save_messages("a", [use, result, use])
    found = await s.check_consistency("a")
    return found.consistent, [i.code for i in found.issues], [i.code for i in await _all(s.iter_consistency("a"))]


@fault(
    "OPS-2",
    "TC-2",
    source="SELECT id FROM uses EXCEPT SELECT id FROM results: sets, where ids repeat",
    witness=_issue_codes,
)
class KesPairsAsSets(Wrapper):
    """Misses a tool use without its result when another use of the same id has one, and so for a second result."""

    __slots__ = ()

    async def _is_told(self, issue: Any) -> bool:
        if issue.code not in ("use_without_result", "result_without_use"):
            return True
        try:
            blocks = [block for m in await self.inner.load_messages(issue.agent_id) for block in m.content]
        except KodeError:
            return True
        uses = {block.id for block in blocks if isinstance(block, ToolUseBlock)}
        results = {block.tool_use_id for block in blocks if isinstance(block, ToolResultBlock)}
        return not any(repr(call_id) in issue.message for call_id in uses & results)

    async def check_consistency(self, agent_id: str | None = None, *, progress: Any = None) -> Any:
        result = await self.inner.check_consistency(agent_id, progress=progress)
        issues = tuple([issue for issue in result.issues if await self._is_told(issue)])
        return replace(result, consistent=not issues, issues=issues)

    def iter_consistency(self, agent_id: str | None = None, *, progress: Any = None) -> Any:
        return self._told(self.inner.iter_consistency(agent_id, progress=progress))

    async def _told(self, issues: Any) -> Any:
        async for issue in issues:
            if await self._is_told(issue):
                yield issue


async def _token_in_copy(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    last = await ctx.store.acquire_agent_lock("a")
    await last.release()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "copy.db")
        await ctx.store.backup(target)
        async with EngineStore(partial(SqliteEngine.open, SqliteOptions(db_path=str(target)))) as copy:
            return (await copy.acquire_agent_lock("a")).token > last.token


@fault(
    "OPS-16",
    "LOCK-5",
    source="PostgreSQL's logical replication, and dumps of tables alone: the values of sequences do not come along",
    on=OnSqlite,
    witness=_token_in_copy,
)
class KesCopiesNoSequences(SqliteEngine):
    """Lets the tokens of leases begin anew in a backup."""

    async def backup(self, target: Path, progress: Any = unwatched) -> list[Path]:
        made = await super().backup(target, progress)
        self._without_sequence(made[0])
        return made

    @staticmethod
    def _without_sequence(path: Path) -> None:
        db = sqlite3.connect(path)
        try:
            with db:
                db.execute("DELETE FROM kode_meta WHERE key = 'last_token'")
        finally:
            db.close()
