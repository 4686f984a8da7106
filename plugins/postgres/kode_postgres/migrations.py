"""Bring the tables to this version when a store is opened, while other stores may try the same.

Each step is a transaction under an advisory lock. An interrupted step leaves nothing behind, and the next store that is
opened continues with it. Indexes are made in transactions, and not CONCURRENTLY. That would wait for every transaction
of the database, including a dump that takes hours; if interrupted, it leaves a useless index behind; it is impossible
on partitioned tables; and it needs a session lock, which does not exist behind PgBouncer. The price is that the table
is read-only while one of its indexes is made. To avoid that, make the indexes beforehand with the same names: they are
found.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import asyncpg

from kode_core.authoring.dropped import tables_dropped
from kode_core.authoring.opening import without_deadline
from kode_core.errors import (
    CorruptRecordError,
    SchemaVersionError,
    StorageError,
    StoreBusyError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from kode_postgres import schema
from kode_postgres.errors import is_conflict, is_locked_out
from kode_postgres.schema import DEFAULT_PREFIX, Step, Tables, make_schema, steps
from kode_postgres.session import Session
from kode_postgres.text_tables import see_texts

__all__ = ["migrate", "probe", "version_of"]

log = logging.getLogger("kode_core")

_ANY_TIME_S: Final = 7 * 86_400.0
_TABLE_LOCK: Final = "2s"
"""How long a step waits for its table: all writers of the table wait behind it."""
_LOCKED_S: Final = 600.0
_MISSING: Final = (
    "SELECT name FROM unnest($1::text[]) name, (SELECT FROM pg_catalog.pg_class LIMIT 1) c"
    " WHERE to_regclass(name) IS NULL"
)
_LIMITS: Final = ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")


async def version_of(con: Any, tables: Tables) -> int:
    """The version of the tables, 0 if there are none.

    Raises:
        CorruptRecordError: it is less than 0.
    """
    # The statement contains a table: without one, a session may not yet know tables that another session has just
    # created.
    if await con.fetchval("SELECT to_regclass($1)::text FROM pg_catalog.pg_class LIMIT 1", tables.meta) is None:
        return 0
    found = int(await con.fetchval(f"SELECT value FROM {tables.meta} WHERE key = 'schema_version'") or 0)
    if found < 0:
        raise CorruptRecordError(tables.meta, f"its schema_version is {found}; put back a backup")
    return found


async def _missing(con: Any, tables: Tables, version: int) -> list[str]:
    """The tables of a version that are not there.

    The statement contains a table for the reason of :func:`version_of`.
    """
    return [row[0] for row in await con.fetch(_MISSING, list(schema.table_names(tables, version)))]


async def probe(session: Session, tables: Tables, place: str) -> None:
    """Check that all tables exist, with the tables of the index of texts, and that this server takes writes.

    Raises:
        StoreUnavailableError: tables were dropped; without the table of the version, the server says so itself.
    """
    rows = await session.fetch(
        f"WITH written AS (UPDATE {tables.meta} SET value = value WHERE key = 'a key that is not there') {_MISSING}",
        list(schema.table_names(tables)),
    )
    if rows:
        raise _dropped(place, tables, [row[0] for row in rows])
    await see_texts(session, tables, place)


def _dropped(place: str, tables: Tables, names: Sequence[str]) -> StoreUnavailableError:
    return tables_dropped(place, names, f"{tables.meta} says were made", f"and {_remedy(tables, 0)}")


async def _home(con: Any, tables: Tables) -> str:
    """The schema of the tables; if the options do not name one, the first of the search path."""
    if tables.schema is not None:
        return tables.schema
    found = await con.fetchval(
        "SELECT coalesce((SELECT n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
        " ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)), current_schema())::text",
        tables.meta,
    )
    return found or ""


async def migrate(con: Any, tables: Tables, place: str, *, create: bool, seconds: float) -> None:
    """Bring the tables to this version; several stores may try at once (OPS-7, OPS-8).

    Creating new tables may take *seconds*.

    Raises:
        SchemaVersionError: the tables have a newer version; nothing is changed.
        StoreReadOnlyError: the user lacks the right to change the tables.
        StoreUnavailableError: tables have to be created or changed, and *create* forbids it; or some were dropped.
    """
    async with asyncio.timeout(seconds), con.transaction(isolation="read_committed"):
        tables.home = await _home(con, tables)
        version = await version_of(con, tables)
        missing = await _missing(con, tables, version) if 0 < version <= len(schema.MIGRATIONS) else []
    if missing:
        raise _dropped(place, tables, missing)
    if version == len(schema.MIGRATIONS):
        return
    _see_newer(version, place)
    if not create:
        what = f"the tables are of version {version}" if version else "there are no tables of kode"
        raise StoreUnavailableError(f"{place}: {what} and create is off; {_remedy(tables, version)}")
    try:
        if not version:
            async with asyncio.timeout(seconds):
                return await _Migration(con, tables, place).run()
        log.info("%s: tables of version %d become version %d", place, version, len(schema.MIGRATIONS))
        with without_deadline():
            await _Migration(con, tables, place).run()
    except asyncpg.InsufficientPrivilegeError as exc:
        if not version:
            raise
        raise StoreReadOnlyError(
            f"{place}: the tables are of version {version}, and the user lacks the right to change them"
            f" ({exc.sqlstate}: {exc.args[0]}); {_remedy(tables, version)}"
        ) from exc


class _Migration:
    """The steps of one store, as far as other stores do not take them."""

    def __init__(self, con: Any, tables: Tables, place: str) -> None:
        self._con = con
        self._tables = tables
        self._place = place
        self._key = f"kode schema {tables.identity}"
        self._busy_since: float | None = None

    async def run(self) -> None:
        """Take step after step, and wait while another store takes one."""
        while True:
            try:
                async with self._transaction():
                    is_mine = await self._begin()
                    if is_mine and not await self._step():
                        return
                self._busy_since = None
            except asyncpg.PostgresError as exc:
                if not (is_locked_out(exc) or is_conflict(exc)):
                    raise
                self._note_busy(exc)
                is_mine = False
            if not is_mine:
                await asyncio.sleep(random.uniform(0.05, 0.3))  # noqa: S311

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        """A transaction that raises the error that broke it, even if the connection is gone."""
        transaction = self._con.transaction(isolation="read_committed")
        await transaction.start()
        try:
            yield
        except BaseException:
            with suppress(asyncpg.InterfaceError):
                await transaction.rollback()
            raise
        await transaction.commit()

    async def _begin(self) -> bool:
        """Lift the limits of this transaction; return True if it has the lock.

        The lock is requested repeatedly: a limit of a pooler may end a statement that waits for it.
        """
        await self._con.execute(
            "SELECT set_config(name, CASE name WHEN 'lock_timeout' THEN $2 ELSE '0' END, true) FROM pg_settings"
            " WHERE name = 'lock_timeout' OR name = ANY ($1::text[])",
            *(_LIMITS, _TABLE_LOCK),
        )
        return bool(await self._con.fetchval("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 20))", self._key))

    async def _step(self) -> bool:
        """Take the next step, under the lock; False if there is none."""
        version = await version_of(self._con, self._tables)
        _see_newer(version, self._place)
        for step in steps(self._tables, version) if version < len(schema.MIGRATIONS) else ():
            if not await self._is_made(step):
                await self._make(step)
                return True
        return False

    async def _is_made(self, step: Step) -> bool:
        if step.makes is None:
            return False
        is_valid = await self._con.fetchval(
            "SELECT indisvalid FROM pg_catalog.pg_index WHERE indexrelid = to_regclass($1)", step.makes
        )
        if is_valid is False:
            raise StorageError(
                f"{self._place}: the index {step.makes} was not made to its end, or is being made;"
                f" wait for that, or run: DROP INDEX {step.makes}"
            )
        return is_valid is not None

    async def _make(self, step: Step) -> None:
        schemas = "SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname = $1"
        has_schema = await self._con.fetchval(schemas, self._tables.schema)
        for statement in step.statements:
            # Even with IF NOT EXISTS the statement needs the right to create schemas.
            if not (has_schema and statement == make_schema(self._tables)):
                await self._con.execute(statement, timeout=_ANY_TIME_S)

    def _note_busy(self, exc: Exception) -> None:
        now = time.monotonic()
        self._busy_since = self._busy_since or now
        if now > self._busy_since + _LOCKED_S:
            raise StoreBusyError(
                f"{self._place}: the tables are of an older version, and other transactions kept one of them locked for"
                f" {_LOCKED_S:g} s; end those, and open the store again"
            ) from exc


def _remedy(tables: Tables, version: int) -> str:
    url = "postgres" if tables.prefix == DEFAULT_PREFIX else f'"postgres:?table_prefix={tables.prefix}"'
    where = "" if tables.schema is None else f" --schema {tables.schema}"
    since, right = (f" --from {version}", "change them") if version else ("", "create tables")
    return f"run what 'kode schema {url}{where}{since} --print' prints, as a user who may {right}"


def _see_newer(version: int, place: str) -> None:
    if version > len(schema.MIGRATIONS):
        raise SchemaVersionError(
            f"{place} has schema {version}, and this kode-postgres knows up to {len(schema.MIGRATIONS)}: "
            "run: pip install --upgrade kode-postgres"
        )
