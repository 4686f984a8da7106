"""Stores that lose or move what a call has several times, or take one list for another (TC-3, EVT-4, MED-1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kode_conformance import samples

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import each, seen, the
from kode_core.store import EngineStore


@mutant(
    "TC-3",
    killed_by="an_upsert_of_one_id_several_times",
    source="a dict of records by id, whose repeats are taken out and put in again",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(i, id=name) for i, name in enumerate("aba")]),
        lambda s: the("id", s.load_tool_call_records("a")),
    ),
)
class UpsertsAtTheLaterPlace(EngineStore):
    """Adds a record that is there twice in a call at the place of the second."""

    async def upsert_tool_call_records(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        kept = {record.id: record for record in reversed(records)}
        await super().upsert_tool_call_records(agent_id, list(kept.values())[::-1], fence=fence)


@mutant(
    "EVT-4",
    killed_by="an_append_of_one_event_several_times",
    source="a lookup of what is stored by seq, made once before the batch",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, n=1)),
        lambda s: s.append_events("a", [samples.event(2), samples.event(1, n=1), samples.event(1, n=1)]),
    ),
)
class ForgetsTheThirdOffset(EngineStore):
    """Returns for a stored event that is twice in a call the offset of the last one."""

    async def append_events(self, agent_id: str, timelines: Sequence[Any], *, fence: Any = None) -> Sequence[int]:
        offsets = list(await super().append_events(agent_id, timelines, fence=fence))
        twice = len(offsets) != len(set(offsets)) and offsets != sorted(offsets)
        return [*offsets[:-1], max(offsets)] if twice else offsets


def _media(*keys: str) -> list[Any]:
    return [samples.media(key) for key in keys]


@mutant(
    "MED-1",
    killed_by="MSG-1.lists_that_overlap_with_what_is_stored",
    source="set(old) == set(new)",
    witness=seen(
        lambda s: each(s.save_media_cache("a", _media("a", "b")), s.save_media_cache("a", _media("b", "a"))),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class TakesAnOrderForNone(EngineStore):
    """Saves no media when the same ones are there, in whatever order."""

    async def save_media_cache(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        stored = await self.load_media_cache(agent_id)
        if sorted(map(repr, stored)) != sorted(map(repr, records)):
            await super().save_media_cache(agent_id, records, fence=fence)
