"""How long random checks go on: for as many rounds as the tier asks for, or until the time that it gives is used up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from kode_conformance.context import Context
from kode_conformance.settings import Tier

__all__ = ["in_time", "seconds_of"]

T = TypeVar("T")

_SECONDS: Final = {Tier.QUICK: 15.0, Tier.STANDARD: 60.0, Tier.THOROUGH: 600.0}
"""Well below the time that a check may take, so that a slow store gets fewer rounds and not a failure."""


def seconds_of(ctx: Context) -> float:
    """How long the tier lets a check go on that could go on for ever."""
    return _SECONDS[ctx.settings.tier]


def in_time(ctx: Context, rounds: Iterable[T], *, begun: float | None = None) -> Iterator[T]:
    """The rounds, at least the first, until the time of the tier is used up, since *begun* or since now."""
    until = (time.monotonic() if begun is None else begun) + seconds_of(ctx)
    for one in rounds:
        yield one
        if time.monotonic() > until:
            return
