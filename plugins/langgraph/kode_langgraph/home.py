"""The event loop in which a store lives, and the calls that other loops and threads make there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, TypeVar

from kode_core import ExtendedStore, KodeError, StoreClosedError, lazy_store
from kode_core.sync import SyncStore

__all__ = ["BorrowedHome", "Home", "OwnHome"]

T = TypeVar("T")
Work = Callable[[ExtendedStore], Coroutine[Any, Any, T]]

_END = object()


class Home:
    """Makes calls in the loop of a store, from any loop and any thread."""

    is_own = False

    def _place(self) -> tuple[ExtendedStore, asyncio.AbstractEventLoop]:
        raise NotImplementedError

    async def call(self, work: Work[T]) -> T:
        """Make a call from a coroutine; cancelling it cancels the call."""
        store, loop = self._place()
        if loop is asyncio.get_running_loop():
            return await work(store)
        called = asyncio.run_coroutine_threadsafe(work(store), loop)
        try:
            return await asyncio.wrap_future(called)
        except asyncio.CancelledError:
            if loop.is_running():
                raise
            raise StoreClosedError("the store was closed while the call was under way") from None

    def call_sync(self, work: Work[T]) -> T:
        """Make a call from synchronous code, and wait for its result.

        Raises:
            KodeError: this is the thread of the store's own loop, which cannot wait for itself.
        """
        store, loop = self._place()
        with suppress(RuntimeError):
            if asyncio.get_running_loop() is loop:
                raise _own_loop()
        called = asyncio.run_coroutine_threadsafe(work(store), loop)
        try:
            return called.result()
        except CancelledError:
            raise StoreClosedError("the store was closed while the call was under way") from None
        except BaseException:
            called.cancel()
            raise

    async def stream(self, begin: Callable[[ExtendedStore], AsyncIterator[T]]) -> AsyncIterator[T]:
        """The items of a stream that lives in the store's loop."""
        items = begin(self._place()[0])
        try:
            while True:
                found: Any = await self.call(lambda _: _next(items))
                if found is _END:
                    return
                yield found
        finally:
            await self.call(lambda _: _close(items))

    def stream_sync(self, begin: Callable[[ExtendedStore], AsyncIterator[T]]) -> Iterator[T]:
        """The same, for synchronous code."""
        items = begin(self._place()[0])
        try:
            while True:
                found: Any = self.call_sync(lambda _: _next(items))
                if found is _END:
                    return
                yield found
        finally:
            self.call_sync(lambda _: _close(items))

    def open(self) -> None:
        """Open the store now."""

    def close(self) -> None:
        """Close the store, if it is the home's own."""


class OwnHome(Home):
    """A store of its own, in a thread with a loop of its own, which the first call starts."""

    is_own = True

    def __init__(self, target: object, options: dict[str, Any]) -> None:
        self._target = target
        self._options = options
        lazy_store(target, **options)  # type: ignore[arg-type]  # a wrong configuration fails here
        self._store: ExtendedStore | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._sync = SyncStore(self._opened)

    async def _opened(self) -> ExtendedStore:
        self._store = lazy_store(self._target, **self._options)  # type: ignore[arg-type]
        self._loop = asyncio.get_running_loop()
        return self._store

    def _place(self) -> tuple[ExtendedStore, asyncio.AbstractEventLoop]:
        store, loop = self._store, self._loop
        if self._pid != os.getpid() or store is None or loop is None or not loop.is_running():
            self.open()
            store, loop = self._store, self._loop
        assert store is not None and loop is not None
        return store, loop

    def open(self) -> None:
        """Open the store now, also in a process that was forked since.

        Raises:
            StoreClosedError: it was closed.
        """
        self._sync.open()
        self._pid = os.getpid()

    def close(self) -> None:
        """Close the store, and end its thread."""
        self._sync.close()


class BorrowedHome(Home):
    """An open store of the caller's, which lives in the loop of its first call, or of the loop that made this."""

    def __init__(self, store: ExtendedStore) -> None:
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = None
        with suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()

    def _place(self) -> tuple[ExtendedStore, asyncio.AbstractEventLoop]:
        if self._loop is None:
            try:
                self._loop = asyncio.get_running_loop()
            except RuntimeError:
                raise KodeError(
                    "an async store needs the event loop that opened it: make the saver in a coroutine, or use from_url"
                ) from None
        if not self._loop.is_running():
            raise KodeError("the event loop of the store is not running; from_url has a loop of its own")
        return self._store, self._loop


def _own_loop() -> KodeError:
    return KodeError(
        "a synchronous call in the event loop of the store would wait for itself: use ainvoke and the other coroutines,"
        " or KodeSaver.from_url, whose store has a thread of its own"
    )


async def _next(items: AsyncIterator[T]) -> Any:
    try:
        return await anext(items)
    except StopAsyncIteration:
        return _END


async def _close(items: AsyncIterator[T]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()
