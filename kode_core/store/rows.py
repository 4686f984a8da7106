"""Records to rows and documents: the body, and what it is found by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from kode_core.batch import Doc, DocKind, DocWrite, EventWrite, Info, ListKind, MessageIndex, Row, ToolCallIndex
from kode_core.codec import encode, encode_list
from kode_core.errors import InvalidArgumentError, InvalidValueError
from kode_core.ids import check_key, index_text
from kode_core.jsonvalue import encode_json
from kode_core.model import (
    AgentInfo,
    CompressionRecord,
    HistoryWindow,
    MediaCacheRecord,
    Message,
    Record,
    RecoveredFile,
    Snapshot,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
    UnknownBlock,
)
from kode_core.query import metadata_index
from kode_core.store.dated import message_time

__all__ = ["INT64", "LISTS", "ListCodec", "event_write", "event_writes", "info_of", "records_of"]

INT64: Final = range(-(2**63), 2**63)


def _int64(value: int, label: str, path: str) -> int:
    if value not in INT64:
        raise InvalidValueError(label, path, "outside the 64 bits that engines order by")
    return value


def records_of(cls: type[Record], records: Any, what: str) -> tuple[Any, ...]:
    """The records of a call as a tuple, so that the caller's list may change meanwhile."""
    if not isinstance(records, (list, tuple)):
        raise InvalidArgumentError(f"{what} must be a list of {cls.__name__}, got {type(records).__name__}")
    taken = tuple(records)
    if set(map(type, taken)) <= {cls}:
        return taken
    for i, record in enumerate(taken):
        if not isinstance(record, cls):
            hint = f"; from_dict({cls.__name__}, …) makes one of it" if isinstance(record, dict) else ""
            raise InvalidArgumentError(f"{what}[{i}] must be a {cls.__name__}, got {type(record).__name__}{hint}")
    return taken


# --- Lists ------------------------------------------------------------------------------------------------------------


class ListCodec(NamedTuple):
    """How the records of a list become rows."""

    kind: ListKind
    cls: type[Record]
    row: Callable[[int, Any, int], Row]
    """(position, record, now) -> row"""


def _message_row(position: int, message: Message, now: int) -> Row:
    body = encode(Message, message, f"message {position}")
    types = {index_text(b.type) if type(b) is UnknownBlock else b.__struct_config__.tag for b in message.content}
    return Row(
        body, message_time(position, now), MessageIndex(index_text(message.role), tuple(sorted(map(str, types))))
    )


def _tool_call_row(position: int, call: ToolCallRecord, _: int) -> Row:
    label = f"tool call record {position}"
    body = encode(ToolCallRecord, call, label)
    check_key(call.id, "tool call id")
    index = ToolCallIndex(
        index_text(call.id),
        index_text(call.name),
        index_text(call.state),
        call.is_error is True,
        call.approval.required,
    )
    return Row(body, _int64(call.created_at, label, "$.createdAt"), index)


LISTS: Final = {
    ListKind.MESSAGES: ListCodec(ListKind.MESSAGES, Message, _message_row),
    ListKind.TOOL_CALLS: ListCodec(ListKind.TOOL_CALLS, ToolCallRecord, _tool_call_row),
}


# --- Everything else --------------------------------------------------------------------------------------------------


def info_of(agent_id: str, info: AgentInfo) -> Info:
    """The stored form of an agent's info, checked against the id it is saved under (ID-3)."""
    if not isinstance(info, AgentInfo):
        raise InvalidArgumentError(f"info must be an AgentInfo, got {type(info).__name__}")
    if info.agent_id != agent_id:
        raise InvalidArgumentError(
            f"info.agent_id is {info.agent_id!r} but it is saved as {agent_id!r}: they must be the same"
        )
    label = f"info of agent {agent_id!r}"
    return Info(
        encode(AgentInfo, info, label),
        index_text(info.template_id),
        _int64(info.created_at, label, "$.createdAt"),
        metadata_index(info.metadata, label),
    )


def event_write(timeline: Timeline) -> EventWrite:
    """The stored form of an event."""
    label = "event"
    if not isinstance(timeline, Timeline):
        raise InvalidArgumentError(f"an event must be a Timeline, got {type(timeline).__name__}")
    body = encode(Timeline, timeline, label)
    return EventWrite(_int64(timeline.bookmark.seq, label, "$.bookmark.seq"), timeline.event.channel, body)


def event_writes(timelines: Any) -> tuple[EventWrite, ...]:
    """The stored form of events."""
    return tuple(map(event_write, records_of(Timeline, timelines, "events")))


def _doc(kind: DocKind, key: str, time: int, body: Any, label: str, path: str) -> DocWrite:
    return DocWrite(kind, key, Doc(key, _int64(time, label, path), body))


def todos_doc(snapshot: TodoSnapshot) -> DocWrite:
    label = "todos"
    return _doc(DocKind.TODOS, "", 0, encode(TodoSnapshot, snapshot, label), label, "$")


def window_doc(window: HistoryWindow) -> DocWrite:
    label = f"history window {_id_of(HistoryWindow, window)!r:.80}"
    body = encode(HistoryWindow, window, label)
    return _doc(
        DocKind.WINDOWS, check_key(window.id, "history window id"), window.timestamp, body, label, "$.timestamp"
    )


def compression_doc(record: CompressionRecord) -> DocWrite:
    label = f"compression record {_id_of(CompressionRecord, record)!r:.80}"
    body = encode(CompressionRecord, record, label)
    key = check_key(record.id, "compression record id")
    return _doc(DocKind.COMPRESSIONS, key, record.timestamp, body, label, "$.timestamp")


def recovered_doc(file: RecoveredFile) -> DocWrite:
    label = "recovered file"
    body = encode(RecoveredFile, file, label)
    check_key(file.path, "recovered file path")
    key = encode_json([file.path, file.timestamp], label)
    return _doc(DocKind.RECOVERED, key, file.timestamp, body, label, "$.timestamp")


def media_doc(records: Sequence[MediaCacheRecord]) -> DocWrite:
    label = "media cache"
    records = records_of(MediaCacheRecord, records, "records")
    body = encode_list(MediaCacheRecord, records, label)
    for record in records:
        check_key(record.key, "media key")
    return _doc(DocKind.MEDIA, "", 0, body, label, "$")


def snapshot_doc(snapshot: Snapshot) -> DocWrite:
    label = f"snapshot {_id_of(Snapshot, snapshot)!r:.80}"
    body = encode(Snapshot, snapshot, label)
    return _doc(
        DocKind.SNAPSHOTS, check_key(snapshot.id, "snapshot id"), snapshot.created_at, body, label, "$.createdAt"
    )


def _id_of(cls: type[Record], record: Any) -> str:
    if not isinstance(record, cls):
        raise InvalidArgumentError(f"expected a {cls.__name__}, got {type(record).__name__}")
    name = getattr(record, "id", "")
    return name if type(name) is str else type(name).__name__
