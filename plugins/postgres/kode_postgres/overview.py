"""What is looked at over all tables: what is stored, how much, and whether it fits together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kode_core.batch import DocKind, EngineIssue, ListKind, Totals
from kode_postgres.schema import OF_AN_AGENT, Tables, table_names
from kode_postgres.session import Session

__all__ = ["ONE", "Overview"]

ONE: Final[dict[ListKind, str]] = {ListKind.MESSAGES: "message", ListKind.TOOL_CALLS: "tool_call"}
"""What the columns of a head begin with."""

_MOST: Final = 2**63 - 1


class Overview:
    """Queries over one store's tables. Each reads a page, or counts."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def totals(self, session: Session) -> Totals:
        t = self._tables
        row = await session.fetchrow(
            f"SELECT count(created_at), least(coalesce(sum(message_count), 0), {_MOST})::bigint,"
            f" least(coalesce(sum(tool_call_count), 0), {_MOST})::bigint,"
            " coalesce(bool_or(message_version <> 0 OR tool_call_version <> 0 OR created_at IS NOT NULL), false)"
            f" OR EXISTS (SELECT FROM {t.events}) OR EXISTS (SELECT FROM {t.docs} WHERE kind <> $1),"
            " (SELECT sum(pg_total_relation_size(coalesce(p.relid, c.name::regclass)))::bigint"
            " FROM unnest($2::text[]) c (name) LEFT JOIN LATERAL pg_partition_tree(c.name::regclass) p ON p.isleaf)"
            f" FROM {t.agents}",
            DocKind.LAYER.value,
            table_names(t),
        )
        return Totals(agents=row[0], messages=row[1], tool_calls=row[2], is_used=row[3], size_bytes=row[4])

    # --- everybody of whom something is stored

    async def stored_ids(self, session: Session, after: str | None, limit: int) -> list[str]:
        """From each table the next ids, each found with one look into an index, and merged."""
        start = "" if after is None else after
        while True:
            found: set[str] = set()
            end: str | None = None
            for name in ("agents", *OF_AN_AGENT):
                ids = await self._ids_of(session, getattr(self._tables, name), start, limit)
                found.update(ids)
                if len(ids) == limit:  # beyond the last of them this table has others, which were not looked at
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
        """Those of whom more is stored than the head that a delete leaves, or what layers keep for themselves."""
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

    async def inspect(self, session: Session, agent_id: str | None) -> list[EngineIssue]:
        if agent_id is None:
            return []  # whatever is stored belongs to an agent, also where the head is gone
        return [
            *await self._without_head(session, agent_id),
            *await self._miscounts(session, agent_id),
            *await self._strange_docs(session, agent_id),
            *await self._ahead(session, agent_id),
        ]

    async def _without_head(self, session: Session, agent_id: str) -> list[EngineIssue]:
        """What is stored although the head is gone, which every write makes and no delete removes."""
        has = ", ".join(
            f"EXISTS (SELECT FROM {getattr(self._tables, name)} WHERE agent_id = $1)" for name in OF_AN_AGENT
        )
        row = await session.fetchrow(
            f"SELECT EXISTS (SELECT FROM {self._tables.agents} WHERE agent_id = $1), {has}", agent_id
        )
        names = [name.replace("_", " ") for name, is_there in zip(OF_AN_AGENT, row[1:], strict=True) if is_there]
        if row[0] or not names:
            return []
        text = f"the head is missing, and {', '.join(names)} are stored"
        return [EngineIssue("orphaned_records", agent_id, text)]

    async def _miscounts(self, session: Session, agent_id: str) -> list[EngineIssue]:
        issues = []
        for kind, one in ONE.items():
            row = await session.fetchrow(
                f"SELECT coalesce((SELECT {one}_count FROM {self._tables.agents} WHERE agent_id = $1), 0), count(*),"
                f" min(position), max(position) FROM {getattr(self._tables, kind.value)} WHERE agent_id = $1",
                agent_id,
            )
            counted, stored, first, last = row
            if stored != counted or (stored and (first, last) != (0, stored - 1)):
                text = f"{counted} {kind.value} are counted, {stored} are stored, from position {first} to {last}"
                issues.append(EngineIssue("count_disagrees", agent_id, text))
        return issues

    async def _strange_docs(self, session: Session, agent_id: str) -> list[EngineIssue]:
        row = await session.fetchrow(
            f"SELECT 1 FROM {self._tables.docs} WHERE agent_id = $1 AND kind <> ALL ($2::text[])",
            agent_id,
            [kind.value for kind in DocKind],
        )
        text = "a document is of a kind that there is not"
        return [] if row is None else [EngineIssue("orphaned_records", agent_id, text)]

    async def _ahead(self, session: Session, agent_id: str) -> list[EngineIssue]:
        row = await session.fetchrow(
            f'SELECT 1 FROM {self._tables.agents} a, (SELECT min("offset") AS first, max("offset") AS last'
            f" FROM {self._tables.events} WHERE agent_id = $1) e"
            " WHERE a.agent_id = $1 AND (a.last_offset < e.last OR e.first < 1)",
            agent_id,
        )
        text = "an event has an offset that was not given yet, and may come again"
        return [] if row is None else [EngineIssue("repeated_offset", agent_id, text)]
