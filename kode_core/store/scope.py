"""The engine of a scope: another engine, of which one tenant's agents are all that there is.

Everything that a store does goes through the verbs of its engine, so this is the one place at which ids get the prefix
of their tenant and lose it again, whatever the method. No verb is forwarded by default: an optional verb that is not
written down here does not exist for a scope, and the store refuses the methods that need it. The suite and
``tests/test_tenants.py`` compare the verbs and methods with what they find by introspection.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from msgspec.structs import replace

from kode_core.authoring.parallel import each
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
    Found,
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
from kode_core.errors import CorruptRecordError, KodeError, UnsupportedError
from kode_core.query import AgentStats, Grouping, GroupRows, RowQuery, SessionQuery, Within
from kode_core.report import RepairResult
from kode_core.rewriting import EventBody, rewrite_events, rewrites_events
from kode_core.searched import finds_text
from kode_core.tagged import find_docs, finds_docs
from kode_core.tenants import joined, prefix_of

__all__ = ["ScopedEngine", "scoped"]

P = ParamSpec("P")
T = TypeVar("T")
Q = TypeVar("Q", bound=SessionQuery | RowQuery)

_IDS_AT_ONCE: Final = 1_000


async def scoped(engine: Engine, tenant: str | None, *, is_view: bool) -> Engine:
    """The part of *engine* that a store sees; one that is opened for this store alone is closed if it has no scopes."""
    if tenant is None:
        return engine
    try:
        return ScopedEngine(engine, tenant, is_owner=not is_view)
    except KodeError:
        if not is_view:
            await engine.close()
        raise


class ScopedEngine:
    """One tenant's agents of an engine.

    Args:
        inner: the engine of all tenants.
        tenant: the tenant.
        is_owner: whether closing this closes *inner*; a view of a store leaves it open.

    Raises:
        UnsupportedError: *inner* takes no queries of a range of agents.
    """

    finds_within = True

    def __init__(self, inner: Engine, tenant: str, *, is_owner: bool) -> None:
        if not finds_within(inner):
            raise UnsupportedError(f"the backend {inner.name} has no scopes: it cannot search a part of its agents")
        self._inner = inner
        self._tenant = tenant
        self._prefix = prefix_of(tenant)
        self._is_owner = is_owner
        self._within = Within(self._prefix)
        # In front of the prefix of an id is no part of an id: a tenant's own id may contain the text of the prefix.
        self._named = re.compile(rf"(?<![^\s'\"(\[,:=]){re.escape(self._prefix)}")
        self.name = inner.name

    def __repr__(self) -> str:
        return f"tenant {self._tenant!r} of {self._inner!r}"

    # --- ids, in and out

    def _full(self, agent_id: str) -> str:
        return joined(self._prefix, agent_id)

    def _own(self, full_id: str) -> str:
        return full_id.removeprefix(self._prefix)

    def _text(self, text: str) -> str:
        """A sentence with the ids as the tenant knows them."""
        return self._named.sub("", text) if self._prefix in text else text

    def _found(self, found: Sequence[Any], items: Iterable[T]) -> Sequence[T]:
        return Found(items, map(self._text, found.left_out)) if isinstance(found, Found) else [*items]

    def _error(self, exc: KodeError) -> KodeError:
        """The error, with the ids as the tenant knows them."""
        exc.args = tuple(self._text(arg) if isinstance(arg, str) else arg for arg in exc.args)
        for name, value in vars(exc).items():
            if isinstance(value, str):
                setattr(exc, name, self._own(value) if name == "agent_id" else self._text(value))
        return exc

    async def _call(self, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await call(*args, **kwargs)
        except KodeError as exc:
            self._error(exc)
            raise

    async def _of_one(self, call: Callable[..., Awaitable[T]], agent_id: str, *args: Any) -> T:
        return await self._call(call, self._full(agent_id), *args)

    # --- writing

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        full = [replace(batch, agent_id=self._full(batch.agent_id)) for batch in batches]
        outcomes = await self._call(self._inner.commit, full)
        return [self._error(outcome) if isinstance(outcome, KodeError) else outcome for outcome in outcomes]

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        full = [replace(child, agent_id=self._full(child.agent_id)) for child in children]
        return await self._of_one(self._inner.fork, agent_id, full, expect, now)

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await self._of_one(self._inner.acquire_lease, agent_id, owner, ttl_ms)

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await self._of_one(self._inner.renew_lease, agent_id, fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self._of_one(self._inner.release_lease, agent_id, fence)

    # --- reading one agent

    async def summary(self, agent_id: str) -> AgentSummary | None:
        found = await self._of_one(self._inner.summary, agent_id)
        return None if found is None else replace(found, agent_id=self._own(found.agent_id))

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        return await self._of_one(self._inner.rows, agent_id, kind)

    async def rows_at(self, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
        return await self._of_one(self._inner.rows_at, agent_id, kind, start, limit)

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        return await self._of_one(self._inner.outline, agent_id, kind, keys)

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        return await self._of_one(self._inner.docs, agent_id, kind, key)

    async def docs_in(self, agent_id: str, span: DocSpan) -> Sequence[Doc]:
        return await self._call(docs_in, self._inner, self._full(agent_id), span)

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        return await self._of_one(self._inner.events, agent_id, span)

    async def last_event(self, agent_id: str) -> EventRow | None:
        return await self._of_one(self._inner.last_event, agent_id)

    async def stats(self, agent_id: str) -> AgentStats:
        return await self._of_one(self._inner.stats, agent_id)

    def watch(self, agent_id: str, wake: Callable[[], None]) -> Watch | None:
        return watch(self._inner, self._full(agent_id), wake)

    # --- reading many agents

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        beyond = None if after is None else self._prefix + after
        found = await self._call(self._inner.agent_ids, self._prefix + prefix, beyond, limit)
        return self._found(found, map(self._own, found))

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        """Few at a time: the last of them may be followed by other tenants' ids."""
        beyond = self._prefix + (after or "")
        found = await self._call(self._inner.stored_ids, beyond, min(limit, _IDS_AT_ONCE))
        return self._found(found, (self._own(one) for one in found if one in self._within))

    def _query(self, query: Q) -> Q:
        after: Any = query.after
        if after is not None:
            after = (after[0], self._prefix + after[1], *after[2:])
        wanted: Any = query.agent_id
        if isinstance(wanted, str):
            wanted = self._full(wanted)
        elif isinstance(wanted, Within):
            wanted = Within(self._prefix + wanted.prefix)
        else:
            wanted = self._within if wanted is None else tuple(map(self._full, wanted))
        return replace(query, agent_id=wanted, after=after)

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        found = await self._call(self._inner.find_sessions, self._query(query))
        return self._found(found, (replace(row, agent_id=self._own(row.agent_id)) for row in found))

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        found = await self._call(self._inner.find_rows, self._query(query))
        return self._found(found, (replace(row, agent_id=self._own(row.agent_id)) for row in found))

    async def count(self, query: SessionQuery | RowQuery) -> int:
        return await self._call(count, self._inner, self._query(query))

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
        found = await self._call(group, self._inner, self._query(query), grouping)
        ids = [by == "agent_id" for by in grouping.by]

        def own(values: tuple[str | bool | int, ...]) -> tuple[str | bool | int, ...]:
            return tuple(self._own(str(v)) if is_id else v for v, is_id in zip(values, ids, strict=True))

        return self._found(found, ((own(values), number) for values, number in found))

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        """Documents are ordered by id, so the tenant's follow one another: the search begins at the first one.

        A page that reaches beyond the last one is cut.
        """
        after = query.after
        if after is not None:
            after = (self._prefix + after[0], after[1])
        elif query.agent_id is None:
            after = (self._within.end if query.descending else self._prefix, "")
        agent_id = None if query.agent_id is None else self._full(query.agent_id)
        found = await self._call(find_docs, self._inner, replace(query, agent_id=agent_id, after=after))
        mine = [one for one in found if one.agent_id in self._within]
        return self._found(found, (replace(one, agent_id=self._own(one.agent_id)) for one in mine))

    async def rewrite_events(self, agent_id: str, changes: Sequence[EventBody]) -> None:
        await self._call(rewrite_events, self._inner, self._full(agent_id), changes)

    async def totals(self) -> Totals:
        """The tenant's: no engine keeps them, so they are counted. The size of a part of a database is not known."""
        if not can_count(self._inner):
            return await self._totals_of_heads()
        queries: Sequence[SessionQuery | RowQuery]
        queries = SessionQuery(), RowQuery(kind="messages"), RowQuery(kind="tool_calls")
        agents, messages, calls = await asyncio.gather(*(self.count(query) for query in queries))
        is_used = bool(agents or messages or calls) or bool(await self.stored_ids(None, 1))
        return Totals(agents=agents, messages=messages, tool_calls=calls, is_used=is_used)

    async def _totals_of_heads(self) -> Totals:
        agents = messages = calls = 0
        is_used, after = False, None
        while page := await self.stored_ids(after, _IDS_AT_ONCE):
            is_used, after = True, page[-1]
            for head in await each(self._readable_summary, page):
                if head is not None:
                    agents += head.info is not None
                    messages += head.messages.count
                    calls += head.tool_calls.count
        return Totals(agents=agents, messages=messages, tool_calls=calls, is_used=is_used)

    async def _readable_summary(self, agent_id: str) -> AgentSummary | None:
        try:
            return await self.summary(agent_id)
        except KodeError as exc:
            if not isinstance(exc, CorruptRecordError):
                raise
            return None

    # --- operations

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        return self._inner.probes()

    async def inspect(self, agent_id: str | None, progress: Progress = unwatched) -> Sequence[EngineIssue]:
        """Parts that belong to no agent belong to no tenant, either."""
        if agent_id is None:
            return []
        found = await self._of_one(self._inner.inspect, agent_id, progress)
        mine = (issue for issue in found if issue.agent_id in self._within)
        return [EngineIssue(issue.code, self._own(issue.agent_id), self._text(issue.message)) for issue in mine]

    async def repair(self, agent_id: str | None, progress: Progress = unwatched) -> RepairResult:
        if agent_id is not None:
            return await self._call(repair, self._inner, self._full(agent_id), progress)
        finished = removed = left = done = 0
        after: str | None = None
        while page := await self.stored_ids(after, _IDS_AT_ONCE):
            after = page[-1]
            for one in page:
                result = await self._call(repair, self._inner, self._full(one), unwatched)
                finished, removed, left = finished + result.finished, removed + result.removed, left + result.left
                done += 1
                progress(done, None)
        return RepairResult(finished=finished, removed=removed, left=left)

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        raise UnsupportedError(
            "a backup has the agents of all tenants: back up the whole store, or copy a tenant's agents with"
            " load_agent and import_agent"
        )

    async def close(self) -> None:
        if self._is_owner:
            await self._inner.close()

    # --- what the engine inside has besides

    @property
    def keeps_documents(self) -> bool:
        """Whether the engine inside keeps documents of the caller's own."""
        return keeps_documents(self._inner)

    @property
    def drops_events(self) -> bool:
        """Whether the engine inside removes a part of an agent's events."""
        return drops_events(self._inner)

    @property
    def checks_demands(self) -> bool:
        """Whether the engine inside checks demands of batches."""
        return checks_demands(self._inner)

    @property
    def finds_docs(self) -> bool:
        """Whether the engine inside finds documents by terms."""
        return finds_docs(self._inner)

    @property
    def finds_text(self) -> bool:
        """Whether the engine inside has an index of texts."""
        return finds_text(self._inner)

    @property
    def rewrites_events(self) -> bool:
        """Whether the engine inside replaces the bodies of events."""
        return rewrites_events(self._inner)

    @property
    def finds_any_of(self) -> bool:
        """Whether the engine inside takes filters with several values."""
        return finds_any_of(self._inner)

    @property
    def can_count(self) -> bool:
        """Whether the engine inside counts records."""
        return can_count(self._inner)

    @property
    def can_group(self) -> bool:
        """Whether the engine inside groups records."""
        return can_group(self._inner)

    @property
    def idle_poll_ms(self) -> int | None:
        """The longest pause of the engine's idle followers."""
        return idle_poll_ms(self._inner)
