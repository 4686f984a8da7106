"""Tags of documents in SQLite: the cost of a page, tables of version 2, and damage."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from kode_sqlite import SqliteStore, migrations
from kode_sqlite.doc_terms import docs_query_statement, find_docs

from kode_core.batch import DocQuery
from plugins.sqlite.tests.plans import counted, plan

MANY: Final = 200_000
PAGE: Final = 100
A_PAGE: Final = 80 * PAGE
"""Steps of the machine for a page: some dozens for a row."""
VERSION_2: Final = Path(__file__).with_name("version_2.sql").read_text()
"""A dump of a database that kode-sqlite wrote when its tables were of version 2."""


@pytest.fixture(scope="module")
def db() -> Iterator[sqlite3.Connection]:
    """A database with 200,000 documents of 400 agents; all have one term, and some of them another."""
    with closing(sqlite3.connect(":memory:")) as made:
        for statement in migrations.sql():
            made.execute(statement)
        places = [(f"a{n // 500:04}", f"c/{n % 500:06}", n) for n in range(MANY)]
        docs = ((agent, "documents", key, n, "{}", n.to_bytes(16)) for agent, key, n in places)
        made.executemany("INSERT INTO kode_docs VALUES (?, ?, ?, ?, ?, ?)", docs)
        terms = [(*place[:2], "all") for place in places] + [(*place[:2], "rare") for place in places[::5000]]
        terms += [(agent, key, f"run{n % 1000}") for agent, key, n in places]
        made.executemany("INSERT INTO kode_doc_terms VALUES (?, ?, ?)", terms)
        made.commit()
        yield made


_QUERIES: Final[dict[str, dict[str, Any]]] = {
    "a term that all have": {"terms": ("all",)},
    "from the middle": {"terms": ("all",), "after": ("a0200", "c/000250")},
    "of one agent": {"terms": ("all",), "agent_id": "a0200", "after": ("a0200", "c/000250")},
    "a rare term": {"terms": ("rare",)},
    "a term of 200": {"terms": ("run7",), "after": ("a0100", "c/000000")},
}


@pytest.mark.parametrize("bodies", [True, False])
@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("name", _QUERIES)
def test_a_page_costs_what_it_holds(db: sqlite3.Connection, name: str, descending: bool, bodies: bool) -> None:
    """A page among 200,000 documents takes as many steps as its rows need, and nothing is sorted but the page."""
    query = DocQuery(limit=PAGE, descending=descending, bodies=bodies, **_QUERIES[name])
    with counted(db) as steps:
        found = find_docs(db, query)
    assert 0 < len(found) <= PAGE
    assert steps[0] <= A_PAGE
    shown = plan(db, *docs_query_statement(query))
    assert "USING INDEX kode_doc_terms_term" in shown or "USING COVERING INDEX kode_doc_terms_term" in shown
    assert "SCAN kode" not in shown
    places = [(one.agent_id, one.doc.key) for one in found]
    assert places == sorted(places, reverse=descending)


def test_a_page_of_many_terms_costs_one_page_of_each(db: sqlite3.Connection) -> None:
    """A hundred terms are a hundred look-ups, each of at most a page."""
    query = DocQuery(terms=tuple(f"run{n}" for n in range(100)), limit=PAGE)
    with counted(db) as steps:
        found = find_docs(db, query)
    assert len(found) == PAGE
    assert steps[0] <= 100 * A_PAGE


def test_a_document_that_is_missing_is_named(db: sqlite3.Connection) -> None:
    """A term whose document is gone, or whose columns are damaged, is named, and others are given in its place."""
    with closing(sqlite3.connect(":memory:")) as other:
        db.backup(other)
        other.execute("DROP TRIGGER kode_doc_terms_delete")
        other.execute("DELETE FROM kode_docs WHERE agent_id = 'a0000' AND key = 'c/000001'")
        other.execute("UPDATE kode_docs SET time = 'x' WHERE agent_id = 'a0000' AND key = 'c/000003'")
        found = find_docs(other, DocQuery(terms=("all",), limit=3))
    assert [one.doc.key for one in found] == ["c/000000", "c/000002", "c/000004"]
    assert [name.split("'")[1] for name in found.left_out] == ["c/000001", "c/000003"]


async def test_tables_of_version_2_become_those_of_version_3() -> None:
    """A database of version 2 is read as it was, takes tags, and forgets them when a program of version 2 writes."""
    with closing(sqlite3.connect("a.db")) as db:
        db.executescript(VERSION_2)
        db.execute("PRAGMA journal_mode = WAL")
        assert migrations.version_of(db, "a.db") == 2
    async with SqliteStore("a.db") as store:
        assert await store.list() == ["agt-0", "agt-1", "agt-2"]
        for agent_id in await store.list():
            found = await store.list_documents(agent_id, "c")
            assert [(one.key, one.value, one.tags) for one in found] == [(f"k{n}", {"n": n}, {}) for n in range(4)]
        for key in ("k0", "k1", "k2", "new"):
            await store.put_document("agt-1", "c", key, 1, tags={"run": "r1"})
        assert len(await store.query_documents("c", {"run": "r1"})) == 4
        with closing(sqlite3.connect("a.db")) as old, old:  # as version 2 writes
            old.execute(
                "INSERT INTO kode_docs (agent_id, kind, key, time, body, digest)"
                " SELECT agent_id, kind, 'c/k0', time, body, digest FROM kode_docs"
                " WHERE agent_id = 'agt-0' AND key = 'c/k0' UNION ALL"
                " SELECT 'agt-1', kind, key, time, body, digest FROM kode_docs"
                " WHERE agent_id = 'agt-0' AND key = 'c/k0'"
                " ON CONFLICT (agent_id, kind, key)"
                " DO UPDATE SET time = excluded.time, body = excluded.body, digest = excluded.digest"
            )
            old.execute("DELETE FROM kode_docs WHERE agent_id = 'agt-1' AND key = 'c/k1'")
        page = await store.query_documents("c", {"run": "r1"})
        assert ([one.key for one in page], page.left_out) == (["k2", "new"], ())
        assert (await store.check_consistency()).issues == ()
        await store.delete("agt-1")
        with closing(sqlite3.connect("a.db")) as db:
            assert db.execute("SELECT count(*) FROM kode_doc_terms").fetchone() == (0,)


async def test_terms_that_are_lost_or_stray_are_found() -> None:
    """The check of consistency finds a document whose terms are missing, and terms without a document."""
    async with SqliteStore("a.db") as store:
        await store.put_document("a", "c", "lost", 1, tags={"run": "r1", "n": "1"})
        await store.put_document("a", "c", "sound", 1, tags={"run": "r1", "n": "1"})
        await store.put_document("b", "c", "sound", 1, tags={"run": "r1"})
        assert (await store.check_consistency()).issues == ()
        with closing(sqlite3.connect("a.db")) as db, db:
            db.execute(_LOSE)
            db.execute("INSERT INTO kode_doc_terms VALUES ('b', 'c/never', 'x')")
        issues = {(issue.code, issue.agent_id) for issue in (await store.check_consistency()).issues}
        assert issues == {("corrupt_record", "a"), ("orphaned_records", "b")}


_LOSE: Final = (
    "DELETE FROM kode_doc_terms WHERE key = 'c/lost' AND term ="
    " (SELECT min(term) FROM kode_doc_terms WHERE key = 'c/lost')"
)
