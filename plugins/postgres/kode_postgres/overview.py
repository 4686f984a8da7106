"""Reads over all tables: the agents with records, their numbers, and their consistency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kode_core.batch import DocKind, EngineIssue, ListKind, Totals
from kode_core.engine import Progress, unwatched
from kode_postgres.schema import OF_AN_AGENT, UNNAMED, Tables, table_names
from kode_postgres.session import Session

__all__ = ["ONE", "Overview"]

ONE: Final[dict[ListKind, str]] = {ListKind.MESSAGES: "message", ListKind.TOOL_CALLS: "tool_call"}
"""The prefixes of a head's columns, by list."""

_MOST: Final = 2**63 - 1


class Overview:
    """Queries over one store's tables. Each reads a page, or counts."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def totals(self, session: Session) -> Totals:
        return await self._totals(session, table_names(self._tables))

    async def _totals(self, session: Session, names: Sequence[str]) -> Totals:
        """The totals, with the size of the tables that have these names."""
        row = await session.fetchrow(self.totals_statement(), DocKind.LAYER.value, names)
        return Totals(agents=row[0], messages=row[1], tool_calls=row[2], is_used=row[3], size_bytes=row[4])

    def totals_statement(self) -> str:
        """The statement of the totals: agents with info are counted in an index, deleted agents are not counted."""
        t, counts = (
            self._tables,
            "count(*) AS agents, sum(message_count) AS messages, sum(tool_call_count) AS tool_calls",
        )
        return (
            f"SELECT n.agents, least(coalesce(n.messages, 0) + coalesce(u.messages, 0), {_MOST})::bigint,"
            f" least(coalesce(n.tool_calls, 0) + coalesce(u.tool_calls, 0), {_MOST})::bigint,"
            f" n.agents > 0 OR u.agents > 0 OR EXISTS (SELECT FROM {t.events})"
            f" OR EXISTS (SELECT FROM {t.docs} WHERE kind <> $1),"
            " (SELECT sum(pg_total_relation_size(coalesce(p.relid, c.name::regclass)))::bigint"
            " FROM unnest($2::text[]) c (name) LEFT JOIN LATERAL pg_partition_tree(c.name::regclass) p ON p.isleaf)"
            f" FROM (SELECT {counts} FROM {t.agents} WHERE created_at IS NOT NULL) n,"
            f" (SELECT {counts} FROM {t.agents} WHERE {UNNAMED}) u"
        )

    # --- agents with records

    async def stored_ids(self, session: Session, after: str | None, limit: int) -> list[str]:
        """The next ids of each table, each found with one look into an index, and merged."""
        start = "" if after is None else after
        while True:
            found: set[str] = set()
            end: str | None = None
            for name in ("agents", *OF_AN_AGENT):
                ids = await self._ids_of(session, getattr(self._tables, name), start, limit)
                found.update(ids)
                if len(ids) == limit:  # after the last of them this table has more, which were not read
                    end = ids[-1] if end is None else min(end, ids[-1])
            known = sorted(agent_id for agent_id in found if end is None or agent_id <= end)
            stored = await self._with_contents(session, known)
            if stored or end is None:
                return stored[:limit]
            start = end

    async def _ids_of(self, session: Session, table: str, after: str, limit: int) -> list[str]:
        found = await session.fetch(
            f"WITH RECURSIVE ids (id) AS ((SELECT agent_id FROM {table} WHERE agent_id > $1 ORDER BY agent_id LIMIT 1)"
            f" UNION ALL SELECT (SELECT t.agent_id FROM {table} t WHERE t.agent_id > ids.id ORDER BY t.agent_id"
            " LIMIT 1)"
            " FROM ids WHERE ids.id IS NOT NULL) SELECT id FROM ids WHERE id IS NOT NULL LIMIT $2",
            after,
            limit,
        )
        return [row[0] for row in found]

    async def _with_contents(self, session: Session, agent_ids: Sequence[str]) -> list[str]:
        """The agents that have more than the head that a delete leaves and the documents of layers."""
        tables = (f"{getattr(self._tables, name)} t" for name in OF_AN_AGENT if name != "docs")
        rows = " OR ".join(f"EXISTS (SELECT FROM {table} WHERE t.agent_id = i.id)" for table in tables)
        found = await session.fetch(
            f"SELECT i.id FROM unnest($1::text[]) WITH ORDINALITY i (id, n) WHERE {rows}"
            f" OR EXISTS (SELECT FROM {self._tables.docs} t WHERE t.agent_id = i.id AND t.kind <> $2)"
            f" OR EXISTS (SELECT FROM {self._tables.agents} t WHERE t.agent_id = i.id AND"
            " (t.message_version <> 0 OR t.tool_call_version <> 0 OR t.created_at IS NOT NULL)) ORDER BY i.n",
            list(agent_ids),
            DocKind.LAYER.value,
        )
        return [row[0] for row in found]

    # --- what does not fit together

    async def inspect(
        self, session: Session, agent_id: str | None, progress: Progress = unwatched
    ) -> list[EngineIssue]:
        """The issues of an agent at one instant."""
        if agent_id is None:
            return []  # everything that is stored belongs to an agent, even if the head is gone
        t = self._tables
        has = [f"EXISTS (SELECT FROM {getattr(t, name)} WHERE agent_id = $1)" for name in OF_AN_AGENT]
        lists = [
            f"(SELECT ARRAY[coalesce(a.{one}_count, 0), count(*), min(position), max(position)]"
            f" FROM {getattr(t, kind.value)} WHERE agent_id = $1)"
            for kind, one in ONE.items()
        ]
        row = await session.fetchrow(
            f"SELECT a.agent_id IS NOT NULL, ARRAY[{', '.join(has)}], {', '.join(lists)},"
            f" EXISTS (SELECT FROM {t.docs} WHERE agent_id = $1 AND kind <> ALL ($2::text[])),"
            f' (SELECT min("offset") < 1 OR max("offset") > a.last_offset FROM {t.events} WHERE agent_id = $1)'
            f" FROM (SELECT) one LEFT JOIN {t.agents} a ON a.agent_id = $1",
            agent_id,
            [kind.value for kind in DocKind],
        )
        has_head, is_there, *counts, has_strange_docs, has_strange_offsets = row
        issues = []
        if not has_head and any(is_there):
            names = ", ".join(n.replace("_", " ") for n, stored in zip(OF_AN_AGENT, is_there, strict=True) if stored)
            issues.append(EngineIssue("orphaned_records", agent_id, f"the head is missing, and {names} are stored"))
        for kind, (counted, stored, first, last) in zip(ONE, counts, strict=True):
            if stored != counted or (stored and (first, last) != (0, stored - 1)):
                text = f"{counted} {kind.value} are counted, {stored} are stored, from position {first} to {last}"
                issues.append(EngineIssue("count_disagrees", agent_id, text))
        if has_strange_docs:
            issues.append(EngineIssue("orphaned_records", agent_id, "a document is of a kind that there is not"))
        if has_strange_offsets:
            text = "an event has an offset that was not given yet, and may come again"
            issues.append(EngineIssue("repeated_offset", agent_id, text))
        return issues
