"""The calls that langgraph makes to a checkpointer for a turn with a tool use.

They were noted from langgraph 1.2.22 with a checkpointer that writes down its calls, for a graph of two nodes, a model
and a tool, and the channel ``messages``. A turn is five steps: the input, what it starts, the model's tool use, the
tool's result, the model's answer. Each is kept by ``aput`` with the values of all channels; what a step wrote is kept
by ``aput_writes`` before that. PostgresSaver stores the channels anew that the step changed, SqliteSaver all of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from tests.benchmarks.backends import Options
from tests.benchmarks.peers import Conversation

__all__ = ["Graph", "saver_at"]

_START, _MODEL, _TOOL = "__start__", "branch:to:agent", "branch:to:tools"


@asynccontextmanager
async def saver_at(options: Options) -> AsyncIterator[Any]:
    """A checkpointer as its manual opens it, over one connection."""
    if options["type"] == "sqlite":
        async with AsyncSqliteSaver.from_conn_string(options["db_path"]) as saver:
            await saver.setup()
            yield saver
        return
    sign = "&" if "?" in options["dsn"] else "?"
    where = f"{options['dsn']}{sign}options=-c%20search_path%3D{options['schema']}"
    async with AsyncPostgresSaver.from_conn_string(where) as saver:
        await saver.setup()
        yield saver


def _messages(n: int) -> list[Any]:
    """The four messages as LangChain has them; the runtime gives each an id."""
    call = {"name": "bash", "args": {"command": "ls -l", "n": n, "env": {"A": "1"}}, "id": f"call-{n}"}
    return [
        HumanMessage(f"question {n} " + "x" * 600, id=str(uuid4())),
        AIMessage("", tool_calls=[call], id=str(uuid4())),
        ToolMessage(f"result {n} " + "y" * 600, tool_call_id=f"call-{n}", id=str(uuid4())),
        AIMessage(f"answer {n} " + "z" * 600, id=str(uuid4())),
    ]


class _Step(NamedTuple):
    """What a step leaves to the next, and which channels it changed beside ``messages``."""

    next: str | None
    changed: tuple[str, ...]


_STEPS = (
    _Step(_MODEL, (_START, _MODEL)),
    _Step(_TOOL, (_MODEL, _TOOL)),
    _Step(_MODEL, (_MODEL, _TOOL)),
    _Step(None, (_MODEL,)),
)


class Graph(Conversation):
    """A thread of a graph.

    - ``steps``: ``durability="async"``, the default, and ``"sync"``: a checkpoint after each step.
    - ``exit``: one checkpoint at the end of the turn.
    - ``delta``: as ``steps``, with ``messages`` a ``DeltaChannel``: the checkpoints go without it.
    """

    def __init__(self, saver: Any, thread: str, *, way: Literal["steps", "exit", "delta"]) -> None:
        self._saver = saver
        self._way = way
        self._config: dict[str, Any] = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
        self._said: list[Any] = []
        self._versions: dict[str, Any] = {}
        self._step = -1

    async def start(self, length: int) -> None:
        self._said = [message for n in range(length // 4) for message in _messages(n)]
        await self._put("loop", {"messages": self._said}, ("messages", _START, _MODEL, _TOOL))

    async def turn(self, i: int) -> None:
        messages = _messages(i)
        if self._way == "exit":
            self._step += 4
            self._said = self._said + messages
            await self._put("loop", {"messages": self._said}, ("messages", _START, _MODEL, _TOOL))
            return
        await self._put("input", {**self._kept(), _START: {"messages": messages[:1]}}, (_START,))
        for message, step in zip(messages, _STEPS, strict=True):
            writes = [("messages", [message]), *([(step.next, None)] if step.next else [])]
            await self._saver.aput_writes(self._config, writes, str(uuid4()), "~__pregel_pull, agent")
            self._said = [*self._said, message]
            values = {**self._kept(), **({step.next: None} if step.next else {})}
            await self._put("loop", values, ("messages", *step.changed))

    def _kept(self) -> dict[str, Any]:
        return {} if self._way == "delta" else {"messages": self._said}

    async def _put(self, source: str, values: dict[str, Any], changed: tuple[str, ...]) -> None:
        """A checkpoint, at which the next one begins."""
        self._step += 1
        new = {name: self._saver.get_next_version(self._versions.get(name), None) for name in changed}
        self._versions = {**self._versions, **new}
        checkpoint = {
            "v": 4,
            "ts": datetime.now(UTC).isoformat(),
            "id": str(uuid6(clock_seq=self._step)),
            "channel_values": values,
            "channel_versions": self._versions,
            "versions_seen": {"__input__": {}, _START: self._seen(_START), "agent": self._seen(_MODEL)},
            "updated_channels": sorted(changed),
        }
        metadata = {"source": source, "step": self._step, "parents": {}}
        self._config = await self._saver.aput(self._config, checkpoint, metadata, new)

    def _seen(self, channel: str) -> dict[str, Any]:
        return {channel: self._versions[channel]} if channel in self._versions else {}

    async def load(self, i: int) -> None:
        thread = {name: value for name, value in self._config["configurable"].items() if name != "checkpoint_id"}
        found = await self._saver.aget_tuple({"configurable": thread})
        if self._way != "delta":
            assert len(found.checkpoint["channel_values"]["messages"]) == len(self._said)
