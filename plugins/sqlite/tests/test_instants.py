"""What a read of several statements finds while others write."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from kode_conformance.values import samples
from kode_sqlite import SqliteStore
from kode_sqlite.reads import summary


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
        assert summary(db, "a") is None
        found = summary(db, "a")
        assert found is not None
        assert found.info is not None
