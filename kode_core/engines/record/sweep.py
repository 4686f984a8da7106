"""Removal of what processes that died left where no head refers to it.

Something can be left in three ways. A process is killed between parts that it put and the swap that would have named
them; it is killed after a swap and before it removed what the swap made needless; or it is so slow that what it puts
arrives at an epoch that somebody else has removed. Before any of this can happen, a note of the place is made
(``RecordIO.note``). Notes lie in the order of their times, so that those that are old enough are found by one read of
them alone, whatever else the database holds.

Sweeping a place is safe at any time. First the head is swapped for itself: now nobody commits any more what was begun
before, whatever was read late, and the head is known to be the latest. If it is of another epoch, no head will ever
name the place, and all that is there goes. If it is of this one, those parts go that are of its revision or older and
that it does not name. That a note is swept only when it is old has another reason: what is still on its way then
arrives before. A note is forgotten only after all that it is about was removed.
"""

from __future__ import annotations

import asyncio
import random
import weakref
from contextlib import suppress
from typing import Final

from msgspec.structs import replace

from kode_core.authoring.closing import ended
from kode_core.authoring.parallel import each
from kode_core.engines.record.io import MovedError, RecordIO
from kode_core.engines.record.plan import new_head
from kode_core.engines.record.recovery import RecordRecovery
from kode_core.engines.record.state import AgentHead, State, info_spans, stash_key
from kode_core.engines.record.store import Note, Place
from kode_core.errors import KodeError

__all__ = ["RecordSweep"]

_FIRST_SECONDS: Final = 15.0
_ROUND_SECONDS: Final = 60.0
_AT_ONCE: Final = 200
_PLACES_AT_ONCE: Final = 4
_ATTEMPTS: Final = 5


class RecordSweep:
    """Looks now and then, from the first call of an engine on, for heads that are not settled and notes that are due.

    A round costs the two reads that find them.
    """

    def __init__(self, io: RecordIO, recovery: RecordRecovery) -> None:
        self._io = io
        self._recovery = recovery
        self._timer: asyncio.TimerHandle | None = None
        self._job: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Have the rounds begin, unless they have."""
        if self._timer is None:
            self._wait(_FIRST_SECONDS)

    def _wait(self, seconds: float) -> None:
        """A round later. The timer does not keep an engine alive that nobody closed."""
        if not self._is_closed:
            pause, me = seconds * random.uniform(0.5, 1.5), weakref.ref(self)  # noqa: S311
            self._timer = asyncio.get_running_loop().call_later(pause, _begin, me)

    async def _go_round(self) -> None:
        with suppress(KodeError):  # a later round does it
            await self._recovery.recover()
            await self.sweep()
        self._wait(_ROUND_SECONDS)

    async def sweep(self) -> None:
        """Sweep the places of all notes that are due."""
        while True:
            notes = await self._io.store.notes(self._io.overdue(), _AT_ONCE)
            random.shuffle(mixed := list(notes))  # others do the same
            done = await each(self._sweep_note, mixed, at_once=_PLACES_AT_ONCE)
            if len(notes) < _AT_ONCE or not all(done):
                return

    async def _sweep_note(self, note: Note) -> bool:
        """Whether it was swept, or noted anew: a damaged agent, or one that is always written, holds up no other."""
        with suppress(KodeError):
            try:
                await self.sweep_place(note.place)
            except (MovedError, KodeError):
                await self._io.store.note(note._replace(at=max(self._io.overdue(0), note.at + 1)))
            await self._io.store.forget(note)
            return True
        return False

    async def sweep_agent(self, agent_id: str) -> None:
        """Sweep all known places of an agent at once. Their notes stay until they are due.

        Raises:
            MovedError: another writer came between.
        """
        for place in dict.fromkeys(note.place for note in await self._io.store.notes_of(agent_id)):
            await self.sweep_place(place)

    async def sweep_place(self, place: Place) -> None:
        """Remove what no head refers to at a place.

        Raises:
            MovedError: other writers were faster, or a fork is being made there.
        """
        record = await self._fence(place.agent_id)
        if record.record.epoch != place.epoch:
            await self._io.store.drop(place)
            return
        until = record.record.rev + 1
        await self._io.store.drop_parts(place, stash_key(""), stash_key("~"), until)
        for first, last in info_spans(record.state.info):
            await self._io.store.drop_parts(place, first, last, until)

    async def _fence(self, agent_id: str) -> AgentHead:
        """Swap the head for itself, settled; where there is none, for that of an agent that was deleted."""
        for _ in range(_ATTEMPTS):
            head = await self._io.head(agent_id)
            if head is not None and head.state.reserved:
                break
            if head is not None:
                head = await self._io.settle(head)
            before = AgentHead(new_head(agent_id), State()) if head is None else head
            after = before.next(replace(before.state, frozen=None))
            if await self._io.swap(head, after):
                return after
        raise MovedError

    async def close(self) -> None:
        """End it; others do the rest."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        await ended(self._job)


def _begin(me: weakref.ref[RecordSweep]) -> None:
    sweep = me()
    if sweep is not None:
        sweep._job = asyncio.get_running_loop().create_task(sweep._go_round())
