"""A write of the JSON files engine whose outcome another store decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from kode_core.backends.json_files.stripes import Stripe
from kode_core.batch import Applied

if TYPE_CHECKING:
    from kode_core.backends.json_files.engine import JsonFilesEngine

__all__ = ["PreparedWrite"]


class PreparedWrite:
    """A write that is durable but not applied. Call ``commit``, ``abort`` or ``leave`` once."""

    def __init__(self, engine: JsonFilesEngine, agent_id: str, stripe: Stripe, held: AsyncExitStack) -> None:
        self._engine = engine
        self._agent_id = agent_id
        self._stripe = stripe
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
            decide = self._engine.folder.decide
            applied = await self._engine.run(decide, self._stripe, self._agent_id, committed=committed)
            if then is not None:
                await then()
            return applied
        finally:
            await self.leave()
