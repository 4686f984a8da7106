"""Queries over all agents: sessions, messages and tool calls.

The cost of a page depends on its contents if one index has both its order and its filter; offsets are counted off one
by one. For several filters, the index of one of them is used, and the others are checked row by row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final, LiteralString, TypeAlias

from msgspec.structs import replace

from kode_core.authoring.reading import MOST
from kode_core.batch import Found, FoundRow, ListKind, SessionRow
from kode_core.codec import Body
from kode_core.ids import row_name
from kode_core.query import Range, RowQuery, SessionQuery, Wanted, Within, values_of
from kode_sqlite.entries import INFOS, LISTED
from kode_sqlite.schema import COMMON_TYPES
from kode_sqlite.sound import INT, RAW, TEXT, is_sound, search, sound_key
from kode_sqlite.texts import candidates
from kode_sqlite.ways import Condition, Merged, Way, chosen, equals, fewest, is_one_of, merged, others

__all__ = ["count", "find_rows", "find_sessions", "row_ways", "rows_statement", "session_ways", "sessions_statement"]

DB = sqlite3.Connection

_TIMES: Final = ("created_at", "updated_at")


def _span(column: LiteralString, span: Range) -> Condition | None:
    """The condition that *column* is within a span of time; None if the span is open."""
    ends: list[LiteralString] = []
    if span.start is not None:
        ends.append(f"{column} >= ?")
    if span.end is not None:
        ends.append(f"{column} < ?")
    together: LiteralString = " AND ".join(ends)
    return Condition(together, [end for end in (span.start, span.end) if end is not None]) if ends else None


def _ahead(query: SessionQuery | RowQuery, column: str) -> Range:
    """The span of a time column, without the bound that the query's cursor has already passed.

    Of two bounds on one side SQLite uses only one for the look-up, and scans all rows between them.
    """
    span: Range = getattr(query, column.removesuffix("_at"))
    sort_by = query.sort_by if isinstance(query, SessionQuery) else "created_at"
    if query.after is None or column != sort_by:
        return span
    return replace(span, end=None) if query.descending else replace(span, start=None)


def _beyond(columns: Sequence[LiteralString], after: Sequence[Any], *, descending: bool) -> Condition:
    together: LiteralString = ", ".join(columns)
    marks: LiteralString = ", ".join(["?"] * len(columns))
    return Condition(f"({together}) {'<' if descending else '>'} ({marks})", after)


# --- sessions ---------------------------------------------------------------------------------------------------------

_SORTED: Final[dict[str, tuple[LiteralString, LiteralString]]] = {
    "created_at": ("created_at", "kode_agents a INDEXED BY kode_agents_created"),
    "updated_at": ("updated_at", "kode_agents a INDEXED BY kode_agents_updated"),
    "message_count": ("message_count", "kode_agents a INDEXED BY kode_agents_count"),
}
_OF_AGENT: Final[tuple[LiteralString, ...]] = ("agent_id", "template_id", "created_at", "updated_at", "message_count")
_HAS_INFO: Final = Condition("a.created_at IS NOT NULL")


def _has_value(key: str, wanted: Wanted) -> Condition:
    values = values_of(wanted)
    one = is_one_of("p.value", values)
    return Condition(
        f"EXISTS (SELECT 1 FROM kode_metadata p WHERE p.agent_id = a.agent_id AND p.key = ? AND {one})", (key, *values)
    )


def _session_conditions(query: SessionQuery) -> dict[Any, Condition]:
    """The conditions that an agent must meet, by name; for a metadata pair, the pair is the name."""
    found: dict[Any, Condition | None] = {
        "info": _HAS_INFO,
        "agent": equals("a.agent_id", query.agent_id),
        "template": equals("a.template_id", query.template_id),
        **{pair: _has_value(*pair) for pair in query.metadata},
        "created_at": _span("a.created_at", _ahead(query, "created_at")),
        "updated_at": _span("a.updated_at", _ahead(query, "updated_at")),
    }
    if query.after is not None:
        columns = (f"a.{_SORTED[query.sort_by][0]}", "a.agent_id")
        found["after"] = _beyond(columns, query.after, descending=query.descending)
    return {name: condition for name, condition in found.items() if condition is not None}


def session_ways(query: SessionQuery) -> list[Way | Merged]:
    """The ways to find the agents for a query."""
    conditions = _session_conditions(query)

    def along(
        table: LiteralString, *looked_up: str, in_order: bool = False, conditions: dict[Any, Condition] = conditions
    ) -> Way:
        names = {"info", *looked_up, *(("after",) if in_order else ())}
        return Way(
            table,
            _OF_AGENT,
            (f"a.{_SORTED[query.sort_by][0]}", "a.agent_id"),
            query.descending,
            [condition for name, condition in conditions.items() if name in names],
            others(conditions, names),
            is_in_order=in_order,
        )

    if query.agent_id is not None and not isinstance(query.agent_id, Within):
        return [along("kode_agents a", "agent")]
    by_age = query.sort_by == "created_at"
    ways: list[Way | Merged] = []
    for key, wanted in _rarest_first(query.metadata):
        ways += merged([_of_value(query, conditions, (key, wanted), value) for value in values_of(wanted)])
    if query.template_id is not None:
        table: Final = "kode_agents a INDEXED BY kode_agents_template"
        values = values_of(query.template_id)
        singles = [{**conditions, "template": Condition("a.template_id = ?", (value,))} for value in values]
        ways += merged([along(table, "template", "created_at", in_order=by_age, conditions=one) for one in singles])
    if not (by_age and ways):
        ways.append(along(_SORTED[query.sort_by][1], query.sort_by, in_order=True))
    for column in ("created_at", "updated_at"):
        if column in conditions and column != query.sort_by:
            ways.append(along(_SORTED[column][1], column))
    if query.agent_id is not None:
        ways.append(along("kode_agents a", "agent"))
    return ways


def _rarest_first(metadata: Sequence[tuple[str, Wanted]]) -> list[tuple[str, Wanted]]:
    """Put the user first: a user probably has few agents."""
    return sorted(metadata, key=lambda pair: pair[0] != "userId")


def _of_value(query: SessionQuery, conditions: Mapping[Any, Condition], pair: tuple[str, Wanted], value: str) -> Way:
    """Find agents by a value of one *pair* of the metadata; they are in the order of their age."""
    by_age = query.sort_by == "created_at"
    looked_up = [
        Condition("m.key = ? AND m.value = ?", (pair[0], value)),
        _span("m.created_at", _ahead(query, "created_at")),
    ]
    order: tuple[LiteralString, ...] = ("m.created_at", "m.agent_id")
    if by_age and query.after is not None:
        looked_up.append(_beyond(order, query.after, descending=query.descending))
    return Way(
        "kode_metadata m INDEXED BY kode_metadata_created",
        ("created_at", "agent_id"),
        order if by_age else (f"a.{_SORTED[query.sort_by][0]}", "a.agent_id"),
        query.descending,
        [condition for condition in looked_up if condition is not None],
        others(conditions, {pair, "created_at", *(("after",) if by_age else ())}),
        " CROSS JOIN kode_agents a ON a.agent_id = m.agent_id",
        by_age,
    )


def sessions_statement(query: SessionQuery, way: Way | Merged) -> tuple[LiteralString, list[Any]]:
    """The statement that finds a page of sessions, and its arguments.

    An index leads to each head, which is read separately, so that it can be compared with the index.
    """
    column = _SORTED[query.sort_by][0]
    found, args = way.find(f"a.agent_id, a.{column} AS place", query.limit, query.offset)
    conditions = _session_conditions(query)
    own = [c for c in others(conditions, ("info", "agent", *_TIMES, "after")) if c not in way.rest]
    is_own: LiteralString = " AND ".join([f"a.{column} = f.place", *(condition.sql for condition in own)])
    direction: LiteralString = "DESC" if query.descending else "ASC"
    statement: LiteralString = (
        f"SELECT f.agent_id, CASE WHEN {is_own} THEN {INFOS.own('body')} END, r.digest,"
        f" a.created_at, a.updated_at, a.message_count, f.place FROM ({found}) f"
        " LEFT JOIN kode_agents a ON a.agent_id = f.agent_id"
        f" LEFT JOIN kode_infos i INDEXED BY {INFOS.name} ON i.agent_id = f.agent_id{INFOS.row}"
        f" ORDER BY f.place {direction}, f.agent_id {direction}"
    )
    return statement, [value for condition in own for value in condition.args] + args


def find_sessions(db: DB, query: SessionQuery) -> Found[SessionRow]:
    def find(after: Any, most: int, offset: int) -> list[tuple[Any, ...]]:
        asked = replace(query, limit=most, offset=offset, after=query.after if after is None else after)
        statement, args = sessions_statement(asked, chosen(db, session_ways(asked), most + offset))
        return db.execute(statement, args).fetchall()

    def read(row: tuple[Any, ...]) -> SessionRow | None:
        is_whole = is_sound(row[:6], (TEXT, TEXT, RAW, INT, INT, INT)) and 0 <= row[5] < MOST
        return SessionRow(row[0], Body(row[1], row[2]), *row[3:6]) if is_whole else None

    def name(row: tuple[Any, ...]) -> str:
        return f"the info of agent {row[0]!r}"

    return search(find, query.limit, query.offset, read, name, lambda row: sound_key((row[6], row[0]), (INT, TEXT)))


# --- messages and tool calls ------------------------------------------------------------------------------------------

_COLUMNS: Final[dict[str, LiteralString]] = {"role": "r.role", "tool_name": "r.tool_name", "state": "r.state"}
_HAS_TYPE: Final = "instr(r.content_types, char(10) || ? || char(10)) > 0"
_FLAGS: Final[dict[tuple[str, str | bool], LiteralString]] = {
    ("is_error", True): "r.is_error",
    ("is_error", False): "NOT r.is_error",
    ("has_approval", True): "r.has_approval",
    ("has_approval", False): "NOT r.has_approval",
}
_OF_ROW: Final[dict[str, tuple[LiteralString, ...]]] = {
    "messages": ("agent_id", "position", "created_at", "role", "content_types"),
    "tool_calls": ("agent_id", "position", "created_at", "tool_name", "state", "is_error", "has_approval"),
}
_OLDEST: Final[dict[str, LiteralString]] = {
    "messages": "kode_messages r INDEXED BY kode_messages_created",
    "tool_calls": "kode_tool_calls r INDEXED BY kode_tool_calls_created",
}
_OF_ONE: Final[dict[str, LiteralString]] = {
    "messages": "kode_messages r INDEXED BY kode_messages_agent_created",
    "tool_calls": "kode_tool_calls r INDEXED BY kode_tool_calls_agent",
}


def _index_of(name: str, value: str | bool) -> tuple[LiteralString, Condition] | None:
    """The index for rows equal to *value*, with its own condition; None for values that most rows have."""
    if name == "role" and value not in ("user", "assistant"):
        rare = Condition("r.role <> 'user' AND r.role <> 'assistant'")
        return "kode_messages r INDEXED BY kode_messages_role", rare
    if name == "tool_name":
        return "kode_tool_calls r INDEXED BY kode_tool_calls_name", Condition("TRUE")
    if name == "state" and value != "COMPLETED":
        return "kode_tool_calls r INDEXED BY kode_tool_calls_state", Condition("r.state <> 'COMPLETED'")
    if name == "is_error" and value is True:
        return "kode_tool_calls r INDEXED BY kode_tool_calls_errors", Condition("TRUE")
    if name == "has_approval" and value is True:
        return "kode_tool_calls r INDEXED BY kode_tool_calls_approval", Condition("TRUE")
    return None


_Conditions: TypeAlias = Mapping[str, Condition]
"""The conditions that a row must meet, by the name of the filter."""


def _row_conditions(query: RowQuery) -> _Conditions:
    found: dict[str, Condition] = {}
    for name, value in query.where:
        if isinstance(value, bool):
            found[name] = Condition(_FLAGS[name, value])
            continue
        values = values_of(value)
        one: LiteralString = f"({' OR '.join([_HAS_TYPE] * len(values))})" if len(values) > 1 else _HAS_TYPE
        is_one = one if name == "content_type" else is_one_of(_COLUMNS[name], values)
        found[name] = Condition(is_one, values)
    span = _span("r.created_at", _ahead(query, "created_at"))
    return found if span is None else {**found, "created_at": span}


def row_ways(query: RowQuery) -> list[Way | Merged]:
    """The ways to find the rows for a query; all are in its order, which is the order of time."""
    ways: list[Way | Merged] = []
    conditions = _row_conditions(query)
    if isinstance(query.agent_id, Within):
        ways += [_of_range(query, conditions, query.agent_id), _along(query, conditions, _OLDEST[query.kind], ())]
    elif query.agent_id is not None:
        ways += merged([_of_agent(query, conditions, agent_id) for agent_id in values_of(query.agent_id)])
    for name, wanted in query.where:
        values = [wanted] if isinstance(wanted, bool) else values_of(wanted)
        single = [way for value in values if (way := _of_one(query, conditions, name, value)) is not None]
        if len(single) == len(values):
            ways += merged(single)
    return ways or [_along(query, conditions, _OLDEST[query.kind], ())]


def _along(
    query: RowQuery, conditions: _Conditions, table: LiteralString, looked_up: Sequence[Condition], *names: str
) -> Way:
    """Find rows along an index in the order of time, in which *looked_up* is looked up: the filters *names*."""
    order: tuple[LiteralString, ...] = ("r.created_at", "r.agent_id", "r.position")
    after = [] if query.after is None else [_beyond(order, query.after, descending=query.descending)]
    times = [conditions["created_at"]] if "created_at" in conditions else []
    rest = [*_seen_agent(query, "+r.agent_id"), *others(conditions, (*names, "created_at"))]
    return Way(table, _OF_ROW[query.kind], order, query.descending, [*looked_up, *times, *after], rest)


def _seen_agent(query: RowQuery, column: LiteralString) -> list[Condition]:
    """The condition of the agent; after ``+`` SQLite looks up nothing, and would sort rows that are already sorted."""
    agent = equals(column, query.agent_id)
    return [] if agent is None else [agent]


def _of_one(query: RowQuery, conditions: _Conditions, name: str, value: str | bool) -> Way | None:
    """Find rows by one value of a filter; None for values that most rows have."""
    if name == "content_type":
        rest = [*others(conditions, ("created_at", name)), Condition(_HAS_TYPE, (value,))]
        return None if value in COMMON_TYPES else _of_type(query, str(value), rest)
    found = _index_of(name, value)
    if found is None:
        return None
    table, own = found
    if isinstance(value, bool):
        return _along(query, conditions, table, (Condition(_FLAGS[name, value]), own), name)
    return _along(query, conditions, table, (Condition(f"{_COLUMNS[name]} = ?", (value,)), own), name)


def _of_agent(query: RowQuery, conditions: _Conditions, agent_id: str) -> Way:
    """Find the rows of one agent, which may all have the same time."""
    order: tuple[LiteralString, ...] = ("r.created_at", "r.agent_id", "r.position")
    looked_up = [Condition("r.agent_id = ?", (agent_id,))]
    looked_up += [conditions["created_at"]] if "created_at" in conditions else []
    if query.after is not None and query.after[1] == agent_id:
        key = (query.after[0], query.after[2])
        looked_up.append(_beyond(("r.created_at", "r.position"), key, descending=query.descending))
    elif query.after is not None:
        looked_up.append(_beyond(order, query.after, descending=query.descending))
    rest = others(conditions, ("created_at",))
    return Way(_OF_ONE[query.kind], _OF_ROW[query.kind], order, query.descending, looked_up, rest)


def _of_range(query: RowQuery, conditions: _Conditions, within: Within) -> Way:
    """Find the rows of a range of agents, which are then sorted: a small tenant's in a store of large ones."""
    order: tuple[LiteralString, ...] = ("r.created_at", "r.agent_id", "r.position")
    looked_up = [Condition("r.agent_id >= ? AND r.agent_id < ?", (within.prefix, within.end))]
    rest = list(conditions.values())
    if query.after is not None:
        rest.append(_beyond(order, query.after, descending=query.descending))
    table, columns = _OF_ONE[query.kind], _OF_ROW[query.kind]
    return Way(table, columns, order, query.descending, looked_up, rest, is_in_order=False)


_OTHER: Final = "r.agent_id IS NOT t.agent_id OR r.position IS NOT t.position OR r.created_at IS NOT t.created_at"


def _of_type(query: RowQuery, content_type: str, rest: Sequence[Condition]) -> Way:
    """Find messages by a rare type of content; the message itself is checked for it.

    If the entry leads to the row of another record, the message is not left out here, so that it can be named later.
    """
    entries = LISTED["messages"]
    order: tuple[LiteralString, ...] = ("t.created_at", "t.agent_id", "t.position")
    looked_up = [Condition("t.type = ?", (content_type,)), _span("t.created_at", _ahead(query, "created_at"))]
    if query.after is not None:
        looked_up.append(_beyond(order, query.after, descending=query.descending))
    seen = [Condition(f"({_OTHER} OR {condition.sql})", condition.args) for condition in rest]
    seen += _seen_agent(query, "+t.agent_id")
    return Way(
        "kode_message_types t",
        ("type", "created_at", "agent_id", "position"),
        order,
        query.descending,
        [condition for condition in looked_up if condition is not None],
        seen,
        f" LEFT JOIN {entries.entry} ON i.agent_id = t.agent_id AND i.position = t.position{entries.row}",
    )


_SAME: Final = "r.agent_id = f.agent_id AND r.position = f.position AND r.created_at = f.created_at"


def rows_statement(query: RowQuery, way: Way | Merged) -> tuple[LiteralString, list[Any]]:
    """The statement that finds a page of rows, and its arguments.

    An index leads to each row, which is read separately, so that it can be compared with the index.
    """
    time, agent_id, position = way.order
    columns: LiteralString = f"{agent_id} AS agent_id, {position} AS position, {time} AS created_at, r.rowid AS id"
    found, args = way.find(columns, query.limit, query.offset)
    own = [c for c in others(_row_conditions(query), _TIMES) if c not in way.rest]
    is_own: LiteralString = " AND ".join([_SAME, *(condition.sql for condition in own)])
    direction: LiteralString = "DESC" if query.descending else "ASC"
    statement: LiteralString = (
        f"SELECT f.agent_id, f.position, f.created_at, CASE WHEN {is_own} THEN r.body END, r.digest"
        f" FROM ({found}) f LEFT JOIN {LISTED[query.kind].table} r ON r.rowid = f.id"
        f" ORDER BY f.created_at {direction}, f.agent_id {direction}, f.position {direction}"
    )
    return statement, [value for condition in own for value in condition.args] + args


def count(db: DB, query: SessionQuery | RowQuery) -> int:
    """The number of rows that match, counted along the index that has the fewest of them to look at."""
    ways = session_ways(query) if isinstance(query, SessionQuery) else row_ways(query)
    statement, args = fewest(db, ways).counted()
    (found,) = db.execute(statement, args).fetchone()
    return int(found)


def _of_texts(query: RowQuery, texts: Condition) -> Way:
    """Find the messages that may have a text among their entries in the index of texts; they are sorted."""
    order: tuple[LiteralString, ...] = ("r.created_at", "r.agent_id", "r.position")
    rest = [*_seen_agent(query, "+r.agent_id"), *_row_conditions(query).values()]
    if query.after is not None:
        rest.append(_beyond(order, query.after, descending=query.descending))
    joins: LiteralString = (
        " CROSS JOIN kode_messages r INDEXED BY kode_messages_position"
        " ON r.agent_id = t.agent_id AND r.position = t.position"
    )
    return Way("kode_texts t", (), order, query.descending, [texts], rest, joins, is_in_order=False)


def find_rows(db: DB, query: RowQuery) -> Found[FoundRow]:
    texts = candidates(db, query)

    def find(after: Any, most: int, offset: int) -> list[tuple[Any, ...]]:
        asked = replace(query, limit=most, offset=offset, after=query.after if after is None else after)
        way = chosen(db, row_ways(asked), most + offset) if texts is None else _of_texts(asked, texts)
        statement, args = rows_statement(asked, way)
        return db.execute(statement, args).fetchall()

    def read(row: tuple[Any, ...]) -> FoundRow | None:
        is_whole = is_sound(row, (TEXT, INT, INT, TEXT, RAW))
        return FoundRow(row[0], row[1], row[2], Body(row[3], row[4])) if is_whole else None

    def name(row: tuple[Any, ...]) -> str:
        return row_name(ListKind(query.kind), row[1], row[0])

    def key(row: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return sound_key((row[2], row[0], row[1]), (INT, TEXT, INT))

    return search(find, query.limit, query.offset, read, name, key)
