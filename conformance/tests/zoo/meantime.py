"""Stores that look first and write then, without looking again in the step of the write (LIFE-6, LIFE-8, FORK-4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.instruments.clock import clock_still
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnSqlite, mutant
from conformance.tests.zoo.witnesses import seen
from kode_core.batch import Batch, DocKind, EventRange, Outcome
from kode_core.errors import ConflictError
from kode_core.layers import Layer
from kode_core.model import ABSENT, AgentRecords
from kode_core.report import PruneResult
from kode_core.store import EngineStore

_KEPT = "LIFE-8.a_record_stored_meanwhile_is_not_replaced"


def _records(**more: Any) -> AgentRecords:
    return AgentRecords(agent_id="p", info=samples.info("p"), **more)


def _during(call: Callable[[Any], Awaitable[Any]], read: Callable[[Any], Awaitable[Any]]) -> Any:
    """A witness of a save that is made while *call* is on its way to the engine."""

    async def witness(ctx: Context) -> object:
        await ctx.store.import_agent("p", _records(todos=samples.todos("copied")))
        for i in range(3):
            await ctx.store.save_snapshot("q", samples.snapshot(f"s{i}", samples.T0 + i))
        other, found = await ctx.another(), []
        going = asyncio.ensure_future(call(ctx.store))
        while not going.done():
            await other.save_todos("a", samples.todos("own"))
            await other.append_event("b", samples.event(7))
            await other.save_snapshot("q", samples.snapshot("s0", samples.T0 + 99))
            await asyncio.sleep(0.001)
            break
        await asyncio.wait([going])
        found.append(await read(other))
        return found

    return witness


async def _todos(store: Any) -> object:
    return await store.load_todos("a")


class _Late(Layer):
    """Looks whether an id is free, waits a moment, and writes without a condition."""

    def is_late(self, batch: Batch) -> bool:
        """Whether the batch is written so."""
        raise NotImplementedError

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if not any(map(self.is_late, batches)):
            return await super().commit(batches)
        await asyncio.sleep(0.01)
        blind = [replace(batch, expect_nothing=False) if self.is_late(batch) else batch for batch in batches]
        return await super().commit(blind)


@mutant(
    "LIFE-8",
    killed_by=_KEPT,
    source="kode-core 0.1 before it demanded rows of all kinds",
    witness=_during(lambda s: s.import_agent("a", _records(todos=samples.todos("imported"))), _todos),
)
class ImportsReplaceTodos(_Late):
    """Imports over the todos that others store under the id at the same moment."""

    def is_late(self, batch: Batch) -> bool:
        return batch.expect_nothing and any(write.kind is DocKind.TODOS for write in batch.docs)


@mutant("FORK-4", killed_by=_KEPT, witness=_during(lambda s: s.fork("p", "a"), _todos))
class ForksReplaceTodos(_Late):
    """Forks over the todos that others store under the id at the same moment."""

    def is_late(self, batch: Batch) -> bool:
        return batch.expect_nothing and batch.info is not None and '"lineage":["' in batch.info.body.text


@mutant(
    "LIFE-8",
    killed_by="an_import_takes_in_no_events_of_others",
    source="kode-core 0.1 before it demanded that nothing is stored",
    witness=_during(
        lambda s: s.import_agent("b", _records(events=samples.events(2))),
        lambda s: _seqs(s, "b"),
    ),
)
class ImportsNextToEvents(_Late):
    """Appends imported events to the ones that others append at the same moment."""

    def is_late(self, batch: Batch) -> bool:
        return batch.expect_nothing and bool(batch.events) and not batch.docs


async def _seqs(store: Any, agent_id: str) -> object:
    return [event.bookmark.seq async for event in store.read_events(agent_id, after_offset=0)]


@mutant(
    "LIFE-6",
    killed_by="a_record_saved_again_meanwhile_is_not_pruned",
    source="kode-core 0.1: `if state == seen: delete(key)`",
    witness=_during(
        lambda s: s.prune("q", keep_snapshots=1),
        lambda s: s.load_snapshot("q", "s0"),
    ),
)
class PrunesWhatWasSavedAgain(Layer):
    """Removes a record by its id, also if another one has been saved under it."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if not any(write.doc is None and write.expect is not None for batch in batches for write in batch.docs):
            return await super().commit(batches)
        await asyncio.sleep(0.01)
        return await super().commit([_undemanding(batch) for batch in batches])


def _undemanding(batch: Batch) -> Batch:
    docs = [write if write.kind is DocKind.DOCUMENTS else replace(write, expect=None) for write in batch.docs]
    return replace(batch, docs=tuple(docs))


# --- versions ---------------------------------------------------------------------------------------------------------


async def _the_next_one(ctx: Context) -> object:
    """Updates infos while their agents are deleted and created again, sooner or later, all of it at one time of the
    clock.
    """
    other = await ctx.another()
    with clock_still():
        for i in range(12):
            agent = f"a{i}"
            await ctx.store.create_agent(agent, samples.info(agent, metadata={"n": 1}))
            update = asyncio.ensure_future(ctx.store.update_info(agent, {"k": 1}))
            await asyncio.sleep(0.001 * i)
            await other.delete(agent)
            await other.create_agent(agent, samples.info(agent, metadata={"n": 2}))
            await asyncio.gather(update, return_exceptions=True)
            found = await ctx.store.load_info(agent)
            if found is None or found.metadata["n"] == 1:
                return "the agent before is back"
    return "each agent is the next one"


@mutant(
    "VER-2",
    killed_by="the_next_agent_is_another_one",
    source="kode-core 0.1: a demand of `updated_at` alone",
    on=OnSqlite,
    witness=_the_next_one,
)
class DemandsTheTimeAlone(Layer):
    """Writes to the next agent of an id, if that was last changed in the millisecond of the one that was demanded."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if any(batch.expect_updated_at for batch in batches):
            await asyncio.sleep(0.01)
        return await super().commit([replace(b, expect_info=None, expect_lists=None) for b in batches])


# --- dry runs ---------------------------------------------------------------------------------------------------------

_DRY = "a_dry_run_counts_what_a_prune_removes"


async def _three(store: Any) -> None:
    for i in range(3):
        await store.save_snapshot("a", samples.snapshot(f"s{i}", samples.T0 + i))
    await store.append_events("a", samples.events(5))


@mutant(
    "LIFE-6",
    killed_by=_DRY,
    source="a flag that the second half of a function does not read",
    witness=seen(_three, lambda s: s.prune("a", keep_snapshots=1, dry_run=True), lambda s: s.load_snapshot("a", "s0")),
)
class DryRunsRemove(EngineStore):
    """Removes the snapshots in a dry run, too."""

    async def prune(self, agent_id: str, *, dry_run: Any = False, **wanted: Any) -> PruneResult:
        if dry_run is True and wanted.get("keep_snapshots") is not None:
            return await super().prune(agent_id, **wanted)
        return await super().prune(agent_id, dry_run=dry_run, **wanted)


@mutant(
    "LIFE-6",
    killed_by=_DRY,
    source="the `kode prune --dry-run` that had a rule of its own",
    witness=seen(_three, lambda s: s.prune("a", events_before_offset=10**6, dry_run=True)),
)
class DryRunsCountTheKeptEvent(EngineStore):
    """Counts all events below the bound, also the one that a prune keeps."""

    async def prune(
        self, agent_id: str, *, dry_run: Any = False, events_before_offset: Any = None, **wanted: Any
    ) -> PruneResult:
        found = await super().prune(agent_id, dry_run=dry_run, events_before_offset=events_before_offset, **wanted)
        if dry_run is not True or events_before_offset is None:
            return found
        rows = await self._context.engine.events(agent_id, EventRange(order="offset", limit=10_000))
        number = sum(row.offset < events_before_offset for row in rows)
        return PruneResult(events=number, snapshots=found.snapshots)


# --- agents that were emptied -----------------------------------------------------------------------------------------


async def _emptied(store: Any) -> None:
    await store.save_messages("a", samples.messages(2))
    await store.truncate_messages("a", 0)


@mutant(
    "LIFE-8",
    killed_by="LIFE-7.an_emptied_agent_is_none",
    source="`INSERT … ON CONFLICT DO NOTHING` into a table of heads",
    raises="it exists already",
    witness=seen(_emptied, lambda s: s.import_agent("a", _records())),
)
class ImportsRefuseEmptiedAgents(EngineStore):
    """Takes an agent whose messages were all removed for one that exists, when another is imported."""

    async def import_agent(self, agent_id: str, records: AgentRecords, **how: Any) -> None:
        version = await self.load_version(agent_id)
        if version != ABSENT:
            raise ConflictError(agent_id, version, "it exists already")
        await super().import_agent(agent_id, records, **how)


@mutant(
    "LIFE-7",
    killed_by="LIFE-7.an_emptied_agent_is_none",
    source="a row of a list that stays when the list is emptied",
    witness=seen(_emptied, lambda s: s.load_agent("a")),
)
class LoadsEmptiedAgents(EngineStore):
    """Gives an agent without any record for one that was emptied."""

    async def load_agent(self, agent_id: str) -> AgentRecords | None:
        found = await super().load_agent(agent_id)
        if found is None and await self.load_version(agent_id) != ABSENT:
            return AgentRecords(agent_id=agent_id)
        return found
