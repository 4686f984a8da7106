"""The tables of a database that the KODE SDK for TypeScript wrote, as a backend's plugin gives them to the importer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, Protocol

__all__ = ["SDK_TABLES", "SdkTables"]

SDK_TABLES: Final[Mapping[str, str]] = {
    "agents": "agent_id",
    "messages": "seq",
    "tool_calls": "created_at",
    "snapshots": "created_at",
}
"""The tables of the SDK, each with the column by which the rows of one agent are in order."""


class SdkTables(Protocol):
    """Reads the tables as they were at one instant. A column with JSON is given as its text, a time as it is stored."""

    def agent_ids(self) -> AsyncIterator[str]:
        """The ids of the table ``agents``, each once."""
        ...

    async def rows(self, table: str, agent_id: str) -> Sequence[Mapping[str, Any]]:
        """The rows of one agent in one of :data:`SDK_TABLES`, in order; rows that tie are in the order of insertion."""
        ...
