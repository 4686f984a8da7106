"""Stores with faults in ranges and pages of documents (DOC-4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.instruments.costs import memory_of
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen
from kode_core.batch import Doc, DocSpan
from kode_core.errors import InvalidArgumentError
from kode_core.layers import Layer
from kode_core.model import Document, PutDocument
from kode_core.query import Page
from kode_core.store import EngineStore

MANY = 1_000_000


async def put_keys(store: Any, *keys: str, agent_id: str = "a") -> None:
    """Put a document under each key."""
    await store.write_documents(agent_id, [PutDocument("c", key, key) for key in keys])


def listed(*keys: str, **given: Any) -> Any:
    """A witness of the keys that a list of these has."""
    return seen(lambda s: put_keys(s, *keys), lambda s: s.list_document_keys("a", "c", **given))


# --- ranges -----------------------------------------------------------------------------------------------------------


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be")


@mutant(
    "DOC-4",
    killed_by="ranges_are_by_code_point",
    source="JavaScript: the order of strings by UTF-16",
    witness=listed("\uffff", "😀"),
)
class OrdersByUtf16(Layer):
    """Orders keys by their code units in UTF-16."""

    async def docs_in(self, agent_id: str, span: DocSpan) -> Sequence[Doc]:
        every = await super().docs_in(agent_id, DocSpan(start="", stop="~", limit=MANY))
        found = [doc for doc in every if _utf16(span.start) <= _utf16(doc.key) < _utf16(span.stop)]
        return sorted(found, key=lambda doc: _utf16(doc.key), reverse=span.descending)[: span.limit]


class _Ranges(EngineStore):
    """Changes the arguments of a range."""

    def changed(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments that are used instead."""
        raise NotImplementedError

    async def list_documents(self, agent_id: str, collection: str, **given: Any) -> Page[Document]:
        return await super().list_documents(agent_id, collection, **self.changed(given))

    async def list_document_keys(self, agent_id: str, collection: str, **given: Any) -> Page[str]:
        return await super().list_document_keys(agent_id, collection, **self.changed(given))


@mutant(
    "DOC-4",
    killed_by="ranges_are_by_code_point",
    source="Firestore: the usual prefix query from p to p + U+FFFF",
    witness=listed("a", "a😀", prefix="a"),
)
class PrefixesEndBeforeAstralCharacters(_Ranges):
    """Ends a prefix at U+FFFF, so that keys that go on with a higher character are missing."""

    def changed(self, given: dict[str, Any]) -> dict[str, Any]:
        prefix, stop = given.get("prefix"), given.get("stop")
        if not isinstance(prefix, str) or not prefix or not isinstance(stop, (str, type(None))):
            return given
        end = f"{prefix}\uffff"
        return {**given, "stop": end if not stop else min(stop, end)}


@mutant(
    "DOC-4",
    killed_by="ranges_are_by_code_point",
    source="BETWEEN start AND stop",
    witness=listed("a", "b", "c", stop="b"),
)
class StopIsInclusive(_Ranges):
    """Gives the document at the end of a range as well."""

    def changed(self, given: dict[str, Any]) -> dict[str, Any]:
        stop = given.get("stop")
        is_key = isinstance(stop, str) and stop and stop.isprintable() and len(stop) < 90
        return {**given, "stop": f"{stop}\x01"} if is_key else given


@mutant(
    "DOC-4",
    killed_by="ranges_are_by_code_point",
    source="LIKE prefix || '%' without an escape of _ and %",
    witness=listed("ab", "a_", "ac", prefix="_"),
)
class PrefixesAreOfLike(Layer):
    """Takes a prefix that begins with % or _ for a pattern."""

    async def docs_in(self, agent_id: str, span: DocSpan) -> Sequence[Doc]:
        collection, _, rest = span.start.partition("/")
        if rest in ("%", "_"):
            span = replace(span, start=f"{collection}/", stop=f"{collection}0")
        return await super().docs_in(agent_id, span)


@mutant(
    "DOC-4",
    killed_by="pages_give_every_document_once",
    source="a cursor with <= in the one direction and > in the other",
    witness=seen(lambda s: put_keys(s, "a", "b", "c"), lambda s: _backwards(s)),
)
class PagesRepeatTheLastBackwards(Layer):
    """Begins each page of a reversed list with the last document of the page before."""

    async def docs_in(self, agent_id: str, span: DocSpan) -> Sequence[Doc]:
        if span.descending:
            span = replace(span, stop=f"{span.stop}\x01")
        return await super().docs_in(agent_id, span)


async def _backwards(store: Any) -> list[str]:
    found: list[str] = []
    cursor = None
    for _ in range(4):
        page = await store.list_document_keys("a", "c", limit=2, reverse=True, cursor=cursor)
        found += page
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


@mutant(
    "DOC-4",
    killed_by="pages_give_every_document_once",
    source="search engines: a greatest size of a page, and no error",
    witness=seen(lambda s: put_keys(s, *map(str, range(300))), lambda s: _number(s, limit=300)),
)
class PagesEndAtTwoHundred(_Ranges):
    """Gives at most two hundred documents on a page, and no cursor to the others."""

    def changed(self, given: dict[str, Any]) -> dict[str, Any]:
        limit = given.get("limit")
        return {**given, "limit": 200} if type(limit) is int and 200 < limit <= 10_000 else given

    async def list_documents(self, agent_id: str, collection: str, **given: Any) -> Page[Document]:
        page = await super().list_documents(agent_id, collection, **given)
        if self.changed(given) != given:
            page.next_cursor = None
        return page


async def _number(store: Any, **given: Any) -> int:
    return len(await store.list_documents("a", "c", **given))


@mutant(
    "DOC-4",
    killed_by="wrong_ranges_are_refused",
    source="a cursor that cannot be read is None",
    witness=seen(lambda s: put_keys(s, "a", "b"), lambda s: s.list_document_keys("a", "c", cursor="x")),
)
class WrongCursorsBeginAnew(EngineStore):
    """Begins with the first page if the cursor is of another range."""

    async def list_document_keys(self, agent_id: str, collection: str, **given: Any) -> Page[str]:
        try:
            return await super().list_document_keys(agent_id, collection, **given)
        except InvalidArgumentError:
            if type(given.get("cursor")) is not str:
                raise
            return await super().list_document_keys(agent_id, collection, **{**given, "cursor": None})


async def _page_after_a_delete(ctx: Context) -> object:
    await put_keys(ctx.store, "a", "b", "c", "d")
    page = await ctx.store.list_document_keys("a", "c", limit=2)
    await ctx.store.delete_document("a", "c", "a")
    return await ctx.store.list_document_keys("a", "c", limit=2, cursor=page.next_cursor)


@mutant(
    "DOC-4",
    killed_by="pages_while_others_write_have_no_gaps",
    source="LIMIT n OFFSET m",
    witness=_page_after_a_delete,
)
class PagesOfDocumentsByOffset(EngineStore):
    """Counts the documents of the pages before, and leaves out as many."""

    async def list_document_keys(
        self, agent_id: str, collection: str, *, limit: int = 100, cursor: str | None = None, **given: Any
    ) -> Page[str]:
        if cursor is not None and not (isinstance(cursor, str) and cursor.startswith("offset ")):
            return await super().list_document_keys(agent_id, collection, limit=limit, cursor=cursor, **given)
        start = 0 if cursor is None else int(cursor.split()[1])
        every = await super().list_document_keys(agent_id, collection, limit=10_000, **given)
        page = Page(every[start : start + limit])
        page.next_cursor = f"offset {start + limit}" if start + limit < len(every) else None
        return page


async def _memory_of_a_page(ctx: Context) -> object:
    puts = [PutDocument("c", f"k{i:04}", "x" * 2000) for i in range(1000)]
    await ctx.store.write_documents("a", puts)
    return await memory_of(lambda: ctx.store.list_documents("a", "c", limit=3)) > 500_000


@mutant(
    "DOC-4",
    killed_by="a_page_of_documents_costs_what_it_contains",
    source="a list that loads all, filters and cuts",
    witness=_memory_of_a_page,
)
class LoadsTheWholeCollectionForAPage(EngineStore):
    """Loads all documents of the collection for each page."""

    async def list_documents(self, agent_id: str, collection: str, **given: Any) -> Page[Document]:
        every = [one async for one in self.iter_documents(agent_id, collection)]
        page = await super().list_documents(agent_id, collection, **given)
        del every
        return page


async def _memory_of_keys(ctx: Context) -> object:
    puts = [PutDocument("c", f"k{i:04}", "x" * 2000) for i in range(1000)]
    await ctx.store.write_documents("a", puts)
    return await memory_of(lambda: ctx.store.list_document_keys("a", "c", limit=3)) > 500_000


@mutant(
    "DOC-4",
    killed_by="a_page_of_documents_costs_what_it_contains",
    source="a list of keys that is made of all records",
    witness=_memory_of_keys,
)
class LoadsTheValuesForTheKeys(EngineStore):
    """Loads all documents of the collection for a page of keys."""

    async def list_document_keys(self, agent_id: str, collection: str, **given: Any) -> Page[str]:
        every = [one async for one in self.iter_documents(agent_id, collection)]
        page = await super().list_document_keys(agent_id, collection, **given)
        del every
        return page
