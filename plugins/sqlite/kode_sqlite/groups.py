"""Counts of rows by values that they have in common, along the index that has the fewest rows to look at."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from typing import Any, Final, LiteralString

from kode_core.batch import Found
from kode_core.query import DAY_MS, Grouping, GroupRows, Range, RowQuery, SessionQuery
from kode_sqlite.queries import row_ways, session_ways
from kode_sqlite.sound import text_of
from kode_sqlite.ways import Condition, Merged, Way, fewest

__all__ = ["group", "group_statement"]

DB = sqlite3.Connection

_COLUMNS: Final[dict[str, LiteralString]] = {
    "template_id": "a.template_id",
    "role": "r.role",
    "tool_name": "r.tool_name",
    "state": "r.state",
    "is_error": "r.is_error",
    "has_approval": "r.has_approval",
}
_COVERED: Final[Sequence[tuple[LiteralString, set[str]]]] = (
    ("kode_tool_calls r INDEXED BY kode_tool_calls_name", {"tool_name", "agent_id", "day"}),
    ("kode_tool_calls r INDEXED BY kode_tool_calls_agent", {"tool_name", "state", "agent_id", "day"}),
)
"""Indexes, and the columns that they have."""

_HAS_INFO: Final = Condition("a.created_at IS NOT NULL")
_FLAGS: Final = ("is_error", "has_approval")
_NAMES: Final[tuple[LiteralString, ...]] = ("v1", "v2", "v3", "v4", "v5", "v6")


def group(db: DB, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
    """The groups, and names for rows whose values were never written so."""
    statement, args = group_statement(db, query, grouping)
    found, left_out = [], []
    table = "kode_agents" if isinstance(query, SessionQuery) else f"kode_{query.kind}"
    for *stored, number in db.execute(statement, args):
        values = [_sound(by, value) for by, value in zip(grouping.by, stored, strict=True)]
        sound = [value for value in values if value is not None]
        if len(sound) == len(values):
            found.append((tuple(sound), number))
        else:
            left_out.append(f"a group of {number} rows of {table}")
    return Found(found, left_out)


def group_statement(db: DB, query: SessionQuery | RowQuery, grouping: Grouping) -> tuple[LiteralString, list[Any]]:
    """The statement that counts the groups, and its arguments."""
    ways = session_ways(query) if isinstance(query, SessionQuery) else row_ways(query)
    way = fewest(db, [*_covering(query, grouping.by, ways[0]), *ways])
    inner, args = way.grouped([_value(by, way, grouping) for by in grouping.by], grouping.limit)
    shown: LiteralString = ", ".join([_shown(by, name) for by, name in zip(grouping.by, _NAMES, strict=False)])
    return f"SELECT {shown}, n FROM ({inner})", args


def _covering(query: SessionQuery | RowQuery, by: Collection[str], other: Way | Merged) -> list[Way]:
    """A way through a whole index that has all values; a row takes several times as long if its body lies around it."""
    if isinstance(other, Merged) or other.joins:
        return []
    if isinstance(query, SessionQuery):
        is_in = query.agent_id is None and not query.metadata and query.updated == Range()
        looked_up: tuple[Condition, ...] = (_HAS_INFO,)
        table: LiteralString | None = "kode_agents a INDEXED BY kode_agents_template" if is_in else None
    else:
        looked_up = ()
        used = {*by, *dict(query.where)}
        table = next((index for index, columns in _COVERED if used <= columns and query.kind == "tool_calls"), None)
    if table is None:
        return []
    everything = [*other.looked_up, *other.rest]
    return [other._replace(table=table, looked_up=looked_up, rest=everything, is_in_order=False)]


def _value(by: str, way: Way | Merged, grouping: Grouping) -> LiteralString:
    time, agent_id = way.order[0], way.order[1]
    if by == "agent_id":
        return agent_id
    if by != "day":
        return _COLUMNS[by]
    # Division rounds towards zero, and sums of more than 64 bits would become floats.
    ahead = grouping.offset_ms + 2 * DAY_MS
    return (
        f"CASE WHEN typeof({time}) = 'integer' THEN"
        f" {time} / {DAY_MS:d} + ({time} % {DAY_MS:d} + {ahead:d}) / {DAY_MS:d} - 2 END"
    )


def _shown(by: str, name: LiteralString) -> LiteralString:
    if by == "day" or by in _FLAGS:
        return name
    return f"CASE WHEN typeof({name}) = 'text' THEN CAST({name} AS BLOB) END"


def _sound(by: str, value: Any) -> str | bool | int | None:
    """The value of a column; None if it is none that the store writes."""
    if by == "day":
        return value if type(value) is int else None
    if by in _FLAGS:
        return bool(value) if type(value) is int and value in (0, 1) else None
    return text_of(value)
