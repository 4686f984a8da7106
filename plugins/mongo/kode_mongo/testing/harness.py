"""Harnesses of the MongoDB store for kode-conformance: with both drivers, and on a server without a replica set."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pymongo
from kode_conformance import BorrowedClient, Costs, Handle, Space, StoreHarness
from kode_conformance.context import Unverified
from pymongo.errors import AutoReconnect

from kode_core import Store, create_extended_store
from kode_core.authoring import calls
from kode_core.batch import ListKind
from kode_core.engines.record.state import row_key
from kode_core.engines.record.store import ItemsPlace
from kode_mongo.documents import id_of
from kode_mongo.schema import COLLECTIONS, HEADS, ITEMS, META
from kode_mongo.testing.servers import URI_VARIABLE, LocalServer, Server, shared_server

__all__ = ["MongoHarness", "PymongoHarness", "StandaloneHarness"]

T = TypeVar("T")


class MongoHarness(StoreHarness):
    """Gives each space its own database on the server of ``shared_server``; uses motor."""

    name = "mongo"
    driver: ClassVar[str] = "motor"
    client: ClassVar[tuple[str, str]] = ("motor.motor_asyncio", "AsyncIOMotorClient")
    standalone: ClassVar[bool] = False

    def __init__(self) -> None:
        self._lookers: dict[str, pymongo.MongoClient[dict[str, Any]]] = {}

    def _server(self) -> Server:
        return shared_server(standalone=self.standalone)

    @property
    def versions(self) -> Mapping[str, str]:  # type: ignore[override]
        """The versions of the server, the driver and the plugin."""
        server = self._server()
        name = server.version if isinstance(server, LocalServer) else f"see {URI_VARIABLE}"
        return {"mongod": name, self.driver: version(self.driver), "kode-mongo": version("kode-mongo")}

    @property
    def secrets(self) -> Sequence[str]:  # type: ignore[override]
        """The password of the server's user."""
        return [secret] if (secret := self._server().password) else []

    async def provision(self, space: Space) -> Handle:
        return {"uri": self._server().uri, "database": space.name, "connection_timeout_millis": 1000}

    async def open(self, handle: Handle) -> Store:
        return await self.open_with(handle)

    async def open_with(self, handle: Handle, **options: Any) -> Store:
        return await create_extended_store(type="mongo", driver=self.driver, **handle, **options)

    async def destroy(self, handle: Handle) -> None:
        looker = self._lookers.pop(handle["database"], None)
        if looker is not None:
            await asyncio.to_thread(looker.close)
        await _looked(handle, lambda database: database.client.drop_database(database.name))

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        def damage(database: Any) -> None:
            head = database[f"kode_{HEADS}"].find_one({"_id": agent_id})
            first = {"_id": id_of(ItemsPlace(agent_id, head["epoch"]), row_key(ListKind.MESSAGES, 0))}
            found = database[f"kode_{ITEMS}"].find_one(first)
            text = found["text"].replace("message 0", "message !")
            done = database[f"kode_{ITEMS}"].update_one(first, {"$set": {"text": text}})
            assert done.modified_count == 1

        await _looked(handle, damage)

    async def made_at(self, handle: Handle) -> Sequence[Path]:
        return ()

    async def raw_dump(self, handle: Handle) -> str:
        def dump(database: Any) -> str:
            return "\n".join(str(found) for name in COLLECTIONS for found in database[f"kode_{name}"].find({}))

        return await _looked(handle, dump)

    async def raise_version(self, handle: Handle) -> None:
        newer = {"$set": {"version": 99}}
        await _looked(handle, lambda database: database[f"kode_{META}"].update_one({"_id": "schema"}, newer))

    def code_of(self, store: Store) -> Sequence[str]:
        """The code that calls the server. No other code changes the database."""
        return [calls.__file__]

    async def costs(self, handle: Handle) -> Costs:
        """The server's own numbers for all clients: bytes written to the journal, and connections.

        One client asks until the space is destroyed, because a new client for each call would be counted, too.
        """

        def look() -> Costs:
            looker = self._lookers.get(handle["database"])
            if looker is None:
                looker = self._lookers[handle["database"]] = pymongo.MongoClient(handle["uri"], maxPoolSize=1)
            try:
                status = looker.admin.command("serverStatus")
            except AutoReconnect:  # the server crashed after the connection was made
                status = looker.admin.command("serverStatus")
            written = status.get("wiredTiger", {}).get("log", {}).get("log bytes written")
            return Costs(bytes_written=written, connections=status["connections"]["current"])

        return await asyncio.to_thread(look)

    async def open_borrowed(self, handle: Handle) -> BorrowedClient:
        kind = getattr(import_module(self.client[0]), self.client[1])
        client = kind(handle["uri"])

        async def end() -> None:
            done = client.close()
            if done is not None:
                await done

        others = {name: handle[name] for name in handle.keys() - {"uri", "connection_timeout_millis"}}
        store = await create_extended_store(type="mongo", client=client, **others)
        return BorrowedClient(store, lambda: client.admin.command("ping"), end)

    async def break_backend(self, handle: Handle) -> None:
        await _alone(self._local().kill)

    async def heal_backend(self, handle: Handle) -> None:
        await _alone(self._server)  # starts it

    async def crash_backend(self, handle: Handle) -> None:
        server = self._local()

        def crash() -> None:
            server.kill()
            server.start()

        await _alone(crash)

    def _local(self) -> LocalServer:
        server = self._server()
        if not isinstance(server, LocalServer):
            raise Unverified(f"the server that {URI_VARIABLE} names is not one to be stopped")
        return server


class PymongoHarness(MongoHarness):
    """Uses PyMongo's own asyncio client."""

    name = "mongo-pymongo"
    driver = "pymongo"
    client = ("pymongo", "AsyncMongoClient")


class StandaloneHarness(MongoHarness):
    """Uses a server without a replica set, which does not report events."""

    name = "mongo-standalone"
    standalone = True


async def _alone(call: Callable[[], Any]) -> None:
    """Call in a thread to the end, so that no other call starts a server that is being stopped."""
    await asyncio.shield(asyncio.to_thread(call))


async def _looked(handle: Handle, look: Callable[[Any], T]) -> T:
    """Do something to a database behind the store's back."""

    def call() -> T:
        with pymongo.MongoClient[dict[str, Any]](handle["uri"]) as client:
            return look(client[handle["database"]])

    return await asyncio.to_thread(call)
