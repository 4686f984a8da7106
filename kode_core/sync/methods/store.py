"""Written by ``scripts/sync_methods.py`` from ``kode_core.protocols.store.Store``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, overload

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
from kode_core.protocols.following import Heartbeat
from kode_core.sync.calls import Calls
from kode_core.sync.iterators import SyncIterator
from kode_core.sync.locks import SyncLease

__all__ = ["StoreMethods"]

_Ids: TypeAlias = list[str]


class StoreMethods(Calls):
    """The methods of :class:`~kode_core.Store` for synchronous code."""

    def save_messages(self, agent_id: str, messages: Sequence[Message], *, fence: SyncLease | None = None) -> None:
        """Replace the agent's whole list of messages, atomically (MSG-1).

        The cost depends on the changes: pass the whole list each time, and only new and changed messages are written
        (MSG-5). A message keeps the time at which it was first saved (MSG-4).
        """
        self._call(lambda store: store.save_messages(agent_id, messages, fence=self._fence(agent_id, fence)))

    def append_messages(self, agent_id: str, messages: Sequence[Message], *, fence: SyncLease | None = None) -> None:
        """Add *messages* at the end, atomically; two concurrent calls both take effect, each in one piece (MSG-3)."""
        self._call(lambda store: store.append_messages(agent_id, messages, fence=self._fence(agent_id, fence)))

    def load_messages(self, agent_id: str) -> list[Message]:
        """The agent's messages, in the order given (MSG-2)."""
        return self._call(lambda store: store.load_messages(agent_id))

    def save_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: SyncLease | None = None
    ) -> None:
        """Replace the agent's whole list of tool call records, as ``save_messages`` does for messages (TC-1).

        Ids need not be unique, neither within the list nor among agents (TC-2).
        """
        self._call(lambda store: store.save_tool_call_records(agent_id, records, fence=self._fence(agent_id, fence)))

    def upsert_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: SyncLease | None = None
    ) -> None:
        """For each record, replace the last one with the same id, or add it at the end (TC-3)."""
        self._call(lambda store: store.upsert_tool_call_records(agent_id, records, fence=self._fence(agent_id, fence)))

    def load_tool_call_records(self, agent_id: str) -> list[ToolCallRecord]:
        """The agent's tool call records, in the order given."""
        return self._call(lambda store: store.load_tool_call_records(agent_id))

    def save_turn(
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
        fence: SyncLease | None = None,
    ) -> Sequence[int]:
        """Write everything in one atomic commit (TURN-1): after a crash all of it is stored, or nothing.

        ``append`` adds to the messages and ``messages`` replaces them; give one of the two. The same goes for
        ``upsert_tool_calls`` and ``tool_calls``. No two of ``events`` may be identical (EVT-4).

        Returns:
            The offsets of *events*, in their order, as ``append_events`` returns them; empty without events (TURN-2).
        """
        return self._call(
            lambda store: store.save_turn(
                agent_id,
                append=append,
                messages=messages,
                tool_calls=tool_calls,
                upsert_tool_calls=upsert_tool_calls,
                todos=todos,
                info=info,
                events=events,
                fence=self._fence(agent_id, fence),
            )
        )

    def save_todos(self, agent_id: str, snapshot: TodoSnapshot, *, fence: SyncLease | None = None) -> None:
        """Replace the agent's todos (TODO-1)."""
        self._call(lambda store: store.save_todos(agent_id, snapshot, fence=self._fence(agent_id, fence)))

    def load_todos(self, agent_id: str) -> TodoSnapshot | None:
        """The agent's todos; None if none were saved."""
        return self._call(lambda store: store.load_todos(agent_id))

    def append_event(self, agent_id: str, timeline: Timeline, *, fence: SyncLease | None = None) -> int:
        """Append one event and return its offset (EVT-2).

        Appending the identical entry again stores nothing and returns the first one's offset, so a retry is safe
        (EVT-4). Concurrent calls are written together.
        """
        return self._call(lambda store: store.append_event(agent_id, timeline, fence=self._fence(agent_id, fence)))

    def append_events(
        self, agent_id: str, timelines: Sequence[Timeline], *, fence: SyncLease | None = None
    ) -> Sequence[int]:
        """Append events in one piece and return their offsets; two identical ones in a call are refused (EVT-4)."""
        return self._call(lambda store: store.append_events(agent_id, timelines, fence=self._fence(agent_id, fence)))

    def read_events(
        self,
        agent_id: str,
        *,
        since: Bookmark | None = None,
        after_offset: int | None = None,
        channel: AgentChannel | None = None,
    ) -> SyncIterator[StoredEvent]:
        """Stream the agent's events, all channels merged (EVT-5).

        By (seq, offset), from the first seq above ``since.seq``; or, with ``after_offset``, by offset, from the first
        above it.
        """
        return self._iterate(
            lambda store: store.read_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        )

    def last_bookmark(self, agent_id: str) -> Bookmark | None:
        """The bookmark with the highest seq, from which a producer continues after a restart (EVT-6)."""
        return self._call(lambda store: store.last_bookmark(agent_id))

    @overload
    def follow_events(
        self,
        agent_id: str,
        *,
        since: Bookmark | None = None,
        after_offset: int = 0,
        channel: AgentChannel | None = None,
        heartbeat_ms: None = None,
    ) -> SyncIterator[StoredEvent]: ...

    @overload
    def follow_events(
        self,
        agent_id: str,
        *,
        since: Bookmark | None = None,
        after_offset: int = 0,
        channel: AgentChannel | None = None,
        heartbeat_ms: int | None,
    ) -> SyncIterator[StoredEvent | Heartbeat]: ...

    def follow_events(
        self,
        agent_id: str,
        *,
        since: Bookmark | None = None,
        after_offset: int = 0,
        channel: AgentChannel | None = None,
        heartbeat_ms: int | None = None,
    ) -> SyncIterator[StoredEvent | Heartbeat]:
        """Stream the stored events and then all that any process appends, by offset, until the caller stops (EVT-7).

        With *heartbeat_ms*, from 1 to 86,400,000, the stream also gives a :class:`Heartbeat` whenever no event came
        for so long: a server of server-sent events writes a comment then. A reader that stops waiting, after a timeout
        for example, loses no event, and can read on (EVT-9). An agent that does not exist yet can be followed: the
        stream waits for its first event.

        Raises, while the stream is read:
            AgentDeletedError: the agent was deleted while it was followed, by any process (EVT-10).
        """
        return self._iterate(
            lambda store: store.follow_events(
                agent_id, since=since, after_offset=after_offset, channel=channel, heartbeat_ms=heartbeat_ms
            )
        )

    def save_history_window(self, agent_id: str, window: HistoryWindow, *, fence: SyncLease | None = None) -> None:
        """Keep a history window under its id (HIS-1)."""
        self._call(lambda store: store.save_history_window(agent_id, window, fence=self._fence(agent_id, fence)))

    def load_history_windows(self, agent_id: str) -> list[HistoryWindow]:
        """The agent's history windows by timestamp, then id."""
        return self._call(lambda store: store.load_history_windows(agent_id))

    def save_compression_record(
        self, agent_id: str, record: CompressionRecord, *, fence: SyncLease | None = None
    ) -> None:
        """Keep a compression record under its id (HIS-1)."""
        self._call(lambda store: store.save_compression_record(agent_id, record, fence=self._fence(agent_id, fence)))

    def load_compression_records(self, agent_id: str) -> list[CompressionRecord]:
        """The agent's compression records by timestamp, then id."""
        return self._call(lambda store: store.load_compression_records(agent_id))

    def save_recovered_file(self, agent_id: str, file: RecoveredFile, *, fence: SyncLease | None = None) -> None:
        """Keep a recovered file under its path and timestamp (HIS-2)."""
        self._call(lambda store: store.save_recovered_file(agent_id, file, fence=self._fence(agent_id, fence)))

    def load_recovered_files(self, agent_id: str) -> list[RecoveredFile]:
        """The agent's recovered files by timestamp, then path."""
        return self._call(lambda store: store.load_recovered_files(agent_id))

    def save_media_cache(
        self, agent_id: str, records: Sequence[MediaCacheRecord], *, fence: SyncLease | None = None
    ) -> None:
        """Replace the agent's media cache (MED-1)."""
        self._call(lambda store: store.save_media_cache(agent_id, records, fence=self._fence(agent_id, fence)))

    def load_media_cache(self, agent_id: str) -> list[MediaCacheRecord]:
        """The agent's media cache, in the order given."""
        return self._call(lambda store: store.load_media_cache(agent_id))

    def save_snapshot(self, agent_id: str, snapshot: Snapshot, *, fence: SyncLease | None = None) -> None:
        """Keep a snapshot under its id (SNAP-1)."""
        self._call(lambda store: store.save_snapshot(agent_id, snapshot, fence=self._fence(agent_id, fence)))

    def load_snapshot(self, agent_id: str, snapshot_id: str) -> Snapshot | None:
        """The agent's snapshot of that id, or None."""
        return self._call(lambda store: store.load_snapshot(agent_id, snapshot_id))

    def list_snapshots(self, agent_id: str) -> list[Snapshot]:
        """The agent's snapshots, newest first: by created_at descending, then id."""
        return self._call(lambda store: store.list_snapshots(agent_id))

    def save_info(self, agent_id: str, info: AgentInfo, *, fence: SyncLease | None = None) -> None:
        """Insert or replace the agent's info and nothing else (INFO-1); ``info.agent_id`` must be *agent_id* (ID-3)."""
        self._call(lambda store: store.save_info(agent_id, info, fence=self._fence(agent_id, fence)))

    def load_info(self, agent_id: str) -> AgentInfo | None:
        """The agent's info with the number of stored messages (MSG-6), or None."""
        return self._call(lambda store: store.load_info(agent_id))

    def exists(self, agent_id: str) -> bool:
        """True if info was saved and not deleted (LIFE-1)."""
        return self._call(lambda store: store.exists(agent_id))

    def delete(self, agent_id: str, *, fence: SyncLease | None = None) -> None:
        """Remove all records of the agent, atomically; deleting a missing agent does nothing (LIFE-3)."""
        self._call(lambda store: store.delete(agent_id, fence=self._fence(agent_id, fence)))

    def list(self, prefix: str = "") -> _Ids:
        """Ids of the agents with info that begin with the literal *prefix*, in code point order (LIFE-2)."""
        return self._call(lambda store: store.list(prefix))
