"""Agents and their counts, as queries and loads of sessions show them."""

from __future__ import annotations

from datetime import datetime

import msgspec

from kode_core.model.base import Json, Shown, to_datetime
from kode_core.model.runtime import Bookmark

__all__ = ["AgentStats", "Durations", "Group", "Session", "SessionInfo"]


class SessionInfo(Shown, frozen=True, kw_only=True):
    """An agent as ``query_sessions`` shows it; times are in milliseconds since the epoch.

    Attributes:
        updated_at: when messages, tool calls or info were last saved (INFO-2).
        message_count: the number of stored messages (MSG-6).
    """

    agent_id: str
    template_id: str
    created_at: int
    updated_at: int
    message_count: int
    lineage: tuple[str, ...] = ()
    last_sfp_index: int = -1
    last_bookmark: Bookmark | None = None
    breakpoint: str | None = None
    metadata: dict[str, Json] = msgspec.field(default_factory=dict)

    @property
    def created_time(self) -> datetime:
        """``created_at`` as an aware datetime in UTC; raises as ``to_datetime`` does."""
        return to_datetime(self.created_at)

    @property
    def updated_time(self) -> datetime:
        """``updated_at`` as an aware datetime in UTC; raises as ``to_datetime`` does."""
        return to_datetime(self.updated_at)


class Session(SessionInfo, frozen=True, kw_only=True):
    """An agent as ``load_session`` shows it, at one instant.

    Attributes:
        tool_call_count: the number of stored tool call records.
        version: changes with every write of messages, tool calls or info (VER-1); ``expect`` demands it.
    """

    tool_call_count: int
    version: str


class AgentStats(Shown, frozen=True, kw_only=True):
    """The result of ``aggregate_stats``; states are as stored, so ``COMPLETED`` and not ``completed`` (QRY-7)."""

    total_messages: int = 0
    total_tool_calls: int = 0
    total_snapshots: int = 0
    total_documents: int = 0
    tool_calls_by_name: dict[str, int] = msgspec.field(default_factory=dict)
    tool_calls_by_state: dict[str, int] = msgspec.field(default_factory=dict)


class Durations(Shown, frozen=True, kw_only=True):
    """The durations of the tool calls of a group; calls without a ``duration_ms`` do not count.

    Attributes:
        count: the number of calls with a duration.
        total_ms: their sum: exact for integers; with a fractional one among them the sum is rounded once, at the end.
        max_ms: the longest.
    """

    count: int
    total_ms: int | float
    max_ms: int | float

    @property
    def mean_ms(self) -> float:
        """``total_ms`` divided by ``count``."""
        return self.total_ms / self.count


class Group(Shown, frozen=True, kw_only=True):
    """Records with equal values, as ``group_tool_calls`` and its neighbours count them (QRY-11).

    Attributes:
        values: what the records have in common, by the names that were asked for, in their order. ``day`` is a date as
            ``2026-01-31``; ``is_error`` and ``has_approval`` are booleans; all others are the stored texts.
        count: the number of records.
        durations: None unless they were asked for, or if no call of the group has one.
    """

    values: dict[str, str | bool]
    count: int
    durations: Durations | None = None
