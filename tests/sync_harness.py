"""Synchronous stores behind the async interface again, so that the suite can judge them.

Each call is made in a thread of its own. A cancelled caller interrupts it as Ctrl-C does.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from kode_conformance.builtin import MemoryHarness
from kode_conformance.harness import Deviation, Handle
from kode_sqlite.testing.harness import SqliteHarness

from kode_core import ExtendedStore, InvalidArgumentError, Store
from kode_core.protocols import Lease
from kode_core.store.locks import ENTERED
from kode_core.sync import SyncAgentLock, SyncIterator, SyncLease, SyncStore, open_store
from kode_core.sync.locks import BLOCKS
from kode_core.sync.thread import Call

T = TypeVar("T")

_here = threading.local()
_wait = Call.wait


class _Interruption:
    """Interrupts what a thread waits for, as Ctrl-C does."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self._is_wanted = False
        self._call: Call[Any] | None = None

    def set(self) -> None:
        self._is_wanted = True
        if self._call is not None:
            self._call.cancel()

    def wait(self, call: Call[Any], to_the_end: bool) -> Any:
        self._call = None if to_the_end else call
        self.has_begun.set()
        if self._is_wanted:
            self.set()
        try:
            return _wait(call, to_the_end=to_the_end)
        finally:
            if self._is_wanted and not to_the_end:
                self._is_wanted = False
                raise KeyboardInterrupt


def _waited(call: Call[Any], *, to_the_end: bool = False) -> Any:
    interruption: _Interruption | None = getattr(_here, "interruption", None)
    return _wait(call, to_the_end=to_the_end) if interruption is None else interruption.wait(call, to_the_end)


Call.wait = _waited  # type: ignore[method-assign]


async def in_thread(
    work: Callable[[], T], context: Context | None = None, undo: Callable[[T], object] | None = None
) -> T:
    """Call *work* in a thread. Cancelling this interrupts the call that the thread waits for.

    Threads begin their calls in the order in which they are started. *undo* gets a result that came too late.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    interruption = _Interruption()

    def end(result: Any, error: BaseException | None) -> None:
        if not done.done():
            done.set_result(result) if error is None else done.set_exception(error)

    def target() -> None:
        _here.interruption = interruption
        result, error = None, None
        try:
            result = work()
        except StopIteration:
            error = StopAsyncIteration()
        except BaseException as exc:
            error = RuntimeError("interrupted") if isinstance(exc, KeyboardInterrupt) else exc
        interruption.has_begun.set()
        with suppress(RuntimeError):  # the test is over
            loop.call_soon_threadsafe(end, result, error)

    threading.Thread(target=(copy_context() if context is None else context).run, args=(target,), daemon=True).start()
    interruption.has_begun.wait()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        interruption.set()
        await asyncio.wait([done])
        if done.exception() is None and undo is not None:
            undo(done.result())
        raise


class AsyncLease(Lease):
    def __init__(self, lease: SyncLease) -> None:
        self.sync = lease

    @property
    def agent_id(self) -> str:
        return self.sync.agent_id

    @property
    def token(self) -> int:
        return self.sync.token

    @property
    def is_lost(self) -> bool:
        return self.sync.is_lost

    async def renew(self) -> None:
        await in_thread(self.sync.renew)

    async def release(self) -> None:
        await in_thread(self.sync.release)


class AsyncLock:
    """Enters and leaves in a thread, and gives the task what the thread then has in its context."""

    def __init__(self, take: Callable[[], SyncAgentLock]) -> None:
        self._take = take
        self._lock: SyncAgentLock | None = None

    def __await__(self) -> Generator[Any, None, AsyncLease]:
        async def acquire() -> AsyncLease:
            return AsyncLease(await in_thread(lambda: self._take().acquire(), undo=lambda lease: lease.release()))

        return acquire().__await__()

    async def __aenter__(self) -> AsyncLease:
        context = copy_context()
        if self._lock is None:
            self._lock = await in_thread(self._take)
        try:
            return AsyncLease(await in_thread(self._lock.__enter__, context, self._give_back))
        finally:
            self._adopt(context)

    def _give_back(self, _: SyncLease) -> None:
        assert self._lock is not None
        self._lock.__exit__(None, None, None)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lock is not None
        lock, context = self._lock, copy_context()
        try:
            await in_thread(lambda: lock.__exit__(kind, exc, trace), context)
        finally:
            self._adopt(context)

    def _adopt(self, context: Context) -> None:
        for variable in (BLOCKS, ENTERED):
            variable.set(context.get(variable, ()))  # type: ignore[attr-defined]


def _unwrapped(value: Any) -> Any:
    return value.sync if isinstance(value, AsyncLease) else value


def _method(name: str, promised: Any) -> Any:
    if inspect.iscoroutinefunction(promised):

        async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            given = {name: _unwrapped(value) for name, value in kwargs.items()}
            return await in_thread(lambda: getattr(self.sync, name)(*args, **given))

        return call

    def stream(self: Any, *args: Any, **kwargs: Any) -> Any:
        return AsyncStream(getattr(self.sync, name)(*args, **kwargs))

    return stream


class AsyncStream:
    """A stream of a synchronous store. A step that is cancelled loses no item, and the next step goes on."""

    def __init__(self, sync: SyncIterator[Any]) -> None:
        self._sync = sync
        self._left: list[Any] = []
        self._is_busy = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._is_busy:  # threads may share a synchronous stream, tasks an asynchronous one may not
            raise InvalidArgumentError("another anext is waiting on this stream")
        if self._left:
            return self._left.pop()
        self._is_busy = True
        try:
            return await in_thread(lambda: next(self._sync), undo=self._left.append)
        finally:
            self._is_busy = False

    async def aclose(self) -> None:
        self._left.clear()
        await in_thread(self._sync.close)


class AsyncAgain:
    """An ``ExtendedStore`` by its methods, over a ``SyncStore``."""

    def __init__(self, sync: SyncStore) -> None:
        self.sync = sync

    def __repr__(self) -> str:
        return repr(self.sync)

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> AsyncLock:
        lock = self.sync.acquire_agent_lock(agent_id, ttl_ms, wait_ms)
        return AsyncLock(lambda: lock)

    def scoped(self, tenant: str) -> AsyncAgain:
        return AsyncAgain(self.sync.scoped(tenant))

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        await in_thread(self.sync.close)


for _name, _promised in inspect.getmembers(ExtendedStore, inspect.isfunction):
    if not _name.startswith("_") and _name not in vars(AsyncAgain):
        setattr(AsyncAgain, _name, _method(_name, _promised))


async def opened(target: Any, **options: Any) -> Any:
    sync = open_store(target, **options)
    try:
        await in_thread(sync.open)
    except BaseException:
        await in_thread(sync.close)
        raise
    sync._running().soon(_tick)
    return AsyncAgain(sync)


async def _tick() -> None:
    """Let the store's loop see an event that a check sets in its own loop, to let a call go on that it holds up."""
    while True:
        await asyncio.sleep(0.002)


DEVIATIONS: Final = {
    "LOCK-7.a_block_that_ends_elsewhere_fences_no_more": Deviation(
        "the context of a thread cannot be changed from another: a block that is left in another thread fences the "
        "first one, whose writes are refused until it takes the lock itself"
    )
}


class SyncMemoryHarness(MemoryHarness):
    """The memory store through ``kode_core.sync``."""

    name = "sync-memory"
    deviations = DEVIATIONS

    async def open_with(self, handle: Handle, **options: Any) -> Store:
        return await opened(None, type="memory", **handle, **options)


class SyncSqliteHarness(SqliteHarness):
    """SQLite through ``kode_core.sync``."""

    name = "sync-sqlite"
    deviations = DEVIATIONS

    async def open_with(self, handle: Handle, **options: Any) -> Store:
        return await opened(None, type="sqlite", **handle, **options)
