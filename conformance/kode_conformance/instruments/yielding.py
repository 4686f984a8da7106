"""Giving way to others: turns of the event loop, and a store whose engine calls overlap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from kode_conformance.context import Context, Unverified
from kode_core.layers import Layer
from kode_core.protocols import ExtendedStore

__all__ = ["giving_way", "turns_pass"]

_TURNS: Final = 5
"""So many turns of the loop: calls that were made at once have all begun by then."""


async def turns_pass(count: int) -> None:
    """Let so many turns of the event loop pass."""
    for _ in range(count):
        await asyncio.sleep(0)


class _GivesWay(Layer):
    """Gives way to the calls of others before each call begins."""

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        await turns_pass(_TURNS)
        return await call(*args, **kwargs)


async def giving_way(ctx: Context) -> ExtendedStore:
    """Another instance of which calls that are made at once are all under way together, also where the engine answers
    without a wait; the store of the check where the harness can put no layer around the engine.
    """
    try:
        return await ctx.another(_GivesWay)
    except Unverified:
        return ctx.store
