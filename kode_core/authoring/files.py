"""Files of an engine: opened plainly, made for their owner, and locked against other processes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from kode_core.authoring.modes import create_file, set_mode_and_owner
from kode_core.errors import StorageError, StoreFullError, StoreReadOnlyError, StoreUnavailableError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["make_file", "open_file", "open_or_make", "system_error", "take_lock", "unlock"]

_TRIES: Final = 100


_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


_LOCKED_BYTE: Final = 1 << 20  # Windows locks bytes: this one is never read or written


_PLAINLY: Final = sum(getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK"))


_KINDS: Final[dict[int, type[StorageError]]] = {
    errno.ENOSPC: StoreFullError,
    errno.EDQUOT: StoreFullError,
    errno.EFBIG: StoreFullError,
    errno.EROFS: StoreReadOnlyError,
    errno.EACCES: StoreReadOnlyError,
    errno.EPERM: StoreReadOnlyError,
}


def system_error(exc: OSError, problem: str) -> StorageError:
    """The error of this library for one of the system: no room, no permission, or another; *problem* begins it."""
    kind = _KINDS.get(exc.errno or 0, StoreUnavailableError)
    words = exc.strerror or str(exc)
    if words == os.strerror(errno.ENOTDIR):
        words = "a part of the path is a file, and not a folder"
    return kind(f"{problem}: {words}")


def open_file(path: Path, flags: int) -> int:
    """A descriptor of *path*, in binary mode on every system; opening it does not block."""
    return os.open(path, flags | _PLAINLY)


def make_file(path: Path, flags: int, mode: int, replaced: os.stat_result | None = None) -> int:
    """A descriptor of a new file, which gets the owner of the file that it replaces, or else of its folder.

    Raises:
        FileExistsError: *path* exists.
    """
    fd = create_file(path, flags | _PLAINLY, mode)
    if replaced is not None or (os.name != "nt" and os.geteuid() == 0):
        set_mode_and_owner(fd, mode, replaced or path.parent.stat())
    return fd


def open_or_make(path: Path, flags: int, make: Callable[[], int]) -> int:
    """A descriptor of *path*, or of the file that *make* creates there if it does not exist.

    Raises:
        FileNotFoundError: *path* is a link that leads nowhere.
    """
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            return open_file(path, flags)
        with suppress(FileExistsError):  # another process was faster, or a link leads nowhere
            return make()
    raise FileNotFoundError(errno.ENOENT, "it leads nowhere")


def take_lock(fd: int) -> bool:
    """Lock the whole file of *fd*, against other processes too; False when it is held.

    Raises:
        OSError: the file system keeps no locks.
    """
    try:
        if sys.platform == "win32":
            os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as exc:
        if exc.errno not in _NO_LOCKS:
            raise
        problem = f"this file system keeps no locks ({exc.strerror}); put the store on a local disk"
        raise OSError(exc.errno, problem) from exc
    return True


def unlock(fd: int) -> None:
    """Release the lock that *fd* holds, and close it."""
    try:
        if sys.platform == "win32":
            os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)
