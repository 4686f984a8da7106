"""Databases that the KODE SDK for TypeScript wrote."""

from __future__ import annotations

from typing import Any, Final

from kode_core.errors import ForeignStoreError
from kode_postgres.migrations import version_of
from kode_postgres.options import PostgresOptions
from kode_postgres.schema import Tables

__all__ = ["has_sdk_tables", "refuse_foreign"]

_SDK: Final = (("agents", "config_version"), ("messages", "seq"), ("tool_calls", "audit_trail"))
"""Tables of the SDK, each with a column that distinguishes it from other tables of the same name."""


async def refuse_foreign(con: Any, options: PostgresOptions, tables: Tables) -> None:
    """Check that the schema does not contain the SDK's tables and none of ours.

    Raises:
        ForeignStoreError: it does; nothing was created.
    """
    async with con.transaction(isolation="read_committed"):
        if await version_of(con, tables):
            return
        is_foreign = await has_sdk_tables(con, options)
    if is_foreign:
        raise ForeignStoreError(options.address, "postgres")


async def has_sdk_tables(con: Any, options: PostgresOptions) -> bool:
    """Whether the schema has the SDK's tables."""
    found = await con.fetchval(
        "SELECT count(*) FROM information_schema.columns c, unnest($1::text[], $2::text[]) AS sdk (t, c)"
        " WHERE c.table_schema = coalesce($3, current_schema()) AND c.table_name = sdk.t AND c.column_name = sdk.c",
        [table for table, _ in _SDK],
        [column for _, column in _SDK],
        options.schema,
    )
    return bool(found == len(_SDK))
