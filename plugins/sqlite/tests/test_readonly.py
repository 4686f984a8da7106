"""Databases that this process may read and not write."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - later imports may be of files that only root may read
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples
from kode_sqlite import SqliteStore, plugin, readonly
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions
from kode_sqlite.schema import SCHEMA_VERSION

from kode_core import KodeError, SchemaVersionError, StoreReadOnlyError, TodoSnapshot, create_extended_store
from tests.descriptors import needs_descriptors, open_descriptors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")

_WRITER = """
import asyncio, sys
from kode_conformance.values import samples
from kode_core import create_extended_store

async def main():
    n = int(sys.argv[2])
    store = None
    for line in sys.stdin:
        if line == "open\\n":
            store = await create_extended_store(f"sqlite:///{sys.argv[1]}")
        elif line == "append\\n":
            await store.append_messages("a", samples.messages(1, n))
            n += 1
        elif line == "close\\n":
            await store.close()
        print("done", flush=True)

asyncio.run(main())
"""


class Writer:
    """Another process, which may write."""

    def __init__(self, path: Path, count: int) -> None:
        command = [sys.executable, "-c", _WRITER, str(path), str(count)]
        user = 0 if os.getuid() == 0 else None  # who may also read the libraries, wherever they are
        self._process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, user=user)

    def do(self, *words: str) -> None:
        assert self._process.stdin
        assert self._process.stdout
        for word in words:
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
            assert self._process.stdout.readline() == "done\n"

    def end(self) -> None:
        self._process.communicate(timeout=60)


@contextmanager
def writer(path: Path, count: int) -> Iterator[Writer]:
    other = Writer(path, count)
    try:
        yield other
    finally:
        other.end()


def close_to_writers(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)


def open_to_writers(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
async def place(unprivileged: Path) -> AsyncIterator[Path]:
    """A folder with a store of one message, closed."""
    folder = unprivileged / "place"
    folder.mkdir()
    async with SqliteStore(str(folder / "a.db")) as store:
        await store.save_turn("a", append=samples.messages(1), info=samples.info("a"))
    yield folder
    open_to_writers(folder)


def engine_of(store: Any) -> readonly.ReadOnlyEngine:
    engine = store._context.engine
    assert isinstance(engine, readonly.ReadOnlyEngine)
    return engine


@pytest.mark.parametrize("what", ["folder and file", "file", "folder"])
async def test_a_medium_that_is_read_only(place: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """All that reads works, writes are refused, the log says so, and nothing is made or changed."""
    for path in [place] if what == "folder" else [place / "a.db"] if what == "file" else [place / "a.db", place]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = listing(place)
    with caplog.at_level(logging.WARNING, "kode_sqlite"):
        store = await create_extended_store(f"sqlite:///{place}/a.db")
    assert "a.db can only be read by this process" in caplog.text
    async with store:
        found = await asyncio.gather(*(store.load_messages("a") for _ in range(20)))
        assert found == [samples.messages(1)] * 20
        assert [session.agent_id for session in await store.query_sessions()] == ["a"]
        assert (await store.check_consistency()).consistent
        for write in (
            store.append_messages("a", samples.messages(1)),
            store.append_event("a", samples.event(1)),
            store.delete("a"),
            store.acquire_agent_lock("a", 1000).__aenter__(),
        ):
            with pytest.raises(StoreReadOnlyError, match=r"a\.db: the database cannot be written; check the file's"):
                await write
        assert not (await store.health_check()).healthy
        (copy,) = await store.backup(place.parent / "copy.db")
    assert listing(place) == before
    async with SqliteStore(str(copy)) as other:
        assert await other.load_messages("a") == samples.messages(1)


async def test_a_hybrid_store_on_a_medium_that_is_read_only(unprivileged: Path) -> None:
    """Database and files are read together."""
    place, todos = unprivileged / "place", TodoSnapshot()
    options = {"file_store_base_dir": str(place / "files")}
    async with create_extended_store(f"sqlite:///{place}/a.db", **options) as store:
        await store.save_turn("a", append=samples.messages(1), todos=todos, events=[samples.event(1)])
    close_to_writers(place)
    try:
        before = listing(place)
        async with create_extended_store(f"sqlite:///{place}/a.db", **options) as store:
            assert await store.load_messages("a") == samples.messages(1)
            assert await store.load_todos("a") == todos
            assert [entry async for entry in store.read_events("a")] == [samples.event(1)]
            with pytest.raises(StoreReadOnlyError):
                await store.save_todos("a", TodoSnapshot())
            with pytest.raises(StoreReadOnlyError):
                await store.append_messages("a", samples.messages(1))
        assert listing(place) == before
    finally:
        open_to_writers(place)


@pytest.mark.parametrize("has_log", [True, False])
async def test_a_store_in_use_of_somebody_else(place: Path, has_log: bool) -> None:
    """A process that may only read sees each write of the others, and leaves nothing that is in their way."""
    with writer(place / "a.db", 1) as other:
        other.do("open", *["append"] * has_log)
        close_to_writers(place)
        names = sorted(path.name for path in place.iterdir())
        assert {"a.db-wal", "a.db-shm"} <= set(names)
        async with SqliteStore(str(place / "a.db")) as store:
            engine_of(store)
            count = 1 + has_log
            for _ in range(5):
                assert await store.load_messages("a") == samples.messages(count)
                other.do("append")
                count += 1
            found = await asyncio.gather(*(store.load_messages("a") for _ in range(12)))
            assert found == [samples.messages(count)] * 12
            await store.backup(place.parent / "copy.db")
        other.do("append")
        assert sorted(path.name for path in place.iterdir()) == names
        open_to_writers(place)
        other.do("close")
    async with SqliteStore(str(place / "a.db")) as store:
        assert await store.load_messages("a") == samples.messages(count + 1)


async def test_those_who_write_come_and_go(place: Path) -> None:
    """Whatever moment they choose, each read sees a whole state, and never an older one than before."""
    (place / "a.db").chmod(0o444)
    store = await create_extended_store(f"sqlite:///{place}/a.db")
    engine_of(store)
    open_to_writers(place)
    is_over = asyncio.Event()

    async def read() -> int:
        latest = reads = 0
        while not is_over.is_set():
            found = await store.load_messages("a")
            assert found == samples.messages(len(found))
            assert len(found) >= latest
            latest, reads = len(found), reads + 1
        return reads

    readers = [asyncio.ensure_future(read()) for _ in range(3)]
    with writer(place / "a.db", 1) as other:
        for n in range(12):
            await asyncio.to_thread(other.do, "open", "append", "append", "close")
            assert await store.load_messages("a") == samples.messages(1 + 2 * (n + 1))
    is_over.set()
    assert all(await asyncio.gather(*readers))
    await store.close()
    async with SqliteStore(str(place / "a.db")) as last:
        assert await last.load_messages("a") == samples.messages(25)


async def test_a_connection_in_use_is_closed_with_the_store(place: Path) -> None:
    """A read that goes on while others drop their connections gives its own back to the store, which closes it."""
    (place / "a.db").chmod(0o444)
    store = SqliteStore(str(place / "a.db"))
    await asyncio.gather(*(store.load_messages("a") for _ in range(3)))  # a connection for each
    engine = engine_of(store)
    goes_on, opened = threading.Event(), []

    def read(db: sqlite3.Connection) -> int:
        opened.append(db)
        return int(goes_on.wait(20))

    job = asyncio.ensure_future(engine._read(read))
    async with asyncio.timeout(20):
        while not opened:
            await asyncio.sleep(0.01)
    (place / "a.db").chmod(0o644)
    with writer(place / "a.db", 1) as other:
        await asyncio.to_thread(other.do, "open", "append", "close")
        await store.load_messages("a")
        goes_on.set()
        assert await job == 1
    await store.close()
    for db in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            db.execute("SELECT 1")


async def test_a_file_that_changes_while_it_is_read(place: Path) -> None:
    """A read of a file that nobody writes is done again if somebody did; an error that came of it is never told."""
    (place / "a.db").chmod(0o444)
    async with SqliteStore(str(place / "a.db")) as store:
        engine = engine_of(store)
        (place / "a.db").chmod(0o644)
        seen: list[int] = []
        with writer(place / "a.db", 1) as other:

            def read(db: sqlite3.Connection) -> int:
                (count,) = db.execute("SELECT count(*) FROM kode_messages").fetchone()
                seen.append(count)
                if len(seen) == 1:
                    other.do("open", "append", "close")
                    raise sqlite3.DatabaseError("as of a page that was half written")
                return int(count)

            assert await engine._read(read) == 2
        assert seen == [1, 2]


async def test_a_store_that_writes_beside_one_that_reads(place: Path) -> None:
    """In one process, too: what the reader closes takes no lock away from the writer."""
    path, log = place / "a.db", place / "a.db-wal"
    path.chmod(0o444)
    reader = await create_extended_store(f"sqlite:///{path}")
    engine_of(reader)
    assert await reader.load_messages("a") == samples.messages(1)
    path.chmod(0o644)
    async with SqliteStore(str(path)) as store:
        assert isinstance(store._context.engine, SqliteEngine)
        await store.append_messages("a", samples.messages(1, 1))
        assert await reader.load_messages("a") == samples.messages(2)
        before = log.stat().st_ino
        with writer(path, 2) as other:
            other.do("open", "append", "close")
        assert log.stat().st_ino == before
        assert await store.load_messages("a") == samples.messages(3)
        await reader.close()
        with writer(path, 3) as other:
            other.do("open", "append", "close")
        assert log.stat().st_ino == before
        await store.append_messages("a", samples.messages(1, 4))
    async with SqliteStore(str(path)) as store:
        assert await store.load_messages("a") == samples.messages(5)


async def test_a_log_that_cannot_be_read(place: Path) -> None:
    """Writes that a crash left in a log are never left out: the error says what to do, and the log's memory does it."""
    copies = [place.parent / "with", place.parent / "without"]
    async with SqliteStore(str(place / "a.db")) as store:
        await store.append_messages("a", samples.messages(1, 1))
        for copy in copies:
            shutil.copytree(place, copy)
    (copies[1] / "a.db-shm").unlink()
    for copy in copies:
        close_to_writers(copy)
    try:
        async with SqliteStore(str(copies[0] / "a.db")) as store:
            assert await store.load_messages("a") == samples.messages(2)
        with pytest.raises(
            StoreReadOnlyError, match=r"its log, .*a\.db-wal, has writes .* open it once where it may be"
        ):
            await SqliteStore(str(copies[1] / "a.db")).open()
    finally:
        for copy in copies:
            open_to_writers(copy)
    async with SqliteStore(str(copies[1] / "a.db")) as store:
        assert await store.load_messages("a") == samples.messages(2)


@needs_descriptors
@pytest.mark.parametrize(
    ("statement", "kind", "told"),
    [
        ("UPDATE kode_meta SET value = 99 WHERE key = 'schema_version'", SchemaVersionError, "has schema 99.* upgrade"),
        ("UPDATE kode_meta SET value = 0 WHERE key = 'schema_version'", StoreReadOnlyError, "has no tables of a store"),
        ("DROP TABLE kode_meta", StoreReadOnlyError, "has no tables of a store"),
    ],
)
async def test_tables_that_cannot_be_brought_to_this_version(
    place: Path, statement: str, kind: type[KodeError], told: str
) -> None:
    """Where nothing can be migrated the error says so, and opens that fail leave no descriptor."""
    path = place / "a.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement)
        db.commit()
    close_to_writers(place)
    before = listing(place)

    async def fail() -> None:
        with pytest.raises(kind, match=told):
            await SqliteStore(str(path)).open()

    await fail()
    descriptors = open_descriptors()
    for _ in range(10):
        await fail()
    assert not open_descriptors() - descriptors
    assert listing(place) == before


async def test_tables_of_an_older_version(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are migrated where they may be, and refused where they only can be read."""
    close_to_writers(place)
    monkeypatch.setattr("kode_sqlite.readonly.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    with pytest.raises(SchemaVersionError, match="and this kode-sqlite reads .*: open it once where it may be written"):
        await SqliteStore(str(place / "a.db")).open()


def test_a_look_leaves_nothing(place: Path) -> None:
    """To ask whether a store is there makes no log next to it."""
    before = listing(place)
    with closing(sqlite3.connect(place / "other.db")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE mine (x)")
    before = listing(place)
    assert plugin._is_there(SqliteOptions(db_path=str(place / "a.db")))
    assert not plugin._is_there(SqliteOptions(db_path=str(place / "other.db")))
    assert listing(place) == before
