"""Answer open questions of all agents until there are none: python worker.py NAME"""

import asyncio
import sys

from desk import answer

from kode_core import ExtendedStore, LockUnavailableError, create_extended_store


async def main(name: str) -> None:
    async with create_extended_store("sqlite:///data/agents.db") as store:
        while waiting := await open_questions(store):
            for agent_id in waiting:
                try:
                    async with store.acquire_agent_lock(agent_id, ttl_ms=3_000):
                        if await answer(store, agent_id):
                            print(f"{name} answered {agent_id}", flush=True)
                except LockUnavailableError:
                    pass  # another worker has it
            await asyncio.sleep(0.2)


async def open_questions(store: ExtendedStore) -> list[str]:
    waiting = []
    async for session in store.iter_sessions(template_id="travel-desk", order="asc"):
        if (await store.load_messages(session.agent_id))[-1].role == "user":
            waiting.append(session.agent_id)
    return waiting


asyncio.run(main(sys.argv[1]))
