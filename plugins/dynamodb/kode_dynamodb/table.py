"""Finds the table, and makes it if it is missing."""

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
    """The item with the table's versions; empty without such an item, None without a table."""
    try:
        return await connection.get(_VERSION) or {}
    except StorageError as exc:
        if exc.__cause__ is not None and is_missing(exc.__cause__):
            return None
        raise


def _number(found: Record, name: str) -> int | None:
    return int(found[name]["N"]) if name in found else None


async def has_schema(connection: Connection) -> bool:
    """Whether kode's table exists."""
    return bool(await _found(connection))


async def open_table(connection: Connection, *, create: bool) -> None:
    """Check that the table exists and has this version. Make it if it is missing.

    Raises:
        SchemaVersionError: the table or its records have a newer version.
        StoreUnavailableError: the table is missing and *create* is off, or it was not ready in time.
    """
    found = await _found(connection)
    version = _number(found or {}, "version") or 0
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{connection.address} has schema {version}, and this kode-dynamodb knows up to {SCHEMA_VERSION}: "
            "run: pip install --upgrade kode-dynamodb"
        )
    if found and not see_layout(_number(found, "layout"), connection.address):
        await _raise_layout(connection)
    if version == SCHEMA_VERSION:
        return
    if found is None:
        if not create:
            raise StoreUnavailableError(
                f"{connection.address}: there is no such table and create is off; "
                "make it of what 'kode schema dynamodb --print' prints, with CloudFormation"
            )
        await _make(connection)
    if create:  # again, in case the process that made the table died before this
        await _have_ended_removed(connection)
    item = {**_VERSION, "version": {"N": str(SCHEMA_VERSION)}, "layout": {"N": str(record_layout.LAYOUT_VERSION)}}
    await connection.repeat("put_item", Item=item, ConditionExpression="attribute_not_exists(pk)")


async def _raise_layout(connection: Connection) -> None:
    """Record in the table that it may have records of this layout, unless it says a newer one."""
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
        if code_of(exc.__cause__ or exc) != "ResourceInUseException":  # another process is making the table
            raise
    until = time.monotonic() + _PATIENCE_S
    while not await _is_ready(connection):
        if time.monotonic() > until:
            raise StoreUnavailableError(f"{connection.address}: the table was not ready within {_PATIENCE_S:g} s")
        await asyncio.sleep(0.2)


async def _is_ready(connection: Connection) -> bool:
    """Whether the table accepts calls. Right after it was made, parts of the service may not know it yet."""
    try:
        found = await connection.ask("describe_table")
    except StorageError as exc:
        if exc.__cause__ is not None and is_missing(exc.__cause__):
            return False
        raise
    return bool(found["Table"]["TableStatus"] == "ACTIVE")


async def _have_ended_removed(connection: Connection) -> None:
    """Turn on the removal of items whose time to live is over. A refusal is ignored, as it may be on already."""
    specification = {"AttributeName": TTL, "Enabled": True}
    try:
        await connection.ask("update_time_to_live", TimeToLiveSpecification=specification)
    except StorageError as exc:
        cause = exc.__cause__
        if cause is None or is_throttled(cause) or is_transient(cause):  # a retry may succeed
            raise
