"""Concurrent histories: clients of one instance, of two, and in other processes, and one order that explains them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.histories.clients import LOGS, REGISTERS, append_and_read, write_and_read
from kode_conformance.histories.linearize import Call, log_problem, offsets_problem, order_problem, register_problem
from kode_conformance.histories.objects import OBJECTS, change_and_read
from kode_conformance.histories.schedules import Schedule, interleaved
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.protocols import ExtendedStore

_CLIENTS = 4
_CALLS = 8
_PROCESSES = 3
_SCHEDULES = (Schedule.SHUFFLED, Schedule.STAGGERED, Schedule.SHUFFLED, Schedule.TOGETHER)


class _Race(NamedTuple):
    """One round: what the clients do, on which agent, each through which store, and how they are interleaved."""

    agent: str
    name: str
    schedule: Schedule
    stores: Sequence[ExtendedStore]

    def __str__(self) -> str:
        instances = "two instances" if len(set(map(id, self.stores))) > 1 else "one instance"
        return f"{self.name}, {_CLIENTS} clients of {instances}, {self.schedule}"


async def _races(ctx: Context, names: Sequence[str]) -> Iterator[_Race]:
    """Every name in every schedule on one instance and on two, again and again."""
    one, two = [ctx.store] * _CLIENTS, [ctx.store, await ctx.another()] * (_CLIENTS // 2)
    combinations = itertools.cycle(itertools.product(_SCHEDULES, (two, one), names))
    chosen = itertools.islice(combinations, ctx.effort.schedules * 4)
    races = (_Race(f"a{i}", name, schedule, stores) for i, (schedule, stores, name) in enumerate(chosen))
    return in_time(ctx, races)


Client = Callable[[int, random.Random], Awaitable[None]]


async def _run(ctx: Context, race: _Race, client: Client) -> None:
    rngs = [random.Random(ctx.rng.random()) for _ in range(_CLIENTS)]  # noqa: S311
    await interleaved(race.schedule, ctx.rng, [partial(client, number, rng) for number, rng in enumerate(rngs)])


@check(
    "MSG-1",
    "TC-1",
    "TODO-1",
    "MED-1",
    "SNAP-1",
    "INFO-1",
    "LIFE-3",
    "LIFE-4",
    "OPS-9",
    "QRY-8",
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.COMPANY, Dimension.INTERRUPTIONS, Dimension.INSTANCES),
)
async def concurrent_saves_have_one_order(ctx: Context) -> None:
    """Whatever clients save, load, delete and cancel at once, one order of the calls explains what they saw."""
    for race in await _races(ctx, tuple(REGISTERS)):
        calls: list[Call] = []

        async def client(number: int, rng: random.Random, race: _Race = race, calls: list[Call] = calls) -> None:
            register = REGISTERS[race.name]
            calls += await write_and_read(race.stores[number], race.agent, register, number, rng, _CALLS, cancel=True)

        await _run(ctx, race, client)
        problem = register_problem(calls)
        ctx.true(not problem, f"{race}: {problem}")


@check(
    "EVT-1",
    "EVT-2",
    "EVT-4",
    "MSG-3",
    "OPS-9",
    "QRY-8",
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.COMPANY, Dimension.INTERRUPTIONS, Dimension.INSTANCES),
)
async def concurrent_appends_make_one_log(ctx: Context) -> None:
    """Whatever clients append, read and cancel at once, nothing is lost, doubled or torn, and readers see it grow."""
    for race in await _races(ctx, tuple(LOGS)):
        log = _Log(race.name)

        async def client(number: int, rng: random.Random, race: _Race = race, log: _Log = log) -> None:
            store, kind = race.stores[number], LOGS[race.name]
            log.add(*await append_and_read(store, race.agent, kind, number, rng, _CALLS, cancel=True))

        await _run(ctx, race, client)
        await log.judge(ctx, race.agent, f"{race}")


@check(
    *("MSG-11", "VER-2", "INFO-4", "INFO-5", "DOC-2", "DOC-3", "FORK-4", "TURN-1", "MSG-3", "OPS-9", "QRY-8"),
    needs=Capability.EXTENDED,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.COMPANY, Dimension.INTERRUPTIONS, Dimension.INSTANCES),
)
async def concurrent_edits_have_one_order(ctx: Context) -> None:
    """Whatever clients append, pop, cut, replace, fork, create, update, put, demand, read and cancel at once, one order
    of the calls explains each of their answers: the popped messages, the versions, and the refusals.
    """
    names = [name for name, thing in OBJECTS.items() if keeps_documents() or not thing.has_documents]
    for race in await _races(ctx, names):
        calls: list[Call] = []
        await ctx.store.create_agent(race.agent, samples.info(race.agent, metadata={}))

        async def client(number: int, rng: random.Random, race: _Race = race, calls: list[Call] = calls) -> None:
            thing, store = OBJECTS[race.name], race.stores[number]
            calls += await change_and_read(store, race.agent, thing, number, rng, _CALLS, cancel=True)

        await _run(ctx, race, client)
        problem = order_problem(calls, OBJECTS[race.name].begin, OBJECTS[race.name].following)
        ctx.true(not problem, f"{race}: {problem}")


class _Log:
    """The calls of all clients of a log, and their results."""

    def __init__(self, name: str) -> None:
        self._kind = LOGS[name]
        self._calls: list[Call] = []
        self._offsets: list[tuple[int, int]] = []

    def add(self, calls: Sequence[Call], offsets: Sequence[tuple[int, int]]) -> None:
        """One client."""
        self._calls += calls
        self._offsets += offsets

    async def judge(self, ctx: Context, agent: str, what: str) -> None:
        """Compare with the log as it is now."""
        final, offsets = await self._kind.read(ctx.store, agent)
        problem = log_problem(self._calls, final, contiguous=self._kind.contiguous)
        problem = problem or offsets_problem(self._offsets, list(zip(final, offsets, strict=True)))
        ctx.true(not problem, f"{what}: {problem}")


@check(
    "MSG-1",
    "MSG-3",
    "EVT-1",
    "EVT-2",
    "QRY-8",
    needs=Capability.CROSS_PROCESS,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.PROCESSES, Dimension.COMPANY),
)
async def processes_agree_on_one_order(ctx: Context) -> None:
    """Whatever processes save, load, delete and append at once, one order of the calls explains what they saw."""
    calls = min(10 * ctx.effort.schedules, 400)
    gate = ctx.folder / "gate"
    seeds = [ctx.rng.getrandbits(32) for _ in range(_PROCESSES)]
    seconds = ctx.settings.pace
    processes = [await ctx.process("race", str(gate), i, seed, calls, seconds) for i, seed in enumerate(seeds)]
    for process in processes:
        await process.line()
    gate.touch()
    reports = [line for process in processes for line in await process.lines(60 + seconds)]
    for name in REGISTERS:
        problem = register_problem([Call(*call) for line in reports if line["name"] == name for call in line["calls"]])
        ctx.true(not problem, f"{name}, {_PROCESSES} processes: {problem}")
    for name in LOGS:
        log = _Log(name)
        for line in reports:
            if line["name"] == name:
                log.add([Call(*call) for call in line["calls"]], [(entry, offset) for entry, offset in line["offsets"]])
        await log.judge(ctx, name, f"{name}, {_PROCESSES} processes")
