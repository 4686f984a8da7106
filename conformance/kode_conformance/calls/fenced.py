"""Every way to write to an agent under a lease, by introspection: a method that takes a fence is tried unnamed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from kode_conformance.calls.methods import DOCUMENT_METHODS
from kode_conformance.harness import keeps_documents, prunes_events
from kode_conformance.values import samples
from kode_core.model import PutDocument
from kode_core.protocols import ExtendedStore

__all__ = ["FENCED_METHODS", "FencedWrite", "fenced_writes"]

FENCED_METHODS: Final = tuple(
    name
    for name in dir(ExtendedStore)
    if not name.startswith("_") and "fence" in inspect.signature(getattr(ExtendedStore, name)).parameters
)
"""All methods that take a fence."""


class FencedWrite(NamedTuple):
    """A call that changes an agent that :func:`~kode_conformance.checks.lifecycle.fill` made.

    Attributes:
        name: the method, and which part of a turn it writes.
        arguments: by name, without the agent and the fence.
    """

    name: str
    method: str
    arguments: Mapping[str, Any]

    async def act(self, store: ExtendedStore, agent_id: str, **fence: Any) -> Any:
        return await getattr(store, self.method)(agent_id, **self.arguments, **fence)


_KEPT: Final = ("keep_snapshots", "keep_history_windows", "keep_compression_records", "keep_recovered_files")
_VALUES: Final[Mapping[str, Callable[[str, int], Any]]] = {
    "append": lambda agent_id, mark: samples.messages(2, mark),
    "messages": lambda agent_id, mark: samples.messages(2, mark),
    "tool_calls": lambda agent_id, mark: [samples.tool_call(mark)],
    "upsert_tool_calls": lambda agent_id, mark: [samples.tool_call(mark)],
    "records": lambda agent_id, mark: [samples.tool_call(mark)],
    "todos": lambda agent_id, mark: samples.todos(f"todo {mark}"),
    "snapshot": lambda agent_id, mark: samples.snapshot(f"sfp-{mark}"),
    "timeline": lambda agent_id, mark: samples.event(mark),
    "timelines": lambda agent_id, mark: samples.events(2, mark),
    "events": lambda agent_id, mark: samples.events(2, mark),
    "type": lambda agent_id, mark: f"type {mark}",
    "data": lambda agent_id, mark: {"mark": mark},
    "channel": lambda agent_id, mark: "monitor",
    "window": lambda agent_id, mark: samples.window(f"win-{mark}"),
    "record": lambda agent_id, mark: samples.compression(f"cmp-{mark}"),
    "file": lambda agent_id, mark: samples.recovered(f"file-{mark}"),
    "info": lambda agent_id, mark: samples.info(agent_id, template_id=f"template {mark}"),
    "message": lambda agent_id, mark: samples.message(text=f"message {mark}"),
    "position": lambda agent_id, mark: 0,
    "count": lambda agent_id, mark: 1,
    "length": lambda agent_id, mark: 1,
    "metadata": lambda agent_id, mark: {"mark": mark},
    "remove": lambda agent_id, mark: ["userId"],
    "snapshot_id": lambda agent_id, mark: "sfp-1",
    "collection": lambda agent_id, mark: "c",
    "key": lambda agent_id, mark: f"key {mark}",
    "value": lambda agent_id, mark: {"mark": mark},
    "events_before_offset": lambda agent_id, mark: 2**62,
    "events_before": lambda agent_id, mark: 2**62,
    **dict.fromkeys(_KEPT, lambda agent_id, mark: 1),
    "documents": lambda agent_id, mark: [PutDocument("c", f"key {mark}", {"mark": mark})],
}
"""A value for each parameter."""

_OTHERS: Final[Mapping[tuple[str, str], Callable[[str, int], Any]]] = {
    ("append_messages_once", "messages"): lambda agent_id, mark: {f"key {mark}": samples.message(mark)},
    ("save_todos", "snapshot"): _VALUES["todos"],
    ("emit_many", "events"): lambda agent_id, mark: [event.event for event in samples.events(2, mark)],
    ("delete_document", "key"): lambda agent_id, mark: "k",
    ("save_media_cache", "records"): lambda agent_id, mark: [samples.media(f"sha256:{mark}")],
}
"""Parameters that have the name of another one."""

_FIRST: Final = frozenset({"create_agent", "import_agent"})
"""Methods that refuse an agent that exists, whatever the lease."""

_EDITS: Final = frozenset(
    {
        "delete_document",
        "delete_snapshot",
        "pop_messages",
        "prune",
        "replace_message",
        "truncate_messages",
        "update_info",
    }
)
"""Methods that need something that they change or remove."""


def fenced_writes(agent_id: str, mark: int = 70, *, edits: bool = False) -> list[FencedWrite]:
    """A call of every method that takes a fence, one for each part where parts can be given by themselves.

    Deletes come last; *mark* tells new values from earlier ones. With *edits* there are also the methods that change
    or remove records that the agent has.
    """
    writes: list[FencedWrite] = []
    for method in FENCED_METHODS:
        if method in _FIRST or (method in _EDITS and not edits):
            continue
        if method in DOCUMENT_METHODS and not keeps_documents():
            continue
        parameters = inspect.signature(getattr(ExtendedStore, method)).parameters.values()
        mine = [p for p in parameters if p.name not in ("self", "agent_id", "fence", "expect", "progress")]
        values = {p.name: _value(method, p.name, agent_id, mark + len(writes) + i) for i, p in enumerate(mine)}
        needed = {p.name: values[p.name] for p in mine if p.default is p.empty}
        parts = [p.name for p in mine if p.default is not p.empty and _is_offered(p.name)]
        if needed or not parts:
            writes.append(FencedWrite(method, method, needed))
        writes += [FencedWrite(f"{method}({name})", method, {**needed, name: values[name]}) for name in parts]
    return sorted(writes, key=_place)


def _is_offered(parameter: str) -> bool:
    if parameter.startswith("events_before"):
        return prunes_events()
    return parameter != "documents" or keeps_documents()


def _place(write: FencedWrite) -> int:
    """Replacements come first, so that they hide no additions; deletes come last."""
    late = {"prune": 2, "delete": 3}
    return late.get(write.method, int("append" in write.name or "upsert" in write.name))


def _value(method: str, name: str, agent_id: str, mark: int) -> Any:
    return _OTHERS.get((method, name), _VALUES[name])(agent_id, mark)
