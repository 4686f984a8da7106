"""The process and the event loop that a store belongs to once it is opened."""

from __future__ import annotations

import asyncio
import os
import secrets

from kode_core.errors import KodeError

__all__ = ["Home"]


class Home:
    """Where a store is used. A store that was never opened holds nothing, and may still move to a forked process.

    Attributes:
        name: of the store in this process, for the ids of its writes: no two stores have the same.
    """

    def __init__(self) -> None:
        self._settle()

    def _settle(self) -> None:
        self.name = secrets.token_hex(6)
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self) -> asyncio.AbstractEventLoop:
        """Belong to the running event loop from now on, and return it."""
        self._loop = asyncio.get_running_loop()
        return self._loop

    def check(self) -> None:
        """Raise unless the store may be used in this process and event loop."""
        if self._process != os.getpid():
            if self._loop is not None:
                raise KodeError(
                    "this store was opened in another process, from which this one was forked: open one store in each "
                    "process, or one of kode_core.sync, which opens itself again after a fork"
                )
            self._settle()
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise KodeError(
                "this store was opened in another event loop: open one store in each loop, or one of kode_core.sync, "
                "which all loops and threads may use"
            )
