"""The tables, and how older versions of them become this one.

Bodies are JSON text that SQLite never looks into; the columns next to them are what queries need. All names begin
with ``kode_``, so that the tables can stand in a database of your own.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from kode_core.errors import SchemaVersionError

__all__ = ["MIGRATIONS", "SCHEMA_VERSION", "migrate", "sql"]

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        # An agent's head: made with its first list or info; created_at and template_id are NULL until info is saved.
        """CREATE TABLE kode_agents (
            agent_id TEXT NOT NULL PRIMARY KEY,
            message_version INTEGER NOT NULL,
            message_count INTEGER NOT NULL,
            tool_call_version INTEGER NOT NULL,
            tool_call_count INTEGER NOT NULL,
            updated_at INTEGER NOT NULL,
            last_op TEXT NOT NULL,
            template_id TEXT,
            created_at INTEGER
        ) WITHOUT ROWID""",
        "CREATE INDEX kode_agents_created ON kode_agents (created_at, agent_id) WHERE created_at IS NOT NULL",
        "CREATE INDEX kode_agents_updated ON kode_agents (updated_at, agent_id) WHERE created_at IS NOT NULL",
        """CREATE INDEX kode_agents_template ON kode_agents (template_id, created_at, agent_id)
            WHERE created_at IS NOT NULL""",
        """CREATE TABLE kode_infos (
            agent_id TEXT NOT NULL PRIMARY KEY,
            body TEXT NOT NULL,
            digest BLOB NOT NULL
        )""",
        """CREATE TABLE kode_metadata (
            agent_id TEXT NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            PRIMARY KEY (agent_id, key)
        ) WITHOUT ROWID""",
        "CREATE INDEX kode_metadata_value ON kode_metadata (key, value, agent_id)",
        """CREATE TABLE kode_messages (
            agent_id TEXT NOT NULL,
            position INTEGER NOT NULL,
            created_at INTEGER NOT NULL,
            role TEXT NOT NULL,
            content_types TEXT NOT NULL,
            body TEXT NOT NULL,
            digest BLOB NOT NULL
        )""",
        "CREATE UNIQUE INDEX kode_messages_position ON kode_messages (agent_id, position)",
        "CREATE INDEX kode_messages_agent_created ON kode_messages (agent_id, created_at, position)",
        "CREATE INDEX kode_messages_created ON kode_messages (created_at, agent_id, position)",
        """CREATE TABLE kode_tool_calls (
            agent_id TEXT NOT NULL,
            position INTEGER NOT NULL,
            created_at INTEGER NOT NULL,
            call_id TEXT NOT NULL,
            tool_name TEXT NOT NULL,
            state TEXT NOT NULL,
            is_error INTEGER NOT NULL,
            has_approval INTEGER NOT NULL,
            body TEXT NOT NULL,
            digest BLOB NOT NULL
        )""",
        "CREATE UNIQUE INDEX kode_tool_calls_position ON kode_tool_calls (agent_id, position)",
        "CREATE INDEX kode_tool_calls_agent_created ON kode_tool_calls (agent_id, created_at, position)",
        "CREATE INDEX kode_tool_calls_created ON kode_tool_calls (created_at, agent_id, position)",
        "CREATE INDEX kode_tool_calls_name ON kode_tool_calls (tool_name, created_at, agent_id, position)",
        "CREATE INDEX kode_tool_calls_errors ON kode_tool_calls (created_at, agent_id, position) WHERE is_error",
        "CREATE INDEX kode_tool_calls_stats ON kode_tool_calls (agent_id, tool_name, state)",
        "CREATE INDEX kode_tool_calls_call ON kode_tool_calls (agent_id, call_id, position)",
        """CREATE TABLE kode_docs (
            agent_id TEXT NOT NULL,
            kind TEXT NOT NULL,
            key TEXT NOT NULL,
            time INTEGER NOT NULL,
            body TEXT NOT NULL,
            digest BLOB NOT NULL
        )""",
        "CREATE UNIQUE INDEX kode_docs_key ON kode_docs (agent_id, kind, key)",
        # One sequence for all agents: an append touches the end of the table and one index, whichever agent it is for.
        """CREATE TABLE kode_events (
            "offset" INTEGER PRIMARY KEY AUTOINCREMENT,
            agent_id TEXT NOT NULL,
            seq INTEGER NOT NULL,
            channel TEXT NOT NULL,
            body TEXT NOT NULL,
            digest BLOB NOT NULL
        )""",
        "CREATE UNIQUE INDEX kode_events_seq ON kode_events (agent_id, seq, digest)",
        """CREATE TABLE kode_leases (
            agent_id TEXT NOT NULL PRIMARY KEY,
            owner TEXT NOT NULL,
            token INTEGER NOT NULL,
            boot TEXT NOT NULL,
            expires INTEGER NOT NULL
        ) WITHOUT ROWID""",
    ),
)
"""What leads from each version to the next. Append to it; never change what was released."""

SCHEMA_VERSION: Final = len(MIGRATIONS)

_META: Final = (
    "CREATE TABLE IF NOT EXISTS kode_meta (key TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID"
)


def version_of(db: sqlite3.Connection) -> int:
    """The version of the tables, 0 when there are none."""
    found = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'kode_meta'").fetchone()
    row = found and db.execute("SELECT value FROM kode_meta WHERE key = 'schema_version'").fetchone()
    return int(row[0]) if row else 0


def migrate(db: sqlite3.Connection, path: str) -> None:
    """Bring the tables to this version, in one transaction; several processes may try at once (OPS-7, OPS-8).

    Raises:
        SchemaVersionError: the tables are of a newer version; nothing is changed.
    """
    if version_of(db) == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        version = version_of(db)
        if version > len(MIGRATIONS):
            raise SchemaVersionError(
                f"{path} has schema {version}, and this kode-sqlite knows up to {len(MIGRATIONS)}: "
                "run: pip install --upgrade kode-sqlite"
            )
        for statement in sql(version):
            db.execute(statement)
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def sql(since: int = 0) -> list[str]:
    """The statements that lead from version *since* to this one."""
    statements = [statement for migration in MIGRATIONS[since:] for statement in migration]
    version = f"INSERT OR REPLACE INTO kode_meta VALUES ('schema_version', {len(MIGRATIONS)})"
    return [_META, *statements, version] if statements else []
