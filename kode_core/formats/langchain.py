"""Messages of LangChain as messages and tool calls of a store, for queries, commands and statistics.

The functions take any object with the attributes of LangChain's messages, of which nothing is imported. A part of a
message that JSON cannot express becomes a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from kode_core.errors import InvalidValueError
from kode_core.jsonable import to_jsonable
from kode_core.model import (
    ContentBlock,
    Json,
    Message,
    ReasoningBlock,
    TextBlock,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
)

__all__ = ["Calls", "LangChainMessage", "message_of"]

_ROLES: Final = {"human": "user", "ai": "assistant", "tool": "user", "function": "user"}
_LONGEST: Final = 65_536
_TOOL_USES: Final = frozenset({"tool_use", "tool_call", "function_call", "server_tool_use", "input_json_delta"})
_MOST_BEGUN: Final = 1_000


class LangChainMessage(Protocol):
    """The common attributes. Messages of models have ``tool_calls``, too, and results of tools ``tool_call_id``."""

    @property
    def type(self) -> str: ...
    @property
    def id(self) -> str | None: ...
    @property
    def name(self) -> str | None: ...
    @property
    def content(self) -> Any: ...
    @property
    def response_metadata(self) -> Any: ...


def message_of(said: LangChainMessage, ns: str, checkpoint_id: str) -> Message:
    """The message of a LangChain message; its metadata names the id, and the checkpoint that had it first."""
    about: dict[str, Json] = {"id": _text(said.id), "checkpoint": checkpoint_id}
    if ns:
        about["ns"] = ns
    if said.name:
        about["name"] = _text(said.name)
    usage = getattr(said, "usage_metadata", None)
    if usage:
        about["usage"] = _json(usage)
    model = said.response_metadata.get("model_name")
    if type(model) is str:
        about["model"] = model
    role = str(getattr(said, "role", said.type)) if said.type == "chat" else said.type
    return Message(_ROLES.get(role, role), _blocks(said), {"langgraph": about})


def _is_of_model(said: object) -> bool:
    return hasattr(said, "tool_calls") and hasattr(said, "invalid_tool_calls")


def _is_of_tool(said: object) -> bool:
    return hasattr(said, "tool_call_id") and hasattr(said, "status")


def _blocks(said: Any) -> Sequence[ContentBlock]:
    if _is_of_tool(said):
        failed = True if said.status == "error" else None
        return [ToolResultBlock(tool_use_id=_text(said.tool_call_id), content=_json(said.content), is_error=failed)]
    content: Any = said.content
    parts = [content] if isinstance(content, str) else content if isinstance(content, list) else []
    blocks = [block for part in parts if (block := _block(part)) is not None]
    if _is_of_model(said):
        for i, call in enumerate([*said.tool_calls, *said.invalid_tool_calls]):
            name = _text(call.get("name"))
            blocks.append(ToolUseBlock(id=_call_id(said, i, call), name=name, input=_json(call.get("args"))))
    return blocks


def _block(part: Any) -> ContentBlock | None:
    if isinstance(part, str):
        return TextBlock(str(part)) if part else None
    if not isinstance(part, Mapping):
        return UnknownBlock({"type": "langchain", "part": _json(part)})
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return TextBlock(str(part["text"]))
    for field in ("reasoning", "thinking"):
        if kind == field and isinstance(part.get(field), str):
            return ReasoningBlock(str(part[field]))
    if isinstance(kind, str) and kind in _TOOL_USES:
        return None  # it is among the tool calls
    return UnknownBlock({"type": "langchain", "part": _json(part)})


class Calls:
    """The tool calls of a thread that were seen to begin and not to end."""

    def __init__(self) -> None:
        self._begun: dict[str, ToolCallRecord] = {}

    def records(self, said: Sequence[Any], known: Sequence[object], at: int) -> list[ToolCallRecord]:
        """The records of new messages of the time *at*; the calls of results are among these, or in *known*."""
        records: dict[str, ToolCallRecord] = {}
        for message in said:
            if _is_of_tool(message):
                call_id = _text(message.tool_call_id)
                begun = records.get(call_id) or self._begun.get(call_id) or _found(call_id, known, at)
                records[call_id] = _ended(message, call_id, begun, at)
                self._begun.pop(call_id, None)
            elif _is_of_model(message):
                for record in _begun_by(message, at):
                    records[record.id] = self._begun[record.id] = record
        while len(self._begun) > _MOST_BEGUN:
            del self._begun[next(iter(self._begun))]
        return list(records.values())


def _begun_by(message: Any, at: int) -> list[ToolCallRecord]:
    begun = [
        ToolCallRecord(
            id=_call_id(message, i, call),
            name=_text(call.get("name")),
            input=_json(call.get("args")),
            created_at=at,
            updated_at=at,
        )
        for i, call in enumerate(message.tool_calls)
    ]
    for i, wrong in enumerate(message.invalid_tool_calls, len(begun)):
        error = _text(wrong.get("error")) or "the model wrote no valid arguments"
        begun.append(
            ToolCallRecord(
                id=_call_id(message, i, wrong),
                name=_text(wrong.get("name")),
                input=_json(wrong.get("args")),
                state="FAILED",
                error=error,
                is_error=True,
                created_at=at,
                updated_at=at,
            )
        )
    return begun


def _ended(message: Any, call_id: str, begun: ToolCallRecord | None, at: int) -> ToolCallRecord:
    failed = message.status == "error"
    result = _json(message.content)
    record = begun or ToolCallRecord(id=call_id, name=_text(message.name), created_at=at)
    return record.replace(
        state="FAILED" if failed else "COMPLETED",
        result=result,
        error=(result if isinstance(result, str) else "the tool failed") if failed else None,
        is_error=True if failed else None,
        completed_at=at,
        updated_at=at,
    )


def _found(call_id: str, known: Sequence[object], at: int) -> ToolCallRecord | None:
    """The call, from the message that has it: one of those in front of its result."""
    for message in reversed(known):
        if _is_of_model(message):
            for record in _begun_by(message, at):
                if record.id == call_id:
                    return record
    return None


def _call_id(message: Any, i: int, call: Mapping[str, Any]) -> str:
    return _text(call.get("id")) or f"{_text(message.id) or 'call'}:{i}"


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _json(value: object) -> Json:
    """The value as JSON, or a text for it; a body of a picture or a file is cut."""
    try:
        return _short(to_jsonable(value, nan="text", default=str))
    except (InvalidValueError, RecursionError):
        return f"{value!s:.{_LONGEST}}"


def _short(value: Json) -> Json:
    if isinstance(value, dict) and value.get("type") in {"image", "image_url", "audio", "video", "file", "media"}:
        return {key: _cut(each) for key, each in value.items()}
    return value


def _cut(value: Json) -> Json:
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"{value[:64]}… ({len(value)} characters)"
    return {key: _cut(each) for key, each in value.items()} if isinstance(value, dict) else value
