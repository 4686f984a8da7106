"""Many workers on one store, forks of a long agent, and how soon a follower in another process hears of an event."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from kode_core import ExtendedStore, Message, create_extended_store
from tests.benchmarks.beds import Bed, Floor
from tests.benchmarks.measure import Report, Row
from tests.benchmarks.turns import Agent, FloorAgent, an_event, an_info

WORKERS = 32
TURNS = 25
FORKS = 100
EVENTS = 40


async def _workers(store: ExtendedStore, attempt: int) -> float:
    """Turns a second of workers that each save the turns of an agent of their own."""
    agents = [Agent(store, f"worker-{attempt}-{i:02d}", 0) for i in range(WORKERS)]
    return await _timed(*(_turns(agent) for agent in agents))


async def _floor_workers(floor: Floor, attempt: int) -> float:
    agents = [FloorAgent(floor, 0, f"worker-{attempt}-{i:02d}") for i in range(WORKERS)]
    return await _timed(*(_turns(agent) for agent in agents))


async def _turns(agent: Agent | FloorAgent) -> None:
    for i in range(TURNS):
        await agent.in_one_write(i)


async def _timed(*workers: object) -> float:
    start = time.perf_counter()
    await asyncio.gather(*workers)  # type: ignore[call-overload]
    return WORKERS * TURNS / (time.perf_counter() - start)


async def _fork(store: ExtendedStore) -> float:
    """Milliseconds of a hundred forks of an agent with a thousand messages."""
    await store.save_turn(
        "parent", messages=[Message.user(f"message {i} " + "x" * 500) for i in range(1000)], info=an_info("parent", 0)
    )
    start = time.perf_counter()
    await store.batch_fork("parent", FORKS)
    return (time.perf_counter() - start) * 1000


_APPENDER = """
import asyncio, json, sys, time
from kode_core import create_extended_store
from tests.benchmarks.turns import an_event
async def main():
    async with create_extended_store(sys.argv[1]) as store:
        for seq in range(int(sys.argv[2])):
            await store.append_event("followed", an_event(seq))
            print(json.dumps(time.time()), flush=True)
            await asyncio.sleep(0.03)
asyncio.run(main())
"""


async def _delay(place: str) -> float:
    """The median milliseconds from an acknowledged append in another process to its arrival here."""
    arrived: list[float] = []
    async with create_extended_store(place) as store:
        following = store.follow_events("followed")
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _APPENDER, place, str(EVENTS), stdout=subprocess.PIPE
        )
        async for _ in following:
            arrived.append(time.time())
            if len(arrived) == EVENTS:
                break
        told, _ = await child.communicate()
    sent = [json.loads(line) for line in told.splitlines()]
    delays = [max(0.0, there - here) for here, there in zip(sent, arrived, strict=True)]
    return statistics.median(delays[5:]) * 1000


async def run(report: Report, folder: Path, bed: Bed) -> None:
    """Measure workers beside the floor, forks, and followers."""
    report.title(f"{WORKERS} workers, each saving turns of an agent of its own in one save_turn")
    floor = await bed.new_floor(folder, "floor-workers")
    async with bed.store(folder, "workers") as store:
        await store.append_event("warm", an_event(0))
        pairs = [(await _workers(store, i), await _floor_workers(floor, i)) for i in range(3)]
        rate, least = (statistics.median(rates) for rates in zip(*pairs, strict=True))
        report.add(Row("turns saved", rate, "tu/s", rate / least, "the floor", 1 / 1.5, at_least=True))
        report.add(Row(f"{FORKS} forks of an agent with 1,000 messages", await _fork(store), "ms"))
    await floor.close()
    delay = await _delay(await bed.place(folder, "followed"))
    report.add(Row("follow_events, from another process, median delay", delay, "ms", None, "", bed.follow_most))
