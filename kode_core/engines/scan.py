"""Queries over agents' states, for the engines that keep them in memory."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeAlias, cast

from kode_core.authoring.matching import is_wanted, page, row_matches, session_matches
from kode_core.batch import DocQuery, FoundDoc, FoundRow, Index, Info, ListKind, SessionRow
from kode_core.codec import Body
from kode_core.engines.state import AgentState
from kode_core.query import Grouping, GroupRows, RowQuery, SessionQuery

__all__ = ["Searched", "agent_ids", "count", "find_docs", "find_rows", "find_sessions", "group", "stored_ids"]


class Searched(Protocol):
    """The part of an agent's state that queries for sessions and rows look at."""

    @property
    def agent_id(self) -> str:
        """The agent's id."""
        ...

    @property
    def info(self) -> Info | None:
        """The agent's info, if it has one."""
        ...

    @property
    def updated_at(self) -> int:
        """The time of the last change."""
        ...

    @property
    def message_count(self) -> int:
        """The number of messages."""
        ...

    def indexed(self, kind: ListKind) -> Iterable[tuple[int, Index]]:
        """The time and the columns of each row of a list, in order of position."""
        ...

    def body_at(self, kind: ListKind, position: int) -> Body:
        """The body of a row."""
        ...


_Grouped: TypeAlias = tuple[str, int, Info | Index]
"""(agent_id, created_at, columns)"""


def agent_ids(states: Iterable[Searched], prefix: str, after: str | None, limit: int) -> list[str]:
    found = (s.agent_id for s in states if s.info is not None and s.agent_id.startswith(prefix))
    return heapq.nsmallest(limit, (a for a in found if after is None or a > after))


def stored_ids(states: Iterable[AgentState], after: str | None, limit: int) -> list[str]:
    found = (s.agent_id for s in states if (after is None or s.agent_id > after) and s.has_contents)
    return heapq.nsmallest(limit, found)


def find_sessions(states: Iterable[Searched], query: SessionQuery) -> list[SessionRow]:
    return page(((_session_key(row, query), row) for row in map(_session, _infos(states, query))), query)


def _infos(states: Iterable[Searched], query: SessionQuery) -> Iterator[tuple[Searched, Info]]:
    for state in states:
        info = state.info
        if info is not None and session_matches(state.agent_id, info, state.updated_at, query):
            yield state, info


def _session(found: tuple[Searched, Info]) -> SessionRow:
    state, info = found
    return SessionRow(state.agent_id, info.body, info.created_at, state.updated_at, state.message_count)


def _session_key(row: SessionRow, query: SessionQuery) -> tuple[int, str]:
    return getattr(row, query.sort_by), row.agent_id


def _rows(states: Iterable[Searched], query: RowQuery) -> Iterator[tuple[Searched, int, int, Index]]:
    """State, position, created_at and columns of each row that matches."""
    kind = ListKind(query.kind)
    return (
        (state, position, created_at, index)
        for state in states
        if is_wanted(state.agent_id, query.agent_id)
        for position, (created_at, index) in enumerate(state.indexed(kind))
        if row_matches(created_at, index, query)
    )


def find_rows(states: Iterable[Searched], query: RowQuery) -> list[FoundRow]:
    kind = ListKind(query.kind)
    found = (  # a state may change once the next one is looked at
        FoundRow(state.agent_id, position, created_at, state.body_at(kind, position))
        for state, position, created_at, _ in _rows(states, query)
    )
    return page((((row.created_at, row.agent_id, row.position), row) for row in found), query)


def find_docs(states: Iterable[AgentState], query: DocQuery) -> list[FoundDoc]:
    """The documents of a page: of each agent at most a page is looked at."""

    def is_ahead(agent_id: str) -> bool:
        if query.after is None:
            return True
        return agent_id <= query.after[0] if query.descending else agent_id >= query.after[0]

    found = (
        FoundDoc(state.agent_id, doc)
        for state in states
        if query.agent_id in (None, state.agent_id) and is_ahead(state.agent_id)
        for doc in state.found_docs(query)
    )
    pick = heapq.nlargest if query.descending else heapq.nsmallest
    return pick(query.limit, found, key=lambda one: (one.agent_id, one.doc.key))


def count(states: Iterable[Searched], query: SessionQuery | RowQuery) -> int:
    found = _infos(states, query) if isinstance(query, SessionQuery) else _rows(states, query)
    return sum(1 for _ in found)


def group(states: Iterable[Searched], query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
    """See :meth:`kode_core.engine.Groups.group`."""
    if isinstance(query, SessionQuery):
        found: Iterator[_Grouped] = ((state.agent_id, info.created_at, info) for state, info in _infos(states, query))
    else:
        found = ((state.agent_id, created_at, index) for state, _, created_at, index in _rows(states, query))
    groups = Counter[tuple[str | bool | int, ...]]()
    for one in found:
        groups[tuple([_value(by, one, grouping) for by in grouping.by])] += 1
        if len(groups) == grouping.limit:
            break
    return list(groups.items())


def _value(by: str, found: _Grouped, grouping: Grouping) -> str | bool | int:
    agent_id, created_at, columns = found
    if by == "day":
        return grouping.day(created_at)
    return agent_id if by == "agent_id" else cast("str | bool", getattr(columns, by))
