"""Settles the heads that a dead process left unsettled."""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

from kode_core.authoring.closing import ended
from kode_core.authoring.parallel import each
from kode_core.engines.record.io import MovedError, RecordIO, wall_clock
from kode_core.engines.record.state import OpenedHead
from kode_core.errors import KodeError

__all__ = ["FORK_DEAD_SECONDS", "RecordRecovery", "is_dead_fork"]

_RECOVER_SECONDS: Final = 1.0
_RECOVER_PATIENCE: Final = 5.0
"""How many seconds a query waits for recovery."""
FORK_DEAD_SECONDS: Final = 60.0
"""A fork whose head has not changed for this long counts as dead."""


def is_dead_fork(head: OpenedHead) -> bool:
    """Whether the head is of a fork in the making that gave its last sign long ago, by the clock of this process.

    If that clock is wrong, a live fork is abandoned, and its writer starts over.
    """
    return head.state.reserved and wall_clock() - head.record.updated_at >= FORK_DEAD_SECONDS * 1000


class _Seen(NamedTuple):
    """The revision of an unsettled head, and when it was first seen."""

    rev: int
    since: float


class RecordRecovery:
    """Finds heads that stay unsettled, and settles them."""

    def __init__(self, io: RecordIO) -> None:
        self._io = io
        self._seen: dict[str, _Seen] = {}
        self._recovery: asyncio.Task[None] | None = None
        self._recovered_at = 0.0

    async def recover(self) -> None:
        """Settle heads of dead writers before a query. After some seconds the query goes on without waiting."""
        now, is_first = time.monotonic(), self._recovery is None
        if self._recovery is None or self._recovery.done():
            if not is_first and now - self._recovered_at < _RECOVER_SECONDS:
                return
            self._recovered_at = now
            self._recovery = asyncio.get_running_loop().create_task(self._recover(is_first=is_first))
            self._recovery.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([self._recovery], timeout=max(0.0, self._recovered_at + _RECOVER_PATIENCE - now))
        if self._recovery.done() and not self._recovery.cancelled():
            self._recovery.result()

    async def _recover(self, *, is_first: bool) -> None:
        """Settle heads that were found unsettled twice, or in the first round; others may have a live writer."""
        found = await self._io.store.unsettled()
        heads = [head for head in (await self._io.readable_heads(found))[0] if not head.record.is_settled]
        now, seen = time.monotonic(), self._seen
        self._seen = {}
        left = []
        for head in heads:
            agent_id, rev = head.record.agent_id, head.record.rev
            before = seen.get(agent_id)
            since = before.since if before is not None and before.rev == rev else None
            self._seen[agent_id] = _Seen(rev, now if since is None else since)
            if head.state.reserved:
                is_left = now - self._seen[agent_id].since >= FORK_DEAD_SECONDS
            else:
                is_left = is_first or since is not None
            if is_left:
                left.append(head)
        await each(self._try_to_redo, left)

    async def _try_to_redo(self, head: OpenedHead) -> None:
        try:
            await self._io.redo(head)
        except (MovedError, KodeError):
            return  # another process or a later call settles it

    async def close(self) -> None:
        """Stop the background task. The next process recovers the rest."""
        await ended(self._recovery)
