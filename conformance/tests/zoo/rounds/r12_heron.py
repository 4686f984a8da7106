"""Stores by somebody who read the contract from its end to its beginning."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sqlite3
import tempfile
import time
import tracemalloc
import unicodedata
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from kode_conformance.values import samples
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import restart, seen, talk, the
from kode_core.batch import Applied, Batch, DocKind, EventRange, Fence, ListKind
from kode_core.codec import decode
from kode_core.engines import scan
from kode_core.errors import InvalidArgumentError, KodeError
from kode_core.ids import is_shortened, plain_text
from kode_core.jsonvalue import encode_json
from kode_core.layers import Layer
from kode_core.model import (
    AgentInfo,
    Bookmark,
    MediaCacheRecord,
    Message,
    TodoSnapshot,
    ToolCallRecord,
    ToolUseBlock,
)
from kode_core.pace import Pace
from kode_core.query import Page
from kode_core.store import EngineStore
from kode_core.store.rows import LISTS


class _Commits(MemoryLayer):
    """Does its own thing in the very step in which the memory engine applies a batch."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.plain = inner._commit
        inner._commit = self.apply

    def apply(self, batch: Batch) -> Any:
        raise NotImplementedError


# --- forks and locks --------------------------------------------------------------------------------------------------


async def _forks_while_appending(ctx: Any) -> object:
    store = ctx.store
    await store.save_info("a", samples.info("a"))
    await store.save_messages("a", talk("0"))
    fork = asyncio.ensure_future(store.batch_fork("a", 250))
    for _ in range(400):
        if fork.done():
            break
        await store.append_messages("a", talk("more"))
    return len({(await store.load_info(child)).message_count for child in await fork})


@fault(
    "FORK-1",
    "FORK-3",
    source="DynamoDB TransactWriteItems: at most 100 items, so that larger batches are made in groups of 100",
    witness=_forks_while_appending,
)
class HerForksInGroups(Wrapper):
    """Makes more than 100 forks in groups of 100, each of another instant of the parent."""

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        if type(count) is not int or not 100 < count <= 10_000:
            return await self.inner.batch_fork(agent_id, count)
        ids: list[str] = []
        while len(ids) < count:
            ids += await self.inner.batch_fork(agent_id, min(100, count - len(ids)))
        return ids


async def _late_write(ctx: Any) -> object:
    store = ctx.store
    lease = await store.acquire_agent_lock("a", ttl_ms=50)
    await asyncio.sleep(0.2)
    try:
        await store.save_todos("a", samples.todos("late"), fence=lease)
    except KodeError as exc:
        return type(exc).__name__
    return await store.load_todos("a")


@fault(
    "LOCK-5",
    "LOCK-3",
    source="fencing as it is drawn in articles on distributed locks: the storage refuses tokens below the highest seen",
    witness=_late_write,
)
class HerFencesByTokenAlone(_Commits):
    """Lets a write pass under a lease whose time has passed, as long as nobody else has taken the lock since."""

    def apply(self, batch: Batch) -> Any:
        lease = self.space.leases.get(batch.agent_id)
        if batch.fence is not None and lease is not None and lease[0] == batch.fence:
            batch = replace(batch, fence=None)
        return self.plain(batch)


async def _tokens_of_expired(ctx: Any) -> object:
    tokens = []
    for _ in range(2):
        lease = await ctx.store.acquire_agent_lock("a", ttl_ms=30)
        tokens.append(lease.token)
        await asyncio.sleep(0.1)
    return tokens[0] < tokens[1]


@fault(
    "LOCK-5",
    source="UPDATE locks SET owner = ?, expires = ? WHERE expires < now(): only the INSERT takes a number",
    witness=_tokens_of_expired,
)
class HerStealsWithoutNewToken(MemoryLayer):
    """Gives the lease that follows one that ran out, and was not released, the same token again."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        held, now = self.space.leases.get(agent_id), time.monotonic()
        if held is None or held[1] > now:
            return await super().acquire_lease(agent_id, owner, ttl_ms)
        token = held[0].token
        self.space.leases[agent_id] = (Fence(owner, token), now + ttl_ms / 1000)
        return token


async def _short_wait(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("a")

    async def let_go() -> None:
        await asyncio.sleep(0.2)
        await lease.release()

    letting_go = asyncio.ensure_future(let_go())
    try:
        await (await ctx.store.acquire_agent_lock("a", wait_ms=900)).release()
        return "taken"
    except KodeError as exc:
        return type(exc).__name__
    finally:
        await letting_go


@fault(
    "LOCK-2",
    source="GET_LOCK(name, timeout) of MySQL waits whole seconds",
    witness=_short_wait,
)
class HerWaitsInWholeSeconds(Wrapper):
    """Waits for a lock for the whole seconds in ``wait_ms`` only, and so not at all below 1,000."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        whole = wait_ms // 1000 * 1000 if type(wait_ms) is int else wait_ms
        return self.inner.acquire_agent_lock(agent_id, ttl_ms, whole)


async def _long_names(ctx: Any) -> object:
    stem = "tenant-0001/" + "x" * 60
    async with ctx.store.acquire_agent_lock(f"{stem}/1"):
        try:
            async with ctx.store.acquire_agent_lock(f"{stem}/2"):
                return "both"
        except KodeError as exc:
            return type(exc).__name__


@fault(
    "ID-2",
    "LOCK-2",
    "OPS-13",
    source="names of MySQL's GET_LOCK have at most 64 characters, and are cut to fit",
    witness=_long_names,
)
class HerLockNamesOf64(MemoryLayer):
    """Has one lock for all agents whose ids begin with the same 64 characters."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        now = time.monotonic()
        for other, (_, until) in self.space.leases.items():
            if other != agent_id and other[:64] == agent_id[:64] and until > now:
                return None
        return await super().acquire_lease(agent_id, owner, ttl_ms)


# --- operations and costs ---------------------------------------------------------------------------------------------


async def _many_waiters(ctx: Any) -> object:
    store = ctx.store
    await store.save_info("b", samples.info("b"))
    held = await store.acquire_agent_lock("a")

    async def wait() -> None:
        await store.acquire_agent_lock("a", wait_ms=2500)

    waiters = [asyncio.ensure_future(wait()) for _ in range(10)]
    await asyncio.sleep(0.05)
    try:
        await asyncio.wait_for(store.load_info("b"), 1.5)
        return "free"
    except TimeoutError:
        return "held up"
    finally:
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        await held.release()


@fault(
    "OPS-13",
    "LOCK-2",
    source="asyncpg's pool has 10 connections, and each pg_advisory_lock() that waits keeps one of them",
    witness=_many_waiters,
)
class HerWaitersKeepConnections(EngineStore):
    """Has ten connections, of which each call that waits for a lock keeps one, so that ten waiters hold up all else."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        pool, run = asyncio.Semaphore(10), self._context.run

        async def pooled(*args: Any, **kwargs: Any) -> Any:
            async with pool:
                return await run(*args, **kwargs)

        self._context.run = pooled  # type: ignore[method-assign]


async def _far_future(ctx: Any) -> object:
    await ctx.store.save_tool_call_records("a", [samples.tool_call()])
    try:
        return len(await ctx.store.query_tool_calls(created_before=2**63))
    except Exception as exc:
        return type(exc).__name__


@fault(
    "OPS-17",
    "QRY-2",
    source="sqlite3: OverflowError: Python int too large to convert to SQLite INTEGER",
    witness=_far_future,
    errors=True,
)
class HerOverflowsOnTimes(EngineStore):
    """Lets the driver's OverflowError out when tool calls are asked for by a time beyond 64 bits."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        for name in ("created_after", "created_before"):
            time_ms = filters.get(name)
            if type(time_ms) is int and not -(2**63) <= time_ms < 2**63:
                raise OverflowError("Python int too large to convert to SQLite INTEGER")
        return await super().query_tool_calls(**filters)


async def _tokens_in_the_copy(ctx: Any) -> object:
    tokens = []
    for _ in range(3):
        async with ctx.store.acquire_agent_lock("a") as lease:
            tokens.append(lease.token)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "copy.db"
        await ctx.store.backup(target)
        options = SqliteOptions(db_path=str(target), durability="fast")
        async with EngineStore(lambda: SqliteEngine.open(options)) as copy, copy.acquire_agent_lock("a") as lease:
            return lease.token > tokens[-1]


@fault(
    "OPS-16",
    "LOCK-5",
    source="pg_dump --exclude-table-data=locks: what is transient is left out of a backup",
    on=OnSqlite,
    witness=_tokens_in_the_copy,
)
class HerCopyForgetsTokens(SqliteEngine):
    """Leaves leases and the count of their tokens out of a backup, so that tokens begin anew in the copy."""

    async def backup(self, target: Path, *args: Any, **kwargs: Any) -> list[Path]:
        made = await super().backup(target, *args, **kwargs)

        def forget() -> None:
            db = sqlite3.connect(target)
            with db:
                db.execute("DELETE FROM kode_leases")
                db.execute("DELETE FROM kode_meta WHERE key = 'last_token'")
            db.close()

        await asyncio.to_thread(forget)
        return made


async def _memory_of_iterating(ctx: Any) -> object:
    for i in range(1500):
        await ctx.store.save_info(f"a{i}", samples.info(f"a{i}", metadata={"notes": "x" * 20_000}))
    tracemalloc.start()
    try:
        count = 0
        async for _ in ctx.store.iter_sessions():
            count += 1
        return count, tracemalloc.get_traced_memory()[1] > 20 * 2**20
    finally:
        tracemalloc.stop()


@fault(
    "OPS-14",
    "QRY-6",
    source="psycopg's ordinary cursors fetch the whole result, and iterate over what they hold",
    witness=_memory_of_iterating,
)
class HerGathersSessions(EngineStore):
    """Holds all sessions in memory before the iterator gives the first."""

    def iter_sessions(self, **filters: Any) -> AsyncIterator[Any]:
        return self._gathered(super().iter_sessions(**filters))

    async def _gathered(self, source: AsyncIterator[Any]) -> AsyncIterator[Any]:
        for session in [session async for session in source]:
            yield session


async def _refused_info(ctx: Any) -> object:
    try:
        await ctx.store.save_info("a", samples.info("b", metadata={"apiKey": "sk-secret-1"}))
    except KodeError as exc:
        return type(exc).__name__, "sk-secret-1" in str(exc)
    return None


@fault(
    "OPS-12",
    source="psycopg's errors have a DETAIL with the failing row: Failing row contains (…)",
    witness=_refused_info,
)
class HerQuotesTheInfo(EngineStore):
    """Quotes the metadata of an info that is refused as it is another agent's."""

    async def save_info(self, agent_id: str, info: AgentInfo, *, fence: Any = None) -> None:
        try:
            await super().save_info(agent_id, info, fence=fence)
        except InvalidArgumentError as exc:
            if isinstance(info, AgentInfo) and info.agent_id != agent_id:
                raise InvalidArgumentError(
                    f"{exc}. Failing row contains ({info.agent_id!r}, {info.metadata})"
                ) from None
            raise


async def _delete_given_up(ctx: Any) -> object:
    store = ctx.store
    await store.save_info("a", samples.info("a"))
    call = asyncio.ensure_future(store.delete("a"))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    first = await store.exists("a")
    await asyncio.sleep(0.1)
    return first == await store.exists("a")


@fault(
    "OPS-9",
    source="deletes that gather for 10 ms in a queue, from which asyncio.shield() keeps a cancellation away",
    witness=_delete_given_up,
)
class HerLetsDeleteGoOn(EngineStore):
    """Makes a delete whose caller gave up before it began all the same, and later calls for the agent do not wait."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._jobs: set[asyncio.Future[None]] = set()

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        async def job() -> None:
            await asyncio.sleep(0.01)  # others join the group
            await delete(agent_id, fence=fence)

        delete, begun = super().delete, asyncio.ensure_future(job())
        self._jobs.add(begun)
        begun.add_done_callback(self._jobs.discard)
        await asyncio.shield(begun)

    async def close(self) -> None:
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await super().close()


@fault(
    "OPS-3",
    source="a decorator around the driver's calls counts, and what is refused before never gets there",
    witness=seen(
        lambda s: s.query_messages(colour="red"),
        lambda s: s.query_sessions(limit=-1),
        lambda s: _errors(s),
    ),
)
class HerCountsNoRefusedQueries(EngineStore):
    """Does not count a query that is refused for its arguments as an error."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        enter = self._context.call_metrics.enter

        def counted(op: Any, seconds: float, error: BaseException | None = None, *about: Any) -> None:
            if not (op.group == "queries" and isinstance(error, InvalidArgumentError)):
                enter(op, seconds, error, *about)

        self._context.call_metrics.enter = counted  # type: ignore[method-assign]


async def _errors(store: Any) -> int:
    return (await store.get_metrics()).operations.errors


async def _check_many(ctx: Any) -> object:
    for i in range(101):
        await ctx.store.save_messages(f"a{i:03}", talk("hello"))
    await ctx.store.save_messages("a100", [Message("assistant", [ToolUseBlock("call_0", "search", {})])])
    found = await ctx.store.check_consistency()
    return found.consistent, found.agents_checked


@fault(
    "OPS-2",
    source="MongoDB's first batch has 101 documents, an API's first page 100: nobody asked for the next one",
    witness=_check_many,
)
class HerChecksAPage(Layer):
    """Checks the first 100 agents, when all are to be checked."""

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        return [] if after is not None else await super().stored_ids(None, min(limit, 100))


# --- lifecycle --------------------------------------------------------------------------------------------------------


async def _changed_meanwhile(ctx: Any) -> object:
    store = ctx.store
    ids = [f"a{i:02}" for i in range(60)]
    for i, agent_id in enumerate(ids):
        await store.save_info(agent_id, samples.info(agent_id, template_id="old", created_at=samples.T0 - i))
    saves: list[Any] = []

    def progress(done: int, _: Any) -> None:
        if not saves:
            info = samples.info(ids[-1], template_id="new")
            saves.append(asyncio.ensure_future(store.save_info(ids[-1], info)))

    await store.delete_many(progress=progress, template_id="old")
    await asyncio.gather(*saves)
    return await store.list()


@fault(
    "LIFE-5",
    source="SELECT id … WHERE template = ?, then DELETE … WHERE id IN (…)",
    witness=_changed_meanwhile,
)
class HerDeletesWhatChanged(Layer):
    """Deletes the sessions that ``delete_many`` found, also those that were changed since and match no more."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([replace(b, expect_updated_at=None) if b.delete else b for b in batches])


async def _deleted_files(ctx: Any) -> object:
    for i in range(1002):
        await ctx.store.save_recovered_file("a", samples.recovered(f"{i}.md"))
    await ctx.store.delete("a")
    return len(await ctx.store.load_recovered_files("a"))


@fault(
    "LIFE-3",
    "LIFE-4",
    source="S3's DeleteObjects takes 1,000 keys, and ListObjectsV2 gives 1,000",
    witness=_deleted_files,
)
class HerDeletesAThousand(_Commits):
    """Deletes at most a thousand of an agent's documents, and leaves what it has beyond."""

    def apply(self, batch: Batch) -> Any:
        left = [*self.space.state(batch.agent_id).docs.items()][1000:] if batch.delete else []
        outcome = self.plain(batch)
        if left and isinstance(outcome, Applied):
            state = self.space.state(batch.agent_id)
            state.docs = {**dict(left), **state.docs}
            self.space.states[batch.agent_id] = state
        return outcome


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-1",
    "OPS-5",
    source="if limit == 0: return [], the first line of a query function: there is nothing to ask the database for",
    witness=seen(
        lambda s: s.query_sessions(limit=0),
        lambda s: s.query_sessions(limit=0, colour="red"),
        lambda s: s.query_messages(limit=0, role=None),
    ),
)
class HerAnswersZeroAtOnce(EngineStore):
    """Answers a query with a limit of 0 without a look at its filters, or at whether the store is open."""

    async def query_sessions(self, **filters: Any) -> Any:
        return Page() if filters.get("limit") == 0 else await super().query_sessions(**filters)

    async def query_messages(self, **filters: Any) -> Any:
        return Page() if filters.get("limit") == 0 else await super().query_messages(**filters)

    async def query_tool_calls(self, **filters: Any) -> Any:
        return Page() if filters.get("limit") == 0 else await super().query_tool_calls(**filters)


async def _sizes_of_pages(ctx: Any) -> object:
    await ctx.store.save_messages("a", talk(*(str(i) * 200_000 for i in range(10))))
    sizes, cursor = [], None
    while True:
        page = await ctx.store.query_messages(agent_id="a", limit=8, cursor=cursor)
        sizes.append(len(page))
        cursor = page.next_cursor
        if cursor is None:
            return sizes


@fault(
    "QRY-5",
    source="DynamoDB's Query ends a page after 1 MB, whatever the Limit",
    witness=_sizes_of_pages,
)
class HerPagesOfAMegabyte(EngineStore):
    """Ends a page of messages after 1 MB, with fewer than its limit, while more follow."""

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        size = 0
        for i, message in enumerate(page):
            size += len(message.text)
            if i and size > 2**20:
                return await super().query_messages(**{**filters, "limit": i})
        return page


def _contains(stored: Any, wanted: Any) -> bool:
    if type(stored) is dict and type(wanted) is dict:
        return all(key in stored and _contains(stored[key], value) for key, value in wanted.items())
    return json.dumps(stored, sort_keys=True) == json.dumps(wanted, sort_keys=True)


@fault(
    "QRY-2",
    source='PostgreSQL: metadata @> \'{"flags": {"beta": true}}\', which contains and does not equal',
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"flags": {"beta": True, "dark": True}})),
        lambda s: s.save_info("b", samples.info("b", metadata={"flags": {"beta": True}})),
        lambda s: the("agent_id", s.query_sessions(metadata={"flags": {"beta": True}})),
    ),
)
class HerMetadataContains(MemoryLayer):
    """Finds sessions whose metadata has an object with more keys than the one that is asked for."""

    async def find_sessions(self, query: Any) -> Any:
        def holds(state: Any, key: str, value: str) -> bool:
            stored = dict(state.info.metadata).get(key)
            if stored is None or stored == value or is_shortened(stored) or is_shortened(value):
                return stored == value
            return _contains(json.loads(plain_text(stored)), json.loads(plain_text(value)))

        states = [
            state
            for state in self.space.states.values()
            if state.info is not None and all(holds(state, key, value) for key, value in query.metadata)
        ]
        return scan.find_sessions(states, replace(query, metadata=()))


# --- snapshots, todos, history, infos ---------------------------------------------------------------------------------


@fault(
    "SNAP-1",
    source="Cassandra with USING TIMESTAMP of the record's own time: the last writer is the one with the later time",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("s", samples.T0, 2)),
        lambda s: s.save_snapshot("a", samples.snapshot("s", samples.T0 - 1, 3)),
        lambda s: s.load_snapshot("a", "s"),
        lambda s: s.list_snapshots("a"),
    ),
)
class HerNewerSnapshotStays(_Commits):
    """Keeps a snapshot when one of the same id is saved whose ``created_at`` is earlier."""

    def apply(self, batch: Batch) -> Any:
        stored = {} if batch.delete else self.space.state(batch.agent_id).docs

        def is_older(write: Any) -> bool:
            old = stored.get((write.kind, write.key))
            return write.kind == DocKind.SNAPSHOTS and None not in (old, write.doc) and old.time > write.doc.time

        return self.plain(replace(batch, docs=tuple(write for write in batch.docs if not is_older(write))))


@fault(
    "TODO-1",
    "TURN-1",
    "VAL-3",
    source="if todos: …, where a collection that is empty is false",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x")),
        lambda s: s.save_turn("a", append=talk("done"), todos=samples.todos()),
        lambda s: s.load_todos("a"),
    ),
)
class HerTurnClearsNoTodos(EngineStore):
    """Leaves the todos as they were when a turn saves a list without any."""

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        todos = given.get("todos")
        if type(todos) is TodoSnapshot and not todos.todos:
            given["todos"] = None
        await super().save_turn(agent_id, **given)


_NFC, _NFD = "caf\u00e9.md", "cafe\u0301.md"


@fault(
    "HIS-2",
    "ID-4",
    source="APFS and HFS+: two names that differ in their Unicode form are one file",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered(_NFC, content="one")),
        lambda s: s.save_recovered_file("a", samples.recovered(_NFD, content="two")),
        lambda s: s.load_recovered_files("a"),
    ),
)
class HerPathsInOneForm(Layer):
    """Replaces a recovered file by one whose path is another Unicode form of the same text."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        def composed(write: Any) -> Any:
            if write.kind != DocKind.RECOVERED or write.doc is None:
                return write
            path, timestamp = json.loads(write.key)
            return replace(write, key=encode_json([unicodedata.normalize("NFC", path), timestamp], "recovered file"))

        return await super().commit([replace(b, docs=tuple(map(composed, b.docs))) for b in batches])


async def _moves_on(ctx: Any) -> object:
    store, moves = ctx.store, []
    await store.save_info("a", samples.info("a"))
    await store.upsert_tool_call_records("a", [samples.tool_call(0)])
    for call in (samples.tool_call(0, state="FAILED"), samples.tool_call(0, state="FAILED")):
        before = (await store.query_sessions(agent_id="a"))[0].updated_at
        await store.upsert_tool_call_records("a", [call])
        moves.append((await store.query_sessions(agent_id="a"))[0].updated_at > before)
    return moves


@fault(
    "INFO-2",
    source="MySQL: a column ON UPDATE CURRENT_TIMESTAMP stays when all others are set to the values that they have",
    witness=_moves_on,
)
class HerUpdatedByChangesOnly(_Commits):
    """Does not move ``updated_at`` when tool calls are upserted that are stored just so."""

    def apply(self, batch: Batch) -> Any:
        state, write = self.space.state(batch.agent_id), batch.tool_calls
        rows, before = state.lists[ListKind.TOOL_CALLS].rows, state.updated_at
        is_same = (
            not batch.delete
            and batch.info is batch.messages is None
            and write is not None
            and bool(write.put)
            and not write.append
            and write.length is None
            and all(i < len(rows) and rows[i].body == row.body for i, row in write.put)
        )
        outcome = self.plain(batch)
        if is_same:
            state.updated_at = before
        return outcome


@fault(
    "VAL-1",
    "MED-1",
    source="JSON.parse() of JavaScript: integers beyond 2**53 become the nearest double",
    witness=seen(
        lambda s: s.save_media_cache("a", [replace(samples.media(), size_bytes=2**53 + 1)]),
        lambda s: s.load_media_cache("a"),
    ),
)
class HerMediaSizesAreDoubles(EngineStore):
    """Gives the size of a medium of more than 2**53 bytes as the nearest double."""

    async def load_media_cache(self, agent_id: str) -> list[MediaCacheRecord]:
        found = await super().load_media_cache(agent_id)
        return [replace(medium, size_bytes=int(float(medium.size_bytes))) for medium in found]


# --- events -----------------------------------------------------------------------------------------------------------


async def _followed(ctx: Any) -> object:
    store, got = ctx.store, []
    await store.append_events("a", samples.events(3))

    async def follow() -> None:
        async for event in store.follow_events("a"):
            got.append(event.event.data["delta"])

    following = asyncio.ensure_future(follow())
    await asyncio.sleep(0.2)
    await store.append_event("a", samples.event(0, delta="after a restart", step=1))
    await store.append_event("a", samples.event(3))
    await asyncio.sleep(0.4)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    return got


@fault(
    "EVT-7",
    "EVT-3",
    source="a poller whose watermark is the producer's number: WHERE seq > :last",
    witness=_followed,
)
class HerFollowsBySeq(EngineStore):
    """Gives a follower no new event whose seq is not above all that it has seen, as after a restart of the producer."""

    def follow_events(
        self, agent_id: str, *, since: Any = None, after_offset: int = 0, channel: Any = None
    ) -> AsyncIterator[Any]:
        source = super().follow_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        return self._rising(agent_id, source)

    async def _rising(self, agent_id: str, source: Any) -> AsyncIterator[Any]:
        stored, high = 0, -(2**63) - 1
        span = EventRange(order="offset", after=(0, 0), limit=500)
        while rows := await (await self._context.open()).events(agent_id, span):
            stored = rows[-1].offset
            span = replace(span, after=(0, stored))
        async with aclosing(source):
            async for event in source:
                if event.offset <= stored or event.bookmark.seq > high:
                    high = max(high, event.bookmark.seq)
                    yield event


@fault(
    "EVT-6",
    source="ORDER BY seq DESC, timestamp DESC LIMIT 1",
    witness=seen(
        lambda s: s.append_event("a", replace(samples.event(5), bookmark=Bookmark(5, samples.T0 + 9))),
        lambda s: s.append_event("a", replace(samples.event(5), bookmark=Bookmark(5, samples.T0 + 1))),
        lambda s: s.last_bookmark("a"),
    ),
)
class HerBookmarkByTime(Layer):
    """Gives, of several bookmarks with the highest seq, the one with the latest time, and not the last appended."""

    async def last_event(self, agent_id: str) -> Any:
        last = await super().last_event(agent_id)
        if last is None or last.seq == -(2**63):
            return last
        rows = await self.inner.events(agent_id, EventRange(since_seq=last.seq - 1, limit=10_000))
        return max(rows, key=lambda row: (json.loads(row.body.text)["bookmark"]["timestamp"], row.offset), default=last)


@fault(
    "EVT-4",
    "EVT-1",
    "VAL-1",
    source="Python: {'n': 1} == {'n': 1.0} == {'n': True}",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, n=1)),
        lambda s: s.append_event("a", samples.event(1, n=True)),
        lambda s: _data(s),
    ),
)
class HerEqualEvents(Layer):
    """Takes an event for a repetition when one equals it in Python, where ``1``, ``1.0`` and ``True`` are equal."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([await self._without_equal(batch) for batch in batches])

    async def _without_equal(self, batch: Batch) -> Batch:
        events = []
        for event in () if batch.delete else batch.events:
            if event.seq > -(2**63):
                text = json.loads(event.body.text)
                for row in await self.inner.events(batch.agent_id, EventRange(since_seq=event.seq - 1, limit=16)):
                    if row.seq == event.seq and json.loads(row.body.text) == text:
                        event = replace(event, body=row.body)
                        break
            events.append(event)
        return batch if batch.delete else replace(batch, events=tuple(events))


async def _data(store: Any) -> list[Any]:
    return [repr(event.event.data) async for event in store.read_events("a")]


# --- tool calls and messages ------------------------------------------------------------------------------------------


_LONG = "call_" + "0" * 260


@fault(
    "TC-3",
    "ID-4",
    source="MySQL: UNIQUE KEY (agent_id, call_id(255)), a prefix index on a TEXT column",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(id=f"{_LONG}-a")]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(id=f"{_LONG}-b")]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class HerCallIdsOf255(EngineStore):
    """Takes two tool calls for the same in an upsert when the first 255 characters of their ids are."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and any(len(str(getattr(r, "id", ""))) > 255 for r in records):
            merged = [*await self.load_tool_call_records(agent_id)]
            for record in records:
                same = [i for i, old in enumerate(merged) if old.id[:255] == str(getattr(record, "id", ""))[:255]]
                merged[same[-1] if same else len(merged) :] = [record, *(merged[same[-1] + 1 :] if same else ())]
            await self.save_tool_call_records(agent_id, merged, fence=fence)
        else:
            await super().upsert_tool_call_records(agent_id, records, fence=fence)


async def _bytes_of_an_upsert(ctx: Any) -> object:
    store = ctx.store
    await store.save_tool_call_records("a", [samples.tool_call(i, result="x" * 1000) for i in range(400)])
    engine = store._context.engine
    while not isinstance(engine, SqliteEngine):
        engine = engine.inner
    log = f"{engine._options.db_path}-wal"
    before = os.path.getsize(log)
    await store.upsert_tool_call_records("a", [samples.tool_call(0, state="FAILED")])
    return os.path.getsize(log) - before > 200_000


@fault(
    "TC-1",
    "MSG-5",
    source="a log file that is cut at the first line that changed, and written anew from there",
    on=OnSqlite,
    witness=_bytes_of_an_upsert,
)
class HerRewritesTheTail(Layer):
    """Writes all tool calls behind the first one that changed again."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([await self._with_tail(batch) for batch in batches])

    async def _with_tail(self, batch: Batch) -> Batch:
        write = batch.tool_calls
        if write is None or not write.put or write.expect is None:
            return batch
        old = await self.inner.rows(batch.agent_id, ListKind.TOOL_CALLS)
        if old.version != write.expect:
            return batch  # it is refused
        put = dict(write.put)
        end = len(old.rows) if write.length is None else min(write.length, len(old.rows))
        for i in range(min(put), end):
            if i not in put:
                body, created_at = old.rows[i]
                call = decode(ToolCallRecord, body, "tool call")
                row = (await LISTS[ListKind.TOOL_CALLS].row(i, call, 0, Pace())).row
                put[i] = replace(row, body=body, created_at=created_at)
        tail = (*(put[i] for i in sorted(put)), *write.append)
        return replace(batch, tool_calls=replace(write, length=min(put), put=(), append=tail))


async def _time_of_a_replaced(ctx: Any) -> object:
    store = ctx.store
    await store.save_messages("a", talk("question", "ans"))
    before = [m.created_at for m in await store.query_messages(agent_id="a", order="asc")]
    await asyncio.sleep(0.02)
    await store.save_messages("a", talk("question", "answer"))
    return [m.created_at for m in await store.query_messages(agent_id="a", order="asc")] == before


@fault(
    "MSG-4",
    source="a streamed answer that grows: INSERT OR REPLACE of the last row, whose time is DEFAULT CURRENT_TIMESTAMP",
    witness=_time_of_a_replaced,
)
class HerStampsTheLast(_Commits):
    """Gives the last message a new time when it alone is replaced at its position."""

    def apply(self, batch: Batch) -> Any:
        write = batch.messages
        if write is not None and len(write.put) == 1 and not write.append and not batch.delete:
            ((i, row),) = write.put
            rows = self.space.state(batch.agent_id).lists[ListKind.MESSAGES].rows
            end = len(rows) if write.length is None else write.length
            if i == end - 1 < len(rows) and rows[i].created_at == row.created_at:
                row = replace(row, created_at=max(batch.now, row.created_at))
                batch = replace(batch, messages=replace(write, put=((i, row),)))
        return self.plain(batch)


async def _two_long_appends(ctx: Any) -> object:
    one, two = ctx.store, await ctx.another()
    await asyncio.gather(one.append_messages("a", talk(*["x"] * 700)), two.append_messages("a", talk(*["y"] * 700)))
    texts = [m.text for m in await one.load_messages("a")]
    return len(texts), sum(a != b for a, b in itertools.pairwise(texts))


@fault(
    "MSG-3",
    "DUR-3",
    source="Firestore: at most 500 writes in a batch",
    witness=_two_long_appends,
)
class HerAppends500(EngineStore):
    """Appends more than 500 messages in pieces of 500, between which another's may come."""

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if not isinstance(messages, (list, tuple)) or len(messages) <= 500:
            await super().append_messages(agent_id, messages, fence=fence)
            return
        for start in range(0, len(messages), 500):
            await super().append_messages(agent_id, messages[start : start + 500], fence=fence)


# --- values -----------------------------------------------------------------------------------------------------------


def _joined(text: Any) -> Any:
    if type(text) is not str or not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


@fault(
    "VAL-2",
    "TODO-1",
    source="strings of UTF-16, as in Java, JavaScript and ODBC's wide functions, where a pair is one character",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("\ud83d")),
        lambda s: s.load_todos("a"),
        lambda s: s.save_todos("a", samples.todos("\ud83d\ude00")),
        restart,
        lambda s: s.load_todos("a"),
    ),
)
class HerJoinsSurrogates(EngineStore):
    """Stores a pair of surrogates in the title or the notes of a todo as the one character that they stand for."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if type(snapshot) is TodoSnapshot and isinstance(snapshot.todos, tuple):
            todos = [
                replace(todo, title=_joined(todo.title), notes=_joined(todo.notes)) if hasattr(todo, "notes") else todo
                for todo in snapshot.todos
            ]
            snapshot = replace(snapshot, todos=todos)
        await super().save_todos(agent_id, snapshot, fence=fence)
