"""A page of failed tool calls over all agents: python failures.py [CURSOR]"""

import asyncio
import sys

from kode_core import create_extended_store


async def main(cursor: str | None = None) -> None:
    async with create_extended_store("sqlite:///data/agents.db") as store:
        if cursor:
            page = await store.query_tool_calls(is_error=True, limit=2, cursor=cursor)
        else:
            page = await store.query_tool_calls(is_error=True, limit=2)
        for call in page:
            print(f"{call.agent_id:5} {call.name} {call.input} {call.error}")
        if page.next_cursor:
            print("next page: python failures.py", page.next_cursor)


asyncio.run(main(*sys.argv[1:]))
