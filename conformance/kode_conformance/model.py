"""What a store must hold after a sequence of calls, as plain dicts and lists: the contract, read a second time.

Nothing of a store is used here but the types of its records. Methods are named as those of a store and take the same
arguments after the agent's id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from kode_conformance.context import difference
from kode_core.model import (
    AgentInfo,
    CompressionRecord,
    HistoryWindow,
    MediaCacheRecord,
    Message,
    RecoveredFile,
    Snapshot,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
)
from kode_core.protocols import Store

__all__ = ["AgentModel", "Logged", "StoreModel", "look"]


class Logged:
    """An event of the log; its offset is None until the store has told it."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.offset: int | None = None


class AgentModel:
    """One agent. ``events`` are in the order of commit; documents stand under what they are keyed by."""

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

    def view(self) -> dict[str, object]:
        """What :func:`look` must give."""
        by_seq = sorted(self.events, key=lambda logged: logged.timeline.bookmark.seq)
        return {
            "load_messages": self.messages,
            "load_tool_call_records": self.tool_calls,
            "load_todos": self.todos,
            "load_info": self.info and self.info.replace(message_count=len(self.messages)),
            "exists": self.info is not None,
            "load_history_windows": sorted(self.windows.values(), key=lambda w: (w.timestamp, w.id)),
            "load_compression_records": sorted(self.compressions.values(), key=lambda c: (c.timestamp, c.id)),
            "load_recovered_files": sorted(self.recovered.values(), key=lambda f: (f.timestamp, f.path)),
            "load_media_cache": self.media,
            "list_snapshots": sorted(self.snapshots.values(), key=lambda s: (-s.created_at, s.id)),
            "load_snapshot": self.snapshots.get("s0"),
            "read_events": [logged.timeline for logged in by_seq],
            "last_bookmark": by_seq[-1].timeline.bookmark if by_seq else None,
        }


async def look(store: Store, agent_id: str) -> dict[str, object]:
    """Everything of an agent, by the method that gives it."""
    return {
        "load_messages": await store.load_messages(agent_id),
        "load_tool_call_records": await store.load_tool_call_records(agent_id),
        "load_todos": await store.load_todos(agent_id),
        "load_info": await store.load_info(agent_id),
        "exists": await store.exists(agent_id),
        "load_history_windows": await store.load_history_windows(agent_id),
        "load_compression_records": await store.load_compression_records(agent_id),
        "load_recovered_files": await store.load_recovered_files(agent_id),
        "load_media_cache": await store.load_media_cache(agent_id),
        "list_snapshots": await store.list_snapshots(agent_id),
        "load_snapshot": await store.load_snapshot(agent_id, "s0"),
        "read_events": [event async for event in store.read_events(agent_id)],
        "last_bookmark": await store.last_bookmark(agent_id),
    }


class StoreModel:
    """All agents by id; an agent that was never written is an empty one."""

    def __init__(self) -> None:
        self.agents: defaultdict[str, AgentModel] = defaultdict(AgentModel)

    def listed(self) -> list[str]:
        """The ids with info, by code point."""
        return sorted(agent_id for agent_id, agent in self.agents.items() if agent.info is not None)

    # --- lists

    def save_messages(self, agent_id: str, messages: Sequence[Message]) -> None:
        """Replace."""
        self.agents[agent_id].messages = list(messages)

    def append_messages(self, agent_id: str, messages: Sequence[Message]) -> None:
        """Add at the end."""
        self.agents[agent_id].messages += messages

    def save_tool_call_records(self, agent_id: str, records: Sequence[ToolCallRecord]) -> None:
        """Replace."""
        self.agents[agent_id].tool_calls = list(records)

    def upsert_tool_call_records(self, agent_id: str, records: Sequence[ToolCallRecord]) -> None:
        """Replace the last one of each id, or add at the end."""
        calls = self.agents[agent_id].tool_calls
        for record in records:
            places = [i for i, call in enumerate(calls) if call.id == record.id]
            if places:
                calls[places[-1]] = record
            else:
                calls.append(record)

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
    ) -> None:
        """All of it."""
        if messages is not None:
            self.save_messages(agent_id, messages)
        if tool_calls is not None:
            self.save_tool_call_records(agent_id, tool_calls)
        if todos is not None:
            self.save_todos(agent_id, todos)
        if info is not None:
            self.save_info(agent_id, info)
        self.append_messages(agent_id, append)
        self.upsert_tool_call_records(agent_id, upsert_tool_calls)
        self.append_events(agent_id, events)

    # --- events

    def append_events(self, agent_id: str, timelines: Sequence[Timeline]) -> list[Logged]:
        """The entries in the log, old ones for repeats."""
        return [self.append_event(agent_id, timeline) for timeline in timelines]

    def append_event(self, agent_id: str, timeline: Timeline) -> Logged:
        """The entry in the log."""
        log = self.agents[agent_id].events
        for logged in log:
            if difference(logged.timeline, timeline) is None:
                return logged
        log.append(Logged(timeline))
        return log[-1]

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

    def delete(self, agent_id: str) -> None:
        """Everything."""
        self.agents.pop(agent_id, None)

    def delete_many(self, template_id: str) -> int:
        """Everything of the agents of that template; how many they were."""
        found = [a for a in self.listed() if self._info(a).template_id == template_id]
        for agent_id in found:
            self.delete(agent_id)
        return len(found)

    def fork(self, agent_id: str, fork_id: str, created_at: int) -> None:
        """A copy of what a fork takes along."""
        parent, child = self.agents[agent_id], self.agents[fork_id]
        info = self._info(agent_id)
        child.info = info.replace(
            agent_id=fork_id, lineage=(*info.lineage, agent_id), created_at=created_at, last_bookmark=None
        )
        child.messages, child.tool_calls = list(parent.messages), list(parent.tool_calls)
        child.todos, child.media, child.snapshots = parent.todos, list(parent.media), dict(parent.snapshots)

    def _info(self, agent_id: str) -> AgentInfo:
        info = self.agents[agent_id].info
        assert info is not None
        return info
