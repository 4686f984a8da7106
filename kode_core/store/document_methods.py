"""The methods of the public store for documents; :mod:`kode_core.protocols.documents` documents them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from kode_core.ids import check_agent_id
from kode_core.model import DeleteDocument, Document, DocumentWrite, Json, PutDocument
from kode_core.protocols import Lease
from kode_core.query import Page
from kode_core.store.conversation import ConversationMethods
from kode_core.store.documents import DocRange

__all__ = ["DocumentMethods"]


class DocumentMethods(ConversationMethods):
    """The documents of one agent."""

    async def put_document(
        self,
        agent_id: str,
        collection: str,
        key: str,
        value: Json,
        *,
        expect: str | None = None,
        fence: Lease | None = None,
    ) -> str:
        puts = (PutDocument(collection, key, value, expect),)
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
        return self._documents.stream(self._context.run, check_agent_id(agent_id), given)
