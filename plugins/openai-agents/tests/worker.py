"""A process that works on a session: ``worker.py URL SESSION append NAME BATCHES`` or ``… pop NAME COUNT``.

It prints a line for each finished call. Each batch is a question, a call of a tool, its output and an answer.
"""

from __future__ import annotations

import asyncio
import sys

from kode_openai_agents import KodeSession


async def main(url: str, session_id: str, what: str, name: str, count: int) -> None:
    with KodeSession(session_id, url) as session:
        for n in range(count):
            if what == "pop":
                item = await session.pop_item()
                print("popped", None if item is None else item["mark"], flush=True)
                continue
            mark = f"{name}-{n}"
            call = {"type": "function_call", "call_id": mark, "name": "look", "arguments": "{}", "mark": f"{mark}/1"}
            output = {"type": "function_call_output", "call_id": mark, "output": "Error", "mark": f"{mark}/2"}
            first = {"role": "user", "content": mark, "mark": f"{mark}/0"}
            last = {"role": "assistant", "content": mark, "mark": f"{mark}/3"}
            await session.add_items([first, call, output, last])
            print("added", mark, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5], int(sys.argv[5])))  # type: ignore[call-arg]
