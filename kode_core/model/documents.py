"""Documents of the caller's own: JSON values under a collection and a key."""

from __future__ import annotations

from datetime import datetime
from typing import Final, TypeAlias

from kode_core.model.base import Json, Record, Shown, to_datetime

__all__ = ["ABSENT", "DeleteDocument", "Document", "DocumentWrite", "PutDocument", "StoredDocument"]

ABSENT: Final = "0"
"""The version of an agent, or of a document, that does not exist: a write with ``expect=ABSENT`` must be the first."""


class Document(Shown, frozen=True, kw_only=True):
    """A document as it was loaded (DOC-1).

    Attributes:
        value: any JSON value.
        version: changes with every put of the document, also of an equal value; ``expect`` demands it (DOC-2).
        updated_at: when it was put, in milliseconds since the epoch.
    """

    collection: str
    key: str
    value: Json
    version: str
    updated_at: int

    @property
    def updated_time(self) -> datetime:
        """``updated_at`` as an aware datetime in UTC; raises as ``to_datetime`` does."""
        return to_datetime(self.updated_at)


class PutDocument(Shown, frozen=True):
    """A document to insert or replace, for ``write_documents`` and ``save_turn``.

    Attributes:
        expect: the version that the stored document must have, or ``ABSENT``; None accepts any (DOC-2).
    """

    collection: str
    key: str
    value: Json
    expect: str | None = None


class DeleteDocument(Shown, frozen=True):
    """A document to remove, if it exists; *expect* as in :class:`PutDocument`."""

    collection: str
    key: str
    expect: str | None = None


DocumentWrite: TypeAlias = PutDocument | DeleteDocument


class StoredDocument(Record, frozen=True, kw_only=True):
    """The stored form of a document; *nonce* tells two puts of the same value apart."""

    value: Json
    nonce: str
