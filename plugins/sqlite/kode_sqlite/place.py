"""The file of a database: its path, and its making."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from kode_core.authoring.modes import create_file, create_folders, mode_bits
from kode_core.errors import ConfigurationError, KodeError, StoreReadOnlyError, StoreUnavailableError
from kode_sqlite.inuse import unused
from kode_sqlite.options import SqliteOptions

__all__ = ["absolute_path", "make_file"]


def absolute_path(db_path: str) -> str:
    """The path as SQLite gets it; one that names no file raises ConfigurationError."""
    try:
        path = str(Path(db_path).expanduser().absolute())
        path.encode()
    except UnicodeError as exc:
        raise ConfigurationError(f"db_path {db_path!r:.200} names no file for SQLite: its name is no UTF-8") from exc
    except (RuntimeError, FileNotFoundError) as exc:  # no such home, or no working directory any more
        raise ConfigurationError(f"db_path {db_path!r:.200} names no file: {exc}") from exc
    if "\0" in path:
        raise ConfigurationError(f"db_path {db_path!r:.200} names no file: it contains a NUL character")
    return path


def make_file(options: SqliteOptions) -> None:
    """Create the file and its folders if they do not exist: SQLite itself would let others read the file."""
    path, mode = Path(options.db_path), mode_bits(options.file_mode)
    try:
        if path.is_dir():
            raise StoreUnavailableError(f"{path} is a folder; db_path must name a file, as in {path}/agents.db")
        create_folders(path.parent, mode)
    except PermissionError as exc:
        raise StoreReadOnlyError(f"{path.parent} cannot be made: {exc.strerror}") from exc
    except OSError as exc:
        if isinstance(exc, KodeError):
            raise
        raise StoreUnavailableError(f"{path.parent} cannot be made: {exc.strerror}") from exc
    with unused(str(path)), suppress(OSError):  # SQLite's error says more
        os.close(create_file(Path(os.path.realpath(path)), os.O_RDWR, mode))
    with suppress(OSError):
        links = path.stat().st_nlink
        if links > 1:
            raise ConfigurationError(
                f"{path} has {links} names (hard links): SQLite keeps a log for each of them, and two that are used "
                f"damage the database; keep one of them (find / -samefile {path}), or copy the file"
            )
