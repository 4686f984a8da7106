"""Encryption and compression over every backend: the whole suite, dumps without plain text, large stores, kills."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kode_conformance import Space, StoreHarness
from kode_conformance.testclass import StoreConformance
from kode_dynamodb.testing.harness import MotoHarness
from kode_mongo.testing.harness import MongoHarness
from kode_postgres.testing.harness import PostgresHarness

from kode_core import Message, create_extended_store
from kode_core.layers.encryption import encrypted
from kode_core.rekeying import rekey
from tests.encrypted_harnesses import OPTIONS, EncryptedHybrid, EncryptedJson, EncryptedMemory, EncryptedSqlite
from tests.encrypted_servers import EncryptedDynamo, EncryptedMongo, EncryptedPostgres
from tests.test_encryption import BLIND, NEW, OLD, everything, fill, words


@pytest.mark.parametrize("harness", [PostgresHarness, MongoHarness, MotoHarness])
async def test_a_dump_has_only_documented_fields(harness: type[StoreHarness], tmp_path: Path) -> None:
    """Every table, collection and item, read behind the store's back; and all of it is read again."""
    plain = harness()
    handle = await plain.provision(Space("canaries_of_encryption", tmp_path))
    try:
        store: Any = await plain.open({**handle, **OPTIONS})
        try:
            await fill(store)
            assert len(await store.query_tool_calls(tool_name="canary-tool")) == 2
            assert len(await store.query_sessions(metadata={"canary-meta-key": "canary-meta-value"})) == 2
            before = await everything(store)
        finally:
            await store.close()
        assert words((await plain.raw_dump(handle)).encode()) == BLIND
        store = await plain.open({**handle, **OPTIONS})
        try:
            assert await everything(store) == before
            result = await rekey(store)
            assert (result.records, dict(result.left)) == (0, {})
        finally:
            await store.close()
    finally:
        await plain.destroy(handle)


@pytest.mark.parametrize("harness", [PostgresHarness, MongoHarness, MotoHarness])
async def test_keys_rotate_on_servers(harness: type[StoreHarness], tmp_path: Path) -> None:
    """What is left under the old key is told: events, where the engine never changes one, and nothing else."""
    plain = harness()
    handle = await plain.provision(Space("rotated_keys", tmp_path))
    try:
        for keys, left in (({"old": OLD}, set()), ({"new": NEW, "old": OLD}, {"old"})):
            store: Any = await plain.open_with(handle, layers=[encrypted(keys)])
            try:
                if "new" not in keys:
                    await fill(store)
                before = await everything(store)
                result = await rekey(store)
                assert result.left.keys() <= left
                assert sum(result.left.values()) == (0 if harness is PostgresHarness or "new" not in keys else 1)
                assert await everything(store) == before
                assert (await store.check_consistency()).issues == ()
            finally:
                await store.close()
        store = await plain.open_with(handle, layers=[encrypted({"new": NEW})])
        try:
            assert len(await store.load_messages("canary-agent")) == 4
        finally:
            await store.close()
    finally:
        await plain.destroy(handle)


async def test_a_hundred_thousand_messages_take_little_memory(tmp_path: Path) -> None:
    """They are streamed, put under another key, and streamed again."""
    url = f"sqlite:///{tmp_path}/a.db?durability=fast"
    async with create_extended_store(url, layers=[encrypted({"old": OLD})]) as store:
        for start in range(0, 100_000, 2_000):
            await store.append_messages("a", [Message.user(f"{i} " + "x" * 500) for i in range(start, start + 2_000)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with create_extended_store(url, layers=[encrypted({"new": NEW, "old": OLD})], memory_limit_bytes=0) as store:
        assert (await rekey(store)).records == 100_000
        assert [one.position async for one in store.read_messages("a")] == list(range(100_000))
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert taken < 150 * 2**20


PROGRAM = """
import asyncio, sys
from kode_core import create_extended_store
from kode_core.layers.encryption import encrypted
from kode_core.rekeying import rekey
async def main():
    async with create_extended_store(sys.argv[1], layers=[encrypted({"new": b"n" * 32, "old": b"o" * 32})]) as store:
        await rekey(store, progress=lambda done, _: print(done, flush=True))
asyncio.run(main())
"""


@pytest.mark.parametrize("form", ["sqlite:///{}/a.db", "json:///{}/json"])
async def test_a_rekey_is_killed_and_begun_again(form: str, tmp_path: Path) -> None:
    """By SIGKILL, after each of its first agents; every record is read all the time."""
    url = form.format(tmp_path)
    async with create_extended_store(url, layers=[encrypted({"old": OLD})]) as store:
        for i in range(6):
            await fill(store, f"agent-{i}")
        before = await everything(store)
    for kills in range(4):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, url, stdout=subprocess.PIPE, env={**os.environ}
        )
        assert process.stdout is not None
        for _ in range(kills):
            await process.stdout.readline()
        process.kill()
        await process.wait()
        async with create_extended_store(url, layers=[encrypted({"old": OLD, "new": NEW})]) as store:
            assert await everything(store) == before
            assert (await store.check_consistency()).issues == ()
    async with create_extended_store(url, layers=[encrypted({"new": NEW, "old": OLD})]) as store:
        assert (await rekey(store)).left == {}
    async with create_extended_store(url, layers=[encrypted({"new": NEW})]) as store:
        assert await everything(store) == before


@pytest.mark.slow
class TestEncryptedMemory(StoreConformance):
    harness = EncryptedMemory()


@pytest.mark.slow
class TestEncryptedJson(StoreConformance):
    harness = EncryptedJson()


@pytest.mark.slow
class TestEncryptedSqlite(StoreConformance):
    harness = EncryptedSqlite()


@pytest.mark.slow
class TestEncryptedHybrid(StoreConformance):
    harness = EncryptedHybrid()


@pytest.mark.suites
class TestEncryptedPostgres(StoreConformance):
    harness = EncryptedPostgres()


@pytest.mark.suites
class TestEncryptedMongo(StoreConformance):
    harness = EncryptedMongo()


@pytest.mark.suites
class TestEncryptedDynamo(StoreConformance):
    harness = EncryptedDynamo()
