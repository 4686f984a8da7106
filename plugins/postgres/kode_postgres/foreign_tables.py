"""Read the tables of another program's database, in one transaction that may not write."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from kode_core.errors import KodeError
from kode_postgres.errors import to_kode_error
from kode_postgres.options import PostgresOptions
from kode_postgres.reach import Reach
from kode_postgres.target import target_of

__all__ = ["Tables", "open_tables", "reading"]

_UNHURRIED: Final = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
"""Between two agents the transaction waits for the store that they are written to."""
_AS_TEXT: Final = ("json", "jsonb", "timestamp")


class Tables:
    """The tables as they were when the transaction began."""

    def __init__(self, con: Any, address: str) -> None:
        self._con = con
        self._address = address

    async def columns(self, table: str) -> frozenset[str]:
        found = await self.fetch(
            "SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0"
            " AND NOT attisdropped",
            table,
        )
        return frozenset(row[0] for row in found)

    async def fetch(self, statement: str, *args: Any) -> Sequence[Any]:
        try:
            found: Sequence[Any] = await self._con.fetch(statement, *args)
        except Exception as exc:
            raise to_kode_error(exc, self._address) from exc
        return found


@asynccontextmanager
async def open_tables(options: PostgresOptions) -> AsyncIterator[Tables]:
    """The tables of the database, or the schema, that *options* name.

    Raises:
        StorageError: the server cannot be reached or read.
    """
    options = options.resolved()
    async with reading(options) as con:
        if options.schema:
            await con.execute("SELECT set_config('search_path', $1, true)", f'"{options.schema}"')
        yield Tables(con, options.address)


@asynccontextmanager
async def reading(options: PostgresOptions) -> AsyncIterator[Any]:
    """A connection in a transaction that may not write, with JSON and times as texts."""
    try:
        con = await Reach(target_of(options, os.environ)).connect(statement_cache_size=0)
    except KodeError:
        raise
    except Exception as exc:
        raise to_kode_error(exc, options.address) from exc
    try:
        async with con.transaction(isolation="repeatable_read", readonly=True):
            await con.execute(_UNHURRIED)
            for name in _AS_TEXT:
                await con.set_type_codec(name, schema="pg_catalog", encoder=str, decoder=str, format="text")
            yield con
    finally:
        con.terminate()
