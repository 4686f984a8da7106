"""One agent into the target: written in one piece, or compared with the agent of the target."""

from __future__ import annotations

from functools import partial
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

__all__ = ["load", "moved", "place"]

_OF_THE_AGENT: Final = (InvalidArgumentError, UnsupportedError, StoreBusyError, StoreTimeoutError, ConflictError)
"""Errors that end the import of one agent and of no other: one that is large may take longer than a call may."""
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
    end = partial(moved, records, taken)
    agent_id, is_unsure = records.agent_id, False
    try:
        if await store.load_version(agent_id) == ABSENT:  # a hint: an import is tried only where it may succeed
            await store.import_agent(agent_id, records)
            return end("copied")
    except ConflictError:
        pass
    except OutcomeUnknownError:
        is_unsure = True
    except _OF_THE_AGENT as exc:
        return end("refused", str(exc))
    there: AgentRecords | None = None
    try:
        there = await store.load_agent(agent_id)
        if there is None:
            await store.import_agent(agent_id, records)
            return end("copied")
        if (await fingerprint(there)).digest == taken.digest:
            return end("copied" if is_unsure else "known")
        if existing == "skip":
            return end("skipped", _OTHERS)
        if existing == "refuse":
            return end("refused", f"{_OTHERS}, which existing='refuse' leaves as they are")
    except CorruptRecordError as exc:
        if existing != "replace":
            return end("refused", f"the target has an agent of that id that cannot be read: {exc}")
    except _OF_THE_AGENT as exc:
        return end("refused", str(exc))
    try:
        await _replace(store, records, there)
    except _OF_THE_AGENT as exc:
        return end("refused", str(exc))
    return end("replaced")


async def _replace(store: ExtendedStore, records: AgentRecords, there: AgentRecords | None) -> None:
    """Delete the agent and write the other one; if that is refused, the deleted one comes back."""
    await store.delete(records.agent_id)
    try:
        await store.import_agent(records.agent_id, records)
    except _OF_THE_AGENT:
        if there is not None:
            await store.import_agent(records.agent_id, there)
        raise
