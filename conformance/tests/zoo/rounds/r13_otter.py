"""Two faults for each area of the contract, and one more."""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
import unicodedata
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnJson, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import each, seen, talk, the
from kode_core.batch import (
    Applied,
    Batch,
    Child,
    Doc,
    DocKind,
    DocWrite,
    EventRange,
    EventWrite,
    Fence,
    FoundRow,
    ListKind,
    ListWrite,
    Outcome,
    SessionRow,
)
from kode_core.codec import Body, decode, encode
from kode_core.errors import CorruptRecordError
from kode_core.ids import check_agent_id, plain_text
from kode_core.jsonvalue import decode_json
from kode_core.layers import Layer
from kode_core.metadata import metadata_index
from kode_core.model import (
    AgentInfo,
    HistoryWindow,
    MediaCacheRecord,
    Message,
    Timeline,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
)
from kode_core.pace import Pace
from kode_core.query import Page, RowQuery, SessionQuery
from kode_core.store import kinds
from kode_core.store.rows import LISTS

# --- values -----------------------------------------------------------------------------------------------------------


async def _first_followed(ctx: Any) -> object:
    big = {"n": 2**53 + 1, "deep": [{"m": -(2**60) - 1}]}
    await ctx.store.append_event("a", samples.event(1, **big))
    async with aclosing(ctx.store.follow_events("a")) as feed:
        followed = (await anext(feed)).event.data
    return [followed, [e.event.data async for e in ctx.store.read_events("a")]]


def _as_doubles(value: Any) -> Any:
    if type(value) is int and 2**53 < abs(value) < 2**1000:
        return int(float(value))
    if type(value) is list:
        return [_as_doubles(item) for item in value]
    return {key: _as_doubles(item) for key, item in value.items()} if type(value) is dict else value


@fault(
    "VAL-1",
    "EVT-7",
    source="a push channel whose relay is JavaScript: JSON.parse makes doubles of integers over 2**53",
    witness=_first_followed,
)
class OttFollowsInDoubles(Wrapper):
    """Rounds integers beyond 2**53 in the data of events that are followed, and not of those that are read."""

    __slots__ = ()

    def follow_events(self, agent_id: str, **how: Any) -> Any:
        feed = self.inner.follow_events(agent_id, **how)

        async def relayed() -> AsyncIterator[Any]:
            async with aclosing(feed):
                async for event in feed:
                    yield event.replace(event=replace(event.event, data=_as_doubles(event.event.data)))

        return relayed()


async def _changed_window(ctx: Any) -> object:
    talked = [Message("assistant", [ToolUseBlock("c", "search", {"q": 1})])]
    await ctx.store.save_history_window("a", HistoryWindow(id="w", messages=talked, timestamp=samples.T0))
    for _ in range(2):
        loaded = await ctx.store.load_history_windows("a")
        loaded[0].messages[0].content[0].input["q"] = 2
    return (await ctx.store.load_history_windows("a"))[0].messages[0].content[0].input


@fault(
    "VAL-1",
    source="an HTTP client with ETags: at 304 Not Modified it hands out the object that it parsed before",
    witness=_changed_window,
)
class OttSharesUnchangedWindows(Wrapper):
    """Gives every caller the same history windows again as long as the stored ones are unchanged."""

    __slots__ = ("held",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.held: OrderedDict[str, Any] = OrderedDict()

    async def load_history_windows(self, agent_id: str) -> Any:
        found = await self.inner.load_history_windows(agent_id)
        if not found or sum(len(window.messages) for window in found) > 100:
            return found
        tag = [encode(HistoryWindow, window, "window").digest for window in found]
        if agent_id in self.held and self.held[agent_id][0] == tag:
            return list(self.held[agent_id][1])
        self.held[agent_id] = (tag, tuple(found))
        if len(self.held) > 16:
            self.held.popitem(last=False)
        return found


# --- identifiers ------------------------------------------------------------------------------------------------------


@fault(
    "ID-4",
    "ID-2",
    "HIS-1",
    source="InnoDB: an index holds at most the first 3,072 bytes of a key",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("x" * 3072 + "1")),
        lambda s: s.save_compression_record("a", samples.compression("x" * 3072 + "2")),
        lambda s: the("id", s.load_compression_records("a")),
    ),
)
class OttCutsCompressionKeys(Layer):
    """Takes two compression records for one when the first 3,072 bytes of their ids are the same."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit([replace(batch, docs=tuple(map(self._cut, batch.docs))) for batch in batches])

    def _cut(self, write: DocWrite) -> DocWrite:
        if write.kind is not DocKind.COMPRESSIONS or write.doc is None:
            return write
        key = write.key.encode()[:3072].decode(errors="ignore")
        return DocWrite(write.kind, key, replace(write.doc, key=key))


async def _two_locks(ctx: Any) -> object:
    first = await ctx.store.acquire_agent_lock("caf\u00e9")
    try:
        second = await ctx.store.acquire_agent_lock("cafe\u0301")
    except Exception as exc:
        return type(exc).__name__
    await second.release()
    await first.release()
    return "both"


@fault(
    "ID-2",
    "LOCK-2",
    "OPS-13",
    source="lock files on APFS or HFS+, which take composed and decomposed names for one file",
    witness=_two_locks,
)
class OttLocksByNormalForm(MemoryLayer):
    """Takes the locks of two agents for one when their ids have the same Unicode normal form."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        if not agent_id.isascii():
            name, now = unicodedata.normalize("NFC", agent_id), time.monotonic()
            for other, (_, until) in self.space.leases.items():
                if other != agent_id and until > now and unicodedata.normalize("NFC", other) == name:
                    return None
        return await self.inner.acquire_lease(agent_id, owner, ttl_ms)


# --- messages ---------------------------------------------------------------------------------------------------------


async def _streamed_answer(ctx: Any) -> object:
    times = []
    for text in ("h", "hel", "hello"):
        await ctx.store.save_turn("a", messages=talk("hi", text), todos=samples.todos(text))
        times.append([m.created_at for m in await ctx.store.query_messages(agent_id="a", order="asc")])
        await asyncio.sleep(0.01)
    return times[0] == times[1] == times[2]


@fault(
    "MSG-4",
    source="MySQL: a TIMESTAMP column with ON UPDATE CURRENT_TIMESTAMP",
    witness=_streamed_answer,
)
class OttStampsReplacedLast(Layer):
    """Gives the last message a new time when a turn that has other things in it too replaces it at its position."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit([await self._stamped(batch) for batch in batches])

    async def _stamped(self, batch: Batch) -> Batch:
        write = batch.messages
        is_turn = batch.tool_calls or batch.info or batch.docs or batch.events
        if not is_turn or write is None or not write.put or write.append:
            return batch
        summary = await self.inner.summary(batch.agent_id)
        place, row = write.put[-1]
        if (
            summary is None
            or place != summary.messages.count - 1
            or summary.messages.kept(write) != summary.messages.count
        ):
            return batch
        row = replace(row, created_at=max(row.created_at, batch.now))
        return replace(batch, messages=replace(write, put=(*write.put[:-1], (place, row))))


async def _cost_of_cut(ctx: Any) -> object:
    listed = talk(*[f"{i} {'x' * 1000}" for i in range(300)])
    await ctx.store.save_messages("a", listed)
    before = (await ctx.store.get_metrics()).storage.db_size_bytes
    await ctx.store.save_messages("a", listed[:-1])
    return (await ctx.store.get_metrics()).storage.db_size_bytes - before > 100_000


@fault(
    "MSG-5",
    source="Hibernate: a collection that is a bag is deleted and inserted anew when one of its elements is removed",
    on=OnJson,
    witness=_cost_of_cut,
)
class OttRewritesShorterList(Layer):
    """Writes all messages anew when a list is saved without some at its end."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit([await self._whole(batch) for batch in batches])

    async def _whole(self, batch: Batch) -> Batch:
        write = batch.messages
        if write is None or not write.length or write.expect is None:
            return batch
        kept = await self.inner.rows_at(batch.agent_id, ListKind.MESSAGES, 0, write.length)
        if kept.version != write.expect:
            return batch
        rows, pace = [], Pace()
        for i, (body, created_at) in enumerate(kept.rows):
            one = await LISTS[ListKind.MESSAGES].row(i, decode(Message, body, f"message {i}"), created_at, pace)
            rows.append(replace(one.row, body=body, created_at=created_at))
            await pace.yield_to_loop()
        for place, row in write.put:
            rows[place : place + 1] = [row]
        return replace(batch, messages=ListWrite(expect=write.expect, length=0, append=(*rows, *write.append)))


# --- tool calls -------------------------------------------------------------------------------------------------------


def _last_of_each(records: Any) -> Any:
    try:
        last = {one.id: i for i, one in enumerate(records)}
        if len(last) < len(records):
            for one in records:
                encode(ToolCallRecord, one, "call")
    except Exception:
        return records
    return records if len(last) == len(records) else [one for i, one in enumerate(records) if last[one.id] == i]


@fault(
    "TC-3",
    source="PostgreSQL's ON CONFLICT cannot touch a row twice, so rows are thinned first: drop_duplicates(keep='last')",
    witness=seen(
        lambda s: s.upsert_tool_call_records(
            "a", [samples.tool_call(1), samples.tool_call(2), samples.tool_call(1, state="FAILED")]
        ),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class OttThinsUpserts(Wrapper):
    """Puts a new call that stands twice in one upsert where the later one stands, and not where the first one does."""

    __slots__ = ()

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.upsert_tool_call_records(agent_id, _last_of_each(records), fence=fence)


async def _paged_calls(ctx: Any) -> object:
    calls = [samples.tool_call(0, result=i) for i in range(5)]
    await ctx.store.save_tool_call_records("a", [*calls, samples.tool_call(7, created_at=samples.T0)])
    found, cursor = [], None
    while True:
        page = await ctx.store.query_tool_calls(agent_id="a", limit=2, cursor=cursor)
        found += [call.result for call in page]
        cursor = page.next_cursor
        if cursor is None:
            return found


@fault(
    "QRY-5",
    "TC-2",
    "QRY-3",
    source="keyset pagination that takes the id for unique: WHERE (created_at, id) < (?, ?)",
    witness=_paged_calls,
)
class OttPagesByCallId(Layer):
    """Passes over the calls with the id and the time of the last one of a page when the next page is fetched."""

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        if query.kind != "tool_calls" or query.after is None:
            return await self.inner.find_rows(query)
        created_at, agent_id, place = query.after
        at = await self.inner.rows_at(agent_id, ListKind.TOOL_CALLS, place, 1)
        if not at.rows:
            return await self.inner.find_rows(query)
        last, found, part = self._id(at.rows[0][0]), [], query
        while True:
            page = await self.inner.find_rows(part)
            found += [
                row
                for row in page
                if (row.created_at, row.agent_id) != (created_at, agent_id) or self._id(row.body) != last
            ]
            if len(page) < part.limit or len(found) >= query.limit:
                return found[: query.limit]
            part = replace(part, after=(page[-1].created_at, page[-1].agent_id, page[-1].position))

    def _id(self, body: Body) -> str:
        return decode(ToolCallRecord, body, "call").id


# --- turns ------------------------------------------------------------------------------------------------------------


async def _torn_turn(ctx: Any) -> object:
    other = await ctx.another()
    writing = asyncio.ensure_future(ctx.store.save_turn("a", append=talk("hi"), events=samples.events(101)))
    torn = False
    while not torn:
        is_over = writing.done()
        there = await other.load_messages("a")
        torn = bool(there) and not [e async for e in other.read_events("a")]
        if is_over:
            break
        await asyncio.sleep(0.001)
    await writing
    return torn


@fault(
    "TURN-1",
    "DUR-3",
    source="DynamoDB: TransactWriteItems takes at most 100 items, so the rest goes into a second transaction",
    witness=_torn_turn,
)
class OttSplitsBigTurns(Layer):
    """Writes the events of a turn of more than 100 records in a second transaction."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if not any(map(self._is_big, batches)):
            return await self.inner.commit(batches)
        return [await self._split(batch) for batch in batches]

    def _is_big(self, batch: Batch) -> bool:
        rows = sum(len(write.put) + len(write.append) for write in batch.lists.values())
        others = rows + len(batch.docs) + (batch.info is not None)
        return bool(batch.events and (batch.is_touching or batch.docs)) and others + len(batch.events) > 100

    async def _split(self, batch: Batch) -> Outcome:
        if not self._is_big(batch):
            return (await self.inner.commit([batch]))[0]
        (first,) = await self.inner.commit([replace(batch, events=())])
        if not isinstance(first, Applied):
            return first
        await asyncio.sleep(0.005)  # a round trip
        rest = Batch(
            agent_id=batch.agent_id, op_id=f"{batch.op_id}+", now=batch.now, fence=batch.fence, events=batch.events
        )
        (second,) = await self.inner.commit([rest])
        return replace(first, offsets=second.offsets) if isinstance(second, Applied) else second


@fault(
    "TURN-1",
    "TC-1",
    "VAL-3",
    source="the habit `if tool_calls:` where `is not None` was meant",
    witness=seen(
        lambda s: s.save_turn("a", messages=talk("hi"), tool_calls=[samples.tool_call()]),
        lambda s: s.save_turn("a", messages=talk("hi"), tool_calls=[]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class OttKeepsCallsOfEmptyTurn(Wrapper):
    """Leaves the tool calls as they are when a turn replaces them by none."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, tool_calls: Any = None, **rest: Any) -> None:
        if isinstance(tool_calls, (list, tuple)) and not tool_calls and not rest.get("upsert_tool_calls"):
            tool_calls = None
        await self.inner.save_turn(agent_id, tool_calls=tool_calls, **rest)


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    "VAL-1",
    "EVT-1",
    "EVT-3",
    source="PostgreSQL: '{\"n\": 1}'::jsonb = '{\"n\": 1.0}'::jsonb, and the order of keys is no matter",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(1, n=1), samples.event(2)]),
        lambda s: s.append_event("a", samples.event(1, n=1.0)),
        lambda s: the("offset", _listed(s.read_events("a"))),
    ),
)
class OttTakesOneForOnePointZero(Layer):
    """Takes an event for a repeated one when it has equal numbers or another order of keys, as == compares."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        changed = []
        for batch in batches:
            events = tuple([await self._known(batch.agent_id, event) for event in batch.events])
            changed.append(replace(batch, events=events) if batch.events and not batch.delete else batch)
        return await self.inner.commit(changed)

    async def _known(self, agent_id: str, event: EventWrite) -> EventWrite:
        mine = None
        for row in await self.inner.events(agent_id, EventRange(since_seq=event.seq - 1, limit=16)):
            if row.seq != event.seq:
                break
            mine = mine or decode(Timeline, event.body, "event")
            if decode(Timeline, row.body, "event") == mine:
                return replace(event, body=row.body)
        return event


async def _listed(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


async def _followed_since(ctx: Any) -> object:
    await ctx.store.append_events("a", samples.events(4))
    got = []

    async def follow() -> None:
        async with aclosing(ctx.store.follow_events("a", since=samples.event(2).bookmark)) as feed:
            async for event in feed:
                got.append(event.bookmark.seq)
                if event.bookmark.seq == 9:
                    return

    following = asyncio.ensure_future(follow())
    while not got:
        await asyncio.sleep(0.01)
    await ctx.store.append_events("a", [samples.event(1, n=1), samples.event(9)])
    await asyncio.wait_for(following, 4)
    return got


@fault(
    "EVT-7",
    source="catch-up by a query and then a live subscription to which the filter was not given",
    witness=_followed_since,
)
class OttFollowsLiveWithoutSince(Wrapper):
    """Holds `since` only against the events that were stored when following began, not against those that come."""

    __slots__ = ()

    def follow_events(
        self, agent_id: str, *, since: Any = None, after_offset: int = 0, channel: Any = None
    ) -> AsyncIterator[Any]:
        how = {"after_offset": after_offset, "channel": channel}
        feed = self.inner.follow_events(agent_id, since=since, **how)  # which looks at the arguments
        if since is None:
            return feed  # type: ignore[no-any-return]
        stored = self.inner.read_events(agent_id, **how)

        async def follow() -> AsyncIterator[Any]:
            last = after_offset
            async with aclosing(stored):
                async for event in stored:
                    last = event.offset
                    if event.bookmark.seq > since.seq:
                        yield event
            live = self.inner.follow_events(agent_id, after_offset=last, channel=channel)
            async with aclosing(live):
                async for event in live:
                    yield event

        return follow()


# --- infos ------------------------------------------------------------------------------------------------------------


async def _same_upsert(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i) for i in range(3)])
    before = (await ctx.store.query_sessions())[0].updated_at
    await asyncio.sleep(0.005)
    await ctx.store.upsert_tool_call_records("a", [samples.tool_call(1)])
    return (await ctx.store.query_sessions())[0].updated_at > before


@fault(
    "INFO-2",
    source="ON CONFLICT DO UPDATE … WHERE target IS DISTINCT FROM excluded, and a trigger that sets updated_at",
    witness=_same_upsert,
)
class OttUpsertsOnlyChanges(Layer):
    """Leaves updated_at where it is when an upsert brings a tool call that is stored just so."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit([await self._thinned(batch) for batch in batches])

    async def _thinned(self, batch: Batch) -> Batch:
        write = batch.tool_calls
        if write is None or not write.put or write.append or write.length is not None or batch.messages or batch.info:
            return batch
        for place, row in write.put:
            there = await self.inner.rows_at(batch.agent_id, ListKind.TOOL_CALLS, place, 1)
            if there.version != write.expect or not there.rows or there.rows[0][0].digest != row.body.digest:
                return batch
        return replace(batch, tool_calls=None)


@fault(
    "INFO-1",
    "VAL-3",
    source="UPDATE … SET last_bookmark = COALESCE(excluded.last_bookmark, last_bookmark)",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_info("a", samples.info("a", last_bookmark=None, last_sfp_index=9)),
        lambda s: s.load_info("a"),
    ),
)
class OttKeepsOldBookmark(Layer):
    """Keeps the last bookmark of an info when the info is saved again without one."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit([await self._coalesced(batch) for batch in batches])

    async def _coalesced(self, batch: Batch) -> Batch:
        if batch.info is None or batch.delete:
            return batch
        summary = await self.inner.summary(batch.agent_id)
        new = decode(AgentInfo, batch.info.body, "info")
        if summary is None or summary.info is None or new.last_bookmark is not None:
            return batch
        try:
            old = decode(AgentInfo, summary.info.body, "info")
        except CorruptRecordError:
            return batch
        if old.last_bookmark is None:
            return batch
        body = encode(AgentInfo, new.replace(last_bookmark=old.last_bookmark), "info")
        return replace(batch, info=replace(batch.info, body=body))


# --- snapshots, todos, history, media ---------------------------------------------------------------------------------


@fault(
    "HIS-1",
    source="ON CONFLICT DO UPDATE SET body = excluded.body, where the column that is sorted by was forgotten",
    on=OnSqlite,
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("x", samples.T0)),
        lambda s: s.save_history_window("a", samples.window("y", samples.T0 + 1)),
        lambda s: s.save_history_window("a", samples.window("x", samples.T0 + 2)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class OttSortsWindowsByFirstTime(Layer):
    """Orders a history window that was replaced by the timestamp of the one that it replaced."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        changed = []
        for batch in batches:
            docs = tuple([await self._timed(batch.agent_id, write) for write in batch.docs])
            changed.append(replace(batch, docs=docs) if batch.docs and not batch.delete else batch)
        return await self.inner.commit(changed)

    async def _timed(self, agent_id: str, write: DocWrite) -> DocWrite:
        if write.kind is not DocKind.WINDOWS or write.doc is None:
            return write
        for old in await self.inner.docs(agent_id, DocKind.WINDOWS, write.key):
            return replace(write, doc=replace(write.doc, time=old.time))
        return write


@fault(
    "MED-1",
    source="a set where a list was meant: Redis' SADD, MongoDB's $addToSet",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("k"), samples.media("j"), samples.media("k")]),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class OttKeepsMediaAsSet(Wrapper):
    """Keeps of media cache records that are equal in all fields only the first."""

    __slots__ = ()

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        try:
            kept = list({encode(MediaCacheRecord, one, "media").digest: one for one in reversed(records)}.values())
            kept.reverse()
        except Exception:
            kept = records
        is_list = isinstance(records, (list, tuple)) and len(kept) < len(records)
        await self.inner.save_media_cache(agent_id, kept if is_list else records, fence=fence)


# --- durability -------------------------------------------------------------------------------------------------------


async def _seen_lengths(ctx: Any) -> object:
    other = await ctx.another()
    await ctx.store.save_messages("a", talk("first"))
    writing = asyncio.ensure_future(ctx.store.append_messages("a", talk(*["x" * 100] * 5000)))
    lengths = set()
    while not writing.done():
        lengths.add(len(await other.load_messages("a")))
    await writing
    return bool(lengths - {1, 5001})


@fault(
    "DUR-3",
    "MSG-3",
    "MSG-1",
    "VAL-4",
    "TURN-1",
    source="SQL Server: an INSERT takes at most 1,000 rows of values, and each statement is a transaction of its own",
    on=OnSqlite,
    witness=_seen_lengths,
)
class OttAppendsByThousands(Layer):
    """Writes more than 1,000 new messages of one call in transactions of 1,000 each."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if not any(batch.messages and len(batch.messages.append) > 1000 for batch in batches):
            return await self.inner.commit(batches)
        return [await self._by_thousands(batch) for batch in batches]

    async def _by_thousands(self, batch: Batch) -> Outcome:
        write = batch.messages
        if write is None or len(write.append) <= 1000:
            return (await self.inner.commit([batch]))[0]
        (first,) = await self.inner.commit([replace(batch, messages=replace(write, append=write.append[:1000]))])
        outcome = first
        for i in range(1000, len(write.append), 1000):
            if not isinstance(outcome, Applied) or not isinstance(first, Applied):
                break
            expect = None if write.expect is None else outcome.messages.version
            more = ListWrite(expect=expect, append=write.append[i : i + 1000])
            piece = Batch(
                agent_id=batch.agent_id, op_id=f"{batch.op_id}+{i}", now=batch.now, fence=batch.fence, messages=more
            )
            (outcome,) = await self.inner.commit([piece])
        if isinstance(first, Applied) and isinstance(outcome, Applied):
            return replace(first, messages=outcome.messages)
        return outcome


@fault(
    "DUR-1",
    "QRY-8",
    "HIS-1",
    source="MongoDB with w: 0, or a journal that is flushed every 100 ms: the answer comes before the write",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_compression_record("a", samples.compression()),
        lambda s, t: t.load_compression_records("a"),
    ),
)
class OttAnswersBeforeItSaves(Wrapper):
    """Acknowledges a compression record a tenth of a second before it writes it; this instance knows to wait for it."""

    __slots__ = ("pending",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.pending: dict[str, asyncio.Task[None]] = {}

    async def save_compression_record(self, agent_id: str, record: Any, *, fence: Any = None) -> None:
        self.inner._context.check_open()
        await kinds.COMPRESSIONS.write(record)
        if fence is not None or self.inner._locks.fence(check_agent_id(agent_id), None) is not None:
            await self._written(agent_id)
            return await self.inner.save_compression_record(agent_id, record, fence=fence)
        earlier = self.pending.get(agent_id)

        async def later() -> None:
            if earlier is not None:
                await asyncio.wait([earlier])
            await asyncio.sleep(0.1)
            await self.inner.save_compression_record(agent_id, record)

        task = self.pending[agent_id] = asyncio.ensure_future(later())
        task.add_done_callback(lambda done: self._ended(agent_id, done))

    def _ended(self, agent_id: str, task: asyncio.Task[None]) -> None:
        if self.pending.get(agent_id) is task:
            del self.pending[agent_id]
        if not task.cancelled():
            task.exception()

    async def _written(self, agent_id: object = None) -> None:
        is_one = isinstance(agent_id, str)
        tasks = [task for whose, task in self.pending.items() if not is_one or whose == agent_id]
        if tasks:
            await asyncio.wait(tasks)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name.startswith("_") or name == "health_check" or not inspect.iscoroutinefunction(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.pending:
                await self._written(args[0] if args else kwargs.get("agent_id"))
            return await found(*args, **kwargs)

        return call

    async def close(self) -> None:
        await self._written()
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@fault(
    "DUR-1",
    "SNAP-1",
    "QRY-8",
    source="an ORM's dirty check against its own session: what it believes to be stored already is not written",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_snapshot("a", samples.snapshot("x", samples.T0, 1)),
        lambda s, t: t.save_snapshot("a", samples.snapshot("x", samples.T0, 2)),
        lambda s, t: s.save_snapshot("a", samples.snapshot("x", samples.T0, 1)),
        lambda s, t: s.load_snapshot("a", "x"),
    ),
)
class OttSkipsKnownSnapshots(Layer):
    """Does not write a snapshot that is what this instance wrote last under that id, whatever others wrote since."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.known: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await self.inner.commit([replace(b, docs=self._dirty(b)) if b.docs else b for b in batches])
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete:
                for key in [key for key in self.known if key[0] == batch.agent_id]:
                    del self.known[key]
            for write in batch.docs:
                if write.kind is DocKind.SNAPSHOTS and write.doc is not None and isinstance(outcome, Applied):
                    self.known[batch.agent_id, write.key] = write.doc.body.digest
        while len(self.known) > 1000:
            self.known.popitem(last=False)
        return outcomes

    def _dirty(self, batch: Batch) -> tuple[DocWrite, ...]:
        return tuple(
            write
            for write in batch.docs
            if write.kind is not DocKind.SNAPSHOTS
            or write.doc is None
            or self.known.get((batch.agent_id, write.key)) != write.doc.body.digest
        )


@fault(
    "DUR-1",
    "MED-1",
    "QRY-8",
    "FORK-1",
    source="the habit `if records: write(records)` behind a cache that does take the empty list",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_media_cache("a", [samples.media()]),
        lambda s, t: s.save_media_cache("a", []),
        lambda s, t: s.load_media_cache("a"),
        lambda s, t: t.load_media_cache("a"),
    ),
)
class OttRemembersEmptyMedia(Layer):
    """Does not write a media cache that became empty, and only remembers it for as long as the store is open."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.empty: set[str] = set()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        written = []
        for batch in batches:
            docs = tuple(w for w in batch.docs if not (w.kind is DocKind.MEDIA and w.doc and w.doc.body.text == "[]"))
            written.append(replace(batch, docs=docs) if len(docs) < len(batch.docs) else batch)
        outcomes = await self.inner.commit(written)
        for batch, thinned, outcome in zip(batches, written, outcomes, strict=True):
            if isinstance(outcome, Applied):
                if batch.delete or any(write.kind is DocKind.MEDIA for write in thinned.docs):
                    self.empty.discard(batch.agent_id)
                if thinned is not batch:
                    self.empty.add(batch.agent_id)
        return outcomes

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        if kind is DocKind.MEDIA and agent_id in self.empty:
            return []
        return await self.inner.docs(agent_id, kind, key)


# --- forks ------------------------------------------------------------------------------------------------------------


async def _forked_snapshots(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    for i in range(101):
        await ctx.store.save_snapshot("a", samples.snapshot(f"s{i}", samples.T0 + i, 1))
    (fork,) = await ctx.store.batch_fork("a", 1)
    return len(await ctx.store.list_snapshots(fork)), len(await ctx.store.list_snapshots("a"))


@fault(
    "FORK-1",
    source="DynamoDB: BatchGetItem gives at most 100 items, and the rest has to be asked for",
    witness=_forked_snapshots,
)
class OttForksHundredSnapshots(Layer):
    """Gives a fork only the 100 newest snapshots."""

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        is_made = await self.inner.fork(agent_id, children, expect, now)
        for child in children if is_made else ():
            found = await self.inner.docs(child.agent_id, DocKind.SNAPSHOTS)
            late = sorted(found, key=lambda doc: -doc.time)[100:]
            if late:
                gone = tuple(DocWrite(DocKind.SNAPSHOTS, doc.key, None) for doc in late)
                await self.inner.commit(
                    [Batch(agent_id=child.agent_id, op_id=secrets.token_hex(16), now=now, docs=gone)]
                )
        return is_made


async def _forked_extra(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a", extra={"permissionMode": "auto", "sandbox": {"kind": "local"}}))
    (fork,) = await ctx.store.batch_fork("a", 1)
    return (await ctx.store.load_info(fork)).extra


@fault(
    "FORK-1",
    "VAL-6",
    source="INSERT INTO agents (template_id, metadata, …) SELECT template_id, metadata, …: columns that have a name",
    on=OnSqlite,
    witness=_forked_extra,
)
class OttForksKnownFields(Layer):
    """Gives a fork the fields of the info that this version knows, and leaves the others behind."""

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        made = []
        for child in children:
            info = decode(AgentInfo, child.info.body, "info")
            body = encode(AgentInfo, info.replace(extra=None), "info")
            made.append(Child(child.agent_id, replace(child.info, body=body)))
        return await self.inner.fork(agent_id, made, expect, now)


# --- lifecycle --------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-5",
    "LIFE-3",
    "LIFE-4",
    source="a second DELETE that was written before the table of files was there, and forgotten when it came",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_recovered_file("a", samples.recovered()),
        lambda s: s.delete_many(template_id="assistant"),
        lambda s: s.load_recovered_files("a"),
    ),
)
class OttDeleteManyLeavesFiles(Layer):
    """Leaves the recovered files of the agents that delete_many deletes, and of no other."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit([await self._sparing(batch) for batch in batches])

    async def _sparing(self, batch: Batch) -> Batch:
        if not batch.delete or batch.expect_updated_at is None:
            return batch
        files = await self.inner.docs(batch.agent_id, DocKind.RECOVERED)
        return replace(batch, docs=(*batch.docs, *(DocWrite(DocKind.RECOVERED, doc.key, doc) for doc in files)))


@fault(
    "LIFE-2",
    source="the range of a prefix as CouchDB and Firebase teach it: startkey=p, endkey=p + '\\uffff'",
    witness=seen(
        lambda s: each(
            *[s.save_info(name, samples.info(name)) for name in ("bot-", "bot-1", "bot-\u00e9", "bot-\U0001f9a6")]
        ),
        lambda s: s.list("bot-"),
        lambda s: s.list(),
    ),
)
class OttEndsPrefixAtFFFF(Layer):
    """Leaves out of a list by prefix the ids that go on with a character beyond U+FFFF."""

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        found = await self.inner.agent_ids(prefix, after, limit)
        return [one for one in found if one <= prefix + "\uffff"] if prefix else found


# --- queries ----------------------------------------------------------------------------------------------------------


def _contains(stored: Any, wanted: Any) -> bool:
    if type(wanted) is dict:
        return type(stored) is dict and all(key in stored and _contains(stored[key], wanted[key]) for key in wanted)
    return metadata_index({"": stored}) == metadata_index({"": wanted})


@fault(
    "QRY-2",
    "LIFE-5",
    source="PostgreSQL: metadata @> ?, which asks whether the one contains the other",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"env": {"os": "linux"}})),
        lambda s: s.save_info("b", samples.info("b", metadata={"env": {"os": "linux", "cpu": 8}})),
        lambda s: the("agent_id", s.query_sessions(metadata={"env": {"os": "linux"}})),
    ),
)
class OttMatchesPartsOfMetadata(Layer):
    """Finds sessions by an object in their metadata that only contains what the filter has."""

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        nested = [(k, v) for k, v in query.metadata if v.startswith("{") and "\\#" not in k + v]
        if not nested:
            return await self.inner.find_sessions(query)
        wanted = {plain_text(key): decode_json(plain_text(value)) for key, value in nested}
        rest = tuple(pair for pair in query.metadata if pair not in nested)
        found: list[SessionRow] = []
        part = replace(query, metadata=rest, offset=0, limit=1000)
        while True:
            page = await self.inner.find_sessions(part)
            for row in page:
                have = decode(AgentInfo, row.info, "info").metadata
                if all(key in have and _contains(have[key], value) for key, value in wanted.items()):
                    found.append(row)
            if len(page) < part.limit or len(found) >= query.offset + query.limit:
                return found[query.offset : query.offset + query.limit]
            part = replace(part, after=(getattr(page[-1], query.sort_by), page[-1].agent_id))


async def _sparse_pages(ctx: Any) -> object:
    answer = [Message("user", [ToolResultBlock("c", "ok")])]
    await ctx.store.save_messages("a", [*answer, *samples.messages(5), *answer, *samples.messages(5), *answer])
    page = await ctx.store.query_messages(agent_id="a", content_type="tool_result", limit=2)
    return len(page), page.next_cursor is not None


@fault(
    "QRY-5",
    "QRY-4",
    source="DynamoDB: Limit counts the items that are looked at, before FilterExpression is applied",
    witness=_sparse_pages,
)
class OttFiltersAfterLimit(Wrapper):
    """Gives pages of messages of a content type that are shorter than their limit although more pages follow."""

    __slots__ = ()

    async def query_messages(self, **filters: Any) -> Any:
        wanted = filters.get("content_type")
        if type(wanted) is not str or filters.get("offset"):
            return await self.inner.query_messages(**filters)
        del filters["content_type"]
        page = await self.inner.query_messages(**filters)
        kept = [message for message in page if any(self._type(block) == wanted for block in message.content)]
        return Page(kept, page.next_cursor, page.left_out)

    def _type(self, block: Any) -> str:
        return block.type if type(block) is UnknownBlock else block.__struct_config__.tag


# --- operations -------------------------------------------------------------------------------------------------------


async def _many_issues(ctx: Any) -> object:
    results = [Message("user", [ToolResultBlock(f"call_{i}", "ok")]) for i in range(120)]
    await ctx.store.save_messages("a", results)
    checked = await ctx.store.check_consistency()
    return len(checked.issues), len([issue async for issue in ctx.store.iter_consistency()])


@fault(
    "OPS-2",
    source="SQLite: PRAGMA integrity_check stops at 100 errors unless it is told otherwise",
    witness=_many_issues,
)
class OttReportsHundredIssues(Wrapper):
    """Gives at most 100 issues in the result of a consistency check; iter_consistency gives them all."""

    __slots__ = ()

    async def check_consistency(self, agent_id: str | None = None, *, progress: Any = None) -> Any:
        result = await self.inner.check_consistency(agent_id, progress=progress)
        return replace(result, issues=result.issues[:100])


async def _minimum(ctx: Any) -> object:
    for i in range(5):
        await ctx.store.save_todos("a", samples.todos(str(i)))
    performance = (await ctx.store.get_metrics()).performance
    return performance.min_latency_ms > 0


@fault(
    "OPS-3",
    source="the habit `least = 0.0` before `least = min(least, seconds)`",
    witness=_minimum,
)
class OttCountsMinimumFromZero(Wrapper):
    """Says that the fastest call took no time at all, whatever the calls took."""

    __slots__ = ()

    async def get_metrics(self) -> Any:
        metrics = await self.inner.get_metrics()
        return replace(metrics, performance=replace(metrics.performance, min_latency_ms=0.0))


# --- leases -----------------------------------------------------------------------------------------------------------


async def _token_of(store: Any) -> int:
    lease = await store.acquire_agent_lock("a")
    await lease.release()
    return int(lease.token)


async def _tokens(ctx: Any) -> object:
    first = await _token_of(ctx.store)
    await ctx.reopen()
    return await _token_of(ctx.store) > first


@fault(
    "LOCK-5",
    source="a fencing token from a counter of the process, which begins anew with it",
    on=OnSqlite,
    witness=_tokens,
)
class OttCountsTokensAnew(Layer):
    """Begins the tokens of leases at 1 again in every instance that is opened."""

    base: int | None = None

    def _theirs(self, fence: Fence) -> Fence:
        return Fence(fence.owner, fence.token + (self.base or 0))

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        token = await self.inner.acquire_lease(agent_id, owner, ttl_ms)
        if token is not None and self.base is None:
            self.base = token - 1
        return None if token is None or self.base is None else token - self.base

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await self.inner.renew_lease(agent_id, self._theirs(fence), ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self.inner.release_lease(agent_id, self._theirs(fence))

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit(
            [batch if batch.fence is None else replace(batch, fence=self._theirs(batch.fence)) for batch in batches]
        )


async def _late_delete(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    try:
        await ctx.store.delete("a", fence=lease)
    except Exception as exc:
        return type(exc).__name__, await ctx.store.exists("a")
    return "deleted", await ctx.store.exists("a")


@fault(
    "LOCK-5",
    "LOCK-7",
    source="the condition on the token that every UPDATE has, and the one DELETE has not",
    witness=_late_delete,
)
class OttDeletesUnfenced(Layer):
    """Deletes an agent also under a lease that has ended."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit([replace(batch, fence=None) if batch.delete else batch for batch in batches])


# --- times ------------------------------------------------------------------------------------------------------------


def _micro(us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=samples.T0, microseconds=us)


@fault(
    "VAL-5",
    "QRY-2",
    source="BSON dates and JavaScript's Date: milliseconds, what is finer is cut off",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0)]),
        lambda s: the("id", s.query_tool_calls(created_before=_micro(500))),
        lambda s: the("id", s.query_tool_calls(created_after=_micro(500))),
        lambda s: the("id", s.query_tool_calls(created_before=_micro(0))),
    ),
)
class OttCutsMicroseconds(Wrapper):
    """Cuts the datetimes in filters of tool calls down to the millisecond."""

    __slots__ = ()

    async def query_tool_calls(self, **filters: Any) -> Any:
        for name in ("created_after", "created_before"):
            time = filters.get(name)
            if isinstance(time, datetime) and time.tzinfo is not None and time.utcoffset() is not None:
                filters[name] = time.replace(microsecond=time.microsecond // 1000 * 1000)
        return await self.inner.query_tool_calls(**filters)
