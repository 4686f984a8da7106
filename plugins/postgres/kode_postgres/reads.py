"""Reads of one agent. Each is one statement, which sees one instant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

from kode_core.authoring.reading import check_head_numbers, list_rows
from kode_core.batch import (
    CORE_KEYS,
    AgentSummary,
    Doc,
    DocKind,
    DocSpan,
    EventRange,
    EventRow,
    Info,
    ListHead,
    ListKind,
    ListRows,
    Outline,
)
from kode_core.codec import Body
from kode_core.errors import CorruptRecordError
from kode_core.query import AgentStats
from kode_postgres.arguments import key_hash
from kode_postgres.overview import ONE
from kode_postgres.queries import Arguments
from kode_postgres.schema import OWN_DOCS
from kode_postgres.session import Session
from kode_postgres.texts import TextSearches

__all__ = ["Reads"]

_ROW: Final = "r.position, r.body::text, r.digest, r.created_at"


def _head_of(found: Sequence[Any]) -> tuple[int, int]:
    """The version and the count of a list, which each row of a query contains."""
    return (found[0][0] or 0, found[0][1] or 0)


def _rows_of(found: Sequence[Any]) -> list[Any]:
    """The rows of a list without its head, ordered by position, their first column."""
    return sorted((row[2:] for row in found if row[2] is not None), key=itemgetter(0))


class Reads(TextSearches):
    """The reads of one store's tables."""

    async def summary(self, session: Session, agent_id: str) -> AgentSummary | None:
        row = await session.fetchrow(
            "SELECT a.message_version, a.message_count, a.tool_call_version, a.tool_call_count, a.updated_at,"
            " a.template_id, a.created_at, i.body::text, i.digest FROM (SELECT) one"
            f" LEFT JOIN {self._tables.agents} a ON a.agent_id = $1"
            f" LEFT JOIN {self._tables.infos} i ON i.agent_id = $1",
            agent_id,
        )
        info = None
        if any(value is not None for value in row[5:]):
            if row[0] is None or any(value is None for value in row[5:]):
                raise CorruptRecordError(f"the info of agent {agent_id!r}", "a part of it is missing")
            info = Info(Body(row[7], row[8]), row[5], row[6])
        elif not (row[0] or row[2]):
            return None  # only events or documents, or the remains of a delete
        check_head_numbers(row[:5], agent_id)
        lists = (ListHead(row[0], row[1]), ListHead(row[2], row[3]))
        return AgentSummary(agent_id=agent_id, info=info, updated_at=row[4], messages=lists[0], tool_calls=lists[1])

    # --- lists

    def list_statement(self, kind: ListKind, columns: str = _ROW, matching: str = "") -> str:
        """A list with its version and count in each row, or a single row if there are no list rows.

        The client sorts the rows, which arrive almost in order: to sort a long list, the server would first write all
        its bodies to a file.
        """
        one, table = ONE[kind], getattr(self._tables, kind.value)
        return (
            f"SELECT a.{one}_version, a.{one}_count, {columns} FROM (SELECT) one"
            f" LEFT JOIN {self._tables.agents} a ON a.agent_id = $1"
            f" LEFT JOIN {table} r ON r.agent_id = $1{matching}"
        )

    async def rows(self, session: Session, agent_id: str, kind: ListKind) -> ListRows:
        found = await session.fetch(self.list_statement(kind), agent_id)
        return list_rows(agent_id, kind, _head_of(found), _rows_of(found))

    async def rows_at(self, session: Session, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
        one = ONE[kind]
        page = (
            f"SELECT r.* FROM {getattr(self._tables, kind.value)} r WHERE r.agent_id = $1 AND r.position >= $2"
            " ORDER BY r.position LIMIT $3"
        )
        found = await session.fetch(
            f"SELECT a.{one}_version, a.{one}_count, {_ROW} FROM (SELECT) one"
            f" LEFT JOIN {self._tables.agents} a ON a.agent_id = $1 LEFT JOIN ({page}) r ON true",
            agent_id,
            start,
            limit,
        )
        return list_rows(agent_id, kind, _head_of(found), _rows_of(found), start, limit)

    async def outline(
        self, session: Session, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None
    ) -> Outline:
        key = "r.call_id" if kind == ListKind.TOOL_CALLS else "NULL"
        columns = f"r.position, r.digest, r.created_at, {key}"
        if keys is None:
            found = await session.fetch(self.list_statement(kind, columns), agent_id)
        else:
            last = (
                " AND r.position IN (SELECT (SELECT max(t.position) FROM"
                f" {self._tables.tool_calls} t WHERE t.agent_id = $1 AND t.call_id = k.id)"
                " FROM unnest($2::text[]) k (id))"
            )
            found = await session.fetch(self.list_statement(kind, columns, last), agent_id, list(keys))
        version, count = _head_of(found)
        rows = _rows_of(found)
        if keys is None:
            list_rows(agent_id, kind, (version, count), [(row[0], "", row[1], row[2]) for row in rows])
        return Outline(version, count, rows)

    async def docs(self, session: Session, agent_id: str, kind: DocKind, key: str | None = None) -> list[Doc]:
        statement = f"SELECT key, time, body::text, digest FROM {self._tables.docs} WHERE agent_id = $1 AND kind = $2"
        args: list[Any] = [agent_id, kind.value]
        if key is not None:
            statement += " AND key_hash = $3"
            args.append(key_hash(key))
        found = await session.fetch(statement, *args)
        read = json.loads if kind == DocKind.LAYER else str
        return [Doc(row[0], row[1], Body(read(row[2]), row[3])) for row in found]

    def docs_statement(self, agent_id: str, span: DocSpan) -> tuple[str, list[Any]]:
        """The statement of a page of documents in the order of their keys, and its arguments."""
        text = "body::text" if span.bodies else "''"
        return (
            f"SELECT key, time, {text}, digest FROM {self._tables.docs}"
            f" WHERE agent_id = $1 AND {OWN_DOCS} AND key >= $2 AND key < $3"
            f" ORDER BY key {'DESC' if span.descending else 'ASC'} LIMIT $4::bigint"
        ), [agent_id, span.start, span.stop, span.limit]

    async def docs_in(self, session: Session, agent_id: str, span: DocSpan) -> list[Doc]:
        statement, args = self.docs_statement(agent_id, span)
        return [Doc(row[0], row[1], Body(row[2], row[3])) for row in await session.fetch(statement, *args)]

    # --- events

    def events_statement(self, agent_id: str, span: EventRange) -> tuple[str, list[Any]]:
        """The statement of a page of events and its arguments."""
        args = Arguments()
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

    # --- counts

    async def stats(self, session: Session, agent_id: str) -> AgentStats:
        t = self._tables
        found = await session.fetch(
            "SELECT NULL, NULL, a.message_count, (SELECT count(*) FROM"
            f" {t.docs} WHERE agent_id = $1 AND kind = $2), a.tool_call_count,"
            f" (SELECT count(*) FROM {t.docs} WHERE agent_id = $1 AND {OWN_DOCS} AND key < $3),"
            f" EXISTS (SELECT FROM {t.messages} WHERE agent_id = $1)"
            f" FROM (SELECT) one LEFT JOIN {t.agents} a ON a.agent_id = $1"
            f" UNION ALL SELECT tool_name, state, count(*), 0, 0, 0, false FROM {t.tool_calls} WHERE agent_id = $1"
            " GROUP BY tool_name, state",
            agent_id,
            DocKind.SNAPSHOTS.value,
            CORE_KEYS,
        )
        by_name: dict[str, int] = {}
        by_state: dict[str, int] = {}
        messages = snapshots = calls = documents = 0
        for name, state, count, more, counted, own, has_messages in found:
            if name is None:
                messages, snapshots, calls, documents = count or 0, more, counted or 0, own
                check_head_numbers((messages, calls), agent_id)
                if has_messages and not messages:
                    raise CorruptRecordError(f"the messages of agent {agent_id!r}", "0 are counted, and there are more")
                continue
            by_name[name] = by_name.get(name, 0) + count
            by_state[state] = by_state.get(state, 0) + count
        if calls != sum(by_name.values()):
            stored = f"{calls} are counted, and {sum(by_name.values())} are stored"
            raise CorruptRecordError(f"the tool calls of agent {agent_id!r}", stored)
        return AgentStats(
            total_messages=messages,
            total_tool_calls=sum(by_name.values()),
            total_snapshots=snapshots,
            total_documents=documents,
            tool_calls_by_name=by_name,
            tool_calls_by_state=by_state,
        )
