"""TODO, HIS, MED, SNAP, INFO: the other kinds."""

from __future__ import annotations

import asyncio

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.model import TodoSnapshot


@check("TODO-1", under=(Dimension.CHANGES,))
async def todos_are_replaced(ctx: Context) -> None:
    """Saving todos replaces them; none saved is None, and an empty list is not none."""
    ctx.equal(await ctx.store.load_todos("a"), None, "todos that were never saved")
    for wanted in (samples.todos("x", "y", "x"), samples.todos("z"), TodoSnapshot(todos=[], version=7, updated_at=1)):
        await ctx.store.save_todos("a", wanted)
        ctx.equal(await ctx.store.load_todos("a"), wanted, "the todos")


@check("HIS-1", under=(Dimension.CHANGES, Dimension.ORDERS, Dimension.EQUALS))
async def windows_are_keyed_by_id(ctx: Context) -> None:
    """The same window id replaces; loads are by timestamp, then id; two with one timestamp are both kept."""
    for name, timestamp in (("b", 20), ("d", 20), ("a", 20), ("c", 10), ("b", 5)):
        await ctx.store.save_history_window("x", samples.window(name, timestamp))
    wanted = [samples.window("b", 5), samples.window("c", 10), samples.window("a", 20), samples.window("d", 20)]
    ctx.equal(await ctx.store.load_history_windows("x"), wanted, "the windows")


@check("HIS-1", under=(Dimension.CHANGES, Dimension.ORDERS, Dimension.EQUALS, Dimension.NUMBERS))
async def compressions_are_keyed_by_id(ctx: Context) -> None:
    """The same compression id replaces; loads are by timestamp, then id; ratios are exact."""
    records = [samples.compression("b", 20), samples.compression("a", 20), samples.compression("c", 10)]
    for record, ratio in zip(records, (0.1, 1 / 3, 0.0), strict=True):
        await ctx.store.save_compression_record("x", record.replace(ratio=ratio))
    found = await ctx.store.load_compression_records("x")
    ctx.equal([(r.id, r.ratio) for r in found], [("c", 0.0), ("a", 1 / 3), ("b", 0.1)], "the compressions")
    await ctx.store.save_compression_record("x", samples.compression("a", 1))
    ctx.equal([r.id for r in await ctx.store.load_compression_records("x")], ["a", "c", "b"], "after one was replaced")


@check("HIS-2", under=(Dimension.CHANGES, Dimension.ORDERS, Dimension.EQUALS))
async def recovered_files_are_keyed_by_path_and_time(ctx: Context) -> None:
    """Recovered files are kept by path and timestamp, and loaded by timestamp, then path."""
    files = [
        samples.recovered("a_b", 10),
        samples.recovered("a/b", 10),
        samples.recovered("a/b", 20),
        samples.recovered("x\ny", 5, content="# Recovered: fake\n"),
        samples.recovered("p" * 300, 30).replace(mtime=-1.5),
    ]
    for file in files:
        await ctx.store.save_recovered_file("a", file)
    wanted = [files[3], files[1], files[0], files[2], files[4]]
    ctx.equal(await ctx.store.load_recovered_files("a"), wanted, "the files")
    again = samples.recovered("a/b", 20, content="new")
    await ctx.store.save_recovered_file("a", again)
    ctx.equal((await ctx.store.load_recovered_files("a"))[3], again, "the file that was saved again")


@check("MED-1", under=(Dimension.CHANGES, Dimension.ORDERS, Dimension.LENGTHS))
async def the_media_cache_is_replaced(ctx: Context) -> None:
    """Saving the media cache replaces the list; order, large sizes and long addresses are kept; agents do not share."""
    first = [samples.media("b"), samples.media("a"), samples.media("b")]
    await ctx.store.save_media_cache("x", first)
    ctx.equal(await ctx.store.load_media_cache("x"), first, "the media cache")
    second = [samples.media("c").replace(file_id=None, file_uri="https://x/" + "y" * 2000, mime_type="text/plain; a=b")]
    await ctx.store.save_media_cache("x", second)
    ctx.equal(await ctx.store.load_media_cache("x"), second, "the media cache after a replacement")
    ctx.equal(await ctx.store.load_media_cache("y"), [], "another agent's media cache")
    await ctx.store.save_media_cache("x", [])
    ctx.equal(await ctx.store.load_media_cache("x"), [], "an empty media cache")


@check("SNAP-1", under=(Dimension.CHANGES, Dimension.ORDERS, Dimension.EQUALS))
async def snapshots_are_keyed_by_id(ctx: Context) -> None:
    """The same snapshot id replaces; lists are newest first, then by id; agents do not share."""
    for snapshot in (samples.snapshot("b", 10), samples.snapshot("a", 10), samples.snapshot("c", 20)):
        await ctx.store.save_snapshot("x", snapshot)
    ctx.equal([s.id for s in await ctx.store.list_snapshots("x")], ["c", "a", "b"], "the ids, newest first")
    newer = samples.snapshot("b", 30, count=4)
    await ctx.store.save_snapshot("x", newer)
    ctx.equal(await ctx.store.load_snapshot("x", "b"), newer, "the snapshot that was saved again")
    ctx.equal([s.id for s in await ctx.store.list_snapshots("x")], ["b", "c", "a"], "the ids after that")
    ctx.equal(await ctx.store.load_snapshot("y", "b"), None, "another agent's snapshot")
    ctx.equal(await ctx.store.load_snapshot("x", "zz"), None, "a snapshot that is not there")


@check("SNAP-1", under=(Dimension.CHANGES, Dimension.ITEMS))
async def a_snapshot_stays_as_it_was(ctx: Context) -> None:
    """Later saves of messages do not change a snapshot; a snapshot of thousands of messages works."""
    large = samples.snapshot("large", count=5000)
    await ctx.store.save_snapshot("a", large)
    await ctx.store.save_messages("a", samples.messages(3))
    await ctx.store.save_messages("a", [])
    ctx.equal(await ctx.store.load_snapshot("a", "large"), large, "the snapshot")


@check("INFO-1", under=(Dimension.CHANGES,))
async def info_is_inserted_or_replaced(ctx: Context) -> None:
    """Saving an info inserts or replaces it whole: fields that the new info lacks are gone."""
    full = samples.info("a", lineage=["p", "q", "p"], metadata={"deep": {"list": [None, {"x": []}]}, "n": None})
    await ctx.store.save_info("a", full)
    ctx.equal(await ctx.store.load_info("a"), full, "the info")
    bare = samples.info("a", breakpoint=None, last_bookmark=None, lineage=[], metadata={}, created_at=5)
    await ctx.store.save_info("a", bare)
    ctx.equal(await ctx.store.load_info("a"), bare, "the info after it was replaced")


@check("INFO-2", needs=Capability.QUERYABLE, under=(Dimension.CHANGES,))
async def updated_at_moves_forward(ctx: Context) -> None:
    """updated_at of a session moves forward with saves of messages, tool calls and info, empty lists too, and with
    nothing else.
    """

    async def updated() -> int:
        return (await ctx.store.query_sessions(agent_id="a"))[0].updated_at

    await ctx.store.save_info("a", samples.info("a"))
    times = [await updated()]
    for save in (
        ctx.store.save_messages("a", samples.messages(1)),
        ctx.store.append_messages("a", samples.messages(1)),
        ctx.store.save_tool_call_records("a", [samples.tool_call()]),
        ctx.store.upsert_tool_call_records("a", [samples.tool_call()]),
        ctx.store.save_info("a", samples.info("a")),
        ctx.store.save_turn("a", append=samples.messages(1)),
        ctx.store.save_turn("a", messages=[]),
        ctx.store.save_turn("a", tool_calls=[]),
        ctx.store.save_messages("a", []),
        ctx.store.append_messages("a", []),
        ctx.store.save_tool_call_records("a", []),
        ctx.store.upsert_tool_call_records("a", []),
    ):
        await asyncio.sleep(0.003)
        await save
        times.append(await updated())
    ctx.equal(times, sorted(set(times)), "updated_at after each save")
    await asyncio.sleep(0.005)
    await ctx.store.append_event("a", samples.event(0))
    await ctx.store.save_todos("a", samples.todos())
    ctx.equal(await updated(), times[-1], "updated_at after an event and todos")


@check("INFO-1", "INFO-3", "LIFE-1", absence_ok=True, under=(Dimension.ORDERS,))
async def loads_of_nothing_leave_no_trace(ctx: Context) -> None:
    """Loads of absent records return empty or None, and leave nothing behind."""
    store = ctx.store
    empty = (
        await store.load_messages("a"),
        await store.load_tool_call_records("a"),
        await store.load_history_windows("a"),
        await store.load_compression_records("a"),
        await store.load_recovered_files("a"),
        await store.load_media_cache("a"),
        await store.list_snapshots("a"),
        [event async for event in store.read_events("a")],
    )
    ctx.equal(empty, ([],) * 8, "lists of nothing")
    none = (
        await store.load_todos("a"),
        await store.load_info("a"),
        await store.load_snapshot("a", "s"),
        await store.last_bookmark("a"),
    )
    ctx.equal(none, (None,) * 4, "things that are not there")
    await store.delete("a")
    ctx.equal((await store.exists("a"), await store.list()), (False, []), "what is there afterwards")
