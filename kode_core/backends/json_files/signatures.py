"""Signatures of files: values that change with a file, as far as the file system says so."""

from __future__ import annotations

import os
import sys
import time
from typing import Final, TypeAlias

__all__ = ["Signature", "settled", "signature_of"]

Signature: TypeAlias = tuple[int, ...]

_SETTLED_NS: Final = 3_000_000_000
"""A file that changed so recently may change again without another time: some file systems count in two seconds."""


def signature_of(path: str) -> Signature | None:
    """A value that changes with the file at *path*; None if there is none that can be relied on.

    On Windows the times of a file that is open are late.
    """
    now = time.time_ns()
    try:
        return settled(os.stat(path), now)  # noqa: PTH116 - a Path for each of many files takes longer than the call
    except OSError:
        return None


def settled(found: os.stat_result, now: int) -> Signature | None:
    """The value for a file that was looked at after the time *now*, in nanoseconds."""
    if sys.platform == "win32" or max(found.st_mtime_ns, found.st_ctime_ns) > now - _SETTLED_NS:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
