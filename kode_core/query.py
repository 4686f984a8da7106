"""Queries over many agents: filters, order, pages and cursors (QRY clauses).

A query is given as keyword arguments; :class:`SessionFilter`, :class:`MessageFilter` and :class:`ToolCallFilter` list
them. They are checked here, once for every backend: an unknown filter, or one of the wrong type, raises
InvalidArgumentError and is never ignored (QRY-1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, Literal, TypeAlias, TypedDict, TypeVar

import msgspec

from kode_core.cursors import is_agent_id, is_int64, make_cursor, parse_cursor
from kode_core.errors import InvalidArgumentError
from kode_core.ids import can_begin, check_agent_id, index_text, nearest, quoted
from kode_core.metadata import mapping_of, metadata_index
from kode_core.model import Json
from kode_core.model.sessions import AgentStats, Durations, Group, Session, SessionInfo
from kode_core.texts import MAX_CONTAINS, folded
from kode_core.wanted import DAY_MS as DAY_MS
from kode_core.wanted import DEFAULT_LIMIT, Range, RowQuery, SessionQuery, SortBy, Wanted
from kode_core.wanted import MAX_GROUPS as MAX_GROUPS
from kode_core.wanted import Grouping as Grouping
from kode_core.wanted import GroupRows as GroupRows
from kode_core.wanted import MessageQuery as MessageQuery
from kode_core.wanted import Within as Within
from kode_core.wanted import finds_nothing as finds_nothing
from kode_core.wanted import lists_values as lists_values
from kode_core.wanted import values_of as values_of

__all__ = [
    "DEFAULT_LIMIT",
    "MAX_GROUPS",
    "MAX_LIMIT",
    "MAX_VALUES",
    "AgentStats",
    "AnyOf",
    "Durations",
    "Group",
    "MessageConditions",
    "MessageFilter",
    "OnCorrupt",
    "Page",
    "Range",
    "RowQuery",
    "Session",
    "SessionConditions",
    "SessionFilter",
    "SessionInfo",
    "SessionQuery",
    "SortBy",
    "Time",
    "ToolCallConditions",
    "ToolCallFilter",
    "Wanted",
    "Within",
]

MAX_LIMIT: Final = 10_000
MAX_VALUES: Final = 100
"""The most different values that one filter can list."""

AnyOf: TypeAlias = str | list[str] | tuple[str, ...] | set[str] | frozenset[str]
"""One value, or a list, tuple, set or frozenset of values, of which a record must have one; an empty one finds nothing.

Neither their order nor repeated values matter, and one value in a list is that value.
"""

Time = int | datetime
"""Milliseconds since the epoch, or an aware datetime (VAL-5)."""
Order = Literal["desc", "asc"]

OnCorrupt = Literal["raise", "skip"]
"""How a load treats records that cannot be read: it raises CorruptRecordError, or leaves them out and names them."""

T = TypeVar("T")


class _Paging(TypedDict, total=False):
    limit: int
    offset: int
    cursor: str | None
    order: Order


class _Created(TypedDict, total=False):
    created_after: Time
    created_before: Time


class SessionConditions(_Created, total=False):
    """Filters of ``count_sessions``. *After* is inclusive, *before* is exclusive; a session must match all filters.

    ``user_id`` is ``metadata["userId"]``. ``metadata`` compares top-level keys for equality of JSON values: numbers
    by value (``1`` is ``1.0``), the order of keys does not matter. A filter that is an :data:`AnyOf` takes a list.
    """

    agent_id: AnyOf
    template_id: AnyOf
    user_id: AnyOf
    metadata: Mapping[str, Json]
    updated_after: Time
    updated_before: Time


class SessionFilter(SessionConditions, _Paging, total=False):
    """Filters of ``query_sessions``: :class:`SessionConditions`, the order, and the page."""

    sort_by: SortBy


class MessageConditions(_Created, total=False):
    """Filters of ``count_messages``; ``content_type`` finds messages with at least one block of that type.

    ``contains`` finds messages of which a text contains this one, however upper and lower case are written (QRY-12):
    texts, reasoning, names of files, and strings in the inputs and results of tools. ``metadata`` compares as for
    sessions (QRY-13). Both are checked message by message, so that a page may be shorter than its limit, or empty,
    and still have a cursor.
    """

    agent_id: AnyOf
    role: AnyOf
    content_type: AnyOf
    contains: str
    metadata: Mapping[str, Json]


class MessageFilter(MessageConditions, _Paging, total=False):
    """Filters of ``query_messages``: :class:`MessageConditions`, the order, and the page."""


class ToolCallConditions(_Created, total=False):
    """Filters of ``count_tool_calls``; ``has_approval`` is ``approval.required``, pending or decided."""

    agent_id: AnyOf
    tool_name: AnyOf
    state: AnyOf
    is_error: bool
    has_approval: bool


class ToolCallFilter(ToolCallConditions, _Paging, total=False):
    """Filters of ``query_tool_calls``: :class:`ToolCallConditions`, the order, and the page."""


class Page(list[T], Generic[T]):
    """A list of results with a cursor to the next page.

    Attributes:
        next_cursor: pass it as ``cursor=`` with the same filters to get the next page; None on the last page.
        left_out: names of damaged records that would have been on this page, as in ``message 3 of agent 'a'`` (QRY-9).
    """

    __slots__ = ("left_out", "next_cursor")

    def __init__(self, items: Iterable[T] = (), next_cursor: str | None = None, left_out: tuple[str, ...] = ()) -> None:
        super().__init__(items)
        self.next_cursor = next_cursor
        self.left_out = left_out

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from kode_core.schemas import page_schema

        return page_schema(source, handler)


# --- Checked queries --------------------------------------------------------------------------------------------------


def session_query(filters: SessionFilter) -> SessionQuery:
    """The checked form of *filters*; raises InvalidArgumentError."""
    given = _FilterArguments("sessions", filters, SessionFilter)
    metadata = dict(given.take("metadata", _metadata) or {})
    pairs: tuple[tuple[str, Wanted], ...] = metadata_index(metadata, "the filter metadata")
    users = given.any_of("user_id", _user)
    if users is not None:
        pairs += ((index_text("userId"), users),)
    query = SessionQuery(
        agent_id=given.agents(),
        template_id=given.any_of("template_id", _indexed),
        metadata=pairs,
        created=given.range("created"),
        updated=given.range("updated"),
        sort_by=given.take("sort_by", _one_of("created_at", "updated_at", "message_count")) or "created_at",
        descending=given.descending(),
    )
    return given.paged(query)


def message_query(filters: MessageFilter) -> RowQuery:
    """The checked form of *filters*; raises InvalidArgumentError."""
    given = _FilterArguments("messages", filters, MessageFilter)
    contains = given.take("contains", _needle)
    metadata = metadata_index(dict(given.take("metadata", _metadata) or {}), "the filter metadata")
    query = _row_query(given, given.where(role=_indexed, content_type=_indexed))
    if contains is not None or metadata:
        plain = {name: getattr(query, name) for name in RowQuery.__struct_fields__}
        query = MessageQuery(**plain, contains=contains, metadata=metadata)
    return given.paged(query)


def tool_call_query(filters: ToolCallFilter) -> RowQuery:
    """The checked form of *filters*; raises InvalidArgumentError."""
    given = _FilterArguments("tool_calls", filters, ToolCallFilter)
    where = given.where(tool_name=_indexed, state=_indexed, is_error=_bool, has_approval=_bool)
    return given.paged(_row_query(given, where))


def _row_query(given: _FilterArguments, where: tuple[tuple[str, Wanted | bool], ...]) -> RowQuery:
    return RowQuery(
        kind=given.kind,
        agent_id=given.agents(),
        where=where,
        created=given.range("created"),
        descending=given.descending(),
    )


Q = TypeVar("Q", SessionQuery, RowQuery)


class _FilterArguments:
    """The keyword arguments of one query, taken and checked one by one."""

    def __init__(self, kind: Any, filters: Mapping[str, Any], shape: type) -> None:
        self.kind = kind
        self.filters = filters
        known = shape.__annotations__.keys() | _Paging.__annotations__.keys() | _Created.__annotations__.keys()
        for name in filters:
            if name not in known:
                near = nearest(name, known)
                hint = f"did you mean {near!r}?" if near else f"known are {', '.join(sorted(known))}"
                raise InvalidArgumentError(f"unknown filter {name!r} for {kind}; {hint}")

    def take(self, name: str, check: Callable[[str, Any], Any]) -> Any:
        if name not in self.filters:
            return None
        value = self.filters[name]
        if value is None:
            raise InvalidArgumentError(f"the filter {name} is None; leave it out to not filter by it")
        return check(name, value)

    def any_of(self, name: str, check: Callable[[str, Any], str]) -> Wanted | None:
        """The value of the filter, or the values of its list in the form that equal lists have."""
        given = self.take(name, lambda _, value: value)
        if given is None or type(given) is str:
            return None if given is None else check(name, given)
        wanted = sorted({check(name, one) for one in different_values(name, given, _text)})
        return wanted[0] if len(wanted) == 1 else tuple(wanted)

    def agents(self) -> Wanted | Within | None:
        """The agent, the agents, or the range of agents, which commands ask for; empty if no id can be in the range."""
        given = self.filters.get("agent_id")
        if not isinstance(given, Within):
            return self.any_of("agent_id", _agent_id)
        return given if can_begin(given.prefix) else ()

    def where(self, **columns: Callable[[str, Any], Any]) -> tuple[tuple[str, Wanted | bool], ...]:
        """The values of the columns, which have the names of their filters."""
        found = ((name, (self.take if check is _bool else self.any_of)(name, check)) for name, check in columns.items())
        return tuple((name, value) for name, value in found if value is not None)

    def range(self, name: str) -> Range:
        return Range(self.take(f"{name}_after", time_ms), self.take(f"{name}_before", time_ms))

    def descending(self) -> bool:
        return (self.take("order", _one_of("desc", "asc")) or "desc") == "desc"

    def paged(self, query: Q) -> Q:
        """*query* with its limit, offset and cursor; the hash in a cursor is taken of the query without them."""
        limit = self.take("limit", _count)
        limit = DEFAULT_LIMIT if limit is None else limit
        if limit > MAX_LIMIT:
            raise InvalidArgumentError(f"limit is at most {MAX_LIMIT}; follow next_cursor for more")
        offset = self.take("offset", _count) or 0
        cursor = self.take("cursor", _text) if self.filters.get("cursor") is not None else None
        if cursor is not None and offset:
            raise InvalidArgumentError("give cursor or offset, not both: a cursor already says where to go on")
        after: Any = None if cursor is None else parse_cursor(cursor, _unpaged(query), _KEY_PARTS[type(query)])
        if after is not None and isinstance(query, MessageQuery):
            *after, offset = after
            after = tuple(after)
        return msgspec.structs.replace(query, limit=limit, offset=offset, after=after)


# --- Values of filters ------------------------------------------------------------------------------------------------


def _wrong(name: str, expected: str, value: Any) -> InvalidArgumentError:
    return InvalidArgumentError(f"{name} must be {expected}, got {type(value).__name__}")


def _text(name: str, value: Any) -> str:
    if type(value) is not str:
        raise _wrong(name, "a str", value)
    return value


def different_values(name: str, given: Any, check: Callable[[str, Any], str]) -> set[str]:
    """The different texts of a list of up to ``MAX_VALUES``, each of which *check* takes with what it is in errors."""
    if type(given) not in _LISTS:
        raise _wrong(name, "a str, or a list, tuple, set or frozenset of them", given)
    different = set[str]()
    for one in given:
        different.add(check(f"each value of {name}", one))
        if len(different) > MAX_VALUES:
            raise InvalidArgumentError(
                f"{name} lists more than {MAX_VALUES} different values; ask for {MAX_VALUES} at a time"
            )
    return different


def _indexed(name: str, value: Any) -> str:
    return index_text(_text(name, value))


def _agent_id(_: str, value: Any) -> str:
    return check_agent_id(value)


def _user(_: str, value: str) -> str:
    ((_, indexed),) = metadata_index({"userId": value}, "the filter user_id")
    return indexed


_LISTS: Final = (list, tuple, set, frozenset)


def _needle(name: str, value: Any) -> str:
    text = _text(name, value)
    if not text:
        raise InvalidArgumentError(f"{name} is empty, and every text contains the empty one; leave it out")
    if len(text) > MAX_CONTAINS:
        raise InvalidArgumentError(f"{name} has at most {MAX_CONTAINS:,} characters, got {len(text):,}")
    return folded(text)


def _bool(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong(name, "a bool", value)
    return value


def _count(name: str, value: Any) -> int:
    if type(value) is not int:
        raise _wrong(name, "an int", value)
    if not 0 <= value < 2**63:
        raise InvalidArgumentError(f"{name} must not be negative or beyond 64 bits, got {quoted(value)}")
    return value


_MOST_KEYS: Final = 500
"""The most keys of a metadata filter: each adds a condition to a statement, and databases take some hundreds."""


def _metadata(name: str, value: Any) -> Mapping[str, Json]:
    found = mapping_of(value, name)
    if len(found) > _MOST_KEYS:
        raise InvalidArgumentError(f"{name} must have at most {_MOST_KEYS} keys to filter by, got {len(found)}")
    return found


def _one_of(*options: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if type(value) is not str or value not in options:
            raise InvalidArgumentError(f"{name} must be one of {', '.join(options)}, got {quoted(value)}")
        return value

    return check


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def time_ms(name: str, value: Any) -> int:
    """*value* in milliseconds since the epoch; a datetime between two milliseconds counts as the later one."""
    if type(value) is int:
        return max(-(2**63), min(value, 2**63 - 1))
    if not isinstance(value, datetime):
        raise _wrong(name, "milliseconds as int or an aware datetime", value)
    try:
        is_naive = value.tzinfo is None or value.utcoffset() is None
        found = 0 if is_naive else -(-((value - _EPOCH) // timedelta(microseconds=1)) // 1000)
    except Exception as exc:  # of a time zone, or a subclass, of the caller's own
        raise InvalidArgumentError(f"{name} cannot be read: its time zone raised {type(exc).__name__}") from exc
    if is_naive:
        raise InvalidArgumentError(f"{name} is a naive datetime; give its time zone, as in datetime.now(timezone.utc)")
    return found


# --- Cursors ----------------------------------------------------------------------------------------------------------


def _is_count(part: Any) -> bool:
    return is_int64(part) and part >= 0


_KEY_PARTS: Final[dict[type, tuple[Callable[[Any], bool], ...]]] = {
    SessionQuery: (is_int64, is_agent_id),
    RowQuery: (is_int64, is_agent_id, is_int64),
    MessageQuery: (is_int64, is_agent_id, is_int64, _is_count),
}


def _unpaged(query: SessionQuery | RowQuery) -> msgspec.Struct:
    if isinstance(query, MessageQuery) and query.contains is not None:
        query = msgspec.structs.replace(query, contains=index_text(query.contains))
    return msgspec.structs.replace(query, limit=0, offset=0, after=None)


def page_cursor(query: SessionQuery | RowQuery, key: tuple[Any, ...]) -> str:
    """The cursor of the page after the record at *key*; of a :class:`MessageQuery`, the key ends with the number of
    matches that its offset still leaves out.
    """
    return make_cursor(_unpaged(query), key)
