"""How long checks of many rounds go on, and how often those are tried again that a slow machine kept from judging.

Rounds go on for all rounds of the tier, or until their time is used up. A slow store makes fewer rounds, and never in
vain: the checks after the rounds must hold after any number of them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final, TypeVar

from kode_conformance.context import Context, Unverified, Violation

__all__ = ["Suspected", "TooSlow", "in_time", "judged", "sizes_in_time"]

T = TypeVar("T")

_BATCH: Final = 25
"""Fewer items than this take as long as this many: the number of calls counts, and not their size."""


def in_time(ctx: Context, rounds: Iterable[T], *, begun: float | None = None) -> Iterator[T]:
    """The rounds, at least the first, until the time for them is used up, since *begun* or since now."""
    until = (time.monotonic() if begun is None else begun) + ctx.settings.pace
    for one in rounds:
        yield one
        if time.monotonic() > until:
            return


def sizes_in_time(ctx: Context, sizes: Iterable[int]) -> Iterator[int]:
    """The numbers of items, at least the first, that can each be done in time at the pace of the one before.

    A store that writes two hundred items a second is not asked for ten thousand.
    """
    begun, takes, before = time.monotonic(), 0.0, _BATCH
    for size in sizes:
        started = time.monotonic()
        needs = takes * max(size, _BATCH) / max(before, _BATCH)
        if takes and started - begun + needs > ctx.settings.pace:
            continue
        yield size
        takes, before = time.monotonic() - started, size


class TooSlow(Exception):
    """A time was over that an attempt needed: a right store may do on such a machine what a faulty one does."""


class Suspected(TooSlow):
    """TooSlow, where only attempts with longer times tell a slow machine from a faulty store."""


_LONGER: Final = (1, 3, 9)


async def judged(attempt: Callable[[int], Awaitable[None]]) -> None:
    """Make an attempt; as long as it raises TooSlow, make others, whose times are three and nine times as long.

    An attempt is given how many times as long its times are, and takes other agents each time.

    Raises:
        Violation: the last attempt raised Suspected as well.
        Unverified: the longest times were too short.
    """
    for longer in _LONGER:
        try:
            return await attempt(longer)
        except TooSlow as exc:
            problem = exc
    if isinstance(problem, Suspected):
        raise Violation(str(problem))
    raise Unverified(f"this machine was too slow to tell, again and again: {problem}")
