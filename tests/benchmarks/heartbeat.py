"""How long one call holds up everything else in the event loop (OPS-15)."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    ExtendedStore,
    Message,
    Snapshot,
    TextBlock,
    Timeline,
    TodoItem,
    TodoSnapshot,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
)
from tests.benchmarks.backends import Backend, opened
from tests.benchmarks.children import Child, answer, heard, job
from tests.benchmarks.measure import Report, Row

MESSAGES = 100_000
_BEAT_S = 0.005
_TARGET_MS = 50.0
_QUIET = "nothing: the machine's own noise"
_PARTS = ("lists", "calls", "snapshots", "rows", "text", "info")

Calls = list[tuple[str, Callable[[], Awaitable[object]]]]


async def run(report: Report, backend: Backend) -> None:
    """Measure the longest pause of a task that sleeps 5 ms again and again, in ms, for each call."""
    report.title("The longest time for which one call holds the event loop")
    for part in _PARTS:
        async with backend.space() as options, Child.of(__name__, {"options": options}) as child:
            for name, held, took in await child.ask(part):
                target = None if name == _QUIET else _TARGET_MS
                report.add(Row(f"{name} ({took:,.2f} s)", held * 1000, "ms", target=target))


async def longest_pause(call: Callable[[], Awaitable[object]]) -> float:
    """How long a task that sleeps 5 ms again and again was held up at most while *call* was under way, in seconds."""
    longest, last = 0.0, time.perf_counter()

    async def beat() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(_BEAT_S)
            now = time.perf_counter()
            longest, last = max(longest, now - last - _BEAT_S), now

    heart = asyncio.create_task(beat())
    try:
        await asyncio.sleep(2 * _BEAT_S)
        longest = 0.0
        result = await call()
        await asyncio.sleep(2 * _BEAT_S)
        found = longest
        del result  # which takes a time of its own, not the call's
    finally:
        heart.cancel()
    return found


# --- In the child -----------------------------------------------------------------------------------------------------


def _lists(store: ExtendedStore) -> Calls:
    talk = [
        Message("assistant", [ToolUseBlock(f"c{i}", "bash", {"n": i, "command": "x" * 150})]) for i in range(MESSAGES)
    ]

    async def change() -> None:
        talk[50].content[0].input["n"] = -1  # type: ignore[union-attr]
        await store.save_messages("a", talk)

    more = [Message.user("one more")]
    return [
        (f"save_messages of {MESSAGES:,}, the first time", lambda: store.save_messages("a", talk)),
        ("  again, one appended", lambda: store.save_messages("a", [*talk, *more])),
        ("  again, one dict changed in place", change),
        ("  again, the first 1,000 gone", lambda: store.save_messages("a", talk[1_000:])),
        ("append_messages", lambda: store.append_messages("a", more)),
        (f"load_messages of {MESSAGES:,}", lambda: store.load_messages("a")),
        ("query_messages of 10,000", lambda: store.query_messages(limit=10_000)),
    ]


def _calls(store: ExtendedStore) -> Calls:
    calls = [ToolCallRecord(id=f"c{i}", name="bash", input={"n": i}) for i in range(MESSAGES)]
    return [
        (f"save_tool_call_records of {MESSAGES:,}", lambda: store.save_tool_call_records("a", calls)),
        ("upsert_tool_call_records of one", lambda: store.upsert_tool_call_records("a", calls[-1:])),
        (f"load_tool_call_records of {MESSAGES:,}", lambda: store.load_tool_call_records("a")),
    ]


def _snapshots(store: ExtendedStore) -> Calls:
    talk = [Message.user("x" * 200)] * 1_000

    async def save() -> None:
        for i in range(50):
            await store.save_snapshot("a", Snapshot(id=f"s{i}", messages=talk))

    return [
        ("save_snapshot of 1,000 messages, 50 times", save),
        ("list_snapshots, 50 of 1,000 messages", lambda: store.list_snapshots("a")),
    ]


def _values(value: Any, what: str) -> Callable[[ExtendedStore], Calls]:
    def calls(store: ExtendedStore) -> Calls:
        talk = [Message("user", [ToolResultBlock("c", value)])]
        noted = [Message("user", [TextBlock("x")], metadata={"v": value})]
        event = Timeline(1, Bookmark(1, 1), AgentEvent("monitor", "x", {"v": value}))
        todos = TodoSnapshot(todos=[TodoItem(id="i", title="t", extra={"v": value})])

        async def read() -> None:
            async for _ in store.read_events("c"):
                pass

        return [
            (f"append_messages, {what} in a result", lambda: store.append_messages("a", talk)),
            ("  save_messages of it again", lambda: store.save_messages("a", talk)),
            ("  load_messages", lambda: store.load_messages("a")),
            (f"append_messages, {what} in metadata", lambda: store.append_messages("b", noted)),
            (f"append_event, {what}", lambda: store.append_event("c", event)),
            ("  read_events", read),
            (f"save_todos, {what}", lambda: store.save_todos("c", todos)),
            ("  load_todos", lambda: store.load_todos("c")),
        ]

    return calls


def _info(store: ExtendedStore) -> Calls:
    info = AgentInfo(agent_id="a", template_id="t", metadata={"v": _rows()})
    return [
        ("save_info, 100,000 rows in metadata", lambda: store.save_info("a", info)),
        ("  load_info", lambda: store.load_info("a")),
        ("  batch_fork of 3", lambda: store.batch_fork("a", 3)),
        ("  query_sessions of the 4", lambda: store.query_sessions()),
    ]


def _rows() -> Any:
    return {"rows": [{"i": i, "text": "x" * 50} for i in range(100_000)]}


async def _measure(store: ExtendedStore, part: str) -> list[tuple[str, float, float]]:
    makers: dict[str, Callable[[ExtendedStore], Calls]] = {
        "lists": _lists,
        "calls": _calls,
        "snapshots": _snapshots,
        "rows": lambda store: _values(_rows(), "100,000 rows")(store),
        "text": _values("x" * 10_000_000, "10 MB"),
        "info": _info,
    }
    calls: Calls = [(_QUIET, lambda: asyncio.sleep(1)), *makers[part](store)]
    found = []
    for name, call in calls:
        gc.collect()
        start = time.perf_counter()
        held = await longest_pause(call)
        found.append((name, held, time.perf_counter() - start))
    return found


async def _work(options: dict[str, Any]) -> None:
    async with opened(options) as store:
        answer("ready")
        async for part in heard():
            answer(await _measure(store, part))


if __name__ == "__main__":
    asyncio.run(_work(job()["options"]))
