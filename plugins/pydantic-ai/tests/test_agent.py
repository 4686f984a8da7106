"""Real runs of an agent against a scripted model over HTTP, in processes that are killed and go on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kode_agent.testing import Call, Reply, Request, ScriptedServer
from kode_pydantic_ai import KodeConversationStore

from tests.adapter_tests import killed_in_its_tool, ran

README = Path(__file__).parents[1] / "README.md"
WORKER = Path(__file__).with_name("agent_worker.py")


def script(request: Request) -> Reply:
    """The model: it asks a tool for the weather, and counts the questions that it has seen."""
    if request.results:
        return Reply("The tool says " + ", ".join(request.results))
    if "weather" in request.text:
        return Reply("I ask.", [Call("weather", {"city": "Zürich"}), Call("weather", {"city": "nowhere"})])
    asked = sum(message["role"] == "user" for message in request.body["messages"])
    return Reply(f"This is question {asked}.")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    with ScriptedServer(script) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        yield server


def test_the_example_of_the_readme(served: ScriptedServer, tmp_path: Path) -> None:
    """Each run is a process of its own, and knows the questions of the others."""
    (code,) = re.findall(r"```python[^\n]*\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "hello.py").write_text(code)
    assert ran("hello.py", "Hello!") == "This is question 1."
    assert ran("hello.py", "And again?") == "This is question 2."
    sessions = ran("-m", "kode_core.cli", "sessions", "--store", "sqlite:///data/agents.db")
    assert "pydantic-ai" in sessions


async def test_a_run_with_tools_goes_on_in_another_process(served: ScriptedServer, shared_url: str) -> None:
    """The first is killed inside a tool, after a run that it had saved."""
    assert await asyncio.to_thread(ran, str(WORKER), shared_url, "Hello!") == "This is question 1."
    await killed_in_its_tool(WORKER, shared_url, "weather?")
    async with KodeConversationStore(shared_url) as store:
        conversation = await store.load("chat")
        assert conversation is not None
        assert len(conversation.messages) == 2

    answer = await asyncio.to_thread(ran, str(WORKER), shared_url, "weather?")
    assert answer.startswith("The tool says sunny in Zürich")
    assert await asyncio.to_thread(ran, str(WORKER), shared_url, "Hello again!") == "This is question 3."
    async with KodeConversationStore(shared_url) as store:
        conversation = await store.load("chat")
        assert conversation is not None
        assert len(conversation.messages) == 8
        agent = store.agent_id("chat")
        failed = await store.store.query_tool_calls(is_error=True)
        assert [(call.agent_id, call.name, call.input) for call in failed] == [(agent, "weather", {"city": "nowhere"})]
        assert (await store.store.aggregate_stats(agent)).total_tool_calls == 2
    shown = await asyncio.to_thread(
        ran, "-m", "kode_core.cli", "tool-calls", "--errors", "--json", "--store", shared_url
    )
    assert "nowhere" in shown
    assert "Zürich" not in shown
