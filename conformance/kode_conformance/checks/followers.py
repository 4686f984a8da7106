"""EVT-7: followers of every kind at once, through bursts, silences, deletes and late events of low seqs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, NamedTuple

from kode_conformance.checks.deadlines import hasty
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.logs import Asked, Log
from kode_conformance.instruments.pace import Suspected, judged
from kode_conformance.instruments.patience import SOON_S
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import StoreTimeoutError
from kode_core.model import StoredEvent, Timeline
from kode_core.protocols import ExtendedStore


class Follower:
    """A follower of an agent.

    Attributes:
        seen: the events that came so far.
    """

    def __init__(self, ctx: Context, name: str, store: ExtendedStore, asked: Asked, *, pause: float = 0.0) -> None:
        self.seen: list[StoredEvent] = []
        self.name = f"{name} ({asked})"
        self.asked = asked
        self._ctx = ctx
        self._came = asyncio.Event()
        self.task = asyncio.ensure_future(self._follow(store, pause))

    async def _follow(self, store: ExtendedStore, pause: float) -> None:
        async for event in store.follow_events("a", **self.asked.arguments()):
            self.seen.append(event)
            self._came.set()
            if pause and len(self.seen) % 100 == 1:
                await asyncio.sleep(pause)
        raise Violation(f"{self.name} came to an end after {len(self.seen)} events, though nobody had stopped it")

    async def reach(self, offset: int) -> None:
        """Wait until the event of that offset has come."""
        try:
            async with self._ctx.within():
                while not (self.seen and self.seen[-1].offset >= offset):
                    self._came.clear()
                    came = asyncio.ensure_future(self._came.wait())
                    await asyncio.wait((came, self.task), return_when=asyncio.FIRST_COMPLETED)
                    came.cancel()
                    if self.task.done():
                        self.task.result()
        except StoreTimeoutError:
            raise  # of the follower, which is a TimeoutError, too
        except TimeoutError:
            last = self.seen[-1].offset if self.seen else None
            case = f"got {len(self.seen)} events, the last with offset {last}"
            raise Violation(f"{self.name} {case}, and not the one with {offset} within {SOON_S:g} s") from None

    def compare(self, log: Log, *, what: str = "") -> None:
        """Check that the events that came are exactly the ones that were asked for, by offset."""
        asked = self.asked._replace(
            after_offset=-(2**62) if self.asked.after_offset is None else self.asked.after_offset
        )
        log.compare(self._ctx, self.seen, log.part(asked), f"what came to {self.name}{what}")


@asynccontextmanager
async def _following(followers: Sequence[Follower]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for follower in followers:
            follower.task.cancel()
        await asyncio.gather(*(follower.task for follower in followers), return_exceptions=True)


class _Writers(NamedTuple):
    """Two instances that write, and the log that comes of it."""

    ctx: Context
    log: Log
    stores: tuple[ExtendedStore, ExtendedStore]

    async def append(self, *seqs: int, channel: Any = "progress") -> None:
        """Append in one piece, by the instances in turn."""
        entries = [self._entry(seq, i, channel) for i, seq in enumerate(seqs)]
        await self.log.append(self.ctx, self.stores[len(self.log.entries) % 2], entries)

    async def append_at_once(self, *seqs: int) -> None:
        """Append one by one, all in flight at once."""
        entries = [self._entry(seq, i, "control" if i % 5 == 0 else "progress") for i, seq in enumerate(seqs)]
        calls = (self.stores[i % 2].append_event("a", entry) for i, entry in enumerate(entries))
        stored = sorted(zip(await asyncio.gather(*calls), entries, strict=True), key=lambda pair: pair[0])
        self.log.note(self.ctx, [offset for offset, _ in stored], [entry for _, entry in stored])

    def _entry(self, seq: int, i: int, channel: Any) -> Timeline:
        return samples.event(seq, channel, cursor=len(self.log.entries) + i, n=seq)


@check("EVT-7", "EVT-2", under=(Dimension.ITEMS, Dimension.COMPANY, Dimension.ORDERS, Dimension.INSTANCES))
async def every_follower_gets_every_event(ctx: Context) -> None:
    """Followers at once, of two instances, of all or of a part, early, late and slow, each get all that they asked for
    by offset: events of lower seqs that come later, bursts of a thousand, large ones, repeats and single ones.
    """
    other = await ctx.another()
    log = Log()
    writers = _Writers(ctx, log, (ctx.store, other))
    early = [
        Follower(ctx, "a follower that began before the first event", ctx.store, Asked()),
        Follower(ctx, "a second follower", ctx.store, Asked()),
        Follower(ctx, "a follower in another instance", other, Asked()),
        Follower(ctx, "a slow follower", other, Asked(), pause=0.02),
        Follower(ctx, "a follower since a seq", ctx.store, Asked(since=5)),
        Follower(ctx, "a follower of a rare channel", ctx.store, Asked(channel="control")),
        Follower(ctx, "a follower of a rare channel in another instance", other, Asked(since=5, channel="control")),
    ]
    async with _following(early):
        await asyncio.sleep(0.01)
        await writers.append(10, channel="control")
        for follower in early:
            await follower.reach(log.last)
        await writers.append(*range(20, 40))
        late = [
            Follower(ctx, "a follower after an offset", ctx.store, Asked(after_offset=log.offsets[9])),
            Follower(ctx, "a follower after an offset and since a seq", other, Asked(9, log.offsets[9], "control")),
        ]
        async with _following(late):
            await _write_everything(writers)
            for follower in (*early, *late):
                await follower.reach(log.last)
                follower.compare(log)


async def _write_everything(writers: _Writers) -> None:
    ctx, log = writers.ctx, writers.log
    await writers.append(3, 2, 7)
    await writers.append(*range(1101, 100, -1))
    await writers.append_at_once(*range(50, 0, -1))
    await writers.append_at_once(*range(2000, 2050))
    for seq in (6, 5, 4, 9000):
        await writers.append(seq)
        await asyncio.sleep(0.002)
    large = samples.event(7, "control", cursor=99_999, text="x" * 300_000)
    await log.append(ctx, ctx.store, [large])
    again = await ctx.store.append_events("a", [log.entries[5][1], log.entries[900][1]])
    ctx.equal(list(again), [log.offsets[5], log.offsets[900]], "the offsets of events that are there")
    await writers.append(8, channel="control")
    await writers.append(10_000, channel="control")


def _named(*stores: ExtendedStore) -> list[tuple[str, ExtendedStore]]:
    return list(zip(("the same instance", "another instance"), stores, strict=True))


@check("EVT-7", "OPS-9", under=(Dimension.COMPANY, Dimension.CLOCKS))
async def following_through_silence(ctx: Context) -> None:
    """A follower that saw nothing for several times as long as a call may take is still there, and gets what comes."""
    log = Log()
    await log.append(ctx, ctx.store, samples.events(3))
    await judged(partial(_follow_through_silence, ctx, log))


async def _follow_through_silence(ctx: Context, log: Log, longer: int) -> None:
    short = await hasty(ctx, timeout_ms=400 * longer) if ctx.harness.has("open_with") else ctx.store
    asked = Asked() if longer == 1 else Asked(after_offset=log.last)
    followers = [
        Follower(ctx, "a follower of little time", short, asked),
        Follower(ctx, "a follower of little time, of a channel", short, asked._replace(channel="control")),
        Follower(ctx, "another follower", ctx.store, asked),
    ]
    async with _following(followers):
        for silence in (0.5 * longer, 1.0 * longer):
            await asyncio.sleep(silence)
            await log.append(ctx, ctx.store, [samples.event(int(10 * silence), "control", cursor=len(log.entries))])
            for follower in followers:
                try:
                    await follower.reach(log.last)
                except StoreTimeoutError as exc:  # a single look of the follower may have taken that long
                    raise Suspected(f"{follower.name} ended after {silence:g} s of silence: {exc}") from exc
                follower.compare(log, what=f" after {silence:g} s of silence")


@check("EVT-7", "OPS-14", under=(Dimension.COMPANY, Dimension.CHANGES))
async def a_follower_that_left_goes_on_where_it_was(ctx: Context) -> None:
    """A follower that leaves in the middle of a burst, again and again, and goes on after the last event it saw, gets
    each event once; a follower that stays meanwhile misses nothing either.
    """
    other, log, seen = await ctx.another(), Log(), list[StoredEvent]()
    stayed = Follower(ctx, "a follower that stayed", ctx.store, Asked())
    async with _following([stayed]):
        for round_ in range(12):
            seqs = range(100 * round_, 100 * round_ + 90)
            writing = asyncio.ensure_future(log.append(ctx, other, [samples.event(s, cursor=round_) for s in seqs]))
            after = seen[-1].offset if seen else 0
            stream: Any = ctx.store.follow_events("a", after_offset=after)
            try:
                async with ctx.within():
                    for _ in range(37 + round_):
                        seen.append(await anext(stream))
            except TimeoutError:
                raise Violation(f"following after offset {after} gave nothing more: {len(seen)} events came") from None
            finally:
                await stream.aclose()
                await writing
        await stayed.reach(log.last)
        stayed.compare(log)
    log.compare(ctx, seen, log.entries[: len(seen)], "what came to a follower that left and came back")


@check(
    *("EVT-7", "EVT-2"),
    needs=Capability.CROSS_PROCESS,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.ITEMS, Dimension.PROCESSES, Dimension.COMPANY),
)
async def following_bursts_of_processes(ctx: Context) -> None:
    """Followers of two instances get every event of three processes that append hundreds at once, by offset."""
    other = await ctx.another()
    followers = [Follower(ctx, f"a follower in {name}", store, Asked()) for name, store in _named(ctx.store, other)]
    async with _following(followers):
        processes = [await ctx.process("append_events", "a", 1000 * (i + 1), 300, 100) for i in range(3)]
        reports = [line for process in processes for line in await process.lines(60.0)]
        log = Log()
        log.entries = sorted(((one["offset"], samples.event(one["seq"])) for one in reports), key=lambda pair: pair[0])
        for follower in followers:
            await follower.reach(log.last)
            follower.compare(log, what=" while three processes appended")


# --- followers that do not come for their events ----------------------------------------------------------------------

_BURSTS: Final = (1, 99, 1, 100, 26, 401)
"""The numbers of events in consecutive appends."""


@check("EVT-7", "OPS-14", "EVT-5", under=(Dimension.ITEMS, Dimension.LENGTHS, Dimension.ORDERS, Dimension.INSTANCES))
async def nothing_is_dropped_for_who_comes_late(ctx: Context) -> None:
    """Followers that took one event, and come for the next after more than a thousand others were appended, in bursts,
    large ones among them, get each that they asked for, by offset: all, one channel, since a seq, after an offset.
    """
    other, log, count = await ctx.another(), Log(), 1101 if ctx.settings.tier is Tier.QUICK else 5001
    first = [samples.event(10**6, channel, cursor=i) for i, channel in enumerate(("progress", "control", "progress"))]
    await log.append(ctx, ctx.store, first)
    asked = [
        Asked(),
        Asked(channel="control"),
        Asked(since=count // 2),
        Asked(after_offset=log.offsets[0]),
        Asked(since=5, after_offset=log.offsets[0], channel="control"),
    ]
    streams: list[tuple[str, Asked, Any]] = []
    for i, one in enumerate(asked):
        where, store = _named(ctx.store, other)[i % 2]
        stream = store.follow_events("a", **one.arguments())
        streams.append((f"a follower in {where} ({one}) that came late", one, stream))
    try:
        taken = [[await next_event(ctx, stream, name, 0)] for name, _, stream in streams]
        await _append_in_bursts(ctx, log, (ctx.store, other), count)
        for (name, one, stream), found in zip(streams, taken, strict=True):
            wanted = log.part(one if one.after_offset is not None else one._replace(after_offset=0))
            while len(found) < len(wanted):
                found.append(await next_event(ctx, stream, name, len(found)))
            log.compare(ctx, found, wanted, f"what came to {name}")
        await log.append(ctx, other, [samples.event(10**6 + 1, "control", cursor=count)])
        for name, _, stream in streams:
            log.compare(ctx, [await next_event(ctx, stream, name, -1)], log.entries[-1:], f"the last event of {name}")
    finally:
        for _, _, stream in streams:
            await stream.aclose()


async def next_event(ctx: Context, stream: Any, name: str, number: int) -> StoredEvent:
    """The next event of a stream that gave *number* events before."""
    try:
        async with ctx.within():
            found: StoredEvent = await anext(stream)
    except TimeoutError:
        raise Violation(f"{name} got nothing more within {SOON_S:g} s, after {number} events") from None
    except StopAsyncIteration:
        raise Violation(f"{name} came to an end after {number} events, though nobody had stopped it") from None
    return found


async def _append_in_bursts(ctx: Context, log: Log, stores: tuple[ExtendedStore, ExtendedStore], count: int) -> None:
    """So many events of all kinds of seqs; each third of the channel control, and a few of 100 KB."""
    written = 0
    while written < count:
        size = min(_BURSTS[len(log.entries) % len(_BURSTS)], count - written)
        entries = [
            samples.event(
                (i * 7919) % count,
                "control" if i % 3 == 0 else "progress",
                cursor=i,
                text="x" * 100_000 if i % 300 == 150 else f"{i}",
            )
            for i in range(written, written + size)
        ]
        await log.append(ctx, stores[size % 2], entries)
        written += size


Begun = tuple[dict[str, Any], Sequence[int]]
"""Where a reader begins, and the offsets of the events that are stored behind it."""


async def see_begun(ctx: Context, other: ExtendedStore, begun: Sequence[Begun], seq: int) -> int:
    """Readers and followers that begin there, in turns of two instances, give the stored events, and the followers then
    one of this seq, which is appended when they have begun; its offset. One that passes over events gives it at once.
    """
    every = [((ctx.store, other)[number % 2], *one) for number, one in enumerate(begun)]
    for store, begin, wanted in every:
        read = [event.offset async for event in store.read_events("a", **begin)]
        ctx.equal(read, list(wanted), f"the offsets that read_events({begin}) gives after a prune")
    followers: list[Any] = [store.follow_events("a", **begin) for store, begin, _ in every]
    firsts = [asyncio.ensure_future(anext(follower)) for follower in followers]
    try:
        await ctx.ended(firsts, _BEGUN_S)
        (last,) = await ctx.store.append_events("a", [samples.event(seq)])
        for (_, begin, wanted), follower, first in zip(every, followers, firsts, strict=True):
            got: list[int] = []
            try:
                async with ctx.within():
                    got.append((await first).offset)
                    while got[-1] != last:
                        got.append((await anext(follower)).offset)
            except TimeoutError:
                raise Violation(f"follow_events({begin}) after a prune gave {got}, and not {last}") from None
            ctx.equal(got, [*wanted, last], f"the offsets of follow_events({begin}) after a prune")
    finally:
        for first in firsts:
            first.cancel()
        await asyncio.gather(*firsts, return_exceptions=True)
        for follower in followers:
            await follower.aclose()
    return last


_BEGUN_S: Final = 2.0
"""Followers have this long to begin before an event is appended, which is the last one for every follower."""
