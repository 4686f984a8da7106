"""Company: readers, writers, forks and deletes at once; large calls that others look at while they are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from kode_conformance.checks.messages import dump
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.processes.lookers import STEPS, Company, looks_of, states
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.protocols import ExtendedStore

_LARGE: Final = ("MSG-1", "MSG-3", "MSG-6", "TC-1", "TC-3", "TURN-1", "MED-1", "LIFE-3", "EVT-1", "QRY-8")


@check(*_LARGE, tier=Tier.STANDARD, stochastic=True, under=(Dimension.COMPANY, Dimension.ITEMS, Dimension.INSTANCES))
async def a_large_call_is_seen_whole_or_not_at_all(ctx: Context) -> None:
    """While one call writes, replaces or deletes hundreds of records, readers of another instance see all of it or
    nothing, in every kind and by every read; a reader that saw the result once never sees the earlier state again.
    """
    other, looks = await ctx.another(), looks_of(ctx.harness)
    wanted = await states(ctx.store, "alone", looks)
    for round_ in in_time(ctx, range(1 + ctx.effort.schedules // 10)):
        company, ended, agent = Company(wanted, looks), asyncio.Event(), f"a{round_}"
        readers = [
            asyncio.ensure_future(company.keep_looking(store, agent, ended, first=first))
            for store, first in ((other, 0), (ctx.store, len(looks) // 2))
        ]
        try:
            for step in STEPS.values():
                await step(ctx.store, agent)
                await asyncio.sleep(0)
        finally:
            ended.set()
            problems = await asyncio.gather(*readers, return_exceptions=True)
        for problem in problems:
            if problem is not None:
                raise problem


@check(
    *_LARGE,
    needs=Capability.CROSS_PROCESS,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.COMPANY, Dimension.ITEMS, Dimension.PROCESSES),
)
async def large_calls_of_a_process_are_seen_whole(ctx: Context) -> None:
    """While a process writes, replaces and deletes hundreds of records in a call, readers in this one see all of a call
    or nothing, in every kind and by every read, and never an earlier state again.
    """
    other, looks = await ctx.another(), looks_of(ctx.harness)
    wanted = await states(ctx.store, "alone", looks)
    agents = [f"a{i}" for i in range(max(3, ctx.effort.schedules // 4))]
    writer = await ctx.process("big_writes", agents, ctx.settings.pace / 2)
    for agent in agents:
        begun = await writer.line(60.0)
        if begun != {"agent": agent}:
            break
        company, ended = Company(wanted, looks), asyncio.Event()
        readers = [
            asyncio.ensure_future(company.keep_looking(store, agent, ended, first=first))
            for store, first in ((ctx.store, 0), (other, len(looks) // 2))
        ]
        try:
            report = await writer.line(120.0)
        finally:
            ended.set()
            problems = await asyncio.gather(*readers, return_exceptions=True)
        ctx.equal(report, {"done": agent}, "what the writer tells at the end")
        for problem in problems:
            if problem is not None:
                raise problem


# --- several agents in one call ---------------------------------------------------------------------------------------


@check("FORK-3", "FORK-1", "LIFE-5", needs=Capability.EXTENDED, under=(Dimension.COMPANY, Dimension.ITEMS))
async def many_agents_in_one_call_are_whole(ctx: Context) -> None:
    """While batch_fork makes several forks of a long agent, and delete_many deletes them, every reader finds each of
    them whole or not at all.
    """
    other = await ctx.another()
    messages = samples.messages(300)
    calls = [samples.tool_call(i, audit_trail=[]) for i in range(300)]
    await ctx.store.save_turn("p", messages=messages, tool_calls=calls, todos=samples.todos("x"))
    await ctx.store.save_snapshot("p", samples.snapshot())
    await ctx.store.save_info("p", samples.info("p", template_id="parent"))
    forking = asyncio.ensure_future(ctx.store.batch_fork("p", 5))
    while not forking.done():
        await asyncio.sleep(0)
        await _see_whole(ctx, other, "while they were made")
    forks = await forking
    ctx.equal(await _see_whole(ctx, other, "after they were made"), sorted(forks), "the forks that are listed")
    for fork in forks:
        await ctx.store.save_info(fork, samples.info(fork, template_id="gone"))
    deleting = asyncio.ensure_future(ctx.store.delete_many(template_id="gone"))
    while not deleting.done():
        await asyncio.sleep(0)
        await _see_whole(ctx, other, "while they were deleted", forks)
    ctx.equal(await deleting, 5, "how many forks delete_many deleted")
    ctx.equal(await _see_whole(ctx, other, "after they were deleted", forks), [], "the forks that are left")
    ctx.equal(len(await other.load_messages("p")), 300, "the messages of the parent")


async def _see_whole(ctx: Context, store: ExtendedStore, when: str, among: Sequence[str] = ()) -> list[str]:
    """The forks that exist: each must have everything; forks in *among* may be gone."""
    listed = [agent for agent in await store.list() if agent != "p"]
    for fork in among or listed:
        numbers = (
            len(await store.load_messages(fork)),
            len(await store.load_tool_call_records(fork)),
            len(await store.list_snapshots(fork)),
        )
        gone = among and numbers[2] == 0
        wanted = ((300, 300, 1), (0, 0, 0), (300, 0, 0), (300, 300, 0)) if gone else ((300, 300, 1),)
        what = f"messages, tool calls and snapshots of a fork {when}: {numbers}"
        ctx.true(numbers in wanted, what)
        await asyncio.sleep(0)
    return listed


# --- writers of different kinds ---------------------------------------------------------------------------------------


def _writes(store: ExtendedStore, n: int) -> dict[str, Awaitable[object]]:
    """A write of every kind; each says the number of its round."""
    return {
        "messages": store.append_messages("a", samples.messages(1, n)),
        "tool calls": store.upsert_tool_call_records("a", [samples.tool_call(n % 7, result=n)]),
        "todos": store.save_todos("a", samples.todos(f"todo {n}")),
        "info": store.save_info("a", samples.info("a", metadata={"n": n})),
        "event": store.append_event("a", samples.event(n)),
        "media": store.save_media_cache("a", [samples.media(f"{n}")]),
        "window": store.save_history_window("a", samples.window(f"w{n % 5}", n)),
        "compression": store.save_compression_record("a", samples.compression(f"c{n % 5}", n)),
        "recovered": store.save_recovered_file("a", samples.recovered(f"p{n % 5}", n)),
        "snapshot": store.save_snapshot("a", samples.snapshot(f"s{n % 5}", n)),
    }


@check("MSG-8", "MSG-7", "OPS-10", "MSG-6", under=(Dimension.COMPANY, Dimension.ORDERS, Dimension.INSTANCES))
async def writers_of_all_kinds_at_once(ctx: Context) -> None:
    """When two instances write all kinds to one agent at once and in any order, from the very first write on, each
    write is stored as if it had been the only one.
    """
    other = await ctx.another()
    for n in in_time(ctx, range(12)):
        first, second = _writes(ctx.store, n), _writes(other, n)
        chosen = [(first if ctx.rng.random() < 0.5 else second).pop(kind) for kind in [*first]]
        for unused in (*first.values(), *second.values()):
            unused.close()  # type: ignore[attr-defined]
        ctx.rng.shuffle(chosen)
        await asyncio.gather(*chosen)
        await _see_rounds(ctx, other if n % 2 else ctx.store, n + 1)


async def _see_rounds(ctx: Context, store: ExtendedStore, rounds: int) -> None:
    last, kept = rounds - 1, range(max(0, rounds - 5), rounds)
    found = {
        "messages": [message.text for message in await store.load_messages("a")],
        "tool calls": {call.id: call.result for call in await store.load_tool_call_records("a")},
        "todos": await store.load_todos("a"),
        "info": await store.load_info("a"),
        "events": [event.bookmark.seq async for event in store.read_events("a")],
        "media": [record.key for record in await store.load_media_cache("a")],
        "windows": [window.timestamp for window in await store.load_history_windows("a")],
        "compressions": [record.timestamp for record in await store.load_compression_records("a")],
        "recovered": [file.timestamp for file in await store.load_recovered_files("a")],
        "snapshots": [snapshot.created_at for snapshot in await store.list_snapshots("a")],
    }
    wanted = {
        "messages": [f"message {n}" for n in range(rounds)],
        "tool calls": {f"call_{n % 7}": n for n in range(rounds)},
        "todos": samples.todos(f"todo {last}"),
        "info": samples.info("a", metadata={"n": last}, message_count=rounds),
        "events": [*range(rounds)],
        "media": [f"{last}"],
        "windows": [*kept],
        "compressions": [*kept],
        "recovered": [*range(rounds)],
        "snapshots": [*reversed(kept)],
    }
    for kind, records in found.items():
        want = wanted[kind]
        if kind == "tool calls":
            ctx.equal(dict(sorted(records.items())), dict(sorted(want.items())), f"the {kind} after {rounds} rounds")  # type: ignore[union-attr, attr-defined]
        else:
            ctx.equal(records, want, f"the {kind} after {rounds} rounds of writes of all kinds at once")


@check("TC-3", "TC-2", under=(Dimension.COMPANY, Dimension.EQUALS, Dimension.INSTANCES))
async def upserts_of_one_id_at_once(ctx: Context) -> None:
    """When two instances upsert the same ids at once, each id is stored once, as one of its records in full, although
    others append; earlier calls with the same id stay as they are.
    """
    stores = [ctx.store, await ctx.another()]
    await ctx.store.save_tool_call_records("a", [samples.tool_call(0, result="old"), samples.tool_call(0, result="x")])
    for round_ in in_time(ctx, range(5)):
        writes = []
        for writer in range(8):
            result = f"{round_} {writer}"
            group = [samples.tool_call(i, result=result, name=f"n{writer}") for i in (0, 1, 2)]
            writes.append(stores[writer % 2].upsert_tool_call_records("a", group[:: 1 if writer % 3 else -1]))
            own = samples.tool_call(100 + 8 * round_ + writer, result=result, name=f"n{writer}")
            writes.append(stores[writer % 2].upsert_tool_call_records("a", [own]))
        await asyncio.gather(*writes)
        found = await stores[round_ % 2].load_tool_call_records("a")
        ctx.equal(found[0], samples.tool_call(0, result="old"), "the first of two calls of one id")
        ids = sorted(call.id for call in found[1:])
        wanted = sorted([*(f"call_{i}" for i in range(3)), *(f"call_{i}" for i in range(100, 108 + 8 * round_))])
        ctx.equal(ids, wanted, f"the ids of the calls behind it after {round_ + 1} rounds of upserts at once")
        last = {call.id: (call.result, call.name) for call in found[1:] if call.id in ("call_0", "call_1", "call_2")}
        known = {(f"{round_} {writer}", f"n{writer}") for writer in range(8)}
        ctx.true(set(last.values()) <= known, f"each of three calls must be one of the last round, got {last}")


# --- forks and deletes in company -------------------------------------------------------------------------------------


@check("FORK-1", "FORK-3", needs=Capability.EXTENDED, under=(Dimension.COMPANY, Dimension.ORDERS))
async def a_fork_is_a_cut_through_all_kinds(ctx: Context) -> None:
    """A fork that is made while the parent's kinds are written in turn holds the state of one instant in every kind: no
    kind is a round ahead of one that was written before it.
    """
    writer = await ctx.another()
    await ctx.store.save_info("p", samples.info("p"))
    ended = asyncio.Event()
    writing = asyncio.ensure_future(_write_in_turn(writer, ended))
    forks: list[str] = []
    try:
        for _ in in_time(ctx, range(12)):
            forks += await ctx.store.batch_fork("p", 1 + len(forks) % 2)
            await asyncio.sleep(0.001)
    finally:
        ended.set()
        await writing
    ctx.true((await _rounds_of(ctx.store, "p"))["snapshots"], "what was written to the parent must be there")
    for fork in forks:
        rounds = await _rounds_of(ctx.store, fork)
        order = [*rounds.values()]
        ctx.true(
            order == sorted(order, reverse=True) and order[0] - order[-1] <= 1,
            f"a fork is of more than one instant: it has the kinds of these rounds, written in this order: {rounds}",
        )


async def _write_in_turn(store: ExtendedStore, ended: asyncio.Event) -> None:
    n = 0
    while not ended.is_set():
        await asyncio.sleep(0)  # a store need not give way
        n += 1
        await store.append_messages("p", samples.messages(1))
        await store.save_todos("p", samples.todos("x").replace(version=n))
        await store.upsert_tool_call_records("p", [samples.tool_call(n)])
        await store.save_media_cache("p", [samples.media()] * n)
        await store.save_snapshot("p", samples.snapshot(f"s{n}", count=1))
        await asyncio.sleep(0)


async def _rounds_of(store: ExtendedStore, agent: str) -> dict[str, int]:
    todos = await store.load_todos(agent)
    return {
        "messages": len(await store.load_messages(agent)),
        "todos": todos.version if todos else 0,
        "tool calls": len(await store.load_tool_call_records(agent)),
        "media": len(await store.load_media_cache(agent)),
        "snapshots": len(await store.list_snapshots(agent)),
    }


@check("LIFE-3", "LIFE-4", tier=Tier.STANDARD, under=(Dimension.COMPANY, Dimension.ORDERS, Dimension.INSTANCES))
async def a_delete_among_writers_of_all_kinds(ctx: Context) -> None:
    """When two instances write every kind while the agent is deleted, each write is stored whole or not at all, nothing
    older is left, counts agree with loads, and a delete afterwards leaves nothing.
    """
    other = await ctx.another()
    for n in in_time(ctx, range(8)):
        for write in _writes(ctx.store, 100 + n).values():
            await write
        there = await _parts(ctx)
        missing = [kind for kind, (count, _) in there.items() if not count]
        ctx.equal(missing, [], "the kinds that are missing before the delete")
        later = [*_writes((ctx.store, other)[n % 2], 500 + n).values()]
        later.insert(ctx.rng.randrange(len(later)), (other, ctx.store)[n % 2].delete("a"))
        await asyncio.gather(*later)
        found = await _parts(ctx)
        for kind, (count, newest) in found.items():
            sound = count in (0, 1) and newest in (None, 500 + n)
            ctx.true(sound, f"after a delete at the same time as a write there are {count} {kind}, one of {newest}")
        info = await ctx.store.load_info("a")
        if info is not None:
            ctx.equal(info.message_count, found["messages"][0], "message_count after a delete among writers")
        ctx.equal(await other.exists("a"), info is not None, "whether the agent exists, when it has an info or none")
        await ctx.store.delete("a")
        left = [kind for kind, records in (await dump(ctx)).items() if records]
        ctx.equal(left, [], "the kinds that are left after the last delete")


async def _parts(ctx: Context) -> dict[str, tuple[int, Any]]:
    """The number of records of each kind, and the round of one of them."""
    found = await dump(ctx)
    rounds: dict[str, Any] = {
        "messages": [int(message.text.split()[1]) for message in found["messages"]],  # type: ignore[attr-defined]
        "tool calls": [call.result for call in found["tool calls"]],  # type: ignore[attr-defined]
        "snapshot": [snapshot.created_at for snapshot in found["snapshot"]],  # type: ignore[attr-defined]
        "window": [window.timestamp for window in found["window"]],  # type: ignore[attr-defined]
        "compression": [record.timestamp for record in found["compression"]],  # type: ignore[attr-defined]
        "recovered": [file.timestamp for file in found["recovered"]],  # type: ignore[attr-defined]
        "media": [int(record.key) for record in found["media"]],  # type: ignore[attr-defined]
        "event": [event.bookmark.seq for event in found["event"]],  # type: ignore[attr-defined]
        "todos": [int(todo.title.split()[1]) for todo in getattr(found["todos"], "todos", ())],
        "info": [info.metadata["n"] for info in [found["info"]] if info],  # type: ignore[attr-defined]
    }
    return {kind: (len(of), min(of) if of else None) for kind, of in rounds.items()}
