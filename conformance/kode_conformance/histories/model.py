"""The records that a store must hold after a sequence of calls, as plain dicts and lists: a second reading of the
contract.

Nothing of a store is used here but the types of its records. Methods have the names of a store's methods and take the
same arguments after the agent's id. The model's answers to reads are in :mod:`kode_conformance.histories.answers`.
Values that a store generates, such as times and offsets, are learned from it and noted here.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kode_conformance.context import difference
from kode_core.errors import AgentNotFoundError, ConflictError, InvalidArgumentError
from kode_core.model import (
    ABSENT,
    AgentInfo,
    CompressionRecord,
    DocumentWrite,
    HistoryWindow,
    MediaCacheRecord,
    Message,
    PutDocument,
    RecoveredFile,
    Snapshot,
    StoredEvent,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
    ToolUseBlock,
)

__all__ = ["AgentModel", "Kept", "Logged", "StoreModel", "has_repeats"]


class Logged:
    """An event of the log; its offset is None until the store has told it, and ``at`` is when it was appended."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.offset: int | None = None
        self.at = time.monotonic()


class Kept:
    """A document of the caller's own; what the store generates is None until the store has told it."""

    def __init__(self, value: object, tags: Mapping[str, str] | None = None) -> None:
        self.value = value
        self.tags = dict(tags or {})
        self.version: str | None = None
        self.updated_at: int | None = None


def has_repeats(timelines: Sequence[Timeline]) -> bool:
    """True if two entries are identical, so that no store takes them in one call (EVT-4)."""
    seen: defaultdict[tuple[int, int], list[Timeline]] = defaultdict(list)
    for timeline in timelines:
        same = seen[_key(timeline)]
        if any(difference(one, timeline) is None for one in same):
            return True
        same.append(timeline)
    return False


class Learned:
    """Values that the store generated, as they were read last.

    Attributes:
        messages: the list whose times are known.
        times: of these messages.
        edits: how many writes changed the messages since.
        updated_at: of the session; None when it was not seen yet.
        moves: True if ``updated_at`` must have moved since, False if it must not have, None if it may have.
        version: of the agent.
        changes: True if the version must have changed since, False if it must not have, None if it may have.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.times: list[int] = []
        self.edits = 0
        self.updated_at: int | None = None
        self.moves: bool | None = False
        self.version = ABSENT
        self.changes: bool | None = False


class AgentModel:
    """One agent. ``events`` are in the order of commit; documents are in dicts, by their keys."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.tool_calls: list[ToolCallRecord] = []
        self.todos: TodoSnapshot | None = None
        self.info: AgentInfo | None = None
        self.events: list[Logged] = []
        self.windows: dict[str, HistoryWindow] = {}
        self.compressions: dict[str, CompressionRecord] = {}
        self.recovered: dict[tuple[str, int], RecoveredFile] = {}
        self.media: list[MediaCacheRecord] = []
        self.snapshots: dict[str, Snapshot] = {}
        self.documents: dict[tuple[str, str], Kept] = {}
        self.learned = Learned()

    @property
    def is_news(self) -> bool:
        """True if the agent changed since the store was asked for the times that it gave."""
        learned = self.learned
        return (
            bool(learned.edits) or learned.moves is not False or (learned.updated_at is None and self.info is not None)
        )

    @property
    def is_empty(self) -> bool:
        """True if there is no record of any kind."""
        kinds = (self.messages, self.tool_calls, self.events, self.media, self.snapshots, self.documents)
        rest = (self.windows, self.compressions, self.recovered)
        return self.info is None and self.todos is None and not any(map(bool, (*kinds, *rest)))

    def moved(self, by: bool) -> None:
        """Note a save that moves ``updated_at`` and the version, or one of an empty list, which may."""
        learned = self.learned
        if by:
            learned.moves = learned.changes = True
        else:
            learned.moves = None if learned.moves is False else learned.moves
            learned.changes = None if learned.changes is False else learned.changes


class StoreModel:
    """All agents by id; an agent that was never written is an empty one.

    A write that a store must refuse raises the error of the store, and changes nothing.
    """

    def __init__(self) -> None:
        self.agents: defaultdict[str, AgentModel] = defaultdict(AgentModel)

    def listed(self, prefix: str = "") -> list[str]:
        """The ids with info that begin with *prefix*, by code point."""
        return sorted(a for a, agent in self.agents.items() if agent.info is not None and a.startswith(prefix))

    # --- lists

    def save_messages(self, agent_id: str, messages: Sequence[Message]) -> None:
        """Replace."""
        agent = self.agents[agent_id]
        agent.messages = list(messages)
        agent.learned.edits += 1
        agent.moved(True)

    def append_messages(self, agent_id: str, messages: Sequence[Message]) -> None:
        """Add at the end."""
        agent = self.agents[agent_id]
        agent.messages += messages
        agent.learned.edits += bool(messages)
        agent.moved(bool(messages))

    def save_tool_call_records(self, agent_id: str, records: Sequence[ToolCallRecord]) -> None:
        """Replace."""
        self.agents[agent_id].tool_calls = list(records)
        self.agents[agent_id].moved(True)

    def upsert_tool_call_records(self, agent_id: str, records: Sequence[ToolCallRecord]) -> None:
        """Replace the last one of each id, or add at the end."""
        calls = self.agents[agent_id].tool_calls
        for record in records:
            places = [i for i, call in enumerate(calls) if call.id == record.id]
            if places:
                calls[places[-1]] = record
            else:
                calls.append(record)
        self.agents[agent_id].moved(bool(records))

    # --- edits in place

    def _edited(self, agent_id: str, messages: Sequence[Message]) -> None:
        """Replace, if that is a change."""
        if len(messages) < len(self.agents[agent_id].messages):
            self.save_messages(agent_id, messages)

    def pop_messages(self, agent_id: str, count: int = 1) -> list[Message]:
        """Remove the last ones, and return them."""
        messages = self.agents[agent_id].messages
        start = max(0, len(messages) - count)
        self._edited(agent_id, messages[:start])
        return messages[start:]

    def truncate_messages(self, agent_id: str, length: int) -> int:
        """Remove all messages behind the first ones, and return their number."""
        messages = self.agents[agent_id].messages
        self._edited(agent_id, messages[:length])
        return max(0, len(messages) - length)

    def replace_message(self, agent_id: str, position: int, message: Message) -> None:
        """Replace one."""
        messages = self.agents[agent_id].messages
        if position >= len(messages):
            raise InvalidArgumentError("the list has no such position")
        self.save_messages(agent_id, [*messages[:position], message, *messages[position + 1 :]])

    # --- a turn

    def save_turn(
        self,
        agent_id: str,
        *,
        append: Sequence[Message] = (),
        messages: Sequence[Message] | None = None,
        tool_calls: Sequence[ToolCallRecord] | None = None,
        upsert_tool_calls: Sequence[ToolCallRecord] = (),
        todos: TodoSnapshot | None = None,
        info: AgentInfo | None = None,
        events: Sequence[Timeline] = (),
        documents: Sequence[DocumentWrite] = (),
    ) -> list[Logged]:
        """All of it; returns the entries in the log."""
        self.write_documents(agent_id, documents)
        if messages is not None:
            self.save_messages(agent_id, messages)
        if tool_calls is not None:
            self.save_tool_call_records(agent_id, tool_calls)
        if todos is not None:
            self.save_todos(agent_id, todos)
        if info is not None:
            self.save_info(agent_id, info)
        if append:
            self.append_messages(agent_id, append)
        if upsert_tool_calls:
            self.upsert_tool_call_records(agent_id, upsert_tool_calls)
        return self.append_events(agent_id, events)

    # --- events

    def append_events(self, agent_id: str, timelines: Sequence[Timeline]) -> list[Logged]:
        """The entries in the log, old ones for repeats."""
        log = self.agents[agent_id].events
        known: defaultdict[tuple[int, int], list[Logged]] = defaultdict(list)
        for logged in log:
            known[_key(logged.timeline)].append(logged)
        found = []
        for timeline in timelines:
            same = known[_key(timeline)]
            entry = next((one for one in same if difference(one.timeline, timeline) is None), None)
            if entry is None:
                entry = Logged(timeline)
                same.append(entry)
                log.append(entry)
            found.append(entry)
        return found

    def append_event(self, agent_id: str, timeline: Timeline) -> Logged:
        """The entry in the log."""
        return self.append_events(agent_id, [timeline])[0]

    def emitted(self, agent_id: str, events: Sequence[StoredEvent]) -> list[Logged]:
        """Events that the store numbered, as entries in the log: none of them is a repetition."""
        entries = [Logged(Timeline(event.cursor, event.bookmark, event.event)) for event in events]
        self.agents[agent_id].events += entries
        return entries

    # --- documents of the caller's own

    def write_documents(self, agent_id: str, documents: Sequence[DocumentWrite]) -> list[Kept | None]:
        """Put and delete, if the documents have the versions that are demanded."""
        kept = self.agents[agent_id].documents
        if len({(write.collection, write.key) for write in documents}) < len(documents):
            raise InvalidArgumentError("two writes of one document")
        for write in documents:
            there = kept.get((write.collection, write.key))
            present = ABSENT if there is None else there.version
            if write.expect not in (None, present):
                raise ConflictError(agent_id, str(present), "another version")
        for write in documents:
            kept.pop((write.collection, write.key), None)
            if isinstance(write, PutDocument):
                kept[write.collection, write.key] = Kept(write.value, write.tags)
        return [kept.get((write.collection, write.key)) for write in documents]

    # --- documents

    def save_todos(self, agent_id: str, snapshot: TodoSnapshot) -> None:
        """Replace."""
        self.agents[agent_id].todos = snapshot

    def save_history_window(self, agent_id: str, window: HistoryWindow) -> None:
        """By id."""
        self.agents[agent_id].windows[window.id] = window

    def save_compression_record(self, agent_id: str, record: CompressionRecord) -> None:
        """By id."""
        self.agents[agent_id].compressions[record.id] = record

    def save_recovered_file(self, agent_id: str, file: RecoveredFile) -> None:
        """By path and time."""
        self.agents[agent_id].recovered[file.path, file.timestamp] = file

    def save_media_cache(self, agent_id: str, records: Sequence[MediaCacheRecord]) -> None:
        """Replace."""
        self.agents[agent_id].media = list(records)

    def save_snapshot(self, agent_id: str, snapshot: Snapshot) -> None:
        """By id."""
        self.agents[agent_id].snapshots[snapshot.id] = snapshot

    # --- agents

    def save_info(self, agent_id: str, info: AgentInfo) -> None:
        """Insert or replace."""
        self.agents[agent_id].info = info
        self.agents[agent_id].moved(True)

    def create_agent(self, agent_id: str, info: AgentInfo) -> None:
        """Insert."""
        if self.agents[agent_id].info is not None:
            raise ConflictError(agent_id, "", "it has an info")
        self.save_info(agent_id, info)

    def update_info(self, agent_id: str, metadata: Mapping[str, Any], *, remove: Sequence[str] = ()) -> AgentInfo:
        """Set keys of the metadata, and remove others."""
        agent = self.agents[agent_id]
        if agent.info is None:
            raise AgentNotFoundError(agent_id)
        merged = {**{key: value for key, value in agent.info.metadata.items() if key not in remove}, **metadata}
        self.save_info(agent_id, agent.info.replace(metadata=merged))
        return agent.info.replace(metadata=merged, message_count=len(agent.messages))

    def delete_snapshot(self, agent_id: str, snapshot_id: str) -> None:
        """Remove one."""
        self.agents[agent_id].snapshots.pop(snapshot_id, None)

    def delete(self, agent_id: str) -> None:
        """Everything."""
        self.agents.pop(agent_id, None)

    def delete_many(self, found: Sequence[str]) -> int:
        """Everything of the sessions that the filter found; how many they were."""
        for agent_id in found:
            self.delete(agent_id)
        return len(found)

    def fork(
        self,
        parent: AgentModel,
        agent_id: str,
        fork_info: AgentInfo,
        *,
        length: int | None = None,
        snapshot_id: str | None = None,
        documents: bool = False,
    ) -> None:
        """Copy the records that a fork takes along; *fork_info* has the values that the store generates."""
        child, info = self.agents[fork_info.agent_id], parent.info
        assert info is not None
        child.info = info.replace(
            agent_id=fork_info.agent_id,
            lineage=(*info.lineage, agent_id),
            created_at=fork_info.created_at,
            last_bookmark=None,
        )
        child.messages, child.tool_calls = list(parent.messages), list(parent.tool_calls)
        child.todos, child.media, child.snapshots = parent.todos, list(parent.media), dict(parent.snapshots)
        child.documents = dict(parent.documents) if documents else {}
        known = parent.learned
        child.learned.messages, child.learned.times = list(known.messages)[:length], list(known.times)[:length]
        child.learned.edits = 2 if known.edits else 0  # a parent whose times are not known yet tells nothing
        child.learned.changes = True
        if length is None and snapshot_id is None:
            return
        child.messages = child.messages[:length]
        if snapshot_id is not None:
            child.messages, child.learned.edits = list(parent.snapshots[snapshot_id].messages), 2
        used = {block.id for message in child.messages for block in message.content if isinstance(block, ToolUseBlock)}
        child.tool_calls = [call for call in child.tool_calls if call.id in used]
        child.info = child.info.replace(last_sfp_index=fork_info.last_sfp_index, breakpoint=fork_info.breakpoint)


def _key(timeline: Timeline) -> tuple[int, int]:
    return timeline.bookmark.seq, timeline.cursor


WRITES: dict[str, Callable[..., Any]] = {
    name: method for name, method in vars(StoreModel).items() if name.startswith(("save_", "append_", "upsert_"))
}
"""The writes of every store that a model makes as a store does, by name."""
