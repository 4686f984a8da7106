"""The items of a conversation as messages, and back.

A message keeps its item whole in its metadata, so that the SDK gets back what it gave. The blocks of the message are
what queries, the command line and people read. An item that is a role and a text, and nothing else, is not kept twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from kode_core import (
    ContentBlock,
    ImageBlock,
    InvalidArgumentError,
    Json,
    Message,
    ReasoningBlock,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    to_jsonable,
)

RAW: Final = "openaiItem"
"""The key of an item in the metadata of its message."""
_ROLES: Final = ("user", "assistant", "system", "developer")
_PLAIN: Final = ["role", "content"]
_CALL: Final = "_call"
_OUTPUT: Final = "_output"
_NOT_INPUT: Final = {"type", "id", "call_id", "name", "status", "output", "error", "created_by"}
_FAILURES: Final = ("Error", "An error occurred")


def message_of(item: Any) -> Message:
    """The message that keeps an item.

    Raises:
        InvalidArgumentError: the item is no dict.
    """
    if type(item) is not dict:
        raise InvalidArgumentError(f"an item of a session must be a dict, got {type(item).__name__}")
    role, content = item.get("role"), item.get("content")
    if type(role) is str and role in _ROLES and type(content) is str and list(item) == _PLAIN:
        return Message(role, [TextBlock(content)])
    if type(role) is not str:
        role = "user" if is_output(item) else "assistant"
    return Message(role, list(_blocks(item)), {RAW: item})


def item_of(message: Message) -> Any:
    """The item that a message keeps; a message that something else appended is an item of its role and its text."""
    if message.metadata is not None and RAW in message.metadata:
        return message.metadata[RAW]
    return {"role": message.role if message.role in _ROLES else "user", "content": message.text}


# --- Calls of tools ---------------------------------------------------------------------------------------------------


def call_id(item: dict[str, Any]) -> str | None:
    """The id that ties a call to its output; None if the item is neither, or its id cannot name a record."""
    if not is_call(item) and not is_output(item):
        return None
    found = item.get("call_id")
    found = item.get("id") if type(found) is not str else found
    return found if type(found) is str and _can_name(found) else None


def _can_name(text: str) -> bool:
    if not text or "\0" in text:
        return False
    try:
        return len(text.encode()) <= 4_096
    except UnicodeEncodeError:  # a lone surrogate
        return False


def is_call(item: dict[str, Any]) -> bool:
    """True for a call of a tool: of a function, of the computer, of a shell, or of a tool that the provider runs."""
    kind = item.get("type")
    return type(kind) is str and kind.endswith(_CALL)


def is_output(item: dict[str, Any]) -> bool:
    """True for the output of a call."""
    kind = item.get("type")
    return type(kind) is str and kind.endswith(_OUTPUT)


def is_settled(call: dict[str, Any]) -> bool:
    """True for a call that the provider ran itself: no output follows it."""
    return type(call.get("call_id")) is not str and call.get("type") != "local_shell_call"


def name_of(call: dict[str, Any]) -> str:
    """The name of the called tool; the type of the call if it has no name, such as ``web_search``."""
    name = call.get("name")
    return name if type(name) is str else str(call["type"]).removesuffix(_CALL)


def input_of(call: dict[str, Any]) -> Json:
    """The arguments of a call, as JSON where they are JSON."""
    arguments = call.get("arguments")
    if type(arguments) is str:
        return _parsed(arguments)
    if "input" in call:
        given: Json = call["input"]
        return given
    return {key: value for key, value in call.items() if key not in _NOT_INPUT}


def text_of(output: object) -> str:
    """The text of an output: it is a text, or a list of parts."""
    if type(output) is str:
        return output
    parts = output if type(output) is list else [output]
    return "\n".join(part["text"] for part in parts if type(part) is dict and type(part.get("text")) is str)


def is_failure(item: dict[str, Any]) -> bool:
    """True if an item reports that a tool failed: the default of ``KodeSession(is_failure=…)``.

    The API has no field for that. The SDK hands a tool's exception to the model as a text that begins with "An error
    occurred"; by convention other failures begin with "Error". A call that the provider ran has a status.
    """
    if item.get("error") or item.get("status") in ("failed", "incomplete"):
        return True
    return is_output(item) and text_of(item.get("output")).startswith(_FAILURES)


# --- Blocks -----------------------------------------------------------------------------------------------------------


def _blocks(item: dict[str, Any]) -> Iterator[ContentBlock]:
    named = call_id(item)
    if named is not None and is_call(item):
        yield ToolUseBlock(id=named, name=name_of(item), input=input_of(item))
    elif named is not None:
        output = item.get("output")
        yield ToolResultBlock(tool_use_id=named, content=output, is_error=is_failure(item) or None)
    for part in _parts(item.get("summary")):
        if type(part.get("text")) is str:
            yield ReasoningBlock(part["text"])
    for part in _parts(item.get("content")):
        yield from _part(part, item.get("type") == "reasoning")


def _parts(content: object) -> Iterator[dict[str, Any]]:
    if type(content) is str:
        yield {"text": content}
    elif type(content) is list:
        yield from (part for part in content if type(part) is dict)


def _part(part: dict[str, Any], is_reasoning: bool) -> Iterator[ContentBlock]:
    text, refusal = part.get("text"), part.get("refusal")
    if type(text) is str:
        yield ReasoningBlock(text) if is_reasoning else TextBlock(text)
    elif type(refusal) is str:
        yield TextBlock(refusal, meta={"refusal": True})
    elif part.get("type") == "input_image":
        url = part.get("image_url")  # a data URL is kept once, in the item
        yield ImageBlock(url=url if type(url) is str and url.startswith("http") else None)


def _parsed(text: str) -> Json:
    """*text* as JSON; the text itself if it is no JSON that a message can carry as a call's input."""
    try:
        parsed: Json = json.loads(text, parse_constant=_refused)
        to_jsonable([[[[[[parsed]]]]]])  # 1e999 is read as infinity, and text may nest deeper than a message may
    except (ValueError, RecursionError):
        return text
    return parsed


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
