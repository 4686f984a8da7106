"""What an agent writes, in three ways through a store and in two on the floor."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    ExtendedStore,
    Message,
    Timeline,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
)
from kode_core.codec import encode
from tests.benchmarks.floor import Commit, Floor

__all__ = ["LENGTHS", "Agent", "FloorAgent", "an_event", "encode_a_turn", "four_messages"]

LENGTHS = (100, 1_000, 8_000)
"""How many messages a conversation has when its turns are measured."""

_TOOLS = [{"name": f"tool_{i}", "description": "what it does " * 8} for i in range(20)]


def four_messages(n: int) -> list[Message]:
    """A user's question, a tool use, its result, the answer: about 600 bytes each."""
    return [
        Message.user(f"question {n} " + "x" * 600),
        Message("assistant", [ToolUseBlock(f"call-{n}", "bash", {"command": "ls -l", "n": n, "env": {"A": "1"}})]),
        Message("user", [ToolResultBlock(f"call-{n}", f"result {n} " + "y" * 600)]),
        Message.assistant(f"answer {n} " + "z" * 600),
    ]


def a_call(n: int) -> ToolCallRecord:
    return ToolCallRecord(
        id=f"call-{n}",
        name="bash",
        input={"command": "ls -l"},
        state="COMPLETED",
        result="y" * 600,
        created_at=n,
        updated_at=n,
    )


def an_info(agent_id: str, n: int) -> AgentInfo:
    """An info with the descriptions of twenty tools, as the SDK writes it: about 3 KB."""
    return AgentInfo(
        agent_id=agent_id, template_id="assistant", created_at=1, metadata={"tools": _TOOLS, "updatedAt": n}
    )


def an_event(seq: int) -> Timeline:
    data = {"step": seq // 60, "delta": " some words", "bookmark": {"seq": seq, "timestamp": 1_767_258_000_000}}
    return Timeline(seq, Bookmark(seq, 1_767_258_000_000 + seq), AgentEvent("progress", "text_chunk", data))


class Agent:
    """An agent with a conversation, which saves its turns in one of three ways."""

    def __init__(self, store: ExtendedStore, agent_id: str, length: int) -> None:
        self.store = store
        self.id = agent_id
        self.messages = [message for n in range(length // 4) for message in four_messages(n)]
        self.calls = [a_call(n) for n in range(length // 4)]
        self.n = length
        self.seq = 0

    async def start(self) -> None:
        """Store what was said before."""
        await self.store.save_messages(self.id, self.messages)
        await self.store.save_tool_call_records(self.id, self.calls)
        await self.store.save_info(self.id, an_info(self.id, 0))

    def events(self, count: int) -> list[Timeline]:
        self.seq += count
        return [an_event(seq) for seq in range(self.seq - count, self.seq)]

    async def as_the_sdk(self, _: int) -> None:
        """Four saves of the whole list, one of the calls, five of the info, sixty awaited events."""
        await self._turn(self._save_all)

    async def with_appends(self, _: int) -> None:
        """The same, with ``append_messages`` and ``upsert_tool_call_records``."""
        await self._turn(self._append)

    async def _save_all(self, message: Message) -> None:
        self.messages.append(message)
        await self.store.save_messages(self.id, self.messages)

    async def _append(self, message: Message) -> None:
        await self.store.append_messages(self.id, [message])

    async def _turn(self, save: Callable[[Message], Awaitable[None]]) -> None:
        self.n += 1
        for i, message in enumerate(four_messages(self.n)):
            await save(message)
            await self.store.save_info(self.id, an_info(self.id, self.n * 10 + i))
            for event in self.events(5):
                await self.store.append_event(self.id, event)
        if save == self._append:
            await self.store.upsert_tool_call_records(self.id, [a_call(self.n)])
        else:
            self.calls.append(a_call(self.n))
            await self.store.save_tool_call_records(self.id, self.calls)
        await asyncio.gather(*(self.store.append_event(self.id, event) for event in self.events(40)))
        await self.store.save_info(self.id, an_info(self.id, self.n * 10 + 9))

    async def in_one_write(self, _: int) -> None:
        """All of it in one ``save_turn``."""
        self.n += 1
        await self.store.save_turn(
            self.id,
            append=four_messages(self.n),
            upsert_tool_calls=[a_call(self.n)],
            info=an_info(self.id, self.n),
            events=self.events(60),
        )


async def encode_a_turn(i: int) -> None:
    """Make the JSON of a turn's 66 records, and no more: what every store has to do, and no floor does."""
    for message in four_messages(i):
        encode(Message, message, "")
    encode(ToolCallRecord, a_call(i), "")
    encode(AgentInfo, an_info("agt", i), "")
    for seq in range(60):
        encode(Timeline, an_event(seq), "")


class FloorAgent:
    """The same turns on the floor; what it writes is encoded beforehand."""

    def __init__(self, floor: Floor, agent_id: str, length: int) -> None:
        self.floor = floor
        self.id = agent_id
        self.bodies = [encode(Message, message, "").text for message in four_messages(0)]
        self.call = encode(ToolCallRecord, a_call(0), "").text
        self.info = encode(AgentInfo, an_info(agent_id, 0), "").text
        self.event = encode(Timeline, an_event(0), "").text
        self._length = length
        self._messages = self._calls = self._events = self._version = 0

    async def start(self) -> None:
        """Store what was said before."""
        turns = self._length // 4
        await self._commit(messages=self.bodies * turns, calls=[self.call] * turns, info=self.info)

    async def _commit(self, **what: Any) -> None:
        """One transaction."""
        self._version += 1
        commit = Commit(self.id, self._version, self._messages, self._calls, self._events, **what)
        self._messages += len(commit.messages)
        self._calls += len(commit.calls)
        self._events += len(commit.events)
        await self.floor.commit(commit)

    async def as_the_sdk(self, _: int) -> None:
        """33 commits, as a store makes of a turn that is saved step by step."""
        for body in self.bodies:
            await self._commit(messages=[body])
            await self._commit(info=self.info)
            for _ in range(5):
                await self._commit(events=[self.event])
        await self._commit(calls=[self.call])
        await self._commit(events=[self.event] * 40)
        await self._commit(info=self.info)

    async def in_one_write(self, _: int) -> None:
        """One commit."""
        await self._commit(messages=self.bodies, calls=[self.call], info=self.info, events=[self.event] * 60)

    async def append(self, _: int) -> None:
        """The four messages, in one commit."""
        await self._commit(messages=self.bodies)

    async def append_events(self, count: int) -> None:
        """Events in one commit."""
        await self._commit(events=[self.event] * count)
