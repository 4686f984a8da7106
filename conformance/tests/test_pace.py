"""Checks on a store that is slow: they take less of it, and find nothing that is not wrong."""

from __future__ import annotations

import inspect
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from kode_conformance import load_checks
from kode_conformance.builtin import MemoryHarness
from kode_conformance.instruments import pace
from kode_conformance.registry import Check
from kode_conformance.results import Status
from kode_conformance.running.runner import judge
from kode_conformance.settings import Settings, Tier

pytestmark = pytest.mark.selftest


def _in_rounds() -> list[Check]:
    """The quick checks of the modules that go on for as long as there is time."""
    sources = {check: inspect.getsource(sys.modules[check.run.__module__]) for check in load_checks()}
    return [check for check, source in sources.items() if check.tier is Tier.QUICK and "in_time(" in source]


@pytest.mark.parametrize("check", _in_rounds(), ids=lambda check: check.id)
def test_what_follows_the_rounds_holds_after_the_first(check: Check) -> None:
    result = judge(check, MemoryHarness(), Settings(seconds=0.0))
    assert result.status in (Status.PASS, Status.NOT_APPLICABLE, Status.UNVERIFIED), result.message


def test_sizes_that_would_take_too_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ctx: Any = SimpleNamespace(settings=Settings(seconds=15.0))
    taken = []
    for size in pace.sizes_in_time(ctx, (0, 1, 100, 501, 1001, 10_001, 101)):
        now += 0.1 + size / 100
        taken.append(size)
    assert taken == [0, 1, 100, 501, 101]
