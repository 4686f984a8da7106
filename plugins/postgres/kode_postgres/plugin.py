"""The plugin of the PostgreSQL backend. It imports no driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote

from kode_core.plugins import Backend, hookimpl
from kode_postgres.options import PostgresOptions
from kode_postgres.parameters import PARAMETERS

if TYPE_CHECKING:
    from kode_postgres.engine import PostgresEngine


async def _open(options: PostgresOptions) -> PostgresEngine:
    from kode_postgres.engine import PostgresEngine

    return await PostgresEngine.open(options)


def _is_there(options: PostgresOptions) -> bool:
    """If the server cannot be asked, return True: ``open`` then reports the problem."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from kode_postgres.opening import has_tables

    with ThreadPoolExecutor(1) as pool:  # the caller may be in an event loop
        return pool.submit(asyncio.run, has_tables(options)).result()


def _schema(options: PostgresOptions, since: int = 0) -> str:
    from kode_postgres.schema import script

    return script(options, since)


def _from_url(split: SplitResult) -> Mapping[str, Any]:
    kept = [part for part in split.query.split("&") if unquote(part.partition("=")[0]) in PARAMETERS]
    if not (split.netloc or split.path or kept):
        return {}
    query = f"?{'&'.join(kept)}" if kept else ""
    return {"dsn": f"postgresql://{split.netloc}{split.path}{query}"}


@hookimpl
def kode_store_backend() -> Backend:
    return Backend(
        name="postgres",
        options=PostgresOptions,
        open=_open,
        from_url=_from_url,
        url_parameters=PARAMETERS,
        variables={
            "POSTGRES_HOST": "host",
            "POSTGRES_PORT": "port",
            "POSTGRES_DB": "database",
            "POSTGRES_USER": "user",
            "POSTGRES_PASSWORD": "password",
        },
        schema=_schema,
        schema_from=_schema,
        is_there=_is_there,
        summary="a server, for several machines",
    )
