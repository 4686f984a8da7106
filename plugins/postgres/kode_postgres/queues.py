"""Waiting batches: one after the other for one agent, in groups for different agents."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator
from contextvars import copy_context
from enum import Enum, auto
from typing import Final

from kode_core.batch import Batch, Outcome
from kode_postgres.arguments import needs_lock

__all__ = ["QueuedBatch", "Queues"]

_AT_ONCE: Final = 500
_LOCKED_AT_ONCE: Final = 20
_BYTES_AT_ONCE: Final = 2**20


class Weight(Enum):
    """The way a batch is written; batches of one weight are written together."""

    LIGHT = auto()
    LARGE = auto()
    LOCKS = auto()


class QueuedBatch:
    """A waiting batch, and the future of its caller, which gets an outcome or an error to raise."""

    __slots__ = ("batch", "context", "done", "number", "size", "weight")

    _numbers = itertools.count()

    def __init__(self, batch: Batch, done: asyncio.Future[Outcome | Exception]) -> None:
        self.batch = batch
        self.done = done
        self.context = copy_context()
        self.number = next(self._numbers)
        self.size = _size(batch)
        self.weight = (
            Weight.LOCKS if needs_lock(batch) else Weight.LARGE if self.size > _BYTES_AT_ONCE else Weight.LIGHT
        )

    @property
    def is_heavy(self) -> bool:
        """True if it may take long."""
        return self.weight is not Weight.LIGHT

    def finish(self, outcome: Outcome | Exception) -> None:
        """Give the caller the outcome."""
        if not self.done.done():
            self.done.set_result(outcome)


def _size(batch: Batch) -> int:
    size = sum(len(event.body.text) for event in batch.events)
    size += sum(len(write.doc.body.text) for write in batch.docs if write.doc is not None)
    for write in (batch.messages, batch.tool_calls):
        if write is not None:
            size += sum(len(row.body.text) for _, row in write.put) + sum(len(row.body.text) for row in write.append)
    return size


class Queues:
    """The batches that wait to be written. For each agent, one batch at a time is ready or being written."""

    def __init__(self) -> None:
        self._ready: dict[Weight, deque[QueuedBatch]] = {weight: deque() for weight in Weight}
        self._behind: dict[str, deque[QueuedBatch]] = {}
        """The batches that wait for an earlier batch of their agent; an agent is a key as long as it has any batch."""

    def accept(self, item: QueuedBatch) -> None:
        """Add a batch to the end of its agent's queue."""
        behind = self._behind.get(item.batch.agent_id)
        if behind is None:
            self._behind[item.batch.agent_id] = deque()
            self._ready[item.weight].append(item)
        else:
            behind.append(item)

    def take(self, *, heavy: bool) -> list[QueuedBatch]:
        """The next batches that can be written together, of one weight and within limits; *heavy* allows heavy ones."""
        queues = [queue for weight, queue in self._ready.items() if queue and (heavy or weight is Weight.LIGHT)]
        if not queues:
            return []
        queue = min(queues, key=lambda one: one[0].number)
        group = [queue.popleft()]
        size, most = group[0].size, _LOCKED_AT_ONCE if group[0].weight is Weight.LOCKS else _AT_ONCE
        while queue and len(group) < most and size + queue[0].size <= _BYTES_AT_ONCE:
            group.append(queue.popleft())
            size += group[-1].size
        return group

    def next_after(self, item: QueuedBatch) -> bool:
        """Make the next batch of the agent ready after *item* was written; True if there is one."""
        behind = self._behind[item.batch.agent_id]
        if not behind:
            del self._behind[item.batch.agent_id]
            return False
        following = behind.popleft()
        self._ready[following.weight].append(following)
        return True

    def drain(self) -> Iterator[QueuedBatch]:
        """Remove and return all batches."""
        for queue in (*self._ready.values(), *self._behind.values()):
            while queue:
                yield queue.popleft()
