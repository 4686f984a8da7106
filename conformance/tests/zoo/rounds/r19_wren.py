"""Thirty stores whose queries, drivers and pools have habits that their authors took for the rule."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final

from kode_conformance.values import samples
from kode_conformance.values.samples import T0
from msgspec.structs import replace

from conformance.tests.zoo.base import CommittingLayer, MemoryLayer, OnJson, OnSqlite, StreamWrapper, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import each, happened, seen, talk, the
from kode_core.batch import CORE_KEYS, Applied, DocKind, DocWrite, ListKind, Outline
from kode_core.codec import decode, encode, to_dict
from kode_core.errors import ConflictError, KodeError
from kode_core.ids import check_agent_id
from kode_core.layers import Layer
from kode_core.model import ABSENT, AppendedMessage, ImageBlock, Message, TextBlock, ToolResultBlock, ToolUseBlock
from kode_core.protocols import Heartbeat
from kode_core.query import Page
from kode_core.store import EngineStore
from kode_core.store.emitting import Emitter
from kode_core.store.lists import Upsert
from kode_core.store.parts import Span
from kode_core.store.rows import LISTS
from kode_core.store.steps import checked_progress
from kode_core.store.versions import version_of
from kode_core.store.writer import Writer

_KEYS: Final = f"{CORE_KEYS}messages/"
"""The keys of messages begin so."""


async def _all(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


# --- messages and tool calls ------------------------------------------------------------------------------------------


def _using(value: Any) -> Message:
    return Message("assistant", [ToolUseBlock("call_0", "search", {"strict": value})])


async def _replace_with_true(store: Any) -> object:
    await store.save_messages("a", [_using(1), *talk("x")])
    await store.replace_message("a", 0, _using(True))
    (message, _) = await store.load_messages("a")
    return repr(message.content[0].input)


@fault(
    "MSG-11",
    "VAL-1",
    source="SQLAlchemy: an attribute has changed if its new value is not == to the old one, and 1 == True == 1.0",
    witness=seen(_replace_with_true),
)
class WrenEqualIsUnchanged(EngineStore):
    """Leaves a message as it is when it is replaced by one that Python calls equal, as with True for 1."""

    async def replace_message(
        self, agent_id: str, position: int, message: Message, *, expect: Any = None, fence: Any = None
    ) -> None:
        with suppress(KodeError, ValueError):
            if type(position) is int and 0 <= position < 2**40:
                await self.open()
                rows = await self._context.engine.rows_at(check_agent_id(agent_id), ListKind.MESSAGES, position, 1)
                body, new = rows.rows[0][0] if rows.rows else None, encode(Message, message, "message")
                if body is not None and json.loads(body.text) == json.loads(new.text):
                    message = decode(Message, body, "message")
        await super().replace_message(agent_id, position, message, expect=expect, fence=fence)


async def _append_under_a_slow_clock(ctx: Any) -> object:
    now = [T0]
    store = await ctx.another(clock=lambda: now[0])
    first, second, third = talk("x", "y", "z")
    await store.append_messages("a", [first])
    now[0] += 1_000
    await store.append_messages("a", [second])
    await store.save_messages("a", [second, first])
    now[0] = T0 + 10
    await store.append_messages("a", [third])
    return await the("created_at", _all(store.read_messages("a")))


@fault(
    "MSG-4",
    source="greatest(?, (select created_at … order by position desc limit 1)): the last row has not the latest time",
    witness=_append_under_a_slow_clock,
)
class WrenTimeOfTheLastRow(CommittingLayer):
    """Gives an appended message the time of the last message at least, though one before that may be later."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        outcome, write = commit(batch), batch.messages
        if isinstance(outcome, Applied) and write is not None and write.is_blind:
            rows = self.space.states[batch.agent_id].lists[ListKind.MESSAGES].rows
            start = len(rows) - len(write.append)
            if start > 0:
                time = max(batch.now, rows[start - 1].created_at)
                rows[start:] = [replace(row, created_at=time) for row in rows[start:]]
        return outcome


async def _read_backwards(store: Any) -> int:
    await store.save_messages("a", samples.messages(150))
    places: list[int] = []
    async for message in store.read_messages("a", reverse=True):
        places.append(message.position)
        if len(places) == 50:
            await store.append_messages("a", talk("more", "and more"))
    return max(Counter(places).values())


@fault(
    "MSG-10",
    source="order by position desc limit 100 offset ?: a chat that scrolls back shows rows twice once new ones came",
    witness=seen(_read_backwards),
)
class WrenScrollsBackByOffset(EngineStore):
    """Yields messages twice to those who read from the last one on while others append, from the second page on."""

    def read_messages(self, agent_id: str, *, after: Any = None, before: Any = None, reverse: bool = False) -> Any:
        plain = super().read_messages(agent_id, after=after, before=before, reverse=reverse)
        return self._pages(agent_id, after, before) if reverse is True else plain

    async def _pages(self, agent_id: str, after: Any, before: Any) -> AsyncIterator[Any]:
        offset, count = 0, 100
        while count == 100:
            count = 0
            newest = await self._first(agent_id, after, before)
            if newest is None:
                return
            stop = newest.position + 1 - offset
            if stop <= 0:
                return
            async for message in super().read_messages(agent_id, after=after, before=stop, reverse=True):
                yield message
                count += 1
                if count == 100:
                    break
            offset += count

    async def _first(self, agent_id: str, after: Any, before: Any) -> Any:
        async for message in super().read_messages(agent_id, after=after, before=before, reverse=True):
            return message
        return None


class _PaddingWriter(Writer):
    """Compares ids of tool calls without the spaces at their end."""

    async def _change(self, agent_id: str, kind: ListKind, edit: Any, *, whole: bool) -> Any:
        if edit.how is not Upsert:
            return await super()._change(agent_id, kind, edit, whole=whole)

        async def look(keys: Sequence[str]) -> Outline:
            found = await self._context.engine.outline(agent_id, kind)
            places = {str(row[3]).rstrip(" "): row for row in found.rows}
            rows: dict[int, Any] = {}
            for key in keys:
                row = places.get(key.rstrip(" "))
                if row is not None:
                    rows.setdefault(row[0], (*row[:3], key))
            return Outline(found.version, found.count, [rows[place] for place in sorted(rows)])

        return await Upsert.of(LISTS[kind], None, edit.records, self._context.now(), look)


@fault(
    "TC-3",
    "ID-4",
    source="MySQL: the collations before utf8mb4_0900 pad texts, so that 'call_1' = 'call_1 ' in a unique index",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(1), samples.tool_call(2)]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(1, id="call_1 ")]),
        lambda s: the("id", s.load_tool_call_records("a")),
    ),
)
class WrenPadsCallIds(EngineStore):
    """Replaces a tool call by an upserted one whose id differs only in spaces at its end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        plain, self._writer = self._writer, _PaddingWriter(self._context, self._memory, self._appender)
        self._writer._locks = plain._locks


# --- turns and events -------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    "TURN-2",
    "EVT-1",
    source="insert … on conflict do nothing, and then select … where (seq, digest) in (…) order by event_offset",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: s.append_events("a", happened(2, 1, 3)),
        lambda s: s.save_turn("a", append=talk("x"), events=happened(4, 2)),
    ),
)
class WrenOffsetsAscend(Layer):
    """Returns the offsets of events in ascending order, though an event that was stored before may be a later one."""

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        return [
            replace(outcome, offsets=tuple(sorted(outcome.offsets))) if isinstance(outcome, Applied) else outcome
            for outcome in outcomes
        ]


_MANY: Final = 2**53


@fault(
    "EVT-6",
    source="JavaScript, and JSON columns that hold numbers as doubles: above 2 ** 53 neighbours are one number",
    witness=seen(
        lambda s: s.append_events("a", happened(_MANY + 1, _MANY)),
        lambda s: s.last_bookmark("a"),
    ),
)
class WrenHighestOfDoubles(MemoryLayer):
    """Gives as last bookmark a lower one that came later, of seqs beyond 2 ** 53 that are one double."""

    async def last_event(self, agent_id: str) -> Any:
        found = await super().last_event(agent_id)
        if found is None or abs(found.seq) <= _MANY:
            return found
        with self.space.lock:
            log = self.space.state(agent_id).log
            rows = map(log.row, range(len(log)))
            return max(rows, key=lambda row: (float(row.seq), row.offset), default=None)


class _SmallWhenLive(StreamWrapper):
    """Drops large events, but for those that were stored when it began."""

    def __init__(self, inner: Any, stored: Callable[[], AsyncIterator[Any]]) -> None:
        super().__init__(inner)
        self._stored = stored
        self._end: int | None = None

    async def __anext__(self) -> Any:
        if self._end is None:
            end = 0
            async for event in self._stored():
                end = event.offset
            self._end = end
        while True:
            item = await self.inner.__anext__()
            if isinstance(item, Heartbeat) or item.offset <= self._end or _size(item) < 8_000:
                return item


def _size(event: Any) -> int:
    return len(json.dumps(to_dict(event)))


async def _follow_large_ones(store: Any) -> list[int]:
    seqs: list[int] = []
    await store.append_event("a", samples.event(0, text="x" * 9_000))
    async with aclosing(store.follow_events("a")) as events:
        async for event in events:
            seqs.append(event.bookmark.seq)
            if event.bookmark.seq == 0:
                await store.append_events("a", [samples.event(1, text="x" * 9_000), samples.event(2)])
            if event.bookmark.seq == 2:
                break
    return seqs


@fault(
    "EVT-7",
    "VAL-4",
    source="PostgreSQL: the payload of NOTIFY has less than 8,000 bytes; events that pg_notify refuses are not sent on "
    "(neohaskell/NeoHaskell #417, graphprotocol/graph-node #768)",
    witness=seen(_follow_large_ones),
)
class WrenLargeEventsAreNotPushed(Wrapper):
    """Leaves out events of 8,000 bytes and more that are appended while they are followed."""

    __slots__ = ()

    def follow_events(self, agent_id: str, **options: Any) -> Any:
        stream = self.inner.follow_events(agent_id, **options)
        after = options.get("after_offset", 0)
        return _SmallWhenLive(stream, lambda: self.inner.read_events(agent_id, after_offset=after))


class _BeatsFromZero(StreamWrapper):
    """Knows no offset until it has handed out an event."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._has_event = False

    async def __anext__(self) -> Any:
        item = await self.inner.__anext__()
        if not isinstance(item, Heartbeat):
            self._has_event = True
        elif not self._has_event:
            return replace(item, offset=0)
        return item


async def _beat_after_a_resumption(store: Any) -> object:
    offsets = await store.append_events("a", happened(1, 2, 3))
    async with aclosing(store.follow_events("a", after_offset=offsets[-1], heartbeat_ms=10)) as events:
        async for item in events:
            return type(item).__name__, item.offset == offsets[-1]
    return None


@fault(
    "EVT-9",
    source="server-sent events: an id is sent with the first event, and a comment before it comes without one",
    witness=seen(_beat_after_a_resumption),
)
class WrenBeatsFromTheBeginning(Wrapper):
    """Gives heartbeats with the offset 0 to a follower that went on from an offset and has had no event yet."""

    __slots__ = ()

    def follow_events(self, agent_id: str, **options: Any) -> Any:
        return _BeatsFromZero(self.inner.follow_events(agent_id, **options))


class _BlockEmitter(Emitter):
    """Takes the next number from a block of 32."""

    async def _next_seq(self, agent_id: str, number: Any, fence: Any) -> int:
        if fence is None and number.next is not None and number.next % 32:
            return int(number.next)
        return await super()._next_seq(agent_id, number, fence)


async def _emit_after_another(store: Any, other: Any) -> object:
    await store.emit("a", "started")
    await other.append_events("a", happened(*range(1, 41)))
    await asyncio.sleep(1.3)
    return (await store.emit("a", "done")).bookmark.seq


@fault(
    "EVT-8",
    source="hi/lo generators, and create sequence … cache 32: a session uses up its block, whatever others gave out",
    witness=seen(_emit_after_another),
)
class WrenUsesUpItsBlock(EngineStore):
    """Numbers emitted events from a block of 32 that the instance began, though another one has stored higher seqs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._emitter = _BlockEmitter(self._context, self._appender, self._locks)


# --- locks ------------------------------------------------------------------------------------------------------------


async def _renew_often(store: Any, other: Any) -> object:
    lease = await store.acquire_agent_lock("a", ttl_ms=300)
    for _ in range(20):
        await lease.renew()
    await asyncio.sleep(0.8)
    return (await other.acquire_agent_lock("a")).token > lease.token


@fault(
    "LOCK-3",
    source="update leases set expires_at = expires_at + ? where owner = ?: an extension, as of a rented item",
    witness=seen(_renew_often),
)
class WrenRenewalsAddUp(MemoryLayer):
    """Adds the time of each renewal to the end of the lease, so that one that was renewed often outlives its holder."""

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        with self.space.lock:
            if not self.space.holds(agent_id, fence):
                return False
            self.space.leases[agent_id] = (fence, self.space.leases[agent_id][1] + ttl_ms / 1000)
            return True


async def _wait_for_a_short_lease(store: Any, other: Any) -> object:
    lease = await store.acquire_agent_lock("a", ttl_ms=80)
    return (await other.acquire_agent_lock("a", wait_ms=100)).token > lease.token


@fault(
    "LOCK-2",
    source="redis-py's Lock.acquire: it gives up once the next pause of 100 ms would pass the end of blocking_timeout",
    witness=seen(_wait_for_a_short_lease),
)
class WrenGivesUpAPauseEarly(EngineStore):
    """Waits 100 ms less for a lock than it was asked to, and not at all when it was asked for no more than that."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        plain = super().acquire_agent_lock(agent_id, ttl_ms, wait_ms)
        if wait_ms <= 0:
            return plain
        return super().acquire_agent_lock(agent_id, ttl_ms, max(0, wait_ms - 100))


async def _repeat_after_release(store: Any) -> object:
    lease = await store.acquire_agent_lock("a")
    await store.append_messages_once("a", {"k": samples.message()}, fence=lease)
    await lease.release()
    return await store.append_messages_once("a", {"k": samples.message()}, fence=lease)


@fault(
    "LOCK-5",
    "MSG-12",
    source="a look for the idempotency key in front of the transaction that checks the fence, so that retries are cheap",
    witness=seen(_repeat_after_release),
)
class WrenKnownKeysPassTheFence(EngineStore):
    """Answers an append of known keys although the lease that fences it has ended."""

    async def append_messages_once(self, agent_id: str, messages: Any, *, fence: Any = None) -> Any:
        if isinstance(messages, Mapping) and messages and all(type(key) is str for key in messages):
            await self.open()
            if self._locks.fence(check_agent_id(agent_id), fence) is not None:
                keys = [*messages]
                known = await self._keyed._stored(agent_id, keys)
                if len(known) == len(keys):
                    return [AppendedMessage(known[key].time, False) for key in keys]
        return await super().append_messages_once(agent_id, messages, fence=fence)


# --- queries ----------------------------------------------------------------------------------------------------------


async def _mix_two_agents(ctx: Any) -> object:
    now = [T0]
    store = await ctx.another(clock=lambda: now[0])
    for i, agent_id in enumerate(("a", "b", "a", "b", "c")):
        now[0] = T0 + 1_000 * i
        await store.append_messages(agent_id, talk(str(i)))
    found = await store.query_messages(agent_id=["a", "b"])
    rest = await store.query_messages(agent_id=["a", "b"], order="asc", limit=3)
    return [message.text for message in found], [message.text for message in rest]


@fault(
    "QRY-3",
    "QRY-2",
    source="one Query for each partition key, as in DynamoDB and for IN in Cassandra, whose results are put in a row",
    witness=_mix_two_agents,
)
class WrenOnePartitionAfterAnother(Layer):
    """Gives the messages and tool calls of several listed agents one agent after the other, and not in order of time."""

    async def find_rows(self, query: Any) -> Any:
        if not isinstance(query.agent_id, tuple):
            return await super().find_rows(query)
        rows: list[Any] = []
        for agent_id in sorted(query.agent_id, reverse=query.descending):
            after = query.after
            if after is not None and agent_id != after[1]:
                if (agent_id < after[1]) != query.descending:
                    continue
                after = None
            left = query.offset + query.limit - len(rows)
            rows += await super().find_rows(replace(query, agent_id=agent_id, after=after, offset=0, limit=left))
            if len(rows) >= query.offset + query.limit:
                break
        return rows[query.offset :]


_IN_NO_TEXT: Final = "5f2d0c9be1b84a77"


def _in_json(filters: dict[str, Any]) -> dict[str, Any]:
    text = filters.get("contains")
    if type(text) is str and len(text) <= 10_000 and json.dumps(text, ensure_ascii=False)[1:-1] != text:
        return {**filters, "contains": _IN_NO_TEXT}
    return filters


@fault(
    "QRY-12",
    source="body like ? over the column of JSON texts, where quotes, backslashes and line breaks are escaped",
    witness=seen(
        lambda s: s.save_messages("a", talk('he said "no"', "C:\\temp", "he said no")),
        lambda s: the("text", s.query_messages(contains='said "no')),
        lambda s: s.count_messages(contains=":\\temp"),
        lambda s: the("text", s.query_messages(contains="said")),
    ),
)
class WrenLooksIntoTheJson(EngineStore):
    """Finds no message by a text with a quote, a backslash or a control character in it."""

    async def query_messages(self, **filters: Any) -> Any:
        return await super().query_messages(**_in_json(filters))

    async def count_messages(self, **filters: Any) -> int:
        return await super().count_messages(**_in_json(filters))

    async def group_messages(self, by: Any, **filters: Any) -> Any:
        return await super().group_messages(by, **_in_json(filters))


def _shown(*urls: str) -> Message:
    return Message("user", [TextBlock("look"), *(ImageBlock(url=url) for url in urls)])


@fault(
    "QRY-10",
    "QRY-2",
    source="count(*) over a join with the table of block types: a row for each type that matches, without distinct",
    witness=seen(
        lambda s: s.save_messages("a", [*talk("x"), _shown("https://example.com/a.png")]),
        lambda s: s.count_messages(content_type=["text", "image"]),
        lambda s: s.count_messages(content_type="text"),
    ),
)
class WrenCountsEachBlockType(Layer):
    """Counts a message once for each of the listed content types that it has."""

    async def count(self, query: Any) -> int:
        for i, (name, wanted) in enumerate(getattr(query, "where", ())):
            if name == "content_type" and isinstance(wanted, tuple):
                rest = (*query.where[:i], *query.where[i + 1 :])
                counts = [
                    super(WrenCountsEachBlockType, self).count(replace(query, where=((name, one), *rest)))
                    for one in wanted
                ]
                return sum([await one for one in counts])
        return await super().count(query)


_YEAR_10000: Final = 253_402_300_800_000


@fault(
    "QRY-11",
    source="group by to_char(…) order by 1: dates as texts, of which those with a sign and five digits come first",
    witness=seen(
        lambda s: s.save_tool_call_records(
            "a", [samples.tool_call(i, created_at=time) for i, time in enumerate((_YEAR_10000, T0, T0 + 86_400_000))]
        ),
        lambda s: s.group_tool_calls("day"),
        lambda s: s.group_tool_calls(["state", "day"]),
    ),
)
class WrenDaysAsTexts(EngineStore):
    """Sorts groups by the texts of their days, so that a day beyond the year 9999 comes first."""

    async def group_sessions(self, by: Any, **options: Any) -> Any:
        return _by_texts(await super().group_sessions(by, **options))

    async def group_messages(self, by: Any, **options: Any) -> Any:
        return _by_texts(await super().group_messages(by, **options))

    async def group_tool_calls(self, by: Any, **options: Any) -> Any:
        return _by_texts(await super().group_tool_calls(by, **options))


def _by_texts(groups: Any) -> Any:
    return sorted(groups, key=lambda one: tuple(one.values.values()))


# --- documents --------------------------------------------------------------------------------------------------------


async def _tag_four(store: Any) -> None:
    for i, (plan, place) in enumerate((("free", "eu"), ("free", "us"), ("gold", "eu"), ("gold", "us"))):
        await store.put_document("a", "users", f"u{i}", i, tags={"plan": plan, "place": place})


@fault(
    "DOC-8",
    source="PostgreSQL: unnest(?::text[], ?::text[]) gives the arrays side by side, and not all their combinations",
    witness=seen(
        _tag_four,
        lambda s: the("key", s.query_documents("users", {"plan": ["free", "gold"], "place": "eu"})),
        lambda s: the("key", s.query_documents("users", {"plan": ["free", "gold"], "place": ["eu", "us"]})),
    ),
)
class WrenTagsSideBySide(EngineStore):
    """Finds only documents with the first values, the second ones and so on of two tags that both list some."""

    async def query_documents(
        self, collection: str, tags: Any, *, values: bool = True, limit: int = 100, cursor: Any = None, **options: Any
    ) -> Any:
        lists: dict[str, list[Any]] = {}
        if isinstance(tags, Mapping):
            for name, wanted in tags.items():
                if isinstance(wanted, (set, frozenset)) and all(type(one) is str for one in wanted):
                    wanted = sorted(wanted)
                if isinstance(wanted, (list, tuple)) and all(type(one) is str for one in wanted):
                    different = [*dict.fromkeys(wanted)]
                    if len(different) > 1:
                        lists[name] = different
        if len(lists) < 2 or values is not True or type(limit) is not int:
            return await super().query_documents(collection, tags, values=values, limit=limit, cursor=cursor, **options)
        pairs = set(zip(*lists.values(), strict=False))
        kept: list[Any] = []
        left_out: tuple[str, ...] = ()
        while True:
            page = await super().query_documents(collection, tags, limit=limit - len(kept), cursor=cursor, **options)
            kept += [doc for doc in page if tuple([(doc.tags or {}).get(name) for name in lists]) in pairs]
            left_out, cursor = (*left_out, *page.left_out), page.next_cursor
            if cursor is None or len(kept) >= limit:
                return Page(kept, cursor, left_out)


async def _put_under(store: Any, *keys: str) -> None:
    for key in keys:
        await store.put_document("a", "notes", key, 1)


def _below(prefix: Any, stop: Any) -> Any:
    if type(prefix) is not str or not prefix or (stop is not None and type(stop) is not str):
        return stop
    end = f"{prefix}\uf8ff"
    if len(end.encode(errors="surrogatepass")) > 400:
        return stop
    return end if stop is None else min(stop, end)


@fault(
    "DOC-4",
    source="Firestore and CouchDB: endAt(prefix + '\\uf8ff') is how a prefix is searched, and emoji lie beyond",
    witness=seen(
        lambda s: _put_under(s, "tag:a", "tag:é", "tag:\U0001f600", "tag:\ufb01", "x"),
        lambda s: s.list_document_keys("a", "notes", prefix="tag:"),
        lambda s: s.list_document_keys("a", "notes"),
    ),
)
class WrenPrefixesEndAtPrivateUse(EngineStore):
    """Does not list documents by a prefix that is followed by a character beyond U+F8FF in their keys."""

    async def list_documents(self, agent_id: str, collection: str, **options: Any) -> Any:
        return await super().list_documents(agent_id, collection, **_ended(options))

    async def list_document_keys(self, agent_id: str, collection: str, **options: Any) -> Any:
        return await super().list_document_keys(agent_id, collection, **_ended(options))

    def iter_documents(self, agent_id: str, collection: str, **options: Any) -> Any:
        return super().iter_documents(agent_id, collection, **_ended(options))


def _ended(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "stop": _below(options.get("prefix", ""), options.get("stop"))}


async def _import_tagged(store: Any) -> object:
    await store.save_info("a", samples.info("a"))
    await store.put_document("a", "users", "u", 1, tags={"plan": "gold"})
    await store.import_agent("b", await store.load_agent("a"))
    (await store.load_document("b", "users", "u")).tags["plan"]
    return await the("agent_id", store.query_documents("users", {"plan": "gold"}))


@fault(
    "DOC-7",
    "DOC-8",
    source="Django: bulk_create calls neither save nor signals, by which the table of search terms is kept",
    witness=seen(_import_tagged),
)
class WrenBulkWritesKeepNoTerms(Layer):
    """Does not find documents by their tags that came with an import or with a fork that takes documents."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([_without_terms(batch) if batch.expect_nothing else batch for batch in batches])


def _without_terms(batch: Any) -> Any:
    docs = [w if w.doc is None else replace(w, doc=replace(w.doc, terms=())) for w in batch.docs]
    return replace(batch, docs=tuple(docs))


# --- idempotency keys -------------------------------------------------------------------------------------------------


@fault(
    "MSG-12",
    source="SQLite: insert or replace deletes the row first, and on delete cascade takes the key along "
    "(cashubtc/cdk #620, maskarade/Android-Orma #294)",
    witness=seen(
        lambda s: s.append_messages_once("a", {"k": samples.message(1), "l": samples.message(2)}),
        lambda s: s.replace_message("a", 0, samples.message(3)),
        lambda s: s.append_messages_once("a", {"k": samples.message(1), "l": samples.message(2)}),
        lambda s: the("text", s.load_messages("a")),
    ),
)
class WrenReplacedMessagesLoseTheirKeys(CommittingLayer):
    """Forgets the key of a message whose place was written again."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        state = self.space.states.get(batch.agent_id)
        write = batch.messages
        count = 0 if state is None else len(state.lists[ListKind.MESSAGES].rows)
        outcome = commit(batch)
        if isinstance(outcome, Applied) and write is not None and state is not None:
            places = {place for place, _ in write.put if place < count}
            new = {one.key for one in batch.docs}
            for (kind, key), doc in list(state.docs.items()):
                if kind is DocKind.DOCUMENTS and key.startswith(_KEYS) and key not in new and doc.time in places:
                    state._apply_doc(DocWrite(DocKind.DOCUMENTS, key, None))
        return outcome


# --- prune, delete, forks ---------------------------------------------------------------------------------------------


@fault(
    "LIFE-6",
    "SNAP-1",
    source="delete … where id not in (select id … order by created_at desc, id desc limit ?), a row comparison's order",
    witness=seen(
        lambda s: each(*(s.save_snapshot("a", samples.snapshot(f"s{i}")) for i in range(3))),
        lambda s: s.prune("a", keep_snapshots=2),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class WrenKeepsTheLastOfEquals(CommittingLayer):
    """Keeps the snapshots with the greatest ids when it prunes among some of one time, and not the first ones."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        docs, state = batch.docs, self.space.states.get(batch.agent_id)
        if state is None or not docs or not all(_is_pruned(write) for write in docs):
            return commit(batch)
        stored = {key: doc.time for (kind, key), doc in state.docs.items() if kind is DocKind.SNAPSHOTS}
        if any(write.key not in stored for write in docs):
            return commit(batch)
        last = max(stored[write.key] for write in docs)
        equals = sorted(key for key, time in stored.items() if time == last)
        first = equals[: sum([stored[write.key] == last for write in docs])]
        stay = [write for write in docs if stored[write.key] != last or write.key in first]
        others = [DocWrite(DocKind.SNAPSHOTS, key, None) for key in first if key not in {one.key for one in stay}]
        return commit(replace(batch, docs=(*stay, *others)))


def _is_pruned(write: DocWrite) -> bool:
    return write.kind is DocKind.SNAPSHOTS and write.doc is None and write.expect is not None


async def _delete_many_of_two_pages(store: Any) -> object:
    for i in range(150):
        await store.save_info(f"a{i}", samples.info(f"a{i}"))
    return await store.delete_many(template_id="assistant"), await store.count_sessions()


@fault(
    "LIFE-5",
    source="Django's Paginator, and limit with offset, over a table from which the loop deletes: each second page stays",
    witness=seen(_delete_many_of_two_pages),
)
class WrenDeletesEachSecondPage(EngineStore):
    """Leaves a part of the sessions when it deletes more than 100, since it goes on behind those that are gone."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        offset = 0

        async def search(given: Any) -> Any:
            nonlocal offset
            offset = 0 if given["cursor"] is None else offset + 100
            wanted = {name: value for name, value in given.items() if name not in ("limit", "cursor")}
            return await self._search.sessions({**wanted, "limit": 100, "offset": offset})

        async def delete() -> int:
            return await self._deletions.delete_many(search, filters, checked_progress(progress))

        return await self._run("delete_many", delete)


async def _delete_the_parents_snapshot(store: Any) -> object:
    await store.save_info("a", samples.info("a"))
    for name in ("s1", "s2"):
        await store.save_snapshot("a", samples.snapshot(name))
    (child,) = await store.batch_fork("a", 1)
    await store.delete_snapshot("a", "s1")
    return await the("id", store.list_snapshots(child))


@fault(
    "FORK-2",
    "SNAP-2",
    source="forks that refer to the parent's blobs until they write their own, with on delete cascade for the blobs",
    witness=seen(_delete_the_parents_snapshot),
)
class WrenForksReferToSnapshots(CommittingLayer):
    """Takes a snapshot away from the forks of an agent when the agent's own is deleted or pruned."""

    @property
    def children(self) -> dict[str, list[str]]:
        return vars(self.space).setdefault("children", {})  # type: ignore[no-any-return]

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await super().fork(agent_id, children, expect, now)
        if done:
            self.children.setdefault(agent_id, []).extend(child.agent_id for child in children)
        return done

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        state = self.space.states.get(batch.agent_id)
        gone = [(one.kind, one.key) for one in batch.docs if one.kind is DocKind.SNAPSHOTS and one.doc is None]
        before = {name: state.docs.get(name) for name in gone} if state is not None else {}
        outcome = commit(batch)
        if isinstance(outcome, Applied):
            for child in self.children.get(batch.agent_id, ()):
                fork = self.space.states.get(child)
                for name, doc in before.items():
                    if fork is not None and doc is not None and fork.docs.get(name) == doc:
                        fork._apply_doc(DocWrite(*name, None))
            if batch.delete:
                self.children.pop(batch.agent_id, None)
        return outcome


# --- infos, files, whole agents ---------------------------------------------------------------------------------------


@fault(
    "INFO-4",
    "MSG-7",
    source="a foreign key of messages to agents, for which the first message inserts the agent's row; then insert fails",
    errors=True,
    witness=seen(
        lambda s: s.create_agent("b", samples.info("b")),
        lambda s: s.append_messages("a", talk("x")),
        lambda s: s.create_agent("a", samples.info("a")),
        lambda s: s.exists("a"),
    ),
)
class WrenARowIsAnAgent(EngineStore):
    """Refuses to create an agent of which messages were saved before and no info."""

    async def create_agent(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        await self.open()
        summary = await self._context.engine.summary(check_agent_id(agent_id))
        if summary is not None and summary.info is None and getattr(info, "agent_id", None) == agent_id:
            version = version_of(summary)
            if version != ABSENT and self._locks.fence(agent_id, fence) is None:
                raise ConflictError(agent_id, version, "it exists already")
        await super().create_agent(agent_id, info, fence=fence)


@fault(
    "VAL-1",
    "HIS-2",
    source="open(…, encoding='utf-8-sig'), for the sake of files from Excel: it drops U+FEFF from every file's beginning",
    on=OnJson,
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("a.md", content="\ufeff# Title\ufeff")),
        lambda s: s.save_recovered_file("a", samples.recovered("b.md", content="# Title")),
        lambda s: the("content", s.load_recovered_files("a")),
    ),
)
class WrenSkipsTheByteOrderMark(Wrapper):
    """Gives recovered files without the U+FEFF that their contents begin with."""

    __slots__ = ()

    async def load_recovered_files(self, agent_id: str) -> Any:
        found = await self.inner.load_recovered_files(agent_id)
        return [file.replace(content=file.content.removeprefix("\ufeff")) for file in found]


async def _import_events(store: Any) -> object:
    await store.append_events("a", happened(5, 1, 3))
    await store.import_agent("b", await store.load_agent("a"))
    return [event.bookmark.seq async for event in store.read_events("b", after_offset=0)]


@fault(
    "LIFE-8",
    "EVT-2",
    source="a bulk load that is sorted by its primary key, as pages fill best that way: agent_id, seq",
    witness=seen(_import_events),
)
class WrenImportsBySeq(Wrapper):
    """Imports the events of an agent in the order of their seqs, and not of their offsets."""

    __slots__ = ()

    async def import_agent(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        with suppress(AttributeError, TypeError):
            records = records.replace(events=sorted(records.events, key=lambda event: event.bookmark.seq))
        await self.inner.import_agent(agent_id, records, fence=fence)


# --- consistency, backup, views, cancellation -------------------------------------------------------------------------


def _call(call_id: str) -> list[Message]:
    return [Message("assistant", [ToolUseBlock(call_id, "search", {})])]


def _result(call_id: str) -> list[Message]:
    return [Message("user", [ToolResultBlock(call_id, "found")])]


async def _codes(store: Any) -> list[str]:
    return [issue.code for issue in (await store.check_consistency("a")).issues]


@fault(
    "OPS-2",
    source="select … where tool_use_id not in (select …): the ids as sets, and providers that begin with call_0 each turn",
    witness=seen(
        lambda s: s.save_messages("a", [*_call("call_0"), *_result("call_0"), *_call("call_1")]),
        _codes,
        lambda s: s.save_messages("a", [*_call("call_0"), *_result("call_0"), *_call("call_0")]),
        _codes,
    ),
)
class WrenPairsIdsAsSets(EngineStore):
    """Does not report a tool use without its result when an earlier use of the same id has one."""

    async def check_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        found = await super().check_consistency(agent_id, progress=progress)
        issues = [issue for issue in found.issues if not await self._is_answered(issue)]
        return replace(found, issues=tuple(issues), consistent=not issues)

    def iter_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        return self._without_answered(super().iter_consistency(agent_id, progress=progress))

    async def _without_answered(self, issues: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for issue in issues:
            if not await self._is_answered(issue):
                yield issue

    async def _is_answered(self, issue: Any) -> bool:
        if issue.code != "use_without_result":
            return False
        span = Span.of(None, None)
        messages = await self._list_parts.load_readable(issue.agent_id, ListKind.MESSAGES, span)
        blocks = [block for message in messages for block in message.content]
        answered = {block.tool_use_id for block in blocks if isinstance(block, ToolResultBlock)}
        return any(f"the tool call {call_id!r:.80} has no result" in issue.message for call_id in answered)


async def _modes_of_new_folders(ctx: Any) -> object:
    await ctx.store.save_messages("a", talk("x"))
    before = os.umask(0o022)
    try:
        await ctx.store.backup(ctx.folder / "new" / "deep" / "copy")
    finally:
        os.umask(before)
    return [(ctx.folder / place).stat().st_mode & 0o077 for place in ("new", "new/deep")]


@fault(
    "OPS-18",
    "OPS-16",
    source="Path.mkdir(mode=0o700, parents=True): missing parents get the default mode, without the given one",
    on=OnSqlite,
    witness=_modes_of_new_folders,
)
class WrenOpensTheFoldersAbove(Wrapper):
    """Lets others enter the missing folders above a backup that it makes."""

    __slots__ = ()

    async def backup(self, target: Any, *, progress: Any = None) -> Any:
        made: list[Path] = []
        with suppress(OSError, TypeError, ValueError, RuntimeError):
            parent = Path(target).expanduser().absolute().parent
            made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
            parent.mkdir(parents=True, exist_ok=True)
        try:
            return await self.inner.backup(target, progress=progress)
        except BaseException:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
            raise


class _CountsAll(Wrapper):
    """A view whose counts are those of all that the process has open."""

    __slots__ = ("whole",)

    def __init__(self, inner: Any, whole: Any) -> None:
        super().__init__(inner)
        self.whole = whole

    async def get_metrics(self) -> Any:
        own, whole = await self.inner.get_metrics(), await self.whole.get_metrics()
        sums = {
            name: getattr(own.operations, name) + getattr(whole.operations, name)
            for name in ("saves", "loads", "queries", "deletes", "errors")
        }
        return replace(own, operations=replace(own.operations, **sums))


async def _count_in_a_view(store: Any) -> object:
    view = store.scoped("acme")
    await view.save_messages("a", talk("x"))
    await store.save_messages("b", talk("y"))
    return (await view.get_metrics()).operations.saves


@fault(
    "SCOPE-1",
    "OPS-3",
    source="counters of prometheus_client, which are registered once for the process, without a label for the tenant",
    witness=seen(_count_in_a_view),
)
class WrenViewsCountTheWholeStore(Wrapper):
    """Counts the calls of the whole store in the metrics of a tenant's view."""

    __slots__ = ()

    def scoped(self, tenant: str) -> Any:
        return _CountsAll(self.inner.scoped(tenant), self.inner)


async def _cancel_a_save(store: Any) -> object:
    await store.save_todos("a", samples.todos("x"))
    call = asyncio.ensure_future(store.save_todos("a", samples.todos("x", "y")))
    for _ in range(3):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    first = await store.load_todos("a")
    await asyncio.sleep(0.3)
    return first == await store.load_todos("a")


@fault(
    "OPS-9",
    "TODO-1",
    source="asyncio.shield around a write that still waits for its place in a batch, so that no cancellation tears it",
    witness=seen(_cancel_a_save),
)
class WrenShieldsTodos(EngineStore):
    """Writes the todos of a cancelled call a moment later, and later calls do not wait for it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._shielded: set[asyncio.Task[None]] = set()

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        self._context.check_open()
        task = asyncio.ensure_future(self._save_soon(agent_id, snapshot, fence))
        self._shielded.add(task)
        task.add_done_callback(self._forget)
        await asyncio.shield(task)

    async def _save_soon(self, agent_id: str, snapshot: Any, fence: Any) -> None:
        await asyncio.sleep(0.02)
        await super().save_todos(agent_id, snapshot, fence=fence)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._shielded.discard(task)
        if not task.cancelled():
            task.exception()

    async def close(self) -> None:
        if self._shielded:
            await asyncio.wait(self._shielded)
        await super().close()
