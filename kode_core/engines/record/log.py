"""The event log of an agent at one instant: pages of it, its last event, and the removal of events from it.

The head says from which offset on the log has events, and which one below it still has. The swap that raises that
offset removes the events; from then on their items are *dead*. A process may die before it has erased them, or be slow
and put one late. No read shows dead items, and a sweep, a later prune or a delete erases them. No key of an event is
used twice, so that a dead one needs no tombstone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, cast

from msgspec.structs import replace

from kode_core.authoring.parallel import each
from kode_core.batch import EventRange, EventRow
from kode_core.engine import CALLER
from kode_core.engines.record.io import MovedError, RecordIO
from kode_core.engines.record.state import (
    OpenedHead,
    Overlay,
    State,
    event_key,
    event_keys,
    name_key,
    name_keys,
    position_of,
    seq_keys,
)
from kode_core.engines.record.store import DocIndex, EventIndex, Item, ItemsPlace, KeyRange, RecordStore

__all__ = ["ErasesItems", "OwnEvents", "erase_dropped", "erases_items", "event_row"]

_ERASED_AT_ONCE: Final = 500
_MORE: Final = 16


class ErasesItems(Protocol):
    """An optional interface of a record store: it removes items without leaving tombstones."""

    async def erase(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        """Remove the items with keys from *first* to *last*, both inclusive, and revisions below *rev*.

        The engine never needs an item at these keys again, and no item that is put there late harms. It calls
        ``CALLER.get().goes_on()`` after each step. The store may repeat it.
        """
        ...


def erases_items(store: RecordStore) -> bool:
    """Whether *store* has the interface :class:`ErasesItems`."""
    return callable(getattr(store, "erase", None))


def event_row(item: Item) -> EventRow:
    """The event of an item."""
    return EventRow(position_of(item.key), cast(EventIndex, item.index).seq, item.body)


class OwnEvents:
    """Reads of one agent's log, as its head knows it. Texts in parts are not read."""

    def __init__(self, store: RecordStore, head: OpenedHead, overlay: Overlay) -> None:
        self._store = store
        self._record = head.record
        self._state = head.state
        self._overlay = overlay

    async def page(self, span: EventRange) -> list[Item]:
        """A page of the log. Later events are left out; stored events never change."""
        state, rev = self._state, self._record.rev
        if span.order == "offset" and span.after is not None and span.after[1] >= state.next_offset - 1:
            return []  # no newer event: the poll of an idle follower is one read
        found = await self._kept(span) if span.order == "offset" else []
        keys = _keys_of(span, state)
        while len(found) < span.limit:
            keys = replace(keys, channel=span.channel, limit=span.limit)
            stored = await self._store.items(self._record.place, keys)
            known = [item for item in stored if item.rev <= rev]
            if len(known) == len(stored) or len(stored) < span.limit:
                known = self._overlay.over(known, keys)
            found += [item for item in known if self._is_wanted(item, span)]
            if len(stored) < span.limit:
                break
            last = event_row(known[-1] if len(known) == span.limit else stored[-1])
            keys = _keys_of(replace(span, after=(last.seq, last.offset)), state)
        return found[: span.limit]

    async def last(self) -> Item | None:
        """The event that is last by (seq, offset)."""
        limit = 1
        while True:
            keys = replace(seq_keys(bodies=limit == 1), descending=True, limit=limit)
            stored = await self._items(keys)
            alive = [item for item in stored if self._state.has_event(position_of(item.key))]
            if alive and limit > 1:  # it comes before dead ones
                alive = await self._items(KeyRange(first=alive[0].key, last=alive[0].key))
            if alive:
                return alive[0]
            if len(stored) < limit:
                return None
            limit *= _MORE

    async def _items(self, keys: KeyRange) -> list[Item]:
        stored = await self._store.items(self._record.place, keys)
        if any(item.rev > self._record.rev for item in stored):
            raise MovedError
        return self._overlay.over(stored, keys)

    async def _kept(self, span: EventRange) -> list[Item]:
        """The one event below the others, if it belongs to the span; it comes first in the order of offsets."""
        kept = self._state.kept_event
        if kept is None or (span.after is not None and span.after[1] >= kept):
            return []
        items = await self._items(KeyRange(first=event_key(kept), last=event_key(kept), channel=span.channel))
        return [item for item in items if self._is_wanted(item, span)]

    def _is_wanted(self, item: Item, span: EventRange) -> bool:
        row = event_row(item)
        return (span.since_seq is None or row.seq > span.since_seq) and self._state.has_event(row.offset)


def _keys_of(span: EventRange, state: State) -> KeyRange:
    if span.order == "offset":
        return event_keys(max(-1 if span.after is None else span.after[1], state.events_from - 1))
    first = -(2**63) if span.since_seq is None else span.since_seq + 1
    if span.after is not None and span.after[0] >= first:
        return seq_keys(span.after[0], after_offset=span.after[1])
    return seq_keys(first)


async def erase_dropped(io: RecordIO, head: OpenedHead) -> None:
    """Remove the dead items of a log, their names and their parts. Safe at any time, and any number of times."""
    place, state, store = head.record.place, head.state, io.store
    erasing = cast(ErasesItems, store)
    if not state.events_from or not erases_items(store):
        return
    end = head.record.rev + 1  # later puts at the same names are of living events
    last = state.events_from - 1
    ranges = [(0, last)] if state.kept_event is None else [(0, state.kept_event - 1), (state.kept_event + 1, last)]
    for first, last in ranges:
        if first > last:
            continue
        keys = KeyRange(first=event_key(first), last=event_key(last), bodies=False)
        await _erase_names(store, place, state, keys)
        if state.has_parts:
            await store.drop_parts(place, keys.first, keys.last, end)
        await erasing.erase(place, keys.first, keys.last, end)


async def _erase_names(store: RecordStore, place: ItemsPlace, state: State, keys: KeyRange) -> None:
    """Remove the names of dead events. A name may belong to a living event by now, which came after a prune."""

    async def named(first: str, last: str) -> Sequence[Item]:
        return await store.items(place, KeyRange(first=first, last=last, bodies=False, limit=1))

    async def erase(key: str) -> None:
        for item in await named(key, key):
            if isinstance(item.index, DocIndex) and not state.has_event(int(item.index.key)):
                await cast(ErasesItems, store).erase(place, key, key, item.rev + 1)

    if not await named(*name_keys()):
        return
    rest: KeyRange | None = replace(keys, limit=_ERASED_AT_ONCE)
    while rest is not None:
        page = await store.items(place, rest)
        seqs = [event_row(item).seq for item in page]
        if page and await named(*name_keys(min(seqs), max(seqs))):
            await each(erase, [name_key(event_row(item).seq, item.body.digest) for item in page])
        full = len(page) == _ERASED_AT_ONCE
        rest = replace(rest, first=event_key(position_of(page[-1].key) + 1)) if full else None
        CALLER.get().goes_on()
