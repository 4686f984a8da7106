"""Records to rows: the body and the index columns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from kode_core.batch import EventWrite, Info, ListKind, MessageIndex, Row, ToolCallIndex
from kode_core.errors import InvalidArgumentError, InvalidValueError
from kode_core.ids import check_key, index_text
from kode_core.jsonvalue import type_name
from kode_core.large import Proof, write, write_body, write_small
from kode_core.metadata import elements_of, index_of_metadata
from kode_core.model import (
    AgentInfo,
    Message,
    Record,
    Timeline,
    ToolCallRecord,
    UnknownBlock,
)
from kode_core.pace import Pace
from kode_core.shapes import is_of
from kode_core.store.dated import message_time

__all__ = [
    "INT64",
    "LISTS",
    "Encoded",
    "ListCodec",
    "check_class",
    "event_write",
    "event_writes",
    "info_of",
    "int64",
    "records_of",
]

INT64: Final = range(-(2**63), 2**63)
_NAMED: Final = 5
"""The number of identical entries that an error names."""


def int64(value: int, label: str, path: str) -> int:
    """The value of the field at *path*, if 64 bits hold it."""
    if value not in INT64:
        raise InvalidValueError(label, path, "outside the 64 bits that engines order by")
    return value


def records_of(cls: type[msgspec.Struct], records: Any, what: str) -> tuple[Any, ...]:
    """The records of a call as a tuple, because the caller's list may change meanwhile."""
    taken = elements_of(records, what, f"a list of {cls.__name__}")
    if not set(map(type, taken)) <= {cls}:
        for i, record in enumerate(taken):
            check_class(cls, record, f"{what}[{i}]")
    return taken


def check_class(cls: type[msgspec.Struct], record: Any, what: str) -> None:
    """Raise InvalidArgumentError unless *record* is of the class, and of no subclass."""
    if is_of(cls, record):
        return
    hint = f"; from_dict({cls.__name__}, …) makes one of it" if isinstance(record, dict) else ""
    if isinstance(record, cls):
        hint = f", a subclass, whose own fields would be lost; make a {cls.__name__} with them in extra"
    raise InvalidArgumentError(f"{what} must be of type {cls.__name__}, got {type_name(type(record))}{hint}")


# --- Lists ------------------------------------------------------------------------------------------------------------


class Encoded(msgspec.Struct, frozen=True, gc=False):
    """A record as a row, with its proof; see :mod:`kode_core.large`."""

    row: Row
    proof: Proof | None


class ListCodec(NamedTuple):
    """The conversion of a list's records to rows."""

    kind: ListKind
    cls: type[Record]
    row: Callable[[int, Any, int, Pace], Awaitable[Encoded]]
    """(position, record, now, pace) -> row"""
    key: Callable[[Any], str] | None = None
    """The id of a tool call in the form of the index."""


async def _message_row(position: int, message: Message, now: int, pace: Pace) -> Encoded:
    written = await write(Message, message, f"message {position}", pace)
    types = {index_text(b.type) if type(b) is UnknownBlock else b.__struct_config__.tag for b in message.content}
    index = MessageIndex(index_text(message.role), tuple(sorted(map(str, types))))
    return Encoded(Row(written.body, message_time(position, now), index), written.proof)


async def _tool_call_row(position: int, call: ToolCallRecord, _: int, pace: Pace) -> Encoded:
    label = f"tool call record {position}"
    written = await write(ToolCallRecord, call, label, pace)
    check_key(call.id, "tool call id")
    index = ToolCallIndex(
        index_text(call.id),
        index_text(call.name),
        index_text(call.state),
        call.is_error is True,
        call.approval.required,
    )
    return Encoded(Row(written.body, int64(call.created_at, label, "$.createdAt"), index), written.proof)


def _key_of(call: ToolCallRecord) -> str:
    return index_text(call.id)


LISTS: Final = {
    ListKind.MESSAGES: ListCodec(ListKind.MESSAGES, Message, _message_row),
    ListKind.TOOL_CALLS: ListCodec(ListKind.TOOL_CALLS, ToolCallRecord, _tool_call_row, _key_of),
}


# --- Everything else --------------------------------------------------------------------------------------------------


async def info_of(agent_id: str, info: AgentInfo) -> Info:
    """The stored form of an agent's info, checked against the id that it is saved under (ID-3)."""
    check_class(AgentInfo, info, "info")
    label, pace = f"info of agent {agent_id!r}", Pace()
    if type(info.agent_id) is not str:
        raise InvalidValueError(label, "$.agentId", f"expected a string, got {type_name(type(info.agent_id))}")
    if info.agent_id != agent_id:
        raise InvalidArgumentError(
            f"info.agent_id is {info.agent_id!r:.80} but it is saved as {agent_id!r:.80}: they must be the same"
        )
    return Info(
        await write_body(AgentInfo, info, label, pace),
        index_text(info.template_id),
        int64(info.created_at, label, "$.createdAt"),
        await index_of_metadata(info.metadata, label, pace),
    )


async def event_write(timeline: Timeline, pace: Pace | None = None) -> EventWrite:
    """The stored form of an event."""
    label = "event"
    check_class(Timeline, timeline, label)
    body = write_small(Timeline, timeline, label) or await write_body(Timeline, timeline, label, pace or Pace())
    return EventWrite(int64(timeline.bookmark.seq, label, "$.bookmark.seq"), timeline.event.channel, body)


async def event_writes(timelines: Any) -> tuple[EventWrite, ...]:
    """The stored form of the events of one call; no two of them may be identical (EVT-4)."""
    pace = Pace()
    events = []
    for timeline in records_of(Timeline, timelines, "events"):
        events.append(await event_write(timeline, pace))
        await pace.yield_to_loop()
    digests = [event.body.digest for event in events]
    if len(set(digests)) < len(digests):
        raise _repeated(digests)
    return tuple(events)


def _repeated(digests: Sequence[bytes]) -> InvalidArgumentError:
    """The error of a call whose entries have *digests*, some of them more than once."""
    places: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digests):
        places.setdefault(digest, []).append(i)
    first, *others = [found for found in places.values() if len(found) > 1]
    named = [f"events[{i}]" for i in first[:_NAMED]]
    more = len(first) - len(named) + sum(map(len, others))
    return InvalidArgumentError(
        f"{', '.join(named[:-1])} and {named[-1]} are identical, in seq, cursor, timestamp and event, and only one of "
        "them would be stored: leave the others out, or give each a seq or cursor of its own"
        + (f"; {more} more are in the call again" if more else "")
    )
