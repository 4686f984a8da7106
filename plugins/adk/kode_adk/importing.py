"""Reads the sessions that ADK's ``DatabaseSessionService`` and ``SqliteSessionService`` keep, for ``kode import``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any, Final

from google.adk.events.event import Event

from kode_adk.databases import open_database
from kode_adk.events import as_json, message_of, results_in, tool_calls_of
from kode_adk.pickled import plain_actions
from kode_adk.scopes import COLLECTION, scope_agent, state_document
from kode_adk.service import EVENTS, TEMPLATE, event_key, session_metadata
from kode_core import (
    AgentInfo,
    AgentRecords,
    ConfigurationError,
    Document,
    Json,
    Message,
    PutDocument,
    ToolCallRecord,
    agent_key,
)
from kode_core.authoring.foreign_tables import ForeignTables
from kode_core.formats.importing import ForeignAgent, Found
from kode_core.formats.tables import bare_scheme, parsed, require, seconds_of, time_of

__all__ = ["open_sessions"]

_OWNER: Final = "ADK's services of sessions"
_PAGE: Final = 200
_PLACE: Final = ("app_name", "user_id")
_SESSIONS: Final = (*_PLACE, "id", "state", "create_time", "update_time")
_EVENTS: Final = ("id", *_PLACE, "session_id", "invocation_id", "timestamp")
_VERSIONS: Final = ("0", "1")
_PICKLED: Final = "actions"
_TEXTS: Final = ("author", "branch", "error_code", "error_message")
_FLAGS: Final = ("partial", "turn_complete", "interrupted")
_JSON: Final = (
    "content",
    "grounding_metadata",
    "custom_metadata",
    "usage_metadata",
    "citation_metadata",
    "input_transcription",
    "output_transcription",
)
_TOOL_IDS: Final = "long_running_tool_ids_json"
_KEPT: Final = "event_data"


@asynccontextmanager
async def open_sessions(source: str) -> AsyncIterator[AsyncIterator[ForeignAgent]]:
    """The sessions of a database, which is not changed: a file of SQLite, or a URL of ``DatabaseSessionService``.

    The states of apps and users come first, and then the sessions with their events and their own state.

    Raises:
        ConfigurationError: there is no such database, or it has no tables of sessions in a known form.
        BackendImportError: a package that reads it is not installed.
        StorageError: it cannot be read.
    """
    async with open_database(source) as tables:
        wanted = {"sessions": _SESSIONS, "events": _EVENTS, "app_states": ("app_name", "state")}
        await require(tables, {**wanted, "user_states": (*_PLACE, "state")}, _OWNER)
        await _check_version(tables)
        columns = await tables.columns("events")
        if _KEPT not in columns and _PICKLED not in columns:
            raise ConfigurationError("the events of the database have neither a column event_data nor actions")
        is_file = "://" not in source or bare_scheme(source).startswith("sqlite:")
        yield _Sessions(tables, columns, is_file=is_file).agents()


async def _check_version(tables: ForeignTables) -> None:
    """Refuse a form of the tables that is later than the ones that are known here."""
    if not await tables.columns("adk_internal_metadata"):
        return
    for row in await tables.fetch("SELECT * FROM adk_internal_metadata"):
        if row[0] == "schema_version" and str(row[1]) not in _VERSIONS:
            raise ConfigurationError(f"the tables have version {row[1]!s:.40} of ADK's schema; known are 0 and 1")


class _Sessions:
    """Reads the rows of one database; a file is read by ``rowid``, since SQLite lets a key be NULL, or no text."""

    def __init__(self, tables: ForeignTables, columns: frozenset[str], *, is_file: bool) -> None:
        self._tables = tables
        self._is_file = is_file
        self._is_pickled = _KEPT not in columns
        fields = (_PICKLED, _TOOL_IDS, *_TEXTS, *_FLAGS, *_JSON) if self._is_pickled else (_KEPT,)
        self._fields = ("id", "invocation_id", "timestamp", *(name for name in fields if name in columns))

    async def agents(self) -> AsyncIterator[ForeignAgent]:
        for table, place in (("app_states", _PLACE[:1]), ("user_states", _PLACE)):
            async for row in self._rows(table, place, ("state", "update_time")):
                agent = _state(table, [row[name] for name in place], row)
                if agent.records.documents or agent.found.damaged:
                    yield agent
        async for row in self._rows("sessions", (*_PLACE, "id"), ("state", "create_time", "update_time")):
            yield await self._session(row)

    async def _rows(self, table: str, key: Sequence[str], more: Sequence[str]) -> AsyncIterator[dict[str, Any]]:
        """The rows of a table in pages, in the order of their key."""
        names = (*key, *more)
        order = ("rowid",) if self._is_file else tuple(key)
        last: Sequence[Any] = ()
        while True:
            where = f" WHERE {_after(order)}" if last else ""
            rows = await self._tables.fetch(
                f"SELECT {', '.join((*order, *names))} FROM {table}{where} ORDER BY {', '.join(order)} LIMIT {_PAGE}",
                *last,
            )
            for row in rows:
                yield dict(zip(names, row[len(order) :], strict=True))
            if len(rows) < _PAGE:
                return
            last = rows[-1][: len(order)]

    async def _session(self, row: Mapping[str, Any]) -> ForeignAgent:
        found, place = Found(), [row[name] for name in (*_PLACE, "id")]
        if not _is_key(place):
            return _unnamed("sessions", place)
        app, user, session_id = place
        agent_id = agent_key(TEMPLATE, app, user, session_id.strip())
        state = _object(row["state"], "sessions: its state", found)
        events = _Events(found)
        tie = "rowid" if self._is_file else "id"
        for values in await self._tables.fetch(
            f"SELECT {', '.join(self._fields)} FROM events"
            f" WHERE app_name = $1 AND user_id = $2 AND session_id = $3 ORDER BY timestamp, {tie}",
            *place,
        ):
            events.add(dict(zip(self._fields, values, strict=True)), is_pickled=self._is_pickled)
        created = _time(row["create_time"], "create_time", found)
        updated = seconds_of(row["update_time"])
        if updated is None:
            updated = max(created, *events.times[-1:], 0) / 1000
            found.changed["sessions: update_time is no time, and became the one of the last event"] += 1
        revision = blake2b(f"{updated!r} {len(events.messages)}".encode(), digest_size=16).hexdigest()
        info = AgentInfo(
            agent_id=agent_id,
            template_id=TEMPLATE,
            created_at=created,
            metadata=session_metadata(app, user, session_id, state, updated, revision),
        )
        records = AgentRecords(
            agent_id=agent_id,
            info=info,
            updated_at=max([created, int(updated * 1000), *events.times[-1:]]),
            messages=events.messages,
            message_times=events.times,
            tool_calls=list(events.calls.values()),
            documents=events.documents,
        )
        return ForeignAgent(records, found)


def _after(order: Sequence[str]) -> str:
    """The condition of rows after one, in words that every server knows."""
    parts = []
    for i, name in enumerate(order, 1):
        equal = "".join(f"{before} = ${j} AND " for j, before in enumerate(order[: i - 1], 1))
        parts.append(f"({equal}{name} > ${i})")
    return f"({' OR '.join(parts)})"


class _Events:
    """The events of one session as messages, with what is derived from them."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self.messages: list[Message] = []
        self.times: list[int] = []
        self.calls: dict[str, ToolCallRecord] = {}
        self.documents: list[Document] = []
        self._ids: set[str] = set()

    def add(self, row: Mapping[str, Any], *, is_pickled: bool) -> None:
        """Add the event of a row; one that cannot be read is noted."""
        try:
            event = Event.model_validate(_pickled_event(row) if is_pickled else _event(row))
            message = message_of(event)
            known = [self.calls[call_id] for call_id in results_in(message) if call_id in self.calls]
            calls = tool_calls_of(event, message, known)
            time = time_of(event.timestamp)
        except (ValueError, TypeError, RecursionError) as exc:
            problem = " ".join(str(exc).split())
            self._found.damaged[f"events {row['id']!s:.80}: {problem}"[:300]] += 1
            return
        last = self.times[-1] if self.times else 0
        if time is None or time < last:
            self._found.changed["events: a time before the one of the event before became that one's"] += 1
            time = last
        key = event_key(message)
        if key not in self._ids:
            self._ids.add(key)
            self.documents.append(
                Document(collection=EVENTS, key=key, value=len(self.messages), version="", updated_at=time)
            )
        self.messages.append(message)
        self.times.append(time)
        self.calls.update((call.id, call) for call in calls)


def _event(row: Mapping[str, Any]) -> dict[str, Any]:
    """An event as the current tables keep it."""
    kept = {} if row[_KEPT] is None else _json(row[_KEPT])
    if type(kept) is not dict:
        raise ValueError(f"its event_data is no object but {type(kept).__name__}")
    time = kept.get("timestamp")
    return {
        **kept,
        "id": row["id"],
        "invocation_id": row["invocation_id"],
        "timestamp": _seconds(row) if time is None else time,
    }


def _pickled_event(row: Mapping[str, Any]) -> dict[str, Any]:
    """An event as the tables of ADK up to 1.21 keep it, with pickled actions."""
    event: dict[str, Any] = {"id": row["id"], "invocation_id": row["invocation_id"], "timestamp": _seconds(row)}
    event.update((name, row.get(name)) for name in _TEXTS)
    event.update((name, None if row.get(name) is None else bool(row[name])) for name in _FLAGS)
    event.update((name, _json(row[name])) for name in _JSON if row.get(name) is not None)
    event["actions"] = plain_actions(row[_PICKLED])
    event["long_running_tool_ids"] = _json(row[_TOOL_IDS]) if row.get(_TOOL_IDS) else []
    return event


def _seconds(row: Mapping[str, Any]) -> float:
    time = seconds_of(row["timestamp"])
    if time is None:
        raise ValueError("it has no time")
    return time


def _json(value: object) -> Any:
    """The JSON of a column; a driver may have read it already."""
    return value if isinstance(value, dict | list) else parsed(value)


def _object(value: object, where: str, found: Found) -> dict[str, Json]:
    try:
        state = {} if value is None else _json(value)
        if type(state) is not dict:
            raise ValueError(f"no object but {type(state).__name__}")
        as_json(state, "state")
    except (ValueError, RecursionError) as exc:
        found.damaged[f"{where}: {exc}"[:300]] += 1
        return {}
    return state


def _time(value: object, name: str, found: Found) -> int:
    time = time_of(value)
    if time is None:
        found.changed[f"sessions: {name} is no time, and became 0"] += 1
    return time or 0


def _is_key(place: Sequence[object]) -> bool:
    try:
        return all(isinstance(name, str) and name.encode() is not None for name in place)
    except UnicodeEncodeError:
        return False


def _unnamed(table: str, place: Sequence[object]) -> ForeignAgent:
    """The agent of a row whose key is no text."""
    found = Found()
    found.damaged[f"{table}: the key {place!r:.120} has a part that is no text"] += 1
    return ForeignAgent(AgentRecords(agent_id=agent_key(TEMPLATE, repr(place))), found)


def _state(table: str, place: Sequence[Any], row: Mapping[str, Any]) -> ForeignAgent:
    """The state of an app, or of one of its users."""
    if not _is_key(place):
        return _unnamed(table, place)
    found = Found()
    state = _object(row["state"], f"{table}: the state", found)
    at = time_of(row["update_time"]) or 0
    documents: list[Document] = []
    for key, value in state.items():
        try:
            put: PutDocument = state_document(key, value)
        except ValueError as exc:
            found.damaged[f"{table}: the key {key!r:.80}: {exc}"[:300]] += 1
            continue
        documents.append(Document(collection=COLLECTION, key=put.key, value=put.value, version="", updated_at=at))
    return ForeignAgent(AgentRecords(agent_id=scope_agent(*place), documents=documents), found)
