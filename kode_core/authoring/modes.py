"""The modes of new files and folders: only their owner may read them, unless ``file_mode`` allows more."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec

__all__ = ["PRIVATE", "FileMode", "create_file", "create_folders", "mode_bits", "set_mode_and_owner", "sync_folder"]

FileMode: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"^0?6[046][046]\Z", extra={"form": "a mode such as 0600, 0640 or 0660, as a text"})
]
"""The type of the option ``file_mode``; users who may read the files may also enter the folders."""

PRIVATE: Final = 0o600
_NO_SYNC: Final = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of syncing a folder that this process may not read, or on file systems that sync no folders."""


def mode_bits(file_mode: str) -> int:
    """The mode that the option stands for."""
    return int(file_mode, 8)


def create_file(path: Path, flags: int, mode: int = PRIVATE) -> int:
    """A descriptor of a new file with exactly this mode, whatever the umask.

    Raises:
        FileExistsError: *path* exists, possibly as a link that leads nowhere.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode & PRIVATE)
    set_mode_and_owner(fd, mode)
    return fd


def set_mode_and_owner(fd: int, mode: int, like: os.stat_result | None = None) -> None:
    """Give a new file or folder its mode and, if this process may, the owner and the group of *like*.

    So a tool that root runs leaves no file that the service's user cannot open.
    """
    if os.name == "nt":
        return
    with suppress(OSError):  # a file system without owners and modes
        present = os.fstat(fd)
        if like is not None and (like.st_uid, like.st_gid) != (present.st_uid, present.st_gid):
            with suppress(PermissionError):
                os.fchown(fd, like.st_uid if os.geteuid() == 0 else -1, like.st_gid)
        if present.st_mode & 0o777 != mode:
            os.fchmod(fd, present.st_mode & 0o7000 | mode)


def create_folders(folder: Path, mode: int = PRIVATE, *, like: Path | None = None) -> list[Path]:
    """Create a folder and its missing parents, and return the created ones, outermost first; or none, after an error.

    Users who may read files of this *mode* may enter them. They get the owner of the folder *like*. Their names are
    synced, so that no file in them is lost with a folder above it.

    Raises:
        NotADirectoryError: there is something else in the place of a folder; the error's text says what to do.
    """
    created: list[Path] = []
    try:
        missing = list(takewhile(lambda each: not each.is_dir(), (folder, *folder.parents)))
        for each in reversed(missing):
            try:
                each.mkdir(0o700)
            except FileExistsError:
                if not each.is_dir():
                    what = f"{each.absolute()} is no folder; move it away, or give another path"
                    raise NotADirectoryError(errno.ENOTDIR, what) from None
                continue  # another process was faster
            created.append(each)
            _open_up(each, 0o700 | mode | (mode & 0o044) >> 2, like)
        for each in missing:  # also if another process was faster: it may not have synced them yet
            _sync_names(each.parent)
    except OSError:
        with suppress(OSError):
            for each in reversed(created):
                each.rmdir()
        raise
    return created


def _open_up(folder: Path, mode: int, like: Path | None) -> None:
    if os.name == "nt":
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(folder, flags)
    except PermissionError:  # a umask that takes the right to read from the owner as well
        folder.chmod(0o700)
        fd = os.open(folder, flags)
    try:
        set_mode_and_owner(fd, mode, None if like is None else like.stat())
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make the names in *folder* durable; a no-op on systems where folders cannot be opened."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_names(folder: Path) -> None:
    try:
        sync_folder(folder)
    except OSError as exc:
        if exc.errno not in _NO_SYNC:
            raise
