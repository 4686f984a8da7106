"""The outcome of each agent that was moved, and the report of a whole move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, get_args

from msgspec import field

from kode_core.errors import InvalidArgumentError
from kode_core.model.base import Shown

__all__ = ["DONE", "CopyReport", "Existing", "MovedAgent", "OnAgent", "Outcome", "Sum", "checked_existing"]

Outcome: TypeAlias = Literal[
    "copied", "replaced", "importable", "known", "skipped", "deleted", "gone", "refused", "damaged"
]  # fmt: skip
Existing: TypeAlias = Literal["refuse", "skip", "replace"]

DONE: Final = ("copied", "replaced", "importable")
"""The outcomes of agents whose records are counted."""
_TROUBLES: Final = ("refused", "damaged")
_MOST: Final = 1_000


class MovedAgent(Shown, frozen=True, kw_only=True, omit_defaults=True):
    """The outcome of one agent of a copy, an export or an import.

    Attributes:
        outcome: ``copied``; ``replaced`` if other records were in the target; ``importable`` without a target;
            ``known`` if the target had it already, with equal records; ``skipped`` if the target has other records,
            which were to stay; ``deleted`` in the target, as it was in the source; ``gone`` from the source
            meanwhile; ``refused``, or ``damaged`` in the source, which ``reason`` explains.
        counts: the number of its records of each kind.
        digest: SHA-256 of its lines in an archive; equal digests mean equal records.
        size: the bytes of these lines.
    """

    agent_id: str
    outcome: Outcome
    reason: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    size: int = 0

    @property
    def is_trouble(self) -> bool:
        """True if the agent, or its newest state, is not in the target."""
        return self.outcome in _TROUBLES


class CopyReport(Shown, frozen=True, kw_only=True):
    """The outcome of a whole copy, export or import.

    Attributes:
        outcomes: how often each outcome of ``MovedAgent`` came.
        counts: the number of records of each kind that were written, or would be.
        size: the bytes of the written records, as lines of an archive.
        troubles: the agents that were refused or are damaged, up to 1,000 of them; ``outcomes`` counts all.
        left_out: names of damaged records of the source whose agents could not be found out.
        passes: how often the source was gone through.
        verified: the number of agents of which both stores were compared and found equal; None if they were not
            compared.
        differences: the first differences that the comparison found, up to 1,000 of them, as sentences.
        is_equal: True if the target has everything that was selected in the source, apart from skipped agents unless
            both stores were compared; None if that was not looked at.
    """

    outcomes: dict[str, int]
    counts: dict[str, int]
    size: int
    troubles: tuple[MovedAgent, ...] = ()
    left_out: tuple[str, ...] = ()
    passes: int = 1
    verified: int | None = None
    differences: tuple[str, ...] = ()
    is_equal: bool | None = None

    @property
    def is_whole(self) -> bool:
        """True if every selected agent was brought, and no comparison found a difference."""
        counted = not any(self.outcomes.get(name) for name in _TROUBLES)
        return counted and not self.left_out and not self.differences and self.is_equal is not False


OnAgent: TypeAlias = Callable[[MovedAgent], Any]


class Sum:
    """Adds up outcomes while they come."""

    def __init__(self, on_agent: OnAgent | None) -> None:
        self._on_agent = on_agent
        self.outcomes = Counter[str]()
        self.counts = Counter[str]()
        self.size = 0
        self.troubles: dict[str, MovedAgent] = {}
        self.left_out: tuple[str, ...] = ()

    def add(self, one: MovedAgent) -> None:
        """Count *one*, and hand it to the caller. A trouble that was there before is not counted again."""
        before = self.troubles.get(one.agent_id)
        if before is not None:
            if before == one:
                return
            self.outcomes[before.outcome] -= 1
            del self.troubles[one.agent_id]
        if one.is_trouble:
            self.troubles[one.agent_id] = one
        self.outcomes[one.outcome] += 1
        if one.outcome in DONE:
            self.counts.update(one.counts)
            self.size += one.size
        if self._on_agent is not None:
            self._on_agent(one)

    def report(self, **more: Any) -> CopyReport:
        """The report so far."""
        return CopyReport(
            outcomes={name: number for name, number in self.outcomes.items() if number},
            counts=dict(self.counts),
            size=self.size,
            troubles=tuple(self.troubles.values())[:_MOST],
            left_out=self.left_out,
            **more,
        )


def checked_existing(existing: object) -> Existing:
    """*existing*, checked."""
    for name in get_args(Existing):
        if type(existing) is str and existing == name:
            return name  # type: ignore[no-any-return]
    raise InvalidArgumentError(f"existing must be one of {', '.join(get_args(Existing))}, got {existing!r:.40}")
