"""OPS-4, QRY-9: damage as every search, every instance and every call under way meets it, until it is replaced."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from kode_conformance.checks.damage import PARTS, damaged_parts, damaging, paged
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Unverified
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.kills.writes import FORK, LOOKS, WRITES, Expected, Portrait, Write, expected, portrait, seed
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.canaries import overheard
from kode_core.errors import CorruptRecordError, KodeError
from kode_core.protocols import ExtendedStore, QueryableStore

_E: Final = Capability.EXTENDED
_BAD: Final = "a"
"""The agent with damaged records."""

_SINCE: Final = {"created_after": 0}
_FILTERS: Final[Mapping[str, Sequence[Mapping[str, Any]]]] = {
    "sessions": ({}, {"template_id": "assistant"}, {"user_id": "u-1"}, {"metadata": {"plan": "gold"}}, _SINCE),
    "messages": ({}, {"role": "user"}, {"content_type": "text"}, _SINCE),
    "tool_calls": ({}, {"tool_name": "search"}, {"state": "COMPLETED"}, {"is_error": False}, _SINCE),
}
"""Filters that match every row, by the kind of row."""
_SORTS: Final[Mapping[str, Sequence[Mapping[str, Any]]]] = {
    "sessions": tuple({"sort_by": sort} for sort in ("created_at", "updated_at", "message_count")),
    "messages": ({},),
    "tool_calls": ({},),
}


def _searches() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every search to make: each order, with each filter in turn and without."""
    for what, filters in _FILTERS.items():
        for number, (some, order) in enumerate((some, order) for some in filters for order in ("asc", "desc")):
            sorts = _SORTS[what]
            yield what, {**some, **sorts[number % len(sorts)], "order": order}


def _place(found: Any) -> tuple[str, int]:
    return found.agent_id, getattr(found, "position", -1)


async def _see_search(ctx: Context, store: QueryableStore, what: str, how: Mapping[str, Any]) -> None:
    """Check that a search gives its usual results without the damaged records, and names each of these."""
    everything, _ = await paged(ctx.store, what, how, 100)
    sound = [_place(one) for one in everything if one.agent_id != _BAD]
    bad = len(everything) - len(sound)
    for limit in (2, 100):
        name = f"query_{what}({how}) in pages of {limit}, with {_BAD!r} damaged,"
        found, left_out = await paged(store, what, how, limit)
        ctx.equal([_place(one) for one in found], sound, f"{name} gives")
        named = [text for text in left_out if repr(_BAD) in text]
        ctx.equal((len(named), len(left_out)), (bad, bad), f"how many of {bad} damaged ones {name} names")
    with overheard() as logged:
        streamed = [_place(one) async for one in getattr(store, f"iter_{what}")(**how)]
    ctx.equal(streamed, sound, f"iter_{what}({how}), with {_BAD!r} damaged, gives")
    said = len([line for line in logged if repr(_BAD) in line])
    ctx.true(said >= bad, f"iter_{what}({how}) left out {bad} damaged ones, and the log names {said}")


@check("QRY-9", "OPS-4", needs=_E, under=(Dimension.DAMAGE, Dimension.ORDERS))
async def every_order_and_filter_leaves_out_what_is_damaged(ctx: Context) -> None:
    """A search of sessions, messages or tool calls, in either order, by any filter and on pages of any size, leaves out
    and names every damaged record, and finds all others in their order.
    """
    for agent_id in (_BAD, "b", "c"):
        await seed(ctx.store, agent_id)
    store, layer = await damaging(ctx)
    layer.verbs = frozenset({"find_sessions", "find_rows"})
    for what, how in in_time(ctx, _searches()):
        await _see_search(ctx, store, what, how)


# --- earlier reads and later writes -----------------------------------------------------------------------------------


@check("OPS-4", "QRY-9", needs=_E, under=(Dimension.DAMAGE, Dimension.INSTANCES))
async def who_read_before_meets_the_damage_too(ctx: Context) -> None:
    """An instance that read a record of any kind while it was sound, and one that did not, give it right or raise
    CorruptRecordError once it is damaged; a search by either gives it right or leaves it out, and names it.
    """
    await fill(ctx.store, _BAD)
    before = await portrait(ctx.store, _BAD)
    for part, (verbs, kind, names) in damaged_parts().items():
        for has_read in (True, False):
            store, layer = await damaging(ctx)
            if has_read:
                await portrait(store, _BAD)
                await asyncio.gather(store.query_sessions(), store.query_messages(), store.query_tool_calls())
            layer.verbs, layer.kind = verbs, kind
            case = f"by an instance that {'read' if has_read else 'did not read'} it before {part} were damaged"
            for name in names:
                await _see_right_or_refused(ctx, LOOKS[name](store, _BAD), before[name], f"{name}, read {case},")
            await ctx.close(store)
    if not ctx.harness.has("corrupt"):
        return
    await seed(ctx.store, "device")
    stores = (ctx.store, await ctx.another(), await ctx.another())
    wanted = await stores[1].load_messages("device")
    await stores[1].query_messages(agent_id="device")
    await ctx.harness.corrupt(ctx.handle, "device")
    for store, who in zip(stores, ("that wrote it", "that read it before", "that never read it"), strict=True):
        case = f"the messages, damaged on the device, as the instance {who} loads them"
        await _see_right_or_refused(ctx, store.load_messages("device"), wanted, case)
        page = await store.query_messages(limit=1000)
        texts = [message.text for message in page if message.agent_id == "device"]
        lost = [message.text for message in wanted if message.text not in texts]
        ctx.true(set(texts) <= {message.text for message in wanted}, f"a query by the instance {who} gives {texts}")
        ctx.equal(len([n for n in page.left_out if "'device'" in n]), len(lost), f"how many a query {who} names")


async def _see_right_or_refused(ctx: Context, call: Awaitable[Any], wanted: Any, case: str) -> None:
    try:
        found = await call
    except CorruptRecordError:
        return
    ctx.equal(found, wanted, case)


@check("QRY-9", "OPS-4", "LIFE-4", needs=Capability.QUERYABLE, under=(Dimension.DAMAGE, Dimension.CHANGES))
async def what_replaces_the_damaged_is_found(ctx: Context) -> None:
    """Once an agent with a damaged record is deleted, searches name it no more, and records saved under its id are
    found; after any other save a search finds exactly the records that can be loaded, and names the others.
    """
    if not ctx.harness.has("corrupt"):
        raise Unverified("the harness has no hook corrupt")
    m = samples.messages
    changes: dict[str, Callable[[str], Awaitable[object]]] = {
        "a save of the same list": lambda agent_id: ctx.store.save_messages(agent_id, m(3)),
        "a save of other messages": lambda agent_id: ctx.store.save_messages(agent_id, m(3, 50)),
        "a save of none": lambda agent_id: ctx.store.save_messages(agent_id, []),
        "a save without the first": lambda agent_id: ctx.store.save_messages(agent_id, m(2, 1)),
        "an append": lambda agent_id: ctx.store.append_messages(agent_id, m(1, 9)),
        "a turn": lambda agent_id: ctx.store.save_turn(agent_id, messages=m(4, 70), info=samples.info(agent_id)),
        "a deletion": lambda agent_id: ctx.store.delete(agent_id),
    }
    ids = {name: name.replace(" ", "-") for name in changes}
    for agent_id in ids.values():
        await ctx.store.save_turn(agent_id, messages=m(3), info=samples.info(agent_id))
    await ctx.close(ctx.store)  # until then a store may have its writes in a second place
    for agent_id in ids.values():
        await ctx.harness.corrupt(ctx.handle, agent_id)
    ctx.store = await ctx.another()
    ctx.equal(len((await ctx.store.query_messages()).left_out), len(ids), "how many damaged messages a query names")
    for name, change in changes.items():
        await asyncio.gather(change(ids[name]), return_exceptions=True)  # it may be refused, which replaces nothing
        for store in (ctx.store, await ctx.another()):
            await _see_same(ctx, store, ids[name], f"after {name} of an agent whose message was damaged")
    gone = ids["a deletion"]
    ctx.equal(await ctx.store.load_messages(gone), [], "the messages of an agent that was deleted, damage and all")
    await ctx.store.save_turn(gone, messages=m(3), info=samples.info(gone))
    for store in (ctx.store, await ctx.another()):
        ctx.equal(await store.load_messages(gone), m(3), "the messages of an agent made anew, whose first were damaged")
        await _see_same(ctx, store, gone, "after an agent whose message was damaged was deleted and made anew")


async def _see_same(ctx: Context, store: QueryableStore, agent_id: str, case: str) -> None:
    """Check that a search finds the loaded records, and names the ones that it leaves out where a load is refused."""
    page = await store.query_messages(agent_id=agent_id, order="asc", limit=1000)
    everywhere = await store.query_messages(limit=1000)
    named = [name for name in everywhere.left_out if repr(agent_id) in name]
    try:
        loaded = await store.load_messages(agent_id)
    except CorruptRecordError:
        ctx.equal(len(named), 1, f"how many messages that cannot be loaded a query names, {case}")
        return
    ctx.equal(named, [], f"what a query names as left out, though all can be loaded, {case}")
    found = sorted(page, key=lambda one: one.position)
    ctx.equal([one.text for one in found], [one.text for one in loaded], f"the messages that a query finds {case}")


# --- calls under way --------------------------------------------------------------------------------------------------

_SOUND_WRITES: Final = 3


@check("OPS-4", "OPS-13", needs=_E, tier=Tier.STANDARD, under=(Dimension.DAMAGE, Dimension.COMPANY))
async def what_is_called_next_to_damage_succeeds(ctx: Context) -> None:
    """Reads, writes and forks of an agent with any damaged part, made at once with reads and writes of other agents,
    make none of the latter fail, and raise only errors of this library; a search that began before goes on to its end.
    """
    await fill(ctx.store, _BAD)
    wanted: dict[Write, Expected] = {}
    store, layer = await damaging(ctx)
    for number, part in enumerate(in_time(ctx, damaged_parts())):
        writes = [WRITES[(number * _SOUND_WRITES + i) % len(WRITES)] for i in range(_SOUND_WRITES)]
        layer.verbs = frozenset()
        for write in writes:
            wanted[write] = wanted.get(write) or await expected(ctx.store, write)
            await write.prepare(store, f"{part}-{write.name}")
        stream = store.iter_messages().__aiter__()
        await anext(stream)
        layer.verbs, layer.kind, _ = PARTS[part]
        bad = [write.act(store, _BAD) for write in (*WRITES, FORK) if write.name != "delete"]
        bad += [look(store, _BAD) for look in LOOKS.values()]
        ctx.rng.shuffle(bad)
        sound = {write.name: write.act(store, f"{part}-{write.name}") for write in writes}
        ends = await asyncio.gather(*bad[:_FIRST], *sound.values(), *bad[_FIRST:], return_exceptions=True)
        _see_errors(ctx, [*ends[:_FIRST], *ends[_FIRST + len(sound) :]], f"of an agent whose {part} are damaged")
        case = f"of another agent, made at once with calls for one whose {part} are damaged,"
        for name, result in zip(sound, ends[_FIRST:], strict=False):
            ctx.true(not isinstance(result, BaseException), f"{name} {case} raised {result!r}")
        for write in writes:
            found = await _read_at_once(ctx, store, f"{part}-{write.name}", case)
            problem = wanted[write].problem(found, done=True)
            ctx.true(problem is None, f"{write.name} {case} is not as it should be: {problem}")
        streamed = {one.agent_id async for one in stream}
        missing = {f"{part}-{write.name}" for write in writes if write.name != "delete"} - streamed
        ctx.true(not missing, f"a search that began before {part} were damaged does not find {sorted(missing)}")


_FIRST: Final = 12
"""The number of calls for the damaged agent that come before the calls for the others; the rest come after them."""


async def _read_at_once(ctx: Context, store: ExtendedStore, agent_id: str, case: str) -> Portrait:
    """Everything of an agent, each kind read at once with the same kind of the damaged one."""
    calls = [look(store, who) for look in LOOKS.values() for who in (_BAD, agent_id)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    for name, result in zip(LOOKS, ends[1::2], strict=True):
        ctx.true(not isinstance(result, BaseException), f"reading the {name} {case} raised {result!r}")
    return dict(zip(LOOKS, ends[1::2], strict=True))


def _see_errors(ctx: Context, ends: Sequence[Any], case: str) -> None:
    for error in ends:
        is_strange = isinstance(error, BaseException) and not isinstance(error, KodeError)
        ctx.true(not is_strange, f"a call {case} raised {error!r}")


@check("OPS-21", "OPS-4", needs=_E, under=(Dimension.DAMAGE, Dimension.ITEMS, Dimension.INSTANCES))
async def loads_step_around_what_is_damaged(ctx: Context) -> None:
    """A load that skips damage gives every other record of each part, in order, and names the damaged one, in each
    instance and for lists of many lengths; a sound list has nothing left out, and a plain load still raises.
    """
    if not ctx.harness.has("corrupt"):
        raise Unverified("the harness has no hook corrupt")
    for length in (1, 2, 5, 101):
        agent_id = f"of-{length}"
        messages = samples.messages(length)
        writer = await ctx.another()
        await writer.save_turn(agent_id, messages=messages, tool_calls=[samples.tool_call()])
        sound = await writer.load_messages(agent_id, on_corrupt="skip")
        await ctx.close(writer)  # nothing is on its way to the place that is damaged next
        ctx.equal((list(sound), sound.left_out), (messages, ()), f"{length} sound messages, and what was left out")
        await ctx.harness.corrupt(ctx.handle, agent_id)
        for store in (ctx.store, await ctx.another()):
            found = await store.load_messages(agent_id, on_corrupt="skip")
            ctx.equal(list(found), messages[1:], f"the readable ones of {length} messages")
            named = f"exactly one name, of message 0 of {agent_id!r}, is left out of {length}, got {found.left_out}"
            ctx.true(len(found.left_out) == 1 and "message 0" in found.left_out[0], named)
            ctx.true(repr(agent_id) in found.left_out[0], named)
            behind = await store.load_messages(agent_id, after=0, on_corrupt="skip")
            ctx.equal((list(behind), behind.left_out), (messages[1:], ()), "a part behind the damage")
            first = await store.load_messages(agent_id, before=2, on_corrupt="skip")
            ctx.equal((list(first), len(first.left_out)), (messages[1:2], 1), "a part with the damage")
            for bounds in _bounds(length):
                places = range(length)[bounds.get("after", -1) + 1 : bounds.get("before", length)]
                places = places[-bounds.get("last", length) :]
                part = await store.load_messages(agent_id, **bounds, on_corrupt="skip")
                told = f"the readable ones of a part {bounds} of {length}"
                ctx.equal(list(part), [messages[i] for i in places if i], told)
                ctx.equal(len(part.left_out), int(0 in places), f"how many messages are left out next to {told}")
            calls = await store.load_tool_call_records(agent_id, on_corrupt="skip")
            ctx.equal((list(calls), calls.left_out), ([samples.tool_call()], ()), "the tool calls")
            await ctx.raises(CorruptRecordError, store.load_messages(agent_id), "a load that skips nothing")


def _bounds(length: int) -> Iterator[dict[str, int]]:
    """Parts with and without the first message, by each two of their bounds, and all three."""
    values = {"last": (1, 2, length), "after": (0, length - 1), "before": (1, 2, length)}
    for size in (2, 3):
        for names in itertools.combinations(values, size):
            for chosen in itertools.product(*(values[name] for name in names)):
                yield dict(zip(names, chosen, strict=True))
