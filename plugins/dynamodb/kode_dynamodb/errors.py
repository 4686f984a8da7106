"""Translates DynamoDB's errors into this library's."""

from __future__ import annotations

import socket
from typing import Any, Final

from aiohttp import ClientConnectorError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import (
    ConnectionError as DriverConnectionError,
)

from kode_core.errors import (
    ConfigurationError,
    KodeError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    StorageError,
    StoreBusyError,
    StoreReadOnlyError,
    StoreUnavailableError,
)

__all__ = [
    "DRIVER_ERRORS",
    "code_of",
    "is_in_doubt",
    "is_missing",
    "is_refused",
    "is_throttled",
    "is_transient",
    "to_kode_error",
]

DRIVER_ERRORS: Final = (ClientError, BotoCoreError, HTTPClientError, OSError, TimeoutError)
"""Every class of exceptions that the driver raises."""

_NO_CONNECTION: Final = (ClientConnectorError, socket.gaierror, ConnectionRefusedError)
_THROTTLED: Final = (
    "ProvisionedThroughputExceededException",
    "ThrottlingException",
    "RequestLimitExceeded",
    "LimitExceededException",
    "TransactionInProgressException",
    "TransactionConflictException",
    "ReplicatedWriteConflictException",
)
_PASSING: Final = frozenset({"None", "TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"})
"""Reasons for which the service cancels a transaction that may succeed soon."""
_FAILED: Final = ("InternalServerError", "InternalFailure", "ServiceUnavailable", "500", "502", "503", "504")
_FULL: Final = "one agent's items take more than 10 GB"
_Kind = tuple[type[KodeError], str]
_BY_CODE: Final[dict[str, _Kind]] = {
    "ResourceNotFoundException": (StoreUnavailableError, "the table is missing; see 'kode schema dynamodb --print'"),
    "AccessDeniedException": (StoreReadOnlyError, "the role lacks a right; see the guide for those that it needs"),
    "UnrecognizedClientException": (StoreUnavailableError, "AWS refused the access key"),
    "InvalidSignatureException": (StoreUnavailableError, "AWS refused the secret key"),
    "ExpiredTokenException": (StoreUnavailableError, "the session token has expired"),
    "MissingAuthenticationTokenException": (StoreUnavailableError, "the request had no credentials"),
    "ItemCollectionSizeLimitExceededException": (PayloadTooLargeError, _FULL),
    "ItemCollectionSizeLimitExceeded": (PayloadTooLargeError, _FULL),  # its name in a transaction
}
_TOO_LARGE: Final = ("size has exceeded", "size exceeded", "exceeds the maximum allowed size", "exceeded the maximum")


def code_of(exc: BaseException) -> str:
    """The service's code for the error; empty without one."""
    return str(exc.response["Error"].get("Code", "")) if isinstance(exc, ClientError) else ""


def _reasons(exc: BaseException) -> list[str]:
    """The reason for the refusal of each part of a transaction."""
    response: Any = exc.response if isinstance(exc, ClientError) else {}
    return [str(reason.get("Code") or "None") for reason in response.get("CancellationReasons", ())]


def is_refused(exc: BaseException) -> bool:
    """Whether a condition did not hold, so that nothing was written."""
    code = code_of(exc)
    return code == "ConditionalCheckFailedException" or (
        code == "TransactionCanceledException" and "ConditionalCheckFailed" in _reasons(exc)
    )


def is_missing(exc: BaseException) -> bool:
    """Whether the table does not exist."""
    return code_of(exc) == "ResourceNotFoundException"


def is_throttled(exc: BaseException) -> bool:
    """Whether the service did nothing because of throttling or a conflict with another writer."""
    if code_of(exc) == "TransactionCanceledException":
        return set(_reasons(exc)) <= _PASSING
    return code_of(exc) in _THROTTLED


def is_transient(exc: BaseException) -> bool:
    """Whether a retry may succeed soon; the outcome of this attempt may be unknown."""
    return code_of(exc) in _FAILED or not isinstance(exc, (ClientError, *_CONFIGURATION))


def is_in_doubt(exc: BaseException) -> bool:
    """Whether a write that failed with *exc* may have been applied."""
    return is_transient(exc) and not _is_not_sent(exc)


def _is_not_sent(exc: BaseException) -> bool:
    """Whether no connection was made, so that nothing was sent.

    aiobotocore raises EndpointConnectionError for a connection that was reset later, too; only its cause differs.
    """
    if isinstance(exc, EndpointConnectionError):
        return isinstance(getattr(exc, "kwargs", {}).get("error"), _NO_CONNECTION)
    return isinstance(exc, ConnectTimeoutError)


_CONFIGURATION: Final = (NoCredentialsError, NoRegionError, PartialCredentialsError, ProfileNotFound)


def to_kode_error(exc: BaseException, place: str, *, writes: bool) -> KodeError:
    """This library's error for *exc*, which was raised by a call that *writes* or only reads."""
    if isinstance(exc, KodeError):
        return exc
    if isinstance(exc, _CONFIGURATION):
        return ConfigurationError(f"{place}: {str(exc).rstrip('.')}; see the options region, profile and access_key_id")
    if writes and is_in_doubt(exc):
        return OutcomeUnknownError(
            f"{place}: the connection broke or no answer came in time ({_words(exc)}); "
            "it may or may not have been written: read before you repeat it"
        )
    if is_throttled(exc):
        return StoreBusyError(f"{place}: the service kept throttling, or others were in the way ({_words(exc)})")
    code, reasons = code_of(exc), _reasons(exc)
    for known in (code, *reasons):
        if known in _BY_CODE:
            kind, remedy = _BY_CODE[known]
            return kind(f"{place}: {remedy} ({known})")
    is_invalid = code == "ValidationException" or "ValidationError" in reasons
    if is_invalid and any(words in str(exc).lower() for words in _TOO_LARGE):
        return PayloadTooLargeError(f"{place}: a record is larger than DynamoDB can take")
    if code and code not in _FAILED:
        return StorageError(f"{place}: DynamoDB refused the call ({code})")
    if is_transient(exc) or isinstance(exc, DriverConnectionError):
        return StoreUnavailableError(
            f"{place}: cannot be reached; are the region and the endpoint right? ({_words(exc)})"
        )
    return StorageError(f"{place}: the driver failed: {type(exc).__name__}")


def _words(exc: BaseException) -> str:
    """The code or class of an error. Its message is left out, as it may quote keys and values."""
    return code_of(exc) or type(exc).__name__
