"""Queries. Each function runs in the thread of a reading connection and sees one instant."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, LiteralString

from kode_core.authoring.reading import check_head_numbers, list_rows
from kode_core.batch import (
    CORE_KEYS,
    AgentSummary,
    Doc,
    DocKind,
    DocSpan,
    EventRange,
    EventRow,
    Found,
    Info,
    ListHead,
    ListKind,
    ListRows,
    Outline,
)
from kode_core.codec import Body
from kode_core.errors import CorruptRecordError
from kode_core.ids import prefix_end
from kode_core.query import AgentStats
from kode_sqlite.entries import (
    CALLS_BY_ID,
    DOCS,
    EVENTS_BY_CHANNEL,
    EVENTS_BY_OFFSET,
    EVENTS_BY_SEQ,
    INFOS,
    LISTED,
    Entries,
)
from kode_sqlite.queries import find_rows, find_sessions
from kode_sqlite.sound import INT, RAW, TEXT, search, see, text_of
from kode_sqlite.ways import Condition, Way, chosen, others

__all__ = [
    "LIST_HEAD",
    "TABLE",
    "agent_ids",
    "docs",
    "docs_in",
    "docs_statement",
    "event_ways",
    "events",
    "events_statement",
    "find_rows",
    "find_sessions",
    "in_one_instant",
    "last_event",
    "outline",
    "rows",
    "rows_at",
    "stats",
    "summary",
]

DB = sqlite3.Connection

TABLE: Final[dict[str, LiteralString]] = {"messages": "kode_messages", "tool_calls": "kode_tool_calls"}
LIST_HEAD: Final[dict[str, LiteralString]] = {
    "messages": "SELECT message_version, message_count FROM kode_agents WHERE agent_id = ?",
    "tool_calls": "SELECT tool_call_version, tool_call_count FROM kode_agents WHERE agent_id = ?",
}

_HEADLESS: Final = (  # at one instant: the agent may have been created since its head was looked up
    "SELECT 1 FROM kode_infos LEFT JOIN kode_agents USING (agent_id) WHERE agent_id = ? AND message_version IS NULL"
)


_HEAD: Final = (
    "SELECT a.message_version, a.message_count, a.tool_call_version, a.tool_call_count, a.updated_at, a.template_id,"
    f" a.created_at, {INFOS.own('body')}, r.digest FROM kode_agents a"
    f" LEFT JOIN kode_infos i INDEXED BY {INFOS.name} ON i.agent_id = a.agent_id {INFOS.row} WHERE a.agent_id = ?"
)


def summary(db: DB, agent_id: str) -> AgentSummary | None:
    row = db.execute(_HEAD, (agent_id,)).fetchone()
    if row is None:
        if db.execute(_HEADLESS, (agent_id,)).fetchone():
            raise CorruptRecordError(f"the head of agent {agent_id!r}", "it is missing")
        return None
    check_head_numbers(row[:5], agent_id)
    info = None
    if row[6] is not None or row[7] is not None:
        see(row[5:], (TEXT, INT, TEXT, RAW), f"the info of agent {agent_id!r}")
        info = Info(Body(row[7], row[8]), row[5], row[6])
    lists = (ListHead(row[0], row[1]), ListHead(row[2], row[3]))
    return AgentSummary(agent_id=agent_id, info=info, updated_at=row[4], messages=lists[0], tool_calls=lists[1])


# --- lists ------------------------------------------------------------------------------------------------------------


def in_one_instant(db: DB, head: LiteralString, agent_id: str, rows: LiteralString, args: Sequence[Any]) -> Any:
    """A list's version and count, and the result of a query for its rows, at one instant."""
    db.execute("BEGIN")
    try:
        return _head(db, head, agent_id), db.execute(rows, args).fetchall()
    finally:
        db.execute("COMMIT")


def _head(db: DB, head: LiteralString, agent_id: str) -> Any:
    version = db.execute(head, (agent_id,)).fetchone() or (0, 0)
    check_head_numbers(version, agent_id)
    return version


def _rows_of(kind: ListKind, columns: LiteralString) -> LiteralString:
    return f"SELECT i.position, {columns} FROM {LISTED[kind].source} WHERE i.agent_id = ?"


def _bodies_of(kind: ListKind) -> LiteralString:
    return _rows_of(kind, f"{LISTED[kind].own('body')}, r.digest, r.created_at")


def rows(db: DB, agent_id: str, kind: ListKind) -> ListRows:
    statement: LiteralString = f"{_bodies_of(kind)} ORDER BY i.position"
    head, found = in_one_instant(db, LIST_HEAD[kind], agent_id, statement, (agent_id,))
    return list_rows(agent_id, kind, head, found)


def rows_at(db: DB, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
    statement: LiteralString = f"{_bodies_of(kind)} AND i.position >= ? ORDER BY i.position LIMIT ?"
    head, found = in_one_instant(db, LIST_HEAD[kind], agent_id, statement, (agent_id, start, limit))
    return list_rows(agent_id, kind, head, found, start, limit)


def outline(db: DB, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
    if keys is None:
        key: LiteralString = "r.call_id" if kind == ListKind.TOOL_CALLS else "NULL"
        statement: LiteralString = _rows_of(kind, f"{LISTED[kind].own('digest')}, r.created_at, {key}")
        (version, count), found = in_one_instant(
            db, LIST_HEAD[kind], agent_id, f"{statement} ORDER BY i.position", (agent_id,)
        )
        list_rows(agent_id, kind, (version, count), [(row[0], "", row[1], row[2]) for row in found])
        return Outline(version, count, found)
    last: LiteralString = (  # next to max(position), SQLite takes the other columns from the row with the maximum
        f"SELECT max(i.position), {CALLS_BY_ID.own('digest')}, r.created_at, i.call_id FROM {CALLS_BY_ID.source}"
        " WHERE i.agent_id = ? AND i.call_id IN (SELECT value FROM json_each(?)) GROUP BY i.call_id"
    )
    (version, count), found = in_one_instant(db, LIST_HEAD[kind], agent_id, last, (agent_id, json.dumps(list(keys))))
    for row in found:
        see(row[:3], (INT, RAW, INT), f"a tool call of agent {agent_id!r}")
    return Outline(version, count, found)


def docs(db: DB, agent_id: str, kind: DocKind, key: str | None = None) -> list[Doc]:
    statement: LiteralString = (
        f"SELECT i.key, r.time, {DOCS.own('body')}, r.digest FROM {DOCS.source} WHERE i.agent_id = ? AND i.kind = ?"
    )
    args = [agent_id, kind.value]
    if key is not None:
        statement += " AND i.key = ?"
        args.append(key)
    rows = []
    for row in db.execute(statement, args).fetchall():  # a cursor that an error leaves half read keeps an old instant
        rows.append(_doc(agent_id, kind, row))
    return rows


def docs_statement(agent_id: str, span: DocSpan) -> tuple[LiteralString, list[Any]]:
    """The statement of a page of documents in the order of their keys, and its arguments."""
    text: LiteralString = DOCS.own("body") if span.bodies else "''"
    statement: LiteralString = (
        f"SELECT i.key, r.time, {text}, {DOCS.own('digest')} FROM {DOCS.source}"
        " WHERE i.agent_id = ? AND i.kind = ? AND i.key >= ? AND i.key < ?"
        f" ORDER BY i.key {'DESC' if span.descending else 'ASC'} LIMIT ?"
    )
    return statement, [agent_id, DocKind.DOCUMENTS.value, span.start, span.stop, span.limit]


def docs_in(db: DB, agent_id: str, span: DocSpan) -> list[Doc]:
    statement, args = docs_statement(agent_id, span)
    return [_readable(agent_id, row) for row in db.execute(statement, args).fetchall()]


def _readable(agent_id: str, row: tuple[Any, ...]) -> Doc:
    """The document of a row. A damaged row gets a body that fits no digest, and the store leaves it out."""
    try:
        return _doc(agent_id, DocKind.DOCUMENTS, row)
    except CorruptRecordError:
        if type(row[0]) is not str:
            raise
        return Doc(row[0], 0, Body("", b"\0"))


def _doc(agent_id: str, kind: DocKind, row: tuple[Any, ...]) -> Doc:
    see(row, (TEXT, INT, TEXT, RAW), f"{kind.value} {row[0]!r:.80} of agent {agent_id!r}")
    return Doc(row[0], row[1], Body(row[2], row[3]))


# --- events -----------------------------------------------------------------------------------------------------------


_OF_EVENT: Final[tuple[LiteralString, ...]] = ('"offset"', "seq", "channel")


def event_ways(agent_id: str, span: EventRange) -> list[Way]:
    """The ways to find the events for a span."""
    conditions = {"agent": Condition("i.agent_id = ?", (agent_id,))}
    if span.since_seq is not None:
        conditions["seq"] = Condition("i.seq > ?", (span.since_seq,))
    if span.channel is not None:
        conditions["channel"] = Condition("i.channel = ?", (span.channel,))
    by_offset = span.order == "offset"
    if span.after is not None and by_offset:
        conditions["after"] = Condition('i."offset" > ?', span.after[1:])
    elif span.after is not None:
        conditions["after"] = Condition('i.seq >= ? AND (i.seq > ? OR i."offset" > ?)', (span.after[0], *span.after))
    order: tuple[LiteralString, ...] = ('i."offset"',) if by_offset else ("i.seq", 'i."offset"')

    def along(entries: Entries, *names: str, in_order: bool, also: Sequence[Condition] = ()) -> Way:
        looked_up = [condition for name, condition in conditions.items() if name in names]
        rest = others(conditions, names)
        return Way(entries.entry, _OF_EVENT, order, False, [*looked_up, *also], rest, is_in_order=in_order)

    ways = []
    if span.channel not in (None, "progress"):  # most events are progress events, which have no index of their own
        rare = [Condition("i.channel <> 'progress'")]
        names = ("agent", "channel", "after") if by_offset else ("agent", "channel")
        ways.append(along(EVENTS_BY_CHANNEL, *names, in_order=by_offset, also=rare))
    elif by_offset:
        ways.append(along(EVENTS_BY_OFFSET, "agent", "after", in_order=True))
    if not by_offset:
        ways.append(along(EVENTS_BY_SEQ, "agent", "seq", "after", in_order=True))
    elif span.since_seq is not None:
        ways.append(along(EVENTS_BY_SEQ, "agent", "seq", in_order=False))
    return ways


_EVENTS: Final = {entries.entry: entries for entries in (EVENTS_BY_SEQ, EVENTS_BY_OFFSET, EVENTS_BY_CHANNEL)}


def events_statement(way: Way, limit: int) -> tuple[LiteralString, list[Any]]:
    """The statement that finds events, and its arguments."""
    entries = _EVENTS[way.table]
    return way.find(_event_of(entries), limit, more=entries.row)


def _event_of(entries: Entries) -> LiteralString:
    return f'i."offset", r.seq, {entries.own("body")}, r.digest'


def events(db: DB, agent_id: str, span: EventRange) -> list[EventRow]:
    statement, args = events_statement(chosen(db, event_ways(agent_id, span), span.limit), span.limit)
    found = [_event_row(agent_id, row) for row in db.execute(statement, args).fetchall()]
    by_offset = span.order == "offset"
    for before, row in pairwise(found):
        if row.offset <= before.offset if by_offset else (row.seq, row.offset) <= (before.seq, before.offset):
            # an entry led to another event of the agent
            raise CorruptRecordError(f"event {row.offset} of agent {agent_id!r}", "an index has it in two places")
    return found


def _event_row(agent_id: str, row: tuple[Any, ...]) -> EventRow:
    see(row, (INT, INT, TEXT, RAW), f"event {row[0]} of agent {agent_id!r}")
    return EventRow(row[0], row[1], Body(row[2], row[3]))


_LAST: Final = (
    f"SELECT {_event_of(EVENTS_BY_SEQ)} FROM {EVENTS_BY_SEQ.source} WHERE i.agent_id = ?"
    ' ORDER BY i.seq DESC, i."offset" DESC LIMIT 1'
)


def last_event(db: DB, agent_id: str) -> EventRow | None:
    row = db.execute(_LAST, (agent_id,)).fetchone()
    return None if row is None else _event_row(agent_id, row)


# --- ids --------------------------------------------------------------------------------------------------------------


def agent_ids(db: DB, prefix: str, after: str | None, limit: int) -> Found[str]:
    def find(behind: str | None, most: int, offset: int) -> list[tuple[Any, ...]]:
        statement, args = _ids_statement(prefix, after if behind is None else behind)
        return db.execute(statement, (*args, most, offset)).fetchall()

    return search(find, limit, 0, lambda row: text_of(row[0]), lambda row: "an agent's id", lambda row: text_of(row[0]))


def _ids_statement(prefix: str, after: str | None) -> tuple[LiteralString, list[Any]]:
    is_inside = after is not None and after >= prefix  # SQLite would look up one lower bound, and scan up to the other
    where: list[LiteralString] = ["created_at IS NOT NULL", "agent_id > ?" if is_inside else "agent_id >= ?"]
    args: list[Any] = [after if is_inside else prefix]
    end = prefix_end(prefix)
    if end is not None:
        where.append("agent_id < ?")
        args.append(end)
    conditions: LiteralString = " AND ".join(where)
    return f"SELECT CAST(agent_id AS BLOB) FROM kode_agents WHERE {conditions} ORDER BY agent_id LIMIT ? OFFSET ?", args


# --- counts -----------------------------------------------------------------------------------------------------------


STATS: Final = (
    "SELECT tool_name, state, count(*) FROM kode_tool_calls INDEXED BY kode_tool_calls_agent WHERE agent_id = ?"
    " GROUP BY tool_name, state"
)
COUNT_DOCS: Final = "SELECT count(*) FROM kode_docs WHERE agent_id = ? AND kind = ?"
_COUNT_OWN_DOCS: Final = f"{COUNT_DOCS} AND key < ?"
_HAS_MESSAGES: Final = "SELECT 1 FROM kode_messages WHERE agent_id = ? LIMIT 1"


def stats(db: DB, agent_id: str) -> AgentStats:
    db.execute("BEGIN")  # all counts are of one instant
    try:
        return _stats(db, agent_id)
    finally:
        db.execute("COMMIT")


def _stats(db: DB, agent_id: str) -> AgentStats:
    by_name: dict[str, int] = {}
    by_state: dict[str, int] = {}
    _, counted = _head(db, LIST_HEAD["tool_calls"], agent_id)
    calls = db.execute(STATS, (agent_id,)).fetchall()
    for name, state, count in calls:
        see((name, state), (TEXT, TEXT), f"a tool call of agent {agent_id!r}")
        by_name[name] = by_name.get(name, 0) + count
        by_state[state] = by_state.get(state, 0) + count
    if counted != sum(by_name.values()):
        stored = f"{counted} are counted, and {sum(by_name.values())} are stored"
        raise CorruptRecordError(f"the tool calls of agent {agent_id!r}", stored)
    _, messages = _head(db, LIST_HEAD["messages"], agent_id)
    some = db.execute(_HAS_MESSAGES, (agent_id,)).fetchone()
    if some and not messages:
        raise CorruptRecordError(f"the messages of agent {agent_id!r}", "0 are counted, and there are more")
    (snapshots,) = db.execute(COUNT_DOCS, (agent_id, DocKind.SNAPSHOTS)).fetchone()
    (documents,) = db.execute(_COUNT_OWN_DOCS, (agent_id, DocKind.DOCUMENTS, CORE_KEYS)).fetchone()
    return AgentStats(
        total_messages=messages,
        total_tool_calls=sum(by_name.values()),
        total_snapshots=snapshots,
        total_documents=documents,
        tool_calls_by_name=by_name,
        tool_calls_by_state=by_state,
    )
