"""The mark of an agent whose log was pruned, by which followers tell a prune from a delete (EVT-10).

A follower knows an agent by the last event that it read. If that event is gone, the agent was deleted, or the event was
pruned. Every drop of events writes the mark in the same atomic step: an offset from which on all events are of the
present agent, and the event that the drop kept. A mark whose kept event is stored is of the present agent, because only
a later drop, which writes another mark, or a delete removes that event, and no offset is given twice (EVT-2).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kode_core.batch import Doc, DocKind, DocWrite, EventRange
from kode_core.codec import Body, digest
from kode_core.engine import Engine, drops_events
from kode_core.errors import CorruptRecordError, StoreBusyError

__all__ = ["PRUNE_MARK", "PruneMark", "has_event", "is_pruned"]

PRUNE_MARK: Final = "pruned"
_ATTEMPTS: Final = 20


class PruneMark(NamedTuple):
    """The mark.

    Attributes:
        first: every event from this offset on was appended to the present agent.
        keep: the offset of the event that the last drop kept.
    """

    first: int
    keep: int

    @property
    def write(self) -> DocWrite:
        """The document that has the mark."""
        text = f"{self.first} {self.keep}"
        return DocWrite(DocKind.LAYER, PRUNE_MARK, Doc(PRUNE_MARK, 0, Body(text, digest(text.encode()))))

    @classmethod
    async def of(cls, engine: Engine, agent_id: str) -> PruneMark | None:
        """The mark of the present agent; None if nothing was pruned.

        The mark and its event are read one after the other. If the event is gone, another prune may have replaced both
        in between: then the mark is another one by now, and is read again.

        Raises:
            CorruptRecordError: the mark is damaged.
            StoreBusyError: other prunes kept replacing it.
        """
        if not drops_events(engine):
            return None
        mark = await cls._stored(engine, agent_id)
        for _ in range(_ATTEMPTS):
            if mark is None or await has_event(engine, agent_id, mark.keep):
                return mark
            before, mark = mark, await cls._stored(engine, agent_id)
            if mark == before:
                return None
        raise StoreBusyError(f"agent {agent_id!r}: other calls kept removing its events")

    @classmethod
    async def _stored(cls, engine: Engine, agent_id: str) -> PruneMark | None:
        for doc in await engine.docs(agent_id, DocKind.LAYER, PRUNE_MARK):
            first, _, keep = doc.body.text.partition(" ")
            is_whole = digest(doc.body.text.encode()) == doc.body.digest
            if not (is_whole and first.isdecimal() and keep.isdecimal()):
                raise CorruptRecordError(f"the mark of the pruned events of agent {agent_id!r}", "it is damaged")
            return cls(int(first), int(keep))
        return None


async def has_event(engine: Engine, agent_id: str, offset: int) -> bool:
    """Whether the event with this offset is stored."""
    rows = await engine.events(agent_id, EventRange(order="offset", after=(0, offset - 1), limit=1))
    return bool(rows) and rows[0].offset == offset


async def is_pruned(engine: Engine, agent_id: str, offset: int) -> bool:
    """Whether an event that is gone was pruned, and its agent is still there."""
    mark = await PruneMark.of(engine, agent_id)
    return mark is not None and mark.first <= offset
