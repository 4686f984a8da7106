"""Ids of agents that are made of several parts, such as a tenant, a user and a thread."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final

from kode_core.errors import InvalidArgumentError
from kode_core.ids import MAX_AGENT_ID_BYTES

__all__ = ["agent_key", "agent_key_prefix"]

_ESCAPED: Final = re.compile("[%:\0\ud800-\udfff]|^#")
_EMPTY: Final = "%-"
_CUT: Final = "%~"
_DIGEST_BYTES: Final = 20
_HEAD_BYTES: Final = MAX_AGENT_ID_BYTES - len(_CUT) - 2 * _DIGEST_BYTES
_MAX_PREFIX_BYTES: Final = _HEAD_BYTES - 4  # a head is cut between two characters, of which one has up to 4 bytes


def agent_key(*parts: str | int) -> str:
    """One ``agent_id`` for several parts: ``agent_key("acme", "ada", 7)`` is ``acme:ada:#7``.

    Different parts give different ids, whatever is in them: ``("a", "b:c")`` and ``("a:b", "c")``, ``1`` and ``"1"``,
    ``("a",)`` and ``("a", "")``. A text stands there as it is, but for ``%``, ``:``, a ``#`` in front, U+0000 and lone
    surrogates, which become ``%`` and hexadecimal digits. An id that would have more than 256 bytes (ID-1) is cut, and
    ends in a digest of 160 bits. The parts cannot be read from such an id: keep them in ``metadata``, too.

    The same parts give the same id in every version.

    Raises:
        InvalidArgumentError: no part is given, or one is neither a str nor an int.
    """
    whole = _joined("agent_key", parts)
    raw = whole.encode()
    if len(raw) <= MAX_AGENT_ID_BYTES:
        return whole
    head = raw[:_HEAD_BYTES].decode(errors="ignore")
    return f"{head}{_CUT}{blake2b(raw, digest_size=_DIGEST_BYTES).hexdigest()}"


def agent_key_prefix(*parts: str | int) -> str:
    """The text with which every ``agent_key(*parts, more…)`` begins, and no other: for ``store.list(prefix)``.

    ``agent_key(*parts)`` itself does not begin with it.

    Raises:
        InvalidArgumentError: as :func:`agent_key`, or the prefix has more than 210 bytes, so that longer ids are cut in
            front of its end.
    """
    prefix = _joined("agent_key_prefix", parts) + ":"
    size = len(prefix.encode())
    if size > _MAX_PREFIX_BYTES:
        raise InvalidArgumentError(
            f"a prefix of {_MAX_PREFIX_BYTES} bytes at most finds agents, got {size}: put shorter parts first"
        )
    return prefix


def _joined(what: str, parts: tuple[str | int, ...]) -> str:
    if not parts:
        raise InvalidArgumentError(f"{what} takes one part or more, got none")
    return ":".join(_part(what, i, part) for i, part in enumerate(parts))


def _part(what: str, index: int, part: object) -> str:
    if type(part) is int:
        try:
            return f"#{part}"
        except ValueError:  # CPython's limit for the text of an integer
            raise InvalidArgumentError(f"{what}: part {index} has more digits than an int can show") from None
    if type(part) is not str:
        raise InvalidArgumentError(f"{what}: part {index} must be a str or an int, got {type(part).__name__}")
    return _ESCAPED.sub(_escape, part) or _EMPTY


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode(errors="surrogatepass"))
