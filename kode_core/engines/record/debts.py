"""Changes that this process committed and could not apply. It tries again in the background and before queries."""

from __future__ import annotations

import asyncio
from typing import Final

from kode_core.authoring.closing import ended
from kode_core.authoring.parallel import each
from kode_core.authoring.waiting import waited_for
from kode_core.engines.recent import Recent
from kode_core.engines.record.io import MovedError, RecordIO
from kode_core.engines.record.state import OpenedHead
from kode_core.errors import KodeError, Retry

__all__ = ["RecordDebts"]

_KNOWN: Final = 512
_PATIENCE: Final = 5.0
"""How many seconds a query waits until owed changes are applied."""
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 5.0
_TRIES: Final = 30


class RecordDebts:
    """Heads that this process wrote and could not settle."""

    def __init__(self, io: RecordIO) -> None:
        self._io = io
        self._owed = Recent[str, OpenedHead](_KNOWN)
        self._payment: asyncio.Task[None] | None = None

    def owe(self, head: OpenedHead) -> None:
        """Remember a head that could not be settled."""
        self._owed[head.record.agent_id] = head

    async def repeat(self, agent_id: str, closing: asyncio.Event) -> None:
        """Try to settle an agent's owed head until it works; the last try is made when the engine is closed."""
        pause = _FIRST_PAUSE
        for _ in range(_TRIES):
            await waited_for(closing, pause)
            if await self._pay(agent_id) or closing.is_set():
                return
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def pay(self) -> None:
        """Settle all owed heads before a query. After some seconds the query stops waiting and this continues alone."""
        if not self._owed:
            return
        if self._payment is None or self._payment.done():
            self._payment = asyncio.get_running_loop().create_task(self._pay_all())
        await asyncio.wait([self._payment], timeout=_PATIENCE)

    async def _pay_all(self) -> None:
        await each(self._pay, list(self._owed))

    async def _pay(self, agent_id: str) -> bool:
        """Try to settle an agent's owed head. True if nothing is left to do.

        Changes are applied only while the stored head still lists them as pending. A newer head means that another
        process settled this one or deleted the agent.
        """
        owed = self._owed.get(agent_id)
        if owed is None:
            return True
        try:
            now = await self._io.head(agent_id)
            if now is not None and now.record.rev < owed.record.rev:
                return False  # a late read: it shows the head before ours
            if now is not None and now.record.rev == owed.record.rev:
                await self._io.redo(now)
            else:
                await self._io.remove_if_deleted(owed.record)
        except MovedError:
            return False
        except KodeError as exc:
            if exc.retry is not Retry.NEVER:
                return False
        if self._owed.get(agent_id) is owed:
            del self._owed[agent_id]
        return True

    async def close(self) -> None:
        """Stop the background payment."""
        await ended(self._payment)
