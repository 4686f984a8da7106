"""Stores on relational databases, each with one fault that such a database, its driver or its ORM brings."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from kode_sqlite.engine import SqliteEngine
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import restart, seen, talk, the
from kode_core.batch import Applied, Doc, DocKind, DocWrite, ListKind
from kode_core.codec import Body, digest
from kode_core.engines import scan
from kode_core.errors import KodeError
from kode_core.ids import plain_text
from kode_core.jsonvalue import decode_json, encode_json
from kode_core.layers import Layer
from kode_core.model import Message, TextBlock, ToolCallRecord, ToolResultBlock
from kode_core.store import EngineStore

ALL = 10**9


def rekeyed(batch: Any, kind: DocKind, key: Callable[[str], str]) -> Any:
    """*batch* with other keys for its documents of a kind."""

    def one(write: DocWrite) -> DocWrite:
        if write.kind != kind:
            return write
        new = key(write.key)
        return DocWrite(kind, new, None if write.doc is None else Doc(new, write.doc.time, write.doc.body))

    return replace(batch, docs=tuple(map(one, batch.docs)))


async def sift(find: Callable[[Any], Any], query: Any, keep: Callable[[Any], bool], key: Callable[[Any], Any]) -> Any:
    """The page of *query* among the records that *keep* lets through."""
    found = await find(replace(query, limit=ALL, offset=0, after=None))
    return scan.page(((key(row), row) for row in found if keep(row)), query)


def place(row: Any) -> Any:
    """Where a row of a list stands in the order of queries."""
    return row.created_at, row.agent_id, row.position


# --- keys and collations ----------------------------------------------------------------------------------------------


@fault(
    "SNAP-1",
    "ID-4",
    "VAL-1",
    source="PAD SPACE collations of MySQL, and SQL Server's comparison: 'sfp-1' = 'sfp-1  '",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("sfp-1")),
        lambda s: s.save_snapshot("a", samples.snapshot("sfp-1 ")),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class ComparesSnapshotIdsWithPadding(MemoryLayer):
    """Takes ids of snapshots for the same when they differ only in spaces at their end."""

    def same(self, agent_id: str, key: str) -> str:
        known = (k for kind, k in self.space.state(agent_id).docs if kind == DocKind.SNAPSHOTS)
        return next((k for k in known if k.rstrip(" ") == key.rstrip(" ")), key)

    async def commit(self, batches: Sequence[Any]) -> Any:
        return await super().commit(
            [rekeyed(b, DocKind.SNAPSHOTS, lambda key, b=b: self.same(b.agent_id, key)) for b in batches]
        )

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Any:
        if kind == DocKind.SNAPSHOTS and key is not None:
            key = self.same(agent_id, key)
        return await super().docs(agent_id, kind, key)


@fault(
    "ID-4",
    "HIS-1",
    source="InnoDB: an index takes 3,072 bytes, so the key is made on id(768), as utf8mb4 counts four for each",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w" * 1000 + "1")),
        lambda s: s.save_history_window("a", samples.window("w" * 1000 + "2")),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class IndexesTheBeginningOfWindowIds(Layer):
    """Tells history windows apart only by the first 768 characters of their ids."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        return await super().commit([rekeyed(b, DocKind.WINDOWS, lambda key: key[:768]) for b in batches])


@fault(
    "HIS-2",
    source="MySQL: DATETIME without (3) keeps whole seconds, and rounds",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=samples.T0, content="one")),
        lambda s: s.save_recovered_file("a", samples.recovered(timestamp=samples.T0 + 250, content="two")),
        lambda s: the("content", s.load_recovered_files("a")),
    ),
)
class KeysRecoveredFilesByTheSecond(Layer):
    """Replaces a recovered file by one of the same path whose timestamp rounds to the same second."""

    @staticmethod
    def key(key: str) -> str:
        path, timestamp = decode_json(key)
        return encode_json([path, (timestamp + 500) // 1000], "key")

    async def commit(self, batches: Sequence[Any]) -> Any:
        return await super().commit([rekeyed(b, DocKind.RECOVERED, self.key) for b in batches])


@fault(
    "MED-1",
    "ID-2",
    "FORK-2",
    source="a content hash as the primary key, and INSERT … ON CONFLICT (key) DO UPDATE SET agent_id = excluded.agent_id",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("sha256:00"), samples.media("sha256:01")]),
        lambda s: s.save_media_cache("b", [samples.media("sha256:00")]),
        lambda s: the("key", s.load_media_cache("a")),
        lambda s: the("key", s.load_media_cache("b")),
    ),
)
class KeysMediaWithoutTheAgent(MemoryLayer):
    """Gives a cached medium to the agent that saved its key last, and takes it from the one that had it."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, Applied):
                for write in batch.docs:
                    if write.kind == DocKind.MEDIA and write.doc is not None:
                        self.take(batch.agent_id, {record["key"] for record in decode_json(write.doc.body.text)})
        return outcomes

    def take(self, agent_id: str, keys: set[str]) -> None:
        for state in self.space.states.values():
            doc = state.docs.get((DocKind.MEDIA, ""))
            if doc is not None and state.agent_id != agent_id:
                records = decode_json(doc.body.text)
                left = [record for record in records if record["key"] not in keys]
                if len(left) < len(records):
                    text = encode_json(left, "media cache")
                    state.docs[DocKind.MEDIA, ""] = Doc("", doc.time, Body(text, digest(text.encode())))


@fault(
    "LOCK-1",
    "ID-2",
    source="MySQL: the name given to GET_LOCK has at most 64 characters, so it is cut to fit",
    witness=lambda ctx: _locks_beside(ctx),
)
class CutsLockNames(MemoryLayer):
    """Refuses the lock of an agent while one is held whose id has the same first 64 characters."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        now = time.monotonic()
        for other, (_, expires) in self.space.leases.items():
            if other != agent_id and other[:64] == agent_id[:64] and expires > now:
                return None
        return await super().acquire_lease(agent_id, owner, ttl_ms)


# --- numbers and counters ---------------------------------------------------------------------------------------------


@fault(
    "MSG-6",
    source="a counter kept in a SMALLINT, and MySQL without strict mode, which stores the nearest value it can",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_messages("a", [samples.message(0)] * 33_000),
        lambda s: the("message_count", s.query_sessions(sort_by="message_count")),
    ),
)
class CountsMessagesInSixteenBits(Layer):
    """Shows and sorts sessions of more than 32,767 messages as if they had 32,767."""

    async def find_sessions(self, query: Any) -> Any:
        async def find(query: Any) -> Any:
            found = await super(CountsMessagesInSixteenBits, self).find_sessions(query)
            return [replace(row, message_count=min(row.message_count, 2**15 - 1)) for row in found]

        return await sift(find, query, lambda row: True, lambda row: (getattr(row, query.sort_by), row.agent_id))


@fault(
    "EVT-5",
    "EVT-6",
    source="seq INT, which MySQL without strict mode fills with 2147483647 when the number is larger",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(n) for n in (2**31 + 7, 2**31 + 3)]),
        lambda s: _seqs(s.read_events("a")),
        lambda s: _seqs(s.read_events("a", since=samples.event(2**31 + 4).bookmark)),
        lambda s: s.last_bookmark("a"),
    ),
)
class IndexesSeqInThirtyTwoBits(Layer):
    """Sorts and finds events whose seq is beyond 32 bits as if it were the last that fits."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        def clamped(event: Any) -> Any:
            return replace(event, seq=max(-(2**31), min(event.seq, 2**31 - 1)))

        return await super().commit([replace(b, events=tuple(map(clamped, b.events))) for b in batches])


def _as_numeric(value: Any) -> Any:
    if type(value) is float and 1e16 <= abs(value) < float("inf"):
        return int(Decimal(repr(value)))
    if type(value) is dict:
        return {key: _as_numeric(item) for key, item in value.items()}
    return [_as_numeric(item) for item in value] if type(value) is list else value


def _in_jsonb(record: Any) -> Any:
    if type(record) is not ToolCallRecord:
        return record
    try:
        made = _as_numeric(record.input)
        same = encode_json(made, "input") == encode_json(record.input, "input")
    except (KodeError, RecursionError):
        return record
    return record if same else record.replace(input=made)


def _all_in_jsonb(records: Any) -> Any:
    return [_in_jsonb(record) for record in records] if isinstance(records, (list, tuple)) else records


@fault(
    "VAL-1",
    source="PostgreSQL's jsonb, which keeps numbers as numeric: 1e16 comes back as 10000000000000000",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(input={"n": [1.5, 1e15, 1e16, -2.5e300]})]),
        lambda s: the("input", s.load_tool_call_records("a")),
    ),
)
class KeepsInputsAsJsonb(EngineStore):
    """Turns floats of 1e16 and more in the input of tool calls into integers."""

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await super().save_tool_call_records(agent_id, _all_in_jsonb(records), fence=fence)

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await super().upsert_tool_call_records(agent_id, _all_in_jsonb(records), fence=fence)

    async def save_turn(
        self, agent_id: str, *, tool_calls: Any = None, upsert_tool_calls: Any = (), **rest: Any
    ) -> None:
        calls, upserted = _all_in_jsonb(tool_calls), _all_in_jsonb(upsert_tool_calls)
        await super().save_turn(agent_id, tool_calls=calls, upsert_tool_calls=upserted, **rest)


@fault(
    "QRY-7",
    source="a summary table kept by triggers AFTER INSERT and AFTER DELETE, with none AFTER UPDATE",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(0, state="PENDING")]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1)]),
        lambda s: s.aggregate_stats("a"),
    ),
)
class TriggersMissUpdates(MemoryLayer):
    """Counts a tool call under the state that it had when its row was first inserted."""

    @property
    def tallies(self) -> dict[str, list[str]]:
        return vars(self.space).setdefault("tallies", {})

    async def commit(self, batches: Sequence[Any]) -> Any:
        for batch in batches:
            if batch.agent_id not in self.tallies:
                rows = self.space.state(batch.agent_id).lists[ListKind.TOOL_CALLS].rows
                self.tallies[batch.agent_id] = [row.index.state for row in rows]
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, Applied):
                self.count(self.tallies[batch.agent_id], batch)
        return outcomes

    def count(self, states: list[str], batch: Any) -> None:
        if batch.delete:
            states.clear()
        write = batch.tool_calls
        if write is not None:
            if write.length is not None:
                del states[write.length :]
            states += [row.index.state for position, row in write.put if position >= len(states)]
            states += [row.index.state for row in write.append]

    async def stats(self, agent_id: str) -> Any:
        found, states = await super().stats(agent_id), self.tallies.get(agent_id)
        if states is None:
            return found
        return replace(found, tool_calls_by_state={state: states.count(state) for state in states})


# --- times ------------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    source="SQL Server: DATETIME keeps thirds of hundredths, .000, .003 and .007, and rounds to them",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i) for i in range(10)]),
        lambda s: the("id", s.query_tool_calls(created_after=samples.T0 + 4)),
        lambda s: the("id", s.query_tool_calls(created_before=samples.T0 + 7, order="asc")),
    ),
)
class FiltersCallsByRoundedTimes(Layer):
    """Filters tool calls by their time of creation rounded to 1/300 of a second."""

    async def find_rows(self, query: Any) -> Any:
        if query.kind != "tool_calls":
            return await super().find_rows(query)
        anytime = replace(query.created, start=None, end=None)

        async def find(query: Any) -> Any:
            return await super(FiltersCallsByRoundedTimes, self).find_rows(replace(query, created=anytime))

        def is_within(row: Any) -> bool:
            ticks = (row.created_at * 3 + 5) // 10
            return (ticks * 20 + 3) // 6 in query.created

        return await sift(find, query, is_within, place)


def _without_zone(filters: dict[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.utcoffset() is not None else value

    return {name: plain(value) for name, value in filters.items()}


_EAST = timezone(timedelta(hours=2))


@fault(
    "VAL-5",
    "QRY-2",
    source="PyMySQL and mysqlclient write a datetime as '2026-01-01 11:00:00' and leave its tzinfo out",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0)]),
        lambda s: s.query_tool_calls(created_after=datetime.fromtimestamp(samples.T0 / 1000, UTC)),
        lambda s: s.query_tool_calls(created_after=datetime.fromtimestamp(samples.T0 / 1000, _EAST)),
    ),
)
class DropsTheZoneOfFilters(Wrapper):
    """Takes the wall time of an aware datetime for UTC when tool calls are filtered by it."""

    __slots__ = ()

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await self.inner.query_tool_calls(**_without_zone(filters))

    def iter_tool_calls(self, **filters: Any) -> Any:
        return self.inner.iter_tool_calls(**_without_zone(filters))


@fault(
    "INFO-2",
    source="MySQL: ON UPDATE CURRENT_TIMESTAMP does nothing when an UPDATE leaves all columns as they are",
    witness=lambda ctx: _moves(ctx),
)
class TouchesOnlyWhatChanged(MemoryLayer):
    """Leaves `updated_at` as it is when the info, messages or tool calls that are saved are the ones that are stored."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        await asyncio.sleep(0)
        return [self.apply(batch) for batch in batches]

    def apply(self, batch: Any) -> Any:
        state: Any = self.space.states.get(batch.agent_id)
        before = 0 if state is None else state.updated_at
        is_same = bool(before) and not batch.delete and self.changes_nothing(state, batch)
        outcome = self.inner._commit(batch)  # type: ignore[attr-defined]
        if is_same and isinstance(outcome, Applied):
            state.updated_at = before
        return outcome

    def changes_nothing(self, state: Any, batch: Any) -> bool:
        for kind, write in batch.lists.items():
            rows = state.lists[kind]
            if not rows.version or write.put or write.append or (write.length or ALL) < len(rows.rows):
                return False
            if write.length == 0 and rows.rows:
                return False
        return batch.info is None or (state.info is not None and batch.info.body == state.info.body)


@fault(
    "MSG-4",
    source="created_at is the clock of the host that inserts, and the clocks of two hosts differ",
    witness=lambda ctx: _from_two_hosts(ctx),
)
class StampsAppendsByTheHost(MemoryLayer):
    """Gives messages appended to a list that another instance wrote the time of this clock, older than those before."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        await asyncio.sleep(0)
        return [self.apply(batch) for batch in batches]

    def apply(self, batch: Any) -> Any:
        outcome = self.inner._commit(batch)  # type: ignore[attr-defined]
        if isinstance(outcome, Applied) and batch.messages is not None and batch.messages.is_blind:
            rows = self.space.state(batch.agent_id).lists[ListKind.MESSAGES].rows
            rows[-len(batch.messages.append) :] = batch.messages.append
        return outcome


# --- statements -------------------------------------------------------------------------------------------------------


@fault(
    "QRY-5",
    "QRY-6",
    source="a keyset condition written out by hand: t < ? OR t = ? AND id < ? AND pos < ? OR t = ? AND id = ? AND pos < ?",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(created_at=samples.T0)] * 3),
        lambda s: s.save_tool_call_records("b", [samples.tool_call(created_at=samples.T0)] * 2),
        lambda s: _places_by_page(s, 1),
    ),
)
class WritesTheKeysetOut(Layer):
    """Skips, behind a cursor, rows of the same time of the agents to come whose position is not beyond the last one."""

    async def find_rows(self, query: Any) -> Any:
        if query.after is None:
            return await super().find_rows(query)
        time, agent_id, position = query.after
        sign = 1 if query.descending else -1

        def is_beyond(row: Any) -> bool:
            if row.created_at != time or row.agent_id == agent_id:
                return True  # the page itself sees to these
            return sign * row.position < sign * position

        return await sift(super().find_rows, query, is_beyond, place)


@fault(
    "QRY-2",
    source='WHERE body LIKE \'%"type":"text"%\' in place of a column or table of block types',
    witness=seen(
        lambda s: s.save_messages(
            "a",
            [
                Message("user", [ToolResultBlock("c", [{"type": "text", "text": "x"}])]),
                Message("user", [TextBlock("y")]),
            ],
        ),
        lambda s: the("position", s.query_messages(content_type="text", order="asc")),
    ),
)
class LooksForTypesInTheBody(Layer):
    """Finds by `content_type` also messages that hold that type inside a block, as in the content of a tool result."""

    async def find_rows(self, query: Any) -> Any:
        wanted = [value for name, value in query.where if name == "content_type"]
        if not wanted:
            return await super().find_rows(query)
        rest = tuple(pair for pair in query.where if pair[0] != "content_type")

        async def find(query: Any) -> Any:
            return await super(LooksForTypesInTheBody, self).find_rows(replace(query, where=rest))

        names = [json.dumps(plain_text(wanted[0]), ensure_ascii=is_ascii) for is_ascii in (False, True)]
        return await sift(find, query, lambda row: any(f'"type":{name}' in row.body.text for name in names), place)


class _FirstThousand(Layer):
    async def outline(self, agent_id: str, kind: ListKind, keys: Any = None) -> Any:
        return await super().outline(agent_id, kind, None if keys is None else keys[:1000])


@fault(
    "TC-3",
    source="Oracle: an IN list has at most 1,000 expressions (ORA-01795); the ids are cut to fit",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i) for i in range(1_100)]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(i, error="x") for i in range(1_100)]),
        lambda s: _count(s.load_tool_call_records("a")),
    ),
)
class LooksUpAThousandIds(EngineStore):
    """Appends, in an upsert of more than 1,000 tool calls, those behind the 1,000th although they are there."""

    def __init__(self, opener: Any, **options: Any) -> None:
        async def layered() -> Any:
            return _FirstThousand(await opener())

        super().__init__(layered, **options)

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and len(records) > 1000 and type(agent_id) is str:
            self._writer._memory.forget(agent_id)
        await super().upsert_tool_call_records(agent_id, records, fence=fence)


@fault(
    "EVT-4",
    source="the ids of a bulk INSERT OR IGNORE, counted back from lastrowid as if every row had been inserted",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: s.append_event("a", samples.event(2)),
        lambda s: _listed(s.append_events("a", [samples.event(1), samples.event(3)])),
    ),
)
class CountsOffsetsBackwards(Wrapper):
    """Returns wrong offsets from `append_events` when some of its events were stored before and others were not."""

    __slots__ = ()

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Sequence[int]:
        offsets = await self.inner.append_events(agent_id, timelines, fence=fence)
        last = max(offsets, default=0)
        return tuple(range(last - len(offsets) + 1, last + 1))


@fault(
    "TURN-1",
    "MSG-1",
    "TC-1",
    source="`if messages:` in front of the statement, where `is not None` was meant",
    witness=seen(
        lambda s: s.save_turn("a", messages=talk("x"), tool_calls=[samples.tool_call()]),
        lambda s: s.save_turn("a", messages=[], tool_calls=[], todos=samples.todos("t")),
        lambda s: s.load_messages("a"),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class TakesEmptyForAbsentInTurns(Wrapper):
    """Keeps the old messages or tool calls when `save_turn` replaces them by an empty list."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, messages: Any = None, tool_calls: Any = None, **rest: Any) -> None:
        messages = None if isinstance(messages, (list, tuple)) and not messages else messages
        tool_calls = None if isinstance(tool_calls, (list, tuple)) and not tool_calls else tool_calls
        await self.inner.save_turn(agent_id, messages=messages, tool_calls=tool_calls, **rest)


# --- transactions -----------------------------------------------------------------------------------------------------


@fault(
    "MSG-3",
    "VAL-2",
    "DUR-3",
    source="psycopg2's execute_values on a connection with autocommit: a statement for every 100 rows, its page_size",
    witness=lambda ctx: _appends_at_once(ctx),
)
class AppendsInPages(Wrapper):
    """Appends more than 100 messages in several transactions, between which others can append and fail."""

    __slots__ = ()

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if not isinstance(messages, (list, tuple)) or len(messages) <= 100:
            await self.inner.append_messages(agent_id, messages, fence=fence)
            return
        messages = list(messages)
        for i in range(0, len(messages), 100):
            await self.inner.append_messages(agent_id, messages[i : i + 100], fence=fence)


@fault(
    "TURN-1",
    "EVT-1",
    "OPS-10",
    source="MySQL rolls the whole transaction of a deadlock's victim back; the retry repeats only the statement that failed",
    witness=lambda ctx: _turns_at_once(ctx),
)
class RetriesHalfOfATurn(MemoryLayer):
    """Loses the events of a turn that is committed while another instance commits for the same agent."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        busy: dict[str, int] = vars(self.space).setdefault("busy", {})

        def retried(batch: Any) -> Any:
            is_victim = busy.get(batch.agent_id, 0) and batch.events and batch.lists
            return replace(batch, events=()) if is_victim else batch

        batches = [retried(batch) for batch in batches]
        for batch in batches:
            busy[batch.agent_id] = busy.get(batch.agent_id, 0) + 1
        try:
            return await super().commit(batches)
        finally:
            for batch in batches:
                busy[batch.agent_id] -= 1


@fault(
    "FORK-3",
    "FORK-1",
    source="INSERT … SELECT in a loop, with a commit after each child",
    witness=lambda ctx: _forks_while_writing(ctx),
)
class CommitsEachFork(Wrapper):
    """Copies each fork of a batch in a transaction of its own, each at another instant of the parent."""

    __slots__ = ()

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        if type(count) is not int or not 1 < count <= 1000:
            return await self.inner.batch_fork(agent_id, count)
        return [child for _ in range(count) for child in await self.inner.batch_fork(agent_id, 1)]


@fault(
    "QRY-8",
    source="REPEATABLE READ of MySQL and a connection for each store: a cursor that is read half pins its snapshot",
    on=OnSqlite,
    witness=lambda ctx: _looks_while_reading(ctx),
)
class PinsASnapshotWhileReading(Wrapper):
    """Loads info and todos as they were when `read_events` of the agent began, for as long as that is under way."""

    __slots__ = ("pinned",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.pinned: dict[str, list[Any]] = {}

    async def read_events(self, agent_id: str, **span: Any) -> AsyncIterator[Any]:
        async with aclosing(self.inner.read_events(agent_id, **span)) as events:
            first = await anext(events, None)
            if first is None:
                return
            try:
                seen_now = (await self.inner.load_info(agent_id), await self.inner.load_todos(agent_id))
            except KodeError:
                seen_now = None
            if seen_now is not None:
                self.pinned.setdefault(agent_id, []).append(seen_now)
            try:
                yield first
                async for event in events:
                    yield event
            finally:
                if seen_now is not None:
                    self.pinned[agent_id].pop()

    async def load_info(self, agent_id: str) -> Any:
        now = await self.inner.load_info(agent_id)
        pinned = self.pinned.get(agent_id)
        return pinned[0][0] if pinned else now

    async def load_todos(self, agent_id: str) -> Any:
        now = await self.inner.load_todos(agent_id)
        pinned = self.pinned.get(agent_id)
        return pinned[0][1] if pinned else now


# --- what servers do --------------------------------------------------------------------------------------------------


@fault(
    "EVT-2",
    source="InnoDB before MySQL 8.0: at start AUTO_INCREMENT goes on from the largest id that is in the table (bug 199)",
    on=OnSqlite,
    witness=seen(
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: s.append_event("b", samples.event(1)),
        lambda s: s.delete("b"),
        restart,
        lambda s: s.append_event("b", samples.event(2)),
    ),
)
class ForgetsTheSequence(SqliteEngine):
    """Gives the offsets of events that were deleted again, once the store was closed and opened."""

    @classmethod
    async def open(cls, options: Any) -> Any:
        engine = await super().open(options)
        again = (
            'UPDATE sqlite_sequence SET seq = (SELECT coalesce(max("offset"), 0) FROM kode_events)'
            " WHERE name = 'kode_events'"
        )
        await engine._write(lambda transaction: transaction._db.execute(again))
        return engine


@fault(
    "EVT-7",
    source="PostgreSQL: the payload of NOTIFY must be shorter than 8,000 bytes, and the error is only logged",
    witness=lambda ctx: _follows(ctx),
)
class SendsEventsAsPayloads(Wrapper):
    """Leaves an event whose data has 8,000 bytes or more out of what those see who follow already."""

    __slots__ = ()

    async def follow_events(self, agent_id: str, **span: Any) -> AsyncIterator[Any]:
        stored = 0
        async with aclosing(self.inner.read_events(agent_id, after_offset=span.get("after_offset", 0))) as events:
            async for event in events:
                stored = event.offset
        async with aclosing(self.inner.follow_events(agent_id, **span)) as events:
            async for event in events:
                if event.offset <= stored or len(json.dumps(event.event.data)) < 8000:
                    yield event


@fault(
    "LIFE-4",
    "SNAP-1",
    source="soft deletes: the row stays with its deleted_at, and ON CONFLICT DO UPDATE does not set that to NULL again",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("sfp-1")),
        lambda s: s.delete("a"),
        lambda s: s.save_snapshot("a", samples.snapshot("sfp-1", count=3)),
        lambda s: s.save_snapshot("a", samples.snapshot("sfp-2")),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class DeletesSoftly(MemoryLayer):
    """Does not show a snapshot of an agent that was deleted and made again when the one before had one of that id."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        await asyncio.sleep(0)
        return [self.apply(batch) for batch in batches]

    def apply(self, batch: Any) -> Any:
        buried: set[Any] = vars(self.space).setdefault("buried", set())
        agent_id = batch.agent_id
        had = {(agent_id, key) for kind, key in self.space.state(agent_id).docs if kind == DocKind.SNAPSHOTS}
        hidden = (w for w in batch.docs if w.kind == DocKind.SNAPSHOTS and (agent_id, w.key) in buried)
        gone = set(hidden)
        outcome = self.inner._commit(  # type: ignore[attr-defined]
            replace(batch, docs=tuple(w for w in batch.docs if w not in gone)) if gone else batch
        )
        if batch.delete and isinstance(outcome, Applied):
            buried |= had
        return outcome


# --- witnesses --------------------------------------------------------------------------------------------------------


async def _seqs(events: Any) -> list[int]:
    return [event.bookmark.seq async for event in events]


async def _listed(values: Any) -> list[Any]:
    return list(await values)


async def _count(records: Any) -> int:
    return len(await records)


async def _places_by_page(store: Any, limit: int) -> list[Any]:
    found: list[Any] = []
    cursor = None
    while True:
        page = await store.query_tool_calls(limit=limit, cursor=cursor)
        found += [(call.agent_id, call.position) for call in page]
        cursor = page.next_cursor
        if cursor is None:
            return found


async def _is_taken(store: Any, agent_id: str) -> bool:
    try:
        await (await store.acquire_agent_lock(agent_id)).release()
    except KodeError:
        return True
    return False


async def _locks_beside(ctx: Context) -> object:
    other: Any = await ctx.another()
    async with ctx.store.acquire_agent_lock("a" * 64 + "1"):
        return [await _is_taken(other, name) for name in ("a" * 64 + "1", "a" * 64 + "2", "b" * 64)]


async def _moves(ctx: Context) -> object:
    store = ctx.store
    messages = talk("x")
    times = []
    for _ in range(2):
        await store.save_info("a", samples.info("a"))
        times += await the("updated_at", store.query_sessions())
        await store.save_messages("a", messages)
        times += await the("updated_at", store.query_sessions())
    return [a < b for a, b in itertools.pairwise(times)]


async def _from_two_hosts(ctx: Context) -> object:
    fast: Any = await ctx.another(clock=lambda: samples.T0 + 5_000)
    slow: Any = await ctx.another(clock=lambda: samples.T0)
    await fast.append_messages("a", talk("x"))
    await slow.append_messages("a", talk("y"))
    return [(m.text, m.created_at) for m in await ctx.store.query_messages(agent_id="a", order="asc")]


def _pieces(texts: Iterable[str]) -> int:
    """How often the first letter changes."""
    letters = [text[0] for text in texts]
    return sum(a != b for a, b in itertools.pairwise(letters))


async def _appends_at_once(ctx: Context) -> object:
    other: Any = await ctx.another()
    await asyncio.gather(
        ctx.store.append_messages("a", talk(*(f"x{i}" for i in range(250)))),
        other.append_messages("a", talk(*(f"y{i}" for i in range(250)))),
    )
    pieces = _pieces([message.text for message in await ctx.store.load_messages("a")])
    bad = Message("user", [TextBlock("z")], metadata={"n": float("nan")})
    try:
        await ctx.store.append_messages("b", [*talk(*map(str, range(150))), bad])
    except KodeError as exc:
        return pieces, type(exc).__name__, len(await ctx.store.load_messages("b"))
    return pieces


async def _turns_at_once(ctx: Context) -> object:
    stores = [ctx.store, await ctx.another()]

    async def turns(store: Any, name: int) -> None:
        for i in range(10):
            await store.save_turn("a", append=talk("x"), events=[samples.event(100 * name + i)])

    await asyncio.gather(*(turns(store, i) for i, store in enumerate(stores)), return_exceptions=True)
    return len(await ctx.store.load_messages("a")), len([e async for e in ctx.store.read_events("a")])


async def _forks_while_writing(ctx: Context) -> object:
    other: Any = await ctx.another()
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_messages("a", talk("x"))
    done = asyncio.Event()

    async def write() -> None:
        while not done.is_set():
            await other.append_messages("a", talk("y"))

    writing = asyncio.create_task(write())
    try:
        children = await ctx.store.batch_fork("a", 20)
    finally:
        done.set()
        await writing
    return len({len(await ctx.store.load_messages(child)) for child in children})


async def _looks_while_reading(ctx: Context) -> object:
    other: Any = await ctx.another()
    await ctx.store.append_events("a", samples.events(3))
    await ctx.store.save_todos("a", samples.todos("x"))
    found = []
    async with aclosing(ctx.store.read_events("a")) as events:  # type: ignore[type-var]
        async for _ in events:
            await other.save_todos("a", samples.todos(f"y{len(found)}"))
            todos = await ctx.store.load_todos("a")
            found.append(todos and todos.todos[0].title)
    return found


async def _follows(ctx: Context) -> object:
    other: Any = await ctx.another()
    await ctx.store.append_event("a", samples.event(0, text="x" * 9_000))
    found = []
    async with aclosing(ctx.store.follow_events("a")) as events:  # type: ignore[type-var]
        async for event in events:
            found.append(event.bookmark.seq)
            if event.bookmark.seq == 0:
                await other.append_event("a", samples.event(1, text="x" * 9_000))
                await other.append_event("a", samples.event(2, text="y"))
            if event.bookmark.seq == 2:
                return found
    return found
