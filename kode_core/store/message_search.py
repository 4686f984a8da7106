"""Searches for messages by their contents: the store reads all that the other filters leave (QRY-12, QRY-13)."""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from kode_core.batch import FoundRow
from kode_core.engine import Engine, check_any_of
from kode_core.errors import CorruptRecordError
from kode_core.ids import index_text
from kode_core.metadata import index_of_metadata
from kode_core.model import Message, StoredMessage
from kode_core.pace import Pace
from kode_core.query import MessageQuery, Page, finds_nothing, message_query, page_cursor
from kode_core.searched import engine_query
from kode_core.store.pages import FIRST_PAGE, MOST_COUNTED, next_limit
from kode_core.store.reader import Search, SizedPage, left_out_of, stored_message
from kode_core.texts import contains_text

__all__ = ["MOST_SCANNED", "MessageSearch", "is_match"]

MOST_SCANNED: Final = 10_000
"""The most messages that one call reads; its page then ends, with a cursor."""
_MOST_CHARACTERS: Final = 64 << 20


async def is_match(message: Message, query: MessageQuery, pace: Pace) -> bool:
    """Whether the contents of a message match; the other filters are the engine's."""
    if query.metadata:
        keys = {key for key, _ in query.metadata}
        asked = {key: value for key, value in (message.metadata or {}).items() if index_text(key) in keys}
        if len(asked) < len(keys):
            return False
        pairs = await index_of_metadata(asked, "the metadata of a message", pace)
        if not set(query.metadata) <= set(pairs):
            return False
    return query.contains is None or await contains_text(message, query.contains, pace)


class MessageSearch(Search):
    """Searches that look into messages, and all others."""

    async def messages(self, filters: Any) -> Page[StoredMessage]:
        query = message_query(filters)
        if not isinstance(query, MessageQuery):
            return await self._rows(query, stored_message)
        engine = self._context.engine
        check_any_of(engine, query)
        if finds_nothing(query) or not query.limit:
            return Page()
        return await _Scan(query).run(engine)


class _Scan:
    """One page, in the making."""

    def __init__(self, query: MessageQuery) -> None:
        self._query = query
        self._skip = query.offset
        self._looked_at = 0
        self._characters = 0
        self._left_out: list[str] = []
        self._items: list[StoredMessage] = []

    async def run(self, engine: Engine) -> Page[StoredMessage]:
        asked = replace(engine_query(engine, self._query), offset=0)
        limit, pace = FIRST_PAGE, Pace()
        while True:
            rows = await engine.find_rows(replace(asked, limit=limit))
            self._left_out += left_out_of(rows)
            before = self._characters
            for number, row in enumerate(rows, 1):
                if await self._take(row, pace):
                    is_last = number == len(rows) and _is_end(rows, limit)
                    return self._page(None if is_last else row)
            if not rows or _is_end(rows, limit):
                return self._page(None)
            last = rows[-1]
            if self._looked_at >= MOST_SCANNED or self._characters >= _MOST_CHARACTERS:
                return self._page(last)
            asked = replace(asked, after=(last.created_at, last.agent_id, last.position))
            limit = next_limit(len(rows), self._characters - before, MOST_COUNTED)
            limit = min(limit, MOST_SCANNED - self._looked_at)

    async def _take(self, row: FoundRow, pace: Pace) -> bool:
        """Look at a message; True if the page is then full."""
        self._looked_at += 1
        self._characters += len(row.body.text)
        try:
            message = await stored_message(row, pace)
        except CorruptRecordError as exc:
            self._left_out.append(exc.record)
            return False
        await pace.yield_to_loop()
        if not await is_match(message, self._query, pace):
            return False
        if self._skip:
            self._skip -= 1
            return False
        self._items.append(message)
        return len(self._items) == self._query.limit

    def _page(self, last: FoundRow | None) -> Page[StoredMessage]:
        """The page, which goes on behind *last*."""
        cursor = None
        if last is not None:
            cursor = page_cursor(self._query, (last.created_at, last.agent_id, last.position, self._skip))
        page = SizedPage(self._items, cursor, tuple(self._left_out))
        page.characters = self._characters
        return page


def _is_end(rows: Any, limit: int) -> bool:
    return len(rows) + len(left_out_of(rows)) < limit
