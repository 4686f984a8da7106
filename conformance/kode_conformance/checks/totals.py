"""VAL-4: how much there is in all: records that are large together, and more than ten thousand in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kode_conformance.calls.ways import all_come_back
from kode_conformance.checks.many_reads import in_pages
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time, sizes_in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.fields import Field, Holds, fields_of, full, put
from kode_conformance.values.kinds import kinds
from kode_conformance.values.many import all_of, at_once, same
from kode_core.model import Message, Record
from kode_core.protocols import ExtendedStore
from kode_core.query import MAX_LIMIT

_D = Dimension

_SHAPES: Final[Mapping[Tier, Sequence[tuple[int, int]]]] = {
    Tier.QUICK: ((5, 300_000), (20, 60_000)),
    Tier.STANDARD: ((5, 300_000), (20, 60_000), (1000, 5_000)),
    Tier.THOROUGH: ((5, 300_000), (20, 60_000), (6, 900_000), (1000, 5_000), (5000, 1_000), (80, 64_000)),
}
"""(how many records, how long each is)"""


@check("VAL-4", "VAL-1", "FORK-1", tier=Tier.STANDARD, under=(_D.ITEMS, _D.LENGTHS, _D.INSTANCES))
async def megabytes_of_every_kind(ctx: Context) -> None:
    """A few records of hundreds of kilobytes, and many that are as large together, come back whole, of every kind, by
    every method that writes or gives them, with the large text in another field each, from forks too.
    """
    shapes = _SHAPES[ctx.settings.tier]
    turns = {Tier.QUICK: [0], Tier.STANDARD: [ctx.rng.randrange(len(shapes))]}.get(ctx.settings.tier)
    for turn in in_time(ctx, range(len(shapes)) if turns is None else turns):
        every = {record: _large(ctx, record, *shapes[(i + turn) % len(shapes)]) for i, record in enumerate(kinds())}
        await all_come_back(ctx, every, much=f"{turn}/")


def _large(ctx: Context, record: type[Record], count: int, size: int) -> list[Any]:
    """So many records, each with a text of that size in one of its own fields."""
    size = min(size, (ctx.harness.limits.max_payload_bytes or 2**40) // 2)
    fields = [
        field
        for field in fields_of(record)
        if field.holds in (Holds.TEXT, Holds.JSON, Holds.DICT, Holds.SPREAD)
        and not any(step in ("messages", "events") for step in field.path)
    ]
    made = []
    for i in range(count):
        field = fields[i % len(fields)]
        made.append(put(full(record, i), field, _text(field, f"{i}:".ljust(size, "x"))))
    return made


def _text(field: Field, text: str) -> Any:
    return {"newer": text} if field.holds in (Holds.DICT, Holds.SPREAD) else text


# --- numbers ----------------------------------------------------------------------------------------------------------

_MANY: Final = 10_001
_FEWER: Final = 1001


@check(
    "MSG-6",
    "QRY-7",
    "QRY-5",
    "QRY-6",
    "QRY-10",
    "QRY-11",
    "EVT-4",
    "VAL-4",
    "TURN-1",
    needs=Capability.QUERYABLE,
    tier=Tier.STANDARD,
    under=(_D.ITEMS, _D.INSTANCES),
)
async def ten_thousand_in_one_turn(ctx: Context) -> None:
    """More than ten thousand messages, tool calls and events of one turn are all there: the info, sessions, statistics,
    counts and groups count them, after each change too, pages of the largest limit give them all, and the first event
    again is a repeat.
    """
    other = await ctx.another()
    for count in sizes_in_time(ctx, (_FEWER, _MANY)):
        agent_id = f"a{count}"
        messages, events = samples.messages(count), samples.events(count)
        calls = [samples.tool_call(i, audit_trail=[], name=f"n{i % 3}") for i in range(count)]
        await ctx.store.save_turn(
            agent_id, messages=messages, tool_calls=calls, events=events, info=samples.info(agent_id)
        )
        same(ctx, await other.load_messages(agent_id), messages, f"{count} messages of one turn")
        same(ctx, await other.load_tool_call_records(agent_id), calls, f"{count} tool calls of one turn")
        await _counted(ctx, other, agent_id, count, count)
        for what in ("messages", "tool_calls"):
            paged = len(await in_pages(other, f"query_{what}", agent_id=agent_id, limit=MAX_LIMIT))
            ctx.equal(paged, count, f"how many {what} the largest pages give, to the last")
        for what, stream in (("messages", other.iter_messages), ("tool calls", other.iter_tool_calls)):
            streamed = len(await all_of(stream(agent_id=agent_id)))
            ctx.equal(streamed, count, f"how many {what} an iterator gives, to the last")
        await ctx.store.append_messages(agent_id, messages[:1])
        await ctx.store.upsert_tool_call_records(agent_id, [calls[0], samples.tool_call(count, name=f"n{count % 3}")])
        await _counted(ctx, other, agent_id, count + 1, count + 1)
        offsets = [event.offset for event in await all_of(other.read_events(agent_id))]
        ctx.equal(len(offsets), count, f"how many of {count} events of one turn are read")
        again = await ctx.store.append_events(agent_id, [events[0], events[-1], events[1]])
        ctx.equal(list(again), [offsets[0], offsets[-1], offsets[1]], f"the offsets of repeats of {count} events")
        ctx.equal(await other.append_event(agent_id, events[0]), offsets[0], "the offset of the first event again")
        await ctx.store.save_messages(agent_id, messages[:-1])
        await _counted(ctx, other, agent_id, count - 1, count + 1)


async def _counted(ctx: Context, store: ExtendedStore, agent_id: str, messages: int, calls: int) -> None:
    """Everything that tells how many there are."""
    case = f"of {messages} messages"
    info = await store.load_info(agent_id)
    ctx.equal(info and info.message_count, messages, f"message_count of the info {case}")
    page = await store.query_sessions(agent_id=agent_id)
    ctx.equal([one.message_count for one in page], [messages], f"message_count in query_sessions {case}")
    streamed = await all_of(store.iter_sessions(agent_id=agent_id))
    ctx.equal([one.message_count for one in streamed], [messages], f"message_count in iter_sessions {case}")
    stats = await store.aggregate_stats(agent_id)
    ctx.equal(stats.total_messages, messages, f"the total {case} in the statistics")
    ctx.equal(stats.total_tool_calls, calls, f"the total of {calls} tool calls in the statistics")
    ctx.equal(stats.tool_calls_by_state, {"COMPLETED": calls}, f"{calls} tool calls by state")
    names = {f"n{i}": len(range(i, calls, 3)) for i in range(3)}
    ctx.equal(dict(sorted(stats.tool_calls_by_name.items())), names, f"{calls} tool calls by name")
    await _grouped(ctx, store, "messages", {"agent_id": agent_id}, {"agent_id": {agent_id: messages}})
    by_name = {"agent_id": {agent_id: calls}, "tool_name": names, "state": {"COMPLETED": calls}}
    await _grouped(ctx, store, "tool_calls", {"agent_id": agent_id}, by_name)


async def _grouped(
    ctx: Context, store: ExtendedStore, kind: str, filters: Mapping[str, Any], wanted: Mapping[str, Mapping[str, int]]
) -> None:
    """The count, and the groups by each of these names, of the records that match the filters."""
    for name, numbers in wanted.items():
        case = f"of {sum(numbers.values())} {kind} by {dict(filters)}"
        ctx.equal(await getattr(store, f"count_{kind}")(**filters), sum(numbers.values()), f"the count {case}")
        for by in (name, ["day", name] if name != "agent_id" else [name, "day"]):
            found: dict[str, int] = {}
            for group in await getattr(store, f"group_{kind}")(by, **filters):
                found[group.values[name]] = found.get(group.values[name], 0) + group.count
            some = {value: count for value, count in numbers.items() if count}
            ctx.equal(dict(sorted(found.items())), some, f"the groups by {by} {case}")


@check("QRY-10", "QRY-11", needs=Capability.QUERYABLE, tier=Tier.STANDARD, under=(_D.ITEMS, _D.INSTANCES))
async def ten_thousand_agents_are_counted(ctx: Context) -> None:
    """More than ten thousand sessions, and the messages and tool calls of as many agents, are counted to the last, in
    groups too, by every kind of filter.
    """
    other, there = await ctx.another(), 0
    for count in sizes_in_time(ctx, (_FEWER, _MANY)):
        await at_once((_save(ctx.store, f"a{i}") for i in range(there, count)), 100)
        there = count
        for kind, (name, value) in _GROUPS.items():
            for filters in _FILTERS[kind]:
                await _grouped(ctx, other, kind, filters, {name: {value: count}})


_GROUPS: Final = {"sessions": ("template_id", "t"), "messages": ("role", "user"), "tool_calls": ("tool_name", "n")}
_FILTERS: Final[Mapping[str, Sequence[Mapping[str, Any]]]] = {
    "sessions": ({}, {"created_after": samples.T0}, {"template_id": "t"}, {"user_id": "u"}, {"metadata": {"k": 1}}),
    "messages": ({}, {"role": "user"}, {"content_type": "text"}, {"contains": "WORD"}, {"metadata": {"k": 1}}),
    "tool_calls": ({}, {"tool_name": "n"}, {"state": "COMPLETED"}, {"is_error": False}, {"has_approval": False}),
}
"""By the kind of record, filters that all records match that :func:`_save` makes."""


async def _save(store: ExtendedStore, agent_id: str) -> None:
    info = samples.info(agent_id, template_id="t", metadata={"userId": "u", "k": 1})
    call = samples.tool_call(0, name="n", audit_trail=[])
    await store.save_turn(
        agent_id, info=info, messages=[Message("user", "a word", metadata={"k": 1})], tool_calls=[call]
    )


_OF_16_BITS: Final = 32_769


@check(
    *("MSG-6", "QRY-7", "QRY-10", "QRY-11"),
    needs=Capability.QUERYABLE,
    tier=Tier.STANDARD,
    under=(_D.ITEMS, _D.NUMBERS, _D.INSTANCES),
)
async def counts_go_past_16_bits(ctx: Context) -> None:
    """Messages and tool calls that are more than a number of 16 bits counts are counted by info, sessions, statistics,
    counts and groups, also after the next append and after a cut.
    """
    other, there, message = await ctx.another(), 0, samples.message(text="x")
    three = [samples.tool_call(i, audit_trail=[], name=f"n{i}") for i in range(3)]
    await ctx.store.save_info("a", samples.info("a"))
    for count in sizes_in_time(ctx, (_FEWER, _OF_16_BITS, 65_537)):
        for start in range(there, count, _FEWER - 1):  # as many in a call as every store takes
            places = range(start, min(start + _FEWER - 1, count))
            calls = [three[i % 3].replace(id=f"{i}") for i in places]
            await ctx.store.save_turn("a", append=[message] * len(places), upsert_tool_calls=calls)
        await _counted(ctx, other, "a", count, count)
        there = count
    await ctx.store.append_messages("a", [message])
    await _counted(ctx, other, "a", there + 1, there)
    await ctx.store.save_messages("a", [message])
    await _counted(ctx, other, "a", 1, there)
