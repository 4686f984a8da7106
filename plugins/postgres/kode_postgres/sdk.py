"""Read the tables that the KODE SDK for TypeScript wrote, in one transaction that may not write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from kode_core.authoring.sdk_tables import SDK_TABLES
from kode_core.errors import ConfigurationError
from kode_postgres.foreign import has_sdk_tables
from kode_postgres.foreign_tables import Tables, reading
from kode_postgres.options import PostgresOptions

__all__ = ["open_sdk_tables"]

_PAGE: Final = 1000


class _Tables(Tables):
    """The tables of the SDK."""

    def __init__(self, con: Any, options: PostgresOptions) -> None:
        super().__init__(con, options.address)
        self._schema = f'"{options.schema}".' if options.schema else ""

    async def agent_ids(self) -> AsyncIterator[str]:
        statement = (
            f'SELECT agent_id FROM {self._schema}agents WHERE agent_id COLLATE "C" > $1 ORDER BY agent_id COLLATE "C"'
        )
        last = ""
        while rows := await self.fetch(f"{statement} LIMIT {_PAGE}", last):
            for row in rows:
                last = row["agent_id"]
                yield last

    async def rows(self, table: str, agent_id: str) -> Sequence[Mapping[str, Any]]:
        # The SDK writes all rows of an agent anew, one after the other: ctid has them in this order.
        statement = f"SELECT * FROM {self._schema}{table} WHERE agent_id = $1 ORDER BY {SDK_TABLES[table]}, ctid"
        return await self.fetch(statement, agent_id)


@asynccontextmanager
async def open_sdk_tables(options: PostgresOptions) -> AsyncIterator[_Tables]:
    """The tables of the database that *options* name.

    Raises:
        ConfigurationError: they are not the SDK's.
        StorageError: the server cannot be reached or read.
    """
    options = options.resolved()
    async with reading(options) as con:
        if not await has_sdk_tables(con, options):
            raise ConfigurationError(
                f"{options.address} has not the tables of the KODE SDK: agents, messages and tool_calls; name "
                "their schema with ?schema=NAME"
            )
        yield _Tables(con, options)
