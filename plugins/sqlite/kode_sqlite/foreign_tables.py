"""Read the tables of another program's database, without changing a byte of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from kode_core.errors import ConfigurationError, StorageError
from kode_sqlite.inuse import unused
from kode_sqlite.uris import uri_of

__all__ = ["open_tables", "untouched"]

_SIDES: Final = ("-wal", "-journal")


class _Tables:
    """The tables, read in one transaction, in threads."""

    def __init__(self, db: sqlite3.Connection, path: str) -> None:
        self._db = db
        self._path = path
        self._lock = threading.Lock()

    async def columns(self, table: str) -> frozenset[str]:
        found = await self.fetch("SELECT name FROM pragma_table_info($1)", table)
        return frozenset(str(row[0]) for row in found)

    async def fetch(self, statement: str, *args: Any) -> Sequence[Sequence[Any]]:
        return await asyncio.to_thread(self._fetched, statement, args)

    def close(self) -> None:
        """Close the connection; a query that was given up ends first."""
        with self._lock:
            self._db.close()

    def _fetched(self, statement: str, args: Sequence[Any]) -> list[tuple[Any, ...]]:
        given = {str(i): _bound(value) for i, value in enumerate(args, 1)}
        try:
            with self._lock:
                return self._db.execute(statement, given).fetchall()
        except (sqlite3.Error, OverflowError) as exc:
            raise StorageError(f"{self._path} cannot be read: {exc}") from exc


def _bound(value: object) -> object:
    """A text that was not UTF-8 is bound as its bytes."""
    if isinstance(value, str) and not value.isascii():
        raw = value.encode("utf-8", "surrogateescape")
        return value if raw == value.encode("utf-8", "replace") else raw
    return value


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


@asynccontextmanager
async def open_tables(path: str) -> AsyncIterator[_Tables]:
    """The tables of the database at *path*, as :func:`untouched` opens it.

    Raises:
        ConfigurationError: there is no database, or a store of kode_core is in the same file.
        StorageError: it cannot be read.
    """
    async with untouched(path) as uri:
        tables = _Tables(await asyncio.to_thread(_connected, path, uri), path)
        try:
            yield tables
        finally:
            await asyncio.shield(asyncio.to_thread(tables.close))


@asynccontextmanager
async def untouched(path: str) -> AsyncIterator[str]:
    """The URI by which the database at *path* is read while not a byte of it changes.

    A database with a log or a journal, as a crash leaves it, is copied to a temporary folder: in the copy, SQLite
    applies the log, or rolls the journal back.

    Raises:
        ConfigurationError: there is no file, or a store of this process has it open.
        StorageError: it cannot be copied, or another program has changed it meanwhile.
    """
    if not await asyncio.to_thread(os.path.isfile, path):
        raise ConfigurationError(f"there is no file {path}")
    with unused(path) as is_unused:
        if not is_unused:
            raise ConfigurationError(f"{path} is open as a store in this process; import from a copy of it")
    real = os.path.realpath(path)
    before = await asyncio.to_thread(_signature, real)
    if before[1:] != _ALONE:
        with tempfile.TemporaryDirectory(prefix="kode-import-") as folder:
            copy = await asyncio.to_thread(_copied, real, folder)
            await asyncio.to_thread(_check_unchanged, path, before)
            yield uri_of(copy, "mode=rw")
        return
    yield uri_of(real, "mode=ro&immutable=1")
    await asyncio.to_thread(_check_unchanged, path, before)


_Signature: TypeAlias = tuple[tuple[int, ...] | None, ...]
_ALONE: Final = (None,) * len(_SIDES)


def _signature(real: str) -> _Signature:
    """A value that changes with the file, its log and its journal; None for one that does not exist."""
    found: list[tuple[int, ...] | None] = []
    for side in ("", *_SIDES):
        try:
            stat = os.stat(f"{real}{side}")  # noqa: PTH116 - a path that is no Path
            found.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)


def _check_unchanged(path: str, before: _Signature) -> None:
    if _signature(os.path.realpath(path)) != before:
        raise StorageError(f"{path} was changed while it was read: stop the program that writes to it, and begin again")


def _connected(path: str, uri: str) -> sqlite3.Connection:
    db = None
    try:
        db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        db.text_factory = _text
        db.execute("BEGIN")
        is_store = db.execute("SELECT 1 FROM sqlite_master WHERE lower(name) = 'kode_meta'").fetchone() is not None
    except sqlite3.Error as exc:
        if db is not None:
            db.close()
        raise ConfigurationError(f"{path} cannot be read as a database of SQLite: {exc}") from exc
    if is_store:
        db.close()
        raise ConfigurationError(f"{path} has a store of kode_core in the same file; import from a copy without it")
    return db


def _copied(path: str, folder: str) -> str:
    """A copy of the database in *folder*, with its log and its journal.

    Raises:
        StorageError: it cannot be copied.
    """
    copy = str(Path(folder) / "copy.db")
    try:
        for side in ("", *_SIDES):
            if os.path.exists(f"{path}{side}"):  # noqa: PTH110 - raises nothing
                shutil.copyfile(f"{path}{side}", f"{copy}{side}")
    except OSError as exc:
        raise StorageError(f"{path} cannot be copied to a temporary folder: {exc.strerror}") from exc
    return copy
