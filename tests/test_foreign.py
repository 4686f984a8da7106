"""Stores that the KODE SDK for TypeScript wrote are recognised, refused with what to do, and left as they are."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from kode_sqlite import SqliteStore

from kode_core import ForeignStoreError, JsonStore, Message, create_extended_store

TABLES: Final = (
    """CREATE TABLE agents (agent_id TEXT PRIMARY KEY, template_id TEXT NOT NULL, created_at TEXT NOT NULL,
        config_version TEXT NOT NULL, lineage TEXT NOT NULL, message_count INTEGER NOT NULL DEFAULT 0,
        last_sfp_index INTEGER NOT NULL DEFAULT -1, last_bookmark TEXT, breakpoint TEXT, metadata TEXT NOT NULL)""",
    """CREATE TABLE messages (id TEXT PRIMARY KEY, agent_id TEXT NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL,
        seq INTEGER NOT NULL, metadata TEXT, created_at INTEGER NOT NULL,
        FOREIGN KEY (agent_id) REFERENCES agents(agent_id) ON DELETE CASCADE)""",
    """CREATE TABLE tool_calls (id TEXT PRIMARY KEY, agent_id TEXT NOT NULL, name TEXT NOT NULL, input TEXT NOT NULL,
        state TEXT NOT NULL, approval TEXT NOT NULL, result TEXT, error TEXT, is_error INTEGER DEFAULT 0,
        started_at INTEGER, completed_at INTEGER, duration_ms INTEGER, created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL, audit_trail TEXT NOT NULL)""",
    """CREATE TABLE snapshots (agent_id TEXT NOT NULL, snapshot_id TEXT NOT NULL, messages TEXT NOT NULL,
        last_sfp_index INTEGER NOT NULL, last_bookmark TEXT NOT NULL, created_at TEXT NOT NULL, metadata TEXT,
        PRIMARY KEY (agent_id, snapshot_id))""",
)
"""As the SDK 2.7 makes them."""


def make_database(path: str, *, wal: bool = False) -> None:
    """A database of the SDK; with *wal* as a crash leaves it, all in the write-ahead log."""
    with closing(sqlite3.connect(path)) as db:
        if wal:
            db.execute("PRAGMA journal_mode=WAL")
        for statement in TABLES:
            db.execute(statement)
        db.execute("INSERT INTO agents VALUES ('agt-1', 't', '2025-01-01', '1', '[]', 0, -1, NULL, NULL, '{}')")
        db.commit()
        if wal:
            for name in (path, f"{path}-wal"):
                shutil.copyfile(name, f"{name}.kept")
    if wal:
        Path(f"{path}.kept").rename(path)
        Path(f"{path}-wal.kept").rename(f"{path}-wal")


def make_folder(path: str, *files: str) -> None:
    """A folder of the SDK, with these files of one agent."""
    for name in files or ("meta.json", "runtime/messages.json", "events/progress.log", "snapshots/sfp-1.json"):
        file = Path(path) / "agt-1" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")


def everything(folder: Path) -> dict[str, Any]:
    """Each name below a folder, with what it holds and when that was changed."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None,
        )
        for path in sorted(folder.rglob("*"))
    }


async def refused(tmp_path: Path, target: Any, **options: Any) -> ForeignStoreError:
    before = everything(tmp_path)
    with pytest.raises(
        ForeignStoreError, match="was written by the KODE SDK for TypeScript.*kode import --from kode-sdk"
    ) as caught:
        async with create_extended_store(target, **options):
            pass
    assert everything(tmp_path) == before
    return caught.value


@pytest.mark.parametrize("wal", [False, True])
@pytest.mark.parametrize(
    "target", ["sqlite:///agents.db", Path("agents.db"), "agents.db", {"type": "sqlite", "db_path": "agents.db"}]
)
async def test_a_database_of_the_sdk(tmp_path: Path, target: Any, wal: bool) -> None:
    """No table is added to it, no journal made beside it, and no time changed."""
    make_database("agents.db", wal=wal)
    assert (await refused(tmp_path, target)).place == str(tmp_path / "agents.db")


async def test_a_database_of_the_sdk_by_its_class(tmp_path: Path) -> None:
    """A store for direct use says it when it opens."""
    make_database("agents.db")
    before = everything(tmp_path)
    with pytest.raises(ForeignStoreError):
        await SqliteStore("agents.db").list()
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "files",
    [(), ("runtime/messages.wal",), ("events/monitor.wal",), ("runtime/todos.json",), ("history/windows/1.json",)],
)
async def test_a_folder_of_the_sdk(tmp_path: Path, files: tuple[str, ...]) -> None:
    """Whatever part of an agent is in it, as a crash may leave it."""
    make_folder("data", *files)
    await refused(tmp_path, "json:///data")
    await refused(tmp_path, Path("data"))
    await refused(tmp_path, "sqlite:///new.db", file_store_base_dir="data")
    with pytest.raises(ForeignStoreError):
        await JsonStore("data").list()


async def test_tables_of_another_program(tmp_path: Path) -> None:
    """Tables of any other program are no obstacle, also when some are named like the SDK's."""
    with closing(sqlite3.connect("theirs.db")) as db:
        db.execute("CREATE TABLE agents (id, name)")
        db.execute("CREATE TABLE messages (id, text)")
        db.execute("CREATE TABLE tool_calls (id)")
    async with create_extended_store("sqlite:///theirs.db") as store:
        await store.append_messages("a", [Message.user("x")])
    async with create_extended_store("sqlite:///theirs.db") as store:
        assert len(await store.load_messages("a")) == 1


async def test_other_files_in_the_folder(tmp_path: Path) -> None:
    """Files and folders of anybody else's are no obstacle to a store of files."""
    for name in ("data/notes/readme.txt", "data/x/meta.json", "data/a.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    async with create_extended_store("json:///data") as store:
        await store.append_messages("a", [Message.user("x")])
