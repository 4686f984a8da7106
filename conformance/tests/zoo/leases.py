"""Stores that get a lease wrong at one of its ends, or a fence for one kind of write (LOCK clauses)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from kode_conformance.context import Context
from kode_conformance.instruments.clock import clock_off
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, mutant
from conformance.tests.zoo.locks import _take
from conformance.tests.zoo.witnesses import seen
from kode_core.batch import Batch, Fence, Outcome, Refused
from kode_core.engine import Engine
from kode_core.errors import LockUnavailableError
from kode_core.layers import Layer
from kode_core.store import EngineStore
from kode_core.store.locks import HeldLease, LeaseContext


async def _left_by_an_error(ctx: Context) -> object:
    try:
        async with ctx.store.acquire_agent_lock("a"):
            raise KeyError
    except KeyError:
        return await _take(ctx.store)


class _Sticks:
    def __init__(self, lock: LeaseContext) -> None:
        self._lock = lock

    def __await__(self) -> Any:
        return self._lock.__await__()

    async def __aenter__(self) -> HeldLease:
        return await self._lock.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self._lock.__aexit__(kind, exc, trace)


@mutant(
    "LOCK-3",
    killed_by="however_a_lease_ends_the_next_comes",
    source="a release after the yield of an asynccontextmanager, without finally",
    witness=_left_by_an_error,
)
class ErrorsKeepTheLock(EngineStore):
    """Keeps the lock when the block is left by an error."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        return _Sticks(super().acquire_agent_lock(agent_id, ttl_ms, wait_ms))


async def _renewed_too_late(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=20)
    await asyncio.sleep(0.05)
    (outcome,) = await asyncio.gather(lease.renew(), return_exceptions=True)
    return type(outcome).__name__


@mutant(
    "LOCK-4",
    killed_by="an_ended_lease_has_no_say",
    source="UPDATE leases SET expires = … WHERE owner = …, without a look at the old time",
    witness=_renewed_too_late,
)
class RenewsWhatIsOver(MemoryLayer):
    """Takes the lock again for a lease that is renewed after its time, when nobody else has it."""

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        held = self.space.leases.get(agent_id)
        if held is not None and held[0] == fence:
            self.space.leases[agent_id] = fence, time.monotonic() + ttl_ms / 1000
            return True
        return False


async def _waited_for_a_deleted_agent(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    waiter = asyncio.ensure_future(_take(ctx.store, wait_ms=5000))
    await asyncio.sleep(0.02)
    await ctx.store.delete("a")
    await lease.release()
    return await waiter


@mutant(
    "LOCK-2",
    killed_by="whoever_waits_gets_the_lock_at_its_end",
    source="a queue of waiters in the row of the agent, which a delete removes",
    witness=_waited_for_a_deleted_agent,
)
class DeletesSendWaitersAway(Layer):
    """Refuses those who wait for the lock of an agent when that is deleted."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._waiting: set[str] = set()
        self._gone: set[str] = set()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        self._gone |= {batch.agent_id for batch in batches if batch.delete} & self._waiting
        return await super().commit(batches)

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        if agent_id in self._gone:
            raise LockUnavailableError(agent_id, "another holder has the lock")
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        if token is None:
            self._waiting.add(agent_id)
        return token


async def _below_a_second(ctx: Context) -> object:
    await ctx.store.acquire_agent_lock("a", ttl_ms=900)
    return await _take(ctx.store)


@mutant(
    "LOCK-2",
    killed_by="waits_and_times_at_their_edges",
    source="EXPIRE of Redis, and every other TTL in whole seconds",
    witness=_below_a_second,
)
class TimesInWholeSeconds(Layer):
    """Holds a lease for whole seconds, of the time that was asked for."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await super().acquire_lease(agent_id, owner, ttl_ms // 1000 * 1000)


@mutant(
    "LOCK-1",
    killed_by="locks_of_twins_are_apart",
    source="a CHAR column for the name of the lock: spaces at its end do not count",
    witness=seen(lambda s: _take(s, "a"), lambda s: _take(s, "a\t")),
)
class LocksWithoutTabs(MemoryLayer):
    """Takes the locks of two ids for one that differ in a tab at the end."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await super().acquire_lease(agent_id.rstrip("\t"), owner, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await super().release_lease(agent_id.rstrip("\t"), fence)


@mutant(
    "LOCK-1",
    killed_by="locking_changes_no_data",
    source="the lease is a column of the agent's row, which a delete removes",
    witness=seen(lambda s: _take(s), lambda s: s.delete("a"), lambda s: _take(s)),
)
class DeletesEndTheLease(MemoryLayer):
    """Ends the lease when the agent is deleted."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        for batch in batches:
            if batch.delete and batch.fence is None:
                self.space.leases.pop(batch.agent_id, None)
        return outcomes


# --- fences -----------------------------------------------------------------------------------------------------------


async def _written_after_its_time(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=20)
    await asyncio.sleep(0.05)
    (outcome,) = await asyncio.gather(
        ctx.store.save_todos("a", samples.todos("x"), fence=lease), return_exceptions=True
    )
    return type(outcome).__name__


@mutant(
    "LOCK-5",
    killed_by="each_write_under_each_ended_lease_is_refused",
    source="WHERE token = …: the time of the lease is not looked at",
    witness=_written_after_its_time,
)
class FencesByTokenAlone(MemoryLayer):
    """Lets a holder write whose time is over, until somebody else takes the lock."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([self._without(batch) for batch in batches])

    def _without(self, batch: Batch) -> Batch:
        held = self.space.leases.get(batch.agent_id)
        return replace(batch, fence=None) if held is not None and held[0] == batch.fence else batch


async def _fenced_by_another(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("b")
    write = ctx.store.save_snapshot("a", samples.snapshot(), fence=lease)
    (outcome,) = await asyncio.gather(write, return_exceptions=True)
    return type(outcome).__name__


@mutant(
    "LOCK-5",
    killed_by="each_write_knows_whose_fence_it_is",
    source="the fence is only looked at when its agent is the one that is written",
    witness=_fenced_by_another,
)
class SnapshotsUnderAnyLease(EngineStore):
    """Saves a snapshot of an agent under the lease of another."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if isinstance(fence, HeldLease) and fence.agent_id != agent_id:
            fence = None
        await super().save_snapshot(agent_id, snapshot, fence=fence)


async def _media_under_a_lease(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await ctx.store.save_media_cache("a", [samples.media()], fence=lease)
    return await ctx.store.load_media_cache("a")


@mutant(
    "LOCK-5",
    killed_by="each_write_under_the_lease_that_is_held_is_done",
    source="a conditional write whose answer, that nothing was written, nobody reads",
    witness=_media_under_a_lease,
)
class NoMediaUnderALease(EngineStore):
    """Says that a media cache was saved under a lease, and does not save it."""

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        is_mine = isinstance(fence, HeldLease) and fence.agent_id == agent_id
        if is_mine and await self._context.engine.renew_lease(agent_id, fence.fence, fence.ttl_ms):
            return
        await super().save_media_cache(agent_id, records, fence=fence)


# --- clocks -----------------------------------------------------------------------------------------------------------


async def _taken_an_hour_ahead(ctx: Context) -> object:
    await ctx.store.acquire_agent_lock("a")
    with clock_off(3600):
        return await _take(ctx.store)


@mutant(
    "LOCK-3",
    killed_by="leases_and_waits_heed_no_clock_that_is_set",
    source="expires_at = now + ttl, by the clock of whoever writes it",
    witness=_taken_an_hour_ahead,
)
class LeasesByTheWallClock(MemoryLayer):
    """Notes until when a lease is held by the clock of its holder, and compares that with the clock of another."""

    def _until(self, agent_id: str) -> dict[str, tuple[Fence, float]]:
        held = self.space.leases.get(agent_id)
        if held is not None and held[1] <= time.time():
            del self.space.leases[agent_id]
        return self.space.leases

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        leases = self._until(agent_id)
        if agent_id in leases:
            return None
        self.space.counter += 1
        leases[agent_id] = Fence(owner, self.space.counter), time.time() + ttl_ms / 1000
        return self.space.counter

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        leases = self._until(agent_id)
        if agent_id not in leases or leases[agent_id][0] != fence:
            return False
        leases[agent_id] = fence, time.time() + ttl_ms / 1000
        return True

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        for batch in batches:
            held = self._until(batch.agent_id).get(batch.agent_id)
            if batch.fence is not None and (held is None or held[0] != batch.fence):
                outcomes.append(Refused("fence"))
            else:
                outcomes += await super().commit([replace(batch, fence=None)])
        return outcomes
