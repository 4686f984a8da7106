"""A session for the OpenAI Agents SDK: a message of an agent for each item of the conversation.

It has the methods of the SDK's protocol ``Session``, and needs no package of the SDK. Every item comes back as it was
given: a text of a role is a plain message, and any other item is kept whole in its message's metadata, next to the
blocks by which queries find tool calls and results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kode_core import ContentBlock, ExtendedStore, Json, Message, TextBlock, ToolResultBlock, ToolUseBlock, to_json

RAW = "openaiItem"
ROLES = ("user", "assistant", "system")


class KodeSession:
    """The items of one conversation. Any number of sessions and processes may have the same one."""

    def __init__(self, session_id: str, store: ExtendedStore, session_settings: Any = None) -> None:
        self.session_id = session_id
        self.session_settings = session_settings
        self._store = store

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """All items, or the latest *limit* of them, oldest first."""
        last = getattr(self.session_settings, "limit", None) if limit is None else limit
        found = await self._store.load_messages(self.session_id, last=None if last is None else max(last, 0))
        return [_item_of(message) for message in found]

    async def add_items(self, items: Sequence[Any]) -> None:
        """Append items in one commit: all of them, or none."""
        await self._store.append_messages(self.session_id, [_message_of(item) for item in items])

    async def pop_item(self) -> Any | None:
        """Remove the last item, and return it; an item that others append meanwhile stays."""
        popped = await self._store.pop_messages(self.session_id)
        return _item_of(popped[0]) if popped else None

    async def clear_session(self) -> None:
        """Remove all items, and nothing else that the agent has."""
        await self._store.truncate_messages(self.session_id, 0)


def _message_of(item: dict[str, Json]) -> Message:
    role, content = item.get("role"), item.get("content")
    if role in ROLES and isinstance(content, str) and item.keys() == {"role", "content"}:
        return Message(str(role), [TextBlock(content)])
    kind = item.get("type")
    if kind == "function_call":
        role = "assistant"
    return Message(str(role or "user"), _blocks_of(item), {RAW: item})


def _blocks_of(item: dict[str, Json]) -> list[ContentBlock]:
    """The blocks by which queries find an item that is kept in the metadata."""
    call_id = item.get("call_id")
    if item.get("type") == "function_call" and isinstance(call_id, str):
        return [ToolUseBlock(id=call_id, name=str(item.get("name")), input=_arguments(item.get("arguments")))]
    if item.get("type") == "function_call_output" and isinstance(call_id, str):
        return [ToolResultBlock(tool_use_id=call_id, content=item.get("output"))]
    content = item.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return [TextBlock(text) for text in texts if isinstance(text, str)]


def _arguments(text: Json) -> Json:
    """The arguments of a call as JSON; the text itself if it is none that a store takes exactly."""
    try:
        arguments = json.loads(str(text), parse_constant=_refused)
        to_json(arguments)  # 1e999 is read as infinity, and text may nest too deeply for a record
    except (ValueError, RecursionError):
        return text
    return arguments


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _item_of(message: Message) -> Any:
    if message.metadata is not None and RAW in message.metadata:
        return message.metadata[RAW]
    return {"role": message.role, "content": message.text}
