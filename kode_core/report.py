"""Reports of a store about itself: metrics, health, consistency."""

from __future__ import annotations

import msgspec

from kode_core.model.base import Shown

__all__ = [
    "ConnectionUse",
    "ConsistencyCheckResult",
    "ConsistencyIssue",
    "MediumHealth",
    "OperationCounts",
    "Performance",
    "PruneResult",
    "RekeyResult",
    "RepairResult",
    "StorageSize",
    "StoreHealthStatus",
    "StoreMetrics",
]


class OperationCounts(Shown, frozen=True, kw_only=True):
    """The numbers of calls that succeeded, and of calls that ended with an error."""

    saves: int = 0
    loads: int = 0
    queries: int = 0
    deletes: int = 0
    errors: int = 0


class Performance(Shown, frozen=True, kw_only=True):
    """Latencies of successful calls in milliseconds; the percentiles cover the last 2,048."""

    avg_latency_ms: float = 0.0
    min_latency_ms: float = 0.0
    max_latency_ms: float = 0.0
    p50_latency_ms: float = 0.0
    p99_latency_ms: float = 0.0


class StorageSize(Shown, frozen=True, kw_only=True):
    """The contents of the store.

    Attributes:
        db_size_bytes: None if the backend cannot tell.
        texts_waiting: how many messages the index of texts does not have yet, which every search reads; None without
            such an index: a search then reads all messages that its other filters leave.
        texts_of_deleted: True if that index may still have parts of messages that were deleted, replaced or encrypted,
            until ``kode text-index rebuild``.
        texts_hidden: True if the database has such an index, and this store has no right to read it.
    """

    total_agents: int = 0
    total_messages: int = 0
    total_tool_calls: int = 0
    db_size_bytes: int | None = None
    texts_waiting: int | None = None
    texts_of_deleted: bool = False
    texts_hidden: bool = False


class ConnectionUse(Shown, frozen=True, kw_only=True):
    """The use of a store's connections to a server, now and since it was opened.

    Attributes:
        most: the most connections that calls may share.
        open: the connections that are open now, including the ones that listen for events.
        busy: the connections that calls are using now.
        waiting: the calls that wait for a connection now.
        retries: the attempts that were repeated since the store was opened: after a lost connection, after a conflict,
            or because another session kept a row locked.
    """

    most: int
    open: int
    busy: int
    waiting: int
    retries: int


class StoreMetrics(Shown, frozen=True, kw_only=True):
    """The result of ``get_metrics``; ``collected_at`` is in milliseconds since the epoch.

    ``connections`` is None if the backend has no connection pool, or does not count its use.
    """

    operations: OperationCounts
    performance: Performance
    storage: StorageSize
    collected_at: int
    connections: ConnectionUse | None = None


class MediumHealth(Shown, frozen=True, kw_only=True):
    """The state of one medium: whether it answers, its latency in milliseconds, and the problem if it does not."""

    ok: bool
    latency_ms: float | None = None
    problem: str | None = None


class StoreHealthStatus(Shown, frozen=True, kw_only=True):
    """The result of ``health_check``.

    Attributes:
        database: None if the store has no database.
        file_system: None if the store keeps no files of its own.
        problem: why the store as a whole cannot be used, for example because it is closed or does not open.
        checked_at: milliseconds since the epoch.
    """

    healthy: bool
    database: MediumHealth | None = None
    file_system: MediumHealth | None = None
    problem: str | None = None
    checked_at: int


class ConsistencyIssue(Shown, frozen=True):
    """One inconsistency.

    Attributes:
        code: ``corrupt_record``, ``count_disagrees``, ``cut_short``, ``half_done_delete``, ``half_done_fork``,
            ``orphaned_records``, ``repeated_offset``, ``stray_file``, ``result_without_use``, ``unknown_agent`` or
            ``use_without_result``.
        message: a sentence for a person.
    """

    code: str
    agent_id: str
    message: str


class RepairResult(Shown, frozen=True, kw_only=True):
    """The result of ``repair``.

    Attributes:
        finished: the number of unfinished writes, deletes and forks that it completed.
        removed: the number of places from which it removed leftovers.
        left: the number of failed attempts: another process was at work there, or the records are damaged.
    """

    finished: int = 0
    removed: int = 0
    left: int = 0


class PruneResult(Shown, frozen=True, kw_only=True):
    """The result of ``prune``: how many records of each kind it removed, or would remove in a dry run."""

    events: int = 0
    snapshots: int = 0
    history_windows: int = 0
    compression_records: int = 0
    recovered_files: int = 0


class RekeyResult(Shown, frozen=True, kw_only=True):
    """The result of ``rekey``.

    Attributes:
        agents: the agents that were looked at.
        records: the records that were put under the present key, or would be in a dry run.
        plain: of these, the records that were stored as plain text.
        left: the records that are not under the present key at the end, by the id of their key; ``plain`` for plain
            text. An old key may be dropped when it is not among them.
        unreadable: of the records that are left, the ones that cannot be read, by name; at most 100 names.
    """

    agents: int = 0
    records: int = 0
    plain: int = 0
    left: dict[str, int] = msgspec.field(default_factory=dict)
    unreadable: tuple[str, ...] = ()


class ConsistencyCheckResult(Shown, frozen=True, kw_only=True):
    """The result of ``check_consistency``; ``checked_at`` is in milliseconds since the epoch."""

    consistent: bool
    issues: tuple[ConsistencyIssue, ...]
    agents_checked: int
    checked_at: int
