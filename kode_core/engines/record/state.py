"""What the record engine keeps of an agent: the keys of its items, and the state inside its head."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import msgspec

from kode_core.batch import DocKind, ListHead, ListKind, ListWrite
from kode_core.codec import Body
from kode_core.engines.record.store import Change, Cut, EventIndex, HeadRecord, Item, Span
from kode_core.errors import CorruptRecordError

__all__ = [
    "KEPT_OPS",
    "UNNAMED",
    "AgentHead",
    "Op",
    "Overlay",
    "State",
    "call_key",
    "call_span",
    "count_of",
    "doc_key",
    "doc_span",
    "event_key",
    "event_span",
    "info_key",
    "info_spans",
    "is_of_log",
    "list_of",
    "name_key",
    "new_epoch",
    "position_of",
    "row_key",
    "row_span",
    "seq_key",
    "seq_span",
    "stash_key",
]

KEPT_OPS: Final = 8
UNNAMED: Final = 8
"""How many events of one seq have no name: those are read to see whether an event is stored already."""

_LIST_PREFIX: Final = {ListKind.MESSAGES: "m/", ListKind.TOOL_CALLS: "t/"}
_LISTS: Final = {prefix: kind for kind, prefix in _LIST_PREFIX.items()}
_LAST_POSITION: Final = 10**12 - 1
_LAST_OFFSET: Final = 2**63 - 1
_END: Final = "~"


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def new_epoch() -> str:
    return secrets.token_hex(8)


# --- Keys -------------------------------------------------------------------------------------------------------------


def row_key(kind: ListKind, position: int) -> str:
    return f"{_LIST_PREFIX[kind]}{position:012d}"


def row_span(kind: ListKind, first: int = 0, last: int = _LAST_POSITION, *, bodies: bool = True) -> Span:
    return Span(first=row_key(kind, first), last=row_key(kind, last), bodies=bodies)


def list_of(key: str) -> ListKind | None:
    """The list that a row's key is of."""
    return _LISTS.get(key[:2])


def position_of(key: str) -> int:
    return int(key[2:])


def call_key(call_id: str, position: int) -> str:
    """The second key of a tool call."""
    return f"t/{_hash(call_id)}/{position:012d}"


def call_span(call_id: str) -> Span:
    return Span(first=call_key(call_id, 0), last=call_key(call_id, _LAST_POSITION), by_alt=True, bodies=False)


def doc_key(kind: DocKind, key: str) -> str:
    """A document's key: of a hash, because keys of callers are of any length."""
    return f"d/{kind.value}/{_hash(key)}"


def doc_span(kind: DocKind, key: str | None = None, *, bodies: bool = True) -> Span:
    first, last = f"d/{kind.value}/", f"d/{kind.value}/{_END}"
    if key is not None:
        first = last = doc_key(kind, key)
    return Span(first=first, last=last, bodies=bodies)


def event_key(offset: int) -> str:
    return f"e/{offset:019d}"


def event_span(after: int = -1) -> Span:
    """Events by offset, those behind an offset."""
    return Span(first=event_key(max(after + 1, 0)), last=event_key(_LAST_OFFSET))


def seq_key(seq: int, offset: int) -> str:
    """The second key of an event."""
    return f"e/{seq + 2**63:020d}/{offset:019d}"


def seq_span(first: int = -(2**63), last: int = 2**63 - 1, *, after_offset: int = -1, bodies: bool = True) -> Span:
    """Events by (seq, offset): from seq *first*, and of that one only those behind *after_offset*."""
    start = seq_key(first, max(after_offset + 1, 0))
    return Span(first=start, last=seq_key(last, _LAST_OFFSET), by_alt=True, bodies=bodies)


def name_key(seq: int, digest: bytes) -> str:
    """Under what an event is noted that came after many others of its seq."""
    return f"x/{seq + 2**63:020d}/{digest.hex()}"


def is_of_log(key: str) -> bool:
    """Whether a key is of an event, or of the name of one."""
    return key.startswith(("e/", "x/"))


def stash_key(nonce: str) -> str:
    """Under what pending changes are kept that are too large for the head."""
    return f"p/{nonce}"


def info_key(nonce: str) -> str:
    """Under what an info is kept that is too large for the head."""
    return f"i/{nonce}"


def info_spans(info: tuple[str, int, int] | None) -> list[tuple[str, str]]:
    """The keys under which infos are kept, but for that of the info that a head names: from the first to the last."""
    if info is None:
        return [(info_key(""), info_key(_END))]
    name = info[0]  # of a fixed length, in hexadecimal digits
    before, after = f"{name[:-1]}{chr(ord(name[-1]) - 1)}{_END}", f"{name}0"
    return [(info_key(""), info_key(before)), (info_key(after), info_key(_END))]


# --- State ------------------------------------------------------------------------------------------------------------


class _Value(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, array_like=True):
    pass


class Op(_Value, frozen=True):
    """An operation that was applied: the revision that it made, the lists after it, and where its events begin."""

    op_id: str
    rev: int
    messages: ListHead
    tool_calls: ListHead
    first_offset: int = 0


class Stash(_Value, frozen=True):
    """Where pending changes are that are too large for the head."""

    key: str
    parts: int


class Freed(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="freed"):
    """Items with keys from ``first`` to ``last`` are put again at ``rev``: their older parts are not needed any more.

    They are not cut: a reader that came before would find nothing there until they are put.
    """

    first: str
    last: str
    rev: int


Step: TypeAlias = Change | Freed


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands in ``HeadRecord.state``.

    Attributes:
        next_offset: of the next event; goes on when the agent is deleted.
        last_seq: the greatest seq of an event.
        ops: the last operations, so that none is applied twice.
        pending: what the items do not show yet.
        stash: where it is, when it is not in the head.
        doomed: epochs of which the items are still there, perhaps.
        reserved: the epoch of a fork that is being made, whose items nobody needs when it never ends.
        info: the nonce of an info that is not in the head, its revision and its number of parts.
        has_parts: whether an item may be in parts.
        frozen: the nonce of a reader that asks writers to wait a moment.
        latest: no message is newer than that; None where it is not known, or there is none.
        is_latest: whether a message is just as new.
        named_from: events from this offset on have a name when many of their seq came before; None where no event of
            the agent is known to have one.
        others: how many revisions others make between two turns of one writer; 0 where one writes alone.
        turn_ends: the revision up to which the writer of this one goes on, if it is not the last one of its turn.
    """

    next_offset: int = 1
    last_seq: int | None = None
    ops: tuple[Op, ...] = ()
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

    @property
    def is_settled(self) -> bool:
        return not (self.pending or self.stash or self.doomed or self.reserved)

    @property
    def is_numbered(self) -> bool:
        """Whether an offset was given to an event."""
        return self.next_offset > 1

    def times_after(self, write: ListWrite, kept: int) -> State:
        """The state with the latest message time, if it is known, after a write that keeps *kept* old messages."""
        new = write.times()
        if not kept:
            return msgspec.structs.replace(self, latest=max(new, default=None), is_latest=True)
        if self.latest is None or not (new or write.length is not None):
            return self
        latest = max((self.latest, *new))
        is_last = latest in new or (self.is_latest and not write.is_editing)
        return msgspec.structs.replace(self, latest=latest, is_latest=is_last)

    def knows(self, op_id: str) -> bool:
        """Whether the operation is among the last that were applied."""
        return any(op.op_id == op_id for op in self.ops)

    def may_have_forgotten(self, rev: int) -> bool:
        """Whether an operation that made this revision may have been pushed out by later ones."""
        return len(self.ops) >= KEPT_OPS and self.ops[-1].rev > rev


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(State).decode


_SEALED: Final = b"\xc1"
"""With what a state begins that has a seal: no MessagePack does. States of earlier versions have none."""
_SEAL_BYTES: Final = 8


def _seal(record: HeadRecord, state: bytes) -> bytes:
    """A digest of all of a head, the text of its info excepted, which has one of its own."""
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
        CorruptRecordError: the head is not what was written.
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
    except (ValueError, RecursionError):  # those of msgspec are ValueErrors
        raise CorruptRecordError(f"agent {record.agent_id!r}", "its head is damaged") from None


class AgentHead:
    """A head with its state read, which has a seal over all of it.

    Raises:
        CorruptRecordError: the head is not what was written.
    """

    __slots__ = ("record", "state")

    def __init__(self, record: HeadRecord, state: State | None = None) -> None:
        self.record = record
        self.state = _opened(record) if state is None else state

    @classmethod
    def sealed(cls, record: HeadRecord, state: State) -> AgentHead:
        """The head of *record* with this state, to be written."""
        flags = {"is_settled": state.is_settled, "is_numbered": state.is_numbered}
        record, encoded = msgspec.structs.replace(record, **flags), _encode(state)
        seal = _SEALED + _seal(record, encoded)
        return cls(msgspec.structs.replace(record, state=seal + encoded), state)

    def is_still(self, now: AgentHead) -> bool:
        """Whether nothing that this head names was removed since: a stash goes when it is settled, all else later."""
        return (self.record.place, self.record.rev, self.state.stash) == (
            now.record.place,
            now.record.rev,
            now.state.stash,
        )

    def with_state(self, state: State) -> AgentHead:
        """The same revision with another state, to be written."""
        return self.sealed(self.record, state)

    def next(self, state: State, **changes: Any) -> AgentHead:
        """The next revision, with this state and these other fields of the record, to be written."""
        return self.sealed(msgspec.structs.replace(self.record, rev=self.record.rev + 1, **changes), state)


def count_of(record: HeadRecord, kind: ListKind) -> ListHead:
    """The head of a list."""
    return record.messages if kind == ListKind.MESSAGES else record.tool_calls


class Overlay:
    """Pending changes, as they show in what is read."""

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self._put: dict[str, Item] = {}
        self._cuts: list[Cut] = []
        for step in steps:
            if isinstance(step, Cut):
                self._cuts.append(step)
            elif isinstance(step, Item):
                self._put[step.key] = step

    def over(self, stored: Sequence[Item], span: Span) -> list[Item]:
        """The items of *span* in its order, given those that are stored."""
        kept = {i.key: i for i in stored if not (i.is_removed or i.key in self._put or self._is_cut(i))}
        put = [item for item in self._put.values() if is_in(item, span)]
        if stored and len(stored) == span.limit:  # behind the last one there may be others
            last = _key(stored[-1], span)
            put = [item for item in put if (_key(item, span) >= last if span.descending else _key(item, span) <= last)]
        kept |= {item.key: item for item in put}
        return sorted(kept.values(), key=lambda item: _key(item, span), reverse=span.descending)[: span.limit]

    def current(self, item: Item) -> Item | None:
        """What is at the place of a stored item; None when it was removed."""
        return self._put.get(item.key) or (None if self._is_cut(item) else item)

    def _is_cut(self, item: Item) -> bool:
        return any(cut.first <= item.key <= cut.last and item.rev < cut.rev for cut in self._cuts)


def _key(item: Item, span: Span) -> str:
    return (item.alt or "") if span.by_alt else item.key


def is_in(item: Item, span: Span) -> bool:
    """Whether an item is one of the span."""
    of_channel = span.channel is None or (isinstance(item.index, EventIndex) and item.index.channel == span.channel)
    return of_channel and span.first <= _key(item, span) <= span.last
