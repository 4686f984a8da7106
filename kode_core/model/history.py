"""Records that an agent leaves behind: history windows, compressions, recovered files, media, snapshots, info."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import field

from kode_core.model.base import Json, Record, empty, freeze, now_ms, to_datetime
from kode_core.model.runtime import Bookmark, Message, Timeline


class HistoryStats(Record, frozen=True, kw_only=True):
    """The contents of a history window when it was cut."""

    message_count: int = 0
    token_count: int = 0
    event_count: int = 0


class HistoryWindow(Record, frozen=True, kw_only=True):
    """The messages and events that a compression replaced; ``timestamp`` is in milliseconds since the epoch."""

    id: str
    messages: Sequence[Message] = field(default_factory=empty)
    events: Sequence[Timeline] = field(default_factory=empty)
    stats: HistoryStats = HistoryStats()
    timestamp: int = field(default_factory=now_ms)

    def __post_init__(self) -> None:
        freeze(self, "messages", "events")


class CompressionConfig(Record, frozen=True, kw_only=True):
    """How the summary was made; ``threshold`` is in tokens."""

    model: str = ""
    prompt: str = ""
    threshold: int = 0


class CompressionRecord(Record, frozen=True, kw_only=True):
    """The result of compressing a history window.

    Attributes:
        ratio: tokens after divided by tokens before.
        timestamp: milliseconds since the epoch.
    """

    id: str
    window_id: str
    config: CompressionConfig = CompressionConfig()
    summary: str = ""
    ratio: int | float = 0
    recovered_files: Sequence[str] = field(default_factory=empty)
    timestamp: int = field(default_factory=now_ms)

    def __post_init__(self) -> None:
        freeze(self, "recovered_files")


class RecoveredFile(Record, frozen=True, kw_only=True):
    """A file that was in the model's view before a compression.

    Attributes:
        mtime: the file's modification time in milliseconds, as the file system gave it: may be fractional.
        timestamp: when it was recovered, in milliseconds since the epoch.
    """

    path: str
    content: str
    mtime: int | float = 0
    timestamp: int = field(default_factory=now_ms)


class MediaCacheRecord(Record, frozen=True, kw_only=True):
    """A medium that was uploaded to a provider; ``size_bytes`` is its size, ``created_at`` in milliseconds."""

    key: str
    provider: str
    mime_type: str
    size_bytes: int
    file_id: str | None = None
    file_uri: str | None = None
    created_at: int = field(default_factory=now_ms)


class Snapshot(Record, frozen=True, kw_only=True):
    """A conversation at a safe fork point.

    Attributes:
        last_sfp_index: index of the message that ends it.
        created_at: milliseconds since the epoch; snapshots are listed newest first.
    """

    id: str
    messages: Sequence[Message] = field(default_factory=empty)
    last_sfp_index: int = -1
    last_bookmark: Bookmark | None = None
    created_at: int = field(default_factory=now_ms)
    metadata: dict[str, Json] | None = None

    def __post_init__(self) -> None:
        freeze(self, "messages")

    @property
    def created_time(self) -> datetime:
        """``created_at`` as an aware datetime in UTC; raises as ``to_datetime`` does."""
        return to_datetime(self.created_at)


class AgentInfo(Record, frozen=True, kw_only=True):
    """The identity of an agent, and how it was created.

    Attributes:
        lineage: ids of the agents it was forked from, oldest first; always a tuple, whatever sequence was given, so
            that an empty one equals ``()`` and not ``[]``.
        message_count: kept by the store (MSG-6); ``save_info`` ignores the given value.
        last_sfp_index: index of the last safe fork point, -1 when there is none.
        breakpoint: the state of the agent's loop: READY, PRE_MODEL, STREAMING_MODEL, TOOL_PENDING, …
        metadata: free-form; the filter ``user_id`` compares ``metadata["userId"]``.
    """

    agent_id: str
    template_id: str
    created_at: int = field(default_factory=now_ms)
    lineage: Sequence[str] = field(default_factory=empty)
    config_version: str = ""
    message_count: int = 0
    last_sfp_index: int = -1
    last_bookmark: Bookmark | None = None
    breakpoint: str | None = None
    metadata: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        freeze(self, "lineage")

    @property
    def created_time(self) -> datetime:
        """``created_at`` as an aware datetime in UTC; raises as ``to_datetime`` does."""
        return to_datetime(self.created_at)
