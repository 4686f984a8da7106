"""Ids of agents made of parts: never two alike, found by their first parts; and times as datetimes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    InvalidArgumentError,
    Message,
    SessionInfo,
    Snapshot,
    StoredEvent,
    StoredMessage,
    Timeline,
    ToolCallRecord,
    agent_key,
    agent_key_prefix,
    create_extended_store,
    to_datetime,
)
from kode_core.ids import check_agent_id

TRICKY = st.text("a:%#2530~-\0é🙂\ud800\udc00/*", max_size=6)
PART = st.integers(-3, 3) | TRICKY | st.text(max_size=300) | st.sampled_from(["x" * 200, "🙂" * 60])
PARTS = st.lists(PART, min_size=1, max_size=4).map(tuple)


def kinds(parts: tuple[Any, ...]) -> list[tuple[type, Any]]:
    return [(type(part), part) for part in parts]


@given(PARTS, PARTS)
def test_other_parts_are_another_id(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """Every id is legal, the same for the same parts, and another one for all others."""
    assert check_agent_id(agent_key(*one)) == agent_key(*one)
    assert (agent_key(*one) == agent_key(*other)) == (kinds(one) == kinds(other))


@given(PARTS, PARTS, PARTS)
def test_a_prefix_finds_the_ids_below_it(first: tuple[Any, ...], more: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """Ids with these first parts and further ones begin with the prefix, also cut ones, and no others do."""
    try:
        prefix = agent_key_prefix(*first)
    except InvalidArgumentError as error:
        assert "210 bytes" in str(error)
        return
    assert agent_key(*first, *more).startswith(prefix)
    below = len(other) > len(first) and kinds(other[: len(first)]) == kinds(first)
    assert agent_key(*other).startswith(prefix) == below


def test_ids_that_are_written_out() -> None:
    """Ids never change from one version to the next."""
    assert agent_key("acme", "ada", 7) == "acme:ada:#7"
    assert agent_key("a", "b:c") == "a:b%3Ac"
    assert agent_key("a:b", "c") == "a%3Ab:c"
    assert agent_key("1") == "1"
    assert agent_key(1) == "#1"
    assert agent_key("#1", "a#1", -1) == "%231:a#1:#-1"
    assert agent_key("") == "%-"
    assert agent_key("", "") == "%-:%-"
    assert agent_key("100%", "a/b c", "\0", "\ud800") == "100%25:a/b c:%00:%ED%A0%80"
    assert agent_key("t", "x" * 254) == "t:" + "x" * 254
    cut = agent_key("t", "x" * 255)
    assert cut == "t:" + "x" * 212 + "%~" + "03b98be252bb6e20b634af970cfe4ba208df72ba"
    assert agent_key("t", 10**300) != agent_key("t", 10**300 + 1)


@pytest.mark.parametrize("make", [agent_key, agent_key_prefix])
@pytest.mark.parametrize("parts", [(), (None,), (True,), (1.0,), (b"a",), ("a", ["b"]), (10**5000,)])
def test_other_parts_are_refused(make: Callable[..., str], parts: tuple[Any, ...]) -> None:
    """No parts, and parts that are neither texts nor integers, are refused with their place."""
    with pytest.raises(InvalidArgumentError, match=f"{make.__name__}.*(one part or more|part {len(parts) - 1} )"):
        make(*parts)


async def test_a_store_lists_by_the_first_parts() -> None:
    """``list`` finds the agents of a tenant, cut ids too, and none of a tenant with a similar name."""
    async with create_extended_store("memory:") as store:
        parts = [("acme", "ada", 1), ("acme", "x" * 300), ("acme:", "b"), ("acme2", "c"), ("acme",)]
        for one in parts:
            await store.save_info(agent_key(*one), AgentInfo(agent_id=agent_key(*one), template_id="t"))
        assert set(await store.list(agent_key_prefix("acme"))) == {agent_key(*parts[0]), agent_key(*parts[1])}


# --- Times ------------------------------------------------------------------------------------------------------------

MOMENT = datetime(2025, 1, 31, 12, 0, 0, 123_000, tzinfo=UTC)
MS = 1_738_324_800_123


def test_times_as_datetimes() -> None:
    """Every record with a time of the store or the producer has it as an aware datetime in UTC."""
    bookmark, event = Bookmark(1, MS), AgentEvent("progress", "x")
    call = ToolCallRecord(id="c", name="n", created_at=MS)
    session = SessionInfo(agent_id="a", template_id="t", created_at=MS, updated_at=MS + 1, message_count=0)
    assert StoredMessage("user", "x", agent_id="a", position=0, created_at=MS).created_time == MOMENT
    assert bookmark.time == Timeline(1, bookmark, event).time == MOMENT
    assert StoredEvent(1, bookmark, event, offset=3).time == MOMENT
    assert (call.created_time, call.started_time, call.completed_time) == (MOMENT, None, None)
    ended = call.replace(started_at=MS, completed_at=MS)
    assert (ended.started_time, ended.completed_time) == (MOMENT, MOMENT)
    assert (session.created_time, session.updated_time - MOMENT) == (MOMENT, timedelta(milliseconds=1))
    assert AgentInfo(agent_id="a", template_id="t", created_at=MS).created_time == MOMENT
    assert Snapshot(id="s", created_at=MS).created_time == MOMENT
    assert MOMENT.tzinfo is bookmark.time.tzinfo


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))
def test_a_datetime_is_exact(time_ms: int) -> None:
    """The years 1 to 9999 come back to the millisecond."""
    moment = to_datetime(time_ms)
    assert (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) == time_ms


@pytest.mark.parametrize("wrong", [253_402_300_800_000, -62_135_596_800_001, 2**63, -(10**40), 1.5, True, None, "1"])
def test_other_times_are_refused(wrong: Any) -> None:
    """A time outside of what a datetime can hold, or of another type, has a typed error, as a property too."""
    with pytest.raises(InvalidArgumentError, match="milliseconds"):
        to_datetime(wrong)
    with pytest.raises(InvalidArgumentError, match="milliseconds"):
        _ = Bookmark(1, wrong).time


async def test_stored_times_are_those_of_queries() -> None:
    """A message of a query has the time at which it was stored, and filters take it."""
    async with create_extended_store("memory:") as store:
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        await store.append_messages("a", [Message.user("hi")])
        (found,) = await store.query_messages(agent_id="a")
        assert before <= found.created_time <= datetime.now(UTC)
        assert await store.query_messages(agent_id="a", created_after=found.created_time) == [found]
        assert await store.query_messages(agent_id="a", created_before=found.created_time) == []
