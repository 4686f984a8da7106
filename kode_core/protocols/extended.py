"""The protocol of stores for operators and for many workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias, overload, runtime_checkable

from kode_core.engine import Progress
from kode_core.model import (
    AgentChannel,
    AgentEvent,
    AgentInfo,
    DocumentWrite,
    Json,
    Message,
    StoredEvent,
    StoredMessage,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
)
from kode_core.protocols.agents import AgentStore
from kode_core.protocols.locks import AgentLock, Lease
from kode_core.protocols.methods import to_be_implemented
from kode_core.query import OnCorrupt, Page
from kode_core.report import ConsistencyCheckResult, ConsistencyIssue, StoreHealthStatus, StoreMetrics

__all__ = ["ExtendedStore"]

_Paths: TypeAlias = list[Path]
_Messages: TypeAlias = list[Message]
_ToolCalls: TypeAlias = list[ToolCallRecord]


@runtime_checkable
@to_be_implemented
class ExtendedStore(AgentStore, Protocol):
    """A store with parts and edits of lists, versions, emitted events, locks and maintenance."""

    # --- parts of a list, and edits in place

    @overload
    async def load_messages(
        self,
        agent_id: str,
        *,
        last: int | None = None,
        after: int | None = None,
        before: int | None = None,
        on_corrupt: Literal["raise"] = "raise",
    ) -> _Messages: ...

    @overload
    async def load_messages(
        self,
        agent_id: str,
        *,
        last: int | None = None,
        after: int | None = None,
        before: int | None = None,
        on_corrupt: Literal["skip"],
    ) -> Page[Message]: ...

    async def load_messages(
        self,
        agent_id: str,
        *,
        last: int | None = None,
        after: int | None = None,
        before: int | None = None,
        on_corrupt: OnCorrupt = "raise",
    ) -> _Messages:
        """The agent's messages, or a part of them, in the order given and as at one instant (MSG-2, MSG-9).

        *after* and *before* are positions, counted from 0 and both exclusive; of the messages between them *last* takes
        the last ones. The cost of the call depends on its result, not on the length of the list.

        With ``on_corrupt="skip"`` messages that cannot be read are left out of the result, a :class:`~kode_core.Page`
        whose ``left_out`` names them (OPS-21).

        Raises:
            CorruptRecordError: a message cannot be read (OPS-4).
            StoreBusyError: with ``on_corrupt="skip"``: other writers kept changing the list.
        """
        ...

    def read_messages(
        self, agent_id: str, *, after: int | None = None, before: int | None = None, reverse: bool = False
    ) -> AsyncIterator[StoredMessage]:
        """Stream the agent's messages with their positions and times, in bounded memory (MSG-10).

        *after* and *before* are positions, both exclusive; with *reverse* the last message comes first. A list that is
        edited meanwhile is read as it is at each page: a message that is appended comes once or not at all.
        """
        ...

    @overload
    async def load_tool_call_records(
        self,
        agent_id: str,
        *,
        last: int | None = None,
        after: int | None = None,
        before: int | None = None,
        on_corrupt: Literal["raise"] = "raise",
    ) -> _ToolCalls: ...

    @overload
    async def load_tool_call_records(
        self,
        agent_id: str,
        *,
        last: int | None = None,
        after: int | None = None,
        before: int | None = None,
        on_corrupt: Literal["skip"],
    ) -> Page[ToolCallRecord]: ...

    async def load_tool_call_records(
        self,
        agent_id: str,
        *,
        last: int | None = None,
        after: int | None = None,
        before: int | None = None,
        on_corrupt: OnCorrupt = "raise",
    ) -> _ToolCalls:
        """The agent's tool call records, or a part of them, as ``load_messages`` does for messages (MSG-9, OPS-21)."""
        ...

    async def pop_messages(self, agent_id: str, count: int = 1, *, fence: Lease | None = None) -> _Messages:
        """Remove the last *count* messages, or all if there are fewer, and return them in order (MSG-11).

        No concurrent append is lost, and no message is returned to two callers.
        """
        ...

    async def truncate_messages(
        self, agent_id: str, length: int, *, expect: str | None = None, fence: Lease | None = None
    ) -> int:
        """Remove all messages behind the first *length*, and return how many those were (MSG-11).

        Raises:
            ConflictError: the agent has another version than *expect*, even if no message is behind *length*.
        """
        ...

    async def replace_message(
        self, agent_id: str, position: int, message: Message, *, expect: str | None = None, fence: Lease | None = None
    ) -> None:
        """Replace the message at *position*, whose time stays (MSG-4, MSG-11).

        Raises:
            InvalidArgumentError: the list has no such position.
            ConflictError: the agent has another version than *expect*.
        """
        ...

    # --- versions

    async def load_version(self, agent_id: str) -> str:
        """The agent's version, which changes with every write of its messages, tool calls or info (VER-1).

        Read the version first and the records then: a write with ``expect=version`` is refused if anything changed
        since, so that an edit never replaces what its author did not see. An agent without any of these has a version,
        too: a write that must be the first demands it.
        """
        ...

    async def save_messages(
        self, agent_id: str, messages: Sequence[Message], *, expect: str | None = None, fence: Lease | None = None
    ) -> None:
        """Replace the agent's whole list of messages, atomically (MSG-1).

        The cost depends on the changes: pass the whole list each time, and only new and changed messages are written
        (MSG-5). A message keeps the time at which it was first saved (MSG-4).

        Raises:
            ConflictError: the agent has another version than *expect* (VER-2).
        """
        ...

    async def save_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, expect: str | None = None, fence: Lease | None = None
    ) -> None:
        """Replace the agent's whole list of tool call records, as ``save_messages`` does for messages (TC-1, VER-2).

        Ids need not be unique, neither within the list nor among agents (TC-2).
        """
        ...

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
        documents: Sequence[DocumentWrite] = (),
        expect: str | None = None,
        fence: Lease | None = None,
    ) -> Sequence[int]:
        """Write everything in one atomic commit (TURN-1): after a crash all of it is stored, or nothing.

        ``append`` adds to the messages and ``messages`` replaces them; give one of the two. The same goes for
        ``upsert_tool_calls`` and ``tool_calls``. No two of ``events`` may be identical (EVT-4).
        ``documents`` are written as by ``write_documents`` (DOC-3). Returns the offsets of
        the events, in their order (TURN-2).

        Raises:
            ConflictError: the agent has another version than *expect* (VER-2), or a document has another one than its
                ``expect`` (DOC-2).
        """
        ...

    # --- events

    async def emit(
        self,
        agent_id: str,
        type: str,  # noqa: A002 - as the field of AgentEvent
        data: Mapping[str, Json] | None = None,
        *,
        channel: AgentChannel = "progress",
        fence: Lease | None = None,
    ) -> StoredEvent:
        """Append an event, numbered by the store (EVT-8), and return it with its bookmark and its offset.

        Its seq follows the highest one stored; the first event of an agent has seq 0. Emits of one store object have
        distinct seqs, which ascend with their offsets. Two stores that emit for one agent in the same second may give
        equal seqs, and both events are kept; stores that emit under the agent's lock never do. Every emit is an event
        of its own, even if it equals another.

        Raises:
            InvalidValueError: *type* or *data* is not exactly JSON, or *channel* is no channel.
            OutcomeUnknownError: it may be stored or not. Its ``timelines`` holds the entry with its numbers: give it to
                ``append_events`` until that succeeds, and it is stored once.
        """
        ...

    async def emit_many(
        self, agent_id: str, events: Sequence[AgentEvent], *, fence: Lease | None = None
    ) -> Sequence[StoredEvent]:
        """Append *events* in one piece, numbered one after the other, as ``emit`` does for one (EVT-8)."""
        ...

    # --- operations

    async def health_check(self) -> StoreHealthStatus:
        """Check whether the store can be used now. This never raises (OPS-1).

        SQL backends name tables that were dropped, at no further cost.
        """
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
