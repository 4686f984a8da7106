"""MSG-9, MSG-10 and MSG-11: parts of a list, and edits in place."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

from kode_conformance.calls.methods import DOCUMENT_METHODS
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension, counts
from kode_conformance.harness import keeps_documents
from kode_conformance.instruments.costs import memory_of
from kode_conformance.instruments.pace import in_time, sizes_in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import InvalidArgumentError
from kode_core.model import DeleteDocument, Message, PutDocument, ToolUseBlock
from kode_core.protocols import ExtendedStore

_E = Capability.EXTENDED
_D = Dimension
_WRITERS: Final = 4
_EACH: Final = {Tier.QUICK: 8, Tier.STANDARD: 25, Tier.THOROUGH: 100}


def _bounds(count: int) -> Iterator[dict[str, Any]]:
    """Arguments of parts of a list of so many records: around its ends, its middle and the length of pages."""
    places = sorted({0, 1, 63, 64, 65, count // 2, count - 2, count - 1, count, count + 1, 2**31, 2**63} - {-2, -1})
    yield {}
    for place in places:
        yield from ({"last": place}, {"after": place}, {"before": place})
    for after, before in itertools.product(places[:6], places[-6:]):
        yield {"after": after, "before": before}
        yield {"after": after, "before": before, "last": 2}


def _part(records: list[Any], last: int | None = None, after: int = -1, before: int | None = None) -> list[Any]:
    """The part of a list by slices."""
    part = records[after + 1 : before]
    return part if last is None else part[max(0, len(part) - last) :]


@check("MSG-9", "TC-1", "QRY-8", needs=_E, under=(_D.ITEMS, _D.NUMBERS, _D.INSTANCES, _D.CHANGES))
async def parts_are_what_the_whole_list_has_there(ctx: Context) -> None:
    """Every part of a list, by each combination of last, after and before, has the records that the whole list has
    there, for messages and tool calls, in the instance that wrote them and in another; and so it is in an instance that
    read all parts before the other one made the list longer, shorter or another one.
    """
    stores = [ctx.store, await ctx.another()]
    most = 257 if ctx.settings.tier is Tier.QUICK else 1025
    for number, count in enumerate(in_time(ctx, counts(ctx.settings.tier, most=most))):
        agent_id = f"a{count}"
        times = [samples.T0 + i * 7919 % 97 for i in range(count)]  # a part goes by positions, whatever the times
        messages, calls = samples.messages(count), [samples.tool_call(i, created_at=times[i]) for i in range(count)]
        await ctx.store.save_turn(agent_id, messages=messages, tool_calls=calls)
        every = 3 if count > 8 and ctx.settings.tier is Tier.QUICK else 1
        for i, bounds in enumerate(itertools.islice(_bounds(count), number % every, None, every)):
            store = stores[(number + i) % 2]
            told = f"a part {bounds} of {count}"
            ctx.equal(await store.load_messages(agent_id, **bounds), _part(messages, **bounds), told)
            found = await store.load_tool_call_records(agent_id, **bounds)
            ctx.equal(found, _part(calls, **bounds), f"{told} tool calls")
    await _see_parts_of_changes(ctx, stores)


_STEPS: Final[Sequence[tuple[str, Mapping[str, Any], int | None, int | None]]] = (
    ("save_turn", {"messages": samples.messages(4), "tool_calls": [samples.tool_call(i) for i in range(4)]}, 0, 0),
    ("append_messages", {"messages": samples.messages(3, 10)}, None, None),
    ("upsert_tool_call_records", {"records": [samples.tool_call(i) for i in (10, 11)]}, None, None),
    ("append_messages_once", {"messages": {"k": samples.message(20)}}, None, None),
    ("save_turn", {"append": samples.messages(2, 30), "upsert_tool_calls": [samples.tool_call(30)]}, None, None),
    ("pop_messages", {"count": 3}, -3, None),
    ("truncate_messages", {"length": 2}, 2, None),
    ("save_messages", {"messages": samples.messages(5, 40)}, 0, None),
    ("save_tool_call_records", {"records": [samples.tool_call(50)]}, None, 0),
    ("delete", {}, 0, 0),
    ("append_messages", {"messages": samples.messages(1, 60)}, 0, 0),
)
"""Methods that change a list, their arguments, and the end of the messages and of the tool calls that stay."""

_FEW_BOUNDS: Final[Sequence[Mapping[str, Any]]] = (
    *({"last": 1}, {}, {"last": 2}, {"last": 5}, {"after": 0}, {"after": 3}, {"before": 2}),
    *({"before": 50, "last": 2}, {"after": 1, "last": 3}, {"after": 2, "before": 6}),
)


async def _see_parts_of_changes(ctx: Context, stores: Sequence[ExtendedStore]) -> None:
    """After each change both instances, which read the same parts before, give the parts of the new list."""
    messages: list[Any] = []
    calls: list[Any] = []
    steps = [step for step in _STEPS if keeps_documents() or step[0] not in DOCUMENT_METHODS]
    for number, (method, given, messages_left, calls_left) in enumerate(in_time(ctx, steps)):
        await getattr(stores[number % 2], method)("changed", **given)
        fresh = {name: [*one.values()] if isinstance(one, dict) else one for name, one in given.items()}
        messages = [*messages[:messages_left], *fresh.get("messages", fresh.get("append", ()))]
        new = fresh.get("tool_calls", fresh.get("upsert_tool_calls", fresh.get("records", ())))
        calls = [*calls[:calls_left], *new]
        for store, bounds in itertools.product(stores, _FEW_BOUNDS):
            told = (
                f"a part {bounds} after {method}, by {'the same' if store is stores[number % 2] else 'another'} store"
            )
            ctx.equal(await store.load_messages("changed", **bounds), _part(messages, **bounds), told)
            found = await store.load_tool_call_records("changed", **bounds)
            ctx.equal(found, _part(calls, **bounds), f"{told}, tool calls")


@check("MSG-9", needs=_E, tier=Tier.STANDARD, under=(_D.COMPANY, _D.INSTANCES, _D.CHANGES))
async def a_part_is_of_one_instant(ctx: Context) -> None:
    """The last records of a list that another instance keeps replacing are the last of one of its states."""
    other = await ctx.another()
    states = [[samples.message(text=f"{state}")] * (1 + 7 * state % 40) for state in range(1, 9)]
    await ctx.store.save_messages("a", states[0])
    ended = asyncio.Event()

    async def replace() -> None:
        for _ in range(_EACH[ctx.settings.tier]):
            for state in states:
                await other.save_messages("a", state)
        ended.set()

    async def look() -> None:
        while not ended.is_set():
            found = await ctx.store.load_messages("a", last=5)
            ctx.true(found in [state[-5:] for state in states], f"the last of no state: {[m.text for m in found]}")
            await asyncio.sleep(0)

    await asyncio.gather(replace(), look())
    ctx.equal(await ctx.store.load_messages("a", last=5), states[-1][-5:], "the last messages in the end")


@check("MSG-10", "MSG-4", needs=_E, under=(_D.ITEMS, _D.INSTANCES, _D.CHANGES))
async def messages_are_streamed_with_their_places(ctx: Context) -> None:
    """read_messages yields each message with its agent, position and time, in both directions and between bounds."""
    other = await ctx.another()
    for count in in_time(ctx, counts(ctx.settings.tier, most=1025)):
        agent_id, messages = f"a{count}", samples.messages(count)
        await ctx.store.append_messages(agent_id, messages[: count // 2])
        await ctx.store.save_messages(agent_id, messages)
        rows = [row async for row in other.iter_messages(agent_id=agent_id, order="asc")]
        times = [row.created_at for row in sorted(rows, key=lambda row: row.position)]
        parts: list[dict[str, Any]] = [
            {},
            {"after": 0},
            {"before": count - 1},
            {"after": 1, "before": 66},
            {"after": count},
        ]
        for bounds in parts:
            if bounds.get("before", 0) < 0:
                continue
            found = [one async for one in other.read_messages(agent_id, **bounds)]
            told = f"read_messages of {count} with {bounds}"
            ctx.equal(found, _part(messages, **bounds), told)
            ctx.equal([one.position for one in found], _part([*range(count)], **bounds), f"positions of {told}")
            ctx.equal([one.created_at for one in found], _part(times, **bounds), f"times of {told}")
            ctx.equal({one.agent_id for one in found} <= {agent_id}, True, f"the agents of {told}")
            back = [one async for one in ctx.store.read_messages(agent_id, reverse=True, **bounds)]
            ctx.equal(back, found[::-1], f"{told}, in reverse")


@check("MSG-10", needs=_E, under=(_D.COMPANY,))
async def what_is_streamed_is_complete_next_to_appends(ctx: Context) -> None:
    """While others append, a stream in either direction yields each message once that was there when it began."""
    other, messages = await ctx.another(), samples.messages(150)
    await ctx.store.save_messages("a", messages)
    for reverse in (False, True):
        seen: list[Message] = []
        async for one in ctx.store.read_messages("a", reverse=reverse):
            if len(seen) % 20 == 0:
                await other.append_messages("a", samples.messages(1, 1000 + len(seen)))
            seen.append(one)
            if len(seen) > 1000:
                break
        old = [one for one in seen if one in messages]
        ctx.equal(old, messages[::-1] if reverse else messages, f"the messages of before, with reverse={reverse}")


@check("MSG-11", needs=_E, under=(_D.ITEMS, _D.CHANGES, _D.INSTANCES))
async def edits_change_what_they_name(ctx: Context) -> None:
    """pop, truncate and replace change what they name, return what they removed, and leave the rest with its times,
    after saves by the same instance and by another.
    """
    stores = [ctx.store, await ctx.another()]
    for number, count in enumerate(in_time(ctx, counts(ctx.settings.tier, most=501)[1:])):
        agent_id, wanted = f"a{count}", samples.messages(count)
        await ctx.store.save_messages(agent_id, wanted)
        times = await _times(ctx.store, agent_id)
        one, two = stores[number % 2], stores[1 - number % 2]
        ctx.equal(await one.pop_messages(agent_id), wanted[-1:], f"the last of {count}")
        ctx.equal(await two.pop_messages(agent_id, 3), wanted[:-1][-3:], f"the three before the last of {count}")
        wanted = wanted[:-4]
        ctx.equal(await one.pop_messages(agent_id, 0), [], "none of the messages")
        ctx.equal(await two.truncate_messages(agent_id, count + 5), 0, "how many are behind the end")
        if wanted:
            new = samples.message(text=f"another of {count}")
            for store, place in ((one, 0), (two, len(wanted) // 2), (one, len(wanted) - 1)):
                await store.replace_message(agent_id, place, new)
                wanted[place] = new
            ctx.equal(await two.load_messages(agent_id), wanted, f"{count} after the edits")
            ctx.equal(await _times(two, agent_id), times[: len(wanted)], f"the times of {count} after the edits")
        keep = len(wanted) // 2
        ctx.equal(await one.truncate_messages(agent_id, keep), len(wanted) - keep, "how many were removed")
        ctx.equal(await two.load_messages(agent_id), wanted[:keep], "the messages that stay")
        await one.append_messages(agent_id, samples.messages(1, 9000))
        wanted = [*wanted[:keep], *samples.messages(1, 9000)]
        ctx.equal(await two.load_messages(agent_id), wanted, "after one more was added")
        await two.save_messages(agent_id, wanted[::-1])
        ctx.equal(await one.load_messages(agent_id), wanted[::-1], "after all were saved by the other instance")


@check("MSG-11", "VAL-4", "MSG-1", "TC-1", needs=_E, under=(_D.ITEMS, _D.CHANGES, _D.INSTANCES))
async def edits_of_more_than_a_thousand_are_whole(ctx: Context) -> None:
    """A call that removes more than a thousand records from a list returns all of them, or their whole number, and
    removes just them: pop and truncate, with few and many left, saves of shorter lists, and deletes of documents.
    """
    one, two = ctx.store, await ctx.another()
    few = ctx.settings.tier is Tier.QUICK or ctx.harness.patience > 1
    for count in sizes_in_time(ctx, (1101,) if few else (1101, 2500, 10_002)):
        agent_id, every = f"a{count}", samples.messages(count)
        await one.save_messages(agent_id, every)
        popped = list(await two.pop_messages(agent_id, count - 5))
        ctx.equal(popped, every[5:], f"what a pop of {count - 5} of {count} returned")
        ctx.equal(await one.load_messages(agent_id), every[:5], f"what a pop of {count - 5} left")
        await two.append_messages(agent_id, every[5:])
        ctx.equal(await one.truncate_messages(agent_id, 2), count - 2, f"how many a truncate of {count} to 2 removed")
        ctx.equal(await two.load_messages(agent_id), every[:2], f"what a truncate of {count} to 2 left")
        await two.append_messages(agent_id, every[2:])
        ctx.equal(list(await one.pop_messages(agent_id, count + 7)), every, f"what a pop of more than {count} returned")
        ctx.equal(await two.load_messages(agent_id), [], f"what a pop of more than {count} left")
        await _shrink(ctx, agent_id, one, two, count)


async def _shrink(ctx: Context, agent_id: str, one: ExtendedStore, two: ExtendedStore, count: int) -> None:
    """Lists that are replaced by shorter ones, and documents that are deleted, more than a thousand in a call."""
    calls = [samples.tool_call(i, audit_trail=[]) for i in range(count)]
    await one.save_turn(agent_id, messages=samples.messages(count), tool_calls=calls)
    await two.save_messages(agent_id, samples.messages(3))
    ctx.equal(await one.load_messages(agent_id), samples.messages(3), f"the messages that replaced {count}")
    await two.save_tool_call_records(agent_id, calls[-2:])
    ctx.equal(await one.load_tool_call_records(agent_id), calls[-2:], f"the tool calls that replaced {count}")
    if keeps_documents() and ctx.settings.tier > Tier.QUICK:
        keys = [f"k{i:05}" for i in range(1000)]
        await one.write_documents(agent_id, [PutDocument("c", key, key) for key in keys])
        await one.put_document(agent_id, "c", "last", 1)
        await two.write_documents(agent_id, [DeleteDocument("c", key) for key in keys])
        left = list(await one.list_document_keys(agent_id, "c"))
        ctx.equal(left, ["last"], "the documents that a delete of a thousand in one call left")


@check("MSG-11", "VAL-1", needs=_E, under=(_D.EQUALS, _D.INSTANCES))
async def a_replacement_by_an_equal_is_one(ctx: Context) -> None:
    """A message that is replaced by one which many comparisons take for equal, such as 1 by True, is the new one."""
    stores = [ctx.store, await ctx.another()]
    await ctx.store.save_messages("a", samples.messages(3))
    for n, (is_inside, value) in enumerate(itertools.product((False, True), _EQUALS)):
        held: dict[str, Any] = {"n": {"m": value}} if is_inside else {"n": value}
        new = Message("assistant", [ToolUseBlock("c", "search", held)])
        await stores[n % 2].replace_message("a", 1, new)
        found = (await stores[1 - n % 2].load_messages("a"))[1]
        ctx.equal(found, new, f"the message that was replaced by one with {held!r}")


_EQUALS: Final[tuple[Any, ...]] = (
    *(1, True, 1.0, True, 1, 0, False, 0.0, -0.0, 0, [1], [True], [1.0]),
    *({"y": 0, "z": 1}, {"z": 1, "y": 0}, {"z": True, "y": False}, 2**53, 2**53 + 1, float(2**53), "\u00e9", "e\u0301"),
)
"""Each is taken for the next one by some language or database."""


async def _times(store: ExtendedStore, agent_id: str) -> list[int]:
    return [one.created_at async for one in store.read_messages(agent_id)]


@check("MSG-11", "INFO-2", "INFO-3", needs=_E, under=(_D.NUMBERS, _D.EQUALS))
async def edits_of_nothing_change_nothing(ctx: Context) -> None:
    """Edits that find nothing to do leave no trace, and places that do not exist are refused, with whatever list."""
    await ctx.store.save_info("b", samples.info("b"))
    before = await ctx.store.load_version("b")
    ctx.equal(await ctx.store.pop_messages("a", 2), [], "popped from nothing")
    ctx.equal(await ctx.store.truncate_messages("a", 0), 0, "cut from nothing")
    ctx.equal(
        await ctx.store.load_version("a"), await ctx.store.load_version("nobody"), "the version of an absent agent"
    )
    ctx.equal(await ctx.store.pop_messages("b"), [], "popped from an empty list")
    ctx.equal(await ctx.store.truncate_messages("b", 0), 0, "cut from an empty list")
    for place in (0, 1, 2**63, -1):
        await ctx.raises(
            InvalidArgumentError, ctx.store.replace_message("b", place, samples.message()), f"place {place}"
        )
    ctx.equal(await ctx.store.load_version("b"), before, "the version after edits of nothing")
    ctx.equal(await ctx.store.exists("b"), True, "whether the agent exists")
    for count in (1, 2, 5, 64, 65):
        await _refuse_places(ctx, f"c{count}", count)


async def _refuse_places(ctx: Context, agent_id: str, count: int) -> None:
    """Places that a list of this length does not have are refused, also by a caller that demands the version or writes
    under a lease, and the list stays; so do negative numbers of messages.
    """
    other = await ctx.another()
    await ctx.store.save_messages(agent_id, samples.messages(count))
    lease = await other.acquire_agent_lock(agent_id)
    before = await ctx.store.load_version(agent_id)
    stored = [one async for one in other.read_messages(agent_id)]
    callers: tuple[tuple[ExtendedStore, dict[str, Any]], ...] = (
        *((ctx.store, {}), (ctx.store, {"expect": before})),
        *((other, {"fence": lease}), (other, {"expect": before, "fence": lease})),
    )
    for store, given in callers:
        for place in (count, count + 1, 2 * count + 7, 2**31, 2**63, -1, -count, -count - 1, -(2**63)):
            told = f"replace_message at {place} of {count} messages, with {[*given]}"
            new = samples.message(text="beyond")
            await ctx.raises(InvalidArgumentError, store.replace_message(agent_id, place, new, **given), told)
        left = [one async for one in other.read_messages(agent_id)]
        ctx.equal(left, stored, f"the {count} messages after edits at places that do not exist, with {[*given]}")
        ctx.equal(await store.load_version(agent_id), before, f"the version after them, with {[*given]}")
    for number in (-1, -count, -(2**63)):
        for edit in (other.pop_messages, ctx.store.truncate_messages):
            told = f"{edit.__name__}({number}) of {count} messages"
            await ctx.raises(InvalidArgumentError, edit(agent_id, number), told)
            ctx.equal(await ctx.store.load_version(agent_id), before, f"the version after {told}")
    new = samples.message(text="the last")
    await other.replace_message(agent_id, count - 1, new, expect=before, fence=lease)
    ctx.equal((await ctx.store.load_messages(agent_id))[-1:], [new], f"the last of {count} after it was replaced")
    await lease.release()


@check("MSG-11", "MSG-3", needs=_E, under=(_D.COMPANY, _D.INSTANCES, _D.ORDERS))
async def pops_lose_no_append_and_take_nothing_twice(ctx: Context) -> None:
    """While instances append to a list and others pop from it, each message is popped once, or stays."""
    stores, each = [ctx.store, await ctx.another(), await ctx.another()], _EACH[ctx.settings.tier]
    added: list[Message] = []
    popped: list[Message] = []

    async def append(number: int) -> None:
        for i in range(each):
            message = samples.message(text=f"{number}-{i}")
            await stores[number % 3].append_messages("a", [message])
            added.append(message)

    async def pop(number: int) -> None:
        for i in range(each):
            popped.extend(await stores[(number + 1) % 3].pop_messages("a", 1 + i % 3))

    await asyncio.gather(*map(append, range(_WRITERS)), *map(pop, range(_WRITERS)))
    left = await stores[1].load_messages("a")
    texts = sorted(message.text for message in (*popped, *left))
    ctx.equal(texts, sorted(message.text for message in added), "all messages that were popped or stay")


@check("MSG-9", "MSG-10", "MSG-11", needs=_E, under=(_D.COSTS, _D.ITEMS, _D.INSTANCES))
async def parts_and_edits_cost_what_they_contain(ctx: Context) -> None:
    """A part of a long list, the first message of a stream and an edit of one message take no more memory than with a
    short list, in an instance that has not read the list before.
    """
    many, text = _LONG[ctx.settings.tier], "x" * 4000
    for agent_id, count in (("short", 100), ("long", many)):
        await ctx.store.save_messages(agent_id, [samples.message(text=f"{i} {text}") for i in range(count)])
    whole = many * len(text)
    for name, call in _SMALL.items():
        fresh = await ctx.another()
        await call(fresh, "warm")  # what the first call of all loads and keeps
        for _ in range(_TRIES):  # a store may finish a large write in the background, or at the first read
            short, long = [await memory_of(functools.partial(call, fresh, agent_id)) for agent_id in ("short", "long")]
            if long <= short + whole // 4:
                break
            await asyncio.sleep(_WAIT_S)
        told = f"{name} takes {short:,} bytes of memory with 100 messages, and {long:,} with {many:,}, {whole:,} bytes"
        ctx.true(long <= short + whole // 4, told)
        await ctx.close(fresh)
    left = (await ctx.store.aggregate_stats("long")).total_messages
    ctx.true(2 <= many - left <= 2 * len(_SMALL), f"pops and cuts must remove messages: {left} of {many} are left")


_TRIES: Final = 3
_WAIT_S: Final = 0.5
_LONG: Final = {Tier.QUICK: 600, Tier.STANDARD: 2000, Tier.THOROUGH: 20_000}


async def _first_of(store: ExtendedStore, agent_id: str) -> None:
    stream = store.read_messages(agent_id, reverse=True)
    await anext(stream, None)
    await cast(AsyncGenerator[Any, None], stream).aclose()


async def _replace_last(store: ExtendedStore, agent_id: str) -> None:
    count = (await store.aggregate_stats(agent_id)).total_messages
    if count:
        await store.replace_message(agent_id, count - 1, samples.message())


async def _cut_last(store: ExtendedStore, agent_id: str) -> None:
    count = (await store.aggregate_stats(agent_id)).total_messages
    await store.truncate_messages(agent_id, max(0, count - 1))


_SMALL: Final[Mapping[str, Callable[[ExtendedStore, str], Awaitable[object]]]] = {
    "load_messages(last=3)": lambda store, agent_id: store.load_messages(agent_id, last=3),
    "load_messages(before=3)": lambda store, agent_id: store.load_messages(agent_id, before=3),
    "read_messages to its first": _first_of,
    "pop_messages": lambda store, agent_id: store.pop_messages(agent_id),
    "replace_message": _replace_last,
    "truncate_messages by one": _cut_last,
}
"""Calls that read or change a few messages."""
