"""Opening stores through the factory, and what a fresh process imports."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from kode_sqlite import SqliteStore

from kode_core import (
    ConfigurationError,
    ExtendedStore,
    KodeError,
    Message,
    StoreClosedError,
    create_extended_store,
    create_store,
)


async def test_one_line_opens_the_default(tmp_path: Path) -> None:
    """With nothing configured, one line opens an SQLite store and makes its folder."""
    async with create_extended_store() as store:
        await store.save_messages("a", [Message.user("hi")])
    assert (tmp_path / "data" / "agents.db").exists()
    store = await create_extended_store()
    assert len(await store.load_messages("a")) == 1
    await store.close()


async def test_await_and_async_with_are_both_fine() -> None:
    """The factory's result is awaited, or used with async with, which closes at the end."""
    store = await create_store("memory:")
    assert await store.list() == []
    async with create_extended_store("memory:") as other:
        assert isinstance(other, ExtendedStore)
    with pytest.raises(StoreClosedError):
        await other.list()
    assert isinstance(store, ExtendedStore)
    await store.close()


async def test_direct_use_as_in_the_guide(tmp_path: Path) -> None:
    """SqliteStore takes the path and the folder for files, opens by itself, and refuses unknown options."""
    store = SqliteStore("./data/agents.db", "./data/store")
    await store.save_todos("a", (await _todos()))
    assert (tmp_path / "data" / "store" / "a.jsonl").exists()
    await store.close()
    async with SqliteStore("./data/agents.db", "./data/store", durability="fast", timeout_ms=500) as again:
        assert await again.load_todos("a") == await _todos()
    with pytest.raises(ConfigurationError, match="has no option 'durabilty'; did you mean 'durability'"):
        SqliteStore("x.db", durabilty="fast")


async def _todos():  # type: ignore[no-untyped-def]
    from kode_conformance.values import samples

    return samples.todos("x")


def test_a_store_belongs_to_its_event_loop() -> None:
    """A store used in another event loop says so."""
    store = SqliteStore("x.db")
    with asyncio.Runner() as runner:
        runner.run(store.list())
        with pytest.raises(KodeError, match="another event loop"), asyncio.Runner() as other:
            other.run(store.list())
        runner.run(store.close())


async def test_a_forgotten_store_warns() -> None:
    """A store that is dropped without close says what to do."""
    store = await create_extended_store("memory:")
    with pytest.warns(ResourceWarning, match="a memory store was not closed; use 'async with'"):
        del store
        gc.collect()


def test_only_what_is_used_is_imported() -> None:
    """A fresh process that opens SQLite imports its driver and no other; importing the core imports none."""
    script = """
import asyncio, json, sys
import kode_core
others = ("aiosqlite", "sqlite3", "asyncpg", "motor", "pymongo", "aioboto3", "typer", "rich", "pytest", "hypothesis")
def loaded(): return [name for name in others if name in sys.modules]
before = loaded()
from kode_core.plugins import registry
registry.installed(); registry.backend("sqlite")
plugin = loaded()
async def main():
    async with kode_core.create_extended_store("sqlite:///x.db"): return loaded()
print(json.dumps([before, plugin, asyncio.run(main())]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    before, plugin, opened = json.loads(done.stdout)
    assert (before, plugin, opened) == ([], [], ["aiosqlite", "sqlite3"])


def test_what_is_heavy_is_not_imported() -> None:
    """A fresh process that opens SQLite, writes and reads imports nothing for metadata, archives, settings or other
    backends.
    """
    script = """
import asyncio, json, sys
there = set(sys.modules)
from kode_core import Message, create_extended_store
imported = sorted(set(sys.modules) - there)
async def main():
    async with create_extended_store("sqlite:///x.db") as store:
        await store.save_messages("a", [Message.user("hi")])
        await store.load_messages("a")
asyncio.run(main())
print(json.dumps([imported, sorted(set(sys.modules) - there)]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    imported, used = map(set, json.loads(done.stdout))
    heavy = {
        "difflib",
        "email",
        "importlib.metadata",
        "importlib.resources",
        "shutil",
        "tempfile",
        "tomllib",
        "zipfile",
    }
    own = {"backends.json_files.engine", "hybrid.engine"}
    assert {"kode_core.store.facade", "msgspec", "pluggy"} <= imported
    assert imported & {*heavy, "json", *(f"kode_core.{name}" for name in own)} == set()
    assert used & {*heavy, *(f"kode_core.{name}" for name in own)} == set()


async def test_backups_are_stores(tmp_path: Path) -> None:
    """A backup is a store of its own, hybrid or not, taken while the store is used; memory has none."""
    async with create_extended_store(type="sqlite", db_path="a.db", file_store_base_dir="files") as store:
        await store.save_messages("a", [Message.user("hi")])
        await store.save_todos("a", await _todos())
        made = await store.backup("copies/b.db")  # type: ignore[attr-defined]
        with pytest.raises(KodeError, match="exists already; a backup does not overwrite"):
            await store.backup("copies/b.db")  # type: ignore[attr-defined]
    assert [str(path) for path in made] == ["copies/b.db", "copies/b.db.files"]
    async with create_extended_store(
        type="sqlite", db_path="copies/b.db", file_store_base_dir="copies/b.db.files"
    ) as copy:
        assert (len(await copy.load_messages("a")), await copy.load_todos("a")) == (1, await _todos())
    async with create_extended_store("memory:") as memory:
        with pytest.raises(NotImplementedError, match="a memory store has no backup"):
            await memory.backup("x")  # type: ignore[attr-defined]


def test_a_store_that_was_not_opened_says_how() -> None:
    """Whoever forgets await is told so."""
    with pytest.raises(AttributeError, match="the store is not open, so it has no 'save_messages': write 'async with"):
        create_extended_store("memory:").save_messages  # type: ignore[attr-defined]  # noqa: B018
