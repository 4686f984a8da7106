"""A write of the JSON files engine whose outcome another store decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from kode_core.batch import Applied

__all__ = ["PreparedWrite"]


class PreparedWrite:
    """A write that is durable but not applied. Call ``commit``, ``abort`` or ``leave`` once.

    *decide* records whether it is committed, and applies or discards it; *held* releases the agent.
    """

    def __init__(self, decide: Callable[[bool], Awaitable[Applied]], held: AsyncExitStack) -> None:
        self._decide = decide
        self._held = held

    async def commit(self, then: Callable[[], Awaitable[object]] | None = None) -> Applied:
        """Apply the write, and call *then* before anybody else can write."""
        return await self._finish(True, then)

    async def abort(self) -> None:
        """Discard the write."""
        await self._finish(False)

    async def leave(self) -> None:
        """Decide nothing: the next call for the agent asks the resolver."""
        await self._held.aclose()

    async def _finish(self, committed: bool, then: Callable[[], Awaitable[object]] | None = None) -> Applied:
        try:
            applied = await self._decide(committed)
            if then is not None:
                await then()
            return applied
        finally:
            await self.leave()
