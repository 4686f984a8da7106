"""Writes the agents of a store of the SDK into a store of this library, each in one write.

An agent whose id is taken is compared with the stored one, so that an interrupted import can be started again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from msgspec.structs import replace as changed

from kode_core.errors import KodeError
from kode_core.formats.importing import ForeignAgent, Imported, counts_of, outcome_of, place
from kode_core.formats.kode_sdk.raw import RawAgent, Source
from kode_core.formats.kode_sdk.records import records_of
from kode_core.ids import quoted
from kode_core.protocols import ExtendedStore

__all__ = ["Imported", "import_agents"]

_POOL: Final = "__pool_meta__"
"""The id under which the SDK's pool keeps a list of running agents, in an info without most of its fields."""


async def import_agents(
    source: Source,
    store: ExtendedStore | None,
    *,
    recover_from_snapshots: bool = False,
    skip_damaged: bool = False,
    replace: bool = False,
) -> AsyncIterator[Imported]:
    """Import every agent of *source*; yields the outcome of each.

    Args:
        source: a store of the SDK.
        store: the store to write to; None only reads and reports.
        recover_from_snapshots: take the messages of an agent's newest snapshot or history window, if the SDK has lost
            its messages.
        skip_damaged: import the rest of an agent of which some records cannot be read. Without it such an agent is
            refused.
        replace: delete an agent of the same id that has other records, and import. Without it the agent is refused.

    An error of one agent, such as one that is too large for the store, is its outcome, and the others are imported.

    Raises:
        KodeError: the source cannot be read, or the store cannot be written.
    """
    how = _How(recover_from_snapshots, skip_damaged, replace)
    writing: deque[asyncio.Task[Imported]] = deque()
    try:
        async for agent_id in source.agent_ids():
            raw = await _read(source, agent_id)
            most = _AT_ONCE if _size(raw) <= _SMALL else 1
            while len(writing) >= most:
                yield await _first(writing)
            writing.append(asyncio.create_task(_import(raw, store, how)))
            del raw
        while writing:
            yield await _first(writing)
    finally:
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)


_AT_ONCE: Final = 32
"""Small agents that are written at once: stores commit together what is written together."""
_SMALL: Final = 500
"""Records of an agent that counts as small."""


def _size(raw: RawAgent) -> int:
    parts = (raw.messages, raw.tool_calls, raw.snapshots, raw.windows, raw.compressions, raw.recovered, raw.events)
    return sum(map(len, parts))


async def _first(writing: deque[asyncio.Task[Imported]]) -> Imported:
    """The outcome of the first agent, in the order of the source."""
    outcome = await writing[0]
    writing.popleft()
    return outcome


async def _read(source: Source, agent_id: str) -> RawAgent:
    """The agent; one that cannot be read at all is damaged, and ends no import of others."""
    try:
        return await source.read(agent_id)
    except KodeError:
        raise
    except Exception as exc:  # noqa: BLE001 - anything may stand in the place of an agent
        raw = RawAgent(agent_id)
        raw.found.damaged[f"it cannot be read: {type(exc).__name__}: {exc}"[:300]] += 1
        return raw


class _How(NamedTuple):
    recover: bool
    skip_damaged: bool
    replace: bool


async def _import(raw: RawAgent, store: ExtendedStore | None, how: _How) -> Imported:
    if raw.agent_id == _POOL and raw.is_empty:
        return outcome_of(raw.agent_id, raw.found, "left out", "the list of running agents of the SDK's pool")
    own = raw.info[1].get("agentId") if raw.info is not None and isinstance(raw.info[1], dict) else None
    if own is not None and own != raw.agent_id:
        reason = f"its info is of the agent {quoted(own)}: is that the folder in which the store's agents are?"
        return outcome_of(raw.agent_id, raw.found, "refused", reason)
    # in a thread, since it takes seconds for an agent with many records; each of its steps is short
    records = await asyncio.to_thread(records_of, raw, recover=how.recover)
    agent_id, found, has_info = raw.agent_id, raw.found, raw.info is not None
    del raw  # the same values in another form
    counts = counts_of(records)
    if records.info is None and not counts and not (found.damaged and not how.skip_damaged):
        return outcome_of(agent_id, found, "refused" if has_info else "left out", "it has no records")
    agent = ForeignAgent(changed(records, agent_id=agent_id), found)
    return await place(agent, store, skip_damaged=how.skip_damaged, replace=how.replace)
