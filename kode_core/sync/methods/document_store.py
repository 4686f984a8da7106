"""Written by ``scripts/sync_methods.py`` from ``kode_core.protocols.documents.DocumentStore``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from kode_core.model import Document, DocumentWrite, FoundDocument, Json
from kode_core.query import AnyOf, Page
from kode_core.sync.iterators import SyncIterator
from kode_core.sync.locks import SyncLease
from kode_core.sync.methods.queryable_store import QueryableStoreMethods

__all__ = ["DocumentStoreMethods"]

_Versions: TypeAlias = list[str]


class DocumentStoreMethods(QueryableStoreMethods):
    """The methods of :class:`~kode_core.DocumentStore` for synchronous code."""

    def put_document(
        self,
        agent_id: str,
        collection: str,
        key: str,
        value: Json,
        *,
        tags: Mapping[str, str] | None = None,
        expect: str | None = None,
        fence: SyncLease | None = None,
    ) -> str:
        """Insert or replace a document with its tags, and return its new version (DOC-1, DOC-7).

        By up to four *tags*, texts of up to 256 bytes, also empty ones, with names of up to 64 bytes,
        ``query_documents`` finds the document over all agents; without them it has none.

        With *expect*, the version of a load or a put, the stored document must still have that version; with
        ``ABSENT`` it must not exist. Of several such writers exactly one succeeds (DOC-2).

        Raises:
            ConflictError: the document has another version than *expect*.
        """
        return self._call(
            lambda store: store.put_document(
                agent_id, collection, key, value, tags=tags, expect=expect, fence=self._fence(agent_id, fence)
            )
        )

    def load_document(self, agent_id: str, collection: str, key: str) -> Document | None:
        """The document under a key; None if it does not exist (DOC-1)."""
        return self._call(lambda store: store.load_document(agent_id, collection, key))

    def delete_document(
        self, agent_id: str, collection: str, key: str, *, expect: str | None = None, fence: SyncLease | None = None
    ) -> None:
        """Remove a document, if it exists; *expect* as in ``put_document`` (DOC-1, DOC-2).

        Raises:
            ConflictError: the document has another version than *expect*.
        """
        self._call(
            lambda store: store.delete_document(
                agent_id, collection, key, expect=expect, fence=self._fence(agent_id, fence)
            )
        )

    def write_documents(
        self, agent_id: str, documents: Sequence[DocumentWrite], *, fence: SyncLease | None = None
    ) -> _Versions:
        """Put and delete several documents of an agent in one atomic commit (DOC-3).

        Returns the versions that the documents have then, in the same order: ``ABSENT`` for deleted ones.
        ``save_turn(documents=…)`` writes them together with a turn.

        Raises:
            ConflictError: a document has another version than its ``expect``; nothing was written.
            InvalidArgumentError: two of *documents* have the same collection and key.
        """
        return self._call(lambda store: store.write_documents(agent_id, documents, fence=self._fence(agent_id, fence)))

    def list_documents(
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
        return self._call(
            lambda store: store.list_documents(
                agent_id, collection, prefix=prefix, start=start, stop=stop, reverse=reverse, limit=limit, cursor=cursor
            )
        )

    def list_document_keys(
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
        return self._call(
            lambda store: store.list_document_keys(
                agent_id, collection, prefix=prefix, start=start, stop=stop, reverse=reverse, limit=limit, cursor=cursor
            )
        )

    def iter_documents(
        self,
        agent_id: str,
        collection: str,
        *,
        prefix: str = "",
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
    ) -> SyncIterator[Document]:
        """Stream the documents of such a range in bounded memory, however many there are (DOC-4).

        A document that is written meanwhile may be among them or not.

        Raises:
            CorruptRecordError: a document cannot be read.
        """
        return self._iterate(
            lambda store: store.iter_documents(
                agent_id, collection, prefix=prefix, start=start, stop=stop, reverse=reverse
            )
        )

    def query_documents(
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
        return self._call(
            lambda store: store.query_documents(
                collection, tags, agent_id=agent_id, values=values, reverse=reverse, limit=limit, cursor=cursor
            )
        )
