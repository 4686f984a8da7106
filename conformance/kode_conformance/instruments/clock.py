"""A clock of this process that is set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

__all__ = ["clock_off"]


@contextmanager
def clock_off(seconds: float) -> Iterator[None]:
    """Set the clock of this process so far ahead, or back, for all that asks ``time``; the loop has its own."""
    now, now_ns = time.time, time.time_ns
    with (
        mock.patch.object(time, "time", lambda: now() + seconds),
        mock.patch.object(time, "time_ns", lambda: now_ns() + int(seconds * 10**9)),
    ):
        yield
