"""Leases by the server's clock, in the document of the head. Each change is one conditional update.

There are no transactions: a client that is killed inside one would keep its documents locked for more than a minute.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from kode_core.batch import Fence
from kode_mongo.connection import Connection, Document
from kode_mongo.documents import NO_HEAD
from kode_mongo.errors import is_duplicate

__all__ = ["Leases", "held"]

_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NOW: Final = "$$NOW"
_IS_OVER: Final = {"$lte": [{"$ifNull": ["$lease.until", _LONG_AGO]}, _NOW]}


def held(fence: Fence) -> Document:
    """The filter for a head whose lease is held by this owner with this token."""
    return {
        "lease.owner": fence.owner,
        "lease.token": fence.token,
        "$expr": {"$gt": ["$lease.until", _NOW]},
    }


class Leases:
    """Leases of agents. A token is at least the server's time, so that it exceeds the last one of a forgotten head."""

    def __init__(self, connection: Connection, heads: Any) -> None:
        self._connection = connection
        self._heads = heads

    async def acquire(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        """The token, or None if another owner holds the lease. The present owner gets its own token again."""
        mine = {"$eq": ["$lease.owner", {"$literal": owner}]}
        change = [{"$set": {"lease": _lease(owner, mine, ttl_ms), **_not_forgotten(ttl_ms)}}]
        how = {"return_document": True, "projection": {"lease": 1}}

        async def call() -> Document | None:
            free = {"_id": agent_id, "$expr": {"$or": [_IS_OVER, mine]}}
            found: Document | None = await self._heads.find_one_and_update(free, change, **how)
            if found is not None:
                return found
            absent = {"_id": agent_id, "lease": {"$exists": False}}  # the server does not upsert with an $expr
            try:
                found = await self._heads.find_one_and_update(absent, change, upsert=True, **how)
            except Exception as exc:
                if is_duplicate(exc):
                    return None
                raise
            return found

        taken = await self._connection.repeat(call)  # the present owner gets its token again
        return None if taken is None else int(taken["lease"]["token"])

    async def renew(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        """Extend the lease. False if it has ended."""
        change = [{"$set": {"lease": {"until": _until(ttl_ms)}, **_not_forgotten(ttl_ms)}}]
        wanted = {"_id": agent_id, **held(fence)}
        done = await self._connection.repeat(lambda: self._heads.update_one(wanted, change))
        return bool(done.matched_count)

    async def release(self, agent_id: str, fence: Fence) -> None:
        """End the lease if this owner and token still hold it."""
        wanted = {"_id": agent_id, "lease.owner": fence.owner, "lease.token": fence.token}
        change = {"$set": {"lease.owner": "", "lease.until": _LONG_AGO}}
        await self._connection.repeat(lambda: self._heads.update_one(wanted, change))

    async def holds(self, agent_id: str, fence: Fence) -> bool:
        """Whether the lease is held by this owner with this token."""
        wanted = {"_id": agent_id, **held(fence)}
        return await self._connection.read(lambda: self._heads.find_one(wanted, {"_id": 1})) is not None


def _until(ttl_ms: int) -> Document:
    return {"$add": [_NOW, ttl_ms]}


def _lease(owner: str, mine: Document, ttl_ms: int) -> Document:
    following = {"$add": [{"$ifNull": ["$lease.token", 0]}, 1]}
    token = {"$cond": [mine, "$lease.token", {"$max": [following, {"$toLong": _NOW}]}]}
    return {"owner": {"$literal": owner}, "token": token, "until": _until(ttl_ms)}


def _not_forgotten(ttl_ms: int) -> Document:
    """The time after which a document without a live head is removed: a day after its lease ends."""
    no_head = {"$and": [{"$eq": [{"$type": f"${field}"}, "missing"]} for field in NO_HEAD]}
    is_nothing = {"$or": [no_head, {"$eq": [{"$type": "$gone"}, "date"]}]}
    return {"gone": {"$cond": [is_nothing, _until(ttl_ms), None]}}
