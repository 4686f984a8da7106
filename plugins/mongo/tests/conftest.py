"""Servers for the tests of the MongoDB backend."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from kode_conformance.servers import had
from kode_mongo.testing.servers import LocalServer, Server, shared_server


@pytest.fixture(scope="session")
def server() -> Server:
    """The server that the tests of this process share; it stays up."""
    return had(shared_server)


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The name of an empty database of the shared server."""
    name = f"kode_{secrets.token_hex(6)}"
    yield name
    with server.client() as client:
        client.drop_database(name)


@pytest.fixture
def own_server() -> Iterator[LocalServer]:
    """A running server that the test may kill, hold and restart."""
    with had(LocalServer) as server:
        yield server


@pytest.fixture
def standalone_server() -> Iterator[LocalServer]:
    """A running server without a replica set."""
    with had(lambda: LocalServer(standalone=True)) as server:
        yield server
