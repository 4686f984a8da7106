"""Every free-form field of every kind of record: how to write a value into it, and how to read what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from kode_conformance import samples
from kode_core.model import (
    AgentEvent,
    AudioBlock,
    Bookmark,
    CompressionConfig,
    FileBlock,
    ImageBlock,
    Message,
    ReasoningBlock,
    TextBlock,
    Timeline,
    TodoItem,
    TodoSnapshot,
    ToolCallApproval,
    ToolCallAuditEntry,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
    VideoBlock,
)
from kode_core.protocols import Store

__all__ = ["PLACES", "Holds", "Kind", "Place"]


class Holds(Enum):
    """What a field takes."""

    JSON = "any JSON value"
    DICT = "a dict"
    TEXT = "a string"

    def fits(self, value: Any) -> bool:
        """Whether the field's type lets the value in."""
        if self is Holds.JSON:
            return True
        return type(value) is (str if self is Holds.TEXT else dict)


class Kind(NamedTuple):
    """A kind of record: how one is saved, in place of an old one where the kind replaces, and how all are loaded."""

    save: Callable[[Store, str, Any], Awaitable[object]]
    load: Callable[[Store, str], Awaitable[Sequence[Any]]]
    replaces: bool = True


class Place(NamedTuple):
    """A field.

    Attributes:
        record: makes a record that holds a value there.
        inside: how many dicts around the value are the caller's as well, and count for its depth.
    """

    name: str
    kind: Kind
    record: Callable[[Any], Any]
    holds: Holds = Holds.JSON
    inside: int = 0


async def _one(load: Awaitable[Any]) -> Sequence[Any]:
    found = await load
    return [] if found is None else [found]


async def _info_without_count(store: Store, agent_id: str) -> Sequence[Any]:
    return [info.replace(agent_id="a") for info in await _one(store.load_info(agent_id))]


async def _events(store: Store, agent_id: str) -> Sequence[Any]:
    return [event async for event in store.read_events(agent_id)]


_MESSAGE: Final = Kind(lambda s, a, r: s.save_messages(a, [r]), lambda s, a: s.load_messages(a))
_CALL: Final = Kind(lambda s, a, r: s.save_tool_call_records(a, [r]), lambda s, a: s.load_tool_call_records(a))
_EVENT: Final = Kind(lambda s, a, r: s.append_event(a, r), _events, replaces=False)
_TODOS: Final = Kind(lambda s, a, r: s.save_todos(a, r), lambda s, a: _one(s.load_todos(a)))
_WINDOW: Final = Kind(lambda s, a, r: s.save_history_window(a, r), lambda s, a: s.load_history_windows(a))
_COMPRESSION: Final = Kind(lambda s, a, r: s.save_compression_record(a, r), lambda s, a: s.load_compression_records(a))
_FILE: Final = Kind(lambda s, a, r: s.save_recovered_file(a, r), lambda s, a: s.load_recovered_files(a))
_MEDIA: Final = Kind(lambda s, a, r: s.save_media_cache(a, [r]), lambda s, a: s.load_media_cache(a))
_SNAPSHOT: Final = Kind(lambda s, a, r: s.save_snapshot(a, r), lambda s, a: s.list_snapshots(a))
_INFO: Final = Kind(lambda s, a, r: s.save_info(a, r.replace(agent_id=a)), _info_without_count)


def _message(*blocks: Any, **changes: Any) -> Message:
    return Message("user", blocks or [TextBlock("x")], **changes)


def _event(data: Any = None, kind: Any = "custom", **changes: Any) -> Timeline:
    return Timeline(1, Bookmark(1, 1), AgentEvent("monitor", kind, {} if data is None else data), **changes)


def _todos(**changes: Any) -> TodoSnapshot:
    item = TodoItem(**{"id": "t", "title": "x", "created_at": 1, "updated_at": 1, **changes})
    return TodoSnapshot(todos=[item], updated_at=1)


def _call(**changes: Any) -> Any:
    return samples.tool_call(**changes)


def _extra(name: str, kind: Kind, record: Callable[[Any], Any]) -> Place:
    """The fields of a newer version: one of them holds the value."""
    return Place(f"{name}.extra", kind, lambda value: record({"newer": value}), inside=1)


_D, _T = Holds.DICT, Holds.TEXT

PLACES: Final[tuple[Place, ...]] = (
    Place("message.role", _MESSAGE, lambda v: Message(v, [TextBlock("x")]), _T),
    Place("message.metadata", _MESSAGE, lambda v: _message(metadata=v), _D),
    _extra("message", _MESSAGE, lambda v: _message(extra=v)),
    Place("text.text", _MESSAGE, lambda v: _message(TextBlock(v)), _T),
    Place("text.meta", _MESSAGE, lambda v: _message(TextBlock("x", meta=v)), _D),
    _extra("text", _MESSAGE, lambda v: _message(TextBlock("x", extra=v))),
    Place("reasoning.reasoning", _MESSAGE, lambda v: _message(ReasoningBlock(v)), _T),
    Place(
        "image.url", _MESSAGE, lambda v: _message(ImageBlock(url=v), VideoBlock(base64=v), FileBlock(filename=v)), _T
    ),
    Place("audio.meta", _MESSAGE, lambda v: _message(AudioBlock(file_id="f", mime_type="m", meta=v)), _D),
    Place("tool_use.input", _MESSAGE, lambda v: _message(ToolUseBlock("c", "t", v))),
    Place("tool_use.name", _MESSAGE, lambda v: _message(ToolUseBlock(v, v, None)), _T),
    Place("tool_result.content", _MESSAGE, lambda v: _message(ToolResultBlock("c", v))),
    Place("unknown block", _MESSAGE, lambda v: _message(UnknownBlock({"type": "hologram", "value": v})), inside=1),
    Place("tool_call.input", _CALL, lambda v: _call(input=v)),
    Place("tool_call.result", _CALL, lambda v: _call(result=v)),
    Place("tool_call.error", _CALL, lambda v: _call(error=v, name=v, state=v), _T),
    Place("tool_call.audit_trail.note", _CALL, lambda v: _call(audit_trail=[ToolCallAuditEntry(v, 1, v)]), _T),
    Place("tool_call.approval.meta", _CALL, lambda v: _call(approval=ToolCallApproval(meta=v)), _D),
    Place("tool_call.approval.note", _CALL, lambda v: _call(approval=ToolCallApproval(note=v, decided_by=v)), _T),
    _extra("tool_call", _CALL, lambda v: _call(extra=v)),
    Place("event.data", _EVENT, lambda v: _event({"value": v}), inside=1),
    Place("event.data as a whole", _EVENT, _event, _D),
    Place("event.type", _EVENT, lambda v: _event(kind=v), _T),
    _extra("event", _EVENT, lambda v: _event(extra=v)),
    Place("todos.title", _TODOS, lambda v: _todos(id=v, title=v, status=v, notes=v, assignee=v), _T),
    _extra("todos", _TODOS, lambda v: _todos(extra=v)),
    Place("window.messages", _WINDOW, lambda v: samples.window().replace(messages=[_message(ToolResultBlock("c", v))])),
    Place("window.events", _WINDOW, lambda v: samples.window().replace(events=[_event({"value": v})]), inside=1),
    _extra("window", _WINDOW, lambda v: samples.window().replace(extra=v)),
    Place(
        "compression.summary",
        _COMPRESSION,
        lambda v: samples.compression().replace(summary=v, config=CompressionConfig(prompt=v), recovered_files=[v]),
        _T,
    ),
    _extra("compression", _COMPRESSION, lambda v: samples.compression().replace(extra=v)),
    Place("recovered.content", _FILE, lambda v: samples.recovered(content=v), _T),
    _extra("recovered", _FILE, lambda v: samples.recovered().replace(extra=v)),
    Place("media.provider", _MEDIA, lambda v: samples.media().replace(provider=v, mime_type=v, file_uri=v), _T),
    _extra("media", _MEDIA, lambda v: samples.media().replace(extra=v)),
    Place("snapshot.metadata", _SNAPSHOT, lambda v: samples.snapshot().replace(metadata=v), _D),
    Place("snapshot.messages", _SNAPSHOT, lambda v: samples.snapshot().replace(messages=[_message(metadata=v)]), _D),
    _extra("snapshot", _SNAPSHOT, lambda v: samples.snapshot().replace(extra=v)),
    Place("info.metadata", _INFO, lambda v: samples.info("a", metadata=v), _D),
    Place("info.template_id", _INFO, lambda v: samples.info("a", template_id=v, breakpoint=v, lineage=[v]), _T),
    _extra("info", _INFO, lambda v: samples.info("a", extra=v)),
)
"""All of them."""
