"""Checks of rows that were read: SQLite keeps a value of any type in any column (OPS-4)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, LiteralString, TypeVar

from kode_core.batch import Found
from kode_core.errors import CorruptRecordError

__all__ = ["INT", "RAW", "TEXT", "is_sound", "search", "see", "text_of"]

T = TypeVar("T")

INT: Final = int
TEXT: Final = str
RAW: Final = bytes


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
    db: sqlite3.Connection,
    statement: LiteralString,
    args: Sequence[Any],
    limit: int,
    offset: int,
    read: Callable[[tuple[Any, ...]], T | None],
    name: Callable[[tuple[Any, ...]], str],
) -> Found[T]:
    """The values that *read* makes from *limit* rows of a statement that ends with ``LIMIT ? OFFSET ?``.

    A row of which it makes None is left out, by the *name* that is given to it, and another one is read instead.
    """
    more = 0
    while True:
        rows = db.execute(statement, (*args, limit + more, offset)).fetchall()
        read_rows = [(row, read(row)) for row in rows]
        found = [value for _, value in read_rows if value is not None]
        left_out = [name(row) for row, value in read_rows if value is None]
        if len(rows) < limit + more or len(found) >= limit:
            return Found(found[:limit], left_out)
        more += limit - len(found)
