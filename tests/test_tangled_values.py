"""Values that hold themselves, that hold one list in many ways, or that nest without end: new and changed ones."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    InvalidValueError,
    Message,
    StoreTimeoutError,
    Timeline,
    ToolUseBlock,
    from_dict,
    to_dict,
)
from kode_core.direct import MemoryStore
from kode_core.fingerprint import fingerprint_of, still_has
from kode_core.jsonslices import JsonWriter
from kode_core.jsonvalue import NODES, Problem, encode_json, is_tangled, walk_through, weight
from kode_core.model.base import Json


def cycle(kind: type) -> Callable[[], Json]:
    """A list or dict that holds itself twice."""

    def make() -> Json:
        value: Any = kind()
        if kind is dict:
            value |= {"x": value, "y": value}
        else:
            value += [value, value]
        return value

    return make


def family() -> Json:
    parent: dict[str, Json] = {"name": "p"}
    parent["children"] = [{"parent": parent}, {"parent": parent}]
    return parent


def doubled(levels: int) -> Json:
    """A text of 2**levels characters."""
    value: Json = [1]
    for _ in range(levels):
        value = [value, value]
    return value


def deep(levels: int) -> Json:
    value: Json = []
    for _ in range(levels):
        value = {"x": value}
    return value


ENDLESS: dict[str, Callable[[], Json]] = {
    "list": cycle(list),
    "dict": cycle(dict),
    "family": family,
    "deep": lambda: deep(50_000),
    "just too deep": lambda: deep(101),
}


def late() -> Json:
    """A cycle behind a text without end."""
    return [doubled(90), family()]


def call(value: Json) -> Message:
    return Message("assistant", [ToolUseBlock(id="c", name="n", input=value)])


@pytest.mark.parametrize("name", ENDLESS)
async def test_a_record_that_was_changed_into_one_is_refused_as_a_new_one(name: str) -> None:
    """A saved or loaded record that became endless is refused in the words for a new one; the store goes on."""
    wanted = "nested deeper than 100 levels"
    async with MemoryStore() as store:
        with pytest.raises(InvalidValueError, match=wanted):
            await store.save_messages("a", [call({"to": "OSL", "x": ENDLESS[name]()})])
        saved = call({"to": "OSL"})
        await store.save_messages("a", [saved])
        loaded = (await store.load_messages("a"))[0]
        many = [call({"n": i}) for i in range(300)]
        await store.save_messages("b", many)
        await store.save_messages("b", many)  # they are looked at together from now on
        for agent_id, records, place in (("a", [saved], 0), ("a", [loaded], 0), ("b", many, 7)):
            block = records[place].content[0]
            assert isinstance(block, ToolUseBlock)
            block.input["x"] = ENDLESS[name]()
            with pytest.raises(InvalidValueError, match=rf"^message {place}: \$.content\[0\].input.x.*{wanted}"):
                await store.save_messages(agent_id, records)
            del block.input["x"]
            await store.save_messages(agent_id, records)


@pytest.mark.parametrize("value", [doubled(90), late()])
async def test_a_text_without_end_takes_the_time_of_a_call(value: Json) -> None:
    """A few lists whose text no machine could hold end with the deadline, whether new or put into a saved record."""
    async with MemoryStore(timeout_ms=300) as store:
        saved = call({"to": "OSL"})
        await store.save_messages("a", [saved])
        block = saved.content[0]
        assert isinstance(block, ToolUseBlock)
        block.input["x"] = value
        for message in (saved, call(value)):
            with pytest.raises(StoreTimeoutError):
                await store.save_messages("a", [message])
        with pytest.raises(StoreTimeoutError):
            await store.append_event("a", Timeline(1, Bookmark(1, 1), AgentEvent("monitor", "x", {"v": value})))
        with pytest.raises(StoreTimeoutError):
            await store.save_info("a", AgentInfo(agent_id="a", template_id="t", metadata={"x": value}))
        assert await store.load_messages("a") == [call({"to": "OSL"})]


@pytest.mark.parametrize("make", [*ENDLESS.values(), late])
async def test_functions_and_filters_refuse_them(make: Callable[[], Json]) -> None:
    """Records from and to dicts, and filters, have no deadline: a value that has no end, or nearly none, ends there."""
    value = make()
    with pytest.raises(InvalidValueError, match="nested deeper"):
        from_dict(Message, {"role": "user", "content": [{"type": "tool_use", "id": "c", "name": "n", "input": value}]})
    with pytest.raises(InvalidValueError, match="nested deeper"):
        to_dict(call(value))
    with pytest.raises(Problem, match="nested deeper"):
        walk_through(value)
    async with MemoryStore() as store:
        with pytest.raises(InvalidValueError, match="nested deeper"):
            await store.query_sessions(metadata={"x": value})


async def test_one_list_in_many_places_is_no_problem_of_a_record() -> None:
    """A record takes it as it is; where its text is wanted at once, it is refused."""
    value = doubled(90)
    record = from_dict(Message, {"role": "user", "content": [{"type": "odd", "value": value}]})
    assert to_dict(record)["content"][0]["value"] is value
    assert copy.deepcopy(value)[0][0] is not value[0][0]
    with pytest.raises(InvalidValueError, match="so often"):
        encode_json(value, "value")
    async with MemoryStore() as store:
        with pytest.raises(InvalidValueError, match="so often"):
            await store.query_sessions(metadata={"x": value})
        await store.save_messages("a", [call(doubled(12))])
        assert await store.load_messages("a") == [call(doubled(12))]
    shared = ["x"] * 100
    assert encode_json([shared] * 1_000, "value") == encode_json([list(shared) for _ in range(1_000)], "value")


@pytest.mark.parametrize("name", ENDLESS)
def test_they_are_weighed_and_written_in_few_steps(name: str) -> None:
    """To weigh one ends early, and to write one in slices comes to the problem."""
    value = ENDLESS[name]()
    assert is_tangled(value) or weight(value) <= NODES
    with pytest.raises(Problem):
        assert len(list(JsonWriter().write(value))) > 0


@pytest.mark.parametrize("recursion", [None, 10**9])
def test_a_value_as_deep_as_memory_ends_in_an_error(recursion: int | None) -> None:
    """Also where a program lets Python recurse as deep as it wants, which overruns the stack of code in C."""
    code = f"""
import asyncio, sys
from kode_core import InvalidValueError, Message, ToolUseBlock, from_dict, to_dict
from kode_core.direct import MemoryStore
if {recursion}: sys.setrecursionlimit({recursion})
async def main():
    async with MemoryStore() as store:
        message = Message("assistant", [ToolUseBlock(id="c", name="n", input={{"to": "OSL"}})])
        await store.save_messages("a", [message])
        value = []
        for _ in range(500_000): value = [value]
        message.content[0].input["x"] = value
        for call in (store.save_messages("a", [message]), store.query_sessions(metadata={{"x": value}})):
            try: await call
            except InvalidValueError as exc: print(str(exc)[-23:])
        try: from_dict(Message, {{"role": "user", "content": [value]}})
        except InvalidValueError as exc: print(str(exc)[-23:])
        message.content[0].input.clear()
        while value: value = value.pop()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.count("deeper than 100 levels\n")) == (0, 3), done.stderr


class Unrelated:
    """Says so when pickle asks for its state."""

    asked = 0

    def __reduce_ex__(self, protocol: Any) -> Any:
        Unrelated.asked += 1
        raise RuntimeError("asked")


CHANGES: list[Json] = [
    [1, 2, "x"],
    [1, 2, "x", None],
    [True, 2, "x"],
    [1.0, 2, "x"],
    (1, 2, "x"),
    [1, "x", 2],
    {"a": 1},
    {"a": -0.0},
    {"a": 0.0},
    {"a": math.nan},
    {"b": 1, "a": 2},
    {"a": 2, "b": 1},
    ["\ud800"],
    [b"x"],
    ["x"],
    [{"x"}],
    [Unrelated()],
    [Unrelated],
    [test_one_list_in_many_places_is_no_problem_of_a_record],
    list(range(100_000)),
    ["x" * 1_000_000],
]


@pytest.mark.parametrize("before", range(15))
def test_a_fingerprint_tells_each_change(before: int) -> None:
    """Only what is equal in every item, type and place has the same fingerprint; no code of other classes is run."""
    fingerprint = fingerprint_of(CHANGES[before])
    assert [i for i, value in enumerate(CHANGES) if still_has(value, fingerprint)] == [before]
    assert Unrelated.asked == 0
