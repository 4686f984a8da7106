"""The files of a store: their modes, their names, and backups of two processes to one place."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples
from kode_sqlite import SqliteStore
from kode_sqlite import connection as driver
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions

from kode_core import (
    ConfigurationError,
    InvalidArgumentError,
    StoreBusyError,
    StoreUnavailableError,
    TodoSnapshot,
    create_extended_store,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a version of SQLite that needs the lock file."""
    monkeypatch.setattr(driver, "needs_guard", lambda version: True)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> set[tuple[bool, int]]:
    """The modes of all that is below a folder, each with whether it is a folder's."""
    return {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in folder.rglob("*")}


async def used(folder: Path, **options: Any) -> set[str]:
    """The names of what a hybrid store made with a backup, as they are while it is open."""
    database, files = folder / "deep" / "data" / "agents.db", folder / "files"
    async with SqliteStore(str(database), str(files), **options) as store:
        await store.save_turn("a", append=samples.messages(1), todos=TodoSnapshot())
        async with store.acquire_agent_lock("a", 1000):
            await store.append_event("a", samples.event(1))
        await store.backup(folder / "copies" / "monday.db")
        return {path.name for path in folder.rglob("*")}


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
@pytest.mark.parametrize(
    ("given", "file", "folder"),
    [({}, 0o600, 0o700), ({"file_mode": "0640"}, 0o640, 0o750), ({"file_mode": "660"}, 0o660, 0o770)],
)
async def test_who_may_read_what_is_made(
    tmp_path: Path, mask: int, given: dict[str, str], file: int, folder: int
) -> None:
    """Their owner alone, or whom file_mode names, whatever the umask: database, log, locks, JSON files and backups."""
    place = tmp_path / "place"
    place.mkdir(0o755)
    with umask(mask):
        async with SqliteStore(str(place / "open.db"), **given) as store:
            await store.save_messages("a", samples.messages(1))
            assert {path.name for path in place.iterdir()} >= {"open.db", "open.db-wal", "open.db-shm"}
            assert modes(place) == {(False, file)}
        made = await used(place, **given)
    assert made >= {"agents.db", "agents.db-kode-lock", "a.jsonl", "format", "id", "00", "monday.db", "monday.db.files"}
    private_folders = {(True, 0o700)} if given else set()  # those above a backup, which no option is for
    assert modes(place) - private_folders == {(False, file), (True, folder)} - private_folders


async def test_what_is_there_keeps_its_mode() -> None:
    """A database that a group may read stays so with its log; a backup of it is a new file."""
    with umask(0o022):
        with closing(sqlite3.connect("a.db")) as db:
            db.execute("CREATE TABLE mine (x)")
        Path("a.db").chmod(0o640)
        async with SqliteStore("a.db") as store:
            await store.save_messages("a", samples.messages(1))
            assert modes(Path()) == {(False, 0o640)}
            await store.backup("copy.db")
    assert stat.S_IMODE(Path("copy.db").stat().st_mode) == 0o600
    assert stat.S_IMODE(Path("a.db").stat().st_mode) == 0o640


@pytest.mark.parametrize("mode", ["0777", "0200", "64", "rw-------", 640, "0o640"])
async def test_a_mode_that_is_none(mode: Any) -> None:
    """It is refused by the option's name and with an example, and nothing is made."""
    with pytest.raises(ConfigurationError, match="file_mode"):
        await create_extended_store("sqlite:///a.db", file_mode=mode)
    assert os.listdir() == []


async def test_a_mode_in_a_url() -> None:
    """The option works where all options work."""
    async with create_extended_store("sqlite:///a.db?file_mode=0640") as store:
        await store.save_messages("a", samples.messages(1))
    assert stat.S_IMODE(Path("a.db").stat().st_mode) == 0o640


# --- names ------------------------------------------------------------------------------------------------------------


async def test_one_file_has_one_lock_file_whatever_it_is_called(tmp_path: Path) -> None:
    """By a link to it or to its folder, with slashes twice, dots or from another directory: the lock is the same."""
    Path("real/deep").mkdir(parents=True)
    async with SqliteStore("real/a.db") as store:
        await store.save_messages("a", samples.messages(1))
    Path("file.db").symlink_to("real/a.db")
    Path("folder").symlink_to("real")
    Path("twice.db").symlink_to("folder/../file.db")
    names = ["real/a.db", "real//a.db", f"/{tmp_path}/real/a.db", "real/deep/../a.db", "file.db", "folder/a.db"]
    Path("deep").symlink_to("real/deep")
    names += ["twice.db", "deep/../a.db", str(tmp_path / "folder" / "a.db")]
    with driver.WriteGuard(SqliteOptions(db_path="real/a.db")).held():
        for name in names:
            other = driver.WriteGuard(SqliteOptions(db_path=name, busy_timeout_ms=1))
            with pytest.raises(StoreBusyError), other.held():
                pass
            other.close()
    for name in names:
        async with SqliteStore(name) as store:
            assert await store.load_messages("a") == samples.messages(1)
    made = sorted(str(path) for path in Path().rglob("*") if path.is_file() and not path.is_symlink())
    assert made == ["real/a.db", "real/a.db-kode-lock"]


async def test_a_file_with_two_names_is_refused() -> None:
    """SQLite keeps a log for each name of a file, so that two stores would damage it; the error says how many."""
    async with SqliteStore("a.db") as store:
        await store.save_messages("a", samples.messages(1))
    os.link("a.db", "b.db")
    before = Path("a.db").read_bytes()
    for name in ("a.db", "b.db"):
        with pytest.raises(ConfigurationError, match=rf"{name} has 2 names \(hard links\).* -samefile .*{name}"):
            await SqliteStore(name).open()
    assert Path("a.db").read_bytes() == before
    Path("b.db").unlink()
    async with SqliteStore("a.db") as store:
        assert await store.load_messages("a") == samples.messages(1)


# --- what the system or the library does not have ---------------------------------------------------------------------


async def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that the store must lie elsewhere, and nothing is written without the lock."""

    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    async with SqliteStore("a.db") as store:
        await store.save_messages("a", samples.messages(1))
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", refuse)
            with pytest.raises(
                StoreUnavailableError, match=r"-kode-lock: this file system keeps no locks .* local disk"
            ):
                await store.save_messages("a", samples.messages(2))
            with pytest.raises(StoreUnavailableError, match="keeps no locks"):
                await create_extended_store("json:///files")
        assert await store.load_messages("a") == samples.messages(1)


async def test_a_build_that_takes_few_variables() -> None:
    """A statement never has more variables than this SQLite takes, of old builds 999."""
    async with SqliteStore("a.db") as store:
        engine = store._context.engine
        assert isinstance(engine, SqliteEngine)
        await engine._writer.run(lambda db: db.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999))
        calls = [samples.tool_call(n) for n in range(700)]
        await store.save_turn("a", messages=samples.messages(700), tool_calls=calls)
        await store.append_events("a", [samples.event(n) for n in range(700)])
        assert await store.load_messages("a") == samples.messages(700)
        assert await store.load_tool_call_records("a") == calls
        assert len([found async for found in store.read_events("a")]) == 700


@pytest.mark.parametrize("version", [(3, 31, 1), (3, 34, 1)])
async def test_an_sqlite_that_is_too_old(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]) -> None:
    """It is refused when the store is opened, with both versions, and makes nothing."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    told = rf"has SQLite {'.'.join(map(str, version))}, and kode-sqlite needs 3\.35\.0 or newer"
    with pytest.raises(ConfigurationError, match=told):
        await SqliteStore("a.db").open()
    assert os.listdir() == []
    driver.see_version((3, 35, 0))


async def test_a_sync_reaches_the_device() -> None:
    """The setting that macOS needs for it is on, for both kinds of durability."""
    for durability in ("full", "fast"):
        async with SqliteStore(f"{durability}.db", durability=durability) as store:
            engine = store._context.engine
            assert isinstance(engine, SqliteEngine)
            assert await engine._writer.run(lambda db: db.execute("PRAGMA fullfsync").fetchone()) == (1,)


@pytest.mark.parametrize("millis", [2**31, 2**40, 2**70, -1])
async def test_a_time_that_sqlite_cannot_wait(millis: int) -> None:
    """It is refused rather than taken for none at all."""
    with pytest.raises(ConfigurationError, match="busy_timeout_ms"):
        await create_extended_store("sqlite:///a.db", busy_timeout_ms=millis)
    async with SqliteStore("a.db", busy_timeout_ms=2**31 - 1) as store:
        await store.save_messages("a", samples.messages(1))


# --- backups to one target --------------------------------------------------------------------------------------------

_COPY = """
import asyncio, json, sys
from kode_core import KodeError, create_extended_store

async def main():
    url, options, target = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    async with create_extended_store(url, **options) as store:
        print("ready", flush=True)
        for line in sys.stdin:
            try:
                await store.backup(target + line.strip())
            except KodeError as exc:
                print(type(exc).__name__, flush=True)
            else:
                print("made", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["sqlite", "hybrid", "json"])
async def test_backups_of_several_processes_to_one_target(kind: str) -> None:
    """One wins, the others are told that something is there; the copy is whole, and nothing of the others stays."""
    url = "json:///store" if kind == "json" else "sqlite:///store.db"
    options = {"file_store_base_dir": "files"} if kind == "hybrid" else {}
    async with create_extended_store(url, **options) as store:
        for n in range(30):
            await store.save_turn(f"a{n}", append=samples.messages(20), todos=TodoSnapshot())
    command = [sys.executable, "-c", _COPY, url, json.dumps(options), "copy"]
    several = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(3)]
    try:
        assert [each.stdout and each.stdout.readline() for each in several] == ["ready\n"] * 3
        for n in range(8):
            for each in several:
                assert each.stdin
                each.stdin.write(f"{n}\n")
                each.stdin.flush()
            told = sorted(each.stdout.readline().strip() for each in several if each.stdout)
            assert told == ["InvalidArgumentError", "InvalidArgumentError", "made"]
            copied = {"file_store_base_dir": f"copy{n}.files"} if kind == "hybrid" else {}
            async with create_extended_store(f"{url.split(':')[0]}:///copy{n}", **copied) as copy:
                assert (await copy.check_consistency()).agents_checked == 30
    finally:
        for each in several:
            each.communicate(timeout=60)
    assert not list(Path().rglob("*.part*"))


async def test_backups_where_files_have_one_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without hard links a backup is made, and takes no place that somebody else took meanwhile."""

    def refuse(source: Any, target: Any, **_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def taken(source: Any, target: Any, **_: Any) -> None:
        Path(target).write_text("mine")
        refuse(source, target)

    async with SqliteStore("a.db") as store:
        await store.save_messages("a", samples.messages(1))
        monkeypatch.setattr(os, "link", refuse)
        await store.backup("one.db")
        monkeypatch.setattr(os, "link", taken)
        with pytest.raises(InvalidArgumentError, match=r"two\.db exists already"):
            await store.backup("two.db")
    assert Path("two.db").read_text() == "mine"
    async with SqliteStore("one.db") as copy:
        assert await copy.load_messages("a") == samples.messages(1)
