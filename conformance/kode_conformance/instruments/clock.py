"""A clock of this process that is set, and the clocks that a store may take its times from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple
from unittest import mock

from kode_conformance.values import samples
from kode_core import ids
from kode_core.model import now_ms
from kode_core.protocols import ExtendedStore

__all__ = ["Clocks", "clock_off", "clock_still", "clocks_of", "is_of_a_clock"]


class Clocks(NamedTuple):
    """A moment by this machine's clock and by the store's, in milliseconds: nothing says whose clock a store takes."""

    machine: int
    store: int


async def clocks_of(store: ExtendedStore) -> Clocks:
    """This moment. It appends a message to the agent ``clock``."""
    machine = now_ms()
    await store.append_messages("clock", samples.messages(1))
    return Clocks(machine, max([one.created_at async for one in store.read_messages("clock")], default=0))


def is_of_a_clock(time: int, before: Clocks, after: Clocks, *, slack: int = 0) -> bool:
    """Whether a time is between two moments by either clock."""
    return any(a - slack <= time <= b + slack for a, b in zip(before, after, strict=True))


@contextmanager
def clock_off(seconds: float) -> Iterator[None]:
    """Set the clock of this process so far ahead, or back, for all that asks ``time``; the loop has its own.

    New ids go on from the last one, whatever the clock says. After a clock that was ahead they begin from the time of
    before again: another process could not give ids in their order for as long as the clock was ahead.
    """
    now, now_ns = time.time, time.time_ns
    last = mock.patch.object(ids, "_last_id", ids._last_id) if seconds > 0 else nullcontext()
    with (
        last,
        mock.patch.object(time, "time", lambda: now() + seconds),
        mock.patch.object(time, "time_ns", lambda: now_ns() + int(seconds * 10**9)),
    ):
        yield


@contextmanager
def clock_still() -> Iterator[None]:
    """Stop the clock of this process for all that asks ``time``; the loop has its own."""
    now = time.time_ns()
    with (
        mock.patch.object(time, "time", lambda: now / 10**9),
        mock.patch.object(time, "time_ns", lambda: now),
    ):
        yield
