"""The databases of ADK's services, as tables to read: SQLite and PostgreSQL by the core, others by SQLAlchemy."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from kode_core import BackendImportError, ConfigurationError, StorageError
from kode_core.authoring.foreign_tables import ForeignTables
from kode_core.formats.tables import bare_scheme, open_tables

__all__ = ["is_of_core", "open_database", "open_sqlalchemy"]

_OF_CORE: Final = ("sqlite", "postgres", "postgresql")
_FETCH: Final = ("mssql", "oracle")


def is_of_core(source: str) -> bool:
    """Whether the core reads the database itself."""
    return "://" not in source or bare_scheme(source).partition(":")[0] in _OF_CORE


@asynccontextmanager
async def open_database(source: str) -> AsyncIterator[ForeignTables]:
    """The tables of a file of SQLite, or of any URL that ``DatabaseSessionService`` takes.

    Raises:
        ConfigurationError: there is no such database.
        BackendImportError: a package that reads it is not installed.
        StorageError: it cannot be read.
    """
    async with (open_tables if is_of_core(source) else open_sqlalchemy)(source) as tables:
        yield tables


class _Tables:
    """The tables of one transaction."""

    def __init__(self, connection: Any, sqlalchemy: Any) -> None:
        self._connection = connection
        self._sqlalchemy = sqlalchemy

    async def columns(self, table: str) -> frozenset[str]:
        def look(connection: Any) -> frozenset[str]:
            inspector = self._sqlalchemy.inspect(connection)
            if not inspector.has_table(table):
                return frozenset()
            return frozenset(str(column["name"]) for column in inspector.get_columns(table))

        with _errors(self._sqlalchemy):
            found: frozenset[str] = await self._connection.run_sync(look)
        return found

    async def fetch(self, statement: str, *args: Any) -> Sequence[Sequence[Any]]:
        text = re.sub(r"\$(\d+)", r":p\1", statement)
        if self._connection.dialect.name in _FETCH:
            text = re.sub(r" LIMIT (\d+)$", r" OFFSET 0 ROWS FETCH NEXT \1 ROWS ONLY", text)
        given = {f"p{i}": value for i, value in enumerate(args, 1)}
        with _errors(self._sqlalchemy):
            result = await self._connection.execute(self._sqlalchemy.text(text), given)
            rows: Sequence[Sequence[Any]] = result.fetchall()
        return rows


class _errors:  # noqa: N801 - a context manager
    """No error of SQLAlchemy or of a driver leaves; their texts may have the URL with its password."""

    def __init__(self, sqlalchemy: Any) -> None:
        self._kinds = (sqlalchemy.exc.SQLAlchemyError, OSError)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, exc: BaseException | None, at: Any) -> None:
        if isinstance(exc, self._kinds):
            raise StorageError(f"the database cannot be read: {type(exc).__name__}") from None


@asynccontextmanager
async def open_sqlalchemy(url: str) -> AsyncIterator[ForeignTables]:
    """The tables of a database that SQLAlchemy reads by an asynchronous driver, in one transaction.

    Raises:
        ConfigurationError: the URL is none of SQLAlchemy's, or names no asynchronous driver.
        BackendImportError: SQLAlchemy or the driver is not installed.
        StorageError: it cannot be read.
    """
    try:
        import sqlalchemy
        from sqlalchemy.ext.asyncio import create_async_engine
    except ImportError:
        raise BackendImportError("this database is read by SQLAlchemy: pip install 'google-adk[db]'") from None
    try:
        engine = create_async_engine(url)
    except ImportError as exc:
        raise BackendImportError(f"the driver of the database is not installed: {exc.name}") from None
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as exc:
        raise ConfigurationError(
            f"the URL names no database that an asynchronous driver of SQLAlchemy reads: {type(exc).__name__}"
        ) from None
    try:
        with _errors(sqlalchemy):
            connection = await engine.connect()
        try:
            yield _Tables(connection, sqlalchemy)
        finally:
            await connection.close()
    finally:
        await engine.dispose()
