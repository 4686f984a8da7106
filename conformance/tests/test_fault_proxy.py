"""The proxy that fails on purpose: each fault happens, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from kode_conformance.servers.faults import FaultProxy, Faults, Mode


class Echo:
    """Answers each line with the line, and keeps them."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.heard.append(line)
                writer.write(line)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, int]]:
    served = Echo()
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    yield served, server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.sleep(0.01)


@pytest.fixture
def proxy(echo: tuple[Echo, int]) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", echo[1], seed=1) as running:
        yield running


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], line: bytes, seconds: float = 10) -> bytes:
    """The answer; b"" where the connection ended."""
    reader, writer = connection
    writer.write(line)
    try:
        return await asyncio.wait_for(reader.readline(), seconds)
    except ConnectionError:
        return b""


async def test_without_faults_all_gets_through(echo: tuple[Echo, int], proxy: FaultProxy) -> None:
    """Large pieces too, and in small parts, late."""
    large = b"x" * 50_000 + b"\n"
    async with connected(proxy) as connection:
        assert await ask(connection, b"one\n") == b"one\n"
        assert proxy.counts.cuts == 0
        proxy.faults = Faults(delay=1, trickle=1, delay_seconds=(0.001, 0.002))
        assert await ask(connection, large) == large
    assert proxy.counts.connections == 1
    assert proxy.counts.delay > 0
    assert proxy.counts.trickle > 0


async def test_a_cut_request_does_not_reach_the_server_and_a_cut_reply_did(
    echo: tuple[Echo, int], proxy: FaultProxy
) -> None:
    """The two look the same to the client."""
    proxy.faults = Faults(cut_request=1)
    async with connected(proxy) as connection:
        assert await ask(connection, b"one\n") == b""
    proxy.faults = Faults(cut_reply=1)
    async with connected(proxy) as connection:
        assert await ask(connection, b"two\n") == b""
    assert echo[0].heard == [b"two\n"]
    assert (proxy.counts.cut_request, proxy.counts.cut_reply) == (1, 1)


async def test_a_reply_breaks_off_in_the_middle(proxy: FaultProxy) -> None:
    """A part of it arrives, then the connection ends."""
    proxy.faults = Faults(cut_within_reply=1)
    async with connected(proxy) as connection:
        said = await ask(connection, b"123456789\n")
    assert b"123456789\n".startswith(said)
    assert said != b"123456789\n"


async def test_a_chosen_request_or_reply_is_cut_once(echo: tuple[Echo, int], proxy: FaultProxy) -> None:
    """What comes before it gets through, and the next connection does."""
    async with connected(proxy) as connection:
        proxy.cut_at(reply=b"commit")
        assert await ask(connection, b"begin\n") == b"begin\n"
        assert await ask(connection, b"commit\n") == b""
    async with connected(proxy) as connection:
        assert await ask(connection, b"commit\n") == b"commit\n"
        proxy.cut_at(request=b"insert")
        assert await ask(connection, b"insert\n") == b""
    async with connected(proxy) as connection:
        proxy.cut_at(request=b"", skip=1)
        assert await ask(connection, b"first\n") == b"first\n"
        assert await ask(connection, b"second\n") == b""
    assert echo[0].heard == [b"begin\n", b"commit\n", b"commit\n", b"first\n"]
    assert proxy.counts.cut_at == 3


async def test_a_server_that_is_down_as_soon_as_a_reply_is_lost(echo: tuple[Echo, int], proxy: FaultProxy) -> None:
    """It has the request, and nobody can ask what became of it; all connections are reset, and not ended in order."""
    async with connected(proxy) as another, connected(proxy) as connection:
        assert await ask(another, b"begin\n") == b"begin\n"
        proxy.cut_at(reply=b"commit", then=Mode.REFUSE)
        connection[1].write(b"commit\n")
        for reader, _ in (connection, another):
            with pytest.raises(ConnectionResetError):
                await reader.readline()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    assert echo[0].heard == [b"begin\n", b"commit\n"]


async def test_a_black_hole_swallows_and_resets_afterwards(echo: tuple[Echo, int], proxy: FaultProxy) -> None:
    """Connections are taken, nothing is answered, nothing arrives; one that was not used meanwhile is still good."""
    async with connected(proxy) as used, connected(proxy) as idle:
        assert await ask(used, b"one\n") == b"one\n"
        assert await ask(idle, b"two\n") == b"two\n"
        proxy.mode = Mode.BLACK_HOLE
        async with connected(proxy) as new:
            with pytest.raises(TimeoutError):
                await ask(new, b"three\n", 0.1)
            with pytest.raises(TimeoutError):
                await ask(used, b"four\n", 0.1)
            proxy.mode = Mode.FORWARD
            assert await ask(new, b"") == b""
            assert await ask(used, b"") == b""
        assert await ask(idle, b"five\n") == b"five\n"
    assert echo[0].heard == [b"one\n", b"two\n", b"five\n"]
    assert proxy.counts.swallowed == 11


async def test_a_stall_delivers_late(echo: tuple[Echo, int], proxy: FaultProxy) -> None:
    """A request that was given up reaches the server all the same."""
    async with connected(proxy) as connection:
        assert await ask(connection, b"one\n") == b"one\n"
        proxy.mode = Mode.STALL
        with pytest.raises(TimeoutError):
            await ask(connection, b"two\n", 0.1)
        assert echo[0].heard == [b"one\n"]
        proxy.mode = Mode.FORWARD
        assert await ask(connection, b"three\n") == b"two\n"


async def test_refusing_ends_connections_and_takes_none(proxy: FaultProxy) -> None:
    """Afterwards it listens at the same port."""
    async with connected(proxy) as connection:
        assert await ask(connection, b"one\n") == b"one\n"
        proxy.mode = Mode.REFUSE
        assert await ask(connection, b"two\n") == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    proxy.mode = Mode.FORWARD
    async with connected(proxy) as connection:
        assert await ask(connection, b"three\n") == b"three\n"
        proxy.cut_all()
        assert await ask(connection, b"four\n") == b""


async def test_the_same_seed_cuts_the_same_requests(echo: tuple[Echo, int]) -> None:
    """Of one client, as its requests come one at a time."""

    async def cuts(seed: int) -> list[int]:
        found = []
        with FaultProxy("127.0.0.1", echo[1], seed=seed) as proxy:
            proxy.faults = Faults(cut_request=0.2)
            for number in range(40):
                async with connected(proxy) as connection:
                    if await ask(connection, b"x\n") == b"":
                        found.append(number)
        return found

    first, again, other = await cuts(3), await cuts(3), await cuts(4)
    assert first == again
    assert 0 < len(first) < 20
    assert other != first
