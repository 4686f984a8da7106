"""An event of ADK as a message and tool call records of a store, and back.

The event itself is kept whole in ``metadata["adk"]``. The blocks next to it are what queries, commands and statistics
of a store read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, Final, TypeAlias

from google.adk.events.event import Event
from msgspec.structs import replace
from pydantic_core import to_jsonable_python

from kode_core import (
    AudioBlock,
    ContentBlock,
    CorruptRecordError,
    FileBlock,
    ImageBlock,
    InvalidValueError,
    Json,
    Message,
    ReasoningBlock,
    TextBlock,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    VideoBlock,
    to_jsonable,
)

__all__ = ["RAW", "as_json", "event_of", "has_results", "message_of", "results_in", "tool_calls_of"]

RAW: Final = "adk"
"""The key of the metadata under which a message keeps its event."""
_MEDIA: Final[Mapping[str, type[ImageBlock | AudioBlock | VideoBlock]]] = {
    "image": ImageBlock,
    "audio": AudioBlock,
    "video": VideoBlock,
}

Raw: TypeAlias = Mapping[str, Any]


def message_of(event: Event) -> Message:
    """The message that keeps an event.

    Raises:
        InvalidValueError: a part of the event has no JSON.
    """
    name = f"event {event.id!r}"
    try:
        dumped = event.model_dump(mode="python", by_alias=True, exclude_none=True)
    except (ValueError, TypeError, RecursionError) as exc:
        raise InvalidValueError(name, "$", f"it has no JSON: {type(exc).__name__}") from exc
    raw: Any = as_json(dumped, name)
    role = "user" if event.author == "user" or (raw.get("content") or {}).get("role") == "user" else "assistant"
    return Message(role, list(_blocks_of(raw)), {RAW: raw})


def as_json(value: object, name: str) -> Json:
    """A value of ADK as JSON; unlike ADK's own conversion it keeps every text, and makes no null of NaN.

    Raises:
        InvalidValueError: it has no JSON.
    """
    try:
        return to_jsonable(value, name=name, default=to_jsonable_python)
    except InvalidValueError:
        raise
    except (ValueError, TypeError, RecursionError) as exc:
        raise InvalidValueError(name, "$", f"it has no JSON: {type(exc).__name__}") from exc


def event_of(message: Message) -> Event | None:
    """The event that a message keeps; None if it keeps none.

    Raises:
        CorruptRecordError: this version of ADK cannot read it.
    """
    raw: Any = (message.metadata or {}).get(RAW)
    if raw is None:
        return None
    try:
        return Event.model_validate(raw)
    except ValueError as exc:
        problem = f"this version of ADK cannot read it: {type(exc).__name__}"
    raise CorruptRecordError(f"event {raw.get('id') if isinstance(raw, dict) else None!r}", problem)


def _parts(raw: Raw) -> Iterator[Raw]:
    yield from (part for part in (raw.get("content") or {}).get("parts") or () if isinstance(part, dict))


def _calls(raw: Raw) -> Iterator[tuple[str, Raw]]:
    """The calls of tools in an event, with their ids; ADK gives each one an id."""
    for i, part in enumerate(_parts(raw)):
        if isinstance(call := part.get("functionCall"), dict):
            yield str(call.get("id") or f"{raw.get('id')}-{i}"), call


def _results(raw: Raw) -> Iterator[tuple[str, Raw]]:
    for i, part in enumerate(_parts(raw)):
        if isinstance(result := part.get("functionResponse"), dict):
            yield str(result.get("id") or f"{raw.get('id')}-{i}"), result


def _blocks_of(raw: Raw) -> Iterator[ContentBlock]:
    calls, results = _calls(raw), _results(raw)
    for part in _parts(raw):
        text = part.get("text")
        if isinstance(text, str):
            yield ReasoningBlock(reasoning=text) if part.get("thought") else TextBlock(text)
        if isinstance(part.get("functionCall"), dict):
            id_, call = next(calls)
            yield ToolUseBlock(id=id_, name=str(call.get("name")), input=call.get("args"))
        if isinstance(part.get("functionResponse"), dict):
            id_, result = next(results)
            response = result.get("response")
            yield ToolResultBlock(tool_use_id=id_, content=response, is_error=_error_of(response) is not None or None)
        for field, where in (("inlineData", None), ("fileData", "fileUri")):
            if isinstance(data := part.get(field), dict):
                yield _media(data.get("mimeType"), data.get(where) if where else None)


def _media(mime: Any, url: Any) -> ContentBlock:
    """The kind of a blob or file; the event has its bytes."""
    of_type, where = (value if isinstance(value, str) else None for value in (mime, url))
    media = _MEDIA.get(str(of_type).partition("/")[0])
    return media(url=where, mime_type=of_type) if media else FileBlock(url=where, mime_type=of_type)


def _error_of(response: Any) -> str | None:
    """The error that a tool has answered, by the conventions of Gemini and of ADK's own tools; None if it has none."""
    if not isinstance(response, dict):
        return None
    if (error := response.get("error")) not in (None, False):
        return str(error)
    if response.get("status") == "error":
        return str(response.get("error_message") or response.get("message") or "error")
    return None


def results_in(message: Message) -> list[str]:
    """The calls, by id, whose results a message has."""
    return [block.tool_use_id for block in message.content if isinstance(block, ToolResultBlock)]


def has_results(message: Message) -> bool:
    """Whether a message has the result of a call that an earlier message made."""
    return bool(results_in(message))


def tool_calls_of(event: Event, message: Message, known: Sequence[ToolCallRecord]) -> list[ToolCallRecord]:
    """The tool call records that an event begins or ends; *known* has the ones that are stored already."""
    raw: Any = (message.metadata or {})[RAW]
    at = int(event.timestamp * 1000) if isfinite(event.timestamp) else 0
    asked = set((raw.get("actions") or {}).get("requestedToolConfirmations") or ())
    found: dict[str, ToolCallRecord] = {}
    before = {call.id: call for call in known}
    for id_, call in _calls(raw):
        name, args = str(call.get("name")), call.get("args")
        found[id_] = ToolCallRecord(id=id_, name=name, input=args, created_at=at, updated_at=at)
    for id_, result in _results(raw):
        begun = found.get(id_) or before.get(id_) or ToolCallRecord(id=id_, name=str(result.get("name")), created_at=at)
        found[id_] = _ended(begun, result.get("response"), at, is_waiting=id_ in asked)
    return list(found.values())


def _ended(call: ToolCallRecord, response: Json, at: int, *, is_waiting: bool) -> ToolCallRecord:
    if is_waiting:
        return replace(call, state="APPROVAL_REQUIRED", approval=replace(call.approval, required=True), updated_at=at)
    error = _error_of(response)
    return replace(
        call,
        state="COMPLETED" if error is None else "FAILED",
        result=response,
        error=error,
        is_error=error is not None,
        completed_at=at,
        updated_at=at,
    )
