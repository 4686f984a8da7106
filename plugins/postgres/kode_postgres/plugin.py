"""The plugin of the PostgreSQL backend. Imports no driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, urlencode

from kode_core.plugins import Backend, hookimpl
from kode_postgres.dsn import PARAMETERS
from kode_postgres.options import PostgresOptions

if TYPE_CHECKING:
    from kode_postgres.engine import PostgresEngine


async def _open(options: PostgresOptions) -> PostgresEngine:
    from kode_postgres.engine import PostgresEngine

    return await PostgresEngine.open(options)


def _is_there(options: PostgresOptions) -> bool:
    """A server that cannot be asked is left to ``open``, which says what is wrong with it."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from kode_postgres.opening import has_tables

    with ThreadPoolExecutor(1) as pool:  # the caller may be in an event loop
        return pool.submit(asyncio.run, has_tables(options)).result()


def _schema(options: PostgresOptions, since: int = 0) -> str:
    from kode_postgres.schema import script

    return script(options, since)


def _from_url(split: SplitResult) -> Mapping[str, Any]:
    pairs = parse_qsl(split.query, keep_blank_values=True)
    kept = [(name, value) for name, value in pairs if name in PARAMETERS]
    if not (split.netloc or split.path or kept):
        return {}
    where = f"{split.netloc}{split.path or ('/' if not split.netloc else '')}"
    return {"dsn": f"postgresql://{where}{f'?{urlencode(kept)}' if kept else ''}"}


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
