"""Calls of a history: to make and to print.

A step names its values (``m0``), so that a history is short to read and the same for every store; what the names stand
for is in :mod:`kode_conformance.histories.vocabulary`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, cast

from kode_conformance.histories.model import has_repeats
from kode_conformance.histories.vocabulary import REFUSED, base_of, values_of
from kode_core.errors import InvalidArgumentError
from kode_core.model import Timeline

__all__ = ["Step", "listed", "refusal_of"]


class Step(NamedTuple):
    """One call.

    Attributes:
        op: the method, or ``reopen``; ``look`` at all agents, or ``prime`` what stores remember of them; ``pause``; or
            an action on a lock: ``acquire``, ``release``, ``release_old``, ``lapse``.
        agent: ``a``, ``A``, ``ab``, or ``f1`` for the first fork.
        args: names of values, or lists of them; numbers.
        named: the same, for ``save_turn``; filters of ``delete_many``; the point of a ``fork``.
        via: which of the open stores makes the call.
        seen_by: which of them is looked at afterwards; none if it is negative.
        fence: ``held`` or ``ended``: the lease that the write is made under.
        expect: ``present``, ``old`` or ``absent``: the version that the write demands.
    """

    op: str
    agent: str
    args: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()
    via: int = 0
    seen_by: int = 0
    fence: str = ""
    expect: str = ""

    def __str__(self) -> str:
        given = [_shown(arg) for arg in self.args] + [f"{name}={_shown(arg)}" for name, arg in self.named]
        if self.op == "reopen":
            return f"close store {self.via + 1} and open it again"
        if self.op == "pause":
            return "wait for two milliseconds"
        if self.op in ("look", "prime"):
            return "look at everything"
        under = f" under a lease that is {self.fence}" if self.fence else ""
        given = given if self.op == "delete_many" else [self.agent, *given]
        under += f" demanding {_VERSIONS[self.expect]}" if self.expect else ""
        return f"store {self.via + 1}: {self.op}({', '.join(given)}){under}"

    def names(self) -> Iterator[str]:
        """The values it names."""
        if self.op in ("delete_many", "fork"):
            return
        for arg in (*self.args, *(arg for _, arg in self.named)):
            if isinstance(arg, str):
                yield arg
            elif isinstance(arg, tuple):
                yield from arg


_VERSIONS: Final = {"present": "the present version", "old": "an older version", "absent": "that it does not exist"}


def refusal_of(step: Step) -> type[Exception] | None:
    """The error that a store must raise for a value that no store may take, or for an event that occurs twice; None for
    neither.
    """
    for name in step.names():
        if base_of(name) in REFUSED:
            return REFUSED[base_of(name)]
    events = step.args[0] if step.op == "append_events" else dict(step.named).get("events", ())
    if has_repeats([cast(Timeline, value) for name in events for value in values_of(name)]):
        return InvalidArgumentError
    return None


def _shown(arg: Any) -> str:
    return f"[{', '.join(arg)}]" if isinstance(arg, tuple) else str(arg)


def listed(steps: Sequence[Step], *, values: bool = True) -> str:
    """A history for a person: numbered calls, then the *values* they name."""
    lines = [f"  {i}. {step}" for i, step in enumerate(steps, 1)]
    if not values:
        return "\n".join(lines)
    names = dict.fromkeys(base_of(name) for step in steps for name in step.names() if base_of(name))
    single = {name: values_of(name)[0] for name in names if "#" not in name}
    return "\n".join([*lines, *(f"  {name} = {value!r:.400}" for name, value in single.items())])
