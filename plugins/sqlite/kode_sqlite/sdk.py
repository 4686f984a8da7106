"""Read the tables of a database that the KODE SDK for TypeScript wrote, without changing a byte of it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any, Final

from kode_core.authoring.sdk_tables import SDK_TABLES
from kode_core.errors import ConfigurationError, StorageError
from kode_sqlite.foreign import has_sdk_tables
from kode_sqlite.foreign_tables import untouched

__all__ = ["open_sdk_tables"]

_PAGE: Final = 1000
_IDS: Final = (
    "SELECT rowid, CAST(agent_id AS TEXT) FROM agents WHERE rowid > ? AND agent_id NOTNULL ORDER BY rowid LIMIT ?"
)


class _Tables:
    """The tables, read in one transaction."""

    def __init__(self, db: sqlite3.Connection, path: str) -> None:
        self._db = db
        self._path = path

    async def agent_ids(self) -> AsyncIterator[str]:
        last = -(2**63)
        while rows := await self._fetch(_IDS, (last, _PAGE)):
            for rowid, agent_id in rows:
                yield agent_id.decode("utf-8", "surrogateescape")
                last = rowid

    async def rows(self, table: str, agent_id: str) -> Sequence[Mapping[str, Any]]:
        raw = agent_id.encode("utf-8", "surrogateescape")
        order = SDK_TABLES[table]
        found = await self._fetch(
            f"SELECT * FROM {table} WHERE agent_id = CAST(? AS TEXT) ORDER BY {order}, rowid", (raw,)
        )
        return [dict(row) for row in found]

    async def _fetch(self, statement: str, args: Sequence[Any]) -> list[sqlite3.Row]:
        return await asyncio.to_thread(self._fetched, statement, args)

    def _fetched(self, statement: str, args: Sequence[Any]) -> list[sqlite3.Row]:
        try:
            return self._db.execute(statement, args).fetchall()
        except sqlite3.Error as exc:
            raise StorageError(f"{self._path} cannot be read: {exc}") from exc


@asynccontextmanager
async def open_sdk_tables(path: str) -> AsyncIterator[_Tables]:
    """The tables of the database at *path*, as :func:`kode_sqlite.foreign_tables.untouched` opens it.

    Raises:
        ConfigurationError: there is no database of the SDK.
        StorageError: it cannot be read.
    """
    async with untouched(path) as uri:
        with closing(await asyncio.to_thread(_connected, path, uri)) as db:
            yield _Tables(db, path)


def _connected(path: str, uri: str) -> sqlite3.Connection:
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    try:
        db.execute("BEGIN")
        is_of_sdk = has_sdk_tables(db)
    except sqlite3.Error:
        is_of_sdk = False
    if not is_of_sdk:
        db.close()
        raise ConfigurationError(f"{path} has not the tables of the KODE SDK: agents, messages and tool_calls")
    db.row_factory = sqlite3.Row
    db.text_factory = bytes  # the SDK stores halves of characters, which Python refuses to decode
    return db
