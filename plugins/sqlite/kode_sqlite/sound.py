"""Checks of rows that were read: SQLite keeps a value of any type in any column (OPS-4)."""

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
    """Whether these values are of these types."""
    return all(type(value) is kind for value, kind in zip(values, kinds, strict=True))


def see(values: Sequence[Any], kinds: Sequence[type], what: str) -> None:
    """Raise CorruptRecordError unless these values of *what* are of these types."""
    if not is_sound(values, kinds):
        raise CorruptRecordError(what, "its row holds what was never written")


def text_of(raw: Any) -> str | None:
    """The text of a column that was cast to a blob; None when it is no text."""
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
    """The first *limit* values that *read* makes of the rows that *find* gives.

    A row of which it makes None is left out, by the *name* that is given to it, and another one is read instead. *find*
    is called with a key behind which it goes on, None for the start; with how many rows to give; and with how many to
    go over before. *key* gives the key of a row, None for one behind which *find* cannot go on.
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
    """The values of a row as what to go on behind; None where a damaged text may stand for another one."""
    is_exact = is_sound(values, kinds) and not any(type(value) is str and "\ufffd" in value for value in values)
    return tuple(values) if is_exact else None
