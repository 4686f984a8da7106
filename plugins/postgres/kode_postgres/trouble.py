"""The failures of a call, and the decision whether to repeat it."""

from __future__ import annotations

import random
import time
from typing import Final

from kode_core.errors import StoreBusyError
from kode_postgres.errors import is_conflict, is_locked_out, is_overdue, is_starting

__all__ = ["LONGEST_PAUSE_S", "AgainError", "LostError", "Trouble", "locked_s", "timed_out"]

_LOCKED_S: Final = 8.0
_CONFLICTS: Final = 20
_READS: Final = 3
LONGEST_PAUSE_S: Final = 0.25


class LostError(Exception):
    """The connection broke, or went silent, while a statement was running; the cause has the details."""


class AgainError(StoreBusyError):
    """Other sessions were in the way: nothing was written, and the next attempt sees their changes."""


def timed_out(exc: BaseException) -> bool:
    """True if *exc* says that no answer came in time."""
    cause = exc.__cause__
    return isinstance(cause, LostError) and is_overdue(cause.__cause__)


def locked_s(given_millis: int | None, answer_s: float) -> float:
    """How many seconds to wait for an agent that another session keeps locked."""
    return min(_LOCKED_S, 0.8 * answer_s) if given_millis is None else given_millis / 1000


class Trouble:
    """The failures of a call so far.

    Attributes:
        writes: True if the call writes. A read that was not answered in time is not repeated, since it would not be
            answered the next time either; a read that ends its connection is repeated only a few times.
    """

    def __init__(self, locked_s: float, connect_s: float, *, writes: bool, waits: bool = True) -> None:
        self.writes = writes
        self._waits = waits
        self._connect_s = connect_s
        self._locked_s = locked_s
        self._locked_since: float | None = None
        self._lost_since: float | None = None
        self._lost = 0
        self._unanswered = 0
        self._conflicts = 0
        self._locked = 0

    def record(self, exc: Exception) -> float | None:
        """How many seconds to wait before the next attempt; None if there should be none."""
        if is_conflict(exc) or isinstance(exc, AgainError):
            self._conflicts += 1
            return random.uniform(0, 0.005 * self._conflicts) if self._conflicts < _CONFLICTS else None  # noqa: S311
        if is_locked_out(exc):
            return self._note_locked()
        if isinstance(exc, LostError):
            self._lost += 1
            if is_overdue(exc.__cause__):
                self._unanswered += 1
                if not self.writes or not self._waits or self._unanswered > 1:
                    return None
            elif not self.writes and self._lost >= _READS:
                return None
        elif not is_starting(exc):
            return None
        now = time.monotonic()
        self._lost_since = now if self._lost_since is None else self._lost_since
        if now - self._lost_since > self._connect_s:
            return None
        return random.uniform(0.01, 0.03) if self._lost < 5 else random.uniform(0.05, 0.2)  # noqa: S311

    def _note_locked(self) -> float | None:
        now = time.monotonic()
        self._locked_since = now if self._locked_since is None else self._locked_since
        if not self._waits or now - self._locked_since > self._locked_s:
            return None
        self._locked += 1
        return random.uniform(0.3, 1.0) * min(0.005 * (1 << self._locked), LONGEST_PAUSE_S)  # noqa: S311
