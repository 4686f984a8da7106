"""Queries answered in memory: whether a row matches a query, and the page of the matches."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any, TypeVar

from kode_core.batch import Info, MessageIndex
from kode_core.query import RowQuery, SessionQuery

__all__ = ["page", "row_matches", "session_matches"]

K = TypeVar("K", bound=tuple[Any, ...])


V = TypeVar("V")


def session_matches(agent_id: str, info: Info, updated_at: int, query: SessionQuery) -> bool:
    """True if an agent matches the filters of a query."""
    return (
        query.agent_id in (None, agent_id)
        and query.template_id in (None, info.template_id)
        and set(query.metadata) <= set(info.metadata)
        and info.created_at in query.created
        and updated_at in query.updated
    )


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
