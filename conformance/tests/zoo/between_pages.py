"""Stores whose pages go on at the wrong place when the place itself has changed (QRY-5, QRY-6, DOC-4, DOC-8)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from kode_core.batch import DocKind
from kode_core.found import DocQuery, FoundDoc
from kode_core.layers import Layer
from kode_core.query import Page
from kode_core.store import EngineStore


class _ByPlace(EngineStore):
    """Has cursors that name an agent, which the next page looks for."""

    _names: ClassVar[dict[str, str]] = {}

    async def query_sessions(self, **filters: Any) -> Any:
        cursor = filters.get("cursor")
        page = await super().query_sessions(**filters)
        if cursor in self._names and not await self.exists(self._names[cursor]):
            page = Page(list(page)[1:], page.next_cursor, page.left_out)
        if page.next_cursor is not None and page:
            self._names[page.next_cursor] = page[-1].agent_id
        return page


async def _deleted_between(ctx: Context) -> object:
    for agent in "abcd":
        await ctx.store.save_info(agent, samples.info(agent))
    page = await ctx.store.query_sessions(limit=2, order="asc")
    await ctx.store.delete("b")
    return [s.agent_id for s in await ctx.store.query_sessions(limit=2, order="asc", cursor=page.next_cursor)]


@mutant(
    "QRY-5",
    killed_by="writes_at_the_end_of_a_page",
    source="a cursor that is the id of the last row, and a skip of one behind it",
    witness=_deleted_between,
)
class SkipsOneForTheDeleted(_ByPlace):
    """Skips the next session when the one that the page ended with is gone."""


async def _streamed(ctx: Context) -> object:
    for i in range(110):
        await ctx.store.save_info(f"{i:03d}", samples.info(f"{i:03d}"))
    seen = []
    async for session in ctx.store.iter_sessions(order="asc"):
        seen.append(session.agent_id)
        if len(seen) == 100:
            await ctx.store.delete("000")
    return len(seen)


@mutant(
    "QRY-6",
    killed_by="writes_at_the_pages_of_a_stream",
    source="LIMIT 100 OFFSET 100 * page",
    witness=_streamed,
)
class StreamsByOffset(EngineStore):
    """Reads the sessions of an iterator by offset and limit, a hundred at a time."""

    async def iter_sessions(self, **filters: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        for start in range(0, 10_000, 100):
            page = await self.query_sessions(limit=100, offset=start, **filters)
            for session in page:
                yield session
            if len(page) < 100:
                return


async def _documents_between(ctx: Context) -> object:
    for key in "klmn":
        await ctx.store.put_document("a", "c", key, key, tags={"run": "r1"})
    keys = await ctx.store.list_document_keys("a", "c", limit=2)
    found = await ctx.store.query_documents("c", {"run": "r1"}, limit=2)
    await ctx.store.delete_document("a", "c", "l")
    keys = await ctx.store.list_document_keys("a", "c", limit=2, cursor=keys.next_cursor)
    found = await ctx.store.query_documents("c", {"run": "r1"}, limit=2, cursor=found.next_cursor)
    return [*keys], [one.key for one in found]


@mutant(
    "DOC-8",
    killed_by="DOC-4.writes_at_the_end_of_a_page_of_documents",
    source="WHERE (agent_id, key) > (SELECT agent_id, key FROM documents WHERE id = :last), which is NULL for none",
    witness=_documents_between,
)
class SearchesEndAtADeletedDocument(Layer):
    """Finds no more documents by tags behind one that was deleted."""

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        after = query.after
        if after is not None and not await self.inner.docs(after[0], DocKind.DOCUMENTS, after[1]):
            return []
        return await super().find_docs(query)


@mutant(
    "DOC-4",
    killed_by="writes_at_the_end_of_a_page_of_documents",
    source="start_at(last key) and one document more, the first of which is left out",
    witness=_documents_between,
)
class SkipsOneForTheDeletedKey(EngineStore):
    """Skips the next key when the one that the page ended with is gone."""

    _names: ClassVar[dict[str, str]] = {}

    async def list_document_keys(self, agent_id: Any, collection: Any, **given: Any) -> Page[str]:
        page = await super().list_document_keys(agent_id, collection, **given)
        last = self._names.get(given.get("cursor") or "")
        if last is not None and await self.load_document(agent_id, collection, last) is None:
            page = Page(list(page)[1:], page.next_cursor, page.left_out)
        if page.next_cursor is not None and page:
            self._names[page.next_cursor] = page[-1]
        return page
