"""Database files that this process has open.

POSIX takes all locks of a process on a file away as soon as the process closes any descriptor of that file. SQLite
therefore puts off closing; whoever opens and closes such a file by another way takes the locks of every connection of
the process. Another process then takes itself for the last one when it closes, and removes the write-ahead log under
those who use it: they read what is old, and what they write damages the file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["OpenFile", "note_closed", "note_open", "unused"]


class OpenFile:
    """A file that connections have open, or that somebody looks at: each has a lock of its own.

    A look at a file on a device that does not answer holds up no other file.
    """

    __slots__ = ("connections", "looked_at", "path", "users")

    def __init__(self, path: str) -> None:
        self.path = path
        self.looked_at = threading.Lock()
        self.connections = 0
        self.users = 0


_BOOK: Final = threading.Lock()
"""Held for the moment of a count alone: the event loop takes it, too."""
_FILES: Final[dict[str, OpenFile]] = {}


def note_open(path: str) -> OpenFile:
    """Note that a connection to *path* is about to be opened, once nobody looks at the file: a thread waits for it."""
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
    """Whether no connection of this process has *path* open; inside none is opened."""
    file = _entered(os.path.realpath(path))
    try:
        with file.looked_at:
            yield file.connections <= 0
    finally:
        with _BOOK:
            _left(file)


def _entered(path: str) -> OpenFile:
    with _BOOK:
        file = _FILES.setdefault(path, OpenFile(path))
        file.users += 1
        return file


def _left(file: OpenFile) -> None:
    file.users -= 1
    if not file.users:
        del _FILES[file.path]
