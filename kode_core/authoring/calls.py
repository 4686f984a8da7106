"""The one place where a driver is called: between two calls of :func:`made` nothing changes on the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["made"]

T = TypeVar("T")


async def made(call: Callable[[], Awaitable[T]]) -> T:
    """Return the result of the driver's call."""
    return await call()
