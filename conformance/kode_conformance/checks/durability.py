"""DUR: the state that a crash leaves behind."""

from __future__ import annotations

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.kills.random_kills import kill_mixed, kill_turns
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples


@check(
    "DUR-1",
    "DUR-3",
    "TURN-1",
    needs=Capability.PERSISTENT,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.CRASHES, Dimension.PROCESSES),
)
async def turns_survive_a_kill_whole(ctx: Context) -> None:
    """After kill -9 at any moment every acknowledged turn is stored, and every turn is whole or absent."""
    turns = await kill_turns(ctx, ctx.effort.kills, ctx.rng.getrandbits(32))
    ctx.true(turns > 4, "the writer must have written")


@check(
    "DUR-1",
    "DUR-3",
    needs=Capability.PERSISTENT,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.CRASHES, Dimension.PROCESSES),
)
async def single_saves_survive_a_kill(ctx: Context) -> None:
    """After kill -9 at any moment every acknowledged save of every kind is stored, in order, none torn."""
    rounds = await kill_mixed(ctx, ctx.effort.kills, ctx.rng.getrandbits(32))
    ctx.true(rounds > 4, "the writer must have written")


@check(
    "DUR-1",
    "EVT-1",
    needs=Capability.PERSISTENT,
    stochastic=True,
    under=(Dimension.CRASHES, Dimension.PROCESSES, Dimension.COMPANY),
)
async def acknowledged_events_survive_a_kill(ctx: Context) -> None:
    """After kill -9 with many appends in flight every acknowledged event is stored, once, under its offset."""
    process = await ctx.process("append_events", "a", 0, 100_000, 50)
    reports = [await process.line() for _ in range(ctx.rng.randint(60, 240))]
    process.kill()
    reports += await process.gone()
    store = await ctx.another()
    stored = {event.bookmark.seq: event.offset async for event in store.read_events("a")}
    missing = [line for line in reports if stored.get(line["seq"]) != line["offset"]]
    ctx.equal(missing, [], f"of {len(reports)} acknowledged events, those that are missing")
    later = await store.append_event("a", samples.event(200_000))
    ctx.true(later > max(stored.values()), "an offset after the crash must be new")
