"""A server with a standby that takes over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from kode_conformance.servers import had
from kode_conformance.servers.load import AppendLog
from kode_conformance.values import samples
from kode_postgres.reach import Reach
from kode_postgres.target import target_of
from kode_postgres.testing.servers import LocalServer

from kode_core import create_extended_store
from kode_core.errors import StoreReadOnlyError, StoreUnavailableError
from plugins.postgres.tests.test_plugin import options_of


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


def url_of(first: LocalServer, second: LocalServer, **parameters: str) -> str:
    """The URL with both, in this order."""
    return first.url(**parameters).replace(f"127.0.0.1:{first.port}", f"127.0.0.1:{first.port},127.0.0.1:{second.port}")


async def test_a_standby_that_takes_over_has_all_that_was_acknowledged(
    primary: LocalServer, standby: LocalServer
) -> None:
    """Both are in the URL: the store finds the one that takes writes, and nobody sees that the other has gone."""
    both = url_of(primary, standby, target_session_attrs="read-write")
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


async def test_a_host_that_hangs_is_passed_over(primary: LocalServer, standby: LocalServer) -> None:
    """By an open store, what its followers listen over and a new store, though the first host takes connections."""
    both = url_of(primary, standby, target_session_attrs="read-write")
    options: dict[str, Any] = {"dsn": both, "command_timeout_millis": 2000, "connection_timeout_millis": 2000}
    async with create_extended_store(type="postgres", **options) as store:
        await store.append_events("a", samples.events(1))
        follower = store.follow_events("a").__aiter__()
        async with asyncio.timeout(60):
            first = await anext(follower)
        primary.pause()
        try:
            await standby.execute("SELECT pg_promote()")
            async with asyncio.timeout(60):
                await store.append_events("a", [samples.event(7)])
                second = await anext(follower)
            assert [first.bookmark.seq, second.bookmark.seq] == [0, 7]
            connections: Any = store._context.engine.connections  # type: ignore[attr-defined]
            listening = await connections.connect()
            assert await listening.fetchval("SELECT pg_is_in_recovery()") is False
            await listening.close()
            async with create_extended_store(type="postgres", **options) as another:
                assert [e.bookmark.seq async for e in another.read_events("a")] == [0, 7]
        finally:
            primary.resume()


async def test_the_host_that_is_wanted(primary: LocalServer, standby: LocalServer) -> None:
    """Whichever stands first; where a standby is preferred and none answers, the other one is taken."""
    for wanted, follows in (
        *(("any", False), ("read-write", False), ("primary", False)),
        *(("standby", True), ("read-only", True), ("prefer-standby", True)),
    ):
        found = Reach(target_of(options_of(url_of(primary, standby, target_session_attrs=wanted)), {}))
        con = await found.connect()
        assert (await con.fetchval("SELECT pg_is_in_recovery()"), con.is_closed()) == (follows, False), wanted
        await con.close()
    with pytest.raises(StoreUnavailableError, match="None of the hosts match the target attribute"):
        await create_extended_store(primary.url(target_session_attrs="standby"))
    for first, second in ((primary, standby), (standby, primary)):
        both = url_of(first, second, target_session_attrs="prefer-standby", connect_timeout="2")
        standby.pause()
        try:
            con = await Reach(target_of(options_of(both), {})).connect()
            assert await con.fetchval("SELECT pg_is_in_recovery()") is False
            await con.close()
        finally:
            standby.resume()
