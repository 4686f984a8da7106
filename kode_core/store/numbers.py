"""The numbers of emitted events: the next seq of each agent that this store emits for."""

from __future__ import annotations

import asyncio
import math
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
        kept: the lowest seq that no caller can still append; None if no caller has one.
        read_at: when the stored events were last looked at, in seconds of the event loop.
        fence: the lease under which they were last looked at.
        users: the number of calls that have numbers, or wait for some, and are not stored yet.
    """

    __slots__ = ("fence", "kept", "lock", "next", "read_at", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.next: int | None = None
        self.kept: int | None = None
        self.read_at = -math.inf
        self.fence: Fence | None = None
        self.users = 0

    def raise_to(self, seq: int) -> None:
        """Give no number below *seq*."""
        self.next = seq if self.next is None else max(self.next, seq)

    def doubt(self) -> None:
        """Let the next call look at the stored events."""
        self.read_at = -math.inf


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
        if number is not None:
            number.raise_to(seq + 1)

    def keep(self, agent_id: str, seq: int) -> None:
        """The caller of an emit has its entry with that seq, and may append it at any time."""
        number = self._numbers.get(agent_id)
        if number is not None:
            number.raise_to(seq + 1)
            number.kept = number.next

    def forget(self, agent_id: str) -> None:
        """Forget the numbers of a deleted agent, unless calls have some of them."""
        number = self._numbers.get(agent_id)
        if number is not None and not number.users:
            del self._numbers[agent_id]
