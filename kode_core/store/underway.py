"""Writes that have begun: each is finished once, and later calls see its result (OPS-9).

A write of the engine runs in a task of its own, which no caller can cancel. If the caller is cancelled, or its deadline
passes, the task continues; it is *left*, and every later call for the same agent first waits for it. So a program that
gave up, reads, and writes the missing part never writes anything twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from contextvars import Context
from typing import Any, Final, TypeVar

from kode_core.batch import Applied, Batch, Outcome, Refused
from kode_core.errors import KodeError, LockLostError

__all__ = ["OTHERS_S", "Underway", "applied_or_raise", "is_in_doubt", "put_in_doubt"]

T = TypeVar("T")

_IN_DOUBT: Final = "_kode_in_doubt"
OTHERS_S: Final = 1.0
"""How long a call over all agents waits for a left write: one agent must not delay the others (OPS-13)."""


def is_in_doubt(exc: BaseException | None) -> bool:
    """True if a cancellation came in the middle of a write."""
    return getattr(exc, _IN_DOUBT, False)


def put_in_doubt(exc: asyncio.CancelledError) -> None:
    """Note that a cancellation came in the middle of a write."""
    setattr(exc, _IN_DOUBT, True)


class Underway:
    """The running writes of one store."""

    def __init__(self) -> None:
        self._writes: set[asyncio.Future[Any]] = set()
        self._left: dict[asyncio.Future[Any], Collection[str]] = {}
        self._stuck: set[asyncio.Future[Any]] = set()

    async def finish(self, agent_ids: Collection[str], write: Coroutine[Any, Any, T]) -> T:
        """Await a write for these agents; it runs to its end even if the caller is cancelled."""
        task = self.begin(write)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            self.leave(agent_ids, task, exc)
            raise

    def begin(self, write: Coroutine[Any, Any, T], context: Context | None = None) -> asyncio.Task[T]:
        """Start a write, or another call of the engine, in the present context or *context*.

        :meth:`ended` waits for its end.
        """
        task = asyncio.get_running_loop().create_task(write, context=context)
        self._writes.add(task)
        task.add_done_callback(self._ended)
        return task

    def leave(self, agent_ids: Collection[str], write: asyncio.Future[Any], exc: asyncio.CancelledError) -> None:
        """Note that the caller of a write is gone; *exc* is marked to say that the write is in doubt."""
        put_in_doubt(exc)
        if not write.done():
            self._left[write] = agent_ids
            write.add_done_callback(self._ended)

    def _ended(self, write: asyncio.Future[Any]) -> None:
        self._writes.discard(write)
        self._left.pop(write, None)
        self._stuck.discard(write)
        if not write.cancelled():
            write.exception()  # the caller has it, or is gone

    @property
    def count(self) -> int:
        """The number of calls of the engine that are running."""
        return len(self._writes)

    @property
    def is_any_left(self) -> bool:
        """True if a write continues without its caller."""
        return bool(self._left)

    async def wait_for_left(self, agent_id: str | None) -> None:
        """Wait for the agent's left writes; None waits at most a second for the left writes of all agents."""
        if agent_id is None:
            await self._wait_for_all_left()
            return
        while left := [write for write, agents in self._left.items() if agent_id in agents]:
            await asyncio.wait(left)

    async def _wait_for_all_left(self) -> None:
        """Wait a second for all left writes. A write that once took longer is not waited for again."""
        left = self._left.keys() - self._stuck
        if left:
            _, late = await asyncio.wait(left, timeout=OTHERS_S)
            self._stuck |= late & self._left.keys()

    async def ended(self) -> None:
        """Wait for all writes, with or without their callers."""
        while self._writes or self._left:
            await asyncio.wait({*self._writes, *self._left})


def applied_or_raise(batch: Batch, outcome: Outcome) -> Applied | Refused:
    """The outcome; errors and a lost lease are raised."""
    if isinstance(outcome, KodeError):
        raise outcome
    if isinstance(outcome, Refused) and outcome.by == "fence":
        raise LockLostError(batch.agent_id, "the lease of this write has ended; nothing was written")
    return outcome
