"""Write lists: only the changes (MSG-5), keeping the time when each message was first seen (MSG-4).

For the agents that were used last, the store remembers the records of each list and its version; see
:mod:`kode_core.store.remembered`. Every record that may have changed is encoded and compared by digest. The write has
the version as its precondition: after a write by another writer the engine refuses it, and the list's outline is read
again.

The positions of a list that a save has shortened or lengthened::

    old      a  b  c  d             old      a  b
    new      a  X                   new      a  X  y  z
             |  |                            |  |  └──┴── append
             |  put                          |  put
             unchanged: not written          unchanged
    shared = 2, length = 2          shared = 2, length = None

A message that moved is a put or an append at its new position, yet keeps the time when it was first seen. Positions
alone do not show that, so digests of the old and the new list are matched (:mod:`kode_core.store.times`).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Self

from msgspec.structs import replace

from kode_core.batch import ListHead, ListKind, ListWrite, Outline, Row
from kode_core.pace import Pace
from kode_core.store.remembered import Remembered, Tail, key_of
from kode_core.store.rows import Encoded, ListCodec
from kode_core.store.times import equal_ones, keep_times

__all__ = ["Append", "Replace", "Upsert"]

_LONG: Final = 2_000
"""For longer lists, the times are computed in a thread."""


# --- The three ways to change a list ----------------------------------------------------------------------------------


class Replace:
    """Replace a list by the records of a call."""

    def __init__(self, base: Remembered, tail: Tail, write: ListWrite) -> None:
        self._base = base
        self._tail = tail
        self.write = write

    @classmethod
    async def of(cls, codec: ListCodec, old: Remembered, records: Sequence[Any], now: int) -> Self:
        """Write the differences from *old*."""
        pace = Pace()
        shared = min(len(old), len(records))
        is_cut = shared < len(old)
        suspects = await old.suspects(codec, records, pace)  # cheap: records that may have changed are encoded below
        # The copy becomes the remembered list if the write succeeds. If it fails, *old* still describes the stored one.
        base = old.copy(shared) if suspects or is_cut else old
        put: list[tuple[int, Row]] = []
        for i in suspects:
            one = await codec.row(i, records[i], now, pace)
            base.hold(i, records[i], one.proof)
            if one.row.body.digest != old.digests[i]:
                put.append((i, one.row))
            await pace.yield_to_loop()
        append = await _encoded(codec, records[shared:], shared, now, pace)
        if codec.kind == ListKind.MESSAGES:
            if put and (is_cut or append or len(put) > 1):  # otherwise none can have moved
                put = await _with_equals(codec, old, records, put, append, now, pace)
            put, append = await _timed(old, put, append, shared)
            # Rows that were added only to be compared, and have neither a new text nor a new time, are not written.
            put = [(i, row) for i, row in put if (row.body.digest, row.created_at) != (old.digests[i], old.created[i])]
        for i, row in put:
            base.put(i, row)
            await pace.yield_to_loop()
        tail = await Tail.of(records[shared:], append, pace)
        length = shared if is_cut else None
        return cls(base, tail, ListWrite(expect=old.version, length=length, put=tuple(put), append=_rows(append)))

    @classmethod
    async def whole(cls, codec: ListCodec, old: Remembered, records: Sequence[Any], now: int) -> Self:
        """Write all records without a precondition: for a list that other writers keep changing."""
        pace = Pace()
        append = await _encoded(codec, records, 0, now, pace)
        if codec.kind == ListKind.MESSAGES:
            _, append = await _timed(old, [], append, 0)
        tail = await Tail.of(records, append, pace)
        return cls(Remembered.of_nothing(), tail, ListWrite(length=0, append=_rows(append)))

    def remember(self, head: ListHead) -> Remembered:
        self._base.extend(head.version, self._tail)
        return self._base


async def _encoded(codec: ListCodec, records: Sequence[Any], start: int, now: int, pace: Pace) -> list[Encoded]:
    """The rows of records, the first of which will be at position *start*."""
    encoded = []
    for i, record in enumerate(records, start):
        encoded.append(await codec.row(i, record, now, pace))
        await pace.yield_to_loop()
    return encoded


async def _with_equals(
    codec: ListCodec,
    old: Remembered,
    records: Sequence[Any],
    put: list[tuple[int, Row]],
    append: list[Encoded],
    now: int,
    pace: Pace,
) -> list[tuple[int, Row]]:
    """Add the rows of equal messages: one may have moved to the place of another, and then takes its time along."""
    digests = list(old.digests[: len(records)])
    for i, row in put:
        digests[i] = row.body.digest
    digests += [one.row.body.digest for one in append]
    found, is_long = list(put), len(old) + len(digests) > _LONG
    moved = await asyncio.to_thread(equal_ones, old.digests, digests) if is_long else equal_ones(old.digests, digests)
    for i in moved:
        one = await codec.row(i, records[i], now, pace)
        found.append((i, one.row))
        await pace.yield_to_loop()
    return sorted(found, key=lambda pair: pair[0])


async def _timed(
    old: Remembered, put: list[tuple[int, Row]], append: list[Encoded], shared: int
) -> tuple[list[tuple[int, Row]], list[Encoded]]:
    """Set the times of messages that keep them; new messages are not older than the messages before them (MSG-4)."""
    if not put and shared == len(old):
        return put, _raised(old.newest, append)
    rows = [one.row for one in append]
    work = functools.partial(keep_times, old.digests, old.created, put, rows, shared)
    is_long = len(put) + len(append) + len(old) > _LONG
    put, rows = await asyncio.to_thread(work) if is_long else work()
    pairs = zip(append, rows, strict=True)
    return put, [one if one.row is row else Encoded(row, one.proof) for one, row in pairs]


def _raised(newest: int | None, append: list[Encoded]) -> list[Encoded]:
    raised = []
    for one in append:
        newest = one.row.created_at if newest is None else max(newest, one.row.created_at)
        same = newest == one.row.created_at
        raised.append(one if same else Encoded(replace(one.row, created_at=newest), one.proof))
    return raised


def _rows(encoded: Iterable[Encoded]) -> tuple[Row, ...]:
    return tuple([one.row for one in encoded])


class Append:
    """Add records at the end, without a precondition."""

    def __init__(self, old: Remembered | None, tail: Tail, write: ListWrite) -> None:
        self._old = old
        self._tail = tail
        self.write = write

    @classmethod
    async def of(cls, codec: ListCodec, old: Remembered | None, records: Sequence[Any], now: int) -> Self:
        """Append *records* to the list *old*, which may be unknown."""
        pace = Pace()
        start = 0 if old is None else len(old)
        append = await _encoded(codec, records, start, now, pace)
        if old is not None and codec.kind == ListKind.MESSAGES:
            _, append = await _timed(old, [], append, start)
        return cls(old, await Tail.of(records, append, pace), ListWrite(append=_rows(append)))

    def remember(self, head: ListHead) -> Remembered | None:
        old = self._old
        if head.count == len(self._tail.held):  # the list was empty: all of its rows are known now
            old = Remembered.of_nothing()
        elif old is None or head.version != old.version + self.write.step:  # another writer came between
            return None
        old.extend(head.version, self._tail)
        return old


class Upsert:
    """Replace the last record with the same id, or append (TC-3); of several records with one id the last one stays."""

    def __init__(self, base: Remembered | None, tail: Tail, write: ListWrite) -> None:
        self._base = base
        self._tail = tail
        self.write = write

    @classmethod
    async def of(
        cls,
        codec: ListCodec,
        old: Remembered | None,
        records: Sequence[Any],
        now: int,
        look: Callable[[Sequence[str]], Awaitable[Outline]],
    ) -> Self:
        """Write *records* into *old*; if that is unknown, *look* returns the outline of some call ids."""
        pace = Pace()
        rows = await _encoded(codec, records, 0, now, pace)
        keys = [str(key_of(one.row)) for one in rows]
        if old is None:
            outline = await look(list(dict.fromkeys(keys)))
            version, start, places = outline.version, outline.count, {row[3]: row[0] for row in outline.rows}
        else:
            version, start, places = old.version, len(old), old.last_places(keys)
        put: dict[int, tuple[Any, Encoded]] = {}
        append: list[tuple[Any, Encoded]] = []
        for key, record, one in zip(keys, records, rows, strict=True):
            position = places.setdefault(key, start + len(append))
            if position < start:
                put[position] = (record, one)
            else:  # behind the stored rows: a new id is added, and a repeated one replaces the earlier record
                append[position - start : position - start + 1] = [(record, one)]
            await pace.yield_to_loop()
        base = old.copy(start, keys_stay=True) if old is not None and put else old
        if base is not None:
            for i, (record, one) in put.items():
                base.hold(i, record, one.proof)
                base.put(i, one.row)
                await pace.yield_to_loop()
        added = [one for _, one in append]
        changes = tuple((i, put[i][1].row) for i in sorted(put))
        write = ListWrite(expect=version, put=changes, append=_rows(added))
        return cls(base, await Tail.of([record for record, _ in append], added, pace), write)

    def remember(self, head: ListHead) -> Remembered | None:
        if self._base is not None:
            self._base.extend(head.version, self._tail)
        return self._base
