"""Harnesses of the backends with servers, with encryption and compression."""

from __future__ import annotations

from typing import Any

from kode_conformance import Handle, StoreHarness
from kode_dynamodb.testing.harness import MotoHarness, _looked
from kode_dynamodb.values import found_head, head_key, item_key, text_of
from kode_mongo.testing import harness as mongo
from kode_mongo.testing.harness import MongoHarness
from kode_postgres.testing.harness import PostgresHarness, _connection, _tables

from kode_core.batch import ListKind
from kode_core.engines.record.state import row_key
from tests.encrypted_harnesses import OPTIONS, Encrypted, damaged


def _plain(handle: Handle) -> Handle:
    return {name: value for name, value in handle.items() if name not in OPTIONS}


class EncryptedPostgres(Encrypted, PostgresHarness):
    name = "postgres, encrypted"
    restored = StoreHarness.restored

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        async with _connection(handle) as con:
            table, where = _tables(handle).messages, "WHERE agent_id = $1 AND position = 0"
            body = await con.fetchval(f"SELECT body::text FROM {table} {where}", agent_id)
            await con.execute(f"UPDATE {table} SET body = $2::text::json {where}", agent_id, damaged(body))


class EncryptedMongo(Encrypted, MongoHarness):
    name = "mongo, encrypted"
    restored = StoreHarness.restored

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        def damage(database: Any) -> None:
            head = database[f"kode_{mongo.HEADS}"].find_one({"_id": agent_id})
            key = row_key(ListKind.MESSAGES, 0)
            first = {"_id": mongo.id_of(mongo.ItemsPlace(agent_id, head["epoch"]), key)}
            found = database[f"kode_{mongo.ITEMS}"].find_one(first)
            database[f"kode_{mongo.ITEMS}"].update_one(first, {"$set": {"text": damaged(found["text"])}})

        await mongo._looked(handle, damage)


class EncryptedDynamo(Encrypted, MotoHarness):
    """Its hooks that look at the table make options of the backend from the handle: the layers' are left out."""

    name = "dynamodb, encrypted"
    restored = StoreHarness.restored

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        async with _looked(_plain(handle)) as table:
            head: Any = found_head(await table.get(head_key(agent_id)) or {})
            key = item_key(head.place, row_key(ListKind.MESSAGES, 0))
            item: Any = await table.get(key)
            item["b"] = {"S": damaged(text_of(item["b"]))}
            await table.repeat("put_item", Item=item)

    async def raise_version(self, handle: Handle) -> None:
        await super().raise_version(_plain(handle))

    async def destroy(self, handle: Handle) -> None:
        await super().destroy(_plain(handle))

    open_borrowed = StoreHarness.open_borrowed  # type: ignore[assignment]
