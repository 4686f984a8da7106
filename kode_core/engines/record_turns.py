"""Whose turn it is to write an agent, where several stores write it: nobody says so, each sees it by the head.

A writer whose swap is refused has met another one. From then on writers take turns: one that swapped the head goes on
for a few swaps, and waits then until about as many revisions were made by others as others make between two turns.
Every turn begins with a head that says how many that were, so that all wait for as long as there are others, and a
writer that comes anew knows it at once. When the head does not move, nobody else writes, and the wait is over.

All this is advice. Nothing but the condition of a swap keeps two writers apart.
"""

from __future__ import annotations

import random
import time
from typing import Final

from kode_core.engines.recent import Recent
from kode_core.engines.record_state import AgentHead

__all__ = ["Turn", "Turns"]

_KNOWN: Final = 512
_SWAPS: Final = 8
"""How many swaps a turn has at most."""
_LEAST_SWAPS: Final = 2
_SECONDS: Final = 0.1
"""How long a turn lasts, if it has more than the least number of swaps."""
_MOST_OTHERS: Final = 10_000
_LONGEST_PAUSE: Final = 2.0
_SHORTEST_PAUSE: Final = 0.001


class Turn:
    """Where one writer is of its turns with one agent.

    Attributes:
        pace: how many seconds a write takes.
        since: the revision after which it waits for others; None in its turn.
    """

    def __init__(self) -> None:
        self.pace = 0.0
        self.since: int | None = None
        self._due = 0.0
        self._left = 0
        self._is_met = False

    @property
    def swaps(self) -> int:
        """How many swaps a turn has."""
        return max(_LEAST_SWAPS, min(_SWAPS, int(_SECONDS / max(self.pace, 1e-6))))

    def is_over(self, head: AgentHead) -> bool:
        """Whether others have to have theirs before the writer goes on from the head that it wrote."""
        if self.since is None and self._is_met and self._left <= 0:
            self._wait(head)
        return self.since is not None

    def lost(self, head: AgentHead | None, seconds: float) -> None:
        """Another one was faster than a swap of this head, which took so long."""
        if head is None:
            return
        self._is_met = True
        self.pace = self.pace or 2 * seconds
        if self.since is None:
            self._wait(head)
        else:  # it was due: soon again
            self._due = head.record.rev - self.since + random.uniform(0, self.swaps)  # noqa: S311

    def won(self, head: AgentHead | None, seconds: float) -> None:
        """The head is that of another revision now, which took so long; the next one is of the same turn."""
        self.pace = seconds if not self.pace else self.pace + (seconds - self.pace) / 8
        if self.since is not None:
            self._is_met = self._others(head) > 0
            self.since, self._left = None, self.swaps
        self._left -= 1

    def _wait(self, head: AgentHead) -> None:
        self.since = head.record.rev
        self._due = max(head.state.others, self.swaps) * random.uniform(0.4, 1.1)  # noqa: S311

    def _others(self, head: AgentHead | None) -> int:
        return 0 if self.since is None or head is None else min(max(head.record.rev - self.since, 0), _MOST_OTHERS)

    def others(self, head: AgentHead | None) -> int:
        """How many revisions others make between two turns, for the head that comes after this one."""
        before = 0 if head is None else head.state.others
        if self.since is None:
            return before
        found = self._others(head)
        return (3 * before + found) // 4 if found else before // 4

    # --- waiting

    def pause(self, seen: int) -> float:
        """How long to wait until the head is looked at once more, when its revision was *seen* last."""
        assert self.since is not None
        left = max(self._due - (seen - self.since), 0) * self.pace
        return min(max(left / 2, self.pace, _SHORTEST_PAUSE), _LONGEST_PAUSE)

    def has_come(self, seen: int, now: int) -> bool:
        """Whether the head, of which one revision was seen and then another one, may be swapped."""
        return self.since is None or now <= seen or now - self.since >= self._due


class Turns:
    """The turns of all agents that a process writes."""

    def __init__(self) -> None:
        self._turns = Recent[str, Turn](_KNOWN)

    def of(self, agent_id: str) -> Turn:
        """The writer's turns with an agent."""
        turn = self._turns.get(agent_id)
        if turn is None:
            turn = self._turns[agent_id] = Turn()
        return turn
