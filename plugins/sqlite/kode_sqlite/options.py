"""The options of the SQLite backend."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from kode_core.modes import FileMode

__all__ = ["SqliteOptions"]


class SqliteOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the SQLite backend.

    Attributes:
        db_path: the database file, made with its folders when it is not there; ``:memory:`` keeps it in this process.
        durability: ``full`` syncs every commit to the device (DUR-2). ``fast`` syncs at checkpoints only: a crash of
            the process loses nothing, a loss of power may lose the last commits and never damages the file.
        busy_timeout_ms: how long a write waits for other processes that write.
        readers: how many connections read beside the writer, at most.
        file_mode: the mode of the files that are made, backups too; those who may read them may also enter the
            folders. A database that is there keeps its mode, and its log has the same.
    """

    db_path: Annotated[str, msgspec.Meta(min_length=1, extra={"path": True})] = "./data/agents.db"
    durability: Literal["full", "fast"] = "full"
    busy_timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 10_000
    readers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    file_mode: FileMode = "0600"
