"""A message of Pydantic AI as a message and tool call records of a store, and back.

The message itself is kept whole in ``metadata["pydanticAi"]``. The blocks next to it are what queries, commands and
statistics of a store read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

import pydantic
from msgspec.structs import replace
from pydantic_ai.conversation_store import ConversationEntry, ConversationRecord
from pydantic_ai.messages import ModelMessage

from kode_core import (
    AudioBlock,
    ContentBlock,
    CorruptRecordError,
    FileBlock,
    ImageBlock,
    InvalidValueError,
    Json,
    KodeError,
    Message,
    ReasoningBlock,
    TextBlock,
    ToolCallApproval,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    VideoBlock,
    now_ms,
    to_json,
)

__all__ = ["RAW", "entry_id_of", "entry_of", "has_tools", "message_of", "raw_of_record", "record_of", "tool_calls_of"]

RAW: Final = "pydanticAi"
"""The key of the metadata under which a message keeps its entry, and an info its record."""

_CONFIG: Final = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")
_MESSAGE: Final[pydantic.TypeAdapter[ModelMessage]] = pydantic.TypeAdapter(ModelMessage, config=_CONFIG)
_RECORDS: Final = pydantic.TypeAdapter(list[ConversationRecord], config=_CONFIG)
_FAILED: Final = frozenset({"failed", "retried", "interrupted"})
_MEDIA: Final[Mapping[str, type[ImageBlock | AudioBlock | VideoBlock]]] = {
    "image": ImageBlock,
    "audio": AudioBlock,
    "video": VideoBlock,
}
_STATES: Final = {"denied": "DENIED", "interrupted": "SEALED"}

Raw: TypeAlias = Mapping[str, Any]


def message_of(entry: ConversationEntry) -> Message:
    """The message that keeps an entry.

    Raises:
        InvalidValueError: the message of the entry has no JSON.
    """
    try:
        raw = _MESSAGE.dump_python(entry.message, mode="json")
    except (ValueError, TypeError, RecursionError) as exc:
        raise InvalidValueError(f"entry {entry.id!r}", "$.message", f"it has no JSON: {type(exc).__name__}") from exc
    kept = {"id": entry.id, "parentId": entry.parent_id, "kind": entry.kind, "message": raw}
    return Message(_role_of(raw), list(_blocks_of(raw)), {RAW: kept})


def entry_id_of(message: Message) -> str | None:
    """The id of the entry that a message keeps; None if it keeps none."""
    kept = (message.metadata or {}).get(RAW)
    found = kept.get("id") if isinstance(kept, dict) else None
    return found if isinstance(found, str) else None


def entry_of(message: Message) -> ConversationEntry:
    """The entry that a message keeps, as it was given.

    Raises:
        CorruptRecordError: this version of Pydantic AI cannot read it.
    """
    kept: Any = (message.metadata or {}).get(RAW)
    try:
        return ConversationEntry(
            id=kept["id"],
            parent_id=kept["parentId"],
            message=_MESSAGE.validate_python(kept["message"]),
            kind=kept["kind"],
        )
    except (ValueError, TypeError, KeyError) as exc:
        problem = f"this version of Pydantic AI cannot read it: {type(exc).__name__}"
    raise CorruptRecordError(f"entry {entry_id_of(message)!r} of a conversation", problem)


def raw_of_record(record: ConversationRecord) -> Json:
    """The JSON of a record.

    Raises:
        InvalidValueError: it has none.
    """
    try:
        raw: Json = _RECORDS.dump_python([record], mode="json")[0]
    except (ValueError, TypeError, RecursionError) as exc:
        name = f"record of conversation {record.conversation_id!r}"
        raise InvalidValueError(name, "$", f"it has no JSON: {type(exc).__name__}") from exc
    return raw


def record_of(metadata: Mapping[str, Json], agent_id: str) -> ConversationRecord | None:
    """The record in the metadata of an info; None if there is none.

    Raises:
        CorruptRecordError: this version of Pydantic AI cannot read it.
    """
    raw = metadata.get(RAW)
    if raw is None:
        return None
    try:
        return _RECORDS.validate_python([raw])[0]
    except ValueError as exc:
        problem = f"this version of Pydantic AI cannot read it: {type(exc).__name__}"
    raise CorruptRecordError(f"record of the conversation in agent {agent_id!r}", problem)


def _parts(raw: Raw) -> Iterator[Raw]:
    yield from (part for part in raw.get("parts") or () if isinstance(part, dict))


def _role_of(raw: Raw) -> str:
    if raw.get("kind") == "response":
        return "assistant"
    kinds = {part.get("part_kind") for part in _parts(raw)}
    return "system" if kinds == {"system-prompt"} else "user"


def _blocks_of(raw: Raw) -> Iterator[ContentBlock]:
    for part in _parts(raw):
        kind, content = str(part.get("part_kind")), part.get("content")
        if kind == "thinking":
            yield ReasoningBlock(reasoning=content if isinstance(content, str) else "")
        elif _is_call(part):
            yield ToolUseBlock(id=part["tool_call_id"], name=str(part.get("tool_name")), input=_input_of(part))
        elif _is_result(part):
            yield ToolResultBlock(tool_use_id=part["tool_call_id"], content=content, is_error=_is_error(part) or None)
        else:
            yield from _contents(content if isinstance(content, list) else [content])


def _contents(contents: Iterable[Any]) -> Iterator[ContentBlock]:
    """The blocks of prompts and texts; of a binary content the kind alone, since the message has its bytes."""
    for item in contents:
        if isinstance(item, str):
            yield TextBlock(item)
        elif isinstance(item, dict):
            kind, url, text = str(item.get("kind", "")), item.get("url"), item.get("content")
            if isinstance(text, str):
                yield TextBlock(text)
            elif kind == "binary" or isinstance(url, str):
                mime = item.get("media_type")
                sort = kind.removesuffix("-url") if kind != "binary" else str(mime).partition("/")[0]
                where = url if isinstance(url, str) else None
                of_type = mime if isinstance(mime, str) else None
                media = _MEDIA.get(sort)
                yield media(url=where, mime_type=of_type) if media else FileBlock(url=where, mime_type=of_type)


def _is_call(part: Raw) -> bool:
    kind = part.get("part_kind")
    return kind in ("tool-call", "builtin-tool-call") and isinstance(part.get("tool_call_id"), str)


def _is_result(part: Raw) -> bool:
    kind, name = part.get("part_kind"), part.get("tool_name")
    of_tool = kind in ("tool-return", "builtin-tool-return") or (kind == "retry-prompt" and name is not None)
    return of_tool and isinstance(part.get("tool_call_id"), str)


def _is_error(part: Raw) -> bool:
    return part.get("part_kind") == "retry-prompt" or part.get("outcome") in _FAILED


def _input_of(part: Raw) -> Json:
    """The arguments of a call as JSON; the text itself if it is none that a store takes exactly."""
    args: Json = part.get("args")
    if not isinstance(args, str):
        return args
    try:
        parsed: Json = json.loads(args, parse_constant=_refused)
        to_json(parsed)  # 1e999 is read as infinity, and text may nest too deeply for a record
    except (ValueError, RecursionError, KodeError):
        return args
    return parsed


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def tool_calls_of(
    messages: Sequence[Message], known: Sequence[ToolCallRecord], record: ConversationRecord
) -> list[ToolCallRecord]:
    """The tool call records that *messages* begin, go on with or end; *known* has the ones that are stored already."""
    waiting = record.deferred_tool_requests
    approvals = {call.tool_call_id for call in waiting.approvals} if waiting else set()
    found: dict[str, ToolCallRecord] = {}
    before = {call.id: call for call in known}
    for message in messages:
        raw = _raw_message(message)
        at = _time_of(raw.get("timestamp"), now_ms())
        for part in _parts(raw):
            if _is_call(part):
                id_ = part["tool_call_id"]
                asks = id_ in approvals
                found[id_] = ToolCallRecord(
                    id=id_,
                    name=str(part.get("tool_name")),
                    input=_input_of(part),
                    state="APPROVAL_REQUIRED" if asks else "PENDING",
                    approval=ToolCallApproval(required=asks),
                    created_at=at,
                    updated_at=at,
                )
            elif _is_result(part):
                id_ = part["tool_call_id"]
                at = _time_of(part.get("timestamp"), at)
                call = found.get(id_) or before.get(id_)
                found[id_] = _ended(call or ToolCallRecord(id=id_, name=str(part.get("tool_name"))), part, at)
    return list(found.values())


def has_tools(messages: Iterable[Message]) -> bool:
    """Whether a message has the result of a call, which another message may have made."""
    return any(isinstance(block, ToolResultBlock) for message in messages for block in message.content)


def _raw_message(message: Message) -> Raw:
    kept: Any = (message.metadata or {})[RAW]
    raw: Raw = kept["message"]
    return raw


def _ended(call: ToolCallRecord, part: Raw, at: int) -> ToolCallRecord:
    content: Json = part.get("content")
    outcome, is_error = part.get("outcome"), _is_error(part)
    is_denied = outcome == "denied"
    text = content if isinstance(content, str) else to_json(content).decode("utf-8", "replace")
    return replace(
        call,
        state=_STATES.get(str(outcome), "FAILED" if is_error else "COMPLETED"),
        approval=replace(call.approval, decision="deny" if is_denied else "allow")
        if call.approval.required or is_denied
        else call.approval,
        result=content,
        error=text if is_error else None,
        is_error=is_error,
        completed_at=at,
        updated_at=at,
    )


def _time_of(text: object, otherwise: int) -> int:
    """The milliseconds of a time in ISO 8601."""
    if not isinstance(text, str):
        return otherwise
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError):
        return otherwise
