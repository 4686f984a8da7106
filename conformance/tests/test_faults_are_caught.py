"""The suite judges: each of these faulty stores fails the check that is there for its fault, and names the clause."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from kode_conformance import Handle, Space, StoreHarness, Violation, load_checks, run_check
from kode_conformance.testclass import StoreConformance
from msgspec.structs import replace

from kode_core import Store
from kode_core.batch import Applied, Batch, EventRange, EventRow, Fence, ListKind, ListRows, Outcome, Outline
from kode_core.codec import Body, digest
from kode_core.engine import Engine
from kode_core.engines.memory import MemoryEngine, MemorySpace
from kode_core.layers import Layer
from kode_core.query import RowQuery, SessionQuery
from kode_core.store import EngineStore

_spaces: dict[str, MemorySpace] = {}


class FaultyHarness(StoreHarness):
    """A memory store with a fault put around its engine or into its methods."""

    lacks = frozenset({"CROSS_PROCESS", "PERSISTENT"})

    def __init__(self, name: str, fault: Callable[[Engine], Engine], store: type[EngineStore] = EngineStore) -> None:
        self.name = name
        self._fault = fault
        self._store = store

    async def provision(self, space: Space) -> Handle:
        _spaces[space.name] = MemorySpace()
        return {"name": space.name}

    async def open(self, handle: Handle) -> Store:
        async def engine() -> Engine:
            return self._fault(MemoryEngine(_spaces[handle["name"]]))

        return await self._store(engine).open()


class StripsNul(Layer):
    """Drops U+0000 from bodies, as a C string does."""

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        found = await super().rows(agent_id, kind)
        return replace(found, rows=[(_reread(body, "\\u0000", ""), at) for body, at in found.rows])


class FloatNumbers(Layer):
    """Turns 1.0 into 1, as jsonb and DynamoDB maps do."""

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        found = await super().rows(agent_id, kind)
        return replace(found, rows=[(_reread(body, ":1.0}", ":1}"), at) for body, at in found.rows])


def _reread(body: Body, old: str, new: str) -> Body:
    text = body.text.replace(old, new)
    return Body(text, digest(text.encode()))


class Restamps(Layer):
    """Gives every message the time of the last save."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        for batch in batches:
            state = self.inner._space.state(batch.agent_id)  # type: ignore[attr-defined]
            rows = state.lists[ListKind.MESSAGES].rows
            rows[:] = [replace(row, created_at=batch.now) for row in rows]
        return outcomes


class FoldsCase(Layer):
    """Takes "A" and "a" for one agent."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([replace(batch, agent_id=batch.agent_id.lower()) for batch in batches])

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        return await super().rows(agent_id.lower(), kind)


class WildcardPrefix(Layer):
    """Treats "_" in a prefix as any character, as LIKE does."""

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        everyone = await super().agent_ids("", after, limit)
        fits = (
            a for a in everyone if len(a) >= len(prefix) and all(p in ("_", c) for p, c in zip(prefix, a, strict=False))
        )
        return list(fits)


class DropsRepeatedSeq(Layer):
    """Keeps one event for each seq."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        kept = []
        for batch in batches:
            known = {row.seq for row in await self.inner.events(batch.agent_id, EventRange(limit=10**6))}
            kept.append(replace(batch, events=tuple(e for e in batch.events if e.seq not in known)))
        outcomes = await super().commit(kept)
        wanted = [len(batch.events) for batch in batches]
        return [
            replace(o, offsets=(*o.offsets, *[1] * (n - len(o.offsets)))) if isinstance(o, Applied) else o
            for o, n in zip(outcomes, wanted, strict=True)
        ]


class InclusiveSince(Layer):
    """Gives the event at the bookmark again."""

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        since = None if span.since_seq is None else span.since_seq - 1
        return await super().events(agent_id, replace(span, since_seq=since))


class IgnoresFilter(Layer):
    """Forgets the filter by template."""

    async def find_sessions(self, query: SessionQuery) -> Any:
        return await super().find_sessions(replace(query, template_id=None))


class UnstablePages(Layer):
    """Pages by time only: rows of one time are lost at the edge of a page."""

    async def find_rows(self, query: RowQuery) -> Any:
        if query.after is not None:
            worst = ("", -1) if query.descending else ("\U0010ffff", 10**9)
            query = replace(query, after=(query.after[0], *worst))
        return await super().find_rows(query)


class ForgetsTodosOnDelete(Layer):
    """Leaves documents behind when an agent is deleted."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        kept = {}
        for batch in batches:
            if batch.delete:
                kept[batch.agent_id] = dict(self.inner._space.state(batch.agent_id).docs)  # type: ignore[attr-defined]
        outcomes = await super().commit(batches)
        for agent_id, docs in kept.items():
            state = self.inner._space.state(agent_id)  # type: ignore[attr-defined]
            state.docs.update(docs)
            if docs:
                self.inner._space.states[agent_id] = state  # type: ignore[attr-defined]
        return outcomes


class NeverFences(Layer):
    """Does not look at the fence."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([replace(batch, fence=None) for batch in batches])


class ReleasesByName(Layer):
    """Frees the lock whoever holds it."""

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        self.inner._space.leases.pop(agent_id, None)  # type: ignore[attr-defined]


class PrivateLocks(Layer):
    """Keeps locks to the instance."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._own: dict[str, tuple[str, int]] = {}

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        if agent_id in self._own:
            return None
        self._own[agent_id] = (owner, time.monotonic_ns())
        return self._own[agent_id][1]

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        self._own.pop(agent_id, None)


class IgnoresVersions(Layer):
    """Writes over what another instance wrote in between."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        blind = [
            replace(b, messages=replace(b.messages, expect=None)) if b.messages is not None else b for b in batches
        ]
        return await super().commit(blind)


class TornTurn(Layer):
    """Writes the parts of a turn one after the other."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        for batch in batches:
            (first,) = await super().commit([replace(batch, events=(), docs=())])
            await asyncio.sleep(0)
            (second,) = await super().commit(
                [replace(batch, op_id=batch.op_id + "b", info=None, messages=None, tool_calls=None, delete=False)]
            )
            outcomes.append(
                replace(first, offsets=second.offsets)
                if isinstance(first, Applied) and isinstance(second, Applied)
                else first
            )
        return outcomes


class StaleOutline(Layer):
    """Tells the outline of a list without its last row."""

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        found = await super().outline(agent_id, kind, keys)
        return replace(found, rows=found.rows[:-1], count=max(0, found.count - 1))


class TruncatesLongText(EngineStore):
    """Cuts a recovered file at 64 KB."""

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        await super().save_recovered_file(agent_id, file.replace(content=file.content[:65_536]), fence=fence)


class SwallowsUnknownFilters(EngineStore):
    """Ignores filters it does not know."""

    async def query_sessions(self, **filters: Any) -> Any:
        return await super().query_sessions(**{k: v for k, v in filters.items() if k in ("template_id", "limit")})  # type: ignore[typeddict-item]


class NeverCounts(EngineStore):
    """Has metrics that nobody moves."""

    async def get_metrics(self) -> Any:
        metrics = await super().get_metrics()
        return replace(metrics, operations=replace(metrics.operations, saves=0))


FAULTS: list[tuple[Any, str]] = [
    (StripsNul, "VAL-1.any_json_value_comes_back_exactly"),
    (FloatNumbers, "VAL-1.any_json_value_comes_back_exactly"),
    (TruncatesLongText, "VAL-4.a_megabyte_in_any_field"),
    (FoldsCase, "ID-1.every_legal_id_is_an_agent_of_its_own"),
    (Restamps, "MSG-4.messages_keep_their_first_time"),
    (IgnoresVersions, "MSG-3.saves_and_appends_follow_each_other"),
    (StaleOutline, "MSG-3.saves_and_appends_follow_each_other"),
    (TornTurn, "FORK-1.a_fork_is_of_one_instant"),
    (DropsRepeatedSeq, "EVT-3.seq_may_repeat"),
    (InclusiveSince, "EVT-5.since_is_exclusive_on_seq"),
    (WildcardPrefix, "LIFE-2.the_prefix_is_literal"),
    (ForgetsTodosOnDelete, "LIFE-3.delete_removes_everything"),
    (IgnoresFilter, "QRY-2.session_filters_select"),
    (SwallowsUnknownFilters, "QRY-1.wrong_filters_are_refused"),
    (UnstablePages, "QRY-5.cursors_give_everything_once"),
    (NeverCounts, "OPS-3.metrics_count_what_happened"),
    (NeverFences, "LOCK-5.writes_under_a_lost_lease_are_refused"),
    (ReleasesByName, "LOCK-4.a_late_release_frees_nobody_else"),
    (PrivateLocks, "LOCK-1.one_holder_at_a_time"),
]


@pytest.mark.parametrize(("fault", "check_id"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_the_fault_fails_its_check(fault: Any, check_id: str) -> None:
    """A store with this fault fails the check of its clause, and the message names the clause."""
    check = next(check for check in load_checks() if check.id == check_id)
    is_store = issubclass(fault, EngineStore)
    harness = FaultyHarness(
        fault.__name__, (lambda engine: engine) if is_store else fault, fault if is_store else EngineStore
    )
    with pytest.raises(Violation, match=check.clauses[0]):
        run_check(check, harness)


def test_a_layer_without_a_fault_passes() -> None:
    """What the faulty stores are made of is sound: the plain layer passes the checks that they fail."""
    harness = FaultyHarness("plain", Layer)
    for check in load_checks():
        if any(check.id == check_id for _, check_id in FAULTS):
            run_check(check, harness)


def test_checks_cannot_be_overridden() -> None:
    """A subclass that replaces a check is refused when the class is made."""
    with pytest.raises(TypeError, match="test_MSG_1_save_replaces_the_whole_list"):
        type("Cheat", (StoreConformance,), {"test_MSG_1_save_replaces_the_whole_list": None})


def test_a_hanging_store_is_told_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that blocks the event loop is reported with the line that blocks."""
    monkeypatch.setattr("kode_conformance.runner.SCALE", 0.5 / 60)

    class Blocks(Layer):
        async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
            time.sleep(1.5)
            return await super().rows(agent_id, kind)

    check = next(check for check in load_checks() if check.id == "MSG-1.save_replaces_the_whole_list")
    with pytest.raises(Violation, match=r"time\.sleep\(1\.5\)"):
        run_check(check, FaultyHarness("blocks", Blocks))
