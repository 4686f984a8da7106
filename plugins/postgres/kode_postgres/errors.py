"""Translate PostgreSQL's errors to this library's."""

from __future__ import annotations

import re
from typing import Final

import asyncpg

from kode_core.errors import (
    ConfigurationError,
    CorruptRecordError,
    KodeError,
    PayloadTooLargeError,
    StorageError,
    StoreBusyError,
    StoreFullError,
    StoreReadOnlyError,
    StoreTimeoutError,
    StoreUnavailableError,
)

__all__ = [
    "NO_NAMES",
    "is_conflict",
    "is_locked_out",
    "is_lost",
    "is_overdue",
    "is_read_only",
    "is_starting",
    "to_kode_error",
]

_Kind = tuple[type[KodeError], str]

NO_NAMES: Final = (
    "a pooler in front of the server gives each transaction another session, and does not keep prepared statements "
    "apart: make the pool with statement_cache_size=0, or set max_prepared_statements of PgBouncer"
)
# By SQLSTATE, or its first two characters (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_BY_CODE: Final[dict[str, _Kind]] = {
    "08": (StoreUnavailableError, "the connection failed"),
    "0A000": (StorageError, "the server cannot do this; kode-postgres needs PostgreSQL 13 or later"),
    "22003": (CorruptRecordError, "a number in its head is larger than any can be"),
    "22": (StorageError, "the server refused a value"),
    "23505": (CorruptRecordError, "a row stands where its head says that there is none; nothing was written"),
    "25P03": (StoreTimeoutError, "the server ended the transaction; see its idle_in_transaction_session_timeout"),
    "25P04": (StoreTimeoutError, "the server ended the transaction; see its transaction_timeout"),
    "25006": (StoreReadOnlyError, "the server is read-only, perhaps a standby; connect to the primary"),
    "26": (ConfigurationError, NO_NAMES),
    "28": (StoreUnavailableError, "the server refused the user or the password; check both, and pg_hba.conf"),
    "3D000": (StoreUnavailableError, "there is no such database; make it with createdb"),
    "3F000": (StoreUnavailableError, "there is no such schema; make it, or leave create on"),
    "40": (StoreBusyError, "other writers were in the way again and again"),
    "42501": (StoreReadOnlyError, "the user lacks a right; see GRANT, or 'kode schema postgres --print'"),
    "42P05": (ConfigurationError, NO_NAMES),
    "42P01": (
        StoreUnavailableError,
        "a table of kode is missing: if it was dropped, put back a backup; if none was made, open the store with create"
        " on, or run what 'kode schema postgres --print' prints",
    ),
    "42P07": (
        StoreUnavailableError,
        "tables of these names exist, and no kode_meta tells their version: put back a backup, or choose another schema"
        " or table_prefix",
    ),
    "42": (StorageError, "the tables are not those of this version; see 'kode schema postgres --print'"),
    "53100": (StoreFullError, "the server's disk is full; make room and try again"),
    "53200": (StoreUnavailableError, "the server is out of memory"),
    "53300": (StoreUnavailableError, "the server has too many connections; lower max, or raise its max_connections"),
    "53": (StoreUnavailableError, "the server is short of something"),
    "54": (PayloadTooLargeError, "a record is larger than PostgreSQL can take"),
    "55P03": (StoreBusyError, "another session kept the agent locked"),
    "57014": (StoreTimeoutError, "the server gave up the statement; see its statement_timeout"),
    "57": (StoreUnavailableError, "the server is starting up or shutting down"),
    "58": (StoreUnavailableError, "the server's system failed"),
    "XX001": (CorruptRecordError, "a table is damaged; put back a backup"),
    "XX002": (CorruptRecordError, "an index is damaged; run REINDEX"),
}
_STARTING: Final = ("57P03", "53300")
_TOO_LONG: Final = "25P04"
_ENDED: Final = ("25P03", _TOO_LONG, "57P01", "57P02", "57P05", "08")
_CONFLICT: Final = ("40001", "40P01")


_OF_TEXTS: Final = re.compile(r"text(s|_index)\W")


def _code(exc: BaseException) -> str:
    return getattr(exc, "sqlstate", None) or ""


def _told(exc: BaseException) -> BaseException:
    """The server's own error, if it told why it closed the connection."""
    said = exc.__cause__
    return (
        said
        if isinstance(exc, asyncpg.ConnectionDoesNotExistError) and isinstance(said, asyncpg.PostgresError)
        else exc
    )


def is_lost(exc: BaseException) -> bool:
    """True if the connection is gone or silent, so that the outcome of a statement is unknown."""
    if isinstance(exc, asyncpg.PostgresError):
        return _code(exc).startswith(_ENDED)
    if isinstance(exc, asyncpg.DataError):
        return False
    return isinstance(exc, (OSError, TimeoutError, EOFError, asyncpg.InterfaceError, asyncpg.InternalClientError))


def is_overdue(exc: BaseException | None) -> bool:
    """True if a statement that ended its connection took too long, for the store or for the server."""
    return isinstance(exc, TimeoutError) or (exc is not None and _code(_told(exc)) == _TOO_LONG)


def is_starting(exc: BaseException) -> bool:
    """True if the server takes no connections now but may soon."""
    if isinstance(exc, asyncpg.PostgresError):
        return _code(exc).startswith((*_STARTING, *_ENDED))
    return isinstance(exc, (ConnectionError, FileNotFoundError, EOFError))


def is_conflict(exc: BaseException | None) -> bool:
    """True if other sessions were in the way: nothing was written, and the same call may succeed at once."""
    return isinstance(exc, asyncpg.PostgresError) and _code(exc) in _CONFLICT


def is_locked_out(exc: BaseException | None) -> bool:
    """True if another session kept a row locked for longer than the statement would wait."""
    return isinstance(exc, asyncpg.LockNotAvailableError)


def is_read_only(exc: BaseException) -> bool:
    """True if the session takes no writes, as on a standby."""
    return isinstance(exc, asyncpg.ReadOnlySQLTransactionError)


def to_kode_error(exc: BaseException, place: str) -> KodeError:
    """The error of this library for *exc*; it keeps the server's message, but not the details that quote data."""
    if isinstance(exc, KodeError):
        return exc
    exc = _told(exc)
    if isinstance(exc, asyncpg.PostgresError):
        code = _code(exc)
        kind, remedy = _BY_CODE.get(code) or _BY_CODE.get(code[:2]) or (StorageError, "PostgreSQL failed")
        if code == "42P01" and _OF_TEXTS.search(_words(exc)):
            remedy = "a table of the index of texts is missing: let its owner run kode text-index drop, or rebuild"
        text = f"{remedy} ({code or 'no code'}: {_words(exc)})"
        return CorruptRecordError(place, text) if kind is CorruptRecordError else kind(f"{place}: {text}")
    if isinstance(exc, TimeoutError):
        return StoreUnavailableError(f"{place}: no answer in time; check the address, the network and the load")
    if isinstance(exc, asyncpg.ClientConfigurationError):
        problem = str(exc).partition(", got ")[0]  # the given value is not repeated
        return ConfigurationError(f"{place}: the connection's options do not fit together: {problem}")
    if isinstance(exc, (OSError, EOFError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        said = exc.strerror if isinstance(exc, OSError) else None
        words = said or (str(exc.args[0]) if exc.args else type(exc).__name__)
        return StoreUnavailableError(f"{place}: cannot be reached; is it running, and is the address right? ({words})")
    return StorageError(f"{place}: the driver failed: {type(exc).__name__}")


def _words(exc: asyncpg.PostgresError) -> str:
    """The message alone, because details quote values."""
    return str(getattr(exc, "message", None) or type(exc).__name__).splitlines()[0][:300]
