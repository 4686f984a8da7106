"""The base of the methods of a synchronous store: how each call is made."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from kode_core.errors import KodeError
from kode_core.protocols import ExtendedStore, Lease
from kode_core.sync.iterators import SyncIterator
from kode_core.sync.locks import BLOCKS, SyncAgentLock, SyncLease, lease_of
from kode_core.sync.thread import LoopThread

__all__ = ["Calls"]

T = TypeVar("T")


class Calls(abc.ABC):
    """Makes each call in the thread of the store, in a copy of the caller's context."""

    @abc.abstractmethod
    def _running(self) -> LoopThread:
        """The thread of the store, started by the first call."""

    async def _store(self, thread: LoopThread) -> ExtendedStore:
        """The store in the thread's loop."""
        return await thread.store()

    def _thread(self) -> LoopThread:
        thread = self._running()
        for block in BLOCKS.get():
            if block.store is self and block.thread is not thread:
                raise KodeError(
                    f"this process was forked inside the block of a lock, of agent {block.agent_id!r}, which it does "
                    "not hold: fork outside of such blocks, or work in a context of your own (contextvars.Context.run)"
                )
        return thread

    def _call(self, call: Callable[[ExtendedStore], Awaitable[T]]) -> T:
        thread = self._thread()

        async def work() -> T:
            return await call(await self._store(thread))

        return thread.run(work)

    def _iterate(self, call: Callable[[ExtendedStore], AsyncIterator[T]]) -> SyncIterator[T]:
        thread = self._thread()

        async def begin() -> AsyncIterator[T]:
            return call(await self._store(thread))

        return SyncIterator(self, thread, thread.run(begin))

    def _lock(self, agent_id: str, ttl_ms: int, wait_ms: int) -> SyncAgentLock:
        thread = self._thread()

        async def make() -> SyncAgentLock:
            lock = (await self._store(thread)).acquire_agent_lock(agent_id, ttl_ms, wait_ms)
            return SyncAgentLock(self, thread, lock, agent_id)

        return thread.run(make)

    def _fence(self, agent_id: str, fence: SyncLease | None) -> Lease | None:
        """The lease that protects a write: the given one, or the one of the block that this thread is in (LOCK-5)."""
        if fence is None:
            for block in reversed(BLOCKS.get()):
                if block.store is self and block.agent_id == agent_id:
                    return block.lease
        return lease_of(fence)
