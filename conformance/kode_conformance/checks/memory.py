"""OPS-14: how much a store remembers, and how much it holds while it streams."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.protocols import ExtendedStore

_E = Capability.EXTENDED
_MB: Final = 2**20
_LIMIT: Final = _MB
_SLACK: Final = 6 * _MB
"""The memory that a store may hold besides: buffers, pages, an index of its records."""
_AGENTS: Final = 32
_TEXT: Final = 400_000


class _Memory:
    """How much memory Python objects take, beyond what they took at first."""

    def __init__(self) -> None:
        self.mark()

    def mark(self) -> None:
        """Count from now on."""
        gc.collect()
        self._first = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()

    @property
    def held(self) -> int:
        """The memory held now."""
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self._first

    @property
    def peak(self) -> int:
        """The most that was held at a time."""
        return tracemalloc.get_traced_memory()[1] - self._first


@contextmanager
def measured() -> Iterator[_Memory]:
    gc.collect()
    tracemalloc.start()
    try:
        yield _Memory()
    finally:
        tracemalloc.stop()


async def _write(store: ExtendedStore, agent_id: str, mark: int) -> None:
    """Write large records of both lists, and keep none of them here."""
    text = f"{mark:08d}" * (_TEXT // 8)
    await store.save_messages(agent_id, [samples.message(text=text), samples.message(mark)])
    await store.save_tool_call_records(agent_id, [samples.tool_call(mark, result={"text": text[1:], "n": [mark]})])


@check("OPS-14", needs=_E | Capability.PERSISTENT, tier=Tier.STANDARD, under=(Dimension.COSTS, Dimension.ITEMS))
async def what_is_remembered_is_bounded(ctx: Context) -> None:
    """A store that wrote, changed and read many agents with large records holds no more of them than its limit, whether
    or not they were written by it.
    """
    writer, reader = await ctx.another(memory_limit_bytes=_LIMIT), await ctx.another(memory_limit_bytes=_LIMIT)
    await _write(writer, "warm", 0)
    await reader.load_messages("warm")
    with measured() as memory:
        for number in range(_AGENTS):
            await _write(writer, f"a{number}", number)
            if number % 4 == 0:
                await writer.append_messages(f"a{number}", samples.messages(1))
        _see(ctx, memory.held, f"after writing {_AGENTS} agents of 0.8 MB")
        for number in range(_AGENTS):
            await reader.load_messages(f"a{number}")
            await reader.load_tool_call_records(f"a{number}")
        _see(ctx, memory.held, f"after reading {_AGENTS} agents of 0.8 MB, too,")
        for number in range(_AGENTS):
            await reader.append_messages(f"a{number}", samples.messages(1))
        _see(ctx, memory.held, "after appending to all of them")
    ctx.equal((await reader.load_messages("a3"))[1:], [samples.message(3), samples.message(0)], "the end of a list")


def _see(ctx: Context, held: int, when: str) -> None:
    ctx.true(
        held < _LIMIT * 2 + _SLACK,
        f"{when} two stores with a limit of {_LIMIT / _MB:g} MB each hold {held / _MB:.1f} MB",
    )


@check("OPS-14", "LIFE-3", needs=_E | Capability.PERSISTENT, under=(Dimension.COSTS, Dimension.CHANGES))
async def what_was_deleted_is_forgotten(ctx: Context) -> None:
    """A store whose agents were deleted, by itself one by one or many at once, holds nothing of them."""
    await _write(ctx.store, "warm", 0)
    await ctx.store.delete("warm")
    with measured() as memory:
        for number in range(_AGENTS // 2):
            await _write(ctx.store, f"a{number}", number)
            await ctx.store.save_info(f"a{number}", samples.info(f"a{number}"))
        ctx.equal(len(await ctx.store.load_messages("a1")), 2, "the messages of an agent before it is deleted")
        for number in range(_AGENTS // 4):
            await ctx.store.delete(f"a{number}")
        await ctx.store.delete_many(template_id="assistant")
        ctx.true(memory.held < _SLACK, f"after all agents were deleted the store holds {memory.held / _MB:.1f} MB")


@check("OPS-14", "QRY-6", "EVT-7", needs=_E, tier=Tier.STANDARD, under=(Dimension.COSTS, Dimension.ITEMS))
async def iterators_hold_a_page(ctx: Context) -> None:
    """Streaming 10 MB of messages, of events as one follows them, and of a check of everything holds a small part of it
    at a time.
    """
    for agent in range(10):
        await ctx.store.save_messages(f"a{agent}", [samples.message(text=f"{i:08d}" * 125) for i in range(1000)])
        await ctx.store.append_events("log", [samples.event(agent * 1000 + i, text="x" * 1000) for i in range(1000)])
    store = await ctx.another()
    await store.last_bookmark("log")
    streams: dict[str, Callable[[], AsyncIterator[Any]]] = {
        "iter_messages": store.iter_messages,
        "follow_events": lambda: store.follow_events("log"),
        "iter_consistency": store.iter_consistency,
    }
    for name, stream in streams.items():
        await _first(stream(), 1) if name != "iter_consistency" else None
        with measured() as memory:
            count = await _first(stream(), 10_000)
            peak = memory.peak
        ctx.equal(count, 0 if name == "iter_consistency" else 10_000, f"how many records {name} gave")
        ctx.true(peak < 7 * _MB, f"{name} over 20 MB held {peak / _MB:.1f} MB at a time")


async def _first(stream: AsyncIterator[Any], count: int) -> int:
    """Take so many records, or all there are, and keep none."""
    taken = 0
    async for _ in stream:
        taken += 1
        if taken == count:
            break
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()
    return taken
