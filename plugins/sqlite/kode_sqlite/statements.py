"""Statements that write many rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, LiteralString, NamedTuple

from kode_core.batch import ListKind, MessageIndex, Row, ToolCallIndex
from kode_sqlite.entries import DOCS, EVENTS_BY_OFFSET, INFOS, LISTED, Entries

__all__ = ["DOC_ROWS", "EVENTS", "KEYED_BY_AGENT", "LISTS", "OF_AN_AGENT", "TERM_ROWS", "Insert", "row_values"]


class Insert:
    """An INSERT of many rows in few calls of SQLite.

    Between two calls the thread releases the interpreter's lock, and may wait milliseconds to get it back while the
    event loop computes. ``executemany``, which makes a call for each row, is then a hundred times slower.
    """

    def __init__(self, start: LiteralString, columns: int, end: LiteralString = "") -> None:
        self._start = start
        self._end = end
        self._columns = columns
        marks: LiteralString = ", ".join(["?"] * columns)
        self._row: LiteralString = f"({marks})"

    def run(self, db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> int:
        """Insert the rows and return the number of rows that were inserted or changed."""
        if not rows:
            return 0
        changed = 0
        most = min(3000, db.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)) // self._columns
        for i in range(0, len(rows), most):
            some = rows[i : i + most]
            marks: LiteralString = ", ".join([self._row] * len(some))
            statement: LiteralString = f"{self._start} {marks} {self._end}"
            changed += db.execute(statement, [value for row in some for value in row]).rowcount
        return changed


_ROW_COLUMNS: Final[dict[ListKind, tuple[LiteralString, ...]]] = {
    ListKind.MESSAGES: ("role", "content_types"),
    ListKind.TOOL_CALLS: ("call_id", "tool_name", "state", "is_error", "has_approval"),
}


class _ListStatements(NamedTuple):
    entries: Entries
    put: Insert
    append: Insert
    """Like ``put``, for positions without a row."""
    copy: LiteralString


def _list_statements(kind: ListKind, own: tuple[LiteralString, ...]) -> _ListStatements:
    entries = LISTED[kind]
    table = entries.table
    rest = ("position", "created_at", *own, "body", "digest")
    updates: LiteralString = ", ".join([f"{column} = excluded.{column}" for column in rest[1:]])
    columns: LiteralString = ", ".join(rest)
    insert: LiteralString = f"INSERT INTO {table} (agent_id, {columns}) VALUES"
    copied: LiteralString = ", ".join([f"r.{column}" for column in rest if column != "body"])
    names: LiteralString = ", ".join(column for column in rest if column != "body")
    return _ListStatements(
        entries,
        Insert(insert, len(rest) + 1, f"ON CONFLICT (agent_id, position) DO UPDATE SET {updates} {entries.kept}"),
        Insert(insert, len(rest) + 1),
        f"INSERT INTO {table} (agent_id, {names}, body) SELECT ?, {copied}, {entries.own('body')}"
        f" FROM {entries.source} WHERE i.agent_id = ?",
    )


LISTS: Final = {
    ListKind.MESSAGES: _list_statements(ListKind.MESSAGES, _ROW_COLUMNS[ListKind.MESSAGES]),
    ListKind.TOOL_CALLS: _list_statements(ListKind.TOOL_CALLS, _ROW_COLUMNS[ListKind.TOOL_CALLS]),
}
DOC_ROWS: Final = Insert(
    "INSERT INTO kode_docs (agent_id, kind, key, time, body, digest) VALUES",
    6,
    "ON CONFLICT (agent_id, kind, key) DO UPDATE SET"
    f" time = excluded.time, body = excluded.body, digest = excluded.digest {DOCS.kept}",
)
TERM_ROWS: Final = Insert("INSERT OR IGNORE INTO kode_doc_terms (agent_id, key, term) VALUES", columns=3)
EVENTS: Final = Insert(
    'INSERT OR IGNORE INTO kode_events ("offset", agent_id, seq, channel, body, digest) VALUES', columns=6
)
KEYED_BY_AGENT: Final = ("kode_agents", "kode_metadata", "kode_doc_terms")
"""The tables of an agent that are indexes themselves."""
OF_AN_AGENT: Final = (INFOS, *LISTED.values(), DOCS, EVENTS_BY_OFFSET)


def row_values(agent_id: str, position: int, row: Row) -> tuple[Any, ...]:
    index = row.index
    if isinstance(index, MessageIndex):
        types = "\n".join(("", *index.content_types, ""))
        return (agent_id, position, row.created_at, index.role, types, row.body.text, row.body.digest)
    assert isinstance(index, ToolCallIndex)
    own = (index.call_id, index.tool_name, index.state, index.is_error, index.has_approval)
    return (agent_id, position, row.created_at, *own, row.body.text, row.body.digest)
