"""The public store over an engine. :mod:`kode_core.protocols` documents the methods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Unpack, cast, overload

from kode_core.batch import EventWrite
from kode_core.engine import Progress
from kode_core.errors import UnsupportedError
from kode_core.grouping import MessageGroups, SessionGroups, ToolCallGroups
from kode_core.ids import check_agent_id, check_key
from kode_core.model import (
    AgentChannel,
    AgentEvent,
    AgentInfo,
    Bookmark,
    CompressionRecord,
    HistoryWindow,
    Json,
    MediaCacheRecord,
    RecoveredFile,
    Snapshot,
    StoredEvent,
    StoredMessage,
    StoredToolCall,
    Timeline,
    TodoSnapshot,
)
from kode_core.protocols import EventStream, ExtendedStore, Heartbeat, Lease
from kode_core.query import (
    AgentStats,
    Group,
    MessageConditions,
    MessageFilter,
    Page,
    SessionConditions,
    SessionFilter,
    SessionInfo,
    ToolCallConditions,
    ToolCallFilter,
)
from kode_core.report import ConsistencyCheckResult, ConsistencyIssue, RepairResult, StoreHealthStatus, StoreMetrics

# Imported here and not inside the methods: a process without free descriptors cannot import.
from kode_core.store import backups, consistency, health, repairs, rows
from kode_core.store.agent_methods import AgentMethods
from kode_core.store.following import follow
from kode_core.store.kinds import COMPRESSIONS, MEDIA, RECOVERED, SNAPSHOTS, TODOS, WINDOWS
from kode_core.store.locks import LeaseContext
from kode_core.store.methods import METHODS
from kode_core.store.reader import every
from kode_core.store.steps import checked_progress
from kode_core.tenants import check_tenant

__all__ = ["EngineStore"]

_Groups = list[Group]  # the method ``list`` hides the builtin inside the class
_Ids = list[str]
_Paths = list[Path]


class EngineStore(AgentMethods, ExtendedStore):
    """An ExtendedStore over any engine; :class:`~kode_core.store.base.StoreBase` documents the arguments."""

    # --- todos, history, media, snapshots

    async def save_todos(self, agent_id: str, snapshot: TodoSnapshot, *, fence: Lease | None = None) -> None:
        await self._save_doc("save_todos", agent_id, fence, TODOS.write, snapshot)

    async def load_todos(self, agent_id: str) -> TodoSnapshot | None:
        return await self._load("load_todos", agent_id, self._reader.load_doc, TODOS)

    async def save_history_window(self, agent_id: str, window: HistoryWindow, *, fence: Lease | None = None) -> None:
        await self._save_doc("save_history_window", agent_id, fence, WINDOWS.write, window)

    async def load_history_windows(self, agent_id: str) -> list[HistoryWindow]:
        return await self._load("load_history_windows", agent_id, self._reader.load_docs, WINDOWS)

    async def save_compression_record(
        self, agent_id: str, record: CompressionRecord, *, fence: Lease | None = None
    ) -> None:
        await self._save_doc("save_compression_record", agent_id, fence, COMPRESSIONS.write, record)

    async def load_compression_records(self, agent_id: str) -> list[CompressionRecord]:
        return await self._load("load_compression_records", agent_id, self._reader.load_docs, COMPRESSIONS)

    async def save_recovered_file(self, agent_id: str, file: RecoveredFile, *, fence: Lease | None = None) -> None:
        await self._save_doc("save_recovered_file", agent_id, fence, RECOVERED.write, file)

    async def load_recovered_files(self, agent_id: str) -> list[RecoveredFile]:
        return await self._load("load_recovered_files", agent_id, self._reader.load_docs, RECOVERED)

    async def save_media_cache(
        self, agent_id: str, records: Sequence[MediaCacheRecord], *, fence: Lease | None = None
    ) -> None:
        await self._save_doc("save_media_cache", agent_id, fence, MEDIA.write, records)

    async def load_media_cache(self, agent_id: str) -> list[MediaCacheRecord]:
        return await self._load("load_media_cache", agent_id, self._reader.load_list_doc, MEDIA)

    async def save_snapshot(self, agent_id: str, snapshot: Snapshot, *, fence: Lease | None = None) -> None:
        await self._save_doc("save_snapshot", agent_id, fence, SNAPSHOTS.write, snapshot)

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Snapshot | None:
        def load(agent_id: str) -> Awaitable[Snapshot | None]:
            return self._reader.load_doc(agent_id, SNAPSHOTS, check_key(snapshot_id, "snapshot id"))

        return await self._load("load_snapshot", agent_id, load)

    async def list_snapshots(self, agent_id: str) -> list[Snapshot]:
        return await self._load("list_snapshots", agent_id, self._reader.load_docs, SNAPSHOTS)

    # --- events

    async def append_event(self, agent_id: str, timeline: Timeline, *, fence: Lease | None = None) -> int:
        return await self._context.run(METHODS["append_event"], agent_id, self._append_one, agent_id, timeline, fence)

    async def _append_one(self, agent_id: str, timeline: Timeline, fence: Lease | None) -> int:
        return (await self._append(agent_id, (await rows.event_write(timeline),), fence))[0]

    async def append_events(
        self, agent_id: str, timelines: Sequence[Timeline], *, fence: Lease | None = None
    ) -> Sequence[int]:
        async def append() -> Sequence[int]:
            return await self._append(agent_id, await rows.event_writes(timelines), fence)

        return await self._context.run(METHODS["append_events"], agent_id, append)

    async def _append(self, agent_id: str, events: Sequence[EventWrite], fence: Lease | None) -> Sequence[int]:
        check_agent_id(agent_id)
        with self._locks.fencing(agent_id, fence) as held:
            return await self._appender.append(agent_id, events, held)

    def read_events(
        self,
        agent_id: str,
        *,
        since: Bookmark | None = None,
        after_offset: int | None = None,
        channel: AgentChannel | None = None,
    ) -> AsyncIterator[StoredEvent]:
        found = self._events.read(agent_id, since, after_offset, channel)
        return self._iterated("read_events", agent_id, found)

    async def last_bookmark(self, agent_id: str) -> Bookmark | None:
        return await self._load("last_bookmark", agent_id, self._reader.last_bookmark)

    @overload
    def follow_events(
        self,
        agent_id: str,
        *,
        since: Bookmark | None = None,
        after_offset: int = 0,
        channel: AgentChannel | None = None,
        heartbeat_ms: None = None,
    ) -> EventStream[StoredEvent]: ...

    @overload
    def follow_events(
        self,
        agent_id: str,
        *,
        since: Bookmark | None = None,
        after_offset: int = 0,
        channel: AgentChannel | None = None,
        heartbeat_ms: int | None,
    ) -> EventStream[StoredEvent | Heartbeat]: ...

    def follow_events(
        self,
        agent_id: str,
        *,
        since: Bookmark | None = None,
        after_offset: int = 0,
        channel: AgentChannel | None = None,
        heartbeat_ms: int | None = None,
    ) -> EventStream[StoredEvent | Heartbeat]:
        given = (agent_id, since, after_offset, channel, heartbeat_ms)
        found = follow(self._context, self._appender, self._follow_poll_s, *given)
        return cast("EventStream[StoredEvent | Heartbeat]", self._iterated("follow_events", agent_id, found))

    async def emit(
        self,
        agent_id: str,
        type: str,  # noqa: A002 - as the field of AgentEvent
        data: Mapping[str, Json] | None = None,
        *,
        channel: AgentChannel = "progress",
        fence: Lease | None = None,
    ) -> StoredEvent:
        event = AgentEvent(channel, type, {} if data is None else data)  # type: ignore[arg-type]
        (stored,) = await self._emitter.emit(METHODS["emit"], agent_id, (event,), fence)
        return stored

    async def emit_many(
        self, agent_id: str, events: Sequence[AgentEvent], *, fence: Lease | None = None
    ) -> Sequence[StoredEvent]:
        return await self._emitter.emit(METHODS["emit_many"], agent_id, events, fence)

    # --- info and lifecycle

    async def load_version(self, agent_id: str) -> str:
        return await self._load("load_version", agent_id, self._sessions.version)

    async def load_info(self, agent_id: str) -> AgentInfo | None:
        return await self._load("load_info", agent_id, self._reader.load_info)

    async def exists(self, agent_id: str) -> bool:
        return await self._load("exists", agent_id, self._reader.exists)

    async def delete(self, agent_id: str, *, fence: Lease | None = None) -> None:
        async def delete(agent_id: str) -> None:
            with self._locks.fencing(agent_id, fence) as held:
                await self._forks.delete(agent_id, held)

        await self._load("delete", agent_id, delete)

    # --- queries

    async def query_sessions(self, **filters: Unpack[SessionFilter]) -> Page[SessionInfo]:
        return await self._query("query_sessions", self._search.sessions, filters)

    async def query_messages(self, **filters: Unpack[MessageFilter]) -> Page[StoredMessage]:
        return await self._query("query_messages", self._search.messages, filters)

    async def query_tool_calls(self, **filters: Unpack[ToolCallFilter]) -> Page[StoredToolCall]:
        return await self._query("query_tool_calls", self._search.tool_calls, filters)

    async def count_sessions(self, **filters: Unpack[SessionConditions]) -> int:
        return await self._query("count_sessions", self._counting.sessions, filters)

    async def count_messages(self, **filters: Unpack[MessageConditions]) -> int:
        return await self._query("count_messages", self._counting.messages, filters)

    async def count_tool_calls(self, **filters: Unpack[ToolCallConditions]) -> int:
        return await self._query("count_tool_calls", self._counting.tool_calls, filters)

    async def group_sessions(
        self,
        by: SessionGroups | Sequence[SessionGroups],
        *,
        utc_offset_minutes: int = 0,
        **filters: Unpack[SessionConditions],
    ) -> _Groups:
        return await self._query("group_sessions", partial(self._grouping.sessions, by, utc_offset_minutes), filters)

    async def group_messages(
        self,
        by: MessageGroups | Sequence[MessageGroups],
        *,
        utc_offset_minutes: int = 0,
        **filters: Unpack[MessageConditions],
    ) -> _Groups:
        return await self._query("group_messages", partial(self._grouping.messages, by, utc_offset_minutes), filters)

    async def group_tool_calls(
        self,
        by: ToolCallGroups | Sequence[ToolCallGroups],
        *,
        durations: bool = False,
        utc_offset_minutes: int = 0,
        **filters: Unpack[ToolCallConditions],
    ) -> _Groups:
        grouped = partial(self._grouping.tool_calls, by, utc_offset_minutes, durations)
        return await self._query("group_tool_calls", grouped, filters)

    def iter_sessions(self, **filters: Unpack[SessionFilter]) -> AsyncIterator[SessionInfo]:
        return self._iterated("iter_sessions", filters.get("agent_id"), every(self.query_sessions, filters))

    def iter_messages(self, **filters: Unpack[MessageFilter]) -> AsyncIterator[StoredMessage]:
        return self._iterated("iter_messages", filters.get("agent_id"), every(self.query_messages, filters))

    def iter_tool_calls(self, **filters: Unpack[ToolCallFilter]) -> AsyncIterator[StoredToolCall]:
        return self._iterated("iter_tool_calls", filters.get("agent_id"), every(self.query_tool_calls, filters))

    async def aggregate_stats(self, agent_id: str) -> AgentStats:
        return await self._load("aggregate_stats", agent_id, self._search.stats)

    async def delete_many(self, *, progress: Progress | None = None, **filters: Unpack[SessionFilter]) -> int:
        async def delete() -> int:
            return await self._deletions.delete_many(self._search.sessions, filters, checked_progress(progress))

        return await self._run("delete_many", delete)

    # --- tenants

    def scoped(self, tenant: str) -> EngineStore:
        """See :class:`kode_core.protocols.ScopedStore`."""
        check_tenant(tenant)
        if self._tenant is not None:
            raise UnsupportedError(
                f"this store sees the tenant {self._tenant!r} alone, and has no scopes of its own: scope the whole "
                "store, by a name of several parts such as agent_key('acme', 'europe')"
            )
        self._context.check_open()
        return EngineStore(self._context.open_for_view, tenant=tenant, parent=self, **self._settings)

    # --- operations

    async def health_check(self) -> StoreHealthStatus:
        return await health.health(self._context)

    async def check_consistency(
        self, agent_id: str | None = None, *, progress: Progress | None = None
    ) -> ConsistencyCheckResult:
        async def check() -> ConsistencyCheckResult:
            checked = None if agent_id is None else check_agent_id(agent_id)
            return await consistency.check(self._context, checked, checked_progress(progress))

        return await self._context.run(METHODS["check_consistency"], agent_id, check)

    def iter_consistency(
        self, agent_id: str | None = None, *, progress: Progress | None = None
    ) -> AsyncIterator[ConsistencyIssue]:
        if agent_id is not None:
            check_agent_id(agent_id)
        return consistency.issues(self._context, agent_id, checked_progress(progress))

    async def repair(self, agent_id: str | None = None, *, progress: Progress | None = None) -> RepairResult:
        """See :class:`kode_core.store.repairs.Repairable`."""
        return await self._context.run(
            METHODS["repair"], agent_id, repairs.repair, self._context, agent_id, checked_progress(progress)
        )

    async def get_metrics(self) -> StoreMetrics:
        return await self._run("get_metrics", self._context.metrics)

    async def backup(self, target: str | Path, *, progress: Progress | None = None) -> _Paths:
        async def backup() -> Sequence[Path]:
            return await backups.backup(self._context, self._appender, target, checked_progress(progress))

        return [*await self._run("backup", backup)]

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> LeaseContext:
        return self._locks.lock(check_agent_id(agent_id), ttl_ms, wait_ms)
