"""A process that asks an agent with a tool: ``agent_worker.py URL QUESTION``."""

from __future__ import annotations

import asyncio
import os
import sys

from kode_pydantic_ai import KodeConversationStore
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.conversation import Conversation

agent = Agent("openai-chat:scripted")


@agent.tool_plain(retries=3)
async def weather(city: str) -> str:
    """The weather of a city."""
    if os.environ.get("HANG"):
        print("in the tool", flush=True)
        await asyncio.sleep(60)
    if city == "nowhere":
        raise ModelRetry("there is no such city")
    return f"sunny in {city}"


async def main(url: str, question: str) -> None:
    async with KodeConversationStore(url) as store:
        conversation = await store.load("chat") or Conversation(conversation_id="chat")
        result = await agent.run(question, conversation=conversation)
        await store.save(result)
        print(result.output)


asyncio.run(main(*sys.argv[1:]))
