"""OPS-9, OPS-5: calls that are cancelled at each step, iterators that are given up, and a store that is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from kode_conformance.context import Context, Violation, difference
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.patience import SOON_S, WAIT_MS, after_steps
from kode_conformance.instruments.yielding import turns_pass
from kode_conformance.kills.writes import FORK, IMPORT, WRITES, Write, expected, forked, portrait, seed, write_on
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import LockError, StoreClosedError
from kode_core.protocols import ExtendedStore, Lease

T = TypeVar("T")

_E = Capability.EXTENDED
_LEFT_OVER: Final = 5
"""The number of tasks that may stay in the end, such as a pool's, however many calls were cancelled."""


class _Tasks:
    """The tasks of the event loop: waits for the ones that a cancelled call leaves behind, and finds leaks."""

    def __init__(self) -> None:
        self._first = self._known = len(asyncio.all_tasks())

    async def wait_until_idle(self) -> None:
        """Wait until no new task is under way."""
        await asyncio.sleep(0.002)
        for _ in range(200):
            if len(asyncio.all_tasks()) <= self._known:
                return
            await asyncio.sleep(0.005)
        self._known = len(asyncio.all_tasks())
        if self._known > self._first + _LEFT_OVER:
            raise Violation(f"cancelled calls leave tasks behind: {[task.get_name() for task in asyncio.all_tasks()]}")


def _steps() -> Iterator[int]:
    """The numbers of steps of the event loop after which to cancel: each of the first ones, then ever fewer."""
    steps = 0
    while True:
        yield steps
        steps += 1 if steps < 12 else steps // 4 if steps < 50 else steps


async def _cancelled(ctx: Context, call: Awaitable[T], steps: int) -> asyncio.Future[T]:
    """The call, cancelled after so many steps unless it was done before, and ended."""
    task = asyncio.ensure_future(call)
    if not await after_steps(task, steps):
        raise Violation(f"after others were cancelled, a call did not end within {SOON_S:g} s")
    task.cancel()
    await asyncio.wait([task])
    error = None if task.cancelled() else task.exception()
    if error is not None:
        raise Violation(f"cancelled after {steps} steps it raised {type(error).__name__}: {error}") from error
    return task


@check("OPS-9", "MSG-1", "TURN-1", tier=Tier.STANDARD, under=(Dimension.INTERRUPTIONS, Dimension.INSTANCES))
async def a_write_cancelled_at_any_step(ctx: Context) -> None:
    """Every kind of write, cancelled after each step: whole or absent, and both this store and others write on."""
    other = await ctx.another()
    for write in WRITES:
        await _cancel_at_each_step(ctx, other, write)


@check("LIFE-8", "OPS-9", needs=_E, tier=Tier.STANDARD, under=(Dimension.INTERRUPTIONS, Dimension.INSTANCES))
async def an_import_cancelled_at_any_step(ctx: Context) -> None:
    """An import that is cancelled after each of its steps is stored whole or not at all."""
    await _cancel_at_each_step(ctx, await ctx.another(), IMPORT, with_seed=False)


async def _cancel_at_each_step(ctx: Context, other: ExtendedStore, write: Write, *, with_seed: bool = True) -> None:
    wanted = await expected(ctx.store, write, with_seed=with_seed)
    tasks = _Tasks()
    for steps in _steps():
        agent_id = f"{write.name}-{steps}"
        if with_seed:
            await seed(ctx.store, agent_id)
        is_done = not (await _cancelled(ctx, write.act(ctx.store, agent_id), steps)).cancelled()
        problem = wanted.problem(await portrait(ctx.store, agent_id), done=is_done)
        if problem is not None:
            raise Violation(f"{write.name}, cancelled after {steps} steps: {problem}")
        await tasks.wait_until_idle()
        await write_on((ctx.store, other)[steps % 2], agent_id, 1000)
        if is_done:
            return


@check("OPS-9", "FORK-3", needs=_E, tier=Tier.STANDARD, under=(Dimension.INTERRUPTIONS, Dimension.INSTANCES))
async def a_fork_cancelled_at_any_step(ctx: Context) -> None:
    """A batch of forks that is cancelled leaves whole forks, or none."""
    await seed(ctx.store, "p")
    (model, *_) = forks = await ctx.store.batch_fork("p", 2)
    whole, known, tasks = forked(await portrait(ctx.store, model)), set(forks), _Tasks()
    for steps in _steps():
        made = await _cancelled(ctx, FORK.act(ctx.store, "p"), steps)
        await ctx.store.exists("p")  # waits for a fork that goes on
        new = set(await ctx.store.list("agt-")) - known
        for fork in new:
            problem = difference(forked(await portrait(ctx.store, fork)), whole)
            ctx.true(problem is None, f"cancelled after {steps} steps: a fork is there in part: {problem}")
        known |= new
        if not made.cancelled():
            ctx.equal(sorted(new), sorted(made.result()), "the forks that were acknowledged")
            return
        await tasks.wait_until_idle()


def _reads(store: ExtendedStore) -> dict[str, Callable[[], Awaitable[object]]]:
    """A call of every method that reads one agent."""

    async def events() -> int:
        return len([event async for event in store.read_events("a")])

    reads: dict[str, Callable[[], Awaitable[object]]] = {
        "load_messages": lambda: store.load_messages("a"),
        "load_tool_call_records": lambda: store.load_tool_call_records("a"),
        "load_info": lambda: store.load_info("a"),
        "list_snapshots": lambda: store.list_snapshots("a"),
        "last_bookmark": lambda: store.last_bookmark("a"),
        "list": lambda: store.list(),
        "read_events": events,
    }
    if hasattr(store, "query_messages"):
        reads["query_messages"] = lambda: store.query_messages(agent_id="a")
        reads["aggregate_stats"] = lambda: store.aggregate_stats("a")
    return reads


@check("OPS-9", tier=Tier.STANDARD, under=(Dimension.INTERRUPTIONS,))
async def a_read_cancelled_at_any_step(ctx: Context) -> None:
    """Reads that are cancelled, however many and wherever, take no connection and no lock with them."""
    other = await ctx.another()
    await seed(ctx.store, "a")
    reads = _reads(ctx.store)
    before = {name: await read() for name, read in reads.items()}
    tasks = _Tasks()
    for read in reads.values():
        for steps in _steps():
            together = [asyncio.ensure_future(_cancelled(ctx, read(), steps)) for _ in range(3)]
            results = await asyncio.gather(*together)
            if not any(result.cancelled() for result in results):
                break
    await tasks.wait_until_idle()
    async with ctx.within():
        for name, read in reads.items():
            for found in await asyncio.gather(*(read() for _ in range(20))):
                ctx.equal(found, before[name], f"{name} after reads were cancelled")
        await write_on(other, "a", 1000)


@check("LOCK-2", "OPS-9", needs=_E, under=(Dimension.INTERRUPTIONS, Dimension.COMPANY))
async def cancelled_waiters_are_no_ghosts(ctx: Context) -> None:
    """When some of the waiters for a lock are cancelled, at any time, all others get it, one after the other."""
    other = await ctx.another()
    inside: list[int] = []

    async def wait(i: int) -> None:
        async with (ctx.store, other)[i % 2].acquire_agent_lock("a", wait_ms=WAIT_MS):
            inside.append(i)
            try:
                ctx.equal(len(inside), 1, "how many are inside")
                await asyncio.sleep(0)
            finally:
                inside.remove(i)

    async def take() -> Lease:
        try:
            return await other.acquire_agent_lock("a", wait_ms=WAIT_MS)
        except LockError as error:
            raise Violation(f"nobody is left who wants the lock, and it cannot be had: {error}") from error

    for _ in range(ctx.effort.schedules):
        held = await take()
        waiters = [asyncio.ensure_future(wait(i)) for i in range(4)]
        await asyncio.sleep(ctx.rng.uniform(0, 0.03))
        await held.release()
        for waiter in waiters[:2]:
            await asyncio.sleep(ctx.rng.uniform(0, 0.02))
            waiter.cancel()
        results = await asyncio.gather(*waiters, return_exceptions=True)
        for result in results:
            ctx.true(not isinstance(result, LockError), f"one that was not cancelled never got the lock: {result}")
        ctx.equal(results[2:], [None, None], "what became of those that were not cancelled")


# --- Iterators --------------------------------------------------------------------------------------------------------


def _iterators(store: ExtendedStore) -> list[Callable[[], AsyncIterator[Any]]]:
    found: list[Callable[[], AsyncIterator[Any]]] = [
        lambda: store.read_events("a"),
        lambda: store.read_events("a", after_offset=0),
        lambda: store.follow_events("a"),
    ]
    if hasattr(store, "iter_messages"):
        found += [lambda: store.iter_messages(), lambda: store.iter_sessions(), lambda: store.iter_tool_calls()]
    return found


@check("EVT-5", "OPS-9", tier=Tier.STANDARD, under=(Dimension.INTERRUPTIONS,))
async def iterators_given_up_midway(ctx: Context) -> None:
    """An iterator that is closed, or only forgotten, after its first items holds nothing up: not this store's writes,
    not another's, and no descriptor.
    """
    other = await ctx.another()
    await ctx.store.save_turn("a", messages=samples.messages(700), info=samples.info("a"), events=samples.events(700))
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i) for i in range(20)])
    descriptors = 0
    for round_number in range(12):
        for make in _iterators(ctx.store):
            await _begin(make, to_the_end=round_number % 2 == 0)
            await (ctx.store, other)[round_number % 2].append_event("a", samples.event(1000 + round_number))
        if round_number == 1:
            descriptors = _descriptors()
    await write_on(other, "a", 5000)
    await ctx.store.delete("a")
    ctx.equal(await other.load_messages("a"), [], "the messages after delete")
    ctx.true(_descriptors() <= descriptors + 10, f"descriptors grew from {descriptors} to {_descriptors()}")


async def _begin(make: Callable[[], AsyncIterator[Any]], *, to_the_end: bool) -> None:
    """Take one item; then close the iterator, or let the collector find it."""
    iterator = make()
    async for _ in iterator:
        break
    close = getattr(iterator, "aclose", None)
    if to_the_end and close is not None:
        await close()


def _descriptors() -> int:
    with suppress(OSError):
        return len(list(Path("/proc/self/fd").iterdir()))
    return 0


# --- Close ------------------------------------------------------------------------------------------------------------


@check("OPS-5", "DUR-1", needs=_E, tier=Tier.STANDARD, under=(Dimension.INTERRUPTIONS,))
async def close_with_every_write_in_flight(ctx: Context) -> None:
    """Writes of every kind that are under way when the store is closed are each done, or refused and whole or absent;
    acknowledged writes are found when the store is opened again.
    """
    wanted = {write: await expected(ctx.store, write) for write in WRITES}
    for steps in (0, 1, 2, 5, 15, 60):
        for write in WRITES:
            await seed(ctx.store, f"{write.name}-{steps}")
        store = await ctx.another()
        calls = [asyncio.ensure_future(write.act(store, f"{write.name}-{steps}")) for write in WRITES]
        await turns_pass(steps)
        async with ctx.within():
            await asyncio.gather(*(store.close() for _ in range(3)))
            results = await asyncio.gather(*calls, return_exceptions=True)
        for write, result in zip(WRITES, results, strict=True):
            is_done = not isinstance(result, BaseException)
            ctx.true(is_done or isinstance(result, StoreClosedError), f"{write.name} during close raised {result!r}")
            found = await portrait(ctx.store, f"{write.name}-{steps}")
            problem = wanted[write].problem(found, done=is_done)
            ctx.true(problem is None, f"{write.name}, {steps} steps before close: {problem}")


@check("OPS-5", "OPS-9", needs=_E, under=(Dimension.INTERRUPTIONS,))
async def a_cancelled_close_can_be_called_again(ctx: Context) -> None:
    """A close that is cancelled, at whatever step, can be called again and then ends: the store is closed, and
    acknowledged writes are stored.
    """
    for steps in range(12):
        store = cast(ExtendedStore, await ctx.harness.open(ctx.handle))  # the check must not close it again
        await store.save_messages(f"a{steps}", samples.messages(2))
        write = asyncio.ensure_future(store.append_event(f"a{steps}", samples.event(0)))
        await asyncio.sleep(0)
        first = asyncio.ensure_future(store.close())
        await turns_pass(steps)
        first.cancel()
        again = asyncio.ensure_future(store.close())
        await ctx.ended([first, write, again])
        when = f"a close, after one that was cancelled after {steps} steps,"
        ctx.true(again.done(), f"{when} did not end within {SOON_S:g} s")
        ctx.true(not again.cancelled(), f"{when} was cancelled as well")
        ctx.true(again.exception() is None, f"{when} raised {again.exception()!r}")
        await ctx.raises(StoreClosedError, store.load_messages(f"a{steps}"), f"a load after {when}")
        ctx.equal(await ctx.store.load_messages(f"a{steps}"), samples.messages(2), "the messages")
        is_done = not write.cancelled() and write.exception() is None
        stored = [event async for event in ctx.store.read_events(f"a{steps}")]
        ctx.true(stored or not is_done, f"an event was acknowledged, and is not there after {when}")


@check("OPS-5", "EVT-7", needs=_E, under=(Dimension.INTERRUPTIONS, Dimension.COMPANY))
async def close_ends_what_waits(ctx: Context) -> None:
    """Tasks that follow events, read a stream, or wait for a lock when the store is closed come to an end, and so does
    close.
    """
    store = await ctx.another()
    await store.append_events("a", samples.events(700))
    held = await ctx.store.acquire_agent_lock("a")

    async def follow() -> None:
        async for _ in store.follow_events("a"):
            pass

    async def wait() -> None:
        await store.acquire_agent_lock("a", wait_ms=600)

    reading = store.read_events("a").__aiter__()
    await anext(reading)
    waiting = [asyncio.ensure_future(follow()), asyncio.ensure_future(wait())]
    await asyncio.sleep(0.05)
    try:
        async with ctx.within():
            await store.close()
            results = await asyncio.gather(*waiting, _exhaust(reading), return_exceptions=True)
    except TimeoutError:
        raise Violation("close, or what was waiting when it was called, did not end within {SOON_S:g} s") from None
    for result in results:
        ctx.true(result is None or isinstance(result, (StoreClosedError, LockError)), f"at close it raised {result!r}")
    await held.release()


async def _exhaust(iterator: AsyncIterator[Any]) -> None:
    async for _ in iterator:
        pass
