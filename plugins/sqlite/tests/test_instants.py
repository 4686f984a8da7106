"""What a read of several statements finds while others write, and what a write finds that was damaged."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kode_conformance import samples
from kode_sqlite import SqliteStore
from kode_sqlite.reads import head

from kode_core import CorruptRecordError


class Between(sqlite3.Connection):
    """A connection that lets somebody else write after its first statement."""

    write: Callable[[], object] | None = None

    def execute(self, statement: str, parameters: Any = (), /) -> sqlite3.Cursor:
        rows = super().execute(statement, parameters)
        write, self.write = self.write, None
        if write is not None:
            rows = _Read(rows.fetchall())  # type: ignore[assignment]
            write()
        return rows


class _Read:
    """Rows that were read."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def fetchone(self) -> Any:
        return self._rows[0] if self._rows else None


def test_an_agent_that_is_made_while_it_is_looked_for_is_not_corrupt(tmp_path: Path) -> None:
    """Who looks for an agent sees none, or the whole of it, at whatever moment another makes it (MSG-7, OPS-4)."""
    path = tmp_path / "agents.db"

    async def save(agent_id: str) -> None:
        async with SqliteStore(db_path=str(path)) as store:
            await store.save_info(agent_id, samples.info(agent_id))

    asyncio.run(save("other"))
    with closing(sqlite3.connect(path, factory=Between)) as db:
        db.write = lambda: asyncio.run(save("a"))
        assert head(db, "a") is None
        found = head(db, "a")
        assert found is not None
        assert found.info is not None


@pytest.mark.parametrize("time", ["'abc'", "x'0102'"])
async def test_an_append_after_a_message_of_no_time_is_refused(tmp_path: Path, time: str) -> None:
    """A message whose time is damaged is named by an append, too, and other agents are written (OPS-4, OPS-17)."""
    path = tmp_path / "agents.db"
    async with SqliteStore(db_path=str(path)) as store:
        await store.save_messages("a", samples.messages(3))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"UPDATE kode_messages SET created_at = {time} WHERE position = 1")
    async with SqliteStore(db_path=str(path)) as store:
        appends = [store.append_messages(agent_id, samples.messages(1)) for agent_id in ("a", "b")]
        damaged, sound = await asyncio.gather(*appends, return_exceptions=True)
        assert isinstance(damaged, CorruptRecordError)
        assert "the time of a message of agent 'a'" in str(damaged)
        assert sound is None
