"""Documents as they pass between the core and a storage engine; import the names from :mod:`kode_core.batch`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec
from msgspec.structs import replace

from kode_core.codec import Body

__all__ = ["ABSENT_DOC", "CORE_KEYS", "FORKED_DOCS", "Doc", "DocKind", "DocSpan", "DocWrite", "placed_docs"]


class DocKind(StrEnum):
    """The kinds of documents. A document's key is empty where an agent has only one of the kind."""

    TODOS = "todos"
    WINDOWS = "windows"
    COMPRESSIONS = "compressions"
    RECOVERED = "recovered"
    MEDIA = "media"
    SNAPSHOTS = "snapshots"
    DOCUMENTS = "documents"
    """Documents of the caller's own: read by key and in ranges of keys, see :class:`kode_core.engine.RangesDocs`.

    The documents with keys from ``CORE_KEYS`` on belong to the core.
    """
    LAYER = "layer"
    """Belongs to a layer, never to a caller: reads, counts and forks leave these documents out."""


FORKED_DOCS: Final = (DocKind.TODOS, DocKind.MEDIA, DocKind.SNAPSHOTS)
"""The kinds of documents that an engine's ``fork`` copies, besides info, messages and tool calls (FORK-1)."""


CORE_KEYS: Final = "~"
"""The keys of the kind ``DOCUMENTS`` from this one on, up to U+007F, belong to the core, as the keys of messages do.

No collection of a caller begins with this character. Counts of the caller's documents leave these keys out; everything
else treats them as documents.
"""


class _Value(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    pass


class Doc(_Value, frozen=True):
    """A document; ``time``, in milliseconds, orders the documents of one kind. For the core's it is a position.

    Attributes:
        terms: the words by which a search over all agents finds the document, of 32 characters each, at most 15, and
            none twice. Only writes of the kind ``DOCUMENTS`` have some, and only for an engine that
            :func:`kode_core.tagged.finds_docs`. A put replaces them together with the body; reads may leave them out.
    """

    key: str
    time: int
    body: Body
    terms: tuple[str, ...] = ()


ABSENT_DOC: Final = Body("", b"")
"""The ``expect`` of a write that must find no document under its key."""


class DocWrite(_Value, frozen=True):
    """A document to insert or replace; if ``doc`` is None, the document to remove.

    Attributes:
        expect: precondition: the stored document has the digest of this body, or does not exist for ``ABSENT_DOC``;
            None accepts any. It refers to the state before the batch. For an engine that does not
            :func:`~kode_core.engine.checks_demands`, only documents of the kind ``DOCUMENTS`` have one.
        at: the index, from 0, of one of the messages that the batch appends. The document's time becomes the position
            of that message in the list; see :func:`placed_docs`. Only documents of the core have it.
    """

    kind: DocKind
    key: str
    doc: Doc | None
    expect: Body | None = None
    at: int | None = None


def placed_docs(docs: Sequence[DocWrite], kept: int) -> tuple[DocWrite, ...]:
    """The writes of a batch with the positions that they ask for; its first appended message is at position *kept*.

    An engine calls it in the atomic step of the write, with ``ListHead.kept``.
    """

    def placed(write: DocWrite) -> DocWrite:
        if write.at is None or write.doc is None:
            return write
        return replace(write, doc=replace(write.doc, time=kept + write.at), at=None)

    return tuple(map(placed, docs))


class DocSpan(_Value, frozen=True, kw_only=True):
    """A range of documents of the kind ``DOCUMENTS``, in the order of their keys by code point.

    Attributes:
        start: the least key, inclusive.
        stop: the keys are below this one.
        limit: the greatest number of documents.
        bodies: False to leave out the texts; the digests are always there.
    """

    start: str
    stop: str
    descending: bool = False
    limit: int
    bodies: bool = True
