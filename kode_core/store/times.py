"""The times when messages were first seen, kept when the whole list is saved (MSG-4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from math import inf

from msgspec.structs import replace

from kode_core.batch import Row

__all__ = ["equal_ones", "keep_times"]


def keep_times(
    digests: Sequence[bytes], created: Sequence[int], put: Sequence[tuple[int, Row]], append: Sequence[Row], shared: int
) -> tuple[list[tuple[int, Row]], list[Row]]:
    """Set the times of the messages that a save writes.

    If the new list is a part of the old one, each message keeps its time. Otherwise, a message that only moved keeps
    its time. A message in the place of a removed one takes the time of that one. All others are new. If messages moved,
    the others are fitted in: not newer than their successor, and never older than any message before them. The same
    holds for equal messages, since it is unknown which of them moved where.

    Args:
        digests: the digests of the stored list.
        created: the times of the stored list.
        put: (position, row), ascending: the rows that differ in the first *shared* positions, with the present time.
        append: the rows after them.
        shared: the number of positions that the list had and still has.
    """
    changed = [*put, *enumerate(append, shared)]
    written = {i: row.body.digest for i, row in changed}
    start = _part_of(digests, [written.get(i) or digests[i] for i in range(shared + len(append))])
    if start is not None:

        def kept(i: int, row: Row) -> Row:
            return replace(row, created_at=created[start + i])

        return [(i, kept(i, row)) for i, row in put], [kept(i, row) for i, row in enumerate(append, shared)]
    pairs, doubtful = _moved(digests, changed, shared)
    moved = {*pairs.values(), *doubtful.values()}
    times = {i: created[place] for i, place in pairs.items()}
    places = {i: created[place] for i, place in doubtful.items()}
    for i, row in changed:
        is_replaced = i < len(created) and i not in moved
        if is_replaced and not moved:
            times[i] = created[i]
        elif i not in times and i not in places:
            places[i] = created[i] if is_replaced else row.created_at
    for i in sorted(places, reverse=True):
        following = times.get(i + 1, created[i + 1] if i + 1 < shared else None)
        times[i] = places[i] if following is None else min(places[i], following)
    _raise(places.keys(), times, created)

    def timed(i: int, row: Row) -> Row:
        return row if row.created_at == times[i] else replace(row, created_at=times[i])

    return [(i, timed(i, row)) for i, row in put], [timed(i, row) for i, row in enumerate(append, shared)]


def _moved(
    digests: Sequence[bytes], changed: Sequence[tuple[int, Row]], shared: int
) -> tuple[dict[int, int], dict[int, int]]:
    """The old positions of moved messages, by their new ones; separately, the same for messages that may have moved.

    A message that occurs once is recognised, and with it its equal neighbours that moved along.
    """
    left = {i: digests[i] for i in (*(i for i, _ in changed if i < shared), *range(shared, len(digests)))}
    rows = {i: row.body.digest for i, row in changed}
    places = _by_digest(left)
    stay = {digests[i] for i in range(shared) if i not in left}
    pairs = _known_again(places, rows, stay)
    taken = {*pairs.values()}
    for start, place in [*pairs.items()]:
        for step in (-1, 1):
            i, at = start + step, place + step
            while i in rows and i not in pairs and at not in taken and left.get(at) == rows[i]:
                pairs[i] = at
                taken.add(at)
                i, at = i + step, at + step
    return pairs, _doubtful(rows, places, pairs, shared)


def _doubtful(
    rows: Mapping[int, bytes], places: Mapping[bytes, list[int]], pairs: Mapping[int, int], shared: int
) -> dict[int, int]:
    """The possible old positions of the others, between the recognised neighbours: the latest one that is left."""
    taken, found = {*pairs.values()}, dict[int, int]()
    free = {digest: [position for position in left if position not in taken] for digest, left in places.items()}
    known = sorted({*pairs, *(i for i in range(shared) if i not in rows)})
    high: float = inf
    for i in sorted({*rows, *known}, reverse=True):
        if i not in rows or i in pairs:
            high = pairs.get(i, i)
            continue
        before = bisect_left(known, i)
        low = pairs.get(known[before - 1], known[before - 1]) if before else -1
        left = free.get(rows[i], ())
        position = left[at - 1] if (at := bisect_left(left, high)) else -1
        if position > low:
            high = found[i] = position
    return found


def _known_again(
    places: Mapping[bytes, list[int]], rows: Mapping[int, bytes], stay: Collection[bytes]
) -> dict[int, int]:
    """The old positions of messages that occur once before and after, by their new ones; none equals one that stays."""
    numbers = _by_digest(rows)
    once = {digest: found[0] for digest, found in numbers.items() if len(found) == 1 and digest not in stay}
    return {once[digest]: found[0] for digest, found in places.items() if len(found) == 1 and digest in once}


def _part_of(old: Sequence[bytes], new: Sequence[bytes]) -> int | None:
    """The position in the old list from which on it has the whole new one; None if it has not."""
    if not new or len(new) > len(old):
        return None
    size, whole, part = len(new[0]), b"".join(old), b"".join(new)
    at = whole.find(part)
    while size and at > 0 and at % size:
        at = whole.find(part, at + 1)
    start = at // size if size and at >= 0 else 0
    return start if list(old[start : start + len(new)]) == list(new) else None


def equal_ones(old: Sequence[bytes], new: Sequence[bytes]) -> Sequence[int]:
    """The positions with the same message before and after, if the message has equals and messages of the list moved.

    Any of the equal messages may be there now.
    """
    if _part_of(old, new):
        return [i for i, digest in enumerate(new) if old[i] == digest]
    shared = min(len(old), len(new))
    stay = [i for i in range(shared) if old[i] == new[i]]
    rows = {i: digest for i, digest in enumerate(new) if i >= shared or old[i] != digest}
    left = {i: digest for i, digest in enumerate(old) if i >= shared or new[i] != digest}
    if not _known_again(_by_digest(left), rows, {new[i] for i in stay}):
        return ()
    before, after = Counter(old), Counter(new)
    return [i for i in stay if before[new[i]] > 1 or after[new[i]] > 1]


def _by_digest(digests: Mapping[int, bytes]) -> Mapping[bytes, list[int]]:
    """The positions of each digest, ascending."""
    found: defaultdict[bytes, list[int]] = defaultdict(list)
    for position in sorted(digests):
        found[digests[position]].append(position)
    return found


def _raise(places: Collection[int], times: dict[int, int], created: Sequence[int]) -> None:
    """Raise the times at *places*, so that no message is older than one before it."""
    if not places:
        return
    first = min(places)
    latest = max((times.get(i, created[i] if i < len(created) else 0) for i in range(first)), default=None)
    for i in range(first, max(places) + 1):
        time = times.get(i, created[i] if i < len(created) else 0)
        if i in places and latest is not None:
            time = times[i] = max(time, latest)
        latest = time if latest is None else max(latest, time)
