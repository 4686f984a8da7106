"""Copy a store while it is in use."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from kode_core.authoring.files import system_error
from kode_core.authoring.modes import create_folders
from kode_core.authoring.paths import remove_all
from kode_core.engine import Progress
from kode_core.errors import InvalidArgumentError, StoreFullError, StoreReadOnlyError, StoreTimeoutError
from kode_core.ids import quoted
from kode_core.store.context import Context
from kode_core.store.events import EventAppender
from kode_core.store.methods import METHODS
from kode_core.store.steps import Steps
from kode_core.store.underway import OTHERS_S

__all__ = ["backup"]

_LONGEST: Final = 1_024

_under_way: Final[set[str]] = set()
"""The targets of all backups of this process."""


async def backup(context: Context, appender: EventAppender, target: str | Path, progress: Progress) -> Sequence[Path]:
    """Let the engine copy everything to *target*, and return the paths that were created."""
    steps, copy_path = Steps(context, METHODS["backup"]), _new_path(target)
    absolute = copy_path.absolute()

    has_ended = asyncio.Event()

    async def copy(tell: Progress) -> Sequence[Path]:
        try:
            return await context.engine.backup(absolute, tell)
        finally:
            has_ended.set()

    await steps(appender.drain, seconds=OTHERS_S)
    with _reserved(absolute), _folders(absolute.parent):
        try:
            paths = await steps.watched(copy, progress, remove_all)
        except StoreTimeoutError as exc:
            fate = "was removed" if has_ended.is_set() else "is removed when the engine's call ends"
            raise StoreTimeoutError(f"{exc}; what was made of the copy {fate}") from exc.__cause__
    return [copy_path.parent / path.name for path in paths]


def _new_path(target: object) -> Path:
    """The path of the copy; nothing may exist there."""
    if not isinstance(target, (str, Path)) or not str(target):
        raise InvalidArgumentError(f"target must be a path, got {quoted(target)}")
    try:
        os.fsencode(target)
        path = Path(target).expanduser()
        if "\0" in str(target):
            raise ValueError
        path.absolute()
    except ValueError:
        raise InvalidArgumentError(f"target {str(target)!r:.200} cannot be the name of a file") from None
    except (RuntimeError, OSError) as exc:
        raise InvalidArgumentError(f"target {str(target)!r:.200} leads nowhere: {exc}") from None
    try:
        path.lstat()
    except FileNotFoundError:
        return path
    except OSError as exc:
        raise _refused(path, exc) from exc
    raise InvalidArgumentError(f"{path} exists already; a backup does not overwrite")


def _shown(path: Path) -> str:
    """A path for errors; a path that is too long for the system is cut."""
    text = str(path)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


@contextmanager
def _reserved(path: Path) -> Iterator[None]:
    """Refuse a second backup of this process to one target; between two processes the engine decides."""
    name = os.path.realpath(path)
    if name in _under_way:
        raise InvalidArgumentError(f"another backup to {path} is under way")
    _under_way.add(name)
    try:
        yield
    finally:
        _under_way.discard(name)


@contextmanager
def _folders(folder: Path) -> Iterator[None]:
    """Create the folders above a backup, and remove the created ones if the backup fails."""
    try:
        created = create_folders(folder)
    except OSError as exc:
        raise _refused(folder, exc) from exc
    try:
        yield
    except BaseException:
        with suppress(OSError):  # another process has put something there
            for each in reversed(created):
                each.rmdir()
        raise


def _refused(folder: Path, exc: OSError) -> InvalidArgumentError | StoreReadOnlyError | StoreFullError:
    error = system_error(exc, f"{_shown(folder)} cannot be made")
    return error if isinstance(error, StoreReadOnlyError | StoreFullError) else InvalidArgumentError(str(error))
