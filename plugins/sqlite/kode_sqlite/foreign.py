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

__all__ = ["is_foreign", "refuse_foreign"]

_SDK: Final = frozenset({("agents", "config_version"), ("messages", "seq"), ("tool_calls", "audit_trail")})
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
        names = _all_tables(os.path.realpath(path)) if is_unused else set()
    return names >= _SDK and not any(table == "kode_meta" for table, _ in names)


def _all_tables(path: str) -> set[tuple[str, str]]:
    if not os.path.isfile(path):  # noqa: PTH113 - raises nothing
        return set()
    names = _tables(path)
    log = f"{path}-wal"
    if not names and os.path.isfile(log) and max(map(os.path.getsize, (path, log))) < _SMALL:  # noqa: PTH113
        names = _tables_of_copy(path, log)
    return names


def _tables(path: str, how: str = "mode=ro&immutable=1") -> set[tuple[str, str]]:
    """Tables with their columns; empty if the file cannot be read, which opening it reports better."""
    try:
        with closing(sqlite3.connect(uri_of(path, how), uri=True)) as db:
            return set(
                db.execute(
                    "SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table'"
                )
            )
    except (sqlite3.Error, UnicodeError):  # a name in a damaged schema may not be UTF-8
        return set()


def _tables_of_copy(path: str, log: str) -> set[tuple[str, str]]:
    try:
        import shutil  # both take longer to import than a store to open
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            copy = str(Path(folder) / "copy.db")
            shutil.copyfile(path, copy)
            shutil.copyfile(log, f"{copy}-wal")
            return _tables(copy, "mode=rw")
    except OSError:  # no room, no descriptor: the open fails in the same way
        return set()
