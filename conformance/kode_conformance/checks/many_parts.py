"""VAL-4: records with many parts: every field of every record that holds a list or a mapping."""

from __future__ import annotations

import asyncio
import types
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Union

import msgspec

from kode_conformance.checks.lifecycle import fill
from kode_conformance.checks.messages import dump
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension, counts
from kode_conformance.instruments.pace import in_time, sizes_in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.model import (
    AgentEvent,
    Message,
    TextBlock,
    Timeline,
    TodoItem,
    ToolCallAuditEntry,
    UnknownBlock,
)
from kode_core.protocols import ExtendedStore

_PARTS: Final[Mapping[type, Callable[[int], Any]]] = {
    Message: samples.message,
    Timeline: samples.event,
    TodoItem: lambda i: TodoItem(id=f"t{i}", title=f"title {i}", created_at=i, updated_at=i),
    ToolCallAuditEntry: lambda i: ToolCallAuditEntry(f"STATE {i}", i),
    TextBlock: lambda i: TextBlock(f"block {i}"),
    str: lambda i: f"text {i}",
}
"""Parts that stand in sequences, by their type."""


def with_many(record: Any, count: int) -> Any:
    """The record with *count* items in every sequence, mapping and JSON value that it and its inner records have."""
    hints = typing.get_type_hints(type(record))
    changes: dict[str, Any] = {}
    for name in type(record).__struct_fields__:
        value = getattr(record, name)
        if isinstance(value, msgspec.Struct):
            changes[name] = with_many(value, count)
        else:
            made = _made(hints[name], count)
            if made is not None:
                changes[name] = made
    return msgspec.structs.replace(record, **changes)


def _made(hint: Any, count: int) -> Any:
    """A value of that type with so many items; None where it can have no number of them."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if hint is Any:
        return [{"n": i} for i in range(count)]
    for kind in _flat(hint):
        origin = typing.get_origin(kind)
        if origin is dict:
            return {f"key {i}": i for i in range(count)} or None
        if isinstance(origin, type) and issubclass(origin, Sequence):
            wanted = _flat(typing.get_args(kind)[0])
            part = next((_PARTS[one] for one in wanted if one in _PARTS), None)
            assert part is not None, f"no part of {kind} is known: name one in _PARTS"
            return [part(i) for i in range(count)]
    return None


def _flat(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is typing.Annotated:
        return _flat(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [kind for one in typing.get_args(hint) for kind in _flat(one)]
    return [hint]


class _Kind(NamedTuple):
    """A kind of record: one of it, and how it is saved and read. ``also`` reads it by a query."""

    record: Any
    save: Callable[[ExtendedStore, str, Any], Awaitable[object]]
    load: Callable[[ExtendedStore, str], Awaitable[Any]]


async def _one(loaded: Awaitable[Sequence[Any]]) -> Any:
    found = await loaded
    return found[0] if len(found) == 1 else found


async def _event(store: ExtendedStore, agent: str) -> Any:
    return [event async for event in store.read_events(agent)][-1]


_KINDS: Final[Mapping[str, _Kind]] = {
    "message": _Kind(samples.message(), lambda s, a, r: s.save_messages(a, [r]), lambda s, a: _one(s.load_messages(a))),
    "tool call": _Kind(
        samples.approved_call(),
        lambda s, a, r: s.save_tool_call_records(a, [r]),
        lambda s, a: _one(s.load_tool_call_records(a)),
    ),
    "todo list": _Kind(samples.todos("x"), lambda s, a, r: s.save_todos(a, r), lambda s, a: s.load_todos(a)),
    "event": _Kind(
        Timeline(0, samples.event(0).bookmark, AgentEvent("monitor", "text_chunk", {})),
        lambda s, a, r: s.append_event(a, r),
        _event,
    ),
    "window": _Kind(
        samples.window(), lambda s, a, r: s.save_history_window(a, r), lambda s, a: _one(s.load_history_windows(a))
    ),
    "compression": _Kind(
        samples.compression(),
        lambda s, a, r: s.save_compression_record(a, r),
        lambda s, a: _one(s.load_compression_records(a)),
    ),
    "recovered file": _Kind(
        samples.recovered(),
        lambda s, a, r: s.save_recovered_file(a, r),
        lambda s, a: _one(s.load_recovered_files(a)),
    ),
    "media record": _Kind(
        samples.media(), lambda s, a, r: s.save_media_cache(a, [r]), lambda s, a: _one(s.load_media_cache(a))
    ),
    "snapshot": _Kind(
        samples.snapshot(), lambda s, a, r: s.save_snapshot(a, r), lambda s, a: s.load_snapshot(a, "sfp-1")
    ),
    "info": _Kind(samples.info("a"), lambda s, a, r: s.save_info(a, r), lambda s, a: s.load_info(a)),
}


@check("VAL-4", "VAL-1", "VAL-6", tier=Tier.STANDARD, under=(Dimension.ITEMS, Dimension.CHANGES, Dimension.INSTANCES))
async def records_with_any_number_of_parts(ctx: Context) -> None:
    """However many items there are in each list, mapping and JSON value of a record, all of them come back in their
    order, in any instance; so they do after the record was replaced by one with fewer.
    """
    stores = [ctx.store, await ctx.another()]
    for n, count in enumerate(sizes_in_time(ctx, [*counts(ctx.settings.tier, most=1001), 101, 0])):
        made = {name: with_many(kind.record, count) for name, kind in _KINDS.items()}
        made["info"] = made["info"].replace(message_count=1)
        made["event"] = made["event"].replace(cursor=n, bookmark=made["event"].bookmark.replace(seq=n))
        for name, kind in _KINDS.items():
            await kind.save(stores[n % 2], "a", made[name])
        for name, kind in _KINDS.items():
            found = await kind.load(stores[n // 2 % 2], "a")
            ctx.equal(found, made[name], f"the {name} with {count} items in each of its fields")


@check("QRY-2", "VAL-4", needs=Capability.QUERYABLE, under=(Dimension.ITEMS, Dimension.CHANGES))
async def the_last_of_many_parts_is_found(ctx: Context) -> None:
    """A session is found by each of its 501 keys of metadata, and a message by each of its 101 types of blocks; not by
    one that is gone.
    """
    metadata = {f"key {i}": i for i in range(501)}
    blocks = [UnknownBlock({"type": f"type {i}", "n": i}) for i in range(101)]
    await ctx.store.save_info("other", samples.info("other", metadata={"key 500": 0}))
    for count in (101, 51):
        kept = dict(list(metadata.items())[: 501 if count == 101 else 251])
        info = samples.info("a", metadata=kept)
        await ctx.store.save_turn("a", info=info, messages=[Message("user", blocks[:count])])
        for i in (0, 1, 24, 25, 49, 50, 99, 100, 249, 250, 251, 500):
            found = await ctx.store.query_sessions(metadata={f"key {i}": i})
            wanted = ["a"] if f"key {i}" in kept else []
            ctx.equal([s.agent_id for s in found], wanted, f"sessions by key {i} of {len(kept)} in their metadata")
            if i < len(blocks):
                messages = await ctx.store.query_messages(content_type=f"type {i}")
                wanted = ["a"] if i < count else []
                ctx.equal([m.agent_id for m in messages], wanted, f"messages by type {i} of the {count} of its blocks")


@check("LIFE-3", "LIFE-4", under=(Dimension.ITEMS, Dimension.CHANGES, Dimension.INSTANCES))
async def nothing_is_left_of_much(ctx: Context) -> None:
    """Delete leaves nothing of an agent with more than a page of every kind, in any instance, and later writes bring
    nothing of it back; others stay as they are.
    """
    other = await ctx.another()
    await fill(ctx.store, "b")
    few = await dump(ctx, "b")
    await fill_much(ctx.store, "a")
    numbers, more = dict(_NUMBERS), _thousands(ctx)
    for kind in in_time(ctx, ctx.rng.sample(more, len(more))):
        numbers[kind] = 1003
        await more_documents(ctx.store, "a", {kind: numbers[kind]})
    before = await many_of_all(other, "a")
    ctx.equal({name: len(records) for name, records in before.items()}, numbers, "what an agent holds before delete")
    await ctx.store.delete("a")
    for store, where in ((other, "another instance"), (ctx.store, "the one that deleted it")):
        found = await many_of_all(store, "a")
        left = {name: len(records) for name, records in found.items() if records}
        ctx.true(not left, f"still there after delete, seen by {where}: {left}")
    await other.save_turn(
        "a", append=samples.messages(1), upsert_tool_calls=[samples.tool_call(1)], events=samples.events(1)
    )
    await other.save_snapshot("a", samples.snapshot("new"))
    await other.save_history_window("a", samples.window("new"))
    again = {name: len(records) for name, records in (await many_of_all(ctx.store, "a")).items() if records}
    wanted = dict.fromkeys(("messages", "tool calls", "events", "windows", "snapshots"), 1)
    ctx.equal(again, wanted, "how much the next agent of that id has of each kind")
    ctx.equal(await dump(ctx, "b"), few, "another agent")


_NUMBERS: Final = {
    "messages": 1101,
    "tool calls": 1101,
    "events": 1101,
    "todos": 101,
    "media": 101,
    "windows": 101,
    "compressions": 101,
    "recovered": 101,
    "snapshots": 101,
}
"""How much of each kind :func:`fill_much` writes."""


async def fill_much(store: ExtendedStore, agent: str) -> None:
    """Write more than a page of every kind."""
    n = _NUMBERS
    await store.save_turn(
        agent,
        messages=samples.messages(n["messages"]),
        tool_calls=[samples.tool_call(i, audit_trail=[]) for i in range(n["tool calls"])],
        todos=samples.todos(*(f"todo {i}" for i in range(n["todos"]))),
        info=samples.info(agent),
        events=samples.events(n["events"]),
    )
    await store.save_media_cache(agent, [samples.media(f"k{i}") for i in range(n["media"])])
    for i in range(n["windows"]):
        await asyncio.gather(
            store.save_history_window(agent, samples.window(f"w{i:03d}").replace(messages=[], events=[])),
            store.save_compression_record(agent, samples.compression(f"c{i:03d}")),
            store.save_recovered_file(agent, samples.recovered(f"p{i:03d}")),
            store.save_snapshot(agent, samples.snapshot(f"s{i:03d}", count=1)),
        )


_DOCUMENTS: Final[Mapping[str, Callable[[ExtendedStore, str, int], Awaitable[object]]]] = {
    "windows": lambda s, a, i: s.save_history_window(a, samples.window(f"w{i:03d}").replace(messages=[], events=[])),
    "compressions": lambda s, a, i: s.save_compression_record(a, samples.compression(f"c{i:03d}")),
    "recovered": lambda s, a, i: s.save_recovered_file(a, samples.recovered(f"p{i:03d}")),
    "snapshots": lambda s, a, i: s.save_snapshot(a, samples.snapshot(f"s{i:03d}", count=1)),
}


def _thousands(ctx: Context) -> Sequence[str]:
    """The kinds to write more than a thousand records of: none where the store is slow."""
    return () if ctx.harness.patience > 1 else sorted(_DOCUMENTS)


async def more_documents(store: ExtendedStore, agent: str, numbers: Mapping[str, int]) -> None:
    """Write as many documents of each kind as *numbers* says, after the ones of :func:`fill_much`."""
    for kind, number in numbers.items():
        for start in range(_NUMBERS[kind], number, 100):
            await asyncio.gather(*(_DOCUMENTS[kind](store, agent, i) for i in range(start, min(start + 100, number))))


async def many_of_all(store: ExtendedStore, agent: str) -> dict[str, Sequence[Any]]:
    """Everything of an agent that it has many of, by kind."""
    todos = await store.load_todos(agent)
    return {
        "messages": await store.load_messages(agent),
        "tool calls": await store.load_tool_call_records(agent),
        "events": [event async for event in store.read_events(agent)],
        "todos": todos.todos if todos else (),
        "media": await store.load_media_cache(agent),
        "windows": await store.load_history_windows(agent),
        "compressions": await store.load_compression_records(agent),
        "recovered": await store.load_recovered_files(agent),
        "snapshots": await store.list_snapshots(agent),
    }


def _forked(found: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, Sequence[Any]]]:
    """The kinds that a fork takes along."""
    return ((name, found[name]) for name in ("messages", "tool calls", "todos", "media", "snapshots"))


@check("FORK-1", "FORK-2", "LIFE-3", needs=Capability.EXTENDED, under=(Dimension.ITEMS, Dimension.CHANGES))
async def forks_of_much(ctx: Context) -> None:
    """Forks of an agent with more than a page of every kind have all of it and no more; they keep it when the parent is
    deleted, and so does a fork of a fork.
    """
    await fill_much(ctx.store, "p")
    before = await many_of_all(ctx.store, "p")
    forks = [*await ctx.store.batch_fork("p", 2)]
    forks += await ctx.store.batch_fork(forks[0], 1)
    await ctx.store.delete("p")
    await ctx.store.append_messages(forks[0], samples.messages(1, 5000))
    other = await ctx.another()
    for fork, grown in zip(forks, (1, 0, 0), strict=True):
        found = await many_of_all(other, fork)
        for name, wanted in _forked(before):
            got = found[name][: len(wanted)] if name == "messages" else found[name]
            ctx.equal(got, wanted, f"the {name} of a fork")
        ctx.equal(len(found["messages"]), len(before["messages"]) + grown, "how many messages a fork has")
        info = await other.load_info(fork)
        ctx.equal(info and info.message_count, len(found["messages"]), "message_count of a fork")
        for name in ("events", "windows", "compressions", "recovered"):
            ctx.equal(len(found[name]), 0, f"how many {name} a fork has")


@check("FORK-1", "LIFE-2", needs=Capability.EXTENDED, under=(Dimension.ITEMS, Dimension.ORDERS))
async def many_forks_and_long_lineages(ctx: Context) -> None:
    """batch_fork makes as many forks as it is asked for, in the order of time, each whole; a fork of a fork of a fork
    knows all its ancestors, oldest first.
    """
    wanted = samples.messages(3)
    await ctx.store.save_turn("p", info=samples.info("p"), messages=wanted, tool_calls=[samples.tool_call()])
    await ctx.store.save_snapshot("p", samples.snapshot())
    await ctx.store.save_media_cache("p", [samples.media()])
    await ctx.store.save_todos("p", samples.todos("x"))
    whole, known = dict(_forked(await many_of_all(ctx.store, "p"))), ["p"]
    for count in sizes_in_time(ctx, (1, 2, 25, 26, 101)):
        forks = await ctx.store.batch_fork("p", count)
        ctx.equal((len(forks), len({*forks, *known})), (count, len(known) + count), "how many new ids of forks came")
        ctx.true(forks == sorted(forks), f"the ids of {count} forks must be in the order of time")
        known += forks
        ctx.equal(await ctx.store.list(), sorted(known), f"the agents after a batch of {count} forks")
        for fork in forks:
            info = await ctx.store.load_info(fork)
            ctx.equal(info and (info.agent_id, info.lineage), (fork, ("p",)), f"a fork of {count} in a batch")
            ctx.equal(await ctx.store.load_messages(fork), wanted, f"the messages of a fork of {count} in a batch")
        for fork in (*forks[:1], *forks[-1:], *ctx.rng.sample(forks, min(count, 3))):
            found = dict(_forked(await many_of_all(ctx.store, fork)))
            ctx.equal(found, whole, f"fork {forks.index(fork)} of {count} in a batch")
    line = ["p"]
    for _ in in_time(ctx, range(26)):
        line += await ctx.store.batch_fork(line[-1], 1)
        info = await ctx.store.load_info(line[-1])
        ctx.equal(info and info.lineage, tuple(line[:-1]), f"the lineage of a fork with {len(line) - 1} ancestors")
