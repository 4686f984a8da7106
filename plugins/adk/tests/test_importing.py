"""Sessions that ADK's own services have written: events, states and times, once, and read only."""

from __future__ import annotations

import datetime
import json
import pickle
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.sessions import DatabaseSessionService
from google.adk.sessions.schemas import v0
from google.adk.sessions.sqlite_session_service import SqliteSessionService
from google.genai import types
from kode_adk import KodeSessionService, pickled
from kode_adk.databases import open_sqlalchemy
from kode_adk.importing import open_sessions
from kode_adk.pickled import plain_actions
from kode_postgres.testing.servers import Server
from sqlalchemy import create_engine

from kode_core import BackendImportError, ConfigurationError, StorageError, create_extended_store, now_ms
from kode_core.formats.importing import Imported, import_foreign
from kode_core.formats.recognising import recognise
from tests.killed_writers import digests, leave_half_written

APP = "app"
USERS = ("u1", "ü 2")
KINDS = ("database", "sqlite", "pickled", "postgres")


async def imported(source: str, store: Any, **how: Any) -> list[Imported]:
    async with open_sessions(source) as agents:
        return [one async for one in import_foreign(agents, store, **how)]


def events() -> list[Event]:
    """A turn with a picture, a call and its result, which changes each scope of the state."""
    call = types.FunctionCall(id="c1", name="weather", args={"city": "Rome"})
    result = types.FunctionResponse(id="c1", name="weather", response={"sky": "sunny 🙂"})
    picture = types.Blob(data=b"\x00\xffabc", mime_type="image/png")
    parts = [types.Part(text="Weather?"), types.Part(inline_data=picture)]
    changes = {"y": [1, {"a": None}], "user:z": 2.5, "app:v": 3, "temp:t": 1}
    return [
        Event(author="user", invocation_id="i", content=types.Content(role="user", parts=parts)),
        Event(
            author="agent",
            invocation_id="i",
            branch="main",
            content=types.Content(role="model", parts=[types.Part(function_call=call)]),
            long_running_tool_ids={"c1"},
        ),
        Event(
            author="agent",
            invocation_id="i",
            content=types.Content(role="user", parts=[types.Part(function_response=result)]),
            actions=EventActions(state_delta=changes, transfer_to_agent="other"),
            custom_metadata={"a": 1},
        ),
    ]


async def fill(service: Any) -> None:
    for user in USERS:
        for n in range(2):
            state = {"x": n, "user:lang": "de", "app:name": "A"}
            session = await service.create_session(app_name=APP, user_id=user, session_id=f"s{n}", state=state)
            for event in events():
                await service.append_event(session, event)
    await service.create_session(app_name="empty", user_id="u", session_id="none")


class Source:
    """A database, and the service of ADK's that has written it."""

    def __init__(self, url: str, service: Any) -> None:
        self.url = url
        self.service = service


@pytest.fixture(params=KINDS)
async def source(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Source]:
    """Sessions that ADK has written, by each of its services, in each of its schemas."""
    path = tmp_path / "sessions.db"
    if request.param == "sqlite":
        service: Any = SqliteSessionService(str(path))
        await fill(service)
        yield Source(str(path), service)
        return
    if request.param != "postgres":
        if request.param == "pickled":  # ADK goes on with the tables of its versions 1.19 to 1.21
            v0.Base.metadata.create_all(create_engine(f"sqlite:///{path}"))
        async with DatabaseSessionService(f"sqlite+aiosqlite:///{path}") as service:
            await fill(service)
            yield Source(f"sqlite+aiosqlite:///{path}", service)
        return
    postgres: Server = request.getfixturevalue("server")
    async with postgres.database() as name:
        url = postgres.url(name).replace("postgres://", "postgresql+asyncpg://")
        async with DatabaseSessionService(url) as service:
            await fill(service)
            yield Source(url, service)


async def test_sessions_go_on(source: Source) -> None:
    """Each is as ADK's service gives it, with its calls and times; a second import writes nothing."""
    if isinstance(source.service, SqliteSessionService):
        assert await recognise(source.url) == ("holds sessions of Google ADK", "give --from adk")
    async with create_extended_store("memory:") as store:
        first = await imported(source.url, store)
        assert {one.outcome for one in first} == {"imported"}, first
        assert sum(one.counts.get("messages", 0) for one in first) == 12
        assert {one.outcome for one in await imported(source.url, store)} == {"known"}
        mine = KodeSessionService(store)
        for user in USERS:
            for n in range(2):
                named = {"app_name": APP, "user_id": user, "session_id": f"s{n}"}
                theirs, ours = await source.service.get_session(**named), await mine.get_session(**named)
                assert ours is not None and len(ours.events) == 3
                assert (ours.state, ours.last_update_time) == (theirs.state, theirs.last_update_time)
                assert [one.model_dump() for one in ours.events] == [one.model_dump() for one in theirs.events]
        listed = await mine.list_sessions(app_name=APP)
        assert len(listed.sessions) == 4
        agent_id = mine.agent_id(APP, "u1", "s0")
        (call,) = await store.load_tool_call_records(agent_id)
        assert (call.name, call.input, call.state) == ("weather", {"city": "Rome"}, "COMPLETED")
        times = [one.created_at async for one in store.read_messages(agent_id)]
        assert all(now_ms() - 3_600_000 < time <= now_ms() for time in times) and call.created_at == times[1]
        info = await store.load_info(agent_id)
        assert info is not None and abs(info.created_at - times[0]) < 600_000
        session = await mine.get_session(app_name=APP, user_id="u1", session_id="s0")
        assert session is not None
        await mine.append_event(session, Event(author="user", actions=EventActions(state_delta={"app:v": 4})))
        again = {one.agent_id: one.outcome for one in await imported(source.url, store)}
        assert sorted(again.values()).count("refused") == 2 and again[agent_id] == "refused"
        kept = await mine.get_session(app_name=APP, user_id="u1", session_id="s1")
        assert kept is not None and kept.state["app:v"] == 4


async def test_any_url_of_sqlalchemy(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases that the core has no plugin for are read by SQLAlchemy, with the same result, page by page."""
    monkeypatch.setattr("kode_adk.importing._PAGE", 2)
    async with server.database() as name:
        url = server.url(name).replace("postgres://", "postgresql+asyncpg://")
        async with DatabaseSessionService(url) as service:
            await fill(service)
        found: list[list[Any]] = []
        for opener in (None, open_sqlalchemy):
            if opener is not None:
                monkeypatch.setattr("kode_adk.importing.open_database", opener)
            async with open_sessions(url) as agents:
                found.append([one.records async for one in agents])
    assert found[0] == found[1] and len(found[0]) == 8
    for url, error in (
        ("mysql+nothing://u:secret@h/d", ConfigurationError),
        ("mysql://u:secret@h/d", BackendImportError),
        ("mysql+aiomysql://u:secret@h/d", BackendImportError),
        ("postgresql+asyncpg://u:secret@127.0.0.1:1/d", StorageError),
    ):
        with pytest.raises(error) as caught:
            async with open_sqlalchemy(url):
                pass
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("mode", ["wal", "delete", None])
async def test_the_source_stays_byte_for_byte(mode: str | None, tmp_path: Path) -> None:
    """A log that a killed process left is read, and a transaction that was half written is not."""
    folder = tmp_path / "source"
    folder.mkdir()
    path = folder / "sessions.db"
    await fill(SqliteSessionService(str(path)))
    before = digests(folder)
    if mode is not None:
        before = leave_half_written(path, mode, "DELETE FROM events", "DELETE FROM sessions")
    found = [one.agent_id for one in await imported(str(path), None)]
    assert len(found) == 8 if mode != "wal" else 0 < len(found) < 8
    assert digests(folder) == before


async def test_damaged_rows_are_named(tmp_path: Path) -> None:
    """The session is refused, and its rest is brought with skip_damaged; others come over."""
    path = tmp_path / "sessions.db"
    await fill(SqliteSessionService(str(path)))
    raws: list[Any] = [
        "{",
        "[1]",
        '{"author": NaN}',
        "[" * 100_000,
        b"\xff\xfe",
        '{"actions": 5}',
        "\ud800".encode("utf-8", "surrogatepass"),
    ]
    with closing(sqlite3.connect(path)) as db:
        for i, raw in enumerate(raws):
            db.execute("INSERT INTO events VALUES (?, 'app', 'u1', 's0', 'i', ?, ?)", (f"bad-{i}", i, raw))
        db.execute("UPDATE sessions SET state = '[' WHERE user_id = 'u1' AND id = 's1'")
        db.execute("UPDATE sessions SET update_time = 'never', create_time = 'x' WHERE user_id != 'u1'")
        db.execute("UPDATE user_states SET state = 'no' WHERE user_id = 'u1'")
        db.execute("INSERT INTO sessions VALUES (x'ff', 'u', 'i', '{}', 1, 1)")
        db.execute("INSERT INTO sessions VALUES ('app', 'u', CAST(x'ff' AS TEXT), '{}', 1, 1)")
        db.commit()
    async with create_extended_store("memory:") as store:
        first = await imported(str(path), store)
        outcomes = [one.outcome for one in first]
        assert outcomes.count("refused") == 5 and outcomes.count("imported") == 5
        spoiled = next(one for one in first if one.agent_id == "adk:app:u1:s0")
        assert sum(spoiled.damaged.values()) == len(raws), spoiled.damaged
        assert all(len(remark) <= 300 for remark in spoiled.damaged)
        again = await imported(str(path), store, skip_damaged=True)
        assert [one.outcome for one in again].count("imported") == 2
        assert len(await store.load_messages("adk:app:u1:s0")) == 3


async def test_other_databases_are_refused(tmp_path: Path) -> None:
    """Other tables, a later schema, and no database; errors have no password."""
    later = tmp_path / "later.db"
    async with DatabaseSessionService(f"sqlite+aiosqlite:///{later}") as service:
        await fill(service)
    with closing(sqlite3.connect(later)) as db:
        db.execute("UPDATE adk_internal_metadata SET value = '7'")
        db.commit()
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE sessions (x)")
    (tmp_path / "text.db").write_text("x" * 5_000)
    for source, said in (
        (str(later), "the tables have version 7 of ADK's schema"),
        (str(tmp_path / "other.db"), "has no column app_name"),
        (str(tmp_path / "text.db"), "cannot be read as a database of SQLite"),
        (str(tmp_path / "none.db"), "there is no file"),
        ("", "the source is empty"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            await imported(source, None)
    with pytest.raises(StorageError) as caught:
        await imported("postgresql+asyncpg://u:secret@127.0.0.1:1/x", None)
    assert "secret" not in str(caught.value)


class Trap:
    """A pickle of it opens a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


async def test_pickles_run_nothing(tmp_path: Path) -> None:
    """Actions with anything but data are refused by name."""
    path = tmp_path / "sessions.db"
    v0.Base.metadata.create_all(create_engine(f"sqlite:///{path}"))
    async with DatabaseSessionService(f"sqlite+aiosqlite:///{path}") as service:
        await fill(service)
    sprung = tmp_path / "sprung"
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE events SET actions = ? WHERE session_id = 's0'", (pickle.dumps(Trap(sprung)),))
        db.commit()
    found = await imported(str(path), None)
    refused = [one for one in found if one.outcome == "refused"]
    assert len(refused) == 2 and not sprung.exists()
    assert all("it names " in remark and "open" in remark for one in refused for remark in one.damaged)


def _lists_of_one_list(count: int, made: str) -> bytes:
    """A pickle of a list and of copies of it: its parts are many more than its bytes."""
    numbers = b"".join(b"K" + bytes([i % 256]) for i in range(5_000))
    return b"\x80\x02](" + numbers + b"eq\x00](" + f"c__builtin__\n{made}\nh\x00\x85R".encode() * count + b"e\x86."


@pytest.mark.parametrize("name", ["pathlib PosixPath", "uuid UUID", "datetime datetime", "collections defaultdict"])
@pytest.mark.parametrize("state", [(None, {"name": "evil"}), {"name": "evil"}])
def test_pickles_change_no_class(name: str, state: object) -> None:
    """A pickle that sets attributes of what it names sets them on an object of its own."""
    module, cls = name.split()
    change = pickle.dumps(state, 2)[2:-1]
    raw = b"\x80\x02" + f"c{module}\n{cls}\n".encode() + change + b"b0}."
    with suppress(ValueError):
        assert plain_actions(raw) == {}
    assert Path("/etc/passwd").name == "passwd"
    assert not hasattr(uuid.UUID, "name")
    assert not hasattr(datetime.datetime, "name")
    assert not hasattr(pickled._MADE["collections", "defaultdict"], "name")
    kept = {"at": uuid.UUID(int=7), "path": PurePosixPath("a/b"), "on": datetime.date(2026, 1, 2)}
    assert plain_actions(pickle.dumps(kept)) == kept


def test_pickles_of_every_kind() -> None:
    """Plain data of actions comes through, and nothing else; hostile pickles take no memory."""
    actions = EventActions(state_delta={"a": {1, 2}, "b": ("x",)}, skip_summarization=True)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        plain = plain_actions(pickle.dumps(actions, protocol))
        assert plain["state_delta"] == {"a": [1, 2], "b": ["x"]} and plain["skip_summarization"] is True
        assert EventActions.model_validate(plain).skip_summarization is True
    bomb: Any = []
    for _ in range(60):
        bomb = [bomb, bomb]
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    hostile = [
        b"",
        b"\x80",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x02cgoogle.adk.x\nY\n.",
        b"\x80\x02]r\xff\xff\xff\x7f.",
        b"\x80\x04\x8c\x0agoogle.adk\x8c\x03a.b\x93.",
        pickle.dumps({"state_delta": bomb}),
        pickle.dumps({"state_delta": deep}),
        pickle.dumps([1]),
        pickle.dumps({"a": bytearray}),
        *(_lists_of_one_list(count, made) for made in ("list", "tuple", "set") for count in (2_000, 100_000)),
    ]
    for raw in (*hostile, "text", 5):
        with pytest.raises(ValueError):
            plain_actions(raw)
    assert plain_actions(None) == {}


async def test_an_event_of_the_current_schema_has_no_pickle(tmp_path: Path) -> None:
    """A text in the place of an object stays a text."""
    path = tmp_path / "sessions.db"
    service = SqliteSessionService(str(path))
    session = await service.create_session(app_name=APP, user_id="u", session_id="s")
    await service.append_event(session, Event(author="user", custom_metadata={"a": "gASVAA=="}))
    async with create_extended_store("memory:") as store:
        await imported(str(path), store)
        (message,) = await store.load_messages("adk:app:u:s")
        kept: Any = (message.metadata or {})["adk"]
        assert json.loads(json.dumps(kept))["customMetadata"] == {"a": "gASVAA=="}


async def test_the_example_of_the_guide(tmp_path: Path) -> None:
    """It brings a session, and the guide quotes it."""
    service = SqliteSessionService(str(tmp_path / "sessions.db"))
    named = {"app_name": "weather", "user_id": "ada", "session_id": "chat-1"}
    session = await service.create_session(**named, state={"user:unit": "C"})
    await service.append_event(session, Event(author="user"))
    example = Path(__file__).parent / "examples/move.py"
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines() == [
        "adk-state:weather:ada imported {}",
        "adk:weather:ada:chat-1 imported {}",
        "{'user:unit': 'C'} 1",
    ]
    guide = (Path(__file__).parents[3] / "docs/guides/adk.md").read_text()
    (quoted,) = [
        block.split("\n```")[0] for block in guide.split("```python from plugins/adk/tests/examples/move.py\n")[1:]
    ]
    assert quoted in example.read_text()
