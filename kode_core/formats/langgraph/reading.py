"""The tables of LangGraph's savers: SqliteSaver and AsyncSqliteSaver, PostgresSaver and AsyncPostgresSaver."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from kode_core.authoring.foreign_tables import ForeignTables
from kode_core.errors import ConfigurationError
from kode_core.formats.langgraph.values import value_of
from kode_core.formats.tables import open_tables, parsed, require

__all__ = ["Checkpoints", "Stored", "Written", "open_checkpoints"]

_OWNER: Final = "LangGraph's savers"
_KEYS: Final = ("thread_id", "checkpoint_ns", "checkpoint_id")
_COLUMNS: Final = (*_KEYS, "parent_checkpoint_id", "checkpoint", "metadata")
_PAGE: Final = 500
_PLACE: Final = "thread_id = CAST($1 AS TEXT) AND checkpoint_ns = CAST($2 AS TEXT)"
_ONE: Final = f"{_PLACE} AND checkpoint_id = CAST($3 AS TEXT)"
_BLOBS: Final = (
    "SELECT b.channel, b.type, b.blob FROM checkpoint_blobs b JOIN unnest($3::text[], $4::text[]) AS w (c, v)"
    f" ON b.channel = w.c AND b.version = w.v WHERE {_PLACE}"
)


class Stored(msgspec.Struct):
    """One checkpoint.

    Attributes:
        checkpoint: what LangGraph keeps of it, without the values of the channels.
        values: the values of the channels.
    """

    ns: str
    id: str
    parent: str | None
    checkpoint: dict[str, Any]
    values: dict[str, Any]
    metadata: dict[str, Any]


class Written(msgspec.Struct):
    """One write of a task that no checkpoint has yet, or that the next one has."""

    task: str
    path: str
    number: int
    channel: str
    value: Any


class Checkpoints:
    """Reads checkpoints of one database; a thread has as many in memory as it has channels, not as it has steps."""

    def __init__(self, tables: ForeignTables, *, is_server: bool, has_paths: bool) -> None:
        self._tables = tables
        self._is_server = is_server
        self._has_paths = has_paths
        self._blobs: dict[tuple[str, str], tuple[str, Any]] = {}

    async def threads(self) -> AsyncIterator[object]:
        """The ids of all threads, each once; one that is no text comes last."""
        last, where = "", ""
        while True:
            rows = await self._tables.fetch(
                f"SELECT DISTINCT thread_id FROM checkpoints{where} ORDER BY thread_id LIMIT {_PAGE}",
                *([last] if where else []),
            )
            for row in rows:
                yield row[0]
            if len(rows) < _PAGE or not isinstance(rows[-1][0], str):
                return
            last, where = rows[-1][0], " WHERE thread_id > CAST($1 AS TEXT)"

    async def places(self, thread: str) -> list[tuple[str, str]]:
        """The namespace and the id of each checkpoint of a thread, in the order in which they were made."""
        self._blobs.clear()
        rows = await self._tables.fetch(
            "SELECT checkpoint_ns, checkpoint_id FROM checkpoints WHERE thread_id = CAST($1 AS TEXT)", thread
        )
        return sorted(((str(row[0]), str(row[1])) for row in rows), key=lambda place: (place[1], place[0]))

    async def read(self, thread: str, ns: str, checkpoint_id: str) -> Stored:
        """One checkpoint.

        Raises:
            ValueError: it cannot be read.
            RecursionError: a value is too deep.
        """
        kind = "NULL" if self._is_server else "type"
        rows = await self._tables.fetch(
            f"SELECT parent_checkpoint_id, {kind}, checkpoint, metadata FROM checkpoints WHERE {_ONE}",
            *(thread, ns, checkpoint_id),
        )
        if not rows:
            raise ValueError("its key is no text")
        parent, kind, raw, about = rows[0]
        whole = parsed(raw) if self._is_server else value_of(kind, raw)
        metadata = parsed(about) if about else {}
        if type(whole) is not dict or type(metadata) is not dict:
            raise ValueError("it is no checkpoint")
        versions, values = whole.get("channel_versions"), whole.pop("channel_values", None) or {}
        if type(versions) is not dict or type(values) is not dict or not all(type(name) is str for name in values):
            raise ValueError("it has no channels")
        if whole.get("id", checkpoint_id) != checkpoint_id or not isinstance(whole.get("ts"), str):
            raise ValueError("it has another id than its row, or no time")
        if self._is_server:
            values = {**values, **await self._of_blobs(thread, ns, versions)}
        return Stored(ns, checkpoint_id, str(parent) if parent else None, whole, values, metadata)

    async def _of_blobs(self, thread: str, ns: str, versions: dict[str, Any]) -> dict[str, Any]:
        """The values of a table of their own; only those that the checkpoint before did not have are read."""
        wanted = {channel: str(version) for channel, version in versions.items()}
        new = [channel for channel in wanted if self._blobs.get((ns, channel), ("",))[0] != wanted[channel]]
        if new:
            for channel in new:
                self._blobs.pop((ns, channel), None)
            for channel, kind, blob in await self._tables.fetch(
                _BLOBS, thread, ns, new, [wanted[channel] for channel in new]
            ):
                if kind == "empty":
                    continue
                try:
                    self._blobs[ns, channel] = (wanted[channel], value_of(kind, blob))
                except ValueError as exc:
                    raise ValueError(f"its channel {channel:.80}: {exc}") from None
        return {channel: self._blobs[ns, channel][1] for channel in wanted if (ns, channel) in self._blobs}

    async def writes(self, thread: str, ns: str, checkpoint_id: str) -> list[Written]:
        """The writes to one checkpoint, task by task.

        Raises:
            ValueError: one of them cannot be read.
            RecursionError: a value is too deep.
        """
        table, value = ("checkpoint_writes", "blob") if self._is_server else ("writes", "value")
        path = "task_path" if self._has_paths else "''"
        rows: Sequence[Sequence[Any]] = await self._tables.fetch(
            f"SELECT task_id, {path}, idx, channel, type, {value} FROM {table} WHERE {_ONE} ORDER BY 2, 1, 3",
            *(thread, ns, checkpoint_id),
        )
        found = []
        for task, task_path, number, channel, kind, raw in rows:
            try:
                found.append(Written(str(task), str(task_path), int(number), str(channel), value_of(kind, raw)))
            except (ValueError, TypeError) as exc:
                raise ValueError(f"its write to the channel {channel!s:.80}: {exc}") from None
        return found


@asynccontextmanager
async def open_checkpoints(source: str) -> AsyncIterator[Checkpoints]:
    """The checkpoints of a database, which is not changed: a file of SQLite, or a URL of PostgreSQL.

    Raises:
        ConfigurationError: there is no such database, or it has no checkpoints of LangGraph's.
        BackendImportError: the plugin that reads it is not installed.
        StorageError: it cannot be read.
    """
    async with open_tables(source) as tables:
        is_server = bool(await tables.columns("checkpoint_blobs"))
        found = await tables.columns("checkpoints")
        if found and "checkpoint_id" not in found:
            raise ConfigurationError("the checkpoints are those of ShallowPostgresSaver, which are not read")
        writes = "checkpoint_writes" if is_server else "writes"
        value = "blob" if is_server else "value"
        wanted = {
            "checkpoints": _COLUMNS if is_server else (*_COLUMNS, "type"),
            writes: (*_KEYS, "task_id", "idx", "channel", "type", value),
        }
        if is_server:
            wanted["checkpoint_blobs"] = ("thread_id", "checkpoint_ns", "channel", "version", "type", "blob")
        await require(tables, wanted, _OWNER)
        has_paths = "task_path" in await tables.columns(writes)
        yield Checkpoints(tables, is_server=is_server, has_paths=has_paths)
