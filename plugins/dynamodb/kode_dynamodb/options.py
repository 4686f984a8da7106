"""The options of the DynamoDB backend."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec

from kode_core.authoring.options import Millis, Secret, ServerOptions

__all__ = ["DynamoDBOptions"]

_Table = Annotated[
    str,
    msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{3,255}\Z", extra={"form": "3 to 255 letters, digits, '_', '-' and '.'"}),
]
_Region = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z]+(-[A-Za-z0-9]+)*\Z", max_length=40, extra={"form": "a region, such as eu-central-1"}
    ),
]
_Endpoint = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^https?://(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]]+)(:\d{1,5})?(/[^\s?#@]*)?\Z",
        extra={"form": "a URL such as http://localhost:8000, without a user and a password"},
    ),
]
"""A URL without user and password, which the service does not accept."""


class DynamoDBOptions(ServerOptions, frozen=True, kw_only=True):
    """Options of the DynamoDB backend.

    Defaults come from the sources that AWS's tools use: the variables ``AWS_REGION``, ``AWS_PROFILE``, …, the files in
    ``~/.aws``, and the role of the machine.

    Attributes:
        table: the table's name; a missing table is made.
        connection: these options as a mapping, or the table's name.
        region: a region such as ``eu-central-1``.
        endpoint_url: the URL of the service, for an emulator or an endpoint of your own.
        profile: a profile of ``~/.aws/config``.
        access_key_id, secret_access_key, session_token: credentials, if the sources above have none.
        max: the greatest number of connections.
        connection_timeout_millis: how long to try to connect.
        command_timeout_millis: how long to wait for an answer before the connection counts as broken.
        transactions: write a turn of up to nine records in one transaction, which takes one round trip instead of two,
            and up to three times the write units.
        create: make a missing table; without it, ``kode schema`` prints a template for an administrator.
        count_units: ask the service for the units of each call, and add them up in ``Connection.units``.
        follow_idle_millis: the longest pause of an idle follower; its pauses double until then.
        session: an ``aioboto3.Session`` of your own, which makes the client.
        client: a DynamoDB client of your own, from aioboto3 or aiobotocore, which is used and never closed. It should
            not retry by itself (``retries={"total_max_attempts": 1}``).
    """

    table: _Table = "kode"
    region: _Region | None = None
    endpoint_url: _Endpoint | None = None
    profile: str | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50
    connection_timeout_millis: Millis = 3_000
    command_timeout_millis: Millis = 10_000
    transactions: bool = False
    create: bool = True
    count_units: bool = False
    follow_idle_millis: Millis = 2_000
    session: Any = None
    client: Any = None

    url_option: ClassVar[str] = "table"
    hidden: ClassVar[frozenset[str]] = frozenset({"access_key_id", "secret_access_key", "session_token"})
    objects: ClassVar[frozenset[str]] = frozenset({"session", "client"})

    @property
    def address(self) -> str:
        """The address of the table, for messages."""
        if self.client is not None:
            return f"dynamodb by the given client, table {self.table}"
        return f"dynamodb at {self.endpoint_url or self.region or 'the default region'}, table {self.table}"
