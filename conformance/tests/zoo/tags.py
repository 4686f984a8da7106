"""Stores with faults in the tags of documents, and in the searches by them (DOC-7 and DOC-8)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kode_conformance.checks.damage import damaging
from kode_conformance.checks.tags import found_by
from kode_conformance.context import Context
from kode_conformance.instruments.costs import memory_of
from kode_conformance.processes.remote import another_process
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, OnSqlite, mutant
from conformance.tests.zoo.witnesses import seen
from kode_core import create_extended_store
from kode_core.batch import Batch, DocKind, DocQuery, FoundDoc, Outcome
from kode_core.layers import Layer
from kode_core.model import AgentInfo, FoundDocument, PutDocument
from kode_core.query import Page
from kode_core.store import EngineStore
from kode_core.tagged import find_docs

RUN = {"run": "r1"}


def finds(*calls: Any, **given: Any) -> Any:
    """A witness of the documents with the tag run=r1, unless others are given, after some calls."""
    tags = given.pop("tags", RUN)
    return seen(*(_quiet(call) for call in calls), lambda s: found_by(s, tags, **given))


def _quiet(call: Any) -> Any:
    """The call without its result, which is a version, and so differs each time."""

    async def quiet(store: Any) -> None:
        await call(store)

    return quiet


def put(key: str = "k", agent_id: str = "a", **tags: str) -> Any:
    """A call that puts a document with the tags."""
    return lambda s: s.put_document(agent_id, "c", key, key, tags=tags)


def _retagged(batch: Batch, change: Any) -> Batch:
    """The batch with other terms of its documents."""
    docs = (
        write if write.doc is None else replace(write, doc=replace(write.doc, terms=change(write.doc)))
        for write in batch.docs
    )
    return replace(batch, docs=tuple(docs))


# --- what becomes of tags ---------------------------------------------------------------------------------------------


@mutant(
    "DOC-7",
    killed_by="any_tags_come_back_and_are_found",
    source="an index of name + '=' + value",
    witness=finds(put(a="b\x01c"), tags={"a": "b"}),
)
class JoinsTagsWithASeparator(EngineStore):
    """Keeps values only up to a control character, which separates them in its index."""

    async def write_documents(self, agent_id: str, documents: Any, **how: Any) -> list[str]:
        changed = [
            replace(one, tags={name: value[:200] for name, value in one.tags.items()})
            if isinstance(one, PutDocument) and type(one.tags) is dict and _are_texts(one.tags)
            else one
            for one in documents
        ]
        return await super().write_documents(agent_id, changed, **how)

    async def put_document(self, *args: Any, tags: Any = None, **how: Any) -> str:
        if type(tags) is dict and _are_texts(tags):
            tags = {name: value.partition("\x01")[0] for name, value in tags.items()}
        return await super().put_document(*args, tags=tags, **how)


def _are_texts(tags: dict[Any, Any]) -> bool:
    return all(type(name) is str and type(value) is str and len(value) <= 256 for name, value in tags.items())


@mutant(
    "DOC-7",
    killed_by="a_write_replaces_the_tags",
    source="INSERT OR IGNORE of the new tags, without a DELETE of the old ones",
    witness=finds(put(run="r1"), put(run="r2")),
)
class KeepsTheTagsOfThePutBefore(Layer):
    """Finds a document also by the tags that it had before the last put."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._terms: dict[tuple[str, str], dict[str, None]] = {}

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        def change(batch: Batch) -> Batch:
            def more(doc: Any) -> tuple[str, ...]:
                known = self._terms.setdefault((batch.agent_id, doc.key), {})
                known.update(dict.fromkeys(doc.terms))
                return tuple(known)

            return _retagged(batch, more)

        return await super().commit([change(batch) for batch in batches])


@mutant(
    "DOC-7",
    killed_by="a_write_replaces_the_tags",
    source="tags as a field of their own, which a put without tags leaves alone",
    witness=finds(put(run="r1"), lambda s: s.put_document("a", "c", "k", 1)),
)
class APutWithoutTagsKeepsThem(EngineStore):
    """Leaves the tags of a document as they are when a put has none."""

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **how: Any) -> str:
        if how.get("tags") is None:
            there = await self.load_document(agent_id, collection, key)
            how["tags"] = there and there.tags
        return await super().put_document(agent_id, collection, key, value, **how)


@mutant(
    "DOC-7",
    killed_by="tags_go_along_with_copies",
    source="a fork that copies the rows of documents alone",
    witness=finds(
        put(run="r1"),
        lambda s: s.save_info("a", AgentInfo(agent_id="a", template_id="t")),
        lambda s: s.fork("a", "f", documents=True),
    ),
)
class ForksForgetTags(Layer):
    """Finds documents of forks by no tags."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        plain = [_retagged(one, lambda _: ()) if one.expect_updated_at == 0 else one for one in batches]
        return await super().commit(plain)


@mutant(
    "DOC-7",
    killed_by="wrong_tags_are_refused",
    source="str(value) of whatever a tag is",
    witness=seen(lambda s: s.put_document("a", "c", "k", 1, tags={"a": 1})),
)
class TakesAnyTags(EngineStore):
    """Makes texts of the values of tags."""

    async def put_document(self, *args: Any, tags: Any = None, **how: Any) -> str:
        if type(tags) is dict:
            tags = {name: str(value)[:256] for name, value in tags.items()}
        return await super().put_document(*args, tags=tags, **how)


async def _copied(ctx: Context) -> object:
    await ctx.store.put_document("a", "c", "t3", 1, tags=RUN)
    copy = await ctx.restored(await ctx.store.backup(ctx.folder / "copy"))
    return await found_by(copy, RUN)


@mutant(
    "DOC-7",
    killed_by="a_backup_has_the_tags",
    source="a backup of a list of tables that was written before there were tags",
    on=OnJson,
    witness=_copied,
)
class BackupsForgetTags(EngineStore):
    """Leaves the tags of documents out of a backup."""

    async def backup(self, target: Any, **how: Any) -> Sequence[Path]:
        made = await super().backup(target, **how)
        async with create_extended_store(type="json", base_dir=str(made[0])) as copy:
            for agent_id in await copy.list(include_without_info=True):
                for one in await copy.list_documents(agent_id, "c", limit=1000):
                    await copy.put_document(agent_id, "c", one.key, one.value)
        return made


@mutant(
    "DOC-7",
    killed_by="a_query_gives_pages",
    source="a list of rows, as the driver returns it",
    witness=seen(lambda s: _type_of(s.query_documents("c", RUN))),
)
class QueriesGiveLists(EngineStore):
    """Returns a plain list when a search finds nothing."""

    async def query_documents(self, *args: Any, **given: Any) -> Any:
        page = await super().query_documents(*args, **given)
        return page if page or page.next_cursor or page.left_out else []


async def _type_of(call: Any) -> str:
    return type(await call).__name__


# --- searches ---------------------------------------------------------------------------------------------------------


@mutant(
    "DOC-8",
    killed_by="documents_are_found_by_all_their_tags",
    source="a filter for each tag in an OR",
    witness=finds(put(run="r1"), put("l", run="r1", n="1"), tags={"run": "r1", "n": "1"}),
)
class FindsByTheFirstTag(EngineStore):
    """Looks only at the first of the tags that are asked for."""

    async def query_documents(self, collection: Any, tags: Any, **given: Any) -> Page[FoundDocument]:
        page = await super().query_documents(collection, tags, **given)
        if type(tags) is not dict or given.get("cursor") is not None or len(tags) < 2:
            return page
        return await super().query_documents(collection, dict([*tags.items()][:1]), **given)


@mutant(
    "DOC-8",
    killed_by="documents_are_found_by_all_their_tags",
    source="an index of (term, key), without the agent in the order",
    witness=finds(put("z", "a", run="r1"), put("k", "b", run="r1")),
)
class OrdersFoundDocumentsByKey(Layer):
    """Orders the documents of a page by their keys."""

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        found = list(await super().find_docs(query))
        if len(found) < query.limit:
            found.sort(key=lambda one: one.doc.key, reverse=query.descending)
        return found


@mutant(
    "DOC-8",
    killed_by="DOC-2.random_histories_of_documents",
    source="an index of the newest value alone",
    witness=finds(put("k", run="r1"), put("l", run="r1")),
    also=("DOC-8.documents_are_found_by_all_their_tags",),
)
class FindsOneDocumentOfATag(Layer):
    """Finds at most one document of an agent."""

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        found = {one.agent_id: one for one in await super().find_docs(query)}
        return list(found.values())


@mutant(
    "DOC-8",
    killed_by="pages_of_tags_give_every_document_once",
    source="BETWEEN, which includes the last row of the page before",
    witness=finds(put("k", run="r1"), put("l", run="r1"), limit=1),
)
class PagesRepeatTheLastDocument(Layer):
    """Begins a page with the last document of the page before, when pages are longer than one document."""

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        found = list(await super().find_docs(query))
        if query.after is None or query.limit < 2:
            return found
        every = await super().find_docs(replace(query, after=None, limit=100_000))
        last = [one for one in every if (one.agent_id, one.doc.key) == query.after]
        return [*last, *found][: query.limit]


@mutant(
    "DOC-8",
    killed_by="wrong_searches_are_refused",
    source="LIMIT min(limit, 10000)",
    witness=seen(lambda s: s.query_documents("c", RUN, limit=20_000)),
)
class CutsTheLimitOfASearch(EngineStore):
    """Takes a limit that is too high for the highest one."""

    async def query_documents(self, collection: Any, tags: Any, **given: Any) -> Page[FoundDocument]:
        if type(given.get("limit")) is int:
            given["limit"] = min(given["limit"], 10_000)
        return await super().query_documents(collection, tags, **given)


async def _by_two_tags(ctx: Context) -> object:
    puts = [PutDocument("c", f"k{i:03}", i, tags={**RUN, "n": str(i)}) for i in range(501)]
    await ctx.store.write_documents("a", puts)
    return await found_by(ctx.store, {"n": "500", **RUN})


@mutant(
    "DOC-8",
    killed_by="pages_of_tags_give_every_document_once",
    source="Redis: ZRANGE of each tag with a limit, intersected in the client",
    witness=_by_two_tags,
)
class IntersectsPagesOfTags(EngineStore):
    """Finds by two tags only documents that are among the first 500 of the second one."""

    async def query_documents(self, collection: Any, tags: Any, **given: Any) -> Page[FoundDocument]:
        page = await super().query_documents(collection, tags, **given)
        if not page or len(tags) != 2:
            return page
        *_, last = tags.items()
        some = await super().query_documents(collection, dict([last]), limit=500, values=False)
        among = {(one.agent_id, one.key) for one in some}
        return Page([one for one in page if (one.agent_id, one.key) in among], page.next_cursor, page.left_out)


async def _second_page(ctx: Context) -> object:
    for key in "klmn":
        await ctx.store.put_document("a", "c", key, 1, tags=RUN)
    page = await ctx.store.query_documents("c", RUN, limit=2)
    await ctx.store.put_document("a", "c", "a", 1, tags=RUN)
    rest = await ctx.store.query_documents("c", RUN, limit=2, cursor=page.next_cursor)
    return [one.key for one in rest]


@mutant(
    "DOC-8",
    killed_by="pages_of_tags_while_others_write_have_no_gaps",
    source="OFFSET as the cursor",
    witness=_second_page,
)
class PagesOfTagsByOffset(Layer):
    """Counts the documents before a page, and leaves out as many."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._places: dict[Any, int] = {}

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        way = (query.terms, query.agent_id, query.descending)
        start = 0 if query.after is None else self._places.get((way, query.after))
        if start is None:
            return await super().find_docs(query)
        every = await super().find_docs(replace(query, after=None, limit=start + query.limit))
        found = every[start:]
        for place, one in enumerate(found, start + 1):
            self._places[way, (one.agent_id, one.doc.key)] = place
        return found


async def _looked_up_later(ctx: Context) -> object:
    await ctx.store.put_document("a", "c", "k", 0, tags=RUN)
    search = asyncio.ensure_future(ctx.store.query_documents("c", RUN))
    await asyncio.sleep(0.003)
    await ctx.store.put_document("a", "c", "k", 1)
    return [one.value for one in await search]


@mutant(
    "DOC-8",
    killed_by="writers_at_once_leave_the_tags_of_the_last",
    source="an index that is searched first, and documents that are read after it",
    witness=_looked_up_later,
)
class ReadsFoundDocumentsLater(Layer):
    """Reads the documents a moment after it found their keys, when they may have other tags."""

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        found = list[FoundDoc]()
        for one in await super().find_docs(query):
            await asyncio.sleep(0.01)
            for doc in await self.inner.docs(one.agent_id, DocKind.DOCUMENTS, one.doc.key):
                found.append(FoundDoc(one.agent_id, doc))
        return found


async def _in_another_process(ctx: Context) -> object:
    remote: Any = await another_process(ctx.harness, ctx.handle)
    try:
        await remote.put_document("a", "c", "k", 1, tags=RUN)
        first = await found_by(ctx.store, RUN)
        await remote.put_document("a", "c", "k", 1)
        return first, await found_by(ctx.store, RUN)
    finally:
        await remote.close()


@mutant(
    "DOC-8",
    killed_by="another_process_finds_the_same",
    source="an index of the tags in the memory of each process",
    on=OnSqlite,
    slow=True,
    witness=_in_another_process,
)
class FindsTheDocumentsOfThisProcess(Layer):
    """Finds the documents that this process put, and no others."""

    mine: set[tuple[str, str]] = set()  # noqa: RUF012 - of the process

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        self.mine.update((batch.agent_id, write.key) for batch in batches for write in batch.docs)
        return await super().commit(batches)

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        found = await super().find_docs(replace(query, limit=100_000))
        return [one for one in found if (one.agent_id, one.doc.key) in self.mine][: query.limit]


async def _left_out(ctx: Context) -> object:
    await ctx.store.put_document("a", "c", "k", {"text": "sound"}, tags=RUN)
    store, layer = await damaging(ctx)
    layer.verbs = frozenset({"find_docs"})
    return len((await store.query_documents("c", RUN)).left_out)


@mutant(
    "DOC-8",
    killed_by="a_damaged_document_is_left_out_of_searches",
    source="except ValueError: continue",
    witness=_left_out,
)
class LeavesOutDamagedFindsSilently(EngineStore):
    """Leaves damaged documents out of a search without naming them."""

    async def query_documents(self, collection: Any, tags: Any, **given: Any) -> Page[FoundDocument]:
        page = await super().query_documents(collection, tags, **given)
        page.left_out = ()
        return page


async def _memory_of_a_page(ctx: Context) -> object:
    puts = [PutDocument("c", f"k{i:04}", "x" * 2000, tags={**RUN, "all": "1"}) for i in range(1000)]
    await ctx.store.write_documents("a", puts)
    return await memory_of(lambda: ctx.store.query_documents("c", {**RUN, "all": "1"}, limit=3)) > 500_000


@mutant(
    "DOC-8",
    killed_by="a_page_of_tags_costs_what_it_contains",
    source="a search that loads all, filters and cuts",
    on=OnSqlite,
    witness=_memory_of_a_page,
)
class LoadsAllDocumentsOfATag(Layer):
    """Loads all documents of a tag for each page."""

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        every = await find_docs(self.inner, replace(query, limit=100_000))
        return list(every[: query.limit])
