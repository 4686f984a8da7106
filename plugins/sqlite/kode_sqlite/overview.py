"""Reads over the whole database: the agents with records, their numbers, and their consistency."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, Final, LiteralString, TypeVar

from kode_core.batch import DocKind, EngineIssue, Found, ListKind, Totals
from kode_sqlite import texts
from kode_sqlite.reads import LIST_HEAD, TABLE, in_one_instant
from kode_sqlite.schema import COUNT_ALL
from kode_sqlite.sound import text_of
from kode_sqlite.upkeep import Tell, listening

__all__ = ["inspect", "quick_check", "stored_ids", "totals"]

DB = sqlite3.Connection
T = TypeVar("T")

_OF_AN_AGENT: Final[tuple[LiteralString, ...]] = (
    "kode_agents",
    "kode_infos",
    "kode_messages",
    "kode_tool_calls",
    "kode_docs",
    "kode_events",
)


def stored_ids(db: DB, after: str | None, limit: int) -> Found[str]:
    """The next ids of each table, each found with one look into an index, and merged."""
    start: Any = "" if after is None else after
    left_out: list[str] = []
    while True:
        found: set[str] = set()
        end: str | None = None
        for table in _OF_AN_AGENT:
            ids, bad, is_end = _ids_of(db, table, start, limit)
            left_out += bad
            found.update(ids)
            if not is_end:  # after the last of them this table has more, which were not read
                end = ids[-1] if end is None else min(end, ids[-1])
        known = sorted(agent_id for agent_id in found if end is None or agent_id <= end)
        stored = [agent_id for agent_id in known if _has_contents(db, agent_id)][:limit]
        if stored or end is None:
            return Found(stored, dict.fromkeys(left_out))
        start = end


def _ids_of(db: DB, table: LiteralString, after: str, limit: int) -> tuple[list[str], list[str], bool]:
    """The ids that follow *after*, names for values that are not ids, and True if the table has no more."""
    statement: LiteralString = (
        f"WITH RECURSIVE ids (id) AS (SELECT min(agent_id) FROM {table} WHERE agent_id > ? UNION ALL"
        f" SELECT (SELECT min(agent_id) FROM {table} WHERE agent_id > ids.id) FROM ids WHERE ids.id IS NOT NULL)"
        " SELECT CAST(id AS BLOB), typeof(id) = 'text' FROM ids WHERE id IS NOT NULL LIMIT ?"
    )
    rows = db.execute(statement, (after, limit)).fetchall()
    ids = [text for raw, is_text in rows if is_text and (text := text_of(raw)) is not None]
    bad = [f"a row of {table} whose agent_id is no text"] if len(ids) < len(rows) else []
    return ids, bad, len(rows) < limit or not ids


def _has_contents(db: DB, agent_id: str) -> bool:
    """True if anything is stored, apart from the documents that layers keep for themselves."""
    for table in _OF_AN_AGENT:
        own: LiteralString = " AND kind <> 'layer'" if table == "kode_docs" else ""
        if db.execute(f"SELECT 1 FROM {table} WHERE agent_id = ?{own} LIMIT 1", (agent_id,)).fetchone():
            return True
    return False


def inspect(db: DB, agent_id: str) -> list[EngineIssue]:
    """The issues of an agent; each part is read at one instant."""
    issues = (_miscounts(db, agent_id), _strange_docs(db, agent_id), _strange_offsets(db, agent_id))
    return [*(issue for some in issues for issue in some), *texts.inspect(db, agent_id, _at_once)]


def _miscounts(db: DB, agent_id: str) -> Iterator[EngineIssue]:
    for kind in ListKind:
        statement: LiteralString = (
            f"SELECT count(*), min(position), max(position) FROM {TABLE[kind]} WHERE agent_id = ?"
        )
        (_, counted), ((stored, first, last),) = in_one_instant(db, LIST_HEAD[kind], agent_id, statement, (agent_id,))
        if stored != counted or (stored and (first, last) != (0, stored - 1)):
            text = f"{counted} {kind.value} are counted, {stored} are stored, from position {first} to {last}"
            yield EngineIssue("count_disagrees", agent_id, text)


def _strange_docs(db: DB, agent_id: str) -> Iterator[EngineIssue]:
    found = db.execute("SELECT DISTINCT CAST(kind AS BLOB) FROM kode_docs WHERE agent_id = ?", (agent_id,)).fetchall()
    if not {text_of(kind) for (kind,) in found} <= set(DocKind):
        yield EngineIssue("orphaned_records", agent_id, "a document is of a kind that there is not")
    stray = db.execute(
        "SELECT 1 FROM kode_doc_terms t WHERE t.agent_id = ? AND NOT EXISTS (SELECT 1 FROM kode_docs d"
        " WHERE d.agent_id = t.agent_id AND d.kind = ? AND d.key = t.key) LIMIT 1",
        (agent_id, DocKind.DOCUMENTS.value),
    ).fetchone()
    if stray:
        yield EngineIssue("orphaned_records", agent_id, "tags are stored for a document that does not exist")


def _strange_offsets(db: DB, agent_id: str) -> Iterator[EngineIssue]:
    mine = "SELECT 1 FROM kode_events INDEXED BY kode_events_agent WHERE agent_id = ?"
    (is_strange,) = db.execute(
        f'SELECT EXISTS ({mine} AND "offset" < 1) OR EXISTS ({mine} AND "offset" > coalesce('
        "(SELECT CAST(seq AS INTEGER) FROM sqlite_sequence WHERE name = 'kode_events'), 0))",
        (agent_id, agent_id),
    ).fetchone()
    if is_strange:
        yield EngineIssue(
            "repeated_offset", agent_id, "an event has an offset that was not given yet, and may come again"
        )


def quick_check(db: DB, tell: Tell) -> list[EngineIssue]:
    """The findings of SQLite's own check, which compares indexes with tables, and an issue if the totals are wrong."""

    def find(db: DB) -> tuple[list[tuple[str]], bool]:
        found = db.execute("PRAGMA integrity_check(20)").fetchall()
        return found, _kept(db) in (None, db.execute(COUNT_ALL).fetchone())

    found, is_right = listening(db, tell, lambda db: _at_once(db, find))
    issues = [EngineIssue("corrupt_record", "", _advised(text)) for (text,) in found if text != "ok"]
    if not is_right:
        text = "the totals that get_metrics tells are not those of the agents; DELETE FROM kode_totals has them counted"
        issues.append(EngineIssue("count_disagrees", "", text))
    return issues


def _advised(text: str) -> str:
    return f"SQLite's own check: {text}{'; REINDEX mends indexes' if 'index' in text else ''}"


def _at_once(db: DB, find: Callable[[DB], T]) -> T:
    db.execute("BEGIN")
    try:
        return find(db)
    finally:
        if db.in_transaction:
            db.execute("COMMIT")


def _kept(db: DB) -> Any:
    """The numbers of agents, messages and tool calls that triggers maintain."""
    return db.execute("SELECT agents, messages, tool_calls FROM kode_totals").fetchone()


def totals(db: DB) -> Totals:
    agents, messages, calls = _kept(db) or db.execute(COUNT_ALL).fetchone()
    (is_used,) = db.execute(
        "SELECT EXISTS (SELECT 1 FROM kode_agents) OR EXISTS (SELECT 1 FROM kode_events)"
        " OR EXISTS (SELECT 1 FROM kode_docs WHERE kind <> ?)",
        (DocKind.LAYER.value,),
    ).fetchone()
    (pages,), (size,) = db.execute("PRAGMA page_count").fetchone(), db.execute("PRAGMA page_size").fetchone()
    return Totals(
        agents=agents,
        messages=messages,
        tool_calls=calls,
        size_bytes=pages * size,
        is_used=bool(is_used),
        texts_waiting=texts.noted(db),
        texts_of_deleted=texts.keeps_deleted(db),
    )
