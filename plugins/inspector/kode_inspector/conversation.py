"""One part of a conversation as its page shows it: messages with their calls, each call with its result in one row."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from kode_core import (
    CorruptRecordError,
    ExtendedStore,
    Json,
    Message,
    ReasoningBlock,
    StoredMessage,
    TextBlock,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
)
from kode_inspector.text import cut, preview
from kode_inspector.trees import Node, tree

__all__ = ["PAGE", "Call", "Entry", "Part", "behind", "load_part", "status_of"]

PAGE: Final = 100
"""The messages of one page of a conversation."""
_AHEAD: Final = 20
"""How far behind the page the results of its last calls are looked for."""
_RECORDS: Final = 400
_DAMAGED: Final = re.compile(r"message (\d+) of ")

Status = Literal["ok", "failed", "waiting", "denied", "running", "open"]
_STATUS: Final[dict[str, Status]] = {
    "COMPLETED": "ok",
    "FAILED": "failed",
    "DENIED": "denied",
    "SEALED": "failed",
    "APPROVAL_REQUIRED": "waiting",
    "APPROVED": "running",
    "EXECUTING": "running",
    "PENDING": "open",
}


@dataclass(slots=True)
class Call:
    """A call of a tool with its result, and what the record of the call says."""

    id: str
    name: str
    preview: str
    input: Node | None
    key: str
    status: Status = "open"
    state: str = ""
    result: Node | None = None
    result_preview: str = ""
    result_at: int | None = None
    duration_ms: float | None = None
    error: str | None = None
    approval: str | None = None
    record: int | None = None


@dataclass(slots=True)
class Piece:
    """A block of a message; ``kind`` chooses how it is drawn."""

    kind: str
    text: str = ""
    rest: str = ""
    left_out: int = 0
    call: Call | None = None
    node: Node | None = None
    block: int = 0
    mime: str = ""
    note: str = ""


@dataclass(slots=True)
class Entry:
    """A message of the page, or in its place the reason why it cannot be shown."""

    position: int
    role: str
    created_at: int | None = None
    pieces: list[Piece] = field(default_factory=list)
    problem: str | None = None
    metadata: Node | None = None

    @property
    def is_failed(self) -> bool:
        """True if the page jumps to it as to an error."""
        return self.problem is not None or any(
            piece.call is not None and piece.call.status in ("failed", "denied") for piece in self.pieces
        )


@dataclass(slots=True)
class Part:
    """The messages from ``first`` on, of ``total``."""

    entries: list[Entry]
    first: int
    total: int
    failed: int = 0
    waiting: int = 0

    @property
    def last(self) -> int:
        """The position of the last message."""
        return self.first + len(self.entries) - 1


def behind(first: int) -> int | None:
    """The exclusive bound ``after`` of a part that begins at *first*."""
    return first - 1 if first else None


async def load_part(
    store: ExtendedStore, agent_id: str, total: int, call_count: int, first: int, *, length: int = PAGE
) -> Part:
    """Read the part that begins at *first*; a message that cannot be read is shown as such."""
    first = max(0, min(first, max(0, total - 1)))
    entries: list[Entry] = []
    open_calls: dict[str, deque[Call]] = defaultdict(deque)
    async for position, message in _read(store, agent_id, first, min(first + length, total)):
        if isinstance(message, Message):
            if (entry := _entry(position, message, open_calls)) is not None:
                entries.append(entry)
        else:
            entries.append(Entry(position, "damaged", problem=message))
    await _results_behind(store, agent_id, first + length, total, open_calls)
    calls = [piece.call for entry in entries for piece in entry.pieces if piece.call is not None]
    if calls and call_count:
        await _add_records(store, agent_id, calls, call_count, first / total if total else 0.0)
    part = Part(entries, first, total)
    part.failed = sum(entry.is_failed for entry in entries)
    part.waiting = sum(call.status == "waiting" for call in calls)
    return part


async def _read(
    store: ExtendedStore, agent_id: str, first: int, before: int
) -> AsyncIterator[tuple[int, StoredMessage | Message | str]]:
    """The messages from *first* on, up to *before*; in the place of a damaged one the problem."""
    following = first
    try:
        async with aclosing(store.read_messages(agent_id, after=behind(first), before=before)) as messages:  # type: ignore[type-var]
            async for message in messages:
                following = message.position + 1
                yield message.position, message
        return
    except CorruptRecordError as exc:
        problem = exc
    found = await store.load_messages(agent_id, after=behind(following), before=before, on_corrupt="skip")
    bad = {int(match[1]) for name in found.left_out if (match := _DAMAGED.search(name))}
    rest = iter(found)
    for position in range(following, before):
        if position in bad:
            yield position, f"message {position} cannot be read: {type(problem).__name__}"
        elif (other := next(rest, None)) is not None:
            yield position, other


async def _results_behind(
    store: ExtendedStore, agent_id: str, first: int, total: int, open_calls: dict[str, deque[Call]]
) -> None:
    if first >= total or not any(open_calls.values()):
        return
    async for position, message in _read(store, agent_id, first, min(first + _AHEAD, total)):
        if not isinstance(message, Message):
            continue
        for block in message.content:
            if isinstance(block, ToolUseBlock):
                open_calls[block.id].append(_call(block, position))
            elif isinstance(block, ToolResultBlock) and open_calls[block.tool_use_id]:
                _answer(open_calls[block.tool_use_id].popleft(), block, position)


def _entry(position: int, message: Message, open_calls: dict[str, deque[Call]]) -> Entry | None:
    """The entry of a message; None if all of it is shown elsewhere, as results are in the rows of their calls."""
    entry = Entry(position, message.role, getattr(message, "created_at", None))
    folded = 0
    for number, block in enumerate(message.content):
        if isinstance(block, ToolUseBlock):
            call = _call(block, position)
            open_calls[block.id].append(call)
            entry.pieces.append(Piece("call", call=call))
        elif isinstance(block, ToolResultBlock) and open_calls[block.tool_use_id]:
            _answer(open_calls[block.tool_use_id].popleft(), block, position)
            folded += 1
        else:
            entry.pieces.append(_piece(block, number))
    if message.metadata:
        entry.metadata = tree(message.metadata)
    return entry if entry.pieces or not folded else None


def _call(block: ToolUseBlock, position: int) -> Call:
    return Call(block.id, block.name, preview(block.input), tree(block.input), _key(block.name, block.input))


def _answer(call: Call, block: ToolResultBlock, position: int) -> None:
    call.result = tree(block.content)
    call.result_preview = preview(block.content, 100)
    call.result_at = position
    call.status = "failed" if block.is_error else "ok"
    call.state = "FAILED" if block.is_error else "COMPLETED"


def _piece(block: Any, number: int) -> Piece:
    if isinstance(block, TextBlock | ReasoningBlock):
        whole = block.text if isinstance(block, TextBlock) else block.reasoning
        text, left_out = cut(whole)
        head, rest = (text[:2_000], text[2_000:]) if len(text) > 2_600 else (text, "")
        kind = "text" if isinstance(block, TextBlock) else "reasoning"
        return Piece(kind, head, rest, left_out, block=number)
    if isinstance(block, ToolResultBlock):
        note = "failed" if block.is_error else ""
        return Piece("result", block.tool_use_id, node=tree(block.content), block=number, note=note)
    if isinstance(block, UnknownBlock):
        return Piece("unknown", block.type, node=tree(block.data), block=number)
    kind = type(block).__name__.removesuffix("Block").lower()
    place = block.url or block.file_id or ("inline" if block.base64 else "")
    held = len(block.base64 or "") * 3 // 4
    name = getattr(block, "filename", None) or ""
    return Piece(kind, cut(place, 300)[0], name, held, block=number, mime=block.mime_type or "")


def _key(name: str, value: Json) -> str:
    return f"{name} {preview(value, 400)}"


# --- Records of calls -------------------------------------------------------------------------------------------------


async def _add_records(store: ExtendedStore, agent_id: str, calls: list[Call], count: int, share: float) -> None:
    """Add the records of the calls. A long list of records is searched around the same share of it."""
    start = max(0, min(int(share * count) - _RECORDS // 4, count - _RECORDS))
    by_id: dict[str, list[tuple[ToolCallRecord, int | None, str]]] = defaultdict(list)
    wanted = {call.id for call in calls}
    for first in range(start, min(start + _RECORDS, count), 100):
        page = await store.load_tool_call_records(agent_id, after=behind(first), before=first + 100, on_corrupt="skip")
        places: Iterable[int | None] = range(first, first + len(page)) if not page.left_out else [None] * len(page)
        for place, record in zip(places, page, strict=True):
            if record.id in wanted:
                by_id[record.id].append((record, place, _key(record.name, record.input)))
    rest = []
    for call in calls:  # ids may repeat: a record belongs to the call with the same input, if there is one
        found = by_id.get(call.id, [])
        index = next((i for i, (_, _, key) in enumerate(found) if key == call.key), None)
        if index is None:
            rest.append(call)
        else:
            _from_record(call, *found.pop(index)[:2])
    for call in rest:
        if found := by_id.get(call.id, []):
            _from_record(call, *found.pop(0)[:2])


def _from_record(call: Call, record: ToolCallRecord, place: int | None) -> None:
    call.state = record.state
    call.status = status_of(record)
    call.duration_ms = record.duration_ms
    call.error = None if record.error is None else cut(record.error, 2_000)[0]
    call.record = place
    approval = record.approval
    if approval.required:
        by = f" by {approval.decided_by}" if approval.decided_by else ""
        decision = {"allow": "allowed", "deny": "denied", None: "waits for a decision"}.get(
            approval.decision, str(approval.decision)
        )
        call.approval = decision + by + (f": {approval.note}" if approval.note else "")


def status_of(record: ToolCallRecord) -> Status:
    """How a call is marked."""
    found = _STATUS.get(record.state, "open")
    return "failed" if record.is_error and found in ("ok", "open") else found
