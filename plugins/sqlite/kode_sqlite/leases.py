"""Leases by the clock of this host: its time since the boot, next to the boot's id."""

from __future__ import annotations

import sqlite3

from kode_core.authoring.clock import host_clock
from kode_core.batch import Fence

__all__ = ["Leases"]


class Leases:
    """The leases as one transaction of the writer sees them."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def holds(self, agent_id: str, fence: Fence) -> bool:
        """True if the lease of the fence has not ended."""
        boot, now = host_clock()
        found = self._db.execute(
            "SELECT 1 FROM kode_leases WHERE agent_id = ? AND owner = ? AND token = ? AND boot = ? AND expires > ?",
            (agent_id, fence.owner, fence.token, boot, now),
        ).fetchone()
        return found is not None

    def acquire(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        """The new token, or None if the lease is held."""
        boot, now = host_clock()
        held = "SELECT 1 FROM kode_leases WHERE agent_id = ? AND boot = ? AND expires > ?"
        if self._db.execute(held, (agent_id, boot, now)).fetchone():
            return None
        # One number for all agents, so that no token is used again although ended leases are removed.
        (token,) = self._db.execute(
            "INSERT INTO kode_meta (key, value) VALUES ('last_token', 1)"
            " ON CONFLICT (key) DO UPDATE SET value = value + 1 RETURNING value"
        ).fetchone()
        self._db.execute(
            "INSERT OR REPLACE INTO kode_leases (agent_id, owner, token, boot, expires) VALUES (?, ?, ?, ?, ?)",
            (agent_id, owner, token, boot, now + ttl_ms),
        )
        return int(token)

    def renew(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        """Prolong the lease; False if it ended."""
        if not self.holds(agent_id, fence):
            return False
        _, now = host_clock()
        self._db.execute("UPDATE kode_leases SET expires = ? WHERE agent_id = ?", (now + ttl_ms, agent_id))
        return True

    def release(self, agent_id: str, fence: Fence) -> None:
        """End the lease if it is still this one."""
        self._db.execute(
            "DELETE FROM kode_leases WHERE agent_id = ? AND owner = ? AND token = ?",
            (agent_id, fence.owner, fence.token),
        )
