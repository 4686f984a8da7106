"""The PostgreSQL backend of kode-core.

Once installed, it is found by name: ``create_extended_store("postgres://kode@localhost/kode_agents")``.
:class:`PostgresStore` is for direct use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from kode_core.factory import BackendStore
from kode_postgres.keywords import PostgresKeywords
from kode_postgres.options import PostgresOptions
from kode_postgres.plugin import kode_store_backend

__all__ = ["PostgresOptions", "PostgresStore"]


class PostgresStore(BackendStore):
    """An ExtendedStore in a PostgreSQL database.

    *connection* is a URL or a mapping with ``host``, ``port``, ``database``, ``user``, ``password`` and so on; or pass
    *pool*, an ``asyncpg.Pool`` of your own, which is neither changed nor closed. With *file_store_base_dir*, events,
    todos, history and media are kept in that folder; without it, everything is in the database. The other options are
    the fields of :class:`PostgresOptions` and :class:`kode_core.config.StoreOptions`.
    """

    def __init__(
        self,
        connection: str | Mapping[str, Any] | None = None,
        file_store_base_dir: str | None = None,
        *,
        pool: Any = None,
        **options: Unpack[PostgresKeywords],
    ) -> None:
        given = dict(connection) if isinstance(connection, Mapping) else connection
        super().__init__(
            kode_store_backend(), connection=given, file_store_base_dir=file_store_base_dir, pool=pool, **options
        )
