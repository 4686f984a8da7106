"""MSG-4: the times of messages follow their positions while messages are edited and clocks step back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from kode_conformance.context import Context, Unverified
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.clock import clock_off
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.model import StoredMessage
from kode_core.protocols import ExtendedStore

_Q = Capability.QUERYABLE
_HOUR_S: Final = 3600


async def by_time(store: ExtendedStore, agent_id: str = "a") -> list[StoredMessage]:
    """The agent's messages by their times, oldest first."""
    return list(await store.query_messages(agent_id=agent_id, order="asc", limit=1000))


async def _by_position(ctx: Context, what: str) -> list[int]:
    """The times of the messages, which must be in the order of positions."""
    found = await by_time(ctx.store)
    ctx.equal([m.position for m in found], list(range(len(found))), f"positions of messages by time, {what}")
    return [m.created_at for m in found]


@check("MSG-4", needs=_Q, under=(Dimension.CLOCKS, Dimension.INSTANCES))
async def appended_messages_are_never_older(ctx: Context) -> None:
    """Messages that are appended after the clock stepped back are not older than the messages before them, whichever
    instance appends them and by whatever call.
    """
    store, other = ctx.store, await ctx.another()
    m = samples.messages(9)
    await store.append_messages("a", m[:2])
    with clock_off(-_HOUR_S):
        await other.append_messages("probe", m[:1])
    (now,), before = [m.created_at for m in await by_time(store, "probe")], await _by_position(ctx, "at first")
    if now > before[0] - _HOUR_S * 500:
        raise Unverified("the store does not take its times from the clock of this process")
    with clock_off(-_HOUR_S):
        await store.append_messages("a", m[2:3])
        await other.append_messages("a", m[3:4])
        await store.save_turn("a", append=m[4:5])
        await other.save_messages("a", m[:6])
        await store.append_messages("a", m[6:8])
    after = await _by_position(ctx, "after the clock stepped back")
    ctx.equal(after[:2], before, "the times of messages that were there before")
    await store.append_messages("a", m[8:])
    last = await _by_position(ctx, "after the clock was put right")
    ctx.equal(last[:8], after, "the times of what was there before the clock was put right")
    ctx.equal(await store.load_messages("a"), m, "the messages")


@check("MSG-4", "QRY-5", needs=_Q, under=(Dimension.CLOCKS, Dimension.CHANGES))
async def edited_messages_keep_their_place_in_time(ctx: Context) -> None:
    """A message that is replaced at its position keeps the time of that position: times follow positions, and who pages
    through the messages by time meanwhile finds each of them once.
    """
    other = await ctx.another()
    m = samples.messages(6)
    for i in range(6):
        await ctx.store.save_messages("a", m[: i + 1])
        await asyncio.sleep(0.004)
    before = await _by_position(ctx, "at first")
    ctx.true(len(set(before)) > 1, "messages of different saves must have different times")
    page = await ctx.store.query_messages(agent_id="a", order="asc", limit=2)
    places = [found.position for found in page]
    for n, store in enumerate((ctx.store, other, ctx.store)):
        m[n] = samples.message(text=f"edited {n}").replace(metadata={"thumb": "up"})
        await store.save_messages("a", m)
        ctx.equal(await _by_position(ctx, f"after message {n} was edited"), before, "the times of the messages")
        if page.next_cursor is not None:
            page = await ctx.store.query_messages(agent_id="a", order="asc", limit=2, cursor=page.next_cursor)
            places += [found.position for found in page]
    ctx.equal(places, list(range(6)), "positions in pages that were read while messages were edited")
    m[4:] = [samples.message(text="edited 4"), samples.message(text="edited 5"), samples.message(text="new")]
    await ctx.store.save_messages("a", m)
    after = await _by_position(ctx, "after two were edited and one was added")
    ctx.equal(after[:6], before, "the times of what was there")
    ctx.equal(await other.load_messages("a"), m, "the messages")


_Write = Callable[[ExtendedStore, str, Sequence[Any]], Awaitable[object]]


def _rest(agent: str) -> dict[str, Any]:
    """The parts that a turn may carry besides its messages."""
    return {
        "upsert_tool_calls": [samples.tool_call(1)],
        "todos": samples.todos("x"),
        "info": samples.info(agent),
        "events": samples.events(2),
    }


WAYS: Final[Mapping[str, tuple[bool, _Write]]] = {
    "save_messages": (True, lambda s, a, m: s.save_messages(a, m)),
    "save_turn(messages)": (True, lambda s, a, m: s.save_turn(a, messages=m)),
    "save_turn(messages) with all else": (True, lambda s, a, m: s.save_turn(a, messages=m, **_rest(a))),
    "append_messages": (False, lambda s, a, m: s.append_messages(a, m)),
    "save_turn(append)": (False, lambda s, a, m: s.save_turn(a, append=m)),
    "save_turn(append) with all else": (False, lambda s, a, m: s.save_turn(a, append=m, **_rest(a))),
}
"""Each way to write messages, and whether it takes the whole list; otherwise it adds its messages."""
_OLD: Final = 4
_CASES: Final = (
    *(
        (name, edited, added)
        for name, (takes_all, _) in WAYS.items()
        if takes_all
        for edited, added in ((0, 0), (0, 1), (_OLD - 1, 0), (_OLD - 1, 1), (2, 1001))
    ),
    *((name, None, added) for name, (takes_all, _) in WAYS.items() if not takes_all for added in (1, 1001)),
)
"""A way, the position that it replaces, and how many messages it adds."""


@check("MSG-4", needs=_Q, under=(Dimension.ITEMS, Dimension.CHANGES, Dimension.INSTANCES))
async def times_stay_whatever_way_and_however_many(ctx: Context) -> None:
    """The messages that were there keep their times, also one that is replaced, the first or the last, by whatever way
    the list is written, in a turn with every other kind too, and however many the call adds or takes away.
    """
    other = await ctx.another()
    m = samples.messages(_OLD)
    for message in m:
        await asyncio.gather(*(ctx.store.append_messages(f"{case}", [message]) for case in _CASES))
        await asyncio.sleep(0.002)
    for case in in_time(ctx, _CASES):
        (name, position, added), agent = case, f"{case}"
        _, write = WAYS[name]
        new, kept = samples.messages(added, _OLD), list(m)
        if position is not None:
            kept[position] = samples.message(text="edited")
        before = [found.created_at for found in await by_time(ctx.store, agent)]
        await write(ctx.store, agent, new if position is None else kept + new)
        when = f"after {name} replaced message {position} and added {added}"
        await _keeps(ctx, other, agent, before, kept + new, when)
        await (other.save_messages(agent, kept[:3]) if position is None else write(other, agent, kept[:3]))
        await _keeps(ctx, ctx.store, agent, before[:3], kept[:3], f"{when}, and a cut")


async def _keeps(
    ctx: Context, store: ExtendedStore, agent: str, before: Sequence[int], wanted: Sequence[Any], when: str
) -> None:
    """Check that the first messages keep their times, and that all messages are stored, in the order of time."""
    found = (await by_time(store, agent))[: len(wanted)]
    ctx.equal([message.created_at for message in found[: len(before)]], [*before], f"the times {when}")
    ctx.equal([message.position for message in found], list(range(min(len(wanted), 1000))), f"positions {when}")
    ctx.equal(await store.load_messages(agent), [*wanted], f"the messages {when}")


@check("MSG-4", needs=_Q, under=(Dimension.CLOCKS, Dimension.CHANGES, Dimension.ORDERS))
async def an_appended_message_is_older_than_none_before_it(ctx: Context) -> None:
    """A message that is added by whatever way, by an instance whose clock is an hour behind, is as new as the newest
    before it, also where that one is not the last: the oldest was moved behind it, or it to the front.
    """
    with clock_off(-3600.0):
        behind = await ctx.another()
        await behind.save_messages("another", samples.messages(1))
    moves = {"the oldest was moved to the end": (1, 2, 3, 0), "the newest was moved to the front": (3, 0, 1, 2)}
    for name, (takes_all, write) in in_time(ctx, WAYS.items()):
        for i, (how, order) in enumerate(moves.items()):
            agent, messages = f"{name}-{i}", samples.messages(4)
            for message in messages:
                await ctx.store.append_messages(agent, [message])
                await asyncio.sleep(0.002)
            moved, new = [messages[place] for place in order], samples.message(text="new")
            await ctx.store.save_messages(agent, moved)
            with clock_off(-3600.0):
                await write(behind, agent, [*moved, new] if takes_all else [new])
            found = sorted(await by_time(ctx.store, agent), key=lambda message: message.position)
            times = [message.created_at for message in found]
            ctx.equal(len(times), 5, f"how many messages there are after {name}")
            ctx.true(times[-1] >= max(times), f"times after {how}, and {name} added one: {times}")


@check("VAL-5", "MSG-4", "INFO-2", needs=_Q, under=(Dimension.CLOCKS, Dimension.CHANGES))
async def calls_a_moment_apart_have_two_times(ctx: Context) -> None:
    """Messages of two calls that are some milliseconds apart have two times, by whatever way they are written, and so
    has the session before and after.
    """
    for name, (takes_all, write) in in_time(ctx, WAYS.items()):
        await ctx.store.save_info(name, samples.info(name))
        updated = []
        for count in range(1, 4):
            messages = samples.messages(count)
            await write(ctx.store, name, messages if takes_all else messages[-1:])
            updated += [session.updated_at for session in await ctx.store.query_sessions(agent_id=name)]
            await asyncio.sleep(0.02)
        times = [message.created_at for message in await by_time(ctx.store, name)]
        ctx.equal(len(set(times)), 3, f"how many times three messages have, each added by {name} 20 ms later")
        near = updated[2] - updated[0] < 10_000
        ctx.true(updated == sorted(set(updated)) and near, f"updated_at of the session after {name}: {updated}")
