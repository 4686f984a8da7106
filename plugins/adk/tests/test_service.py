"""Stale sessions, repeated calls, refused values, loops, and events as ordinary messages and tool calls."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from google.adk.cli.service_registry import get_service_registry, load_services_module
from google.adk.errors import StaleSessionError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.sessions import Session
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types
from kode_adk import KodeSessionService, register

from kode_core import (
    ConfigurationError,
    InvalidArgumentError,
    InvalidValueError,
    StoreClosedError,
    ToolResultBlock,
    ToolUseBlock,
    create_extended_store,
)

NAMES: Any = {"app_name": "app", "user_id": "ada", "session_id": "s"}


def event(text: str = "hi", **delta: Any) -> Event:
    content = types.Content(role="user", parts=[types.Part(text=text)])
    return Event(author="user", content=content, actions=EventActions(state_delta=delta))


async def loaded(service: KodeSessionService, **names: Any) -> Session:
    session = await service.get_session(**{**NAMES, **names})
    assert session is not None
    return session


async def test_a_stale_session_is_refused(service: KodeSessionService) -> None:
    first = await service.create_session(**NAMES)
    second = await loaded(service)
    await service.append_event(first, event("one", x=1))
    with pytest.raises(StaleSessionError):
        await service.append_event(second, event("two", x=2, **{"app:x": 2}))
    now = await loaded(service)
    assert (len(now.events), now.state) == (1, {"x": 1})
    await service.append_event(now, event("three"))
    await service.append_event(now, event("four"))
    assert len((await loaded(service)).events) == 3


async def test_a_session_without_a_marker(service: KodeSessionService) -> None:
    """As a server gets it back from a client: its time and its last event decide."""
    session = await service.create_session(**NAMES)
    await service.append_event(session, event("one"))
    seen = Session.model_validate(session.model_dump())
    old = Session(id="s", app_name="app", user_id="ada", last_update_time=0.0)
    with pytest.raises(StaleSessionError):
        await service.append_event(old, event())
    seen.last_update_time = 0.0  # as a client may round it
    await service.append_event(seen, event("two"))
    with pytest.raises(StaleSessionError):
        await service.append_event(session, event())


async def test_a_session_that_was_deleted_or_made_again(service: KodeSessionService) -> None:
    session = await service.create_session(**NAMES)
    await service.append_event(session, event(**{"user:x": 1}))
    await service.delete_session(**NAMES)
    await service.delete_session(**NAMES)
    with pytest.raises(SessionNotFoundError):
        await service.append_event(session, event())
    assert await service.get_session(**NAMES) is None
    await service.create_session(**NAMES)
    with pytest.raises(StaleSessionError):
        await service.append_event(session, event())
    assert (await loaded(service)).state == {"user:x": 1}


async def test_a_repeated_append_stores_the_event_once(service: KodeSessionService) -> None:
    """Also by a caller that does not know whether the first succeeded."""
    session = await service.create_session(**NAMES)
    before, given = deepcopy(session), event("once", x=1)
    await service.append_event(session, given)
    await service.append_event(before, deepcopy(given))
    assert len(before.events) == 1
    await service.append_event(before, event("next"))
    other = event("another of that id")
    other.id = given.id
    await service.append_event(before, other)
    assert [e.id == given.id for e in (await loaded(service)).events] == [True, False, True]


async def test_the_last_events_and_those_since(service: KodeSessionService) -> None:
    session = await service.create_session(**NAMES)
    for at in range(250):
        await service.append_event(session, Event(author="user", timestamp=float(at), invocation_id=str(at)))

    async def found(**config: Any) -> list[int]:
        now = await loaded(service, config=GetSessionConfig(**config))
        return [int(e.invocation_id) for e in now.events]

    assert await found(num_recent_events=20) == list(range(230, 250))
    assert await found(num_recent_events=0) == []
    assert await found(after_timestamp=240.0) == list(range(240, 250))
    assert await found(after_timestamp=999.0) == []
    assert await found(num_recent_events=5, after_timestamp=248.0) == [248, 249]
    assert await found() == list(range(250))


async def test_temporary_state_is_the_session_s_alone(service: KodeSessionService) -> None:
    session = await service.create_session(**NAMES, state={"temp:a": 1, "x": 1})
    given = event(**{"temp:b": 2, "y": object.__name__})
    await service.append_event(session, given)
    assert session.state == {"x": 1, "temp:b": 2, "y": "object"}
    assert given.actions.state_delta == {"y": "object"}
    assert (await loaded(service)).state == {"x": 1, "y": "object"}


@pytest.mark.parametrize("value", [math.nan, {"a": [math.inf]}, "\ud83d\ude00", print, {"f": object()}])
async def test_a_value_that_cannot_be_kept_is_refused(service: KodeSessionService, value: Any) -> None:
    """With an error of the store, and nothing is written: neither the event, nor a state."""
    with pytest.raises(InvalidValueError):
        await service.create_session(**{**NAMES, "session_id": "t"}, state={"app:x": 1, "x": value})
    session = await service.create_session(**NAMES)
    with pytest.raises(InvalidValueError):
        await service.append_event(session, event(**{"app:x": 1, "user:x": value}))
    with pytest.raises(InvalidValueError):
        await service.append_event(session, Event(author="user", custom_metadata={"x": value}))
    store = await service.store()
    assert await store.list(include_without_info=True) == [service.agent_id("app", "ada", "s")]
    assert (await loaded(service)).state == {}
    await service.append_event(session, event())


async def test_wrong_arguments(service: KodeSessionService) -> None:
    with pytest.raises(InvalidArgumentError):
        await service.create_session(app_name=None, user_id="u")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        KodeSessionService("nosuch://x")


async def test_events_are_ordinary_messages_and_tool_calls(service: KodeSessionService) -> None:
    session = await service.create_session(**NAMES)
    call = types.FunctionCall(id="c1", name="weather", args={"city": "nowhere"})
    fine = types.FunctionCall(id="c2", name="weather", args={"city": "Zürich"})
    answer = types.FunctionResponse(id="c1", name="weather", response={"error": "no such city"})
    sunny = types.FunctionResponse(id="c2", name="weather", response={"result": "sunny"})
    blob = types.Blob(data=b"\x00\xff", mime_type="image/png")
    contents = [
        types.Content(role="user", parts=[types.Part(text="Weather?"), types.Part(inline_data=blob)]),
        types.Content(
            role="model",
            parts=[
                types.Part(text="hm", thought=True, thought_signature=b"\xfb\xff"),
                types.Part(function_call=call),
                types.Part(function_call=fine),
            ],
        ),
        types.Content(role="user", parts=[types.Part(function_response=answer), types.Part(function_response=sunny)]),
    ]
    events = [Event(author="user" if i == 0 else "agent", content=content) for i, content in enumerate(contents)]
    for given in events:
        await service.append_event(session, given)
    assert (await loaded(service)).events == events

    store, agent = await service.store(), service.agent_id("app", "ada", "s")
    messages = await store.load_messages(agent)
    assert [(m.role, [type(b).__name__ for b in m.content]) for m in messages] == [
        ("user", ["TextBlock", "ImageBlock"]),
        ("assistant", ["ReasoningBlock", "ToolUseBlock", "ToolUseBlock"]),
        ("user", ["ToolResultBlock", "ToolResultBlock"]),
    ]
    assert [b.id for b in messages[1].content if isinstance(b, ToolUseBlock)] == ["c1", "c2"]
    assert [b.is_error for b in messages[2].content if isinstance(b, ToolResultBlock)] == [True, None]
    (failed,) = await store.query_tool_calls(is_error=True)
    assert (failed.name, failed.input, failed.error) == ("weather", {"city": "nowhere"}, "no such city")
    assert failed.state == "FAILED"
    assert (await store.aggregate_stats(agent)).tool_calls_by_state == {"COMPLETED": 1, "FAILED": 1}
    assert len(await store.query_sessions(user_id="ada", template_id="adk")) == 1
    assert (await store.check_consistency()).issues == ()


def test_each_event_loop_has_the_store(shared_url: str) -> None:
    """Runner.run and scripts have several, one after the other."""
    service = KodeSessionService(shared_url)
    session = asyncio.run(service.create_session(**NAMES))
    asyncio.run(service.append_event(session, event("one")))
    asyncio.run(service.append_event(session, event("two")))
    assert len(asyncio.run(loaded(service)).events) == 2
    assert service._loops is not None
    assert service._loops._kept == {}  # each was closed with its loop
    asyncio.run(service.close())
    with pytest.raises(StoreClosedError):
        asyncio.run(loaded(service))


async def test_a_given_store_stays_open(url: Any) -> None:
    async with create_extended_store(url) as opened:
        async with KodeSessionService(opened) as service:
            await service.create_session(**NAMES)
        assert (await loaded(service)).id == "s"
    with pytest.raises(StoreClosedError):
        await loaded(service)


@pytest.mark.parametrize("kind", ["yaml", "python"])
async def test_the_scheme_of_the_registry(kind: str, tmp_path: Path) -> None:
    """By services.yaml, and by services.py, which calls ``register``."""
    if kind == "yaml":
        (tmp_path / "services.yaml").write_text(
            "services:\n  - scheme: kode\n    type: session\n    class: kode_adk.KodeSessionService\n"
        )
        load_services_module(str(tmp_path))
    else:
        register()
    uri = f"kode:sqlite:///{tmp_path}/agents.db"
    service = get_service_registry().create_session_service(uri, agents_dir=str(tmp_path))
    assert isinstance(service, KodeSessionService)
    async with service:
        await service.create_session(**NAMES)
    assert (tmp_path / "agents.db").exists()
    command = [sys.executable, "-m", "kode_core.cli", "sessions", "--store", f"sqlite:///{tmp_path}/agents.db"]
    assert "adk" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
