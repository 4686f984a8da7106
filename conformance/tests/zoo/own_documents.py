"""Stores with faults in documents of the caller's own: their values and names (DOC-1)."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kode_conformance.context import Context
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, mutant
from conformance.tests.zoo.witnesses import restart, seen
from kode_core.batch import Batch, Doc, DocKind, DocWrite, Outcome
from kode_core.layers import Layer
from kode_core.model import Document
from kode_core.store import EngineStore

GIVE_WAY = 5


async def give_way() -> None:
    """Let others have their turn."""
    for _ in range(GIVE_WAY):
        await asyncio.sleep(0)


async def value_of(store: Any, key: str = "k", collection: str = "c", agent_id: str = "a") -> Any:
    """The value of a document, or None."""
    found = await store.load_document(agent_id, collection, key)
    return found and found.value


# --- values and names -------------------------------------------------------------------------------------------------


class _Values(EngineStore):
    """Changes a value before it is put."""

    def kept(self, value: Any) -> Any:
        """The value that is stored instead."""
        raise NotImplementedError

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **how: Any) -> str:
        return await super().put_document(agent_id, collection, key, self.kept(value), **how)


@mutant(
    "DOC-1",
    killed_by="documents_keep_any_value",
    source="JSON.parse and JSON.stringify: 1.0 comes back as 1",
    witness=seen(lambda s: _put(s, "a", "c", "k", 1.0), lambda s: value_of(s)),
)
class WholeNumbersAreIntegers(_Values):
    """Stores a float without a fraction as an integer."""

    def kept(self, value: Any) -> Any:
        return int(value) if type(value) is float and value.is_integer() and abs(value) < 2**53 else value


@mutant(
    "DOC-1",
    killed_by="documents_keep_any_value",
    source="PostgreSQL: jsonb keeps the keys of an object in an order of its own",
    witness=seen(lambda s: _put(s, "a", "c", "k", {"b": 1, "a": 2}), lambda s: _order(s)),
)
class SortsTheKeysOfObjects(_Values):
    """Stores the keys of an object by their length and their text."""

    def kept(self, value: Any) -> Any:
        if type(value) is not dict or not all(type(key) is str for key in value):
            return value
        return {key: value[key] for key in sorted(value, key=lambda key: (len(key), key))}


async def _order(store: Any) -> list[str]:
    return list(await value_of(store))


@mutant(
    "DOC-1",
    killed_by="documents_refuse_what_is_no_json",
    source="json.dumps: a tuple is stored as a list",
    witness=seen(lambda s: _put(s, "a", "c", "k", (1,)), lambda s: value_of(s)),
)
class TakesTuplesForLists(_Values):
    """Stores a tuple as a list."""

    def kept(self, value: Any) -> Any:
        return [*value] if type(value) is tuple else value


class _Keys(Layer):
    """Gives documents other keys."""

    def kept(self, key: str) -> str:
        """The key that is stored instead."""
        raise NotImplementedError

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([self._renamed(batch) for batch in batches])

    def _renamed(self, batch: Batch) -> Batch:
        writes: dict[Any, DocWrite] = {}
        for write in batch.docs:
            if write.kind == DocKind.DOCUMENTS:
                key = self.kept(write.key)
                write = replace(write, key=key, doc=write.doc and replace(write.doc, key=key))
            writes[write.kind, write.key] = write
        return replace(batch, docs=tuple(writes.values()))

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        if kind == DocKind.DOCUMENTS and key is not None:
            key = self.kept(key)
        return await super().docs(agent_id, kind, key)


def _two_keys(one: str, two: str) -> Any:
    return seen(
        lambda s: _put(s, "a", "c", one, 1),
        lambda s: _put(s, "a", "c", two, 2),
        lambda s: value_of(s, one),
        lambda s: s.list_document_keys("a", "c"),
    )


async def _put(store: Any, *args: Any) -> None:
    """Put a document, and forget its version."""
    await store.put_document(*args)


@mutant(
    "DOC-1",
    killed_by="names_of_documents_are_apart",
    source="MySQL: utf8mb4_general_ci as the collation of the key",
    witness=_two_keys("K", "k"),
)
class KeysWithoutCase(_Keys):
    """Takes keys that differ in case for one."""

    def kept(self, key: str) -> str:
        collection, _, rest = key.partition("/")
        return f"{collection}/{rest.lower()}"


@mutant(
    "DOC-1",
    killed_by="names_of_documents_are_apart",
    source="macOS: file names in a normal form of Unicode",
    witness=_two_keys("é", "e\u0301"),
)
class KeysInANormalForm(_Keys):
    """Takes keys for one that Unicode normalises to one text."""

    def kept(self, key: str) -> str:
        return unicodedata.normalize("NFC", key)


@mutant(
    "DOC-1",
    killed_by="names_of_documents_are_apart",
    source="SQL: CHAR(n) ignores spaces at the end",
    witness=_two_keys("k", "k "),
)
class KeysWithoutSpacesAtTheEnd(_Keys):
    """Takes keys for one that differ in spaces at their end."""

    def kept(self, key: str) -> str:
        return key.rstrip(" ") if not key.endswith("/ ") else key


@mutant(
    "DOC-1",
    killed_by="names_of_documents_are_apart",
    source="a primary key of (agent, key) in one table for all collections",
    witness=seen(
        lambda s: _put(s, "a", "c", "k", 1),
        lambda s: _put(s, "a", "C", "k", 2),
        lambda s: value_of(s),
        lambda s: value_of(s, collection="C"),
    ),
)
class CollectionsWithoutCase(_Keys):
    """Takes collections that differ in case for one."""

    def kept(self, key: str) -> str:
        collection, _, rest = key.partition("/")
        return f"{collection.lower()}/{rest}"


@mutant(
    "DOC-1",
    killed_by="wrong_names_of_documents_are_refused",
    source="MySQL without strict mode: VARCHAR(400) cuts what is longer",
    witness=seen(lambda s: _put(s, "a", "c", "x" * 500, 1), lambda s: s.list_document_keys("a", "c")),
)
class CutsLongKeys(EngineStore):
    """Puts a document with a key that is too long under its beginning."""

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **how: Any) -> str:
        if type(key) is str and key.isascii():
            key = key[:400]
        return await super().put_document(agent_id, collection, key, value, **how)


async def _version_moves(ctx: Context) -> object:
    before = await ctx.store.load_version("a")
    await ctx.store.put_document("a", "c", "k", 1)
    return before == await ctx.store.load_version("a")


@mutant(
    "DOC-1",
    killed_by="documents_are_apart_from_all_other_kinds",
    source="one ETag and one updated_at for all that an agent has",
    witness=_version_moves,
)
class DocumentsMoveTheVersion(EngineStore):
    """Gives the agent another version when a document is put."""

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **how: Any) -> str:
        version = await super().put_document(agent_id, collection, key, value, **how)
        await self.append_messages(agent_id, [])
        return version


async def _whole_seconds(ctx: Context) -> object:
    for i in range(4):
        await ctx.store.put_document("a", "c", f"k{i}", 1)
        await asyncio.sleep(0.003)
    return all(one.updated_at % 1000 == 0 for one in await ctx.store.list_documents("a", "c"))


@mutant(
    "DOC-1",
    killed_by="a_document_has_the_time_of_its_put",
    source="SQL: CURRENT_TIMESTAMP has whole seconds",
    witness=_whole_seconds,
)
class TimesOfWholeSeconds(Layer):
    """Stores the time of a document in whole seconds."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([replace(batch, docs=tuple(map(self._coarse, batch.docs))) for batch in batches])

    def _coarse(self, write: DocWrite) -> DocWrite:
        if write.kind != DocKind.DOCUMENTS or write.doc is None:
            return write
        return replace(write, doc=replace(write.doc, time=write.doc.time // 1000 * 1000))


@mutant(
    "DOC-1",
    killed_by="documents_survive_a_restart",
    source="tombstones that are kept in memory until a compaction that never comes",
    on=OnJson,
    witness=seen(
        lambda s: _put(s, "a", "c", "k", 1),
        lambda s: s.delete_document("a", "c", "k"),
        lambda s: value_of(s),
        restart,
        lambda s: value_of(s),
    ),
)
class RemembersDeletesInMemory(EngineStore):
    """Remembers in memory alone that a document was deleted."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._gone: set[str] = set()

    async def delete_document(self, agent_id: str, collection: str, key: str, **how: Any) -> None:
        found = await self.load_document(agent_id, collection, key)
        if found is None or how:
            return await super().delete_document(agent_id, collection, key, **how)
        self._gone.add(found.version)
        return None

    async def load_document(self, agent_id: str, collection: str, key: str) -> Document | None:
        found = await super().load_document(agent_id, collection, key)
        return None if found is None or found.version in self._gone else found

    async def iter_documents(self, agent_id: str, collection: str, **how: Any) -> AsyncIterator[Document]:  # type: ignore[override]
        async for found in super().iter_documents(agent_id, collection, **how):
            if found.version not in self._gone:
                yield found
