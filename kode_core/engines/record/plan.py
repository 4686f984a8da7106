"""Plans a swap: applies batches to a head, and lists the items to put and remove with it."""

from __future__ import annotations

import itertools
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from kode_core.batch import (
    Applied,
    Batch,
    DocKind,
    DocWrite,
    EventDrop,
    EventWrite,
    Info,
    ListHead,
    ListKind,
    ListWrite,
    Refused,
    Row,
    ToolCallIndex,
    first_version,
    placed_docs,
)
from kode_core.codec import Body
from kode_core.engines.record.doc_keys import doc_key
from kode_core.engines.record.state import (
    KEPT_OPS,
    UNNAMED,
    AppliedOperation,
    Freed,
    OpenedHead,
    State,
    Step,
    call_key,
    event_key,
    is_event,
    list_head,
    list_of,
    name_key,
    new_epoch,
    position_of,
    row_key,
    row_keys,
    seq_key,
)
from kode_core.engines.record.store import Cut, DocIndex, EventIndex, HeadRecord, Item

__all__ = ["Plan", "new_head"]

_NO_LIST: Final = ListHead()
_NO_DIGESTS: Final[Mapping[tuple[DocKind, str], bytes]] = {}


def new_head(agent_id: str) -> HeadRecord:
    """A head before its first swap. Its revision is random, so that revisions of a forgotten head are not reused."""
    return HeadRecord(
        agent_id=agent_id,
        epoch=new_epoch(),
        rev=first_version(),
        info=None,
        updated_at=0,
        messages=_NO_LIST,
        tool_calls=_NO_LIST,
        is_used=False,
        is_settled=True,
        state=b"",
    )


class Plan:
    """One swap of a head.

    Args:
        old: the agent's settled head; None without one.
        known: offsets of stored events, by (seq, digest).
        latest: the greatest time of a message, if the head does not say it.
        digests: the digests of the existing ones among the documents that the batches demand, by kind and key.
        has_more: whether the agent has events or documents, but for layers' and the core's, if a batch demands nothing.
    """

    def __init__(
        self,
        agent_id: str,
        old: OpenedHead | None,
        known: Mapping[tuple[int, bytes], int],
        latest: int | None = None,
        digests: Mapping[tuple[DocKind, str], bytes] = _NO_DIGESTS,
        *,
        has_more: bool = False,
    ) -> None:
        head = OpenedHead(new_head(agent_id), State()) if old is None else old
        self.head = head.record
        self.state = replace(head.state, pending=(), stash=None, frozen=None)
        if latest is not None:
            self.state = replace(self.state, latest=latest, is_latest=True)
        self.rev = self.head.rev + 1
        self.info_body: Body | None = None
        self._known = dict(known)
        self._digests = dict(digests)
        self._has_more = has_more
        self._of_seq = Counter(seq for seq, _ in known)
        if self.state.named_from is None:
            self.state = replace(self.state, named_from=self.state.next_offset)
        self._counts = {kind: list_head(self.head, kind).count for kind in ListKind}
        self._puts: dict[str, Item] = {}
        self._cuts: list[Cut] = []
        self._freed: list[Freed] = []
        self._is_changed = False
        self.is_dropping = False
        """Whether events below a new ``events_from`` have to be erased."""

    @property
    def is_changed(self) -> bool:
        """Whether the batches change anything."""
        return self._is_changed

    @property
    def changes(self) -> tuple[Step, ...]:
        return (*self._cuts, *self._list_cuts(), *self._freed, *self._list_freed(), *self._puts.values())

    def result(self, state: State) -> OpenedHead:
        """The new head, with *state*."""
        return OpenedHead.sealed(replace(self.head, rev=self.rev), state)

    # --- batches

    def add(self, batch: Batch) -> Applied | Refused:
        """Apply a batch. The swap checks its fence."""
        known = next((op for op in self.state.ops if op.op_id == batch.op_id), None)
        if known is not None:
            return Applied(known.messages, known.tool_calls, self._offsets(batch.events, known.first_offset))
        head = self.head
        lists, info = (head.messages, head.tool_calls), head.info.body.digest if head.info else b""
        refusal = batch.refusal(head.updated_at, *lists, self._digests, info=info, has_more=self._has_more)
        if refusal is not None:
            return refusal
        if batch.drop_events is not None and not self._has_event(batch.drop_events.keep):
            return Refused("events")
        was_changed, self._is_changed = self._is_changed, batch.is_touching
        if batch.delete:
            self._delete()
        docs = batch.docs
        if batch.messages is not None:
            docs = placed_docs(docs, self.head.messages.kept(batch.messages))
        for kind, write in batch.lists.items():
            self._write_list(kind, write)
        for change in docs:
            self._write_doc(change)
        if batch.info is not None:
            self._write_info(batch.info)
        if batch.drop_events is not None:
            self._drop_events(batch.drop_events)
        first_offset = self.state.next_offset
        offsets = self._append(batch.events)
        if self._is_changed:
            self._remember(batch, first_offset)
        self._is_changed |= was_changed
        return Applied(self.head.messages, self.head.tool_calls, offsets)

    def _remember(self, batch: Batch, first_offset: int) -> None:
        """Remember the batch's operation: a retry after a lost answer must not undo later writes."""
        if batch.is_touching:
            self.head = replace(self.head, updated_at=max(self.head.updated_at + 1, batch.now), is_used=True)
        op = AppliedOperation(batch.op_id, self.rev, self.head.messages, self.head.tool_calls, first_offset)
        self.state = replace(self.state, ops=(op, *self.state.ops[: KEPT_OPS - 1]))

    def _delete(self) -> None:
        was_used = self.head.is_used or bool(self._puts)
        self._puts, self._cuts, self._freed, self._known, self.info_body = {}, [], [], {}, None
        self._of_seq, self._digests, self._has_more = Counter[int](), {}, False
        if not was_used:
            return
        self._counts = dict.fromkeys(ListKind, 0)
        doomed = (*self.state.doomed, self.head.epoch)
        offset = self.state.next_offset
        kept = State(next_offset=offset, ops=self.state.ops, doomed=doomed, named_from=offset, events_from=offset)
        fresh = new_head(self.head.agent_id)
        self.head, self.state = replace(fresh, rev=self.head.rev), kept
        self._is_changed = True

    def _write_list(self, kind: ListKind, write: ListWrite) -> None:
        old = list_head(self.head, kind)
        if kind is ListKind.MESSAGES:
            write = self._in_order(write, old)
        if write.length is not None and write.length < old.count:
            self._take_back(row_key(kind, write.length), row_keys(kind).last)
        for position, row in (*write.put, *enumerate(write.append, old.kept(write))):
            self._put(_row_item(kind, position, row, self.rev))
        self.head = replace(self.head, **{kind.value: old.after(write)})

    def _in_order(self, write: ListWrite, old: ListHead) -> ListWrite:
        """The write, with no new message older than a message that it keeps (MSG-4)."""
        kept = old.count if write.length is None else min(write.length, old.count)
        if write.is_blind and kept and self.state.latest is not None:
            write = write.not_before(self.state.latest)
        self.state = self.state.times_after(write, kept)
        return write

    def _list_cuts(self) -> list[Cut]:
        """Cuts of the rows by which lists became shorter. Positions after those hold only tombstones."""
        after = {kind: list_head(self.head, kind).count for kind in ListKind}
        shorter = [(kind, after[kind], before) for kind, before in self._counts.items() if after[kind] < before]
        return [
            Cut(first=row_key(kind, count), last=row_key(kind, before - 1), rev=self.rev)
            for kind, count, before in shorter
        ]

    def _list_freed(self) -> list[Freed]:
        """Runs of existing rows that are put again, if items may have parts: the older parts are dropped."""
        if not self.state.has_parts:
            return []
        freed = []
        for kind, before in self._counts.items():
            positions = sorted(position_of(key) for key in self._puts if list_of(key) is kind)
            again = [position for position in positions if position < before]
            for _, run in itertools.groupby(enumerate(again), lambda pair: pair[1] - pair[0]):
                places = [row_key(kind, position) for _, position in run]
                freed.append(Freed(first=places[0], last=places[-1], rev=self.rev))
        return freed

    def _write_doc(self, write: DocWrite) -> None:
        key = doc_key(write.kind, write.key)
        self._digests[write.kind, write.key] = b"" if write.doc is None else write.doc.body.digest
        if write.doc is None:
            self._take_back(key, key)
            self._cuts.append(Cut(first=key, last=key, rev=self.rev))
            return
        if self.state.has_parts:
            self._freed.append(Freed(first=key, last=key, rev=self.rev))
        index = DocIndex(write.kind.value, write.key, write.doc.terms)
        if write.doc.terms and not self.state.has_terms:
            self.state = replace(self.state, has_terms=True)
        self._put(Item(key=key, rev=self.rev, body=write.doc.body, index=index, time=write.doc.time))
        if write.kind != DocKind.LAYER:
            self.head, self._has_more = replace(self.head, is_used=True), True

    def _write_info(self, info: Info) -> None:
        self.info_body = info.body
        self.head = replace(self.head, info=info)
        self.state = replace(self.state, info=None)

    def _put(self, item: Item) -> None:
        self._puts[item.key] = item
        self._is_changed = True

    def _take_back(self, first: str, last: str) -> None:
        """Drop the puts of this swap with keys from the first to the last."""
        if first == last:
            self._puts.pop(first, None)
        else:
            self._puts = {key: item for key, item in self._puts.items() if not first <= key <= last}
        self._is_changed = True

    # --- events

    def _append(self, events: Sequence[EventWrite]) -> tuple[int, ...]:
        for event in events:
            name = (event.seq, event.body.digest)
            if name in self._known and self._has_event(self._known[name]):
                continue
            offset = self._known[name] = self.state.next_offset
            last = event.seq if self.state.last_seq is None else max(self.state.last_seq, event.seq)
            self.state = replace(self.state, next_offset=offset + 1, last_seq=last)
            self.head, self._has_more = replace(self.head, is_used=True), True
            self._put(_event_item(event, offset, self.rev))
            self._of_seq[event.seq] += 1
            if self._of_seq[event.seq] > UNNAMED:
                self._put(_name_item(event, offset, self.rev))
        return self._offsets(events)

    def _has_event(self, offset: int) -> bool:
        return offset < self.state.next_offset and self.state.has_event(offset)

    def _drop_events(self, drop: EventDrop) -> None:
        """Raise the offset from which the log has events; the events below are erased after the swap."""
        state, before = self.state, min(drop.before, self.state.next_offset)
        kept = drop.keep if drop.keep < max(before, state.events_from) else None
        if kept is None and state.kept_event is not None and state.kept_event >= before:
            kept = state.kept_event
        after = replace(state, events_from=max(before, state.events_from), kept_event=kept)
        if after == state:
            return
        self.state, self.is_dropping, self._is_changed = after, True, True
        for key in [key for key in self._puts if is_event(key) and not after.has_event(position_of(key))]:
            del self._puts[key]

    def _offsets(self, events: Sequence[EventWrite], first: int = 0) -> tuple[int, ...]:
        """The offsets of events. Events that were deleted since they were stored had offsets from *first* on."""
        offsets = dict(self._known)
        for event in events:
            name = (event.seq, event.body.digest)
            if name not in offsets:
                offsets[name], first = first, first + 1
        return tuple(offsets[event.seq, event.body.digest] for event in events)


def _row_item(kind: ListKind, position: int, row: Row, rev: int) -> Item:
    alt = call_key(row.index.call_id, position) if isinstance(row.index, ToolCallIndex) else None
    key = row_key(kind, position)
    return Item(key=key, rev=rev, body=row.body, index=row.index, time=row.created_at, alt=alt)


def _event_item(event: EventWrite, offset: int, rev: int) -> Item:
    index = EventIndex(event.seq, event.channel)
    return Item(key=event_key(offset), rev=rev, body=event.body, index=index, alt=seq_key(event.seq, offset))


def _name_item(event: EventWrite, offset: int, rev: int) -> Item:
    """The second item of an event, by which it is found among any number of events of its seq."""
    index = DocIndex("event", str(offset))
    return Item(key=name_key(event.seq, event.body.digest), rev=rev, body=Body("", event.body.digest), index=index)


def nonce() -> str:
    """A random name, unique to one write."""
    return secrets.token_hex(8)
