"""Only errors of the library reach the caller (OPS-17), whatever is given, also when a service is behind it."""

from __future__ import annotations

from collections.abc import Callable

from kode_dynamodb import DynamoDBStore

from tests.test_raw_errors import raw_errors


async def test_wrong_arguments(moto_store: Callable[..., DynamoDBStore]) -> None:
    """Every argument of every method may be of any type."""
    async with moto_store() as store:
        assert await raw_errors(store) == []
