"""Long calls in steps: each step has the deadline, and the store can be closed between two (OPS-16)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from kode_core.engine import Progress, unwatched
from kode_core.errors import InvalidArgumentError
from kode_core.store.book import Op
from kode_core.store.context import Context

__all__ = ["Steps", "told"]

P = ParamSpec("P")
T = TypeVar("T")


def told(progress: Progress | None) -> Progress:
    """The caller's function for progress, or one that does nothing."""
    if progress is None:
        return unwatched
    if not callable(progress):
        raise InvalidArgumentError(f"progress must be a function, got {type(progress).__name__}")
    return progress


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
        """Do a call of the engine that reports its progress; each report begins the next step.

        A call that is cancelled, or late, is waited for as long as a step may take, so that it has removed what it
        made. *undo* removes the result of a call that ends well all the same, then or later.
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

            def clean(ended: asyncio.Future[T]) -> None:
                if not ended.cancelled() and ended.exception() is None and undo is not None:
                    undo(ended.result())

            task.cancel()
            task.add_done_callback(clean)
            await asyncio.wait([task], timeout=self._context.timeout)
            raise
        return await task
