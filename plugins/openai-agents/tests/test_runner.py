"""Runs of the real framework against the scripted server: tools, failures, streams, resumed conversations."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
from kode_agent.testing import Call, Reply, Request
from kode_openai_agents import KodeSession
from openai import AsyncOpenAI

from kode_core.sync import open_store


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    if city == "Atlantis":
        raise LookupError("no such city")
    return f"It is sunny in {city}."


def answer(request: Request) -> Reply:
    """Calls the tool for a question that names a city, and repeats the results."""
    if request.results:
        return Reply(" ".join(request.results))
    if request.text.startswith("Weather in "):
        return Reply("", [Call("weather", {"city": request.text.removeprefix("Weather in ")})])
    said = request.body.get("input") or request.body.get("messages")
    return Reply(f"You sent {len(said) if isinstance(said, list) else 1} items.")


def run(how: str, api: str, url: str, text: str, session: KodeSession) -> str:
    """The answer to *text*, by an agent with a client of its own."""
    kind = OpenAIChatCompletionsModel if api == "chat" else OpenAIResponsesModel
    model = kind("gpt-5", AsyncOpenAI(base_url=url, api_key="none", max_retries=0))
    agent = Agent(name="Assistant", model=model, tools=[weather])
    if how == "run_sync":
        return str(Runner.run_sync(agent, text, session=session).final_output)

    async def work() -> str:
        if how == "run":
            return str((await Runner.run(agent, text, session=session)).final_output)
        streamed = Runner.run_streamed(agent, text, session=session)
        async for _ in streamed.stream_events():
            pass
        return str(streamed.final_output)

    return asyncio.run(work())


@pytest.mark.parametrize("api", ["responses", "chat"])
@pytest.mark.parametrize("how", ["run", "run_sync", "run_streamed"])
def test_a_conversation_goes_on(served: Callable[[Any], Any], url: str, api: str, how: str) -> None:
    place = how, api, served(answer).openai_url
    with KodeSession("user-1", url) as session:
        assert run(*place, "Hello", session) == "You sent 1 items."
        assert run(*place, "Weather in Oslo", session) == "It is sunny in Oslo."
        assert "An error occurred" in run(*place, "Weather in Atlantis", session)
    with KodeSession("user-1", url) as session:  # as another process would
        assert len(asyncio.run(session.get_items())) == 2 + 4 + 4
        assert run(*place, "And?", session) == "You sent 11 items."
    with open_store(url) as store:
        calls = store.load_tool_call_records(session.agent_id)
        assert [(one.name, one.input, one.state) for one in calls] == [
            ("weather", {"city": "Oslo"}, "COMPLETED"),
            ("weather", {"city": "Atlantis"}, "FAILED"),
        ]
        assert store.load_messages(session.agent_id)[-1].text == "You sent 11 items."


def test_the_command_line_shows_failed_calls(served: Callable[[Any], Any], url: str) -> None:
    server = served(answer)
    with KodeSession("user-1", url) as session:
        run("run_sync", "responses", server.openai_url, "Weather in Atlantis", session)
    command = [sys.executable, "-m", "kode_core.cli", "tool-calls", "--errors", "--json", "--store", url]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    (call,) = json.loads(shown.stdout)["toolCalls"]
    assert (call["agentId"], call["name"], call["isError"]) == ("openai:user-1", "weather", True)
