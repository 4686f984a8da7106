"""Translate SQLite's errors to this library's."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kode_core.errors import (
    CorruptRecordError,
    InvalidArgumentError,
    KodeError,
    PayloadTooLargeError,
    StorageError,
    StoreBusyError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)

__all__ = ["DRIVER_ERRORS", "to_kode_error", "translated"]

# By primary result code, the low byte of the extended one (https://sqlite.org/rescode.html).
_BY_CODE: Final[dict[int, tuple[type[KodeError], str]]] = {
    sqlite3.SQLITE_BUSY: (StoreBusyError, "another process kept the database locked; raise busy_timeout_ms"),
    sqlite3.SQLITE_LOCKED: (StoreBusyError, "another connection kept a table locked"),
    sqlite3.SQLITE_FULL: (StoreFullError, "the disk or its quota is full; make room and try again"),
    sqlite3.SQLITE_READONLY: (StoreReadOnlyError, "the database cannot be written; check the file's and folder's mode"),
    sqlite3.SQLITE_PERM: (StoreReadOnlyError, "access is denied; check the file's and folder's mode"),
    sqlite3.SQLITE_CANTOPEN: (StoreUnavailableError, "the database cannot be opened; check the path and its mode"),
    sqlite3.SQLITE_IOERR: (StoreUnavailableError, "the system could not read or write the file"),
    sqlite3.SQLITE_NOMEM: (StoreUnavailableError, "out of memory"),
    sqlite3.SQLITE_TOOBIG: (PayloadTooLargeError, "a record is larger than the 1 GB that SQLite holds"),
}
_PRIMARY: Final = {  # extended codes that say more than their low byte
    sqlite3.SQLITE_IOERR_SHMSIZE: sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_NOMEM: sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_IOERR_DATA: sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_IOERR_CORRUPTFS: sqlite3.SQLITE_CORRUPT,
}
_CORRUPT: Final = {
    sqlite3.SQLITE_CORRUPT: "the database file is damaged; put back a backup, or try 'sqlite3 FILE .recover'",
    sqlite3.SQLITE_NOTADB: "this file is no SQLite database; give another db_path",
}


_OF_TEXTS: Final = re.compile(r"\bkode_texts?$")


DRIVER_ERRORS: Final = (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeError, MemoryError)
"""The exceptions that the driver raises."""


def to_kode_error(exc: BaseException, path: str) -> KodeError:
    """The error of this library for an error of the driver, whose message follows the remedy."""
    if isinstance(exc, UnicodeDecodeError):  # from a name in the schema
        return CorruptRecordError(f"database {path}", "a text in it is no UTF-8")
    if isinstance(exc, UnicodeError):  # it quotes the text
        return InvalidArgumentError(f"{path}: a text holds what SQLite cannot keep, such as a lone surrogate")
    if isinstance(exc, OverflowError):
        return PayloadTooLargeError(f"{path}: a value is larger than SQLite holds ({exc})")
    if isinstance(exc, MemoryError):
        return StoreUnavailableError(f"{path}: out of memory")
    if str(exc).startswith("Could not decode to UTF-8"):  # the text that follows is the stored one
        return CorruptRecordError(f"database {path}", "a text in it is no UTF-8")
    if str(exc).startswith("no such table: "):
        is_of_texts = _OF_TEXTS.search(str(exc)) is not None
        todo = "run kode text-index drop, or rebuild" if is_of_texts else "put back a backup"
        return StoreUnavailableError(f"{path}: a table of kode is missing: {todo} ({exc})")
    extended = getattr(exc, "sqlite_errorcode", 0)
    code = _PRIMARY.get(extended, extended & 0xFF)
    if code in _CORRUPT:
        return CorruptRecordError(f"database {path}", f"{_CORRUPT[code]} ({exc})")
    kind, remedy = _BY_CODE.get(code, (StorageError, "SQLite failed"))
    return kind(f"{path}: {remedy} ({exc})")


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn the driver's errors inside into errors of this library."""
    try:
        yield
    except DRIVER_ERRORS as exc:
        raise to_kode_error(exc, path) from exc
