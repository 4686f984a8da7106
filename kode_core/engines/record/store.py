"""The requirements on a database that changes only one record at a time atomically, to become an engine.

A document database or a key-value service promises a conditional write of one record, and little beyond. That is
enough: :class:`kode_core.engines.record.engine.RecordEngine` makes a whole engine of a :class:`RecordStore`.

- An agent is one *head* and many *items* (messages, tool calls, documents, events), in order of their keys.
- Only the swap of a head commits. The new head carries the changes of the items as *pending*; the writer applies them
  next, or another process if the writer died. Readers lay pending changes over the items they read.
- Changes may be applied twice, late, or after newer ones: every item has the revision of the head that wrote it, and
  only a greater revision replaces it. A removed item leaves a tombstone with the revision of its removal, so that a
  late put of an older item does not bring it back, and a reader sees that its head is outdated.
- The items of a deleted agent stay at its old *epoch*, which no reader visits, until they are removed.
- A text that is too large for one record is stored in *parts*.
- A *note* names a place where a process that dies may leave records without a head. A sweep removes them minutes later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec

from kode_core.batch import Fence, Info, ListHead, MessageIndex, SessionRow, ToolCallIndex, Totals
from kode_core.codec import Body
from kode_core.engine import Medium, Progress, Watch, unwatched
from kode_core.query import RowQuery, SessionQuery

__all__ = [
    "Change",
    "Cut",
    "DocIndex",
    "EventIndex",
    "FoundItem",
    "HeadRecord",
    "Item",
    "ItemIndex",
    "ItemsPlace",
    "KeyRange",
    "Note",
    "RecordStore",
    "Remains",
    "Removed",
    "removed",
]


class ItemsPlace(NamedTuple):
    """The place of an agent's items. Every delete changes the epoch, which has 16 hexadecimal digits."""

    agent_id: str
    epoch: str


class _Value(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    pass


class EventIndex(_Value, frozen=True, tag="event"):
    """The columns that event reads use."""

    seq: int
    channel: str


class DocIndex(_Value, frozen=True, tag="doc"):
    """The kind of a document, its caller's key, any text of up to 4,096 bytes, and its terms: see ``Doc.terms``."""

    kind: str
    key: str
    terms: tuple[str, ...] = ()


class Removed(_Value, frozen=True, tag="removed"):
    """Stands for the columns of an item that was removed and left a tombstone."""


ItemIndex: TypeAlias = MessageIndex | ToolCallIndex | EventIndex | DocIndex | Removed


class Item(_Value, frozen=True, kw_only=True, tag="item"):
    """A message, tool call, document or event.

    Attributes:
        key: its place among the agent's items: ASCII, at most 900 characters, in the order of its characters. No key
            begins with another one and a slash.
        rev: the revision of the head that wrote it.
        body: the text is empty when it is in parts, or was not asked for; the digest is always there.
        time: milliseconds since the epoch; ``created_at`` of messages and tool calls.
        alt: a second key of the same form; some items can be read by it, too.
        parts: the number of parts that hold the text; 0 when it is in the body.
    """

    key: str
    rev: int
    body: Body
    index: ItemIndex
    time: int = 0
    alt: str | None = None
    parts: int = 0

    @property
    def is_removed(self) -> bool:
        """Whether this is the tombstone of a removed item."""
        return type(self.index) is Removed


def removed(key: str, rev: int) -> Item:
    """The tombstone of an item that was removed at this revision."""
    return Item(key=key, rev=rev, body=Body("", b""), index=Removed())


class Cut(_Value, frozen=True, kw_only=True, tag="cut"):
    """Removes the items with keys from ``first`` to ``last``, both inclusive, whose revision is below ``rev``.

    Each leaves a tombstone of that revision, which stays until an item is put there again or the place is dropped. All
    older items were put before the cut was committed, so every key that was ever used holds an item or a tombstone. A
    late put of an older revision finds one of them, and does nothing.
    """

    first: str
    last: str
    rev: int


Change: TypeAlias = Item | Cut


class KeyRange(_Value, frozen=True, kw_only=True):
    """A range of items: keys from ``first`` to ``last``, both inclusive, in their order.

    Attributes:
        by_alt: True if ``first``, ``last`` and the order refer to ``alt``; items without one are left out.
        limit: the greatest number of items; None for all.
        bodies: False to leave out the texts.
        channel: leaves out the events of other channels.
    """

    first: str
    last: str
    by_alt: bool = False
    descending: bool = False
    limit: int | None = None
    bodies: bool = True
    channel: str | None = None


class HeadRecord(_Value, frozen=True, kw_only=True):
    """An agent's head without its lease.

    Attributes:
        rev: grows by one with every swap, also over deletes.
        info: None if none was saved, or after a delete; only agents with info are listed and found. The text of its
            body has at most ``RecordStore.inline_bytes``; it is empty when the engine keeps it in parts.
        is_used: whether the agent has any record, even without info.
        is_settled: whether all items are as the head says; ``RecordStore.unsettled`` lists the few that are not.
        state: the engine's own state, at most ``RecordStore.inline_bytes`` plus 4,096 bytes.
        is_numbered: whether events were given offsets, which must not be given a second time (EVT-2).
    """

    agent_id: str
    epoch: str
    rev: int
    info: Info | None
    updated_at: int
    messages: ListHead
    tool_calls: ListHead
    is_used: bool
    is_settled: bool
    state: bytes
    is_numbered: bool = False

    @property
    def place(self) -> ItemsPlace:
        """The place of the head's items."""
        return ItemsPlace(self.agent_id, self.epoch)

    @property
    def is_tombstone(self) -> bool:
        """True for the tombstone of a deleted agent: it may be dropped after a day."""
        return self.is_settled and not self.is_used and self.info is None and not self.is_numbered


class Remains(NamedTuple):
    """A head that may be damaged, as far as it can be read.

    Attributes:
        epochs: the epochs at which the agent may have items or parts, as far as they can be found.
        stored: the whole head without its lease, in the store's own form, for the store to compare.
    """

    agent_id: str
    epochs: Sequence[str]
    stored: Any


class FoundItem(NamedTuple):
    """An item that a query found. The engine checks whether its head still knows it."""

    place: ItemsPlace
    item: Item


class Note(NamedTuple):
    """A note that a place may hold records without a head.

    ``at`` is in milliseconds of its writer's clock; 0 if an index shows records at the place and it has no note.
    """

    place: ItemsPlace
    at: int


class RecordStore(Protocol):
    """The part that is written for one database; ``docs/record-engine.md`` explains how the engine uses it.

    All reads by agent are current, by either key of an item: they show every call that was answered before, by any
    process. A read need not show one instant, but it misses no record that exists throughout: a record is replaced in
    one step. A durable write survives the loss of a member of the database, if the database itself does.

    Methods raise subclasses of ``StorageError`` and none of the driver's exceptions: OutcomeUnknownError if a write may
    or may not have happened; StoreUnavailableError if it did not happen and a retry may succeed. The store may repeat
    reads, and all writes except ``swap`` and ``acquire_lease``.
    """

    name: str
    """The backend's name, as in ``mongo``."""

    inline_bytes: int
    """The number of bytes of pending changes that fit into a head."""

    part_bytes: int
    """The greatest size of a part, and of the text of an item's body in UTF-8."""

    swap_items: int
    """The number of items that ``swap`` can write with a head in one atomic step; 0 for none."""

    # --- heads

    async def heads(self, agent_ids: Sequence[str]) -> Sequence[HeadRecord]:
        """The heads of these agents, in any order; agents without one are left out. A lease alone is no head.

        Raises:
            CorruptRecordError: a head is damaged. The error names the agent.
        """
        ...

    async def head_now(self, agent_id: str) -> HeadRecord | None:
        """The head, by a read that is never late, not even from a server that does not know yet that it was deposed.

        It may cost more than ``heads`` and needs no right to write. The engine uses it when a record seems to be lost.
        """
        ...

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        """Write *new* if the head still has the ``rev`` of *old* and the fence's lease is held.

        *old* is None if the agent has no head. The lease stays as it is. *items*, at most ``swap_items``, are put in
        the same atomic write. Durable when it returns. False if the condition does not hold: nothing was written, and
        nothing of this call will be. The store must not repeat a swap, unless the database recognizes a repetition: the
        second attempt would take the first one's write for another writer's.
        """
        ...

    async def settle(self, head: HeadRecord, *, lasting: bool = False) -> bool:
        """Write ``is_settled`` and ``state`` of *head* if the stored head still has its ``rev``.

        False if the head has another ``rev`` by now, or is gone. A *lasting* settle, and the answer False to it, are as
        durable as a swap when this returns, because the engine then removes records that the head needed. Any other
        settle need not be durable: a head that is found unsettled is settled again.
        """
        ...

    async def remains(self, agent_id: str) -> Remains | None:
        """A head as far as it can be read, however damaged it is; None without one."""
        ...

    async def supplant(self, remains: Remains, new: HeadRecord, fence: Fence | None) -> bool:
        """Replace a head by *new* if it is still as *remains* has it and the fence's lease is held.

        The lease stays as it is. Durable when it returns. False if the condition does not hold: nothing was written.
        """
        ...

    async def unsettled(self) -> Sequence[str]:
        """The agents with unsettled heads. May lag as queries do."""
        ...

    # --- items

    async def items(self, place: ItemsPlace, keys: KeyRange) -> Sequence[Item]:
        """The items of a key range, and the tombstones of removed ones, which have no ``alt`` and no channel."""
        ...

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        """Put items, each unless its key has one of the same or a greater ``rev``, and apply cuts. Durable.

        The order is free: cuts remove older revisions than the items put with them, and an item replaces a tombstone of
        its own ``rev``. A cut may leave an older tombstone as it is. A *fresh* place is empty, no other process reads
        or writes there, and the caller abandons it if this raises: the store may put items unconditionally, as long as
        no put can arrive after this returned.
        """
        ...

    async def drop(self, place: ItemsPlace) -> None:
        """Remove all items, tombstones and parts at a place. Durable. Records that are put there meanwhile may stay.

        It calls ``CALLER.get().goes_on()`` after each step, because a large place takes longer than a call may.
        """
        ...

    # --- parts

    async def put_parts(self, place: ItemsPlace, key: str, rev: int, parts: Sequence[bytes]) -> None:
        """Put parts of at most ``part_bytes`` under a revision and a key, which has the form of an item's key. Durable.

        The engine never puts other parts under the same key and revision.
        """
        ...

    async def parts(self, place: ItemsPlace, key: str, rev: int) -> Sequence[bytes]:
        """The parts in their order; fewer when they are being removed."""
        ...

    async def drop_parts(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        """Remove the parts with keys from *first* to *last*, both inclusive, and revisions below *rev*. Durable.

        Newer parts must stay: writers put the parts of a revision before they commit it.
        """
        ...

    async def part_keys(self, place: ItemsPlace, first: str, last: str) -> Sequence[tuple[str, int]]:
        """The keys of parts from *first* to *last*, both inclusive, each with its revision."""
        ...

    # --- notes

    async def note(self, note: Note) -> None:
        """Put a note. Durable, as the noted work begins afterwards. A place may have several notes."""
        ...

    async def notes(self, until: int, limit: int) -> Sequence[Note]:
        """At most *limit* notes that were made until then, the oldest first. This reads no other records."""
        ...

    async def notes_of(self, agent_id: str) -> Sequence[Note]:
        """The notes of an agent, and places without a note at which an index shows records, if the store has one."""
        ...

    async def forget(self, note: Note) -> None:
        """Remove a note. A later note of the same place stays."""
        ...

    # --- queries, which may lag if the backend declares it

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        """As ``Engine.agent_ids``."""
        ...

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        """As ``Engine.stored_ids``: the agents whose heads have info or ``is_used``."""
        ...

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        """As ``Engine.find_sessions``. A ``Found`` if damaged agents were left out."""
        ...

    async def find_items(self, query: RowQuery) -> Sequence[FoundItem]:
        """Messages or tool calls that match, in the query's order, at most ``limit``; ``offset`` is 0.

        Items of old epochs may be among them, but no tombstones. A ``Found`` if damaged items were left out.
        """
        ...

    async def totals(self) -> Totals:
        """As ``Engine.totals``, from the heads."""
        ...

    # --- leases, kept in the record of the head

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        """As ``Engine.acquire_lease``."""
        ...

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        """As ``Engine.renew_lease``."""
        ...

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        """As ``Engine.release_lease``."""
        ...

    async def holds_lease(self, agent_id: str, fence: Fence) -> bool:
        """Whether the lease is held by this owner with this token."""
        ...

    # --- operations

    def watch(self, agent_id: str, wake: Callable[[], None]) -> Watch | None:
        """As ``Notifies.watch``. None if the database does not report writes."""
        ...

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        """As ``Engine.probes``."""
        ...

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        """As ``Engine.backup``."""
        ...

    async def close(self) -> None:
        """Release all that the store opened."""
        ...
