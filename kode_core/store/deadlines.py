"""The deadlines of calls, all on one timer of the event loop.

``asyncio.timeout`` makes a timer for each call, which costs more than many of the calls themselves. Deadlines of one
length expire in the order in which they began, so one timer, for the first of each length, serves all.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

__all__ = ["Deadline", "Deadlines"]


class Deadline:
    """End the work inside ``with`` if it takes too long.

    Raises:
        TimeoutError: on leaving; its cause is the cancellation that ended the call.
    """

    __slots__ = ("_all", "_cancellations", "_is_over", "_task", "seconds", "when")

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self.seconds = seconds
        self.when = 0.0
        self._all = deadlines
        self._is_over = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("stores are used inside tasks, as asyncio.run makes one")
        self._task = task
        self._cancellations = task.cancelling()
        self._all.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._all.end(self)
        if self._is_over and self._task.uncancel() <= self._cancellations and kind is asyncio.CancelledError:
            raise TimeoutError from exc

    def rest(self) -> None:
        """Do not expire until :meth:`begin_anew`."""
        self._all.end(self)

    def begin_anew(self) -> None:
        """Expire after the full time from now on, unless it has already expired."""
        if not self._is_over:
            self._all.end(self)
            self._all.begin(self)

    def goes_on(self) -> None:
        """Begin anew if it is counted still; its subject may go on after its end."""
        if self._all.counts(self):
            self.begin_anew()

    def expire(self) -> None:
        """End the work: the time is over."""
        self._is_over = True
        self._task.cancel()


class Deadlines:
    """The deadlines of one store, all in one event loop."""

    def __init__(self) -> None:
        self._lines: dict[float, dict[Deadline, None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, deadline: Deadline) -> None:
        """Start to count a deadline."""
        loop = asyncio.get_running_loop()
        deadline.when = loop.time() + deadline.seconds
        line = self._lines.get(deadline.seconds)
        if line is None:
            line = self._lines[deadline.seconds] = {}
        line[deadline] = None
        if self._timer is None or deadline.when < self._timer.when():
            self._wind(loop, deadline.when)

    def counts(self, deadline: Deadline) -> bool:
        """Whether it has begun, and did not end."""
        return deadline in self._lines.get(deadline.seconds, ())

    def end(self, deadline: Deadline) -> None:
        """Stop counting a deadline; a second call does nothing."""
        line = self._lines.get(deadline.seconds)
        if line is not None:
            line.pop(deadline, None)
            if not line:
                del self._lines[deadline.seconds]

    def _wind(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(when, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the overdue calls, and set the timer for the next deadline."""
        self._timer = None
        now = loop.time()
        for line in list(self._lines.values()):
            for deadline in list(line):
                if deadline.when > now:
                    break
                self.end(deadline)
                deadline.expire()
        first = [next(iter(line)).when for line in self._lines.values()]
        if first:
            self._wind(loop, min(first))
