"""A hundred copies of an agent."""

from __future__ import annotations

from tests.benchmarks.backends import Backend
from tests.benchmarks.measure import Report, Row, interleaved
from tests.benchmarks.workload import Agent, FloorAgent

FORKS = 100
MESSAGES = 1_000
ROUNDS = 2


async def run(report: Report, backend: Backend) -> None:
    """Measure milliseconds of a fork, of 100 made at once; the floor is INSERT ... SELECT in one transaction."""
    report.title(f"{FORKS} forks of an agent with {MESSAGES:,} messages and {MESSAGES // 4} tool calls")
    async with backend.pair() as (store, floors):
        floor = floors[backend.floors[0]]
        agent, bare = Agent(store, "agt-parent", MESSAGES), FloorAgent(floor, "agt-parent", MESSAGES)
        await agent.start()
        await bare.start()

        async def fork(_: int) -> None:
            await store.batch_fork(agent.id, FORKS)

        async def copy(i: int) -> None:
            await floor.fork(bare.id, [f"agt-{i}-{n:020d}" for n in range(FORKS)])

        times = await interleaved(ROUNDS, ours=fork, floor=copy)
    per_fork = {name: time * 1000 / FORKS for name, time in times.items()}
    ratio = times["ours"] / times["floor"]
    report.add(Row("batch_fork, each fork", per_fork["ours"], "ms", ratio, "the floor", 1.5))
    report.add(Row(f"  bare {backend.driver}, each copy", per_fork["floor"], "ms"))
