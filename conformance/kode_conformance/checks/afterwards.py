"""OPS-1, OPS-3, OPS-12: what a store reports about itself after failed calls, many calls and calls at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias

from kode_conformance.checks.contents import CORE, Ears, marked_writes
from kode_conformance.checks.isolation import troubled
from kode_conformance.context import Context, Unverified
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.kills.writes import WRITES
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_conformance.values.canaries import overheard, told_by
from kode_core.errors import (
    InvalidArgumentError,
    KodeError,
    OutcomeUnknownError,
    StorageError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED
_Calls: TypeAlias = dict[str, Callable[[], Awaitable[Any]]]


# --- health -----------------------------------------------------------------------------------------------------------


async def _failures(ctx: Context, store: ExtendedStore) -> AsyncIterator[tuple[str, Awaitable[object]]]:
    """Calls that fail, or are given up, through no fault of the backend's, and what they are."""
    lease = await store.acquire_agent_lock("lost")
    await lease.release()
    held = await ctx.store.acquire_agent_lock("held", ttl_ms=600_000)
    yield "a wrong argument", store.load_messages("")
    yield "a wrong filter", store.query_sessions(nonsense=1)  # type: ignore[call-arg]
    yield "a value that cannot be stored", store.save_todos("a", samples.todos("\ud83d\ude00"))
    yield "an info of another agent", store.save_info("a", samples.info("b"))
    yield "a write under an ended lease", store.append_messages("lost", samples.messages(1), fence=lease)
    yield "a lock that is held", store.acquire_agent_lock("held")
    yield "an ended lease that is renewed", lease.renew()
    yield "a fork of nobody", store.batch_fork("nobody", 1)
    (ctx.folder / "file").write_text("a file of somebody else")
    yield "a backup onto a file", store.backup(ctx.folder / "file")
    yield "a call that was cancelled", _cancelled(store)
    await held.release()
    if ctx.harness.has("corrupt"):
        await ctx.store.save_messages("damaged", samples.messages(1))
        await ctx.harness.corrupt(ctx.handle, "damaged")
        yield _DAMAGED, store.load_messages("damaged")


async def _cancelled(store: ExtendedStore) -> None:
    call = asyncio.ensure_future(store.save_messages("cancelled", samples.messages(50)))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    raise StoreTimeoutError("it was cancelled")


_DAMAGED: Final = "a damaged record"
"""A store that keeps records twice may give the sound copy."""
_ENGINE_ERRORS: Final = (StoreUnavailableError, OutcomeUnknownError, StoreTimeoutError)


@check("OPS-1", needs=_E, under=(Dimension.CHANGES, Dimension.INTERRUPTIONS))
async def a_failure_that_ended_is_no_illness(ctx: Context) -> None:
    """A store is healthy again after any call that failed: for its arguments, for a lease, for a damaged record,
    because it was cancelled, or because the engine failed for a moment. The health report describes the present.
    """
    store = await ctx.another()
    async for name, call in _failures(ctx, store):
        for number, again in enumerate((call, *(_repeat(store) for _ in range(2)))):
            (end,) = await asyncio.gather(again, return_exceptions=True)
            is_refused = isinstance(end, (KodeError, ValueError)) or name == _DAMAGED
            ctx.true(number or is_refused, f"{name} must be refused; it gave {end!r}")
        await _see_health(ctx, store, f"after {name} and two wrong arguments")
    try:
        store, trouble = await troubled(ctx)
    except Unverified:
        return
    for kind in _ENGINE_ERRORS:
        for write in in_time(ctx, WRITES):
            trouble.failing = {"bad": kind("it failed in the engine")}
            (end,) = await asyncio.gather(write.act(store, "bad"), return_exceptions=True)
            ctx.true(isinstance(end, StorageError), f"{write.name} that fails in the engine gave {end!r}")
            trouble.failing = {}
            await _see_health(ctx, store, f"after {write.name} raised {type(end).__name__}, which is over")


def _repeat(store: ExtendedStore) -> Awaitable[object]:
    return store.load_messages("")


async def _see_health(ctx: Context, store: ExtendedStore, case: str) -> None:
    status = await store.health_check()
    ctx.true(status.healthy, f"{case}, the store is not healthy: {status}")


# --- numbers ----------------------------------------------------------------------------------------------------------

_LOADS: Final = 1_501
_ERRORS: Final = 1_101
_AT_ONCE: Final = 50
_SLOW_S: Final = 0.06


@check("OPS-3", needs=_E, absence_ok=True, under=(Dimension.ITEMS, Dimension.COSTS))
async def thousands_of_calls_are_counted(ctx: Context) -> None:
    """Each of thousands of calls is counted, and each that fails as an error; the longest stays the maximum and the
    shortest the minimum, however many come after it, and percentiles are between them.
    """
    store, slow_ms = await _slow_first(ctx)
    before = (await store.get_metrics()).operations
    loads = 0
    for start in in_time(ctx, range(0, _LOADS, _AT_ONCE)):
        count = min(_AT_ONCE, _LOADS - start)
        await asyncio.gather(*(store.load_todos("nobody") for _ in range(count)))
        loads += count
    for _ in range(_ERRORS):
        await ctx.raises(InvalidArgumentError, store.load_todos(""), "an empty id")
    metrics = await store.get_metrics()
    counted = metrics.operations.loads - before.loads, metrics.operations.errors - before.errors
    ctx.equal(
        counted, (loads, _ERRORS), f"loads and errors counted after {loads} loads and {_ERRORS} that were refused"
    )
    p = metrics.performance
    ctx.true(
        p.max_latency_ms >= slow_ms,
        f"max_latency_ms is {p.max_latency_ms:.2f} after {loads} quick calls; the first took {slow_ms:.2f} ms",
    )
    ordered = 0 < p.min_latency_ms <= p.p50_latency_ms <= p.p99_latency_ms <= p.max_latency_ms
    ctx.true(ordered and p.min_latency_ms <= p.avg_latency_ms <= p.max_latency_ms, f"latencies out of order: {p}")


async def _slow_first(ctx: Context) -> tuple[ExtendedStore, float]:
    """A store whose first load was slow, and how many milliseconds it took at least; 0 where none can be slowed."""
    try:
        store, trouble = await troubled(ctx)
    except Unverified:
        return ctx.store, 0.0
    trouble.hanging = {"slow"}
    call = asyncio.ensure_future(store.load_todos("slow"))
    with suppress(TimeoutError):
        async with ctx.within():
            while not (trouble.under_way or call.done()):
                await asyncio.sleep(0.001)
    begun = time.monotonic()
    await asyncio.sleep(_SLOW_S)
    waited = time.monotonic() - begun
    trouble.let_go.set()
    await call
    return store, waited * 1000


# --- contents ---------------------------------------------------------------------------------------------------------


@check("OPS-12", needs=_E, under=(Dimension.COMPANY, Dimension.DAMAGE))
async def errors_at_once_tell_nothing_of_each_other(ctx: Context) -> None:
    """No error and no log tells the contents of a record, of the failed call or of another, when writes of every kind,
    for several agents, are called at once and some or all of them fail.
    """
    ears = Ears()
    with overheard([CORE, *ctx.harness.code_of(ctx.store)]) as logged:
        store = await ctx.another()
        lost = await store.acquire_agent_lock("a")
        await lost.release()
        calls: _Calls = {}
        for write in marked_writes():
            calls[f"{write.name} under an ended lease"] = partial(write.act, store, "a", fence=lost)
            if "info" not in write.name:
                calls[write.name] = partial(write.act, store, "b")
        await _all_at_once(ctx, ears, calls)
        await _fail_in_the_engine(ctx, ears)
        await ctx.close(store)
    ctx.true(bool(ears.heard), "no call failed, though its lease had ended")
    ears.hear("a log", *logged)
    ears.judge(ctx)


async def _all_at_once(ctx: Context, ears: Ears, calls: _Calls) -> None:
    """Make all calls at once, in some order and in the reverse, and hear their errors."""
    names = list(calls)
    ctx.rng.shuffle(names)
    for order in (names, names[::-1]):
        ends = await asyncio.gather(*(calls[name]() for name in order), return_exceptions=True)
        for name, end in zip(order, ends, strict=True):
            if isinstance(end, BaseException):
                ears.hear(f"the error of {name}, called at once with others,", told_by(end))


async def _fail_in_the_engine(ctx: Context, ears: Ears) -> None:
    try:
        store, trouble = await troubled(ctx)
    except Unverified:
        return
    writes = marked_writes()
    for kind in _ENGINE_ERRORS:
        trouble.failing = {"a": kind("it failed in the engine")}
        calls: _Calls = {w.name: partial(w.act, store, "a") for w in writes}
        calls |= {f"{w.name} of another": partial(w.act, store, "b") for w in writes if "info" not in w.name}
        await _all_at_once(ctx, ears, calls)
    trouble.failing = {}
