"""The error for an id that no agent has, with the id that was probably meant."""

from __future__ import annotations

from itertools import islice
from typing import Final

from kode_core.errors import AgentNotFoundError
from kode_core.ids import nearest
from kode_core.protocols import QueryableStore

__all__ = ["agent_not_found"]

_COMPARED: Final = 1_000
_LEAST: Final = 0.75
"""Ids are often alike at their beginning, so that less similarity means nothing."""


async def agent_not_found(store: QueryableStore, agent_id: str) -> AgentNotFoundError:
    """The error for an id that no agent has: it names a near id of those that begin alike, or that changed last."""
    begin = agent_id[: max(2, len(agent_id) // 2)]
    alike = [one for one in islice(await store.list(begin), _COMPARED) if one != agent_id]
    near = nearest(agent_id, alike, _LEAST)
    if near is None:
        newest = await store.query_sessions(sort_by="updated_at", limit=_COMPARED)
        near = nearest(agent_id, [session.agent_id for session in newest if session.agent_id != agent_id], _LEAST)
    return AgentNotFoundError(agent_id, near)
