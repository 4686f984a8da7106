"""Long work on a separate connection, so that no reader and no writer waits for it (OPS-16)."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from kode_core.authoring.files import system_error
from kode_core.authoring.modes import create_file
from kode_core.engine import Progress
from kode_core.errors import InvalidArgumentError, KodeError
from kode_sqlite.connection import Connection
from kode_sqlite.errors import to_kode_error

__all__ = ["Tell", "copy", "do_long", "listening"]

T = TypeVar("T")

Tell = Callable[[int, int | None], None]
"""Called in the thread with the progress of the work; it raises if the work should end."""

_PAGES_AT_ONCE: Final = 1_000
_TELL_EVERY_S: Final = 0.05
_OPS_BETWEEN: Final = 100_000


class _StoppedError(Exception):
    """The caller of the work is gone, or its progress function raised."""


class _Work:
    """The signals between the event loop and the thread."""

    def __init__(self, progress: Progress) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._told = 0.0

    def tell(self, done: int, total: int | None) -> None:
        """Report progress from the thread."""
        if self.stop.is_set():
            raise _StoppedError
        now = time.monotonic()
        if now - self._told > _TELL_EVERY_S or done == total:
            self._told = now
            self._loop.call_soon_threadsafe(self._tell, done, total)

    def _tell(self, done: int, total: int | None) -> None:
        if self.stop.is_set():
            return
        try:
            self._progress(done, total)
        except BaseException as exc:  # noqa: BLE001 - raised where the work is awaited
            self.error = exc
            self.stop.set()


async def do_long(
    connection: Connection, look: Callable[..., T], call: Callable[..., T], progress: Progress, *args: Any
) -> T:
    """Run *look* with *call*, a Tell and *args* in the connection's thread.

    A cancelled caller waits until the thread has stopped.
    """
    work = _Work(progress)
    job = asyncio.ensure_future(connection.run(look, call, work.tell, *args))
    try:
        result = await asyncio.shield(job)
    except asyncio.CancelledError:
        work.stop.set()
        await asyncio.wait([job])
        if not job.cancelled():
            job.exception()
        raise
    except _StoppedError:
        assert work.error is not None
        raise work.error from None
    if work.error is not None:
        raise work.error
    return result


def listening(db: sqlite3.Connection, tell: Tell, call: Callable[[sqlite3.Connection], T]) -> T:
    """Run a query that may take long so that it can be ended."""
    stopped: list[BaseException] = []

    def step() -> int:
        try:
            tell(0, None)
        except _StoppedError as exc:
            stopped.append(exc)
            return 1
        return 0

    db.set_progress_handler(step, _OPS_BETWEEN)
    try:
        return call(db)
    except sqlite3.OperationalError:
        if stopped:
            raise stopped[0] from None
        raise
    finally:
        db.set_progress_handler(None, 0)


# --- copying ----------------------------------------------------------------------------------------------------------


def copy(db: sqlite3.Connection, tell: Tell, target: Path, mode: int, in_transaction: bool, made: list[Path]) -> None:
    """Copy one instant of the database to a new file, which is added to *made* when it has its name.

    *in_transaction* keeps that instant while others write: without it, each of their writes would restart the copy. A
    database in memory has no other connection that could write.
    """
    part = target.with_name(f".kode-{secrets.token_hex(8)}.part")
    try:
        with _translated(target):
            os.close(create_file(part, os.O_RDWR, mode))
            _fill(db, tell, part, in_transaction=in_transaction)
            _publish(part, target)
            made.append(target)
            _sync(target.parent)
    finally:
        for leftover in (part, part.with_name(f"{part.name}-journal"), part.with_name(f"{part.name}-wal")):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)


def _fill(db: sqlite3.Connection, tell: Tell, part: Path, *, in_transaction: bool) -> None:
    with closing(sqlite3.connect(part, isolation_level=None)) as copied:
        copied.execute("PRAGMA synchronous = OFF")  # the file is synced once, when it is complete
        if in_transaction:
            db.execute("BEGIN")
        try:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            db.backup(copied, pages=_PAGES_AT_ONCE, progress=lambda _, left, total: tell(total - left, total))
        finally:
            if in_transaction:
                db.execute("COMMIT")
    _sync(part)


def _publish(part: Path, target: Path) -> None:
    """Give the copy its name, unless another process has taken it meanwhile."""
    try:
        try:
            os.link(part, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: the name is taken first, and the copy then replaces it
            os.close(create_file(target, os.O_RDWR))
            part.replace(target)
    except FileExistsError:
        raise InvalidArgumentError(f"{target} exists already; a backup does not overwrite") from None


def _sync(path: Path) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _translated(target: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the system inside into errors of this library about the target."""
    try:
        yield
    except sqlite3.Error as exc:
        raise to_kode_error(exc, str(target)) from exc
    except KodeError:
        raise
    except OSError as exc:
        raise _of_system(exc, target) from exc


def _of_system(exc: OSError, target: Path) -> KodeError:
    error = system_error(exc, f"{target} cannot be written")
    if exc.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR, errno.ENOENT, errno.EILSEQ):
        return InvalidArgumentError(str(error))
    return error
