"""The methods of the public store for documents; :mod:`kode_core.protocols.documents` documents them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from kode_core.ids import check_agent_id
from kode_core.model import DeleteDocument, Document, DocumentWrite, FoundDocument, Json, PutDocument
from kode_core.protocols import Lease
from kode_core.query import AnyOf, Page
from kode_core.store.conversation import ConversationMethods
from kode_core.store.documents import DocRange
from kode_core.store.methods import METHODS

__all__ = ["DocumentMethods"]


class DocumentMethods(ConversationMethods):
    """The documents of one agent, and searches for documents over all agents."""

    async def put_document(
        self,
        agent_id: str,
        collection: str,
        key: str,
        value: Json,
        *,
        tags: Mapping[str, str] | None = None,
        expect: str | None = None,
        fence: Lease | None = None,
    ) -> str:
        puts = (PutDocument(collection, key, value, expect, tags),)
        (version,) = await self._fenced("put_document", agent_id, fence, self._documents.write, puts)
        return version

    async def load_document(self, agent_id: str, collection: str, key: str) -> Document | None:
        return await self._load("load_document", agent_id, self._documents.load, collection, key)

    async def delete_document(
        self, agent_id: str, collection: str, key: str, *, expect: str | None = None, fence: Lease | None = None
    ) -> None:
        removals = (DeleteDocument(collection, key, expect),)
        await self._fenced("delete_document", agent_id, fence, self._documents.write, removals)

    async def write_documents(
        self, agent_id: str, documents: Sequence[DocumentWrite], *, fence: Lease | None = None
    ) -> list[str]:
        return await self._fenced("write_documents", agent_id, fence, self._documents.write, documents)

    async def list_documents(
        self,
        agent_id: str,
        collection: str,
        *,
        prefix: str = "",
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Document]:
        given = (collection, prefix, start, stop, reverse)
        return await self._load("list_documents", agent_id, self._documents.page, given, limit, cursor)

    async def list_document_keys(
        self,
        agent_id: str,
        collection: str,
        *,
        prefix: str = "",
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[str]:
        given = (collection, prefix, start, stop, reverse)
        return await self._load("list_document_keys", agent_id, self._documents.key_page, given, limit, cursor)

    def iter_documents(
        self,
        agent_id: str,
        collection: str,
        *,
        prefix: str = "",
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
    ) -> AsyncIterator[Document]:
        given = DocRange.of(collection, prefix, start, stop, reverse)
        found = self._documents.stream(self._context.run, check_agent_id(agent_id), given)
        return self._iterated("iter_documents", agent_id, found)

    async def query_documents(
        self,
        collection: str,
        tags: Mapping[str, AnyOf],
        *,
        agent_id: str | None = None,
        values: bool = True,
        reverse: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[FoundDocument]:
        async def query() -> Page[FoundDocument]:
            return await self._tagged.query(collection, tags, agent_id, reverse, values, limit, cursor)

        return await self._context.run(METHODS["query_documents"], agent_id, query)
