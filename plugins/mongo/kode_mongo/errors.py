"""Translates MongoDB's errors into this library's."""

from __future__ import annotations

from typing import Any, Final

from bson.errors import BSONError
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
)
from pymongo.errors import (
    ConfigurationError as DriverConfigurationError,
)

from kode_core.errors import (
    ConfigurationError,
    KodeError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    StorageError,
    StoreBusyError,
    StoreFullError,
    StoreReadOnlyError,
    StoreTimeoutError,
    StoreUnavailableError,
)

__all__ = ["DRIVER_ERRORS", "is_duplicate", "is_in_doubt", "is_lost", "is_refused", "to_kode_error"]

DRIVER_ERRORS: Final = (PyMongoError, BSONError, OSError, TimeoutError)
"""Every class of exceptions that the driver raises."""

_DUPLICATE: Final = 11000
_NUMBERED: Final = 20
_Kind = tuple[type[KodeError], str]
# By code (https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml).
_BY_CODE: Final[dict[int, _Kind]] = {
    13: (StoreReadOnlyError, "the user lacks a right; give it readWrite on the database"),
    18: (StoreUnavailableError, "the server refused the user or the password; check both, and auth_source"),
    26: (StoreUnavailableError, "a collection is missing; run what 'kode schema mongo --print' prints"),
    50: (StoreTimeoutError, "the server did not end the command in time"),
    73: (ConfigurationError, "the server refuses the database's or a collection's name"),
    79: (StorageError, "the server does not know this write concern"),
    85: (StorageError, "an index is there with other options; see 'kode schema mongo --print'"),
    86: (StorageError, "an index is there with other options; see 'kode schema mongo --print'"),
    112: (StoreBusyError, "other writers were in the way again and again"),
    8000: (StoreUnavailableError, "the server refused the user or the password; check both"),
    14031: (StoreFullError, "the server's disk is full; make room and try again"),
    39: (StoreFullError, "the server's disk is full; make room and try again"),
    10334: (PayloadTooLargeError, "a record is larger than MongoDB can take"),
    17419: (PayloadTooLargeError, "a record is larger than MongoDB can take"),
}
_BROKEN: Final = frozenset({6, 7, 89, 262, 9001})
"""Network failures behind the server and timeouts: the outcome is unknown."""
_PASSING: Final = _BROKEN | {43, 134, 175, 211, 11601}
"""Failures of reads that may pass at once: a cursor or a plan is gone, or a server that was just started does not know
the majority or the key of the cluster's times yet."""


def _codes(exc: BaseException) -> list[int]:
    """The error's code, or the codes of a bulk write, most specific first."""
    if isinstance(exc, BulkWriteError):
        codes = [error["code"] for error in exc.details.get("writeErrors", ())]
        return sorted(codes, key=lambda code: (code == _DUPLICATE, code not in _BROKEN))
    code: Any = getattr(exc, "code", None)
    return [] if code is None else [code]


def is_duplicate(exc: BaseException) -> bool:
    """Whether the only failure is that documents with these ids exist, and nothing is in doubt."""
    if isinstance(exc, BulkWriteError):
        codes = _codes(exc)
        return bool(codes) and set(codes) == {_DUPLICATE} and not exc.details.get("writeConcernErrors")
    return isinstance(exc, DuplicateKeyError)


def is_refused(exc: BaseException) -> bool:
    """Whether a standalone server refused a write because it had a number: only members of a set accept numbers.

    PyMongo 4.20 numbers a write whose connection broke while it was made, before it knows the kind of server.
    """
    return isinstance(exc, OperationFailure) and exc.code == _NUMBERED


def is_lost(exc: BaseException) -> bool:
    """Whether the connection broke, so that the same call may succeed on another one."""
    is_broken = isinstance(exc, (AutoReconnect, OSError)) and not isinstance(exc, ServerSelectionTimeoutError)
    return is_broken or is_refused(exc)


def is_in_doubt(exc: BaseException) -> bool:
    """Whether a write that failed with *exc* may have been applied, or may be rolled back.

    An attempt that found no free connection may have been the driver's second one, after the first was applied.
    """
    if isinstance(exc, ServerSelectionTimeoutError):
        return False
    if isinstance(exc, BulkWriteError):
        return bool(exc.details.get("writeConcernErrors")) or not _BROKEN.isdisjoint(_codes(exc))
    if isinstance(exc, (WriteConcernError, ConnectionFailure, OSError, TimeoutError)):
        return True
    is_late = isinstance(exc, PyMongoError) and exc.timeout
    return (
        is_late
        or not _BROKEN.isdisjoint(_codes(exc))
        or (isinstance(exc, OperationFailure) and exc.has_error_label("RetryableWriteError"))
    )


def to_kode_error(exc: BaseException, place: str, *, writes: bool) -> KodeError:
    """This library's error for *exc*, which was raised by a call that *writes* or only reads."""
    if isinstance(exc, KodeError):
        return exc
    if writes and is_in_doubt(exc):
        return OutcomeUnknownError(
            f"{place}: the connection broke or no answer came in time ({_words(exc)}); "
            "it may or may not have been written: read before you repeat it"
        )
    codes = _codes(exc)
    if codes and codes[0] in _PASSING and not writes:
        return StoreUnavailableError(
            f"{place}: the server could not read for the moment (code {codes[0]}: {_words(exc)})"
        )
    if codes:
        kind, remedy = _BY_CODE.get(codes[0], (StorageError, "MongoDB failed"))
        kind = StorageError if kind is StoreReadOnlyError and not writes else kind
        return kind(f"{place}: {remedy} (code {codes[0]}: {_words(exc)})")
    if isinstance(exc, WaitQueueTimeoutError):
        return StoreBusyError(f"{place}: all connections were in use; raise max")
    if isinstance(exc, DocumentTooLarge):
        return PayloadTooLargeError(f"{place}: a record is larger than MongoDB can take")
    if isinstance(exc, DriverConfigurationError):
        return ConfigurationError(f"{place}: the connection's options do not fit together: {_words(exc)}")
    if isinstance(exc, (ConnectionFailure, OSError, TimeoutError)) or (isinstance(exc, PyMongoError) and exc.timeout):
        return StoreUnavailableError(
            f"{place}: cannot be reached; is it running, is the address right, and does the set have a primary? "
            f"({_words(exc)})"
        )
    return StorageError(f"{place}: the driver failed: {type(exc).__name__}")


def _words(exc: BaseException) -> str:
    """The message of the server or the driver, without quoted data."""
    if isinstance(exc, BulkWriteError):
        return "a bulk of writes"
    if isinstance(exc, OperationFailure):
        said = (exc.details or {}).get("codeName") or type(exc).__name__
        return str(said)
    return str(exc).split(", Timeout:")[0].split(" (configured timeouts")[0][:200] or type(exc).__name__
