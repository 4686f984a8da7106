"""Five companies that each write a store: on Redis, on Cassandra, on S3 with files, on an ORM over MySQL, on their old
key-value service.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import posixpath
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnJson, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, seen, the
from kode_core.backends.memory.engine import MemorySpace
from kode_core.batch import Applied, DocKind, DocWrite, Fence, ListKind
from kode_core.codec import Body, digest, encode
from kode_core.engines import scan
from kode_core.engines.event_log import EventLog
from kode_core.errors import CorruptRecordError, PayloadTooLargeError, StoreClosedError
from kode_core.found import SessionRow
from kode_core.ids import check_agent_id
from kode_core.jsonvalue import decode_json, encode_json
from kode_core.layers import Layer
from kode_core.model import (
    Bookmark,
    CompressionRecord,
    HistoryStats,
    HistoryWindow,
    RecoveredFile,
    Snapshot,
    ToolCallApproval,
    now_ms,
)
from kode_core.store import EngineStore, kinds
from kode_core.store.locks import ENTERED
from kode_core.store.methods import METHODS

T0 = samples.T0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
log = logging.getLogger("kode_core")


def is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


async def times_of(store: Any, agent_id: str = "a") -> int:
    (session,) = await store.query_sessions(agent_id=agent_id)
    return int(session.updated_at)


# --- the first company: Redis -----------------------------------------------------------------------------------------


async def _touched_by_nothing(ctx: Any) -> object:
    found = []
    await ctx.store.save_info("a", samples.info("a"))
    for save in ("save_tool_call_records", "append_messages", "upsert_tool_call_records"):
        before = await times_of(ctx.store)
        await getattr(ctx.store, save)("a", [])
        found.append(await times_of(ctx.store) > before)
    return found


@fault(
    "INFO-2",
    source="Redis: RPUSH and HSET without values are errors, so that clients return early when there is nothing to push",
    witness=_touched_by_nothing,
)
class BadEmptyUpsertIsNoSave(EngineStore):
    """Returns early from an upsert of no tool calls, so that ``updated_at`` stays."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        async def nothing() -> None:
            check_agent_id(agent_id)

        is_fenced = type(agent_id) is str and self._locks.fence(agent_id, fence) is not None
        if is_list(records) and not records and not is_fenced:
            await self._context.run(METHODS["upsert_tool_call_records"], agent_id, nothing)
        else:
            await super().upsert_tool_call_records(agent_id, records, fence=fence)


async def _in_one_piece(ctx: Any) -> object:
    calls = [ctx.store.append_events("a", samples.events(1_500, start)) for start in (0, 10_000, 20_000)]
    await asyncio.gather(*calls)
    producers = [event.bookmark.seq // 10_000 for event in await _read(ctx.store, after_offset=0)]
    return sum(one != other for one, other in itertools.pairwise(producers))


@fault(
    "EVT-1",
    "VAL-2",
    "OPS-9",
    source="redis-py pipelines, which people send in pieces of 1,000 commands",
    witness=_in_one_piece,
)
class BadPipelineOfAThousand(Wrapper):
    """Appends the events of one call in pieces of 1,000, between which others append."""

    __slots__ = ()

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Sequence[int]:
        if not is_list(timelines) or len(timelines) <= 1_000:
            return await self.inner.append_events(agent_id, timelines, fence=fence)
        taken, offsets = tuple(timelines), []
        for start in range(0, len(taken), 1_000):
            offsets += await self.inner.append_events(agent_id, taken[start : start + 1_000], fence=fence)
        return offsets


class _LooksBeforeTheCall(EventLog):
    __slots__ = ()

    def offsets_for(self, events: Any) -> tuple[int, ...]:
        offsets, fresh = [], self.next_offset
        for event in events:
            known = self.find(event.seq, event.body.digest)
            offsets.append(fresh if known is None else known)
            fresh += known is None
        return tuple(offsets)


@fault(
    "EVT-4",
    source="Redis: SMISMEMBER of all digests, then XADD and SADD of those that were not there, in one MULTI",
    witness=seen(
        lambda s: asyncio.gather(*(s.append_event("a", samples.event(n)) for n in (1, 2, 1))),
        lambda s: s.append_event("a", samples.event(2)),
        lambda s: the("offset", _read(s)),
    ),
)
class BadRepeatInsideOneCall(MemoryLayer):
    """Stores an identical entry twice when both are in one write: it only looks for those that were there before."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.space.__dict__["state"] = functools.partial(_state_with, _LooksBeforeTheCall, self.space)


def _state_with(kind: type[EventLog], space: MemorySpace, agent_id: str) -> Any:
    """The agent's state, with another log."""
    state = MemorySpace.state(space, agent_id)
    state.log.__class__ = kind
    return state


async def _read(store: Any, **given: Any) -> list[Any]:
    return [event async for event in store.read_events("a", **given)]


async def _tokens_over_delete(ctx: Any) -> object:
    tokens = []
    for _ in range(2):
        for _ in range(2):
            lease = await ctx.store.acquire_agent_lock("a")
            tokens.append(lease.token)
            await lease.release()
        await ctx.store.save_info("a", samples.info("a"))
        await ctx.store.delete("a")
    return tokens == sorted(set(tokens))


@fault(
    "LOCK-5",
    "LIFE-3",
    source="Redis: INCR agent:{id}:fence, and a delete that unlinks all of SCAN MATCH agent:{id}:*",
    witness=_tokens_over_delete,
)
class BadFenceCounterGoesToo(MemoryLayer):
    """Removes the counter of an agent's lock tokens with the agent, so that they begin at 1 again."""

    @property
    def tokens(self) -> dict[str, int]:
        return self.space.__dict__.setdefault("tokens_of_agents", {})

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete and isinstance(outcome, Applied):
                self.tokens.pop(batch.agent_id, None)
        return outcomes

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        if token is None:
            return None
        token = self.tokens[agent_id] = self.tokens.get(agent_id, 0) + 1
        self.space.leases[agent_id] = (Fence(owner, token), self.space.leases[agent_id][1])
        return token


async def _listed_literally(ctx: Any) -> object:
    for agent_id in ("x\\y1", "xy1", "x*2", "x?3", "x[4"):
        await ctx.store.save_info(agent_id, samples.info(agent_id))
    return [await ctx.store.list(prefix) for prefix in ("x\\y", "x*", "x?", "x[", "x", "x\\")]


@fault(
    "LIFE-2",
    "ID-1",
    source="Redis: SCAN MATCH; the glob characters * ? [ ] are escaped, and the backslash itself is not",
    witness=_listed_literally,
    on=OnSqlite,
)
class BadGlobKeepsBackslash(Wrapper):
    """Takes a backslash in the prefix of ``list`` for an escape of the character behind it."""

    __slots__ = ()

    async def list(self, prefix: str = "") -> Any:
        if isinstance(prefix, str):
            prefix = re.sub(r"\\(.)", r"\1", prefix, flags=re.DOTALL)
        return await self.inner.list(prefix)


@fault(
    "SNAP-1",
    "VAL-1",
    source="Redis: scores of sorted sets are doubles, exact up to 2**53",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("a", 2**53)),
        lambda s: s.save_snapshot("a", samples.snapshot("z", 2**53 + 1)),
        lambda s: s.save_snapshot("a", samples.snapshot("m", 2**60)),
        lambda s: s.save_snapshot("a", samples.snapshot("n", 2**60 + 7)),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class BadScoresAreDoubles(EngineStore):
    """Lists snapshots by ``created_at`` as a double, so that large ones that differ by little are in order of id."""

    async def list_snapshots(self, agent_id: str) -> Any:
        found = await super().list_snapshots(agent_id)
        return sorted(found, key=lambda snapshot: (-float(snapshot.created_at), snapshot.id))


# --- the second company: Cassandra ------------------------------------------------------------------------------------


async def _later_stays(ctx: Any) -> object:
    found = set()
    for _ in range(100):
        for word in "zma":
            await ctx.store.save_snapshot("a", samples.snapshot("s").replace(metadata={"word": word}))
        found.add((await ctx.store.load_snapshot("a", "s")).metadata["word"])
    return found


@fault(
    "SNAP-1",
    source="Cassandra: of two cells with the same timestamp the greater value stays; the mapper stamps in milliseconds",
    witness=_later_stays,
)
class BadEqualTimestampsGreaterWins(Wrapper):
    """Keeps the greater of two values of a snapshot that were saved within one millisecond, and not the later."""

    __slots__ = ("last",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.last: tuple[str, int, Snapshot, str] | None = None

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        now, last = now_ms(), self.last
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)
        text = encode(Snapshot, snapshot, "snapshot").text
        if last is not None and last[:2] == (agent_id, now) and last[2].id == snapshot.id and text < last[3]:
            await self.inner.save_snapshot(agent_id, last[2], fence=fence)
        else:
            self.last = (agent_id, now, snapshot, text)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        self.last = None
        await self.inner.delete(agent_id, fence=fence)

    async def delete_many(self, **given: Any) -> Any:
        self.last = None
        return await self.inner.delete_many(**given)


@fault(
    "TC-3",
    "VAL-3",
    "TC-1",
    source="Cassandra drivers: a None is bound as UNSET, so that the column keeps what it had and no tombstone is made",
    on=OnSqlite,
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0, error="timeout", is_error=True)]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(0, error=None, is_error=None)]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class BadNoneIsUnset(Layer):
    """Keeps the optional fields of a stored tool call that the record which replaces it leaves out."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._merged(batch) for batch in batches])

    async def _merged(self, batch: Any) -> Any:
        write = batch.tool_calls
        if write is None or not write.put or batch.delete:
            return batch
        put = []
        for position, row in write.put:
            stored = (await self.inner.rows_at(batch.agent_id, ListKind.TOOL_CALLS, position, 1)).rows
            new = decode_json(row.body.text)
            old = decode_json(stored[0][0].text) if stored else {}
            if old.get("id") == new["id"] and old.keys() - new.keys():
                text = encode_json({**new, **{key: old[key] for key in old if key not in new}}, "tool call")
                row = replace(row, body=Body(text, digest(text.encode())))
            put.append((position, row))
        return replace(batch, tool_calls=replace(write, put=tuple(put)))


async def _many_ids(ctx: Any) -> object:
    for i in range(5_001):
        await ctx.store.save_info(f"agent-{i:05}", samples.info(f"agent-{i:05}"))
    return len(await ctx.store.list()), len(await ctx.store.list("agent-0"))


@fault(
    "LIFE-2",
    source="Cassandra drivers: fetch_size is 5,000, and current_rows has the first page only",
    witness=_many_ids,
)
class BadCurrentRowsOnly(Wrapper):
    """Lists the first 5,000 ids only."""

    __slots__ = ()

    async def list(self, prefix: str = "") -> Any:
        return (await self.inner.list(prefix))[:5_000]


HALF_A_MS = timedelta(microseconds=500)


async def _microseconds(ctx: Any) -> object:
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i) for i in range(3)])
    moment = EPOCH + timedelta(milliseconds=T0 + 1) + HALF_A_MS
    return [
        await the("id", ctx.store.query_tool_calls(created_after=moment)),
        await the("id", ctx.store.query_tool_calls(created_before=moment)),
        await the("id", ctx.store.query_tool_calls(created_after=moment - HALF_A_MS)),
    ]


@fault(
    "VAL-5",
    "QRY-2",
    source="Cassandra's timestamp type: drivers cut a datetime to whole milliseconds",
    witness=_microseconds,
)
class BadDatetimesAreCut(Wrapper):
    """Cuts a datetime that tool calls are filtered by to the millisecond before it."""

    __slots__ = ()

    async def query_tool_calls(self, **filters: Any) -> Any:
        for name in ("created_after", "created_before"):
            value = filters.get(name)
            if isinstance(value, datetime) and value.utcoffset() is not None:
                filters[name] = (value - EPOCH) // timedelta(milliseconds=1)
        return await self.inner.query_tool_calls(**filters)


@fault(
    "TURN-1",
    "VAL-2",
    "ID-3",
    source="Cassandra: a logged batch is for one partition, and the events are in a table with another partition key",
    on=OnJson,
    witness=seen(
        lambda s: s.save_turn(
            "a", append=samples.messages(1), todos=samples.todos("x"), events=happened(1), info=samples.info("other")
        ),
        lambda s: s.read_events("a"),
        lambda s: s.load_messages("a"),
    ),
)
class BadEventsInABatchOfTheirOwn(Wrapper):
    """Writes the events of a turn in a batch of its own before the rest, and leaves them when the rest is refused."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, events: Any = (), fence: Any = None, **parts: Any) -> None:
        if is_list(events) and events and any(part for part in parts.values()):
            await self.inner.append_events(agent_id, events, fence=fence)
            events = ()
        await self.inner.save_turn(agent_id, events=events, fence=fence, **parts)


async def _still_held(ctx: Any) -> object:
    await ctx.store.acquire_agent_lock("a", ttl_ms=1_900)
    other = await ctx.another()
    await asyncio.sleep(1.3)
    try:
        await other.acquire_agent_lock("a")
    except Exception as exc:
        return type(exc).__name__
    return "taken"


@fault(
    "LOCK-1",
    "LOCK-3",
    source="Cassandra: INSERT … IF NOT EXISTS USING TTL takes whole seconds, and ttl_ms // 1000 is what is given",
    witness=_still_held,
)
class BadLeasesOfWholeSeconds(Wrapper):
    """Lets a lease end at the last whole second of its time: one of 1,900 ms after 1,000 ms."""

    __slots__ = ()

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        if type(ttl_ms) is int and 1_000 < ttl_ms <= 86_400_000:
            ttl_ms -= ttl_ms % 1_000
        return self.inner.acquire_agent_lock(agent_id, ttl_ms, wait_ms)


# --- the third company: S3 with files ---------------------------------------------------------------------------------


@functools.lru_cache(10_000)
def _normal(key: str) -> str:
    return posixpath.normpath(decode_json(key)[0])


@fault(
    "HIS-2",
    "ID-4",
    source="HTTP clients and posixpath.normpath in front of S3: a/./b, a//b and a/../a/b all become a/b",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("src/x.py", content="one")),
        lambda s: s.save_recovered_file("a", samples.recovered("src//x.py", content="two")),
        lambda s: s.save_recovered_file("a", samples.recovered("./src/x.py", content="three")),
        lambda s: s.load_recovered_files("a"),
    ),
)
class BadPathsAreNormal(MemoryLayer):
    """Takes paths of recovered files for one that are the same when normalised, and the later replaces the earlier."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._replacing(batch) for batch in batches])

    def _replacing(self, batch: Any) -> Any:
        gone = []
        stored = self.space.state(batch.agent_id).docs
        for write in batch.docs:
            if write.kind == DocKind.RECOVERED and write.doc is not None:
                for (kind, key), doc in stored.items():
                    is_other = kind == DocKind.RECOVERED and doc.time == write.doc.time and key != write.key
                    if is_other and _normal(key) == _normal(write.key):
                        gone.append(DocWrite(kind, key, None))
        return replace(batch, docs=(*gone, *batch.docs)) if gone else batch


async def _all_deleted(ctx: Any) -> object:
    for i in range(1_003):
        await ctx.store.save_recovered_file("a", samples.recovered(f"f{i:04}"))
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.delete("a")
    return await ctx.store.exists("a"), len(await ctx.store.load_recovered_files("a"))


@fault(
    "LIFE-3",
    "LIFE-4",
    source="S3: DeleteObjects takes 1,000 keys, and ListObjectsV2 gives 1,000",
    witness=_all_deleted,
)
class BadDeletesAThousandObjects(MemoryLayer):
    """Deletes the first 1,000 documents of an agent, by kind and key, and leaves those behind them."""

    async def commit(self, batches: Any) -> Any:
        left = {}
        for batch in batches:
            if batch.delete and batch.is_empty:
                docs = self.space.state(batch.agent_id).docs
                left[batch.op_id] = dict(sorted(docs.items())[1_000:]) if len(docs) > 1_000 else {}
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if left.get(batch.op_id) and isinstance(outcome, Applied):
                state = self.space.state(batch.agent_id)
                state.docs.update(left[batch.op_id])
                self.space.states[batch.agent_id] = state
        return outcomes


@fault(
    "QRY-8",
    "SNAP-1",
    "INFO-3",
    source="S3 before 2021, and CDNs still: a GET of a key that is not there is cached, and hides a PUT of it",
    on=OnJson,
    witness=seen(
        lambda s, t: t.load_snapshot("a", "s"),
        lambda s, t: s.save_snapshot("a", samples.snapshot("s")),
        lambda s, t: t.load_snapshot("a", "s"),
        lambda s, t: s.load_snapshot("a", "s"),
    ),
)
class BadRemembersWhatIsMissing(Wrapper):
    """Goes on to say that there is no snapshot of an id which it was asked for before another instance saved it."""

    __slots__ = ("missing",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.missing: dict[tuple[str, str], None] = {}

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        found = await self.inner.load_snapshot(agent_id, snapshot_id)
        if found is None:
            if len(self.missing) >= 1_000:
                self.missing.pop(next(iter(self.missing)))
            self.missing[agent_id, snapshot_id] = None
        return None if (agent_id, snapshot_id) in self.missing else found

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)
        self.missing.pop((agent_id, snapshot.id), None)


@fault(
    "VAL-1",
    "HIS-1",
    source="JSON lines that are read with str.splitlines(), which also splits at U+0085, U+2028 and U+2029",
    errors=True,
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("c").replace(summary="a\u2028b")),
        lambda s: s.load_compression_records("a"),
    ),
)
class BadSplitsLines(EngineStore):
    """Says that compression records are corrupt which hold a line or paragraph separator of Unicode."""

    async def load_compression_records(self, agent_id: str) -> Any:
        async def load(agent_id: str) -> Any:
            found = await self._reader.load_docs(agent_id, kinds.COMPRESSIONS)
            for record in found:
                if len(encode(CompressionRecord, record, "compression").text.splitlines()) > 1:
                    raise CorruptRecordError(f"compression {record.id!r} of agent {agent_id!r}", "its line is no JSON")
            return found

        return await self._load("load_compression_records", agent_id, load)


def _windows_file(size: int) -> RecoveredFile:
    return samples.recovered(f"{size}.txt", content="a line\r\n" * (size // 8))


@fault(
    "VAL-1",
    "HIS-2",
    "VAL-2",
    source="Python: a text of more than 64 KiB goes into a file of its own, and open(path) translates its newlines",
    on=OnJson,
    witness=seen(
        lambda s: s.save_recovered_file("a", _windows_file(60_000)),
        lambda s: s.save_recovered_file("a", _windows_file(80_000)),
        lambda s: _newlines(s),
    ),
)
class BadUniversalNewlines(Wrapper):
    """Makes plain newlines of the carriage returns in recovered files of more than 64 KiB."""

    __slots__ = ()

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        if type(file) is RecoveredFile and type(file.content) is str and len(file.content) > 65_536:
            file = file.replace(content=file.content.replace("\r\n", "\n").replace("\r", "\n"))
        await self.inner.save_recovered_file(agent_id, file, fence=fence)


async def _newlines(store: Any) -> object:
    return [(file.path, file.content.count("\r\n")) for file in await store.load_recovered_files("a")]


async def _lineages(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    ids, found = ["a"], []
    for _ in range(3):
        ids += await ctx.store.batch_fork(ids[-1], 1)
        info = await ctx.store.load_info(ids[-1])
        found.append([ids.index(agent_id) for agent_id in info.lineage])
    return found


@fault(
    "FORK-1",
    "FORK-2",
    source="an object's x-amz-meta-parent: a copy knows where it was copied from, and nothing before",
    on=OnSqlite,
    witness=_lineages,
)
class BadKnowsItsParentOnly(Layer):
    """Gives the fork of a fork a lineage of its parent alone."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        return await super().fork(agent_id, [self._orphaned(child) for child in children], expect, now)

    def _orphaned(self, child: Any) -> Any:
        info = decode_json(child.info.body.text)
        info["lineage"] = info["lineage"][-1:]
        text = encode_json(info, "info")
        return replace(child, info=replace(child.info, body=Body(text, digest(text.encode()))))


# --- the fourth company: an ORM over MySQL ----------------------------------------------------------------------------


async def _padded(ctx: Any) -> object:
    for agent_id, template in (("a", "bot"), ("b", "bot "), ("c", "Bot"), ("d", " bot")):
        await ctx.store.save_info(agent_id, samples.info(agent_id, template_id=template))
    return [await the("agent_id", ctx.store.query_sessions(template_id=wanted)) for wanted in ("bot", "bot ", " bot")]


@fault(
    "QRY-2",
    "LIFE-5",
    source="MySQL: utf8mb4_bin is a PAD SPACE collation: 'a' = 'a  ' is true",
    witness=_padded,
)
class BadPadsWithSpaces(MemoryLayer):
    """Finds sessions by a template id that differs in spaces at the end."""

    async def find_sessions(self, query: Any) -> Any:
        if query.template_id is None:
            return await super().find_sessions(query)
        others, wanted = replace(query, template_id=None), query.template_id.rstrip(" ")
        found = []
        for state in self.space.states.values():
            info = state.info
            if info is None or info.template_id.rstrip(" ") != wanted:
                continue
            if scan.session_matches(state.agent_id, info, state.updated_at, others):
                count = len(state.lists[ListKind.MESSAGES].rows)
                row = SessionRow(state.agent_id, info.body, info.created_at, state.updated_at, count)
                found.append(((getattr(row, query.sort_by), row.agent_id), row))
        return scan.page(found, query)


async def _own_metadata(ctx: Any) -> object:
    for agent_id in "ab":
        await ctx.store.save_info(agent_id, samples.info(agent_id))
    (first,) = await ctx.store.query_sessions(agent_id="a")
    first.metadata["plan"] = "changed by the caller"
    return [session.metadata for session in await ctx.store.query_sessions()]


@fault(
    "VAL-1",
    "QRY-2",
    source="@lru_cache around json.loads in the ORM's JSON column: equal texts give one object",
    on=OnSqlite,
    witness=_own_metadata,
)
class BadCachesParsedJson(Wrapper):
    """Gives sessions that it finds with equal metadata one and the same dict, which a caller may have changed."""

    __slots__ = ("parsed",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.parsed: dict[str, Any] = {}

    async def query_sessions(self, **filters: Any) -> Any:
        page = await self.inner.query_sessions(**filters)
        for i, session in enumerate(page):
            text = encode_json(session.metadata, "metadata")
            if len(text) <= 4_096:
                if text not in self.parsed and len(self.parsed) >= 128:
                    self.parsed.pop(next(iter(self.parsed)))
                page[i] = replace(session, metadata=self.parsed.setdefault(text, session.metadata))
        return page


@fault(
    "VAL-1",
    "HIS-1",
    "VAL-2",
    source="MySQL without STRICT_TRANS_TABLES: a number that is too large for INT becomes 2,147,483,647",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window().replace(stats=HistoryStats(token_count=2**31 - 1))),
        lambda s: s.save_history_window("a", samples.window("w2").replace(stats=HistoryStats(token_count=2**31))),
        lambda s: the("stats", s.load_history_windows("a")),
    ),
)
class BadTokensAreInt(Wrapper):
    """Makes 2**31 - 1 of a window's larger number of tokens."""

    __slots__ = ()

    async def save_history_window(self, agent_id: str, window: Any, *, fence: Any = None) -> None:
        if type(window) is HistoryWindow and type(window.stats) is HistoryStats:
            count = window.stats.token_count
            if type(count) is int and 2**31 - 1 < count < 2**63:
                window = window.replace(stats=window.stats.replace(token_count=2**31 - 1))
        await self.inner.save_history_window(agent_id, window, fence=fence)


def _by_length(value: Any) -> Any:
    if type(value) is list:
        return [_by_length(item) for item in value]
    if type(value) is dict:
        keys = sorted(value, key=lambda key: (len(key.encode(errors="surrogatepass")), key))
        return {key: _by_length(value[key]) for key in keys}
    return value


async def _order_of_keys(ctx: Any) -> object:
    meta = {"reviewer": 1, "by": {"name": 2, "a": 3}}
    call = samples.tool_call(approval=ToolCallApproval(required=True, meta=meta), input=meta)
    await ctx.store.save_tool_call_records("a", [call])
    (found,) = await ctx.store.load_tool_call_records("a")
    return repr(found.approval.meta), repr(found.input)


@fault(
    "VAL-1",
    source="MySQL's JSON type: objects have their keys sorted by length, then by bytes",
    witness=_order_of_keys,
)
class BadJsonColumnSortsKeys(Wrapper):
    """Loads the ``meta`` of a tool call's approval with its keys in the order of their length."""

    __slots__ = ()

    async def load_tool_call_records(self, agent_id: str) -> Any:
        found = await self.inner.load_tool_call_records(agent_id)
        for i, call in enumerate(found):
            if call.approval.meta:
                found[i] = call.replace(approval=call.approval.replace(meta=_by_length(call.approval.meta)))
        return found


async def _offset_alone(ctx: Any) -> object:
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i) for i in range(5)])
    query = ctx.store.query_tool_calls
    return [await the("id", query(offset=3)), await the("id", query(offset=3, limit=10))]


@fault(
    "QRY-4",
    source="MySQL has no OFFSET without LIMIT, so that query builders drop an offset that stands alone",
    on=OnSqlite,
    witness=_offset_alone,
)
class BadOffsetNeedsLimit(Wrapper):
    """Ignores the offset of a query of tool calls that says no limit."""

    __slots__ = ()

    async def query_tool_calls(self, **filters: Any) -> Any:
        offset = filters.get("offset")
        if "limit" not in filters and filters.get("cursor") is None and type(offset) is int and 0 <= offset < 2**63:
            del filters["offset"]
        return await self.inner.query_tool_calls(**filters)


async def _left_by_bulk(ctx: Any) -> object:
    for agent_id in "ab":
        await ctx.store.save_turn(agent_id, info=samples.info(agent_id), todos=samples.todos("x"))
        await ctx.store.save_media_cache(agent_id, [samples.media()])
    await ctx.store.delete("a")
    await ctx.store.delete_many(agent_id="b")
    return [(await ctx.store.load_media_cache(x), await ctx.store.load_todos(x)) for x in "ab"]


@fault(
    "LIFE-5",
    "LIFE-4",
    "LIFE-3",
    source="SQLAlchemy's and Django's bulk deletes do not run the cascades that the ORM does for a single object",
    witness=_left_by_bulk,
)
class BadBulkDeleteDoesNotCascade(MemoryLayer):
    """Leaves the media cache of the agents that ``delete_many`` deletes."""

    async def commit(self, batches: Any) -> Any:
        place = (DocKind.MEDIA, "")
        media = {
            batch.op_id: self.space.state(batch.agent_id).docs.get(place)
            for batch in batches
            if batch.delete and batch.expect_updated_at is not None
        }
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if media.get(batch.op_id) is not None and isinstance(outcome, Applied):
                state = self.space.state(batch.agent_id)
                state.docs[place] = media[batch.op_id]
                self.space.states[batch.agent_id] = state
        return outcomes


async def _deleted_while_read(ctx: Any) -> object:
    for i in range(250):
        await ctx.store.save_info(f"a{i:03}", samples.info(f"a{i:03}", created_at=T0 + i))
    count = 0
    async for session in ctx.store.iter_sessions(template_id="assistant"):
        count += 1
        await ctx.store.delete(session.agent_id)
    return count


@fault(
    "QRY-6",
    "QRY-5",
    source="Django's Paginator and every ORM's .offset(n).limit(100): rows that go meanwhile shift the pages",
    witness=_deleted_while_read,
)
class BadPagesByNumber(Wrapper):
    """Iterates over sessions by number, 100 at a time, and passes over some when others before them are deleted."""

    __slots__ = ()

    def iter_sessions(self, **filters: Any) -> AsyncIterator[Any]:
        if filters.keys() & {"limit", "offset", "cursor"}:
            return self.inner.iter_sessions(**filters)
        return self._pages(filters)

    async def _pages(self, filters: Any) -> AsyncIterator[Any]:
        offset = 0
        while True:
            page = await self.inner.query_sessions(**filters, limit=100, offset=offset)
            for name in page.left_out:
                log.error("%s is damaged and was left out", name)
            for session in page:
                yield session
            if page.next_cursor is None:
                return
            offset += 100


# --- the fifth company: its old key-value service ---------------------------------------------------------------------


def _media(count: int, size: int) -> list[Any]:
    return [samples.media(f"k{i}").replace(file_uri="u" * size) for i in range(count)]


async def _much_media(ctx: Any) -> object:
    found = []
    for count in (700, 1_000):
        try:
            await ctx.store.save_media_cache("a", _media(count, 4_900))
        except Exception as exc:
            found.append(type(exc).__name__)
        found.append(len(await ctx.store.load_media_cache("a")))
    return found


@fault(
    "VAL-4",
    "MED-1",
    source="gRPC: a message has at most 4 MiB unless configured (RESOURCE_EXHAUSTED: larger than max)",
    errors=True,
    witness=_much_media,
)
class BadMessagesOfFourMegabytes(EngineStore):
    """Refuses a media cache of more than 4 MiB, which is one value."""

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        async def make(records: Any) -> DocWrite:
            write = await kinds.MEDIA.write(records)
            assert write.doc is not None
            if len(write.doc.body.text.encode()) > 4 * 2**20:
                raise PayloadTooLargeError("the media cache is larger than 4194304 bytes")
            return write

        await self._save_doc("save_media_cache", agent_id, fence, make, records)


@fault(
    "ID-4",
    "HIS-1",
    source="memcached and its heirs: a key has at most 250 bytes, and clients cut what is longer",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w" * 250 + "-1")),
        lambda s: s.save_history_window("a", samples.window("w" * 250 + "-2")),
        lambda s: s.save_history_window("a", samples.window("w" * 249 + "-3")),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class BadKeysAreCut(MemoryLayer):
    """Takes history windows for the same whose ids have the same first 250 bytes."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._replacing(batch) for batch in batches])

    def _replacing(self, batch: Any) -> Any:
        gone = []
        for write in batch.docs:
            cut = write.key.encode()[:250]
            if write.kind == DocKind.WINDOWS and len(cut) == 250:
                for kind, key in self.space.state(batch.agent_id).docs:
                    if kind == DocKind.WINDOWS and key != write.key and key.encode()[:250] == cut:
                        gone.append(DocWrite(kind, key, None))
        return replace(batch, docs=(*gone, *batch.docs)) if gone else batch


async def _written_behind(ctx: Any) -> object:
    other = await ctx.another()
    await ctx.store.save_media_cache("a", [samples.media()])
    found = [len(await other.load_media_cache("a")), len(await ctx.store.load_media_cache("a"))]
    await ctx.store.save_media_cache("b", [samples.media()])
    await ctx.store.delete("b")
    await asyncio.sleep(0.2)
    return [*found, len(await ctx.store.load_media_cache("b"))]


@fault(
    "QRY-8",
    "DUR-1",
    "LIFE-3",
    "LIFE-4",
    "MED-1",
    source="write-behind caches (Ehcache, Redisson's RMap): they acknowledge at once and write 50 ms later",
    on=OnSqlite,
    witness=_written_behind,
)
class BadWritesMediaBehind(Wrapper):
    """Acknowledges a media cache before it is written, 50 ms later, also after the agent was deleted."""

    __slots__ = ("pending", "tasks")

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.pending: dict[str, tuple[Any, ...]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if fence is not None or ENTERED.get() or self.inner._context.is_closed:
            await self._flush(agent_id)
            return await self.inner.save_media_cache(agent_id, records, fence=fence)
        check_agent_id(agent_id)
        await kinds.MEDIA.write(records)
        if agent_id not in self.pending:
            task = asyncio.create_task(self._later(agent_id))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        self.pending[agent_id] = tuple(records)
        return None

    async def _later(self, agent_id: str) -> None:
        await asyncio.sleep(0.05)
        await self._flush(agent_id)

    async def _flush(self, agent_id: str) -> None:
        records = self.pending.pop(agent_id, None) if type(agent_id) is str else None
        if records is not None:
            await self.inner.save_media_cache(agent_id, records)

    async def load_media_cache(self, agent_id: str) -> Any:
        await self._flush(agent_id)
        return await self.inner.load_media_cache(agent_id)

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        await self._flush(agent_id)
        return await self.inner.batch_fork(agent_id, count)

    async def close(self) -> None:
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _late_writes(ctx: Any) -> object:
    store, found = ctx.store, []
    lease = await store.acquire_agent_lock("a")
    await lease.release()
    for write in (
        lambda: store.append_messages("a", samples.messages(1), fence=lease),
        lambda: store.save_todos("a", samples.todos("x"), fence=lease),
        lambda: store.save_turn("a", events=happened(1), todos=samples.todos("x"), fence=lease),
        lambda: store.append_event("a", samples.event(2), fence=lease),
        lambda: store.append_events("a", happened(3, 4), fence=lease),
    ):
        try:
            await write()
            found.append("written")
        except Exception as exc:
            found.append(type(exc).__name__)
    return found


@fault(
    "LOCK-5",
    "LOCK-7",
    source="log services (Kafka, Kinesis, an in-house one): a record can be put, but not under a condition",
    witness=_late_writes,
)
class BadLogIsNotFenced(Layer):
    """Appends events also under a lease that has ended; all other writes are fenced."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._free(batch) for batch in batches])

    def _free(self, batch: Any) -> Any:
        is_log = batch.events and not (batch.is_touching or batch.docs or batch.delete)
        return replace(batch, fence=None) if is_log else batch


async def _filtered_live(ctx: Any) -> object:
    await ctx.store.append_events("a", happened(1, 2, 6))
    found = []
    stream = ctx.store.follow_events("a", since=Bookmark(5, T0))
    found.append((await anext(stream)).bookmark.seq)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.05)
    await ctx.store.append_events("a", happened(3, 7))
    found.append((await asyncio.wait_for(waiting, 3)).bookmark.seq)
    await stream.aclose()
    return found


@fault(
    "EVT-7",
    source="a replay from the table and then a subscription to a topic: the filter by seq is only in the SQL",
    witness=_filtered_live,
)
class BadSinceIsForTheReplay(Wrapper):
    """Follows events with ``since`` in what is stored, and gives those that are appended later whatever their seq."""

    __slots__ = ()

    def follow_events(
        self, agent_id: str, *, since: Any = None, after_offset: int = 0, channel: Any = None
    ) -> AsyncIterator[Any]:
        checked = self.inner.follow_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        return checked if since is None else self._follow(agent_id, since, after_offset, channel)

    async def _follow(self, agent_id: str, since: Any, after_offset: int, channel: Any) -> AsyncIterator[Any]:
        async for event in self.inner.read_events(agent_id, after_offset=after_offset, channel=channel):
            after_offset = event.offset
            if event.bookmark.seq > since.seq:
                yield event
        async for event in self.inner.follow_events(agent_id, after_offset=after_offset, channel=channel):
            yield event


@fault(
    "OPS-5",
    source="consumers of queues (kafka-python, aio-pika's iterators): one that was closed just ends its loop",
    on=OnJson,
    witness=seen(
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: s.close(),
        lambda s: s.read_events("a"),
        lambda s: s.follow_events("a"),
    ),
)
class BadFollowEndsQuietly(Wrapper):
    """Ends the events that are followed in a store that is closed, as if nothing were there, without an error."""

    __slots__ = ()

    def follow_events(self, agent_id: str, **given: Any) -> AsyncIterator[Any]:
        return self._quietly(self.inner.follow_events(agent_id, **given))

    async def _quietly(self, events: Any) -> AsyncIterator[Any]:
        try:
            async for event in events:
                yield event
        except StoreClosedError:
            return
        finally:
            await events.aclose()
