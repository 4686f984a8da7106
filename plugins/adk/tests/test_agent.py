"""Real runs of ADK's runner against a scripted model over HTTP, in processes that are killed and go on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kode_adk import KodeSessionService
from kode_agent.testing import Call, Reply, Request, ScriptedServer

from tests.adapter_tests import killed_in_its_tool, ran

README = Path(__file__).parents[1] / "README.md"
WORKER = Path(__file__).with_name("agent_worker.py")


def script(request: Request) -> Reply:
    """The model: it asks a tool for the weather, and counts the questions that it has seen."""
    if request.results:
        return Reply("The tool says " + ", ".join(request.results))
    if "weather" in request.text:
        return Reply("I ask.", [Call("get_weather", {"city": "New York"}), Call("get_weather", {"city": "Paris"})])
    texts = [part for content in request.body["contents"] for part in content["parts"] if content["role"] == "user"]
    return Reply(f"This is question {sum('text' in part for part in texts)}.")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    with ScriptedServer(script) as server:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        monkeypatch.setenv("GOOGLE_API_KEY", "none")
        yield server


def test_the_example_of_the_readme(served: ScriptedServer, tmp_path: Path) -> None:
    """Each run is a process of its own, and knows the questions of the others."""
    (code,) = re.findall(r"```python[^\n]*\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "hello.py").write_text(code)
    assert ran("hello.py", "Hello!") == "This is question 1."
    assert ran("hello.py", "And again?") == "This is question 2."
    answer = ran("hello.py", "How is the weather?")
    assert answer.startswith("The tool says")
    assert "Sunny" in answer
    shown = ran("-m", "kode_core.cli", "tool-calls", "--errors", "--json", "--store", "sqlite:///data/agents.db")
    assert "There is no weather for Paris." in shown
    assert "Sunny" not in shown


async def test_a_run_goes_on_in_another_process(served: ScriptedServer, shared_url: str) -> None:
    """The first is killed inside a tool. The session has its events, and takes the next question."""
    await killed_in_its_tool(WORKER, shared_url, "How is the weather?")
    names = {"app_name": "weather", "user_id": "ada", "session_id": "chat-1"}
    async with KodeSessionService(shared_url) as service:
        session = await service.get_session(**names)
        assert session is not None
        assert [event.author for event in session.events] == ["user", "weather_agent"]
        store, agent = await service.store(), service.agent_id(*names.values())
        assert {call.state for call in await store.load_tool_call_records(agent)} == {"PENDING"}

    answer = await asyncio.to_thread(ran, str(WORKER), shared_url, "How is the weather now?")
    assert answer.startswith("The tool says")
    async with KodeSessionService(shared_url) as service:
        session = await service.get_session(**names)
        assert session is not None
        assert len(session.events) == 6
        assert session.state == {"app:asked": 2, "last": "Paris"}
        store = await service.store()
        assert len(await store.query_tool_calls(agent_id=agent, state="COMPLETED")) == 1
        assert len(await store.query_tool_calls(is_error=True)) == 1
