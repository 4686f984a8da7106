"""Filters that list values, and counts: what the core checks, and engines that know neither."""

from __future__ import annotations

from typing import Any, Final

import pytest

from kode_core import AgentInfo, InvalidArgumentError, Message, UnsupportedError
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.counted import can_count
from kode_core.engine import Engine, finds_any_of
from kode_core.layers import Layer
from kode_core.query import (
    MAX_VALUES,
    RowQuery,
    SessionQuery,
    finds_nothing,
    message_query,
    page_cursor,
    session_query,
    tool_call_query,
)
from kode_core.store import EngineStore


@pytest.mark.parametrize("one", [["a"], ("a",), {"a"}, frozenset({"a"}), ["a", "a"]])
def test_one_value_in_a_list_is_the_value(one: Any) -> None:
    """Engines get the same query, and cursors of one belong to the other."""
    for make, names in (
        (session_query, ("agent_id", "template_id", "user_id")),
        (message_query, ("agent_id", "role", "content_type")),
        (tool_call_query, ("agent_id", "tool_name", "state")),
    ):
        for name in names:
            assert make({name: one}) == make({name: "a"})  # type: ignore[operator]


def test_the_order_of_values_does_not_matter() -> None:
    """Lists of the same values are one query, whose cursors work for all of them."""
    query = message_query({"role": ["b", "a", "b"]})
    assert query.where == (("role", ("a", "b")),)
    cursor = page_cursor(query, (5, "x", 1))
    assert message_query({"role": {"a", "b"}, "cursor": cursor}).after == (5, "x", 1)
    with pytest.raises(InvalidArgumentError, match="other filters"):
        message_query({"role": ["a", "c"], "cursor": cursor})


def test_cursors_of_single_values_stay() -> None:
    """A cursor that was given before filters took lists still belongs to its query."""
    cursor = "Zs-k4lsxLCIzODU1MTQ3ODU4ZGUiLDUsImEiXQ"
    assert page_cursor(session_query({"template_id": "t"}), (5, "a")) == cursor


class Hostile:
    """Raises when it is compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compared")

    __hash__ = object.__hash__


class Text(str):
    """A str of another class."""


class More(list[str]):
    """A list of another class."""


WRONG: Final[tuple[Any, ...]] = (
    ["a", 1],
    ["a", None],
    [Text("a")],
    [["a"]],
    More(["a"]),
    iter("a"),
    {"a": 1},
    Hostile(),
    [Hostile()],
    {1},
    b"a",
)


@pytest.mark.parametrize("bad", WRONG, ids=range(len(WRONG)))
def test_wrong_lists_are_refused(bad: Any) -> None:
    """The message names the filter and the type."""
    with pytest.raises(InvalidArgumentError, match=r"role must be a str.*, got \w+"):
        message_query({"role": bad})


def test_too_many_values_are_refused() -> None:
    """The message says how many can be asked for; repeated values count once."""
    many = [f"x{i}" for i in range(MAX_VALUES)]
    assert len(message_query({"role": many * 100}).where[0][1]) == MAX_VALUES  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="role lists more than 100 different values; ask for 100 at a time"):
        message_query({"role": [*many, "y"]})
    with pytest.raises(InvalidArgumentError, match="agent_id must not be empty"):
        session_query({"agent_id": ["a", ""]})


def test_an_empty_list_finds_nothing() -> None:
    """Wherever it is; an empty filter of metadata is no list."""
    assert finds_nothing(session_query({"agent_id": []}))
    assert finds_nothing(session_query({"user_id": ()}))
    assert finds_nothing(message_query({"content_type": set()}))
    assert not finds_nothing(session_query({"metadata": {}}))


class OneAtATime(Layer):
    """A third-party engine of before: its filters take one value, and it counts nothing."""

    finds_any_of = False  # type: ignore[assignment]
    can_count = False  # type: ignore[assignment]

    async def find_rows(self, query: RowQuery) -> Any:
        assert all(type(value) in (str, bool) for value in (query.agent_id or "", *dict(query.where).values()))
        return await super().find_rows(query)


async def test_an_engine_of_single_values_refuses_lists() -> None:
    """It finds by one value in a list and by none, counts page after page, and nothing is deleted by a list."""

    async def opened() -> Engine:
        return OneAtATime(MemoryEngine())

    async with EngineStore(opened) as store:
        for i in range(3):
            await store.save_turn(
                f"a{i}", append=[Message.user("x")] * 70, info=AgentInfo(agent_id=f"a{i}", template_id=f"t{i}")
            )
        for call in (
            store.query_sessions(template_id=["t0", "t1"]),
            store.query_messages(role=["user", "x"], limit=0),
            store.query_tool_calls(agent_id=["a", "b"]),
            store.count_messages(content_type=["text", "x"]),
            store.delete_many(user_id=["u", "v"]),
            anext(store.iter_sessions(agent_id=["a0", "a1"])),
        ):
            with pytest.raises(UnsupportedError, match="takes one value for each filter"):
                await call
        assert len(await store.query_sessions(template_id=["t0"])) == 1
        assert await store.query_messages(role=[]) == []
        assert await store.delete_many(template_id=[]) == 0
        counts = [await store.count_sessions(), await store.count_messages(role="user"), await store.count_tool_calls()]
        assert counts == [3, 210, 0]


class Finds(Layer):
    """Finds other sessions than the engine inside, and does not say what it counts."""

    async def find_sessions(self, query: SessionQuery) -> Any:
        return [row for row in await super().find_sessions(query) if row.agent_id != "hidden"]


class FindsAndCounts(Finds):
    """Counts, too."""

    async def count(self, query: RowQuery | SessionQuery) -> int:
        return 7


async def test_a_layer_that_finds_others_is_not_passed_by() -> None:
    """Counts of a layer that overrides a query are of what the layer finds."""
    layers = [Layer(MemoryEngine()), Finds(MemoryEngine()), FindsAndCounts(MemoryEngine())]
    assert [can_count(one) for one in layers] == [True, False, True]
    assert all(finds_any_of(one) for one in layers)

    async def opened() -> Engine:
        return layers[1]

    async with EngineStore(opened) as store:
        for name in ("hidden", "a", "b"):
            await store.save_info(name, AgentInfo(agent_id=name, template_id="t"))
        assert await store.count_sessions(template_id=["t", "u"]) == 2
