"""Where it is asked for, the kills of a run are written down: ``KODE_KILL_MATRIX`` names the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


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
