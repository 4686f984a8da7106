"""MongoDB as a record store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from kode_core.authoring.closing import close_all
from kode_core.batch import Fence, SessionRow, Totals
from kode_core.engine import Medium, Progress, Watch, unwatched
from kode_core.engines.record.store import Change, FoundItem, HeadRecord, Item, ItemsPlace, KeyRange, Note, Remains
from kode_core.engines.record.terms import DocSearch
from kode_core.errors import UnsupportedError
from kode_core.ids import prefix_end
from kode_core.query import RowQuery, SessionQuery
from kode_mongo.connection import Connection, Document, connect, is_replicated
from kode_mongo.documents import (
    NO_BODIES,
    NO_HEAD,
    as_found,
    found_anywhere,
    found_head,
    found_session,
    head_fields,
    is_lease_alone,
    readable,
    settled_fields,
)
from kode_mongo.errors import is_duplicate
from kode_mongo.items import Items
from kode_mongo.leases import Leases, held
from kode_mongo.migrations import migrate
from kode_mongo.notes import Notes
from kode_mongo.options import MongoOptions
from kode_mongo.queries import docs_wanted, rows_wanted, sessions_wanted
from kode_mongo.schema import HEADS, ITEMS, META
from kode_mongo.watch import HeadWatcher

__all__ = ["MongoRecords", "open_records"]

_INLINE_BYTES: Final = 4_000_000
_PART_BYTES: Final = 8_000_000
_NO_LEASE: Final = {"lease": 0}


async def open_records(options: MongoOptions) -> MongoRecords:
    """Connect, and bring the indexes to this version. Several processes may do so at once.

    Raises:
        StorageError: the server cannot be reached or used; the message says why.
    """
    connection = connect(options)
    try:
        hello = await connection.hello()
        await migrate(connection, options, hello)
    except BaseException:
        await connection.close()
        raise
    streams = is_replicated(hello)
    return MongoRecords(connection, watcher=HeadWatcher(connection.collection(HEADS)) if streams else None)


class MongoRecords:
    """See :class:`kode_core.engines.record.store.RecordStore`."""

    name = "mongo"
    finds_any_of = True
    finds_within = True
    inline_bytes = _INLINE_BYTES
    part_bytes = _PART_BYTES
    swap_items = 0

    def __init__(self, connection: Connection, *, watcher: HeadWatcher | None) -> None:
        self.connection = connection
        self._heads = connection.collection(HEADS)
        self._heads_now = self._heads if watcher is None else connection.never_late(self._heads)
        self._settled = connection.collection(HEADS, lasting=False)
        self._items = connection.collection(ITEMS)
        self._meta = connection.collection(META)
        self._rows = Items(connection)
        self._notes = Notes(connection, self._rows)
        self._leases = Leases(connection, self._heads)
        self._watcher = watcher

    def __repr__(self) -> str:
        return self.connection.address

    # --- heads

    async def heads(self, agent_ids: Sequence[str]) -> list[HeadRecord]:
        these = {"$in": list(agent_ids)}
        found = await self.connection.pages(self._heads, {}, "_id", these, projection=_NO_LEASE)
        return [found_head(head) for head in found if not is_lease_alone(head)]

    async def head_now(self, agent_id: str) -> HeadRecord | None:
        found = await self.connection.read(lambda: self._heads_now.find_one({"_id": agent_id}, _NO_LEASE))
        return None if found is None or is_lease_alone(found) else found_head(found)

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        wanted: Document = {"_id": new.agent_id, **(NO_HEAD if old is None else {"rev": old.rev})}
        if fence is not None:
            wanted |= held(fence)
        upsert = old is None and fence is None
        change = _head_change(new, head_fields(new))

        async def call() -> bool:
            try:
                done = await self._heads.update_one(wanted, change, upsert=upsert)
            except Exception as exc:
                if is_duplicate(exc):
                    return False
                raise
            return bool(done.matched_count or done.upserted_id is not None)

        return await self.connection.write(call)

    async def settle(self, head: HeadRecord, *, lasting: bool = False) -> bool:
        wanted, change = {"_id": head.agent_id, "rev": head.rev}, _head_change(head, settled_fields(head))
        heads = self._heads if lasting else self._settled
        done = await self.connection.repeat(lambda: heads.update_one(wanted, change))
        return bool(done.matched_count)

    async def remains(self, agent_id: str) -> Remains | None:
        found = await self.connection.read(lambda: self._heads.find_one({"_id": agent_id}, _NO_LEASE))
        if found is None or is_lease_alone(found):
            return None
        return Remains(agent_id, await self._rows.epochs(agent_id), found)

    async def supplant(self, remains: Remains, new: HeadRecord, fence: Fence | None) -> bool:
        wanted = as_found(remains.stored, held(fence) if fence is not None else {})
        change = _head_change(new, head_fields(new))
        done = await self.connection.write(lambda: self._heads.update_one(wanted, change))
        return bool(done.matched_count)

    async def unsettled(self) -> list[str]:
        found = await self.connection.find(self._heads, {"pending": True}, projection={"_id": 1})
        return [head["_id"] for head in found]

    # --- items and parts

    async def items(self, place: ItemsPlace, keys: KeyRange) -> list[Item]:
        return await self._rows.read(place, keys)

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        await self._rows.apply(place, changes)

    async def erase(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        await self._rows.erase(place, first, last, rev)

    async def drop(self, place: ItemsPlace) -> None:
        await self._rows.drop(place)

    async def put_parts(self, place: ItemsPlace, key: str, rev: int, parts: Sequence[bytes]) -> None:
        await self._rows.put_parts(place, key, rev, parts)

    async def parts(self, place: ItemsPlace, key: str, rev: int) -> list[bytes]:
        return await self._rows.parts(place, key, rev)

    async def drop_parts(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        await self._rows.drop_parts(place, first, last, rev)

    async def part_keys(self, place: ItemsPlace, first: str, last: str) -> list[tuple[str, int]]:
        return await self._rows.part_keys(place, first, last)

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
        wanted: Document = {"listed": True}
        bounds: Document = {}
        if prefix:
            bounds = {"$gte": prefix}
            end = prefix_end(prefix)
            bounds |= {"$lt": end} if end is not None else {}
        if after is not None:
            bounds["$gt"] = after
        if bounds:
            wanted["_id"] = bounds
        found = await self.connection.find(
            self._heads, wanted, projection={"_id": 1}, sort=[("_id", 1)], limit=limit, hint=[("_id", 1)]
        )
        return [head["_id"] for head in found]

    async def stored_ids(self, after: str | None, limit: int) -> list[str]:
        wanted: Document = {"$or": [{"used": True}, {"listed": True}]}
        if after is not None:
            wanted["_id"] = {"$gt": after}
        found = await self.connection.find(
            self._heads, wanted, projection={"_id": 1}, sort=[("_id", 1)], limit=limit, hint=[("_id", 1)]
        )
        return [head["_id"] for head in found]

    async def find_sessions(self, query: SessionQuery) -> list[SessionRow]:
        wanted, sort = sessions_wanted(query)
        fields = ("info", "digest", "created_at", "updated_at", "messages.count")
        found = await self.connection.find(
            self._heads, wanted, projection=dict.fromkeys(fields, 1), sort=sort, skip=query.offset, limit=query.limit
        )
        return readable(found_session, found)

    async def find_items(self, query: RowQuery) -> list[FoundItem]:
        wanted, sort = rows_wanted(query)
        found = await self.connection.find(self._items, wanted, sort=sort, limit=query.limit)
        return readable(found_anywhere, found)

    async def find_docs(self, search: DocSearch) -> list[FoundItem]:
        wanted, sort = docs_wanted(search)
        projection = None if search.bodies else NO_BODIES
        hint = [("terms", 1), *((field, 1) for field, _ in sort)]
        found = await self.connection.find(
            self._items, wanted, sort=sort, limit=search.limit, projection=projection, hint=hint
        )
        return readable(found_anywhere, found)

    async def totals(self) -> Totals:
        counts: Document = {
            "_id": None,
            "agents": {"$sum": {"$cond": ["$listed", 1, 0]}},
            "messages": {"$sum": "$messages.count"},
            "tool_calls": {"$sum": "$tool_calls.count"},
            "used": {"$max": "$used"},
        }
        found = await self.connection.aggregate(
            self._heads, [{"$match": {"rev": {"$exists": True}}}, {"$group": counts}]
        )
        if not found:
            return Totals()
        (sums,) = found
        return Totals(
            agents=int(sums["agents"]),
            messages=int(sums["messages"]),
            tool_calls=int(sums["tool_calls"]),
            is_used=bool(sums["used"]),
        )

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
        return None if self._watcher is None else self._watcher.watch(agent_id, wake)

    def probes(self) -> list[tuple[Medium, Callable[[], Awaitable[None]]]]:
        async def probe() -> None:
            write = {"$set": {"checked": True}}
            await self.connection.repeat(lambda: self._meta.update_one({"_id": "health"}, write, upsert=True))

        return [("database", probe)]

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        raise UnsupportedError(f"a MongoDB database is backed up with mongodump: mongodump --archive={target}")

    async def close(self) -> None:
        await close_all(None if self._watcher is None else self._watcher.close, self.connection.close)


def _head_change(head: HeadRecord, fields: Document) -> Document:
    """The update to these fields. A tombstone gets its time, so that the server removes it later."""
    if head.is_tombstone:
        return {"$set": fields, "$currentDate": {"gone": True}}
    return {"$set": {**fields, "gone": None}}
