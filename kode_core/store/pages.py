"""The length of the pages that iterators read: bounded in records, and roughly in bytes (OPS-14)."""

from __future__ import annotations

from typing import Final

__all__ = ["FIRST_PAGE", "next_limit"]

FIRST_PAGE: Final = 64
"""The limit of the first page, whose records are of an unknown size."""
_MOST: Final = 500
_CHARACTERS: Final = 4 << 20


def next_limit(count: int, characters: int) -> int:
    """The limit of the page after one of *count* records with so many characters together."""
    if not characters:
        return _MOST
    return max(1, min(_MOST, _CHARACTERS * count // characters))
