"""Look into a database file: whether a log adds to it, and a connection that leaves nothing behind."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from kode_sqlite.inuse import unused
from kode_sqlite.uris import uri_of

__all__ = ["has_log", "looking", "stillness"]


def has_log(path: str) -> bool:
    """True if a write-ahead log adds to the file."""
    return _size(f"{path}-wal") > 0


def stillness(path: str) -> tuple[int, ...] | None:
    """A key for the present state of the file; None while a log adds to it."""
    path = os.path.realpath(path)
    if has_log(path) or _size(f"{path}-journal"):
        return None
    found = os.stat(path)  # noqa: PTH116
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)  # noqa: PTH202
    except FileNotFoundError:
        return 0


@contextmanager
def looking(path: str) -> Iterator[sqlite3.Connection]:
    """A connection for a short look, which does not leave an empty log next to a file without one."""
    with unused(path) as is_unused:
        how = "mode=ro&immutable=1" if is_unused and stillness(path) else "mode=ro"
        with closing(sqlite3.connect(uri_of(path, how), uri=True)) as db:
            yield db
