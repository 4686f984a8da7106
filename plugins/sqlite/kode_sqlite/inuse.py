"""Database files that this process has open.

POSIX takes all locks of a process on a file away as soon as the process closes any descriptor of that file. SQLite
therefore puts off closing; whoever opens and closes such a file by another way takes the locks of every connection of
the process. Another process then takes itself for the last one when it closes, and removes the write-ahead log under
those who use it: they read what is old, and what they write damages the file.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["note_closed", "note_open", "unused"]

_LOCK: Final = threading.Lock()
_OPEN: Final[Counter[str]] = Counter()


def note_open(path: str) -> None:
    """A connection to *path* is about to be opened."""
    with _LOCK:
        _OPEN[os.path.realpath(path)] += 1


def note_closed(path: str) -> None:
    """A connection to *path* was closed, or could not be opened."""
    with _LOCK:
        _OPEN[os.path.realpath(path)] -= 1


@contextmanager
def unused(path: str) -> Iterator[bool]:
    """Whether no connection of this process has *path* open; inside none is opened."""
    with _LOCK:
        yield _OPEN[os.path.realpath(path)] <= 0
