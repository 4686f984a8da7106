"""The thread in which a store and its event loop live, and the calls that other threads make in it."""

from __future__ import annotations

import asyncio
import atexit
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, Final, Generic, TypeVar
from weakref import WeakSet

from kode_core.errors import KodeError, StoreClosedError
from kode_core.protocols import ExtendedStore

__all__ = ["Call", "LoopThread", "StoreOpener"]

T = TypeVar("T")

StoreOpener = Callable[[], Awaitable[ExtendedStore]]

_AT_EXIT_S: Final = 2.0
"""How long the end of the interpreter waits for a store that was not closed."""


class Call(Generic[T]):
    """A call that is made in the loop's thread; another thread waits for its end."""

    def __init__(self, thread: LoopThread, work: Callable[[], Coroutine[Any, Any, T]], context: Context) -> None:
        self._thread = thread
        self._work = work
        self._context = context
        self._task: asyncio.Task[T] | None = None
        self._ended = threading.Event()

    def begin(self) -> None:
        """Start the call; the loop does this."""
        self._task = self._thread.loop.create_task(self._work(), context=self._context)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # an interrupted caller does not look at it
        self.end()

    def end(self) -> None:
        """Let the caller go on."""
        self._thread.calls.discard(self)
        self._ended.set()

    def cancel(self) -> None:
        """Cancel the call, from whatever thread."""
        with suppress(RuntimeError):  # the loop has ended, and the call with it
            self._thread.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def wait(self, *, to_the_end: bool = False) -> T:
        """The result. An exception that interrupts the wait, as Ctrl-C does, cancels the call and waits for its end.

        *to_the_end* waits without cancelling it. A second interruption ends the wait at once.
        """
        try:
            self._ended.wait()
        except BaseException:
            if not to_the_end:
                self.cancel()
            self._ended.wait()
            raise
        return self.result()

    @property
    def has_result(self) -> bool:
        """True if the call has ended without an exception."""
        task = self._task
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    def result(self) -> T:
        """The result of the call that has ended."""
        task = self._task
        try:
            if task is not None and task.done():  # otherwise the loop ended before the call did
                return task.result()
        except asyncio.CancelledError:
            pass
        finally:
            del task, self  # no cycle of a traceback and its frames
        raise StoreClosedError("this store was closed while the call was under way")


class LoopThread:
    """An event loop in a thread of its own, with one store in it.

    Attributes:
        loop: the event loop.
        calls: the calls whose threads are waiting.
        is_over: True once the loop has ended.
    """

    def __init__(self, opener: StoreOpener) -> None:
        self._opener = opener
        self._store: ExtendedStore | None = None
        self.loop = asyncio.new_event_loop()
        self._opening = asyncio.Lock()
        self._stopping = threading.Lock()
        self._beginning = threading.Lock()
        self.calls: set[Call[Any]] = set()
        self.is_over = False
        self._why_over = "this store is closed; open a new one"
        self._thread = threading.Thread(target=self._work, name="kode-store", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self.loop.close()
            raise
        _running.add(self)

    def __repr__(self) -> str:
        return "not open yet" if self._store is None else repr(self._store)

    def _work(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            with self._beginning:
                self.is_over = True  # no call begins any more
            self.loop.run_until_complete(self._end_tasks())
            for call in list(self.calls):
                call.end()
            asyncio.set_event_loop(None)
            self.loop.close()

    async def store(self) -> ExtendedStore:
        """The store, made by the first call."""
        if self._store is None:
            async with self._opening:
                if self._store is None:
                    self._store = await self._opener()
        return self._store

    def begin(self, work: Callable[[], Coroutine[Any, Any, T]], context: Context | None = None) -> Call[T]:
        """Begin a call in *context*, a copy of the caller's unless it is given.

        Raises:
            KodeError: this is the loop's own thread.
            StoreClosedError: the loop has ended.
        """
        self.refuse_own()
        call = Call(self, work, copy_context() if context is None else context)
        with self._beginning:
            if self.is_over:
                raise StoreClosedError(self._why_over)
            self.calls.add(call)
            self.loop.call_soon_threadsafe(call.begin)
        return call

    def refuse_own(self) -> None:
        """Raise KodeError in the loop's own thread, which cannot wait for itself."""
        if threading.current_thread() is self._thread:
            raise KodeError(
                "a progress function or an observer runs in the thread of the store, and cannot call this store: let "
                "it hand the work to another thread"
            )

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], *, to_the_end: bool = False) -> T:
        """Make a call and wait for its result."""
        return self.begin(work).wait(to_the_end=to_the_end)

    def soon(self, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Begin a call whose result no one waits for; also from a finalizer, in whatever thread it runs."""

        async def quietly() -> None:
            with suppress(Exception):
                await work()

        if not self.is_over:
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(Call(self, quietly, Context()).begin)

    # --- the end

    async def _close(self) -> None:
        async with self._opening:
            if self._store is not None:
                await self._store.close()

    async def _end_tasks(self) -> None:
        """Cancel the remaining tasks, as ``asyncio.run`` does."""
        while left := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in left:
                task.cancel()
            _, late = await asyncio.wait(left, timeout=_AT_EXIT_S)
            if late:
                break
        await self.loop.shutdown_asyncgens()

    def close(self) -> None:
        """Close the store and end the thread; a second call waits for the first."""
        self.refuse_own()
        with self._stopping:
            if not self.is_over:
                try:
                    self.run(self._close, to_the_end=True)
                finally:
                    self.loop.call_soon_threadsafe(self.loop.stop)
                    self._thread.join()
                    _running.discard(self)

    def close_soon(self) -> None:
        """Close the store and end the thread without waiting: for finalizers."""

        async def close() -> None:
            try:
                await self._close()
            finally:
                self.loop.stop()

        _running.discard(self)
        self.soon(close)

    def abandon(self) -> None:
        """End in a process that was just forked, where the thread does not run, and its locks may be held for ever."""
        self._beginning = self._stopping = threading.Lock()
        self.is_over = True
        self._why_over = "this was begun in another process, from which this one was forked; begin it anew"

    def close_at_exit(self) -> None:
        """Close a store that the program left open, if that takes only a moment: every returned write is durable."""
        warnings.warn(f"a store of kode_core.sync was not closed: {self!r}", ResourceWarning, stacklevel=2)
        self.close_soon()
        self._thread.join(_AT_EXIT_S)


_running: Final[WeakSet[LoopThread]] = WeakSet()
"""The threads of this process that were not ended."""


def forget() -> list[LoopThread]:
    """The threads of the process from which this one was forked; they do not run here, and take no more calls."""
    left = list(_running)
    _running.clear()
    for thread in left:
        thread.abandon()
    return left


@atexit.register
def _close_all() -> None:
    for thread in list(_running):
        thread.close_at_exit()
