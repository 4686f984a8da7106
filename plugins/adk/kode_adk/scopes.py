"""The state of an app and of its users: a document for each key, in an agent without info for each scope.

An event changes them together with its session, which is another agent. So the session first keeps what the event
changes, in the commit of the event; then the documents are written, and the session forgets it. After a crash in
between, the next reader of the session writes them: a document that has been put since, by the crashed process or any
other, stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from google.adk.sessions.state import State

from kode_adk.events import as_json
from kode_core import (
    ABSENT,
    AgentInfo,
    AgentNotFoundError,
    ConflictError,
    ExtendedStore,
    Json,
    PutDocument,
    agent_key,
)

__all__ = ["COLLECTION", "SESSION", "Scopes", "pending_key", "scope_agent", "split_state", "state_document"]

SESSION: Final = "session"
_APP: Final = "app"
_USER: Final = "user"
COLLECTION: Final = "state"
_PENDING: Final = "pending:"

Delta = dict[str, Json]


def split_state(state: Mapping[str, Any] | None) -> dict[str, Delta]:
    """Split a change of state into the parts of the app, the user and the session, as JSON, without temporary keys.

    Raises:
        InvalidValueError: a value has no JSON.
    """
    deltas: dict[str, Delta] = {_APP: {}, _USER: {}, SESSION: {}}
    for key, value in (state or {}).items():
        if key.startswith(State.TEMP_PREFIX):
            continue
        kept = as_json(value, f"state {key!r}")
        if key.startswith(State.APP_PREFIX):
            deltas[_APP][key.removeprefix(State.APP_PREFIX)] = kept
        elif key.startswith(State.USER_PREFIX):
            deltas[_USER][key.removeprefix(State.USER_PREFIX)] = kept
        else:
            deltas[SESSION][key] = kept
    return deltas


def pending_key(event_id: str) -> str:
    """The key of a session's metadata that keeps the changes of an event in the scopes."""
    return _PENDING + event_id


class Scopes:
    """The states of an app and of one of its users."""

    def __init__(self, store: ExtendedStore, app_name: str, user_id: str) -> None:
        self._store = store
        self._agents = {_APP: scope_agent(app_name), _USER: scope_agent(app_name, user_id)}

    async def merged(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A session's state with the ones of its app and its user."""
        of_app, of_user = await asyncio.gather(self.app_state(), self.user_state())
        return {**state, **of_app, **of_user}

    async def app_state(self) -> dict[str, Any]:
        """The state of the app, under keys with their prefix."""
        return {State.APP_PREFIX + key: value for key, value in (await self._load(_APP)).items()}

    async def user_state(self) -> dict[str, Any]:
        """The state of the user, under keys with their prefix."""
        return {State.USER_PREFIX + key: value for key, value in (await self.load_user()).items()}

    async def load_user(self) -> dict[str, Any]:
        """The state of the user, under keys without a prefix."""
        return await self._load(_USER)

    async def _load(self, scope: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        async for document in self._store.iter_documents(self._agents[scope], COLLECTION):
            value: Any = document.value
            found[value["key"]] = value["value"]
        return found

    async def pending(self, deltas: Mapping[str, Delta]) -> Json:
        """The changes as the session keeps them until they are written: values, and the versions that they replace."""
        kept: dict[str, Any] = {}
        for scope in (_APP, _USER):
            for key, value in deltas[scope].items():
                found = await self._store.load_document(self._agents[scope], COLLECTION, agent_key(key))
                version = ABSENT if found is None else found.version
                kept.setdefault(scope, []).append([key, value, version])
        return kept or None

    async def write(self, deltas: Mapping[str, Delta]) -> None:
        """Write changes, in one commit for each scope."""
        for scope in (_APP, _USER):
            puts = [state_document(key, value) for key, value in deltas[scope].items()]
            if puts:
                await self._store.write_documents(self._agents[scope], puts)

    async def settle(self, info: AgentInfo) -> bool:
        """Write the changes that a crashed process has left in a session; returns whether there were any."""
        found = [key for key in info.metadata if key.startswith(_PENDING)]
        for name in found:
            left: Any = info.metadata[name]
            for scope, changes in left.items():
                for key, value, version in changes:
                    put = state_document(key, value, version)
                    try:
                        await self._store.write_documents(self._agents[scope], [put])
                    except ConflictError:
                        continue  # it is written, or there is a later value
        await self.forget(info.agent_id, *found)
        return bool(found)

    async def forget(self, agent_id: str, *names: str) -> None:
        """Remove written changes from a session."""
        if names:
            try:
                await self._store.update_info(agent_id, {}, remove=names)
            except AgentNotFoundError:
                return


def scope_agent(*place: str) -> str:
    """The agent that has the state of an app, or of an app's user."""
    return agent_key("adk-state", *place)


def state_document(key: str, value: Json, expect: str | None = None) -> PutDocument:
    """The document of a key of a state."""
    return PutDocument(COLLECTION, agent_key(key), {"key": key, "value": value}, expect)
