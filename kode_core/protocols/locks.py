"""Locks on agents, as callers see them."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

__all__ = ["AgentLock", "Lease"]


class Lease(Protocol):
    """A lock on one agent, held until it is released or its time runs out (LOCK-3)."""

    @property
    def agent_id(self) -> str:
        """The agent."""
        ...

    @property
    def token(self) -> int:
        """Grows with every lease of the agent: a resource outside the store can refuse smaller tokens (LOCK-5)."""
        ...

    @property
    def is_lost(self) -> bool:
        """True once a renewal was refused or too late, or the store was closed: another holder may have the lock."""
        ...

    async def renew(self) -> None:
        """Hold the lease for its full time from now on; raises LockLostError if it has ended."""
        ...

    async def release(self) -> None:
        """Let the next holder in. Releasing twice or too late does nothing (LOCK-4)."""
        ...


class AgentLock(Awaitable[Lease], AbstractAsyncContextManager[Lease], Protocol):
    """The result of ``acquire_agent_lock``: await it for a lease, or use ``async with``."""
