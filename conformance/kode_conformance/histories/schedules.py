"""Ways to interleave the tasks of one event loop: together, staggered, and with every step of every task shuffled.

Tasks that merely start together meet in few of the orders that are possible. The shuffled schedule lets the loop run
the steps of tasks that are ready in a random order, by a queue in the place of the loop's own; a loop that has no such
queue, as uvloop has none, gets staggered starts in its stead.
"""

from __future__ import annotations

import asyncio
import functools
import random
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from typing import Any, Final

__all__ = ["Schedule", "interleaved", "pause", "shuffling_works"]

_TRIED_UP_TO: Final = (3, 14)
"""The newest Python with an event loop known to have such a queue."""


class Schedule(StrEnum):
    """How tasks are interleaved."""

    TOGETHER = "together"
    STAGGERED = "staggered"
    SHUFFLED = "shuffled"


async def interleaved(schedule: Schedule, rng: random.Random, clients: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run the clients at once; the first error ends all."""
    shuffled = schedule is Schedule.SHUFFLED and shuffling_works()
    starts = [0.0 if shuffled or schedule is Schedule.TOGETHER else rng.uniform(0, 0.003) for _ in clients]

    async def one(client: Callable[[], Awaitable[None]], start: float) -> None:
        if start:
            await asyncio.sleep(start)
        await client()

    with _shuffling(rng) if shuffled else nullcontext():
        tasks = [asyncio.ensure_future(one(client, start)) for client, start in zip(clients, starts, strict=True)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def pause(rng: random.Random) -> None:
    """Let others run, for a few steps or for a moment."""
    if rng.random() < 0.2:
        return await asyncio.sleep(rng.uniform(0, 0.001))
    for _ in range(rng.randint(0, 3)):
        await asyncio.sleep(0)
    return None


def shuffling_works() -> bool:
    """True if the running loop has a queue that can be replaced."""
    queue = getattr(asyncio.get_running_loop(), "_ready", None)
    return sys.version_info[:2] <= _TRIED_UP_TO and isinstance(queue, deque)


class _Queue(deque[Any]):
    """The handles that are ready. While it has an ``rng``, the steps of tasks come in a random order.

    Other handles, such as the callbacks of transports, keep their order; and no step overtakes the loop's own work for
    a socket before the task that waited for it goes on. The queue stays with its loop: a queue that is taken away could
    lose a handle that another thread was just putting into it. For the same reason it looks into the queue that it came
    in place of.
    """

    def __init__(self, before: deque[Any]) -> None:
        super().__init__()
        self.rng: random.Random | None = None
        self._before = before

    def __len__(self) -> int:
        while self._before:
            self.append(self._before.popleft())
        return super().__len__()

    def popleft(self) -> Any:
        if self.rng is None or not _is_step(self[0]):
            return super().popleft()
        count = super().__len__()  # by index: other threads may add at the end meanwhile
        end = next((i for i in range(count) if _is_of_a_socket(self[i])), count)
        place = self.rng.choice([i for i in range(end) if _is_step(self[i])])
        handle = self[place]
        del self[place]
        return handle


def _is_step(handle: Any) -> bool:
    return isinstance(getattr(getattr(handle, "_callback", None), "__self__", None), asyncio.Task)


def _is_of_a_socket(handle: Any) -> bool:
    callback = getattr(handle, "_callback", None)
    return isinstance(callback, functools.partial) and isinstance(
        getattr(callback.func, "__self__", None), asyncio.AbstractEventLoop
    )


@contextmanager
def _shuffling(rng: random.Random) -> Iterator[None]:
    loop: Any = asyncio.get_running_loop()
    if not isinstance(loop._ready, _Queue):
        loop._ready = _Queue(loop._ready)
    queue = loop._ready
    queue.rng = rng
    try:
        yield
    finally:
        queue.rng = None
