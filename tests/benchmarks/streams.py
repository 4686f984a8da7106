"""Events: many agents at once, and one at a time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from kode_core import ExtendedStore, Timeline
from tests.benchmarks.beds import Bed
from tests.benchmarks.measure import Report, Row
from tests.benchmarks.turns import an_event

AGENTS = 100
EVENTS = 400


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
    events: list[Timeline] = [an_event(seq) for seq in range(EVENTS)]

    async def agent(name: str) -> None:
        for i in range(0, EVENTS, 40):
            await store.append_events(name, events[i : i + 40])

    start = time.perf_counter()
    await asyncio.gather(*(agent(f"groups-{i:022d}") for i in range(AGENTS)))
    return AGENTS * EVENTS / (time.perf_counter() - start)


async def _one_at_a_time(store: ExtendedStore) -> float:
    start = time.perf_counter()
    for seq in range(500):
        await store.append_event("alone", an_event(seq))
    return 500 / (time.perf_counter() - start)


async def _floor(folder: Path, bed: Bed) -> float:
    """The bare driver, a thousand rows in a transaction, bodies made beforehand."""
    floor = await bed.new_floor(folder, "floor-events")
    bodies = ['{"text":"' + "x" * 150 + '"}'] * 1000
    start = time.perf_counter()
    for _ in range(20):
        await floor.events("agt", bodies)
    rate = 20_000 / (time.perf_counter() - start)
    await floor.close()
    return rate


async def run(report: Report, folder: Path, bed: Bed) -> None:
    """Measure event rates at the default durability."""
    report.title(f"Events of {AGENTS} concurrent agents, acknowledged and durable")
    async with bed.store(folder, "events") as store:
        await _rate(store, 40, "warm")
        alone = await _one_at_a_time(store)
        report.add(Row("append_event, one agent, one at a time", alone, "ev/s"))
        for at_once in (1, 10, 40):
            rate = max([await _rate(store, at_once, f"a{at_once}-{i}") for i in range(3)])
            target = bed.events_least if at_once == 40 else None
            report.add(
                Row(f"append_event, {at_once} in flight an agent", rate, "ev/s", None, "", target, at_least=True)
            )
        report.add(
            Row("  the same beside one at a time", rate, "ev/s", rate / alone, "one at a time", 10, at_least=True)
        )
        report.add(Row("append_events, groups of 40", await _groups(store), "ev/s"))
        report.add(Row(f"bare {bed.driver}, 1,000 rows a commit", await _floor(folder, bed), "ev/s"))
