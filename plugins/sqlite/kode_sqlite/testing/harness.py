"""Harnesses of the SQLite store for kode-conformance: everything in the database, and the hybrid layout."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from kode_conformance import Costs, Handle, Space, StoreHarness

from kode_core import Store, create_extended_store
from kode_core.backends.json_files.files import file_name

__all__ = ["HybridHarness", "SqliteHarness"]

_FRAME: Final = struct.Struct(">II8s8x")
"""A frame's header in the log: its page, the size of the database if it ends a commit, the log's salts."""
_LOG: Final = struct.Struct(">8xII8s8x")
"""The log's header: the page size, the number of restarts of the log, its salts."""


class SqliteHarness(StoreHarness):
    """Everything in the database."""

    name = "sqlite"
    versions: Mapping[str, str] = {
        "sqlite": sqlite3.sqlite_version,
        "aiosqlite": version("aiosqlite"),
        "kode-sqlite": version("kode-sqlite"),
    }

    async def provision(self, space: Space) -> Handle:
        return {"db_path": str(space.folder / "agents.db")}

    async def open(self, handle: Handle) -> Store:
        return await self.open_with(handle)

    async def open_with(self, handle: Handle, **options: Any) -> Store:
        return await create_extended_store(type="sqlite", **handle, **options)

    async def restored(self, handle: Handle, paths: Sequence[Path]) -> Handle:
        return {"db_path": str(paths[0])}

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        with closing(sqlite3.connect(handle["db_path"])) as db:
            damaged = "UPDATE kode_messages SET body = replace(body, 'message 0', 'message !') WHERE agent_id = ?"
            assert db.execute(f"{damaged} AND position = 0", (agent_id,)).rowcount == 1
            db.commit()

    async def raw_dump(self, handle: Handle) -> str:
        with closing(sqlite3.connect(handle["db_path"])) as db:
            return "\n".join(db.iterdump())

    async def raise_version(self, handle: Handle) -> None:
        with closing(sqlite3.connect(handle["db_path"])) as db:
            db.execute("UPDATE kode_meta SET value = 99 WHERE key = 'schema_version'")
            db.commit()

    async def costs(self, handle: Handle) -> Costs:
        return Costs(commits=_commits_in_log(Path(f"{handle['db_path']}-wal")))


def _commits_in_log(path: Path) -> int | None:
    """The number of commits in the log; each restart of the log counts as very many."""
    raw = path.read_bytes() if path.exists() else b""
    if len(raw) < _LOG.size:
        return None
    page_size, beginnings, salts = _LOG.unpack_from(raw)
    starts = range(_LOG.size, len(raw) - _FRAME.size - page_size + 1, _FRAME.size + page_size)
    frames = (_FRAME.unpack_from(raw, start) for start in starts)
    commits: int = sum(size > 0 and salt == salts for _, size, salt in frames)
    return (int(beginnings) << 32) + commits


class HybridHarness(SqliteHarness):
    """Events, todos, history and media in files next to the database."""

    name = "sqlite-hybrid"

    async def provision(self, space: Space) -> Handle:
        return {"db_path": str(space.folder / "agents.db"), "file_store_base_dir": str(space.folder / "files")}

    async def files_of(self, handle: Handle, agent_id: str) -> Sequence[Path]:
        return [Path(handle["file_store_base_dir"]) / f"{file_name(agent_id)}.jsonl"]

    async def raw_dump(self, handle: Handle) -> str:
        files = sorted(Path(handle["file_store_base_dir"]).rglob("*"))
        texts = [path.read_text() for path in files if path.is_file()]
        return "\n".join([await super().raw_dump(handle), *texts])

    async def restored(self, handle: Handle, paths: Sequence[Path]) -> Handle:
        database, folder = paths
        return {"db_path": str(database), "file_store_base_dir": str(folder)}
