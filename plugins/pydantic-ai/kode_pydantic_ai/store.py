"""The conversation store: a conversation is an agent, and its entries are the messages of that agent."""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from msgspec.structs import replace
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
    ConversationStore,
)
from pydantic_ai.exceptions import UserError

from kode_core import (
    AgentInfo,
    ConflictError,
    ExtendedStore,
    InvalidArgumentError,
    Json,
    Message,
    SessionFilter,
    SessionInfo,
    ToolCallRecord,
    agent_key,
    lazy_store,
)
from kode_pydantic_ai.index import EntryIndex
from kode_pydantic_ai.messages import (
    RAW,
    entry_id_of,
    entry_of,
    has_tools,
    message_of,
    raw_of_record,
    record_of,
    tool_calls_of,
)

__all__ = ["KodeConversationStore"]

T = TypeVar("T")
R = TypeVar("R")

_TEMPLATE: Final = "pydantic-ai"
_SCOPE: Final = "scope"
_LOCK_WAIT_MS: Final = 30_000
_SLACK_MS: Final = 60_000
"""How far the clock of a writer may be ahead of the clocks of others, for the order of a limited list."""
_STEP: Final = 100
"""How many entries are converted before other tasks of the loop have a turn."""
_OPEN_CALLS: Final = 100
"""How many of the last tool calls of a conversation are looked through for the call of a result."""


class KodeConversationStore(ConversationStore):
    """Conversations of Pydantic AI in any store of kode_core.

    A conversation is an agent, whose id :meth:`agent_id` gives. Its entries are messages, in the order in which they
    were saved, and its record is in the metadata of its info. A fork has copies of the entries that it shares, so that
    either can be deleted, exported and pruned alone. ``delete`` removes the messages of a conversation.

    *store* is a URL, a path or a mapping, as for ``create_extended_store``, or a store that the program has opened. The
    first is opened at the first call, and closed by :meth:`close`; the second stays open.
    """

    def __init__(
        self, store: ExtendedStore | str | os.PathLike[str] | Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        is_open = isinstance(store, ExtendedStore)
        self.store: ExtendedStore = store if isinstance(store, ExtendedStore) else lazy_store(store, **options)
        self._owns = not is_open
        self._index = EntryIndex(self.store)

    async def close(self) -> None:
        """Close the store, if this object has opened it."""
        if self._owns:
            await self.store.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def agent_id(self, conversation_id: str) -> str:
        """The agent that has a conversation."""
        return agent_key(_TEMPLATE, conversation_id)

    # --- reads

    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        """The record for a conversation, or None if the store doesn't have it."""
        agent_id = self.agent_id(conversation_id)
        info = await self.store.load_info(agent_id)
        return None if info is None else record_of(info.metadata, agent_id)

    async def read_records(self, *, scope: str | None = None, limit: int | None = None) -> Sequence[ConversationRecord]:
        """The stored records, or those with the given scope, newest ``updated_at`` first.

        With *limit*, the cost depends on it and not on the number of conversations.
        """
        if limit is not None and limit < 0:
            raise UserError("`limit` must not be negative.")
        filters = SessionFilter(template_id=_TEMPLATE, sort_by="created_at" if limit is None else "updated_at")
        if scope is not None:
            filters["metadata"] = {_SCOPE: scope}
        if limit is not None:
            return await self._newest(filters, limit)
        found = [
            (record.updated_at.timestamp(), session.updated_at, record)
            async for session in self.store.iter_sessions(**filters)
            if (record := record_of(session.metadata, session.agent_id)) is not None
        ]
        return [record for *_, record in sorted(found, key=lambda row: row[:2], reverse=True)]

    async def _newest(self, filters: SessionFilter, limit: int) -> list[ConversationRecord]:
        """The newest records. A record is older than the write of its info, but for the difference of clocks."""
        heap: list[tuple[float, int, int, ConversationRecord]] = []
        count = 0
        async for session in self._recent(SessionFilter(**filters, limit=min(10_000, max(100, 2 * limit)))):
            if limit == 0 or (len(heap) == limit and session.updated_at + _SLACK_MS < heap[0][0] * 1000):
                break
            record = record_of(session.metadata, session.agent_id)
            if record is not None:
                count -= 1
                heapq.heappush(heap, (record.updated_at.timestamp(), session.updated_at, count, record))
                if len(heap) > limit:
                    heapq.heappop(heap)
        return [row[3] for row in sorted(heap, key=lambda row: row[:3], reverse=True)]

    async def _recent(self, filters: SessionFilter) -> AsyncIterator[SessionInfo]:
        while True:
            page = await self.store.query_sessions(**filters)
            for session in page:
                yield session
            if page.next_cursor is None:
                return
            filters["cursor"] = page.next_cursor

    async def read_entry(self, entry_id: str) -> ConversationEntry:
        """The entry with this identifier, in whatever conversation it is; raises KeyError without one."""
        _, window = await self._window(entry_id, 1)
        return entry_of(window[-1])

    async def read_history(self, head_id: str | None, *, limit: int | None = None) -> list[ConversationEntry]:
        """The entries from the first one up to *head_id*, in order, or only the last *limit* of them.

        The cost depends on the result: the messages of a history that never branched are one read.
        """
        chain = await self._chain(head_id, limit)
        return [entry async for entry in _in_turns(chain, entry_of)]

    async def _chain(self, head_id: str | None, limit: int | None = None) -> list[Message]:
        chain: list[Message] = []
        entry_id, near = head_id, None
        while entry_id is not None and (limit is None or len(chain) < limit):
            near, window = await self._window(entry_id, None if limit is None else limit - len(chain), near)
            by_id = {entry_id_of(message): message for message in window}
            while (message := by_id.get(entry_id)) is not None and (limit is None or len(chain) < limit):
                chain.append(message)
                entry_id = _parent_of(message)
        chain.reverse()
        return chain

    async def _window(self, entry_id: str, size: int | None, near: str | None = None) -> tuple[str, list[Message]]:
        """An agent that has an entry, and *size* messages up to that entry."""
        async for agent_id, position in self._index.places(entry_id, near):
            after = None if size is None or position < size else position - size
            window = await self.store.load_messages(agent_id, after=after, before=position + 1)
            if window and entry_id_of(window[-1]) == entry_id:
                return agent_id, window
        raise KeyError(entry_id)

    # --- writes

    async def write_record(
        self,
        record: ConversationRecord,
        *,
        new_entries: Sequence[ConversationEntry] = (),
        expected_revision: str | None,
    ) -> None:
        """Store a record and the new entries of its history in one commit, replacing the record of that revision.

        Raises:
            ConversationConflict: the stored record has another revision, or there is no entry ``head_id``.
            InvalidValueError: a message or the record cannot be stored exactly; nothing is written.
        """
        agent_id = self.agent_id(record.conversation_id)
        new_entries = tuple(new_entries)
        made = [message async for message in _in_turns(new_entries, message_of)]
        own = dict(zip((entry.id for entry in new_entries), made, strict=True))
        raw = raw_of_record(record)
        while True:
            version = await self.store.load_version(agent_id)
            info = await self.store.load_info(agent_id)
            current = self._checked(record.conversation_id, info, expected_revision)
            if info is not None and current is None:
                await self._end_delete(agent_id)
                continue
            messages = [*await self._shared(agent_id, current, record, new_entries), *own.values()]
            count = info.message_count if info else await self.store.count_messages(agent_id=agent_id)
            ids = {str(entry_id_of(message)): count + i for i, message in enumerate(messages)}
            calls = tool_calls_of(messages, await self._known(agent_id, info, messages), record)
            await self._index.put(agent_id, ids)
            try:
                await self.store.save_turn(
                    agent_id,
                    append=messages,
                    upsert_tool_calls=calls,
                    info=self._info(agent_id, info, record, raw),
                    expect=version,
                )
            except ConflictError:  # another writer was first: if it changed the revision, the next turn says so
                await self._forget(agent_id, ids)
                continue
            except InvalidArgumentError:
                await self._forget(agent_id, ids)
                raise
            return

    def _checked(
        self, conversation_id: str, info: AgentInfo | None, expected_revision: str | None
    ) -> ConversationRecord | None:
        current = record_of(info.metadata, info.agent_id) if info else None
        if (current.revision if current else None) != expected_revision:
            raise ConversationConflict(conversation_id)
        return current

    async def _shared(
        self,
        agent_id: str,
        current: ConversationRecord | None,
        record: ConversationRecord,
        new_entries: Sequence[ConversationEntry],
    ) -> list[Message]:
        """Copies of the entries of other conversations that the record's history goes through."""
        seen = {entry.id for entry in new_entries}
        if current is not None and current.head_id is not None:
            seen.add(current.head_id)
        needed = [entry.parent_id for entry in new_entries] + [record.head_id]
        found: list[Message] = []
        for entry_id in needed:
            if entry_id is None or entry_id in seen:
                continue
            try:
                owner, _ = await self._window(entry_id, 1, agent_id)
                chain = [] if owner == agent_id else await self._chain(entry_id)
            except KeyError:
                if entry_id == record.head_id:
                    raise ConversationConflict(record.conversation_id) from None
                chain = []  # the parent of an entry need not be stored
            held = {entry_id_of(m) for m in await self.store.load_messages(agent_id)} if chain else set()
            found += [message for message in chain if entry_id_of(message) not in held | seen]
            seen |= {entry_id, *(str(entry_id_of(message)) for message in chain)}
        return found

    async def _known(self, agent_id: str, info: AgentInfo | None, messages: Sequence[Message]) -> list[ToolCallRecord]:
        """The records of calls whose results may be among *messages*."""
        if info is None or not has_tools(messages):
            return []
        return await self.store.load_tool_call_records(agent_id, last=_OPEN_CALLS)

    def _info(self, agent_id: str, info: AgentInfo | None, record: ConversationRecord, raw: Json) -> AgentInfo:
        """The info of a conversation: what others have put into it stays."""
        metadata = {**(info.metadata if info else {"conversationId": record.conversation_id}), RAW: raw}
        if record.scope is not None:
            metadata[_SCOPE] = record.scope
        else:
            metadata.pop(_SCOPE, None)
        if info is not None:
            return replace(info, metadata=metadata)
        lineage = [self.agent_id(record.forked_from)] if record.forked_from is not None else []
        return AgentInfo(agent_id=agent_id, template_id=_TEMPLATE, lineage=lineage, metadata=metadata)

    async def _forget(self, agent_id: str, ids: Mapping[str, int]) -> None:
        """Remove the places of entries that were not written; another writer may have written the same ones."""
        if not ids:
            return
        first, last = min(ids.values()), max(ids.values())
        stored = await self.store.load_messages(agent_id, after=first - 1 if first else None, before=last + 1)
        await self._index.remove(agent_id, ids.keys() - {entry_id_of(message) for message in stored})

    # --- deletes

    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        """Delete a conversation with its entries; forks keep their copies.

        Raises:
            ConversationConflict: no record with that revision is stored.
        """
        agent_id = self.agent_id(conversation_id)
        self._checked(conversation_id, await self.store.load_info(agent_id), expected_revision)
        async with self.store.acquire_agent_lock(agent_id, wait_ms=_LOCK_WAIT_MS):
            ids = await self._emptied(agent_id, conversation_id, expected_revision)
            await self.store.delete(agent_id)
        await self._index.remove(agent_id, ids)

    async def _emptied(self, agent_id: str, conversation_id: str, expected_revision: str) -> list[str]:
        """Remove the record and the messages in one commit; returns the ids of the entries.

        The delete that follows cannot demand a revision. It is fenced by the lock, which a writer takes that finds an
        info without a record.
        """
        while True:
            version = await self.store.load_version(agent_id)
            info = await self.store.load_info(agent_id)
            current = self._checked(conversation_id, info, expected_revision)
            if info is None or current is None:
                raise ConversationConflict(conversation_id)
            ids = [id_ async for m in self.store.read_messages(agent_id) if (id_ := entry_id_of(m)) is not None]
            try:
                await self.store.save_turn(
                    agent_id,
                    messages=[],
                    tool_calls=[],
                    info=replace(info, metadata={}),
                    expect=version,
                )
            except ConflictError:
                continue
            return ids

    async def _end_delete(self, agent_id: str) -> None:
        """Finish the delete of another process, or wait until that has."""
        async with self.store.acquire_agent_lock(agent_id, wait_ms=_LOCK_WAIT_MS):
            info = await self.store.load_info(agent_id)
            if info is not None and RAW not in info.metadata:
                await self.store.delete(agent_id)


async def _in_turns(items: Iterable[T], convert: Callable[[T], R]) -> AsyncIterator[R]:
    """Convert items; other tasks of the event loop have their turns meanwhile."""
    for i, item in enumerate(items):
        if i % _STEP == _STEP - 1:
            await asyncio.sleep(0)
        yield convert(item)


def _parent_of(message: Message) -> str | None:
    kept: Any = (message.metadata or {})[RAW]
    parent: str | None = kept["parentId"]
    return parent
