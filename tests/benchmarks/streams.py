"""Events: many agents at once, and one at a time."""

from __future__ import annotations

import asyncio
import time

from kode_core import ExtendedStore
from tests.benchmarks.backends import Backend
from tests.benchmarks.floor import Floor
from tests.benchmarks.measure import Report, Row
from tests.benchmarks.workload import FloorAgent, an_event

AGENTS = 100
EVENTS = 400
ALONE = 300
_LEAST_OF_FLOOR = 0.6


async def _rate(store: ExtendedStore, at_once: int, prefix: str) -> float:
    """Acknowledged events a second, of 100 agents that each have *at_once* appends in flight."""
    events = [an_event(seq) for seq in range(EVENTS)]

    async def agent(name: str) -> None:
        for i in range(0, EVENTS, at_once):
            await asyncio.gather(*(store.append_event(name, event) for event in events[i : i + at_once]))

    start = time.perf_counter()
    await asyncio.gather(*(agent(f"{prefix}-{i:022d}") for i in range(AGENTS)))
    return AGENTS * EVENTS / (time.perf_counter() - start)


async def _groups(store: ExtendedStore) -> float:
    """The same with ``append_events``, forty at a time."""
    events = [an_event(seq) for seq in range(EVENTS)]

    async def agent(name: str) -> None:
        for i in range(0, EVENTS, 40):
            await store.append_events(name, events[i : i + 40])

    start = time.perf_counter()
    await asyncio.gather(*(agent(f"groups-{i:022d}") for i in range(AGENTS)))
    return AGENTS * EVENTS / (time.perf_counter() - start)


async def _one_at_a_time(store: ExtendedStore, name: str) -> float:
    start = time.perf_counter()
    for seq in range(ALONE):
        await store.append_event(name, an_event(seq))
    return ALONE / (time.perf_counter() - start)


async def _floor(floor: Floor, name: str) -> float:
    """The bare driver over one connection, a thousand rows in a commit, bodies made beforehand."""
    agent = FloorAgent(floor, name, 0)
    await agent.append_events(1000)
    start = time.perf_counter()
    for _ in range(20):
        await agent.append_events(1000)
    return 20_000 / (time.perf_counter() - start)


async def _floor_alone(floor: Floor) -> float:
    agent = FloorAgent(floor, "alone", 0)
    start = time.perf_counter()
    for _ in range(ALONE):
        await agent.append_events(1)
    return ALONE / (time.perf_counter() - start)


async def run(report: Report, backend: Backend) -> None:
    """Measure event rates at the default durability: events a second that were acknowledged, the best of three."""
    report.title(f"Events of {AGENTS} concurrent agents, acknowledged and durable")
    async with backend.pair() as (store, floors):
        floor = floors[backend.floors[-1]]
        await _rate(store, 40, "warm")
        bare = max([await _floor(floor, f"agt-{i}") for i in range(3)])
        bare_alone = await _floor_alone(floor)
        alone = max([await _one_at_a_time(store, f"alone-{i}") for i in range(2)])
        of = "the floor"
        report.add(Row("append_event, one agent, one at a time", alone, "ev/s", alone / bare_alone, of))
        rate = 0.0
        for at_once in (1, 10, 40):
            rate = max([await _rate(store, at_once, f"a{at_once}-{i}") for i in range(3)])
            target = backend.targets.events_a_second if at_once == 40 else None
            report.add(
                Row(f"append_event, {at_once} in flight an agent", rate, "ev/s", None, "", target, at_least=True)
            )
        report.add(
            Row("  the same beside one at a time", rate, "ev/s", rate / alone, "one at a time", 10, at_least=True)
        )
        report.add(
            Row("  the same beside bare rows", rate, "ev/s", rate / bare, "the floor", _LEAST_OF_FLOOR, at_least=True)
        )
        report.add(Row("append_events, groups of 40", await _groups(store), "ev/s"))
        report.add(Row(f"{backend.floors[-1]}, 1,000 rows a commit", bare, "ev/s"))
