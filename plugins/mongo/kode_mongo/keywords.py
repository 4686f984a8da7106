"""The options of ``MongoStore`` as typed keywords."""

from __future__ import annotations

from typing import Any, Literal

from kode_core.factory import StoreKeywords

__all__ = ["MongoKeywords"]


class MongoKeywords(StoreKeywords, total=False):
    """The options of :class:`MongoOptions` and of every store as keywords, for type checkers."""

    uri: str | None
    host: str | None
    port: int | None
    database: str | None
    user: str | None
    password: Any
    auth_source: str | None
    replica_set: str | None
    tls: bool | None
    tls_ca_file: str | None
    driver: Literal["motor", "pymongo"]
    max: int
    idle_timeout_millis: int
    connection_timeout_millis: int
    command_timeout_millis: int
    collection_prefix: str
    create: bool
