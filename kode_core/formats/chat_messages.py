"""One message of an OpenAI chat: its role, its content as blocks, its tool calls, and a tool's answer.

A message that is not understood raises InvalidArgumentError, which names the place in the message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeAlias

from kode_core.errors import InvalidArgumentError
from kode_core.ids import check_key, quoted
from kode_core.jsonvalue import decode_json, encode_json
from kode_core.model import (
    AudioBlock,
    ContentBlock,
    FileBlock,
    ImageBlock,
    Json,
    ReasoningBlock,
    TextBlock,
)

__all__ = [
    "ChatMessage",
    "ToolRequest",
    "ToolResult",
    "arguments_of",
    "at",
    "content_text",
    "data_url",
    "kind_of",
    "metadata_of",
    "place_of",
    "read_message",
]

Key: TypeAlias = tuple[str, str]
"""The key that ties a result to its request: ``("id", call id)``, or ``("function", name)`` in the legacy form."""


class ToolRequest(NamedTuple):
    """A call that an assistant asks for; ``input`` is the raw text if the arguments are not valid JSON."""

    key: Key
    id: str
    name: str
    input: Json


class ToolResult(NamedTuple):
    """A tool's answer: a string, or a list of parts as they were."""

    key: Key
    content: Json


class ChatMessage(NamedTuple):
    """A message that was understood, but not yet matched with the others.

    ``role`` is KODE's: a tool's answer has the role of the user.
    """

    role: str
    blocks: tuple[ContentBlock, ...] = ()
    requests: tuple[ToolRequest, ...] = ()
    result: ToolResult | None = None
    metadata: dict[str, Json] | None = None


Fields: TypeAlias = Mapping[str, Json]


@contextmanager
def at(place: str) -> Iterator[None]:
    """Prefix the message of an InvalidArgumentError from inside with *place*."""
    try:
        yield
    except InvalidArgumentError as exc:
        raise InvalidArgumentError(f"{place}: {exc}") from None


def read_message(raw: Json, index: int) -> ChatMessage:
    """The message at *index* of its conversation."""
    fields = _object(raw)
    role = _text(fields, "role")
    read = _ROLES.get(role)
    if read is None:
        raise InvalidArgumentError(f"role {role!r:.60} is none of {', '.join(sorted(_ROLES))}")
    return read(fields, index)


# --- Roles ------------------------------------------------------------------------------------------------------------


def _speaker(role: str) -> Callable[[Fields, int], ChatMessage]:
    def read(fields: Fields, _: int) -> ChatMessage:
        return ChatMessage(role, _content(fields.get("content")), metadata=_rest(fields, "role", "content"))

    return read


def _assistant(fields: Fields, index: int) -> ChatMessage:
    reasoning, refusal = _optional(fields, "reasoning_content"), _optional(fields, "refusal")
    blocks = (
        *([] if reasoning is None else [ReasoningBlock(reasoning)]),
        *_content(fields.get("content")),
        *([] if refusal is None else [_refusal({"refusal": refusal})]),
    )
    known = ("role", "content", "reasoning_content", "refusal", "tool_calls", "function_call")
    return ChatMessage("assistant", blocks, tuple(_requests(fields, index)), metadata=_rest(fields, *known))


def _requests(fields: Fields, index: int) -> Iterator[ToolRequest]:
    for i, call in enumerate(_list(fields, "tool_calls")):
        with at(f"tool call {i}"):
            kind = _object(call).get("type", "function")
            if kind != "function":
                raise InvalidArgumentError(f"type {quoted(kind)} is not known; only 'function' is")
            call_id = check_key(_text(call, "id"), "id")
            yield _request(_field(call, "function"), ("id", call_id), call_id)
    if fields.get("function_call") is not None:
        with at("function_call"):
            call = _field(fields, "function_call")
            yield _request(call, ("function", _text(call, "name")), f"function-{index}")


def _request(function: Fields, key: Key, call_id: str) -> ToolRequest:
    return ToolRequest(key, call_id, _text(function, "name"), arguments_of(function.get("arguments")))


def arguments_of(value: Json) -> Json:
    """The parsed arguments; the text itself if it is not JSON that a store can keep exactly."""
    if type(value) is not str:
        return value
    try:
        parsed = decode_json(value)
        encode_json(parsed, "arguments")
    except (ValueError, RecursionError):
        return value
    return parsed


def _tool(fields: Fields, _: int) -> ChatMessage:
    return _answer(fields, ("id", _text(fields, "tool_call_id")), "role", "content", "tool_call_id", "name")


def _function(fields: Fields, _: int) -> ChatMessage:
    return _answer(fields, ("function", _text(fields, "name")), "role", "content", "name")


def _answer(fields: Fields, key: Key, *known: str) -> ChatMessage:
    content = fields.get("content")
    _content(content)
    return ChatMessage("user", result=ToolResult(key, content), metadata=_rest(fields, *known))


_ROLES: Final[Mapping[str, Callable[[Fields, int], ChatMessage]]] = {
    "assistant": _assistant,
    "developer": _speaker("system"),
    "function": _function,
    "system": _speaker("system"),
    "tool": _tool,
    "user": _speaker("user"),
}


# --- Content ----------------------------------------------------------------------------------------------------------


def _content(value: Json) -> tuple[ContentBlock, ...]:
    if value is None:
        return ()
    if type(value) is str:
        return (TextBlock(value),)
    if type(value) is not list:
        raise InvalidArgumentError(f"content must be a string, a list of parts or null, got {kind_of(value)}")
    return tuple(_part(part, i) for i, part in enumerate(value))


def _part(raw: Json, index: int) -> ContentBlock:
    with at(f"part {index} of the content"):
        fields = _object(raw)
        kind = _text(fields, "type")
        read = _PARTS.get(kind)
        if read is None:
            raise InvalidArgumentError(f"type {kind!r:.60} is none of {', '.join(sorted(_PARTS))}")
        return read(fields)


def _text_part(fields: Fields) -> TextBlock:
    return TextBlock(_text(fields, "text"))


def _refusal(fields: Fields) -> TextBlock:
    return TextBlock(_text(fields, "refusal"), meta={"refusal": True})


def _image(fields: Fields) -> ImageBlock:
    image = fields.get("image_url")
    given = {"url": image} if type(image) is str else _field(fields, "image_url")
    detail = _optional(given, "detail")
    return ImageBlock(**place_of(_text(given, "url")), meta=None if detail is None else {"detail": detail})


def _audio(fields: Fields) -> AudioBlock:
    audio = _field(fields, "input_audio")
    form = _text(audio, "format")
    return AudioBlock(base64=_text(audio, "data"), mime_type=f"audio/{'mpeg' if form == 'mp3' else form}")


def _file(fields: Fields) -> FileBlock:
    file = _field(fields, "file")
    data, file_id = _optional(file, "file_data"), _optional(file, "file_id")
    if data is None and file_id is None:
        raise InvalidArgumentError("file has neither file_data nor file_id")
    place = {} if data is None else place_of(data)
    if "url" in place:
        place = {"base64": place["url"]}
    return FileBlock(**place, file_id=file_id, filename=_optional(file, "filename"))


_DATA_URL: Final = re.compile(r"data:([^;,]*)[^,]*;base64,", re.IGNORECASE)


def place_of(url: str) -> dict[str, Any]:
    """The place of a medium: inside a data URL, or at an address."""
    inline = _DATA_URL.match(url)
    if inline is None:
        return {"url": url}
    return {"base64": url[inline.end() :], "mime_type": inline[1] or None}


def data_url(data: str | None, mime_type: str | None) -> str | None:
    """The URL that carries *data*, which is base64; None without any."""
    return None if data is None else f"data:{mime_type or ''};base64,{data}"


_PARTS: Final[Mapping[str, Callable[[Fields], ContentBlock]]] = {
    "file": _file,
    "image_url": _image,
    "input_audio": _audio,
    "refusal": _refusal,
    "text": _text_part,
}


def content_text(content: Json) -> str:
    """The text of a tool's answer."""
    if type(content) is str:
        return content
    return "\n".join(block.text for block in _content(content) if isinstance(block, TextBlock))


# --- Fields -----------------------------------------------------------------------------------------------------------

_SMALL: Final = 500
_KINDS: Final = {type(None): "null", bool: "true or false", str: "a string", list: "a list", dict: "an object"}


def kind_of(value: Json) -> str:
    """The kind of *value*, in JSON's terms."""
    return _KINDS.get(type(value), "a number")


def _object(value: Json) -> dict[str, Json]:
    if type(value) is not dict:
        raise InvalidArgumentError(f"expected an object, got {kind_of(value)}")
    return value


def _field(fields: Fields, name: str) -> dict[str, Json]:
    with at(name):
        return _object(fields.get(name))


def _list(fields: Fields, name: str) -> Sequence[Json]:
    value = fields.get(name)
    if value is not None and type(value) is not list:
        raise InvalidArgumentError(f"{name} must be a list, got {kind_of(value)}")
    return value or ()


def _text(fields: Fields, name: str) -> str:
    if name not in fields:
        raise InvalidArgumentError(f"{name} is missing")
    value = fields[name]
    if type(value) is not str:
        raise InvalidArgumentError(f"{name} must be a string, got {kind_of(value)}")
    return value


def _optional(fields: Fields, name: str) -> str | None:
    return None if fields.get(name) is None else _text(fields, name)


def _rest(fields: Fields, *known: str) -> dict[str, Json] | None:
    return metadata_of({name: value for name, value in fields.items() if name not in known}) or None


def metadata_of(fields: Fields) -> dict[str, Json]:
    """*fields* with camelCase names, without nulls and without lists and objects of more than 500 characters."""
    kept = {name: value for name, value in fields.items() if value is not None and _is_small(name, value)}
    return {re.sub(r"(?<=[^_])_+([a-zA-Z0-9])", lambda m: m[1].upper(), name): kept[name] for name in kept}


def _is_small(name: str, value: Json) -> bool:
    return type(value) not in (list, dict) or len(encode_json(value, name)) <= _SMALL
