"""Databases that this process may read but not write: on a read-only medium, or of another user.

While a log adds to the file, SQLite reads both with the shared memory of the writers. Without a log there is no shared
memory, and none can be created: the file is then taken for immutable, which is correct until it is written. So each
read checks the file before and after; if it changed in between, the read is repeated with another connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from kode_core.batch import Batch
from kode_core.errors import SchemaVersionError, StorageError, StoreBusyError, StoreReadOnlyError
from kode_sqlite.connection import Connection, StillConnection, open_connection, see_encoding
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.looking import has_log, stillness
from kode_sqlite.migrations import see_tables, version_of
from kode_sqlite.options import SqliteOptions
from kode_sqlite.schema import SCHEMA_VERSION
from kode_sqlite.writes import Transaction

__all__ = ["ReadOnlyEngine", "may_only_read"]

T = TypeVar("T")

_log: Final = logging.getLogger("kode_sqlite")

_TRIES: Final = 20
_LOOKS: Final = 10
"""How many times an unchanged file is opened before it counts as one that cannot be opened."""
_PAUSE_S: Final = 0.01


class _ChangedError(StoreBusyError):
    """The file was written while it was read as immutable."""


def may_only_read(path: str) -> bool:
    """True if this process may read the database at *path*, but cannot write it."""
    path = os.path.realpath(path)
    if not os.path.isfile(path) or not _may(path, os.R_OK):  # noqa: PTH113 - raises nothing
        return False
    if not _may(path, os.W_OK):
        return True
    log_is_there = all(_may(f"{path}{end}", os.W_OK) for end in ("-wal", "-shm"))
    return not log_is_there and not _may(os.path.dirname(path), os.W_OK)  # noqa: PTH120


def _may(path: str, how: int) -> bool:
    return os.access(path, how, effective_ids=os.access in os.supports_effective_ids)


class ReadOnlyEngine(SqliteEngine):
    """The engine of a database that can only be read; every write is refused."""

    @classmethod
    async def open(cls, options: SqliteOptions) -> ReadOnlyEngine:
        """Check that the database can be read; nothing else is done to it."""
        first = await _reader(options)
        engine = cls(options, first)
        try:
            await first.run(engine._look, _see_store, options.db_path)
        except BaseException:
            await engine.close()
            raise
        _log.warning("%s can only be read by this process: writes will be refused", options.db_path)
        return engine

    async def _done(self, call: Callable[[Transaction], Any] | None, batches: Sequence[Batch]) -> Any:
        raise StoreReadOnlyError(
            f"{self._options.db_path}: the database cannot be written; check the file's and folder's mode, and whether "
            "the medium is read-only"
        )

    async def _read(self, call: Callable[[sqlite3.Connection], T], *, scans: bool = False) -> T:
        for _ in range(_TRIES):
            try:
                return await super()._read(call, scans=scans)
            except _ChangedError:
                stale = [reader for reader in self._idle_readers if reader.is_still]
                self._idle_readers[:] = [reader for reader in self._idle_readers if not reader.is_still]
                for reader in stale:
                    await reader.close()
        return await super()._read(call, scans=scans)

    def _look(self, db: sqlite3.Connection, call: Callable[..., T], *args: Any) -> T:
        if not isinstance(db, StillConnection):
            return super()._look(db, call, *args)
        self._see_still(db)
        try:
            return super()._look(db, call, *args)
        finally:
            self._see_still(db)  # it precedes an error, which may be caused by the change

    def _see_still(self, db: StillConnection) -> None:
        self._see_file()
        if stillness(db.path) != db.still:
            raise _ChangedError(f"{db.path} was written by another process while it was read; try again")

    async def _new_reader(self) -> Connection:
        return await _reader(self._options)

    def _close_last(self, db: sqlite3.Connection) -> None:
        db.close()


async def _reader(options: SqliteOptions) -> Connection:
    """A connection to the present file; if a file or log appears or disappears meanwhile, it is checked again."""
    path, failed = os.path.realpath(options.db_path), 0
    while True:
        still = stillness(path)
        try:
            return await _opened(options, path, still)
        except StorageError:
            failed += 1
            if failed >= _TRIES or (stillness(path) == still and failed >= _LOOKS):
                raise
            await asyncio.sleep(_PAUSE_S)


async def _opened(options: SqliteOptions, path: str, still: tuple[int, ...] | None) -> Connection:
    if still is None and has_log(path) and not os.path.exists(f"{path}-shm"):  # noqa: PTH110
        raise StoreReadOnlyError(
            f"{options.db_path}: its log, {path}-wal, has writes that must be brought into the database: open it once "
            "where it may be written, or copy both files to such a place"
        )
    return await open_connection(options, "ro", still=still)


def _see_store(db: sqlite3.Connection, path: str) -> None:
    see_encoding(db, path)
    version = version_of(db, path)
    if not version:
        raise StoreReadOnlyError(f"{path} has no tables of a store, and this process may not make them")
    if version != SCHEMA_VERSION:
        todo = "open it once where it may be written" if version < SCHEMA_VERSION else "upgrade kode-sqlite"
        raise SchemaVersionError(f"{path} has schema {version}, and this kode-sqlite reads {SCHEMA_VERSION}: {todo}")
    see_tables(db, path)
