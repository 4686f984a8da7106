"""Counts of the records that match filters (QRY-10)."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from kode_core.counted import can_count, count
from kode_core.engine import Engine, check_any_of
from kode_core.errors import CorruptRecordError, InvalidArgumentError
from kode_core.pace import Pace
from kode_core.query import (
    MessageQuery,
    RowQuery,
    SessionQuery,
    finds_nothing,
    message_query,
    session_query,
    tool_call_query,
)
from kode_core.searched import engine_query
from kode_core.store.context import Context
from kode_core.store.message_search import is_match
from kode_core.store.pages import FIRST_PAGE, MOST_COUNTED, next_limit
from kode_core.store.reader import left_out_of, stored_message

__all__ = ["Counting", "log_left_out", "refuse_paging", "rows_of"]

log = logging.getLogger("kode_core")

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
        refuse_paging(filters)
        query, engine = checked(filters), self._context.engine
        check_any_of(engine, query)
        if finds_nothing(query):
            return 0
        if isinstance(query, MessageQuery):
            return await self._matches(query)
        if can_count(engine):
            return await count(engine, query)
        # bodies are not decoded, so that one that is damaged counts
        return sum([len(page) async for page in pages_of(engine, query)])

    async def _matches(self, query: MessageQuery) -> int:
        """The number of messages whose contents match; the log names each message that cannot be read."""
        found, pace = 0, Pace()
        async for row in rows_of(self._context.engine, query):
            try:
                found += await is_match(await stored_message(row, pace), query, pace)
            except CorruptRecordError as exc:
                log_left_out(exc.record)
            await pace.yield_to_loop()
        return found


def refuse_paging(filters: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError if *filters* say which part of the matches is wanted."""
    for name in _PAGING:
        if name in filters:
            raise InvalidArgumentError(f"a count is of everything that matches and takes no {name}")


def log_left_out(name: str) -> None:
    """Note a record that could not be read (QRY-9)."""
    log.error("%s is damaged and was left out", name)


async def rows_of(engine: Engine, query: SessionQuery | RowQuery, first: int | None = None) -> AsyncIterator[Any]:
    """The records of these pages, one by one; those that the engine could not read are named in the log."""
    async for page in pages_of(engine, query, first):
        for name in left_out_of(page):
            log_left_out(name)
        for row in page:
            yield row


async def pages_of(
    engine: Engine, query: SessionQuery | RowQuery, first: int | None = None
) -> AsyncIterator[Sequence[Any]]:
    """Everything that matches, in pages of bounded size, the first of *first* records."""
    limit, asked = FIRST_PAGE if first is None else first, engine_query(engine, query)
    while True:
        if isinstance(asked, SessionQuery):
            page: Sequence[Any] = await engine.find_sessions(replace(asked, limit=limit))
        else:
            page = await engine.find_rows(replace(asked, limit=limit))
        yield page
        if not page or len(page) + len(left_out_of(page)) < limit:
            return
        last = page[-1]
        after = (last.created_at, last.agent_id)
        asked = replace(asked, after=after if isinstance(asked, SessionQuery) else (*after, last.position))
        bodies = (row.info if isinstance(asked, SessionQuery) else row.body for row in page)
        limit = next_limit(len(page), sum(len(body.text) for body in bodies), MOST_COUNTED)
