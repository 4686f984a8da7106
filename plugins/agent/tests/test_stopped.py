"""A worker that was held up for too long does no harm when it goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kode_agent import Agent, AgentBusyError, ScriptedProvider, Template

from kode_core import ToolResultBlock, create_extended_store

WORKER = """
import asyncio, sys
from kode_agent import Agent, ScriptedProvider, Template, call
from kode_core import create_extended_store

async def main(url):
    async def slow() -> str:
        print("in the tool", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        return "late"
    async with create_extended_store(url) as store:
        provider, template = ScriptedProvider([call("slow"), "never"]), Template("a", tools=[slow])
        agent = await Agent.create(provider=provider, store=store, template=template, agent_id="a", lease_ms=8_000)
        try:
            await agent.send("Go.")
        except Exception as exc:
            print(type(exc).__name__)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be held there")
@pytest.mark.parametrize("backend", ["sqlite", "json"])
async def test_a_worker_that_was_held_up_is_refused(backend: str, tmp_path: Path) -> None:
    """While it runs nobody else takes the agent; held for longer than its lease, its results change nothing."""
    url = f"{backend}:///{tmp_path}/store"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    worker = subprocess.Popen((sys.executable, "-c", WORKER, url), **pipes, text=True)
    assert worker.stdout is not None
    assert await asyncio.to_thread(worker.stdout.readline) == "in the tool\n"
    template = Template("a")
    async with create_extended_store(url) as store:
        provider = ScriptedProvider(["I see."])
        with pytest.raises(AgentBusyError):
            await Agent.resume("a", provider=provider, store=store, template=template, wait_ms=0)
        assert [r.state for r in await store.load_tool_call_records("a")] == ["EXECUTING"]
        worker.send_signal(signal.SIGSTOP)
        agent = await Agent.resume("a", provider=provider, store=store, template=template, wait_ms=60_000)
        assert await agent.go_on() == "I see."
        before = await store.load_agent("a")
        worker.send_signal(signal.SIGCONT)
        out, _ = await asyncio.to_thread(worker.communicate, "\n", timeout=60)
        assert out == "LockLostError\n"
        after = await store.load_agent("a")
        assert before is not None and after is not None
        assert (after.messages, after.tool_calls, after.events) == (before.messages, before.tool_calls, before.events)
        assert "may have taken effect" in str(
            [b.content for m in after.messages for b in m.content if isinstance(b, ToolResultBlock)]
        )
