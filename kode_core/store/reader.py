"""Reads the records of one agent, and searches all agents."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from msgspec.structs import asdict, replace

from kode_core.batch import AgentSummary, Doc, DocKind, Found, FoundRow, ListKind, SessionRow
from kode_core.codec import Body
from kode_core.engine import check_any_of
from kode_core.errors import CorruptRecordError, InvalidArgumentError
from kode_core.ids import can_begin, is_shortened, plain_text, prefix_end, row_name
from kode_core.large import decode_in_slices, decode_list_in_slices, decode_run_in_slices
from kode_core.model import (
    AgentInfo,
    Bookmark,
    Message,
    Record,
    StoredMessage,
    StoredToolCall,
    ToolCallRecord,
)
from kode_core.pace import Pace
from kode_core.query import (
    AgentStats,
    Page,
    RowQuery,
    SessionInfo,
    SessionQuery,
    finds_nothing,
    message_query,
    page_cursor,
    session_query,
    tool_call_query,
)
from kode_core.store.context import Context
from kode_core.store.events import stored_event
from kode_core.store.kinds import Kind
from kode_core.store.list_memory import ListMemory
from kode_core.store.pages import FIRST_PAGE, next_limit
from kode_core.store.remembered import Remembered, Tail
from kode_core.store.rows import LISTS
from kode_core.store.steps import checked_flag
from kode_core.store.stored_ids import below
from kode_core.tenants import seen_from

__all__ = ["Reader", "Search", "decoded_info", "left_out_of", "session_of", "stored_message", "stored_tool_call"]

log = logging.getLogger("kode_core")

_IDS_AT_ONCE: Final = 10_000
_RUN: Final = 128
_RUN_CHARACTERS: Final = 2**16

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class Reader:
    """Loads the records of one agent."""

    def __init__(self, context: Context, memory: ListMemory) -> None:
        self._context = context
        self._memory = memory

    async def load_list(self, agent_id: str, kind: ListKind) -> list[Any]:
        """A whole list, which is then remembered."""
        rows = await self._context.engine.rows(agent_id, kind)
        known = self._memory.get(agent_id, kind)
        is_new = known is None or known.version != rows.version or known.is_incomplete
        version = rows.version
        pending = [*rows.rows]
        del rows  # each body is released once it was decoded
        tail = Tail() if is_new else None
        records = await self._decoded(agent_id, kind, pending, 0, tail)
        if tail is not None and version:
            self._memory.put(agent_id, kind, Remembered.of_tail(version, tail))
        return records

    async def decoded(self, agent_id: str, kind: ListKind, rows: Sequence[tuple[Body, int]], start: int) -> list[Any]:
        """The records of rows, the first of which is at position *start*; a row that was decoded is released."""
        pending = [*rows]
        del rows
        return await self._decoded(agent_id, kind, pending, start, None)

    async def _decoded(
        self, agent_id: str, kind: ListKind, pending: list[tuple[Body, int]], start: int, tail: Tail | None
    ) -> list[Any]:
        """The records of *pending*, which is used up; *tail* notes them."""
        codec, pace = LISTS[kind], Pace()
        pending.reverse()
        records: list[Any] = []
        while pending:
            run = _next_run(pending)
            name = functools.partial(_row_name, kind, agent_id, start + len(records))
            some = await decode_run_in_slices(codec.cls, [body for body, _ in run], name, pace)
            records += some
            if tail is not None:
                tail.add_read(some, run, codec.key)
        return records

    async def load_docs(self, agent_id: str, kind: Kind[R]) -> list[R]:
        """All records of a kind, in its order."""
        return await self.decoded_docs(agent_id, kind, await self._context.engine.docs(agent_id, kind.kind))

    async def decoded_docs(self, agent_id: str, kind: Kind[R], docs: Sequence[Doc]) -> list[R]:
        """The records of documents that were read, in the order of the kind."""
        docs, pace = sorted(docs, key=kind.order), Pace()
        return [await decode_in_slices(kind.cls, doc.body, _label(agent_id, kind.kind, doc.key), pace) for doc in docs]

    async def load_doc(self, agent_id: str, kind: Kind[R], key: str = "") -> R | None:
        """The record under a key."""
        docs = await self._context.engine.docs(agent_id, kind.kind, key)
        return await self.decoded_doc(agent_id, kind, docs, key)

    async def decoded_doc(self, agent_id: str, kind: Kind[R], docs: Sequence[Doc], key: str) -> R | None:
        """The record under a key, among documents that were read."""
        for doc in docs:
            if doc.key == key:
                return await decode_in_slices(kind.cls, doc.body, _label(agent_id, kind.kind, key), Pace())
        return None

    async def load_list_doc(self, agent_id: str, kind: Kind[R]) -> list[R]:
        """The records of a kind that has them in one document."""
        return await self.decoded_list_doc(agent_id, kind, await self._context.engine.docs(agent_id, kind.kind, ""))

    async def decoded_list_doc(self, agent_id: str, kind: Kind[R], docs: Sequence[Doc]) -> list[R]:
        """The records of the one document, if it was found."""
        for doc in docs:
            return await decode_list_in_slices(kind.cls, doc.body, f"the {kind.noun} of agent {agent_id!r}", Pace())
        return []

    async def load_info(self, agent_id: str) -> AgentInfo | None:
        """The info, with the number of stored messages."""
        summary = await self._context.engine.summary(agent_id)
        if summary is None or summary.info is None:
            return None
        return replace(await decoded_info(agent_id, summary.info.body, Pace()), message_count=summary.messages.count)

    async def exists(self, agent_id: str) -> bool:
        """True if info was saved."""
        summary = await self._context.engine.summary(agent_id)
        return summary is not None and summary.info is not None

    async def last_bookmark(self, agent_id: str) -> Bookmark | None:
        """The bookmark of the last event by seq."""
        row = await self._context.engine.last_event(agent_id)
        return None if row is None else (await stored_event(agent_id, row, Pace())).bookmark

    async def list_ids(self, prefix: str, include_without_info: bool) -> list[str]:
        """Ids of agents with info; *include_without_info* adds those under which only other records are stored."""
        everyone = checked_flag(include_without_info, "include_without_info")
        if type(prefix) is not str:
            raise InvalidArgumentError(f"prefix must be a str, got {type(prefix).__name__}")
        ids: list[str] = []
        if not can_begin(prefix):
            return ids
        async for page in self._id_pages(prefix, everyone=everyone):
            for name in left_out_of(page):
                log.error("%s is damaged and was left out", name)
            ids.extend(page)
        return ids

    async def _id_pages(self, prefix: str, *, everyone: bool) -> AsyncIterator[Sequence[str]]:
        engine, after = self._context.engine, None
        while not everyone:
            page = await engine.agent_ids(prefix, after, _IDS_AT_ONCE)
            yield page
            if len(page) < _IDS_AT_ONCE:
                return
            after = page[-1]
        end, after = prefix_end(prefix), below(prefix)
        while True:
            page = await engine.stored_ids(after, _IDS_AT_ONCE)
            yield Found((one for one in page if one.startswith(prefix)), left_out_of(page))
            if not page or (end is not None and page[-1] >= end):
                return
            after = page[-1]


def _next_run(pending: list[tuple[Body, int]]) -> list[tuple[Body, int]]:
    """Take the next rows off the end of *pending*: as many as can be decoded in less than a millisecond."""
    run = pending[: -_RUN - 1 : -1]
    size = 0
    for i, (body, _) in enumerate(run):
        size += len(body.text)
        if size > _RUN_CHARACTERS and i:
            del run[i:]
            break
    del pending[-len(run) :]
    return run


def _row_name(kind: ListKind, agent_id: str, start: int, place: int) -> str:
    return row_name(kind, start + place, agent_id)


def _label(agent_id: str, kind: DocKind, key: str) -> str:
    return f"{kind.value.removesuffix('s')} {key!r:.80} of agent {agent_id!r}"


async def decoded_info(agent_id: str, body: Body, pace: Pace) -> AgentInfo:
    """The agent's info from its body, with the ids as this store has them (SCOPE-3)."""
    info = await decode_in_slices(AgentInfo, body, f"the info of agent {agent_id!r}", pace)
    change = None if info.agent_id == agent_id else seen_from(agent_id, info.agent_id)
    if change is None:
        return info
    gone, added = change
    return replace(info, agent_id=agent_id, lineage=[added + one.removeprefix(gone) for one in info.lineage])


class Search:
    """Runs queries and makes pages of their results."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def sessions(self, filters: Any) -> Page[SessionInfo]:
        query = session_query(filters)
        check_any_of(self._context.engine, query)
        return await _page(
            query,
            self._context.engine.find_sessions,
            lambda row: row.info,
            session_of,
            lambda row: (getattr(row, query.sort_by), row.agent_id),
        )

    async def messages(self, filters: Any) -> Page[StoredMessage]:
        return await self._rows(message_query(filters), stored_message)

    async def tool_calls(self, filters: Any) -> Page[StoredToolCall]:
        return await self._rows(tool_call_query(filters), stored_tool_call)

    async def _rows(self, query: RowQuery, item: Callable[[FoundRow, Pace], Awaitable[T]]) -> Page[T]:
        check_any_of(self._context.engine, query)
        return await _page(
            query,
            self._context.engine.find_rows,
            lambda row: row.body,
            item,
            lambda row: (row.created_at, row.agent_id, row.position),
        )

    async def stats(self, agent_id: str) -> AgentStats:
        """Counts, with the names in their original form."""
        stats = await self._context.engine.stats(agent_id)
        return replace(
            stats,
            tool_calls_by_name=await self._named(agent_id, "tool_name", stats.tool_calls_by_name),
            tool_calls_by_state=await self._named(agent_id, "state", stats.tool_calls_by_state),
        )

    async def _named(self, agent_id: str, column: str, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts by the saved texts, in the order of the index, which has long texts in a short form."""
        return {
            await self._whole(agent_id, column, name) if is_shortened(name) else plain_text(name): count
            for name, count in sorted(counts.items())
        }

    async def _whole(self, agent_id: str, column: str, shortened: str) -> str:
        """A text that the index holds only in short form, taken from a call that has it.

        If no call is left, because the counts are from a moment before, it is the short form.
        """
        query = RowQuery(kind="tool_calls", agent_id=agent_id, where=((column, shortened),), limit=1)
        for row in await self._context.engine.find_rows(query):
            call = await stored_tool_call(row, Pace())
            return call.name if column == "tool_name" else call.state
        return shortened


Row = TypeVar("Row")
Query = TypeVar("Query", SessionQuery, RowQuery)


class SizedPage(Page[T]):
    """A page with the number of characters that its records take in the store."""

    __slots__ = ("characters",)

    characters: int


async def _page(
    query: Query,
    find: Callable[[Query], Awaitable[Sequence[Row]]],
    body: Callable[[Row], Body],
    item: Callable[[Row, Pace], Awaitable[T]],
    key: Callable[[Row], tuple[Any, ...]],
) -> Page[T]:
    """A page; in place of records that cannot be read, which are named, others that match are read (QRY-5, QRY-9)."""
    pace = Pace()
    items: list[T] = []
    left_out: list[str] = []
    characters = 0
    cursor: str | None = None
    asked, most = query, query.limit
    while len(items) < query.limit and not finds_nothing(query):
        rows = await find(replace(asked, limit=most + 1))
        left_out += left_out_of(rows)
        shown = 0
        for row in rows[:most]:
            shown += 1
            characters += len(body(row).text)
            try:
                items.append(await item(row, pace))
            except CorruptRecordError as exc:
                left_out.append(exc.record)
            if len(items) == query.limit:
                break
        if shown == len(rows):
            break
        if len(items) == query.limit:
            cursor = page_cursor(query, key(rows[shown - 1]))
        asked = replace(asked, after=key(rows[shown - 1]), offset=0)
        most = max(query.limit - len(items), min(2 * most, FIRST_PAGE))  # or a row at a time, where many are damaged
    page = SizedPage(items, cursor, tuple(left_out))
    page.characters = characters
    return page


def left_out_of(found: Sequence[Any]) -> Sequence[str]:
    """The names of the records that an engine could not read and left out, which are also logged (QRY-9)."""
    return found.left_out if isinstance(found, Found) else ()


async def every(query: Callable[..., Awaitable[Page[T]]], filters: Mapping[str, Any]) -> AsyncIterator[T]:
    """The results of all pages of a query."""
    for name in ("limit", "offset", "cursor"):
        if name in filters:
            raise InvalidArgumentError(f"an iterator gives everything that matches and takes no {name}")
    cursor: str | None = None
    limit = FIRST_PAGE
    while True:
        page = await query(**filters, limit=limit, cursor=cursor)
        for name in page.left_out:
            log.error("%s is damaged and was left out", name)
        cursor = page.next_cursor
        limit = next_limit(len(page), page.characters if isinstance(page, SizedPage) else 0)
        page.reverse()
        while page:  # a record is released as soon as the caller is done with it
            yield page.pop()
        if cursor is None:
            return


async def session_of(row: SessionRow, pace: Pace) -> SessionInfo:
    """The session of a row."""
    info = await decoded_info(row.agent_id, row.info, pace)
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


async def session_in(summary: AgentSummary | None, pace: Pace) -> SessionInfo | None:
    """The session of an agent; None without info."""
    if summary is None or summary.info is None:
        return None
    info = summary.info
    row = SessionRow(summary.agent_id, info.body, info.created_at, summary.updated_at, summary.messages.count)
    return await session_of(row, pace)


async def stored_message(row: FoundRow, pace: Pace) -> StoredMessage:
    """The message of a row, with its place."""
    message = await decode_in_slices(Message, row.body, f"message {row.position} of agent {row.agent_id!r}", pace)
    return StoredMessage(**asdict(message), agent_id=row.agent_id, position=row.position, created_at=row.created_at)


async def stored_tool_call(row: FoundRow, pace: Pace) -> StoredToolCall:
    """The tool call of a row, with its place."""
    call = await decode_in_slices(ToolCallRecord, row.body, f"tool call {row.position} of agent {row.agent_id!r}", pace)
    return StoredToolCall(**asdict(call), agent_id=row.agent_id, position=row.position)
