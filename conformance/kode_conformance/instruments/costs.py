"""The costs of a store, counted and not timed: bytes, commits, descriptors, connections, threads, tasks.

Four counters look at a store from outside, and each is used where it tells something: the hook ``costs`` of the
harness, which knows the backend's own numbers; what this process writes to files and connections; what goes to the
engine of a store that takes layers; and the memory that a call takes, where a store lives in memory alone.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import threading
import time
import tracemalloc
from asyncio.selector_events import _SelectorSocketTransport  # type: ignore[attr-defined]
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

from kode_conformance.context import Context, Unverified
from kode_core.batch import Applied, Batch, Outcome
from kode_core.layers import Layer
from kode_core.protocols import ExtendedStore

__all__ = [
    "ENGINE",
    "HOOK",
    "MEMORY",
    "PROCESS",
    "Counting",
    "Meter",
    "collected",
    "connections",
    "counted",
    "held",
    "memory_of",
    "meter",
    "sending",
]

HOOK: Final = "bytes that the backend wrote"
PROCESS: Final = "bytes (all that the process wrote to files and sent)"
ENGINE: Final = "bytes that the engine was given"
MEMORY: Final = "bytes of memory that it took"

_IO: Final = Path("/proc/self/io")
_FDS: Final = Path("/proc/self/fd")
_LISTENING: Final = "0A"
_STILL_S: Final = 0.5
_LOOKS: Final = 10
_SENT_AT: Final = 200
"""Where ``tcpi_bytes_sent`` is in the system's ``tcp_info``."""


# --- the engine -------------------------------------------------------------------------------------------------------


class Counting(Layer):
    """Counts the arguments and results of an engine.

    Attributes:
        commits: by agent, how many batches were applied.
        records: how many were written.
        written: bytes of their bodies.
        calls: by verb, how many.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.commits: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.records = 0
        self.written = 0

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self.calls[verb] += 1
        return await call(*args, **kwargs)

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, Applied):
                self.commits[batch.agent_id] += 1
                sizes = list(_sizes(batch))
                self.records += len(sizes)
                self.written += sum(sizes)
        return outcomes


def _sizes(batch: Batch) -> Iterator[int]:
    """The size of each body in a batch."""
    for write in batch.lists.values():
        yield from (len(row.body.text) for _, row in write.put)
        yield from (len(row.body.text) for row in write.append)
    yield from (0 if write.doc is None else len(write.doc.body.text) for write in batch.docs)
    yield from (len(event.body.text) for event in batch.events)
    if batch.info is not None:
        yield len(batch.info.body.text)


async def counted(ctx: Context) -> tuple[ExtendedStore, Counting | None]:
    """One more instance, and the counter of its engine's calls, if its engine takes layers."""
    layers: list[Counting] = []

    def put(engine: Any) -> Counting:
        layers.append(Counting(engine))
        return layers[-1]

    try:
        return await ctx.another(put), layers[-1]
    except Unverified:
        return await ctx.another(), None


# --- the process ------------------------------------------------------------------------------------------------------


def _bytes_written() -> int:
    """The number of bytes that this process has written to files of any kind; data that it sends is not included."""
    with suppress(OSError):
        lines = _IO.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))
    return 0


def _listening() -> frozenset[int]:
    """The local ports with a listener: an emulator in this process is no part of the store."""
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING:
                    ports.add(int(fields[1].rpartition(":")[2], 16))
    return frozenset(ports)


def _port_of(sock: Any) -> int | None:
    """The port of this end; None for what has no port."""
    with suppress(OSError, AttributeError, IndexError, TypeError):
        name = sock.getsockname()
        return int(name[1]) if isinstance(name, tuple) else None
    return None


def _sockets() -> Iterator[tuple[str, socket.socket]]:
    """The open sockets of this process, each by a descriptor of its own for the moment."""
    with suppress(OSError):
        for link in list(_FDS.iterdir()):
            with suppress(OSError):
                name = str(link.readlink())
                if name.startswith("socket:"):
                    with socket.socket(fileno=os.dup(int(link.name))) as sock:
                        yield name, sock


def connections() -> set[str]:
    """The connections to others that this process holds, by the system's name for each."""
    found: dict[str, int | None] = {}
    for name, sock in _sockets():
        with suppress(OSError):
            sock.getpeername()
            if not _is_pair(sock):
                found[name] = _port_of(sock)
    listening = _listening() if found else frozenset()
    return {name for name, port in found.items() if port not in listening}


def _is_pair(sock: socket.socket) -> bool:
    """True if the socket is one end of a pair inside the process, as each event loop has one."""
    return sock.family == socket.AF_UNIX and not sock.getsockname() and not sock.getpeername()


def _sent_by_sockets(listening: frozenset[int]) -> dict[str, int]:
    """The bytes that each open TCP connection has sent, as the system counts them, whatever library sent them."""
    found = {}
    for name, sock in _sockets():
        with suppress(OSError, struct.error, AttributeError):
            if sock.type == socket.SOCK_STREAM and sock.family != socket.AF_UNIX and _port_of(sock) not in listening:
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                found[name] = struct.unpack_from("<Q", info, _SENT_AT)[0]
    return found


@contextmanager
def sending() -> Iterator[list[int]]:
    """The sizes of data sent over connections by asyncio or by threads, also over connections closed at once."""
    sizes: list[int] = []
    listening = _listening()
    write, sendall = _SelectorSocketTransport.write, socket.socket.sendall

    def note(sock: Any, data: Any) -> None:
        if _port_of(sock) not in listening:
            sizes.append(memoryview(data).nbytes)

    def counted_write(transport: Any, data: Any) -> None:
        note(transport.get_extra_info("socket"), data)
        write(transport, data)

    def counted_sendall(sock: socket.socket, data: Any, *flags: int) -> None:
        note(sock, data)
        sendall(sock, data, *flags)

    with (
        mock.patch.object(_SelectorSocketTransport, "write", counted_write),
        mock.patch.object(socket.socket, "sendall", counted_sendall),
    ):
        yield sizes


@contextmanager
def collected() -> Iterator[None]:
    """Keep earlier objects out of the garbage collections that counting needs."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def held() -> dict[str, int]:
    """The resources of this process that a store could leave behind, by kind, without kinds that cannot be counted."""
    gc.collect()
    found = {"threads": threading.active_count(), "tasks": len(asyncio.all_tasks())}
    with suppress(OSError):
        found["descriptors"] = len(list(_FDS.iterdir()))
        found["connections"] = len(connections())
    return found


# --- what a call writes -----------------------------------------------------------------------------------------------


class _Look(NamedTuple):
    """All counters at one moment."""

    hook: int | None
    files: int
    sent: int
    sockets: dict[str, int]
    engine: int


class Meter:
    """Counts what single calls write.

    Attributes:
        stores: instances of the store to make the calls with.
        layers: around their engines, if they take layers.
    """

    def __init__(self, ctx: Context, stores: Sequence[ExtendedStore], layers: Sequence[Counting], sent: list[int]):
        self.stores, self.layers = stores, layers
        self._ctx = ctx
        self._sent = sent
        self._begun = time.monotonic()
        self._has_hook: bool | None = None
        self._listening = _listening()
        self._connected = bool(connections())

    @property
    def seconds(self) -> float:
        """How long it has been there."""
        return time.monotonic() - self._begun

    @property
    def is_in_memory(self) -> bool:
        """True if the store keeps its data only in this process."""
        return "PERSISTENT" in self._ctx.harness.lacks and not self._connected

    async def _look(self) -> _Look:
        harness = self._ctx.harness
        if self._has_hook is None:
            self._has_hook = harness.has("costs") and (await self._ctx.costs()).bytes_written is not None
        hook = (await self._ctx.costs()).bytes_written if self._has_hook else None
        engine = sum(layer.written for layer in self.layers)
        sockets = _sent_by_sockets(self._listening) if self._connected else {}
        return _Look(hook, _bytes_written(), sum(self._sent), sockets, engine)

    async def wait_until_quiet(self) -> None:
        """Wait until the backend's own counter stands still, for a limited time."""
        for _ in range(_LOOKS):
            before = (await self._look()).hook
            await asyncio.sleep(_STILL_S)
            if (await self._look()).hook == before:
                break

    async def cost(self, call: Callable[[], Awaitable[object]], *, memory: bool = False) -> dict[str, int]:
        """The bytes that the call writes, by counter; with *memory*, also the memory that it takes while it runs."""
        before = await self._look()
        found: dict[str, int] = {}
        if memory:
            found[MEMORY] = await memory_of(call)
        else:
            await call()
        after = await self._look()
        sockets = sum(max(0, count - before.sockets.get(name, 0)) for name, count in after.sockets.items())
        found[PROCESS] = after.files - before.files + max(after.sent - before.sent, sockets)
        if self.layers:
            found[ENGINE] = after.engine - before.engine
        if before.hook is not None and after.hook is not None:
            found[HOOK] = after.hook - before.hook
        return found


async def memory_of(call: Callable[[], Awaitable[object]]) -> int:
    """The most bytes that the call's Python objects took at once."""
    tracemalloc.start()
    try:
        first = tracemalloc.get_traced_memory()[0]
        await call()
        return tracemalloc.get_traced_memory()[1] - first
    finally:
        tracemalloc.stop()


async def meter(ctx: Context, sent: list[int], instances: int = 1) -> Meter:
    """A meter over new instances of the store."""
    opened = [await counted(ctx) for _ in range(instances)]
    return Meter(ctx, [store for store, _ in opened], [layer for _, layer in opened if layer is not None], sent)
