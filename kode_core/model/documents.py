"""Documents of the caller's own: JSON values under a collection and a key."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, TypeAlias

from msgspec import field

from kode_core.model.base import Json, Record, Shown, to_datetime

__all__ = ["ABSENT", "DeleteDocument", "Document", "DocumentWrite", "FoundDocument", "PutDocument", "StoredDocument"]

ABSENT: Final = "0"
"""The version of an agent, or of a document, that does not exist: a write with ``expect=ABSENT`` must be the first."""


class Document(Shown, frozen=True, kw_only=True):
    """A document as it was loaded (DOC-1).

    Attributes:
        value: any JSON value.
        version: changes with every put of the document, also of an equal value; ``expect`` demands it (DOC-2).
        updated_at: when it was put, in milliseconds since the epoch.
        tags: the tags that it was put with (DOC-7).
    """

    collection: str
    key: str
    value: Json
    version: str
    updated_at: int
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def updated_time(self) -> datetime:
        """``updated_at`` as an aware datetime in UTC; raises as ``to_datetime`` does."""
        return to_datetime(self.updated_at)


class FoundDocument(Shown, frozen=True, kw_only=True):
    """A document that ``query_documents`` found (DOC-8), with its agent; otherwise as :class:`Document`.

    Attributes:
        value: None if the query left the values out.
        tags: None if the query left the values out.
    """

    agent_id: str
    collection: str
    key: str
    value: Json
    version: str
    updated_at: int
    tags: dict[str, str] | None

    @property
    def updated_time(self) -> datetime:
        """``updated_at`` as an aware datetime in UTC; raises as ``to_datetime`` does."""
        return to_datetime(self.updated_at)


class PutDocument(Shown, frozen=True):
    """A document to insert or replace, for ``write_documents`` and ``save_turn``.

    Attributes:
        expect: the version that the stored document must have, or ``ABSENT``; None accepts any (DOC-2).
        tags: up to four texts by name, by which ``query_documents`` finds the document over all agents; they replace
            the tags that it had (DOC-7).
    """

    collection: str
    key: str
    value: Json
    expect: str | None = None
    tags: Mapping[str, str] | None = None


class DeleteDocument(Shown, frozen=True):
    """A document to remove, if it exists; *expect* as in :class:`PutDocument`."""

    collection: str
    key: str
    expect: str | None = None


DocumentWrite: TypeAlias = PutDocument | DeleteDocument


class StoredDocument(Record, frozen=True, kw_only=True):
    """The stored form of a document.

    Attributes:
        tags: come first, so that the beginning of the text shows whether the document has some; None if not.
        nonce: tells two puts of the same value apart.
    """

    tags: dict[str, str] | None = None
    value: Json
    nonce: str
