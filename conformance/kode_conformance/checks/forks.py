"""FORK: copies of an agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from kode_conformance.calls.fenced import fenced_writes
from kode_conformance.checks.lifecycle import fill
from kode_conformance.checks.messages import dump
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time, sizes_in_time
from kode_conformance.kills.writes import portrait
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import AgentNotFoundError, InvalidArgumentError
from kode_core.model import Message, Snapshot, ToolCallRecord, ToolUseBlock
from kode_core.protocols import ExtendedStore

_E = Capability.EXTENDED


@check("FORK-1", needs=_E, under=(Dimension.CHANGES,))
async def forks_have_what_the_parent_has(ctx: Context) -> None:
    """A fork has info of its own, and the parent's messages, tool calls, todos, media and snapshots, ids unchanged."""
    await fill(ctx.store, "p")
    await ctx.store.save_info("p", samples.info("p", lineage=["g"]))
    before = await dump(ctx, "p")
    ids = await ctx.store.batch_fork("p", 3)
    ctx.equal(len(set(ids)), 3, "how many ids there are")
    ctx.true(all(fork.startswith("agt-") for fork in ids), f"the ids must begin with agt-: {ids}")
    ctx.equal(ids, sorted(ids), "the ids in the order of time")
    ctx.equal(await ctx.store.list(), sorted([*ids, "p"]), "the agents")
    for fork in ids:
        found = await dump(ctx, fork)
        for kind in ("messages", "tool calls", "todos", "media", "snapshot"):
            ctx.equal(found[kind], before[kind], f"the fork's {kind}")
        ctx.equal(found["event"], [], "the fork's events")
        info = await ctx.store.load_info(fork)
        assert info is not None
        ctx.equal((info.agent_id, info.lineage, info.message_count), (fork, ("g", "p"), 3), "the fork's info")
        ctx.true(info.created_at > samples.T0, "the fork's created_at must be new")
        ctx.equal((info.template_id, info.metadata), ("assistant", samples.info("p").metadata), "what it inherits")
    ctx.equal(await dump(ctx, "p"), before, "the parent")


@check("FORK-2", needs=_E, under=(Dimension.CHANGES,))
async def forks_are_independent(ctx: Context) -> None:
    """Parent and forks do not share: changes and deletes of one leave the others; forks can be forked."""
    await fill(ctx.store, "p")
    first, second = await ctx.store.batch_fork("p", 2)
    (third,) = await ctx.store.batch_fork(first, 1)
    (again,) = await ctx.store.batch_fork("p", 1)
    info = await ctx.store.load_info(third)
    ctx.equal(info and info.lineage, ("p", first), "the lineage of a fork's fork")
    await ctx.store.append_messages(first, samples.messages(2))
    await ctx.store.save_todos(first, samples.todos("mine"))
    await ctx.store.save_snapshot("p", samples.snapshot("late"))
    await ctx.store.append_event(first, samples.event(0))
    for agent in ("p", second, third, again):
        ctx.equal(await ctx.store.load_messages(agent), samples.messages(3), f"the messages of {agent}")
        ctx.equal(await ctx.store.load_todos(agent), samples.todos("x"), f"the todos of {agent}")
    ctx.equal([s.id for s in await ctx.store.list_snapshots(first)], ["sfp-1"], "the fork's snapshots")
    ctx.equal(await ctx.store.load_snapshot(first, "late"), None, "a snapshot that the parent saved after the fork")
    await ctx.store.save_snapshot(first, samples.snapshot("mine"))
    for agent in ("p", second, third):
        ctx.equal(await ctx.store.load_snapshot(agent, "mine"), None, f"a snapshot of a fork, loaded for {agent}")
    await ctx.store.delete("p")
    await ctx.store.delete(first)
    for agent in (second, third, again):
        ctx.equal(await ctx.store.load_messages(agent), samples.messages(3), f"{agent} after the others were deleted")
        ctx.equal(await ctx.store.load_media_cache(agent), [samples.media()], f"the media of {agent}")


@check("FORK-2", "FORK-1", "FORK-4", needs=_E, under=(Dimension.CHANGES, Dimension.ORDERS))
async def no_write_to_one_shows_in_the_other(ctx: Context) -> None:
    """A call of every method that writes to a parent, removals among them, leaves its fork as it is, of every kind; and
    the same calls to the fork leave the parent as it is.
    """
    for parent, writes_parent in (("p", True), ("q", False)):
        await fill(ctx.store, parent)
        (fork,) = await ctx.store.batch_fork(parent, 1)
        writer, other = (parent, fork) if writes_parent else (fork, parent)
        before = await portrait(ctx.store, other)
        for write in fenced_writes(writer, edits=True):
            await write.act(ctx.store, writer)
            told = f"the {'fork' if writes_parent else 'parent'} after {write.name} of the other"
            ctx.equal(await portrait(ctx.store, other), before, told)


@check("FORK-1", needs=_E, under=(Dimension.NUMBERS,))
async def bad_forks_are_refused(ctx: Context) -> None:
    """Forking an agent that does not exist, or a number of times that makes no sense, is refused and makes nothing;
    forking zero times is fine.
    """
    await ctx.raises(AgentNotFoundError, ctx.store.batch_fork("nobody", 1), "forking nobody")
    await ctx.store.save_messages("p", samples.messages(1))
    await ctx.raises(AgentNotFoundError, ctx.store.batch_fork("p", 1), "forking an agent without info")
    await ctx.store.save_info("p", samples.info("p"))
    for bad in (-1, "2", 1.0, None, True):
        await ctx.raises(InvalidArgumentError, ctx.store.batch_fork("p", bad), f"forking {bad!r} times")  # type: ignore[arg-type]
    ctx.equal(await ctx.store.batch_fork("p", 0), [], "forking zero times")
    ctx.equal(await ctx.store.list(), ["p"], "the agents")


@check("FORK-1", "FORK-3", needs=_E, under=(Dimension.COMPANY, Dimension.ITEMS))
async def a_fork_is_of_one_instant(ctx: Context) -> None:
    """A fork taken while the parent is written holds one state of it: all kinds of one turn; and so do together all
    forks of one call, however many.
    """
    await ctx.store.save_turn("p", info=samples.info("p"), todos=samples.todos("0"))
    stop = False

    async def write() -> int:
        n = 0
        while not stop:
            n += 1
            await asyncio.sleep(0)
            await ctx.store.save_turn(
                "p", append=samples.messages(1), upsert_tool_calls=[samples.tool_call(n)], todos=samples.todos(str(n))
            )
        return n

    writer = asyncio.ensure_future(write())
    forks = []
    for _ in range(10):
        forks += await ctx.store.batch_fork("p", 1)
        await asyncio.sleep(0.003)
    together = []
    for count in sizes_in_time(ctx, (26, 101, 251)):
        together.append(await ctx.store.batch_fork("p", count))
    stop = True
    await writer
    for many in together:
        turns = {len(await ctx.store.load_messages(fork)) for fork in many}
        ctx.equal(len(turns), 1, f"of how many instants the {len(many)} forks of one call are: turns {sorted(turns)}")
    for fork in (*forks, *(many[-1] for many in together)):
        messages, calls = await ctx.store.load_messages(fork), await ctx.store.load_tool_call_records(fork)
        todos = await ctx.store.load_todos(fork)
        turn = int(todos.todos[0].title) if todos else -1
        ctx.equal((len(messages), len(calls)), (turn, turn), f"messages and tool calls of a fork of turn {turn}")


@check("FORK-1", needs=_E, under=(Dimension.ITEMS,))
async def many_forks_of_a_long_agent(ctx: Context) -> None:
    """Fifty forks of an agent with hundreds of messages are all whole."""
    long = samples.messages(300)
    await ctx.store.save_turn("p", messages=long, info=samples.info("p"))
    ids = await ctx.store.batch_fork("p", 50)
    ctx.equal(len(set(ids)), 50, "how many forks there are")
    for fork in ids[::10]:
        ctx.equal(await ctx.store.load_messages(fork), long, "the messages of a fork")


# --- many forks at once -----------------------------------------------------------------------------------------------


async def _save_version(store: ExtendedStore, version: int) -> None:
    """All that a turn writes to the parent, but for its info, in one piece."""
    await store.save_turn(
        "p",
        messages=[samples.message(text=f"{version} {i}") for i in range(12)],
        tool_calls=[samples.tool_call(i, result=version, audit_trail=[]) for i in range(5)],
        todos=samples.todos("x").replace(version=version),
    )


async def _versions(store: ExtendedStore, agent: str) -> dict[str, object]:
    """The versions in each kind, and the numbers of records."""
    messages, calls = await store.load_messages(agent), await store.load_tool_call_records(agent)
    todos = await store.load_todos(agent)
    return {
        "messages": sorted({int(message.text.split()[0]) for message in messages}),
        "tool calls": sorted({call.result for call in calls}),
        "todos": [todos.version] if todos else [],
        "how many": (len(messages), len(calls)),
    }


@check(
    *("FORK-1", "FORK-3"),
    needs=Capability.EXTENDED,
    stochastic=True,
    under=(Dimension.ITEMS, Dimension.COMPANY, Dimension.INSTANCES),
)
async def all_forks_of_a_call_are_of_one_instant(ctx: Context) -> None:
    """The forks that one call makes, 26 and 51 of them, while the parent is changed turn by turn, all hold the same
    turn, of every kind and whole; and no fork is to be seen in part while they are made.
    """
    other = await ctx.another()
    await ctx.store.save_info("p", samples.info("p"))
    await _save_version(ctx.store, 0)
    known: set[str] = set()
    for count in (26, 51) if ctx.settings.tier is Tier.QUICK else (26, 51, 101, 256):
        forking = asyncio.ensure_future(ctx.store.batch_fork("p", count))
        version = 0
        while not forking.done():
            await asyncio.sleep(0)  # a store need not give way
            version += 1
            await _save_version(other, version)
            for fork in [fork for fork in await other.list("agt-") if fork not in known][-1:]:
                _see_one_version(ctx, await _versions(other, fork), f"a fork of {count}, while they were made")
        forks = await forking
        ctx.equal(len({*forks} - known), count, "how many new forks there are")
        known |= {*forks}
        first = await _versions(other, forks[0])
        _see_one_version(ctx, first, f"the first of {count} forks")
        for number, fork in enumerate(forks, 1):
            ctx.equal(await _versions(other, fork), first, f"fork {number} of {count}, compared with the first")


def _see_one_version(ctx: Context, found: dict[str, object], what: str) -> None:
    wanted = {kind: found["todos"] if kind != "how many" else (12, 5) for kind in found}
    ctx.equal(found, wanted, f"{what}: the turns that it holds")


# --- forks of a part --------------------------------------------------------------------------------------------------


async def see_forks_after_edits(
    ctx: Context, other: ExtendedStore, messages: Sequence[Message], snapshot: Snapshot
) -> None:
    """After each kind of edit of the agent p, a fork of the snapshot has the snapshot's messages, and a fork of the
    first messages has the present ones, with their times and the tool calls that they use; of "none", none.
    """
    stores = (ctx.store, other)
    for number, (what, edit) in enumerate(in_time(ctx, _edits(messages, snapshot).items())):
        await edit(stores[number % 2], "p")
        kept = await other.load_snapshot("p", "s")
        present = await other.load_messages("p")
        times = [one.created_at async for one in other.read_messages("p")]
        used = await other.load_tool_call_records("p")
        assert kept is not None
        if number % 4 == 3:
            child = await stores[1 - number % 2].fork("p", snapshot_id="none")
            ctx.equal(await other.load_messages(child), [], f"the messages of a snapshot of none, after {what}")
        child = await stores[1 - number % 2].fork("p", snapshot_id="s")
        ctx.equal(await ctx.store.load_messages(child), [*kept.messages], f"the messages of the snapshot, after {what}")
        ctx.equal(await other.load_tool_call_records(child), _used(used, kept.messages), f"its calls, after {what}")
        for length in sorted({0, min(2, len(present)), len(present)}):
            child = await stores[number % 2].fork("p", length=length)
            told = f"the first {length} of {len(present)} messages, after {what}"
            ctx.equal(await other.load_messages(child), present[:length], told)
            ctx.equal(
                [one.created_at async for one in ctx.store.read_messages(child)], times[:length], f"times of {told}"
            )
            ctx.equal(await other.load_tool_call_records(child), _used(used, present[:length]), f"the calls of {told}")


def _used(calls: Sequence[ToolCallRecord], messages: Sequence[Message]) -> list[ToolCallRecord]:
    """The tool calls that messages use."""
    used = {block.id for one in messages for block in one.content if isinstance(block, ToolUseBlock)}
    return [call for call in calls if call.id in used]


def _edits(
    messages: Sequence[Message], snapshot: Snapshot
) -> Mapping[str, Callable[[ExtendedStore, str], Awaitable[Any]]]:
    """Edits of a list of messages of which a snapshot has the first three, one after the other."""
    late = [samples.message(0), Message("assistant", [ToolUseBlock("late", "t", {})]), *samples.messages(7, 500)]
    return {
        "a replacement of one": lambda s, a: s.replace_message(a, 1, samples.message(text="another")),
        "a replacement of the last": lambda s, a: s.replace_message(a, len(messages) - 1, messages[1]),
        "a pop": lambda s, a: s.pop_messages(a, 3),
        "an append": lambda s, a: s.append_messages(a, late),
        "a truncate within the snapshot": lambda s, a: s.truncate_messages(a, 2),
        "an append behind that": lambda s, a: s.append_messages(a, late[1:]),
        "a save of others": lambda s, a: s.save_messages(a, late[::-1]),
        "a save of as many as the snapshot has": lambda s, a: s.save_messages(a, late[:3]),
        "a turn": lambda s, a: s.save_turn(a, messages=late[2:5]),
        "a save of the snapshot with other messages": lambda s, a: s.save_snapshot(
            a, snapshot.replace(messages=[*late, *messages[:2]])
        ),
        "a save of none": lambda s, a: s.save_messages(a, []),
        "a save of more": lambda s, a: s.save_messages(a, [*messages, *late]),
    }
