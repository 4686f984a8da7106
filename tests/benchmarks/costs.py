"""``make bench ARGS=costs``: what the usual calls cost on MongoDB and DynamoDB, counted and not timed.

Each row is measured on a store that was just opened: its rounds for what the dead left have not begun. All that a call
leaves to be done afterwards is in its row. The tables are put into the guides of both backends, and into
``bench/costs.md``; ``ARGS="costs mongo"`` makes one of them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from kode_conformance.commands.into import write_into

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    ExtendedStore,
    Message,
    Timeline,
    ToolCallRecord,
    ToolUseBlock,
)
from tests.benchmarks.meters import METERS, Meter

__all__ = ["Row", "an_event", "fill", "measured", "messages", "rows_of", "run"]

_APART_S: Final = 0.12
"""Calls are so far apart that none spares another a write."""
_AT_ONCE: Final = 500
_FOLLOWED_S: Final = 6.0
_UNTIL_IDLE_S: Final = 4.0
_OTHERS: Final = 60
_PAGE: Final = 50

Do = Callable[[ExtendedStore], Awaitable[object]]


class Row(NamedTuple):
    """A call to be counted.

    Attributes:
        before: what the store does first, uncounted.
        call: what is counted.
        times: how often; the table has the mean.
    """

    name: str
    call: Do
    before: Do | None = None
    times: int = 1


# --- records ----------------------------------------------------------------------------------------------------------


def _text(n: int, length: int = 500) -> str:
    lots = random.Random(n)
    return "".join(lots.choice("abcdefghijklmnopqrstuvwxyz     ") for _ in range(length))


def messages(start: int, end: int) -> list[Message]:
    """Messages of 500 characters; one of ten uses a tool, one of a thousand is the system's."""
    made = []
    for n in range(start, end):
        if n % 1000 == 7:
            made.append(Message("system", [*Message.user(_text(n)).content]))
        elif n % 10 == 3:
            made.append(Message("assistant", [ToolUseBlock(f"c-{n}", "search", {"q": _text(n)})]))
        else:
            made.append(Message.user(_text(n)) if n % 2 == 0 else Message.assistant(_text(n)))
    return made


def an_event(n: int) -> Timeline:
    """An event of some 330 bytes; one of twenty is for the monitor."""
    channel: Any = "progress" if n % 20 else "monitor"
    return Timeline(n, Bookmark(n, 1_767_258_000_000 + n), AgentEvent(channel, "text_chunk", {"delta": _text(n, 200)}))


def a_call(n: int) -> ToolCallRecord:
    """A call; one of fifty failed."""
    failed = n % 50 == 0
    return ToolCallRecord(
        id=f"c-{n}",
        name=f"tool_{n % 7}",
        state="FAILED" if failed else "COMPLETED",
        is_error=failed,
        result=_text(n, 200),
        created_at=n,
    )


def an_info(agent_id: str) -> AgentInfo:
    return AgentInfo(agent_id=agent_id, template_id="travel", metadata={"userId": f"u-{agent_id}"})


async def fill(store: ExtendedStore, agent_id: str, length: int) -> None:
    """An agent with so many messages, some calls and events."""
    await store.save_info(agent_id, an_info(agent_id))
    for start in range(0, length, _AT_ONCE):
        await store.append_messages(agent_id, messages(start, min(length, start + _AT_ONCE)))
    few = max(1, length // 20)
    await store.upsert_tool_call_records(agent_id, [a_call(n) for n in range(few)])
    await store.append_events(agent_id, [an_event(n) for n in range(few)])


# --- rows -------------------------------------------------------------------------------------------------------------


class _Agent:
    """The rows of an agent of a length."""

    def __init__(self, length: int) -> None:
        self.id = f"agent-{length}"
        self.length = length
        self.n = 1_000_000
        self.known: list[Message] = []

    def next(self, count: int = 1) -> int:
        self.n += count
        return self.n

    async def event(self, store: ExtendedStore) -> None:
        await store.append_event(self.id, an_event(self.next()))

    async def append(self, store: ExtendedStore) -> None:
        n = self.next()
        await store.append_messages(self.id, messages(n, n + 1))

    async def turn(self, store: ExtendedStore) -> None:
        n = self.next(2)
        await store.save_turn(
            self.id,
            append=messages(n, n + 2),
            upsert_tool_calls=[a_call(n)],
            events=[an_event(n), an_event(n + 1)],
            info=an_info(self.id),
        )

    async def load(self, store: ExtendedStore) -> None:
        self.known = await store.load_messages(self.id)

    async def save(self, store: ExtendedStore) -> None:
        n = self.next(2)
        self.known = [*self.known, *messages(n, n + 2)]
        await store.save_messages(self.id, self.known)

    async def fork(self, store: ExtendedStore) -> None:
        (self.child,) = await store.batch_fork(self.id, 1)

    async def delete(self, store: ExtendedStore) -> None:
        await store.delete(self.child)

    async def begin_to_follow(self, store: ExtendedStore) -> None:
        """Follow until the pauses between two looks have grown as long as they get."""
        offset = 0
        async for event in store.read_events(self.id, after_offset=0):
            offset = event.offset or 0

        async def follow() -> None:
            async for _ in store.follow_events(self.id, after_offset=offset):
                raise AssertionError("an idle follower got an event")

        self.following = asyncio.ensure_future(follow())
        await asyncio.sleep(_UNTIL_IDLE_S)

    async def follow(self, store: ExtendedStore) -> None:
        await asyncio.sleep(_FOLLOWED_S)
        assert not self.following.done()
        self.following.cancel()

    def rows(self) -> list[Row]:
        of = f"of {self.length:,}"
        return [
            Row(f"`append_messages`, one message, to a list {of}", self.append, self.append, 10),
            Row(f"`load_messages`, a list {of}", self.load),
            Row(f"`save_messages`, a list {of} and two more, known to the store", self.save, self.load),
            Row(f"`save_messages`, a list {of} and two more, by a store that was just opened", self.save),
            Row(f"`batch_fork`, a list {of}", self.fork),
            Row(f"`delete`, a list {of}", self.delete),
        ]


def rows_of(lengths: Sequence[int]) -> list[Row]:
    """The rows of agents with lists of these lengths."""
    agents = [_Agent(length) for length in lengths]
    last = agents[-1]

    def ask(name: str, **filters: Any) -> Do:
        return lambda store: getattr(store, name)(limit=_PAGE, **filters)

    async def events(store: ExtendedStore) -> None:
        async for _ in store.read_events(last.id, channel="monitor"):
            return

    pages = [
        Row("`query_sessions`", ask("query_sessions")),
        Row("`query_messages`", ask("query_messages")),
        Row("`query_messages(agent_id=…)`", ask("query_messages", agent_id=last.id)),
        Row("`query_messages(role='system')`", ask("query_messages", role="system")),
        Row("`query_messages(agent_id=…, role='system')`", ask("query_messages", agent_id=last.id, role="system")),
        Row("`query_messages(content_type='tool_use')`", ask("query_messages", content_type="tool_use")),
        Row("`query_tool_calls(tool_name=…)`", ask("query_tool_calls", tool_name="tool_3")),
        Row("`query_tool_calls(state='FAILED')`", ask("query_tool_calls", state="FAILED")),
        Row("`query_tool_calls(is_error=True)`", ask("query_tool_calls", is_error=True)),
        Row("`query_tool_calls(agent_id=…, is_error=True)`", ask("query_tool_calls", agent_id=last.id, is_error=True)),
    ]
    paged = [Row(f"a page of {row.name}", row.call, ask("query_sessions")) for row in pages]
    return [
        Row("`append_event`", last.event, last.event, 20),
        Row("`save_turn`: two messages, a tool call, two events, info", last.turn, last.turn, 10),
        *(row for agent in agents for row in agent.rows()),
        *paged,
        Row("the first page of `read_events(channel='monitor')`", events),
        Row(f"an idle follower, in {_FOLLOWED_S:.0f} s", last.follow, last.begin_to_follow),
    ]


async def measured(meter: Meter, row: Row) -> dict[str, float]:
    """The mean cost of a row's call."""
    async with _opened(meter) as store:
        if row.before is not None:
            await row.before(store)
            await asyncio.sleep(_APART_S)
        meter.clear()
        for _ in range(row.times):
            await row.call(store)
            await asyncio.sleep(_APART_S)
    counts = meter.counted()
    return {column: counts[column] / row.times for column in meter.columns}


@asynccontextmanager
async def _opened(meter: Meter) -> AsyncIterator[ExtendedStore]:
    async with await meter.store() as store:
        await store.exists("nobody")
        meter.clear()
        yield store


# --- the table --------------------------------------------------------------------------------------------------------


async def run(names: Sequence[str], *, lengths: Sequence[int] = (100, 10_000)) -> int:
    """Make the tables of these backends, or of both."""
    parts = []
    for name in names or METERS:
        async with METERS[name]() as meter:
            lines = await _table(meter, lengths)
        write_into(Path(f"docs/guides/{name}.md"), "costs", lines)
        parts += [f"# {name}", *lines]
    Path("bench").mkdir(exist_ok=True)
    Path("bench/costs.md").write_text("\n".join(parts), "utf-8")
    return 0


async def _table(meter: Meter, lengths: Sequence[int]) -> list[str]:
    async with await meter.store() as store:
        for length in lengths:
            await fill(store, f"agent-{length}", length)
        for n in range(_OTHERS):
            await fill(store, f"other-{n}", 2)
    lines = ["", f"Counted on {meter.title}.", "", f"| call | {' | '.join(meter.columns)} |"]
    lines.append(f"| --- |{' --: |' * len(meter.columns)}")
    print("\n".join(lines), flush=True)
    for row in rows_of(lengths):
        costs = await measured(meter, row)
        lines.append(f"| {row.name} | {' | '.join(map(_shown, costs.values()))} |")
        print(lines[-1], flush=True)
    return [*lines, ""]


def _shown(number: float) -> str:
    return f"{number:,.1f}".removesuffix(".0") if number < 100 else f"{number:,.0f}"
