"""A call of every method of the protocols, by introspection: a method that is added is called without being named."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from kode_conformance.harness import keeps_documents, keeps_tags
from kode_conformance.values import samples
from kode_core.model import AgentRecords
from kode_core.protocols import DocumentStore, ExtendedStore
from kode_core.query import Page

__all__ = [
    "DOCUMENT_METHODS",
    "PROTOCOL_METHODS",
    "TAG_METHODS",
    "Call",
    "calls_of",
    "directions",
    "drive",
    "drive_pages",
    "takes",
]

PROTOCOL_METHODS: Final = tuple(
    name for name in dir(ExtendedStore) if not name.startswith("_") and name not in ("close", "health_check")
)
"""All methods but the two that also work on a closed store."""

DOCUMENT_METHODS: Final = frozenset(
    {*(name for name in vars(DocumentStore) if not name.startswith("_")), "append_messages_once"}
)
"""The methods that a store without documents of the caller's own refuses."""

TAG_METHODS: Final = frozenset({"query_documents"})
"""The methods that a store without tags of documents refuses."""

_MOST_PAGES: Final = 40


class Call(NamedTuple):
    """A method, and arguments for it by name."""

    method: Any
    arguments: dict[str, Any]


_SPECIAL: Final[Mapping[str, Mapping[str, Any]]] = {
    "append_messages_once": {"messages": {}},
    "fork": {"snapshot_id": None, "documents": False},
    "truncate_messages": {"length": 0},
    "save_todos": {"snapshot": samples.todos()},
    "save_media_cache": {"records": []},
    "delete_many": {"template_id": "x"},
    "import_agent": {"records": AgentRecords(agent_id="x", todos=samples.todos())},
    "prune": {"keep_snapshots": 1},
}


def calls_of(store: Any, agent_id: str = "a", target: str = "") -> dict[str, Call]:
    """A call of every method that the store has, with harmless arguments."""
    common: dict[str, Any] = {
        "agent_id": agent_id,
        "messages": [],
        "records": [],
        "snapshot": samples.snapshot(),
        "timeline": samples.event(0),
        "timelines": [],
        "type": "text_chunk",
        "events": [],
        "window": samples.window(),
        "record": samples.compression(),
        "file": samples.recovered(),
        "snapshot_id": "s",
        "info": samples.info(agent_id),
        "message": samples.message(),
        "position": 0,
        "length": None,
        "metadata": {},
        "count": 1,
        "collection": "c",
        "key": "k",
        "value": {"v": 1},
        "documents": [],
        "by": "day",
        "tags": {"run": "r1"},
        "target": target,
    }
    calls = {}
    for name in PROTOCOL_METHODS:
        if not hasattr(store, name):  # another check sees that the parameters are complete
            continue
        if name in DOCUMENT_METHODS and not keeps_documents():
            continue
        if name in TAG_METHODS and not keeps_tags():
            continue
        parameters = inspect.signature(getattr(ExtendedStore, name)).parameters
        lacked = {*(() if keeps_documents() else ("documents",)), *(() if keeps_tags() else ("tags",))}
        given = {p: v for p, v in common.items() if p in parameters and p not in lacked}
        calls[name] = Call(getattr(store, name), {**given, **_SPECIAL.get(name, {})})
    return calls


def takes(method: Any, given: dict[str, Any]) -> bool:
    """True if the method's parameters have these names, as far as can be told."""
    try:
        inspect.signature(method).bind(**given)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


async def drive(method: Any, given: dict[str, Any]) -> Any:
    """Make the call and await its result, or read its stream to the end into a list."""
    result = method(**given)
    if hasattr(result, "__aiter__"):
        return [item async for item in result]
    return await result


def directions(name: str) -> list[Mapping[str, Any]]:
    """Arguments with which a method gives its records in the one and the other direction, whole and in small pages."""
    parameters = inspect.signature(getattr(ExtendedStore, name)).parameters
    ways: list[dict[str, Any]] = []
    if "reverse" in parameters:
        ways = [{"reverse": False}, {"reverse": True}]
    elif name.startswith(("query_", "iter_")) and "filters" in parameters:
        ways = [{"order": "asc"}, {"order": "desc"}]
    pages = [{"limit": 1}, {"limit": 3}] if name.startswith(("query_", "list_")) else []
    return [{**way, **page} for way in ways for page in ({}, *pages)]


async def drive_pages(method: Any, given: Mapping[str, Any]) -> Any:
    """As :func:`drive`; of a page that has a next one, the lists of all pages."""
    result = await drive(method, dict(given))
    pages = [result]
    while isinstance(result, Page) and result.next_cursor is not None and len(pages) < _MOST_PAGES:
        result = await drive(method, {**given, "cursor": result.next_cursor})
        pages.append(result)
    return result if len(pages) == 1 else [list(page) for page in pages]
