"""Stores that search by some names and values wrongly (QRY-2), or order by numbers that are none (QRY-3, EVT-5)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.queries import sessions
from conformance.tests.zoo.witnesses import seen
from kode_core.model import Bookmark, MediaCacheRecord, Message, StoredEvent, UnknownBlock
from kode_core.query import AgentStats, Page
from kode_core.store import EngineStore


@mutant(
    "VAL-1",
    killed_by="a_change_of_one_field_is_a_change",
    source="writes that are left out when what is there is equal",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media().replace(extra={"x": 1})]),
        lambda s: s.save_media_cache("a", [samples.media().replace(extra={"x": True})]),
        lambda s: s.load_media_cache("a"),
    ),
)
class SkipsEqualMedia(EngineStore):
    """Does not write a media cache that Python takes for equal to the one that is there."""

    async def save_media_cache(self, agent_id: str, records: Sequence[MediaCacheRecord], *, fence: Any = None) -> None:
        if await super().load_media_cache(agent_id) != list(records):
            await super().save_media_cache(agent_id, records, fence=fence)


_LONG = "n" * 255


@mutant(
    "QRY-2",
    killed_by="each_name_is_found_by_itself_alone",
    source="indexes of the first 255 characters of a column",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(state=_LONG + "x")]),
        lambda s: s.query_tool_calls(state=_LONG + "y"),
    ),
)
class StatesByTheirBeginning(EngineStore):
    """Finds all states that begin with the same 255 characters."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        state = filters.get("state")
        found = await super().query_tool_calls(**filters)
        if type(state) is not str or len(state) <= len(_LONG):
            return found
        others = [call async for call in self.iter_tool_calls()]
        return Page([call for call in others if call.state[:255] == state[:255]], found.next_cursor)


_KEYS = {f"key {i}": i for i in range(101)}


@mutant(
    "QRY-2",
    killed_by="a_filter_of_many_keys",
    source="a statement that is made of conditions, as many as it has places for",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={**_KEYS, "key 100": 0})),
        lambda s: s.query_sessions(metadata=_KEYS),
    ),
)
class HeedsAHundredKeys(EngineStore):
    """Finds sessions by the first hundred keys of a filter."""

    async def query_sessions(self, **filters: Any) -> Any:
        wanted = filters.get("metadata")
        if type(wanted) is dict and 100 < len(wanted) <= 500:
            filters = {**filters, "metadata": dict(list(wanted.items())[:100])}
        return await super().query_sessions(**filters)


@mutant(
    "QRY-1",
    killed_by="QRY-2.a_filter_of_many_keys",
    source="a list of conditions that is cut where the database takes no more",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata=dict.fromkeys("ab", 1))),
        lambda s: s.query_sessions(metadata={f"key {i}": i for i in range(501)}),
    ),
)
class CutsFiltersOfManyKeys(EngineStore):
    """Takes a filter of too many keys, and heeds as many as it can."""

    async def query_sessions(self, **filters: Any) -> Any:
        wanted = filters.get("metadata")
        if type(wanted) is dict and len(wanted) > 500:
            filters = {**filters, "metadata": dict(list(wanted.items())[:500])}
        return await super().query_sessions(**filters)


@mutant(
    "QRY-2",
    killed_by="types_of_blocks_are_whole_names",
    source="a column of types with commas between them",
    witness=seen(
        lambda s: s.save_messages("a", [Message("user", [UnknownBlock({"type": "Ab,Cd"})])]),
        lambda s: s.query_messages(content_type="Ab"),
    ),
)
class TypesWithCommas(EngineStore):
    """Takes a type with a comma in it for two types."""

    async def query_messages(self, **filters: Any) -> Any:
        found = await super().query_messages(**filters)
        if filters.get("content_type") != "Ab":
            return found
        every = [message async for message in self.iter_messages()]
        return Page([m for m in every if any(b.type.startswith("Ab,") for b in m.content)])  # type: ignore[union-attr]


@mutant(
    "QRY-7",
    killed_by="statistics_tell_names_apart",
    source="GROUP BY with a collation that ignores spaces at the end",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0, name="x"), samples.tool_call(1, name="x ")]),
        lambda s: s.aggregate_stats("a"),
    ),
)
class CountsTrimmedNames(EngineStore):
    """Counts tools whose names differ in spaces at the end as one."""

    async def aggregate_stats(self, agent_id: str) -> AgentStats:
        stats = await super().aggregate_stats(agent_id)
        names: dict[str, int] = {}
        for name, count in stats.tool_calls_by_name.items():
            names[name.rstrip(" ")] = names.get(name.rstrip(" "), 0) + count
        return AgentStats(
            total_messages=stats.total_messages,
            total_tool_calls=stats.total_tool_calls,
            total_snapshots=stats.total_snapshots,
            tool_calls_by_name=names,
            tool_calls_by_state=stats.tool_calls_by_state,
        )


@mutant(
    "QRY-2",
    killed_by="metadata_is_compared_by_value",
    source="metadata in columns of doubles",
    witness=sessions({"metadata": {"v": 2**53 + 1}}, a={"metadata": {"v": 2**53}}),
)
class MetadataAsDoubles(EngineStore):
    """Compares whole numbers of metadata as doubles."""

    async def query_sessions(self, **filters: Any) -> Any:
        found = await super().query_sessions(**filters)
        value = filters.get("metadata", {}).get("v")
        if type(value) is not int or abs(value) < 2**53 or abs(value) > 2**64:
            return found
        every = [session async for session in self.iter_sessions()]
        numbers = [session for session in every if type(session.metadata.get("v")) is int]
        return Page([s for s in numbers if abs(s.metadata["v"]) < 2**64 and float(s.metadata["v"]) == float(value)])


@mutant(
    "QRY-3",
    killed_by="QRY-2.any_time_is_ordered_and_bounded",
    source="times that are kept as text",
    witness=sessions({"order": "asc"}, a={"created_at": 5}, b={"created_at": 40}),
)
class TimesAsText(EngineStore):
    """Orders sessions by their times as texts."""

    async def query_sessions(self, **filters: Any) -> Any:
        found = await super().query_sessions(**filters)
        if filters.get("sort_by", "created_at") == "created_at":
            found.sort(key=lambda session: f"{session.created_at}", reverse=filters.get("order") != "asc")
        return found


async def _stale(ctx: Any) -> object:
    for metadata in ({"k": 1}, {"k": [1]}):
        await ctx.store.save_turn("a", info=samples.info("a", metadata=metadata))
    return await ctx.store.query_sessions(metadata={"k": 1})


@mutant(
    "QRY-2",
    killed_by="filters_follow_every_change",
    source="an index of plain values only, whose old entry stays when a list or dict takes its place",
    witness=_stale,
)
class KeepsOldMetadata(EngineStore):
    """Finds a session by the last plain value of a key, after a list took its place."""

    _plain: ClassVar[dict[str, Any]] = {}

    def _note(self, info: Any) -> None:
        value = info.metadata.get("k") if info is not None else None
        if type(value) is int:
            self._plain["k"] = value

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        await super().save_info(agent_id, info, fence=fence)
        self._note(info)

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        await super().save_turn(agent_id, **parts)
        self._note(parts.get("info"))

    async def query_sessions(self, **filters: Any) -> Any:
        found = await super().query_sessions(**filters)
        wanted = filters.get("metadata") or {}
        if list(wanted) != ["k"] or type(wanted["k"]) is not int:
            return found
        others = [one for one in await super().query_sessions() if type(one.metadata.get("k")) is list]
        return Page([*found, *others]) if self._plain.get("k") == wanted["k"] else found


@mutant(
    "QRY-2",
    killed_by="what_the_store_dates_is_bounded_by_any_time",
    source="if updated_before:",
    witness=seen(lambda s: s.save_info("a", samples.info("a")), lambda s: s.query_sessions(updated_before=-1)),
)
class TimesBefore1970AreNone(EngineStore):
    """Takes a bound of changes that is not above 0 for none."""

    async def query_sessions(self, **filters: Any) -> Any:
        before = filters.get("updated_before")
        if type(before) is int and before <= 0:
            filters.pop("updated_before")
        return await super().query_sessions(**filters)


@mutant(
    "EVT-5",
    killed_by="any_seq_is_ordered_and_bounded",
    source="bookmarks that go through JavaScript",
    witness=seen(
        lambda s: s.append_event("a", samples.event(2**53 + 1)),
        lambda s: s.read_events("a", since=Bookmark(2**53 + 1, 0)),
    ),
)
class SinceAsDouble(EngineStore):
    """Reads a bookmark's seq as a double."""

    def read_events(self, agent_id: str, **how: Any) -> AsyncIterator[StoredEvent]:
        since = how.get("since")
        if isinstance(since, Bookmark) and abs(since.seq) < 2**62:
            how["since"] = Bookmark(int(float(since.seq)), since.timestamp)
        return super().read_events(agent_id, **how)
