"""Fingerprints of dicts and lists, which later show whether anything in them changed (MSG-5).

A fingerprint is taken of parts that have just been found to be small and exact. When it is compared they may be
anything: a cycle, a few lists whose text has no end, a list of millions, objects of any class. So each list is
visited once, however many references lead to it, and nothing beyond the length of the fingerprint is read.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, NoReturn

from kode_core.jsonvalue import MAX_DEPTH

__all__ = ["fingerprint_of", "still_has"]

_PROTOCOL: Final = 5
_DIGEST: Final = 16
_LENGTH: Final = 6
_SAFE_RECURSION: Final = 10_000
"""Above this recursion limit a deep value can overrun the stack of the C library."""
_fresh = blake2b(digest_size=_DIGEST)


def _refuse(_: object) -> NoReturn:
    raise TypeError("not JSON")


class _RefuseAll(dict[type, Callable[[Any], Any]]):
    def __missing__(self, kind: type) -> Callable[[Any], Any]:
        return _refuse


class _Pickler(pickle.Pickler):
    """Pickles builtin types only: no code of other classes runs, which pickle would call."""

    dispatch_table = _RefuseAll()


class _Changed(Exception):
    pass


class _Taker:
    """Takes the pieces of a fingerprint, up to *most* bytes."""

    __slots__ = ("hash", "length", "most")

    def __init__(self, most: int) -> None:
        self.hash = _fresh.copy()
        self.length = 0
        self.most = most

    def write(self, data: bytes) -> None:
        self.length += len(data)
        if self.length > self.most:
            raise _Changed
        self.hash.update(data)


def fingerprint_of(parts: Any) -> bytes:
    """Some bytes that stand for small dicts and lists of JSON."""
    data = pickle.dumps(parts, _PROTOCOL)
    copy = _fresh.copy()
    copy.update(data)
    return copy.digest() + len(data).to_bytes(_LENGTH, "big")


def still_has(parts: Any, fingerprint: bytes) -> bool:
    """True if *parts* are as they were when *fingerprint* was taken: every item, its type and its place."""
    if sys.getrecursionlimit() > _SAFE_RECURSION and _is_deep(parts):
        return False
    taker = _Taker(int.from_bytes(fingerprint[_DIGEST:], "big"))
    try:
        _Pickler(taker, _PROTOCOL).dump(parts)
    except Exception:  # noqa: BLE001 - whatever it is now, it has changed
        return False
    return taker.length == taker.most and fingerprint.startswith(taker.hash.digest())


def _is_deep(parts: Any) -> bool:
    """True if lists and dicts nest deeper than records can."""
    level = {id(parts): parts}
    for _ in range(2 * MAX_DEPTH):
        members = (part.values() if type(part) is dict else part for part in level.values())
        level = {id(item): item for part in members for item in part if type(item) in (dict, list, tuple)}
        if not level:
            return False
    return True
