"""Names: the rules for ids (ID-1, ID-4), ids for new agents, and the form in which strings are indexed."""

from __future__ import annotations

import os
import re
import secrets
import sys
import threading
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Final

from kode_core.errors import InvalidArgumentError
from kode_core.model import now_ms

__all__ = [
    "COLLECTION_CHARACTERS",
    "MAX_AGENT_ID_BYTES",
    "MAX_COLLECTION_LENGTH",
    "MAX_DOCUMENT_KEY_BYTES",
    "MAX_FULL_ID_BYTES",
    "MAX_KEY_BYTES",
    "NOT_TEXT",
    "SURROGATE",
    "can_begin",
    "check_agent_id",
    "check_collection",
    "check_document_key",
    "check_key",
    "index_text",
    "is_full_id",
    "is_shortened",
    "nearest",
    "new_agent_id",
    "plain_text",
    "prefix_end",
    "quoted",
    "row_name",
]

MAX_AGENT_ID_BYTES: Final = 256
MAX_FULL_ID_BYTES: Final = 300
"""The most bytes of an id with the prefix of a tenant, as the whole store has it; engines take as many."""
MAX_KEY_BYTES: Final = 4096
MAX_DOCUMENT_KEY_BYTES: Final = 400
MAX_COLLECTION_LENGTH: Final = 64
COLLECTION_CHARACTERS: Final = "A-Za-z0-9._-"
"""As in a class of characters of a pattern."""

_CROCKFORD: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_UNSAFE_IN_INDEX: Final = re.compile("[\0\n\\\\\ud800-\udfff]")
SURROGATE: Final = re.compile("[\ud800-\udfff]")
NOT_TEXT: Final = re.compile("[\0\ud800-\udfff]")
"""The characters that no id has, and no text that is indexed: not every engine can store them."""
_ESCAPES: Final = {char: f"\\{ord(char):04x}" for char in "\\\0\n"}  # the backslash first: the other escapes contain it
_SURROGATE_ESCAPES: Final = {code: f"\\{code:04x}" for code in range(0xD800, 0xE000)}
_COLLECTION: Final = re.compile(f"[{COLLECTION_CHARACTERS}]{{1,{MAX_COLLECTION_LENGTH}}}")
_OF_TENANT: Final = re.compile("@[A-Za-z0-9._~%-]{1,128}/.", re.DOTALL)
_LONG: Final = 10**20
_MAX_INDEXED_BYTES: Final = 1024
_SHOWN: Final = 200
_last_id: tuple[int, int] = (0, 0)
_last_id_lock = threading.Lock()


def _after_fork() -> None:
    """In a child process: continue from other numbers than the parent, with a lock that none of its threads holds."""
    global _last_id, _last_id_lock
    _last_id = (_last_id[0] + 1, secrets.randbits(79))
    _last_id_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def check_agent_id(agent_id: str) -> str:
    """Return *agent_id* if it may name an agent (ID-1, SCOPE-3), else raise InvalidArgumentError."""
    is_full = type(agent_id) is str and is_full_id(agent_id)
    return _check(agent_id, "agent_id", MAX_FULL_ID_BYTES if is_full else MAX_AGENT_ID_BYTES)


def is_full_id(agent_id: str) -> bool:
    """True if an id begins with the prefix of a tenant, as ids of tenants do in the whole store (SCOPE-3)."""
    return agent_id.startswith("@") and _OF_TENANT.match(agent_id) is not None


def check_key(key: str, what: str) -> str:
    """Return *key*, called *what* in errors (``snapshot id``), if it may name a record (ID-4), else raise."""
    return _check(key, what, MAX_KEY_BYTES)


def check_collection(collection: str) -> str:
    """Return *collection* if it may name a collection of documents (DOC-1), else raise InvalidArgumentError."""
    if type(collection) is not str:
        raise InvalidArgumentError(f"collection must be a str, got {type(collection).__name__}")
    if _COLLECTION.fullmatch(collection) is None:
        raise InvalidArgumentError(
            f"collection must be 1 to {MAX_COLLECTION_LENGTH} of the characters A-Z a-z 0-9 . _ -,"
            f" got {quoted(collection)}"
        )
    return collection


def check_document_key(key: str, what: str = "document key") -> str:
    """Return *key* if it may name a document of the caller's own (DOC-1), else raise InvalidArgumentError."""
    return _check(key, what, MAX_DOCUMENT_KEY_BYTES)


def _check(name: str, what: str, limit: int) -> str:
    if not check_text(name, what, limit):
        raise InvalidArgumentError(f"{what} must not be empty")
    return name


def check_text(text: Any, what: str, limit: int) -> str:
    """Return *text* if it can be indexed everywhere and has at most *limit* bytes, else raise InvalidArgumentError."""
    if type(text) is not str:
        raise InvalidArgumentError(f"{what} must be a str, got {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{what} must not contain lone surrogates: {text!a:.80}") from None
    if size > limit:
        raise InvalidArgumentError(f"{what} must be at most {limit} bytes in UTF-8, got {size}: {text[:40]!r}…")
    if "\0" in text:
        raise InvalidArgumentError(f"{what} must not contain U+0000: {text!r:.80}")
    return text


def quoted(value: object) -> str:
    """A value in the form for errors.

    Short texts and numbers are shown unchanged, and of everything else the type, as its own ``repr`` may fail.
    """
    if type(value) is str:
        return f"{value!r:.60}"
    return str(value) if type(value) is int and abs(value) < _LONG else type(value).__name__


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most similar to a misspelt one; *cutoff*, up to 1, is the least similarity."""
    try:
        from difflib import get_close_matches  # imported only after a mistake
    except OSError:  # a process with no descriptor left cannot import, and gives no hint
        return None
    return next(iter(get_close_matches(name, list(known), 1, cutoff)), None)


def new_agent_id() -> str:
    """A new unique id: ``agt-`` and a ULID, so that ids sort by the time of their creation."""
    global _last_id
    now = now_ms()
    with _last_id_lock:
        fresh = (now, secrets.randbits(79))  # of 80 bits: the last one leaves room to count up within the millisecond
        _last_id = fresh if now > _last_id[0] else (_last_id[0], _last_id[1] + 1)
        number = _last_id[0] << 80 | _last_id[1]
    return "agt-" + "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


class IndexText:
    """The form in which a text is indexed, built from its pieces; see :func:`index_text`."""

    def __init__(self) -> None:
        self._head = ""
        self._size = 0
        self._hash = blake2b(digest_size=16)

    def add(self, text: str) -> None:
        safe = text if _UNSAFE_IN_INDEX.search(text) is None else _escaped(text)
        raw = safe.encode()
        self._hash.update(raw)
        self._size += len(raw)
        if len(self._head) <= _MAX_INDEXED_BYTES:
            self._head += safe[: _MAX_INDEXED_BYTES + 1]

    def whole(self) -> str:
        """The form of the whole text."""
        if self._size > _MAX_INDEXED_BYTES:
            return f"{self._head[:_SHOWN]}\\#{self._hash.hexdigest()}"
        return self._head


def index_text(text: str) -> str:
    """*text* in a form that every engine can compare and index.

    It has no U+0000, newlines or surrogates, and at most 1 KB.

    Different texts stay different; a text that is short and ordinary is unchanged.
    """
    safe = text if _UNSAFE_IN_INDEX.search(text) is None else _escaped(text)
    if len(safe) * 4 > _MAX_INDEXED_BYTES and len(raw := safe.encode()) > _MAX_INDEXED_BYTES:
        return f"{safe[:_SHOWN]}\\#{blake2b(raw, digest_size=16).hexdigest()}"
    return safe


def _escaped(text: str) -> str:
    """Escape *text*: millions of escapes, as in the JSON text of a long listing, must not hold up the event loop."""
    for char, escape in _ESCAPES.items():
        text = text.replace(char, escape)
    return text if SURROGATE.search(text) is None else text.translate(_SURROGATE_ESCAPES)


def is_shortened(indexed: str) -> bool:
    """True if :func:`index_text` was given more than 1 KB, so that the text cannot be restored from its form."""
    return "\\#" in indexed


def plain_text(indexed: str) -> str:
    """The text that :func:`index_text` was given; a text of more than 1 KB stays in its shortened form."""
    if "\\" not in indexed or is_shortened(indexed):
        return indexed
    return re.sub(r"\\([0-9a-f]{4})", lambda m: chr(int(m.group(1), 16)), indexed)


def can_begin(prefix: str) -> bool:
    """Whether ids of agents can begin so: none has U+0000 or a lone surrogate, or is longer than an id may be."""
    return NOT_TEXT.search(prefix) is None and len(prefix.encode()) <= MAX_FULL_ID_BYTES


def prefix_end(prefix: str) -> str | None:
    """The smallest string above all strings that begin with *prefix*, by code points; None if there is none."""
    stem = prefix.rstrip(chr(sys.maxunicode))
    if not stem:
        return None
    code = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if 0xD800 <= code < 0xE000 else code)


def row_name(kind: str, position: int, agent_id: str) -> str:
    """The name of a row of the list *kind* in errors, as in ``message 3 of agent 'a'``."""
    return f"{kind.removesuffix('s').replace('_', ' ')} {position} of agent {agent_id!r}"
