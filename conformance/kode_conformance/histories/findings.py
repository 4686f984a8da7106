"""How much a machine looks at a store, and its findings."""

from __future__ import annotations

from typing import Final, NamedTuple

from kode_conformance.context import Violation
from kode_conformance.histories.looks import Look

__all__ = ["GOES_WRONG", "NOT_ALWAYS", "Finding", "How"]

GOES_WRONG: Final = "this history goes wrong at"
"""The beginning of a finding that comes from a history."""
NOT_ALWAYS: Final = "(not every time)"
"""A part of its first line if the shortened history, run some times, did not always fail."""


class Finding(Violation):
    """The fault at a step.

    Attributes:
        look: the read that went wrong; None for the call itself, or for values that the store generates.
        want: the result that the look must give.
        via: the number of the store.
        is_plain: True if the difference is not in values that the store generates, such as times.
        is_of_the_call: True if a call ended with an error, or without an error that it must raise.
        is_of_times: True if the times of messages are wrong.
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
        """The subject of the finding, which must stay the same while a history is shortened."""
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
        each: True to look after each step; otherwise only at the end.
        queries: True to make queries, and not only loads by id.
        both: True to look through all stores, and not only one.
        rounds: how often everything is looked at in the end, with other filters and pages each time.
        end: True to look at everything at the end, and to check that a delete leaves nothing.
        restart: True to look again after all stores were closed and opened again.
        metrics: True to check by how much each call moves the counters.
        follow: for how many seconds followers of the logs may see nothing; 0 for no followers.
        versions: True to ask for the versions of agents, for their sessions, and for the times of messages.
        documents: True to look at the documents of the caller's own.
    """

    each: bool = True
    queries: bool = False
    both: bool = False
    rounds: int = 1
    end: bool = True
    restart: bool = False
    metrics: bool = False
    follow: float = 0.0
    versions: bool = False
    documents: bool = False
