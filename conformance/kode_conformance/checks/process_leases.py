"""LOCK-1, 3, 5: leases that end in one process, as the next ones in another process see it."""

from __future__ import annotations

import asyncio
from typing import Final

from kode_conformance.checks.leases import ENDS, awaited, take
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_core.errors import LockUnavailableError

_NEEDS: Final = Capability.EXTENDED | Capability.CROSS_PROCESS


@check(
    "LOCK-3",
    "LOCK-1",
    "LOCK-4",
    "LOCK-5",
    needs=_NEEDS,
    tier=Tier.STANDARD,
    under=(Dimension.PROCESSES, Dimension.CHANGES, Dimension.INSTANCES),
)
async def leases_end_for_other_processes_too(ctx: Context) -> None:
    """However a lease ends in one process, another gets the lock at once, with a greater token; the ended lease has no
    say meanwhile, and then the first process gets a new one. A lock that is held is held for all processes, and a
    waiter in another process gets it when it is released.
    """
    held = await ctx.store.acquire_agent_lock("held", ttl_ms=600_000)
    gate, names = ctx.folder / "gate", [end.how for end in ENDS]
    process = await ctx.process("live_with_locks", "held", names, str(gate))
    for number in range(3):
        ctx.equal(await process.line(), {"refused": "held"}, f"try {number} of another process for a lock that is held")
    report = await process.line(60.0)
    ctx.equal(list(report["tokens"]), names, "the leases that the other process had")
    waiter = asyncio.ensure_future(take(ctx.store.acquire_agent_lock("kept", wait_ms=60_000), "one who waits"))
    mine = {}
    for how, token in report["tokens"].items():
        what = f"after a lease of another process ended like this: {how}"
        wait_ms = 20_000 if "expired" in how else 0
        lease = await take(ctx.store.acquire_agent_lock(how, ttl_ms=600_000, wait_ms=wait_ms), what)
        ctx.true(lease.token > token, f"the token is {lease.token} {what}, whose token was {token}")
        mine[how] = lease
    ctx.true(not waiter.done(), "one who waits must not have a lock that another process holds")
    gate.touch()
    after = await process.line(60.0)
    late = {how: ["refused", "refused"] for how in names}
    ctx.equal(after["late"], late, "renewals and writes under ended leases, while another process has the lock")
    lease = await waiter
    ctx.true(lease.token > report["kept"], f"the token of one who waited is {lease.token}, after {report['kept']}")
    await lease.release()
    for how, one in mine.items():
        await ctx.raises(
            LockUnavailableError,
            awaited(ctx.store.acquire_agent_lock(how)),
            f"the lock of this process, after the lease of another that ended like this was released once more: {how}",
        )
        await one.release()
    again = (await process.line(60.0))["again"]
    for how, one in mine.items():
        ctx.true(again[how] > one.token, f"the token after {one.token} is {again[how]}, for the lock {how!r}")
    await process.lines()
    await held.renew()
    await held.release()
