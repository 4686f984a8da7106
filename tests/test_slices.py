"""How much work is done between two pauses, counted and not timed (OPS-15)."""

from __future__ import annotations

import pytest

from kode_core.jsonslices import JsonWriter
from kode_core.jsonvalue import NODES, Problem, walk, weight
from kode_core.model.base import Json


def test_integers_weigh_what_it_takes_to_write_them() -> None:
    """A list of a few hundred integers of 4,000 digits is written in several pieces, one of small integers in one."""
    assert weight([10**4_200] * 20) > NODES >= weight([10**18] * 1_000)
    pieces = list(JsonWriter(None).write([10**4_200] * 100))
    assert len(pieces) > 10
    assert max(map(len, pieces)) < 20 * 4_300


LONG: list[Json] = [0.5] * 100_000
WIDE: dict[str, Json] = {f"k{i}": 0.5 for i in range(50_000)}


@pytest.mark.parametrize("value", [[*LONG, float("nan")], {**WIDE, "x": float("nan")}])
def test_the_place_of_a_problem_is_looked_for_with_pauses(value: Json) -> None:
    """A wrong value at the end of a long list or dict is found after as many pauses as the length makes."""
    pauses = 0
    with pytest.raises(Problem):
        for _ in walk(value):
            pauses += 1
    assert pauses >= len(value) // 2_000 - 1


def test_of_two_problems_the_first_is_told() -> None:
    """The place that is named is that of the first wrong value, as it is read."""
    with pytest.raises(Problem) as caught:
        list(walk({"a": [1, {"b": float("nan")}], "c": set()}))
    assert caught.value.path == ".a[1].b"
