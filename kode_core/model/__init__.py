"""The records that a store keeps: immutable, typed, and the same on the wire as in the KODE SDK 2.7.

Attributes are snake_case in Python and camelCase in the stored JSON (``created_at`` is ``createdAt``); the fields
of content blocks are snake_case in both, as the SDK writes them. Times are integers: milliseconds since the epoch,
UTC (VAL-5). An optional field that is None is absent in the JSON (VAL-3).

``extra`` holds the fields that this version does not know. They are stored next to the known ones and come back in
``extra`` (VAL-6), so a record written by a newer version survives a load and a save. Free-form values (``input``,
``result``, ``metadata``, …) are plain JSON values. A record is frozen, but a dict or list inside it is the caller's own
object: the store copies its contents at the moment of the call.
"""

from kode_core.model.base import Json, Record, now_ms, to_datetime
from kode_core.model.content import (
    AudioBlock,
    ContentBlock,
    FileBlock,
    ImageBlock,
    ReasoningBlock,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
    VideoBlock,
)
from kode_core.model.documents import ABSENT, DeleteDocument, Document, DocumentWrite, FoundDocument, PutDocument
from kode_core.model.history import (
    AgentInfo,
    CompressionConfig,
    CompressionRecord,
    HistoryStats,
    HistoryWindow,
    MediaCacheRecord,
    RecoveredFile,
    Snapshot,
)
from kode_core.model.runtime import (
    CHANNELS,
    AgentChannel,
    AgentEvent,
    Bookmark,
    Message,
    Timeline,
    TodoItem,
    TodoSnapshot,
    ToolCallApproval,
    ToolCallAuditEntry,
    ToolCallRecord,
)
from kode_core.model.stored import AppendedMessage, StoredEvent, StoredMessage, StoredToolCall
from kode_core.model.whole import AgentRecords

__all__ = [
    "ABSENT",
    "CHANNELS",
    "AgentChannel",
    "AgentEvent",
    "AgentInfo",
    "AgentRecords",
    "AppendedMessage",
    "AudioBlock",
    "Bookmark",
    "CompressionConfig",
    "CompressionRecord",
    "ContentBlock",
    "DeleteDocument",
    "Document",
    "DocumentWrite",
    "FileBlock",
    "FoundDocument",
    "HistoryStats",
    "HistoryWindow",
    "ImageBlock",
    "Json",
    "MediaCacheRecord",
    "Message",
    "PutDocument",
    "ReasoningBlock",
    "Record",
    "RecoveredFile",
    "Snapshot",
    "StoredEvent",
    "StoredMessage",
    "StoredToolCall",
    "TextBlock",
    "Timeline",
    "TodoItem",
    "TodoSnapshot",
    "ToolCallApproval",
    "ToolCallAuditEntry",
    "ToolCallRecord",
    "ToolResultBlock",
    "ToolUseBlock",
    "UnknownBlock",
    "VideoBlock",
    "now_ms",
    "to_datetime",
]
