"""Sessions of the SDK on SQLite next to ``KodeSession``: an append of a turn, and a load of the last 20 items.

    .venv-frameworks/bin/python plugins/openai-agents/tests/benchmark.py

Each line has medians in milliseconds, and their ratio to those of ``SQLiteSession`` in the same run: the sessions take
turns, so that a busy machine slows all of them. SQLAlchemySession needs ``sqlalchemy`` and ``aiosqlite``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agents import SQLiteSession
from kode_openai_agents import KodeSession

from kode_core import create_extended_store

SIZES = (100, 1_000, 8_000)
ROUNDS = 40


def turn(n: int) -> list[Any]:
    """A question, a call of a tool, its output and an answer."""
    call = {"type": "function_call", "call_id": f"c{n}", "name": "look", "arguments": '{"order": "A-1"}', "id": f"f{n}"}
    text = [{"type": "output_text", "text": "It was shipped on Monday. " * 8, "annotations": [], "logprobs": []}]
    return [
        {"role": "user", "content": f"Where is my order {n}?"},
        call,
        {"type": "function_call_output", "call_id": f"c{n}", "output": "shipped " * 40},
        {"id": f"m{n}", "type": "message", "status": "completed", "role": "assistant", "content": text},
    ]


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    begun = time.perf_counter()
    await work()
    return (time.perf_counter() - begun) * 1_000


async def measured(sessions: dict[str, Any], size: int) -> None:
    appends: dict[str, list[float]] = {name: [] for name in sessions}
    loads: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        for n in range(0, size, 400):
            await session.add_items([item for i in range(n, min(n + 400, size), 4) for item in turn(i)])
    for round_ in range(ROUNDS):
        for name, session in sessions.items():
            appends[name].append(await timed(lambda: session.add_items(turn(size + round_))))  # noqa: B023
            loads[name].append(await timed(lambda: session.get_items(20)))  # noqa: B023
    base = next(iter(sessions))
    for name in sessions:
        append, load = statistics.median(appends[name]), statistics.median(loads[name])
        ratios = append / statistics.median(appends[base]), load / statistics.median(loads[base])
        print(f"{size:>6} {name:<28} append {append:7.2f} ({ratios[0]:4.1f}x)  last 20 {load:7.2f} ({ratios[1]:4.1f}x)")


async def main() -> None:
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            async with create_extended_store(f"sqlite:///{place}/given.db") as store:
                owned = KodeSession("s", f"sqlite:///{place}/owned.db")
                sessions: dict[str, Any] = {
                    "SQLiteSession": SQLiteSession("s", place / "theirs.db"),
                    "KodeSession(store=…)": KodeSession("s", store=store),
                    "KodeSession(url)": owned,
                }
                if importlib.util.find_spec("sqlalchemy") and importlib.util.find_spec("aiosqlite"):
                    from agents.extensions.memory import SQLAlchemySession

                    url = f"sqlite+aiosqlite:///{place}/alchemy.db"
                    sessions["SQLAlchemySession"] = SQLAlchemySession.from_url("s", url=url, create_tables=True)
                await measured(sessions, size)
                owned.close()
                sessions["SQLiteSession"].close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
