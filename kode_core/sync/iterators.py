"""Streams of a store as plain iterators."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from kode_core.errors import InvalidArgumentError, StoreClosedError
from kode_core.sync.thread import LoopThread

__all__ = ["SyncIterator"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_GATHER_S: Final = 0.005
_GATHER_MOST: Final = 256
"""The limits of a look ahead, which lets one change of threads serve many items."""
_TURNS: Final = 3
"""The turns of the loop after which an item that did not arrive is not at hand."""


class _Steps(Generic[T]):
    """The async iterator, in its loop. Its step goes on when a caller gives up waiting for it."""

    def __init__(self, source: AsyncIterator[T], ready: deque[T]) -> None:
        self._source = source
        self._ready = ready
        self._step: asyncio.Task[bool] | None = None
        self._has_ended = False

    async def some(self, timeout: float | None) -> bool:
        """Wait until an item is ready, and gather those at hand; False at the end."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _GATHER_S
        while not self._has_ended and len(self._ready) < _GATHER_MOST:
            step = self._step = self._step or self._begin(loop)
            if self._ready:
                for _ in range(_TURNS):
                    if not step.done():
                        await asyncio.sleep(0)
            else:
                await asyncio.wait([step], timeout=timeout)
                if not step.done():
                    raise TimeoutError(f"no item came within {timeout:g} s")
            if not step.done() or self._is_failed(step):
                break
            if step is self._step:  # no other thread's look has taken it
                self._step = None
                self._has_ended = not self._result(step)
            if loop.time() > until:
                break
        return bool(self._ready)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[bool]:
        step = loop.create_task(self._take())
        step.add_done_callback(lambda step: step.cancelled() or step.exception())  # it may be that no look meets it
        return step

    def _is_failed(self, step: asyncio.Task[bool]) -> bool:
        """True if the step failed and items before it were not given yet: the next look meets its error."""
        return bool(self._ready) and (step.cancelled() or step.exception() is not None)

    def _result(self, step: asyncio.Task[bool]) -> bool:
        try:
            return step.result()
        except BaseException:
            self._has_ended = True
            raise

    async def _take(self) -> bool:
        try:
            item = await anext(self._source)
        except StopAsyncIteration:
            return False
        self._ready.append(item)
        return True

    async def close(self) -> None:
        """End the step that goes on, and release what the iterator holds."""
        self._has_ended = True
        step, self._step = self._step, None
        if step is not None:
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
        close: Any = getattr(self._source, "aclose", None)
        if close is not None:
            await close()


class SyncIterator(Iterator[T_co]):
    """The items of a stream, for ``for`` and ``next``.

    It reads ahead the items that arrive within 5 ms, 256 at most. A loop that ends early releases what the stream
    holds as soon as the iterator is dropped; :meth:`close` or ``with`` do so at a known time. Several threads may share
    one; each item goes to one of them.
    """

    def __init__(self, store: object, thread: LoopThread, source: AsyncIterator[T_co]) -> None:
        self._store = store  # which is not finalized before this is
        self._thread = thread
        self._ready: deque[T_co] = deque()
        self._steps = _Steps(source, self._ready)
        self._is_closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T_co:
        return self.next()

    def next(self, timeout: float | None = None) -> T_co:
        """The next item; waits for it, at most *timeout* seconds. The stream can be read on after a timeout.

        Raises:
            TimeoutError: no item came in time.
            StopIteration: the stream has ended, or was closed, in another thread for example.
            InvalidArgumentError: *timeout* is no number of seconds.
        """
        if timeout is not None and not (type(timeout) in (int, float) and 0 <= timeout < float("inf")):
            raise InvalidArgumentError(f"timeout must be a number of seconds, 0 or more, or None, got {timeout!r:.80}")
        while not self._is_closed:
            try:
                return self._ready.popleft()
            except IndexError:
                if not self._thread.run(lambda: self._steps.some(timeout)):
                    break
        raise StopIteration

    def close(self) -> None:
        """End the stream, and the wait of other threads for its next item; a second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._ready.clear()
            with suppress(StoreClosedError):
                self._thread.run(self._steps.close, to_the_end=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            self._thread.soon(self._steps.close)
