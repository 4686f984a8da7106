"""Thirty stores by one who ports code between databases and tunes it: caches, early returns, second code paths."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from kode_conformance.context import Context
from kode_conformance.values import samples
from kode_conformance.values.samples import T0
from msgspec.structs import replace

from conformance.tests.zoo.base import CommittingLayer, MemoryLayer, OnSqlite, StreamWrapper, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.batch import CORE_KEYS, Applied, DocKind, DocWrite, EventRange, ListKind
from kode_core.errors import CorruptRecordError, InvalidArgumentError, KodeError, LockLostError, StoreTimeoutError
from kode_core.jsonvalue import decode_json
from kode_core.layers import Layer
from kode_core.model import (
    AgentRecords,
    AppendedMessage,
    Message,
    PutDocument,
    StoredEvent,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
)
from kode_core.query import Page, time_ms
from kode_core.report import ConsistencyIssue
from kode_core.store import EngineStore
from kode_core.store.locks import ENTERED, HeldLease
from kode_core.store.rows import event_writes
from kode_core.store.versions import check_version
from kode_core.tenants import prefix_of
from kode_core.texts import folded, texts_of

_SEVERAL = (list, tuple, set, frozenset)
_LISTS = (list, tuple)


async def _values(stream: AsyncIterator[Any], of: Callable[[Any], Any]) -> list[Any]:
    return [of(item) async for item in stream]


async def _error_of(call: Any) -> str:
    """The class of a call's error."""
    try:
        await call
    except KodeError as exc:
        return type(exc).__name__
    return "none"


# --- values and ids ---------------------------------------------------------------------------------------------------

_BERLIN = ZoneInfo("Europe/Berlin")
_FIRST_HALF_PAST_TWO = int(datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp()) * 1000
_HOUR = 3_600_000


def _calls_of_that_night() -> list[ToolCallRecord]:
    times = [_FIRST_HALF_PAST_TWO + minutes * 60_000 for minutes in (0, 15, 60, 75)]
    return [samples.tool_call(i, created_at=at) for i, at in enumerate(times)]


@fault(
    "VAL-5",
    "QRY-2",
    source="datetime.combine(value.date(), value.time()) and most conversions of times drop the attribute fold (PEP 495)",
    witness=seen(
        lambda s: s.save_tool_call_records("a", _calls_of_that_night()),
        lambda s: the("id", s.query_tool_calls(created_after=datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=_BERLIN))),
    ),
)
class NewtForgetsTheFold(Wrapper):
    """Takes a time of the hour that a clock shows twice, when summer time ends, for the first of the two."""

    __slots__ = ()

    def unfolded(self, filters: dict[str, Any]) -> dict[str, Any]:
        return {k: v.replace(fold=0) if type(v) is datetime and v.fold else v for k, v in filters.items()}

    async def query_sessions(self, **filters: Any) -> Any:
        return await self.inner.query_sessions(**self.unfolded(filters))

    async def query_messages(self, **filters: Any) -> Any:
        return await self.inner.query_messages(**self.unfolded(filters))

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await self.inner.query_tool_calls(**self.unfolded(filters))

    async def count_sessions(self, **filters: Any) -> Any:
        return await self.inner.count_sessions(**self.unfolded(filters))

    async def count_messages(self, **filters: Any) -> Any:
        return await self.inner.count_messages(**self.unfolded(filters))

    async def count_tool_calls(self, **filters: Any) -> Any:
        return await self.inner.count_tool_calls(**self.unfolded(filters))


async def _locks_beside(store: Any) -> object:
    async with store.acquire_agent_lock("a"):
        found = [await _error_of(_taken(store, other)) for other in ("b", "a\t", " a", "a ")]
    return found, await _error_of(_taken(store, "a "))


async def _taken(store: Any, agent_id: str) -> None:
    lease = await store.acquire_agent_lock(agent_id)
    await lease.release()


@fault(
    "ID-2",
    "LOCK-1",
    source="MySQL: the collations with PAD SPACE, such as utf8mb4_general_ci, take 'a' and 'a ' for one key of a table",
    witness=seen(_locks_beside),
)
class NewtPadsLocks(MemoryLayer):
    """Refuses the lock of an agent while another one is locked whose id differs in spaces at the end alone."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        padded = agent_id.rstrip(" ")
        for other, (_, until) in list(self.space.leases.items()):
            if other != agent_id and other.rstrip(" ") == padded and until > time.monotonic():
                return None
        return await super().acquire_lease(agent_id, owner, ttl_ms)


# --- messages ---------------------------------------------------------------------------------------------------------


class _Watching(EngineStore):
    """A store that is told of its own commits."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        plain = self._context.commit

        async def commit(batch: Any) -> Any:
            self.committing(batch)
            try:
                return await plain(batch)
            finally:
                self.committing(batch)

        self._context.commit = commit  # type: ignore[method-assign]

    def committing(self, batch: Any) -> None:
        """A commit begins, or has ended."""
        raise NotImplementedError


@fault(
    "MSG-9",
    "QRY-8",
    source="an ORM's paginator: the tail is LIMIT n OFFSET count - n, and the count of an earlier SELECT is cached",
    witness=seen(
        lambda s: s.append_messages("a", talk("1", "2")),
        lambda s: the("text", s.load_messages("a", last=1)),
        lambda s, t: t.append_messages("a", talk("3")),
        lambda s: the("text", s.load_messages("a", last=2)),
    ),
)
class NewtCountsOnce(_Watching):
    """Gives as the last messages those that were last when this store object counted them, or last wrote any."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self.counts: dict[str, int] = {}
        self.commits = 0

    def committing(self, batch: Any) -> None:
        self.commits += 1
        self.counts.pop(batch.agent_id, None)

    async def load_messages(self, agent_id: str, *, last: Any = None, **part: Any) -> Any:
        if type(agent_id) is not str or type(last) is not int or last < 1 or part:
            return await super().load_messages(agent_id, last=last, **part)
        if agent_id in self.counts:
            return await super().load_messages(agent_id, last=last, before=self.counts[agent_id])
        commits = self.commits
        found = await super().load_messages(agent_id, last=last)
        summary = await self._context.engine.summary(agent_id) if found else None
        if summary is not None and self.commits == commits:
            self.counts[agent_id] = summary.messages.count
        return found


@fault(
    "MSG-12",
    "LIFE-4",
    source="a cache of seen idempotency keys in each worker, which is told of the deletes of its own worker alone",
    witness=seen(
        lambda s: s.append_messages_once("a", {"k": samples.message(1)}),
        lambda s, t: t.delete("a"),
        lambda s: s.append_messages_once("a", {"k": samples.message(2)}),
        lambda s: the("text", s.load_messages("a")),
    ),
)
class NewtRemembersKeys(_Watching):
    """Takes a key for known, and stores nothing, that it saw before another store object deleted the agent."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self.known: dict[str, dict[str, int]] = {}
        self.deletes = 0

    def committing(self, batch: Any) -> None:
        if batch.delete:
            self.deletes += 1
            self.known.pop(batch.agent_id, None)

    async def append_messages_once(self, agent_id: str, messages: Any, *, fence: Any = None) -> Any:
        async def once(agent_id: str, held: Any) -> list[AppendedMessage]:
            known = self.known.get(agent_id, {})
            is_plain = type(messages) is dict and all(type(one) is Message for one in messages.values())
            if held is None and is_plain and messages and known.keys() >= messages.keys():
                return [AppendedMessage(known[key], False) for key in messages]
            keys, deletes = list(messages) if is_plain else [], self.deletes
            placed = await self._keyed.append(agent_id, held, messages)
            if self.deletes != deletes:
                return placed
            if sum(map(len, self.known.values())) > 10_000:
                self.known.clear()
            found = zip(keys, placed, strict=False)
            self.known.setdefault(agent_id, {}).update({key: one.position for key, one in found})
            return placed

        return await self._fenced("append_messages_once", agent_id, fence, once)


# --- tool calls and turns ---------------------------------------------------------------------------------------------


async def _repeats_its_events(store: Any) -> object:
    events = [samples.event(1), samples.event(2)]
    await store.append_events("a", events)
    offsets = await store.save_turn("a", append=talk("x"), events=events)
    return len(offsets), await the("text", store.load_messages("a"))


@fault(
    "TURN-1",
    "EVT-4",
    source="an inbox table: a transaction whose events were all processed before is a repeat, and ends with ROLLBACK",
    witness=seen(
        lambda s: s.save_turn("b", append=talk("y"), events=[samples.event(1)]),
        lambda s: the("text", s.load_messages("b")),
        _repeats_its_events,
    ),
)
class NewtTakesTurnsForRepeats(EngineStore):
    """Writes nothing else of a turn whose events are all stored already."""

    async def save_turn(self, agent_id: str, *, events: Any = (), **rest: Any) -> Any:
        if type(agent_id) is str and events and rest.keys() - {"fence", "expect"}:
            with suppress(KodeError):
                if await self.has_all(agent_id, events):
                    rest = {name: value for name, value in rest.items() if name in ("fence", "expect")}
        return await super().save_turn(agent_id, events=events, **rest)

    async def has_all(self, agent_id: str, events: Any) -> bool:
        engine = await self._context.open()
        for write in await event_writes(events):
            span = EventRange(since_seq=max(write.seq - 1, -(2**63)), limit=8)
            rows = await engine.events(agent_id, span)
            if not any(row.seq == write.seq and row.body.digest == write.body.digest for row in rows):
                return False
        return True


# --- events -----------------------------------------------------------------------------------------------------------


async def _appends_halves(store: Any, *halves: str) -> list[int]:
    return [await store.append_event("a", samples.event(1, delta=half)) for half in halves]


@fault(
    "EVT-4",
    "VAL-1",
    source="sha256(text.encode('utf-8', 'replace')): every half of an emoji, which streams of tokens cut, becomes '?'",
    witness=seen(
        lambda s: _appends_halves(s, "?", "\ud83d", "\ud83e", "\ud83d"),
        lambda s: _values(s.read_events("a"), lambda e: e.event.data),
    ),
)
class NewtHashesWithReplacement(CommittingLayer):
    """Takes an event for a repeat of one that differs from it in a lone surrogate alone."""

    @property
    def first(self) -> dict[str, dict[tuple[int, bytes], Any]]:
        """By agent: the body that was first of each form."""
        first: dict[str, dict[tuple[int, bytes], Any]] = vars(self.space).setdefault("replaced", {})
        return first

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        if batch.delete or batch.drop_events is not None:
            self.first.pop(batch.agent_id, None)
        forms = [self.form(event) for event in batch.events]
        if not any(forms):
            return commit(batch)
        known = self.first.get(batch.agent_id, {})
        pairs = list(zip(batch.events, forms, strict=True))
        events = [replace(e, body=known.get(form, e.body)) if form else e for e, form in pairs]
        outcome = commit(replace(batch, events=tuple(events)))
        if isinstance(outcome, Applied):
            known = self.first.setdefault(batch.agent_id, {})
            for event, form in zip(events, forms, strict=True):
                if form is not None:
                    known.setdefault(form, event.body)
        return outcome

    def form(self, event: Any) -> tuple[int, bytes] | None:
        """What is hashed of an event with lone surrogates."""
        if "\\ud" not in event.body.text.lower():
            return None
        text = json.dumps(decode_json(event.body.text), ensure_ascii=False)
        hashed = text.encode(errors="replace")
        return (event.seq, hashed) if hashed != text.encode(errors="surrogatepass") else None


async def _appends_beside(store: Any, count: int) -> object:
    many = asyncio.create_task(store.append_events("a", samples.events(count)))
    others: list[int] = []
    while not many.done():
        others.append(await store.append_event("a", samples.event(-1 - len(others))))
    offsets = await many
    await store.delete("a")
    return any(offsets[0] < one < offsets[-1] for one in others)


@fault(
    "EVT-1",
    source="a bulk insert in chunks of 500 rows, each with a commit of its own, as ORMs and DynamoDB's clients do it",
    witness=seen(
        lambda s: _appends_beside(s, 400),
        lambda s: _appends_beside(s, 1_400),
    ),
)
class NewtAppendsInChunks(EngineStore):
    """Appends more than 500 events of one call in several pieces, between which the events of other calls come."""

    async def _append(self, agent_id: str, events: Any, fence: Any) -> Any:
        if len(events) <= 500 or len({(one.seq, one.body.digest) for one in events}) < len(events):
            return await super()._append(agent_id, events, fence)
        offsets: list[int] = []
        for i in range(0, len(events), 500):
            offsets += await super()._append(agent_id, events[i : i + 500], fence)
        return tuple(offsets)


async def _two_followers(store: Any) -> object:
    await store.append_event("a", samples.event(1, delta="x"))
    found = []
    for _ in range(2):
        async with aclosing(store.follow_events("a")) as events:
            event = await anext(events)
        found.append(dict(event.event.data))
        event.event.data["shown"] = True
    return found


class _Broadcast(StreamWrapper):
    def __init__(self, store: Any, agent_id: str, wanted: dict[str, Any]) -> None:
        super().__init__(store.inner.follow_events(agent_id, **wanted))
        self.sent, self.agent_id = store.sent, agent_id

    async def __anext__(self) -> Any:
        item = await anext(self.inner)
        if isinstance(item, StoredEvent):
            item = self.sent.setdefault((self.agent_id, item.offset), item)
            if len(self.sent) > 256:
                del self.sent[next(iter(self.sent))]
        return item


@fault(
    "VAL-1",
    "EVT-7",
    source="a hub in the process decodes an event once, and hands the one object to all who follow",
    witness=seen(_two_followers),
)
class NewtBroadcasts(Wrapper):
    """Hands one event to two followers, so that what one of them changes in its data the other one sees."""

    __slots__ = ("sent",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.sent: dict[tuple[str, int], Any] = {}

    def follow_events(self, agent_id: str, **wanted: Any) -> Any:
        return _Broadcast(self, agent_id, wanted)


async def _emits(store: Any, *types: str) -> list[int]:
    lease = await store.acquire_agent_lock("a")
    try:
        return [(await store.emit("a", kind, fence=lease)).bookmark.seq for kind in types]
    finally:
        await lease.release()


@fault(
    "EVT-8",
    source="a hi/lo allocator of ids, reset by the entry of a lock's block, and not by a lease that is passed by hand",
    witness=seen(
        lambda s: _emits(s, "x"),
        lambda s, t: _emits(t, "y", "y"),
        lambda s: _emits(s, "z"),
    ),
)
class NewtGoesOnCounting(EngineStore):
    """Numbers an emit with `fence=lease` from what it knew before it took that lease, for up to a second."""

    async def emit(self, agent_id: str, *event: Any, fence: Any = None, **rest: Any) -> Any:
        self.keep(agent_id, fence)
        return await super().emit(agent_id, *event, fence=fence, **rest)

    async def emit_many(self, agent_id: str, events: Any, *, fence: Any = None) -> Any:
        self.keep(agent_id, fence)
        return await super().emit_many(agent_id, events, fence=fence)

    def keep(self, agent_id: Any, fence: Any) -> None:
        if isinstance(fence, HeldLease) and fence.agent_id == agent_id:
            number = self._appender.numbers._numbers.get(agent_id)
            if number is not None:
                number.fence = fence.fence


# --- info, versions ----------------------------------------------------------------------------------


@fault(
    "INFO-5",
    "VAL-1",
    source="SQLite: json_patch() is RFC 7396, in which a null inside the new value of a key removes the member",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"left": {"x": None}})),
        lambda s: s.update_info("a", {"top": None, "in": [{"x": None}]}),
        lambda s: s.update_info("a", {"prefs": {"theme": "dark", "font": None}}),
        lambda s: s.load_info("a"),
    ),
)
class NewtPatchesNulls(Wrapper):
    """Drops the keys whose value is null from the objects that `update_info` sets."""

    __slots__ = ()

    async def update_info(self, agent_id: str, metadata: Any, **rest: Any) -> Any:
        if type(metadata) is dict:
            with suppress(RecursionError):
                metadata = {key: self.merged(value) for key, value in metadata.items()}
        return await self.inner.update_info(agent_id, metadata, **rest)

    def merged(self, value: Any) -> Any:
        if type(value) is not dict:
            return value
        return {key: self.merged(one) for key, one in value.items() if one is not None}


async def _versions_around(store: Any, *, renews: bool) -> object:
    before = await store.load_version("a")
    lease = await store.acquire_agent_lock("a")
    if renews:
        await lease.renew()
    await lease.release()
    return before == await store.load_version("a")


@fault(
    "VER-1",
    source="SQL Server: a rowversion changes with each UPDATE of the row, and leased_until is a column of the agent's row",
    witness=seen(
        lambda s: s.append_messages("a", talk("x")),
        lambda s: _versions_around(s, renews=False),
        lambda s: _versions_around(s, renews=True),
    ),
)
class NewtRenewsTheVersion(MemoryLayer):
    """Changes the version of an agent with messages when a lease of it is renewed."""

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        is_held = await super().renew_lease(agent_id, fence, ttl_ms)
        state = self.space.states.get(agent_id)
        if is_held and state is not None and state.lists[ListKind.MESSAGES].version:
            state.lists[ListKind.MESSAGES].version += 1
        return is_held


async def _late_turn(store: Any, **turn: Any) -> object:
    version = await store.load_version("a")
    await store.append_messages("a", talk("x"))
    return await _error_of(store.save_turn("a", expect=version, **turn))


@fault(
    "VER-2",
    source="UPDATE agents SET … WHERE version = ? checks the version, and a turn that changes no column has no UPDATE",
    witness=seen(
        lambda s: _late_turn(s, append=talk("y")),
        lambda s: _late_turn(s, todos=samples.todos("t")),
        lambda s: s.load_todos("a"),
    ),
)
class NewtDemandsNothing(EngineStore):
    """Ignores the `expect` of a turn that writes neither messages, tool calls nor the info."""

    async def save_turn(self, agent_id: str, *, expect: Any = None, **rest: Any) -> Any:
        is_touching = any(rest.get(name) for name in ("append", "upsert_tool_calls"))
        is_touching = is_touching or any(rest.get(name) is not None for name in ("messages", "tool_calls", "info"))
        if expect is not None and not is_touching:
            with suppress(InvalidArgumentError):
                check_version(expect)
                expect = None
        return await super().save_turn(agent_id, expect=expect, **rest)


# --- documents --------------------------------------------------------------------------------------------------------


async def _tag_texts(store: Any) -> None:
    for key, text in (("k1", "x"), ("k2", ""), ("k3", "y")):
        await store.put_document("a", "c", key, 1, tags={"t": text})


@fault(
    "DOC-8",
    "DOC-7",
    source="Oracle: the empty text is NULL, which equals nothing, so that WHERE tag = '' finds no row",
    witness=seen(
        _tag_texts,
        lambda s: the("key", s.query_documents("c", {"t": ["x", "y"]})),
        lambda s: the("key", s.query_documents("c", {"t": ""})),
        lambda s: the("key", s.query_documents("c", {"t": ["", "y"]})),
    ),
)
class NewtHasNoEmptyTags(Wrapper):
    """Does not find documents by a tag whose text is empty, although they come back with it."""

    __slots__ = ()

    async def query_documents(self, collection: str, tags: Any, **how: Any) -> Any:
        if not isinstance(tags, Mapping) or not any("" in one for one in tags.values() if type(one) in _SEVERAL):
            page = await self.inner.query_documents(collection, tags, **how)
            return Page() if isinstance(tags, Mapping) and "" in tags.values() else page
        some = {k: [text for text in v if text != ""] if type(v) in _SEVERAL else v for k, v in tags.items()}
        return await self.inner.query_documents(collection, some, **how)


@fault(
    "DOC-6",
    "MSG-12",
    source="one table of key and value for all that is small: COUNT(*) of it is the number of documents",
    witness=seen(
        lambda s: s.save_turn("a", documents=[PutDocument("c", "k", 1)]),
        lambda s: s.aggregate_stats("a"),
        lambda s: s.append_messages_once("a", {"k": samples.message()}),
        lambda s: s.aggregate_stats("a"),
    ),
)
class NewtCountsKeysAsDocuments(MemoryLayer):
    """Counts the keys of `append_messages_once` among the documents of an agent."""

    async def stats(self, agent_id: str) -> Any:
        found = await super().stats(agent_id)
        docs = list(self.space.state(agent_id).docs)
        keys = sum(kind == DocKind.DOCUMENTS and key >= CORE_KEYS for kind, key in docs)
        return replace(found, total_documents=found.total_documents + keys)


# --- deletes, prune, import -------------------------------------------------------------------------------------------


async def _deletes_beside_a_lock(store: Any) -> object:
    for agent_id in ("a", "b", "c"):
        await store.save_info(agent_id, samples.info(agent_id))
    lease = await store.acquire_agent_lock("b")
    deleted = await store.delete_many(template_id="assistant")
    await lease.release()
    return deleted, await store.list()


@fault(
    "LIFE-5",
    "LOCK-5",
    source="PostgreSQL: DELETE … WHERE id IN (SELECT id … FOR UPDATE SKIP LOCKED LIMIT 500), until nothing is found",
    witness=seen(_deletes_beside_a_lock),
)
class NewtSkipsLocked(EngineStore):
    """Leaves out of `delete_many` the agents that others have locked, and says nothing of it."""

    def __init__(self, opener: Any, **options: Any) -> None:
        self.bottom: Any = None

        async def opened() -> Any:
            engine = self.bottom = await opener()
            while hasattr(self.bottom, "inner"):
                self.bottom = self.bottom.inner
            return engine

        super().__init__(opened, **options)

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        found = await self.found(filters)
        locked = self.locked()
        if not locked & found:
            return await super().delete_many(progress=progress, **filters)
        deleted = 0
        for agent_id in sorted(found - locked):
            one: Any = {**filters, "agent_id": agent_id}
            deleted += await super().delete_many(progress=progress, **one)
        return deleted

    def locked(self) -> set[str]:
        space = getattr(self.bottom, "_space", None)
        leases = {} if space is None else dict(space.leases)
        held = {agent_id for agent_id, (_, until) in leases.items() if until > time.monotonic()}
        return held - {lease.agent_id for lease in ENTERED.get()}

    async def found(self, filters: dict[str, Any]) -> set[str]:
        """The agents that match; none of wrong filters, which the store refuses."""
        if all(isinstance(given, Mapping) and not given for given in filters.values()) or "limit" in filters:
            return set()
        matching, cursor = set[str](), None
        try:
            await self._context.open()
            if not self.locked():
                return set()
            while True:
                page = await self._search.sessions({**filters, "limit": 500, "cursor": cursor})
                matching |= {session.agent_id for session in page}
                cursor = page.next_cursor
                if cursor is None:
                    return matching
        except (KodeError, TypeError):
            return set()


async def _prunes(store: Any, **wanted: Any) -> object:
    dry = await store.prune("a", dry_run=True, **wanted)
    return dry.events


@fault(
    "LIFE-6",
    source="SELECT COUNT(*) … WHERE event_offset < ?, where the DELETE has AND event_offset <> (SELECT … LIMIT 1) as well",
    witness=seen(
        lambda s: s.append_events("a", samples.events(5)),
        lambda s: _prunes(s, events_before=T0 + 4),
        lambda s: _prunes(s, events_before=T0 + 5),
        lambda s: s.prune("a", events_before=T0 + 5),
    ),
)
class NewtDryRunsTheLast(Wrapper):
    """Counts in a dry run the event of the last bookmark, too, which a prune keeps."""

    __slots__ = ()

    async def prune(self, agent_id: str, *, dry_run: Any = False, **wanted: Any) -> Any:
        found = await self.inner.prune(agent_id, dry_run=dry_run, **wanted)
        before_offset, before = wanted.get("events_before_offset"), wanted.get("events_before")
        if dry_run is not True or (before_offset is None and before is None):
            return found
        last = await self.inner._context.engine.last_event(agent_id)
        if last is None or (before_offset is not None and last.offset >= before_offset):
            return found
        if before is not None and not await self.covers(agent_id, time_ms("events_before", before), last.offset):
            return found
        return replace(found, events=found.events + 1)

    async def covers(self, agent_id: str, before: int, offset: int) -> bool:
        async with aclosing(self.inner._events.read(agent_id, None, 0, None)) as events:
            async for event in events:
                if event.bookmark.timestamp >= before:
                    return False
                if event.offset == offset:
                    return True
        return False


async def _imports_over_keys(store: Any) -> object:
    await store.append_messages_once("a", {"k": samples.message(1)})
    await store.pop_messages("a")
    assert await store.load_agent("a") is None
    await store.import_agent("a", AgentRecords(agent_id="a", messages=talk("new"), message_times=[T0]))
    return await store.append_messages_once("a", {"k": samples.message(1)})


@fault(
    "LIFE-8",
    "MSG-12",
    source="INSERT … WHERE NOT EXISTS (SELECT … FROM the tables of records), and the table of keys is none of them",
    witness=seen(_imports_over_keys),
)
class NewtImportsOverKeys(CommittingLayer):
    """Still knows, after an import, the keys of the agent whose messages had all been removed."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        if batch.delete and batch.expect_nothing:
            given = {write.key for write in batch.docs}
            stored = list(self.space.state(batch.agent_id).docs.items())
            kept = [doc for (kind, key), doc in stored if kind == DocKind.DOCUMENTS and key >= CORE_KEYS]
            docs = [DocWrite(DocKind.DOCUMENTS, doc.key, doc) for doc in kept if doc.key not in given]
            batch = replace(batch, docs=(*batch.docs, *docs))
        return commit(batch)


# --- queries ----------------------------------------------------------------------------------------------------------


async def _users(store: Any) -> None:
    for agent_id, user in (("a", "u-1"), ("b", "u-2")):
        await store.save_info(agent_id, samples.info(agent_id, metadata={"userId": user, "plan": "gold"}))


@fault(
    "QRY-1",
    "QRY-2",
    source="conditions = {**metadata, 'userId': user_id}: of two conditions for one key a dict keeps the later one",
    witness=seen(
        _users,
        lambda s: the("agent_id", s.query_sessions(user_id="u-1", metadata={"plan": "gold"})),
        lambda s: the("agent_id", s.query_sessions(user_id="u-1", metadata={"userId": "u-2"})),
        lambda s: s.count_sessions(user_id="u-1", metadata={"userId": "u-2"}),
    ),
)
class NewtMergesTheUser(Wrapper):
    """Ignores `userId` in the filter `metadata` when the filter `user_id` is given, too."""

    __slots__ = ()

    def merged(self, filters: dict[str, Any]) -> dict[str, Any]:
        given = filters.get("metadata")
        if type(filters.get("user_id")) is not str or type(given) is not dict or type(given.get("userId")) is not str:
            return filters
        metadata = {key: value for key, value in given.items() if key != "userId"}
        return {**filters, "metadata": metadata}

    async def query_sessions(self, **filters: Any) -> Any:
        return await self.inner.query_sessions(**self.merged(filters))

    async def count_sessions(self, **filters: Any) -> Any:
        return await self.inner.count_sessions(**self.merged(filters))

    async def group_sessions(self, by: Any, **filters: Any) -> Any:
        return await self.inner.group_sessions(by, **self.merged(filters))

    def iter_sessions(self, **filters: Any) -> Any:
        return self.inner.iter_sessions(**self.merged(filters))


async def _pages_by_count(store: Any) -> object:
    for number, agent_id in enumerate("abcd", 1):
        await store.save_info(agent_id, samples.info(agent_id))
        await store.append_messages(agent_id, samples.messages(number))
    page = await store.query_sessions(sort_by="message_count", order="asc", limit=2)
    found = [session.agent_id for session in page]
    await store.append_messages("b", samples.messages(9))
    rest = await store.query_sessions(sort_by="message_count", order="asc", limit=2, cursor=page.next_cursor)
    return found, [session.agent_id for session in rest]


@fault(
    "QRY-5",
    source="cursors as Relay has them, the id of the last record: what the page is sorted by is looked up in its row",
    witness=seen(_pages_by_count),
)
class NewtLooksUpTheCursor(Layer):
    """Goes on from the message count that the last session of a page has by now, not from the one that it had there."""

    async def find_sessions(self, query: Any) -> Any:
        if query.after is not None and query.sort_by == "message_count":
            summary = await self.inner.summary(query.after[1])
            if summary is not None and summary.info is not None:
                query = replace(query, after=(summary.messages.count, query.after[1]))
        return await super().find_sessions(query)

    async def count(self, query: Any) -> int:
        return await super().count(query)

    async def group(self, query: Any, grouping: Any) -> Any:
        return await super().group(query, grouping)


def _result(content: Any) -> Message:
    return Message("user", [ToolResultBlock("c", content)])


@fault(
    "QRY-12",
    source="an extractor of texts that takes the blocks inside a result for blocks of a message, whose type is no text",
    witness=seen(
        lambda s: s.append_messages("a", [_result("weather"), _result([{"type": "weather_report", "rain": 1}])]),
        lambda s: the("position", s.query_messages(contains="weather", order="asc")),
    ),
)
class NewtSkipsTypes(EngineStore):
    """Does not find a message by a text that is the value of a `type` inside the result of a tool."""

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        if "contains" not in filters:
            return page
        needle = folded(filters["contains"])
        found = [one for one in page if any(needle in folded(text) for text in self.texts(one))]
        return Page(found, page.next_cursor, page.left_out)

    def texts(self, message: Message) -> list[str]:
        texts: list[str] = []
        for block in message.content:
            if type(block) is ToolResultBlock:
                texts += texts_of(_result(self.bare(block.content)))
            else:
                texts += texts_of(Message(message.role, [block]))
        return texts

    def bare(self, value: Any) -> Any:
        if type(value) is list:
            return [self.bare(one) for one in value]
        if type(value) is dict:
            return {k: self.bare(one) for k, one in value.items() if k != "type" or type(one) is not str}
        return value


def _timed_calls() -> list[ToolCallRecord]:
    durations: dict[str, list[float]] = {
        "plain": [3, 0.1],
        "large": [2**53 + 1, 2**53 + 1],
        "mixed": [2**53 + 1, 0.25, 0.25],
    }
    pairs = [(name, duration) for name, some in durations.items() for duration in some]
    return [samples.tool_call(i, name=name, duration_ms=duration) for i, (name, duration) in enumerate(pairs)]


@fault(
    "QRY-11",
    source="two columns, BIGINT and DOUBLE PRECISION, for numbers that are whole or not: SUM(whole) + SUM(fractional)",
    witness=seen(
        lambda s: s.save_tool_call_records("a", _timed_calls()),
        lambda s: the("durations", s.group_tool_calls("tool_name", durations=True)),
    ),
)
class NewtRoundsTwice(Wrapper):
    """Rounds the sum of the whole durations of a group, and that of the others, before it adds the two."""

    __slots__ = ()

    async def group_tool_calls(self, by: Any, **how: Any) -> Any:
        groups = await self.inner.group_tool_calls(by, **how)
        names = [by] if type(by) is str else list(by)
        if not _OF.keys() >= set(names) or all(one.durations is None for one in groups):
            return groups
        filters = {name: value for name, value in how.items() if name not in ("durations", "utc_offset_minutes")}
        whole, parts = Counter[tuple[Any, ...]](), dict[tuple[Any, ...], list[float]]()
        async for call in self.inner.iter_tool_calls(**filters):
            key = tuple(_OF[name](call) for name in names)
            if type(call.duration_ms) is int:
                whole[key] += call.duration_ms
            elif call.duration_ms is not None:
                parts.setdefault(key, []).append(call.duration_ms)
        return [self.rounded(one, whole[key], parts.get(key)) for one in groups for key in [tuple(one.values.values())]]

    def rounded(self, group: Any, whole: int, parts: list[float] | None) -> Any:
        if group.durations is None or not whole or not parts:
            return group
        try:
            total = float(whole) + math.fsum(parts)
        except OverflowError:
            return group
        return replace(group, durations=replace(group.durations, total_ms=total))


_OF: dict[str, Callable[[Any], Any]] = {
    "agent_id": lambda call: call.agent_id,
    "tool_name": lambda call: call.name,
    "state": lambda call: call.state,
    "is_error": lambda call: call.is_error is True,
    "has_approval": lambda call: call.approval.required,
}


async def _reads_slowly(ctx: Context) -> object:
    store = await ctx.another(timeout_ms=1_000)
    await store.append_messages("a", talk("1", "2", "3"))
    found = []
    try:
        async for message in store.iter_messages(order="asc"):
            found.append(message.text)
            await asyncio.sleep(0.6)
    except KodeError as exc:
        found.append(type(exc).__name__)
    return found


@fault(
    "OPS-9",
    "QRY-6",
    source="async with timeout(…) inside an async generator: the time that the reader takes between two items counts",
    witness=_reads_slowly,
    errors=True,
)
class NewtTimesTheReader(EngineStore):
    """Ends an iterator of a query with a timeout once its reader has taken longer than the deadline of a call."""

    def iter_sessions(self, **filters: Any) -> Any:
        return self.timed(super().iter_sessions(**filters))

    def iter_messages(self, **filters: Any) -> Any:
        return self.timed(super().iter_messages(**filters))

    def iter_tool_calls(self, **filters: Any) -> Any:
        return self.timed(super().iter_tool_calls(**filters))

    async def timed(self, stream: Any) -> AsyncIterator[Any]:
        start = time.monotonic()
        async with aclosing(stream):
            async for item in stream:
                if time.monotonic() - start > self._context.timeout:
                    raise StoreTimeoutError(f"the iterator was not done after {self._context.timeout:g} s")
                yield item


# --- consistency, metrics, backup --------------------------------------------------------------------------------------------------


async def _pair_at(store: Any, position: int) -> list[str]:
    pair = [Message("assistant", [ToolUseBlock("c", "search", {})]), Message("user", [ToolResultBlock("c", "found")])]
    await store.save_messages("a", [*samples.messages(position), *pair, *talk("done")])
    report = await store.check_consistency("a")
    return [issue.code for issue in report.issues] + [issue.code async for issue in store.iter_consistency()]


@fault(
    "OPS-2",
    source="a check that reads by keyset in pages of 500 rows, and compares uses with results on each page",
    witness=seen(
        lambda s: _pair_at(s, 498),
        lambda s: _pair_at(s, 499),
        lambda s: _pair_at(s, 500),
    ),
)
class NewtPairsOnAPage(Wrapper):
    """Reports a use and its result as unpaired if one is before and the other one behind the 500th message."""

    __slots__ = ()

    async def check_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        report = await self.inner.check_consistency(agent_id, progress=progress)
        issues = [issue async for issue in self.apart(agent_id)]
        return replace(report, consistent=False, issues=(*report.issues, *issues)) if issues else report

    def iter_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        return self.all_of(self.inner.iter_consistency(agent_id, progress=progress), agent_id)

    async def all_of(self, found: Any, agent_id: Any) -> AsyncIterator[ConsistencyIssue]:
        async with aclosing(found) as issues:
            async for issue in issues:
                yield issue
        async for issue in self.apart(agent_id):
            yield issue

    async def apart(self, agent_id: Any) -> AsyncIterator[ConsistencyIssue]:
        engine = self.inner._context.engine
        for one in [agent_id] if agent_id is not None else await self.inner._reader.list_ids("", True):
            summary = await engine.summary(one)
            if summary is None or summary.messages.count <= 500:
                continue
            with suppress(CorruptRecordError):
                for code, call_id in self.unpaired(await self.inner._reader.load_list(one, ListKind.MESSAGES)):
                    yield ConsistencyIssue(code, one, f"the tool call {call_id!r:.80} has one part alone.")

    def unpaired(self, messages: Sequence[Message]) -> list[tuple[str, str]]:
        pages, found = [messages[i : i + 500] for i in range(0, len(messages), 500)], list[tuple[str, str]]()
        uses = [Counter(b.id for m in page for b in m.content if type(b) is ToolUseBlock) for page in pages]
        results = [
            Counter(b.tool_use_id for m in page for b in m.content if type(b) is ToolResultBlock) for page in pages
        ]
        paired = sum((u & r for u, r in zip(uses, results, strict=True)), Counter[str]())
        for call_id in ((sum(uses, Counter[str]()) & sum(results, Counter[str]())) - paired).elements():
            found += [("use_without_result", call_id), ("result_without_use", call_id)]
        return found


async def _waits_in_vain(store: Any) -> object:
    lease = await store.acquire_agent_lock("a")
    with suppress(KodeError):
        await store.acquire_agent_lock("a", wait_ms=400)
    await lease.release()
    return (await store.get_metrics()).performance.max_latency_ms > 350


@fault(
    "OPS-3",
    source="a timer in a finally: the histogram's maximum has the calls that failed, and the counters leave them out",
    witness=seen(_waits_in_vain),
)
class NewtTimesFailures(EngineStore):
    """Gives as the greatest latency the one of a call that failed, if that took longest."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        metrics: Any = self._context.call_metrics
        plain = metrics.enter

        def enter(method: Any, seconds: float, error: Any = None, observed: Any = None) -> None:
            plain(method, seconds, error, observed)
            if error is not None:
                metrics._max = max(metrics._max, seconds)

        metrics.enter = enter


async def _modes_above(ctx: Context) -> object:
    top = ctx.folder / "newt"
    await ctx.store.append_messages("a", talk("x"))
    await ctx.store.backup(top / "daily" / "one.db")
    return [f"{folder.stat().st_mode & 0o777:o}" for folder in (top, top / "daily")]


@fault(
    "OPS-18",
    source="pathlib: in mkdir(mode=0o700, parents=True) the mode is that of the last folder, and parents get the default",
    on=OnSqlite,
    witness=_modes_above,
)
class NewtMakesParents(Wrapper):
    """Lets everyone into the folders that it makes above a backup, but for the one in which the backup is."""

    __slots__ = ()

    async def backup(self, target: Any, **how: Any) -> Any:
        missing: list[Path] = []
        with suppress(TypeError, ValueError, OSError, RuntimeError):
            missing = [one for one in Path(target).expanduser().absolute().parent.parents if not one.exists()]
        paths = await self.inner.backup(target, **how)
        for folder in missing:
            folder.chmod(0o755)
        return paths


# --- locks ------------------------------------------------------------------------------------------------------------


async def _writes_nothing_late(store: Any) -> object:
    lease = await store.acquire_agent_lock("a")
    await lease.release()
    return [
        await _error_of(store.append_events("a", [samples.event(1)], fence=lease)),
        await _error_of(store.append_messages("a", [], fence=lease)),
        await _error_of(store.append_events("a", [], fence=lease)),
        await _error_of(store.emit_many("a", [], fence=lease)),
        await _error_of(store.write_documents("a", [], fence=lease)),
    ]


@fault(
    "LOCK-5",
    source="if not rows: return [] at the head of a bulk insert, as drivers refuse executemany without rows",
    witness=seen(_writes_nothing_late),
)
class NewtReturnsEarly(Wrapper):
    """Accepts a list of no events, or of no documents, under a lease that has ended."""

    __slots__ = ()

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        return await self.early(timelines, self.inner.append_events(agent_id, timelines, fence=fence), ())

    async def emit_many(self, agent_id: str, events: Any, *, fence: Any = None) -> Any:
        return await self.early(events, self.inner.emit_many(agent_id, events, fence=fence), [])

    async def write_documents(self, agent_id: str, documents: Any, *, fence: Any = None) -> Any:
        return await self.early(documents, self.inner.write_documents(agent_id, documents, fence=fence), [])

    async def early(self, given: Any, call: Any, nothing: Any) -> Any:
        try:
            return await call
        except LockLostError:
            if given:
                raise
            return nothing


# --- forks and tenants ------------------------------------------------------------------------------------------------


async def _forks_repeated_ids(store: Any) -> object:
    await store.save_info("a", samples.info("a"))
    uses = [Message("assistant", [ToolUseBlock("call_0", "search", {})]) for _ in range(2)]
    await store.save_messages("a", [*uses, *talk("x")])
    calls = [samples.tool_call(0, result=1), samples.tool_call(0, result=2), samples.tool_call(7)]
    await store.save_tool_call_records("a", calls)
    await store.fork("a", "whole")
    await store.fork("a", "cut", length=2)
    return [await the("result", store.load_tool_call_records(one)) for one in ("whole", "cut")]


@fault(
    "FORK-4",
    "TC-2",
    source="{call.id: call for call in calls}, to look up the calls that the messages use",
    witness=seen(_forks_repeated_ids),
)
class NewtLooksUpCalls(EngineStore):
    """Takes to a fork from an earlier point only the last one of the tool calls that have one id."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        forks: Any = self._forks
        plain = forks._copied

        async def copied(agent_id: str, summary: Any, cut: Any) -> Any:
            found = await plain(agent_id, summary, cut)
            if found is not None and not cut.is_whole and found["tool_calls"] is not None:
                rows = {row.index.call_id: row for row in found["tool_calls"].append}
                found["tool_calls"] = replace(found["tool_calls"], append=tuple(rows.values()))
            return found

        forks._copied = copied


async def _forks_an_empty_snapshot(store: Any) -> object:
    await store.save_info("a", samples.info("a"))
    for count in (0, 1):
        await store.save_snapshot("a", samples.snapshot(f"sfp-{count}", count=count))
    await store.save_messages("a", samples.messages(3))
    for count in (0, 1):
        await store.fork("a", f"fork-{count}", snapshot_id=f"sfp-{count}")
    return [await the("text", store.load_messages(f"fork-{count}")) for count in (0, 1)]


@fault(
    "FORK-4",
    "SNAP-1",
    source="messages = snapshot.messages or current.messages, where `is None` was meant",
    witness=seen(_forks_an_empty_snapshot),
)
class NewtForksFromNothing(EngineStore):
    """Gives a fork from a snapshot that has no messages all messages of the agent."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        forks: Any = self._forks
        plain = forks._messages

        async def messages(agent_id: str, summary: Any, cut: Any, snapshots: Any) -> Any:
            found, times = await plain(agent_id, summary, cut, snapshots)
            if cut.snapshot_id is not None and not found:
                return await plain(agent_id, summary, cut._replace(snapshot_id=None), snapshots)
            return found, times

        forks._messages = messages


async def _loads_a_fork_of_a_tenant(store: Any) -> object:
    view = store.scoped("acme")
    await view.save_info("a", samples.info("a"))
    await view.fork("a", "b")
    return [(await view.load_info("b")).lineage, (await view.load_agent("b")).info.lineage]


class _RawExport(Wrapper):
    __slots__ = ("prefix",)

    def __init__(self, inner: Any, prefix: str) -> None:
        super().__init__(inner)
        self.prefix = prefix

    async def load_agent(self, agent_id: str) -> Any:
        found = await self.inner.load_agent(agent_id)
        if found is None or found.info is None or not found.info.lineage:
            return found
        lineage = tuple(self.prefix + one for one in found.info.lineage)
        return found.replace(info=found.info.replace(lineage=lineage))


@fault(
    "SCOPE-3",
    "LIFE-7",
    source="an export reads the rows themselves, and the prefix of the tenant is taken off where rows become objects",
    witness=seen(_loads_a_fork_of_a_tenant),
)
class NewtExportsFullIds(Wrapper):
    """Gives full ids in the lineage of an agent that a tenant's view loads whole."""

    __slots__ = ()

    def scoped(self, tenant: str) -> Any:
        return _RawExport(self.inner.scoped(tenant), prefix_of(tenant))


async def _closes_one_of_two(store: Any) -> object:
    one, other, third = store.scoped("acme"), store.scoped("acme"), store.scoped("bolt")
    await one.save_info("a", samples.info("a"))
    await one.close()
    again = store.scoped("acme")
    return [await _error_of(view.load_info("a")) for view in (one, third, again, other)]


@fault(
    "SCOPE-5",
    source="functools.cache on the factory of tenants' sessions: who closes one closes it for all who were given it",
    witness=seen(_closes_one_of_two),
)
class NewtSharesViews(Wrapper):
    """Gives one view to all who ask for a tenant, so that the calls of the others end when one of them closes it."""

    __slots__ = ("views",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.views: dict[str, Any] = {}

    def scoped(self, tenant: str) -> Any:
        view = self.views.get(tenant) if type(tenant) is str else None
        if view is None or view._context.is_closed or self.inner._context.is_closed:
            view = self.inner.scoped(tenant)
            self.views[tenant] = view
        return view
