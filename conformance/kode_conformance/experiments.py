"""Running histories until one goes wrong, which is shortened and told as a program."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from kode_conformance.context import Context, Violation
from kode_conformance.histories import Step, history, told
from kode_conformance.machine import Finding, How, Machine
from kode_conformance.pace import in_time
from kode_conformance.programs import program
from kode_conformance.shrinking import shortest

__all__ = ["follow", "follow_the_model"]

_SHORTEN_SECONDS: Final = 10.0

Made = Callable[[Context, str, list[Any], How], Machine]


class _Trials:
    """Runs of histories on the stores of one check, each under a number of its own."""

    def __init__(self, ctx: Context, stores: list[Any], how: How) -> None:
        self.ctx = ctx
        self.stores = stores
        self.how = how
        self._numbers = itertools.count()

    def machine(self) -> Machine:
        return Machine(self.ctx, f"{next(self._numbers)}-", self.stores, self.how)

    async def finding(self, steps: Sequence[Step]) -> Finding | None:
        try:
            await self.machine().run(steps)
        except Finding as exc:
            return exc
        except Violation as exc:
            return Finding(str(exc))
        return None

    async def fails(self, steps: list[Step]) -> bool:
        return await self.finding(steps) is not None

    async def again(self, steps: Sequence[Step], finding: Finding, *, seeing: bool) -> bool:
        """Whether the look of a finding fails where nothing else, or only everything by id, is looked at before."""
        if finding.look is None:
            return False
        machine = Machine(self.ctx, f"{next(self._numbers)}-", self.stores, self.how)
        try:
            await machine.make(steps, seeing=seeing)
        except Exception:  # noqa: BLE001 - it is told by another history
            return False
        return await machine.judge(finding.via, finding.look) is not None


async def follow(ctx: Context, stores: list[Any], histories: Iterable[Sequence[Step]], how: How) -> None:
    """Run histories, as many as the time for them allows; the first that goes wrong is shortened and told.

    Raises:
        Violation: with the shortest history that was found, as a program.
    """
    trials = _Trials(ctx, stores, how)
    for steps in in_time(ctx, histories):
        found = await trials.finding(steps)
        if found is None:
            continue
        short = await shortest(list(steps), trials.fails, _SHORTEN_SECONDS)
        again = await trials.finding(short)
        if again is None:
            short, again = list(steps), Finding(f"{found} (not every time)", found.look, found.want, found.via)
        raise Violation(f"this history goes wrong at {again}\n{told(short)}\n{await _as_program(trials, short, again)}")


async def _as_program(trials: _Trials, steps: Sequence[Step], found: Finding) -> str:
    """The history and what is wrong after it as Python; what was read in between only where it needs to be."""
    return program(trials.ctx, trials.stores, steps, found, trials.how)


async def follow_the_model(
    ctx: Context, *, histories: int, more: Mapping[str, int] | None = None, how: How = How(), large: bool = False
) -> None:
    """Run random histories through two instances.

    Args:
        ctx: the check's context.
        histories: how many.
        more: weights of calls beyond those of every store, as in ``{"reopen": 3}``.
        how: much is looked at.
        large: some lists and bursts are longer than the usual limits.
    """
    stores = [ctx.store, await ctx.another()]
    made = (history(ctx.rng, ctx.effort.steps, more or {}, large=large) for _ in range(histories))
    await follow(ctx, stores, made, how)
