"""Written by ``scripts/sync_methods.py`` from ``kode_core.protocols.extended.ExtendedStore``."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from kode_core.engine import Progress
from kode_core.report import ConsistencyCheckResult, ConsistencyIssue, StoreHealthStatus, StoreMetrics
from kode_core.sync.iterators import SyncIterator
from kode_core.sync.methods.queryable_store import QueryableStoreMethods

__all__ = ["ExtendedStoreMethods"]

_Ids: TypeAlias = list[str]
_Paths: TypeAlias = list[Path]


class ExtendedStoreMethods(QueryableStoreMethods):
    """The methods of :class:`~kode_core.ExtendedStore` for synchronous code."""

    def health_check(self) -> StoreHealthStatus:
        """Check whether the store can be used now. This never raises (OPS-1)."""
        return self._call(lambda store: store.health_check())

    def check_consistency(
        self, agent_id: str | None = None, *, progress: Progress | None = None
    ) -> ConsistencyCheckResult:
        """Read everything of one agent, or of all, and report inconsistencies (OPS-2). The check changes nothing.

        The deadline applies to each step, not to the whole (OPS-16); *progress* is called with the number of checked
        agents and their approximate total.
        """
        return self._call(lambda store: store.check_consistency(agent_id, progress=progress))

    def iter_consistency(
        self, agent_id: str | None = None, *, progress: Progress | None = None
    ) -> SyncIterator[ConsistencyIssue]:
        """Yield the issues of ``check_consistency`` as they are found, so that memory does not grow with the store."""
        return self._iterate(lambda store: store.iter_consistency(agent_id, progress=progress))

    def get_metrics(self) -> StoreMetrics:
        """The store's calls since it was opened, and the size of its contents (OPS-3)."""
        return self._call(lambda store: store.get_metrics())

    def batch_fork(self, agent_id: str, count: int) -> _Ids:
        """Make *count* copies of one instant of the agent and return their new ids (FORK-1).

        Raises:
            AgentNotFoundError: the agent has no info.
        """
        return self._call(lambda store: store.batch_fork(agent_id, count))

    def backup(self, target: str | Path, *, progress: Progress | None = None) -> _Paths:
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
        return self._call(lambda store: store.backup(target, progress=progress))
