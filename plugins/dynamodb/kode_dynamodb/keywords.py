"""The options of ``DynamoDBStore`` as typed keywords."""

from __future__ import annotations

from kode_core.factory import StoreKeywords

__all__ = ["DynamoDBKeywords"]


class DynamoDBKeywords(StoreKeywords, total=False):
    """The options of :class:`DynamoDBOptions` and of every store as keywords, for type checkers."""

    table: str
    region: str | None
    endpoint_url: str | None
    profile: str | None
    access_key_id: str | None
    secret_access_key: str | None
    session_token: str | None
    max: int
    connection_timeout_millis: int
    command_timeout_millis: int
    transactions: bool
    create: bool
    count_units: bool
    follow_idle_millis: int
