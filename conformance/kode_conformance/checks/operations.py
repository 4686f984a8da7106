"""OPS: health, consistency, metrics, close, cancellation."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Mapping
from typing import Any, Final

from kode_conformance.calls.methods import calls_of, drive, takes
from kode_conformance.checks.lifecycle import fill
from kode_conformance.checks.lists_of_values import LISTED
from kode_conformance.context import Context, Unverified, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import Space
from kode_conformance.instruments.pace import sizes_in_time
from kode_conformance.instruments.yielding import turns_pass
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.many import at_once
from kode_core.errors import CorruptRecordError, StoreClosedError
from kode_core.model import Message, ToolResultBlock, ToolUseBlock
from kode_core.protocols import ExtendedStore, QueryableStore, Store

_E = Capability.EXTENDED


@check("OPS-1", needs=_E, absence_ok=True, under=(Dimension.INTERRUPTIONS,))
async def health_tells_and_never_raises(ctx: Context) -> None:
    """A store that works is healthy; one that is closed is not, and says why; asking never raises."""
    status = await ctx.store.health_check()
    ctx.equal(status.healthy, True, f"healthy, of {status}")
    for medium in (status.database, status.file_system):
        if medium is not None:
            ctx.true(medium.ok and medium.latency_ms is not None and medium.latency_ms >= 0, f"{medium} must be well")
    await ctx.store.close()
    status = await ctx.store.health_check()
    ctx.equal(status.healthy, False, "healthy, of a closed store")
    ctx.true(status.problem, "a store that is not healthy must say why")


@check("OPS-2", needs=_E, under=(Dimension.CHANGES,))
async def a_sound_agent_is_consistent(ctx: Context) -> None:
    """An agent with everything, well used, is consistent; checking changes nothing."""
    await ctx.store.save_turn(
        "a", messages=samples.rich_messages(), tool_calls=[samples.tool_call()], info=samples.info("a")
    )
    await ctx.store.append_events("a", samples.events(600))
    await ctx.store.save_snapshot("a", samples.snapshot())
    await ctx.store.save_media_cache("a", [samples.media()])
    for agent in ("a", None):
        result = await ctx.store.check_consistency(agent)
        ctx.equal((result.consistent, result.issues, result.agents_checked), (True, (), 1), "the result of the check")
    ctx.equal(len([e async for e in ctx.store.read_events("a")]), 600, "the events after the check")


@check("OPS-2", needs=_E, under=(Dimension.EQUALS, Dimension.ORDERS))
async def dangling_tool_uses_are_found(ctx: Context) -> None:
    """A tool use without its result, and a result without its use, are found, also where ids repeat."""
    use, result = ToolUseBlock("c", "x", {}), ToolResultBlock("c", "r")
    cases: list[tuple[list[Message], list[str]]] = [
        ([Message("assistant", [use])], ["use_without_result"]),
        ([Message("user", [result])], ["result_without_use"]),
        ([Message("user", [result]), Message("assistant", [use])], ["result_without_use", "use_without_result"]),
        ([Message("assistant", [use]), Message("user", [result])] * 2, []),
        ([Message("assistant", [use, use]), Message("user", [result])], ["use_without_result"]),
    ]
    for i, (messages, codes) in enumerate(cases):
        await ctx.store.save_messages(f"a{i}", messages)
        found = await ctx.store.check_consistency(f"a{i}")
        ctx.equal(sorted(issue.code for issue in found.issues), sorted(codes), f"the issues of case {i}")
        ctx.true(
            all(issue.agent_id == f"a{i}" and issue.message for issue in found.issues), "issues name agent and problem"
        )
    nobody = await ctx.store.check_consistency("nobody")
    ctx.equal([issue.code for issue in nobody.issues], ["unknown_agent"], "the issues of nobody")


_CHECKED: Final = (101, 1101)


@check("OPS-2", needs=_E, tier=Tier.STANDARD, under=(Dimension.ITEMS, Dimension.INSTANCES))
async def more_than_a_thousand_are_checked(ctx: Context) -> None:
    """A check of a store of more than a thousand agents, with and without info, finds the faults of the first, of the
    last, and of those between them.
    """
    other, ids, odd = await ctx.another(), list[str](), list[str]()
    use = Message("assistant", [ToolUseBlock("c", "search", {})])
    for count in sizes_in_time(ctx, _CHECKED):
        more = [f"agt-{i:05d}" for i in range(len(ids), count)]
        await at_once(
            ctx.store.save_info(one, samples.info(one)) if i % 2 else ctx.store.save_todos(one, samples.todos("x"))
            for i, one in enumerate(more)
        )
        for one in (more[0], more[len(more) // 2], more[-1]):
            await ctx.store.append_messages(one, [use])
            odd.append(one)
        ids += more
        found = [issue.agent_id for issue in (await other.check_consistency()).issues]
        ctx.equal(sorted(found), odd, f"the agents of {count:,} in which check_consistency finds something")
        found = [issue.agent_id async for issue in ctx.store.iter_consistency()]
        ctx.equal(sorted(found), odd, f"the agents of {count:,} in which iter_consistency finds something")


@check("OPS-3", needs=_E, under=(Dimension.CHANGES,))
async def metrics_count_what_happened(ctx: Context) -> None:
    """Each operation moves its counter by one, failures count as errors only, and sizes are the sizes of the stored
    data.
    """
    before = await ctx.store.get_metrics()
    await ctx.store.save_messages("a", samples.messages(3))
    await ctx.store.save_info("a", samples.info("a"))
    await asyncio.gather(*(ctx.store.append_event("a", samples.event(i)) for i in range(10)))
    await ctx.store.save_tool_call_records("a", [samples.tool_call()])
    await ctx.store.load_messages("a")
    await ctx.store.load_todos("a")
    await ctx.store.query_sessions()
    await ctx.store.delete("b")
    for call in (ctx.store.load_messages(""), ctx.store.save_todos("", samples.todos())):
        try:
            await call
        except ValueError:
            continue
        raise Violation("an empty id must be refused")
    after = await ctx.store.get_metrics()
    moved = {
        name: getattr(after.operations, name) - getattr(before.operations, name)
        for name in ("saves", "loads", "queries", "deletes", "errors")
    }
    ctx.equal(moved, {"saves": 13, "loads": 2, "queries": 1, "deletes": 1, "errors": 2}, "how far the counters moved")
    p = after.performance
    ctx.true(0 < p.min_latency_ms <= p.avg_latency_ms <= p.max_latency_ms, f"latencies must be in order: {p}")
    ctx.true(
        p.min_latency_ms <= p.p50_latency_ms <= p.p99_latency_ms <= p.max_latency_ms,
        f"percentiles must be in order: {p}",
    )
    s = after.storage
    ctx.equal((s.total_agents, s.total_messages, s.total_tool_calls), (1, 3, 1), "the size of the store")


@check("OPS-3", needs=_E, under=(Dimension.INSTANCES,))
async def metrics_of_little(ctx: Context) -> None:
    """A store that has done nothing yet has numbers as latencies, and its size is 0; the size is 0 again, in every
    instance, once the last agent was deleted.
    """
    await _see_totals(ctx, ctx.store, 0, "a fresh store")
    await ctx.store.save_turn(
        "a", info=samples.info("a"), messages=samples.messages(3), tool_calls=[samples.tool_call()] * 2
    )
    other = await ctx.another()
    await _see_totals(ctx, other, 1, "another instance, after a turn")
    await ctx.store.delete("a")
    for store, whose in ((ctx.store, "the instance that deleted"), (other, "another instance")):
        await _see_totals(ctx, store, 0, f"{whose}, after delete")


async def _see_totals(ctx: Context, store: ExtendedStore, agents: int, what: str) -> None:
    metrics = await store.get_metrics()
    p, s = metrics.performance, metrics.storage
    for latency in (p.avg_latency_ms, p.min_latency_ms, p.max_latency_ms, p.p50_latency_ms, p.p99_latency_ms):
        ctx.true(math.isfinite(latency) and latency >= 0, f"latencies of {what} must be finite and not negative: {p}")
    totals = (s.total_agents, s.total_messages, s.total_tool_calls)
    ctx.equal(totals, (agents, 3 * agents, 2 * agents), f"agents, messages and tool calls of {what}")


@check("OPS-4", "OPS-2", needs=_E, under=(Dimension.DAMAGE, Dimension.EQUALS))
async def corrupt_records_are_named(ctx: Context) -> None:
    """A corrupt record raises CorruptRecordError that names it, is found by the check, and all others stay readable,
    equal ones of another agent among them.
    """
    if not ctx.harness.has("corrupt"):
        raise Unverified("the harness has no hook corrupt")
    for agent in ("a", "b"):
        await ctx.store.save_turn(
            agent, messages=samples.messages(3), info=samples.info(agent), tool_calls=[samples.tool_call()]
        )
        await ctx.store.append_events(agent, samples.events(2))
    await ctx.harness.corrupt(ctx.handle, "a")
    fresh = await ctx.another()
    for store in (ctx.store, fresh):
        error = await ctx.raises(CorruptRecordError, store.load_messages("a"), "loading a corrupt message")
        ctx.true(
            "message 0" in error.record and "'a'" in error.record, f"the error must name the record, got {error.record}"
        )
    ctx.true("message 0 " not in str(error).replace(error.record, ""), "the error must not quote what is stored")
    ctx.equal(await fresh.load_tool_call_records("a"), [samples.tool_call()], "the tool calls beside it")
    ctx.equal(await fresh.load_messages("b"), samples.messages(3), "the messages of another agent")
    ctx.equal(await fresh.list(), ["a", "b"], "the agents")
    ctx.equal([e async for e in fresh.read_events("a")], samples.events(2), "the events beside it")
    found = await fresh.check_consistency()
    ctx.equal([(i.code, i.agent_id) for i in found.issues], [("corrupt_record", "a")], "the issues that were found")
    await fresh.append_messages("a", samples.messages(1))
    await ctx.raises(CorruptRecordError, fresh.load_messages("a"), "loading after an append")
    await fresh.delete("a")
    ctx.equal(await fresh.load_messages("a"), [], "the messages after the agent was deleted")


_READS: Final = ("load_", "query_", "list", "exists", "last_", "aggregate_", "read_", "iter_")


@check("OPS-5", needs=_E, absence_ok=True, under=(Dimension.INTERRUPTIONS, Dimension.ORDERS))
async def every_call_after_close_raises(ctx: Context) -> None:
    """After close, every method of the protocols, which takes its arguments by name, raises StoreClosedError, also one
    that gave something with the same arguments before; closing again does nothing.
    """
    store = await ctx.another()
    await fill(store, "a")
    calls = calls_of(store, target=str(ctx.folder / "backup"))
    await store.save_snapshot("a", samples.snapshot(calls["load_snapshot"].arguments["snapshot_id"]))
    for name, (method, given) in calls.items():
        ctx.true(takes(method, given), f"{name} must take its arguments by the protocol's names: {', '.join(given)}")
        if name.startswith(_READS):
            await drive(method, given)
    await store.close()
    await store.close()
    ctx.true(len(calls) >= len(set(dir(Store)) - set(dir(object))) - 3, "all methods must be tried")
    for name, (method, given) in calls.items():
        await ctx.raises(StoreClosedError, drive(method, given), f"{name} after close")
    if not {"QUERYABLE", "ANY_OF"} & set(ctx.harness.lacks):
        await _find_nothing(ctx, store, calls)


async def _find_nothing(ctx: Context, store: Any, calls: Mapping[str, Any]) -> None:
    """A call by an empty list, by which nothing can be found, needs an open store, too."""
    for kind, filters in LISTED.items():
        for method in (f"{verb}_{kind}" for verb in ("query", "count", "iter", "group")):
            for name in filters:
                given = {**calls[method].arguments, name: []}
                told = f"{method}({name}=[]) after close"
                await ctx.raises(StoreClosedError, drive(getattr(store, method), given), told)


@check("OPS-5", needs=_E, under=(Dimension.INTERRUPTIONS,))
async def close_waits_for_what_was_accepted(ctx: Context) -> None:
    """Writes that were called before close are done, or refused, and never dropped after they were acknowledged."""
    store = await ctx.another()
    calls = [asyncio.ensure_future(store.append_event("a", samples.event(i))) for i in range(100)]
    calls += [asyncio.ensure_future(store.save_messages(f"m{i}", samples.messages(2))) for i in range(10)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await asyncio.gather(store.close(), store.close())
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        ctx.true(not isinstance(result, Exception) or isinstance(result, StoreClosedError), f"got {result!r}")
    acknowledged = sum(not isinstance(result, Exception) for result in results[:100])
    stored = len([e async for e in ctx.store.read_events("a")])
    ctx.true(stored >= acknowledged, f"{acknowledged} events were acknowledged, {stored} are stored")


@check("OPS-5", needs=_E, absence_ok=True, under=(Dimension.INTERRUPTIONS,))
async def async_with_closes(ctx: Context) -> None:
    """async with closes the store, also when the block fails, or is cancelled."""
    store = await ctx.another()
    try:
        async with store:
            await store.save_messages("a", samples.messages(1))
            raise KeyError("from the block")
    except KeyError:
        pass
    await ctx.raises(StoreClosedError, store.load_messages("a"), "a load after the block")
    store = await ctx.another()
    inside = asyncio.Event()

    async def wait() -> None:
        async with store:
            inside.set()
            await asyncio.sleep(60)

    waiting = asyncio.ensure_future(wait())
    async with ctx.within():
        await inside.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    await ctx.raises(StoreClosedError, store.load_messages("a"), "a load after the block was cancelled")


@check("OPS-7", needs=Capability.CROSS_PROCESS, tier=Tier.STANDARD, under=(Dimension.COMPANY, Dimension.PROCESSES))
async def many_first_starts_at_once(ctx: Context) -> None:
    """Many stores that open an empty place at once, in this process and in others, all succeed."""
    space = Space(f"first_{uuid.uuid4().hex[:16]}", ctx.folder / "first")
    space.folder.mkdir()
    empty = Context(ctx.harness, await ctx.harness.provision(space), space.folder, ctx.settings)
    try:
        processes = [await empty.process("open_only", f"p{i}") for i in range(4)]
        stores = await asyncio.gather(*(empty.another() for _ in range(8)))
        await asyncio.gather(*(store.save_messages(f"s{i}", samples.messages(1)) for i, store in enumerate(stores)))
        await asyncio.gather(*(process.lines() for process in processes))
        for agent in [f"p{i}" for i in range(4)] + [f"s{i}" for i in range(8)]:
            ctx.equal(len(await stores[0].load_messages(agent)), 1, f"the messages of {agent}")
    finally:
        await empty.finish()
        await ctx.harness.destroy(empty.handle)


@check("OPS-9", under=(Dimension.INTERRUPTIONS,))
async def a_cancelled_save_is_whole_or_absent(ctx: Context) -> None:
    """A save that is cancelled at any point happened whole or not at all, and the store works on."""
    for steps in range(12):
        agent = f"a{steps}"
        await ctx.store.save_messages(agent, samples.messages(3))
        wanted = samples.messages(5, 10)
        task = asyncio.ensure_future(ctx.store.save_turn(agent, messages=wanted, info=samples.info(agent)))
        await turns_pass(steps)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.01)
        found = await ctx.store.load_messages(agent)
        ctx.true(found in (samples.messages(3), wanted), f"cancelled after {steps} steps: {len(found)} messages")
        ctx.equal(await ctx.store.exists(agent), found == wanted, f"whether the info is there after {steps} steps")
        await ctx.store.save_messages(agent, [*found, samples.message(99)])
        ctx.equal(await ctx.store.load_messages(agent), [*found, samples.message(99)], "a save after the cancellation")


@check("OPS-9", "EVT-1", under=(Dimension.INTERRUPTIONS, Dimension.COMPANY))
async def cancelled_appends_do_no_harm(ctx: Context) -> None:
    """Appends that are cancelled leave others alone: acknowledged records are stored, once."""
    tasks = [asyncio.ensure_future(ctx.store.append_event("a", samples.event(i))) for i in range(60)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    acknowledged = {i for i, result in enumerate(results) if not isinstance(result, BaseException)}
    await asyncio.sleep(0.02)
    stored = [event.bookmark.seq async for event in ctx.store.read_events("a")]
    ctx.true(acknowledged <= set(stored) and len(stored) == len(set(stored)), "acknowledged events must be there, once")
    ctx.true(set(range(60)) - set(range(0, 60, 3)) <= set(stored), "events that were not cancelled must be there")


@check("OPS-11", needs=Capability.PERSISTENT, under=(Dimension.PROCESSES,))
async def a_process_may_end_without_close(ctx: Context) -> None:
    """A process that never closes its store ends by itself, soon, and its writes are stored."""
    await ctx.close(ctx.store)
    process = await ctx.process("leave_open", "a")
    await process.lines(seconds=20)
    ctx.store = await ctx.another()
    ctx.equal(len(await ctx.store.load_messages("a")), 1, "the messages")
    ctx.equal(len([e async for e in ctx.store.read_events("a")]), 1, "the events")


@check("OPS-9", needs=Capability.NONE, under=(Dimension.COMPANY, Dimension.ITEMS))
async def many_calls_at_once(ctx: Context) -> None:
    """Hundreds of calls of all kinds at once all end well."""
    agents = [f"a{i}" for i in range(20)]
    writes = [ctx.store.save_messages(a, samples.messages(3)) for a in agents]
    writes += [ctx.store.save_info(a, samples.info(a)) for a in agents]
    appends = [ctx.store.append_event(a, samples.event(i)) for a in agents for i in range(5)]
    reads = [ctx.store.load_messages(a) for a in agents]
    await asyncio.gather(*writes, *appends, *reads, *map(ctx.store.exists, agents))
    ctx.equal(await ctx.store.list(), sorted(agents), "the agents")


@check("OPS-5", needs=Capability.QUERYABLE, absence_ok=True, under=(Dimension.CHANGES,))
async def the_protocols_are_what_they_say(ctx: Context) -> None:
    """A store that is queryable or extended has every method of its protocol."""
    for kind, has in ((QueryableStore, True), (ExtendedStore, "EXTENDED" not in ctx.harness.lacks)):
        ctx.equal(isinstance(ctx.store, kind), has, f"isinstance of {kind.__name__}")
    ctx.equal((await ctx.store.aggregate_stats("nobody")).total_messages, 0, "the statistics of nobody")
