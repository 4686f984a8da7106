"""The one place where a driver is called: between two calls of :func:`call_driver` nothing changes on the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["call_driver"]

T = TypeVar("T")


async def call_driver(call: Callable[[], Awaitable[T]]) -> T:
    """Return the result of the driver's call."""
    return await call()
