"""The protocol of stores that can be searched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol, Unpack, runtime_checkable

from kode_core.engine import Progress
from kode_core.grouping import MessageGroups, SessionGroups, ToolCallGroups
from kode_core.model import (
    StoredMessage,
    StoredToolCall,
)
from kode_core.protocols.methods import to_be_implemented
from kode_core.protocols.store import Store
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

__all__ = ["QueryableStore"]


@runtime_checkable
@to_be_implemented
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

    async def count_sessions(self, **filters: Unpack[SessionConditions]) -> int:
        """The number of matching agents (QRY-10). Its cost grows with the matches, not with the store."""
        ...

    async def count_messages(self, **filters: Unpack[MessageConditions]) -> int:
        """The number of matching messages (QRY-10); the cost is as for ``count_sessions``."""
        ...

    async def count_tool_calls(self, **filters: Unpack[ToolCallConditions]) -> int:
        """The number of matching tool calls (QRY-10); the cost is as for ``count_sessions``."""
        ...

    async def group_sessions(
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
        ...

    async def group_messages(
        self,
        by: MessageGroups | Sequence[MessageGroups],
        *,
        utc_offset_minutes: int = 0,
        **filters: Unpack[MessageConditions],
    ) -> list[Group]:
        """The numbers of matching messages, by values that they have in common, as ``group_sessions`` gives them."""
        ...

    async def group_tool_calls(
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
        number so far. A ``KodeError`` that ends the call early has that number in ``deleted`` and in its message, any
        other exception in a note.
        """
        ...
