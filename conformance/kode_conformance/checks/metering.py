"""OPS-3, OPS-1: what a store counts and measures, method by method, for itself alone."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from kode_conformance.calls.fenced import fenced_writes
from kode_conformance.calls.methods import calls_of, drive
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.errors import ConflictError, KodeError, LockLostError, LockUnavailableError
from kode_core.model import ABSENT
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED
_GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "saves": ("save_", "append_", "upsert_", "emit"),
    "loads": ("load_",),
    "queries": ("query_",),
    "deletes": ("delete",),
}
"""By counter, the beginnings of the names of its methods."""


async def _counted(store: ExtendedStore) -> dict[str, int]:
    operations = (await store.get_metrics()).operations
    return {name: getattr(operations, name) for name in operations.__struct_fields__}


def _moved(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """The counters that moved, and how far."""
    return {name: after[name] - before[name] for name in before if after[name] != before[name]}


@check("OPS-3", needs=_E, absence_ok=True, under=(Dimension.COSTS, Dimension.INSTANCES, Dimension.CHANGES))
async def each_method_is_counted_once_where_it_was_called(ctx: Context) -> None:
    """Every call of every method that saves, loads, queries or deletes moves the counter of its group by one, and no
    other, however many records it is about; other instances count nothing of it.
    """
    other = await ctx.another()
    elsewhere, before = await _counted(other), await _counted(ctx.store)
    calls = {name: (name, call) for name, call in calls_of(ctx.store).items()}
    for name, (method, (call, given)) in calls.items():
        group = next((group for group, starts in _GROUPS.items() if method.startswith(starts)), None)
        if group is None:
            continue
        if "timelines" in given:
            given = {**given, "timelines": samples.events(3, 10)}
        await drive(call, given)
        after = await _counted(ctx.store)
        ctx.equal(_moved(before, after), {group: 1}, f"the counters that one call of {name} moved")
        before = after
    ctx.equal(_moved(elsewhere, await _counted(other)), {}, "the counters of an instance that nobody used")


@check("OPS-3", needs=_E, under=(Dimension.COSTS, Dimension.INTERRUPTIONS))
async def how_long_failures_take_is_no_latency(ctx: Context) -> None:
    """A call that fails late counts as an error, and its duration is none of the latencies."""
    await ctx.store.save_info("a", samples.info("a"))
    other = await ctx.another()
    lease = await other.acquire_agent_lock("a", ttl_ms=600_000)
    begun = time.monotonic()
    before = (await ctx.store.get_metrics()).performance
    took_ms = 1000 * (time.monotonic() - begun)  # which the call itself does not tell yet
    wait_ms = 400 + 3 * int(max(before.max_latency_ms, took_ms))
    lock = ctx.store.acquire_agent_lock("a", wait_ms=wait_ms)
    await ctx.raises(LockUnavailableError, lock, "a lock that another holds")
    after = (await ctx.store.get_metrics()).performance
    ctx.true(after.max_latency_ms < wait_ms, f"max_latency_ms is {after.max_latency_ms:.0f} after a wait in vain")
    ctx.true(after.avg_latency_ms < wait_ms / 2, f"avg_latency_ms is {after.avg_latency_ms:.0f} after a wait in vain")
    await lease.release()


@check("OPS-3", "OPS-17", needs=_E, under=(Dimension.CHANGES, Dimension.COSTS))
async def each_failure_is_counted_once_and_as_nothing_else(ctx: Context) -> None:
    """Every call of any method that is refused, for its arguments, for a lease that has ended or for a version that is
    no more, is counted as one error and as nothing else.
    """
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    before = await _counted(ctx.store)
    for name, (method, given) in calls_of(ctx.store).items():
        if not inspect.iscoroutinefunction(getattr(ExtendedStore, name)):
            continue
        parameters = inspect.signature(getattr(ExtendedStore, name)).parameters
        for wrong in ({p: value} for p, value in _WRONG.items() if p in parameters):
            await _fails(f"{name} with {wrong}", method, {**given, **wrong})
            after = await _counted(ctx.store)
            ctx.equal(_moved(before, after), {"errors": 1}, f"the counters that a call of {name} with {wrong} moved")
            before = after
    for name, filters in ((name, filters) for name in _QUERIES for filters in _WRONG_FILTERS):
        await _fails(f"{name} with {filters}", getattr(ctx.store, name), filters)
        after = await _counted(ctx.store)
        ctx.equal(_moved(before, after), {"errors": 1}, f"the counters that {name} with {filters} moved")
        before = after
    for write in fenced_writes("a"):
        try:
            await write.act(ctx.store, "a", fence=lease)
        except LockLostError:
            after = await _counted(ctx.store)
            case = f"the counters that {write.name} under an ended lease moved"
            ctx.equal(_moved(before, after), {"errors": 1}, case)
            before = after
        else:
            raise Violation(f"{write.name} under an ended lease was done")
    for name, call in (await _conflicts(ctx.store)).items():
        before = await _counted(ctx.store)
        await ctx.raises(ConflictError, call(), name)
        ctx.equal(_moved(before, await _counted(ctx.store)), {"errors": 1}, f"the counters that {name} moved")


async def _conflicts(store: ExtendedStore) -> Mapping[str, Callable[[], Awaitable[object]]]:
    """Calls that the stored records refuse, by name."""
    for agent_id in ("c", "d"):
        await store.save_info(agent_id, samples.info(agent_id))
    stale = await store.load_version("c")
    await store.append_messages("c", samples.messages(2))
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        f"{write.name} with an older version": partial(write.act, store, "c", expect=stale)
        for write in fenced_writes("c", edits=True)
        if write.takes_version
    }
    calls["create_agent for an agent that exists"] = partial(store.create_agent, "c", samples.info("c"))
    calls["fork to an agent that exists"] = partial(store.fork, "c", "d")
    if keeps_documents():
        await store.put_document("c", "c", "k", 1)
        calls["put_document of one that exists"] = partial(store.put_document, "c", "c", "k", 2, expect=ABSENT)
    return calls


async def _fails(name: str, method: Any, given: Mapping[str, Any]) -> None:
    try:
        await drive(method, dict(given))
    except (KodeError, ValueError):
        return
    raise Violation(f"{name} must be refused")


_QUERIES: Final = ("query_sessions", "query_messages", "query_tool_calls")
_WRONG_FILTERS: Final[tuple[Mapping[str, Any], ...]] = (
    {"limit": -1},
    {"offset": -1},
    {"nonsense": 1},
    {"created_after": "yesterday"},
    {"cursor": "x"},
)
_WRONG: Final[Mapping[str, Any]] = {"agent_id": "", "snapshot_id": "", "count": -1}
"""Arguments that every method with such a parameter refuses."""


@check("OPS-3", "QRY-7", needs=_E, under=(Dimension.CHANGES, Dimension.INSTANCES))
async def sizes_follow_every_change(ctx: Context) -> None:
    """Every instance reports the size of the stored data after each kind of change: lists that grow, shrink and are
    replaced, turns, forks, and deletions of one and of many.
    """
    store, other = ctx.store, await ctx.another()
    m, c = samples.messages, [samples.tool_call(i) for i in range(9)]

    async def see(agents: int, messages: int, tool_calls: int, what: str) -> None:
        for one, whose in ((store, "the instance that wrote"), (other, "another instance")):
            size = (await one.get_metrics()).storage
            found = size.total_agents, size.total_messages, size.total_tool_calls
            ctx.equal(found, (agents, messages, tool_calls), f"agents, messages and tool calls, {what}, in {whose}")

    await see(0, 0, 0, "at first")
    await fill(store, "a")
    await see(1, 3, 1, "with one agent")
    await store.save_messages("a", m(130))
    await store.upsert_tool_call_records("a", c[:4])
    await see(1, 130, 4, "after lists grew")
    await other.save_messages("a", m(120, 50))
    await other.save_tool_call_records("a", c[3:5])
    await see(1, 120, 2, "after lists were replaced by shorter ones")
    await store.save_turn("b", append=m(2), tool_calls=c[:3], info=samples.info("b", template_id="t"))
    await see(2, 122, 5, "after the turn of a second agent")
    (fork, *_) = await store.batch_fork("a", 2)
    await see(4, 362, 9, "after two forks")
    await store.save_messages("a", [])
    await store.save_messages("a", [])
    await see(4, 242, 9, "after a list was emptied")
    await other.delete(fork)
    await other.delete(fork)
    await see(3, 122, 7, "after a fork was deleted twice")
    await store.delete_many(template_id="t")
    await see(2, 120, 4, "after those of a filter were deleted")
    stats = await other.aggregate_stats("a")
    ctx.equal((stats.total_messages, stats.total_tool_calls), (0, 2), "the statistics of the agent with no message")
    if "PERSISTENT" not in ctx.harness.lacks:
        await ctx.close(other)
        store = await ctx.reopen()
        other = await ctx.another()
        await see(2, 120, 4, "after it was closed and opened again")


_Held = dict[str, tuple[bool, int, int]]
"""By agent: if it has an info, and its numbers of messages and tool calls."""

_Change = tuple[str, str, tuple[bool, int, int], Callable[[Any], Awaitable[object]]]

_CALLS: Final = [samples.tool_call(i) for i in range(4)]

_CHANGES: Final[Sequence[_Change]] = (
    ("messages without info", "a", (False, 2, 0), lambda s: s.save_messages("a", samples.messages(2))),
    (
        "a turn without info",
        "b",
        (False, 1, 3),
        lambda s: s.save_turn("b", append=samples.messages(1), tool_calls=_CALLS[:3]),
    ),
    ("an info alone", "c", (True, 0, 0), lambda s: s.save_info("c", samples.info("c"))),
    ("an append after an info", "c", (True, 4, 0), lambda s: s.append_messages("c", samples.messages(4))),
    ("tool calls alone", "d", (False, 0, 2), lambda s: s.save_tool_call_records("d", _CALLS[:2])),
    ("a snapshot alone", "e", (False, 0, 0), lambda s: s.save_snapshot("e", samples.snapshot())),
    ("an info after messages", "a", (True, 2, 0), lambda s: s.save_info("a", samples.info("a"))),
    ("an upsert without info", "b", (False, 1, 4), lambda s: s.upsert_tool_call_records("b", _CALLS[2:])),
    ("messages after tool calls", "d", (False, 5, 2), lambda s: s.append_messages("d", samples.messages(5))),
    ("a cut without info", "d", (False, 3, 2), lambda s: s.truncate_messages("d", 3)),
    ("the delete of one with info", "a", (False, 0, 0), lambda s: s.delete("a")),
    ("the delete of one without info", "b", (False, 0, 0), lambda s: s.delete("b")),
)
"""Changes of agents, of which most have no info, with what the agent holds afterwards."""


@check("OPS-3", "QRY-7", "QRY-10", "QRY-11", "SCOPE-1", needs=_E, under=(Dimension.CHANGES, Dimension.INSTANCES))
async def sizes_count_agents_without_info(ctx: Context) -> None:
    """The sizes of the store and of a view of a tenant, their statistics, counts and groups have the messages and tool
    calls of agents without info, too, and as agents those with info alone, after each change, in every instance.
    """
    stores: list[Any] = [ctx.store, await ctx.another()]
    views = [] if "SCOPES" in ctx.harness.lacks else [store.scoped("acme") for store in stores]
    outside: _Held = {}
    inside: _Held = {}
    for places, held in ((views, inside), (stores, outside)) if views else ((stores, outside),):
        for number, (what, agent_id, holds, change) in enumerate(in_time(ctx, _CHANGES)):
            await change(places[number % 2])
            held[agent_id] = holds
            if views and ctx.harness.has("wait_until_queries_see_all"):
                await ctx.harness.wait_until_queries_see_all(ctx.handle)
            whole = {f"@acme/{name}": found for name, found in inside.items()} | outside
            one = number // 2 % 2
            await _see_counts(ctx, stores[one], whole, f"the store, after {what}")
            if views:
                await _see_counts(ctx, views[1 - one], inside, f"a view, after {what}")
            stats = await places[1 - one].aggregate_stats(agent_id)
            found = (stats.total_messages, stats.total_tool_calls)
            ctx.equal(found, holds[1:], f"messages and tool calls in the statistics of an agent, after {what}")


async def _see_counts(ctx: Context, store: Any, held: _Held, where: str) -> None:
    """All that tells how many agents, messages and tool calls there are."""
    size = (await store.get_metrics()).storage
    found = (size.total_agents, size.total_messages, size.total_tool_calls)
    wanted = tuple(sum(one[i] for one in held.values()) for i in range(3))
    ctx.equal(found, wanted, f"agents, messages and tool calls in the size of {where}")
    if "QUERYABLE" not in ctx.harness.lacks:
        counts = (store.count_sessions, store.count_messages, store.count_tool_calls)
        found = tuple([await count() for count in counts])
        ctx.equal(found, wanted, f"sessions, messages and tool calls by counts of {where}")
        for i, group in ((1, store.group_messages), (2, store.group_tool_calls)):
            by_agent = {one.values["agent_id"]: one.count for one in await group("agent_id")}
            some = {name: one[i] for name, one in sorted(held.items()) if one[i]}
            ctx.equal(by_agent, some, f"{group.__name__} by agent of {where}")
