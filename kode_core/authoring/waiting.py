"""Waits with a time limit."""

from __future__ import annotations

import asyncio
from contextlib import suppress

__all__ = ["waited_for"]


async def waited_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, for *seconds* at most; True if it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
