"""Records to write. Each call gives new ones; numbers tell them apart."""

from __future__ import annotations

from typing import Any

from kode_core.model import (
    AgentEvent,
    AgentInfo,
    AudioBlock,
    Bookmark,
    CompressionConfig,
    CompressionRecord,
    FileBlock,
    HistoryStats,
    HistoryWindow,
    ImageBlock,
    MediaCacheRecord,
    Message,
    ReasoningBlock,
    RecoveredFile,
    Snapshot,
    TextBlock,
    Timeline,
    TodoItem,
    TodoSnapshot,
    ToolCallApproval,
    ToolCallAuditEntry,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    VideoBlock,
)

T0 = 1_767_258_000_000
"""2026-01-01 09:00 UTC in milliseconds."""


def message(i: int = 0, text: str | None = None) -> Message:
    """A user's message."""
    return Message.user(f"message {i}" if text is None else text)


def messages(count: int, start: int = 0) -> list[Message]:
    """Messages that all differ."""
    return [message(i) for i in range(start, start + count)]


def rich_messages() -> list[Message]:
    """Messages with a block of every type."""
    return [
        Message.system("Be brief."),
        Message("user", [TextBlock("look"), ImageBlock(url="https://example.com/a.png", meta={"detail": "low"})]),
        Message("user", [AudioBlock(base64="UklGRg==", mime_type="audio/wav"), VideoBlock(file_id="file-1")]),
        Message("user", [FileBlock(base64="JVBERi0=", mime_type="application/pdf", filename="a b.pdf")]),
        Message("assistant", [ReasoningBlock("hm"), ToolUseBlock("call_0", "search", {"q": "x", "n": 3})]),
        Message("user", [ToolResultBlock("call_0", [{"type": "text", "text": "found"}], is_error=False)]),
        Message("assistant", [TextBlock("done")], metadata={"transport": "provider"}),
    ]


def tool_call(i: int = 0, **changes: Any) -> ToolCallRecord:
    """A completed call."""
    values: dict[str, Any] = {
        "id": f"call_{i}",
        "name": "search",
        "input": {"q": f"query {i}"},
        "state": "COMPLETED",
        "result": {"rows": [i]},
        "is_error": False,
        "started_at": T0 + i,
        "completed_at": T0 + i + 5,
        "duration_ms": 5,
        "created_at": T0 + i,
        "updated_at": T0 + i + 5,
        "audit_trail": [ToolCallAuditEntry("PENDING", T0 + i), ToolCallAuditEntry("COMPLETED", T0 + i + 5, "ok")],
    }
    return ToolCallRecord(**{**values, **changes})


def approved_call(i: int = 0) -> ToolCallRecord:
    """A call that was approved."""
    approval = ToolCallApproval(
        required=True, decision="allow", decided_by="alice", decided_at=T0, note="fine", meta={"rule": 7}
    )
    return tool_call(i, approval=approval)


def event(seq: int, channel: Any = "progress", *, cursor: int | None = None, **data: Any) -> Timeline:
    """An event with that seq."""
    kind = AgentEvent(channel, "text_chunk", data or {"step": 0, "delta": f"part {seq}"})
    return Timeline(seq if cursor is None else cursor, Bookmark(seq, T0 + seq), kind)


def events(count: int, start: int = 0) -> list[Timeline]:
    """Events with ascending seq."""
    return [event(i) for i in range(start, start + count)]


def todos(*titles: str) -> TodoSnapshot:
    """A todo list."""
    items = [TodoItem(id=f"t{i}", title=title, created_at=T0, updated_at=T0) for i, title in enumerate(titles)]
    return TodoSnapshot(todos=items, version=len(items), updated_at=T0)


def window(window_id: str = "win-1", timestamp: int = T0) -> HistoryWindow:
    """A history window with messages and events."""
    return HistoryWindow(
        id=window_id,
        messages=messages(2),
        events=events(2),
        stats=HistoryStats(message_count=2, token_count=40, event_count=2),
        timestamp=timestamp,
    )


def compression(record_id: str = "cmp-1", timestamp: int = T0) -> CompressionRecord:
    """The record of a window's compression."""
    return CompressionRecord(
        id=record_id,
        window_id="win-1",
        config=CompressionConfig(model="gpt-4o", prompt="Summarise", threshold=50_000),
        summary="They met.",
        ratio=0.35,
        recovered_files=["policy/airline.md"],
        timestamp=timestamp,
    )


def recovered(path: str = "policy/airline.md", timestamp: int = T0, content: str = "# Policy\n") -> RecoveredFile:
    """A recovered file."""
    return RecoveredFile(path=path, content=content, mtime=T0 + 0.25, timestamp=timestamp)


def media(key: str = "sha256:00") -> MediaCacheRecord:
    """An uploaded image."""
    return MediaCacheRecord(
        key=key, provider="openai", mime_type="image/png", size_bytes=2**33, file_id="file-1", created_at=T0
    )


def snapshot(snapshot_id: str = "sfp-1", created_at: int = T0, count: int = 2) -> Snapshot:
    """A snapshot of some messages."""
    return Snapshot(
        id=snapshot_id,
        messages=messages(count),
        last_sfp_index=count - 1,
        last_bookmark=Bookmark(5, T0),
        created_at=created_at,
        metadata={"reason": "test"},
    )


def info(agent_id: str, **changes: Any) -> AgentInfo:
    """An agent's info."""
    values: dict[str, Any] = {
        "agent_id": agent_id,
        "template_id": "assistant",
        "created_at": T0,
        "config_version": "v2.7.0",
        "last_sfp_index": 3,
        "last_bookmark": Bookmark(7, T0),
        "breakpoint": "READY",
        "metadata": {"userId": "u-1", "plan": "gold"},
    }
    return AgentInfo(**{**values, **changes})
