"""What a database must do to become an engine when it changes only one record at a time atomically.

A document database or a key-value service promises a conditional write of one record, and little beyond. That is
enough: :class:`kode_core.engines.record.engine.RecordEngine` makes a whole engine of a :class:`RecordStore`.

- An agent is one *head* and many *items* (messages, tool calls, documents, events), in order of their keys.
- Nothing but the swap of a head commits. The new head carries the changes of the items, and the first process that
  comes by applies them: the writer, or another when it died. Readers lay pending changes over the items they read.
- To apply changes twice, late or after newer ones does no harm: every item has the revision of the head that wrote it,
  and only a greater one replaces it. An item that is removed leaves a mark with the revision of its removal, so that a
  late put of an older one does not bring it back, and a reader sees that it came too late.
- The items of a deleted agent stay behind at its old *epoch*, where nobody looks, until they are removed.
- What is too large for one record is kept in *parts*.
- A *note* names a place where a process that dies may leave records without a head. A sweep removes them minutes later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec

from kode_core.batch import (
    Fence,
    Info,
    ListHead,
    MessageIndex,
    SessionRow,
    ToolCallIndex,
    Totals,
)
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
    "Note",
    "Place",
    "RecordStore",
    "Remains",
    "Removed",
    "Span",
    "removed",
]


class Place(NamedTuple):
    """Where an agent's items are. The epoch, 16 hexadecimal digits, is another one after every delete."""

    agent_id: str
    epoch: str


class _Value(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    pass


class EventIndex(_Value, frozen=True, tag="event"):
    """By what an event is found."""

    seq: int
    channel: str


class DocIndex(_Value, frozen=True, tag="doc"):
    """What a document is; its key is the caller's, whatever text of up to 4,096 bytes."""

    kind: str
    key: str


class Removed(_Value, frozen=True, tag="removed"):
    """In place of what an item is found by, when it was removed and its mark is left."""


ItemIndex: TypeAlias = MessageIndex | ToolCallIndex | EventIndex | DocIndex | Removed


class Item(_Value, frozen=True, kw_only=True, tag="item"):
    """A message, tool call, document or event.

    Attributes:
        key: its place among the agent's items: ASCII, at most 100 characters, in the order of its characters.
        rev: the revision of the head that wrote it.
        body: the text is empty when it is in parts, or was not asked for; the digest is always there.
        time: milliseconds since the epoch; ``created_at`` of messages and tool calls.
        alt: a second key of the same form, by which some items can be read too.
        parts: how many parts the text is in; 0 when it is in the body.
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
        """Whether it is the mark of an item that was removed."""
        return type(self.index) is Removed


def removed(key: str, rev: int) -> Item:
    """The mark of an item that was removed at a revision."""
    return Item(key=key, rev=rev, body=Body("", b""), index=Removed())


class Cut(_Value, frozen=True, kw_only=True, tag="cut"):
    """Removes the items with keys from ``first`` to ``last``, both inclusive, whose revision is below ``rev``.

    Each leaves a mark of that revision, which stays until an item is put there again or the place is dropped. All older
    items were put before the cut was committed, so that one of them is at each key that was ever used: a put of an
    older revision finds it or the mark, however late it is, and does nothing.
    """

    first: str
    last: str
    rev: int


Change: TypeAlias = Item | Cut


class Span(_Value, frozen=True, kw_only=True):
    """Which items to read: keys from ``first`` to ``last``, both inclusive, in their order.

    Attributes:
        by_alt: ``first``, ``last`` and the order are of ``alt``; items without one are left out.
        limit: how many at most; None for all.
        bodies: False to leave out the texts.
        channel: only events of that channel.
    """

    first: str
    last: str
    by_alt: bool = False
    descending: bool = False
    limit: int | None = None
    bodies: bool = True
    channel: str | None = None


class HeadRecord(_Value, frozen=True, kw_only=True):
    """An agent's head, the lease excepted.

    Attributes:
        rev: grows by one with every swap, also over deletes.
        info: None where none was saved, or it was deleted; only agents with info are listed and found. The text of its
            body has at most ``RecordStore.inline_bytes``; it is empty when the engine keeps it elsewhere.
        is_used: whether anything is stored, be it an event of an agent without info.
        is_settled: whether all items are as the head says. Of those that are not there are few, and
            ``RecordStore.unsettled`` finds them.
        state: what else the engine has to remember, at most ``RecordStore.inline_bytes`` and 4,096 bytes.
        is_numbered: whether events were given offsets, which must never come again (EVT-2).
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
    def place(self) -> Place:
        """Where its items are."""
        return Place(self.agent_id, self.epoch)

    @property
    def may_be_forgotten(self) -> bool:
        """Whether it is what is left of a deleted agent, and need not be kept for more than a day."""
        return self.is_settled and not self.is_used and self.info is None and not self.is_numbered


class Remains(NamedTuple):
    """What can be told of a head that may be damaged.

    Attributes:
        epochs: those at which items or parts of the agent may be, as far as they can be found.
        stored: all of the head but its lease, as the store has it, for the store to compare.
    """

    agent_id: str
    epochs: Sequence[str]
    stored: Any


class FoundItem(NamedTuple):
    """An item that a query found; whether its head still knows it is for the engine to see."""

    place: Place
    item: Item


class Note(NamedTuple):
    """That something may be left at a place, and since when, in milliseconds of the clock of the process that says so.

    ``at`` is 0 where nobody made a note, and the database shows that something is there.
    """

    place: Place
    at: int


class RecordStore(Protocol):
    """What is written for one database; ``docs/record-engine.md`` says what the engine makes of it.

    All reads by agent are current, by either key of an item: they show every call that was answered before, whoever
    made it. They need not be of one instant, but miss no record that was there all the while: a record is replaced in
    one step. What is durable survives the loss of a member, as far as the database survives it.

    Every method may raise the subclasses of ``StorageError``, and no other exception of its driver's: when it is not
    known whether a write happened, OutcomeUnknownError; when it is known that it did not and it may soon,
    StoreUnavailableError. Reads, and all writes but ``swap`` and ``acquire_lease``, may be repeated in the store.
    """

    name: str
    """The backend's name, as in ``mongo``."""

    inline_bytes: int
    """How many bytes of pending changes fit into a head."""

    part_bytes: int
    """How large a part, and the text of an item's body in UTF-8, may be."""

    together: int
    """How many items can be written with a head in one atomic write; 0 for none."""

    # --- heads

    async def heads(self, agent_ids: Sequence[str]) -> Sequence[HeadRecord]:
        """The heads of these agents, those that there are, in any order. A lease alone is no head.

        Raises:
            CorruptRecordError: one of them is damaged. It names the agent.
        """
        ...

    async def head_now(self, agent_id: str) -> HeadRecord | None:
        """The head, by a read that is never late, not even from a server that was deposed and does not know it yet.

        It may cost more than ``heads``, needs no right to write, and is asked for where something seems to be lost.
        """
        ...

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        """Write *new* if the head's ``rev`` is still that of *old* (None: there is no head) and the fence's lease held.

        It leaves the lease as it is. *items*, at most ``together``, are put in the same atomic write. Durable when it
        returns. False when the condition does not hold: nothing was written, and nothing of this call will be. So it is
        made once, unless the database knows a repetition: another one would take its own write for somebody else's.
        """
        ...

    async def settle(self, head: HeadRecord, *, lasting: bool = False) -> bool:
        """Write ``is_settled`` and ``state`` of *head* if the head's ``rev`` is still that.

        False when the head has another ``rev`` by now, or is gone. A *lasting* one is as durable when it returns as a
        swap is, the answer False, too: the engine removes then what the head needed until now. Another one need not
        be durable: a head that is found unsettled again is settled again.
        """
        ...

    async def remains(self, agent_id: str) -> Remains | None:
        """What can be told of a head, however damaged it is; None where there is none."""
        ...

    async def supplant(self, remains: Remains, new: HeadRecord, fence: Fence | None) -> bool:
        """Write *new* in place of a head that is still as it was found, if the fence's lease is held, as ``swap`` does.

        The lease stays. False when the condition does not hold: nothing was written.
        """
        ...

    async def unsettled(self) -> Sequence[str]:
        """Agents whose heads are not settled. May lag as queries do."""
        ...

    # --- items

    async def items(self, place: Place, span: Span) -> Sequence[Item]:
        """The items of a span, and the marks of those that were removed, which have no ``alt`` and no channel."""
        ...

    async def apply(self, place: Place, changes: Sequence[Change], *, fresh: bool = False) -> None:
        """Put items, each unless there is one of the same or a greater ``rev``, and remove what is cut. Durable.

        In any order: what is cut is of an older revision than what is put, and an item goes over a mark of its own
        ``rev``. A mark needs no other one in its place when it is cut again. At a *fresh* place there is nothing yet,
        nobody else looks or writes there, and the caller leaves it for good when this raises: items may be put
        whatever is there, as long as no put can arrive after this returned.
        """
        ...

    async def drop(self, place: Place) -> None:
        """Remove all items, marks and parts at a place. Durable. What is put there meanwhile may stay.

        After each of its steps it calls ``CALLER.get().goes_on()``: a large place takes longer than a call may.
        """
        ...

    # --- parts

    async def put_parts(self, place: Place, key: str, rev: int, parts: Sequence[bytes]) -> None:
        """Keep parts of at most ``part_bytes`` under a key of the form of an item's and a revision. Durable.

        Under the same key and revision there are never other parts.
        """
        ...

    async def parts(self, place: Place, key: str, rev: int) -> Sequence[bytes]:
        """The parts in their order; fewer when they are being removed."""
        ...

    async def drop_parts(self, place: Place, first: str, last: str, rev: int) -> None:
        """Remove the parts under keys from *first* to *last*, both inclusive, of revisions below *rev*. Durable.

        Others must stay: writers put parts of the next revision before they commit it.
        """
        ...

    async def part_keys(self, place: Place, first: str, last: str) -> Sequence[tuple[str, int]]:
        """The keys from *first* to *last*, both inclusive, under which there are parts, and their revisions."""
        ...

    # --- notes

    async def note(self, note: Note) -> None:
        """Keep a note. Durable: what it is about is done afterwards. A place may have several."""
        ...

    async def notes(self, until: int, limit: int) -> Sequence[Note]:
        """The notes that were made until then, the oldest first, at most so many; without a look at anything else."""
        ...

    async def notes_of(self, agent_id: str) -> Sequence[Note]:
        """The notes of an agent, and those places without one where an index shows that something is, if one does."""
        ...

    async def forget(self, note: Note) -> None:
        """Remove a note. A later one of the same place stays."""
        ...

    # --- queries, which may lag behind where the backend declares that

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        """As ``Engine.agent_ids``."""
        ...

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        """As ``Engine.stored_ids``: of heads that have info or where ``is_used`` is true."""
        ...

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        """As ``Engine.find_sessions``; in a ``Found`` where it had to leave out what is damaged."""
        ...

    async def find_items(self, query: RowQuery) -> Sequence[FoundItem]:
        """Messages or tool calls that match, in the query's order, at most ``limit``; ``offset`` is 0.

        Items of old epochs may be among them, and no marks. It is a ``Found`` where damaged ones had to be left out.
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
        """Whether the lease is held, by that owner, with that token."""
        ...

    # --- operations

    def watch(self, agent_id: str, wake: Callable[[], None]) -> Watch | None:
        """As ``Notifies.watch``; None where the database tells nobody."""
        ...

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        """As ``Engine.probes``."""
        ...

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        """As ``Engine.backup``."""
        ...

    async def close(self) -> None:
        """Give back what the store opened."""
        ...
