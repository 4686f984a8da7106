"""Queries answered in memory: whether a row matches a query, and the page of the matches."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any, TypeVar

from kode_core.batch import Info, MessageIndex
from kode_core.query import RowQuery, SessionQuery, Wanted, Within, values_of

__all__ = ["is_wanted", "page", "row_matches", "session_matches"]

K = TypeVar("K", bound=tuple[Any, ...])


V = TypeVar("V")


def is_wanted(value: str, wanted: Wanted | Within | None) -> bool:
    """True if *value* is the wanted one, or one of the wanted ones; None wants any."""
    return value == wanted if isinstance(wanted, str) else wanted is None or value in wanted


def session_matches(agent_id: str, info: Info, updated_at: int, query: SessionQuery) -> bool:
    """True if an agent matches the filters of a query."""
    return (
        is_wanted(agent_id, query.agent_id)
        and is_wanted(info.template_id, query.template_id)
        and (not query.metadata or _has_metadata(set(info.metadata), query))
        and info.created_at in query.created
        and updated_at in query.updated
    )


def _has_metadata(pairs: set[tuple[str, str]], query: SessionQuery) -> bool:
    return all(any((key, one) in pairs for one in values_of(value)) for key, value in query.metadata)


def row_matches(created_at: int, index: object, query: RowQuery) -> bool:
    """True if a row matches the filters of a query."""
    return created_at in query.created and all(_holds(index, name, value) for name, value in query.where)


def _holds(index: object, name: str, wanted: Wanted | bool) -> bool:
    if isinstance(wanted, bool):
        return bool(getattr(index, name) == wanted)
    if name == "content_type":
        return isinstance(index, MessageIndex) and any(is_wanted(one, wanted) for one in index.content_types)
    return is_wanted(getattr(index, name), wanted)


def page(found: Iterable[tuple[K, V]], query: SessionQuery | RowQuery) -> list[V]:
    """The page of a query, from the matches with their keys in the order."""
    after: Any = query.after
    if after is not None:
        found = ((k, v) for k, v in found if (k < after if query.descending else k > after))
    pick = heapq.nlargest if query.descending else heapq.nsmallest
    page = pick(query.offset + query.limit, found, key=lambda pair: pair[0])
    return [value for _, value in page[query.offset :]]
