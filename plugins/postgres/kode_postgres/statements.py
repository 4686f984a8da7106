"""The statement that writes a group of batches: one round trip and one commit, whatever the contents.

It locks the heads, checks the preconditions, changes the heads, and writes rows only for agents whose head it changed.
Its answer has a row for each of these; a batch without a row was not applied. The parts of the statement depend on the
contents of the group, so that an append of events does not pay for lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final

from kode_core.batch import CORE_KEYS, DocKind
from kode_postgres.parts import INPUT, LISTS, ONE, PUTS, ROWS, Column, Part
from kode_postgres.schema import KEPT_OPS, OWN_DOCS, Tables
from kode_postgres.watch import channel_of

__all__ = ["LOCK_WAIT", "NOW", "WriteStatement", "digest_of", "has_more", "info_of", "sync"]

LOCK_WAIT: Final = "30ms"
"""How long a statement waits for a lock.

A call that must wait longer tries again, and holds no connection meanwhile.
"""

_CROWDED: Final = 0.75
"""The share of the server's notification queue above which no notification is added: the rest is left to others."""


NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"


class WriteStatement:
    """The statement for groups with these parts."""

    def __init__(self, tables: Tables, parts: Part, *, durable: bool) -> None:
        self._tables = tables
        self._parts = parts
        self._durable = durable
        self._arguments = 0
        self.input = tuple(c for part, columns in INPUT.items() if part is None or part in parts for c in columns)
        self.rows = {part: columns for part, columns in ROWS.items() if part in parts}

    def __contains__(self, part: Part) -> bool:
        return part in self._parts

    @cached_property
    def text(self) -> str:
        """The statement.

        Its arguments are the columns of ``input``, then the columns of ``rows``, then the latest time at which it may
        begin, by the server's clock: a statement that is delivered later does nothing.
        """
        self._arguments = 0
        unnested = self._unnest("i", self.input, "n")
        tables = {part: self._unnest("r", columns) for part, columns in self.rows.items()}
        limit = f"(SELECT set_config('lock_timeout', '{LOCK_WAIT}', true) AS limited OFFSET 0) s"
        begun = f"s.limited IS NOT NULL AND {NOW} < ${self._arguments + 1}::bigint"
        ctes = [f"input AS MATERIALIZED (SELECT i.* FROM {limit}, {unnested} WHERE {begun})"]
        if Part.FENCE in self:
            ctes.append(f"fence AS ({self._fence()})")
        if Part.DEMANDS in self:
            ctes.append(f"unmet AS MATERIALIZED ({self._unmet(tables.pop(Part.DEMANDS))})")
        if Part.SEVERAL in self:
            order = f"SELECT a.agent_id FROM {self._tables.agents} a JOIN input i USING (agent_id)"
            ctes.append(f"locked AS MATERIALIZED ({order} ORDER BY a.agent_id FOR UPDATE OF a SKIP LOCKED)")
        ctes += [f"old AS ({self._update()})", f"fresh AS ({self._insert()})", f"head AS ({self._head()})"]
        if Part.UNSEEN in self:
            ctes.append(f"latest AS MATERIALIZED ({self._latest()})")
        for part, rows in tables.items():
            ctes += self._writes(part, rows)
        return f"WITH {', '.join(ctes)} {self._answer()}"

    def _unnest(self, name: str, columns: Sequence[Column], ordinal: str | None = None) -> str:
        marks = []
        for column in columns:
            self._arguments += 1
            marks.append(f"${self._arguments}::{column.type}[]")
        names = ", ".join([c.name for c in columns] + ([ordinal] if ordinal else []))
        return f"unnest({', '.join(marks)}){' WITH ORDINALITY' if ordinal else ''} AS {name} ({names})"

    # --- heads

    def _fence(self) -> str:
        """The batches whose lease is held; the lease cannot be taken over before this is committed."""
        wait = " SKIP LOCKED" if Part.SEVERAL in self else ""
        return (
            f"SELECT l.agent_id FROM {self._tables.leases} l JOIN input i USING (agent_id)"
            " WHERE l.owner = i.fence_owner AND l.token = i.fence_token AND l.expires > clock_timestamp()"
            f" ORDER BY l.agent_id FOR SHARE OF l{wait}"
        )

    def _unmet(self, rows: str) -> str:
        """The batches that demand documents other than the statement sees; an empty digest demands that none exists."""
        stored = digest_of(self._tables, "i.agent_id", "r")
        return (
            f"SELECT r.n FROM {rows} JOIN input i ON i.n = r.n"
            f" WHERE {stored} IS DISTINCT FROM nullif(r.digest, ''::bytea)"
        )

    def _lists(self) -> list[tuple[Part, str]]:
        return [(part, ONE[part]) for part in LISTS.values() if part in self]

    def _update(self) -> str:
        """Update existing heads, unless they know the operation, or may have known it and forgotten it since."""
        oldest = f"a.op_times[{KEPT_OPS}]"
        sets = [
            "last_offset = a.last_offset + " + ("i.events" if Part.EVENTS in self else "0"),
            f"ops = (array_prepend(i.op, a.ops))[1:{KEPT_OPS}]",
            f"op_times = (array_prepend({NOW}, a.op_times))[1:{KEPT_OPS}]",
        ]
        holds = [
            "a.agent_id = i.agent_id",
            "i.op <> ALL (a.ops)",
            f"({oldest} IS NULL OR {oldest} < i.since OR {oldest} > {NOW})",  # a clock may be set back
        ]
        for _, one in self._lists():
            version = f"CASE a.{one}_version WHEN 0 THEN i.{one}_first ELSE a.{one}_version END + i.{one}_step"
            count = f"greatest(least(a.{one}_count, i.{one}_length), i.{one}_least) + i.{one}_append"
            sets.append(f"{one}_version = CASE WHEN i.{one}_first IS NULL THEN a.{one}_version ELSE {version} END")
            sets.append(f"{one}_count = CASE WHEN i.{one}_first IS NULL THEN a.{one}_count ELSE {count} END")
            holds.append(f"(i.{one}_expect IS NULL OR i.{one}_expect = a.{one}_version)")
        if Part.TOUCH in self:
            later = "greatest(a.updated_at + 1, i.now)"
            sets.append(f"updated_at = CASE WHEN i.now IS NULL THEN a.updated_at ELSE {later} END")
        if Part.INFO in self:
            sets.append("template_id = CASE WHEN i.has_info THEN i.template_id ELSE a.template_id END")
            sets.append("created_at = CASE WHEN i.has_info THEN i.created_at ELSE a.created_at END")
        if Part.AGE in self:
            holds.append("(i.expect_updated_at IS NULL OR i.expect_updated_at = a.updated_at)")
            holds += [f"coalesce(i.expect_{one}s, a.{one}_version) = a.{one}_version" for one in ONE.values()]
        if Part.UNSEEN in self:
            holds.append(f"(i.message_oldest IS NULL OR a.message_version = {self._seen('message_version')})")
        if Part.DEMANDS in self:
            holds.append(f"(NOT i.has_demands OR a.ops = {self._seen('ops')})")
            holds.append("(NOT i.is_new OR (a.message_count = 0 AND a.tool_call_count = 0 AND a.created_at IS NULL))")
        source = "input i" + (" JOIN locked k USING (agent_id)" if Part.SEVERAL in self else "")
        return (
            f"UPDATE {self._tables.agents} a SET {', '.join(sets)} FROM {source}"
            f" WHERE {' AND '.join([*holds, *self._conditions()])} RETURNING i.n, {self._returned('a')}"
        )

    def _seen(self, column: str) -> str:
        """The head's value of a column that changes with the rows, as the statement sees it.

        A statement that waited for the lock finds another value in the head, and does not see all rows.
        """
        return f"(SELECT s.{column} FROM {self._tables.agents} s WHERE s.agent_id = i.agent_id)"

    def _insert(self) -> str:
        """Insert missing heads; if another session inserts one first, the batch is left out."""
        values = {
            "agent_id": "i.agent_id",
            **{f"{one}_{what}": "0" for one in ONE.values() for what in ("version", "count")},
            "updated_at": "0",
            "last_offset": "i.events" if Part.EVENTS in self else "0",
            "ops": "ARRAY[i.op]",
            "op_times": f"ARRAY[{NOW}]",
        }
        holds = [f"NOT EXISTS (SELECT FROM {self._tables.agents} a WHERE a.agent_id = i.agent_id)"]
        for _, one in self._lists():
            values[f"{one}_version"] = f"coalesce(i.{one}_first + i.{one}_step, 0)"
            values[f"{one}_count"] = f"coalesce(i.{one}_least + i.{one}_append, 0)"
            holds.append(f"coalesce(i.{one}_expect, 0) = 0")
        if Part.TOUCH in self:
            values["updated_at"] = "CASE WHEN i.now IS NULL THEN 0 ELSE greatest(i.now, 1) END"
        if Part.INFO in self:
            values |= {"template_id": "i.template_id", "created_at": "i.created_at"}
        if Part.AGE in self:
            holds += [f"coalesce(i.expect_{what}, 0) = 0" for what in ("updated_at", "messages", "tool_calls")]
        return (
            f"INSERT INTO {self._tables.agents} AS a ({', '.join(values)}) SELECT {', '.join(values.values())}"
            f" FROM input i WHERE {' AND '.join([*holds, *self._conditions()])} ORDER BY i.agent_id"
            f" ON CONFLICT (agent_id) DO NOTHING RETURNING {self._returned('a')}"
        )

    def _conditions(self) -> list[str]:
        """The conditions of the write that other tables than the heads decide."""
        holds = []
        if Part.FENCE in self:
            holds.append("(i.fence_owner IS NULL OR EXISTS (SELECT FROM fence f WHERE f.agent_id = i.agent_id))")
        if Part.DEMANDS in self:
            holds.append("NOT EXISTS (SELECT FROM unmet u WHERE u.n = i.n)")
            info = info_of(self._tables, "i.agent_id")
            holds.append(f"CASE WHEN i.expect_info IS NULL THEN true ELSE {info} = i.expect_info END")
            holds.append(f"CASE WHEN i.is_new THEN NOT {has_more(self._tables, 'i.agent_id')} ELSE true END")
        return holds

    def _returned(self, table: str) -> str:
        names = ("agent_id", "message_version", "message_count", "tool_call_version", "tool_call_count", "last_offset")
        return ", ".join(f"{table}.{name}" for name in names)

    def _head(self) -> str:
        """The changed heads, with the values for writing the rows."""
        more = [f"i.{one}_{what}" for _, one in self._lists() for what in ("length", "append")]
        more += ["i.events"] if Part.EVENTS in self else []
        more += ["i.message_oldest"] if Part.UNSEEN in self else []
        columns = ", ".join([f"i.n, {self._returned('h')}", *more])
        return (
            f"SELECT {columns} FROM (SELECT o.* FROM old o UNION ALL SELECT i.n, f.* FROM fresh f"
            " JOIN input i USING (agent_id)) h JOIN input i ON i.n = h.n"
        )

    def _latest(self) -> str:
        """The newest message, if it is newer than the blindly appended rows (MSG-4), found in the index of times.

        Without the lower bound, a plan that was cached when the table was small reads all messages of the agent.
        """
        return (
            f"SELECT h.n, (SELECT max(m.created_at) FROM {self._tables.messages} m"
            " WHERE m.agent_id = h.agent_id AND m.created_at > h.message_oldest) AS created_at"
            " FROM head h WHERE h.message_oldest IS NOT NULL"
        )

    # --- rows

    def _writes(self, part: Part, rows: str) -> list[str]:
        if part in PUTS:
            return self._list_writes(part, rows)
        parts = {Part.INFO: self._info, Part.DOCS: self._docs, Part.TERMS: self._terms, Part.EVENTS: self._events}
        return parts[part](rows)

    def _list_writes(self, part: Part, rows: str) -> list[str]:
        one, columns = ONE[part], [c.name for c in ROWS[part][1:]]
        table = getattr(self._tables, f"{one}s")
        place = f"CASE WHEN r.position < 0 THEN h.{one}_count - h.{one}_append - 1 - r.position ELSE r.position END"
        values = ["h.agent_id", place, *(_value(c) for c in columns[1:])]
        source = f"{rows} JOIN head h ON h.n = r.n"
        if part is Part.MESSAGES and Part.UNSEEN in self:
            values[2] = "CASE WHEN r.position < 0 THEN greatest(r.created_at, l.created_at) ELSE r.created_at END"
            source += " LEFT JOIN latest l ON l.n = h.n"
        insert = f"INSERT INTO {table} (agent_id, {', '.join(columns)}) SELECT {', '.join(values)} FROM {source}"
        if PUTS[part] not in self:
            return [f"{one}s AS ({insert})"]
        updates = ", ".join(f"{c} = excluded.{c}" for c in columns[1:])
        cut = (
            f"DELETE FROM {table} t USING head h WHERE t.agent_id = h.agent_id AND h.{one}_length IS NOT NULL"
            f" AND t.position >= h.{one}_count"
        )
        return [
            f"{one}s_cut AS ({cut})",
            f"{one}s AS ({insert} ON CONFLICT (agent_id, position) DO UPDATE SET {updates})",
        ]

    def _info(self, rows: str) -> list[str]:
        return [
            f"infos AS (INSERT INTO {self._tables.infos} (agent_id, metadata, digest, body)"
            f" SELECT h.agent_id, r.metadata::jsonb, r.digest, r.body::json FROM {rows} JOIN head h ON h.n = r.n"
            " ON CONFLICT (agent_id) DO UPDATE SET"
            " metadata = excluded.metadata, digest = excluded.digest, body = excluded.body)"
        ]

    def _docs(self, rows: str) -> list[str]:
        """Write the documents; a row without a body removes its document.

        The time of a document with a place becomes the position of the appended message that has this place.
        """
        table, time = self._tables.docs, "r.time"
        if Part.MESSAGES in self:
            time = "CASE WHEN r.place < 0 THEN r.time ELSE h.message_count - h.message_append + r.place END"
        given = f"h.agent_id, r.kind, r.key_hash, r.key, {time} AS time, r.digest, r.body"
        return [
            f"given AS MATERIALIZED (SELECT {given} FROM {rows} JOIN head h ON h.n = r.n)",
            f"docs_gone AS (DELETE FROM {table} t USING given r WHERE r.body IS NULL"
            " AND (t.agent_id, t.kind, t.key_hash) = (r.agent_id, r.kind, r.key_hash))",
            f"docs AS (INSERT INTO {table} (agent_id, kind, key_hash, key, time, digest, body)"
            " SELECT r.agent_id, r.kind, r.key_hash, r.key, r.time, r.digest, r.body::json FROM given r"
            " WHERE r.body IS NOT NULL ON CONFLICT (agent_id, kind, key_hash) DO UPDATE SET"
            " time = excluded.time, digest = excluded.digest, body = excluded.body)",
        ]

    def _terms(self, rows: str) -> list[str]:
        """Write the terms of the documents, and remove the others that they have."""
        table, own = self._tables.doc_terms, "(t.agent_id, t.key) = (r.agent_id, r.key)"
        return [
            f"terms AS MATERIALIZED (SELECT h.agent_id, r.key, r.term, r.key_hash, r.digest FROM {rows}"
            " JOIN head h ON h.n = r.n)",
            f"terms_gone AS (DELETE FROM {table} t USING given r WHERE r.{OWN_DOCS} AND {own}"
            f" AND NOT EXISTS (SELECT FROM terms r WHERE {own} AND r.term = t.term))",
            f"terms_put AS (INSERT INTO {table} (agent_id, key, term, key_hash, digest) SELECT * FROM terms"
            " ON CONFLICT (agent_id, key, term) DO UPDATE SET digest = excluded.digest)",
        ]

    def _events(self, rows: str) -> list[str]:
        """Write the events; repeated ones are found by writing their rows again; no row occurs twice."""
        return [
            f'events AS (INSERT INTO {self._tables.events} AS e (agent_id, "offset", seq, channel, digest, body)'
            " SELECT h.agent_id, h.last_offset - h.events + r.k, r.seq, r.channel, r.digest, r.body::json"
            f" FROM {rows} JOIN head h ON h.n = r.n ORDER BY r.n, r.k"
            " ON CONFLICT (agent_id, seq, digest) DO UPDATE SET seq = excluded.seq"
            ' RETURNING e.agent_id, e.seq, e.digest, e."offset")',
            "repeated AS MATERIALIZED (SELECT e.* FROM events e JOIN head h USING (agent_id)"
            ' WHERE e."offset" <= h.last_offset - h.events)',
        ]

    def _answer(self) -> str:
        """One row for each applied batch, or one row without a head; the remaining columns are the same in all rows.

        They are the server's time and, for events, the agents, seqs, digests and offsets of the repeated ones. The time
        is also returned if nothing was applied: it may be the reason.
        """
        answer = [f"h.n, {self._returned('h')}, t.now"]
        if Part.EVENTS in self:
            answer += [f"(SELECT array_agg({c}) FROM repeated)" for c in ("agent_id", "seq", "digest", '"offset"')]
            answer.append(self._notified())
        columns = ", ".join([*answer, sync(self._durable)])
        return f"SELECT {columns} FROM (SELECT {NOW} AS now) t LEFT JOIN head h ON true"

    def _notified(self) -> str:
        """Wake the followers of the agents.

        A listener that stays in a transaction keeps the server's queue from being emptied, and a commit that notifies
        fails once the queue is full. Followers also poll, so a write stops notifying before that.
        """
        payload = "encode(sha256(convert_to(h.agent_id, 'UTF8')), 'hex')"
        return (
            f"(SELECT count(pg_notify('{channel_of(self._tables)}', {payload})) FROM head h JOIN"
            f" {self._tables.followers} f USING (agent_id) WHERE h.events > 0 AND f.expires > clock_timestamp()"
            f" AND pg_notification_queue_usage() < {_CROWDED})"
        )


def sync(durable: bool) -> str:
    """Make a commit wait for the disk, or not, whatever the settings of the server and the user.

    The setting is local, so that the next user of a pooled connection does not get it.
    """
    if not durable:
        return "(SELECT set_config('synchronous_commit', 'off', true))"
    return (
        "(SELECT CASE WHEN current_setting('synchronous_commit') IN ('off', 'local')"
        " THEN set_config('synchronous_commit', 'on', true) END)"
    )


def digest_of(tables: Tables, agent_id: str, name: str) -> str:
    """The digest of a document, as a subquery; *name* is the row with its kind, its key and the hash of it.

    Key and hash are compared: by one of them alone, a plan that was made while the table was small may search in the
    index of the other one, and read all documents of the agent.
    """
    own = f"t.agent_id = {agent_id} AND t.kind = {name}.kind AND t.key_hash = {name}.key_hash AND t.key = {name}.key"
    return f"(SELECT t.digest FROM {tables.docs} t WHERE {own})"


def info_of(tables: Tables, agent_id: str) -> str:
    """The digest of the info, as an expression; empty without one."""
    return f"coalesce((SELECT t.digest FROM {tables.infos} t WHERE t.agent_id = {agent_id}), ''::bytea)"


def has_more(tables: Tables, agent_id: str) -> str:
    """Whether the agent has documents, but for layers' and the core's, or events, as a condition.

    The server reads the first row in the order of an index. Without the order it may read the rows of all agents, since
    it expects to meet such a row soon.
    """
    kinds = [kind for kind in DocKind if kind not in (DocKind.LAYER, DocKind.DOCUMENTS)]
    own = f"t WHERE t.agent_id = {agent_id}"
    rows = [
        *(f"{tables.docs} {own} AND t.kind = '{kind}' ORDER BY t.key_hash" for kind in kinds),
        f"{tables.docs} {own} AND t.{OWN_DOCS} AND t.key < '{CORE_KEYS}' ORDER BY t.key",
        f'{tables.events} {own} ORDER BY t."offset"',
    ]
    return f"({' OR '.join(f'(SELECT true FROM {one} LIMIT 1) IS TRUE' for one in rows)})"


def _value(column: str) -> str:
    return "r.body::json" if column == "body" else f"r.{column}"
