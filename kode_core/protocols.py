"""The public interface of stores, in three layers: Store, QueryableStore, ExtendedStore.

``create_store`` and ``create_extended_store`` return an object that implements all of it. A store of your own may
implement one of these protocols directly, or be an :class:`kode_core.engine.Engine`, from which the core makes a
complete ExtendedStore. A subclass of a protocol that leaves out one of its methods cannot be instantiated; a class that
only has the methods is a store as well. Clause numbers refer to ``docs/contract.md``.

Rules for every method:

- Bad arguments raise InvalidArgumentError, values that JSON cannot carry raise InvalidValueError; nothing is written.
- A closed store raises StoreClosedError. Failing storage raises a subclass of StorageError, never the driver's own.
- When an awaited write returns, it is durable (DUR-1). A cancelled write happened completely or not at all (OPS-9).
- Loads of records that do not exist return an empty list or None, and leave no trace.
- ``fence`` takes the lease that protects a write: if the lease has ended, the write raises LockLostError and
  changes nothing. Inside ``async with store.acquire_agent_lock(...)`` this happens automatically (LOCK-5).
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import FunctionType, TracebackType
from typing import Protocol, Self, TypeAlias, TypeVar, Unpack, runtime_checkable

from kode_core.engine import Progress
from kode_core.model import (
    AgentChannel,
    AgentInfo,
    Bookmark,
    CompressionRecord,
    HistoryWindow,
    MediaCacheRecord,
    Message,
    RecoveredFile,
    Snapshot,
    StoredEvent,
    StoredMessage,
    StoredToolCall,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
)
from kode_core.query import AgentStats, MessageFilter, Page, SessionFilter, SessionInfo, ToolCallFilter
from kode_core.report import ConsistencyCheckResult, ConsistencyIssue, StoreHealthStatus, StoreMetrics

__all__ = ["AgentLock", "ExtendedStore", "Lease", "QueryableStore", "Store"]

_Ids: TypeAlias = list[str]  # the method ``list`` hides the builtin inside the classes
_Paths: TypeAlias = list[Path]


class Lease(Protocol):
    """A lock on one agent, held until it is released or its time runs out (LOCK-3)."""

    @property
    def agent_id(self) -> str:
        """The agent."""
        ...

    @property
    def token(self) -> int:
        """Grows with every lease of the agent: a resource outside the store can refuse smaller tokens (LOCK-5)."""
        ...

    @property
    def is_lost(self) -> bool:
        """True once a renewal was refused or too late, or the store was closed: another holder may have the lock."""
        ...

    async def renew(self) -> None:
        """Hold the lease for its full time from now on; raises LockLostError if it has ended."""
        ...

    async def release(self) -> None:
        """Let the next holder in. Releasing twice or too late does nothing (LOCK-4)."""
        ...


class AgentLock(Awaitable[Lease], AbstractAsyncContextManager[Lease], Protocol):
    """The result of ``acquire_agent_lock``: await it for a lease, or use ``async with``."""


C = TypeVar("C", bound=type)


def _to_be_implemented(protocol: C) -> C:
    """Prevent subclasses of *protocol* without all of its methods: a missing one would return None and lose data."""
    for method in vars(protocol).values():
        if isinstance(method, FunctionType) and method.__doc__:
            method.__isabstractmethod__ = True  # type: ignore[attr-defined]
    abc.update_abstractmethods(protocol)
    return protocol


@runtime_checkable
@_to_be_implemented
class Store(Protocol):
    """The state, events and history that an agent needs to stop and go on."""

    # --- messages

    async def save_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Lease | None = None) -> None:
        """Replace the agent's whole list of messages, atomically (MSG-1).

        The cost depends on the changes: pass the whole list each time, and only new and changed messages are written
        (MSG-5). A message keeps the time at which it was first saved (MSG-4).
        """
        ...

    async def append_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Lease | None = None) -> None:
        """Add *messages* at the end, atomically; two concurrent calls both take effect, each in one piece (MSG-3)."""
        ...

    async def load_messages(self, agent_id: str) -> list[Message]:
        """The agent's messages, in the order given (MSG-2)."""
        ...

    # --- tool calls

    async def save_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Lease | None = None
    ) -> None:
        """Replace the agent's whole list of tool call records, as ``save_messages`` does for messages (TC-1).

        Ids need not be unique, neither within the list nor among agents (TC-2).
        """
        ...

    async def upsert_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Lease | None = None
    ) -> None:
        """For each record, replace the last one with the same id, or add it at the end (TC-3)."""
        ...

    async def load_tool_call_records(self, agent_id: str) -> list[ToolCallRecord]:
        """The agent's tool call records, in the order given."""
        ...

    # --- a whole turn

    async def save_turn(
        self,
        agent_id: str,
        *,
        append: Sequence[Message] = (),
        messages: Sequence[Message] | None = None,
        tool_calls: Sequence[ToolCallRecord] | None = None,
        upsert_tool_calls: Sequence[ToolCallRecord] = (),
        todos: TodoSnapshot | None = None,
        info: AgentInfo | None = None,
        events: Sequence[Timeline] = (),
        fence: Lease | None = None,
    ) -> None:
        """Write everything in one atomic commit (TURN-1): after a crash all of it is stored, or nothing.

        ``append`` adds to the messages and ``messages`` replaces them; give one of the two. The same goes for
        ``upsert_tool_calls`` and ``tool_calls``. No two of ``events`` may be identical (EVT-4).
        """
        ...

    # --- todos

    async def save_todos(self, agent_id: str, snapshot: TodoSnapshot, *, fence: Lease | None = None) -> None:
        """Replace the agent's todos (TODO-1)."""
        ...

    async def load_todos(self, agent_id: str) -> TodoSnapshot | None:
        """The agent's todos; None if none were saved."""
        ...

    # --- events

    async def append_event(self, agent_id: str, timeline: Timeline, *, fence: Lease | None = None) -> int:
        """Append one event and return its offset (EVT-2).

        Appending the identical entry again stores nothing and returns the first one's offset, so a retry is safe
        (EVT-4). Concurrent calls are written together.
        """
        ...

    async def append_events(
        self, agent_id: str, timelines: Sequence[Timeline], *, fence: Lease | None = None
    ) -> Sequence[int]:
        """Append events in one piece and return their offsets; two identical ones in a call are refused (EVT-4)."""
        ...

    def read_events(
        self,
        agent_id: str,
        *,
        since: Bookmark | None = None,
        after_offset: int | None = None,
        channel: AgentChannel | None = None,
    ) -> AsyncIterator[StoredEvent]:
        """Stream the agent's events, all channels merged (EVT-5).

        By (seq, offset), from the first seq above ``since.seq``; or, with ``after_offset``, by offset, from the first
        above it.
        """
        ...

    async def last_bookmark(self, agent_id: str) -> Bookmark | None:
        """The bookmark with the highest seq, from which a producer continues after a restart (EVT-6)."""
        ...

    def follow_events(
        self,
        agent_id: str,
        *,
        since: Bookmark | None = None,
        after_offset: int = 0,
        channel: AgentChannel | None = None,
    ) -> AsyncIterator[StoredEvent]:
        """Stream the stored events and then all that any process appends, by offset, until the caller stops (EVT-7)."""
        ...

    # --- history

    async def save_history_window(self, agent_id: str, window: HistoryWindow, *, fence: Lease | None = None) -> None:
        """Keep a history window under its id (HIS-1)."""
        ...

    async def load_history_windows(self, agent_id: str) -> list[HistoryWindow]:
        """The agent's history windows by timestamp, then id."""
        ...

    async def save_compression_record(
        self, agent_id: str, record: CompressionRecord, *, fence: Lease | None = None
    ) -> None:
        """Keep a compression record under its id (HIS-1)."""
        ...

    async def load_compression_records(self, agent_id: str) -> list[CompressionRecord]:
        """The agent's compression records by timestamp, then id."""
        ...

    async def save_recovered_file(self, agent_id: str, file: RecoveredFile, *, fence: Lease | None = None) -> None:
        """Keep a recovered file under its path and timestamp (HIS-2)."""
        ...

    async def load_recovered_files(self, agent_id: str) -> list[RecoveredFile]:
        """The agent's recovered files by timestamp, then path."""
        ...

    # --- media

    async def save_media_cache(
        self, agent_id: str, records: Sequence[MediaCacheRecord], *, fence: Lease | None = None
    ) -> None:
        """Replace the agent's media cache (MED-1)."""
        ...

    async def load_media_cache(self, agent_id: str) -> list[MediaCacheRecord]:
        """The agent's media cache, in the order given."""
        ...

    # --- snapshots

    async def save_snapshot(self, agent_id: str, snapshot: Snapshot, *, fence: Lease | None = None) -> None:
        """Keep a snapshot under its id (SNAP-1)."""
        ...

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Snapshot | None:
        """The agent's snapshot of that id, or None."""
        ...

    async def list_snapshots(self, agent_id: str) -> list[Snapshot]:
        """The agent's snapshots, newest first: by created_at descending, then id."""
        ...

    # --- info and lifecycle

    async def save_info(self, agent_id: str, info: AgentInfo, *, fence: Lease | None = None) -> None:
        """Insert or replace the agent's info and nothing else (INFO-1); ``info.agent_id`` must be *agent_id* (ID-3)."""
        ...

    async def load_info(self, agent_id: str) -> AgentInfo | None:
        """The agent's info with the number of stored messages (MSG-6), or None."""
        ...

    async def exists(self, agent_id: str) -> bool:
        """True if info was saved and not deleted (LIFE-1)."""
        ...

    async def delete(self, agent_id: str, *, fence: Lease | None = None) -> None:
        """Remove all records of the agent, atomically; deleting a missing agent does nothing (LIFE-3)."""
        ...

    async def list(self, prefix: str = "") -> _Ids:
        """Ids of the agents with info that begin with the literal *prefix*, in code point order (LIFE-2)."""
        ...


@runtime_checkable
@_to_be_implemented
class QueryableStore(Store, Protocol):
    """A store that can be searched over all agents. Filters are keyword arguments; see :mod:`kode_core.query`."""

    async def query_sessions(self, **filters: Unpack[SessionFilter]) -> Page[SessionInfo]:
        """Matching agents, newest first; 100 unless ``limit`` says otherwise."""
        ...

    async def query_messages(self, **filters: Unpack[MessageFilter]) -> Page[StoredMessage]:
        """Matching messages, newest first, each with its agent and position."""
        ...

    async def query_tool_calls(self, **filters: Unpack[ToolCallFilter]) -> Page[StoredToolCall]:
        """Matching tool calls, newest first, each with its agent and position."""
        ...

    def iter_sessions(self, **filters: Unpack[SessionFilter]) -> AsyncIterator[SessionInfo]:
        """All matching agents, without a limit; takes no ``limit``, ``offset`` or ``cursor`` (QRY-6)."""
        ...

    def iter_messages(self, **filters: Unpack[MessageFilter]) -> AsyncIterator[StoredMessage]:
        """All matching messages, without a limit."""
        ...

    def iter_tool_calls(self, **filters: Unpack[ToolCallFilter]) -> AsyncIterator[StoredToolCall]:
        """All matching tool calls, without a limit."""
        ...

    async def aggregate_stats(self, agent_id: str) -> AgentStats:
        """Counts for one agent; zeros if it does not exist (QRY-7)."""
        ...

    async def delete_many(self, *, progress: Progress | None = None, **filters: Unpack[SessionFilter]) -> int:
        """Delete every matching session, and return their number (LIFE-5). ``metadata={}`` alone is refused.

        The deadline applies to each step, not to the whole call (OPS-16); *progress* is called after each one with the
        number so far. An exception that ends the call early has that number in ``deleted`` and in its message.
        """
        ...


@runtime_checkable
@_to_be_implemented
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
