"""A harness whose attributes or hooks are wrong is named, and its store is not blamed for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.builtin import MemoryHarness
from kode_conformance.harness import Costs, Deviation, Handle, HarnessError, Limits, declared, load_harness
from kode_conformance.instruments import costs
from kode_conformance.registry import load_checks
from kode_conformance.results import Status
from kode_conformance.running.runner import judge
from kode_conformance.settings import Settings, Tier

CHECKS = {check.id: check for check in load_checks()}

WRONG: list[tuple[str, Any]] = [
    ("name", None),
    ("name", " "),
    ("lacks", "PERSISTENT"),
    ("lacks", None),
    ("limits", {"max_payload_bytes": 5}),
    ("limits", Limits("5")),  # type: ignore[arg-type]
    ("limits", Limits(0)),
    ("deviations", {"MSG-1.save_replaces_the_whole_list": "text"}),
    ("deviations", ["MSG-1.save_replaces_the_whole_list"]),
    ("versions", {"duckdb": 1.4}),
    ("secrets", "password"),
    ("secrets", [""]),
    ("secrets", None),
    ("patience", 0),
    ("patience", "2"),
    ("patience", float("nan")),
]


@pytest.mark.parametrize(("attribute", "value"), WRONG)
def test_attributes_of_another_kind_are_named(attribute: str, value: Any) -> None:
    """The error says which attribute, what it is, and what it may be."""
    harness = type("Wrong", (MemoryHarness,), {attribute: value})()
    with pytest.raises(HarnessError, match=rf"Wrong\.{attribute} is .*; it has to be "):
        declared(harness)
    with pytest.raises(HarnessError, match=attribute):
        judge(CHECKS["TODO-1.todos_are_replaced"], harness, Settings(Tier.QUICK, 0))


def test_right_attributes_pass() -> None:
    """Every kind of container that holds the right things will do."""
    right = {
        "lacks": ["PERSISTENT", "CROSS_PROCESS"],
        "limits": Limits(400_000),
        "deviations": {"MSG-1.save_replaces_the_whole_list": Deviation("the driver cannot yet")},
        "secrets": ("a",),
        "patience": 2,
    }
    declared(type("Right", (MemoryHarness,), right)())


def test_a_file_with_a_wrong_harness_is_refused(tmp_path: Path) -> None:
    """It is so when the harness is loaded, before any check runs."""
    file = tmp_path / "wrong.py"
    file.write_text(
        "from kode_conformance.builtin import MemoryHarness\nclass Wrong(MemoryHarness):\n    patience = '2'\n"
    )
    with pytest.raises(HarnessError, match="patience is '2'"):
        load_harness(f"{file}:Wrong")


class Raises(MemoryHarness):
    async def costs(self, handle: Handle) -> Costs:
        raise RuntimeError("no counters here")


class GivesNonsense(MemoryHarness):
    async def costs(self, handle: Handle) -> Costs:
        return {"commits": 1}  # type: ignore[return-value]


@pytest.mark.parametrize(("harness", "found"), [(Raises(), "costs raised RuntimeError"), (GivesNonsense(), "Costs")])
def test_errors_of_hooks_are_not_the_stores(harness: MemoryHarness, found: str) -> None:
    """A hook that fails makes the check an error of the harness."""
    result = judge(CHECKS["MSG-5.saving_costs_what_changed"], harness, Settings(Tier.QUICK, 0))
    assert result.status is Status.HARNESS_ERROR
    assert found in result.message


class Noisy(MemoryHarness):
    """Its server writes more and more on its own, until the counter has been read *ends* times."""

    def __init__(self, ends: float) -> None:
        self._ends = ends
        self._read = self._written = 0

    async def costs(self, handle: Handle) -> Costs:
        self._read += 1
        self._written += 100_000 * self._read if self._read < self._ends else 0
        return Costs(bytes_written=self._written)


def test_writes_of_the_server_itself_are_not_the_stores() -> None:
    """A growth that only the backend's counter saw has to be seen again when the counter has stood still."""
    check = CHECKS["MSG-5.saving_costs_what_changed"]
    result = judge(check, Noisy(ends=30), Settings(Tier.QUICK, 0))
    assert result.status is Status.PASS, result.message


def test_a_growth_that_the_backends_counter_sees_again_is_the_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts although no other counter saw it."""
    monkeypatch.setattr(costs, "_STILL_S", 0)
    result = judge(CHECKS["MSG-5.saving_costs_what_changed"], Noisy(ends=math.inf), Settings(Tier.QUICK, 0))
    assert result.status is Status.FAIL
    assert "bytes that the backend wrote" in result.message
