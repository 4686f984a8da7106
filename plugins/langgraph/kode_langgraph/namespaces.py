"""The documents and agents of the long-term memory.

A namespace is an agent, ``langgraph-store:LABEL:LABEL…``, with the namespace in its metadata. Its collections:

- ``items``: the key. The value has the item's value, its times, and its time to live.
- ``expiring``: the time of expiry, then the key: the order in which a sweep finds what has expired.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final

from langgraph.store.base import ListNamespacesOp, PutOp

from kode_core import (
    ABSENT,
    ConflictError,
    DeleteDocument,
    Document,
    DocumentWrite,
    ExtendedStore,
    InvalidArgumentError,
    PutDocument,
    agent_key,
    now_ms,
    to_datetime,
)
from kode_langgraph.keys import document_pages, part_of
from kode_langgraph.matching import is_matched
from kode_langgraph.packing import guard

__all__ = [
    "EXPIRING",
    "ITEMS",
    "MINUTE_MS",
    "STEP",
    "TEMPLATE",
    "about_item",
    "agent_of_namespace",
    "documents_of",
    "expiry_key",
    "is_expired",
    "metadata_of",
    "namespaces_of",
    "sweep",
    "under",
    "writes_of",
]

TEMPLATE: Final = "langgraph-store"
ITEMS: Final = "items"
EXPIRING: Final = "expiring"
STEP: Final = 500
MINUTE_MS: Final = 60_000

_AT_ONCE: Final = 16
_DEEPEST: Final = 8


def agent_of_namespace(namespace: Iterable[str]) -> str:
    return agent_key(TEMPLATE, *namespace)


def expiry_key(expires: int, key: str) -> str:
    return f"{expires:016}/{key}"


def is_expired(found: Document) -> bool:
    stored: Any = found.value
    return stored["expires"] is not None and stored["expires"] <= now_ms()


def about_item(found: Document) -> dict[str, Any]:
    stored: Any = found.value
    with guard(f"document {found.key!r} of collection 'items'"):
        return {
            "value": stored["value"],
            "key": stored["key"],
            "created_at": to_datetime(stored["created_at"]),
            "updated_at": to_datetime(stored["updated_at"]),
        }


def writes_of(op: PutOp, found: Document | None) -> list[DocumentWrite]:
    """The writes of one put or removal, which demand the item as it was found."""
    key = part_of(op.key)
    old: Any = found.value if found is not None else None
    writes: list[DocumentWrite] = []
    if old is not None and old["expires"] is not None:
        writes.append(DeleteDocument(EXPIRING, expiry_key(old["expires"], key)))
    if op.value is None:
        return [*writes, DeleteDocument(ITEMS, key, found.version)] if found is not None else []
    if not isinstance(op.value, Mapping):
        raise InvalidArgumentError(f"the value of an item must be a dict, got {type(op.value).__name__}")
    now = now_ms()
    expires = None if op.ttl is None else now + int(op.ttl * MINUTE_MS)
    created = old["created_at"] if old is not None and found is not None and not is_expired(found) else now
    stored = {"key": op.key, "value": dict(op.value), "created_at": created, "updated_at": now}
    stored |= {"ttl": op.ttl, "expires": expires}
    writes.append(PutDocument(ITEMS, key, stored, found.version if found is not None else ABSENT))
    if expires is not None:
        again = expiry_key(expires, key)
        writes = [write for write in writes if write.key != again]
        writes.append(PutDocument(EXPIRING, again, None))
    return writes


async def documents_of(store: ExtendedStore, agent_id: str, limit: int) -> AsyncIterator[Document]:
    async for page in document_pages(store, agent_id, ITEMS, limit=max(1, min(limit, 1_000))):
        for document in page:
            yield document


def metadata_of(namespace: Sequence[str]) -> dict[str, Any]:
    """The metadata of a namespace's agent, by which ``_under`` finds it: all that it begins with, by length."""
    labels = list(namespace)
    return {"namespace": labels, **{f"of{n}": labels[:n] for n in range(1, min(len(labels), _DEEPEST) + 1)}}


async def under(store: ExtendedStore, prefix: tuple[str, ...]) -> AsyncIterator[tuple[str, ...]]:
    """The namespaces that begin with some labels, oldest first."""
    n = min(len(prefix), _DEEPEST)
    wanted: dict[str, Any] = {f"of{n}": list(prefix[:n])} if n else {}
    async for session in store.iter_sessions(template_id=TEMPLATE, metadata=wanted, sort_by="created_at", order="asc"):
        labels: Any = session.metadata.get("namespace") or ()
        namespace = tuple(labels)
        if namespace[: len(prefix)] == prefix and agent_of_namespace(namespace) == session.agent_id:
            yield namespace


async def namespaces_of(store: ExtendedStore, op: ListNamespacesOp) -> list[tuple[str, ...]]:
    conditions = op.match_conditions or ()
    fixed: tuple[str, ...] = ()
    for condition in conditions:
        if condition.match_type == "prefix":
            path = tuple(condition.path)
            fixed = max(fixed, path[: path.index("*")] if "*" in path else path, key=len)
    found: set[tuple[str, ...]] = set()
    waiting: list[tuple[str, ...]] = []
    async for namespace in under(store, fixed):
        cut = namespace if op.max_depth is None else namespace[: op.max_depth]
        if cut not in found and all(is_matched(namespace, condition) for condition in conditions):
            waiting.append(namespace)
        if len(waiting) == _AT_ONCE:
            found |= await _living(store, waiting, op.max_depth)
            waiting = []
    found |= await _living(store, waiting, op.max_depth)
    return sorted(found)[op.offset : op.offset + op.limit]


async def _living(
    store: ExtendedStore, namespaces: Sequence[tuple[str, ...]], depth: int | None
) -> set[tuple[str, ...]]:
    """The namespaces that have an item, cut to a depth."""
    living = await asyncio.gather(*(_has_item(store, agent_of_namespace(namespace)) for namespace in namespaces))
    return {namespace[:depth] for namespace, lives in zip(namespaces, living, strict=True) if lives}


async def _has_item(store: ExtendedStore, agent_id: str) -> bool:
    async for document in documents_of(store, agent_id, 1):
        if not is_expired(document):
            return True
    return False


async def sweep(store: ExtendedStore) -> int:
    removed = 0
    async for session in store.iter_sessions(template_id=TEMPLATE):
        agent_id, stop = session.agent_id, expiry_key(now_ms() + 1, "")
        async for page in _due(store, agent_id, stop):
            for key in page:
                removed += await _expire(store, agent_id, key)
    return removed


async def _due(store: ExtendedStore, agent_id: str, stop: str) -> AsyncIterator[Sequence[str]]:
    """The keys of all expiries before a time, page by page."""
    cursor = None
    while True:
        page = await store.list_document_keys(agent_id, EXPIRING, stop=stop, limit=STEP, cursor=cursor)
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return


async def _expire(store: ExtendedStore, agent_id: str, key: str) -> int:
    """Remove an expired item; one that was put or read meanwhile stays, and has another expiry."""
    found = await store.load_document(agent_id, ITEMS, key.partition("/")[2])
    gone: list[DocumentWrite] = [DeleteDocument(EXPIRING, key)]
    stored: Any = found.value if found is not None else None
    is_due = found is not None and stored["expires"] is not None and expiry_key(stored["expires"], found.key) == key
    if found is not None and is_due:
        gone.append(DeleteDocument(ITEMS, found.key, found.version))
    try:
        await store.write_documents(agent_id, gone)
    except ConflictError:
        return 0
    return int(is_due)
