"""One agent into the target: written in one piece, or compared with the agent of the target."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from kode_core.errors import (
    ConflictError,
    CorruptRecordError,
    InvalidArgumentError,
    OutcomeUnknownError,
    StoreBusyError,
    StoreTimeoutError,
    UnsupportedError,
)
from kode_core.model import ABSENT, AgentRecords
from kode_core.moving.lines import Fingerprint, fingerprint
from kode_core.moving.outcomes import Existing, MovedAgent, Outcome
from kode_core.protocols import ExtendedStore
from kode_core.store.facade import EngineStore

__all__ = ["OF_ONE_AGENT", "load", "moved", "place", "write_agent"]

OF_ONE_AGENT: Final = (
    InvalidArgumentError,
    UnsupportedError,
    StoreBusyError,
    StoreTimeoutError,
    ConflictError,
    CorruptRecordError,
)
"""Errors of the target that end the import of one agent alone: one that is large may take longer than a call may."""
_OTHERS: Final = "the target has an agent of that id with other records"


async def load(store: ExtendedStore, agent_id: str) -> AgentRecords | MovedAgent:
    """The agent, or the outcome of one that cannot be read."""
    try:
        records = await store.load_agent(agent_id)
    except CorruptRecordError as exc:
        return MovedAgent(agent_id=agent_id, outcome="damaged", reason=str(exc))
    except (StoreBusyError, StoreTimeoutError) as exc:
        return MovedAgent(agent_id=agent_id, outcome="refused", reason=str(exc))
    return MovedAgent(agent_id=agent_id, outcome="gone") if records is None else records


def moved(records: AgentRecords, taken: Fingerprint, outcome: Outcome, reason: str = "") -> MovedAgent:
    """The outcome of an agent that was read whole; *taken* is its fingerprint."""
    return MovedAgent(
        agent_id=records.agent_id,
        outcome=outcome,
        reason=reason,
        counts=taken.counts,
        digest=taken.digest,
        size=taken.size,
    )


async def place(store: ExtendedStore, records: AgentRecords, taken: Fingerprint, existing: Existing) -> MovedAgent:
    """Write an agent, unless the store has it already; *taken* is its fingerprint."""

    async def is_same(there: AgentRecords) -> bool:
        return (await fingerprint(there)).digest == taken.digest

    outcome, reason = await write_agent(store, records, existing, is_same)
    return moved(records, taken, outcome, reason)


async def write_agent(
    store: ExtendedStore,
    records: AgentRecords,
    existing: Existing,
    is_same: Callable[[AgentRecords], Awaitable[bool]],
) -> tuple[Outcome, str]:
    """Write an agent, unless the store has one that *is_same*; the outcome, and the reason if it was not written.

    Raises:
        KodeError: an error that is not of this agent alone, and none of ``OF_ONE_AGENT``.
    """
    agent_id, is_unsure = records.agent_id, False
    try:
        if await store.load_version(agent_id) == ABSENT:  # a hint: an import is tried only where it may succeed
            await store.import_agent(agent_id, records)
            return "copied", ""
    except (ConflictError, CorruptRecordError):
        pass
    except OutcomeUnknownError:
        is_unsure = True
    except OF_ONE_AGENT as exc:
        return "refused", str(exc)
    there: AgentRecords | None = None
    try:
        there = await store.load_agent(agent_id)
        if there is None:
            await store.import_agent(agent_id, records)
            return "copied", ""
        if await is_same(there):
            return ("copied" if is_unsure else "known"), ""
        if existing == "skip":
            return "skipped", _OTHERS
        if existing == "refuse":
            return "refused", f"{_OTHERS}, which existing='refuse' leaves as they are"
    except CorruptRecordError as exc:
        if existing != "replace":
            return "refused", f"the target has an agent of that id that cannot be read: {exc}"
    except OF_ONE_AGENT as exc:
        return "refused", str(exc)
    try:
        await _replace(store, records, there)
    except OF_ONE_AGENT as exc:
        return "refused", str(exc)
    return "replaced", ""


async def _replace(store: ExtendedStore, records: AgentRecords, there: AgentRecords | None) -> None:
    """Write the other agent in the place of this one, in one write.

    An agent that is damaged, or in a store without an engine, is deleted first: after a kill in between, a repetition
    of the import writes it. If the second write is refused, the deleted agent comes back.
    """
    if isinstance(store, EngineStore):
        with suppress(CorruptRecordError):
            return await store._replace_agent(records.agent_id, records)
    await store.delete(records.agent_id)
    try:
        await store.import_agent(records.agent_id, records)
    except OF_ONE_AGENT:
        if there is not None:
            await store.import_agent(records.agent_id, there)
        raise
