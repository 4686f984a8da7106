"""Shortening a failing history to the steps that make it fail."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from kode_conformance.histories.steps import Step
from kode_conformance.histories.vocabulary import REFUSED, VALUES, base_of, demand_of, run, runs_of

__all__ = ["Fails", "shortest"]

_FEW: Final = 6
"""The length up to which a history may become shorter with another value in its last step."""

Fails = Callable[[list[Step]], Awaitable[bool]]


async def shortest(steps: list[Step], fails: Fails, seconds: float) -> list[Step]:
    """A shorter history that still *fails*, as short as *seconds* allow."""
    until = time.monotonic() + seconds
    again = True
    while again:
        again = False
        for candidate in _shorter(steps):
            if time.monotonic() > until:
                return steps
            if await fails(candidate):
                steps, again = candidate, True
                break
    return steps


def _shorter(steps: list[Step]) -> Iterator[list[Step]]:
    """Simpler histories, the boldest first."""
    size = len(steps) // 2
    while size:
        for start in range(len(steps) - size, -1, -size):
            yield steps[:start] + steps[start + size :]
        size //= 2
    if len(steps) <= _FEW:
        for i in range(len(steps) - 1):
            for last in _others(steps[-1]):
                yield [*steps[:i], *steps[i + 1 : -1], last]
    for i, step in enumerate(steps):
        for simpler in _simpler(step):
            yield [*steps[:i], simpler, *steps[i + 1 :]]


def _others(step: Step) -> Iterator[Step]:
    """The step with another value of its kind."""
    if len(step.args) == 1 and isinstance(step.args[0], str):
        base, part = base_of(step.args[0]), step.args[0][len(base_of(step.args[0])) :]
        for name in VALUES:
            if name[0] == base[0] and name not in REFUSED:
                yield step._replace(args=(f"{name}{part}",))


def _simpler(step: Step) -> Iterator[Step]:
    if step.via:
        yield step._replace(via=0)
    if step.seen_by:
        yield step._replace(seen_by=0)
    if step.expect:
        yield step._replace(expect="")
    for i in range(len(step.named)):
        if step.op != "delete_many" or len(step.named) > 1:  # an empty filter is refused
            yield step._replace(named=(*step.named[:i], *step.named[i + 1 :]))
    for i, arg in enumerate(step.args):
        for shorter in _without_one(arg):
            yield step._replace(args=(*step.args[:i], shorter, *step.args[i + 1 :]))
    for i, (name, arg) in enumerate(step.named):
        for shorter in _without_one(arg):
            yield step._replace(named=(*step.named[:i], (name, shorter), *step.named[i + 1 :]))


def _without_one(arg: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(arg, tuple):
        for i, name in enumerate(arg):
            yield arg[:i] + arg[i + 1 :]
            if demand_of(name):
                yield (*arg[:i], base_of(name), *arg[i + 1 :])
            found = runs_of(name)
            if found is not None:
                kind, start, end = found
                for less in ((end - start) // 2, (end - start) // 8, 1):
                    if end - less > start:
                        yield (*arg[:i], run(kind, start, end - less), *arg[i + 1 :])
