"""QRY-8, QRY-7, LOCK-3: saving earlier records again, statistics after each write, renewals."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Final

from kode_conformance.checks.locks import renew, see_held
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time, judged
from kode_conformance.kills.writes import WRITES, overwrite, portrait
from kode_conformance.registry import Capability, check
from kode_core.errors import LockUnavailableError
from kode_core.protocols import ExtendedStore


@check(
    *("MSG-1", "TC-1", "TODO-1", "HIS-1", "HIS-2", "MED-1", "SNAP-1", "INFO-1", "TURN-1", "QRY-8", "DUR-1"),
    under=(Dimension.EQUALS, Dimension.ORDERS, Dimension.INSTANCES, Dimension.CHANGES),
)
async def what_was_saved_before_is_saved_again(ctx: Context) -> None:
    """An instance can save exactly the records of its last save again, after another instance saved something else or
    deleted the agent: they are stored, by each method.
    """
    other = await ctx.another()
    for n, write in enumerate(in_time(ctx, WRITES)):
        if write.name in ("delete", "batch_fork"):
            continue
        for meanwhile in ("overwritten", "deleted"):
            agent, steady = f"{write.name}-{n} {meanwhile}", f"{write.name}-{n} {meanwhile} steady"
            for writer, between, name in ((ctx.store, other, agent), (other, other, steady)):
                await write.prepare(writer, name)
                await write.act(writer, name)
                await (overwrite(between, name) if meanwhile == "overwritten" else between.delete(name))
                await write.act(writer, name)
            for reader, where in ((other, "the other instance"), (ctx.store, "the one that saved it twice")):
                found, wanted = await portrait(reader, agent), await portrait(other, steady)
                ctx.true(any(wanted.values()), f"the agent holds nothing after {write.name}")
                if write.name.startswith("append"):  # repeated appends may have another order of offsets
                    found, wanted = ({k: v for k, v in one.items() if k != "events"} for one in (found, wanted))
                what = f"an agent {meanwhile} between two equal calls of {write.name}, seen by {where}"
                ctx.equal(found, wanted, what)


@check("QRY-7", needs=Capability.QUERYABLE, under=(Dimension.CHANGES, Dimension.ORDERS, Dimension.INSTANCES))
async def statistics_are_of_what_is_there(ctx: Context) -> None:
    """After each write of each kind, made once, again, by another instance, and over earlier records, statistics count
    the records that loads return: messages, tool calls by name and state, and snapshots.
    """
    other = await ctx.another()
    writes = [write for write in WRITES if write.name not in ("delete", "batch_fork")]
    deletes = [write for write in WRITES if write.name == "delete"]
    for n, write in enumerate(in_time(ctx, [*writes, *writes[::-1], *deletes, *writes])):
        store, reader = ((ctx.store, other), (other, ctx.store))[n % 2]
        await write.act(store, "a")
        calls, stats = await reader.load_tool_call_records("a"), await reader.aggregate_stats("a")
        found = (stats.total_messages, stats.total_tool_calls, stats.total_snapshots)
        loaded = (len(await reader.load_messages("a")), len(calls), len(await reader.list_snapshots("a")))
        ctx.equal(found, loaded, f"the totals of messages, tool calls and snapshots after {write.name}")
        ctx.true(any(loaded) or write.name == "delete" or not n, f"the agent holds nothing after {write.name}")
        by_name, by_state = Counter(call.name for call in calls), Counter(call.state for call in calls)
        ctx.equal(dict(sorted(stats.tool_calls_by_name.items())), dict(sorted(by_name.items())), f"after {write.name}")
        ctx.equal(
            dict(sorted(stats.tool_calls_by_state.items())), dict(sorted(by_state.items())), f"after {write.name}"
        )


_RENEWALS: Final = 30


@check("LOCK-3", "LOCK-1", needs=Capability.EXTENDED, under=(Dimension.CLOCKS, Dimension.INSTANCES))
async def a_renewal_is_for_the_time_of_the_lease(ctx: Context) -> None:
    """A lease that was renewed ends when its own time has passed since, and not some other time."""
    other = await ctx.another()

    async def renewed(longer: int) -> None:
        agent_id, seconds = f"short-{longer}", 0.4 * ctx.harness.patience * longer
        ttl_ms, begun = int(1000 * seconds), time.monotonic()
        short = await ctx.store.acquire_agent_lock(agent_id, ttl_ms=ttl_ms)
        await asyncio.sleep(0.375 * seconds)
        for _ in range(_RENEWALS):  # their times do not add up
            begun = await renew(short, begun, ttl_ms)
        await see_held(other, agent_id, begun, ttl_ms)
        told = f"a lease of {seconds:g} s that was renewed must end by itself"
        await ctx.eventually(lambda: _is_free(other, agent_id), told, seconds=20 * seconds)

    await judged(renewed)


async def _is_free(store: ExtendedStore, agent_id: str) -> bool:
    try:
        await (await store.acquire_agent_lock(agent_id)).release()
    except LockUnavailableError:
        return False
    return True
