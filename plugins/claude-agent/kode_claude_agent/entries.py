"""The entries of a transcript as messages, and back.

A message keeps its entry whole in its metadata, so that the SDK gets back what it gave. The blocks of the message are
what queries, the command line and people read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from kode_core import (
    ContentBlock,
    FileBlock,
    ImageBlock,
    InvalidArgumentError,
    Message,
    ReasoningBlock,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    agent_key,
)

RAW: Final = "claudeEntry"
"""The key of an entry in the metadata of its message."""
_LONGEST_ROLE: Final = 64


def message_of(entry: Any) -> Message:
    """The message that keeps an entry; its role is the entry's type if the entry is no message.

    Raises:
        InvalidArgumentError: the entry is no dict.
    """
    if type(entry) is not dict:
        raise InvalidArgumentError(f"an entry of a transcript must be a dict, got {type(entry).__name__}")
    message = entry.get("message")
    role = message.get("role") if type(message) is dict else entry.get("type")
    if type(role) is not str or not 0 < len(role) <= _LONGEST_ROLE:
        role = "entry"
    blocks = [block for part in parts_of(entry) for block in _blocks(part)]
    return Message(role, blocks, {RAW: entry})


def entry_of(message: Message) -> Any | None:
    """The entry that a message keeps; None for a message that something else appended."""
    return None if message.metadata is None else message.metadata.get(RAW)


def key_of(entry: dict[str, Any]) -> str | None:
    """The key under which an entry is stored once: of its uuid, if it has one."""
    uuid = entry.get("uuid")
    return agent_key(uuid) if type(uuid) is str else None


def parts_of(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The blocks of the entry's message, as Anthropic's API has them."""
    message = entry.get("message")
    content = message.get("content") if type(message) is dict else entry.get("content")
    if type(content) is str:
        return [{"type": "text", "text": content}]
    return [part for part in content if type(part) is dict] if type(content) is list else []


def is_call(part: dict[str, Any]) -> bool:
    """True for a call of a tool, also of one that the provider runs."""
    return _ends(part, "tool_use") and is_name(part.get("id")) and type(part.get("name")) is str


def is_result(part: dict[str, Any]) -> bool:
    """True for the result of a call."""
    return _ends(part, "tool_result") and is_name(part.get("tool_use_id"))


def is_failure(part: dict[str, Any]) -> bool:
    """True for the result of a call that failed."""
    return part.get("is_error") is True or (type(part.get("content")) is dict and _ends(part["content"], "error"))


def is_name(text: object) -> bool:
    """True if *text* can be the id of a record."""
    if type(text) is not str or not text or "\0" in text:
        return False
    try:
        return len(text.encode()) <= 4_096
    except UnicodeEncodeError:  # a lone surrogate
        return False


def text_of(content: object) -> str:
    """The text of a result: it is a text, or a list of blocks."""
    if type(content) is str:
        return content
    parts = content if type(content) is list else [content]
    return "\n".join(part["text"] for part in parts if type(part) is dict and type(part.get("text")) is str)


def _ends(part: dict[str, Any], end: str) -> bool:
    kind = part.get("type")
    return type(kind) is str and kind.endswith(end)


def _blocks(part: dict[str, Any]) -> Iterator[ContentBlock]:
    kind, text = part.get("type"), part.get("text")
    if is_call(part):
        yield ToolUseBlock(id=part["id"], name=part["name"], input=part.get("input"))
    elif is_result(part):
        is_error = True if is_failure(part) else None
        yield ToolResultBlock(tool_use_id=part["tool_use_id"], content=part.get("content"), is_error=is_error)
    elif kind == "thinking" and type(part.get("thinking")) is str:
        yield ReasoningBlock(part["thinking"])
    elif kind in ("image", "document"):
        yield _medium(part, FileBlock if kind == "document" else ImageBlock)
    elif type(text) is str:
        yield TextBlock(text)


def _medium(part: dict[str, Any], block: type[ImageBlock | FileBlock]) -> ContentBlock:
    """A block that names a medium; its data is kept once, in the entry."""
    given = part.get("source")
    source: dict[str, Any] = given if type(given) is dict else {}
    url, kind = source.get("url"), source.get("media_type")
    return block(url=url if type(url) is str else None, mime_type=kind if type(kind) is str else None)
