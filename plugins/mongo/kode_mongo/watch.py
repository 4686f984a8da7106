"""Followers of events are woken by a change stream, over one connection that is open while somebody follows."""

from __future__ import annotations

from typing import Any, Final

from kode_core.engines.watching import Watcher
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
        """Until the stream breaks, others are watched, too, or nobody has watched for a while."""
        self.changed.clear()
        watched = frozenset(self.watches)
        stages = [{"$match": _swaps_of(watched)}, {"$project": {"documentKey": 1}}]
        stream = await settled(self._heads.watch(stages, max_await_time_ms=int(_LOOK_S * 1000)))
        async with stream:
            idle = 0.0
            while True:
                # the first look opens the stream: what was written before it has to be looked for
                change = await stream.try_next()
                if self.told != watched:
                    self.told = watched
                    self.wake(watched)
                if change is not None:
                    self.wake([change["documentKey"]["_id"]])
                    continue
                idle = 0.0 if self.watches else idle + _LOOK_S
                if idle >= _IDLE_S or (self.changed.is_set() and not self.watches.keys() <= watched):
                    return


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
