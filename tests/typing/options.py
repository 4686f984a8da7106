"""Options as typed keywords."""

from __future__ import annotations

from typing import Literal, assert_type

from kode_dynamodb import DynamoDBOptions
from kode_mongo import MongoOptions
from kode_postgres import PostgresOptions
from kode_sqlite import SqliteOptions

from kode_core import DynamoDBStore, JsonStore, MemoryStore, MongoStore, PostgresStore, SqliteStore
from kode_core.backends.json_files.plugin import JsonOptions
from kode_core.config import StoreOptions


def options() -> None:
    assert_type(SqliteOptions(db_path="agents.db", durability="fast").durability, Literal["full", "fast"])
    PostgresOptions(host="localhost", port=5432, password="secret", max=3)
    PostgresOptions(password=lambda: "secret")
    MongoOptions(uri="mongodb://localhost", driver="pymongo")
    DynamoDBOptions(table="kode_agents", region="eu-central-1")
    JsonOptions(base_dir="folder", durability="full")
    StoreOptions(file_store_base_dir="files", timeout_ms=5_000)

    SqliteOptions(durability="fats")  # refused: arg-type
    SqliteOptions(path="agents.db")  # refused: call-arg
    SqliteOptions("agents.db")  # refused: call-arg
    PostgresOptions(port="5432")  # refused: arg-type
    MongoOptions(driver="txmongo")  # refused: arg-type
    DynamoDBOptions(tabel="kode_agents")  # refused: call-arg
    StoreOptions(timeout_ms="5 s")  # refused: arg-type
    SqliteOptions().db_path = "other.db"  # refused: misc


def keywords() -> None:
    MemoryStore(memory_limit_bytes=0)
    JsonStore("folder", durability="fast", lock_wait_ms=100)
    SqliteStore("agents.db", durability="fast", readers=2, timeout_ms=5_000)
    PostgresStore(host="localhost", password=lambda: "secret", server_settings={"work_mem": "8MB"})
    MongoStore("mongodb://localhost", "files", driver="pymongo", max=3)
    DynamoDBStore(table="kode_agents", region="eu-central-1", transactions=True)

    MemoryStore(durability="fast")  # refused: call-arg
    JsonStore("folder", durability="fats")  # refused: arg-type
    SqliteStore("agents.db", reader=2)  # refused: call-arg
    SqliteStore("agents.db", timeout_ms="5 s")  # refused: arg-type
    PostgresStore(port="5432")  # refused: arg-type
    MongoStore(driver="txmongo")  # refused: arg-type
    DynamoDBStore(transaction=True)  # refused: call-arg
