"""Counts of records by values that they have in common (QRY-11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Final, cast

from msgspec.structs import replace

from kode_core.batch import FoundRow, SessionRow
from kode_core.counted import can_group, group
from kode_core.engine import check_any_of
from kode_core.errors import CorruptRecordError, InvalidArgumentError
from kode_core.grouping import checked_grouping, day_text
from kode_core.ids import index_text, is_shortened, plain_text
from kode_core.model import Message
from kode_core.pace import Pace
from kode_core.query import (
    MAX_GROUPS,
    Durations,
    Group,
    Grouping,
    MessageQuery,
    RowQuery,
    SessionQuery,
    finds_nothing,
    message_query,
    session_query,
    tool_call_query,
)
from kode_core.store.context import Context
from kode_core.store.counts import log_left_out, refuse_paging, rows_of
from kode_core.store.message_search import is_match
from kode_core.store.reader import decoded_info, left_out_of, stored_message, stored_tool_call
from kode_core.store.steps import checked_flag

__all__ = ["GroupCounts"]

_CHECKED: Final[Mapping[str, Callable[[Any], SessionQuery | RowQuery]]] = {
    "sessions": session_query,
    "messages": message_query,
    "tool_calls": tool_call_query,
}
_IN_RECORD: Final[Mapping[str, Callable[[Any], str | bool]]] = {
    "template_id": lambda info: index_text(info.template_id),
    "role": lambda message: index_text(message.role),
    "tool_name": lambda call: index_text(call.name),
    "state": lambda call: index_text(call.state),
    "is_error": lambda call: call.is_error is True,
    "has_approval": lambda call: call.approval.required,
}
"""By column, its value for a record."""

_WHOLE: Final[Mapping[str, Callable[[Any], str]]] = {
    "template_id": lambda info: info.template_id,
    "role": lambda message: message.role,
    "tool_name": lambda call: call.name,
    "state": lambda call: call.state,
}
"""By column, the text of which an index may have a short form."""


class _Tally:
    """The records of a group, as they are counted."""

    __slots__ = ("_longest", "_timed", "_total", "count")

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self._timed = 0
        self._total: int | Fraction = 0
        self._longest: int | float = 0

    def add(self, duration: int | float | None) -> None:
        self.count += 1
        if duration is None:
            return
        self._longest = duration if not self._timed else max(self._longest, duration)
        self._timed += 1
        self._total += duration if type(duration) is int else Fraction(duration)

    def durations(self) -> Durations | None:
        if not self._timed:
            return None
        total = self._total
        return Durations(
            count=self._timed, total_ms=total if type(total) is int else _rounded(total), max_ms=self._longest
        )


def _rounded(total: int | Fraction) -> int | float:
    try:
        return float(total)
    except OverflowError:  # beyond all floats, which an integer is not
        return int(total)


class GroupCounts:
    """Groups records with an engine that can, and otherwise page after page."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def sessions(self, by: Any, utc_offset_minutes: Any, filters: Mapping[str, Any]) -> list[Group]:
        return await self._groups("sessions", by, utc_offset_minutes, filters)

    async def messages(self, by: Any, utc_offset_minutes: Any, filters: Mapping[str, Any]) -> list[Group]:
        return await self._groups("messages", by, utc_offset_minutes, filters)

    async def tool_calls(
        self, by: Any, utc_offset_minutes: Any, durations: Any, filters: Mapping[str, Any]
    ) -> list[Group]:
        is_timed = checked_flag(durations, "durations")
        return await self._groups("tool_calls", by, utc_offset_minutes, filters, is_timed=is_timed)

    async def _groups(
        self, kind: str, by: Any, utc_offset_minutes: Any, filters: Mapping[str, Any], *, is_timed: bool = False
    ) -> list[Group]:
        refuse_paging(filters)
        grouping = checked_grouping(kind, by, utc_offset_minutes)
        query, engine = _CHECKED[kind](filters), self._context.engine
        check_any_of(engine, query)
        if finds_nothing(query):
            return []
        tallies: dict[tuple[Any, ...], _Tally]
        if can_group(engine) and not is_timed and not isinstance(query, MessageQuery):
            found = await group(engine, query, grouping)
            for name in left_out_of(found):
                log_left_out(name)
            tallies = {values: _Tally(count) for values, count in found}
        else:
            tallies = await self._by_pages(query, grouping, is_timed=is_timed)
        if len(tallies) >= grouping.limit:
            raise InvalidArgumentError(
                f"{kind} have more than {MAX_GROUPS:,} groups by {', '.join(grouping.by)}; group by less, or filter,"
                " as by created_after and created_before"
            )
        return await self._named(query, grouping, tallies)

    async def _by_pages(
        self, query: SessionQuery | RowQuery, grouping: Grouping, *, is_timed: bool
    ) -> dict[tuple[Any, ...], _Tally]:
        """Group page after page; at most ``grouping.limit`` groups are made."""
        tallies: dict[tuple[Any, ...], _Tally] = {}
        pace = Pace()
        is_read = is_timed or isinstance(query, MessageQuery)
        is_decoded = is_read or not {"day", "agent_id"}.issuperset(grouping.by)
        async for row in rows_of(self._context.engine, query):
            try:
                record = await _record(query, row, pace) if is_decoded else None
            except CorruptRecordError as exc:
                log_left_out(exc.record)
                continue
            if isinstance(query, MessageQuery) and not await is_match(cast(Message, record), query, pace):
                continue
            values = tuple([_value(by, row, record, grouping) for by in grouping.by])
            tally = tallies.setdefault(values, _Tally())
            tally.add(None if record is None or not is_timed else record.duration_ms)
            if len(tallies) >= grouping.limit:
                break
            await pace.yield_to_loop()
        return tallies

    async def _named(
        self, query: SessionQuery | RowQuery, grouping: Grouping, tallies: Mapping[tuple[Any, ...], _Tally]
    ) -> list[Group]:
        """The groups with the texts that were saved, in the order of the values."""
        pace, whole = Pace(), dict[tuple[str, str], str]()
        found = list[tuple[tuple[Any, ...], _Tally]]()
        for values, tally in tallies.items():
            texts = list[Any]()
            for by, value in zip(grouping.by, values, strict=True):
                text = plain_text(value) if by in _WHOLE else value
                if by in _WHOLE and is_shortened(value):
                    if (by, value) not in whole:
                        whole[by, value] = await self._whole(query, by, value)
                    text = whole[by, value]
                texts.append(text)
            found.append((tuple(texts), tally))
            await pace.yield_to_loop()
        found.sort(key=lambda one: one[0])
        groups = []
        for values, tally in found:
            named = {by: day_text(v) if by == "day" else v for by, v in zip(grouping.by, values, strict=True)}
            groups.append(Group(values=named, count=tally.count, durations=tally.durations()))
            await pace.yield_to_loop()
        return groups

    async def _whole(self, query: SessionQuery | RowQuery, column: str, shortened: str) -> str:
        """A text that the index holds only in short form, taken from a record that has it.

        If no record is left that can be read, because the groups are from a moment before, it is the short form.
        """
        if isinstance(query, SessionQuery):
            asked: SessionQuery | RowQuery = replace(query, template_id=shortened)
        else:
            others = tuple(pair for pair in query.where if pair[0] != column)
            asked = replace(query, where=(*others, (column, shortened)))
        async for row in rows_of(self._context.engine, asked, first=1):
            try:
                return _WHOLE[column](await _record(query, row, Pace()))
            except CorruptRecordError:
                continue
        return shortened


async def _record(query: SessionQuery | RowQuery, row: Any, pace: Pace) -> Any:
    if isinstance(query, SessionQuery):
        return await decoded_info(row.agent_id, row.info, pace)
    return await (stored_message if query.kind == "messages" else stored_tool_call)(row, pace)


def _value(by: str, row: SessionRow | FoundRow, record: Any, grouping: Grouping) -> str | bool | int:
    if by == "day":
        return grouping.day(row.created_at)
    return row.agent_id if by == "agent_id" else _IN_RECORD[by](record)
