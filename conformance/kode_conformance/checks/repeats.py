"""TC-3, EVT-4, MSG-1, MED-1: repeats inside one call, and lists that have something in common with what is stored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

from kode_conformance import samples
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.large import runs
from kode_conformance.model import StoreModel
from kode_conformance.pace import in_time
from kode_conformance.registry import check
from kode_conformance.settings import Tier
from kode_core.model import MediaCacheRecord, Message, TextBlock, TodoItem, TodoSnapshot, ToolCallRecord

_D: Final = Dimension
_STORED: Final = ("", "a", "ab", "aba", "baa", "cab", "bbb")
"""Ids that are there before."""


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


@check("EVT-4", "EVT-3", "EVT-2", under=(_D.EQUALS, _D.ORDERS, _D.INSTANCES))
async def an_append_of_one_event_several_times(ctx: Context) -> None:
    """The identical entry several times in one append, before, behind and between others, some of which are stored and
    some have only the same seq, is stored once where it comes first, and each time its offset is returned; by save_turn
    and one by one it is the same.
    """
    stores, number = (ctx.store, await ctx.another()), 0
    names = {"a": samples.event(1, n=1), "b": samples.event(2, n=1), "c": samples.event(1, n=2)}
    for stored in ("", "b", "cb"):
        for ids in itertools.product("abc", repeat=3):
            number += 1
            agent, store, model = f"{stored}-{''.join(ids)}", stores[number % 2], StoreModel()
            first = [names[name] for name in stored]
            offsets = list(await stores[number // 2 % 2].append_events(agent, first))
            for logged, offset in zip(model.append_events(agent, first), offsets, strict=True):
                logged.offset = offset
            given, what = [names[name] for name in ids], f"of the events {[*ids]} where {[*stored]} were stored"
            told = model.append_events(agent, given)
            if number % 3 == 0:
                await store.save_turn(agent, events=given)
            elif number % 3 == 1:
                offsets = list(await store.append_events(agent, given))
            else:
                offsets = [await store.append_event(agent, entry) for entry in given]
            found = [event async for event in stores[(number + 1) % 2].read_events(agent, after_offset=0)]
            wanted = [
                logged.timeline.event.data | {"seq": logged.timeline.bookmark.seq}
                for logged in model.agents[agent].events
            ]
            ctx.equal(
                [e.event.data | {"seq": e.bookmark.seq} for e in found], wanted, f"the log after an append {what}"
            )
            if number % 3:
                places = [model.agents[agent].events.index(logged) for logged in told]
                ctx.equal(
                    offsets, [found[place].offset for place in places], f"the offsets that an append returned {what}"
                )


# --- lists that overlap -----------------------------------------------------------------------------------------------

_N: Final = 4


def _overlaps() -> Iterator[tuple[str, Sequence[str]]]:
    """Lists that have something in common with ``old 0`` to ``old 3``; an item named ``changed i`` has the identity of
    ``old i`` and another content.
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
    """A list that is a part, an order, a rotation or a mixture of what is stored, with items again, changed, or new
    ones at any place, is what is there afterwards, in every kind of list: messages, tool calls, todos and media.
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
