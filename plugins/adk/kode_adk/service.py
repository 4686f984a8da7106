"""The session service: a session is an agent, and its events are the messages of that agent."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from google.adk.errors import StaleSessionError
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events.event import Event
from google.adk.platform import time as platform_time
from google.adk.platform import uuid as platform_uuid
from google.adk.sessions.base_session_service import BaseSessionService, GetSessionConfig, ListSessionsResponse
from google.adk.sessions.session import Session
from msgspec.structs import replace

from kode_adk.events import RAW, event_of, has_results, message_of, tool_calls_of
from kode_adk.loops import LoopStores
from kode_adk.scopes import SESSION, Scopes, pending_key, split_state
from kode_core import (
    ABSENT,
    AgentInfo,
    ConflictError,
    ExtendedStore,
    Json,
    Message,
    PutDocument,
    SessionFilter,
    agent_key,
    lazy_store,
)

__all__ = ["EVENTS", "TEMPLATE", "KodeSessionService", "event_key", "session_metadata"]

TEMPLATE: Final = "adk"
_SCHEME: Final = "kode:"
EVENTS: Final = "events"
_APP, _USER, _ID, _STATE, _TIME, _REVISION = "appName", "userId", "sessionId", "state", "lastUpdateTime", "revision"
_OPEN_CALLS: Final = 100
"""How many of the last tool calls of a session are looked through for the call of a result."""
_STEP: Final = 100
"""How many events are read before other tasks of the loop have a turn."""


class KodeSessionService(BaseSessionService):
    """Sessions of ADK in any store of kode_core.

    A session is an agent, whose id :meth:`agent_id` gives. Its events are messages, its state is in the metadata of its
    info, and both are written in one commit. The states of apps and users are documents, of which concurrent changes of
    different keys lose nothing.

    *store* is a URL, a path or a mapping, as for ``create_extended_store``, or a store that the program has opened. The
    first is opened at the first call of each event loop, and closed by :meth:`close` or at the end of the loop; the
    second stays open. *uri* is for ADK's registry of services: such a URL with ``kode:`` in front.
    """

    def __init__(
        self,
        store: ExtendedStore | str | os.PathLike[str] | Mapping[str, Any] | None = None,
        *,
        uri: str | None = None,
        agents_dir: str | None = None,
        **options: Any,
    ) -> None:
        self._given = store if isinstance(store, ExtendedStore) else None
        if uri is not None:
            store = uri.removeprefix(_SCHEME) or None
        target = None if isinstance(store, ExtendedStore) else store
        self._loops = None if self._given else LoopStores(lambda: lazy_store(target, **options))

    async def store(self) -> ExtendedStore:
        """The store of the running event loop."""
        if self._given is not None:
            return self._given
        assert self._loops is not None
        return await self._loops.store()

    async def close(self) -> None:
        """Close the store, if this service has opened it."""
        if self._loops is not None:
            await self._loops.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def agent_id(self, app_name: str, user_id: str, session_id: str) -> str:
        """The agent that has a session."""
        return agent_key(TEMPLATE, app_name, user_id, session_id.strip())

    # --- sessions

    async def create_session(
        self, *, app_name: str, user_id: str, state: dict[str, Any] | None = None, session_id: str | None = None
    ) -> Session:
        """Create a session; of several callers with one id exactly one succeeds.

        Raises:
            AlreadyExistsError: there is a session with that id.
            InvalidValueError: a value of *state* has no JSON.
        """
        store = await self.store()
        session_id = (session_id or "").strip() or platform_uuid.new_uuid()
        agent_id, deltas = self.agent_id(app_name, user_id, session_id), split_state(state)
        scopes = Scopes(store, app_name, user_id)
        now, revision = platform_time.get_time(), uuid.uuid4().hex
        metadata = session_metadata(app_name, user_id, session_id, deltas[SESSION], now, revision)
        pending, name = await scopes.pending(deltas), pending_key("")
        kept = {**metadata, name: pending} if pending is not None else metadata
        info = AgentInfo(agent_id=agent_id, template_id=TEMPLATE, metadata=kept)
        try:
            await store.create_agent(agent_id, info)
        except ConflictError:
            raise AlreadyExistsError(f"Session with id {session_id} already exists.") from None
        if pending is not None:
            await scopes.write(deltas)
            await scopes.forget(agent_id, name)
        return _session(metadata, await scopes.merged(deltas[SESSION]), [])

    async def get_session(
        self, *, app_name: str, user_id: str, session_id: str, config: GetSessionConfig | None = None
    ) -> Session | None:
        """Load a session; the cost depends on the number of events that *config* asks for."""
        store = await self.store()
        agent_id, scopes = self.agent_id(app_name, user_id, session_id), Scopes(store, app_name, user_id)
        while (info := await store.load_info(agent_id)) is not None:
            if await scopes.settle(info):
                continue
            messages, state = await asyncio.gather(_messages(store, info, config), scopes.merged(_state_of(info)))
            if messages is not None:
                return _session(info.metadata, state, await _events(messages, config))
        return None

    async def list_sessions(self, *, app_name: str, user_id: str | None = None) -> ListSessionsResponse:
        """The sessions of an app, or of one of its users, with their states and without events, oldest update first."""
        store = await self.store()
        filters = SessionFilter(template_id=TEMPLATE, metadata={_APP: app_name}, sort_by="created_at")
        if user_id is not None:
            filters["user_id"] = user_id
        app_state: dict[str, Any] | None = None
        users: dict[str, dict[str, Any]] = {}
        found: list[Session] = []
        async for info in store.iter_sessions(**filters):
            owner = str(info.metadata[_USER])
            scopes = Scopes(store, app_name, owner)
            if app_state is None:
                app_state = await scopes.app_state()
            if owner not in users:
                users[owner] = await scopes.user_state()
            state: Any = info.metadata[_STATE]
            found.append(_session(info.metadata, {**state, **app_state, **users[owner]}, []))
        found.sort(key=lambda session: (session.last_update_time, session.user_id, session.id))
        return ListSessionsResponse(sessions=found)

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Delete a session with its events; the states of the app and the user stay."""
        await (await self.store()).delete(self.agent_id(app_name, user_id, session_id))

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """The state of a user, under keys without ``user:``."""
        return await Scopes(await self.store(), app_name, user_id).load_user()

    # --- events

    async def append_event(self, session: Session, event: Event) -> Event:
        """Append an event, with its changes of the state, in one commit.

        An event that is equal to the stored one of its id is not appended again, so that a call can be repeated after
        any failure.

        Raises:
            SessionNotFoundError: there is no such session.
            StaleSessionError: the session has changed since it was loaded; nothing is written.
            InvalidValueError: the event, or a value of the state, has no JSON; nothing is written.
        """
        if event.partial:
            return event
        store = await self.store()
        agent_id = self.agent_id(session.app_name, session.user_id, session.id)
        scopes = Scopes(store, session.app_name, session.user_id)
        self._apply_temp_state(session, event)
        event = self._trim_temp_delta_state(event)
        deltas = split_state(event.actions.state_delta)
        message, is_other = message_of(event), False
        while True:
            version = await store.load_version(agent_id)
            info = await store.load_info(agent_id)
            if info is None:
                raise SessionNotFoundError(f"Session {session.id} not found.")
            if await scopes.settle(info):
                continue
            if await self._is_stale(store, info, session):
                position = await _position(store, agent_id, message)
                if position is None:
                    raise StaleSessionError(
                        "The session has changed in the store since it was loaded. Load it again, and append then."
                    )
                revision = str(info.metadata[_REVISION]) if position == info.message_count - 1 else None
                return self._repeated(session, event, revision)
            pending = await scopes.pending(deltas)
            written = _with_event(info, event, deltas[SESSION], pending)
            known = await store.load_tool_call_records(agent_id, last=_OPEN_CALLS) if has_results(message) else []
            try:
                await store.save_turn(
                    agent_id,
                    append=[message],
                    upsert_tool_calls=tool_calls_of(event, message, known),
                    info=written,
                    documents=[] if is_other else [_seen(info, message)],
                    expect=version,
                )
            except ConflictError as exc:
                if exc.collection == EVENTS:
                    if await _position(store, agent_id, message) is not None:
                        return event
                    is_other = True  # another event of the same id, which ADK keeps
                continue
            if pending is not None:
                await scopes.write(deltas)
                await scopes.forget(agent_id, pending_key(event.id))
            session.last_update_time = event.timestamp
            session._storage_update_marker = str(written.metadata[_REVISION])
            return self._commit_event_to_session(session, event)

    def _repeated(self, session: Session, event: Event, revision: str | None) -> Event:
        """Return a stored event; a session that lacks it gets it, if it is the last one."""
        if revision is None:
            return event
        session.last_update_time, session._storage_update_marker = event.timestamp, revision
        if session.events and session.events[-1].id == event.id:
            return event
        return self._commit_event_to_session(session, event)

    async def _is_stale(self, store: ExtendedStore, info: AgentInfo, session: Session) -> bool:
        """Whether the stored session has events that *session* has not seen.

        A session without a marker was not loaded here, or was made from its JSON: its time and last event decide.
        """
        if session._storage_update_marker is not None:
            return session._storage_update_marker != str(info.metadata[_REVISION])
        stored: Any = info.metadata[_TIME]
        if stored <= session.last_update_time:
            return False
        if not session.events:
            return info.message_count > 0
        last = [event_of(message) for message in await store.load_messages(info.agent_id, last=1)]
        return not (last and last[0] is not None and last[0].id == session.events[-1].id)


def session_metadata(
    app_name: str, user_id: str, session_id: str, state: Json, time: float, revision: str
) -> dict[str, Json]:
    """The metadata of a session's agent."""
    return {_APP: app_name, _USER: user_id, _ID: session_id, _STATE: state, _TIME: time, _REVISION: revision}


def _state_of(info: AgentInfo) -> dict[str, Any]:
    state: Any = info.metadata[_STATE]
    return dict(state)


def _session(metadata: Mapping[str, Any], state: dict[str, Any], events: list[Event]) -> Session:
    session = Session(
        id=metadata[_ID],
        app_name=metadata[_APP],
        user_id=metadata[_USER],
        state=state,
        events=events,
        last_update_time=metadata[_TIME],
    )
    session._storage_update_marker = metadata[_REVISION]
    return session


async def _messages(store: ExtendedStore, info: AgentInfo, config: GetSessionConfig | None) -> Sequence[Message] | None:
    """The messages of the instant of the info that *config* asks for; None if they have been removed since."""
    count, last = info.message_count, config.num_recent_events if config else None
    if count == 0 or last == 0:
        return []
    if last is None and config is not None and config.after_timestamp is not None:
        found: list[Message] = []
        async for message in store.read_messages(info.agent_id, before=count, reverse=True):
            event: Any = (message.metadata or {}).get(RAW) or {}
            if event.get("timestamp", 0) < config.after_timestamp:
                break
            found.append(message)
        return found[::-1]
    messages = await store.load_messages(info.agent_id, last=last, before=count)
    return messages if len(messages) == (count if last is None else min(last, count)) else None


async def _events(messages: Sequence[Message], config: GetSessionConfig | None) -> list[Event]:
    """The events of messages, from the first one on that is not followed by one before ``after_timestamp``."""
    events: list[Event] = []
    for i, message in enumerate(messages):
        if i % _STEP == _STEP - 1:
            await asyncio.sleep(0)
        event = event_of(message)
        if event is not None:
            events.append(event)
    if config is not None and config.after_timestamp is not None:
        early = [i for i, event in enumerate(events) if event.timestamp < config.after_timestamp]
        return events[early[-1] + 1 :] if early else events
    return events


async def _position(store: ExtendedStore, agent_id: str, message: Message) -> int | None:
    """The position at which the event of a message is stored, as it is; None if it is not."""
    found = await store.load_document(agent_id, EVENTS, event_key(message))
    if found is None:
        return None
    position: Any = found.value
    stored = await store.load_messages(agent_id, after=position - 1 if position else None, before=position + 1)
    return int(position) if stored and stored[0].metadata == message.metadata else None


def _seen(info: AgentInfo, message: Message) -> PutDocument:
    """The document by which a repeated event is known."""
    return PutDocument(EVENTS, event_key(message), info.message_count, ABSENT)


def event_key(message: Message) -> str:
    """The key of the document by which the event of a message is known."""
    raw: Any = (message.metadata or {})[RAW]
    return agent_key(raw["id"])


def _with_event(info: AgentInfo, event: Event, delta: Mapping[str, Json], pending: Json) -> AgentInfo:
    """The info of a session after an event, with a new revision."""
    state: Any = info.metadata[_STATE]
    changed: dict[str, Json] = {
        _STATE: {**state, **delta},
        _TIME: event.timestamp,
        _REVISION: uuid.uuid4().hex,
    }
    if pending is not None:
        changed[pending_key(event.id)] = pending
    return replace(info, metadata={**info.metadata, **changed})
