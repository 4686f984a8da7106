"""Queries. Each function runs in the thread of a reading connection and sees one instant."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Sequence
from typing import Any, Final, LiteralString

from kode_core.batch import (
    Doc,
    DocKind,
    EventRange,
    EventRow,
    Found,
    FoundRow,
    Head,
    Info,
    ListHead,
    ListKind,
    ListRows,
    Outline,
    SessionRow,
)
from kode_core.codec import Body
from kode_core.engines.reading import MOST, check_head, list_rows
from kode_core.errors import CorruptRecordError
from kode_core.ids import row_name
from kode_core.query import AgentStats, Range, RowQuery, SessionQuery
from kode_sqlite.sound import INT, RAW, TEXT, is_sound, search, see, text_of

__all__ = [
    "LIST_HEAD",
    "TABLE",
    "agent_ids",
    "docs",
    "events",
    "find_rows",
    "find_sessions",
    "head",
    "in_one_instant",
    "last_event",
    "outline",
    "rows",
    "rows_at",
    "rows_statement",
    "sessions_statement",
    "stats",
]

DB = sqlite3.Connection

TABLE: Final[dict[str, LiteralString]] = {"messages": "kode_messages", "tool_calls": "kode_tool_calls"}
LIST_HEAD: Final[dict[str, LiteralString]] = {
    "messages": "SELECT message_version, message_count FROM kode_agents WHERE agent_id = ?",
    "tool_calls": "SELECT tool_call_version, tool_call_count FROM kode_agents WHERE agent_id = ?",
}
_NEAR_THE_END: Final = 20_000


_HEADLESS: Final = (  # at one instant: the agent may have been made since its head was looked for
    "SELECT 1 FROM kode_infos LEFT JOIN kode_agents USING (agent_id) WHERE agent_id = ? AND message_version IS NULL"
)


def head(db: DB, agent_id: str) -> Head | None:
    row = db.execute(
        "SELECT message_version, message_count, tool_call_version, tool_call_count, updated_at, template_id,"
        " created_at, body, digest FROM kode_agents LEFT JOIN kode_infos USING (agent_id) WHERE agent_id = ?",
        (agent_id,),
    ).fetchone()
    if row is None:
        if db.execute(_HEADLESS, (agent_id,)).fetchone():
            raise CorruptRecordError(f"the head of agent {agent_id!r}", "it is missing")
        return None
    check_head(row[:5], agent_id)
    info = None
    if row[6] is not None or row[7] is not None:
        see(row[5:], (TEXT, INT, TEXT, RAW), f"the info of agent {agent_id!r}")
        info = Info(Body(row[7], row[8]), row[5], row[6])
    lists = (ListHead(row[0], row[1]), ListHead(row[2], row[3]))
    return Head(agent_id=agent_id, info=info, updated_at=row[4], messages=lists[0], tool_calls=lists[1])


# --- lists ------------------------------------------------------------------------------------------------------------


def in_one_instant(db: DB, head: LiteralString, agent_id: str, rows: LiteralString, args: Sequence[Any]) -> Any:
    """A list's version and count, and what a query of its rows finds, at one instant."""
    db.execute("BEGIN")
    try:
        version = db.execute(head, (agent_id,)).fetchone() or (0, 0)
        check_head(version, agent_id)
        return version, db.execute(rows, args).fetchall()
    finally:
        db.execute("COMMIT")


_ROW: Final = "SELECT position, body, digest, created_at FROM"


def rows(db: DB, agent_id: str, kind: ListKind) -> ListRows:
    statement: LiteralString = f"{_ROW} {TABLE[kind]} WHERE agent_id = ? ORDER BY position"
    head, found = in_one_instant(db, LIST_HEAD[kind], agent_id, statement, (agent_id,))
    return list_rows(agent_id, kind, head, found)


def rows_at(db: DB, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
    statement: LiteralString = f"{_ROW} {TABLE[kind]} WHERE agent_id = ? AND position >= ? ORDER BY position LIMIT ?"
    head, found = in_one_instant(db, LIST_HEAD[kind], agent_id, statement, (agent_id, start, limit))
    return list_rows(agent_id, kind, head, found, start, limit)


def outline(db: DB, agent_id: str, kind: ListKind, keys: Sequence[str] | None) -> Outline:
    key: LiteralString = "call_id" if kind == ListKind.TOOL_CALLS else "NULL"
    statement: LiteralString = f"SELECT position, digest, created_at, {key} FROM {TABLE[kind]} WHERE agent_id = ?"
    if keys is None:
        (version, count), found = in_one_instant(
            db, LIST_HEAD[kind], agent_id, f"{statement} ORDER BY position", (agent_id,)
        )
        list_rows(agent_id, kind, (version, count), [(row[0], "", row[1], row[2]) for row in found])
        return Outline(version, count, found)
    last: LiteralString = (  # beside max(position), SQLite takes the other columns from the row that has it
        "SELECT max(position), digest, created_at, call_id FROM kode_tool_calls"
        " WHERE agent_id = ? AND call_id IN (SELECT value FROM json_each(?)) GROUP BY call_id"
    )
    (version, count), found = in_one_instant(db, LIST_HEAD[kind], agent_id, last, (agent_id, json.dumps(list(keys))))
    for row in found:
        see(row[:3], (INT, RAW, INT), f"a tool call of agent {agent_id!r}")
    return Outline(version, count, found)


def docs(db: DB, agent_id: str, kind: DocKind, key: str | None) -> list[Doc]:
    statement: LiteralString = "SELECT key, time, body, digest FROM kode_docs WHERE agent_id = ? AND kind = ?"
    if key is None:
        found = db.execute(statement, (agent_id, kind.value))
    else:
        found = db.execute(statement + " AND key = ?", (agent_id, kind.value, key))
    made = []
    for row in found:
        see(row, (TEXT, INT, TEXT, RAW), f"{kind.value} {row[0]!r:.80} of agent {agent_id!r}")
        made.append(Doc(row[0], row[1], Body(row[2], row[3])))
    return made


# --- events -----------------------------------------------------------------------------------------------------------


def events(db: DB, agent_id: str, span: EventRange) -> list[EventRow]:
    where: list[LiteralString] = ["agent_id = ?"]
    args: list[Any] = [agent_id]
    if span.since_seq is not None:
        where.append("seq > ?")
        args.append(span.since_seq)
    if span.channel is not None:
        where.append("channel = ?")
        args.append(span.channel)
    find = _by_offset if span.order == "offset" else _by_seq
    found = find(db, span, where, args)
    return [_event_row(agent_id, row) for row in found]


def _event_row(agent_id: str, row: tuple[Any, ...]) -> EventRow:
    see(row, (INT, INT, TEXT, RAW), f"event {row[0]} of agent {agent_id!r}")
    return EventRow(row[0], row[1], Body(row[2], row[3]))


_EVENT: Final = 'SELECT "offset", seq, body, digest FROM kode_events'


def _by_seq(db: DB, span: EventRange, where: list[LiteralString], args: list[Any]) -> Any:
    if span.after is not None:
        where.append('seq >= ? AND (seq > ? OR "offset" > ?)')
        args += [span.after[0], *span.after]
    conditions: LiteralString = " AND ".join(where)
    statement: LiteralString = f'{_EVENT} WHERE {conditions} ORDER BY seq, "offset" LIMIT ?'
    return db.execute(statement, (*args, span.limit)).fetchall()


def _by_offset(db: DB, span: EventRange, where: list[LiteralString], args: list[Any]) -> Any:
    """By offset there is no index for one agent: near the end the table itself is read, else the agent's index."""
    after = 0 if span.after is None else span.after[1]
    last = db.execute('SELECT max("offset") FROM kode_events').fetchone()[0] or 0
    if last <= after:
        return []
    conditions: LiteralString = " AND ".join(where)
    if last - after < _NEAR_THE_END:
        statement: LiteralString = f'{_EVENT} NOT INDEXED WHERE "offset" > ? AND {conditions} ORDER BY "offset" LIMIT ?'
        return db.execute(statement, (after, *args, span.limit)).fetchall()
    inner: LiteralString = (
        f'SELECT "offset" FROM kode_events INDEXED BY kode_events_seq WHERE {conditions} AND "offset" > ?'
        ' ORDER BY "offset" LIMIT ?'
    )
    outer: LiteralString = f'{_EVENT} WHERE "offset" IN ({inner}) ORDER BY "offset"'
    return db.execute(outer, (*args, after, span.limit)).fetchall()


def last_event(db: DB, agent_id: str) -> EventRow | None:
    statement: LiteralString = f'{_EVENT} WHERE agent_id = ? ORDER BY seq DESC, "offset" DESC LIMIT 1'
    row = db.execute(statement, (agent_id,)).fetchone()
    return None if row is None else _event_row(agent_id, row)


# --- queries over all agents ------------------------------------------------------------------------------------------


def agent_ids(db: DB, prefix: str, after: str | None, limit: int) -> Found[str]:
    where: list[LiteralString] = ["created_at IS NOT NULL", "agent_id >= ?"]
    args: list[Any] = [prefix]
    beyond = _beyond(prefix)
    if beyond is not None:
        where.append("agent_id < ?")
        args.append(beyond)
    if after is not None:
        where.append("agent_id > ?")
        args.append(after)
    conditions: LiteralString = " AND ".join(where)
    statement: LiteralString = (
        f"SELECT CAST(agent_id AS BLOB) FROM kode_agents WHERE {conditions} ORDER BY agent_id LIMIT ? OFFSET ?"
    )
    return search(db, statement, args, limit, 0, lambda row: text_of(row[0]), lambda row: "an agent's id")


def _beyond(prefix: str) -> str | None:
    """The least string above all that begin with *prefix*; None when there is none."""
    stem = prefix.rstrip(chr(sys.maxunicode))
    if not stem:
        return None
    code = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if code == 0xD800 else code)


def _span(column: LiteralString, span: Range, where: list[LiteralString], args: list[Any]) -> None:
    if span.start is not None:
        where.append(f"{column} >= ?")
        args.append(span.start)
    if span.end is not None:
        where.append(f"{column} < ?")
        args.append(span.end)


def sessions_statement(query: SessionQuery) -> tuple[LiteralString, list[Any]]:
    """The statement of a session query and its arguments."""
    where: list[LiteralString] = ["a.created_at IS NOT NULL"]
    args: list[Any] = []
    if query.agent_id is not None:
        where.append("a.agent_id = ?")
        args.append(query.agent_id)
    if query.template_id is not None:
        where.append("a.template_id = ?")
        args.append(query.template_id)
    for pair in query.metadata:
        where.append("a.agent_id IN (SELECT agent_id FROM kode_metadata WHERE key = ? AND value = ?)")
        args += pair
    _span("a.created_at", query.created, where, args)
    _span("a.updated_at", query.updated, where, args)
    columns: dict[str, LiteralString] = {
        "created_at": "a.created_at",
        "updated_at": "a.updated_at",
        "message_count": "a.message_count",
    }
    column = columns[query.sort_by]
    if query.after is not None:
        where.append(f"({column}, a.agent_id) {'<' if query.descending else '>'} (?, ?)")
        args += query.after
    direction: LiteralString = "DESC" if query.descending else "ASC"
    conditions: LiteralString = " AND ".join(where)
    statement: LiteralString = (
        "SELECT a.agent_id, i.body, i.digest, a.created_at, a.updated_at, a.message_count"
        f" FROM kode_agents a LEFT JOIN kode_infos i ON i.agent_id = a.agent_id WHERE {conditions}"
        f" ORDER BY {column} {direction}, a.agent_id {direction} LIMIT ? OFFSET ?"
    )
    return statement, [*args, query.limit, query.offset]


def find_sessions(db: DB, query: SessionQuery) -> Found[SessionRow]:
    def read(row: tuple[Any, ...]) -> SessionRow | None:
        is_whole = is_sound(row, (TEXT, TEXT, RAW, INT, INT, INT)) and 0 <= row[5] < MOST
        return SessionRow(row[0], Body(row[1], row[2]), *row[3:]) if is_whole else None

    statement, args = sessions_statement(query)
    return search(
        db, statement, args[:-2], query.limit, query.offset, read, lambda row: f"the info of agent {row[0]!r}"
    )


_CONDITIONS: Final[dict[str, LiteralString]] = {
    "role": "role = ?",
    "content_type": "instr(content_types, char(10) || ? || char(10)) > 0",
    "tool_name": "tool_name = ?",
    "state": "state = ?",
}
_FLAGS: Final[dict[tuple[str, str | bool], LiteralString]] = {
    ("is_error", True): "is_error",
    ("is_error", False): "NOT is_error",
    ("has_approval", True): "has_approval",
    ("has_approval", False): "NOT has_approval",
}


def rows_statement(query: RowQuery) -> tuple[LiteralString, list[Any]]:
    """The statement of a query over list rows and its arguments."""
    where: list[LiteralString] = []
    args: list[Any] = []
    if query.agent_id is not None:
        where.append("agent_id = ?")
        args.append(query.agent_id)
    for name, value in query.where:
        if (name, value) in _FLAGS:
            where.append(_FLAGS[name, value])
        else:
            where.append(_CONDITIONS[name])
            args.append(value)
    _span("created_at", query.created, where, args)
    if query.after is not None:
        where.append(f"(created_at, agent_id, position) {'<' if query.descending else '>'} (?, ?, ?)")
        args += query.after
    direction: LiteralString = "DESC" if query.descending else "ASC"
    conditions: LiteralString = " AND ".join(where) if where else "TRUE"
    statement: LiteralString = (
        f"SELECT agent_id, position, created_at, body, digest FROM {TABLE[query.kind]} WHERE {conditions}"
        f" ORDER BY created_at {direction}, agent_id {direction}, position {direction} LIMIT ? OFFSET ?"
    )
    return statement, [*args, query.limit, query.offset]


def find_rows(db: DB, query: RowQuery) -> Found[FoundRow]:
    def read(row: tuple[Any, ...]) -> FoundRow | None:
        is_whole = is_sound(row, (TEXT, INT, INT, TEXT, RAW))
        return FoundRow(row[0], row[1], row[2], Body(row[3], row[4])) if is_whole else None

    def name(row: tuple[Any, ...]) -> str:
        return row_name(ListKind(query.kind), row[1], row[0])

    statement, args = rows_statement(query)
    return search(db, statement, args[:-2], query.limit, query.offset, read, name)


# --- counts -----------------------------------------------------------------------------------------------------------


STATS: Final = "SELECT tool_name, state, count(*) FROM kode_tool_calls WHERE agent_id = ? GROUP BY tool_name, state"
_HAS_MESSAGES: Final = "SELECT 1 FROM kode_messages WHERE agent_id = ? LIMIT 1"


def stats(db: DB, agent_id: str) -> AgentStats:
    by_name: dict[str, int] = {}
    by_state: dict[str, int] = {}
    (_, counted), calls = in_one_instant(db, LIST_HEAD["tool_calls"], agent_id, STATS, (agent_id,))
    for name, state, count in calls:
        see((name, state), (TEXT, TEXT), f"a tool call of agent {agent_id!r}")
        by_name[name] = by_name.get(name, 0) + count
        by_state[state] = by_state.get(state, 0) + count
    if counted != sum(by_name.values()):
        stored = f"{counted} are counted, and {sum(by_name.values())} are stored"
        raise CorruptRecordError(f"the tool calls of agent {agent_id!r}", stored)
    (_, messages), some = in_one_instant(db, LIST_HEAD["messages"], agent_id, _HAS_MESSAGES, (agent_id,))
    if some and not messages:
        raise CorruptRecordError(f"the messages of agent {agent_id!r}", "0 are counted, and there are more")
    snapshots = db.execute(
        "SELECT count(*) FROM kode_docs WHERE agent_id = ? AND kind = ?", (agent_id, DocKind.SNAPSHOTS.value)
    ).fetchone()
    return AgentStats(
        total_messages=messages,
        total_tool_calls=sum(by_name.values()),
        total_snapshots=snapshots[0],
        tool_calls_by_name=by_name,
        tool_calls_by_state=by_state,
    )
