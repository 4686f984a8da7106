"""Writes of many records in one call, which a store may be tempted to do in pieces; ``writes`` has the small ones."""

from __future__ import annotations

from typing import Any, Final

from kode_conformance.kills.writes import FORKS, Write, records_to_import, seed
from kode_conformance.values import samples
from kode_core.protocols import ExtendedStore

__all__ = ["BIG", "BIG_FORK", "BIG_IMPORT", "DELETE_GROUP", "GROUP", "MANY", "members", "seed_big", "seed_group"]

MANY: Final = 300
"""More than every usual batch."""

GROUP: Final = 6
"""The number of agents that ``delete_many`` deletes."""


async def seed_big(store: ExtendedStore, agent_id: str) -> None:
    """Make an agent that has many of most kinds."""
    await seed(store, agent_id)
    await store.save_turn(
        agent_id,
        messages=samples.messages(MANY),
        tool_calls=[samples.tool_call(i) for i in range(MANY // 2)],
        events=samples.events(MANY, 2),
    )
    for i in range(5):
        await store.save_snapshot(agent_id, samples.snapshot(f"sfp-{i}", count=20))


def members(agent_id: str) -> list[str]:
    """The agents that ``delete_many`` deletes."""
    return [f"{agent_id}/{i}" for i in range(GROUP)]


async def seed_group(store: ExtendedStore, agent_id: str) -> None:
    """Make agents that one filter finds."""
    for member in members(agent_id):
        await seed(store, member)
        await store.save_info(member, samples.info(member, template_id=agent_id))


async def _append_messages(store: ExtendedStore, agent_id: str) -> None:
    """Append other messages each time, so that it can be done again and again."""
    have = len(await store.load_messages(agent_id))
    await store.append_messages(agent_id, samples.messages(MANY, have))


async def _append_events(store: ExtendedStore, agent_id: str) -> list[int]:
    last = await store.last_bookmark(agent_id)
    return list(await store.append_events(agent_id, samples.events(MANY, 0 if last is None else last.seq + 1)))


async def _shrink_messages(store: ExtendedStore, agent_id: str) -> None:
    await store.save_messages(agent_id, [*samples.messages(20), *samples.messages(5, 9000)])


async def _replace_messages(store: ExtendedStore, agent_id: str) -> None:
    await store.save_messages(agent_id, samples.messages(MANY + 50, 5000))


async def _save_tool_calls(store: ExtendedStore, agent_id: str) -> None:
    await store.save_tool_call_records(agent_id, [samples.tool_call(i, state="SEALED") for i in range(20, MANY)])


async def _save_turn(store: ExtendedStore, agent_id: str) -> None:
    await store.save_turn(
        agent_id,
        append=samples.messages(MANY, 6000),
        upsert_tool_calls=[samples.tool_call(i, state="FAILED") for i in range(MANY // 4, MANY)],
        todos=samples.todos(*(f"todo {i}" for i in range(MANY))),
        info=samples.info(agent_id, metadata={f"key {i}": i for i in range(40)}),
        events=samples.events(MANY, 7000),
    )


async def _save_media_cache(store: ExtendedStore, agent_id: str) -> None:
    await store.save_media_cache(agent_id, [samples.media(f"sha256:{i}") for i in range(MANY)])


async def _save_snapshot(store: ExtendedStore, agent_id: str) -> None:
    await store.save_snapshot(agent_id, samples.snapshot("sfp-1", count=MANY))


async def _delete_group(store: ExtendedStore, agent_id: str) -> Any:
    return await store.delete_many(template_id=agent_id)


BIG_FORK: Final = Write("batch_fork of much", lambda store, agent_id: store.batch_fork(agent_id, FORKS), seed_big)
"""Copies of an agent with many records."""

DELETE_GROUP: Final = Write("delete_many", _delete_group, seed_group)
"""The write that deletes other agents."""

BIG_IMPORT: Final = Write(
    "import_agent of much", lambda store, agent_id: store.import_agent(agent_id, records_to_import(MANY))
)
"""The write of an agent that does not exist, with many records."""

BIG: Final[tuple[Write, ...]] = (
    Write("delete of much", lambda store, agent_id: store.delete(agent_id), seed_big),
    Write("save_turn of many", _save_turn, seed_big),
    Write("append_messages of many", _append_messages),
    Write("append_events of many", _append_events),
    Write("save_messages that drops many", _shrink_messages, seed_big),
    Write("save_messages that replaces many", _replace_messages, seed_big),
    Write("save_tool_call_records of many", _save_tool_calls, seed_big),
    Write("save_media_cache of many", _save_media_cache, seed_big),
    Write("save_snapshot of many", _save_snapshot, seed_big),
    BIG_FORK,
    DELETE_GROUP,
)
"""All big writes, the most important first, as a slow store has no time for all; the last two write to other agents."""
