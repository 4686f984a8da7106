"""The index of texts of SQLite: what it finds, who keeps it, and how it is made and mended (QRY-12)."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from kode_conformance.registry import load_checks
from kode_conformance.running.runner import judge
from kode_conformance.settings import Settings, Tier
from kode_sqlite import texts
from kode_sqlite.queries import find_rows
from kode_sqlite.testing.harness import SqliteHarness

from kode_core import ConfigurationError, create_extended_store
from kode_core.authoring.texts import MOST_INDEXED
from kode_core.batch import FoundRow
from kode_core.model import Message, TextBlock
from kode_core.query import message_query
from plugins.sqlite.tests.plans import counted

WORDS = "the quick brown fox jumps over a lazy dog while flight seats are booked".split()  # noqa: SIM905


class IndexedHarness(SqliteHarness):
    """A store whose database has the index of texts."""

    async def open_with(self, handle: Any, **options: Any) -> Any:
        return await super().open_with(handle, text_index=True, **options)


@pytest.mark.parametrize(
    "check", [check for check in load_checks() if {"QRY-12", "QRY-13"} & {*check.clauses}], ids=lambda check: check.id
)
def test_checks_pass_with_the_index(check: Any) -> None:
    """Every check of searches for texts passes by the index, too."""
    result = judge(check, IndexedHarness(), Settings(Tier.QUICK, 1))
    assert result.status.value == "pass", result.message


def opened(path: Path, **options: Any) -> Any:
    return create_extended_store(type="sqlite", db_path=str(path), durability="fast", **options)


async def waiting(store: Any) -> int | None:
    found: int | None = (await store.get_metrics()).storage.texts_waiting
    return found


async def indexed(store: Any) -> None:
    """Wait until the index has all messages."""
    while await waiting(store):
        await asyncio.sleep(0.01)


async def positions(store: Any, text: str, **more: Any) -> list[int]:
    return [m.position for m in await store.query_messages(contains=text, order="asc", limit=10_000, **more)]


async def test_an_index_is_added_to_what_is_there(tmp_path: Path) -> None:
    """Messages of before are found at once and after they were indexed; a store that is closed meanwhile loses none,
    and the next one goes on. Without the option the index stays.
    """
    path = tmp_path / "agents.db"
    async with opened(path) as store:
        await store.append_messages("a", [Message.user(f"Message №{i}.") for i in range(3_000)])
        assert await waiting(store) is None
    async with opened(path, text_index=True) as store:
        assert await positions(store, "№77.") == [77]
        left = await waiting(store)
    assert left is not None
    async with opened(path) as store:
        await store.append_messages("a", [Message.user("one more №")])
        assert await positions(store, "№2999.") == [2999]
        assert await positions(store, "ONE MORE") == [3000]
        await indexed(store)
        assert await positions(store, "№ 2999.") == []
        assert await positions(store, "№1.") == [1]
        assert (await store.check_consistency()).consistent


async def test_the_index_knows_what_others_write(tmp_path: Path) -> None:
    """Rows that a program writes which knows nothing of the index, and a VACUUM, leave no wrong result."""
    path = tmp_path / "agents.db"
    async with opened(path, text_index=True) as store:
        await store.append_messages("a", [Message.user(f"first {i}") for i in range(20)])
        await store.append_messages("b", [Message.user(f"second {i}") for i in range(20)])
        await indexed(store)
        with closing(sqlite3.connect(path)) as db:
            db.execute("DELETE FROM kode_messages WHERE agent_id = 'a' AND position > 9")
            db.execute("UPDATE kode_messages SET agent_id = 'c' WHERE agent_id = 'b' AND position = 3")
            db.execute(
                "UPDATE kode_messages SET (body, digest) = (SELECT body, digest FROM kode_messages"
                " WHERE agent_id = 'a' AND position = 1) WHERE agent_id = 'a' AND position = 2"
            )
            db.commit()
            db.execute("VACUUM")
        assert await positions(store, "first 1") == [1, 2]
        assert await positions(store, "first 2") == []
        assert [(m.agent_id, m.position) for m in await store.query_messages(contains="second 3")] == [("c", 3)]
        await store.append_messages("d", [Message.user("a write, after which what was noted is indexed")])
        await indexed(store)
        assert await positions(store, "first 1") == [1, 2]


async def test_what_no_index_holds_is_found(tmp_path: Path) -> None:
    """Quotes, NUL, lone surrogates, long messages, and texts of one and two characters are found by the index, too."""
    said = ['say "or" NOT (x) *', "nul\0here", "lone \ud83d end", "x" * MOST_INDEXED + "far end", "ab", "ß", "🙂🙃 ok"]
    async with opened(tmp_path / "agents.db", text_index=True) as store:
        for text in said:
            await store.append_messages("a", [Message("user", [TextBlock(text)])])
        await indexed(store)
        for text, wanted in (
            *(('"OR"', [0]), ("not (X)", [0]), ("*", [0]), ("nul\0h", [1]), ("nul\ufffdh", []), ("\ud83d e", [2])),
            *(
                ("FAR end", [3]),
                ("a", [0, 3, 4]),
                ("ab", [4]),
                ("ss", [5]),
                ("🙂🙃 O", [6]),
                ("🙃🙂", []),
                ("xfar", [3]),
            ),
        ):
            assert await positions(store, text) == wanted, text
        assert (await store.check_consistency()).consistent


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM kode_texts WHERE position = 3",
        "UPDATE kode_texts SET text = 'other' WHERE position = 3",
        "INSERT INTO kode_texts (agent_id, position, state) VALUES ('a', 99, 0)",
        "INSERT INTO kode_text (kode_text, rowid, text) SELECT 'delete', id, text FROM kode_texts WHERE position = 3",
        "INSERT INTO kode_text (kode_text) VALUES ('delete-all')",
    ],
)
async def test_an_index_that_disagrees_is_noticed(tmp_path: Path, damage: str) -> None:
    """The check of a store finds entries that are missing, other, stray, or not in the index; a rebuild mends it."""
    path = tmp_path / "agents.db"
    async with opened(path, text_index=True) as store:
        await store.append_messages("a", [Message.user(f"message {i}") for i in range(10)])
        await indexed(store)
        assert (await store.check_consistency()).consistent
        with closing(sqlite3.connect(path)) as db:
            db.execute(damage)
            db.commit()
        codes = [issue.code for issue in (await store.check_consistency()).issues]
        assert codes == ["index_disagrees"]
        done = await asyncio.to_thread(kode, "text-index", "rebuild", "--store", f"sqlite:///{path}", "--json")
        assert json.loads(done) == {"index": True, "waiting": 0}
        assert (await store.check_consistency()).consistent
        assert await positions(store, "message 3") == [3]


def kode(*args: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "kode_core.cli", *args], capture_output=True, text=True, check=True
    ).stdout


async def test_a_damaged_index_fails_no_call(tmp_path: Path) -> None:
    """With damaged pages of the index, messages are appended and found, without it."""
    path = tmp_path / "agents.db"
    async with opened(path, text_index=True) as store:
        await store.append_messages("a", [Message.user(f"message {i}") for i in range(50)])
        await indexed(store)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE kode_text_data SET block = x'00' WHERE id > 10")
        db.commit()
    async with opened(path) as store:
        await store.append_messages("a", [Message.user("one more")])
        assert await positions(store, "message 33") == [33]
        assert await positions(store, "one more") == [50]


async def test_the_index_is_added_and_dropped_by_the_command(tmp_path: Path) -> None:
    """``kode text-index`` tells whether there is an index, makes it, and removes it with its bytes."""
    path = tmp_path / "agents.db"
    async with opened(path) as store:
        await store.append_messages("a", [Message.user(f"message {i}") for i in range(700)])
    at = ("--store", f"sqlite:///{path}")
    assert "no index of texts" in kode("text-index", *at)
    assert kode("text-index", "add", *at) == "an index of texts; 0 messages not in it yet\n"
    assert kode("text-index", "status", *at, "--json") == '{\n  "index": true,\n  "waiting": 0\n}\n'
    assert "text search  index" in kode("doctor", *at)
    assert kode("text-index", "drop", *at).startswith("no index of texts")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM sqlite_master WHERE name LIKE 'kode_text%'").fetchall() == []


_REMOVES = sqlite3.sqlite_version_info >= (3, 42, 0)
"""Whether this SQLite can remove parts of deleted messages from the index."""


def parts_in(path: Path) -> bytes:
    """The bytes of the index, and of the folded texts next to it."""
    with closing(sqlite3.connect(path)) as db:
        blocks = db.execute("SELECT block FROM kode_text_data").fetchall()
        texts_ = db.execute("SELECT CAST(text AS BLOB) FROM kode_texts WHERE text IS NOT NULL").fetchall()
    return b"\0".join(block for (block,) in blocks + texts_)


async def test_parts_of_deleted_messages(tmp_path: Path) -> None:
    """The index loses the parts of a deleted message at once, or ``kode doctor`` says that it keeps them, and a rebuild
    removes them, also from the free pages of the file.
    """
    path = tmp_path / "agents.db"
    at = ("--store", f"sqlite:///{path}")
    async with opened(path, text_index=True) as store:
        await store.append_messages("a", [Message.user("zqzqzq")])
        await store.append_messages("b", [Message.user(f"message {i}") for i in range(2_000)])
        await indexed(store)
        assert b"zqzqzq" in parts_in(path)
        assert not (await store.get_metrics()).storage.texts_of_deleted
        await store.delete("a")
        assert (b"zqz" in parts_in(path)) is not _REMOVES
        assert (await store.get_metrics()).storage.texts_of_deleted is not _REMOVES
        done = await asyncio.to_thread(kode, "doctor", *at)
        assert ("parts of deleted messages may be left in it, until kode text-index rebuild" in done) is not _REMOVES
    done = await asyncio.to_thread(kode, "text-index", "rebuild", *at)
    assert done == "an index of texts; 0 messages not in it yet\n"
    assert b"zqz" not in parts_in(path)
    async with opened(path) as store:
        assert await positions(store, "message 77") == [77, *range(770, 780)]
        assert (await store.check_consistency()).consistent
        assert not (await store.get_metrics()).storage.texts_of_deleted


async def test_an_index_that_does_not_note_deletes(tmp_path: Path) -> None:
    """One that an earlier version has made may have parts of deleted messages."""
    path = tmp_path / "agents.db"
    async with opened(path, text_index=True) as store:
        await store.append_messages("a", [Message.user("zqzqzq")])
        await indexed(store)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TRIGGER kode_texts_delete")
        db.execute(
            "CREATE TRIGGER kode_texts_delete AFTER DELETE ON kode_texts WHEN OLD.state = 1 BEGIN"
            " INSERT INTO kode_text (kode_text, rowid, text) VALUES ('delete', OLD.id, OLD.text); END"
        )
        db.commit()
    async with opened(path) as store:
        assert (await store.get_metrics()).storage.texts_of_deleted is not _REMOVES


async def test_a_dropped_index_leaves_no_parts_in_the_file(tmp_path: Path) -> None:
    """After ``kode text-index drop`` no part of a text is left in a free page that the index had."""
    path = tmp_path / "agents.db"
    async with opened(path, text_index=True) as store:
        await store.append_messages("b", [Message.user(f"KEEP zqzqzq {i}") for i in range(3_000)])
        await indexed(store)
    assert b"keep zqzqzq" in path.read_bytes()
    assert kode("text-index", "drop", "--store", f"sqlite:///{path}").startswith("no index of texts")
    assert b"KEEP zqzqzq" in path.read_bytes()
    assert b"keep zqzqzq" not in path.read_bytes()


@pytest.mark.skipif(_REMOVES, reason="this SQLite reads the later format")
async def test_an_index_of_a_later_format(tmp_path: Path) -> None:
    """A store is not opened whose deletes would fail; one that is open finds messages without the index."""
    path = tmp_path / "agents.db"
    async with opened(path, text_index=True) as store:
        await store.append_messages("a", [Message.user("message one")])
        await indexed(store)
        with closing(sqlite3.connect(path)) as db:
            db.execute("UPDATE kode_text_config SET v = 5 WHERE k = 'version'")
            db.execute("UPDATE kode_text_data SET block = x'00000001' || substr(block, 5) WHERE id = 10")
            db.commit()
        assert await positions(store, "MESSAGE") == [0]
    with pytest.raises(ConfigurationError, match="written by SQLite 3.42 or later, and this Python has"):
        await opened(path)


async def test_a_backup_has_the_index(tmp_path: Path) -> None:
    """The copy of a database has its index, and finds by it."""
    async with opened(tmp_path / "agents.db", text_index=True) as store:
        await store.append_messages("a", [Message.user("here I am")])
        await indexed(store)
        await store.backup(tmp_path / "copy.db")
    async with opened(tmp_path / "copy.db") as store:
        assert await waiting(store) == 0
        assert await positions(store, "HERE i") == [0]
        assert (await store.check_consistency()).consistent


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of 200,000 messages, which are indexed; ``rare-`` and its number stand in every 20,000th of them."""
    draw = random.Random(1)
    path = tmp_path_factory.mktemp("large") / "agents.db"
    asyncio.run(_make(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        (body, digest) = db.execute("SELECT body, digest FROM kode_messages").fetchone()
        db.execute("BEGIN")
        texts_ = [
            " ".join(draw.choices(WORDS, k=6)) + (f" rare-{i}" if i % 20_000 == 0 else "") for i in range(200_000)
        ]
        _append(db, ((f"a{i % 100}", i // 100, i, body, digest) for i in range(200_000)))
        rows = db.execute("SELECT id, agent_id, position FROM kode_texts WHERE agent_id <> 'first'").fetchall()
        named = [(texts_[position * 100 + int(agent[1:])], id_) for id_, agent, position in rows]
        db.executemany("UPDATE kode_texts SET state = 1, text = ? WHERE id = ?", named)
        db.executemany("INSERT INTO kode_text (text, rowid) VALUES (?, ?)", named)
        db.execute("COMMIT")
        assert texts.noted(db) in (0, 1)
    return path


async def _make(path: Path) -> None:
    async with opened(path, text_index=True) as store:
        await store.append_messages("first", [Message.user(" ".join(WORDS))])
        await indexed(store)


def _append(db: sqlite3.Connection, rows: Iterable[tuple[str, int, int, bytes, bytes]]) -> None:
    db.executemany(
        "INSERT INTO kode_messages (agent_id, position, created_at, role, content_types, body, digest)"
        " VALUES (?, ?, ?, 'user', char(10) || 'text' || char(10), ?, ?)",
        rows,
    )


def test_a_rare_text_costs_little_among_200_000_messages(large: Path) -> None:
    """A page of messages with a rare text costs steps for these alone; a common text is found along the other index."""
    with closing(sqlite3.connect(large, isolation_level=None)) as db:

        def steps(**filters: Any) -> tuple[int, list[FoundRow]]:
            with counted(db) as cost:
                found = find_rows(db, message_query({"limit": 100, **filters}))
            return cost[0], found

        cost, found = steps(contains="RARE-20000")
        assert [row.created_at for row in found] == [20_000]
        assert cost < 5_000
        cost, found = steps(contains="rare-", agent_id="a0", order="asc")
        assert [row.created_at for row in found] == list(range(0, 200_000, 20_000))
        assert cost < 5_000
        cost, found = steps(contains="quick")
        assert len(found) == 100  # the newest ones, of which the store takes those with the text
        assert cost < 400_000


def test_an_append_costs_little_next_to_200_000_messages(large: Path, tmp_path: Path) -> None:
    """Ten new messages are indexed without a look at the others, as one segment, and no append merges much of the
    index: some ten pages go to the log, and at most as many as FTS5 merges at once.
    """
    path = tmp_path / "agents.db"
    shutil.copyfile(large, path)
    log = path.with_name("agents.db-wal")
    spent, written, made = list[int](), list[int](), list[int]()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA wal_autocheckpoint = 0")
        while texts.noted(db):
            texts.index_some(db)
        (body, digest) = db.execute("SELECT body, digest FROM kode_messages").fetchone()
        for i in range(300):
            size, segments = log.stat().st_size if log.exists() else 0, _segments(db)
            with counted(db) as cost:
                db.execute("BEGIN")
                _append(db, (("late", i * 10 + k, i, body, digest) for k in range(10)))
                assert not texts.index_some(db)
                db.execute("COMMIT")
            spent.append(cost[0])
            written.append((log.stat().st_size - size) // _FRAME)
            made.append(_segments(db) - segments)
        assert texts.noted(db) == 0
    assert max(spent) < 5_000 + _MERGED_AT_ONCE * 20
    assert statistics.median(spent) < 5_000
    assert max(made) == 1
    assert statistics.median(written) < 40
    assert max(written) < _MERGED_AT_ONCE * 3


_FRAME: Final = 4_096 + 24
_MERGED_AT_ONCE: Final = 64 * 7
"""How many pages FTS5 merges at most, for each 64 that were written: as many on each level, of which there are few."""


def _segments(db: sqlite3.Connection) -> int:
    (count,) = db.execute("SELECT count(DISTINCT segid) FROM kode_text_idx").fetchone()
    return int(count)
