"""Show what the desk says to an agent, while it says it: python watch.py WHO [OFFSET]"""

import asyncio
import sys

from kode_core import create_extended_store


async def main(agent_id: str, offset: str = "0") -> None:
    async with create_extended_store("sqlite:///data/agents.db") as store:
        async for stored in store.follow_events(agent_id, after_offset=int(offset)):
            print(stored.offset, stored.event.type, stored.event.data.get("delta", ""), flush=True)
            if stored.event.type == "done":
                break


asyncio.run(main(*sys.argv[1:]))
