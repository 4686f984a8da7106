"""OPS-14 and OPS-16: a waiting stream holds one page, and maintenance goes through everything while it holds a part of
it.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from kode_conformance.checks.followers import next_event
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.instruments.patience import SOON_S
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.kinds import kinds
from kode_core.errors import UnsupportedError
from kode_core.model import Timeline
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED
_EVENTS: Final = 2_000
_TEXT: Final = "x" * 2_000
_AGENTS: Final = 32
_EACH: Final = 150
_SIZE: Final = 2 * _EACH * len(_TEXT)
"""The minimum size of an agent, in bytes."""
_STEP: Final = 100


@contextmanager
def _traced() -> Iterator[Callable[[], tuple[int, int]]]:
    """How much memory is held more than at first, and how much it was at most."""
    gc.collect()
    tracemalloc.start()
    first = tracemalloc.get_traced_memory()[0]

    def told() -> tuple[int, int]:
        gc.collect()
        held, peak = tracemalloc.get_traced_memory()
        return held - first, peak - first

    try:
        yield told
    finally:
        tracemalloc.stop()


# --- streams that wait ------------------------------------------------------------------------------------------------


async def _append(ctx: Context, agent_id: str) -> int:
    """Append many events, keep none of them here, and return their number."""
    count = 0
    for start in in_time(ctx, range(0, _EVENTS, _STEP)):
        events = [samples.event(i, text=f"{i}{_TEXT}") for i in range(start, start + _STEP)]
        await ctx.store.append_events(agent_id, events)
        count += _STEP
    return count


_COMPANY: Final = (Dimension.COSTS, Dimension.COMPANY, Dimension.ITEMS)


@check("OPS-14", "EVT-7", needs=Capability.PERSISTENT, tier=Tier.STANDARD, under=_COMPANY)
async def a_slow_follower_holds_a_page(ctx: Context) -> None:
    """While followers of two instances look at one event, thousands are appended, and they hold a page of them; each
    then gets every one of them once.
    """
    other = await ctx.another()
    with _traced() as traced:
        await _append(ctx, "alone")
        alone, _ = traced()
    followers = [store.follow_events("a") for store in (ctx.store, other)]
    await ctx.store.append_event("a", samples.event(-1))
    for follower in followers:
        ctx.equal((await anext(follower)).bookmark.seq, -1, "the event that is followed first")
    with _traced() as traced:
        count = await _append(ctx, "a")
        await asyncio.sleep(0.05)
        held, _ = traced()
    size = count * len(_TEXT)
    ctx.true(
        held - max(0, alone) <= size // 2,
        f"when {count:,} events of {size:,} bytes are appended, two followers that take nothing add "
        f"{held - max(0, alone):,} bytes to what is held",
    )
    for follower in followers:
        seqs = [(await anext(follower)).bookmark.seq for _ in range(count)]
        ctx.equal(seqs, list(range(count)), "the events that are followed in the end")
        await _close(follower)


_MISSED: Final = 2_501


@check("EVT-7", tier=Tier.STANDARD, under=(Dimension.COMPANY, Dimension.ITEMS, Dimension.INSTANCES))
async def a_slow_follower_misses_nothing(ctx: Context) -> None:
    """While followers of two instances look at one event, more are appended than any buffer of theirs holds; each then
    gets every one of them once and in order, whether it waited for the first one or found it there.
    """
    other = await ctx.another()
    followers = [store.follow_events("a") for store in (ctx.store, other) * 2]
    waiting = [asyncio.ensure_future(anext(follower)) for follower in followers[:2]]
    await asyncio.sleep(0.05)
    await ctx.store.append_event("a", samples.event(-1))
    for first in (*waiting, *map(anext, followers[2:])):
        ctx.equal((await first).bookmark.seq, -1, "the event that is followed first")
    count = 0
    for start in in_time(ctx, range(0, _MISSED, 100)):
        until = min(start + 100, _MISSED)
        await (ctx.store, other)[start // 100 % 2].append_events("a", [samples.event(i) for i in range(start, until)])
        count = until
    for follower in followers:
        seqs = [(await next_event(ctx, follower, "a slow follower", i + 1)).bookmark.seq for i in range(count)]
        ctx.equal(seqs, list(range(count)), "the events that are followed in the end")
        await _close(follower)


@check("EVT-7", "TURN-1", under=(Dimension.COMPANY, Dimension.INSTANCES, Dimension.CHANGES))
async def every_way_to_append_wakes_followers(ctx: Context) -> None:
    """A waiting follower gets the event of every method that appends, by the same instance or another, without a
    further write.
    """
    stores = (ctx.store, await ctx.another())
    for writer, (i, store) in in_time(ctx, itertools.product(kinds()[Timeline].writers, enumerate(stores))):
        agent_id = f"{writer.method}-{i}"
        await ctx.store.append_event(agent_id, samples.event(1))
        follower = store.follow_events(agent_id)
        await anext(follower)
        waiting = asyncio.ensure_future(anext(follower))
        await asyncio.sleep(0.05)
        await getattr(ctx.store, writer.method)(agent_id, **writer.given(samples.event(2)))
        done = await ctx.ended([waiting])
        waiting.cancel()
        whose = f"another instance, of {writer.method}" if i else f"the same instance, of {writer.method}"
        ctx.true(done, f"who follows an agent in {whose} was not given its event within {SOON_S:g} s")
        ctx.equal(waiting.result().bookmark.seq, 2, f"the event that is followed in {whose}")
        await _close(follower)


async def _close(stream: Any) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()


# --- maintenance ------------------------------------------------------------------------------------------------------


async def _fill(ctx: Context) -> int:
    """Save many agents; how many bytes they have at least."""
    size = 0
    for agent in in_time(ctx, range(_AGENTS)):
        agent_id = f"a{agent:02d}"
        messages = [samples.message(text=f"{i}{_TEXT}") for i in range(_EACH)]
        events = [samples.event(i, text=f"{i}{_TEXT}") for i in range(_EACH)]
        await ctx.store.save_turn(agent_id, messages=messages, info=samples.info(agent_id), events=events)
        size += _SIZE
    return size


async def _issues(store: ExtendedStore) -> int:
    issues: AsyncIterator[object] = store.iter_consistency()
    return len([issue async for issue in issues])


@check(
    "OPS-14",
    "OPS-16",
    needs=_E | Capability.PERSISTENT,
    tier=Tier.STANDARD,
    under=(Dimension.COSTS, Dimension.ITEMS),
)
async def maintenance_holds_a_part(ctx: Context) -> None:
    """A check of everything, a backup, metrics, lists and a delete of all go through many agents and hold a small part
    of them at a time.
    """
    size = await _fill(ctx)
    store = await ctx.another()
    ctx.equal(len(await store.list()), size // _SIZE, "how many agents there are")

    async def backed_up() -> object:
        try:
            return await store.backup(ctx.folder / "copy-of-all")
        except UnsupportedError:
            return None

    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "iter_consistency": lambda: _issues(store),
        "check_consistency": lambda: store.check_consistency(),
        "backup": backed_up,
        "get_metrics": lambda: store.get_metrics(),
        "list": lambda: store.list(),
        "a count of all": lambda: store.query_messages(limit=1, offset=100),
        "delete_many": lambda: store.delete_many(template_id="assistant"),
    }
    for name, call in calls.items():
        with _traced() as traced:
            await call()
            _, peak = traced()
        ctx.true(
            peak <= size // 3,
            f"{name} over agents of {size:,} bytes held {peak:,} bytes at a time",
        )
    ctx.equal(await store.list(), [], "the agents that are left of all")
