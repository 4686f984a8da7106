"""LIFE-3, LIFE-4, LIFE-6, MSG-4, LOCK-5: writes after every kind of delete and prune, and under clocks that step."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from kode_conformance.calls.fenced import FencedWrite, fenced_writes
from kode_conformance.calls.methods import DOCUMENT_METHODS
from kode_conformance.checks.times import by_time
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.clock import clock_off
from kode_conformance.instruments.pace import in_time
from kode_conformance.kills.writes import forked, portrait
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import LockLostError
from kode_core.model import Timeline
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED
_D: Final = Dimension

_DELETES: Final[Mapping[str, Callable[[ExtendedStore, str], Awaitable[object]]]] = {
    "delete": lambda s, a: s.delete(a),
    "delete_many(agent_id=)": lambda s, a: s.delete_many(agent_id=a),
    "delete_many(template_id=)": lambda s, a: s.delete_many(template_id=a),
    "delete_many(user_id=)": lambda s, a: s.delete_many(user_id=a),
    "delete_many(metadata=)": lambda s, a: s.delete_many(metadata={"of": a}),
    "delete_many(agent_id=, created_before=)": lambda s, a: s.delete_many(agent_id=a, created_before=2**62),
    "delete_many(agent_id=, updated_after=)": lambda s, a: s.delete_many(agent_id=a, updated_after=0),
}
"""Every way in which an agent can go."""


def _writes(agent_id: str) -> list[FencedWrite]:
    """All but emits, which are new however often they are repeated."""
    return [write for write in fenced_writes(agent_id) if write.method != "delete" and "emit" not in write.method]


async def _begin(store: ExtendedStore, agent_id: str) -> None:
    metadata = {"userId": agent_id, "of": agent_id}
    await store.save_info(agent_id, samples.info(agent_id, template_id=agent_id, metadata=metadata))


@check("LIFE-4", "LIFE-3", "EVT-4", "LIFE-5", needs=_E, under=(_D.CHANGES, _D.ORDERS, _D.INSTANCES, _D.EQUALS))
async def every_write_is_new_after_every_delete(ctx: Context) -> None:
    """A write that is repeated exactly after its agent was deleted, in each way and by either instance, is stored as
    the first write of a new agent, by each method and each part of a turn: the store remembers nothing of the old
    agent, and takes none of its records for stored already.
    """
    stores, rounds = (ctx.store, await ctx.another()), 1 if ctx.settings.tier is Tier.QUICK else len(_DELETES)
    ways = list(_DELETES.items())
    for round_ in in_time(ctx, range(rounds)):
        for number, write in enumerate(_writes("fresh")):
            way, delete = ways[(number + round_) % len(ways)]
            agent, fresh = f"{write.name}-{round_}", f"{write.name}-{round_}-fresh"
            mine = _writes(agent)[number]
            await _begin(ctx.store, agent)
            before = await mine.act(stores[number % 2], agent)
            await portrait(stores[(number + 1) % 2], agent)
            await delete(stores[number // 2 % 2], agent)
            again = await mine.act(stores[(number + round_) % 2], agent)
            await _writes(fresh)[number].act(ctx.store, fresh)
            wanted = await portrait(ctx.store, fresh)
            ctx.true(any(wanted.values()), f"the agent holds nothing after {write.name} to a new agent")
            for i in (number, number + 1):
                found = await portrait(stores[i % 2], agent)
                ctx.equal(found, wanted, f"the agent after {write.name}, {way}, and {write.name} again")
            if write.method == "append_messages_once":
                ctx.equal(again, before, f"the answer after {way}: the same keys are new again, at the same positions")
            elif write.method in DOCUMENT_METHODS:
                ctx.true(again != before, f"versions after {way} must be new: {before}, then {again}")
            elif before:
                first, last = (list(x) if isinstance(x, Sequence) else [x] for x in (again, before))
                ctx.true(first[0] > last[-1], f"offsets after {way} must be new: {last}, then {first}")


@check("LIFE-4", "MSG-4", needs=_E, under=(_D.CHANGES, _D.CLOCKS, _D.INSTANCES))
async def messages_have_new_times_after_every_delete(ctx: Context) -> None:
    """Messages that are saved again after their agent was deleted, in each way and by either instance, get the times of
    the new save, not their earlier times.
    """
    stores = (ctx.store, await ctx.another())
    for number, (way, delete) in enumerate(_DELETES.items()):
        for i, method in enumerate(("save_messages", "append_messages")):
            agent = f"{method} {way}"
            with clock_off(-7200):
                await _begin(ctx.store, agent)
                await getattr(stores[i], method)(agent, samples.messages(3))
            await delete(stores[number % 2], agent)
            await ctx.store.save_messages("now", [samples.message(number)])
            (now,) = await ctx.store.query_messages(agent_id="now")
            await getattr(stores[(number + i) % 2], method)(agent, samples.messages(3))
            for message in await stores[i].query_messages(agent_id=agent):
                late = message.created_at > now.created_at - 3_600_000
                ctx.true(late, f"{method} after {way} gave message {message.position} the time of the deleted one")


_STEPS: Final = (0, 3600, -3600, 0, -90_000, 86_400 * 400, 1, -1)
"""How far the clock is off, in seconds, at one call after the other."""
_LATER: Final = (0, 86_400 * 2, 86_400 * 9, 86_400 * 40, 86_400 * 400 * 2, 86_400 * 365 * 11)
"""How far the clock is off at a read, in seconds: no record expires, however old it is."""


@check(
    *("MSG-4", "MSG-1", "MSG-8", "TC-1", "TODO-1", "HIS-1", "HIS-2", "MED-1", "SNAP-1", "INFO-1", "LIFE-4", "FORK-1"),
    needs=_E,
    under=(_D.CLOCKS, _D.INSTANCES, _D.CHANGES),
)
async def no_write_is_lost_under_any_clock(ctx: Context) -> None:
    """Each write, by each method and part of a turn, first, again, and after a delete, is visible in loads, sessions
    and forks although the clock steps ahead and back between the calls, and days and years later; the times of messages
    never fall along positions.
    """
    stores = (ctx.store, await ctx.another())
    steps = [("a write", i) for i in range(len(_writes("a")))]
    for number, (_, i) in enumerate([*steps, ("delete", -1), *steps[::-1]]):
        off = _STEPS[number % len(_STEPS)]
        calls = {agent: (_writes(agent)[i] if i >= 0 else fenced_writes(agent)[-1]) for agent in ("steady", "stepping")}
        await calls["steady"].act(ctx.store, "steady")
        with clock_off(off):
            await calls["stepping"].act(stores[number % 2], "stepping")
        wanted, what = await portrait(ctx.store, "steady"), f"{calls['steady'].name} with the clock off by {off} s"
        ctx.true(any(wanted.values()) or i < 0, f"the agent holds nothing after {calls['steady'].name}")
        later = _LATER[number % len(_LATER)]
        with clock_off(later):
            found = await portrait(stores[(number + 1) % 2], "stepping")
        ctx.equal(found, wanted, f"the agent after {what}, read with the clock off by {later} s")
        messages = sorted(await by_time(ctx.store, "stepping"), key=lambda message: message.position)
        times = [message.created_at for message in messages]
        ctx.equal(times, sorted(times), f"the times of messages along their positions after {what}")
        ctx.equal(len(times), len(wanted["messages"]), f"how many messages a query finds after {what}")
        sessions = await ctx.store.query_sessions(agent_id="stepping")
        ctx.equal(len(sessions), int(wanted["exists"]), f"how many sessions a query finds after {what}")
        if wanted["exists"] and number % 5 == 0:
            await _see_a_fork(ctx, stores[number % 2], off, times)


async def _see_a_fork(ctx: Context, store: ExtendedStore, off: float, times: list[int]) -> None:
    with clock_off(off):
        (fork,) = await store.batch_fork("stepping", 1)
    parent, found = forked(await portrait(ctx.store, "stepping")), forked(await portrait(ctx.store, fork))
    for kind in ("messages", "tool calls", "todos", "media", "snapshots"):
        ctx.equal(found[kind], parent[kind], f"the {kind} of a fork that was made with the clock off by {off} s")
    messages = sorted(await by_time(ctx.store, fork), key=lambda message: message.position)
    ctx.equal([message.created_at for message in messages], times, "the times of messages of a fork")
    info: Any = await ctx.store.load_info(fork)
    sessions = await ctx.store.query_sessions(agent_id=fork)
    ctx.equal([s.created_at for s in sessions], [info.created_at], "created_at of the session of a fork")


@check("LOCK-5", "EVT-2", "LIFE-3", "LIFE-5", needs=_E, under=(_D.CHANGES, _D.ORDERS, _D.INSTANCES))
async def tokens_and_offsets_go_on_whatever_is_done(ctx: Context) -> None:
    """After each way in which an agent can go, and after each write, a new lease has a greater token than any before
    and a new event a greater offset, in every instance, and the holder of an earlier lease is still refused.
    """
    stores = (ctx.store, await ctx.another())
    acts = {**_DELETES, **{write.name: write.act for write in _writes("a")}}
    for number, (what, act) in enumerate(in_time(ctx, acts.items())):
        agent = "a" if what not in _DELETES else f"a{number}"
        await _begin(ctx.store, agent)
        for i in range(2):  # a second time for the agent that was made anew
            first, then = stores[(number + i) % 2], stores[number // 2 % 2]
            old = await first.acquire_agent_lock(agent)
            offset = await first.append_event(agent, samples.event(number * 10 + i + 1000))
            await old.release()
            await act(then, agent)
            await _begin(then, agent)
            new = await stores[i].acquire_agent_lock(agent)
            ctx.true(new.token > old.token, f"the token after {what} must be new: {old.token}, then {new.token}")
            late = f"todos under a lease from before {what}"
            await ctx.raises(LockLostError, then.save_todos(agent, samples.todos("late"), fence=old), late)
            await new.release()
            following = await stores[i].append_event(agent, samples.event(number * 10 + i + 5000))
            ctx.true(following > offset, f"the offset after {what} must be new: {offset}, then {following}")


_APPENDS: Final[Mapping[str, Callable[[ExtendedStore, str, Timeline], Awaitable[int]]]] = {
    "append_event": lambda s, a, entry: s.append_event(a, entry),
    "append_events": lambda s, a, entry: _only(s.append_events(a, [entry])),
    "save_turn": lambda s, a, entry: _only(s.save_turn(a, append=samples.messages(1), events=[entry])),
}
"""Every way in which an event of the caller's own comes into a log."""


async def _only(call: Awaitable[Sequence[int]]) -> int:
    (offset,) = await call
    return offset


_PRUNES: Final[Sequence[tuple[Mapping[str, Any], int]]] = (({"events_before": 2**62}, 6), ({}, 4))
"""Arguments of a prune, and how many of the six oldest events it removes; without any, by an offset."""


@check(
    *("EVT-2", "EVT-4", "LIFE-6", "TURN-2"),
    needs=_E | Capability.PRUNING,
    under=(_D.CHANGES, _D.ORDERS, _D.EQUALS, _D.INSTANCES),
)
async def logs_go_on_after_every_prune(ctx: Context) -> None:
    """The next offsets are new after a prune by any instance, whether the event of the last bookmark comes before the
    removed events, among them or after them, in every instance and after reopening. A pruned event is stored again by
    each method and instance, also by the one that appended it before, and a kept event has its offset still.
    """
    stores, given = (ctx.store, await ctx.another()), dict[str, list[int]]()
    cases = list(itertools.product((0, 3, 5), _APPENDS.items(), (0, 1)))  # each second one has the other instance prune
    if ctx.settings.tier is Tier.QUICK:
        cases = [cases[i + i // 2 % 2] for i in range(0, len(cases), 2)]
    for number, (highest, (method, append), pruner) in enumerate(in_time(ctx, cases)):
        agent, (arguments, gone) = f"a{number}", _PRUNES[number // 2 % 2]
        entries = [samples.event(900 if i == highest else 10 + i, n=i) for i in range(6)]
        offsets = [await append(ctx.store, agent, entry) for entry in entries]
        bound = {"events_before_offset": offsets[-1] + 1 if gone == 6 else offsets[gone]}
        what = f"instance {pruner} pruned {gone} of 6 events, of which {highest} is the last by seq"
        await stores[pruner].prune(agent, **(arguments or bound))
        known = given[agent] = [*offsets]
        for i in (0, 1):
            new = await append(stores[(number + i) % 2], agent, samples.event(20 + i, n=i))
            ctx.true(new > known[-1], f"an offset by {method} after {what} must be new: {known}, then {new}")
            known.append(new)
        for i, entry in enumerate(entries):
            again = await append(stores[0 if i < 2 else number % 2], agent, entry)
            if i == highest or i >= gone:
                ctx.equal(again, offsets[i], f"the offset of event {i}, which stayed, by {method} after {what}")
            else:
                ctx.true(again > known[-1], f"event {i} by {method} after {what} must be new: {known}, then {again}")
                known.append(again)
        stays = {offset for i, offset in enumerate(offsets) if i == highest or i >= gone}
        wanted = [offset for offset in known if offset not in offsets or offset in stays]
        found = [event.offset async for event in stores[(number + 1) % 2].read_events(agent, after_offset=0)]
        ctx.equal(found, wanted, f"the offsets of the log after {what}, and all came by {method} again")
        await stores[1 - pruner].prune(agent, events_before_offset=2**62)
    if "PERSISTENT" not in ctx.harness.lacks:
        await ctx.close(stores[1])
        stores = (await ctx.reopen(),) * 2
    for number, (agent, known) in enumerate(given.items()):
        new = await stores[number % 2].append_event(agent, samples.event(30))
        ctx.true(new > known[-1], f"an offset after another prune must be new: {known}, then {new}")
