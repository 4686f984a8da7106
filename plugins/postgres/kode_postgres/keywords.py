"""The options of ``PostgresStore`` as typed keywords."""

from __future__ import annotations

from typing import Any, Literal

from kode_core.factory import StoreKeywords

__all__ = ["PostgresKeywords"]


class PostgresKeywords(StoreKeywords, total=False):
    """The options of :class:`PostgresOptions` and of every store as keywords, for type checkers."""

    dsn: str | None
    host: str | None
    port: int | None
    database: str | None
    user: str | None
    password: Any
    ssl: Any
    max: int
    idle_timeout_millis: int
    connection_timeout_millis: int
    command_timeout_millis: int
    lock_wait_millis: int | None
    application_name: str | None
    server_settings: dict[str, str] | None
    durability: Literal["full", "fast"]
    schema: str | None
    table_prefix: str
    create: bool
    statement_cache_size: int | None
    text_index: bool
