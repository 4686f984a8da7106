"""A log that a crash left: damage in it loses no acknowledged write in silence, and no sound one is refused."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples
from kode_sqlite import SqliteStore
from kode_sqlite.log import see_log

from kode_core import CorruptRecordError

HEADER, FRAME = 32, 24 + 4096
OLD, NEW = "old", "new"


async def crashed(path: str, count: int, *, size: int = 0) -> list[int]:
    """Write events one after the other into a copy that is as a killed process leaves it; the log's size after each."""
    ends = []
    async with SqliteStore("live.db") as store:
        for n in range(count + 1):
            await store.append_event("a", samples.event(n, text="x" * size))
            ends.append(Path("live.db-wal").stat().st_size)
        for end in ("", "-wal"):
            shutil.copy(f"live.db{end}", f"{path}{end}")
    Path("live.db").unlink()
    return ends


async def events(path: str, **options: Any) -> list[int]:
    async with SqliteStore(path, **options) as store:
        return [event.bookmark.seq async for event in store.read_events("a")]


def change(path: str, at: int, to: Callable[[int], int]) -> None:
    data = bytearray(Path(path).read_bytes())
    data[at] = to(data[at])
    Path(path).write_bytes(data)


async def test_a_log_that_a_killed_process_left() -> None:
    """It is recovered whole, and cut off anywhere as far as it goes."""
    ends = await crashed("a.db", 6)
    log = Path("a.db-wal").read_bytes()
    for end in range(HEADER, len(log), 3333):
        shutil.copy("a.db", "b.db")
        Path("b.db-wal").write_bytes(log[:end])
        found = await events("b.db")
        assert found == list(range(len(found)))
        assert len(found) >= sum(e <= end for e in ends)
        Path("b.db").unlink()
    assert await events("a.db") == list(range(7))


FIELDS = {
    "magic of the log": 0,
    "size of a page": 9,
    "salt of the log": 17,
    "checksum of the log": 30,
    "page number": HEADER + 3 * FRAME + 2,
    "size after the commit": HEADER + 3 * FRAME + 7,
    "salt": HEADER + 3 * FRAME + 8,
    "checksum": HEADER + 3 * FRAME + 23,
    "first byte of a page": HEADER + 3 * FRAME + 24,
    "last byte of a page": HEADER + 4 * FRAME - 1,
}


@pytest.mark.parametrize("field", FIELDS)
async def test_damage_with_commits_behind_it(field: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused, again and again, and nothing is changed; with durability=fast the store goes on without them."""
    await crashed("a.db", 6)
    change("a.db-wal", FIELDS[field], lambda byte: byte ^ 0x10)
    before = Path("a.db").read_bytes(), Path("a.db-wal").read_bytes()
    for _ in range(2):
        with pytest.raises(CorruptRecordError, match=r"commits are behind it\. SQLite would drop them") as told:
            await events("a.db")
        assert "a.db-wal" in told.value.record
    assert (Path("a.db").read_bytes(), Path("a.db-wal").read_bytes()) == before
    with caplog.at_level(logging.WARNING):
        found = await events("a.db", durability="fast")
    assert found == list(range(len(found)))
    assert len(found) < 7
    assert any("They are lost" in record.message for record in caplog.records)
    assert await events("a.db") == found


async def test_damage_of_many_frames() -> None:
    """A part of the log that is zero, or another part of it, as a device returns it."""
    await crashed("a.db", 30)
    log = Path("a.db-wal").read_bytes()
    for start, count in ((0, 1), (0, 4096), (8192, 16384), (12_288, 512)):
        for fill in (bytes(count), log[40_000 : 40_000 + count]):
            Path("a.db-wal").write_bytes(log[:start] + fill + log[start + count :])
            with pytest.raises(CorruptRecordError):
                await events("a.db")
    Path("a.db-wal").write_bytes(log)
    assert await events("a.db") == list(range(31))


async def test_a_database_that_was_cut_to_nothing() -> None:
    """SQLite takes it for new, and removes the log next to it."""
    await crashed("a.db", 3)
    Path("a.db").write_bytes(b"")
    with pytest.raises(CorruptRecordError, match=r"the database next to it is empty, and it has \d commits"):
        await events("a.db")
    assert Path("a.db-wal").stat().st_size


@pytest.mark.parametrize("seed", range(4))
async def test_the_power_goes_again_and_again(seed: int) -> None:
    """The sectors of the last commit reach the disk or do not, one by one, and what is left of it stays behind the
    next ones: no acknowledged write is lost, and no log is refused.
    """
    rng = random.Random(seed)
    acknowledged, torn = 0, 0
    async with SqliteStore("a.db") as store:
        await store.append_event("a", samples.event(0))
    for _ in range(25):
        log = Path("a.db-wal")
        shutil.copy("a.db", "c.db")
        if log.exists():
            shutil.copy("a.db-wal", "c.db-wal")
        async with SqliteStore("a.db") as store:
            found = [event.bookmark.seq async for event in store.read_events("a")]
            assert found == list(range(len(found)))
            assert len(found) in (acknowledged + 1, acknowledged + 2)
            torn += len(found) == acknowledged + 1
            acknowledged = len(found) - 1
            for _ in range(rng.randint(0, 3)):
                acknowledged += 1
                await store.append_event("a", samples.event(acknowledged, text="x" * rng.randrange(20_000)))
            synced = log.read_bytes() if log.exists() else b""
            await store.append_event("a", samples.event(acknowledged + 1, text="y" * rng.randrange(30_000)))
            written = log.read_bytes()
            database = Path("a.db").read_bytes()
        kept = bytearray(synced.ljust(len(written), b"\0"))
        for at in range(0, len(written), 4096):
            if rng.random() < 0.7:
                kept[at : at + 4096] = written[at : at + 4096]
        Path("a.db").write_bytes(database)
        log.write_bytes(bytes(kept).rstrip(b"\0") if rng.random() < 0.3 else bytes(kept))
    assert torn > 3


WRITER = """
import asyncio, sys
from kode_conformance.values import samples
from kode_sqlite import SqliteStore
async def main():
    async with SqliteStore("a.db") as store:
        n = 0
        while True:
            n += 1
            await store.append_event("b", samples.event(n))
            if n == 20: print("begun", flush=True)
asyncio.run(main())
"""


async def test_a_log_that_others_use() -> None:
    """Where somebody uses the log nothing is looked at, since SQLite recovers nothing then."""
    await crashed("a.db", 6)
    shutil.copy("a.db-wal", "kept")
    with subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert await asyncio.to_thread(other.stdout.readline) == b"begun\n"
            for _ in range(30):
                assert await events("a.db") == list(range(7))
            change("a.db-wal", HEADER + 3 * FRAME + 2, lambda byte: byte ^ 0x10)
            see_log("a.db", is_durable=True)
        finally:
            other.kill()
    other.wait()
    with pytest.raises(CorruptRecordError):
        see_log("a.db", is_durable=True)


async def test_an_own_connection_keeps_its_locks() -> None:
    """A second store of the process opens no file that the first one has locks on."""
    async with SqliteStore("a.db") as one:
        await one.append_event("a", samples.event(0))
        assert await events("a.db") == [0]
        await one.append_event("a", samples.event(1))
        program = "from kode_sqlite.log import _is_used; print(_is_used('a.db'))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == "True\n"


PROBE = """
import sqlite3, sys
try:
    db = sqlite3.connect("a.db", timeout=0, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    print("begun")
except sqlite3.OperationalError as exc:
    print(exc)
"""


async def test_a_connection_of_the_application_keeps_its_locks() -> None:
    """A store is opened over a database that the program itself has open, and is writing to: the program's locks hold,
    and what it commits is there.
    """
    await crashed("a.db", 6)
    with closing(sqlite3.connect("a.db", isolation_level=None)) as own:
        own.execute("CREATE TABLE mine (n)")
        own.execute("BEGIN IMMEDIATE")
        own.executemany("INSERT INTO mine VALUES (?)", [(n,) for n in range(300)])
        see_log("a.db", is_durable=True)
        opening = asyncio.ensure_future(events("a.db", timeout_ms=300))
        await asyncio.gather(opening, return_exceptions=True)
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
        assert done.stdout == "database is locked\n"
        own.execute("COMMIT")
    with closing(sqlite3.connect("a.db")) as own:
        assert own.execute("SELECT count(*) FROM mine").fetchone() == (300,)
    assert await events("a.db") == list(range(7))


async def test_two_looks_do_not_take_each_other_for_users() -> None:
    """Of processes that open a damaged log at the same moment each refuses it."""
    await crashed("a.db", 6)
    change("a.db-wal", FIELDS["page number"], lambda byte: byte ^ 0x10)
    program = """
import sys
from kode_core import CorruptRecordError
from kode_sqlite.log import see_log
sys.stdin.readline()
for _ in range(300):
    try:
        see_log("a.db", is_durable=True)
    except CorruptRecordError:
        continue
    sys.exit("it was not refused")
"""
    looks = [subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) for _ in range(3)]
    ends = await asyncio.gather(*(asyncio.to_thread(look.communicate, b"\n") for look in looks))
    assert len(ends) == 3
    assert [look.returncode for look in looks] == [0, 0, 0]


async def test_a_look_that_is_given_up_ends() -> None:
    """Its thread reads no further frames."""
    await crashed("a.db", 6)
    change("a.db-wal", FIELDS["page number"], lambda byte: byte ^ 0x10)
    given_up = threading.Event()
    given_up.set()
    see_log("a.db", is_durable=True, given_up=given_up)


SPILLS = """
import asyncio, os, random, sqlite3
from kode_conformance.values import samples
from kode_core import Message
from kode_sqlite import SqliteStore

async def main():
    async with SqliteStore("a.db") as store:
        engine = store._context.engine
        many = [Message.user(f"{i} " + "x" * 2000) for i in range(200)]
        await store.save_messages("big", many)
        await store.save_messages("small", many[:40])
        await store.append_event("a", samples.event(0))
        await engine._writer.run(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
        names = random.Random(2)

        def fails(transaction):
            for _ in range(2000):  # pages are written, changed again, and written again
                transaction._copy("small", str(names.random()))
            raise ValueError("late")

        calls = [engine._write(lambda _: None), store.append_event("a", samples.event(1)), engine._write(fails)]
        print([type(end).__name__ for end in await asyncio.gather(*calls, return_exceptions=True)], flush=True)
        print(type((await asyncio.gather(engine._write(fails), return_exceptions=True))[0]).__name__, flush=True)
        for n in range(2, 8):
            await store.append_event("a", samples.event(n))
        os._exit(9)

asyncio.run(main())
"""


async def test_a_large_part_that_fails_takes_no_commit_along() -> None:
    """A part of a shared transaction that wrote more pages than the cache holds is rolled back; after a kill, all that
    was acknowledged before and after it is there.
    """
    done = subprocess.run([sys.executable, "-c", SPILLS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (9, "['NoneType', 'int', 'ValueError']\nValueError\n"), done.stderr
    assert await events("a.db") == list(range(8))


async def test_a_large_log_is_read_frame_by_frame() -> None:
    """The look needs room for a frame, however large the log is."""
    import tracemalloc

    await crashed("a.db", 40, size=400_000)
    assert Path("a.db-wal").stat().st_size > 10_000_000
    tracemalloc.start()
    try:
        see_log("a.db", is_durable=True)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
