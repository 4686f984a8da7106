"""Groups of records: what the core checks, engines that cannot group, and records that cannot be read."""

from __future__ import annotations

import logging
import tracemalloc
from datetime import date, timedelta
from typing import Any, Final

import pytest
from msgspec.structs import replace

from kode_core import AgentInfo, Durations, Group, InvalidArgumentError, Message, ToolCallRecord, UnsupportedError
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import Found
from kode_core.codec import Body
from kode_core.counted import can_group
from kode_core.engine import Engine
from kode_core.grouping import checked_grouping, day_text
from kode_core.layers import Layer
from kode_core.query import DAY_MS, MAX_GROUPS, Grouping, GroupRows, RowQuery, SessionQuery
from kode_core.store import EngineStore
from kode_core.store import groups as store_groups
from tests.test_query_lists import Finds, Hostile, More, OneAtATime, Text


def test_days_are_the_dates_of_the_calendar() -> None:
    """Each hundredth day of the ten thousand years that Python knows, and the days around them."""
    first = date(1970, 1, 1)
    low, high = (date.min - first).days, (date.max - first).days
    for day in {*range(low, high, 97), low, high, *range(-800, 800)}:
        assert day_text(day) == (first + timedelta(days=day)).isoformat()
    assert day_text(high + 1) == "+010000-01-01"
    assert [day_text(low - 1), day_text(low - 366), day_text(low - 367)] == [
        "0000-12-31",
        "0000-01-01",
        "-000001-12-31",
    ]


def test_a_day_begins_at_the_offset() -> None:
    """Also before 1970, and at the ends of 64 bits."""
    grouping = checked_grouping("messages", ["day"], -90)
    assert (grouping.day(90 * 60_000), grouping.day(90 * 60_000 - 1)) == (0, -1)
    assert grouping.day(-(2**63)) == (-(2**63) - 90 * 60_000) // DAY_MS


@pytest.mark.parametrize("bad", [Text("day"), More(["day"]), [Text("day")], [Hostile()], Hostile(), {"day"}, iter("a")])
def test_wrong_names_are_refused(bad: Any) -> None:
    """Subclasses and objects that cannot be compared, too; the message says what is wrong and where."""
    with pytest.raises(InvalidArgumentError, match=r"^by(\[0\])? must be a str"):
        checked_grouping("tool_calls", bad, 0)


@pytest.mark.parametrize(
    ("kind", "by", "offset", "message"),
    [
        ("tool_calls", "tool-name", 0, "tool_calls cannot be grouped by 'tool-name'; did you mean 'tool_name'?"),
        ("sessions", "role", 0, "sessions cannot be grouped by 'role'; known are template_id, day"),
        (
            "tool_calls",
            "state,day",
            0,
            "tool_calls cannot be grouped by 'state,day'; pass several names as a list",
        ),
        ("messages", ["day", "role", "day"], 0, "by names 'day' twice"),
        ("messages", [], 0, "by names nothing; count_messages gives the number of all"),
        ("messages", "day", True, "utc_offset_minutes must be an int, got bool"),
        ("messages", "day", 1440, "utc_offset_minutes must be less than a day, as in 120 or -300, got 1440"),
        ("messages", "role", 60, "utc_offset_minutes says when days begin, and by has no day"),
    ],
)
def test_messages_say_what_to_do(kind: str, by: Any, offset: Any, message: str) -> None:
    """One sentence, with the names that there are."""
    with pytest.raises(InvalidArgumentError) as caught:
        checked_grouping(kind, by, offset)
    assert str(caught.value) == message


class CannotGroup(Layer):
    """A third-party engine that finds, and groups nothing."""

    can_group = False  # type: ignore[assignment]


class FindsAndGroups(Finds):
    """Groups, too."""

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
        return Found([(tuple("x" for _ in grouping.by), 7)], ["a group of 2 rows of a table"])


def opened(engine: Engine) -> EngineStore:
    async def open_engine() -> Engine:
        return engine

    return EngineStore(open_engine)


async def test_a_layer_that_finds_others_is_not_passed_by(caplog: pytest.LogCaptureFixture) -> None:
    """Groups of a layer that overrides a query are of what the layer finds; what it leaves out is named in the log."""
    layers = [Layer(MemoryEngine()), Finds(MemoryEngine()), FindsAndGroups(MemoryEngine())]
    assert [can_group(one) for one in layers] == [True, False, True]
    async with opened(layers[1]) as store:
        for name in ("hidden", "a", "b"):
            await store.save_info(name, AgentInfo(agent_id=name, template_id="t"))
        assert await store.group_sessions("template_id") == [Group(values={"template_id": "t"}, count=2)]
    async with opened(layers[2]) as store:
        assert [one.count for one in await store.group_messages(["role"])] == [7]
    assert "a group of 2 rows of a table is damaged and was left out" in caplog.text


async def test_an_engine_of_single_values_refuses_lists() -> None:
    """As for queries; an empty list finds nothing, and one value in a list is that value."""
    async with opened(OneAtATime(MemoryEngine())) as store:
        await store.append_messages("a", [Message.user("x")])
        with pytest.raises(UnsupportedError, match="takes one value for each filter"):
            await store.group_messages("role", role=["user", "x"])
        assert await store.group_messages("role", role=[]) == []
        assert await store.group_messages("role", role=["user"]) == [Group(values={"role": "user"}, count=1)]


NO_RECORD: Final = Body("{", b"")
LONG: Final = "n" * 3000
TOO_MANY: Final = MAX_GROUPS + 500


async def test_pages_are_grouped_like_an_engine_groups() -> None:
    """Where the engine cannot, records are read page after page: the same groups, names, order and refusals."""
    inner = MemoryEngine()
    async with opened(inner) as able, opened(CannotGroup(inner)) as unable:
        for i in range(40):
            calls = [
                ToolCallRecord(
                    id=f"{i}",
                    name=(LONG, "x", "\0", "\ud800")[(i + j) % 4],
                    state=("COMPLETED", f"{LONG}{i % 2}")[j % 2],
                    is_error=(None, False, True)[i % 3],
                    created_at=(i - 20) * DAY_MS // 3,
                )
                for j in range(i % 9)
            ]
            messages = [Message("user" if i % 3 else LONG, [])] * (i % 5)
            info = AgentInfo(agent_id=f"a{i}", template_id=f"t{i % 4}" if i % 5 else LONG, created_at=i - 20)
            await able.save_turn(f"a{i}", info=info, messages=messages, tool_calls=calls)
        for by in (["tool_name"], ["state", "is_error"], ["day", "has_approval"], ["agent_id", "tool_name"]):
            for filters in ({}, {"agent_id": "a8"}, {"is_error": True}, {"tool_name": [LONG, "x"], "created_after": 0}):
                wanted = await able.group_tool_calls(by, **filters)  # type: ignore[arg-type]
                assert wanted
                assert await unable.group_tool_calls(by, **filters) == wanted  # type: ignore[arg-type]
        assert await unable.group_sessions(["day", "template_id"]) == await able.group_sessions(["day", "template_id"])
        assert await unable.group_messages(("role", "agent_id")) == await able.group_messages(("role", "agent_id"))
        many = [ToolCallRecord(id="c", name=f"{i}", state="MANY") for i in range(TOO_MANY)]
        await able.append_messages("z", [])
        await able.save_tool_call_records("z", many)
        for store in (able, unable):
            with pytest.raises(InvalidArgumentError, match="tool_calls have more than 10,000 groups by tool_name; gro"):
                await store.group_tool_calls("tool_name", state="MANY")


async def test_grouping_pages_takes_the_memory_of_a_page() -> None:
    """80 MB of records in a few groups are read in pages."""
    inner = MemoryEngine()
    async with opened(inner) as able, opened(CannotGroup(inner)) as unable:
        text = "x" * 40_000
        for i in range(40):
            await able.append_messages(f"a{i}", [Message("user" if j % 2 else "critic", text) for j in range(50)])
        tracemalloc.start()
        try:
            found = await unable.group_messages("role")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert [one.count for one in found] == [1000, 1000]
        assert peak < 30 << 20


async def test_damaged_records_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    """Where a record must be read for its values; by day and agent it counts, as its place is known."""

    class Damaging(CannotGroup):
        async def find_rows(self, query: RowQuery) -> Any:
            rows = await super().find_rows(query)
            return [replace(row, body=NO_RECORD) if row.position == 1 else row for row in rows]

    async with opened(Damaging(MemoryEngine())) as store:
        await store.save_tool_call_records("a", [ToolCallRecord(id="c", name="x", duration_ms=i) for i in (1, 2, 4)])
        caplog.set_level(logging.ERROR)
        timed = Durations(count=2, total_ms=5, max_ms=4)
        assert await store.group_tool_calls("tool_name") == [Group(values={"tool_name": "x"}, count=2)]
        assert "tool call 1 of agent 'a' is damaged and was left out" in caplog.text
        assert await store.group_tool_calls("agent_id") == [Group(values={"agent_id": "a"}, count=3)]
        assert [one.durations for one in await store.group_tool_calls("agent_id", durations=True)] == [timed]


def test_a_mean_of_the_greatest_durations() -> None:
    """A sum beyond all floats is an integer, and has a mean."""
    tally = store_groups._Tally()
    for _ in range(3):
        tally.add(1.5e308)
    durations = tally.durations()
    assert durations is not None
    assert (type(durations.total_ms), durations.mean_ms, durations.max_ms) == (int, 1.5e308, 1.5e308)
