"""Reads of documents at one instant: ranges of the caller's own, their number, and what batches demand of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from msgspec.structs import replace

from kode_core.authoring.parallel import each
from kode_core.batch import Batch, Doc, DocKind, DocSpan
from kode_core.engines.record.doc_keys import doc_keys, own_keys, rest_of
from kode_core.engines.record.io import MovedError, RecordIO
from kode_core.engines.record.state import OpenedHead, Overlay
from kode_core.engines.record.store import DocIndex, Item, KeyRange, RecordStore

__all__ = ["OwnDocs", "demanded_digests", "doc_of", "has_more"]

_MORE: Final = 8
_MOST: Final = 1000


async def demanded_digests(
    io: RecordIO, head: OpenedHead | None, batches: Sequence[Batch]
) -> dict[tuple[DocKind, str], bytes]:
    """The digests of the documents that the batches demand, as the head knows them; absent ones are left out.

    Raises:
        MovedError: another writer changed the agent since the head was read.
    """
    demanded = list(dict.fromkeys(name for batch in batches for name in batch.demanded_docs))
    if head is None or not demanded:
        return {}
    docs = OwnDocs(io.store, head, await io.overlay(head))
    digests = zip(demanded, await each(docs.digest, demanded), strict=True)
    return {name: digest for name, digest in digests if digest is not None}


async def has_more(io: RecordIO, head: OpenedHead | None, batches: Sequence[Batch]) -> bool:
    """Whether the agent has events or documents, but for layers' and the core's; False if no batch demands nothing.

    Raises:
        MovedError: another writer changed the agent since the head was read.
    """
    if head is None or not head.record.is_used or not any(batch.expect_nothing for batch in batches):
        return False
    if head.state.last_seq is not None:  # a prune keeps the last event
        return True
    docs = OwnDocs(io.store, head, await io.overlay(head))
    return any(await each(docs.has_any, [kind for kind in DocKind if kind is not DocKind.LAYER]))


def doc_of(item: Item) -> Doc:
    """The document of an item."""
    return Doc(cast(DocIndex, item.index).key, item.time, item.body)


class OwnDocs:
    """Reads of one agent's documents, most of the caller's own, as its head knows them.

    Each raises MovedError if it meets a newer item.
    """

    def __init__(self, store: RecordStore, head: OpenedHead, overlay: Overlay) -> None:
        self._store = store
        self._record = head.record
        self._overlay = overlay

    async def digest(self, name: tuple[DocKind, str]) -> bytes | None:
        """The digest of the document of a kind under a key; None without one."""
        items, _ = await self._page(doc_keys(*name, bodies=False))
        return items[0].body.digest if items else None

    async def has_any(self, kind: DocKind, *, of_core: bool = False) -> bool:
        """Whether there is a document of a kind; the core's do not count, unless *of_core*."""
        is_own = kind is DocKind.DOCUMENTS and not of_core
        keys = own_keys(bodies=False) if is_own else doc_keys(kind, bodies=False)
        return await self._living(_part(keys, _MORE)) is not None

    async def count(self) -> int:
        """The number of documents."""
        count = 0
        rest: KeyRange | None = _part(own_keys(bodies=False), _MOST)
        while rest is not None:
            items, rest = await self._page(rest)
            count += len(items)
        return count

    async def within(self, span: DocSpan) -> list[Item]:
        """The documents of a range. Texts in parts are not read yet."""
        found, missing = list[Item](), span.limit
        keys = own_keys(span.start, span.stop, descending=span.descending, bodies=span.bodies)
        rest = _part(keys, missing) if missing and span.start < span.stop else None
        while rest is not None and missing > 0:
            items, rest = await self._page(rest)
            found += items
            missing = span.limit - len(found)
            more = 2 * max(missing, 0) + _MORE  # removed documents are among the stored ones
            if rest is not None and not items:
                rest = await self._living(_part(rest, more))
            if rest is not None:
                rest = _part(rest, more)
        return found[: span.limit]

    async def _living(self, keys: KeyRange) -> KeyRange | None:
        """The rest of a range from its first document on; None without one.

        Any number of removed documents may come first. This reads no texts: a page may reach far beyond that document.
        """
        rest: KeyRange | None = replace(keys, bodies=False)
        while rest is not None:
            items, rest = await self._page(rest)
            if items:
                first = items[0].key
                return replace(keys, last=first) if keys.descending else replace(keys, first=first)
            if rest is not None:
                rest = _part(rest, min(2 * (rest.limit or 1), _MOST))
        return None

    async def _page(self, keys: KeyRange) -> tuple[list[Item], KeyRange | None]:
        """The documents up to the last of the stored items within the limit, and the rest of the range."""
        stored = await self._store.items(self._record.place, keys)
        if any(item.rev > self._record.rev for item in stored):
            raise MovedError
        read = replace(keys, limit=None)
        if keys.limit is None or len(stored) < keys.limit:
            return self._overlay.over(stored, read), None
        last = stored[-1].key
        read = replace(read, first=last) if keys.descending else replace(read, last=last)
        first, end = rest_of(keys, last)
        return self._overlay.over(stored, read), replace(keys, first=first, last=end) if first <= end else None


def _part(keys: KeyRange, limit: int) -> KeyRange:
    return replace(keys, limit=limit)
