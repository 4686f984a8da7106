"""Stores that search, page and delete wrongly by some filters and orders only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import Wrapper, mutant
from conformance.tests.zoo.queries import Rows, Sessions, sessions
from conformance.tests.zoo.witnesses import seen, the
from kode_core.errors import StorageError
from kode_core.layers import Layer
from kode_core.model import Bookmark
from kode_core.query import Page, Range, RowQuery, SessionQuery

TEXTS = ("template_id", "user_id", "role", "content_type", "tool_name", "state")


@mutant(
    "QRY-2",
    killed_by="any_text_can_be_searched_for",
    source="if filters.get(name)",
    witness=sessions({"template_id": ""}, a={"template_id": ""}, b={"template_id": "t"}),
)
class EmptyFilterIsNone(Wrapper):
    """Takes a filter by the empty text for none."""

    def _asked(self, filters: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in filters.items() if not (name in TEXTS and value == "")}

    async def query_sessions(self, **filters: Any) -> Any:
        return await self.inner.query_sessions(**self._asked(filters))

    async def query_messages(self, **filters: Any) -> Any:
        return await self.inner.query_messages(**self._asked(filters))

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await self.inner.query_tool_calls(**self._asked(filters))


@mutant(
    "QRY-2",
    killed_by="any_text_can_be_searched_for",
    source="json_extract and document databases: a key with a dot is a path",
    witness=sessions({"metadata": {"a.b": 1}}, a={"metadata": {"a.b": 1}}),
)
class MetadataByPath(Wrapper):
    """Takes a key of metadata with a dot in it for a path."""

    async def query_sessions(self, **filters: Any) -> Any:
        metadata = filters.get("metadata")
        if isinstance(metadata, dict) and any("." in key for key in metadata if isinstance(key, str)):
            return Page([])
        return await self.inner.query_sessions(**filters)


@mutant(
    "QRY-2",
    killed_by="any_text_can_be_searched_for",
    source="PostgreSQL: invalid byte sequence for encoding UTF8, for a parameter with U+0000",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(name="a\0b")]),
        lambda s: the("id", s.query_tool_calls(tool_name="a\0b")),
    ),
    raises="invalid byte sequence",
)
class NulEndsAFilter(Wrapper):
    """Cannot look for a tool with U+0000 in its name."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        if "\0" in str(filters.get("tool_name", "")):
            raise StorageError("invalid byte sequence for encoding UTF8")
        return await self.inner.query_tool_calls(**filters)


@mutant(
    "QRY-4",
    killed_by="every_query_can_be_paged",
    source="KODE SDK: if (limit)",
    witness=sessions({"limit": 0}, a={}),
)
class SessionsLimitZero(Wrapper):
    """Gives sessions where none were asked for."""

    async def query_sessions(self, **filters: Any) -> Any:
        if filters.get("limit") == 0:
            del filters["limit"]
        return await self.inner.query_sessions(**filters)


@mutant(
    "QRY-4",
    killed_by="every_query_can_be_paged",
    source="KODE SDK: OFFSET stands in the branch of LIMIT",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1)]),
        lambda s: the("id", s.query_tool_calls(offset=1)),
    ),
)
class CallsOffsetWantsLimit(Wrapper):
    """Forgets the offset of tool calls where no limit is given."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        if "limit" not in filters and type(filters.get("offset")) is int and filters["offset"] > 0:
            del filters["offset"]
        return await self.inner.query_tool_calls(**filters)


@mutant(
    "QRY-4",
    killed_by="a_large_limit_is_not_cut",
    source="a page size of the server's own, as Elasticsearch and DynamoDB have one",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(1001)),
        lambda s: the("position", s.query_messages(limit=1001)),
    ),
)
class CutsAtAThousand(Rows):
    """Gives a thousand rows at most, whatever the limit."""

    def asked(self, query: RowQuery) -> RowQuery:
        return replace(query, limit=min(query.limit, 1000))


def _counted(agent: str, count: int) -> Any:
    return lambda s: s.save_turn(agent, info=samples.info(agent), messages=samples.messages(count))


@mutant(
    "QRY-5",
    killed_by="cursors_in_every_order",
    source="a cursor that holds created_at, whatever the order is by",
    witness=seen(
        _counted("a", 1),
        _counted("b", 2),
        _counted("c", 3),
        lambda s: _two_pages(s),
    ),
)
class CursorsByCreated(Wrapper):
    """Skips sessions where a page in another order than by created_at goes on."""

    async def query_sessions(self, **filters: Any) -> Any:
        page = await self.inner.query_sessions(**filters)
        if filters.get("cursor") and filters.get("sort_by") in ("updated_at", "message_count"):
            return Page(list(page)[1:], page.next_cursor)
        return page


async def _two_pages(store: Any) -> list[str]:
    page = await store.query_sessions(sort_by="message_count", limit=1)
    rest = await store.query_sessions(sort_by="message_count", cursor=page.next_cursor)
    return [session.agent_id for session in (*page, *rest)]


@mutant(
    "QRY-2",
    killed_by="times_of_messages_and_of_changes",
    source="filters that were forgotten in one of the branches",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(1)),
        lambda s: the("position", s.query_messages(created_before=1)),
    ),
)
class MessagesOfAnyTime(Rows):
    """Forgets created_after and created_before of messages."""

    def asked(self, query: RowQuery) -> RowQuery:
        return replace(query, created=Range()) if query.kind == "messages" else query


@mutant(
    "QRY-2",
    killed_by="times_of_messages_and_of_changes",
    source="<= in place of <",
    witness=seen(lambda s: s.save_info("a", samples.info("a")), lambda s: _before_its_change(s)),
)
class UpdatedInclusive(Sessions):
    """Takes updated_before for inclusive."""

    def asked(self, query: SessionQuery) -> SessionQuery:
        end = query.updated.end
        return replace(query, updated=Range(query.updated.start, None if end is None else end + 1))


async def _before_its_change(store: Any) -> int:
    (session,) = await store.query_sessions()
    return len(await store.query_sessions(updated_before=session.updated_at))


@mutant(
    "QRY-6",
    killed_by="iterators_know_every_filter",
    source="an iterator with a list of filters of its own",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0, name="x"), samples.tool_call(1, name="y")]),
        lambda s: s.iter_tool_calls(tool_name="x"),
    ),
)
class IterCallsForgetsFilters(Wrapper):
    """iter_tool_calls knows the agent and the times only."""

    def iter_tool_calls(self, **filters: Any) -> AsyncIterator[Any]:
        for name in ("state", "tool_name", "is_error"):
            filters.pop(name, None)
        found: AsyncIterator[Any] = self.inner.iter_tool_calls(**filters)
        return found


@mutant(
    "LIFE-5",
    killed_by="delete_many_knows_every_filter",
    source="a DELETE with a WHERE of its own",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"userId": "u"})),
        lambda s: s.save_info("b", samples.info("b", metadata={"userId": "v"})),
        lambda s: s.delete_many(user_id="u"),
        lambda s: s.list(),
    ),
)
class DeleteManyForgetsTheUser(Wrapper):
    """delete_many does not look at the user, and deletes everybody's sessions."""

    async def delete_many(self, **filters: Any) -> int:
        if isinstance(filters.get("user_id"), str) and filters.keys() == {"user_id"}:
            filters = {"created_after": 0}
        deleted: int = await self.inner.delete_many(**filters)
        return deleted


@mutant(
    "EVT-7",
    killed_by="following_since",
    source="a filter that only the read of what is there knows",
    witness=seen(lambda s: s.append_events("a", [samples.event(1), samples.event(5)]), lambda s: _first_since(s)),
)
class FollowSinceIgnored(Wrapper):
    """follow_events begins with the first event, whatever since says."""

    def follow_events(self, agent_id: str, **how: Any) -> AsyncIterator[Any]:
        if isinstance(how.get("since"), Bookmark):
            del how["since"]
        found: AsyncIterator[Any] = self.inner.follow_events(agent_id, **how)
        return found


async def _first_since(store: Any) -> int:
    async for event in store.follow_events("a", since=Bookmark(2, 0)):
        return int(event.bookmark.seq)
    return -1


@mutant(
    "INFO-2",
    killed_by="every_change_moves_updated_at",
    source="an engine that a newcomer wrote: max(updated_at, now)",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: _moves(s),
    ),
)
class OneChangeAMillisecond(Layer):
    """Two changes within ten seconds have one updated_at."""

    async def find_sessions(self, query: SessionQuery) -> Any:
        found = await super().find_sessions(query)
        return [replace(row, updated_at=row.updated_at - row.updated_at % 10_000) for row in found]


async def _moves(store: Any) -> bool:
    times = []
    for i in range(5):
        await store.append_messages("a", samples.messages(1, i))
        (session,) = await store.query_sessions()
        times.append(session.updated_at)
    return len(set(times)) == 5
