"""Long work in the event loop, in slices (OPS-15)."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Final

__all__ = ["Pace"]

_SLICE_S: Final = 0.002


class Pace:
    """The pace of one piece of work: after every two milliseconds other tasks get their turn."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = perf_counter() + _SLICE_S

    async def yield_to_loop(self) -> None:
        """Let other tasks run if the slice is used up; call it between short steps."""
        if perf_counter() >= self._until:
            await asyncio.sleep(0)
            self._until = perf_counter() + _SLICE_S
