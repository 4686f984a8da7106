"""Queries. Each is one statement, which sees one instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from kode_core.batch import (
    Doc,
    DocKind,
    EngineIssue,
    EventRange,
    EventRow,
    FoundRow,
    Head,
    Info,
    ListHead,
    ListKind,
    ListRows,
    Outline,
    SessionRow,
    Totals,
)
from kode_core.codec import Body
from kode_core.query import AgentStats, Range, RowQuery, SessionQuery
from kode_postgres.schema import OF_AN_AGENT, Tables, table_names
from kode_postgres.session import Session
from kode_postgres.writes import key_hash

__all__ = ["Reads"]

_ONE: Final[dict[ListKind, str]] = {ListKind.MESSAGES: "message", ListKind.TOOL_CALLS: "tool_call"}
_EQUAL: Final = ("role", "tool_name", "state", "is_error", "has_approval")


class _Arguments(list[Any]):
    """The arguments of a statement that is put together."""

    def mark(self, value: Any, kind: str) -> str:
        self.append(value)
        return f"${len(self)}::{kind}"

    def span(self, column: str, span: Range) -> list[str]:
        bounds = ((span.start, ">="), (span.end, "<"))
        return [f"{column} {sign} {self.mark(value, 'bigint')}" for value, sign in bounds if value is not None]


def beyond(prefix: str) -> str | None:
    """The least string above all that begin with *prefix*; None when there is none."""
    stem = prefix.rstrip(chr(sys.maxunicode))
    if not stem:
        return None
    code = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if code == 0xD800 else code)


class Reads:
    """The queries over one store's tables."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def head(self, session: Session, agent_id: str) -> Head | None:
        row = await session.fetchrow(
            "SELECT a.message_version, a.message_count, a.tool_call_version, a.tool_call_count, a.updated_at,"
            f" a.template_id, a.created_at, i.body::text, i.digest FROM {self._tables.agents} a"
            f" LEFT JOIN {self._tables.infos} i ON i.agent_id = a.agent_id WHERE a.agent_id = $1",
            agent_id,
        )
        if row is None or not (row[0] or row[2] or row[6] is not None):
            return None  # only events or documents, or what a delete left
        info = None if row[6] is None else Info(Body(row[7], row[8]), row[5], row[6])
        lists = (ListHead(row[0], row[1]), ListHead(row[2], row[3]))
        return Head(agent_id=agent_id, info=info, updated_at=row[4], messages=lists[0], tool_calls=lists[1])

    # --- lists

    def _list(self, kind: ListKind, columns: str, matching: str = "") -> str:
        """A list with its version and count in each row, and one row where the list is empty."""
        one, table = _ONE[kind], getattr(self._tables, kind.value)
        return (
            f"SELECT a.{one}_version, a.{one}_count, {columns} FROM {self._tables.agents} a"
            f" LEFT JOIN {table} r ON r.agent_id = a.agent_id{matching} WHERE a.agent_id = $1 ORDER BY r.position"
        )

    async def rows(self, session: Session, agent_id: str, kind: ListKind) -> ListRows:
        found = await session.fetch(self._list(kind, "r.body::text, r.digest, r.created_at"), agent_id)
        version = found[0][0] if found else 0
        return ListRows(version, [(Body(row[2], row[3]), row[4]) for row in found if row[4] is not None])

    async def outline(self, session: Session, agent_id: str, kind: ListKind, keys: Sequence[str] | None) -> Outline:
        key = "r.call_id" if kind == ListKind.TOOL_CALLS else "NULL"
        columns = f"r.position, r.digest, r.created_at, {key}"
        if keys is None:
            found = await session.fetch(self._list(kind, columns), agent_id)
        else:
            last = (
                " AND r.position IN (SELECT (SELECT max(t.position) FROM"
                f" {self._tables.tool_calls} t WHERE t.agent_id = $1 AND t.call_id = k.id)"
                " FROM unnest($2::text[]) k (id))"
            )
            found = await session.fetch(self._list(kind, columns, last), agent_id, list(keys))
        version, count = (found[0][0], found[0][1]) if found else (0, 0)
        return Outline(version, count, [tuple(row)[2:] for row in found if row[2] is not None])

    async def docs(self, session: Session, agent_id: str, kind: DocKind, key: str | None) -> list[Doc]:
        statement = f"SELECT key, time, body::text, digest FROM {self._tables.docs} WHERE agent_id = $1 AND kind = $2"
        args: list[Any] = [agent_id, kind.value]
        if key is not None:
            statement += " AND key_hash = $3"
            args.append(key_hash(key))
        found = await session.fetch(statement, *args)
        read = json.loads if kind == DocKind.LAYER else str
        return [Doc(row[0], row[1], Body(read(row[2]), row[3])) for row in found]

    # --- events

    def events_statement(self, agent_id: str, span: EventRange) -> tuple[str, list[Any]]:
        """The statement of a page of events and its arguments."""
        args = _Arguments()
        where = [f"agent_id = {args.mark(agent_id, 'text')}"]
        if span.since_seq is not None:
            where.append(f"seq > {args.mark(span.since_seq, 'bigint')}")
        if span.channel is not None:
            where.append(f"channel = {args.mark(span.channel, 'text')}")
        order = '"offset"' if span.order == "offset" else 'seq, "offset"'
        if span.after is not None:
            after = args.mark(span.after[1], "bigint")
            if span.order == "offset":
                where.append(f'"offset" > {after}')
            else:
                seq = args.mark(span.after[0], "bigint")
                where.append(f'seq >= {seq} AND (seq > {seq} OR "offset" > {after})')
        statement = (
            f'SELECT "offset", seq, body::text, digest FROM {self._tables.events} WHERE {" AND ".join(where)}'
            f" ORDER BY {order} LIMIT {args.mark(span.limit, 'bigint')}"
        )
        return statement, args

    async def events(self, session: Session, agent_id: str, span: EventRange) -> list[EventRow]:
        statement, args = self.events_statement(agent_id, span)
        return [EventRow(row[0], row[1], Body(row[2], row[3])) for row in await session.fetch(statement, *args)]

    async def last_event(self, session: Session, agent_id: str) -> EventRow | None:
        row = await session.fetchrow(
            f'SELECT "offset", seq, body::text, digest FROM {self._tables.events} WHERE agent_id = $1'
            ' ORDER BY seq DESC, "offset" DESC LIMIT 1',
            agent_id,
        )
        return None if row is None else EventRow(row[0], row[1], Body(row[2], row[3]))

    # --- over all agents

    async def agent_ids(self, session: Session, prefix: str, after: str | None, limit: int) -> list[str]:
        args = _Arguments()
        where = ["created_at IS NOT NULL", f"agent_id >= {args.mark(prefix, 'text')}"]
        end = beyond(prefix)
        if end is not None:
            where.append(f"agent_id < {args.mark(end, 'text')}")
        if after is not None:
            where.append(f"agent_id > {args.mark(after, 'text')}")
        found = await session.fetch(
            f"SELECT agent_id FROM {self._tables.agents} WHERE {' AND '.join(where)}"
            f" ORDER BY agent_id LIMIT {args.mark(limit, 'bigint')}",
            *args,
        )
        return [row[0] for row in found]

    def sessions_statement(self, query: SessionQuery) -> tuple[str, list[Any]]:
        """The statement of a session query and its arguments."""
        args = _Arguments()
        where = ["a.created_at IS NOT NULL"]
        if query.agent_id is not None:
            where.append(f"a.agent_id = {args.mark(query.agent_id, 'text')}")
        if query.template_id is not None:
            where.append(f"a.template_id = {args.mark(query.template_id, 'text')}")
        for key, value in query.metadata:  # one by one: a key may be asked for twice
            where.append(f"i.metadata @> {args.mark(json.dumps({key: value}), 'text')}::jsonb")
        where += [*args.span("a.created_at", query.created), *args.span("a.updated_at", query.updated)]
        column, direction = f"a.{query.sort_by}", "DESC" if query.descending else "ASC"
        if query.after is not None:
            key = f"{args.mark(query.after[0], 'bigint')}, {args.mark(query.after[1], 'text')}"
            where.append(f"({column}, a.agent_id) {'<' if query.descending else '>'} ({key})")
        statement = (
            "SELECT a.agent_id, i.body::text, i.digest, a.created_at, a.updated_at, a.message_count"
            f" FROM {self._tables.agents} a JOIN {self._tables.infos} i ON i.agent_id = a.agent_id"
            f" WHERE {' AND '.join(where)} ORDER BY {column} {direction}, a.agent_id {direction}"
            f" LIMIT {args.mark(query.limit, 'bigint')} OFFSET {args.mark(query.offset, 'bigint')}"
        )
        return statement, args

    async def find_sessions(self, session: Session, query: SessionQuery) -> list[SessionRow]:
        statement, args = self.sessions_statement(query)
        found = await session.fetch(statement, *args)
        return [SessionRow(row[0], Body(row[1], row[2]), row[3], row[4], row[5]) for row in found]

    def rows_statement(self, query: RowQuery) -> tuple[str, list[Any]]:
        """The statement of a query over list rows and its arguments."""
        args = _Arguments()
        where = [] if query.agent_id is None else [f"agent_id = {args.mark(query.agent_id, 'text')}"]
        for name, value in query.where:
            if name == "content_type":
                types = args.mark(f"\n{value}\n", "text")
                where.append(f"strpos(content_types, {types}) > 0")
            elif isinstance(value, bool):
                where.append(name if value else f"NOT {name}")
            else:
                where.append(f"{name} = {args.mark(value, 'text')}")
        where += args.span("created_at", query.created)
        if query.after is not None:
            key = ", ".join(args.mark(v, k) for v, k in zip(query.after, ("bigint", "text", "bigint"), strict=True))
            where.append(f"(created_at, agent_id, position) {'<' if query.descending else '>'} ({key})")
        direction = "DESC" if query.descending else "ASC"
        statement = (
            "SELECT agent_id, position, created_at, body::text, digest"
            f" FROM {getattr(self._tables, query.kind)} WHERE {' AND '.join(where) or 'TRUE'}"
            f" ORDER BY created_at {direction}, agent_id {direction}, position {direction}"
            f" LIMIT {args.mark(query.limit, 'bigint')} OFFSET {args.mark(query.offset, 'bigint')}"
        )
        return statement, args

    async def find_rows(self, session: Session, query: RowQuery) -> list[FoundRow]:
        statement, args = self.rows_statement(query)
        found = await session.fetch(statement, *args)
        return [FoundRow(row[0], row[1], row[2], Body(row[3], row[4])) for row in found]

    # --- counts

    async def stats(self, session: Session, agent_id: str) -> AgentStats:
        t = self._tables
        found = await session.fetch(
            "SELECT NULL, NULL, coalesce((SELECT message_count FROM"
            f" {t.agents} WHERE agent_id = $1), 0),"
            f" (SELECT count(*) FROM {t.docs} WHERE agent_id = $1 AND kind = $2)"
            f" UNION ALL SELECT tool_name, state, count(*), 0 FROM {t.tool_calls} WHERE agent_id = $1"
            " GROUP BY tool_name, state",
            agent_id,
            DocKind.SNAPSHOTS.value,
        )
        by_name: dict[str, int] = {}
        by_state: dict[str, int] = {}
        messages = snapshots = 0
        for name, state, count, more in found:
            if name is None:
                messages, snapshots = count, more
                continue
            by_name[name] = by_name.get(name, 0) + count
            by_state[state] = by_state.get(state, 0) + count
        return AgentStats(
            total_messages=messages,
            total_tool_calls=sum(by_name.values()),
            total_snapshots=snapshots,
            tool_calls_by_name=by_name,
            tool_calls_by_state=by_state,
        )

    async def totals(self, session: Session) -> Totals:
        t = self._tables
        row = await session.fetchrow(
            "SELECT count(created_at), coalesce(sum(message_count), 0)::bigint,"
            " coalesce(sum(tool_call_count), 0)::bigint,"
            " coalesce(bool_or(message_version <> 0 OR tool_call_version <> 0 OR created_at IS NOT NULL), false)"
            f" OR EXISTS (SELECT FROM {t.events}) OR EXISTS (SELECT FROM {t.docs} WHERE kind <> $1),"
            " (SELECT sum(pg_total_relation_size(coalesce(p.relid, c.name::regclass)))::bigint"
            " FROM unnest($2::text[]) c (name) LEFT JOIN LATERAL pg_partition_tree(c.name::regclass) p ON p.isleaf)"
            f" FROM {t.agents}",
            DocKind.LAYER.value,
            table_names(t),
        )
        return Totals(agents=row[0], messages=row[1], tool_calls=row[2], is_used=row[3], size_bytes=row[4])

    async def inspect(self, session: Session, agent_id: str | None) -> list[EngineIssue]:
        return await (self._leftovers(session) if agent_id is None else self._miscounts(session, agent_id))

    async def _leftovers(self, session: Session) -> list[EngineIssue]:
        """Rows of agents that have no head, which every write makes."""
        issues = []
        for name in OF_AN_AGENT:
            table = getattr(self._tables, name)
            found = await session.fetch(
                f"SELECT DISTINCT agent_id FROM {table} r WHERE NOT EXISTS"
                f" (SELECT FROM {self._tables.agents} a WHERE a.agent_id = r.agent_id) LIMIT 100"
            )
            issues += [
                EngineIssue("leftovers", row[0], f"{name} are stored of an agent that has no head") for row in found
            ]
        return issues

    async def _miscounts(self, session: Session, agent_id: str) -> list[EngineIssue]:
        issues = []
        for kind, one in _ONE.items():
            row = await session.fetchrow(
                f"SELECT coalesce((SELECT {one}_count FROM {self._tables.agents} WHERE agent_id = $1), 0), count(*),"
                f" max(position) FROM {getattr(self._tables, kind.value)} WHERE agent_id = $1",
                agent_id,
            )
            counted, stored, last = row
            if stored != counted or (stored and last != stored - 1):
                text = f"{counted} {kind.value} are counted, {stored} are stored, the last at position {last}"
                issues.append(EngineIssue("count_disagrees", agent_id, text))
        return issues
