"""Queries over agents' states, for the engines that keep them in memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from kode_core.authoring.matching import is_wanted, page, row_matches, session_matches
from kode_core.batch import FoundRow, ListKind, SessionRow
from kode_core.engines.state import AgentState
from kode_core.query import RowQuery, SessionQuery

__all__ = ["agent_ids", "count", "find_rows", "find_sessions", "stored_ids"]


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


def _session_key(row: SessionRow, query: SessionQuery) -> tuple[int, str]:
    return getattr(row, query.sort_by), row.agent_id


def _rows(states: Iterable[AgentState], query: RowQuery) -> Iterator[tuple[tuple[int, str, int], FoundRow]]:
    return (
        ((row.created_at, state.agent_id, position), FoundRow(state.agent_id, position, row.created_at, row.body))
        for state in states
        if is_wanted(state.agent_id, query.agent_id)
        for position, row in enumerate(state.lists[ListKind(query.kind)].rows)
        if row_matches(row.created_at, row.index, query)
    )


def find_rows(states: Iterable[AgentState], query: RowQuery) -> list[FoundRow]:
    return page(_rows(states, query), query)


def count(states: Iterable[AgentState], query: SessionQuery | RowQuery) -> int:
    found = _sessions(states, query) if isinstance(query, SessionQuery) else _rows(states, query)
    return sum(1 for _ in found)
