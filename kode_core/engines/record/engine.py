"""An engine over any database that changes one record at a time atomically.

:mod:`kode_core.engines.record.store` lists the requirements on the database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from kode_core.authoring.closing import close_all
from kode_core.authoring.reading import verb_of
from kode_core.batch import Batch, Child, EngineIssue, Fence, Outcome
from kode_core.codec import Body
from kode_core.engine import Medium, Progress, Watch, unwatched
from kode_core.engines.record.debts import RecordDebts
from kode_core.engines.record.forks import RecordForks
from kode_core.engines.record.inspection import RecordInspection
from kode_core.engines.record.io import RecordIO
from kode_core.engines.record.log import erases_items
from kode_core.engines.record.queries import RecordQueries
from kode_core.engines.record.reads import RecordReads
from kode_core.engines.record.recovery import RecordRecovery
from kode_core.engines.record.repair import RecordRepair
from kode_core.engines.record.store import RecordStore
from kode_core.engines.record.sweep import RecordSweep
from kode_core.engines.record.terms import finds_doc_items
from kode_core.engines.record.writer import RecordWriter
from kode_core.report import RepairResult

__all__ = ["RecordEngine"]

P = ParamSpec("P")
T = TypeVar("T")


def _verb(
    read: Callable[Concatenate[RecordReads, P], Awaitable[T]],
) -> Callable[Concatenate[RecordEngine, P], Coroutine[Any, Any, T]]:
    """The verb that does *read*."""

    @verb_of(read)
    async def verb(self: RecordEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self._sweep.start()
        return await read(self._reads, *args, **kwargs)

    return verb


def _query(
    read: Callable[Concatenate[RecordQueries, P], Awaitable[T]], *, of_indexes: bool = False
) -> Callable[Concatenate[RecordEngine, P], Coroutine[Any, Any, T]]:
    """The verb that does *read*; before one of indexes, what could not be applied to them is tried again."""

    @verb_of(read)
    async def verb(self: RecordEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self._sweep.start()
        if of_indexes:
            await self._debts.pay()
        return await read(self._queries, *args, **kwargs)

    return verb


class RecordEngine:
    """See :class:`kode_core.engine.Engine`. It takes an open store and closes it.

    *idle_poll_ms* is for a store that charges for reads: see :func:`kode_core.engine.idle_poll_ms`.
    """

    keeps_documents = True
    checks_demands = True

    def __init__(self, store: RecordStore, *, idle_poll_ms: int | None = None) -> None:
        self.store = store
        self.idle_poll_ms = idle_poll_ms
        self.name = store.name
        self.io = RecordIO(store)
        self._recovery = RecordRecovery(self.io)
        self._reads = RecordReads(self.io)
        self._queries = RecordQueries(self.io, self._reads, self._recovery)
        self._inspection = RecordInspection(self.io, self._reads)
        self._debts = RecordDebts(self.io)
        self._sweep = RecordSweep(self.io, self._recovery)
        self._repair = RecordRepair(self.io, self._inspection, self._sweep)
        self._writer = RecordWriter(self.io, self._debts, self._sweep)
        self._forks = RecordForks(self.io, self._reads)

    def __repr__(self) -> str:
        return repr(self.store)

    @property
    def finds_any_of(self) -> bool:
        """Whether the queries of the store take several values for a filter."""
        return bool(getattr(self.store, "finds_any_of", False))

    @property
    def finds_docs(self) -> bool:
        """Whether the store finds documents by their terms."""
        return finds_doc_items(self.store)

    @property
    def finds_within(self) -> bool:
        """Whether the queries of the store take a range of agents."""
        return bool(getattr(self.store, "finds_within", False))

    @property
    def drops_events(self) -> bool:
        """Whether the store can erase the items of removed events."""
        return erases_items(self.store)

    # --- writing

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        self._sweep.start()
        return await self._writer.commit(batches)

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        self._sweep.start()
        return await self._forks.fork(agent_id, children, expect, now)

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await self.store.acquire_lease(agent_id, owner, ttl_ms)

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await self.store.renew_lease(agent_id, fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self.store.release_lease(agent_id, fence)

    # --- reading

    summary = _verb(RecordReads.summary)
    rows = _verb(RecordReads.rows)
    rows_at = _verb(RecordReads.rows_at)
    outline = _verb(RecordReads.outline)
    docs = _verb(RecordReads.docs)
    docs_in = _verb(RecordReads.docs_in)
    events = _verb(RecordReads.events)
    last_event = _verb(RecordReads.last_event)
    agent_ids = _query(RecordQueries.agent_ids)
    stored_ids = _query(RecordQueries.stored_ids)
    find_sessions = _query(RecordQueries.find_sessions, of_indexes=True)
    find_rows = _query(RecordQueries.find_rows, of_indexes=True)
    find_docs = _query(RecordQueries.find_docs, of_indexes=True)
    stats = _verb(RecordReads.stats)
    totals = _query(RecordQueries.totals)

    async def inspect(self, agent_id: str | None, progress: Progress = unwatched) -> Sequence[EngineIssue]:
        self._sweep.start()
        return await self._inspection.inspect(agent_id)

    async def repair(self, agent_id: str | None, progress: Progress = unwatched) -> RepairResult:
        """Finish or remove the work of killed processes; see :class:`kode_core.engine.Repairs`."""
        self._sweep.start()
        return await self._repair.repair(agent_id, progress)

    async def sweep(self) -> None:
        """Remove old records that no head refers to. The engine does this in the background, too."""
        await self._sweep.sweep()

    # --- operations

    def watch(self, agent_id: str, wake: Callable[[], None]) -> Watch | None:
        return self.store.watch(agent_id, wake)

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        return self.store.probes()

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        return await self.store.backup(target, progress)

    async def close(self) -> None:
        mine = self._sweep.close, self._writer.close, self._debts.close, self._recovery.close
        await close_all(*mine, self.store.close)
