"""The keys of documents in the record engine.

Documents of the caller's own stand in the order of their keys. Keys of items are ASCII, so the caller's key is escaped
in a way that keeps the order of its UTF-8 bytes, which is the order of its code points. The core's documents follow
them: "{" stands for "~", which no item's key has.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final

from kode_core.batch import CORE_KEYS, DocKind
from kode_core.engines.record.store import KeyRange
from kode_core.ids import COLLECTION_CHARACTERS, MAX_COLLECTION_LENGTH, MAX_DOCUMENT_KEY_BYTES

__all__ = ["doc_key", "doc_keys", "escaped", "hashed", "is_own", "own_key", "own_keys", "rest_of"]

_OWN: Final = "o/"
_END: Final = "~"
_CORE: Final = "{"
"""Begins the core's collections: above all characters of a collection, and below the end."""
_AFTER_CORE: Final = "\x7f"
_LEAST: Final = "!"
"""No character of a key is below it."""
_OTHERS: Final = re.compile(f"[^{COLLECTION_CHARACTERS}]")
"""The characters that no collection has."""


def hashed(text: str) -> str:
    """A text of any length as 32 hexadecimal digits."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _escape(byte: int) -> str:
    if byte < 0x30:
        return f"!{chr(0x40 + byte)}"
    if byte < 0x7C:
        return chr(byte)
    return f"|{chr(byte - 0x4C)}" if byte < 0xC0 else f"}}{chr(byte - 0x90)}"


_ESCAPES: Final = tuple(map(_escape, range(256)))


def escaped(key: bytes) -> str:
    """ASCII of at most two characters for each byte, in the order of the bytes.

    It contains no slash and no ``~``. The keys of a document's parts add a slash to it, so that they stand together,
    with no other document's parts between them.
    """
    return "".join([_ESCAPES[byte] for byte in key])


def own_key(key: str) -> str:
    """The item's key of a document of the caller's own, or a bound of a range of them.

    *key* is ``COLLECTION/KEY``, or any text for a bound. The result stands among the items' keys as *key* stands among
    the keys of documents; a bound is cut where it is longer than any key.
    """
    collection, slash, rest = key.partition("/")
    before = _OWN
    if collection.startswith(CORE_KEYS):
        before, collection = f"{_OWN}{_CORE}", collection.removeprefix(CORE_KEYS)
    other = _OTHERS.search(collection)
    if other is not None:  # this character decides: the rest makes no difference
        is_first = before == _OWN and not other.start()
        highest = _CORE if is_first and other[0] < CORE_KEYS else _END
        return f"{before}{collection[: other.start()]}{min(max(other[0], _LEAST), highest)}"
    if len(collection) > MAX_COLLECTION_LENGTH:
        return f"{before}{collection[: MAX_COLLECTION_LENGTH + 1]}"
    whole = rest.encode("utf-8", "surrogatepass")[: MAX_DOCUMENT_KEY_BYTES + 1]
    return f"{before}{collection}{slash}{escaped(whole)}"


def is_own(key: str) -> bool:
    """Whether an item's key is of a document of the caller's own."""
    return key.startswith(_OWN) and not key.startswith(f"{_OWN}{_CORE}")


def _before(key: str) -> str:
    """The end of the keys below *key*, inclusive: no key has the character ``~``."""
    return f"{key[:-1]}{chr(ord(key[-1]) - 1)}{_END}"


def own_keys(start: str = "", stop: str = CORE_KEYS, *, descending: bool = False, bodies: bool = True) -> KeyRange:
    """Documents of the kind ``DOCUMENTS``, the caller's by default, from *start*, inclusive, to *stop*, exclusive."""
    return KeyRange(first=own_key(start), last=_before(own_key(stop)), descending=descending, bodies=bodies)


def rest_of(keys: KeyRange, last_read: str) -> tuple[str, str]:
    """The first and the last key of the rest of a range, after the item with the key *last_read*."""
    if keys.descending:
        return keys.first, _before(last_read)
    return last_read + _LEAST, keys.last


def doc_key(kind: DocKind, key: str) -> str:
    """A document's key. It holds a hash, because callers' keys of most kinds have any length."""
    return own_key(key) if kind is DocKind.DOCUMENTS else f"d/{kind.value}/{hashed(key)}"


def doc_keys(kind: DocKind, key: str | None = None, *, bodies: bool = True) -> KeyRange:
    """The documents of a kind, or the one with *key*."""
    if key is not None:
        first = last = doc_key(kind, key)
        return KeyRange(first=first, last=last, bodies=bodies)
    if kind is DocKind.DOCUMENTS:
        return own_keys(stop=_AFTER_CORE, bodies=bodies)
    return KeyRange(first=f"d/{kind.value}/", last=f"d/{kind.value}/{_END}", bodies=bodies)
