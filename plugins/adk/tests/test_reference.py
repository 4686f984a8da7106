"""The service beside ADK's ``InMemorySessionService``, call by call."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from copy import deepcopy
from typing import Any

import pytest
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.sessions import BaseSessionService, InMemorySessionService, Session
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types
from kode_adk import KodeSessionService

NAMES = ["a", "a/b", "a:b", "../..", "ü" * 300, "a\x00b", "\ud800", "%"]
KEYS = ["x", "y", "app:x", "app:y", "user:x", "user:" + "k" * 500, "temp:x", "app:", "a:b", "\ud800", "x\x00"]
VALUES: list[Any] = [None, 0, False, "", 1.0, 2**70, "\ud800", {"a": [None]}, [], "x" * 1000]


def shown(answer: Any) -> Any:
    """An answer without the times of the two services, and sessions without their order among equal ones."""
    if isinstance(answer, Session):
        return answer.model_dump(exclude={"last_update_time"})
    if isinstance(answer, list):
        return [shown(item) for item in answer]
    return answer


class Walk:
    """A random sequence of calls to two services, whose answers must be the same."""

    def __init__(self, ours: KodeSessionService, seed: str) -> None:
        self.services: list[BaseSessionService] = [InMemorySessionService(), ours]
        self.draw = random.Random(seed)
        self.time = 1_000_000.0
        self.names = NAMES

    async def call(self, ask: Callable[[BaseSessionService], Awaitable[Any]]) -> list[Any]:
        answers: list[Any] = []
        for service in self.services:
            try:
                answers.append(await ask(service))
            except (AlreadyExistsError, SessionNotFoundError) as exc:
                answers.append((type(exc), str(exc)))
        assert shown(answers[1]) == shown(answers[0])
        return answers

    def delta(self) -> dict[str, Any]:
        return {key: self.draw.choice(VALUES) for key in self.draw.sample(KEYS, self.draw.randrange(4))}

    def event(self) -> Event:
        self.time += 1
        call = types.FunctionCall(id=f"c{self.draw.randrange(3)}", name="f", args={"x": self.draw.choice(VALUES)})
        part = self.draw.choice(
            [
                types.Part(text=self.draw.choice(["hi", "a\x00b", "\ud800", ""])),
                types.Part(function_call=call, thought_signature=b"\x00\xff"),
                types.Part(inline_data=types.Blob(data=b"\x00\xff", mime_type="image/png")),
            ]
        )
        return Event(
            invocation_id="i",
            author=self.draw.choice(["user", "agent"]),
            content=types.Content(role="user", parts=[part]),
            actions=EventActions(state_delta=self.delta()),
            timestamp=self.time,
            partial=self.draw.random() < 0.1,
        )

    async def step(self) -> None:
        app, user, id_ = (self.draw.choice(self.names) for _ in range(3))
        names = {"app_name": app, "user_id": user}
        kind = self.draw.randrange(10)
        if kind < 3:
            state = self.delta()
            await self.call(lambda s: s.create_session(**names, session_id=id_, state=deepcopy(state)))
        elif kind < 7:
            found = await self.call(lambda s: s.get_session(**names, session_id=id_))
            if found[0] is not None:
                await self.append(found, names, id_)
        elif kind == 7:
            await self.call(lambda s: s.delete_session(**names, session_id=f" {id_} "))
        elif kind == 8:
            await self.call(lambda s: s.get_user_state(**names))
        else:
            listed = [await s.list_sessions(**names) for s in self.services]
            both = [sorted(shown(answer.sessions), key=lambda x: x["id"]) for answer in listed]
            assert both[0] == both[1]

    async def append(self, sessions: list[Session], names: dict[str, str], id_: str) -> None:
        for _ in range(self.draw.randrange(1, 4)):
            event = self.event()
            for service, session in zip(self.services, sessions, strict=True):
                given = deepcopy(event)
                assert await service.append_event(session, given) is given
                if self.draw.random() < 0.2:
                    await service.append_event(session, given)  # a second delivery
            assert shown(sessions[1]) == shown(sessions[0])
        config = GetSessionConfig(
            num_recent_events=self.draw.choice([None, 0, 1, 2, 100]),
            after_timestamp=self.draw.choice([None, self.time - 2, self.time, self.time + 1, 0.0]),
        )
        await self.call(lambda s: s.get_session(**names, session_id=id_, config=config))


@pytest.mark.parametrize("seed", ["one", "two", "three"])
async def test_every_answer_is_the_reference_s(service: KodeSessionService, url: Any, seed: str) -> None:
    walk = Walk(service, seed)
    walk.names = walk.draw.sample(NAMES, 4)
    for _ in range(150 if isinstance(url, str) else 40):  # emulators are slow
        await walk.step()


async def test_sessions_are_listed_by_their_last_event(service: KodeSessionService) -> None:
    walk = Walk(service, "list")
    names = {"app_name": "a", "user_id": "u"}
    made = {id_: await walk.call(lambda s, i=id_: s.create_session(**names, session_id=i)) for id_ in "abc"}  # type: ignore[misc]
    for at, id_ in enumerate("bca"):
        for service_, session in zip(walk.services, made[id_], strict=True):
            await service_.append_event(session, Event(author="user", timestamp=2e9 + at))
    await walk.call(lambda s: s.create_session(app_name="a", user_id="other", session_id="z"))
    for service_ in walk.services:
        assert [s.id for s in (await service_.list_sessions(**names)).sessions] == ["b", "c", "a"]
        listed = (await service_.list_sessions(app_name="a")).sessions
        assert [s.last_update_time for s in listed[1:]] == [2e9, 2e9 + 1, 2e9 + 2]
        assert (await service_.list_sessions(app_name="none")).sessions == []


async def test_ids_are_made_and_trimmed(service: KodeSessionService) -> None:
    for given in (None, "", "  "):
        made = await service.create_session(app_name="a", user_id="u", session_id=given)
        assert len(made.id) == 36
    assert (await service.create_session(app_name="a", user_id="u", session_id=" s ")).id == "s"
    assert await service.get_session(app_name="a", user_id="u", session_id="s ") is not None
    await service.flush()
