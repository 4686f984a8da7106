"""A bare connection to a place, for floors that are a statement or two: aiosqlite or asyncpg.

Statements have the placeholders ``$1``, ``$2`` and so on, on both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite
import asyncpg

from tests.benchmarks.backends import Options

__all__ = ["Bare", "bare_at"]


class Bare(ABC):
    """A connection.

    Attributes:
        driver: the module's name.
    """

    driver: str

    @abstractmethod
    async def make(self, *statements: str) -> None:
        """Run statements without arguments."""

    @abstractmethod
    async def write(self, *parts: tuple[str, Sequence[Sequence[Any]]]) -> None:
        """Run each statement for each of its rows, all in one transaction at the store's default durability."""

    @abstractmethod
    async def read(self, statement: str, *args: Any) -> Sequence[Sequence[Any]]:
        """All rows of a query."""


class _Sqlite(Bare):
    driver = "aiosqlite"

    def __init__(self, db: aiosqlite.Connection) -> None:
        self._db = db

    async def make(self, *statements: str) -> None:
        for statement in statements:
            await self._db.execute(statement)

    async def write(self, *parts: tuple[str, Sequence[Sequence[Any]]]) -> None:
        await self._db.execute("BEGIN IMMEDIATE")
        for statement, rows in parts:
            await self._db.executemany(statement.replace("$", "?"), rows)
        await self._db.execute("COMMIT")

    async def read(self, statement: str, *args: Any) -> Sequence[Sequence[Any]]:
        return [*await self._db.execute_fetchall(statement.replace("$", "?"), args)]


class _Postgres(Bare):
    driver = "asyncpg"

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def make(self, *statements: str) -> None:
        for statement in statements:
            await self._connection.execute(statement)

    async def write(self, *parts: tuple[str, Sequence[Sequence[Any]]]) -> None:
        if len(parts) == 1:  # one round trip, which is a transaction of its own
            await self._connection.executemany(*parts[0])
            return
        async with self._connection.transaction():
            for statement, rows in parts:
                await self._connection.executemany(statement, rows)

    async def read(self, statement: str, *args: Any) -> Sequence[Sequence[Any]]:
        rows: Sequence[Sequence[Any]] = await self._connection.fetch(statement, *args)
        return rows


@asynccontextmanager
async def bare_at(options: Options) -> AsyncIterator[Bare | None]:
    """A connection to a place; None where no driver could be a floor."""
    if options["type"] == "sqlite":
        async with aiosqlite.connect(options["db_path"], isolation_level=None) as db:
            bare = _Sqlite(db)
            await bare.make("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL")
            yield bare
    elif options["type"] == "postgres":
        connection = await asyncpg.connect(options["dsn"], server_settings={"search_path": options["schema"]})
        try:
            yield _Postgres(connection)
        finally:
            await connection.close()
    else:
        yield None
