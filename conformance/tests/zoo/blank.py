"""Stores that do nothing, to show whether a check looks at anything."""

from __future__ import annotations

import functools
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from kode_conformance import Handle, Space, StoreHarness

from kode_core import Store
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import Applied, Batch, Child, Fence, ListHead, ListRows, Outcome, Outline, Totals
from kode_core.codec import Body
from kode_core.engine import Engine
from kode_core.errors import (
    AgentNotFoundError,
    CorruptRecordError,
    InvalidArgumentError,
    InvalidValueError,
    LockLostError,
    LockUnavailableError,
    StorageError,
    StoreClosedError,
    StoreUnavailableError,
    UnsupportedError,
)
from kode_core.layers import Layer
from kode_core.query import AgentStats, Page
from kode_core.report import (
    ConsistencyCheckResult,
    OperationCounts,
    Performance,
    StorageSize,
    StoreHealthStatus,
    StoreMetrics,
)
from kode_core.store import EngineStore

ERRORS: dict[str, Callable[[], Exception]] = {
    "RuntimeError": lambda: RuntimeError("no"),
    "InvalidArgumentError": lambda: InvalidArgumentError("no"),
    "InvalidValueError": lambda: InvalidValueError("it", "$", "no"),
    "AgentNotFoundError": lambda: AgentNotFoundError("a"),
    "CorruptRecordError": lambda: CorruptRecordError("message 0 of agent 'a'", "no"),
    "LockLostError": lambda: LockLostError("a", "no"),
    "LockUnavailableError": lambda: LockUnavailableError("a", "no"),
    "StorageError": lambda: StorageError("no"),
    "StoreClosedError": lambda: StoreClosedError("no"),
    "StoreUnavailableError": lambda: StoreUnavailableError("no"),
    "UnsupportedError": lambda: UnsupportedError("no"),
}


class RaisingStore:
    """Raises the same error from every method but close."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def method(*_: Any, **__: Any) -> Any:
            return _Raises(self._error)

        return method

    async def close(self) -> None:
        return

    async def __aenter__(self) -> RaisingStore:
        raise self._error()

    async def __aexit__(self, *_: object) -> None:
        raise self._error()


class _Raises:
    """Raises when it is awaited, iterated or entered."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        self._error = error

    def __await__(self) -> Any:
        raise self._error()

    def __aiter__(self) -> Any:
        raise self._error()

    async def __aenter__(self) -> Any:
        raise self._error()

    async def __aexit__(self, *_: object) -> None:
        raise self._error()


class NullStore:
    """Takes everything, keeps nothing, and returns empties."""

    _offsets = itertools.count(1)
    _forks = itertools.count()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.startswith("list_document"):
            return lambda *_, **__: _gives(Page())
        if name.startswith(("load_", "list_", "last_")):
            one = name in ("load_todos", "load_snapshot", "load_info", "load_agent", "load_document", "last_bookmark")
            return functools.partial(_gives, None if one else [])
        if name.startswith(("query_",)):
            return lambda **_: _gives(Page())
        return functools.partial(_gives, None)

    async def append_event(self, *_: Any, **__: Any) -> int:
        return next(self._offsets)

    async def append_events(self, _: str, timelines: Sequence[Any], **__: Any) -> list[int]:
        return [next(self._offsets) for _ in timelines]

    def read_events(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        return _nothing()

    follow_events = iter_sessions = iter_messages = iter_tool_calls = iter_consistency = iter_documents = read_events

    async def exists(self, *_: Any) -> bool:
        return False

    async def list(self, *_: Any) -> Any:
        return []

    async def aggregate_stats(self, *_: Any) -> AgentStats:
        return AgentStats()

    async def delete_many(self, **_: Any) -> int:
        return 0

    async def health_check(self) -> StoreHealthStatus:
        return StoreHealthStatus(healthy=True, checked_at=0)

    async def check_consistency(self, *_: Any, **__: Any) -> ConsistencyCheckResult:
        return ConsistencyCheckResult(consistent=True, issues=(), agents_checked=0, checked_at=0)

    async def get_metrics(self) -> StoreMetrics:
        return StoreMetrics(
            operations=OperationCounts(), performance=Performance(), storage=StorageSize(), collected_at=0
        )

    def acquire_agent_lock(self, *_: Any, **__: Any) -> NullLease:
        return NullLease()

    async def batch_fork(self, _: str, count: int) -> Any:
        return [f"agt-{next(self._forks):020d}" for _ in range(count)]

    async def __aenter__(self) -> NullStore:
        return self

    async def __aexit__(self, *_: object) -> None:
        return


async def _gives(value: Any, /, *_: Any, **__: Any) -> Any:
    return [] if value == [] else value


async def _nothing() -> AsyncIterator[Any]:
    for never in ():
        yield never


class NullLease:
    """A lease of nothing."""

    agent_id = "a"
    token = 1
    is_lost = False

    def __await__(self) -> Any:
        return _gives(self).__await__()

    async def renew(self) -> None:
        return

    async def release(self) -> None:
        return

    async def __aenter__(self) -> NullLease:
        return self

    async def __aexit__(self, *_: object) -> None:
        return


class ForgetfulEngine(Layer):
    """Applies nothing; leases are given and never looked at."""

    def __init__(self) -> None:
        super().__init__(MemoryEngine())
        self._count = itertools.count(1)

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return [Applied(ListHead(1, 0), ListHead(1, 0), tuple(next(self._count) for _ in b.events)) for b in batches]

    async def rows(self, agent_id: str, kind: Any) -> ListRows:
        return ListRows(0, [])

    async def outline(self, agent_id: str, kind: Any, keys: Any = None) -> Outline:
        return Outline(1, 0, [])

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        return True

    async def totals(self) -> Totals:
        return Totals()

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return next(self._count)

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return True


# --- harnesses --------------------------------------------------------------------------------------------------------


class BlankHarness(StoreHarness):
    """A store that is nowhere."""

    async def provision(self, space: Space) -> Handle:
        return {"name": space.name}


class NullHarness(BlankHarness):
    """Of the NullStore."""

    name = "null"

    async def open(self, handle: Handle) -> Store:
        return NullStore()  # type: ignore[return-value]


class ForgetfulHarness(BlankHarness):
    """Of a store that checks all its arguments, and keeps nothing."""

    name = "forgetful"

    async def open(self, handle: Handle) -> Store:
        async def engine() -> Engine:
            return ForgetfulEngine()

        return await EngineStore(engine).open()


def raising(error: str) -> StoreHarness:
    """The harness of a store that raises *error*, which other processes find as ``Raises.<error>``."""
    harness: StoreHarness = getattr(Raises, error)()
    return harness


class Raises:
    """Harnesses by the error that their stores raise."""


def _harness(error: str) -> type[StoreHarness]:
    async def open_(self: StoreHarness, handle: Handle) -> Any:
        return RaisingStore(ERRORS[error])

    names = {"open": open_, "name": f"raises {error}", "__module__": __name__, "__qualname__": f"Raises.{error}"}
    return type(error, (BlankHarness,), names)


for _error in ERRORS:
    setattr(Raises, _error, _harness(_error))
