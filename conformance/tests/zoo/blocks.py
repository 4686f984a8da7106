"""Stores that lose track of the blocks that a task is in (LOCK-7)."""

from __future__ import annotations

import asyncio
from typing import Any

from kode_conformance.context import Context

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import talk
from kode_core.errors import LockUnavailableError
from kode_core.store import EngineStore
from kode_core.store.locks import ENTERED, HeldLease, LeaseContext, Locks


async def _outcome(call: Any) -> str:
    (outcome,) = await asyncio.gather(call, return_exceptions=True)
    return type(outcome).__name__


async def _two_blocks(ctx: Context) -> object:
    first, second = ctx.store.acquire_agent_lock("a"), ctx.store.acquire_agent_lock("b")
    await first.__aenter__()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    await second.__aexit__(None, None, None)
    return await _outcome(ctx.store.append_messages("a", talk("1")))


class _PutsBack(LeaseContext):
    """Puts back the leases that it found when it was entered."""

    async def __aenter__(self) -> HeldLease:
        self._found = ENTERED.get()
        return await super().__aenter__()

    async def __aexit__(self, *how: Any) -> None:
        await super().__aexit__(*how)
        ENTERED.set(self._found)


@mutant(
    "LOCK-7",
    killed_by="blocks_are_left_in_any_order",
    source="contextvars: the mapping of leases saved on entry and put back on exit, as an earlier version of this did",
    witness=_two_blocks,
)
class RestoresDeadFences(EngineStore):
    """Puts the fences back that there were when a block was entered, whatever ended since."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> LeaseContext:
        return _PutsBack(self._locks, agent_id, ttl_ms, wait_ms)


async def _left_by_another(ctx: Context) -> object:
    lock = ctx.store.acquire_agent_lock("a")
    await lock.__aenter__()

    async def leave() -> None:
        await lock.__aexit__(None, None, None)

    await asyncio.ensure_future(leave())
    return await _outcome(ctx.store.append_messages("a", talk("1")))


class _LeavesHere(LeaseContext):
    """Knows only the context that leaves it."""

    async def __aenter__(self) -> HeldLease:
        lease = await super().__aenter__()
        self._where = None
        return lease


@mutant(
    "LOCK-7",
    killed_by="a_block_that_ends_elsewhere_fences_no_more",
    source="contextvars: what is reset in the task of an asyncgen finalizer is not reset in the one that iterated",
    witness=_left_by_another,
)
class LeavesOnlyHere(EngineStore):
    """Takes the fence from the task that ends the block, and not from the one that began it."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> LeaseContext:
        return _LeavesHere(self._locks, agent_id, ttl_ms, wait_ms)


async def _too_late(ctx: Context) -> object:
    left = asyncio.Event()

    async def child() -> str:
        await left.wait()
        return await _outcome(ctx.store.append_messages("a", talk("1")))

    async with ctx.store.acquire_agent_lock("a"):
        task = asyncio.ensure_future(child())
        await asyncio.sleep(0)
    left.set()
    return await task


class _ForgetsTheLeft(Locks):
    def _inside(self, agent_id: str) -> HeldLease | None:
        lease = super()._inside(agent_id)
        return None if lease is None or lease.is_left else lease


@mutant(
    "LOCK-7",
    killed_by="tasks_that_outlive_the_block_come_too_late",
    source="a flag on the lease that says for everybody that its block was left",
    witness=_too_late,
)
class LateTasksWriteOn(EngineStore):
    """Lets tasks that were started inside a block write without a fence once it was left."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._locks.__class__ = _ForgetsTheLeft


async def _again(ctx: Context) -> object:
    async with ctx.store.acquire_agent_lock("a"):
        try:
            async with asyncio.timeout(0.5):
                await ctx.store.acquire_agent_lock("a", wait_ms=5000)
        except (LockUnavailableError, TimeoutError) as exc:
            return type(exc).__name__
    return "taken twice"


class _NeverKnows(Locks):
    async def _is_held(self, lease: HeldLease) -> bool:
        return False


@mutant(
    "LOCK-7",
    killed_by="who_holds_the_lock_is_told_so",
    source="a lock that is not reentrant, with a timeout",
    witness=_again,
    slow=True,
)
class WaitsForItself(EngineStore):
    """Lets a task wait for a lock that it holds itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._locks.__class__ = _NeverKnows


async def _closed_inside(ctx: Context) -> object:
    store = await ctx.another()
    lock = store.acquire_agent_lock("a")
    await lock.__aenter__()
    await ctx.close(store)
    return await _outcome(lock.__aexit__(None, None, None))


class _ReleasesAlways(Locks):
    async def release(self, lease: HeldLease) -> None:
        self._context.check_open()
        await super().release(lease)


@mutant(
    "LOCK-7",
    killed_by="a_store_is_closed_inside_a_block",
    source="a release that needs a connection",
    witness=_closed_inside,
    raises="StoreClosedError",
)
class CannotLeaveOnceClosed(EngineStore):
    """Raises when a block is left after the store was closed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._locks.__class__ = _ReleasesAlways
