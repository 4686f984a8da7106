"""Reads. Each function runs inside a transaction of the engine, and so reads one instant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from kode_core.authoring.reading import list_rows
from kode_core.batch import (
    AgentSummary,
    Doc,
    DocKind,
    EngineIssue,
    EventRange,
    EventRow,
    FoundRow,
    Info,
    ListHead,
    ListKind,
    ListRows,
    Outline,
    SessionRow,
    Totals,
)
from kode_core.codec import Body
from kode_core.engine import Progress, unwatched
from kode_core.query import AgentStats, Range, RowQuery, SessionQuery, Wanted, Within, values_of
from kode_duckdb.schema import TABLES, Connection


class Agent(NamedTuple):
    """A row of kode_agents. The row of an unknown agent has version 0 everywhere."""

    agent_id: str
    updated_at: int = 0
    last_op: str = ""
    message_version: int = 0
    message_count: int = 0
    tool_call_version: int = 0
    tool_call_count: int = 0
    info: str | None = None
    digest: bytes = b""
    template_id: str | None = None
    created_at: int | None = None
    metadata: Sequence[str] = ()

    def list_head(self, kind: ListKind) -> ListHead:
        """The version and length of a list."""
        if kind is ListKind.MESSAGES:
            return ListHead(self.message_version, self.message_count)
        return ListHead(self.tool_call_version, self.tool_call_count)


def agent(db: Connection, agent_id: str) -> Agent:
    row = db.execute(f"SELECT {', '.join(TABLES['kode_agents'])} FROM kode_agents WHERE agent_id = ?", [agent_id])
    return Agent(*(row.fetchone() or (agent_id,)))


def summary(db: Connection, agent_id: str) -> AgentSummary | None:
    found = agent(db, agent_id)
    if not found.last_op:
        return None
    info = None
    if found.info is not None:
        assert found.template_id is not None
        assert found.created_at is not None
        info = Info(Body(found.info, found.digest), found.template_id, found.created_at)
    return AgentSummary(
        agent_id=agent_id,
        info=info,
        updated_at=found.updated_at,
        messages=found.list_head(ListKind.MESSAGES),
        tool_calls=found.list_head(ListKind.TOOL_CALLS),
    )


# --- lists and documents ----------------------------------------------------------------------------------------------


_ROW: Final = "SELECT position, body, digest, created_at FROM kode_rows WHERE agent_id = ? AND kind = ?"


def rows(db: Connection, agent_id: str, kind: ListKind) -> ListRows:
    found = db.execute(f"{_ROW} ORDER BY position", [agent_id, kind.value]).fetchall()
    head = agent(db, agent_id).list_head(kind)
    return list_rows(agent_id, kind, (head.version, head.count), found)


def rows_at(db: Connection, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
    found = db.execute(
        f"{_ROW} AND position >= ? ORDER BY position LIMIT ?", [agent_id, kind.value, start, limit]
    ).fetchall()
    head = agent(db, agent_id).list_head(kind)
    return list_rows(agent_id, kind, (head.version, head.count), found, start, limit)


def outline(db: Connection, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
    where, args = "agent_id = ? AND kind = ?", [agent_id, kind.value, *([] if keys is None else [list(keys)])]
    if keys is not None:
        where += " AND call_id IN (SELECT unnest(?::VARCHAR[]))"
        where += " QUALIFY row_number() OVER (PARTITION BY call_id ORDER BY position DESC) = 1"
    found = db.execute(
        f"SELECT position, digest, created_at, call_id FROM kode_rows WHERE {where} ORDER BY position", args
    ).fetchall()
    head = agent(db, agent_id).list_head(kind)
    return Outline(head.version, head.count, found)


def docs(db: Connection, agent_id: str, kind: DocKind, key: str | None = None) -> list[Doc]:
    found = db.execute(
        "SELECT key, time, body, digest FROM kode_docs WHERE agent_id = ? AND kind = ? AND coalesce(key = ?, TRUE)",
        [agent_id, kind.value, key],
    ).fetchall()
    return [Doc(key, time, Body(body, digest)) for key, time, body, digest in found]


# --- events -----------------------------------------------------------------------------------------------------------


class Where:
    """Conditions that must all hold, and their arguments."""

    def __init__(self) -> None:
        self._conditions = ["TRUE"]
        self.args: list[Any] = []

    def __str__(self) -> str:
        return f"WHERE {' AND '.join(self._conditions)}"

    def add(self, condition: str, *args: Any) -> None:
        """One more condition."""
        self._conditions.append(condition)
        self.args += args

    def one_of(self, column: str, wanted: Wanted) -> None:
        """A column must have the wanted value, or one of the wanted values."""
        self.add(f"list_contains(?::VARCHAR[], {column})", [*values_of(wanted)])

    def span(self, column: str, span: Range) -> None:
        """A time must be in a span."""
        if span.start is not None:
            self.add(f"{column} >= ?", span.start)
        if span.end is not None:
            self.add(f"{column} < ?", span.end)


_EVENT: Final = "SELECT place, seq, body, digest FROM kode_events"


def events(db: Connection, agent_id: str, span: EventRange) -> list[EventRow]:
    where = Where()
    where.add("agent_id = ?", agent_id)
    if span.since_seq is not None:
        where.add("seq > ?", span.since_seq)
    if span.channel is not None:
        where.add("channel = ?", span.channel)
    if span.after is not None and span.order == "seq":
        where.add("(seq, place) > (?, ?)", *span.after)
    if span.after is not None and span.order == "offset":
        where.add("place > ?", span.after[1])
    order = "place" if span.order == "offset" else "seq, place"
    found = db.execute(f"{_EVENT} {where} ORDER BY {order} LIMIT ?", [*where.args, span.limit]).fetchall()
    return [EventRow(offset, seq, Body(body, digest)) for offset, seq, body, digest in found]


def last_event(db: Connection, agent_id: str) -> EventRow | None:
    row = db.execute(f"{_EVENT} WHERE agent_id = ? ORDER BY seq DESC, place DESC LIMIT 1", [agent_id]).fetchone()
    return None if row is None else EventRow(row[0], row[1], Body(row[2], row[3]))


# --- queries ----------------------------------------------------------------------------------------------------------


def _page(where: Where, columns: Sequence[str], query: SessionQuery | RowQuery) -> tuple[str, list[Any]]:
    """The end of a statement, from WHERE on: the page of *query* in the order of *columns*; and all arguments."""
    if query.after is not None:
        marks = ", ".join("?" * len(columns))
        where.add(f"({', '.join(columns)}) {'<' if query.descending else '>'} ({marks})", *query.after)
    order = ", ".join(f"{column} {'DESC' if query.descending else 'ASC'}" for column in columns)
    return f"{where} ORDER BY {order} LIMIT ? OFFSET ?", [*where.args, query.limit, query.offset]


def agent_ids(db: Connection, prefix: str, after: str | None, limit: int) -> list[str]:
    found = db.execute(
        "SELECT agent_id FROM kode_agents WHERE info IS NOT NULL AND starts_with(agent_id, ?) AND agent_id > ?"
        " ORDER BY agent_id LIMIT ?",
        [prefix, after or "", limit],
    ).fetchall()
    return [agent_id for (agent_id,) in found]


def stored_ids(db: Connection, after: str | None, limit: int) -> list[str]:
    """Every stored record has a row in one of these tables."""
    found = db.execute(
        "SELECT agent_id FROM (SELECT agent_id FROM kode_agents UNION SELECT agent_id FROM kode_rows"
        " UNION SELECT agent_id FROM kode_events UNION SELECT agent_id FROM kode_docs WHERE kind <> ?)"
        " WHERE agent_id > ? ORDER BY agent_id LIMIT ?",
        [DocKind.LAYER.value, after or "", limit],
    ).fetchall()
    return [agent_id for (agent_id,) in found]


def find_sessions(db: Connection, query: SessionQuery) -> list[SessionRow]:
    where = Where()
    where.add("info IS NOT NULL")
    assert not isinstance(query.agent_id, Within)  # the engine does not say finds_within
    if query.agent_id is not None:
        where.one_of("agent_id", query.agent_id)
    if query.template_id is not None:
        where.one_of("template_id", query.template_id)
    for key, wanted in query.metadata:
        where.add("list_has_any(metadata, ?::VARCHAR[])", [f"{key}\n{value}" for value in values_of(wanted)])
    where.span("created_at", query.created)
    where.span("updated_at", query.updated)
    end, args = _page(where, (query.sort_by, "agent_id"), query)
    columns = "agent_id, info, digest, created_at, updated_at, message_count"
    found = db.execute(f"SELECT {columns} FROM kode_agents {end}", args).fetchall()
    return [SessionRow(row[0], Body(row[1], row[2]), *row[3:]) for row in found]


def find_rows(db: Connection, query: RowQuery) -> list[FoundRow]:
    where = Where()
    where.add("kind = ?", query.kind)
    assert not isinstance(query.agent_id, Within)  # the engine does not say finds_within
    if query.agent_id is not None:
        where.one_of("agent_id", query.agent_id)
    for column, wanted in query.where:
        if isinstance(wanted, bool):
            where.add(f"{column} = ?", wanted)
        elif column == "content_type":
            where.add("list_has_any(content_types, ?::VARCHAR[])", [*values_of(wanted)])
        else:
            where.one_of(column, wanted)
    where.span("created_at", query.created)
    end, args = _page(where, ("created_at", "agent_id", "position"), query)
    found = db.execute(f"SELECT agent_id, position, created_at, body, digest FROM kode_rows {end}", args).fetchall()
    return [FoundRow(a, position, created_at, Body(*body)) for a, position, created_at, *body in found]


# --- counts -----------------------------------------------------------------------------------------------------------


def stats(db: Connection, agent_id: str) -> AgentStats:
    def counted(column: str) -> dict[str, int]:
        statement = f"SELECT {column}, count(*) FROM kode_rows WHERE agent_id = ? AND kind = ? GROUP BY {column}"
        return dict(db.execute(statement, [agent_id, ListKind.TOOL_CALLS.value]).fetchall())

    found = agent(db, agent_id)
    return AgentStats(
        total_messages=found.message_count,
        total_tool_calls=found.tool_call_count,
        total_snapshots=len(docs(db, agent_id, DocKind.SNAPSHOTS, None)),
        tool_calls_by_name=counted("tool_name"),
        tool_calls_by_state=counted("state"),
    )


def totals(db: Connection, size_bytes: int) -> Totals:
    row = db.execute(
        "SELECT count(info), coalesce(sum(message_count), 0)::BIGINT, coalesce(sum(tool_call_count), 0)::BIGINT,"
        " count(*) > 0 OR EXISTS (FROM kode_events) OR EXISTS (FROM kode_docs WHERE kind <> ?) FROM kode_agents",
        [DocKind.LAYER.value],
    ).fetchone()
    assert row is not None
    return Totals(agents=row[0], messages=row[1], tool_calls=row[2], size_bytes=size_bytes, is_used=row[3])


def inspect(db: Connection, agent_id: str | None, progress: Progress = unwatched) -> list[EngineIssue]:
    if agent_id is None:
        return []
    issues = []
    for kind in ListKind:
        counted = agent(db, agent_id).list_head(kind).count
        statement = "SELECT count(DISTINCT position), max(position) FROM kode_rows WHERE agent_id = ? AND kind = ?"
        stored, last = db.execute(statement, [agent_id, kind.value]).fetchone() or (0, None)
        if stored != counted or (stored and last != stored - 1):
            text = f"{counted} {kind.value} are counted, {stored} are stored, the last at position {last}"
            issues.append(EngineIssue("count_disagrees", agent_id, text))
    return issues
