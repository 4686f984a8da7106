"""Forks: one statement each."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kode_core.batch import FORKED_DOCS, Child, first_version
from kode_core.codec import Body
from kode_postgres.doubts import Never
from kode_postgres.parts import ROWS, Part
from kode_postgres.schema import Tables
from kode_postgres.session import Session
from kode_postgres.statements import NOW, sync
from kode_postgres.trouble import AgainError

__all__ = ["Forks"]


class Forks:
    """Copies agents on the server."""

    def __init__(self, tables: Tables, *, durable: bool) -> None:
        self._tables = tables
        self._statement = self._text(sync(durable))
        self._never = (
            f"INSERT INTO {tables.agents} AS a (agent_id, message_version, message_count, tool_call_version,"
            " tool_call_count, updated_at, last_offset, ops, op_times)"
            f" SELECT c, 0, 0, 0, 0, 0, 0, '{{}}', '{{}}' FROM unnest($1::text[]) c"
            f" ON CONFLICT (agent_id) DO UPDATE SET last_offset = a.last_offset RETURNING {sync(durable)}"
        )
        # It writes, so that its commit waits for the disks that the commit of an earlier attempt may not have waited
        # for.
        self._confirm = (
            f"UPDATE {tables.agents} SET last_offset = last_offset WHERE agent_id = ANY ($1::text[])"
            f" RETURNING {sync(durable)}"
        )

    def never(self, children: Sequence[Child]) -> Never:
        """A statement that marks the children's ids as used."""
        return Never(self._never, ([child.agent_id for child in children],))

    async def fork(self, session: Session, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        """Copy one instant of the agent to each child, all or none; False if its info is no longer *expect*."""
        if session.is_retry and await session.fetch(self._confirm, [child.agent_id for child in children]):
            return True
        infos = [child.info for child in children]
        rows = await session.fetch(
            self._statement,
            agent_id,
            expect.digest,
            now,
            [kind.value for kind in FORKED_DOCS],
            [child.agent_id for child in children],
            [info.template_id for info in infos],
            [info.created_at for info in infos],
            [json.dumps(dict(info.metadata)) for info in infos],
            [info.body.digest for info in infos],
            [info.body.text for info in infos],
            [first_version() for _ in infos],
            [first_version() for _ in infos],
            session.until,
        )
        made_now, server_now, _ = rows[0]
        session.clock.heard(server_now)
        if not made_now and server_now >= session.until:
            raise AgainError("the statement was delivered late")
        return bool(made_now)

    def _text(self, sync: str) -> str:
        t = self._tables
        child = (
            "SELECT * FROM unnest($5::text[], $6::text[], $7::bigint[], $8::text[], $9::bytea[], $10::text[],"
            " $11::bigint[], $12::bigint[]) c (agent_id, template_id, created_at, metadata, digest, body, messages,"
            " tool_calls)"
        )
        parent = (
            f"SELECT a.* FROM {t.agents} a JOIN {t.infos} i ON i.agent_id = a.agent_id"
            f" WHERE a.agent_id = $1 AND a.created_at IS NOT NULL AND i.digest = $2 AND {NOW} < $13::bigint"
        )
        versions = (
            "CASE p.message_version WHEN 0 THEN 0 ELSE c.messages END, p.message_count,"
            " CASE p.tool_call_version WHEN 0 THEN 0 ELSE c.tool_calls END, p.tool_call_count"
        )
        return (
            f"WITH child AS MATERIALIZED ({child}), parent AS MATERIALIZED ({parent}),"
            f" heads AS (INSERT INTO {t.agents} (agent_id, message_version, message_count, tool_call_version,"
            " tool_call_count, updated_at, last_offset, ops, op_times, template_id, created_at)"
            f" SELECT c.agent_id, {versions}, $3::bigint, 0, '{{}}', '{{}}', c.template_id, c.created_at"
            " FROM child c, parent p RETURNING 1),"
            f" infos AS (INSERT INTO {t.infos} (agent_id, metadata, digest, body)"
            " SELECT c.agent_id, c.metadata::jsonb, c.digest, c.body::json FROM child c, parent p),"
            f" messages AS ({self._copy(t.messages, [c.name for c in ROWS[Part.MESSAGES][1:]])}),"
            f" tool_calls AS ({self._copy(t.tool_calls, [c.name for c in ROWS[Part.TOOL_CALLS][1:]])}),"
            f" docs AS ({self._copy(t.docs, [c.name for c in ROWS[Part.DOCS][2:]])} WHERE r.kind = ANY ($4::text[]))"
            f" SELECT (SELECT count(*) FROM heads), {NOW}, {sync}"
        )

    def _copy(self, table: str, columns: Sequence[str]) -> str:
        return (
            f"INSERT INTO {table} (agent_id, {', '.join(columns)}) SELECT c.agent_id,"
            f" {', '.join(f'r.{c}' for c in columns)} FROM child c, parent p JOIN {table} r ON r.agent_id = p.agent_id"
        )
