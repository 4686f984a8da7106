"""One agent's contents in memory, as the built-in engines keep them.

A state never reads the text of a body. Bodies of the memory engine contain their text; bodies of the JSON files engine
have its place in the file.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, Protocol, cast

from msgspec.structs import replace

from kode_core.batch import (
    CORE_KEYS,
    AgentSummary,
    Applied,
    Batch,
    Doc,
    DocKind,
    DocSpan,
    DocWrite,
    EventDrop,
    EventRange,
    EventRow,
    EventWrite,
    Info,
    ListHead,
    ListKind,
    ListRows,
    ListWrite,
    Outline,
    Refused,
    Row,
    ToolCallIndex,
    placed_docs,
)
from kode_core.codec import Body
from kode_core.model import CHANNELS
from kode_core.query import AgentStats

__all__ = ["AgentState", "EventLog", "ListState"]


class ListState:
    """A list of rows and its version, which is 0 until something is written."""

    __slots__ = ("_latest", "rows", "version")

    def __init__(self) -> None:
        self.version = 0
        self.rows: list[Row] = []
        self._latest: int | None = None
        """The greatest created_at, if it is known."""

    @property
    def head(self) -> ListHead:
        return ListHead(self.version, len(self.rows))

    def in_order(self, write: ListWrite) -> ListWrite:
        """The write, with no message older than the messages that stay before it (MSG-4)."""
        kept = len(self.rows) if write.length is None else min(write.length, len(self.rows))
        if not write.is_blind or not kept:
            return write
        if kept < len(self.rows):
            return write.not_before(max(row.created_at for row in self.rows[:kept]))
        if self._latest is None:
            self._latest = max(row.created_at for row in self.rows)
        return write.not_before(self._latest)

    def apply(self, write: ListWrite, head: ListHead) -> None:
        if write.length is not None and write.length < len(self.rows):
            del self.rows[write.length :]
            self._latest = None
        for position, row in write.put:
            if position < len(self.rows):
                if row.created_at < self.rows[position].created_at:
                    self._latest = None  # it may have been the greatest
                self.rows[position] = row
            else:
                self.rows.append(row)
        self.rows.extend(write.append)
        if self._latest is not None:
            self._latest = max((self._latest, *write.times()))
        self.version = head.version


_CROWD: Final = 16
"""Up to this many events with one seq are searched one by one; more of them get an index."""


class Bodies(Protocol):
    """The bodies of a log, without their digests, which it has by itself."""

    def append(self, body: Body, /) -> None: ...

    def body(self, i: int, digest: bytes, /) -> Body: ...

    def keep(self, kept: slice, first: int, /) -> None: ...


class Texts:
    """Bodies that have their texts."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def append(self, body: Body) -> None:
        self._texts.append(body.text)

    def body(self, i: int, digest: bytes) -> Body:
        return Body(self._texts[i], digest)

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


class AgentState:
    """Everything that is stored for one agent."""

    __slots__ = ("_keys", "agent_id", "docs", "info", "last_op", "last_outcome", "lists", "log", "updated_at")

    def __init__(self, agent_id: str, next_offset: int = 1, bodies: Bodies | None = None) -> None:
        self.agent_id = agent_id
        self.info: Info | None = None
        self.updated_at = 0
        self.lists = {kind: ListState() for kind in ListKind}
        self.docs: dict[tuple[DocKind, str], Doc] = {}
        self._keys: list[str] = []
        """The keys of the documents of the kind DOCUMENTS, in their order."""
        self.log = EventLog(next_offset, bodies)
        self.last_op = ""
        self.last_outcome = Applied()

    @property
    def has_contents(self) -> bool:
        """True if anything is stored, apart from the documents of layers."""
        lists = any(rows.version for rows in self.lists.values())
        return bool(self.info or self.log or lists or any(kind != DocKind.LAYER for kind, _ in self.docs))

    @property
    def is_empty(self) -> bool:
        lists = any(rows.version for rows in self.lists.values())
        return not (self.info or self.docs or self.log or lists)

    # --- writes

    def refusal(self, batch: Batch) -> Refused | None:
        """The reason why *batch* must not be applied, apart from the fence."""
        found = [(key, self.docs.get((DocKind.DOCUMENTS, key))) for key in batch.demanded_docs]
        digests = {key: doc.body.digest for key, doc in found if doc is not None}
        heads = (self.lists[ListKind.MESSAGES].head, self.lists[ListKind.TOOL_CALLS].head)
        refusal = batch.refusal(self.updated_at, *heads, digests)
        if refusal is None and batch.drop_events is not None and not self.log.has(batch.drop_events.keep):
            return Refused("events")
        return refusal

    def outcome(self, batch: Batch) -> Applied:
        """The outcome of applying *batch*; changes nothing."""
        return Applied(
            self.lists[ListKind.MESSAGES].head.after(batch.messages),
            self.lists[ListKind.TOOL_CALLS].head.after(batch.tool_calls),
            self.log.offsets_for(batch.events),
        )

    def stamped(self, batch: Batch) -> Batch:
        """*batch* with a time after the last change, whatever the clock says (INFO-2), and its messages too (MSG-4).

        It demands no documents any more: a file that repeats it would find its own.
        """
        if batch.messages is not None:
            kept = self.lists[ListKind.MESSAGES].head.kept(batch.messages)
            batch = replace(batch, docs=placed_docs(batch.docs, kept))
        if batch.demanded_docs:
            batch = replace(batch, docs=tuple(replace(write, expect=None) for write in batch.docs))
        if batch.is_touching and batch.now <= self.updated_at:
            batch = replace(batch, now=self.updated_at + 1)
        if batch.messages is not None and batch.messages.is_blind:
            batch = replace(batch, messages=self.lists[ListKind.MESSAGES].in_order(batch.messages))
        return batch

    def apply(self, batch: Batch, outcome: Applied) -> None:
        """Apply *batch*, except its ``delete``."""
        if batch.info is not None:
            self.info = batch.info
        for kind, write in batch.lists.items():
            self.lists[kind].apply(write, getattr(outcome, kind.value))
        for change in batch.docs:
            self._apply_doc(change)
        if batch.drop_events is not None:
            self.log.drop(batch.drop_events)
        if batch.events:  # a rewritten file repeats the last outcome without its events
            self.log.apply(batch.events, outcome.offsets)
        if batch.is_touching:
            self.updated_at = max(self.updated_at, batch.now)
        self.last_op, self.last_outcome = batch.op_id, outcome

    def _apply_doc(self, change: DocWrite) -> None:
        name, is_own = (change.kind, change.key), change.kind is DocKind.DOCUMENTS
        if change.doc is None:
            if self.docs.pop(name, None) is not None and is_own:
                del self._keys[bisect_left(self._keys, change.key)]
            return
        if is_own and name not in self.docs:
            insort(self._keys, change.key)
        self.docs[name] = change.doc

    # --- reads

    def summary(self) -> AgentSummary | None:
        if self.info is None and not any(x.version for x in self.lists.values()):
            return None
        return AgentSummary(
            agent_id=self.agent_id,
            info=self.info,
            updated_at=self.updated_at,
            messages=self.lists[ListKind.MESSAGES].head,
            tool_calls=self.lists[ListKind.TOOL_CALLS].head,
        )

    def rows(self, kind: ListKind) -> ListRows:
        state = self.lists[kind]
        return ListRows(state.version, [(row.body, row.created_at) for row in state.rows])

    def rows_at(self, kind: ListKind, start: int, limit: int) -> ListRows:
        state = self.lists[kind]
        return ListRows(state.version, [(row.body, row.created_at) for row in state.rows[start : start + limit]])

    def outline(self, kind: ListKind, keys: Sequence[str] | None) -> Outline:
        state = self.lists[kind]
        places = range(len(state.rows)) if keys is None else sorted(self._last_places(state, set(keys)))
        rows = [(i, row.body.digest, row.created_at, _key(row)) for i, row in ((i, state.rows[i]) for i in places)]
        return Outline(state.version, len(state.rows), rows)

    def _last_places(self, state: ListState, keys: set[str]) -> Iterator[int]:
        for i in range(len(state.rows) - 1, -1, -1):
            key = _key(state.rows[i])
            if key in keys:
                keys.discard(key)
                yield i
            if not keys:
                return

    def docs_of(self, kind: DocKind, key: str | None) -> list[Doc]:
        if key is not None:
            doc = self.docs.get((kind, key))
            return [] if doc is None else [doc]
        return [doc for (k, _), doc in self.docs.items() if k == kind]

    def docs_in(self, span: DocSpan) -> list[Doc]:
        first, end = bisect_left(self._keys, span.start), bisect_left(self._keys, span.stop)
        if span.descending:
            keys = self._keys[max(first, end - span.limit) : end][::-1]
        else:
            keys = self._keys[first : min(end, first + span.limit)]
        return [self.docs[DocKind.DOCUMENTS, key] for key in keys]

    def stats(self) -> AgentStats:
        calls = [cast(ToolCallIndex, row.index) for row in self.lists[ListKind.TOOL_CALLS].rows]
        return AgentStats(
            total_messages=len(self.lists[ListKind.MESSAGES].rows),
            total_tool_calls=len(calls),
            total_snapshots=sum(kind == DocKind.SNAPSHOTS for kind, _ in self.docs),
            total_documents=bisect_left(self._keys, CORE_KEYS),
            tool_calls_by_name=dict(Counter(call.tool_name for call in calls)),
            tool_calls_by_state=dict(Counter(call.state for call in calls)),
        )


def _key(row: Row) -> str | None:
    return row.index.call_id if isinstance(row.index, ToolCallIndex) else None
