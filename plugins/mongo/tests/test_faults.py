"""Networks and servers fail: nothing acknowledged is lost, nothing is written twice, and every call ends in time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import pytest
from kode_conformance.servers.faults import FaultProxy
from kode_conformance.servers.load import AppendLog, give_up
from kode_conformance.suite.network_tests import NEW, Link, NetworkTests
from kode_conformance.values import samples
from kode_mongo.testing.servers import LocalServer

from kode_core import ExtendedStore, create_extended_store

ROUNDS = {"quick": 4, "standard": 10, "thorough": 20}


@pytest.fixture(params=["motor", "pymongo"])
def driver(request: pytest.FixtureRequest) -> str:
    if request.param == "pymongo" and request.config.getoption("kode_tier") == "quick":
        pytest.skip("runs at --kode-tier standard")
    return str(request.param)


class TestNetwork(NetworkTests):
    """What holds of every store that has a server.

    A member of a set is known by its own address, and no proxy is between. So this is a standalone server, where the
    driver repeats no write by itself: what is in doubt is the store's own affair.
    """

    appends = 80

    @pytest.fixture
    async def link(self, standalone_server: LocalServer, driver: str) -> AsyncIterator[Link]:
        def opener(port: int) -> Callable[..., Awaitable[ExtendedStore]]:
            parts = urlsplit(standalone_server.uri)
            uri = parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}").geturl()
            return lambda **how: create_extended_store(type="mongo", uri=uri, driver=driver, **{"max": 4, **how})

        with FaultProxy("127.0.0.1", standalone_server.port, seed=5) as proxy:
            link = Link(proxy, opener(standalone_server.port), opener(proxy.port))
            yield link
            await link.close()


async def test_what_was_acknowledged_survives_kills_of_the_server(
    own_server: LocalServer, driver: str, request: pytest.FixtureRequest
) -> None:
    """SIGKILL under load, again and again."""
    rng = random.Random(1)
    async with await create_extended_store(type="mongo", uri=own_server.uri, driver=driver) as store:
        log = AppendLog(store)
        async with log.load():
            for _ in range(ROUNDS[request.config.getoption("kode_tier")]):
                await asyncio.sleep(rng.uniform(0, 0.05))
                await asyncio.to_thread(own_server.kill)
                await asyncio.to_thread(own_server.start)
                await log.more(20)
        assert await log.problems(store) == []


async def test_followers_miss_nothing_while_servers_come_and_go(own_server: LocalServer, driver: str) -> None:
    """Those in the store that appends and in another one get every event once and in order."""
    heard: dict[str, list[int]] = {"here": [], "there": []}

    async def follow(name: str, where: ExtendedStore) -> None:
        async for event in where.follow_events("a"):
            heard[name].append(event.event.data["n"])
            if event.event.data["n"] == 60:
                return

    async with (
        await create_extended_store(type="mongo", uri=own_server.uri, driver=driver) as store,
        await create_extended_store(type="mongo", uri=own_server.uri, driver=driver) as other,
    ):
        followers = [asyncio.ensure_future(follow("here", store)), asyncio.ensure_future(follow("there", other))]
        for number in range(61):
            await store.append_event("a", samples.event(number, n=number))
            if number in (20, 40):
                await asyncio.to_thread(own_server.kill if number == 40 else own_server.stop)
                await asyncio.to_thread(own_server.start)
        async with asyncio.timeout(60):
            await asyncio.gather(*followers)
    assert heard == {"here": list(range(61)), "there": list(range(61))}


async def test_a_killed_client_blocks_nobody(own_server: LocalServer, driver: str) -> None:
    """Calls that are given up at random leave nothing locked and no connection too many: others go on at once."""
    rng = random.Random(4)
    async with await create_extended_store(type="mongo", uri=own_server.uri, driver=driver, max=4) as store:
        await give_up(store, rng, 100)
        async with asyncio.timeout(30):
            await store.append_messages("a", [NEW])
        with own_server.client() as client:
            status = client.admin.command("serverStatus")
        assert status["transactions"]["currentOpen"] == 0
        assert status["connections"]["current"] < 40
