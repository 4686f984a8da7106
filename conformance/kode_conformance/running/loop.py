"""The suite's own event loop: tests stay plain functions, and a store that hangs is told from one that is slow."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import sys
import threading
import traceback
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

__all__ = ["Hung", "LoopThread", "slowdown"]

T = TypeVar("T")


class Hung(AssertionError):
    """A check did not end in time."""


class LoopThread:
    """An event loop in a thread of its own; call it with a coroutine to run that there and wait for the result."""

    def __enter__(self) -> Self:
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._main, name="kode-conformance", daemon=True)
        self._thread.start()
        self._started.wait()
        return self

    def _main(self) -> None:
        async def live() -> None:
            self._loop = asyncio.get_running_loop()
            self._loop.set_exception_handler(_say_nothing)
            self._end = asyncio.Event()
            self._started.set()
            await self._end.wait()

        asyncio.run(live())

    def __call__(self, coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        done, _ = concurrent.futures.wait([future], seconds)
        more = 0.0 if done else seconds * (slowdown() - 1)
        try:
            return future.result(more)
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # the check itself raised a TimeoutError
            frame = sys._current_frames().get(self._thread.ident or 0)
            where = "".join(traceback.format_stack(frame)[-4:]) if frame else ""
            future.cancel()
            raise Hung(f"not done after {seconds + more:.3g} s; the event loop is at\n{where}") from None

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)


_MOST_SLOWDOWN: Final = 10.0


def slowdown() -> float:
    """How many times longer calls may take than on a quiet machine: the tasks that want each of its cores now."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return 1.0
    return min(max(1.0, load / (os.cpu_count() or 1)), _MOST_SLOWDOWN)


def _say_nothing(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Ignore errors of tasks that nothing awaited, as when a check ends at the first of many failing calls: they are no
    part of a report.
    """
