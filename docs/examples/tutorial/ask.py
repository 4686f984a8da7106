"""Ask the desk a question: python ask.py WHO QUESTION"""

import asyncio
import sys

from kode_core import AgentInfo, Message, create_extended_store


async def main(agent_id: str, question: str) -> None:
    async with create_extended_store("sqlite:///data/agents.db") as store:
        info = await store.load_info(agent_id) or AgentInfo(agent_id=agent_id, template_id="travel-desk")
        await store.save_turn(agent_id, append=[Message.user(question)], info=info)


asyncio.run(main(*sys.argv[1:]))
