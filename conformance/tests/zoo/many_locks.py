"""Stores whose locks are right for a few waiters, a few blocks, and one store in a process (LOCK-2, LOCK-7)."""

from __future__ import annotations

import asyncio
from typing import Any

from kode_conformance.checks.closing import another_place
from kode_conformance.context import Context

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import talk
from kode_core.store import EngineStore
from kode_core.store.locks import ENTERED, HeldLease, Locks

_POOL = 20


async def _outcome(call: Any) -> str:
    (outcome,) = await asyncio.gather(call, return_exceptions=True)
    return type(outcome).__name__


async def _many_wait(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    waiting = [asyncio.ensure_future(_taken(ctx, 30_000)) for _ in range(_POOL)]
    await asyncio.sleep(0.05)
    try:
        async with asyncio.timeout(0.5):
            return await ctx.store.append_messages("a", talk("1"), fence=lease)
    except TimeoutError:
        return "nothing happened"
    finally:
        for waiter in waiting:
            waiter.cancel()


async def _taken(ctx: Context, wait_ms: int) -> object:
    return await ctx.store.acquire_agent_lock("a", wait_ms=wait_ms)


class _WaitsOnAConnection(Locks):
    pool: asyncio.Semaphore

    async def acquire(self, agent_id: str, ttl_ms: int, wait_ms: int) -> HeldLease:
        async with self.pool:
            return await super().acquire(agent_id, ttl_ms, wait_ms)


@mutant(
    "LOCK-2",
    killed_by="hundreds_wait_for_one_lock",
    witness=_many_wait,
    source="pg_advisory_lock: who waits for it keeps a connection of the pool",
    slow=True,
)
class WaitersTakeAllConnections(EngineStore):
    """Keeps one of twenty connections for everybody who waits for a lock, and has none left for its holder."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._locks.__class__ = _WaitsOnAConnection
        self._locks.pool = self._pool = asyncio.Semaphore(_POOL)  # type: ignore[attr-defined]

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        async with self._pool:
            await super().append_messages(agent_id, messages, fence=fence)


async def _ten_blocks(ctx: Context) -> object:
    locks = [ctx.store.acquire_agent_lock(f"a{i}") for i in range(10)]
    leases = [await lock.__aenter__() for lock in locks]
    await leases[0].release()
    found = await _outcome(ctx.store.append_messages("a0", talk("1")))
    for lock in locks:
        await lock.__aexit__(None, None, None)
    return found


class _KnowsEight(Locks):
    def _inside(self, agent_id: str) -> HeldLease | None:
        held = [lease for lease in ENTERED.get() if lease.locks is self][-8:]
        return next((lease for lease in held if lease.agent_id == agent_id), None)


@mutant(
    "LOCK-7",
    killed_by="a_task_is_inside_many_blocks",
    witness=_ten_blocks,
    source="a deque(maxlen=8) of the leases of a task",
)
class KnowsTheLastEightBlocks(EngineStore):
    """Fences writes to the agents of the last eight blocks that a task entered."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._locks.__class__ = _KnowsEight


async def _two_databases(ctx: Context) -> object:
    async with another_place(ctx) as place, ctx.store.acquire_agent_lock("a"):
        return await _outcome(place.store.append_messages("a", talk("1")))


class _OfAnyStore(Locks):
    def _inside(self, agent_id: str) -> HeldLease | None:
        return next((lease for lease in reversed(ENTERED.get()) if lease.agent_id == agent_id), None)


@mutant(
    "LOCK-7",
    killed_by="blocks_of_several_stores_are_apart",
    witness=_two_databases,
    source="a ContextVar of the module, by the agent's id alone",
    raises="LockLostError",
)
class FencesOfAnyDatabase(EngineStore):
    """Fences a write with the lease for an agent of that name in another database."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._locks.__class__ = _OfAnyStore
