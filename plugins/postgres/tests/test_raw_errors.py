"""Only errors of the library reach the caller (OPS-17), whatever is given, also when a server is behind it."""

from __future__ import annotations

from kode_postgres.testing.servers import Server

from kode_core import create_extended_store
from tests.test_raw_errors import raw_errors


async def test_wrong_arguments(server: Server, schema: str) -> None:
    """Every argument of every method may be of any type."""
    async with create_extended_store(server.dsn, schema=schema) as store:
        assert await raw_errors(store) == []
