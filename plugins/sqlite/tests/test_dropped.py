"""Tables that were dropped, renamed or made by others: errors say so, and nothing is made in their place."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples
from kode_sqlite import SqliteStore

from kode_core import CorruptRecordError, StorageError, StoreUnavailableError
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
        ("UPDATE kode_meta SET value = 'x' WHERE key = 'schema_version'", "the schema_version in its kode_meta is not"),
        ("UPDATE kode_meta SET value = -1 WHERE key = 'schema_version'", "the schema_version in its kode_meta is not"),
        ("UPDATE kode_meta SET value = 1.5 WHERE key = 'schema_version'", "the schema_version in its kode_meta is not"),
        (
            "UPDATE kode_meta SET key = 'schema_step' WHERE key = 'schema_version'",
            "the schema_step in its kode_meta is",
        ),
        ("INSERT INTO kode_meta VALUES ('schema_step', '')", "the schema_step in its kode_meta is not"),
        ("UPDATE kode_meta SET value = 2 WHERE key = 'schema_version'", "it has kode_doc_terms, of which schema 2 has"),
        ("ALTER TABLE kode_meta RENAME COLUMN value TO other", "its kode_meta is not the table of a store; put back"),
    ],
)
async def test_a_version_that_is_none(change_it: str, problem: str) -> None:
    """The error names what is wrong with the version of the tables."""
    await make()
    change(change_it)
    with pytest.raises(CorruptRecordError, match=problem):
        await SqliteStore("a.db").open()


@pytest.mark.parametrize("columns", ["key TEXT PRIMARY KEY, value TEXT", "value REAL, key TEXT PRIMARY KEY"])
async def test_a_copy_of_the_version_in_another_type(columns: str) -> None:
    """A tool that copies tables may write numbers as texts or floats; an empty table of that kind is no store's."""
    await make()
    copied = "INSERT INTO copied (key, value) SELECT key, value FROM kode_meta"
    change(f"CREATE TABLE copied ({columns})", copied, "DROP TABLE kode_meta", "ALTER TABLE copied RENAME TO kode_meta")
    for _ in range(2):
        async with SqliteStore("a.db") as store:
            assert await store.load_messages("a") == samples.messages(2)
    Path("a.db").unlink()
    change(f"CREATE TABLE kode_meta ({columns})")
    with pytest.raises(CorruptRecordError, match="its kode_meta is not the table of a store"):
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

DROPPED = [
    *(("kode_texts",), ("kode_text",), ("kode_text", "kode_texts")),
    *(("kode_text_config",), ("kode_text_data",), ("kode_text_idx",)),
]


def texts(*command: str) -> str:
    """Run a command for the index of texts, and return what it printed."""
    run = subprocess.run(
        [sys.executable, "-m", "kode_core.cli", "text-index", *command, "--store", "sqlite:///a.db"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("action", ["drop", "rebuild"])
@pytest.mark.parametrize("tables", DROPPED, ids="+".join)
async def test_an_index_of_texts_without_a_table(tables: tuple[str, ...], action: str) -> None:
    """The health names the table and the commands that mend the index, and no opening removes anything."""
    await make(text_index=True)
    change(*(f"DROP TABLE {table}" for table in tables))
    said = f"{tables[0]} .*of the index of texts (is|are) missing, .* run kode text-index drop, or rebuild"
    with pytest.raises(StoreUnavailableError, match=said):
        await make(text_index=True)
    async with SqliteStore("a.db") as store:
        assert re.search(said, str((await store.health_check()).database))
        with pytest.raises((StoreUnavailableError, CorruptRecordError, StorageError)) as found:
            await store.append_messages("a", samples.messages(1))
        if "kode_texts" in tables:
            assert "run kode text-index drop, or rebuild" in str(found.value)
        assert await store.load_messages("a") == samples.messages(2)
    texts(action)
    async with SqliteStore("a.db") as store:
        assert (await store.health_check()).healthy
        await store.append_messages("a", [samples.message(text="rare words")])
        assert len(await store.query_messages(contains="rare words")) == 1
        assert ((await store.get_metrics()).storage.texts_waiting is not None) == (action == "rebuild")
        assert (await store.check_consistency()).issues == ()


@pytest.mark.parametrize(
    "made",
    [
        "CREATE TABLE kode_text_notes (x)",
        "CREATE VIEW kode_textual AS SELECT 1",
        "CREATE TABLE kode_text (x)",
        "CREATE INDEX kode_text_mine ON kode_agents (created_at)",
    ],
)
async def test_names_like_those_of_the_index(made: str) -> None:
    """Tables of another program whose names begin alike are left alone, and the store is healthy."""
    await make()
    change(made)
    async with SqliteStore("a.db") as store:
        assert (await store.health_check()).healthy
        await store.append_messages("a", samples.messages(1))
    with closing(sqlite3.connect("a.db")) as db:
        assert db.execute("SELECT count(*) FROM sqlite_master WHERE sql = ?", (made,)).fetchone() == (1,)
