"""Finds events that are stored already (EVT-4), at a cost that does not grow with the events of one seq.

The first events of a seq are read and compared. Each later event of that seq has a second item under its *name*, made
of its seq and its digest; one more read by name finds the event's offset.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, TypeAlias

from msgspec.structs import replace

from kode_core.authoring.parallel import each
from kode_core.batch import Batch
from kode_core.engines.record.state import (
    UNNAMED,
    OpenedHead,
    Overlay,
    event_key,
    is_event,
    name_key,
    position_of,
    seq_key,
    seq_keys,
)
from kode_core.engines.record.store import DocIndex, EventIndex, Item, KeyRange, RecordStore

__all__ = ["Name", "known_events", "known_of_batches"]

Name: TypeAlias = tuple[int, bytes]
"""The seq and the digest of an event."""

_SINGLE_SEQS: Final = 4
_FEW: Final = 64


async def known_of_batches(store: RecordStore, head: OpenedHead | None, batches: Sequence[Batch]) -> dict[Name, int]:
    """The offsets of the batches' events that are stored already. Events of a seq above the last one cannot be."""
    if head is None or head.state.last_seq is None:
        return {}
    events = [event for batch in batches for event in batch.events]
    names = {(event.seq, event.body.digest) for event in events if event.seq <= head.state.last_seq}
    return await known_events(store, head, names) if names else {}


async def known_events(store: RecordStore, head: OpenedHead, names: Collection[Name]) -> dict[Name, int]:
    """The offsets of stored events: those with one of the *names*, and the first ones of each seq in them."""
    reading = _Names(store, head)
    seqs = sorted({seq for seq, _ in names})
    if len(seqs) > _SINGLE_SEQS:
        keys, most = seq_keys(seqs[0], seqs[-1], bodies=False), 4 * len(names) + _FEW
        some, is_all = await reading.items(replace(keys, limit=most))
        if is_all:
            return _offsets(some)
    firsts = await each(reading.first, seqs)
    known = _offsets([item for first in (await reading.kept(), *firsts) for item in first])
    many = {seq: first for seq, first in zip(seqs, firsts, strict=True) if len(first) == UNNAMED}
    for seq, first in many.items():
        known |= await reading.unnamed(seq, position_of(first[-1].key))
    left = [name for name in names if name[0] in many and name not in known]
    for name, offset in zip(left, await each(reading.named, left), strict=True):
        if offset is not None:
            known[name] = offset
    return known


class _Names:
    """Reads of one agent's events, as its head knows them."""

    def __init__(self, store: RecordStore, head: OpenedHead) -> None:
        self._store = store
        self._head = head

    async def items(self, keys: KeyRange) -> tuple[list[Item], bool]:
        """The living events, or the names, of a range, and whether there are no more."""
        record = self._head.record
        found = await self._store.items(record.place, keys)
        stored = [item for item in found if item.rev <= record.rev]
        some = Overlay(self._head.state.pending).over(stored, keys)
        return [item for item in some if self._is_alive(item)], keys.limit is None or len(found) < keys.limit

    def _is_alive(self, item: Item) -> bool:
        return not is_event(item.key) or self._head.state.has_event(position_of(item.key))

    async def first(self, seq: int) -> list[Item]:
        after = self._head.state.events_from - 1
        keys = seq_keys(seq, seq, after_offset=after, bodies=False)
        return (await self.items(replace(keys, limit=UNNAMED)))[0]

    async def kept(self) -> list[Item]:
        """The one event that a prune kept below the others."""
        kept = self._head.state.kept_event
        if kept is None:
            return []
        return (await self.items(KeyRange(first=event_key(kept), last=event_key(kept), bodies=False)))[0]

    async def unnamed(self, seq: int, last_read: int) -> dict[Name, int]:
        """Events after the first ones of a seq that were stored by a release without names."""
        named_from, keys = self._head.state.named_from, seq_keys(seq, seq, after_offset=last_read, bodies=False)
        if named_from is None:
            return _offsets((await self.items(keys))[0])
        if last_read + 1 >= named_from:
            return {}
        return _offsets((await self.items(replace(keys, last=seq_key(seq, named_from - 1))))[0])

    async def named(self, name: Name) -> int | None:
        key = name_key(*name)
        for item in (await self.items(KeyRange(first=key, last=key, bodies=False)))[0]:
            if isinstance(item.index, DocIndex) and self._head.state.has_event(int(item.index.key)):
                return int(item.index.key)
        return None


def _offsets(items: Sequence[Item]) -> dict[Name, int]:
    events = [(item.index, item) for item in items if isinstance(item.index, EventIndex)]
    return {(index.seq, item.body.digest): position_of(item.key) for index, item in events}
