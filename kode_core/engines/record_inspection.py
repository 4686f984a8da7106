"""Inspection of the record engine: what does not fit together, and what was left where no head refers to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from kode_core.batch import EngineIssue
from kode_core.engines.record_io import RecordIO, each
from kode_core.engines.record_reads import Instant, RecordReads
from kode_core.engines.record_state import AgentHead, event_span, info_spans, position_of, stash_key
from kode_core.engines.records import Place, Span

__all__ = ["RecordInspection"]

_ANYTHING: Final = Span(first="a", last="z", limit=1, bodies=False)
_ALL_KEYS: Final = ("a", "z")
_MOST: Final = 100_000
_PATIENCE: Final = 2
"""How many times as old as a note that is swept one is that somebody should have swept."""


class RecordInspection:
    """Looks, and changes nothing."""

    def __init__(self, io: RecordIO, reads: RecordReads) -> None:
        self._io = io
        self._reads = reads

    async def inspect(self, agent_id: str | None) -> Sequence[EngineIssue]:
        """Issues of one agent; or of those that were deleted, as others are inspected one by one."""
        if agent_id is not None:
            return [*await self._own(agent_id), *await self._left(agent_id)]
        notes = await self._io.store.notes(self._io.overdue(0), _MOST)
        noted = dict.fromkeys([*(note.place.agent_id for note in notes), *await self._io.store.unsettled()])
        return [issue for found in await each(self._left_of_deleted, noted) for issue in found]

    async def _own(self, agent_id: str) -> list[EngineIssue]:
        """Missing rows are not looked for here: reading the list finds them."""

        async def read(instant: Instant) -> list[EngineIssue]:
            last = await self._reads.items(instant, replace(event_span(), descending=True, limit=1, bodies=False))
            issues = list[EngineIssue]()
            if any(position_of(event.key) >= instant.head.state.next_offset for event in last):
                issues.append(
                    EngineIssue("repeated_offset", agent_id, "an event stands where the next one will be put")
                )
            await self._reads.still(instant)
            return issues

        return await self._reads.at_once(agent_id, read, [])

    async def _left_of_deleted(self, agent_id: str) -> list[EngineIssue]:
        head = await self._io.head(agent_id)
        return [] if head is not None and head.record.is_used else await self._left(agent_id)

    async def _left(self, agent_id: str) -> list[EngineIssue]:
        """What is at places that no head names, and parts that the agent's own head does not name.

        Parts are put before the head names them: those that were noted not long ago are no issue.
        """
        notes = await self._io.store.notes_of(agent_id)
        head = await self._io.head(agent_id)
        live = None if head is None else head.record.place
        doomed = [] if head is None else [Place(agent_id, epoch) for epoch in head.state.doomed]
        young = {note.place for note in notes if note.at > self._io.overdue(_PATIENCE)}
        store = self._io.store
        for place in dict.fromkeys([*(note.place for note in notes), *doomed]):
            if place == live:
                continue
            is_left = await store.items(place, _ANYTHING)
            if is_left or (place not in young and await store.part_keys(place, *_ALL_KEYS)):
                text = "what was stored before a delete is still there"
                return [EngineIssue("half_done_delete", agent_id, text)]
        if head is None or head.record.place in young or not await self._is_needless(head):
            return []
        text = "parts of a write that was never done, or that was replaced, are still there"
        return [EngineIssue("orphaned_records", agent_id, text)]

    async def _is_needless(self, head: AgentHead) -> bool:
        """Whether there are parts of this revision, or an older one, that the head does not name."""
        stash, spans = head.state.stash, [(stash_key(""), stash_key("~")), *info_spans(head.state.info)]
        found = [key for span in spans for key in await self._io.store.part_keys(head.record.place, *span)]
        return any(rev <= head.record.rev and (stash is None or key != stash.key) for key, rev in found)
