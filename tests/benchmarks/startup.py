"""A fresh process: importing, opening, and what is not imported.

Modules come from byte code, as they do where a program was installed: both contestants keep theirs in one folder, and
the first run of each, which makes it, is not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from tests.benchmarks.backends import Backend, Options
from tests.benchmarks.measure import Report, Row

_RUNS = 7
_BEFORE = """
import json, sys, time
import asyncio
OPTIONS = json.loads(sys.stdin.read())
base = time.perf_counter()
"""
_OURS = """
from kode_core import create_extended_store
imported = time.perf_counter()
async def main():
    async with create_extended_store(OPTIONS):
        return time.perf_counter()
"""
_BARE = """
import DRIVER
imported = time.perf_counter()
async def main():
BARE
    return time.perf_counter()
"""
_AFTER = """
opened = asyncio.run(main())
others = ("aiosqlite", "asyncpg", "motor", "pymongo", "aioboto3", "boto3", "typer", "rich", "pytest")
drivers = [name for name in others if name in sys.modules]
print(json.dumps({"imported": imported - base, "opened": opened - imported, "drivers": drivers}))
"""


def _run(script: str, options: Options, folder: str) -> dict[str, Any]:
    command = [sys.executable, "-c", _BEFORE + script + _AFTER]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environ = {**kept, "PYTHONPYCACHEPREFIX": folder}
    pipe = subprocess.PIPE
    done = subprocess.run(
        command, input=json.dumps(options), stdout=pipe, text=True, check=True, timeout=60, env=environ
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


async def run(report: Report, backend: Backend) -> None:
    """Measure fresh processes, in milliseconds; the first open makes the tables, the others find them."""
    report.title("A fresh process opens a store through the factory")
    bare = _BARE.replace("DRIVER", backend.driver).replace("BARE", backend.bare.strip("\n"))
    ours, floor = [], []
    async with backend.space() as options, backend.space() as new:
        with tempfile.TemporaryDirectory() as folder:
            for script in (_OURS, bare):
                _run(script, options, folder)
            first = _run(_OURS, new, folder)
            for _ in range(_RUNS):
                ours.append(_run(_OURS, options, folder))
                floor.append(_run(bare, options, folder))

    def median(runs: list[dict[str, Any]], what: str) -> float:
        return statistics.median(run[what] for run in runs) * 1000

    report.add(Row("import kode_core (beyond asyncio)", median(ours, "imported"), "ms"))
    report.add(Row(f"  import {backend.driver} (beyond asyncio)", median(floor, "imported"), "ms"))
    report.add(Row("find the plugin, import its driver, open", median(ours, "opened"), "ms"))
    report.add(Row("  the same the first time, making the tables", first["opened"] * 1000, "ms"))
    report.add(Row(f"  bare {backend.driver}: connect, ask, close", median(floor, "opened"), "ms"))
    whole, least = (median(runs, "imported") + median(runs, "opened") for runs in (ours, floor))
    report.add(Row("all of it, beside the bare driver", whole, "ms", whole / least, f"bare {backend.driver}", 2.0))
    print(f"drivers and tools imported by the store: {', '.join(first['drivers'])}")
    assert first["drivers"] == [backend.driver], "only the driver of the backend that is used may be imported"
