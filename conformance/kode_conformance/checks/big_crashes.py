"""DUR, EVT, FORK-3, LIFE-5: crashes in the middle of calls that write or delete many records, and one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.kills.bigwrites import BIG, BIG_FORK, BIG_IMPORT, DELETE_GROUP
from kode_conformance.kills.points import kill_at_points, killer
from kode_conformance.kills.series import kill_again_and_again, kill_delete_many, kill_forks
from kode_conformance.kills.writes import Write
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples

_P: Final = Capability.PERSISTENT
_OTHERS: Final = (BIG_FORK, DELETE_GROUP)
_BY_NAME: Final = {write.name: write for write in BIG}
_APPENDS: Final = ("append_messages of many", "append_events of many")
_UNDER: Final = (Dimension.CRASHES, Dimension.ITEMS)


async def _kill(ctx: Context, writes: Sequence[Write], points: int) -> None:
    async with killer(ctx) as kills:
        for write in in_time(ctx, writes):
            await kill_at_points(ctx, kills, write, others=points // 2, at_most=points)


@check("DUR-3", "DUR-1", "MSG-3", "EVT-1", needs=_P, tier=Tier.STANDARD, under=_UNDER)
async def an_append_of_many_killed_midway(ctx: Context) -> None:
    """When a process is killed in a call that appends hundreds of messages, or of events, all of them are stored or
    none, and later appends are not joined to them.
    """
    await _kill(ctx, [_BY_NAME[name] for name in _APPENDS], points=ctx.effort.kills // 2)


@check("DUR-3", "DUR-1", "MSG-1", "TC-1", "TURN-1", "LIFE-3", needs=_P, tier=Tier.STANDARD, under=_UNDER)
async def every_big_write_killed_midway(ctx: Context) -> None:
    """Every write of hundreds of records, a list that shrinks by hundreds, and a delete of hundreds, killed at calls
    inside the store, is done whole or not at all and is kept once acknowledged, and the agent can still be written.
    """
    await _kill(ctx, [write for write in BIG if write not in _OTHERS], points=ctx.effort.kills // 2)


@check("LIFE-8", "DUR-3", "DUR-1", needs=_P | Capability.EXTENDED, tier=Tier.STANDARD, under=_UNDER)
async def an_import_of_many_killed_midway(ctx: Context) -> None:
    """An import of an agent with hundreds of records, killed at calls inside the store, is stored whole or not
    at all and is kept once acknowledged, and the agent can be written.
    """
    async with killer(ctx) as kills:
        points = ctx.effort.kills // 2
        await kill_at_points(ctx, kills, BIG_IMPORT, others=points // 2, with_seed=False, at_most=points)


@check("FORK-3", "LIFE-5", "LIFE-3", needs=_P | Capability.EXTENDED, tier=Tier.STANDARD, under=_UNDER)
async def forks_and_deletions_of_many_killed_midway(ctx: Context) -> None:
    """After a kill, each fork of an agent with hundreds of records, and each session that one call deletes, is whole or
    absent, and the same call made again finishes the work.
    """
    async with killer(ctx) as kills:
        few = ctx.effort.kills // 2
        await kill_forks(ctx, kills, others=few, fork=BIG_FORK, at_most=few)
        await kill_delete_many(ctx, kills, others=few, at_most=2 * ctx.effort.kills)


@check(
    *("DUR-3", "DUR-1", "EVT-2", "MSG-3", "LOCK-5"),
    needs=_P | Capability.EXTENDED,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.CRASHES, Dimension.CHANGES, Dimension.ORDERS),
)
async def one_crash_after_another(ctx: Context) -> None:
    """After crash upon crash in the middle of appends to one agent, with a few appends in between, all that was there
    stays, nothing is torn or joined, and offsets and tokens go on growing.
    """
    async with killer(ctx) as kills:
        await kill_again_and_again(ctx, kills, [_BY_NAME[name] for name in _APPENDS], rounds=2 * ctx.effort.kills)


@check(
    *("DUR-1", "EVT-1", "EVT-2", "EVT-4"),
    needs=_P | Capability.CROSS_PROCESS,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.CRASHES, Dimension.PROCESSES, Dimension.COMPANY),
)
async def one_of_several_writers_is_killed(ctx: Context) -> None:
    """When one of several processes that append to one agent is killed, each acknowledged event is stored once, under
    its offset; the others go on, and a retry of the killed process's events doubles nothing.
    """
    starts = (0, 100_000, 200_000)
    processes = [await ctx.process("append_events", "a", start, 100_000, 20) for start in starts]
    reports = [line for process in processes for line in [await process.line() for _ in range(ctx.rng.randint(20, 60))]]
    dead, *others = processes
    dead.kill()
    reports += await dead.gone()
    for process in others:
        reports += [await process.line() for _ in range(40)]
        process.kill()
        reports += await process.gone()
    store = await ctx.another()
    stored = {event.bookmark.seq: event.offset async for event in store.read_events("a")}
    missing = [line for line in reports if stored.get(line["seq"]) != line["offset"]]
    ctx.equal(missing, [], f"of {len(reports)} events that were acknowledged, those that are missing or elsewhere")
    mine = sorted(seq for seq in stored if seq < starts[1])
    again = await store.append_events("a", samples.events(len(mine)))
    if mine != list(range(len(mine))):
        raise Violation(f"of the events of the dead process some are missing before others: {mine}")
    ctx.equal(list(again), [stored[seq] for seq in mine], "offsets of what the dead process wrote, appended once more")
    after = [event.offset async for event in store.read_events("a", after_offset=-(2**62))]
    ctx.equal(after, sorted(stored.values()), "the offsets of all events after the retry")
