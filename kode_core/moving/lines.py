"""One agent as lines of JSON: the lines of an archive, from which its digest is taken as well.

The lines have nothing that a store gives anew: no offsets of events and no versions. So the same agent has the same
lines in every store, and equal digests mean equal agents.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import fields, replace

from kode_core.codec import to_dict
from kode_core.errors import InvalidValueError
from kode_core.jsonvalue import Problem, check_json, dump
from kode_core.large import write_body
from kode_core.model import (
    AgentInfo,
    AgentRecords,
    CompressionRecord,
    Document,
    HistoryWindow,
    Json,
    MediaCacheRecord,
    Message,
    Record,
    RecoveredFile,
    Snapshot,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
)
from kode_core.pace import Pace

__all__ = [
    "DOCUMENT",
    "NOT_REST",
    "PARTS",
    "REST",
    "Fingerprint",
    "Part",
    "Tally",
    "agent_lines",
    "begin_line",
    "fingerprint",
]

DOCUMENT: Final = "document"
REST: Final = "rest"
"""The kind of the line with fields of ``AgentRecords`` that have no kind of their own."""


class Part(NamedTuple):
    """A kind of line, and the field of ``AgentRecords`` that has its records in their canonical order."""

    kind: str
    field: str
    cls: type[Any]
    order: Callable[[Any], Any] | None = None
    is_list: bool = True


PARTS: Final = (
    Part("info", "info", AgentInfo, is_list=False),
    Part("message", "messages", Message),
    Part("toolCall", "tool_calls", ToolCallRecord),
    Part("todos", "todos", TodoSnapshot, is_list=False),
    Part("historyWindow", "history_windows", HistoryWindow, lambda one: (one.timestamp, one.id)),
    Part("compressionRecord", "compression_records", CompressionRecord, lambda one: (one.timestamp, one.id)),
    Part("recoveredFile", "recovered_files", RecoveredFile, lambda one: (one.timestamp, one.path)),
    Part("media", "media_cache", MediaCacheRecord),
    Part("snapshot", "snapshots", Snapshot, lambda one: (-one.created_at, one.id)),
    Part(DOCUMENT, "documents", Document, lambda one: (one.collection, one.key)),
    Part("event", "events", Timeline),
)
"""In the order of their lines."""
_OWN_LINES: Final = {"agent_id", "updated_at", "message_times", "event_offsets", *(part.field for part in PARTS)}
NOT_REST: Final = {field.encode_name for field in fields(AgentRecords) if field.name in _OWN_LINES}
"""The fields that are no part of the ``rest``, as JSON names them."""
_STAND_ALONE: Final = {"todos", "historyWindow", "compressionRecord", "recoveredFile", "media", "snapshot"}


class Fingerprint(msgspec.Struct, frozen=True):
    """An agent in short.

    Attributes:
        digest: SHA-256 of the lines, in hexadecimal.
        counts: the number of lines of each kind that has some.
        size: the bytes of the lines.
        apart: a digest of the records that have no version, as ``load_version`` and documents have them.
    """

    digest: str
    counts: dict[str, int]
    size: int
    apart: bytes


class Tally:
    """Takes the fingerprint of an agent, line by line."""

    def __init__(self) -> None:
        self._digest = sha256()
        self._apart = sha256()
        self._size = 0
        self.counts: dict[str, int] = {}

    def add(self, kind: str, line: bytes) -> None:
        """Add the next line, with its line feed."""
        self._digest.update(line)
        self._size += len(line)
        if kind != "agent":
            self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind in _STAND_ALONE:
            self._apart.update(line)

    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the lines so far."""
        return Fingerprint(self._digest.hexdigest(), dict(self.counts), self._size, self._apart.digest())


async def fingerprint(records: AgentRecords) -> Fingerprint:
    """The fingerprint of an agent."""
    tally = Tally()
    async for kind, line in agent_lines(records):
        tally.add(kind, line)
    return tally.fingerprint()


async def agent_lines(records: AgentRecords) -> AsyncIterator[tuple[str, bytes]]:
    """The lines of an agent, each with its kind: the line that begins it, and a line for each record."""
    pace, agent_id = Pace(), records.agent_id
    yield "agent", begin_line(agent_id, records.updated_at)
    for part in PARTS:
        found = _records_of(records, part)
        for position, record in enumerate(found):
            await pace.yield_to_loop()
            more: dict[str, Json] = {}
            if part.kind == "message":
                more = {"createdAt": records.message_times[position]}
            if part.kind == DOCUMENT:
                more = {"collection": record.collection, "key": record.key, "updatedAt": record.updated_at}
                more |= {"tags": dict(sorted(record.tags.items()))} if record.tags else {}
                body = _value(record)
            else:
                body = (await write_body(part.cls, record, f"{part.kind} {position}", pace)).text.encode()
            yield part.kind, _line(part.kind, agent_id, position, more, body)
    rest = _rest(records)
    if rest:
        yield REST, _line(REST, agent_id, 0, {}, dump(rest))


def begin_line(agent_id: str, updated_at: int | None) -> bytes:
    """The line that begins an agent."""
    changed = {} if updated_at is None else {"updatedAt": updated_at}
    return msgspec.json.encode({"kind": "agent", "agentId": agent_id, **changed}) + b"\n"


def _records_of(records: AgentRecords, part: Part) -> Iterable[Any]:
    found = getattr(records, part.field)
    if not part.is_list:
        return () if found is None else (found,)
    return found if part.order is None else sorted(found, key=part.order)


def _line(kind: str, agent_id: str, position: int, more: Mapping[str, Json], body: bytes) -> bytes:
    head = msgspec.json.encode({"kind": kind, "agentId": agent_id, "position": position, **more})
    return b"".join((head[:-1], b',"body":', body, b"}\n"))


def _value(document: Document) -> bytes:
    try:
        check_json(document.value)
        return dump(document.value)
    except Problem as problem:
        name = f"document {document.key!r:.80}"
        raise InvalidValueError(name, f"$.value{problem.path}", problem.what) from None


def _rest(records: AgentRecords) -> dict[str, Json]:
    """The fields that have no lines of their own, if they are not empty."""
    empty: dict[str, Any] = {"updated_at": None, "message_times": (), "event_offsets": ()}
    empty |= {part.field: () if part.is_list else None for part in PARTS}
    if all(name in _OWN_LINES or not getattr(records, name) for name in _fields()):
        return {}
    found: Record = replace(records, **empty)
    emptied = to_dict(AgentRecords(agent_id=records.agent_id))
    kept = {name: value for name, value in to_dict(found).items() if name not in emptied or emptied[name] != value}
    return {name: dict(sorted(value.items())) if type(value) is dict else value for name, value in kept.items()}


def _fields() -> tuple[str, ...]:
    return AgentRecords.__struct_fields__
