"""Tables that were dropped, renamed or made by others: errors say so, and nothing is made in their place."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples
from kode_sqlite import SqliteStore

from kode_core import CorruptRecordError, StoreUnavailableError
from plugins.sqlite.tests.test_engine import engine_of


def change(*statements: str, path: str = "a.db") -> None:
    """Change the database as another program would."""
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


async def make(**options: Any) -> None:
    """A store with two messages of agent *a*."""
    async with SqliteStore("a.db", **options) as store:
        await store.save_turn("a", messages=samples.messages(2), info=samples.info("a"))


@pytest.mark.parametrize("path", ["a.db", ":memory:"])
async def test_a_table_that_was_dropped(path: str) -> None:
    """The health of an open store names it and says what to do, and so does the error of a call that needs it."""
    async with SqliteStore(path) as store:
        await store.save_turn("a", messages=samples.messages(2), info=samples.info("a"))
        assert (await store.health_check()).healthy
        await engine_of(store)._writer.run(lambda db: db.execute("DROP TABLE kode_messages"))
        health = await store.health_check()
        assert not health.healthy and health.database is not None
        assert "kode_messages is missing, which this store has made: put back a" in str(health.database)
        with pytest.raises(StoreUnavailableError, match="a table of kode is missing: put back a backup"):
            await store.load_messages("a")
        await engine_of(store)._writer.run(lambda db: db.execute("DROP TABLE kode_docs"))
        assert "kode_docs, kode_messages are missing" in str(await store.health_check())


@pytest.mark.parametrize("table", ["kode_agents", "kode_doc_terms", "kode_leases", "kode_messages"])
async def test_no_store_opens_without_its_tables(table: str, unprivileged: Path) -> None:
    """The error names the table and says what to do, where the database may be written and where it may not; nothing is
    made in its place.
    """
    path = str(unprivileged / "a.db")
    async with SqliteStore(path) as store:
        await store.save_turn("a", messages=samples.messages(2), info=samples.info("a"))
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"DROP TABLE {table}")
        db.commit()
    said = f"{table} is missing, which this store has made: put back a backup; to begin anew, drop the other tables "
    for mode in (0o755, 0o555):
        for file in (Path(path), unprivileged):
            file.chmod(mode)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match=said):
                await SqliteStore(path).open()
    unprivileged.chmod(0o755)


async def test_tables_without_their_version() -> None:
    """A store of which the table of the version was dropped is no empty file, whichever table is left."""
    async with SqliteStore("a.db") as store:
        await store.save_turn("a", messages=samples.messages(2), info=samples.info("a"))
    with closing(sqlite3.connect("a.db")) as db:
        named = "SELECT name FROM sqlite_master WHERE name GLOB 'kode_*' AND type = 'table' AND name <> 'kode_events'"
        for (name,) in db.execute(named).fetchall():
            db.execute(f"DROP TABLE {name}")
        db.commit()
    with pytest.raises(CorruptRecordError, match="it has kode_events, and no version of a store"):
        await SqliteStore("a.db").open()


@pytest.mark.parametrize("version", [1, 2])
async def test_an_old_store_without_a_table_is_not_migrated(version: int) -> None:
    """It is refused before its first step, so that it stays as it is for the version that made it."""
    script = Path(__file__).with_name(f"version_{version}.sql").read_text()
    with closing(sqlite3.connect("a.db")) as db:
        db.executescript(script)
    change("DROP TABLE kode_leases")
    shutil.copy("a.db", "before.db")
    with pytest.raises(StoreUnavailableError, match="kode_leases is missing, which this store has made"):
        await SqliteStore("a.db").open()
    with closing(sqlite3.connect("a.db")) as db, closing(sqlite3.connect("before.db")) as before:
        assert list(db.iterdump()) == list(before.iterdump())


async def test_an_empty_table_of_the_version_is_no_store() -> None:
    """Nothing is lost by beginning in it."""
    change("CREATE TABLE kode_meta (key TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID")
    await make()


@pytest.mark.parametrize(
    ("change_it", "problem"),
    [
        (
            "UPDATE kode_meta SET value = 'x' WHERE key = 'schema_version'",
            "the schema_version in its kode_meta is not a",
        ),
        (
            "UPDATE kode_meta SET value = -1 WHERE key = 'schema_version'",
            "the schema_version in its kode_meta is not a",
        ),
        ("INSERT INTO kode_meta VALUES ('schema_step', '')", "the schema_step in its kode_meta is not a number"),
        ("UPDATE kode_meta SET value = 2 WHERE key = 'schema_version'", "it has kode_doc_terms, and schema 2; put"),
        ("ALTER TABLE kode_meta RENAME COLUMN value TO other", "its kode_meta is not the table of a store; put back"),
    ],
)
async def test_a_version_that_is_none(change_it: str, problem: str) -> None:
    """The error names what is wrong with the version of the tables."""
    await make()
    change(change_it)
    with pytest.raises(CorruptRecordError, match=problem):
        await SqliteStore("a.db").open()


async def test_names_in_other_cases_are_the_same_names() -> None:
    """SQLite compares names of tables without regard to case."""
    await make()
    for table in ("kode_meta", "kode_agents", "kode_messages"):
        change(f"ALTER TABLE {table} RENAME TO moved", f"ALTER TABLE moved RENAME TO {table.upper()}")
    async with SqliteStore("a.db") as store:
        assert (await store.health_check()).healthy
        assert await store.load_messages("a") == samples.messages(2)


@pytest.mark.parametrize(
    ("view", "problem"),
    [("kode_agents", "it has kode_agents, and no version"), ("kode_meta", "its kode_meta is not the table")],
)
async def test_a_view_with_the_name_of_a_table(view: str, problem: str) -> None:
    """A store is made neither next to it nor by it."""
    change(f"CREATE VIEW {view} AS SELECT 1")
    with pytest.raises(CorruptRecordError, match=problem):
        await SqliteStore("a.db").open()


# --- the index of texts -----------------------------------------------------------------------------------------------

DROPPED = [("kode_texts",), ("kode_text",), ("kode_texts", "kode_text")]


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("tables", DROPPED, ids="+".join)
async def test_an_opening_mends_the_index_of_texts(
    tables: tuple[str, ...], indexed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Without one of its tables every write of a message failed: the rest of it goes, and the log says so."""
    await make(text_index=True)
    change(*(f"DROP TABLE {table}" for table in tables))
    with caplog.at_level(logging.WARNING, "kode_sqlite"):
        async with SqliteStore("a.db", text_index=indexed) as store:
            assert " and ".join(sorted(tables)) + " of the index of texts was dropped; the rest" in caplog.text
            await store.append_messages("a", [samples.message(text="rare words")])
            assert len(await store.query_messages(contains="rare words")) == 1
            assert (await store.health_check()).healthy
            assert ((await store.get_metrics()).storage.texts_waiting is not None) == indexed
            assert (await store.check_consistency()).issues == ()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("tables", DROPPED, ids="+".join)
async def test_the_health_of_a_store_names_the_table_of_the_index(tables: tuple[str, ...]) -> None:
    """A store that is open when the table is dropped says so, and so does the error of a write."""
    async with SqliteStore("a.db", text_index=True) as store:
        await store.append_messages("a", samples.messages(1))
        while (await store.get_metrics()).storage.texts_waiting:
            pass
        change(*(f"DROP TABLE {table}" for table in tables))
        health = await store.health_check()
        assert not health.healthy
        assert f"{' and '.join(sorted(tables))} of the index of texts was dropped" in str(health.database)
        if "kode_texts" in tables:
            with pytest.raises(StoreUnavailableError, match="open the store again, which mends the index of texts"):
                await store.append_messages("a", samples.messages(1))
        assert await store.load_messages("a") == samples.messages(1)
