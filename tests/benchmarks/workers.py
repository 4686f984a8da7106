"""Many workers on one database: each saves turns of its own agent, as fast as they are acknowledged."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack

from tests.benchmarks.backends import Backend, Options, floor_at, opened
from tests.benchmarks.children import Child, answer, heard, job
from tests.benchmarks.measure import Report, Row
from tests.benchmarks.workload import Agent, FloorAgent

WORKERS = 32
PROCESSES = 4
SECONDS = 1.0
ROUNDS = 3
OURS = "ours"
LENGTH = 100
"""How many messages each agent has at the beginning."""

Save = Callable[[int], Awaitable[None]]


async def turns_a_second(saves: Sequence[Save], duration: float) -> float:
    """How many turns are acknowledged in a second when all workers save at once."""
    start = time.perf_counter()

    async def work(save: Save) -> int:
        turns = 0
        while time.perf_counter() - start < duration:
            await save(turns)
            turns += 1
        return turns

    done = await asyncio.gather(*(work(save) for save in saves))
    return sum(done) / (time.perf_counter() - start)


async def workers_of(stack: AsyncExitStack, options: Options, who: str, names: Sequence[str]) -> dict[str, list[Save]]:
    """The ways in which agents of these names save their turns, in our store or on the floor that is called so."""
    agents: Sequence[Agent | FloorAgent]
    if who == OURS:
        store = await stack.enter_async_context(opened(options))
        agents = [Agent(store, name, LENGTH) for name in names]
    else:
        floor = await stack.enter_async_context(floor_at(options, who))
        agents = [FloorAgent(floor, name, LENGTH) for name in names]
    for agent in agents:
        await agent.start()
    return {
        "once": [agent.in_one_write for agent in agents],
        "steps": [agent.with_appends if isinstance(agent, Agent) else agent.as_the_sdk for agent in agents],
    }


async def run(report: Report, backend: Backend) -> None:
    """Measure turns a second: of tasks in one process, then of several processes."""
    report.title(f"{WORKERS} workers on one database, each saving turns of its own agent")
    names = [f"agt-{i:022d}" for i in range(WORKERS)]
    contestants = (OURS, *backend.floors)
    async with AsyncExitStack() as stack:
        saves = {}
        for who in contestants:
            options = await stack.enter_async_context(backend.space())
            saves[who] = await workers_of(stack, options, who, names)
        for way, label in (("once", "in one save_turn"), ("steps", "33 commits a turn")):
            rounds = [
                {who: await turns_a_second(saves[who][way], SECONDS) for who in contestants} for _ in range(ROUNDS)
            ]
            _tell(report, f"{WORKERS} tasks, {label}", rounds)
    await _processes(report, backend)


async def _processes(report: Report, backend: Backend) -> None:
    each = WORKERS // PROCESSES
    async with AsyncExitStack() as stack:
        teams: dict[str, list[Child]] = {}
        for who in (OURS, *backend.floors):
            options = await stack.enter_async_context(backend.space())
            teams[who] = []
            for process in range(PROCESSES):
                task = {"options": options, "who": who, "names": [f"agt-{process}-{i:020d}" for i in range(each)]}
                teams[who].append(await stack.enter_async_context(Child.of(__spec__.name, task)))
        rounds = [{who: await _together(team) for who, team in teams.items()} for _ in range(ROUNDS)]
    _tell(report, f"{PROCESSES} processes with {each} tasks, in one save_turn", rounds)


async def _together(team: Sequence[Child]) -> float:
    return sum(await asyncio.gather(*(child.ask("go") for child in team)))


def _tell(report: Report, name: str, rounds: Sequence[Mapping[str, float]]) -> None:
    """Turns a second: the median round of each, and the median of the rounds' ratios."""
    report.add(Row(name, statistics.median(rates[OURS] for rates in rounds), "turns/s"))
    for floor in [who for who in rounds[0] if who != OURS]:
        rate = statistics.median(rates[floor] for rates in rounds)
        ratio = statistics.median(rates[OURS] / rates[floor] for rates in rounds)
        report.add(Row(f"  {floor}", rate, "turns/s", ratio, "ours, beside it", round(1 / 1.5, 2), at_least=True))


async def _child() -> None:
    """One of the processes."""
    task = job()
    async with AsyncExitStack() as stack:
        saves = await workers_of(stack, task["options"], task["who"], task["names"])
        answer("ready")
        async for _ in heard():
            answer(await turns_a_second(saves["once"], SECONDS))


if __name__ == "__main__":
    asyncio.run(_child())
