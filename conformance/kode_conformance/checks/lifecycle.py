"""LIFE: existing, listing, deleting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from kode_conformance.calls.ways import at_once
from kode_conformance.checks.messages import dump
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.instruments.pace import sizes_in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.many import views
from kode_core.errors import InvalidArgumentError
from kode_core.model import DeleteDocument, PutDocument
from kode_core.protocols import ExtendedStore


async def fill(store: ExtendedStore, agent: str) -> None:
    """Save something of every kind."""
    await store.save_info(agent, samples.info(agent))
    await store.save_messages(agent, samples.messages(3))
    await store.save_tool_call_records(agent, [samples.tool_call()])
    await store.save_todos(agent, samples.todos("x"))
    await store.append_events(agent, samples.events(3))
    await store.save_history_window(agent, samples.window())
    await store.save_compression_record(agent, samples.compression())
    await store.save_recovered_file(agent, samples.recovered())
    await store.save_media_cache(agent, [samples.media()])
    await store.save_snapshot(agent, samples.snapshot())
    if keeps_documents():
        await store.put_document(agent, "c", "k", {"filled": [1, None]})


@check("LIFE-1", under=(Dimension.CHANGES, Dimension.ORDERS))
async def exists_follows_the_info(ctx: Context) -> None:
    """exists is true exactly when info was saved and not deleted."""
    await ctx.store.save_messages("a", samples.messages(1))
    ctx.equal(await ctx.store.exists("a"), False, "with messages only")
    await ctx.store.save_info("a", samples.info("a"))
    ctx.equal(await ctx.store.exists("a"), True, "with info")
    await ctx.store.delete("a")
    ctx.equal(await ctx.store.exists("a"), False, "after delete")


@check("LIFE-2", under=(Dimension.LOOKALIKES, Dimension.TWINS))
async def the_prefix_is_literal(ctx: Context) -> None:
    """list gives ids with info by code point; every character of the prefix stands for itself, in its case."""
    ids = ["ab_1", "abX1", "AB_2", "ab%", "ab", "a*b", "a[b]", "a\\b", "é", "z", "😀", "\uffff", "ab_", "a"]
    for agent in ids:
        await ctx.store.save_info(agent, samples.info(agent))
    await ctx.store.save_messages("ab_no_info", samples.messages(1))
    prefixes = ("", "a", "ab", "ab_", "ab%", "AB", "a*", "a[", "a\\", "é", "e", "😀", "\uffff", "zz", "\U0010ffff")
    for prefix in prefixes:
        wanted = sorted(agent for agent in ids if agent.startswith(prefix))
        ctx.equal(await ctx.store.list(prefix), wanted, f"list({prefix!r})")
    await ctx.raises(InvalidArgumentError, ctx.store.list(5), "a prefix that is no string")  # type: ignore[arg-type]


@check(
    *("LIFE-2", "LIFE-1"),
    needs=Capability.EXTENDED,
    under=(Dimension.CHANGES, Dimension.ITEMS, Dimension.INSTANCES),
)
async def agents_without_info_are_listed_when_asked_for(ctx: Context) -> None:
    """list gives every id under which any kind is stored when ids without info are included, and none that is deleted
    or was only read or locked; otherwise it gives the ones with info alone. For exists,
    load_info and queries an agent without info has none either, in every instance, and after a reopening.
    """
    writes: dict[str, Callable[[str], Awaitable[object]]] = {
        "calls": lambda one: ctx.store.save_tool_call_records(one, [samples.tool_call()]),
        "compression": lambda one: ctx.store.save_compression_record(one, samples.compression()),
        "event": lambda one: ctx.store.append_event(one, samples.event(0)),
        "info": lambda one: ctx.store.save_info(one, samples.info(one)),
        "media": lambda one: ctx.store.save_media_cache(one, [samples.media()]),
        "messages": lambda one: ctx.store.save_messages(one, samples.messages(1)),
        "recovered": lambda one: ctx.store.save_recovered_file(one, samples.recovered()),
        "snapshot": lambda one: ctx.store.save_snapshot(one, samples.snapshot()),
        "todos": lambda one: ctx.store.save_todos(one, samples.todos("x")),
        "window": lambda one: ctx.store.save_history_window(one, samples.window()),
    }
    if keeps_documents():
        writes["own"] = lambda one: ctx.store.put_document(one, "c", "k", 1)
    for name, write in writes.items():
        for prefix in ("a_", "b_"):
            await write(prefix + name)
        await write(f"gone_{name}")
        await ctx.store.delete(f"gone_{name}")
    async with ctx.store.acquire_agent_lock("a_locked"):
        await ctx.store.load_messages("a_read")
    async for where, store in views(ctx, await ctx.another()):
        for prefix in ("a_", "b_"):
            wanted = [prefix + name for name in sorted(writes)]
            found = await store.list(prefix, include_without_info=True)
            ctx.equal(found, wanted, f"all ids that begin with {prefix!r}{where}")
            found = await store.list(prefix)
            ctx.equal(found, [f"{prefix}info"], f"the ids with info that begin with {prefix!r}{where}")
        for agent_id in (f"a_{name}" for name in writes if name != "info"):
            there = await store.exists(agent_id), await store.load_info(agent_id)
            ctx.equal(there, (False, None), f"exists and load_info of {agent_id!r}, which has no info{where}")
        if "QUERYABLE" not in ctx.harness.lacks:
            sessions = sorted([session.agent_id for session in await store.query_sessions()])
            ctx.equal(sessions, ["a_info", "b_info"], f"the sessions{where}")
        everyone = await store.list(include_without_info=True)
        ctx.equal(everyone, sorted(prefix + name for prefix in ("a_", "b_") for name in writes), "all ids")


@check("LIFE-2", needs=Capability.EXTENDED | Capability.DOCUMENTS, under=(Dimension.INSTANCES,))
async def agents_whose_documents_are_gone_are_not_listed(ctx: Context) -> None:
    """An agent whose last document was deleted has nothing, and its id is not listed; with another record it is."""
    other = await ctx.another()
    for name in ("all", "some", "with todos", "again"):
        await ctx.store.write_documents(name, [PutDocument("c", f"k{i}", i) for i in range(3)])
    await ctx.store.save_todos("with todos", samples.todos("x"))
    for name in ("all", "with todos", "again"):
        await other.write_documents(name, [DeleteDocument("c", f"k{i}") for i in range(3)])
    await other.delete_document("some", "c", "k0")
    await ctx.store.put_document("again", "d", "k", 1)
    for store in (ctx.store, other):
        found = await store.list(include_without_info=True)
        ctx.equal(found, ["again", "some", "with todos"], "the ids of the agents that have records")
        ctx.equal(await store.list("all", include_without_info=True), [], "the agent without any")


_LISTED: Final = (1_200, 5_001, 10_001)


@check("LIFE-2", under=(Dimension.ITEMS,))
async def thousands_are_listed(ctx: Context) -> None:
    """A list of thousands of agents is whole."""
    ids: list[str] = []
    for count in sizes_in_time(ctx, _LISTED if ctx.settings.tier > Tier.QUICK else _LISTED[:1]):
        more = [f"agt-{i:05d}" for i in range(len(ids), count)]
        await at_once(ctx.store.save_info(agent, samples.info(agent)) for agent in more)
        ids += more
        ctx.equal(await ctx.store.list(), ids, f"{count:,} agents")
        ctx.equal(await ctx.store.list("agt-011"), ids[1100:1200], f"a hundred of {count:,} agents")


@check("LIFE-3", under=(Dimension.CHANGES,))
async def delete_removes_everything(ctx: Context) -> None:
    """Delete removes every kind, of this agent only; deleting again does nothing."""
    for agent in ("a", "ab", "A", "a_", "a%"):
        await fill(ctx.store, agent)
    others = {agent: await dump(ctx, agent) for agent in ("ab", "A", "a_", "a%")}
    for _ in range(2):
        await ctx.store.delete("a")
        found = await dump(ctx)
        ctx.true(not any(found.values()), f"still there after delete: {[k for k, v in found.items() if v]}")
    await ctx.store.delete("never-there")
    ctx.equal(await ctx.store.list(), ["A", "a%", "a_", "ab"], "the agents that are left")
    for agent, before in others.items():
        ctx.equal(await dump(ctx, agent), before, f"agent {agent!r} after 'a' was deleted")


@check("LIFE-3", needs=Capability.PERSISTENT, under=(Dimension.CHANGES, Dimension.INSTANCES, Dimension.INTERRUPTIONS))
async def deleted_stays_deleted(ctx: Context) -> None:
    """Nothing that was buffered brings a deleted agent back, not after appends in flight, nor after a restart."""
    await fill(ctx.store, "a")
    ctx.true(all((await dump(ctx)).values()), "before the delete, everything must be there")
    appends = [asyncio.ensure_future(ctx.store.append_event("a", samples.event(100 + i))) for i in range(50)]
    await asyncio.sleep(0)
    await ctx.store.delete("a")
    await asyncio.gather(*appends)
    await ctx.store.delete("a")
    await asyncio.sleep(0.2)
    found = await dump(ctx)
    ctx.true(not any(found.values()), f"back after delete: {[k for k, v in found.items() if v]}")
    await ctx.reopen()
    found = await dump(ctx)
    ctx.true(not any(found.values()), f"back after a restart: {[k for k, v in found.items() if v]}")


@check("LIFE-3", under=(Dimension.COMPANY, Dimension.ORDERS))
async def delete_takes_accepted_appends_along(ctx: Context) -> None:
    """Appends that were called before delete, and not awaited, do not bring the agent back."""
    appends = [asyncio.ensure_future(ctx.store.append_event("a", samples.event(i))) for i in range(50)]
    await asyncio.sleep(0)
    await ctx.store.delete("a")
    await asyncio.gather(*appends)
    ctx.equal([e async for e in ctx.store.read_events("a")], [], "the events after delete")
    await ctx.store.append_event("a", samples.event(99))
    ctx.equal([e async for e in ctx.store.read_events("a")], [samples.event(99)], "the events of the next agent")


@check("LIFE-4", under=(Dimension.CHANGES, Dimension.INSTANCES))
async def a_deleted_id_starts_empty(ctx: Context) -> None:
    """A deleted id used again starts empty, in every instance, also in one that knew the old agent."""
    other = await ctx.another()
    await fill(ctx.store, "a")
    await other.save_messages("a", samples.messages(3))
    await ctx.store.delete("a")
    await other.save_messages("a", samples.messages(4))
    ctx.equal(await ctx.store.load_messages("a"), samples.messages(4), "the messages of the new agent")
    ctx.equal(await ctx.store.exists("a"), False, "whether the new agent exists")
    await ctx.store.delete("a")
    await ctx.store.append_messages("a", samples.messages(1, 9))
    ctx.equal(await other.load_messages("a"), samples.messages(1, 9), "the messages of the third agent")
    ctx.equal([e async for e in ctx.store.read_events("a")], [], "its events")


@check("LIFE-3", under=(Dimension.COMPANY,))
async def delete_against_save(ctx: Context) -> None:
    """A save that runs at the same time as a delete is stored whole, or not at all."""
    for i in range(10):
        agent = f"a{i}"
        await ctx.store.save_messages(agent, samples.messages(3))
        ctx.equal(await ctx.store.load_messages(agent), samples.messages(3), "the messages before")
        turn = ctx.store.save_turn(agent, messages=samples.messages(5), info=samples.info(agent))
        both = (turn, ctx.store.delete(agent))
        await asyncio.gather(*(both if i % 2 else reversed(both)))
        count = len(await ctx.store.load_messages(agent))
        ctx.equal(
            (count, await ctx.store.exists(agent)) in ((0, False), (5, True)), True, f"{agent} has {count} messages"
        )


@check("LIFE-5", needs=Capability.QUERYABLE, under=(Dimension.ITEMS,))
async def delete_many_deletes_what_matches(ctx: Context) -> None:
    """delete_many deletes every session that matches, however many, and nothing else."""
    for i in range(250):
        agent = f"a{i:03d}"
        template = "old" if i < 240 else "new"
        await ctx.store.save_turn(
            agent, info=samples.info(agent, template_id=template, created_at=i), append=samples.messages(1)
        )
    ctx.equal(await ctx.store.delete_many(template_id="old", created_after=5), 235, "how many were deleted")
    ctx.equal(await ctx.store.list(), [f"a{i:03d}" for i in (*range(5), *range(240, 250))], "the agents that are left")
    ctx.equal(await ctx.store.load_messages("a100"), [], "the messages of one that was deleted")


@check("LIFE-5", needs=Capability.QUERYABLE, under=(Dimension.LOOKALIKES,))
async def delete_many_refuses_to_delete_all(ctx: Context) -> None:
    """delete_many refuses an empty filter, an unknown one and one that is None, and deletes nothing."""
    await fill(ctx.store, "a")
    wrong: list[dict[str, Any]] = [
        {},
        {"metadata": {}},
        {"templateId": "x"},
        {"template_id": None},
        {"limit": 5},
        {"created_before": "2020"},
    ]
    for bad in wrong:
        await ctx.raises(InvalidArgumentError, ctx.store.delete_many(**bad), f"delete_many({bad})")
    ctx.equal(await ctx.store.list(), ["a"], "the agents")
