"""VAL-2, LOCK-5, OPS-9, MSG-3: large calls that end badly, or have company, by every method that takes a list."""

from __future__ import annotations

import asyncio
import copy
import functools
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.histories.model import StoreModel
from kode_conformance.instruments.pace import in_time, sizes_in_time
from kode_conformance.kills.writes import portrait
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values.large import LARGE, Large, Look, looks_at, state_of
from kode_conformance.values.many import LISTS, Listing
from kode_core.engine import Engine
from kode_core.errors import LockLostError
from kode_core.layers import Layer
from kode_core.protocols import ExtendedStore

_D: Final = Dimension
_FEW: Final = 3
_LISTS: Final = ("MSG-1", "MSG-3", "TC-1", "TC-3", "TURN-1", "MED-1", "EVT-1")


def _counts(ctx: Context) -> Sequence[int]:
    """One record more than each usual batch, so that the last one begins another batch."""
    return (26, 101, 501, 1001) if ctx.settings.tier is Tier.QUICK else (26, 101, 501, 1001, 2500, 10_001)


def _calls(ctx: Context) -> Iterator[Large]:
    """All large calls, in an order of the run's seed: where the store is slow, as many as there is time for."""
    return in_time(ctx, ctx.rng.sample(LARGE, len(LARGE)))


async def _begin(store: ExtendedStore, agent_id: str) -> StoreModel:
    """An agent with a few of everything that lists are made of, and the model of it."""
    model = StoreModel()
    for call in LARGE:
        if call.whole or call.method in ("append_messages", "upsert_tool_call_records", "save_turn"):
            continue
        given = call.arguments(agent_id, _FEW, "old", 0)
        await call.act(store, agent_id, given)
        call.note(model, agent_id, given)
    return model


async def _seen(store: ExtendedStore, agent_id: str, looks: Mapping[str, Look]) -> dict[str, str]:
    return {name: await look(store, agent_id) for name, look in looks.items()}


# --- refused ----------------------------------------------------------------------------------------------------------


@check("VAL-2", *_LISTS, "ID-4", under=(_D.ITEMS, _D.ORDERS, _D.INSTANCES))
async def the_last_of_many_is_refused_with_all(ctx: Context) -> None:
    """When the last record of a call cannot be stored, the 26th, 101st, 501st or 1,001st of any list that a method
    takes, nothing of the call is stored: no other record, no other list, and no other part.
    """
    other = await ctx.another()
    model = await _begin(ctx.store, "a")
    before = await portrait(other, "a")
    for count in sizes_in_time(ctx, _counts(ctx)):
        for call in LARGE:
            given = call.arguments("a", count)
            for parameter in call.lists:
                what = f"{call.name} of {count}, the last of {parameter} being one that cannot be stored"
                spoilt, error = call.spoilt(given, parameter)
                await ctx.raises(error, call.act(ctx.store, "a", spoilt), what)
            looks = looks_at(call, (*ctx.harness.lacks, "QUERYABLE"), count)
            found = await _seen(other, "a", looks)
            ctx.equal(found, state_of(model, call, "a", looks), f"the agent after {call.name} of {count} was refused")
        ctx.equal(await portrait(other, "a"), before, f"the agent after all calls of {count} were refused")
    ctx.equal(await portrait(ctx.store, "a"), before, "the agent after all of these were refused, in this instance")


@check("LOCK-5", *_LISTS, needs=Capability.EXTENDED, tier=Tier.STANDARD, under=(_D.ITEMS, _D.INSTANCES))
async def nothing_of_a_large_call_under_a_lost_lease(ctx: Context) -> None:
    """A call of hundreds of records under a lease that has ended raises LockLostError, by whatever method and list, and
    stores nothing; under the lease that is held all of it is stored.
    """
    other, count = await ctx.another(), 501 if ctx.settings.tier is Tier.QUICK else 2500
    model = await _begin(ctx.store, "a")
    before = await portrait(other, "a")
    ended = await ctx.store.acquire_agent_lock("a")
    await ended.release()
    lease = await other.acquire_agent_lock("a", ttl_ms=600_000)
    for call in _calls(ctx):
        made = call.arguments("a", count)
        await ctx.raises(LockLostError, call.act(ctx.store, "a", made, fence=ended), f"{call.name} of {count}")
    ctx.equal(await portrait(other, "a"), before, "the agent after all of these were refused")
    call = LARGE[-1]
    looks = looks_at(call, ctx.harness.lacks, count)
    made = call.arguments("a", count)
    await call.act(other, "a", made, fence=lease)
    call.note(model, "a", made)
    ctx.equal(await _seen(ctx.store, "a", looks), state_of(model, call, "a", looks), f"after {call.name}, fenced")
    await lease.release()


# --- cancelled --------------------------------------------------------------------------------------------------------


@check("OPS-9", *_LISTS, tier=Tier.STANDARD, under=(_D.INTERRUPTIONS, _D.ITEMS, _D.INSTANCES))
async def a_large_call_that_is_cancelled(ctx: Context) -> None:
    """A call of hundreds of records, by whatever method and list, that is cancelled at its first step, after a third or
    after most of its time is stored whole or not at all, as the next reads of this store and of others show.
    """
    other, quick = await ctx.another(), ctx.settings.tier is Tier.QUICK
    for count in sizes_in_time(ctx, (301,) if quick else (1001,)):
        for number, call in enumerate(_calls(ctx)):
            agents = [f"{call.name}-{count}-{i}" for i in range(1 if quick else 4)]
            begun = time.monotonic()
            await call.act(ctx.store, f"{call.name} timed", call.arguments(f"{call.name} timed", count))
            takes = time.monotonic() - begun
            for i, agent_id in enumerate(agents):
                moment = takes * ((i + number / len(LARGE)) / len(agents))
                await _cancel(ctx, other, call, agent_id, count, moment)


async def _cancel(ctx: Context, other: ExtendedStore, call: Large, agent_id: str, count: int, moment: float) -> None:
    model, given = await _begin(ctx.store, agent_id), call.arguments(agent_id, count)
    looks = looks_at(call, ctx.harness.lacks, count)
    before = state_of(model, call, agent_id, looks)
    call.note(model, agent_id, given)
    after = state_of(model, call, agent_id, looks)
    task = asyncio.ensure_future(call.act(ctx.store, agent_id, given))
    await asyncio.sleep(moment)
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
        before = after
    what = f"after {call.name} of {count} was cancelled"
    found = await _seen(ctx.store, agent_id, looks)
    ctx.true(found in (before, after), f"{what}, it must be there whole or not at all: {_runs(found, before, after)}")
    ctx.equal(await _seen(other, agent_id, looks), found, f"another instance, {what}")


def _runs(found: Mapping[str, str], before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The results of the looks that differ before and after the call."""
    moved = [name for name in found if before[name] != after[name] or found[name] != after[name]]
    return "; ".join(f"{name} gives {found[name]:.300}, before {before[name]}, after {after[name]}" for name in moved)


# --- in company -------------------------------------------------------------------------------------------------------


@check(*_LISTS, "OPS-10", tier=Tier.STANDARD, under=(_D.ITEMS, _D.COMPANY, _D.INSTANCES))
async def two_large_calls_at_once(ctx: Context) -> None:
    """Two calls of hundreds of records, by the same method to the same agent at once, in two instances, are each stored
    in one piece, in all their kinds, as after one of the two orders.
    """
    stores = (ctx.store, await ctx.another())
    for count in sizes_in_time(ctx, (201,) if ctx.settings.tier is Tier.QUICK else (201, 1001)):
        for call in _calls(ctx):
            agent_id = f"{call.name}-{count}"
            model = await _begin(ctx.store, agent_id)
            looks = looks_at(call, ctx.harness.lacks, count)
            both = [call.arguments(agent_id, count, tag, start) for tag, start in (("x", 2), ("y", count // 2))]
            wanted = []
            for order in itertools.permutations(both):
                after = copy.deepcopy(model)
                for given in order:
                    call.note(after, agent_id, given)
                wanted.append(state_of(after, call, agent_id, looks))
            await asyncio.gather(*(call.act(s, agent_id, given) for s, given in zip(stores, both, strict=True)))
            for store in stores:
                found = await _seen(store, agent_id, looks)
                shown = _runs(found, wanted[0], wanted[1]).replace("before", "x first").replace("after", "y first")
                ctx.true(found in wanted, f"two of {call.name} at once, of {count} each: {shown}")


_POLLED: Final = {Tier.QUICK: (1101,), Tier.STANDARD: (1101, 2500, 10_001), Tier.THOROUGH: (1101, 2500, 10_001)}


@check(
    *_LISTS, "MSG-6", "QRY-8", "LIFE-3", tier=Tier.STANDARD, stochastic=True, under=(_D.ITEMS, _D.COMPANY, _D.INSTANCES)
)
async def more_than_a_thousand_are_seen_whole(ctx: Context) -> None:
    """While one call of more than a thousand records is under way, by whatever method and list, a poll of loads,
    queries, counts and the list in another instance sees all of it or nothing, and never nothing again after all; the
    same holds for the delete of it all.
    """
    other = await ctx.another()
    for count in sizes_in_time(ctx, _POLLED[ctx.settings.tier]):
        for call in _calls(ctx) if count < 10_000 else LARGE[ctx.rng.randrange(3) :: 3]:
            agent = f"{call.name}-{count}"
            if not call.whole:
                await _see_the_first(ctx, other, call, f"{agent}-first", count)
                if ctx.settings.tier is Tier.QUICK:
                    continue
            model = await _begin(ctx.store, agent)
            looks = looks_at(call, ctx.harness.lacks, count)
            given = call.arguments(agent, count)
            await _see_a_call(ctx, other, call, agent, given, model, looks, f"{call.name} of {count}")
            if call is LARGE[-1]:
                await _see_the_delete(ctx, other, call, agent, count)


class _Meanwhile(Layer):
    """Does something before one of the engine calls that are made from the beginning on."""

    _before = 0
    _act: Callable[[], Awaitable[object]] | None = None

    def begin(self, before: int, act: Callable[[], Awaitable[object]]) -> None:
        """Do it after so many calls."""
        self._before, self._act = before, act

    def end(self) -> bool:
        """Do it no more; true if there were more calls than that, and it was done."""
        act, self._act = self._act, None
        return act is None

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self._before -= 1
        if self._act is not None and self._before < 0:
            act, self._act = self._act, None
            await act()
        return await call(*args, **kwargs)


_MOST_CALLS: Final = 6
_Load = Callable[[ExtendedStore], Awaitable[Sequence[Any]]]
_PARTS: Final[Mapping[str, Sequence[_Load]]] = {
    "messages": [lambda s: s.load_messages("a", after=0)],
    "tool calls": [lambda s: s.load_tool_call_records("a", after=0)],
}
"""Loads of all but the first record."""


async def _load(listing: Listing, store: ExtendedStore) -> Sequence[Any]:
    return await listing.load(store, "a")


@check("MSG-1", "TC-1", "MED-1", "MSG-9", needs=Capability.EXTENDED, under=(_D.ITEMS, _D.ORDERS, _D.INSTANCES))
async def a_long_list_is_loaded_at_one_instant(ctx: Context) -> None:
    """When another instance replaces a list of more than a thousand records before any of the engine calls that one
    load makes, of the whole or of a part, the load gives the old records or the new ones, and not some of each.
    """
    layers: list[_Meanwhile] = []

    def put(engine: Engine) -> Engine:
        layers.append(_Meanwhile(engine))
        return layers[-1]

    store, count = await ctx.another(put), 1101 if ctx.harness.patience <= 1 else 301
    for listing in in_time(ctx, LISTS):
        save = listing.replaces[min(listing.replaces)]
        old = listing.items(count)
        await save(ctx.store, "a", old)
        whole: _Load = functools.partial(_load, listing)
        for start, read in enumerate([whole, *_PARTS.get(listing.name, ())]):
            for before in range(_MOST_CALLS):
                new = listing.items(count, f" {start} {before}")
                layers[0].begin(before, functools.partial(save, ctx.store, "a", new))
                found = list(await read(store))
                if not layers[0].end():  # the load makes no more calls
                    break
                fresh = sum(record == wanted for record, wanted in zip(found, new[start:], strict=False))
                is_one = found in (old[start:], new[start:])
                what = f"the {listing.name}, all replaced before engine call {before + 1} of a load"
                ctx.true(is_one, f"{what}: {len(found)} came, {fresh} of them new, and {count - start} are there")
                old = new


async def _see_the_first(ctx: Context, other: ExtendedStore, call: Large, agent: str, count: int) -> None:
    """The same for the first call that the agent sees, and for a second one over it, in the loads alone."""
    model = StoreModel()
    looks = dict(itertools.islice(looks_at(call, ctx.harness.lacks, count).items(), max(2, len(call.lists))))
    for what, tag in (("the first", "new"), ("over as many", "other")):
        given = call.arguments(agent, count, tag)
        await _see_a_call(ctx, other, call, agent, given, model, looks, f"{call.name} of {count}, {what}")


async def _see_a_call(
    ctx: Context,
    other: ExtendedStore,
    call: Large,
    agent: str,
    given: Mapping[str, Any],
    model: StoreModel,
    looks: Mapping[str, Look],
    what: str,
) -> None:
    """Make the call, in the model too; while it is under way, the other instance must give the state before it or after
    it.
    """
    before = state_of(model, call, agent, looks)
    call.note(model, agent, given)
    after = state_of(model, call, agent, looks)
    await _poll(other, agent, looks, call.act(ctx.store, agent, given), [before, after], what)


async def _see_the_delete(ctx: Context, other: ExtendedStore, call: Large, agent: str, count: int) -> None:
    looks = looks_at(call, ctx.harness.lacks, count, streams=False)  # a stream may come to a sudden end
    before = await _seen(other, agent, looks)
    nothing = state_of(StoreModel(), call, agent, looks)
    await _poll(other, agent, looks, ctx.store.delete(agent), [before, nothing], f"delete of {count} of each")


async def _poll(
    store: ExtendedStore,
    agent_id: str,
    looks: Mapping[str, Look],
    acting: Any,
    states: Sequence[Mapping[str, str]],
    what: str,
) -> None:
    """Look until the call has ended, and once more: at the first list all the time, and at all else in turn."""
    before, after = states
    proved: list[str] = []
    task = asyncio.ensure_future(acting)

    async def keep_looking(names: Sequence[str]) -> None:
        ended = False
        while not ended:
            ended = task.done()
            for name in names:
                known = "".join(proved[:1]) or ("its end" if ended else "")
                found = await looks[name](store, agent_id)
                case = f"{name} gave {found:.300} while {what} was under way"
                if found not in (before[name], after[name]):
                    raise Violation(f"{case}, and may give {before[name]} or {after[name]}")
                if found != after[name] and known:
                    raise Violation(f"{case}, as before it, when {known} had told of it: {after[name]}")
                if found != before[name]:
                    proved.append(name)
                await asyncio.sleep(0)

    first, *others = looks
    try:
        await asyncio.gather(keep_looking([first]), keep_looking(others))
    finally:
        await asyncio.wait([task])
    task.result()
