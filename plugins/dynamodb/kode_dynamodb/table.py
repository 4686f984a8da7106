"""The table, as it is found, and made when it is missing."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from kode_core.errors import SchemaVersionError, StorageError, StoreUnavailableError
from kode_dynamodb.connection import Connection
from kode_dynamodb.errors import code_of, is_missing, is_throttled, is_transient
from kode_dynamodb.schema import SCHEMA_VERSION, TTL, table_definition

__all__ = ["has_schema", "open_table"]

_VERSION: Final = {"pk": {"S": "meta"}, "sk": {"S": "schema"}}
_PATIENCE_S: Final = 60.0


async def _version(connection: Connection) -> int | None:
    """The version of what is in the table; 0 when nothing says so, None when there is no table."""
    try:
        found = await connection.get(_VERSION)
    except StorageError as exc:
        if exc.__cause__ is not None and is_missing(exc.__cause__):
            return None
        raise
    return 0 if found is None else int(found["version"]["N"])


async def has_schema(connection: Connection) -> bool:
    """Whether there is a table of kode."""
    return bool(await _version(connection))


async def open_table(connection: Connection, *, create: bool) -> None:
    """See that the table is there and of this version; make it where it is missing.

    Raises:
        SchemaVersionError: it is of a newer version.
        StoreUnavailableError: it is missing, and *create* forbids to make it.
    """
    version = await _version(connection)
    if version is not None and version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{connection.place} has schema {version}, and this kode-dynamodb knows up to {SCHEMA_VERSION}: "
            "run: pip install --upgrade kode-dynamodb"
        )
    if version == SCHEMA_VERSION:
        return
    if version is None:
        if not create:
            raise StoreUnavailableError(
                f"{connection.place}: there is no such table and create is off; "
                "make it of what 'kode schema dynamodb --print' prints, with CloudFormation"
            )
        await _make(connection)
    if create:  # also where who made the table died before this
        await _have_ended_removed(connection)
    item = {**_VERSION, "version": {"N": str(SCHEMA_VERSION)}}
    await connection.repeat("put_item", Item=item, ConditionExpression="attribute_not_exists(pk)")


async def _make(connection: Connection) -> None:
    try:
        await connection.ask("create_table", **table_definition(connection.table))
    except StorageError as exc:
        if code_of(exc.__cause__ or exc) != "ResourceInUseException":  # somebody else is making it
            raise
    until = time.monotonic() + _PATIENCE_S
    while not await _is_ready(connection):
        if time.monotonic() > until:
            raise StoreUnavailableError(f"{connection.place}: the table was not ready within {_PATIENCE_S:g} s")
        await asyncio.sleep(0.2)


async def _is_ready(connection: Connection) -> bool:
    """Whether the table takes calls; right after it was made, the service may not know it everywhere."""
    try:
        found = await connection.ask("describe_table")
    except StorageError as exc:
        if exc.__cause__ is not None and is_missing(exc.__cause__):
            return False
        raise
    return bool(found["Table"]["TableStatus"] == "ACTIVE")


async def _have_ended_removed(connection: Connection) -> None:
    """Have the service remove what has a time to live and is over it. One that refuses it, or does it, goes without."""
    specification = {"AttributeName": TTL, "Enabled": True}
    try:
        await connection.ask("update_time_to_live", TimeToLiveSpecification=specification)
    except StorageError as exc:
        cause = exc.__cause__
        if cause is None or is_throttled(cause) or is_transient(cause):  # it may do it later
            raise
