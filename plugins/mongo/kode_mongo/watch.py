"""Wakes followers of events by a change stream, over one connection that is open while an agent is followed."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from kode_core.authoring.watching import Watcher
from kode_mongo.connection import Document, awaited
from kode_mongo.errors import DRIVER_ERRORS

__all__ = ["HeadWatcher"]

_NAMED: Final = 1000
"""The most agents that a stream names to the server; with more, it reports the swaps of all agents."""
_LOOK_S: Final = 0.5
_IDLE_S: Final = 5.0


class HeadWatcher(Watcher):
    """Wakes the followers of an agent at every swap of its head."""

    lost = DRIVER_ERRORS

    def __init__(self, heads: Any) -> None:
        super().__init__()
        self._heads = heads

    async def listen(self) -> None:
        """Listen until the stream breaks, or no agent has been watched for a while.

        When further agents are watched, a new stream continues at the position of the old one. Agents watched already
        miss nothing; only new ones need a first read.
        """
        position: Any = None
        while True:
            self.changed.clear()
            watched = frozenset(self.watches)
            stages = [{"$match": _swaps_of(watched)}, {"$project": {"documentKey": 1}}]
            how = {"max_await_time_ms": int(_LOOK_S * 1000), "resume_after": position}
            async with await awaited(self._heads.watch(stages, **how)) as stream:
                if not await self._follow(stream, watched):
                    return
                position = stream.resume_token

    async def _follow(self, stream: Any, watched: frozenset[str]) -> bool:
        """Wake followers until further agents are watched. False if no agent has been watched for a while."""
        used_at = time.monotonic()
        while True:
            # the first try opens the stream: followers have to read earlier events themselves
            change = await stream.try_next()
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # PyMongo's own client swallows a cancellation now and then
                raise asyncio.CancelledError
            new, self.reported = watched - self.reported, watched
            self.wake(new)
            if change is not None:
                self.wake([change["documentKey"]["_id"]])
            if self.watches:
                used_at = time.monotonic()
            if time.monotonic() - used_at >= _IDLE_S:
                return False
            if self.changed.is_set() and not self.watches.keys() <= watched:
                return True


def _swaps_of(agent_ids: frozenset[str]) -> Document:
    swapped: Document = {
        "$or": [
            {"operationType": {"$in": ["insert", "replace"]}},
            {"operationType": "update", "updateDescription.updatedFields.rev": {"$exists": True}},
        ]
    }
    if len(agent_ids) <= _NAMED:
        swapped["documentKey._id"] = {"$in": sorted(agent_ids)}
    return swapped
