"""Followers of events are woken by a change stream, over one connection that is open while somebody follows."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from kode_core.authoring.watching import Watcher
from kode_mongo.connection import Document, settled
from kode_mongo.errors import DRIVER_ERRORS

__all__ = ["HeadWatcher"]

_NAMED: Final = 1000
"""So many agents are named to the server; of more it tells everything."""
_LOOK_S: Final = 0.5
_IDLE_S: Final = 5.0


class HeadWatcher(Watcher):
    """Is told of every swap of a head."""

    lost = DRIVER_ERRORS

    def __init__(self, heads: Any) -> None:
        super().__init__()
        self._heads = heads

    async def listen(self) -> None:
        """Until the stream breaks, or nobody has watched for a while.

        When others are watched, too, another stream goes on from where this one is: nobody who was told of misses
        anything, and only those who are new have to look for what was written before.
        """
        position: Any = None
        while True:
            self.changed.clear()
            watched = frozenset(self.watches)
            stages = [{"$match": _swaps_of(watched)}, {"$project": {"documentKey": 1}}]
            how = {"max_await_time_ms": int(_LOOK_S * 1000), "resume_after": position}
            async with await settled(self._heads.watch(stages, **how)) as stream:
                if not await self._follow(stream, watched):
                    return
                position = stream.resume_token

    async def _follow(self, stream: Any, watched: frozenset[str]) -> bool:
        """Wake until others are watched, too; False when nobody has watched for a while."""
        used_at = time.monotonic()
        while True:
            # the first look opens the stream: what was written before it has to be looked for
            change = await stream.try_next()
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # which PyMongo's own client has swallowed now and then
                raise asyncio.CancelledError
            new, self.told = watched - self.told, watched
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
