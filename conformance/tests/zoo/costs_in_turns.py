"""Stores for which a save is cheap only where the last one was (MSG-5)."""

from __future__ import annotations

from typing import Any

from conformance.tests.zoo.base import OnJson, mutant
from conformance.tests.zoo.costs import _Copies, _size_after
from conformance.tests.zoo.witnesses import talk
from kode_core.batch import Batch, ListKind

_FAR = 10


def _list(first: str, last: str) -> list[Any]:
    return talk(first, *(f"{i}" + "x" * 2000 for i in range(1, 299)), last)


async def _last(store: Any) -> None:
    await store.save_messages("a", _list("0" + "x" * 2000, "new"))
    await store.save_messages("a", _list("new", "new"))


@mutant(
    "MSG-5",
    killed_by="saving_in_turns_costs_what_changed",
    on=OnJson,
    source="a gap buffer: what lies between the last place of a change and the next is moved",
    witness=lambda ctx: _size_after(ctx, _last),
)
class MovesItsGap(_Copies):
    """Writes the list when a message is replaced that is far from the one that was replaced before."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._places: dict[str, int] = {}

    async def changed(self, batch: Batch) -> Batch:
        write = batch.messages
        if write is None or not write.put:
            return batch
        place = write.put[0][0]
        before = self._places.get(batch.agent_id, place)
        self._places[batch.agent_id] = place
        return await self.copied(batch, ListKind.MESSAGES) if abs(place - before) > _FAR else batch
