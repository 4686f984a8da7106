"""Where entries are: a document for each entry of each conversation, in agents that have nothing else.

Pydantic AI asks for an entry by its id alone. The documents are spread over :data:`SHARDS` agents without info. They
are written before the messages that they name, so that a crash leaves a document without its message, and never a
message without its document; a reader compares the id of the message that it finds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final

from kode_core import DeleteDocument, DocumentWrite, ExtendedStore, PutDocument, agent_key

__all__ = ["SHARDS", "EntryIndex"]

SHARDS: Final = 16
"""The number of agents that have the documents."""
_COLLECTION: Final = "entries"
_STEP: Final = 1_000


class EntryIndex:
    """Finds the agents and the positions of entries."""

    def __init__(self, store: ExtendedStore) -> None:
        self._store = store

    async def put(self, agent_id: str, positions: Mapping[str, int]) -> None:
        """Say at which positions of an agent the entries will be."""
        await self._write(
            (entry_id, PutDocument(_COLLECTION, _key(entry_id, agent_id), {"agent": agent_id, "position": position}))
            for entry_id, position in positions.items()
        )

    async def remove(self, agent_id: str, entry_ids: Iterable[str]) -> None:
        """Forget the entries of an agent."""
        await self._write((id_, DeleteDocument(_COLLECTION, _key(id_, agent_id))) for id_ in entry_ids)

    async def places(self, entry_id: str, near: str | None = None) -> AsyncIterator[tuple[str, int]]:
        """The agents that may have an entry, with its position there; the agent *near* comes first."""
        shard = _shard(entry_id)
        if near is not None:
            found = await self._store.load_document(shard, _COLLECTION, _key(entry_id, near))
            if found is not None:
                yield _place(found.value)
        async for document in self._store.iter_documents(shard, _COLLECTION, prefix=_key(entry_id, "")):
            if (place := _place(document.value))[0] != near:
                yield place

    async def _write(self, writes: Iterable[tuple[str, DocumentWrite]]) -> None:
        """Write documents, in a commit for each agent and step."""
        shards = dict[str, list[DocumentWrite]]()
        for entry_id, write in writes:
            shards.setdefault(_shard(entry_id), []).append(write)
        for first in range(0, max(map(len, shards.values()), default=0), _STEP):
            steps = [(shard, part) for shard, found in shards.items() if (part := found[first : first + _STEP])]
            await asyncio.gather(*(self._store.write_documents(shard, part) for shard, part in steps))


def _digest(entry_id: str) -> str:
    return blake2b(entry_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _shard(entry_id: str) -> str:
    return agent_key("pydantic-ai-entries", int(_digest(entry_id)[0], 16) % SHARDS)


def _key(entry_id: str, agent_id: str) -> str:
    return f"{_digest(entry_id)}:{agent_id}"


def _place(value: Any) -> tuple[str, int]:
    return value["agent"], value["position"]
