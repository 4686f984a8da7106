"""Answer one agent's open question: python once.py WHO"""

import asyncio
import sys

from desk import answer

from kode_core import create_extended_store


async def main(agent_id: str) -> None:
    async with create_extended_store("sqlite:///data/agents.db") as store:
        print("answered" if await answer(store, agent_id) else "nothing to answer")


asyncio.run(main(sys.argv[1]))
