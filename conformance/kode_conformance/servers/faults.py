"""A network that fails on purpose: a TCP proxy between a store and its server, for the tests of stores.

.. code-block:: python

    with FaultProxy("127.0.0.1", server.port, seed=7) as proxy:
        store = await open_store(port=proxy.port)
        proxy.faults = Faults(cut_request=0.05, cut_reply=0.05)   # at random, the same ones for a seed
        ...                                                       # nothing acknowledged may be lost or doubled
        proxy.faults = Faults()
        proxy.mode = Mode.BLACK_HOLE
        ...                                                       # every call must end by its deadline
        proxy.mode = Mode.FORWARD
        proxy.cut_at(reply=b"COMMIT")                             # this write is in doubt

A reply that is cut is the case that matters most: the server has done its work, and the store cannot know. The proxy
has a thread and an event loop of its own, so that it goes on when the loop under test stands still. It knows no
protocol: a request or reply is what arrives in one piece, and TLS passes through.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Self, TypeVar

from kode_conformance.servers import Startable, free_port

__all__ = ["Counts", "FaultProxy", "Faults", "Mode"]

_PIECE: Final = 65536
_T = TypeVar("_T")


class Mode(Enum):
    """How the proxy treats connections."""

    FORWARD = "forward"
    """Passes everything on, but for ``faults``."""
    REFUSE = "refuse"
    """No one listens, and open connections are reset: the server is down."""
    BLACK_HOLE = "black hole"
    """Accepts connections and data, and answers nothing. Connections opened meanwhile are reset when the mode ends."""
    STALL = "stall"
    """Holds all data back, and delivers it when the stall ends: requests may arrive long after they were given up."""


@dataclass(frozen=True)
class Faults:
    """The probability of each fault for a piece of data; all zero at first.

    Attributes:
        cut_request: the connection is reset before the request reaches the server.
        cut_reply: the request reaches the server, and the connection is reset in place of the reply.
        cut_within_reply: the reply breaks off in the middle.
        delay: the piece comes late, by a time within ``delay_seconds``.
        trickle: the piece arrives in small parts.
    """

    cut_request: float = 0.0
    cut_reply: float = 0.0
    cut_within_reply: float = 0.0
    delay: float = 0.0
    trickle: float = 0.0
    delay_seconds: tuple[float, float] = (0.0, 0.05)


@dataclass
class Counts:
    """The faults so far. A test that counts no faults has tested nothing."""

    connections: int = 0
    cut_request: int = 0
    cut_reply: int = 0
    cut_within_reply: int = 0
    cut_at: int = 0
    delay: int = 0
    trickle: int = 0
    swallowed: int = 0

    @property
    def cuts(self) -> int:
        """How many connections were cut, of whatever kind."""
        return self.cut_request + self.cut_reply + self.cut_within_reply + self.cut_at


@dataclass(eq=False)
class _Link:
    """A connection to the proxy, and the one to the server that belongs to it."""

    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    is_torn: bool = False

    def reset(self) -> None:
        for writer in self.writers:
            connection = writer.get_extra_info("socket")
            if connection is not None:  # one under TLS that was closed already has none
                _have_reset(connection)
            writer.transport.abort()


@dataclass
class _Wanted:
    """The piece that is to be cut."""

    part: bytes
    is_request: bool
    skip: int
    then: Mode | None


def _have_reset(connection: socket.socket) -> None:
    """Have a connection be reset when it is closed. Otherwise it would end in order, which drivers take for another
    error than the reset of a server that died.
    """
    with suppress(OSError):  # it is closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class FaultProxy(Startable):
    """Listens on 127.0.0.1 and passes on to a server; used with ``with``, or with ``start`` and ``close``.

    Attributes:
        port: where it listens.
        faults: what happens at random from now on.
        counts: what happened.
    """

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self.port = free_port()
        self.faults = Faults()
        self.counts = Counts()
        self._server_address = (host, port)
        self._rng = random.Random(seed)  # noqa: S311
        self._mode = Mode.FORWARD
        self._wanted: _Wanted | None = None
        self._links: set[_Link] = set()
        self._listener: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)

    # --- what a test says

    def start(self) -> Self:
        """Begin to listen."""
        self._thread.start()
        self._run(self._turn(Mode.FORWARD))
        return self

    @property
    def mode(self) -> Mode:
        """The current mode; a change has taken effect when the assignment returns."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._run(self._turn(mode))

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._links)

    def cut_all(self) -> None:
        """Reset every connection that is open; new ones are taken."""
        self._run(self._reset(torn_only=False))

    def cut_at(
        self, *, request: bytes | None = None, reply: bytes | None = None, skip: int = 0, then: Mode | None = None
    ) -> None:
        """Once: reset the connection whose next *request* or *reply* holds these bytes, which are not passed on.

        Every piece holds ``b""``; the first *skip* ones that are wanted are let through. *then* is the mode from that
        moment on: with ``REFUSE`` the server is down before a client can ask it for the outcome of the request. A call
        without bytes cancels an earlier request.
        """
        wanted = request if request is not None else reply
        self._wanted = None if wanted is None else _Wanted(wanted, request is not None, skip, then)

    def close(self) -> None:
        """End it with all its connections; it does not start again."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- in the thread

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _turn(self, mode: Mode) -> None:
        self._mode = mode
        if mode is Mode.STALL:
            self._flows.clear()
        else:
            self._flows.set()
        if mode is Mode.REFUSE:
            await self._stop_listening()
            await self._reset(torn_only=False)
        elif self._listener is None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        if mode is Mode.FORWARD:
            await self._reset(torn_only=True)

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _reset(self, *, torn_only: bool) -> None:
        for link in [link for link in self._links if link.is_torn or not torn_only]:
            link.reset()
        await asyncio.sleep(0)

    async def _end(self) -> None:
        await self._stop_listening()
        self._flows.set()
        await self._reset(torn_only=False)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        left: Any = getattr(self._loop, "_transports", {})  # transports below a failed handshake have no owner
        for transport in list(left.values()):
            transport.abort()
        for _ in range(5):  # transports that were aborted end in some turns of the loop, one below the other
            await asyncio.sleep(0)
        await self._loop.shutdown_asyncgens()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts.connections += 1
        link = _Link([writer], is_torn=self._mode is Mode.BLACK_HOLE)
        self._links.add(link)
        try:
            if link.is_torn:
                await self._swallow(reader)
                return
            await self._flows.wait()
            from_server, to_server = await asyncio.open_connection(*self._server_address)
            link.writers.append(to_server)
            await asyncio.gather(
                self._pump(link, reader, to_server, is_request=True),
                self._pump(link, from_server, writer, is_request=False),
            )
        except (OSError, asyncio.CancelledError):
            return  # the client sees its connection end
        finally:
            self._links.discard(link)
            link.reset()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        while piece := await reader.read(_PIECE):
            self.counts.swallowed += len(piece)

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_request: bool
    ) -> None:
        while piece := await reader.read(_PIECE):
            await self._flows.wait()
            if link.is_torn or self._mode is Mode.BLACK_HOLE:
                link.is_torn = True
                self.counts.swallowed += len(piece)
            elif self._is_wanted(piece, is_request):
                await self._cut_as_wanted(link)
                return
            elif self._hits("cut_request" if is_request else "cut_reply"):
                link.reset()
                return
            elif not is_request and self._hits("cut_within_reply"):
                writer.write(piece[: self._rng.randrange(len(piece))])
                await writer.drain()
                break
            else:
                await self._deliver(piece, writer)
        writer.close()

    def _is_wanted(self, piece: bytes, is_request: bool) -> bool:
        wanted = self._wanted
        if wanted is None or wanted.is_request is not is_request or wanted.part not in piece:
            return False
        wanted.skip -= 1
        return wanted.skip < 0

    async def _cut_as_wanted(self, link: _Link) -> None:
        wanted, self._wanted = self._wanted, None
        self.counts.cut_at += 1
        link.reset()
        if wanted is not None and wanted.then is not None:
            await self._turn(wanted.then)

    async def _deliver(self, piece: bytes, writer: asyncio.StreamWriter) -> None:
        if self._hits("delay"):
            await asyncio.sleep(self._rng.uniform(*self.faults.delay_seconds))
        step = 7 if self._hits("trickle") else len(piece)
        for start in range(0, len(piece), step):
            writer.write(piece[start : start + step])
            await writer.drain()
            if step < len(piece):
                await asyncio.sleep(0)

    def _hits(self, fault: str) -> bool:
        likely: float = getattr(self.faults, fault)
        if not likely or self._rng.random() >= likely:
            return False
        setattr(self.counts, fault, getattr(self.counts, fault) + 1)
        return True
