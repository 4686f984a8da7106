"""The dashboard: sessions and calls by day, failures and durations by tool, sizes."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from kode_core import ExtendedStore, Group, SessionInfo, now_ms
from kode_inspector import charts
from kode_inspector.rendering import inspector_of, render
from kode_inspector.text import duration

__all__ = ["RANGES", "dashboard", "figures"]

RANGES: Final = {"7d": 7, "30d": 30, "90d": 90, "all": 0}
_DAY_MS: Final = 86_400_000
_SAMPLE: Final = 1_000
_KEPT_MS: Final = 15_000
_LONGEST_KEPT_MS: Final = 300_000
_MOST_COLUMNS: Final = 92
_TOOLS: Final = 12


async def dashboard(request: Request) -> Response:
    """The frame; the figures come in a moment."""
    chosen = request.query_params.get("range", "")
    return render(request, "dashboard.html", ranges=RANGES, chosen=chosen if chosen in RANGES else "all")


async def figures(request: Request) -> Response:
    """The figures of a range of days, which ends with the newest session."""
    inspector = inspector_of(request)
    chosen = request.query_params.get("range", "")
    chosen = chosen if chosen in RANGES else "all"  # a caller adds no entries to the kept ones
    lock = inspector.state.setdefault("figures", asyncio.Lock())
    kept: dict[str, tuple[int, dict[str, Any]]] = inspector.state.setdefault("kept", {})
    async with lock:  # they may take long, and are the same for everybody
        if chosen not in kept or kept[chosen][0] < now_ms():
            kept[chosen] = await _counted(inspector.store, RANGES[chosen])
    return render(request, "_figures.html", **kept[chosen][1])


async def _counted(store: ExtendedStore, days: int) -> tuple[int, dict[str, Any]]:
    """The figures, and until when they are shown: the longer they take to count, the longer."""
    begun = now_ms()
    found = await _figures(store, days)
    counted = now_ms()
    return counted + min(max(_KEPT_MS, 10 * (counted - begun)), _LONGEST_KEPT_MS), found | {"counted": counted}


async def _figures(store: ExtendedStore, days: int) -> dict[str, Any]:
    newest = await store.query_sessions(sort_by="created_at", limit=1)
    size = (await store.get_metrics()).storage
    if not newest:
        return {"empty": True}
    since: Any = {}
    if days:
        end = max(newest[0].created_at, 0) // _DAY_MS + 1
        since = {"created_after": (end - days) * _DAY_MS}
    sessions = await store.group_sessions("day", **since)
    calls = await store.group_tool_calls(["day", "is_error"], **since)
    tools = await store.group_tool_calls(["tool_name", "state", "is_error"], **since)
    states: Counter[str] = Counter()
    for group in tools:
        states[str(group.values["state"])] += group.count
    templates = await store.group_sessions("template_id", **since)
    longest = await store.query_sessions(sort_by="message_count", limit=8, **since)
    total = sum(group.count for group in tools)
    failed = sum(group.count for group in tools if group.values["is_error"])
    timed = await _durations(store, since)
    return {
        "empty": False,
        "size": size,
        "total_sessions": sum(group.count for group in sessions),
        "total_calls": total,
        "failed": failed,
        "waiting": states["APPROVAL_REQUIRED"],
        "sessions_chart": _by_day("Sessions by day", sessions, "sessions", ""),
        "calls_chart": _by_day("Tool calls by day", calls, "calls", "failed"),
        "failing": _failing(tools),
        "failing_chart": _failing_chart(tools),
        "timed": timed,
        "timed_chart": _timed_chart(timed),
        "sampled": _SAMPLE,
        "states": states.most_common(),
        "templates": sorted(((str(g.values["template_id"]), g.count) for g in templates), key=lambda pair: -pair[1])[
            :8
        ],
        "longest": longest,
        "longest_chart": _longest_chart(longest),
    }


def _by_day(title: str, groups: list[Group], whole: str, part: str) -> Markup:
    """Columns for all days from the first to the last one, or for months if those are too many."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for group in groups:
        day = counts[str(group.values["day"])]
        day[0] += group.count
        day[1] += group.count if group.values.get("is_error") else 0
    days = _all_days(sorted(counts))
    if len(days) > _MOST_COLUMNS:
        months: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for name, (number, some) in sorted(counts.items()):
            months[name[:-3]][0] += number
            months[name[:-3]][1] += some
        return charts.columns(
            title.replace("day", "month"),
            [(name, *pair) for name, pair in list(months.items())[-_MOST_COLUMNS:]],  # type: ignore[misc]
            whole=whole,
            part=part,
        )
    return charts.columns(title, [(name, *counts.get(name, [0, 0])) for name in days], whole=whole, part=part)  # type: ignore[misc]


def _all_days(known: list[str]) -> list[str]:
    try:
        first, last = (datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC) for day in (known[0], known[-1]))
    except (IndexError, ValueError):  # days outside of the calendar have names, too
        return known
    number = (last - first).days + 1
    if number > _MOST_COLUMNS:
        return [""] * (_MOST_COLUMNS + 1)
    return [f"{first + timedelta(days=i):%Y-%m-%d}" for i in range(number)]


def _failing(groups: list[Group]) -> list[tuple[str, int, int, float]]:
    """Tool, calls, failed ones, share: the ones with the highest share first."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for group in groups:
        tool = counts[str(group.values["tool_name"])]
        tool[0] += group.count
        tool[1] += group.count if group.values["is_error"] else 0
    rows = [(name, number, bad, bad / number) for name, (number, bad) in counts.items()]
    return sorted(rows, key=lambda row: (-row[3], -row[1], row[0]))[:_TOOLS]


def _failing_chart(groups: list[Group]) -> Markup | None:
    rows = [(name, share, f"{share:.0%} of {number:,}") for name, number, bad, share in _failing(groups) if bad]
    return charts.bars("Share of failed calls by tool", rows[:6], bad=True) if rows else None


async def _durations(store: ExtendedStore, since: Any) -> list[tuple[str, int, float, float, float]]:
    """Tool, number, median, 95th percentile and longest, of the newest calls that have a duration."""
    taken: dict[str, list[float]] = defaultdict(list)
    seen = 0
    async for call in store.iter_tool_calls(**since):
        if call.duration_ms is not None and call.duration_ms >= 0:
            taken[call.name].append(float(call.duration_ms))
        seen += 1
        if seen >= _SAMPLE:
            break
    rows = [(name, len(all_), *_percentiles(sorted(all_))) for name, all_ in taken.items()]
    return sorted(rows, key=lambda row: -row[3])[:_TOOLS]


def _percentiles(values: list[float]) -> tuple[float, float, float]:
    def at(share: float) -> float:
        return values[min(len(values) - 1, int(share * len(values)))]

    return at(0.5), at(0.95), values[-1]


def _timed_chart(rows: list[tuple[str, int, float, float, float]]) -> Markup | None:
    if not rows:
        return None
    return charts.bars(
        "95th percentile of the durations by tool", [(row[0], row[3], duration(row[3])) for row in rows[:6]]
    )


def _longest_chart(sessions: list[SessionInfo]) -> Markup:
    rows = [(s.agent_id, float(s.message_count), f"{s.message_count:,} messages") for s in sessions]
    return charts.bars("The longest conversations", rows)
