"""The modes of what a store makes: its owner alone may read files and folders, unless ``file_mode`` says more."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec

__all__ = ["PRIVATE", "FileMode", "create_file", "create_folders", "mode_bits", "settle"]

FileMode: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"^0?6[046][046]\Z", extra={"form": "a mode such as 0600, 0640 or 0660, as a text"})
]
"""The type of the option ``file_mode``; folders can be entered by those who may read the files."""

PRIVATE: Final = 0o600


def mode_bits(file_mode: str) -> int:
    """The mode that the option says."""
    return int(file_mode, 8)


def create_file(path: Path, flags: int, mode: int = PRIVATE) -> int:
    """A descriptor of a new file with exactly this mode, whatever the umask is.

    Raises:
        FileExistsError: there is something at *path*, be it a link that leads nowhere.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode & PRIVATE)
    settle(fd, mode)
    return fd


def settle(fd: int, mode: int, like: os.stat_result | None = None) -> None:
    """Give a new file or folder its mode and, where this process may, the owner and the group of *like*.

    A tool that root runs thereby leaves nothing that the service of another user cannot open.
    """
    if os.name == "nt":
        return
    with suppress(OSError):  # a file system without owners and modes
        made = os.fstat(fd)
        if like is not None and (like.st_uid, like.st_gid) != (made.st_uid, made.st_gid):
            with suppress(PermissionError):
                os.fchown(fd, like.st_uid if os.geteuid() == 0 else -1, like.st_gid)
        if made.st_mode & 0o777 != mode:
            os.fchmod(fd, made.st_mode & 0o7000 | mode)


def create_folders(folder: Path, mode: int = PRIVATE, *, like: Path | None = None) -> list[Path]:
    """Make a folder with those above it, and return the ones that were made, outermost first; after an error, none.

    Those who may read files of this *mode* may enter them. They belong to whom the folder *like* belongs to.
    """
    made: list[Path] = []
    try:
        for each in reversed(list(takewhile(lambda each: not each.is_dir(), (folder, *folder.parents)))):
            try:
                each.mkdir(0o700)
            except FileExistsError:
                if not each.is_dir():
                    raise
                continue  # somebody else was faster
            made.append(each)
            _open_up(each, 0o700 | mode | (mode & 0o044) >> 2, like)
    except OSError:
        with suppress(OSError):
            for each in reversed(made):
                each.rmdir()
        raise
    return made


def _open_up(folder: Path, mode: int, like: Path | None) -> None:
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        settle(fd, mode, None if like is None else like.stat())
    finally:
        os.close(fd)
