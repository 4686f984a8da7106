"""Databases that the KODE SDK for TypeScript wrote are recognised, and left as they are."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from kode_postgres.testing.servers import Server

from kode_core import ForeignStoreError, Message, create_extended_store
from tests.test_foreign import TABLES


async def names(con: Any, schema: str) -> list[str]:
    query = "SELECT table_name FROM information_schema.tables WHERE table_schema = $1 ORDER BY 1"
    return [row[0] for row in await con.fetch(query, schema)]


async def test_tables_of_the_sdk(server: Server, schema: str) -> None:
    """No table is made among them; a schema of its own is free, and a store that is there goes on."""
    con = await asyncpg.connect(server.dsn)
    try:
        async with create_extended_store(server.dsn, schema=schema, table_prefix="old_") as store:
            await store.append_messages("a", [Message.user("x")])
        await con.execute(f"SET search_path = {schema}; {';'.join(TABLES)}")
        before = await names(con, schema)
        with pytest.raises(ForeignStoreError, match="KODE SDK for TypeScript.*kode import --from kode-sdk") as caught:
            await create_extended_store(server.dsn, schema=schema)
        assert caught.value.__cause__ is None
        assert await names(con, schema) == before
        async with create_extended_store(server.dsn, schema=schema, table_prefix="old_") as store:
            assert len(await store.load_messages("a")) == 1
        async with server.schema() as other, create_extended_store(server.dsn, schema=other) as store:
            assert await store.list() == []
    finally:
        await con.close()
