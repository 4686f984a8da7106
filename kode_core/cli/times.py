"""Times on the command line: how they are written, and the zone in which they are shown."""

from __future__ import annotations

import re
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Annotated, Any, Final

import typer

from kode_core.cli.output import utc
from kode_core.errors import InvalidArgumentError
from kode_core.model import now_ms
from kode_core.retention.spans import read_span

__all__ = [
    "TIME_HELP",
    "LocalOption",
    "SinceOption",
    "UntilOption",
    "between",
    "clock",
    "moment",
    "read_time",
    "set_local",
    "utc_offset_minutes",
    "zone",
]

TIME_HELP: Final = (
    "2025-01-31, 2025-01-31T12:00Z, yesterday, today, now, 7d for seven days ago (s, m, h, d, w), or milliseconds"
)

_DAYS: Final = {"today": 0, "yesterday": 1}
_SECONDS_BELOW: Final = 100_000_000_000
_IS_LOCAL: Final[ContextVar[bool]] = ContextVar("IS_LOCAL", default=False)


def set_local(is_local: bool) -> None:
    """Show times in the zone of this computer, or in UTC."""
    _IS_LOCAL.set(is_local)


def _see_local(given: bool) -> bool:
    """Remember the option before the times are read; a command without it keeps what ``kode --local`` said."""
    if given:
        _IS_LOCAL.set(True)
    return given


LocalOption = Annotated[
    bool,
    typer.Option(
        "--local",
        help="Times in the zone of this computer, also a TIME without a zone.",
        is_eager=True,
        callback=_see_local,
    ),
]


def _zone() -> tzinfo | None:
    """The zone of times that name none; None is the zone of this computer."""
    return None if _IS_LOCAL.get() else UTC


def zone() -> str:
    """The zone of the times that are shown, for the heads of columns."""
    return "LOCAL" if _IS_LOCAL.get() else "UTC"


def utc_offset_minutes() -> int:
    """The offset of the zone from UTC, as it is now."""
    offset = datetime.now(_zone()).astimezone().utcoffset() if _IS_LOCAL.get() else None
    return 0 if offset is None else int(offset.total_seconds() // 60)


def moment(time_ms: int | None) -> str:
    """A time to the second, in the zone that was asked for; the number itself if it is outside the calendar."""
    if time_ms is None or not _IS_LOCAL.get():
        return utc(time_ms)
    try:
        at = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)).astimezone()
    except (OverflowError, OSError, ValueError):
        return str(time_ms)
    return f"{at:%Y-%m-%d %H:%M:%S}"


def clock(time_ms: int | None) -> str:
    """The time of day of :func:`moment`."""
    return moment(time_ms).rpartition(" ")[2]


def read_time(text: str) -> int:
    """Parse a time as milliseconds since the epoch: an age, a day, a date and time, or the number itself.

    Without a zone, a date is in UTC, or with ``--local`` in the zone of this computer.
    """
    age = read_span(text)
    if age is not None:
        return now_ms() - age
    if text == "now":
        return now_ms()
    if text in _DAYS:
        day = datetime.now(_zone()).date() - timedelta(days=_DAYS[text])
        return _milliseconds_of(datetime(day.year, day.month, day.day))
    if re.fullmatch(r"-?[0-9]{9,30}", text):
        return _milliseconds(int(text))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r:.60} is no time; write {TIME_HELP}") from None
    return _milliseconds_of(at)


def _milliseconds_of(at: datetime) -> int:
    try:
        return int((at if at.tzinfo or _zone() is None else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (OverflowError, OSError, ValueError):
        raise typer.BadParameter(f"{at} is outside the calendar of this computer") from None


def _milliseconds(number: int) -> int:
    """The number, unless it looks like seconds: as milliseconds, those would be a time in early 1970."""
    if abs(number) < _SECONDS_BELOW:
        raise typer.BadParameter(
            f"{number} looks like seconds since 1970; a time is in milliseconds, as {number * 1000} would be"
        )
    return number


def _option(name: str, what: str) -> Any:
    return typer.Option(name, parser=read_time, metavar="TIME", help=what, rich_help_panel="Filters")


SinceOption = Annotated[int | None, _option("--since", "From that time on, such as 1d or yesterday.")]
UntilOption = Annotated[int | None, _option("--until", "Before that time.")]


def between(
    filters: dict[str, Any], since: int | None, until: int | None, after: str = "created_after"
) -> dict[str, Any]:
    """The filters with the times of ``--since`` and ``--until``; *after* is the filter that ``--since`` stands for."""
    for name, option, value in ((after, "--since", since), ("created_before", "--until", until)):
        if value is None:
            continue
        if name in filters:
            raise InvalidArgumentError(f"give {option} or --{name.replace('_', '-')}, not both")
        filters[name] = value
    return filters
