"""Reads threads of LangGraph as agents with the messages of their newest state, for ``kode import``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any, Final

from kode_core.formats.importing import ForeignAgent, Found
from kode_core.formats.langchain import Calls, message_of
from kode_core.formats.langgraph.reading import Checkpoints, Stored, open_checkpoints
from kode_core.formats.langgraph.values import DELTA, Foreign, Said, decoded
from kode_core.formats.tables import time_of
from kode_core.keys import agent_key
from kode_core.model import AgentInfo, AgentRecords, Message, ToolCallRecord

__all__ = ["TEMPLATE", "open_threads", "unreadable"]

TEMPLATE: Final = "langgraph"
"""The template of the agents that are threads, and the first part of their ids."""
_MESSAGES: Final = "messages"
_DELTAS: Final = "counters_since_delta_snapshot"


@asynccontextmanager
async def open_threads(source: str) -> AsyncIterator[AsyncIterator[ForeignAgent]]:
    """The threads of a database, which is not changed: a file of SQLite, or a URL of PostgreSQL.

    Each is an agent with the messages of its newest state, each with the time of the first checkpoint that had it.

    Raises:
        ConfigurationError: there is no such database, or it has no checkpoints of LangGraph's.
        BackendImportError: the plugin that reads it is not installed.
        StorageError: it cannot be read.
    """
    async with open_checkpoints(source) as checkpoints:
        yield _agents(checkpoints)


async def _agents(checkpoints: Checkpoints) -> AsyncIterator[ForeignAgent]:
    async for thread in checkpoints.threads():
        yield unreadable(thread) or await _agent(checkpoints, str(thread))


def unreadable(thread: object) -> ForeignAgent | None:
    """The agent of a thread whose id is no text; None if it is one."""
    try:
        if isinstance(thread, str):
            thread.encode()
            return None
    except UnicodeEncodeError:
        pass
    found = Found()
    found.damaged[f"checkpoints: the thread {thread!r:.80} has an id that is no text"] += 1
    return ForeignAgent(AgentRecords(agent_id=agent_key(TEMPLATE, repr(thread))), found)


async def _agent(checkpoints: Checkpoints, thread: str) -> ForeignAgent:
    found, newest = Found(), None
    seen: dict[bytes, tuple[int, str]] = {}
    times: list[int] = []
    places = await checkpoints.places(thread)
    for ns, checkpoint_id in places:
        if ns:
            continue
        try:
            stored = await checkpoints.read(thread, ns, checkpoint_id)
            names = [_name(said) for said in _said(stored)]
        except (ValueError, RecursionError) as exc:
            found.damaged[f"checkpoint {checkpoint_id:.80}: {exc}"[:300]] += 1
            continue
        times.append(max([time_of(stored.checkpoint["ts"]) or 0, *times[-1:]]))
        for name in names:
            seen.setdefault(name, (times[-1], checkpoint_id))
        newest = stored
    found.left_out["checkpoints: the newest state is brought; kode-langgraph brings all of them"] += len(places)
    agent_id = agent_key(TEMPLATE, thread)
    if newest is None:
        return ForeignAgent(AgentRecords(agent_id=agent_id), found)
    created = times[0]
    info = AgentInfo(agent_id=agent_id, template_id=TEMPLATE, created_at=created, metadata={"threadId": thread})
    messages, message_times, calls = _conversation(newest, seen, found)
    records = AgentRecords(
        agent_id=agent_id,
        info=info,
        updated_at=times[-1],
        messages=messages,
        message_times=message_times,
        tool_calls=calls,
    )
    return ForeignAgent(records, found)


def _conversation(
    newest: Stored, seen: dict[bytes, tuple[int, str]], found: Found
) -> tuple[list[Message], list[int], list[ToolCallRecord]]:
    """The messages of a state, their times, and their tool calls."""
    channel = _channel(newest)
    deltas = newest.metadata.get(_DELTAS)
    if channel is None and type(deltas) is dict and _MESSAGES in deltas:
        found.damaged[f"checkpoint {newest.id}: its messages are in a DeltaChannel, which kode-langgraph reads"] += 1
    others = sum(not name.startswith(("__", "branch:")) for name in newest.values) - (channel is not None)
    if others > 0:
        found.left_out["channels: other values of the state"] += others
    messages: list[Message] = []
    times: list[int] = []
    calls, records = Calls(), dict[str, ToolCallRecord]()
    for said in _said(newest):
        at, checkpoint_id = seen[_name(said)]
        if times and at < times[-1]:
            found.changed["messages: an earlier time than the message before became that one's time"] += 1
            at = times[-1]
        try:
            message, begun = message_of(said, "", checkpoint_id), calls.records([said], (), at)
        except (ValueError, TypeError, RecursionError) as exc:
            found.damaged[f"message {said.id!s:.80}: {exc}"[:300]] += 1
            continue
        messages.append(message)
        times.append(at)
        records.update((call.id, call) for call in begun)
    return messages, times, list(records.values())


def _listed(value: Any) -> list[Any]:
    """The elements of a list, or of a snapshot of one."""
    if isinstance(value, Foreign) and value.code == DELTA:
        value = decoded(value.data)
    return value if type(value) is list else []


def _channel(stored: Stored) -> str | None:
    """The channel of the messages: the one of that name, or else the first that has some."""
    if _MESSAGES in stored.values:
        return _MESSAGES
    return next(
        (
            name
            for name in sorted(stored.values)
            if not name.startswith("__") and any(isinstance(each, Said) for each in _listed(stored.values[name]))
        ),
        None,
    )


def _said(stored: Stored) -> list[Said]:
    channel = _channel(stored)
    listed = _listed(stored.values[channel]) if channel is not None else []
    return [each for each in listed if isinstance(each, Said) and each.is_said]


def _name(said: Said) -> bytes:
    """A name for a message: its id, or its content if it has none."""
    return said.id.encode("utf-8", "surrogatepass") if said.id else blake2b(said.data, digest_size=16).digest()
