"""Paths: checks of paths from callers and configurations, and the removal of files and folders."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kode_core.errors import ConfigurationError

__all__ = ["local_path", "remove_abandoned", "remove_all", "working_folder"]

_LONGEST: Final = 4000
_LONGEST_NAME: Final = 255


def local_path(given: Any, what: str) -> Path:
    """The absolute path of *given*, with ``~`` expanded; errors call it *what*.

    Raises:
        ConfigurationError: it is not a path, has a NUL, is not UTF-8, names an unknown home, is too long, or is
            relative to a working directory that was removed.
    """
    problem, path = _read(given)
    if path is None:
        raise ConfigurationError(f"{what} {problem}")
    if not path.is_absolute():
        path = working_folder() / path
    return path


def _read(given: Any) -> tuple[str, Path | None]:
    try:
        text = os.fspath(given) if isinstance(given, os.PathLike) else given
    except Exception as exc:  # noqa: BLE001 - from an object of the caller's
        return f"cannot be read as a path ({type(exc).__name__})", None
    if not isinstance(text, str):
        return f"must be a str or a Path, got {type(text).__name__}", None
    if "\0" in text:
        return "has a NUL, which no name of a file can have", None
    if not text.isascii() and text.encode(errors="replace").decode() != text:
        return "is not UTF-8", None
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        return "begins with ~ and a name, and there is no home folder for it", None
    if len(text) > _LONGEST or any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        return f"is too long: a name has at most {_LONGEST_NAME} bytes", None
    return "", path


def working_folder() -> Path:
    """The working directory.

    Raises:
        ConfigurationError: it was removed.
    """
    try:
        return Path.cwd()
    except OSError:
        pass
    raise ConfigurationError("the working directory was removed: change to another one, or give absolute paths")


def remove_all(paths: Iterable[Path]) -> None:
    """Remove files, and folders with their contents; missing paths are ignored."""
    for path in paths:
        if path.is_dir():
            _remove_folder(path)
        else:
            path.unlink(missing_ok=True)


def remove_abandoned(path: Path, age_s: float) -> None:
    """Remove a file, or a folder with its contents, if it has not changed for *age_s* seconds."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime <= age_s:
            return
        if path.is_dir():
            _remove_folder(path)
        else:
            path.unlink()


def _remove_folder(path: Path) -> None:
    with suppress(OSError):  # a process with no descriptor left can neither import nor list a folder
        import shutil  # with its archive modules it takes longer to import than a store to open

        shutil.rmtree(path, ignore_errors=True)
