"""The plugin of the PostgreSQL backend. It imports no driver."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote

from msgspec.structs import replace

from kode_core.plugins import Backend, TextIndexAction, hookimpl
from kode_postgres.options import PostgresOptions
from kode_postgres.parameters import PARAMETERS

if TYPE_CHECKING:
    from kode_core.authoring.foreign_tables import ForeignTables
    from kode_core.authoring.sdk_tables import SdkTables
    from kode_core.engine import Progress
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
    from kode_postgres.text_tables import text_script

    return script(options, since) + (text_script(options) if options.text_index else "")


async def _text_index(options: PostgresOptions, action: TextIndexAction, progress: Progress) -> int | None:
    import asyncio

    engine = await _open(replace(options, text_index=False))
    try:
        return await engine.indexing.change(action, progress, create=options.create)
    finally:
        await asyncio.shield(engine.close())


def _from_url(split: SplitResult) -> Mapping[str, Any]:
    kept = [part for part in split.query.split("&") if unquote(part.partition("=")[0]) in PARAMETERS]
    if not (split.netloc or split.path or kept):
        return {}
    query = f"?{'&'.join(kept)}" if kept else ""
    return {"dsn": f"postgresql://{split.netloc}{split.path}{query}"}


@asynccontextmanager
async def _sdk_tables(options: PostgresOptions) -> AsyncIterator[SdkTables]:
    from kode_postgres.sdk import open_sdk_tables

    async with open_sdk_tables(options) as tables:
        yield tables


@asynccontextmanager
async def _foreign_tables(options: PostgresOptions) -> AsyncIterator[ForeignTables]:
    from kode_postgres.foreign_tables import open_tables

    async with open_tables(options) as tables:
        yield tables


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
        sdk_tables=_sdk_tables,
        text_index=_text_index,
        foreign_tables=_foreign_tables,
        summary="a server, for several machines",
    )
