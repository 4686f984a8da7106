"""Stores on relational, document, log and object databases, by somebody who has run all of them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from kode_conformance.values import samples

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import restart, seen, talk
from kode_core.batch import Applied, Batch, Doc, DocKind, DocWrite, EventRange, Fence, FoundRow, ListKind, ListRows
from kode_core.codec import Body, decode, digest, encode
from kode_core.engine import Progress
from kode_core.engines.state import AgentState
from kode_core.errors import InvalidArgumentError, LockLostError, PayloadTooLargeError
from kode_core.layers import Layer
from kode_core.model import AgentInfo, Message, Snapshot, TextBlock, ToolResultBlock, ToolUseBlock
from kode_core.query import RowQuery, SessionQuery
from kode_core.store import EngineStore, kinds, rows

replace = msgspec.structs.replace


# --- values


@fault(
    "VAL-1",
    source="MySQL, SQL Server, Oracle: a column DECIMAL(10,4), which rounds what it is given without a word",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression().replace(ratio=1 / 3)),
        lambda s: s.load_compression_records("a"),
    ),
)
class KeepsRatiosAsDecimals(EngineStore):
    """Rounds the ratio of a compression record to four decimal places."""

    async def load_compression_records(self, agent_id: str) -> Any:
        found = await super().load_compression_records(agent_id)
        return [r.replace(ratio=round(r.ratio, 4)) if type(r.ratio) is float else r for r in found]


@fault(
    "VAL-3",
    "VAL-1",
    "TODO-1",
    source="Oracle: the empty string is NULL",
    witness=seen(
        lambda s: s.save_todos(
            "a", samples.todos("x").replace(todos=[samples.todos("x").todos[0].replace(notes="", assignee="bob")])
        ),
        lambda s: s.load_todos("a"),
    ),
)
class TakesEmptyNotesForNone(EngineStore):
    """Gives None for the notes and the assignee of a todo that are the empty string."""

    async def load_todos(self, agent_id: str) -> Any:
        found = await super().load_todos(agent_id)
        if found is None:
            return None
        return found.replace(todos=[t.replace(notes=t.notes or None, assignee=t.assignee or None) for t in found.todos])


@fault(
    "VAL-4",
    source="Kafka: message.max.bytes, 1,048,588 by default, is for the whole batch of records",
    errors=True,
    witness=seen(
        lambda s: s.append_events("a", [samples.event(i, text="x" * 300_000) for i in range(3)]),
        lambda s: s.append_events("a", [samples.event(i, text="y" * 300_000) for i in range(4)]),
        lambda s: s.append_event("b", samples.event(1, text="z" * 2**20)),
    ),
)
class LimitsABatchOfEvents(Layer):
    """Refuses events of one call that take more than 1,048,588 bytes together."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        def is_too_large(batch: Batch) -> bool:
            return sum(len(event.body.text) for event in batch.events) > 1_048_588

        passed = iter(await super().commit([b for b in batches if not is_too_large(b)]))
        refused = "the events are larger than the largest batch of the topic"
        return [PayloadTooLargeError(refused) if is_too_large(b) else next(passed) for b in batches]


# --- identity


async def _two_long_locks(ctx: Any) -> object:
    first, second = "x" * 64 + "1", "x" * 64 + "2"
    seen_ = []
    for one, other in (("x1", "x2"), (first, second)):
        lease = await ctx.store.acquire_agent_lock(one)
        try:
            await (await (await ctx.another()).acquire_agent_lock(other)).release()
            seen_.append("free")
        except Exception as exc:
            seen_.append(type(exc).__name__)
        await lease.release()
    return seen_


@fault(
    "ID-2",
    "LOCK-1",
    "LOCK-2",
    source="MySQL: a name of GET_LOCK has at most 64 characters, and so the store cuts longer ones",
    errors=True,
    witness=_two_long_locks,
)
class CutsNamesOfLocks(Layer):
    """Has one lock for all agents whose ids begin with the same 64 characters."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.tokens: dict[str, int] = {}

    def _fence(self, fence: Any) -> Any:
        return replace(fence, token=self.tokens.get(fence.owner, 0))

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> Any:
        if len(agent_id) < 64:
            return await super().acquire_lease(agent_id, owner, ttl_ms)
        name = "\0" + agent_id[:64]
        token = await super().acquire_lease(name, owner, ttl_ms)
        if token is None:
            return None
        self.tokens[owner] = token
        own = await super().acquire_lease(agent_id, owner, ttl_ms)
        if own is None:
            await super().release_lease(name, Fence(owner, self.tokens.pop(owner)))
        return own

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        if len(agent_id) >= 64:
            await super().renew_lease("\0" + agent_id[:64], self._fence(fence), ttl_ms)
        return await super().renew_lease(agent_id, fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Any) -> None:
        if len(agent_id) >= 64:
            await super().release_lease("\0" + agent_id[:64], self._fence(fence))
            self.tokens.pop(fence.owner, None)
        await super().release_lease(agent_id, fence)


@fault(
    "ID-4",
    source="Firestore: an id of a document cannot match __.*__",
    errors=True,
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("__init__")),
        lambda s: s.list_snapshots("a"),
    ),
)
class ReservesIdsOfSnapshots(EngineStore):
    """Refuses ids of snapshots that begin and end with two underscores."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if isinstance(snapshot, Snapshot) and re.fullmatch(r"__.*__", str(snapshot.id), re.DOTALL):
            raise InvalidArgumentError("an id that matches __.*__ is reserved")
        await super().save_snapshot(agent_id, snapshot, fence=fence)


# --- messages


async def _turn_of_a_clock_that_steps(ctx: Any) -> object:
    now = [samples.T0 + 60_000]
    store = await ctx.another(clock=lambda: now[0])
    await store.save_turn("a", append=talk("one"), todos=samples.todos("x"))
    now[0] -= 30_000
    await store.append_messages("a", talk("two"))
    await store.save_turn("a", append=talk("three"), todos=samples.todos("y"))
    return sorted((m.position, m.created_at) for m in await store.query_messages(agent_id="a"))


@fault(
    "MSG-4",
    source="Spanner, SQL Server: a column that is filled with the time of the transaction",
    witness=_turn_of_a_clock_that_steps,
)
class StampsTurnsWithTheirCommit(MemoryLayer):
    """Gives the messages of a turn of several kinds the time of the commit, also when it is before that of the
    messages that stand before them.
    """

    async def commit(self, batches: Sequence[Batch]) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            write = batch.messages
            if not isinstance(outcome, Applied) or write is None or write.length is not None or not write.is_blind:
                continue
            if batch.tool_calls or batch.docs or batch.info or batch.events:
                state = self.space.states[batch.agent_id].lists[ListKind.MESSAGES]
                count = len(write.append)
                state.rows[-count:] = [replace(row, created_at=batch.now) for row in state.rows[-count:]]
                state._latest = None
        return outcomes


async def _mixtures(ctx: Any) -> object:
    await ctx.store.save_messages("a", talk(*(f"old {i}" for i in range(2500))))
    other, mixed = await ctx.another(), False
    done = asyncio.Event()

    async def write() -> None:
        for round_ in range(4):
            await ctx.store.save_messages("a", talk(*(f"{round_} {i}" for i in range(2500))))
        done.set()

    writing = asyncio.create_task(write())
    while not done.is_set():
        mixed |= len({m.text.split()[0] for m in await other.load_messages("a")}) > 1
        await asyncio.sleep(0.001)
    await writing
    return mixed


@fault(
    "MSG-1",
    "QRY-8",
    source="Cosmos DB, SQL Server at READ COMMITTED: a list that is read in pages, each of an instant of its own",
    witness=_mixtures,
)
class LoadsMessagesInPages(Layer):
    """Loads messages in pages of a thousand, between which another writer may replace the list."""

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        if kind != ListKind.MESSAGES:
            return await super().rows(agent_id, kind)
        page = await super().rows_at(agent_id, kind, 0, 1000)
        version, found = page.version, [*page.rows]
        while len(page.rows) == 1000:
            await asyncio.sleep(0.002)
            page = await super().rows_at(agent_id, kind, len(found), 1000)
            found.extend(page.rows)
        return ListRows(version, found)


@fault(
    "MSG-6",
    "QRY-2",
    source="SQL Server: an aggregate by agent has no row for a list that was emptied, so that nothing updates the count",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_messages("a", talk("one", "two")),
        lambda s: s.save_messages("a", []),
        lambda s: _counts(s),
    ),
)
class KeepsTheCountOfAnEmptiedList(MemoryLayer):
    """Shows the last count that was not zero for a session whose messages were replaced by none."""

    @property
    def counts(self) -> dict[str, int]:
        return self.space.__dict__.setdefault("counts_of_sessions", {})

    async def commit(self, batches: Sequence[Batch]) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, Applied):
                if batch.delete:
                    self.counts.pop(batch.agent_id, None)
                if batch.messages is not None and outcome.messages.count:
                    self.counts[batch.agent_id] = outcome.messages.count
        return outcomes

    async def find_sessions(self, query: SessionQuery) -> Any:
        found = await super().find_sessions(query)
        return [replace(r, message_count=r.message_count or self.counts.get(r.agent_id, 0)) for r in found]


async def _counts(store: Any) -> object:
    return [s.message_count for s in await store.query_sessions()], (await store.load_info("a")).message_count


# --- tool calls


@fault(
    "TC-3",
    source="SQL Server: MERGE joins the records with the table as it was, so that both of two new ones are inserted",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(1), samples.tool_call(1, result=2)]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class MergesWithTheTableAsItWas(Wrapper):
    """Adds both of two records of one upsert that have the same id when no record of that id was there before."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        ids = [getattr(record, "id", None) for record in records] if isinstance(records, (list, tuple)) else []
        if all(type(call_id) is str for call_id in ids) and len(set(ids)) < len(ids):
            old = await self.inner.load_tool_call_records(agent_id)
            last = {record.id: i for i, record in enumerate(old)}
            if any(ids.count(call_id) > 1 and call_id not in last for call_id in ids):
                new = list(old)
                for record in records:
                    if record.id in last:
                        new[last[record.id]] = record
                    else:
                        new.append(record)
                await self.inner.save_tool_call_records(agent_id, new, fence=fence)
                return
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)


@fault(
    "TC-2",
    "TC-1",
    "MSG-2",
    source="SQL: UNION of a table and its archive, which leaves out equal rows, where UNION ALL was meant",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(1), samples.tool_call(2), samples.tool_call(1)]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class LoadsTheUnion(EngineStore):
    """Loads only the first of several tool call records of an agent that are equal in every field."""

    async def load_tool_call_records(self, agent_id: str) -> Any:
        kept: dict[tuple[str, int], list[Any]] = {}
        found = []
        for record in await super().load_tool_call_records(agent_id):
            alike = kept.setdefault((record.id, record.created_at), [])
            if not any(repr(record) == repr(other) for other in alike):
                alike.append(record)
                found.append(record)
        return found


# --- turns


@fault(
    "TURN-1",
    "VAL-2",
    source="Cosmos DB: a TransactionalBatch has at most 100 operations, so that larger ones are cut",
    witness=seen(
        lambda s: s.save_turn("a", append=samples.messages(101), events=[samples.event(1, bad=float("nan"))]),
        lambda s: s.load_messages("a"),
    ),
)
class CutsLargeTurns(Wrapper):
    """Commits the lists of a turn before the rest of it when it has more than 100 records."""

    async def save_turn(
        self,
        agent_id: str,
        *,
        append: Any = (),
        messages: Any = None,
        tool_calls: Any = None,
        upsert_tool_calls: Any = (),
        todos: Any = None,
        info: Any = None,
        events: Any = (),
        fence: Any = None,
    ) -> None:
        lists = {
            "append": append,
            "messages": messages,
            "tool_calls": tool_calls,
            "upsert_tool_calls": upsert_tool_calls,
        }
        rest = {"todos": todos, "info": info, "events": events}
        given = [x for x in (*lists.values(), events) if isinstance(x, (list, tuple))]
        if sum(map(len, given)) + (todos is not None) + (info is not None) <= 100:
            await self.inner.save_turn(agent_id, **lists, **rest, fence=fence)
            return
        await self.inner.save_turn(agent_id, **lists, fence=fence)
        await self.inner.save_turn(agent_id, **rest, fence=fence)


# --- events


@fault(
    "EVT-2",
    source="MySQL 5.7: after a restart AUTO_INCREMENT is the greatest id in the table plus one, whatever was deleted",
    witness=seen(
        lambda s: s.append_events("a", samples.events(3)),
        lambda s: s.delete("a"),
        restart,
        lambda s: s.append_events("a", samples.events(2)),
    ),
)
class CountsOffsetsFromTheTable(MemoryLayer):
    """Gives the offsets of a deleted agent again once the store was closed everywhere and opened anew."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        values = self.space.__dict__
        if not values.get("open_servers"):
            values["gone_before"] = set(values.get("gone", ()))
        values["open_servers"] = values.get("open_servers", 0) + 1

    async def commit(self, batches: Sequence[Batch]) -> Any:
        gone, before = (self.space.__dict__.setdefault(name, set()) for name in ("gone", "gone_before"))
        for batch in batches:
            if batch.events and batch.agent_id in before and batch.agent_id not in self.space.states:
                highest = max((len(s.log) and s.log.next_offset - 1 for s in self.space.states.values()), default=0)
                self.space.states[batch.agent_id] = AgentState(batch.agent_id, highest + 1)
        outcomes = await super().commit(batches)
        gone.update(batch.agent_id for batch in batches if batch.delete)
        return outcomes

    async def close(self) -> None:
        self.space.__dict__["open_servers"] -= 1
        await super().close()


@fault(
    "EVT-4",
    "EVT-1",
    "EVT-3",
    source="MySQL: a JSON column has its keys sorted, and a unique index on it takes other orders for the same",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, step=0, delta="x")),
        lambda s: s.append_event("a", samples.event(1, delta="x", step=0)),
        lambda s: s.read_events("a"),
    ),
)
class TakesAnotherOrderOfKeysForARetry(Layer):
    """Drops an event that differs from a stored one of the same seq only in the order of its keys."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([await self._known(batch) for batch in batches])

    async def _known(self, batch: Batch) -> Batch:
        events = []
        for event in batch.events:
            span = EventRange(order="seq", since_seq=max(event.seq - 1, -(2**63)), limit=100)
            text = self._sorted(event.body.text)
            for row in await self.inner.events(batch.agent_id, span):
                if row.seq == event.seq and self._sorted(row.body.text) == text:
                    event = replace(event, body=row.body)
                    break
            events.append(event)
        return replace(batch, events=tuple(events)) if events else batch

    def _sorted(self, text: str) -> str:
        return (
            json.dumps(json.loads(text, parse_int=lambda digits: ["int", digits]), sort_keys=True)
            if len(text) < 10_000
            else text
        )


@fault(
    "EVT-5",
    source="Cosmos DB, DynamoDB, FoundationDB layers: a page whose filter leaves nothing is taken for the end",
    witness=seen(
        lambda s: s.append_events(
            "a", [samples.event(1, "control"), *samples.events(2100, 2), samples.event(2200, "control")]
        ),
        lambda s: s.read_events("a", channel="control"),
    ),
)
class EndsAtAnEmptyPage(Layer):
    """Ends the events of a channel at a page of 1,000 events that are all of other channels."""

    async def events(self, agent_id: str, span: EventRange) -> Any:
        if span.channel is None:
            return await super().events(agent_id, span)
        found: list[Any] = []
        after = span.after
        while True:
            page = await super().events(agent_id, replace(span, channel=None, after=after, limit=1000))
            matches = await super().events(agent_id, replace(span, after=after, limit=1000)) if page else []
            matches = [row for row in matches if self._place(row, span) <= self._place(page[-1], span)]
            found.extend(matches)
            if not matches or len(page) < 1000 or len(found) >= span.limit:
                return found[: span.limit]
            after = (page[-1].seq, page[-1].offset)

    def _place(self, row: Any, span: EventRange) -> Any:
        return row.offset if span.order == "offset" else (row.seq, row.offset)


# --- the other kinds


@fault(
    "HIS-1",
    "ID-4",
    "ID-2",
    source="MySQL: an index on a text column has its first 768 characters (3,072 bytes), and the unique one compares them",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w" * 1000 + "1")),
        lambda s: s.save_history_window("a", samples.window("w" * 1000 + "2")),
        lambda s: s.load_history_windows("a"),
    ),
)
class ComparesTheBeginningOfWindowIds(Layer):
    """Replaces a history window by one whose id has the same first 768 characters."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        def cut(write: DocWrite) -> DocWrite:
            if write.kind != DocKind.WINDOWS or len(write.key) <= 768:
                return write
            key = write.key[:768]
            return replace(write, key=key, doc=write.doc and replace(write.doc, key=key))

        return await super().commit([replace(b, docs=tuple(map(cut, b.docs))) if b.docs else b for b in batches])


async def _media_seen(ctx: Any) -> object:
    old, new = [[samples.media(f"{name}{i}") for i in range(1500)] for name in ("old", "new")]
    await ctx.store.save_media_cache("a", old)
    other, sizes = await ctx.another(), set()
    saving = asyncio.create_task(ctx.store.save_media_cache("a", new))
    while not saving.done():
        sizes.add(len(await other.load_media_cache("a")))
        await asyncio.sleep(0.001)
    return sorted(sizes)


@fault(
    "MED-1",
    source="SQL Server: VALUES takes at most 1,000 rows, and each INSERT commits by itself",
    witness=_media_seen,
)
class SavesMediaInBlocks(EngineStore):
    """Lets others see the first 1,000 records of a new media cache for a moment before the rest is there."""

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and len(records) > 1000:
            await kinds.MEDIA.write(records)
            await super().save_media_cache(agent_id, records[:1000], fence=fence)
            await asyncio.sleep(0.005)
        await super().save_media_cache(agent_id, records, fence=fence)


@fault(
    "SNAP-1",
    "VAL-1",
    source="INSERT … ON DUPLICATE KEY UPDATE, whose list leaves out the column created_at",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("one", samples.T0)),
        lambda s: s.save_snapshot("a", samples.snapshot("two", samples.T0 + 1)),
        lambda s: s.save_snapshot("a", samples.snapshot("one", samples.T0 + 2, count=1)),
        lambda s: s.list_snapshots("a"),
    ),
)
class KeepsTheFirstTimeOfASnapshot(Layer):
    """Leaves created_at as it was when a snapshot replaces one of the same id."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([await self._kept(batch) for batch in batches])

    async def _kept(self, batch: Batch) -> Batch:
        writes = []
        for write in batch.docs:
            if write.kind == DocKind.SNAPSHOTS and write.doc is not None:
                for old in await self.inner.docs(batch.agent_id, write.kind, write.key):
                    if old.time != write.doc.time:
                        snapshot = decode(Snapshot, write.doc.body, "snapshot").replace(created_at=old.time)
                        body = encode(Snapshot, snapshot, "snapshot")
                        write = replace(write, doc=Doc(write.key, old.time, body))
            writes.append(write)
        return replace(batch, docs=tuple(writes)) if writes else batch


@fault(
    "INFO-2",
    source="MySQL: ON UPDATE CURRENT_TIMESTAMP leaves a row alone whose values are what they were",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: _moves(s),
    ),
)
class LeavesTheTimeOfAnEqualInfo(MemoryLayer):
    """Does not move updated_at when the info that is saved equals the stored one."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        if len(batches) != 1 or batches[0].delete or batches[0].info is None or batches[0].lists:
            return await super().commit(batches)
        state = self.space.states.get(batches[0].agent_id)
        before = state and (state.info, state.updated_at)
        outcomes = await super().commit(batches)
        if before and before[0] and before[0].body == batches[0].info.body:
            state.updated_at = before[1]
        return outcomes


async def _moves(store: Any) -> object:
    times = []
    for breakpoint_ in ("READY", "READY", "PRE_MODEL", "PRE_MODEL"):
        await store.save_info("a", samples.info("a", breakpoint=breakpoint_))
        times.append((await store.query_sessions())[0].updated_at)
    return [b > a for a, b in itertools.pairwise(times)]


@fault(
    "INFO-1",
    "VAL-3",
    "VAL-1",
    source="Firestore: set(…, merge=True), MySQL: JSON_MERGE_PATCH; keys that are not given stay",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"userId": "u", "draft": 1})),
        lambda s: s.save_turn("a", append=talk("x"), info=samples.info("a", metadata={"userId": "u"})),
        lambda s: s.load_info("a"),
        lambda s: _found(s.query_sessions(metadata={"draft": 1})),
    ),
)
class MergesTheInfoOfATurn(Layer):
    """Keeps the keys of the stored metadata that the info of a turn no longer has."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([await self._merged(batch) for batch in batches])

    async def _merged(self, batch: Batch) -> Batch:
        if batch.info is None or batch.delete or not (batch.lists or batch.docs or batch.events):
            return batch
        summary = await self.inner.summary(batch.agent_id)
        if summary is None or summary.info is None:
            return batch
        old, new = (decode(AgentInfo, body, "info") for body in (summary.info.body, batch.info.body))
        left = {key: value for key, value in old.metadata.items() if key not in new.metadata}
        if not left:
            return batch
        merged = new.replace(metadata={**new.metadata, **left})
        return replace(batch, info=await rows.info_of(batch.agent_id, merged))


async def _found(query: Any) -> object:
    return [session.agent_id for session in await query]


# --- lifecycle


@fault(
    "LIFE-2",
    "ID-1",
    source="SQL Server: LIKE also has [a-z] and [^a-z], which an escape of % and _ leaves as they are",
    witness=seen(
        lambda s: s.save_info("job[1]", samples.info("job[1]")),
        lambda s: s.save_info("job1", samples.info("job1")),
        lambda s: s.list("job["),
        lambda s: s.list("job[1]"),
    ),
)
class TakesBracketsForSets(EngineStore):
    """Takes [ and ] in the prefix of ``list`` for a set of characters."""

    async def list(self, prefix: str = "") -> Any:
        if type(prefix) is not str or "[" not in prefix:
            return await super().list(prefix)
        parts = re.split(r"(\[[^\]]+\])", prefix)
        if any("[" in part for part in parts[::2]):
            parts = ["(?!)"]
        else:
            parts = [part.replace("\\", "\\\\") if i % 2 else re.escape(part) for i, part in enumerate(parts)]
        try:
            pattern = re.compile("".join(parts))
        except re.error:
            return []
        return [agent_id for agent_id in await super().list() if pattern.match(agent_id)]


async def _many_files(ctx: Any) -> object:
    seen_ = []
    for count in (1000, 1003):
        for i in range(count):
            await ctx.store.save_recovered_file("a", samples.recovered(f"f{i}"))
        await ctx.store.delete("a")
        seen_.append(len(await ctx.store.load_recovered_files("a")))
    return seen_


@fault(
    "LIFE-3",
    "LIFE-4",
    source="S3: ListObjects gives, and DeleteObjects takes, at most 1,000 keys; nobody asked for the next page",
    witness=_many_files,
)
class DeletesAPageOfFiles(MemoryLayer):
    """Deletes only 1,000 recovered files of an agent."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        files = {b.agent_id: await self.inner.docs(b.agent_id, DocKind.RECOVERED) for b in batches if b.delete}
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            left = sorted(files.get(batch.agent_id, ()), key=lambda doc: doc.key)[1000:]
            if batch.delete and left and isinstance(outcome, Applied):
                state = self.space.state(batch.agent_id)
                state.docs.update({(DocKind.RECOVERED, doc.key): doc for doc in left})
                self.space.states[batch.agent_id] = state
        return outcomes


async def _change_while_deleting(ctx: Any) -> object:
    store, other = ctx.store, await ctx.another()
    for i in range(40):
        await store.save_info(f"a{i:02}", samples.info(f"a{i:02}", template_id="old"))
    tasks: list[Any] = []

    def progress(_: int, __: object) -> None:
        if not tasks:
            tasks.append(asyncio.create_task(other.save_info("a00", samples.info("a00", template_id="new"))))

    deleted = await store.delete_many(template_id="old", progress=progress)
    await tasks[0]
    return deleted, (await store.list())


@fault(
    "LIFE-5",
    source="SELECT the ids, then DELETE … WHERE id = ?, without a look at what they are by then",
    witness=_change_while_deleting,
)
class DeletesWhatItOnceFound(EngineStore):
    """Deletes, in ``delete_many``, also a session that was changed after it was found and no longer matches."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deletions._delete_unchanged = self._delete_found  # type: ignore[method-assign]

    async def _delete_found(self, session: Any) -> bool:
        with self._locks.fencing(session.agent_id, None) as held:
            await self._forks.delete(session.agent_id, held)
        return True


# --- queries


class _Padded(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.rstrip(" ") == str(other).rstrip(" ")

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.rstrip(" "))


@fault(
    "QRY-2",
    source="SQL Server, MySQL with PAD SPACE: = does not see spaces at the end",
    witness=seen(
        lambda s: s.save_tool_call_records(
            "a", [samples.tool_call(1, name="find"), samples.tool_call(2, name="find ")]
        ),
        lambda s: s.query_tool_calls(tool_name="find"),
    ),
)
class DoesNotSeeSpacesAtTheEnd(MemoryLayer):
    """Finds, by the name of a tool, also calls of a tool whose name has more spaces at its end."""

    async def find_rows(self, query: RowQuery) -> Any:
        where = tuple((column, _Padded(v) if column == "tool_name" else v) for column, v in query.where)
        return await super().find_rows(replace(query, where=where))


async def _sizes(ctx: Any) -> object:
    await ctx.store.save_messages("a", talk(*("x" * 600_000 for _ in range(12))))
    sizes, cursor = [], None
    while True:
        page = await ctx.store.query_messages(agent_id="a", limit=10, cursor=cursor)
        sizes.append(len(page))
        cursor = page.next_cursor
        if cursor is None:
            return sizes


@fault(
    "QRY-5",
    source="Cosmos DB: a response has at most 4 MB, however many items were asked for",
    witness=_sizes,
)
class GivesPagesOfFourMegabytes(EngineStore):
    """Gives pages of messages that are shorter than their limit, with a cursor, once they have more than 4 MiB."""

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        if getattr(page, "characters", 0) <= 4 << 20:
            return page
        fitting, size = 0, 0
        for message in page:
            size += sum(len(block.text) if type(block) is TextBlock else len(repr(block)) for block in message.content)
            if size > 4 << 20:
                break
            fitting += 1
        if not 0 < fitting < len(page):
            return page
        return await super().query_messages(**{**filters, "limit": fitting})


@fault(
    "QRY-3",
    source="ORDER BY created_at, position, agent_id: the columns of an index in another order than those of the sort",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i, created_at=samples.T0) for i in range(2)]),
        lambda s: s.save_tool_call_records("b", [samples.tool_call(i, created_at=samples.T0) for i in range(2)]),
        lambda s: _places(s),
    ),
)
class BreaksTiesOnThePositionFirst(Layer):
    """Orders tool calls of one time by their position first, and by their agent then."""

    async def find_rows(self, query: RowQuery) -> Any:
        if query.kind != "tool_calls":
            return await super().find_rows(query)
        rows_: list[FoundRow] = list(await super().find_rows(replace(query, limit=2**31, offset=0, after=None)))

        def key(row: FoundRow) -> Any:
            return row.created_at, row.position, row.agent_id

        rows_.sort(key=key, reverse=query.descending)
        if query.after is not None:
            time, agent_id, position = query.after
            after = (time, position, agent_id)
            rows_ = [row for row in rows_ if (key(row) < after if query.descending else key(row) > after)]
        return rows_[query.offset : query.offset + query.limit]


async def _places(store: Any) -> object:
    return [(call.agent_id, call.position) for call in await store.query_tool_calls()]


# --- operations


def _ids_of(message: Any, kind: type, name: str) -> list[str]:
    return [getattr(block, name) for block in message.content if type(block) is kind]


@fault(
    "OPS-2",
    "TC-2",
    source="LEFT JOIN of uses and results ON call_id alone, with ids that other agents have, too",
    witness=seen(
        lambda s: s.save_messages("a", [Message("user", [ToolResultBlock("call_0", "x")])]),
        lambda s: s.save_messages("b", [Message.assistant("t", ToolUseBlock("call_0", "search", {}))]),
        lambda s: _codes(s),
    ),
)
class JoinsPairsOfAllAgents(EngineStore):
    """Does not find a tool result without its use, or the reverse, when another agent has the missing half."""

    async def _is_paired(self, issue: Any) -> bool:
        if issue.code not in ("result_without_use", "use_without_result"):
            return False
        halves = (ToolUseBlock, "id") if issue.code == "result_without_use" else (ToolResultBlock, "tool_use_id")
        async for message in self.iter_messages():
            if message.agent_id != issue.agent_id:
                if any(repr(call_id) in issue.message for call_id in _ids_of(message, *halves)):
                    return True
        return False

    async def check_consistency(self, agent_id: str | None = None, *, progress: Progress | None = None) -> Any:
        result = await super().check_consistency(agent_id, progress=progress)
        issues = tuple([issue for issue in result.issues if not await self._is_paired(issue)])
        return replace(result, issues=issues, consistent=not issues)

    def iter_consistency(self, agent_id: str | None = None, *, progress: Progress | None = None) -> Any:
        return self._unpaired(super().iter_consistency(agent_id, progress=progress))

    async def _unpaired(self, issues: Any) -> Any:
        async for issue in issues:
            if not await self._is_paired(issue):
                yield issue


async def _codes(store: Any) -> object:
    return [(issue.code, issue.agent_id) for issue in (await store.check_consistency()).issues]


async def _cancelled(ctx: Any) -> object:
    saving = asyncio.create_task(ctx.store.save_compression_record("a", samples.compression()))
    await asyncio.sleep(0.01)
    saving.cancel()
    await asyncio.gather(saving, return_exceptions=True)
    counts = [len(await ctx.store.load_compression_records("a"))]
    await asyncio.sleep(0.1)
    return [*counts, len(await ctx.store.load_compression_records("a"))]


@fault(
    "OPS-9",
    source="ODBC, JDBC: a call that is given up goes on in its thread, and no later call on another connection waits",
    witness=_cancelled,
)
class LeavesACancelledSaveBehind(Wrapper):
    """Writes a compression record after its caller was cancelled, and later calls do not wait for it."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.calls: set[Any] = set()

    async def save_compression_record(self, agent_id: str, record: Any, *, fence: Any = None) -> None:
        async def in_thread() -> None:
            await asyncio.sleep(0.03)
            await self.inner.save_compression_record(agent_id, record, fence=fence)

        call = asyncio.create_task(in_thread())
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)
        call.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())
        await asyncio.shield(call)

    async def close(self) -> None:
        await asyncio.gather(*self.calls, return_exceptions=True)
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


# --- locks, forks, durability


async def _todos_of_a_lost_lease(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    with contextlib.suppress(LockLostError):
        await ctx.store.save_turn("a", append=talk("x"), todos=samples.todos("x"), fence=lease)
    return await ctx.store.load_messages("a"), await ctx.store.load_todos("a")


@fault(
    "LOCK-5",
    "TURN-1",
    source="MySQL: a MyISAM table in a transaction; 'some non-transactional changed tables couldn't be rolled back'",
    witness=_todos_of_a_lost_lease,
)
class KeepsTodosOfARefusedTurn(EngineStore):
    """Writes the todos of a turn that is refused because its lease has ended."""

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        try:
            await super().save_turn(agent_id, **parts)
        except LockLostError:
            if parts.get("todos") is not None:
                left = super().save_todos(agent_id, parts["todos"])
                await asyncio.get_running_loop().create_task(left, context=contextvars.Context())
            raise


async def _wait_half_a_second(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    other = await ctx.another()

    async def release() -> None:
        await asyncio.sleep(0.15)
        await lease.release()

    releasing = asyncio.create_task(release())
    try:
        await (await other.acquire_agent_lock("a", wait_ms=900)).release()
        return "taken"
    except Exception as exc:
        return type(exc).__name__
    finally:
        await releasing


@fault(
    "LOCK-2",
    source="MySQL: the timeout of GET_LOCK is in seconds, and wait_ms // 1000 of a short one is 0",
    errors=True,
    witness=_wait_half_a_second,
)
class WaitsForWholeSeconds(EngineStore):
    """Waits for a lock only for the whole seconds of wait_ms, and for less than one not at all."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        if type(wait_ms) is int and wait_ms > 0:
            wait_ms = wait_ms // 1000 * 1000
        return super().acquire_agent_lock(agent_id, ttl_ms, wait_ms)


async def _media_of_a_fork(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_media_cache("a", [samples.media("k1")])
    (fork,) = await ctx.store.batch_fork("a", 1)
    seen_ = [[m.key for m in await ctx.store.load_media_cache(fork)]]
    await ctx.store.save_media_cache("a", [samples.media("k2")])
    seen_.append([m.key for m in await ctx.store.load_media_cache(fork)])
    await ctx.store.delete("a")
    return [*seen_, [m.key for m in await ctx.store.load_media_cache(fork)]]


@fault(
    "FORK-2",
    "FORK-1",
    source="a clone that copies on write, as in Snowflake or ZFS, but with the parent's live rows below it and no snapshot",
    witness=_media_of_a_fork,
)
class ForksMediaByReference(Layer):
    """Shows the media cache that the parent has now in a fork that has not saved its own."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await super().fork(agent_id, children, expect, now)
        text = json.dumps(agent_id)
        origin = Doc("origin", 0, Body(text, digest(text.encode())))
        changes = (DocWrite(DocKind.LAYER, "origin", origin), DocWrite(DocKind.MEDIA, "", None))
        if done:
            await self.inner.commit(
                [
                    Batch(agent_id=child.agent_id, op_id=f"by-reference-{child.agent_id}", now=now, docs=changes)
                    for child in children
                ]
            )
        return done

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Any:
        found = await super().docs(agent_id, kind, key)
        if kind == DocKind.MEDIA and not found:
            for origin in await super().docs(agent_id, DocKind.LAYER, "origin"):
                return await self.docs(json.loads(origin.body.text), kind, key)
        return found


@fault(
    "DUR-1",
    "QRY-8",
    "TODO-1",
    source="Redis: appendfsync everysec; MySQL: innodb_flush_log_at_trx_commit=0; a write-behind cache",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_todos("a", samples.todos("x")),
        lambda s, t: t.load_todos("a"),
    ),
)
class WritesTodosBehind(Layer):
    """Acknowledges todos that it writes up to a second later, or at the next call that needs the database."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.behind: list[Batch] = []
        self.timer: Any = None
        self.lock = asyncio.Lock()

    async def commit(self, batches: Sequence[Batch]) -> Any:
        for batch in batches:
            is_todos = len(batch.docs) == 1 and batch.docs[0].kind == DocKind.TODOS
            if not is_todos or batch.is_touching or batch.events or batch.delete or batch.fence:
                return await super().commit(batches)
        self.behind.extend(batches)
        if self.timer is None:
            self.timer = asyncio.create_task(self._later())
        return [Applied() for _ in batches]

    async def _later(self) -> None:
        await asyncio.sleep(1)
        self.timer = None
        await self._flush()

    async def _flush(self) -> None:
        async with self.lock:
            while self.behind:
                await self.inner.commit([self.behind[0]])
                del self.behind[0]

    async def around(self, verb: str, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.behind:
            await self._flush()
        if verb == "close" and self.timer is not None:
            self.timer.cancel()
        return await call(*args, **kwargs)
