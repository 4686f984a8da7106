"""Writes with given times: imported records keep the times of their source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from kode_core.model import now_ms

__all__ = ["clock", "dated", "message_time"]


class _Dates(NamedTuple):
    messages: Sequence[int]
    now: int


_dates: ContextVar[_Dates | None] = ContextVar("dates", default=None)


@contextmanager
def dated(messages: Sequence[int], now: int | None = None) -> Iterator[None]:
    """Date the writes inside: each message by its own time, everything else by *now*, or the time of the last message.

    Args:
        messages: the time of each message of the list that is saved, in milliseconds since the epoch. A message that is
            older than one before it gets the time of that one (MSG-4).
        now: the time of everything else, in the same unit.
    """
    times: list[int] = []
    for time in messages:
        times.append(max(time, times[-1]) if times else time)
    if now is None:
        now = times[-1] if times else now_ms()
    token = _dates.set(_Dates(times, now))
    try:
        yield
    finally:
        _dates.reset(token)


def clock() -> int:
    """The time of this task's writes, which is now unless they are dated."""
    dates = _dates.get()
    return now_ms() if dates is None else dates.now


def message_time(position: int, now: int) -> int:
    """The time of a message that is first saved at a position."""
    dates = _dates.get()
    return dates.messages[position] if dates is not None and position < len(dates.messages) else now
