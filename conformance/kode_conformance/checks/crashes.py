"""DUR, LOCK-5: a writer that is killed at every call it makes, one after the other; a holder that is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable

from kode_conformance.context import Context, Unverified
from kode_conformance.dimensions import Dimension
from kode_conformance.kills.points import kill_at_points, kill_first_opens, kill_recoveries, killer
from kode_conformance.kills.series import kill_forks
from kode_conformance.kills.writes import DOCUMENT_WRITES, IMPORT, WRITES, write_named
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples


@check(
    "DUR-3",
    "DUR-1",
    "TURN-1",
    needs=Capability.PERSISTENT,
    tier=Tier.STANDARD,
    under=(Dimension.CRASHES, Dimension.PROCESSES),
)
async def a_turn_killed_at_its_calls(ctx: Context) -> None:
    """A turn whose writer is killed at a call inside the store is stored whole or not at all, and is not forgotten; the
    same holds for the first turn of an agent.
    """
    async with killer(ctx) as kills:
        await kill_at_points(ctx, kills, write_named("save_turn"), others=ctx.effort.kills)
        few = 2 * ctx.effort.kills
        await kill_at_points(ctx, kills, write_named("save_turn"), others=0, with_seed=False, at_most=few)


_OF_THE_AGENT = ("save_messages", "append_messages", "save_tool_call_records", "upsert_tool_call_records", "save_info")


async def _kill(ctx: Context, writes: Iterable[str], *, first: Iterable[str]) -> None:
    """Kill *writes* to an agent that has something of every kind, and those in *first* to one that has nothing."""
    async with killer(ctx) as kills:
        for name in writes:
            await kill_at_points(ctx, kills, write_named(name), others=ctx.effort.kills // 2)
        for name in first:
            await kill_at_points(ctx, kills, write_named(name), others=0, with_seed=False)


@check(
    "DUR-3",
    "DUR-1",
    "MSG-1",
    "LIFE-3",
    needs=Capability.PERSISTENT,
    tier=Tier.STANDARD,
    under=(Dimension.CRASHES, Dimension.PROCESSES),
)
async def lists_and_info_killed_at_their_calls(ctx: Context) -> None:
    """Writes of messages, tool calls and info, and delete, killed at each call that can matter: whole or absent, kept
    once acknowledged, and the agent is consistent and can be written afterwards.
    """
    await _kill(ctx, (*_OF_THE_AGENT, "delete"), first=("save_info", "append_messages"))


@check(
    "DUR-3",
    "DUR-1",
    "EVT-1",
    "EVT-2",
    needs=Capability.PERSISTENT,
    tier=Tier.STANDARD,
    under=(Dimension.CRASHES, Dimension.PROCESSES),
)
async def events_and_documents_killed_at_their_calls(ctx: Context) -> None:
    """Writes of all other kinds, killed at each call that can matter: whole or absent, kept once acknowledged; offsets
    never come again.
    """
    others = {write.name for write in WRITES} - {*_OF_THE_AGENT, "delete", "save_turn"}
    await _kill(ctx, sorted(others), first=("append_event",))


@check(
    "DOC-3",
    "DUR-3",
    "DUR-1",
    needs=Capability.PERSISTENT | Capability.EXTENDED | Capability.DOCUMENTS,
    tier=Tier.STANDARD,
    under=(Dimension.CRASHES, Dimension.PROCESSES),
)
async def documents_killed_at_their_calls(ctx: Context) -> None:
    """Writes of documents, killed at each call that can matter, are whole or absent, and are kept once acknowledged."""
    async with killer(ctx) as kills:
        for write in DOCUMENT_WRITES:
            await kill_at_points(ctx, kills, write, others=ctx.effort.kills // 2)
        await kill_at_points(ctx, kills, DOCUMENT_WRITES[1], others=0, with_seed=False)


@check(
    *("LIFE-8", "DUR-3", "DUR-1"),
    needs=Capability.PERSISTENT | Capability.EXTENDED,
    tier=Tier.STANDARD,
    under=(Dimension.CRASHES, Dimension.PROCESSES),
)
async def an_import_killed_at_its_calls(ctx: Context) -> None:
    """An import, killed at each call that can matter, is stored whole or not at all, and is kept once acknowledged."""
    async with killer(ctx) as kills:
        await kill_at_points(ctx, kills, IMPORT, others=ctx.effort.kills, with_seed=False)


@check(
    "OPS-7", "DUR-3", needs=Capability.PERSISTENT, tier=Tier.STANDARD, under=(Dimension.CRASHES, Dimension.PROCESSES)
)
async def a_first_open_killed_at_its_calls(ctx: Context) -> None:
    """A process that is killed while it opens an empty place leaves a place that the next one opens and uses."""
    async with killer(ctx) as kills:
        await kill_first_opens(ctx, kills, write_named("append_messages"), others=ctx.effort.kills)


@check(
    "FORK-3",
    needs=Capability.PERSISTENT | Capability.EXTENDED,
    tier=Tier.STANDARD,
    under=(Dimension.CRASHES, Dimension.PROCESSES),
)
async def a_fork_killed_at_its_calls(ctx: Context) -> None:
    """Forks whose maker is killed at a call inside the store are each whole or absent, and there once acknowledged."""
    async with killer(ctx) as kills:
        await kill_forks(ctx, kills, others=ctx.effort.kills)


@check(
    "DUR-3",
    "DUR-1",
    needs=Capability.PERSISTENT,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.CRASHES, Dimension.PROCESSES),
)
async def recovery_killed_too(ctx: Context) -> None:
    """When the process that opens the store after a kill is killed as well, the next one still finds all or nothing."""
    async with killer(ctx) as kills:
        for name in ("save_turn", "save_messages", "delete"):
            await kill_recoveries(ctx, kills, write_named(name), pairs=ctx.effort.kills)


@check(
    "LOCK-5",
    "LOCK-3",
    needs=Capability.EXTENDED | Capability.CROSS_PROCESS,
    tier=Tier.STANDARD,
    under=(Dimension.PROCESSES, Dimension.INTERRUPTIONS),
)
async def a_stopped_holder_is_fenced_off(ctx: Context) -> None:
    """A holder that is stopped until its lease has ended, and then goes on, is refused its writes under the lease, and
    only these: a write without a fence is not stopped.
    """
    if not hasattr(signal, "SIGSTOP"):
        raise Unverified("this system cannot stop a process")
    both = (_stop_holder(ctx, "given", in_block=False), _stop_holder(ctx, "block", in_block=True))
    for problem in await asyncio.gather(*both, return_exceptions=True):
        if problem is not None:
            raise problem


async def _stop_holder(ctx: Context, agent_id: str, *, in_block: bool) -> None:
    process = await ctx.process("stopped_holder", agent_id, 500, in_block)
    try:
        holder = await process.line()
        async with ctx.store.acquire_agent_lock(agent_id, wait_ms=20_000) as lease:
            ctx.true(lease.token > holder["token"], f"token {lease.token} must be above {holder['token']}")
            await ctx.store.save_todos(agent_id, samples.todos("of the new holder"))
            os.kill(holder["pid"], signal.SIGCONT)
            reports = await process.lines()
    finally:
        process.kill()
        await process.gone()
    ctx.true(
        reports == [{"fenced": "refused"}, {"unfenced": "stored"}],
        f"a holder that goes on after its lease has ended: {reports}, expected that its write under the lease is "
        "refused, and its write without a fence stored",
    )
    ctx.equal(await ctx.store.load_todos(agent_id), samples.todos("of the new holder"), "the todos")
    ctx.equal(len(await ctx.store.load_media_cache(agent_id)), 1, "the media saved without a fence")
