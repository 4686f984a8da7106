"""Timing, and the table and file that results go to."""

from __future__ import annotations

import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Report", "Row", "interleaved", "seconds"]


async def seconds(run: Callable[[int], Awaitable[object]], i: int = 0) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    await run(i)
    return time.perf_counter() - start


@contextmanager
def _frozen() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def interleaved(rounds: int, **contestants: Callable[[int], Awaitable[object]]) -> dict[str, float]:
    """The median seconds of each, called in turns so that a noisy machine is noisy for all.

    Each round begins with another one, so that nobody always comes after one who leaves the disk busy. What was made
    for the measurement, perhaps by others, is kept from Python's garbage collector, which would go through it again
    and again in the time of who makes the most objects.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    with _frozen():
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                times[name].append(await seconds(contestants[name], i))
    return {name: statistics.median(values) for name, values in times.items()}


@dataclass
class Row:
    """One measurement.

    Attributes:
        ratio: to what the target speaks of, as named in ``of``.
        target: the most (or, with ``at_least``, the least) that the ratio or value should be.
        backend: what it was measured on; the report knows.
    """

    name: str
    value: float
    unit: str
    ratio: float | None = None
    of: str = ""
    target: float | None = None
    at_least: bool = False
    backend: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None without one."""
        if self.target is None:
            return None
        measured = self.value if self.ratio is None else self.ratio
        return measured >= self.target if self.at_least else measured <= self.target


@dataclass
class Report:
    """All measurements of a run.

    Attributes:
        backend: the one that is being measured.
        versions: of the backends and of what they are compared with.
    """

    rows: list[Row] = field(default_factory=list)
    backend: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Keep a row and print it."""
        row.backend = self.backend
        self.rows.append(row)
        ratio = "" if row.ratio is None else f"{row.ratio:6.2f} x {row.of}"
        verdict = {None: "", True: "ok", False: "MISSED"}[row.met]
        sign = ">=" if row.at_least else "<="
        target = "" if row.target is None else f"{sign} {row.target:,g}"
        print(f"{row.name:58} {row.value:12,.2f} {row.unit:7} {ratio:34} {target:10} {verdict}", flush=True)

    def title(self, text: str) -> None:
        """A line between parts."""
        print(f"\n{self.backend}: {text}", flush=True)

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(exist_ok=True)
        machine = {
            "python": sys.version.split()[0],
            **self.versions,
            "platform": platform.platform(),
            "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        rows = [{**asdict(row), "met": row.met} for row in self.rows]
        path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
        print(f"\nresults: {path}")
