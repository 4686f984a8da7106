"""How calls are bounded, made again and told of, with services that fail in ways no emulator does."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from botocore.exceptions import ClientError
from kode_conformance.record_tests import PLACE, a_message
from kode_dynamodb import DynamoDBOptions
from kode_dynamodb.connection import Connection, connect
from kode_dynamodb.records import DynamoRecords
from kode_dynamodb.servers import KEY, SECRET

from kode_core.errors import OutcomeUnknownError, StorageError, StoreUnavailableError

X = {"pk": {"S": "x"}, "sk": {"S": "x"}}


class Dying:
    """A service that takes every request as a whole, and then resets the connection."""

    def __init__(self) -> None:
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length.group(1)))
            self.requests += 1
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()


@asynccontextmanager
async def dying() -> AsyncIterator[tuple[Dying, DynamoDBOptions]]:
    service = Dying()
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    yield service, options_at(server.sockets[0].getsockname()[1])
    server.close()


def options_at(port: int) -> DynamoDBOptions:
    return DynamoDBOptions(
        endpoint_url=f"http://127.0.0.1:{port}",
        region="us-east-1",
        access_key_id=KEY,
        secret_access_key=SECRET,
        connection_timeout_millis=200,
    )


# --- Broken connections -----------------------------------------------------------------------------------------------


async def test_a_write_whose_connection_is_reset_is_in_doubt() -> None:
    """It was sent, so that it may have been applied: it is not sent again (F29)."""
    async with dying() as (service, options):
        connection = await connect(options)
        with pytest.raises(OutcomeUnknownError):
            await connection.write("update_item", Key=X)
        assert service.requests == 1
        with pytest.raises(OutcomeUnknownError):
            await connection.repeat("update_item", Key=X)
        assert service.requests > 2
        await connection.close()


async def test_a_write_that_nobody_took_was_not_written() -> None:
    """Where nobody listens nothing can be in doubt."""
    async with dying() as (_, options):
        pass
    connection = await connect(options)
    with pytest.raises(StoreUnavailableError):
        await connection.write("update_item", Key=X)
    await connection.close()


# --- Many items -------------------------------------------------------------------------------------------------------


class Scripted:
    """A client each of whose calls is answered by a function, some milliseconds later.

    Attributes:
        running: how many calls are on their way.
        most: how many there were at once.
    """

    def __init__(self, answer: Callable[[str, Any], Any]) -> None:
        self._answer = answer
        self.running = self.most = 0

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(**arguments: Any) -> Any:
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await asyncio.sleep(0.002)
                return self._answer(name, arguments)
            finally:
                self.running -= 1

        return call


async def connected(client: Scripted, **how: Any) -> Connection:
    return await connect(DynamoDBOptions(client=client, **how))


def failure(code: str, operation: str = "PutItem", **more: Any) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "x"}, **more}, operation)


async def test_what_has_many_items_leaves_room_for_others() -> None:
    """Of one call's requests few are on their way at once, and none when it has failed."""
    client = Scripted(lambda *_: {})
    records = DynamoRecords(await connected(client))
    await records.apply(PLACE, [a_message(n, 1) for n in range(100)])
    assert client.most == 8

    def refuse_some(name: str, arguments: Any) -> Any:
        if "7" in str(arguments):
            raise failure("AccessDeniedException", name)
        return {"Responses": {}}

    client = Scripted(refuse_some)
    connection = await connected(client)
    keys = [{"pk": {"S": "x"}, "sk": {"S": str(n)}} for n in range(1000)]
    for call in (connection.get_all, connection.delete_all):
        with pytest.raises(StorageError):
            await call(keys)
        assert client.running == 0
    assert client.most == 8
