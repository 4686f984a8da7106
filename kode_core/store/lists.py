"""Writing lists: only what changed (MSG-5), keeping when each message was first seen (MSG-4).

The store remembers, for the agents it wrote or read last, which record objects stand in a list and under which
version. A record that is still the same object cannot have changed, except inside the dicts and lists it holds; of
those there is a proof, a digest of what they were. Every other record is encoded and compared by digest. The write
carries the version as a precondition: when another writer was there, the engine refuses, and the list's outline is
read anew. Records are held weakly: to remember them keeps none of them in memory.
"""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Self
from weakref import ref

from msgspec.structs import replace

from kode_core.batch import ListHead, ListKind, ListRows, ListWrite, Outline, Row, ToolCallIndex
from kode_core.large import Proof, digest_of, is_unchanged
from kode_core.pace import Pace
from kode_core.store.rows import Encoded, ListCodec
from kode_core.store.times import keep_times

__all__ = ["Append", "Remembered", "Replace", "Tail", "Upsert"]

_RUN: Final = 256
_LONG: Final = 2_000
"""Lists longer than this are timed in a thread."""


class Held(ref[Any]):
    """A record that somebody else keeps, weakly, and the dicts and lists in it, as long as it is there."""

    __slots__ = ()
    parts: tuple[Any, ...] | None = None


class _HeldWithParts(Held):
    __slots__ = ("parts",)


def _let_go(held: Any) -> None:
    held.parts = None


def _held(record: Any, proof: Proof | None) -> Held:
    if proof is None or proof.parts is None:
        return Held(record)
    held = _HeldWithParts(record, _let_go)
    held.parts = proof.parts
    return held


_parts = operator.attrgetter("parts")


class _Nobody:
    __slots__ = ("__weakref__",)


_NONE: Final = Held(_Nobody())
_UNPROVED: Final = b""


def _holds(parts: Sequence[Any] | None, proof: bytes) -> bool:
    try:
        return parts is not None and digest_of(parts) == proof
    except ValueError:  # something that is not JSON was put in
        return False


class Tail:
    """Records and their rows, with the proofs of what they were when they were encoded."""

    def __init__(self, records: Sequence[Any], encoded: Sequence[Encoded]) -> None:
        self.held = [_held(record, one.proof) for record, one in zip(records, encoded, strict=True)]
        self.rows = [one.row for one in encoded]
        self.proofs = [_digest(one.proof) for one in encoded]


def _digest(proof: Proof | None) -> bytes | None:
    return None if proof is None else proof.digest or _UNPROVED


class Remembered:
    """A list as this store last wrote or read it.

    Attributes:
        held: the records.
        proofs: a digest for each of the dicts and lists in it, None where there are none.
        keys: of a list of tool calls, their ids as the index has them.
        newest: at least the greatest of the times in ``created``; None when there are none.
    """

    def __init__(
        self,
        version: int,
        held: list[Held],
        digests: list[bytes],
        created: list[int],
        proofs: list[bytes | None],
        keys: list[str | None],
    ) -> None:
        self.version = version
        self.held = held
        self.digests = digests
        self.created = created
        self.proofs = proofs
        self.keys = keys
        self.newest: int | None = max(created, default=None)
        self._places: dict[str | None, int] | None = None
        self._runs: dict[int, bytes] = {}

    @classmethod
    def of_nothing(cls) -> Self:
        """An empty list of a version yet to be known."""
        return cls(0, [], [], [], [], [])

    @classmethod
    def of_outline(cls, outline: Outline) -> Self:
        """A list of which only the outline is known: every record will be encoded and compared."""
        if not outline.rows:
            return cls(outline.version, [], [], [], [], [])
        _, digests, created, keys = map(list, zip(*outline.rows, strict=True))
        return cls(outline.version, [_NONE] * len(keys), digests, created, [None] * len(keys), keys)

    @classmethod
    def of_loaded(cls, codec: ListCodec, rows: ListRows, records: Sequence[Any], proofs: list[Proof | None]) -> Self:
        """A list that was just read."""
        digests = [body.digest for body, _ in rows.rows]
        created = [created_at for _, created_at in rows.rows]
        keys = [None if codec.key is None else codec.key(record) for record in records]
        held = list(map(_held, records, proofs))
        return cls(rows.version, held, digests, created, list(map(_digest, proofs)), keys)

    def __len__(self) -> int:
        return len(self.held)

    @property
    def is_incomplete(self) -> bool:
        """Whether some of the records are gone, so that it is better to remember those that were just read."""
        return None in map(operator.call, self.held)

    # --- finding what changed

    async def suspects(self, codec: ListCodec, records: Sequence[Any], pace: Pace) -> list[int]:
        """The positions within both lists where *records* may differ from what is stored."""
        found: list[int] = []
        shared = min(len(self), len(records))
        for start in range(0, shared, _RUN):
            new = records[start : min(start + _RUN, shared)]
            held = self.held[start : start + len(new)]
            parts = list(map(_parts, held))
            if not (all(map(operator.is_, map(operator.call, held), new)) and self._is_proved(start, parts)):
                found += await self._suspects_in_run(codec, start, new, pace)
            await pace.rest()
        return found

    def _is_proved(self, start: int, parts: list[Any]) -> bool:
        """Whether a run of records was found unchanged before, and is what it was then."""
        known = self._runs.get(start)
        try:
            return known is not None and digest_of(parts) == known
        except ValueError:  # something that is not JSON was put in
            return False

    async def _suspects_in_run(self, codec: ListCodec, start: int, records: Sequence[Any], pace: Pace) -> list[int]:
        found: list[int] = []
        large: list[int] = []
        parts = []
        for i, record in enumerate(records, start):
            held, proof = self.held[i], self.proofs[i]
            parts.append(held.parts)
            if held() is not record:
                found.append(i)
            elif proof is not None and held.parts is None:
                large.append(i)
            elif proof is not None and not _holds(held.parts, proof):
                found.append(i)
        if not (found or large):
            self._runs[start] = digest_of(parts)
        for i in large:
            if not await is_unchanged(codec.cls, records[i - start], self.proofs[i] or _UNPROVED, pace):
                found.append(i)
        return sorted(found)

    # --- noting what was written

    def extend(self, version: int, tail: Tail) -> None:
        """Note that *tail* was appended."""
        keys = list(map(key_of, tail.rows))
        self._runs.pop(len(self) // _RUN * _RUN, None)
        if self._places is not None:
            self._places.update(zip(keys, range(len(self), len(self) + len(keys)), strict=True))
        self.version = version
        self.held.extend(tail.held)
        self.digests.extend(row.body.digest for row in tail.rows)
        self.created.extend(row.created_at for row in tail.rows)
        self.proofs.extend(tail.proofs)
        self.keys.extend(keys)
        newest = max((row.created_at for row in tail.rows), default=self.newest)
        self.newest = newest if self.newest is None or newest is None else max(self.newest, newest)

    def copy(self, length: int, *, keys_stay: bool = False) -> Remembered:
        """A copy cut to *length*; *keys_stay* when it is not cut, and what is put in it has the keys of before."""
        copy = Remembered(
            self.version,
            self.held[:length],
            self.digests[:length],
            self.created[:length],
            self.proofs[:length],
            self.keys[:length],
        )
        copy._places = self._places if keys_stay else None
        copy._runs = {start: proof for start, proof in self._runs.items() if start + _RUN <= length}
        return copy

    def hold(self, i: int, record: Any, proof: Proof | None) -> None:
        """Note that *record* is what is stored at a position."""
        self.held[i], self.proofs[i] = _held(record, proof), _digest(proof)
        self._runs.pop(i // _RUN * _RUN, None)

    def put(self, i: int, row: Row) -> None:
        """Note what was written at a position."""
        self.digests[i], self.created[i], self.keys[i] = row.body.digest, row.created_at, key_of(row)
        if self.newest is None or row.created_at > self.newest:
            self.newest = row.created_at

    def last_places(self, keys: Iterable[str]) -> dict[str | None, int]:
        """The last positions of the tool calls of these ids."""
        if self._places is None:
            self._places = dict(zip(self.keys, range(len(self.keys)), strict=True))
        return {key: self._places[key] for key in keys if key in self._places}


def key_of(row: Row) -> str | None:
    """The row's call id, as the index has it."""
    return row.index.call_id if isinstance(row.index, ToolCallIndex) else None


# --- The three ways to change a list ----------------------------------------------------------------------------------


class Replace:
    """Make a list what the records of a call are."""

    def __init__(self, base: Remembered, tail: Tail, write: ListWrite) -> None:
        self._base = base
        self._tail = tail
        self.write = write

    @classmethod
    async def of(cls, codec: ListCodec, old: Remembered, records: Sequence[Any], now: int) -> Self:
        """Write what differs from *old*."""
        pace = Pace()
        shared = min(len(old), len(records))
        is_cut = shared < len(old)
        suspects = await old.suspects(codec, records, pace)
        base = old.copy(shared) if suspects or is_cut else old
        put: list[tuple[int, Row]] = []
        for i in suspects:
            one = await codec.row(i, records[i], now, pace)
            base.hold(i, records[i], one.proof)
            if one.row.body.digest != old.digests[i]:
                put.append((i, one.row))
            await pace.rest()
        append = await _encoded(codec, records[shared:], shared, now, pace)
        if codec.kind == ListKind.MESSAGES:
            put, append = await _timed(old, put, append, shared)
        for i, row in put:
            base.put(i, row)
            await pace.rest()
        tail = Tail(records[shared:], append)
        length = shared if is_cut else None
        return cls(base, tail, ListWrite(expect=old.version, length=length, put=tuple(put), append=tuple(tail.rows)))

    @classmethod
    async def whole(cls, codec: ListCodec, old: Remembered, records: Sequence[Any], now: int) -> Self:
        """Write all of it whatever is there now: for a list that other writers change all the time."""
        pace = Pace()
        append = await _encoded(codec, records, 0, now, pace)
        if codec.kind == ListKind.MESSAGES:
            _, append = await _timed(old, [], append, 0)
        tail = Tail(records, append)
        return cls(Remembered.of_nothing(), tail, ListWrite(length=0, append=tuple(tail.rows)))

    def remember(self, head: ListHead) -> Remembered:
        self._base.extend(head.version, self._tail)
        return self._base


async def _encoded(codec: ListCodec, records: Sequence[Any], start: int, now: int, pace: Pace) -> list[Encoded]:
    """The rows of records, of which the first will stand at *start*."""
    encoded = []
    for i, record in enumerate(records, start):
        encoded.append(await codec.row(i, record, now, pace))
        await pace.rest()
    return encoded


async def _timed(
    old: Remembered, put: list[tuple[int, Row]], append: list[Encoded], shared: int
) -> tuple[list[tuple[int, Row]], list[Encoded]]:
    """Give messages the times that they keep; new ones are not older than what stands before them (MSG-4)."""
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


class Append:
    """Add records at the end, whatever is there."""

    def __init__(self, old: Remembered | None, tail: Tail) -> None:
        self._old = old
        self._tail = tail
        self.write = ListWrite(append=tuple(tail.rows))

    @classmethod
    async def of(cls, codec: ListCodec, old: Remembered | None, records: Sequence[Any], now: int) -> Self:
        """What appends *records* to a list that was *old*, if it is known."""
        pace = Pace()
        start = 0 if old is None else len(old)
        append = await _encoded(codec, records, start, now, pace)
        if old is not None and codec.kind == ListKind.MESSAGES:
            _, append = await _timed(old, [], append, start)
        return cls(old, Tail(records, append))

    def remember(self, head: ListHead) -> Remembered | None:
        old = self._old
        if head.count == len(self._tail.rows):
            old = Remembered.of_nothing()
        elif old is None or head.version != old.version + 1:
            return None
        old.extend(head.version, self._tail)
        return old


class Upsert:
    """Replace the last record of the same id, or append (TC-3); of records of a call with one id the last one stays."""

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
        """What writes *records* into *old*; where that is not known, *look* gives the outline of some call ids."""
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
            place = places.setdefault(key, start + len(append))
            if place < start:
                put[place] = (record, one)
            else:
                append[place - start : place - start + 1] = [(record, one)]
        base = old.copy(start, keys_stay=True) if old is not None and put else old
        if base is not None:
            for i, (record, one) in put.items():
                base.hold(i, record, one.proof)
                base.put(i, one.row)
        tail = Tail([record for record, _ in append], [one for _, one in append])
        changes = tuple((i, put[i][1].row) for i in sorted(put))
        return cls(base, tail, ListWrite(expect=version, put=changes, append=tuple(tail.rows)))

    def remember(self, head: ListHead) -> Remembered | None:
        if self._base is not None:
            self._base.extend(head.version, self._tail)
        return self._base
