"""An agent's event log in memory, in arrays by offset."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from kode_core.batch import EventDrop, EventRange, EventRow, EventWrite
from kode_core.codec import Body
from kode_core.model import CHANNELS

__all__ = ["Bodies", "EventLog"]

_CROWD: Final = 16
"""Up to this many events with one seq are searched one by one; more of them get an index."""


class Bodies(Protocol):
    """The bodies of a log, without their digests, which it has by itself."""

    def append(self, body: Body, /) -> None: ...

    def body(self, i: int, digest: bytes, /) -> Body: ...

    def put(self, i: int, body: Body, /) -> None: ...

    def keep(self, kept: slice, first: int, /) -> None: ...


class Texts:
    """Bodies that have their texts."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def append(self, body: Body) -> None:
        self._texts.append(body.text)

    def body(self, i: int, digest: bytes) -> Body:
        return Body(self._texts[i], digest)

    def put(self, i: int, body: Body) -> None:
        self._texts[i] = body.text

    def keep(self, kept: slice, first: int) -> None:
        self._texts[:first] = self._texts[kept]


class EventLog:
    """An agent's events in arrays by offset; their order by (seq, offset) is kept only if it differs."""

    __slots__ = ("_channels", "_crowds", "_digests", "_offsets", "_order", "_seqs", "bodies", "dropped", "next_offset")

    def __init__(self, next_offset: int = 1, bodies: Bodies | None = None) -> None:
        self.next_offset = next_offset
        self.bodies = Texts() if bodies is None else bodies
        self._offsets = array("q")
        self._seqs = array("q")
        self._channels = bytearray()
        self._digests = bytearray()
        self._order: array[int] | None = None
        self._crowds: dict[int, dict[bytes, int]] = {}
        self.dropped = 0
        """The number of events that were dropped since the caller last set it to 0."""

    def __len__(self) -> int:
        return len(self._offsets)

    def _at(self, rank: int) -> int:
        return rank if self._order is None else self._order[rank]

    def _seq_at(self, rank: int) -> int:
        return self._seqs[self._at(rank)]

    def _digest(self, i: int) -> bytes:
        return bytes(self._digests[i * 16 : i * 16 + 16])

    def find(self, seq: int, digest: bytes) -> int | None:
        """The offset of the event with this seq and digest."""
        crowd = self._crowds.get(seq)
        if crowd is not None:
            return crowd.get(digest)
        ranks = range(len(self))
        first = bisect_left(ranks, seq, key=self._seq_at)
        last = bisect_right(ranks, seq, lo=first, key=self._seq_at)
        for i in map(self._at, ranks[first:last][:_CROWD]):
            if self._digest(i) == digest:
                return self._offsets[i]
        if last - first <= _CROWD:
            return None
        crowd = self._crowds[seq] = {}
        for i in map(self._at, ranks[first:last]):
            crowd.setdefault(self._digest(i), self._offsets[i])
        return crowd.get(digest)

    def offsets_for(self, events: Sequence[EventWrite]) -> tuple[int, ...]:
        """The offset that each event will have, or already has (EVT-4)."""
        fresh: dict[tuple[int, bytes], int] = {}
        for event in events:
            key = (event.seq, event.body.digest)
            if key not in fresh:
                known = self.find(*key)
                fresh[key] = self.next_offset + len(fresh) if known is None else known
        return tuple(fresh[event.seq, event.body.digest] for event in events)

    def apply(self, events: Sequence[EventWrite], offsets: Sequence[int]) -> None:
        for event, offset in zip(events, offsets, strict=True):
            if not self._offsets or offset > self._offsets[-1]:
                self._add(event, offset)

    def _add(self, event: EventWrite, offset: int) -> None:
        i = len(self)
        if self._order is None and i and event.seq < self._seqs[-1]:
            self._order = array("q", range(i))
        if self._order is not None:
            self._order.insert(bisect_right(range(i), event.seq, key=self._seq_at), i)
        self._offsets.append(offset)
        self._seqs.append(event.seq)
        self._channels.append(CHANNELS.index(event.channel))
        self._digests += event.body.digest
        if event.seq in self._crowds:
            self._crowds[event.seq].setdefault(event.body.digest, offset)
        self.bodies.append(event.body)
        self.next_offset = max(self.next_offset, offset + 1)

    def has(self, offset: int) -> bool:
        """Whether the event with this offset is stored."""
        i = bisect_left(self._offsets, offset)
        return i < len(self) and self._offsets[i] == offset

    def rewrite(self, offset: int, expect: bytes, body: Body) -> None:
        """Give an event another body, if its own still has the digest *expect*."""
        i = bisect_left(self._offsets, offset)
        if not self.has(offset) or self._digest(i) != expect:
            return
        self._crowds.pop(self._seqs[i], None)
        self._digests[i * 16 : i * 16 + 16] = body.digest
        self.bodies.put(i, body)

    def drop(self, drop: EventDrop) -> None:
        """Remove a prefix of the log, but for one event."""
        first = bisect_left(self._offsets, drop.before)
        i = bisect_left(self._offsets, drop.keep)
        kept = slice(i, i + (i < first and self._offsets[i] == drop.keep))
        gone = first - (kept.stop - kept.start)
        if not gone:
            return
        for j in range(first if self._crowds else 0):
            crowd = self._crowds.get(self._seqs[j])
            if crowd is not None and j != kept.start and crowd.get(self._digest(j)) == self._offsets[j]:
                del crowd[self._digest(j)]
        if self._order is not None:
            left = [j - gone for j in self._order if j >= first]
            for j in range(kept.start, kept.stop):
                behind = self._order[self._order.index(j) + 1 :]
                left.insert(len(left) - sum([k >= first for k in behind]), 0)
            self._order = array("q", left)
        for column in (self._offsets, self._seqs):
            column[:first] = column[kept]
        self._channels[:first] = self._channels[kept]
        self._digests[: first * 16] = self._digests[kept.start * 16 : kept.stop * 16]
        self.bodies.keep(kept, first)
        self.dropped += gone

    def row(self, i: int) -> EventRow:
        return EventRow(self._offsets[i], self._seqs[i], self.bodies.body(i, self._digest(i)))

    def write_of(self, i: int) -> EventWrite:
        """The write that made event *i*."""
        row = self.row(i)
        return EventWrite(row.seq, CHANNELS[self._channels[i]], row.body)

    def read(self, span: EventRange) -> list[EventRow]:
        channel = None if span.channel is None else CHANNELS.index(span.channel)
        rows: list[EventRow] = []
        for i in self._ordered(span):
            if len(rows) == span.limit:
                break
            if channel is None or self._channels[i] == channel:
                rows.append(self.row(i))
        return rows

    def _ordered(self, span: EventRange) -> Iterator[int]:
        everything = range(len(self))
        if span.order == "offset":
            start = 0 if span.after is None else bisect_right(self._offsets, span.after[1])
            return (i for i in everything[start:] if span.since_seq is None or self._seqs[i] > span.since_seq)
        start = 0
        if span.since_seq is not None:
            start = bisect_right(everything, span.since_seq, key=self._seq_at)
        if span.after is not None:
            behind = bisect_right(everything, span.after, key=lambda r: (self._seq_at(r), self._offsets[self._at(r)]))
            start = max(start, behind)
        return map(self._at, everything[start:])

    def last(self) -> EventRow | None:
        return self.row(self._at(len(self) - 1)) if len(self) else None

    def repeated_offset(self) -> int | None:
        """An offset that does not grow over the one before it; None if all do."""
        return next((b for a, b in zip(self._offsets, self._offsets[1:], strict=False) if b <= a), None)
