"""The tables and their columns, and the row of each record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from kode_core.codec import to_dict
from kode_core.ids import SURROGATE
from kode_core.jsonvalue import dump
from kode_core.model import Message, StoredEvent, StoredMessage, ToolCallRecord
from kode_core.query import Session

__all__ = ["TABLES", "Column", "event_row", "message_row", "session_row", "tool_call_row"]

Kind: TypeAlias = Literal["text", "texts", "json", "int", "float", "bool", "time"]
Row: TypeAlias = tuple[Any, ...]


class Column(NamedTuple):
    """A column: a text, a list of texts, the text of a JSON value, a number, a boolean, or a time in UTC."""

    name: str
    kind: Kind


def _columns(**kinds: Kind) -> tuple[Column, ...]:
    return tuple(Column(name, kind) for name, kind in kinds.items())


TABLES: Final[Mapping[str, tuple[Column, ...]]] = {
    "sessions": _columns(
        agent_id="text",
        template_id="text",
        user_id="text",
        created_at="time",
        updated_at="time",
        message_count="int",
        tool_call_count="int",
        lineage="texts",
        breakpoint="text",
        last_sfp_index="int",
        last_seq="int",
        last_event_at="time",
        metadata="json",
    ),
    "messages": _columns(
        agent_id="text",
        position="int",
        role="text",
        created_at="time",
        text="text",
        block_types="texts",
        content="json",
        metadata="json",
    ),
    "tool_calls": _columns(
        agent_id="text",
        position="int",
        call_id="text",
        name="text",
        state="text",
        is_error="bool",
        error="text",
        duration_ms="float",
        created_at="time",
        started_at="time",
        completed_at="time",
        updated_at="time",
        approval_required="bool",
        approval_decision="text",
        input="json",
        result="json",
        audit_trail="json",
    ),
    "events": _columns(
        agent_id="text",
        event_offset="int",
        seq="int",
        producer_cursor="int",
        created_at="time",
        channel="text",
        type="text",
        data="json",
    ),
}
"""The columns of each table, by the name of its file without ``.parquet``."""

_FIRST: Final = -62_135_596_800_000
_LAST: Final = 253_402_300_799_999


def session_row(session: Session) -> Row:
    """The row of an agent; the user is the ``userId`` of its metadata."""
    user, last = session.metadata.get("userId"), session.last_bookmark
    return (
        session.agent_id,
        _text(session.template_id),
        _text(user) if isinstance(user, str) else None,
        _time(session.created_at),
        _time(session.updated_at),
        session.message_count,
        session.tool_call_count,
        [_text(one) for one in session.lineage],
        _text(session.breakpoint),
        _whole(session.last_sfp_index),
        None if last is None else last.seq,
        None if last is None else _time(last.timestamp),
        _json(session.metadata),
    )


def message_row(message: StoredMessage) -> Row:
    """The row of a message."""
    plain = to_dict(Message(message.role, message.content))
    content: Any = plain["content"]
    return (
        message.agent_id,
        message.position,
        _text(message.role),
        _time(message.created_at),
        _text(message.text),
        [_text(str(block.get("type", ""))) for block in content],
        _json(content),
        None if message.metadata is None else _json(message.metadata),
    )


def tool_call_row(agent_id: str, position: int, call: ToolCallRecord) -> Row:
    """The row of a tool call; an absent input and result are as a null."""
    return (
        agent_id,
        position,
        _text(call.id),
        _text(call.name),
        _text(call.state),
        call.is_error,
        _text(call.error),
        _number(call.duration_ms),
        _time(call.created_at),
        _time(call.started_at),
        _time(call.completed_at),
        _time(call.updated_at),
        call.approval.required,
        _text(call.approval.decision),
        None if call.input is None else _json(call.input),
        None if call.result is None else _json(call.result),
        _json([to_dict(entry) for entry in call.audit_trail]),
    )


def event_row(agent_id: str, event: StoredEvent) -> Row:
    """The row of an event."""
    return (
        agent_id,
        event.offset,
        event.bookmark.seq,
        event.cursor,
        _time(event.bookmark.timestamp),
        event.event.channel,
        _text(event.event.type),
        _json(event.event.data),
    )


def size_of(row: Sequence[Any]) -> int:
    """About the bytes of a row."""
    return 8 * len(row) + sum(len(value) for value in row if isinstance(value, str | bytes))


def _text(text: str | None) -> str | None:
    """*text*; a lone surrogate, which no Parquet file can have, becomes U+FFFD."""
    if text is None or text.isascii():
        return text
    return SURROGATE.sub("\ufffd", text)


def _json(value: Any) -> bytes:
    return dump(value)


def _time(time_ms: int | None) -> int | None:
    """The time; None outside of the years 1 to 9999, which readers do not take."""
    return time_ms if time_ms is not None and _FIRST <= time_ms <= _LAST else None


def _whole(number: int) -> int | None:
    return number if -(2**63) <= number < 2**63 else None


def _number(number: int | float | None) -> float | None:
    try:
        return None if number is None else float(number)
    except OverflowError:
        return None
