"""Written by ``scripts/sync_methods.py`` from ``kode_core.protocols.queryable.QueryableStore``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from kode_core.engine import Progress
from kode_core.grouping import MessageGroups, SessionGroups, ToolCallGroups
from kode_core.model import StoredMessage, StoredToolCall
from kode_core.query import (
    AgentStats,
    Group,
    MessageConditions,
    MessageFilter,
    Page,
    SessionConditions,
    SessionFilter,
    SessionInfo,
    ToolCallConditions,
    ToolCallFilter,
)
from kode_core.sync.iterators import SyncIterator
from kode_core.sync.methods.store import StoreMethods

__all__ = ["QueryableStoreMethods"]


class QueryableStoreMethods(StoreMethods):
    """The methods of :class:`~kode_core.QueryableStore` for synchronous code."""

    def query_sessions(self, **filters: Unpack[SessionFilter]) -> Page[SessionInfo]:
        """Matching agents, newest first; 100 unless ``limit`` says otherwise."""
        return self._call(lambda store: store.query_sessions(**filters))

    def query_messages(self, **filters: Unpack[MessageFilter]) -> Page[StoredMessage]:
        """Matching messages, newest first, each with its agent and position."""
        return self._call(lambda store: store.query_messages(**filters))

    def query_tool_calls(self, **filters: Unpack[ToolCallFilter]) -> Page[StoredToolCall]:
        """Matching tool calls, newest first, each with its agent and position."""
        return self._call(lambda store: store.query_tool_calls(**filters))

    def count_sessions(self, **filters: Unpack[SessionConditions]) -> int:
        """The number of matching agents (QRY-10). Its cost grows with the matches, not with the store."""
        return self._call(lambda store: store.count_sessions(**filters))

    def count_messages(self, **filters: Unpack[MessageConditions]) -> int:
        """The number of matching messages (QRY-10); the cost is as for ``count_sessions``."""
        return self._call(lambda store: store.count_messages(**filters))

    def count_tool_calls(self, **filters: Unpack[ToolCallConditions]) -> int:
        """The number of matching tool calls (QRY-10); the cost is as for ``count_sessions``."""
        return self._call(lambda store: store.count_tool_calls(**filters))

    def group_sessions(
        self,
        by: SessionGroups | Sequence[SessionGroups],
        *,
        utc_offset_minutes: int = 0,
        **filters: Unpack[SessionConditions],
    ) -> list[Group]:
        """The numbers of matching agents, by values that they have in common (QRY-11), in the order of these values.

        *by* names one or more of them; ``day`` is the date of ``created_at``, in UTC or at a fixed offset from it. A
        group that would have no agents is left out. More than 10,000 groups are refused with InvalidArgumentError.
        """
        return self._call(lambda store: store.group_sessions(by, utc_offset_minutes=utc_offset_minutes, **filters))

    def group_messages(
        self,
        by: MessageGroups | Sequence[MessageGroups],
        *,
        utc_offset_minutes: int = 0,
        **filters: Unpack[MessageConditions],
    ) -> list[Group]:
        """The numbers of matching messages, by values that they have in common, as ``group_sessions`` gives them."""
        return self._call(lambda store: store.group_messages(by, utc_offset_minutes=utc_offset_minutes, **filters))

    def group_tool_calls(
        self,
        by: ToolCallGroups | Sequence[ToolCallGroups],
        *,
        durations: bool = False,
        utc_offset_minutes: int = 0,
        **filters: Unpack[ToolCallConditions],
    ) -> list[Group]:
        """The numbers of matching tool calls, by values that they have in common, as ``group_sessions`` gives them.

        *durations* adds how long the calls of each group took, and reads every matching record for it.
        """
        return self._call(
            lambda store: store.group_tool_calls(
                by, durations=durations, utc_offset_minutes=utc_offset_minutes, **filters
            )
        )

    def iter_sessions(self, **filters: Unpack[SessionFilter]) -> SyncIterator[SessionInfo]:
        """All matching agents, without a limit; takes no ``limit``, ``offset`` or ``cursor`` (QRY-6)."""
        return self._iterate(lambda store: store.iter_sessions(**filters))

    def iter_messages(self, **filters: Unpack[MessageFilter]) -> SyncIterator[StoredMessage]:
        """All matching messages, without a limit."""
        return self._iterate(lambda store: store.iter_messages(**filters))

    def iter_tool_calls(self, **filters: Unpack[ToolCallFilter]) -> SyncIterator[StoredToolCall]:
        """All matching tool calls, without a limit."""
        return self._iterate(lambda store: store.iter_tool_calls(**filters))

    def aggregate_stats(self, agent_id: str) -> AgentStats:
        """Counts for one agent; zeros if it does not exist (QRY-7)."""
        return self._call(lambda store: store.aggregate_stats(agent_id))

    def delete_many(self, *, progress: Progress | None = None, **filters: Unpack[SessionFilter]) -> int:
        """Delete every matching session, and return their number (LIFE-5). ``metadata={}`` alone is refused.

        The deadline applies to each step, not to the whole call (OPS-16); *progress* is called after each one with the
        number so far. A ``KodeError`` that ends the call early has that number in ``deleted`` and in its message, any
        other exception in a note.
        """
        return self._call(lambda store: store.delete_many(progress=progress, **filters))
