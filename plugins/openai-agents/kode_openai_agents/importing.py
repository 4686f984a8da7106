"""Reads the sessions that the SDK's own ``SQLiteSession`` and ``SQLAlchemySession`` keep, for ``kode import``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from kode_core import AgentInfo, AgentRecords, Message, agent_key
from kode_core.authoring.foreign_tables import ForeignTables
from kode_core.formats.importing import ForeignAgent, Found
from kode_core.formats.tables import open_tables, parsed, require, time_of
from kode_openai_agents.items import is_failure, message_of
from kode_openai_agents.records import records_of
from kode_openai_agents.session import TEMPLATE

__all__ = ["open_sessions"]

_OWNER: Final = "the SDK's sessions"
_SESSIONS: Final = "agent_sessions"
_MESSAGES: Final = "agent_messages"
_WANTED: Final = {
    _SESSIONS: ("session_id", "created_at", "updated_at"),
    _MESSAGES: ("id", "session_id", "message_data", "created_at"),
}
_ROWS: Final = 1_000
_OF_ONE: Final = "WHERE session_id = CAST($1 AS TEXT)"
_IDS: Final = f"SELECT session_id FROM {_SESSIONS} UNION SELECT session_id FROM {_MESSAGES} ORDER BY session_id"
_TIMES: Final = f"SELECT created_at, updated_at FROM {_SESSIONS} {_OF_ONE}"
_ITEMS: Final = f"SELECT id, message_data, created_at FROM {_MESSAGES} {_OF_ONE}"


class _Row(NamedTuple):
    """A row of the messages: its id, the text of its item, and its time as the database gives it."""

    id: Any
    item: Any
    time: Any


@asynccontextmanager
async def open_sessions(source: str) -> AsyncIterator[AsyncIterator[ForeignAgent]]:
    """The sessions of a database, which is not changed: a file of SQLite, or a URL of PostgreSQL.

    Raises:
        ConfigurationError: there is no such database, or it has no tables of sessions.
        BackendImportError: the plugin that reads it is not installed.
        StorageError: it cannot be read.
    """
    async with open_tables(source) as tables:
        await require(tables, _WANTED, _OWNER)
        yield _agents(tables)


async def _agents(tables: ForeignTables) -> AsyncIterator[ForeignAgent]:
    for (session_id,) in await tables.fetch(_IDS):
        yield await _agent(tables, session_id)


async def _agent(tables: ForeignTables, session_id: Any) -> ForeignAgent:
    found, items, times = Found(), list[dict[str, Any]](), list[int]()
    messages: list[Message] = []
    if not isinstance(session_id, str):
        found.damaged[f"{_SESSIONS}: an id is no text but {type(session_id).__name__}"] += 1
        return ForeignAgent(AgentRecords(agent_id=agent_key("openai", repr(session_id)[:100])), found)
    async for row in _rows(tables, session_id):
        try:
            item = parsed(row.item)
            message = message_of(item)
        except (ValueError, RecursionError) as exc:  # InvalidArgumentError is a ValueError, too
            found.damaged[f"{_MESSAGES} {row.id}: {exc}"[:300]] += 1
            continue
        time = time_of(row.time)
        if time is None:
            found.changed["a message without a time has the one of the message before"] += 1
            time = times[-1] if times else 0
        elif times and time < times[-1]:  # the clock stepped back; a store's times never do
            found.changed["an earlier time than the message before became that one's time"] += 1
            time = times[-1]
        items.append(item)
        messages.append(message)
        times.append(time)
    rows = await tables.fetch(_TIMES, session_id)
    created, updated = map(time_of, rows[0] if rows else (None, None))
    created = created if created is not None else times[0] if times else 0
    session = session_id.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
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


async def _rows(tables: ForeignTables, session_id: str) -> AsyncIterator[_Row]:
    """The rows of a session in pages, in the order of their ids."""
    last: list[Any] = []
    while True:
        after = " AND id > $2" if last else ""
        rows = await tables.fetch(f"{_ITEMS}{after} ORDER BY id LIMIT {_ROWS}", session_id, *last)
        for row in rows:
            yield _Row(*row)
        if len(rows) < _ROWS:
            return
        last = [rows[-1][0]]
