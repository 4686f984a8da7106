"""A turn of a real agent: what it costs, and what it costs when the conversation is long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

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
from tests.benchmarks.beds import Bed, Floor
from tests.benchmarks.measure import Report, Row, bytes_written, interleaved

AGENT = "agt-01m839mes254xqwxjk2jqr1b35"
LENGTHS = (100, 1_000, 8_000)
ROUNDS = 25
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


class FloorAgent:
    """The same turns on the floor; what it writes is encoded beforehand."""

    def __init__(self, floor: Floor, length: int, agent_id: str = AGENT) -> None:
        self.floor = floor
        self.id = agent_id
        self.n = length
        self.bodies = [encode(Message, message, "").text for message in four_messages(0)]
        self.call = encode(ToolCallRecord, a_call(0), "").text
        self.info = encode(AgentInfo, an_info(AGENT, 0), "").text
        self.event = encode(Timeline, an_event(0), "").text

    async def start(self) -> None:
        await self.floor.messages(self.id, self.bodies * (self.n // 4))

    async def as_the_sdk(self, _: int) -> None:
        self.n += 1
        for i, body in enumerate(self.bodies):
            await self.floor.messages(self.id, [body])
            await self.floor.info(self.id, self.info, [("updatedAt", str(self.n * 10 + i))])
            for _ in range(5):
                await self.floor.events(self.id, [self.event])
        await self.floor.call(self.id, self.n, self.call)
        await self.floor.events(self.id, [self.event] * 40)
        await self.floor.info(self.id, self.info, [("updatedAt", str(self.n * 10 + 9))])

    async def in_one_write(self, _: int) -> None:
        self.n += 1
        await self.floor.turn(self.id, self.bodies, (self.n, self.call), self.info, [self.event] * 60)


async def run(report: Report, folder: Path, bed: Bed) -> None:
    """Measure turns at each length, each beside the floor."""
    report.title("A turn: 4 messages, 1 tool call, 5 infos, 60 events (20 one by one, 40 at once)")
    first: dict[str, float] = {}
    for length in LENGTHS:
        floor = await bed.new_floor(folder, f"floor-{length}")
        async with bed.store(folder, f"turns-{length}") as store:
            agent, other, third = (Agent(store, f"{AGENT}-{i}", length) for i in range(3))
            floor_agent = FloorAgent(floor, length)
            for one in (agent, other, third, floor_agent):
                await one.start()
            times = await interleaved(
                ROUNDS, sdk=agent.as_the_sdk, floor=floor_agent.as_the_sdk, appends=other.with_appends
            )
            times |= await interleaved(ROUNDS, once=third.in_one_write, floor_once=floor_agent.in_one_write)
            before = bytes_written() if bed.writes_files else None
            await agent.as_the_sdk(0)
            after = bytes_written() if bed.writes_files else None
        await floor.close()
        for name, label, most in (
            ("sdk", "as the SDK saves it", 3.0),
            ("appends", "with append_messages", bed.appends_most),
            ("once", "in one save_turn", bed.appends_most),
        ):
            base = first.setdefault(name, times[name])
            value = times[name] * 1000
            report.add(
                Row(f"{label}, {length:,} messages stored", value, "ms", times[name] / base, "the turn at 100", most)
            )
        report.add(
            Row(
                "  beside the floor, same rows and commits",
                times["floor"] * 1000,
                "ms",
                times["sdk"] / times["floor"],
                "the floor",
                1.5,
            )
        )
        report.add(
            Row(
                "  beside the floor, one commit",
                times["floor_once"] * 1000,
                "ms",
                times["once"] / times["floor_once"],
                "the floor",
                1.5,
            )
        )
        if before is not None and after is not None:
            base = first.setdefault("bytes", after - before)
            report.add(
                Row(
                    "  bytes written in a turn",
                    (after - before) / 1024,
                    "KB",
                    (after - before) / base,
                    "the turn at 100",
                    1.5,
                )
            )
