"""LISTEN and NOTIFY wake followers of events, over one connection that is open while an agent is followed.

A commit that notifies takes a lock that all such commits share, so the server is asked for it only if the agent is
followed: followers record themselves in a table, for a minute at a time, and the write looks there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any, Final

import asyncpg

from kode_core.authoring.waiting import waited_for
from kode_core.authoring.watching import AgentWatch, Watcher
from kode_postgres.schema import Tables

__all__ = ["Listener", "channel_of", "payload_of"]

_NOTED_S: Final = 60
_NOTED_AGAIN_S: Final = 20.0
_IDLE_S: Final = 5.0


def channel_of(tables: Tables) -> str:
    """The channel of these tables."""
    return f"kode_{sha256(tables.identity.encode()).hexdigest()[:16]}"


def payload_of(agent_id: str) -> str:
    """The name of an agent in a notification, which every user of the database can read."""
    return sha256(agent_id.encode()).hexdigest()


class Listener(Watcher):
    """Listens for appends of the recorded agents.

    One more follower costs the same however many there are: it is recorded by itself, and a notification is a
    dictionary look-up.

    Attributes:
        is_connected: True while it has its connection.
    """

    lost = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

    def __init__(self, connect: Callable[[], Awaitable[Any]], tables: Tables) -> None:
        super().__init__()
        self.is_connected = False
        self._connect = connect
        self._channel = channel_of(tables)
        self._changes: set[str] = set()
        self._agents: dict[str, str] = {}
        """The recorded agents, by their names in notifications."""
        self._note = (
            f"INSERT INTO {tables.followers} AS f (agent_id, expires)"
            f" SELECT a, clock_timestamp() + interval '{_NOTED_S} seconds' FROM unnest($1::text[]) a ORDER BY a"
            " ON CONFLICT (agent_id) DO UPDATE SET expires = excluded.expires"
        )
        self._tidy = f"DELETE FROM {tables.followers} WHERE expires < clock_timestamp() - interval '1 hour'"

    def watch(self, agent_id: str, wake: Callable[[], None]) -> AgentWatch:
        self._changes.add(agent_id)
        return super().watch(agent_id, wake)

    def unwatch(self, watch: AgentWatch) -> None:
        super().unwatch(watch)
        self._changes.add(watch.agent_id)

    async def listen(self) -> None:
        """Listen over a separate connection."""
        con = await self._connect()
        self.is_connected = True
        try:
            await self._listen(con)
        finally:
            self.is_connected = False
            con.terminate()

    async def _listen(self, con: Any) -> None:
        """Listen until the connection breaks, or until no agent has been watched for a while."""
        broken = asyncio.Event()

        def lost(_: Any) -> None:
            broken.set()
            self.changed.set()

        con.add_termination_listener(lost)
        await con.add_listener(self._channel, self._heard)
        await con.execute(self._tidy)
        self.reported = reported = set[str]()
        self._agents.clear()
        self._changes = set(self.watches)
        noted_at = time.monotonic()
        while not broken.is_set():
            self.changed.clear()
            await self._note_changes(con, reported)
            if time.monotonic() - noted_at >= _NOTED_AGAIN_S:
                noted_at = time.monotonic()
                await con.execute(self._note, sorted(reported))
            is_changed = await waited_for(self.changed, _NOTED_AGAIN_S if self.watches else _IDLE_S)
            if not (is_changed or self.watches):
                return
        raise ConnectionError("the connection ended")

    async def _note_changes(self, con: Any, reported: set[str]) -> None:
        """Record the agents that are newly watched, and remove the ones that are no longer watched."""
        changes, self._changes = self._changes, set()
        fresh = [agent_id for agent_id in changes if agent_id in self.watches]
        reported -= changes
        for agent_id in changes:
            self._agents.pop(payload_of(agent_id), None)
        if fresh:
            await con.execute(self._note, sorted(fresh))
            self._agents.update((payload_of(agent_id), agent_id) for agent_id in fresh)
            reported.update(fresh)
            self.wake(fresh)  # they look for events that were appended before this moment

    def _heard(self, con: Any, process: int, channel: str, payload: object) -> None:
        agent_id = self._agents.get(str(payload))
        if agent_id is not None:
            self.wake([agent_id])
