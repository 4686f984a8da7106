"""ID: which names are legal, and that different names are different."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension, twins
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.errors import InvalidArgumentError, LockUnavailableError

LEGAL = (
    "a",
    "A",
    "a/b",
    "a_b",
    "a.b",
    "a b",
    "ab",
    "..",
    ".",
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\windows",
    "con",
    "nul",
    "%",
    "%61",
    "_",
    "*",
    "[a-z]",
    "?",
    "~",
    "-",
    "a\nb",
    "\t",
    " ",
    "'; DROP TABLE kode_agents; --",
    "$where",
    "__proto__",
    "Aa",
    "BB",
    "x",
    "x/fork-1",
    "é",
    "e\u0301",
    "😀",
    "\U0010ffff",
    "\x1b[31mred",
    "x" * 256,
    "x" * 255 + "y",
    "é" * 128,
    "agt-01j5x7k2m3n4p5q6r7s8t9v0wx",
)
ILLEGAL: tuple[Any, ...] = ("", "a\0b", "\ud83d", "x\udc00", "x" * 257, "é" * 129, "x" * 10_000, None, 5, b"a", ["a"])


@check("ID-1", "ID-2", "LIFE-2", "LIFE-3", under=(Dimension.TWINS, Dimension.LOOKALIKES, Dimension.LENGTHS))
async def every_legal_id_is_an_agent_of_its_own(ctx: Context) -> None:
    """Every legal id works for everything, and no two ids share anything or collide."""
    for i, agent in enumerate(LEGAL):
        await ctx.store.save_info(agent, samples.info(agent, metadata={"i": i}))
        await ctx.store.save_messages(agent, [samples.message(text=f"for {i}")])
        await ctx.store.append_event(agent, samples.event(i))
        await ctx.store.save_snapshot(agent, samples.snapshot(f"s{i}"))
    ctx.equal(await ctx.store.list(), sorted(LEGAL), "the list of agents")
    for i, agent in enumerate(LEGAL):
        ctx.equal((await ctx.store.load_messages(agent))[0].text, f"for {i}", f"the messages of {agent!r}")
        info = await ctx.store.load_info(agent)
        ctx.equal(info and info.metadata, {"i": i}, f"the info of {agent!r}")
        seqs = [event.bookmark.seq async for event in ctx.store.read_events(agent)]
        ctx.equal(seqs, [i], f"the events of {agent!r}")
        ctx.equal([s.id for s in await ctx.store.list_snapshots(agent)], [f"s{i}"], f"the snapshots of {agent!r}")
    for gone, agent in enumerate(LEGAL, 1):
        await ctx.store.delete(agent)
        ctx.equal(len(await ctx.store.list()), len(LEGAL) - gone, f"the number of agents after {agent!r} was deleted")


@check("ID-1", absence_ok=True, under=(Dimension.LENGTHS, Dimension.LOOKALIKES))
async def illegal_ids_are_refused(ctx: Context) -> None:
    """An id that is empty, too long, has U+0000 or a lone surrogate, or is no string is refused by every method."""
    for bad in ILLEGAL:
        calls: dict[str, Callable[[Any], Awaitable[object]]] = {
            "save_messages": lambda bad: ctx.store.save_messages(bad, []),
            "load_messages": lambda bad: ctx.store.load_messages(bad),
            "append_event": lambda bad: ctx.store.append_event(bad, samples.event(0)),
            "save_todos": lambda bad: ctx.store.save_todos(bad, samples.todos()),
            "load_info": lambda bad: ctx.store.load_info(bad),
            "exists": lambda bad: ctx.store.exists(bad),
            "delete": lambda bad: ctx.store.delete(bad),
            "save_turn": lambda bad: ctx.store.save_turn(bad, append=samples.messages(1)),
        }
        for name, call in calls.items():
            await ctx.raises(InvalidArgumentError, call(bad), f"{name}({bad!a:.40})")
        try:
            ctx.store.read_events(bad)
        except InvalidArgumentError:
            continue
        ctx.true(False, f"read_events({bad!a:.40}) must be refused")
    ctx.equal(await ctx.store.list(), [], "the list of agents")


@check("ID-2", needs=Capability.EXTENDED, under=(Dimension.TWINS,))
async def locks_of_different_ids_never_collide(ctx: Context) -> None:
    """The locks of different ids do not stand in each other's way."""
    leases = [await ctx.store.acquire_agent_lock(agent) for agent in LEGAL]
    for agent, lease in zip(LEGAL, leases, strict=True):
        await ctx.raises(LockUnavailableError, _take(ctx.store.acquire_agent_lock(agent)), f"the lock of {agent!r}")
        await lease.release()


async def _take(lock: Awaitable[object]) -> object:
    return await lock


@check("ID-3", absence_ok=True, under=(Dimension.TWINS, Dimension.CHANGES))
async def the_argument_is_the_key(ctx: Context) -> None:
    """Saving an info under another id than its own is refused, by each method that takes one and however near the two
    ids are, and nothing is written.
    """
    ids = ["b", *twins("a"), "caf\u00e9", "cafe\u0301", "A", "a "]
    for name, twin in in_time(ctx, [(one, two) for one, two in itertools.pairwise(ids) if one != two]):
        info = samples.info(twin)
        for what, call in (
            ("save_info", ctx.store.save_info(name, info)),
            ("save_turn", ctx.store.save_turn(name, info=info)),
            ("a turn of more", ctx.store.save_turn(name, append=samples.messages(1), info=info)),
        ):
            await ctx.raises(InvalidArgumentError, call, f"{what} of {name!a} with an info of {twin!a}")
    ctx.equal([name for name in ids if await ctx.store.exists(name)], [], "the agents that exist")
    ctx.equal([name for name in ids if await ctx.store.load_messages(name)], [], "the agents that have messages")


@check("ID-4", under=(Dimension.LENGTHS, Dimension.LOOKALIKES))
async def other_ids_are_free_up_to_4096_bytes(ctx: Context) -> None:
    """Snapshot, window, compression and call ids, paths and media keys may be anything legal up to 4,096 bytes."""
    names = ("..", "a/b", "a_b", "CON", "con", "a\nb", "%", "x" * 4096, "é" * 2048, "../../evil", "'", "😀")
    for name in names:
        await ctx.store.save_snapshot("a", samples.snapshot(name))
        await ctx.store.save_history_window("a", samples.window(name))
        await ctx.store.save_compression_record("a", samples.compression(name))
        await ctx.store.save_recovered_file("a", samples.recovered(name))
    for name in names:
        ctx.equal(await ctx.store.load_snapshot("a", name), samples.snapshot(name), f"snapshot {name!r:.40}")
    ctx.equal(len(await ctx.store.list_snapshots("a")), len(names), "how many snapshots there are")
    ctx.equal({w.id for w in await ctx.store.load_history_windows("a")} == set(names), True, "the windows")
    ctx.equal({c.id for c in await ctx.store.load_compression_records("a")} == set(names), True, "the compressions")
    ctx.equal({f.path for f in await ctx.store.load_recovered_files("a")} == set(names), True, "the recovered files")
    await ctx.store.save_media_cache("a", [samples.media(name) for name in names])
    ctx.equal([m.key for m in await ctx.store.load_media_cache("a")], list(names), "the media keys")
    await ctx.store.save_tool_call_records("a", [samples.tool_call(id=name) for name in names])
    ctx.equal([c.id for c in await ctx.store.load_tool_call_records("a")], list(names), "the call ids")


@check("ID-4", absence_ok=True, under=(Dimension.LENGTHS, Dimension.LOOKALIKES))
async def illegal_keys_are_refused(ctx: Context) -> None:
    """An id of a record that is empty, too long, or has U+0000 or a lone surrogate is refused."""
    for bad in ("", "a\0", "\ud83d", "x" * 4097):
        what = f"the key {bad!a:.40}"
        await ctx.raises(InvalidArgumentError, ctx.store.save_snapshot("a", samples.snapshot(bad)), what)
        await ctx.raises(InvalidArgumentError, ctx.store.save_history_window("a", samples.window(bad)), what)
        await ctx.raises(InvalidArgumentError, ctx.store.save_compression_record("a", samples.compression(bad)), what)
        await ctx.raises(InvalidArgumentError, ctx.store.save_recovered_file("a", samples.recovered(bad)), what)
        await ctx.raises(InvalidArgumentError, ctx.store.save_media_cache("a", [samples.media(bad)]), what)
        await ctx.raises(InvalidArgumentError, ctx.store.load_snapshot("a", bad), what)
        call = ctx.store.save_tool_call_records("a", [samples.tool_call(id=bad)])
        await ctx.raises(InvalidArgumentError, call, what)
    ctx.equal(await ctx.store.list_snapshots("a"), [], "the snapshots")
    ctx.equal(await ctx.store.load_tool_call_records("a"), [], "the tool calls")
