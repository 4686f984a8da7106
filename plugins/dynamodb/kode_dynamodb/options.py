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
"""Without a user and password, which the service does not take."""


class DynamoDBOptions(ServerOptions, frozen=True, kw_only=True):
    """Options of the DynamoDB backend.

    What is not given is taken from where AWS's tools take it: the variables ``AWS_REGION``, ``AWS_PROFILE``, …, the
    files in ``~/.aws``, the role of the machine.

    Attributes:
        table: the table's name; it is made when it is not there.
        connection: these options as a mapping, or the table's name.
        region: such as ``eu-central-1``.
        endpoint_url: where the service is, for an emulator or an endpoint of one's own.
        profile: a profile of ``~/.aws/config``.
        access_key_id, secret_access_key, session_token: credentials, unless they come from elsewhere.
        max: how many connections at most.
        connection_timeout_millis: how long to try to connect.
        command_timeout_millis: how long to wait for an answer before the connection counts as broken.
        transactions: write a turn of up to nine records in one transaction, which takes one round trip, and up to
            three times the write units. Without, it takes two.
        create: make the table when it is missing; without it, ``kode schema`` prints what somebody else has to make.
        count_units: have the service tell what each call consumed, and add it up in ``DynamoRecords.units``.
        follow_idle_millis: how far the pauses of an idle follower grow, each twice as long as the one before.
        session: an ``aioboto3.Session`` of your own, which the client is made with.
        client: a DynamoDB client of aioboto3's or aiobotocore's of your own, which is used and never closed. It
            should not retry by itself (``retries={"total_max_attempts": 1}``).
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
    def place(self) -> str:
        """Where the table is, for messages."""
        if self.client is not None:
            return f"dynamodb by the given client, table {self.table}"
        return f"dynamodb at {self.endpoint_url or self.region or 'the default region'}, table {self.table}"
