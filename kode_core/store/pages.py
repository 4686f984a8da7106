"""The length of the pages that iterators read: bounded in records, and roughly in bytes (OPS-14)."""

from __future__ import annotations

from typing import Final

__all__ = ["FIRST_PAGE", "next_limit"]

FIRST_PAGE: Final = 64
"""The limit of the first page, when the size of the records is unknown."""
_MOST: Final = 500
_CHARACTERS: Final = 4 << 20


def next_limit(count: int, characters: int) -> int:
    """The limit of the page that follows *count* records of *characters* characters in total."""
    if not characters:
        return _MOST
    return max(1, min(_MOST, _CHARACTERS * count // characters))
