"""An optional part of the requirements on a record store: documents that are found by their terms, over all agents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from kode_core.engines.record.doc_keys import is_own
from kode_core.engines.record.store import Change, Cut, DocIndex, FoundItem, Item, RecordStore

__all__ = ["DocSearch", "FindsDocItems", "finds_doc_items", "may_have_terms", "terms_of_item"]


class DocSearch(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Documents to find, in the order of (agent_id, key, epoch), or in reverse.

    Attributes:
        terms: the document has one of these, of which there are 1 to 100. No document has two of them.
        agent_id: only documents of this agent.
        after: (agent_id, key, epoch) of the last item on the page before; the key is an item's.
        limit: the greatest number of documents.
        bodies: False to leave out the texts.
    """

    terms: tuple[str, ...]
    agent_id: str | None = None
    descending: bool = False
    after: tuple[str, str, str] | None = None
    limit: int
    bodies: bool = True


class FindsDocItems(Protocol):
    """An optional interface of a record store: it finds the items of documents by the terms of their ``DocIndex``.

    ``apply`` stores an item's terms before it returns; an item that replaces another, and a tombstone, replace its
    terms. If the store keeps them in further records, these are written after the item, again by each repetition of the
    call. Then ``find_docs`` compares every record with its item, and shows no document by terms that it has no more.
    ``drop`` removes them. The engine cuts documents of the caller's own one by one, and gives ``swap`` no items of an
    agent whose documents may have terms.
    """

    async def find_docs(self, search: DocSearch) -> Sequence[FoundItem]:
        """The documents that match, in the search's order, at most ``limit``.

        A search of one agent is current; others may lag if the backend declares it. Items of old epochs may be among
        them, but no tombstones. A ``Found`` if damaged items were left out. A page costs what its documents cost, once
        for each term.
        """
        ...


def finds_doc_items(store: RecordStore) -> bool:
    """Whether *store* has the interface :class:`FindsDocItems`."""
    return callable(getattr(store, "find_docs", None))


def terms_of_item(item: Item) -> tuple[str, ...]:
    """The terms of an item; none for all but documents of the caller's own."""
    return item.index.terms if isinstance(item.index, DocIndex) else ()


def may_have_terms(change: Change) -> bool:
    """Whether a change puts or removes one document of the caller's own."""
    key = change.first if isinstance(change, Cut) and change.first == change.last else getattr(change, "key", "")
    return is_own(key)
