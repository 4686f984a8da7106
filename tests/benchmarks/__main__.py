"""``make bench``: all measurements, or those named as arguments: turns, streams, searches, startup."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import searches, startup, streams, turns
from tests.benchmarks.measure import Report

PARTS = {"startup": startup, "turns": turns, "streams": streams, "searches": searches}


async def main(names: list[str]) -> int:
    report = Report()
    print("SQLite, default durability (WAL, synchronous=FULL). Ratios tell; milliseconds are this machine's, today.")
    for name in names:
        with tempfile.TemporaryDirectory(prefix="kode-bench-") as folder:
            await PARTS[name].run(report, Path(folder))
    report.save(Path("bench/results.json"))
    missed = [row.name.strip() for row in report.rows if row.met is False]
    print(f"targets missed: {', '.join(missed) or 'none'}")
    return 0


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(PARTS)
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        sys.exit(f"no such part: {unknown[0]}; there are {', '.join(PARTS)}")
    sys.exit(asyncio.run(main(chosen)))
