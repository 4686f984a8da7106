"""A process that asks an agent with a tool, by the runner's synchronous call: ``agent_worker.py URL QUESTION``."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from google.adk.agents import Agent
from google.adk.runners import Runner
from google.adk.tools.tool_context import ToolContext
from google.genai import types
from kode_adk import KodeSessionService


def get_weather(city: str, tool_context: ToolContext) -> dict[str, Any]:
    """The weather of a city."""
    if os.environ.get("HANG"):
        print("in the tool", flush=True)
        time.sleep(60)
    tool_context.state["app:asked"] = tool_context.state.get("app:asked", 0) + 1
    tool_context.state["last"] = city
    return {"error": "no such city"} if city == "Paris" else {"report": "sunny"}


url, question = sys.argv[1:]
agent = Agent(name="weather_agent", model="gemini-scripted", tools=[get_weather])
service = KodeSessionService(url)
runner = Runner(app_name="weather", agent=agent, session_service=service, auto_create_session=True)
message = types.Content(role="user", parts=[types.Part(text=question)])
for event in runner.run(user_id="ada", session_id="chat-1", new_message=message):
    if event.is_final_response() and event.content and event.content.parts:
        print(event.content.parts[0].text)
