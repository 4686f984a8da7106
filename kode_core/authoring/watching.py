"""Wake the followers of events, for engines whose database reports writes."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from typing import ClassVar, Final

__all__ = ["AgentWatch", "Watcher"]

_LOST_S: Final = 3.0

Wake = Callable[[], None]


class AgentWatch:
    """See :class:`kode_core.engine.Watch`."""

    def __init__(self, watcher: Watcher, agent_id: str, wake: Wake) -> None:
        self._watcher = watcher
        self.agent_id = agent_id
        self.wake = wake

    @property
    def is_live(self) -> bool:
        """True while the database reports writes; see :class:`kode_core.engine.Watch`."""
        return self.agent_id in self._watcher.reported

    def close(self) -> None:
        self._watcher.unwatch(self)


class Watcher(ABC):
    """Wakes the watchers of agents, as long as there are any.

    Attributes:
        lost: the errors that end a connection, after which a new one is tried.
        reported: the agents that the database reports at present.
        watches: the watches of each agent.
        changed: set when a watch begins or ends.
    """

    lost: ClassVar[tuple[type[Exception], ...]]

    def __init__(self) -> None:
        self.reported: Set[str] = frozenset()
        self.watches: defaultdict[str, set[AgentWatch]] = defaultdict(set)
        self.changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def listen(self) -> None:
        """Keep ``reported`` up to date and call ``wake``, until the connection is unneeded or watched agents change.

        Raise an error of ``lost`` when the connection breaks. Wake an agent's followers once after subscribing, so that
        they read what was written before.
        """

    def watch(self, agent_id: str, wake: Wake) -> AgentWatch:
        """Call *wake* after appends for the agent, and now and then without any."""
        watch = AgentWatch(self, agent_id, wake)
        self.watches[agent_id].add(watch)
        self.changed.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return watch

    def unwatch(self, watch: AgentWatch) -> None:
        """End a watch."""
        self.watches[watch.agent_id].discard(watch)
        if not self.watches[watch.agent_id]:
            del self.watches[watch.agent_id]
            self.changed.set()

    def wake(self, agent_ids: Iterable[str]) -> None:
        """Wake the watchers of these agents."""
        for agent_id in list(agent_ids):
            for watch in list(self.watches.get(agent_id, ())):
                watch.wake()

    async def close(self) -> None:
        """Close the connection."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        try:
            while self.watches:
                is_lost = False
                try:
                    await self.listen()
                except self.lost:
                    is_lost = True
                self.reported = frozenset()
                self.wake(self.watches)
                if is_lost and self.watches:  # clients that lost a server at once must not all come back at once
                    await asyncio.sleep(random.uniform(0.2, 1.0) * _LOST_S)  # noqa: S311
        finally:
            self.reported = frozenset()
            self._task = None
