"""Searches for documents by their terms, over all agents."""

from __future__ import annotations

import sqlite3
from typing import Any, Final, LiteralString

from msgspec.structs import replace

from kode_core.batch import Doc, DocKind, DocQuery, Found, FoundDoc
from kode_core.codec import Body
from kode_sqlite.entries import DOCS
from kode_sqlite.sound import INT, RAW, TEXT, is_sound, search, sound_key
from kode_sqlite.ways import Condition, Way, merged

__all__ = ["docs_query_statement", "find_docs"]

_TABLE: Final = "kode_doc_terms t INDEXED BY kode_doc_terms_term"


def _way(query: DocQuery, term: str) -> Way:
    """Find the documents with one term along its part of the index."""
    looked_up = [Condition("t.term = ?", (term,))]
    sign: LiteralString = "<" if query.descending else ">"
    if query.agent_id is not None:
        looked_up.append(Condition("t.agent_id = ?", (query.agent_id,)))
        if query.after is not None:
            looked_up.append(Condition(f"t.key {sign} ?", query.after[1:]))
    elif query.after is not None:
        looked_up.append(Condition(f"(t.agent_id, t.key) {sign} (?, ?)", query.after))
    return Way(_TABLE, (), ("t.agent_id", "t.key"), query.descending, looked_up)


def docs_query_statement(query: DocQuery) -> tuple[LiteralString, list[Any]]:
    """The statement of a page of documents, and its arguments."""
    (way,) = merged([_way(query, term) for term in query.terms])
    found, args = way.find("t.agent_id, t.key", query.limit)
    direction: LiteralString = "DESC" if query.descending else "ASC"
    text: LiteralString = DOCS.own("body") if query.bodies else "''"
    statement: LiteralString = (
        f"SELECT f.agent_id, f.key, r.time, {text}, {DOCS.own('digest')} FROM ({found}) f"
        f" LEFT JOIN {DOCS.entry} ON i.agent_id = f.agent_id AND i.kind = ? AND i.key = f.key{DOCS.row}"
        f" ORDER BY f.agent_id {direction}, f.key {direction}"
    )
    return statement, [*args, DocKind.DOCUMENTS.value]


def find_docs(db: sqlite3.Connection, query: DocQuery) -> Found[FoundDoc]:
    def find(after: Any, most: int, _: int) -> list[tuple[Any, ...]]:
        asked = replace(query, limit=most, after=query.after if after is None else after)
        return db.execute(*docs_query_statement(asked)).fetchall()

    def read(row: tuple[Any, ...]) -> FoundDoc | None:
        if not is_sound(row, (TEXT, TEXT, INT, TEXT, RAW)):
            return None
        return FoundDoc(row[0], Doc(row[1], row[2], Body(row[3], row[4])))

    def name(row: tuple[Any, ...]) -> str:
        return f"document {row[1]!r:.80} of agent {row[0]!r}"

    return search(find, query.limit, 0, read, name, lambda row: sound_key(row[:2], (TEXT, TEXT)))
