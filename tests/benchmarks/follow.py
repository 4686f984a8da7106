"""How soon an event that one process appends is with another that follows the agent."""

from __future__ import annotations

import asyncio
import statistics
import time

from kode_core import AgentEvent, Bookmark, ExtendedStore, Timeline
from tests.benchmarks.backends import Backend, opened
from tests.benchmarks.children import Child, answer, heard, job
from tests.benchmarks.measure import Report, Row

AGENT = "agt-followed"
EVENTS = 60
PAUSE_S = 0.03


def _event(seq: int) -> Timeline:
    """An event that knows when its append was called, by the clock that all processes share."""
    return Timeline(seq, Bookmark(seq, 0), AgentEvent("progress", "text_chunk", {"called": time.monotonic_ns()}))


async def _append(store: ExtendedStore, count: int) -> list[float]:
    """Milliseconds from each call to its acknowledgement."""
    times = []
    for seq in range(count):
        await asyncio.sleep(PAUSE_S)
        start = time.perf_counter()
        await store.append_event(AGENT, _event(seq))
        times.append((time.perf_counter() - start) * 1000)
    return times


async def run(report: Report, backend: Backend) -> None:
    """Measure milliseconds from the call of ``append_event`` to the event in the hands of a follower elsewhere."""
    report.title(f"Following an agent from another process: {EVENTS} events, one every {PAUSE_S * 1000:g} ms")
    async with backend.space() as options, opened(options) as store:
        await store.append_event(AGENT, _event(-1))
        async with Child.of(__spec__.name, {"options": options}) as child:
            asked = asyncio.ensure_future(child.ask("follow"))
            await asyncio.sleep(1)  # it is following by then
            appends = await _append(store, EVENTS)
            delays = await asked
    median, acknowledged = statistics.median(delays), statistics.median(appends)
    report.add(Row("append_event called, followed event received", median, "ms", median / acknowledged, "the append"))
    report.add(Row("  nine of ten within", sorted(delays)[len(delays) * 9 // 10], "ms"))
    report.add(Row("  append_event called, acknowledged", acknowledged, "ms"))


async def _delays(store: ExtendedStore) -> list[float]:
    delays: list[float] = []
    async for stored in store.follow_events(AGENT):
        if stored.bookmark.seq < 0:
            continue
        delays.append((time.monotonic_ns() - stored.event.data["called"]) / 1e6)
        if len(delays) == EVENTS:
            break
    return delays


async def _child() -> None:
    """The process that follows."""
    async with opened(job()["options"]) as store:
        answer("ready")
        async for _ in heard():
            answer(await _delays(store))


if __name__ == "__main__":
    asyncio.run(_child())
