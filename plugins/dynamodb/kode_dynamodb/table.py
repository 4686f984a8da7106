"""The table, as it is found, and made when it is missing."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from kode_core.engines.record import layout as record_layout
from kode_core.engines.record.layout import see_layout
from kode_core.errors import SchemaVersionError, StorageError, StoreUnavailableError
from kode_dynamodb.connection import Connection, Record
from kode_dynamodb.errors import code_of, is_missing, is_throttled, is_transient
from kode_dynamodb.schema import SCHEMA_VERSION, TTL, table_definition

__all__ = ["has_schema", "open_table"]

_VERSION: Final = {"pk": {"S": "meta"}, "sk": {"S": "schema"}}
_PATIENCE_S: Final = 60.0


async def _found(connection: Connection) -> Record | None:
    """What the table says of its versions; nothing when nothing says so, None when there is no table."""
    try:
        return await connection.get(_VERSION) or {}
    except StorageError as exc:
        if exc.__cause__ is not None and is_missing(exc.__cause__):
            return None
        raise


def _number(found: Record, name: str) -> int | None:
    return int(found[name]["N"]) if name in found else None


async def has_schema(connection: Connection) -> bool:
    """Whether there is a table of kode."""
    return bool(await _found(connection))


async def open_table(connection: Connection, *, create: bool) -> None:
    """See that the table is there and of this version; make it where it is missing.

    Raises:
        SchemaVersionError: it, or what is in it, is of a newer version.
        StoreUnavailableError: it is missing, and *create* forbids to make it.
    """
    found = await _found(connection)
    version = _number(found or {}, "version") or 0
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{connection.place} has schema {version}, and this kode-dynamodb knows up to {SCHEMA_VERSION}: "
            "run: pip install --upgrade kode-dynamodb"
        )
    if not see_layout(_number(found or {}, "layout"), connection.place):
        await _raise_layout(connection)
    if version == SCHEMA_VERSION:
        return
    if found is None:
        if not create:
            raise StoreUnavailableError(
                f"{connection.place}: there is no such table and create is off; "
                "make it of what 'kode schema dynamodb --print' prints, with CloudFormation"
            )
        await _make(connection)
    if create:  # also where who made the table died before this
        await _have_ended_removed(connection)
    item = {**_VERSION, "version": {"N": str(SCHEMA_VERSION)}, "layout": {"N": str(record_layout.LAYOUT_VERSION)}}
    await connection.repeat("put_item", Item=item, ConditionExpression="attribute_not_exists(pk)")


async def _raise_layout(connection: Connection) -> None:
    """Say that records of this layout may be there from now on, unless somebody says a newer one."""
    await connection.repeat(
        "update_item",
        Key=_VERSION,
        UpdateExpression="SET #layout = :layout",
        ConditionExpression="attribute_exists(pk) AND (attribute_not_exists(#layout) OR #layout < :layout)",
        ExpressionAttributeNames={"#layout": "layout"},
        ExpressionAttributeValues={":layout": {"N": str(record_layout.LAYOUT_VERSION)}},
    )


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
