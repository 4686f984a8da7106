"""Inspection of the record engine: contradictions, and records that no head refers to."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Final, NamedTuple

from msgspec.structs import replace

from kode_core.authoring.parallel import each
from kode_core.batch import EngineIssue
from kode_core.engines.record.io import RecordIO
from kode_core.engines.record.reads import Instant, RecordReads
from kode_core.engines.record.recovery import is_dead_fork
from kode_core.engines.record.state import OpenedHead, event_keys, other_info_keys, position_of, stash_key
from kode_core.engines.record.store import ItemsPlace, KeyRange

__all__ = ["Leaving", "RecordInspection"]

_ANYTHING: Final = KeyRange(first="a", last="z", limit=1, bodies=False)
_ALL_KEYS: Final = ("a", "z")
_MOST: Final = 100_000
_REMEDY: Final = "kode doctor --repair removes them"
_PATIENCE: Final = 2
"""How many times the age of a due note makes it overdue: by then a sweep should have removed its records."""


class Leaving(NamedTuple):
    """Records at a place that no head refers to."""

    place: ItemsPlace
    code: str
    text: str


class RecordInspection:
    """Finds issues and changes nothing."""

    def __init__(self, io: RecordIO, reads: RecordReads) -> None:
        self._io = io
        self._reads = reads

    async def inspect(self, agent_id: str | None) -> Sequence[EngineIssue]:
        """The issues of one agent, or of all deleted agents. The caller inspects the other agents one by one."""
        if agent_id is not None:
            return [*await self._own(agent_id), *await self._left(agent_id)]
        return [issue for found in await each(self._left_of_deleted, await self.noted()) for issue in found]

    async def _own(self, agent_id: str) -> list[EngineIssue]:
        """Contradictions inside an agent, missing rows excepted: reading the list finds those."""

        async def read(instant: Instant) -> list[EngineIssue]:
            last = await self._reads.items(instant, replace(event_keys(), descending=True, limit=1, bodies=False))
            issues = list[EngineIssue]()
            if any(position_of(event.key) >= instant.head.state.next_offset for event in last):
                issues.append(EngineIssue("repeated_offset", agent_id, "an event has an offset that was not given yet"))
            await self._reads.still(instant)
            return issues

        return await self._reads.at_once(agent_id, read, [])

    async def noted(self) -> Sequence[str]:
        """Agents that may have leavings: agents with notes, and agents with unsettled heads."""
        notes = await self._io.store.notes(self._io.overdue(0), _MOST)
        return list(dict.fromkeys([*(note.place.agent_id for note in notes), *await self._io.store.unsettled()]))

    async def _left_of_deleted(self, agent_id: str) -> list[EngineIssue]:
        head = await self._io.head(agent_id)
        return [] if head is not None and head.record.is_used else await self._left(agent_id)

    async def _left(self, agent_id: str) -> list[EngineIssue]:
        """One issue of each kind, however many places have it."""
        texts = {leaving.code: leaving.text for leaving in await self.leavings(agent_id)}
        return [EngineIssue(code, agent_id, text) for code, text in texts.items()]

    async def leavings(self, agent_id: str, *, at_any_age: bool = False) -> list[Leaving]:
        """Records at places that no head names, and parts next to the agent's head that it does not name.

        A writer puts parts before the head names them, so parts with a young note are no issue. A caller that fences
        the head before it removes anything may ask for those *at any age*.
        """
        notes = await self._io.store.notes_of(agent_id)
        head = await self._io.head(agent_id)
        oldest = self._io.overdue(_PATIENCE)
        young = {note.place for note in notes if note.at > oldest and not at_any_age}
        found = await self._found(agent_id, [note.place for note in notes], head, young)
        if found and not at_any_age:  # a late read may have shown an older head, which names other places
            now = await self._io.head_now(agent_id)
            if (now and now.record.rev) != (head and head.record.rev):
                return []
        return found

    async def _found(
        self, agent_id: str, noted: Sequence[ItemsPlace], head: OpenedHead | None, young: Set[ItemsPlace]
    ) -> list[Leaving]:
        store, live = self._io.store, None if head is None else head.record.place
        doomed = [] if head is None else [ItemsPlace(agent_id, epoch) for epoch in head.state.doomed]
        found = list[Leaving]()
        for place in dict.fromkeys([*noted, *doomed]):
            if place == live:
                continue
            is_left = await store.items(place, _ANYTHING)
            if is_left or (place not in young and await store.part_keys(place, *_ALL_KEYS)):
                found.append(
                    Leaving(place, "half_done_delete", f"records of before a delete are still stored; {_REMEDY}")
                )
        if head is not None and is_dead_fork(head):
            found.append(Leaving(head.record.place, "half_done_fork", f"a fork was never finished; {_REMEDY}"))
        elif head is not None and head.record.place not in young and await self._is_needless(head):
            text = f"parts of an abandoned or replaced write are still stored; {_REMEDY}"
            found.append(Leaving(head.record.place, "orphaned_records", text))
        return found

    async def _is_needless(self, head: OpenedHead) -> bool:
        """Whether parts lie next to the head that it does not name, such as the parts of a swap that never happened."""
        stash, ranges = head.state.stash, [(stash_key(""), stash_key("~")), *other_info_keys(head.state.info)]
        found = [key for ends in ranges for key in await self._io.store.part_keys(head.record.place, *ends)]
        return any(stash is None or key != stash.key for key, _ in found)
