"""Sessions that the SDK itself has written, in a store of kode_core: items, calls and times, once, and read only."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from agents import SQLiteSession
from agents.extensions.memory import SQLAlchemySession
from kode_openai_agents import KodeSession
from kode_openai_agents.importing import open_sessions
from kode_postgres.testing.servers import Server

from kode_core import ConfigurationError, StorageError, create_extended_store, now_ms
from kode_core.formats.importing import Imported, import_foreign
from kode_core.formats.recognising import recognise
from tests.adapter_tests import server
from tests.killed_writers import digests, leave_half_written

__all__ = ["server"]

ITEMS: list[Any] = [
    {"role": "user", "content": "What is the weather?"},
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Rome"}'},
    {"type": "function_call", "call_id": "c2", "name": "fail", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
    {"type": "function_call_output", "call_id": "c2", "output": "An error occurred while running the tool"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Sunny 🙂"}]},
]


async def imported(source: str, store: Any, **how: Any) -> list[Imported]:
    async with open_sessions(source) as agents:
        return [one async for one in import_foreign(agents, store, **how)]


@pytest.fixture(params=["sqlite", "sqlalchemy", "postgres"])
async def source(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A database with the sessions s0 to s2, and s3 without an item, that the SDK has written."""
    path = tmp_path / "sessions.db"
    if request.param == "sqlite":
        for i in range(4):
            session = SQLiteSession(f"s{i}", path)
            await session.add_items(ITEMS if i < 3 else [])
            session.close()
        yield str(path)
    elif request.param == "sqlalchemy":
        await _by_sqlalchemy(f"sqlite+aiosqlite:///{path}")
        yield f"sqlite:///{path}"
    else:
        postgres: Server = request.getfixturevalue("server")
        async with postgres.database() as name:
            url = postgres.url(name).replace("postgres://", "postgresql://")
            await _by_sqlalchemy(url.replace("postgresql://", "postgresql+asyncpg://"))
            yield url


async def _by_sqlalchemy(url: str) -> None:
    for i in range(3):
        session = SQLAlchemySession.from_url(f"s{i}", url=url, create_tables=True)
        await session.add_items(ITEMS)
        await session.engine.dispose()


async def test_a_file_is_recognised(tmp_path: Path) -> None:
    """``kode import`` without ``--from`` says what a file of the SDK's is."""
    path = tmp_path / "sessions.db"
    SQLiteSession("s", path).close()
    assert await recognise(str(path)) == ("holds sessions of OpenAI Agents", "give --from openai-agents")


async def test_sessions_of_the_sdk_go_on(source: str, tmp_path: Path) -> None:
    """Their items are those of KodeSession, with their calls; a second import writes nothing."""
    target = f"sqlite:///{tmp_path}/target.db"
    async with create_extended_store(target) as store:
        first = await imported(source, store)
        assert {one.outcome for one in first} == {"imported"}, first
        assert sum(one.counts.get("messages", 0) for one in first) == 18
        assert sum(one.counts.get("toolCalls", 0) for one in first) == 6
        assert {one.outcome for one in await imported(source, store)} == {"known"}
        session = KodeSession("s1", store=store)
        assert await session.get_items() == ITEMS
        ok, failed = await store.load_tool_call_records(session.agent_id)
        assert (ok.name, ok.input, ok.state, ok.result) == ("weather", {"city": "Rome"}, "COMPLETED", "sunny")
        assert (failed.state, failed.is_error) == ("FAILED", True)
        info = await store.load_info(session.agent_id)
        assert info is not None and info.metadata == {"sessionId": "s1"} and info.template_id == "openai-agents"
        times = [one.created_at async for one in store.read_messages(session.agent_id)]
        assert all(now_ms() - 3_600_000 < time <= now_ms() for time in times) and ok.created_at == times[1]
        await session.add_items([{"role": "user", "content": "And tomorrow?"}])
        again = await imported(source, store)
        assert max(one.outcome for one in again) == "refused"
        assert len(await session.get_items()) == 7


@pytest.mark.parametrize("mode", ["wal", "delete", None])
async def test_the_source_stays_byte_for_byte(mode: str | None, tmp_path: Path) -> None:
    """A log that a killed process left is read, and a transaction that was half written is not."""
    folder = tmp_path / "source"
    folder.mkdir()
    path = folder / "sessions.db"
    session = SQLiteSession("s", path)
    await session.add_items(ITEMS)
    session.close()
    before = digests(folder)
    if mode is not None:
        item = json.dumps({"role": "user", "content": "half"})
        more = f"INSERT INTO agent_messages (session_id, message_data) VALUES ('s', '{item}')"
        before = leave_half_written(path, mode, "UPDATE agent_sessions SET created_at = '2001-01-01'", more)
    async with create_extended_store("memory:") as store:
        (one,) = await imported(str(path), store)
        info = await store.load_info(one.agent_id)
    assert one.counts["messages"] == (7 if mode == "wal" else 6)
    assert info is not None and (info.created_at < 1_000_000_000_000) == (mode == "wal")
    assert digests(folder) == before


async def test_a_database_that_is_changed_meanwhile(tmp_path: Path) -> None:
    """Its rows may be of two moments, so that the import says so at the end."""
    path = tmp_path / "sessions.db"
    session = SQLiteSession("s", path)
    await session.add_items(ITEMS)
    session.close()
    with pytest.raises(StorageError, match=r"sessions\.db was changed while it was read: stop the program"):
        async with open_sessions(str(path)) as agents:
            assert len([one async for one in agents]) == 1
            session = SQLiteSession("s", path)
            await session.add_items(ITEMS)
            session.close()


async def test_sessions_without_any_time(tmp_path: Path) -> None:
    """They are brought, with the first time that stores keep, and are known again."""
    path = tmp_path / "sessions.db"
    session = SQLiteSession("s", path)
    await session.add_items(ITEMS)
    session.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE agent_messages SET created_at = NULL")
        db.execute("INSERT INTO agent_sessions (session_id) VALUES ('empty')")
        db.execute("UPDATE agent_sessions SET created_at = NULL, updated_at = NULL")
        db.execute("INSERT INTO agent_sessions (session_id) VALUES ('before')")
        db.execute(
            "UPDATE agent_sessions SET created_at = '1950-01-01', updated_at = 'never' WHERE session_id = 'before'"
        )
        db.execute("INSERT INTO agent_sessions (session_id) VALUES (x'ff00')")
        db.commit()
    for url in ("memory:", f"sqlite:///{tmp_path}/target.db", f"json:///{tmp_path}/target"):
        async with create_extended_store(url) as store:
            first = {one.agent_id: one for one in await imported(str(path), store)}
            assert sorted(one.outcome for one in first.values()) == ["imported", "imported", "imported", "refused"]
            (refused,) = [one for one in first.values() if one.outcome == "refused"]
            assert refused.damaged == {"agent_sessions: an id is no text but bytes": 1}
            assert {one.outcome for one in await imported(str(path), store)} == {"known", "refused"}
            there = await store.load_session("openai:s")
            assert there is not None and (there.created_at, there.updated_at) == (0, 1)
            assert "an agent without a time has the first one" in str(first["openai:s"].changed)
            assert await KodeSession("s", store=store).get_items() == ITEMS


async def test_damaged_rows_are_reported_and_passed_over(tmp_path: Path) -> None:
    """The session is refused; with skip_damaged the rest of it is imported. Times that are odd do not stop it."""
    path = tmp_path / "sessions.db"
    for name in ("s", "ok"):
        session = SQLiteSession(name, path)
        await session.add_items(ITEMS)
        session.close()
    insert = "INSERT INTO agent_messages (session_id, message_data, created_at) VALUES ('s', ?, ?)"
    with closing(sqlite3.connect(path)) as db:
        for i, text in enumerate(("{", "[1]", '{"role": NaN}', "[" * 100_000, b"\xff\xfe", 5)):
            at = ("2025-01-01 00:00:0" + str(i)) if i % 2 else None
            db.execute(insert, (text, at))
        item = json.dumps({"role": "user", "content": "late"})
        for at in ("2001-01-01 00:00:00", "no time", None, 7):
            db.execute(insert, (item, at))
        db.commit()
    async with create_extended_store("memory:") as store:
        by_outcome = {one.outcome: one for one in await imported(str(path), store)}
        assert set(by_outcome) == {"imported", "refused"}
        assert sum(by_outcome["refused"].damaged.values()) == 6, by_outcome["refused"].damaged
        again = await imported(str(path), store, skip_damaged=True)
        assert sorted(one.outcome for one in again) == ["imported", "known"]
        items = await KodeSession("s", store=store).get_items()
        assert len(items) == 10 and items[-1] == {"role": "user", "content": "late"}


async def test_what_is_no_source(tmp_path: Path) -> None:
    """A file that is none, one of another program, and a server that does not answer."""
    (tmp_path / "text.db").write_text("x" * 5000)
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE t (x)")
    for source, said in (
        (str(tmp_path / "none.db"), "there is no file"),
        ("", "the source is empty"),
        (str(tmp_path / "text.db"), "cannot be read as a database of SQLite"),
        (str(tmp_path / "other.db"), "has no table agent_sessions"),
        ("postgresql://u:secret@127.0.0.1:1/x", "cannot be reached|refused"),
    ):
        with pytest.raises((ConfigurationError, StorageError), match=said) as caught:
            await imported(source, None)
        assert "secret" not in str(caught.value)
