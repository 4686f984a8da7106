"""Harnesses of the DynamoDB store for kode-conformance: on moto, and on DynamoDB Local."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Final

import aioboto3
from kode_conformance import BorrowedClient, Handle, Space, StoreHarness
from kode_conformance.context import Unverified
from kode_conformance.servers.faults import FaultProxy, Mode

from kode_core import Store, create_extended_store
from kode_core.authoring import calls
from kode_core.batch import ListKind
from kode_core.engines.record.state import row_key
from kode_dynamodb import connection
from kode_dynamodb.connection import Connection, Record
from kode_dynamodb.options import DynamoDBOptions
from kode_dynamodb.table import has_schema
from kode_dynamodb.testing.servers import KEY, SECRET, Emulator, LocalServer, MotoServer, shared_server
from kode_dynamodb.values import found_head, head_key, item_key, text_of

__all__ = ["LocalHarness", "MotoHarness"]

_PATIENCE_MS: Final = 900_000
"""An emulator takes minutes for a hundred thousand messages."""


class MotoHarness(StoreHarness):
    """Gives each space its own table, on moto or on the endpoint that the environment names."""

    name = "dynamodb"
    secrets: Sequence[str] = (SECRET,)
    emulator: ClassVar[Any] = MotoServer
    patience = 8.0
    transactions: ClassVar[bool] = False  # moto copies the whole table for every item of a transaction

    def _server(self) -> Emulator:
        return shared_server(self.emulator)

    @property
    def versions(self) -> Mapping[str, str]:  # type: ignore[override]
        """The versions of the emulator, the driver and the plugin."""
        return {**self._emulators(), **{name: version(name) for name in ("aioboto3", "botocore", "kode-dynamodb")}}

    def _emulators(self) -> Mapping[str, str]:
        return {"moto": version("moto")}

    async def provision(self, space: Space) -> Handle:
        return {
            "table": space.name,
            "endpoint_url": self._proxied().endpoint_url,
            "region": "us-east-1",
            "access_key_id": KEY,
            "secret_access_key": SECRET,
            "transactions": self.transactions,
            "connection_timeout_millis": 1000,
            "command_timeout_millis": 30_000,
        }

    async def open(self, handle: Handle) -> Store:
        return await self.open_with(handle)

    async def open_with(self, handle: Handle, **options: Any) -> Store:
        return await create_extended_store(type="dynamodb", **{"timeout_ms": _PATIENCE_MS, **handle, **options})

    async def open_borrowed(self, handle: Handle) -> BorrowedClient:
        names = {"access_key_id": "aws_access_key_id", "secret_access_key": "aws_secret_access_key"}
        given = {name: handle[key] for key, name in names.items()}
        stack = AsyncExitStack()
        session = aioboto3.Session(region_name=handle["region"], **given)
        client = await stack.enter_async_context(session.client("dynamodb", endpoint_url=handle["endpoint_url"]))
        others = {name: handle[name] for name in ("table", "transactions", "command_timeout_millis")}
        store = await create_extended_store(type="dynamodb", client=client, timeout_ms=_PATIENCE_MS, **others)
        return BorrowedClient(store, lambda: client.describe_table(TableName=handle["table"]), stack.aclose)

    async def destroy(self, handle: Handle) -> None:
        async with _looked(handle) as table:
            if await has_schema(table):
                await table.ask("delete_table")

    async def wait_until_queries_see_all(self, handle: Handle) -> None:
        """Wait for the indexes of a named endpoint, which may lag. The emulators' indexes do not."""
        if type(self._server()) is Emulator:
            await asyncio.sleep(2)

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        async with _looked(handle) as table:
            head: Any = found_head(await table.get(head_key(agent_id)) or {})
            key = item_key(head.place, row_key(ListKind.MESSAGES, 0))
            item: Any = await table.get(key)
            item["b"] = {"S": text_of(item["b"]).replace("message 0", "message !")}
            await table.repeat("put_item", Item=item)

    async def made_at(self, handle: Handle) -> Sequence[Path]:
        return ()

    async def raw_dump(self, handle: Handle) -> str:
        async with _looked(handle) as table:
            lines, start = [], Record()
            while True:
                found = await table.read("scan", ConsistentRead=True, **start)
                lines += [str({name: _shown(value) for name, value in item.items()}) for item in found["Items"]]
                if not found.get("LastEvaluatedKey"):
                    return "\n".join(lines)
                start = {"ExclusiveStartKey": found["LastEvaluatedKey"]}

    async def raise_version(self, handle: Handle) -> None:
        async with _looked(handle) as table:
            item = {"pk": {"S": "meta"}, "sk": {"S": "schema"}, "version": {"N": "99"}}
            await table.repeat("put_item", Item=item)

    def code_of(self, store: Store) -> Sequence[str]:
        """The code that calls the service. No other code changes the table."""
        return [calls.__file__]

    async def break_backend(self, handle: Handle) -> None:
        self._proxy().mode = Mode.REFUSE

    async def heal_backend(self, handle: Handle) -> None:
        self._proxy().mode = Mode.FORWARD

    def _proxied(self) -> Emulator:
        """The emulator behind a proxy, which can be cut off. An emulator that stops forgets everything."""
        server = self._server()
        return server if type(server) is Emulator else Emulator(f"http://127.0.0.1:{self._proxy().port}")

    def _proxy(self) -> FaultProxy:
        server = self._server()
        if type(server) is Emulator:
            raise Unverified("the endpoint that the environment names is not one to be cut off")
        if server.endpoint_url not in _proxies:
            port = int(server.endpoint_url.rpartition(":")[2])
            _proxies[server.endpoint_url] = FaultProxy("127.0.0.1", port).start()
        return _proxies[server.endpoint_url]


_proxies: dict[str, FaultProxy] = {}


class LocalHarness(MotoHarness):
    """Uses DynamoDB Local."""

    name = "dynamodb-local"
    emulator = LocalServer
    transactions = True

    def _emulators(self) -> Mapping[str, str]:
        return {"dynamodb-local": "1.11"}


def _shown(value: Record) -> object:
    """An attribute, with its text decompressed."""
    return text_of(value) or value if "B" in value else value


class _looked:  # noqa: N801 - reads as a verb
    """A table behind a store's back."""

    def __init__(self, handle: Handle) -> None:
        self._options = DynamoDBOptions(**{**handle, "command_timeout_millis": 60_000})

    async def __aenter__(self) -> Connection:
        self._connection = await connection.connect(self._options)
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()
