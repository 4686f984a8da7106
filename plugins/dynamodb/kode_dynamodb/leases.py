"""Leases that need no common clock.

Every lease has a nonce that each renewal changes. Another owner takes a held lease only after it has seen the same
nonce for the whole length of the lease, by its own clock. The holder's store counts by its own clock, too.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, Final, NamedTuple

from kode_core.batch import Fence
from kode_core.errors import OutcomeUnknownError
from kode_dynamodb.connection import Connection, Record
from kode_dynamodb.schema import DAY_S, TTL
from kode_dynamodb.values import head_key

__all__ = ["Condition", "Leases"]

_WANTED: Final = "lo, ln, lr, lt, ep, #rev, #ttl"
_NAMES: Final = {"#rev": "rev", "#ttl": TTL}
_TTL_NAME: Final = {"ExpressionAttributeNames": {"#ttl": TTL}}
_KEPT: Final = 10_000
_DOUBT_S: Final = 3.0


class Condition(NamedTuple):
    """A condition and its values."""

    text: str
    values: Record


class _Seen(NamedTuple):
    """A nonce, and the time when it was first seen."""

    nonce: str
    since: float


class _Held(NamedTuple):
    """The end of a lease, and whether its item has a time to live because it holds only the lease."""

    until: float
    is_alone: bool


class Leases:
    """The leases of one store. They are stored in the items of the heads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._seen: dict[str, _Seen] = {}
        self._held: dict[tuple[str, Fence], _Held] = {}

    async def acquire(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        """The token, or None if another owner holds the lease. The present owner gets its own token again."""
        begun = time.monotonic()
        while True:
            try:
                return await self._acquire(agent_id, owner, ttl_ms, begun)
            except OutcomeUnknownError:
                if time.monotonic() > begun + _DOUBT_S:
                    raise
                # read again: a late write is refused, because the nonce has changed by then

    async def _acquire(self, agent_id: str, owner: str, ttl_ms: int, begun: float) -> int | None:
        key = head_key(agent_id)
        found = await self._connection.get(key, ProjectionExpression=_WANTED, ExpressionAttributeNames=_NAMES) or {}
        token, holder = int(found.get("ln", {"N": "0"})["N"]), found.get("lo", {}).get("S")
        is_alone = TTL in found or ("rev" not in found and "ep" not in found)
        held = _Held(begun + ttl_ms / 1000, is_alone)
        if holder == owner:
            self._held.setdefault((agent_id, Fence(owner, token)), held)
            return token
        if holder is not None and not self._is_over(agent_id, found["lr"]["S"], int(found["lt"]["N"])):
            return None
        new = max(token + 1, int(time.time() * 1000))
        values = _lease(owner, new, ttl_ms)
        if holder is None:
            condition = "attribute_not_exists(lo) AND " + ("ln = :old" if token else "attribute_not_exists(ln)")
        else:
            condition, values[":nonce"] = "lr = :nonce AND ln = :old", found["lr"]
        if token:
            values[":old"] = {"N": str(token)}
        change = "SET lo = :owner, ln = :token, lr = :fresh, lt = :time"
        names: Record = {}
        if is_alone:  # the service removes it a day after its end, unless the agent is saved meanwhile
            change, names = f"{change}, #ttl = :ttl", _TTL_NAME
            condition = f"{condition} AND (attribute_not_exists(rev) OR attribute_exists(#ttl))"
            values[":ttl"] = _ttl(ttl_ms)
        taken = await self._connection.write(
            "update_item",
            Key=key,
            UpdateExpression=change,
            ConditionExpression=condition,
            ExpressionAttributeValues=values,
            **names,
        )
        if not taken:  # another owner took it, or the agent was made meanwhile
            return await self._acquire(agent_id, owner, ttl_ms, begun) if is_alone else None
        self._seen.pop(agent_id, None)
        self._trim()
        self._held[agent_id, Fence(owner, new)] = held
        return new

    def _is_over(self, agent_id: str, nonce: str, ttl_ms: int) -> bool:
        """Whether this store has seen the same nonce for the whole length of the lease."""
        now, seen = time.monotonic(), self._seen.get(agent_id)
        if seen is None or seen.nonce != nonce:
            if len(self._seen) >= _KEPT:
                self._seen.pop(next(iter(self._seen)))
            self._seen[agent_id] = _Seen(nonce, now)
            return False
        return now - seen.since > ttl_ms / 1000

    async def renew(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        """Extend the lease. False if it has ended."""
        begun = time.monotonic()
        if self.held(agent_id, fence) is None:
            return False
        known = self._held.get((agent_id, fence))
        is_alone = known is not None and known.is_alone
        for guess in (is_alone, not is_alone):  # the agent may have been made or deleted since
            if await self._renew(agent_id, fence, ttl_ms, is_alone=guess):
                self._held[agent_id, fence] = _Held(begun + ttl_ms / 1000, guess)
                return True
        return False

    async def _renew(self, agent_id: str, fence: Fence, ttl_ms: int, *, is_alone: bool) -> bool:
        """Renew the lease if its item has a time to live, which is extended, or if it has none."""
        held, lease = _of(fence), _lease(fence.owner, fence.token, ttl_ms)
        values = {**held.values, ":fresh": lease[":fresh"], ":time": lease[":time"]}
        return await self._connection.repeat(
            "update_item",
            Key=head_key(agent_id),
            UpdateExpression="SET lr = :fresh, lt = :time" + (", #ttl = :ttl" if is_alone else ""),
            ConditionExpression=f"{held.text} AND attribute_{'' if is_alone else 'not_'}exists(#ttl)",
            ExpressionAttributeValues={**values, ":ttl": _ttl(ttl_ms)} if is_alone else values,
            **_TTL_NAME,
        )

    async def release(self, agent_id: str, fence: Fence) -> None:
        """End the lease if this owner and token still hold it."""
        self._held.pop((agent_id, fence), None)
        held = _of(fence)
        await self._connection.repeat(
            "update_item",
            Key=head_key(agent_id),
            UpdateExpression="REMOVE lo, lr, lt",
            ConditionExpression=held.text,
            ExpressionAttributeValues=held.values,
        )

    async def holds(self, agent_id: str, fence: Fence) -> bool:
        """Whether the lease is held by this owner with this token."""
        if self.held(agent_id, fence) is None:
            return False
        found = await self._connection.get(head_key(agent_id), ProjectionExpression="lo, ln")
        lease: Any = found or {}
        return "lo" in lease and lease["lo"]["S"] == fence.owner and int(lease["ln"]["N"]) == fence.token

    def held(self, agent_id: str, fence: Fence) -> Condition | None:
        """The condition that this lease is held; None if it has ended by this store's clock."""
        known = self._held.get((agent_id, fence))
        return None if known is not None and time.monotonic() > known.until else _of(fence)

    def _trim(self) -> None:
        if len(self._held) >= _KEPT:
            now = time.monotonic()
            self._held = {key: held for key, held in self._held.items() if held.until > now - DAY_S}


def _of(fence: Fence) -> Condition:
    values = {":owner": {"S": fence.owner}, ":token": {"N": str(fence.token)}}
    return Condition("lo = :owner AND ln = :token", values)


def _lease(owner: str, token: int, ttl_ms: int) -> Record:
    fresh = {"S": secrets.token_hex(8)}
    return {":owner": {"S": owner}, ":token": {"N": str(token)}, ":fresh": fresh, ":time": {"N": str(ttl_ms)}}


def _ttl(ttl_ms: int) -> Record:
    """The time after which the service may remove the item of an ended lease."""
    return {"N": str(int(time.time() + ttl_ms / 1000) + DAY_S)}
