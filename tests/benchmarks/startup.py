"""A fresh process: importing, opening, and what is not imported."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Report, Row

_OURS = """
import time, sys; start = time.perf_counter()
import asyncio
base = time.perf_counter()
from kode_core import create_extended_store
imported = time.perf_counter()
async def main():
    async with create_extended_store("sqlite:///PATH") as store:
        return time.perf_counter()
opened = asyncio.run(main())
others = ("aiosqlite", "asyncpg", "motor", "pymongo", "aioboto3", "boto3", "typer", "rich", "pytest")
drivers = [name for name in others if name in sys.modules]
import json; print(json.dumps({"imported": imported - base, "opened": opened - imported, "drivers": drivers}))
"""
_FLOOR = """
import time, sys; start = time.perf_counter()
import asyncio
base = time.perf_counter()
import aiosqlite
imported = time.perf_counter()
async def main():
    async with aiosqlite.connect("PATH") as db:
        await db.execute("PRAGMA journal_mode = WAL")
        await (await db.execute("SELECT count(*) FROM sqlite_master")).fetchone()
        return time.perf_counter()
opened = asyncio.run(main())
import json; print(json.dumps({"imported": imported - base, "opened": opened - imported}))
"""


def _run(script: str, path: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", script.replace("PATH", str(path))],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


async def run(report: Report, folder: Path) -> None:
    """Measure fresh processes; the first open makes the tables, the others find them."""
    report.title("A fresh process opens an SQLite store through the factory")
    path = folder / "startup.db"
    first = _run(_OURS, path)
    ours = [_run(_OURS, path) for _ in range(7)]
    floor = [_run(_FLOOR, folder / "floor.db") for _ in range(7)]

    def median(runs: list[dict[str, Any]], what: str) -> float:
        return statistics.median(run[what] for run in runs) * 1000

    report.add(Row("import kode_core (beyond asyncio)", median(ours, "imported"), "ms"))
    report.add(Row("  import aiosqlite (beyond asyncio)", median(floor, "imported"), "ms"))
    report.add(Row("find the plugin, import its driver, open and close", median(ours, "opened"), "ms"))
    report.add(Row("  the same the first time, making the tables", first["opened"] * 1000, "ms"))
    report.add(Row("  bare aiosqlite: open and close", median(floor, "opened"), "ms"))
    print(f"drivers and tools imported by the store: {', '.join(first['drivers'])}")
    assert first["drivers"] == ["aiosqlite"], "only the driver of the backend that is used may be imported"
