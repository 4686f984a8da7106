"""Bytes that are cut off the end of a journal are kept in files next to it, which are not journals themselves."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kode_core.backends.json_files.files import read_at, replace_file

__all__ = ["cut_files", "keep"]

_PIECE: Final = 1 << 20
_MISSING: Final = 4


def _names(journal: Path) -> Iterator[Path]:
    return (journal.with_name(f"{journal.name}.cut-{n}") for n in itertools.count(1))


def keep(fd: int, start: int, end: int, journal: Path) -> Path:
    """Copy these bytes of an open journal to a file next to it, durably, and return its path."""
    path = next(path for path in _names(journal) if not path.exists())
    pieces = (read_at(fd, min(_PIECE, end - at), at) for at in range(start, end, _PIECE))
    replace_file(path, pieces, durable=True, mode=os.fstat(fd).st_mode & 0o777)
    return path


def cut_files(journal: Path) -> list[Path]:
    """The files that hold bytes cut off the journal; a few of their numbers may be missing."""
    found: list[Path] = []
    missing = 0
    for path in _names(journal):
        if path.exists():
            found.append(path)
        else:
            missing += 1
        if missing == _MISSING:
            break
    return found
