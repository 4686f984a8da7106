"""Closing of parts that depend on each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

__all__ = ["close_all", "ended"]


async def close_all(*parts: Callable[[], Awaitable[object]] | None) -> None:
    """Close the parts in this order, each also when one before it failed or was cancelled; None is a part not in use.

    A part that waits for a server is cancelled when the event loop ends. The connection behind it has to be closed all
    the same.
    """
    async with AsyncExitStack() as stack:
        for close in filter(None, reversed(parts)):
            stack.push_async_callback(close)


async def ended(job: asyncio.Task[None] | None) -> None:
    """Cancel a job that goes on by itself, if there is one, and wait until it has ended."""
    if job is not None and not job.done():
        job.cancel()
        await asyncio.wait([job])
