"""OPS-9, OPS-10, FORK-3: writes in doubt or given up, on agents after each kind of change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final

from kode_conformance.checks.doubt import doubtful
from kode_conformance.checks.maintenance import stepping
from kode_conformance.context import Context, difference
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.kills.writes import LOOKS, WRITES, Expected, Portrait, Write, overwrite, portrait, seed
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import OutcomeUnknownError
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED

Past = Callable[[ExtendedStore, str, Write], Awaitable[str]]
"""Makes an agent for a write, and returns its id; a fork has an id of its own."""


async def _equal(store: ExtendedStore, agent_id: str, write: Write) -> str:
    await seed(store, agent_id)
    await write.act(store, agent_id)
    return agent_id


async def _deleted(store: ExtendedStore, agent_id: str, write: Write) -> str:
    await _equal(store, agent_id, write)
    await store.delete(agent_id)
    if write.name == "delete":
        await store.save_todos(agent_id, samples.todos("of the next life"))
    return agent_id


async def _made_anew(store: ExtendedStore, agent_id: str, write: Write) -> str:
    await _deleted(store, agent_id, write)
    await seed(store, agent_id)
    return agent_id


async def _shrunk(store: ExtendedStore, agent_id: str, write: Write) -> str:
    await _equal(store, agent_id, write)
    if write.name == "delete":
        await seed(store, agent_id)
    await store.save_turn(agent_id, messages=samples.messages(1), tool_calls=[])
    return agent_id


async def _replaced(store: ExtendedStore, agent_id: str, write: Write) -> str:
    await _equal(store, agent_id, write)
    await overwrite(store, agent_id)
    return agent_id


async def _forked(store: ExtendedStore, agent_id: str, write: Write) -> str:
    await seed(store, agent_id)
    (fork,) = await store.batch_fork(agent_id, 1)
    return fork


_PASTS: Final[Mapping[str, Past]] = {
    "after the same write": _equal,
    "after a deletion": _deleted,
    "after it was deleted and made anew": _made_anew,
    "after its lists shrank": _shrunk,
    "after everything was replaced": _replaced,
    "of a fork": _forked,
}


def _cases(ctx: Context) -> Iterator[tuple[int, str, Past, Write]]:
    """Each write with each past; in the first tier after the same write, and with one of the others in turn."""
    for number, write in enumerate(WRITES):
        for at, (name, past) in enumerate(_PASTS.items()):
            if at == 0 or (number + at) % (len(_PASTS) - 1) == 0 or ctx.settings.tier > Tier.QUICK:
                yield number + at, name, past, write


async def _portrait(store: ExtendedStore, agent_id: str) -> Portrait:
    """Everything of an agent but the time and the lineage of a fork."""
    found = await portrait(store, agent_id)
    info = found["info"]
    return {**found, "info": info and info.replace(created_at=0, lineage=[])}


async def _wanted(store: ExtendedStore, write: Write, past: Past) -> Expected:
    """The agent before and after the write when nothing interrupts it; the write may change nothing."""
    agent_id = await past(store, f"model-{write.name}-{past.__name__}", write)
    before = await _portrait(store, agent_id)
    await write.act(store, agent_id)
    return Expected(before, await _portrait(store, agent_id))


@check("OPS-10", needs=_E, tier=Tier.STANDARD, under=(Dimension.EQUALS, Dimension.CHANGES, Dimension.INTERRUPTIONS))
async def a_doubtful_write_is_told_from_those_before_it(ctx: Context) -> None:
    """A write whose answer is lost is whole or absent, and a repetition of an absent one is done once, though the same
    write was made before, or the agent was deleted, made anew, forked, shrunk or replaced since.
    """
    store, doubt = await doubtful(ctx)
    for number, case, past, write in in_time(ctx, _cases(ctx)):
        wanted = await _wanted(ctx.store, write, past)
        does_nothing = difference(wanted.before, wanted.after) is None
        for writes in (True, False) if case == "after the same write" else (bool(number % 2),):
            agent_id = await past(store, f"{write.name}-{past.__name__}-{writes}", write)
            what = f"{write.name} {case}, whose answer was lost when it was {'' if writes else 'not '}done,"
            doubt.loses, doubt.writes = True, writes
            try:
                ends = await asyncio.gather(write.act(store, agent_id), return_exceptions=True)
            finally:
                doubt.loses = False
            (end,) = ends
            is_told = isinstance(end, OutcomeUnknownError) or (does_nothing and not isinstance(end, BaseException))
            ctx.true(is_told, f"{what} must be told as in doubt, and gave {end!r}")
            found = await _portrait(store, agent_id)
            only = wanted if writes else wanted._replace(after=wanted.before)
            problem = only.problem(found, done=not writes)  # an engine may refuse it before the answer is lost
            ctx.true(problem is None, f"{what} {problem}")
            if difference(found, wanted.before) is None:
                await write.act(store, agent_id)
                problem = wanted.problem(await _portrait(store, agent_id), done=True)
                ctx.true(problem is None, f"{what} and was then repeated, {problem}")


@check(
    "FORK-3",
    "OPS-10",
    "FORK-1",
    needs=_E,
    tier=Tier.STANDARD,
    under=(Dimension.CHANGES, Dimension.EQUALS, Dimension.INTERRUPTIONS),
)
async def forks_in_doubt_are_whole_whatever_the_parent_was(ctx: Context) -> None:
    """Each fork is whole or absent when the answer to batch_fork is lost, and so is each of a repetition, though the
    parent was forked before, is a fork, was deleted and made anew, or its lists shrank or were replaced.
    """
    store, doubt = await doubtful(ctx)
    written = next(write for write in WRITES if write.name == "save_turn")
    for case, past in in_time(ctx, [(case, past) for case, past in _PASTS.items() if past is not _deleted]):
        parent = await past(store, f"parent-{past.__name__}", written)
        (model,) = await store.batch_fork(parent, 1)
        whole = await _portrait(ctx.store, model)
        known = {*await ctx.store.list("agt-")}
        for writes in (True, False):
            doubt.loses, doubt.writes = True, writes
            try:
                await asyncio.gather(store.batch_fork(parent, 2), return_exceptions=True)
            finally:
                doubt.loses = False
            await store.batch_fork(parent, 1)
            for one in (store, ctx.store):
                for fork in sorted({*await one.list("agt-")} - known):
                    problem = difference(await _portrait(one, fork), whole)
                    what = f"a fork of a parent {case}, when the answer was lost to a call that was"
                    ctx.true(problem is None, f"{what} {'' if writes else 'not '}done: {problem}")
        found = len({*await ctx.store.list("agt-")} - known)
        ctx.true(found in (2, 3, 4), f"a parent {case} has {found} forks, after 2 acknowledged and 2 in doubt")


@check("OPS-9", needs=_E, tier=Tier.STANDARD, under=(Dimension.CHANGES, Dimension.INTERRUPTIONS, Dimension.EQUALS))
async def a_write_that_goes_on_is_waited_for_whatever_was_before(ctx: Context) -> None:
    """A write that is cancelled while the engine is at it goes on to its end, for which every later read of the agent
    waits, or never began, though the same write was made before, or the agent was deleted, made anew, forked, shrunk
    or replaced.
    """
    store, steps = await stepping(ctx)
    cases = [case for case in _cases(ctx) if case[2] is not _equal or case[0] % 3 == 0]
    for number, past_name, past, write in in_time(ctx, cases):
        wanted = await _wanted(ctx.store, write, past)
        agent_id = await past(store, f"{write.name}-{past.__name__}", write)
        begun, let_go = asyncio.Event(), asyncio.Event()

        async def hang(verb: str, _: object, begun: asyncio.Event = begun, let_go: asyncio.Event = let_go) -> None:
            if verb == "commit":
                begun.set()
                await let_go.wait()

        steps.before = hang
        call = asyncio.ensure_future(write.act(store, agent_id))
        waits = asyncio.ensure_future(begun.wait())
        await asyncio.wait([call, waits], return_when=asyncio.FIRST_COMPLETED)  # it may have nothing to write
        call.cancel()
        await asyncio.wait([call], timeout=0.01 * (number % 2))
        looks = [asyncio.ensure_future(look(store, agent_id)) for look in LOOKS.values()]
        await asyncio.sleep(0.001)
        steps.before = None
        let_go.set()
        first = dict(zip(LOOKS, await asyncio.gather(*looks), strict=True))
        found = await _portrait(store, agent_id)
        waits.cancel()
        await asyncio.wait([call])
        what = f"{write.name} {past_name}, cancelled while the engine was at it,"
        problem = wanted.problem(found, done=not call.cancelled() and call.exception() is None)
        ctx.true(problem is None, f"{what} {problem}")
        for name in first.keys() - {"info"}:
            early = difference(first[name], found[name])
            ctx.true(early is None, f"{what} and {name} were read at once; read again, they are others: {early}")
        stays = difference(await _portrait(ctx.store, agent_id), found)
        ctx.true(stays is None, f"{what} as it was read, and as another instance reads it later: {stays}")
