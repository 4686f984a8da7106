"""OPS-9, LIFE-3: how a write ended whose caller was cancelled is seen by the next call, and stays so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, Final

from kode_conformance.calls.fenced import FencedWrite, fenced_writes
from kode_conformance.calls.methods import calls_of, drive
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Violation, difference
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.instruments.patience import SOON_S, after_steps, ended
from kode_conformance.instruments.yielding import turns_pass
from kode_conformance.kills.writes import (
    FORK,
    LOOKS,
    WRITES,
    Portrait,
    Write,
    expected,
    missing_kinds,
    overwrite,
    portrait,
    seed,
)
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.batch import Batch, Outcome
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.protocols import ExtendedStore

_E = Capability.EXTENDED
_A_WHILE: Final = 0.15
"""The time, in seconds, after which a write that goes on in the background has landed."""


def _steps(ctx: Context, factor: int = 2) -> Iterator[int]:
    """After how many steps of the event loop to cancel: after each of the first, and then of ever fewer, *factor* times
    as many each time, or half as many more where there is time.
    """
    steps = 0
    while True:
        yield steps
        steps += 1 if steps < 3 else steps // 2 if ctx.settings.tier > Tier.QUICK else steps * (factor - 1)


async def _cancelled(call: Awaitable[Any], steps: int) -> bool:
    """Cancel the call after so many steps unless it was done before. True if it was cancelled.

    Raises:
        Violation: it neither returned nor was cancelled.
    """
    task = asyncio.ensure_future(call)
    if not await after_steps(task, steps):
        raise Violation(f"after others were cancelled, a call did not end within {SOON_S:g} s")
    task.cancel()
    if not await ended([task]):
        raise Violation(f"cancelled after {steps} steps, a call did not end within {SOON_S:g} s")
    if task.cancelled():
        return True
    error = task.exception()
    if error is not None:
        raise Violation(f"cancelled after {steps} steps it raised {type(error).__name__}: {error}") from error
    return False


class _Trial:
    """A cancelled write to an agent of its own, and the state that was read at once."""

    def __init__(self, write: Write, steps: int) -> None:
        self.write = write
        self.steps = steps
        self.agent_id = f"{write.name}-{steps}"

    @property
    def what(self) -> str:
        return f"{self.write.name}, cancelled after {self.steps} steps"


@check("OPS-9", "MSG-1", tier=Tier.STANDARD, under=(Dimension.INTERRUPTIONS,))
async def what_is_read_after_a_cancellation_stays(ctx: Context) -> None:
    """The first read after a write of any kind was cancelled, whatever it reads, sees how the write ended: there whole
    or not at all, and a moment later the same.
    """
    begun = time.monotonic()
    seen: list[tuple[_Trial, str, object, Portrait]] = []
    for write in WRITES:
        wanted = await expected(ctx.store, write)
        changed = [kind for kind in LOOKS if difference(wanted.before[kind], wanted.after[kind]) is not None]
        for round_number, steps in enumerate(in_time(ctx, _steps(ctx, 3), begun=begun)):
            trial = _Trial(write, steps)
            await seed(ctx.store, trial.agent_id)
            was_cancelled = await _cancelled(write.act(ctx.store, trial.agent_id), steps)
            kind = changed[round_number % len(changed)]
            first = await LOOKS[kind](ctx.store, trial.agent_id)
            found = await portrait(ctx.store, trial.agent_id)
            problem = wanted.problem(found, done=not was_cancelled)
            ctx.true(problem is None, f"{trial.what}: {problem}")
            seen.append((trial, kind, first, found))
            if not was_cancelled:
                break
    await asyncio.sleep(_A_WHILE)
    for trial, kind, first, found in seen:
        later = await portrait(ctx.store, trial.agent_id)
        _see_the_same(first, later[kind], f"{trial.what}: {kind} changed after the first read, without a write")
        _see_the_same(found, later, f"{trial.what}: it changed after it was read, without a write")


def _see_the_same(before: object, later: object, what: str) -> None:
    problem = difference(later, before)
    if problem is not None:
        raise Violation(f"{what}: {problem}")


@check("OPS-9", "MSG-3", under=(Dimension.INTERRUPTIONS,))
async def looking_and_saving_again_never_doubles(ctx: Context) -> None:
    """A caller that was cancelled, looks, finds nothing and saves again has saved once: messages, turns and forks."""
    for steps in _steps(ctx):
        one, turn, parent = f"one-{steps}", f"turn-{steps}", f"parent-{steps}"
        again = [
            await _again(ctx.store, one, steps, lambda a: ctx.store.append_messages(a, samples.messages(1))),
            await _again(
                ctx.store,
                turn,
                steps,
                lambda a: ctx.store.save_turn(a, append=samples.messages(1), info=samples.info(a)),
            ),
        ]
        if _E in _offered(ctx):
            await ctx.store.save_info(parent, samples.info(parent))
            again.append(await _cancelled(FORK.act(ctx.store, parent), steps))
        forks = await _forks(ctx, parent)
        await asyncio.sleep(0.02)
        for agent_id in (one, turn):
            found = await ctx.store.load_messages(agent_id)
            ctx.equal(found, samples.messages(1), f"cancelled after {steps} steps: the messages of {agent_id}")
        ctx.equal(await _forks(ctx, parent), forks, f"cancelled after {steps} steps: the forks a moment later")
        if not any(again):
            return


async def _again(store: ExtendedStore, agent_id: str, steps: int, act: Any) -> bool:
    """Write and cancel the call; write again if nothing was stored. True if the call was cancelled."""
    was_cancelled = await _cancelled(act(agent_id), steps)
    if not await store.load_messages(agent_id):
        await act(agent_id)
    return was_cancelled


def _offered(ctx: Context) -> Capability:
    return Capability.NONE if "EXTENDED" in ctx.harness.lacks else _E


async def _forks(ctx: Context, parent: str) -> list[str]:
    """The forks of *parent*; the first read of the parent waits for a fork that is still under way."""
    if _E not in _offered(ctx):
        return []
    await ctx.store.exists(parent)
    infos = [await ctx.store.load_info(agent_id) for agent_id in await ctx.store.list("agt-")]
    return sorted(info.agent_id for info in infos if info is not None and parent in info.lineage)


@check("OPS-9", "TURN-1", under=(Dimension.INTERRUPTIONS, Dimension.ORDERS))
async def what_is_written_after_a_cancellation_is_last(ctx: Context) -> None:
    """A write that follows one that was cancelled, with no read in between, has the last word, whatever the kind."""
    await overwrite(ctx.store, "plain")
    plain = _without_events(await portrait(ctx.store, "plain"))
    ctx.true(not missing_kinds(plain), f"something of every kind must be there after it was saved: {plain}")
    begun, trials = time.monotonic(), []
    for write in WRITES:
        for steps in in_time(ctx, _steps(ctx, 4) if ctx.settings.tier > Tier.QUICK else (2,), begun=begun):
            trial = _Trial(write, steps)
            trials.append(trial)
            was_cancelled = await _cancelled(write.act(ctx.store, trial.agent_id), steps)
            await overwrite(ctx.store, trial.agent_id)
            if not was_cancelled:
                break
    await asyncio.sleep(_A_WHILE)
    for trial in trials:
        found = _without_events(await portrait(ctx.store, trial.agent_id))
        problem = difference(found, plain)
        ctx.true(problem is None, f"{trial.what}, then every kind was saved anew: {problem}")


def _without_events(found: Portrait) -> Portrait:
    return {kind: value for kind, value in found.items() if kind != "events"}


@check("LIFE-3", "OPS-9", tier=Tier.STANDARD, under=(Dimension.INTERRUPTIONS,))
async def what_was_cancelled_does_not_outlive_a_delete(ctx: Context) -> None:
    """An agent that is deleted right after a write to it was cancelled is gone, and does not come back: not by a write
    that waits for its group, either.
    """
    nothing = await portrait(ctx.store, "nobody")
    begun, trials = time.monotonic(), []
    for write in WRITES:
        for steps in in_time(ctx, _steps(ctx, 4), begun=begun):
            trial = _Trial(write, steps)
            trials.append(trial)
            numbers = (steps * 10 + len(trials) * 10_000, steps * 10 + len(trials) * 10_000 + 1)
            others = [asyncio.ensure_future(ctx.store.append_event("other", samples.event(i))) for i in numbers]
            await turns_pass(len(trials) % 4)
            was_cancelled = await _cancelled(write.act(ctx.store, trial.agent_id), steps)
            await ctx.store.delete(trial.agent_id)
            await asyncio.gather(*others)
            if not was_cancelled:
                break
    await asyncio.sleep(_A_WHILE)
    for trial in trials:
        problem = difference(await portrait(ctx.store, trial.agent_id), nothing)
        ctx.true(problem is None, f"{trial.what}, then deleted: it came back: {problem}")
    kept = len([event async for event in ctx.store.read_events("other")])
    ctx.equal(kept, 2 * len(trials), "the events of an agent that nobody deleted")


@check("OPS-5", "OPS-9", needs=_E, tier=Tier.STANDARD, under=(Dimension.INTERRUPTIONS, Dimension.INSTANCES))
async def close_waits_for_what_was_cancelled(ctx: Context) -> None:
    """When close returns nothing of the store is under way, not even writes whose callers were cancelled: what another
    store reads then stays.
    """
    seen: list[tuple[_Trial, Portrait]] = []
    for steps in (0, 2, 8, 60):
        store = await ctx.another()
        trials = [_Trial(write, steps) for write in WRITES]
        await asyncio.gather(*(seed(store, trial.agent_id) for trial in trials))
        await asyncio.gather(*(_cancelled(trial.write.act(store, trial.agent_id), steps) for trial in trials))
        await ctx.close(store)
        seen += [(trial, await portrait(ctx.store, trial.agent_id)) for trial in trials]
    await asyncio.sleep(_A_WHILE)
    ctx.true(any(found["messages"] for _, found in seen), "what was saved before the writes must be there")
    for trial, found in seen:
        later = await portrait(ctx.store, trial.agent_id)
        _see_the_same(found, later, f"{trial.what}, before close: it changed after the store was closed")


# --- every read after every cancelled write ---------------------------------------------------------------------------


class _HeldCommits(Layer):
    """Holds commits back while it is closed."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.is_open, self.came = asyncio.Event(), asyncio.Event()
        self.is_open.set()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        self.came.set()
        await self.is_open.wait()
        return await super().commit(batches)


_READS: Final = ("load_", "list_", "read_", "last_", "iter_", "query_documents", "exists", "aggregate_stats")
_READS_S: Final = 0.05
"""So long reads that wait for nothing have time to end."""


@check(
    *("OPS-9", "DOC-1", "QRY-8"),
    needs=_E,
    tier=Tier.STANDARD,
    under=(Dimension.INTERRUPTIONS, Dimension.CHANGES),
)
async def every_read_sees_how_a_cancelled_write_ended(ctx: Context) -> None:
    """Whatever method reads an agent while a write of any method to it is still under way whose caller was cancelled,
    it waits for the write and sees how it ended: no read gives one thing first, and then another.
    """
    layers: list[_HeldCommits] = []

    def holding(engine: Engine) -> Engine:
        layers.append(_HeldCommits(engine))
        return layers[-1]

    store = await ctx.another(holding)
    await fill(store, "a")
    for write in in_time(ctx, fenced_writes("a", edits=True)):
        early, late = await _read_under_way(ctx, store, layers[-1], write)
        for name, (method, given) in _reads_of(store, write).items() if early else ():
            what = f"{name} when {write.name} had been cancelled, and was under way"
            problem = difference({**late, **early}[name], await drive(method, given))
            ctx.true(problem is None, f"{what}, gave something else than now: {problem}")


async def _read_under_way(ctx: Context, store: ExtendedStore, held: _HeldCommits, write: FencedWrite) -> Any:
    """The results of the reads that ended before the commit of a cancelled write, and of all later reads."""
    held.came.clear()
    held.is_open.clear()
    call = asyncio.ensure_future(write.act(store, "a"))
    came = asyncio.ensure_future(held.came.wait())
    reads: dict[str, asyncio.Future[Any]] = {}
    try:
        async with ctx.within():
            await asyncio.wait([call, came], return_when=asyncio.FIRST_COMPLETED)
        call.cancel()
        reads = {name: asyncio.ensure_future(drive(*one)) for name, one in _reads_of(store, write).items()}
        await asyncio.sleep(_READS_S)
        early = {name: read.result() for name, read in reads.items() if read.done()}
    finally:
        came.cancel()
        held.is_open.set()
    ctx.true(await ctx.ended([call, *reads.values()]), f"calls after {write.name} was cancelled did not end")
    return early, {name: read.result() for name, read in reads.items()}


def _reads_of(store: ExtendedStore, write: FencedWrite) -> dict[str, Any]:
    """A call of each method that reads the agent alone; of what has a key, the one that is written."""
    given = write.arguments
    puts = given.get("documents", ())
    named = {
        "key": puts[0].key if puts else given.get("key", "k"),
        "tags": (puts[0].tags if puts else given.get("tags")) or {"run": "r1"},
        "snapshot_id": getattr(given.get("snapshot"), "id", "sfp-1"),
    }
    calls = {name: call for name, call in calls_of(store, "a").items() if name.startswith(_READS)}
    return {
        name: (method, {**arguments, **{key: value for key, value in named.items() if key in arguments}})
        for name, (method, arguments) in calls.items()
        if "agent_id" in arguments
    }
