"""Running histories until one goes wrong, which is shortened and told as a program."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from kode_conformance.context import Context, Violation, prepared
from kode_conformance.harness import keeps_documents, load_harness
from kode_conformance.histories.changes import full_state
from kode_conformance.histories.findings import GOES_WRONG, NOT_ALWAYS, Finding, How
from kode_conformance.histories.leases import Leases
from kode_conformance.histories.machine import Machine
from kode_conformance.histories.making import DOCUMENTS, EDITS, history
from kode_conformance.histories.programs import RULER, Program
from kode_conformance.histories.shrinking import shortest
from kode_conformance.histories.steps import Step, listed
from kode_conformance.histories.translation import made_up
from kode_conformance.histories.vocabulary import demand_of
from kode_conformance.instruments.pace import in_time
from kode_conformance.processes.remote import another_process

__all__ = ["follow", "follow_the_model", "newer_calls", "replay"]

_SHORTEN_SECONDS = 10.0
_SOON_S: Final = 1.0
"""How long a follower may see nothing while a history is shortened."""
_MORE_RUNS: Final = 2
"""How often a shortened history has to fail again to be one that always does."""
_STEPS: Final = "steps = ["
"""A mark of programs that name the values of a history without their definitions."""
_SIMPLY: Final = How()


class _Trials:
    """Runs of histories on the stores of one check, each under a number of its own."""

    def __init__(self, ctx: Context, stores: list[Any], how: How) -> None:
        self.ctx = ctx
        self._stores = stores
        self._how = how
        self._numbers = itertools.count()

    def machine(self, how: How | None = None) -> Machine:
        """A new one."""
        return Machine(self.ctx, f"{next(self._numbers)}-", self._stores, how or self._how)

    async def run(self, steps: Sequence[Step], how: How | None = None) -> tuple[Machine, Finding | None]:
        """The machine that made the steps, and its finding."""
        machine = self.machine(how)
        try:
            await machine.run(steps)
        except Finding as exc:
            return machine, exc
        except Violation as exc:
            return machine, Finding(str(exc))
        return machine, None

    async def shortest(self, steps: Sequence[Step], found: Finding) -> list[Step]:
        """A shorter history with the same kind of finding."""
        how = self._how._replace(follow=min(self._how.follow, _SOON_S))

        async def fails(steps: list[Step]) -> bool:
            _, again = await self.run(steps, how)
            return again is not None and again.kind == found.kind

        return await shortest(list(steps), fails, _SHORTEN_SECONDS)

    async def program(self, steps: Sequence[Step], machine: Machine, found: Finding) -> str:
        """The history as Python, in the simplest way that goes wrong: without looking at anything in between, looking
        at everything by id, or by the machine itself.
        """
        spec = self.ctx.harness.spec
        if any(step.via > 1 or step.fence or step.expect or step.op in Leases.OPS for step in steps) or any(
            demand_of(name) for step in steps for name in step.names()
        ):
            return replayed(spec, steps, self._how)
        if found.look is None:
            return self._of_a_call(machine, found) or replayed(spec, steps, self._how)
        for seeing in (False, True):
            again = self.machine(How(queries=self._how.queries))
            try:
                await again.make(machine_steps(machine), seeing=seeing)
                wrong = await again.judge(found.via, found.look, machine)
            except Exception:  # noqa: BLE001, S112 - it goes wrong in another way, and that is another finding
                continue
            if wrong is None or wrong.look is None or not wrong.is_plain:
                continue
            asked = made_up(wrong.look, again)
            if asked is not None:
                program = Program(spec, again.prefix, again.forks, seeing=seeing)
                return str(program.make(again.made).look(wrong.look, wrong.want, wrong.via, asked))
        return replayed(spec, steps, self._how)

    def _of_a_call(self, machine: Machine, found: Finding) -> str:
        """The program of a call that ends with an error, or with none where there must be one; or of times."""
        program = Program(self.ctx.harness.spec, machine.prefix, machine.forks, seeing=False)
        if found.is_of_the_call:
            return str(program.make(machine.made))
        if not found.is_of_times or not machine.made:
            return ""
        agent = program.agent(machine.made[-1].step.agent)
        before = f"before = await stamped(store, {agent})"
        after = [
            before.replace("before", "after", 1),
            "found = times_problem(*before, *after)",
            'assert not found, f"{found}\\nbefore: {before}\\nafter:  {after}"',
        ]
        return str(program.make(machine.made).around_the_last([before], after))


def machine_steps(machine: Machine) -> list[Step]:
    """The steps that a machine made."""
    return [made.step for made in machine.made]


def replayed(spec: str, steps: Sequence[Step], how: How) -> str:
    """A program that lets the machine itself make the steps."""
    lines = ",\n    ".join(map(_short, steps))
    return f"""\
import asyncio

from kode_conformance.histories.experiments import replay
from kode_conformance.histories.findings import How
from kode_conformance.histories.steps import Step

{_STEPS}
    {lines},
]
asyncio.run(replay({spec!r}, steps, {_short(how)}))
"""


def _short(given: Any) -> str:
    """A step, or how to look, as Python, without the arguments that have their defaults."""
    usual = type(given)._field_defaults
    fields = (f"{name}={value!r}" for name, value in given._asdict().items() if usual.get(name, ...) != value)
    return f"{type(given).__name__}({', '.join(fields)})"


async def replay(spec: str, steps: Sequence[Step], how: How) -> None:
    """Make the steps of a history on a new store, and raise a Violation where it goes wrong."""
    async with prepared(load_harness(spec)) as ctx:
        stores: list[Any] = [ctx.store, await ctx.another()]
        if any(step.via > 1 or step.seen_by > 1 for step in steps):
            stores.append(await another_process(ctx.harness, ctx.handle))
        try:
            await Machine(ctx, "", stores, how).run(steps)
        finally:
            for store in stores[2:]:
                await store.close()


async def follow(ctx: Context, stores: list[Any], histories: Iterable[Sequence[Step]], how: How) -> None:
    """Run histories, as many as the time for them allows; the first that goes wrong is shortened and told.

    Raises:
        Violation: with the shortest history that was found, as a program.
    """
    trials = _Trials(ctx, stores, how)
    for steps in in_time(ctx, histories):
        _, found = await trials.run(steps)
        if found is None:
            continue
        short = await trials.shortest(steps, found)
        machine, again = await trials.run(short)
        if again is None:
            raise Violation(f"{GOES_WRONG} {found} {NOT_ALWAYS}\n{listed(steps)}")
        always = all([(await trials.run(short))[1] is not None for _ in range(_MORE_RUNS)])
        program = (await trials.program(short, machine, again)).strip()
        raise Violation(
            f"{GOES_WRONG} {again}{'' if always else f' {NOT_ALWAYS}'}\n{listed(short, values=_STEPS in program)}\n\n"
            f"As a program:\n\n{RULER}\n{program}\n{RULER}"
        )


def newer_calls(ctx: Context) -> Mapping[str, int]:
    """The further calls of an extended store that this one has, and their weights; none if it is no such store."""
    if "EXTENDED" in ctx.harness.lacks:
        return {}
    return {**EDITS, **DOCUMENTS} if keeps_documents() else EDITS


async def follow_the_model(
    ctx: Context,
    *,
    histories: int,
    more: Mapping[str, int] | None = None,
    newer: Mapping[str, int] | None = None,
    newer_ones: int | None = None,
    how: How = _SIMPLY,
    full: bool = False,
    large: bool = False,
) -> None:
    """Run random histories through two instances.

    Args:
        ctx: the check's context.
        histories: how many.
        more: weights of additional calls, as in ``{"reopen": 3}``.
        newer: weights of further calls of extended stores; a history has one to three of them.
        newer_ones: how many histories with these calls follow the others; None if all have them.
        how: how much to look at the store.
        full: True if some agents have some of everything from the beginning.
        large: True if some lists and bursts are longer than the usual limits.
    """
    stores = [ctx.store, await ctx.another()]
    if newer:
        how = how._replace(versions=True, documents=not newer.keys().isdisjoint(DOCUMENTS))

    def made() -> Iterator[list[Step]]:
        for i in range(histories + (newer_ones or 0 if newer else 0)):
            mine = newer if newer_ones is None or i >= histories else None
            steps = history(ctx.rng, ctx.effort.steps, more or {}, newer=mine, large=large)
            yield [*full_state(steps[0].agent), *steps] if full else steps

    await follow(ctx, stores, made(), how)
