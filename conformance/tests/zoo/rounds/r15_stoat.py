"""Faults of ports: what goes wrong when a store that was written for one system is written again for another."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sqlite3
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from kode_conformance.context import Context
from kode_conformance.values import samples
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnJson, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, seen, talk, the
from kode_core.batch import Applied, DocKind, DocWrite, EventRange, Fence, ListKind, ListWrite
from kode_core.engine import unwatched
from kode_core.errors import (
    InvalidArgumentError,
    InvalidValueError,
    LockUnavailableError,
)
from kode_core.ids import check_agent_id
from kode_core.layers import Layer
from kode_core.model import Bookmark, Message, Timeline, ToolResultBlock, ToolUseBlock
from kode_core.query import Page
from kode_core.store import EngineStore, rows

log = logging.getLogger(__name__)

T0 = samples.T0


# --- forks


async def _fork_of_many_snapshots(ctx: Context) -> object:
    store = ctx.store
    await store.save_info("a", samples.info("a"))
    for i in range(30):
        await store.save_snapshot("a", samples.snapshot(f"sfp-{i:02}", T0 + i, 1))
    (child,) = await store.batch_fork("a", 1)
    return len(await store.list_snapshots(child))


@fault(
    "FORK-1",
    source="DynamoDB: BatchWriteItem takes 25 items, and UnprocessedItems are not sent again",
    witness=_fork_of_many_snapshots,
)
class StoForksOneBatchOfSnapshots(MemoryLayer):
    """Gives a fork only the first 25 of its parent's snapshots."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await super().fork(agent_id, children, expect, now)
        for child in children if done else ():
            docs = self.space.states[child.agent_id].docs
            for place in sorted(place for place in docs if place[0] == DocKind.SNAPSHOTS)[25:]:
                del docs[place]
        return done


async def _media_of_an_orphan(ctx: Context) -> object:
    store = ctx.store
    await store.save_info("a", samples.info("a"))
    await store.save_media_cache("a", [samples.media("m1")])
    (child,) = await store.batch_fork("a", 1)
    await store.delete("a")
    return await store.load_media_cache(child)


@fault(
    "FORK-2",
    "LIFE-3",
    source="SQL: forks refer to the parent's rows until they write (copy on write), with ON DELETE CASCADE",
    witness=_media_of_an_orphan,
)
class StoSharesMediaUntilWritten(MemoryLayer):
    """Deletes with a parent the media cache of the forks that did not save one of their own since."""

    @property
    def owners(self) -> dict[str, str]:
        return self.space.__dict__.setdefault("owners", {})

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await super().fork(agent_id, children, expect, now)
        if done:
            owner = self.owners.get(agent_id, agent_id)
            self.owners.update((child.agent_id, owner) for child in children)
        return done

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if not isinstance(outcome, Applied):
                continue
            if batch.delete or any(doc.kind == DocKind.MEDIA for doc in batch.docs):
                self.owners.pop(batch.agent_id, None)
            if batch.delete:
                for child in [child for child, owner in self.owners.items() if owner == batch.agent_id]:
                    del self.owners[child]
                    if child in self.space.states:
                        self.space.states[child].docs.pop((DocKind.MEDIA, ""), None)
        return outcomes


async def _cancelled_forks(ctx: Context) -> object:
    store, odd = ctx.store, set()
    await store.save_info("a", samples.info("a"))
    for turns in range(2, 60, 2):
        before = len(await store.list())
        call = asyncio.create_task(store.batch_fork("a", 250))
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.sleep(0.01)
        made = len(await store.list()) - before
        if made not in (0, 250):
            odd.add("part of them")
    return odd


@fault(
    "FORK-3",
    "FORK-1",
    "OPS-9",
    source="DynamoDB: TransactWriteItems takes 100 items, so that a longer batch is several transactions",
    witness=_cancelled_forks,
)
class StoForksByTheHundred(Wrapper):
    """Makes forks in transactions of a hundred, one after the other."""

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        if type(count) is not int or not 100 < count <= 10_000:
            return await self.inner.batch_fork(agent_id, count)
        made: list[str] = []
        while len(made) < count:
            made += await self.inner.batch_fork(agent_id, min(100, count - len(made)))
        return made


# --- locks


async def _three_tokens(ctx: Context) -> object:
    tokens = []
    for _ in range(3):
        lease = await ctx.store.acquire_agent_lock("a")
        tokens.append(lease.token)
        await lease.release()
    return tokens[0] < tokens[1] < tokens[2]


@fault(
    "LOCK-5",
    source="a fencing token that is SELECT UNIX_TIMESTAMP(), in whole seconds, or a DATETIME column",
    witness=_three_tokens,
)
class StoTokensAreSeconds(Layer):
    """Gives two leases that follow each other within one second the same token."""

    real: ClassVar[dict[str, int]] = {}

    def fence(self, fence: Fence) -> Fence:
        return Fence(fence.owner, self.real.get(fence.owner, fence.token))

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        if token is None:
            return None
        self.real[owner] = token
        return int(time.time())

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await super().renew_lease(agent_id, self.fence(fence), ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await super().release_lease(agent_id, self.fence(fence))

    async def commit(self, batches: Any) -> Any:
        return await super().commit([b if b.fence is None else replace(b, fence=self.fence(b.fence)) for b in batches])


async def _renewed_often(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=400)
    for _ in range(6):
        await lease.renew()
    await asyncio.sleep(0.8)
    try:
        await (await ctx.store.acquire_agent_lock("a")).release()
    except LockUnavailableError:
        return "held"
    return "free"


@fault(
    "LOCK-3",
    source="redis-py: Lock.extend(additional_time) adds to what is left unless replace_ttl=True",
    witness=_renewed_often,
)
class StoRenewalsAddUp(MemoryLayer):
    """Adds the time of a renewal to what is left of the lease, so that renewals in quick succession pile up."""

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        left = self.space.leases.get(agent_id)
        if left is None or not await super().renew_lease(agent_id, fence, ttl_ms):
            return False
        self.space.leases[agent_id] = (fence, left[1] + ttl_ms / 1000)
        return True


# --- operations


async def _wait_for_another(ctx: Context) -> object:
    store = ctx.store
    held = await store.acquire_agent_lock("a", ttl_ms=20_000)
    other = await ctx.another()

    async def wait_for_a() -> None:
        with suppress(LockUnavailableError):
            await (await other.acquire_agent_lock("a", wait_ms=3_000)).release()

    waiting = asyncio.create_task(wait_for_a())
    await asyncio.sleep(0.1)
    try:
        async with asyncio.timeout(1.5):
            await (await other.acquire_agent_lock("b")).release()
        return "at once"
    except TimeoutError:
        return "too late"
    finally:
        await held.release()
        await waiting


@fault(
    "OPS-13",
    "LOCK-2",
    source="MySQL: GET_LOCK(name, timeout) keeps its connection busy while it waits, and locks have one connection",
    witness=_wait_for_another,
)
class StoOneWaitsForAllLocks(EngineStore):
    """Takes no lock of any agent as long as a call of this store waits for another agent's lock."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        connection, acquire = asyncio.Lock(), self._locks.acquire

        async def one_at_a_time(agent_id: str, ttl_ms: int, wait_ms: int) -> Any:
            async with connection:
                return await acquire(agent_id, ttl_ms, wait_ms)

        self._locks.acquire = one_at_a_time  # type: ignore[method-assign]


async def _refused_query(ctx: Context) -> object:
    for _ in range(2):
        with suppress(InvalidArgumentError):
            await ctx.store.query_messages(limit=-1)
    return (await ctx.store.get_metrics()).operations.errors


@fault(
    "OPS-3",
    source="a metrics decorator around the driver's execute(): what is refused before it never gets there",
    witness=_refused_query,
)
class StoForgetsRefusedQueries(Wrapper):
    """Leaves queries that are refused for their filters out of the count of errors."""

    __slots__ = ("refused",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.refused = 0

    async def _seen(self, call: Any) -> Any:
        try:
            return await call
        except InvalidArgumentError:
            self.refused += 1
            raise

    async def query_sessions(self, **filters: Any) -> Any:
        return await self._seen(self.inner.query_sessions(**filters))

    async def query_messages(self, **filters: Any) -> Any:
        return await self._seen(self.inner.query_messages(**filters))

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await self._seen(self.inner.query_tool_calls(**filters))

    async def get_metrics(self) -> Any:
        metrics = await self.inner.get_metrics()
        counts = metrics.operations
        return replace(metrics, operations=replace(counts, errors=counts.errors - self.refused))


async def _pair_over_two_agents(ctx: Context) -> object:
    store = ctx.store
    await store.save_info("a", samples.info("a"))
    await store.save_info("b", samples.info("b"))
    await store.save_messages("a", [Message("assistant", [ToolUseBlock("call_1", "search", {})])])
    await store.save_messages("b", [Message("user", [ToolResultBlock("call_1", "found")])])
    return sorted((issue.code, issue.agent_id) for issue in (await store.check_consistency()).issues)


@fault(
    "OPS-2",
    "TC-2",
    source="SQL: LEFT JOIN tool_uses u ON u.call_id = r.call_id, without AND u.agent_id = r.agent_id",
    witness=_pair_over_two_agents,
)
class StoPairsOverAgents(EngineStore):
    """Takes a tool use and a result for a pair also when they are of two agents that use the same call id."""

    async def _pairs(self) -> tuple[set[str], set[str]]:
        engine, uses, results = self._context.engine, set[str](), set[str]()
        for agent_id in await engine.stored_ids(None, 1_000_000):
            for body, _ in (await engine.rows(agent_id, ListKind.MESSAGES)).rows:
                try:
                    blocks = json.loads(body.text)["content"]
                    uses.update(block["id"] for block in blocks if block["type"] == "tool_use")
                    results.update(block["tool_use_id"] for block in blocks if block["type"] == "tool_result")
                except (ValueError, KeyError, TypeError):
                    continue
        return uses, results

    async def _is_left(self, issue: Any) -> bool:
        if issue.code == "result_without_use" and "not asked for" in issue.message:
            known = (await self._pairs())[0]
        elif issue.code == "use_without_result":
            known = (await self._pairs())[1]
        else:
            return True
        return not any(repr(call_id) in issue.message for call_id in known)

    async def check_consistency(self, agent_id: str | None = None, *, progress: Any = None) -> Any:
        found = await super().check_consistency(agent_id, progress=progress)
        left = tuple([issue for issue in found.issues if await self._is_left(issue)])
        return replace(found, issues=left, consistent=not left)

    async def iter_consistency(self, agent_id: str | None = None, *, progress: Any = None) -> Any:
        async for issue in super().iter_consistency(agent_id, progress=progress):
            if await self._is_left(issue):
                yield issue


async def _nothing_after_close(ctx: Context) -> object:
    store = await ctx.another()
    await store.append_events("a", happened(1))
    await ctx.close(store)
    try:
        return len(await store.append_events("a", []))
    except Exception as exc:
        return type(exc).__name__


@fault(
    "OPS-5",
    source="executemany() of nothing is left out: 'if not rows: return []' stands before the check of the pool",
    witness=_nothing_after_close,
)
class StoAppendsNothingToAClosedStore(Wrapper):
    """Accepts an ``append_events`` of an empty list also after the store was closed."""

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        if isinstance(timelines, (list, tuple)) and not timelines and fence is None:
            check_agent_id(agent_id)
            return ()
        return await self.inner.append_events(agent_id, timelines, fence=fence)


async def _traceback_of_a_refusal(ctx: Context) -> object:
    bad = samples.snapshot().replace(messages=talk("hunter2"), metadata={"at": datetime(2026, 1, 1)})
    try:
        await ctx.store.save_snapshot("a", bad)
    except InvalidValueError as exc:
        return "hunter2" in "".join(traceback.format_exception(exc))
    return "not refused"


@fault(
    "OPS-12",
    source="pydantic: a ValidationError quotes input_value, and stays the __cause__ of the error that replaces it",
    witness=_traceback_of_a_refusal,
)
class StoKeepsTheValidatorsError(Wrapper):
    """Raises the error of a refused snapshot from one that quotes the snapshot."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.save_snapshot(agent_id, snapshot, fence=fence)
        except InvalidValueError as exc:
            raise exc from ValueError(f"1 validation error for Snapshot [input_value={snapshot!r:.500}]")


async def _offset_in_the_copy(ctx: Context) -> object:
    store, copy = ctx.store, Path(ctx.handle["db_path"]).with_name("copy.db")
    await store.append_events("b", happened(1))
    offsets = await store.append_events("a", happened(1, 2, 3))
    await store.delete("a")
    (path,) = await store.backup(copy)
    async with EngineStore(lambda: SqliteEngine.open(SqliteOptions(db_path=str(path)))) as copied:
        return await copied.append_event("a", samples.event(1)) > offsets[-1]


@fault(
    "OPS-16",
    "EVT-2",
    on=OnSqlite,
    source="PostgreSQL: logical replication and dumps of tables by name copy rows, not the state of sequences",
    witness=_offset_in_the_copy,
)
class StoBacksUpNoSequences(SqliteEngine):
    """Lets the offsets in a backup go on from the highest that is stored, not from the highest that was given out."""

    async def backup(self, target: Path, progress: Any = unwatched) -> Any:
        made = await super().backup(target, progress)
        with closing(sqlite3.connect(made[0])) as db:
            db.execute("DELETE FROM sqlite_sequence")
            db.commit()
        return made


async def _cancelled_upsert(ctx: Context) -> object:
    store = ctx.store
    call = asyncio.create_task(store.upsert_tool_call_records("a", [samples.tool_call(1)]))
    await asyncio.sleep(0.005)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    before = len(await store.load_tool_call_records("a"))
    await asyncio.sleep(0.2)
    return before == len(await store.load_tool_call_records("a"))


@fault(
    "OPS-9",
    source="write-behind with a linger of some milliseconds (Kafka's linger.ms, a group commit) behind asyncio.shield",
    witness=_cancelled_upsert,
)
class StoUpsertsBehindTheCancelled(Wrapper):
    """Lets an upsert go on whose caller was cancelled, and lets later loads and saves of the agent overtake it."""

    __slots__ = ("writes",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.writes: set[Any] = set()

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        taken = tuple(records) if isinstance(records, (list, tuple)) else records

        async def write() -> None:
            await asyncio.sleep(0.02)
            await self.inner.upsert_tool_call_records(agent_id, taken, fence=fence)

        task = asyncio.create_task(write())
        self.writes.add(task)
        task.add_done_callback(self.writes.discard)
        await asyncio.shield(task)

    async def close(self) -> None:
        if self.writes:
            await asyncio.wait([*self.writes])
        await self.inner.close()


# --- queries


@fault(
    "QRY-2",
    "VAL-1",
    source="JavaScript, or any gateway that parses filters with doubles: 2**53 + 1 becomes 2**53",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"n": 2**53})),
        lambda s: s.save_info("b", samples.info("b", metadata={"n": 2**53 + 1})),
        lambda s: the("agent_id", s.query_sessions(metadata={"n": 2**53 + 1})),
    ),
)
class StoFiltersByDoubles(Layer):
    """Rounds an integer in a filter of metadata to the nearest double."""

    async def find_sessions(self, query: Any) -> Any:
        pairs = tuple(
            (key, str(int(float(value)))) if re.fullmatch(r"-?\d{16,300}", value) else (key, value)
            for key, value in query.metadata
        )
        return await super().find_sessions(replace(query, metadata=pairs))


@fault(
    "QRY-3",
    source="SQL Server and MySQL: the default collation ignores case, so that ORDER BY agent_id does as well",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_info("B", samples.info("B")),
        lambda s: s.save_info("c", samples.info("c")),
        lambda s: the("agent_id", s.query_sessions(order="asc")),
    ),
)
class StoBreaksTiesWithoutCase(Layer):
    """Orders sessions of one time by their ids without regard to case."""

    async def find_sessions(self, query: Any) -> Any:
        def key(value: int, agent_id: str) -> Any:
            return value, agent_id.casefold(), agent_id

        found = await super().find_sessions(replace(query, limit=10**6, offset=0, after=None))
        keyed = sorted((key(getattr(row, query.sort_by), row.agent_id), row) for row in found)
        if query.descending:
            keyed.reverse()
        if query.after is not None:
            last = key(*query.after)
            keyed = [pair for pair in keyed if (pair[0] < last if query.descending else pair[0] > last)]
        return [row for _, row in keyed][query.offset : query.offset + query.limit]


@fault(
    "QRY-4",
    errors=True,
    source="Elasticsearch: from + size must be at most index.max_result_window, 10,000",
    witness=seen(
        lambda s: s.save_messages("a", talk("x")),
        lambda s: s.query_messages(offset=9_901, limit=100),
        lambda s: s.query_messages(offset=9_900, limit=100),
    ),
)
class StoHasAResultWindow(EngineStore):
    """Refuses a page of messages that ends behind the 10,000th."""

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        if filters.get("offset", 0) and filters["offset"] + filters.get("limit", 100) > 10_000:
            raise InvalidArgumentError("Result window is too large: offset + limit must be at most 10000")
        return page


async def _delete_under_the_cursor(ctx: Context) -> object:
    store = ctx.store
    for i in range(6):
        await store.save_info(f"a{i}", samples.info(f"a{i}", created_at=T0 + i))
    page = await store.query_sessions(limit=2)
    await store.delete(page[-1].agent_id)
    return [session.agent_id for session in await store.query_sessions(limit=2, cursor=page.next_cursor)]


@fault(
    "QRY-5",
    source="SQL: WHERE (created_at, id) < (SELECT created_at, id FROM sessions WHERE id = :starting_after)",
    witness=_delete_under_the_cursor,
)
class StoCursorNeedsItsRow(EngineStore):
    """Ends the pages of sessions early when the last session of the page before was deleted meanwhile."""

    async def query_sessions(self, **filters: Any) -> Any:
        cursor, name = filters.get("cursor"), None
        if type(cursor) is str and "~" in cursor:
            filters["cursor"], _, name = cursor.partition("~")
        page = await super().query_sessions(**filters)
        if name is not None:
            summary = await self._context.engine.summary(_unhex(name))
            if summary is None or summary.info is None:
                return Page()
        if page.next_cursor is not None and page:
            page.next_cursor += "~" + page[-1].agent_id.encode().hex()
        return page


def _unhex(name: str) -> str:
    try:
        return check_agent_id(bytes.fromhex(name).decode())
    except ValueError:
        raise InvalidArgumentError("this is no cursor that a store gave") from None


async def _many_of_one_time(ctx: Context) -> object:
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i, created_at=T0 + i // 60) for i in range(180)])
    return len([call async for call in ctx.store.iter_tool_calls()])


@fault(
    "QRY-6",
    "QRY-5",
    source="keyset pages by the time alone: WHERE created_at < :last ORDER BY created_at DESC LIMIT 100",
    witness=_many_of_one_time,
)
class StoIteratesByTimeAlone(Wrapper):
    """Leaves out of ``iter_tool_calls`` the rest of those that share their time with the hundredth of a page."""

    async def iter_tool_calls(self, **filters: Any) -> AsyncIterator[Any]:
        if filters.keys() & {"limit", "offset", "cursor"}:
            async for call in self.inner.iter_tool_calls(**filters):
                yield call
            return
        is_ascending, cursor = filters.get("order") == "asc", None
        while True:
            page = await self.inner.query_tool_calls(**filters, limit=100, cursor=cursor)
            for name in page.left_out:
                log.error("%s is damaged and was left out", name)
            for call in page:
                yield call
            if page.next_cursor is None:
                return
            if not page:
                cursor = page.next_cursor
                continue
            last, cursor = page[-1].created_at, None
            filters |= {"created_after": last + 1} if is_ascending else {"created_before": last}


# --- deletes


async def _saved_in_time(ctx: Context) -> object:
    store, saves = ctx.store, []
    for i in range(60):
        await store.save_info(f"a{i:02}", samples.info(f"a{i:02}", created_at=T0 + i, metadata={"is": "idle"}))

    def progress(done: int, of: int | None) -> None:
        if not saves:
            info = samples.info("a00", created_at=T0, metadata={"is": "busy"})
            saves.append(asyncio.ensure_future(store.save_info("a00", info)))

    await store.delete_many(metadata={"is": "idle"}, progress=progress)
    await asyncio.gather(*saves)
    return await store.list()


@fault(
    "LIFE-5",
    source="SELECT id … and then DELETE … WHERE id IN (…): the filter is not asked again",
    witness=_saved_in_time,
)
class StoDeletesWhatMatchedOnce(EngineStore):
    """Deletes with ``delete_many`` also a session that was changed after it was found and matches no more."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deletions._delete_unchanged = self._delete_found  # type: ignore[method-assign]

    async def _delete_found(self, session: Any) -> bool:
        with self._locks.fencing(session.agent_id, None) as fence:
            await self._forks.delete(session.agent_id, fence)
        return True


# --- events


def _said(**data: Any) -> Timeline:
    return samples.event(1, **data)


@fault(
    "EVT-4",
    "EVT-3",
    "VAL-1",
    source="Python: 1 == True == 1.0, and dicts are equal in any order; so are jsonb values in PostgreSQL",
    witness=seen(
        lambda s: s.append_event("a", _said(n=1, m=2)),
        lambda s: s.append_event("a", _said(n=True, m=2)),
        lambda s: s.append_event("a", _said(m=2, n=1)),
        lambda s: s.append_event("a", _said(n=1, m=2)),
        lambda s: the("event", _read(s)),
    ),
)
class StoTakesEqualForIdentical(EngineStore):
    """Takes an event for a repetition when Python's ``==`` says that its data equals that of a stored one."""

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        if type(timeline) is Timeline:
            self._context.check_open()
            check_agent_id(agent_id)
            write = await rows.event_write(timeline)
            after = None if write.seq == -(2**63) else write.seq - 1
            found = await self._context.engine.events(agent_id, EventRange(since_seq=after, limit=1000))
            same = [row for row in found if row.seq == write.seq]
            if not any(row.body.digest == write.body.digest for row in same):
                for row in same:
                    if json.loads(row.body.text) == json.loads(write.body.text):
                        return row.offset
        return await super().append_event(agent_id, timeline, fence=fence)


async def _read(store: Any) -> list[Any]:
    return [event async for event in store.read_events("a")]


def _at(seq: int, timestamp: int) -> Timeline:
    event = samples.event(seq)
    return Timeline(timestamp, Bookmark(seq, timestamp), event.event)


@fault(
    "EVT-6",
    source="SELECT … ORDER BY seq DESC, timestamp DESC LIMIT 1: the time instead of the place in the log",
    witness=seen(
        lambda s: s.append_event("a", _at(7, T0 + 500)),
        lambda s: s.append_event("a", _at(7, T0 + 100)),
        lambda s: s.last_bookmark("a"),
    ),
)
class StoLastByTheClock(Layer):
    """Gives of several bookmarks with the highest seq the one with the latest time, though another came after it."""

    async def last_event(self, agent_id: str) -> Any:
        last = await super().last_event(agent_id)
        if last is None or last.seq == -(2**63):
            return last
        equal = await super().events(agent_id, EventRange(since_seq=last.seq - 1, limit=10_000))
        try:
            return max(equal, key=lambda row: (json.loads(row.body.text)["bookmark"]["timestamp"], row.offset))
        except (ValueError, KeyError, TypeError):
            return last


async def _restarted_producer(ctx: Context) -> object:
    store, got = ctx.store, []
    await store.append_events("a", happened(1, 2, 3))

    async def follow() -> None:
        async for event in store.follow_events("a"):
            got.append((event.bookmark.seq, event.cursor))

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.3)
    await store.append_event("a", samples.event(4))
    await store.append_event("a", samples.event(2, cursor=99))
    await asyncio.sleep(0.6)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    return got


@fault(
    "EVT-7",
    "EVT-3",
    source="SSE and consumers that poll WHERE seq > :last_seq, with the producer's number for a position",
    witness=_restarted_producer,
)
class StoFollowsTheSeq(Wrapper):
    """Does not give to a follower that has caught up a new event whose seq is not above all that it saw."""

    def follow_events(
        self, agent_id: str, *, since: Any = None, after_offset: int = 0, channel: Any = None
    ) -> AsyncIterator[Any]:
        events = self.inner.follow_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        return self._upwards(agent_id, events, after_offset)

    async def _upwards(self, agent_id: str, events: Any, stored: int) -> AsyncIterator[Any]:
        while page := await self.inner._context.engine.events(agent_id, EventRange(order="offset", after=(0, stored))):
            stored = page[-1].offset
        highest = None
        async with aclosing(events):
            async for event in events:
                if event.offset > stored and highest is not None and event.bookmark.seq <= highest:
                    continue
                highest = event.bookmark.seq if highest is None else max(highest, event.bookmark.seq)
                yield event


async def _from_offset_0(ctx: Context) -> object:
    await ctx.store.append_events("a", happened(5, 3, 4))
    return [event.bookmark.seq async for event in ctx.store.read_events("a", after_offset=0)]


@fault(
    "EVT-5",
    "VAL-3",
    source="'if after_offset:' where 'is not None' is meant: 0 is falsy in Python and in JavaScript",
    witness=_from_offset_0,
)
class StoOffsetZeroIsNone(Wrapper):
    """Reads the whole log in the order of seq, and not of the offset, when it is asked for what is after offset 0."""

    def read_events(
        self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None
    ) -> AsyncIterator[Any]:
        if type(after_offset) is int and not after_offset:
            after_offset = None
        return self.inner.read_events(agent_id, since=since, after_offset=after_offset, channel=channel)


# --- messages, info


async def _said_again(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("yes", "go on"))
    await asyncio.sleep(0.03)
    await ctx.store.save_messages("a", talk("yes", "go on", "really?"))
    await asyncio.sleep(0.03)
    await ctx.store.save_messages("a", talk("yes", "go on", "really?", "yes"))
    times = [message.created_at for message in await ctx.store.query_messages(order="asc")]
    found = {m.position: m.created_at for m in await ctx.store.query_messages()}
    return found[3] > found[2] > found[0], len(times)


@fault(
    "MSG-4",
    "QRY-3",
    source="content-addressed rows: INSERT … ON CONFLICT (agent_id, sha256) keeps the created_at of the first",
    witness=_said_again,
)
class StoDatesByContent(Layer):
    """Gives a message that ``save_messages`` adds at the end the time of an equal one that stands before it."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._dated(batch) for batch in batches])

    async def _dated(self, batch: Any) -> Any:
        write = batch.messages
        if write is None or write.expect is None or not write.append or batch.delete:
            return batch
        outline = await self.inner.outline(batch.agent_id, ListKind.MESSAGES)
        known: dict[bytes, int] = {}
        for _, digest, created_at, _ in outline.rows:
            known.setdefault(digest, created_at)
        dated = tuple(replace(r, created_at=known.get(r.body.digest, r.created_at)) for r in write.append)
        return replace(batch, messages=replace(write, append=dated))


@fault(
    "MSG-6",
    source="'row.message_count or info.message_count': a count of 0 is falsy, so that the given one shows",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", message_count=12)),
        lambda s: s.load_info("a"),
        lambda s: s.append_messages("a", talk("x")),
        lambda s: s.load_info("a"),
        lambda s: s.save_messages("a", []),
        lambda s: s.load_info("a"),
    ),
)
class StoCountsNoneAsGiven(EngineStore):
    """Gives with the info of an agent that has no messages the count that was given to ``save_info``."""

    async def load_info(self, agent_id: str) -> Any:
        info = await super().load_info(agent_id)
        if info is None or info.message_count:
            return info
        summary = await self._context.engine.summary(agent_id)
        given = json.loads(summary.info.body.text).get("messageCount", 0) if summary and summary.info else 0
        return info.replace(message_count=given)


@fault(
    "INFO-1",
    "MSG-8",
    on=OnSqlite,
    source="SQLite: INSERT OR REPLACE deletes the row first, and ON DELETE CASCADE what refers to it",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_compression_record("a", samples.compression()),
        lambda s: s.save_info("a", samples.info("a", breakpoint="PRE_MODEL")),
        lambda s: s.load_compression_records("a"),
    ),
)
class StoReplacingInfoCascades(Layer):
    """Deletes an agent's compression records when its info is saved again."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._cascading(batch) for batch in batches])

    async def _cascading(self, batch: Any) -> Any:
        if batch.info is None or batch.delete:
            return batch
        summary = await self.inner.summary(batch.agent_id)
        if summary is None or summary.info is None:
            return batch
        given = {doc.key for doc in batch.docs if doc.kind == DocKind.COMPRESSIONS}
        stored = await self.inner.docs(batch.agent_id, DocKind.COMPRESSIONS)
        gone = tuple(DocWrite(DocKind.COMPRESSIONS, doc.key, None) for doc in stored if doc.key not in given)
        return replace(batch, docs=(*batch.docs, *gone))


async def _turn_of_events(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    before = await the("updated_at", ctx.store.query_sessions())
    await asyncio.sleep(0.02)
    await ctx.store.save_turn("a", events=happened(1))
    return before == await the("updated_at", ctx.store.query_sessions())


@fault(
    "INFO-2",
    source="SQLAlchemy's onupdate and Rails' touch: the turn saves its session row first, whatever is in the turn",
    witness=_turn_of_events,
)
class StoEveryTurnTouches(EngineStore):
    """Moves ``updated_at`` also with a turn that has nothing but events or todos."""

    async def save_turn(self, agent_id: str, *, fence: Any = None, **parts: Any) -> None:
        await super().save_turn(agent_id, fence=fence, **parts)
        if any(parts.get(name) is not None for name in ("messages", "tool_calls", "info")):
            return
        if parts.get("append") or parts.get("upsert_tool_calls"):
            return
        summary = await self._context.engine.summary(agent_id)
        if summary is not None and summary.info is not None and (parts.get("events") or parts.get("todos") is not None):
            await self._context.commit(self._context.batch(agent_id, messages=ListWrite()))


# --- the other kinds


@fault(
    "TODO-1",
    on=OnJson,
    source="Elasticsearch: version_type=external_gte drops what has a lower version, and 409 is taken for a repetition",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x", "y", "z")),
        lambda s: s.save_todos("a", samples.todos("w")),
        lambda s: s.load_todos("a"),
    ),
)
class StoKeepsTheHigherVersion(Layer):
    """Keeps the stored todos when their version is higher than that of the ones to save."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._newer(batch) for batch in batches])

    async def _newer(self, batch: Any) -> Any:
        def version(doc: Any) -> int:
            return json.loads(doc.body.text).get("version", 1)

        new = next((doc for doc in batch.docs if doc.kind == DocKind.TODOS and doc.doc is not None), None)
        if new is None or batch.delete:
            return batch
        for old in await self.inner.docs(batch.agent_id, DocKind.TODOS, ""):
            if version(old) > version(new.doc):
                return replace(batch, docs=tuple(doc for doc in batch.docs if doc is not new))
        return batch


@fault(
    "TC-2",
    "QRY-2",
    "QRY-6",
    source="Elasticsearch and MongoDB: the search index has a document for each _id, 'agent:call', so the last one wins",
    witness=seen(
        lambda s: s.save_tool_call_records(
            "a", [samples.tool_call(1), samples.tool_call(2), samples.tool_call(1, name="fetch")]
        ),
        lambda s: the("name", s.load_tool_call_records("a")),
        lambda s: the("name", s.query_tool_calls()),
        lambda s: the("name", s.query_tool_calls(tool_name="search")),
    ),
)
class StoFindsTheLastOfAnId(Layer):
    """Finds of an agent's tool calls with the same id only the last one."""

    async def find_rows(self, query: Any) -> Sequence[Any]:
        if query.kind != "tool_calls":
            return await super().find_rows(query)
        last: dict[str, set[int]] = {}
        found = []
        for row in await super().find_rows(replace(query, limit=10**6, offset=0)):
            if row.agent_id not in last:
                outline = await self.inner.outline(row.agent_id, ListKind.TOOL_CALLS)
                last[row.agent_id] = {*{key: position for position, _, _, key in outline.rows}.values()}
            if row.position in last[row.agent_id]:
                found.append(row)
        return found[query.offset : query.offset + query.limit]


@fault(
    "HIS-1",
    "ID-4",
    "ID-2",
    "VAL-1",
    on=OnSqlite,
    source="MySQL and SQL Server: PAD SPACE collations, under which 'w' and 'w ' are one primary key",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w", T0)),
        lambda s: s.save_history_window("a", samples.window("w ", T0 + 1)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class StoPadsWindowIds(Layer):
    """Lets a history window replace another whose id differs only in spaces at the end."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([replace(b, docs=tuple(map(self._padded, b.docs))) for b in batches])

    @staticmethod
    def _padded(write: DocWrite) -> DocWrite:
        key = write.key.rstrip(" ") or write.key
        if write.kind != DocKind.WINDOWS or write.doc is None or key == write.key:
            return write
        return replace(write, key=key, doc=replace(write.doc, key=key))


@fault(
    "SNAP-1",
    "VAL-5",
    source="MySQL: DATETIME without (3) has whole seconds, and lists are ordered by that column",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("s1", T0 + 100)),
        lambda s: s.save_snapshot("a", samples.snapshot("s2", T0 + 900)),
        lambda s: s.save_snapshot("a", samples.snapshot("s0", T0 + 1_000)),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class StoListsSnapshotsBySeconds(EngineStore):
    """Lists snapshots of one second by their ids, whichever is newer."""

    async def list_snapshots(self, agent_id: str) -> Any:
        found = await super().list_snapshots(agent_id)
        return sorted(found, key=lambda snapshot: (-(snapshot.created_at // 1000), snapshot.id))


# --- values


_INDEX = re.compile("0|[1-9][0-9]{0,9}")


@fault(
    "VAL-1",
    source="JavaScript: an object's integer keys come first, in ascending order, whatever order they were set in",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(1, input={"b": 1, "10": 2, "a": 3, "2": 4})]),
        lambda s: _keys(s),
    ),
)
class StoIntegerKeysFirst(EngineStore):
    """Gives the input of a tool call with the keys that are integers before the others, in ascending order."""

    async def load_tool_call_records(self, agent_id: str) -> Any:
        return [self._as_object(call) for call in await super().load_tool_call_records(agent_id)]

    @staticmethod
    def _as_object(call: Any) -> Any:
        given = call.input
        if type(given) is not dict:
            return call
        numbers = sorted((key for key in given if _INDEX.fullmatch(key)), key=int)
        if not numbers:
            return call
        rest = {key: value for key, value in given.items() if not _INDEX.fullmatch(key)}
        return call.replace(input={**{key: given[key] for key in numbers}, **rest})


async def _keys(store: Any) -> list[str]:
    return [*(await store.load_tool_call_records("a"))[0].input]
