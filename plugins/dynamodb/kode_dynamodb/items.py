"""The items of an agent, and the parts of large ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from kode_core.authoring.parallel import each
from kode_core.engine import CALLER
from kode_core.engines.record.store import (
    Change,
    Cut,
    EventIndex,
    Item,
    ItemsPlace,
    KeyRange,
    removed,
)
from kode_core.engines.record.terms import may_have_terms
from kode_core.errors import PayloadTooLargeError, StorageError
from kode_dynamodb.connection import AT_ONCE, LOOKING, Connection, Record
from kode_dynamodb.terms import IF_OLDER, UNLESS_NEWER, Terms, entries_of
from kode_dynamodb.values import (
    found_item,
    index_filter,
    item_key,
    item_values,
    items_pk,
    parts_key,
    parts_pk,
)

__all__ = ["Items", "put_of"]

_PARTS_AT_ONCE: Final = 4
_KEYS: Final = "pk, sk"
_REVS: Final = "pk, sk, rev, gone"
_NO_BODIES: Final = "sk, rev, t, h, ix, p, alt, gone"


class Items:
    """The items and parts of all places; the methods are those of ``RecordStore``."""

    def __init__(self, connection: Connection, terms: Terms) -> None:
        self._connection = connection
        self._terms = terms

    async def read(self, place: ItemsPlace, keys: KeyRange) -> list[Item]:
        if keys.first > keys.last:
            return []
        wanted = _between(items_pk(place), keys.first, keys.last, "alt" if keys.by_alt else "sk")
        wanted["ScanIndexForward"] = not keys.descending
        if keys.by_alt:
            wanted["IndexName"] = "by_alt"
        if not keys.bodies:
            wanted["ProjectionExpression"] = _NO_BODIES
        if keys.channel is not None:
            return await self._of_channel(wanted, keys)
        found = await self._decoded(wanted, keys.limit)
        if keys.by_alt and keys.bodies and not all(isinstance(item.index, EventIndex) for item in found):
            return await self._with_bodies(place, found)
        return found

    async def _decoded(self, wanted: Record, limit: int | None) -> list[Item]:
        """The items of a query, decoded page by page, so that other tasks run in between."""
        return [found_item(record) async for page in self._connection.pages(**wanted, limit=limit) for record in page]

    async def _of_channel(self, wanted: Record, keys: KeyRange) -> list[Item]:
        """The events of a channel, which is not part of a key."""
        found: list[Item] = []
        wanted = index_filter("events", [("channel", keys.channel or "")]).added_to(wanted)
        async for page in self._connection.pages(**wanted, sizes=LOOKING):
            items = map(found_item, page)
            found += [i for i in items if isinstance(i.index, EventIndex) and i.index.channel == keys.channel]
            if keys.limit is not None and len(found) >= keys.limit:
                return found[: keys.limit]
        return found

    async def _with_bodies(self, place: ItemsPlace, items: Sequence[Item]) -> list[Item]:
        stored = await self._connection.get_all([item_key(place, item.key) for item in items])
        by_key = {item.key: item for item in map(found_item, stored)}
        return [by_key[item.key] for item in items if item.key in by_key]

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        if fresh:
            items = [item for item in changes if isinstance(item, Item)]
            entries = [entry for item in items for entry in entries_of(place, item)]
            await self._connection.put_all([*(item_values(place, item) for item in items), *entries])
            return
        of_docs: dict[str, list[Change]] = {}
        for change in changes:
            if may_have_terms(change):
                of_docs.setdefault(change.key if isinstance(change, Item) else change.first, []).append(change)
        changes = [change for change in changes if not may_have_terms(change)]

        async def put(item: Item) -> None:
            await self._connection.repeat("put_item", **put_of(place, item))

        with _after_commit(place):
            await each(put, [change for change in changes if isinstance(change, Item)], at_once=AT_ONCE)
            await each(lambda one: self._terms.apply(place, one), of_docs.values(), at_once=AT_ONCE)
            cuts = [change for change in changes if isinstance(change, Cut)]
            singles = [cut for cut in cuts if cut.first == cut.last]  # a write may remove thousands of documents
            await each(lambda cut: self._cut_one(place, cut, cut.first), singles, at_once=AT_ONCE)
            for cut in cuts:
                if cut.first != cut.last:
                    await self._cut(place, cut)

    async def _cut(self, place: ItemsPlace, cut: Cut) -> None:
        wanted = _between(items_pk(place), cut.first, cut.last, "sk")
        async for page in self._connection.pages(**wanted, ProjectionExpression=_REVS):
            older = [one["sk"]["S"] for one in page if int(one["rev"]["N"]) < cut.rev and "gone" not in one]
            await each(lambda key: self._cut_one(place, cut, key), older, at_once=AT_ONCE)

    async def _cut_one(self, place: ItemsPlace, cut: Cut, key: str) -> None:
        """Turn an item into the tombstone of its removal, unless it is newer; where there is none, do nothing."""
        rev: Record = {"ConditionExpression": IF_OLDER, "ExpressionAttributeValues": {":rev": {"N": str(cut.rev)}}}
        await self._connection.repeat("put_item", Item=item_values(place, removed(key, cut.rev)), **rev)

    async def erase(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        wanted = _between(items_pk(place), first, last, "sk")
        async for page in self._connection.pages(**wanted, ProjectionExpression=_REVS):
            older = [{"pk": one["pk"], "sk": one["sk"]} for one in page if int(one["rev"]["N"]) < rev]
            await self._connection.delete_all(older)
            CALLER.get().goes_on()

    async def drop(self, place: ItemsPlace) -> None:
        for pk in (items_pk(place), parts_pk(place)):
            wanted: Record = {"KeyConditionExpression": "pk = :pk", "ExpressionAttributeValues": {":pk": pk}}
            async for page in self._connection.pages(**wanted, ProjectionExpression=_KEYS, ConsistentRead=True):
                await self._connection.delete_all(page)
                CALLER.get().goes_on()

    # --- parts

    async def put_parts(self, place: ItemsPlace, key: str, rev: int, parts: Sequence[bytes]) -> None:
        async def put(numbered: tuple[int, bytes]) -> None:
            number, part = numbered
            item = {**parts_key(place, key, rev, number), "rev": {"N": str(rev)}, "b": {"B": part}}
            await self._connection.repeat("put_item", Item=item)

        with _after_commit(place):
            await each(put, enumerate(parts), at_once=_PARTS_AT_ONCE)

    async def parts(self, place: ItemsPlace, key: str, rev: int) -> list[bytes]:
        first = parts_key(place, key, rev, 0)["sk"]["S"]
        wanted = _between(parts_pk(place), first, f"{first[:-6]}~", "sk")
        return [bytes(part["b"]["B"]) for part in await self._connection.query(**wanted)]

    async def drop_parts(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        wanted = _parts_between(place, first, last)
        async for page in self._connection.pages(**wanted, ProjectionExpression=_REVS):
            keys = [
                {"pk": part["pk"], "sk": part["sk"]}
                for part in page
                if int(part["rev"]["N"]) < rev and first <= part["sk"]["S"].rsplit("/", 2)[0] <= last
            ]
            await self._connection.delete_all(keys)

    async def part_keys(self, place: ItemsPlace, first: str, last: str) -> list[tuple[str, int]]:
        wanted = _parts_between(place, first, last)
        found = await self._connection.query(**wanted, ProjectionExpression=_REVS)
        keys = ((part["sk"]["S"].rsplit("/", 2)[0], int(part["rev"]["N"])) for part in found)
        return [key for key in dict.fromkeys(keys) if first <= key[0] <= last]


@contextmanager
def _after_commit(place: ItemsPlace) -> Iterator[None]:
    """Report a full agent without the words "nothing was written": the swap has committed already."""
    try:
        yield
    except PayloadTooLargeError as exc:
        raise StorageError(
            f"agent {place.agent_id!r} takes more than the 10 GB that DynamoDB keeps of one: nothing that was saved is "
            "lost, but it takes no more: delete it, or go on with another agent"
        ) from exc


def put_of(place: ItemsPlace, item: Item) -> Record:
    """The put of an item, unless its key has one of the same or a newer revision."""
    return {
        "Item": item_values(place, item),
        "ConditionExpression": UNLESS_NEWER,
        "ExpressionAttributeValues": {":rev": {"N": str(item.rev)}},
    }


def _parts_between(place: ItemsPlace, first: str, last: str) -> Record:
    """The query of the parts of a range of keys; of one key it reads no others, which may begin with that key."""
    return _between(parts_pk(place), f"{first}/" if first == last else first, f"{last}/~", "sk")


def _between(pk: Record, first: str, last: str, sk: str) -> Record:
    """The consistent query of a range of keys."""
    return {
        "KeyConditionExpression": f"pk = :pk AND {sk} BETWEEN :first AND :last",
        "ExpressionAttributeValues": {":pk": pk, ":first": {"S": first}, ":last": {"S": last}},
        "ConsistentRead": True,
    }
