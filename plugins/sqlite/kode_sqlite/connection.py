"""Connections: each an aiosqlite connection whose thread runs whole functions."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from errno import EROFS
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import aiosqlite

from kode_core.authoring.files import make_file, open_or_make, take_lock
from kode_core.authoring.modes import create_file
from kode_core.errors import ConfigurationError, StoreBusyError, StoreReadOnlyError, StoreUnavailableError
from kode_sqlite.errors import translated
from kode_sqlite.inuse import OpenFile, note_closed, note_open
from kode_sqlite.options import SqliteOptions
from kode_sqlite.uris import uri_of

__all__ = [
    "MEMORY",
    "MINIMUM",
    "Connection",
    "StillConnection",
    "WriteGuard",
    "file_identity",
    "needs_guard",
    "open_connection",
    "readably",
    "see_encoding",
    "see_version",
]

T = TypeVar("T")

MEMORY: Final = ":memory:"
MINIMUM: Final = (3, 35, 0)
"""The oldest supported SQLite: the first with RETURNING."""
_TRIES: Final = 100


class _Work:
    """A call for the thread, in the context of its caller: spans that are opened in it are children of the caller's.

    aiosqlite logs its calls, and records of agents must not appear in a log.

    Attributes:
        has_ended: set by the thread.
    """

    __slots__ = ("_args", "_call", "_context", "has_ended")

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self._call = call
        self._args = args
        self._context = copy_context()
        self.has_ended = False

    def __call__(self) -> Any:
        try:
            return self._context.run(self._call, *self._args)
        finally:
            self.has_ended = True

    def __repr__(self) -> str:
        return getattr(self._call, "__qualname__", type(self._call).__name__)


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that runs a function with the sqlite3 connection in its thread.

    A transaction is one function and one hop to the thread; a cancelled caller leaves no transaction open, because a
    function that has begun runs to its end. The thread does not keep the process alive.
    """

    _file: OpenFile | None

    def __init__(self, connector: Callable[[], sqlite3.Connection], path: str, *, is_still: bool = False) -> None:
        context = copy_context()
        self._made: sqlite3.Connection | None = None

        def noted() -> sqlite3.Connection:
            file = note_open(path)
            try:
                db = context.run(connector)
            except BaseException:
                note_closed(file)
                raise
            self._file, self._made = file, db
            return db

        super().__init__(noted, iter_chunk_size=64)
        self._thread.daemon = True
        self.is_still = is_still
        self._path = path
        self._file = None
        self._reading: _Work | None = None

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Call with the sqlite3 connection as the first argument; errors of SQLite are translated."""
        with translated(self._path):
            result: T = await self._execute(_Work(call, self._conn, *args))  # type: ignore[no-untyped-call]
            return result

    async def read(self, call: Callable[..., T], *args: Any) -> T:
        """Call as :meth:`run` does. The connection must not be used until the call has ended, or :meth:`abandon` has.

        Raises:
            asyncio.CancelledError: the function may still be running.
        """
        with translated(self._path):
            if not self._running:
                raise ValueError("Connection closed")
            self._reading = work = _Work(call, self._conn, *args)
            future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            self._tx.put_nowait((future, work))
            return await future

    async def abandon(self) -> None:
        """End an abandoned read, and wait until it has ended; no other call is ever interrupted.

        An interruption ends only the current statement, so several statements may need several interruptions.
        """
        pause = 0.001
        while self._reading is not None and not self._reading.has_ended:
            self._conn.interrupt()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.02)
        await self.run(_leave_transaction)

    async def close(self) -> None:
        """Close the connection and end its thread, in one hop; a second call does nothing.

        The thread goes on without a caller who is cancelled, and notes itself that the file is closed: until then a
        look at the file would drop the locks of the connection.
        """
        if self._connection is None or not self._running:
            return
        self._tx.put_nowait((None, self._close_in_thread))
        ended = self.stop()
        assert ended is not None
        await ended

    def _close_in_thread(self) -> None:
        try:
            if self._connection is not None:
                self._connection.close()
        finally:
            self._connection = None
            self._forget()

    def discard(self) -> None:
        """Wait for the thread, which ends by itself after a failed connect, and close what a given up one has made."""
        self._thread.join()
        if self._made is not None:
            self._made.close()
        self._forget()

    def _forget(self) -> None:
        self._made = None
        file, self._file = self._file, None
        if file is not None:
            note_closed(file)


def _leave_transaction(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")


def readably(db: sqlite3.Connection, call: Callable[..., T], *args: Any) -> T:
    """Read; a damaged text that is not UTF-8 is returned as another text, which its digest reveals (OPS-4)."""
    try:
        return call(db, *args)
    except sqlite3.OperationalError as exc:
        if not str(exc).startswith("Could not decode to UTF-8"):
            raise
    db.text_factory = lambda raw: raw.decode(errors="replace")
    try:
        return call(db, *args)
    finally:
        db.text_factory = str


def file_identity(path: str) -> tuple[int, int] | None:
    """The identity of the file that *path* leads to; None for a database in memory and for a missing file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - called before each call of the engine, and a Path takes longer than the stat
    except OSError:
        return None
    return None if path == MEMORY else (found.st_dev, found.st_ino)


class StillConnection(sqlite3.Connection):
    """A connection to a file that is taken for immutable: it has no locks, and is correct while the file is *still*."""

    path: str
    still: tuple[int, ...]


async def open_connection(
    options: SqliteOptions, how: Literal["rwc", "rw", "ro"] = "rwc", *, still: tuple[int, ...] | None = None
) -> Connection:
    """Open a writing or a reading connection with the settings that the engine relies on.

    A reader (``rw``) does not create a file that was removed. A connection that is opened as ``ro`` does not create
    shared memory either, which writers could not use; with *still*, it takes the file for immutable.
    """
    path = options.db_path
    given_up = threading.Event()

    def connect() -> sqlite3.Connection:
        more = "&immutable=1" if still is not None else "&readonly_shm=1" if how == "ro" else ""
        db = sqlite3.connect(
            path if path == MEMORY else uri_of(path, f"mode={how}{more}"),
            timeout=0,
            uri=path != MEMORY,
            isolation_level=None,
            cached_statements=256,
            check_same_thread=False,
            factory=sqlite3.Connection if still is None else StillConnection,
        )
        if still is not None and isinstance(db, StillConnection):
            db.path, db.still = path, still
        try:
            _patiently(lambda: _set_up(db, options, how), options.busy_timeout_ms / 1000, given_up)
            db.execute(f"PRAGMA busy_timeout = {options.busy_timeout_ms:d}")
        except BaseException:
            db.close()
            raise
        return db

    with translated(path):
        connection = Connection(connect, path, is_still=still is not None)
        try:
            await connection
        except BaseException:
            given_up.set()
            await asyncio.shield(asyncio.to_thread(connection.discard))
            raise
    return connection


def see_version(version: tuple[int, int, int]) -> None:
    """Refuse an older SQLite, which would fail in the middle of a call: it does not know RETURNING."""
    if version < MINIMUM:
        raise ConfigurationError(
            f"this Python has SQLite {'.'.join(map(str, version))}, and kode-sqlite needs {'.'.join(map(str, MINIMUM))}"
            " or newer: use a newer Python, or put a newer SQLite library in the place of the system's"
        )


def see_encoding(db: sqlite3.Connection, path: str) -> None:
    """Refuse UTF-16, in which SQLite changes texts and orders them otherwise (VAL-1, LIFE-2)."""
    (encoding,) = db.execute("PRAGMA encoding").fetchone()
    if encoding != "UTF-8":
        raise ConfigurationError(
            f"{path}: the database's encoding is {encoding}, which does not keep every text; give another db_path, or "
            f"make a copy in UTF-8: sqlite3 {path} .dump | sqlite3 NEW"
        )


def _set_up(db: sqlite3.Connection, options: SqliteOptions, how: str) -> None:
    db.execute("PRAGMA cache_size = -16000")
    db.execute("PRAGMA temp_store = MEMORY")
    if how != "rwc":
        db.execute("PRAGMA query_only = ON")
        return
    see_encoding(db, options.db_path)
    if options.db_path != MEMORY:
        _use_wal(db, options.db_path)
    db.execute(f"PRAGMA synchronous = {'FULL' if options.durability == 'full' else 'NORMAL'}")
    db.execute("PRAGMA fullfsync = ON")  # on macOS an ordinary sync leaves the data in the device's cache
    db.execute("PRAGMA cache_spill = OFF")  # but in transactions without savepoints
    db.execute("PRAGMA wal_autocheckpoint = 4000")
    db.execute("PRAGMA journal_size_limit = 67108864")


def _use_wal(db: sqlite3.Connection, path: str) -> None:
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreUnavailableError(
            f"{path}: SQLite cannot keep a write-ahead log here (mode {mode}); put the database on a local disk"
        )


def _patiently(call: Callable[[], None], seconds: float, given_up: threading.Event) -> None:
    """Call until no other connection has the database locked.

    A caller that gives up cannot end SQLite's own wait, and SQLite does not wait at all if twenty first starts switch
    to the write-ahead log.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline or given_up.wait(0.01):
                raise


# --- The write guard --------------------------------------------------------------------------------------------------


def needs_guard(version: tuple[int, int, int]) -> bool:
    """True if this SQLite can lose a commit when two connections write and reset the log at once.

    Fixed in 3.51.3 and, for older lines, in 3.50.7 and 3.44.6 (https://sqlite.org/wal.html, the WAL-reset bug).
    """
    if version >= (3, 51, 3) or version < (3, 7, 0):
        return False
    return not ((3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0))


class WriteGuard:
    """Lets one process at a time write, checkpoint and close, by a lock file next to the database.

    It is used only if the SQLite of this Python needs it, and works only against processes that use it too. The lock
    file is next to the file that a symbolic link leads to, as the log is.
    """

    def __init__(self, options: SqliteOptions) -> None:
        self._database = Path(options.db_path)
        self._path = Path(f"{os.path.realpath(options.db_path)}-kode-lock")
        self._wait_s = options.busy_timeout_ms / 1000
        self._fd: int | None = None
        wanted = options.db_path != MEMORY and needs_guard(sqlite3.sqlite_version_info)
        self.is_active = wanted and sys.platform != "win32"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock.

        Raises:
            StoreBusyError: another process does not release the lock.
            StoreReadOnlyError: this process may not create or open the lock file.
        """
        if not self.is_active or sys.platform == "win32":
            yield
            return
        import fcntl

        if self._fd is None:
            self._fd = self._opened()
        deadline = time.monotonic() + self._wait_s
        pause = 0.0002
        while not self._try(self._fd):
            if time.monotonic() > deadline:
                raise StoreBusyError(
                    f"{self._path}: another process has been writing all the time; raise busy_timeout_ms"
                )
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _try(self, fd: int) -> bool:
        try:
            return take_lock(fd)
        except OSError as exc:
            raise StoreUnavailableError(f"{self._path}: {exc.strerror}") from exc

    def _opened(self) -> int:
        """A descriptor of the lock file, which gets the mode and the owner of the database, as the log does."""
        try:
            return open_or_make(self._path, os.O_RDONLY, self._made)  # a lock does not need the right to write
        except OSError as exc:
            is_denied = isinstance(exc, PermissionError) or exc.errno == EROFS
            raise (StoreReadOnlyError if is_denied else StoreUnavailableError)(
                f"{self._path}: the lock file cannot be opened ({exc.strerror}); a process that writes needs the right"
                " to write the database and its folder, and to read this file"
            ) from exc

    def _made(self) -> int:
        try:
            found = self._database.stat()
        except FileNotFoundError:
            return create_file(self._path, os.O_RDWR)
        return make_file(self._path, os.O_RDWR, found.st_mode & 0o666, found)

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
