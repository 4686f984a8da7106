"""Crash after crash on one agent, and crashes of calls that are about many agents (DUR, EVT-2, LIFE-5)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from kode_conformance.context import Context, Violation, difference
from kode_conformance.kills.bigwrites import DELETE_GROUP, MANY, members, seed_big
from kode_conformance.kills.points import Attempt, Killer, points_of, reopened, see_consistent, spread
from kode_conformance.kills.writes import FORK, Portrait, Write, forked, portrait, seed
from kode_conformance.values import samples
from kode_core.protocols import ExtendedStore

__all__ = ["kill_again_and_again", "kill_delete_many", "kill_forks"]

_AGENT: Final = "killed again and again"


class _Log(NamedTuple):
    """All that is appended, in order: texts of messages, and (seq, offset) of events."""

    texts: Sequence[str]
    events: Sequence[tuple[int, int]]


async def _log_of(store: ExtendedStore) -> _Log:
    texts = [message.text for message in await store.load_messages(_AGENT)]
    events = [(event.bookmark.seq, event.offset) async for event in store.read_events(_AGENT, after_offset=-(2**62))]
    return _Log(texts, events)


async def kill_again_and_again(context: Context, kills: Killer, writes: Sequence[Write], rounds: int) -> int:
    """Kill appends of many records, one after the other on one agent, and append a few after each kill.

    Each append is stored whole, at the end, or not at all; earlier records stay; and no offset or token is given twice.
    """
    store = await context.another()
    await seed_big(store, _AGENT)
    lease = await store.acquire_agent_lock(_AGENT)
    token = lease.token
    await lease.release()
    before = await _log_of(store)
    await context.close(store)
    points = {}
    for write in writes:
        last = await kills.attempt(write, f"rehearsed {write.name}", 0)
        points[write] = points_of(context, kills, last, context.effort.kills)
    done, history = 0, ""
    for number in kills.in_time(range(rounds)):
        write = writes[number % len(writes)]
        attempt = await kills.attempt(write, _AGENT, context.rng.choice(points[write]), with_seed=False)
        history = f"crash {number + 1} in a row: {attempt.shown(max(points[write]))}"
        async with reopened(context, history) as store:
            before, token = await _go_on(store, attempt, before, token, number)
        done += 1
    async with reopened(context, f"opened once more, after {history}") as store:
        _see_equal(await _log_of(store), before)
    return done


async def _go_on(store: ExtendedStore, attempt: Attempt, before: _Log, token: int, number: int) -> tuple[_Log, int]:
    """Judge a crash, and append one message and one event, under a lease, after it."""
    found = await _log_of(store)
    _see_added(found, before, attempt)
    lease = await store.acquire_agent_lock(_AGENT, ttl_ms=60_000)
    if lease.token <= token:
        raise Violation(f"a lease after the crash got the token {lease.token}, after {token} before")
    text, seq = f"after crash {number}", 1 + max(seq for seq, _ in found.events)  # an offset that was not used (EVT-4)
    await store.append_messages(_AGENT, [samples.message(text=text)], fence=lease)
    offset = await store.append_event(_AGENT, samples.event(seq), fence=lease)
    if found.events and offset <= max(old for _, old in found.events):
        raise Violation(f"an event after the crash got the offset {offset}, which is not above all before it")
    await lease.release()
    wanted = _Log([*found.texts, text], [*found.events, (seq, offset)])
    _see_equal(await _log_of(store), wanted)
    await see_consistent(store, _AGENT, after_delete=False)
    return wanted, lease.token


def _see_added(found: _Log, before: _Log, attempt: Attempt) -> None:
    """Check that the earlier records are still stored, followed by all appended records or by none."""
    for name, old, new in (("messages", before.texts, found.texts), ("events", before.events, found.events)):
        kept = difference(list(new[: len(old)]), list(old))
        if kept is not None:
            raise Violation(f"of the {name} that were there before: {kept}")
        added = len(new) - len(old)
        is_mine = name in attempt.write
        if added not in (0, MANY if is_mine else 0) or (attempt.acknowledged and is_mine and not added):
            raise Violation(f"of {MANY if is_mine else 0} {name} that were appended {added} are there")
    offsets = [offset for _, offset in found.events]
    if offsets != sorted(set(offsets)):
        raise Violation("offsets of events do not grow")


def _see_equal(found: _Log, wanted: _Log) -> None:
    problem = difference(found, wanted)
    if problem is not None:
        raise Violation(f"after messages and events were appended to what a crash left: {problem}")


async def kill_forks(
    context: Context, kills: Killer, others: int, *, fork: Write = FORK, at_most: int = sys.maxsize
) -> int:
    """Kill ``batch_fork`` at its calls: each fork is whole or absent (FORK-3)."""
    store = await context.another()
    await fork.prepare(store, "parent")
    (model, *_) = forks = await fork.act(store, "parent")
    whole = forked(await portrait(store, model))
    known = {*forks}
    await context.close(store)
    last = await kills.attempt(fork, "parent", 0, with_seed=False)
    points, done = points_of(context, kills, last, others), 0
    for point in kills.in_time((0, *spread(context, points, at_most))):
        attempt = last if not point else await kills.attempt(fork, "parent", point, with_seed=False)
        async with reopened(context, attempt.shown(last.calls)) as store:
            known |= await _judge_forks(store, known, attempt, whole)
        done += 1
    return done


async def _judge_forks(store: ExtendedStore, known: set[str], attempt: Attempt, whole: Portrait) -> set[str]:
    new = set(await store.list("agt-")) - known
    if attempt.result is not None and new != set(attempt.result):
        raise Violation(f"{len(attempt.result)} forks were acknowledged, {len(new)} are there")
    for fork in new:
        problem = difference(forked(await portrait(store, fork)), whole)
        if problem is not None:
            raise Violation(f"a fork is there in part: {problem}")
        await see_consistent(store, fork, after_delete=False)
    await see_consistent(store, "parent", after_delete=False)
    return new


async def kill_delete_many(context: Context, kills: Killer, others: int, at_most: int) -> int:
    """Kill ``delete_many``: each session is whole or gone, and a second call finishes the deletion (LIFE-5, LIFE-3)."""
    store = await context.another()
    await seed(store, "kept")
    kept, nothing = await portrait(store, "kept"), await portrait(store, "nobody")
    await context.close(store)
    last = await kills.attempt(DELETE_GROUP, "group 0", 0)
    points, done = points_of(context, kills, last, others), 0
    for point in kills.in_time((0, *spread(context, points, at_most))):
        group = f"group {point}"
        attempt = await kills.attempt(DELETE_GROUP, group, point) if point else last
        async with reopened(context, attempt.shown(last.calls)) as store:
            await _see_whole_or_gone(store, group, nothing, attempt)
            await store.delete_many(template_id=group)
            for member in members(group):
                await _see_same(await portrait(store, member), nothing, f"{member!r} after delete_many was repeated")
            await _see_same(await portrait(store, "kept"), kept, "an agent that the filter does not find")
        done += 1
    return done


async def _see_whole_or_gone(store: ExtendedStore, group: str, nothing: object, attempt: Attempt) -> None:
    whole = await _whole(store, group)
    for member in members(group):
        found = await portrait(store, member)
        is_gone = difference(found, nothing) is None
        if attempt.acknowledged and not is_gone:
            raise Violation(f"{member!r} was deleted, which was acknowledged, and is there")
        if not is_gone and difference({**found, "listed": True}, whole) is not None:
            raise Violation(f"{member!r} is there in part: {difference(found, whole)}")


async def _whole(store: ExtendedStore, group: str) -> object:
    """The state of each agent of a group before it is deleted."""
    await seed(store, "model")
    await store.save_info("model", samples.info("model", template_id=group))
    return await portrait(store, "model")


async def _see_same(found: object, wanted: object, what: str) -> None:
    problem = difference(found, wanted)
    if problem is not None:
        raise Violation(f"{what}: {problem}")
