"""Several processes with one session and with one state, and processes that are killed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from kode_adk import KodeSessionService
from kode_adk.scopes import Scopes, pending_key, split_state

from tests.adapter_tests import begin, race, started

WORKER = Path(__file__).with_name("worker.py")
NAMES: Any = {"app_name": "app", "user_id": "ada"}


def texts(events: list[Event]) -> list[str]:
    return [event.content.parts[0].text or "" for event in events if event.content and event.content.parts]


async def test_two_processes_append_to_one_session(shared_url: str) -> None:
    """Every event is there once, with all that it changed."""
    told = await race(*[started(WORKER, "append", shared_url, name, 15) for name in "ab"])
    acked = [line["text"] for lines in told for line in lines]
    async with KodeSessionService(shared_url) as service:
        session = await service.get_session(**NAMES, session_id="race")
        assert session is not None
        assert sorted(texts(session.events)) == sorted(acked)
        for name in acked:
            assert {name, f"app:{name}", f"user:{name}"} <= session.state.keys()


async def test_concurrent_changes_of_states_lose_nothing(shared_url: str) -> None:
    await race(*[started(WORKER, "states", shared_url, name, 30) for name in "abc"])
    async with KodeSessionService(shared_url) as service:
        state = await service.get_user_state(**NAMES)
        assert state == {f"{name}-{step}": step for name in "abc" for step in range(30)}
        session = await service.get_session(**NAMES, session_id="a")
        assert session is not None
        app = {key: value for key, value in session.state.items() if key.startswith("app:") and key != "app:shared"}
        assert app == {f"app:{name}-{step}": step for name in "abc" for step in range(30)}
        assert session.state["app:shared"] in {"a-29", "b-29", "c-29"}


async def test_each_session_is_created_once(shared_url: str) -> None:
    told = await race(*[started(WORKER, "create", shared_url, name, 20) for name in "ab"])
    assert sorted(line["created"] for lines in told for line in lines) == list(range(20))


async def test_a_killed_process_loses_no_event_and_no_state(shared_url: str) -> None:
    process = await started(WORKER, "append", shared_url, "killed", 0)
    begin(process)
    assert process.stdout is not None
    lines = [await process.stdout.readline()]
    await asyncio.sleep(0.5)
    process.kill()
    lines += (await process.stdout.read()).splitlines()
    await process.wait()
    acked = [json.loads(line)["text"] for line in lines if line.strip().endswith(b"}")]
    async with KodeSessionService(shared_url) as service:
        session = await service.get_session(**NAMES, session_id="race")
        assert session is not None
        found = texts(session.events)
        assert found[: len(acked)] == acked
        assert len(found) - len(acked) in (0, 1)  # the append in flight is whole or absent
        for name in found:  # whole: with its changes of all three states
            assert {name, f"app:{name}", f"user:{name}"} <= session.state.keys()
        await service.append_event(session, Event(author="user"))


async def test_changes_of_a_crashed_process_are_written_later(service: KodeSessionService) -> None:
    """It has written the event, and not the states; a value that others put since stays."""
    session = await service.create_session(**NAMES, session_id="s", state={"app:a": 1, "app:b": 1})
    store, agent = await service.store(), service.agent_id("app", "ada", "s")
    scopes = Scopes(store, "app", "ada")
    left = await scopes.pending(split_state({"app:a": 2, "app:b": 2, "user:c": 2}))
    await store.update_info(agent, {pending_key("e1"): left})
    await scopes.write(split_state({"app:b": 3}))

    found = await service.get_session(**NAMES, session_id="s")
    assert found is not None
    assert found.state == {"app:a": 2, "app:b": 3, "user:c": 2}
    info = await store.load_info(agent)
    assert info is not None
    assert not [key for key in info.metadata if key.startswith("pending:")]
    await service.append_event(session, Event(author="user", actions=EventActions(state_delta={"x": 1})))
