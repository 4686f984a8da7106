"""The result of a run of retention, for each policy and for each agent."""

from __future__ import annotations

from typing import Literal, TypeAlias

from kode_core.model.base import Shown
from kode_core.report import PruneResult

__all__ = ["Outcome", "PolicyReport", "Retained", "RetentionReport"]

Outcome: TypeAlias = Literal["kept", "deleted", "pruned", "locked", "changed", "damaged"]


class Retained(Shown, frozen=True, kw_only=True):
    """The outcome of one agent.

    Attributes:
        policy: the name of the policy that counts for the agent.
        outcome: ``kept`` as it is; ``deleted``; ``pruned``, of which ``removed`` has the numbers; ``locked``, and left,
            because a worker holds its lock; ``changed``, and left, because others wrote to it or deleted it after it
            was found; ``damaged``, and left, which ``reason`` explains.
    """

    agent_id: str
    policy: str
    outcome: Outcome
    removed: PruneResult = PruneResult()
    reason: str = ""


class PolicyReport(Shown, frozen=True, kw_only=True):
    """The agents and records that a policy removed, or would remove in a dry run.

    Attributes:
        name: the name of the policy.
        agents: the number of agents for which it counts.
        deleted: the number of agents that were deleted.
        pruned: the number of agents of which parts were removed, and ``removed`` the number of their records.
        locked: the number of agents that were left because a worker holds their lock.
        changed: the number of agents that were left because others wrote to them, or deleted them, meanwhile.
        damaged: the number of agents that were left because a record of theirs cannot be read.
    """

    name: str
    agents: int = 0
    deleted: int = 0
    pruned: int = 0
    removed: PruneResult = PruneResult()
    locked: int = 0
    changed: int = 0
    damaged: int = 0


class RetentionReport(Shown, frozen=True, kw_only=True):
    """The result of ``apply_retention``.

    Attributes:
        policies: a report for each policy, in the order of the policies.
        unmatched: the number of agents for which no policy counts; they stay.
        damaged: the number of agents that were left because they, or a record of theirs, cannot be read.
        problems: a sentence for each of the first 100 of them.
        now: the time from which ages were counted, in milliseconds since the epoch.
        dry_run: whether nothing was removed.
    """

    policies: tuple[PolicyReport, ...]
    unmatched: int = 0
    damaged: int = 0
    problems: tuple[str, ...] = ()
    now: int
    dry_run: bool = False
