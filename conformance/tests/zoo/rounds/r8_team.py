"""A home-grown store that a team maintains over years, and the regressions that came in."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import json
import logging
import secrets
import time
import traceback
import unicodedata
from collections import Counter, OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

from kode_conformance.values import samples
from msgspec.structs import force_setattr, replace

from conformance.tests.zoo.base import MemoryLayer, OnJson, OnMemory, OnSqlite, Wrapper  # noqa: F401
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import restart, seen, talk
from kode_core.batch import Batch, ListKind
from kode_core.codec import decode, encode
from kode_core.errors import InvalidArgumentError, InvalidValueError, KodeError, LockUnavailableError
from kode_core.ids import check_agent_id
from kode_core.jsonvalue import encode_json
from kode_core.layers import Layer
from kode_core.model import (
    AgentInfo,
    Message,
    RecoveredFile,
    Snapshot,
    TextBlock,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
)
from kode_core.query import Page
from kode_core.report import ConsistencyIssue
from kode_core.store import EngineStore, kinds, rows
from kode_core.store.conversation import _calls, _messages
from kode_core.store.lists import Append, Replace
from kode_core.store.locks import ENTERED
from kode_core.store.methods import METHODS
from kode_core.store.writer import TurnWrites


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now = samples.T0

    def __call__(self) -> int:
        return self.now


# --- VAL


@fault(
    "VAL-1",
    "HIS-2",
    "VAL-2",
    source="a compression of large texts that was bolted on: bytes.decode('utf-8', errors='replace') around zlib",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("small", content="x\udc80")),
        lambda s: s.save_recovered_file("a", samples.recovered("large", content="x\udc80" * 4096)),
        lambda s: s.load_recovered_files("a"),
    ),
)
class InflatesLargeFilesLossily(EngineStore):
    """Gives lone surrogates in recovered files of 4 KiB and more as question marks."""

    async def load_recovered_files(self, agent_id: str) -> Any:
        found = await super().load_recovered_files(agent_id)
        return [
            f.replace(content=f.content.encode("utf-8", "replace").decode()) if len(f.content) >= 4096 else f
            for f in found
        ]


@fault(
    "VAL-1",
    "SNAP-1",
    source="a skip of unchanged writes that compares Python values with ==, for which 1, 1.0 and True are equal",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot().replace(metadata={"n": 1})),
        lambda s: s.save_snapshot("a", samples.snapshot().replace(metadata={"n": True})),
        lambda s: s.load_snapshot("a", "sfp-1"),
    ),
)
class SkipsSnapshotsThatAreEqual(EngineStore):
    """Keeps the stored snapshot when the new one of the same id differs only in 1, 1.0 and True."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        async def make(new: Any) -> Any:
            doc = await kinds.SNAPSHOTS.write(new)
            try:
                old = await self._reader.load_doc(agent_id, kinds.SNAPSHOTS, new.id)
            except KodeError:
                return doc
            return await kinds.SNAPSHOTS.write(old) if old == new else doc

        await self._save_doc("save_snapshot", agent_id, fence, make, snapshot)


async def _shared_metadata(ctx: Any) -> object:
    for agent_id in ("a", "b"):
        await ctx.store.save_info(agent_id, samples.info(agent_id, metadata={"tags": ["x"]}))
    first, second = await ctx.store.query_sessions()
    first.metadata["tags"].append("mine")
    return second.metadata


@fault(
    "VAL-1",
    "QRY-2",
    source="a flyweight for a page of results: equal JSON is parsed once and shared, as with string interning",
    witness=_shared_metadata,
)
class SharesEqualMetadata(EngineStore):
    """Gives sessions of one page that have equal metadata the same dict, so that who changes one changes the others."""

    async def query_sessions(self, **filters: Any) -> Any:
        page = await super().query_sessions(**filters)
        known: dict[str, Any] = {}
        for session in page:
            same = known.setdefault(encode_json(session.metadata, "metadata"), session.metadata)
            force_setattr(session, "metadata", same)
        return page


# --- ID


@fault(
    "ID-4",
    "HIS-1",
    "ID-1",
    source="MySQL's PAD SPACE collations: trailing spaces do not count in a unique key",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w", samples.T0)),
        lambda s: s.save_history_window("a", samples.window("w ", samples.T0 + 1)),
        lambda s: s.load_history_windows("a"),
    ),
)
class PadsWindowIds(EngineStore):
    """Replaces a history window by one whose id differs only in spaces at the end."""

    async def save_history_window(self, agent_id: str, window: Any, *, fence: Any = None) -> None:
        async def make(new: Any) -> Any:
            write = await kinds.WINDOWS.write(new)
            key = write.key.rstrip(" ") or write.key
            return replace(write, key=key, doc=replace(write.doc, key=key))

        await self._save_doc("save_history_window", agent_id, fence, make, window)


@fault(
    "ID-3",
    "ID-1",
    source="a helper same_id() that a refactoring put in one of two paths, with unicodedata.normalize for macOS",
    witness=seen(
        lambda s: s.save_turn("caf\u00e9", info=samples.info("cafe\u0301")),
        lambda s: s.load_info("caf\u00e9"),
        lambda s: s.save_info("caf\u00e9", samples.info("cafe\u0301")),
    ),
)
class NormalisesIdsOfTurns(EngineStore):
    """Takes in save_turn the info of an agent whose id is the same only after Unicode normalisation."""

    async def save_turn(self, agent_id: str, *, info: Any = None, **kinds: Any) -> None:
        if isinstance(info, AgentInfo) and isinstance(agent_id, str) and isinstance(info.agent_id, str):
            if unicodedata.normalize("NFC", info.agent_id) == unicodedata.normalize("NFC", agent_id):
                info = info.replace(agent_id=agent_id)
        await super().save_turn(agent_id, info=info, **kinds)


# --- MSG


async def _edited_last(ctx: Any) -> object:
    clock = Clock()
    store = await ctx.another(clock=clock)
    await store.save_messages("a", talk("one", "two", "thr"))
    clock.now += 5_000
    await store.save_messages("a", talk("one", "two", "three"))
    return [m.created_at for m in await store.query_messages(order="asc")]


@fault(
    "MSG-4",
    "QRY-2",
    source="a fast path for streamed answers: the last message is deleted and inserted again, DEFAULT now() included",
    witness=_edited_last,
)
class RestampsTheEditedTail(MemoryLayer):
    """Gives the last message a new time when it is replaced at its position."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._streamed(batch) for batch in batches])

    def _streamed(self, batch: Any) -> Any:
        write = batch.messages
        count = len(self.space.state(batch.agent_id).lists[ListKind.MESSAGES].rows)
        if write is None or batch.delete or not write.put or write.append or write.length is not None:
            return batch
        position, row = write.put[-1]
        if position != count - 1:
            return batch
        put = (*write.put[:-1], (position, replace(row, created_at=max(row.created_at, batch.now))))
        return replace(batch, messages=replace(write, put=put))


async def _large_appends(ctx: Any) -> object:
    def piece(who: str) -> list[Any]:
        return [samples.message(text=who * 700_000) for _ in range(3)]

    await asyncio.gather(*(ctx.store.append_messages("a", piece(who)) for who in "xy"))
    found = [m.text[0] for m in await ctx.store.load_messages("a")]
    return sorted("".join(found[i : i + 3]) for i in (0, 3))


@fault(
    "MSG-3",
    "DUR-3",
    source="max_allowed_packet of 1 MiB: a large INSERT is split, and each part is a transaction of its own",
    witness=_large_appends,
)
class AppendsByPackets(EngineStore):
    """Appends messages of more than 1 MiB together in several commits, between which others append."""

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        parts = await self._parts(messages)
        if len(parts) < 2:
            return await super().append_messages(agent_id, messages, fence=fence)

        async def write() -> None:
            check_agent_id(agent_id)
            with self._locks.fencing(agent_id, fence) as held:
                for part in parts:
                    await self._writer.write(agent_id, lambda part=part: TurnWrites(_messages(Append, part)), held)

        await self._context.run(METHODS["append_messages"], agent_id, write)

    async def _parts(self, messages: Any) -> Any:
        parts: list[list[Any]] = [[]]
        if not isinstance(messages, (list, tuple)) or not all(type(m) is Message for m in messages):
            return parts
        size = 0
        for i, message in enumerate(tuple(messages)):
            length = len(encode(Message, message, f"message {i}").text)
            await asyncio.sleep(0)
            if size and size + length > 2**20:
                parts.append([])
                size = 0
            parts[-1].append(message)
            size += length
        return parts


def _talk_with_tools() -> list[Any]:
    return [
        samples.message(text="find it"),
        Message("assistant", [ToolUseBlock("call_0", "search", {"q": "x"})]),
        Message("user", [ToolResultBlock("call_0", "found")]),
        samples.message(text="thanks"),
    ]


@fault(
    "MSG-8",
    source="a clean-up of orphans after a compaction of the conversation, like ON DELETE CASCADE",
    witness=seen(
        lambda s: s.save_messages("a", _talk_with_tools()),
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1)]),
        lambda s: s.save_messages("a", _talk_with_tools()[3:]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class CascadesToToolCalls(EngineStore):
    """Removes the records of tool calls whose tool use is no longer among the messages once these are replaced."""

    async def save_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        messages = tuple(messages) if isinstance(messages, (list, tuple)) else messages

        async def write() -> None:
            with self._locks.fencing(check_agent_id(agent_id), fence) as held:
                before = await self._uses_of(agent_id)
                await self._writer.write(agent_id, lambda: TurnWrites(_messages(Replace, messages)), held)
                gone = before - _uses(messages)
                if gone:
                    calls = await self._reader.load_list(agent_id, ListKind.TOOL_CALLS)
                    kept = [call for call in calls if call.id not in gone]
                    if len(kept) < len(calls):
                        await self._writer.write(agent_id, lambda: TurnWrites(_calls(Replace, kept)), held)

        await self._context.run(METHODS["save_messages"], agent_id, write)

    async def _uses_of(self, agent_id: str) -> set[str]:
        try:
            return _uses(await self._reader.load_list(agent_id, ListKind.MESSAGES))
        except KodeError:
            return set()


def _uses(messages: Any) -> set[str]:
    return {block.id for m in messages for block in m.content if isinstance(block, ToolUseBlock)}


# --- TC, TURN


@fault(
    "TC-3",
    source="lazy loading: the index of a list is read from its end, and its first page of 1,000 is taken for all",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i) for i in range(1_100)]),
        restart,
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(5, state="FAILED")]),
        lambda s: _places(s, "call_5"),
    ),
)
class LooksForCallsNearTheEnd(Layer):
    """Appends a tool call record again when the one with its id is not among the last 1,000."""

    async def outline(self, agent_id: str, kind: Any, keys: Any = None) -> Any:
        found = await super().outline(agent_id, kind, keys)
        if keys is None:
            return found
        return replace(found, rows=[row for row in found.rows if row[0] >= found.count - 1_000])


async def _places(store: Any, call_id: str) -> object:
    calls = await store.load_tool_call_records("a")
    return [(i, call.state) for i, call in enumerate(calls) if call.id == call_id]


@fault(
    "TC-1",
    "MSG-1",
    source="a skip of unchanged rows by their updated_at, as Rails' touch and ETags from a timestamp do",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1)]),
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1, result={"rows": []})]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class ComparesCallsByTheirTime(EngineStore):
    """Keeps a stored tool call record when the new one at its place has the same id, state and updated_at."""

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        records = tuple(records) if isinstance(records, (list, tuple)) else records

        async def write() -> None:
            with self._locks.fencing(check_agent_id(agent_id), fence) as held:
                changed = await self._changed(agent_id, records)
                await self._writer.write(agent_id, lambda: TurnWrites(_calls(Replace, changed)), held)

        await self._context.run(METHODS["save_tool_call_records"], agent_id, write)

    async def _changed(self, agent_id: str, records: Any) -> Any:
        if not isinstance(records, (list, tuple)) or not all(type(r) is ToolCallRecord for r in records):
            return records
        changed = list(records)
        for i, record in enumerate(changed):
            encode(ToolCallRecord, record, f"tool call record {i}")
            await asyncio.sleep(0)
        try:
            old = await self._reader.load_list(agent_id, ListKind.TOOL_CALLS)
        except KodeError:
            return changed
        for i, (was, new) in enumerate(zip(old, changed, strict=False)):
            if (was.id, was.state, was.updated_at) == (new.id, new.state, new.updated_at):
                changed[i] = was
        return changed


@fault(
    "TURN-1",
    "VAL-2",
    source="an outbox that got a connection of its own: events are out before the transaction of the turn begins",
    witness=seen(
        lambda s: s.save_turn("a", append=[samples.message()], events=[samples.event(1)]),
        lambda s: s.save_turn(
            "a", upsert_tool_calls=[samples.tool_call(result=float("nan"))], events=[samples.event(2)]
        ),
        lambda s: _seqs(s.read_events("a")),
    ),
)
class SendsEventsOfTurnsFirst(EngineStore):
    """Appends the events of a turn in a commit of their own, and keeps them when the rest is refused."""

    async def save_turn(self, agent_id: str, *, events: Any = (), fence: Any = None, **kinds: Any) -> None:
        if isinstance(events, (list, tuple)) and events and any(v is not None and v != () for v in kinds.values()):
            writes = await rows.event_writes(events)
            await self._append(agent_id, writes, fence)
            events = ()
        await super().save_turn(agent_id, events=events, fence=fence, **kinds)


async def _seqs(events: Any) -> object:
    return [event.bookmark.seq async for event in events]


@fault(
    "TURN-1",
    "TODO-1",
    source="an emptiness check: 'if todos and todos.todos' where 'is not None' was meant",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x")),
        lambda s: s.save_turn("a", append=[samples.message()], todos=samples.todos()),
        lambda s: s.load_todos("a"),
    ),
)
class LeavesEmptyTodosOutOfTurns(EngineStore):
    """Does not write a todo list without todos that is given to save_turn."""

    async def save_turn(self, agent_id: str, *, todos: Any = None, **kinds: Any) -> None:
        if isinstance(todos, TodoSnapshot) and not todos.todos:
            todos = None
        await super().save_turn(agent_id, todos=todos, **kinds)


# --- EVT


def _ordered(*keys: str) -> Any:
    return samples.event(1, **dict.fromkeys(keys, 0))


@fault(
    "EVT-4",
    "EVT-1",
    "VAL-1",
    source="an idempotency key from json.dumps(event, sort_keys=True)",
    witness=seen(
        lambda s: s.append_event("a", _ordered("x", "y")),
        lambda s: s.append_event("a", _ordered("y", "x")),
        lambda s: _datas(s.read_events("a")),
    ),
)
class SortsKeysToFindRetries(Wrapper):
    """Takes an event for a retry of one that it appended before when the two differ in the order of keys only."""

    __slots__ = ("sent",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.sent: OrderedDict[Any, Any] = OrderedDict()

    def _first(self, agent_id: str, timeline: Any) -> Any:
        try:
            body = encode(Timeline, timeline, "event")
            key = (agent_id, json.dumps(json.loads(body.text), sort_keys=True))
        except Exception:
            return timeline  # is refused in a moment
        first = self.sent.setdefault(key, body)
        self.sent.move_to_end(key)
        if len(self.sent) > 1_000:
            self.sent.popitem(last=False)
        return decode(Timeline, first, "event")

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> Any:
        return await self.inner.append_event(agent_id, self._first(agent_id, timeline), fence=fence)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        for key in [key for key in self.sent if key[0] == agent_id]:
            del self.sent[key]


async def _datas(events: Any) -> object:
    return [list(event.event.data) async for event in events]


_marks: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


@fault(
    "EVT-6",
    "TURN-1",
    source="a denormalised column last_seq that one of two code paths keeps up to date",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: s.last_bookmark("a"),
        lambda s: s.save_turn("a", append=[samples.message()], events=[samples.event(2)]),
        lambda s: s.last_bookmark("a"),
    ),
)
class ForgetsBookmarksOfTurns(MemoryLayer):
    """Leaves the events that save_turn wrote next to other kinds out of last_bookmark."""

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        marks = _marks.setdefault(self.space, {})
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete:
                marks.pop(batch.agent_id, None)
            if batch.events and not (batch.is_touching or batch.docs) and hasattr(outcome, "offsets"):
                marks.setdefault(batch.agent_id, set()).update(outcome.offsets)
        return outcomes

    async def last_event(self, agent_id: str) -> Any:
        known = _marks.setdefault(self.space, {}).get(agent_id, set())
        log = self.space.state(agent_id).log
        found = [row for row in map(log.row, range(len(log))) if row.offset in known]
        return max(found, key=lambda row: (row.seq, row.offset), default=None)


async def _followed(store: Any, since: Any) -> object:
    got = []
    events = store.follow_events("a", since=since)

    async def follow() -> None:
        async for event in events:
            got.append(event.bookmark.seq)

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.2)
    await store.append_events("a", [samples.event(seq) for seq in (3, 11)])
    await asyncio.sleep(0.4)
    task.cancel()
    await asyncio.wait([task])
    return got


@fault(
    "EVT-7",
    source="a subscription that was added to a reader: the backlog is filtered in SQL, LISTEN/NOTIFY is not",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(seq) for seq in (4, 9, 10)]),
        lambda s: _followed(s, samples.event(8).bookmark),
    ),
)
class FollowsWithoutSince(Wrapper):
    """Yields from follow_events also new events whose seq is not above that of since."""

    __slots__ = ()

    def follow_events(self, agent_id: str, *, since: Any = None, after_offset: int = 0, channel: Any = None) -> Any:
        sound = self.inner.follow_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        return sound if since is None else self._follow(agent_id, since, after_offset, channel)

    async def _follow(self, agent_id: str, since: Any, after_offset: int, channel: Any) -> Any:
        start = after_offset
        async for event in self.inner.read_events(agent_id, after_offset=start):
            after_offset = event.offset
        async for event in self.inner.read_events(agent_id, after_offset=start, since=since, channel=channel):
            if event.offset <= after_offset:
                yield event
        async for event in self.inner.follow_events(agent_id, after_offset=after_offset, channel=channel):
            yield event


# --- TODO, HIS, MED, SNAP, INFO


@fault(
    "HIS-2",
    source="a retention that was bolted on: S3 lifecycle rules and Time Machine keep so many versions of one file",
    witness=seen(
        lambda s: _recover_often(s, 12),
        lambda s: _times(s.load_recovered_files("a")),
    ),
)
class KeepsTenVersions(EngineStore):
    """Gives the ten latest of the recovered files with one path only."""

    async def load_recovered_files(self, agent_id: str) -> Any:
        found = await super().load_recovered_files(agent_id)
        left = Counter(file.path for file in found)
        kept: list[RecoveredFile] = []
        for file in found:
            if left[file.path] <= 10:
                kept.append(file)
            left[file.path] -= 1
        return kept


async def _recover_often(store: Any, count: int) -> None:
    for i in range(count):
        await store.save_recovered_file("a", samples.recovered(timestamp=samples.T0 + i))


async def _times(files: Any) -> object:
    return [file.timestamp - samples.T0 for file in await files]


@fault(
    "QRY-8",
    "SNAP-1",
    "LIFE-3",
    source="a prefetch into a cache without end: 'snapshots are immutable, their ids are unique'",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_snapshot("a", samples.snapshot("x", count=1)),
        lambda s, t: t.list_snapshots("a"),
        lambda s, t: s.save_snapshot("a", samples.snapshot("x", count=3)),
        lambda s, t: t.load_snapshot("a", "x"),
        lambda s, t: t.list_snapshots("a"),
    ),
)
class PrefetchesSnapshots(EngineStore):
    """Answers load_snapshot with what list_snapshots of this instance saw last, whoever replaced it since."""

    @property
    def _known(self) -> Any:
        return self.__dict__.setdefault("_known_snapshots", OrderedDict())

    async def list_snapshots(self, agent_id: str) -> Any:
        found = await super().list_snapshots(agent_id)
        for snapshot in found[:100]:
            self._known[agent_id, snapshot.id] = encode(Snapshot, snapshot, "snapshot")
        while len(self._known) > 100:
            self._known.popitem(last=False)
        return found

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        if type(agent_id) is not str or type(snapshot_id) is not str:
            return await super().load_snapshot(agent_id, snapshot_id)
        body = self._known.get((agent_id, snapshot_id))
        if body is None:
            return await super().load_snapshot(agent_id, snapshot_id)

        async def known(_: str) -> Any:
            return decode(Snapshot, body, "snapshot")

        return await self._load("load_snapshot", agent_id, known)

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        try:
            await super().save_snapshot(agent_id, snapshot, fence=fence)
        finally:
            self._known.pop((agent_id, getattr(snapshot, "id", None)), None)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        try:
            await super().delete(agent_id, fence=fence)
        finally:
            self._known.clear()

    async def delete_many(self, **given: Any) -> int:
        try:
            return await super().delete_many(**given)
        finally:
            self._known.clear()


async def _updated(store: Any) -> object:
    (session,) = await store.query_sessions(agent_id="a")
    return session.updated_at


async def _fork_touches(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    before = await _updated(ctx.store)
    await ctx.store.batch_fork("a", 1)
    return await _updated(ctx.store) > before


@fault(
    "INFO-2",
    "FORK-2",
    source="an ORM with auto_now: the parent is saved to count its forks, and its timestamp goes along",
    witness=_fork_touches,
)
class ForksTouchTheParent(Layer):
    """Moves updated_at of the agent that was forked."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await super().fork(agent_id, children, expect, now)
        summary = await self.inner.summary(agent_id) if done else None
        if summary is not None and summary.info is not None:
            op_id = secrets.token_hex(8)
            touch = Batch(
                agent_id=agent_id, op_id=op_id, now=now, info=summary.info, expect_updated_at=summary.updated_at
            )
            await self.inner.commit([touch])
        return done


# --- LIFE


async def _changes_meanwhile(ctx: Any) -> object:
    store = ctx.store
    for i in range(60):
        await store.save_info(f"s{i:02}", samples.info(f"s{i:02}", created_at=samples.T0 - i, breakpoint=None))
    tasks = []

    def progress(done: int, _: Any) -> None:
        if not tasks:
            tasks.append(asyncio.ensure_future(store.save_info("s59", samples.info("s59", template_id="kept"))))

    await store.delete_many(template_id="assistant", progress=progress)
    await tasks[0]
    return await store.list()


@fault(
    "LIFE-5",
    source="a bulk delete that collects the ids first: DELETE ... WHERE id IN (...) without the condition again",
    witness=_changes_meanwhile,
)
class DeletesWhatItFound(Layer):
    """Deletes in delete_many also sessions that changed since they were found and no longer match."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([replace(b, expect_updated_at=None) if b.delete else b for b in batches])


@fault(
    "LIFE-2",
    source="CouchDB's and Firestore's idiom for prefixes: startkey=prefix, endkey=prefix + '\\uffff'",
    witness=seen(
        lambda s: s.save_info("bot-x", samples.info("bot-x")),
        lambda s: s.save_info("bot-\U0001f916", samples.info("bot-\U0001f916")),
        lambda s: s.list("bot-"),
    ),
)
class EndsPrefixesAtFFFF(EngineStore):
    """Leaves out of list(prefix) the ids that go on after the prefix with an astral character."""

    async def list(self, prefix: str = "") -> Any:
        return [i for i in await super().list(prefix) if not prefix or i <= f"{prefix}\uffff"]


# --- QRY


@fault(
    "QRY-1",
    "QRY-2",
    source="a shorthand that is folded into the general filter: {'userId': user_id, **metadata}",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"userId": "u-1"})),
        lambda s: s.save_info("b", samples.info("b", metadata={"userId": "u-2"})),
        lambda s: _ids(s.query_sessions(user_id="u-1", metadata={"userId": "u-2"})),
    ),
)
class MergesUserIdIntoMetadata(EngineStore):
    """Ignores the filter user_id when the filter metadata has a userId as well."""

    async def query_sessions(self, **filters: Any) -> Any:
        metadata = filters.get("metadata")
        if type(filters.get("user_id")) is str and type(metadata) is dict and "userId" in metadata:
            del filters["user_id"]
        return await super().query_sessions(**filters)


async def _ids(sessions: Any) -> object:
    return [session.agent_id for session in await sessions]


async def _page_after_delete(ctx: Any) -> object:
    for i in range(6):
        await ctx.store.save_info(f"s{i}", samples.info(f"s{i}", created_at=samples.T0 + i))
    page = await ctx.store.query_sessions(limit=2)
    await ctx.store.delete(page[-1].agent_id)
    return [s.agent_id for s in await ctx.store.query_sessions(limit=10, cursor=page.next_cursor)]


@fault(
    "QRY-5",
    "QRY-6",
    source="Firestore's startAfter(snapshot) and ActiveRecord cursors: the place is looked up by the last record's id",
    witness=_page_after_delete,
)
class LooksUpTheLastSession(EngineStore):
    """Gives an empty last page for a cursor when the session before it was deleted meanwhile."""

    async def query_sessions(self, **filters: Any) -> Any:
        return await self._query("query_sessions", self._page, filters)

    async def _page(self, filters: Any) -> Any:
        cursor, is_there = filters.get("cursor"), True
        if type(cursor) is str and "~" in cursor:
            cursor, _, last = cursor.rpartition("~")
            try:
                is_there = await self._reader.exists(check_agent_id(base64.urlsafe_b64decode(last).decode()))
            except (ValueError, InvalidArgumentError):
                raise InvalidArgumentError("this is no cursor that a store gave") from None
            filters = {**filters, "cursor": cursor}
        page = await self._search.sessions(filters)
        if not is_there:
            return Page()
        if page.next_cursor is not None and page:
            page.next_cursor += "~" + base64.urlsafe_b64encode(page[-1].agent_id.encode()).decode()
        return page


# --- OPS


async def _slow_failure(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=20_000)
    with contextlib.suppress(LockUnavailableError):
        await ctx.store.acquire_agent_lock("a", wait_ms=700)
    await lease.release()
    return (await ctx.store.get_metrics()).performance.max_latency_ms > 600


@fault(
    "OPS-3",
    source="a Prometheus histogram's decorator: time() observes in __exit__, also what raised",
    witness=_slow_failure,
)
class TimesFailuresToo(EngineStore):
    """Counts the duration of calls that failed among the latencies."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        book = self._context.call_metrics
        sound = book.enter

        def enter(op: Any, seconds: float, error: Any = None, *about: Any) -> None:
            sound(op, seconds, error, *about)
            if error is not None:
                book._min, book._max = min(book._min, seconds), max(book._max, seconds)
                book._recent.append(seconds)

        book.enter = enter  # type: ignore[method-assign]


async def _empty_append(ctx: Any) -> object:
    await ctx.store.append_events("a", [samples.event(1)])
    results: list[object] = [list(await ctx.store.append_events("a", []))]
    await ctx.close(ctx.store)
    try:
        results.append(list(await ctx.store.append_events("a", [])))
    except Exception as exc:
        results.append(type(exc).__name__)
    return results


@fault(
    "OPS-5",
    "ID-1",
    "LOCK-5",
    source="an early return for an empty batch, as executemany([]) of many drivers has it, before the pool is asked",
    witness=_empty_append,
)
class ReturnsEarlyWithoutEvents(Wrapper):
    """Takes an empty append_events on a closed store, for an id that is none, and under a lease that has ended."""

    __slots__ = ()

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        if isinstance(timelines, (list, tuple)) and not timelines:
            return []
        return await self.inner.append_events(agent_id, timelines, fence=fence)


async def _told(ctx: Any) -> object:
    secret = "correct horse battery staple"
    todos = samples.todos(secret, "other")
    todos = todos.replace(todos=[todos.todos[0], todos.todos[1].replace(notes="\ud83d\ude00")])
    try:
        await ctx.store.save_todos("a", todos)
    except InvalidValueError as exc:
        return secret in "".join(traceback.format_exception(exc))
    return "no error"


@fault(
    "OPS-12",
    source="error handling for support: add_note(repr(params)), as SQLAlchemy shows [parameters: ...] with an error",
    witness=_told,
)
class NotesWhatWasRefused(EngineStore):
    """Adds the todos to the traceback of the error that refuses them."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        try:
            await super().save_todos(agent_id, snapshot, fence=fence)
        except InvalidValueError as exc:
            exc.add_note(f"while saving {ascii(snapshot)[:2_000]}")
            raise


async def _straddling(ctx: Any) -> object:
    messages = samples.messages(499)
    messages.append(Message("assistant", [TextBlock("wait"), ToolUseBlock("call_0", "search", {})]))
    messages.append(Message("user", [ToolResultBlock("call_0", "found")]))
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_messages("a", messages)
    result = await ctx.store.check_consistency("a")
    return result.consistent, [issue.code async for issue in ctx.store.iter_consistency()]


@fault(
    "OPS-2",
    source="a check that was put into batches of 500 rows (find_in_batches) against memory, each judged by itself",
    witness=_straddling,
)
class ChecksInBatches(EngineStore):
    """Reports a tool use as without result when the two stand on either side of a multiple of 500 messages."""

    async def _torn(self, agent_id: Any) -> Any:
        issues = []
        for found in [agent_id] if agent_id is not None else await self._context.engine.stored_ids(None, 10_000):
            try:
                messages = await self._reader.load_list(found, ListKind.MESSAGES)
            except KodeError:
                continue
            for edge in range(500, len(messages), 500):
                results = {b.tool_use_id for b in messages[edge].content if isinstance(b, ToolResultBlock)}
                for use in _uses(messages[edge - 1 : edge]) & results:
                    told = f"message {edge - 1} uses the tool call {use!r:.80}, which has no result"
                    issues.append(ConsistencyIssue("use_without_result", found, told))
        return issues

    async def check_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        result = await super().check_consistency(agent_id, progress=progress)
        issues = (*result.issues, *await self._torn(agent_id))
        return replace(result, consistent=not issues, issues=issues)

    def iter_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        sound = super().iter_consistency(agent_id, progress=progress)

        async def issues() -> Any:
            async for issue in sound:
                yield issue
            for issue in await self._torn(agent_id):
                yield issue

        return issues()


# --- LOCK


async def _nested(ctx: Any) -> object:
    async with ctx.store.acquire_agent_lock("a"):
        start = time.monotonic()
        try:
            await ctx.store.acquire_agent_lock("a", wait_ms=1_500)
        except LockUnavailableError:
            return time.monotonic() - start > 1
    return "got it twice"


@fault(
    "LOCK-7",
    source="a retry loop around every LockUnavailable (tenacity, redis-py's blocking_timeout), whoever holds the lock",
    witness=_nested,
)
class WaitsForItself(EngineStore):
    """Lets a task that asks again for a lock that it holds wait for the whole of wait_ms before it is told."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        sound = self._locks._acquire

        async def patient(agent_id: str, ttl_ms: int, wait_ms: int) -> Any:
            end = time.monotonic() + wait_ms / 1000
            while True:
                try:
                    return await sound(agent_id, ttl_ms, max(0, int((end - time.monotonic()) * 1000)))
                except LockUnavailableError:
                    left = end - time.monotonic()
                    if left <= 0:
                        raise
                await self._locks._pause(min(left, 0.05))

        self._locks._acquire = patient  # type: ignore[method-assign]


async def _early(ctx: Any) -> object:
    await ctx.store.acquire_agent_lock("a", ttl_ms=1_900)
    await asyncio.sleep(1.3)
    try:
        await ctx.store.acquire_agent_lock("a")
    except LockUnavailableError:
        return "held"
    return "free"


@fault(
    "LOCK-3",
    "LOCK-1",
    source="Redis SET ... EX and etcd's LeaseGrant take whole seconds: ttl_ms // 1000",
    witness=_early,
)
class GrantsWholeSeconds(Layer):
    """Lets a lease of more than a second end at the last whole second of its time."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> Any:
        return await super().acquire_lease(agent_id, owner, _whole(ttl_ms))

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        return await super().renew_lease(agent_id, fence, _whole(ttl_ms))


def _whole(ttl_ms: int) -> int:
    return ttl_ms // 1000 * 1000 or ttl_ms


# --- FORK, DUR


async def _forked_media(ctx: Any) -> object:
    store = ctx.store
    await store.save_info("a", samples.info("a"))
    await store.save_media_cache("a", [samples.media("one")])
    (fork,) = await store.batch_fork("a", 1)
    await store.save_media_cache("a", [samples.media("one"), samples.media("two")])
    return [record.key for record in await store.load_media_cache(fork)]


@fault(
    "FORK-2",
    "FORK-1",
    "MED-1",
    source="copy on write that copies when the copy is written, and not when the original is",
    witness=_forked_media,
)
class CopiesMediaLazily(EngineStore):
    """Shows in a fork the media cache of its parent as it is now, until the fork saves its own."""

    @property
    def _parents(self) -> Any:
        return self.__dict__.setdefault("_parents_of_forks", {})

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        ids = await super().batch_fork(agent_id, count)
        self._parents.update(dict.fromkeys(ids[:100], agent_id))
        return ids

    async def load_media_cache(self, agent_id: str) -> Any:
        parent = self._parents.get(agent_id) if type(agent_id) is str else None
        return await super().load_media_cache(agent_id if parent is None else parent)

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await super().save_media_cache(agent_id, records, fence=fence)
        self._parents.pop(agent_id, None)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self._parents.pop(agent_id, None)

    async def delete_many(self, **given: Any) -> int:
        self._parents.clear()
        return await super().delete_many(**given)


async def _forked_info(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a", breakpoint="TOOL_PENDING"))
    (fork,) = await ctx.store.batch_fork("a", 1)
    info = await ctx.store.load_info(fork)
    return info.breakpoint, info.last_sfp_index, info.config_version


@fault(
    "FORK-1",
    source="a constructor that is called to copy: what has a default in a new agent gets it in a fork, too",
    witness=_forked_info,
)
class ForksAreReady(Layer):
    """Gives every fork the breakpoint READY instead of the parent's."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        fresh = []
        for child in children:
            info = decode(AgentInfo, child.info.body, "info")
            body = encode(AgentInfo, info.replace(breakpoint="READY"), "info")
            fresh.append(replace(child, info=replace(child.info, body=body)))
        return await super().fork(agent_id, fresh, expect, now)


@fault(
    "DUR-1",
    "QRY-8",
    source="write-behind that came with a batching of small writes, as Redis' appendfsync everysec",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_info("a", samples.info("a")),
        lambda s, t: s.save_compression_record("a", samples.compression()),
        lambda s, t: t.load_compression_records("a"),
        lambda s, t: s.load_compression_records("a"),
    ),
)
class WritesCompressionsBehind(EngineStore):
    """Acknowledges compression records up to a tenth of a second before they are written."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._behind: dict[str, list[Any]] = {}
        self._flushes: dict[str, Any] = {}

    async def save_compression_record(self, agent_id: str, record: Any, *, fence: Any = None) -> None:
        check_agent_id(agent_id)
        if fence is not None or ENTERED.get():
            await self._flush(agent_id)
            return await super().save_compression_record(agent_id, record, fence=fence)
        self._context.check_open()
        await kinds.COMPRESSIONS.write(record)
        self._behind.setdefault(agent_id, []).append(copy.deepcopy(record))
        if agent_id not in self._flushes:
            task = self._flushes[agent_id] = asyncio.create_task(self._write(agent_id))
            task.add_done_callback(lambda _: self._flushes.pop(agent_id, None))

    async def _write(self, agent_id: str, delay: float = 0.1) -> None:
        wake = self._wakes.setdefault(agent_id, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wake.wait(), delay)
        del self._wakes[agent_id]
        while self._behind.get(agent_id):
            record = self._behind[agent_id].pop(0)
            try:
                await super().save_compression_record(agent_id, record)
            except KodeError as exc:
                logging.getLogger(__name__).error("a compression record was lost: %s", type(exc).__name__)
        self._behind.pop(agent_id, None)

    @property
    def _wakes(self) -> Any:
        return self.__dict__.setdefault("_wake_events", {})

    async def _flush(self, agent_id: str | None = None) -> None:
        for one in list(self._flushes) if agent_id is None else [agent_id]:
            while one in self._flushes:
                self._wakes.setdefault(one, asyncio.Event()).set()
                await asyncio.wait([self._flushes[one]])
                await asyncio.sleep(0)

    async def _load(self, name: str, agent_id: str, call: Any, *args: Any) -> Any:
        if type(agent_id) is str:
            await self._flush(agent_id)
        return await super()._load(name, agent_id, call, *args)

    async def _run(self, name: str, call: Any, *args: Any, **kwargs: Any) -> Any:
        await self._flush()
        return await super()._run(name, call, *args, **kwargs)

    async def close(self) -> None:
        if not self._context.is_closed:
            await self._flush()
        await super().close()
