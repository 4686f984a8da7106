"""The values by which records are grouped (QRY-11): the arguments, checked, and days as texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

from kode_core.errors import InvalidArgumentError
from kode_core.ids import nearest, quoted
from kode_core.wanted import Grouping

__all__ = ["MessageGroups", "SessionGroups", "ToolCallGroups", "checked_grouping", "day_text"]

SessionGroups: TypeAlias = Literal["template_id", "day"]
"""The values by which sessions are grouped."""

MessageGroups: TypeAlias = Literal["agent_id", "role", "day"]
"""The values by which messages are grouped."""

ToolCallGroups: TypeAlias = Literal["agent_id", "tool_name", "state", "is_error", "has_approval", "day"]
"""The values by which tool calls are grouped."""

_KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "sessions": get_args(SessionGroups),
    "messages": get_args(MessageGroups),
    "tool_calls": get_args(ToolCallGroups),
}
_DAY_MINUTES: Final = 24 * 60


def checked_grouping(kind: str, by: Any, utc_offset_minutes: Any) -> Grouping:
    """The checked form of these arguments of a call that groups records of *kind*; raises InvalidArgumentError."""
    names: Sequence[Any] = (by,) if type(by) is str else by
    if type(names) not in (tuple, list):
        raise InvalidArgumentError(f"by must be a str, or a list or tuple of them, got {type(by).__name__}")
    if not names:
        raise InvalidArgumentError(f"by names nothing; count_{kind} gives the number of all")
    known = _KNOWN[kind]
    for place, name in enumerate(names):
        if type(name) is not str:
            raise InvalidArgumentError(f"by[{place}] must be a str, got {type(name).__name__}")
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(known)}"
            hint = "pass several names as a list" if "," in name else hint
            raise InvalidArgumentError(f"{kind} cannot be grouped by {quoted(name)}; {hint}")
        if name in names[:place]:
            raise InvalidArgumentError(f"by names {name!r} twice")
    if type(utc_offset_minutes) is not int:
        raise InvalidArgumentError(f"utc_offset_minutes must be an int, got {type(utc_offset_minutes).__name__}")
    if not -_DAY_MINUTES < utc_offset_minutes < _DAY_MINUTES:
        raise InvalidArgumentError(
            f"utc_offset_minutes must be less than a day, as in 120 or -300, got {quoted(utc_offset_minutes)}"
        )
    if utc_offset_minutes and "day" not in names:
        raise InvalidArgumentError("utc_offset_minutes says when days begin, and by has no day")
    return Grouping(by=tuple(names), offset_ms=utc_offset_minutes * 60_000)


def day_text(day: int) -> str:
    """The date of the day with that number, counted from 1970-01-01, as ``2026-01-31``.

    It is the Gregorian date of any day that a time of 64 bits can have; ISO 8601 writes years beyond 0 to 9999 with a
    sign.
    """
    era, of_era = divmod(day + 719_468, 146_097)  # eras of 400 years, from the first of March of the year 0
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    of_month = of_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9
    year += 400 * era + (month <= 2)
    shown = f"{year:04}" if 0 <= year <= 9999 else f"{year:+07}"
    return f"{shown}-{month:02}-{of_month:02}"
