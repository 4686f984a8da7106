"""EVT-5, EVT-7, QRY-6 and OPS-14: the part of long logs and lists that streams hold, at first and later."""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NamedTuple

from kode_conformance.context import Context, Unverified
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.costs import collected
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples

_COUNT: Final = {Tier.QUICK: 6_000, Tier.STANDARD: 20_000, Tier.THOROUGH: 50_000}
"""How many small records there are."""
_LEAST: Final = 4_000
"""With fewer records, a held page cannot be told from a held list."""
_AGENTS: Final = 16
_SESSIONS: Final = 4_000
_SESSION_SIZE: Final = 1_500
"""A session has 2,000 characters; the store may hold its knowledge of every agent in the meantime."""
_TEXT: Final = "x" * 400
_BYTES_EACH: Final = 350
"""Less than a record takes, however it is held: a page of a thousand, read and decoded, takes less than all."""
_EVERY: Final = 50

_Open = Callable[[], AsyncIterator[Any]]


class _Stream(NamedTuple):
    """A stream of many records.

    Attributes:
        open: begins it.
        total: how many records it gives.
        is_endless: it is given up behind its last record.
        to_its_end: it is read to its end in every tier, and not only in the last.
        size: less than a record takes in memory.
        of: how many records it has to go through, if that is more.
    """

    open: _Open
    total: int
    is_endless: bool = False
    to_its_end: bool = False
    size: int = _BYTES_EACH
    of: int = 0


async def _see(ctx: Context, name: str, stream: _Stream) -> None:
    """Check that the stream holds a page: at its first record, and no more later."""
    await _leave(stream.open())  # an index of where the records are may be made once
    taken, held = await _first(stream.open())
    count = max(stream.of, stream.total)
    ctx.equal(taken, 1, f"how many records the beginning of {name} gave")
    ctx.true(
        held <= count * stream.size,
        f"{name} holds {held:,} bytes when it has given the first of {count:,} records: all of them, not a page",
    )
    if ctx.settings.tier < Tier.THOROUGH and not stream.to_its_end:
        return
    for _ in range(4):  # the store itself may remember what it read, once, or tidy up meanwhile
        counts = await _blocks(stream)
        if counts.grown <= stream.total // 4:
            break
    ctx.equal(counts.taken, stream.total, f"how many records {name} gave")
    ctx.true(
        counts.grown <= stream.total // 4,
        f"{name} holds {counts.grown:,} objects more in the second half of {stream.total:,} records than in the first",
    )


async def _leave(stream: AsyncIterator[Any]) -> int:
    """Take the first record and give the stream up."""
    taken = 0
    async for _ in stream:
        taken += 1
        break
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()
    return taken


async def _first(stream: AsyncIterator[Any]) -> tuple[int, int]:
    """Take the first record; return the most memory that this took."""
    gc.collect()
    tracemalloc.start()
    try:
        first = tracemalloc.get_traced_memory()[0]
        taken = await _leave(stream)
        return taken, tracemalloc.get_traced_memory()[1] - first
    finally:
        tracemalloc.stop()


class _Blocks(NamedTuple):
    """The number of records that a stream gave, and by how many objects its minimum grew from one half to the next."""

    taken: int
    grown: int


async def _blocks(stream: _Stream) -> _Blocks:
    """Take all records, and count the objects that there are meanwhile.

    They rise and fall with each page; what stays in spite of that is the least of a half.
    """
    least = [sys.maxsize, sys.maxsize]
    taken = 0
    records = stream.open()
    with collected():
        async for _ in records:
            taken += 1
            half = 2 * taken > stream.total
            if taken % _EVERY == 0 and taken * 5 > stream.total:
                gc.collect()
                least[half] = min(least[half], sys.getallocatedblocks())
            if taken == stream.total and stream.is_endless:
                break
    close = getattr(records, "aclose", None)
    if close is not None:
        await close()
    return _Blocks(taken, least[1] - least[0])


async def _in_steps(ctx: Context, count: int, write: Callable[[int], Any], step: int, least: int = _LEAST) -> int:
    """Write records, *step* at a time, as many of *count* as there is time for.

    Raises:
        Unverified: the store is too slow for enough of them.
    """
    written = 0
    for start in in_time(ctx, range(0, count, step)):
        await write(start)
        written = start + step
    if written < min(count, least):
        raise Unverified(f"the store is too slow to write the {_LEAST} records that this needs in the time of the tier")
    return written


@check("EVT-5", "EVT-7", "OPS-14", tier=Tier.STANDARD, under=(Dimension.COSTS, Dimension.ITEMS, Dimension.INSTANCES))
async def a_log_is_streamed_whatever_is_asked_of_it(ctx: Context) -> None:
    """A reader or follower of thousands of events holds a page of them: from the start, behind a seq, behind an offset,
    of one channel, in the instance that wrote them and in another.
    """

    async def append(start: int) -> None:
        channels = ("progress", "progress", "monitor", "progress")
        events = [samples.event(i, channels[i % 4], text=_TEXT) for i in range(start, start + 500)]
        await ctx.store.append_events("a", events)

    count = await _in_steps(ctx, _COUNT[ctx.settings.tier], append, 500)
    other = await ctx.another()
    first = await _first_offset(other.read_events("a"))
    await ctx.store.append_event("a", samples.event(10**6, "control"))
    count += 1
    streams: dict[str, _Stream] = {
        "read_events": _Stream(lambda: other.read_events("a"), count, to_its_end=True),
        "read_events by the instance that wrote them": _Stream(lambda: ctx.store.read_events("a"), count),
        "read_events since a seq": _Stream(lambda: other.read_events("a", since=samples.event(9).bookmark), count - 10),
        "read_events after an offset": _Stream(lambda: other.read_events("a", after_offset=first), count - 1),
        "read_events of a channel": _Stream(lambda: other.read_events("a", channel="progress"), (count - 1) * 3 // 4),
        "read_events of a channel whose only event is the last": _Stream(
            lambda: other.read_events("a", channel="control"), 1, of=count
        ),
        "follow_events": _Stream(lambda: other.follow_events("a"), count, is_endless=True, to_its_end=True),
    }
    for name, stream in streams.items():
        await _see(ctx, name, stream)


async def _first_offset(stream: AsyncIterator[Any]) -> int:
    async for event in stream:
        return int(event.offset)
    return 0


@check("QRY-6", "OPS-14", needs=Capability.QUERYABLE, tier=Tier.STANDARD, under=(Dimension.COSTS, Dimension.ITEMS))
async def lists_are_streamed_whatever_is_asked_of_them(ctx: Context) -> None:
    """An iterator over thousands of messages or tool calls holds a page of them, in either order, with a filter and
    without.
    """
    each = _COUNT[ctx.settings.tier] // _AGENTS

    async def save(agent: int) -> None:
        messages = [samples.message(text=f"{i}{_TEXT}") for i in range(each)]
        await ctx.store.save_messages(f"a{agent}", messages)
        calls = [samples.tool_call(i, result=f"{i}{_TEXT}") for i in range(each)]
        await ctx.store.save_tool_call_records("b" if agent == 0 else f"b{agent}", calls)

    count = each * await _in_steps(ctx, _AGENTS, save, 1, least=-(-_LEAST // each))
    store = await ctx.another()
    streams: dict[str, _Stream] = {
        "iter_messages": _Stream(lambda: store.iter_messages(), count, to_its_end=True),
        "iter_messages, the oldest first": _Stream(lambda: store.iter_messages(order="asc"), count),
        "iter_messages of a role": _Stream(lambda: store.iter_messages(role="user"), count),
        "iter_tool_calls": _Stream(lambda: store.iter_tool_calls(), count),
        "iter_tool_calls of a name": _Stream(lambda: store.iter_tool_calls(tool_name="search", order="asc"), count),
    }
    for name, stream in streams.items():
        await _see(ctx, name, stream)


@check(
    "QRY-6",
    "OPS-14",
    "LIFE-2",
    needs=Capability.QUERYABLE,
    tier=Tier.STANDARD,
    under=(Dimension.COSTS, Dimension.ITEMS),
)
async def sessions_are_streamed(ctx: Context) -> None:
    """An iterator over thousands of sessions holds a page of them, however they are ordered."""

    async def save(start: int) -> None:
        ids = [f"agt-{i:06d}" for i in range(start, start + 100)]
        infos = (samples.info(a, metadata={"userId": "u", "text": f"{a}{_TEXT * 5}"}) for a in ids)
        await asyncio.gather(*(ctx.store.save_info(info.agent_id, info) for info in infos))

    count = await _in_steps(ctx, _SESSIONS, save, 100)
    store = await ctx.another()
    streams: dict[str, _Stream] = {
        "iter_sessions": _Stream(lambda: store.iter_sessions(), count, to_its_end=True, size=_SESSION_SIZE),
        "iter_sessions of a user": _Stream(
            lambda: store.iter_sessions(user_id="u", order="asc"), count, size=_SESSION_SIZE
        ),
        "iter_sessions by message_count": _Stream(
            lambda: store.iter_sessions(sort_by="message_count"), count, size=_SESSION_SIZE
        ),
    }
    for name, stream in streams.items():
        await _see(ctx, name, stream)
