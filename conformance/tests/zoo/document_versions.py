"""Stores with faults in versions of documents, and in writes of several (DOC-2 and DOC-3)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, ClassVar

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, mutant
from conformance.tests.zoo.own_documents import give_way, value_of
from kode_core.batch import Batch, DocWrite, Outcome
from kode_core.errors import ConflictError
from kode_core.jsonvalue import encode_json
from kode_core.layers import Layer
from kode_core.model import ABSENT, DeleteDocument, Document, DocumentWrite, PutDocument
from kode_core.store import EngineStore


async def _equal_puts(ctx: Context) -> object:
    return await ctx.store.put_document("a", "c", "k", 1) == await ctx.store.put_document("a", "c", "k", 1)


@mutant(
    "DOC-2",
    killed_by="versions_of_documents_never_return",
    source="an ETag that is the digest of the value",
    witness=_equal_puts,
)
class VersionIsTheDigestOfTheValue(EngineStore):
    """Gives equal values equal versions."""

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **how: Any) -> str:
        await super().put_document(agent_id, collection, key, value, **how)
        return self._digest(value)

    async def load_document(self, agent_id: str, collection: str, key: str) -> Document | None:
        found = await super().load_document(agent_id, collection, key)
        return found and replace(found, version=self._digest(found.value))

    def _digest(self, value: Any) -> str:
        return blake2b(encode_json(value, "value").encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


async def _put_after_a_delete(ctx: Context) -> object:
    version = await ctx.store.put_document("a", "c", "k", 1)
    await ctx.store.delete_document("a", "c", "k")
    return version == await ctx.store.put_document("a", "c", "k", 2)


@mutant(
    "DOC-2",
    killed_by="versions_of_documents_never_return",
    source="version INTEGER DEFAULT 1, and version + 1 in each update",
    witness=_put_after_a_delete,
)
class VersionsBeginAnewAfterADelete(EngineStore):
    """Numbers the versions of a document from 1, also after it was deleted."""

    _counts: ClassVar[dict[Any, int]] = defaultdict(int)

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **how: Any) -> str:
        if await super().load_document(agent_id, collection, key) is None:
            self._counts[agent_id, collection, key] = 0
        version = await super().put_document(agent_id, collection, key, value, **how)
        if how.get("expect") is not None:
            return version
        self._counts[agent_id, collection, key] += 1
        return f"{self._counts[agent_id, collection, key]:032x}"

    async def load_document(self, agent_id: str, collection: str, key: str) -> Document | None:
        found = await super().load_document(agent_id, collection, key)
        return found and replace(found, version=f"{self._counts[agent_id, collection, key]:032x}")


def _conflict_of(call: Callable[[Any, str], Any]) -> Any:
    """A witness of a call that demands an older version."""

    async def witness(ctx: Context) -> object:
        stale = await ctx.store.put_document("a", "c", "k", 1)
        present = await ctx.store.put_document("a", "c", "k", 2)
        try:
            await call(ctx.store, stale)
        except ConflictError as exc:
            return exc.version == present
        return "written"

    return witness


@mutant(
    "DOC-2",
    killed_by="a_document_of_another_version_is_not_written",
    source="If-Match that is looked at by PUT and not by DELETE",
    witness=_conflict_of(lambda s, version: s.delete_document("a", "c", "k", expect=version)),
)
class DeletesDemandNothing(EngineStore):
    """Deletes a document whatever version the delete demands."""

    async def delete_document(self, agent_id: str, collection: str, key: str, **how: Any) -> None:
        how.pop("expect", None)
        await super().delete_document(agent_id, collection, key, **how)


@mutant(
    "DOC-2",
    killed_by="a_document_of_another_version_is_not_written",
    source="INSERT … ON CONFLICT DO UPDATE for a document that must not exist",
    witness=_conflict_of(lambda s, version: s.put_document("a", "c", "k", 3, expect=ABSENT)),
)
class AbsentIsAnything(Layer):
    """Puts a document that must not exist over one that does."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([replace(batch, docs=tuple(map(self._eased, batch.docs))) for batch in batches])

    def _eased(self, write: DocWrite) -> DocWrite:
        is_absent = write.expect is not None and not write.expect.digest
        return replace(write, expect=None) if is_absent else write


@mutant(
    "DOC-2",
    killed_by="a_document_of_another_version_is_not_written",
    source="an error that is made of the arguments alone",
    witness=_conflict_of(lambda s, version: s.put_document("a", "c", "k", 3, expect=version)),
)
class ConflictsNameTheDemand(EngineStore):
    """Names the demanded version in the error, and not the present one."""

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **how: Any) -> str:
        try:
            return await super().put_document(agent_id, collection, key, value, **how)
        except ConflictError:
            raise ConflictError(agent_id, how["expect"], "another version") from None


async def _two_puts(ctx: Context) -> object:
    stores = [ctx.store, await ctx.another()]
    calls = [store.put_document("a", "c", "k", i, expect=ABSENT) for i, store in enumerate(stores)]
    return sum(isinstance(one, ConflictError) for one in await asyncio.gather(*calls, return_exceptions=True))


class _Compares(EngineStore):
    """Compares the version of a document by itself, and puts it then."""

    pause_s = 0.0

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **how: Any) -> str:
        expect = how.get("expect")
        if type(expect) is not str or (expect != ABSENT and len(expect) != 32):
            return await super().put_document(agent_id, collection, key, value, **how)
        found = await self.load_document(agent_id, collection, key)
        version = ABSENT if found is None else found.version
        if version != expect:
            raise ConflictError(agent_id, version, "another version")
        await give_way()
        await asyncio.sleep(self.pause_s)
        return await super().put_document(agent_id, collection, key, value, **{**how, "expect": None})


@mutant(
    "DOC-2",
    killed_by="one_of_those_that_demand_a_document_wins",
    source="SELECT version, compare, UPDATE: without a condition in the UPDATE",
    witness=_two_puts,
)
class ComparesDocumentsBeforeItWrites(_Compares):
    """Compares the version of a document before the write, and not in it."""


@mutant(
    "DOC-2",
    killed_by="counters_by_compare_and_set_lose_nothing",
    source="an asyncio.Lock around SELECT, compare and UPDATE",
    witness=_two_puts,
)
class ComparesUnderALockOfTheInstance(_Compares):
    """Compares and puts a document under a lock that other instances do not know."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._own = asyncio.Lock()

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **how: Any) -> str:
        async with self._own:
            return await super().put_document(agent_id, collection, key, value, **how)


async def _other_process_counts(ctx: Context) -> object:
    await ctx.store.put_document("a", "c", "n", 0)
    gate = ctx.folder / "gate"
    processes = [await ctx.process("count_documents", "a", 30, str(gate)) for _ in range(2)]
    for process in processes:
        await process.line()
    gate.touch()
    done = [(await process.lines())[-1]["done"] for process in processes]
    return sum(done) == await value_of(ctx.store, "n")


@mutant(
    "DOC-2",
    killed_by="processes_count_by_compare_and_set",
    source="a threading.Lock around load, compare and save",
    on=OnJson,
    slow=True,
    witness=_other_process_counts,
)
class ComparesUnderALockOfTheProcess(_Compares):
    """Compares and puts a document under a lock that other processes do not know."""

    pause_s = 0.002
    _lock: ClassVar[dict[Any, asyncio.Lock]] = defaultdict(asyncio.Lock)

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **how: Any) -> str:
        async with self._lock[asyncio.get_running_loop()]:
            return await super().put_document(agent_id, collection, key, value, **how)


# --- several at once --------------------------------------------------------------------------------------------------


async def _refused_batch(ctx: Context) -> object:
    await ctx.store.put_document("a", "c", "there", 1)
    puts = [PutDocument("c", f"k{i}", i) for i in range(120)]
    try:
        await ctx.store.write_documents("a", [*puts, PutDocument("c", "there", 2, ABSENT)])
    except ConflictError:
        return len(await ctx.store.list_document_keys("a", "c", limit=500))
    return "written"


@mutant(
    "DOC-3",
    killed_by="documents_are_written_together_or_not_at_all",
    source="DynamoDB adapters: a TransactWriteItems for each 100 items",
    witness=_refused_batch,
)
class WritesDocumentsInBatches(EngineStore):
    """Commits many documents in batches of a hundred."""

    async def write_documents(self, agent_id: str, documents: Sequence[DocumentWrite], **how: Any) -> list[str]:
        if not isinstance(documents, list) or len(documents) <= 100:
            return await super().write_documents(agent_id, documents, **how)
        versions: list[str] = []
        for start in range(0, len(documents), 100):
            versions += await super().write_documents(agent_id, documents[start : start + 100], **how)
        return versions


async def _refused_turn(ctx: Context) -> object:
    await ctx.store.put_document("a", "c", "k", 1)
    try:
        await ctx.store.save_turn("a", append=samples.messages(1), documents=[DeleteDocument("c", "k", ABSENT)])
    except ConflictError:
        return len(await ctx.store.load_messages("a"))
    return "written"


@mutant(
    "DOC-3",
    killed_by="documents_are_written_together_or_not_at_all",
    source="a commit for the turn, and one for the documents",
    witness=_refused_turn,
)
class DocumentsFollowTheTurn(EngineStore):
    """Writes the documents of a turn once the turn is saved."""

    async def save_turn(self, agent_id: str, *, documents: Any = (), **parts: Any) -> Any:
        offsets = await super().save_turn(agent_id, **parts)
        if documents:
            await self.write_documents(agent_id, documents, fence=parts.get("fence"))
        return offsets


async def _half_a_write(ctx: Context) -> object:
    write = asyncio.ensure_future(ctx.store.write_documents("a", [PutDocument("c", f"k{i}", 1) for i in range(4)]))
    seen_counts = set()
    while not write.done():
        seen_counts.add(len(await ctx.store.list_document_keys("a", "c")))
        await asyncio.sleep(0)
    return bool(seen_counts - {0, 4})


class _OneByOne(EngineStore):
    async def write_documents(self, agent_id: str, documents: Sequence[DocumentWrite], **how: Any) -> list[str]:
        is_plain = isinstance(documents, (list, tuple)) and all(
            getattr(one, "expect", "x") is None for one in documents
        )
        if not is_plain or len({(one.collection, one.key) for one in documents}) < len(documents):
            return await super().write_documents(agent_id, documents, **how)
        versions: list[str] = []
        for one in documents:
            versions += await super().write_documents(agent_id, [one], **how)
            await give_way()
        return versions


@mutant(
    "DOC-3",
    killed_by="no_one_sees_a_part_of_a_write",
    source="executemany in autocommit mode",
    witness=_half_a_write,
)
class WritesDocumentsOneByOne(_OneByOne):
    """Commits each document of a call that demands no versions by itself."""


@mutant(
    "DOC-3",
    killed_by="documents_killed_at_their_calls",
    source="a file for each document",
    on=OnJson,
    slow=True,
    witness=_half_a_write,
)
class WritesAFileForEachDocument(_OneByOne):
    """Writes each document of a call to its file, one after the other."""
