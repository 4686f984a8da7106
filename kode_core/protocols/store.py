"""The protocol that every store implements."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol, TypeAlias, overload, runtime_checkable

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
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
)
from kode_core.protocols.following import EventStream, Heartbeat
from kode_core.protocols.locks import Lease
from kode_core.protocols.methods import to_be_implemented

__all__ = ["Store"]

_Ids: TypeAlias = list[str]  # the method ``list`` hides the builtin inside the classes


@runtime_checkable
@to_be_implemented
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
    ) -> Sequence[int]:
        """Write everything in one atomic commit (TURN-1): after a crash all of it is stored, or nothing.

        ``append`` adds to the messages and ``messages`` replaces them; give one of the two. The same goes for
        ``upsert_tool_calls`` and ``tool_calls``. No two of ``events`` may be identical (EVT-4).

        Returns:
            The offsets of *events*, in their order, as ``append_events`` returns them; empty without events (TURN-2).
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

    @overload
    def follow_events(
        self,
        agent_id: str,
        *,
        since: Bookmark | None = None,
        after_offset: int = 0,
        channel: AgentChannel | None = None,
        heartbeat_ms: None = None,
    ) -> EventStream[StoredEvent]: ...

    @overload
    def follow_events(
        self,
        agent_id: str,
        *,
        since: Bookmark | None = None,
        after_offset: int = 0,
        channel: AgentChannel | None = None,
        heartbeat_ms: int | None,
    ) -> EventStream[StoredEvent | Heartbeat]: ...

    def follow_events(
        self,
        agent_id: str,
        *,
        since: Bookmark | None = None,
        after_offset: int = 0,
        channel: AgentChannel | None = None,
        heartbeat_ms: int | None = None,
    ) -> EventStream[StoredEvent | Heartbeat]:
        """Stream the stored events and then all that any process appends, by offset, until the caller stops (EVT-7).

        With *heartbeat_ms*, from 1 to 86,400,000, the stream also gives a :class:`Heartbeat` whenever no event came
        for so long: a server of server-sent events writes a comment then. A reader that stops waiting, after a timeout
        for example, loses no event, and can read on (EVT-9). An agent that does not exist yet can be followed: the
        stream waits for its first event.

        Raises, while the stream is read:
            AgentDeletedError: the agent was deleted while it was followed, by any process (EVT-10).
        """
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
