"""A store for each event loop: ``Runner.run`` runs every call in a loop of its own, and a store belongs to one loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from kode_core import ExtendedStore, StoreClosedError

__all__ = ["LoopStores"]


class LoopStores:
    """Makes a store for each loop that asks, and closes it when that loop ends."""

    def __init__(self, make: Callable[[], ExtendedStore]) -> None:
        self._make = make
        self._first: ExtendedStore | None = make()  # a wrong configuration fails here
        self._kept: dict[asyncio.AbstractEventLoop, tuple[ExtendedStore, AsyncGenerator[None]]] = {}
        self._is_closed = False

    async def store(self) -> ExtendedStore:
        """The store of the running loop."""
        if self._is_closed:
            raise StoreClosedError("the session service is closed")
        loop = asyncio.get_running_loop()
        if loop not in self._kept:
            store, self._first = self._first or self._make(), None
            closing = self._closing(loop, store)
            self._kept[loop] = (store, closing)
            await anext(closing)  # asyncio.run ends the generators that were begun in its loop
        return self._kept[loop][0]

    async def close(self) -> None:
        """Close the store of the running loop; the ones of other loops were closed when those ended."""
        self._is_closed = True
        kept = self._kept.get(asyncio.get_running_loop())
        if kept is not None:
            await kept[1].aclose()

    async def _closing(self, loop: asyncio.AbstractEventLoop, store: ExtendedStore) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._kept.pop(loop, None)
            await store.close()
