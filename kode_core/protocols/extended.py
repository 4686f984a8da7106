"""The protocol of stores for operators and for many workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeAlias, runtime_checkable

from kode_core.engine import Progress
from kode_core.protocols.locks import AgentLock
from kode_core.protocols.methods import to_be_implemented
from kode_core.protocols.queryable import QueryableStore
from kode_core.report import ConsistencyCheckResult, ConsistencyIssue, StoreHealthStatus, StoreMetrics

__all__ = ["ExtendedStore"]

_Ids: TypeAlias = list[str]  # the method ``list`` hides the builtin inside the classes
_Paths: TypeAlias = list[Path]


@runtime_checkable
@to_be_implemented
class ExtendedStore(QueryableStore, Protocol):
    """A store for operators and for many workers: health, metrics, locks, forks."""

    async def health_check(self) -> StoreHealthStatus:
        """Check whether the store can be used now. This never raises (OPS-1)."""
        ...

    async def check_consistency(
        self, agent_id: str | None = None, *, progress: Progress | None = None
    ) -> ConsistencyCheckResult:
        """Read everything of one agent, or of all, and report inconsistencies (OPS-2). The check changes nothing.

        The deadline applies to each step, not to the whole (OPS-16); *progress* is called with the number of checked
        agents and their approximate total.
        """
        ...

    def iter_consistency(
        self, agent_id: str | None = None, *, progress: Progress | None = None
    ) -> AsyncIterator[ConsistencyIssue]:
        """Yield the issues of ``check_consistency`` as they are found, so that memory does not grow with the store."""
        ...

    async def get_metrics(self) -> StoreMetrics:
        """The store's calls since it was opened, and the size of its contents (OPS-3)."""
        ...

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> AgentLock:
        """Take the lock of an agent: at most one holder over all tasks, processes and machines (LOCK-1).

        Use ``async with``, which renews the lease every third of *ttl_ms* and fences the writes inside. Awaited
        instead, it returns a lease that ends after *ttl_ms* unless ``renew()`` is called.

        The writes of this task are fenced while it is in the block. Tasks that were started inside are fenced for their
        whole life: their writes after the block raise LockLostError, unless they take the lock themselves (LOCK-7). An
        async generator whose steps run in different tasks passes ``fence=lease`` to its writes.

        Raises:
            LockUnavailableError: it was still held after *wait_ms*; or, at once, this task is inside the block of this
                lock, or was started there.
            StoreClosedError: the store was closed while the call waited.
        """
        ...

    async def batch_fork(self, agent_id: str, count: int) -> _Ids:
        """Make *count* copies of one instant of the agent and return their new ids (FORK-1).

        Raises:
            AgentNotFoundError: the agent has no info.
        """
        ...

    async def backup(self, target: str | Path, *, progress: Progress | None = None) -> _Paths:
        """Copy one instant of the store to *target*, a new file or folder, while the store is in use (OPS-16).

        A ``~`` is the home folder, and missing folders above *target* are created. The deadline applies to each step,
        not to the whole call; *progress* is called after each step, in units of the backend. If it fails or is
        cancelled, nothing is left of the copy.

        Returns:
            The paths of the copy: with ``file_store_base_dir`` also a folder next to the database's copy.

        Raises:
            UnsupportedError: the backend, such as the memory backend, cannot make backups.
            InvalidArgumentError: *target* exists, or another backup to it is running.
            StoreReadOnlyError: this process may not write the folder of *target*.
            StoreFullError: there is not enough room.
        """
        ...

    async def close(self) -> None:
        """Finish the accepted writes and release the store's resources; a second call does nothing (OPS-5)."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...
