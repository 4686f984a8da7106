"""EVT: the event log."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import InvalidArgumentError
from kode_core.model import Bookmark, StoredEvent, Timeline
from kode_core.protocols import ExtendedStore


async def _all(store: ExtendedStore, agent: str = "a", **how: Any) -> list[StoredEvent]:
    return [event async for event in store.read_events(agent, **how)]


async def _seqs(store: ExtendedStore, **how: Any) -> list[int]:
    return [event.bookmark.seq for event in await _all(store, **how)]


@check("EVT-1", under=(Dimension.COMPANY, Dimension.INSTANCES, Dimension.ORDERS))
async def concurrent_appends_lose_nothing(ctx: Context) -> None:
    """No append of hundreds in flight at once, over two instances and out of order, is lost or doubled."""
    stores = [ctx.store, await ctx.another()]
    seqs = [(i * 37) % 400 for i in range(400)]
    offsets = await asyncio.gather(*(stores[i % 2].append_event("a", samples.event(s)) for i, s in enumerate(seqs)))
    ctx.equal(len(set(offsets)), 400, "how many offsets there are")
    for store in stores:
        ctx.equal(await _seqs(store), list(range(400)), "the seqs in order")


@check("EVT-1", needs=Capability.PERSISTENT, under=(Dimension.INSTANCES,))
async def events_survive_a_restart(ctx: Context) -> None:
    """Events are stored, exactly once each, after the store was closed and opened again."""
    await ctx.store.append_events("a", samples.events(10))
    await ctx.reopen()
    ctx.equal(await _all(ctx.store), samples.events(10), "the events")
    await ctx.store.append_event("a", samples.event(10))
    await ctx.reopen()
    ctx.equal(await _seqs(ctx.store), list(range(11)), "the seqs")


@check(
    "EVT-1", "EVT-2", needs=Capability.CROSS_PROCESS, tier=Tier.STANDARD, under=(Dimension.PROCESSES, Dimension.COMPANY)
)
async def appends_of_several_processes(ctx: Context) -> None:
    """No event of several processes is lost, and every process is told the offset that is stored."""
    processes = [await ctx.process("append_events", "a", start, 60, 10) for start in (0, 1000, 2000)]
    reports = [line for process in processes for line in await process.lines()]
    stored = {event.bookmark.seq: event.offset for event in await _all(ctx.store)}
    ctx.equal(len(stored), 180, "how many events there are")
    ctx.true(all(stored[line["seq"]] == line["offset"] for line in reports), "offsets must be the ones that were told")


@check("EVT-2", under=(Dimension.ORDERS, Dimension.CHANGES))
async def offsets_grow_and_never_come_again(ctx: Context) -> None:
    """Offsets grow in the order of commit, differ, and do not come again after a delete."""
    seen = [await ctx.store.append_event("a", samples.event(s)) for s in (5, 3, 9, 1)]
    ctx.equal(seen, sorted(set(seen)), "the offsets in the order of the appends")
    ctx.equal([e.offset for e in await _all(ctx.store, after_offset=0)], seen, "the offsets in the order of commit")
    await ctx.store.delete("a")
    again = await ctx.store.append_event("a", samples.event(5))
    ctx.true(again > max(seen), f"an offset after a delete must be new: {again} after {max(seen)}")
    for _ in range(2):  # an instance that was opened after the delete, and has seen nothing
        await ctx.store.delete("a")
        opened_since = await ctx.another()
        late = await opened_since.append_event("a", samples.event(5))
        ctx.true(
            late > again, f"an offset after a delete, by an instance opened since, must be new: {late} after {again}"
        )
        again = late
        await ctx.store.delete("a")
        await ctx.close(opened_since)
        late = await (await ctx.another()).append_event("a", samples.event(5))
        ctx.true(late > again, f"an offset after a delete, and after the close of who wrote it, must be new: {late}")
        again = late


@check("EVT-2", under=(Dimension.INSTANCES, Dimension.CHANGES))
async def offsets_go_on_after_a_restart(ctx: Context) -> None:
    """Offsets go on where they were after the store was closed everywhere and opened again, also after a delete, in a
    store that keeps its data.
    """
    first = await ctx.store.append_events("a", samples.events(3))
    await ctx.reopen()
    offsets = [e.offset for e in await _all(ctx.store)]
    if not offsets and "PERSISTENT" in ctx.harness.lacks:
        return
    ctx.equal(offsets, list(first), "the offsets after a restart")
    last = await ctx.store.append_event("a", samples.event(3))
    ctx.true(last > max(first), f"{last} must be above {max(first)}")
    for times in range(3):  # all events gone, nothing else written since, and every instance closed
        await ctx.store.delete("a")
        await ctx.reopen()
        following = await (await ctx.another() if times % 2 else ctx.store).append_event("a", samples.event(0))
        ctx.true(following > last, f"{following} must be above {last}, which was deleted before the store was opened")
        last = following


_BATCHES: Final = (1, 1, 2, 1, 26, 1, 1, 60, 1, 27, 1, 1)


@check("EVT-2", under=(Dimension.COMPANY, Dimension.INSTANCES, Dimension.ITEMS))
async def who_saw_an_offset_missed_nothing_below(ctx: Context) -> None:
    """A reader that goes on after the last offset it saw gets every event, while many write, one event or a batch at a
    time, by several instances.
    """
    stop, stores = False, (ctx.store, await ctx.another())
    seen: list[StoredEvent] = []

    async def read() -> None:
        reader = await ctx.another()
        while True:
            last = stop
            after = seen[-1].offset if seen else 0
            seen.extend(await _all(reader, after_offset=after))
            if last:
                return
            await asyncio.sleep(0)

    async def write(writer: int) -> None:
        first, store = writer * 1000, stores[writer % 2]
        for size in _BATCHES:
            batch = samples.events(size, first)
            if size == 1:
                await store.append_event("a", batch[0])
            elif writer == 2:
                await store.save_turn("a", events=batch)
            else:
                await store.append_events("a", batch)
            first += size

    task = asyncio.ensure_future(read())
    await asyncio.gather(*map(write, range(5)))
    stop = True
    await task
    ctx.equal([e.offset for e in seen], sorted({e.offset for e in seen}), "the offsets as they were seen")
    wanted = sorted(writer * 1000 + i for writer in range(5) for i in range(sum(_BATCHES)))
    ctx.equal(sorted(e.bookmark.seq for e in seen), wanted, "the seqs of the events that were seen, in order")


@check("EVT-3", under=(Dimension.EQUALS,))
async def seq_may_repeat(ctx: Context) -> None:
    """Two events with one seq are both kept, in the order of commit."""
    one, two = samples.event(4, delta="one"), samples.event(4, delta="two")
    await ctx.store.append_event("a", one)
    await ctx.store.append_event("a", two)
    ctx.equal(await _all(ctx.store), [one, two], "the events of one seq")


@check("EVT-4", under=(Dimension.EQUALS, Dimension.INSTANCES, Dimension.COMPANY))
async def the_identical_entry_again_is_stored_once(ctx: Context) -> None:
    """The identical entry again, alone, in a group, at once or from another instance, is stored once."""
    other = await ctx.another()
    first = await ctx.store.append_events("a", samples.events(3))
    again = [await store.append_event("a", samples.event(1)) for store in (ctx.store, other)]
    ctx.equal(again, [first[1], first[1]], "the offset of an event that is there")
    old, new = await ctx.store.append_events("a", [samples.event(2), samples.event(3)])
    ctx.equal((old, new > old), (first[2], True), "the offsets of an old and a new event")
    ctx.equal(list(await other.append_events("a", [samples.event(3), samples.event(0)])), [new, first[0]], "again")
    same = await asyncio.gather(*(store.append_event("a", samples.event(9)) for store in (ctx.store, other) * 5))
    ctx.equal(len(set(same)), 1, "how many offsets ten identical appends got")
    ctx.equal(await _seqs(ctx.store), [0, 1, 2, 3, 9], "the seqs")


@check("EVT-4", needs=Capability.PERSISTENT, under=(Dimension.EQUALS, Dimension.INSTANCES))
async def a_repeat_after_a_restart_is_stored_once(ctx: Context) -> None:
    """The identical entry again after a restart is stored once."""
    first = await ctx.store.append_events("a", samples.events(3))
    await ctx.reopen()
    ctx.equal(list(await ctx.store.append_events("a", samples.events(3))), list(first), "the offsets")
    ctx.equal(await _seqs(ctx.store), [0, 1, 2], "the seqs")


@check("EVT-5", under=(Dimension.ORDERS,))
async def channels_are_merged_by_seq(ctx: Context) -> None:
    """Reading gives all channels by (seq, offset); a channel gives its own in the same order."""
    channels = ("progress", "control", "monitor")
    for seq in (7, 2, 5, 0, 3, 1, 6, 4):
        await ctx.store.append_event("a", samples.event(seq, channels[seq % 3]))
    ctx.equal(await _seqs(ctx.store), list(range(8)), "all channels")
    for i, channel in enumerate(channels):
        ctx.equal(await _seqs(ctx.store, channel=channel), list(range(i, 8, 3)), channel)


@check("EVT-5", under=(Dimension.NUMBERS,))
async def since_is_exclusive_on_seq(ctx: Context) -> None:
    """since gives the events with a greater seq: from the first, the middle, the last, and beyond."""
    await ctx.store.append_events("a", samples.events(5))
    for seq, wanted in ((-1, [0, 1, 2, 3, 4]), (0, [1, 2, 3, 4]), (2, [3, 4]), (4, []), (99, []), (2**70, [])):
        ctx.equal(await _seqs(ctx.store, since=Bookmark(seq, 0)), wanted, f"since seq {seq}")
    ctx.equal(await _seqs(ctx.store, since=Bookmark(1, 0), channel="monitor"), [], "since on another channel")


@check("EVT-5", under=(Dimension.ORDERS,))
async def after_offset_is_by_commit(ctx: Context) -> None:
    """after_offset gives the events above it in the order of commit, with since and channel as filters."""
    offsets = [await ctx.store.append_event("a", samples.event(s)) for s in (5, 1, 4, 2)]
    ctx.equal(await _seqs(ctx.store, after_offset=0), [5, 1, 4, 2], "from the beginning")
    ctx.equal(await _seqs(ctx.store, after_offset=offsets[1]), [4, 2], "after the second")
    ctx.equal(await _seqs(ctx.store, after_offset=offsets[0], since=Bookmark(1, 0)), [4, 2], "with since")
    ctx.equal(await _seqs(ctx.store, after_offset=offsets[-1]), [], "after the last")


@check("EVT-5", under=(Dimension.ITEMS, Dimension.COMPANY, Dimension.INTERRUPTIONS))
async def long_logs_stream(ctx: Context) -> None:
    """A log of thousands of events streams in order, undisturbed by appends meanwhile, and the stream can be left at
    any time.
    """
    await ctx.store.append_events("a", samples.events(2500))
    seen: list[int] = []
    async for event in ctx.store.read_events("a"):
        seen.append(event.bookmark.seq)
        if event.bookmark.seq in (10, 1200):
            await ctx.store.append_event("a", samples.event(10_000 + event.bookmark.seq))
    ctx.equal(seen[:2500], list(range(2500)), "the seqs")
    ctx.true(set(seen[2500:]) <= {10_010, 11_200}, "only what was appended meanwhile may follow")
    stream = ctx.store.read_events("a")
    async for event in stream:
        if event.bookmark.seq == 3:
            break
    await ctx.store.append_event("a", samples.event(20_000))
    offsets = [event.offset for event in await _all(ctx.store, after_offset=0)]
    ctx.equal((len(offsets), offsets == sorted(offsets)), (2503, True), "the log by offset")


@check("EVT-5", under=(Dimension.ITEMS, Dimension.ORDERS))
async def long_logs_are_in_order(ctx: Context) -> None:
    """A log of several pages that was appended out of the order of seq is read by seq, and by offset, to the end."""
    shuffled = [(i * 701) % 1500 for i in range(1500)]
    offsets = await ctx.store.append_events("a", [samples.event(seq) for seq in shuffled])
    by_offset = list(zip(offsets, shuffled, strict=True))
    by_seq = [(event.offset, event.bookmark.seq) async for event in ctx.store.read_events("a")]
    ctx.equal(by_seq, sorted(by_offset, key=lambda pair: pair[1]), "the log by seq")
    found = [(event.offset, event.bookmark.seq) async for event in ctx.store.read_events("a", after_offset=offsets[9])]
    ctx.equal(found, by_offset[10:], "the log by offset")


@check("EVT-5", "QRY-1", absence_ok=True, under=(Dimension.NUMBERS, Dimension.LOOKALIKES))
async def bad_arguments_of_reading_are_refused(ctx: Context) -> None:
    """An unknown channel or an invalid bookmark is refused at once."""
    wrong: list[dict[str, Any]] = [
        {"channel": "progres"},
        {"channel": 5},
        {"since": 5},
        {"after_offset": "1"},
        {"after_offset": 2**80},
        {"since": "x"},
    ]
    for bad in wrong:
        for method in (ctx.store.read_events, ctx.store.follow_events):
            try:
                method("a", **bad)
            except InvalidArgumentError:
                continue
            ctx.true(False, f"{method.__name__}({bad}) must be refused")
    bad_event = Timeline(0, Bookmark(0, 0), samples.event(0, "sidechannel").event)
    await ctx.raises(InvalidArgumentError, ctx.store.append_event("a", bad_event), "an event on an unknown channel")


@check("EVT-6", under=(Dimension.ORDERS,))
async def the_last_bookmark(ctx: Context) -> None:
    """last_bookmark is the one with the highest seq, whatever came last; None without events."""
    ctx.equal(await ctx.store.last_bookmark("a"), None, "without events")
    for seq in (3, 8, 5):
        await ctx.store.append_event("a", samples.event(seq))
    ctx.equal(await ctx.store.last_bookmark("a"), Bookmark(8, samples.T0 + 8), "after 3, 8, 5")


@check("EVT-7", under=(Dimension.COMPANY, Dimension.INSTANCES))
async def following_gives_what_is_there_and_what_comes(ctx: Context) -> None:
    """Following yields the stored events, then every event that any instance appends, without gaps or repeats, by
    offset.
    """
    writer = await ctx.another()
    await ctx.store.append_events("a", samples.events(3))
    seen: list[int] = []

    async def follow() -> None:
        async for event in ctx.store.follow_events("a"):
            seen.append(event.bookmark.seq)

    task = asyncio.ensure_future(follow())
    try:
        for seq in range(3, 30):
            await (writer if seq % 2 else ctx.store).append_event("a", samples.event(seq))
        await ctx.eventually(lambda: _is(len(seen) >= 30), "the follower must see all events")
    finally:
        task.cancel()
    ctx.equal(seen, list(range(30)), "the seqs that were followed")


async def _is(value: bool) -> bool:
    return value


@check("EVT-7", needs=Capability.CROSS_PROCESS, tier=Tier.STANDARD, under=(Dimension.PROCESSES, Dimension.COMPANY))
async def following_another_process(ctx: Context) -> None:
    """Following yields what another process appends, on the channel and after the place that was asked for."""
    offsets = await ctx.store.append_events("a", samples.events(3))
    process = await ctx.process("append_events", "a", 100, 20, 5)
    seen: list[int] = []
    async with ctx.within(60.0):
        async for event in ctx.store.follow_events("a", after_offset=offsets[0], channel="progress"):
            seen.append(event.bookmark.seq)
            if len(seen) == 22:
                break
    await process.lines()
    ctx.equal(sorted(seen), [1, 2, *range(100, 120)], "the seqs that were followed")
