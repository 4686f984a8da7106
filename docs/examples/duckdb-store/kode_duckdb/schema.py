"""The tables. Bodies are JSON text that DuckDB never looks into; queries use the other columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from duckdb import DuckDBPyConnection as Connection

from kode_core.errors import SchemaVersionError

__all__ = ["OF_AN_AGENT", "TABLES", "Connection", "insert", "next_number", "prepare"]

SCHEMA_VERSION: Final = 1

TABLES: Final[Mapping[str, Mapping[str, str]]] = {
    "kode_meta": {"key": "VARCHAR", "value": "BIGINT"},
    # An agent's head, made with its first list or info: info and what belongs to it are NULL until info is saved.
    "kode_agents": {
        "agent_id": "VARCHAR",
        "updated_at": "BIGINT",
        "last_op": "VARCHAR",
        "message_version": "BIGINT",
        "message_count": "BIGINT",
        "tool_call_version": "BIGINT",
        "tool_call_count": "BIGINT",
        "info": "VARCHAR",
        "digest": "BLOB",
        "template_id": "VARCHAR",
        "created_at": "BIGINT",
        "metadata": "VARCHAR[]",  # a pair is one text, with a newline between key and value: neither has one
    },
    "kode_rows": {
        "agent_id": "VARCHAR",
        "kind": "VARCHAR",
        "position": "BIGINT",
        "body": "VARCHAR",
        "digest": "BLOB",
        "created_at": "BIGINT",
        "role": "VARCHAR",
        "content_types": "VARCHAR[]",
        "call_id": "VARCHAR",
        "tool_name": "VARCHAR",
        "state": "VARCHAR",
        "is_error": "BOOLEAN",
        "has_approval": "BOOLEAN",
    },
    "kode_docs": {
        "agent_id": "VARCHAR",
        "kind": "VARCHAR",
        "key": "VARCHAR",
        "time": "BIGINT",
        "body": "VARCHAR",
        "digest": "BLOB",
    },
    "kode_events": {
        "agent_id": "VARCHAR",
        "place": "BIGINT",
        "seq": "BIGINT",
        "channel": "VARCHAR",
        "body": "VARCHAR",
        "digest": "BLOB",
    },
    "kode_leases": {
        "agent_id": "VARCHAR",
        "owner": "VARCHAR",
        "token": "BIGINT",
        "boot": "VARCHAR",
        "expires": "BIGINT",
    },
}
"""By table, the columns and their types. Writers come one at a time (see the engine), so no constraint is needed."""

OF_AN_AGENT: Final = ("kode_agents", "kode_rows", "kode_docs", "kode_events")


def prepare(db: Connection, path: str) -> None:
    """Create the missing tables. Call it in a transaction.

    Raises:
        SchemaVersionError: the tables are of a newer version (OPS-8).
    """
    for table, columns in TABLES.items():
        db.execute(
            f"CREATE TABLE IF NOT EXISTS {table} ({', '.join(f'{name} {kind}' for name, kind in columns.items())})"
        )
    row = db.execute("SELECT value FROM kode_meta WHERE key = 'schema_version'").fetchone()
    if row is None:
        insert(db, "kode_meta", [("schema_version", SCHEMA_VERSION), ("last_number", 0)])
    elif row[0] > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{path} has schema {row[0]}, and this kode-duckdb knows up to {SCHEMA_VERSION}: "
            "run: pip install --upgrade kode-duckdb"
        )


def insert(db: Connection, table: str, rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows, a column at a time: for DuckDB many rows are hardly more than one."""
    if rows:
        values = ", ".join(f"unnest(?::{kind}[])" for kind in TABLES[table].values())
        db.execute(f"INSERT INTO {table} SELECT {values}", [list(column) for column in zip(*rows, strict=True)])


def next_number(db: Connection, count: int = 1) -> int:
    """The first of *count* numbers that were never given out, nor will be: offsets of events, tokens of leases."""
    row = db.execute(
        "UPDATE kode_meta SET value = value + ? WHERE key = 'last_number' RETURNING value", [count]
    ).fetchone()
    assert row is not None
    return int(row[0]) - count + 1
