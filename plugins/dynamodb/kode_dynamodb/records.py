"""DynamoDB as a record store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from kode_core.authoring.parallel import each
from kode_core.batch import Fence, SessionRow, Totals
from kode_core.engine import CALLER, Medium, Progress, Watch, unwatched
from kode_core.engines.record.store import (
    Change,
    Cut,
    EventIndex,
    FoundItem,
    HeadRecord,
    Item,
    ItemsPlace,
    KeyRange,
    Note,
    Remains,
    removed,
)
from kode_core.engines.record.terms import DocSearch, may_have_terms
from kode_core.errors import CorruptRecordError, KodeError, PayloadTooLargeError, StorageError, UnsupportedError
from kode_core.query import RowQuery, SessionQuery, Within, values_of
from kode_dynamodb.connection import AT_ONCE, LOOKING, Connection, Record, connect
from kode_dynamodb.leases import Leases
from kode_dynamodb.notes import Notes
from kode_dynamodb.options import DynamoDBOptions
from kode_dynamodb.queries import Queries
from kode_dynamodb.table import has_schema, open_table
from kode_dynamodb.terms import IF_OLDER, UNLESS_NEWER, Terms, entries_of
from kode_dynamodb.values import (
    HEAD_FIELDS,
    agent_of,
    buckets,
    epochs_of,
    found_head,
    found_item,
    head_key,
    head_values,
    index_filter,
    item_key,
    item_values,
    items_pk,
    parts_key,
    parts_pk,
    settled_values,
)

__all__ = ["DynamoRecords", "has_table", "open_records"]

_SWAP_ITEMS: Final = 9
"""With the head, ten items: every version of the service and its emulators accepts so many in a transaction."""
_INLINE_BYTES: Final = 100_000
_PART_BYTES: Final = 340_000
_PARTS_AT_ONCE: Final = 4
_NO_HEAD: Final = " AND ".join(f"attribute_not_exists({name})" for name in sorted(HEAD_FIELDS))
_LOOKS: Final = 2
_BETWEEN_LOOKS_S: Final = 0.01
_KEYS: Final = "pk, sk"
_REVS: Final = "pk, sk, rev, gone"
_NO_BODIES: Final = "sk, rev, t, h, ix, p, alt, gone"


async def open_records(options: DynamoDBOptions) -> DynamoRecords:
    """Connect, and make the table if it is missing. Several processes may do so at once.

    Raises:
        StorageError: the service cannot be reached or used; the message says why.
    """
    connection = await connect(options)
    try:
        await open_table(connection, create=options.create)
    except BaseException:
        await connection.close()
        raise
    return DynamoRecords(connection, transactions=options.transactions)


async def has_table(options: DynamoDBOptions) -> bool:
    """True if kode's table exists, or if that cannot be determined."""
    try:
        connection = await connect(options)
    except KodeError:
        return True
    try:
        return await has_schema(connection)
    except KodeError:
        return True
    finally:
        await connection.close()


class DynamoRecords:
    """See :class:`kode_core.engines.record.store.RecordStore`.

    Attributes:
        connection: with the option ``count_units``, its ``units`` are the consumed units.
    """

    name = "dynamodb"
    finds_any_of = True
    finds_within = True
    inline_bytes = _INLINE_BYTES
    part_bytes = _PART_BYTES

    def __init__(self, connection: Connection, *, transactions: bool = False) -> None:
        self.swap_items = _SWAP_ITEMS if transactions else 0
        self.connection = connection
        self._notes = Notes(connection)
        self._leases = Leases(connection)
        self._queries = Queries(connection)
        self._terms = Terms(connection)

    def __repr__(self) -> str:
        return self.connection.address

    # --- heads

    async def heads(self, agent_ids: Sequence[str]) -> list[HeadRecord]:
        if len(agent_ids) == 1:
            one = await self.connection.get(head_key(agent_ids[0]))
            found = [] if one is None else [one]
        else:
            found = await self.connection.get_all([head_key(agent_id) for agent_id in dict.fromkeys(agent_ids)])
        return [head for head in [await self._head(one) for one in found] if head is not None]

    async def head_now(self, agent_id: str) -> HeadRecord | None:
        found = await self.heads([agent_id])  # reads of heads are consistent, and so never late
        return found[0] if found else None

    async def _head(self, found: Record) -> HeadRecord | None:
        """The head of an item. A damaged one is read once more, because moto shows half changed items."""
        for _ in range(_LOOKS):
            try:
                return found_head(found)
            except CorruptRecordError:
                await asyncio.sleep(_BETWEEN_LOOKS_S)
                found = await self.connection.get({"pk": found["pk"], "sk": found["sk"]}) or {}
        return found_head(found)

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        condition, values = _NO_HEAD, dict[str, Any]()
        if old is not None:
            condition, values[":old"] = "rev = :old", {"N": str(old.rev)}
        fenced = self._fenced(new.agent_id, fence, condition, values)
        if fenced is None:
            return False
        condition, values = fenced
        change = _update(new.agent_id, head_values(new), condition, values)
        if not items:
            return await self.connection.write("update_item", **change)
        table = {"TableName": self.connection.table}
        writes = [{"Update": {**table, **change}}, *({"Put": {**table, **_put(new.place, item)}} for item in items)]
        return await self.connection.write("transact_write_items", TransactItems=writes)

    def _fenced(self, agent_id: str, fence: Fence | None, condition: str, values: Record) -> tuple[str, Record] | None:
        """The condition, extended by the fence's; None if the lease has ended."""
        if fence is None:
            return condition, values
        held = self._leases.held(agent_id, fence)
        return None if held is None else (f"{condition} AND {held.text}", {**values, **held.values})

    async def remains(self, agent_id: str) -> Remains | None:
        found = await self.connection.get(head_key(agent_id))
        if found is None or not HEAD_FIELDS & found.keys():
            return None
        return Remains(agent_id, epochs_of(found), found)

    async def supplant(self, remains: Remains, new: HeadRecord, fence: Fence | None) -> bool:
        tests, values = list[str](), dict[str, Any]()
        for name in HEAD_FIELDS:
            if name in remains.stored:
                tests.append(f"{name} = :old_{name}")
                values[f":old_{name}"] = remains.stored[name]
            else:
                tests.append(f"attribute_not_exists({name})")
        fenced = self._fenced(new.agent_id, fence, " AND ".join(tests), values)
        return fenced is not None and await self.connection.write(
            "update_item", **_update(new.agent_id, head_values(new), *fenced)
        )

    async def settle(self, head: HeadRecord, *, lasting: bool = False) -> bool:  # every write lasts
        change = _update(head.agent_id, settled_values(head), "rev = :old", {":old": {"N": str(head.rev)}})
        return await self.connection.repeat("update_item", **change)

    async def unsettled(self) -> list[str]:
        wanted: Record = {"IndexName": "pending", "KeyConditionExpression": "pd = :pd"}

        async def of(bucket: str) -> list[Record]:
            return await self.connection.query(**wanted, ExpressionAttributeValues={":pd": {"S": bucket}})

        return [agent_of(entry) for entries in await each(of, buckets("h")) for entry in entries]

    # --- items

    async def items(self, place: ItemsPlace, keys: KeyRange) -> list[Item]:
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
        return [found_item(record) async for page in self.connection.pages(**wanted, limit=limit) for record in page]

    async def _of_channel(self, wanted: Record, keys: KeyRange) -> list[Item]:
        """The events of a channel, which is not part of a key."""
        found: list[Item] = []
        wanted = index_filter("events", [("channel", keys.channel or "")]).added_to(wanted)
        async for page in self.connection.pages(**wanted, sizes=LOOKING):
            items = map(found_item, page)
            found += [i for i in items if isinstance(i.index, EventIndex) and i.index.channel == keys.channel]
            if keys.limit is not None and len(found) >= keys.limit:
                return found[: keys.limit]
        return found

    async def _with_bodies(self, place: ItemsPlace, items: Sequence[Item]) -> list[Item]:
        stored = await self.connection.get_all([item_key(place, item.key) for item in items])
        by_key = {item.key: item for item in map(found_item, stored)}
        return [by_key[item.key] for item in items if item.key in by_key]

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        if fresh:
            items = [item for item in changes if isinstance(item, Item)]
            entries = [entry for item in items for entry in entries_of(place, item)]
            await self.connection.put_all([*(item_values(place, item) for item in items), *entries])
            return
        of_docs: dict[str, list[Change]] = {}
        for change in changes:
            if may_have_terms(change):
                of_docs.setdefault(change.key if isinstance(change, Item) else change.first, []).append(change)
        changes = [change for change in changes if not may_have_terms(change)]

        async def put(item: Item) -> None:
            await self.connection.repeat("put_item", **_put(place, item))

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
        async for page in self.connection.pages(**wanted, ProjectionExpression=_REVS):
            older = [one["sk"]["S"] for one in page if int(one["rev"]["N"]) < cut.rev and "gone" not in one]
            await each(lambda key: self._cut_one(place, cut, key), older, at_once=AT_ONCE)

    async def _cut_one(self, place: ItemsPlace, cut: Cut, key: str) -> None:
        """Turn an item into the tombstone of its removal, unless it is newer; where there is none, do nothing."""
        rev: Record = {"ConditionExpression": IF_OLDER, "ExpressionAttributeValues": {":rev": {"N": str(cut.rev)}}}
        await self.connection.repeat("put_item", Item=item_values(place, removed(key, cut.rev)), **rev)

    async def erase(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        wanted = _between(items_pk(place), first, last, "sk")
        async for page in self.connection.pages(**wanted, ProjectionExpression=_REVS):
            older = [{"pk": one["pk"], "sk": one["sk"]} for one in page if int(one["rev"]["N"]) < rev]
            await self.connection.delete_all(older)
            CALLER.get().goes_on()

    async def drop(self, place: ItemsPlace) -> None:
        for pk in (items_pk(place), parts_pk(place)):
            wanted: Record = {"KeyConditionExpression": "pk = :pk", "ExpressionAttributeValues": {":pk": pk}}
            async for page in self.connection.pages(**wanted, ProjectionExpression=_KEYS, ConsistentRead=True):
                await self.connection.delete_all(page)
                CALLER.get().goes_on()

    # --- parts

    async def put_parts(self, place: ItemsPlace, key: str, rev: int, parts: Sequence[bytes]) -> None:
        async def put(numbered: tuple[int, bytes]) -> None:
            number, part = numbered
            item = {**parts_key(place, key, rev, number), "rev": {"N": str(rev)}, "b": {"B": part}}
            await self.connection.repeat("put_item", Item=item)

        with _after_commit(place):
            await each(put, enumerate(parts), at_once=_PARTS_AT_ONCE)

    async def parts(self, place: ItemsPlace, key: str, rev: int) -> list[bytes]:
        first = parts_key(place, key, rev, 0)["sk"]["S"]
        wanted = _between(parts_pk(place), first, f"{first[:-6]}~", "sk")
        return [bytes(part["b"]["B"]) for part in await self.connection.query(**wanted)]

    async def drop_parts(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        wanted = _parts_between(place, first, last)
        async for page in self.connection.pages(**wanted, ProjectionExpression=_REVS):
            keys = [
                {"pk": part["pk"], "sk": part["sk"]}
                for part in page
                if int(part["rev"]["N"]) < rev and first <= part["sk"]["S"].rsplit("/", 2)[0] <= last
            ]
            await self.connection.delete_all(keys)

    async def part_keys(self, place: ItemsPlace, first: str, last: str) -> list[tuple[str, int]]:
        wanted = _parts_between(place, first, last)
        found = await self.connection.query(**wanted, ProjectionExpression=_REVS)
        keys = ((part["sk"]["S"].rsplit("/", 2)[0], int(part["rev"]["N"])) for part in found)
        return [key for key in dict.fromkeys(keys) if first <= key[0] <= last]

    # --- notes

    async def note(self, note: Note) -> None:
        await self._notes.add(note)

    async def notes(self, until: int, limit: int) -> list[Note]:
        return await self._notes.until(until, limit)

    async def notes_of(self, agent_id: str) -> list[Note]:
        return await self._notes.of(agent_id)

    async def forget(self, note: Note) -> None:
        await self._notes.remove(note)

    # --- queries

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> list[str]:
        return await self._queries.agent_ids(prefix, after, limit)

    async def stored_ids(self, after: str | None, limit: int) -> list[str]:
        return await self._queries.stored_ids(after, limit)

    async def find_sessions(self, query: SessionQuery) -> list[SessionRow]:
        return await self._queries.find_sessions(query)

    async def find_items(self, query: RowQuery) -> list[FoundItem]:
        if query.agent_id is None or isinstance(query.agent_id, Within):
            return await self._queries.find_items(query, None)
        heads = await self.heads(values_of(query.agent_id))
        return await self._queries.find_items(query, [head.place for head in heads]) if heads else []

    async def find_docs(self, search: DocSearch) -> list[FoundItem]:
        if search.agent_id is None:
            return await self._terms.find(search, None)
        heads = await self.heads([search.agent_id])
        return await self._terms.find(search, heads[0].place) if heads else []

    async def totals(self) -> Totals:
        return await self._queries.totals()

    # --- leases

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await self._leases.acquire(agent_id, owner, ttl_ms)

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await self._leases.renew(agent_id, fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self._leases.release(agent_id, fence)

    async def holds_lease(self, agent_id: str, fence: Fence) -> bool:
        return await self._leases.holds(agent_id, fence)

    # --- operations

    def watch(self, agent_id: str, wake: Callable[[], None]) -> Watch | None:
        return None

    def probes(self) -> list[tuple[Medium, Callable[[], Awaitable[None]]]]:
        async def probe() -> None:
            await self.connection.repeat("put_item", Item={"pk": {"S": "meta"}, "sk": {"S": "health"}})

        return [("database", probe)]

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        raise UnsupportedError(
            "a table of DynamoDB is backed up by AWS: point-in-time recovery, or aws dynamodb create-backup"
        )

    async def close(self) -> None:
        await self.connection.close()


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


def _update(agent_id: str, values: Mapping[str, Record | None], condition: str, given: Record) -> Record:
    """The update of a head to these values. It leaves all other attributes alone."""
    names = {f"#{n}": name for n, name in enumerate(values)}
    sets = [f"#{n} = :v{n}" for n, value in enumerate(values.values()) if value is not None]
    gone = [f"#{n}" for n, value in enumerate(values.values()) if value is None]
    parts = [f"SET {', '.join(sets)}" if sets else "", f"REMOVE {', '.join(gone)}" if gone else ""]
    settings = {f":v{n}": value for n, value in enumerate(values.values()) if value is not None}
    return {
        "Key": head_key(agent_id),
        "UpdateExpression": " ".join(filter(None, parts)),
        "ConditionExpression": condition,
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": {**settings, **given},
    }


def _put(place: ItemsPlace, item: Item) -> Record:
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
