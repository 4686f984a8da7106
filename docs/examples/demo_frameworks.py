"""Runs agents of five frameworks over one store, and looks at all of them with one command.

    make demo-frameworks

Each framework runs an agent of its own with the same tool, which fails for one of two orders. A server on loopback
plays the model, so that no network is needed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kode_agent.testing import Call, Reply, Request, ScriptedServer

QUESTIONS = ("Where is order A-100?", "Where is order A-404?")


def find_order(order: str) -> str:
    """Where an order is."""
    if order == "A-404":
        raise LookupError(f"there is no order {order}")
    return f"order {order} is on its way"


def model(request: Request) -> Reply:
    """Calls the tool for the order of the question, and then repeats its result."""
    tool = next((name for name in request.tools if name.endswith("find_order")), None)
    asked = re.findall(r"order (A-\d+)\?", json.dumps(request.body))
    if request.results:
        return Reply(f"I looked: {request.results[-1]}")
    if tool is None or not asked:
        return Reply("Hello.")
    return Reply("", [Call(tool, {"order": asked[-1]})])


async def langgraph(url: str, server: ScriptedServer) -> None:
    from kode_langgraph import KodeSaver
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
    from langgraph.graph import END, START, MessagesState, StateGraph
    from openai import AsyncOpenAI

    async def ask(state: MessagesState) -> dict[str, Any]:
        said = [
            {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}
            if isinstance(message, ToolMessage)
            else {"role": "user" if isinstance(message, HumanMessage) else "assistant", "content": message.content}
            for message in state["messages"]
        ]
        tools = [{"type": "function", "function": {"name": "find_order", "parameters": {"type": "object"}}}]
        async with AsyncOpenAI(base_url=server.openai_url, api_key="none") as client:
            given: dict[str, Any] = {"messages": said, "tools": tools}
            answer = (await client.chat.completions.create(model="scripted", **given)).choices[0].message
        calls = [
            {"name": call.function.name, "args": json.loads(call.function.arguments), "id": call.id}
            for call in answer.tool_calls or ()
            if call.type == "function"
        ]
        return {"messages": [AIMessage(answer.content or "", tool_calls=calls)]}

    def look(state: MessagesState) -> dict[str, Any]:
        (call,) = state["messages"][-1].tool_calls  # type: ignore[union-attr]
        try:
            result = ToolMessage(find_order(**call["args"]), tool_call_id=call["id"], name=call["name"])
        except LookupError as exc:
            result = ToolMessage(str(exc), tool_call_id=call["id"], name=call["name"], status="error")
        return {"messages": [result]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_node("look", look)
    graph.add_edge(START, "ask")
    graph.add_conditional_edges("ask", lambda s: "look" if s["messages"][-1].tool_calls else END, ["look", END])
    graph.add_edge("look", "ask")
    with KodeSaver.from_url(url) as saver:
        app = graph.compile(checkpointer=saver)
        for question in QUESTIONS:
            await app.ainvoke({"messages": [HumanMessage(question)]}, {"configurable": {"thread_id": "langgraph"}})


async def openai_agents(url: str, server: ScriptedServer) -> None:
    from agents import Agent, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
    from kode_openai_agents import KodeSession
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    async with AsyncOpenAI(base_url=server.openai_url, api_key="none") as client:
        agent = Agent(name="desk", model=OpenAIResponsesModel("scripted", client), tools=[function_tool(find_order)])
        session = KodeSession("openai-agents", url)
        for question in QUESTIONS:
            await Runner.run(agent, question, session=session)
        session.close()


async def pydantic_ai(url: str, server: ScriptedServer) -> None:
    from kode_pydantic_ai import KodeConversationStore
    from pydantic_ai import Agent, ModelRetry
    from pydantic_ai.conversation import Conversation

    os.environ.update(OPENAI_BASE_URL=server.openai_url, OPENAI_API_KEY="none")
    agent = Agent("openai-chat:scripted")

    @agent.tool_plain(name="find_order", retries=2)
    def found(order: str) -> str:
        """Where an order is."""
        try:
            return find_order(order)
        except LookupError as exc:
            raise ModelRetry(str(exc)) from exc

    async with KodeConversationStore(url) as store:
        conversation = Conversation(conversation_id="pydantic-ai")
        for question in QUESTIONS:
            result = await agent.run(question, conversation=conversation)
            await store.save(result)
            conversation = await store.load("pydantic-ai") or conversation


async def claude_agent(url: str, server: ScriptedServer) -> None:
    from claude_agent_sdk import ClaudeAgentOptions, create_sdk_mcp_server, query, tool
    from kode_claude_agent import KodeSessionStore

    @tool("find_order", "Where an order is", {"order": str})
    async def found(args: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"content": [{"type": "text", "text": find_order(args["order"])}]}
        except LookupError as exc:
            return {"content": [{"type": "text", "text": str(exc)}], "is_error": True}

    with tempfile.TemporaryDirectory() as folder, KodeSessionStore(url) as sessions:
        options = ClaudeAgentOptions(
            session_store=sessions,
            mcp_servers={"orders": create_sdk_mcp_server("orders", tools=[found])},
            allowed_tools=["mcp__orders__find_order"],
            continue_conversation=True,
            setting_sources=[],
            cwd=folder,
            env={
                "ANTHROPIC_BASE_URL": server.url,
                "ANTHROPIC_API_KEY": "none",
                "CLAUDE_CONFIG_DIR": str(Path(folder) / "config"),
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "ENABLE_TOOL_SEARCH": "false",
                "HTTP_PROXY": "http://127.0.0.1:9",
                "HTTPS_PROXY": "http://127.0.0.1:9",
                "NO_PROXY": "127.0.0.1,localhost",
            },
        )
        for question in QUESTIONS:
            async for _ in query(prompt=question, options=options):
                pass


async def adk(url: str, server: ScriptedServer) -> None:
    from google.adk.agents import Agent
    from google.adk.runners import Runner
    from google.genai import types
    from kode_adk import KodeSessionService

    def found(order: str) -> dict[str, str]:
        """Where an order is."""
        try:
            return {"result": find_order(order)}
        except LookupError as exc:
            return {"error": str(exc)}

    found.__name__ = "find_order"
    os.environ.update(GOOGLE_GEMINI_BASE_URL=server.url, GOOGLE_API_KEY="none")
    agent = Agent(name="desk", model="gemini-scripted", tools=[found])
    async with KodeSessionService(url) as service:
        runner = Runner(app_name="orders", agent=agent, session_service=service, auto_create_session=True)
        for question in QUESTIONS:
            content = types.Content(role="user", parts=[types.Part(text=question)])
            async for _ in runner.run_async(user_id="ada", session_id="adk", new_message=content):
                pass


FRAMEWORKS: dict[str, Callable[[str, ScriptedServer], Awaitable[None]]] = {
    "LangGraph": langgraph,
    "OpenAI Agents": openai_agents,
    "Pydantic AI": pydantic_ai,
    "Claude Agent SDK": claude_agent,
    "Google ADK": adk,
}


def main(database: Path) -> None:
    url = f"sqlite:///{quote(str(database))}"
    with ScriptedServer(model) as server:
        for name, run in FRAMEWORKS.items():
            print(f"{name}: an agent is asked {len(QUESTIONS)} questions", flush=True)
            asyncio.run(run(url, server))  # type: ignore[arg-type]
    for command in (["sessions"], ["tool-calls"], ["tool-calls", "--errors"]):
        print(f"\n$ kode {' '.join(command)} --store {url}", flush=True)
        subprocess.run([sys.executable, "-m", "kode_core.cli", *command, "--store", url], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/frameworks.db"))
