"""A list as a store last wrote or read it, and the search for changes since.

A record that is still the same object cannot have changed, except inside its dicts and lists; for those there is a
proof, a digest of their contents. Records are referenced weakly: remembering them keeps none of them in memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Self
from weakref import ref

from kode_core.batch import Outline, Row, ToolCallIndex
from kode_core.codec import Body
from kode_core.fingerprint import fingerprint_of, still_has
from kode_core.jsonslices import LARGE_TEXT
from kode_core.large import Proof, is_unchanged
from kode_core.pace import Pace
from kode_core.shapes import has_parts
from kode_core.store.rows import Encoded, ListCodec

__all__ = ["UNTAKEN", "Remembered", "Tail", "key_of"]

_RUN: Final = 256


class RecordRef(ref[Any]):
    """A weak reference to a record of the caller, with the record's dicts and lists as long as it lives."""

    __slots__ = ()
    parts: Any = None


class _RecordRefWithParts(RecordRef):
    __slots__ = ("parts",)


def _let_go(held: Any) -> None:
    held.parts = None


def _held(record: Any, proof: Proof | None) -> RecordRef:
    if proof is None or proof.parts is None:
        return RecordRef(record)
    held = _RecordRefWithParts(record, _let_go)
    held.parts = proof.parts
    return held


_parts = operator.attrgetter("parts")


class _Nobody:
    __slots__ = ("__weakref__",)


_NONE: Final = RecordRef(_Nobody())
_UNPROVED: Final = b""
UNTAKEN: Final = b"?"
"""Stands for the proof of a small record that was read and not checked since: its proof is the digest of its text."""


def _holds(parts: Any, proof: bytes) -> bool:
    return parts is not None and still_has(parts, proof)


class Tail:
    """Records as they are in the store, one after the other."""

    __slots__ = ("created", "digests", "held", "keys", "proofs")

    def __init__(self) -> None:
        self.held: list[RecordRef] = []
        self.digests: list[bytes] = []
        self.created: list[int] = []
        self.proofs: list[bytes | None] = []
        self.keys: list[str | None] = []

    def add(self, record: Any, proof: Proof | None, digest: bytes, created_at: int, key: str | None) -> None:
        """Note the next record."""
        self.held.append(_held(record, proof))
        self.digests.append(digest)
        self.created.append(created_at)
        self.proofs.append(_digest(proof))
        self.keys.append(key)

    def add_read(
        self, records: Sequence[Any], rows: Sequence[tuple[Body, int]], key: Callable[[Any], str] | None
    ) -> None:
        """Note the next records, which were just read from *rows*; their proofs are taken when they are saved."""
        self.held += map(RecordRef, records)
        self.digests += [body.digest for body, _ in rows]
        self.created += [created_at for _, created_at in rows]
        self.proofs += [UNTAKEN if len(body.text) <= LARGE_TEXT else _UNPROVED for body, _ in rows]
        self.keys += [None] * len(records) if key is None else map(key, records)

    @classmethod
    async def of(cls, records: Sequence[Any], encoded: Sequence[Encoded], pace: Pace) -> Self:
        """A tail of records that were just encoded."""
        tail = cls()
        for record, one in zip(records, encoded, strict=True):
            tail.add(record, one.proof, one.row.body.digest, one.row.created_at, key_of(one.row))
            await pace.yield_to_loop()
        return tail


def _digest(proof: Proof | None) -> bytes | None:
    return None if proof is None else proof.digest or _UNPROVED


class Remembered:
    """A list as this store last wrote or read it.

    Attributes:
        held: the records.
        proofs: for each record, a digest of its dicts and lists; None if it has none.
        keys: for a list of tool calls, their ids as the index has them.
        newest: at least the greatest time in ``created``; None if there is none.
    """

    def __init__(
        self,
        version: int,
        held: list[RecordRef],
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
        self._runs: dict[int, tuple[int, bytes]] = {}

    @classmethod
    def of_nothing(cls) -> Self:
        """An empty list whose version is not known yet."""
        return cls(0, [], [], [], [], [])

    @classmethod
    def of_outline(cls, outline: Outline) -> Self:
        """A list whose outline alone is known: every record will be encoded and compared."""
        if not outline.rows:
            return cls(outline.version, [], [], [], [], [])
        _, digests, created, keys = map(list, zip(*outline.rows, strict=True))
        return cls(outline.version, [_NONE] * len(keys), digests, created, [None] * len(keys), keys)

    @classmethod
    def of_tail(cls, version: int, tail: Tail) -> Self:
        """A list that consists of *tail*."""
        return cls(version, tail.held, tail.digests, tail.created, tail.proofs, tail.keys)

    def __len__(self) -> int:
        return len(self.held)

    @property
    def is_incomplete(self) -> bool:
        """True if some of the records are gone: then it is better to remember the records that were just read."""
        return None in map(operator.call, self.held)

    # --- finding what changed

    async def suspects(self, codec: ListCodec, records: Sequence[Any], pace: Pace) -> list[int]:
        """The positions within both lists where *records* may differ from the stored ones."""
        found: list[int] = []
        shared = min(len(self), len(records))
        for start in range(0, shared, _RUN):
            new = records[start : min(start + _RUN, shared)]
            proved = self._proved(start, new)
            if proved < len(new):
                found += await self._suspects_in_run(codec, start, proved, new, pace)
            await pace.yield_to_loop()
        return found

    def _proved(self, start: int, records: Sequence[Any]) -> int:
        """The number of records at the start of a run that were unchanged before and have the same digest now."""
        count, fingerprint = self._runs.get(start, (0, _UNPROVED))
        if not 0 < count <= len(records):
            return 0
        held = self.held[start : start + count]
        is_same = all(map(operator.is_, map(operator.call, held), records))
        return count if is_same and still_has(list(map(_parts, held)), fingerprint) else 0

    async def _suspects_in_run(
        self, codec: ListCodec, start: int, proved: int, records: Sequence[Any], pace: Pace
    ) -> list[int]:
        """The positions in a run from *start* on that may differ, after the first *proved* records."""
        found: list[int] = []
        large: list[int] = []
        parts = list(map(_parts, self.held[start : start + len(records)]))
        for i in range(start + proved, start + len(records)):
            record, held, proof = records[i - start], self.held[i], self.proofs[i]
            if held() is not record:
                found.append(i)
            elif proof == UNTAKEN:
                if has_parts(record):
                    found.append(i)
                else:
                    self.proofs[i] = None
            elif proof is not None and held.parts is None:
                large.append(i)
            elif proof is not None and not _holds(held.parts, proof):
                found.append(i)
        if not (found or large):
            self._runs[start] = (len(records), fingerprint_of(parts))
        for i in large:
            if not await is_unchanged(codec.cls, records[i - start], self.proofs[i] or _UNPROVED, pace):
                found.append(i)
        return sorted(found)

    # --- noting what was written

    def extend(self, version: int, tail: Tail) -> None:
        """Note that *tail* was appended."""
        if self._places is not None:
            self._places.update(zip(tail.keys, range(len(self), len(self) + len(tail.keys)), strict=True))
        self.version = version
        self.held.extend(tail.held)
        self.digests.extend(tail.digests)
        self.created.extend(tail.created)
        self.proofs.extend(tail.proofs)
        self.keys.extend(tail.keys)
        newest = max(tail.created, default=self.newest)
        self.newest = newest if self.newest is None or newest is None else max(self.newest, newest)

    def copy(self, length: int, *, keys_stay: bool = False) -> Remembered:
        """A copy cut to *length*; *keys_stay* if it is not cut and its records will keep their keys."""
        copy = Remembered(
            self.version,
            self.held[:length],
            self.digests[:length],
            self.created[:length],
            self.proofs[:length],
            self.keys[:length],
        )
        copy._places = self._places if keys_stay else None
        copy._runs = {start: run for start, run in self._runs.items() if start + run[0] <= length}
        return copy

    def cut(self, length: int) -> None:
        """Note that the list was cut to *length*; ``newest`` stays, which is not too small."""
        self._places = None
        for column in (self.held, self.digests, self.created, self.proofs, self.keys):
            del column[length:]
        for start in [start for start, (count, _) in self._runs.items() if start + count > length]:
            del self._runs[start]

    def hold(self, i: int, record: Any, proof: Proof | None) -> None:
        """Note that *record* is stored at a position."""
        self.held[i], self.proofs[i] = _held(record, proof), _digest(proof)
        self._runs.pop(i // _RUN * _RUN, None)

    def put(self, i: int, row: Row) -> None:
        """Note the row that was written at a position."""
        self.digests[i], self.created[i], self.keys[i] = row.body.digest, row.created_at, key_of(row)
        if self.newest is None or row.created_at > self.newest:
            self.newest = row.created_at

    def last_places(self, keys: Iterable[str]) -> dict[str | None, int]:
        """The last positions of the tool calls with these ids."""
        if self._places is None:
            self._places = dict(zip(self.keys, range(len(self.keys)), strict=True))
        return {key: self._places[key] for key in keys if key in self._places}


def key_of(row: Row) -> str | None:
    """The row's call id in the form of the index."""
    return row.index.call_id if isinstance(row.index, ToolCallIndex) else None
