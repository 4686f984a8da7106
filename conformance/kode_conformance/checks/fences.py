"""LOCK-5: every way to write, under leases that have ended in every way, under the one that is held, and under none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from kode_conformance.calls.fenced import fenced_writes, idle_writes
from kode_conformance.checks.leases import all_of, take
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.kills.writes import Portrait, missing_kinds, portrait
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.errors import InvalidArgumentError, LockLostError
from kode_core.protocols import ExtendedStore, Lease

_E: Final = Capability.EXTENDED
_LONG_MS: Final = 600_000
_SHORT_MS: Final = 70
_OVER_S: Final = 0.35

Ended = Callable[[ExtendedStore, ExtendedStore, str], Awaitable[Lease]]
"""Returns an ended lease of the first store."""


async def _released(store: ExtendedStore, other: ExtendedStore, agent_id: str) -> Lease:
    lease = await store.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS)
    await lease.release()
    return lease


async def _expired(store: ExtendedStore, other: ExtendedStore, agent_id: str) -> Lease:
    lease = await store.acquire_agent_lock(agent_id, ttl_ms=_SHORT_MS)
    await asyncio.sleep(_OVER_S)
    return lease


async def _followed_here(store: ExtendedStore, other: ExtendedStore, agent_id: str) -> Lease:
    lease = await _expired(store, other, agent_id)
    await take(store.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS, wait_ms=20_000), "the next lease")
    return lease


async def _followed_elsewhere(store: ExtendedStore, other: ExtendedStore, agent_id: str) -> Lease:
    lease = await _released(store, other, agent_id)
    await take(other.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS), "the next lease")
    return lease


_ENDED: Final[Mapping[str, Ended]] = {
    "that was released, and nobody has the lock": _released,
    "whose time is over, and nobody has the lock": _expired,
    "whose time is over, and the same instance has the next one": _followed_here,
    "that was released, and another instance has the next one": _followed_elsewhere,
}


@check("LOCK-5", needs=_E, under=(Dimension.ORDERS, Dimension.INSTANCES, Dimension.CHANGES))
async def each_write_under_each_ended_lease_is_refused(ctx: Context) -> None:
    """Every method that takes a fence, and every part of a turn by itself, raises LockLostError under a lease that has
    ended, in whatever way, and changes nothing of any kind, also where it would find nothing to do, and where there is
    nothing at all.
    """
    other = await ctx.another()

    async def live(ended: Ended, agent_id: str, number: int) -> None:
        await fill(ctx.store, agent_id)
        before = await portrait(other, agent_id)
        lease = await ended(ctx.store, other, agent_id)
        for write in (*fenced_writes(agent_id, edits=True), *idle_writes(agent_id)[number % 2 :: 2]):
            await ctx.raises(LockLostError, write.act(ctx.store, agent_id, fence=lease), f"{write.name} under it")
        ctx.equal(await portrait(other, agent_id), before, "the agent after writes that were refused")

    async def lone(agent_id: str, has_info: bool) -> None:
        if has_info:
            await ctx.store.save_info(agent_id, samples.info(agent_id))
        lease = await _released(ctx.store, other, agent_id)
        for write in idle_writes(agent_id, without=True):
            await ctx.raises(LockLostError, write.act(ctx.store, agent_id, fence=lease), f"{write.name} under it")
        if not has_info:
            await ctx.raises(LockLostError, ctx.store.delete(agent_id, fence=lease), "delete of an absent agent")
        ctx.equal(await other.load_agent(agent_id) is not None, has_info, "whether the agent exists after them")

    calls = {f"a lease {what}": live(ended, f"agent-{n}", n) for n, (what, ended) in enumerate(_ENDED.items())}
    calls |= {f"a lease of an agent with {what}": lone(what, what == "an info") for what in ("an info", "nothing")}
    await all_of(calls)


@check("LOCK-5", "OPS-17", needs=_E, absence_ok=True, under=(Dimension.TWINS,))
async def each_write_knows_whose_fence_it_is(ctx: Context) -> None:
    """Every method that takes a fence refuses the lease of another agent, held or ended, and any object that is no
    lease, and changes nothing.
    """
    await fill(ctx.store, "a")
    before = await portrait(ctx.store, "a")
    held = await ctx.store.acquire_agent_lock("A")
    ended = await ctx.store.acquire_agent_lock("a ")
    await ended.release()
    wrong: dict[str, Any] = {"the lease of 'A'": held, "an ended lease of 'a '": ended, "the token": held.token}
    for write in fenced_writes("a", edits=True):
        for what, fence in wrong.items():
            call = write.act(ctx.store, "a", fence=fence)
            await ctx.raises(InvalidArgumentError, call, f"{write.name} for 'a' with {what} as its fence")
    ctx.equal(await portrait(ctx.store, "a"), before, "the agent after writes that were refused")
    await held.release()


@check("LOCK-5", "LOCK-1", needs=_E, under=(Dimension.INSTANCES, Dimension.COMPANY))
async def each_write_under_the_lease_that_is_held_is_done(ctx: Context) -> None:
    """Under the lease that is held, given or entered, every method that takes a fence writes the same as without one,
    and does not end the lease. A write without a fence does not end it either, and no lock stops such a write.
    """
    other = await ctx.another()

    async def write_all(agent_id: str, fence: Lease | None = None) -> Portrait:
        """Everything that all of them wrote, just before the delete."""
        before: Portrait = {}
        await fill(ctx.store, agent_id)
        for write in fenced_writes(agent_id, edits=True):
            if write.method == "delete":
                before = await portrait(other, agent_id)
                before["events"] = [event for *_, event in before["events"]]  # emits number and date them anew
            try:
                await (write.act(ctx.store, agent_id, fence=fence) if fence else write.act(ctx.store, agent_id))
            except LockLostError as exc:
                raise Violation(f"{write.name} was refused: {exc}") from exc
        return before

    async def given() -> None:
        lease = await ctx.store.acquire_agent_lock("given", ttl_ms=_LONG_MS)
        ctx.equal(await write_all("given", lease), wanted, "what was written")
        await lease.renew()
        ctx.equal(lease.is_lost, False, "is_lost after all the writes, the delete included")
        await lease.release()

    async def entered() -> None:
        async with ctx.store.acquire_agent_lock("entered", ttl_ms=_LONG_MS) as lease:
            ctx.equal(await write_all("entered"), wanted, "what was written")
            await lease.renew()

    async def unfenced() -> None:
        lease = await other.acquire_agent_lock("unfenced", ttl_ms=_LONG_MS)
        ctx.equal(await write_all("unfenced"), wanted, "what was written")
        await lease.renew()
        await lease.release()

    wanted = await write_all("free")
    empty = missing_kinds(wanted)
    ctx.true(not empty, f"something of every kind must be written without a lock; {empty} are empty")
    await all_of(
        {
            "under a lease that is given": given(),
            "inside the block of a lease": entered(),
            "without a fence, while another instance has the lock": unfenced(),
        }
    )
