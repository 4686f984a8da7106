"""An observer: how long calls take and how many fail, as a histogram in the text format of Prometheus."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict

from kode_core.plugins import Operation, hookimpl

BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 30_000)


class Latencies:
    """Counts the calls of every store of the process, by backend, operation, outcome and duration."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # stores of several event loops may live in several threads
        self._counts: defaultdict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0] * (len(BOUNDS_MS) + 1))
        self._sums: defaultdict[tuple[str, str, str], float] = defaultdict(float)

    @hookimpl
    def kode_operation(self, operation: Operation) -> None:
        key = (operation.backend, operation.name, operation.error or "none")
        with self._lock:
            self._counts[key][bisect_left(BOUNDS_MS, operation.duration_ms)] += 1
            self._sums[key] += operation.duration_ms

    def text(self) -> str:
        """The text that a scrape gets."""
        lines = ["# TYPE kode_operation_ms histogram"]
        with self._lock:
            for (backend, name, error), counts in sorted(self._counts.items()):
                labels = f'backend="{backend}",operation="{name}",error="{error}"'
                below = 0
                for bound, count in zip((*map(str, BOUNDS_MS), "+Inf"), counts, strict=True):
                    below += count
                    lines.append(f'kode_operation_ms_bucket{{{labels},le="{bound}"}} {below}')
                lines.append(f"kode_operation_ms_sum{{{labels}}} {self._sums[backend, name, error]:.3f}")
                lines.append(f"kode_operation_ms_count{{{labels}}} {below}")
        return "\n".join(lines) + "\n"


of_this_process = Latencies()
