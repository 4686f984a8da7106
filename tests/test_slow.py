"""The list of the tests that ``make test`` leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import slow
from tests.slow import longest

ROOT = Path(__file__).parents[1]
TIMES = {"a.py::one[x]": 5.0, "a.py::one[y]": 1.0, "a.py::two": 4.0, "b.py::C::three": 3.0, "b.py::four[a[b]::c]": 0.5}


@pytest.mark.parametrize(
    ("seconds", "left_out"),
    [
        (13.5, []),
        (13.4, ["a.py::one"]),
        (7.5, ["a.py::one"]),
        (7.4, ["a.py::one", "b.py::C::three"]),
        (4, ["a.py::one", "b.py::C::three"]),
    ],
)
def test_the_longest_are_left_out(seconds: float, left_out: list[str]) -> None:
    """As few functions as possible, those with the longest case first, each with all of its cases; of each file one
    stays at least, however long it takes.
    """
    assert longest(TIMES, seconds) == left_out


def test_the_case_counts_and_not_the_sum() -> None:
    """A function of many short cases stays, as long as it has to: each of them is quick to run alone."""
    cases = {f"a.py::many[{i}]": 1.0 for i in range(20)}
    assert longest({**cases, "a.py::single": 2.0}, 20) == ["a.py::single"]
    assert longest({}, 0) == []


def test_a_third_of_each_file_stays() -> None:
    """However short the time is, the functions that take the least run."""
    times = {f"a.py::t{i}": float(i) for i in range(1, 8)} | {"b.py::alone": 9.0}
    assert longest(times, 0) == ["a.py::t3", "a.py::t4", "a.py::t5", "a.py::t6", "a.py::t7"]


def test_the_list_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each function, next to the module; functions that the run did not time stay in the list."""
    monkeypatch.setattr(slow, "__file__", str(tmp_path / "slow.py"))
    (tmp_path / "times.json").write_text(json.dumps(TIMES))
    for before, after in (("", ""), ("a.py::two\nb.py::left_out\n", "b.py::left_out\n")):
        if before:
            (tmp_path / "slow.txt").write_text(before)
        slow.main(str(tmp_path / "times.json"), "7.4")
        assert (tmp_path / "slow.txt").read_text() == f"a.py::one\nb.py::C::three\n{after}"


def test_each_line_names_a_file_that_is_there() -> None:
    """The lines are sorted and unique, because a line with an old name would leave nothing out."""
    lines = (ROOT / "tests" / "slow.txt").read_text().splitlines()
    assert lines == sorted(set(lines))
    assert [line for line in lines if not (ROOT / line.partition("::")[0]).is_file()] == []
    assert [line for line in lines if "[" in line or "::" not in line] == []
