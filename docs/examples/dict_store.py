"""A store written on the protocol itself, over plain dictionaries.

It keeps the contract of ``Store`` without the core's help, to show what that takes; an ``Engine`` is less work and
gives queries, locks and metrics as well. Bodies are kept as JSON, so that what a caller changes later is not stored.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kode_conformance import Handle, Space, StoreHarness

from kode_core import (
    CHANNELS,
    AgentDeletedError,
    AgentInfo,
    Bookmark,
    CompressionRecord,
    Heartbeat,
    HistoryWindow,
    InvalidArgumentError,
    MediaCacheRecord,
    Message,
    Record,
    RecoveredFile,
    Snapshot,
    Store,
    StoredEvent,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
    now_ms,
)
from kode_core.codec import Body, decode, encode
from kode_core.ids import check_agent_id, check_key


class SharedData:
    """The data that several stores share, in place of a database."""

    def __init__(self) -> None:
        self.agents: dict[str, dict[str, Any]] = {}
        self.events: defaultdict[str, list[tuple[int, int, str, Body]]] = defaultdict(list)
        self.deletes: defaultdict[str, int] = defaultdict(int)
        self.offsets = itertools.count(1)
        self.changed = asyncio.Condition()


class DictStore(Store):
    """Implements ``Store``; ``fence`` is accepted and ignored, because without locks there are no leases."""

    def __init__(self, data: SharedData) -> None:
        self._data = data

    def _agent(self, agent_id: str) -> dict[str, Any]:
        return self._data.agents.get(check_agent_id(agent_id), {})

    def _write(self, agent_id: str, **changes: Any) -> None:
        """One atomic change: everything was checked before, and nothing is awaited."""
        self._data.agents.setdefault(check_agent_id(agent_id), {}).update(changes)

    # --- messages and tool calls

    async def save_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Any = None) -> None:
        self._write(agent_id, messages=_bodies(Message, messages))

    async def append_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Any = None) -> None:
        old = self._agent(agent_id).get("messages", [])
        self._write(agent_id, messages=[*old, *_bodies(Message, messages, len(old))])

    async def load_messages(self, agent_id: str) -> list[Message]:
        return _records(Message, self._agent(agent_id).get("messages", []))

    async def save_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Any = None
    ) -> None:
        self._write(agent_id, calls=_calls(records))

    async def upsert_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Any = None
    ) -> None:
        self._write(agent_id, calls=_upserted(self._agent(agent_id).get("calls", []), _calls(records)))

    async def load_tool_call_records(self, agent_id: str) -> list[ToolCallRecord]:
        return _records(ToolCallRecord, [body for _, body in self._agent(agent_id).get("calls", [])])

    async def save_turn(
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
        fence: Any = None,
    ) -> Sequence[int]:
        if (messages is not None and append) or (tool_calls is not None and upsert_tool_calls):
            raise InvalidArgumentError("replace a list or add to it, not both")
        agent = self._agent(agent_id)
        changes: dict[str, Any] = {}
        if messages is not None:
            changes["messages"] = _bodies(Message, messages)
        elif append:
            old = agent.get("messages", [])
            changes["messages"] = [*old, *_bodies(Message, append, len(old))]
        if tool_calls is not None:
            changes["calls"] = _calls(tool_calls)
        elif upsert_tool_calls:
            changes["calls"] = _upserted(agent.get("calls", []), _calls(upsert_tool_calls))
        if todos is not None:
            changes["todos"] = encode(TodoSnapshot, todos, "todos")
        if info is not None:
            changes["info"] = _info(agent_id, info)
        encoded = _events(events)
        if changes:
            self._write(agent_id, **changes)
        return await self._append(agent_id, encoded) if encoded else ()

    # --- documents

    async def _keep(self, agent_id: str, kind: str, key: Any, body: Body) -> None:
        self._write(agent_id, **{kind: {**self._agent(agent_id).get(kind, {}), key: body}})

    def _kept(self, agent_id: str, kind: str, cls: type[Any]) -> list[Any]:
        return _records(cls, self._agent(agent_id).get(kind, {}).values())

    async def save_todos(self, agent_id: str, snapshot: TodoSnapshot, *, fence: Any = None) -> None:
        self._write(agent_id, todos=encode(TodoSnapshot, snapshot, "todos"))

    async def load_todos(self, agent_id: str) -> TodoSnapshot | None:
        body = self._agent(agent_id).get("todos")
        return None if body is None else decode(TodoSnapshot, body, "todos")

    async def save_history_window(self, agent_id: str, window: HistoryWindow, *, fence: Any = None) -> None:
        body = encode(HistoryWindow, window, "history window")
        await self._keep(agent_id, "windows", check_key(window.id, "history window id"), body)

    async def load_history_windows(self, agent_id: str) -> list[HistoryWindow]:
        return sorted(self._kept(agent_id, "windows", HistoryWindow), key=lambda w: (w.timestamp, w.id))

    async def save_compression_record(self, agent_id: str, record: CompressionRecord, *, fence: Any = None) -> None:
        body = encode(CompressionRecord, record, "compression record")
        await self._keep(agent_id, "compressions", check_key(record.id, "compression record id"), body)

    async def load_compression_records(self, agent_id: str) -> list[CompressionRecord]:
        return sorted(self._kept(agent_id, "compressions", CompressionRecord), key=lambda r: (r.timestamp, r.id))

    async def save_recovered_file(self, agent_id: str, file: RecoveredFile, *, fence: Any = None) -> None:
        body = encode(RecoveredFile, file, "recovered file")
        key = (check_key(file.path, "recovered file path"), file.timestamp)
        await self._keep(agent_id, "recovered", key, body)

    async def load_recovered_files(self, agent_id: str) -> list[RecoveredFile]:
        return sorted(self._kept(agent_id, "recovered", RecoveredFile), key=lambda f: (f.timestamp, f.path))

    async def save_media_cache(self, agent_id: str, records: Sequence[MediaCacheRecord], *, fence: Any = None) -> None:
        bodies = _bodies(MediaCacheRecord, records)
        for record in records:
            check_key(record.key, "media key")
        self._write(agent_id, media=bodies)

    async def load_media_cache(self, agent_id: str) -> list[MediaCacheRecord]:
        return _records(MediaCacheRecord, self._agent(agent_id).get("media", []))

    async def save_snapshot(self, agent_id: str, snapshot: Snapshot, *, fence: Any = None) -> None:
        body = encode(Snapshot, snapshot, "snapshot")
        await self._keep(agent_id, "snapshots", check_key(snapshot.id, "snapshot id"), body)

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Snapshot | None:
        body = self._agent(agent_id).get("snapshots", {}).get(check_key(snapshot_id, "snapshot id"))
        return None if body is None else decode(Snapshot, body, "snapshot")

    async def list_snapshots(self, agent_id: str) -> list[Snapshot]:
        return sorted(self._kept(agent_id, "snapshots", Snapshot), key=lambda s: (-s.created_at, s.id))

    # --- events

    async def _append(self, agent_id: str, events: Sequence[tuple[int, str, Body]]) -> list[int]:
        log = self._data.events[check_agent_id(agent_id)]
        known = {(seq, body.digest): offset for offset, seq, _, body in log}
        offsets = []
        for seq, channel, body in events:
            offset = known.get((seq, body.digest))
            if offset is None:
                offset = known[seq, body.digest] = next(self._data.offsets)
                log.append((offset, seq, channel, body))
            offsets.append(offset)
        async with self._data.changed:
            self._data.changed.notify_all()
        return offsets

    async def append_event(self, agent_id: str, timeline: Timeline, *, fence: Any = None) -> int:
        return (await self.append_events(agent_id, [timeline]))[0]

    async def append_events(self, agent_id: str, timelines: Sequence[Timeline], *, fence: Any = None) -> Sequence[int]:
        return await self._append(agent_id, _events(timelines))

    def read_events(
        self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None
    ) -> AsyncIterator[StoredEvent]:
        _check_reading(agent_id, since, after_offset, channel)
        return self._read(agent_id, since, after_offset, channel)

    async def _read(self, agent_id: str, since: Any, after_offset: Any, channel: Any) -> AsyncIterator[StoredEvent]:
        log = [
            entry
            for entry in self._data.events.get(agent_id, [])
            if (since is None or entry[1] > since.seq)
            and (after_offset is None or entry[0] > after_offset)
            and (channel is None or entry[2] == channel)
        ]
        log.sort(key=lambda entry: entry[0] if after_offset is not None else (entry[1], entry[0]))
        for offset, _, _, body in log:
            event = decode(Timeline, body, f"event {offset}")
            yield StoredEvent(event.cursor, event.bookmark, event.event, extra=event.extra, offset=offset)

    async def last_bookmark(self, agent_id: str) -> Bookmark | None:
        last = None
        async for event in self.read_events(agent_id):
            last = event.bookmark
        return last

    def follow_events(
        self,
        agent_id: str,
        *,
        since: Any = None,
        after_offset: int = 0,
        channel: Any = None,
        heartbeat_ms: int | None = None,
    ) -> Any:
        _check_reading(agent_id, since, after_offset, channel)
        if heartbeat_ms is not None and not (type(heartbeat_ms) is int and 1 <= heartbeat_ms <= 86_400_000):
            raise InvalidArgumentError("heartbeat_ms is a number of milliseconds, at most a day")
        return _Following(self._data, agent_id, since, after_offset, channel, heartbeat_ms)

    # --- info and lifecycle

    async def save_info(self, agent_id: str, info: AgentInfo, *, fence: Any = None) -> None:
        self._write(agent_id, info=_info(agent_id, info))

    async def load_info(self, agent_id: str) -> AgentInfo | None:
        agent = self._agent(agent_id)
        if "info" not in agent:
            return None
        return decode(AgentInfo, agent["info"], "info").replace(message_count=len(agent.get("messages", [])))

    async def exists(self, agent_id: str) -> bool:
        return "info" in self._agent(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        if self._data.agents.pop(check_agent_id(agent_id), None) or self._data.events.pop(agent_id, None):
            self._data.events.pop(agent_id, None)
            self._data.deletes[agent_id] += 1
        async with self._data.changed:
            self._data.changed.notify_all()

    async def list(self, prefix: str = "") -> Any:
        if not isinstance(prefix, str):
            raise InvalidArgumentError(f"prefix must be a str, got {type(prefix).__name__}")
        return sorted(a for a, agent in self._data.agents.items() if a.startswith(prefix) and "info" in agent)


class _Following:
    """The stream of ``follow_events``: a cancelled ``anext`` changes nothing, and so loses nothing."""

    def __init__(
        self, data: SharedData, agent_id: str, since: Any, after: int, channel: Any, beat_ms: int | None
    ) -> None:
        self._data = data
        self._agent_id = agent_id
        self._wanted = (since, channel)
        self._after = after
        self._beat_s = None if beat_ms is None else beat_ms / 1000
        self._quiet_since: float | None = None
        self._deletes = data.deletes[agent_id]
        self._is_busy = self._is_closed = False

    def __aiter__(self) -> _Following:
        return self

    async def __anext__(self) -> StoredEvent | Heartbeat:
        if self._is_busy:
            raise InvalidArgumentError("a stream has one reader at a time")
        self._is_busy = True
        try:
            return await self._next()
        finally:
            self._is_busy = False

    async def _next(self) -> StoredEvent | Heartbeat:
        loop = asyncio.get_running_loop()
        self._quiet_since = self._quiet_since or loop.time()
        beat_at = None if self._beat_s is None else self._quiet_since + self._beat_s
        try:
            async with asyncio.timeout_at(beat_at), self._data.changed:
                while (event := self._stored()) is None:
                    await self._data.changed.wait()
        except TimeoutError:
            self._quiet_since = None
            return Heartbeat(now_ms(), self._after)
        self._after, self._quiet_since = event.offset, None
        return event

    def _stored(self) -> StoredEvent | None:
        """The next event that is there now."""
        if self._is_closed:
            raise StopAsyncIteration
        if self._data.deletes[self._agent_id] != self._deletes:
            raise AgentDeletedError(self._agent_id)
        since, channel = self._wanted
        log = self._data.events.get(self._agent_id, [])
        for offset, seq, its_channel, body in log[bisect_right(log, self._after, key=lambda entry: entry[0]) :]:
            if (since is None or seq > since.seq) and channel in (None, its_channel):
                event = decode(Timeline, body, f"event {offset}")
                return StoredEvent(event.cursor, event.bookmark, event.event, extra=event.extra, offset=offset)
            self._after = offset
        return None

    async def aclose(self) -> None:
        self._is_closed = True
        async with self._data.changed:
            self._data.changed.notify_all()


def _bodies(cls: type[Record], records: Any, start: int = 0) -> list[Body]:
    if not isinstance(records, (list, tuple)):
        raise InvalidArgumentError(f"expected a list of {cls.__name__}, got {type(records).__name__}")
    return [encode(cls, record, f"{cls.__name__.lower()} {i}") for i, record in enumerate(records, start)]


def _records(cls: type[Any], bodies: Any) -> list[Any]:
    return [decode(cls, body, f"{cls.__name__.lower()} {i}") for i, body in enumerate(bodies)]


def _calls(records: Any) -> list[tuple[str, Body]]:
    bodies = _bodies(ToolCallRecord, records)
    return [(check_key(record.id, "tool call id"), body) for record, body in zip(records, bodies, strict=True)]


def _upserted(old: list[tuple[str, Body]], new: list[tuple[str, Body]]) -> list[tuple[str, Body]]:
    calls = list(old)
    for call in new:
        places = [i for i, (call_id, _) in enumerate(calls) if call_id == call[0]]
        position = places[-1] if places else len(calls)
        calls[position : position + 1] = [call]
    return calls


def _info(agent_id: str, info: AgentInfo) -> Body:
    body = encode(AgentInfo, info, "info")
    if info.agent_id != check_agent_id(agent_id):
        raise InvalidArgumentError(f"info.agent_id is {info.agent_id!r:.80} but it is saved as {agent_id!r:.80}")
    return body


def _events(timelines: Sequence[Timeline]) -> list[tuple[int, str, Body]]:
    places: dict[bytes, int] = {}
    events = []
    for i, timeline in enumerate(timelines):
        body = encode(Timeline, timeline, f"events[{i}]")
        first = places.setdefault(body.digest, i)
        if first != i:
            raise InvalidArgumentError(f"events[{first}] and events[{i}] are identical; leave one of them out")
        events.append((timeline.bookmark.seq, timeline.event.channel, body))
    return events


def _check_reading(agent_id: str, since: Any, after_offset: Any, channel: Any) -> None:
    check_agent_id(agent_id)
    right = isinstance(since, Bookmark) or since is None
    right = right and (after_offset is None or (type(after_offset) is int and after_offset < 2**63))
    if not right or (channel is not None and channel not in CHANNELS):
        raise InvalidArgumentError("since is a Bookmark, after_offset an offset, channel one of the three")


class DictHarness(StoreHarness):
    """For the conformance suite: stores of one name share a place."""

    name = "dictionaries"
    lacks = frozenset({"PERSISTENT", "CROSS_PROCESS", "QUERYABLE", "EXTENDED"})
    _spaces: dict[str, SharedData] = {}  # noqa: RUF012 - shared on purpose

    async def provision(self, space: Space) -> Handle:
        self._spaces[space.name] = SharedData()
        return {"name": space.name}

    async def open(self, handle: Handle) -> Store:
        return DictStore(self._spaces[handle["name"]])

    async def destroy(self, handle: Handle) -> None:
        self._spaces.pop(handle["name"], None)
