"""HTTP between a store and an emulator, where the n-th call is throttled, done in part, refused, or its answer lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

__all__ = ["FAULTS", "Answer", "Fault", "Gateway"]

_NAMESPACE: Final = "com.amazonaws.dynamodb.v20120810#"


class Answer(NamedTuple):
    """A reply of the service."""

    status: int
    body: Any


Send = Callable[[Any], Awaitable[Answer]]
Act = Callable[[str, Any, Send], Awaitable[Answer | None]]


class Fault(NamedTuple):
    """What becomes of a call of an operation, with a body, that may be sent on; without an answer the connection ends.

    Attributes:
        is_harmless: whether a store waits and goes on, so that its caller sees nothing of it.
    """

    name: str
    act: Act
    is_harmless: bool = False


def _refused(code: str, status: int = 400, **more: Any) -> Answer:
    return Answer(status, {"__type": _NAMESPACE + code, "message": "not now", **more})


def _throttling(code: str) -> Fault:
    async def act(operation: str, body: Any, send: Send) -> Answer:
        return _refused(code)

    return Fault(code, act, is_harmless=True)


async def _cancelled(operation: str, body: Any, send: Send) -> Answer:
    """As only transactions are; other calls are throttled."""
    if operation != "TransactWriteItems":
        return _refused("ThrottlingException")
    reasons = [{"Code": "None"} for _ in body["TransactItems"]]
    reasons[-1] = {"Code": "ThrottlingError", "Message": "not now"}
    return _refused("TransactionCanceledException", CancellationReasons=reasons)


async def _in_part(operation: str, body: Any, send: Send) -> Answer:
    """Half of a batch is done, of one record none."""
    if operation not in ("BatchWriteItem", "BatchGetItem"):
        return await send(body)
    ((table, wanted),) = body["RequestItems"].items()
    requests = wanted["Keys"] if operation == "BatchGetItem" else wanted
    some, others = requests[: len(requests) // 2], requests[len(requests) // 2 :]
    if operation == "BatchGetItem":
        left = {"UnprocessedKeys": {table: {**wanted, "Keys": others}}}
        if not some:
            return Answer(200, {"Responses": {table: []}, **left})
        found = await send({**body, "RequestItems": {table: {**wanted, "Keys": some}}})
    else:
        left = {"UnprocessedItems": {table: others}}
        if not some:
            return Answer(200, left)
        found = await send({**body, "RequestItems": {table: some}})
    return Answer(found.status, {**found.body, **left})


async def _failed(operation: str, body: Any, send: Send) -> Answer:
    return _refused("InternalServerError", 500)


async def _done_and_failed(operation: str, body: Any, send: Send) -> Answer:
    await send(body)
    return _refused("InternalServerError", 500)


async def _unavailable(operation: str, body: Any, send: Send) -> Answer:
    """As a load balancer answers, without a code of the service."""
    return Answer(503, None)


async def _cut_off(operation: str, body: Any, send: Send) -> None:
    return None


async def _done_and_cut_off(operation: str, body: Any, send: Send) -> None:
    await send(body)


FAULTS: Final = (
    _throttling("ProvisionedThroughputExceededException"),
    _throttling("ThrottlingException"),
    _throttling("RequestLimitExceeded"),
    Fault("transaction cancelled", _cancelled, is_harmless=True),
    Fault("in part", _in_part, is_harmless=True),
    Fault("InternalServerError", _failed),
    Fault("InternalServerError, and done", _done_and_failed),
    Fault("503", _unavailable),
    Fault("cut off", _cut_off),
    Fault("cut off, and done", _done_and_cut_off),
)


class Gateway:
    """Used with ``async with``.

    Attributes:
        port: where it listens.
        calls: the operations that were called since ``arm``.
        met: how many of them the fault met.
    """

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._fault: Fault | None = None
        self._at, self._until = 0, 0
        self.calls: list[str] = []
        self.met = 0
        self._tasks = set[asyncio.Task[None]]()

    async def __aenter__(self) -> Gateway:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def arm(self, fault: Fault | None, at: int = 0, *, count: int = 1) -> None:
        """Count from here, and have the fault meet so many calls, beginning with the one of a number from 1 on."""
        self.calls, self.met = [], 0
        self._fault, self._at, self._until = fault, at, at + count

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                headers, content = await _message(reader)
                answer = await self._answer(headers, content)
                if answer is None:
                    return
                writer.write(_reply(answer))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, headers: Mapping[str, str], content: bytes) -> Answer | None:
        operation = headers["x-amz-target"].partition(".")[2]

        async def send(body: Any) -> Answer:
            raw = json.dumps(body).encode()
            kept = {name: value for name, value in headers.items() if name not in ("content-length", "connection")}
            lines = [f"{name}: {value}" for name, value in kept.items() if name != ":"]
            head = [kept[":"], *lines, f"content-length: {len(raw)}", "connection: close", "", ""]
            reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream)
            try:
                writer.write("\r\n".join(head).encode() + raw)
                found, text = await _message(reader)
            finally:
                writer.transport.abort()
            return Answer(int(found[":"].split()[1]), json.loads(text))

        self.calls.append(operation)
        number, fault, body = len(self.calls), self._fault, json.loads(content)
        if fault is None or not self._at <= number < self._until:
            return await send(body)
        self.met += 1
        return await fault.act(operation, body, send)


async def _message(reader: asyncio.StreamReader) -> tuple[dict[str, str], bytes]:
    """The headers of a message, its first line as ``:``, and its content."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    headers = {":": first, **{line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}}
    return headers, await reader.readexactly(int(headers.get("content-length", "0")))


def _reply(answer: Answer) -> bytes:
    raw = b"<html>" if answer.body is None else json.dumps(answer.body).encode()
    head = f"HTTP/1.1 {answer.status} x\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {len(raw)}"
    return f"{head}\r\n\r\n".encode() + raw
