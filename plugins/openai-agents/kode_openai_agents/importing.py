"""Reads the sessions that the SDK's own ``SQLiteSession`` and ``SQLAlchemySession`` keep, for ``kode import``."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, Protocol

from kode_core import (
    AgentInfo,
    AgentRecords,
    BackendImportError,
    ConfigurationError,
    Message,
    StoreUnavailableError,
    agent_key,
)
from kode_core.formats.importing import ForeignAgent, Found
from kode_openai_agents.items import is_failure, message_of
from kode_openai_agents.records import records_of
from kode_openai_agents.session import TEMPLATE

__all__ = ["open_sessions"]

_SESSIONS: Final = "agent_sessions"
_MESSAGES: Final = "agent_messages"
_SERVER: Final = ("postgres:", "postgresql:", "postgresql+asyncpg:")
_ROWS: Final = 1_000
_IDS: Final = f"SELECT session_id FROM {_SESSIONS} UNION SELECT session_id FROM {_MESSAGES} ORDER BY session_id"
_TIMES: Final = f"SELECT created_at, updated_at FROM {_SESSIONS} WHERE session_id = "
_ITEMS: Final = f"SELECT id, message_data, created_at FROM {_MESSAGES} WHERE session_id = "


class _Row(NamedTuple):
    """A row of the messages: its id, the text of its item, and its time as the driver gives it."""

    id: Any
    item: Any
    time: Any


class _Database(Protocol):
    async def session_ids(self) -> list[Any]: ...

    async def times(self, session_id: Any) -> tuple[Any, Any]: ...

    def items(self, session_id: Any) -> AsyncIterator[_Row]: ...


@asynccontextmanager
async def open_sessions(source: str) -> AsyncIterator[AsyncIterator[ForeignAgent]]:
    """The sessions of a database, which is not changed: a file of SQLite, or a URL of PostgreSQL.

    Raises:
        ConfigurationError: there is no such database, or it has no tables of sessions.
        BackendImportError: PostgreSQL is read by asyncpg, which is not installed.
        StoreUnavailableError: it cannot be read.
    """
    opened: AbstractAsyncContextManager[_Database]
    opened = _postgres(source) if source.startswith(_SERVER) else _sqlite(source.removeprefix("sqlite:///"))
    async with opened as database:
        yield _agents(database)


async def _agents(database: _Database) -> AsyncIterator[ForeignAgent]:
    for session_id in await database.session_ids():
        yield await _agent(database, session_id)


async def _agent(database: _Database, session_id: Any) -> ForeignAgent:
    found, items, times = Found(), list[dict[str, Any]](), list[int]()
    messages: list[Message] = []
    async for row in database.items(session_id):
        try:
            item = _parsed(row.item)
            message = message_of(item)
        except (ValueError, RecursionError) as exc:  # InvalidArgumentError is a ValueError, too
            found.damaged[f"{_MESSAGES} {row.id}: {exc}"[:300]] += 1
            continue
        time = _time_of(row.time)
        if time is None:
            found.changed["a message without a time has the one of the message before"] += 1
            time = times[-1] if times else 0
        elif times and time < times[-1]:  # the clock stepped back; a store's times never do
            found.changed["an earlier time than the message before became that one's time"] += 1
            time = times[-1]
        items.append(item)
        messages.append(message)
        times.append(time)
    created, updated = map(_time_of, await database.times(session_id))
    created = created if created is not None else times[0] if times else 0
    session = session_id.decode(errors="replace") if isinstance(session_id, bytes) else str(session_id)
    agent_id = agent_key("openai", session)
    records = AgentRecords(
        agent_id=agent_id,
        info=AgentInfo(agent_id=agent_id, template_id=TEMPLATE, created_at=created, metadata={"sessionId": session}),
        updated_at=max(created, updated or 0, *times[-1:]),
        messages=messages,
        message_times=times,
        tool_calls=records_of(items, {}, is_failure, times),
    )
    return ForeignAgent(records, found)


def _parsed(raw: object) -> Any:
    """The JSON value of a row; raises ValueError if it is none that a store can keep."""
    if not isinstance(raw, str | bytes):
        raise ValueError(f"no text but {type(raw).__name__}")
    return json.loads(raw, parse_constant=_refused)


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _time_of(given: object) -> int | None:
    """Milliseconds of a time as SQLite and PostgreSQL keep it: naive, in UTC; None if it is none."""
    try:
        text = given.decode() if isinstance(given, bytes) else given
        moment = datetime.fromisoformat(text) if isinstance(text, str) else text
        if not isinstance(moment, datetime):
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return int(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


# --- SQLite -----------------------------------------------------------------------------------------------------------


class _File:
    """A database of SQLite, read in threads."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def session_ids(self) -> list[Any]:
        return [row[0] for row in await self._fetch(_IDS)]

    async def times(self, session_id: Any) -> tuple[Any, Any]:
        rows = await self._fetch(f"{_TIMES}CAST(? AS TEXT)", session_id)
        return (rows[0][0], rows[0][1]) if rows else (None, None)

    async def items(self, session_id: Any) -> AsyncIterator[_Row]:
        last: Any = None
        while True:
            after = "" if last is None else " AND id > ?"
            given = (session_id,) if last is None else (session_id, last)
            rows = await self._fetch(f"{_ITEMS}CAST(? AS TEXT){after} ORDER BY id LIMIT {_ROWS}", *given)
            for row in rows:
                yield _Row(*row)
            if len(rows) < _ROWS:
                return
            last = rows[-1][0]

    async def _fetch(self, statement: str, *given: Any) -> list[Any]:
        try:
            return await asyncio.to_thread(lambda: self._connection.execute(statement, given).fetchall())
        except sqlite3.Error as exc:
            raise StoreUnavailableError(f"the database of sessions cannot be read: {exc}") from None


@asynccontextmanager
async def _sqlite(place: str) -> AsyncIterator[_Database]:
    path = Path(place)
    if not place or not await asyncio.to_thread(path.is_file):
        raise ConfigurationError(f"there is no file {place!r:.300}; name the database of the SDK's sessions")
    with tempfile.TemporaryDirectory(prefix="kode-import-") as folder:
        path = await asyncio.to_thread(_untouched, path, Path(folder))
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?immutable=1&mode=ro", uri=True, check_same_thread=False
        )
        try:
            connection.text_factory = bytes
            try:
                names = {row[0].decode() for row in connection.execute("SELECT name FROM sqlite_master")}
            except sqlite3.Error as exc:
                raise ConfigurationError(f"{place} is no database of SQLite: {exc}") from None
            if not {_SESSIONS, _MESSAGES} <= names:
                raise ConfigurationError(f"{place} has no tables {_SESSIONS} and {_MESSAGES} of the SDK's sessions")
            yield _File(connection)
        finally:
            connection.close()


def _untouched(path: Path, folder: Path) -> Path:
    """A file to read without a trace next to it: *path*, or a copy with its write-ahead log, which is applied there."""
    log = path.with_name(f"{path.name}-wal")
    if not log.is_file() or not log.stat().st_size:
        return path
    copy = folder / "sessions.db"
    shutil.copyfile(path, copy)
    shutil.copyfile(log, folder / "sessions.db-wal")
    connection = sqlite3.connect(copy)
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.execute("PRAGMA journal_mode=DELETE").fetchall()
    finally:
        connection.close()
    return copy


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


class _Server:
    """A database of PostgreSQL, read in one transaction, of one instant."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def session_ids(self) -> list[Any]:
        return [row[0] for row in await self._connection.fetch(_IDS)]

    async def times(self, session_id: Any) -> tuple[Any, Any]:
        row = await self._connection.fetchrow(f"{_TIMES}$1", session_id)
        return (None, None) if row is None else (row[0], row[1])

    async def items(self, session_id: Any) -> AsyncIterator[_Row]:
        async for row in self._connection.cursor(f"{_ITEMS}$1 ORDER BY id", session_id, prefetch=_ROWS):
            yield _Row(*row)


@asynccontextmanager
async def _postgres(url: str) -> AsyncIterator[_Database]:
    try:
        import asyncpg
    except ImportError:
        raise BackendImportError("sessions in PostgreSQL are read by asyncpg: pip install asyncpg") from None
    try:
        connection = await asyncpg.connect(url.replace("+asyncpg:", ":", 1), timeout=30)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        raise ConfigurationError(f"the database of sessions cannot be opened: {type(exc).__name__}") from None
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            for table in (_SESSIONS, _MESSAGES):
                if await connection.fetchval("SELECT to_regclass($1)", table) is None:
                    raise ConfigurationError(f"the database has no table {table} of the SDK's sessions")
            yield _Server(connection)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        raise StoreUnavailableError(f"the database of sessions cannot be read: {type(exc).__name__}") from None
    finally:
        await connection.close()
