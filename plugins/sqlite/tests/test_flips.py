"""Indexes that a flipped bit damaged: no agent is shown, or loses, a record by an entry that leads to another row."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from kode_conformance.values import samples
from kode_sqlite import SqliteStore, migrations, queries

from kode_core import (
    ABSENT,
    AgentEvent,
    AgentInfo,
    Bookmark,
    ConflictError,
    CorruptRecordError,
    ExtendedStore,
    ImageBlock,
    Message,
    PutDocument,
    Timeline,
    ToolCallRecord,
)
from kode_core.query import message_query
from plugins.sqlite.tests.flips import Index, flip, indexes, put_in_place
from plugins.sqlite.tests.plans import counted


def _all_indexes() -> list[Index]:
    with closing(sqlite3.connect(":memory:")) as db:
        for statement in migrations.sql():
            db.execute(statement)
        return indexes(db)


INDEXES: Final = _all_indexes()


def _call(agent_id: str, i: int) -> ToolCallRecord:
    return ToolCallRecord(
        id=f"{agent_id}-{i}",
        name=f"tool of {agent_id}",
        state="FAILED",
        is_error=True,
        created_at=1000 + i,
        updated_at=1000 + i,
        approval=samples.approved_call().approval,
    )


def _event(agent_id: str, i: int) -> Timeline:
    return Timeline(i, Bookmark(i, 5), AgentEvent("monitor", "e", {"of": agent_id, "i": i}))


async def _fill(store: ExtendedStore) -> None:
    """Two agents with records in turn, so that rows of both have numbers that are a bit apart."""
    for i in range(6):
        for agent_id in ("a", "c") if i else ("b", "a", "c"):
            if i == 0:
                await store.save_info(agent_id, AgentInfo(agent_id=agent_id, template_id=f"template of {agent_id}"))
                await store.save_todos(agent_id, samples.todos())
            told = Message("system", [ImageBlock(url=f"https://{agent_id}/{i}")])
            await store.append_messages(agent_id, [told, Message.user(f"{agent_id} {i}")])
            await store.upsert_tool_call_records(agent_id, [_call(agent_id, i)])
            await store.append_events(agent_id, [_event(agent_id, i)])
            await store.save_snapshot(agent_id, samples.snapshot(f"{agent_id} {i}"))
            await store.put_document(agent_id, "c", f"{i}", f"{agent_id} {i}")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "agents.db"

    async def make() -> None:
        async with SqliteStore(str(path), durability="fast") as store:
            await _fill(store)

    asyncio.run(make())
    return path


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("kode_core").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("kode_core").setLevel(logging.NOTSET)


async def _read(store: ExtendedStore, agent_id: str) -> dict[str, Any]:
    """All that is read of an agent."""

    async def events(**more: Any) -> list[Any]:
        return [event async for event in store.read_events(agent_id, **more)]

    async def documents() -> list[Any]:
        return [document async for document in store.iter_documents(agent_id, "c")]

    reads: dict[str, Callable[[], Awaitable[Any]]] = {
        "messages": lambda: store.load_messages(agent_id),
        "tool calls": lambda: store.load_tool_call_records(agent_id),
        "info": lambda: store.load_info(agent_id),
        "todos": lambda: store.load_todos(agent_id),
        "snapshots": lambda: store.list_snapshots(agent_id),
        "snapshot": lambda: store.load_snapshot(agent_id, f"{agent_id} 2"),
        "documents": documents,
        "keys of documents": lambda: store.list_document_keys(agent_id, "c", reverse=True),
        "document": lambda: store.load_document(agent_id, "c", "2"),
        "events": events,
        "events by offset": lambda: events(after_offset=0),
        "events of a channel": lambda: events(channel="monitor"),
        "events of a channel by offset": lambda: events(channel="monitor", after_offset=0),
        "bookmark": lambda: store.last_bookmark(agent_id),
        "stats": lambda: store.aggregate_stats(agent_id),
    }
    found: dict[str, Any] = {}
    for name, read in reads.items():
        try:
            found[name] = await read()
        except CorruptRecordError as exc:
            found[name] = exc
    return found


QUERIES: Final[dict[str, Callable[[ExtendedStore], Awaitable[Any]]]] = {
    "sessions": lambda store: store.query_sessions(),
    "messages": lambda store: store.query_messages(),
    "messages of one": lambda store: store.query_messages(agent_id="a"),
    "messages of a role": lambda store: store.query_messages(role="system"),
    "messages with images": lambda store: store.query_messages(content_type="image"),
    "calls": lambda store: store.query_tool_calls(),
    "calls of one": lambda store: store.query_tool_calls(agent_id="a"),
    "calls of a tool": lambda store: store.query_tool_calls(tool_name="tool of a"),
    "calls that failed": lambda store: store.query_tool_calls(is_error=True),
    "calls of a state": lambda store: store.query_tool_calls(state="FAILED"),
    "calls that were approved": lambda store: store.query_tool_calls(has_approval=True),
}


async def _write(store: ExtendedStore) -> None:
    """Writes of agent ``a``, each done or refused as damage."""
    for write in (
        lambda: store.save_messages("a", [Message.user(f"new {i}") for i in range(9)]),
        lambda: store.save_messages("a", [Message.user("one")]),
        lambda: store.save_tool_call_records("a", [_call("a", 7)]),
        lambda: store.upsert_tool_call_records("a", [_call("a", i) for i in range(5)]),
        lambda: store.save_info("a", AgentInfo(agent_id="a", template_id="new")),
        lambda: store.save_todos("a", samples.todos()),
        lambda: store.save_snapshot("a", samples.snapshot("a 2")),
        lambda: store.put_document("a", "c", "2", "new", expect=ABSENT),
        lambda: store.write_documents("a", [PutDocument("c", f"{i}", "new") for i in range(6)]),
        lambda: store.delete_document("a", "c", "2"),
        lambda: store.append_events("a", [_event("a", i) for i in range(6)]),
        lambda: store.batch_fork("a", 1),
        lambda: store.delete("a"),
    ):
        try:
            await write()
        except ConflictError:
            pass
        except CorruptRecordError as exc:
            assert "agent 'c'" not in exc.record


@pytest.mark.parametrize("kind", ["another's row", "an own row"])
@pytest.mark.parametrize("index", INDEXES, ids=lambda index: index.name)
async def test_an_entry_that_leads_to_another_row(base: Path, index: Index, kind: Any) -> None:
    """A read gives what was stored or says that it is damaged, a query names what it leaves out, no other agent loses
    a record to a write, and the check finds it.
    """
    path = Path(shutil.copy(base, "agents.db"))
    async with SqliteStore(str(path), durability="fast") as store:
        before = {agent_id: await _read(store, agent_id) for agent_id in ("a", "c")}
        pages = {name: await query(store) for name, query in QUERIES.items()}
    if not flip(path, index, kind):
        assert (index.table, kind) == ("kode_infos", "an own row")
        return
    async with SqliteStore(str(path), durability="fast") as store:
        for name, value in (await _read(store, "a")).items():
            assert isinstance(value, CorruptRecordError) or value == before["a"][name], name
        assert await _read(store, "c") == before["c"]
        for name, query in QUERIES.items():
            page = await query(store)
            assert [item for item in pages[name] if item in page] == page, name
            assert len(page.left_out) == len(pages[name]) - len(page) <= 1, name
        found = await store.check_consistency()
        assert any(index.name in issue.message and "REINDEX" in issue.message for issue in found.issues)
        await _write(store)
        assert await _read(store, "c") == before["c"]
        assert [session for session in await store.query_sessions() if session.agent_id == "c"]


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: index.name)
async def test_the_check_finds_a_key_that_is_another(base: Path, index: Index) -> None:
    """The check compares each index with its table; no write of the agent harms another one; REINDEX mends it."""
    path = Path(shutil.copy(base, "agents.db"))
    async with SqliteStore(str(path), durability="fast") as store:
        before = {agent_id: await _read(store, agent_id) for agent_id in ("a", "c")}
    assert flip(path, index, "the key")
    mended = Path(shutil.copy(path, "mended.db"))
    async with SqliteStore(str(path), durability="fast") as store:
        found = await store.check_consistency()
        assert any(index.name in issue.message for issue in found.issues)
        await _write(store)
        assert await _read(store, "c") == before["c"]
    with closing(sqlite3.connect(mended)) as db:
        db.execute("REINDEX")
    async with SqliteStore(str(mended), durability="fast") as store:
        assert {agent_id: await _read(store, agent_id) for agent_id in ("a", "c")} == before
        assert (await store.check_consistency()).consistent


@pytest.mark.parametrize(
    ("index", "old", "new", "filters"),
    [
        ("kode_metadata_created", b"u-7", b"u-6", {"user_id": "u-6"}),
        ("kode_agents_template", b"template-7", b"template-6", {"template_id": "template-6"}),
    ],
)
async def test_a_session_of_another_user(index: str, old: bytes, new: bytes, filters: Any) -> None:
    """A session that an index shows under another user or template is left out and named."""
    path = Path("agents.db")
    async with SqliteStore(str(path), durability="fast") as store:
        for i in (6, 7):
            info = AgentInfo(agent_id=f"a-{i}", template_id=f"template-{i}", metadata={"userId": f"u-{i}"})
            await store.save_info(f"a-{i}", info)
    put_in_place(path, index, old, new)
    async with SqliteStore(str(path), durability="fast") as store:
        page = await store.query_sessions(**filters)
        assert ([session.agent_id for session in page], page.left_out) == (["a-6"], ("the info of agent 'a-7'",))
        assert any(index in issue.message for issue in (await store.check_consistency()).issues)


async def test_a_page_is_full_whatever_is_damaged() -> None:
    """Others stand in the place of damaged records, whether the body or the row betrays them; each is named."""
    async with SqliteStore("agents.db", durability="fast") as store:
        await store.append_messages("a", [Message.user(f"m{i:03}") for i in range(300)])
    with closing(sqlite3.connect("agents.db")) as db:
        db.execute("UPDATE kode_messages SET body = replace(body, '\"m', '\"x') WHERE position % 3 = 0")
        db.execute("UPDATE kode_messages SET digest = CAST('x' AS TEXT) WHERE position % 3 = 1")
        db.commit()
    async with SqliteStore("agents.db") as store:
        for order in ("asc", "desc"):
            positions: list[int] = []
            left_out: set[str] = set()
            cursor, is_last = None, False
            while not is_last:
                page = await store.query_messages(limit=7, order=order, cursor=cursor)
                cursor, is_last = page.next_cursor, page.next_cursor is None
                assert len(page) == 7 or is_last
                positions += [message.position for message in page]
                left_out |= set(page.left_out)
            assert sorted(positions) == list(range(2, 300, 3))
            assert positions == sorted(positions, reverse=order == "desc")
            assert left_out == {f"message {i} of agent 'a'" for i in range(300) if i % 3 != 2}
        assert [message.position for message in await store.query_messages(limit=3, offset=1, order="asc")] == [2, 5, 8]


def test_damaged_rows_cost_what_they_are(tmp_path: Path) -> None:
    """Twice as many damaged rows of one agent cost a query over all agents twice as much, not four times."""
    costs = []
    for count in (4_000, 8_000):
        with closing(sqlite3.connect(tmp_path / f"{count}.db", isolation_level=None)) as db:
            for statement in migrations.sql():
                db.execute(statement)
            db.execute(
                "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO kode_messages"
                " (agent_id, position, created_at, role, content_types, body, digest)"
                " SELECT 'a', i, i, 'user', char(10), 'x', 'no blob' FROM n",
                (count - 1,),
            )
            with counted(db) as steps:
                found = queries.find_rows(db, message_query({"limit": 100}))
            assert (len(found), len(found.left_out)) == (0, count)
            costs.append(steps[0])
    assert costs[1] < 2.2 * costs[0], costs


async def test_a_schema_that_is_no_utf_8(base: Path) -> None:
    """A damaged name or statement of the schema is damage of the database, whoever meets it first."""
    raw = bytearray(base.read_bytes())
    raw[raw.index(b"CREATE TRIGGER kode_totals_insert") + 3] ^= 0x80
    Path("agents.db").write_bytes(raw)
    with pytest.raises(CorruptRecordError, match=r"database .*agents\.db"):
        await SqliteStore("agents.db").open()


@pytest.mark.parametrize("statement", ["DROP TABLE kode_meta", "DELETE FROM kode_meta"])
async def test_tables_whose_version_is_gone(base: Path, statement: str) -> None:
    """No tables are made where there are some, and the error names the database; nothing is changed."""
    path = Path(shutil.copy(base, "agents.db"))
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement)
        db.commit()
        before = db.execute("SELECT name, sql FROM sqlite_master").fetchall()
        with pytest.raises(CorruptRecordError, match=r"database .*agents\.db"):
            await SqliteStore(str(path)).open()
        assert db.execute("SELECT name, sql FROM sqlite_master").fetchall() == before
