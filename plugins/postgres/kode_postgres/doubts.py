"""Writes whose outcome the store could not learn.

Before the same store reads or changes the agent again, the id of such a write is recorded: from then on it counts as
applied, so that it can no longer be applied later. A program that reads and repeats the missing part doubles nothing
(OPS-10).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any, Final, NamedTuple

from kode_postgres.connection import Connections
from kode_postgres.session import Session

__all__ = ["Doubts", "Never"]


_OTHERS_S: Final = 1.0
"""How long a call over all agents waits for one that is in doubt."""


class Never(NamedTuple):
    """A statement after which a write in doubt can no longer be applied."""

    statement: str
    arguments: tuple[Any, ...]

    async def happen(self, session: Session) -> None:
        """Execute it."""
        await session.fetch(self.statement, *self.arguments)


class Doubts:
    """The writes in doubt of one store, by agent."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._open: defaultdict[str, list[Never]] = defaultdict(list)
        self._resolving: dict[str, asyncio.Task[None]] = {}

    def add(self, agent_id: str, never: Never) -> None:
        """Note that a write for the agent is in doubt."""
        self._open[agent_id].append(never)

    def __contains__(self, agent_id: str) -> bool:
        """True if a write for the agent is in doubt."""
        return agent_id in self._open

    async def resolve(self, agent_id: str | None) -> None:
        """Resolve the agent's writes in doubt. None stands for a call over all agents, which waits a second at most.

        Raises:
            StorageError: the server cannot be asked, and the writes are still in doubt.
        """
        if agent_id is None and self._open:
            await asyncio.wait([self._resolved(one) for one in self._open], timeout=_OTHERS_S)
        elif agent_id is not None and agent_id in self._open:
            await asyncio.shield(self._resolved(agent_id))

    def _resolved(self, agent_id: str) -> asyncio.Task[None]:
        task = self._resolving.get(agent_id)
        if task is None:
            task = self._resolving[agent_id] = asyncio.get_running_loop().create_task(self._resolve(agent_id))
            task.add_done_callback(lambda done: self._done(agent_id, done))
        return task

    async def _resolve(self, agent_id: str) -> None:
        while self._open[agent_id]:
            never = self._open[agent_id][0]
            await self._connections.write(never.happen)
            self._open[agent_id].remove(never)
        del self._open[agent_id]

    def _done(self, agent_id: str, task: asyncio.Task[None]) -> None:
        del self._resolving[agent_id]
        if not task.cancelled():
            task.exception()

    async def close(self) -> None:
        """Wait for the statements that are running."""
        while self._resolving:
            await asyncio.wait(self._resolving.values())
