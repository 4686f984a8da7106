"""The length of the pages that iterators read: bounded in records, and roughly in bytes (OPS-14)."""

from __future__ import annotations

from typing import Final

__all__ = ["FIRST_PAGE", "MOST_COUNTED", "next_limit"]

FIRST_PAGE: Final = 64
"""The limit of the first page, when the size of the records is unknown."""
_MOST: Final = 500
_CHARACTERS: Final = 4 << 20
MOST_COUNTED: Final = 2_000
"""The most records of a page that is only counted: engines that look at every agent for a page are asked less often."""


def next_limit(count: int, characters: int, most: int = _MOST) -> int:
    """The limit of the page that follows *count* records of *characters* characters in total; *most* is the highest."""
    if not characters:
        return _MOST
    return max(1, min(most, _CHARACTERS * count // characters))
