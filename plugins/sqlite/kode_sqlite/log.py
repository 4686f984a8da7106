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
from threading import Event
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
_PAGE_SIZES: Final[list[int]] = [1 << n for n in range(9, 17)]
_DMS: Final = 128  # the byte of the shared memory that every user of the log keeps locked

# The struct flock of the system: its layout, and the order of its fields.
_FLOCK: Final = {
    "linux": ("hhqqi4x", ("type", "whence", "start", "length", "pid")),
    "darwin": ("qqihh", ("start", "length", "pid", "type", "whence")),
}.get(sys.platform if sys.maxsize > 2**32 else "")

Sums = tuple[int, int]


class _Frame(NamedTuple):
    """A frame of the log.

    Attributes:
        follows: True if its checksum matches after the stored one of the frame before, or of the header.
    """

    is_commit: bool
    follows: bool


def see_log(path: str, *, is_durable: bool, given_up: Event | None = None) -> None:
    """Refuse a log that has acknowledged commits behind damage. Without *is_durable*, where a loss of power may take
    commits, only a warning is logged. The look ends when *given_up* is set.

    Nothing is looked at while the log is in use, since SQLite then recovers nothing.

    Raises:
        CorruptRecordError: the log is damaged.
    """
    path, given_up = os.path.realpath(path), given_up or Event()
    log = Path(f"{path}-wal")
    with unused(path) as is_unused:
        try:
            if not is_unused or log.stat().st_size <= _HEADER.size or _is_used(path):
                return
            with log.open("rb") as file:
                found = _damage(path, file, given_up)
                if found is not None and found != _damage(path, file, given_up):
                    return  # another process writes it
                # A killed process may have left a commit that is not on the disk yet. The next one must not be synced
                # together with it: a tear could then have two commits behind it.
                os.fsync(file.fileno())
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


def _is_used(path: str) -> bool:
    """True if a process uses the log, or if that cannot be found out.

    A connection of this process that is not kode's would lose its locks by the look. It is found by its descriptors.
    """
    if not _FLOCK or _is_open_here(path, f"{path}-wal", f"{path}-shm"):
        return True
    import fcntl

    form, order = _FLOCK
    asked = {"type": fcntl.F_WRLCK, "whence": os.SEEK_SET, "start": _DMS, "length": 1, "pid": 0}
    try:
        fd = os.open(f"{path}-shm", os.O_RDWR)
    except OSError:
        return False
    try:  # a question takes no lock, so that two looks at the same time do not take each other for users
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack(form, *(asked[name] for name in order)))
    finally:
        os.close(fd)
    holder: int = struct.unpack(form, answer)[order.index("type")]
    return holder != fcntl.F_UNLCK


def _is_open_here(*paths: str) -> bool:
    """True if this process has a descriptor of one of the files."""
    wanted = {(found.st_dev, found.st_ino) for path in paths if (found := _stat(path)) is not None}
    open_here = (_stat(int(entry.name)) for entry in Path("/dev/fd").iterdir())
    return any(found is not None and (found.st_dev, found.st_ino) in wanted for found in open_here)


def _stat(file: str | int) -> os.stat_result | None:
    try:
        return os.stat(file)  # noqa: PTH116 - a descriptor, too
    except OSError:
        return None


def _damage(path: str, file: BinaryIO, given_up: Event) -> str | None:
    """A description of acknowledged commits that SQLite would drop; None if there are none."""
    size = _page_size(file)
    if size is None:
        return None
    frames = (frame for frame in _frames(file, size) if not given_up.is_set())
    if not Path(path).stat().st_size:
        commits = sum(frame.is_commit and frame.follows for frame in frames)
        return f"the database next to it is empty, and it has {commits} commits" if commits else None
    return _behind(frames)


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


def _page_size(file: BinaryIO) -> int | None:
    """The page size that the log's header has; if that is damaged, one at whose distance salts come again."""
    file.seek(0)
    header = file.read(_HEADER.size)
    stored: int = _HEADER.unpack(header)[2]
    if stored in _PAGE_SIZES:
        return stored
    start = file.read(8 * (_FRAME.size + _PAGE_SIZES[-1]))

    def salts(size: int, number: int) -> bytes:
        at = number * (_FRAME.size + size) + 8
        return start[at : at + 8]

    for size in _PAGE_SIZES:
        if any(salts(size, n) == salts(size, n + 1) > bytes(8) for n in range(7)):
            return size
    return None


def _frames(file: BinaryIO, size: int) -> Iterator[_Frame]:
    """The complete frames of the log. Frames of an earlier log, which have other salts, follow nothing."""
    file.seek(0)
    header = file.read(_HEADER.size)
    magic, *_, one, two, sum_1, sum_2 = _HEADER.unpack(header)
    is_big, before = magic == _MAGIC + 1, (sum_1, sum_2)
    is_whole = magic & ~1 == _MAGIC and _sums(header[:24], (0, 0), is_big=is_big) == before
    salts, page = (one, two), b""
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
        is_repeated = pages and frame[_FRAME.size :] == page  # as some builds of SQLite fill the rest of a sector
        page = frame[_FRAME.size :]
        yield _Frame(is_commit=bool(pages) and not is_repeated, follows=follows)
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
