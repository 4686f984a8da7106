"""What the JSON files engine needs of a file system: safe names, locks between processes, durable writes."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final

from kode_core.errors import (
    StorageError,
    StoreBusyError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = [
    "file_name",
    "locked",
    "os_error",
    "read_at",
    "replace_file",
    "sync_file",
    "sync_folder",
    "translated",
    "write_all",
]

_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")
_RESERVED: Final = frozenset({"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(10))})
_MAX_NAME: Final = 180
_LOCKED_BYTE: Final = 1 << 20  # Windows locks bytes: one that nobody reads or writes


def file_name(agent_id: str) -> str:
    """A file name that stands for *agent_id* and no other id, on every file system (ID-1, ID-2).

    Lower case letters, digits and ``-_.`` stay; all else becomes ``%xx``, upper case letters too, because there are
    file systems that do not tell them apart. Long names end in a digest.
    """
    name = "".join(chr(b) if b in _PLAIN else f"%{b:02x}" for b in agent_id.encode())
    if name[0] == "." or name.split(".")[0] in _RESERVED:
        name = f"%{ord(name[0]):02x}{name[1:]}"
    if len(name) > _MAX_NAME:
        name = f"{name[:140]}~{blake2b(agent_id.encode(), digest_size=16).hexdigest()}"
    return name


_ERRORS: Final[dict[int, type[StorageError]]] = {
    errno.ENOSPC: StoreFullError,
    errno.EDQUOT: StoreFullError,
    errno.EFBIG: StoreFullError,
    errno.EROFS: StoreReadOnlyError,
    errno.EACCES: StoreReadOnlyError,
    errno.EPERM: StoreReadOnlyError,
}


def os_error(exc: OSError, path: Path) -> StorageError:
    """The error of this library for *exc*."""
    kind = _ERRORS.get(exc.errno or 0, StoreUnavailableError)
    return kind(f"{path}: {exc.strerror or exc}")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an OSError inside into this library's error about *path*."""
    try:
        yield
    except OSError as exc:
        if isinstance(exc, StorageError):
            raise
        raise os_error(exc, path) from exc


def _try_lock(fd: int) -> bool:
    try:
        if sys.platform == "win32":
            os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(fd: int) -> None:
    if sys.platform == "win32":
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(fd, fcntl.LOCK_UN)


@contextmanager
def locked(path: Path, wait_ms: int) -> Iterator[int]:
    """Hold the lock file at *path*, against other processes too, and yield its descriptor.

    The kernel frees the lock of a process that dies. Polls instead of blocking, so that a holder that was stopped
    costs its waiters an error and not forever.

    Raises:
        StoreBusyError: somebody else held it all the time.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        deadline = time.monotonic() + wait_ms / 1000
        pause = 0.0005
        while not _try_lock(fd):
            if time.monotonic() > deadline:
                raise StoreBusyError(f"{path}: another process has held this lock for more than {wait_ms} ms")
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        try:
            yield fd
        finally:
            _unlock(fd)
    finally:
        os.close(fd)


def read_at(fd: int, size: int, offset: int) -> bytes:
    """At most *size* bytes from *offset* on."""
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write *data* at *offset*, all of it."""
    view = memoryview(data)
    os.lseek(fd, offset, os.SEEK_SET)
    while view:
        view = view[os.write(fd, view) :]


def sync_file(fd: int) -> None:
    """Make the contents of *fd* durable."""
    getattr(os, "fdatasync", os.fsync)(fd)


def sync_folder(folder: Path) -> None:
    """Make the names in *folder* durable; a no-op where folders cannot be opened."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, chunks: Iterator[bytes], *, durable: bool) -> None:
    """Put a file with these contents at *path*: afterwards, and after a crash, the old one is there or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            offset = 0
            for chunk in chunks:
                write_all(fd, chunk, offset)
                offset += len(chunk)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_folder(path.parent)
