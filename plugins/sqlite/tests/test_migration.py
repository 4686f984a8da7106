"""Databases of older versions become the present one in place, whoever opens them and whatever happens meanwhile.

``version_1.sql`` is the dump of a database that kode-sqlite wrote when its tables were of version 1.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from kode_conformance.values import samples
from kode_sqlite import SqliteStore, migrations
from kode_sqlite.schema import MIGRATIONS, SCHEMA_VERSION
from typer.testing import CliRunner

from kode_core import AgentInfo, ImageBlock, Message, StorageError, TextBlock, create_extended_store
from kode_core.cli.app import app
from kode_core.errors import SchemaVersionError, StoreBusyError
from plugins.sqlite.tests import large

VERSION_1: Final = Path(__file__).with_name("version_1.sql").read_text()
STEPS: Final = len(MIGRATIONS[1])
TABLES: Final = ("agents", "infos", "metadata", "messages", "tool_calls", "docs", "events")


@pytest.fixture
def old() -> sqlite3.Connection:
    """``a.db``, a database of version 1, and the same in memory, which stays as it is."""
    memory = sqlite3.connect(":memory:")
    memory.executescript(VERSION_1)
    with closing(sqlite3.connect("a.db")) as db:
        memory.backup(db)
        db.execute("PRAGMA journal_mode = WAL")
    return memory


def rows(db: sqlite3.Connection, old: sqlite3.Connection) -> dict[str, list[Any]]:
    """The columns that version 1 had."""
    found = {}
    for table in TABLES:
        columns = ", ".join(f'"{row[1]}"' for row in old.execute(f"PRAGMA table_info(kode_{table})"))
        found[table] = sorted(db.execute(f"SELECT {columns} FROM kode_{table}"), key=repr)
    return found


def see_whole(old: sqlite3.Connection, path: str = "a.db") -> None:
    """It is of this version, as if it had been made anew, and holds what it held."""
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(":memory:")) as new:
        for statement in migrations.sql():
            new.execute(statement)
        assert _tables(db) == _tables(new)
        meta = dict(db.execute("SELECT * FROM kode_meta"))
        assert meta == {"schema_version": SCHEMA_VERSION, "last_token": 1}
        assert rows(db, old) == rows(old, old)
        see_derived(db)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def _tables(db: sqlite3.Connection) -> dict[str, str]:
    made = db.execute("SELECT name, sql FROM sqlite_master WHERE name LIKE 'kode%'")
    return {name: " ".join(sql.split()) for name, sql in made}


def see_derived(db: sqlite3.Connection) -> None:
    """Triggers keep what the rows say."""
    types = {
        (kind, created, agent_id, position)
        for agent_id, position, created, kinds in db.execute(
            "SELECT agent_id, position, created_at, content_types FROM kode_messages"
        )
        for kind in kinds[1:-1].split("\n")
        if kinds != "\n" and kind not in ("text", "tool_use", "tool_result")
    }
    assert set(db.execute("SELECT type, created_at, agent_id, position FROM kode_message_types")) == types
    counts = "SELECT count(created_at), sum(message_count), sum(tool_call_count) FROM kode_agents"
    kept = "SELECT agents, messages, tool_calls FROM kode_totals"
    assert db.execute(kept).fetchall() == db.execute(counts).fetchall()
    ages = "SELECT m.created_at IS a.created_at FROM kode_metadata m LEFT JOIN kode_agents a USING (agent_id)"
    assert {same for (same,) in db.execute(ages)} <= {1}


async def test_a_database_of_version_1_is_opened(old: sqlite3.Connection) -> None:
    """It becomes one of this version and keeps every row; queries that have new indexes find what is there."""
    async with SqliteStore("a.db") as store:
        see_whole(old)
        assert await store.list() == [f"agt-{i}" for i in range(6)]
        for agent_id in (*await store.list(), "no-info"):
            bodies = old.execute("SELECT body FROM kode_messages WHERE agent_id = ? ORDER BY position", (agent_id,))
            texts = [json.loads(body)["content"][0].get("text") for (body,) in bodies]
            messages = await store.load_messages(agent_id)
            assert [getattr(message.content[0], "text", None) for message in messages] == texts
        events = [event async for event in store.read_events("agt-3", after_offset=0)]
        offsets = old.execute('SELECT "offset" FROM kode_events WHERE agent_id = \'agt-3\' ORDER BY "offset"')
        assert [event.offset for event in events] == [offset for (offset,) in offsets]
        assert len([event async for event in store.read_events("agt-3", channel="monitor")]) == 3
        assert [m.agent_id for m in await store.query_messages(role="system")] == ["agt-2"]
        assert [m.agent_id for m in await store.query_messages(content_type="image")] == ["agt-1"]
        assert [m.agent_id for m in await store.query_messages(content_type="reasoning")] == ["agt-3"]
        assert {c.agent_id for c in await store.query_tool_calls(state="PENDING")} == {"agt-0", "agt-1"}
        assert [c.agent_id for c in await store.query_tool_calls(has_approval=True)] == ["agt-4"]
        gold = await store.query_sessions(metadata={"plan": "gold"})
        assert [session.agent_id for session in gold] == ["agt-5", "agt-3", "agt-1"]
        assert [s.agent_id for s in await store.query_sessions(sort_by="message_count", limit=2)] == ["agt-3", "agt-1"]
        assert (await store.get_metrics()).storage.total_messages == 81
        assert (await store.check_consistency()).issues == ()


async def test_a_database_of_version_1_takes_writes(old: sqlite3.Connection) -> None:
    """Writes of every kind go on where it ended, and what is derived follows them."""
    async with SqliteStore("a.db") as store:
        image = Message("user", [TextBlock(text="x"), ImageBlock(url="https://example.org/b.png")])
        await store.append_messages("agt-0", [image])
        await store.save_messages("agt-1", [image, image, Message.user("x")])
        await store.save_messages("agt-3", (await store.load_messages("agt-3"))[:5])
        await store.save_info(
            "agt-2", AgentInfo(agent_id="agt-2", template_id="t", created_at=5, metadata={"plan": "gold"})
        )
        await store.save_info(
            "no-info", AgentInfo(agent_id="no-info", template_id="t", created_at=7, metadata={"n": 0})
        )
        (fork,) = await store.batch_fork("agt-1", 1)
        (last,) = old.execute('SELECT max("offset") FROM kode_events').fetchone()
        assert await store.append_event("agt-4", samples.event(99)) == last + 1
        await store.delete("agt-5")
        assert {m.agent_id for m in await store.query_messages(content_type="image")} == {"agt-0", "agt-1", fork}
        (oldest,) = await store.query_sessions(metadata={"plan": "gold"}, order="asc", limit=1)
        assert oldest.agent_id == "agt-2"
        assert (await store.get_metrics()).storage.total_agents == 7
    with closing(sqlite3.connect("a.db")) as db:
        see_derived(db)


ODD_TYPES: Final = (
    "\n",
    "\n\n",
    "\n\n\n",
    "\ntext\n\n",
    "\na\na\ntext\na\n",
    '\n"\n\\005c\nn\n',
    "\n'\tx\n\u2028\né😀\n",
)


async def test_every_type_of_content_is_derived(old: sqlite3.Connection) -> None:
    """Also one that is empty, that comes twice, or that JSON would escape; by the migration and afterwards."""
    put = (
        "INSERT INTO kode_messages (agent_id, position, created_at, role, content_types, body, digest)"
        " VALUES (?, ?, 7, 'user', ?, '{}', x'00')"
    )
    with closing(sqlite3.connect("a.db", isolation_level=None)) as db:
        for agent_id in ("before", "after"):
            db.executemany(put, [(agent_id, i, types) for i, types in enumerate(ODD_TYPES)])
            async with SqliteStore("a.db"):
                see_derived(db)
        for types in ODD_TYPES:
            db.execute("UPDATE kode_messages SET content_types = ?, created_at = 8 WHERE agent_id = 'after'", (types,))
            see_derived(db)
        db.execute("DELETE FROM kode_messages WHERE agent_id IN ('before', 'after')")
        see_derived(db)
        assert db.execute("SELECT count(*) FROM kode_message_types").fetchone() == (2,)


async def test_a_program_of_version_1_may_go_on_writing(old: sqlite3.Connection) -> None:
    """One that had the database open before it was migrated writes with its old statements; nothing gets lost."""
    async with SqliteStore("a.db") as store:
        with closing(sqlite3.connect("a.db")) as db:
            db.execute(
                "INSERT INTO kode_agents (agent_id, message_version, message_count, tool_call_version,"
                " tool_call_count, updated_at, last_op) VALUES ('new', 1, 1, 0, 0, 5, '') ON CONFLICT (agent_id)"
                " DO UPDATE SET message_count = excluded.message_count"
            )
            db.execute("UPDATE kode_agents SET template_id = 't', created_at = 6 WHERE agent_id = 'new'")
            db.execute("INSERT INTO kode_metadata (agent_id, key, value) VALUES ('new', 'plan', '\"gold\"')")
            put = (
                "INSERT INTO kode_messages (agent_id, position, created_at, role, content_types, body, digest)"
                " VALUES ('new', 0, 7, 'user', char(10) || ? || char(10), '{}', x'00') ON CONFLICT (agent_id, position)"
                " DO UPDATE SET created_at = excluded.created_at, content_types = excluded.content_types"
            )
            for kind in ("text", "image", "text\nvideo", "text"):
                db.execute(put, (kind,))
                see_derived(db)
            db.execute('SELECT "offset" FROM kode_events INDEXED BY kode_events_seq WHERE agent_id = ?', ("new",))
            db.execute("UPDATE kode_agents SET created_at = 8 WHERE agent_id = 'new'")
            db.commit()
            see_derived(db)
        assert (await store.get_metrics()).storage.total_agents == 7


_CHILD: Final = """
import asyncio, os, signal, sys, time
from pathlib import Path
from kode_sqlite import SqliteStore, migrations

how, at = sys.argv[1], int(sys.argv[2])
real, done = migrations._do, 0

def do(db, step):
    global done
    real(db, step)
    done += 1
    if done == at and how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if done == at and how == "wait":
        print("waits", flush=True)
        sys.stdin.readline()
    if how == "count":
        print(step[0][:40], flush=True)

migrations._do = do

async def main():
    async with SqliteStore("a.db", busy_timeout_ms=50) as store:
        print("opened", len(await store.list()), flush=True)

asyncio.run(main())
"""


def child(how: str, at: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CHILD, how, str(at)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("at", [2, 4, STEPS // 2, STEPS + 1])
async def test_a_migration_that_was_killed_goes_on(old: sqlite3.Connection, at: int, caplog: Any) -> None:
    """A kill before the commit of a step undoes that step; the next opening goes on with it."""
    with child("kill", at) as killed:
        assert killed.wait(60) == -signal.SIGKILL
    with closing(sqlite3.connect("a.db")) as db:
        assert migrations.migration_progress(db, "a.db") == (1, at - 2)
        assert rows(db, old) == rows(old, old)
    caplog.set_level(logging.INFO, "kode_sqlite")
    async with SqliteStore("a.db") as store:
        assert len(await store.list()) == 6
    told = [record.getMessage().partition(": ")[2] for record in caplog.records if "to schema 2" in record.getMessage()]
    assert told == [f"step {i} of {STEPS} to schema 2" for i in range(at - 1, STEPS + 1)]
    see_whole(old)


async def test_processes_take_turns(old: sqlite3.Connection) -> None:
    """One that finds another migrating waits, longer than for any write, and gets no error."""
    with child("wait", 5) as first:
        assert first.stdout is not None and first.stdin is not None
        assert first.stdout.readline() == "waits\n"
        with child("count", 0) as second:
            assert second.stdout is not None
            await asyncio.sleep(1)
            assert second.poll() is None
            first.stdin.write("\n")
            first.stdin.flush()
            told = second.stdout.read().splitlines()
            assert second.wait(60) == 0
            assert told[-1] == "opened 6"
        assert first.stdout.read() == "opened 6\n"
        assert first.wait(60) == 0
    see_whole(old)


async def test_a_write_that_does_not_end_is_no_migration(old: sqlite3.Connection) -> None:
    """A transaction that is held open for another reason is waited for as any write is."""
    with closing(sqlite3.connect("a.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusyError):
            await SqliteStore("a.db", busy_timeout_ms=50).open()
        db.execute("ROLLBACK")
    async with SqliteStore("a.db"):
        see_whole(old)


async def test_a_migration_of_many_rows_is_interrupted() -> None:
    """An opening that is cancelled stops within a step, and the next one goes on with it."""
    with closing(sqlite3.connect("a.db")) as db:
        for statement in MIGRATIONS[0][0]:
            db.execute(statement)
        db.execute("CREATE TABLE kode_meta (key TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID")
        db.execute("INSERT INTO kode_meta VALUES ('schema_version', 1)")
        db.commit()
        large.fill(db)
        db.execute("PRAGMA journal_mode = WAL")

        async def open_it() -> None:
            await create_extended_store("sqlite:///a.db")

        opening = asyncio.ensure_future(open_it())
        while migrations.migration_progress(db, "a.db").step != 1:
            assert not opening.done()
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        place = migrations.migration_progress(db, "a.db")
        assert place.version == 1
        await asyncio.sleep(0.2)
        assert migrations.migration_progress(db, "a.db") == place
        store = SqliteStore("a.db")
        await store.open()
        assert migrations.migration_progress(db, "a.db") == (SCHEMA_VERSION, None)
        assert (await store.get_metrics()).storage.total_messages == large.MESSAGES
        await store.close()
        see_derived(db)


async def test_a_step_that_fails_is_undone(old: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is all or nothing: after one that failed the program of the version before still works."""
    async with SqliteStore("a.db"):
        pass
    broken = (("ALTER TABLE kode_agents ADD COLUMN colour TEXT", "UPDATE nonsense SET x = 1"),)
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", (*MIGRATIONS, broken))
        with pytest.raises(StorageError, match="nonsense"):
            await SqliteStore("a.db").open()
    async with SqliteStore("a.db") as store:
        assert len(await store.load_messages("agt-0")) == 13
    mended = (("ALTER TABLE kode_agents ADD COLUMN colour TEXT", "UPDATE kode_agents SET colour = 'red'"),)
    monkeypatch.setattr(migrations, "MIGRATIONS", (*MIGRATIONS, mended))
    for _ in range(2):
        async with SqliteStore("a.db") as store:
            with closing(sqlite3.connect("a.db")) as db:
                assert set(db.execute("SELECT colour FROM kode_agents")) == {("red",)}
                assert migrations.migration_progress(db, "a.db") == (SCHEMA_VERSION + 1, None)


async def test_a_newer_schema_is_refused() -> None:
    """Tables of a newer version are refused, with what to upgrade, and stay as they are."""
    async with SqliteStore("a.db") as store:
        await store.save_messages("a", samples.messages(3))
    with closing(sqlite3.connect("a.db")) as db:
        db.execute("UPDATE kode_meta SET value = 99 WHERE key = 'schema_version'")
        db.commit()
    told = f"has schema 99, and this kode-sqlite knows up to {SCHEMA_VERSION}: .*pip install --upgrade"
    with pytest.raises(SchemaVersionError, match=told):
        await SqliteStore("a.db").open()
    with pytest.raises(SchemaVersionError, match=told):
        migrations.script("a.db")
    with closing(sqlite3.connect("a.db")) as db:
        assert db.execute("SELECT count(*) FROM kode_messages").fetchone() == (3,)


def printed(path: str) -> str:
    done = CliRunner().invoke(app, ["schema", f"sqlite:///{Path(path).absolute()}", "--print"])
    assert done.exit_code == 0, done.output
    return done.output


async def test_the_schema_can_be_printed(old: sqlite3.Connection) -> None:
    """It is printed from the version that the database has, for those who may not let a program make tables."""
    whole = printed("none.db")
    assert "CREATE TABLE kode_agents" in whole
    assert not Path("none.db").exists()
    part = printed("a.db")
    assert "CREATE TABLE kode_agents" not in part
    assert "CREATE INDEX kode_events_agent" in part
    with child("kill", STEPS) as killed:
        assert killed.wait(60) == -signal.SIGKILL
    rest = printed("a.db")
    assert "CREATE TABLE kode_totals" not in rest
    assert "CREATE INDEX kode_events_agent" in rest
    for path, script in (("a.db", rest), ("b.db", whole)):
        with closing(sqlite3.connect(path)) as db:
            db.executescript(script)
    see_whole(old)
    async with SqliteStore("b.db") as store:
        assert await store.list() == []
    assert f"has schema {SCHEMA_VERSION}, which is the present one" in printed("a.db")
