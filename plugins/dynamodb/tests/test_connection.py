"""How calls are bounded, made again and told of, with services that fail in ways no emulator does."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from kode_dynamodb import DynamoDBOptions
from kode_dynamodb.connection import connect
from kode_dynamodb.servers import KEY, SECRET

from kode_core.errors import OutcomeUnknownError, StoreUnavailableError

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
