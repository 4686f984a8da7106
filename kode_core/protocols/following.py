"""The stream of events that a follower reads."""

from __future__ import annotations

from typing import Protocol, Self, TypeVar

import msgspec

__all__ = ["EventStream", "Heartbeat"]

T_co = TypeVar("T_co", covariant=True)


class Heartbeat(msgspec.Struct, frozen=True, gc=False):
    """An item of ``follow_events(heartbeat_ms=…)`` that says: no event came for so long (EVT-9).

    Attributes:
        timestamp: the time of the store's clock, in milliseconds since the epoch.
        offset: the follower has handed out all events up to this offset that it was asked for; a later follower may go
            on with it as ``after_offset``.
    """

    timestamp: int
    offset: int


class EventStream(Protocol[T_co]):
    """The result of ``follow_events``: an async iterator without an end, for one reader at a time.

    A cancelled ``anext``, as by ``asyncio.wait_for`` or ``asyncio.timeout``, loses no event, and the next one goes on
    (EVT-9). A second ``anext`` while one is waiting raises InvalidArgumentError. An error leaves the stream where it
    was: after StoreUnavailableError a further ``anext`` looks again.
    """

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> T_co: ...

    async def aclose(self) -> None:
        """End the stream: an ``anext`` that is waiting, and all later ones, raise StopAsyncIteration.

        ``contextlib.aclosing`` calls it, also when the task is cancelled. A stream that is dropped without it keeps its
        subscription until it is garbage collected.
        """
        ...
