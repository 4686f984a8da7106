"""Stores on document and key-value databases, and layers of applications above stores, each with one fault of its kind:
of Redis, MongoDB, DynamoDB, Cassandra, etcd and Firestore, and of caches, buses, batchers and clients that retry.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import CommittingLayer, MemoryLayer, OnSqlite, StreamWrapper, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import ABSENT_DOC, CORE_KEYS, Applied, DocKind, DocWrite, Fence
from kode_core.codec import encode
from kode_core.errors import InvalidArgumentError, KodeError, OutcomeUnknownError, StoreUnavailableError
from kode_core.ids import check_key
from kode_core.jsonvalue import encode_json
from kode_core.layers import Layer
from kode_core.model import AgentRecords, Message, PutDocument, RecoveredFile, StoredEvent, TextBlock, ToolUseBlock
from kode_core.store import EngineStore
from kode_core.store.locks import ENTERED

DAY_MS = 24 * 3600 * 1000


def space_of(store: Any) -> Any:
    """The contents of the memory engine under a store."""
    while isinstance(store, Wrapper):
        store = store.inner
    engine = store._context.engine
    while not isinstance(engine, MemoryEngine):
        engine = engine.inner
    return engine._space


def shared(space: Any, name: str) -> dict[Any, Any]:
    """Something that all instances of one store keep."""
    found: dict[Any, Any] = vars(space).setdefault(name, {})
    return found


# --- values and ids ---------------------------------------------------------------------------------------------------


class _FannedOut(StreamWrapper):
    def __init__(self, inner: Any, agent_id: str, bus: dict[Any, Any]) -> None:
        super().__init__(inner)
        self.agent_id = agent_id
        self.bus = bus

    async def __anext__(self) -> Any:
        item = await super().__anext__()
        if not isinstance(item, StoredEvent):
            return item
        while len(self.bus) > 1000:
            del self.bus[next(iter(self.bus))]
        return self.bus.setdefault((self.agent_id, item.offset), item)


@fault(
    "VAL-1",
    "EVT-7",
    source="an event bus in the process, such as blinker or pyee: each subscriber is called with one and the same object",
    witness=lambda ctx: _two_followers(ctx),
)
class MoleFansOutOneObject(Wrapper):
    """Gives all followers in one process the same event, so that what one of them changes in it, the others see."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.bus: dict[Any, Any] = {}

    def follow_events(self, agent_id: str, **span: Any) -> Any:
        return _FannedOut(self.inner.follow_events(agent_id, **span), agent_id, self.bus)


@fault(
    "ID-2",
    "SNAP-1",
    source="Redis: keys such as snapshot:{agent_id}:{snapshot_id}, which are joined by a character that both may have",
    witness=seen(
        lambda s: s.save_snapshot("user", samples.snapshot("42:1", count=1)),
        lambda s: s.save_snapshot("user:42", samples.snapshot("1", count=3)),
        lambda s: s.load_snapshot("user", "42:1"),
        lambda s: s.load_snapshot("user:42", "1"),
    ),
)
class MoleJoinsKeysWithColons(MemoryLayer):
    """Loads the snapshot of another agent when both have the same text of agent id, colon and snapshot id."""

    @property
    def flat(self) -> dict[str, Any]:
        return shared(self.space, "flat")

    def note(self, agent_id: str) -> None:
        for (kind, key), doc in self.space.state(agent_id).docs.items():
            if kind == DocKind.SNAPSHOTS:
                self.flat[f"{agent_id}:{key}"] = doc

    async def commit(self, batches: Sequence[Any]) -> Any:
        stored = {batch.agent_id: set(self.space.state(batch.agent_id).docs) for batch in batches if batch.delete}
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, Applied):
                for kind, key in stored[batch.agent_id] if batch.delete else ():
                    if kind == DocKind.SNAPSHOTS:
                        self.flat.pop(f"{batch.agent_id}:{key}", None)
                for write in batch.docs:
                    name = f"{batch.agent_id}:{write.key}"
                    if write.kind == DocKind.SNAPSHOTS and write.doc is None:
                        self.flat.pop(name, None)
                    elif write.kind == DocKind.SNAPSHOTS:
                        self.flat[name] = write.doc
        return outcomes

    async def fork(self, agent_id: str, children: Sequence[Any], expect: Any, now: int) -> bool:
        done = await super().fork(agent_id, children, expect, now)
        for child in children if done else ():
            self.note(child.agent_id)
        return done

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Any:
        if kind == DocKind.SNAPSHOTS and key is not None:
            doc = self.flat.get(f"{agent_id}:{key}")
            return [] if doc is None else [replace(doc, key=key)]
        return await super().docs(agent_id, kind, key)


# --- messages ---------------------------------------------------------------------------------------------------------


@fault(
    "MSG-11",
    source="MongoDB's bucket pattern, a hundred messages in a document, and `bucket[: length % 100 or None]`",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(250)),
        lambda s: s.truncate_messages("a", 200),
        lambda s: _number(s.load_messages("a")),
        lambda s: s.truncate_messages("a", 50),
        lambda s: _number(s.load_messages("a")),
    ),
)
class MoleTruncatesToFullBuckets(Wrapper):
    """Keeps the next hundred messages, too, when a list is truncated to a length that is a multiple of a hundred."""

    __slots__ = ()

    async def truncate_messages(self, agent_id: str, length: int, **rest: Any) -> int:
        if type(length) is int and length > 0 and length % 100 == 0:
            length += 100
        found: int = await self.inner.truncate_messages(agent_id, length, **rest)
        return found


@fault(
    "MSG-10",
    source="Redis: LRANGE key -(n + 100) -(n + 1), whose places are counted from the end as it is at each page",
    witness=lambda ctx: _appends_while_reading(ctx),
)
class MolePagesFromTheEnd(Wrapper):
    """Yields messages again when others are appended while the list is read from its end."""

    __slots__ = ()

    def read_messages(self, agent_id: str, *, reverse: bool = False, **span: Any) -> Any:
        found = self.inner.read_messages(agent_id, reverse=reverse, **span)
        return self.pages(agent_id) if reverse is True and not any(v is not None for v in span.values()) else found

    async def pages(self, agent_id: str) -> AsyncIterator[Any]:
        done = 0
        while True:
            stop = (await self.inner.aggregate_stats(agent_id)).total_messages - done
            if stop <= 0:
                return
            after = stop - 101 if stop > 100 else None
            async with aclosing(self.inner.read_messages(agent_id, after=after, before=stop, reverse=True)) as messages:
                async for message in messages:
                    done += 1
                    yield message


@fault(
    "MSG-12",
    source="DynamoDB: a BatchGetItem takes at most 100 keys, and the keys beyond them are taken for new ones",
    witness=seen(
        lambda s: s.append_messages_once("a", {"k140": samples.message(140)}),
        lambda s: s.append_messages_once("a", {f"k{i}": samples.message(i) for i in range(150)}),
        lambda s: _number(s.load_messages("a")),
    ),
)
class MoleLooksUpAHundredKeys(Layer):
    """Appends a message again whose key is known when it is not among the first hundred of its call."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        return await super().commit([replace(batch, docs=self.looked_up(batch.docs)) for batch in batches])

    @staticmethod
    def looked_up(docs: Sequence[DocWrite]) -> tuple[DocWrite, ...]:
        count, found = 0, []
        for write in docs:
            if write.kind == DocKind.DOCUMENTS and write.key.startswith(CORE_KEYS) and write.expect == ABSENT_DOC:
                count += 1
                found.append(replace(write, expect=None) if count > 100 else write)
            else:
                found.append(write)
        return tuple(found)


# --- tool calls and turns ---------------------------------------------------------------------------------------------


class _LastHundred(Layer):
    async def outline(self, agent_id: str, kind: Any, keys: Any = None) -> Any:
        found = await super().outline(agent_id, kind, keys)
        if keys is None:
            return found
        return replace(found, rows=[row for row in found.rows if row[0] >= found.count - 100])


@fault(
    "TC-3",
    source="Redis: LRANGE key -100 -1 to find the call that has ended, which began a moment ago as a rule",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(0, state="APPROVAL_REQUIRED")]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(i) for i in range(1, 121)]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(0)]),
        lambda s: s.count_tool_calls(state=["APPROVAL_REQUIRED"]),
        lambda s: _number(s.load_tool_call_records("a")),
    ),
)
class MoleLooksBackAHundredCalls(EngineStore):
    """Appends a tool call that is upserted when its record is not among the last hundred, and leaves the old one."""

    def __init__(self, opener: Any, **options: Any) -> None:
        async def layered() -> Any:
            return _LastHundred(await opener())

        super().__init__(layered, **options)

    def forget(self, agent_id: Any) -> None:
        if type(agent_id) is str:
            self._writer._memory.forget(agent_id)

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        self.forget(agent_id)
        await super().upsert_tool_call_records(agent_id, records, fence=fence)

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Any = (), **rest: Any) -> Any:
        if upsert_tool_calls:
            self.forget(agent_id)
        return await super().save_turn(agent_id, upsert_tool_calls=upsert_tool_calls, **rest)


def _is_large(result: Any) -> bool:
    if type(result) is str:
        return len(result) > 350_000
    return type(result) in (dict, list) and len(encode_json(result, "result")) > 350_000


@fault(
    "TC-2",
    "VAL-1",
    source="DynamoDB: an item has at most 400 KB, so that a large result is an object of S3 named by agent and call id",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(result=c * 400_000) for c in "xy"]),
        lambda s: _beginnings(s.load_tool_call_records("a")),
    ),
)
class MoleKeepsLargeResultsByCallId(Wrapper):
    """Loads the large result of the last tool call of an id for all large ones of that id."""

    __slots__ = ()

    async def load_tool_call_records(self, agent_id: str, **part: Any) -> Any:
        records = await self.inner.load_tool_call_records(agent_id, **part)
        large = {i: record for i, record in enumerate(records) if _is_large(record.result)}
        last = {record.id: record.result for record in large.values()}
        for i, record in large.items():
            records[i] = record.replace(result=last[record.id])
        return records


@fault(
    "VER-2",
    "TURN-1",
    source="DynamoDB: the ConditionExpression is on the Update of the agent's head, which such a transaction has not",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_turn("a", todos=samples.todos("x"), events=[samples.event(0)], expect="0"),
        lambda s: s.load_todos("a"),
    ),
)
class MoleChecksTheVersionWithTheHead(Wrapper):
    """Does not check the version that a turn demands when it has neither messages nor tool calls nor an info."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, expect: Any = None, **turn: Any) -> Any:
        has_head = any(turn.get(name) for name in ("append", "upsert_tool_calls"))
        has_head = has_head or any(turn.get(name) is not None for name in ("messages", "tool_calls", "info"))
        return await self.inner.save_turn(
            agent_id, expect=None if type(expect) is str and not has_head else expect, **turn
        )


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-5",
    source="DynamoDB: a FilterExpression applies after the page is read, and an empty page may have a LastEvaluatedKey",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(0, "control"), *samples.events(1_200, 1)]),
        lambda s: s.append_event("a", samples.event(2_000, "control")),
        lambda s: _seqs(s.read_events("a", channel="control")),
    ),
)
class MoleStopsAtAnEmptyPage(Layer):
    """Ends the events of a channel where the log has five hundred others in a row."""

    async def events(self, agent_id: str, span: Any) -> Any:
        if span.channel is None:
            return await super().events(agent_id, span)
        found: list[Any] = []
        after = span.after
        while len(found) < span.limit:
            part = replace(span, after=after, limit=500)
            page = await super().events(agent_id, replace(part, channel=None))
            offsets = {row.offset for row in page}
            kept = [row for row in await super().events(agent_id, part) if row.offset in offsets]
            if not kept:
                break
            found += kept
            after = (page[-1].seq, page[-1].offset)
        return found[: span.limit]


class _Pushed(StreamWrapper):
    """Events that are pushed into a queue of a thousand, once the stored ones were read."""

    def __init__(self, inner: Any, find_end: Any) -> None:
        super().__init__(inner)
        self.find_end = find_end
        self.items: deque[Any] = deque()
        self.moved = asyncio.Event()
        self.pump: asyncio.Task[None] | None = None
        self.error: BaseException | None = None
        self.is_busy = self.is_closed = False

    async def __anext__(self) -> Any:
        if self.is_busy:
            raise InvalidArgumentError("another anext is waiting on this stream")
        self.is_busy = True
        try:
            if self.pump is None and not self.is_closed:
                self.pump = asyncio.create_task(self.push())
            while not self.items:
                if self.is_closed:
                    raise StopAsyncIteration
                if self.error is not None:
                    error, self.error, self.pump = self.error, None, None
                    raise error
                self.moved.clear()
                await self.moved.wait()
            item = self.items.popleft()
            self.moved.set()
            return item
        finally:
            self.is_busy = False

    async def push(self) -> None:
        try:
            end = await self.find_end()
            async for item in self.inner:
                while len(self.items) >= 1000 and item.offset <= end:
                    self.moved.clear()
                    await self.moved.wait()
                if len(self.items) < 1000:
                    self.items.append(item)
                    self.moved.set()
        except Exception as exc:
            self.error = exc
        self.moved.set()

    async def aclose(self) -> None:
        self.is_closed = True
        self.items.clear()
        if self.pump is not None:
            self.pump.cancel()
            await asyncio.wait([self.pump])
        self.moved.set()
        await super().aclose()


@fault(
    "EVT-7",
    source="a bus that drops what a slow subscriber's queue cannot take, as NATS and the output buffers of Redis do",
    witness=lambda ctx: _follows_slowly(ctx),
)
class MoleDropsForSlowFollowers(Wrapper):
    """Leaves events out for a follower that is more than a thousand of them behind."""

    __slots__ = ()

    def follow_events(self, agent_id: str, **span: Any) -> Any:
        stream = self.inner.follow_events(agent_id, **span)
        if span.get("heartbeat_ms") is not None:
            return stream

        async def find_end() -> int:
            last = 0
            async with aclosing(self.inner.read_events(agent_id, after_offset=span.get("after_offset", 0))) as events:
                async for event in events:
                    last = event.offset
            return last

        return _Pushed(stream, find_end)


# --- todos, history, media, snapshots, info ---------------------------------------------------------------------------


@fault(
    "TODO-1",
    "QRY-8",
    source="a cache that keeps misses, too, for five seconds, and is cleared by the saves of its own process",
    witness=lambda ctx: _looks_too_early(ctx),
)
class MoleRemembersAbsence(Wrapper):
    """Does not show the first todos of an agent, saved by another instance, for five seconds after it found none."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.missing: dict[str, float] = {}

    async def load_todos(self, agent_id: str) -> Any:
        if type(agent_id) is str and time.monotonic() < self.missing.get(agent_id, 0.0):
            return None
        found = await self.inner.load_todos(agent_id)
        if found is None:
            self.missing[agent_id] = time.monotonic() + 5
        return found

    async def save_todos(self, agent_id: str, *given: Any, **rest: Any) -> None:
        await self.inner.save_todos(agent_id, *given, **rest)
        self.missing.clear()

    async def save_turn(self, agent_id: str, **turn: Any) -> Any:
        offsets = await self.inner.save_turn(agent_id, **turn)
        self.missing.clear()
        return offsets

    async def import_agent(self, *given: Any, **rest: Any) -> None:
        await self.inner.import_agent(*given, **rest)
        self.missing.clear()

    async def fork(self, *given: Any, **rest: Any) -> Any:
        child = await self.inner.fork(*given, **rest)
        self.missing.clear()
        return child


@fault(
    "HIS-1",
    source="Cassandra: of two writes of a cell with one timestamp the greater value wins, and clients write milliseconds",
    witness=lambda ctx: _replaces_at_once(ctx),
)
class MoleBreaksTiesByValue(CommittingLayer):
    """Keeps the old history window when the one that replaces it in the same millisecond has the lesser text."""

    def committing(self, batch: Any, commit: Any) -> Any:
        written, state = shared(self.space, "written"), self.space.state(batch.agent_id)

        def wins(write: DocWrite) -> bool:
            if write.kind != DocKind.WINDOWS or write.doc is None:
                return True
            old = state.docs.get((write.kind, write.key))
            is_tie = old is not None and written.get((batch.agent_id, write.key)) == batch.now
            return not is_tie or write.doc.body.text >= old.body.text  # type: ignore[union-attr]

        outcome = commit(replace(batch, docs=tuple(filter(wins, batch.docs))))
        if isinstance(outcome, Applied):
            written.update({(batch.agent_id, w.key): batch.now for w in batch.docs if w.kind == DocKind.WINDOWS})
        return outcome


@fault(
    "MED-1",
    source="Redis: everything called a cache is saved with EX 86400",
    witness=lambda ctx: _looks_two_days_later(ctx),
)
class MoleExpiresTheMediaCache(EngineStore):
    """Loads an empty media cache a day after it was saved."""

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await super().save_media_cache(agent_id, records, fence=fence)
        shared(space_of(self), "media")[agent_id] = self._context.now()

    async def load_media_cache(self, agent_id: str) -> Any:
        found = await super().load_media_cache(agent_id)
        saved = shared(space_of(self), "media").get(agent_id)
        return [] if saved is not None and self._context.now() - saved > DAY_MS else found


@fault(
    "SNAP-2",
    "FORK-2",
    "SNAP-1",
    source="large bodies are objects of S3 named by their hash, and a delete removes the object without counting its users",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_snapshot("a", _large_snapshot("sfp-1")),
        lambda s: s.save_snapshot("a", samples.snapshot("sfp-2")),
        lambda s: s.fork("a", "b"),
        lambda s: s.delete_snapshot("b", "sfp-1"),
        lambda s: s.delete_snapshot("b", "sfp-2"),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class MoleSharesTheBlobsOfSnapshots(CommittingLayer):
    """Loses a snapshot of 350 KB and more when another one of the same contents is removed, as of a fork."""

    def committing(self, batch: Any, commit: Any) -> Any:
        old = {
            key: doc.body.digest
            for (kind, key), doc in self.space.state(batch.agent_id).docs.items()
            if kind == DocKind.SNAPSHOTS and len(doc.body.text) >= 350_000
        }
        outcome = commit(batch)
        if isinstance(outcome, Applied) and old:
            docs = self.space.state(batch.agent_id).docs
            gone = {digest for key, digest in old.items() if self.digest(docs, key) != digest}
            for state in self.space.states.values() if gone else ():
                for name, doc in list(state.docs.items()):
                    if name[0] == DocKind.SNAPSHOTS and doc.body.digest in gone:
                        del state.docs[name]
        return outcome

    @staticmethod
    def digest(docs: Any, key: str) -> bytes:
        doc = docs.get((DocKind.SNAPSHOTS, key))
        return b"" if doc is None else doc.body.digest


@fault(
    "MSG-6",
    "INFO-5",
    source="findOneAndUpdate returns the document as it is, and only load_info puts the counted messages into it",
    witness=seen(
        lambda s: s.save_messages("a", talk("x", "y")),
        lambda s: s.save_info("a", samples.info("a", message_count=7)),
        lambda s: s.update_info("a", {"plan": "silver"}),
        lambda s: s.load_info("a"),
    ),
)
class MoleReturnsTheGivenCount(Wrapper):
    """Returns an info from `update_info` that has the number of messages that was given when the info was saved."""

    __slots__ = ()

    def note(self, agent_id: str, info: Any) -> None:
        shared(space_of(self), "given")[agent_id] = info.message_count

    async def save_info(self, agent_id: str, info: Any, **rest: Any) -> None:
        await self.inner.save_info(agent_id, info, **rest)
        self.note(agent_id, info)

    async def create_agent(self, agent_id: str, info: Any, **rest: Any) -> None:
        await self.inner.create_agent(agent_id, info, **rest)
        self.note(agent_id, info)

    async def save_turn(self, agent_id: str, *, info: Any = None, **turn: Any) -> Any:
        offsets = await self.inner.save_turn(agent_id, info=info, **turn)
        if info is not None:
            self.note(agent_id, info)
        return offsets

    async def update_info(self, agent_id: str, *given: Any, **rest: Any) -> Any:
        info = await self.inner.update_info(agent_id, *given, **rest)
        return info.replace(message_count=shared(space_of(self), "given").get(agent_id, 0))


# --- lifecycle --------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-2",
    source="Redis: a set of all ids, with SADD at each save, and SREM only where an agent is deleted",
    witness=seen(
        lambda s: _put(s, "a", "notes", "k", 1),
        lambda s: s.delete_document("a", "notes", "k"),
        lambda s: s.save_snapshot("b", samples.snapshot("sfp-1")),
        lambda s: s.delete_snapshot("b", "sfp-1"),
        lambda s: s.list(include_without_info=True),
    ),
)
class MoleListsIdsWithNothingLeft(MemoryLayer):
    """Lists ids without info whose last record was removed as agents under which something is stored."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        outcomes = await super().commit(batches)
        known = shared(self.space, "ids")
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, Applied):
                if batch.delete:
                    known.pop(batch.agent_id, None)
                docs = any(write.doc is not None and write.kind != DocKind.LAYER for write in batch.docs)
                if batch.is_touching or batch.events or docs:
                    known[batch.agent_id] = True
        return outcomes

    async def stored_ids(self, after: str | None, limit: int) -> Any:
        known = [agent_id for agent_id in shared(self.space, "ids") if after is None or agent_id > after]
        return sorted({*await super().stored_ids(after, limit), *known})[:limit]


_OF_ROWS = frozenset(
    {DocKind.TODOS, DocKind.WINDOWS, DocKind.COMPRESSIONS, DocKind.RECOVERED, DocKind.MEDIA, DocKind.SNAPSHOTS}
)


@fault(
    "LIFE-4",
    "LIFE-8",
    source="Cassandra: a tombstone hides all writes with an earlier USING TIMESTAMP, also those that come after it",
    witness=lambda ctx: _imports_after_a_delete(ctx),
)
class MoleBuriesUnderATombstone(CommittingLayer):
    """Loses todos, history, media and snapshots that are written to a deleted id with a time before its delete: those
    of an import, whose time is the agent's own, and those of a host whose clock is behind.
    """

    def committing(self, batch: Any, commit: Any) -> Any:
        tombs = shared(self.space, "tombs")
        if not batch.delete and batch.now < tombs.get(batch.agent_id, 0):
            batch = replace(batch, docs=tuple(w for w in batch.docs if w.doc is None or w.kind not in _OF_ROWS))
        outcome = commit(batch)
        if batch.delete and batch.is_empty and isinstance(outcome, Applied):
            tombs[batch.agent_id] = max(batch.now, tombs.get(batch.agent_id, 0))
        return outcome


@fault(
    "LIFE-8",
    "MSG-12",
    source="an import that checks references, and leaves out keys that point to messages which are not there",
    witness=seen(
        lambda s: s.append_messages_once("a", {"k1": samples.message(1), "k2": samples.message(2)}),
        lambda s: s.pop_messages("a"),
        lambda s: _copied(s, "a", "b"),
        lambda s: s.append_messages_once("b", {"k1": samples.message(1), "k2": samples.message(2)}),
        lambda s: the("text", s.load_messages("b")),
    ),
)
class MoleDropsDanglingKeys(Wrapper):
    """Forgets, when an agent is imported, the keys of messages whose position is behind the end of its list."""

    __slots__ = ()

    async def import_agent(self, agent_id: str, records: Any, **rest: Any) -> None:
        if type(records) is AgentRecords and type(records.message_keys) is dict:
            end = len(records.messages)
            keys = {k: at for k, at in records.message_keys.items() if type(at) is not int or at < end}
            records = records.replace(message_keys=keys)
        await self.inner.import_agent(agent_id, records, **rest)


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-3",
    "QRY-2",
    "QRY-5",
    source="Firestore: `in` takes at most 30 values, so that there is a query for every 30, and the results are joined",
    witness=seen(
        lambda s: _sessions(s, 40),
        lambda s: the("agent_id", s.query_sessions(agent_id=[f"s{i:02}" for i in range(40)])),
    ),
)
class MoleJoinsQueriesOfThirty(Layer):
    """Gives what it finds for more than 30 agents in the order of 30 agents after another, and pages skip some."""

    async def joined(self, find: Any, query: Any) -> Any:
        ids = query.agent_id
        if type(ids) is not tuple or len(ids) <= 30:
            return await find(query)
        most, found = query.offset + query.limit, []
        for i in range(0, len(ids), 30):
            part = ids[i : i + 30]
            found += await find(replace(query, agent_id=part if len(part) > 1 else part[0], offset=0, limit=most))
        return found[query.offset : most]

    async def find_sessions(self, query: Any) -> Any:
        return await self.joined(super().find_sessions, query)

    async def find_rows(self, query: Any) -> Any:
        return await self.joined(super().find_rows, query)

    async def count(self, query: Any) -> int:
        return await super().count(query)

    async def group(self, query: Any, grouping: Any) -> Any:
        return await super().group(query, grouping)


@fault(
    "QRY-10",
    "LIFE-5",
    source="a counter of all agents, which create and delete keep, and the delete of many does not",
    witness=seen(
        lambda s: _sessions(s, 3),
        lambda s: s.count_sessions(),
        lambda s: s.delete_many(template_id="assistant"),
        lambda s: s.count_sessions(),
        lambda s: s.count_sessions(template_id="assistant"),
    ),
)
class MoleCountsWhatDeleteManyDeleted(EngineStore):
    """Still counts sessions that `delete_many` deleted, when they are counted without a filter."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        deleted = await super().delete_many(progress=progress, **filters)
        counts = shared(space_of(self), "counts")
        counts["deleted"] = counts.get("deleted", 0) + deleted
        return deleted

    async def count_sessions(self, **filters: Any) -> int:
        count = await super().count_sessions(**filters)
        return count if filters else count + shared(space_of(self), "counts").get("deleted", 0)


@fault(
    "QRY-8",
    "OPS-6",
    source="stale-if-error, as HTTP caches have it: the last value that was read is better than an error",
    witness=lambda ctx: _loads_while_down(ctx),
)
class MoleServesStaleOnError(Wrapper):
    """Loads the info that it loaded last when the database cannot be reached."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.last: dict[str, Any] = {}

    async def load_info(self, agent_id: str) -> Any:
        try:
            info = await self.inner.load_info(agent_id)
        except StoreUnavailableError:
            if agent_id in self.last:
                return self.last[agent_id]
            raise
        self.last[agent_id] = info
        return info


# --- documents --------------------------------------------------------------------------------------------------------


def _to_f8ff(span: Mapping[str, Any]) -> dict[str, Any]:
    prefix, stop = span.get("prefix", ""), span.get("stop")
    if type(prefix) is not str or not prefix or (stop is not None and type(stop) is not str):
        return dict(span)
    end = f"{prefix}\uf8ff"
    if len(end.encode("utf-8", "surrogatepass")) > 400:
        return dict(span)
    return {**span, "stop": end if stop is None else min(stop, end)}


@fault(
    "DOC-4",
    source="Firestore: prefixes are asked for as where(key >= p).where(key < p + '\\uf8ff'), as its guides show it",
    witness=seen(
        lambda s: _put(s, "a", "notes", "day/1", 1),
        lambda s: _put(s, "a", "notes", "day/\U0001f600", 2),
        lambda s: s.list_document_keys("a", "notes", prefix="day/"),
        lambda s: s.list_document_keys("a", "notes"),
    ),
)
class MoleEndsPrefixesAtF8FF(Wrapper):
    """Does not find documents by a prefix after which their keys go on with a character from U+F8FF on, as an emoji."""

    __slots__ = ()

    async def list_documents(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.inner.list_documents(agent_id, collection, **_to_f8ff(span))

    async def list_document_keys(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.inner.list_document_keys(agent_id, collection, **_to_f8ff(span))

    def iter_documents(self, agent_id: str, collection: str, **span: Any) -> Any:
        return self.inner.iter_documents(agent_id, collection, **_to_f8ff(span))


@fault(
    "DOC-3",
    source="etcd: a transaction has at most 128 operations (--max-txn-ops), so that more are made in several",
    witness=seen(
        lambda s: s.write_documents(
            "a", [*(PutDocument("c", f"{i:03}", i) for i in range(130)), PutDocument("c", "x", 0, expect="f" * 32)]
        ),
        lambda s: _number(s.list_document_keys("a", "c", limit=1000)),
    ),
)
class MoleSplitsTransactionsAt128(Wrapper):
    """Writes the first 128 documents of a call although a later one is refused."""

    __slots__ = ()

    async def write_documents(self, agent_id: str, documents: Any, **rest: Any) -> Any:
        if not isinstance(documents, (list, tuple)) or len(documents) <= 128:
            return await self.inner.write_documents(agent_id, documents, **rest)
        taken = tuple(documents)
        parts = [taken[i : i + 128] for i in range(0, len(taken), 128)]
        return [version for part in parts for version in await self.inner.write_documents(agent_id, part, **rest)]


# --- operations -------------------------------------------------------------------------------------------------------


@fault(
    "OPS-13",
    source="a DataLoader: the loads of one turn of the loop are one batch, whose error is the error of each of them",
    witness=lambda ctx: _loads_at_once(ctx),
)
class MoleLoadsDocumentsInABatch(Wrapper):
    """Fails all loads of documents that begin at the same time when one of them fails."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self.flushing: asyncio.Task[None] | None = None

    async def load_document(self, agent_id: str, collection: str, key: str) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(((agent_id, collection, key), future))
        if len(self.waiting) == 1:
            self.flushing = asyncio.create_task(self.flush())
        return await future

    async def flush(self) -> None:
        await asyncio.sleep(0)
        batch, self.waiting = self.waiting, []
        results = await asyncio.gather(
            *(self.inner.load_document(*given) for given, _ in batch), return_exceptions=True
        )
        error = next((one for one in results if isinstance(one, BaseException)), None)
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done() and error is None:
                future.set_result(result)
            elif not future.done():
                future.set_exception(error)  # type: ignore[arg-type]


@fault(
    "OPS-12",
    source="a log of slow calls with all of their arguments, to see what made them slow",
    witness=lambda ctx: _logs(ctx),
)
class MoleLogsSlowCalls(Wrapper):
    """Writes the messages of an append into the log when it took more than a quarter of a second."""

    __slots__ = ()

    async def append_messages(self, agent_id: str, messages: Any, **rest: Any) -> None:
        began = time.monotonic()
        try:
            await self.inner.append_messages(agent_id, messages, **rest)
        finally:
            took = time.monotonic() - began
            if took > 0.25:
                logging.getLogger("kode_core").warning(
                    "slow call: append_messages(%r, %.500r) took %d ms", agent_id, messages, took * 1000
                )


@fault(
    "OPS-10",
    source="a client that repeats a PUT whose answer was lost: it is idempotent, so that it cannot do harm",
    witness=lambda ctx: _loses_an_answer(ctx),
)
class MoleRepeatsPuts(Wrapper):
    """Puts a document again when the outcome is unknown, and so overwrites what others have put since."""

    __slots__ = ()

    async def put_document(self, *given: Any, expect: Any = None, **rest: Any) -> Any:
        try:
            return await self.inner.put_document(*given, expect=expect, **rest)
        except OutcomeUnknownError:
            if expect is not None:
                raise
        await asyncio.sleep(0.1)
        return await self.inner.put_document(*given, **rest)


# --- locks, forks, tenants --------------------------------------------------------------------------------------------


@fault(
    "LOCK-5",
    source="Redis: the lease and the counter of its tokens are fields of one hash, on which PEXPIRE is set",
    witness=lambda ctx: _takes_after_expiry(ctx),
)
class MoleExpiresTheToken(MemoryLayer):
    """Counts the tokens of an agent's leases from 1 again when one has ended by its time."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        if await super().acquire_lease(agent_id, owner, ttl_ms) is None:
            return None
        tokens, now = shared(self.space, "tokens"), time.monotonic()
        last, until = tokens.get(agent_id, (0, now))
        token: int = 1 if until <= now else last + 1
        tokens[agent_id] = (token, now + ttl_ms / 1000)
        self.space.leases[agent_id] = (Fence(owner, token), self.space.leases[agent_id][1])
        return token

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        is_held = await super().renew_lease(agent_id, fence, ttl_ms)
        if is_held:
            shared(self.space, "tokens")[agent_id] = (fence.token, time.monotonic() + ttl_ms / 1000)
        return is_held

    async def release_lease(self, agent_id: str, fence: Any) -> None:
        if self.space.holds(agent_id, fence):
            shared(self.space, "tokens")[agent_id] = (fence.token, float("inf"))  # PERSIST
        await super().release_lease(agent_id, fence)


@fault(
    "FORK-4",
    "TC-2",
    source="`{call.id: call for call in calls}`, to look the used calls up",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_messages("a", [Message("assistant", [ToolUseBlock("call_0", "search", {})])] * 2),
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0, result=n) for n in (1, 2)]),
        lambda s: s.fork("a", "b", length=2),
        lambda s: the("result", s.load_tool_call_records("b")),
    ),
)
class MoleForksOneCallForEachId(Wrapper):
    """Gives a fork from an earlier point only the last of the tool calls that have one id."""

    __slots__ = ()

    async def fork(self, *given: Any, length: Any = None, snapshot_id: Any = None, **rest: Any) -> Any:
        child = await self.inner.fork(*given, length=length, snapshot_id=snapshot_id, **rest)
        if length is not None or snapshot_id is not None:
            calls = await self.inner.load_tool_call_records(child)
            by_id = {call.id: call for call in calls}
            if len(by_id) < len(calls):
                await self.inner.save_tool_call_records(child, [*by_id.values()])
        return child


@fault(
    "SCOPE-1",
    "ID-2",
    source="loads of one key at one time are made once (singleflight), and the key is the id without its tenant",
    witness=lambda ctx: _loads_of_two_tenants(ctx),
)
class MoleSharesLoadsOfTenants(Wrapper):
    """Gives a load of todos the result of one that is under way for the same agent id of another tenant."""

    def __init__(self, inner: Any, flights: dict[str, asyncio.Future[Any]] | None = None) -> None:
        super().__init__(inner)
        self.flights = {} if flights is None else flights

    def scoped(self, tenant: str) -> Any:
        return type(self)(self.inner.scoped(tenant), self.flights)

    async def load_todos(self, agent_id: str) -> Any:
        if type(agent_id) is not str:
            return await self.inner.load_todos(agent_id)
        flight = self.flights.get(agent_id)
        if flight is not None:
            return await asyncio.shield(flight)
        flight = self.flights[agent_id] = asyncio.get_running_loop().create_future()
        try:
            found = await self.inner.load_todos(agent_id)
        except BaseException as exc:
            flight.set_exception(exc if isinstance(exc, KodeError) else StoreUnavailableError("the load was given up"))
            flight.exception()  # whether anyone waits for it or not
            raise
        else:
            flight.set_result(found)
            return found
        finally:
            del self.flights[agent_id]


# --- durability -------------------------------------------------------------------------------------------------------


@fault(
    "DUR-1",
    "HIS-2",
    "QRY-8",
    source="DynamoDB: what an item cannot take goes to S3, in the background, so that the agent need not wait for it",
    on=OnSqlite,
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered(content="x" * 400_000)),
        lambda s, other: _number(other.load_recovered_files("a")),
    ),
)
class MoleUploadsLargeFilesLater(Wrapper):
    """Acknowledges a recovered file of more than 350 KB before it is stored; its own loads, deletes and `close` wait
    until it is, but neither other instances nor a killed process do.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.pending: set[asyncio.Task[None]] = set()

    async def save_recovered_file(self, agent_id: str, file: Any, **rest: Any) -> None:
        if not self.is_sound(file) or rest or ENTERED.get():
            await self.inner.save_recovered_file(agent_id, file, **rest)
            return
        await self.inner.exists(agent_id)  # refuses a wrong id, and a closed store
        task = asyncio.create_task(self.upload(agent_id, file))
        self.pending.add(task)
        task.add_done_callback(self.pending.discard)

    @staticmethod
    def is_sound(file: Any) -> bool:
        try:
            return len(check_key(file.path, "path")) > 0 and len(encode(RecoveredFile, file, "file").text) > 350_000
        except (KodeError, AttributeError):
            return False

    async def upload(self, agent_id: str, file: Any) -> None:
        await asyncio.sleep(0.05)
        await self.inner.save_recovered_file(agent_id, file)

    async def settle(self) -> None:
        if self.pending:
            await asyncio.wait(self.pending)

    async def load_recovered_files(self, agent_id: str) -> Any:
        await self.settle()
        return await self.inner.load_recovered_files(agent_id)

    async def load_agent(self, agent_id: str) -> Any:
        await self.settle()
        return await self.inner.load_agent(agent_id)

    async def prune(self, agent_id: str, **what: Any) -> Any:
        await self.settle()
        return await self.inner.prune(agent_id, **what)

    async def delete(self, agent_id: str, **rest: Any) -> None:
        await self.settle()
        await self.inner.delete(agent_id, **rest)

    async def delete_many(self, **filters: Any) -> Any:
        await self.settle()
        return await self.inner.delete_many(**filters)

    async def close(self) -> None:
        await self.settle()
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


# --- witnesses --------------------------------------------------------------------------------------------------------


async def _number(records: Any) -> int:
    return len(await records)


async def _seqs(events: Any) -> list[int]:
    return [event.bookmark.seq async for event in events]


async def _put(store: Any, *given: Any) -> None:
    await store.put_document(*given)


async def _beginnings(records: Any) -> list[Any]:
    return [record.result[:1] for record in await records]


def _large_snapshot(snapshot_id: str) -> Any:
    return samples.snapshot(snapshot_id).replace(messages=[Message("user", [TextBlock("x" * 400_000)])])


async def _sessions(store: Any, count: int) -> None:
    for i in range(count):
        await store.save_info(f"s{i:02}", samples.info(f"s{i:02}", created_at=samples.T0 + i))


async def _copied(store: Any, agent_id: str, new_id: str) -> None:
    await store.import_agent(new_id, await store.load_agent(agent_id))


class _Slow(Layer):
    async def commit(self, batches: Sequence[Any]) -> Any:
        await asyncio.sleep(0.3)
        return await super().commit(batches)


class _SlowToRead(Layer):
    async def docs(self, *given: Any) -> Any:
        found = await super().docs(*given)
        await asyncio.sleep(0.05)
        return found


class _Down(Layer):
    """Cannot be reached when it is told so."""

    is_down = False

    async def around(self, verb: str, call: Any, /, *given: Any, **named: Any) -> Any:
        if self.is_down:
            raise StoreUnavailableError("down")
        return await call(*given, **named)


class _LosesAnswers(Layer):
    """Loses the answer of the next write."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.is_lossy = False
        self.has_lost = asyncio.Event()

    async def commit(self, batches: Sequence[Any]) -> Any:
        outcomes = await super().commit(batches)
        if not self.is_lossy:
            return outcomes
        self.is_lossy = False
        self.has_lost.set()
        return [OutcomeUnknownError("the answer was lost") for _ in outcomes]


async def _with(ctx: Context, kind: Any) -> tuple[Any, Any]:
    """A store, and the layer around its engine."""
    made: list[Any] = []

    def make(engine: Any) -> Any:
        made.append(kind(engine))
        return made[-1]

    return await ctx.another(layer=make), made[-1]


async def _two_followers(ctx: Context) -> object:
    await ctx.store.append_event("a", samples.event(0))
    found = []
    for _ in range(2):
        async with aclosing(ctx.store.follow_events("a")) as events:
            event = await anext(events)
            found.append(dict(event.event.data))
            event.event.data["delta"] = "[redacted]"
    return found


async def _appends_while_reading(ctx: Context) -> object:
    await ctx.store.save_messages("a", samples.messages(250))
    positions: list[int] = []
    async for message in ctx.store.read_messages("a", reverse=True):
        if not positions:
            await ctx.store.append_messages("a", talk("x"))
        positions.append(message.position)
    return len(positions), len(set(positions))


async def _follows_slowly(ctx: Context) -> object:
    await ctx.store.append_event("a", samples.event(0))
    found = []
    async with aclosing(ctx.store.follow_events("a")) as events:
        found.append((await anext(events)).bookmark.seq)
        await ctx.store.append_events("a", samples.events(2_500, 1))
        await asyncio.sleep(0.5)
        while found[-1] < 2_500:
            try:
                async with asyncio.timeout(2):
                    found.append((await anext(events)).bookmark.seq)
            except TimeoutError:
                break
    return len(found)


async def _looks_too_early(ctx: Context) -> object:
    other: Any = await ctx.another()
    found = [await other.load_todos("a")]
    await ctx.store.save_todos("a", samples.todos("x"))
    return [*found, await other.load_todos("a")]


async def _replaces_at_once(ctx: Context) -> object:
    store: Any = await ctx.another(clock=lambda: samples.T0)
    await store.save_history_window("a", samples.window("w", samples.T0 + 2))
    await store.save_history_window("a", samples.window("w", samples.T0 + 1))
    return [window.timestamp for window in await store.load_history_windows("a")]


async def _looks_two_days_later(ctx: Context) -> object:
    store: Any = await ctx.another(clock=lambda: samples.T0)
    later: Any = await ctx.another(clock=lambda: samples.T0 + 2 * DAY_MS)
    await store.save_media_cache("a", [samples.media()])
    return [len(await one.load_media_cache("a")) for one in (store, later)]


async def _imports_after_a_delete(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_todos("a", samples.todos("x"))
    records: Any = await ctx.store.load_agent("a")
    await asyncio.sleep(0.02)
    await ctx.store.delete("a")
    await ctx.store.import_agent("a", records)
    return await ctx.store.load_todos("a")


async def _loads_while_down(ctx: Context) -> object:
    store, layer = await _with(ctx, _Down)
    await store.save_info("a", samples.info("a"))
    await store.load_info("a")
    layer.is_down = True
    try:
        return await store.load_info("a")
    except KodeError as exc:
        return type(exc).__name__
    finally:
        layer.is_down = False


async def _loads_at_once(ctx: Context) -> object:
    await ctx.store.put_document("a", "notes", "k", 1)
    calls = [ctx.store.load_document(agent_id, "notes", "k") for agent_id in ("a", "x" * 300, "b")]
    return [type(found).__name__ for found in await asyncio.gather(*calls, return_exceptions=True)]


async def _logs(ctx: Context) -> object:
    store, _ = await _with(ctx, _Slow)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("kode_core")
    log.addHandler(handler)
    try:
        await store.append_messages("a", talk("my password is 1234"))
    finally:
        log.removeHandler(handler)
    return any("1234" in line for line in lines)


async def _loses_an_answer(ctx: Context) -> object:
    store, layer = await _with(ctx, _LosesAnswers)
    await store.put_document("a", "notes", "k", "first")
    layer.is_lossy = True
    put = asyncio.create_task(store.put_document("a", "notes", "k", "mine"))
    await layer.has_lost.wait()
    await ctx.store.put_document("a", "notes", "k", "theirs")
    outcome: Any = (await asyncio.gather(put, return_exceptions=True))[0]
    found: Any = await ctx.store.load_document("a", "notes", "k")
    return type(outcome).__name__, found.value


async def _takes_after_expiry(ctx: Context) -> object:
    tokens = []
    for _ in range(3):
        lease = await ctx.store.acquire_agent_lock("a", ttl_ms=50)
        tokens.append(lease.token)
        if len(tokens) == 1:
            await lease.release()
        else:
            await asyncio.sleep(0.1)
    return tokens[0] < tokens[1], tokens[1] < tokens[2]


async def _loads_of_two_tenants(ctx: Context) -> object:
    store, _ = await _with(ctx, _SlowToRead)
    views = [store.scoped(name) for name in ("acme", "globex")]
    for view, title in zip(views, ("x", "y"), strict=True):
        await view.save_todos("a", samples.todos(title))
    return [found and found.todos[0].title for found in await asyncio.gather(*(v.load_todos("a") for v in views))]
