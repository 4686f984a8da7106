"""Queries over ten thousand agents, and statistics of an agent with a hundred thousand calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kode_core import AgentInfo, ExtendedStore, ToolCallRecord
from tests.benchmarks.backends import Backend, opened
from tests.benchmarks.measure import Report, Row, interleaved

AGENTS = 10_000
CALLS = 100_000
DEEP = 51
_MOST_OF_FIRST = 1.2


def _info(i: int) -> AgentInfo:
    return AgentInfo(
        agent_id=f"agt-{i:06d}", template_id=f"t{i % 10}", created_at=i // 3, metadata={"userId": f"u{i % 100}"}
    )


def _call(i: int) -> ToolCallRecord:
    state = "COMPLETED" if i % 7 else "FAILED"
    return ToolCallRecord(id=f"c{i}", name=f"tool_{i % 20}", state=state, created_at=i, updated_at=i)


async def _fill(store: ExtendedStore) -> None:
    for start in range(0, AGENTS, 500):
        infos = (_info(i) for i in range(start, start + 500))
        await asyncio.gather(*(store.save_info(info.agent_id, info) for info in infos))
    for start in range(0, CALLS, 10_000):
        calls = [_call(i) for i in range(start, start + 10_000)]
        await store.upsert_tool_call_records("agt-000000", calls)


async def run(report: Report, backend: Backend) -> None:
    """Measure pages and statistics, in milliseconds, the median of seven."""
    report.title(f"Queries over {AGENTS:,} agents")
    async with backend.space() as options, opened(options) as store:
        await _fill(store)
        await backend.settle(options)
        cursor = None
        for _ in range(DEEP - 1):
            cursor = (await store.query_sessions(cursor=cursor)).next_cursor
        queries: dict[str, Callable[[int], Awaitable[object]]] = {
            "query_sessions, newest 100": lambda _: store.query_sessions(),
            "query_sessions, by updated_at": lambda _: store.query_sessions(sort_by="updated_at"),
            "query_sessions, one template": lambda _: store.query_sessions(template_id="t3"),
            "query_sessions, one user of a hundred": lambda _: store.query_sessions(user_id="u42"),
            "query_tool_calls, one tool, 100 of 5,000": lambda _: store.query_tool_calls(tool_name="tool_3"),
            "query_tool_calls, errors": lambda _: store.query_tool_calls(is_error=True),
            "aggregate_stats, 100,000 calls": lambda _: store.aggregate_stats("agt-000000"),
        }
        for name, query in queries.items():
            times = await interleaved(7, query=query)
            report.add(Row(name, times["query"] * 1000, "ms"))
        pages = await interleaved(
            15, first=lambda _: store.query_sessions(), deep=lambda _: store.query_sessions(cursor=cursor)
        )
        ratio = pages["deep"] / pages["first"]
        report.add(
            Row(f"query_sessions, page {DEEP} by cursor", pages["deep"] * 1000, "ms", ratio, "page 1", _MOST_OF_FIRST)
        )
