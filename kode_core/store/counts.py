"""Counts of the records that match filters (QRY-10)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from kode_core.engine import Engine, can_count, check_any_of, count
from kode_core.errors import InvalidArgumentError
from kode_core.query import RowQuery, SessionQuery, finds_nothing, message_query, session_query, tool_call_query
from kode_core.store.context import Context
from kode_core.store.pages import FIRST_PAGE, next_limit

__all__ = ["Counting"]

_PAGING: Final = ("limit", "offset", "cursor", "order", "sort_by")


class Counting:
    """Counts records with an engine that can count, and otherwise page after page."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def sessions(self, filters: Mapping[str, Any]) -> int:
        return await self._count(filters, session_query)

    async def messages(self, filters: Mapping[str, Any]) -> int:
        return await self._count(filters, message_query)

    async def tool_calls(self, filters: Mapping[str, Any]) -> int:
        return await self._count(filters, tool_call_query)

    async def _count(self, filters: Any, checked: Callable[[Any], SessionQuery | RowQuery]) -> int:
        for name in _PAGING:
            if name in filters:
                raise InvalidArgumentError(f"a count is of everything that matches and takes no {name}")
        query, engine = checked(filters), self._context.engine
        check_any_of(engine, query)
        if finds_nothing(query):
            return 0
        return await count(engine, query) if can_count(engine) else await _by_pages(engine, query)


async def _by_pages(engine: Engine, query: SessionQuery | RowQuery) -> int:
    """Count page after page; bodies are not decoded, so that one that is damaged counts."""
    if isinstance(query, SessionQuery):
        return await _pages(
            query,
            engine.find_sessions,
            lambda row: (row.created_at, row.agent_id),
            lambda row: len(row.info.text),
        )
    return await _pages(
        query,
        engine.find_rows,
        lambda row: (row.created_at, row.agent_id, row.position),
        lambda row: len(row.body.text),
    )


async def _pages(
    query: Any,
    find: Callable[[Any], Awaitable[Sequence[Any]]],
    key: Callable[[Any], tuple[Any, ...]],
    characters: Callable[[Any], int],
) -> int:
    total, limit = 0, FIRST_PAGE
    while True:
        rows = await find(replace(query, limit=limit))
        total += len(rows)
        if len(rows) < limit:
            return total
        query = replace(query, after=key(rows[-1]))
        limit = next_limit(len(rows), sum(map(characters, rows)))
