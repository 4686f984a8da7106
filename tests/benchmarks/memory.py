"""What a process holds in memory after it wrote and read many agents, and after it deleted them (OPS-14)."""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from kode_core import ExtendedStore, Message, ToolResultBlock
from tests.benchmarks.backends import Backend, opened
from tests.benchmarks.children import Child, answer, heard, job
from tests.benchmarks.measure import Report, Row

AGENTS = 2_000
"""How many; ``agents=200`` in ``ARGS`` for a quick run."""
_AT_ONCE = 100
_LIMIT_MB = 64


async def run(report: Report, backend: Backend) -> None:
    """Measure resident memory beyond what the process had before, in MB. The store's own limit is 64 MiB."""
    report.title(f"Resident memory of a process with {AGENTS:,} agents of 1 MB each")
    async with backend.space() as options, Child.of(__name__, {"options": options}) as child:
        for verb, name in (("write", "written"), ("read", "and read"), ("delete", "and deleted")):
            held = 0.0
            for start in range(0, AGENTS, _AT_ONCE):
                held = await child.ask({"verb": verb, "start": start, "end": min(start + _AT_ONCE, AGENTS)})
            report.add(Row(f"{AGENTS:,} agents {name}", held, "MB", target=2 * _LIMIT_MB))


def _resident() -> float:
    """The memory that this process has, in MB; where the system does not tell, the most that it ever had."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


async def _do(store: ExtendedStore, verb: str, agents: range) -> None:
    for i in agents:
        if verb == "write":
            lines = [{"line": n, "text": f"{i} " + "x" * 70} for n in range(10_000)]
            await store.append_messages(f"agt-{i:05d}", [Message("user", [ToolResultBlock("c", {"lines": lines})])])
        elif verb == "read":
            await store.load_messages(f"agt-{i:05d}")
        else:
            await store.delete(f"agt-{i:05d}")


async def _work(options: dict[str, Any], told: AsyncIterator[Any]) -> None:
    async with opened(options) as store:
        before = _resident()
        answer("ready")
        async for task in told:
            await _do(store, task["verb"], range(task["start"], task["end"]))
            gc.collect()
            answer(_resident() - before)


if __name__ == "__main__":
    asyncio.run(_work(job()["options"], heard()))
