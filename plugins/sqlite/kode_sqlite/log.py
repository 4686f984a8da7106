"""Inspect a write-ahead log that a crash left, before SQLite recovers it.

SQLite uses the log up to its first broken frame and drops the rest silently. That is right if the power failed in the
middle of a commit, because that commit was not acknowledged. It is wrong if a byte of the log was damaged later,
because the commits behind it were acknowledged. The two cases can be distinguished. Each frame has a checksum that
builds on the one of the frame before, and with durability ``full`` a commit begins only after the one before it is on
the disk. So at most one complete commit can follow a tear: the torn commit itself. If two follow in one unbroken chain,
at least the first of them was acknowledged.
"""

from __future__ import annotations

import logging
import os
import struct
import sys
from array import array
from collections.abc import Iterator
from functools import cache
from operator import mul
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from kode_core.errors import CorruptRecordError
from kode_sqlite.inuse import unused

__all__ = ["see_log"]

_log: Final = logging.getLogger("kode_sqlite")

# https://sqlite.org/fileformat2.html#the_write_ahead_log
_HEADER: Final = struct.Struct(">8I")  # magic, version, size of a page, checkpoints, salts, checksums
_FRAME: Final = struct.Struct(">6I")  # page, size of the database after a commit or 0, salts, checksums
_MAGIC: Final = 0x377F0682
_SUMMED: Final = 8  # bytes of a frame's header that its checksum covers
_PAGE_SIZES: Final = [2**n for n in range(9, 17)]
_DMS: Final = 128  # the byte of the shared memory that every user of the log keeps locked

Sums = tuple[int, int]


class _Frame(NamedTuple):
    """A frame of the log.

    Attributes:
        follows: True if its checksum matches after the stored one of the frame before, or of the header.
    """

    is_commit: bool
    follows: bool


def see_log(path: str, *, is_durable: bool) -> None:
    """Refuse a log with acknowledged commits behind damage.

    Without *is_durable*, when a loss of power may lose commits, only log it.

    The log is not inspected while it is in use, because SQLite then recovers nothing.

    Raises:
        CorruptRecordError: the log is damaged.
    """
    path = os.path.realpath(path)
    log = Path(f"{path}-wal")
    with unused(path) as is_unused:
        try:
            if not is_unused or log.stat().st_size <= _HEADER.size or _is_used(f"{path}-shm"):
                return
            with log.open("rb") as file:
                found = _damage(path, file)
                if found is not None and found != _damage(path, file):
                    return  # another process writes it
        except OSError:
            return  # SQLite reports more about unreadable files
    if found is None:
        return
    if is_durable:
        raise CorruptRecordError(
            f"log {log}",
            f"{found}. SQLite would drop them without a word. Put back a backup; or keep a copy of {path} and of the "
            "log, and open the store once with durability=fast, which goes on without them. A store that was used "
            "with durability=fast may lose its last commits like this when the power goes",
        )
    _log.warning("%s: %s. They are lost", log, found)


def _is_used(shared: str) -> bool:
    """True if another process uses the log. No connection of this process does: the look would drop its locks."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fd = os.open(shared, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _DMS)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _damage(path: str, file: BinaryIO) -> str | None:
    """A description of acknowledged commits that SQLite would drop; None if there are none."""
    size = _page_size(path, file)
    if size is None:
        return None
    if not Path(path).stat().st_size:
        commits = sum(frame.is_commit and frame.follows for frame in _frames(file, size))
        return f"the database next to it is empty, and it has {commits} commits" if commits else None
    return _behind(_frames(file, size))


def _behind(frames: Iterator[_Frame]) -> str | None:
    broken = None
    commits = run = number = 0
    for number, frame in enumerate(frames, 1):
        if broken is None:
            broken = None if frame.follows else number
            continue
        run = run + frame.is_commit if frame.follows else 0
        commits = max(commits, run)
    return f"frame {broken} of {number} is damaged, and {commits} commits are behind it" if commits > 1 else None


def _page_size(path: str, file: BinaryIO) -> int | None:
    """The page size from the database, or from the log if the database's own header is damaged."""
    with open(path, "rb") as database:  # noqa: PTH123
        told = int.from_bytes(database.read(18)[16:], "big")
    size = 65536 if told == 1 else told
    if size not in _PAGE_SIZES:
        file.seek(0)
        size = _HEADER.unpack(file.read(_HEADER.size))[2]
    return size if size in _PAGE_SIZES else None


def _frames(file: BinaryIO, size: int) -> Iterator[_Frame]:
    """The complete frames of the log. Frames of an earlier log, which have other salts, follow nothing."""
    file.seek(0)
    header = file.read(_HEADER.size)
    magic, *_, one, two, sum_1, sum_2 = _HEADER.unpack(header)
    is_big, before = magic == _MAGIC + 1, (sum_1, sum_2)
    is_whole = magic & ~1 == _MAGIC and _sums(header[:24], (0, 0), is_big=is_big) == before
    salts = (one, two)
    if not is_whole:
        is_big = sys.byteorder == "big"
        yield _Frame(is_commit=False, follows=False)
    while len(frame := file.read(_FRAME.size + size)) == _FRAME.size + size:
        _, pages, one, two, *stored = _FRAME.unpack_from(frame)
        follows = salts == (one, two)
        if follows:
            summed = frame[:_SUMMED] + frame[_FRAME.size :]
            follows = _sums(summed, before, is_big=is_big) == tuple(stored)
        elif not is_whole:
            salts = (one, two)
        yield _Frame(is_commit=bool(pages), follows=follows)
        before = (stored[0], stored[1])


def _sums(data: bytes, before: Sums, *, is_big: bool) -> Sums:
    """SQLite's checksum, computed as a product with Fibonacci numbers.

    By definition each word is added to the two sums before it, which comes to the same.

    The product takes a tenth of the time of a loop.
    """
    words = array("I", data)
    if is_big != (sys.byteorder == "big"):
        words.byteswap()
    first, second = before
    weights, lower = _weights(len(words))
    terms = (second, *words)
    return (
        (first * lower[1] + sum(map(mul, terms, lower))) & 0xFFFFFFFF,
        (first * weights[1] + sum(map(mul, terms, weights))) & 0xFFFFFFFF,
    )


@cache
def _weights(count: int) -> tuple[list[int], list[int]]:
    """The weights F(count + 1) down to F(1), and F(count) down to F(0)."""
    numbers = [0, 1]
    while len(numbers) < count + 2:
        numbers.append((numbers[-1] + numbers[-2]) & 0xFFFFFFFF)
    numbers.reverse()
    return numbers[:-1], numbers[1:]
