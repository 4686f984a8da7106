"""Removes records of dead processes that no head refers to.

Such records come about in three ways. A process is killed after it put parts and before the swap that would have named
them; it is killed after a swap and before it removed the records that the swap replaced; or it is so slow that its puts
arrive at an epoch that another process has removed. Before any of this can happen, the process makes a note of the
place (``RecordIO.note``). Notes are ordered by time, so that one read finds the due ones, however large the database
is.

Sweeping a place is safe at any time. First the head is swapped for itself. From then on no earlier swap can commit,
and the head is known to be the latest. If it has another epoch, no head will ever name the place again, and everything
there is removed. If it has this epoch, the parts of its revision or older that it does not name are removed. Waiting
until a note is old has another reason: records that are still on their way arrive before. A note is forgotten only
after its place was swept.
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
from kode_core.engines.record.log import erase_dropped
from kode_core.engines.record.plan import new_head
from kode_core.engines.record.recovery import RecordRecovery
from kode_core.engines.record.state import OpenedHead, State, other_info_keys, stash_key
from kode_core.engines.record.store import ItemsPlace, Note
from kode_core.errors import KodeError

__all__ = ["RecordSweep"]

_FIRST_SECONDS: Final = 15.0
_ROUND_SECONDS: Final = 60.0
_AT_ONCE: Final = 200
_PLACES_AT_ONCE: Final = 4
_ATTEMPTS: Final = 5


class RecordSweep:
    """Settles unsettled heads and sweeps due notes in rounds, from an engine's first call on.

    A round that finds none costs two reads.
    """

    def __init__(self, io: RecordIO, recovery: RecordRecovery) -> None:
        self._io = io
        self._recovery = recovery
        self._timer: asyncio.TimerHandle | None = None
        self._job: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Begin the rounds, once."""
        if self._timer is None:
            self._wait(_FIRST_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Schedule the next round. The timer holds a weak reference, so an engine that was not closed can be freed."""
        if not self._is_closed:
            pause, me = seconds * random.uniform(0.5, 1.5), weakref.ref(self)  # noqa: S311
            self._timer = asyncio.get_running_loop().call_later(pause, _begin, me)

    async def _go_round(self) -> None:
        with suppress(KodeError):  # a later round tries again
            await self._recovery.recover()
            await self.sweep()
        self._wait(_ROUND_SECONDS)

    async def sweep(self) -> None:
        """Sweep the places of all due notes."""
        while True:
            notes = await self._io.store.notes(self._io.overdue(), _AT_ONCE)
            random.shuffle(mixed := list(notes))  # other processes sweep the same notes
            done = await each(self._sweep_note, mixed, at_once=_PLACES_AT_ONCE)
            if len(notes) < _AT_ONCE or not all(done):
                return

    async def _sweep_note(self, note: Note) -> bool:
        """Sweep a note's place, or note it anew if it is damaged or busy, so that others go on. False if both fail."""
        with suppress(KodeError):
            try:
                await self.sweep_place(note.place)
            except (MovedError, KodeError):
                await self._io.store.note(note._replace(at=max(self._io.overdue(0), note.at + 1)))
            await self._io.store.forget(note)
            return True
        return False

    async def sweep_agent(self, agent_id: str) -> None:
        """Sweep all noted places of an agent at once. The notes stay until they are due.

        Raises:
            MovedError: another writer changed the head.
        """
        for place in dict.fromkeys(note.place for note in await self._io.store.notes_of(agent_id)):
            await self.sweep_place(place)

    async def sweep_place(self, place: ItemsPlace) -> None:
        """Remove the records at a place that no head refers to.

        Raises:
            MovedError: other writers kept changing the head, or a fork is being made.
        """
        record = await self._barrier(place.agent_id)
        if record.record.epoch != place.epoch:
            await self._io.store.drop(place)
            return
        until = record.record.rev + 1
        await self._io.store.drop_parts(place, stash_key(""), stash_key("~"), until)
        for first, last in other_info_keys(record.state.info):
            await self._io.store.drop_parts(place, first, last, until)
        await erase_dropped(self._io, record)

    async def _barrier(self, agent_id: str) -> OpenedHead:
        """Settle the head and swap it for itself. An agent without a head gets the head of a deleted agent."""
        for _ in range(_ATTEMPTS):
            head = await self._io.head(agent_id)
            if head is not None and head.state.reserved:
                break
            if head is not None:
                head = await self._io.redo(head)
            before = OpenedHead(new_head(agent_id), State()) if head is None else head
            after = before.next(replace(before.state, frozen=None))
            if await self._io.swap(head, after):
                return after
        raise MovedError

    async def close(self) -> None:
        """Stop the rounds. Other processes sweep the rest."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        await ended(self._job)


def _begin(me: weakref.ref[RecordSweep]) -> None:
    sweep = me()
    if sweep is not None:
        sweep._job = asyncio.get_running_loop().create_task(sweep._go_round())
