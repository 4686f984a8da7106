"""Limits of time that a machine which stands still does not use up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

__all__ = ["SOON_S", "WAIT_MS", "after_steps", "ended", "within"]

SOON_S: Final = 20.0
"""How long a call may take on a busy machine that neither waits for anything nor is large."""

WAIT_MS: Final = 20_000
"""How long to wait for a lock. A lease lasts longer, so that waiting is no way to a lock that nobody gives back."""

_TURN_S: Final = 0.05


@asynccontextmanager
async def within(seconds: float = SOON_S) -> AsyncIterator[None]:
    """As ``asyncio.timeout``, except that a turn of the event loop counts as 50 ms however late it comes.

    A process that gets no processor for some seconds, as happens on a machine with too much to do, loses one such turn.
    A limit by the clock would be over when it goes on, and the store would get no chance to answer.

    Raises:
        TimeoutError: so many seconds of turns were used up.
    """
    timer: asyncio.TimerHandle
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:

        def turn(left: int) -> None:
            nonlocal timer
            if left > 0:
                timer = loop.call_later(_TURN_S, turn, left - 1)
            else:
                limit.reschedule(loop.time())

        timer = loop.call_later(_TURN_S, turn, round(seconds / _TURN_S) - 1)
        try:
            yield
        finally:
            timer.cancel()


async def ended(tasks: Collection[asyncio.Future[Any]], seconds: float = SOON_S) -> bool:
    """Wait for tasks, no longer than so many seconds of turns; true if all have ended. None of them is cancelled."""
    with suppress(TimeoutError):
        async with within(seconds):
            await asyncio.wait(tasks)
    return all(task.done() for task in tasks)


async def after_steps(task: asyncio.Future[Any], steps: int) -> bool:
    """Let a task take so many steps of the event loop, or end; false if it soon did neither."""
    with suppress(TimeoutError):
        async with within():
            for _ in range(steps):
                if task.done():
                    break
                await asyncio.sleep(0)
            return True
    return False
