"""LOCK-7: the blocks that a task is in fence its writes, however blocks end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable
from functools import partial
from typing import Final

from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import Suspected, judged
from kode_conformance.instruments.patience import within
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.errors import LockLostError, LockUnavailableError, StoreClosedError
from kode_core.protocols import ExtendedStore

_E = Capability.EXTENDED
_LONG_MS: Final = 600_000
_SOON_S: Final = 60


async def _write(store: ExtendedStore, agent_id: str = "a") -> None:
    await store.append_messages(agent_id, samples.messages(1))


async def is_fenced(store: ExtendedStore, other: ExtendedStore, agent_id: str = "a") -> bool:
    """True if this task's writes are fenced: while another instance has the lock, only unfenced writes are done."""
    lease = await other.acquire_agent_lock(agent_id, wait_ms=20_000)
    before = len(await store.load_messages(agent_id))
    try:
        await _write(store, agent_id)
    except LockLostError:
        return True
    finally:
        await lease.release()
    if len(await store.load_messages(agent_id)) != before + 1:
        raise Violation("a write that was not refused must be done")
    return False


async def _soon(call: Awaitable[object], what: str) -> object:
    """The result of *call*, which must come soon: a call that waits for something else to end comes too late."""
    try:
        async with within(_SOON_S):
            return await call
    except TimeoutError as exc:
        raise Violation(f"{what} was not done after {_SOON_S} s") from exc


@check("LOCK-7", "LOCK-5", needs=_E, under=(Dimension.ORDERS,))
async def blocks_are_left_in_any_order(ctx: Context) -> None:
    """Each of several blocks, left in any order, fences its agent until it is left, and not after that."""
    store, other = ctx.store, await ctx.another()
    for order in itertools.permutations("abc"):
        locks = {agent_id: store.acquire_agent_lock(agent_id) for agent_id in "abc"}
        leases = {agent_id: await lock.__aenter__() for agent_id, lock in locks.items()}
        for place, left in enumerate(order):
            await locks[left].__aexit__(None, None, None)
            ctx.equal(await is_fenced(store, other, left), False, f"whether a write to {left} is fenced, once left")
            for agent_id in order[place + 1 :]:
                await _write(store, agent_id)
        ctx.equal([lease.is_lost for lease in leases.values()], [False] * 3, f"leases that were lost, order {order}")
    first, second = store.acquire_agent_lock("a"), store.acquire_agent_lock("b")
    await first.__aenter__()
    lease = await second.__aenter__()
    await first.__aexit__(None, None, None)
    await lease.release()
    ctx.equal(await is_fenced(store, other, "b"), True, "whether the second block fences after the first was left")
    await second.__aexit__(None, None, None)
    for agent_id in "ab":
        ctx.equal(await is_fenced(store, other, agent_id), False, f"whether {agent_id} is fenced after all blocks")


@check("LOCK-7", needs=_E, under=(Dimension.ORDERS, Dimension.INTERRUPTIONS))
async def a_block_that_ends_elsewhere_fences_no_more(ctx: Context) -> None:
    """A block inside an async generator that is dropped, or closed by another task, fences nothing after its end: not
    the task that was in it, and none that it starts.
    """
    store, other = ctx.store, await ctx.another()

    async def turns() -> AsyncGenerator[int, None]:
        async with store.acquire_agent_lock("a", wait_ms=20_000):
            for i in range(3):
                await _write(store)
                yield i

    for _ in range(5):
        async for _ in turns():
            break
        await _write(store)
    await _soon(asyncio.gather(is_fenced(store, other)), "a write after a generator was dropped")
    ctx.equal(await is_fenced(store, other), False, "whether a task is fenced after it dropped the generator")
    turn = turns()
    await anext(turn)
    await asyncio.ensure_future(turn.aclose())
    (in_child,) = await asyncio.gather(is_fenced(store, other))
    ctx.equal(in_child, False, "whether a task that is started after the block is fenced")
    ctx.equal(await is_fenced(store, other), False, "whether a task is fenced after another one closed the generator")
    lock = store.acquire_agent_lock("a")
    await lock.__aenter__()

    async def leave() -> bool:
        await lock.__aexit__(None, None, None)
        return await is_fenced(store, other)

    ctx.equal(await asyncio.ensure_future(leave()), False, "whether the task is fenced that left another one's block")
    ctx.equal(await is_fenced(store, other), False, "whether a task is fenced whose block another one left")


@check("LOCK-7", "LOCK-5", needs=_E, under=(Dimension.ORDERS, Dimension.COMPANY))
async def tasks_that_outlive_the_block_come_too_late(ctx: Context) -> None:
    """A task that was started inside a block may write as long as the block lasts. Afterwards its writes are refused,
    and so are the writes of tasks that it starts, until it takes the lock itself; the writes of the task that was in
    the block are not refused.
    """
    store, other, left = ctx.store, await ctx.another(), asyncio.Event()
    inside = asyncio.Event()

    async def child() -> None:
        await _write(store)
        inside.set()
        await left.wait()
        await ctx.raises(LockLostError, _write(store), "a write by a task that outlived the block")
        await ctx.raises(LockLostError, asyncio.gather(_write(store)), "a write by a task that this one started")
        await _write(store, "b")
        async with store.acquire_agent_lock("a", wait_ms=20_000):
            await _write(store)
        ctx.equal(await is_fenced(store, other), False, "whether it is fenced after it had the lock itself")

    async with store.acquire_agent_lock("a"):
        task = asyncio.ensure_future(child())
        await inside.wait()
        await asyncio.gather(_write(store))
    await _write(store)
    left.set()
    await task
    ctx.equal(len(await store.load_messages("a")), 5, "how many messages there are of those that were not refused")


@check("LOCK-7", "LOCK-2", needs=_E, under=(Dimension.ORDERS,))
async def who_holds_the_lock_is_told_so(ctx: Context) -> None:
    """A task that asks again for a lock that it holds, or that its parent task holds, is told so at once, however long
    it would wait, and can ask again once the block was left.
    """
    store = ctx.store

    async def ask() -> None:
        lock = store.acquire_agent_lock("a", wait_ms=_LONG_MS)
        again = _soon(lock.__aenter__(), "acquire_agent_lock inside the block of the same lock")
        await ctx.raises(LockUnavailableError, again, "asking again for a lock that is held")

    for _ in range(2):
        async with store.acquire_agent_lock("a") as lease:
            await ask()
            await asyncio.gather(ask())
            await _write(store)
            ctx.equal(lease.is_lost, False, "is_lost of the lease that is held")
        await (await store.acquire_agent_lock("a")).release()
    ctx.equal(len(await store.load_messages("a")), 2, "how many messages were written inside")


@check("LOCK-7", "OPS-5", needs=_E, under=(Dimension.INTERRUPTIONS,))
async def a_store_is_closed_inside_a_block(ctx: Context) -> None:
    """When the store is closed inside a block, the lease is lost and leaving the block raises nothing; a task that
    waits for a lock is told that the store is closed; and no fence is left.
    """
    await judged(partial(_close_inside, ctx))


async def _close_inside(ctx: Context, longer: int) -> None:
    store, doomed = ctx.store, await ctx.another()
    holder = await store.acquire_agent_lock("b", ttl_ms=_LONG_MS)
    waiter = asyncio.ensure_future(doomed.acquire_agent_lock("b", wait_ms=_LONG_MS).__aenter__())
    async with doomed.acquire_agent_lock("a", ttl_ms=1_000 * longer, wait_ms=20_000) as lease:
        try:
            await _write(doomed)
        except LockLostError as exc:
            waiter.cancel()
            await holder.release()
            raise Suspected(f"inside the block of a lease of {longer} s: {exc}") from exc
        await asyncio.sleep(0.05)
        await _soon(ctx.close(doomed), "close while somebody waits for a lock")
        ctx.equal(lease.is_lost, True, "is_lost of a lease whose store was closed")
        await ctx.raises(StoreClosedError, _write(doomed), "a write inside, after the close")
    await ctx.raises(StoreClosedError, waiter, "waiting for a lock of a store that is closed meanwhile")
    await holder.release()
    fresh = await ctx.another()
    ctx.equal(await is_fenced(fresh, store), False, "whether a write of another instance is fenced after that")
    async with fresh.acquire_agent_lock("b", wait_ms=20_000):
        await _write(fresh, "b")
