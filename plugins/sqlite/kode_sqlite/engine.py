"""The SQLite engine: one writer with group commit, and several readers."""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import Context, copy_context
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from msgspec.structs import replace

from kode_core.authoring.closing import close_all
from kode_core.authoring.modes import mode_bits
from kode_core.authoring.opening import without_deadline
from kode_core.authoring.reading import verb_of
from kode_core.batch import Batch, Child, EngineIssue, Fence, Outcome
from kode_core.codec import Body
from kode_core.engine import Medium, Progress, unwatched
from kode_core.errors import (
    InvalidArgumentError,
    KodeError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from kode_core.rewriting import EventBody
from kode_sqlite import doc_terms, groups, overview, queries, reads, texts
from kode_sqlite.connection import MEMORY, Connection, WriteGuard, file_identity, open_connection, readably
from kode_sqlite.errors import DRIVER_ERRORS, to_kode_error
from kode_sqlite.migrations import Terms, migrate, see_tables
from kode_sqlite.options import SqliteOptions
from kode_sqlite.place import absolute_path, make_file
from kode_sqlite.upkeep import Tell, copy, do_long, listening
from kode_sqlite.writes import Transaction

__all__ = ["SqliteEngine"]

P = ParamSpec("P")
T = TypeVar("T")

_JOBS_AT_ONCE = 1000
_PAUSE_S = 0.02


class _Job(NamedTuple):
    """Work for the next transaction: a call, or batches to commit."""

    call: Callable[[Transaction], Any] | None
    batches: Sequence[Batch]
    done: asyncio.Future[Any]
    context: Context


def _verb(
    read: Callable[Concatenate[sqlite3.Connection, P], T], *, scans: bool = False
) -> Callable[Concatenate[SqliteEngine, P], Coroutine[Any, Any, T]]:
    """The verb that does *read* on a connection for readers; one that *scans* may go through a whole table."""

    @verb_of(read)
    async def verb(self: SqliteEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._read(lambda db: read(db, *args, **kwargs), scans=scans)

    return verb


class SqliteEngine:
    """See :class:`kode_core.engine.Engine`.

    Writes gather while a transaction is running, and all of them are part of the next one: an acknowledged write is
    committed, and one sync of the device serves many::

        callers    w1 ┐   w2 w3 w4 ┐           w5 ┐
        writer        [ BEGIN w1 COMMIT ]  [ BEGIN w2 w3 w4 COMMIT ]  [ BEGIN w5 COMMIT ]

    Each write is a part with a savepoint of its own, so that one that fails leaves the others alone.
    """

    name = "sqlite"
    keeps_documents = True
    checks_demands = True
    drops_events = rewrites_events = True
    finds_any_of = True
    finds_docs = finds_text = True
    finds_within = True
    can_count = can_group = True

    def __init__(self, options: SqliteOptions, writer: Connection) -> None:
        self._options = options
        self._writer = writer
        self._guard = WriteGuard(options)
        self._jobs: list[_Job] = []
        self._has_texts_to_index = self._is_closing = False
        self._working: asyncio.Task[None] | None = None
        self._idle_readers: list[Connection] = []
        self._readers = asyncio.Semaphore(options.readers)
        self._searchers = asyncio.Semaphore(max(options.readers - 1, 1))  # slow searches leave one reader to loads
        self._abandoned: set[asyncio.Task[None]] = set()
        self._file = file_identity(options.db_path)

    def __repr__(self) -> str:
        return f"{self.name} at {self._options.db_path}"

    @classmethod
    async def open(cls, options: SqliteOptions) -> SqliteEngine:
        """Open the database, create missing tables, and bring the tables to this version."""
        if options.db_path != MEMORY:  # readers are opened later, perhaps from another working directory
            options = replace(options, db_path=absolute_path(options.db_path))
            await asyncio.to_thread(make_file, options)
        writer = await open_connection(options)
        engine = cls(options, writer)
        try:
            with without_deadline():
                await do_long(writer, lambda db, call, tell: call(db, tell), engine._migrate, unwatched)
                if options.text_index:
                    await engine._read(lambda db: texts.see_whole(db, options.db_path))
                    if await engine.texts_waiting() is None:
                        await engine.change_texts(texts.add)
        except BaseException:
            try:
                await asyncio.shield(writer.close())
            finally:
                engine._guard.close()
            raise
        return engine

    def _migrate(self, db: sqlite3.Connection, tell: Tell) -> None:
        path = self._options.db_path
        terms = Terms(self._guard.held, self._options.busy_timeout_ms / 1000, lambda: tell(0, None))
        listening(db, tell, lambda db: migrate(db, path, terms))
        texts.see_format(db, path)

    # --- writing

    async def _write(self, call: Callable[[Transaction], T]) -> T:
        """Do *call* in the next transaction."""
        result: T = await self._done(call, ())
        return result

    async def _done(self, call: Callable[[Transaction], Any] | None, batches: Sequence[Batch]) -> Any:
        loop = asyncio.get_running_loop()
        job = _Job(call, batches, loop.create_future(), copy_context())
        self._jobs.append(job)
        if self._working is None:
            self._working = loop.create_task(self._work())
        return await job.done

    async def _work(self) -> None:
        try:
            while self._jobs or (self._has_texts_to_index and not self._is_closing):
                if not self._jobs:
                    await asyncio.sleep(_PAUSE_S)  # other processes write meanwhile
                jobs, self._jobs = self._jobs[:_JOBS_AT_ONCE], self._jobs[_JOBS_AT_ONCE:]
                await self._settle(jobs)  # new jobs gather meanwhile
        finally:
            self._working = None

    async def _settle(self, jobs: list[_Job]) -> None:
        # The thread goes on when this task is cancelled, so the outcome is unknown then.
        results: list[Any] = [OutcomeUnknownError("the event loop was shut down while this was written")] * len(jobs)
        try:
            # Driver instrumentations see the transaction in the context of the first job: this task outlives its first.
            context = jobs[0].context if jobs else copy_context()  # without a job, texts are indexed
            results = await self._writer.run(lambda db: context.run(self._transact, db, jobs))
        except Exception as exc:  # noqa: BLE001 - whatever it is, the waiting callers get it
            results = [exc] * len(jobs)
            self._has_texts_to_index = False  # until the next write, which may have more luck
        finally:
            for job, result in zip(jobs, results, strict=True):
                if job.done.done():  # the event loop is being shut down
                    continue
                if isinstance(result, Exception):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)

    def _transact(self, db: sqlite3.Connection, jobs: list[_Job]) -> list[Any]:
        """Run one transaction for all jobs. A job that fails does not affect the others."""
        with self._guard.held():
            self._see_file()
            with _spilling(db) if _may_spill(jobs) else nullcontext():
                db.execute("BEGIN IMMEDIATE")  # a deferred transaction fails without waiting when it turns into a write
                try:
                    transaction = Transaction(db, self._options.db_path)
                    results = self._do_all(db, transaction, jobs)
                    self._has_texts_to_index = texts.index_some(db)
                    db.execute("COMMIT")  # no result is handed out before this has returned
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
            return results

    def _see_file(self) -> None:
        """Raise if the file was removed or replaced: writes to it would be lost, and reads would return old rows."""
        if self._file is not None and file_identity(self._options.db_path) != self._file:
            raise StoreUnavailableError(
                f"{self._options.db_path} was removed or replaced while it was open; close the store and open it again"
            )

    def _do_all(self, db: sqlite3.Connection, transaction: Transaction, jobs: list[_Job]) -> list[Any]:
        """The result of each job. Consecutive commits are merged: few statements then write all their events."""
        if len(jobs) == 1 and jobs[0].call is not None:
            return [jobs[0].call(transaction)]
        results: list[Any] = []
        for is_call, group in itertools.groupby(jobs, lambda job: job.call is not None):
            some = list(group)
            if is_call:
                results.extend(self._part(db, transaction, job) for job in some)
                continue
            outcomes = iter(transaction.commit([b for job in some for b in job.batches], alone=len(jobs) == 1))
            results.extend(list(itertools.islice(outcomes, len(job.batches))) for job in some)
        return results

    def _part(self, db: sqlite3.Connection, transaction: Transaction, job: _Job) -> Any:
        assert job.call is not None
        try:
            return transaction.part(job.call)
        except Exception as exc:
            if not db.in_transaction:  # SQLite rolled the whole transaction back, as it does when the disk is full
                raise
            return to_kode_error(exc, self._options.db_path) if isinstance(exc, DRIVER_ERRORS) else exc

    async def change_texts(self, change: Callable[[sqlite3.Connection, str], None]) -> None:
        """Change the index of texts; messages that it lacks are then put into it, some after each transaction."""
        await self._write(lambda transaction: change(transaction.db, self._options.db_path))

    async def texts_waiting(self) -> int | None:
        """How many messages the index of texts lacks; None without one."""
        return await self._read(texts.noted)

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        try:
            outcomes: list[Outcome] = await self._done(None, batches)
        except KodeError as exc:
            return [exc] * len(batches)
        return outcomes

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        return await self._write(lambda transaction: transaction.fork(agent_id, children, expect, now))

    async def rewrite_events(self, agent_id: str, changes: Sequence[EventBody]) -> None:
        await self._write(lambda transaction: transaction.rewrite_events(agent_id, changes))

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await self._write(lambda transaction: transaction.leases.acquire(agent_id, owner, ttl_ms))

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await self._write(lambda transaction: transaction.leases.renew(agent_id, fence, ttl_ms))

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self._write(lambda transaction: transaction.leases.release(agent_id, fence))

    # --- reading

    summary = _verb(reads.summary)
    rows = _verb(reads.rows)
    rows_at = _verb(reads.rows_at)
    outline = _verb(reads.outline)
    docs = _verb(reads.docs)
    docs_in = _verb(reads.docs_in)
    events = _verb(reads.events)
    last_event = _verb(reads.last_event)
    agent_ids = _verb(reads.agent_ids, scans=True)
    find_sessions = _verb(reads.find_sessions, scans=True)
    find_rows = _verb(reads.find_rows, scans=True)
    find_docs = _verb(doc_terms.find_docs, scans=True)
    count = _verb(queries.count, scans=True)
    group = _verb(groups.group, scans=True)
    stats = _verb(reads.stats, scans=True)
    stored_ids = _verb(overview.stored_ids, scans=True)
    totals = _verb(overview.totals, scans=True)

    async def _read(self, call: Callable[[sqlite3.Connection], T], *, scans: bool = False) -> T:
        if self._options.db_path == MEMORY:
            return await self._writer.run(self._look, call)
        gates = (self._searchers, self._readers) if scans else (self._readers,)
        reader = await self._taken(gates)
        try:
            found: T = await reader.read(self._look, call)
        except asyncio.CancelledError:
            task = asyncio.get_running_loop().create_task(self._abandon(reader, gates))
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
            raise
        except BaseException:
            self._give_back(reader, gates)
            raise
        self._give_back(reader, gates)
        return found

    async def _taken(self, gates: Sequence[asyncio.Semaphore]) -> Connection:
        """A connection for reads that no one else uses until :meth:`_give_back`."""
        passed: list[asyncio.Semaphore] = []
        try:
            for gate in gates:
                await gate.acquire()
                passed.append(gate)
            return self._idle_readers.pop() if self._idle_readers else await self._new_reader()
        except BaseException:
            for gate in passed:
                gate.release()
            raise

    def _give_back(self, reader: Connection, gates: Sequence[asyncio.Semaphore]) -> None:
        self._idle_readers.append(reader)
        for gate in reversed(gates):
            gate.release()

    async def _abandon(self, reader: Connection, gates: Sequence[asyncio.Semaphore]) -> None:
        """End an abandoned read, and use its connection again."""
        try:
            await reader.abandon()
        finally:
            self._give_back(reader, gates)

    def _look(self, db: sqlite3.Connection, call: Callable[..., T], *args: Any) -> T:
        """Run *call*, which only reads, in the thread of *db*."""
        self._see_file()
        return readably(db, call, *args)

    async def _new_reader(self) -> Connection:
        return await open_connection(self._options, "rw")

    # --- operations

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        return [("database", self._ping)]

    async def _ping(self) -> None:
        """Make a write that changes nothing, and look for all tables."""
        await self._write(lambda transaction: None)
        await self._read(self._see_tables)

    def _see_tables(self, db: sqlite3.Connection) -> None:
        see_tables(db, self._options.db_path)
        texts.see_whole(db, self._options.db_path)

    async def inspect(self, agent_id: str | None, progress: Progress = unwatched) -> Sequence[EngineIssue]:
        if agent_id is not None:
            return await self._read(lambda db: overview.inspect(db, agent_id), scans=True)
        return await self._do_long(overview.quick_check, progress)

    async def backup(self, target: Path, progress: Progress = unwatched) -> list[Path]:
        """Copy one instant of the database to a new file while it is in use."""
        if os.path.lexists(target):
            raise InvalidArgumentError(f"{target} exists already; a backup does not overwrite")
        created: list[Path] = []
        try:
            mode = mode_bits(self._options.file_mode)
            await self._do_long(copy, progress, target, mode, self._options.db_path != MEMORY, created)
        except BaseException:  # it may have been complete a moment before
            for path in created:
                path.unlink(missing_ok=True)
            raise
        return created

    async def _do_long(self, call: Callable[..., T], progress: Progress, *args: Any) -> T:
        """Run a long call on a separate connection; a database in memory has only one."""
        if self._options.db_path == MEMORY:
            return await do_long(self._writer, self._look, call, progress, *args)
        connection = await self._new_reader()
        try:
            return await do_long(connection, self._look, call, progress, *args)
        finally:
            await asyncio.shield(connection.close())

    async def close(self) -> None:
        self._is_closing = True
        try:
            fold = partial(self._writer.run, self._close_last)
            await close_all(self._quiet, self._close_readers, fold, self._writer.close)
        finally:
            self._guard.close()

    async def _quiet(self) -> None:
        if self._working is not None:
            await asyncio.shield(self._working)
        while self._abandoned:
            await asyncio.wait(self._abandoned)

    async def _close_readers(self) -> None:
        await close_all(*(reader.close for reader in self._idle_readers))
        self._idle_readers.clear()

    def _close_last(self, db: sqlite3.Connection) -> None:
        """Close the last connection, which moves the log into the database and thus writes."""
        with self._guard.held():
            db.close()


def _may_spill(jobs: Sequence[_Job]) -> bool:
    """True if the transaction may be large, and goes as a whole if it fails."""
    if len(jobs) != 1:
        return False
    (first,) = jobs
    return first.call is not None or (len(first.batches) == 1 and first.batches[0].delete)


@contextmanager
def _spilling(db: sqlite3.Connection) -> Iterator[None]:
    """Let SQLite write pages of the transaction to the log before its commit, where they are too many for the cache.

    A transaction with savepoints must not: when a page is written twice, and the transaction is then rolled back to a
    savepoint before it, SQLite commits frames without a checksum. After a crash they, and all commits behind them, are
    lost.
    """
    db.execute("PRAGMA cache_spill = ON")
    try:
        yield
    finally:
        db.execute("PRAGMA cache_spill = OFF")
