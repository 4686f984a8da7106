"""The reads of engines: verbs that are made of them, and checks of the rows before they are passed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import update_wrapper
from inspect import Parameter, Signature, signature
from typing import Any, Final, ParamSpec, TypeVar

from kode_core.batch import ListKind, ListRows
from kode_core.codec import Body
from kode_core.errors import CorruptRecordError
from kode_core.ids import row_name

__all__ = ["MOST", "check_head_numbers", "list_rows", "unless_damaged", "verb_of"]

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

MOST: Final = 2**62
"""More than any version, count or time of a head, and more than any offset."""


def verb_of(read: Callable[..., Any], *, given: int = 1) -> Callable[[F], F]:
    """A decorator for a verb that does *read*: it gets the name, the docstring and the parameters of the read.

    The first *given* parameters of the read, such as a connection, are the engine's and not the caller's.
    """
    taken = [Parameter("self", Parameter.POSITIONAL_ONLY), *list(signature(read).parameters.values())[given:]]

    def named(verb: F) -> F:
        update_wrapper(verb, read).__signature__ = Signature(taken)  # type: ignore[attr-defined]
        return verb

    return named


def unless_damaged(left_out: list[str], read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """The result of *read*; None if it finds damage, whose name goes to *left_out* (QRY-9)."""
    try:
        return read(*args, **kwargs)
    except CorruptRecordError as exc:
        left_out.append(exc.record)
        return None


def check_head_numbers(values: Sequence[Any], agent_id: str) -> None:
    """Raise CorruptRecordError unless the versions, counts and times of a head are possible ones (OPS-4)."""
    if not all(type(value) is int and 0 <= value < MOST for value in values):
        raise CorruptRecordError(f"the head of agent {agent_id!r}", "its row holds what was never written")


def list_rows(
    agent_id: str,
    kind: ListKind,
    head: tuple[int, int],
    found: Sequence[tuple[Any, Any, Any, Any]],
    start: int = 0,
    limit: int | None = None,
) -> ListRows:
    """The rows of a list from position *start* on, at most *limit*, from the result of a query at one instant.

    *head* is the list's version and count, (0, 0) if the agent has no head; *found* has (position, body, digest,
    created_at) in order of position, of any type.

    Raises:
        CorruptRecordError: rows are missing or too many, or contain values that were never written (OPS-4).
    """
    check_head_numbers(head, agent_id)
    version, count = head
    expected = max(0, count - start) if limit is None else min(max(0, count - start), limit)
    rows = []
    for due, (position, text, digest, created_at) in enumerate(found, start):
        if position != due:
            raise _misplaced(agent_id, kind, count, due, position)
        if not (type(text) is str and type(digest) is bytes and type(created_at) is int):
            raise CorruptRecordError(row_name(kind, due, agent_id), "its row holds what was never written")
        rows.append((Body(text, digest), created_at))
    if len(rows) != expected:
        stored = f"there are none from {start + len(rows)} on" if len(rows) < expected else "there are more"
        raise CorruptRecordError(_list_name(agent_id, kind), f"{count} are counted, and {stored}")
    return ListRows(version, rows)


def _misplaced(agent_id: str, kind: ListKind, count: int, expected: int, position: Any) -> CorruptRecordError:
    if type(position) is int and expected < position and expected < count:
        return CorruptRecordError(row_name(kind, expected, agent_id), "it is missing")
    return CorruptRecordError(_list_name(agent_id, kind), "a row stands where none was written")


def _list_name(agent_id: str, kind: ListKind) -> str:
    return f"the {kind.value.replace('_', ' ')} of agent {agent_id!r}"
