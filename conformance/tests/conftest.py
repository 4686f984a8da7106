"""Where it is asked for, the kills of a run are written down, and only a sample of the zoo is looked at.

``KODE_KILL_MATRIX`` names the file of the kills. ``KODE_TEST_SAMPLE=2/6`` takes the third of six samples of the faulty
and the odd stores, so that six runs in a row see them all.

A run that leaves out the self-test does not import its files: they have more tests than all others.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Final

import pytest

from tests.sampling import take_sample

_SAMPLED: Final = ("mutant", "fault", "angel")
"""The parameters of tests that say which store of the zoo they look at."""
_SELF_TEST: Final = re.compile(r"^pytestmark = (?:\[\n *)?pytest\.mark\.selftest\b", re.MULTILINE)
"""The mark of a file in which all tests are of the self-test."""


class Kills:
    """Gathers what ``test_the_mutant_is_killed`` records, of all workers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        row = dict(report.user_properties).get("mutant")
        if isinstance(row, dict):
            self._rows.setdefault(row["mutant"], {**row, "killed": True})["killed"] &= not report.failed

    def pytest_sessionfinish(self) -> None:
        if self._rows:
            rows = sorted(self._rows.values(), key=lambda row: (row["clause"], row["mutant"]))
            found = {
                "mutants": len(rows),
                "survivors": [row["mutant"] for row in rows if not row["killed"]],
                "rows": rows,
            }
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(found, indent=1) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("KODE_KILL_MATRIX")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Kills(Path(path).absolute()))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    is_left_out = "not selftest" in config.getoption("markexpr") and collection_path.name.startswith("test_")
    return True if is_left_out and _SELF_TEST.search(collection_path.read_text("utf-8")) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    sample = os.environ.get("KODE_TEST_SAMPLE")
    if sample:
        take_sample(config, items, sample, _store)


def _store(item: pytest.Item) -> str:
    """The name of the store of the zoo that a test looks at; empty where it looks at none, or at all."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    found = next((parameters[name] for name in _SAMPLED if name in parameters), "")
    return str(getattr(found, "name", found))
