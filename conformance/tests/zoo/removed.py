"""Stores that still give what was read before it was removed (DOC-1, LIFE-6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen
from kode_core.model import DeleteDocument, RecoveredFile
from kode_core.store import EngineStore


@mutant(
    "DOC-1",
    killed_by="QRY-8.what_was_read_before_its_removal_is_gone",
    source="a cache of documents, which the batch of writes does not know",
    witness=seen(
        lambda s: _there(s, put=True),
        lambda s: s.write_documents("a", [DeleteDocument("c", "k")]),
        lambda s: _there(s),
    ),
)
class RemembersDocumentsDeletedInABatch(EngineStore):
    """Gives a document that it loaded before, though write_documents deleted it."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._loaded: dict[tuple[str, str, str], Any] = {}
        self._deleted: set[tuple[str, str, str]] = set()

    async def load_document(self, agent_id: str, collection: str, key: str) -> Any:
        name = agent_id, collection, key
        found = await super().load_document(agent_id, collection, key)
        if found is None:
            return self._loaded.get(name) if name in self._deleted else None
        self._deleted.discard(name)
        self._loaded[name] = found
        return found

    async def write_documents(self, agent_id: str, documents: Sequence[Any], **how: Any) -> Any:
        written = await super().write_documents(agent_id, documents, **how)
        self._deleted |= {(agent_id, one.collection, one.key) for one in documents if isinstance(one, DeleteDocument)}
        return written


async def _there(store: Any, *, put: bool = False) -> bool:
    if put:
        await store.put_document("a", "c", "k", 1)
    return await store.load_document("a", "c", "k") is not None


@mutant(
    "LIFE-6",
    killed_by="QRY-8.what_was_read_before_its_removal_is_gone",
    source="a cache of files that is written through, and of which the job that prunes knows nothing",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered()),
        lambda s: s.load_recovered_files("a"),
        lambda s: s.prune("a", keep_recovered_files=0),
        lambda s: s.load_recovered_files("a"),
    ),
)
class RemembersPrunedFiles(EngineStore):
    """Gives the recovered files that it loaded before, though a prune by itself removed some of them."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._files: dict[str, list[RecoveredFile]] = {}
        self._pruned: set[str] = set()

    async def load_recovered_files(self, agent_id: str) -> list[RecoveredFile]:
        if agent_id in self._pruned:
            return list(self._files[agent_id])
        self._files[agent_id] = await super().load_recovered_files(agent_id)
        return list(self._files[agent_id])

    async def save_recovered_file(self, agent_id: str, file: RecoveredFile, **how: Any) -> None:
        await super().save_recovered_file(agent_id, file, **how)
        self._pruned.discard(agent_id)

    async def prune(self, agent_id: str, **what: Any) -> Any:
        result = await super().prune(agent_id, **what)
        if result.recovered_files and agent_id in self._files:
            self._pruned.add(agent_id)
        return result
