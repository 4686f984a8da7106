"""Follow the events of many agents at once, with bounded work and memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from kode_core.errors import AgentDeletedError
from kode_core.model import Bookmark, StoredEvent, now_ms
from kode_core.protocols import ExtendedStore

__all__ = ["follow_all"]

_LOOK_S: Final = 1.0
"""How often the newest agents are looked up."""
_WAITING: Final = 1_000
"""The most events that wait to be printed; followers wait then, too."""

_Event = tuple[str, StoredEvent]


async def follow_all(
    store: ExtendedStore, most: int, since: int | None, filters: Mapping[str, Any]
) -> AsyncIterator[_Event]:
    """The events of the *most* agents that changed last, as they are stored, each with the id of its agent.

    Older events are left out: older than the call, or with *since* than that time. An agent that
    appears or changes later takes the place of the one that changed longest ago, which is followed on once it changes
    again, from the place where its follower was.
    """
    followers = _Followers(store, most, now_ms() if since is None else since, filters, reads_old=since is not None)
    keeping = asyncio.create_task(followers.keep())
    try:
        while True:
            waiting = asyncio.create_task(followers.queue.get())
            await asyncio.wait([waiting, keeping], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                keeping.result()  # raises what ended it
                return
            yield waiting.result()
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


class _Followers:
    def __init__(
        self, store: ExtendedStore, most: int, begin: int, filters: Mapping[str, Any], *, reads_old: bool
    ) -> None:
        self._store = store
        self._most = most
        self._begin = begin
        self._filters = filters
        self._reads_old = reads_old
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._places: dict[str, int] = {}
        self.queue: asyncio.Queue[_Event] = asyncio.Queue(_WAITING)

    async def keep(self) -> None:
        """Follow the agents that changed last, and look again and again which ones these are."""
        is_first = True
        try:
            while True:
                page = await self._store.query_sessions(sort_by="updated_at", limit=self._most)
                newest = [session.agent_id for session in page]
                for agent_id in self._tasks.keys() - set(newest):
                    await self._end(agent_id)
                for agent_id in newest:
                    task = self._tasks.get(agent_id)
                    if task is not None and not task.done():
                        continue
                    if task is not None:
                        task.result()  # raises what ended it, unless its agent was deleted
                    self._tasks[agent_id] = await self._begun(agent_id, is_first=is_first)
                is_first = False
                await asyncio.sleep(_LOOK_S)
        finally:
            for agent_id in list(self._tasks):
                await self._end(agent_id)

    async def _end(self, agent_id: str) -> None:
        task = self._tasks.pop(agent_id)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _begun(self, agent_id: str, *, is_first: bool) -> asyncio.Task[None]:
        """A follower. In the first look it begins at the end of the log, unless old events are wanted."""
        since: Bookmark | None = None
        place = self._places.get(agent_id, 0)
        if is_first and not self._reads_old:
            since = await self._store.last_bookmark(agent_id)
        return asyncio.create_task(self._follow(agent_id, since, place))

    async def _follow(self, agent_id: str, since: Bookmark | None, place: int) -> None:
        filters = {**self._filters, **({} if since is None else {"since": since})}
        stream = self._store.follow_events(agent_id, after_offset=place, **filters)
        try:
            async for event in stream:
                if event.bookmark.timestamp >= self._begin or since is not None:
                    await self.queue.put((agent_id, event))
                self._note(agent_id, event.offset)
        except AgentDeletedError:
            self._places.pop(agent_id, None)
        finally:
            await stream.aclose()

    def _note(self, agent_id: str, offset: int) -> None:
        """Remember the place of the agent, and of ten times as many agents as are followed."""
        self._places.pop(agent_id, None)
        self._places[agent_id] = offset
        if len(self._places) > 10 * self._most:
            del self._places[next(iter(self._places))]
