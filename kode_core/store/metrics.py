"""The metrics of a store's calls: counters and latencies (OPS-3), and its observers (OPS-20)."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

from kode_core.batch import Totals
from kode_core.engine import Engine
from kode_core.operation import Load, Observer
from kode_core.report import ConnectionUse, OperationCounts, Performance, StorageSize, StoreMetrics
from kode_core.store.observing import Observed, Observing

__all__ = ["CallMetrics", "Method"]

T = TypeVar("T")

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
    """Counts calls, and lets observers surround them."""

    def __init__(self, observers: Sequence[Observer] = (), tenant: str | None = None) -> None:
        self._observing = Observing(observers, tenant) if observers else None
        self._counts = dict.fromkeys(("saves", "loads", "queries", "deletes", "other", "errors"), 0)
        self._total = 0.0
        self._min = float("inf")
        self._max = 0.0
        self._recent: deque[float] = deque(maxlen=_WINDOW)

    def opened(self, engine: Engine, load: Callable[[], Load | None]) -> Engine:
        """The engine as the store uses it: observers hear of it, of its load, and of what passes."""
        return engine if self._observing is None else self._observing.opened(engine, load)

    def begin(self, method: Method, agent_id: object, seconds: float = 0.0) -> Observed | None:
        """Note the start of a call, which took *seconds* already; :meth:`enter` takes the result."""
        return None if self._observing is None else self._observing.begin(method.name, agent_id, seconds)

    def iterated(self, name: str, agent_id: object, inner: AsyncIterator[T]) -> AsyncIterator[T]:
        """An iterator as observers see it."""
        return inner if self._observing is None else self._observing.iterated(name, agent_id, inner)

    def enter(
        self, method: Method, seconds: float, error: BaseException | None = None, observed: Observed | None = None
    ) -> None:
        """Note the end of a call; *agent_id* is what the caller gave, of any type."""
        if error is None:
            self.succeeded(method, seconds)
        else:
            self._counts["errors"] += 1
        if observed is not None and self._observing is not None:
            self._observing.end(observed, seconds, error)

    def succeeded(self, method: Method, seconds: float) -> None:
        self._counts[method.group] += 1
        self._total += seconds
        if seconds < self._min:
            self._min = seconds
        if seconds > self._max:
            self._max = seconds
        self._recent.append(seconds)

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
                texts_waiting=totals.texts_waiting,
                texts_of_deleted=totals.texts_of_deleted,
                texts_hidden=totals.texts_hidden,
            ),
            collected_at=now,
            connections=connections,
        )
