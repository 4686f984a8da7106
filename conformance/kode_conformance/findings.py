"""How much a machine looks at a store, and what it finds."""

from __future__ import annotations

from typing import Final, NamedTuple

from kode_conformance.context import Violation
from kode_conformance.looks import Look

__all__ = ["GOES_WRONG", "NOT_ALWAYS", "Finding", "How"]

GOES_WRONG: Final = "this history goes wrong at"
"""How a finding begins that was made by a history."""
NOT_ALWAYS: Final = "(not every time)"
"""Stands in its first line where the shortened history, run some times, did not always fail."""


class Finding(Violation):
    """What went wrong at a step.

    Attributes:
        look: what was looked at; None when it was the call itself, or what the store makes up.
        want: what the look must give.
        via: through which store.
        is_plain: the difference is not in what the store makes up itself, as times.
        is_of_the_call: a call ended with an error, or with none where there must be one.
        is_of_times: of the times of messages.
    """

    def __init__(
        self,
        text: str,
        look: Look | None = None,
        want: object = None,
        via: int = 0,
        *,
        is_plain: bool = True,
        is_of_the_call: bool = False,
        is_of_times: bool = False,
    ) -> None:
        super().__init__(text)
        self.look = look
        self.want = want
        self.via = via
        self.is_plain = is_plain
        self.is_of_the_call = is_of_the_call
        self.is_of_times = is_of_times

    @property
    def kind(self) -> str:
        """What it is about: while a history is shortened it must stay the same."""
        if self.look is not None:
            return self.look.method
        return "times" if self.is_of_times else "the call" if self.is_of_the_call else "other"

    def at(self, step: int) -> Finding:
        """The same, with the number of the step."""
        self.args = (f"step {step}: {self}",)
        return self


class How(NamedTuple):
    """How much a machine looks.

    Attributes:
        each: after each step; otherwise at the end alone.
        queries: not only what is loaded by id, but queries too.
        both: through all stores, and not one.
        rounds: how often everything is looked at in the end, with other filters and pages each time.
        end: everything in the end, and that nothing is left once it was deleted.
        restart: and after all stores were closed and opened again.
        metrics: what each call moves the counters by.
        follow: what followers of the logs see; for how many seconds they may see nothing.
    """

    each: bool = True
    queries: bool = False
    both: bool = False
    rounds: int = 1
    end: bool = True
    restart: bool = False
    metrics: bool = False
    follow: float = 0.0
