"""Entries of the terms of documents: items next to a document, each in one partition of an index.

An item of the table has one key in an index, and a document up to 15 terms. So each term of a document has an entry, an
item whose key holds the document's and a number. The entries of a document are written after it, with its revision; the
numbers that it no longer needs get tombstones. A search compares every entry with the document in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from kode_core.authoring.parallel import each
from kode_core.authoring.reading import unless_damaged
from kode_core.batch import Found
from kode_core.codec import Body
from kode_core.engines.record.doc_keys import hashed
from kode_core.engines.record.store import Change, DocIndex, FoundItem, Item, ItemsPlace, removed
from kode_core.engines.record.terms import DocSearch, terms_of_item
from kode_dynamodb.connection import AT_ONCE, Connection, Record, first_of
from kode_dynamodb.merging import Partition, merged
from kode_dynamodb.values import (
    bucket_of,
    buckets,
    filed_row,
    found_item,
    hexed,
    intact,
    item_key,
    item_values,
    items_pk,
    place_of,
)

__all__ = ["Terms", "entries_of"]

UNLESS_NEWER: Final = "attribute_not_exists(pk) OR rev < :rev OR (rev = :rev AND attribute_exists(gone))"
"""The condition of a put: there is no item of the same or a newer revision."""
IF_OLDER: Final = "rev < :rev"
"""The condition of a removal: there is an older item."""
_MOST_BYTES: Final = 1024
"""The most bytes that a key of an index may have."""
_KIND: Final = "term"
_END: Final = "~"


class Terms:
    """Writes documents with their entries, and finds documents by them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def apply(self, place: ItemsPlace, changes: Sequence[Change]) -> None:
        """Put or remove one document, and then its entries; *changes* are all of that document.

        The document that it replaces says how many entries there are. If there is none, because an earlier attempt has
        put this one, they are read.
        """
        newest = max(changes, key=lambda change: (change.rev, isinstance(change, Item)))
        item = newest if isinstance(newest, Item) else removed(newest.first, newest.rev)
        given = {":rev": {"N": str(item.rev)}}
        condition = IF_OLDER if item.is_removed else UNLESS_NEWER
        old = await self._connection.put(
            Item=item_values(place, item), ConditionExpression=condition, ExpressionAttributeValues=given
        )
        before = None if old is None else unless_damaged([], found_item, old) if old else removed(item.key, 0)
        stored = await self._entries_stored(place, item.key) if before is None else len(terms_of_item(before))
        count = max(stored, *(len(terms_of_item(one)) for one in changes if isinstance(one, Item)), 0)

        async def put(entry: Record) -> None:
            await self._connection.repeat(
                "put_item", Item=entry, ConditionExpression=UNLESS_NEWER, ExpressionAttributeValues=given
            )

        await each(put, entries_of(place, item, count), at_once=AT_ONCE)

    async def _entries_stored(self, place: ItemsPlace, key: str) -> int:
        """One more than the greatest number of the entries of a document."""
        first = {"S": _entry_prefix(key)}
        found = await self._connection.query(
            KeyConditionExpression="pk = :pk AND sk BETWEEN :first AND :last",
            ExpressionAttributeValues={":pk": items_pk(place), ":first": first, ":last": {"S": f"{first['S']}{_END}"}},
            ConsistentRead=True,
            ProjectionExpression="sk, gone",
        )
        return max((int(one["sk"]["S"].rpartition("/")[2]) + 1 for one in found if "gone" not in one), default=0)

    async def find(self, search: DocSearch, place: ItemsPlace | None) -> Found[FoundItem]:
        """See ``FindsDocItems.find_docs``: the documents at one place, which are current, or of all agents."""
        found, left_out = list[FoundItem](), list[str]()
        chosen, same, key = list[_Filed](), list[_Filed](), ""
        index = "rows" if place is None else "by_time"
        entries = merged(
            self._connection,
            index,
            _partitions(search, place),
            descending=search.descending,
            sizes=first_of(search.limit + 1),
            key_of=_key_in,
        )
        async for entry in entries:
            filed = unless_damaged(left_out, _filed_doc, entry)
            if filed is None:
                continue
            if _key_in(index, entry) != key:  # long keys are cut, and then equal for several documents
                chosen += sorted(same, reverse=search.descending)
                same, key = [], _key_in(index, entry)
                if len(found) + len(chosen) >= search.limit:
                    found += await self._documents(chosen, search, left_out)
                    chosen = []
                    if len(found) >= search.limit:
                        break
            if _follows(filed, search):
                same.append(filed)
        if len(found) < search.limit:
            found += await self._documents([*chosen, *sorted(same, reverse=search.descending)], search, left_out)
        return Found(found[: search.limit], left_out)

    async def _documents(self, filed: Sequence[_Filed], search: DocSearch, left_out: list[str]) -> list[FoundItem]:
        """The documents of entries, from the table, without those that have other terms by now."""
        if not filed:
            return []
        stored = await self._connection.get_all([one.document for one in filed])
        by_key = {(one["pk"]["S"], one["sk"]["S"]): one for one in stored}
        found = list[FoundItem]()
        for one in filed:
            values = by_key.get((one.document["pk"]["S"], one.document["sk"]["S"]))
            item = None if values is None else unless_damaged(left_out, found_item, values)
            if item is not None and one.term in terms_of_item(item):
                body = item.body if search.bodies else Body("", item.body.digest)
                found.append(FoundItem(one.place, replace(item, body=body)))
        return found


# --- entries ----------------------------------------------------------------------------------------------------------


class _Filed(NamedTuple):
    """An entry: its document, in the order of searches, and its term."""

    agent_id: str
    key: str
    epoch: str
    term: str

    @property
    def place(self) -> ItemsPlace:
        return ItemsPlace(self.agent_id, self.epoch)

    @property
    def document(self) -> Record:
        """The key of the document in the table."""
        return item_key(self.place, self.key)


def _entry_prefix(key: str) -> str:
    return f"g/{hashed(key)}/"


def entries_of(place: ItemsPlace, item: Item, count: int = 0) -> list[Record]:
    """The entries of a document, and tombstones for the other numbers below *count*."""
    terms = terms_of_item(item)
    found = list[Record]()
    for number in range(max(count, len(terms))):
        key = f"{_entry_prefix(item.key)}{number:02d}"
        if number >= len(terms):
            found.append(item_values(place, removed(key, item.rev)))
            continue
        index = DocIndex(_KIND, item.key)
        entry = Item(key=key, rev=item.rev, body=Body("", item.body.digest), index=index, time=item.time)
        filed = {
            "ts": {"S": f"g/{terms[number]}/{item.key}"},
            "rb": bucket_of(f"g/{terms[number]}/", place.agent_id),
            "row": {"S": _place_key(place.agent_id, item.key)},
        }
        found.append({**item_values(place, entry), **filed})
    return found


def _place_key(agent_id: str, key: str) -> str:
    """The place of a document among all agents' documents, as far as it fits into a key."""
    return f"{hexed(agent_id)}!{key}"[:_MOST_BYTES]


@intact("what a document is found by")
def _filed_doc(found: Record) -> _Filed:
    """The document of an entry."""
    _, index, _ = filed_row(found)
    if not isinstance(index, DocIndex) or index.kind != _KIND:
        raise ValueError
    place = place_of(found)
    return _Filed(place.agent_id, index.key, place.epoch, (found.get("rb") or found["ts"])["S"].split("/")[1])


# --- searches ---------------------------------------------------------------------------------------------------------


def _key_in(index: str, entry: Record) -> str:
    """The key of an entry in a merge."""
    return str(entry["row"]["S"] if index == "rows" else entry["ts"]["S"].split("/", 2)[2])


def _follows(filed: _Filed, search: DocSearch) -> bool:
    """Whether a document comes after the page before."""
    if search.after is None:
        return True
    return filed[:3] < search.after if search.descending else filed[:3] > search.after


def _partitions(search: DocSearch, place: ItemsPlace | None) -> list[Partition]:
    """The partitions that a search reads. They may begin with documents of the page before: see :func:`_follows`."""
    found = list[Partition]()
    for term in search.terms:
        if place is not None:
            first, last = f"g/{term}/", f"g/{term}/{_END}"
            after = None if search.after is None else f"{first}{search.after[1]}"
            names = [items_pk(place)["S"]]
        else:
            first, last = "!", _END
            after = None if search.after is None else _place_key(*search.after[:2])
            names = buckets(f"g/{term}/")
        if after is not None:
            first, last = (first, after) if search.descending else (after, last)
        found += [(name, (first, last)) for name in names]
    return found
