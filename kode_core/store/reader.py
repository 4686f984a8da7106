"""Reading what belongs to one agent, and searching over all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from kode_core.batch import DocKind, Found, FoundRow, ListKind, SessionRow, row_name
from kode_core.codec import Body, decode, decode_list
from kode_core.errors import CorruptRecordError, InvalidArgumentError
from kode_core.ids import plain_text
from kode_core.model import (
    AgentInfo,
    Bookmark,
    MediaCacheRecord,
    Message,
    Record,
    StoredMessage,
    StoredToolCall,
    ToolCallRecord,
)
from kode_core.query import (
    AgentStats,
    Page,
    RowQuery,
    SessionInfo,
    SessionQuery,
    make_cursor,
    message_query,
    session_query,
    tool_call_query,
)
from kode_core.store.context import Context
from kode_core.store.events import stored_event
from kode_core.store.lists import ListMemory
from kode_core.store.rows import LISTS

__all__ = ["Reader", "Search"]

log = logging.getLogger("kode_core")

_IDS_AT_ONCE: Final = 10_000

R = TypeVar("R", bound=Record)
T = TypeVar("T")

_DECODED_AT_ONCE: Final = 256
_PAGE: Final = 500


class Reader:
    """Loads the records of one agent."""

    def __init__(self, context: Context, memory: ListMemory) -> None:
        self._context = context
        self._memory = memory

    async def load_list(self, agent_id: str, kind: ListKind) -> list[Any]:
        """A whole list; other tasks get their turn while a long one is decoded."""
        rows = await self._context.engine.rows(agent_id, kind)
        cls = LISTS[kind].cls
        records = []
        for i, (body, _) in enumerate(rows.rows):
            records.append(decode(cls, body, row_name(kind, i, agent_id)))
            if i % _DECODED_AT_ONCE == _DECODED_AT_ONCE - 1:
                await asyncio.sleep(0)
        self._memory.loaded(agent_id, kind, records, rows)
        return records

    async def load_docs(self, agent_id: str, kind: DocKind, cls: type[R]) -> list[R]:
        """All documents of a kind by time, then key."""
        docs = sorted(await self._context.engine.docs(agent_id, kind), key=lambda doc: (doc.time, doc.key))
        return [decode(cls, doc.body, _label(agent_id, kind, doc.key)) for doc in docs]

    async def load_doc(self, agent_id: str, kind: DocKind, key: str, cls: type[R]) -> R | None:
        """One document."""
        for doc in await self._context.engine.docs(agent_id, kind, key):
            return decode(cls, doc.body, _label(agent_id, kind, key))
        return None

    async def load_media(self, agent_id: str) -> list[MediaCacheRecord]:
        """The media cache, which is one document."""
        for doc in await self._context.engine.docs(agent_id, DocKind.MEDIA, ""):
            return decode_list(MediaCacheRecord, doc.body, f"the media cache of agent {agent_id!r}")
        return []

    async def load_info(self, agent_id: str) -> AgentInfo | None:
        """The info, with the number of messages that are stored."""
        head = await self._context.engine.head(agent_id)
        if head is None or head.info is None:
            return None
        return replace(_info(agent_id, head.info.body), message_count=head.messages.count)

    async def exists(self, agent_id: str) -> bool:
        """Whether info was saved."""
        head = await self._context.engine.head(agent_id)
        return head is not None and head.info is not None

    async def last_bookmark(self, agent_id: str) -> Bookmark | None:
        """The bookmark of the event that is last by seq."""
        row = await self._context.engine.last_event(agent_id)
        return None if row is None else stored_event(agent_id, row).bookmark

    async def list_ids(self, prefix: str) -> list[str]:
        """Ids of agents with info."""
        if type(prefix) is not str:
            raise InvalidArgumentError(f"prefix must be a str, got {type(prefix).__name__}")
        ids: list[str] = []
        if "\0" in prefix or any("\ud800" <= c <= "\udfff" for c in prefix):
            return ids  # no agent can have such an id
        while True:
            page = await self._context.engine.agent_ids(prefix, ids[-1] if ids else None, _IDS_AT_ONCE)
            for name in left_out_of(page):
                log.error("%s is damaged and was left out", name)
            ids.extend(page)
            if len(page) < _IDS_AT_ONCE:
                return ids


def _label(agent_id: str, kind: DocKind, key: str) -> str:
    return f"{kind.value.removesuffix('s')} {key!r:.80} of agent {agent_id!r}"


def _info(agent_id: str, body: Body) -> AgentInfo:
    return decode(AgentInfo, body, f"the info of agent {agent_id!r}")


class Search:
    """Runs queries and makes pages of their results."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def sessions(self, filters: Any) -> Page[SessionInfo]:
        query = session_query(filters)
        rows = await self._context.engine.find_sessions(replace(query, limit=query.limit + 1)) if query.limit else []
        return _page(query, rows, _session, lambda row: (getattr(row, query.sort_by), row.agent_id))

    async def messages(self, filters: Any) -> Page[StoredMessage]:
        return await self._rows(message_query(filters), _stored_message)

    async def tool_calls(self, filters: Any) -> Page[StoredToolCall]:
        return await self._rows(tool_call_query(filters), _stored_tool_call)

    async def _rows(self, query: RowQuery, item: Callable[[FoundRow], T]) -> Page[T]:
        rows = await self._context.engine.find_rows(replace(query, limit=query.limit + 1)) if query.limit else []
        return _page(query, rows, item, lambda row: (row.created_at, row.agent_id, row.position))

    async def stats(self, agent_id: str) -> AgentStats:
        """Counts, with the names as the caller gave them."""
        stats = await self._context.engine.stats(agent_id)
        return replace(
            stats,
            tool_calls_by_name=_plain(stats.tool_calls_by_name),
            tool_calls_by_state=_plain(stats.tool_calls_by_state),
        )


def _plain(counts: Mapping[str, int]) -> dict[str, int]:
    return {plain_text(name): count for name, count in sorted(counts.items())}


Row = TypeVar("Row")


def _page(
    query: SessionQuery | RowQuery, rows: Sequence[Row], item: Callable[[Row], T], key: Callable[[Row], tuple[Any, ...]]
) -> Page[T]:
    shown = rows[: query.limit]
    cursor = make_cursor(query, key(shown[-1])) if len(rows) > query.limit and shown else None
    items: list[T] = []
    left_out = list(left_out_of(rows))
    for row in shown:
        try:
            items.append(item(row))
        except CorruptRecordError as exc:
            left_out.append(exc.record)
    return Page(items, cursor, tuple(left_out))


def left_out_of(found: Sequence[Any]) -> Sequence[str]:
    """The names of what an engine could not read and left out, which the log has too (QRY-9)."""
    return found.left_out if isinstance(found, Found) else ()


async def every(query: Callable[..., Awaitable[Page[T]]], filters: Mapping[str, Any]) -> AsyncIterator[T]:
    """The results of all pages of a query."""
    for name in ("limit", "offset", "cursor"):
        if name in filters:
            raise InvalidArgumentError(f"an iterator gives everything that matches and takes no {name}")
    cursor: str | None = None
    while True:
        page = await query(**filters, limit=_PAGE, cursor=cursor)
        for name in page.left_out:
            log.error("%s is damaged and was left out", name)
        for record in page:
            yield record
        cursor = page.next_cursor
        if cursor is None:
            return


def _session(row: SessionRow) -> SessionInfo:
    info = _info(row.agent_id, row.info)
    return SessionInfo(
        agent_id=row.agent_id,
        template_id=info.template_id,
        created_at=info.created_at,
        updated_at=row.updated_at,
        message_count=row.message_count,
        lineage=tuple(info.lineage),
        last_sfp_index=info.last_sfp_index,
        last_bookmark=info.last_bookmark,
        breakpoint=info.breakpoint,
        metadata=info.metadata,
    )


def _fields(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def _stored_message(row: FoundRow) -> StoredMessage:
    message = decode(Message, row.body, f"message {row.position} of agent {row.agent_id!r}")
    fields = _fields(message)
    return StoredMessage(**fields, agent_id=row.agent_id, position=row.position, created_at=row.created_at)


def _stored_tool_call(row: FoundRow) -> StoredToolCall:
    call = decode(ToolCallRecord, row.body, f"tool call {row.position} of agent {row.agent_id!r}")
    return StoredToolCall(**_fields(call), agent_id=row.agent_id, position=row.position)
