"""Long calls in steps: the deadline applies to each step, and the store can be closed between two steps (OPS-16)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from kode_core.engine import Progress, unwatched
from kode_core.errors import InvalidArgumentError
from kode_core.store.context import Context
from kode_core.store.metrics import Method

__all__ = ["Steps", "checked_flag", "checked_progress"]

P = ParamSpec("P")
T = TypeVar("T")


def checked_flag(value: Any, name: str) -> bool:
    """The flag that a caller gave; raises InvalidArgumentError if it is no bool."""
    if type(value) is not bool:
        raise InvalidArgumentError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def checked_progress(progress: Progress | None) -> Progress:
    """The caller's progress function, or one that does nothing."""
    if progress is None:
        return unwatched
    if not callable(progress):
        raise InvalidArgumentError(f"progress must be a function, got {type(progress).__name__}")
    return progress


class Steps:
    """The steps of one long call.

    Attributes:
        seconds: how long the steps have taken so far.
    """

    def __init__(self, context: Context, method: Method) -> None:
        self.seconds = 0.0
        self._context = context
        self._method = method

    async def __call__(self, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a step.

        Raises:
            StoreTimeoutError: the step was not done within the deadline.
            StoreClosedError: the store was closed since the last step.
        """
        start = time.perf_counter()
        try:
            return await self._context.step(self._method, call, *args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start

    async def watched(
        self,
        call: Callable[[Progress], Coroutine[Any, Any, T]],
        progress: Progress,
        undo: Callable[[T], object] | None = None,
    ) -> T:
        """Run a call of the engine that reports its progress; each report begins the next step.

        A call that is cancelled or late gets as much time as a step, so that it can remove its files. *undo* removes
        the result of a call that succeeds nevertheless, then or later.
        """
        moved = asyncio.Event()

        def tell(done: int, total: int | None) -> None:
            moved.set()
            progress(done, total)

        task = self._context.underway.begin(call(tell))  # closing the store waits for it, too
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
