"""Messages of OpenAI's chat completions become records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kode_core.formats.chat_messages import arguments_of, place_of
from kode_core.formats.notes import (
    Fields,
    content_of,
    object_of,
    optional_text,
    required_text,
    rest,
    under,
    with_note,
    without_nulls,
)
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
from kode_core.shapes import class_of_block

__all__ = ["NOTE", "read"]

NOTE: Final = "openai"
"""The name of the notes of this format."""


def read(fields: Fields) -> Message:
    """The record of one message; raises Problem if it is none."""
    if "choices" in fields and "role" not in fields:
        raise Problem("this is a whole response; give its message, response.choices[0].message")
    role = required_text(fields, "role")
    if role in ("tool", "function"):
        return _read_result(fields, role)
    if role not in ("user", "assistant", "system", "developer"):
        with under("role"):
            raise Problem(f"{role!r:.40} is none of assistant, developer, function, system, tool, user")
    content, known = fields.get("content"), ["role", "content"]
    blocks = _read_content(content)
    is_list = content == [] or (
        type(content) is list and type(content_of([*map(without_nulls, content)], False)) is not list
    )
    if role == "assistant":
        blocks, more = _read_assistant(fields, blocks)
        known += more
    note = with_note(
        NOTE,
        role="developer" if role == "developer" else None,
        list=is_list,
        unknown=any(isinstance(block, UnknownBlock) for block in blocks),
        fields=rest(fields, *known),
    )
    return Message("system" if role == "developer" else role, blocks, note)


def _read_assistant(fields: Fields, content: list[ContentBlock]) -> tuple[list[ContentBlock], list[str]]:
    """All blocks of an assistant's message, and the names of the fields that are in them."""
    blocks, known = list(content), []
    if type(fields.get("reasoning_content")) is str:
        blocks.insert(0, ReasoningBlock(fields["reasoning_content"]))
        known.append("reasoning_content")
    refusal = optional_text(fields, "refusal")
    if refusal is not None:
        blocks.append(TextBlock(refusal, meta={"refusal": True}))
        known.append("refusal")
    calls = fields.get("tool_calls")
    if calls:
        known.append("tool_calls")
        if type(calls) is not list:
            with under("tool_calls"):
                raise Problem("expected a list")
        for i, call in enumerate(calls):
            with under("tool_calls", i):
                blocks.append(_read_call(object_of(call)))
    if fields.get("function_call") is not None:
        known.append("function_call")
        with under("function_call"):
            call = object_of(fields["function_call"])
            blocks.append(_read_function(call, f"function-{required_text(call, 'name')}", function_call=True))
    return blocks, known


def _read_call(call: Fields) -> ToolUseBlock:
    if call.get("id") is None:
        raise Problem("'id' is missing; if this is a piece of a stream, join the pieces first")
    call_id, kind = required_text(call, "id"), call.get("type")
    more = rest(call, "id", "type", "function", "custom")
    if kind == "custom":
        with under("custom"):
            custom = object_of(call.get("custom"))
            name, text = required_text(custom, "name"), required_text(custom, "input")
        meta = with_note(NOTE, custom=True, fields=more, nested=rest(custom, "name", "input"))
        return ToolUseBlock(call_id, name, text, meta=meta)
    if kind not in (None, "function"):
        with under("type"):
            raise Problem("expected 'function' or 'custom'")
    with under("function"):
        return _read_function(object_of(call.get("function")), call_id, untyped=kind is None, fields=more)


def _read_function(function: Fields, call_id: str, **note: Json) -> ToolUseBlock:
    name, given = required_text(function, "name"), function.get("arguments")
    if type(given) is str:
        value = arguments_of(given)
        note["arguments"] = None if encode_json(value, "arguments") == given else given
    else:
        value = given
        note["parsed"] = True
    meta = with_note(NOTE, **note, nested=rest(function, "name", "arguments"))
    return ToolUseBlock(call_id, name, value, meta=meta)


def _read_result(fields: Fields, role: str) -> Message:
    if role == "tool":
        call_id, known = required_text(fields, "tool_call_id"), ("role", "content", "tool_call_id")
    else:
        call_id, known = f"function-{required_text(fields, 'name')}", ("role", "content", "name")
    content = fields.get("content")
    block = ToolResultBlock(call_id, content, meta=with_note(NOTE, null=content is None))
    note = with_note(NOTE, role=None if role == "tool" else role, fields=rest(fields, *known))
    return Message("user", [block], note)


def _read_content(content: Json) -> list[ContentBlock]:
    if content is None:
        return []
    if type(content) is str:
        return [TextBlock(content)]
    if type(content) is not list:
        with under("content"):
            raise Problem("expected a string, a list of parts or null")
    blocks = []
    for i, part in enumerate(content):
        with under("content", i):
            blocks.append(_read_part(object_of(part)))
    return blocks


def _read_part(part: Fields) -> ContentBlock:
    kind = required_text(part, "type")
    if kind == "text":
        return TextBlock(required_text(part, "text"), meta=with_note(NOTE, fields=rest(part, "type", "text")))
    if kind == "refusal":
        note = with_note(NOTE, part=True, fields=rest(part, "type", "refusal")) or {}
        return TextBlock(required_text(part, "refusal"), meta={"refusal": True, **note})
    read = _MEDIA.get(kind)
    if read is not None:
        return read(part)
    if class_of_block(kind) is not None:
        with under("type"):
            raise Problem(f"{kind!r} is a block of kode_core and no part of OpenAI's format; use Message itself")
    return UnknownBlock(part)


def _read_image(part: Fields) -> ImageBlock:
    image, fields = part.get("image_url"), rest(part, "type", "image_url")
    if type(image) is str:
        return ImageBlock(**place_of(image), meta=with_note(NOTE, string=True, fields=fields))
    with under("image_url"):
        given = object_of(image)
        url, detail = required_text(given, "url"), given.get("detail")
    known = ("url", "detail") if type(detail) is str else ("url",)
    meta = with_note(NOTE, fields=fields, nested=rest(given, *known)) or {}
    return ImageBlock(**place_of(url), meta={**({"detail": detail} if type(detail) is str else {}), **meta} or None)


def _read_audio(part: Fields) -> AudioBlock:
    with under("input_audio"):
        audio = object_of(part.get("input_audio"))
        data, form = required_text(audio, "data"), required_text(audio, "format")
    meta = with_note(NOTE, fields=rest(part, "type", "input_audio"), nested=rest(audio, "data", "format"))
    return AudioBlock(base64=data, mime_type=f"audio/{'mpeg' if form == 'mp3' else form}", meta=meta)


def _read_file(part: Fields) -> FileBlock:
    with under("file"):
        file = object_of(part.get("file"))
        data = optional_text(file, "file_data")
        file_id, filename = optional_text(file, "file_id"), optional_text(file, "filename")
    place = {} if data is None else place_of(data)
    if "url" in place:
        place = {"base64": place["url"]}
    meta = with_note(NOTE, fields=rest(part, "type", "file"), nested=rest(file, "file_data", "file_id", "filename"))
    return FileBlock(**place, file_id=file_id, filename=filename, meta=meta)


_MEDIA: Final[dict[str, Callable[[Fields], ContentBlock]]] = {
    "image_url": _read_image,
    "input_audio": _read_audio,
    "file": _read_file,
}
