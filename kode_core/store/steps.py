"""Long calls in steps: the deadline holds for each step, and the store can be closed between two (OPS-16)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from kode_core.engine import Progress
from kode_core.store.book import Op
from kode_core.store.context import Context

__all__ = ["Steps"]

P = ParamSpec("P")
T = TypeVar("T")


class Steps:
    """The steps of one long call.

    Attributes:
        seconds: how long the steps took so far.
    """

    def __init__(self, context: Context, op: Op) -> None:
        self.seconds = 0.0
        self._context = context
        self._op = op

    async def __call__(self, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a step.

        Raises:
            StoreTimeoutError: it was not done within the deadline.
            StoreClosedError: the store was closed since the last step.
        """
        start = time.perf_counter()
        try:
            return await self._context.step(self._op, call, *args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start

    async def watched(
        self,
        call: Callable[[Progress], Coroutine[Any, Any, T]],
        progress: Progress,
        undo: Callable[[T], object] | None = None,
    ) -> T:
        """Do a call of the engine that tells its progress; each time that it does, the next step begins.

        A call that is cancelled, or late, is waited for, so that it has removed what it made. *undo* removes it where
        the call was done all the same.
        """
        moved = asyncio.Event()

        def tell(done: int, total: int | None) -> None:
            moved.set()
            progress(done, total)

        task = self._context.underway.begin(call(tell))  # to close the store waits for it, too
        task.add_done_callback(lambda _: moved.set())
        try:
            while not task.done():
                await self(moved.wait)
                moved.clear()
        except BaseException:
            task.cancel()
            await asyncio.wait([task], timeout=self._context.timeout)
            if undo is not None and task.done() and not task.cancelled() and task.exception() is None:
                undo(task.result())
            raise
        return await task
