"""Corners that other checks go around; each was found by a faulty store that passed all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.model import AgentInfo, Bookmark


@check("VAL-1", under=(Dimension.NUMBERS,))
async def fractions_of_typed_numbers(ctx: Context) -> None:
    """Durations, ratios and modification times keep their fractions, and stay whole where they are whole."""
    calls = [samples.tool_call(i, duration_ms=value) for i, value in enumerate((1.5, 1, 1.0, 0.1 + 0.2, 1e-9))]
    await ctx.store.save_tool_call_records("a", calls)
    ctx.equal(
        await ctx.store.load_tool_call_records("a"), calls, "calls with durations of 1.5, 1, 1.0, 0.3 and 1e-9 ms"
    )
    records = [samples.compression(f"c{i}", i).replace(ratio=value) for i, value in enumerate((1 / 3, 1, 1.0))]
    files = [samples.recovered(f"f{i}", i).replace(mtime=value) for i, value in enumerate((-1.5, 1, 1e12 + 0.25))]
    for record, file in zip(records, files, strict=True):
        await ctx.store.save_compression_record("a", record)
        await ctx.store.save_recovered_file("a", file)
    ctx.equal(await ctx.store.load_compression_records("a"), records, "compressions with ratios of 1/3, 1 and 1.0")
    ctx.equal(await ctx.store.load_recovered_files("a"), files, "files with fractional modification times")


@check("ID-1", needs=Capability.PERSISTENT, absence_ok=True, under=(Dimension.LOOKALIKES,))
async def nothing_outside_the_store_is_touched(ctx: Context) -> None:
    """Ids that look like paths reach nothing outside the store, and opening a store changes nothing outside it."""
    beside = Path(ctx.folder) / "canary"
    beside.mkdir()
    files = [ctx.folder / f"canary{suffix}" for suffix in ("", ".json", ".jsonl", "/meta.json", "/x")]
    for file in files[1:]:
        file.write_text("alive")
    before = _contents(beside)
    await ctx.reopen()
    for agent in ("../canary", "canary", "../canary/x", "x/../../canary"):
        await ctx.store.save_info(agent, samples.info(agent))
        await ctx.store.save_snapshot(agent, samples.snapshot("../../canary/x"))
        await ctx.store.save_recovered_file(agent, samples.recovered("../canary/x"))
        await ctx.store.delete(agent)
    changed = [file.name for file in files[1:] if not file.exists() or file.read_text() != "alive"]
    ctx.equal(changed, [], "the files beside the store that were changed")
    ctx.equal(_contents(beside), before, "what is in a folder beside the store")


def _contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@check("LIFE-1", under=(Dimension.CHANGES,))
async def a_bare_info_exists(ctx: Context) -> None:
    """An agent whose info says nothing but its name exists, is listed, and is loaded."""
    bare = AgentInfo(agent_id="a", template_id="", created_at=0)
    await ctx.store.save_info("a", bare)
    ctx.equal((await ctx.store.exists("a"), await ctx.store.list()), (True, ["a"]), "whether the agent is there")
    ctx.equal(await ctx.store.load_info("a"), bare, "the bare info")


@check("INFO-1", "INFO-3", "LIFE-1", under=(Dimension.ORDERS,))
async def reads_make_no_agent(ctx: Context) -> None:
    """Asking for an agent that is not there does not make one."""
    await ctx.store.save_info("b", samples.info("b"))
    await ctx.store.load_messages("a")
    await ctx.store.load_todos("a")
    await ctx.store.load_snapshot("a", "s")
    _ = [event async for event in ctx.store.read_events("a")]
    ctx.equal(
        (await ctx.store.exists("a"), await ctx.store.list()), (False, ["b"]), "the agents after reads of another"
    )


@check("LIFE-4", under=(Dimension.CHANGES, Dimension.INSTANCES, Dimension.ITEMS))
async def who_remembers_a_deleted_agent_is_not_misled(ctx: Context) -> None:
    """An instance that knew a deleted agent writes exactly the records that it is given, although a new agent of that
    id has as many records.
    """
    other = await ctx.another()
    for length in (1, 2, 3):
        await ctx.store.save_messages("a", samples.messages(length))
        await other.delete("a")
        await other.save_messages("a", samples.messages(length, 50))
        wanted = samples.messages(length + 1)
        await ctx.store.save_messages("a", wanted)
        ctx.equal(await other.load_messages("a"), wanted, "a list saved by a writer that knew the deleted agent")
        await other.delete("a")


@check("FORK-1", needs=Capability.EXTENDED, under=(Dimension.CHANGES,))
async def a_fork_starts_without_a_bookmark(ctx: Context) -> None:
    """A fork's info has no bookmark, for its event log is its own; the rest of the info is the parent's."""
    await ctx.store.save_info("p", samples.info("p", last_bookmark=Bookmark(7, samples.T0), lineage=["g"]))
    (fork,) = await ctx.store.batch_fork("p", 1)
    found = await ctx.store.load_info(fork)
    assert found is not None
    wanted = samples.info(fork, last_bookmark=None, lineage=["g", "p"], created_at=found.created_at)
    ctx.equal(found, wanted, "the fork's info")
    ctx.equal(await ctx.store.last_bookmark(fork), None, "the fork's last bookmark")


@check("OPS-1", needs=Capability.EXTENDED, absence_ok=True, under=(Dimension.COMPANY, Dimension.INSTANCES))
async def health_is_told_to_many_at_once(ctx: Context) -> None:
    """Health checks of two instances at once do not disturb each other."""
    other = await ctx.another()
    found = await asyncio.gather(*(store.health_check() for store in (ctx.store, other) * 10))
    ctx.equal([status.problem or status.healthy for status in found], [True] * 20, "twenty health checks at once")
