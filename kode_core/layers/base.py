"""The base class of layers: it forwards every verb of an engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from kode_core.batch import (
    AgentSummary,
    Batch,
    Child,
    Doc,
    DocKind,
    DocQuery,
    DocSpan,
    EngineIssue,
    EventRange,
    EventRow,
    Fence,
    FoundDoc,
    FoundRow,
    ListKind,
    ListRows,
    Outcome,
    Outline,
    SessionRow,
    Totals,
)
from kode_core.codec import Body
from kode_core.counted import can_count, can_group, count, group
from kode_core.engine import (
    Engine,
    Medium,
    Progress,
    Watch,
    checks_demands,
    connection_use,
    docs_in,
    drops_events,
    finds_any_of,
    finds_within,
    idle_poll_ms,
    keeps_documents,
    repair,
    unwatched,
    watch,
)
from kode_core.query import AgentStats, Grouping, GroupRows, RowQuery, SessionQuery
from kode_core.report import ConnectionUse, RepairResult
from kode_core.rewriting import EventBody, rewrite_events, rewrites_events
from kode_core.searched import finds_text
from kode_core.tagged import find_docs, finds_docs

__all__ = ["Layer"]

P = ParamSpec("P")
T = TypeVar("T")


class Layer:
    """An engine that forwards every verb to ``inner``.

    A policy overrides :meth:`around`, which every verb goes through, and need not name the verbs; a layer that changes
    a verb overrides that verb.
    """

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.name = inner.name

    def __repr__(self) -> str:
        return f"{type(self).__name__} over {self.inner!r}"

    async def around(self, verb: str, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the call of *verb*; override it to add behaviour around the call."""
        return await call(*args, **kwargs)

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self.around("commit", self.inner.commit, batches)

    async def summary(self, agent_id: str) -> AgentSummary | None:
        return await self.around("summary", self.inner.summary, agent_id)

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        return await self.around("rows", self.inner.rows, agent_id, kind)

    async def rows_at(self, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
        return await self.around("rows_at", self.inner.rows_at, agent_id, kind, start, limit)

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        return await self.around("outline", self.inner.outline, agent_id, kind, keys)

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        return await self.around("docs", self.inner.docs, agent_id, kind, key)

    @property
    def keeps_documents(self) -> bool:
        """Whether the engine inside keeps documents of the caller's own."""
        return keeps_documents(self.inner)

    @property
    def drops_events(self) -> bool:
        """Whether the engine inside removes a part of an agent's events."""
        return drops_events(self.inner)

    @property
    def checks_demands(self) -> bool:
        """Whether the engine inside checks demands on documents of every kind, and that an agent has nothing."""
        return checks_demands(self.inner)

    async def docs_in(self, agent_id: str, span: DocSpan) -> Sequence[Doc]:
        """See :class:`kode_core.engine.RangesDocs`; UnsupportedError where *inner* is none."""
        return await self.around("docs_in", partial(docs_in, self.inner), agent_id, span)

    @property
    def finds_docs(self) -> bool:
        """Whether the engine inside finds documents by terms. False in a layer that overrides only other reads."""
        is_read_same = type(self).docs_in is Layer.docs_in
        return finds_docs(self.inner) and (is_read_same or type(self).find_docs is not Layer.find_docs)

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        """See :class:`kode_core.tagged.FindsDocs`."""
        return await self.around("find_docs", partial(find_docs, self.inner), query)

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        return await self.around("events", self.inner.events, agent_id, span)

    @property
    def rewrites_events(self) -> bool:
        """Whether the engine inside replaces the bodies of events."""
        return rewrites_events(self.inner)

    async def rewrite_events(self, agent_id: str, changes: Sequence[EventBody]) -> None:
        """See :class:`kode_core.rewriting.RewritesEvents`."""
        await self.around("rewrite_events", partial(rewrite_events, self.inner), agent_id, changes)

    async def last_event(self, agent_id: str) -> EventRow | None:
        return await self.around("last_event", self.inner.last_event, agent_id)

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        return await self.around("agent_ids", self.inner.agent_ids, prefix, after, limit)

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        return await self.around("stored_ids", self.inner.stored_ids, after, limit)

    @property
    def finds_any_of(self) -> bool:
        """Whether the engine inside takes filters with several values."""
        return finds_any_of(self.inner)

    @property
    def finds_within(self) -> bool:
        """Whether the engine inside takes queries of a range of agents."""
        return finds_within(self.inner)

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        return await self.around("find_sessions", self.inner.find_sessions, query)

    @property
    def finds_text(self) -> bool:
        """Whether the engine inside has an index of texts. False in a layer that may change bodies or queries."""
        is_same = type(self).commit is Layer.commit and type(self).find_rows is Layer.find_rows
        return is_same and finds_text(self.inner)

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        return await self.around("find_rows", self.inner.find_rows, query)

    @property
    def can_count(self) -> bool:
        """Whether the engine inside counts records. False in a layer that overrides queries but not ``count``."""
        return can_count(self.inner) and (self._finds_the_same or type(self).count is not Layer.count)

    @property
    def _finds_the_same(self) -> bool:
        return type(self).find_sessions is Layer.find_sessions and type(self).find_rows is Layer.find_rows

    async def count(self, query: SessionQuery | RowQuery) -> int:
        """See :class:`kode_core.engine.Counts`."""
        return await self.around("count", partial(count, self.inner), query)

    @property
    def can_group(self) -> bool:
        """Whether the engine inside groups records. False in a layer that overrides queries but not ``group``."""
        return can_group(self.inner) and (self._finds_the_same or type(self).group is not Layer.group)

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
        """See :class:`kode_core.engine.Groups`."""
        return await self.around("group", partial(group, self.inner), query, grouping)

    async def stats(self, agent_id: str) -> AgentStats:
        return await self.around("stats", self.inner.stats, agent_id)

    async def totals(self) -> Totals:
        return await self.around("totals", self.inner.totals)

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        return await self.around("fork", self.inner.fork, agent_id, children, expect, now)

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await self.around("acquire_lease", self.inner.acquire_lease, agent_id, owner, ttl_ms)

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await self.around("renew_lease", self.inner.renew_lease, agent_id, fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self.around("release_lease", self.inner.release_lease, agent_id, fence)

    def watch(self, agent_id: str, wake: Callable[[], None]) -> Watch | None:
        return watch(self.inner, agent_id, wake)

    @property
    def idle_poll_ms(self) -> int | None:
        """The longest pause of the engine's idle followers."""
        return idle_poll_ms(self.inner)

    def connection_use(self) -> ConnectionUse | None:
        return connection_use(self.inner)

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        return self.inner.probes()

    async def inspect(self, agent_id: str | None, progress: Progress = unwatched) -> Sequence[EngineIssue]:
        return await self.around("inspect", self.inner.inspect, agent_id, progress)

    async def repair(self, agent_id: str | None, progress: Progress = unwatched) -> RepairResult:
        """See :class:`kode_core.engine.Repairs`; nothing where *inner* is none."""
        return await self.around("repair", repair, self.inner, agent_id, progress)

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        return await self.around("backup", self.inner.backup, target, progress)

    async def close(self) -> None:
        await self.around("close", self.inner.close)
