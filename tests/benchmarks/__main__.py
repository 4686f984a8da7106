"""``make bench``: all measurements, or some: names of backends (sqlite, postgres), and of parts, as arguments."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import searches, startup, streams, turns, workers
from tests.benchmarks.beds import BEDS
from tests.benchmarks.measure import Report

PARTS = {"turns": turns, "streams": streams, "workers": workers, "searches": searches}


async def main(beds: list[str], parts: list[str]) -> int:
    report = Report()
    print("Default durability. Ratios tell; milliseconds are this machine's, today.")
    with tempfile.TemporaryDirectory(prefix="kode-bench-") as folder:
        if "startup" in parts:
            await startup.run(report, Path(folder))
        for name in beds:
            report.title(f"=== {BEDS[name].title}")
            for part in (part for part in parts if part != "startup"):
                await PARTS[part].run(report, Path(folder), BEDS[name])
    report.save(Path("bench/results.json"))
    missed = [row.name.strip() for row in report.rows if row.met is False]
    print(f"targets missed: {', '.join(missed) or 'none'}")
    return 0


if __name__ == "__main__":
    chosen = sys.argv[1:]
    names = ["startup", *PARTS]
    unknown = [name for name in chosen if name not in (*BEDS, *names)]
    if unknown:
        sys.exit(f"no such backend or part: {unknown[0]}; there are {', '.join((*BEDS, *names))}")
    sys.exit(asyncio.run(main([n for n in BEDS if n in chosen] or [*BEDS], [n for n in names if n in chosen] or names)))
