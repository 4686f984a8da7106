"""The plugin of the SQLite backend. Imports no driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kode_core.config import path_from_url
from kode_core.plugins import Backend, hookimpl
from kode_sqlite.options import SqliteOptions

if TYPE_CHECKING:
    from kode_sqlite.engine import SqliteEngine


async def _open(options: SqliteOptions) -> SqliteEngine:
    from kode_sqlite.engine import SqliteEngine

    return await SqliteEngine.open(options)


@hookimpl
def kode_store_backend() -> Backend:
    return Backend(
        name="sqlite",
        options=SqliteOptions,
        open=_open,
        from_url=path_from_url("db_path"),
        variables={"KODE_SQLITE_PATH": "db_path"},
        summary="one file, no server",
    )
