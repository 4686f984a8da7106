"""An engine over JSON files: nothing to install, readable with any editor, safe against crashes and other processes.

It keeps an index of every agent it has touched in memory, and finds sessions by looking at all of them: right for
thousands of agents, not for millions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from kode_core.batch import (
    Applied,
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
from kode_core.engine import Medium
from kode_core.engines import scan
from kode_core.engines.files import translated
from kode_core.engines.folder import STRIPES, Folder, Stripe, UnresolvedError, stripe_of
from kode_core.engines.journal import Frame, Journal, Reader
from kode_core.engines.prepared import PreparedWrite
from kode_core.engines.state import AgentState
from kode_core.errors import InvalidArgumentError, OutcomeUnknownError, StorageError, StoreBusyError
from kode_core.query import AgentStats, RowQuery, SessionQuery

__all__ = ["JsonFilesEngine", "PreparedWrite"]

T = TypeVar("T")

Resolver = Callable[[Batch], Awaitable[bool]]
"""Tells whether the other store committed its part of a prepared batch."""


class JsonFilesEngine:
    """See :class:`kode_core.engine.Engine`. Blocking calls run in threads, one at a time for each stripe of agents."""

    name = "json"

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.resolver: Resolver | None = None
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="kode-json")
        self._finishers = ThreadPoolExecutor(2, thread_name_prefix="kode-json-end")
        self._locks = [asyncio.Lock() for _ in range(STRIPES)]
        self._jobs: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"{self.name} at {self.folder.base}"

    # --- threads and locks

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Call in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *args)

    async def end(self, call: Callable[..., T], *args: Any) -> T:
        """Call in a thread of those that never wait for a lock: what frees others must not stand behind them."""
        return await asyncio.get_running_loop().run_in_executor(self._finishers, call, *args)

    async def finish(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await to the end even when the caller is cancelled: a thread cannot be stopped half-way."""
        task = asyncio.ensure_future(coroutine)
        self._jobs.add(task)
        task.add_done_callback(self._job_done)
        return await asyncio.shield(task)

    def _job_done(self, task: asyncio.Task[Any]) -> None:
        self._jobs.discard(task)
        if not task.cancelled():
            task.exception()

    async def _exclusive(self, agent_id: str, call: Callable[..., T], *args: Any) -> T:
        async def job() -> T:
            async with self._locks[stripe_of(agent_id)]:
                return await self.run(call, *args)

        return await self.finish(job())

    async def _read(self, agent_id: str, read: Callable[[AgentState, Reader], T]) -> T:
        def call() -> T:
            with self.folder.reading(agent_id) as (journal, reader):
                return read(journal.state, reader)

        while True:
            try:
                return await self._exclusive(agent_id, call)
            except UnresolvedError as exc:
                await self.resolve(exc)

    async def _scan(self, call: Callable[[], T]) -> T:
        async def job() -> T:
            async with AsyncExitStack() as stack:
                for lock in self._locks:
                    await stack.enter_async_context(lock)
                return await self.run(call)

        return await self.finish(job())

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
            outcomes = await self._exclusive(batches[0].agent_id, self.folder.commit, batches)
        except StorageError as exc:
            return [exc] * len(batches)
        for i, outcome in enumerate(outcomes):
            if isinstance(outcome, UnresolvedError) and self.resolver is not None:
                await self.resolve(outcome)
                return [*outcomes[:i], *await self._commit_stripe(batches[i:])]
        return outcomes

    async def prepare(self, batch: Batch) -> PreparedWrite:
        """Write *batch* down without applying it; the agent stays locked until the outcome is said."""
        lock = self._locks[stripe_of(batch.agent_id)]
        while True:
            await lock.acquire()
            held = ExitStack()
            try:
                stripe = await self.run(self._enter, held, batch)
                return PreparedWrite(self, batch, held, stripe, lock)
            except UnresolvedError as exc:
                await self.release(held, lock)
                await self.resolve(exc)
            except BaseException:
                await self.release(held, lock)
                raise

    def _enter(self, held: ExitStack, batch: Batch) -> Stripe:
        stripe = held.enter_context(self.folder.stripe(batch.agent_id))
        journal = self.folder.journal(batch.agent_id)
        with translated(journal.path):
            journal.begin(batch.agent_id, stripe.number + 1)
            if journal.prepared is not None:
                raise UnresolvedError(journal.prepared)
            journal.append(Frame("prepare", batch), durable=self.folder.durable)
        return stripe

    async def release(self, held: ExitStack, lock: asyncio.Lock) -> None:
        """Let others write the agents of the stripe again."""
        try:
            await self.end(held.close)
        finally:
            lock.release()

    async def resolve(self, problem: UnresolvedError) -> None:
        """Ask the other store what became of a prepared write, and note the answer."""
        if self.resolver is None:
            raise problem
        resolver, agent_id = self.resolver, problem.batch.agent_id

        async def job() -> None:
            lock = self._locks[stripe_of(agent_id)]
            await lock.acquire()
            held = ExitStack()
            try:
                stripe = await self.run(held.enter_context, self.folder.stripe(agent_id))
                journal = self.folder.journal(agent_id)
                await self.run(journal.refresh)
                if journal.prepared is not None:
                    committed = await resolver(journal.prepared)
                    await self.end(self.note, stripe, journal, committed)
            finally:
                await self.release(held, lock)

        await self.finish(job())

    def note(self, stripe: Stripe, journal: Journal, committed: bool) -> Applied:
        """Write down what became of the prepared write, and apply it if it was committed."""
        batch = journal.prepared
        assert batch is not None
        base = journal.state
        if batch.delete:
            base = AgentState(batch.agent_id, base.log.next_offset)
        outcome = base.outcome(batch) if committed else None
        with translated(journal.path):
            journal.append(Frame("commit" if committed else "abort", None, outcome), durable=False)
        self.folder.tidy(stripe, journal)
        return outcome or Applied()

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        return await self._exclusive(agent_id, self.folder.fork, agent_id, children, expect, now)

    async def fork_beside(self, agent_id: str, child_ids: Sequence[str], commit: Callable[[], Awaitable[bool]]) -> bool:
        """Copy documents for forks that *commit* makes in another store; the agent's own cannot change meanwhile."""
        while True:
            async with self._locks[stripe_of(agent_id)]:
                held = ExitStack()
                try:
                    await self.run(held.enter_context, self.folder.stripe(agent_id))
                    made = await self.end(self.folder.copy_docs, agent_id, child_ids)
                    return await self._committed(commit, made)
                except UnresolvedError as exc:
                    problem = exc
                finally:
                    await self.end(held.close)
            await self.resolve(problem)

    async def _committed(self, commit: Callable[[], Awaitable[bool]], made: list[Path]) -> bool:
        committed = False
        try:
            committed = await commit()
            return committed
        except OutcomeUnknownError:
            committed = True  # perhaps: files of forks that are not there do no harm
            raise
        finally:
            if not committed:
                for path in made:
                    path.unlink(missing_ok=True)

    # --- reads of one agent

    async def head(self, agent_id: str) -> Head | None:
        def read(state: AgentState, reader: Reader) -> Head | None:
            head = state.head()
            if head is None or head.info is None:
                return head
            return replace(head, info=replace(head.info, body=reader.text(head.info.body)))

        return await self._read(agent_id, read)

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        def read(state: AgentState, reader: Reader) -> ListRows:
            rows = state.rows(kind)
            return ListRows(rows.version, [(reader.text(body), created_at) for body, created_at in rows.rows])

        return await self._read(agent_id, read)

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        return await self._read(agent_id, lambda state, _: state.outline(kind, keys))

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        def read(state: AgentState, reader: Reader) -> list[Doc]:
            return [replace(doc, body=reader.text(doc.body)) for doc in state.docs_of(kind, key)]

        return await self._read(agent_id, read)

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        def read(state: AgentState, reader: Reader) -> list[EventRow]:
            return [replace(row, body=reader.text(row.body)) for row in state.log.read(span)]

        return await self._read(agent_id, read)

    async def last_event(self, agent_id: str) -> EventRow | None:
        def read(state: AgentState, reader: Reader) -> EventRow | None:
            row = state.log.last()
            return None if row is None else replace(row, body=reader.text(row.body))

        return await self._read(agent_id, read)

    async def stats(self, agent_id: str) -> AgentStats:
        return await self._read(agent_id, lambda state, _: state.stats())

    async def inspect(self, agent_id: str | None) -> Sequence[EngineIssue]:
        if agent_id is None:
            return await self._scan(self.folder.leftovers)
        return await self._exclusive(agent_id, self.folder.inspect, agent_id)

    # --- reads over all agents

    def _states(self) -> list[AgentState]:
        states = []
        for journal in self.folder.journals():
            with self.folder.scanning(journal):
                if not self.folder.is_stray(journal):
                    states.append(journal.state)
        return states

    def _sound_journals(self, agent_id: str | None) -> dict[str, Journal]:
        """All journals by agent, or the one that is asked for; a damaged one is an error."""
        journals = self.folder.journals() if agent_id is None else [self.folder.journal(agent_id)]
        sound = {}
        for journal in journals:
            with self.folder.scanning(journal):
                if journal.damage is not None:
                    raise journal.damage
                if not self.folder.is_stray(journal):
                    sound[journal.state.agent_id] = journal
        return sound

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        return await self._scan(lambda: scan.agent_ids(self._states(), prefix, after, limit))

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        def call() -> list[SessionRow]:
            journals = self._sound_journals(query.agent_id)
            rows = scan.find_sessions([journal.state for journal in journals.values()], query)
            texts = self._texts(journals, [(row.agent_id, row.info) for row in rows])
            return [replace(row, info=body) for row, body in zip(rows, texts, strict=True)]

        return await self._retried(call)

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        def call() -> list[FoundRow]:
            journals = self._sound_journals(query.agent_id)
            rows = scan.find_rows([journal.state for journal in journals.values()], query)
            texts = self._texts(journals, [(row.agent_id, row.body) for row in rows])
            return [replace(row, body=body) for row, body in zip(rows, texts, strict=True)]

        return await self._retried(call)

    async def _retried(self, call: Callable[[], T]) -> T:
        for _ in range(10):
            try:
                return await self._scan(call)
            except _MovedError:
                continue
        raise StoreBusyError(f"{self.folder.base}: the files kept changing while they were searched; try again")

    def _texts(self, journals: Mapping[str, Journal], wanted: Sequence[tuple[str, Body]]) -> list[Body]:
        """The bodies with their texts, in order; the files are opened once each."""
        found: dict[int, Body] = {}
        by_agent: dict[str, list[int]] = {}
        for i, (agent_id, _) in enumerate(wanted):
            by_agent.setdefault(agent_id, []).append(i)
        for agent_id, places in by_agent.items():
            journal = journals[agent_id]
            generation = journal.generation
            with self.folder.scanning(journal) as reader:
                if journal.generation != generation:  # another process rewrote the file in between
                    raise _MovedError
                found.update((i, reader.text(wanted[i][1])) for i in places)
        return [found[i] for i in range(len(wanted))]

    async def totals(self) -> Totals:
        return await self._scan(lambda: self.folder.totals(self._states()))

    # --- leases, health, end

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await self._exclusive(agent_id, self.folder.acquire_lease, agent_id, owner, ttl_ms)

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await self._exclusive(agent_id, self.folder.renew_lease, agent_id, fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self._exclusive(agent_id, self.folder.release_lease, agent_id, fence)

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        return [("file_system", lambda: self.run(self.folder.ping))]

    async def backup(self, target: Path) -> Sequence[Path]:
        if target.exists():
            raise InvalidArgumentError(f"{target} exists already; a backup does not overwrite")
        await self._scan(lambda: self.folder.backup(target))
        return [target]

    async def close(self) -> None:
        while self._jobs:
            await asyncio.gather(*self._jobs, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown)
        await asyncio.to_thread(self._finishers.shutdown)


class _MovedError(Exception):
    """A file was rewritten between two looks at it."""
