"""``kode approvals``, ``approve`` and ``deny``, in processes of their own, for an agent that waits in this one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kode_agent import Agent, ScriptedProvider, Template, call, open_questions, tool

from kode_core import ExtendedStore, create_extended_store


@tool(needs_approval=True)
def remove(path: str) -> str:
    """Remove a file."""
    return f"removed {path}"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[ExtendedStore]:
    async with create_extended_store(f"sqlite:///{tmp_path / 'agents.db'}") as opened:
        yield opened


async def kode(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kode_core.cli", "--store", f"sqlite:///{folder / 'agents.db'}", *args]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)


async def waiting(store: ExtendedStore, agent: Agent, number: int) -> list[str]:
    async with asyncio.timeout(60):
        while len(found := await open_questions(store, agent.id)) < number:
            await asyncio.sleep(0.01)
    return [one.id for one in found]


async def test_calls_are_listed_and_decided(database: ExtendedStore, tmp_path: Path) -> None:
    """Two calls of one answer wait: both are listed, each is decided by its id, and the agent goes on with both."""
    script = [[call("remove", path="a"), call("remove", path="b")], "Done."]
    agent = await Agent.create(
        provider=ScriptedProvider(script), store=database, template=Template("assistant", "", [remove])
    )
    sending = asyncio.create_task(agent.send("Remove both."))
    first, second = await waiting(database, agent, 2)

    listed = await kode(tmp_path, "approvals", "--json")
    found = json.loads(listed.stdout)["approvals"]
    assert [(one["agentId"], one["id"], one["input"]) for one in found] == [
        (agent.id, first, {"path": "a"}),
        (agent.id, second, {"path": "b"}),
    ]
    assert "remove(" in (await kode(tmp_path, "approvals", agent.id)).stdout

    unclear = await kode(tmp_path, "approve", agent.id)
    assert (unclear.returncode, first in unclear.stderr, second in unclear.stderr) == (2, True, True)
    wrong = await kode(tmp_path, "approve", agent.id, "call_of_nobody")
    assert (wrong.returncode, "no call 'call_of_nobody' waits" in wrong.stderr) == (2, True)

    allowed = await kode(tmp_path, "approve", agent.id, first, "--by", "ann", "--json")
    assert json.loads(allowed.stdout) == {"agentId": agent.id, "callId": first, "decision": "allow"}
    denied = await kode(tmp_path, "deny", agent.id, second, "--note", "keep b")
    assert denied.returncode == 0, denied.stderr
    assert await asyncio.wait_for(sending, 60) == "Done."
    records = {one.id: one for one in await database.load_tool_call_records(agent.id)}
    assert (records[first].state, records[first].approval.decided_by) == ("COMPLETED", "ann")
    assert (records[second].state, records[second].approval.note) == ("DENIED", "keep b")

    late = await kode(tmp_path, "approve", agent.id)
    assert (late.returncode, "no call waits" in late.stderr) == (2, True)


async def test_an_unknown_agent_is_named(database: ExtendedStore, tmp_path: Path) -> None:
    await database.emit("other", "x")
    for command in (["approvals", "nobody"], ["approve", "nobody"], ["deny", "nobody", "call_1"]):
        done = await kode(tmp_path, *command)
        assert (done.returncode, "no agent 'nobody'" in done.stderr) == (2, True), done.stderr
