"""What only the SQLite engine can get wrong."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples
from kode_sqlite import SqliteStore, errors
from kode_sqlite import connection as driver
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions

from kode_core import (
    CorruptRecordError,
    KodeError,
    PayloadTooLargeError,
    StoreBusyError,
    StoreFullError,
    StoreReadOnlyError,
    StoreTimeoutError,
    StoreUnavailableError,
    create_extended_store,
)
from kode_core.batch import EventRange


def engine_of(store: SqliteStore) -> SqliteEngine:
    engine = store._context.engine
    assert isinstance(engine, SqliteEngine)
    return engine


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("fast", 1)])
async def test_the_log_and_the_sync(durability: str, synchronous: int) -> None:
    """The database keeps a write-ahead log and, by default, syncs every commit."""
    async with SqliteStore("a.db", durability=durability) as store:
        pragma = await engine_of(store)._writer.run(
            lambda db: [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
        )
        assert pragma == ["wal", synchronous]
        (query_only,) = await engine_of(store)._read(lambda db: db.execute("PRAGMA query_only").fetchone())
        assert query_only == 1


async def test_a_database_in_memory() -> None:
    """:memory: is a store like any other, for as long as it is open."""
    async with create_extended_store("sqlite:///:memory:") as store:
        await store.save_turn("a", messages=samples.messages(3), info=samples.info("a"), events=samples.events(3))
        assert await store.load_messages("a") == samples.messages(3)
        assert len(await store.query_messages(limit=2)) == 2
    assert list(Path().iterdir()) == []


async def test_closing_leaves_one_file() -> None:
    """After the last store is closed the log is folded in: the database can be copied as one file."""
    async with SqliteStore("deep/er/a.db") as store:
        await store.save_messages("a", samples.messages(3))
    assert {path.name for path in Path("deep/er").iterdir()} <= {"a.db", "a.db-kode-lock"}


async def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is of the directory in which the store was opened, for connections made later, too."""
    async with SqliteStore("a.db") as store:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        await store.save_messages("a", samples.messages(3))
        assert len(await store.load_messages("a")) == 3
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_a_database_with_other_tables() -> None:
    """The tables stand beside those of others in one database and leave them alone."""
    with closing(sqlite3.connect("a.db")) as db:
        db.execute("CREATE TABLE messages (x)")
        db.execute("INSERT INTO messages VALUES (1)")
        db.execute("PRAGMA user_version = 77")
        db.commit()
    async with SqliteStore("a.db") as store:
        await store.save_messages("a", samples.messages(3))
    with closing(sqlite3.connect("a.db")) as db:
        assert db.execute("SELECT x FROM messages").fetchall() == [(1,)]
        assert db.execute("PRAGMA user_version").fetchone() == (77,)
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert {name for name in names if not name.startswith(("kode_", "sqlite_"))} == {"messages"}
        body = db.execute("SELECT json_extract(body, '$.content[0].text') FROM kode_messages WHERE position = 1")
        assert body.fetchone() == ("message 1",)


# --- group commit -----------------------------------------------------------------------------------------------------


async def test_writes_share_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of writes at once take a few transactions; acknowledged is committed."""
    sizes: list[int] = []
    transact = SqliteEngine._transact

    def counted(self: SqliteEngine, db: sqlite3.Connection, jobs: Any) -> Any:
        sizes.append(len(jobs))
        return transact(self, db, jobs)

    monkeypatch.setattr(SqliteEngine, "_transact", counted)
    async with SqliteStore("a.db") as store:
        await store.save_messages("warm", [])
        sizes.clear()
        await asyncio.gather(*(store.append_messages(f"a{i}", samples.messages(1)) for i in range(300)))
        await asyncio.gather(*(store.append_event(f"a{i}", samples.event(i)) for i in range(300)))
        assert sum(sizes) == 600
        assert len(sizes) <= 12
        with closing(sqlite3.connect("a.db")) as other:
            assert other.execute("SELECT count(*) FROM kode_messages").fetchone() == (300,)
            assert other.execute("SELECT count(*) FROM kode_events").fetchone() == (300,)


async def test_a_read_takes_two_turns_of_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop hears of the result, and the caller goes on: nothing stands between them that takes a turn more."""
    turns, reads = [0], 100
    turn = asyncio.BaseEventLoop._run_once  # type: ignore[attr-defined]

    def counted(loop: asyncio.BaseEventLoop) -> None:
        turns[0] += 1
        turn(loop)

    async with SqliteStore("a.db") as store:
        await store.put_document("a", "c", "k", 1)
        await store.load_document("a", "c", "k")
        monkeypatch.setattr(asyncio.BaseEventLoop, "_run_once", counted)
        for _ in range(reads):
            await store.load_document("a", "c", "k")
        monkeypatch.undo()
    assert turns[0] < 2.5 * reads


async def test_one_write_that_fails_takes_no_other_with_it() -> None:
    """Of writes in one transaction, one that SQLite refuses fails alone."""
    async with SqliteStore("a.db") as store:
        await store.save_messages("warm", [])
        await engine_of(store)._writer.run(lambda db: db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 50_000))
        saves = [
            store.save_messages(f"a{i}", [samples.message(text="x" * (60_000 if i == 7 else 10))]) for i in range(20)
        ]
        results = await asyncio.gather(*saves, return_exceptions=True)
        assert [i for i, result in enumerate(results) if result is not None] == [7]
        assert isinstance(results[7], PayloadTooLargeError)
        assert await store.load_messages("a7") == []
        assert len(await store.load_messages("a8")) == 1


async def test_cancellations_leave_no_transaction_open() -> None:
    """After hundreds of cancelled writes none is open, what was acknowledged is there, and others can write."""
    rng = random.Random(3)
    async with SqliteStore("a.db") as store:
        acknowledged: set[int] = set()

        async def save(i: int) -> None:
            await store.save_turn(f"a{i}", messages=samples.messages(3), events=samples.events(2))
            acknowledged.add(i)

        for start in range(0, 300, 10):
            tasks = [asyncio.ensure_future(save(i)) for i in range(start, start + 10)]
            await asyncio.wait(tasks, timeout=rng.choice([0, 0.001, 0.004, None]), return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert not await engine_of(store)._writer.run(lambda db: db.in_transaction)
        with closing(sqlite3.connect("a.db", timeout=1)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.rollback()
        for i in range(300):
            count = len(await store.load_messages(f"a{i}"))
            events = len([e async for e in store.read_events(f"a{i}")])
            assert (count, events) in ({(3, 2)} if i in acknowledged else {(3, 2), (0, 0)})
        assert 0 < len(acknowledged) < 300


# --- events -----------------------------------------------------------------------------------------------------------


async def test_events_by_offset_among_many() -> None:
    """Events by offset are right wherever they lie: near the end of the log, and far before it."""
    async with SqliteStore("a.db", durability="fast") as store:
        first = await store.append_events("a", samples.events(700))
        for i in range(4):
            await store.append_events(f"other{i}", samples.events(8000))
        last = await store.append_events("a", samples.events(700, start=1000))
        seen = [event.offset async for event in store.read_events("a", after_offset=0)]
        assert seen == [*first, *last]
        rows = await engine_of(store).events("a", EventRange(order="offset", after=(0, last[5]), limit=3))
        assert [row.offset for row in rows] == list(last[6:9])


# --- the system says no -----------------------------------------------------------------------------------------------


async def test_a_path_that_is_a_folder() -> None:
    """A database path that is a folder is refused with what to write."""
    Path("data").mkdir()
    with pytest.raises(
        StoreUnavailableError, match=r"data is a folder; db_path must name a file, as in .*data/agents\.db"
    ):
        await SqliteStore("data").open()


async def test_a_path_below_a_file() -> None:
    """A database path below a file is refused with the path."""
    Path("data").write_text("x")
    with pytest.raises(StoreUnavailableError, match="data cannot be made"):
        await SqliteStore("data/agents.db").open()


async def test_a_file_that_is_no_database() -> None:
    """A file that is no database is refused and left as it is."""
    Path("a.db").write_bytes(b"this is a letter to my grandmother, not a database " * 100)
    before = Path("a.db").read_bytes()
    with pytest.raises(
        CorruptRecordError, match=r"database .*a\.db: this file is no SQLite database; give another db_path"
    ):
        await SqliteStore("a.db").open()
    assert Path("a.db").read_bytes() == before


async def test_a_damaged_database() -> None:
    """A database with damaged pages is reported by loads and by the check, and health is still asked for in peace."""
    async with SqliteStore("a.db") as store:
        await store.save_turn(
            "a", messages=[samples.message(text="x" * 3000) for _ in range(200)], info=samples.info("a")
        )
    raw = bytearray(Path("a.db").read_bytes())
    for page in range(40, len(raw) // 4096, 7):
        raw[page * 4096 : page * 4096 + 200] = bytes([255]) * 200
    Path("a.db").write_bytes(raw)
    async with SqliteStore("a.db") as store:
        with pytest.raises(CorruptRecordError, match="the database file is damaged; put back a backup"):
            await store.load_messages("a")
        assert await store.load_info("a") is not None
        result = await store.check_consistency()
        assert not result.consistent
        assert {issue.code for issue in result.issues} == {"corrupt_record"}
        await store.health_check()


async def test_a_database_that_may_not_be_written(unprivileged: Path) -> None:
    """A database without the right to write is told as such, and stays as it is."""
    path = str(unprivileged / "a.db")
    async with SqliteStore(path) as store:
        await store.save_messages("a", samples.messages(1))
    Path(path).chmod(0o444)
    async with SqliteStore(path) as store:
        assert len(await store.load_messages("a")) == 1
        with pytest.raises(StoreReadOnlyError, match=r"a\.db: the database cannot be written; check the file's and"):
            await store.save_messages("a", samples.messages(2))
    Path(path).chmod(0o000)
    with pytest.raises(
        StoreUnavailableError, match=r"a\.db: the database cannot be opened; check the path and its mode"
    ):
        await SqliteStore(path).open()
    with pytest.raises(StoreReadOnlyError, match="/nowhere cannot be made: Permission denied"):
        await SqliteStore("/nowhere/a.db").open()


def test_an_open_that_fails_leaves_nothing_running() -> None:
    """An event loop may end right after an open that failed; no thread speaks to it any more."""
    Path("a.db").symlink_to("nowhere/a.db")

    async def fail() -> None:
        with pytest.raises(StoreUnavailableError, match=r"a\.db: the database cannot be opened"):
            await SqliteStore("a.db").open()
        assert {thread for thread in threading.enumerate() if "_connection_worker" in thread.name} <= others

    others = set(threading.enumerate())
    for _ in range(20):
        asyncio.run(fail())


async def test_a_full_database() -> None:
    """When the database cannot grow the write is refused, what was stored stays, and reads go on."""
    async with SqliteStore("a.db") as store:
        await store.save_messages("a", samples.messages(3))
        await engine_of(store)._writer.run(lambda db: db.execute("PRAGMA max_page_count = 80").fetchone())
        saves = [store.append_messages(f"b{i}", [samples.message(text="x" * 300_000)]) for i in range(3)]
        for result in await asyncio.gather(*saves, return_exceptions=True):
            assert isinstance(result, StoreFullError)
            assert "a.db: the disk or its quota is full; make room and try again" in str(result)
        assert await store.load_messages("a") == samples.messages(3)
        assert await store.load_messages("b0") == []
        await engine_of(store)._writer.run(lambda db: db.execute("PRAGMA max_page_count = 10000").fetchone())
        await store.append_messages("b0", [samples.message(text="x" * 300_000)])
        await store.save_messages("a", samples.messages(4))
        assert await store.load_messages("a") == samples.messages(4)


FULL = """
import asyncio, sys
from kode_conformance.values import samples
from kode_core import StoreFullError, create_extended_store
async def main():
    async with create_extended_store(type="sqlite", db_path=sys.argv[1] + "/a.db") as store:
        await store.save_messages("a", samples.messages(3))
        saved = 0
        try:
            while True:
                await store.append_messages("b", [samples.message(text="x" * 100_000)])
                saved += 1
        except StoreFullError as exc:
            print(exc)
        assert await store.load_messages("a") == samples.messages(3)
        assert len(await store.load_messages("b")) == saved > 0
asyncio.run(main())
"""


FULL_AT_ONCE = """
import asyncio, os, sys
from pathlib import Path
from kode_core import StoreFullError, create_extended_store
async def main():
    disk = Path(sys.argv[1])
    for left in range(0, 40_961, 4096):
        for path in disk.iterdir():
            path.unlink()
        with (disk / "fill").open("wb", buffering=0) as fill:
            try:
                while fill.write(bytes(4096)):
                    pass
            except OSError:
                fill.truncate(fill.tell() - left)
        try:
            await (await create_extended_store(type="sqlite", db_path=str(disk / "a.db"))).close()
        except StoreFullError as exc:
            print(left, exc)
asyncio.run(main())
"""


@pytest.mark.parametrize("program", [FULL, FULL_AT_ONCE], ids=["later", "at once"])
def test_a_full_disk(tmp_path: Path, program: str) -> None:
    """On a real device without room an opening or a write is refused, and what was acknowledged stays."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small device needs root; the same fault by SQLite's own limit is tested above")
    try:
        run = [sys.executable, "-c", program, str(disk)]
        done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert "the disk or its quota is full" in done.stdout
    finally:
        subprocess.run(["umount", str(disk)], check=True)


async def test_a_database_that_others_keep_locked() -> None:
    """A write waits busy_timeout_ms for others and then says so; reads do not wait; later writes work."""
    async with SqliteStore("a.db", busy_timeout_ms=100) as store:
        await store.save_messages("a", samples.messages(1))
        with closing(sqlite3.connect("a.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(
                StoreBusyError, match=r"a\.db: another process kept the database locked; raise busy_timeout_ms"
            ):
                await store.save_messages("a", samples.messages(2))
            assert await store.load_messages("a") == samples.messages(1)
            other.execute("ROLLBACK")
        await store.save_messages("a", samples.messages(2))
        assert await store.load_messages("a") == samples.messages(2)


def test_every_error_of_the_driver_has_a_translation() -> None:
    """Every class and every code of sqlite3 becomes an error of this library, with the path and the driver's words."""
    classes = [c for c in vars(sqlite3).values() if isinstance(c, type) and issubclass(c, sqlite3.Error)]
    codes = [v for k, v in vars(sqlite3).items() if k.startswith("SQLITE_") and isinstance(v, int) and v < 0xFFFF]
    for kind in classes:
        for code in (None, *codes):
            exc = kind("what the driver says")
            if code is not None:
                exc.sqlite_errorcode = code
            error = errors.to_kode_error(exc, "x.db")
            assert isinstance(error, KodeError)
            assert "x.db" in str(error)
            assert "what the driver says" in str(error)


# --- the write guard --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "needed"),
    [
        ((3, 6, 23), False),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 0), True),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 54, 1), False),
    ],
)
def test_which_versions_need_the_guard(version: tuple[int, int, int], needed: bool) -> None:
    """The guard is for the versions of SQLite that have the WAL-reset bug."""
    assert driver.needs_guard(version) is needed


def test_the_guard_lets_one_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one holds the guard, another waits as long as it may and then says so."""
    monkeypatch.setattr(driver, "needs_guard", lambda version: True)
    one, two = (driver.WriteGuard(SqliteOptions(db_path="a.db", busy_timeout_ms=50)) for _ in range(2))
    with (
        one.held(),
        pytest.raises(StoreBusyError, match="a.db-kode-lock: another process has been writing"),
        two.held(),
    ):
        pass
    with two.held():
        pass
    for guard in (one, two):
        guard.close()


async def test_writes_with_and_without_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stores write one database, whether this SQLite needs the guard or not."""
    for needed in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(driver, "needs_guard", lambda version, needed=needed: needed)
            async with SqliteStore(f"{needed}.db") as one, SqliteStore(f"{needed}.db") as two:
                await asyncio.gather(*(store.append_messages("a", samples.messages(1)) for store in (one, two) * 20))
                assert len(await one.load_messages("a")) == 40
            with suppress(FileNotFoundError):
                Path(f"{needed}.db-kode-lock").unlink()
                assert needed


async def test_a_text_that_is_no_text_any_more() -> None:
    """A body whose bytes are no UTF-8 is a corrupt record with a name and without a quote; all else stays readable."""
    async with SqliteStore("a.db") as store:
        for agent in ("a", "b"):
            await store.save_turn(agent, messages=samples.messages(3), info=samples.info(agent))
        with closing(sqlite3.connect("a.db")) as other:
            other.execute("UPDATE kode_messages SET body = CAST(x'7b22ff534543524554227d' AS TEXT) WHERE rowid = 2")
            other.commit()
        with pytest.raises(CorruptRecordError, match="message 1") as caught:
            await store.load_messages("a")
        assert "SECRET" not in str(caught.value)
        assert await store.load_messages("b") == samples.messages(3)
        issues = (await store.check_consistency()).issues
        assert [(issue.code, issue.agent_id) for issue in issues] == [("corrupt_record", "a")]
        assert [session.agent_id for session in await store.query_sessions(order="asc")] == ["a", "b"]


async def test_a_database_that_is_removed_under_the_store() -> None:
    """No write is acknowledged into a file that nobody can open, and no empty file takes its place."""
    async with SqliteStore("a.db") as store:
        await store.save_messages("a", samples.messages(1))
        for path in Path().glob("a.db*"):
            path.unlink()
        with pytest.raises(StoreUnavailableError, match=r"a\.db was removed or replaced while it was open; close the"):
            await store.append_messages("a", samples.messages(1))
        with pytest.raises(StoreUnavailableError):
            await store.load_messages("a")
        assert not Path("a.db").exists()


async def test_a_backup_ends_while_others_write_all_the_time() -> None:
    """It does not begin anew with each write of another connection, and has all or nothing of each write."""
    async with SqliteStore("a.db", durability="fast") as store, SqliteStore("a.db", durability="fast") as other:
        for i in range(30):
            await store.save_messages(f"a{i}", [samples.message(text="x" * 100_000) for _ in range(10)])
        written, is_over = 0, False

        async def write() -> None:
            nonlocal written
            while not is_over:
                await other.save_turn("w", append=samples.messages(1), events=[samples.event(written)])
                written += 1

        writing = asyncio.ensure_future(write())
        steps: list[int] = []
        await store.backup("copy.db", progress=lambda done, total: steps.append(done))
        assert await store.load_messages("a0")
        is_over = True
        await writing
        assert steps == sorted(steps)
        assert written > 5
    async with SqliteStore("copy.db") as copy:
        assert (await copy.check_consistency()).consistent
        messages = await copy.load_messages("w")
        assert len(messages) == len([event async for event in copy.read_events("w")])
        assert len(messages) < written


async def test_the_own_check_of_sqlite_can_be_interrupted() -> None:
    """A check of a whole database holds no reader, and a caller that gives up ends it."""
    async with SqliteStore("a.db", readers=1) as store:
        for i in range(20):
            await store.save_messages(f"a{i}", [samples.message(text="x" * 1000) for _ in range(500)])
        engine = store._context.engine
        assert isinstance(engine, SqliteEngine)
        looking = asyncio.ensure_future(engine.inspect(None))
        await asyncio.sleep(0.001)
        assert len(await store.load_messages("a0")) == 500
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        assert await engine.inspect(None) == []


@pytest.mark.parametrize("readers", [2, 4])
async def test_searches_leave_a_reader_to_loads(readers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many searches take their time, loads go on; and searches that are given up make room again."""
    may_end, begun = threading.Event(), threading.Semaphore(0)
    read = SqliteEngine._read

    async def slowly(self: SqliteEngine, call: Callable[[sqlite3.Connection], Any], *, scans: bool = False) -> Any:
        def search(db: sqlite3.Connection) -> Any:
            begun.release()
            may_end.wait(60)
            return call(db)

        return await read(self, search if scans else call, scans=scans)

    monkeypatch.setattr(SqliteEngine, "_read", slowly)
    async with SqliteStore("a.db", readers=readers) as store:
        await store.save_messages("a", samples.messages(3))
        searches = [asyncio.ensure_future(store.query_messages(limit=1)) for _ in range(readers + 3)]
        try:
            for _ in range(readers - 1):
                await asyncio.to_thread(begun.acquire)
            assert await store.load_messages("a") == samples.messages(3)
            for search in searches[1:]:
                search.cancel()
            assert await store.load_messages("a") == samples.messages(3)
        finally:
            may_end.set()
        assert len(await searches[0]) == 1
        await asyncio.gather(*searches, return_exceptions=True)
        found = await asyncio.gather(*[store.query_messages(limit=1) for _ in range(readers + 3)])
        assert [len(page) for page in found] == [1] * (readers + 3)


@contextmanager
def held_by_another() -> Iterator[sqlite3.Connection]:
    """Another connection keeps the database ``a.db`` to itself, until it rolls back or is closed."""
    with closing(sqlite3.connect("a.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        yield other


async def test_an_opening_that_is_given_up_waits_no_longer() -> None:
    """A store that cannot be opened because of a lock is told so at its deadline, however long ``busy_timeout_ms`` is;
    the thread that waited for the lock has ended, and the store opens once the lock is gone.
    """
    async with SqliteStore("a.db") as store:
        await store.save_messages("a", samples.messages(1))
    before = set(threading.enumerate())
    with held_by_another() as other:
        async with asyncio.timeout(60):
            with pytest.raises(StoreTimeoutError, match="not open after"):
                async with SqliteStore("a.db", timeout_ms=300, busy_timeout_ms=600_000):
                    pass
            while any("_connection_worker" in thread.name for thread in {*threading.enumerate()} - before):
                await asyncio.sleep(0.01)
        other.execute("ROLLBACK")
    async with SqliteStore("a.db", busy_timeout_ms=600_000) as store:
        assert await store.load_messages("a") == samples.messages(1)


async def test_an_async_with_that_is_cancelled_leaves_nothing_open() -> None:
    """``__aexit__`` is not called for it; what it began to open is closed."""
    async with SqliteStore("a.db") as store:
        await store.save_messages("a", samples.messages(1))
    before = set(threading.enumerate())
    with held_by_another():

        async def use() -> None:
            async with SqliteStore("a.db", busy_timeout_ms=600_000, timeout_ms=600_000):
                raise AssertionError("it was opened")

        using = [asyncio.ensure_future(use()) for _ in range(5)]
        await asyncio.sleep(0.2)
        for task in using:
            task.cancel()
        async with asyncio.timeout(60):
            ends = await asyncio.gather(*using, return_exceptions=True)
            assert [type(end) for end in ends] == [asyncio.CancelledError] * 5
            while any("_connection_worker" in thread.name for thread in {*threading.enumerate()} - before):
                await asyncio.sleep(0.01)
    async with SqliteStore("a.db") as store:
        assert await store.load_messages("a") == samples.messages(1)


async def test_a_large_transaction_of_one_call_needs_no_memory_for_all_its_pages() -> None:
    """SQLite writes pages to the log before the commit when the cache is full; not where others share the transaction,
    which may be rolled back to a savepoint.
    """
    async with SqliteStore("a.db") as store:
        engine = engine_of(store)
        await store.save_messages("a", [samples.message(text="x" * 2000) for _ in range(100)])

        async def empty_log() -> None:
            await engine._writer.run(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())

        def copies(transaction: Any) -> int:
            """Copies of 30 MB, and the size of the log before their commit."""
            for n in range(150):
                transaction._copy("a", f"b{n}")
            size = Path("a.db-wal").stat().st_size
            raise ValueError(str(size))

        await empty_log()
        with pytest.raises(ValueError, match=r"^\d{7,}$"):
            await engine._write(copies)
        await empty_log()
        shared = [engine._write(lambda _: None), engine._write(lambda _: None), engine._write(copies)]
        ends = await asyncio.gather(*shared, return_exceptions=True)
        assert [str(end) for end in ends] == ["None", "None", "0"]
        assert await store.load_messages("b0") == []
