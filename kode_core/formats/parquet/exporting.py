"""Writes the tables: row groups of bounded size, in a folder that appears once it is complete."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, TypeVar, Unpack

from kode_core.authoring.drafts import draft_of
from kode_core.authoring.files import make_file, system_error
from kode_core.engine import Progress, unwatched
from kode_core.errors import (
    BackendImportError,
    CorruptRecordError,
    InvalidArgumentError,
    KodeError,
)
from kode_core.formats.parquet.tables import (
    TABLES,
    Column,
    Row,
    event_row,
    message_row,
    session_row,
    size_of,
    tool_call_row,
)
from kode_core.moving import CopyReport, MovedAgent
from kode_core.moving.outcomes import OnAgent, Sum
from kode_core.moving.selecting import AgentFilter, Selection
from kode_core.protocols import ExtendedStore

__all__ = ["export_parquet"]

_ROWS: Final = 50_000
_BYTES: Final = 16 * 2**20
_CALLS: Final = 1_000

T = TypeVar("T")


async def export_parquet(
    store: ExtendedStore,
    directory: str | Path,
    *,
    on_agent: OnAgent | None = None,
    progress: Progress = unwatched,
    **filters: Unpack[AgentFilter],
) -> CopyReport:
    """Write agents to a new folder as ``sessions``, ``messages``, ``tool_calls`` and ``events``, each a ``.parquet``.

    The folder appears once all files are complete. Memory is bounded by row groups of 16 MB and by the ids of the
    agents. Agents come in the order of their ids, and others may write to a list while it is read. An agent without
    info has no row in ``sessions``. An agent with a record that cannot be read is reported as damaged; the rows that
    were read before are in the tables.

    Args:
        store: the store to read.
        directory: the folder to make; nothing may be there.
        on_agent: called with the outcome of each agent.
        progress: called with the number of agents that are done and of all.
        filters: which agents; all without them.

    Raises:
        BackendImportError: pyarrow is not installed; ``pip install 'kode-core[parquet]'``.
        InvalidArgumentError: a filter is wrong, or the folder exists.
        StoreFullError: there is no room for the files; nothing is left of them.
        StorageError: the files cannot be written.
    """
    selection, added = Selection(filters), Sum(on_agent)
    if not isinstance(directory, str | Path) or not str(directory):
        raise InvalidArgumentError("directory must be the path of a folder to make")
    async with _new_folder(Path(directory)) as folder, _opened(folder) as tables:
        chosen = await selection.ids(store)
        added.left_out = chosen.left_out
        for done, agent_id in enumerate(chosen.found, 1):
            added.add(await _agent(store, agent_id, tables))
            progress(done, len(chosen.found))
    return added.report()


# --- Rows -------------------------------------------------------------------------------------------------------------


async def _agent(store: ExtendedStore, agent_id: str, tables: dict[str, _Table]) -> MovedAgent:
    counts = dict.fromkeys(("message", "toolCall", "event"), 0)
    try:
        session = await store.load_session(agent_id)
        async for message in store.read_messages(agent_id):
            counts["message"] += 1
            await tables["messages"].add(message_row(message))
        async for row in _calls(store, agent_id):
            counts["toolCall"] += 1
            await tables["tool_calls"].add(row)
        async for event in store.read_events(agent_id, after_offset=0):
            counts["event"] += 1
            await tables["events"].add(event_row(agent_id, event))
        if session is not None:
            await tables["sessions"].add(session_row(session))
    except CorruptRecordError as exc:
        return MovedAgent(agent_id=agent_id, outcome="damaged", reason=str(exc), counts=counts)
    is_gone = session is None and not any(counts.values())
    return MovedAgent(agent_id=agent_id, outcome="gone" if is_gone else "copied", counts=counts)


async def _calls(store: ExtendedStore, agent_id: str) -> AsyncIterator[Row]:
    start = 0
    while True:
        after = start - 1 if start else None
        calls = await store.load_tool_call_records(agent_id, after=after, before=start + _CALLS)
        for position, call in enumerate(calls, start):
            yield tool_call_row(agent_id, position, call)
        if len(calls) < _CALLS:
            return
        start += _CALLS


# --- Files ------------------------------------------------------------------------------------------------------------


class _Table:
    """One file; its rows are held until a row group is full.

    They are held by columns: a tuple for each row would be looked at by every collection of garbage, which holds the
    event loop for as long.
    """

    def __init__(self, arrow: _Arrow, columns: tuple[Column, ...], file: IO[bytes]) -> None:
        self._arrow = arrow
        self._columns = columns
        self._file = file
        self._schema = arrow.schema(columns)
        self._writer = arrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._held: list[list[Any]] = [[] for _ in columns]
        self._rows = self._size = 0

    async def add(self, row: Row) -> None:
        """Take a row."""
        for values, value in zip(self._held, row, strict=True):
            values.append(value)
        self._rows += 1
        self._size += size_of(row)
        if self._rows >= _ROWS or self._size >= _BYTES:
            await self._flush()

    async def _flush(self) -> None:
        held, rows = self._held, self._rows
        self._held, self._rows, self._size = [[] for _ in self._columns], 0, 0
        await _in_thread(lambda: self._write(held, rows))

    def _write(self, held: list[list[Any]], rows: int) -> None:
        arrow, arrays = self._arrow.arrow, []
        for column, values in zip(self._schema, held, strict=True):
            if arrow.types.is_string(column.type):
                values = [value.decode() if isinstance(value, bytes) else value for value in values]
            arrays.append(arrow.array(values, type=column.type))
        self._writer.write_table(arrow.Table.from_arrays(arrays, schema=self._schema), row_group_size=rows)

    async def end(self) -> None:
        """Write the rest, and the end of the file, to the device."""
        if self._rows:
            await self._flush()
        await _in_thread(self._end)

    def drop(self) -> None:
        """End the writer, whether its file can be written or not."""
        with suppress(Exception):
            self._writer.close()
        self._writer.is_open = False  # otherwise the garbage collector tries it again

    def _end(self) -> None:
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())


class _Arrow:
    """The modules of pyarrow, which is imported on first use."""

    def __init__(self) -> None:
        try:
            self.arrow: Any = importlib.import_module("pyarrow")
            self.parquet: Any = importlib.import_module("pyarrow.parquet")
        except ImportError:
            raise BackendImportError("Parquet files need pyarrow: pip install 'kode-core[parquet]'") from None
        arrow = self.arrow
        self._types = {
            "text": arrow.string(),
            "texts": arrow.list_(arrow.string()),
            "json": arrow.string(),
            "int": arrow.int64(),
            "float": arrow.float64(),
            "bool": arrow.bool_(),
            "time": arrow.timestamp("ms", tz="UTC"),
        }

    def schema(self, columns: tuple[Column, ...]) -> Any:
        """The schema of a table."""
        fields = [(column.name, self._types[column.kind]) for column in columns]
        return self.arrow.schema(fields, metadata={"kode_core.tables": "1"})


@asynccontextmanager
async def _opened(folder: Path) -> AsyncIterator[dict[str, _Table]]:
    """The tables in *folder*; they are complete when the block ends without an error."""
    arrow = await _in_thread(_Arrow)  # the import takes a second
    files: list[IO[bytes]] = []
    tables: dict[str, _Table] = {}
    try:
        for name, columns in TABLES.items():
            path = folder / f"{name}.parquet"
            files.append(os.fdopen(make_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"))
            tables[name] = _Table(arrow, columns, files[-1])
        yield tables
        for table in tables.values():
            await table.end()
    finally:
        for table in tables.values():
            table.drop()
        for file in files:
            with suppress(OSError):
                file.close()


@asynccontextmanager
async def _new_folder(path: Path) -> AsyncIterator[Path]:
    """A folder that gets the name *path* when the block ends, and is removed if it ends with an error."""
    try:
        if os.path.lexists(path):
            raise InvalidArgumentError(f"{path} exists already; an export does not overwrite")
        with draft_of(path, lambda draft: draft.mkdir(mode=0o700)) as draft:
            yield draft
            if os.path.lexists(path):
                raise InvalidArgumentError(f"{path} exists by now; an export does not overwrite")
            draft.rename(path)
    except OSError as exc:
        if isinstance(exc, KodeError):  # of the store, not of the files
            raise
        raise system_error(exc, f"the tables in {path} cannot be written") from None


async def _in_thread(call: Callable[[], T]) -> T:
    """Call in a thread; a caller that is cancelled waits for its end, so that the file is not closed under it."""
    task = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
