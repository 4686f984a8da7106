"""LOCK: leases and fences."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import Suspected, TooSlow, judged
from kode_conformance.instruments.patience import WAIT_MS
from kode_conformance.instruments.yielding import turns_pass
from kode_conformance.kills.writes import missing_kinds, portrait
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import InvalidArgumentError, LockLostError, LockUnavailableError
from kode_core.protocols import ExtendedStore, Lease

_E = Capability.EXTENDED
_LONG_MS: Final = 600_000


@check("LOCK-1", "LOCK-2", needs=_E, under=(Dimension.COMPANY, Dimension.INSTANCES))
async def one_holder_at_a_time(ctx: Context) -> None:
    """While a lock is held, no other task and no other instance gets it; when it is free, one of them does."""
    other = await ctx.another()
    async with ctx.store.acquire_agent_lock("a"):
        for store in (ctx.store, other):
            await ctx.raises(LockUnavailableError, _take(store.acquire_agent_lock("a")), "a lock that is held")
        lease = await other.acquire_agent_lock("b")
        await lease.release()
    lease = await other.acquire_agent_lock("a")
    await lease.release()
    inside = peak = 0

    async def work(i: int) -> None:
        nonlocal inside, peak
        async with (ctx.store, other)[i % 2].acquire_agent_lock("a", wait_ms=WAIT_MS):
            inside += 1
            peak = max(peak, inside)
            await asyncio.sleep(0.002)
            inside -= 1

    await asyncio.gather(*map(work, range(12)))
    ctx.equal(peak, 1, "how many were inside at once")


async def _take(lock: Awaitable[object]) -> object:
    return await lock


@check(
    "LOCK-1",
    needs=_E | Capability.CROSS_PROCESS,
    tier=Tier.STANDARD,
    under=(Dimension.PROCESSES, Dimension.COMPANY),
)
async def one_holder_over_processes(ctx: Context) -> None:
    """While one process holds a lock, no other gets it, and processes that count up under the lock lose no count."""
    holder = await ctx.process("hold_lock", "b", 60_000)
    await holder.line()
    await ctx.raises(
        LockUnavailableError, _take(ctx.store.acquire_agent_lock("b")), "a lock that another process holds"
    )
    holder.kill()
    await holder.gone()
    await ctx.store.save_info("a", samples.info("a", metadata={"n": 0}))
    processes = [await ctx.process("count_up", "a", 15) for _ in range(3)]
    reports = [line for process in processes for line in await process.lines()]
    info = await ctx.store.load_info("a")
    ctx.equal(info and info.metadata, {"n": 45}, "the counter")
    reports.sort(key=lambda line: line["n"])
    tokens = [line["token"] for line in reports]
    ctx.equal(tokens, sorted(set(tokens)), "the tokens in the order of the counts")


@check("LOCK-2", needs=_E, under=(Dimension.COMPANY, Dimension.CLOCKS))
async def waiting_for_a_lock(ctx: Context) -> None:
    """wait_ms waits for the holder and then gets the lock, or gives up when the time is over."""
    lease = await ctx.store.acquire_agent_lock("a")
    loop = asyncio.get_running_loop()
    start = loop.time()
    await ctx.raises(LockUnavailableError, _take(ctx.store.acquire_agent_lock("a", wait_ms=150)), "after 150 ms")
    ctx.true(loop.time() - start >= 0.14, "the wait must take its time")
    waiter = asyncio.ensure_future(_take(ctx.store.acquire_agent_lock("a", wait_ms=WAIT_MS)))
    await asyncio.sleep(0.05)
    await lease.release()
    second = await waiter
    await ctx.raises(LockUnavailableError, _take(ctx.store.acquire_agent_lock("a")), "while the waiter holds it")
    await second.release()  # type: ignore[attr-defined]


@check("LOCK-2", "OPS-9", needs=_E, under=(Dimension.INTERRUPTIONS,))
async def a_cancelled_waiter_leaves_nothing(ctx: Context) -> None:
    """A waiter that is cancelled leaves no lock behind."""
    for steps in range(8):
        task = asyncio.ensure_future(_take(ctx.store.acquire_agent_lock("a", wait_ms=WAIT_MS)))
        await turns_pass(steps)
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(result, BaseException):
            await result.release()  # type: ignore[attr-defined]
        lease = await ctx.store.acquire_agent_lock("a", wait_ms=WAIT_MS)
        await ctx.raises(LockUnavailableError, _take(ctx.store.acquire_agent_lock("a")), "while the next one holds it")
        await lease.release()


@check("LOCK-3", needs=_E, under=(Dimension.CLOCKS,))
async def a_lease_ends_by_itself(ctx: Context) -> None:
    """A lease that is not renewed ends after its time; one that is renewed does not; async with renews it."""
    other = await ctx.another()

    async def renewed_by_hand(longer: int) -> None:
        agent_id, ttl_ms = f"a{longer}", 1000 * longer
        await ctx.store.acquire_agent_lock(agent_id, ttl_ms=100)
        begun = time.monotonic()
        lease = await other.acquire_agent_lock(agent_id, ttl_ms=ttl_ms, wait_ms=WAIT_MS)
        for _ in range(5):
            await asyncio.sleep(0.3 * longer)
            begun = await renew(lease, begun, ttl_ms)
        await see_held(ctx.store, agent_id, begun, ttl_ms)
        await lease.release()

    async def renewed_by_the_block(longer: int) -> None:
        agent_id, ttl_ms = f"b{longer}", 1000 * longer
        async with ctx.store.acquire_agent_lock(agent_id, ttl_ms=ttl_ms):
            await asyncio.sleep(1.6 * longer)
            try:
                await other.acquire_agent_lock(agent_id)
            except LockUnavailableError:
                pass
            else:
                raise Suspected(f"another got a lock that was taken for {ttl_ms} ms inside async with")
        await (await other.acquire_agent_lock(agent_id)).release()

    await asyncio.gather(judged(renewed_by_hand), judged(renewed_by_the_block))


async def renew(lease: Lease, begun: float, ttl_ms: int) -> float:
    """Renew a lease that was taken or renewed after *begun*; the moment just before."""
    now = time.monotonic()
    try:
        await lease.renew()
    except LockLostError:
        raise _over(f"a lease of {ttl_ms} ms was lost", begun, ttl_ms) from None
    return now


async def see_held(store: ExtendedStore, agent_id: str, begun: float, ttl_ms: int) -> None:
    """Check that a lock is held that was taken or renewed after *begun*."""
    try:
        await store.acquire_agent_lock(agent_id)
    except LockUnavailableError:
        return
    raise _over(f"another got a lock that was taken for {ttl_ms} ms", begun, ttl_ms)


def _over(what: str, begun: float, ttl_ms: int) -> Exception:
    """The error when a lease is over that was taken or renewed after *begun*."""
    passed = (time.monotonic() - begun) * 1000
    told = f"{what}, {passed:.0f} ms after that"
    return Violation(told) if passed < ttl_ms else TooSlow(told)


_ODD_MS: Final = (1900, 1099)
"""Times of leases that are no whole seconds; each must be held for most of its last part of a second."""


@check("LOCK-3", "LOCK-1", needs=_E, under=(Dimension.NUMBERS, Dimension.INSTANCES))
async def a_lease_lasts_its_whole_time(ctx: Context) -> None:
    """A lease whose time is no whole number of seconds is held until its time is over, taken or renewed for it."""
    other = await ctx.another()

    async def held(ttl_ms: int, renewed: bool, longer: int) -> None:
        agent_id, ttl_ms = f"{ttl_ms}-{renewed}-{longer}", 1000 * (longer - 1) + ttl_ms
        begun = time.monotonic()
        lease = await ctx.store.acquire_agent_lock(agent_id, ttl_ms=ttl_ms)
        if renewed:
            begun = await renew(lease, begun, ttl_ms)
        await asyncio.sleep(ttl_ms // 1000 + ttl_ms % 1000 * 0.0005)
        await see_held(other, agent_id, begun, ttl_ms)

    cases = itertools.product(_ODD_MS, (False, True))
    await asyncio.gather(*(judged(partial(held, ttl_ms, renewed)) for ttl_ms, renewed in cases))


@check(
    "LOCK-3", needs=_E | Capability.CROSS_PROCESS, tier=Tier.STANDARD, under=(Dimension.CRASHES, Dimension.PROCESSES)
)
async def a_killed_holder_is_followed(ctx: Context) -> None:
    """The lock of a process that was killed is free when its time is over, and not before."""

    async def killed(longer: int) -> None:
        agent_id, ttl_ms, begun = f"a{longer}", 1500 * longer, time.monotonic()
        process = await ctx.process("hold_lock", agent_id, ttl_ms)
        report = await process.line()
        process.kill()
        await process.gone()
        await see_held(ctx.store, agent_id, begun, ttl_ms)
        lease = await ctx.store.acquire_agent_lock(agent_id, wait_ms=WAIT_MS)
        ctx.true(lease.token > report["token"], f"token {lease.token} must be above {report['token']}")
        await lease.release()

    await judged(killed)


@check("LOCK-4", needs=_E, under=(Dimension.ORDERS,))
async def a_late_release_frees_nobody_else(ctx: Context) -> None:
    """A release that comes late, or twice, does not free the lock of the next holder, and does not raise."""
    other = await ctx.another()
    first = await ctx.store.acquire_agent_lock("a", ttl_ms=60)
    second = await other.acquire_agent_lock("a", wait_ms=WAIT_MS)
    await first.release()
    await first.release()
    await ctx.raises(LockUnavailableError, _take(ctx.store.acquire_agent_lock("a")), "after a late release")
    await ctx.raises(LockLostError, first.renew(), "renewing a lease that was taken over")
    await second.release()
    await second.release()


@check("LOCK-5", needs=_E, under=(Dimension.CHANGES, Dimension.INSTANCES))
async def tokens_only_grow(ctx: Context) -> None:
    """Each lease of an agent has a greater token than the one before, also after a delete and a restart."""
    tokens = []
    for i in range(6):
        if i == 2:
            await ctx.store.delete("a")
        if i == 4 and "PERSISTENT" not in ctx.harness.lacks:
            await ctx.reopen()
        lease = await ctx.store.acquire_agent_lock("a")
        tokens.append(lease.token)
        await ctx.store.save_messages("a", samples.messages(1))
        await lease.release()
    ctx.equal(tokens, sorted(set(tokens)), "the tokens")


@check("LOCK-5", needs=_E, under=(Dimension.CHANGES,))
async def writes_under_a_lost_lease_are_refused(ctx: Context) -> None:
    """Every write of a holder that was superseded is refused and changes nothing; the new holder's are not."""
    other = await ctx.another()
    await ctx.store.save_messages("a", samples.messages(1))
    old = await ctx.store.acquire_agent_lock("a", ttl_ms=60)
    new = await other.acquire_agent_lock("a", wait_ms=WAIT_MS)
    store = ctx.store
    writes: dict[str, Callable[[], Awaitable[object]]] = {
        "save_messages": lambda: store.save_messages("a", [], fence=old),
        "append_messages": lambda: store.append_messages("a", samples.messages(1), fence=old),
        "save_tool_call_records": lambda: store.save_tool_call_records("a", [samples.tool_call()], fence=old),
        "upsert_tool_call_records": lambda: store.upsert_tool_call_records("a", [samples.tool_call()], fence=old),
        "save_turn": lambda: store.save_turn("a", append=samples.messages(1), events=samples.events(1), fence=old),
        "save_todos": lambda: store.save_todos("a", samples.todos("x"), fence=old),
        "append_event": lambda: store.append_event("a", samples.event(1), fence=old),
        "append_events": lambda: store.append_events("a", samples.events(2), fence=old),
        "save_history_window": lambda: store.save_history_window("a", samples.window(), fence=old),
        "save_compression_record": lambda: store.save_compression_record("a", samples.compression(), fence=old),
        "save_recovered_file": lambda: store.save_recovered_file("a", samples.recovered(), fence=old),
        "save_media_cache": lambda: store.save_media_cache("a", [samples.media()], fence=old),
        "save_snapshot": lambda: store.save_snapshot("a", samples.snapshot(), fence=old),
        "save_info": lambda: store.save_info("a", samples.info("a"), fence=old),
        "delete": lambda: store.delete("a", fence=old),
    }
    for name, write in writes.items():
        await ctx.raises(LockLostError, write(), f"{name} under a lost lease")
    ctx.equal(await store.load_messages("a"), samples.messages(1), "the messages")
    ctx.equal(await store.load_todos("a"), None, "the todos")
    ctx.equal([e async for e in store.read_events("a")], [], "the events")
    ctx.equal((await store.exists("a"), await store.list_snapshots("a")), (False, []), "info and snapshots")
    await other.append_messages("a", samples.messages(1), fence=new)
    await other.append_event("a", samples.event(0), fence=new)
    await new.release()
    await ctx.raises(LockLostError, other.save_todos("a", samples.todos(), fence=new), "a write after the release")
    await store.save_todos("a", samples.todos("y"))
    ctx.equal(await store.load_todos("a"), samples.todos("y"), "the todos of a write without a fence")


@check("LOCK-5", needs=_E, under=(Dimension.CHANGES, Dimension.COMPANY))
async def writes_inside_async_with_are_fenced(ctx: Context) -> None:
    """Inside async with, writes of the task and its children are fenced by themselves; others are not stopped."""
    other = await ctx.another()
    outside = asyncio.Event()

    async def bystander() -> None:
        await outside.wait()
        await ctx.store.save_todos("a", samples.todos("by the way"))

    watcher = asyncio.ensure_future(bystander())
    async with ctx.store.acquire_agent_lock("a", ttl_ms=_LONG_MS) as lease:
        await ctx.store.save_messages("a", samples.messages(1))
        await lease.release()
        taken = await other.acquire_agent_lock("a")
        await ctx.raises(LockLostError, ctx.store.save_messages("a", []), "a save inside, after the lease was lost")
        child = asyncio.ensure_future(ctx.store.append_event("a", samples.event(1)))
        await ctx.raises(LockLostError, _take(child), "an append by a child task")
        await ctx.store.save_messages("b", samples.messages(1))
        outside.set()
        await watcher
    ctx.equal(await ctx.store.load_messages("a"), samples.messages(1), "the messages")
    ctx.equal(await ctx.store.load_todos("a"), samples.todos("by the way"), "the todos of a task without the lock")
    await taken.release()
    await ctx.store.save_messages("a", [])


@check("LOCK-5", needs=_E, under=(Dimension.CHANGES,))
async def every_write_inside_async_with_is_fenced(ctx: Context) -> None:
    """Inside async with, once the lease is lost, no write to its agent is done, of whatever kind: none changes
    anything.
    """
    store, other = ctx.store, await ctx.another()
    await fill(store, "a")
    before = await portrait(store, "a")
    ctx.true(not missing_kinds(before), "there must be something of every kind before the lease is lost")
    async with store.acquire_agent_lock("a", ttl_ms=_LONG_MS) as lease:
        await lease.release()
        taken = await other.acquire_agent_lock("a")
        for name, write in _writes(store).items():
            await ctx.raises(LockLostError, write(), f"{name} inside, after the lease was lost")
    await taken.release()
    ctx.equal(await portrait(store, "a"), before, "the agent after writes that were refused")


def _writes(store: ExtendedStore) -> dict[str, Callable[[], Awaitable[object]]]:
    """A call of every method that writes to the agent; each call changes the agent."""
    return {
        "save_messages": lambda: store.save_messages("a", []),
        "append_messages": lambda: store.append_messages("a", samples.messages(1)),
        "save_tool_call_records": lambda: store.save_tool_call_records("a", []),
        "upsert_tool_call_records": lambda: store.upsert_tool_call_records("a", [samples.tool_call(7)]),
        "save_turn": lambda: store.save_turn("a", append=samples.messages(1)),
        "save_todos": lambda: store.save_todos("a", samples.todos("y")),
        "append_event": lambda: store.append_event("a", samples.event(70)),
        "append_events": lambda: store.append_events("a", samples.events(2, 80)),
        "save_history_window": lambda: store.save_history_window("a", samples.window("w-7")),
        "save_compression_record": lambda: store.save_compression_record("a", samples.compression("c-7")),
        "save_recovered_file": lambda: store.save_recovered_file("a", samples.recovered("f-7")),
        "save_media_cache": lambda: store.save_media_cache("a", []),
        "save_snapshot": lambda: store.save_snapshot("a", samples.snapshot("s-7")),
        "save_info": lambda: store.save_info("a", samples.info("a", template_id="z")),
        "delete_many": lambda: store.delete_many(agent_id="a"),
        "delete": lambda: store.delete("a"),
    }


@check("LOCK-3", "LOCK-4", needs=_E, under=(Dimension.ORDERS,))
async def a_lost_lease_says_so(ctx: Context) -> None:
    """A lease that has ended, by its time or by release, is not renewed: the renewal raises, and then the lease says
    that it is lost. The lease of the next holder is not lost.
    """
    other = await ctx.another()
    expired = await ctx.store.acquire_agent_lock("a", ttl_ms=60)
    held = await other.acquire_agent_lock("a", wait_ms=WAIT_MS)
    released = await ctx.store.acquire_agent_lock("b")
    ctx.equal((released.agent_id, released.is_lost), ("b", False), "agent and is_lost of a new lease")
    await released.release()
    for lease, what in ((expired, "that was superseded"), (released, "that was released")):
        await ctx.raises(LockLostError, lease.renew(), f"renewing a lease {what}")
        ctx.equal(lease.is_lost, True, f"is_lost of a lease {what}, after its renewal was refused")
    await held.renew()
    ctx.equal(held.is_lost, False, "is_lost of the lease that is held")
    await held.release()


@check("LOCK-5", "QRY-1", needs=_E, absence_ok=True, under=(Dimension.NUMBERS, Dimension.LOOKALIKES))
async def bad_arguments_of_locks_are_refused(ctx: Context) -> None:
    """A time to live or a wait that makes no sense, and a fence that is none or for another agent, are refused."""
    bad_times: list[dict[str, Any]] = [
        {"ttl_ms": 0},
        {"ttl_ms": -5},
        {"ttl_ms": "30"},
        {"ttl_ms": 1.5},
        {"wait_ms": -1},
        {"wait_ms": None},
    ]

    async def lock(times: dict[str, Any]) -> None:
        await ctx.store.acquire_agent_lock("a", **times)

    for bad in bad_times:
        await ctx.raises(InvalidArgumentError, lock(bad), f"acquire_agent_lock({bad})")
    lease = await ctx.store.acquire_agent_lock("a")
    await ctx.raises(InvalidArgumentError, ctx.store.save_messages("b", [], fence=lease), "the lease of another agent")
    fake = ctx.store.save_messages("a", [], fence=5)  # type: ignore[arg-type]
    await ctx.raises(InvalidArgumentError, fake, "a fence that is no lease")
    await lease.release()
