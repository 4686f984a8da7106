"""LOCK-5: writes under a lease that has ended are refused, whatever they would change."""

from __future__ import annotations

import itertools
from typing import Any, Final

from kode_conformance.calls.fenced import fenced_writes
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.kills.writes import portrait
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_conformance.values.fields import full, of_agent
from kode_conformance.values.kinds import Kind, WriteMethod, kinds
from kode_core.errors import LockLostError


def _call(kind: Kind, writer: WriteMethod, agent_id: str) -> dict[str, Any]:
    return writer.given(of_agent(full(kind.record), agent_id))


@check(
    "LOCK-5",
    "LOCK-3",
    needs=Capability.EXTENDED,
    under=(Dimension.EQUALS, Dimension.CHANGES, Dimension.INSTANCES, Dimension.ORDERS),
)
async def a_repeat_under_an_ended_lease_is_refused(ctx: Context) -> None:
    """The same records, given again by any method under a lease that has ended since, are refused though they would
    change nothing, before and after another holder took the lock.
    """
    stores = (ctx.store, await ctx.another())
    cases = [(kind, writer) for kind in kinds().values() for writer in kind.writers]
    for n, (kind, writer) in enumerate(in_time(ctx, cases)):
        agent_id = f"{writer.method}-{writer.parameter}"
        call = _call(kind, writer, agent_id)
        first, second = stores[n % 2], stores[1 - n % 2]
        lease = await first.acquire_agent_lock(agent_id)
        await getattr(first, writer.method)(agent_id, **call, fence=lease)
        await lease.release()
        before = await portrait(second, agent_id)
        case = f"{writer.method}({writer.parameter}=) of what it wrote before, under the lease that has ended"
        for store in (first, second):
            await ctx.raises(LockLostError, getattr(store, writer.method)(agent_id, **call, fence=lease), case)
        async with second.acquire_agent_lock(agent_id):
            again = getattr(first, writer.method)(agent_id, **call, fence=lease)
            await ctx.raises(LockLostError, again, f"{case}, while another is held")
        ctx.equal(await portrait(first, agent_id), before, f"the agent after {case}")
    for n, write in enumerate(in_time(ctx, [w for w in fenced_writes("b", edits=True) if w.method not in _BY_KINDS])):
        agent_id, first, second = f"{n}-{write.method}", stores[n % 2], stores[1 - n % 2]
        await fill(ctx.store, agent_id)
        lease = await first.acquire_agent_lock(agent_id)
        await write.act(first, agent_id, fence=lease)
        await lease.release()
        before = await portrait(second, agent_id)
        for store in (first, second):
            again = write.act(store, agent_id, fence=lease)
            await ctx.raises(LockLostError, again, f"{write.name}, done before, under the lease that has ended")
        ctx.equal(await portrait(first, agent_id), before, f"the agent after {write.name} was refused")


_BY_KINDS: Final = frozenset(writer.method for kind in kinds().values() for writer in kind.writers)
"""Methods that the first half of the check has tried."""


_APART: Final = ({"append", "messages"}, {"tool_calls", "upsert_tool_calls"})
"""Parts that exclude each other in a turn."""


@check("LOCK-5", "TURN-1", needs=Capability.EXTENDED, under=(Dimension.CHANGES, Dimension.INSTANCES, Dimension.ORDERS))
async def a_turn_of_any_parts_is_refused_under_an_ended_lease(ctx: Context) -> None:
    """A turn under a lease that has ended is refused whatever parts it has: two, or all that go together."""
    stores = (ctx.store, await ctx.another())
    writers = [(kind, w) for kind in kinds().values() for w in kind.writers if w.method == "save_turn"]
    sizes = (2, len(writers) - 2)
    await ctx.store.save_messages("a", samples.messages(2))
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    before = await portrait(ctx.store, "a")
    for n, chosen in enumerate(in_time(ctx, [c for size in sizes for c in itertools.combinations(writers, size)])):
        turn: dict[str, Any] = {}
        for kind, writer in chosen:
            turn |= _call(kind, writer, "a")
        if any(pair <= turn.keys() for pair in _APART):
            continue
        refused = stores[n % 2].save_turn("a", **turn, fence=lease)
        await ctx.raises(LockLostError, refused, f"save_turn({', '.join(turn)}) under a lease that has ended")
    ctx.equal(await portrait(ctx.store, "a"), before, "the agent after turns under a lease that has ended")
