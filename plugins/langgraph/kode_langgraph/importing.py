"""Reads the threads that LangGraph's own savers keep, for ``kode import``: a graph goes on with them in KodeSaver.

Each thread is replayed, checkpoint by checkpoint, into a store in memory, and taken from there whole, with its own
times. Values are carried as they are: no class is imported, and no object is made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from itertools import groupby
from typing import Any, Final

from langgraph.checkpoint.serde.types import TASKS, _DeltaSnapshot
from msgspec.structs import replace

from kode_core import (
    AgentInfo,
    AgentRecords,
    Document,
    ExtendedStore,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    create_extended_store,
)
from kode_core.formats.importing import ForeignAgent, Found
from kode_core.formats.langgraph import DELTA, Foreign, Stored, Written, decoded, encoded, open_checkpoints, value_of
from kode_core.formats.langgraph import Checkpoints as Source
from kode_core.formats.langgraph.threads import unreadable
from kode_core.formats.tables import time_of
from kode_langgraph.checkpoints import Checkpoints
from kode_langgraph.items import HEAD
from kode_langgraph.keys import TEMPLATE, agent_of, config_of
from kode_langgraph.packing import Serial

__all__ = ["open_threads"]

_MESSAGES: Final = "messages"
_SENDS: Final = 4
"""The first form of checkpoints that keeps what was sent to nodes in a channel."""


@asynccontextmanager
async def open_threads(source: str) -> AsyncIterator[AsyncIterator[ForeignAgent]]:
    """The threads of a database, which is not changed: a file of SQLite, or a URL of PostgreSQL.

    Raises:
        ConfigurationError: there is no such database, or it has no checkpoints of LangGraph's.
        BackendImportError: the plugin that reads it is not installed.
        StorageError: it cannot be read.
    """
    async with open_checkpoints(source) as checkpoints, create_extended_store("memory:") as store:
        yield _agents(checkpoints, store)


async def _agents(source: Source, store: ExtendedStore) -> AsyncIterator[ForeignAgent]:
    async for thread in source.threads():
        yield unreadable(thread) or await _Replay(source, store, str(thread)).agent()


class _Carrier:
    """The serializer of a replay: objects go through it as the bytes that they were."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if obj is None:
            return "null", b""
        if type(obj) in (bytes, bytearray):
            return type(obj).__name__, bytes(obj)
        return "msgpack", encoded(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return value_of(*data)


class _Replay:
    """One thread."""

    def __init__(self, source: Source, store: ExtendedStore, thread: str) -> None:
        self._source = source
        self._store = store
        self._thread = thread
        self._checkpoints = Checkpoints(_MESSAGES)
        self._serial = Serial(_Carrier())
        self._times: dict[str, int] = {}
        self._last = 0
        self._found = Found()

    async def agent(self) -> ForeignAgent:
        """The agent that the thread is."""
        agent_id = agent_of(self._thread)
        try:
            for ns, checkpoint_id in await self._source.places(self._thread):
                await self._bring(ns, checkpoint_id)
            records = await self._store.load_agent(agent_id)
        finally:
            await self._store.delete(agent_id)
        if records is None:
            return ForeignAgent(AgentRecords(agent_id=agent_id), self._found)
        return ForeignAgent(self._dated(records), self._found)

    async def _bring(self, ns: str, checkpoint_id: str) -> None:
        """Put one checkpoint and the writes to it; one that cannot be read is noted."""
        try:
            stored = await self._source.read(self._thread, ns, checkpoint_id)
            writes = await self._source.writes(self._thread, ns, checkpoint_id)
            await self._complete(stored)
            self._check(stored, writes)
        except (ValueError, RecursionError) as exc:
            self._found.damaged[f"checkpoint {checkpoint_id:.80}: {exc}"[:300]] += 1
            return
        try:
            await self._put(stored, writes)
        except (ValueError, TypeError, AttributeError, RecursionError) as exc:  # a part that LangGraph never writes
            self._found.damaged[f"checkpoint {checkpoint_id:.80}: {exc}"[:300]] += 1

    async def _put(self, stored: Stored, writes: Sequence[Written]) -> None:
        """Put one checkpoint, and the writes to it."""
        self._last = max(self._last, time_of(stored.checkpoint["ts"]) or 0)
        self._times[stored.id] = self._last
        values = {name: _snapshot(value) for name, value in stored.values.items()}
        checkpoint: Any = {**stored.checkpoint, "id": stored.id, "channel_values": values}
        config: Any = {
            "configurable": {"thread_id": self._thread, "checkpoint_ns": stored.ns, "checkpoint_id": stored.parent}
        }
        metadata: Any = stored.metadata
        versions = checkpoint["channel_versions"]
        await self._checkpoints.put(self._store, self._serial, config, checkpoint, metadata, versions)
        place = config_of(self._thread, stored.ns, stored.id)
        for (path, task), group in groupby(writes, key=lambda one: (one.path, one.task)):
            given = [(one.channel, one.value) for one in group]
            await self._checkpoints.put_writes(self._store, self._serial, place, given, task, path)

    async def _complete(self, stored: Stored) -> None:
        """Give a checkpoint of LangGraph before 0.5 what was sent to nodes, as LangGraph's own savers do."""
        form, versions = stored.checkpoint.get("v"), stored.checkpoint["channel_versions"]
        if type(form) is not int:
            raise ValueError("it has no form")
        if form >= _SENDS or stored.parent is None or TASKS in versions:
            return
        sent = [
            one.value
            for one in await self._source.writes(self._thread, stored.ns, stored.parent)
            if one.channel == TASKS
        ]
        if sent:
            stored.values[TASKS] = sent
            versions[TASKS] = max(versions.values(), key=str, default="1.0")

    def _check(self, stored: Stored, writes: Sequence[Written]) -> None:
        """Refuse what the saver could not keep as it is, before anything of it is put."""
        deltas = stored.metadata.get("counters_since_delta_snapshot")
        if deltas is not None and type(deltas) is not dict:
            raise ValueError("its counters of changes are no object")
        parts = (stored.checkpoint, stored.metadata, *stored.values.values(), *(one.value for one in writes))
        for value in parts:
            self._serial.raw(value)

    def _info(self, agent_id: str) -> AgentInfo:
        created = min(self._times.values())
        return AgentInfo(
            agent_id=agent_id, template_id=TEMPLATE, created_at=created, metadata={"threadId": self._thread}
        )

    def _dated(self, records: AgentRecords) -> AgentRecords:
        """The records with the times of the checkpoints, and with nothing that is another the next time."""
        times = list[int]()
        begun, ended = dict[str, int](), dict[str, int]()
        for message in records.messages:
            about: Any = (message.metadata or {})["langgraph"]
            times.append(max([self._times[about["checkpoint"]], *times[-1:]]))
            for block in message.content:
                if isinstance(block, ToolUseBlock):
                    begun.setdefault(block.id, times[-1])
                elif isinstance(block, ToolResultBlock):
                    ended[block.tool_use_id] = times[-1]
        return replace(
            records,
            info=self._info(records.agent_id),
            updated_at=self._last,
            message_times=times,
            tool_calls=[self._dated_call(call, begun, ended) for call in records.tool_calls],
            documents=[self._dated_document(document) for document in records.documents],
        )

    def _dated_call(self, call: ToolCallRecord, begun: Mapping[str, int], ended: Mapping[str, int]) -> ToolCallRecord:
        end = ended.get(call.id)
        start = begun.get(call.id, end if end is not None else self._last)
        return call.replace(
            created_at=start,
            updated_at=start if end is None else max(start, end),
            completed_at=end if call.completed_at is not None else None,
        )

    def _dated_document(self, document: Document) -> Document:
        value: Any = document.value
        if (document.collection, document.key) == HEAD:
            value = {**value, "epoch": blake2b(self._thread.encode(), digest_size=8).hexdigest()}
        return replace(document, value=value, updated_at=self._last)


def _snapshot(value: Any) -> Any:
    if isinstance(value, Foreign) and value.code == DELTA:
        return _DeltaSnapshot(decoded(value.data))
    return value
