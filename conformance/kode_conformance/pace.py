"""How long random checks go on: for as many rounds as the tier asks for, or until the time for them is used up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from kode_conformance.context import Context

__all__ = ["in_time"]

T = TypeVar("T")


def in_time(ctx: Context, rounds: Iterable[T], *, begun: float | None = None) -> Iterator[T]:
    """The rounds, at least the first, until the time for them is used up, since *begun* or since now."""
    until = (time.monotonic() if begun is None else begun) + ctx.settings.pace
    for one in rounds:
        yield one
        if time.monotonic() > until:
            return
