"""Settling what a dead process left unsettled."""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

from kode_core.authoring.closing import ended
from kode_core.authoring.parallel import each
from kode_core.engines.record.io import MovedError, RecordIO, wall_clock
from kode_core.engines.record.state import AgentHead
from kode_core.errors import KodeError

__all__ = ["FORK_DEAD_SECONDS", "RecordRecovery", "is_dead_fork"]

_RECOVER_SECONDS: Final = 1.0
_RECOVER_PATIENCE: Final = 5.0
"""How long a query waits for what the dead left."""
FORK_DEAD_SECONDS: Final = 60.0
"""After how long a fork that shows no sign of life is taken for dead."""


def is_dead_fork(head: AgentHead) -> bool:
    """Whether a fork that is being made gave its last sign long ago, by the clock of this process.

    Where that clock is wrong, a fork that goes on is given up, and begins anew.
    """
    return head.state.reserved and wall_clock() - head.record.updated_at >= FORK_DEAD_SECONDS * 1000


class _Seen(NamedTuple):
    """A head that was not settled, and since when it is the same."""

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
        """Settle what somebody left who died, before a query: it is waited for a while, and then goes on by itself."""
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
        """What others are about to settle gets time for it; what was there before this store was opened does not."""
        found = await self._io.store.unsettled()
        heads = [head for head in (await self._io.sound(found))[0] if not head.record.is_settled]
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
        await each(self._try_to_settle, left)

    async def _try_to_settle(self, head: AgentHead) -> None:
        try:
            await self._io.settle(head)
        except (MovedError, KodeError):
            return  # somebody else goes on with it, or a later call does

    async def close(self) -> None:
        """End what goes on by itself; the next process that comes does it again."""
        await ended(self._recovery)
