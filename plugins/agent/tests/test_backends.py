"""One story on every backend, the servers included: tools, approvals, an interruption, a fork, two stores at once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from kode_agent import (
    Agent,
    AgentInterruptedError,
    Compression,
    ScriptedProvider,
    Template,
    call,
    decide,
    interrupt,
    tool,
)
from kode_conformance.harness import Space, find_harness
from kode_conformance.servers import NoServerError

from kode_core import ExtendedStore, Message, ToolResultBlock


@tool(needs_approval=True)
def remove(path: str) -> str:
    """Remove a file."""
    return f"{path} is removed"


async def waits() -> None:
    """Wait for long."""
    await asyncio.sleep(1_000)


def say(messages: Sequence[Message]) -> Any:
    last = messages[-1]
    if any(isinstance(block, ToolResultBlock) for block in last.content):
        return "Done."
    return {"remove": call("remove", path="a"), "wait": call("waits")}.get(last.text, f"You said: {last.text}")


async def until(agent: Agent, kind: str, offset: int) -> Any:
    async for stored in agent.events(after_offset=offset):
        if stored.event.type == kind:
            return stored
    raise AssertionError


@pytest.mark.parametrize("backend", ["memory", "json", "sqlite", "sqlite-hybrid"])
async def test_the_whole_story(backend: str, tmp_path: Path) -> None:
    """What the agent needs of a store, each backend has: the outcome is the same on all."""
    await told(backend, tmp_path)


@pytest.mark.parametrize("backend", ["postgres", "postgres-hybrid", "mongo", "dynamodb"])
async def test_the_whole_story_on_servers(backend: str, tmp_path: Path) -> None:
    """The same on backends with a server."""
    await told(backend, tmp_path)


async def told(backend: str, tmp_path: Path) -> None:
    harness = find_harness(backend)
    try:
        handle = await harness.provision(Space(f"agent_{secrets.token_hex(6)}", tmp_path))
    except NoServerError as exc:
        pytest.skip(str(exc))
    try:
        async with AsyncExitStack() as stack:
            stores: list[ExtendedStore] = []
            for _ in range(2):
                opened: Any = await harness.open(handle)
                stack.push_async_callback(opened.close)
                stores.append(opened)
            await story(*stores)
    finally:
        await harness.destroy(handle)


async def story(store: ExtendedStore, other: ExtendedStore) -> None:
    compression = Compression(threshold_tokens=1, keep_messages=2)
    template = Template("story", "Be brief.", [remove, waits])
    agent = await Agent.create(provider=ScriptedProvider(say), store=store, template=template)
    assert await agent.send("hello") == "You said: hello"

    sending = asyncio.create_task(agent.send("remove"))
    asked = await until(agent, "permission_required", 0)
    await decide(other, agent.id, asked.event.data["call"]["id"], "allow", by="other")
    assert await sending == "Done."

    point = await agent.snapshot()
    sending = asyncio.create_task(agent.send("wait"))
    await until(agent, "tool:start", asked.offset)
    while (await agent.status()).breakpoint != "TOOL_EXECUTING":
        await asyncio.sleep(0.01)
    await interrupt(other, agent.id)
    with pytest.raises(AgentInterruptedError):
        await sending

    again = await Agent.resume(agent.id, provider=ScriptedProvider(say), store=other, template=template)
    assert await again.send("and now?") == "You said: and now?"
    fork = await again.fork(snapshot_id=point)
    assert await fork.send("here?") == "You said: here?"
    assert [m.text for m in await fork.messages()][-3:] == ["Done.", "here?", "You said: here?"]

    short = Template("story", "Be brief.", [remove, waits], compression=compression)
    fork = await Agent.resume(fork.id, provider=ScriptedProvider(say), store=store, template=short)
    assert await fork.send("more?") == "You said: more?"
    assert len(await store.load_history_windows(fork.id)) == 1
    assert [r.state for r in await store.load_tool_call_records(agent.id)] == ["COMPLETED", "SEALED"]
    assert not (await store.check_consistency(agent.id)).issues
    assert not (await store.check_consistency(fork.id)).issues
