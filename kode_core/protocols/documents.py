"""The protocol of stores that keep documents of the caller's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from kode_core.model import Document, DocumentWrite, FoundDocument, Json
from kode_core.protocols.locks import Lease
from kode_core.protocols.methods import to_be_implemented
from kode_core.protocols.queryable import QueryableStore
from kode_core.query import AnyOf, Page

__all__ = ["DocumentStore"]

_Versions: TypeAlias = list[str]  # the method ``list`` hides the builtin inside the classes


@runtime_checkable
@to_be_implemented
class DocumentStore(QueryableStore, Protocol):
    """A store with documents of the caller's own: JSON values under a collection and a key, for each agent (DOC-1).

    A collection is a name of up to 64 of the characters A-Z a-z 0-9 . _ -; it exists while it has documents. A key is
    a text of up to 400 bytes in UTF-8, without U+0000. Keys are ordered by code point. All methods raise
    UnsupportedError over a third-party backend that keeps no documents; tags raise it over one that keeps no tags.
    """

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
        """Insert or replace a document with its tags, and return its new version (DOC-1, DOC-7).

        By up to four *tags*, texts of up to 256 bytes, also empty ones, with names of up to 64 bytes,
        ``query_documents`` finds the document over all agents; without them it has none.

        With *expect*, the version of a load or a put, the stored document must still have that version; with
        ``ABSENT`` it must not exist. Of several such writers exactly one succeeds (DOC-2).

        Raises:
            ConflictError: the document has another version than *expect*.
        """
        ...

    async def load_document(self, agent_id: str, collection: str, key: str) -> Document | None:
        """The document under a key; None if it does not exist (DOC-1)."""
        ...

    async def delete_document(
        self, agent_id: str, collection: str, key: str, *, expect: str | None = None, fence: Lease | None = None
    ) -> None:
        """Remove a document, if it exists; *expect* as in ``put_document`` (DOC-1, DOC-2).

        Raises:
            ConflictError: the document has another version than *expect*.
        """
        ...

    async def write_documents(
        self, agent_id: str, documents: Sequence[DocumentWrite], *, fence: Lease | None = None
    ) -> _Versions:
        """Put and delete several documents of an agent in one atomic commit (DOC-3).

        Returns the versions that the documents have then, in the same order: ``ABSENT`` for deleted ones.
        ``save_turn(documents=…)`` writes them together with a turn.

        Raises:
            ConflictError: a document has another version than its ``expect``; nothing was written.
            InvalidArgumentError: two of *documents* have the same collection and key.
        """
        ...

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
        """A page of a collection's documents in the order of their keys, or in reverse (DOC-4).

        Only keys that begin with *prefix*, are not below *start*, and are below *stop*. At most *limit* documents, up
        to 10,000; ``next_cursor`` leads to the next page of the same range. The cost depends on the page, not on the
        collection. Documents that cannot be read are named in ``left_out``.
        """
        ...

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
        """The keys of such a page, without the values (DOC-4)."""
        ...

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
        """Stream the documents of such a range in bounded memory, however many there are (DOC-4).

        A document that is written meanwhile may be among them or not.

        Raises:
            CorruptRecordError: a document cannot be read.
        """
        ...

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
        """A page of a collection's documents with all of *tags*, over all agents or of one (DOC-8).

        A list of values of a tag finds the documents with one of them; all combinations of listed values together are
        at most 100. The order is by agent id, then by key, or the reverse of it. At most *limit* documents, up to
        10,000; ``next_cursor`` leads to the next page of the same query. *values* false leaves the values and the tags
        of the documents out. Documents that cannot be read are named in ``left_out``.

        Raises:
            UnsupportedError: the backend keeps no tags of documents.
        """
        ...
