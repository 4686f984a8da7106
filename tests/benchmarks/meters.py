"""Meters of MongoDB and DynamoDB: every request of a store and its cost, read from what the server answers."""

from __future__ import annotations

import math
import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, Protocol, Self

import aioboto3
import bson
import kode_dynamodb.testing.servers as emulators
import kode_mongo.testing.servers as mongo
import pymongo
from aiobotocore.config import AioConfig
from kode_conformance.servers import NoServerError
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from kode_core import ExtendedStore, create_extended_store

__all__ = ["METERS", "DynamoMeter", "Meter", "MongoMeter"]

_PROFILE_BYTES: Final = 256 * 2**20
_UNIT_BYTES: Final = 1024


class Meter(Protocol):
    """A database of its own on a running server, and what its stores ask of it.

    Attributes:
        title: the server, with its version.
        columns: what is counted, in the order of the table; ``reads`` and ``writes`` are requests.
    """

    title: str
    columns: Sequence[str]

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def store(self) -> ExtendedStore:
        """Another store on the database, which knows nothing yet."""
        ...

    def clear(self) -> None:
        """Count from here on."""
        ...

    def counted(self) -> Counter[str]:
        """What was counted since."""
        ...


class MongoMeter(CommandListener):
    """Commands by the driver's monitoring, documents by the server's profiler."""

    columns = ("reads", "writes", "documents examined", "documents written", "bytes sent", "bytes received")
    _READS: Final = frozenset({"find", "getMore", "aggregate", "count", "distinct"})
    _WRITES: Final = frozenset({"insert", "update", "delete", "findAndModify"})

    def __init__(self) -> None:
        self._name = f"kode_costs_{secrets.token_hex(4)}"
        self._counts: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        server = mongo.shared_server()
        version = server.version if isinstance(server, mongo.LocalServer) else "of your own"
        self.title = f"mongod {version}, a replica set of one member on loopback"
        self._looker: Any = pymongo.MongoClient(server.uri)
        database = self._looker[self._name]
        database.create_collection("system.profile", capped=True, size=_PROFILE_BYTES)
        database.command("profile", 2)
        self._client: Any = pymongo.AsyncMongoClient(server.uri, event_listeners=[self])
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.close()
        self._looker[self._name].command("profile", 0)
        self._looker.drop_database(self._name)
        self._looker.close()

    async def store(self) -> ExtendedStore:
        return await create_extended_store(type="mongo", client=self._client, database=self._name)

    def clear(self) -> None:
        self._counts.clear()
        self._since = self._last()

    def counted(self) -> Counter[str]:
        counts = Counter(self._counts)
        seen: Mapping[str, Any] = {"ns": {"$ne": f"{self._name}.system.profile"}}
        entries = self._looker[self._name]["system.profile"].find(seen)
        for entry in list(entries)[self._since :]:
            counts["documents examined"] += entry.get("docsExamined", 0)
            for name in ("ninserted", "nModified", "nUpserted", "ndeleted"):
                counts["documents written"] += entry.get(name, 0)
        return counts

    def _last(self) -> int:
        seen: Mapping[str, Any] = {"ns": {"$ne": f"{self._name}.system.profile"}}
        return int(self._looker[self._name]["system.profile"].count_documents(seen))

    # --- what the driver tells

    def started(self, event: CommandStartedEvent) -> None:
        kind = "writes" if event.command_name in self._WRITES else "reads"
        if event.command_name in self._READS | self._WRITES:
            self._counts[kind] += 1
            self._counts["bytes sent"] += len(bson.encode(event.command))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        if event.command_name in self._READS | self._WRITES:
            self._counts["bytes received"] += len(bson.encode(event.reply))

    def failed(self, event: CommandFailedEvent) -> None:
        return


class DynamoMeter:
    """Requests and units from the answers of DynamoDB Local; on moto, which tells no real units, requests alone.

    A refused write tells no units. It costs those of the item that it would have written.
    """

    def __init__(self) -> None:
        self._table = f"kode-costs-{secrets.token_hex(4)}"
        self._counts: Counter[str] = Counter()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        server, self.title, has_units = _emulator()
        self.columns: Sequence[str] = ("reads", "writes", "refused")
        if has_units:
            self.columns = (*self.columns, "read units", "write units")
        session = aioboto3.Session(
            aws_access_key_id=emulators.KEY, aws_secret_access_key=emulators.SECRET, region_name="us-east-1"
        )
        once = AioConfig(retries={"total_max_attempts": 1}, max_pool_connections=50)
        self._client: Any = await self._stack.enter_async_context(
            session.client("dynamodb", endpoint_url=server.endpoint_url, config=once)
        )
        self._client.meta.events.register("before-parameter-build.dynamodb", self._asked)
        self._client.meta.events.register("after-call.dynamodb", self._answered)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.delete_table(TableName=self._table)
        await self._stack.aclose()

    async def store(self) -> ExtendedStore:
        return await create_extended_store(
            type="dynamodb", client=self._client, table=self._table, count_units=True, command_timeout_millis=60_000
        )

    def clear(self) -> None:
        self._counts.clear()

    def counted(self) -> Counter[str]:
        return Counter(self._counts)

    # --- what the driver tells

    def _asked(self, params: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:
        context["kode_params"] = params

    def _answered(self, parsed: Mapping[str, Any], model: Any, context: Mapping[str, Any], **_: Any) -> None:
        kind = "read" if model.name in ("GetItem", "BatchGetItem", "Query", "Scan") else "write"
        if kind == "write" and not model.name.endswith(("Item", "Items")):
            return
        self._counts[f"{kind}s"] += 1
        consumed: Any = parsed.get("ConsumedCapacity") or []
        for one in consumed if isinstance(consumed, list) else [consumed]:
            self._counts[f"{kind} units"] += one.get("CapacityUnits", 0)
        if parsed.get("Error", {}).get("Code") == "ConditionalCheckFailedException":
            self._counts["refused"] += 1
            given = context["kode_params"]
            item = given.get("Item") or given.get("ExpressionAttributeValues", {})
            self._counts["write units"] += math.ceil(_size(item) / _UNIT_BYTES)


def _emulator() -> tuple[emulators.Emulator, str, bool]:
    """DynamoDB Local where it can be had, or else moto; its name, and whether it tells units."""
    if not os.environ.get(emulators.ENDPOINT_VARIABLE):
        try:
            return emulators.shared_server(emulators.LocalServer), "DynamoDB Local 1.11 on loopback", True
        except NoServerError:
            return emulators.shared_server(), "moto on loopback", False
    return emulators.shared_server(), "the endpoint of your own", True


def _size(item: Mapping[str, Any]) -> int:
    """The size of an item by the service's rule: names and values in UTF-8, about."""
    return sum(len(name) + _size_of(value) for name, value in item.items())


def _size_of(value: Mapping[str, Any]) -> int:
    ((kind, held),) = value.items()
    if kind == "M":
        return _size(held)
    if kind == "L":
        return sum(map(_size_of, held))
    return len(held) if isinstance(held, bytes) else len(str(held).encode())


METERS: Final[Mapping[str, type[MongoMeter] | type[DynamoMeter]]] = {"mongo": MongoMeter, "dynamodb": DynamoMeter}
