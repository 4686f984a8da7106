"""Followers of events are woken by LISTEN and NOTIFY, over one connection that is open while somebody follows.

A commit that notifies takes a lock that all such commits share. So the server is asked for it only where somebody
follows the agent: followers note themselves in a table, for a minute at a time, and the write looks there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any, Final

import asyncpg

from kode_core.engines.watching import Watcher
from kode_postgres.schema import Tables

__all__ = ["Listener", "channel_of", "payload_of"]

_NOTED_S: Final = 60
_NOTED_AGAIN_S: Final = 20.0
_IDLE_S: Final = 5.0


def channel_of(tables: Tables) -> str:
    """The channel of these tables."""
    return f"kode_{sha256(tables.identity.encode()).hexdigest()[:16]}"


def payload_of(agent_id: str) -> str:
    """What stands for an agent in a notification, which every user of the database can read."""
    return sha256(agent_id.encode()).hexdigest()


class Listener(Watcher):
    """Listens for appends of the agents that it noted."""

    lost = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

    def __init__(self, connect: Callable[[], Awaitable[Any]], tables: Tables) -> None:
        super().__init__()
        self._connect = connect
        self._channel = channel_of(tables)
        self._note = (
            f"INSERT INTO {tables.followers} AS f (agent_id, expires)"
            f" SELECT a, clock_timestamp() + interval '{_NOTED_S} seconds' FROM unnest($1::text[]) a ORDER BY a"
            " ON CONFLICT (agent_id) DO UPDATE SET expires = excluded.expires"
        )
        self._tidy = f"DELETE FROM {tables.followers} WHERE expires < clock_timestamp() - interval '1 hour'"

    async def listen(self) -> None:
        """Over a connection of its own."""
        con = await self._connect()
        try:
            await self._listen(con)
        finally:
            con.terminate()

    async def _listen(self, con: Any) -> None:
        """Until the connection breaks, or nobody has watched for a while."""
        broken = asyncio.Event()

        def lost(_: Any) -> None:
            broken.set()
            self.changed.set()

        con.add_termination_listener(lost)
        await con.add_listener(self._channel, self._heard)
        await con.execute(self._tidy)
        while not broken.is_set():
            self.changed.clear()
            watched = frozenset(self.watches)
            if watched:
                await con.execute(self._note, sorted(watched))
            fresh, self.told = watched - self.told, watched
            self.wake(fresh)  # what was appended before this moment has to be looked for
            try:
                async with asyncio.timeout(_NOTED_AGAIN_S if watched else _IDLE_S):
                    await self.changed.wait()
            except TimeoutError:
                if not self.watches:
                    return
        raise ConnectionError("the connection ended")

    def _heard(self, con: Any, process: int, channel: str, payload: object) -> None:
        self.wake([agent_id for agent_id in self.watches if payload_of(agent_id) == payload])
