"""The times that a store gives to messages: which it may give after a change, from those it gave before (MSG-4)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from kode_conformance.context import difference
from kode_core.model import Message

__all__ = ["times_problem"]


def times_problem(old: Sequence[Message], times: Sequence[int], new: Sequence[Message], given: Sequence[int]) -> str:
    """The fault of one write in the times of messages; empty when there is none.

    Where equal messages leave open which of them stayed, every reading is allowed.

    Args:
        old: the list before.
        times: of these.
        new: the list after.
        given: the times of these.
    """
    names = _names([*old, *new])
    before, after = names[: len(old)], names[len(old) :]
    if after[: len(before)] == before:
        return _grown(times, given)
    kept = _kept_by_contents(before, times, after, given)
    if kept:
        return kept
    exact = _replaced(before, after)
    wrong = next((i for i in exact if given[i] != times[i]), None)
    if wrong is not None:
        return f"message {wrong} was replaced at its position: its time was {times[wrong]} and became {given[wrong]}"
    if list(times) == sorted(times) and _in_order(before, after) and list(given) != sorted(given):
        return f"nothing moved past another message, and the times are out of order: {_shown(given)}"
    return ""


def _grown(times: Sequence[int], given: Sequence[int]) -> str:
    """The list kept its items and got more at its end."""
    wrong = next((i for i, time in enumerate(times) if given[i] != time), None)
    if wrong is not None:
        return f"message {wrong} stayed, and its time was {times[wrong]} and became {given[wrong]}"
    latest = max(times, default=None)
    for i in range(len(times), len(given)):
        if latest is not None and given[i] < latest:
            return f"message {i} was appended with the time {given[i]}, and one before it has {latest}"
        latest = given[i]
    return ""


def _kept_by_contents(before: Sequence[int], times: Sequence[int], after: Sequence[int], given: Sequence[int]) -> str:
    """A message that occurs once, before and after, keeps its time; and so do all messages of a list that lost its
    ends.
    """
    had, has = _by_name(before, times), _by_name(after, given)
    is_part = any(before[k : k + len(after)] == after for k in range(len(before)))
    for name in had.keys() & has.keys():
        kept = sum((Counter(had[name]) & Counter(has[name])).values())
        is_sure = is_part or len(had[name]) == len(has[name]) == 1
        if is_sure and kept < len(has[name]):
            at = list(after).index(name)
            return f"message {at} stayed or moved, and its time was {_shown(had[name])} and became {_shown(has[name])}"
    return ""


def _replaced(before: Sequence[int], after: Sequence[int]) -> Iterator[int]:
    """Positions whose message was replaced while none moved."""
    shared = min(len(before), len(after))
    changed = [i for i in range(shared) if before[i] != after[i]]
    gone = {*(before[i] for i in changed), *before[shared:]}
    come = {*(after[i] for i in changed), *after[shared:]}
    if gone & come or any(_begins_with(after, before[k:]) for k in range(1, len(before))):
        return iter(())
    return iter(changed)


def _begins_with(after: Sequence[int], end: Sequence[int]) -> bool:
    return list(after[: len(end)]) == list(end)


def _in_order(before: Sequence[int], after: Sequence[int]) -> bool:
    """True if the items that both lists have are in one order, each once."""
    common = set(before) & set(after)
    kept, left = [n for n in before if n in common], [n for n in after if n in common]
    return kept == left and len(set(kept)) == len(kept)


def _by_name(names: Sequence[int], times: Sequence[int]) -> dict[int, list[int]]:
    found: defaultdict[int, list[int]] = defaultdict(list)
    for name, time in zip(names, times, strict=True):
        found[name].append(time)
    return found


def _names(messages: Sequence[Message]) -> list[int]:
    """A number for each message, the same for the same contents."""
    known: dict[str, list[tuple[Message, int]]] = {}
    names = []
    for message in messages:
        same = known.setdefault(repr(message), [])
        name = next((number for other, number in same if difference(other, message) is None), None)
        if name is None:
            name = sum(map(len, known.values()))
            same.append((message, name))
        names.append(name)
    return names


def _shown(times: Sequence[int]) -> str:
    return str(times[0]) if len(times) == 1 else str(list(times))
