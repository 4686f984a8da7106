"""The fixtures of the project's tests, and servers to run them on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kode_conformance.servers import had
from kode_conformance.servers.faults import FaultProxy
from kode_postgres.testing.servers import LocalServer, Server, shared_server

from plugins.postgres.tests.bouncer import Bouncer
from plugins.postgres.tests.plans import con
from tests.conftest import alone, unprivileged

__all__ = ["alone", "con", "unprivileged"]


@pytest.fixture(scope="session")
def server() -> Server:
    """The server that the tests of this process share; it stays up."""
    return had(shared_server)


@pytest.fixture
async def schema(server: Server) -> AsyncIterator[str]:
    """The name of an empty schema of the shared server."""
    async with server.schema() as name:
        yield name


@pytest.fixture
async def database(server: Server) -> AsyncIterator[str]:
    """The address of an empty database of the shared server."""
    async with server.database() as name:
        yield server.url(name)


@pytest.fixture
def own_server() -> Iterator[LocalServer]:
    """A running server that the test may kill, hold and restart."""
    with had(LocalServer) as server:
        yield server


@pytest.fixture(scope="session")
def older_programs() -> Path:
    """The folder of the programs of the version that Debian has, which was built with TLS."""
    found = max(Path("/usr/lib/postgresql").glob("*/bin/postgres"), default=None)
    if found is None:
        pytest.skip("there is no other PostgreSQL in /usr/lib/postgresql; run apt-get install postgresql")
    return found.parent


@pytest.fixture
def older_server(older_programs: Path) -> Iterator[LocalServer]:
    """A running server of that version."""
    with LocalServer(older_programs) as server:
        yield server


@pytest.fixture
def bouncer(own_server: LocalServer) -> Iterator[Bouncer]:
    """PgBouncer in transaction mode, with 4 connections to each database of a server of the test's own."""
    with had(lambda: Bouncer(own_server), optional=True) as pooler:
        yield pooler


@pytest.fixture
def proxied() -> Iterator[Callable[..., FaultProxy]]:
    """Makes proxies that fail on purpose, in front of a server; each is ended after the test."""
    proxies: list[FaultProxy] = []

    def make(server: Server, seed: int = 0) -> FaultProxy:
        parts = urlsplit(server.dsn)
        proxies.append(FaultProxy(parts.hostname or "127.0.0.1", parts.port or 5432, seed=seed).start())
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()
