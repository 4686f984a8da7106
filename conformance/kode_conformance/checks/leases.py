"""LOCK-1, 3, 4: leases over their whole life: each way in which one ends, and all that may come after that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension, twins
from kode_conformance.instruments.patience import WAIT_MS
from kode_conformance.kills.writes import portrait
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.errors import LockLostError, LockUnavailableError
from kode_core.protocols import ExtendedStore, Lease

_E: Final = Capability.EXTENDED
_LONG_MS: Final = 600_000
_SHORT_MS: Final = 70
_OVER_S: Final = 0.35
"""The time after which a short lease has ended."""


class LeftByError(Exception):
    """The error that leaves a block."""


# --- how a lease ends -------------------------------------------------------------------------------------------------


async def _held(store: ExtendedStore, agent_id: str, pause: float) -> Lease:
    """A lease, taken a moment ago."""
    lease = await store.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS)
    await asyncio.sleep(pause)
    return lease


async def _released(store: ExtendedStore, agent_id: str, pause: float) -> Lease:
    lease = await _held(store, agent_id, pause)
    await lease.release()
    return lease


async def _released_twice(store: ExtendedStore, agent_id: str, pause: float) -> Lease:
    lease = await _released(store, agent_id, pause)
    await lease.release()
    return lease


async def _released_at_once(store: ExtendedStore, agent_id: str, pause: float) -> Lease:
    lease = await _held(store, agent_id, pause)
    await asyncio.gather(lease.release(), lease.release(), lease.release())
    return lease


async def _renewed_and_released(store: ExtendedStore, agent_id: str, pause: float) -> Lease:
    lease = await _held(store, agent_id, pause)
    await lease.renew()
    await lease.release()
    return lease


async def _deleted_and_released(store: ExtendedStore, agent_id: str, pause: float) -> Lease:
    lease = await _held(store, agent_id, pause)
    await store.delete(agent_id)
    await lease.release()
    return lease


async def _expired(store: ExtendedStore, agent_id: str, pause: float) -> Lease:
    lease = await store.acquire_agent_lock(agent_id, ttl_ms=_SHORT_MS)
    await asyncio.sleep(_OVER_S)
    return lease


async def _expired_and_released(store: ExtendedStore, agent_id: str, pause: float) -> Lease:
    lease = await _expired(store, agent_id, pause)
    await lease.release()
    return lease


async def _left(store: ExtendedStore, agent_id: str, pause: float) -> Lease:
    async with store.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS) as lease:
        await store.save_todos(agent_id, samples.todos("inside"))
        await asyncio.sleep(pause)
    return lease


async def _left_by_an_error(store: ExtendedStore, agent_id: str, pause: float) -> Lease:
    with suppress(LeftByError):
        async with store.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS) as lease:
            await asyncio.sleep(pause)
            raise LeftByError
    return lease


async def _left_by_cancellation(store: ExtendedStore, agent_id: str, pause: float) -> Lease:
    inside: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()

    async def hold() -> None:
        async with store.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS) as lease:
            inside.set_result(lease)
            await asyncio.sleep(3600)

    holder = asyncio.ensure_future(hold())
    while not (inside.done() or holder.done()):
        await asyncio.sleep(0.001)
    if holder.done():
        await holder
    await asyncio.sleep(pause)
    holder.cancel()
    await asyncio.wait([holder])
    return await inside


async def _left_after_release(store: ExtendedStore, agent_id: str, pause: float) -> Lease:
    async with store.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS) as lease:
        await asyncio.sleep(pause)
        await lease.release()
    return lease


async def _left_after_renewals(store: ExtendedStore, agent_id: str, pause: float) -> Lease:
    ttl_ms, loop = 1200, asyncio.get_running_loop()
    while True:
        begun = loop.time()
        async with store.acquire_agent_lock(agent_id, ttl_ms=ttl_ms, wait_ms=WAIT_MS) as lease:
            await asyncio.sleep(ttl_ms * 0.000375)  # a block renews its lease; its end is the end of that, too
        if loop.time() - begun < ttl_ms / 1000:
            return lease
        ttl_ms *= 3  # the lease may have run out before it was left


class _End(NamedTuple):
    """How a lease ends: it has, once the call returned."""

    how: str
    live: Callable[[ExtendedStore, str, float], Coroutine[Any, Any, Lease]]

    @property
    def wait_ms(self) -> int:
        """How long the next comer may wait: to see a lease run out may take its time anew, as clocks do not compare."""
        return WAIT_MS if "expired" in self.how else 0


ENDS: Final = tuple(
    _End(live.__name__.strip("_").replace("_", " "), live)
    for live in (
        *(_released, _released_twice, _released_at_once, _renewed_and_released, _deleted_and_released),
        *(_expired, _expired_and_released),
        *(_left, _left_by_an_error, _left_by_cancellation, _left_after_release, _left_after_renewals),
    )
)
"""Every way in which a lease ends while its store is open."""


async def all_of(lives: Mapping[str, Awaitable[object]]) -> None:
    """Live them at once, to the end; the first problem names whose it is."""
    results = await asyncio.gather(*lives.values(), return_exceptions=True)
    for name, result in zip(lives, results, strict=True):
        if isinstance(result, Violation):
            raise Violation(f"{name}: {result}") from result
        if isinstance(result, Exception):
            raise Violation(f"{name}: {type(result).__name__}: {result}") from result
        if result is not None:
            raise Violation(f"{name}: it was cancelled")


async def take(lock: Awaitable[Lease], what: str) -> Lease:
    """The lease, which the lock must give."""
    try:
        return await lock
    except LockUnavailableError as exc:
        raise Violation(f"{what}: the lock must be free, and is not: {exc}") from exc


async def _refused(ctx: Context, store: ExtendedStore, agent_id: str, what: str) -> None:
    await ctx.raises(LockUnavailableError, awaited(store.acquire_agent_lock(agent_id)), f"a second lease, {what}")


async def awaited(lock: Awaitable[Lease]) -> Lease:
    """The lease."""
    return await lock


# --- checks -----------------------------------------------------------------------------------------------------------


@check(
    "LOCK-3",
    "LOCK-1",
    "LOCK-5",
    needs=_E,
    under=(Dimension.CHANGES, Dimension.INSTANCES, Dimension.ORDERS, Dimension.INTERRUPTIONS),
)
async def however_a_lease_ends_the_next_comes(ctx: Context) -> None:
    """However a lease ends, the next waiter gets the lock, with a greater token, in the same instance and in another,
    at once unless the lease ran out; and no other task gets it then.
    """
    stores = (ctx.store, await ctx.another())

    async def live(end: _End, agent_id: str, first: ExtendedStore, second: ExtendedStore) -> None:
        old = await end.live(first, agent_id, 0)
        new = await take(
            second.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS, wait_ms=end.wait_ms), "the next comer, after it ended"
        )
        ctx.true(new.token > old.token, f"the next token is {new.token}, after {old.token}")
        for store in stores:
            await _refused(ctx, store, agent_id, "while the next one holds the lock")
        await new.release()
        last = await take(first.acquire_agent_lock(agent_id), "the one after the next, after a release")
        ctx.true(last.token > new.token, f"the token after {new.token} is {last.token}")
        await last.release()

    await all_of(
        {
            f"a lease that ended like this: {end.how}; the next comer is {whose}": live(
                end, f"{number}-{i}", stores[number % 2], stores[(number + i) % 2]
            )
            for number, end in enumerate(ENDS)
            for i, whose in enumerate(("of the same instance", "of another instance"))
        }
    )


@check("LOCK-4", "LOCK-3", "LOCK-5", needs=_E, under=(Dimension.ORDERS, Dimension.INSTANCES, Dimension.CHANGES))
async def an_ended_lease_has_no_say(ctx: Context) -> None:
    """A lease that has ended, in whatever way, never frees, takes or prolongs the lock again, and no write under it is
    done: not before the next lease, not during it, and not after it.
    """
    stores = (ctx.store, await ctx.another())

    async def nothing(store: ExtendedStore, old: Lease, when: str) -> None:
        agent_id = old.agent_id
        await ctx.raises(LockLostError, old.renew(), f"renewing it {when}")
        ctx.equal(old.is_lost, True, f"is_lost after its renewal was refused, {when}")
        write = store.append_event(agent_id, samples.event(9), fence=old)
        await ctx.raises(LockLostError, write, f"a write under it {when}")
        await old.release()

    async def live(end: _End, agent_id: str, first: ExtendedStore, second: ExtendedStore) -> None:
        old = await end.live(first, agent_id, 0)
        await nothing(first, old, "before the next lease")
        new = await take(
            second.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS, wait_ms=end.wait_ms), "after it was renewed in vain"
        )
        await nothing(first, old, "during the next lease")
        for store in stores:
            await _refused(ctx, store, agent_id, "after the old one was renewed and released once more")
        await new.renew()
        await second.append_event(agent_id, samples.event(1), fence=new)
        ctx.equal(new.is_lost, False, "is_lost of the next lease")
        await new.release()
        await nothing(first, old, "after the next lease")
        await (await take(first.acquire_agent_lock(agent_id), "after all had ended")).release()
        seqs = [event.bookmark.seq async for event in first.read_events(agent_id)]
        ctx.equal(seqs, [1], "the events that were written under leases")

    await all_of(
        {
            f"a lease that ended like this: {end.how}; the next one is {whose}": live(
                end, f"{number}-{i}", stores[number % 2], stores[(number + i) % 2]
            )
            for number, end in enumerate(ENDS)
            for i, whose in enumerate(("of the same instance", "of another instance"))
        }
    )


@check("LOCK-2", "LOCK-3", needs=_E, under=(Dimension.COMPANY, Dimension.CHANGES, Dimension.INSTANCES))
async def whoever_waits_gets_the_lock_at_its_end(ctx: Context) -> None:
    """All waiters for a lock get it, one after the other, however the lease before them ends; a lease of ten minutes
    that is released keeps no waiter until its time is over.
    """
    stores = (ctx.store, await ctx.another())

    async def wait(agent_id: str, store: ExtendedStore, inside: list[int], i: int) -> int:
        lease = await take(store.acquire_agent_lock(agent_id, ttl_ms=_LONG_MS, wait_ms=WAIT_MS), f"waiter {i}")
        inside.append(i)
        ctx.equal(inside, [i], "who is inside")
        await asyncio.sleep(0)
        inside.remove(i)
        await lease.release()
        return lease.token

    async def live(end: _End, agent_id: str, store: ExtendedStore) -> None:
        begun = asyncio.ensure_future(end.live(store, agent_id, 0.1))
        inside: list[int] = []
        await asyncio.sleep(0.02)
        waiting = [asyncio.ensure_future(wait(agent_id, stores[i % 2], inside, i)) for i in range(2)]
        results = await asyncio.gather(begun, *waiting, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, LockUnavailableError):
                raise result
        tokens = [result for result in results[1:] if isinstance(result, int)]
        ctx.equal(len(set(tokens)), 2, "how many different tokens the two who waited got")

    await all_of(
        {
            f"two who wait for a lock whose lease ends like this: {end.how}": live(
                end, f"w-{number}", stores[number % 2]
            )
            for number, end in enumerate(ENDS)
        }
    )


@check("LOCK-2", "LOCK-3", needs=_E, under=(Dimension.NUMBERS,))
async def waits_and_times_at_their_edges(ctx: Context) -> None:
    """A lease of any time, from some milliseconds to an hour, is held at first; a waiter that waits for less than its
    time is refused, and one that waits for more gets the lock, whichever of the two times is below a second.
    """
    other, loop = await ctx.another(), asyncio.get_running_loop()

    async def held(ttl_ms: int) -> None:
        agent_id, begun = f"held-{ttl_ms}", loop.time()
        lease = await ctx.store.acquire_agent_lock(agent_id, ttl_ms=ttl_ms)
        for wait_ms in (0, 1, 30, 150):
            if (loop.time() - begun) * 1000 + wait_ms + 100 < ttl_ms:
                try:
                    got = await other.acquire_agent_lock(agent_id, wait_ms=wait_ms)
                except LockUnavailableError:
                    continue
                if (loop.time() - begun) * 1000 < ttl_ms:
                    raise Violation(f"one who waited for {wait_ms} ms got it before its time was over")
                await got.release()  # this machine was too slow to tell
        if ttl_ms < 2000:
            new = await take(other.acquire_agent_lock(agent_id, wait_ms=WAIT_MS), "one who waited for longer")
            ctx.true(new.token > lease.token, f"the next token is {new.token}, after {lease.token}")
        else:
            await lease.renew()

    await all_of({f"a lease of {ttl} ms": held(ttl) for ttl in (50, 300, 999, 1000, 1001, 1500, 30_000, 3_600_000)})


@check("LOCK-1", "ID-2", "INFO-1", needs=_E, under=(Dimension.TWINS, Dimension.INSTANCES))
async def locks_of_twins_are_apart(ctx: Context) -> None:
    """Locks of ids that differ in anything are different locks, all held at once; locks of agents that do not exist
    make no agent, and the end of one lock ends no other.
    """
    other, names = await ctx.another(), list(twins())
    stores = (ctx.store, other)
    taken = await asyncio.gather(
        *(take(stores[i % 2].acquire_agent_lock(name, ttl_ms=_LONG_MS), repr(name)) for i, name in enumerate(names))
    )
    await _see_no_agents(ctx, names, "while they are locked")
    for lease in taken[::2]:
        await lease.release()

    async def held(i: int, name: str) -> None:
        if i % 2:
            await _refused(ctx, stores[i // 2 % 2], name, "after locks of its twins were released")
        else:
            lease = await take(stores[i // 2 % 2].acquire_agent_lock(name), "after it was released")
            await lease.release()

    await all_of({f"the lock of {name!r}": held(i, name) for i, name in enumerate(names)})
    await _see_no_agents(ctx, names, "after they were locked")


async def _see_no_agents(ctx: Context, names: Sequence[str], when: str) -> None:
    ctx.equal(await ctx.store.list(), [], f"the agents of which nothing was ever saved, {when}")
    ctx.equal(await ctx.store.exists(names[0]), False, f"whether {names[0]!r} exists, {when}")
    ctx.equal(list(await ctx.store.query_sessions()), [], f"the sessions, {when}")
    ctx.equal((await ctx.store.get_metrics()).storage.total_agents, 0, f"how many agents the metrics count, {when}")
    ctx.equal((await ctx.store.check_consistency()).issues, (), f"the issues, {when}")


@check("LOCK-1", "MSG-8", "INFO-2", needs=_E, under=(Dimension.CHANGES, Dimension.ORDERS))
async def locking_changes_no_data(ctx: Context) -> None:
    """A lock that is taken, renewed, waited for and released leaves everything of its agent as it was, its updated_at
    and its place in queries included; deleting and making anew the agent does not end the lease.
    """
    store, other = ctx.store, await ctx.another()
    await fill(store, "a")
    before = await portrait(store, "a"), list(await store.query_sessions()), list(await store.query_messages())
    lease = await store.acquire_agent_lock("a", ttl_ms=_LONG_MS)
    await lease.renew()
    await _refused(ctx, other, "a", "while it is held")
    for when in ("while it is locked", "after it was locked"):
        after = await portrait(other, "a"), list(await other.query_sessions()), list(await other.query_messages())
        ctx.equal(after, before, f"the agent, its session and its messages {when}")
        await lease.release()
    lease = await store.acquire_agent_lock("a", ttl_ms=_LONG_MS)
    for what, act in _REMAKES.items():
        await act(other)
        for again in (store, other):
            await _refused(ctx, again, "a", f"after the agent was {what} by somebody who does not hold its lock")
        await lease.renew()
        await store.save_todos("a", samples.todos(what), fence=lease)
        ctx.equal(lease.is_lost, False, f"is_lost of the lease after the agent was {what}")
    await lease.release()


_REMAKES: Final[Mapping[str, Callable[[ExtendedStore], Awaitable[object]]]] = {
    "deleted": lambda store: store.delete("a"),
    "made anew": lambda store: fill(store, "a"),
    "deleted with all that match": lambda store: store.delete_many(agent_id="a"),
    "saved": lambda store: store.save_info("a", samples.info("a")),
    "forked": lambda store: store.batch_fork("a", 1),
}
