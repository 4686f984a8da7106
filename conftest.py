"""Marks the tests that take long, which ``make test`` leaves to ``make test-all``, and writes down how long each takes.

``tests/slow.txt`` names them; ``python -m tests.slow`` makes it from the times that a run with ``KODE_TEST_TIMES=FILE``
wrote. A test that is named on the command line runs in any case. ``KODE_TEST_SLOW=1/3`` takes the second of three
samples of them, so that three runs in a row see them all.

The adapters of agent frameworks are tested where their frameworks are installed: ``make test-frameworks`` sees to that.
"""

from __future__ import annotations

import gc
import json
import os
import signal
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.sampling import take_sample

_SLOW = Path(__file__).with_name("tests") / "slow.txt"

FRAMEWORKS = {
    "langgraph": "langgraph",
    "openai-agents": "openai-agents",
    "claude-agent": "claude-agent-sdk",
    "pydantic-ai": "pydantic-ai-slim",
    "adk": "google-adk",
}


def _is_missing(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return True
    return False


_MISSING = [folder for folder, name in FRAMEWORKS.items() if _is_missing(name)]
collect_ignore = [f"plugins/{folder}" for folder in _MISSING]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background of a script ignores Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the processes that tests interrupt would inherit it

settings.register_profile("kode", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kode")  # a busy machine is no finding


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if any("::" in arg for arg in config.invocation_params.args if not arg.startswith("-")):
        return
    slow = set(_SLOW.read_text().splitlines())
    for item in items:
        if item.nodeid.partition("[")[0] in slow:
            item.add_marker(pytest.mark.slow)
    if sample := os.environ.get("KODE_TEST_SLOW"):
        take_sample(config, items, sample, lambda item: item.nodeid if item.get_closest_marker("slow") else "")


def pytest_collection_finish() -> None:
    """Keep the tests themselves out of the garbage collections that tests ask for: each takes as long as a test."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    return f"left to make test-frameworks: {', '.join(_MISSING)}" if _MISSING else "with all frameworks"


class _Times:
    """Adds up the seconds of each test, its fixtures included, of all workers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps(self._seconds, indent=0, sort_keys=True) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("KODE_TEST_TIMES")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Times(Path(path).absolute()))
