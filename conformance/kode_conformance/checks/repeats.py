"""TC-3, EVT-4, MSG-1, MED-1: repeats inside one call, and lists that overlap with the stored list."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.histories.model import StoreModel
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.large import runs
from kode_core.errors import InvalidArgumentError
from kode_core.model import MediaCacheRecord, Message, TextBlock, Timeline, TodoItem, TodoSnapshot, ToolCallRecord

_D: Final = Dimension
_STORED: Final = ("", "a", "ab", "aba", "baa", "cab", "bbb")
"""Ids that are stored before."""


def _calls_of(ids: str, text: str, *, equal: bool = False) -> list[ToolCallRecord]:
    return [
        samples.tool_call(0, id=name, audit_trail=[], result=text if equal else f"{text} {i}")
        for i, name in enumerate(ids)
    ]


@check("TC-3", "TC-2", under=(_D.EQUALS, _D.ORDERS, _D.CHANGES, _D.INSTANCES))
async def an_upsert_of_one_id_several_times(ctx: Context) -> None:
    """Of records of one id in one upsert, next to each other or with others between them, equal or not, each replaces
    the last one of that id, be it stored before or by this very call, and the first is added where there was none; so
    it is for upsert_tool_call_records and for save_turn.
    """
    stores = (ctx.store, await ctx.another())
    orders = ["".join(ids) for size in (2, 3) for ids in itertools.product("abc", repeat=size)]
    most = 2 if ctx.settings.tier is Tier.QUICK else len(_STORED)
    for number, (ids, i) in enumerate(in_time(ctx, itertools.product(orders, range(most)))):
        stored = _STORED[(number // most * 2 + i) % len(_STORED)]
        model, store = StoreModel(), stores[number % 2]
        before, new = _calls_of(stored, "stored"), _calls_of(ids, "new", equal=number % 5 == 0)
        await stores[number // 2 % 2].save_tool_call_records("a", before)
        model.save_tool_call_records("a", before)
        if number % 2:
            await store.save_turn("a", upsert_tool_calls=new)
        else:
            await store.upsert_tool_call_records("a", new)
        model.upsert_tool_call_records("a", new)
        method = "save_turn(upsert_tool_calls=)" if number % 2 else "upsert_tool_call_records"
        found = await stores[(number + 1) % 2].load_tool_call_records("a")
        wanted = [(call.id, call.result) for call in model.agents["a"].tool_calls]
        what = f"ids and results after {method} of the ids {[*ids]} where {[*stored]} were stored"
        ctx.equal([(call.id, call.result) for call in found], wanted, what)


@check("EVT-4", "EVT-3", "EVT-2", under=(_D.EQUALS, _D.ORDERS, _D.INSTANCES, _D.COMPANY))
async def an_append_of_one_event_several_times(ctx: Context) -> None:
    """Entries that are new, stored, or of the same seq as others, in any order, and the identical one by several calls,
    one after the other or at once, are each stored once, and each call returns the offset of its entry.
    """
    stores, number = (ctx.store, await ctx.another()), 0
    names = {"a": samples.event(1, n=1), "b": samples.event(2, n=1), "c": samples.event(1, n=2)}
    for stored in ("", "b", "cb"):
        for ids in itertools.product("abc", repeat=3):
            number += 1
            agent, store, model = f"{stored}-{''.join(ids)}", stores[number % 2], StoreModel()
            first = [names[name] for name in stored]
            old = list(await stores[number // 2 % 2].append_events(agent, first))
            model.append_events(agent, first)
            given, what = [names[name] for name in ids], f"of the events {[*ids]} where {[*stored]} were stored"
            expected = model.append_events(agent, given)
            in_one = len(set(ids)) == len(ids)
            at_once = not in_one and number % 3 == 1
            offsets: list[int] | None = None
            if in_one and number % 3 == 0:
                await store.save_turn(agent, events=given)
            elif in_one:
                offsets = list(await store.append_events(agent, given))
            elif at_once:
                calls = [stores[(number + i) % 2].append_event(agent, entry) for i, entry in enumerate(given)]
                offsets = list(await asyncio.gather(*calls))
            else:
                offsets = [await store.append_event(agent, entry) for entry in given]
            found = [event async for event in stores[(number + 1) % 2].read_events(agent, after_offset=0)]
            wanted, got = (
                [_fields(logged.timeline) for logged in model.agents[agent].events],
                [*map(_fields, found)],
            )
            if at_once:
                wanted, got = sorted(wanted, key=str), sorted(got, key=str)
            ctx.equal(got, wanted, f"the log after an append {what}")
            ctx.equal([event.offset for event in found][: len(old)], old, f"the offsets of what was stored {what}")
            if offsets is not None:
                places = {str(_fields(event)): event.offset for event in found}
                wanted_offsets = [places[str(_fields(logged.timeline))] for logged in expected]
                ctx.equal(offsets, wanted_offsets, f"the offsets that an append returned {what}")


def _fields(entry: Timeline) -> dict[str, Any]:
    return entry.event.data | {"seq": entry.bookmark.seq}


_PLACES: Final = ((0, 1, 2), (2, 4, 5), (0, 5, 6), (3, 7, 8), (0, 1199, 1200), (1, 1000, 1001), (499, 500, 1000))
"""Where the identical entry stands in a list, twice, and how long the list is."""


@check("EVT-4", "EVT-1", "TURN-1", under=(_D.EQUALS, _D.ORDERS, _D.ITEMS, _D.INSTANCES))
async def an_entry_twice_in_one_call_is_refused(ctx: Context) -> None:
    """A list of events that holds an entry twice, next to each other or far apart, new or stored, is refused by
    append_events and by save_turn with an error that names both positions, and nothing of the call is written; the same
    list without the repeat is stored, and recognised as stored when it is given again.
    """
    stores = (ctx.store, await ctx.another())
    for number, (one, two, size) in enumerate(in_time(ctx, _PLACES)):
        agent, store, other = f"a{number}", stores[number % 2], stores[(number + 1) % 2]
        entries = [samples.event(i % 7, cursor=i) for i in range(size)]
        given = [*entries[:two], entries[one].replace(), *entries[two:]]
        known = [await other.append_event(agent, entries[one])] if number % 2 else []
        what = f"a list of {size + 1} events in which {one} and {two} are identical"
        rest: dict[str, Any] = {"append": samples.messages(1), "todos": samples.todos("x"), "info": samples.info(agent)}
        for method in ("append_events", "save_turn"):
            turn = method == "save_turn"
            call = store.save_turn(agent, **rest, events=given) if turn else store.append_events(agent, given)
            error = await ctx.raises(InvalidArgumentError, call, f"{method} of {what}")
            places = set(re.findall(r"\d+", str(error)))
            ctx.true({str(one), str(two)} <= places, f"the error of {method} of {what} must name them, it was: {error}")
        for view in stores:
            found = [event.offset async for event in view.read_events(agent)]
            ctx.equal(found, known, f"the offsets of the log after {what} was refused")
            left = (await view.load_messages(agent), await view.load_todos(agent), await view.load_info(agent))
            ctx.equal(left, ([], None, None), f"messages, todos and info after {what} was refused")
        offsets = list(await store.append_events(agent, entries))
        ctx.equal(len(set(offsets)), size, f"how many offsets {size} events got that differ")
        ctx.equal(list(await other.append_events(agent, entries)), offsets, "the offsets of the same call again")


# --- lists that overlap -----------------------------------------------------------------------------------------------

_N: Final = 4


def _overlaps() -> Iterator[tuple[str, Sequence[str]]]:
    """Lists that overlap with ``old 0`` to ``old 3``; an item named ``changed i`` has the identity of ``old i`` and
    another content.
    """
    old = [f"old {i}" for i in range(_N)]
    new = [f"new {i}" for i in range(_N)]
    yield "the same", old
    yield "reversed", old[::-1]
    for i in range(1, _N):
        yield f"rotated by {i}", old[i:] + old[:i]
        yield f"the first {i}", old[:i]
        yield f"the last {i}", old[i:]
        yield f"{i - 1} and {i} exchanged", [*old[: i - 1], old[i], old[i - 1], *old[i + 1 :]]
        yield f"without {i}", old[:i] + old[i + 1 :]
        yield f"one new before {i}", [*old[:i], new[0], *old[i:]]
        yield f"two new before {i}, and the last gone", [*old[:i], *new[:2], *old[i:-1]]
        yield f"{i} twice", [*old[:i], old[i], *old[i:]]
        yield f"{i} again at the end", [*old, old[i]]
        yield f"{i} again at the start", [old[i], *old]
        yield f"{i} changed", [*old[:i], f"changed {i}", *old[i + 1 :]]
        yield f"{i} changed, and moved to the start", [f"changed {i}", *old[:i], *old[i + 1 :]]
        yield f"{i} and its change behind it", [*old[: i + 1], f"changed {i}", *old[i + 1 :]]
    yield "each second", old[::2]
    yield "each other second", old[1::2]
    yield "interleaved with new ones", [one for pair in zip(old, new, strict=True) for one in pair]
    yield "new ones interleaved with them, reversed", [one for pair in zip(new, old[::-1], strict=True) for one in pair]
    yield "all twice", old * 2
    yield "each twice", [one for one in old for _ in range(2)]
    yield "there and back", old + old[::-1]
    yield "all changed", [f"changed {i}" for i in range(_N)]
    yield "all new", new
    yield "the first of them only, many times", old[:1] * _N
    yield "none", []


def _identity(name: str) -> int:
    tag, _, number = name.partition(" ")
    return int(number) + (100 if tag == "new" else 0)


def _message(name: str) -> Message:
    return Message("user", [TextBlock(name)])


def _call(name: str) -> ToolCallRecord:
    return samples.tool_call(_identity(name), audit_trail=[], result=name, created_at=samples.T0)


def _media(name: str) -> MediaCacheRecord:
    return samples.media(f"key {_identity(name)}").replace(file_id=name)


def _todos(names: Sequence[str]) -> TodoSnapshot:
    items = [TodoItem(id=f"{_identity(n)}", title=n, created_at=samples.T0, updated_at=samples.T0) for n in names]
    return TodoSnapshot(todos=items, version=1, updated_at=samples.T0)


async def _save(store: Any, names: Sequence[str], *, turn: bool) -> None:
    lists: dict[str, Any] = {"messages": [*map(_message, names)], "tool_calls": [*map(_call, names)]}
    if turn:
        await store.save_turn("a", **lists, todos=_todos(names))
    else:
        await store.save_messages("a", lists["messages"])
        await store.save_tool_call_records("a", lists["tool_calls"])
        await store.save_todos("a", _todos(names))
    await store.save_media_cache("a", [*map(_media, names)])


@check("MSG-1", "TC-1", "MED-1", "TODO-1", "TURN-1", under=(_D.ORDERS, _D.CHANGES, _D.EQUALS, _D.INSTANCES))
async def lists_that_overlap_with_what_is_stored(ctx: Context) -> None:
    """A list that is a part, an order, a rotation or a mixture of the stored list, with repeated, changed or new items
    at any place, replaces it exactly, in every kind of list: messages, tool calls, todos and media.
    """
    stores, base = (ctx.store, await ctx.another()), [f"old {i}" for i in range(_N)]
    await ctx.store.save_info("a", samples.info("a"))
    for number, (what, names) in enumerate(in_time(ctx, _overlaps())):
        await _save(stores[number // 2 % 2], base, turn=number % 4 == 0)
        await _save(stores[number % 2], names, turn=number % 3 > 0)
        store = stores[number // 3 % 2]
        todos, info = await store.load_todos("a"), await store.load_info("a")
        found = {
            "messages": [message.text for message in await store.load_messages("a")],
            "tool calls": [call.result for call in await store.load_tool_call_records("a")],
            "todos": [todo.title for todo in todos.todos] if todos else ["no todos"],
            "media": [record.file_id for record in await store.load_media_cache("a")],
        }
        for kind, got in found.items():
            ctx.equal(got, [*names], f"the {kind} after {runs(base)} were replaced by {what}")
        ctx.equal(info and info.message_count, len(names), f"message_count after {what}")
