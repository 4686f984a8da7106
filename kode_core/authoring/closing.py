"""Close parts that depend on each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

__all__ = ["close_all", "ended"]


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
