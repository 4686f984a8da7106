"""Records that a running agent works with: messages, tool calls, events, todos."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import field
from msgspec.structs import force_setattr

from kode_core.errors import InvalidArgumentError
from kode_core.model.base import Items, Json, Record, Spread, empty, freeze, now_ms, to_datetime
from kode_core.model.content import BLOCKS, ContentBlock, TextBlock

AgentChannel: TypeAlias = Literal["progress", "control", "monitor"]
"""``progress`` is for user interfaces, ``control`` asks for decisions, ``monitor`` is for operators."""
CHANNELS: Final[tuple[AgentChannel, ...]] = get_args(AgentChannel)
"""The three channels."""
_LEAST_SEQ: Final = -(2**63)
_GREATEST_SEQ: Final = 2**63 - 1


class Message(Record, frozen=True, gc=True, weakref=True):
    """One message of a conversation.

    Attributes:
        role: ``user``, ``assistant`` or ``system``; other roles are kept as given.
        content: the blocks, in order. A string given here becomes one :class:`TextBlock`.
    """

    role: str
    content: Items[ContentBlock]
    metadata: dict[str, Json] | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            role: str,
            content: str | Sequence[ContentBlock],
            metadata: dict[str, Json] | None = None,
            *,
            extra: Spread | None = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        content: object = self.content
        if type(content) is tuple:
            return
        if type(content) is str:
            force_setattr(self, "content", (TextBlock(content),))
        else:
            freeze(self, "content")

    @classmethod
    def user(cls, text: str) -> Message:
        """A user's message with one text block; raises InvalidArgumentError if *text* is not a str."""
        return cls("user", (_text_block("user", text),))

    @classmethod
    def assistant(cls, text: str, *blocks: ContentBlock) -> Message:
        """A model's answer: a text block, then *blocks* such as tool uses.

        Raises:
            InvalidArgumentError: *text* is not a str, or one of *blocks* is not a content block.
        """
        for block in blocks:
            if not isinstance(block, BLOCKS):
                raise InvalidArgumentError(
                    f"Message.assistant takes a text and then content blocks such as ToolUseBlock, "
                    f"got {type(block).__name__} among the blocks"
                )
        return cls("assistant", (_text_block("assistant", text), *blocks))

    @classmethod
    def system(cls, text: str) -> Message:
        """Instructions, as one text block; raises InvalidArgumentError if *text* is not a str."""
        return cls("system", (_text_block("system", text),))

    @classmethod
    def from_openai(cls, raw: object) -> Message:
        """The record of one message of OpenAI's chat completions, a dict or an object of OpenAI's library.

        The answer of a tool is a user's message with a tool result, and ``developer`` is ``system``. Whatever a record
        has no field for is in ``metadata["openai"]`` and in the ``meta["openai"]`` of blocks, so that
        :meth:`to_openai` makes the same message again; null fields are as absent ones. ``arguments`` are parsed.

        Values that JSON does not have, such as bytes, are converted as :func:`~kode_core.to_jsonable` does.

        Raises:
            InvalidValueError: it is no such message, or cannot be kept exactly; the error has the path.
        """
        from kode_core.formats.openai_messages import read_openai

        return read_openai(raw)

    def to_openai(self, *, lossy: bool | Collection[str] = False) -> list[dict[str, Json]]:
        """This message in the format of OpenAI's chat completions: several messages if it has several tool results.

        Args:
            lossy: what may be lost: ``metadata`` (and ``meta``), ``reasoning``, ``is_error`` of results, the ``order``
                of text and tool calls, ``blocks`` of types that the format has not; and ``json``, results of tools that
                become a JSON text. True allows all, False nothing.

        Raises:
            InvalidValueError: the format cannot carry a part of it, and *lossy* does not allow the loss.
            InvalidArgumentError: *lossy* names something else.
        """
        from kode_core.formats.openai_messages import write_openai

        return write_openai(self, lossy)  # type: ignore[arg-type]

    @classmethod
    def from_anthropic(cls, raw: object) -> Message:
        """The record of one message of Anthropic's API, a dict or an object of Anthropic's library.

        Thinking is a :class:`ReasoningBlock`, a document a :class:`FileBlock`. Whatever a record has no field for, such
        as ``cache_control`` and ``signature``, is in ``metadata["anthropic"]`` and in the ``meta["anthropic"]`` of
        blocks, so that :meth:`to_anthropic` makes the same message again; null fields are as absent ones.

        Values that JSON does not have, such as bytes, are converted as :func:`~kode_core.to_jsonable` does.

        Raises:
            InvalidValueError: it is no such message, or cannot be kept exactly; the error has the path.
        """
        from kode_core.formats.anthropic_messages import read_anthropic

        return read_anthropic(raw)

    def to_anthropic(self, *, lossy: bool | Collection[str] = False) -> dict[str, Json]:
        """This message in the format of Anthropic's API; *lossy* and errors are as in :meth:`to_openai`."""
        from kode_core.formats.anthropic_messages import write_anthropic

        return write_anthropic(self, lossy)  # type: ignore[arg-type]

    @property
    def text(self) -> str:
        """The text blocks, joined by newlines; empty if there are none."""
        return "\n".join(block.text for block in self.content if isinstance(block, TextBlock))


def _text_block(role: str, text: object) -> TextBlock:
    if isinstance(text, str):
        return TextBlock(text)
    if isinstance(text, BLOCKS):
        hint = f"a message without text is Message({role!r}, [block])"
    else:
        hint = f"other content is given as blocks: Message({role!r}, [TextBlock('…'), …])"
    raise InvalidArgumentError(f"Message.{role} takes the text first, as a str, got {type(text).__name__}; {hint}")


class ToolCallApproval(Record, frozen=True, kw_only=True):
    """Whether a call needed a decision, and the decision.

    Attributes:
        required: True if the call went through the approval gate, decided or not.
        decision: ``allow`` or ``deny``; None while it is open.
        decided_at: milliseconds since the epoch.
    """

    required: bool = False
    decision: str | None = None
    decided_by: str | None = None
    decided_at: int | None = None
    note: str | None = None
    meta: dict[str, Json] | None = None


class ToolCallAuditEntry(Record, frozen=True):
    """One step in the life of a tool call; ``timestamp`` is in milliseconds since the epoch."""

    state: str
    timestamp: int
    note: str | None = None


class ToolCallRecord(Record, frozen=True, kw_only=True, gc=True, weakref=True):
    """One call of a tool, from the model's request to its result.

    Attributes:
        id: the provider's call id. It need not be unique (TC-2).
        state: PENDING, APPROVAL_REQUIRED, APPROVED, EXECUTING, COMPLETED, FAILED, DENIED or SEALED, as stored.
        duration_ms: how long the tool ran, in milliseconds; may be fractional.
        created_at: milliseconds since the epoch; queries filter and sort by it.
    """

    id: str
    name: str
    input: Json = None
    state: str = "PENDING"
    approval: ToolCallApproval = ToolCallApproval()
    result: Json = None
    error: str | None = None
    is_error: bool | None = None
    started_at: int | None = None
    completed_at: int | None = None
    duration_ms: int | float | None = None
    created_at: int = field(default_factory=now_ms)
    updated_at: int = field(default_factory=now_ms)
    audit_trail: Items[ToolCallAuditEntry] = field(default_factory=empty)

    def __post_init__(self) -> None:
        freeze(self, "audit_trail")

    @property
    def created_time(self) -> datetime:
        """``created_at`` as an aware datetime in UTC; raises as ``to_datetime`` does."""
        return to_datetime(self.created_at)

    @property
    def started_time(self) -> datetime | None:
        """``started_at`` as ``created_time`` is given; None if the call has not started."""
        return None if self.started_at is None else to_datetime(self.started_at)

    @property
    def completed_time(self) -> datetime | None:
        """``completed_at`` as ``created_time`` is given; None if the call has not ended."""
        return None if self.completed_at is None else to_datetime(self.completed_at)


class Bookmark(Record, frozen=True):
    """A place in an agent's event stream: the producer's ``seq`` and the time in milliseconds since the epoch."""

    seq: int
    timestamp: int

    @property
    def time(self) -> datetime:
        """``timestamp`` as an aware datetime in UTC; raises as ``to_datetime`` does."""
        return to_datetime(self.timestamp)


class AgentEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """An event of an agent: its channel, its type, and the type's own fields in ``data``.

    On the wire the fields of ``data`` stand next to ``channel`` and ``type``. Types are open: a store keeps every type,
    known or not (VAL-6).
    """

    channel: AgentChannel
    type: str
    data: Spread = field(default_factory=dict, name="__data__")


class Timeline(Record, frozen=True):
    """One entry of the event stream.

    Attributes:
        cursor: the producer's position in its own stream.
        bookmark: the event's place in the stream; ``bookmark.seq`` may repeat after a producer restarts (EVT-3).
    """

    cursor: int
    bookmark: Bookmark
    event: AgentEvent

    @classmethod
    def after(cls, last: Bookmark | None, event: AgentEvent) -> Timeline:
        """The entry of *event* that follows *last*: the next seq, or 0 for None, and the present time.

        *last* is the bookmark of the producer's entry before, or the store's ``last_bookmark`` when a producer starts.

        Raises:
            InvalidArgumentError: *last* is neither a Bookmark nor None, or its seq is no int that has a next one in 64
                bits; or *event* is no AgentEvent.
        """
        if last is not None and not isinstance(last, Bookmark):
            raise InvalidArgumentError(f"Timeline.after takes a Bookmark or None, got {type(last).__name__}")
        if not isinstance(event, AgentEvent):
            raise InvalidArgumentError(
                f"Timeline.after takes the event as an AgentEvent, got {type(event).__name__}; "
                "from_dict(AgentEvent, …) makes one of a dict"
            )
        seq = 0 if last is None else _next_seq(last.seq)
        return cls(seq, Bookmark(seq, now_ms()), event)

    @property
    def time(self) -> datetime:
        """The bookmark's time as an aware datetime in UTC; raises as ``to_datetime`` does."""
        return self.bookmark.time


def _next_seq(seq: object) -> int:
    if type(seq) is not int:
        raise InvalidArgumentError(
            f"Timeline.after takes a Bookmark whose seq is an int, got {type(seq).__name__}; the store's "
            "last_bookmark is one"
        )
    if not _LEAST_SEQ <= seq < _GREATEST_SEQ:
        raise InvalidArgumentError(
            f"Timeline.after found no seq after {_shown(seq)}, as a seq is an integer of 64 bits; take the store's "
            "last_bookmark"
        )
    return seq + 1


def _shown(number: int) -> str:
    return str(number) if number.bit_length() <= 64 else "a larger integer"


class TodoItem(Record, frozen=True, kw_only=True):
    """One thing to do; ``status`` is ``pending``, ``in_progress`` or ``completed``, times are in milliseconds."""

    id: str
    title: str
    status: str = "pending"
    assignee: str | None = None
    notes: str | None = None
    created_at: int = field(default_factory=now_ms)
    updated_at: int = field(default_factory=now_ms)


class TodoSnapshot(Record, frozen=True, kw_only=True):
    """The agent's whole todo list at one time; ``version`` counts its changes, kept as given."""

    todos: Sequence[TodoItem] = field(default_factory=empty)
    version: int = 1
    updated_at: int = field(default_factory=now_ms)

    def __post_init__(self) -> None:
        freeze(self, "todos")
