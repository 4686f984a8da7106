"""Faults of readers who know the contract's sentences but not their edges."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sqlite3
import tempfile
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from kode_conformance.values import samples
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, seen, talk, the
from kode_core.batch import Applied, Batch, DocKind, DocWrite, EventRange, EventWrite, ListKind, Outcome
from kode_core.codec import encode_list
from kode_core.engines import scan
from kode_core.errors import InvalidArgumentError, InvalidValueError, PayloadTooLargeError
from kode_core.jsonvalue import decode_json, encode_json
from kode_core.layers import Layer
from kode_core.metadata import _canonical
from kode_core.model import (
    AgentEvent,
    Bookmark,
    CompressionRecord,
    HistoryWindow,
    MediaCacheRecord,
    RecoveredFile,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
)

T0 = samples.T0


class _EachAlone(Layer):
    """Commits batches one after the other, through ``one``."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return [await self.one(batch) for batch in batches]

    async def one(self, batch: Batch) -> Outcome:
        return (await self.inner.commit([batch]))[0]


# --- values -----------------------------------------------------------------------------------------------------------


async def _types_of_mtime(store: Any) -> Any:
    for i, mtime in enumerate((1.0, 1.5, 2)):
        await store.save_recovered_file("a", RecoveredFile(path=f"p{i}", content="", mtime=mtime, timestamp=T0))
    return [repr(f.mtime) for f in await store.load_recovered_files("a")]


@fault(
    "VAL-1",
    source="SQLite: a column of NUMERIC affinity keeps 1.0 as the integer 1",
    witness=seen(_types_of_mtime),
)
class LynIntegralMtime(Wrapper):
    """Gives the mtime of a recovered file as an int where it was a float without a fraction."""

    __slots__ = ()

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        if isinstance(file, RecoveredFile) and type(file.mtime) is float:
            if file.mtime.is_integer() and abs(file.mtime) < 2**63:
                file = file.replace(mtime=int(file.mtime))
        await self.inner.save_recovered_file(agent_id, file, fence=fence)


@fault(
    "VAL-4",
    "MED-1",
    source="MySQL 5.7: max_allowed_packet is 4 MB, and the list is one JSON column",
    errors=True,
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("k").replace(file_uri="data:" + "x" * 50_000)] * 95),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class LynPacketOfMedia(Wrapper):
    """Refuses a media cache whose records have more than 4 MB together, though each is small."""

    __slots__ = ()

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and all(type(r) is MediaCacheRecord for r in records):
            try:
                size = len(encode_list(MediaCacheRecord, records, "media cache").text)
            except InvalidValueError:
                size = 0
            if size > 4 << 20:
                raise PayloadTooLargeError("media cache: larger than max_allowed_packet")
        await self.inner.save_media_cache(agent_id, records, fence=fence)


_BERLIN = ZoneInfo("Europe/Berlin")
_SECOND_HALF_PAST_TWO = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=_BERLIN)
_ONE_UTC = int(datetime(2026, 10, 25, 1, 0, tzinfo=UTC).timestamp() * 1000)


@fault(
    "VAL-5",
    "QRY-2",
    source="pytz and drivers that rebuild a datetime from its fields: fold is not one of them",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(created_at=_ONE_UTC)]),
        lambda s: the("id", s.query_tool_calls(created_after=_SECOND_HALF_PAST_TWO)),
        lambda s: the("id", s.query_tool_calls(created_before=_SECOND_HALF_PAST_TWO)),
    ),
)
class LynFoldless(Wrapper):
    """Takes a datetime of the hour that comes twice, when summer time ends, for the first of the two."""

    __slots__ = ()

    @staticmethod
    def _unfolded(filters: dict[str, Any]) -> dict[str, Any]:
        return {k: v.replace(fold=0) if isinstance(v, datetime) else v for k, v in filters.items()}

    async def query_sessions(self, **filters: Any) -> Any:
        return await self.inner.query_sessions(**self._unfolded(filters))

    async def query_messages(self, **filters: Any) -> Any:
        return await self.inner.query_messages(**self._unfolded(filters))

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await self.inner.query_tool_calls(**self._unfolded(filters))


async def _config_of_a_newer_version(store: Any) -> Any:
    record = samples.compression()
    config = record.config.replace(extra={"temperature": 0.5})
    await store.save_compression_record("a", record.replace(config=config, extra={"cost": 3}))
    return [(r.extra, r.config.extra) for r in await store.load_compression_records("a")]


@fault(
    "VAL-6",
    "VAL-1",
    "VAL-2",
    source="an object in an object with a class of its own: pydantic's extra='allow' is not inherited by nested models",
    witness=seen(_config_of_a_newer_version),
)
class LynKnownConfig(Wrapper):
    """Drops the fields that it does not know from the config of a compression record; those of the record stay."""

    __slots__ = ()

    async def save_compression_record(self, agent_id: str, record: Any, *, fence: Any = None) -> None:
        if isinstance(record, CompressionRecord) and isinstance(getattr(record.config, "extra", None), dict):
            record = record.replace(config=record.config.replace(extra=None))
        await self.inner.save_compression_record(agent_id, record, fence=fence)


# --- identifiers ------------------------------------------------------------------------------------------------------


async def _locks_beside(store: Any) -> Any:
    lease = await store.acquire_agent_lock("x", 5_000)
    try:
        other = await store.acquire_agent_lock("x ", 5_000)
    finally:
        await lease.release()
    await other.release()
    return True


@fault(
    "ID-2",
    "LOCK-1",
    "OPS-13",
    source="MySQL and SQL Server: 'x' = 'x ' in a PAD SPACE collation, here of the table of locks only",
    errors=True,
    witness=seen(_locks_beside),
)
class LynPaddedLocks(MemoryLayer):
    """Takes the lock of an agent for held when that of an agent is whose id has other spaces at its end."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        for other, (_, until) in self.space.leases.items():
            if other != agent_id and other.rstrip(" ") == agent_id.rstrip(" ") and until > time.monotonic():
                return None
        return await self.inner.acquire_lease(agent_id, owner, ttl_ms)


@fault(
    "ID-4",
    "HIS-1",
    source="PostgreSQL: index row size exceeds btree version 4 maximum 2704",
    errors=True,
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w" * 4096)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class LynIndexedWindowId(Wrapper):
    """Refuses the id of a history window of more than 2,704 bytes."""

    __slots__ = ()

    async def save_history_window(self, agent_id: str, window: Any, *, fence: Any = None) -> None:
        name = getattr(window, "id", None)
        if type(name) is str and len(name.encode("utf-8", "surrogatepass")) > 2704:
            raise InvalidArgumentError("history window id must be at most 2704 bytes")
        await self.inner.save_history_window(agent_id, window, fence=fence)


# --- messages ---------------------------------------------------------------------------------------------------------


async def _two_long_appends(store: Any) -> Any:
    await asyncio.gather(
        store.append_messages("a", talk(*["x"] * 1200)),
        store.append_messages("a", talk(*["y"] * 1200)),
    )
    texts = [m.text for m in await store.load_messages("a")]
    return sum(before != after for before, after in itertools.pairwise(texts))


@fault(
    "MSG-3",
    "DUR-3",
    source="Firestore: at most 500 writes in one batch; helpers that commit page by page",
    witness=seen(_two_long_appends),
)
class LynPagedAppend(Wrapper):
    """Appends more than 500 messages in several pieces, between which those of others may come."""

    __slots__ = ()

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if not isinstance(messages, (list, tuple)) or len(messages) <= 500:
            return await self.inner.append_messages(agent_id, messages, fence=fence)
        taken = list(messages)
        for i in range(0, len(taken), 500):
            await self.inner.append_messages(agent_id, taken[i : i + 500], fence=fence)


async def _append_behind_a_moved_one(store: Any, other: Any) -> Any:
    for context, now in ((store._context, 1_000), (other._context, 500)):
        context.now = lambda now=now: now
    a, b = talk("first", "second")
    await store.save_messages("a", [a])
    store._context.now = lambda: 2_000
    await store.append_messages("a", [b])
    await store.save_messages("a", [b, a])
    await other.append_messages("a", talk("third"))
    found = await store.query_messages(agent_id="a", order="asc")
    return sorted((m.position, m.created_at) for m in found)


@fault(
    "MSG-4",
    source="SELECT created_at … ORDER BY position DESC LIMIT 1 where max(created_at) was meant",
    witness=seen(_append_behind_a_moved_one),
)
class LynLastRowTime(MemoryLayer, _EachAlone):
    """Lets an appended message be as old as the last one, when one that was moved to the end is older than others."""

    async def one(self, batch: Batch) -> Outcome:
        (outcome,) = await self.inner.commit([batch])
        write = batch.messages
        if isinstance(outcome, Applied) and write is not None and write.is_blind:
            state = self.space.state(batch.agent_id).lists[ListKind.MESSAGES]
            kept = len(state.rows) - len(write.append)
            if kept > 0:
                last = state.rows[kept - 1].created_at
                state.rows[kept:] = [replace(r, created_at=max(r.created_at, last)) for r in write.append]
                state._latest = None
        return outcome


# --- tool calls -------------------------------------------------------------------------------------------------------


def _written() -> int:
    return int(re.search(r"wchar: (\d+)", Path("/proc/self/io").read_text())[1])  # type: ignore[index]


async def _cost_of_the_first(store: Any) -> Any:
    calls = [samples.tool_call(i) for i in range(2_000)]
    await store.save_tool_call_records("a", calls)
    before = _written()
    await store.save_tool_call_records("a", [samples.tool_call(0, result="new"), *calls[1:]])
    return _written() - before > 250_000


@fault(
    "TC-1",
    "MSG-5",
    source="an ordered list in SQL: positions are moved out of the way and back around each change (acts_as_list)",
    on=OnSqlite,
    witness=seen(_cost_of_the_first),
)
class LynMovesTheRest(SqliteEngine):
    """Writes all tool call records behind one that was replaced again, though they stay where they are."""

    def _do_all(self, db: sqlite3.Connection, transaction: Any, jobs: list[Any]) -> list[Any]:
        results = super()._do_all(db, transaction, jobs)
        for batch in (b for job in jobs for b in job.batches):
            if batch.tool_calls is not None and batch.tool_calls.put:
                place = (batch.agent_id, batch.tool_calls.put[-1][0])
                move = "UPDATE kode_tool_calls SET position = -1 - position WHERE agent_id = ? AND "
                db.execute(move + "position > ?", place)
                db.execute(move + "position < 0", place[:1])
        return results


async def _twice_in_a_turn(store: Any) -> Any:
    twice = [samples.tool_call(0, state="EXECUTING"), samples.tool_call(1), samples.tool_call(0, state="FAILED")]
    await store.save_turn("a", upsert_tool_calls=twice)
    return [(c.id, c.state) for c in await store.load_tool_call_records("a")]


@fault(
    "TC-3",
    "TURN-1",
    source="PostgreSQL: ON CONFLICT DO UPDATE cannot affect a row a second time, and SELECT DISTINCT ON takes the first",
    witness=seen(_twice_in_a_turn),
)
class LynFirstOfTheTurn(Wrapper):
    """Keeps the earlier of two tool calls with one id that a turn upserts; upsert_tool_call_records keeps the later."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Any = (), **rest: Any) -> None:
        if isinstance(upsert_tool_calls, (list, tuple)):
            if all(type(c) is ToolCallRecord and type(c.id) is str for c in upsert_tool_calls):
                first: dict[str, Any] = {}
                for call in upsert_tool_calls:
                    first.setdefault(call.id, call)
                upsert_tool_calls = [*first.values()]
        await self.inner.save_turn(agent_id, upsert_tool_calls=upsert_tool_calls, **rest)


@fault(
    "QRY-7",
    "TC-2",
    source="count(DISTINCT call_id), to be safe from the doubles of a join",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i % 2) for i in range(5)]),
        lambda s: s.aggregate_stats("a"),
    ),
)
class LynDistinctCalls(MemoryLayer):
    """Counts the tool calls of one id once in the total; by name and by state they are all counted."""

    async def stats(self, agent_id: str) -> Any:
        stats = await self.inner.stats(agent_id)
        rows = self.space.state(agent_id).lists[ListKind.TOOL_CALLS].rows
        return replace(stats, total_tool_calls=len({row.index.call_id for row in rows}))


# --- turns ------------------------------------------------------------------------------------------------------------


async def _looks_during_a_turn(store: Any) -> Any:
    turn = asyncio.ensure_future(
        store.save_turn("a", append=samples.messages(60), events=samples.events(60), info=samples.info("a"))
    )
    halves = set()
    while not turn.done():
        await asyncio.sleep(0)
        messages = len(await store.load_messages("a"))
        halves.add(messages > 0 and [e async for e in store.read_events("a")] == [])
    await turn
    return True in halves


@fault(
    "TURN-1",
    "DUR-3",
    source="DynamoDB: TransactWriteItems takes at most 100 actions",
    witness=seen(_looks_during_a_turn),
)
class LynHundredActions(_EachAlone):
    """Writes the events of a turn of more than 100 records in a transaction of their own."""

    async def one(self, batch: Batch) -> Outcome:
        lists = sum(len(write.put) + len(write.append) for write in batch.lists.values())
        count = lists + len(batch.docs) + len(batch.events) + (batch.info is not None)
        if not batch.events or count == len(batch.events) or count <= 100:
            return await super().one(batch)
        first = await super().one(replace(batch, events=()))
        if not isinstance(first, Applied):
            return first
        await asyncio.sleep(0.005)  # another request
        second = await super().one(
            Batch(
                agent_id=batch.agent_id,
                op_id=f"{batch.op_id}-events",
                now=batch.now,
                fence=batch.fence,
                events=batch.events,
            )
        )
        return replace(first, offsets=second.offsets) if isinstance(second, Applied) else second


# --- events -----------------------------------------------------------------------------------------------------------


def _event(**data: Any) -> Timeline:
    return Timeline(1, Bookmark(1, T0), AgentEvent("progress", "text_chunk", data))


async def _alike(store: Any) -> Any:
    for event in (_event(n=1, m=2), _event(n=1.0, m=2), _event(m=2, n=1), _event(n=1, m=2)):
        await store.append_event("a", event)
    return [repr(e.event.data) async for e in store.read_events("a")]


@fault(
    "EVT-4",
    "EVT-3",
    "EVT-1",
    "VAL-1",
    source="PostgreSQL: jsonb is equal whatever the order of keys, and 1 is 1.0",
    witness=seen(_alike),
)
class LynEqualAsJsonb(_EachAlone):
    """Takes an event for a repeated one when another of its seq differs only in the order of keys, or as 1 and 1.0."""

    async def one(self, batch: Batch) -> Outcome:
        if not batch.events:
            return await super().one(batch)
        return await super().one(
            replace(batch, events=tuple([await self._known(batch.agent_id, e) for e in batch.events]))
        )

    async def _known(self, agent_id: str, event: EventWrite) -> EventWrite:
        log = self.inner._space.state(agent_id).log  # type: ignore[attr-defined]
        if log.find(event.seq, event.body.digest) is not None:
            return event
        for row in log.read(EventRange(since_seq=event.seq - 1, limit=1)):
            if row.seq == event.seq and _equal_text(row.body.text) == _equal_text(event.body.text):
                return replace(event, body=row.body)
        return event


def _equal_text(text: str) -> str:
    return encode_json(_canonical(decode_json(text)), "event")


@fault(
    "EVT-5",
    "EVT-7",
    source="DynamoDB: a FilterExpression is applied after Limit, so that a page may be short or empty before the end",
    witness=seen(
        lambda s: s.append_events(
            "a", [samples.event(i, "monitor" if i % 50 == 0 else "progress") for i in range(300)]
        ),
        lambda s: the("offset", _all(s.read_events("a", after_offset=0, channel="monitor"))),
        lambda s: the("offset", _all(s.read_events("a", channel="monitor"))),
    ),
)
class LynFilteredPages(Layer):
    """Ends the events of one channel by offset at the first page that has others in it."""

    async def events(self, agent_id: str, span: Any) -> Any:
        if span.channel is None or span.order != "offset":
            return await self.inner.events(agent_id, span)
        rows = await self.inner.events(agent_id, replace(span, channel=None))
        return [row for row in rows if json.loads(row.body.text)["event"]["channel"] == span.channel]


async def _all(records: Any) -> list[Any]:
    return [record async for record in records]


@fault(
    "EVT-6",
    "VAL-3",
    source="JavaScript and Python: if (!row.seq) return null",
    witness=seen(
        lambda s: s.append_events("a", happened(-1, 0)),
        lambda s: s.last_bookmark("a"),
        lambda s: s.append_events("b", happened(0)),
        lambda s: s.last_bookmark("b"),
    ),
)
class LynSeqZero(Wrapper):
    """Has no last bookmark as long as the highest seq is 0."""

    __slots__ = ()

    async def last_bookmark(self, agent_id: str) -> Any:
        found = await self.inner.last_bookmark(agent_id)
        return found if found is not None and found.seq else None


# --- infos and todos --------------------------------------------------------------------------------------------------


async def _saves_no_calls(store: Any) -> Any:
    await store.save_info("a", samples.info("a"))
    times = []
    for calls in ([], [samples.tool_call()], [], []):
        await store.save_tool_call_records("a", calls)
        times += await the("updated_at", store.query_sessions())
    return [before < after for before, after in itertools.pairwise(times)], len(set(times))


@fault(
    "INFO-2",
    source="a trigger FOR EACH ROW: DELETE of no rows fires none",
    witness=seen(_saves_no_calls),
)
class LynNoRowsNoTrigger(_EachAlone):
    """Does not move updated_at when no tool call records are saved over none."""

    async def one(self, batch: Batch) -> Outcome:
        write = batch.tool_calls
        if write is not None and not (write.put or write.append):
            summary = await self.inner.summary(batch.agent_id)
            if summary is not None and summary.tool_calls.count == 0:
                batch = replace(batch, tool_calls=None)
        return await super().one(batch)


@fault(
    "TODO-1",
    "TURN-1",
    source="Elasticsearch version_type=external, and JPA's @Version: what is older than the stored version is dropped",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x", "y", "z")),
        lambda s: s.save_todos("a", samples.todos("x")),
        lambda s: s.load_todos("a"),
    ),
)
class LynNewestVersion(_EachAlone):
    """Keeps the todos that are stored when those that are saved have a smaller version."""

    async def one(self, batch: Batch) -> Outcome:
        docs = [doc for doc in batch.docs if not await self._is_old(batch.agent_id, doc)]
        return await super().one(replace(batch, docs=tuple(docs)))

    async def _is_old(self, agent_id: str, write: DocWrite) -> bool:
        if write.kind is not DocKind.TODOS or write.doc is None:
            return False
        stored = await self.inner.docs(agent_id, DocKind.TODOS, write.key)
        return bool(stored) and _version(write.doc) < _version(stored[0])


def _version(doc: Any) -> int:
    return int(json.loads(doc.body.text).get("version", TodoSnapshot().version))


# --- history, snapshots -----------------------------------------------------------------------------------------------


async def _compressions(store: Any) -> Any:
    for name in ("\U0001f600", "a", "\uff5e", "\ue000"):
        await store.save_compression_record("a", samples.compression(name))
    return await the("id", store.load_compression_records("a"))


@fault(
    "HIS-1",
    source="JavaScript, Java and SQL Server: strings are compared by their UTF-16 units",
    witness=seen(_compressions),
)
class LynUtf16Order(Wrapper):
    """Gives compression records of one timestamp in the order of UTF-16: astral ids before those above U+E000."""

    __slots__ = ()

    async def load_compression_records(self, agent_id: str) -> Any:
        found = await self.inner.load_compression_records(agent_id)
        return sorted(found, key=lambda r: (r.timestamp, r.id.encode("utf-16-be")))


@fault(
    "HIS-2",
    "ID-4",
    "ID-2",
    source="APFS and HFS+: two names that are one in NFC are one file",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("caf\u00e9.md")),
        lambda s: s.save_recovered_file("a", samples.recovered("cafe\u0301.md")),
        lambda s: the("path", s.load_recovered_files("a")),
    ),
)
class LynNormalPaths(_EachAlone):
    """Replaces a recovered file by one of the same timestamp whose path is the same text in another normal form."""

    async def one(self, batch: Batch) -> Outcome:
        docs: list[DocWrite] = []
        for write in batch.docs:
            if write.kind is DocKind.RECOVERED and write.doc is not None and not write.key.isascii():
                stored = await self.inner.docs(batch.agent_id, DocKind.RECOVERED)
                same = [d.key for d in stored if d.key != write.key and _normal(d.key) == _normal(write.key)]
                docs += [DocWrite(DocKind.RECOVERED, key, None) for key in same]
            docs.append(write)
        return await super().one(replace(batch, docs=tuple(docs)))


def _normal(key: str) -> list[Any]:
    path, timestamp = decode_json(key)
    return [unicodedata.normalize("NFC", path), timestamp]


async def _snapshots(store: Any) -> Any:
    for name, created_at in (("new", T0), ("zero", 0), ("old", -86_400_000)):
        await store.save_snapshot("a", samples.snapshot(name, created_at))
    return await the("id", store.list_snapshots("a"))


@fault(
    "SNAP-1",
    source="RocksDB and LevelDB: a time as 8 bytes of a key, big-endian and unsigned",
    witness=seen(_snapshots),
)
class LynUnsignedTimes(Wrapper):
    """Lists snapshots of before 1970 as the newest ones."""

    __slots__ = ()

    async def list_snapshots(self, agent_id: str) -> Any:
        found = await self.inner.list_snapshots(agent_id)
        return sorted(found, key=lambda s: (-(s.created_at % 2**64), s.id))


# --- lifecycle --------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-5",
    "LIFE-3",
    "LIFE-4",
    source="a table that came later: its name is in the list of delete, and not in that of the bulk delete",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_compression_record("a", samples.compression()),
        lambda s: s.delete_many(template_id="assistant"),
        lambda s: the("id", s.load_compression_records("a")),
    ),
)
class LynForgottenTable(_EachAlone):
    """Leaves the compression records of the agents that delete_many deletes."""

    async def one(self, batch: Batch) -> Outcome:
        is_of_many = batch.delete and batch.expect_updated_at is not None
        kept = await self.inner.docs(batch.agent_id, DocKind.COMPRESSIONS) if is_of_many else ()
        outcome = await super().one(batch)
        if kept and isinstance(outcome, Applied):
            docs = tuple(DocWrite(DocKind.COMPRESSIONS, doc.key, doc) for doc in kept)
            await super().one(Batch(agent_id=batch.agent_id, op_id=f"{batch.op_id}-k", now=batch.now, docs=docs))
        return outcome


async def _prefixed(store: Any) -> Any:
    for name in ("bot-a", "bot-\U0001f916", "bot-", "bot", "\U0001f916"):
        await store.save_info(name, samples.info(name))
    return await store.list("bot-"), await store.list()


@fault(
    "LIFE-2",
    "ID-1",
    source="CouchDB and Firestore: startkey = prefix, endkey = prefix + '\\ufff0'",
    witness=seen(_prefixed),
)
class LynHighSentinel(Wrapper):
    """Leaves out of a list by prefix the ids that go on with an emoji behind it."""

    __slots__ = ()

    async def list(self, prefix: str = "") -> Any:
        found = await self.inner.list(prefix)
        return [i for i in found if not prefix or i < prefix + "\ufff0"]


# --- queries ----------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")


def _as_doubles(pairs: Any) -> set[tuple[str, str]]:
    return {(k, repr(float(v)) if _NUMBER.fullmatch(v) else v) for k, v in pairs}


@fault(
    "QRY-2",
    "VAL-1",
    source="JavaScript, SQLite's and MySQL's JSON functions: numbers are compared as doubles",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"ticket": 2**53})),
        lambda s: s.save_info("b", samples.info("b", metadata={"ticket": 2**53 + 1})),
        lambda s: the("agent_id", s.query_sessions(metadata={"ticket": 2**53 + 1})),
    ),
)
class LynDoubleMetadata(MemoryLayer):
    """Finds sessions by an integer above 2**53 whose own is another one with the same double."""

    async def find_sessions(self, query: Any) -> Any:
        if not any(_NUMBER.fullmatch(value) for _, value in query.metadata):
            return await self.inner.find_sessions(query)
        wanted = _as_doubles(query.metadata)
        states = self.space.states.values()
        some = [s for s in states if s.info is not None and wanted <= _as_doubles(s.info.metadata)]
        return scan.find_sessions(some, replace(query, metadata=()))


@fault(
    "QRY-5",
    "QRY-4",
    source="S3 and Azure Tables: at most 1,000 items in a response, whatever was asked for",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(1_500)),
        lambda s: _lengths(s.query_messages(limit=1_200), s.query_messages(limit=2_000), s.query_messages(limit=1_000)),
    ),
)
class LynPageOfAThousand(Wrapper):
    """Gives pages of 1,000 messages when more are asked for, with a cursor to the rest."""

    __slots__ = ()

    async def query_messages(self, **filters: Any) -> Any:
        limit = filters.get("limit")
        if type(limit) is int and 1_000 < limit <= 10_000:
            filters["limit"] = 1_000
        return await self.inner.query_messages(**filters)


async def _lengths(*pages: Any) -> list[int]:
    return [len(await page) for page in pages]


# --- operations -------------------------------------------------------------------------------------------------------


async def _a_bad_agent_behind_many(store: Any) -> Any:
    for i in range(1_001):
        await store.save_info(f"a{i:04}", samples.info(f"a{i:04}"))
    await store.save_messages("a1000", [samples.rich_messages()[4]])
    found = await store.check_consistency()
    return found.agents_checked, [issue.code for issue in found.issues]


@fault(
    "OPS-2",
    source="S3, ListObjectsV2: 1,000 keys, and a continuation token that nobody looked at",
    witness=seen(_a_bad_agent_behind_many),
)
class LynFirstThousandChecked(Layer):
    """Checks the first 1,000 agents when all are to be checked."""

    async def stored_ids(self, after: str | None, limit: int) -> Any:
        return [] if after is not None else await self.inner.stored_ids(None, min(limit, 1_000))


async def _notes_of_a_refusal(store: Any) -> Any:
    window = samples.window().replace(messages=talk("my password is swordfish", "\ud83d\ude00"))
    try:
        await store.save_history_window("a", window)
    except InvalidValueError as exc:
        return ["swordfish" in note for note in getattr(exc, "__notes__", [])]
    return None


@fault(
    "OPS-12",
    source="Python: add_note, and Hypothesis, pytest and Sentry, which show the arguments with an error",
    witness=seen(_notes_of_a_refusal),
)
class LynNotesTheRecord(Wrapper):
    """Adds the refused history window to the error, as a note, which every traceback shows."""

    __slots__ = ()

    async def save_history_window(self, agent_id: str, window: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.save_history_window(agent_id, window, fence=fence)
        except InvalidValueError as exc:
            if isinstance(window, HistoryWindow):
                exc.add_note(f"the record was {window!r:.1000}")
            raise


async def _tokens_in_a_copy(store: Any) -> Any:
    for _ in range(3):
        lease = await store.acquire_agent_lock("a")
        await lease.release()
    with tempfile.TemporaryDirectory() as folder:
        (copy,) = await store.backup(Path(folder) / "copy.db")
        engine = await SqliteEngine.open(SqliteOptions(db_path=str(copy), durability="fast"))
        token = await engine.acquire_lease("a", "me", 1_000)
        await engine.close()
    return token is not None and token > lease.token


@fault(
    "OPS-16",
    "LOCK-5",
    source="pg_dump of some tables: the sequence that no table owns begins at 1 in the copy",
    on=OnSqlite,
    witness=seen(_tokens_in_a_copy),
)
class LynBackupWithoutSequence(SqliteEngine):
    """Lets the tokens of leases begin anew in a backup."""

    async def backup(self, target: Path, *args: Any, **kwargs: Any) -> list[Path]:
        made = await super().backup(target, *args, **kwargs)

        def reset() -> None:
            with sqlite3.connect(made[0]) as db:
                db.execute("DELETE FROM kode_meta WHERE key = 'last_token'")
                db.execute("DELETE FROM kode_leases")
            db.close()

        await asyncio.to_thread(reset)
        return made


# --- leases -----------------------------------------------------------------------------------------------------------


async def _after_a_short_lease(store: Any) -> Any:
    await store.acquire_agent_lock("a", ttl_ms=100)
    await asyncio.sleep(0.2)
    lease = await store.acquire_agent_lock("a", wait_ms=300)
    await lease.release()
    return True


@fault(
    "LOCK-3",
    "LOCK-2",
    source="memcached and etcd: a time to live in whole seconds, rounded up",
    errors=True,
    witness=seen(_after_a_short_lease),
)
class LynWholeSeconds(Layer):
    """Holds a lease that nobody renews for whole seconds, so that one of 100 ms ends after one."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await self.inner.acquire_lease(agent_id, owner, -(-ttl_ms // 1000) * 1000)

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        return await self.inner.renew_lease(agent_id, fence, -(-ttl_ms // 1000) * 1000)


async def _late_turns(store: Any) -> Any:
    lease = await store.acquire_agent_lock("a")
    await lease.release()
    told = []
    for what in (
        {"todos": samples.todos("x")},
        {"events": happened(1)},
        {"todos": samples.todos("y"), "events": happened(2)},
    ):
        try:
            await store.save_turn("a", **what, fence=lease)
            told.append("")
        except Exception as exc:
            told.append(type(exc).__name__)
    return told, await store.load_todos("a")


@fault(
    "LOCK-5",
    "TURN-1",
    source="the fence as a condition of UPDATE agents … WHERE token = ?, and a turn that leaves that row alone",
    witness=seen(_late_turns),
)
class LynUnfencedTurn(Layer):
    """Writes a turn of todos and events, without messages, tool calls and info, though its lease has ended."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.inner.commit(
            [replace(b, fence=None) if b.docs and b.events and not b.is_touching else b for b in batches]
        )


# --- forks and durability ---------------------------------------------------------------------------------------------


async def _todos_of_a_fork(store: Any) -> Any:
    await store.save_info("a", samples.info("a"))
    await store.save_todos("a", TodoSnapshot(todos=[], version=7, updated_at=T0))
    (fork,) = await store.batch_fork("a", 1)
    return await store.load_todos(fork)


@fault(
    "FORK-1",
    "VAL-3",
    source="Python and JavaScript: if parent.todos: copy them",
    witness=seen(_todos_of_a_fork),
)
class LynNothingToDo(MemoryLayer):
    """Leaves a fork without todos when the parent's list is empty."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await self.inner.fork(agent_id, children, expect, now)
        for child in children if done else ():
            docs = self.space.states[child.agent_id].docs
            doc = docs.get((DocKind.TODOS, ""))
            if doc is not None and not json.loads(doc.body.text).get("todos"):
                del docs[DocKind.TODOS, ""]
        return done


@dataclass
class _Late:
    batches: list[Batch] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    task: asyncio.Task[None] | None = None


@fault(
    "DUR-1",
    "QRY-8",
    source="Redis appendfsync everysec, MySQL innodb_flush_log_at_trx_commit=0: an acknowledged write waits for a second",
    on=OnSqlite,
    witness=seen(
        lambda s, t: s.save_history_window("a", samples.window()),
        lambda s, t: the("id", t.load_history_windows("a")),
    ),
)
class LynWindowsEverySecond(Layer):
    """Writes history windows a second after they were acknowledged, or before the next call of the same store."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.late = _Late()

    async def around(self, verb: str, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        await self._flush()
        return await call(*args, **kwargs)

    async def _flush(self) -> None:
        async with self.late.turn:
            batches, self.late.batches = self.late.batches, []
            if batches:
                await self.inner.commit(batches)

    def _start(self) -> None:
        if self.late.batches:
            self.late.task = asyncio.get_running_loop().create_task(self._flush())

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if not all(_is_window(batch) for batch in batches):
            return await super().commit(batches)
        self.late.batches += batches
        asyncio.get_running_loop().call_later(1.0, self._start)
        return [Applied() for _ in batches]


def _is_window(batch: Batch) -> bool:
    others = batch.fence or batch.delete or batch.is_touching or batch.events
    return not others and bool(batch.docs) and all(doc.kind is DocKind.WINDOWS for doc in batch.docs)
