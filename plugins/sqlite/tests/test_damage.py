"""SQLite keeps any value in any column: what becomes of a store whose rows were changed by hand."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from kode_conformance.values import samples
from kode_sqlite import SqliteStore

from kode_core import CorruptRecordError
from tests.damaged import ALL, Case, fill, judge

NO_TEXT: Final = "CAST(x'6161ff' AS TEXT)"
HUGE: Final = "9223372036854775807"


def one(*names: str) -> frozenset[str]:
    return frozenset(names)


def row(table: str, column: str, value: str, reads: str = "", *, where: str = "position = 1") -> Case:
    kind = table.removeprefix("kode_")
    statement = f"UPDATE {table} SET \"{column}\" = {value} WHERE agent_id = 'a' AND {where}"
    return Case(statement, one(*(reads or kind).split()), one(kind) if kind in ("messages", "tool_calls") else one())


def head(column: str, value: str, fails: frozenset[str], left_out: frozenset[str] = frozenset()) -> Case:
    return Case(f"UPDATE kode_agents SET {column} = {value} WHERE agent_id = 'a'", fails, left_out)


TODOS: Final = "kind = 'todos'"
EVENT: Final = "seq = 2"
CASES: Final = [
    *(
        row(f"kode_{t}", "body", v)
        for t in ("messages", "tool_calls")
        for v in ("5", "x'ff00'", NO_TEXT, "'zzz'", "''")
    ),
    *(row(f"kode_{t}", "digest", v) for t in ("messages", "tool_calls") for v in ("5", "x'ff00'", NO_TEXT, "''")),
    *(row("kode_messages", "created_at", v) for v in ("'abc'", "1.5", "x'0102'")),
    *(row("kode_tool_calls", "created_at", v) for v in ("'abc'", "1.5", "x'0102'")),
    *(row("kode_messages", "position", v)._replace(left_out=one("messages")) for v in ("'abc'", "1.5", "x'0102'")),
    *(row("kode_messages", "position", v)._replace(left_out=one()) for v in ("-7", "17", HUGE)),
    *(row("kode_tool_calls", "position", v)._replace(left_out=one()) for v in ("-7", "17", HUGE)),
    row("kode_tool_calls", "tool_name", "x'ff00'", "stats")._replace(left_out=one(), is_found=False),
    *(row("kode_docs", "body", v, "todos", where=TODOS) for v in ("5", "x'ff00'", NO_TEXT, "'null'")),
    *(row("kode_docs", "digest", v, "todos", where=TODOS) for v in ("5", "x'ff00'")),
    *(row("kode_docs", "time", v, "todos", where=TODOS) for v in ("'abc'", "1.5", "x'01'")),
    *(
        row("kode_docs", column, v, where=TODOS)._replace(fails=one(), changes=one("todos"))
        for column in ("kind", "key")
        for v in ("5", "x'ff00'", NO_TEXT, "'zzz'")
    ),
    *(
        row("kode_events", column, v, "events events_by_offset", where=EVENT)
        for column, v in (("body", "5"), ("body", NO_TEXT), ("digest", "'x'"), ("seq", "1.5"))
    ),
    *(row("kode_events", "seq", v, "events events_by_offset bookmark", where=EVENT) for v in ("'abc'", "x'01'")),
    *(
        row("kode_infos", "body", v, "info", where="1")._replace(left_out=one("sessions"))
        for v in ("5", "'{}'", NO_TEXT)
    ),
    *(head("message_version", v, ALL - {"tool_calls"}) for v in ("'abc'", "1.5", "-7", HUGE)),
    *(head("message_count", v, ALL - {"tool_calls"}, one("sessions")) for v in ("'abc'", "1.5", "-7", HUGE)),
    *(
        head(c, v, ALL - {"messages"})
        for c in ("tool_call_version", "tool_call_count")
        for v in ("'abc'", "1.5", "-7", HUGE)
    ),
    *(head("updated_at", v, one("info", "exists"), one("sessions")) for v in ("'abc'", "1.5", "x'01'")),
    *(head("created_at", v, one("info", "exists"), one("sessions")) for v in ("'abc'", "1.5", "x'01'")),
    Case("UPDATE kode_agents SET created_at = NULL WHERE agent_id = 'a'", one("info", "exists")),
    Case("UPDATE kode_agents SET template_id = NULL WHERE agent_id = 'a'", one("info", "exists")),
    Case("UPDATE kode_agents SET template_id = 'other' WHERE agent_id = 'a'"),
    Case(f"UPDATE kode_agents SET last_op = {NO_TEXT} WHERE agent_id = 'a'", is_found=False),
    Case(f"UPDATE kode_metadata SET value = {NO_TEXT} WHERE agent_id = 'a'", is_found=False),
    Case("DELETE FROM kode_agents WHERE agent_id = 'a'", ALL),
    Case("DELETE FROM kode_infos WHERE agent_id = 'a'", one("info", "exists"), one("sessions")),
    Case("DELETE FROM kode_messages WHERE agent_id = 'a'", one("messages")),
    Case("DELETE FROM kode_messages WHERE agent_id = 'a' AND position = 0", one("messages")),
    Case("DELETE FROM kode_messages WHERE agent_id = 'a' AND position = 2", one("messages")),
    Case("DELETE FROM kode_messages WHERE agent_id = 'a' AND position = 4", one("messages")),
    Case("DELETE FROM kode_tool_calls WHERE agent_id = 'a' AND position = 0", one("tool_calls", "stats")),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with two agents."""
    path = tmp_path_factory.mktemp("base") / "agents.db"

    async def make() -> None:
        async with SqliteStore(str(path), durability="fast") as store:
            await fill(store)

    asyncio.run(make())
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.statement)
async def test_damage_of_a_row(base: Path, case: Case) -> None:
    """Calls that need the row fail by its name, searches leave it out and name it; nothing else is any different."""
    shutil.copy(base, "agents.db")

    async def damage() -> None:
        with closing(sqlite3.connect("agents.db")) as db:
            assert db.execute(case.statement).rowcount >= 1
            db.commit()

    await judge(lambda: SqliteStore("agents.db", durability="fast"), damage, case)


@pytest.mark.parametrize("value", ["x'ff00'", NO_TEXT])
async def test_an_agent_id_that_is_no_text(base: Path, value: str) -> None:
    """It is left out of the list, and the check tells of the table that has it."""
    shutil.copy(base, "agents.db")
    with closing(sqlite3.connect("agents.db")) as db:
        for table in ("kode_agents", "kode_messages"):
            db.execute(f"UPDATE {table} SET agent_id = {value} WHERE agent_id = 'a'")
        db.commit()
    async with SqliteStore("agents.db") as store:
        assert await store.list() == ["b"]
        told = {issue.message for issue in (await store.check_consistency()).issues if not issue.agent_id}
        assert told == {
            f"a row of {t} whose agent_id is no text cannot be read" for t in ("kode_agents", "kode_messages")
        }


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM sqlite_sequence", "UPDATE sqlite_sequence SET seq = 2", "UPDATE sqlite_sequence SET seq = 'x'"],
)
async def test_a_lost_sequence_gives_no_offset_again(base: Path, statement: str) -> None:
    """The offsets that are stored count, too."""
    shutil.copy(base, "agents.db")
    with closing(sqlite3.connect("agents.db")) as db:
        db.execute(statement)
        db.commit()
    async with SqliteStore("agents.db") as store:
        old = [event.offset async for event in store.read_events("b")]
        assert await store.append_event("a", samples.event(9)) > max(old)


async def test_an_append_replaces_nothing_that_a_head_does_not_know(base: Path) -> None:
    """Where the head is gone, or counts too little, the rows that are there stay, and the write says so."""
    shutil.copy(base, "agents.db")
    with closing(sqlite3.connect("agents.db")) as db:
        db.execute("UPDATE kode_agents SET message_count = 3 WHERE agent_id = 'a'")
        db.execute("DELETE FROM kode_agents WHERE agent_id = 'b'")
        db.commit()
        rows = "SELECT agent_id, position, body FROM kode_messages ORDER BY agent_id, position"
        before = db.execute(rows).fetchall()
        async with SqliteStore("agents.db") as store:
            for agent_id in ("a", "b"):
                with pytest.raises(CorruptRecordError, match="the head counts"):
                    await store.append_messages(agent_id, samples.messages(1))
        assert db.execute(rows).fetchall() == before


async def test_totals_that_were_changed_by_hand(base: Path) -> None:
    """The check tells of them; where they are gone, everything is counted."""
    shutil.copy(base, "agents.db")
    with closing(sqlite3.connect("agents.db")) as db:
        for statement, codes in (
            ("UPDATE kode_totals SET messages = 99", ["count_disagrees"]),
            ("DELETE FROM kode_totals", []),
        ):
            db.execute(statement)
            db.commit()
            async with SqliteStore("agents.db") as store:
                assert [issue.code for issue in (await store.check_consistency()).issues] == codes
                storage = (await store.get_metrics()).storage
                assert (storage.total_agents, storage.total_messages == 10) == (2, not codes)
