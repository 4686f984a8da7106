"""Drafts: files and folders that get their names once they are complete, and that outlive no process for long.

A process holds a lock on its draft. A draft without a lock is of a process that died, and the next draft of the same
name removes it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from kode_core.authoring.files import open_file, take_lock

__all__ = ["draft_of", "remove_dead_drafts"]

_HAS_LOCKS: Final = os.name == "posix"
"""Windows removes no file that is open, so that drafts of files need no lock there."""
_TRIES: Final = 10
_LOOKS: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)


def _begin(path: Path) -> str:
    return f".{path.name[:200]}."


@contextmanager
def draft_of(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """A new file or folder next to *path*, which *make* makes; it is removed at the end, unless it was renamed.

    Raises:
        OSError: it cannot be made.
    """
    remove_dead_drafts(path)
    draft, held = _new(path, make)
    try:
        yield draft
    finally:
        _remove(draft)
        if held >= 0:
            os.close(held)


def _new(path: Path, make: Callable[[Path], object]) -> tuple[Path, int]:
    """A draft, and the descriptor that holds it."""
    for _ in range(_TRIES):
        draft = path.with_name(f"{_begin(path)}{secrets.token_hex(4)}.part")
        make(draft)
        held = _held(draft)
        if held is not None:
            return draft, held
        _remove(draft)  # another process took it for a dead one in the moment before the lock
    raise OSError(errno.EAGAIN, "the draft of the file cannot be locked")


def remove_dead_drafts(path: Path) -> None:
    """Remove the drafts of *path* that no living process holds."""
    name = re.compile(re.escape(_begin(path)) + "[0-9a-f]{8}\\.part")
    with suppress(OSError), os.scandir(path.parent) as entries:
        for found in [Path(entry.path) for entry in entries if name.fullmatch(entry.name)]:
            if not _HAS_LOCKS:
                if not found.is_dir():
                    _remove(found)
                continue
            held = _held(found)
            if held is not None and held >= 0:
                try:
                    _remove(found)
                finally:
                    os.close(held)


def _held(draft: Path) -> int | None:
    """A descriptor that holds the draft; None if another process holds or has removed it, -1 if there are no locks."""
    if not _HAS_LOCKS:
        return -1
    try:
        descriptor = open_file(draft, _LOOKS)
    except OSError:  # it was removed, or is no file and no folder
        return None
    is_held = False
    try:
        is_held = take_lock(descriptor) and os.path.samestat(os.fstat(descriptor), draft.lstat())
    except FileNotFoundError:
        return None
    except OSError:  # a file system without locks: no process can tell, and none removes anything
        return -1
    finally:
        if not is_held:
            os.close(descriptor)
    return descriptor if is_held else None


def _remove(draft: Path) -> None:
    with suppress(OSError):
        if stat.S_ISDIR(draft.lstat().st_mode):
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink()
