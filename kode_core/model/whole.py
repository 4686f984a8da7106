"""Everything that is stored for one agent, as one value."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import field

from kode_core.model.base import Record, empty, freeze
from kode_core.model.documents import Document
from kode_core.model.history import (
    AgentInfo,
    CompressionRecord,
    HistoryWindow,
    MediaCacheRecord,
    RecoveredFile,
    Snapshot,
)
from kode_core.model.runtime import Message, Timeline, TodoSnapshot, ToolCallRecord

__all__ = ["AgentRecords"]


class AgentRecords(Record, frozen=True, kw_only=True):
    """Everything that is stored for one agent, as ``load_agent`` gives it and ``import_agent`` writes it.

    ``to_dict`` and ``from_dict`` convert it to plain JSON and back.

    Attributes:
        agent_id: the agent that was loaded.
        updated_at: when messages, tool calls or info were last saved, in milliseconds (INFO-2); None without any.
        message_times: when a store first saw each of ``messages`` (MSG-4), in milliseconds, as many as there are
            messages; the times of tool calls are in the calls.
        documents: the documents of the caller's own, of all collections, each with the time of its put.
        events: in the order of their offsets.
        event_offsets: the offset of each event in the store that was read; an import gives new ones.
        message_keys: the keys that ``append_messages_once`` has seen (MSG-12), each with the position at which its
            message was appended.
    """

    agent_id: str
    info: AgentInfo | None = None
    updated_at: int | None = None
    messages: Sequence[Message] = field(default_factory=empty)
    message_times: Sequence[int] = field(default_factory=empty)
    tool_calls: Sequence[ToolCallRecord] = field(default_factory=empty)
    todos: TodoSnapshot | None = None
    history_windows: Sequence[HistoryWindow] = field(default_factory=empty)
    compression_records: Sequence[CompressionRecord] = field(default_factory=empty)
    recovered_files: Sequence[RecoveredFile] = field(default_factory=empty)
    media_cache: Sequence[MediaCacheRecord] = field(default_factory=empty)
    snapshots: Sequence[Snapshot] = field(default_factory=empty)
    documents: Sequence[Document] = field(default_factory=empty)
    events: Sequence[Timeline] = field(default_factory=empty)
    event_offsets: Sequence[int] = field(default_factory=empty)
    message_keys: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        freeze(
            self,
            *("messages", "message_times", "tool_calls", "history_windows", "compression_records", "recovered_files"),
            *("media_cache", "snapshots", "documents", "events", "event_offsets"),
        )
