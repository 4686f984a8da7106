"""Create the tables, and migrate tables of an older version to the present one."""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from kode_core.authoring.dropped import tables_dropped
from kode_core.errors import CorruptRecordError, SchemaVersionError, StoreBusyError
from kode_sqlite.errors import translated
from kode_sqlite.looking import looking
from kode_sqlite.schema import MIGRATIONS, Step

__all__ = ["Terms", "migrate", "script", "see_tables", "sql", "version_of"]

log = logging.getLogger("kode_sqlite")

_META: Final = (
    "CREATE TABLE IF NOT EXISTS kode_meta (key TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID"
)
_COLUMNS: Final = {"key": "TEXT", "value": "INTEGER"}
_NOTE: Final = "INSERT OR REPLACE INTO kode_meta (key, value) VALUES ('{}', {})"
_ENDED: Final = "DELETE FROM kode_meta WHERE key = 'schema_step'"
_PAUSE_S: Final = 0.02
_BUSY_MS: Final = 200
_IN_FILES: Final = 1
"""A value of ``temp_store``: sorting an index may need more space than the memory has."""
_CACHE: Final = -65536
_TELL_EVERY_S: Final = 10.0


class MigrationProgress(NamedTuple):
    """The progress of the tables' migration.

    Attributes:
        version: the version of the tables; 0 if there are none.
        step: the number of completed steps to the next version; None if none was begun.
    """

    version: int
    step: int | None = None


def migration_progress(db: sqlite3.Connection, path: str) -> MigrationProgress:
    """The version and step of the tables.

    Raises:
        CorruptRecordError: one of them is no number of a version or step.
    """
    if not db.execute("SELECT 1 FROM sqlite_master WHERE lower(name) = 'kode_meta'").fetchone():
        return MigrationProgress(0)
    columns = dict(db.execute("SELECT lower(name), type FROM pragma_table_info('kode_meta')").fetchall())
    found = dict[str, object]()
    if columns.keys() >= _COLUMNS.keys():
        found = dict(db.execute("SELECT key, value FROM kode_meta WHERE key IN ('schema_version', 'schema_step')"))
    if "schema_version" not in found and columns != _COLUMNS:
        raise CorruptRecordError(f"database {path}", "its kode_meta is not the table of a store; put back a backup")
    numbers = {key: _number(value) for key, value in found.items()}
    for key, number in numbers.items():
        if number is None or "schema_version" not in numbers:
            problem = f"the {key} in its kode_meta is not that of a store; put back a backup"
            raise CorruptRecordError(f"database {path}", problem)
    return MigrationProgress(numbers.get("schema_version") or 0, numbers.get("schema_step"))


def _number(value: Any) -> int | None:
    """The number from 0 up in a row of ``kode_meta``; a tool that copies tables may make a text or a float of it."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number >= 0 and number == float(value) else None


def version_of(db: sqlite3.Connection, path: str) -> int:
    """The version of the tables, 0 if there are none."""
    return migration_progress(db, path).version


# --- the steps to take ------------------------------------------------------------------------------------------------


def _steps(progress: MigrationProgress) -> list[Step]:
    """The transactions that lead from *place* to this version; each records its progress.

    New tables are created in a single transaction. The first transaction of a migration does nothing else, so that
    others soon see that it was begun.
    """
    if progress.version == 0:
        return [
            (_META, *(s for migration in MIGRATIONS for step in migration for s in step), *_arrived(len(MIGRATIONS)))
        ]
    steps: list[Step] = []
    begun = progress.step
    for version in range(progress.version, len(MIGRATIONS)):
        migration = MIGRATIONS[version]
        if begun is None:
            steps.append((_NOTE.format("schema_step", 0),))
        for i in range(begun or 0, len(migration)):
            is_last = i + 1 == len(migration)
            steps.append(
                (*migration[i], *(_arrived(version + 1) if is_last else (_NOTE.format("schema_step", i + 1),)))
            )
        begun = None
    return steps


def _arrived(version: int) -> Step:
    return (_NOTE.format("schema_version", version), _ENDED)


def sql(since: int = 0, step: int | None = None) -> list[str]:
    """The statements that lead from version *since*, with *step* steps of its migration done, to this one."""
    return [statement for some in _steps(MigrationProgress(since, step)) for statement in some]


@cache
def _tables(version: int = len(MIGRATIONS)) -> frozenset[str]:
    """The tables of a version but for ``kode_meta``."""
    statements = "\n".join(s for migration in MIGRATIONS[:version] for step in migration for s in step)
    return frozenset(re.findall(r"^CREATE TABLE (\w+)", statements, re.MULTILINE))


def _found(db: sqlite3.Connection) -> dict[str, str]:
    """The names of tables and views, in lower case, since SQLite compares them so, with their types."""
    named = "SELECT lower(name), type FROM sqlite_master WHERE type IN ('table', 'view') AND lower(name) GLOB 'kode_*'"
    return dict(db.execute(named))


def see_tables(db: sqlite3.Connection, path: str, version: int = len(MIGRATIONS)) -> None:
    """Raise StoreUnavailableError, with their names, if tables of a version were dropped."""
    found = _found(db)
    missing = sorted(name for name in {"kode_meta", *_tables(version)} if found.get(name) != "table")
    if missing:
        raise tables_dropped(path, missing, "this store has made", "that begin with kode_")


def script(path: str) -> str:
    """The SQL that brings the database at *path* to this version, or creates it if there is no database.

    Raises:
        SchemaVersionError: the tables have a newer version.
        StorageError: the file cannot be read, or is not a database.
    """
    progress = MigrationProgress(0)
    if Path(path).is_file():
        with translated(path), looking(path) as db:
            progress = migration_progress(db, path)
    _see_newer(progress, path)
    transactions = [
        "".join(f"{statement};\n" for statement in ("BEGIN IMMEDIATE", *s, "COMMIT")) for s in _steps(progress)
    ]
    return "\n".join(transactions) or f"-- {path} has schema {progress.version}, which is the present one.\n"


def _see_newer(progress: MigrationProgress, path: str) -> None:
    if progress.version > len(MIGRATIONS):
        raise SchemaVersionError(
            f"{path} has schema {progress.version}, and this kode-sqlite knows up to {len(MIGRATIONS)}: "
            "run: pip install --upgrade kode-sqlite"
        )


# --- taking the steps -------------------------------------------------------------------------------------------------


class Terms(NamedTuple):
    """The rules for taking turns with other processes.

    Attributes:
        lock: a lock that is held during writes.
        patience_s: how long to wait for other writers; waiting for another migration has no limit.
        heed: called now and then; an exception that it raises ends the work.
    """

    lock: Callable[[], AbstractContextManager[None]]
    patience_s: float
    heed: Callable[[], None]


def migrate(db: sqlite3.Connection, path: str, terms: Terms) -> None:
    """Bring the tables to this version, however long it takes; several processes may try at once (OPS-7, OPS-8).

    Each step is a transaction, so that after a kill the next migration continues where it ended, and others can write
    between two steps. Processes take turns: the one with the lock takes the next step.

    Raises:
        SchemaVersionError: the tables have a newer version; nothing is changed.
        StoreBusyError: another process was writing all the time.
        StoreUnavailableError: tables were dropped.
    """
    if migration_progress(db, path) != MigrationProgress(len(MIGRATIONS)):
        with _settings(db, busy_timeout=_BUSY_MS, temp_store=_IN_FILES, cache_size=_CACHE, cache_spill=1):
            while _take_step(db, path, terms):
                pass
    see_tables(db, path)


@contextmanager
def _settings(db: sqlite3.Connection, **wanted: int) -> Iterator[None]:
    """Change settings of the connection, and restore them at the end."""
    before = {name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted}
    try:
        for name, value in wanted.items():
            db.execute(f"PRAGMA {name} = {value:d}")
        yield
    finally:
        for name, value in before.items():
            db.execute(f"PRAGMA {name} = {value:d}")


def _take_step(db: sqlite3.Connection, path: str, terms: Terms) -> bool:
    """Take the next step; False if none is left after it."""
    with _turn(db, path, terms):
        progress = migration_progress(db, path)
        _see_newer(progress, path)
        _see_beginning(db, path, progress)
        steps = _steps(progress)
        if steps and progress.version:
            _tell(path, progress)
        if steps:
            _do(db, steps[0])
    return len(steps) > 1


def _see_beginning(db: sqlite3.Connection, path: str, progress: MigrationProgress) -> None:
    """Refuse to begin where the tables do not belong to the version."""
    if progress.step is not None:
        return
    if progress.version:
        see_tables(db, path, progress.version)
    there = sorted((_tables() - _tables(progress.version)) & _found(db).keys())
    if there:
        problem = f"of which schema {progress.version} has none" if progress.version else "and no version of a store"
        raise CorruptRecordError(f"database {path}", f"it has {', '.join(there)}, {problem}; put back a backup")


def _do(db: sqlite3.Connection, step: Step) -> None:
    for statement in step:
        db.execute(statement)


def _tell(path: str, progress: MigrationProgress) -> None:
    if progress.step is None:
        log.warning(
            "%s has schema %d and is brought to %d in place, which takes a while if it is large; calls that open it "
            "wait. It can be interrupted, and goes on at the next opening",
            path,
            progress.version,
            progress.version + 1,
        )
    else:
        of = len(MIGRATIONS[progress.version])
        log.info("%s: step %d of %d to schema %d", path, progress.step + 1, of, progress.version + 1)


@contextmanager
def _turn(db: sqlite3.Connection, path: str, terms: Terms) -> Iterator[None]:
    """A write transaction, begun as soon as no other process has one."""
    with _begun(db, path, terms):
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # SQLite may roll a transaction back by itself, for example when the disk is full
                db.execute("ROLLBACK")
            raise


def _begun(db: sqlite3.Connection, path: str, terms: Terms) -> ExitStack:
    """Begin a transaction, and return the locks that are held for it."""
    start = logged_at = time.monotonic()
    progress = migration_progress(db, path)
    while True:
        terms.heed()
        try:
            with ExitStack() as stack:
                stack.enter_context(terms.lock())
                db.execute("BEGIN IMMEDIATE")
                return stack.pop_all()
        except (sqlite3.OperationalError, StoreBusyError) as exc:
            if isinstance(exc, sqlite3.OperationalError) and exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            now, before, progress = time.monotonic(), progress, migration_progress(db, path)
            if progress != before:  # another process takes steps, and has perhaps just taken the last one
                start = now
            if now - start > terms.patience_s and progress.step is None:
                raise
            if now - logged_at > _TELL_EVERY_S:
                logged_at = now
                log.warning("%s: another process brings it to another schema; waiting", path)
        time.sleep(_PAUSE_S)
