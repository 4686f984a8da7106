"""The answers that a store must give to reads and queries, by the model of its contents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from kode_conformance.histories.model import AgentModel, Logged, StoreModel
from kode_core.model import (
    AgentInfo,
    Bookmark,
    Document,
    FileBlock,
    FoundDocument,
    Message,
    ReasoningBlock,
    StoredEvent,
    StoredMessage,
    StoredToolCall,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
)
from kode_core.query import DEFAULT_LIMIT, AgentStats, SessionInfo

__all__ = [
    "answer",
    "content_types",
    "keys_of_range",
    "matches",
    "same_json",
    "session_of",
    "sessions_found",
    "stored_event",
    "texts_in",
]


def answer(model: StoreModel, method: str, args: Sequence[Any], filters: Mapping[str, Any], *, whole: bool) -> object:
    """The result of *method* for these arguments; *whole* is without a limit, as by following cursors."""
    if method in _OF_AGENT:
        filters = {name: value for name, value in filters.items() if not whole or name != "limit"}
        return _OF_AGENT[method](model.agents.get(args[0]) or AgentModel(), *args[1:], **filters)
    if method == "list":
        return model.listed(*args)
    if method == "query_documents":
        return _tagged(model, **{name: value for name, value in filters.items() if not whole or name != "limit"})
    kind = method.partition("_")[2]
    found = _FOUND[kind](model, filters)
    if filters.get("order", "desc") == "desc":
        found.reverse()
    if whole or method.startswith("iter_"):
        return found
    offset = filters.get("offset", 0)
    return found[offset : offset + filters.get("limit", DEFAULT_LIMIT)]


# --- by agent ---------------------------------------------------------------------------------------------------------


def _info(agent: AgentModel) -> AgentInfo | None:
    return agent.info and agent.info.replace(message_count=len(agent.messages))


def _events(
    agent: AgentModel, *, since: Bookmark | None = None, after_offset: int | None = None, channel: str | None = None
) -> list[StoredEvent]:
    """Events as they are told; an offset that was not learned yet is -1."""
    log: Iterable[Logged] = agent.events
    if after_offset is None:
        log = sorted(log, key=lambda logged: logged.timeline.bookmark.seq)
    else:
        log = [logged for logged in log if (logged.offset or 0) > after_offset]
    return [
        stored_event(logged)
        for logged in log
        if (since is None or logged.timeline.bookmark.seq > since.seq)
        and (channel is None or logged.timeline.event.channel == channel)
    ]


def stored_event(logged: Logged, offset: int | None = None) -> StoredEvent:
    """The event as a store gives it, at its own offset or another."""
    t = logged.timeline
    offset = logged.offset if offset is None else offset
    offset = -1 if offset is None else offset
    return StoredEvent(cursor=t.cursor, bookmark=t.bookmark, event=t.event, extra=t.extra, offset=offset)


def _stats(agent: AgentModel) -> AgentStats:
    return AgentStats(
        total_messages=len(agent.messages),
        total_tool_calls=len(agent.tool_calls),
        total_snapshots=len(agent.snapshots),
        total_documents=len(agent.documents),
        tool_calls_by_name=dict(Counter(call.name for call in agent.tool_calls)),
        tool_calls_by_state=dict(Counter(call.state for call in agent.tool_calls)),
    )


def keys_of_range(
    keys: Iterable[str],
    *,
    prefix: str = "",
    start: str | None = None,
    stop: str | None = None,
    reverse: bool = False,
    limit: int | None = None,
) -> list[str]:
    """The keys of a range in the order of DOC-4, by plain comparison of texts, which is by code point."""
    found = sorted(key for key in keys if key.startswith(prefix) and (start is None or key >= start))
    found = [key for key in found if stop is None or key < stop]
    return (found[::-1] if reverse else found)[:limit]


def _documents(agent: AgentModel, collection: str, **given: Any) -> list[Document]:
    """The documents of a range, with an empty version and the time -1 if these were not learned yet."""
    keys = (key for place, key in agent.documents if place == collection)
    return [_document(agent, collection, key) for key in keys_of_range(keys, **given)]


def _document(agent: AgentModel, collection: str, key: str) -> Document:
    kept = agent.documents[collection, key]
    updated_at = -1 if kept.updated_at is None else kept.updated_at
    return Document(
        collection=collection,
        key=key,
        value=kept.value,
        version=kept.version or "",
        updated_at=updated_at,
        tags=kept.tags,
    )


def _tagged(
    model: StoreModel, collection: str, tags: Mapping[str, Any], *, reverse: bool = False, limit: int | None = None
) -> list[FoundDocument]:
    """The documents with the tags, over all agents, as :func:`_documents` gives them."""
    found = [
        (agent_id, _document(agent, collection, key))
        for agent_id, agent in model.agents.items()
        for place, key in agent.documents
        if place == collection and _has_tags(agent.documents[place, key].tags, tags)
    ]
    found.sort(key=lambda one: (one[0], one[1].key), reverse=reverse)
    return [FoundDocument(agent_id=agent_id, **_fields(document)) for agent_id, document in found[:limit]]


def _has_tags(tags: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    return all(name in tags and tags[name] in _several(one) for name, one in wanted.items())


_OF_AGENT: Final[Mapping[str, Callable[..., object]]] = {
    "load_messages": lambda agent: agent.messages,
    "read_messages": lambda agent: agent.messages,
    "load_tool_call_records": lambda agent: agent.tool_calls,
    "load_todos": lambda agent: agent.todos,
    "load_info": _info,
    "exists": lambda agent: agent.info is not None,
    "load_history_windows": lambda agent: sorted(agent.windows.values(), key=lambda w: (w.timestamp, w.id)),
    "load_compression_records": lambda agent: sorted(agent.compressions.values(), key=lambda c: (c.timestamp, c.id)),
    "load_recovered_files": lambda agent: sorted(agent.recovered.values(), key=lambda f: (f.timestamp, f.path)),
    "load_media_cache": lambda agent: agent.media,
    "list_snapshots": lambda agent: sorted(agent.snapshots.values(), key=lambda s: (-s.created_at, s.id)),
    "load_snapshot": lambda agent, key: agent.snapshots.get(key),
    "read_events": _events,
    "last_bookmark": lambda agent: max(
        (logged.timeline.bookmark for logged in reversed(agent.events)), key=lambda b: b.seq, default=None
    ),
    "aggregate_stats": _stats,
    "load_document": lambda agent, *place: _document(agent, *place) if place in agent.documents else None,
    "list_documents": _documents,
    "iter_documents": _documents,
    "list_document_keys": lambda agent, *place, **bounds: [doc.key for doc in _documents(agent, *place, **bounds)],
}

# --- over agents ------------------------------------------------------------------------------------------------------

_KEYS: Final[Mapping[str, Callable[[SessionInfo], object]]] = {
    "created_at": lambda s: (s.created_at, s.agent_id),
    "updated_at": lambda s: (s.updated_at, s.agent_id),
    "message_count": lambda s: (s.message_count, s.agent_id),
}


def sessions_found(model: StoreModel, filters: Mapping[str, Any]) -> list[SessionInfo]:
    """The sessions that match, in ascending order."""
    found = [session_of(agent) for agent in model.agents.values() if agent.info is not None]
    sort = cast(str, filters.get("sort_by", "created_at"))
    return sorted((one for one in found if _matches(one, filters, _session_value)), key=_sort_key(sort))


def _sort_key(sort: str) -> Callable[[SessionInfo], Any]:
    return _KEYS[sort]


def session_of(agent: AgentModel) -> SessionInfo:
    """The session of an agent with info."""
    info, learned = agent.info, agent.learned
    assert info is not None
    return SessionInfo(
        agent_id=info.agent_id,
        template_id=info.template_id,
        created_at=info.created_at,
        updated_at=-1 if learned.updated_at is None else learned.updated_at,
        message_count=len(agent.messages),
        lineage=tuple(info.lineage),
        last_sfp_index=info.last_sfp_index,
        last_bookmark=info.last_bookmark,
        breakpoint=info.breakpoint,
        metadata=info.metadata,
    )


def _messages_found(model: StoreModel, filters: Mapping[str, Any]) -> list[StoredMessage]:
    found = [
        StoredMessage(agent_id=agent_id, position=i, created_at=created_at, **_fields(message))
        for agent_id, agent in model.agents.items()
        for i, (message, created_at) in enumerate(zip(agent.messages, agent.learned.times, strict=False))
        if "agent_id" not in filters or agent_id in _several(filters["agent_id"])
    ]
    return sorted((m for m in found if _matches(m, filters, _row_value)), key=_place)


def _calls_found(model: StoreModel, filters: Mapping[str, Any]) -> list[StoredToolCall]:
    found = [
        StoredToolCall(agent_id=agent_id, position=i, **_fields(call))
        for agent_id, agent in model.agents.items()
        for i, call in enumerate(agent.tool_calls)
        if "agent_id" not in filters or agent_id in _several(filters["agent_id"])
    ]
    return sorted((c for c in found if _matches(c, filters, _row_value)), key=_place)


def _fields(record: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def _place(record: StoredMessage | StoredToolCall) -> tuple[int, str, int]:
    return record.created_at, record.agent_id, record.position


_FOUND: Final[Mapping[str, Callable[[StoreModel, Mapping[str, Any]], list[Any]]]] = {
    "sessions": sessions_found,
    "messages": _messages_found,
    "tool_calls": _calls_found,
}

# --- filters ----------------------------------------------------------------------------------------------------------

PAGING: Final = frozenset({"limit", "offset", "cursor", "order", "sort_by"})


def _matches(record: Any, filters: Mapping[str, Any], value_of: Callable[[Any, str], Any]) -> bool:
    return all(_holds(record, name, wanted, value_of) for name, wanted in filters.items() if name not in PAGING)


def matches(kind: str, record: Any, filters: Mapping[str, Any]) -> bool:
    """True if the session, message or tool call matches the filters."""
    return _matches(record, filters, _session_value if kind == "sessions" else _row_value)


def _holds(record: Any, name: str, wanted: Any, value_of: Callable[[Any, str], Any]) -> bool:
    field, _, bound = name.rpartition("_")
    if bound == "after":
        return bool(getattr(record, f"{field}_at") >= wanted)
    if bound == "before":
        return bool(getattr(record, f"{field}_at") < wanted)
    if name == "metadata":
        kept = record.metadata or {}
        return all(key in kept and same_json(kept[key], v) for key, v in wanted.items())
    if name == "contains":
        return any(wanted.casefold() in text.casefold() for text in texts_in(record))
    if name == "content_type":
        return not content_types(record).isdisjoint(_several(wanted))
    return any(same_json(value_of(record, name), one) for one in _several(wanted))


def _several(wanted: Any) -> Iterable[Any]:
    return wanted if isinstance(wanted, (list, tuple, set, frozenset)) else (wanted,)


def _session_value(session: SessionInfo, name: str) -> Any:
    return session.metadata.get("userId") if name == "user_id" else getattr(session, name)


def _row_value(record: Any, name: str) -> Any:
    if name == "tool_name":
        return record.name
    if name == "is_error":
        return record.is_error is True
    return record.approval.required if name == "has_approval" else getattr(record, name)


def content_types(message: Message) -> set[str]:
    """The types of the message's blocks."""
    return {
        block.type if isinstance(block, UnknownBlock) else cast(str, type(block).__struct_config__.tag)
        for block in message.content
    }


_TEXTS: Final[Mapping[type, Callable[[Any], object]]] = {
    TextBlock: lambda block: block.text,
    ReasoningBlock: lambda block: block.reasoning,
    FileBlock: lambda block: block.filename,
    ToolUseBlock: lambda block: block.input,
    ToolResultBlock: lambda block: block.content,
    UnknownBlock: lambda block: [value for key, value in block.data.items() if key != "type"],
}


def texts_in(message: Message) -> list[str]:
    """The texts of a message, in which ``contains`` looks."""
    return [text for block in message.content if type(block) in _TEXTS for text in _strings(_TEXTS[type(block)](block))]


def _strings(value: Any) -> list[str]:
    if isinstance(value, (list, dict)):
        return [text for one in (value.values() if isinstance(value, dict) else value) for text in _strings(one)]
    return [value] if isinstance(value, str) else []


def same_json(one: Any, other: Any) -> bool:
    """True if two JSON values are equal: numbers by value, and booleans are no numbers."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_json(value, other[key]) for key, value in one.items())
    return bool(one == other)
