"""The session service next to ADK's own ones: an append, and the load of the last 20 events.

``python plugins/adk/tests/benchmark.py`` in the environment of the frameworks, with SQLAlchemy and greenlet added.
Every service has a session of each size in a new file on the same disk. The samples of the services take turns; the
table has medians, and the ratio to ``KodeSessionService``.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.sessions import BaseSessionService, DatabaseSessionService
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.sqlite_session_service import SqliteSessionService
from google.genai import types
from kode_adk import KodeSessionService

SIZES = [int(size) for size in sys.argv[1:]] or [100, 1_000, 8_000]
SAMPLES = 30
NAMES: Any = {"app_name": "app", "user_id": "ada", "session_id": "s"}


def event(number: int) -> Event:
    part = types.Part(text=f"{number}: " + "word " * 40)
    content = types.Content(role="user" if number % 2 else "model", parts=[part])
    delta = {"count": number} if number % 4 == 0 else {}
    return Event(author="user", invocation_id="i", content=content, actions=EventActions(state_delta=delta))


async def filled(service: BaseSessionService, size: int) -> None:
    session = await service.create_session(**NAMES)
    for number in range(size):
        await service.append_event(session, event(number))
        session.events.clear()


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    start = time.perf_counter()
    await call()
    return (time.perf_counter() - start) * 1000


async def measured(services: dict[str, BaseSessionService]) -> dict[str, tuple[float, float]]:
    """The median milliseconds of an append and of a load, for each service."""
    appends: dict[str, list[float]] = {name: [] for name in services}
    loads: dict[str, list[float]] = {name: [] for name in services}
    config = GetSessionConfig(num_recent_events=20)
    for number in range(SAMPLES):
        for name, service in services.items():
            session = await service.get_session(**NAMES, config=config)
            assert session is not None
            assert len(session.events) == 20
            loads[name].append(await timed(lambda s=service: s.get_session(**NAMES, config=config)))  # type: ignore[misc]
            given = event(number)
            appends[name].append(await timed(lambda s=service, v=session, e=given: s.append_event(v, e)))  # type: ignore[misc]
    return {name: (statistics.median(appends[name]), statistics.median(loads[name])) for name in services}


async def main() -> None:
    print("| events | service | append ms | ratio | load of the last 20, ms | ratio |\n|---|---|---|---|---|---|")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            ours = KodeSessionService(f"sqlite:///{path}/kode.db")
            theirs = DatabaseSessionService(f"sqlite+aiosqlite:///{path}/database.db")
            services: dict[str, BaseSessionService] = {
                "KodeSessionService": ours,
                "DatabaseSessionService": theirs,
                "SqliteSessionService": SqliteSessionService(f"{path}/sqlite.db"),
            }
            for service in services.values():
                await filled(service, size)
            found = await measured(services)
            base = found["KodeSessionService"]
            for name, (append, load) in found.items():
                print(
                    f"| {size:,} | {name} | {append:.2f} | {append / base[0]:.1f} | {load:.2f} | {load / base[1]:.1f} |"
                )
            await ours.close()
            await theirs.close()


if __name__ == "__main__":
    asyncio.run(main())
