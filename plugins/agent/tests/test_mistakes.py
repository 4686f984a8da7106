"""Mistakes of a newcomer: each error says what is wrong and what to do, and nothing is written."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from kode_agent import Agent, ScriptedProvider, Template, decide, interrupt, open_questions

from kode_core import (
    AgentNotFoundError,
    ConflictError,
    ExtendedStore,
    InvalidArgumentError,
    create_extended_store,
)
from kode_core.sync import open_store

TEMPLATE = Template("assistant")


async def created(store: Any, agent_id: str | None = None) -> Agent:
    return await Agent.create(provider=ScriptedProvider(["Hello!"]), store=store, template=TEMPLATE, agent_id=agent_id)


async def test_an_id_that_exists(store: ExtendedStore) -> None:
    """create says so and names what goes on with the agent."""
    agent = await created(store, "remover")
    with pytest.raises(
        ConflictError, match=r"agent 'remover': it exists; Agent\.resume .* Agent\.resume_or_create"
    ) as e:
        await created(store, "remover")
    assert (e.value.agent_id, bool(e.value.version)) == ("remover", True)
    assert await agent.send("Hi.") == "Hello!"


async def test_an_id_that_no_agent_has(store: ExtendedStore) -> None:
    """resume and interrupt say so, name a near id, and leave nothing behind."""
    await created(store, "remover")
    for agent_id, text in (("nobody", r"no agent 'nobody' in this store; Agent\.create"), ("remove", "mean 'remover'")):
        with pytest.raises(AgentNotFoundError, match=text) as e:
            await Agent.resume(agent_id, provider=ScriptedProvider([]), store=store, template=TEMPLATE)
        assert e.value.agent_id == agent_id and "save_info" not in str(e.value)
        with pytest.raises(AgentNotFoundError, match=text):
            await interrupt(store, agent_id)
        assert not await store.exists(agent_id)
        assert pickle.loads(pickle.dumps(e.value)).__class__ is type(e.value)
    await interrupt(store, "remover")
    deleted = await created(store, "gone")
    await store.delete("gone")
    with pytest.raises(AgentNotFoundError):
        await deleted.interrupt()


async def test_a_store_that_cannot_be_used(tmp_path: Path) -> None:
    """A URL, a store that is not open, a synchronous one, and other objects; no URL is shown."""
    url = f"sqlite:///{tmp_path}/secret.db"
    with open_store(url) as synchronous:
        for wrong, text in (
            (url, "not a URL; open one with: async with create_extended_store"),
            (create_extended_store(url), "is not open yet"),
            (synchronous, r"one of kode_core\.sync"),
            (None, "NoneType has no create_agent"),
            (Agent, "type has no create_agent"),
        ):
            for call in (
                created(wrong),
                Agent.resume_or_create("a", provider=ScriptedProvider([]), store=wrong, template=TEMPLATE),
                open_questions(wrong, "a"),
                decide(wrong, "a", "c", "allow"),
                interrupt(wrong, "a"),
            ):
                with pytest.raises(InvalidArgumentError, match=text) as e:
                    await call
                assert "secret" not in str(e.value)


async def test_an_agent_that_runs_elsewhere_is_not_waited_for(store: ExtendedStore) -> None:
    """wait_ms=0 of resume_or_create raises at once."""
    from kode_agent import AgentBusyError

    await created(store, "a")
    async with store.acquire_agent_lock("a", ttl_ms=60_000):
        with pytest.raises(AgentBusyError):
            await Agent.resume_or_create("a", provider=ScriptedProvider([]), store=store, template=TEMPLATE, wait_ms=0)
