"""Locks of agents for synchronous code: ``with`` fences the writes inside by itself (LOCK-5)."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar, copy_context
from types import TracebackType
from typing import Final

from kode_core.errors import StoreClosedError
from kode_core.protocols import AgentLock, Lease
from kode_core.store.locks import ENTERED
from kode_core.sync.thread import LoopThread

__all__ = ["BLOCKS", "Block", "SyncAgentLock", "SyncLease", "lease_of"]


class SyncLease:
    """A lock on one agent, held until it is released or its time runs out (LOCK-3)."""

    def __init__(self, store: object, thread: LoopThread, lease: Lease) -> None:
        self._store = store  # which is not finalized before this is
        self._thread = thread
        self._lease = lease

    def __repr__(self) -> str:
        return repr(self._lease)

    @property
    def agent_id(self) -> str:
        """The agent."""
        return self._lease.agent_id

    @property
    def token(self) -> int:
        """Grows with every lease of the agent: a resource outside the store can refuse smaller tokens (LOCK-5)."""
        return self._lease.token

    @property
    def is_lost(self) -> bool:
        """True once a renewal was refused or too late, or the store was closed: another holder may have the lock."""
        return self._lease.is_lost

    def renew(self) -> None:
        """Hold the lease for its full time from now on; raises LockLostError if it has ended."""
        self._thread.run(self._lease.renew)

    def release(self) -> None:
        """Let the next holder in. Releasing twice or too late does nothing (LOCK-4)."""
        with suppress(StoreClosedError):  # it ends by itself
            self._thread.run(self._lease.release)


def lease_of(fence: SyncLease | Lease | None) -> Lease | None:
    """The lease as the store knows it."""
    return fence._lease if isinstance(fence, SyncLease) else fence


class SyncAgentLock:
    """The result of ``acquire_agent_lock``: use ``with``, or take a lease with :meth:`acquire`.

    ``with`` renews the lease in the background and fences the writes that this thread makes inside.
    """

    def __init__(self, store: object, thread: LoopThread, lock: AgentLock, agent_id: str) -> None:
        self.store = store
        self.thread = thread
        self.agent_id = agent_id
        self._lock = lock
        self._block: Block | None = None

    def acquire(self) -> SyncLease:
        """A lease that ends after its time unless ``renew()`` is called; pass it as ``fence=`` to the writes."""

        async def acquire() -> Lease:
            return await self._lock

        call = self.thread.begin(acquire)
        try:
            return SyncLease(self.store, self.thread, call.wait())
        except BaseException:
            if call.has_result:  # interrupted just after it was taken
                self.thread.run(call.result().release, to_the_end=True)
            raise

    def __enter__(self) -> SyncLease:
        context = copy_context()
        call = self.thread.begin(self._lock.__aenter__, context)
        try:
            lease = call.wait()
        except BaseException:
            if call.has_result:

                async def leave() -> None:
                    await self._lock.__aexit__(None, None, None)

                self.thread.run(leave, to_the_end=True)
            raise
        ENTERED.set(context.get(ENTERED, ()))
        self._block = Block(self, lease)
        BLOCKS.set((*(block for block in BLOCKS.get() if not block.is_replaced(self)), self._block))
        return SyncLease(self.store, self.thread, lease)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        block, self._block = self._block, None
        assert block is not None
        block.is_left = True
        BLOCKS.set(tuple(other for other in BLOCKS.get() if other is not block))
        ENTERED.set(tuple(held for held in ENTERED.get() if held is not block.lease))

        async def leave() -> None:
            await self._lock.__aexit__(kind, exc, trace)

        with suppress(StoreClosedError):
            self.thread.run(leave, to_the_end=True)


class Block:
    """A ``with`` block of a lock, as the context of the thread knows it that is in it.

    Attributes:
        is_left: True once it has ended; threads that have it still were started inside.
    """

    __slots__ = ("agent_id", "is_left", "lease", "store", "thread")

    def __init__(self, lock: SyncAgentLock, lease: Lease) -> None:
        self.store = lock.store
        self.thread = lock.thread
        self.agent_id = lock.agent_id
        self.lease = lease
        self.is_left = False

    def is_replaced(self, lock: SyncAgentLock) -> bool:
        """True if a thread that enters the block of *lock* may forget this one, which it inherited."""
        return self.is_left and self.store is lock.store and self.agent_id == lock.agent_id


BLOCKS: Final[ContextVar[tuple[Block, ...]]] = ContextVar("kode_sync_blocks", default=())
"""The blocks that this thread is in, innermost last."""
