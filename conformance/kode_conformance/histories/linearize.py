"""Judging the results of concurrent clients: one order of their calls must explain them all.

A register is judged by a search in the manner of Wing and Gong, with a memory of the states that led nowhere; a log is
judged by its own order.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

__all__ = ["Call", "log_problem", "offsets_problem", "order_problem", "register_problem", "timeline"]

_MAX_STATES: Final = 200_000
_SHOWN: Final = 12
_COLUMNS: Final = 48


class Call(NamedTuple):
    """One call of one client.

    Attributes:
        op: ``write``, ``read`` or ``append``, or a call of an object.
        value: the value written, read or appended, None for no value; of an object, the argument and the answer.
        start: when it was called, on a clock that all clients share.
        end: when it returned; None when it was cancelled, and happened or not.
    """

    client: int
    op: str
    value: Any
    start: int
    end: int | None


# --- Registers and objects --------------------------------------------------------------------------------------------

Following = Callable[[Any, Call], Iterable[Any]]
"""The states that a call may leave behind, from the state before it: none if it cannot have returned its answer there.
A call that was cancelled has no answer, and happened."""


def register_problem(calls: Sequence[Call]) -> str:
    """A timeline that no order of the calls explains; empty when an order does.

    An order explains a history when it keeps every call between its start and its end, and every read gives the value
    of the write before it. At first the register holds None.
    """
    return order_problem(calls, None, _written_or_read)


def _written_or_read(value: Any, call: Call) -> Iterable[Any]:
    if call.op == "write":
        return [call.value]
    return [value] if call.value == value else []


def order_problem(calls: Sequence[Call], begin: Any, following: Following) -> str:
    """The same for calls on any object, whose state, which is hashable, is *begin* at first."""
    if _has_order(calls, begin, following):
        return ""
    ends = sorted(call.end for call in calls if call.end is not None)
    fatal = bisect.bisect_left(ends, True, key=lambda end: not _has_order(_until(calls, end), begin, following))
    shown = _until(calls, ends[fatal])
    lines = timeline(sorted(shown, key=lambda call: call.start)[-_SHOWN:])
    return f"no order of the calls explains what the last of them saw:\n{lines}"


def _until(calls: Sequence[Call], now: int) -> list[Call]:
    """The history as it was known at a time."""
    known = (call for call in calls if call.start <= now)
    cut = (call if call.end is not None and call.end <= now else call._replace(end=None) for call in known)
    return [call for call in cut if call.end is not None or call.op != "read"]


def _has_order(calls: Sequence[Call], begin: Any, following: Following) -> bool:
    """True if such an order exists, or if the search would take too long."""
    calls = sorted((c for c in calls if c.end is not None or c.op != "read"), key=lambda call: call.start)
    must = sum(1 << i for i, call in enumerate(calls) if call.end is not None)
    stack: list[tuple[int, Any]] = [(0, begin)]
    known = set(stack)
    while stack and len(known) < _MAX_STATES:
        done, state = stack.pop()
        if done & must == must:
            return True
        for after in _next(calls, done, state, following):
            if after not in known:
                known.add(after)
                stack.append(after)
    return bool(stack)


def _next(calls: Sequence[Call], done: int, state: Any, following: Following) -> list[tuple[int, Any]]:
    """The states after each call that may come next; *done* are the calls so far."""
    left = [(i, call) for i, call in enumerate(calls) if not done >> i & 1]
    latest = min((call.end for _, call in left if call.end is not None), default=0)
    found = []
    for i, call in left:
        if call.start <= latest:
            after = [(done | 1 << i, new) for new in following(state, call)]
            if call.op == "read" and after == [(done | 1 << i, state)]:
                return after  # a read that fits now changes nothing: no need to wait
            found += after
    return found


# --- Logs -------------------------------------------------------------------------------------------------------------


def log_problem(calls: Sequence[Call], final: Sequence[int], *, contiguous: bool) -> str:
    """The fault of a log that clients appended to and read; empty when there is none.

    Args:
        calls: the calls of the clients; values of appends and reads are sequences of entries.
        final: the log as it is when all of them are done.
        contiguous: True if the entries of one append must stand side by side.
    """
    places = {entry: i for i, entry in enumerate(final)}
    appends = _attempts_as_one([call for call in calls if call.op == "append"])
    return (
        _entries_problem(appends, final, places)
        or _order_problem([call for call in appends if call.value and call.value[0] in places], places, contiguous)
        or _reads_problem(appends, [call for call in calls if call.op == "read"], final)
    )


def offsets_problem(answered: Iterable[tuple[int, int]], final: Sequence[tuple[int, int]]) -> str:
    """The fault in the (entry, offset) pairs that clients were told, compared with the final log; empty without one."""
    offsets = [offset for _, offset in final]
    if offsets != sorted(set(offsets)):
        return f"offsets do not grow in the order of commit: {offsets}"
    known: dict[int, int] = {}
    for entry, offset in (*final, *answered):
        if known.setdefault(entry, offset) != offset:
            return f"the entry {entry} was told to be at {offset}, and is at {known[entry]}"
    return ""


def _attempts_as_one(appends: Sequence[Call]) -> list[Call]:
    """Attempts at the same append count as one call, which returned when the first of them did."""
    merged: dict[Any, Call] = {}
    for call in sorted(appends, key=lambda call: call.start):
        first = merged.setdefault(tuple(call.value), call)
        if first.end is None:
            merged[tuple(call.value)] = first._replace(end=call.end)
    return list(merged.values())


def _entries_problem(appends: Sequence[Call], final: Sequence[int], places: Mapping[int, int]) -> str:
    if len(places) != len(final):
        return f"entries are there more than once: {sorted({e for e in final if list(final).count(e) > 1})}"
    unknown = set(final) - {entry for call in appends for entry in call.value}
    if unknown:
        return f"entries are there that nobody appended: {sorted(unknown)}"
    for call in appends:
        there = [entry for entry in call.value if entry in places]
        if len(there) < len(call.value) and (there or call.end is not None):
            lost = sorted(set(call.value) - set(there))
            return f"lost: {lost} of the append of {call.value}, which {'was' if call.end else 'was not'} acknowledged"
    return ""


def _order_problem(appends: Sequence[Call], places: Mapping[int, int], contiguous: bool) -> str:
    for call in appends:
        at = [places[entry] for entry in call.value]
        if at != sorted(at) or (contiguous and at[-1] - at[0] != len(at) - 1):
            return f"the append of {call.value} is not in one piece: its entries are at {at}"
    for one in appends:
        for other in appends:
            first = one.end is not None and one.end < other.start
            if first and places[one.value[-1]] > places[other.value[0]]:
                bars = timeline([one, other])
                return f"{other.value} was appended after {one.value}, and stands before it:\n{bars}"
    return ""


def _reads_problem(appends: Sequence[Call], reads: Sequence[Call], final: Sequence[int]) -> str:
    for read in reads:
        seen = list(read.value)
        if seen != list(final[: len(seen)]):
            return f"a read gave {seen}, which is no beginning of the log {list(final)}"
        for call in appends:
            missed = call.end is not None and call.end < read.start and not set(call.value) <= set(seen)
            if missed or set(call.value) & set(seen) not in (set(), set(call.value)):
                what = "did not see" if missed else "saw a part of"
                return f"a read {what} the append of {call.value}:\n{timeline([call, read])}"
        for earlier in reads:
            if earlier.end is not None and earlier.end < read.start and len(earlier.value) > len(seen):
                return f"a read saw less than one before it:\n{timeline([earlier, read])}"
    return ""


# --- For a person -----------------------------------------------------------------------------------------------------


def timeline(calls: Sequence[Call]) -> str:
    """The calls as bars over time, which is stretched so that each start and end can be told apart."""
    moments = sorted({moment for call in calls for moment in (call.start, call.end) if moment is not None})
    scale = _COLUMNS / (len(moments) + 1)

    def column(moment: int | None) -> int:
        return _COLUMNS if moment is None else int((moments.index(moment) + 1) * scale)

    lines = []
    for call in sorted(calls, key=lambda call: call.start):
        start, end = column(call.start), column(call.end)
        bar = " " * start + "[" + "=" * max(0, end - start - 1) + ("?" if call.end is None else "]")
        text = "nothing" if call.value is None else f"{call.value}"
        lines.append(f"  client {call.client} {bar:<{_COLUMNS + 2}} {call.op} {text:.60}")
    return "\n".join(lines)
