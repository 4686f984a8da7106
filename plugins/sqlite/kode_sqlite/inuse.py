"""The database files that this process has open.

POSIX drops all locks of a process on a file as soon as the process closes any descriptor of that file. SQLite therefore
delays closing; any other code that opens and closes such a file drops the locks of every connection of the process.
Another process that closes then takes itself for the last one, and removes the write-ahead log while it is in use: its
users read old data, and their writes damage the file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kode_core.errors import KodeError

__all__ = ["OpenFile", "note_closed", "note_open", "unused"]


class OpenFile:
    """A file that is open in connections or being looked at; each file has a lock of its own.

    So a look at a file on a device that does not answer delays no other file.
    """

    __slots__ = ("connections", "looked_at", "path", "users")

    def __init__(self, path: str) -> None:
        self.path = path
        self.looked_at = threading.Lock()
        self.connections = 0
        self.users = 0


_BOOK: Final = threading.Lock()
"""Held only while counting: the event loop takes it, too."""
_FILES: Final[dict[str, OpenFile]] = {}
_INHERITED: Final[set[str]] = set()
"""The files that were open in the process from which this one was forked."""


def note_open(path: str) -> OpenFile:
    """Note that a connection to *path* is about to be opened; blocks the thread while the file is being looked at."""
    file = _entered(os.path.realpath(path))
    with file.looked_at, _BOOK:
        file.connections += 1
    return file


def note_closed(file: OpenFile) -> None:
    """Note that a connection to the file was closed, or could not be opened."""
    with _BOOK:
        file.connections -= 1
        _left(file)


@contextmanager
def unused(path: str) -> Iterator[bool]:
    """Yield True if no connection of this process has *path* open; none is opened inside."""
    file = _entered(os.path.realpath(path))
    try:
        with file.looked_at:
            yield file.connections <= 0
    finally:
        with _BOOK:
            _left(file)


def _entered(path: str) -> OpenFile:
    if path in _INHERITED:
        raise KodeError(
            f"{path} was open in the process from which this one was forked, and SQLite would lose writes: fork before "
            "the store is opened, close it before the fork, or start processes by spawn"
        )
    with _BOOK:
        file = _FILES.setdefault(path, OpenFile(path))
        file.users += 1
        return file


def _left(file: OpenFile) -> None:
    file.users -= 1
    if not file.users:
        _FILES.pop(file.path, None)


def _forked() -> None:
    """Note, in a process that was just forked, the files that were open.

    SQLite keeps the locks of a file in the memory of the process. The copy takes the locks of the other process for its
    own, so that the other one removes the log in which the copy writes.
    """
    _INHERITED.update(path for path, file in _FILES.items() if file.connections)
    _FILES.clear()
    _BOOK.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_BOOK.acquire, after_in_parent=_BOOK.release, after_in_child=_forked)
