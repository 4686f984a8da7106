"""EVT-8 and TURN-2: events that the store numbers, and the offsets of a turn's events."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.clock import clocks_of, is_of_a_clock
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.errors import InvalidArgumentError, InvalidValueError
from kode_core.model import AgentEvent, StoredEvent
from kode_core.protocols import ExtendedStore

_E = Capability.EXTENDED
_D = Dimension
_SIZES = (101, 501, 1_001)
"""The numbers of events that are emitted at once: one more than usual batches have."""
_FEW = (101, 150, 26)
"""The same for a store that is slow."""


async def _all(store: ExtendedStore, agent_id: str = "a") -> list[StoredEvent]:
    return [event async for event in store.read_events(agent_id, after_offset=0)]


@check("EVT-8", needs=_E, under=(_D.ITEMS, _D.COMPANY, _D.NUMBERS, _D.INSTANCES, _D.CHANGES))
async def emitted_events_are_numbered(ctx: Context) -> None:
    """Emits of one instance, one by one, hundreds at once and in lists of up to 1,001 at once, each in one piece,
    continue after the highest seq stored, also when the caller appended a higher one; they return what another instance
    reads.
    """
    store, other = ctx.store, await ctx.another()
    before = await clocks_of(store)
    told = [await store.emit("a", "first", {"n": [1, 1.0, "\0", None]}, channel="monitor"), await store.emit("a", "x")]
    ctx.equal([event.bookmark.seq for event in told], [0, 1], "the seqs of the first events")
    ctx.equal(told[0].event, AgentEvent("monitor", "first", {"n": [1, 1.0, "\0", None]}), "the event that was emitted")
    ctx.equal(told[1].event, AgentEvent("progress", "x", {}), "an event without channel and data")
    of_a_clock = is_of_a_clock(told[0].bookmark.timestamp, before, await clocks_of(store))
    ctx.true(
        of_a_clock, "the timestamp is not the time of the call, neither by this machine's clock nor by the store's"
    )
    begun = time.monotonic()
    told += await asyncio.gather(*(store.emit("a", "delta", {}) for _ in range(300)))
    sizes = _SIZES if time.monotonic() - begun < ctx.settings.pace / 2 else _FEW
    many = [[AgentEvent("progress", "delta", {"list": n})] * size for n, size in enumerate(sizes)]
    told += [event for some in await asyncio.gather(*(store.emit_many("a", one) for one in many)) for event in some]
    ctx.equal(list(await store.emit_many("a", [])), [], "what an empty list of events gives")
    total = 302 + sum(sizes)
    ctx.equal([event.bookmark.seq for event in told], list(range(total)), "the seqs, in the order of the calls")
    ctx.true(all(a.offset < b.offset for a, b in itertools.pairwise(told)), "offsets do not ascend with seqs")
    ctx.equal(await _all(other), told, "the events that another instance reads")
    ctx.equal([event.offset for event in await _all(other)], [event.offset for event in told], "their offsets")
    await store.append_event("a", samples.event(5_000))
    ctx.equal((await store.emit("a", "x")).bookmark.seq, 5_001, "the seq after an event of the caller's own")
    await store.save_turn("a", events=[samples.event(7_000)])
    ctx.equal((await store.emit("a", "x")).bookmark.seq, 7_001, "the seq after a turn with an event")
    await store.delete("a")
    ctx.equal((await store.emit("a", "x")).bookmark.seq, 0, "the seq after the agent was deleted")


@check("EVT-8", "VAL-2", needs=_E, under=(_D.NUMBERS,))
async def refused_emits_write_nothing(ctx: Context) -> None:
    """Events that cannot be stored are refused and use no number; the highest seq has no next one."""
    await ctx.store.emit("a", "x")
    for given in ({"type": 5}, {"data": {"x": float("nan")}}, {"channel": "debug"}, {"data": {5: 1}}):
        call = ctx.store.emit("a", **{"type": "x", **given})  # type: ignore[arg-type]
        await ctx.raises(InvalidArgumentError, call, f"emit with {given}")
    many = [AgentEvent("progress", "x"), AgentEvent("progress", "x", {"x": float("nan")})]
    await ctx.raises(InvalidValueError, ctx.store.emit_many("a", many), "emit_many with NaN")
    await ctx.raises(InvalidArgumentError, ctx.store.emit_many("a", [samples.event(1)]), "emit_many of a Timeline")  # type: ignore[list-item]
    await ctx.raises(InvalidArgumentError, ctx.store.emit("", "x"), "emit for an empty id")
    ctx.equal((await ctx.store.emit("a", "x")).bookmark.seq, 1, "the seq after calls that were refused")
    await ctx.store.append_event("z", samples.event(2**63 - 1))
    await ctx.raises(InvalidArgumentError, ctx.store.emit("z", "x"), "emit after the highest seq")
    ctx.equal(len(await _all(ctx.store, "z")), 1, "how many events there are after the highest seq")


@check("EVT-8", "EVT-1", "EVT-4", needs=_E, under=(_D.COMPANY, _D.INSTANCES, _D.EQUALS))
async def equal_emits_are_all_kept(ctx: Context) -> None:
    """Equal events that two instances emit at the same moments are all stored: none is taken for another's repeat."""
    stores = (ctx.store, await ctx.another())
    told: list[StoredEvent] = []
    for _ in range(40):
        told += await asyncio.gather(*(store.emit("a", "tick", {}) for store in stores))
    ctx.equal(len({event.offset for event in told}), 80, "how many offsets 80 emits returned")
    ctx.equal(len(await _all(ctx.store)), 80, "how many events are stored of 80 equal ones")


@check("EVT-8", "LOCK-5", needs=_E, under=(_D.INSTANCES, _D.ORDERS))
async def emitters_under_the_lock_go_on_after_one_another(ctx: Context) -> None:
    """Two instances that emit in turn, each under the agent's lock, give seqs that ascend, however fast they turn, and
    however the lock is held: by the block of the lease, or by the lease that emit or emit_many is given. So they do if
    one has just emitted without the lock when the other stores a higher seq, and then takes it.
    """
    stores = (ctx.store, await ctx.another())
    for turn in range(8):
        async with stores[turn % 2].acquire_agent_lock("a", wait_ms=20_000):
            for _ in range(3):
                await stores[turn % 2].emit("a", "word", {})
    ctx.equal([event.bookmark.seq for event in await _all(ctx.store)], list(range(24)), "the seqs, by offset")
    for turn, (way, before, stored) in enumerate(itertools.product(_HELD, (False, True), (False, True))):
        store, other = stores[turn % 2], stores[1 - turn % 2]
        if before:
            await _emit_held(store, way, "b")
        else:
            await store.emit("b", "free")
        highest = (await store.emit("b", "free")).bookmark.seq
        if stored:
            await other.append_event("b", samples.event(highest + 50))
        else:
            await other.emit_many("b", [AgentEvent("progress", "word")] * 3)
        bookmark = await other.last_bookmark("b")
        assert bookmark is not None
        seqs = await _emit_held(store, way, "b")
        told = (
            f"the seqs {seqs} of {way}, after a free emit, must follow {bookmark.seq}, stored before the lock was taken"
        )
        ctx.true(bookmark.seq < seqs[0] and seqs == sorted(set(seqs)), told)


_HELD: Final = ("emits in the block", "emits with fence=", "emit_many in the block", "emit_many with fence=")


async def _emit_held(store: ExtendedStore, way: str, agent_id: str) -> list[int]:
    """The seqs of two events that are emitted under a lease that is taken for them."""
    lock = store.acquire_agent_lock(agent_id, ttl_ms=600_000, wait_ms=20_000)
    if "fence" not in way:
        async with lock:
            return await _emit_two(store, agent_id, "many" in way)
    lease = await lock
    try:
        return await _emit_two(store, agent_id, "many" in way, fence=lease)
    finally:
        await lease.release()


async def _emit_two(store: ExtendedStore, agent_id: str, is_many: bool, **given: Any) -> list[int]:
    if is_many:
        told = await store.emit_many(agent_id, [AgentEvent("progress", "word")] * 2, **given)
    else:
        told = [await store.emit(agent_id, "word", **given) for _ in range(2)]
    return [event.bookmark.seq for event in told]


@check("EVT-8", needs=_E, under=(_D.INSTANCES,))
async def an_emitter_sees_what_others_stored_before(ctx: Context) -> None:
    """An emit goes on after what another instance stored more than a second before."""
    other = await ctx.another()
    await ctx.store.emit("a", "x")
    await other.append_event("a", samples.event(900))
    await asyncio.sleep(1.2)
    ctx.equal((await ctx.store.emit("a", "x")).bookmark.seq, 901, "the seq after another instance's event")


@check("TURN-2", "EVT-2", "EVT-4", under=(_D.ITEMS, _D.CHANGES, _D.EQUALS, _D.INSTANCES))
async def a_turn_returns_the_offsets_of_its_events(ctx: Context) -> None:
    """save_turn returns the offset of each event, in the order given, of repeated ones the first; without events it
    returns nothing.
    """
    other = await ctx.another()
    first = list(await ctx.store.save_turn("a", append=[samples.message()], events=samples.events(3)))
    stored = {event.bookmark.seq: event.offset async for event in other.read_events("a")}
    ctx.equal(first, [stored[seq] for seq in range(3)], "the offsets that save_turn returned")
    mixed = [samples.event(9), samples.event(1), samples.event(4), samples.event(0)]
    again = list(await other.save_turn("a", info=samples.info("a"), events=mixed))
    stored = {event.bookmark.seq: event.offset async for event in ctx.store.read_events("a")}
    ctx.equal(again, [stored[seq] for seq in (9, 1, 4, 0)], "the offsets of new and repeated events")
    ctx.equal(again[1::2], [first[1], first[0]], "the offsets of the repeated ones")
    ctx.equal(list(await ctx.store.save_turn("a", append=[samples.message()])), [], "what a turn without events gives")
    ctx.equal(list(await ctx.store.save_turn("a")), [], "what a turn without anything gives")
