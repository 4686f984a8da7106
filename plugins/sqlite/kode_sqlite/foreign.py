"""Detect databases that the KODE SDK for TypeScript wrote, without changing a byte of them."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from kode_core.errors import ForeignStoreError
from kode_sqlite.inuse import unused
from kode_sqlite.uris import uri_of

__all__ = ["has_sdk_tables", "is_foreign", "refuse_foreign"]

_SDK: Final = {"agents": "config_version", "messages": "seq", "tool_calls": "audit_trail"}
"""Tables of the SDK, each with a column that distinguishes it from other tables of the same name."""
_SMALL: Final = 1 << 20


def refuse_foreign(path: str) -> None:
    """Check that the database at *path* is not the SDK's, with none of our tables.

    A database that a store of this process has open was checked before, and another look would drop its locks. It is
    opened as immutable, so that SQLite creates no journal, shared memory or lock file. Tables that are only in the
    write-ahead log, as after a crash of a young database, are read in a copy.

    Raises:
        ForeignStoreError: it is the SDK's.
    """
    if is_foreign(path):
        raise ForeignStoreError(path, "sqlite")


def is_foreign(path: str) -> bool:
    """Whether the database at *path* has the SDK's tables and none of ours."""
    with unused(path) as is_unused:
        return is_unused and bool(_looked_up(os.path.realpath(path)))


def has_sdk_tables(db: sqlite3.Connection) -> bool:
    """Whether an open database has the SDK's tables and none of ours.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    return bool(_is_of_sdk(db))


def _is_of_sdk(db: sqlite3.Connection) -> bool | None:
    """None if there are no tables. The columns are read only if all names of the SDK exist, and none of ours."""
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return None
    if "kode_meta" in tables or not tables >= _SDK.keys():
        return False
    return all(
        db.execute("SELECT 1 FROM pragma_table_info(?) WHERE name = ?", names).fetchone() for names in _SDK.items()
    )


def _looked_up(path: str) -> bool | None:
    if not os.path.isfile(path):  # noqa: PTH113 - raises nothing
        return None
    found = _looked_at(path, "mode=ro&immutable=1")
    if found is None:
        sides = [f"{path}{side}" for side in ("-wal", "-journal") if os.path.isfile(f"{path}{side}")]  # noqa: PTH113
        if sides and max(map(os.path.getsize, (path, *sides))) < _SMALL:
            return _looked_at_copy(path, sides)
    return found


def _looked_at(path: str, how: str) -> bool | None:
    """None also if the file cannot be read, which opening it reports better."""
    try:
        with closing(sqlite3.connect(uri_of(path, how), uri=True)) as db:
            return _is_of_sdk(db)
    except (sqlite3.Error, UnicodeError):  # a name in a damaged schema may not be UTF-8
        return None


def _looked_at_copy(path: str, sides: list[str]) -> bool | None:
    try:
        import shutil  # both take longer to import than a store to open
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            copy = str(Path(folder) / "copy.db")
            for file in (path, *sides):
                shutil.copyfile(file, f"{copy}{file.removeprefix(path)}")
            return _looked_at(copy, "mode=rw")
    except OSError:  # no room, no descriptor: the open fails in the same way
        return None
