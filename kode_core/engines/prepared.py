"""A write of the JSON files engine whose outcome another store decides."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kode_core.batch import Applied, Batch
from kode_core.engines.folder import Stripe

if TYPE_CHECKING:
    from kode_core.engines.json_files import JsonFilesEngine

__all__ = ["PreparedWrite"]


class PreparedWrite:
    """A write that is durable and not applied. Say what became of it, once."""

    def __init__(
        self, engine: JsonFilesEngine, batch: Batch, held: ExitStack, stripe: Stripe, lock: asyncio.Lock
    ) -> None:
        self._engine = engine
        self._journal = engine.folder.journal(batch.agent_id)
        self._held = held
        self._stripe = stripe
        self._lock = lock

    async def commit(self, then: Callable[[], Awaitable[object]] | None = None) -> Applied:
        """Apply it, and do what must be done *then* before anybody else writes."""
        return await self._finish(True, then)

    async def abort(self) -> None:
        """Forget it."""
        await self._finish(False)

    async def leave(self) -> None:
        """Neither: whoever comes next asks the resolver."""
        await self._engine.release(self._held, self._lock)

    async def _finish(self, committed: bool, then: Callable[[], Awaitable[object]] | None = None) -> Applied:
        try:
            applied = await self._engine.end(self._engine.note, self._stripe, self._journal, committed)
            if then is not None:
                await then()
            return applied
        finally:
            await self.leave()
