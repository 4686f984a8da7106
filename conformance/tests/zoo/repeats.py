"""Stores that lose or move items that a call repeats, or take one list for another (TC-3, EVT-4, MED-1)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import each, seen, the
from kode_core.codec import encode
from kode_core.errors import InvalidArgumentError
from kode_core.model import Timeline
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
        lambda s: s.append_events("a", [samples.event(1), samples.event(2)]),
        lambda s: s.append_events("a", [samples.event(3), samples.event(2), samples.event(1)]),
    ),
)
class ForgetsTheThirdOffset(EngineStore):
    """Returns for a stored event behind two others that are new or stored the offset of the last one."""

    async def append_events(self, agent_id: str, timelines: Sequence[Any], *, fence: Any = None) -> Sequence[int]:
        offsets = list(await super().append_events(agent_id, timelines, fence=fence))
        is_third = len(offsets) == 3 and offsets != sorted(offsets)
        return [*offsets[:-1], max(offsets)] if is_third else offsets


def _keys(timelines: Any) -> list[bytes]:
    return [encode(Timeline, timeline, "event").digest for timeline in timelines]


def _distinct(timelines: Any) -> Any:
    """The entries without repeats; an argument that is no list of sound entries is left for the store to refuse."""
    with suppress(Exception):
        keys = _keys(timelines)
        return [timeline for i, timeline in enumerate(timelines) if keys.index(keys[i]) == i]
    return timelines


def _twice(size: int = 2) -> list[Any]:
    return [*samples.events(size), samples.event(0)]


@mutant(
    "EVT-4",
    killed_by="an_entry_twice_in_one_call_is_refused",
    source="INSERT … ON CONFLICT DO NOTHING",
    witness=seen(
        lambda s: s.append_events("a", _twice()),
        lambda s: s.save_turn("b", events=_twice()),
        lambda s: s.read_events("a"),
    ),
)
class StoresTwinsOnce(EngineStore):
    """Stores an entry once that is twice in a call, and says nothing."""

    async def append_events(self, agent_id: str, timelines: Sequence[Any], *, fence: Any = None) -> Sequence[int]:
        kept = _distinct(timelines)
        offsets = await super().append_events(agent_id, kept, fence=fence)
        places = dict(zip(_keys(kept), offsets, strict=True))
        return [places[key] for key in _keys(timelines)]

    async def save_turn(self, agent_id: str, *, events: Sequence[Any] = (), **turn: Any) -> None:
        await super().save_turn(agent_id, events=_distinct(events), **turn)


@mutant(
    "EVT-4",
    killed_by="an_entry_twice_in_one_call_is_refused",
    source="a list that is cut into statements of a thousand rows, each looked at by itself",
    witness=seen(
        lambda s: s.append_events("a", _twice(1000)),
        lambda s: the("offset", _all(s.read_events("a"))),
    ),
)
class SeesTwinsOfOneStatement(EngineStore):
    """Stores an entry once, and says nothing, when it is in a call again a thousand entries later."""

    async def append_events(self, agent_id: str, timelines: Sequence[Any], *, fence: Any = None) -> Sequence[int]:
        offsets: list[int] = []
        for start in range(0, len(timelines) if type(timelines) is list else 1, 1000):
            part = timelines[start : start + 1000] if type(timelines) is list else timelines
            offsets += await super().append_events(agent_id, part, fence=fence)
        return offsets


@mutant(
    "EVT-4",
    killed_by="an_entry_twice_in_one_call_is_refused",
    source="a unique violation of a database, which names the key and not the place in the list",
    witness=seen(lambda s: _message(s.append_events("a", _twice()))),
)
class NamesNoPositions(EngineStore):
    """Refuses a call that has an entry twice, and does not say where."""

    async def append_events(self, agent_id: str, timelines: Sequence[Any], *, fence: Any = None) -> Sequence[int]:
        try:
            return await super().append_events(agent_id, timelines, fence=fence)
        except InvalidArgumentError as exc:
            if "identical" not in str(exc):
                raise
            raise InvalidArgumentError("duplicate key value violates unique constraint") from None


@mutant(
    "EVT-4",
    killed_by="an_entry_twice_in_one_call_is_refused",
    source="the events of a turn go by another path than append_events",
    witness=seen(lambda s: s.save_turn("a", events=_twice()), lambda s: s.read_events("a")),
)
class TurnsStoreTwinsOnce(EngineStore):
    """Stores an entry once that is twice among the events of a turn."""

    async def save_turn(self, agent_id: str, *, events: Sequence[Any] = (), **turn: Any) -> None:
        await super().save_turn(agent_id, events=_distinct(events), **turn)


async def _all(events: Any) -> list[Any]:
    return [event async for event in events]


async def _message(call: Any) -> str:
    try:
        return str(await call)
    except InvalidArgumentError as exc:
        return str(exc)


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
