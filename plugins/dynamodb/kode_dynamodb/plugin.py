"""The plugin of the DynamoDB backend. Imports no driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult

from kode_core.plugins import Backend, hookimpl
from kode_dynamodb.options import DynamoDBOptions

if TYPE_CHECKING:
    from kode_core.engines.record.engine import RecordEngine


async def _open(options: DynamoDBOptions) -> RecordEngine:
    from kode_core.engines.record.engine import RecordEngine
    from kode_dynamodb.records import open_records

    return RecordEngine(await open_records(options.resolved()), idle_poll_ms=options.follow_idle_millis)


def _is_there(options: DynamoDBOptions) -> bool:
    """Whether kode's table exists. True if that cannot be determined: ``open`` then explains the error."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from kode_dynamodb.records import has_table

    with ThreadPoolExecutor(1) as pool:  # the caller may be in an event loop
        return pool.submit(asyncio.run, has_table(options.resolved())).result()


def _schema(options: DynamoDBOptions) -> str:
    from kode_dynamodb.schema import cloud_formation

    return cloud_formation(options.resolved().table)


def _from_url(split: SplitResult) -> Mapping[str, Any]:
    given = {"region": split.netloc, "table": split.path.removeprefix("/")}
    return {name: value for name, value in given.items() if value}


@hookimpl
def kode_store_backend() -> Backend:
    return Backend(
        name="dynamodb",
        options=DynamoDBOptions,
        open=_open,
        from_url=_from_url,
        schema=_schema,
        is_there=_is_there,
        summary="AWS's key-value service, without a server of one's own",
    )
