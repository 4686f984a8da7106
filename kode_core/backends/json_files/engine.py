"""An engine over JSON files: nothing to install, readable with any editor, safe against crashes and other processes.

It keeps an index of every agent that was used in memory, and searches all agents to find sessions: right for thousands
of agents, not for millions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from msgspec.structs import replace

from kode_core.backends.json_files import checks
from kode_core.backends.json_files.children import copy_docs, fork, remove
from kode_core.backends.json_files.copies import FolderCopy
from kode_core.backends.json_files.folder import Folder, UnresolvedError, stripe_of
from kode_core.backends.json_files.holding import Holder
from kode_core.backends.json_files.journal import BodyReader
from kode_core.backends.json_files.prepared import PreparedWrite
from kode_core.backends.json_files.rewriting import rewrite_events
from kode_core.backends.json_files.searches import (
    MovedError,
    searched,
    searched_whole,
    sound_briefs,
    with_texts,
)
from kode_core.backends.json_files.stripes import Stripe
from kode_core.backends.json_files.threads import Threads
from kode_core.batch import (
    AgentSummary,
    Applied,
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
    Refused,
    SessionRow,
    Totals,
)
from kode_core.codec import Body
from kode_core.engine import Medium, Progress, unwatched
from kode_core.engines import scan
from kode_core.engines.scan import Searched
from kode_core.engines.state import AgentState
from kode_core.errors import OutcomeUnknownError, StorageError, StoreBusyError
from kode_core.query import AgentStats, Grouping, GroupRows, RowQuery, SessionQuery
from kode_core.rewriting import EventBody

__all__ = ["JsonFilesEngine", "PreparedWrite"]

T = TypeVar("T")
P = ParamSpec("P")

_log = logging.getLogger("kode_core.json")

_MOVES: Final = 10

Resolver = Callable[[Batch], Awaitable[bool]]
"""Returns True if the other store committed its part of a prepared batch."""


class JsonFilesEngine:
    """See :class:`kode_core.engine.Engine`.

    Blocking calls run in threads; waiting for locks happens in the event loop.
    """

    name = "json"
    rewrites_events = True
    keeps_documents = checks_demands = drops_events = finds_any_of = finds_docs = can_count = can_group = True
    finds_within = True

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.resolver: Resolver | None = None
        self._threads = Threads("kode-json")
        self.holder = Holder(folder, self._threads)
        self._readers: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._jobs: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"{self.name} at {self.folder.base}"

    # --- threads and locks

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the call in a thread."""
        return await self._threads.run(lambda: call(*args, **kwargs))

    async def finish(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await to the end even if the caller is cancelled: a thread cannot be stopped half-way."""
        task = asyncio.ensure_future(coroutine)
        self._jobs.add(task)
        task.add_done_callback(self._job_done)
        return await asyncio.shield(task)

    def _job_done(self, task: asyncio.Task[Any]) -> None:
        self._jobs.discard(task)
        if not task.cancelled():
            task.exception()

    async def _read(self, agent_id: str, read: Callable[[AgentState, BodyReader], T]) -> T:
        def call() -> T:
            with self.folder.reading(agent_id) as (journal, reader):
                return read(journal.state, reader)

        lock = self._readers.setdefault(agent_id, asyncio.Lock())
        while True:
            try:
                async with lock:  # many reads of one agent take one thread
                    return await self.run(call)
            except UnresolvedError as exc:
                await self.resolve(exc)

    # --- writes

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        by_stripe: dict[int, list[int]] = {}
        for i, batch in enumerate(batches):
            by_stripe.setdefault(stripe_of(batch.agent_id), []).append(i)
        outcomes: dict[int, Outcome] = {}

        async def commit_stripe(places: list[int]) -> None:
            mine = [batches[i] for i in places]
            outcomes.update(zip(places, await self._commit_stripe(mine), strict=True))

        await asyncio.gather(*map(commit_stripe, by_stripe.values()))
        return [outcomes[i] for i in range(len(batches))]

    async def _commit_stripe(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        try:
            outcomes = await self.holder.write(batches[0].agent_id, self.folder.commit, batches)
        except StorageError as exc:
            return [exc] * len(batches)
        for i, outcome in enumerate(outcomes):
            if isinstance(outcome, UnresolvedError) and self.resolver is not None:
                try:
                    await self.resolve(outcome)
                except StorageError as exc:
                    return [*outcomes[:i], exc, *outcomes[i + 1 :]]
                return [*outcomes[:i], *await self._commit_stripe(batches[i:])]
        return outcomes

    async def prepare(self, batch: Batch) -> PreparedWrite | Refused:
        """Write *batch* to the journal without applying it; the agent stays locked until the outcome is decided."""
        while True:
            async with AsyncExitStack() as held:
                stripe = await held.enter_async_context(self.holder.hold_for(batch.agent_id))
                try:
                    refusal = await self._threads.run_whole(self.folder.prepare, stripe, batch)
                except UnresolvedError as exc:
                    problem = exc
                else:
                    return refusal or PreparedWrite(partial(self._decide, stripe, batch.agent_id), held.pop_all())
            await self.resolve(problem)

    async def _decide(self, stripe: Stripe, agent_id: str, committed: bool) -> Applied:
        return await self.run(self.folder.decide, stripe, agent_id, committed=committed)

    async def resolve(self, problem: UnresolvedError) -> None:
        """Ask the other store whether a prepared write was committed, and record the answer."""
        if self.resolver is None:
            raise problem
        resolver, agent_id = self.resolver, problem.batch.agent_id

        async def job() -> None:
            async with self.holder.hold_for(agent_id) as stripe:
                batch = await self.run(self.folder.prepared, agent_id)
                if batch is not None:
                    await self._decide(stripe, agent_id, await resolver(batch))

        await self.finish(job())

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        def call(_: Stripe) -> bool:
            return fork(self.folder, agent_id, children, expect, now)

        while True:
            try:
                return await self.holder.write(agent_id, call)
            except UnresolvedError as exc:
                await self.resolve(exc)

    async def rewrite_events(self, agent_id: str, changes: Sequence[EventBody]) -> None:
        def call(_: Stripe) -> None:
            rewrite_events(self.folder, agent_id, changes)

        while True:
            try:
                return await self.holder.write(agent_id, call)
            except UnresolvedError as exc:
                await self.resolve(exc)

    async def fork_beside(self, agent_id: str, child_ids: Sequence[str], commit: Callable[[], Awaitable[bool]]) -> bool:
        """Copy documents for forks that *commit* makes in another store; the agent's own cannot change meanwhile."""
        while True:
            async with self.holder.hold_for(agent_id):
                try:
                    files = await self._threads.run_whole(copy_docs, self.folder, agent_id, child_ids)
                except UnresolvedError as exc:
                    problem = exc
                else:
                    return await self._committed(commit, files)
            await self.resolve(problem)

    async def _committed(self, commit: Callable[[], Awaitable[bool]], files: list[Path]) -> bool:
        committed = False
        try:
            committed = await commit()
            return committed
        except OutcomeUnknownError:
            committed = True  # perhaps: files of forks that do not exist do no harm
            raise
        finally:
            if not committed:
                await self._threads.run_whole(remove, files)

    # --- reads of one agent

    async def summary(self, agent_id: str) -> AgentSummary | None:
        def read(state: AgentState, reader: BodyReader) -> AgentSummary | None:
            summary = state.summary()
            if summary is None or summary.info is None:
                return summary
            return replace(summary, info=replace(summary.info, body=reader.text(summary.info.body)))

        return await self._read(agent_id, read)

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        def read(state: AgentState, reader: BodyReader) -> ListRows:
            rows = state.rows(kind)
            return ListRows(rows.version, [(reader.text(body), created_at) for body, created_at in rows.rows])

        return await self._read(agent_id, read)

    async def rows_at(self, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
        def read(state: AgentState, reader: BodyReader) -> ListRows:
            rows = state.rows_at(kind, start, limit)
            return ListRows(rows.version, [(reader.text(body), created_at) for body, created_at in rows.rows])

        return await self._read(agent_id, read)

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        return await self._read(agent_id, lambda state, _: state.outline(kind, keys))

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        def read(state: AgentState, reader: BodyReader) -> list[Doc]:
            return [replace(doc, body=reader.text(doc.body)) for doc in state.docs_of(kind, key)]

        return await self._read(agent_id, read)

    async def docs_in(self, agent_id: str, span: DocSpan) -> Sequence[Doc]:
        def read(state: AgentState, reader: BodyReader) -> list[Doc]:
            return [replace(doc, body=reader.text(doc.body)) if span.bodies else doc for doc in state.docs_in(span)]

        return await self._read(agent_id, read)

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        def read(state: AgentState, reader: BodyReader) -> list[EventRow]:
            return [replace(row, body=reader.text(row.body)) for row in state.log.read(span)]

        return await self._read(agent_id, read)

    async def last_event(self, agent_id: str) -> EventRow | None:
        def read(state: AgentState, reader: BodyReader) -> EventRow | None:
            row = state.log.last()
            return None if row is None else replace(row, body=reader.text(row.body))

        return await self._read(agent_id, read)

    async def stats(self, agent_id: str) -> AgentStats:
        return await self._read(agent_id, lambda state, _: state.stats())

    # --- reads over all agents

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        def call() -> Found[str]:
            left_out: list[str] = []
            sound = sound_briefs(self.folder, left_out, lambda a: a.startswith(prefix) and (after is None or a > after))
            found = scan.agent_ids((contents for _, _, contents in sound), prefix, after, limit)
            return Found(found, left_out)

        return await self.run(call)

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        return await self.run(checks.stored_ids, self.folder, after, limit)

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        def search(states: Iterator[Searched]) -> list[tuple[str, Body, SessionRow]]:
            return [(row.agent_id, row.info, row) for row in scan.find_sessions(states, query)]

        found = await self._tried(partial(with_texts, self.folder, partial(searched, self.folder, query, search)))
        return Found((replace(row, info=body) for row, body in found), found.left_out)

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        def search(states: Iterator[Searched]) -> list[tuple[str, Body, FoundRow]]:
            return [(row.agent_id, row.body, row) for row in scan.find_rows(states, query)]

        found = await self._tried(partial(with_texts, self.folder, partial(searched, self.folder, query, search)))
        return Found((replace(row, body=body) for row, body in found), found.left_out)

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        def search(states: Iterator[AgentState]) -> list[tuple[str, Body, FoundDoc]]:
            return [(one.agent_id, one.doc.body, one) for one in scan.find_docs(states, query)]

        whole = partial(searched_whole, self.folder, query.agent_id, search)
        found = await self._tried(partial(with_texts, self.folder, whole))
        return Found((replace(one, doc=replace(one.doc, body=body)) for one, body in found), found.left_out)

    async def count(self, query: SessionQuery | RowQuery) -> int:
        def call() -> int:
            return searched(self.folder, query, lambda states: scan.count(states, query))[0]

        return await self._tried(call)

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
        def call() -> GroupRows:
            found, left_out, _ = searched(self.folder, query, lambda states: scan.group(states, query, grouping))
            return Found(found, left_out)

        return await self._tried(call)

    async def _tried(self, call: Callable[[], T]) -> T:
        """Search again while files are rewritten, or have writes that another engine decides about."""
        for _ in range(_MOVES):
            try:
                return await self.run(call)
            except MovedError:
                continue
            except UnresolvedError as exc:
                await self.resolve(exc)
        raise StoreBusyError(f"{self.folder.base}: the files kept changing while they were searched; try again")

    async def totals(self) -> Totals:
        return await self.run(checks.totals, self.folder)

    # --- leases, health, end

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await self.holder.write(agent_id, self.folder.acquire_lease, agent_id, owner, ttl_ms)

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await self.holder.write(agent_id, self.folder.renew_lease, agent_id, fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self.holder.write(agent_id, self.folder.release_lease, agent_id, fence)

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        return [("file_system", lambda: self.run(self.folder.ping))]

    async def inspect(self, agent_id: str | None, progress: Progress = unwatched) -> Sequence[EngineIssue]:
        if agent_id is None:
            return await self.run(checks.leftovers, self.folder)
        return await self.run(checks.inspected, self.folder, agent_id)

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        async with self.copying(target) as copy:
            async with self.holder.frozen() as stripes:
                await self.fix(copy, stripes)
            await self.copy(copy, progress)
        return [target]

    @asynccontextmanager
    async def copying(self, target: Path) -> AsyncIterator[FolderCopy]:
        """A copy in progress; nothing of it stays unless it was finished."""
        copy = FolderCopy(self.folder, target.absolute())
        try:
            await self._threads.run_whole(copy.begin)
            yield copy
            await self._threads.run_whole(lambda: copy.clear(is_kept=True))
        except BaseException:  # also if the copy was complete a moment before
            await self._threads.run_whole(lambda: copy.clear(is_kept=False))
            raise

    async def fix(self, copy: FolderCopy, stripes: list[Stripe]) -> None:
        """Make this the instant of the copy, while all stripes are held."""
        await self._threads.run_whole(copy.fix, stripes)

    async def copy(self, copy: FolderCopy, progress: Progress) -> None:
        """Copy the files that :meth:`fix` noted."""
        steps = copy.copied()
        progress(0, copy.total)
        while (done := await self._threads.run_whole(next, steps, None)) is not None:
            progress(done, copy.total)
        await self._threads.run_whole(copy.finish)

    async def close(self) -> None:
        try:
            while self._jobs:
                await asyncio.gather(*self._jobs, return_exceptions=True)
        finally:
            self._threads.close()
