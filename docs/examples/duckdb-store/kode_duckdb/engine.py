"""The DuckDB engine: the verbs of the core, each a function inside one transaction."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from uuid import uuid4

import duckdb

from kode_core.authoring.modes import PRIVATE, create_file, create_folders
from kode_core.authoring.reading import verb_of
from kode_core.batch import Batch, Child, Fence, Outcome, Totals
from kode_core.codec import Body
from kode_core.engine import Medium, Progress, unwatched
from kode_core.errors import InvalidArgumentError, OutcomeUnknownError, StorageError, StoreUnavailableError
from kode_duckdb import reads, writes
from kode_duckdb.options import DuckdbOptions
from kode_duckdb.schema import Connection, prepare

__all__ = ["DuckdbEngine"]

P = ParamSpec("P")
T = TypeVar("T")

_writers: Final[dict[str, threading.Lock]] = {}
"""By path, the lock of its writers. Only one process at a time can open a DuckDB file, so a process lock is enough."""


def _verb(
    read: Callable[Concatenate[Connection, P], T],
) -> Callable[Concatenate[DuckdbEngine, P], Coroutine[Any, Any, T]]:
    """The verb that does *read* in a transaction."""

    @verb_of(read)
    async def verb(self: DuckdbEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._read(read, *args, **kwargs)

    return verb


class DuckdbEngine:
    """See :class:`kode_core.engine.Engine`.

    Everything runs in one thread, a call at a time. A call that was begun is done to the end, whatever becomes of the
    caller; so a caller that is cancelled leaves no transaction open (OPS-9).
    """

    name = "duckdb"
    finds_any_of = True
    checks_demands = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "kode-duckdb")
        self._writer = _writers.setdefault(str(path), threading.Lock())
        self._db: Connection | None = None
        self._log = Path(f"{path}.wal")
        self._spilled = Path(f"{path}.tmp")
        """The folder for data that does not fit into memory."""

    def __repr__(self) -> str:
        return f"{self.name} at {self._path}"

    @classmethod
    async def open(cls, options: DuckdbOptions) -> DuckdbEngine:
        """Open the database, and create missing tables."""
        engine = cls(Path(options.db_path).expanduser().absolute())
        try:
            await engine._run(engine._connect)
            await engine._write(prepare, str(engine._path))
        except BaseException:
            await asyncio.shield(engine.close())
            raise
        return engine

    def _connect(self) -> None:
        with _translated(self._path):
            create_folders(self._path.parent)
            if not self._path.exists():
                with suppress(FileExistsError), _alone(self._path) as new:
                    duckdb.connect(new).close()
            create_folders(self._spilled)
            self._make_log()
            self._db = duckdb.connect(self._path)

    def _make_log(self) -> None:
        """Create the log if it is missing: DuckDB removes it at times, and would create one that others can read."""
        with suppress(FileExistsError):
            os.close(create_file(self._log, os.O_WRONLY))

    def _connection(self) -> Connection:
        assert self._db is not None, "opened by open()"
        return self._db

    # --- transactions

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **kwargs))

    async def _read(self, call: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        def read() -> T:
            with self._transaction() as db:
                return call(db, *args, **kwargs)

        return await self._run(read)

    async def _write(self, call: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        def write() -> T:
            with self._writing() as db:
                return call(db, *args, **kwargs)

        return await self._run(write)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._writer, _translated(self._path):
            self._make_log()
            with self._transaction() as db:
                yield db

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Run the block in one transaction: it sees one instant, and takes effect whole or not at all."""
        with _translated(self._path):
            db = self._connection()
            db.begin()
            try:
                yield db
                _commit(db, self._path)
            except BaseException:
                with suppress(duckdb.Error):  # a commit that failed has ended the transaction already
                    db.rollback()
                raise

    # --- writes

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await self._run(self._commit, batches)

    def _commit(self, batches: Sequence[Batch]) -> list[Outcome]:
        """Write all in one transaction, with one sync of the device; if one batch fails, write each in its own."""
        try:
            with self._writing() as db:
                return [writes.apply(db, batch) for batch in batches]
        except StorageError as exc:
            if len(batches) == 1 or isinstance(exc, OutcomeUnknownError):
                return [exc] * len(batches)
        return [outcome for batch in batches for outcome in self._commit([batch])]

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        return await self._write(writes.fork, agent_id, children, expect, now)

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await self._write(writes.acquire_lease, agent_id, owner, ttl_ms)

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await self._write(writes.renew_lease, agent_id, fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self._write(writes.release_lease, agent_id, fence)

    # --- reads

    summary = _verb(reads.summary)
    rows = _verb(reads.rows)
    rows_at = _verb(reads.rows_at)
    outline = _verb(reads.outline)
    docs = _verb(reads.docs)
    events = _verb(reads.events)
    last_event = _verb(reads.last_event)
    agent_ids = _verb(reads.agent_ids)
    stored_ids = _verb(reads.stored_ids)
    find_sessions = _verb(reads.find_sessions)
    find_rows = _verb(reads.find_rows)
    stats = _verb(reads.stats)
    inspect = _verb(reads.inspect)

    async def totals(self) -> Totals:
        return await self._read(reads.totals, self._size())

    def _size(self) -> int:
        return sum(file.stat().st_size for file in (self._path, self._log) if file.exists())

    # --- operations

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        return [("database", self._ping)]

    async def _ping(self) -> None:
        await self._write(lambda db: db.execute("UPDATE kode_meta SET value = value WHERE key = 'last_number'"))

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        if target.exists():
            raise InvalidArgumentError(f"{target} exists already; a backup does not overwrite")
        await self._run(self._copy_to, target)
        return [target]

    def _copy_to(self, target: Path) -> None:
        """Copy one instant of the database to a file that gets its name only when it is complete."""
        with _translated(target):
            create_folders(target.parent)
            db = self._connection()
            (own,) = db.execute("SELECT current_database()").fetchone() or ("",)
            with _alone(target) as part:
                copy, file = f"copy_{uuid4().hex}", str(part).replace("'", "''")
                db.execute(f"ATTACH '{file}' AS {copy}")
                try:
                    db.execute(f"COPY FROM DATABASE {_quoted(own)} TO {copy}")
                finally:
                    db.execute(f"DETACH {copy}")

    async def close(self) -> None:
        await self._run(self._disconnect)
        self._thread.shutdown(wait=False)

    def _disconnect(self) -> None:
        if self._db is not None:
            with _translated(self._path):
                self._db.close()
                with suppress(OSError):  # another store of this process may use it
                    self._spilled.rmdir()


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Yield the path of a new file in a private folder; at the end the file gets the name *path*.

    DuckDB creates files with the permissions of the umask, and cannot open an empty file (OPS-18).

    Raises:
        FileExistsError: another process was faster.
    """
    folder = Path(mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new = folder / path.name
        yield new
        new.chmod(PRIVATE)
        os.link(new, path)
    finally:
        rmtree(folder)


_UNAVAILABLE: Final = (
    duckdb.ConnectionException,
    duckdb.FatalException,
    duckdb.IOException,
    duckdb.OutOfMemoryException,
    OSError,
)


def _commit(db: Connection, path: Path) -> None:
    try:
        db.commit()
    except duckdb.FatalException as exc:  # the only error after which the outcome of a write is unknown
        raise OutcomeUnknownError(f"{path}: DuckDB gave up while it wrote ({exc})") from exc


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn the driver's errors into errors of the core, by class: their texts change with the version."""
    try:
        yield
    except _UNAVAILABLE as exc:
        raise StoreUnavailableError(
            f"{path}: DuckDB cannot read or write the file, or another process has it ({exc})"
        ) from exc
    except duckdb.Error as exc:
        raise StorageError(f"{path}: DuckDB failed ({exc})") from exc


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
