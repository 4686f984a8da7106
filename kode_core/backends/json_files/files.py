"""File system functions of the JSON files engine: safe names, locks between processes, durable writes."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from kode_core.authoring.files import make_file, open_or_make, system_error, take_lock, unlock
from kode_core.authoring.modes import PRIVATE, sync_folder
from kode_core.errors import (
    OutcomeUnknownError,
    StorageError,
    StoreBusyError,
)

if sys.platform != "win32":
    import fcntl

__all__ = [
    "agent_of",
    "file_name",
    "held_too_long",
    "is_long_name",
    "journal_names",
    "locked",
    "pauses",
    "read_at",
    "replace_file",
    "replacing",
    "sync_file",
    "sync_folder",
    "temporary_name",
    "translated",
    "try_lock",
    "write_all",
]

_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")
_RESERVED: Final = frozenset({"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(10))})
_MAX_NAME: Final = 180


def file_name(agent_id: str) -> str:
    """A file name that stands for *agent_id* and no other id, on every file system (ID-1, ID-2).

    Lower case letters, digits and ``-_.`` stay. All other bytes become ``%xx``, also upper case letters, because some
    file systems do not distinguish them. Long names end in a digest.
    """
    name = "".join(chr(b) if b in _PLAIN else f"%{b:02x}" for b in agent_id.encode())
    if name[0] == "." or name.split(".")[0] in _RESERVED:
        name = f"%{ord(name[0]):02x}{name[1:]}"
    if len(name) > _MAX_NAME:
        name = f"{name[:140]}~{blake2b(agent_id.encode(), digest_size=16).hexdigest()}"
    return name


def is_long_name(name: str) -> bool:
    """True if :func:`file_name` gives *name* to a long id."""
    return re.fullmatch(r".{140}~[0-9a-f]{32}", name) is not None


def agent_of(name: str) -> str | None:
    """The id for which :func:`file_name` returns *name*; None for the name of a long id, or without such an id."""
    try:
        agent_id = unquote(name, errors="strict")
        is_id = agent_id and "\0" not in agent_id and len(agent_id) <= _MAX_NAME
        return agent_id if is_id and file_name(agent_id) == name else None
    except UnicodeError:
        return None


def journal_names(base: Path) -> list[str]:
    """The names of all files of a folder that should be journals."""
    return [entry.name for entry in os.scandir(base) if entry.name.endswith(".jsonl")]


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an OSError inside into this library's error about *path*."""
    try:
        yield
    except OSError as exc:
        if isinstance(exc, StorageError):
            raise
        raise system_error(exc, str(path)) from exc


def try_lock(path: Path, mode: int = PRIVATE) -> int | None:
    """Take the lock file at *path*, against other processes too, and return its descriptor; None when it is held.

    The file is created with *mode* if it does not exist. The kernel releases the lock of a process that dies.
    """
    fd = open_or_make(path, os.O_RDWR, lambda: make_file(path, os.O_RDWR, mode))
    try:
        taken = take_lock(fd)
    except BaseException:
        os.close(fd)
        raise
    if taken:
        return fd
    os.close(fd)
    return None


def pauses() -> Iterator[float]:
    """The pauses, in seconds, between two attempts to take a lock.

    No call blocks on a lock: its holder may be stopped.
    """
    pause = 0.0005
    while True:
        yield pause
        pause = min(pause * 2, 0.02)


def held_too_long(path: Path, wait_ms: int) -> StoreBusyError:
    """The error of a call that waited too long for a lock."""
    return StoreBusyError(f"{path}: another process has held this lock for more than {wait_ms} ms")


@contextmanager
def locked(path: Path, wait_ms: int, mode: int = PRIVATE) -> Iterator[int]:
    """Hold the lock file at *path* and yield its descriptor; blocks while the lock is taken.

    Raises:
        StoreBusyError: another process or thread held the lock all the time.
    """
    deadline = time.monotonic() + wait_ms / 1000
    pause = pauses()
    while (fd := try_lock(path, mode)) is None:
        if time.monotonic() > deadline:
            raise held_too_long(path, wait_ms)
        time.sleep(next(pause))
    try:
        yield fd
    finally:
        unlock(fd)


def read_at(fd: int, size: int, offset: int) -> bytes:
    """The *size* bytes from *offset* on; fewer only at the end of the file."""
    os.lseek(fd, offset, os.SEEK_SET)
    data = os.read(fd, size)
    if len(data) == size or not data:
        return data
    parts = [data]
    missing = size - len(data)
    while missing and (data := os.read(fd, missing)):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write *data* at *offset*, all of it."""
    view = memoryview(data)
    os.lseek(fd, offset, os.SEEK_SET)
    while view:
        view = view[os.write(fd, view) :]


def sync_file(fd: int) -> None:
    """Make the contents of *fd* durable. On macOS an ordinary sync leaves the data in the cache of the device."""
    if sys.platform == "darwin":
        with suppress(OSError):  # a file system without this call
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    getattr(os, "fdatasync", os.fsync)(fd)


def temporary_name(path: Path) -> Path:
    """A name next to *path* for a file that will replace it; files that a killed process left are swept."""
    return path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.{time.monotonic_ns()}.tmp")


def _found(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


@contextmanager
def replacing(path: Path, *, durable: bool, mode: int = PRIVATE) -> Iterator[int]:
    """Yield a descriptor of a new file that replaces *path* at the end, unless an exception is raised.

    Afterwards, and after a crash, *path* is either the old file or the new one. The new file has the mode of the old
    one, or *mode* if there was none.

    Raises:
        OutcomeUnknownError: the new file is in place, but a loss of power may bring back the old one.
    """
    temporary = temporary_name(path)
    replaced = _found(path)
    fd = make_file(temporary, os.O_RDWR, mode if replaced is None else replaced.st_mode & 0o777, replaced)
    try:
        try:
            yield fd
            if durable:
                sync_file(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        try:
            sync_folder(path.parent)
        except OSError as exc:
            problem = f"{path} was written and its folder could not be synced ({exc.strerror}): read first"
            raise OutcomeUnknownError(problem) from exc


def replace_file(
    path: Path,
    chunks: Iterator[bytes],
    *,
    durable: bool,
    mode: int = PRIVATE,
    ending: Callable[[], tuple[int, bytes]] | None = None,
) -> None:
    """Write a file of these chunks to *path*, as :func:`replacing` does.

    *ending* is called after the last chunk, and returns an offset and the bytes to write there.
    """
    with replacing(path, durable=durable, mode=mode) as fd:
        offset = 0
        for chunk in chunks:
            write_all(fd, chunk, offset)
            offset += len(chunk)
        if ending is not None:
            at, data = ending()
            write_all(fd, data, at)
