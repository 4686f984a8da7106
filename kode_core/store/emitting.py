"""Emitting: events that the store numbers (EVT-8)."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from typing import Any, Final

from kode_core.batch import EventWrite, Fence
from kode_core.codec import decode
from kode_core.errors import InvalidArgumentError, OutcomeUnknownError
from kode_core.ids import check_agent_id
from kode_core.jsonvalue import type_name
from kode_core.metadata import elements_of
from kode_core.model import AgentEvent, Bookmark, StoredEvent, Timeline
from kode_core.pace import Pace
from kode_core.protocols import Lease
from kode_core.store.context import Context
from kode_core.store.events import EventAppender
from kode_core.store.locks import Locks
from kode_core.store.metrics import Method
from kode_core.store.numbers import Number
from kode_core.store.rows import INT64, event_write

__all__ = ["Emitter"]

_KNOWN_S: Final = 1.0
"""How long the next seq counts as known: others may have appended since."""
_CURSOR_BITS: Final = 52
"""Cursors begin below 2 ** 52, so that JavaScript can hold them."""


class Emitter:
    """Numbers events and appends them.

    The next seq of an agent is read from the store, and then counted, for a second; under a lease that is not the one
    under which it was read, it is read again. So emitters that hold the agent's lock continue after one another.

    The cursor counts the events of this store object from a random start: two stores that give one seq at the same
    millisecond still make two different entries, of which none is taken for a repetition of the other (EVT-4).
    """

    def __init__(self, context: Context, appender: EventAppender, locks: Locks) -> None:
        self._context = context
        self._appender = appender
        self._locks = locks
        self._cursors = itertools.count(secrets.randbits(_CURSOR_BITS))

    async def emit(
        self, method: Method, agent_id: str, events: Sequence[AgentEvent], fence: Lease | None
    ) -> Sequence[StoredEvent]:
        """Append *events* with numbers; an error whose outcome is unknown has the entries."""
        writes: list[EventWrite] = []
        try:
            return await self._context.run(method, agent_id, self._emit, agent_id, events, fence, writes)
        except OutcomeUnknownError as exc:
            if writes:
                self._appender.numbers.keep(agent_id, writes[-1].seq)
            error = OutcomeUnknownError(
                f"{exc}; to be sure that the emitted events are stored, and once, append the timelines of this error"
            )
            error.timelines = tuple([decode(Timeline, write.body, "event") for write in writes])
            raise error from exc

    async def _emit(
        self, agent_id: str, events: Sequence[AgentEvent], fence: Lease | None, writes: list[EventWrite]
    ) -> Sequence[StoredEvent]:
        check_agent_id(agent_id)
        taken = _checked(events)
        with self._locks.fencing(agent_id, fence) as held, self._appender.numbers.using(agent_id) as number:
            async with number.lock:
                entries = await self._numbered(agent_id, taken, number, held, writes)
            # Nothing is awaited here: the append is queued before the next call gets its numbers.
            try:
                offsets = await self._appender.append(agent_id, tuple(writes), held)
            except BaseException:
                number.doubt()  # its numbers may have been used for nothing
                raise
        return [
            StoredEvent(entry.cursor, entry.bookmark, entry.event, offset=offset)
            for entry, offset in zip(entries, offsets, strict=True)
        ]

    async def _numbered(
        self,
        agent_id: str,
        events: Sequence[AgentEvent],
        number: Number,
        fence: Fence | None,
        writes: list[EventWrite],
    ) -> Sequence[Timeline]:
        """The entries of *events*; a call that is refused here uses no number."""
        if not events:
            return ()
        first = await self._next_seq(agent_id, number, fence)
        if first + len(events) > INT64.stop:
            raise InvalidArgumentError(f"agent {agent_id!r} has an event with the seq {first - 1}: none is left")
        pace, now = Pace(), self._context.now()
        entries = [Timeline(next(self._cursors), Bookmark(seq, now), event) for seq, event in enumerate(events, first)]
        encoded = []
        for entry in entries:
            encoded.append(await event_write(entry, pace))
            await pace.yield_to_loop()
        writes += encoded
        number.raise_to(first + len(events))
        return entries

    async def _next_seq(self, agent_id: str, number: Number, fence: Fence | None) -> int:
        now = asyncio.get_running_loop().time()
        is_known = number.next is not None and now - number.read_at < _KNOWN_S
        if not is_known or (fence is not None and fence != number.fence):
            if number.users == 1:
                # No other call has numbers once the cancelled ones have ended, so that the stored events alone count:
                # the agent may have been deleted, or nothing be stored under the numbers that were given.
                await self._context.underway.wait_for_left(agent_id)
                number.next = number.kept
            last = await self._context.engine.last_event(agent_id)
            # Numbers that were given, and are not stored yet, are not given again.
            number.raise_to(0 if last is None else last.seq + 1)
            number.read_at = now
            number.fence = fence or number.fence
        assert number.next is not None
        return number.next


def _checked(events: Any) -> tuple[AgentEvent, ...]:
    """The events of a call as a tuple, because the caller's list may change meanwhile."""
    taken = elements_of(events, "events", "a list of AgentEvent")
    for i, event in enumerate(taken):
        if type(event) is not AgentEvent:
            raise InvalidArgumentError(f"events[{i}] must be of type AgentEvent, got {type_name(type(event))}")
    return taken
