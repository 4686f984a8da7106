"""The error for an id that no agent has, with the id that was probably meant."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from kode_core.errors import AgentNotFoundError, UnsupportedError
from kode_core.ids import nearest
from kode_core.protocols import QueryableStore
from kode_core.query import Within

__all__ = ["agent_not_found"]

_COMPARED: Final = 1_000
_LEAST: Final = 0.75
"""Ids are often alike at their beginning, so that less similarity means nothing."""


async def agent_not_found(store: QueryableStore, agent_id: str) -> AgentNotFoundError:
    """The error for an id that no agent has: it names a near id of those that begin alike, or that changed last."""
    begin = agent_id[: max(2, len(agent_id) // 2)]
    alike: dict[str, Any] = {"agent_id": Within(begin)}
    for some in (alike, {"sort_by": "updated_at"}):
        with suppress(UnsupportedError):  # not every engine finds agents by the beginning of their ids
            page = await store.query_sessions(**some, limit=_COMPARED)
            near = nearest(agent_id, [session.agent_id for session in page if session.agent_id != agent_id], _LEAST)
            if near is not None:
                return AgentNotFoundError(agent_id, near)
    return AgentNotFoundError(agent_id)
