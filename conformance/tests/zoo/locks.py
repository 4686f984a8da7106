"""Stores whose locks do not lock (LOCK clauses)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, mutant
from conformance.tests.zoo.witnesses import seen, talk
from kode_core.batch import Batch, Fence, Outcome
from kode_core.engine import Engine
from kode_core.errors import LockUnavailableError, StorageError, StoreUnavailableError
from kode_core.layers import Layer
from kode_core.store import EngineStore
from kode_core.store.locks import LeaseContext


async def _take(store: Any, agent_id: str = "a", **how: Any) -> object:
    try:
        return (await store.acquire_agent_lock(agent_id, **how)) is not None
    except LockUnavailableError:
        return "held"


_TAKEN_TWICE = seen(lambda s, t: _take(s), lambda s, t: _take(t))


class _OwnLocks(Layer):
    """Keeps locks in a table of its own."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.table: dict[Any, tuple[str, int]] = {}

    def key(self, agent_id: str) -> Any:
        return agent_id

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        key = self.key(agent_id)
        if key in self.table:
            return None
        self.table[key] = (owner, time.monotonic_ns())
        return self.table[key][1]

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        self.table.pop(self.key(agent_id), None)

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([replace(batch, fence=None) for batch in batches])


@mutant(
    "LOCK-1",
    killed_by="one_holder_at_a_time",
    source="KODE SDK SqliteStore: a map in the instance, so that two stores of one process both hold the lock",
    witness=_TAKEN_TWICE,
)
class LocksOfTheInstance(_OwnLocks):
    """Keeps locks to the instance."""


_TABLES: dict[str, dict[Any, tuple[str, int]]] = {}


async def _over_processes(ctx: Context) -> object:
    child = await ctx.process("hold_lock", "a", 60_000)
    await child.line()
    try:
        return await _take(ctx.store)
    finally:
        child.kill()
        await child.gone()


@mutant(
    "LOCK-1",
    killed_by="one_holder_over_processes",
    on=OnSqlite,
    source="KODE SDK SqliteStore: locks are in memory",
    witness=_over_processes,
)
class LocksOfTheProcess(_OwnLocks):
    """Keeps locks to the process."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.table = _TABLES.setdefault("all", {})

    def key(self, agent_id: str) -> Any:
        return repr(self.inner), agent_id


@mutant(
    "LOCK-1",
    killed_by="one_holder_at_a_time",
    source="KODE SDK PostgresStore: a lock that is held raises an error of the pool, `Release called on client`",
    witness=seen(lambda s, t: _take(s), lambda s, t: t.acquire_agent_lock("a")),
)
class TellsAnotherError(EngineStore):
    """Raises an error of the pool when the lock is held."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._acquire, self._locks.acquire = self._locks.acquire, self._held  # type: ignore[method-assign]

    async def _held(self, *args: Any) -> Any:
        try:
            return await self._acquire(*args)
        except LockUnavailableError:
            raise StorageError("Release called on client which has already been released to the pool") from None


async def _waited(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    waiter = asyncio.ensure_future(_take(ctx.store, wait_ms=2000))
    await asyncio.sleep(0.05)
    await lease.release()
    return await waiter


@mutant("LOCK-2", killed_by="waiting_for_a_lock", source="KODE SDK SqliteStore: nobody waits", witness=_waited)
class NeverWaits(EngineStore):
    """Does not wait for a lock, however long one may."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> LeaseContext:
        return super().acquire_agent_lock(agent_id, ttl_ms, 0 if type(wait_ms) is int and wait_ms > 0 else wait_ms)


async def _cancelled_waiters(ctx: Context) -> object:
    found = set()
    for steps in range(6):
        task = asyncio.ensure_future(_take(ctx.store, f"a{steps}"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(result, BaseException):
            found.add(await _take(ctx.store, f"a{steps}"))
    return found


@mutant(
    "LOCK-2",
    killed_by="a_cancelled_waiter_leaves_nothing",
    source="an await between taking a lock and noting that one has it",
    witness=_cancelled_waiters,
    raises="LockUnavailableError",
    slow=True,
)
class GhostsHoldLocks(EngineStore):
    """Leaves the lock taken when the one who takes it is cancelled."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._locks._take = self._taken  # type: ignore[method-assign]

    async def _taken(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        token = await self._context.engine.acquire_lease(agent_id, owner, ttl_ms)
        await asyncio.sleep(0.005)
        return token


async def _cancelled_while_it_waits(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    waiter = asyncio.ensure_future(_take(ctx.store, wait_ms=2000))
    await asyncio.sleep(0.05)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    await lease.release()
    await asyncio.sleep(0.3)
    return await _take(ctx.store)


@mutant(
    "LOCK-2",
    killed_by="cancelled_waiters_are_no_ghosts",
    source="asyncio.shield around an acquire that nobody gives back",
    witness=_cancelled_while_it_waits,
    slow=True,
)
class WaitersGoOn(EngineStore):
    """Goes on waiting for a lock when the one who waits is cancelled, and takes it in the end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting: set[asyncio.Future[Any]] = set()
        self._acquire, self._locks.acquire = self._locks.acquire, self._shielded  # type: ignore[method-assign]

    async def _shielded(self, *args: Any) -> Any:
        acquired = asyncio.ensure_future(self._acquire(*args))
        self._waiting.add(acquired)
        acquired.add_done_callback(lambda done: self._waiting.discard(done) or done.cancelled() or done.exception())
        return await asyncio.shield(acquired)


async def _renewed(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=200)
    for _ in range(3):
        await asyncio.sleep(0.1)
        await lease.renew()
    return await _take(ctx.store)


@mutant(
    "LOCK-3",
    killed_by="a_lease_ends_by_itself",
    source="KODE SDK SqliteStore: a lock of 30 s expires under the job that holds it",
    witness=_renewed,
)
class RenewsNothing(Layer):
    """Says that a lease was renewed, and lets it end."""

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return True


@mutant(
    "LOCK-3",
    killed_by="a_killed_holder_is_followed",
    on=OnSqlite,
    source="advisory locks of a session, which end with the connection",
    witness=seen(
        lambda s: _take(s, ttl_ms=60_000),
        lambda s: asyncio.sleep(0.1),
        lambda s: _take(s),
    ),
)
class LeasesEndEarly(Layer):
    """Ends leases long before their time."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await super().acquire_lease(agent_id, owner, 1)


async def _late_release(ctx: Context) -> object:
    first = await ctx.store.acquire_agent_lock("a", ttl_ms=20)
    await asyncio.sleep(0.05)
    await ctx.store.acquire_agent_lock("a")
    await first.release()
    return await _take(ctx.store)


@mutant(
    "LOCK-4",
    killed_by="a_late_release_frees_nobody_else",
    source="KODE SDK SqliteStore and PostgresStore: the release of a lock that ended frees the next holder's",
    witness=_late_release,
)
class ReleasesByName(MemoryLayer):
    """Frees the lock whoever holds it."""

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        self.space.leases.pop(agent_id, None)


async def _tokens(ctx: Context) -> object:
    tokens = []
    for _ in range(2):
        lease = await ctx.store.acquire_agent_lock("a")
        tokens.append(lease.token)
        await lease.release()
        await ctx.store.delete("a")
    return tokens[1] > tokens[0]


@mutant("LOCK-5", killed_by="tokens_only_grow", source="tokens kept in the row that delete removes", witness=_tokens)
class TokensStartAgain(MemoryLayer):
    """Counts tokens from 1 again when the agent was deleted."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        if any(batch.delete for batch in batches):
            self.space.counter = 0
        return outcomes


async def _write_too_late(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=20)
    await asyncio.sleep(0.05)
    await ctx.store.acquire_agent_lock("a")
    outcomes = []
    for write in (
        ctx.store.save_messages("a", talk("1"), fence=lease),
        ctx.store.save_todos("a", samples.todos("x"), fence=lease),
    ):
        (outcome,) = await asyncio.gather(write, return_exceptions=True)
        outcomes.append(type(outcome).__name__)
    return outcomes


@mutant(
    "LOCK-5",
    killed_by="writes_under_a_lost_lease_are_refused",
    source="KODE SDK: locks without tokens",
    witness=_write_too_late,
)
class NeverFences(Layer):
    """Does not look at the fence."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([replace(batch, fence=None) for batch in batches])


@mutant(
    "LOCK-5",
    killed_by="a_stopped_holder_is_fenced_off",
    on=OnSqlite,
    source="KODE SDK: locks without tokens; a holder that slept writes over the next one's",
    witness=_write_too_late,
)
class FencesNoProcess(Layer):
    """Does not look at the fence, whoever writes."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([replace(batch, fence=None) for batch in batches])


@mutant(
    "LOCK-5",
    killed_by="writes_under_a_lost_lease_are_refused",
    source="LangGraph checkpointers: a superseded holder is refused on one path and not on the others",
    witness=_write_too_late,
)
class FencesMessagesOnly(Layer):
    """Looks at the fence of messages only."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        fenced = [b if b.messages is not None else replace(b, fence=None) for b in batches]
        return await super().commit(fenced)


async def _lost_inside(ctx: Context) -> object:
    async with ctx.store.acquire_agent_lock("a") as lease:
        await lease.release()
        (outcome,) = await asyncio.gather(ctx.store.save_messages("a", talk("1")), return_exceptions=True)
    return type(outcome).__name__


@mutant(
    "LOCK-5",
    killed_by="writes_inside_async_with_are_fenced",
    source="fences that every call must be given",
    witness=_lost_inside,
)
class FencesOnlyWhenTold(EngineStore):
    """Does not know in whose block a write is made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        fence = self._locks.fence
        self._locks.fence = lambda agent_id, lease: lease and fence(agent_id, lease)  # type: ignore[method-assign]


@mutant(
    "LOCK-5",
    killed_by="bad_arguments_of_locks_are_refused",
    source="max(ttl, 1)",
    witness=seen(lambda s: _take(s, ttl_ms=0)),
)
class TakesAnyTime(EngineStore):
    """Makes something of a time to live that makes no sense."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> LeaseContext:
        return super().acquire_agent_lock(agent_id, ttl_ms if type(ttl_ms) is not int else max(ttl_ms, 10), wait_ms)


async def _many(ctx: Context) -> object:
    taken = (_take(ctx.store, f"a{i}") for i in range(40))
    return [isinstance(result, Exception) for result in await asyncio.gather(*taken, return_exceptions=True)]


@mutant(
    "LOCK-6",
    killed_by="a_thousand_locks_cost_nothing",
    source="KODE SDK PostgresStore: each lock pins a connection of the pool, and as many locks as there are stop all",
    witness=_many,
    raises="the pool is exhausted",
)
class LocksPinConnections(Layer):
    """Has room for twenty locks."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._pinned: set[str] = set()

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        if len(self._pinned) >= 20:
            raise StoreUnavailableError("the pool is exhausted")
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        if token is not None:
            self._pinned.add(agent_id)
        return token

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        self._pinned.discard(agent_id)
        await super().release_lease(agent_id, fence)
