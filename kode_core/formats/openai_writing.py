"""Records become messages of OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kode_core.formats.chat_messages import arguments_of, data_url
from kode_core.formats.notes import (
    Fields,
    Losses,
    content_of,
    is_same,
    note_of,
    rest,
    text_of_json,
    under,
)
from kode_core.formats.openai_reading import NOTE
from kode_core.jsonvalue import Problem, encode_json
from kode_core.model import (
    AudioBlock,
    ContentBlock,
    FileBlock,
    ImageBlock,
    Json,
    Message,
    ReasoningBlock,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
)

__all__ = ["write"]

_OF_OTHERS: Final = frozenset({"image", "document", "search_result", "tool_reference"})
_SPOKEN: Final = ("reasoning_content", "refusal", "tool_calls", "function_call")


def write(message: Message, losses: Losses) -> list[dict[str, Json]]:
    """The messages of OpenAI for one record; raises Problem if a loss is not allowed."""
    note = note_of(message, message.metadata, NOTE, losses, "metadata")
    results = [(i, block) for i, block in enumerate(message.content) if isinstance(block, ToolResultBlock)]
    written = []
    for place, (i, block) in enumerate(results):
        with under("content", i):
            if place != i:
                losses.accept("order", "OpenAI's format has tool results in front of the other content")
            if message.role != "user":
                raise Problem("a tool result belongs into a message of the role user")
            written.append(_write_result(block, note, losses))
    others = [(i, block) for i, block in enumerate(message.content) if not isinstance(block, ToolResultBlock)]
    if not results or others:
        spoken = _write_spoken(message, others, {} if results else note, losses)
        if spoken is not None:
            written.append(spoken)
    if len(written) > 1 and results and note:
        with under("metadata", NOTE):
            losses.accept("metadata", "a note of one message does not fit to several")
    return written


def _write_result(block: ToolResultBlock, note: Fields, losses: Losses) -> dict[str, Json]:
    own = note_of(block, block.meta, NOTE, losses, "meta")
    if block.is_error:
        losses.accept("is_error", "OpenAI's format cannot tell that a tool failed")
    content = block.content
    if not (type(content) is str or _is_parts(content) or (content is None and own.get("null"))):
        with under("content"):
            losses.accept("json", "OpenAI's format takes the result of a tool as a text or as parts")
        content = text_of_json(content)
    more = note.get("fields", {})
    if note.get("role") == "function":
        name = block.tool_use_id.removeprefix("function-")
        return {**more, "role": "function", "name": name, "content": content}
    return {**more, "role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def _is_parts(content: Json) -> bool:
    return type(content) is list and all(
        type(part) is dict and type(part.get("type")) is str and part["type"] not in _OF_OTHERS for part in content
    )


def _write_spoken(
    message: Message, blocks: Sequence[tuple[int, ContentBlock]], note: Fields, losses: Losses
) -> dict[str, Json] | None:
    """One message of a user, an assistant or the system; None if all its blocks are lost."""
    if message.role not in ("user", "assistant", "system"):
        with under("role"):
            raise Problem("OpenAI's format has the roles user, assistant and system; change the message's role")
    is_developer = message.role == "system" and note.get("role") == "developer"
    out: dict[str, Json] = {"role": "developer" if is_developer else message.role}
    parts: list[Json] = []
    for i, block in blocks:
        with under("content", i):
            if isinstance(block, ReasoningBlock):
                _write_reasoning(block, out, i, message.role, losses)
            elif isinstance(block, ToolUseBlock):
                if message.role != "assistant":
                    raise Problem("a tool use belongs into a message of the role assistant")
                _write_call(block, out, losses)
            else:
                _write_other(block, out, parts, bool(note.get("unknown")), losses)
    if parts or note.get("list"):
        out["content"] = content_of(parts, note.get("list") is True)
    elif message.role == "assistant":
        out["content"] = None
    spoken = parts or any(out.get(name) is not None for name in _SPOKEN)
    return {**note.get("fields", {}), **out} if spoken or not blocks else None


def _write_other(block: ContentBlock, out: Fields, parts: list[Json], unknown: bool, losses: Losses) -> None:
    if out.get("tool_calls") or "function_call" in out or "refusal" in out:
        losses.accept("order", "OpenAI's format has tool calls and a refusal behind the other content")
    meta = getattr(block, "meta", None) or {}
    is_refusal = isinstance(block, TextBlock) and meta.get("refusal") is True
    if is_refusal and NOTE not in meta and out["role"] == "assistant" and "refusal" not in out:
        note_of(block, meta, NOTE, losses, "meta", "refusal")  # type: ignore[arg-type]
        out["refusal"] = block.text  # type: ignore[union-attr]
        return
    part = _write_part(block, losses, unknown)
    if part is not None:
        parts.append(part)


def _write_reasoning(block: ReasoningBlock, out: Fields, index: int, role: str, losses: Losses) -> None:
    if block.meta or block.extra or index or role != "assistant":
        losses.accept("reasoning", "OpenAI's format has one plain text of reasoning, in front")
    else:
        out["reasoning_content"] = block.reasoning


def _write_call(block: ToolUseBlock, out: Fields, losses: Losses) -> None:
    note = note_of(block, block.meta, NOTE, losses, "meta")
    more, nested = note.get("fields", {}), note.get("nested", {})
    if note.get("function_call") and "function_call" not in out:
        out["function_call"] = {**nested, "name": block.name, **_arguments(block.input, note)}
        return
    if "function_call" in out:
        losses.accept("order", "OpenAI's format has the function call behind the tool calls")
    calls = out.get("tool_calls") or []
    if note.get("custom") and type(block.input) is str:
        custom = {**nested, "name": block.name, "input": block.input}
        call = {**more, "id": block.id, "type": "custom", "custom": custom}
    else:
        function = {**nested, "name": block.name, **_arguments(block.input, note)}
        kind = {} if note.get("untyped") else {"type": "function"}
        call = {**more, "id": block.id, **kind, "function": function}
    out["tool_calls"] = [*calls, call]


def _arguments(value: Json, note: Fields) -> Fields:
    """The arguments as text: the very text they were, if the input is still the same."""
    if note.get("parsed"):
        return {} if value is None else {"arguments": value}
    text = note.get("arguments")
    if type(text) is str and is_same(arguments_of(text), value):
        return {"arguments": text}
    return {"arguments": encode_json(value, "input")}


def _write_part(block: ContentBlock, losses: Losses, unknown: bool) -> Json:
    if isinstance(block, UnknownBlock):
        if not unknown:
            losses.accept("blocks", f"OpenAI's format has no block of the type {block.type!r:.40}")
        return block.data if unknown else None
    own = {TextBlock: ("refusal",), ImageBlock: ("detail",)}.get(type(block), ())
    note = note_of(block, block.meta, NOTE, losses, "meta", *own)
    more, nested = note.get("fields", {}), note.get("nested", {})
    if isinstance(block, TextBlock):
        kind = "refusal" if (block.meta or {}).get("refusal") is True else "text"
        return {**more, "type": kind, kind: block.text}
    inner = _media(block)
    if inner is None:
        losses.accept("blocks", f"OpenAI's format cannot carry this {type(block).__name__}")
        return None
    kind, fields = inner
    if note.get("string") and kind == "image_url":
        return {**more, "type": kind, kind: fields["url"]}
    return {**more, "type": kind, kind: {**nested, **fields}}


def _media(block: ContentBlock) -> tuple[str, Fields] | None:
    """The type of a medium's part and the fields of the object in it; None if the format has none for it."""
    if isinstance(block, ImageBlock):
        url = data_url(block.base64, block.mime_type) if block.url is None else block.url
        detail = (block.meta or {}).get("detail")
        given = [place for place in (block.url, block.base64, block.file_id) if place is not None]
        if url is None or len(given) > 1 or (block.url is not None and block.mime_type is not None):
            return None
        return "image_url", {"url": url} if detail is None else {"url": url, "detail": detail}
    if isinstance(block, AudioBlock):
        kind, _, form = (block.mime_type or "").partition("/")
        if block.base64 is None or block.url or block.file_id or kind != "audio" or not form:
            return None
        return "input_audio", {"data": block.base64, "format": "mp3" if form == "mpeg" else form}
    if isinstance(block, FileBlock) and block.url is None:
        data = block.base64 if block.mime_type is None else data_url(block.base64, block.mime_type)
        if data is None and (block.file_id is None or block.mime_type is not None):
            return None
        fields = {"file_data": data, "file_id": block.file_id, "filename": block.filename}
        return "file", rest(fields)
    return None
