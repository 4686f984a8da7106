"""An engine over any database that changes one record at a time atomically; see :mod:`kode_core.engines.records`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from kode_core.batch import (
    Batch,
    Child,
    Doc,
    DocKind,
    EngineIssue,
    EventRange,
    EventRow,
    Fence,
    FoundRow,
    Head,
    ListKind,
    ListRows,
    Outcome,
    Outline,
    SessionRow,
    Totals,
)
from kode_core.codec import Body
from kode_core.engine import Medium, Watch
from kode_core.engines.record_forks import RecordForks
from kode_core.engines.record_io import RecordIO
from kode_core.engines.record_reads import RecordReads
from kode_core.engines.record_writer import RecordWriter
from kode_core.engines.records import RecordStore
from kode_core.query import AgentStats, RowQuery, SessionQuery

__all__ = ["RecordEngine"]

T = TypeVar("T")


class RecordEngine:
    """See :class:`kode_core.engine.Engine`. The store, which is open, is closed with it."""

    def __init__(self, store: RecordStore) -> None:
        self.store = store
        self.name = store.name
        self.io = RecordIO(store)
        self._reads = RecordReads(self.io)
        self._writer = RecordWriter(self.io)
        self._forks = RecordForks(self.io, self._reads)

    def __repr__(self) -> str:
        return repr(self.store)

    # --- writing

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self._writer.commit(batches)

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        return await self._write(agent_id, self._forks.fork(agent_id, children, expect, now))

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await self._write(agent_id, self.store.acquire_lease(agent_id, owner, ttl_ms))

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await self._write(agent_id, self.store.renew_lease(agent_id, fence, ttl_ms))

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self._write(agent_id, self.store.release_lease(agent_id, fence))

    async def _write(self, agent_id: str, write: Awaitable[T]) -> T:
        """Write to the end even when the caller is cancelled."""
        job = self._writer.spawn(write)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            self._writer.leave_alone(job, agent_id)
            raise

    # --- reading

    async def _read(self, agent_id: str | None, read: Callable[..., Awaitable[T]], *args: object) -> T:
        await self._writer.ended(agent_id)
        return await read(*args)

    async def head(self, agent_id: str) -> Head | None:
        return await self._read(agent_id, self._reads.head, agent_id)

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        return await self._read(agent_id, self._reads.rows, agent_id, kind)

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        return await self._read(agent_id, self._reads.outline, agent_id, kind, keys)

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        return await self._read(agent_id, self._reads.docs, agent_id, kind, key)

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        return await self._read(agent_id, self._reads.events, agent_id, span)

    async def last_event(self, agent_id: str) -> EventRow | None:
        return await self._read(agent_id, self._reads.last_event, agent_id)

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        return await self._read(None, self.store.agent_ids, prefix, after, limit)

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        return await self._read(query.agent_id, self._reads.sessions, query)

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        return await self._read(query.agent_id, self._reads.find_rows, query)

    async def stats(self, agent_id: str) -> AgentStats:
        return await self._read(agent_id, self._reads.stats, agent_id)

    async def totals(self) -> Totals:
        return await self._read(None, self.store.totals)

    async def inspect(self, agent_id: str | None) -> Sequence[EngineIssue]:
        own = [] if agent_id is None else await self._read(agent_id, self._reads.inspect, agent_id)
        return [*own, *await self.store.inspect(agent_id)]

    # --- operations

    def watch(self, agent_id: str, wake: Callable[[], None]) -> Watch | None:
        return self.store.watch(agent_id, wake)

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        return self.store.probes()

    async def backup(self, target: Path) -> Sequence[Path]:
        return await self.store.backup(target)

    async def close(self) -> None:
        await self._writer.close()
        await self.store.close()
