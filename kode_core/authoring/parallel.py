"""Calls side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

__all__ = ["AT_ONCE", "each"]

A = TypeVar("A")
B = TypeVar("B")

AT_ONCE: Final = 16
"""How many calls to the store one call of the engine makes side by side."""


async def each(call: Callable[[A], Awaitable[B]], values: Iterable[A], *, at_once: int = AT_ONCE) -> list[B]:
    """Call for each value, some at once; the results in order. When one fails the others end first."""
    gate = asyncio.Semaphore(at_once)

    async def one(value: A) -> B:
        async with gate:
            return await call(value)

    results = await asyncio.gather(*map(one, values), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
