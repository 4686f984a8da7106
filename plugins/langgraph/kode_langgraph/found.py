"""Finding the documents of checkpoints."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import get_checkpoint_id

from kode_core import AgentInfo, CorruptRecordError, Document, ExtendedStore, StoreBusyError
from kode_langgraph.keys import TEMPLATE, document_pages, key_of, keys_of, part_of
from kode_langgraph.packing import guard, positions

__all__ = [
    "CHECKPOINTS",
    "RUNS",
    "WRITES",
    "busy",
    "just",
    "latest",
    "new_info",
    "newest_first",
    "one",
    "record_of",
    "runs_of",
    "stored_of",
]

CHECKPOINTS: Final = "checkpoints"
WRITES: Final = "writes"
RUNS: Final = "runs"

_FIELDS: Final = frozenset({"ns", "parent", "run", "deltas", "checkpoint", "metadata", "values"})


async def new_info(store: ExtendedStore, agent_id: str, thread: str) -> AgentInfo | None:
    """The info of a new thread; None if the agent has one, as after a crash or of the caller's own."""
    if await store.exists(agent_id):
        return None
    return AgentInfo(agent_id=agent_id, template_id=TEMPLATE, metadata={"threadId": thread})


async def latest(store: ExtendedStore, agent_id: str, ns: str) -> Document | None:
    page = await store.list_documents(agent_id, CHECKPOINTS, prefix=key_of(ns, ""), reverse=True, limit=1)
    if page.left_out:
        raise CorruptRecordError(page.left_out[0], "the newest checkpoint cannot be read")
    return page[0] if page else None


async def one(store: ExtendedStore, agent_id: str, ns: str, checkpoint_id: str | None) -> Document | None:
    if checkpoint_id:
        return await store.load_document(agent_id, CHECKPOINTS, key_of(ns, checkpoint_id))
    return await latest(store, agent_id, ns)


async def newest_first(
    store: ExtendedStore, agent_id: str, config: RunnableConfig | None, before: RunnableConfig | None
) -> AsyncIterator[Document]:
    """The documents of a thread's checkpoints that a listing is about."""
    wanted = part_of(get_checkpoint_id(config) or "") if config else ""
    last = part_of(get_checkpoint_id(before) or "") if before else ""
    ns = config["configurable"].get("checkpoint_ns") if config else None
    if ns is not None and not wanted:
        prefix = key_of(ns, "")
        span = {"stop": prefix + last} if last else {}
        async for page in document_pages(store, agent_id, CHECKPOINTS, limit=50, prefix=prefix, reverse=True, **span):
            for document in page:
                yield document
        return
    keys = [key async for key in keys_of(store, agent_id, CHECKPOINTS, "" if ns is None else key_of(ns, ""))]
    for key in sorted(keys, key=_id_in, reverse=True):
        if (not wanted or _id_in(key) == wanted) and (not last or _id_in(key) < last):
            found = await store.load_document(agent_id, CHECKPOINTS, key)
            if found is not None:
                yield found


async def just(thread: str) -> AsyncGenerator[str]:
    yield thread


def _id_in(key: str) -> str:
    """The part of the checkpoint in a key of the collection ``checkpoints``."""
    return key.partition("/")[2]


def stored_of(found: Document) -> dict[str, Any]:
    """The value of a checkpoint's document.

    Raises:
        CorruptRecordError: it is not one that this package wrote.
    """
    stored: Any = found.value
    with guard(record_of(found)):
        missing = _FIELDS - stored.keys()
        if missing or not all(type(channel) is str for channel, _ in stored["values"]):
            raise ValueError(f"it has no {', '.join(sorted(missing)) or 'channels'}")
        return cast("dict[str, Any]", stored)


def runs_of(found: Document) -> list[tuple[int, int]]:
    """The items that a checkpoint refers to."""
    stored = stored_of(found)
    with guard(record_of(found)):
        return [run for _, packed in stored["values"] for run in positions(packed)]


def record_of(found: Document) -> str:
    return f"document {found.key!r} of collection {found.collection!r}"


def busy(thread: str) -> StoreBusyError:
    return StoreBusyError(f"other processes kept writing to the thread {thread!r:.80}; try again")
