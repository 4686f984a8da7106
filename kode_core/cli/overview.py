"""The tables and the curves of ``kode stats``: the store by tool, by template and by day."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from rich.console import RenderableType
from rich.text import Text

from kode_core.cli.output import one_line
from kode_core.cli.tables import table
from kode_core.cli.times import utc_offset_minutes, zone
from kode_core.grouping import day_text
from kode_core.model import Json, now_ms
from kode_core.protocols import ExtendedStore

__all__ = ["Overview", "drawn", "overview", "plain"]

_DAY_MS: Final = 86_400_000
_BARS: Final = "▁▂▃▄▅▆▇█"
_ASCII_BARS: Final = "_.:-=+*#"
_MOST: Final = 15
_NAME: Final = 40
_NAMES: Final = {"agents": "agents", "messages": "messages", "toolCalls": "calls"}
_BEFORE: Final = 20
"""The columns before a curve."""


class Tool(NamedTuple):
    """A tool; *timed* of its calls have a duration."""

    calls: int = 0
    failed: int = 0
    timed: int = 0
    total_ms: float = 0
    max_ms: float = 0

    @property
    def mean_ms(self) -> float | None:
        """The mean duration; None if no call has one."""
        return self.total_ms / self.timed if self.timed else None


class Overview(NamedTuple):
    """The counts of a store; days are the last ones, without gaps.

    Attributes:
        tools: by name, with durations if they were asked for.
        templates: the agents by template.
        days: their dates, the oldest first.
        by_day: by kind, a number for each day.
    """

    tools: dict[str, Tool]
    templates: dict[str, int]
    days: list[str]
    by_day: dict[str, list[int]]


async def overview(store: ExtendedStore, days: int, *, durations: bool) -> Overview:
    """Count in the database; nothing is read but numbers, except for *durations*, which read each call of a tool."""
    offset = utc_offset_minutes()
    today = (now_ms() + offset * 60_000) // _DAY_MS
    begin = (today - days + 1) * _DAY_MS - offset * 60_000
    named: Mapping[str, Any] = {"utc_offset_minutes": offset, "created_after": begin}
    tools, templates, *counted = await asyncio.gather(
        store.group_tool_calls(["tool_name", "is_error"], durations=durations),
        store.group_sessions("template_id"),
        store.group_sessions("day", **named),
        store.group_messages("day", **named),
        store.group_tool_calls("day", **named),
    )
    found: dict[str, Tool] = {}
    for group in tools:
        name = str(group.values["tool_name"])
        old = found.get(name, Tool())
        failed = old.failed + (group.count if group.values["is_error"] else 0)
        found[name] = _timed(old, group.durations)._replace(calls=old.calls + group.count, failed=failed)
    dates = [day_text(today - i) for i in reversed(range(days))]
    by_day = {}
    for name, groups in zip(("agents", "messages", "toolCalls"), counted, strict=True):
        numbers = {str(group.values["day"]): group.count for group in groups}
        by_day[name] = [numbers.get(date, 0) for date in dates]
    by_count = {str(group.values["template_id"]): group.count for group in templates}
    return Overview(found, by_count, dates, by_day)


def _timed(old: Tool, took: Any) -> Tool:
    """With the durations of a group."""
    if took is None:
        return old
    return old._replace(
        timed=old.timed + took.count, total_ms=old.total_ms + took.total_ms, max_ms=max(old.max_ms, took.max_ms)
    )


def plain(found: Overview) -> dict[str, Json]:
    """The overview as JSON."""
    tools = [
        {
            "tool": name,
            "calls": tool.calls,
            "failed": tool.failed,
            **({} if tool.mean_ms is None else {"meanMs": tool.mean_ms, "maxMs": tool.max_ms}),
        }
        for name, tool in _largest(found.tools, lambda tool: tool.calls)
    ]
    return {
        "tools": tools,
        "templates": [{"template": name, "agents": n} for name, n in _largest(found.templates, lambda n: n)],
        "days": [
            {"day": day, **{name: numbers[i] for name, numbers in found.by_day.items()}}
            for i, day in enumerate(found.days)
        ],
    }


def _largest(items: Mapping[str, Any], size: Any) -> list[tuple[str, Any]]:
    return sorted(items.items(), key=lambda item: (-size(item[1]), item[0]))


# --- drawing ----------------------------------------------------------------------------------------------------------


def drawn(found: Overview) -> list[RenderableType]:
    """The tables and the curves, for a terminal of any width or a pipe."""
    parts: list[RenderableType] = []
    if found.tools:
        parts += [Text(), _tools(found.tools)]
    if found.templates:
        most = max(found.templates.values())
        rows = [
            (one_line(name, _NAME), f"{n:,}", bar(n, most))
            for name, n in _largest(found.templates, lambda n: n)[:_MOST]
        ]
        parts += [Text(), table(("TEMPLATE", "AGENTS", ""), rows, right=("AGENTS",), optional=("",))]
        parts += _left(len(found.templates) - len(rows), "templates")
    parts += [Text(), *_curves(found)]
    return parts


def _tools(tools: Mapping[str, Tool]) -> RenderableType:
    most = max(tool.calls for tool in tools.values())
    is_timed = any(tool.timed for tool in tools.values())
    columns = ("TOOL", "CALLS", "FAILED", *(("MEAN (MS)", "MAX (MS)") if is_timed else ()), "")
    rows = []
    for name, tool in _largest(tools, lambda tool: tool.calls)[:_MOST]:
        share = f"{tool.failed:,} ({tool.failed / tool.calls:.0%})" if tool.failed else "0"
        times = (
            ("" if ms is None else f"{ms:,.0f}" for ms in (tool.mean_ms, tool.max_ms if tool.timed else None))
            if is_timed
            else ()
        )
        failed = Text(share, "red" if tool.failed else "")
        rows.append(
            (one_line(name, _NAME), f"{tool.calls:,}", failed, *(times if is_timed else ()), bar(tool.calls, most))
        )
    if len(tools) > len(rows):
        rows.append((f"… {len(tools) - len(rows):,} more (--json)", *("" for _ in columns[1:])))
    return table(columns, rows, right=columns[1:-1], optional=("", *(("MAX (MS)", "MEAN (MS)") if is_timed else ())))


def _left(number: int, noun: str) -> list[RenderableType]:
    return [Text(f"… {number:,} more {noun} (--json)", "dim")] if number > 0 else []


def _curves(found: Overview) -> list[RenderableType]:
    """A line for each kind: the sum, and its curve over the days; in a narrow terminal a character is several days."""
    room = shutil.get_terminal_size().columns - _BEFORE if sys.stdout.isatty() else len(found.days)
    step = -(-len(found.days) // max(room, 10))
    head = f"{len(found.days)} days to {found.days[-1]} ({zone()})"
    if step > 1:
        head += f", {step} in a character"
    lines: list[RenderableType] = [Text(head, "bold")]
    for name, numbers in found.by_day.items():
        sums = [sum(numbers[max(0, end - step) : end]) for end in range(len(numbers), 0, -step)]
        curve = (sparkline(sums[::-1]), "cyan")
        lines.append(Text.assemble(f"{_NAMES[name]:<8} {sum(numbers):>9,}  ", curve))
    return lines


def _bars() -> str:
    """The characters of curves: other ones where the encoding of the output has no blocks."""
    try:
        _BARS.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeError, LookupError):
        return _ASCII_BARS
    return _BARS


def sparkline(numbers: Sequence[int]) -> str:
    """A curve of one character for each number; a space is none at all."""
    most, bars = max(numbers, default=0), _bars()
    return "".join(" " if not n else bars[(n * len(bars) - 1) // most] for n in numbers)


def bar(number: int, most: int) -> str:
    """A bar of up to ten characters."""
    return _bars()[-1] * max(1 if number else 0, round(10 * number / most)) if most else ""
