"""Waits that end by themselves."""

from __future__ import annotations

import asyncio
from contextlib import suppress

__all__ = ["waited_for"]


async def waited_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, for so many seconds at most; whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
