"""Checkpoints of LangGraph's SQLite, read without LangGraph: what comes over, and what hostile files do not do."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kode_core import ConfigurationError, KodeError, create_extended_store
from kode_core.formats.importing import Imported, import_foreign
from kode_core.formats.langgraph import decoded, encoded, open_threads, value_of

FIXTURE = Path(__file__).parent / "data/langgraph/checkpoints.sql"
KODE = (sys.executable, "-m", "kode_core.cli")
Change = Callable[[sqlite3.Connection], Any]


def written(path: Path, change: Change | None = None) -> Path:
    """The database of the fixture, changed."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript(FIXTURE.read_text())
        if change is not None:
            change(db)
        db.commit()
    return path


async def imported(source: Path | str, store: Any = None, **how: Any) -> list[Imported]:
    async with open_threads(str(source)) as agents:
        return [one async for one in import_foreign(agents, store, **how)]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


async def test_the_newest_state_is_brought(tmp_path: Path) -> None:
    """Messages and tool calls with the times of the checkpoints that had them first; again nothing is written."""
    (tmp_path / "source").mkdir()
    path = written(tmp_path / "source" / "graph.db")
    before = digests(path.parent)
    async with create_extended_store("memory:") as store:
        fails, rome = await imported(path, store)
        assert (fails.agent_id, rome.agent_id) == ("langgraph:fails", "langgraph:rome")
        assert rome.counts == {"messages": 4, "toolCalls": 1} and rome.outcome == fails.outcome == "imported"
        assert {one.outcome for one in await imported(path, store)} == {"known"}
        messages = await store.load_messages("langgraph:rome")
        assert [message.role for message in messages] == ["user", "assistant", "user", "assistant"]
        assert messages[-1].text == "It is sunny. 🙂"
        about: Any = (messages[1].metadata or {})["langgraph"]
        assert about["id"] == "m2" and about["usage"]["total_tokens"] == 12
        times = [one.created_at async for one in store.read_messages("langgraph:rome")]
        assert times == sorted(times) and times[0] > 1_700_000_000_000 and times[-1] - times[0] < 60_000
        (call,) = await store.load_tool_call_records("langgraph:rome")
        assert (call.name, call.input, call.state, call.result) == ("weather", {"city": "Rome"}, "COMPLETED", "sunny")
        assert (call.created_at, call.completed_at) == (times[1], times[2])
        (failed,) = await store.load_tool_call_records("langgraph:fails")
        assert (failed.state, failed.error) == ("FAILED", "sunny")
        info = await store.load_info("langgraph:rome")
        assert info is not None and info.metadata == {"threadId": "rome"} and info.created_at <= times[0]
    assert digests(path.parent) == before


@pytest.mark.parametrize("mode", ["wal", "delete"])
async def test_a_killed_writer_leaves_its_files(mode: str, tmp_path: Path) -> None:
    """A log is read; a transaction that was half written is rolled back in a copy. Not a byte of either changes."""
    folder = tmp_path / "source"
    folder.mkdir()
    path = written(tmp_path / "graph.db")
    code = (
        "import os, shutil, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        f"db.execute('PRAGMA journal_mode = {mode}').fetchall()\n"
        "db.execute('PRAGMA cache_size = 1'); db.execute('PRAGMA cache_spill = 1')\n"
        "db.execute('BEGIN')\n"
        "db.execute(\"UPDATE checkpoints SET thread_id = thread_id || 'x'\")\n"
        f"{'db.execute(chr(67) + chr(79) + chr(77) + chr(77) + chr(73) + chr(84))' if mode == 'wal' else ''}\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    for name in ("graph.db", "graph.db-wal", "graph.db-journal"):
        if (tmp_path / name).exists():
            (folder / name).write_bytes((tmp_path / name).read_bytes())
    before = digests(folder)
    assert len(before) == 2
    found = [one.agent_id for one in await imported(folder / "graph.db")]
    end = "x" if mode == "wal" else ""
    assert found == [f"langgraph:fails{end}", f"langgraph:rome{end}"] and digests(folder) == before


def _newest(db: sqlite3.Connection, kind: str, data: bytes) -> None:
    db.execute(
        "UPDATE checkpoints SET type = ?, checkpoint = ? WHERE checkpoint_id ="
        " (SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = 'rome')",
        (kind, data),
    )


DEEP = b"\x91" * 100_000 + b"\xc0"
PICKLE = b"cposix\nsystem\n(S'touch sprung'\ntR."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda db: _newest(db, "pickle", PICKLE), "it is a pickle, which could run any code and is never loaded"),
        (lambda db: _newest(db, "msgpack+aes", b"x"), "it is encrypted"),
        (lambda db: _newest(db, "msgpack", b"\xc1"), "it is no msgpack"),
        (lambda db: _newest(db, "msgpack", DEEP), "recursion"),
        (lambda db: _newest(db, "msgpack", b"\xdd\xff\xff\xff\xff"), "it is no msgpack"),
        (lambda db: _newest(db, "msgpack", b"\x90"), "it is no checkpoint"),
        (lambda db: _newest(db, "msgpack", b"\x80"), "it has no channels"),
        (lambda db: _newest(db, "later", b"\x80"), "the kind 'later' is not known"),
        (lambda db: _newest(db, "json", b"{"), "Expecting property name"),
        (lambda db: _newest(db, "json", b'{"a": NaN}'), "NaN is no JSON"),
        (lambda db: db.execute("UPDATE checkpoints SET metadata = '[' WHERE thread_id = 'rome'"), "Expecting value"),
        (lambda db: db.execute("UPDATE checkpoints SET checkpoint = 'text' WHERE thread_id = 'rome'"), "no bytes but"),
        (lambda db: db.execute("UPDATE checkpoints SET type = NULL WHERE thread_id = 'rome'"), "it has no kind"),
    ],
)
async def test_damage_is_named(change: Change, said: str, tmp_path: Path) -> None:
    """The thread is refused, the other one comes over, and the rest of the thread with skip_damaged."""
    path = written(tmp_path / "graph.db", change)
    async with create_extended_store("memory:") as store:
        fails, rome = await imported(path, store)
        assert (fails.outcome, rome.outcome) == ("imported", "refused")
        assert any(said in remark for remark in rome.damaged), rome.damaged
        assert all(len(remark) <= 300 for remark in rome.damaged)
        again = await imported(path, store, skip_damaged=True)
        is_lost = len(rome.damaged) > 1  # nothing of it can be read
        assert [one.outcome for one in again] == ["known", "refused" if is_lost else "imported"]
    assert not (tmp_path / "sprung").exists() and not Path("sprung").exists()


async def test_ids_that_are_no_text(tmp_path: Path) -> None:
    """They are refused one by one, whatever is asked."""

    def change(db: sqlite3.Connection) -> None:
        db.execute("UPDATE checkpoints SET thread_id = x'ff00' WHERE thread_id = 'rome'")
        db.execute("INSERT INTO checkpoints SELECT CAST(x'ff' AS TEXT), '', 'x', NULL, 'null', x'', '' LIMIT 1")

    path = written(tmp_path / "graph.db", change)
    async with create_extended_store("memory:") as store:
        found = await imported(path, store, skip_damaged=True)
        assert sorted(one.outcome for one in found) == ["imported", "refused", "refused"]


async def test_random_damage_ends_no_import(tmp_path: Path) -> None:
    """A changed byte gives other messages or damage that is named, and never another error."""
    rng = random.Random(11)
    path = written(tmp_path / "graph.db")
    with closing(sqlite3.connect(path)) as db:
        (raw,) = db.execute("SELECT checkpoint FROM checkpoints ORDER BY length(checkpoint) DESC LIMIT 1").fetchone()
    with closing(sqlite3.connect(path)) as db:
        for _ in range(200):
            spoiled = bytearray(raw)
            for _ in range(rng.choice((1, 1, 3, 20))):
                spoiled[rng.randrange(len(raw))] = rng.randrange(256)
            _newest(db, "msgpack", bytes(spoiled[: rng.choice((len(raw), rng.randrange(len(raw))))]))
            db.commit()
            async with create_extended_store("memory:") as store:
                found = await imported(path, store, skip_damaged=True)
                assert len(found) == 2 and found[0].outcome == "imported"


def _only_other_tables(db: sqlite3.Connection) -> None:
    db.executescript("DROP TABLE checkpoints; CREATE TABLE notes (x)")


def _without(column: str) -> Change:
    return lambda db: db.execute(f"ALTER TABLE checkpoints RENAME COLUMN {column} TO other")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_only_other_tables, "has no table checkpoints of LangGraph's savers"),
        (lambda db: db.execute("DROP TABLE writes"), "has no table writes"),
        (_without("metadata"), "has no column metadata"),
        (_without("checkpoint_id"), "ShallowPostgresSaver"),
        (lambda db: db.execute("CREATE TABLE kode_meta (x)"), "has a store of kode_core in the same file"),
    ],
)
async def test_other_databases_are_refused(change: Change, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=said):
        await imported(written(tmp_path / "graph.db", change))


async def test_files_that_are_no_databases(tmp_path: Path) -> None:
    """Nothing, text, half of a database, and places that are not tables."""
    whole = written(tmp_path / "graph.db").read_bytes()
    (tmp_path / "text.db").write_text("x" * 5_000)
    (tmp_path / "empty.db").write_bytes(b"")
    (tmp_path / "half.db").write_bytes(whole[: len(whole) // 2])
    for name in ("none.db", "text.db", "empty.db", "."):
        with pytest.raises(ConfigurationError):
            await imported(tmp_path / name)
    with pytest.raises(ConfigurationError, match="the source is empty"):
        await imported("")
    with pytest.raises(ConfigurationError, match="are not read from memory"):
        await imported("memory://x")
    with pytest.raises(KodeError):
        await imported(tmp_path / "half.db")


def test_values_are_plain_and_come_back_byte_for_byte() -> None:
    """An object of any class is its bytes; the older JSON form has messages, too."""
    ext = msgspec.msgpack.Ext
    order = ext(2, msgspec.msgpack.encode(["os", "system", {"command": "touch sprung"}]))
    nested = msgspec.msgpack.encode({"a": [order, 1.5, None, b"\x00", 2**63], 3: ext(99, b"?")})
    value = decoded(nested)
    assert value["a"][0].plain() == {"command": "touch sprung"} and encoded(value) == nested
    said = value_of(
        "json",
        b'{"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "AIMessage"],'
        b' "kwargs": {"content": "hi", "type": "ai", "tool_calls": [1, {"id": "c"}]}}',
    )
    assert (said.type, said.content, said.tool_calls) == ("ai", "hi", [{"id": "c"}])
    other = value_of("json", b'{"lc": 1, "type": "constructor", "id": ["subprocess", "Popen"], "kwargs": {"x": 1}}')
    assert other.plain() == {"x": 1}
    with pytest.raises(ValueError, match="subprocess.Popen"):
        encoded([other])
    deep: Any = ext(0, b"\xc0")
    for _ in range(2_000):
        deep = ext(0, msgspec.msgpack.encode(["m", "n", deep]))
    with pytest.raises((ValueError, RecursionError)):
        decoded(msgspec.msgpack.encode(deep)).plain()


def many(path: Path, count: int) -> None:
    """The fixture's thread under many names."""

    def change(db: sqlite3.Connection) -> None:
        db.execute(
            "CREATE TEMP TABLE numbers AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
            f" LIMIT {count}) SELECT i FROM n"
        )
        db.execute(
            "INSERT INTO checkpoints SELECT printf('t%05d', i), checkpoint_ns, checkpoint_id, parent_checkpoint_id,"
            " type, checkpoint, metadata FROM numbers, checkpoints WHERE thread_id = 'rome'"
        )
        db.execute("DELETE FROM checkpoints WHERE thread_id IN ('rome', 'fails')")

    written(path, change)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
async def test_ten_thousand_threads_in_flat_memory(tmp_path: Path) -> None:
    """They take no more memory than the first thousand, and other tasks go on meanwhile."""
    many(tmp_path / "graph.db", 10_000)
    turns, sizes = 0, list[int]()

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    other = asyncio.create_task(others())
    async with create_extended_store(f"sqlite:///{tmp_path / 'agents.db'}", durability="fast") as store:
        async with open_threads(str(tmp_path / "graph.db")) as agents:
            try:
                async for one in import_foreign(agents, store):
                    assert (one.outcome, one.counts["messages"]) == ("imported", 4)
                    sizes.append(_resident())
            finally:
                other.cancel()
        assert turns > 10
        assert await store.count_sessions() == len(sizes) == 10_000
    assert max(sizes[5_000:]) < max(sizes[:2_000]) + 20_000_000  # the notes of the store on its last agents


def _resident() -> int:
    """The bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_a_killed_import_goes_on(tmp_path: Path) -> None:
    """Each thread is there whole or not at all, and the last run brings the rest, once."""
    many(tmp_path / "graph.db", 60)
    command = (*KODE, "import", "--from", "langgraph", str(tmp_path / "graph.db"), "--store", "sqlite:///new.db")
    rng, counts = random.Random(7), []
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
        while not (tmp_path / "new.db").exists() and process.poll() is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        process.wait()
        counts.append(await _whole(tmp_path))
    assert counts == sorted(counts)
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, cwd=tmp_path, env=os.environ)
    assert done.returncode == 0 and done.stdout.startswith("imported "), done.stdout + done.stderr
    assert await _whole(tmp_path) == 60
    again = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, cwd=tmp_path)
    assert "60 agents were there already" in again.stdout


async def _whole(folder: Path) -> int:
    async with create_extended_store(f"sqlite:///{folder}/new.db") as store:
        found = await store.list()
        for agent_id in found:
            assert len(await store.load_messages(agent_id)) == 4
        return len(found)
