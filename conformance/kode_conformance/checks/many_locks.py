"""LOCK-2, LOCK-7: hundreds of waiters for a lock, and tasks inside many blocks, of several stores."""

from __future__ import annotations

import asyncio
from typing import Final

from kode_conformance.checks.blocks import is_fenced
from kode_conformance.checks.closing import another_place
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import sizes_in_time
from kode_conformance.instruments.patience import SOON_S
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.errors import LockLostError, LockUnavailableError
from kode_core.protocols import ExtendedStore, Lease

_E: Final = Capability.EXTENDED
_LONG_MS: Final = 600_000
_WAITERS: Final = (10, 150)


@check(
    "LOCK-2", "LOCK-3", "LOCK-6", "OPS-13", needs=_E, under=(Dimension.ITEMS, Dimension.COMPANY, Dimension.INSTANCES)
)
async def hundreds_wait_for_one_lock(ctx: Context) -> None:
    """While hundreds of tasks wait for a lock, its holder renews, writes and releases, and others read, write and lock;
    then each waiter that waits long enough gets it, one after the other, and every other one is told that it is held.
    """
    stores = (ctx.store, await ctx.another())
    for count in sizes_in_time(ctx, _WAITERS):
        agent_id = f"a{count}"
        lease = await ctx.store.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS)
        waits = [_LONG_MS if i % 4 < 2 else 100 + i for i in range(count)]
        waiting = [asyncio.ensure_future(_token(stores[i % 2], agent_id, waits[i])) for i in range(count)]
        await asyncio.sleep(0.02)
        try:
            async with ctx.within():
                await _work(ctx, stores[1], lease, f"other-{count}")
                vain = [token for token, wait in zip(waiting, waits, strict=True) if wait != _LONG_MS]
                ctx.equal(
                    [token for token in await asyncio.gather(*vain) if token], [], "tokens of a lock that is held"
                )
                await lease.release()
                tokens = sorted(filter(None, await asyncio.gather(*waiting)))
        except TimeoutError:
            raise Violation(f"while {count} wait for a lock, or get it, calls did not end in {SOON_S:g} s") from None
        finally:
            for waiter in waiting:
                waiter.cancel()
        patient = waits.count(_LONG_MS)
        ctx.equal(len({lease.token, *tokens}), patient + 1, f"how many different tokens {patient} waiters and one had")
        ctx.true(tokens[0] > lease.token, f"token {tokens[0]} of one who waited must be above {lease.token}")


async def _work(ctx: Context, store: ExtendedStore, lease: Lease, other: str) -> None:
    """The work of the holder, and of others, while many wait."""
    await lease.renew()
    await ctx.store.append_messages(lease.agent_id, samples.messages(1), fence=lease)
    for one in (ctx.store, store):
        await fill(one, other)
        ctx.true(bool(await one.query_messages(agent_id=other)), "messages of another agent must be found")
        ctx.equal(await one.load_messages(lease.agent_id), samples.messages(1), "what the holder of the lock wrote")
        async with one.acquire_agent_lock(other):
            await one.append_messages(other, samples.messages(1))
        await one.delete(other)


async def _token(store: ExtendedStore, agent_id: str, wait_ms: int) -> int:
    """The token of a lease that came in time and was released; 0 if the lock is held."""
    try:
        lease = await store.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS, wait_ms=wait_ms)
    except LockUnavailableError:
        return 0
    await lease.release()
    return lease.token


# --- many blocks ------------------------------------------------------------------------------------------------------

_BLOCKS: Final = (2, 40)


@check("LOCK-7", "LOCK-5", needs=_E, under=(Dimension.ITEMS, Dimension.ORDERS, Dimension.COMPANY))
async def a_task_is_inside_many_blocks(ctx: Context) -> None:
    """In a task that is inside many blocks, each block fences the writes of the task and of its child tasks to its
    agent, and to no other, until it is left, in whatever order blocks are left.
    """
    store, other = ctx.store, await ctx.another()
    for count in sizes_in_time(ctx, _BLOCKS):
        ids = [f"a{count}-{i}" for i in range(count)]
        locks = {agent_id: store.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS) for agent_id in ids}
        leases = {agent_id: await lock.__aenter__() for agent_id, lock in locks.items()}
        lost = ids[:: max(1, count // 5)]
        for agent_id in lost:
            await leases[agent_id].release()
        for at, agent_id in enumerate(ids):
            write = store.append_messages(agent_id, samples.messages(1))
            case = f"block {at + 1} of {count} that the task is in"
            if agent_id in lost:
                await ctx.raises(LockLostError, asyncio.gather(write), f"a write in {case}, whose lease has ended")
            else:
                await write
        await store.append_messages("in no block", samples.messages(1))
        ctx.rng.shuffle(ids)
        for at, agent_id in enumerate(ids):
            await locks[agent_id].__aexit__(None, None, None)
            if at % 4 == 0:
                case = f"whether an agent is fenced whose block was left, with {count - at - 1} blocks to go"
                ctx.equal(await is_fenced(store, other, agent_id), False, case)
        left = [agent_id for agent_id in ids if agent_id not in lost]
        ctx.equal([a for a in left if leases[a].is_lost], [], f"leases that were lost, of {len(left)} that were held")


# --- several stores ---------------------------------------------------------------------------------------------------


@check("LOCK-7", "LOCK-5", needs=_E, under=(Dimension.INSTANCES, Dimension.ORDERS))
async def blocks_of_several_stores_are_apart(ctx: Context) -> None:
    """A task that is inside blocks of two databases, for agents of one name, or of two instances, for two agents, is
    fenced in each by its own lease, and not by the other one, in whatever order the blocks are left.
    """
    async with another_place(ctx) as place:
        away = place.store
        for first, second in ((ctx.store, away), (away, ctx.store)):
            outer = first.acquire_agent_lock("a", ttl_ms=_LONG_MS)
            lease = await outer.__aenter__()
            await second.append_messages("a", samples.messages(1))
            async with second.acquire_agent_lock("a", ttl_ms=_LONG_MS) as inner:
                await second.append_messages("a", samples.messages(1))
                await first.append_messages("a", samples.messages(1))
                await inner.release()
                await _refused(ctx, second, "where its lease has ended, in another database than a lease that is held")
                await first.append_messages("a", samples.messages(1))
            await second.append_messages("a", samples.messages(1))
            await lease.release()
            await _refused(ctx, first, "where its lease has ended, and the block in another database was left")
            await second.append_messages("a", samples.messages(1))
            await outer.__aexit__(None, None, None)
            await first.append_messages("a", samples.messages(1))
        counts = [len(await store.load_messages("a")) for store in (ctx.store, away)]
        ctx.equal(counts, [7, 7], "how many messages there are in two databases")
    stores = {"a": ctx.store, "b": await ctx.another()}
    for order in ("ab", "ba"):
        locks = {agent_id: store.acquire_agent_lock(agent_id) for agent_id, store in stores.items()}
        leases = {agent_id: await lock.__aenter__() for agent_id, lock in locks.items()}
        for left, other in ((order[0], order[1]), (order[1], order[0])):
            await stores[left].append_messages(left, samples.messages(1))
            await locks[left].__aexit__(None, None, None)
            case = f"whether {left} is fenced, once the block of its instance was left"
            ctx.equal(await is_fenced(stores[left], stores[other], left), False, case)
        ctx.equal([lease.is_lost for lease in leases.values()], [False] * 2, "leases of two instances that were lost")


async def _refused(ctx: Context, store: ExtendedStore, case: str) -> None:
    await ctx.raises(LockLostError, store.append_messages("a", samples.messages(1)), f"a write {case}")
