"""Calls of a store for one agent: of an asynchronous store in its event loop, of a synchronous one from any."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from kode_core import ExtendedStore
from kode_core.sync import SyncStore

__all__ = ["Calls", "settled"]

T = TypeVar("T")


class Calls:
    """Calls the methods of a store for one agent."""

    def __init__(self, store: ExtendedStore | SyncStore, agent_id: str) -> None:
        self._store = store
        self._agent_id = agent_id

    async def __call__(self, method: str, *args: Any, **options: Any) -> Any:
        """The result of a method; one of a synchronous store runs in a thread."""
        call = getattr(self._store, method)
        if isinstance(self._store, SyncStore):
            return await asyncio.to_thread(call, self._agent_id, *args, **options)
        return await call(self._agent_id, *args, **options)


async def settled(write: Coroutine[Any, Any, T]) -> T:
    """The result of a write. A caller that is cancelled waits for the outcome first, as with the SDK's own sessions."""
    task = asyncio.ensure_future(write)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = cancelled or exc
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # the cancellation goes first
    raise cancelled
