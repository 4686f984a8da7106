"""Queries over agents' states, for the engines that keep them in memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from kode_core.batch import FoundRow, Info, ListKind, MessageIndex, SessionRow
from kode_core.engines.state import AgentState
from kode_core.query import RowQuery, SessionQuery

__all__ = ["agent_ids", "find_rows", "find_sessions", "page", "row_matches", "session_matches", "stored_ids"]

K = TypeVar("K", bound=tuple[Any, ...])
V = TypeVar("V")


def agent_ids(states: Iterable[AgentState], prefix: str, after: str | None, limit: int) -> list[str]:
    found = (s.agent_id for s in states if s.info is not None and s.agent_id.startswith(prefix))
    return heapq.nsmallest(limit, (a for a in found if after is None or a > after))


def stored_ids(states: Iterable[AgentState], after: str | None, limit: int) -> list[str]:
    found = (s.agent_id for s in states if (after is None or s.agent_id > after) and s.has_contents)
    return heapq.nsmallest(limit, found)


def find_sessions(states: Iterable[AgentState], query: SessionQuery) -> list[SessionRow]:
    return page(((_session_key(row, query), row) for row in _sessions(states, query)), query)


def _sessions(states: Iterable[AgentState], query: SessionQuery) -> Iterator[SessionRow]:
    for state in states:
        info = state.info
        if info is not None and session_matches(state.agent_id, info, state.updated_at, query):
            count = len(state.lists[ListKind.MESSAGES].rows)
            yield SessionRow(state.agent_id, info.body, info.created_at, state.updated_at, count)


def session_matches(agent_id: str, info: Info, updated_at: int, query: SessionQuery) -> bool:
    """True if an agent matches the filters of a query."""
    return (
        query.agent_id in (None, agent_id)
        and query.template_id in (None, info.template_id)
        and set(query.metadata) <= set(info.metadata)
        and info.created_at in query.created
        and updated_at in query.updated
    )


def _session_key(row: SessionRow, query: SessionQuery) -> tuple[int, str]:
    return getattr(row, query.sort_by), row.agent_id


def find_rows(states: Iterable[AgentState], query: RowQuery) -> list[FoundRow]:
    found = (
        ((row.created_at, state.agent_id, position), FoundRow(state.agent_id, position, row.created_at, row.body))
        for state in states
        if query.agent_id is None or query.agent_id == state.agent_id
        for position, row in enumerate(state.lists[ListKind(query.kind)].rows)
        if row_matches(row.created_at, row.index, query)
    )
    return page(found, query)


def row_matches(created_at: int, index: object, query: RowQuery) -> bool:
    """True if a row matches the filters of a query."""
    return created_at in query.created and all(_holds(index, name, value) for name, value in query.where)


def _holds(index: object, name: str, value: str | bool) -> bool:
    if name == "content_type":
        return isinstance(index, MessageIndex) and value in index.content_types
    return bool(getattr(index, name) == value)


def page(found: Iterable[tuple[K, V]], query: SessionQuery | RowQuery) -> list[V]:
    """The page of a query, from the matches with their keys in the order."""
    after: Any = query.after
    if after is not None:
        found = ((k, v) for k, v in found if (k < after if query.descending else k > after))
    pick = heapq.nlargest if query.descending else heapq.nsmallest
    page = pick(query.offset + query.limit, found, key=lambda pair: pair[0])
    return [value for _, value in page[query.offset :]]
