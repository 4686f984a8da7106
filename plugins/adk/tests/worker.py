"""A process of the tests: ``worker.py TASK URL NAME ROUNDS``. It prints a line for each thing that was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from typing import Any

from google.adk.errors import StaleSessionError
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.genai import types
from kode_adk import KodeSessionService

NAMES = {"app_name": "app", "user_id": "ada"}


def say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


def event(text: str, **delta: Any) -> Event:
    content = types.Content(role="user", parts=[types.Part(text=text)])
    return Event(author="user", content=content, actions=EventActions(state_delta=delta))


async def append(service: KodeSessionService, name: str, rounds: int) -> None:
    """Append to one session, and load it again when another process was first; 0 rounds never end."""
    with contextlib.suppress(AlreadyExistsError):
        await service.create_session(**NAMES, session_id="race")
    for step in itertools.count() if rounds == 0 else range(rounds):
        text = f"{name}-{step}"
        delta = {text: step, f"app:{text}": step, f"user:{text}": [step]}
        while True:
            session = await service.get_session(**NAMES, session_id="race")
            assert session is not None
            try:
                await service.append_event(session, event(text, **delta))
            except StaleSessionError:
                continue
            break
        say(text=text)


async def states(service: KodeSessionService, name: str, rounds: int) -> None:
    """Change the states of the app and the user from a session of its own."""
    session = await service.create_session(**NAMES, session_id=name)
    for step in range(rounds):
        delta = {f"app:{name}-{step}": step, f"user:{name}-{step}": step, "app:shared": f"{name}-{step}"}
        await service.append_event(session, event("", **delta))
    say(done=True)


async def create(service: KodeSessionService, name: str, rounds: int) -> None:
    for step in range(rounds):
        try:
            await service.create_session(**NAMES, session_id=f"{step}", state={"by": name, "app:by": name})
        except AlreadyExistsError:
            continue
        say(created=step)


async def main() -> None:
    task, url, name, rounds = sys.argv[1:]
    print("ready", flush=True)
    sys.stdin.readline()  # all processes begin at once
    async with KodeSessionService(url) as service:
        await {"append": append, "states": states, "create": create}[task](service, name, int(rounds))


asyncio.run(main())
