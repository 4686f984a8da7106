"""Leases by the server's clock: one statement each."""

from __future__ import annotations

from kode_core.batch import Fence
from kode_postgres.doubts import Never
from kode_postgres.schema import Tables
from kode_postgres.session import Session
from kode_postgres.statements import LOCK_WAIT, NOW, sync
from kode_postgres.trouble import AgainError

__all__ = ["Leases"]


class Leases:
    """The leases of one store. The row stays when its lease has ended, so that no token is used again.

    A statement that is delivered late takes no lease, because no store would know that it holds it.
    """

    def __init__(self, tables: Tables, *, durable: bool) -> None:
        t, until = tables.leases, "clock_timestamp() + $3::bigint * interval '1 millisecond'"
        is_wanted = f"{NOW} < $4::bigint"
        given = (
            f"(SELECT set_config('lock_timeout', '{LOCK_WAIT}', true) AS limited, {sync(durable)} AS synced OFFSET 0) s"
        )
        # A held lease is only read: trying for its row would use up a transaction id, again and again.
        held = f"SELECT FROM {t} h WHERE h.agent_id = $1 AND h.owner <> $2 AND h.expires > clock_timestamp()"
        self._acquire = (
            f"WITH taken AS (INSERT INTO {t} AS l (agent_id, owner, token, expires)"
            f" SELECT $1, $2, 1, {until} FROM {given} WHERE s.limited IS NOT NULL AND {is_wanted}"
            f" AND NOT EXISTS ({held})"
            " ON CONFLICT (agent_id) DO UPDATE SET owner = excluded.owner,"
            " token = CASE l.owner WHEN excluded.owner THEN l.token ELSE l.token + 1 END, expires = excluded.expires"
            f" WHERE (l.expires <= clock_timestamp() OR l.owner = excluded.owner) AND {is_wanted} RETURNING token)"
            f" SELECT (SELECT token FROM taken), {NOW}"
        )
        mine = "l.agent_id = $1 AND l.owner = $2"
        limited = f"FROM {given} WHERE s.limited IS NOT NULL AND {mine}"
        is_held = "l.token = $4 AND l.expires > clock_timestamp()"
        self._renew = f"UPDATE {t} l SET expires = {until} {limited} AND {is_held} RETURNING 1"
        gone = f"UPDATE {t} l SET expires = '-infinity', owner = '' {limited}"
        self._release = f"{gone} AND l.token = $3"
        self._never = gone

    def never(self, agent_id: str, owner: str) -> Never:
        """A statement that ends the lease that the owner may hold."""
        return Never(self._never, (agent_id, owner))

    async def acquire(self, session: Session, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        """The new token, or None if the lease is held; an owner that asks again gets its own token."""
        token, now = (await session.fetch(self._acquire, agent_id, owner, ttl_ms, session.until))[0]
        session.clock.heard(now)
        if token is None and now >= session.until:
            raise AgainError("the statement was delivered late")
        return None if token is None else int(token)

    async def renew(self, session: Session, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        """Prolong the lease; False if it ended."""
        return bool(await session.fetch(self._renew, agent_id, fence.owner, ttl_ms, fence.token))

    async def release(self, session: Session, agent_id: str, fence: Fence) -> None:
        """End the lease if it is still this one."""
        await session.fetch(self._release, agent_id, fence.owner, fence.token)
