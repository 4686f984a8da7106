"""LOCK-6 and OPS-5: descriptors, connections, threads and tasks, while many locks are held and when all is closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from kode_conformance.context import Context, Unverified, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.costs import collected, held
from kode_conformance.instruments.pace import in_time
from kode_conformance.instruments.yielding import turns_pass
from kode_conformance.kills.writes import WRITES, seed
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import KodeError, LockUnavailableError
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED
_LOCKS: Final = 1000
_FEW_LOCKS: Final = 200
_SLOW_S: Final = 1.0
"""A store that takes longer for a few gets only as many as it takes in this time."""
_STEP: Final = 100
_POOL: Final = 40
"""The number of additional threads and connections that a store may have under any load: pools that fill."""
_LOCKS_OF_A_CONNECTION: Final = 4
"""Fewer locks than this for each thread or connection more is one for each lock: drivers' pools end at 100 or so."""
_CYCLES: Final = 6
_STEPS: Final = 8
_ENDING_S: Final = 1.0
"""How long the threads and connections of a closed store may take to end: drivers check for it twice a second."""
_EXTRA: Final = 40
"""More threads than the loop has of its own for calls that block."""


async def _threads_are_there() -> None:
    """Let the loop start its threads for blocking calls, so that they do not count as the store's."""
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.002) for _ in range(_EXTRA)))


async def _connections_of(ctx: Context) -> dict[str, int]:
    """The resources of this process, and, where the harness counts them, the backend's connections."""
    found = held()
    if ctx.harness.has("costs"):
        connections = (await ctx.costs()).connections
        if connections is not None:
            found["connections to the backend"] = connections
    return found


# --- locks ------------------------------------------------------------------------------------------------------------


class _Holder:
    """A task that takes a lock and holds it until it is told to let go."""

    def __init__(self, store: ExtendedStore, agent_id: str, end: asyncio.Event, *, is_entered: bool) -> None:
        self.has_it = asyncio.Event()
        self._store, self._agent_id, self._end = store, agent_id, end
        self.task = asyncio.ensure_future(self._enter() if is_entered else self._await())
        self.task.add_done_callback(lambda _: self.has_it.set())

    async def _await(self) -> None:
        lease = await self._store.acquire_agent_lock(self._agent_id, ttl_ms=600_000)
        self.has_it.set()
        await self._end.wait()
        await lease.release()

    async def _enter(self) -> None:
        async with self._store.acquire_agent_lock(self._agent_id, ttl_ms=600_000):
            self.has_it.set()
            await self._end.wait()


@asynccontextmanager
async def _locked(stores: Sequence[ExtendedStore], prefix: str, *, is_entered: bool) -> AsyncIterator[int]:
    """Hold many locks, each instance its share of them; the value is how many."""
    end = asyncio.Event()
    holders: list[_Holder] = []
    begun = time.monotonic()
    try:
        while len(holders) < _LOCKS and time.monotonic() - begun < _SLOW_S * (1 + len(holders) // _FEW_LOCKS):
            numbers = range(len(holders), len(holders) + _STEP)
            new = [_Holder(stores[n % len(stores)], f"{prefix}{n}", end, is_entered=is_entered) for n in numbers]
            holders += new
            for holder in new:
                await holder.has_it.wait()
                if holder.task.done():
                    await holder.task
        yield len(holders)
    finally:
        end.set()
        await asyncio.gather(*(holder.task for holder in holders), return_exceptions=True)


@check("LOCK-6", needs=_E, tier=Tier.STANDARD, under=(Dimension.COSTS, Dimension.INSTANCES))
async def a_thousand_locks_cost_nothing(ctx: Context) -> None:
    """A thousand locks that are held take no connection, no descriptor and no thread each, awaited by one instance or
    entered by two, and the store works on meanwhile.
    """
    other = await ctx.another()
    await _threads_are_there()
    for stores, is_entered in (([ctx.store], False), ([ctx.store, other], True)):
        case = f"that {len(stores)} instances {'entered' if is_entered else 'awaited'}"
        prefix = f"{len(stores)}-"
        await asyncio.gather(*(store.save_messages("b", samples.messages(2)) for store in stores for _ in range(9)))
        before = await _connections_of(ctx)
        async with _locked(stores, prefix, is_entered=is_entered) as count:
            for store in stores:
                await store.save_messages("b", samples.messages(1))
                ctx.equal(await store.load_messages("b"), samples.messages(1), f"what is saved next to {count} locks")
                for number in (0, count - 1):
                    again = store.acquire_agent_lock(f"{prefix}{number}")
                    await ctx.raises(LockUnavailableError, _take(again), f"lock {number} of {count}, once more")
            most = max(_POOL, count // _LOCKS_OF_A_CONNECTION)
            grown = _grown(before, await _connections_of(ctx), most=most)
            ctx.equal(grown, {}, f"what {count} locks {case} hold, from and to")
        await _take(other.acquire_agent_lock(f"{prefix}0"))
        grown = _grown(before, await _settled(ctx), spared=(), most=most)
        ctx.equal(grown, {}, f"what {count} locks {case} leave behind, from and to")


async def _take(lock: Awaitable[object]) -> object:
    return await lock


def _grown(
    before: Mapping[str, int], after: Mapping[str, int], spared: Sequence[str] = ("tasks",), most: int = _POOL
) -> dict[str, tuple[int, int]]:
    """The kinds with a large increase, from and to. No clause says how many tasks there may be meanwhile."""
    kinds = before.keys() & after.keys() - set(spared)
    return {kind: (before[kind], after[kind]) for kind in sorted(kinds) if after[kind] >= before[kind] + most}


# --- resources left behind --------------------------------------------------------------------------------------------

_Use = Callable[[ExtendedStore], Awaitable[object]]


async def _written(store: ExtendedStore) -> None:
    await seed(store, "a")
    for write in WRITES:
        await write.act(store, "a")


async def _read(store: ExtendedStore) -> None:
    await seed(store, "a")
    calls = (store.load_messages("a"), store.load_info("a"), store.load_tool_call_records("a"), store.exists("a"))
    await asyncio.gather(*calls, *(store.load_todos("a") for _ in range(20)))
    async for _ in store.read_events("a"):
        pass


async def _asked(store: ExtendedStore) -> None:
    await asyncio.gather(store.list(), store.query_sessions(), store.query_messages(), store.aggregate_stats("a"))
    await asyncio.gather(store.health_check(), store.check_consistency(), store.get_metrics())


async def _abandoned(store: ExtendedStore) -> None:
    """Streams that are given up midway and never closed by their reader."""
    await seed(store, "a")
    streams: list[Any] = [store.read_events("a"), store.follow_events("a"), store.iter_messages()]
    for stream in streams:
        async for _ in stream:
            break


async def _followed(store: ExtendedStore) -> None:
    """Followers that wait for more when the store is closed."""

    async def follow() -> None:
        with suppress(KodeError):
            async for _ in store.follow_events("a"):
                pass

    tasks = [asyncio.ensure_future(follow()) for _ in range(3)]
    await seed(store, "a")
    await asyncio.sleep(0)
    await store.close()
    _, waiting = await asyncio.wait(tasks, timeout=10)
    for task in waiting:
        task.cancel()
    if waiting:
        raise Violation("who follows waits on when the store is closed")


async def _kept_locks(store: ExtendedStore) -> None:
    """Take a lease that is never released, and a block with a waiter that gives up."""
    await store.acquire_agent_lock(f"a{time.monotonic_ns()}", ttl_ms=600_000)
    name = f"b{time.monotonic_ns()}"
    async with store.acquire_agent_lock(name, ttl_ms=600_000):
        waiter = asyncio.ensure_future(_wait_for(store, name))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)


async def _wait_for(store: ExtendedStore, agent_id: str) -> None:
    await store.acquire_agent_lock(agent_id, wait_ms=5_000)


async def _given_up(store: ExtendedStore) -> None:
    """Calls that are cancelled at different moments."""
    for steps in range(6):
        calls = (store.append_messages("a", samples.messages(1)), store.load_messages("a"), store.list())
        tasks = [asyncio.ensure_future(call) for call in calls]
        await turns_pass(steps)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _refused(store: ExtendedStore) -> None:
    """Calls with arguments that no store takes."""
    wrong: Any = object()
    calls = (store.save_messages("", []), store.append_event("a", wrong), store.save_messages("a", [wrong]))
    await asyncio.gather(*calls, return_exceptions=True)


_CORE_USES: Final[Mapping[str, _Use]] = {
    "opened and closed": lambda store: store.exists("a"),
    "written in every way": _written,
    "read": _read,
    "followed until it was closed": _followed,
    "given up in the middle of calls": _given_up,
    "refused by": _refused,
}
_EXTENDED_USES: Final[Mapping[str, _Use]] = {
    "asked in every way": _asked,
    "streamed from, and the streams abandoned": _abandoned,
    "locked, and the locks kept": _kept_locks,
}


async def _see_nothing_left(
    ctx: Context, cycle: Callable[[], Awaitable[object]], of: str, cycles: int = _CYCLES, least: int = _CYCLES
) -> None:
    """Check that no kind of resource increases over some cycles and still increases over some more."""
    for _ in range(2):
        await cycle()
    left = await _left(ctx, cycle, cycles, least)
    for _ in range(2):  # a pool or a cache may still fill in the first ones
        if not left:
            return
        await asyncio.sleep(_ENDING_S)  # resources that still end must not count before and be missed afterwards
        left = await _left(ctx, cycle, cycles, least, _ENDING_S)
    ctx.equal(left, {}, f"what {cycles} {of} leave behind, from and to")


async def _left(
    ctx: Context, cycle: Callable[[], Awaitable[object]], cycles: int, least: int, seconds: float = 0.0
) -> dict[str, tuple[int, int]]:
    """The kinds that increased over some cycles, from and to; resources that end within the time do not count.

    The looks become rare, since a hook that counts may itself leave resources that end a moment later.
    """
    before = await _settled(ctx) if not seconds else await _connections_of(ctx)
    for _ in range(cycles):
        await cycle()
    after = await _settled(ctx) if not seconds else await _connections_of(ctx)
    pause = seconds / 16
    while True:
        left = {k: (before[k], count) for k, count in after.items() if k in before and count >= before[k] + least}
        if not left or pause > seconds or not seconds:
            return left
        await asyncio.sleep(pause)
        pause *= 2
        after = await _connections_of(ctx)


async def _settled(ctx: Context) -> dict[str, int]:
    """The resources held once they no longer fall: threads and connections end a little after they are told to."""
    found = await _connections_of(ctx)
    for _ in range(20):
        await asyncio.sleep(0.005)
        now = await _connections_of(ctx)
        if all(now.get(kind, 0) >= count for kind, count in found.items()):
            return now
        found = now
    return found


async def _see_uses(ctx: Context, uses: Mapping[str, _Use]) -> None:
    """Check that nothing is left of stores that were used in each of these ways."""
    if not hasattr(ctx.store, "close"):
        raise Unverified("the store has no close")
    await _threads_are_there()
    with collected():
        for name, use in in_time(ctx, uses.items()):

            async def cycle(use: _Use = use) -> None:
                store = await ctx.another()
                await use(store)
                await ctx.close(store)

            await _see_nothing_left(ctx, cycle, f"stores that were {name}")


async def _see_it_works(ctx: Context) -> None:
    """Check that the instance that stayed open still stores records, however many of the uses there was time for."""
    await seed(ctx.store, "a")
    ctx.equal(await ctx.store.load_messages("a"), samples.messages(3), "the messages of the store that stays open")


_UNDER: Final = (Dimension.COSTS, Dimension.INTERRUPTIONS)


@check("OPS-5", tier=Tier.STANDARD, under=_UNDER)
async def nothing_is_left_of_a_closed_store(ctx: Context) -> None:
    """A store that was opened, used and closed leaves no descriptor, connection, thread or task, however it was used
    and however that ended.
    """
    await _see_uses(ctx, _CORE_USES)
    await _see_it_works(ctx)


@check("OPS-5", "LOCK-3", needs=_E, tier=Tier.STANDARD, under=_UNDER)
async def nothing_is_left_of_streams_and_locks(ctx: Context) -> None:
    """A store that was searched, streamed from and locked, and closed while streams and locks were open, leaves no
    descriptor, connection, thread or task.
    """
    await _see_uses(ctx, _EXTENDED_USES)
    await _see_it_works(ctx)


@check("OPS-5", "OPS-8", needs=Capability.PERSISTENT, tier=Tier.STANDARD, under=(Dimension.COSTS, Dimension.DAMAGE))
async def failed_opens_leave_nothing(ctx: Context) -> None:
    """A store that cannot be opened leaves no descriptor, connection, thread or task behind."""
    harness = ctx.harness
    if not harness.has("raise_version"):
        raise Unverified("the harness has no hook raise_version, nor is there another way to let an open fail")
    await ctx.store.save_messages("a", samples.messages(1))
    ctx.equal(await ctx.store.load_messages("a"), samples.messages(1), "the messages before")
    await ctx.close(ctx.store)
    await harness.raise_version(ctx.handle)
    await _threads_are_there()

    async def fail() -> None:
        await ctx.raises(KodeError, harness.open(ctx.handle), "opening what a newer version made")

    await _see_nothing_left(ctx, fail, "opens that failed")


@check("OPS-9", "OPS-5", tier=Tier.STANDARD, under=_UNDER)
async def cancelled_opens_leave_nothing(ctx: Context) -> None:
    """A store whose opening was cancelled, at any step of it, leaves no descriptor, connection, thread or task."""
    await ctx.store.save_messages("a", samples.messages(1))
    await _threads_are_there()
    steps = iter(range(10**6))

    async def give_up() -> None:
        opening = asyncio.ensure_future(ctx.harness.open(ctx.handle))
        for _ in range(next(steps) % _STEPS):
            await asyncio.sleep(0.0005)
        opening.cancel()
        with suppress(asyncio.CancelledError):
            await _close(await opening)

    with collected():
        await _see_nothing_left(ctx, give_up, "opens that were cancelled", cycles=3 * _STEPS, least=3)
    ctx.equal(await ctx.store.load_messages("a"), samples.messages(1), "the messages in the end")


@check("OPS-5", under=(Dimension.COSTS, Dimension.INSTANCES))
async def what_was_passed_in_stays_open(ctx: Context) -> None:
    """A pool or client that was passed in is used, and works on when the stores over it are closed."""
    if not ctx.harness.has("open_borrowed"):
        raise Unverified("the harness has no hook open_borrowed: nothing is passed in")
    given = await ctx.borrowed()
    try:
        for store in (given.store, ctx.store):
            await store.append_messages("a", samples.messages(1))
        ctx.equal(len(await given.store.load_messages("a")), 2, "how many messages both stores see")
        for _ in range(2):
            await _close(given.store)
            await given.use()
    finally:
        await given.end()


async def _close(store: Any) -> None:
    close = getattr(store, "close", None)
    if close is not None:
        await close()
