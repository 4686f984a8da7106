"""The options of the SQLite backend."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from kode_core.authoring.modes import FileMode

__all__ = ["SqliteOptions"]


class SqliteOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the SQLite backend.

    Attributes:
        db_path: the database file, created with its folders if it does not exist; ``:memory:`` keeps it in this
            process.
        durability: ``full`` syncs every commit to the device (DUR-2). ``fast`` syncs at checkpoints only: a crash of
            the process loses nothing; a loss of power may lose the last commits and never damages the file.
        busy_timeout_ms: how long a write waits for other processes that are writing.
        readers: the maximum number of reading connections, besides the writer.
        file_mode: the mode of new files, including backups; users who may read the files may also enter the folders. An
            existing database keeps its mode, and its log has the same.
        text_index: create an index of the texts of messages when the database has none, so that ``contains`` does not
            read every message; see ``kode text-index``. A database that has one keeps it without this option.
    """

    db_path: Annotated[str, msgspec.Meta(min_length=1, extra={"path": True})] = "./data/agents.db"
    durability: Literal["full", "fast"] = "full"
    busy_timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 10_000
    readers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    file_mode: FileMode = "0600"
    text_index: bool = False
