"""Stores of a company that moves to another database every year; each port has one thing wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from decimal import Context as Digits
from pathlib import Path
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from kode_sqlite.engine import SqliteEngine
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import each, restart, seen, talk, the
from kode_core.batch import Applied, Batch, DocKind, DocWrite, Fence, ListKind, ListWrite, Outcome, Refused
from kode_core.errors import KodeError, LockLostError, LockUnavailableError, PayloadTooLargeError, StoreBusyError
from kode_core.ids import check_agent_id
from kode_core.jsonvalue import decode_json
from kode_core.layers import Layer
from kode_core.metadata import metadata_index
from kode_core.model import (
    HistoryWindow,
    MediaCacheRecord,
    RecoveredFile,
    Snapshot,
    TodoItem,
    TodoSnapshot,
    ToolCallRecord,
)
from kode_core.query import Range
from kode_core.store import EngineStore, kinds
from kode_core.store.writer import Rest, TurnWrites


def _all(cls: type, records: Any) -> bool:
    return isinstance(records, (list, tuple)) and all(type(record) is cls for record in records)


class Commits(MemoryLayer):
    """A layer that sees the state of the space just before and after each batch."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        await asyncio.sleep(0)
        return [self.one(batch) for batch in batches]

    def one(self, batch: Batch) -> Any:
        return self.inner._commit(batch)  # type: ignore[attr-defined]

    def kept(self, name: str) -> dict[Any, Any]:
        """What this fault remembers for all instances of the store."""
        return self.space.__dict__.setdefault(name, {})  # type: ignore[no-any-return]


# --- VAL --------------------------------------------------------------------------------------------------------------

_NUMBER = Digits(prec=38)


def _rounded(value: Any, depth: int = 0) -> Any:
    """*value* with long integers rounded; the same object where there are none."""
    if type(value) is int and abs(value) >= 10**38:
        return int(_NUMBER.create_decimal(value))
    if depth > 100 or type(value) not in (list, dict):
        return value
    old = list(value.values()) if type(value) is dict else value
    new = [_rounded(item, depth + 1) for item in old]
    if all(a is b for a, b in zip(old, new, strict=True)):
        return value
    return dict(zip(value, new, strict=True)) if type(value) is dict else new


@fault(
    "VAL-1",
    "VAL-2",
    source="DynamoDB's type N: 38 significant digits, and a client whose decimal context rounds instead of trapping",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(result={"n": [10**40 + 1, 10**37 + 1]})]),
        lambda s: the("result", s.load_tool_call_records("a")),
    ),
)
class RoundsResultsTo38Digits(EngineStore):
    """Rounds integers of more than 38 digits in the results of tool calls to 38 significant digits."""

    def _fit(self, records: Any) -> Any:
        if not _all(ToolCallRecord, records):
            return records
        fitting = []
        for record in records:
            result = _rounded(record.result)
            fitting.append(record if result is record.result else record.replace(result=result))
        return fitting

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await super().save_tool_call_records(agent_id, self._fit(records), fence=fence)

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await super().upsert_tool_call_records(agent_id, self._fit(records), fence=fence)

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        for name in ("tool_calls", "upsert_tool_calls"):
            if name in given:
                given[name] = self._fit(given[name])
        await super().save_turn(agent_id, **given)


@fault(
    "VAL-3",
    "VAL-1",
    "TODO-1",
    source="Oracle: the empty VARCHAR2 is NULL",
    witness=seen(
        lambda s: s.save_todos("a", TodoSnapshot(todos=[TodoItem(id="1", title="x", notes="")])),
        lambda s: _notes(s),
    ),
)
class ForgetsEmptyNotes(EngineStore):
    """Gives the notes and the assignee of a todo item back as absent when they were the empty string."""

    def _nulled(self, snapshot: Any) -> Any:
        if type(snapshot) is not TodoSnapshot or not _all(TodoItem, snapshot.todos):
            return snapshot
        items = []
        for item in snapshot.todos:
            gone = {name: None for name in ("notes", "assignee") if getattr(item, name) == ""}
            items.append(item.replace(**gone) if gone else item)
        return snapshot.replace(todos=tuple(items))

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await super().save_todos(agent_id, self._nulled(snapshot), fence=fence)

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        if given.get("todos") is not None:
            given["todos"] = self._nulled(given["todos"])
        await super().save_turn(agent_id, **given)


async def _notes(store: Any) -> Any:
    return [item.notes for item in (await store.load_todos("a")).todos]


# --- ID ---------------------------------------------------------------------------------------------------------------


@fault(
    "ID-2",
    "LOCK-1",
    "LOCK-2",
    "OPS-13",
    source="SQL Server's sp_getapplock, which cuts the name of a resource to 255 characters",
    errors=True,
    witness=seen(lambda s: s.acquire_agent_lock("x" * 255 + "1"), lambda s: _can_lock(s, "x" * 255 + "2")),
)
class CutsNamesOfLocks(MemoryLayer):
    """Has one lock for agents whose ids have the first 255 characters in common."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        now = time.monotonic()
        for other, (_, until) in self.space.leases.items():
            if other != agent_id and other[:255] == agent_id[:255] and until > now:
                return None
        return await super().acquire_lease(agent_id, owner, ttl_ms)


async def _can_lock(store: Any, agent_id: str, **options: Any) -> bool:
    try:
        await (await store.acquire_agent_lock(agent_id, **options)).release()
    except LockUnavailableError:
        return False
    return True


@fault(
    "ID-4",
    "HIS-2",
    source="DynamoDB: a sort key has at most 1,024 bytes",
    errors=True,
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("d" * 1024)),
        lambda s: s.save_recovered_file("a", samples.recovered("é" * 513)),
        lambda s: the("path", s.load_recovered_files("a")),
    ),
)
class RefusesLongPaths(EngineStore):
    """Refuses recovered files whose path has more than 1,024 bytes."""

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        if type(file) is RecoveredFile and type(file.path) is str:
            if len(file.path.encode("utf-8", "surrogatepass")) > 1024:
                await kinds.RECOVERED.write(file)
                raise PayloadTooLargeError("the sort key of this item is larger than 1024 bytes")
        await super().save_recovered_file(agent_id, file, fence=fence)


# --- MSG --------------------------------------------------------------------------------------------------------------


async def _read_meanwhile(ctx: Context) -> object:
    torn = set()
    for count in (1000, 2500):
        name = f"a{count}"
        saving = asyncio.ensure_future(ctx.store.save_messages(name, samples.messages(count)))
        while not saving.done():
            torn.add(len(await ctx.store.load_messages(name)) not in (0, count))
            await asyncio.sleep(0)
        await saving
        torn.add(len(await ctx.store.load_messages(name)) != count)
    return torn


@fault(
    "MSG-1",
    "TURN-1",
    "DUR-3",
    source="MongoDB's maxWriteBatchSize of 1,000: drivers cut a bulk of inserts into several, each for itself",
    witness=_read_meanwhile,
)
class SavesNewMessagesByThousands(Layer):
    """Writes the new messages of a saved list a thousand at a time, so that others, and a crash, see a part of them."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return [await self._in_parts(batch) for batch in batches]

    async def _in_parts(self, batch: Batch) -> Outcome:
        write = batch.messages
        if write is None or write.expect is None or len(write.append) <= 1000:
            return (await super().commit([batch]))[0]
        (first,) = await super().commit([replace(batch, messages=replace(write, append=write.append[:1000]))])
        outcome = first
        for i in range(1000, len(write.append), 1000):
            if not isinstance(outcome, Applied):
                break
            more = ListWrite(expect=outcome.messages.version, append=write.append[i : i + 1000])
            part = Batch(
                agent_id=batch.agent_id, op_id=f"{batch.op_id}-{i}", now=batch.now, fence=batch.fence, messages=more
            )
            (outcome,) = await super().commit([part])
        if isinstance(outcome, Applied) and isinstance(first, Applied):
            return replace(first, messages=outcome.messages)
        return outcome


async def _clock_steps_back(ctx: Context) -> object:
    early = await ctx.another(clock=lambda: samples.T0)
    late = await ctx.another(clock=lambda: samples.T0 + 60_000)
    await late.append_messages("a", talk("1"))
    await early.append_messages("a", talk("2"))
    await early.save_turn("a", append=talk("3"), upsert_tool_calls=[samples.tool_call()])
    found = await early.query_messages(agent_id="a")
    return [(m.position, m.created_at - samples.T0) for m in found]


@fault(
    "MSG-4",
    source="Redis: the time of a new primary after a failover; only one of two Lua scripts looks at the last message",
    witness=_clock_steps_back,
)
class TurnsTrustTheClock(Commits):
    """Gives messages that are appended by a turn with tool calls the clock's time, also when it has stepped back."""

    def one(self, batch: Batch) -> Any:
        outcome = super().one(batch)
        write = batch.messages
        if isinstance(outcome, Applied) and write is not None and write.append and batch.tool_calls is not None:
            if write.expect is None and write.length is None:
                state = self.space.states[batch.agent_id].lists[ListKind.MESSAGES]
                first = len(state.rows) - len(write.append)
                state.rows[first:] = [replace(r, created_at=min(r.created_at, batch.now)) for r in state.rows[first:]]
        return outcome


# --- TC ---------------------------------------------------------------------------------------------------------------


@fault(
    "TC-3",
    source="PostgreSQL: ON CONFLICT cannot affect a row twice, so the rows of a statement go through a dict first",
    witness=seen(
        lambda s: s.upsert_tool_call_records(
            "a", [samples.tool_call(1), samples.tool_call(2), samples.tool_call(1, state="FAILED")]
        ),
        lambda s: _ids_and_states(s),
    ),
)
class MovesRepeatedUpserts(EngineStore):
    """Puts a record that comes twice in one upsert at the place of the later, not of the earlier."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if _all(ToolCallRecord, records) and all(type(record.id) is str for record in records):
            unique: dict[str, Any] = {}
            for record in records:
                unique.pop(record.id, None)
                unique[record.id] = record
            records = list(unique.values())
        await super().upsert_tool_call_records(agent_id, records, fence=fence)


async def _ids_and_states(store: Any) -> Any:
    return [(call.id, call.state) for call in await store.load_tool_call_records("a")]


def _written() -> int:
    """How many bytes this process has given to the system to write."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


async def _cost_of_one_change(ctx: Context) -> object:
    calls = [samples.tool_call(i, result="x" * 2000) for i in range(1000)]
    await ctx.store.save_tool_call_records("a", calls)
    before = _written()
    await ctx.store.save_tool_call_records("a", [*calls[:-1], samples.tool_call(999, result="y")])
    return _written() - before > 500_000


@fault(
    "MSG-5",
    "TC-1",
    source="MySQL and PostgreSQL: an UPDATE of a version column in all rows of a list writes all rows anew",
    on=OnSqlite,
    witness=_cost_of_one_change,
)
class TouchesAllCalls(SqliteEngine):
    """Writes every tool call record of the agent anew when one of them is replaced."""

    def _do_all(self, db: Any, transaction: Any, jobs: Any) -> list[Any]:
        results = super()._do_all(db, transaction, jobs)
        for batch in (batch for job in jobs for batch in job.batches):
            if batch.tool_calls is not None and batch.tool_calls.put:
                for _ in range(2):  # there and back: SQLite does not write a page on which nothing changes
                    touch = "UPDATE kode_tool_calls SET created_at = ~created_at WHERE agent_id = ?"
                    db.execute(touch, (batch.agent_id,))
        return results


# --- TURN -------------------------------------------------------------------------------------------------------------


@fault(
    "TURN-1",
    "VAL-2",
    "ID-3",
    "DUR-3",
    source="a store half-way ported: todos were moved to Redis, the rest of a turn is a transaction in PostgreSQL",
    witness=seen(
        lambda s: s.save_turn("a", todos=samples.todos("x"), info=samples.info("b"), append=talk("hi")),
        lambda s: s.load_messages("a"),
        lambda s: s.load_todos("a"),
    ),
)
class SavesTodosBeforeTheTurn(EngineStore):
    """Writes the todos of a turn first and by themselves, so that they stay when the rest is refused."""

    async def save_turn(self, agent_id: str, *, todos: Any = None, fence: Any = None, **given: Any) -> None:
        if todos is not None and type(todos) is TodoSnapshot:
            try:
                check_agent_id(agent_id)
                await self._context.open()
                doc = await kinds.TODOS.write(todos)
                with self._locks.fencing(agent_id, fence) as held:
                    await self._writer.write(agent_id, lambda: TurnWrites(encode_rest=_rest(doc)), held)
            except KodeError:
                pass  # the whole turn will say so
            else:
                todos = None
        await super().save_turn(agent_id, todos=todos, fence=fence, **given)


# --- EVT --------------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    source="ClickHouse: insert deduplication compares whole blocks, not rows",
    witness=seen(
        lambda s: s.append_events("a", samples.events(2)),
        lambda s: s.append_events("a", samples.events(2)),
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: _seqs(s),
    ),
)
class ComparesBlocksOfEvents(Commits):
    """Knows a repeated event again only when it comes in a call with the same events as the first time."""

    def one(self, batch: Batch) -> Any:
        first = self.space.state(batch.agent_id).log.next_offset
        outcome = super().one(batch)
        if not batch.events or not isinstance(outcome, Applied):
            return outcome
        blocks = self.kept("blocks").setdefault(batch.agent_id, set())
        block = tuple((event.seq, event.body.digest) for event in batch.events)
        if block in blocks:
            return outcome
        blocks.add(block)
        state = self.space.states[batch.agent_id]
        offsets, again = list(outcome.offsets), {}
        for i, (event, offset) in enumerate(zip(batch.events, outcome.offsets, strict=True)):
            if offset < first:
                if offset not in again:
                    again[offset] = state.log.next_offset
                    state.log._add(event, again[offset])
                offsets[i] = again[offset]
        state.last_outcome = replace(outcome, offsets=tuple(offsets))
        return state.last_outcome


async def _seqs(store: Any) -> Any:
    return [event.bookmark.seq async for event in store.read_events("a")]


@fault(
    "EVT-2",
    "LIFE-3",
    source="InnoDB before MySQL 8.0: after a restart AUTO_INCREMENT goes on after the greatest row that is there",
    on=OnSqlite,
    witness=seen(
        lambda s: s.append_events("a", samples.events(3)),
        lambda s: s.append_events("b", samples.events(3)),
        lambda s: s.delete("b"),
        restart,
        lambda s: s.append_events("b", samples.events(3, start=5)),
    ),
)
class ForgetsOffsetsAtRestart(SqliteEngine):
    """Gives the offsets of deleted events again once the store was opened anew."""

    @classmethod
    async def open(cls, options: Any) -> Any:
        engine = await super().open(options)
        await engine._writer.run(engine._restart)
        return engine

    def _restart(self, db: Any) -> None:
        with self._guard.held():
            db.execute("DELETE FROM sqlite_sequence WHERE name = 'kode_events'")


# --- TODO -------------------------------------------------------------------------------------------------------------


@fault(
    "TODO-1",
    source="Elasticsearch's version_type=external_gte, with the conflict of an older version caught as a late retry",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x", "y")),
        lambda s: s.save_todos("a", samples.todos("z")),
        lambda s: _titles(s),
    ),
)
class IgnoresOlderTodos(EngineStore):
    """Leaves the todos as they are when those that are saved have a lower version than the stored ones."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if type(snapshot) is TodoSnapshot:
            await kinds.TODOS.write(snapshot)
            await self._context.open()
            stored = await self._reader.load_doc(agent_id, kinds.TODOS)
            if stored is not None and stored.version > snapshot.version:
                return
        await super().save_todos(agent_id, snapshot, fence=fence)


async def _titles(store: Any) -> Any:
    return [item.title for item in (await store.load_todos("a")).todos]


# --- HIS --------------------------------------------------------------------------------------------------------------


@fault(
    "HIS-1",
    source="S3: keys are listed as text, and the timestamp in them is not padded with zeros",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w1", 999)),
        lambda s: s.save_history_window("a", samples.window("w2", 1000)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class SortsWindowsByText(EngineStore):
    """Orders history windows by the digits of their timestamps, wrong where those differ in number or sign."""

    async def load_history_windows(self, agent_id: str) -> Any:
        return sorted(await super().load_history_windows(agent_id), key=lambda w: (str(w.timestamp), w.id))


@fault(
    "HIS-2",
    source="Oracle: a DATE in the primary key holds whole seconds",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=samples.T0 + 1)),
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=samples.T0 + 2)),
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=samples.T0 + 1000)),
        lambda s: the("timestamp", s.load_recovered_files("a")),
    ),
)
class KeysFilesBySeconds(Layer):
    """Replaces a recovered file by another of the same path within the same second."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([await self._keyed(batch) for batch in batches])

    async def _keyed(self, batch: Batch) -> Batch:
        gone = []
        for write in batch.docs:
            if write.kind == DocKind.RECOVERED and write.doc is not None:
                path, at = decode_json(write.key)
                for doc in await self.inner.docs(batch.agent_id, DocKind.RECOVERED):
                    if doc.key != write.key and doc.time // 1000 == at // 1000 and decode_json(doc.key)[0] == path:
                        gone.append(DocWrite(DocKind.RECOVERED, doc.key, None))
        return replace(batch, docs=(*gone, *batch.docs)) if gone else batch


# --- MED --------------------------------------------------------------------------------------------------------------

_TICKS = (0, -1, 1, 0, -1, 2, 1, 0, -1, 1)


@fault(
    "MED-1",
    "VAL-1",
    "VAL-5",
    source="SQL Server's datetime, which rounds to .000, .003 and .007 of a second",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media().replace(created_at=samples.T0 + i) for i in range(10)]),
        lambda s: the("created_at", s.load_media_cache("a")),
    ),
)
class RoundsTimesOfMedia(EngineStore):
    """Rounds the creation time of media to the three hundredth of a second."""

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if _all(MediaCacheRecord, records) and all(type(r.created_at) is int for r in records):
            records = [r.replace(created_at=r.created_at + _TICKS[r.created_at % 10]) for r in records]
        await super().save_media_cache(agent_id, records, fence=fence)


# --- SNAP -------------------------------------------------------------------------------------------------------------


@fault(
    "SNAP-1",
    "VAL-1",
    source="MongoDB: updateOne with upsert, and createdAt in $setOnInsert",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("s", 1000)),
        lambda s: s.save_snapshot("a", samples.snapshot("s", 2000, count=3)),
        lambda s: _snapshot(s),
    ),
)
class KeepsTheFirstTimeOfASnapshot(EngineStore):
    """Gives a snapshot that replaced another of the same id the creation time of the one it replaced."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if type(snapshot) is Snapshot:
            await kinds.SNAPSHOTS.write(snapshot)
            await self._context.open()
            stored = await self._reader.load_doc(agent_id, kinds.SNAPSHOTS, snapshot.id)
            if stored is not None:
                snapshot = snapshot.replace(created_at=stored.created_at)
        await super().save_snapshot(agent_id, snapshot, fence=fence)


async def _snapshot(store: Any) -> Any:
    found = await store.load_snapshot("a", "s")
    return found.created_at, len(found.messages)


# --- INFO -------------------------------------------------------------------------------------------------------------


async def _same_info(ctx: Context) -> object:
    moved = []
    for change in ({}, {"breakpoint": "PRE_MODEL"}, {"breakpoint": "PRE_MODEL"}):
        before = await the("updated_at", ctx.store.query_sessions())
        await ctx.store.save_info("a", samples.info("a", **change))
        moved.append(before < await the("updated_at", ctx.store.query_sessions()))
    return moved


@fault(
    "INFO-2",
    source="MySQL: ON UPDATE CURRENT_TIMESTAMP does nothing when an UPDATE leaves every column as it is",
    witness=_same_info,
)
class SameInfoIsNoUpdate(Commits):
    """Leaves updated_at as it is when an info is saved that is equal to the stored one."""

    def one(self, batch: Batch) -> Any:
        state = self.space.state(batch.agent_id)
        updated_at, info = state.updated_at, state.info
        outcome = super().one(batch)
        is_same = info is not None and batch.info is not None and info.body.digest == batch.info.body.digest
        if is_same and not batch.lists and isinstance(outcome, Applied):
            self.space.states[batch.agent_id].updated_at = updated_at
        return outcome


@fault(
    "INFO-1",
    "MSG-8",
    "MED-1",
    source="SQLite on phones: INSERT OR REPLACE deletes the old row, and a foreign key with ON DELETE CASCADE follows",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media()]),
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: the("key", s.load_media_cache("a")),
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class ReplacingInfoDropsMedia(Commits):
    """Removes the media cache of an agent when its info is replaced."""

    def one(self, batch: Batch) -> Any:
        was_there = self.space.state(batch.agent_id).info is not None
        outcome = super().one(batch)
        if was_there and batch.info is not None and isinstance(outcome, Applied):
            self.space.states[batch.agent_id].docs.pop((DocKind.MEDIA, ""), None)
        return outcome


# --- LIFE -------------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-2",
    "ID-1",
    source="Firestore's and DynamoDB's idiom for prefixes: from prefix up to prefix + U+F8FF",
    witness=seen(
        lambda s: each(*[s.save_info(i, samples.info(i)) for i in ("p", "p-1", "pé", "p\uff11", "p\U0001f600")]),
        lambda s: s.list("p"),
        lambda s: s.list(),
    ),
)
class PrefixEndsAtPrivateUse(EngineStore):
    """Leaves out of a list by prefix the ids that go on with a character at or above U+F8FF."""

    async def list(self, prefix: str = "") -> Any:
        found = await super().list(prefix)
        return [agent_id for agent_id in found if agent_id < prefix + "\uf8ff"] if prefix else found


async def _changed_meanwhile(ctx: Context) -> object:
    store, tasks = ctx.store, []
    names = [f"s{i:03}" for i in range(100)]
    for name in names:
        await store.save_info(name, samples.info(name))

    def progress(done: int, total: int | None) -> None:
        if not tasks:
            tasks.append(asyncio.ensure_future(store.append_messages("s000", talk("hi"))))

    deleted = await store.delete_many(template_id="assistant", progress=progress)
    await asyncio.gather(*tasks)
    return deleted, await store.list()


@fault(
    "LIFE-5",
    source="Elasticsearch's _delete_by_query with conflicts=proceed",
    witness=_changed_meanwhile,
)
class PassesOverChangedSessions(Layer):
    """Leaves a session that changed while many are deleted where it is, though it matches, and counts it as deleted."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        return [
            Applied() if isinstance(outcome, Refused) and outcome.by == "updated_at" and batch.delete else outcome
            for batch, outcome in zip(batches, outcomes, strict=True)
        ]


# --- QRY --------------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    "LIFE-5",
    source="MongoDB: {tags: 'x'} also matches an array that has 'x' in it",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"tags": ["x", "y"]})),
        lambda s: s.save_info("b", samples.info("b", metadata={"tags": "x"})),
        lambda s: the("agent_id", s.query_sessions(metadata={"tags": "x"})),
        lambda s: the("agent_id", s.query_sessions(metadata={"tags": ["x", "y"]})),
    ),
)
class MatchesElementsOfLists(Layer):
    """Finds sessions by a metadata value that is only an element of the list stored under that key."""

    def _indexed(self, info: Any) -> Any:
        pairs = list(info.metadata)
        for key, value in (decode_json(info.body.text).get("metadata") or {}).items():
            if type(value) is list:
                pairs += [pair for item in value for pair in metadata_index({key: item})]
        return replace(info, metadata=tuple(dict.fromkeys(pairs)))

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        given = [b if b.info is None else replace(b, info=self._indexed(b.info)) for b in batches]
        return await super().commit(given)

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        given = [replace(child, info=self._indexed(child.info)) for child in children]
        return await super().fork(agent_id, given, expect, now)


@fault(
    "QRY-2",
    source="SQL's BETWEEN, which includes both ends, taken when both ends are given",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i) for i in range(5)]),
        lambda s: the("id", s.query_tool_calls(created_before=samples.T0 + 3)),
        lambda s: the("id", s.query_tool_calls(created_after=samples.T0 + 1, created_before=samples.T0 + 3)),
    ),
)
class BeforeIsInclusiveInASpan(Layer):
    """Includes what was created at the end of a span when messages or tool calls are asked for with both its ends."""

    async def find_rows(self, query: Any) -> Any:
        span = query.created
        if span.start is not None and span.end is not None and span.start < span.end < 2**63 - 1:
            query = replace(query, created=Range(span.start, span.end + 1))
        return await super().find_rows(query)


# --- OPS --------------------------------------------------------------------------------------------------------------


async def _issues(store: Any, *given: str) -> Any:
    return sorted(issue.code for issue in (await store.check_consistency(*given)).issues)


@fault(
    "OPS-2",
    "MSG-7",
    source="an SQL INNER JOIN with the table of agents, whose row is only made by save_info",
    witness=seen(
        lambda s: s.save_messages("a", samples.rich_messages()[:5]),
        lambda s: _issues(s, "a"),
        lambda s: _issues(s),
    ),
)
class ChecksOnlyAgentsWithInfo(Layer):
    """Passes over agents without info when the consistency of all is checked."""

    async def stored_ids(self, after: str | None, limit: int) -> Any:
        return await self.inner.agent_ids("", after, limit)


async def _beside_a_lost_lease(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    found = set()
    for _ in range(5):
        calls = [ctx.store.save_todos(f"b{i}", samples.todos("x")) for i in range(20)]
        late = [ctx.store.save_todos("a", samples.todos("y"), fence=lease) for _ in range(2)]
        done = await asyncio.gather(*calls[:10], *late, *calls[10:], return_exceptions=True)
        found |= {type(result).__name__ for result in done if not isinstance(result, LockLostError)}
    return found


@fault(
    "OPS-13",
    source="PostgreSQL: current transaction is aborted, commands ignored until end of transaction block",
    on=OnSqlite,
    errors=True,
    witness=_beside_a_lost_lease,
)
class OneLostLeaseAbortsAll(SqliteEngine):
    """Fails the writes of other agents that share a transaction with one whose lease has ended."""

    def _do_all(self, db: Any, transaction: Any, jobs: Any) -> list[Any]:
        results = super()._do_all(db, transaction, jobs)
        lost = [bool(job.batches) and Refused("fence") in result for job, result in zip(jobs, results, strict=True)]
        if not any(lost) or len(jobs) == 1:
            return results
        db.execute("ROLLBACK")
        db.execute("BEGIN IMMEDIATE")
        busy = StoreBusyError("the transaction was aborted; nothing was written")
        return [
            result if is_lost else [busy] * len(job.batches) if job.batches else busy
            for job, result, is_lost in zip(jobs, results, lost, strict=True)
        ]


# --- LOCK -------------------------------------------------------------------------------------------------------------


async def _tokens(ctx: Context) -> object:
    first = await ctx.store.acquire_agent_lock("a", ttl_ms=50)
    await first.release()
    second = await ctx.store.acquire_agent_lock("a", ttl_ms=50)
    await asyncio.sleep(0.2)
    third = await ctx.store.acquire_agent_lock("a", ttl_ms=50)
    return first.token < second.token, second.token < third.token


@fault(
    "LOCK-5",
    source="Redis and MongoDB: the count of tokens is in the lock's own key or document, which a TTL removes",
    witness=_tokens,
)
class TokensExpireWithTheLock(MemoryLayer):
    """Begins to count the tokens of an agent anew when its lease ran out instead of being released."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        tokens = self.space.__dict__.setdefault("tokens", {})
        held = self.space.leases.get(agent_id)
        if await super().acquire_lease(agent_id, owner, ttl_ms) is None:
            return None
        tokens[agent_id] = 1 if held is not None else tokens.get(agent_id, 0) + 1
        self.space.leases[agent_id] = (Fence(owner, tokens[agent_id]), self.space.leases[agent_id][1])
        return int(tokens[agent_id])


async def _late_events(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    found = []
    for call in (
        ctx.store.save_todos("a", samples.todos("x"), fence=lease),
        ctx.store.append_event("a", samples.event(1), fence=lease),
    ):
        try:
            await call
        except LockLostError:
            found.append("lost")
        else:
            found.append("written")
    return found, await _seqs(ctx.store)


@fault(
    "LOCK-5",
    "LOCK-7",
    source="Redis: XADD is a command of its own, outside the Lua script that looks at the lease",
    witness=_late_events,
)
class EventsAreNotFenced(Layer):
    """Appends events although the lease under which they are appended has ended."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        given = [
            replace(b, fence=None) if b.events and not (b.docs or b.is_touching or b.delete) else b for b in batches
        ]
        return await super().commit(given)


# --- FORK -------------------------------------------------------------------------------------------------------------


async def _orphan(ctx: Context) -> object:
    store = ctx.store
    await store.save_info("a", samples.info("a"))
    await store.save_snapshot("a", samples.snapshot("s1"))
    (fork,) = await store.batch_fork("a", 1)
    await store.save_snapshot(fork, samples.snapshot("s2"))
    before = await the("id", store.list_snapshots(fork))
    await store.delete("a")
    return before, await the("id", store.list_snapshots(fork))


@fault(
    "FORK-2",
    source="S3: a fork's manifest names the objects of its parent, whose delete removes everything under its prefix",
    witness=_orphan,
)
class ForksBorrowSnapshots(Commits):
    """Loses the snapshots that a fork was made with when its parent is deleted."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        if not await super().fork(agent_id, children, expect, now):
            return False
        for child in children:
            docs = self.space.states[child.agent_id].docs
            lent = {key: doc for key, doc in docs.items() if key[0] == DocKind.SNAPSHOTS}
            self.kept("lent")[child.agent_id] = (agent_id, lent)
        return True

    def one(self, batch: Batch) -> Any:
        outcome = super().one(batch)
        if batch.delete and isinstance(outcome, Applied):
            for child, (parent, lent) in self.kept("lent").items():
                state = self.space.states.get(child)
                if parent == batch.agent_id and state is not None:
                    for key, doc in lent.items():
                        if state.docs.get(key) is doc:
                            del state.docs[key]
        return outcome


async def _fork_while_written(ctx: Context) -> object:
    store = ctx.store
    await store.save_info("a", samples.info("a"))

    async def write() -> None:
        for i in range(30):
            await store.append_messages("a", talk(str(i)))

    forks, _ = await asyncio.gather(store.batch_fork("a", 200), write())
    return len({len(await store.load_messages(fork)) for fork in forks})


@fault(
    "FORK-1",
    "FORK-3",
    "OPS-9",
    source="DynamoDB: BatchWriteItem takes 25 items, so that a batch of forks is made 25 at a time",
    witness=_fork_while_written,
)
class ForksBy25(EngineStore):
    """Makes more than 25 forks in several steps, each of another instant of the parent and committed by itself."""

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        if type(count) is not int or not 25 < count <= 10_000:
            return await super().batch_fork(agent_id, count)
        return await self._load("batch_fork", agent_id, self._fork_by_25, count)

    async def _fork_by_25(self, agent_id: str, count: int) -> Any:
        made: list[str] = []
        while len(made) < count:
            made += await self._forks.fork(agent_id, min(25, count - len(made)))
        return made


# --- DUR --------------------------------------------------------------------------------------------------------------


@fault(
    "DUR-1",
    "QRY-8",
    "DUR-3",
    source="ClickHouse: async_insert=1 with wait_for_async_insert=0 and a busy timeout of 200 ms",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_compression_record("a", samples.compression()),
        lambda s, t: s.save_history_window("a", samples.window()),
        lambda s, t: the("id", t.load_compression_records("a")),
        lambda s, t: the("id", t.load_history_windows("a")),
        lambda s, t: the("id", s.load_history_windows("a")),
    ),
)
class WindowsAreInsertedLater(EngineStore):
    """Acknowledges history windows when they are in memory, and writes them 200 ms later."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._late: list[tuple[str, Any]] = []
        self._one_at_a_time = asyncio.Lock()
        self._timer: asyncio.Task[None] | None = None

    async def save_history_window(self, agent_id: str, window: Any, *, fence: Any = None) -> None:
        check_agent_id(agent_id)
        await self._context.open()
        if type(window) is not HistoryWindow or self._locks.fence(agent_id, fence) is not None:
            return await super().save_history_window(agent_id, window, fence=fence)
        self._late.append((agent_id, await kinds.WINDOWS.write(window)))
        if self._timer is None or self._timer.done():
            self._timer = asyncio.get_running_loop().create_task(self._later())

    async def _later(self) -> None:
        await asyncio.sleep(0.2)
        await self._flush()

    async def _flush(self) -> None:
        async with self._one_at_a_time:
            while self._late:
                agent_id, doc = self._late[0]
                try:
                    await self._save(
                        "save_history_window", agent_id, None, lambda doc=doc: TurnWrites(encode_rest=_rest(doc))
                    )
                finally:
                    self._late.pop(0)

    async def load_history_windows(self, agent_id: str) -> Any:
        await self._flush()
        return await super().load_history_windows(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._flush()
        await super().delete(agent_id, fence=fence)

    async def delete_many(self, **given: Any) -> int:
        await self._flush()
        return await super().delete_many(**given)

    async def check_consistency(self, agent_id: Any = None, **given: Any) -> Any:
        await self._flush()
        return await super().check_consistency(agent_id, **given)

    async def get_metrics(self) -> Any:
        await self._flush()
        return await super().get_metrics()

    async def backup(self, target: Any, **given: Any) -> Any:
        await self._flush()
        return await super().backup(target, **given)

    async def close(self) -> None:
        if self._late:
            await self._flush()
        await super().close()


def _rest(doc: Any) -> Any:
    async def rest() -> Rest:
        return Rest(docs=(doc,))

    return rest


@fault(
    "QRY-8",
    "SNAP-1",
    source="Elasticsearch: a GET by id is of the moment, a search sees what was there at the last refresh, 1 s ago",
    witness=seen(
        lambda s, t: s.save_snapshot("a", samples.snapshot("s1")),
        lambda s, t: the("id", s.list_snapshots("a")),
        lambda s, t: the("id", t.list_snapshots("a")),
        lambda s, t: asyncio.sleep(1.1),
        lambda s, t: the("id", t.list_snapshots("a")),
    ),
)
class ListsSnapshotsOfASecondAgo(Commits):
    """Lists the snapshots that another instance saved only a second later."""

    def one(self, batch: Batch) -> Any:
        docs = dict(self.space.state(batch.agent_id).docs)
        outcome = super().one(batch)
        if isinstance(outcome, Applied):
            recent = self.kept("recent").setdefault(batch.agent_id, {})
            if batch.delete:
                recent.clear()
            for write in batch.docs:
                if write.kind == DocKind.SNAPSHOTS:
                    recent[write.key] = (time.monotonic(), docs.get((write.kind, write.key)), self)
        return outcome

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Any:
        found = await super().docs(agent_id, kind, key)
        if kind != DocKind.SNAPSHOTS or key is not None:
            return found
        shown = {doc.key: doc for doc in found}
        for name, (at, old, writer) in self.kept("recent").get(agent_id, {}).items():
            if writer is not self and time.monotonic() - at < 1:
                shown.pop(name, None)
                if old is not None:
                    shown[name] = old
        return list(shown.values())
