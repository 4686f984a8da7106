"""EVT-9 and EVT-10: heartbeats, timeouts around a follower, and the end of a follower whose agent is deleted."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Final

from kode_conformance.checks.followers import next_event
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import Suspected, judged
from kode_conformance.instruments.patience import SOON_S
from kode_conformance.instruments.yielding import turns_pass
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import AgentDeletedError, InvalidArgumentError
from kode_core.model import Bookmark
from kode_core.protocols import Heartbeat, Store
from kode_core.tenants import prefix_of

_D = Dimension
_MINUTE: Final = 60.0
_IDLE: Final = 500
"""So many calls of anext that give nothing, of which each fifth waits for 0.2 s, are too many."""


@check("EVT-9", "EVT-7", under=(_D.COMPANY, _D.INSTANCES, _D.NUMBERS))
async def heartbeats_come_in_silence(ctx: Context) -> None:
    """A follower gets a heartbeat after each quiet interval, whatever its length, and none before that, with an offset
    from which another goes on, wherever it began, and no event is lost or repeated between them; one that did not ask
    for heartbeats gets none.
    """
    other = await ctx.another()
    quiet = [asyncio.ensure_future(_beat_in_time(ctx, ctx.store, ms)) for ms in (*_ODD_MS, ctx.rng.randrange(50, 999))]
    try:
        await _see_beats(ctx, other)
        await asyncio.gather(*quiet)
    finally:
        for one in quiet:
            one.cancel()
        await asyncio.gather(*quiet, return_exceptions=True)


_ODD_MS: Final = (333, 749, 1_249, 1_490)
"""Intervals that are far above whole seconds, halves or tenths of them, so that one that was cut is too short."""
_TICK_S: Final = 0.02


async def _beat_in_time(ctx: Context, store: Store, interval_ms: int) -> None:
    """Where nothing happens, the first heartbeat of a follower comes, and no sooner than after the interval."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with aclosing(store.follow_events("quiet", heartbeat_ms=interval_ms)) as stream:
        first = await _item(ctx, stream)
    took = loop.time() - began
    ctx.true(isinstance(first, Heartbeat), f"where nothing happened came {first!r:.100}")
    told = f"the first heartbeat with heartbeat_ms={interval_ms} came after {1000 * took:.0f} ms"
    ctx.true(took >= interval_ms / 1000 - _TICK_S, told)


async def _see_beats(ctx: Context, other: Store) -> None:
    offsets = list(await ctx.store.append_events("a", [samples.event(0), samples.event(1, "control")]))
    async with aclosing(ctx.store.follow_events("a", channel="progress", heartbeat_ms=50)) as stream:
        while isinstance(first := await _item(ctx, stream), Heartbeat):
            ctx.equal(first.offset, 0, "the offset of a heartbeat before the first event was read")
        ctx.equal(first, samples.event(0), "the first event")
        _is_beat(ctx, [await _item(ctx, stream) for _ in range(2)], offsets)
        seqs = [0]
        for seq in range(2, 8):
            await (ctx.store, other)[seq % 2].append_event("a", samples.event(seq))
            while seqs[-1] != seq:
                item = await _item(ctx, stream)
                if not isinstance(item, Heartbeat):
                    seqs.append(item.bookmark.seq)
        ctx.equal(seqs, [0, *range(2, 8)], "the seqs among the heartbeats")
        while not isinstance(beat := await _item(ctx, stream), Heartbeat):
            raise Violation(f"an event came twice: {beat!r:.100}")
    last = await ctx.store.append_event("a", samples.event(8))
    async with aclosing(other.follow_events("a", after_offset=beat.offset)) as behind:
        ctx.equal((await next_event(ctx, behind, "a follower behind a heartbeat", 0)).offset, last, "its first event")
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                raise Violation(f"a follower without heartbeats got {await anext(behind)!r:.100} in silence")
    for wrong in (0, -1, 1.5, "1000", True, 2**70):
        await _refused(ctx, ctx.store, wrong)
    stored = [event.offset async for event in other.read_events("a", after_offset=0)]
    begun = [{"after_offset": after} for after in (0, stored[0], stored[4], stored[-2], last, last + 1, last + 10**6)]
    for store in (ctx.store, other):
        await asyncio.gather(*(_first_beat(ctx, store, begin, stored) for begin in begun))
    with_since = {"after_offset": stored[2], "since": Bookmark(5, 0), "channel": "progress"}
    await _first_beat(ctx, other, with_since, stored[-3:])


async def _first_beat(ctx: Context, store: Store, begin: dict[str, Any], stored: Sequence[int]) -> None:
    """The heartbeats of a follower that begins there have its last offset: the one of the event that it gave last, or,
    before the first, the one that it began with, or an earlier one from which no more is given: one that began behind
    the end may have the last stored. It goes on until a heartbeat comes after all stored events.
    """
    last = begin["after_offset"]
    left = [offset for offset in stored if offset > last]
    item: Any = None
    async with aclosing(store.follow_events("a", heartbeat_ms=50, **begin)) as stream:
        while left or not isinstance(item, Heartbeat):
            item = await _item(ctx, stream)
            if isinstance(item, Heartbeat):
                until = left[0] - 1 if left else max(last, stored[-1])
                told = f"a heartbeat of follow_events({begin}) after the offset {last} has the offset {item.offset}"
                ctx.true(min(last, stored[-1]) <= item.offset <= until, told)
            else:
                ctx.equal(item.offset, left.pop(0) if left else None, f"the next offset of follow_events({begin})")
                last = item.offset


def _is_beat(ctx: Context, items: list[Any], offsets: list[int]) -> None:
    for item in items:
        ctx.true(isinstance(item, Heartbeat), f"in silence came {item!r:.100}")
        ctx.true(offsets[0] <= item.offset <= offsets[-1], f"a heartbeat has the offset {item.offset}: {offsets}")


async def _refused(ctx: Context, store: Store, wrong: Any) -> None:
    async def follow() -> None:
        await anext(store.follow_events("a", heartbeat_ms=wrong))

    await ctx.raises(InvalidArgumentError, follow(), f"follow_events with heartbeat_ms={wrong!r}")


async def _item(ctx: Context, stream: Any) -> Any:
    async with ctx.within():
        return await anext(stream)


_FILTERS: Final[Sequence[Mapping[str, Any]]] = (
    {"channel": "monitor"},
    {"since": Bookmark(10**6, 0)},
    {"channel": "progress", "since": Bookmark(10**6, 0)},
    {"after_offset": 2**62},
)
"""Filters that leave out all events of ``_busy``."""


@check("EVT-9", under=(_D.COMPANY, _D.INSTANCES, _D.CHANGES))
async def heartbeats_come_next_to_the_events_of_others(ctx: Context) -> None:
    """A follower of a channel, since a seq or after an offset gets heartbeats while events come all the time that it
    did not ask for, appended by either instance; another one goes on from their offsets, with the next event that is
    asked for.
    """
    other, done = await ctx.another(), asyncio.Event()
    await ctx.store.append_events("a", samples.events(3))
    busy = asyncio.ensure_future(_busy((ctx.store, other), done))
    cases = [(store, filters) for store in (ctx.store, other) for filters in _FILTERS]
    try:
        beats = await asyncio.gather(*(_beats(ctx, store, filters) for store, filters in cases))
    finally:
        done.set()
        await busy
    one, two = await ctx.store.append_events("a", [samples.event(7, "monitor"), samples.event(10**6 + 1)])
    for (store, filters), beat in zip(cases, beats, strict=True):
        if "after_offset" in filters:  # of which no event will ever come
            continue
        who = f"a follower of {filters} behind the offset {beat} of a heartbeat"
        async with aclosing(store.follow_events("a", after_offset=beat, **filters)) as stream:
            found = await next_event(ctx, stream, who, 0)
        ctx.equal(found.offset, two if "since" in filters else one, f"the first event of {who}")


async def _busy(stores: Sequence[Store], done: asyncio.Event) -> None:
    """Append events of one channel with low seqs until all is done."""
    number = 0
    while not done.is_set():
        await stores[number % len(stores)].append_event("a", samples.event(10 + number))
        number += 1
        await asyncio.sleep(0.02)


async def _beats(ctx: Context, store: Store, filters: Mapping[str, Any]) -> int:
    """The offset of the second heartbeat of a follower to which nothing comes that it asked for."""
    async with aclosing(store.follow_events("a", heartbeat_ms=200, **filters)) as stream:
        for _ in range(2):
            try:
                item = await _item(ctx, stream)
            except TimeoutError:
                raise Violation(f"a follower of {filters} got no heartbeat next to events of others") from None
            ctx.true(isinstance(item, Heartbeat), f"a follower of {filters} got {item!r:.150}")
    return int(item.offset)


@check("EVT-9", "EVT-7", under=(_D.INTERRUPTIONS, _D.COMPANY, _D.INSTANCES, _D.ITEMS))
async def a_cancelled_anext_loses_nothing(ctx: Context) -> None:
    """A follower whose anext is cancelled, at whatever step, by a timeout, before and among events, gives each event
    once; a second anext at once is refused, and leaves the first one waiting; aclose ends one that waits.
    """
    other = await ctx.another()
    stream: Any = ctx.store.follow_events("a")
    with suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(stream)
    await other.append_events("a", samples.events(150))
    seen: list[int] = []
    steps = idle = 0
    while len(seen) < 150 and idle < _IDLE * ctx.harness.patience:
        upcoming = asyncio.ensure_future(anext(stream))
        await turns_pass(steps % 7)
        steps, idle = steps + 1, idle + 1
        if steps % 5 == 0:
            await asyncio.wait([upcoming], timeout=0.2)
        upcoming.cancel()
        with suppress(asyncio.CancelledError, StopAsyncIteration):
            seen.append((await upcoming).bookmark.seq)
            idle = 0
    ctx.equal(seen, list(range(150)), "the seqs that came, though most calls of anext were cancelled")
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.02)
    await ctx.raises(InvalidArgumentError, _next_of(stream), "a second anext at once")
    await ctx.store.append_event("a", samples.event(150))
    ctx.true(await ctx.ended([waiting]), "the anext that waited did not end, though an event was appended")
    ctx.equal(waiting.result().bookmark.seq, 150, "the seq that the first anext got")
    waiting = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0.02)
    await stream.aclose()
    ctx.true(await ctx.ended([waiting]), "the anext that waited did not end when its stream was closed")
    ctx.equal(waiting.result(), None, "what an anext gives when the stream is closed")
    ctx.equal(await anext(stream, None), None, "what a closed stream gives")


async def _next_of(stream: Any) -> Any:
    return await anext(stream)


@check("EVT-10", "EVT-7", "LIFE-4", under=(_D.CHANGES, _D.INSTANCES, _D.ITEMS, _D.ORDERS))
async def following_ends_at_a_delete(ctx: Context) -> None:
    """A follower of an agent that is deleted, by itself or with all that match, ends with AgentDeletedError, whichever
    instance deleted it; when the id is used again at once, it gets none of the next agent's events. A follower that
    begins later gets all of them.
    """
    other = await ctx.another()
    pairs = [(ctx.store, other), (other, ctx.store), (ctx.store, ctx.store)]
    alone = [(deleter.delete, writer) for deleter, writer in pairs]
    matching = [] if "EXTENDED" in ctx.harness.lacks else [(_matching(ctx.store), other), (_matching(other), ctx.store)]
    for round_, (delete, writer) in enumerate((*alone, *matching)):
        entries = [samples.event(seq, cursor=round_, n=seq) for seq in (9, 3, 4)]
        streams: dict[str, Any] = {}
        for name, store in (("the same instance", ctx.store), ("another instance", other)):
            streams[f"a follower in {name}"] = store.follow_events("a")
            streams[f"a follower of a channel in {name}"] = store.follow_events("a", channel="progress")
        await ctx.store.append_events("a", entries)
        for name, stream in streams.items():
            found = [await next_event(ctx, stream, name, n) for n in range(3)]
            ctx.equal(found, entries, f"what {name} got before the delete")
        await ctx.store.save_info("a", samples.info("a"))
        await delete("a")
        await writer.append_event("a", samples.event(1, cursor=round_, n=77))
        for name, stream in streams.items():
            await _ends(ctx, stream, name)
        fresh = other.follow_events("a")
        ctx.equal(
            await next_event(ctx, fresh, "a new follower", 0),
            samples.event(1, cursor=round_, n=77),
            "what a new follower got first",
        )
        await fresh.aclose()
        await ctx.store.delete("a")


def _matching(store: Any) -> Callable[[str], Awaitable[object]]:
    """Deletes an agent as one of all that match."""
    return lambda agent_id: store.delete_many(agent_id=agent_id)


@check("EVT-10", tier=Tier.STANDARD, under=(_D.INSTANCES, _D.CLOCKS))
async def followers_in_silence_end_at_a_delete(ctx: Context) -> None:
    """Followers that wait end within a minute when another instance deletes their agent, and nothing comes after, with
    events or with nothing but an info; one of an agent that is not there yet goes on and gets its first event.
    """
    other = await ctx.another()
    await ctx.store.append_events("events", samples.events(2))
    await ctx.store.save_info("info", samples.info("info"))
    streams: dict[str, Any] = {name: ctx.store.follow_events(name) for name in ("events", "info", "later")}
    for n in range(2):
        await next_event(ctx, streams["events"], "a follower", n)
    waiting = {name: asyncio.ensure_future(_next_of(stream)) for name, stream in streams.items()}
    await asyncio.sleep(0.5)
    for name in streams:
        await other.delete(name)
    try:
        gone = [waiting["events"], waiting["info"]]
        await ctx.ended(gone, _MINUTE)
        for call, what in zip(gone, ("with two events", "with an info"), strict=True):
            ctx.true(call.done(), f"the follower of an agent {what} goes on a minute after it was deleted")
            ctx.true(isinstance(call.exception(), AgentDeletedError), f"the follower of an agent {what}: {call}")
        await other.append_event("later", samples.event(5))
        ctx.true(await ctx.ended([waiting["later"]]), "a follower of an agent that was not there yet got no event")
        ctx.equal(
            waiting["later"].result(),
            samples.event(5),
            "the first event of an agent that was followed before it was there",
        )
    finally:
        for call in waiting.values():
            call.cancel()
        await asyncio.gather(*waiting.values(), return_exceptions=True)
        for stream in streams.values():
            await stream.aclose()


@check("EVT-10", "LIFE-5", "LIFE-3", needs=Capability.EXTENDED, under=(_D.CHANGES, _D.ITEMS, _D.COMPANY))
async def own_deletes_end_followers_at_once(ctx: Context) -> None:
    """Followers that wait in silence, of an agent with events or with an info alone, of all events or of one channel,
    end at once when their own store deletes the agent, alone, with all that a filter matches, or by a view for the
    store and by the store for a view: before a few rounds of other appends and of followers that get them.
    """
    await judged(partial(_end_at_once, ctx))


_ROUNDS: Final = 12
"""So many times the store appends and a follower gets the event until followers of deleted agents must have ended."""
_SILENCE_S: Final = 0.7


async def _end_at_once(ctx: Context, longer: int) -> None:
    store: tuple[Any, str] = (ctx.store, "")
    stores = {"": (store, store)}
    if "SCOPES" not in ctx.harness.lacks:
        view: tuple[Any, str] = (ctx.store.scoped("acme"), "")  # type: ignore[attr-defined]
        whole = (ctx.store, prefix_of("acme"))
        stores |= {" of a view": (view, view), ", by a view": (view, whole), " of a view, by the store": (whole, view)}
    waiting: dict[str, asyncio.Future[Any]] = {}
    streams: list[Any] = []
    deletes: list[Callable[[], Awaitable[object]]] = []
    for (where, (deleter, follower)), (way, delete) in itertools.product(stores.items(), _OWN_DELETES.items()):
        agent = f"{way}{where}{longer}"
        info = samples.info(agent, template_id=agent, metadata={"userId": agent, "of": agent})
        for what, given in {"an info": {}, "events": {"events": samples.events(2)}}.items():
            its = f"{deleter[1]}{agent} {what}"
            await deleter[0].save_turn(its, info=info.replace(agent_id=its), **given)
            for channel in (None, "progress") if given else (None,):
                stream = follower[0].follow_events(f"{follower[1]}{agent} {what}", channel=channel)
                for n in range(2 if given else 0):
                    await next_event(ctx, stream, "a follower", n)
                streams.append(stream)
                waiting[f"{channel or 'all'} of an agent with {what}, {way}{where}"] = asyncio.ensure_future(
                    anext(stream)
                )
        deletes.append(partial(delete, *deleter, agent))
    control = ctx.store.follow_events("control")
    try:
        await asyncio.sleep(_SILENCE_S * longer)
        early = [name for name, call in waiting.items() if call.done()]
        ctx.equal(early, [], "followers that ended before their agents were deleted")
        await asyncio.gather(*(act() for act in deletes))
        for number in range(_ROUNDS * longer):
            offset = await ctx.store.append_event("control", samples.event(longer * 1000 + number))
            while (await next_event(ctx, control, "a follower of another agent", number)).offset != offset:
                pass
        late = [name for name, call in waiting.items() if not call.done()]
        if late:
            told = f"followers must end at once when their own store deletes the agent; these went on: {late}"
            raise Suspected(f"{told}, through {_ROUNDS * longer} appends and looks of others")
        for name, call in waiting.items():
            ended = call.exception()
            ctx.true(isinstance(ended, AgentDeletedError), f"a follower of {name} ended with {ended!r:.200}")
    finally:
        for call in waiting.values():
            call.cancel()
        await asyncio.gather(*waiting.values(), return_exceptions=True)
        for stream in (*streams, control):
            await stream.aclose()


async def _delete_each(store: Any, scope: str, agent: str) -> None:
    for what in ("an info", "events"):
        await store.delete(f"{scope}{agent} {what}")


_OWN_DELETES: Final[Mapping[str, Callable[[Any, str, str], Awaitable[object]]]] = {
    "delete": _delete_each,
    "delete_many(template_id=)": lambda s, _, a: s.delete_many(template_id=a),
    "delete_many(user_id=)": lambda s, _, a: s.delete_many(user_id=a),
    "delete_many(metadata=, updated_after=)": lambda s, _, a: s.delete_many(metadata={"of": a}, updated_after=0),
}
"""Ways to delete two agents."""


async def _ends(ctx: Context, stream: Any, name: str) -> None:
    try:
        async with ctx.within():
            found = await anext(stream)
    except AgentDeletedError:
        await stream.aclose()
        return
    except TimeoutError:
        raise Violation(f"{name} goes on {SOON_S:g} s after its agent was deleted") from None
    except StopAsyncIteration:
        raise Violation(f"{name} ended without AgentDeletedError when its agent was deleted") from None
    raise Violation(f"{name} got {found!r:.150}, an event of the next agent") from None
