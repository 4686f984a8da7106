"""The metrics of a store's calls: counters and latencies (OPS-3), and the observers that plugins register."""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections import deque
from typing import Literal, NamedTuple

from kode_core.batch import Totals
from kode_core.engine import Engine
from kode_core.operation import Observer, Operation
from kode_core.report import ConnectionUse, OperationCounts, Performance, StorageSize, StoreMetrics

__all__ = ["CallMetrics", "Method"]

log = logging.getLogger("kode_core")

Group = Literal["saves", "loads", "queries", "deletes", "other"]

_WINDOW = 2048


class Method(NamedTuple):
    """A method of a store, as its calls are counted.

    Attributes:
        extra_seconds: how long it may take beyond the deadline.
        in_steps: the deadline applies to each step of it, not to the whole call (OPS-16).
    """

    name: str
    group: Group
    extra_seconds: float = 0.0
    in_steps: bool = False


class CallMetrics:
    """Counts calls. An observer that fails is reported once and does not fail the call."""

    def __init__(self, observers: tuple[Observer, ...] = ()) -> None:
        self._observers = observers
        self._backend = self._store = ""
        self._reported = False
        self._counts = dict.fromkeys(("saves", "loads", "queries", "deletes", "other", "errors"), 0)
        self._total = 0.0
        self._min = float("inf")
        self._max = 0.0
        self._recent: deque[float] = deque(maxlen=_WINDOW)

    def opened(self, engine: Engine) -> None:
        """Note the engine for the observers; one whose repr fails has an empty place."""
        if not self._observers:
            return
        self._backend = engine.name
        try:
            self._store = repr(engine)
        except Exception:
            log.exception("the repr of the engine %s failed; observers get no place of the contents", engine.name)

    def enter(
        self, method: Method, seconds: float, error: BaseException | None = None, *, agent_id: object = None
    ) -> None:
        """Note the end of a call; *agent_id* is what the caller gave, of any type."""
        if error is None:
            self.succeeded(method, seconds)
        else:
            self._counts["errors"] += 1
        if self._observers:
            self._tell(
                Operation(
                    name=method.name,
                    duration_ms=seconds * 1000,
                    error=None if error is None else type(error).__name__,
                    agent_id=agent_id if type(agent_id) is str else None,
                    backend=self._backend,
                    store=self._store,
                )
            )

    def succeeded(self, method: Method, seconds: float) -> None:
        self._counts[method.group] += 1
        self._total += seconds
        if seconds < self._min:
            self._min = seconds
        if seconds > self._max:
            self._max = seconds
        self._recent.append(seconds)

    def _tell(self, operation: Operation) -> None:
        for observer in self._observers:
            try:
                observer(operation)
            except (Exception, SystemExit, CancelledError):  # nothing is awaited here, so no caller cancelled it
                if not self._reported:
                    self._reported = True
                    log.exception("a kode_operation hook failed; further failures of hooks are not reported")

    def metrics(self, totals: Totals, connections: ConnectionUse | None, now: int) -> StoreMetrics:
        """The metrics so far."""
        counts = self._counts
        calls = sum(counts.values()) - counts["errors"]
        recent = sorted(self._recent)
        performance = Performance()
        if calls:
            performance = Performance(
                avg_latency_ms=self._total / calls * 1000,
                min_latency_ms=self._min * 1000,
                max_latency_ms=self._max * 1000,
                p50_latency_ms=recent[len(recent) // 2] * 1000,
                p99_latency_ms=recent[len(recent) * 99 // 100] * 1000,
            )
        return StoreMetrics(
            operations=OperationCounts(**{name: n for name, n in counts.items() if name != "other"}),
            performance=performance,
            storage=StorageSize(
                total_agents=totals.agents,
                total_messages=totals.messages,
                total_tool_calls=totals.tool_calls,
                db_size_bytes=totals.size_bytes,
            ),
            collected_at=now,
            connections=connections,
        )
