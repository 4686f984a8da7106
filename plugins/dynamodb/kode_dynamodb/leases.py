"""Leases without a clock that two machines would have to share.

Every lease has a nonce, which each renewal changes. Who finds one that is held takes it only when the nonce stayed the
same for the whole lease, by its own clock. The holder's own store counts by its own clock, too.
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

_WANTED: Final = "lo, ln, lr, lt, #rev, #ttl"
_NAMES: Final = {"#rev": "rev", "#ttl": TTL}
_KEPT: Final = 10_000
_DOUBT_S: Final = 3.0


class Condition(NamedTuple):
    """A condition and its values."""

    text: str
    values: Record


class _Seen(NamedTuple):
    """A nonce, and since when it was seen."""

    nonce: str
    since: float


class Leases:
    """The leases of one store; what they are known by lies in the items of the heads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._seen: dict[str, _Seen] = {}
        self._until: dict[tuple[str, Fence], float] = {}

    async def acquire(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        """The new token, or None when the lease is held; an owner that asks again gets its own."""
        begun = time.monotonic()
        while True:
            try:
                token = await self._acquire(agent_id, owner, ttl_ms)
            except OutcomeUnknownError:
                if time.monotonic() > begun + _DOUBT_S:
                    raise
                continue  # the next look tells; what arrives late is refused, as the nonce is another one by then
            if token is not None:
                self._until.setdefault((agent_id, Fence(owner, token)), begun + ttl_ms / 1000)
            return token

    async def _acquire(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        key = head_key(agent_id)
        found = await self._connection.get(key, ProjectionExpression=_WANTED, ExpressionAttributeNames=_NAMES) or {}
        token, holder = int(found.get("ln", {"N": "0"})["N"]), found.get("lo", {}).get("S")
        if holder == owner:
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
        if "rev" not in found or TTL in found:  # nothing but a lease: it is removed a day after it ended
            change, names = f"{change}, #ttl = :ttl", {"ExpressionAttributeNames": {"#ttl": TTL}}
            values[":ttl"] = {"N": str(int(time.time() + ttl_ms / 1000) + DAY_S)}
        taken = await self._connection.write(
            "update_item",
            Key=key,
            UpdateExpression=change,
            ConditionExpression=condition,
            ExpressionAttributeValues=values,
            **names,
        )
        if not taken:
            return None
        self._seen.pop(agent_id, None)
        self._trim()
        return new

    def _is_over(self, agent_id: str, nonce: str, ttl_ms: int) -> bool:
        """Whether the lease was not renewed for as long as it lasts, since it was first seen here."""
        now, seen = time.monotonic(), self._seen.get(agent_id)
        if seen is None or seen.nonce != nonce:
            if len(self._seen) >= _KEPT:
                self._seen.pop(next(iter(self._seen)))
            self._seen[agent_id] = _Seen(nonce, now)
            return False
        return now - seen.since > ttl_ms / 1000

    async def renew(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        """False when the lease ended."""
        begun = time.monotonic()
        held = self.held(agent_id, fence)
        if held is None:
            return False
        lease = _lease(fence.owner, fence.token, ttl_ms)
        done = await self._connection.repeat(
            "update_item",
            Key=head_key(agent_id),
            UpdateExpression="SET lr = :fresh, lt = :time",
            ConditionExpression=held.text,
            ExpressionAttributeValues={**held.values, ":fresh": lease[":fresh"], ":time": lease[":time"]},
        )
        if done:
            self._until[agent_id, fence] = begun + ttl_ms / 1000
        return done

    async def release(self, agent_id: str, fence: Fence) -> None:
        """End the lease if it is still this one."""
        self._until.pop((agent_id, fence), None)
        held = _of(fence)
        await self._connection.repeat(
            "update_item",
            Key=head_key(agent_id),
            UpdateExpression="REMOVE lo, lr, lt",
            ConditionExpression=held.text,
            ExpressionAttributeValues=held.values,
        )

    async def holds(self, agent_id: str, fence: Fence) -> bool:
        """Whether the lease is held, by that owner, with that token."""
        if self.held(agent_id, fence) is None:
            return False
        found = await self._connection.get(head_key(agent_id), ProjectionExpression="lo, ln")
        lease: Any = found or {}
        return "lo" in lease and lease["lo"]["S"] == fence.owner and int(lease["ln"]["N"]) == fence.token

    def held(self, agent_id: str, fence: Fence) -> Condition | None:
        """The condition that this lease is held; None when it ended, by the clock of the store that took it."""
        until = self._until.get((agent_id, fence))
        return None if until is not None and time.monotonic() > until else _of(fence)

    def _trim(self) -> None:
        if len(self._until) >= _KEPT:
            now = time.monotonic()
            self._until = {key: end for key, end in self._until.items() if end > now - DAY_S}


def _of(fence: Fence) -> Condition:
    values = {":owner": {"S": fence.owner}, ":token": {"N": str(fence.token)}}
    return Condition("lo = :owner AND ln = :token", values)


def _lease(owner: str, token: int, ttl_ms: int) -> Record:
    fresh = {"S": secrets.token_hex(8)}
    return {":owner": {"S": owner}, ":token": {"N": str(token)}, ":fresh": fresh, ":time": {"N": str(ttl_ms)}}
