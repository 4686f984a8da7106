"""Documents of the caller's own in SQLite: writers at once, order, costs and damage."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

import pytest
from kode_sqlite import SqliteStore, migrations, reads
from kode_sqlite.testing.harness import HybridHarness, SqliteHarness

from kode_core import CorruptRecordError, PutDocument
from kode_core.batch import DocKind, DocSpan
from plugins.sqlite.tests.plans import counted, plan
from tests.own_documents import OwnDocuments


class TestSqlite(OwnDocuments):
    harness = SqliteHarness()
    backend = "sqlite"


class TestHybrid(OwnDocuments):
    harness = HybridHarness()
    backend = "sqlite"
    rounds = 10


# --- costs ------------------------------------------------------------------------------------------------------------

MANY: Final = 100_000
PAGE: Final = 100
A_PAGE: Final = 60 * PAGE
"""Steps of the machine for a page: some dozens for a row."""


@pytest.fixture(scope="module")
def db() -> Iterator[sqlite3.Connection]:
    """A database with a large collection between two others, and another agent that has as much."""
    with closing(sqlite3.connect(":memory:")) as made:
        for statement in migrations.sql():
            made.execute(statement)
        rows = (
            (agent_id, kind, f"{collection}/{n:06}", n, "{}", n.to_bytes(16))
            for agent_id in ("a", "b")
            for kind, collection in ((DocKind.DOCUMENTS, "c"), (DocKind.DOCUMENTS, "d"), (DocKind.SNAPSHOTS, "c"))
            for n in range(MANY if collection == "c" and kind == DocKind.DOCUMENTS else 1000)
        )
        made.executemany("INSERT INTO kode_docs VALUES (?, ?, ?, ?, ?, ?)", rows)
        yield made


@pytest.mark.parametrize("bodies", [True, False])
@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("start", ["c/", "c/050000", "c/099950", "c/1"])
def test_a_page_costs_what_it_holds(db: sqlite3.Connection, start: str, descending: bool, bodies: bool) -> None:
    """A page of a range of 100,000 documents takes as many steps as its rows need, wherever it begins."""
    stop = "c0" if not descending or start == "c/1" else f"{start}9"
    span = DocSpan(start="c/" if descending else start, stop=stop, limit=PAGE, descending=descending, bodies=bodies)
    with counted(db) as steps:
        found = reads.docs_in(db, "a", span)
    keys = [f"c/{n:06}" for n in range(MANY)]
    within = [key for key in keys if span.start <= key < span.stop]
    assert [doc.key for doc in found] == (within[::-1] if descending else within)[:PAGE]
    assert steps[0] <= A_PAGE, steps
    assert "USE TEMP B-TREE" not in plan(db, *reads.docs_statement("a", span))


def test_texts_are_read_only_if_wanted(db: sqlite3.Connection) -> None:
    """A page without bodies does not read the column."""
    for bodies in (True, False):
        used: list[str | None] = []

        def note(action: int, table: str | None, column: str | None, *_: Any, used: list[str | None] = used) -> int:
            if action == sqlite3.SQLITE_READ and table == "kode_docs":
                used.append(column)
            return sqlite3.SQLITE_OK

        db.set_authorizer(note)
        try:
            reads.docs_in(db, "a", DocSpan(start="c/", stop="c0", limit=3 + bodies, bodies=bodies))
        finally:
            db.set_authorizer(None)
        assert ("body" in used) == bodies


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    ["body = x'00'", "digest = NULL", "digest = 'text'", "time = 'soon'"],
)
async def test_a_damaged_row(damage: str) -> None:
    """A load of the row and a write that demands its version fail by its name; a page names it and has the others."""
    async with SqliteStore("a.db") as store:
        versions = await store.write_documents("a", [PutDocument("c", key, key) for key in "xyz"])
        with closing(sqlite3.connect("a.db")) as db:
            db.execute("PRAGMA writable_schema = ON")
            free = "UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE name = 'kode_docs'"
            db.execute(free)
            db.commit()
        with closing(sqlite3.connect("a.db")) as db:
            assert db.execute(f"UPDATE kode_docs SET {damage} WHERE key = 'c/y'").rowcount == 1
            db.commit()
    async with SqliteStore("a.db") as store:
        with pytest.raises(CorruptRecordError, match="documents 'c/y' of agent 'a'"):
            await store.load_document("a", "c", "y")
        page = await store.list_documents("a", "c")
        assert ([doc.key for doc in page], page.left_out) == (["x", "z"], ("document 'c/y' of agent 'a'",))
        assert [doc.key for doc in await store.list_documents("a", "c", stop="y")] == ["x"]
        if "digest" in damage:
            with pytest.raises(CorruptRecordError, match="documents 'c/y' of agent 'a'"):
                await store.put_document("a", "c", "y", 1, expect=versions[1])
        assert not (await store.check_consistency()).consistent
        await store.put_document("a", "c", "x", 1, expect=versions[0])
        await store.put_document("a", "c", "y", 1)
        assert [doc.value for doc in await store.list_documents("a", "c")] == [1, 1, "z"]
