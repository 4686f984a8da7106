"""A harness whose attributes or hooks are wrong is named, and its store is not blamed for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kode_conformance.builtin import MemoryHarness
from kode_conformance.harness import Costs, Deviation, Handle, HarnessError, Limits, declared, load_harness
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
