"""The session store: a transcript is an agent, and each of its entries a message."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
from anyio.lowlevel import current_token
from claude_agent_sdk import (
    SessionKey,
    SessionListSubkeysKey,
    SessionStore,
    SessionStoreEntry,
    SessionStoreListEntry,
    SessionSummaryEntry,
    fold_session_summary,
)

from kode_claude_agent.entries import entry_of, key_of, message_of
from kode_claude_agent.records import records_of, unanswered
from kode_core import (
    ABSENT,
    AgentInfo,
    ConflictError,
    ExtendedStore,
    InvalidArgumentError,
    PutDocument,
    SessionInfo,
    StoreBusyError,
    ToolCallRecord,
    agent_key,
)
from kode_core.factory import Target
from kode_core.sync import SyncStore, open_store

__all__ = ["SUBAGENT", "TEMPLATE", "KodeSessionStore"]

T = TypeVar("T")

TEMPLATE: Final = "claude-agent"
"""The ``template_id`` of the agents of sessions."""
SUBAGENT: Final = "claude-subagent"
"""The ``template_id`` of the agents of transcripts under a subpath."""
ENTRIES: Final = "claude-entries"
"""The collection whose keys are the uuids of an agent's entries."""
_SUMMARY: Final = "summary"
_ATTEMPTS: Final = 200
_LOOK_BACK: Final = (16, 128, 1024)
"""How many of the last tool calls are searched for the call of a result, step by step."""
_AT_ONCE: Final = 50


class Place(NamedTuple):
    """A transcript: its agent, the template, and the metadata by which queries find it."""

    agent_id: str
    template_id: str
    metadata: dict[str, Any]

    @classmethod
    def of(cls, project: Any, session: Any, subpath: Any = None) -> Place:
        for name, text in (("project_key", project), ("session_id", session), ("subpath", subpath or "")):
            if type(text) is not str:
                raise InvalidArgumentError(f"{name} of a session's key must be a str, got {type(text).__name__}")
        metadata = {"projectKey": project, "sessionId": session}
        if not subpath:
            return cls(agent_key("claude", project, session), TEMPLATE, metadata)
        return cls(agent_key("claude", project, session, subpath), SUBAGENT, {**metadata, "subpath": subpath})

    @classmethod
    def of_key(cls, key: Mapping[str, Any]) -> Place:
        if not isinstance(key, Mapping):
            raise InvalidArgumentError(f"the key of a session must be a dict, got {type(key).__name__}")
        return cls.of(key.get("project_key"), key.get("session_id"), key.get("subpath"))


class KodeSessionStore(SessionStore):
    """A ``SessionStore`` of the Claude Agent SDK, over a store that it opens or over one that is given.

    Any number of stores, threads and processes may append to one session. ``KodeSessionStore(url)`` opens a store of
    its own in a thread of its own, for any event loop, and ``close`` closes it; a store that was given is never closed.

    Args:
        url: the store to open, as ``create_extended_store`` takes it; ``KODE_STORE_URL`` if there is none.
        store: an open or lazy store instead, of the event loop in which the SDK runs, or a ``SyncStore``.
        options: options of the store to open.

    Raises:
        InvalidArgumentError: both a url and a store are given.
        ConfigurationError: the configuration of the store is wrong.
    """

    def __init__(self, url: Target = None, *, store: ExtendedStore | SyncStore | None = None, **options: Any) -> None:
        if store is not None and (url is not None or options):
            raise InvalidArgumentError("give KodeSessionStore a url with options, or a store, and not both")
        self._owned: SyncStore | None = None
        if store is None:
            store = self._owned = open_store(url, **options)
        self._store: ExtendedStore | SyncStore = store
        self._turns: WeakValueDictionary[Any, anyio.Lock] = WeakValueDictionary()

    @staticmethod
    def agent_id(key: SessionKey) -> str:
        """The agent that has a transcript, for queries and for the command line."""
        return Place.of_key(key).agent_id

    # --- The protocol of the SDK

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        """Append entries in one commit, with the records of their tool calls and the summary of the session.

        An entry whose ``uuid`` the transcript has is not stored again. Appends of one process to a transcript take
        their turns in the order of the calls.

        Raises:
            InvalidArgumentError: an entry is no dict of exact JSON, and nothing was written.
            StoreBusyError: other processes kept writing to the transcript, and nothing was written.
        """
        place, given = Place.of_key(key), list(entries)
        messages = [message_of(entry) for entry in given]
        if not messages:
            return
        turn = self._turns.setdefault((current_token(), place.agent_id), anyio.Lock())
        async with turn:
            known: set[str] | None = None
            for attempt in range(_ATTEMPTS):
                try:
                    return await self._append(place, key, given, known or set())
                except ConflictError as exc:
                    if known is not None or exc.collection is not None:
                        known = await self._known(place, given)
                await anyio.sleep(random.uniform(0, min(attempt, 10) / 200))  # noqa: S311 - writers take turns
        raise StoreBusyError(f"agent {place.agent_id!r}: other processes kept writing; nothing was written")

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        """All entries of a transcript as they were appended; None if there are none.

        Raises:
            CorruptRecordError: an entry is damaged.
        """
        found = await self._call("load_messages", Place.of_key(key).agent_id)
        entries = [entry for message in found if (entry := entry_of(message)) is not None]
        return entries or None

    async def list_sessions(self, project_key: str) -> list[SessionStoreListEntry]:
        """The sessions of a project, with the times of their last writes."""
        found = await self._sessions(TEMPLATE, projectKey=project_key)
        return [{"session_id": one.metadata["sessionId"], "mtime": one.updated_at} for one in found]

    async def list_session_summaries(self, project_key: str) -> list[SessionSummaryEntry]:
        """The summaries of the sessions of a project, which ``append`` keeps: one query."""
        found = await self._sessions(TEMPLATE, projectKey=project_key)
        return [
            {"session_id": one.metadata["sessionId"], "mtime": one.updated_at, "data": one.metadata[_SUMMARY]}
            for one in found
            if type(one.metadata.get(_SUMMARY)) is dict
        ]

    async def delete(self, key: SessionKey) -> None:
        """Delete a transcript; one without a subpath with all of its subpaths, which are deleted first.

        A call that ends early can be made again. Subpaths that another process adds meanwhile are deleted, too.
        """
        place = Place.of_key(key)
        if place.template_id == TEMPLATE:
            await self._delete_below(place)
        await self._call("delete", place.agent_id)
        if place.template_id == TEMPLATE:
            await self._delete_below(place)

    async def list_subkeys(self, key: SessionListSubkeysKey) -> list[str]:
        """The subpaths of a session."""
        place = Place.of(key.get("project_key"), key.get("session_id"))
        return [one.metadata["subpath"] for one in await self._sessions(SUBAGENT, **place.metadata)]

    # --- The end

    def close(self) -> None:
        """Close the store if this object opened it. A second call does nothing."""
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await anyio.to_thread.run_sync(self.close)

    # --- Steps

    async def _append(self, place: Place, key: SessionKey, entries: list[Any], known: set[str]) -> None:
        """One attempt to append the entries whose keys are not *known*."""
        version = await self._call("load_version", place.agent_id)
        info: AgentInfo | None = await self._call("load_info", place.agent_id)
        new, puts = _new(entries, known)
        if not new:
            return
        given = info
        if info is None:
            info = AgentInfo(agent_id=place.agent_id, template_id=place.template_id, metadata=place.metadata)
        if place.template_id == TEMPLATE:
            info = folded(info, key, new)
        wanted = unanswered(new)
        await self._call(
            "save_turn",
            place.agent_id,
            append=[message_of(entry) for entry in new],
            upsert_tool_calls=records_of(new, await self._calls(place, wanted) if wanted else {}),
            info=None if info is given else info,
            documents=puts,
            expect=version,
        )

    async def _known(self, place: Place, entries: list[Any]) -> set[str]:
        """The keys of those entries that the transcript has."""
        keys = [key for key in dict.fromkeys(map(key_of, entries)) if key is not None]
        found: set[str] = set()

        async def look(key: str) -> None:
            if await self._call("load_document", place.agent_id, ENTRIES, key) is not None:
                found.add(key)

        for first in range(0, len(keys), _AT_ONCE):
            async with anyio.create_task_group() as group:
                for key in keys[first : first + _AT_ONCE]:
                    group.start_soon(look, key)
        return found

    async def _calls(self, place: Place, wanted: set[str]) -> Mapping[str, ToolCallRecord]:
        """The newest records of *wanted* among the last ones."""
        found: dict[str, ToolCallRecord] = {}
        for count in _LOOK_BACK:
            page = await self._call("load_tool_call_records", place.agent_id, last=count, on_corrupt="skip")
            found |= {record.id: record for record in page if record.id in wanted}
            if wanted <= found.keys() or len(page) + len(page.left_out) < count:
                break
        return found

    async def _delete_below(self, place: Place) -> None:
        for one in await self._sessions(SUBAGENT, **place.metadata):
            await self._call("delete", one.agent_id)

    async def _sessions(self, template: str, **metadata: Any) -> list[SessionInfo]:
        """The agents of a template with this metadata, but no forks, which have the metadata of their parents."""
        filters: dict[str, Any] = {"template_id": template, "metadata": metadata}
        if isinstance(self._store, SyncStore):
            found = await _in_thread(lambda: list(self._store.iter_sessions(**filters)))  # type: ignore[arg-type]
        else:
            found = [one async for one in self._store.iter_sessions(**filters)]
        return [one for one in found if _is_own(one)]

    async def _call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the store; one of a synchronous store in a thread."""
        call = getattr(self._store, method)
        if isinstance(self._store, SyncStore):
            return await _in_thread(partial(call, *args, **options))
        return await call(*args, **options)


async def _in_thread(call: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(call)


def _new(entries: list[Any], known: set[str]) -> tuple[list[Any], list[PutDocument]]:
    """The entries that are not *known*, each uuid once, and the documents that demand that they are new."""
    new, puts, seen = [], [], set(known)
    for entry in entries:
        key = key_of(entry)
        if key is not None:
            if key in seen:
                continue
            seen.add(key)
            puts.append(PutDocument(ENTRIES, key, None, ABSENT))
        new.append(entry)
    return new, puts


def folded(info: AgentInfo, key: SessionKey, new: list[Any]) -> AgentInfo:
    """The info with the summary that the SDK folds *new* into."""
    session, data = info.metadata["sessionId"], info.metadata.get(_SUMMARY)
    before: SessionSummaryEntry | None = None
    if type(data) is dict:
        before = {"session_id": session, "mtime": 0, "data": data}
    summary = fold_session_summary(before, key, new)
    return info.replace(metadata={**info.metadata, _SUMMARY: summary["data"]})


def _is_own(session: SessionInfo) -> bool:
    found = session.metadata
    try:
        place = Place.of(found.get("projectKey"), found.get("sessionId"), found.get("subpath"))
    except InvalidArgumentError:
        return False
    return place.agent_id == session.agent_id
