"""The agents that a command names: an id that no agent has is an error, and never an empty answer."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from kode_core.errors import CorruptRecordError
from kode_core.nearby import agent_not_found
from kode_core.protocols import ExtendedStore
from kode_core.query import Within
from kode_core.store.layered import layers_of
from kode_core.store.stored_ids import is_stored

__all__ = ["is_known", "require_agent", "require_agents"]


async def is_known(store: ExtendedStore, agent_id: str) -> bool:
    """True if anything is stored for the agent: its info, records without info, or damaged ones."""
    with suppress(CorruptRecordError):
        return await store.exists(agent_id) or await is_stored((await layers_of(store))[0], agent_id)
    return True


async def require_agent(store: ExtendedStore, agent_id: str) -> None:
    """Raise AgentNotFoundError, with a near id, unless something is stored for the agent.

    Commands ask once they have found nothing, so that an answer that is not empty costs no call.
    """
    if not await is_known(store, agent_id):
        raise await agent_not_found(store, agent_id)


async def require_agents(
    store: ExtendedStore, named: str | Collection[str] | Within, found: Collection[str] = ()
) -> None:
    """Raise AgentNotFoundError for the first of the *named* agents that is neither *found* nor stored.

    A range of agents names none, and may be empty.
    """
    if isinstance(named, Within):
        return
    for agent_id in [named] if isinstance(named, str) else dict.fromkeys(named):
        if agent_id not in found:
            await require_agent(store, agent_id)
