"""Close parts that depend on each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

__all__ = ["close_all", "ended", "ends_within"]


async def close_all(*parts: Callable[[], Awaitable[object]] | None) -> None:
    """Close the parts in this order, each one even if a part before it failed or was cancelled; None parts are skipped.

    A part that waits for a server is cancelled when the event loop ends, but the connection behind it still has to be
    closed.
    """
    async with AsyncExitStack() as stack:
        for close in filter(None, reversed(parts)):
            stack.push_async_callback(close)


async def ended(job: asyncio.Task[Any] | None) -> None:
    """Cancel a background task, if there is one, and wait until it has ended."""
    if job is not None and not job.done():
        job.cancel()
        await asyncio.wait([job])


async def ends_within(closing: Awaitable[None], seconds: float) -> bool:
    """True if the engine closed in time; otherwise its close continues in the background."""
    task = asyncio.ensure_future(closing)
    done, _ = await asyncio.wait([task], timeout=seconds)
    if done:
        await task
        return True
    task.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())
    return False
