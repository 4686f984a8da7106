"""How calls are bounded, made again and told of, with services that fail in ways no emulator does."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from botocore.exceptions import ClientError
from kode_conformance.suite.record_tests import PLACE, a_message
from kode_dynamodb import DynamoDBOptions
from kode_dynamodb import connection as connections
from kode_dynamodb.connection import Connection, connect
from kode_dynamodb.records import DynamoRecords
from kode_dynamodb.testing.servers import KEY, SECRET

from kode_core.errors import (
    OutcomeUnknownError,
    PayloadTooLargeError,
    StorageError,
    StoreBusyError,
    StoreUnavailableError,
)

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


async def test_who_gives_up_before_there_is_a_client_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed when it is open at last, unless somebody else uses it by then."""
    ends, go_on = list[str](), asyncio.Event()

    class Context:
        async def __aexit__(self, *_: object) -> None:
            ends.append("closed")

    async def slowly(_: DynamoDBOptions) -> tuple[Any, Any]:
        await go_on.wait()
        return Context(), Scripted(lambda *_: {})

    monkeypatch.setattr(connections, "_opened", slowly)
    options = options_at(1)
    first, second = asyncio.ensure_future(connect(options)), asyncio.ensure_future(connect(options))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    go_on.set()
    used = await second
    assert ends == []
    await used.close()
    assert ends == ["closed"]

    go_on.clear()
    alone = asyncio.ensure_future(connect(options))
    await asyncio.sleep(0)
    alone.cancel()
    await asyncio.wait([alone])
    go_on.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert ends == ["closed"] * 2


# --- Throttling -------------------------------------------------------------------------------------------------------

IMPATIENT = {"connection_timeout_millis": 50, "command_timeout_millis": 100}


async def test_a_write_waits_for_capacity_longer_than_for_a_connection() -> None:
    """It is made again for as long as both times together; then it is known that nothing was written."""
    until = time.monotonic() + 0.3

    def throttle(name: str, _: Any) -> Any:
        if time.monotonic() < until:
            raise failure("ThrottlingException", name)
        return {}

    patient = await connected(Scripted(throttle), **{**IMPATIENT, "command_timeout_millis": 10_000})
    assert await patient.write("update_item", Key=X)
    until = time.monotonic() + 3600
    impatient = await connected(Scripted(throttle), **IMPATIENT)
    for call in (impatient.write, impatient.repeat, impatient.read):
        with pytest.raises(StoreBusyError, match="kept throttling"):
            await call("update_item", Key=X)


async def test_a_batch_takes_as_long_as_it_goes_on() -> None:
    """The service takes one item at a time, and in the end none."""
    taken, most = 0, 40

    def take_one(_: str, arguments: Any) -> Any:
        nonlocal taken
        ((table, wanted),) = arguments["RequestItems"].items()
        if taken == most:
            return {"UnprocessedItems": {table: wanted}}
        taken += 1
        return {"UnprocessedItems": {table: wanted[1:]} if wanted[1:] else {}}

    connection = await connected(Scripted(take_one), **IMPATIENT)
    keys = [{"pk": {"S": "x"}, "sk": {"S": str(n)}} for n in range(25)]
    await connection.delete_all(keys)
    assert taken == 25
    with pytest.raises(StoreBusyError, match="kept throttling"):
        await connection.delete_all(keys)
    assert taken == most


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


async def test_what_is_dropped_page_by_page_stays_dropped() -> None:
    """Of a place of many pages those that were deleted before a failure need not be deleted again."""
    deleted: list[str] = []

    def answer(name: str, arguments: Any) -> Any:
        if name == "query":
            start = int(arguments.get("ExclusiveStartKey", {"sk": {"S": "0"}})["sk"]["S"])
            keys = [{"pk": {"S": "p"}, "sk": {"S": str(n)}} for n in range(start, start + 10)]
            return {"Items": keys, "LastEvaluatedKey": {"pk": {"S": "p"}, "sk": {"S": str(start + 10)}}}
        if len(deleted) == 30:
            raise failure("AccessDeniedException", name)
        ((_, requests),) = arguments["RequestItems"].items()
        deleted.extend(request["DeleteRequest"]["Key"]["sk"]["S"] for request in requests)
        return {}

    records = DynamoRecords(await connected(Scripted(answer)))
    with pytest.raises(StorageError):
        await records.drop(PLACE)
    assert deleted == [str(n) for n in range(30)]


# --- An agent that is full --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exc",
    [
        failure("ItemCollectionSizeLimitExceededException"),
        failure(
            "TransactionCanceledException",
            CancellationReasons=[{"Code": "None"}, {"Code": "ItemCollectionSizeLimitExceeded"}],
        ),
    ],
    ids=["alone", "in a transaction"],
)
async def test_a_commit_that_does_not_fit_is_too_large_and_what_follows_a_commit_is_not(exc: ClientError) -> None:
    """What is applied is committed already: nobody may take it for a write that was refused."""

    def refuse(*_: Any) -> Any:
        raise exc

    records = DynamoRecords(await connected(Scripted(refuse)))
    with pytest.raises(PayloadTooLargeError, match="more than 10 GB"):
        await records.connection.write("update_item", Key=X)
    with pytest.raises(PayloadTooLargeError):
        await records.apply(PLACE, [a_message(0, 1)], fresh=True)
    with pytest.raises(StorageError, match=r"10 GB.*nothing that was saved is lost.*go on with another agent"):
        await records.apply(PLACE, [a_message(0, 1)])
    with pytest.raises(StorageError, match="10 GB"):
        await records.put_parts(PLACE, "m/1", 1, [b"x"])
