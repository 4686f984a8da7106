"""Items and their parts. Reads go by pages and writes by slices, so that each call ends within its time limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from bson import Binary
from bson.int64 import Int64
from pymongo import InsertOne, ReplaceOne, UpdateMany

from kode_core.engine import CALLER
from kode_core.engines.record.store import Change, Cut, Item, ItemsPlace, KeyRange
from kode_core.errors import StoreBusyError
from kode_mongo.connection import Connection, Document, weight
from kode_mongo.documents import NO_BODIES, after_place, found_item, id_of, item_document, part_id, removal
from kode_mongo.errors import is_duplicate
from kode_mongo.schema import ITEMS, PARTS, is_common_channel

__all__ = ["Items"]

_AT_ONCE: Final = 1_000
_BYTES_AT_ONCE: Final = 4_000_000
_DROPPED_AT_ONCE: Final = 5_000
_PARTS_DROPPED_AT_ONCE: Final = 50
_ROUNDS: Final = 30
_REVS: Final = {"rev": 1, "gone": 1}
_CHANNEL: Final = "index.channel"


class Items:
    """The items and parts of all places."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._items = connection.collection(ITEMS)
        self._parts = connection.collection(PARTS)

    # --- items

    async def read(self, place: ItemsPlace, keys: KeyRange) -> list[Item]:
        """See ``RecordStore.items``."""
        wanted: Document = {"agent_id": place.agent_id}
        if keys.channel is not None:
            wanted[_CHANNEL] = keys.channel
        found = await self._connection.pages(
            self._items,
            wanted,
            "alt" if keys.by_alt else "_id",
            {"$gte": id_of(place, keys.first), "$lte": id_of(place, keys.last)},
            descending=keys.descending,
            limit=keys.limit,
            projection=None if keys.bodies else NO_BODIES,
            index=None if keys.channel is None or is_common_channel(keys.channel) else _CHANNEL,
        )
        return [found_item(document) for document in found]

    async def apply(self, place: ItemsPlace, changes: Sequence[Change]) -> None:
        """See ``RecordStore.apply``. Cuts go first, so that puts meet fewer items."""
        cuts = [
            UpdateMany({**_cut(place, change), "gone": None}, removal(change.rev))
            for change in changes
            if isinstance(change, Cut)
        ]
        for i in range(0, len(cuts), _AT_ONCE):
            await self._write(self._items, cuts[i : i + _AT_ONCE])
        puts = [item_document(place, change) for change in changes if isinstance(change, Item)]
        are_there = False
        for some in _slices(puts):
            are_there = await self._put(some, look_first=are_there)

    async def _put(self, documents: Sequence[Document], *, look_first: bool) -> bool:
        """Put documents, each unless its id has one of the same or a greater revision. True if most existed already.

        Inserting takes one call if no document exists. If many exist, the server takes many times as long to refuse
        them as to read them. So *look_first* reads before it writes, for changes that a dead process applied in part.
        """
        left, were_there = documents, False
        for round_ in range(_ROUNDS):
            met = left if look_first and not round_ else await self._insert(left)
            left = await self._replace(met) if met else []
            were_there = were_there or 2 * (len(met) - len(left)) > len(documents)
            if not left:
                return were_there
        raise StoreBusyError(
            f"{self._connection.address}: other writers kept changing the same items, or an index forbids them"
        )

    async def _insert(self, documents: Sequence[Document]) -> list[Document]:
        """Insert documents, and return those whose ids exist already."""

        async def call() -> list[Document]:
            try:
                await self._items.bulk_write([InsertOne(document) for document in documents], ordered=False)
            except Exception as exc:
                if not is_duplicate(exc):
                    raise
                failed: Any = exc
                return [documents[error["index"]] for error in failed.details["writeErrors"]]
            return []

        return await self._connection.repeat(call)

    async def _replace(self, documents: Sequence[Document]) -> list[Document]:
        """Replace older documents, and return the documents that have to be inserted because their ids are gone."""
        wanted = {"_id": {"$in": [document["_id"] for document in documents]}, "agent_id": documents[0]["agent_id"]}
        found = await self._connection.find(self._items, wanted, projection=_REVS, batch_size=len(documents) + 1)
        first = {one["_id"]: one["rev"] + (not one.get("gone")) for one in found}  # the least newer one
        absent = [document for document in documents if document["_id"] not in first]
        older = [one for one in documents if one["_id"] in first and first[one["_id"]] <= one["rev"]]
        if not older:
            return absent
        done = await self._write(self._items, [ReplaceOne(_guarded(document), document) for document in older])
        return absent if done.matched_count == len(older) else [*absent, *older]

    async def drop(self, place: ItemsPlace) -> None:
        """See ``RecordStore.drop``. It removes slices, each within the time of one command.

        The end of a slice is found in the index of ``_id``, without reading a document.
        """
        bounds = {"$gte": id_of(place, ""), "$lt": after_place(place)}
        for collection, most in ((self._items, _DROPPED_AT_ONCE), (self._parts, _PARTS_DROPPED_AT_ONCE)):
            await self._delete_in_slices(collection, bounds, {"agent_id": place.agent_id}, most)

    async def erase(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        """See ``ErasesItems.erase``."""
        bounds = {"$gte": id_of(place, first), "$lte": id_of(place, last)}
        wanted = {"agent_id": place.agent_id, "rev": {"$lt": Int64(rev)}}
        await self._delete_in_slices(self._items, bounds, wanted, _DROPPED_AT_ONCE)

    async def _delete_in_slices(self, collection: Any, bounds: Document, wanted: Document, most: int) -> None:
        is_more = True
        while is_more:
            ends = await self._connection.find(
                collection, {"_id": bounds}, projection={"_id": 1}, sort=[("_id", 1)], skip=most, limit=1
            )
            slice_ = {**bounds, "$lt": ends[0]["_id"]} if ends else bounds
            await self._delete(collection, {**wanted, "_id": slice_})
            if ends:
                bounds = {**bounds, "$gte": ends[0]["_id"]}
            is_more = bool(ends)
            CALLER.get().goes_on()

    async def _delete(self, collection: Any, wanted: Document) -> None:
        await self._connection.repeat(lambda: collection.delete_many(wanted))

    async def epochs(self, agent_id: str) -> list[str]:
        """The epochs at which an agent has items or parts."""
        stages: list[Document] = [{"$match": {"agent_id": agent_id}}, {"$group": {"_id": "$epoch"}}]
        found = [one for of in (self._items, self._parts) for one in await self._connection.aggregate(of, stages)]
        return sorted({one["_id"] for one in found if isinstance(one["_id"], str)})

    # --- parts

    async def put_parts(self, place: ItemsPlace, key: str, rev: int, parts: Sequence[bytes]) -> None:
        """See ``RecordStore.put_parts``."""
        about = {"agent_id": place.agent_id, "epoch": place.epoch, "key": key, "rev": Int64(rev)}
        documents = [{"_id": part_id(place, key, rev, n), **about, "bytes": Binary(p)} for n, p in enumerate(parts)]
        for some in _slices(documents):
            wanted = [{"_id": document["_id"], "agent_id": place.agent_id} for document in some]
            writes = [ReplaceOne(one, document, upsert=True) for one, document in zip(wanted, some, strict=True)]
            await self._write(self._parts, writes)

    async def parts(self, place: ItemsPlace, key: str, rev: int) -> list[bytes]:
        """See ``RecordStore.parts``."""
        first = part_id(place, key, rev)
        bounds = {"$gte": first, "$lt": f"{first}~"}
        found = await self._connection.pages(self._parts, {"agent_id": place.agent_id}, "_id", bounds, first_page=4)
        return [bytes(part["bytes"]) for part in found]

    async def drop_parts(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        """See ``RecordStore.drop_parts``."""
        wanted = _cut(place, Cut(first=first, last=last, rev=rev))
        wanted["_id"] = _part_bounds(place, first, last)
        wanted["key"] = {"$gte": first, "$lte": last}
        await self._delete(self._parts, wanted)

    async def part_keys(self, place: ItemsPlace, first: str, last: str) -> list[tuple[str, int]]:
        """See ``RecordStore.part_keys``."""
        bounds = _part_bounds(place, first, last)
        wanted = {"agent_id": place.agent_id, "key": {"$gte": first, "$lte": last}}
        found = await self._connection.pages(self._parts, wanted, "_id", bounds, projection={"key": 1, "rev": 1})
        return list(dict.fromkeys((part["key"], int(part["rev"])) for part in found))

    async def _write(self, collection: Any, writes: Sequence[Any]) -> Any:
        return await self._connection.repeat(lambda: collection.bulk_write(writes, ordered=False))


def _slices(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """The documents in slices that are small enough to be written in time over a slow line."""
    some: list[Document] = []
    size = 0
    for document in documents:
        more = weight(document)
        if some and (len(some) == _AT_ONCE or size + more > _BYTES_AT_ONCE):
            yield some
            some, size = [], 0
        some.append(document)
        size += more
    if some:
        yield some


def _guarded(document: Document) -> Document:
    """The filter for the document that this one may replace: an older one, or a tombstone of its own revision."""
    rev = document["rev"]
    is_before = {"$or": [{"rev": {"$lt": rev}}, {"rev": rev, "gone": True}]}
    return {"_id": document["_id"], "agent_id": document["agent_id"], **is_before}


def _part_bounds(place: ItemsPlace, first: str, last: str) -> Document:
    """Bounds of the ids of parts, and of no other key's parts if it is one key: keys may begin with other keys."""
    start = f"{first}/" if first == last else first
    return {"$gte": id_of(place, start), "$lt": id_of(place, f"{start}~" if first == last else f"{last}~")}


def _cut(place: ItemsPlace, cut: Cut) -> Document:
    return {
        "_id": {"$gte": id_of(place, cut.first), "$lte": id_of(place, cut.last)},
        "agent_id": place.agent_id,
        "rev": {"$lt": Int64(cut.rev)},
    }
