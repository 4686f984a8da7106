"""How long the server takes for its pages: 10,000 agents, and a conversation of 8,000 messages with 2,000 calls.

    python -m plugins.inspector.tests.benchmark [URL …]

It fills each store, an SQLite file in a temporary folder without one, and prints the median of five requests, and the
longest; the store is opened and asked in the process that serves.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time

import httpx
from kode_inspector import create_app

from kode_core import (
    AgentInfo,
    ExtendedStore,
    Message,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    create_extended_store,
)

AGENTS = 10_000
MESSAGES = 8_000
PAGES = (
    "/",
    "/?template=t-3&sort=created_at",
    "/?id=a-09",
    "/now",
    "/calls",
    "/calls?error=yes",
    "/agent?id=long",
    "/agent?id=long&at=0",
    "/agent?id=long&at=4000",
    "/agent/events?id=long",
    "/dashboard/figures?range=30d",
    "/health",
)


async def fill(store: ExtendedStore) -> None:
    async def one(i: int) -> None:
        failed = i % 7 == 0
        await store.save_turn(
            f"a-{i:05}",
            append=[Message.user("hello"), Message.assistant("hi " * 50)],
            tool_calls=[
                ToolCallRecord(id="c", name=f"tool-{i % 9}", is_error=failed, state="COMPLETED", duration_ms=i % 900)
            ],
            info=AgentInfo(agent_id=f"a-{i:05}", template_id=f"t-{i % 5}", metadata={"userId": f"u-{i % 50}", "n": i}),
        )

    for first in range(0, AGENTS, 100):
        await asyncio.gather(*(one(i) for i in range(first, first + 100)))
    messages: list[Message] = []
    calls = []
    for i in range(MESSAGES // 4):
        messages.append(Message.user(f"question {i}: " + "words " * 40))
        messages.append(Message("assistant", [ToolUseBlock(id=f"c{i}", name="search", input={"n": i, "to": ["OSL"]})]))
        messages.append(Message("user", [ToolResultBlock(tool_use_id=f"c{i}", content={"seats": [1, 2, i]})]))
        messages.append(Message.assistant("answer " * 60))
        calls.append(
            ToolCallRecord(id=f"c{i}", name="search", input={"n": i, "to": ["OSL"]}, state="COMPLETED", duration_ms=5)
        )
    await store.save_turn("long", append=messages, tool_calls=calls, info=AgentInfo(agent_id="long", template_id="t-1"))
    for i in range(500):
        await store.emit("long", "text_chunk", {"delta": str(i)})


async def measure(url: str) -> None:
    async with create_extended_store(url) as store:
        if not await store.exists("long"):
            await fill(store)
    async with create_extended_store(url) as store:
        app = create_app(store, token="t")
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=600) as client:
            for path in PAGES:
                taken = []
                for _ in range(5):
                    app.state.inspector.state.clear()
                    start = time.perf_counter()
                    answer = await client.get(path, headers={"authorization": "Bearer t"})
                    taken.append((time.perf_counter() - start) * 1000)
                    assert answer.status_code == 200, path
                kilobytes = len(answer.content) / 1000
                print(
                    f"{path:36} {statistics.median(taken):8.1f} ms, at most {max(taken):8.1f} ms, {kilobytes:6.0f} kB"
                )


def main(*urls: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for url in urls or (f"sqlite:///{folder}/agents.db",):
            print(url.partition("?")[0].rpartition("@")[2])
            asyncio.run(measure(url))


if __name__ == "__main__":
    main(*sys.argv[1:])
