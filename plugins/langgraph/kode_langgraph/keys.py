"""Names of agents, and keys of documents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import quote

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import get_checkpoint_id

from kode_core import CorruptRecordError, Document, ExtendedStore, InvalidArgumentError, agent_key

__all__ = ["TEMPLATE", "agent_of", "config_of", "document_pages", "key_of", "keys_of", "part_of", "place_of"]

TEMPLATE: Final = "langgraph"
"""The template of the agents that are threads, and the first part of their ids."""

_LONGEST_PART: Final = 80
_PAGE: Final = 1_000


def agent_of(thread: str) -> str:
    """The agent that a thread is."""
    return agent_key(TEMPLATE, thread)


def key_of(*parts: str) -> str:
    """A key of several parts, none of which has a slash; the order of ids of checkpoints is kept."""
    return "/".join(map(part_of, parts))


def part_of(text: str) -> str:
    """A part of a key: readable if it is short; otherwise a digest after a star, which is escaped in other parts."""
    raw = text.encode(errors="surrogatepass")
    escaped = quote(raw, safe="")
    return escaped if len(escaped) <= _LONGEST_PART else f"*{blake2b(raw, digest_size=20).hexdigest()}"


def place_of(config: RunnableConfig) -> tuple[str, str, str | None]:
    """The thread, the namespace and the checkpoint that a configuration names.

    Raises:
        InvalidArgumentError: it names no thread.
    """
    named = config.get("configurable") or {}
    if "thread_id" not in named:
        raise InvalidArgumentError('the config names no thread: give {"configurable": {"thread_id": "…"}}')
    return str(named["thread_id"]), str(named.get("checkpoint_ns") or ""), get_checkpoint_id(config)


def config_of(thread: str, ns: str, checkpoint_id: str) -> RunnableConfig:
    """The configuration that names a checkpoint."""
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}}


async def keys_of(store: ExtendedStore, agent_id: str, collection: str, prefix: str = "") -> AsyncIterator[str]:
    """All keys of a prefix, page by page."""
    cursor = None
    while True:
        page = await store.list_document_keys(agent_id, collection, prefix=prefix, limit=_PAGE, cursor=cursor)
        for key in page:
            yield key
        cursor = page.next_cursor
        if cursor is None:
            return


async def document_pages(
    store: ExtendedStore, agent_id: str, collection: str, *, limit: int = _PAGE, **span: Any
) -> AsyncIterator[Sequence[Document]]:
    """The documents of a range, page by page.

    Raises:
        CorruptRecordError: one of them cannot be read.
    """
    cursor = None
    while True:
        page = await store.list_documents(agent_id, collection, limit=limit, cursor=cursor, **span)
        if page.left_out:
            raise CorruptRecordError(page.left_out[0], "a document of LangGraph's cannot be read")
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return
