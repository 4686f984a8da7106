"""The plugin of the PostgreSQL backend. Imports no driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, parse_qsl, urlencode, urlunsplit

from kode_core.plugins import Backend, hookimpl
from kode_postgres.options import PostgresOptions

if TYPE_CHECKING:
    from kode_postgres.engine import PostgresEngine

_LIBPQ: Final = frozenset(
    {
        *("host", "port", "user", "password", "dbname", "passfile", "application_name", "connect_timeout", "options"),
        *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword", "sslnegotiation"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "channel_binding"),
        *("krbsrvname", "gsslib", "service", "servicefile"),
    }
)
"""Parameters of a URL that are libpq's and no options of this backend."""
_UNKNOWN_TO_THE_DRIVER: Final = frozenset({"channel_binding", "connect_timeout", "sslcrl"})


async def _open(options: PostgresOptions) -> PostgresEngine:
    from kode_postgres.engine import PostgresEngine

    return await PostgresEngine.open(options)


def _is_there(options: PostgresOptions) -> bool:
    """A server that cannot be asked is left to ``open``, which says what is wrong with it."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from kode_postgres.connection import has_tables

    with ThreadPoolExecutor(1) as pool:  # the caller may be in an event loop
        return pool.submit(asyncio.run, has_tables(options)).result()


def _schema(options: PostgresOptions) -> str:
    from kode_postgres.schema import script

    return script(options)


def _from_url(split: SplitResult) -> Mapping[str, Any]:
    pairs = parse_qsl(split.query, keep_blank_values=True)
    kept = [(name, value) for name, value in pairs if name in _LIBPQ - _UNKNOWN_TO_THE_DRIVER]
    scheme = "postgresql" if split.netloc or split.path or kept else ""
    return {"dsn": urlunsplit((scheme, split.netloc, split.path, urlencode(kept), ""))} if scheme else {}


@hookimpl
def kode_store_backend() -> Backend:
    return Backend(
        name="postgres",
        options=PostgresOptions,
        open=_open,
        from_url=_from_url,
        url_parameters=_LIBPQ,
        variables={
            "POSTGRES_HOST": "host",
            "POSTGRES_PORT": "port",
            "POSTGRES_DB": "database",
            "POSTGRES_USER": "user",
            "POSTGRES_PASSWORD": "password",
        },
        schema=_schema,
        is_there=_is_there,
        summary="a server, for several machines",
    )
