"""Cursors of pages: texts that travel through clients, and lead back to the place where a page ended."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any, Final

import msgspec

from kode_core.errors import InvalidArgumentError
from kode_core.ids import check_agent_id
from kode_core.jsonvalue import decode_json, encode_json

__all__ = ["SCOPE", "is_agent_id", "is_int64", "make_cursor", "parse_cursor"]

SCOPE: Final[ContextVar[str | None]] = ContextVar("SCOPE", default=None)
"""The tenant of the store whose call goes on in this context: cursors of one tenant are refused by others (SCOPE-4)."""

_VERSION: Final = 1
_NO_CURSOR: Final = "this is no cursor that a store gave: pass next_cursor of a page, unchanged"


def is_int64(part: Any) -> bool:
    """True if a part of a cursor can be a time or a position."""
    return type(part) is int and -(2**63) <= part < 2**63


def is_agent_id(part: Any) -> bool:
    """True if a part of a cursor can be an agent's id."""
    try:
        return bool(check_agent_id(part))
    except InvalidArgumentError:
        return False


def _hash(query: msgspec.Struct) -> str:
    tenant = SCOPE.get()
    key = b"" if tenant is None else blake2b(tenant.encode(), digest_size=32).digest()
    return blake2b(msgspec.json.encode(query), digest_size=6, key=key).hexdigest()


def make_cursor(query: msgspec.Struct, key: Sequence[Any]) -> str:
    """The cursor that leads to *key* in the results of *query*, which is without its limit and its own cursor."""
    raw = encode_json([_VERSION, _hash(query), *key], "cursor").encode()
    return base64.urlsafe_b64encode(blake2b(raw, digest_size=4).digest() + raw).rstrip(b"=").decode()


def parse_cursor(cursor: str, query: msgspec.Struct, parts: Sequence[Callable[[Any], bool]]) -> tuple[Any, ...]:
    """The key of a cursor that :func:`make_cursor` made of the same query; *parts* check its parts.

    Raises:
        InvalidArgumentError: it is no cursor, or one of another query.
    """
    try:
        data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        sound = blake2b(data[4:], digest_size=4).digest() == data[:4]
        fields = decode_json(data[4:].decode()) if sound else None
    except (ValueError, RecursionError, binascii.Error):
        fields = None
    if not isinstance(fields, list) or len(fields) != len(parts) + 2 or fields[0] != _VERSION:
        raise InvalidArgumentError(_NO_CURSOR)
    if fields[1] != _hash(query):
        raise InvalidArgumentError(
            "this cursor belongs to another query: one of another agent, with other filters in another order, or of"
            " another tenant"
        )
    key = tuple(fields[2:])
    if not all(is_part(part) for part, is_part in zip(key, parts, strict=True)):
        raise InvalidArgumentError(_NO_CURSOR)
    return key
