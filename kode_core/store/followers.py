"""The followers of a store and of its views, which look at once when one of these stores writes or deletes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Followers"]


class Followers:
    """The followers of one store. A store and its views wake each other's followers."""

    def __init__(self) -> None:
        self._prefix = ""
        self._all: defaultdict[str, set[asyncio.Event]] = defaultdict(set)  # by the full ids
        self._own: set[asyncio.Event] = set()

    def scoped(self, prefix: str) -> Followers:
        """The followers of a view whose ids have this prefix in the store."""
        view = Followers()
        view._prefix, view._all = prefix, self._all
        return view

    def __len__(self) -> int:
        """The number of the store's own followers; any thread may ask."""
        return len(self._own)

    def wake(self, agent_id: str) -> None:
        """Have the agent's followers look: there are new events, or the agent was deleted."""
        for event in self._all.get(self._prefix + agent_id, ()):
            event.set()

    def wake_all(self) -> None:
        """Have the store's own followers look, for example when it is closed."""
        for event in self._own:
            event.set()

    @contextmanager
    def watching(self, agent_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when this store, a view of it or the store that it is a view of writes for the agent."""
        event, full = asyncio.Event(), self._prefix + agent_id
        self._all[full].add(event)
        self._own.add(event)
        try:
            yield event
        finally:
            self._own.discard(event)
            self._all[full].discard(event)
            if not self._all[full]:
                del self._all[full]
