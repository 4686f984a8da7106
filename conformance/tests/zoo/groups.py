"""Stores that group records wrongly (QRY-11)."""

from __future__ import annotations

from typing import Any

from kode_conformance.settings import Tier
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import Wrapper, mutant
from conformance.tests.zoo.witnesses import each, seen
from kode_core.layers import Layer
from kode_core.query import DAY_MS, MAX_GROUPS, Durations, Group, Grouping, GroupRows, RowQuery, SessionQuery


def _of(*calls: Any) -> Any:
    """What the groups of a few tool calls are."""
    saved = [
        samples.tool_call(i, name=name, state=state, created_at=time, duration_ms=took)
        for i, (name, state, time, took) in enumerate(
            (("x", "FAILED", -1, 0.1), ("X", "COMPLETED", 5, 0.2), ("y" * 2000, "COMPLETED", DAY_MS - 1, 0.3))
        )
    ]
    many = [samples.tool_call(i, name="many", duration_ms=0.1) for i in range(10)]
    return seen(lambda s: s.save_tool_call_records("a", [*saved, *many]), *calls)


@mutant(
    "QRY-11",
    killed_by="groups_are_of_what_is_found",
    source="GROUP BY over the table, and the filters for the list alone",
    witness=_of(lambda s: s.group_tool_calls("tool_name", state="FAILED")),
)
class GroupsIgnoreFilters(Layer):
    """Groups all records of the kind."""

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
        if isinstance(query, RowQuery):
            query = RowQuery(kind=query.kind)
        return await super().group(query, grouping)


@mutant(
    "QRY-11",
    killed_by="groups_are_of_what_is_found",
    source="Counter.most_common",
    witness=_of(lambda s: s.group_tool_calls("tool_name")),
)
class GroupsAreOrderedByNumber(Wrapper):
    """Gives the largest groups first."""

    async def group_tool_calls(self, by: Any, **asked: Any) -> Any:
        return sorted(await self.inner.group_tool_calls(by, **asked), key=lambda one: -one.count)


class _Days(Grouping, frozen=True):
    """Divides as C does."""

    def day(self, time: int) -> int:
        days, rest = divmod(time + self.offset_ms, DAY_MS)
        return days + (days < 0 and rest > 0)


@mutant(
    "QRY-11",
    killed_by="days_are_dates_at_the_offset",
    source="created_at / 86400000 in SQL",
    witness=_of(lambda s: s.group_tool_calls("day")),
)
class DaysAreCutTowardsZero(Layer):
    """Takes the day before 1970-01-01 for that day."""

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
        return await super().group(query, _Days(**{name: getattr(grouping, name) for name in ("by", "offset_ms")}))


@mutant(
    "QRY-11",
    killed_by="days_are_dates_at_the_offset",
    source="date(created_at / 1000, 'unixepoch')",
    witness=_of(lambda s: s.group_tool_calls("day", utc_offset_minutes=60)),
)
class DaysAreOfUtc(Layer):
    """Takes no offset."""

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
        return await super().group(query, replace(grouping, offset_ms=0))


@mutant(
    "QRY-11",
    killed_by="groups_tell_names_apart",
    source="GROUP BY name COLLATE NOCASE",
    witness=_of(lambda s: s.group_tool_calls("tool_name")),
)
class GroupsFoldCase(Layer):
    """Counts names that differ in case together, under the first of them."""

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
        found: dict[Any, tuple[Any, int]] = {}
        for values, number in await super().group(query, grouping):
            key = tuple(value.lower() if isinstance(value, str) else value for value in values)
            first, before = found.get(key, (values, 0))
            found[key] = first, before + number
        return list(found.values())


@mutant(
    "QRY-11",
    killed_by="groups_tell_names_apart",
    source="the names as the index has them",
    witness=_of(lambda s: s.group_tool_calls("tool_name")),
)
class LongNamesAreCut(Wrapper):
    """Gives the beginnings of long names."""

    async def group_tool_calls(self, by: Any, **asked: Any) -> Any:
        found = await self.inner.group_tool_calls(by, **asked)
        return [
            replace(one, values={name: v[:200] if isinstance(v, str) else v for name, v in one.values.items()})
            for one in found
        ]


@mutant(
    "QRY-11",
    killed_by="durations_are_summed_exactly",
    source="sum(duration_ms), one after the other",
    witness=_of(lambda s: s.group_tool_calls("tool_name", durations=True)),
)
class DurationsAreAddedUp(Wrapper):
    """Rounds each sum on the way."""

    async def group_tool_calls(self, by: Any, **asked: Any) -> Any:
        found = await self.inner.group_tool_calls(by, **asked)
        return [await self._added(one, asked) for one in found]

    async def _added(self, one: Group, asked: dict[str, Any]) -> Group:
        name = one.values.get("tool_name")
        if one.durations is None or name is None or "tool_name" in asked:
            return one
        calls = [call async for call in self.inner.iter_tool_calls(tool_name=name)]
        known = [call.duration_ms for call in calls if call.duration_ms is not None]
        total = 0.0
        for duration in known:
            total += duration
        return replace(one, durations=Durations(count=len(known), total_ms=total, max_ms=max(known)))


@mutant(
    "QRY-11",
    killed_by="durations_are_summed_exactly",
    source="duration_ms or 0",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i, duration_ms=None) for i in range(2)]),
        lambda s: s.group_tool_calls("tool_name", durations=True),
    ),
)
class CallsWithoutADurationTookNone(Wrapper):
    """Takes calls without a duration for calls of 0 ms."""

    async def group_tool_calls(self, by: Any, **asked: Any) -> Any:
        found = await self.inner.group_tool_calls(by, **asked)
        if not asked.get("durations"):
            return found
        none = Durations(count=0, total_ms=0, max_ms=0)
        return [replace(one, durations=replace(one.durations or none, count=one.count)) for one in found]


@mutant(
    "QRY-11",
    killed_by="groupings_are_checked",
    source="[name for name in by if name in COLUMNS]",
    witness=_of(lambda s: each(s.group_tool_calls(["tool_name", "size"]))),
)
class UnknownNamesAreLeftOut(Wrapper):
    """Groups by the names that it knows, and by them alone."""

    async def group_tool_calls(self, by: Any, **asked: Any) -> Any:
        known = ("agent_id", "tool_name", "state", "is_error", "has_approval", "day")
        if isinstance(by, list):
            by = [name for name in by if name in known] or ["day"]
        return await self.inner.group_tool_calls(by, **asked)


@mutant(
    "QRY-11",
    killed_by="more_than_ten_thousand_groups_are_refused",
    source="LIMIT 10000",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i, name=f"n{i}") for i in range(MAX_GROUPS + 1)]),
        lambda s: s.group_tool_calls("tool_name"),
    ),
)
class MoreGroupsAreLeftOut(Layer):
    """Gives ten thousand of the groups, without a word about the others."""

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
        return (await super().group(query, grouping))[:MAX_GROUPS]


@mutant(
    "QRY-11",
    killed_by="MSG-6.ten_thousand_in_one_turn",
    source="MongoDB: a $limit before the $group, against groups that take too long",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(5001)),
        lambda s: s.group_messages("agent_id", agent_id="a"),
    ),
    tier=Tier.STANDARD,
    slow=True,
)
class GroupsHaveFiveThousand(Wrapper):
    """Counts 5,000 messages in a group of more."""

    async def group_messages(self, by: Any, **filters: Any) -> Any:
        return [replace(one, count=min(one.count, 5000)) for one in await self.inner.group_messages(by, **filters)]
