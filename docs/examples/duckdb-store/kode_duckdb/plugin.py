"""The plugin of the DuckDB backend. Imports no driver: ``kode plugins`` imports every installed backend."""

from __future__ import annotations

from kode_core.authoring.values import path_from_url
from kode_core.engine import Engine
from kode_core.plugins import Backend, hookimpl
from kode_duckdb.options import DuckdbOptions


async def _open(options: DuckdbOptions) -> Engine:
    from kode_duckdb.engine import DuckdbEngine

    return await DuckdbEngine.open(options)


@hookimpl
def kode_store_backend() -> Backend:
    return Backend(
        name="duckdb",
        options=DuckdbOptions,
        open=_open,
        from_url=path_from_url("db_path"),
        summary="one file, one process at a time",
    )
