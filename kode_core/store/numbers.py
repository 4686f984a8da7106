"""The numbers of emitted events: the next seq of each agent that this store emits for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kode_core.batch import Fence

__all__ = ["Number", "Numbers"]

_MOST_AGENTS: Final = 1_000


class Number:
    """The numbers of one agent.

    Attributes:
        lock: held while a call takes numbers and hands over its events, so that both have one order.
        next: the next seq; None if it is not known.
        read_at: when the stored events were last looked at, in seconds of the event loop.
        fence: the lease under which they were last looked at.
        users: the number of calls that have numbers, or wait for some, and are not stored yet.
    """

    __slots__ = ("fence", "lock", "next", "read_at", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.next: int | None = None
        self.read_at = 0.0
        self.fence: Fence | None = None
        self.users = 0


class Numbers:
    """The numbers of the agents that this store emitted for last."""

    def __init__(self) -> None:
        self._numbers: dict[str, Number] = {}

    @contextmanager
    def using(self, agent_id: str) -> Iterator[Number]:
        """The numbers of an agent, which are not forgotten meanwhile: others could get the same ones."""
        number = self._numbers.pop(agent_id, None) or Number()
        self._numbers[agent_id] = number  # the last used one is the last
        number.users += 1
        try:
            yield number
        finally:
            number.users -= 1
            if len(self._numbers) > _MOST_AGENTS:
                self._drop_one()

    def _drop_one(self) -> None:
        for agent_id, number in self._numbers.items():
            if not number.users:
                del self._numbers[agent_id]
                return

    def note(self, agent_id: str, seq: int) -> None:
        """An event with that seq was stored: the next emitted one gets a higher one."""
        number = self._numbers.get(agent_id)
        if number is not None and number.next is not None:
            number.next = max(number.next, seq + 1)

    def forget(self, agent_id: str) -> None:
        """Forget the numbers of a deleted agent, unless calls have some of them."""
        number = self._numbers.get(agent_id)
        if number is not None and not number.users:
            del self._numbers[agent_id]
