"""What fails, is abandoned or belongs to others holds nobody up."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
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
    KodeError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    StoreBusyError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from kode_core.batch import Applied, Batch, DocKind, DocWrite, EventWrite, ListKind, ListWrite, MessageIndex, Row
from kode_core.batch import Doc as Document
from kode_core.codec import Body, digest
from tests.descriptors import needs_descriptors, open_descriptors

LARGEST = 100_000
ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
async def engine() -> AsyncIterator[SqliteEngine]:
    """An engine whose database holds no record of more than 100,000 bytes."""
    async with SqliteStore("a.db") as store:
        found = store._context.engine
        assert isinstance(found, SqliteEngine)
        await found._writer.run(lambda db: db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST))
        yield found


# --- reads that nobody waits for any more -----------------------------------------------------------------------------


async def abandoned(engine: SqliteEngine, times: int = 1) -> None:
    """Begin reads that never end, and give them up."""
    begun = [threading.Event() for _ in range(times)]

    def read(db: sqlite3.Connection, event: threading.Event) -> Any:
        event.set()
        db.execute("BEGIN")
        try:
            return db.execute(ENDLESS).fetchall()
        finally:
            db.execute("COMMIT")

    reads = [asyncio.ensure_future(engine._read(partial(read, event=event))) for event in begun]
    for event in begun:
        assert await asyncio.to_thread(event.wait, 20)
    for task in reads:
        task.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    assert all(task.cancelled() for task in reads)


async def test_abandoned_reads_end(engine: SqliteEngine) -> None:
    """Reads without an end that were cancelled on every connection end: others get their turn, and the store closes."""
    await engine.commit([append("a", "1")])
    for _ in range(3):
        await abandoned(engine, times=4)
        async with asyncio.timeout(20):
            found = await asyncio.gather(*(engine.rows("a", ListKind.MESSAGES) for _ in range(8)))
        assert [len(rows.rows) for rows in found] == [1] * 8
    await abandoned(engine, times=2)  # the fixture closes the store while these still end


async def test_a_connection_after_an_abandoned_read_sees_what_was_written_since(engine: SqliteEngine) -> None:
    """An interrupted read leaves no transaction open, which would show an old state for ever."""
    for n in range(1, 5):
        await abandoned(engine, times=4)
        await engine.commit([append("a", str(n))])
        found = await asyncio.gather(*(engine.rows("a", ListKind.MESSAGES) for _ in range(8)))
        assert [len(rows.rows) for rows in found] == [n] * 8


async def test_a_write_that_a_dying_loop_leaves_is_in_doubt(engine: SqliteEngine) -> None:
    """A transaction whose end nobody sees may have been committed: the error is no plain failure (OPS-10)."""
    commit = asyncio.ensure_future(engine.commit([append("a", "1")]))
    while engine._working is None:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    engine._working.cancel()
    assert [type(outcome) for outcome in await commit] == [OutcomeUnknownError]


async def test_no_other_read_is_interrupted(engine: SqliteEngine) -> None:
    """While reads are begun and given up at random moments, those that are not given up all succeed."""
    rng = random.Random(3)
    await engine.commit([append("a", str(n)) for n in range(50)])

    async def give_up() -> None:
        task = asyncio.ensure_future(engine.rows("a", ListKind.MESSAGES))
        await asyncio.sleep(rng.uniform(0, 0.002))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for _ in range(60):
        found, *_ = await asyncio.gather(engine.rows("a", ListKind.MESSAGES), *(give_up() for _ in range(5)))
        assert len(found.rows) == 50


# --- writes that fail -------------------------------------------------------------------------------------------------


def body(text: str) -> Body:
    return Body(text, digest(text.encode(errors="replace")))


def append(agent: str, op: str, text: str = "text", created_at: int = 1) -> Batch:
    row = Row(body(f'"{text}"'), created_at, MessageIndex("user", ("text",)))
    return Batch(agent_id=agent, op_id=f"{agent}{op}", now=1, messages=ListWrite(append=(row,)))


def event(agent: str, text: str, seq: int = 1) -> Batch:
    return Batch(agent_id=agent, op_id=agent, now=1, events=(EventWrite(seq, "progress", body(f'"{text}"')),))


def document(agent: str, text: str) -> Batch:
    doc = Document("", 1, body(f'"{text}"'))
    return Batch(agent_id=agent, op_id=agent, now=1, docs=(DocWrite(DocKind.TODOS, "", doc),))


TOO_LARGE = "y" * (2 * LARGEST)
BAD = {
    "an event that is too large": (event("bad", TOO_LARGE), PayloadTooLargeError),
    "a message that is too large": (append("bad", "1", TOO_LARGE), PayloadTooLargeError),
    "a document that is too large": (document("bad", TOO_LARGE), PayloadTooLargeError),
    "an integer that is too large": (append("bad", "1", created_at=2**70), PayloadTooLargeError),
    "an event's seq that is too large": (event("bad", "text", seq=2**70), PayloadTooLargeError),
    "a text with a lone surrogate": (append("bad", "1", "\ud800"), InvalidArgumentError),
    "an event with a lone surrogate": (event("bad", "\ud800"), InvalidArgumentError),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("at_once", [True, False], ids=["one call", "many calls"])
async def test_a_write_that_fails_fails_alone(engine: SqliteEngine, what: str, at_once: bool) -> None:
    """Of writes in one transaction, events among them, the one that SQLite refuses is refused, and nothing else."""
    bad, kind = BAD[what]
    batches = [event("good1", "a"), append("good2", "1"), bad, event("good3", "b"), document("good4", "c")]
    lease = asyncio.ensure_future(engine.acquire_lease("bad", "owner", 1000))
    if at_once:
        outcomes = list(await engine.commit(batches))
    else:
        outcomes = [outcome for [outcome] in await asyncio.gather(*(engine.commit([one]) for one in batches))]
    assert [type(outcome) for outcome in outcomes] == [Applied, Applied, kind, Applied, Applied]
    assert await lease == 1
    assert "yyy" not in str(outcomes[2])
    assert await engine.summary("bad") is None
    assert await engine.last_event("bad") is None
    assert len((await engine.rows("good2", ListKind.MESSAGES)).rows) == 1
    for agent, [offset] in (("good1", outcomes[0].offsets), ("good3", outcomes[3].offsets)):
        found = await engine.last_event(agent)
        assert found is not None
        assert found.offset == offset


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a version of SQLite that needs the lock file."""
    monkeypatch.setattr(driver, "needs_guard", lambda version: True)


@pytest.mark.usefixtures("guarded")
async def test_the_lock_file_has_the_mode_of_the_database() -> None:
    """Who may write the database may lock it, whoever made the lock file, and whatever their umask."""
    with closing(sqlite3.connect("a.db")) as db:
        db.execute("CREATE TABLE mine (x)")
    Path("a.db").chmod(0o664)
    umask = os.umask(0o077)
    try:
        async with SqliteStore("a.db") as store:
            await store.save_messages("a", samples.messages(1))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(Path("a.db-kode-lock").stat().st_mode) == 0o664


@pytest.mark.usefixtures("guarded")
async def test_a_lock_file_of_somebody_else(unprivileged: Path) -> None:
    """A lock file that may only be read does its work; with one that may not be read, the error says what to do."""
    path, lock = unprivileged / "a.db", unprivileged / "a.db-kode-lock"
    lock.touch(0o444)
    async with SqliteStore(str(path)) as store:
        await store.save_messages("a", samples.messages(1))
    lock.chmod(0)
    with pytest.raises(StoreReadOnlyError, match=r"a\.db-kode-lock: the lock file cannot be opened .* needs the right"):
        async with SqliteStore(str(path)) as store:
            await store.save_messages("a", samples.messages(1))


@pytest.mark.usefixtures("guarded")
async def test_a_lock_file_that_leads_nowhere() -> None:
    """A symbolic link to nothing in the place of the lock file is an error, and no search without an end."""
    Path("a.db-kode-lock").symlink_to("nowhere")
    with pytest.raises(StoreUnavailableError, match="the lock file cannot be opened"):
        await SqliteStore("a.db").open()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")
@pytest.mark.usefixtures("guarded")
async def test_a_lock_file_that_root_makes_belongs_to_whom_the_database_belongs_to() -> None:
    """A tool that root runs leaves nothing that the service cannot open any more."""
    async with SqliteStore("a.db") as store:
        await store.save_messages("a", samples.messages(1))
    Path("a.db-kode-lock").unlink()
    os.chown("a.db", 1234, 1234)
    async with SqliteStore("a.db") as store:
        await store.save_messages("a", samples.messages(2))
    assert Path("a.db-kode-lock").stat().st_uid == 1234


@pytest.mark.usefixtures("guarded")
async def test_a_symbolic_link_has_no_lock_file_of_its_own() -> None:
    """Who comes by a link waits for who comes by the name."""
    Path("real").mkdir()
    Path("link").mkdir()
    async with SqliteStore("real/a.db") as store:
        await store.save_messages("a", samples.messages(1))
    Path("link/b.db").symlink_to(Path("real/a.db").absolute())
    one, two = (driver.WriteGuard(SqliteOptions(db_path=p, busy_timeout_ms=50)) for p in ("real/a.db", "link/b.db"))
    with one.held(), pytest.raises(StoreBusyError), two.held():
        pass
    for guard in (one, two):
        guard.close()
    async with SqliteStore("link/b.db") as store:
        assert await store.load_messages("a") == samples.messages(1)
    assert [path.name for path in Path("link").iterdir()] == ["b.db"]


@needs_descriptors
@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("problem", ["version", "no database", "encoding", "busy"])
async def test_opens_that_fail_leave_no_descriptor(problem: str) -> None:
    """However often a program tries a database that cannot be opened."""
    held = None
    if problem == "version":
        async with SqliteStore("a.db") as store:
            await store.save_messages("a", [])
        with closing(sqlite3.connect("a.db")) as db:
            db.execute("UPDATE kode_meta SET value = 99 WHERE key = 'schema_version'")
            db.commit()
    elif problem == "no database":
        Path("a.db").write_text("something else " * 100)
    elif problem == "encoding":
        utf_16("a.db")
    else:
        held = sqlite3.connect("a.db")
        held.execute("PRAGMA journal_mode = WAL")
        held.execute("BEGIN IMMEDIATE")

    async def fail() -> None:
        with pytest.raises(KodeError):
            await SqliteStore("a.db", busy_timeout_ms=1).open()

    await fail()
    before = open_descriptors()
    for _ in range(30):
        await fail()
    assert not open_descriptors() - before
    if held is not None:
        held.close()


def utf_16(path: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA encoding = 'UTF-16le'")
        db.execute("CREATE TABLE mine (x)")
        db.commit()


async def test_a_database_in_utf_16_is_refused() -> None:
    """It would not keep U+FFFF, and order ids otherwise; the error says how to copy it, and the file stays as it is."""
    utf_16("a.db")
    before = Path("a.db").read_bytes()
    with pytest.raises(ConfigurationError, match=r"encoding is UTF-16le, .* sqlite3 .*a\.db \.dump \| sqlite3 NEW"):
        await SqliteStore("a.db").open()
    assert Path("a.db").read_bytes() == before


@pytest.mark.parametrize("path", ["~no-such-user/a.db", "a\0.db", "bad\udcff.db", f"{'x' * 300}.db", "data/a.db/b.db"])
async def test_a_name_that_is_for_no_file(path: str) -> None:
    """The error is one of this library's, and nothing is made."""
    Path("data").mkdir()
    Path("data/a.db").write_text("")
    with pytest.raises((ConfigurationError, OSError)) as caught:
        await SqliteStore(path).open()
    assert caught.type.__module__.startswith("kode_core")
    assert [entry.name for entry in Path().iterdir()] == ["data"]
