"""MSG-9, MSG-10, MSG-11 and TC-3: a place in a list is a position, whatever the times of the records are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.model import AgentRecords, Message, ToolCallRecord
from kode_core.protocols import ExtendedStore

_D: Final = Dimension

_ORDERS: Final[Mapping[str, Callable[[int, int], int]]] = {
    "that fall along the positions": lambda i, count: samples.T0 - i,
    "in no order": lambda i, count: samples.T0 + i * 7919 % 31,
    "of which the first is the newest": lambda i, count: samples.T0 if i == 0 else i,
    "of which the last is the oldest": lambda i, count: -1 if i == count - 1 else samples.T0 + i,
    "that are all one": lambda i, count: samples.T0,
}
"""The time of a record, by its position and the number of records."""


def _bounds(count: int) -> Sequence[Mapping[str, Any]]:
    """Arguments of parts around the ends and the middle."""
    middle = count // 2
    return (
        *({}, {"last": 1}, {"last": 2}, {"last": middle}, {"last": count - 1}, {"last": count + 1}),
        *({"after": 0}, {"after": middle}, {"before": 1}, {"before": middle}, {"before": count - 1}),
        *({"after": 0, "last": 1}, {"before": count - 1, "last": 2}, {"after": 0, "before": middle, "last": 2}),
    )


def _part(records: Sequence[Any], last: int | None = None, after: int = -1, before: int | None = None) -> list[Any]:
    part = [*records[after + 1 : before]]
    return part if last is None else part[max(0, len(part) - last) :]


@check(
    *("MSG-9", "MSG-10", "MSG-11", "TC-3", "MSG-2", "LIFE-8", "FORK-4"),
    needs=Capability.EXTENDED,
    under=(_D.ORDERS, _D.CLOCKS, _D.EQUALS, _D.ITEMS, _D.INSTANCES),
)
async def places_are_positions_and_not_times(ctx: Context) -> None:
    """Whatever the times of messages and tool calls are, falling along the positions, in no order or all one, and
    however the records were written: parts, streams, pops, cuts, forks and the upsert of an id that occurs twice go by
    the positions.
    """
    stores = (ctx.store, await ctx.another())
    many = (2, 3, 26, 101) if ctx.settings.tier is Tier.QUICK else (2, 3, 5, 26, 64, 101, 129, 501)
    cases = [(count, order) for count in many for order in _ORDERS]
    for number, (count, order) in enumerate(in_time(ctx, cases)):
        agent_id, told = f"a{number}", f"{count} records with times {order}"
        times = [_ORDERS[order](i, count) for i in range(count)]
        messages, calls = samples.messages(count), [_call(i, count, time) for i, time in enumerate(times)]
        if number % 2 or ctx.settings.tier > Tier.QUICK:
            records = AgentRecords(agent_id=agent_id, messages=messages, message_times=times, tool_calls=calls)
            await stores[0].import_agent(agent_id, records)
            streamed = [message async for message in stores[1].read_messages(agent_id)]
            ctx.equal([message.created_at for message in streamed], times, f"the times of {told}, imported")
        else:  # a message that only moved keeps its time
            await stores[0].append_messages(agent_id, messages[::-1])
            await stores[1].save_messages(agent_id, messages)
            await stores[0].save_tool_call_records(agent_id, calls)
        await _see_parts(ctx, stores[number // 2 % 2], agent_id, messages, calls, told)
        await _edit(ctx, stores, agent_id, messages, calls, told)


def _call(i: int, count: int, time: int) -> ToolCallRecord:
    """A call whose times are one; the first and the last have one id."""
    name = "call_0" if i == count - 1 else f"call_{i}"
    times = {"started_at": time, "completed_at": time, "updated_at": time}
    return samples.tool_call(i, id=name, created_at=time, audit_trail=[], **times)


async def _see_parts(
    ctx: Context, store: ExtendedStore, agent_id: str, messages: list[Message], calls: list[ToolCallRecord], told: str
) -> None:
    for bounds in _bounds(len(messages)):
        what = f"the part {bounds} of {told}"
        ctx.equal(await store.load_messages(agent_id, **bounds), _part(messages, **bounds), what)
        found = await store.load_tool_call_records(agent_id, **bounds)
        ctx.equal(found, _part(calls, **bounds), f"{what}, tool calls")
    for reverse, step in ((False, 1), (True, -1)):
        found_messages = [one async for one in store.read_messages(agent_id, reverse=reverse)]
        wanted = [(i, message.text) for i, message in enumerate(messages)][::step]
        got = [(one.position, one.text) for one in found_messages]
        ctx.equal(got, wanted, f"read_messages(reverse={reverse}) of {told}")


async def _edit(
    ctx: Context,
    stores: Sequence[ExtendedStore],
    agent_id: str,
    messages: list[Message],
    calls: list[ToolCallRecord],
    told: str,
) -> None:
    """Edits at the end of the list, forks of its beginning, and upserts of the id of the first and the last call."""
    one, two = stores
    new = calls[-1].replace(result="upserted", created_at=samples.T0 - 999)
    await one.upsert_tool_call_records(agent_id, [new])
    ctx.equal(await two.load_tool_call_records(agent_id), [*calls[:-1], new], f"{told}, after an upsert of the last id")
    newest = new.replace(result="upserted by a turn", created_at=samples.T0 + 999)
    await two.save_turn(agent_id, upsert_tool_calls=[newest])
    found_calls = await one.load_tool_call_records(agent_id)
    ctx.equal(found_calls, [*calls[:-1], newest], f"{told}, after a turn that upserts the last id")
    await one.save_info(agent_id, samples.info(agent_id))
    fork = await two.fork(agent_id, length=1)
    ctx.equal(await one.load_messages(fork), messages[:1], f"a fork of the first of {told}")
    replaced = samples.message(text="replaced")
    await one.replace_message(agent_id, 1, replaced)
    messages = [messages[0], replaced, *messages[2:]]
    ctx.equal(await two.load_messages(agent_id), messages, f"{told}, of which the second was replaced")
    ctx.equal(await two.pop_messages(agent_id), messages[-1:], f"the message popped of {told}")
    ctx.equal(await one.load_messages(agent_id), messages[:-1], f"the messages that a pop left of {told}")
    length = len(messages) // 2
    await one.truncate_messages(agent_id, length)
    ctx.equal(await two.load_messages(agent_id), messages[:length], f"the messages that a cut left of {told}")
