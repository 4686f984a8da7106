"""EVT: long logs: pages that end inside one seq, rare channels, every place to go on from, repeats far apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.logs import Asked, Log
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import check
from kode_conformance.values import samples
from kode_conformance.values.many import same, views
from kode_core.model import Bookmark, StoredEvent, Timeline

_EDGES: Final = (1, 2, 25, 64, 99, 100, 101, 500, 501, 999, 1000, 1001)
"""Numbers of events that pages usually have, and those next to them."""


def _crowded(count: int) -> list[Timeline]:
    """Entries of few seqs, hundreds of each, in neither ascending nor descending order; one in 150 is on a rare
    channel, and a few at the end are on another.
    """
    found = []
    for i in range(count):
        channel = "control" if i % 150 == 7 else "monitor" if i >= count - 3 else "progress"
        found.append(samples.event((7, 3, 9, 3)[i // 300 % 4], channel, cursor=i, n=i))
    return found


async def _write(ctx: Context, log: Log, timelines: list[Timeline], *, at_once: int) -> None:
    for start in range(0, len(timelines), at_once):
        await log.append(ctx, ctx.store, timelines[start : start + at_once])


@check("EVT-5", "EVT-2", "EVT-3", "EVT-6", under=(Dimension.ITEMS, Dimension.EQUALS, Dimension.ORDERS))
async def hundreds_of_one_seq(ctx: Context) -> None:
    """A log with hundreds of events of one seq is read whole, by seq and by offset, since every seq and from every
    place near the end of a page, all channels or one that is rare.
    """
    log = Log()
    await _write(ctx, log, _crowded(1303), at_once=650)
    last = await ctx.store.last_bookmark("a")
    ctx.equal(last and last.seq, 9, "the seq of the last bookmark, which is of the middle of the log")
    for asked in in_time(ctx, _questions(log)):
        await log.see(ctx, ctx.store, asked)


def _questions(log: Log) -> Iterator[Asked]:
    yield Asked()
    yield Asked(after_offset=log.offsets[0] - 1)
    for channel in ("control", "monitor"):
        yield Asked(channel=channel)
        yield Asked(after_offset=log.offsets[0] - 1, channel=channel)
        yield Asked(since=3, channel=channel)
    for since in (2, 3, 4, 7, 8, 9):
        yield Asked(since=since)
    for edge in _EDGES[4:]:
        yield Asked(after_offset=log.offsets[edge - 1], channel=("control", None, "monitor")[edge % 3])
    yield Asked(since=3, after_offset=log.offsets[99])
    yield Asked(since=7, after_offset=log.offsets[599], channel="control")
    yield Asked(after_offset=log.offsets[-2])
    yield Asked(after_offset=log.offsets[-1])


@check("EVT-5", "EVT-1", "EVT-2", under=(Dimension.ITEMS, Dimension.ORDERS, Dimension.INSTANCES))
async def logs_of_any_length(ctx: Context) -> None:
    """A log that grows by one event, by a batch, or as a part of a turn, past the end of each usual page, with seqs
    that fall as well as rise, is read whole after each, and in every instance in the end.
    """
    log, other = Log(), await ctx.another()
    entries = [samples.event(5000 - i if i % 2 else i, cursor=i) for i in range(1101)]
    for n, edge in enumerate(in_time(ctx, _EDGES)):
        store, there = (ctx.store, other)[n % 2], len(log.entries)
        if edge > there + 1:
            await log.append(ctx, store, entries[there : edge - 1])
        log.note(ctx, [await store.append_event("a", entries[edge - 1])], [entries[edge - 1]])
        await log.see(ctx, (other, ctx.store)[n % 2], Asked())
        await log.see(ctx, store, Asked(after_offset=log.offsets[0]))
    there = len(log.entries)
    await ctx.store.save_turn("a", events=entries[there:])
    found = [event async for event in other.read_events("a", after_offset=log.last)]
    same(ctx, list(found), entries[there:], "the events that a turn added to a long log, by offset")
    log.note(ctx, [event.offset for event in found], entries[there:])
    async for where, view in views(ctx, other):
        for asked in (Asked(), Asked(since=2500), Asked(after_offset=log.offsets[99])):
            await log.see(ctx, view, asked, where)
        last = await view.last_bookmark("a")
        ctx.equal(last, Bookmark(4999, samples.T0 + 4999), f"the last bookmark, of the second event{where}")


@check("EVT-4", "EVT-2", under=(Dimension.ITEMS, Dimension.EQUALS, Dimension.ORDERS, Dimension.INSTANCES))
async def repeats_far_apart(ctx: Context) -> None:
    """The identical entry again after more than a thousand others, alone, in a batch, in a turn, or among new ones, is
    stored once, and each returned offset belongs to the entry at the same position in the call.
    """
    log, other = Log(), await ctx.another()
    await _write(ctx, log, [samples.event(i // 3, cursor=i) for i in range(1101)], at_once=1101)
    for n, place in enumerate((0, 1, 99, 100, 500, 999, 1000, 1100)):
        offset = await (ctx.store, other)[n % 2].append_event("a", log.entries[place][1])
        ctx.equal(offset, log.offsets[place], f"the offset of entry {place + 1} of 1,101 when it is appended again")
    new = [samples.event(9000 - i, cursor=5000 + i) for i in range(503)]
    mixed: list[Timeline] = []
    for i, entry in enumerate(new):
        mixed += [entry, log.entries[(i * 37) % 1101][1]] if i % 5 == 0 else [entry]
    offsets = list(await other.append_events("a", mixed))
    known = {entry.cursor: offset for offset, entry in log.entries}
    fresh = {e.cursor: offset for e, offset in zip(mixed, offsets, strict=True) if e.cursor not in known}
    wanted = [{**known, **fresh}[entry.cursor] for entry in mixed]
    same(ctx, offsets, wanted, f"the offsets of {len(mixed)} entries, of which some are there")
    log.note(ctx, list(fresh.values()), new)
    known |= fresh
    mixed = [new[0], samples.event(-1, cursor=6000), new[-1], log.entries[0][1], new[250]]
    offsets = list(await ctx.store.append_events("a", mixed))
    log.note(ctx, [offsets[1]], [mixed[1]])
    wanted = [known.get(entry.cursor, log.last) for entry in mixed]
    same(
        ctx, offsets, wanted, "the offsets of the ends and the middle of what was appended just now, and of a new entry"
    )
    await other.save_turn("a", events=[log.entries[500][1], new[7]])
    async for where, store in views(ctx, other):
        again = list(await store.append_events("a", [entry for _, entry in log.entries[::-1]]))
        same(ctx, again, log.offsets[::-1], f"the offsets of the whole log, given again from its end{where}")
        await log.see(ctx, store, Asked(), f" after all were appended again{where}")


@check("EVT-5", "EVT-2", under=(Dimension.ITEMS, Dimension.COMPANY, Dimension.ORDERS))
async def events_that_come_while_a_log_is_read(ctx: Context) -> None:
    """A reader of a long log gets each event that was there at the beginning once and in order while others append,
    before and behind its place; a reader that goes on by offset after the last event misses none of the new ones.
    """
    log, other = Log(), await ctx.another()
    await _write(ctx, log, _crowded(1203), at_once=601)
    there = dict(log.entries)
    for asked in in_time(ctx, (Asked(), Asked(since=3), Asked(after_offset=log.offsets[0]), Asked(channel="control"))):
        wanted = [offset for offset, _ in log.part(asked) if offset in there]
        found: list[StoredEvent] = []
        async for event in ctx.store.read_events("a", **asked.arguments()):
            found.append(event)
            if len(found) in (1, 3, 64, 65, 100, 500, 999):
                number = 10_000 + len(log.entries)
                new = [samples.event(seq, "control", cursor=number, n=seq) for seq in (0, 3, 7, 9, 99)]
                await log.append(ctx, other, new)
        what = f"read_events({asked}) while others appended"
        old = [event.offset for event in found if event.offset in there]
        same(ctx, old, wanted, f"{what}: the offsets of the events that were there before")
        keys = [_place(event, asked) for event in found]
        ctx.true(keys == sorted(set(keys)), f"{what} gave events out of order or twice")
        if asked.after_offset is not None:
            rest = Asked(after_offset=found[-1].offset)
            found += [event async for event in ctx.store.read_events("a", **rest.arguments())]
            log.compare(ctx, found, log.part(asked), f"{what}, and then from the last one on")


def _place(event: StoredEvent, asked: Asked) -> Any:
    return event.offset if asked.after_offset is not None else (event.bookmark.seq, event.offset)
