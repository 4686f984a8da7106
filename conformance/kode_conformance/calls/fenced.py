"""Every way to write to an agent under a lease, by introspection: a method that takes a fence is tried unnamed."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kode_conformance.calls.methods import DOCUMENT_METHODS
from kode_conformance.harness import keeps_documents, keeps_tags, prunes_events
from kode_conformance.values import samples
from kode_core.model import PutDocument
from kode_core.protocols import ExtendedStore

__all__ = ["FENCED_METHODS", "FencedWrite", "fenced_writes", "idle_writes"]

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

    @property
    def takes_version(self) -> bool:
        """True if the method demands a version of the agent, and not of a document."""
        takes = "expect" in inspect.signature(getattr(ExtendedStore, self.method)).parameters
        return takes and self.method not in DOCUMENT_METHODS


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
    "tags": lambda agent_id, mark: {"run": f"r{mark}"},
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

_NO_CONTENTS: Final = ("self", "agent_id", "fence", "expect", "progress", "dry_run")
"""Parameters of which no call writes anything."""

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
        mine = [p for p in parameters if p.name not in _NO_CONTENTS]
        values = {p.name: _value(method, p.name, agent_id, mark + len(writes) + i) for i, p in enumerate(mine)}
        needed = {p.name: values[p.name] for p in mine if p.default is p.empty}
        parts = [p.name for p in mine if p.default is not p.empty and _is_offered(p.name)]
        if needed or not parts:
            writes.append(FencedWrite(method, method, needed))
        writes += [FencedWrite(f"{method}({name})", method, {**needed, name: values[name]}) for name in parts]
    return sorted(writes, key=_place)


_IDLE: Final[Mapping[str, Callable[[str], Sequence[Any]]]] = {
    **dict.fromkeys(("append", "upsert_tool_calls", "events", "timelines", "documents"), lambda agent_id: [[]]),
    **dict.fromkeys(_KEPT, lambda agent_id: [10_000]),
    **dict.fromkeys(("events_before_offset", "events_before", "count"), lambda agent_id: [0]),
    **dict.fromkeys(("tool_calls", "records"), lambda agent_id: [[samples.tool_call()]]),
    "messages": lambda agent_id: [samples.messages(3)],
    "info": lambda agent_id: [samples.info(agent_id)],
    "position": lambda agent_id: [1],
    "message": lambda agent_id: [samples.message(1)],
    "length": lambda agent_id: [3, 4, 2**31 - 1],
    "metadata": lambda agent_id: [{}, {"userId": "u-1"}],
    "remove": lambda agent_id: [["never"]],
    "snapshot_id": lambda agent_id: ["never"],
}
"""Values of parameters with which a call finds nothing to do, for an agent that ``fill`` made."""

_IDLE_OTHERS: Final[Mapping[tuple[str, str], Sequence[Any]]] = {
    ("append_messages", "messages"): [[]],
    ("append_messages_once", "messages"): [{}],
    ("upsert_tool_call_records", "records"): [[]],
    ("save_media_cache", "records"): [[samples.media()]],
    ("delete_document", "collection"): ["c"],
    ("delete_document", "key"): ["never"],
}

_IDLE_WITHOUT: Final[Sequence[tuple[str, Mapping[str, Any]]]] = (
    *(("pop_messages", {"count": count}) for count in (0, 1, 3)),
    *(("truncate_messages", {"length": length}) for length in (0, 1, 3, 2**31 - 1)),
    *(("prune", {name: number}) for name in _KEPT for number in (0, 1)),
    ("append_messages", {"messages": []}),
    ("upsert_tool_call_records", {"records": []}),
    ("append_events", {"timelines": []}),
    ("emit_many", {"events": []}),
    ("delete_snapshot", {"snapshot_id": "sfp-1"}),
    ("save_turn", {}),
    ("save_turn", {"append": []}),
)
"""Calls that find nothing to do where there are no messages, events, snapshots and the like."""


def idle_writes(agent_id: str, *, without: bool = False) -> list[FencedWrite]:
    """Calls of methods that take a fence which find nothing to do: each is made by each value, part by part.

    The agent is one that ``fill`` made, and may have more of anything but messages; *without* gives the calls for an
    agent that has an info at most.
    """
    if without:
        return [FencedWrite(f"{method}({given!s:.60})", method, given) for method, given in _IDLE_WITHOUT]
    writes: list[FencedWrite] = []
    for method in FENCED_METHODS:
        if method in _FIRST or (method in DOCUMENT_METHODS and not keeps_documents()):
            continue
        parameters = inspect.signature(getattr(ExtendedStore, method)).parameters.values()
        mine = [p for p in parameters if p.name not in _NO_CONTENTS]
        values = {p.name: _idle(method, p.name, agent_id) for p in mine}
        needed = {p.name: values[p.name] for p in mine if p.default is p.empty}
        parts = {p.name: values[p.name] for p in mine if p.default is not p.empty and _is_offered(p.name)}
        if not mine or not all(needed.values()):
            continue
        given = [dict(zip(needed, some, strict=True)) for some in itertools.product(*needed.values())]
        more = [{**given[0], name: value} for name, some in parts.items() for value in some]
        writes += [FencedWrite(f"{method}({one!s:.60})", method, one) for one in (*(given if needed else ()), *more)]
    return writes


def _idle(method: str, name: str, agent_id: str) -> Sequence[Any]:
    if (method, name) in _IDLE_OTHERS:
        return _IDLE_OTHERS[method, name]
    return _IDLE[name](agent_id) if name in _IDLE else ()


def _is_offered(parameter: str) -> bool:
    if parameter.startswith("events_before"):
        return prunes_events()
    if parameter == "tags":
        return keeps_tags()
    return parameter != "documents" or keeps_documents()


def _place(write: FencedWrite) -> int:
    """Replacements come first, so that they hide no additions; deletes come last."""
    late = {"prune": 2, "delete": 3}
    return late.get(write.method, int("append" in write.name or "upsert" in write.name))


def _value(method: str, name: str, agent_id: str, mark: int) -> Any:
    return _OTHERS.get((method, name), _VALUES[name])(agent_id, mark)
