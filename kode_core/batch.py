"""The values that pass between the core and a storage engine.

Preconditions of a write travel in the :class:`Batch`, and the engine checks them in the same atomic step as the write.

- An agent has two *lists*, messages and tool calls, whose rows stand at positions 0, 1, 2, …; *documents*, each
  under a kind and a key; an *event log*; an *info*; and a *lease*.
- Agent ids have at most 300 bytes (ids from callers 256), keys of documents 4,096, texts of an index 1,024. Times,
  seqs, offsets, versions and tokens fit 64 bits, with a sign.
- Every list has a *version*, which grows by the ``step`` of each write to the list. No two contents of a list ever
  have the same version, even after the agent was deleted and created again, or after a crash undid writes that others
  had seen. The core relies on the version to write only the changes.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec.structs import replace

from kode_core.codec import Body
from kode_core.docs import ABSENT_DOC, CORE_KEYS, FORKED_DOCS, Doc, DocKind, DocSpan, DocWrite, placed_docs
from kode_core.errors import KodeError
from kode_core.events import EventDrop, EventRange, EventRow, EventWrite
from kode_core.found import DocQuery, EngineIssue, Found, FoundDoc, SessionRow, Totals

__all__ = [
    "ABSENT_DOC",
    "CORE_KEYS",
    "FORKED_DOCS",
    "AgentSummary",
    "Applied",
    "Batch",
    "Child",
    "Doc",
    "DocKind",
    "DocQuery",
    "DocSpan",
    "DocWrite",
    "EngineIssue",
    "EventDrop",
    "EventRange",
    "EventRow",
    "EventWrite",
    "Fence",
    "Found",
    "FoundDoc",
    "FoundRow",
    "Info",
    "ListHead",
    "ListKind",
    "ListRows",
    "ListWrite",
    "MessageIndex",
    "Outcome",
    "Outline",
    "Refused",
    "Row",
    "SessionRow",
    "ToolCallIndex",
    "Totals",
    "first_version",
    "placed_docs",
    "with_bodies",
]


class ListKind(StrEnum):
    """The two lists of an agent."""

    MESSAGES = "messages"
    TOOL_CALLS = "tool_calls"


class _Value(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    pass


# --- Rows and their indexes -------------------------------------------------------------------------------------------


class MessageIndex(_Value, frozen=True, tag="message"):
    """The columns that message queries use. All texts are in the form of ``ids.index_text``."""

    role: str
    content_types: tuple[str, ...]


class ToolCallIndex(_Value, frozen=True, tag="tool_call"):
    """The columns that tool call queries use; ``call_id`` is not unique."""

    call_id: str
    tool_name: str
    state: str
    is_error: bool
    has_approval: bool


Index: TypeAlias = MessageIndex | ToolCallIndex


class Row(_Value, frozen=True):
    """One element of a list."""

    body: Body
    created_at: int
    index: Index


class ListRows(_Value, frozen=True):
    """A list as it was at one instant; ``rows`` in order of position."""

    version: int
    rows: Sequence[tuple[Body, int]]
    """(body, created_at)"""


class Outline(_Value, frozen=True):
    """A list without its bodies, as it was at one instant.

    Attributes:
        rows: (position, digest, created_at, key) in order of position; the key is a tool call's ``call_id``.
    """

    version: int
    count: int
    rows: Sequence[tuple[int, bytes, int, str | None]]


class FoundRow(_Value, frozen=True):
    """A row that a query found."""

    agent_id: str
    position: int
    created_at: int
    body: Body


# --- Other contents ---------------------------------------------------------------------------------------------------


class Info(_Value, frozen=True):
    """An agent's info and the columns that session queries use; ``metadata`` as :mod:`kode_core.metadata` makes it."""

    body: Body
    template_id: str
    created_at: int
    metadata: tuple[tuple[str, str], ...] = ()


class ListHead(_Value, frozen=True):
    """A list's version and length; both 0 if there is no list."""

    version: int = 0
    count: int = 0

    def kept(self, write: ListWrite) -> int:
        """The number of rows before the rows that *write* appends."""
        count = self.count if write.length is None else min(write.length, self.count)
        return max(count, write.put[-1][0] + 1) if write.put else count

    def after(self, write: ListWrite | None) -> ListHead:
        """The head after *write*."""
        if write is None:
            return self
        return ListHead((self.version or first_version()) + write.step, self.kept(write) + len(write.append))


class AgentSummary(_Value, frozen=True, kw_only=True):
    """An agent without its lists; ``info`` is None until it was saved.

    Attributes:
        updated_at: when messages, tool calls or info last changed, in milliseconds (INFO-2).
    """

    agent_id: str
    info: Info | None
    updated_at: int
    messages: ListHead = ListHead()
    tool_calls: ListHead = ListHead()


# --- Writes -----------------------------------------------------------------------------------------------------------

_NO_DIGESTS: Final[Mapping[tuple[DocKind, str], bytes]] = MappingProxyType({})
_STEP_BITS: Final = 32
"""Versions begin below 2 ** 52, which leaves room for billions of writes."""


def _step() -> int:
    return secrets.randbits(_STEP_BITS) + 1


class Fence(_Value, frozen=True):
    """The lease of a write: this owner must still hold it, with this token (LOCK-5)."""

    owner: str
    token: int


class ListWrite(_Value, frozen=True, kw_only=True):
    """A change of one list, in this order: cut to ``length``, put rows at their positions, append.

    Attributes:
        expect: the version the list must have; None accepts any.
        length: the list is cut to this length; None cuts nothing. At most the list's length.
        put: (position, row), ascending, without gaps: each position is below the length or follows the one before.
        append: rows added at the end. With ``expect`` the core knew the times of the rows that stay before them, and
            has set their times itself: a message that only moved may have an older time. Otherwise (see ``is_blind``)
            the engine gives appended *messages* at least the greatest ``created_at`` of the stored rows that stay
            before them, in the same atomic step (MSG-4). It never changes the times of tool calls.
        step: how much the list's version grows, at random: if a crash undoes this write, the next write does not lead
            to a version that a reader has already seen with other contents.
    """

    expect: int | None = None
    length: int | None = None
    put: tuple[tuple[int, Row], ...] = ()
    append: tuple[Row, ...] = ()
    step: int = msgspec.field(default_factory=_step)

    @property
    def is_blind(self) -> bool:
        """True if rows are appended to rows that the core did not read."""
        return bool(self.append) and self.expect is None and self.length != 0

    @property
    def is_editing(self) -> bool:
        """True if existing rows may be gone after the write."""
        return self.length is not None or bool(self.put)

    def times(self) -> list[int]:
        """The times of all rows that the write contains."""
        return [row.created_at for _, row in self.put] + [row.created_at for row in self.append]

    def not_before(self, time: int) -> ListWrite:
        """The write with its appended rows at *time* or later."""
        if all(row.created_at >= time for row in self.append):
            return self
        rows = (replace(row, created_at=max(row.created_at, time)) for row in self.append)
        return replace(self, append=tuple(rows))


class Batch(_Value, frozen=True, kw_only=True):
    """Everything that one call writes for one agent. It is applied completely or not at all.

    Attributes:
        op_id: unique to the call. A batch whose op_id is the last one applied to the agent's lists or info is not
            applied again: its outcome stays the same. An engine that repeats a write by itself, for example after a
            lost answer, must recognise every batch, also one of documents and events alone: others may have replaced or
            deleted what the batch wrote (OPS-10).
        now: milliseconds since the epoch; becomes ``updated_at`` when lists or info are written. If ``updated_at`` is
            not earlier, it becomes ``updated_at + 1``: it always grows (INFO-2).
        fence: precondition: this lease is held.
        expect_updated_at: precondition: the agent's info, messages and tool calls did not change since.
        expect_lists: with ``expect_updated_at``, the versions that messages and tool calls must have. An agent that was
            deleted and created again may have its time again, and never its versions.
        expect_info: with ``expect_updated_at``, a body with the digest that the info must have, or ``ABSENT_DOC``.
        expect_nothing: precondition, for an engine that :func:`kode_core.engine.checks_demands`: the agent has no info,
            no rows, no documents, but for layers' and the core's, and no events. Its lists may have versions.
        delete: remove everything that is stored for the agent, except the lease, before the rest of the batch is
            applied. The preconditions are those of the agent before.
        drop_events: events to remove, for an engine that :func:`kode_core.engine.drops_events`.
    """

    agent_id: str
    op_id: str
    now: int
    fence: Fence | None = None
    expect_updated_at: int | None = None
    expect_lists: tuple[int, int] | None = None
    expect_info: Body | None = None
    expect_nothing: bool = False
    delete: bool = False
    info: Info | None = None
    messages: ListWrite | None = None
    tool_calls: ListWrite | None = None
    docs: tuple[DocWrite, ...] = ()
    events: tuple[EventWrite, ...] = ()
    drop_events: EventDrop | None = None

    @property
    def lists(self) -> Mapping[ListKind, ListWrite]:
        """The lists that the batch writes."""
        writes = ((ListKind.MESSAGES, self.messages), (ListKind.TOOL_CALLS, self.tool_calls))
        return {kind: write for kind, write in writes if write is not None}

    @property
    def is_touching(self) -> bool:
        """True if the batch changes lists or info, so that ``updated_at`` moves."""
        return self.messages is not None or self.tool_calls is not None or self.info is not None

    @property
    def is_empty(self) -> bool:
        """True if the batch contains nothing, apart from a possible delete."""
        return not (self.is_touching or self.docs or self.events or self.drop_events)

    def refusal(
        self,
        updated_at: int,
        messages: ListHead,
        tool_calls: ListHead,
        digests: Mapping[tuple[DocKind, str], bytes] = _NO_DIGESTS,
        *,
        info: bytes | None = None,
        has_more: bool = False,
    ) -> Refused | None:
        """The precondition that fails for an agent in this state, or None. The fence is not checked.

        *digests* has the digests of those documents among ``demanded_docs`` that are stored, by kind and key. *info* is
        the digest of the info, empty without one, or None from an engine that does not compare it. *has_more* says
        whether documents, but for layers' and the core's, or events are stored, if the batch has ``expect_nothing``.
        """
        if self.expect_updated_at is not None:
            lists = (messages.version, tool_calls.version)
            is_info = info is None or self.expect_info is None or info == self.expect_info.digest
            if self.expect_updated_at != updated_at or self.expect_lists not in (None, lists) or not is_info:
                return Refused("updated_at")
        if self.expect_nothing and (messages.count or tool_calls.count or info or has_more):
            return Refused("contents")
        if self.messages is not None and self.messages.expect not in (None, messages.version):
            return Refused("messages")
        if self.tool_calls is not None and self.tool_calls.expect not in (None, tool_calls.version):
            return Refused("tool_calls")
        if any(digests.get(key, b"") != digest for key, digest in self.demanded_docs.items()):
            return Refused("docs")
        return None

    @property
    def demanded_docs(self) -> Mapping[tuple[DocKind, str], bytes]:
        """The digests that documents must have, by kind and key; empty for one that must not exist."""
        return {(write.kind, write.key): write.expect.digest for write in self.docs if write.expect is not None}


def with_bodies(batch: Batch, change: Callable[[Body], Body]) -> Batch:
    """A copy of *batch* with every body replaced by the result of *change*; bodies come in a fixed order.

    The body of a demanded document (``DocWrite.expect``) or info has no text: its digest alone is compared.
    """

    def demanded(expect: Body | None) -> Body | None:
        return expect if expect is None or expect == ABSENT_DOC else change(expect)

    def rows(write: ListWrite | None) -> ListWrite | None:
        if write is None:
            return None
        put = tuple((position, replace(row, body=change(row.body))) for position, row in write.put)
        return replace(write, put=put, append=tuple(replace(row, body=change(row.body)) for row in write.append))

    def doc(write: DocWrite) -> DocWrite:
        if write.expect is not None:
            write = replace(write, expect=demanded(write.expect))
        return write if write.doc is None else replace(write, doc=replace(write.doc, body=change(write.doc.body)))

    return replace(
        batch,
        expect_info=demanded(batch.expect_info),
        info=None if batch.info is None else replace(batch.info, body=change(batch.info.body)),
        messages=rows(batch.messages),
        tool_calls=rows(batch.tool_calls),
        docs=tuple(map(doc, batch.docs)),
        events=tuple(replace(event, body=change(event.body)) for event in batch.events),
    )


class Applied(_Value, frozen=True):
    """The batch is durable. ``offsets`` are the offsets of its events, in order; a repeated event has its first offset.

    A list has the version 0 if an earlier attempt wrote it and the engine cannot tell the version that the attempt led
    to, because others may have changed the list since.
    """

    messages: ListHead = ListHead()
    tool_calls: ListHead = ListHead()
    offsets: tuple[int, ...] = ()


class Refused(_Value, frozen=True):
    """A precondition did not hold and nothing was written; ``by`` names the precondition."""

    by: Literal["fence", "messages", "tool_calls", "updated_at", "contents", "docs", "events"]


Outcome: TypeAlias = Applied | Refused | KodeError


class Child(_Value, frozen=True):
    """A fork to make."""

    agent_id: str
    info: Info


def first_version() -> int:
    """The version before the first write of a new list: no deleted list of the agent ever had it."""
    return secrets.randbits(52)
