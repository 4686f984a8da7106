"""Checks of rows that were read: SQLite stores a value of any type in any column (OPS-4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from kode_core.batch import Found
from kode_core.errors import CorruptRecordError

__all__ = ["INT", "RAW", "TEXT", "is_sound", "search", "see", "sound_key", "text_of"]

T = TypeVar("T")

INT: Final = int
TEXT: Final = str
RAW: Final = bytes
_ROWS_AT_ONCE: Final = 1000


def is_sound(values: Sequence[Any], kinds: Sequence[type]) -> bool:
    """True if these values have these types."""
    return tuple(map(type, values)) == tuple(kinds)


def see(values: Sequence[Any], kinds: Sequence[type], what: str) -> None:
    """Raise CorruptRecordError unless these values of *what* have these types."""
    if not is_sound(values, kinds):
        raise CorruptRecordError(what, "its row holds what was never written")


def text_of(raw: Any) -> str | None:
    """The text of a column that was cast to a blob; None if it is not text."""
    try:
        return raw.decode() if type(raw) is bytes else None
    except UnicodeDecodeError:
        return None


def search(
    find: Callable[[Any, int, int], list[tuple[Any, ...]]],
    limit: int,
    offset: int,
    read: Callable[[tuple[Any, ...]], T | None],
    name: Callable[[tuple[Any, ...]], str],
    key: Callable[[tuple[Any, ...]], Any],
) -> Found[T]:
    """The first *limit* values that *read* makes of the rows from *find*.

    If *read* returns None for a row, the row is left out under the name that *name* gives it, and another row is read
    instead. *find* is called with the key to continue after, None for the start; with the number of rows to return; and
    with the number of rows to skip. *key* returns the key of a row, or None if *find* cannot continue after it.
    """
    found: list[T] = []
    left_out: list[str] = []
    after: Any = None
    most = limit
    while True:
        rows = find(after, most, offset)
        for row in rows:
            value = read(row)
            if value is None:
                left_out.append(name(row))
                continue
            found.append(value)
            if len(found) == limit:
                return Found(found, left_out)
        if len(rows) < most:
            return Found(found, left_out)
        last = key(rows[-1])
        after, offset = (after, offset + len(rows)) if last is None else (last, 0)
        most = max(limit - len(found), min(2 * most, _ROWS_AT_ONCE))  # or a row at a time, where many are damaged


def sound_key(values: Sequence[Any], kinds: Sequence[type]) -> tuple[Any, ...] | None:
    """The values of a row as a key to continue after; None if a damaged text may stand for another one."""
    is_exact = is_sound(values, kinds) and not any(type(value) is str and "\ufffd" in value for value in values)
    return tuple(values) if is_exact else None
