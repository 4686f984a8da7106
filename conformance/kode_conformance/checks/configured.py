"""OPS-9, OPS-14: deadlines and limits of memory at the edges of their range, and under a clock that steps."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from kode_conformance.calls.methods import calls_of, drive
from kode_conformance.checks.lifecycle import fill
from kode_conformance.checks.memory import measured
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.clock import clock_off
from kode_conformance.instruments.pace import in_time
from kode_conformance.instruments.patience import SOON_S
from kode_conformance.kills.writes import WRITES, Expected, Write, expected, portrait
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import ConfigurationError, KodeError, StorageError
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED
_LONG: Final = (60_000, 65_537, 2_147_484, 4_294_968, 86_400_000, 2_147_483_647)
"""Minutes, a day, and more than 32 bits hold of microseconds or milliseconds."""
_SHORT: Final = (1, 2, 9)
_LIMITS: Final = (0, 1, 2_000, 2**31, 2**32, 2**53, 2**63 - 1)


@check("OPS-9", needs=_E, under=(Dimension.NUMBERS, Dimension.INTERRUPTIONS))
async def deadlines_of_a_millisecond_and_of_weeks(ctx: Context) -> None:
    """Every call succeeds under a deadline of minutes to weeks. Under one of milliseconds every call ends, with its
    result or an error of this library, a write is whole or absent, and the store can be closed.
    """
    await fill(ctx.store, "model")
    wanted = await portrait(ctx.store, "model")
    for timeout_ms in in_time(ctx, _LONG):
        store = await ctx.another(timeout_ms=timeout_ms)
        try:
            await fill(store, f"a{timeout_ms}")
            found = await portrait(store, f"a{timeout_ms}")
        except KodeError as exc:
            raise Violation(f"a call with a deadline of {timeout_ms} ms raised {exc!r}") from exc
        ctx.equal(found, wanted, f"an agent that was written with a deadline of {timeout_ms} ms")
        lease = await store.acquire_agent_lock("a", ttl_ms=60_000, wait_ms=1)
        await lease.release()
        await ctx.close(store)
    for timeout_ms in in_time(ctx, _SHORT):
        await _see_hasty(ctx, timeout_ms)


async def _see_hasty(ctx: Context, timeout_ms: int) -> None:
    try:
        store = await ctx.another(timeout_ms=timeout_ms)
    except StorageError:  # opening has that deadline, too
        return
    case = f"with a deadline of {timeout_ms} ms"
    await fill(ctx.store, f"a{timeout_ms}")
    calls = {
        name: drive(call, given)
        for name, (call, given) in calls_of(store, f"a{timeout_ms}", str(ctx.folder / f"copy{timeout_ms}")).items()
        if name not in ("delete", "delete_many", "follow_events")  # which goes on until the caller stops
    }
    messages = samples.messages(60, 100)
    calls["a save of sixty messages"] = store.save_messages(f"long{timeout_ms}", messages)
    tasks = {name: asyncio.ensure_future(call) for name, call in calls.items()}
    await ctx.ended(tasks.values())
    for name, task in tasks.items():
        ctx.true(task.done(), f"{name} {case} did not end in {SOON_S:g} s")
        error = task.exception()
        ctx.true(error is None or isinstance(error, KodeError), f"{name} {case} raised {error!r}")
    await asyncio.gather(ctx.close(store), return_exceptions=True)
    ctx.leave(store)
    found = len(await ctx.store.load_messages(f"long{timeout_ms}"))
    is_done = tasks["a save of sixty messages"].exception() is None
    ctx.true(found in ((60,) if is_done else (0, 60)), f"{found} of 60 messages were stored {case}, saved={is_done}")


@check("OPS-14", "MSG-1", needs=_E, tier=Tier.STANDARD, under=(Dimension.NUMBERS, Dimension.CHANGES))
async def a_limit_of_memory_changes_no_answer(ctx: Context) -> None:
    """A store that may remember nothing, a few bytes, or more than there is, does and returns the same as any other."""
    wanted: dict[Write, Expected] = {}
    for number, limit in enumerate(in_time(ctx, _LIMITS)):
        store = await _limited(ctx, limit)
        for write in WRITES[number % 4 :: 4]:
            wanted[write] = wanted.get(write) or await expected(ctx.store, write)
            agent_id = f"{write.name}-{limit}"
            await write.prepare(store, agent_id)
            await write.act(store, agent_id)
            problem = wanted[write].problem(await portrait(store, agent_id), done=True)
            ctx.true(problem is None, f"{write.name} of a store with memory_limit_bytes={limit}: {problem}")
        messages = samples.messages(30)
        for change in (messages, messages[:20], messages[5:20], [*messages[5:19], samples.message(77)], []):
            await store.save_messages("list", change)
            await store.append_messages("list", samples.messages(1, 500))
            case = f"{len(change)} messages and one more with memory_limit_bytes={limit}"
            ctx.equal(await store.load_messages("list"), [*change, samples.message(500)], case)
        await ctx.close(store)


async def _limited(ctx: Context, limit: int) -> ExtendedStore:
    try:
        return await ctx.another(memory_limit_bytes=limit)
    except (ConfigurationError, ValueError, OverflowError) as exc:
        raise Violation(f"a store with memory_limit_bytes={limit} cannot be opened: {exc!r}") from exc


_MB: Final = 2**20
_TEXT: Final = 800_000
_AGENTS: Final = 12
_MOST: Final = 8 * _MB
"""The memory for its cache, and for everything else that a store may hold."""


@check("OPS-14", needs=_E | Capability.PERSISTENT, tier=Tier.STANDARD, under=(Dimension.CLOCKS, Dimension.COSTS))
async def memory_is_bounded_under_any_clock(ctx: Context) -> None:
    """A store whose clock steps back, or ahead, between its writes and loads remembers no more than its limit, and
    loads the saved records.
    """
    store = await ctx.another(memory_limit_bytes=_MB)
    await _written(store, "warm", 0)
    begun = time.monotonic()
    with measured() as memory:
        for hours in (-1, 1):
            for number in in_time(ctx, range(_AGENTS), begun=begun):
                with clock_off(3600.0 * hours * number):
                    await _written(store, f"a{hours}-{number}", number)
            case = f"whose clock stepped {'back' if hours < 0 else 'ahead'} an hour between its writes"
            held = memory.held
            ctx.true(held < _MOST, f"a store with a limit of 1 MB, {case}, holds {held / _MB:.1f} MB")
    ctx.equal((await store.load_messages("a1-0"))[1:], [samples.message(0)], "the end of a list")


async def _written(store: ExtendedStore, agent_id: str, mark: int) -> None:
    text = f"{mark:08d}" * (_TEXT // 8)
    await store.save_messages(agent_id, [samples.message(text=text), samples.message(mark)])
    await store.load_messages(agent_id)
