"""Messages of Anthropic's API, and the same messages as records: lossless, or refused.

``Message.from_anthropic`` and ``Message.to_anthropic`` are these functions for one message; each message is one message
in the other form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from kode_core.formats.notes import (
    Fields,
    Losses,
    Lossy,
    checked,
    content_of,
    given_list,
    note_of,
    object_of,
    optional_text,
    raised_as,
    required_text,
    rest,
    text_of_json,
    under,
    with_note,
    without_nulls,
    write_checked,
)
from kode_core.jsonable import to_jsonable
from kode_core.jsonvalue import Problem
from kode_core.model import (
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

__all__ = ["messages_from_anthropic", "messages_to_anthropic", "read_anthropic", "write_anthropic"]

_NOTE: Final = "anthropic"
_OF_OTHERS: Final = frozenset({"image_url", "input_audio", "refusal", "file"})
_PLACES: Final = {
    "base64": {"data": "base64", "media_type": "mime_type"},
    "url": {"url": "url"},
    "file": {"file_id": "file_id"},
}
"""The fields of a medium's source, by the type of the source, and the fields of the block that they are in."""


def messages_from_anthropic(messages: Sequence[object], *, system: object = None) -> list[Message]:
    """The records of a list of Anthropic's messages, one for each, after one for *system* if it is given.

    Args:
        messages: the list, of dicts or of objects of Anthropic's library.
        system: the request's ``system``: a text or a list of text blocks.

    Raises:
        InvalidArgumentError: as ``Message.from_anthropic`` does.
    """
    out = [] if system is None else [_read_checked({"role": "system", "content": to_jsonable(system)}, "system")]
    return out + [_read_checked(raw, f"message {i}") for i, raw in enumerate(given_list(messages, "messages"))]


def messages_to_anthropic(messages: Iterable[Message], *, lossy: Lossy = False) -> dict[str, Json]:
    """The arguments ``messages`` and, if the first message is the system's, ``system`` of a request to Anthropic.

    Raises:
        InvalidArgumentError: as ``Message.to_anthropic`` does, or a later message is the system's.
    """
    losses, out = Losses(lossy), []
    request: dict[str, Json] = {}
    for i, message in enumerate(messages):
        written = _write_checked(message, losses, f"message {i}")
        if message.role == "system" and not i:
            request["system"] = written["content"]
        elif message.role == "system":
            with raised_as(f"message {i}"), under("role"):
                raise Problem("Anthropic's format has one message of the system, in front")
        elif written["content"] or not message.content:
            out.append(written)
    return {**request, "messages": out}


def read_anthropic(raw: object) -> Message:
    """The record of one message; see ``Message.from_anthropic``."""
    return _read_checked(to_jsonable(raw, name="message"), "message")


def write_anthropic(message: Message, lossy: Lossy) -> dict[str, Json]:
    """The message of one record; see ``Message.to_anthropic``."""
    return _write_checked(message, Losses(lossy), "message")


def _read_checked(raw: Json, name: str) -> Message:
    with raised_as(name):
        return checked(raw, _read, lambda message: _write(message, Losses(False)), _normal)


def _write_checked(message: Message, losses: Losses, name: str) -> dict[str, Json]:
    return write_checked(message, losses, name, _write, lambda written: [_read(written)], _NOTE)


def _normal(raw: Json) -> Json:
    """*raw* without null fields, which mean the same as absent ones."""
    fields = without_nulls(raw)
    if type(fields.get("content")) is list:
        fields["content"] = [_normal_block(block) for block in fields["content"]]
    return fields


def _normal_block(block: Json) -> Json:
    fields = without_nulls(block)
    if type(fields) is dict and fields.get("type") in ("image", "document"):
        fields["source"] = without_nulls(fields.get("source"))
    return fields


# --- Reading ----------------------------------------------------------------------------------------------------------


def _read(fields: Fields) -> Message:
    role, content = required_text(fields, "role"), fields.get("content")
    if role not in ("user", "assistant", "system"):
        with under("role"):
            raise Problem(f"{role!r:.40} is neither user nor assistant")
    blocks: list[ContentBlock] = []
    if type(content) is str:
        blocks.append(TextBlock(content))
    elif type(content) is list:
        for i, block in enumerate(content):
            with under("content", i):
                blocks.append(_read_block(object_of(block)))
    else:
        with under("content"):
            raise Problem("expected a string or a list of blocks")
    is_single = type(content) is list and type(content_of([*map(without_nulls, content)], False)) is not list
    unknown = any(isinstance(block, UnknownBlock) for block in blocks)
    note = with_note(_NOTE, list=is_single, unknown=unknown, fields=rest(fields, "role", "content"))
    return Message(role, blocks, note)


def _read_block(block: Fields) -> ContentBlock:
    kind = required_text(block, "type")
    if kind == "text":
        return TextBlock(required_text(block, "text"), meta=_rest(block, "text"))
    if kind == "thinking":
        note = {"thinking": True, "fields": rest(block, "type", "thinking")}
        return ReasoningBlock(required_text(block, "thinking"), meta=with_note(_NOTE, **note))
    if kind == "tool_use":
        call_id, name = required_text(block, "id"), required_text(block, "name")
        return ToolUseBlock(call_id, name, block.get("input"), meta=_rest(block, "id", "name", "input"))
    if kind == "tool_result":
        call_id, is_error = required_text(block, "tool_use_id"), block.get("is_error")
        if type(is_error) not in (bool, type(None)):
            with under("is_error"):
                raise Problem("expected true or false")
        meta = _rest(block, "tool_use_id", "content", "is_error")
        return ToolResultBlock(call_id, block.get("content"), is_error, meta=meta)
    if kind in ("image", "document"):
        return _read_medium(block, kind)
    if class_of_block(kind) is not None:
        with under("type"):
            raise Problem(f"{kind!r} is a block of kode_core and none of Anthropic's format; use Message itself")
    return UnknownBlock(block)


def _rest(block: Fields, *known: str) -> Fields | None:
    return with_note(_NOTE, fields=rest(block, "type", *known))


def _read_medium(block: Fields, kind: str) -> ContentBlock:
    with under("source"):
        source = object_of(block.get("source"))
        names = _PLACES.get(str(source.get("type")), {})
        if names and set(without_nulls(source)) == {"type", *names}:
            place: dict[str, Any] = {attr: required_text(source, name) for name, attr in names.items()}
            more = rest(block, "type", "source", "title")
        else:  # a text, content, or fields that the block does not have
            place, more = {}, rest(block, "type", "title")
    if kind == "image":
        return ImageBlock(**place, meta=with_note(_NOTE, fields={**more, **rest({"title": block.get("title")})}))
    return FileBlock(**place, filename=optional_text(block, "title"), meta=with_note(_NOTE, fields=more))


# --- Writing ----------------------------------------------------------------------------------------------------------


def _write(message: Message, losses: Losses) -> dict[str, Json]:
    if message.role not in ("user", "assistant", "system"):
        with under("role"):
            raise Problem("Anthropic's format has the roles user and assistant; change the message's role")
    note = note_of(message, message.metadata, _NOTE, losses, "metadata")
    blocks = []
    for i, block in enumerate(message.content):
        with under("content", i):
            written = _write_block(block, message.role, note.get("unknown") is True, losses)
            if written is not None:
                blocks.append(written)
    content = content_of(blocks, note.get("list") is True)
    return {**note.get("fields", {}), "role": message.role, "content": content}


def _write_block(block: ContentBlock, role: str, unknown: bool, losses: Losses) -> Json:
    if isinstance(block, UnknownBlock):
        if not unknown:
            losses.accept("blocks", f"Anthropic's format may not have the block {block.type!r:.40}")
        return block.data if unknown else None
    if isinstance(block, ReasoningBlock):
        return _write_reasoning(block, losses)
    note = note_of(block, block.meta, _NOTE, losses, "meta")
    fields = note.get("fields", {})
    if isinstance(block, TextBlock):
        return {**fields, "type": "text", "text": block.text}
    if isinstance(block, ToolUseBlock):
        if role != "assistant":
            raise Problem("a tool use belongs into a message of the role assistant")
        return {**fields, "type": "tool_use", "id": block.id, "name": block.name, "input": block.input}
    if isinstance(block, ToolResultBlock):
        if role != "user":
            raise Problem("a tool result belongs into a message of the role user")
        return {**fields, **_write_result(block, losses)}
    return _write_medium(block, fields, losses)


def _write_reasoning(block: ReasoningBlock, losses: Losses) -> Json:
    meta = block.meta or {}
    if _NOTE not in meta or not _is_thinking(meta[_NOTE]):
        losses.accept("reasoning", "Anthropic's format has only reasoning of its own models, which is signed")
        return None
    note = note_of(block, meta, _NOTE, losses, "meta")
    return {**note.get("fields", {}), "type": "thinking", "thinking": block.reasoning}


def _is_thinking(note: Json) -> bool:
    return isinstance(note, Mapping) and note.get("thinking") is True


def _write_result(block: ToolResultBlock, losses: Losses) -> Fields:
    out: Fields = {"type": "tool_result", "tool_use_id": block.tool_use_id}
    content = block.content
    if not (content is None or type(content) is str or _is_blocks(content)):
        with under("content"):
            losses.accept("json", "Anthropic's format takes the result of a tool as a text or as blocks")
        content = text_of_json(content)
    if content is not None:
        out["content"] = content
    if block.is_error is not None:
        out["is_error"] = block.is_error
    return out


def _is_blocks(content: Json) -> bool:
    return type(content) is list and all(
        type(block) is dict and type(block.get("type")) is str and block["type"] not in _OF_OTHERS for block in content
    )


def _write_medium(block: ContentBlock, fields: Fields, losses: Losses) -> Json:
    if not isinstance(block, ImageBlock | FileBlock):
        losses.accept("blocks", f"Anthropic's format has no {type(block).__name__}")
        return None
    names = ("url", "file_id", "base64", "mime_type")
    given = {name: value for name in names if (value := getattr(block, name)) is not None}
    title = {} if isinstance(block, ImageBlock) or block.filename is None else {"title": block.filename}
    out = {**fields, **title, "type": "image" if isinstance(block, ImageBlock) else "document"}
    if not given and "source" in fields:
        return out
    for kind, places in _PLACES.items():
        if set(given) == set(places.values()):
            return {**out, "source": {"type": kind, **{name: given[attr] for name, attr in places.items()}}}
    losses.accept("blocks", "a medium needs a url, a file_id, or base64 with its mime_type, and only one of them")
    return None
