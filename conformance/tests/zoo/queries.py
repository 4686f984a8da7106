"""Stores that search wrongly (QRY clauses)."""

from __future__ import annotations

import json
from typing import Any, TypedDict

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen, the
from kode_core.layers import Layer
from kode_core.model import Message, TextBlock, ToolCallApproval, ToolUseBlock
from kode_core.query import Page, Range, RowQuery, SessionQuery
from kode_core.store import EngineStore


class Sessions(Layer):
    """Asks for other sessions than it was asked for."""

    def asked(self, query: SessionQuery) -> SessionQuery:
        raise NotImplementedError

    async def find_sessions(self, query: SessionQuery) -> Any:
        return await super().find_sessions(self.asked(query))


class Rows(Layer):
    """Asks for other rows than it was asked for."""

    def asked(self, query: RowQuery) -> RowQuery:
        raise NotImplementedError

    async def find_rows(self, query: RowQuery) -> Any:
        return await super().find_rows(self.asked(query))


class _Facts(TypedDict, total=False):
    template_id: str
    created_at: int
    metadata: dict[str, Any]


def sessions(query: dict[str, Any], **facts: _Facts) -> Any:
    """A story of agents, and of the sessions that a query finds among them."""

    async def save(store: Any) -> None:
        for agent, fact in facts.items():
            await store.save_info(agent, samples.info(agent, **fact))

    return seen(save, lambda s: the("agent_id", s.query_sessions(**query)))


# --- filters of sessions ----------------------------------------------------------------------------------------------


@mutant(
    "QRY-2",
    killed_by="session_filters_select",
    source="KODE SDK SqliteStore and PostgresStore: userId is never looked at",
    witness=sessions({"user_id": "u"}, a={"metadata": {"userId": "u"}}, b={"metadata": {"userId": "v"}}),
    also=("QRY-2.random_histories_and_queries",),
)
class IgnoresTheUser(Sessions):
    """Shows a user everybody's sessions."""

    def asked(self, query: SessionQuery) -> SessionQuery:
        return replace(query, metadata=tuple(pair for pair in query.metadata if pair[0] != "userId"))


@mutant(
    "QRY-2",
    killed_by="session_filters_select",
    source="filters that were forgotten in one of the branches",
    witness=sessions({"template_id": "x"}, a={"template_id": "x"}, b={"template_id": "y"}),
)
class IgnoresTheTemplate(Sessions):
    """Forgets the filter by template."""

    def asked(self, query: SessionQuery) -> SessionQuery:
        return replace(query, template_id=None)


@mutant(
    "QRY-2",
    killed_by="session_filters_select",
    source="KODE SDK SqliteStore: `if (filters.endDate)`, so that a date of 0 is none",
    witness=sessions({"created_before": 0}, a={"created_at": 5}),
)
class NoTimeIsZero(Sessions):
    """Takes a bound of 0 for none."""

    def asked(self, query: SessionQuery) -> SessionQuery:
        return replace(query, created=Range(query.created.start or None, query.created.end or None))


@mutant(
    "QRY-2",
    killed_by="times_bound_to_the_millisecond",
    source="KODE SDK SqliteStore: created_at <= endDate",
    witness=sessions({"created_before": 5}, a={"created_at": 5}),
)
class InclusiveBefore(Sessions):
    """Takes the end of a span of time in."""

    def asked(self, query: SessionQuery) -> SessionQuery:
        end = query.created.end
        return replace(query, created=Range(query.created.start, None if end is None else end + 1))


@mutant(
    "QRY-2",
    killed_by="times_bound_to_the_millisecond",
    source="created_at > startDate",
    witness=sessions({"created_after": 5}, a={"created_at": 5}),
)
class ExclusiveAfter(Sessions):
    """Leaves the start of a span of time out."""

    def asked(self, query: SessionQuery) -> SessionQuery:
        start = query.created.start
        return replace(query, created=Range(None if start is None else start + 1, query.created.end))


@mutant(
    "QRY-2",
    killed_by="session_filters_select",
    source="metadata compared as JSON text",
    witness=sessions({"metadata": {"n": 2.0}}, a={"metadata": {"n": 2}}),
)
class MetadataAsText(EngineStore):
    """Tells 2 from 2.0 in metadata."""

    async def query_sessions(self, **filters: Any) -> Any:
        page = await super().query_sessions(**filters)
        wanted = filters.get("metadata") or {}
        fits = [s for s in page if all(json.dumps(s.metadata.get(k)) == json.dumps(v) for k, v in wanted.items())]
        return Page(fits, page.next_cursor)


@mutant(
    "QRY-2",
    killed_by="a_session_tells_what_is_known",
    source="KODE SDK SqliteStore and PostgresStore: the breakpoint of a session is always null",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: the("breakpoint", s.query_sessions()),
    ),
)
class SessionsWithoutBreakpoint(EngineStore):
    """Shows sessions without their breakpoint."""

    async def query_sessions(self, **filters: Any) -> Any:
        page = await super().query_sessions(**filters)
        return Page((replace(session, breakpoint=None) for session in page), page.next_cursor)


# --- filters of rows --------------------------------------------------------------------------------------------------

_ROLES = [Message.user("u"), Message.assistant("a"), Message("assistant", [ToolUseBlock("c", "x", {})])]


@mutant(
    "QRY-2",
    killed_by="message_filters_select",
    source="KODE SDK SqliteStore and PostgresStore: contentType of the guide is not implemented",
    witness=seen(
        lambda s: s.save_messages("a", _ROLES),
        lambda s: the("position", s.query_messages(content_type="tool_use")),
    ),
)
class IgnoresContentType(Rows):
    """Forgets the filter by content type."""

    def asked(self, query: RowQuery) -> RowQuery:
        return replace(query, where=tuple(pair for pair in query.where if pair[0] != "content_type"))


@mutant(
    "QRY-2",
    killed_by="message_filters_select",
    source="COLLATE NOCASE",
    witness=seen(
        lambda s: s.save_messages("a", [Message("User", [TextBlock("x")])]),
        lambda s: the("position", s.query_messages(role="user")),
    ),
)
class RolesWithoutCase(EngineStore):
    """Finds messages of "User" when asked for "user"."""

    async def query_messages(self, **filters: Any) -> Any:
        if not isinstance(filters.get("role"), str):
            return await super().query_messages(**filters)
        role = filters.pop("role")
        page = await super().query_messages(**filters)
        return Page((m for m in page if m.role.lower() == role.lower()), page.next_cursor)


CALLS = [
    samples.tool_call(0, name="bash", approval=ToolCallApproval(required=True)),
    samples.tool_call(1, name="bash_run", state="FAILED", is_error=True),
]


def _calls(**filters: Any) -> Any:
    return seen(
        lambda s: s.save_tool_call_records("a", CALLS),
        lambda s: the("id", s.query_tool_calls(**filters)),
    )


@mutant(
    "QRY-2",
    killed_by="tool_call_filters_select",
    source="KODE SDK SqliteStore and PostgresStore: hasApproval of the guide, where every record has an approval",
    witness=_calls(has_approval=True),
)
class EveryCallHasAnApproval(Rows):
    """Takes every call for one that went through the approval."""

    def asked(self, query: RowQuery) -> RowQuery:
        return replace(query, where=tuple(pair for pair in query.where if pair[0] != "has_approval"))


@mutant(
    "QRY-2",
    killed_by="tool_call_filters_select",
    source="KODE SDK SqliteStore and PostgresStore: isError of the guide is not implemented",
    witness=_calls(is_error=True),
)
class IgnoresErrors(Rows):
    """Forgets the filter by errors."""

    def asked(self, query: RowQuery) -> RowQuery:
        return replace(query, where=tuple(pair for pair in query.where if pair[0] != "is_error"))


@mutant(
    "QRY-2",
    killed_by="tool_call_filters_select",
    source="tool_name LIKE ? || '%'",
    witness=_calls(tool_name="bash"),
)
class ToolNamesByPrefix(EngineStore):
    """Finds the calls of every tool whose name begins with the one that is asked for."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        if not isinstance(filters.get("tool_name"), str):
            return await super().query_tool_calls(**filters)
        name = filters.pop("tool_name")
        page = await super().query_tool_calls(**filters)
        return Page((call for call in page if call.name.startswith(name)), page.next_cursor)


# --- refusing ---------------------------------------------------------------------------------------------------------


@mutant(
    "QRY-1",
    killed_by="wrong_filters_are_refused",
    source="KODE SDK SqliteStore and PostgresStore: unknown filters are ignored",
    witness=sessions({"templateId": "x"}, a={}),
)
class SwallowsUnknownFilters(EngineStore):
    """Ignores filters that it does not know."""

    async def query_sessions(self, **filters: Any) -> Any:
        known = ("agent_id", "template_id", "metadata", "limit", "offset", "cursor", "order", "sort_by")
        return await super().query_sessions(**{k: v for k, v in filters.items() if k in known})


@mutant(
    "QRY-1",
    killed_by="wrong_filters_are_refused",
    source="KODE SDK SqliteStore and PostgresStore: sortBy and sortOrder are spliced into the SQL, and executed",
    witness=sessions({"sort_by": "created_at; DROP TABLE x"}, a={}),
)
class SplicesTheOrder(EngineStore):
    """Takes any text for a sort key that begins with one."""

    async def query_sessions(self, **filters: Any) -> Any:
        if isinstance(filters.get("sort_by"), str):
            filters["sort_by"] = filters["sort_by"].partition(";")[0]
        return await super().query_sessions(**filters)
