"""Turns of several stores that write one agent. They have no coordinator: each store reads the turns from the head.

A writer whose swap is refused has met another one. From then on they take turns. A writer that swaps the head records
in it the last revision of its turn. The other writers wait for about as many revisions as pass between two turns of one
writer, a number that the head also holds, and then for the end of a turn:

    revision   41  42  43  44  45  46  47  48  49
    writer      A   A   A   B   B   B   C   C   C      A is back at 50: ``others`` is 6, ``turn_ends`` of 44 is 46

A writer takes the head when no turn is under way. It also takes a head that has not moved for a while: its writer had
nothing more to write, or is dead.

All this is advice. Only the condition of a swap keeps two writers apart.
"""

from __future__ import annotations

import random
import time
from typing import Final

from kode_core.engines.recent import Recent
from kode_core.engines.record.state import OpenedHead

__all__ = ["AllTurns", "WriterTurns"]

_KNOWN: Final = 512
_MOST_SWAPS: Final = 12
_LONG_TURN, _SHORT_TURN = 0.5, 0.1
"""The most seconds of a turn with more than two swaps: fewer if a round takes long already."""
_LONG_ROUND: Final = 5.0
_MOST_OTHERS: Final = 10_000
_SOONEST, _LATEST = 0.7, 1.2
"""The share of the other writers' revisions that a writer waits for, drawn between these two."""
_SPREAD: Final = 0.9, 1.2
"""A pause is drawn between these shares of its length, so that not all writers look at the same instant."""
_SLOW: Final = 8
"""A turn counts as given up when the head has not moved for this many times the duration of a revision."""
_SLOWEST: Final = 1.0
_LEAST_PAUSE, _MOST_PAUSE = 0.001, 2.0
_LATEST_SETTLE: Final = 10.0


class WriterTurns:
    """The turns of one writer, which is one open store, with one agent."""

    def __init__(self) -> None:
        self.pace = 0.0
        self._is_met = False
        self._swaps = 1
        self._done = 0
        self._last = 0
        self._last_at = 0.0
        self._since: int | None = None
        self._since_at = 0.0
        self._seen: int | None = None
        self._seen_at = 0.0
        self._due = 0.0
        self._pause = 0.0

    # --- before a swap

    def goes_on(self, head: OpenedHead) -> bool:
        """Whether the writer may go on from the head that it wrote itself. If not, its turn is over."""
        if not self._is_met:
            return True
        if self._since is None and self._done >= self._swaps:
            self._swaps = min(2 * self._swaps, self._most_swaps(head))
            self._wait(head)
        return self._since is None and time.monotonic() - self._last_at < _MOST_SWAPS * self.pace

    def may_swap(self, head: OpenedHead) -> bool:
        """Whether the writer may swap a head that it has just read. If not, it reads again after :meth:`pause`."""
        rev, end = head.record.rev, head.state.turn_ends
        if rev in (self._last, end) or rev > end or self._is_slow(rev):
            return True
        waited = 0 if self._since is None else rev - self._since
        if waited >= _MOST_SWAPS:  # the others' revisions show the present pace
            self.pace = min((time.monotonic() - self._since_at) / waited, _SLOWEST)
        left = max(end - rev, self._due - waited)
        overdue = waited / max(2 * head.state.others, _MOST_SWAPS)
        sooner = min(max(1.0, overdue), 2.0)  # a writer that has waited for too long looks more often
        self._pause = left * max(self.pace, _LEAST_PAUSE) * random.uniform(*_SPREAD) / sooner  # noqa: S311
        return False

    def _is_slow(self, rev: int) -> bool:
        """Whether the head moves so slowly that no writer is busy. This also remembers the revision and its time."""
        now, seen, at = time.monotonic(), self._seen, self._seen_at
        if rev != seen:
            self._seen, self._seen_at = rev, now
        return seen is not None and now - at > _SLOW * self.pace * max(rev - seen, 0.5)

    def pause(self) -> float:
        """The seconds to wait before the head is read; 0 to read it now."""
        pause, self._pause = self._pause, 0.0
        return pause and min(max(pause, _LEAST_PAUSE), _MOST_PAUSE)

    def head_fields(self, old: OpenedHead | None) -> dict[str, int]:
        """The fields of the next head that concern turns."""
        if old is None or not self._is_met:
            return {"others": 0 if old is None else old.state.others, "turn_ends": 0}
        others, rev = old.state.others, old.record.rev
        if self._since is None:
            return {"others": others, "turn_ends": rev + 1 + max(self._swaps - self._done - 1, 0)}
        found = min(max(rev - self._since, 0), _MOST_OTHERS)
        weight = 2 if found > others else 4  # rises fast, falls slowly
        others = others + (found - others) // weight if found else others // 4
        return {"others": others, "turn_ends": rev + self._swaps}

    # --- after it

    def lost(self, head: OpenedHead | None, seconds: float) -> None:
        """Record that another writer was faster than a swap of this head, which took *seconds*."""
        if head is None:
            return
        self._is_met = True
        self.pace = self.pace or 2 * seconds
        if self._since is None:
            self._swaps = max(1, min(self._done, self._most_swaps(head)))
            self._wait(head)
        else:
            self._pause = max(self.pace, _LEAST_PAUSE) * random.uniform(0, 1)  # noqa: S311
        self._seen, self._seen_at = head.record.rev, time.monotonic()

    def won(self, head: OpenedHead | None, seconds: float) -> None:
        """Record that a swap of this head succeeded and took *seconds*."""
        self.pace = seconds if not self.pace else self.pace + (seconds - self.pace) / 4
        if head is None:
            return
        if self._since is not None or head.record.rev != self._last:
            self._is_met = self._is_met and (self._since is None or head.record.rev > self._since)
            self._since, self._done = None, 0
        self._done += 1
        self._last, self._last_at, self._seen = head.record.rev + 1, time.monotonic(), None

    def settle_after(self, head: OpenedHead) -> float:
        """The seconds within which the next swap should come and settle this head for free.

        It is the writer's own, or another's after the end of a turn.
        """
        revs = 2 * head.state.others if head.record.rev == head.state.turn_ends else 4
        return min(revs * self.pace, _LATEST_SETTLE)

    def _most_swaps(self, head: OpenedHead) -> int:
        seconds = _LONG_TURN if head.state.others * self.pace < _LONG_ROUND else _SHORT_TURN
        return max(2, min(_MOST_SWAPS, int(seconds / max(self.pace, _LEAST_PAUSE))))

    def _wait(self, head: OpenedHead) -> None:
        self._since, self._since_at = head.record.rev, time.monotonic()
        self._due = head.state.others * random.uniform(_SOONEST, _LATEST)  # noqa: S311
        self._pause = max(self._due, 1) * max(self.pace, _LEAST_PAUSE)


class AllTurns:
    """The turns of one writer with each agent that it has written lately."""

    def __init__(self) -> None:
        self._turns = Recent[str, WriterTurns](_KNOWN)

    def of(self, agent_id: str) -> WriterTurns:
        """The turns with an agent; new ones if it was not written lately."""
        turns = self._turns.get(agent_id)
        if turns is None:
            turns = self._turns[agent_id] = WriterTurns()
        return turns
