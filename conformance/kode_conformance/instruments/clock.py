"""A clock of this process that is set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

from kode_core import ids

__all__ = ["clock_off", "clock_still"]


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
