"""Emulators for the tests of the DynamoDB backend."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kode_conformance.servers import had
from kode_dynamodb import DynamoDBOptions, DynamoDBStore
from kode_dynamodb.testing.servers import KEY, SECRET, Emulator, LocalServer, MotoServer, shared_server
from msgspec.structs import asdict


def emulator(kind: Any) -> Emulator:
    return had(lambda: shared_server(kind), optional=kind is LocalServer)


@pytest.fixture(params=[MotoServer, LocalServer], ids=["moto", "local"])
def options(request: pytest.FixtureRequest) -> DynamoDBOptions:
    """Of a table of its own on either emulator; the table does not exist yet."""
    return options_on(emulator(request.param))


@pytest.fixture
def moto() -> DynamoDBOptions:
    """Of a table of its own on moto."""
    return options_on(emulator(MotoServer))


@pytest.fixture
def moto_store(moto: DynamoDBOptions) -> Callable[..., DynamoDBStore]:
    """Makes stores on that table."""
    given = {name: value for name, value in asdict(moto).items() if value is not None}
    return lambda **how: DynamoDBStore(**{**given, **how})


@pytest.fixture
def own_moto() -> Iterator[MotoServer]:
    """A running emulator that nobody else uses."""
    with MotoServer() as server:
        yield server


def options_on(server: Emulator) -> DynamoDBOptions:
    return DynamoDBOptions(
        table=f"kode-{secrets.token_hex(6)}",
        endpoint_url=server.endpoint_url,
        region="us-east-1",
        access_key_id=KEY,
        secret_access_key=SECRET,
    )
