"""An agent in the record engine: the keys of its items, and the state inside its head."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import msgspec

from kode_core.batch import ListHead, ListKind, ListWrite
from kode_core.codec import Body
from kode_core.engines.record.doc_keys import hashed
from kode_core.engines.record.store import Change, Cut, EventIndex, HeadRecord, Item, KeyRange
from kode_core.errors import CorruptRecordError

__all__ = [
    "KEPT_OPS",
    "UNNAMED",
    "AppliedOperation",
    "OpenedHead",
    "Overlay",
    "State",
    "call_key",
    "call_keys",
    "event_key",
    "event_keys",
    "info_key",
    "is_event",
    "is_of_log",
    "list_head",
    "list_of",
    "name_key",
    "name_keys",
    "new_epoch",
    "other_info_keys",
    "position_of",
    "row_key",
    "row_keys",
    "seq_key",
    "seq_keys",
    "stash_key",
]

KEPT_OPS: Final = 8
UNNAMED: Final = 8
"""How many events of one seq have no name: these are read to find out whether an event is stored already."""

_LIST_PREFIX: Final = {ListKind.MESSAGES: "m/", ListKind.TOOL_CALLS: "t/"}
_LISTS: Final = {prefix: kind for kind, prefix in _LIST_PREFIX.items()}
_LAST_POSITION: Final = 10**12 - 1
_LAST_OFFSET: Final = 2**63 - 1
_END: Final = "~"


def new_epoch() -> str:
    return secrets.token_hex(8)


# --- Keys -------------------------------------------------------------------------------------------------------------


def row_key(kind: ListKind, position: int) -> str:
    return f"{_LIST_PREFIX[kind]}{position:012d}"


def row_keys(kind: ListKind, first: int = 0, last: int = _LAST_POSITION, *, bodies: bool = True) -> KeyRange:
    return KeyRange(first=row_key(kind, first), last=row_key(kind, last), bodies=bodies)


def list_of(key: str) -> ListKind | None:
    """The list of a row's key; None for other keys."""
    return _LISTS.get(key[:2])


def position_of(key: str) -> int:
    return int(key[2:])


def call_key(call_id: str, position: int) -> str:
    """The second key of a tool call."""
    return f"t/{hashed(call_id)}/{position:012d}"


def call_keys(call_id: str) -> KeyRange:
    return KeyRange(first=call_key(call_id, 0), last=call_key(call_id, _LAST_POSITION), by_alt=True, bodies=False)


def event_key(offset: int) -> str:
    return f"e/{offset:019d}"


def event_keys(after: int = -1) -> KeyRange:
    """Events in order of offset, from the one after *after* on."""
    return KeyRange(first=event_key(max(after + 1, 0)), last=event_key(_LAST_OFFSET))


def name_keys(first: int = -(2**63), last: int = 2**63 - 1) -> tuple[str, str]:
    """The first and the last key that names of these seqs may have."""
    return f"x/{first + 2**63:020d}/", f"x/{last + 2**63:020d}/{_END}"


def is_event(key: str) -> bool:
    """Whether a key belongs to an event."""
    return key.startswith("e/")


def seq_key(seq: int, offset: int) -> str:
    """The second key of an event."""
    return f"e/{seq + 2**63:020d}/{offset:019d}"


def seq_keys(first: int = -(2**63), last: int = 2**63 - 1, *, after_offset: int = -1, bodies: bool = True) -> KeyRange:
    """Events in order of (seq, offset), from seq *first* on; of that seq only those after *after_offset*."""
    start = seq_key(first, max(after_offset + 1, 0))
    return KeyRange(first=start, last=seq_key(last, _LAST_OFFSET), by_alt=True, bodies=bodies)


def name_key(seq: int, digest: bytes) -> str:
    """The key of the second item of an event that came after many others of its seq."""
    return f"x/{seq + 2**63:020d}/{digest.hex()}"


def is_of_log(key: str) -> bool:
    """Whether a key belongs to an event, or to an event's name."""
    return key.startswith(("e/", "x/"))


def stash_key(nonce: str) -> str:
    """The key of pending changes that do not fit into the head."""
    return f"p/{nonce}"


def info_key(nonce: str) -> str:
    """The key of an info that does not fit into the head."""
    return f"i/{nonce}"


def other_info_keys(info: tuple[str, int, int] | None) -> list[tuple[str, str]]:
    """All keys of infos except the key of *info*, as pairs of a first and a last key."""
    if info is None:
        return [(info_key(""), info_key(_END))]
    name = info[0]  # hexadecimal digits of a fixed length
    before, after = f"{name[:-1]}{chr(ord(name[-1]) - 1)}{_END}", f"{name}0"
    return [(info_key(""), info_key(before)), (info_key(after), info_key(_END))]


# --- State ------------------------------------------------------------------------------------------------------------


class _Value(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, array_like=True):
    pass


class AppliedOperation(_Value, frozen=True):
    """An applied operation: its revision, the lists after it, and the first offset of its events."""

    op_id: str
    rev: int
    messages: ListHead
    tool_calls: ListHead
    first_offset: int = 0


class Stash(_Value, frozen=True):
    """The key of pending changes that do not fit into the head, and their number of parts."""

    key: str
    parts: int


class Freed(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="freed"):
    """Drops the older parts of items with keys from ``first`` to ``last``, which are put again at ``rev``.

    A cut would do the same, but an earlier reader would find no items there until they are put.
    """

    first: str
    last: str
    rev: int


Step: TypeAlias = Change | Freed


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """The content of ``HeadRecord.state``.

    Attributes:
        next_offset: the offset of the next event; a delete does not reset it.
        last_seq: the greatest seq of an event.
        ops: the last operations, so that none is applied twice.
        pending: committed changes that the items do not show yet.
        stash: the place of the pending changes if they do not fit into the head.
        doomed: epochs of deletes whose items may still be stored.
        reserved: True while a fork is being made; if it never finishes, its items may be removed.
        info: the nonce of an info that is not in the head, its revision and its number of parts.
        has_parts: whether items may have their text in parts.
        has_terms: whether documents may have terms.
        frozen: the nonce of a reader that asks writers to wait a moment.
        latest: an upper bound of all message times; None if it is unknown or the list is empty.
        is_latest: whether a message has exactly that time.
        named_from: events from this offset on have a name if many of their seq came before; None if the agent is not
            known to have named events.
        others: how many revisions other writers make between two turns of one writer; 0 for a lone writer.
        turn_ends: the last revision of its writer's turn; 0 after a lone writer.
        events_from: the log has no event below this offset, whatever is stored, but for ``kept_event``.
        kept_event: the offset of the one event below that it has.
    """

    next_offset: int = 1
    last_seq: int | None = None
    ops: tuple[AppliedOperation, ...] = ()
    pending: tuple[Step, ...] = ()
    stash: Stash | None = None
    doomed: tuple[str, ...] = ()
    reserved: bool = False
    info: tuple[str, int, int] | None = None
    has_parts: bool = False
    frozen: str | None = None
    latest: int | None = None
    is_latest: bool = False
    named_from: int | None = None
    others: int = 0
    turn_ends: int = 0
    events_from: int = 0
    kept_event: int | None = None
    has_terms: bool = False

    def has_event(self, offset: int) -> bool:
        """Whether the log has the event of an offset that was given."""
        return offset >= self.events_from or offset == self.kept_event

    @property
    def is_settled(self) -> bool:
        return not (self.pending or self.stash or self.doomed or self.reserved)

    @property
    def is_numbered(self) -> bool:
        """Whether the agent ever had an event."""
        return self.next_offset > 1

    def times_after(self, write: ListWrite, kept: int) -> State:
        """The state after a write that keeps *kept* old messages, with the latest message time if that is known."""
        new = write.times()
        if not kept:
            return msgspec.structs.replace(self, latest=max(new, default=None), is_latest=True)
        if self.latest is None or not (new or write.length is not None):
            return self
        latest = max((self.latest, *new))
        is_last = latest in new or (self.is_latest and not write.is_editing)
        return msgspec.structs.replace(self, latest=latest, is_latest=is_last)

    def knows(self, op_id: str) -> bool:
        """Whether the operation is among the last applied ones."""
        return any(op.op_id == op_id for op in self.ops)

    def may_have_forgotten(self, rev: int) -> bool:
        """Whether later operations may have pushed out one that made this revision."""
        return len(self.ops) >= KEPT_OPS and self.ops[-1].rev > rev


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(State).decode


_SEALED: Final = b"\xc1"
"""The first byte of a sealed state; no MessagePack begins with it. Earlier versions wrote no seal."""
_SEAL_BYTES: Final = 8


def _seal(record: HeadRecord, state: bytes) -> bytes:
    """A digest of a whole head except the text of its info, which has a digest of its own."""
    info = record.info
    if info is not None:
        info = msgspec.structs.replace(info, body=Body("", info.body.digest))
    fields = msgspec.structs.replace(record, state=b"", info=info)
    sealed = blake2b(state, digest_size=_SEAL_BYTES)
    sealed.update(_encode(fields))
    return sealed.digest()


def _opened(record: HeadRecord) -> State:
    """The state of a head.

    Raises:
        CorruptRecordError: the head differs from the one that was written.
    """
    state = record.state
    try:
        if state[:1] == _SEALED:
            seal, state = state[1 : 1 + _SEAL_BYTES], state[1 + _SEAL_BYTES :]
            if seal != _seal(record, state):
                raise ValueError
        opened = _decode(state)
        if (record.is_settled, record.is_numbered) != (opened.is_settled, opened.is_numbered):
            raise ValueError
        return opened
    except (ValueError, RecursionError):  # msgspec raises ValueErrors
        raise CorruptRecordError(f"agent {record.agent_id!r}", "its head is damaged") from None


class OpenedHead:
    """A head with its state decoded. The state carries a seal over the whole head.

    Raises:
        CorruptRecordError: the head differs from the one that was written.
    """

    __slots__ = ("record", "state")

    def __init__(self, record: HeadRecord, state: State | None = None) -> None:
        self.record = record
        self.state = _opened(record) if state is None else state

    @classmethod
    def sealed(cls, record: HeadRecord, state: State) -> OpenedHead:
        """A head of *record* with this state, sealed for writing."""
        flags = {"is_settled": state.is_settled, "is_numbered": state.is_numbered}
        record, encoded = msgspec.structs.replace(record, **flags), _encode(state)
        seal = _SEALED + _seal(record, encoded)
        return cls(msgspec.structs.replace(record, state=seal + encoded), state)

    def is_still(self, now: OpenedHead) -> bool:
        """Whether no record that this head names was removed since: settling removes a stash, later swaps the rest."""
        return (self.record.place, self.record.rev, self.state.stash) == (
            now.record.place,
            now.record.rev,
            now.state.stash,
        )

    def with_state(self, state: State) -> OpenedHead:
        """The same revision with another state, sealed for writing."""
        return self.sealed(self.record, state)

    def next(self, state: State, **changes: Any) -> OpenedHead:
        """The next revision, with this state and these other fields of the record, sealed for writing."""
        return self.sealed(msgspec.structs.replace(self.record, rev=self.record.rev + 1, **changes), state)


def list_head(record: HeadRecord, kind: ListKind) -> ListHead:
    """The head of a list."""
    return record.messages if kind == ListKind.MESSAGES else record.tool_calls


class Overlay:
    """Pending changes, laid over stored items by reads."""

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self._put: dict[str, Item] = {}
        self._cuts: list[Cut] = []
        self._removed: dict[str, int] = {}
        """The revisions of cuts of one key each: a write may remove thousands of documents."""
        for step in steps:
            if isinstance(step, Cut) and step.first == step.last:
                self._removed[step.first] = max(step.rev, self._removed.get(step.first, step.rev))
            elif isinstance(step, Cut):
                self._cuts.append(step)
            elif isinstance(step, Item):
                self._put[step.key] = step

    def over(self, stored: Sequence[Item], keys: KeyRange) -> list[Item]:
        """The items of *keys* in its order, made from the *stored* ones and the pending changes."""
        kept = {i.key: i for i in stored if not (i.is_removed or i.key in self._put or self._is_cut(i))}
        put = [item for item in self._put.values() if is_in(item, keys)]
        if stored and len(stored) == keys.limit:  # more items may follow the last one
            last = _key(stored[-1], keys)
            put = [item for item in put if (_key(item, keys) >= last if keys.descending else _key(item, keys) <= last)]
        kept |= {item.key: item for item in put}
        return sorted(kept.values(), key=lambda item: _key(item, keys), reverse=keys.descending)[: keys.limit]

    def current(self, item: Item) -> Item | None:
        """The current version of a stored item; None if a pending change removes it."""
        return self._put.get(item.key) or (None if self._is_cut(item) else item)

    def _is_cut(self, item: Item) -> bool:
        is_removed = item.rev < self._removed.get(item.key, item.rev)
        return is_removed or any(cut.first <= item.key <= cut.last and item.rev < cut.rev for cut in self._cuts)


def _key(item: Item, keys: KeyRange) -> str:
    return (item.alt or "") if keys.by_alt else item.key


def is_in(item: Item, keys: KeyRange) -> bool:
    """Whether a key range includes an item."""
    of_channel = keys.channel is None or (isinstance(item.index, EventIndex) and item.index.channel == keys.channel)
    return of_channel and keys.first <= _key(item, keys) <= keys.last
