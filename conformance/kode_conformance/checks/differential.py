"""Calls about which the model says nothing, and whole histories, compared call by call with the memory store of the
core.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from kode_conformance.context import Context, Violation, difference
from kode_conformance.dimensions import Dimension
from kode_conformance.histories.changes import CHANGES, chains, full_state
from kode_conformance.histories.looks import Known, Look, ask, loads
from kode_conformance.histories.machine import Machine
from kode_conformance.histories.making import history
from kode_conformance.histories.programs import plain
from kode_conformance.histories.shrinking import shortest
from kode_conformance.histories.steps import Step, listed
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.fields import full, of_agent
from kode_conformance.values.kinds import kinds
from kode_core.direct import MemoryStore
from kode_core.model import Bookmark
from kode_core.query import SessionInfo

_SHORTEN_SECONDS: Final = 10.0
_UNDER: Final = (Dimension.CHANGES, Dimension.ORDERS, Dimension.EQUALS, Dimension.INSTANCES)

# --- what a call gives, without what stores make up themselves --------------------------------------------------------


async def _outcome(store: Any, look: Look) -> tuple[str, Any]:
    """The result of the call, or the class of the library error that it raises."""
    try:
        return "gives", _normal(await ask(store, look), look)
    except Exception as exc:  # noqa: BLE001 - errors are what is compared
        ours = (kind.__name__ for kind in type(exc).__mro__ if kind.__module__ == "kode_core.errors")
        return "raises", next(ours, type(exc).__name__)


def _normal(answer: Any, look: Look) -> Any:
    if look.method.startswith("append_event") or look.method in ("batch_fork", "save_turn"):
        return len(answer) if isinstance(answer, Sequence) else 1
    if look.method.startswith(("query_", "iter_")):
        records = list(answer)
        if look.method.endswith("_messages"):  # calls in one millisecond on one store may be in two on another
            records.sort(key=lambda message: (message.agent_id, message.position))
        if look.method.endswith("_sessions") and look.filters.get("sort_by") == "updated_at":
            records.sort(key=lambda session: session.agent_id)
        return plain([_without_fork(record) for record in records])
    return plain(_without_fork(answer))


def _without_fork(record: Any) -> Any:
    return record.__class__ if isinstance(record, SessionInfo) and record.agent_id.startswith("agt-") else record


@asynccontextmanager
async def _reference() -> AsyncIterator[Any]:
    store = MemoryStore()
    try:
        yield await store.open()
    finally:
        await store.close()


# --- unusual calls ----------------------------------------------------------------------------------------------------

_IDS: Final = ("", "x" * 256, "x" * 257, "é" * 128, "é" * 129, "a\0", "\ud83d", "a/../a", " ", 5, None, b"a")
_READS: Final = (
    *("load_messages", "load_tool_call_records", "load_todos", "load_info", "exists", "load_history_windows"),
    *("load_compression_records", "load_recovered_files", "load_media_cache", "list_snapshots", "read_events"),
    *("last_bookmark", "aggregate_stats", "delete"),
)
_WRITES: Final[Sequence[tuple[str, Any]]] = (
    ("save_messages", [samples.message()]),
    ("append_messages", [samples.message()]),
    ("save_tool_call_records", [samples.tool_call()]),
    ("upsert_tool_call_records", [samples.tool_call()]),
    ("save_todos", samples.todos()),
    ("append_event", samples.event(0)),
    ("append_events", [samples.event(0)]),
    ("save_history_window", samples.window()),
    ("save_compression_record", samples.compression()),
    ("save_recovered_file", samples.recovered()),
    ("save_media_cache", [samples.media()]),
    ("save_snapshot", samples.snapshot()),
)
_NOON: Final = datetime(2026, 1, 1, 9, tzinfo=UTC)
_ANY_QUERY: Final[Sequence[dict[str, Any]]] = (
    *({"limit": limit} for limit in (0, 1, 10_000, 10_001, -1, True, "1", 1.0, None)),
    *({"offset": offset} for offset in (0, 1, 2**40, -1, True, "1", None)),
    *({"order": order} for order in ("asc", "desc", "ASC", "", None, 1)),
    *({"cursor": cursor} for cursor in ("", "x", "AAAA", 5, None)),
    *({"created_after": time} for time in (-(2**70), 0, 2**70, _NOON, datetime(2026, 1, 1), "2026-01-01", 1.5, None)),
    {"created_after": _NOON + timedelta(microseconds=1)},
    {"created_before": _NOON + timedelta(milliseconds=5, microseconds=-1)},
    *({"agent_id": agent_id} for agent_id in _IDS),
)
_METADATA: Final[Sequence[Any]] = (
    *({}, {"": None}, {"n": 0.0}, {"n": -0.0}, {"one": True}, []),
    *({"list": [1, {"a": None}]}, {"list": [1.0, {"a": None}]}, {"list": [1]}, {"list": {}}),
)
_QUERIES: Final[Sequence[tuple[str, dict[str, Any]]]] = (
    *((f"query_{kind}", given) for kind in ("messages", "tool_calls", "sessions") for given in _ANY_QUERY),
    *(("query_sessions", {"metadata": value}) for value in _METADATA),
    *(("query_sessions", {"user_id": value}) for value in ("u", "U", "", None, 5)),
    *(("query_sessions", {"template_id": value}) for value in ("t0", "T0", "", None, 5)),
    *(("query_sessions", {"sort_by": value}) for value in ("message_count", "agent_id", "", None)),
    *(("query_messages", {"role": value}) for value in ("user", "User", "", None, 5)),
    *(("query_messages", {"content_type": value}) for value in ("text", "Text", "", None, ["text"])),
    *(("query_tool_calls", {"tool_name": value}) for value in ("search", "Search", "", None, 5)),
    *(("query_tool_calls", {"is_error": value}) for value in (True, False, None, 0, "true")),
    *(("query_tool_calls", {"has_approval": value}) for value in (True, False, None, 1)),
    *((f"iter_{kind}", {"limit": 1}) for kind in ("sessions", "messages", "tool_calls")),
    *((f"iter_{kind}", {"offset": 1}) for kind in ("sessions", "messages", "tool_calls")),
    *((f"query_{kind}", {"unknown": 1}) for kind in ("sessions", "messages", "tool_calls")),
    *(("delete_many", {name: value}) for name, value in (("template_id", None), ("unknown", 1), ("template_id", "?"))),
    ("delete_many", {}),
)


def _unusual(agent_id: str) -> Iterator[Look]:
    """Calls at the edge of the allowed range, and beyond it."""
    for id_, method in itertools.product(_IDS, _READS):
        yield Look(method, (id_,))
    for id_, (method, value) in itertools.product(_IDS, _WRITES):
        yield Look(method, (id_, value))
    for method, filters in _QUERIES:
        yield Look(method, (), filters)
    every_bound: list[dict[str, Any]] = [
        *({"after_offset": offset} for offset in (-1, 2**62, "0", 1.0)),
        *({"since": Bookmark(seq, 0)} for seq in (-(2**63), 2**63 - 1)),
        *({"channel": channel} for channel in ("control", "Control", "", 5)),
        {"since": 5},
    ]
    for bounds in every_bound:
        yield Look("read_events", (agent_id,), bounds)
    for key in ("s0", "S0", "none", "", "x" * 4096, "x" * 4097, "\ud83d", "a\0", 5, None):
        yield Look("load_snapshot", (agent_id, key))
    for prefix in ("", agent_id, "%", "_", "*", "x" * 256, 5, None):
        yield Look("list", (prefix,))
    message, call = samples.message(), samples.tool_call()
    turns: list[dict[str, Any]] = [
        {},
        {"append": [], "upsert_tool_calls": [], "events": []},
        {"append": [message], "messages": [message]},
        {"upsert_tool_calls": [call], "tool_calls": [call]},
        {"info": samples.info("somebody else")},
        {"messages": [message], "todos": 5},
        {"messages": ()},
    ]
    for parts in turns:
        yield Look("save_turn", (agent_id,), parts)
    for count in (-1, "1", 1.0):
        yield Look("batch_fork", (agent_id, count))


@check("QRY-1", "ID-1", "ID-4", "QRY-4", "VAL-5", "LIFE-5", needs=Capability.EXTENDED, under=(Dimension.NUMBERS,))
async def unusual_calls_end_as_in_memory(ctx: Context) -> None:
    """Calls with arguments at the edge of the allowed range, and beyond it, return what the memory store returns, or
    raise the same error, and leave the same records behind.
    """
    async with _reference() as reference:
        machine = Machine(ctx, "", [])
        for step in full_state("a"):
            got, want = [await _make(machine, store, step, {}) for store in (ctx.store, reference)]
            ctx.equal(got, want, f"{step}, as the memory store does it")
        for look in in_time(ctx, _unusual("a")):
            await _compare(ctx.store, reference, look)
        for look in loads("a", Known(), 0):
            await _compare(ctx.store, reference, look)


async def _compare(store: Any, reference: Any, look: Look) -> None:
    got, want = await _outcome(store, look), await _outcome(reference, look)
    if got[0] != want[0] or difference(got, want) is not None:
        text = f"{look!s:.300}: {' '.join(map(str, got)):.300}; the memory store {' '.join(map(str, want)):.300}"
        raise Violation(text)


# --- histories --------------------------------------------------------------------------------------------------------


async def _make(machine: Machine, store: Any, step: Step, forks: dict[str, str]) -> tuple[str, Any]:
    """Make a step on one store; return its result."""
    agent_id = forks.get(step.agent, machine.prefix + step.agent)
    if step.op == "batch_fork":
        try:
            ids = await store.batch_fork(agent_id, *step.args)
        except Exception as exc:  # noqa: BLE001 - errors are what is compared
            return "raises", type(exc).__name__
        for fork_id in ids:
            forks[f"f{len(forks) + 1}"] = fork_id
        return "gives", len(ids)
    if step.op == "delete_many":
        given = dict(step.named)
        if given.get("agent_id") in forks:
            return await _outcome(store, Look("delete_many", (), {"agent_id": forks[given["agent_id"]]}))
        return await _outcome(store, Look("delete_many", (), machine.filters(given)))
    args = tuple(machine.value(arg, agent_id) for arg in step.args)
    return await _outcome(
        store, Look(step.op, (agent_id, *args), {name: machine.value(arg, agent_id) for name, arg in step.named})
    )


_LOOKS: Final[Sequence[tuple[str, dict[str, Any]]]] = (
    ("query_sessions", {}),
    ("query_messages", {}),
    *(("query_messages", {"role": role}) for role in ("user", "assistant")),
    *(("query_messages", {"content_type": kind}) for kind in ("text", "tool_use", "tool_result")),
    ("query_tool_calls", {}),
    ("query_tool_calls", {"tool_name": "search", "order": "asc"}),
    ("query_tool_calls", {"state": "FAILED"}),
    ("query_tool_calls", {"is_error": True, "limit": 1}),
    ("query_tool_calls", {"created_after": samples.T0 + 1, "offset": 1}),
)


# --- reads that found nothing before ----------------------------------------------------------------------------------


def _all_looks(agent_id: str, known: Known) -> list[Look]:
    queries = [Look(f"query_{kind}", (), {"agent_id": agent_id}) for kind in ("sessions", "messages", "tool_calls")]
    return [*loads(agent_id, known, 0), *queries, Look("aggregate_stats", (agent_id,))]


@check(
    *("QRY-8", "INFO-3", "SNAP-1", "LIFE-3", "LIFE-4"),
    needs=Capability.EXTENDED,
    under=(Dimension.ORDERS, Dimension.CHANGES, Dimension.INSTANCES),
)
async def what_was_read_as_absent_is_read_when_it_is_there(ctx: Context) -> None:
    """Each read of an agent by every instance gives the agent as it is now, though it gave nothing before: after a
    write by any method and any instance, after a delete, and after the same write again.
    """
    stores = (ctx.store, await ctx.another())
    cases = [(kind, writer) for kind in kinds().values() for writer in kind.writers]
    async with _reference() as reference:
        for n, (kind, writer) in enumerate(in_time(ctx, cases)):
            agent_id, known = f"{writer.method}-{writer.parameter}", Known()
            record = of_agent(full(kind.record), agent_id)
            known.keys[getattr(record, "id", "none")] = None
            looks = _all_looks(agent_id, known)
            write = Look(writer.method, (agent_id,), writer.given(record))
            before = "before anything was written"
            for step, call in enumerate((None, write, Look("delete", (agent_id,)), write)):
                if call is not None:
                    await ask(reference, call)
                    await ask(stores[(n + step) % 2], call)
                    before = f"after {call.method} by instance {(n + step) % 2 + 1}, read before that too"
                for look in looks:
                    want = await _outcome(reference, look)
                    for i, store in enumerate(stores, 1):
                        found = difference(await _outcome(store, look), want)
                        ctx.true(found is None, f"{look} by instance {i} {before}: {found}; it is {want!s:.200}")


def _of(look: Look, agent_id: str, by_filter: bool) -> Look:
    """The look at that agent."""
    if by_filter:
        return look._replace(filters={**look.filters, "agent_id": agent_id})
    return look._replace(args=(agent_id, *look.args[1:]))


def _histories(ctx: Context) -> Iterator[list[Step]]:
    """Each change of each method, then random ones, of full and of empty agents."""
    for group, changes in CHANGES.items():
        yield from chains(changes, 1 if group == "lives" else 12)
    for i in range(max(1, ctx.effort.examples // 8)):
        steps = history(ctx.rng, ctx.effort.steps, {"batch_fork": 2, "delete_many": 2})
        yield [*full_state(steps[0].agent), *steps] if i % 2 else steps


class _Both:
    """One history after the other on the store, through two instances, and on the memory store."""

    def __init__(self, ctx: Context, stores: Sequence[Any], reference: Any) -> None:
        self._ctx = ctx
        self._stores = stores
        self._reference = reference
        self._numbers = itertools.count()

    async def problem(self, steps: Sequence[Step]) -> str:
        """The first call that gives something else; empty when there is none."""
        machine = Machine(self._ctx, f"{next(self._numbers)}-", [])
        mine, theirs = dict[str, str](), dict[str, str]()
        try:
            for i, step in enumerate(steps, 1):
                if step.op in ("prime", "pause", "look", "reopen"):
                    continue
                got = await _make(machine, self._stores[step.via], step, mine)
                want = await _make(machine, self._reference, step, theirs)
                found = difference(got, want)
                if found is not None:
                    return f"step {i}: {found}; the memory store {want!s:.200}"
                if step.seen_by < 0:
                    continue
                own = mine.get(step.agent, machine.prefix + step.agent), theirs.get(step.agent, "")
                problem = await self._looks(own[0], own[1] or own[0], step.seen_by)
                if problem:
                    return f"step {i}: {problem}"
        finally:
            for agent_id in await self._reference.list():
                await self._reference.delete(agent_id)
            for agent_id in {machine.prefix + step.agent for step in steps} | {*mine.values()}:
                await self._stores[0].delete(agent_id)
        return ""

    async def _looks(self, agent_id: str, theirs: str, seen_by: int) -> str:
        pairs = [(Look(method, (), filters), True) for method, filters in _LOOKS]
        for look, by_filter in [*pairs, *((look, False) for look in loads(agent_id, Known(), 0))]:
            calls = [
                look._replace(filters={**look.filters, "agent_id": one})
                if by_filter
                else look._replace(args=(one, *look.args[1:]))
                for one in (agent_id, theirs)
            ]
            got = await _outcome(self._stores[seen_by], calls[0])
            want = await _outcome(self._reference, calls[1])
            found = None if agent_id != theirs and got[0] == want[0] else difference(got, want)
            if found is not None:
                return f"{calls[0]}, seen through store {seen_by + 1}: {found}, as the memory store gives it"
        return ""


@check(
    "MSG-8",
    "MSG-1",
    "TC-3",
    "TURN-1",
    "EVT-4",
    "EVT-5",
    "QRY-2",
    "QRY-3",
    "QRY-4",
    "FORK-1",
    "LIFE-5",
    needs=Capability.EXTENDED,
    tier=Tier.STANDARD,
    stochastic=True,
    under=_UNDER,
)
async def random_histories_give_what_memory_gives(ctx: Context) -> None:
    """Each call of any sequence, and each read after it, returns what the memory store returns, or raises the same
    error.
    """
    async with _reference() as reference:
        both = _Both(ctx, [ctx.store, await ctx.another()], reference)

        async def fails(steps: list[Step]) -> bool:
            return bool(await both.problem(steps))

        for steps in in_time(ctx, _histories(ctx)):
            if await both.problem(steps):
                short = await shortest(steps, fails, _SHORTEN_SECONDS)
                raise Violation(f"this history goes wrong at {await both.problem(short)}\n{listed(short)}")
