"""Writing lists: only what changed (MSG-5), keeping when each record was first seen (MSG-4).

The store remembers, for the agents it wrote last, which record objects stand in a list and under which version. A
record that is still the same object cannot have changed, except inside the dicts and lists it holds; those are
compared, all at once, with what they were. Every other record is encoded and compared by digest. The write carries the
version as a precondition: when another writer was there, the engine refuses, and the list's outline is read anew.
"""

from __future__ import annotations

import marshal
import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from kode_core.batch import ListHead, ListKind, ListRows, ListWrite, Outline, Row, ToolCallIndex
from kode_core.ids import index_text
from kode_core.model import Record
from kode_core.store.rows import ListCodec
from kode_core.store.times import keep_times

__all__ = ["Append", "ListMemory", "Remembered", "Replace", "Upsert"]

_MAX_ROWS: Final = 200_000
_MARSHAL: Final = 2  # without references, so that the bytes of a list are those of its items, one after the other
_LIST_HEADER: Final = 5
_UNKNOWN: Final = object()


def mutable_parts(value: Any) -> Iterator[Any]:
    """The dicts and lists inside a record: all of it that can change while the record stays the same object."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from mutable_parts(getattr(value, name))
    elif type(value) is tuple:
        for item in value:
            yield from mutable_parts(item)
    elif type(value) in (dict, list):
        yield value


class Tail:
    """Records and their rows, with what can change inside them as it was when they were encoded."""

    def __init__(self, records: Sequence[Any], rows: Sequence[Row]) -> None:
        self.records = records
        self.rows = rows
        self.parts = [part for record in records for part in mutable_parts(record)]
        self.items = _items(self.parts)


class Remembered:
    """A list as this store last wrote or read it."""

    def __init__(self, version: int, records: Sequence[Any], digests: list[bytes], created: list[int]) -> None:
        self.version = version
        self.records = list(records)
        self.digests = digests
        self.created = created
        self._latest: int | None = None
        self._places: dict[str | None, int] | None = None
        self._parts: list[Any] | None = None
        self._proof = bytearray()

    @classmethod
    def of_outline(cls, outline: Outline) -> Remembered:
        """A list of which only the outline is known: every record will be encoded and compared."""
        digests, created = [row[1] for row in outline.rows], [row[2] for row in outline.rows]
        remembered = cls(outline.version, [_UNKNOWN] * outline.count, digests, created)
        remembered._places = {row[3]: row[0] for row in outline.rows}
        return remembered

    @classmethod
    def of_tail(cls, tail: Tail) -> Remembered:
        """A list that is nothing but *tail*, of a version yet to be known."""
        remembered = cls(0, (), [], [])
        remembered._parts = []
        remembered.extend(0, tail)
        return remembered

    def __len__(self) -> int:
        return len(self.records)

    def latest(self) -> int:
        """The greatest time of a record; 0 where there is none."""
        if self._latest is None:
            self._latest = max(self.created, default=0)
        return self._latest

    def suspects(self, records: Sequence[Any]) -> Sequence[int]:
        """The positions within both lists where *records* may differ from what is stored."""
        old = self.records
        shared = range(min(len(old), len(records)))
        others = [] if all(map(operator.is_, old, records)) else [i for i in shared if old[i] is not records[i]]
        if self._parts_unchanged():
            return others
        doubtful = {i for i in shared if old[i] is records[i] and next(mutable_parts(old[i]), None) is not None}
        return sorted(doubtful.union(others))

    def _parts_unchanged(self) -> bool:
        if self._parts is None:
            return False
        try:
            return _items(self._parts) == self._proof
        except ValueError:  # something that is not JSON was put in
            return False

    def extend(self, version: int, tail: Tail) -> None:
        """Note that *tail* was appended."""
        if self._places is not None:
            self._places.update((key_of(row), place) for place, row in enumerate(tail.rows, len(self)))
        if self._parts is not None:
            self._parts.extend(tail.parts)
            self._proof += tail.items
        self.version = version
        self.records.extend(tail.records)
        self.digests.extend(row.body.digest for row in tail.rows)
        self.created.extend(row.created_at for row in tail.rows)
        if self._latest is not None:
            self._latest = max((self._latest, *(row.created_at for row in tail.rows)))

    def changed(self, records: Sequence[Any], put: Iterable[tuple[int, Row]], length: int) -> Remembered:
        """This list cut to *length*, with *put* in it, holding *records* now."""
        new = Remembered(self.version, records, self.digests[:length], self.created[:length])
        for i, row in put:
            new.digests[i], new.created[i] = row.body.digest, row.created_at
        if _UNKNOWN in new.records:  # only an upsert leaves records unknown, and it moves none
            new._places = self._places
        new._parts = [part for record in new.records for part in mutable_parts(record)]
        new._proof += _items(new._parts)
        return new

    def last_with_key(self, key: str) -> int | None:
        """The last position of the tool call of this id."""
        if self._places is None:
            self._places = {index_text(record.id): place for place, record in enumerate(self.records)}
        return self._places.get(key)


def _items(parts: list[Any]) -> bytes:
    return marshal.dumps(parts, _MARSHAL)[_LIST_HEADER:]


def key_of(row: Row) -> str | None:
    """The row's call id, as the index has it."""
    return row.index.call_id if isinstance(row.index, ToolCallIndex) else None


class ListMemory:
    """What is remembered of the lists written and read last, up to a number of records."""

    def __init__(self) -> None:
        self._lists: OrderedDict[tuple[str, ListKind], tuple[Remembered, int]] = OrderedDict()
        self._size = 0

    def get(self, agent_id: str, kind: ListKind) -> Remembered | None:
        found = self._lists.get((agent_id, kind))
        if found is None:
            return None
        self._lists.move_to_end((agent_id, kind))
        return found[0]

    def put(self, agent_id: str, kind: ListKind, remembered: Remembered | None) -> None:
        self.drop(agent_id, kind)
        if remembered is None or len(remembered) > _MAX_ROWS:
            return
        size = len(remembered) + 10
        self._lists[agent_id, kind] = (remembered, size)
        self._size += size
        while self._size > _MAX_ROWS:
            _, (_, oldest) = self._lists.popitem(last=False)
            self._size -= oldest

    def drop(self, agent_id: str, kind: ListKind) -> None:
        _, size = self._lists.pop((agent_id, kind), (None, 0))
        self._size -= size

    def loaded(self, agent_id: str, kind: ListKind, records: Sequence[Record], rows: ListRows) -> None:
        """Note a list that was just read."""
        known = self.get(agent_id, kind)
        if rows.version and (known is None or known.version != rows.version):
            digests = [body.digest for body, _ in rows.rows]
            created = [created_at for _, created_at in rows.rows]
            self.put(agent_id, kind, Remembered(rows.version, records, digests, created))


# --- The three ways to change a list ----------------------------------------------------------------------------------


class Replace:
    """Make a list what *records* are.

    ``whole`` writes all of it whatever is there now: for a list that other writers change all the time.
    """

    def __init__(
        self, codec: ListCodec, old: Remembered, records: Sequence[Any], now: int, *, whole: bool = False
    ) -> None:
        if whole:
            self._write_whole(codec, old, records, now)
            return
        shared = min(len(old), len(records))
        suspects = old.suspects(records)
        candidates = ((i, codec.row(i, records[i], now)) for i in suspects)
        put = [(i, row) for i, row in candidates if row.body.digest != old.digests[i]]
        append = [codec.row(i, records[i], now) for i in range(shared, len(records))]
        if codec.kind == ListKind.MESSAGES and (put or append or shared < len(old)):
            put, append = keep_times(old.digests, old.created, put, append, shared)
        self._tail = Tail(records[shared:], append)
        self._base = old.changed(records[:shared], put, shared) if suspects or shared < len(old) else old
        self.write = ListWrite(
            expect=old.version,
            length=shared if shared < len(old) else None,
            put=tuple(put),
            append=tuple(append),
        )

    def _write_whole(self, codec: ListCodec, old: Remembered, records: Sequence[Any], now: int) -> None:
        append = [codec.row(i, record, now) for i, record in enumerate(records)]
        if codec.kind == ListKind.MESSAGES:
            _, append = keep_times(old.digests, old.created, [], append, 0)
        self._tail = Tail(records, append)
        self._base = Remembered.of_tail(Tail((), ()))
        self.write = ListWrite(length=0, append=tuple(append))

    def remember(self, head: ListHead) -> Remembered:
        self._base.extend(head.version, self._tail)
        return self._base


class Append:
    """Add *records* at the end, whatever is there."""

    def __init__(self, codec: ListCodec, old: Remembered | None, records: Sequence[Any], now: int) -> None:
        self._old = old
        start = 0 if old is None else len(old)
        if old is not None and codec.kind == ListKind.MESSAGES:
            now = max(now, old.latest())  # of a list that is not known the engine sees to it (MSG-4)
        rows = tuple(codec.row(start + i, record, now) for i, record in enumerate(records))
        self._tail = Tail(records, rows)
        self.write = ListWrite(append=rows)

    def remember(self, head: ListHead) -> Remembered | None:
        old = self._old
        if head.count == len(self._tail.rows):
            remembered = Remembered.of_tail(self._tail)
            remembered.version = head.version
            return remembered
        if old is None or head.version != old.version + 1:
            return None
        old.extend(head.version, self._tail)
        return old


class Upsert:
    """Replace the last record of the same id, or append (TC-3); of *records* with one id the last one stays."""

    def __init__(self, codec: ListCodec, old: Remembered | Outline, records: Sequence[Any], now: int) -> None:
        start = len(old) if isinstance(old, Remembered) else old.count
        places: dict[str | None, int] = {} if isinstance(old, Remembered) else {row[3]: row[0] for row in old.rows}
        put: dict[int, tuple[Row, Any]] = {}
        append: list[tuple[Row, Any]] = []
        for record in records:
            row = codec.row(start + len(append), record, now)
            key = key_of(row)
            if key not in places and isinstance(old, Remembered) and key is not None:
                known = old.last_with_key(key)
                places.update({} if known is None else {key: known})
            place = places.setdefault(key, start + len(append))
            if place < start:
                put[place] = (row, record)
            else:
                append[place - start : place - start + 1] = [(row, record)]
        changes = tuple((i, put[i][0]) for i in sorted(put))
        self._tail = Tail([record for _, record in append], [row for row, _ in append])
        self._base = None
        if isinstance(old, Remembered):
            after = [put[i][1] if i in put else record for i, record in enumerate(old.records)] if put else ()
            self._base = old.changed(after, changes, start) if put else old
        self.write = ListWrite(expect=old.version, put=changes, append=tuple(self._tail.rows))

    def remember(self, head: ListHead) -> Remembered | None:
        if self._base is not None:
            self._base.extend(head.version, self._tail)
        return self._base
