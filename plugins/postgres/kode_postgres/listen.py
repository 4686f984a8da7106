"""Followers of events are woken by LISTEN and NOTIFY, over one connection that is open while somebody follows.

A commit that notifies takes a lock that all such commits share. So the server is asked for it only where somebody
follows the agent: followers note themselves in a table, for a minute at a time, and the write looks there.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final

import asyncpg

from kode_postgres.schema import Tables

__all__ = ["Listener", "channel_of", "payload_of"]

_NOTED_S: Final = 60
_NOTED_AGAIN_S: Final = 20.0
_IDLE_S: Final = 5.0
_NO_CONNECTION_S: Final = 3.0

Wake = Callable[[], None]


def channel_of(tables: Tables) -> str:
    """The channel of these tables."""
    return f"kode_{sha256(tables.identity.encode()).hexdigest()[:16]}"


def payload_of(agent_id: str) -> str:
    """What stands for an agent in a notification, which every user of the database can read."""
    return sha256(agent_id.encode()).hexdigest()


class _Watch:
    """See :class:`kode_core.engine.Watch`."""

    def __init__(self, listener: Listener, agent_id: str, wake: Wake) -> None:
        self._listener = listener
        self.agent_id = agent_id
        self.wake = wake

    @property
    def is_live(self) -> bool:
        return self.agent_id in self._listener.noted

    def close(self) -> None:
        self._listener.leave(self)


class Listener:
    """Wakes those who watch agents.

    Attributes:
        noted: the agents of which appends are being told.
    """

    def __init__(self, connect: Callable[[], Awaitable[Any]], tables: Tables) -> None:
        self.noted: frozenset[str] = frozenset()
        self._connect = connect
        self._channel = channel_of(tables)
        self._watches: defaultdict[str, set[_Watch]] = defaultdict(set)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._note = (
            f"INSERT INTO {tables.followers} AS f (agent_id, expires)"
            f" SELECT a, clock_timestamp() + interval '{_NOTED_S} seconds' FROM unnest($1::text[]) a ORDER BY a"
            " ON CONFLICT (agent_id) DO UPDATE SET expires = excluded.expires"
        )
        self._tidy = f"DELETE FROM {tables.followers} WHERE expires < clock_timestamp() - interval '1 hour'"

    def watch(self, agent_id: str, wake: Wake) -> _Watch:
        """Have *wake* called after appends for the agent, and now and then without any."""
        watch = _Watch(self, agent_id, wake)
        self._watches[agent_id].add(watch)
        self._changed.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return watch

    def leave(self, watch: _Watch) -> None:
        """End a watch."""
        self._watches[watch.agent_id].discard(watch)
        if not self._watches[watch.agent_id]:
            del self._watches[watch.agent_id]
            self._changed.set()

    async def close(self) -> None:
        """Close the connection."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        try:
            while self._watches:
                with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                    await self._connected()
                self._wake(self._watches)
                if self._watches:
                    await asyncio.sleep(random.uniform(0.2, 1.0) * _NO_CONNECTION_S)  # noqa: S311
        finally:
            self._task = None

    async def _connected(self) -> None:
        con = await self._connect()
        try:
            await self._listen(con)
        finally:
            self.noted = frozenset()
            con.terminate()

    async def _listen(self, con: Any) -> None:
        """Until the connection breaks, or nobody has watched for a while."""
        broken = asyncio.Event()

        def lost(_: Any) -> None:
            broken.set()
            self._changed.set()

        con.add_termination_listener(lost)
        await con.add_listener(self._channel, self._heard)
        await con.execute(self._tidy)
        while not broken.is_set():
            self._changed.clear()
            watched = frozenset(self._watches)
            if watched:
                await con.execute(self._note, sorted(watched))
            fresh, self.noted = watched - self.noted, watched
            self._wake(fresh)  # what was appended before this moment has to be looked for
            try:
                async with asyncio.timeout(_NOTED_AGAIN_S if watched else _IDLE_S):
                    await self._changed.wait()
            except TimeoutError:
                if not self._watches:
                    return

    def _heard(self, con: Any, process: int, channel: str, payload: object) -> None:
        self._wake([agent_id for agent_id in self._watches if payload_of(agent_id) == payload])

    def _wake(self, agent_ids: Any) -> None:
        for agent_id in list(agent_ids):
            for watch in list(self._watches.get(agent_id, ())):
                watch.wake()
