"""The session: the items of one conversation, which are the messages of one agent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from agents.memory.session_settings import SessionSettings, coerce_session_settings, resolve_session_limit
from agents.run_context import RunContextWrapper

from kode_core import (
    AgentInfo,
    ConflictError,
    CorruptRecordError,
    ExtendedStore,
    InvalidArgumentError,
    Message,
    StoreBusyError,
    StoreClosedError,
    ToolCallRecord,
    agent_key,
)
from kode_core.factory import Target
from kode_core.sync import SyncStore, open_store
from kode_openai_agents.calls import Calls, settled
from kode_openai_agents.compaction import snapshot_of
from kode_openai_agents.items import is_failure as is_failure_by_text
from kode_openai_agents.items import item_of, message_of
from kode_openai_agents.records import records_of, unanswered

__all__ = ["TEMPLATE", "KodeSession"]

TEMPLATE: Final = "openai-agents"
"""The ``template_id`` of the agents of sessions."""
_METHODS: Final = ("get_items", "add_items", "pop_item", "clear_session")
_ATTEMPTS: Final = 100
_LOOK_BACK: Final = (16, 128, 1024)
"""How many of the last tool calls are searched for the call of an output, step by step."""

_log = logging.getLogger("kode_openai_agents")


class KodeSession:
    """A ``Session`` of the OpenAI Agents SDK, over a store that it opens or over one that is given.

    Any number of sessions, threads and processes may use one conversation. ``KodeSession("user-1", url)`` opens a store
    of its own in a thread of its own: it works with ``Runner.run``, ``run_sync`` and ``run_streamed``, in any event
    loop, and ``close`` closes it. Programs of many sessions open one store and give it to all of them; a session never
    closes a store that was given::

        store = lazy_store("postgres://localhost/agents")
        session = KodeSession("user-1", store=store)

    Args:
        session_id: any text; different texts are different conversations.
        url: the store to open, as ``create_extended_store`` takes it; ``KODE_STORE_URL`` if there is none.
        store: an open or lazy store instead, of the event loop in which the session is used, or a ``SyncStore``.
        session_settings: as for the sessions of the SDK; its ``limit`` is the default of ``get_items``.
        is_failure: whether an item, the output of a tool or a call that the provider ran, reports a failure.
        options: options of the store to open.

    Attributes:
        agent_id: the agent that has the conversation, for queries and for the command line.

    Raises:
        InvalidArgumentError: an argument is wrong.
        ConfigurationError: the configuration of the store is wrong.
    """

    session_id: str
    session_settings: SessionSettings | None = None

    def __init__(
        self,
        session_id: str,
        url: Target = None,
        *,
        store: ExtendedStore | SyncStore | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        is_failure: Callable[[dict[str, Any]], bool] = is_failure_by_text,
        **options: Any,
    ) -> None:
        self.agent_id = agent_key("openai", session_id)
        self.session_id = session_id
        given = SessionSettings() if session_settings is None else session_settings
        self.session_settings = coerce_session_settings(given)
        if store is not None and (url is not None or options):
            raise InvalidArgumentError("give KodeSession a url with options, or a store, and not both")
        self._owned: SyncStore | None = None
        if store is None:
            store = self._owned = open_store(url, **options)
        self._call = Calls(store, self.agent_id)
        self._is_failure = is_failure
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.session_id!r:.80}{' closed' if self._is_closed else ''}>"

    # --- The protocol of the SDK

    async def get_items(self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None) -> list[Any]:
        """All items, or the latest *limit* of them, oldest first. A negative limit is none.

        A damaged item is left out, and a warning names it; *limit* counts the others.
        """
        self._check_open()
        wanted = resolve_session_limit(limit, self.session_settings)
        wanted = None if wanted is not None and wanted < 0 else wanted
        return [item_of(message) for message in await self._latest(wanted)] if wanted != 0 else []

    async def add_items(self, items: list[Any], *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Append items, with the records of their tool calls, in one commit: all of them, or none.

        Raises:
            InvalidArgumentError: an item is no dict of exact JSON; the error names its place.
            StoreClosedError: the session is closed.
        """
        self._check_open()
        given = _listed(items)
        if given:
            await settled(self._add(given))

    async def pop_item(self, *, wrapper: RunContextWrapper[Any] | None = None) -> Any | None:
        """Remove the last item, and return it; an item that others append meanwhile stays.

        Damaged items behind the last readable one are removed with it, and a warning names them.
        """
        self._check_open()
        popped = await settled(self._pop())
        return None if popped is None else item_of(popped)

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Remove all items and all records of tool calls, in one commit."""
        self._check_open()
        await settled(self._clear())

    # --- The end

    def close(self) -> None:
        """Close the session, and the store if the session opened it. A second call does nothing."""
        self._is_closed = True
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
        await asyncio.to_thread(self.close)

    # --- Reads

    async def _latest(self, count: int | None) -> list[Message]:
        """The latest *count* readable messages, or all."""
        try:
            whole: list[Message] = await self._call("load_messages", last=count)
        except CorruptRecordError:
            pass
        else:
            return whole
        window = count
        while True:
            page = await self._call("load_messages", last=window, on_corrupt="skip")
            is_all = window is None or len(page) + len(page.left_out) < window
            if is_all or count is None or len(page) >= count:
                break
            window = (window or 1) * 2
        _log.warning("session %r: damaged items are left out: %s", self.session_id, ", ".join(page.left_out))
        return list(page) if count is None else list(page)[-count:]

    async def _calls(self, wanted: set[str]) -> Mapping[str, ToolCallRecord]:
        """The newest records of *wanted* among the last ones."""
        found: dict[str, ToolCallRecord] = {}
        for count in _LOOK_BACK:
            if wanted <= found.keys():
                break
            page = await self._call("load_tool_call_records", last=count, on_corrupt="skip")
            found |= {record.id: record for record in page if record.id in wanted}
            if len(page) + len(page.left_out) < count:
                break
        return found

    # --- Writes

    async def _add(self, items: list[dict[str, Any]]) -> None:
        messages = [message_of(item) for item in items]
        wanted = unanswered(items)
        calls = await self._calls(wanted) if wanted else {}
        records = records_of(items, calls, self._is_failure)
        for _ in range(_ATTEMPTS):
            info, expect = await self._first_info()
            try:
                await self._call("save_turn", append=messages, upsert_tool_calls=records, info=info, expect=expect)
            except ConflictError:
                continue  # the first items of another session with this id
            return
        raise self._busy()

    async def _first_info(self) -> tuple[AgentInfo | None, str | None]:
        """The info of an agent that has none, and the version of the agent without it."""
        if await self._call("exists"):
            return None, None
        version = await self._call("load_version")
        if await self._call("exists"):
            return None, None
        info = AgentInfo(agent_id=self.agent_id, template_id=TEMPLATE, metadata={"sessionId": self.session_id})
        return info, version

    async def _pop(self) -> Message | None:
        try:
            popped: list[Message] = await self._call("pop_messages")
            return popped[0] if popped else None
        except CorruptRecordError:
            pass
        for _ in range(_ATTEMPTS):
            session = await self._call("load_session")
            if session is None or not session.message_count:
                return None
            position, found = session.message_count, list[Message]()
            left_out: list[str] = []
            while position and not found:
                position -= 1
                page = await self._call(
                    "load_messages", after=position - 1 if position else None, before=position + 1, on_corrupt="skip"
                )
                found = list(page)
                left_out += page.left_out
            try:
                await self._call("truncate_messages", position, expect=session.version)
            except ConflictError:
                continue
            _log.warning("session %r: damaged items were removed: %s", self.session_id, ", ".join(left_out))
            return found[0] if found else None
        raise self._busy()

    async def _clear(self) -> None:
        if await self._call("exists"):
            await self._call("save_turn", messages=[], tool_calls=[])

    def _busy(self) -> StoreBusyError:
        return StoreBusyError(f"session {self.session_id!r:.80}: others kept changing it; nothing was written")

    # --- Compaction, by a protocol that the SDK's own sessions have

    async def _get_compaction_snapshot(
        self, limit: int, *, prune_prefix: Callable[[Any], bool] | None = None
    ) -> Any | None:
        """The latest *limit* items, with an atomic replacement of those from one of them on.

        None if one of them is damaged, or if a subclass has another view of the items.
        """
        if any(getattr(type(self), method) is not getattr(KodeSession, method) for method in _METHODS):
            return None
        self._check_open()
        return await snapshot_of(self._call, limit, prune_prefix)

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreClosedError(f"session {self.session_id!r:.80} is closed; open a new one")


def _listed(items: object) -> list[dict[str, Any]]:
    if not isinstance(items, Iterable) or isinstance(items, str | bytes | Mapping):
        raise InvalidArgumentError(f"add_items takes a list of items, got {type(items).__name__}")
    return list(items)
