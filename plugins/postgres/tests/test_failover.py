"""A server with a standby that takes over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from kode_conformance import samples
from kode_conformance.load import AppendLog
from kode_conformance.servers import had
from kode_postgres.servers import LocalServer

from kode_core import create_extended_store
from kode_core.errors import StoreReadOnlyError


@pytest.fixture
def primary() -> Iterator[LocalServer]:
    """Its commits wait for a standby, though only where they ask for it."""
    settings = {"synchronous_standby_names": "*", "synchronous_commit": "local"}
    with had(lambda: LocalServer(settings=settings)) as server:
        yield server


@pytest.fixture
async def standby(primary: LocalServer) -> AsyncIterator[LocalServer]:
    with await asyncio.to_thread(primary.standby) as other:
        async with asyncio.timeout(30):
            while not await primary.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):
                await asyncio.sleep(0.02)
        yield other


async def test_a_standby_that_takes_over_has_all_that_was_acknowledged(
    primary: LocalServer, standby: LocalServer
) -> None:
    """Both are in the URL: the store finds the one that takes writes, and nobody sees that the other has gone."""
    both = primary.url(target_session_attrs="read-write").replace(
        f"127.0.0.1:{primary.port}", f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    )
    async with await create_extended_store(type="postgres", dsn=both, max=4) as store:
        log = AppendLog(store)
        async with log.load():
            await asyncio.to_thread(primary.kill)
            await standby.execute("SELECT pg_promote()")
        assert log.errors == []
        assert await log.problems(store) == []


async def test_a_standby_is_read_and_says_that_it_takes_no_writes(primary: LocalServer, standby: LocalServer) -> None:
    """Reads and the health of a server that follows another one."""
    async with await create_extended_store(type="postgres", dsn=primary.dsn) as store:
        await store.append_messages("a", samples.messages(2))
        expected = await store.load_messages("a")
        [[place]] = await primary.execute("SELECT pg_current_wal_lsn()::text")
        async with asyncio.timeout(30):
            while not (await standby.execute(f"SELECT pg_last_wal_replay_lsn() >= '{place}'"))[0][0]:
                await asyncio.sleep(0.02)
        async with await create_extended_store(type="postgres", dsn=standby.dsn) as follower:
            assert await follower.load_messages("a") == expected
            with pytest.raises(StoreReadOnlyError, match="connect to the primary"):
                await follower.append_messages("a", samples.messages(1))
            assert not (await follower.health_check()).healthy
