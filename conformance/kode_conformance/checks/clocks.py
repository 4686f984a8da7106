"""INFO-2, VAL-5, LOCK-3, MSG-4, OPS-3: values that a store generates itself, under clocks that step and in other time
zones.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

from kode_conformance.calls.fenced import fenced_writes
from kode_conformance.checks.leases import all_of, take
from kode_conformance.checks.times import WAYS
from kode_conformance.context import Context, Unverified, Violation
from kode_conformance.dimensions import TIMES, Dimension
from kode_conformance.instruments.clock import clock_off
from kode_conformance.kills.writes import portrait
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.errors import LockLostError, LockUnavailableError
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED
_Q: Final = Capability.QUERYABLE
_HOUR_S: Final = 3600
_TEN_MINUTES_MS: Final = 600_000
"""A wrong time zone is wrong by more than this, and clocks of two machines by less."""


@contextmanager
def in_zone(zone: str) -> Iterator[None]:
    """The host is in another time zone."""
    if not hasattr(time, "tzset"):
        raise Unverified("this system cannot set its time zone")
    before = os.environ.get("TZ")
    os.environ["TZ"] = zone
    time.tzset()
    try:
        yield
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


_STEPS: Final = (0, _HOUR_S, 0, -_HOUR_S, -25 * _HOUR_S, 0, 400 * 24 * _HOUR_S, 0)
"""How far the clock is off at one call after the other: it steps ahead, is put right, and falls behind."""

_ZONES: Final = ("UTC", "EAST-14", "WEST+12", "HALF-5:30", "CET-1CEST,M1.1.0/0,M12.5.0/0", "NST3:30NDT,M3.2.0,M11.1.0")
"""As POSIX writes them: the farthest east and west, halves of hours, and two that set their clocks."""


# --- clocks -----------------------------------------------------------------------------------------------------------


async def _updated(store: ExtendedStore, agent_id: str) -> int:
    (session,) = await store.query_sessions(agent_id=agent_id)
    return session.updated_at


_MOVING: Final = ("message", "tool_call", "info", "append)")
"""The parts of method names that write messages, tool calls and info."""


@check("INFO-2", needs=_E, under=(Dimension.CLOCKS, Dimension.INSTANCES, Dimension.CHANGES, Dimension.EQUALS))
async def updated_at_only_grows_under_any_clock(ctx: Context) -> None:
    """After each save of messages, tool calls or info, by each method that does so, and again when the same is saved
    once more, updated_at is greater than before, though the clock steps ahead and back between the calls, and whichever
    instance saves; no other write moves it, nor does a lock.
    """
    stores = (ctx.store, await ctx.another())
    await ctx.store.save_info("a", samples.info("a"))
    before = await _updated(ctx.store, "a")
    writes = [write for write in fenced_writes("a") if write.method != "delete"]
    moving = {w.name for w in writes if any(part in w.name for part in _MOVING) and "event" not in w.name}
    once = {"append_messages_once"}  # the same keys again append nothing
    ctx.true(len(moving) >= 9, f"all saves must be tried: {moving}")
    for number, write in enumerate(write for write in writes for _ in range(2)):
        off = _STEPS[number % len(_STEPS)]
        with clock_off(off):
            await write.act(stores[number // 2 % 2], "a")
        after = await _updated(stores[number % 2], "a")
        again = ", the same again" if number % 2 else ""
        case = f"{write.name}{again}, with the clock off by {off} s: {before}, then {after}"
        if write.name in moving and not (again and write.name in once):
            ctx.true(after > before, f"updated_at must grow by {case}")
        else:
            ctx.equal(after, before, f"updated_at after {case}")
        before = after
    await (await ctx.store.acquire_agent_lock("a")).release()
    ctx.equal(await _updated(ctx.store, "a"), before, "updated_at after the agent was locked")


@check("MSG-4", needs=_Q, under=(Dimension.CLOCKS, Dimension.INSTANCES, Dimension.ORDERS))
async def new_messages_are_never_older_under_any_clock(ctx: Context) -> None:
    """A message that is added is not older than those before it, and those keep their times, by whichever of the ways
    to add it, and however the clock steps between the calls.
    """
    stores, texts = (ctx.store, await ctx.another()), samples.messages(4 * len(_STEPS))
    before: list[int] = []
    for number in range(len(texts)):
        name, (takes_all, write) = list(WAYS.items())[(number + number // len(_STEPS)) % len(WAYS)]
        off = _STEPS[number % len(_STEPS)]
        with clock_off(off):
            await write(stores[number % 2], "a", texts[0 if takes_all else number : number + 1])
        found = await stores[number // 2 % 2].query_messages(agent_id="a", order="asc", limit=1000)
        when = f"message {number} was added by {name} with the clock off by {off} s"
        ctx.equal(
            [m.position for m in found], list(range(number + 1)), f"positions of the messages by time after {when}"
        )
        times = [m.created_at for m in found]
        ctx.equal(times[:number], before, f"the times of the messages that were there when {when}")
        before = times


@check("LOCK-3", "LOCK-1", "LOCK-2", "LOCK-5", needs=_E, under=(Dimension.CLOCKS, Dimension.INSTANCES))
async def leases_and_waits_heed_no_clock_that_is_set(ctx: Context) -> None:
    """Setting a clock ahead or back, the holder's or another's, neither ends a lease nor prolongs it, does not decide
    whether a write under it passes, and makes no task wait longer or give up sooner.
    """
    other = await ctx.another()

    async def held(agent_id: str, mine: float, theirs: float) -> None:
        with clock_off(mine):
            lease = await ctx.store.acquire_agent_lock(agent_id, ttl_ms=1_200_000)
        with clock_off(theirs):
            try:
                await other.acquire_agent_lock(agent_id)
            except LockUnavailableError:
                await ctx.store.append_event(agent_id, samples.event(0), fence=lease)
                await lease.renew()
            else:
                raise Violation("another got the lock, of which twenty minutes were left")
        await ctx.store.append_event(agent_id, samples.event(1), fence=lease)
        await lease.release()

    async def ended(agent_id: str, mine: float, theirs: float) -> None:
        with clock_off(mine):
            lease = await ctx.store.acquire_agent_lock(agent_id, ttl_ms=70)
        await asyncio.sleep(0.35)
        with clock_off(theirs):
            write = ctx.store.append_event(agent_id, samples.event(0), fence=lease)
            await ctx.raises(LockLostError, write, "a write under a lease of 70 ms, after 350 ms")
        await (await take(other.acquire_agent_lock(agent_id, wait_ms=20_000), "after a lease of 70 ms")).release()

    for mine in (0, _HOUR_S, -_HOUR_S):
        for theirs in (0, _HOUR_S, -_HOUR_S):
            if mine or theirs:
                case = f"the holder's clock is off by {mine} s, the other's by {theirs} s"
                await all_of({case: held(f"held {mine} {theirs}", mine, theirs)})
    off = ((0, _HOUR_S), (0, -_HOUR_S), (_HOUR_S, 0), (-_HOUR_S, 0))
    for mine, theirs in off[: 4 if ctx.harness.patience <= 1 else 1]:
        case = f"the holder's clock was off by {mine} s, later by {theirs} s"
        await all_of({case: ended(f"ended {mine} {theirs}", mine, theirs)})
    await _see_waiters_wait(ctx, other)


async def _see_waiters_wait(ctx: Context, other: ExtendedStore) -> None:
    """Check that a waiter gets the whole time that it asked for while the clock steps."""
    for off in (_HOUR_S, -_HOUR_S):
        agent_id = f"waited for {off}"
        lease = await ctx.store.acquire_agent_lock(agent_id, ttl_ms=1_200_000)
        patient = asyncio.ensure_future(_got(other, agent_id, 600_000))
        hasty = asyncio.ensure_future(_got(other, agent_id, 100))
        await asyncio.sleep(0.02)
        with clock_off(off):
            done = await ctx.ended([hasty])
            ctx.true(done, f"one who waits for 100 ms waits on after the clock stepped by {off} s")
            ctx.true(not patient.done(), f"a waiter with ten minutes gave up when the clock stepped by {off} s")
            await lease.release()
            done = await ctx.ended([patient])
        ctx.equal(hasty.result(), False, "whether one who waited for 100 ms got a lock that was held")
        ctx.true(done and patient.result(), f"a waiter with ten minutes must get the lock after a step by {off} s")


async def _got(store: ExtendedStore, agent_id: str, wait_ms: int) -> bool:
    try:
        await store.acquire_agent_lock(agent_id, wait_ms=wait_ms)
    except LockUnavailableError:
        return False
    return True


@check("OPS-3", "OPS-1", "OPS-9", needs=_E, absence_ok=True, under=(Dimension.CLOCKS, Dimension.COMPANY))
async def calls_under_way_heed_no_clock_that_is_set(ctx: Context) -> None:
    """A clock that is set while calls are under way makes none of them fail, and no latency, of calls and of the health
    check, negative or an hour long.
    """
    for off in (_HOUR_S, -_HOUR_S):
        calls: list[Awaitable[object]] = [ctx.store.save_messages(f"a{i}", samples.messages(2)) for i in range(5)]
        calls += [
            ctx.store.load_messages("b"),
            ctx.store.query_sessions(),
            ctx.store.append_event("b", samples.event(1)),
        ]
        tasks = [asyncio.ensure_future(call) for call in calls]
        health = asyncio.ensure_future(ctx.store.health_check())
        await asyncio.sleep(0)
        with clock_off(off):
            results = await asyncio.gather(*tasks, return_exceptions=True)
            status = await health
        failed = [result for result in results if isinstance(result, BaseException)]
        ctx.equal(failed, [], f"errors of calls during which the clock stepped by {off} s")
        ctx.equal(status.healthy, True, f"healthy, when the clock stepped by {off} s during the check")
        p = (await ctx.store.get_metrics()).performance
        values = {name: getattr(p, name) for name in p.__struct_fields__}
        for medium in (status.database, status.file_system):
            if medium is not None and medium.latency_ms is not None:
                values[f"health {medium}"] = medium.latency_ms
        wrong = {name: ms for name, ms in values.items() if not 0 <= ms < _HOUR_S * 500}
        ctx.equal(wrong, {}, f"latencies that cannot be, after the clock stepped by {off} s")


# --- zones ------------------------------------------------------------------------------------------------------------


@check("VAL-5", needs=_Q, under=(Dimension.CLOCKS, Dimension.NUMBERS, Dimension.INSTANCES))
async def nothing_depends_on_the_zone(ctx: Context) -> None:
    """Times that are written in one time zone come back, and are found, in every other. In every zone the times that
    the store gives to messages, sessions, forks and metrics are the present time.
    """
    other = await ctx.another()
    written = {}
    for number, zone in enumerate(_ZONES):
        with in_zone(zone):
            mine = [TIMES[i] for i in range(number, len(TIMES), len(_ZONES))]
            agent_id, at = f"agent {number}", samples.T0 + number * 3_600_000
            await _write_times(ctx.store, agent_id, at, mine)
            written[agent_id] = await portrait(ctx.store, agent_id)
            await _see_now(ctx, agent_id, zone)
            calls = await ctx.store.load_tool_call_records(agent_id)
            ctx.equal([call.created_at for call in calls], mine, f"created_at of tool calls written and read in {zone}")
    for number, (agent_id, wanted) in enumerate(written.items()):
        zone = _ZONES[(number + 2) % len(_ZONES)]
        with in_zone(zone):
            ctx.equal(
                await portrait(other, agent_id), wanted, f"an agent that was written in {_ZONES[number]}, in {zone}"
            )
            await _see_found(ctx, other, number, zone)


async def _write_times(store: ExtendedStore, agent_id: str, at: int, times: Sequence[int]) -> None:
    await store.save_turn(
        agent_id,
        messages=samples.messages(1),
        tool_calls=[samples.tool_call(i, created_at=t, started_at=t, updated_at=t) for i, t in enumerate(times)],
        info=samples.info(agent_id, created_at=at),
        events=samples.events(1),
    )
    for i, t in enumerate(times):
        await store.save_snapshot(agent_id, samples.snapshot(f"sfp-{i}", created_at=t))
    await store.save_history_window(agent_id, samples.window(timestamp=times[0]))


async def _see_now(ctx: Context, agent_id: str, zone: str) -> None:
    """Check that the store's own times are the present time."""
    now = time.time_ns() // 1_000_000
    (message,) = await ctx.store.query_messages(agent_id=agent_id)
    stamps = {"a message": message.created_at, "updated_at": await _updated(ctx.store, agent_id)}
    if "EXTENDED" not in ctx.harness.lacks:
        (fork,) = await ctx.store.batch_fork(agent_id, 1)
        info = await ctx.store.load_info(fork)
        stamps["created_at of a fork"] = info.created_at if info else 0
        stamps["collected_at of metrics"] = (await ctx.store.get_metrics()).collected_at
        await ctx.store.delete(fork)
    for what, stamp in stamps.items():
        off = round((stamp - now) / 1000)
        ctx.true(abs(stamp - now) < _TEN_MINUTES_MS, f"{what}, stamped in the zone {zone}, is {off} s away from now")


async def _see_found(ctx: Context, store: ExtendedStore, number: int, zone: str) -> None:
    """The sessions created at or after one of them, by milliseconds and by datetimes of other zones."""
    at = samples.T0 + number * 3_600_000
    wanted = [f"agent {i}" for i in range(number, len(_ZONES))]
    moment = datetime.fromtimestamp(at / 1000, UTC)
    for after in (at, moment, moment.astimezone(timezone(timedelta(hours=-9.5)))):
        found = await store.query_sessions(created_after=after, order="asc", sort_by="created_at")
        ctx.equal([s.agent_id for s in found], wanted, f"sessions created after {after!r}, in the zone {zone}")


@check("FORK-1", "EVT-2", needs=_E, under=(Dimension.CLOCKS, Dimension.INSTANCES, Dimension.ORDERS))
async def forks_are_named_in_the_order_of_time(ctx: Context) -> None:
    """Forks of one parent, made one batch after the other by two instances, also after these were opened again, have
    ids in the order in which they were made, and no id twice.
    """
    stores = [ctx.store, await ctx.another()]
    await ctx.store.save_info("p", samples.info("p"))
    made: list[str] = []
    for number in range(8):
        if number == 4 and "PERSISTENT" not in ctx.harness.lacks:
            stores = [await ctx.reopen(), await ctx.another()]
        made += await stores[number % 2].batch_fork("p", (1, 3, 1, 30)[number % 4])
        await asyncio.sleep(0.003)
    at_once = await asyncio.gather(*(store.batch_fork("p", 5) for store in stores * 3))
    ctx.equal(made, sorted(made), "the ids of forks in the order in which they were made")
    every = [*made, *(fork for batch in at_once for fork in batch)]
    ctx.equal(len(set(every)), len(every), "how many different ids all the forks have")
    ctx.equal(await ctx.store.list("agt-"), sorted(every), "the forks that are there")
