"""Runs an agent in processes that are killed one moment later each time, and says what the next worker finds.

    python killed.py STORE_URL FOLDER FIRST STEP

A moment is the beginning and the end of every call of the store, each piece of the model's answer, and the time before
and after the effect of a tool. FIRST is the first moment, and STEP leads
to the next. It prints a JSON object: the moment that the work did not reach, and the faults found.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kode_agent import Agent, Answer, Delta, ScriptedProvider, Template, ToolContext, call, tool

from kode_core import ExtendedStore, Message, ToolResultBlock, ToolUseBlock, create_extended_store

LEASE_MS = 3_000
URL, FOLDER = sys.argv[1], Path(sys.argv[2])
EFFECTS = FOLDER / "effects"


class Moments:
    """Counts the moments, and kills the process at one of them."""

    def __init__(self, last: int) -> None:
        self.count = 0
        self.last = last

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, operation: object) -> Any:
        return self._surround()

    @contextmanager
    def _surround(self) -> Iterator[None]:
        self()
        yield
        self()


moment = Moments(0)


def effect(context: ToolContext) -> None:
    moment()
    with EFFECTS.open("a") as file:
        file.write(f"{context.agent_id}/{context.call_id}\n")
    moment()


def book(seat: int, context: ToolContext) -> str:
    """Book a seat."""
    effect(context)
    return f"seat {seat}"


async def pay(amount: float, context: ToolContext) -> dict[str, float]:
    """Pay."""
    await asyncio.sleep(0.01)
    effect(context)
    return {"paid": amount}


@tool(needs_approval=True)
def refund(context: ToolContext) -> str:
    """Give the money back."""
    effect(context)
    return "refunded"


def say(messages: Sequence[Message]) -> Any:
    if any(isinstance(block, ToolResultBlock) for message in messages for block in message.content):
        return "All done."
    return ["I book it. ", call("book", seat=3), call("pay", amount=1.5), call("refund")]


class Provider(ScriptedProvider):
    async def stream(self, *args: Any) -> AsyncIterator[Delta | Answer]:
        async for part in super().stream(*args):
            moment()
            yield part


PROVIDER = Provider(say)
TEMPLATE = Template("booking", tools=[book, pay, refund])


async def decide_all(agent: Agent) -> None:
    async for stored in agent.events("control"):
        if stored.event.type == "permission_required":
            await agent.decide(stored.event.data["call"]["id"], "allow")


async def work(agent_id: str) -> list[str]:
    """What the process does that is killed."""
    async with create_extended_store(URL, observers=[moment]) as store:
        agent = await Agent.create(
            provider=PROVIDER, store=store, template=TEMPLATE, agent_id=agent_id, lease_ms=LEASE_MS
        )
        decider = asyncio.create_task(decide_all(agent))
        assert await agent.send("Book seat 3.") == "All done."
        decider.cancel()
        await asyncio.wait({decider})
    return []


async def go_on(agent_id: str) -> list[str]:
    """What the next worker finds and does; returns what is wrong."""
    async with create_extended_store(URL) as store:
        if not await store.exists(agent_id):
            return []
        agent = await Agent.resume(
            agent_id, provider=PROVIDER, store=store, template=TEMPLATE, lease_ms=LEASE_MS, wait_ms=20_000
        )
        wrong = await check(store, agent_id)
        status = await agent.status()
        if status.state != "READY":
            wrong.append(f"the state is {status.state}")
        decider = asyncio.create_task(decide_all(agent))
        answer = await (agent.go_on() if status.waits_for_answer else agent.send("Book seat 3."))
        decider.cancel()
        await asyncio.wait({decider})
        if answer != "All done.":
            wrong.append(f"answered {answer!r}")
        return wrong + await check(store, agent_id)


async def go_on_with_all(agent_ids: Sequence[str]) -> list[str]:
    """All of them, four at a time, after the leases of the killed processes have ended."""
    turns = asyncio.Semaphore(4)

    async def one(agent_id: str) -> list[str]:
        async with turns:
            return [f"{agent_id}: {wrong}" for wrong in await go_on(agent_id)]

    return [wrong for found in await asyncio.gather(*map(one, agent_ids)) for wrong in found]


async def check(store: ExtendedStore, agent_id: str) -> list[str]:
    wrong = [issue.message for issue in (await store.check_consistency(agent_id)).issues]
    records = await store.load_tool_call_records(agent_id)
    lines = EFFECTS.read_text().split() if EFFECTS.exists() else []
    effects = [line.partition("/")[2] for line in lines if line.startswith(f"{agent_id}/")]
    if unknown := set(effects) - {record.id for record in records}:
        wrong.append(f"calls took effect without a record: {unknown}")
    messages = await store.load_messages(agent_id)
    told = {b.tool_use_id: b for m in messages for b in m.content if isinstance(b, ToolResultBlock)}
    uses = [b.id for m in messages for b in m.content if isinstance(b, ToolUseBlock)]
    if sorted(uses) != sorted(told):
        wrong.append(f"uses {uses} and results {list(told)}")
    for record in records:
        times, text = effects.count(record.id), str(told[record.id].content)
        if times > 1:
            wrong.append(f"{record.name} took effect {times} times")
        if record.state == "COMPLETED" and times != 1:
            wrong.append(f"{record.name} is COMPLETED and took effect {times} times")
        if times and record.state != "COMPLETED" and "may have taken effect" not in text:
            wrong.append(f"{record.name} took effect, is {record.state}, and the model reads: {text}")
        if record.state not in ("COMPLETED", "SEALED"):
            wrong.append(f"{record.name} is {record.state}: {text}")
    return wrong


def in_process(work: Coroutine[Any, Any, list[str]], last: int = 0) -> tuple[bool, list[str]]:
    """Do work in a process of its own; returns whether it was killed, and what it returned."""
    found = FOLDER / "found"
    found.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            moment.last = last
            found.write_text(json.dumps(asyncio.run(work)))
        except BaseException:
            found.write_text(json.dumps([traceback.format_exc()]))
        os._exit(0)
    work.close()
    _, status = os.waitpid(child, 0)
    was_killed = os.WIFSIGNALED(status)
    return was_killed, [] if was_killed else json.loads(found.read_text())


def main() -> None:
    number, step = int(sys.argv[3]), int(sys.argv[4])
    killed: list[str] = []
    while True:
        was_killed, faults = in_process(work(f"agent-{number}"), number)
        if not was_killed:
            break
        killed.append(f"agent-{number}")
        number += step
    _, wrong = in_process(go_on_with_all(killed))
    print(json.dumps({"last": number, "faults": faults + wrong}))


if __name__ == "__main__":
    main()
