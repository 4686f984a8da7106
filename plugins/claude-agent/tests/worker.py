"""A process that appends batches to a session: ``worker.py URL NAME BATCHES``; it prints a line for each batch.

A batch is a question, a call of a tool and its failed result; and a question that every process appends.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from kode_claude_agent import KodeSessionStore

KEY: Any = {"project_key": "-home-ada", "session_id": "5d1f"}


def batch(name: str, n: int) -> list[Any]:
    mark = f"{name}-{n}"
    block = {"type": "tool_use", "id": mark, "name": "Bash", "input": {}}
    failed = {"type": "tool_result", "tool_use_id": mark, "content": "no", "is_error": True}
    return [
        {"type": "user", "uuid": f"{mark}/0", "message": {"role": "user", "content": mark}},
        {"type": "assistant", "uuid": f"{mark}/1", "message": {"role": "assistant", "content": [block]}},
        {"type": "user", "uuid": f"{mark}/2", "message": {"role": "user", "content": [failed]}},
    ]


async def main(url: str, name: str, count: int) -> None:
    with KodeSessionStore(url) as sessions:
        for n in range(count):
            await sessions.append(KEY, batch(name, n))
            await sessions.append(KEY, [{"type": "user", "uuid": f"all-{n}", "lastPrompt": f"{name}-{n}"}])
            print(f"{name}-{n}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
