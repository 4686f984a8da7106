"""Long lists, many agents, many equal records: their allowed costs, and the resources that must not grow."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from kode_conformance.context import Context, Unverified, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.costs import held
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples

_LONG: Final = 10_000
_ENDINGS: Final = 30
"""How often to look for leftovers, with a tenth of a second in between."""


@check("VAL-4", "MSG-2", tier=Tier.STANDARD, under=(Dimension.ITEMS,))
async def ten_thousand_messages(ctx: Context) -> None:
    """A list of ten thousand messages comes back in order, grows at its end, and is replaced by a short one."""
    wanted = samples.messages(_LONG)
    await ctx.store.save_messages("a", wanted)
    ctx.equal(await ctx.store.load_messages("a"), wanted, "ten thousand messages")
    await ctx.store.append_messages("a", samples.messages(2, _LONG))
    other = await ctx.another()
    found = await other.load_messages("a")
    ctx.equal((len(found), found[-1]), (_LONG + 2, samples.message(_LONG + 1)), "how many there are, and the last one")
    await other.save_messages("a", wanted[-3:])
    ctx.equal(await ctx.store.load_messages("a"), wanted[-3:], "the list after a short one was saved")


@check("MSG-5", "EVT-1", tier=Tier.STANDARD, under=(Dimension.COSTS,))
async def an_append_costs_what_it_appends(ctx: Context) -> None:
    """Appending to a long list, and to a long log, takes about as long as to a short one."""

    async def message() -> None:
        await ctx.store.append_messages("a", samples.messages(1))

    async def event() -> None:
        await ctx.store.append_event("a", samples.event(next_seq()))

    seqs = iter(range(10**6, 2 * 10**6))

    def next_seq() -> int:
        return next(seqs)

    short = {call: await _median_seconds(call) for call in (message, event)}
    await ctx.store.append_messages("a", samples.messages(_LONG))
    for start in range(0, _LONG, 1000):
        await ctx.store.append_events("a", samples.events(1000, start))
    for call, before in short.items():
        after = await _median_seconds(call)
        ctx.true(
            after <= 8 * before + 0.02,
            f"appending one {call.__name__} took {before * 1000:.1f} ms, and {after * 1000:.1f} ms to a long list",
        )
    ctx.true(len(await ctx.store.load_messages("a")) > _LONG, "what was appended must be there")


async def _median_seconds(call: Callable[[], Awaitable[None]]) -> float:
    took = []
    for _ in range(15):
        started = time.perf_counter()
        await call()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


@check("EVT-5", tier=Tier.STANDARD, under=(Dimension.COSTS, Dimension.ITEMS))
async def a_long_log_is_read_in_little_memory(ctx: Context) -> None:
    """Reading ten thousand events of 2 KB one after the other holds a small part of them in memory at a time."""
    for start in range(0, _LONG, 500):
        batch = [samples.event(seq, text=f"{seq:08d}" * 250) for seq in range(start, start + 500)]
        await ctx.store.append_events("a", batch)
    store = await ctx.another()
    await store.last_bookmark("a")  # an index of where the events are may be read before
    gc.collect()
    tracemalloc.start()
    try:
        seqs = [event.bookmark.seq async for event in store.read_events("a")]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    ctx.equal(seqs, list(range(_LONG)), "the events")
    ctx.true(peak < 8 * 2**20, f"reading 20 MB of events took {peak / 2**20:.1f} MB of memory")


@check("LIFE-2", "QRY-5", needs=Capability.QUERYABLE, tier=Tier.THOROUGH, under=(Dimension.ITEMS,))
async def ten_thousand_agents(ctx: Context) -> None:
    """Ten thousand agents are listed, paged through and counted, each once."""
    ids = [f"agt-{i:06d}" for i in range(_LONG)]
    for start in range(0, _LONG, 200):
        saves = (
            ctx.store.save_info(a, samples.info(a, created_at=i % 7)) for i, a in enumerate(ids[start : start + 200])
        )
        await asyncio.gather(*saves)
    ctx.equal(await ctx.store.list(), ids, "the agents that are listed")
    ctx.equal(await ctx.store.list("agt-0099"), ids[9900:], "those with a prefix")
    paged: list[str] = []
    page = await ctx.store.query_sessions(limit=1000)
    paged += [session.agent_id for session in page]
    while page.next_cursor is not None and len(paged) <= len(ids):
        page = await ctx.store.query_sessions(limit=1000, cursor=page.next_cursor)
        paged += [session.agent_id for session in page]
    ctx.equal(sorted(paged), ids, "the agents on all pages")
    streamed = [session.agent_id async for session in ctx.store.iter_sessions()]
    ctx.equal(streamed, paged, "the agents that are streamed")


@check("OPS-9", tier=Tier.STANDARD, stochastic=True, under=(Dimension.COSTS, Dimension.LENGTHS))
async def a_large_save_does_not_stop_the_loop(ctx: Context) -> None:
    """While 1 MiB is saved and loaded, other tasks get their turn within 250 ms: otherwise no deadline holds."""
    best = 60.0
    for i in range(_TRIES):
        large = samples.message(text=f"{i}" + "x" * 2**20)
        watch = asyncio.ensure_future(_longest_pause())
        await asyncio.sleep(0.01)
        await ctx.store.save_messages("a", [large])
        found = await ctx.store.load_messages("a")
        watch.cancel()
        (pause,) = await asyncio.gather(watch)
        best = min(best, pause)
        ctx.equal(found, [large], "the message of 1 MiB")
        if best <= _PAUSE_S:
            return
    raise Violation(f"in the best of {_TRIES} tries the event loop stood still for {best * 1000:.0f} ms")


_PAUSE_S: Final = 0.25
_TRIES: Final = 20
"""On a busy machine this process itself may stand still in most of them."""


async def _longest_pause() -> float:
    """The longest time between two turns, until cancelled."""
    longest = 0.0
    last = time.perf_counter()
    with suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
    return max(longest, time.perf_counter() - last)


@check("OPS-5", needs=Capability.EXTENDED, tier=Tier.STANDARD, under=(Dimension.COSTS,))
async def opening_and_closing_leaves_nothing(ctx: Context) -> None:
    """Stores that were opened, used and closed, again and again, leave no descriptors, threads or tasks."""

    async def cycle() -> None:
        store = await ctx.another()
        await store.append_messages("a", samples.messages(1))
        await asyncio.gather(store.load_messages("a"), store.load_info("a"), store.list())
        await ctx.close(store)

    for _ in range(5):
        await cycle()
    opened, grown = 5, {}
    for _ in range(2):  # a pool of threads may still fill in the first round, and is full in the second
        before = held()
        for _ in range(200 if ctx.settings.tier is Tier.THOROUGH else 50):
            await cycle()
            opened += 1
        for _ in range(int(_ENDINGS * max(1.0, ctx.harness.patience))):  # threads of drivers end a moment after close
            await asyncio.sleep(0.1)
            grown = {name: (before[name], count) for name, count in held().items() if count > before[name] + 5}
            if not grown:
                break
        if not grown:
            break
    ctx.equal(len(await ctx.store.load_messages("a")), opened, "what the stores appended that were closed")
    ctx.equal(grown, {}, "what grew, from and to")


@check("MSG-5", "SNAP-1", tier=Tier.STANDARD, under=(Dimension.COSTS, Dimension.EQUALS))
async def the_same_again_does_not_pile_up(ctx: Context) -> None:
    """Saving the same values a thousand times does not store them a thousand times."""
    if not ctx.harness.has("raw_dump"):
        raise Unverified("the harness has no hook raw_dump")
    text = "x" * 10_000
    snapshot = samples.snapshot().replace(messages=[samples.message(text=text)])
    history = [samples.message(text=text)]
    for _ in range(500):
        await ctx.store.save_messages("a", history)
        await ctx.store.save_snapshot("a", snapshot)
    await ctx.close(ctx.store)
    size = len(await ctx.harness.raw_dump(ctx.handle))
    ctx.true(size < 3_000_000, f"10 KB that were saved 1,000 times take {size} bytes")
