"""Opening every store, by a target and by its class."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from kode_core import (
    DynamoDBStore,
    ExtendedStore,
    JsonStore,
    MemoryStore,
    MongoStore,
    PostgresStore,
    QueryableStore,
    ScopedStore,
    SqliteStore,
    Store,
    create_extended_store,
    create_store,
)


async def by_a_target() -> None:
    async with create_extended_store() as store:
        assert_type(store, ScopedStore)
    async with create_extended_store("sqlite:///agents.db", durability="fast", timeout_ms=5_000) as store:
        await store.health_check()
    async with create_extended_store(Path("agents.db")), create_extended_store({"type": "memory"}):
        pass
    assert_type(await create_extended_store(type="sqlite", db_path="agents.db"), ScopedStore)
    assert_type(await create_store("memory:"), Store)

    create_extended_store(7)  # refused: arg-type
    create_extended_store(["sqlite:///agents.db"])  # refused: arg-type
    await create_extended_store("memory:").load_messages("agt-1")  # refused: attr-defined
    async with create_store("memory:") as plain:
        await plain.query_sessions()  # refused: attr-defined


async def by_a_class() -> None:
    stores: list[ExtendedStore] = [
        MemoryStore(),
        MemoryStore("tests"),
        JsonStore(Path("folder")),
        SqliteStore("agents.db"),
        SqliteStore("agents.db", "files"),
        PostgresStore("postgres://kode@localhost/kode_agents"),
        PostgresStore({"host": "localhost", "password": lambda: "secret"}),
        MongoStore("mongodb://localhost/kode_agents"),
        DynamoDBStore("kode_agents"),
    ]
    for store in stores:
        await store.close()
    async with SqliteStore("agents.db") as opened:
        await opened.load_messages("agt-1")

    SqliteStore()  # refused: call-arg
    SqliteStore(7)  # refused: arg-type
    JsonStore()  # refused: call-arg


def every_store_is_a_plain_one(store: ExtendedStore) -> QueryableStore:
    plain: Store = store
    print(plain)
    return store


def a_plain_store_is_not_every_one(plain: Store, queryable: QueryableStore) -> ExtendedStore:
    print(every_store_is_a_plain_one(plain))  # refused: arg-type
    return queryable  # refused: return-value
