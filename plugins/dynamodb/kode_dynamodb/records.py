"""DynamoDB as a record store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kode_core.authoring.parallel import each
from kode_core.batch import Fence, SessionRow, Totals
from kode_core.engine import Medium, Progress, Watch, unwatched
from kode_core.engines.record.store import (
    Change,
    FoundItem,
    HeadRecord,
    Item,
    ItemsPlace,
    KeyRange,
    Note,
    Remains,
)
from kode_core.engines.record.terms import DocSearch
from kode_core.errors import CorruptRecordError, KodeError, UnsupportedError
from kode_core.query import RowQuery, SessionQuery, Within, values_of
from kode_dynamodb.connection import Connection, Record, connect
from kode_dynamodb.items import Items, put_of
from kode_dynamodb.leases import Leases
from kode_dynamodb.notes import Notes
from kode_dynamodb.options import DynamoDBOptions
from kode_dynamodb.queries import Queries
from kode_dynamodb.table import has_schema, open_table
from kode_dynamodb.terms import Terms
from kode_dynamodb.values import (
    HEAD_FIELDS,
    agent_of,
    buckets,
    epochs_of,
    found_head,
    head_key,
    head_values,
    settled_values,
)

__all__ = ["DynamoRecords", "has_table", "open_records"]

_SWAP_ITEMS: Final = 9
"""With the head, ten items: every version of the service and its emulators accepts so many in a transaction."""
_INLINE_BYTES: Final = 100_000
_PART_BYTES: Final = 340_000
_NO_HEAD: Final = " AND ".join(f"attribute_not_exists({name})" for name in sorted(HEAD_FIELDS))
_LOOKS: Final = 2
_BETWEEN_LOOKS_S: Final = 0.01


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
        self._items = Items(connection, self._terms)

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
        writes = [{"Update": {**table, **change}}, *({"Put": {**table, **put_of(new.place, item)}} for item in items)]
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

    # --- items and parts

    async def items(self, place: ItemsPlace, keys: KeyRange) -> list[Item]:
        return await self._items.read(place, keys)

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        await self._items.apply(place, changes, fresh=fresh)

    async def erase(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        await self._items.erase(place, first, last, rev)

    async def drop(self, place: ItemsPlace) -> None:
        await self._items.drop(place)

    async def put_parts(self, place: ItemsPlace, key: str, rev: int, parts: Sequence[bytes]) -> None:
        await self._items.put_parts(place, key, rev, parts)

    async def parts(self, place: ItemsPlace, key: str, rev: int) -> list[bytes]:
        return await self._items.parts(place, key, rev)

    async def drop_parts(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        await self._items.drop_parts(place, first, last, rev)

    async def part_keys(self, place: ItemsPlace, first: str, last: str) -> list[tuple[str, int]]:
        return await self._items.part_keys(place, first, last)

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
