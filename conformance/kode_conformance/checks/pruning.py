"""LIFE-6: removing the parts of an agent that are no longer needed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from time import sleep
from typing import Any, Final, NamedTuple

from kode_conformance.checks.followers import Begun, see_begun
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.kills.writes import portrait
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import AgentDeletedError, InvalidArgumentError
from kode_core.model import Bookmark, StoredEvent, Timeline
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED
_N: Final = Capability.EXTENDED | Capability.PRUNING
_SECONDS: Final = 60.0


class _Kept(NamedTuple):
    """A kind of which a prune keeps the newest."""

    argument: str
    counted: str
    make: Callable[[str, int], Any]
    save: Callable[[ExtendedStore, str, Any], Awaitable[None]]
    load: Callable[[ExtendedStore, str], Awaitable[Sequence[Any]]]
    newest_first: bool = False

    def left(self, found: Sequence[Any], number: int) -> list[Any]:
        """The newest ones of a load."""
        return list(found[:number]) if self.newest_first else list(found[max(len(found) - number, 0) :])


_KINDS: Final = (
    _Kept(
        "keep_snapshots",
        "snapshots",
        samples.snapshot,
        lambda store, agent, one: store.save_snapshot(agent, one),
        lambda store, agent: store.list_snapshots(agent),
        newest_first=True,
    ),
    _Kept(
        "keep_history_windows",
        "history_windows",
        samples.window,
        lambda store, agent, one: store.save_history_window(agent, one),
        lambda store, agent: store.load_history_windows(agent),
    ),
    _Kept(
        "keep_compression_records",
        "compression_records",
        samples.compression,
        lambda store, agent, one: store.save_compression_record(agent, one),
        lambda store, agent: store.load_compression_records(agent),
    ),
    _Kept(
        "keep_recovered_files",
        "recovered_files",
        samples.recovered,
        lambda store, agent, one: store.save_recovered_file(agent, one),
        lambda store, agent: store.load_recovered_files(agent),
    ),
)


async def _offsets(store: ExtendedStore, agent: str = "a") -> list[int]:
    return [event.offset async for event in store.read_events(agent, after_offset=0)]


def _counts(result: Any) -> dict[str, int]:
    names = ("events", "snapshots", "history_windows", "compression_records", "recovered_files")
    return {name: number for name in names if (number := getattr(result, name))}


@check("LIFE-6", needs=_E, under=(Dimension.LOOKALIKES, Dimension.NUMBERS))
async def a_prune_of_nothing_is_refused(ctx: Context) -> None:
    """prune refuses a call that names nothing, and numbers that are none, and removes nothing."""
    await fill(ctx.store, "a")
    before = await portrait(ctx.store, "a")
    ctx.true(any(before.values()), "an agent must have records before they can stay")
    store: Any = ctx.store
    wrong: list[dict[str, Any]] = [{}, {"progress": print}]
    for name in ("keep_snapshots", "keep_history_windows", "keep_compression_records", "keep_recovered_files"):
        wrong += [{name: value} for value in (-1, True, 1.0, "1", [1])]
    wrong += [{"events_before_offset": value} for value in (-1, True, 1.5, "9")]
    wrong += [{"events_before": value} for value in (datetime(2020, 1, 1), "30d", 1.5, True)]
    for bad in wrong:
        await ctx.raises(InvalidArgumentError, store.prune("a", **bad), f"prune({bad})")
        if "keep_snapshots" not in bad and bad.keys() - {"progress"}:
            two = {"keep_snapshots": 0, **bad}
            await ctx.raises(InvalidArgumentError, store.prune("a", **two), f"prune({two})")
    ctx.equal(await portrait(ctx.store, "a"), before, "everything after calls that were refused")


@check("LIFE-6", needs=_E, under=(Dimension.ITEMS, Dimension.EQUALS, Dimension.ORDERS, Dimension.INSTANCES))
async def the_newest_of_each_kind_stay(ctx: Context) -> None:
    """keep_x=N leaves the newest N of a kind in the order of its load, also where the last that stays has the time of
    the first that goes, counts the removed ones, and changes no other kind and no other agent.
    """
    other = await ctx.another()
    times = (0, 5, 7, 5, 5, 3, 9, 9)  # with the one that each kind has: 9 9 7 5 5 5 3 0 0
    for number in (0, 1, 4, 8, 20):
        for kind in _KINDS:
            agent = f"{kind.counted} {number}"
            await fill(ctx.store, agent)
            for i, time in enumerate(times):
                await kind.save(ctx.store, agent, kind.make(f"k{(i * 5) % 8}", samples.T0 + time))
            before, found = await portrait(other, agent), await kind.load(other, agent)
            ctx.true(len(found) >= len(times), f"{kind.counted} before the prune: {len(found)}")
            version, session = await other.load_version(agent), await other.load_session(agent)
            arguments: dict[str, Any] = {kind.argument: number}
            result = await ctx.store.prune(agent, **arguments)
            wanted = kind.left(found, number)
            gone = len(found) - len(wanted)
            ctx.equal(await kind.load(other, agent), wanted, f"{kind.counted} after {kind.argument}={number}")
            ctx.equal(_counts(result), {kind.counted: gone} if gone else {}, f"the counts of {kind.argument}={number}")
            after = await portrait(other, agent)
            changed = [name for name in before if before[name] != after[name]]
            ctx.equal(len(changed), int(gone > 0), f"kinds that {kind.argument}={number} changed: {changed}")
            same = (await other.load_version(agent), await other.load_session(agent))
            ctx.equal(same, (version, session), f"version and session after {kind.argument}={number}")
    ctx.equal(_counts(await ctx.store.prune("nobody", keep_snapshots=0)), {}, "what was removed of an absent agent")
    ctx.equal(await ctx.store.list("nobody", include_without_info=True), [], "the agents after a prune of none")


@check("LIFE-6", needs=_E, tier=Tier.STANDARD, under=(Dimension.ITEMS, Dimension.ORDERS))
async def all_kinds_are_pruned_at_once(ctx: Context) -> None:
    """One call removes parts of several kinds, more of each than a step takes, of one more than a thousand, and reports
    its progress.
    """
    many = dict.fromkeys((kind.counted for kind in _KINDS), 450)
    many[ctx.rng.choice(_KINDS).counted] = 450 if ctx.harness.patience > 1 else 1250
    for kind in _KINDS:
        for start in range(0, many[kind.counted], 50):
            some = [kind.make(f"k{i:04d}", samples.T0 + i) for i in range(start, start + 50)]
            await asyncio.gather(*(kind.save(ctx.store, "a", one) for one in some))
    steps: list[int] = []
    result = await ctx.store.prune(
        "a",
        keep_snapshots=10,
        keep_history_windows=20,
        keep_compression_records=30,
        keep_recovered_files=40,
        progress=lambda done, total: steps.append(done),
    )
    wanted = {kind.counted: many[kind.counted] - 10 * (i + 1) for i, kind in enumerate(_KINDS)}
    ctx.equal(_counts(result), wanted, "the counts")
    ctx.equal((steps == sorted(steps), steps[-1:]), (True, [sum(wanted.values())]), f"the progress {steps}")
    found = [len(await kind.load(ctx.store, "a")) for kind in _KINDS]
    ctx.equal(found, [10, 20, 30, 40], "how many of each kind stay")


# --- events -----------------------------------------------------------------------------------------------------------


@check(
    "LIFE-6",
    "EVT-6",
    needs=_N,
    under=(Dimension.ITEMS, Dimension.NUMBERS, Dimension.ORDERS, Dimension.INSTANCES, Dimension.CHANGES),
)
async def events_before_an_offset_go(ctx: Context) -> None:
    """Events below an offset go, and no other one: not the event at it, nor the one of the last bookmark wherever it
    stands, in every order and of every channel; nothing else of the agent changes, and nothing of others.
    """
    other = await ctx.another()
    channels = ("progress", "control", "monitor")
    for highest in (0, 3, 40, 59):
        agent = f"a{highest}"
        await fill(ctx.store, agent)
        many = [samples.event(1000 + (i * 7) % 60, channels[i % 3], cursor=i) for i in range(60)]
        many[highest] = samples.event(9999, cursor=highest)
        first = await _offsets(ctx.store, agent)
        offsets = [*first, *await ctx.store.append_events(agent, many)]
        await ctx.store.append_events("other", samples.events(5))
        before, elsewhere = await portrait(other, agent), await portrait(other, "other")
        version, session = await other.load_version(agent), await other.load_session(agent)
        bookmark, last = await other.last_bookmark(agent), offsets[3 + highest]
        for at in (0, 1, 20, 21, 63):
            bound = offsets[at] if at < len(offsets) else 2**62
            there = await _offsets(other, agent)
            result = await ctx.store.prune(agent, events_before_offset=bound)
            wanted = [offset for offset in there if offset >= bound or offset == last]
            what = f"before {at} of 63 events, of which {3 + highest} is last by seq"
            ctx.equal(await _offsets(other, agent), wanted, f"offsets {what}")
            ctx.equal(result.events, len(there) - len(wanted), f"the number of removed events {what}")
            ctx.equal(await other.last_bookmark(agent), bookmark, f"the last bookmark {what}")
            await _see_orders(ctx, other, agent, what)
        after = await portrait(other, agent)
        ctx.equal([name for name in before if before[name] != after[name]], ["events"], "kinds that changed")
        same = (await other.load_version(agent), await other.load_session(agent))
        ctx.equal(same, (version, session), "version and session")
        ctx.equal(await portrait(other, "other"), elsewhere, "another agent")
        ctx.equal((await other.check_consistency(agent)).issues, (), "the issues of a pruned agent")


async def _see_orders(ctx: Context, store: ExtendedStore, agent: str, what: str) -> None:
    """All ways to read the events agree."""
    by_offset = [event async for event in store.read_events(agent, after_offset=0)]
    by_seq = [event async for event in store.read_events(agent)]
    wanted = sorted(by_offset, key=lambda event: (event.bookmark.seq, event.offset))
    ctx.equal(by_seq, wanted, f"the order by seq {what}")
    for channel in ("progress", "control", "monitor"):
        some: list[StoredEvent] = [event async for event in store.read_events(agent, channel=channel)]
        ctx.equal(some, [e for e in wanted if e.event.channel == channel], f"the channel {channel} {what}")
    for place in (0, len(by_offset) // 2):
        after = by_offset[place].offset
        rest = [event async for event in store.read_events(agent, after_offset=after)]
        ctx.equal(rest, by_offset[place + 1 :], f"the events after offset {after} {what}")


@check("LIFE-6", needs=_N, under=(Dimension.NUMBERS, Dimension.ORDERS, Dimension.EQUALS))
async def events_before_a_time_go(ctx: Context) -> None:
    """events_before removes the events before the first one, by offset, that is not earlier, exclusively and exactly to
    the microsecond; with an offset, too, an event goes only if both say so.
    """
    times = (10, 20, 20, 30, 25, 40, 35, 50)

    async def filled(agent: str) -> list[int]:
        stamped = [Timeline(i, Bookmark(i, time), samples.event(i).event) for i, time in enumerate(times)]
        return list(await ctx.store.append_events(agent, stamped))

    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    cases: list[tuple[dict[str, Any], int]] = [
        ({"events_before": 10}, 0),
        ({"events_before": 20}, 1),
        ({"events_before": 21}, 3),
        ({"events_before": 30}, 3),  # the event of time 25 comes after the first that is not earlier
        ({"events_before": epoch + timedelta(milliseconds=20)}, 1),
        ({"events_before": epoch + timedelta(milliseconds=20, microseconds=1)}, 3),
        ({"events_before": 31}, 5),
        ({"events_before": 2**70}, 7),  # the last bookmark stays
        ({"events_before": 31, "events_before_offset": 2}, 2),
        ({"events_before": 20, "events_before_offset": 5}, 1),
    ]
    for n, (given, gone) in enumerate(cases):
        offsets = await filled(f"a{n}")
        arguments: dict[str, Any] = dict(given)
        if "events_before_offset" in arguments:
            arguments["events_before_offset"] = offsets[arguments["events_before_offset"]]
        result = await ctx.store.prune(f"a{n}", **arguments)
        ctx.equal(await _offsets(ctx.store, f"a{n}"), offsets[gone:], f"offsets after prune({given})")
        ctx.equal(result.events, gone, f"the number of events that prune({given}) removed")


@check("LIFE-6", "EVT-2", "EVT-4", "EVT-8", needs=_N, under=(Dimension.EQUALS, Dimension.CHANGES, Dimension.INSTANCES))
async def producers_go_on_after_a_prune(ctx: Context) -> None:
    """After a prune offsets and seqs go on above all earlier ones, in every instance; a stored entry that is appended
    again keeps its offset, many of one seq among them, and one that was pruned is a new event.
    """
    other = await ctx.another()
    entries = [samples.event(7, cursor=i) for i in range(40)]
    offsets = list(await ctx.store.append_events("a", entries))
    await ctx.store.prune("a", events_before_offset=offsets[25])
    ctx.equal(list(await other.append_events("a", entries[25:])), offsets[25:], "entries that are stored")
    anew = list(await other.append_events("a", entries[:25]))
    ctx.true(min(anew) > offsets[-1], f"entries that were pruned must be new events, and have {anew}")
    ctx.equal(list(await ctx.store.append_events("a", entries)), [*anew, *offsets[25:]], "all entries once more")
    await other.prune("a", events_before_offset=2**62)
    left = await _offsets(ctx.store)
    ctx.equal(left, anew[-1:], "the event of the last bookmark, alone")
    for store in (ctx.store, other):
        emitted = await store.emit("a", "x")
        ctx.true(emitted.bookmark.seq > 7 and emitted.offset > left[-1], f"an emit after a prune, {emitted}")
        left.append(emitted.offset)
    ctx.equal(await _offsets(other), left, "the events at the end")
    await ctx.store.delete("a")
    (after,) = await ctx.store.append_events("a", entries[:1])
    ctx.true(after > left[-1], "the first offset after a prune and a delete")
    ctx.equal(await _offsets(other), [after], "the events of the next agent")


@check("LIFE-6", "EVT-7", "EVT-10", needs=_N, under=(Dimension.COMPANY, Dimension.INSTANCES, Dimension.CHANGES))
async def followers_go_on_after_a_prune(ctx: Context) -> None:
    """Followers that were behind, that had read everything, or the event that stays, go on with the events that are
    left and with new ones. Followers that begin at any offset or bookmark do so, too. After a delete all of them end.
    """
    other = await ctx.another()
    offsets = list(await ctx.store.append_events("a", [samples.event(i) for i in range(1200)]))
    followers = {read: other.follow_events("a") for read in (1, 700, 1200)}
    for read, follower in followers.items():
        got = [(await asyncio.wait_for(anext(follower), _SECONDS)).offset for _ in range(read)]
        ctx.equal(got, offsets[:read], f"the first {read} events")
    await ctx.store.prune("a", events_before_offset=offsets[1100])
    added = list(await ctx.store.append_events("a", [samples.event(i) for i in range(2000, 2003)]))
    for read, follower in followers.items():
        seen = [0]
        while seen[-1] != added[-1]:
            seen.append((await asyncio.wait_for(anext(follower), _SECONDS)).offset)
        wanted = [*offsets[max(read, 1100) :], *added]
        ctx.equal(seen[-len(wanted) :], wanted, f"the last events of one that had read {read}")
        ctx.equal(seen[1 : -len(wanted)], offsets[read:][: len(seen) - len(wanted) - 1], f"buffered, behind {read}")
    left = offsets[1100:] + added
    places = (0, offsets[0], offsets[700], *offsets[1098:1101], offsets[1150], added[0])
    begun: list[Begun] = [({"after_offset": place}, [one for one in left if one > place]) for place in places]
    begun += [({"since": Bookmark(seq, 0)}, left[max(seq - 1099, 0) :]) for seq in (0, 700, 1098, 1099, 1100, 1199)]
    one = await see_begun(ctx, other, begun, 2500)
    await ctx.store.prune("a", events_before_offset=2**62)
    two = await see_begun(ctx, other, [({"after_offset": place}, [one]) for place in places], 3000)
    for offset, follower in itertools.product((one, two), followers.values()):
        ctx.equal((await asyncio.wait_for(anext(follower), _SECONDS)).offset, offset, "after another prune")
    await ctx.store.delete("a")
    await ctx.store.append_events("a", [samples.event(i) for i in range(5)])
    await ctx.store.prune("a", events_before_offset=2**62)
    for read, follower in followers.items():
        await ctx.raises(AgentDeletedError, asyncio.wait_for(anext(follower), _SECONDS), f"behind {read}, at the end")
        await follower.aclose()


@check("LIFE-6", "EVT-1", needs=_N, tier=Tier.STANDARD, under=(Dimension.COMPANY, Dimension.INSTANCES))
async def writers_and_readers_go_on_meanwhile(ctx: Context) -> None:
    """While two stores prune one agent, and both append to it, no append is lost and no reader sees a gap."""
    stores = (ctx.store, await ctx.another())
    await ctx.store.append_events("a", [samples.event(i) for i in range(2000)])
    appended: list[int] = []
    is_done = False

    async def write(store: ExtendedStore, start: int) -> None:
        for i in range(30):
            appended.extend(await store.append_events("a", [samples.event(start + 10 * i + k) for k in range(10)]))

    async def read(store: ExtendedStore) -> None:
        while not is_done:
            seen = await _offsets(store)
            ctx.equal(seen, sorted(set(seen)), "offsets of a read during a prune")
            known = [offset for offset in sorted(appended) if len(seen) > 1 and seen[1] <= offset <= seen[-1]]
            ctx.equal(sorted(set(known) - set(seen)), [], "appended events that a read during a prune lacks")
            await asyncio.sleep(0)

    reading = asyncio.ensure_future(read(stores[1]))
    bound = (await _offsets(ctx.store))[1800]
    writing = [write(store, 10_000 * (n + 1)) for n, store in enumerate(stores)]
    pruning = [store.prune("a", events_before_offset=bound) for store in stores]
    await asyncio.gather(*writing, *pruning)
    is_done = True
    await reading
    left = await _offsets(ctx.store)
    last = (await ctx.store.last_bookmark("a")) or Bookmark(0, 0)
    ctx.equal(last.seq, 20_299, "the highest seq")
    ctx.equal([offset for offset in left if offset >= bound][200:], sorted(appended), "the events that were appended")


@check("LIFE-6", "OPS-9", "OPS-16", needs=_N, tier=Tier.STANDARD, under=(Dimension.INTERRUPTIONS, Dimension.INSTANCES))
async def a_prune_that_ends_early_leaves_the_newer_part(ctx: Context) -> None:
    """A prune that is cancelled, or whose progress function raises, has removed a prefix of the events that it would
    remove; the rest can be read, and another call removes it.
    """
    other, loop = await ctx.another(), asyncio.get_running_loop()

    class Enough(Exception):
        pass

    for way in ("raises", "cancelled") if ctx.harness.patience <= 1 else ("cancelled",):
        agent = f"a {way}"
        offsets: list[int] = []
        for start in range(0, 4000, 1000):
            offsets += await ctx.store.append_events(agent, samples.events(1000, start))
        steps: list[int] = []
        task: asyncio.Future[Any]

        def told(done: int, total: int | None) -> None:
            steps.append(done)  # noqa: B023
            if len(steps) == 2:  # noqa: B023
                if way == "raises":  # noqa: B023
                    raise Enough
                loop.call_soon_threadsafe(task.cancel)  # noqa: B023
            elif len(steps) > 2:  # noqa: B023
                sleep(0.05)  # in a synchronous store's thread: the cancellation is under way

        task = asyncio.ensure_future(ctx.store.prune(agent, events_before_offset=offsets[3500], progress=told))
        await asyncio.wait([task])
        ctx.equal(task.cancelled() or isinstance(task.exception(), Enough), True, f"a prune that {way} ends so")
        left = await _offsets(other, agent)
        ctx.equal(left, offsets[len(offsets) - len(left) :], f"the events that a prune that {way} left")
        ctx.true(500 < len(left) < 4000, f"a prune that {way} must have gone in steps, and left {len(left)} of 4000")
        rest = await other.prune(agent, events_before_offset=offsets[3500])
        ctx.equal(rest.events, len(left) - 500, f"what another call removed after one that {way}")
        ctx.equal(await _offsets(ctx.store, agent), offsets[3500:], f"the events at the end of one that {way}")


@check("LIFE-6", needs=_N, tier=Tier.STANDARD, under=(Dimension.ITEMS, Dimension.INSTANCES))
async def a_long_log_is_pruned(ctx: Context) -> None:
    """All of 20,000 events but the newest 100 go, also for another instance; the agent stays sound."""
    offsets: list[int] = []
    for start in range(0, 20_000, 1000):
        offsets += await ctx.store.append_events("a", samples.events(1000, start))
    result = await ctx.store.prune("a", events_before_offset=offsets[19_900])
    ctx.equal(result.events, 19_900, "the number of removed events")
    other = await ctx.another()
    ctx.equal(await _offsets(other), offsets[19_900:], "the events that are left")
    ctx.equal((await other.check_consistency("a")).issues, (), "the issues")
    again = await other.append_events("a", samples.events(100, 19_900))
    ctx.equal(list(again), offsets[19_900:], "the offsets of stored entries")
