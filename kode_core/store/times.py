"""The times when messages were first seen, kept by a save of the whole list (MSG-4)."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Sequence

from msgspec.structs import replace

from kode_core.batch import Row

__all__ = ["keep_times"]


def keep_times(
    digests: Sequence[bytes], created: Sequence[int], put: Sequence[tuple[int, Row]], append: Sequence[Row], shared: int
) -> tuple[list[tuple[int, Row]], list[Row]]:
    """Give the messages that a save writes the times that they keep.

    A message that only moved keeps its time. A message in the place of one that is gone takes that one's time. All
    others are new. Where messages moved, the others are fitted in: not newer than their successor, and never older than
    any message before them.

    Args:
        digests: of the list as it is stored.
        created: the times of the list as it is stored.
        put: (position, row), ascending: the rows that differ in the first *shared* positions, with the time of now.
        append: the rows behind them.
        shared: how many positions the list had and has.
    """
    changed = [*put, *enumerate(append, shared)]
    times, moved = _moved(digests, created, changed, shared)
    places: dict[int, int] = {}
    for i, row in changed:
        is_replaced = i < len(created) and i not in moved
        if is_replaced and not moved:
            times[i] = created[i]
        elif i not in times:
            places[i] = created[i] if is_replaced else row.created_at
    for i in sorted(places, reverse=True):
        following = times.get(i + 1, created[i + 1] if i + 1 < shared else None)
        times[i] = places[i] if following is None else min(places[i], following)
    _raise(places.keys(), times, created)

    def timed(i: int, row: Row) -> Row:
        return row if row.created_at == times[i] else replace(row, created_at=times[i])

    return [(i, timed(i, row)) for i, row in put], [timed(i, row) for i, row in enumerate(append, shared)]


def _moved(
    digests: Sequence[bytes], created: Sequence[int], changed: Sequence[tuple[int, Row]], shared: int
) -> tuple[dict[int, int], set[int]]:
    """The times of the messages that moved, by where they are now, and where they were."""
    left: defaultdict[bytes, deque[int]] = defaultdict(deque)
    for i in (*(i for i, _ in changed if i < shared), *range(shared, len(created))):
        left[digests[i]].append(i)
    times: dict[int, int] = {}
    moved: set[int] = set()
    for i, row in changed:
        if places := left.get(row.body.digest):
            moved.add(places[0])
            times[i] = created[places.popleft()]
    return times, moved


def _raise(places: Collection[int], times: dict[int, int], created: Sequence[int]) -> None:
    """Let the messages at *places* not be older than any before them."""
    if not places:
        return
    first = min(places)
    latest = max((times.get(i, created[i] if i < len(created) else 0) for i in range(first)), default=None)
    for i in range(first, max(places) + 1):
        time = times.get(i, created[i] if i < len(created) else 0)
        if i in places and latest is not None:
            time = times[i] = max(time, latest)
        latest = time if latest is None else max(latest, time)
