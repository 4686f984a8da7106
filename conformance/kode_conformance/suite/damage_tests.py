"""Tests of agents with damaged heads, for the stores of a record engine.

.. code-block:: python

    damages = [("rev", lambda agent_id: set_field(agent_id, "rev", "junk"))]
    await check_damaged_heads(lambda: MyStore(url), damages)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import pytest

from kode_conformance.values import samples
from kode_core import ExtendedStore
from kode_core.errors import CorruptRecordError

__all__ = ["Damage", "check_damaged_heads"]

Damage: TypeAlias = tuple[str, Callable[[str], Awaitable[object]]]
"""The name of a damage, and a function that damages the stored head of an agent."""

_SOUND: Final = ("0-sound", "z-sound")


async def check_damaged_heads(open_store: Callable[[], Any], damages: Sequence[Damage]) -> list[str]:
    """Damage a head in each way; the names of those ways after which an agent could not be read.

    Each damaged head fails its own agent alone, with an error that names it, or fails nothing. Queries over many agents
    find all others. A delete removes it, and the agent begins anew, with offsets that were not there before.
    """
    agents = {f"agent {n}": damage for n, damage in enumerate(damages)}
    async with open_store() as store:
        for agent_id in (*_SOUND, *agents):
            await _fill(store, agent_id)
    for agent_id, (_, damage) in agents.items():
        await damage(agent_id)
    async with open_store() as store:
        await _others_are_found(store)
        unread = [name for agent_id, (name, _) in agents.items() if not await _is_read(store, agent_id)]
        for agent_id, (name, _) in agents.items():
            await _is_deleted(store, agent_id, name)
        await _others_are_found(store)
        for agent_id in agents:
            assert (await store.check_consistency(agent_id)).issues == ()
    return unread


async def _fill(store: ExtendedStore, agent_id: str) -> None:
    calls, events = [samples.tool_call(0)], samples.events(3)
    await store.save_turn(
        agent_id, messages=samples.messages(3), tool_calls=calls, events=events, info=samples.info(agent_id)
    )


async def _others_are_found(store: ExtendedStore) -> None:
    for agent_id in _SOUND:
        assert await store.load_messages(agent_id) == samples.messages(3)
    found: list[Sequence[Any]] = [
        await store.query_sessions(limit=1000),
        await store.query_sessions(limit=1000, sort_by="updated_at"),
        await store.query_sessions(limit=1000, sort_by="message_count"),
        await store.query_messages(limit=1000),
        await store.query_tool_calls(limit=1000),
    ]
    for page in found:
        assert {one.agent_id for one in page} >= set(_SOUND)
    assert set(await store.list()) >= set(_SOUND)
    await store.get_metrics()


async def _is_read(store: ExtendedStore, agent_id: str) -> bool:
    """True if an agent can be read: then it is as it was saved. Otherwise no call may take it for anything else."""
    try:
        found = await store.load_messages(agent_id)
    except CorruptRecordError as exc:
        assert agent_id in exc.record
    else:
        assert found == samples.messages(3)
        try:
            assert (await store.load_info(agent_id)) == samples.info(agent_id, message_count=3)
        except CorruptRecordError as exc:  # the text of the info has a digest of its own
            assert agent_id in exc.record
        assert [event.offset async for event in store.read_events(agent_id)] == [1, 2, 3]
        return True
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.load_info(agent_id),
        lambda: store.load_tool_call_records(agent_id),
        lambda: store.append_messages(agent_id, samples.messages(1)),
        lambda: store.append_event(agent_id, samples.event(7)),
        lambda: store.query_messages(agent_id=agent_id),
    ]
    for call in calls:
        with pytest.raises(CorruptRecordError, match=agent_id):
            await call()
    codes = {issue.code for issue in (await store.check_consistency(agent_id)).issues}
    assert "corrupt_record" in codes, codes
    return False


async def _is_deleted(store: ExtendedStore, agent_id: str, name: str) -> None:
    await store.delete(agent_id)
    assert await store.load_messages(agent_id) == [], name
    assert not await store.exists(agent_id), name
    assert await store.append_event(agent_id, samples.event(0)) > 3, name
    await store.append_messages(agent_id, samples.messages(1))
    async with asyncio.timeout(20):  # an index may lag behind
        while len(await store.query_messages(agent_id=agent_id)) != 1:
            await asyncio.sleep(0.01)
